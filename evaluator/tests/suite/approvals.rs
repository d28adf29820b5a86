//! Approvals from a deferred check to the one check that uses them, with several evaluators and a keystore that is
//! played by the test.

mod beside;
mod ends;
mod grants;
mod opening;
mod outcomes;
mod races;
mod reading;
mod stops;
mod uses;
mod votes;

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use stage0_backplane::embedded::Bus;
use stage0_backplane::{Backplane, Event};
use stage0_contract::{
    AccountId, AccountRules, ActionDigest, Actor, Approval, ApprovalChange, ApprovalChanged, ApprovalEvent, ApprovalId,
    ApprovalRef, ApprovalSource, ApprovalStatus, ApprovalsChanged, CallerTexts, ChangeApproval, ChangeGrant,
    CheckRequest, CollectEvents, CoveredByStop, CreateGrant, Decision, EvaluateReply, EvaluateRequest, Evaluation,
    EventRef, ExternalApproval, FetchAction, GrantChange, GrantChanged, Holder, KeyId, LineType, ListApprovals,
    ListGrants, MAX_PENDING_OF_KEY, ManageReply, MemberId, OutcomeStatus, People, Person, PersonRecord,
    ReadApprovalHistory, ReadPeople, Refusal, Released, Request, RequestId, Scope, SettleEvents, ShowApproval, Stop,
    StopId, StopScope, TextKey, Verdict,
};
use stage0_evaluator::{EvaluatorConfig, RunConfig, build};
use stage0_policy::{Pack, PackSet};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::service::connect;

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// The baseline, whose approvals two release managers give.
fn pack() -> PackSet {
    pack_with("")
}

fn pack_with(more: &str) -> PackSet {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/baseline");
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let manifest = folder.path().join("pack.toml");
    let mut text = std::fs::read_to_string(&manifest).unwrap();
    text.push_str("\n[approvals]\napprovers = [\"rm\"]\nquorum = 2\n");
    text.push_str(more);
    std::fs::write(&manifest, text).unwrap();
    PackSet::of(Pack::from_dir(folder.path()).unwrap())
}

/// Evaluators and a keystore that serve until they are dropped.
struct Stage {
    bus: Bus,
    caller: Backplane,
    people: Arc<Mutex<People>>,
    _keystore: JoinSet<()>,
    serving: JoinSet<()>,
}

fn person(id: &str, groups: &[&str], made_by: &[&str]) -> PersonRecord {
    PersonRecord {
        id: MemberId::parse(id).unwrap(),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        may_decide: true,
        keys: vec![KeyId::parse(&format!("key-{id}")).unwrap()],
        made_by: made_by.iter().map(|maker| Person::Member(MemberId::parse(maker).unwrap())).collect(),
        delegate: None,
    }
}

impl Stage {
    async fn new(evaluators: usize) -> Self {
        Self::with(evaluators, RunConfig::default()).await
    }

    async fn with(evaluators: usize, runs: RunConfig) -> Self {
        let bus = Bus::new();
        let members = vec![
            person("ann", &["rm"], &[]),
            person("bob", &["rm"], &[]),
            person("cem", &["rm"], &[]),
            person("dan", &["dev"], &[]),
            person("owner", &["rm"], &[]),
            person("sock", &["rm"], &["owner"]),
        ];
        let people = Arc::new(Mutex::new(People { members, text_key: TextKey::new([7; 32]) }));
        let mut keystore = JoinSet::new();
        let mut asked = bus.connect().requests.serve::<ReadPeople>().await.unwrap();
        let known = Arc::clone(&people);
        keystore.spawn(async move {
            while let Some(request) = asked.next().await {
                let (_, _, responder) = request.into_parts();
                let reply = ManageReply::Done(known.lock().unwrap().clone());
                responder.answer(&reply).await;
            }
        });
        let mut stage = Self { caller: bus.connect(), bus, people, _keystore: keystore, serving: JoinSet::new() };
        stage.serve(evaluators, runs, pack).await;
        stage
    }

    async fn serve(&mut self, evaluators: usize, runs: RunConfig, packs: impl Fn() -> PackSet) {
        for _ in 0..evaluators {
            let config = EvaluatorConfig { packs: packs(), shards: NonZeroUsize::new(2), runs };
            let evaluator = build(config, connect(&self.bus)).await.unwrap();
            self.serving.spawn(async move {
                let _ = evaluator.run_until(std::future::pending()).await;
            });
        }
    }

    async fn ask<R: Request>(&self, message: &R) -> R::Reply {
        self.caller.requests.request(message, WAIT_TIMEOUT).await.unwrap()
    }

    async fn check(&self, message: &EvaluateRequest) -> Evaluation {
        match self.ask(message).await {
            EvaluateReply::Decided(decided) => *decided,
            reply => panic!("not decided: {reply:?}"),
        }
    }

    /// Opens the approval of `check`.
    async fn open(&self, message: &EvaluateRequest) -> ApprovalRef {
        let opened = self.check(message).await;
        assert_eq!(opened.decision.verdict, Verdict::Defer);
        opened.decision.approval.unwrap_or_else(|| panic!("no approval: {:?}", opened.decision.issues))
    }

    async fn vote(&self, by: &str, approval: &ApprovalRef) -> ManageReply<ApprovalChanged> {
        let approve = ApprovalChange::Approve { action_digest: approval.action_digest.clone() };
        self.change(&member(by), approval, approve, "").await
    }

    async fn change(
        &self,
        actor: &Actor,
        approval: &ApprovalRef,
        change: ApprovalChange,
        reason: &str,
    ) -> ManageReply<ApprovalChanged> {
        let (actor, id) = (actor.clone(), approval.id.clone().unwrap());
        self.ask(&ChangeApproval { account: account(), actor, id, change, reason: reason.to_owned() }).await
    }

    /// An approval that two people gave.
    async fn approved(&self, message: &EvaluateRequest) -> ApprovalRef {
        let approval = self.open(message).await;
        for by in ["ann", "bob"] {
            let done = self.vote(by, &approval).await;
            assert!(matches!(done, ManageReply::Done(_)), "{done:?}");
        }
        approval
    }

    async fn show(&self, actor: &Actor, id: &ApprovalId) -> ManageReply<Approval> {
        self.ask(&ShowApproval { account: account(), actor: actor.clone(), id: id.clone(), wait: None }).await
    }

    async fn seen(&self, approval: &ApprovalRef) -> Approval {
        match self.show(&member("ann"), approval.id.as_ref().unwrap()).await {
            ManageReply::Done(view) => view,
            reply => panic!("not shown: {reply:?}"),
        }
    }

    async fn settle(&self, events: &[ApprovalEvent]) {
        let recorded = events.iter().map(event_ref).collect();
        let settle = SettleEvents { account: account(), recorded, released: None };
        assert!(matches!(self.ask(&settle).await, ManageReply::Done(_)));
    }

    async fn release(&self, request_id: RequestId, approval: &ApprovalRef) {
        let released = Some(Released { request_id, approval_id: approval.id.clone(), grant_id: None });
        let settle = SettleEvents { account: account(), recorded: Vec::new(), released };
        assert!(matches!(self.ask(&settle).await, ManageReply::Done(_)));
    }

    async fn collect(&self) -> Vec<ApprovalEvent> {
        match self.ask(&CollectEvents { cursor: None }).await {
            ManageReply::Done(page) => page.accounts.into_iter().flat_map(|account| account.events).collect(),
            reply => panic!("not collected: {reply:?}"),
        }
    }

    /// Changes a record of the state store behind the evaluators' back.
    async fn alter(&self, key: &str, alter: impl FnOnce(&mut Value)) {
        let store = &self.caller.state_store;
        let until = Instant::now() + WAIT_TIMEOUT;
        let found = store.get(key, until).await.unwrap().unwrap();
        let mut value: Value = serde_json::from_slice(&found.value).unwrap();
        alter(&mut value);
        let bytes = serde_json::to_vec(&value).unwrap();
        store.put(key, bytes.into(), Some(found.revision), None, until).await.unwrap();
    }

    /// Moves an approval's times, and its place in the index, back by some seconds.
    async fn age(&self, approval: &ApprovalRef, seconds: i64) {
        let back = |value: &mut Value| {
            if let Some(time) = value.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok()) {
                let earlier = time.checked_sub(jiff::SignedDuration::from_secs(seconds)).unwrap();
                *value = earlier.to_string().into();
            }
        };
        let age = |record: &mut Value| {
            for name in ["created_at", "expires_at", "decided_at", "usable_until", "due_at"] {
                if let Some(value) = record.get_mut(name) {
                    back(value);
                }
            }
            let attempts = record.pointer_mut("/used/attempts").and_then(Value::as_array_mut);
            for attempt in attempts.into_iter().flatten() {
                back(&mut attempt["at"]);
            }
            for name in ["/used/at", "/used/asked_at"] {
                if let Some(value) = record.pointer_mut(name) {
                    back(value);
                }
            }
            let events = record.pointer_mut("/outbox/events").and_then(Value::as_array_mut);
            for stored in events.into_iter().flatten() {
                back(&mut stored["event"]["at"]);
                if let Some(until) = stored.get_mut("handed_out_until") {
                    back(until);
                }
            }
        };
        self.alter(&record_key(approval), age).await;
        self.alter("approvals.i.acc", |index| {
            index["entries"].as_array_mut().unwrap().iter_mut().for_each(age);
        })
        .await;
    }
}

fn event_ref(event: &ApprovalEvent) -> EventRef {
    EventRef::of(event)
}

fn slot(approval: &ApprovalRef) -> &str {
    &approval.action_digest.as_str()[..32]
}

fn record_key(approval: &ApprovalRef) -> String {
    format!("approvals.a.acc.{}", slot(approval))
}

fn account() -> AccountId {
    AccountId::parse("acc").unwrap()
}

fn id(number: u64) -> RequestId {
    RequestId::parse(&format!("0190163d-8694-739b-aea5-{number:012x}")).unwrap()
}

fn actor(key: &str, holder: Holder, scopes: &[Scope]) -> Actor {
    Actor {
        key_id: KeyId::parse(key).unwrap(),
        holder,
        scopes: scopes.iter().copied().collect(),
        key_name: None,
        groups: None,
        rules: AccountRules::default(),
        can_record: true,
        reports_outcomes: false,
        retention_days: 90,
    }
}

fn agent() -> Actor {
    agent_of("agent")
}

fn agent_of(workload: &str) -> Actor {
    let owner = Some(MemberId::parse("owner").unwrap());
    let holder = Holder { owner, ..Holder::of_workload(KeyId::parse(workload).unwrap()) };
    actor(workload, holder, &[])
}

fn member(name: &str) -> Actor {
    let key = format!("key-{name}");
    let member = Some(MemberId::parse(name).unwrap());
    let holder = Holder { member, ..Holder::of_workload(KeyId::parse(&key).unwrap()) };
    actor(&key, holder, &[Scope::ApprovalsDecide])
}

/// A check of this action, which lacks only an approval.
fn check(number: u64, goal: &str) -> EvaluateRequest {
    let body = json!({"goal": goal, "success_criteria": ["it is done"], "side_effects": ["deploy"],
        "constraints": ["approval_required"], "tools": ["argo_cd"], "context": {}});
    EvaluateRequest {
        request_id: id(number),
        account: account(),
        request: CheckRequest::parse(body).unwrap(),
        evaluated_at: jiff::Timestamp::now().as_second(),
        operation: None,
        caller: CallerTexts::default(),
        max_runs: None,
        asker: Some(agent()),
    }
}

fn with_context(mut message: EvaluateRequest, context: impl Into<Value>) -> EvaluateRequest {
    let context: Value = context.into();
    message.request.context = context.as_object().cloned();
    message
}

fn again(number: u64, operation: u64, goal: &str) -> EvaluateRequest {
    EvaluateRequest { operation: Some(id(operation)), ..check(number, goal) }
}

/// A member of the details of the decision's issues.
fn detail<'d>(decision: &'d Decision, name: &str) -> Option<&'d Value> {
    decision.issues.iter().find_map(|issue| issue.details.get(name))
}

fn kinds(events: &[ApprovalEvent]) -> Vec<LineType> {
    events.iter().map(|event| event.kind).collect()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(reply: ManageReply<T>, part: &str) {
    match reply {
        ManageReply::Refused(Refusal::Conflict(text)) => assert!(text.contains(part), "{text}"),
        reply => panic!("not refused: {reply:?}"),
    }
}

const GOAL: &str = "Carry out the planned change";
