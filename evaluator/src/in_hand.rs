//! A question from when it is taken until it is answered.
//!
//! Owns the count of those and the line that a check leaves in the log, so that `request_id` finds it here too. The line says how it
//! ended and nothing of what was asked.
//! INVARIANT: every way out of here counts it down, and a check that is not answered is said.

use std::sync::Arc;

use bytes::Bytes;
use stage0_backplane::{Pending, Question, Unread, read_question};
use stage0_contract::{AccountId, Envelope, EvaluateReply, EvaluateRequest, Request, RequestId};
use tokio::time::Instant;

use crate::metrics::{self, GivenUp, InFlight};
use crate::slots::Slot;
use crate::time_limit::TimeLimit;
use crate::turns::Waiting;

/// A question that was taken.
pub(crate) struct InHand<R> {
    pub(crate) request: Arc<R>,
    /// From then on nobody waits for the answer.
    pub(crate) deadline: Instant,
    pending: Pending<R>,
    since: Instant,
    _counted: InFlight,
}

/// A check that was taken and not read yet.
pub(crate) struct Arrived {
    /// The message.
    pub(crate) bytes: Bytes,
    envelope: Envelope,
    deadline: Instant,
    pending: Pending<EvaluateRequest>,
    since: Instant,
    counted: InFlight,
}

impl Arrived {
    /// Nothing for a message that does not say whose it is.
    pub(crate) fn new(unread: Unread<EvaluateRequest>) -> Option<Self> {
        let Unread { bytes, deadline, pending } = unread;
        let Some(envelope) = Envelope::of(&bytes) else {
            // Says in the log where it cannot be read.
            read_question::<EvaluateRequest>(&bytes);
            return None;
        };
        Some(Self { bytes, envelope, deadline, pending, since: Instant::now(), counted: metrics::taken() })
    }

    /// Whether it is given up before it is read.
    pub(crate) fn is_out_of_time(&self) -> bool {
        TimeLimit::before(self.deadline.into_std(), self.since.into_std()).check().is_err()
    }

    /// Answers it unread.
    pub(crate) async fn refuse(self, reply: &EvaluateReply) {
        told(&self.envelope.request_id, &self.envelope.account, reply, self.since);
        self.pending.answer(reply).await;
    }
}

impl Waiting for Arrived {
    fn account(&self) -> &AccountId {
        &self.envelope.account
    }

    fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// A check that was taken.
pub(crate) struct Check {
    asked: InHand<EvaluateRequest>,
    /// Of its message.
    pub(crate) bytes: usize,
    /// When to give it up.
    pub(crate) limit: TimeLimit,
    /// Free again once it is answered.
    _slot: Option<Slot>,
}

impl Waiting for Check {
    fn account(&self) -> &AccountId {
        &self.asked.request.account
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<R: Request> InHand<R> {
    pub(crate) fn new(question: Question<R>) -> Self {
        let (request, deadline, pending) = question.into_parts();
        Self { request: Arc::new(request), deadline, pending, since: Instant::now(), _counted: metrics::taken() }
    }

    pub(crate) async fn answer(self, reply: &R::Reply) {
        self.pending.answer(reply).await;
    }
}

impl Check {
    /// What a message said; a large one has a slot.
    pub(crate) fn new(request: EvaluateRequest, arrived: Arrived, slot: Option<Slot>) -> Self {
        let Arrived { bytes, deadline, pending, since, counted, .. } = arrived;
        let limit = TimeLimit::before(deadline.into_std(), since.into_std());
        let asked = InHand { request: Arc::new(request), deadline, pending, since, _counted: counted };
        Self { asked, bytes: bytes.len(), limit, _slot: slot }
    }

    pub(crate) fn request(&self) -> &Arc<EvaluateRequest> {
        &self.asked.request
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.asked.deadline
    }

    /// Answers it.
    pub(crate) async fn decided(self, reply: &EvaluateReply) {
        let EvaluateRequest { request_id, account, .. } = &*self.asked.request;
        told(request_id, account, reply, self.asked.since);
        self.asked.answer(reply).await;
    }

    /// Nobody waits for it any more.
    pub(crate) fn late(self) {
        let EvaluateRequest { request_id, account, .. } = &*self.asked.request;
        let duration_ms = self.asked.since.elapsed().as_secs_f64() * 1e3;
        tracing::warn!(%request_id, %account, duration_ms, "check was not decided in time");
    }
}

/// The line of a check that is answered.
pub(crate) fn told(request_id: &RequestId, account: &AccountId, reply: &EvaluateReply, since: Instant) {
    let duration_ms = since.elapsed().as_secs_f64() * 1e3;
    match reply {
        EvaluateReply::Decided(decided) => {
            let (verdict, policy_version) = (decided.decision.verdict.as_str(), &decided.decision.policy_version);
            tracing::debug!(%request_id, %account, verdict, %policy_version, duration_ms, "check decided");
        }
        EvaluateReply::Invalid(errors) => {
            tracing::debug!(%request_id, %account, errors = errors.len(), duration_ms, "check refused");
        }
        EvaluateReply::TooManyRuns { limit } => {
            tracing::info!(%request_id, %account, limit, duration_ms, "check names a run too many");
        }
        EvaluateReply::Unable(reason) => {
            tracing::warn!(%request_id, %account, reason, duration_ms, "check could not be decided");
        }
        EvaluateReply::TimedOut => {
            metrics::given_up(GivenUp::TimedOut);
            tracing::warn!(%request_id, %account, duration_ms, "check was given up: it took too long");
        }
        EvaluateReply::Busy => {
            metrics::given_up(GivenUp::Busy);
            tracing::warn!(%request_id, %account, duration_ms, "check refused: too many of its account wait");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;
    use std::time::Duration;

    use metrics_exporter_prometheus::PrometheusBuilder;
    use serde_json::{Value, json};
    use stage0_backplane::Backplane;
    use stage0_contract::{CallerTexts, CheckRequest, ManageReply, RunId, ShowRun};
    use tracing_subscriber::filter::LevelFilter;

    use super::*;
    use crate::lanes::Lanes;
    use crate::pack::PackSet;
    use crate::run::{RunConfig, Runs};
    use crate::slots::Slots;

    const ID: &str = "0190163d-8694-739b-aea5-966c26f8ad91";

    /// What was logged.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What work leaves behind: the lines of the log, as a role writes them, and the page of metrics.
    fn left_by(work: impl Future<Output = ()>) -> (Vec<Value>, String) {
        let written = Written::default();
        let lines = written.clone();
        let json = tracing_subscriber::fmt().json().flatten_event(true).with_max_level(LevelFilter::DEBUG);
        let subscriber = json.with_writer(move || lines.clone()).finish();
        let recorder = PrometheusBuilder::new().set_buckets(&[1.0]).unwrap().build_recorder();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tracing::subscriber::with_default(subscriber, || {
            ::metrics::with_local_recorder(&recorder, || runtime.block_on(work));
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        (text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), recorder.handle().render())
    }

    /// The only line about the check.
    fn only(lines: &[Value]) -> Value {
        let found: Vec<&Value> = lines.iter().filter(|line| line["request_id"] == ID).collect();
        assert_eq!(found.len(), 1, "{lines:#?}");
        found[0].clone()
    }

    /// Asks a check, has it worked on, and waits for its answer.
    async fn ask(backplane: &Backplane, run: Option<&str>, work: impl AsyncFnOnce(Check)) {
        let mut served = backplane.requests.serve::<EvaluateRequest>().await.unwrap();
        let mut body = json!({"goal": "tell nobody", "success_criteria": ["x"]});
        if let Some(run) = run {
            body["context"] = json!({"run_id": run});
        }
        let question = EvaluateRequest {
            request_id: RequestId::parse(ID).unwrap(),
            account: AccountId::parse("acc").unwrap(),
            request: CheckRequest::parse(body).unwrap(),
            evaluated_at: 1_773_662_400,
            operation: None,
            caller: CallerTexts::default(),
            max_runs: None,
        };
        let asked = backplane.requests.ask(&question, Duration::from_secs(5));
        let working = async {
            let arrived = Arrived::new(served.next_unread().await.unwrap()).unwrap();
            work(Check::new(read_question(&arrived.bytes).unwrap(), arrived, None)).await;
        };
        // A check that is late has no answer: `asked` ends by its deadline.
        let _ = tokio::join!(working, asked);
    }

    fn lanes() -> Lanes {
        Lanes::open(Arc::new(PackSet::embedded().unwrap())).unwrap()
    }

    #[test]
    fn a_check_leaves_one_line_with_its_id_and_nothing_of_what_it_asked() {
        let (lines, page) = left_by(async {
            let lanes = lanes();
            ask(&Backplane::embedded(), None, async |check| {
                let (reply, _) = lanes.evaluate(check.request(), check.bytes, None, check.limit).await;
                check.decided(&reply).await;
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
    fn a_check_of_a_run_leaves_its_line_and_the_time_of_the_ledger() {
        let (lines, page) = left_by(async {
            let (lanes, backplane) = (lanes(), Backplane::embedded());
            let runs = Runs::new(Arc::clone(&backplane.ledger), RunConfig::default());
            ask(&backplane, Some("r"), async |check| {
                let place = Runs::place(check.request()).unwrap();
                runs.evaluate(&lanes, place, check).await;
            })
            .await;
        });
        assert_eq!(only(&lines)["message"], "check decided");
        assert!(page.contains("stage0_decide_seconds_count{step=\"run\"} 1\n"), "{page}");
        assert!(page.contains("stage0_in_flight 0\n"), "{page}");
    }

    #[test]
    fn a_check_that_cannot_be_decided_or_is_late_is_a_warning_with_its_id() {
        let (lines, _) = left_by(ask(&Backplane::embedded(), None, async |check| {
            check.decided(&EvaluateReply::Unable("why".to_owned())).await;
        }));
        let line = only(&lines);
        assert_eq!((&line["level"], &line["reason"]), (&json!("WARN"), &json!("why")));
        let (lines, _) = left_by(async {
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
            let (lanes, backplane) = (lanes(), Backplane::embedded());
            let runs = Runs::new(Arc::clone(&backplane.ledger), RunConfig::default());
            let shown = async || {
                let question =
                    ShowRun { account: AccountId::parse("acc").unwrap(), run_id: RunId::parse("r").unwrap() };
                runs.show(&question, Instant::now() + Duration::from_secs(5)).await
            };
            for (limit, iterations) in [(TimeLimit::over(), 0), (TimeLimit::NONE, 1)] {
                ask(&backplane, Some("r"), async |mut check| {
                    check.limit = limit;
                    let place = Runs::place(check.request()).unwrap();
                    runs.evaluate(&lanes, place, check).await;
                })
                .await;
                let ManageReply::Done(run) = shown().await else { panic!("no run") };
                assert_eq!(run.iterations, iterations);
            }
        });
    }

    #[tokio::test]
    async fn a_check_gives_its_slot_back_with_its_answer() {
        let slots = Slots::new(1);
        ask(&Backplane::embedded(), None, async |mut check| {
            check._slot = slots.take();
            assert!(!slots.any_free());
            check.decided(&EvaluateReply::Busy).await;
            assert!(slots.any_free());
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
                check.decided(&EvaluateReply::Invalid(Vec::new())).await;
            }));
        });
        assert!(recorder.handle().render().contains("stage0_in_flight 0\n"));
    }
}
