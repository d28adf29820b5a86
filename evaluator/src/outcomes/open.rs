//! An action that was allowed and has no known end: which check that was.
//!
//! Pure. INVARIANT: an action is open for one check at a time. It is free again once the outcome is known, once no
//! attempt of that check can be in the log, or once its decision is not kept any longer.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stage0_contract::{AccountId, ActionDigest, OpenAction, RequestId};
use uuid::Uuid;

/// Attempts of one check that are told apart.
const MAX_ATTEMPTS: usize = 100;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct OpenRecord {
    account: AccountId,
    action_digest: ActionDigest,
    /// The first attempt of the check.
    operation: RequestId,
    /// The attempts that were allowed and may be in the log; none: the action is free.
    attempts: Vec<Attempt>,
    /// When its decision is not kept any longer: from then on its outcome cannot be reported either.
    ends_at: Timestamp,
}

/// One attempt of a check, and the evaluators that allowed it: what one of them gives back, the other still claims.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Attempt {
    request_id: RequestId,
    claims: Vec<Uuid>,
}

/// Who claims an action for a check.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    /// The first attempt of the check.
    pub(super) operation: RequestId,
    pub(super) request_id: RequestId,
    /// The evaluator's own.
    pub(super) claim: Uuid,
}

impl OpenRecord {
    pub(super) fn new(account: AccountId, action_digest: ActionDigest, claim: Claim, ends_at: Timestamp) -> Self {
        let Claim { operation, request_id, claim } = claim;
        let attempts = vec![Attempt { request_id, claims: vec![claim] }];
        Self { account, action_digest, operation, attempts, ends_at }
    }

    pub(super) fn belongs(&self, account: &AccountId, digest: &ActionDigest) -> bool {
        self.account == *account && self.action_digest == *digest
    }

    /// Whether no check holds the action.
    pub(super) fn is_free(&self, now: Timestamp) -> bool {
        self.attempts.is_empty() || self.ends_at <= now
    }

    /// The check that an earlier allowance was for, if it is another one than this.
    pub(super) fn other_than(&self, operation: RequestId, now: Timestamp) -> Option<OpenAction> {
        let is_other = self.operation != operation || self.attempts.len() > MAX_ATTEMPTS;
        let last = self.attempts.last().filter(|_| is_other && !self.is_free(now))?;
        Some(OpenAction { request_id: last.request_id, action_digest: self.action_digest.clone() })
    }

    /// Adds an attempt of the check that holds it.
    pub(super) fn claim(&mut self, claim: Claim) {
        let Claim { request_id, claim, .. } = claim;
        match self.attempts.iter_mut().find(|attempt| attempt.request_id == request_id) {
            Some(attempt) if attempt.claims.contains(&claim) => {}
            Some(attempt) => attempt.claims.push(claim),
            None => self.attempts.push(Attempt { request_id, claims: vec![claim] }),
        }
    }

    /// The decision of this attempt is surely not in the log, as far as `claim` goes; none: as far as any evaluator
    /// goes. Returns whether anything changed.
    pub(super) fn release(&mut self, request_id: RequestId, claim: Option<Uuid>) -> bool {
        let before = self.clone();
        if let Some(attempt) = self.attempts.iter_mut().find(|attempt| attempt.request_id == request_id) {
            attempt.claims.retain(|other| claim.is_some_and(|claim| claim != *other));
        }
        self.attempts.retain(|attempt| !attempt.claims.is_empty());
        *self != before
    }

    /// What came of this attempt is known; whether that frees the action.
    pub(super) fn close(&mut self, request_id: RequestId) -> bool {
        let is_own = self.attempts.iter().any(|attempt| attempt.request_id == request_id);
        if is_own {
            self.attempts.clear();
        }
        is_own
    }

    pub(super) fn ends_at(&self) -> Timestamp {
        self.ends_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: i64 = 2_592_000;

    fn id(number: u64) -> RequestId {
        RequestId::parse(&format!("0190163d-8694-739b-aea5-{number:012x}")).unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn claim(operation: u64, request: u64, claim: u128) -> Claim {
        Claim { operation: id(operation), request_id: id(request), claim: Uuid::from_u128(claim) }
    }

    fn open() -> OpenRecord {
        let digest = ActionDigest::parse(&"a".repeat(64)).unwrap();
        OpenRecord::new(AccountId::parse("acc").unwrap(), digest, claim(1, 1, 7), at(END))
    }

    fn holds(open: &OpenRecord, operation: u64) -> Option<RequestId> {
        open.other_than(id(operation), at(1)).map(|open| open.request_id)
    }

    #[test]
    fn an_action_is_open_for_one_check_and_its_repeats() {
        let mut open = open();
        assert_eq!((holds(&open, 1), holds(&open, 2)), (None, Some(id(1))));
        open.claim(claim(1, 3, 8));
        assert_eq!((holds(&open, 1), holds(&open, 3)), (None, Some(id(3))), "the last attempt is named");
        for number in 10..200 {
            open.claim(claim(1, number, 9));
        }
        assert!(holds(&open, 1).is_some(), "attempts are bounded");
    }

    #[test]
    fn it_is_free_once_the_outcome_of_any_attempt_is_known() {
        for attempt in [1, 3] {
            let mut open = open();
            open.claim(claim(1, 3, 8));
            assert!(!open.close(id(2)) && holds(&open, 2).is_some(), "another check's outcome");
            assert!(open.close(id(attempt)));
            assert!(open.is_free(at(1)) && holds(&open, 2).is_none());
        }
    }

    #[test]
    fn it_is_free_once_no_attempt_can_be_in_the_log() {
        let mut open = open();
        open.claim(claim(1, 1, 8));
        open.claim(claim(1, 3, 8));
        assert!(!open.release(id(2), None), "another check");
        assert!(open.release(id(1), Some(Uuid::from_u128(7))) && !open.release(id(1), Some(Uuid::from_u128(7))));
        assert_eq!(holds(&open, 2), Some(id(3)), "the other evaluator claims the attempt still");
        assert!(open.release(id(1), None) && holds(&open, 2).is_some(), "the gateway gave one attempt up");
        assert!(open.release(id(3), Some(Uuid::from_u128(8))) && open.is_free(at(1)));
    }

    #[test]
    fn it_is_free_once_its_decision_is_not_kept_any_longer_and_a_second_earlier_it_is_not() {
        let open = open();
        assert!(open.other_than(id(2), at(END - 1)).is_some() && open.other_than(id(2), at(END)).is_none());
        assert!(open.is_free(at(END)) && !open.is_free(at(END - 1)));
        assert_eq!(open.ends_at(), at(END));
    }
}
