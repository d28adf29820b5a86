//! Who may propose, approve, deny and cancel the activation of a policy: pure.
//!
//! INVARIANT: who proposed an activation, or stands behind the key that did, never approves it. This does not depend on
//! the account's `four_eyes`.

use jiff::Timestamp;
use stage0_contract::{
    Account, Caller, DecideProposal, FieldError, ListProposals, MAX_PENDING_PROPOSALS, MAX_PROPOSALS, MemberId, Page,
    Person, PolicyChanges, PolicyProposal, ProposalDecision, ProposalId, ProposalStatus, Refusal,
    are_different_persons,
};

use super::{Granter, bad_text, invalid_if_any, is_operator, members, page};
use crate::store::record::{MemberRecord, ProposalRecord};

const MAX_REASON_CHARS: usize = 500;

/// Whether an activation of this caller waits for a second member. What the operator does needs none.
pub(crate) fn needs_second(caller: &Caller, account: &Account) -> bool {
    account.policy_changes == PolicyChanges::SecondMember && !is_operator(caller)
}

/// Judges a call that was tried before the account's setting changed.
pub(crate) fn check_proposes(proposes: bool, needs_second: bool) -> Result<(), Refusal> {
    if proposes == needs_second {
        return Ok(());
    }
    Err(Refusal::Conflict("the account's `policy_changes` was changed meanwhile: try again".to_owned()))
}

/// What a new proposal meets among those of its account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Earlier {
    None,
    /// The same workload proposed the same, after the same was found: it is no further one.
    Same(Box<ProposalRecord>),
}

/// A trial comes before the version is compared and replayed: what is found is compared once it is proposed.
pub(crate) fn earlier(
    all: &[ProposalRecord],
    new: &ProposalRecord,
    is_trial: bool,
    now: Timestamp,
) -> Result<Earlier, Refusal> {
    let pending = || all.iter().filter(|record| record.is_pending(now));
    let PolicyProposal { version, environment, .. } = &new.proposal;
    if let Some(same) = pending().find(|record| record.is_of(version, environment.as_deref())) {
        let is_same = are_terms_same(same, new) && (is_trial || is_found_same(same, new));
        if is_same && same.holder.workload == new.holder.workload {
            return Ok(Earlier::Same(Box::new(same.clone())));
        }
        let id = &same.proposal.id;
        return Err(Refusal::Conflict(format!(
            "`{version}` is proposed there already, as `{id}`: let a member approve that, or cancel it"
        )));
    }
    if pending().count() >= MAX_PENDING_PROPOSALS {
        return Err(Refusal::Conflict(format!(
            "{MAX_PENDING_PROPOSALS} activations are proposed, which is the most: let members decide about them, or \
             cancel one"
        )));
    }
    Ok(Earlier::None)
}

fn are_terms_same(one: &ProposalRecord, other: &ProposalRecord) -> bool {
    one.replaces == other.replaces && one.proposal.canary == other.proposal.canary
}

/// Whether the same was found and accepted: this is what the second member approves.
fn is_found_same(one: &ProposalRecord, other: &ProposalRecord) -> bool {
    let (one, other) = (&one.proposal, &other.proposal);
    one.accepted_flips == other.accepted_flips && one.diff_digest == other.diff_digest && one.replayed == other.replayed
}

/// The proposals that an account keeps no longer once there is one more: those that were proposed first, and are not
/// pending.
pub(crate) fn surplus(mut all: Vec<ProposalRecord>, now: Timestamp) -> Vec<ProposalId> {
    let surplus = (all.len() + 1).saturating_sub(MAX_PROPOSALS);
    all.sort_by_key(|record| record.proposal.proposed_at);
    all.into_iter().filter(|record| !record.is_pending(now)).take(surplus).map(|record| record.proposal.id).collect()
}

/// A proposal that the caller may know of.
pub(crate) fn own(caller: &Caller, found: Option<ProposalRecord>) -> Result<ProposalRecord, Refusal> {
    let is_own = |record: &ProposalRecord| is_operator(caller) || record.proposal.account == caller.account;
    found.filter(is_own).ok_or(Refusal::NotFound)
}

/// Judges the body of a decision.
pub(crate) fn valid_decision(call: &DecideProposal) -> Result<(), Refusal> {
    let is_missing = call.decision == ProposalDecision::Deny && call.reason.is_none();
    let missing = is_missing.then(|| FieldError::new("reason", "is required"));
    let bad = call.reason.as_deref().and_then(|reason| bad_text("reason", reason, MAX_REASON_CHARS));
    invalid_if_any(missing.into_iter().chain(bad).collect())
}

pub(crate) fn must_be_pending(record: &ProposalRecord, now: Timestamp) -> Result<(), Refusal> {
    match record.status_at(now) {
        ProposalStatus::Pending => Ok(()),
        ProposalStatus::Expired => {
            Err(Refusal::Conflict("it is too late: the proposal has expired, propose it again".to_owned()))
        }
        status => Err(Refusal::Conflict(format!("it was decided already: it is {}", status.as_str()))),
    }
}

/// Whether this key's member may approve the proposal: another person than everybody behind the key that proposed it.
/// `member` is what the store has of the caller's member.
pub(crate) fn may_approve(
    granter: &Granter,
    record: &ProposalRecord,
    member: Option<&MemberRecord>,
    makers: impl Fn(&MemberId) -> Vec<Person>,
) -> Result<(), Refusal> {
    is_member(granter)?;
    if !member.is_some_and(|member| members::is_active(member, &record.proposal.account)) {
        return Err(Refusal::Conflict("the member was removed".to_owned()));
    }
    if !are_different_persons(&granter.holder, &record.holder, makers) {
        return Err(Refusal::Conflict(
            "somebody else must approve: this person proposed the activation, or made or was made by one who proposed \
             it"
            .to_owned(),
        ));
    }
    Ok(())
}

pub(crate) fn is_member(granter: &Granter) -> Result<(), Refusal> {
    if granter.holder.member.is_some() {
        return Ok(());
    }
    Err(Refusal::Conflict("only a member's own key can decide about a proposed activation".to_owned()))
}

pub(crate) fn may_cancel(granter: &Granter, record: &ProposalRecord) -> Result<(), Refusal> {
    let is_proposer = granter.holder.workload == record.holder.workload;
    if is_proposer || granter.holder.member.is_some() || is_operator(&granter.caller) {
        return Ok(());
    }
    Err(Refusal::Conflict("only a member, or the key that proposed the activation, can cancel it".to_owned()))
}

/// One page, the newest first.
pub(crate) fn listed(
    mut all: Vec<ProposalRecord>,
    call: &ListProposals,
    now: Timestamp,
) -> Result<Page<PolicyProposal>, Refusal> {
    let (after, limit) = page(call.cursor.as_deref(), call.limit, ProposalId::parse)?;
    all.sort_by(|one, other| {
        let [one, other] = [one, other].map(|record| (record.proposal.proposed_at, &record.proposal.id));
        other.cmp(&one)
    });
    if let Some(after) = after {
        let Some(at) = all.iter().position(|record| record.proposal.id == after) else {
            let bad = FieldError::new("cursor", "must be a `next_cursor` of an earlier page");
            return Err(Refusal::Invalid(vec![bad]));
        };
        all.drain(..=at);
    }
    let wanted = |record: &ProposalRecord| call.status.is_none_or(|status| record.status_at(now) == status);
    let mut items: Vec<_> = all.into_iter().filter(wanted).map(|record| record.shown(now)).collect();
    let has_more = items.len() > limit;
    items.truncate(limit);
    let next_cursor = items.last().filter(|_| has_more).map(|last| last.id.as_str().to_owned());
    Ok(Page { items, next_cursor })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::tests::caller;
    use super::*;
    use crate::store::record::proposals::tests::proposal;
    use crate::store::record::tests::{account, at, member};
    use stage0_contract::{Holder, KeyId, ReplaySummary, Scope};

    fn id(text: &str) -> MemberId {
        MemberId::parse(text).unwrap()
    }

    fn key(text: &str) -> KeyId {
        KeyId::parse(text).unwrap()
    }

    fn of_member(text: &str) -> Holder {
        Holder { member: Some(id(text)), ..Holder::of_workload(key(&format!("key-{text}"))) }
    }

    fn by(holder: Holder) -> Granter {
        Granter { caller: caller("a", &[Scope::PoliciesManage]), ends: None, holder }
    }

    /// Whether this holder may approve what the other one proposed, where these people made these members.
    fn may(holder: Holder, proposer: Holder, made: &[(&str, Person)]) -> bool {
        let mut makers: BTreeMap<MemberId, Vec<Person>> = BTreeMap::new();
        for (who, by) in made {
            makers.entry(id(who)).or_default().push(by.clone());
        }
        let record = ProposalRecord { holder: proposer, ..proposal("p", "a") };
        let member = holder.member.as_ref().map(|of| member(of.as_str(), "a"));
        let makers = |of: &MemberId| makers.get(of).cloned().unwrap_or_default();
        may_approve(&by(holder), &record, member.as_ref(), makers).is_ok()
    }

    #[test]
    fn a_member_approves_what_a_stranger_proposed_and_nothing_that_it_stands_behind() {
        let of = |text: &str| Person::Member(id(text));
        let workload = || Holder::of_workload(key("bot"));
        assert!(may(of_member("bo"), of_member("ada"), &[]), "a stranger");
        assert!(may(of_member("bo"), workload(), &[]), "a workload that the operator made");
        assert!(!may(of_member("ada"), of_member("ada"), &[]), "the proposer");
        let second = Holder { member: Some(id("ada")), ..Holder::of_workload(key("second")) };
        assert!(!may(second, of_member("ada"), &[]), "with another key");
        // Who invited whom, or changed whose groups, in both directions and at a remove.
        assert!(!may(of_member("bo"), of_member("ada"), &[("ada", of("bo"))]));
        assert!(!may(of_member("bo"), of_member("ada"), &[("bo", of("ada"))]));
        assert!(!may(of_member("bo"), of_member("ada"), &[("ada", of("cy")), ("bo", of("cy"))]));
        assert!(!may(of_member("bo"), of_member("ada"), &[("ada", of("cy")), ("cy", of("di")), ("bo", of("di"))]));
        assert!(may(of_member("bo"), of_member("ada"), &[("ada", of("cy")), ("bo", of("di"))]), "two inviters");
        // Who owns, made or rotated the workload.
        for proposer in [
            Holder { owner: Some(id("bo")), ..workload() },
            Holder { made_by: Some(of("bo")), ..workload() },
            Holder { known_to: vec![of("bo")], ..workload() },
        ] {
            assert!(!may(of_member("bo"), proposer.clone(), &[]), "{proposer:?}");
            assert!(may(of_member("cy"), proposer.clone(), &[]), "{proposer:?}");
            assert!(!may(of_member("cy"), proposer, &[("cy", of("bo"))]));
        }
        // A member whom the workload itself invited, and one that another workload did.
        assert!(!may(of_member("bo"), workload(), &[("bo", Person::Workload(key("bot")))]));
        assert!(may(of_member("bo"), workload(), &[("bo", Person::Workload(key("another")))]));
        assert!(!may(Holder::of_workload(key("another")), workload(), &[]), "a workload is no second member");
    }

    #[test]
    fn makers_that_made_each_other_end_the_search() {
        let of = |text: &str| Person::Member(id(text));
        let round = [("ada", of("cy")), ("cy", of("ada"))];
        assert!(may(of_member("bo"), of_member("ada"), &round));
        assert!(!may(of_member("cy"), of_member("ada"), &round));
    }

    #[test]
    fn a_removed_member_and_one_of_another_account_approve_nothing() {
        let record = proposal("p", "a");
        let judged = |member: Option<&MemberRecord>| may_approve(&by(of_member("bo")), &record, member, |_| Vec::new());
        assert_eq!(judged(Some(&member("bo", "a"))), Ok(()));
        for gone in [None, Some(member("bo", "a").tombstone(at(1))), Some(member("bo", "b"))] {
            assert!(matches!(judged(gone.as_ref()), Err(Refusal::Conflict(_))), "{gone:?}");
        }
    }

    #[test]
    fn a_second_member_is_needed_where_the_account_wants_one_and_never_for_the_operator() {
        let wanting = |policy_changes| Account { policy_changes, ..account("a") };
        let (member, operator) = (caller("a", &[Scope::PoliciesManage]), caller("o", &[Scope::Operator]));
        assert!(needs_second(&member, &wanting(PolicyChanges::SecondMember)));
        assert!(!needs_second(&member, &wanting(PolicyChanges::Single)));
        assert!(!needs_second(&operator, &wanting(PolicyChanges::SecondMember)));
        assert_eq!((check_proposes(true, true), check_proposes(false, false)), (Ok(()), Ok(())));
        for (proposes, needed) in [(true, false), (false, true)] {
            assert!(matches!(check_proposes(proposes, needed), Err(Refusal::Conflict(_))));
        }
    }

    #[test]
    fn a_proposal_is_cancelled_by_its_key_a_member_or_the_operator() {
        let record = proposal("p", "a");
        assert_eq!(may_cancel(&by(Holder::of_workload(key("k"))), &record), Ok(()));
        assert_eq!(may_cancel(&by(of_member("bo")), &record), Ok(()));
        let operator = Granter { caller: caller("o", &[Scope::Operator]), ..by(Holder::of_workload(key("o"))) };
        assert_eq!(may_cancel(&operator, &record), Ok(()));
        let other = may_cancel(&by(Holder::of_workload(key("another"))), &record);
        assert!(matches!(other, Err(Refusal::Conflict(_))));
    }

    #[test]
    fn one_version_is_pending_once_at_a_place_and_twenty_in_all() {
        let new = proposal("new", "a");
        let judged = |all: &[ProposalRecord], now: i64| earlier(all, &new, false, at(now));
        assert_eq!(judged(&[], 5), Ok(Earlier::None));
        let same = proposal("p", "a");
        assert_eq!(judged(std::slice::from_ref(&same), 5), Ok(Earlier::Same(Box::new(same.clone()))), "a repetition");
        assert_eq!(judged(std::slice::from_ref(&same), 10), Ok(Earlier::None), "it has expired");
        let by_another = ProposalRecord { holder: Holder::of_workload(key("another")), ..same.clone() };
        let of_another_place = ProposalRecord { replaces: Vec::new(), ..same };
        for conflicting in [by_another, of_another_place] {
            assert!(matches!(judged(&[conflicting], 5), Err(Refusal::Conflict(_))));
        }
        let elsewhere = |number: usize| {
            let mut record = proposal(&format!("p{number}"), "a");
            record.proposal.environment = Some(format!("e{number}"));
            record
        };
        let mut all: Vec<_> = (1..MAX_PENDING_PROPOSALS).map(elsewhere).collect();
        assert_eq!(judged(&all, 5), Ok(Earlier::None));
        all.push(elsewhere(MAX_PENDING_PROPOSALS));
        assert!(matches!(judged(&all, 5), Err(Refusal::Conflict(_))));
        all[3] = all[3].clone().ended(ProposalStatus::Denied, None, at(4));
        assert_eq!(judged(&all, 5), Ok(Earlier::None), "which is pending no longer");
    }

    #[test]
    fn a_repetition_is_one_only_if_the_same_was_found_which_a_trial_does_not_know_yet() {
        let mut stored = proposal("p", "a");
        let until = at(0);
        let replayed = ReplaySummary { until, decisions: 9, replayed: 9, flips: 1, has_older: false };
        stored.proposal.accepted_flips = Some(3);
        stored.proposal.diff_digest = Some("d".repeat(64));
        stored.proposal.replayed = Some(replayed);
        let all = std::slice::from_ref(&stored);
        let same = Ok(Earlier::Same(Box::new(stored.clone())));
        assert_eq!(earlier(all, &stored, false, at(5)), same);
        let more = PolicyProposal { accepted_flips: Some(4), ..stored.proposal.clone() };
        let unreplayed = PolicyProposal { replayed: None, ..stored.proposal.clone() };
        let replayed = Some(ReplaySummary { flips: 2, ..replayed });
        let of_others = PolicyProposal { replayed, ..stored.proposal.clone() };
        let undiffed = PolicyProposal { diff_digest: None, ..stored.proposal.clone() };
        for proposal in [more, unreplayed, of_others, undiffed] {
            let new = ProposalRecord { proposal, ..stored.clone() };
            match earlier(all, &new, false, at(5)) {
                Err(Refusal::Conflict(text)) => assert!(text.contains("is proposed there already, as `p`"), "{text}"),
                other => panic!("{other:?}"),
            }
            assert_eq!(earlier(all, &new, true, at(5)), same, "a trial");
            let elsewhere = ProposalRecord { replaces: Vec::new(), ..new };
            assert!(matches!(earlier(all, &elsewhere, true, at(5)), Err(Refusal::Conflict(_))), "on other terms");
        }
    }

    #[test]
    fn the_oldest_that_ended_are_forgotten_beyond_two_hundred_and_none_that_is_pending() {
        let made = |number: usize| {
            let mut record = proposal(&format!("p{number:03}"), "a");
            record.proposal.proposed_at = at(i64::try_from(number).unwrap());
            record.proposal.expires_at = at(1_000);
            if number == 0 { record } else { record.ended(ProposalStatus::Denied, None, at(999)) }
        };
        let some: Vec<_> = (0..MAX_PROPOSALS - 1).map(made).collect();
        assert!(surplus(some, at(5)).is_empty());
        let all: Vec<_> = (0..=MAX_PROPOSALS).rev().map(made).collect();
        let forgotten: Vec<_> = surplus(all, at(5)).iter().map(ToString::to_string).collect();
        assert_eq!(forgotten, ["p001", "p002"]);
    }

    #[test]
    fn a_page_has_the_newest_first_of_one_status() {
        let made = |number: i64| {
            let mut record = proposal(&format!("p{number}"), "a");
            record.proposal.proposed_at = at(number);
            record
        };
        let all = || vec![made(2), made(3).ended(ProposalStatus::Denied, None, at(4)), made(1)];
        let list = |status, cursor: Option<&str>, limit| ListProposals {
            caller: caller("a", &[]),
            account: None,
            status,
            cursor: cursor.map(str::to_owned),
            limit,
        };
        let ids = |call: ListProposals, now| {
            let page = listed(all(), &call, at(now)).unwrap();
            let ids: Vec<_> = page.items.iter().map(|item| item.id.to_string()).collect();
            (ids.join(" "), page.next_cursor)
        };
        assert_eq!(ids(list(None, None, 2), 5), ("p3 p2".to_owned(), Some("p2".to_owned())));
        assert_eq!(ids(list(None, Some("p2"), 2), 5), ("p1".to_owned(), None));
        assert_eq!(ids(list(Some(ProposalStatus::Pending), None, 1), 5), ("p2".to_owned(), Some("p2".to_owned())));
        assert_eq!(ids(list(Some(ProposalStatus::Expired), None, 9), 10).0, "p2 p1");
        assert_eq!(ids(list(Some(ProposalStatus::Pending), None, 9), 10).0, "");
        assert!(matches!(listed(all(), &list(None, Some("p9"), 2), at(5)), Err(Refusal::Invalid(_))));
    }
}
