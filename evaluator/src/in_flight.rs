//! A request from the moment it is received until it is answered.
//!
//! Owns the in-flight gauge and the log line of a check, so that its `request_id` is found in this log too. The line
//! says how the check ended and contains nothing of the request.
//! INVARIANT: every exit decrements the in-flight gauge, and an unanswered check is logged.

use std::cell::RefCell;
use std::sync::Arc;

use stage0_backplane::{IncomingRequest, Responder, Unparsed, UnparsedRequest};
use stage0_contract::{AccountId, Envelope, EvaluateReply, EvaluateRequest, Request, RequestId};
use stage0_policy::TimeLimit;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use uuid::Uuid;

use crate::approval::Hold;
use crate::candidates::Watched;
use crate::fair_queue::Queued;
use crate::handler::Held;
use crate::metrics::{self, InFlightGuard};
use crate::published::Chosen;

pub(crate) struct InFlightRequest<R> {
    pub(crate) request: Arc<R>,
    /// The caller stops waiting at this time.
    pub(crate) deadline: Instant,
    pending: Responder<R>,
    since: Instant,
    _counted: InFlightGuard,
}

/// A check that was received but not parsed yet.
pub(crate) struct ReceivedCheck {
    pub(crate) content: Unparsed<EvaluateRequest>,
    envelope: Envelope,
    deadline: Instant,
    pending: Responder<EvaluateRequest>,
    since: Instant,
    counted: InFlightGuard,
}

impl ReceivedCheck {
    /// `None` for a message without an account.
    pub(crate) fn new(unread: UnparsedRequest<EvaluateRequest>) -> Option<Self> {
        let UnparsedRequest { content, deadline, responder: pending } = unread;
        let envelope = match &content {
            Unparsed::Bytes(bytes) => Envelope::of(bytes),
            Unparsed::Value { request, .. } => Some(Envelope::from(&**request)),
        };
        let Some(envelope) = envelope else {
            // The parser logs where the message is malformed.
            content.parse();
            return None;
        };
        Some(Self { content, envelope, deadline, pending, since: Instant::now(), counted: metrics::begin_request() })
    }

    pub(crate) fn is_out_of_time(&self) -> bool {
        TimeLimit::before(self.deadline.into_std(), self.since.into_std()).check().is_err()
    }

    pub(crate) async fn refuse(self, reply: EvaluateReply) {
        log_reply(&self.envelope.request_id, &self.envelope.account, &reply, self.since, false);
        self.pending.hand_over(reply).await;
    }
}

impl Queued for ReceivedCheck {
    fn account(&self) -> &AccountId {
        &self.envelope.account
    }

    fn bytes(&self) -> usize {
        self.content.bytes()
    }
}

pub(crate) struct InFlightCheck {
    asked: InFlightRequest<EvaluateRequest>,
    /// The size of its message.
    pub(crate) bytes: usize,
    pub(crate) limit: TimeLimit,
    /// The packs that decide it.
    pub(crate) chosen: Chosen,
    /// A candidate takes it: then it is judged beside, once it is answered.
    pub(crate) watched: Option<Box<Watched>>,
    /// What is reserved for it until it is answered: deciding it again on another state may reserve something else.
    holds: RefCell<Vec<Hold>>,
    /// Names this evaluator's work on the check, when another one works on it too.
    pub(crate) claim: Uuid,
    /// A large check holds it until it is answered.
    _slot: Option<OwnedSemaphorePermit>,
}

impl Queued for InFlightCheck {
    fn account(&self) -> &AccountId {
        &self.asked.request.account
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<R: Request> InFlightRequest<R> {
    pub(crate) fn new(message: IncomingRequest<R>) -> Self {
        let (request, deadline, pending) = message.into_parts();
        Self {
            request: Arc::new(request),
            deadline,
            pending,
            since: Instant::now(),
            _counted: metrics::begin_request(),
        }
    }

    pub(crate) async fn answer(self, reply: R::Reply) {
        self.pending.hand_over(reply).await;
    }
}

impl InFlightCheck {
    pub(crate) fn new(
        request: Arc<EvaluateRequest>,
        arrived: ReceivedCheck,
        slot: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let ReceivedCheck { content, deadline, pending, since, counted, .. } = arrived;
        let limit = TimeLimit::before(deadline.into_std(), since.into_std());
        let asked = InFlightRequest { request, deadline, pending, since, _counted: counted };
        let (holds, chosen) = (RefCell::default(), Chosen::default());
        let (bytes, claim) = (content.bytes(), Uuid::now_v7());
        Self { asked, bytes, limit, chosen, watched: None, holds, claim, _slot: slot }
    }

    pub(crate) fn request(&self) -> &Arc<EvaluateRequest> {
        &self.asked.request
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.asked.deadline
    }

    /// Returns whether it is new: deciding a check again reserves the same once.
    pub(crate) fn add_hold(&self, hold: Hold) -> bool {
        let mut holds = self.holds.borrow_mut();
        let is_new = !holds.contains(&hold);
        if is_new {
            holds.push(hold);
        }
        is_new
    }

    /// It was surely not reserved.
    pub(crate) fn drop_hold(&self, hold: &Hold) {
        self.holds.borrow_mut().retain(|other| other != hold);
    }

    pub(crate) fn take_holds(&self) -> Vec<Hold> {
        self.holds.take()
    }

    /// Notes that rules decided it, with this approval.
    pub(crate) fn note_decided(&self, held: Option<Held>) {
        if let Some(watched) = &self.watched {
            watched.note_decided(held);
        }
    }

    /// It was decided by something else than rules in the end.
    pub(crate) fn forget_decided(&self) {
        if let Some(watched) = &self.watched {
            watched.forget_decided();
        }
    }

    pub(crate) async fn decided(self, reply: EvaluateReply) {
        let EvaluateRequest { request_id, account, .. } = &*self.asked.request;
        log_reply(request_id, account, &reply, self.asked.since, self.chosen.is_published());
        let beside = self.watched.map(|watched| (watched, Arc::clone(&self.asked.request), reply.clone()));
        self.asked.answer(reply).await;
        if let Some((watched, message, reply)) = beside {
            watched.answered(message, self.bytes, self.chosen, &reply);
        }
    }

    /// Logs that the deadline passed; no reply is sent.
    pub(crate) fn late(self) {
        let EvaluateRequest { request_id, account, .. } = &*self.asked.request;
        let duration_ms = self.asked.since.elapsed().as_secs_f64() * 1e3;
        tracing::warn!(%request_id, %account, duration_ms, "check was not decided in time");
    }
}

fn log_reply(request_id: &RequestId, account: &AccountId, reply: &EvaluateReply, since: Instant, is_published: bool) {
    let duration_ms = since.elapsed().as_secs_f64() * 1e3;
    match reply {
        EvaluateReply::Decided(decided) => {
            metrics::decided(&decided.decision, is_published);
            let (verdict, policy_version) = (decided.decision.verdict.as_str(), &decided.decision.policy_version);
            tracing::debug!(%request_id, %account, verdict, %policy_version, duration_ms, "check decided");
        }
        EvaluateReply::Invalid(errors) => {
            tracing::debug!(%request_id, %account, errors = errors.len(), duration_ms, "check refused");
        }
        EvaluateReply::TooManyRuns { limit } => {
            tracing::info!(%request_id, %account, limit, duration_ms, "check exceeds the account's limit of runs");
        }
        EvaluateReply::PolicyMissing { version, is_loading } => {
            let policy_version = version;
            tracing::warn!(%request_id, %account, %policy_version, is_loading, duration_ms, "policy is not there");
        }
        EvaluateReply::Unable(reason) => {
            tracing::warn!(%request_id, %account, reason, duration_ms, "check could not be decided");
        }
        EvaluateReply::TimedOut => {
            metrics::timed_out();
            tracing::warn!(%request_id, %account, duration_ms, "check was given up: it took too long");
        }
        EvaluateReply::Busy => {
            metrics::busy();
            tracing::warn!(%request_id, %account, duration_ms, "check refused: too many of its account wait");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use metrics_exporter_prometheus::PrometheusBuilder;
    use serde_json::{Value, json};
    use stage0_backplane::Backplane;
    use stage0_contract::{CallerTexts, CheckRequest, ManageReply, RunId, ShowRun};
    use stage0_policy::PackSet;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::approval::Approvals;
    use crate::capture::capture;
    use crate::config::RunConfig;
    use crate::engines::Engines;
    use crate::run::RunCoordinator;

    const ID: &str = "0190163d-8694-739b-aea5-966c26f8ad91";

    /// The only line about the check.
    fn only(lines: &[Value]) -> Value {
        let found: Vec<&Value> = lines.iter().filter(|line| line["request_id"] == ID).collect();
        assert_eq!(found.len(), 1, "{lines:#?}");
        found[0].clone()
    }

    /// Asks a check, has it worked on, and waits for its answer.
    async fn ask(backplane: &Backplane, run: Option<&str>, work: impl AsyncFnOnce(InFlightCheck)) {
        let mut served = backplane.requests.serve::<EvaluateRequest>().await.unwrap();
        let mut body = json!({"goal": "tell nobody", "success_criteria": ["x"]});
        if let Some(run) = run {
            body["context"] = json!({"run_id": run});
        }
        let message = EvaluateRequest {
            asker: None,
            request_id: RequestId::parse(ID).unwrap(),
            account: AccountId::parse("acc").unwrap(),
            request: CheckRequest::parse(body).unwrap(),
            evaluated_at: 1_773_662_400,
            operation: None,
            caller: CallerTexts::default(),
            max_runs: None,
        };
        let asked = backplane.requests.request(&message, Duration::from_secs(5));
        let working = async {
            let arrived = ReceivedCheck::new(served.next_unparsed().await.unwrap()).unwrap();
            work(InFlightCheck::new(arrived.content.parse().unwrap(), arrived, None)).await;
        };
        // A check that is late has no answer: `asked` ends by its deadline.
        let _ = tokio::join!(working, asked);
    }

    fn engines() -> Engines {
        Engines::open(Arc::new(PackSet::embedded().unwrap())).unwrap()
    }

    #[test]
    fn a_check_leaves_one_line_with_its_id_and_nothing_of_what_it_asked() {
        let (lines, page) = capture(async {
            let engines = engines();
            ask(&Backplane::embedded(), None, async |check| {
                let approvals = Approvals::new(&Backplane::embedded(), RunConfig::default());
                let (reply, _) = approvals.decide(&engines, &check, None).await;
                check.decided(reply).await;
            })
            .await;
        });
        let line = only(&lines);
        assert_eq!((&line["level"], &line["message"]), (&json!("DEBUG"), &json!("check decided")));
        assert_eq!((&line["account"], &line["verdict"]), (&json!("acc"), &json!("ALLOW")));
        assert!(line["policy_version"].as_str().unwrap().starts_with("baseline@") && line["duration_ms"].is_f64());
        assert!(!line.to_string().contains("tell nobody"));
        assert!(page.contains("stage0_decide_seconds_count{step=\"policy\"} 1\n"), "{page}");
    }

    #[test]
    fn a_check_of_a_run_is_logged_and_its_state_store_time_measured() {
        let (lines, page) = capture(async {
            let (engines, backplane) = (engines(), Backplane::embedded());
            let runs = RunCoordinator::new(Arc::clone(&backplane.state_store), RunConfig::default());
            ask(&backplane, Some("r"), async |check| {
                let key = RunCoordinator::key(check.request()).unwrap();
                let approvals = Approvals::new(&backplane, RunConfig::default());
                runs.evaluate(&engines, &approvals, key, check).await;
            })
            .await;
        });
        assert_eq!(only(&lines)["message"], "check decided");
        assert!(page.contains("stage0_decide_seconds_count{step=\"run\"} 1\n"), "{page}");
        assert!(page.contains("stage0_in_flight 0\n"), "{page}");
    }

    #[test]
    fn a_check_that_cannot_be_decided_or_is_late_is_a_warning_with_its_id() {
        let (lines, _) = capture(ask(&Backplane::embedded(), None, async |check| {
            check.decided(EvaluateReply::Unable("why".to_owned())).await;
        }));
        let line = only(&lines);
        assert_eq!((&line["level"], &line["reason"]), (&json!("WARN"), &json!("why")));
        let (lines, _) = capture(async {
            tokio::time::pause();
            ask(&Backplane::embedded(), None, async |check| check.late()).await;
        });
        let line = only(&lines);
        assert_eq!((&line["level"], &line["account"]), (&json!("WARN"), &json!("acc")));
    }

    #[test]
    fn a_check_that_is_given_up_does_not_advance_its_run() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (engines, backplane) = (engines(), Backplane::embedded());
            let runs = RunCoordinator::new(Arc::clone(&backplane.state_store), RunConfig::default());
            let shown = async || {
                let message = ShowRun { account: AccountId::parse("acc").unwrap(), run_id: RunId::parse("r").unwrap() };
                runs.show(&message, Instant::now() + Duration::from_secs(5)).await
            };
            for (limit, iterations) in [(TimeLimit::over(), 0), (TimeLimit::NONE, 1)] {
                ask(&backplane, Some("r"), async |mut check| {
                    check.limit = limit;
                    let key = RunCoordinator::key(check.request()).unwrap();
                    let approvals = Approvals::new(&backplane, RunConfig::default());
                    runs.evaluate(&engines, &approvals, key, check).await;
                })
                .await;
                let ManageReply::Done(run) = shown().await else { panic!("no run") };
                assert_eq!(run.iterations, iterations);
            }
        });
    }

    #[tokio::test]
    async fn a_check_gives_its_slot_back_with_its_answer() {
        let slots = Arc::new(Semaphore::new(1));
        ask(&Backplane::embedded(), None, async |mut check| {
            check._slot = Arc::clone(&slots).try_acquire_owned().ok();
            assert_eq!(slots.available_permits(), 0);
            check.decided(EvaluateReply::Busy).await;
            assert_eq!(slots.available_permits(), 1);
        })
        .await;
    }

    #[test]
    fn a_question_is_in_flight_until_it_is_answered() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        ::metrics::with_local_recorder(&recorder, || {
            runtime.block_on(ask(&Backplane::embedded(), None, async |check| {
                assert!(recorder.handle().render().contains("stage0_in_flight 1\n"));
                check.decided(EvaluateReply::Invalid(Vec::new())).await;
            }));
        });
        assert!(recorder.handle().render().contains("stage0_in_flight 0\n"));
    }
}
