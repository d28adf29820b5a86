//! What time does to a proposal, and what the claim of an approval does to other keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::*;
use crate::plans::Plans;
use crate::seal::tests::sealer_of;
use crate::sources::Clock;
use crate::store::DurableStore;
use crate::store::record::policies::tests::{policy, version};
use crate::store::record::tests::{account, at, key, member};
use crate::store::snapshot::StoreId;
use stage0_contract::{Account, Caller, Holder, PolicyChanges};

/// An account that wants a second member, with a workload `bot` and the members `ada` and `bo`, whom the operator
/// invited.
struct Office {
    admin: AdminService,
    time: Arc<AtomicI64>,
    _dir: tempfile::TempDir,
}

impl Office {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let time = Arc::new(AtomicI64::new(100));
        let clock = Arc::clone(&time);
        let clock: Clock = Arc::new(move || at(clock.load(Ordering::Relaxed)));
        let durable = DurableStore::open(dir.path(), StoreId::from_random([1; 16]), at(1)).unwrap();
        let mut admin = AdminService::new(durable, Arc::new(sealer_of(1)), clock, Plans::built_in().unwrap()).unwrap();
        let mut records = vec![
            Record::Account(Account { policy_changes: PolicyChanges::SecondMember, ..account("a") }),
            Record::Key(key("bot", "a", &[Scope::PoliciesManage])),
        ];
        for name in ["ada", "bo"] {
            let mut own = key(name, "a", &[Scope::PoliciesManage]);
            let id = member(name, "a").member.id;
            own.holder = Some(Holder { member: Some(id), ..own.holder() });
            records.extend([Record::Member(member(name, "a")), Record::Key(own)]);
        }
        records.extend(["v1", "v2"].map(|pack| Record::Policy(policy(pack, Some("a")))));
        admin.commit(&records).unwrap();
        Self { admin, time, _dir: dir }
    }

    fn caller(&self, name: &str) -> Caller {
        let key = key(name, "a", &[Scope::PoliciesManage]);
        Caller { account: key.account, key_id: key.id, scopes: key.scopes, key: None }
    }

    fn propose(&mut self, by: &str, pack: &str) -> PolicyProposal {
        let call = ActivatePolicy {
            replayed_until: None,
            canary: None,
            replayed: None,
            caller: self.caller(by),
            version: version(pack),
            account: None,
            environment: None,
            floor: false,
            reason: None,
            expected: None,
            diff_digest: None,
            accept_flips: None,
            judged: None,
            sequence: None,
            proposes: true,
            is_trial: false,
        };
        self.admin.activate_policy(&call).unwrap().0.proposal.unwrap()
    }

    fn decide(
        &mut self,
        by: &str,
        id: &ProposalId,
        (decision, is_trial): (ProposalDecision, bool),
    ) -> Result<ProposalDecided, Refusal> {
        let reason = Some("because".to_owned());
        let call = DecideProposal { caller: self.caller(by), id: id.clone(), decision, reason, is_trial };
        match self.admin.decide_proposal(&call) {
            Ok((decided, _)) => Ok(decided),
            Err(ManageError::Refused(refusal)) => Err(refusal),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn status(&self, id: &ProposalId) -> ProposalStatus {
        let show = ShowProposal { caller: self.caller("ada"), id: id.clone() };
        show_proposal(self.admin.store(), &show, self.admin.now()).unwrap().status
    }
}

const APPROVE: (ProposalDecision, bool) = (ProposalDecision::Approve, false);
const TRY: (ProposalDecision, bool) = (ProposalDecision::Approve, true);
const DENY: (ProposalDecision, bool) = (ProposalDecision::Deny, false);

#[test]
fn a_proposal_can_be_approved_for_a_day_and_is_then_expired_without_a_change() {
    let mut office = Office::new();
    let proposal = office.propose("ada", "v1");
    assert_eq!(proposal.expires_at, at(100 + PROPOSAL_TTL_SECONDS));
    let position = office.admin.durable.changes.position();
    office.time.store(100 + PROPOSAL_TTL_SECONDS, Ordering::Relaxed);
    assert_eq!(office.status(&proposal.id), ProposalStatus::Expired);
    for decision in [APPROVE, DENY, (ProposalDecision::Cancel, false)] {
        match office.decide("bo", &proposal.id, decision) {
            Err(Refusal::Conflict(text)) => assert!(text.contains("expired"), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(office.admin.durable.changes.position(), position, "nothing was stored");
    office.time.store(99 + PROPOSAL_TTL_SECONDS, Ordering::Relaxed);
    assert_eq!(office.decide("bo", &proposal.id, APPROVE).unwrap().proposal.status, ProposalStatus::Approved);
    // What was approved does not expire.
    office.time.store(200 + PROPOSAL_TTL_SECONDS, Ordering::Relaxed);
    assert_eq!(office.status(&proposal.id), ProposalStatus::Approved);
}

#[test]
fn while_one_member_approves_it_no_other_key_decides_and_only_for_a_moment() {
    let mut office = Office::new();
    let proposal = office.propose("bot", "v1");
    let tried = office.decide("ada", &proposal.id, TRY).unwrap();
    assert_eq!(
        (tried.activation.unwrap().version, office.status(&proposal.id)),
        (Some(version("v1")), proposal.status)
    );
    for decision in [TRY, APPROVE, DENY] {
        match office.decide("bo", &proposal.id, decision) {
            Err(Refusal::Conflict(text)) => assert!(text.contains("another member is approving it"), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(office.decide("ada", &proposal.id, TRY).is_ok(), "its own call again");
    office.time.store(109, Ordering::Relaxed);
    assert!(office.decide("bo", &proposal.id, DENY).is_err());
    office.time.store(110, Ordering::Relaxed);
    assert!(office.decide("bo", &proposal.id, DENY).is_ok(), "the gateway that tried it has given up");
    assert!(matches!(office.decide("ada", &proposal.id, APPROVE), Err(Refusal::Conflict(_))));
}

#[test]
fn a_version_of_a_pending_proposal_is_needed_by_its_account_and_by_the_operator() {
    let mut office = Office::new();
    let proposal = office.propose("bot", "v1");
    let of = |office: &Office, owner: Option<&str>, pack: &str, now: i64| {
        let owner = owner.map(|owner| account(owner).id);
        uses(office.admin.store(), owner.as_ref(), &version(pack), at(now)).unwrap()
    };
    let id = &proposal.id;
    assert_eq!(of(&office, Some("a"), "v1", 101), [format!("`{id}` proposes it")]);
    assert_eq!(of(&office, None, "v1", 101), [format!("`{id}` proposes it (account `a`)")]);
    assert!(of(&office, Some("b"), "v1", 101).is_empty() && of(&office, Some("a"), "v2", 101).is_empty());
    assert!(of(&office, Some("a"), "v1", 100 + PROPOSAL_TTL_SECONDS).is_empty(), "it has expired");
    office.decide("ada", id, DENY).unwrap();
    assert!(of(&office, Some("a"), "v1", 101).is_empty());
}
