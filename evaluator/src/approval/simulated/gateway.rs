//! A gateway of the simulation: what a real one promises to evaluators, and the workloads and people who call it.
//!
//! It sends a check again that is not answered, records a decision with its events before it answers, says so, gives
//! back what surely is not recorded and nothing else, answers nothing after its deadline, and collects what others left
//! over. How lines are appended is simulated with the real recorder, in the gateway's crate.

use futures_util::future::join_all;
use stage0_backplane::{
    AppendError, Batch, CLOCK_READING_TTL, DecisionLog, Entry, EntryFilter, Seek, StateStore, follow_store_clock,
};
use stage0_contract::{
    ApprovalChange, ApprovalEvent, ApprovalMode, ApprovalSource, ChangeApproval, CollectEvents, Evaluation, EventRef,
    Released, SettleEvents, UnconfirmedUse, Verdict,
};

use super::super::tests::{account, actor, agent, key};
use super::evaluator::PEOPLE;
use super::*;

const BUDGET: Duration = Duration::from_millis(1_900);
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(800);
const MAX_EVALUATIONS: u32 = 3;
const RETRY_DELAY: Duration = Duration::from_millis(50);
const SETTLE_TIMEOUT: Duration = Duration::from_millis(300);
const COLLECT_INTERVAL: Duration = Duration::from_secs(5);
const COLLECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Callers of one gateway at a time.
const CALLERS: usize = 3;
/// Longer than an approval waits or may be used.
const REST: Duration = Duration::from_secs(70);
/// Without faults each action has been allowed after so many rounds.
const MAX_ROUNDS: u32 = 40;
/// Between two of them; what a person denied is not asked for again before.
const ROUND: Duration = Duration::from_secs(21);

pub(super) struct Gateway {
    run: Run,
    node: Node,
    state_store: Arc<dyn StateStore>,
    log: Arc<dyn DecisionLog>,
}

/// What is known of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recorded {
    Surely,
    SurelyNot,
    Unknown,
}

/// The answer to a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Allowed,
    Waits,
    /// No decision.
    Nothing,
}

impl Gateway {
    pub(super) fn new(run: Run, node: Node) -> Self {
        let (state_store, log) = (node.state_store(), node.log());
        Self { run, node, state_store, log }
    }

    /// Does something while the store's clock is followed.
    pub(super) async fn follow<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            done = work => done,
            () = follow_store_clock(&*self.state_store) => unreachable!(),
        }
    }

    /// Serves callers until nothing is left to do.
    pub(super) async fn live(self) {
        loop {
            let callers = join_all((0..CALLERS).map(|_| self.call()));
            let is_over = tokio::select! {
                biased;
                is_over = self.follow(callers) => is_over.into_iter().any(|is_over| is_over),
                () = self.collect_on() => unreachable!(),
            };
            if is_over {
                return;
            }
        }
    }

    /// Whether there is nothing left to do.
    async fn call(&self) -> bool {
        // The first attempt of a check whose outcome its caller does not know.
        let mut open: Option<(u64, RequestId)> = None;
        for _ in 0..8 {
            if !self.run.sim.step() {
                return true;
            }
            sleep(if self.node.chance(25) { REST } else { self.node.moment() }).await;
            let action = self.node.below(ACTIONS);
            match self.node.below(100) {
                0..45 => {
                    let repeats = open.take().filter(|_| self.node.chance(700));
                    let (action, operation) = repeats.unwrap_or_else(|| (action, self.run.next_id()));
                    let is_first = repeats.is_none();
                    if self.check(action, operation, is_first).await == Told::Nothing {
                        open = Some((action, operation));
                    }
                }
                45..86 => self.change(action, false).await,
                _ => self.change(action, true).await,
            }
        }
        false
    }

    /// A check of a workload, up to its answer.
    async fn check(&self, action: u64, operation: RequestId, is_first: bool) -> Told {
        let deadline = Instant::now() + BUDGET;
        self.run.book.borrow_mut().begin_check(action, self.run.sim.now());
        let request_id = if is_first { operation } else { self.run.next_id() };
        let clock = self.state_store.clock();
        let is_clock_wrong = clock.check().is_err_and(|error| error != ClockError::Unknown);
        if is_clock_wrong || self.state_store.read_clock(CLOCK_READING_TTL, deadline).await.is_err() {
            return Told::Nothing;
        }
        let body = json!({
            "goal": format!("Deploy the service {action}"), "success_criteria": ["it runs"], "side_effects": ["deploy"],
            "constraints": ["allowed_tools: argo_cd"], "tools": ["argo_cd"], "environment": "staging",
            "context": {"actor_role": "platform_admin"},
        });
        let rules = AccountRules { approvals: ApprovalMode::Verified, ..AccountRules::default() };
        let asker = Actor { key_id: key(AGENT), holder: agent(), scopes: [].into(), rules, ..actor("ann") };
        let message = EvaluateRequest {
            request_id,
            account: account("acc"),
            request: CheckRequest::parse(body).unwrap(),
            evaluated_at: clock.now().as_second(),
            operation: (!is_first).then_some(operation),
            caller: CallerTexts::default(),
            max_runs: None,
            asker: Some(asker),
        };
        let Some(EvaluateReply::Decided(evaluation)) = self.evaluate(&message, deadline).await else {
            return Told::Nothing;
        };
        let Evaluation { decision, approval_source, events, .. } = *evaluation;
        let used = decision.approval.as_ref().filter(|_| decision.verdict == Verdict::Allow);
        assert!(used.is_none() || approval_source == Some(ApprovalSource::Approval));
        let digest = decision.approval.as_ref().map(|approval| approval.action_digest.clone());
        let mut lines = vec![json!({
            "type": "decision", "request_id": request_id, "operation": operation, "verdict": decision.verdict,
            "approval": used.and_then(|used| used.id.clone()),
        })];
        lines.extend(events.iter().map(line_of));
        let recorded = self.record(&request_id.to_string(), lines, deadline).await;
        self.node.tell(format_args!("check {request_id} of {action}: {:?}, recorded {recorded:?}", decision.verdict));
        let releases = || {
            let released = Released { request_id, approval_id: used?.id.clone(), grant_id: None };
            Some(released)
        };
        match recorded {
            Recorded::Surely => self.settle(&events, None).await,
            Recorded::Unknown if self.run.broken == Broken::AnswersTheUnrecorded => {}
            Recorded::SurelyNot | Recorded::Unknown => {
                if recorded == Recorded::SurelyNot {
                    self.settle(&[], releases()).await;
                } else {
                    self.run.sim.count("outcome unknown");
                }
                return Told::Nothing;
            }
        }
        // What comes later is not answered any more.
        let is_unknown = recorded != Recorded::Surely && self.run.broken != Broken::AnswersTheUnrecorded;
        if is_unknown || Instant::now() >= deadline {
            return Told::Nothing;
        }
        let mut book = self.run.book.borrow_mut();
        if let (Some(reference), Some(digest)) = (&decision.approval, digest) {
            book.note_reference(&self.run.sim, action, reference, &digest);
        }
        match used {
            Some(used) => {
                book.note_release(&self.run.sim, used, operation, is_first);
                Told::Allowed
            }
            None => {
                if decision.issues.iter().any(|issue| issue.details.contains_key("used_by")) {
                    self.run.sim.count("used by another");
                }
                Told::Waits
            }
        }
    }

    async fn evaluate(&self, message: &EvaluateRequest, deadline: Instant) -> Option<EvaluateReply> {
        for _ in 0..MAX_EVALUATIONS {
            let until = deadline.min(Instant::now() + ATTEMPT_TIMEOUT);
            if let Some(reply) = self.run.ask(&self.node, message, until).await {
                return Some(reply);
            }
            if Instant::now() >= deadline {
                return None;
            }
            sleep(RETRY_DELAY).await;
        }
        None
    }

    async fn record(&self, id: &str, lines: Vec<Value>, deadline: Instant) -> Recorded {
        let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
        let batch = Batch { account: account("acc"), id: id.to_owned(), lines: lines.join("\n").into() };
        let mut is_certain = true;
        let is_hasty = self.run.broken == Broken::AnswersTheUnrecorded;
        loop {
            let until = if is_hasty { Instant::now() + RETRY_DELAY } else { deadline };
            match self.log.append(vec![batch.clone()], until).await.pop() {
                Some(Ok(())) => return Recorded::Surely,
                Some(Err(AppendError::NotStored(_))) => {}
                Some(Err(AppendError::Unknown(_))) | None => is_certain = false,
            }
            if is_hasty || Instant::now() + RETRY_DELAY >= deadline {
                return if is_certain && !is_hasty { Recorded::SurelyNot } else { Recorded::Unknown };
            }
            sleep(RETRY_DELAY).await;
        }
    }

    async fn settle(&self, recorded: &[ApprovalEvent], released: Option<Released>) {
        self.settle_refs(recorded.iter().map(EventRef::of).collect(), released).await;
    }

    async fn settle_refs(&self, recorded: Vec<EventRef>, released: Option<Released>) {
        if !recorded.is_empty() || released.is_some() {
            let settle = SettleEvents { account: account("acc"), recorded, released };
            drop(self.run.ask(&self.node, &settle, Instant::now() + SETTLE_TIMEOUT).await);
        }
    }

    /// A person decides about the action's newest approval, or changes it otherwise.
    async fn change(&self, action: u64, is_rare: bool) {
        let (name, kind) = (PEOPLE[usize::try_from(self.node.below(3)).unwrap()], self.node.below(4));
        let Some((id, action_digest)) = self.run.book.borrow().newest(action) else { return };
        let change = match (is_rare, kind) {
            (false, _) => ApprovalChange::Approve { action_digest },
            (true, 0) => ApprovalChange::Deny { action_digest },
            (true, 1) => ApprovalChange::Cancel {},
            (true, _) => ApprovalChange::Reopen {},
        };
        self.change_as(name, id, change).await;
    }

    async fn change_as(&self, name: &'static str, id: ApprovalId, change: ApprovalChange) {
        let deadline = Instant::now() + BUDGET;
        let began = self.run.sim.now();
        self.run.book.borrow_mut().begin_change(&id, &change);
        let reason = "as agreed".to_owned();
        let message = ChangeApproval { account: account("acc"), actor: actor(name), id: id.clone(), change, reason };
        let reply = self.run.ask(&self.node, &message, deadline).await;
        self.node.tell(format_args!("{name}: {:?}: {}", message.change, told(reply.as_ref())));
        match reply {
            Some(ManageReply::Done(changed)) => {
                let events = changed.unrecorded.events;
                let mut lines = vec![json!({"type": "call"})];
                lines.extend(events.iter().map(line_of));
                if self.record(&self.run.next_id().to_string(), lines, deadline).await == Recorded::Surely {
                    self.settle(&events, None).await;
                }
                let mut book = self.run.book.borrow_mut();
                book.note_changed(&self.run.sim, name, &message.change, &changed.approval, began);
            }
            Some(ManageReply::Refused(refusal)) => {
                self.run.book.borrow_mut().note_refused(&self.run.sim, &id, &message.change, &refusal);
            }
            Some(ManageReply::Failed | ManageReply::Busy) | None => {}
        }
    }

    async fn collect_on(&self) {
        loop {
            sleep(COLLECT_INTERVAL * 3 / 4 + self.node.moment()).await;
            self.collect().await;
        }
    }

    /// Records and settles what evaluators hand out now.
    async fn collect(&self) {
        let mut cursor = None;
        loop {
            let (collect, deadline) = (CollectEvents { cursor }, Instant::now() + COLLECT_TIMEOUT);
            let Some(ManageReply::Done(page)) = self.run.ask(&self.node, &collect, deadline).await else { return };
            for found in page.accounts {
                self.confirm_uses(found.unconfirmed).await;
                if found.events.is_empty() {
                    continue;
                }
                let (id, until) = (self.run.next_id().to_string(), Instant::now() + COLLECT_TIMEOUT);
                let is_lost = self.run.broken == Broken::LosesEvents;
                let lines = found.events.iter().map(line_of).collect();
                if is_lost || self.record(&id, lines, until).await == Recorded::Surely {
                    self.settle(&found.events, None).await;
                }
            }
            cursor = page.next_cursor;
            if cursor.is_none() {
                return;
            }
        }
    }

    async fn confirm_uses(&self, uses: Vec<UnconfirmedUse>) {
        if uses.is_empty() {
            return;
        }
        let log = self.read_log().await;
        let has = |request_id: RequestId| {
            log.iter()
                .flat_map(lines_in)
                .any(|line| line["request_id"] == json!(request_id) && line["type"] == "decision")
        };
        let recorded = uses.into_iter().filter(|used| has(used.request_id)).map(|used| used.event).collect();
        self.settle_refs(recorded, None).await;
    }

    pub(super) async fn read_log(&self) -> Vec<Entry> {
        let deadline = Instant::now() + COLLECT_TIMEOUT;
        let chunk = self.log.read(&account("acc"), EntryFilter::All, Seek::Start, usize::MAX, deadline).await;
        chunk.map(|chunk| chunk.entries).unwrap_or_default()
    }

    /// Without faults: asks for the action until it is allowed, with people who help.
    pub(super) async fn bring_to_an_end(&self, action: u64) -> Result<(), String> {
        let standing = self.run.book.borrow().surely_granted(action, self.run.sim.now());
        for round in 0..MAX_ROUNDS {
            let told = self.check(action, self.run.next_id(), true).await;
            if let Some(id) = standing.as_ref().filter(|_| round == 0 && told != Told::Allowed) {
                return Err(format!("{id} was granted and nothing used it, and the check gets {told:?}"));
            }
            if told == Told::Allowed {
                return Ok(());
            }
            self.collect().await;
            let newest = self.run.book.borrow().newest(action);
            if let Some((id, action_digest)) = newest {
                for name in PEOPLE {
                    let approve = ApprovalChange::Approve { action_digest: action_digest.clone() };
                    self.change_as(name, id.clone(), approve).await;
                }
                if round % 3 == 2 {
                    // A check that was lost has used it.
                    self.change_as(PEOPLE[0], id, ApprovalChange::Reopen {}).await;
                }
            }
            let told = self.check(action, self.run.next_id(), true).await;
            if told == Told::Allowed {
                return Ok(());
            }
            sleep(ROUND).await;
        }
        Err(format!("action {action} is not allowed, whatever people do"))
    }

    /// Without faults: until nothing can be left over.
    pub(super) async fn collect_all(&self) {
        for _ in 0..20 {
            sleep(COLLECT_INTERVAL).await;
            self.collect().await;
        }
    }
}

pub(super) fn lines_in(entry: &Entry) -> impl Iterator<Item = Value> + '_ {
    entry.lines().map(|line| serde_json::from_slice(line).unwrap())
}

fn line_of(event: &ApprovalEvent) -> Value {
    serde_json::to_value(event).unwrap()
}

fn told(reply: Option<&ManageReply<stage0_contract::ApprovalChanged>>) -> String {
    match reply {
        Some(ManageReply::Done(changed)) => format!("it is {}", changed.approval.status.as_str()),
        Some(ManageReply::Refused(refusal)) => format!("{refusal:?}"),
        Some(ManageReply::Failed) => "it failed".to_owned(),
        Some(ManageReply::Busy) => "busy".to_owned(),
        None => "no answer".to_owned(),
    }
}
