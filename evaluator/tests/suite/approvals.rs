//! Approvals from a deferred check to the one check that uses them, with several evaluators and a keystore that is
//! played by the test.

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
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/baseline");
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let manifest = folder.path().join("pack.toml");
    let mut text = std::fs::read_to_string(&manifest).unwrap();
    text.push_str("\n[approvals]\napprovers = [\"rm\"]\nquorum = 2\n");
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
    let ApprovalEvent { event_id, approval_id, grant_id, .. } = event.clone();
    EventRef { event_id, approval_id, grant_id }
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
        rules: AccountRules::default(),
        can_record: true,
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

#[tokio::test]
async fn of_parallel_checks_on_two_evaluators_one_uses_what_two_people_approved() {
    let stage = Stage::new(2).await;
    let opened = stage.check(&check(1, GOAL)).await;
    let approval = opened.decision.approval.clone().unwrap();
    assert_eq!((approval.status, approval.quorum), (ApprovalStatus::Pending, 2));
    assert_eq!(
        (approval.groups.as_slice(), approval.url.starts_with("/v1/approvals/apr_")),
        (&["rm".to_owned()][..], true)
    );
    assert_eq!(kinds(&opened.events), [LineType::ApprovalRequested]);
    let waiting = stage.check(&check(2, GOAL)).await;
    assert_eq!(waiting.decision.approval.as_ref().unwrap().id, approval.id, "one of an action is pending");
    let ManageReply::Done(first) = stage.vote("ann", &approval).await else { panic!("no vote") };
    assert_eq!(first.approval.status, ApprovalStatus::Pending);
    let ManageReply::Done(second) = stage.vote("bob", &approval).await else { panic!("no vote") };
    assert_eq!(second.approval.status, ApprovalStatus::Approved);
    use LineType::{ApprovalApproved, ApprovalRequested, ApprovalReserved, ApprovalUsed, ApprovalVoted};
    assert_eq!(kinds(&second.unrecorded.events), [ApprovalRequested, ApprovalVoted, ApprovalApproved]);
    stage.settle(&second.unrecorded.events).await;
    let mut asks = JoinSet::new();
    for number in 10..74 {
        let requests = Arc::clone(&stage.caller.requests);
        asks.spawn(async move { requests.request(&check(number, GOAL), WAIT_TIMEOUT).await.unwrap() });
    }
    let replies = asks.join_all().await;
    let mut used = Vec::new();
    for reply in replies {
        let EvaluateReply::Decided(decided) = reply else { panic!("{reply:?}") };
        match decided.decision.verdict {
            Verdict::Allow => used.push(decided),
            Verdict::Defer => {
                assert!(decided.decision.approval.is_none() || detail(&decided.decision, "used_by").is_some());
            }
            Verdict::Deny => panic!("{decided:?}"),
        }
    }
    assert_eq!(used.len(), 1);
    let used = used.remove(0);
    assert_eq!(used.approval_source, Some(ApprovalSource::Approval));
    assert_eq!(used.decision.approval.as_ref().unwrap().status, ApprovalStatus::Consumed);
    assert_eq!(kinds(&used.events), [ApprovalReserved, ApprovalUsed]);
    let by = used.events[1].request_id.unwrap();
    let other = stage.check(&check(99, GOAL)).await.decision;
    assert_eq!((other.verdict, &other.approval), (Verdict::Defer, &None));
    assert_eq!(detail(&other, "used_by"), Some(&by.to_string().into()));
    assert_eq!(stage.seen(&approval).await.status, ApprovalStatus::Reserved);
    stage.settle(&used.events).await;
    let seen = stage.seen(&approval).await;
    assert_eq!((seen.status, seen.used_by), (ApprovalStatus::Consumed, Some(by)));
    assert!(stage.collect().await.is_empty());
    let next = stage.check(&check(100, GOAL)).await.decision;
    assert_eq!(next.approval.as_ref().unwrap().status, ApprovalStatus::Pending, "a used one is followed by a new one");
    assert_ne!(next.approval.unwrap().id, approval.id);
    assert_eq!(stage.seen(&approval).await.status, ApprovalStatus::Consumed, "the old one is still found");
}

#[tokio::test]
async fn a_repeated_check_gets_its_allow_again_before_and_after_it_is_recorded() {
    let stage = Stage::new(2).await;
    stage.approved(&check(1, GOAL)).await;
    let first = stage.check(&check(2, GOAL)).await;
    assert_eq!(first.decision.verdict, Verdict::Allow);
    let second = stage.check(&again(3, 2, GOAL)).await;
    assert_eq!((second.decision.verdict, second.events.last().unwrap().request_id), (Verdict::Allow, Some(id(3))));
    stage.settle(&second.events).await;
    let third = stage.check(&again(4, 2, GOAL)).await;
    assert_eq!(third.decision.verdict, Verdict::Allow);
    assert_eq!(stage.check(&check(5, GOAL)).await.decision.verdict, Verdict::Defer);
}

#[tokio::test]
async fn a_check_of_a_run_uses_an_approval_once_with_its_counts() {
    let stage = Stage::new(2).await;
    let of_run = |number| with_context(check(number, GOAL), json!({"run_id": "r"}));
    let approval = stage.approved(&of_run(1)).await;
    let mut asks = JoinSet::new();
    for number in 10..42 {
        let (requests, message) = (Arc::clone(&stage.caller.requests), of_run(number));
        asks.spawn(async move { requests.request(&message, WAIT_TIMEOUT).await.unwrap() });
    }
    let replies = asks.join_all().await;
    let decided = replies.iter().filter_map(|reply| match reply {
        EvaluateReply::Decided(decided) => Some(decided.decision.verdict),
        _ => None,
    });
    assert_eq!(decided.filter(|verdict| *verdict == Verdict::Allow).count(), 1);
    assert_eq!(stage.seen(&approval).await.status, ApprovalStatus::Reserved);
    let run = stage0_contract::ShowRun { account: account(), run_id: stage0_contract::RunId::parse("r").unwrap() };
    assert!(matches!(stage.ask(&run).await, ManageReply::Done(view) if view.iterations == 1));
}

#[tokio::test]
async fn a_check_that_needs_no_approval_or_lacks_more_opens_none() {
    let stage = Stage::new(1).await;
    let mut lacks_more = check(1, GOAL);
    lacks_more.request.constraints.push("max_cost_usd: 1".to_owned());
    lacks_more.request.context = json!({"estimated_cost_usd": 5}).as_object().cloned();
    let mut without_asker = check(2, GOAL);
    without_asker.asker = None;
    let mut unrecordable = check(3, GOAL);
    unrecordable.asker.as_mut().unwrap().can_record = false;
    let mut large = check(4, GOAL);
    large.request.context = json!({"note": "y ".repeat(80_000)}).as_object().cloned();
    for (message, why) in
        [(&lacks_more, None), (&without_asker, None), (&unrecordable, Some("update")), (&large, Some("KiB"))]
    {
        let decided = stage.check(message).await;
        assert_eq!((decided.decision.verdict, &decided.decision.approval), (Verdict::Defer, &None), "{why:?}");
        let told = detail(&decided.decision, "approval").and_then(Value::as_str);
        assert!(
            told.zip(why).is_none_or(|(told, why)| told.contains(why)) && told.is_some() == why.is_some(),
            "{told:?}"
        );
        assert!(decided.events.is_empty());
    }
    assert_eq!(stage.check(&check(5, GOAL)).await.events.len(), 1, "its neighbour opens one");
}

#[tokio::test]
async fn without_the_keystore_no_approval_is_opened_or_used_and_the_issue_says_so() {
    let stage = Stage::new(1).await;
    let approval = stage.approved(&check(1, GOAL)).await;
    let mut other = Stage { _keystore: JoinSet::new(), ..Stage::new(0).await };
    other.serve(1, RunConfig::default(), pack).await;
    let decided = other.check(&check(2, GOAL)).await.decision;
    assert!(decided.approval.is_none());
    assert!(detail(&decided, "approval").unwrap().as_str().unwrap().contains("who may approve cannot be read"));
    assert_eq!(stage.seen(&approval).await.status, ApprovalStatus::Approved);
}

#[tokio::test]
async fn every_vote_that_may_not_count_is_refused() {
    let stage = Stage::new(2).await;
    let approval = stage.open(&check(1, GOAL)).await;
    refused(stage.vote("owner", &approval).await, "somebody else must decide");
    refused(stage.vote("sock", &approval).await, "somebody else must decide");
    refused(stage.vote("dan", &approval).await, "`rm`");
    refused(stage.vote("gone", &approval).await, "removed");
    let approve = || ApprovalChange::Approve { action_digest: approval.action_digest.clone() };
    let mut asker = agent();
    assert_eq!(
        stage.change(&asker, &approval, approve(), "").await,
        ManageReply::Refused(Refusal::ScopeMissing(Scope::ApprovalsDecide))
    );
    asker.scopes.insert(Scope::ApprovalsDecide);
    asker.holder.member = Some(MemberId::parse("ann").unwrap());
    refused(stage.change(&asker, &approval, approve(), "").await, "somebody else must decide");
    let foreign = actor("other", Holder::of_workload(KeyId::parse("other").unwrap()), &[Scope::Check]);
    assert_eq!(stage.change(&foreign, &approval, approve(), "").await, ManageReply::Refused(Refusal::NotFound));
    let other = ApprovalChange::Approve { action_digest: ActionDigest::parse(&"0".repeat(64)).unwrap() };
    refused(stage.change(&member("ann"), &approval, other, "").await, "read the approval again");
    let deny = || ApprovalChange::Deny { action_digest: approval.action_digest.clone() };
    for reason in ["", "bad \u{202e}reason", &"x".repeat(1_001)] {
        let reply = stage.change(&member("ann"), &approval, deny(), reason).await;
        assert!(matches!(reply, ManageReply::Refused(Refusal::Invalid(_))), "{reply:?}");
    }
    let mut unrecordable = member("ann");
    unrecordable.can_record = false;
    assert_eq!(stage.change(&unrecordable, &approval, approve(), "").await, ManageReply::Failed);
    assert!(stage.seen(&approval).await.votes.is_empty(), "nothing of this counted");
    assert!(matches!(stage.vote("ann", &approval).await, ManageReply::Done(_)));
    refused(stage.vote("ann", &approval).await, "decided already");
    let foreign = ChangeApproval {
        account: AccountId::parse("other").unwrap(),
        actor: member("bob"),
        id: approval.id.clone().unwrap(),
        change: approve(),
        reason: String::new(),
    };
    assert_eq!(stage.ask(&foreign).await, ManageReply::Refused(Refusal::NotFound));
    assert!(matches!(stage.vote("bob", &approval).await, ManageReply::Done(_)));
    refused(stage.vote("cem", &approval).await, "decided already");
}

#[tokio::test]
async fn a_denied_action_is_denied_for_its_time_and_asked_for_again_afterwards() {
    let stage = Stage::new(2).await;
    let approval = stage.open(&check(1, GOAL)).await;
    let deny = ApprovalChange::Deny { action_digest: approval.action_digest.clone() };
    let reason = "no, the key is AKIAIOSFODNN7EXAMPLE and password=hunter22";
    let ManageReply::Done(denied) = stage.change(&member("ann"), &approval, deny, reason).await else { panic!() };
    let event = denied.unrecorded.events.last().unwrap();
    assert_eq!(event.kind, LineType::ApprovalDenied);
    let told = event.reason.clone().unwrap();
    assert!(!told.contains("hunter22") && !told.contains("AKIAIOSFODNN7EXAMPLE"), "{told}");
    let decided = stage.check(&check(2, GOAL)).await.decision;
    assert_eq!(decided.verdict, Verdict::Deny);
    assert!(decided.issues.iter().any(|issue| issue.code.as_str() == "APPROVAL_STATUS_INVALID"));
    assert_eq!(stage.open(&check(3, "Carry out another change")).await.status, ApprovalStatus::Pending);
    stage
        .alter(&record_key(&approval), |record| {
            record["decided_at"] = jiff::Timestamp::from_second(1_000).unwrap().to_string().into();
        })
        .await;
    let next = stage.open(&check(4, GOAL)).await;
    assert_ne!(next.id, approval.id);
}

#[tokio::test]
async fn what_is_not_decided_in_time_expires_by_maintenance_and_is_collected_until_it_is_recorded() {
    let stage = Stage::new(2).await;
    let approval = stage.open(&check(1, GOAL)).await;
    assert!(stage.collect().await.is_empty(), "the gateway that answered has it still");
    stage.age(&approval, 4_000).await;
    let collected = stage.collect().await;
    assert_eq!(kinds(&collected), [LineType::ApprovalRequested, LineType::ApprovalExpired]);
    assert!(stage.collect().await.is_empty(), "handed to one gateway");
    assert_eq!(stage.seen(&approval).await.status, ApprovalStatus::Expired);
    refused(stage.vote("ann", &approval).await, "too late");
    stage.age(&approval, 60).await;
    let again = stage.collect().await;
    let ids = |events: &[ApprovalEvent]| events.iter().map(|event| event.event_id).collect::<Vec<_>>();
    assert_eq!(ids(&again), ids(&collected), "the first gateway died; the same events");
    stage.settle(&again).await;
    let history = ReadApprovalHistory { account: account(), actor: agent(), id: approval.id.clone().unwrap() };
    assert!(matches!(stage.ask(&history).await, ManageReply::Done(history) if history.items.len() == 2));
    assert_ne!(stage.open(&check(2, GOAL)).await.id, approval.id);
    assert!(stage.collect().await.is_empty());
}

#[tokio::test]
async fn what_an_ended_approval_has_not_recorded_is_recorded_by_its_successor() {
    let stage = Stage::new(1).await;
    let approval = stage.open(&check(1, GOAL)).await;
    assert!(matches!(stage.change(&agent(), &approval, ApprovalChange::Cancel {}, "").await, ManageReply::Done(_)));
    let next = stage.check(&check(2, GOAL)).await;
    use LineType::{ApprovalCancelled, ApprovalRequested};
    assert_eq!(kinds(&next.events), [ApprovalRequested, ApprovalCancelled, ApprovalRequested]);
    assert_eq!(next.events[1].approval_id, approval.id);
    stage.settle(&next.events).await;
    let next = next.decision.approval.unwrap();
    stage.age(&next, 60).await;
    assert!(stage.collect().await.is_empty(), "all of it is settled");
    let history = ReadApprovalHistory { account: account(), actor: agent(), id: next.id.unwrap() };
    assert!(matches!(stage.ask(&history).await, ManageReply::Done(history) if history.items.len() == 1));
}

#[tokio::test]
async fn a_decision_that_was_surely_not_recorded_frees_its_approval_and_an_unknown_one_does_not() {
    let stage = Stage::new(2).await;
    let approval = stage.approved(&check(1, GOAL)).await;
    assert_eq!(stage.check(&check(2, GOAL)).await.decision.verdict, Verdict::Allow);
    stage.release(id(3), &approval).await;
    assert_eq!(stage.check(&check(4, GOAL)).await.decision.verdict, Verdict::Defer, "of another check");
    stage.release(id(2), &approval).await;
    assert_eq!(stage.seen(&approval).await.status, ApprovalStatus::Approved);
    assert_eq!(stage.check(&check(5, GOAL)).await.decision.verdict, Verdict::Allow);
    stage.age(&approval, 60).await;
    let collected = stage.collect().await;
    assert!(!kinds(&collected).contains(&LineType::ApprovalUsed), "not without its decision");
    stage.settle(&collected).await;
    assert_eq!(stage.seen(&approval).await.status, ApprovalStatus::Reserved);
    let reopen = || ApprovalChange::Reopen {};
    assert!(matches!(
        stage.change(&member("cem"), &approval, reopen(), "").await,
        ManageReply::Refused(Refusal::Invalid(_))
    ));
    refused(stage.change(&member("owner"), &approval, reopen(), "it died").await, "somebody else");
    let ManageReply::Done(reopened) = stage.change(&member("cem"), &approval, reopen(), "it died").await else {
        panic!("not reopened")
    };
    assert_eq!(reopened.approval.status, ApprovalStatus::Approved);
    let used = stage.check(&check(6, GOAL)).await;
    assert_eq!((used.decision.verdict, used.events.last().unwrap().request_id), (Verdict::Allow, Some(id(6))));
    assert!(!used.events.iter().any(|event| event.request_id == Some(id(5)) && event.kind == LineType::ApprovalUsed));
}

#[tokio::test]
async fn a_changed_byte_is_another_action_and_what_the_loop_counts_is_not() {
    let stage = Stage::new(1).await;
    let of = |number, context: Value| with_context(check(number, GOAL), context);
    let first = stage.open(&of(1, json!({"record_count": 5}))).await;
    let counted = json!({"record_count": 5, "retry_count": 1, "elapsed_seconds": 9, "approval_note": "x"});
    assert_eq!(stage.open(&of(2, counted)).await.id, first.id);
    for (number, context) in [(3, json!({"record_count": 6})), (4, json!({"record_count": 5, "unknown": 1}))] {
        assert_ne!(stage.open(&of(number, context)).await.id, first.id);
    }
    let mut body = of(5, json!({"record_count": 5}));
    body.request.goal.push('.');
    assert_ne!(stage.open(&body).await.action_digest, first.action_digest);
}

#[tokio::test]
async fn under_another_policy_an_approved_action_is_another_one() {
    let mut stage = Stage::new(1).await;
    let approval = stage.approved(&check(1, GOAL)).await;
    stage.serving.shutdown().await;
    stage.serve(1, RunConfig::default(), || PackSet::embedded().unwrap()).await;
    let next = loop {
        // A shard of the earlier policy may still drain.
        let reply = stage.caller.requests.request(&check(2, GOAL), WAIT_TIMEOUT).await;
        let Ok(EvaluateReply::Decided(decided)) = reply else { continue };
        if decided.decision.policy_version != stage.seen(&approval).await.policy_version {
            break decided.decision;
        }
    };
    assert_eq!(next.verdict, Verdict::Defer);
    assert_ne!(next.approval.unwrap().action_digest, approval.action_digest);
    assert_eq!(stage.seen(&approval).await.status, ApprovalStatus::Approved, "it stays until its time is over");
}

#[tokio::test]
async fn checks_that_ask_for_the_same_at_once_open_one_approval() {
    let stage = Stage::new(3).await;
    let mut asks = JoinSet::new();
    for number in 0..48 {
        let requests = Arc::clone(&stage.caller.requests);
        asks.spawn(async move { requests.request(&check(number, GOAL), WAIT_TIMEOUT).await.unwrap() });
    }
    let mut ids = Vec::new();
    for reply in asks.join_all().await {
        let EvaluateReply::Decided(decided) = reply else { panic!("{reply:?}") };
        ids.push(decided.decision.approval.unwrap_or_else(|| panic!("{:?}", decided.decision.issues)).id.unwrap());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
}

#[tokio::test]
async fn only_the_workload_that_asked_uses_an_approval() {
    let stage = Stage::new(1).await;
    let approval = stage.approved(&check(1, GOAL)).await;
    let by_another = EvaluateRequest { asker: Some(agent_of("other")), ..check(2, GOAL) };
    let decided = stage.check(&by_another).await.decision;
    assert_eq!(decided.verdict, Verdict::Defer);
    assert!(detail(&decided, "approval").unwrap().as_str().unwrap().contains("another workload"));
    let mut rotated = agent();
    rotated.key_id = KeyId::parse("agent-2").unwrap();
    let used = stage.check(&EvaluateRequest { asker: Some(rotated), ..check(3, GOAL) }).await.decision;
    assert_eq!((used.verdict, used.approval.unwrap().id), (Verdict::Allow, approval.id));
}

#[tokio::test]
async fn people_who_left_between_vote_and_use_no_longer_count() {
    let stage = Stage::new(2).await;
    let approval = stage.approved(&check(1, GOAL)).await;
    stage.people.lock().unwrap().members[1].groups = vec!["dev".to_owned()];
    let decided = stage.check(&check(2, GOAL)).await.decision;
    assert_eq!(decided.verdict, Verdict::Defer);
    assert_eq!(decided.approval.unwrap().status, ApprovalStatus::Pending);
    let seen = stage.seen(&approval).await;
    assert_eq!((seen.status, seen.votes.len()), (ApprovalStatus::Pending, 1));
    assert!(matches!(stage.vote("cem", &approval).await, ManageReply::Done(_)));
    stage.people.lock().unwrap().members.remove(0);
    assert_eq!(stage.check(&check(3, GOAL)).await.decision.verdict, Verdict::Defer, "ann was removed");
    stage.people.lock().unwrap().members[0].groups = vec!["rm".to_owned()];
    assert!(matches!(stage.vote("bob", &approval).await, ManageReply::Done(_)));
    assert_eq!(stage.check(&check(4, GOAL)).await.decision.verdict, Verdict::Allow);
}

#[tokio::test]
async fn a_new_maker_between_vote_and_use_makes_two_people_one() {
    let stage = Stage::new(1).await;
    stage.approved(&check(1, GOAL)).await;
    stage.people.lock().unwrap().members[0].made_by = vec![Person::Member(MemberId::parse("owner").unwrap())];
    assert_eq!(stage.check(&check(2, GOAL)).await.decision.verdict, Verdict::Defer, "the owner changed ann's groups");
}

#[tokio::test]
async fn fewer_eligible_people_than_the_quorum_are_told_at_once() {
    let stage = Stage::new(1).await;
    let enough = stage.check(&check(1, GOAL)).await.decision;
    assert_eq!((detail(&enough, "eligible"), detail(&enough, "quorum")), (Some(&json!(3)), Some(&json!(2))));
    let questions = enough.defer_questions.len();
    stage.people.lock().unwrap().members.drain(1..4);
    let short = stage.check(&check(2, "Carry out another change")).await.decision;
    assert_eq!(detail(&short, "eligible"), Some(&json!(1)));
    assert_eq!(short.defer_questions.len(), questions + 1);
    assert!(short.approval.is_some(), "it is opened all the same");
}

#[tokio::test]
async fn a_key_has_twenty_pending_and_one_that_ends_makes_room() {
    let stage = Stage::new(2).await;
    let goal = |number: usize| format!("Carry out change number {number}");
    let mut first = None;
    for number in 0..MAX_PENDING_OF_KEY {
        let opened = stage.open(&check(u64::try_from(number).unwrap(), &goal(number))).await;
        first = first.or(Some(opened));
    }
    let decided = stage.check(&check(50, &goal(50))).await.decision;
    assert_eq!((decided.verdict, &decided.approval), (Verdict::Defer, &None));
    assert!(detail(&decided, "approval").unwrap().as_str().unwrap().starts_with("20 approvals"));
    let other = EvaluateRequest { asker: Some(agent_of("other")), ..check(51, &goal(51)) };
    stage.open(&other).await;
    let cancelled = stage.change(&agent(), &first.unwrap(), ApprovalChange::Cancel {}, "not needed").await;
    assert!(matches!(cancelled, ManageReply::Done(_)));
    stage.open(&check(52, &goal(50))).await;
}

fn stop(scope: StopScope, value: Option<&str>) -> Stop {
    Stop {
        id: StopId::parse("stp_1").unwrap(),
        account: Some(account()),
        scope,
        value: value.map(str::to_owned),
        reason: "incident 7".to_owned(),
        created_at: jiff::Timestamp::now(),
        until: None,
        key_id: KeyId::parse("key-ann").unwrap(),
        member_id: None,
    }
}

fn stopped(mut by: Actor, stop: &Stop) -> Actor {
    by.rules.stops = vec![stop.clone()];
    by
}

#[tokio::test]
async fn a_stop_in_the_middle_denies_the_use_and_freezes_what_is_pending() {
    let stage = Stage::new(2).await;
    let approval = stage.approved(&check(1, GOAL)).await;
    let pending = stage.open(&check(2, "Carry out another change")).await;
    for (stop, covers) in [
        (stop(StopScope::Account, None), true),
        (stop(StopScope::Tool, Some("argo_cd")), true),
        (stop(StopScope::Tool, Some("shell")), false),
    ] {
        let asker = stopped(agent(), &stop);
        let covered = CoveredByStop { account: account(), request: check(3, GOAL).request, asker: asker.clone() };
        assert_eq!(stage.ask(&covered).await.is_covered, covers);
        if !covers {
            continue;
        }
        let of_run = with_context(check(3, GOAL), json!({"run_id": "r"}));
        for message in [check(4, GOAL), of_run] {
            let decided = stage.check(&EvaluateRequest { asker: Some(asker.clone()), ..message }).await.decision;
            assert_eq!(decided.verdict, Verdict::Deny);
            assert!(decided.issues.iter().any(|issue| issue.code.as_str() == "STOPPED"));
        }
        let approve = ApprovalChange::Approve { action_digest: pending.action_digest.clone() };
        let reply = stage.change(&stopped(member("ann"), &stop), &pending, approve, "").await;
        refused(reply, "incident 7");
        let shown = stage.show(&stopped(member("ann"), &stop), pending.id.as_ref().unwrap()).await;
        assert!(matches!(shown, ManageReply::Done(view) if view.stopped.as_deref() == Some("incident 7")));
    }
    let run = stage0_contract::ShowRun { account: account(), run_id: stage0_contract::RunId::parse("r").unwrap() };
    assert_eq!(stage.ask(&run).await, ManageReply::Refused(Refusal::NotFound), "a stopped check counts in no run");
    let elsewhere = stop(StopScope::Tool, Some("shell"));
    let approve = ApprovalChange::Approve { action_digest: pending.action_digest.clone() };
    let reply = stage.change(&stopped(member("ann"), &elsewhere), &pending, approve, "").await;
    assert!(matches!(reply, ManageReply::Done(_)), "{reply:?}");
    assert_eq!(stage.check(&check(5, GOAL)).await.decision.verdict, Verdict::Allow, "once it is resumed");
    assert_eq!(stage.seen(&approval).await.status, ApprovalStatus::Reserved);
}

#[tokio::test]
async fn the_text_is_sealed_and_shown_to_its_workload_and_to_those_who_may_decide_alone() {
    let goal = "Carry out the zanzibar change";
    let stage = Stage::new(1).await;
    let approval = stage.open(&check(1, goal)).await;
    let id = approval.id.clone().unwrap();
    let until = Instant::now() + WAIT_TIMEOUT;
    for under in ["approvals.a.acc", "approvals.t.acc", "approvals.i"] {
        let page = stage.caller.state_store.list(under, None, 10, until).await.unwrap();
        assert_eq!(page.records.len(), 1, "{under}");
        assert!(!String::from_utf8_lossy(&page.records[0].1.value).contains("zanzibar"), "{under}");
    }
    let reader = actor("reader", Holder::of_workload(KeyId::parse("reader").unwrap()), &[Scope::DecisionsRead]);
    for (actor, sees) in [
        (agent(), true),
        (member("ann"), true),
        (member("dan"), false),
        (member("owner"), false),
        (reader.clone(), false),
    ] {
        let ManageReply::Done(view) = stage.show(&actor, &id).await else { panic!("not shown to {actor:?}") };
        let shown = view.action.as_ref().is_some_and(|action| action["goal"] == goal);
        assert_eq!((shown, view.action.is_some()), (sees, sees), "{actor:?}");
        assert_eq!((view.eligible, view.status), (Some(3), ApprovalStatus::Pending));
    }
    let foreign = actor("foreign", Holder::of_workload(KeyId::parse("foreign").unwrap()), &[Scope::Check]);
    assert_eq!(stage.show(&foreign, &id).await, ManageReply::Refused(Refusal::NotFound));
    let fetch = |actor: &Actor| FetchAction { account: account(), actor: actor.clone(), id: id.clone() };
    for other in [&foreign, &reader, &member("ann")] {
        assert_eq!(stage.ask(&fetch(other)).await, ManageReply::Refused(Refusal::NotFound));
    }
    let ManageReply::Done(fetched) = stage.ask(&fetch(&agent())).await else { panic!("not fetched") };
    assert_eq!(fetched.request, check(1, goal).request);
    let list = |actor: &Actor, group: Option<&str>| ListApprovals {
        account: account(),
        actor: actor.clone(),
        status: Some(ApprovalStatus::Pending),
        group: group.map(str::to_owned),
        cursor: None,
        limit: 10,
    };
    for (actor, group, count) in [
        (&reader, None, 1),
        (&reader, Some("rm"), 1),
        (&reader, Some("dev"), 0),
        (&foreign, None, 0),
        (&agent(), None, 1),
    ] {
        let ManageReply::Done(page) = stage.ask(&list(actor, group)).await else { panic!("no list") };
        assert_eq!(page.items.len(), count, "{actor:?}");
        assert!(page.items.iter().all(|approval| approval.action.is_none()));
    }
}

#[tokio::test]
async fn a_text_is_gone_some_time_after_the_end() {
    let config = RunConfig { approval_text_ttl: Duration::from_secs(1), ..RunConfig::default() };
    let stage = Stage::with(1, config).await;
    let approval = stage.open(&check(1, GOAL)).await;
    let fetch = FetchAction { account: account(), actor: agent(), id: approval.id.clone().unwrap() };
    assert!(matches!(stage.ask(&fetch).await, ManageReply::Done(_)));
    assert!(matches!(stage.change(&agent(), &approval, ApprovalChange::Cancel {}, "").await, ManageReply::Done(_)));
    let gone = async { while matches!(stage.ask(&fetch).await, ManageReply::Done(_)) {} };
    tokio::time::timeout(WAIT_TIMEOUT, gone).await.unwrap();
    refused(stage.ask(&fetch).await, "send the whole request again");
    assert!(stage.seen(&approval).await.action.is_none());
}

#[tokio::test]
async fn a_forged_or_moved_record_lets_nothing_pass() {
    let stage = Stage::new(1).await;
    let approval = stage.approved(&check(1, GOAL)).await;
    let other = stage.open(&check(2, "Carry out another change")).await;
    let store = &stage.caller.state_store;
    let until = Instant::now() + WAIT_TIMEOUT;
    let approved = store.get(&record_key(&approval), until).await.unwrap().unwrap();
    let pending = store.get(&record_key(&other), until).await.unwrap().unwrap();
    for forged in [approved.value, "no record".into()] {
        let current = store.get(&record_key(&other), until).await.unwrap().unwrap();
        store.put(&record_key(&other), forged, Some(current.revision), None, until).await.unwrap();
        let decided = stage.check(&check(3, "Carry out another change")).await.decision;
        assert_eq!((decided.verdict, &decided.approval), (Verdict::Defer, &None));
        assert_eq!(stage.vote("ann", &other).await, ManageReply::Failed);
    }
    let current = store.get(&record_key(&other), until).await.unwrap().unwrap();
    store.put(&record_key(&other), pending.value, Some(current.revision), None, until).await.unwrap();
    assert_eq!(stage.open(&check(4, "Carry out another change")).await.id, other.id, "the true one is taken");
    stage.alter(&record_key(&approval), |record| record["votes"] = json!([])).await;
    let decided = stage.check(&check(5, GOAL)).await.decision;
    assert_eq!(decided.verdict, Verdict::Defer, "a status without votes is worth nothing");
}

#[tokio::test]
async fn a_system_outside_registers_approvals_with_its_scope() {
    let stage = Stage::new(1).await;
    let approval = stage.open(&check(1, GOAL)).await;
    let register = |names: &[&str]| ApprovalChange::Register {
        action_digest: approval.action_digest.clone(),
        external: ExternalApproval {
            approved_by: names.iter().map(|name| (*name).to_owned()).collect(),
            evidence: "ticket 7".to_owned(),
        },
    };
    let system = actor("itsm", Holder::of_workload(KeyId::parse("itsm").unwrap()), &[Scope::ApprovalsGrant]);
    let mut without = system.clone();
    without.scopes = [Scope::DecisionsRead].into();
    assert_eq!(
        stage.change(&without, &approval, register(&["Kim"]), "").await,
        ManageReply::Refused(Refusal::ScopeMissing(Scope::ApprovalsGrant))
    );
    let mut own = agent();
    own.scopes = [Scope::ApprovalsGrant].into();
    refused(stage.change(&own, &approval, register(&["Kim", "Lee"]), "").await, "somebody else");
    assert!(matches!(
        stage.change(&system, &approval, register(&[]), "").await,
        ManageReply::Refused(Refusal::Invalid(_))
    ));
    let ManageReply::Done(done) = stage.change(&system, &approval, register(&["Kim", "Lee"]), "").await else {
        panic!("not registered")
    };
    assert_eq!(done.approval.status, ApprovalStatus::Approved);
    assert_eq!(done.approval.votes[0].external.as_ref().unwrap().evidence, "ticket 7", "evidence is kept");
    assert_eq!(stage.check(&check(2, GOAL)).await.decision.verdict, Verdict::Allow);
}

#[tokio::test]
async fn its_workload_reports_what_came_of_the_action() {
    let stage = Stage::new(1).await;
    let approval = stage.approved(&check(1, GOAL)).await;
    let report = || ApprovalChange::Report { status: OutcomeStatus::Failed };
    refused(stage.change(&agent(), &approval, report(), "").await, "only of a used approval");
    let used = stage.check(&check(2, GOAL)).await;
    stage.settle(&used.events).await;
    assert_eq!(stage.change(&member("ann"), &approval, report(), "").await, ManageReply::Refused(Refusal::NotFound));
    let ManageReply::Done(done) = stage.change(&agent(), &approval, report(), "").await else { panic!("no report") };
    assert_eq!(done.approval.outcome.unwrap().status, OutcomeStatus::Failed);
    assert_eq!(kinds(&done.unrecorded.events), [LineType::ApprovalOutcome]);
}

#[tokio::test]
async fn those_who_wait_hear_of_each_change() {
    let stage = Stage::new(1).await;
    let mut changes = stage.bus.connect().notices.subscribe::<ApprovalsChanged>().await.unwrap();
    let approval = stage.open(&check(1, GOAL)).await;
    assert!(matches!(stage.vote("ann", &approval).await, ManageReply::Done(_)));
    let heard = tokio::time::timeout(WAIT_TIMEOUT, changes.next()).await.unwrap();
    let Some(Event::Message(changed)) = heard else { panic!("{heard:?}") };
    assert_eq!((changed.account, changed.ids), (account(), vec![approval.id.unwrap()]));
}

fn grant(by: &Actor, tool: Option<&str>, seconds: i64) -> CreateGrant {
    CreateGrant {
        account: account(),
        actor: by.clone(),
        holder: Some(agent().holder),
        key_id: agent().key_id,
        run_id: None,
        tool: tool.map(str::to_owned),
        effects: None,
        environment: None,
        until: jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds),
        reason: "release night".to_owned(),
    }
}

#[tokio::test]
async fn a_wider_grant_serves_its_workload_once_enough_people_gave_it() {
    let stage = Stage::new(2).await;
    let made = stage.ask(&grant(&member("ann"), Some("argo_cd"), 3_600)).await;
    let ManageReply::Done(GrantChanged { grant: made, unrecorded }) = made else { panic!("{made:?}") };
    assert_eq!(kinds(&unrecorded.events), [LineType::GrantCreated]);
    stage.settle(&unrecorded.events).await;
    assert_eq!(stage.check(&check(1, GOAL)).await.decision.verdict, Verdict::Defer, "one person is not two");
    let change = |by: &Actor, change| ChangeGrant {
        account: account(),
        actor: by.clone(),
        id: made.id.clone(),
        change,
        reason: "for the release".to_owned(),
    };
    refused(stage.ask(&change(&member("ann"), GrantChange::Approve)).await, "decided already");
    refused(stage.ask(&change(&member("owner"), GrantChange::Approve)).await, "somebody else");
    assert_eq!(stage.ask(&change(&agent(), GrantChange::Approve)).await, ManageReply::Refused(Refusal::NotFound));
    assert!(matches!(stage.ask(&change(&member("bob"), GrantChange::Approve)).await, ManageReply::Done(_)));
    for number in 2..5 {
        let used = stage.check(&check(number, GOAL)).await;
        assert_eq!((used.decision.verdict, used.approval_source), (Verdict::Allow, Some(ApprovalSource::Grant)));
        assert_eq!(used.decision.approval.as_ref().unwrap().grant_id.as_ref(), Some(&made.id));
        let event = used.events.last().unwrap();
        assert_eq!((event.kind, event.request_id), (LineType::ApprovalUsed, Some(id(number))));
        stage.settle(&used.events).await;
    }
    assert_eq!(stage.check(&again(9, 4, GOAL)).await.decision.verdict, Verdict::Allow);
    let other = EvaluateRequest { asker: Some(agent_of("other")), ..check(6, GOAL) };
    assert_eq!(stage.check(&other).await.decision.verdict, Verdict::Defer, "another workload");
    let mut other_tool = check(7, GOAL);
    other_tool.request.tools = vec!["terraform".to_owned()];
    assert_eq!(stage.check(&other_tool).await.decision.verdict, Verdict::Defer, "another tool");
    let list = |actor: Actor| ListGrants { account: account(), actor };
    let ManageReply::Done(listed) = stage.ask(&list(agent())).await else { panic!("no list") };
    assert_eq!((listed.items[0].uses, listed.items[0].votes.len()), (3, 2), "a repeated check is one use");
    assert!(matches!(stage.ask(&list(agent_of("other"))).await, ManageReply::Done(grants) if grants.items.is_empty()));
    assert!(matches!(stage.ask(&change(&member("cem"), GrantChange::Revoke)).await, ManageReply::Done(_)));
    assert_eq!(stage.check(&check(8, GOAL)).await.decision.verdict, Verdict::Defer, "revoked");
    let again = stage.ask(&change(&member("cem"), GrantChange::Revoke)).await;
    assert!(matches!(again, ManageReply::Done(changed) if changed.grant.revoked_at.is_some()), "twice is no error");
    refused(stage.ask(&change(&member("bob"), GrantChange::Approve)).await, "revoked");
}

#[tokio::test]
async fn a_grant_that_is_too_wide_too_long_or_ones_own_is_refused() {
    let stage = Stage::new(1).await;
    let invalid = |reply: ManageReply<GrantChanged>, at: &str| match reply {
        ManageReply::Refused(Refusal::Invalid(errors)) => assert_eq!(errors[0].path, at),
        reply => panic!("{reply:?}"),
    };
    invalid(stage.ask(&grant(&member("ann"), None, 60)).await, "body");
    invalid(stage.ask(&grant(&member("ann"), Some("argo_cd"), 8 * 3_600 + 60)).await, "until");
    invalid(stage.ask(&grant(&member("ann"), Some("argo_cd"), -1)).await, "until");
    invalid(stage.ask(&CreateGrant { holder: None, ..grant(&member("ann"), Some("argo_cd"), 60) }).await, "key_id");
    invalid(
        stage.ask(&CreateGrant { reason: String::new(), ..grant(&member("ann"), Some("argo_cd"), 60) }).await,
        "reason",
    );
    for own in ["owner", "sock"] {
        refused(stage.ask(&grant(&member(own), Some("argo_cd"), 60)).await, "somebody else");
    }
    refused(stage.ask(&grant(&member("gone"), Some("argo_cd"), 60)).await, "removed");
    assert_eq!(
        stage.ask(&grant(&agent(), Some("argo_cd"), 60)).await,
        ManageReply::Refused(Refusal::ScopeMissing(Scope::ApprovalsDecide))
    );
    assert!(matches!(stage.ask(&grant(&member("ann"), Some("argo_cd"), 8 * 3_600 - 1)).await, ManageReply::Done(_)));
}

#[tokio::test]
async fn a_use_whose_confirmation_was_lost_is_told_to_gateways_and_confirmed() {
    let stage = Stage::new(2).await;
    let approval = stage.approved(&check(1, GOAL)).await;
    let used = stage.check(&check(2, GOAL)).await;
    assert_eq!(used.decision.verdict, Verdict::Allow);
    let others: Vec<_> = used.events.iter().filter(|event| event.kind != LineType::ApprovalUsed).cloned().collect();
    stage.settle(&others).await;
    let collect = async || match stage.ask(&CollectEvents { cursor: None }).await {
        ManageReply::Done(page) => page.accounts,
        reply => panic!("not collected: {reply:?}"),
    };
    stage.age(&approval, 60).await;
    let mut told = collect().await;
    assert_eq!((told.len(), told[0].events.len(), told[0].unconfirmed.len()), (1, 0, 1));
    let told = told.remove(0).unconfirmed.remove(0);
    assert_eq!((told.request_id, &told.event.approval_id), (id(2), &approval.id));
    assert!(collect().await.is_empty(), "again in a minute");
    stage.age(&approval, 60).await;
    assert_eq!(collect().await[0].unconfirmed, std::slice::from_ref(&told), "as long as it is not known");
    let settle = SettleEvents { account: account(), recorded: vec![told.event], released: None };
    assert!(matches!(stage.ask(&settle).await, ManageReply::Done(_)));
    assert_eq!(stage.seen(&approval).await.status, ApprovalStatus::Consumed);
}

#[tokio::test]
async fn an_outcome_of_an_approval_that_was_replaced_is_recorded() {
    let stage = Stage::new(2).await;
    let approval = stage.approved(&check(1, GOAL)).await;
    let used = stage.check(&check(2, GOAL)).await;
    stage.settle(&used.events).await;
    let next = stage.open(&check(3, GOAL)).await;
    assert_ne!(next.id, approval.id);
    let report = ApprovalChange::Report { status: OutcomeStatus::Succeeded };
    assert!(matches!(stage.change(&agent(), &approval, report, "").await, ManageReply::Done(_)));
    stage.age(&next, 60).await;
    let collected = stage.collect().await;
    let outcome = collected.iter().find(|event| event.kind == LineType::ApprovalOutcome).unwrap();
    assert_eq!(outcome.approval_id, approval.id);
    stage.settle(&collected).await;
    stage.age(&next, 60).await;
    assert!(stage.collect().await.is_empty());
}

#[tokio::test]
async fn a_workload_that_opens_and_cancels_without_end_is_refused_and_another_is_not() {
    let stage = Stage::new(1).await;
    let mut number = 0;
    let opened = loop {
        number += 1;
        assert!(number < 300, "it is bounded");
        let decided = stage.check(&check(number, &format!("Carry out change number {number}"))).await.decision;
        let Some(approval) = decided.approval else {
            break detail(&decided, "approval").unwrap().as_str().unwrap().to_owned();
        };
        let cancelled = stage.change(&agent(), &approval, ApprovalChange::Cancel {}, "").await;
        assert!(matches!(cancelled, ManageReply::Done(_)), "{cancelled:?}");
    };
    assert!(number > 100 && opened.contains("within the hour"), "{number} {opened}");
    stage.open(&EvaluateRequest { asker: Some(agent_of("other")), ..check(999, GOAL) }).await;
}
