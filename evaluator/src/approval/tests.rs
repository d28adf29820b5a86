//! What the rules, the records and the served requests promise, each by its subject. Here is what the tests share.

mod checks;
mod collect;
mod ends;
mod records;
mod standing;
mod store;
mod texts;
mod two_rules;
mod uses;
mod votes;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use stage0_backplane::{Backplane, BoxFuture, PutError, Revision, StateStore, StateStoreLayer};
use stage0_contract::{
    AccountId, AccountRules, ActionDigest, Actor, ApprovalStatus, ApprovalTerms, CallerTexts, CheckRequest, Delegate,
    Escalation, EvaluateReply, EvaluateRequest, ExternalApproval, Holder, KeyId, LineType, MemberId, OutcomeStatus,
    People, Person, PersonRecord, PolicyVersion, Refusal, RequestId, Requirement, Scope, TextKey,
};
use tokio::time::Instant;
use uuid::Uuid;

use super::people::{Asker, Directory, Electorate, Question, Standing};
use super::record::{Claim, Outbox, StoredApproval, id_in, slot_in, slot_of};
use super::state::{Change, Reserved};
use super::store::ApprovalStore;
use super::{Approvals, Hold};
use crate::config::RunConfig;
use crate::in_flight::{InFlightCheck, ReceivedCheck};

pub(super) const AGENT: &str = "agent";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000 + second).unwrap()
}

/// This many seconds from now, or before now.
fn from_now(seconds: i64) -> Timestamp {
    Timestamp::now() + SignedDuration::from_secs(seconds)
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

pub(super) fn account(text: &str) -> AccountId {
    AccountId::parse(text).unwrap()
}

pub(super) fn member(text: &str) -> MemberId {
    MemberId::parse(text).unwrap()
}

pub(super) fn key(text: &str) -> KeyId {
    KeyId::parse(text).unwrap()
}

fn request(number: u64) -> RequestId {
    RequestId::parse(&format!("0190163d-8694-739b-aea5-{number:012x}")).unwrap()
}

fn digest() -> ActionDigest {
    ActionDigest::parse(&"ab".repeat(32)).unwrap()
}

/// Members as `name`, groups, and who made them.
pub(super) fn people_of(members: &[(&str, &[&str], &[&str])]) -> People {
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

pub(super) fn agent() -> Holder {
    Holder { owner: Some(member("owner")), ..Holder::of_workload(key(AGENT)) }
}

fn terms(requirements: &[(&[&str], u32)]) -> ApprovalTerms {
    let requirement = |(groups, quorum): &(&[&str], u32)| Requirement {
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        quorum: *quorum,
        escalation: None,
    };
    ApprovalTerms {
        requirements: requirements.iter().map(requirement).collect(),
        within_seconds: 100,
        valid_seconds: 50,
        reason_required: false,
        escalation: None,
    }
}

pub(super) fn actor(name: &str) -> Actor {
    Actor {
        key_id: key(&format!("key-{name}")),
        holder: Holder { member: Some(member(name)), ..Holder::of_workload(key(&format!("key-{name}"))) },
        scopes: [Scope::ApprovalsDecide].into(),
        key_name: None,
        groups: None,
        rules: AccountRules::default(),
        can_record: true,
        reports_outcomes: false,
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
        floor_version: None,
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
        escalated_after: None,
        after: None,
        retention_days: 30,
        outbox: Outbox::default(),
    };
    approval.opened(3);
    approval
}

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

/// A check that the evaluator receives.
fn message(body: Value) -> EvaluateRequest {
    EvaluateRequest {
        request_id: request(2),
        account: account("acc"),
        request: CheckRequest::parse(body).unwrap(),
        evaluated_at: 1_000,
        operation: None,
        caller: CallerTexts::default(),
        max_runs: None,
        asker: None,
    }
}

/// A backplane's state store that also notes for how long each record is kept.
struct NotedStore {
    store: Arc<dyn StateStore>,
    ttls: Mutex<HashMap<String, Option<Duration>>>,
}

impl NotedStore {
    fn of(backplane: &mut Backplane) -> Arc<Self> {
        let noted = Arc::new(Self { store: Arc::clone(&backplane.state_store), ttls: Mutex::default() });
        backplane.state_store = Arc::clone(&noted) as Arc<dyn StateStore>;
        noted
    }

    /// That of the record's last put, which is forgotten.
    fn take_ttl(&self, key: &str) -> Duration {
        let noted = self.ttls.lock().unwrap().remove(key);
        noted.unwrap_or_else(|| panic!("{key} was not put")).unwrap_or(Duration::MAX)
    }
}

impl StateStoreLayer for NotedStore {
    fn inner(&self) -> &dyn StateStore {
        &*self.store
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expected: Option<Revision>,
        expires_in: Option<Duration>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Revision, PutError>> {
        Box::pin(async move {
            let put = self.store.put(key, value, expected, expires_in, deadline).await?;
            self.ttls.lock().unwrap().insert(key.to_owned(), expires_in);
            Ok(put)
        })
    }
}
