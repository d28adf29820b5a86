//! The rules alone: who may decide, what each change refuses, and that one check uses an approval.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use stage0_backplane::{Backplane, parse_request};
use stage0_contract::{
    AccountId, AccountRules, ActionDigest, Actor, ApprovalStatus, ApprovalTerms, CallerTexts, CheckRequest, Delegate,
    Escalation, EvaluateReply, EvaluateRequest, ExternalApproval, Holder, KeyId, LineType, MemberId, OutcomeStatus,
    People, Person, PersonRecord, PolicyVersion, Refusal, RequestId, Requirement, Scope, TextKey,
};
use uuid::Uuid;

use super::people::{Asker, Directory, Electorate, Question, Standing};
use super::record::{Claim, Outbox, StoredApproval, id_in, slot_in, slot_of};
use super::state::{Change, Reserved};
use super::store::ApprovalStore;
use super::{Approvals, Hold};
use crate::config::RunConfig;
use crate::in_flight::{InFlightCheck, ReceivedCheck};

const AGENT: &str = "agent";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000 + second).unwrap()
}

fn member(text: &str) -> MemberId {
    MemberId::parse(text).unwrap()
}

fn key(text: &str) -> KeyId {
    KeyId::parse(text).unwrap()
}

fn request(number: u64) -> RequestId {
    RequestId::parse(&format!("0190163d-8694-739b-aea5-{number:012x}")).unwrap()
}

fn digest() -> ActionDigest {
    ActionDigest::parse(&"ab".repeat(32)).unwrap()
}

/// Members as `name`, groups, and who made them.
fn people_of(members: &[(&str, &[&str], &[&str])]) -> People {
    let person = |text: &&str| match text.strip_prefix("key:") {
        Some(workload) => Person::Workload(key(workload)),
        None => Person::Member(member(text)),
    };
    let record = |(id, groups, made_by): &(&str, &[&str], &[&str])| PersonRecord {
        id: member(id),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        may_decide: true,
        keys: vec![key(&format!("key-{id}"))],
        made_by: made_by.iter().map(person).collect(),
        delegate: None,
    };
    People { members: members.iter().map(record).collect(), text_key: TextKey::new([1; 32]) }
}

fn agent() -> Holder {
    Holder { owner: Some(member("owner")), ..Holder::of_workload(key(AGENT)) }
}

fn terms(requirements: &[(&[&str], u32)]) -> ApprovalTerms {
    let requirement = |(groups, quorum): &(&[&str], u32)| Requirement {
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        quorum: *quorum,
    };
    ApprovalTerms {
        requirements: requirements.iter().map(requirement).collect(),
        within_seconds: 100,
        valid_seconds: 50,
        reason_required: false,
        escalation: None,
    }
}

fn actor(name: &str) -> Actor {
    Actor {
        key_id: key(&format!("key-{name}")),
        holder: Holder { member: Some(member(name)), ..Holder::of_workload(key(&format!("key-{name}"))) },
        scopes: [Scope::ApprovalsDecide].into(),
        rules: AccountRules::default(),
        can_record: true,
        retention_days: 30,
    }
}

fn approval_of(terms: ApprovalTerms) -> StoredApproval {
    let mut approval = StoredApproval {
        id: id_in(slot_of(&digest()), [1, 2, 3, 4]).unwrap(),
        account: AccountId::parse("acc").unwrap(),
        status: ApprovalStatus::Pending,
        action_digest: digest(),
        policy_version: PolicyVersion::parse("p@1.0.0+000000000001").unwrap(),
        environment: String::new(),
        key_id: key(AGENT),
        asker: agent(),
        request_id: request(1),
        issues: Vec::new(),
        terms,
        votes: Vec::new(),
        created_at: at(0),
        expires_at: at(100),
        decided_at: None,
        usable_until: None,
        used: None,
        outcome: None,
        escalated: false,
        after: None,
        retention_days: 30,
        outbox: Outbox::default(),
    };
    approval.opened(3);
    approval
}

fn standing(people: &People, name: &str, terms: &ApprovalTerms, four_eyes: bool, now: i64) -> Standing {
    let asker = Asker::new(&agent(), four_eyes);
    let question = Question { asker: &asker, terms, opened_at: at(0), now: at(now) };
    Directory::new(people).standing(&member(name), question)
}

const MAY: Standing = Standing::May { on_behalf_of: None };

fn kinds(approval: &StoredApproval) -> Vec<LineType> {
    approval.outbox.events.iter().map(|stored| stored.event.kind).collect()
}

fn says(refusal: Result<(), Refusal>, part: &str) -> bool {
    match refusal {
        Err(Refusal::Conflict(text)) => text.contains(part),
        _ => false,
    }
}

/// Two managers and one who owns the agent.
fn team() -> People {
    people_of(&[("ann", &["rm"], &[]), ("bob", &["rm"], &["ann"]), ("cem", &["rm"], &[]), ("owner", &["rm"], &[])])
}

fn approve(approval: &mut StoredApproval, people: &People, name: &str, now: i64) -> Result<(), Refusal> {
    let (directory, actor) = (Directory::new(people), actor(name));
    approval.approve(&digest(), Change { actor: &actor, directory: &directory, reason: "", now: at(now) })
}

fn deny(approval: &mut StoredApproval, people: &People, name: &str, reason: &str) -> Result<(), Refusal> {
    let (directory, actor) = (Directory::new(people), actor(name));
    approval.deny(&digest(), Change { actor: &actor, directory: &directory, reason, now: at(1) })
}

fn claim(approval: &mut StoredApproval, operation: u64, attempt: u64, own: u128) -> Reserved {
    let agent = key(AGENT);
    let claim = Claim {
        key_id: &agent,
        operation: request(operation),
        request_id: request(attempt),
        claim: Uuid::from_u128(own),
    };
    approval.reserve(claim, at(5))
}

fn approved() -> StoredApproval {
    let mut approval = approval_of(terms(&[(&["rm"], 1)]));
    approve(&mut approval, &team(), "ann", 1).unwrap();
    assert_eq!(approval.status, ApprovalStatus::Approved);
    approval
}

#[test]
fn the_asker_its_owner_and_everybody_made_by_them_may_not_decide_and_others_may() {
    let people = people_of(&[
        ("owner", &["rm"], &[]),
        ("sock", &["rm"], &["owner"]),
        ("sock2", &["rm"], &["sock"]),
        ("by-agent", &["rm"], &["key:agent"]),
        ("by-other", &["rm"], &["key:other"]),
        ("ann", &["rm"], &[]),
        ("admin", &["rm"], &[]),
    ]);
    let terms = terms(&[(&["rm"], 1)]);
    for (name, expected) in [
        ("owner", Standing::OwnAction),
        ("sock", Standing::OwnAction),
        ("sock2", Standing::OwnAction),
        ("by-agent", Standing::OwnAction),
        ("by-other", MAY),
        ("ann", MAY),
        ("nobody", Standing::Unknown),
    ] {
        assert_eq!(standing(&people, name, &terms, true, 0), expected, "{name}");
    }
    for (name, expected) in [("owner", MAY), ("sock", MAY), ("by-agent", Standing::OwnAction)] {
        assert_eq!(standing(&people, name, &terms, false, 0), expected, "{name}, without four eyes");
    }
}

#[test]
fn who_made_an_asker_or_was_made_by_the_same_person_may_not_decide() {
    let people = people_of(&[("admin", &["rm"], &[]), ("owner", &["rm"], &["admin"]), ("ann", &["rm"], &["admin"])]);
    let terms = terms(&[(&["rm"], 1)]);
    assert_eq!(standing(&people, "admin", &terms, true, 0), Standing::OwnAction);
    assert_eq!(standing(&people, "ann", &terms, true, 0), Standing::OwnAction, "made by the same admin");
    let people = people_of(&[("owner", &["rm"], &["admin"]), ("ann", &["rm"], &["other"]), ("bob", &["rm"], &[])]);
    for other in ["ann", "bob"] {
        assert_eq!(standing(&people, other, &terms, true, 0), MAY, "{other}");
    }
}

#[test]
fn groups_delegation_and_escalation_let_members_decide() {
    let mut people =
        people_of(&[("ann", &["rm"], &[]), ("bob", &["dev"], &[]), ("eve", &["sec"], &[]), ("owner", &["rm"], &[])]);
    let mut terms = terms(&[(&["rm"], 1)]);
    assert_eq!(standing(&people, "bob", &terms, true, 0), Standing::OtherGroups);
    people.members[0].delegate = Some(Delegate { to: member("bob"), until: at(10) });
    let in_place = Standing::May { on_behalf_of: Some(member("ann")) };
    assert_eq!(standing(&people, "bob", &terms, true, 9), in_place);
    assert_eq!(standing(&people, "bob", &terms, true, 10), Standing::OtherGroups, "the delegation is over");
    people.members[0].delegate = None;
    people.members[3].delegate = Some(Delegate { to: member("bob"), until: at(10) });
    assert_eq!(standing(&people, "bob", &terms, true, 0), Standing::OtherGroups, "in the place of one who asks");
    terms.escalation = Some(Escalation { after_seconds: 30, groups: vec!["sec".to_owned()] });
    assert_eq!(standing(&people, "eve", &terms, true, 29), Standing::OtherGroups);
    assert_eq!(standing(&people, "eve", &terms, true, 30), MAY);
    people.members[2].may_decide = false;
    assert_eq!(standing(&people, "eve", &terms, true, 30), Standing::Unknown, "no key that may decide");
    terms.requirements[0].groups.clear();
    assert_eq!(standing(&people, "bob", &terms, true, 0), MAY, "any member");
}

#[test]
fn two_people_of_whom_one_made_the_other_count_as_one() {
    let people = team();
    let mut approval = approval_of(terms(&[(&["rm"], 2)]));
    approve(&mut approval, &people, "ann", 1).unwrap();
    approve(&mut approval, &people, "bob", 2).unwrap();
    assert_eq!(approval.status, ApprovalStatus::Pending, "ann invited bob");
    approve(&mut approval, &people, "cem", 3).unwrap();
    assert_eq!(approval.status, ApprovalStatus::Approved);
    assert_eq!(approval.usable_until, Some(at(53)));
    use LineType::{ApprovalApproved, ApprovalRequested, ApprovalVoted};
    assert_eq!(kinds(&approval), [ApprovalRequested, ApprovalVoted, ApprovalVoted, ApprovalApproved]);
}

#[test]
fn every_requirement_must_be_met() {
    let people = people_of(&[("ann", &["rm"], &[]), ("eve", &["sec"], &[])]);
    let mut approval = approval_of(terms(&[(&["rm"], 1), (&["sec"], 1)]));
    approve(&mut approval, &people, "ann", 1).unwrap();
    assert_eq!(approval.status, ApprovalStatus::Pending);
    approve(&mut approval, &people, "eve", 1).unwrap();
    assert_eq!(approval.status, ApprovalStatus::Approved);
}

#[test]
fn fewer_eligible_people_than_the_quorum_are_seen_at_once() {
    let electorate = |people: &People, quorum, four_eyes| {
        let asker = Asker::new(&agent(), four_eyes);
        let terms = terms(&[(&["rm"], quorum)]);
        Directory::new(people).electorate(Question { asker: &asker, terms: &terms, opened_at: at(0), now: at(0) })
    };
    let people = team();
    assert_eq!(electorate(&people, 2, true), Electorate { eligible: 3, is_short: false });
    assert_eq!(electorate(&people, 3, true), Electorate { eligible: 2, is_short: true }, "ann and bob are one");
    assert_eq!(electorate(&people, 3, false), Electorate { eligible: 4, is_short: false });
}

#[test]
fn each_vote_that_may_not_be_given_is_refused_in_words() {
    let people = team();
    let fresh = || approval_of(terms(&[(&["rm"], 2)]));
    assert!(says(approve(&mut fresh(), &people, "owner", 1), "somebody else must decide"));
    assert!(says(approve(&mut fresh(), &people, "gone", 1), "removed"));
    let others = people_of(&[("dan", &["dev"], &[])]);
    assert!(says(approve(&mut fresh(), &others, "dan", 1), "`rm`"));
    let mut once = fresh();
    approve(&mut once, &people, "ann", 1).unwrap();
    assert!(says(approve(&mut once, &people, "ann", 2), "decided already"));
    let mut other_digest = fresh();
    other_digest.action_digest = ActionDigest::parse(&"cd".repeat(32)).unwrap();
    assert!(says(approve(&mut other_digest, &people, "ann", 1), "read the approval again"));
    let mut late = fresh();
    assert!(!late.pass_time(at(99)) && late.pass_time(at(100)));
    assert!(says(approve(&mut late, &people, "ann", 100), "too late"));
    let mut done = approved();
    assert!(says(approve(&mut done, &people, "cem", 2), "decided already"));
    let (directory, own) = (Directory::new(&people), actor("ann"));
    let by_agent = Actor { holder: Holder { member: Some(member("ann")), ..agent() }, ..own };
    let change = Change { actor: &by_agent, directory: &directory, reason: "", now: at(1) };
    assert!(says(fresh().approve(&digest(), change), "somebody else must decide"));
    let no_member = Actor { holder: Holder::of_workload(key("x")), ..by_agent.clone() };
    let change = Change { actor: &no_member, ..change };
    assert!(says(fresh().approve(&digest(), change), "only a member's own key"));
}

#[test]
fn a_denial_needs_a_reason_and_ends_it() {
    let mut denied = approval_of(terms(&[(&["rm"], 2)]));
    approve(&mut denied, &team(), "ann", 1).unwrap();
    let refused = deny(&mut denied, &team(), "cem", "");
    assert!(matches!(refused, Err(Refusal::Invalid(errors)) if errors[0].path == "reason"));
    assert_eq!(denied.status, ApprovalStatus::Pending, "what is refused changes nothing");
    deny(&mut denied, &team(), "cem", "not on a Friday").unwrap();
    assert_eq!(denied.status, ApprovalStatus::Denied);
    assert!(says(approve(&mut denied, &team(), "bob", 2), "it is denied"));
    let mut strict = approval_of(ApprovalTerms { reason_required: true, ..terms(&[(&["rm"], 1)]) });
    assert!(matches!(approve(&mut strict, &team(), "ann", 1), Err(Refusal::Invalid(_))));
}

#[test]
fn what_was_not_decided_or_used_in_time_expires_once() {
    let mut pending = approval_of(terms(&[(&["rm"], 1)]));
    assert!(pending.pass_time(at(100)) && !pending.pass_time(at(200)));
    assert_eq!(pending.status, ApprovalStatus::Expired);
    let mut unused = approved();
    assert!(!unused.pass_time(at(50)) && unused.pass_time(at(51)));
    assert_eq!((unused.status, kinds(&unused).last()), (ApprovalStatus::Expired, Some(&LineType::ApprovalExpired)));
    let mut used = approved();
    claim(&mut used, 2, 2, 1);
    assert!(!used.pass_time(at(1_000)), "a used one has no time");
}

#[test]
fn further_groups_are_asked_once() {
    let escalation = Some(Escalation { after_seconds: 30, groups: vec!["sec".to_owned()] });
    let mut approval = approval_of(ApprovalTerms { escalation, ..terms(&[(&["rm"], 1)]) });
    assert!(!approval.pass_time(at(29)) && approval.pass_time(at(30)) && !approval.pass_time(at(31)));
    assert_eq!(kinds(&approval).last(), Some(&LineType::ApprovalEscalated));
}

#[test]
fn one_check_uses_an_approval_and_its_repetitions_are_the_same_check() {
    let mut used = approved();
    assert_eq!(claim(&mut used, 2, 2, 1), Reserved::ForThis);
    assert_eq!(claim(&mut used, 3, 3, 2), Reserved::ByAnother(request(2)));
    assert_eq!(claim(&mut used, 2, 2, 1), Reserved::ForThis);
    assert_eq!(claim(&mut used, 2, 4, 3), Reserved::ForThis, "a repetition with its own request id");
    let uses = used.outbox.unrecorded(Some(request(4)));
    let uses: Vec<_> = uses.iter().filter(|event| event.kind == LineType::ApprovalUsed).collect();
    assert_eq!((uses.len(), uses[0].request_id), (1, Some(request(4))), "each attempt tells of itself");
    assert_eq!(claim(&mut approval_of(terms(&[(&["rm"], 1)])), 2, 2, 1), Reserved::Not, "pending");
    let event_id = uses[0].event_id;
    assert!(used.confirm(event_id) && !used.confirm(event_id));
    assert_eq!(used.status, ApprovalStatus::Consumed);
    assert_eq!(claim(&mut used, 3, 3, 2), Reserved::ByAnother(request(4)));
    assert_eq!(claim(&mut used, 2, 4, 3), Reserved::ForThis, "its lost answer");
    assert!(!used.release(request(4), None, at(6)), "what is recorded stays used");
}

#[test]
fn a_use_that_was_surely_not_recorded_is_free_again_and_one_that_another_evaluator_claims_is_not() {
    let mut used = approved();
    let before = kinds(&used);
    claim(&mut used, 2, 2, 1);
    assert!(!used.release(request(3), None, at(6)), "of another check");
    assert!(used.release(request(2), Some(Uuid::from_u128(1)), at(6)));
    assert_eq!((used.status, kinds(&used)), (ApprovalStatus::Approved, before), "as if it had not been");
    claim(&mut used, 2, 2, 1);
    claim(&mut used, 2, 2, 2);
    assert!(used.release(request(2), Some(Uuid::from_u128(1)), at(6)));
    assert_eq!(used.status, ApprovalStatus::Reserved, "the second evaluator may have answered");
    assert!(used.release(request(2), None, at(6)), "the gateway knows");
    assert_eq!(used.status, ApprovalStatus::Approved);
    claim(&mut used, 2, 2, 1);
    claim(&mut used, 2, 5, 2);
    assert!(used.release(request(2), None, at(6)));
    assert_eq!(used.status, ApprovalStatus::Reserved, "a later attempt may be in the log");
}

#[test]
fn a_released_use_whose_line_may_be_written_is_told_as_reopened() {
    let mut used = approved();
    claim(&mut used, 2, 2, 1);
    let handed = used.outbox.collect(at(60), 100);
    assert!(handed.iter().any(|event| event.kind == LineType::ApprovalReserved));
    assert!(!handed.iter().any(|event| event.kind == LineType::ApprovalUsed), "only with its decision");
    assert!(used.outbox.collect(at(61), 100).is_empty(), "handed out to one gateway");
    assert!(!used.outbox.collect(at(76), 100).is_empty(), "which may have died");
    assert!(used.release(request(2), None, at(77)));
    assert_eq!(kinds(&used).last(), Some(&LineType::ApprovalReopened));
}

#[test]
fn a_used_approval_is_reopened_with_a_reason_and_not_by_one_who_asks() {
    let people = team();
    let directory = Directory::new(&people);
    let reopen = |approval: &mut StoredApproval, name: &str, reason: &str| {
        let actor = actor(name);
        approval.reopen(Change { actor: &actor, directory: &directory, reason, now: at(80) })
    };
    assert!(says(reopen(&mut approved(), "cem", "why"), "only a used approval"));
    let mut used = approved();
    claim(&mut used, 2, 2, 1);
    assert!(says(reopen(&mut used, "owner", "why"), "somebody else"));
    assert!(matches!(reopen(&mut used, "cem", ""), Err(Refusal::Invalid(_))));
    reopen(&mut used, "ann", "the process died before it acted").unwrap();
    assert_eq!((used.status, used.usable_until), (ApprovalStatus::Approved, Some(at(130))));
    assert!(used.outbox.unrecorded(Some(request(2))).iter().all(|event| event.kind != LineType::ApprovalUsed));
    claim(&mut used, 3, 3, 1);
    let agent = Actor { holder: agent(), ..actor("x") };
    let by = Change { actor: &agent, directory: &directory, reason: "", now: at(90) };
    assert_eq!(used.report(OutcomeStatus::Succeeded, by), Ok(true));
    assert_eq!(used.report(OutcomeStatus::Succeeded, by), Ok(false), "told twice");
    assert!(matches!(used.report(OutcomeStatus::Failed, by), Err(Refusal::Conflict(_))));
    assert!(says(reopen(&mut used, "cem", "again"), "succeeded"));
}

#[test]
fn what_is_used_or_over_cannot_be_cancelled() {
    let people = team();
    let (directory, ann) = (Directory::new(&people), actor("ann"));
    let by = Change { actor: &ann, directory: &directory, reason: "", now: at(2) };
    let mut pending = approval_of(terms(&[(&["rm"], 1)]));
    pending.cancel(by).unwrap();
    assert_eq!(pending.status, ApprovalStatus::Cancelled);
    assert!(says(pending.cancel(by), "ended already"));
    approved().cancel(by).unwrap();
    let mut used = approved();
    claim(&mut used, 2, 2, 1);
    assert!(says(used.cancel(by), "too late"));
}

#[test]
fn votes_of_people_who_no_longer_may_are_not_enough_and_it_is_pending_again() {
    let mut approval = approval_of(terms(&[(&["rm"], 2)]));
    approve(&mut approval, &team(), "ann", 1).unwrap();
    approve(&mut approval, &team(), "cem", 1).unwrap();
    let moved = people_of(&[("ann", &["rm"], &[]), ("cem", &["dev"], &[])]);
    let asker = approval.asker(true);
    let terms = approval.terms.clone();
    let question = Question { asker: &asker, terms: &terms, opened_at: at(0), now: at(9) };
    assert!(Directory::new(&team()).is_enough(&approval.votes, question));
    assert!(!Directory::new(&moved).is_enough(&approval.votes, question));
    approval.fall_back(&Directory::new(&moved), [question; 2]);
    assert_eq!((approval.status, approval.votes.len()), (ApprovalStatus::Pending, 1));
    approve(&mut approval, &team(), "cem", 10).unwrap();
    assert_eq!(approval.status, ApprovalStatus::Approved, "back in the group, cem decides again");
    let late = Question { now: at(101), ..question };
    approval.usable_until = Some(at(1_000));
    approval.fall_back(&Directory::new(&moved), [late; 2]);
    assert_eq!(approval.status, ApprovalStatus::Expired, "no time is left to decide");
}

#[test]
fn a_system_outside_counts_by_its_people_and_never_for_itself() {
    let people = team();
    let directory = Directory::new(&people);
    let external = |names: &[&str]| ExternalApproval {
        approved_by: names.iter().map(|name| (*name).to_owned()).collect(),
        evidence: "https://tickets.example/1".to_owned(),
    };
    let system = Actor { holder: Holder::of_workload(key("itsm")), ..actor("x") };
    let by = Change { actor: &system, directory: &directory, reason: "", now: at(1) };
    let mut approval = approval_of(terms(&[(&["rm"], 2)]));
    approval.register(&digest(), &external(&["Kim", " kim "]), by).unwrap();
    assert_eq!(approval.status, ApprovalStatus::Pending, "one person, spelt twice");
    assert!(says(approval.register(&digest(), &external(&["KIM"]), by), "decided already"));
    approval.register(&digest(), &external(&["Lee"]), by).unwrap();
    assert_eq!(approval.status, ApprovalStatus::Approved);
    let text = serde_json::to_string(&approval.outbox.unrecorded(None)).unwrap();
    assert!(!text.contains("Kim") && !text.contains("tickets"), "{text}");
    for own in [agent(), Holder { made_by: Some(Person::Member(member("owner"))), ..Holder::of_workload(key("itsm")) }]
    {
        let asking = Actor { holder: own, ..system.clone() };
        let by = Change { actor: &asking, ..by };
        let mut fresh = approval_of(terms(&[(&["rm"], 1)]));
        assert!(says(fresh.register(&digest(), &external(&["Kim"]), by), "somebody else"));
    }
}

#[test]
fn an_id_leads_to_its_slot_and_a_moved_record_does_not_belong() {
    let approval = approval_of(terms(&[(&["rm"], 1)]));
    assert_eq!(slot_in(&approval.id), Some(slot_of(&digest())));
    let account = AccountId::parse("acc").unwrap();
    assert!(approval.belongs(&account, slot_of(&digest())));
    assert!(!approval.belongs(&AccountId::parse("other").unwrap(), slot_of(&digest())));
    assert!(!approval.belongs(&account, &"cd".repeat(16)));
    let altered = StoredApproval { action_digest: ActionDigest::parse(&"cd".repeat(32)).unwrap(), ..approval };
    assert!(!altered.belongs(&account, slot_of(&digest())));
    for bad in ["apr_1", "apr_zz_00000000", &format!("apr_{}_0000000g", "ab".repeat(16))] {
        assert_eq!(slot_in(&stage0_contract::ApprovalId::parse(bad).unwrap()), None, "{bad}");
    }
}

#[test]
fn a_record_is_read_as_it_was_written_and_events_have_ids_of_their_own() {
    let mut used = approved();
    claim(&mut used, 2, 2, 1);
    let text = serde_json::to_string(&used).unwrap();
    assert_eq!(serde_json::from_str::<StoredApproval>(&text).unwrap(), used);
    let mut ids: Vec<_> = used.outbox.events.iter().map(|stored| stored.event.event_id).collect();
    assert!(ids.iter().all(|id| id.get_version_num() == 7));
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count);
}

/// Stores an approval that a check has reserved, ends the check as undecided, and returns where the approval stands.
async fn ended_undecided(is_held: bool) -> ApprovalStatus {
    let backplane = Backplane::embedded();
    let approvals = Approvals::new(&backplane, RunConfig::default());
    let mut served = backplane.requests.serve::<EvaluateRequest>().await.unwrap();
    let message = EvaluateRequest {
        request_id: request(2),
        account: AccountId::parse("acc").unwrap(),
        request: CheckRequest::parse(json!({"goal": "g"})).unwrap(),
        evaluated_at: 1_000,
        operation: None,
        caller: CallerTexts::default(),
        max_runs: None,
        asker: None,
    };
    let timeout = Duration::from_secs(5);
    let deadline = tokio::time::Instant::now() + timeout;
    let work = async {
        let arrived = ReceivedCheck::new(served.next_unparsed().await.unwrap()).unwrap();
        let check = InFlightCheck::new(parse_request(&arrived.bytes).unwrap(), arrived, None);
        let mut used = approved();
        // Time must not end what it looks at.
        used.usable_until = Some(Timestamp::now() + jiff::SignedDuration::from_secs(600));
        let agent = key(AGENT);
        let claim = Claim { key_id: &agent, operation: request(2), request_id: request(2), claim: check.claim };
        used.reserve(claim, at(5));
        let place = ApprovalStore::place(&used.account, &digest());
        assert!(approvals.store.put(&place, &used, None, deadline).await.unwrap());
        if is_held {
            check.add_hold(Hold::Approval(used.id.clone()));
        }
        approvals.finish(check, Some(&EvaluateReply::Unable("the run cannot be written".to_owned()))).await;
    };
    let (_, asked) = tokio::join!(work, backplane.requests.request(&message, timeout));
    assert!(matches!(asked, Ok(EvaluateReply::Unable(_))));
    let stored = approvals.store.current(&message.account, slot_of(&digest()), deadline).await.unwrap();
    stored.value.unwrap().status
}

#[tokio::test]
async fn what_was_reserved_for_a_check_that_is_not_allowed_is_free_when_it_is_answered() {
    assert_eq!(ended_undecided(true).await, ApprovalStatus::Approved);
    assert_eq!(ended_undecided(false).await, ApprovalStatus::Reserved, "reserved by another evaluator");
}

#[test]
fn what_a_check_may_still_be_using_is_not_reopened_and_afterwards_it_is() {
    let people = team();
    let (directory, cem) = (Directory::new(&people), actor("cem"));
    let reopen = |approval: &mut StoredApproval, now: i64| {
        approval.reopen(Change { actor: &cem, directory: &directory, reason: "it died", now: at(now) })
    };
    for is_recorded in [false, true] {
        let mut used = approved();
        claim(&mut used, 2, 2, 1);
        if is_recorded {
            let event_id = used.used.as_ref().unwrap().attempts[0].event_id;
            assert!(used.confirm(event_id));
        }
        let before = used.clone();
        assert!(says(reopen(&mut used, 6), "try again in 29 s"), "claimed at 5");
        assert!(says(reopen(&mut used, 34), "try again in 1 s"));
        assert_eq!(used, before, "what is refused changes nothing");
        reopen(&mut used, 35).unwrap();
        assert_eq!(used.status, ApprovalStatus::Approved);
    }
}

#[test]
fn a_use_that_no_gateway_confirmed_is_given_out_each_minute_and_confirmed_without_its_event() {
    let mut used = approved();
    claim(&mut used, 2, 2, 1);
    claim(&mut used, 2, 4, 2);
    used.outbox.events.iter_mut().for_each(|stored| stored.recorded = true);
    assert_eq!(used.due_at(), Some(at(15)));
    assert!(used.unconfirmed(at(14)).is_empty());
    let found = used.unconfirmed(at(15));
    let ids: Vec<_> = found.iter().map(|one| one.request_id).collect();
    assert_eq!(ids, [request(4), request(2)]);
    assert!(found.iter().all(|one| one.event.approval_id.as_ref() == Some(&used.id)));
    assert!(used.unconfirmed(at(74)).is_empty() && used.due_at() == Some(at(75)));
    assert_eq!(used.unconfirmed(at(75)).len(), 2);
    used.outbox.events.clear();
    assert!(!used.confirm(Uuid::from_u128(7)));
    assert!(used.confirm(found[1].event.event_id) && !used.confirm(found[1].event.event_id));
    assert_eq!((used.status, used.due_at()), (ApprovalStatus::Consumed, None));
    assert!(used.unconfirmed(at(1_000)).is_empty());
}

#[test]
fn an_outcome_says_that_an_approval_was_used() {
    let people = team();
    let (directory, by_agent) = (Directory::new(&people), Actor { holder: agent(), ..actor("x") });
    let mut used = approved();
    claim(&mut used, 2, 2, 1);
    let by = Change { actor: &by_agent, directory: &directory, reason: "", now: at(6) };
    used.report(OutcomeStatus::Failed, by).unwrap();
    assert_eq!(used.status, ApprovalStatus::Consumed);
    assert!(!used.release(request(2), None, at(7)));
}

#[test]
fn votes_that_count_only_for_the_opener_do_not_stay() {
    let people = people_of(&[("ann", &["rm"], &[]), ("cem", &["rm"], &[]), ("owner", &["rm"], &[])]);
    let mut approval = approval_of(terms(&[(&["rm"], 2)]));
    approve(&mut approval, &people, "ann", 1).unwrap();
    approve(&mut approval, &people, "cem", 1).unwrap();
    let (opener, terms) = (approval.asker(true), approval.terms.clone());
    let user = Asker::new(&Holder { owner: Some(member("cem")), ..Holder::of_workload(key(AGENT)) }, true);
    let question = |asker| Question { asker, terms: &terms, opened_at: at(0), now: at(9) };
    approval.fall_back(&Directory::new(&people), [question(&opener), question(&user)]);
    let left: Vec<_> = approval.votes.iter().map(|stored| stored.vote.member_id.clone()).collect();
    assert_eq!((approval.status, left), (ApprovalStatus::Pending, vec![Some(member("ann"))]));
}

#[test]
fn what_happens_to_an_ended_approval_is_taken_over_once() {
    let mut ended = approved();
    claim(&mut ended, 2, 2, 1);
    let mut heir = approval_of(terms(&[(&["rm"], 1)]));
    heir.outbox = Outbox::default();
    assert!(heir.outbox.adopt(&ended.outbox) && !heir.outbox.adopt(&ended.outbox));
    assert!(!kinds(&heir).contains(&LineType::ApprovalUsed), "only with its decision");
    assert_eq!(heir.outbox.events.len() + 1, ended.outbox.events.len());
}

#[tokio::test]
async fn an_earlier_copy_of_an_ended_approval_is_overwritten_until_another_took_its_place() {
    let backplane = Backplane::embedded();
    let store = Approvals::new(&backplane, RunConfig::default()).store;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    let (earlier, mut ended) = (approved(), approved());
    let place = ApprovalStore::place(&ended.account, &digest());
    assert!(store.put(&place, &earlier, None, deadline).await.unwrap());
    let current = async || store.current(&earlier.account, slot_of(&digest()), deadline).await.unwrap();
    let first = current().await.revision.unwrap();
    store.archive(&earlier, &first, deadline).await.unwrap();
    claim(&mut ended, 2, 2, 1);
    assert!(store.put(&place, &ended, Some(first), deadline).await.unwrap());
    let second = current().await.revision.unwrap();
    store.archive(&ended, &second, deadline).await.unwrap();
    store.archive(&earlier, &first, deadline).await.unwrap();
    let heir = StoredApproval { id: id_in(slot_of(&digest()), [9; 4]).unwrap(), ..earlier.clone() };
    assert!(store.put(&place, &heir, Some(second), deadline).await.unwrap());
    let (found, kept, _) = store.find(&earlier.account, &earlier.id, deadline).await.unwrap().unwrap();
    assert_eq!((found.is_current, kept), (false, ended), "the older state did not replace the newer one");
}

#[tokio::test]
async fn an_allow_that_comes_after_its_deadline_is_not_told_and_gives_back_what_it_reserved() {
    use stage0_contract::{Evaluation, Verdict};
    for (is_late, is_named, status) in [
        (false, true, ApprovalStatus::Reserved),
        (false, false, ApprovalStatus::Approved),
        (true, true, ApprovalStatus::Approved),
    ] {
        let backplane = Backplane::embedded();
        let approvals = Approvals::new(&backplane, RunConfig::default());
        let engines =
            crate::engines::Engines::open(std::sync::Arc::new(stage0_policy::PackSet::embedded().unwrap())).unwrap();
        let mut served = backplane.requests.serve::<EvaluateRequest>().await.unwrap();
        let message = EvaluateRequest {
            request_id: request(2),
            account: AccountId::parse("acc").unwrap(),
            request: CheckRequest::parse(json!({"goal": "read the report", "success_criteria": ["x"]})).unwrap(),
            evaluated_at: 1_000,
            operation: None,
            caller: CallerTexts::default(),
            max_runs: None,
            asker: None,
        };
        let timeout = Duration::from_secs(1);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        let work = async {
            let arrived = ReceivedCheck::new(served.next_unparsed().await.unwrap()).unwrap();
            let check = InFlightCheck::new(parse_request(&arrived.bytes).unwrap(), arrived, None);
            let mut used = approved();
            used.usable_until = Some(Timestamp::now() + jiff::SignedDuration::from_secs(600));
            let agent = key(AGENT);
            let claim = Claim { key_id: &agent, operation: request(2), request_id: request(2), claim: check.claim };
            used.reserve(claim, at(5));
            let place = ApprovalStore::place(&used.account, &digest());
            assert!(approvals.store.put(&place, &used, None, deadline).await.unwrap());
            let (mut reply, _) = approvals.decide(&engines, &check, None).await;
            let EvaluateReply::Decided(evaluation) = &mut reply else { panic!("not decided") };
            let Evaluation { decision, .. } = &mut **evaluation;
            assert_eq!(decision.verdict, Verdict::Allow);
            let mut reference = used.reference();
            if !is_named {
                reference.id = Some(id_in(slot_of(&digest()), [9; 4]).unwrap());
            }
            decision.approval = Some(reference);
            check.add_hold(Hold::Approval(id_in(slot_of(&digest()), [8; 4]).unwrap()));
            assert!(check.add_hold(Hold::Approval(used.id.clone())));
            assert!(!check.add_hold(Hold::Approval(used.id.clone())), "another one is not forgotten");
            if is_late {
                tokio::time::timeout_at(check.deadline(), std::future::pending::<()>()).await.unwrap_err();
            }
            approvals.finish(check, Some(&reply)).await;
        };
        let (_, asked) = tokio::join!(work, backplane.requests.request(&message, timeout));
        assert_eq!(asked.is_err(), is_late);
        let stored = approvals.store.current(&message.account, slot_of(&digest()), deadline).await.unwrap();
        assert_eq!(stored.value.unwrap().status, status, "{is_late} {is_named}");
    }
}
