//! The load while processes are replaced: checks on kept and on new connections, runs with a limit, approvals that
//! people give, and keys that are made and revoked.
//!
//! Each caller does what docs/clients.md says: three attempts under one `Idempotency-Key`. A gateway that refuses the
//! connection is replaced by another one, as the balancer of deploy/haproxy.cfg does it. Owns what came of it: every
//! attempt that was no decision, with the step in which it happened and the reason; wrong answers end the caller.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Answer, Api, Member, Receiver, account_scopes};
use tokio::task::JoinHandle;

use crate::storm::Tenant;

const WAIT_TIMEOUT: Duration = Duration::from_secs(90);
/// As docs/clients.md wants it.
const ATTEMPTS: usize = 3;
/// Of what only the keystore can do: it is away for as long as it takes to start.
const MANAGEMENT_ATTEMPTS: usize = 30;
/// As agents think between two actions.
const CHECK_INTERVAL: Duration = Duration::from_millis(60);
/// A revoked key is refused within a second; the machine may be slow.
const REVOCATION_TIMEOUT: Duration = Duration::from_secs(5);
const RUN_LIMIT: usize = 6;
/// Why an attempt of a check may be no decision while processes are replaced. The next one is.
const EXPLAINED: [(&str, &str); 3] = [
    ("503 no keystore serves", KEYSTORE_AWAY),
    ("503 the keystore does not answer", KEYSTORE_AWAY),
    (
        "the connection broke",
        "it was sent as a gateway ended and closed idle connections, which an old one does at once",
    ),
];
const KEYSTORE_AWAY: &str = "its key was not verified in the last minute, and the keystore was being replaced";
/// Each of which opens two approvals.
const ACTIONS_OF_ONE: usize = 40;

/// Gateways that a balancer knows.
pub(super) type Urls = Arc<RwLock<Vec<String>>>;

pub(super) struct Load {
    shared: Arc<Shared>,
    tenant: Tenant,
    /// May read the log of the account whose people approve.
    people: Api,
    callers: Vec<JoinHandle<()>>,
}

struct Shared {
    urls: Urls,
    ca: PathBuf,
    ends: AtomicBool,
    keys: AtomicUsize,
    came: Mutex<Came>,
}

/// What came of the load.
#[derive(Default)]
pub(super) struct Came {
    /// What happens meanwhile.
    during: String,
    /// Of the tenant: id and verdict.
    answers: BTreeMap<String, String>,
    /// How long checks took, retries included, by step.
    took: BTreeMap<String, Vec<Duration>>,
    /// Attempts without a decision, by what was asked, step and reason.
    refused: BTreeMap<(&'static str, String, String), usize>,
    /// Checks without a decision after all attempts.
    failed: Vec<String>,
    /// Keys that were revoked.
    revoked: Vec<String>,
    /// Ids of approvals that were used.
    approvals: Vec<String>,
    /// Runs that came to their limit.
    runs: usize,
}

/// An attempt without a decision.
struct Refused {
    why: String,
    retry_after: Option<Duration>,
}

/// Who asks.
#[derive(Clone)]
struct Caller {
    shared: Arc<Shared>,
    api: Api,
    /// Each request on a connection of its own.
    is_fresh: bool,
    turn: usize,
}

impl Load {
    /// Of new accounts, whose decisions go to `/load` of the receiver.
    pub(super) async fn start(operator: &Api, ca: PathBuf, urls: &Urls, receiver: &Receiver) -> Self {
        let tenant = Tenant::new(operator, receiver, "/load").await;
        let people = json!({"name": "people", "approvals": "verified"});
        let people = operator.post("/v1/accounts", &people).await.expect(201)["id"].clone();
        let member = operator.invite(&json!({"account": people, "name": "Ada"})).await;
        let reader = json!({"account": people, "name": "reader", "scopes": account_scopes()});
        let reader = operator.make_agent(&reader).await;
        let shared = Arc::new(Shared {
            urls: Arc::clone(urls),
            ca,
            ends: AtomicBool::new(false),
            keys: AtomicUsize::new(0),
            came: Mutex::default(),
        });
        let caller = |api: &Api, turn: usize| Caller {
            shared: Arc::clone(&shared),
            api: api.clone(),
            is_fresh: turn % 2 == 1,
            turn,
        };
        let mut callers: Vec<_> = (0..4).map(|turn| tokio::spawn(caller(&tenant.api, turn).checks())).collect();
        callers.push(tokio::spawn(caller(&tenant.api, 4).runs()));
        callers.push(tokio::spawn(caller(operator, 6).approvals(member, people.clone())));
        callers.push(tokio::spawn(caller(operator, 8).keys(people)));
        Self { shared, tenant, people: reader.api, callers }
    }

    /// From now on this happens.
    pub(super) fn during(&self, step: &str) {
        step.clone_into(&mut self.shared.came.lock().unwrap().during);
    }

    /// Until so many more checks were answered.
    pub(super) async fn more(&self, checks: usize) {
        let answered = || self.shared.came.lock().unwrap().answers.len();
        let goal = answered() + checks;
        self.wait_for("answers", || answered() >= goal).await;
    }

    /// Until each kind of caller has come to an end once more, so that all of them met what happened.
    pub(super) async fn a_round(&self) {
        let rounds = || {
            let came = self.shared.came.lock().unwrap();
            [came.runs, came.approvals.len(), came.revoked.len()]
        };
        let before = rounds();
        let all = || rounds().iter().zip(before).all(|(now, before)| *now > before + 1);
        self.wait_for("runs, approvals and revocations", all).await;
    }

    async fn wait_for(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let began = Instant::now();
        wait_for(what, 2 * WAIT_TIMEOUT, async || {
            let is_wrong = self.callers.iter().any(JoinHandle::is_finished);
            if is_wrong || began.elapsed() > WAIT_TIMEOUT {
                self.shared.came.lock().unwrap().report();
                panic!("no {what}; a caller got a wrong answer: {is_wrong}");
            }
            condition()
        })
        .await;
    }

    /// Ends it. What was answered is in the log once and was delivered; what came to an end has come to an end.
    pub(super) async fn end(mut self, receiver: &Receiver) -> Came {
        self.shared.ends.store(true, Ordering::SeqCst);
        for caller in self.callers {
            caller.await.expect("every answer was right");
        }
        let mut came = std::mem::take(&mut *self.shared.came.lock().unwrap());
        came.report();
        let urls = self.shared.urls.read().unwrap().clone();
        self.tenant.api = self.tenant.api.at(&urls[0]);
        self.tenant.assert_kept(receiver, &came.answers).await;
        for run in 0..came.runs {
            let shown = self.tenant.api.get(&format!("/v1/runs/run-{run}")).await.expect(200);
            assert_eq!(shown["iterations"], RUN_LIMIT, "{shown:#}");
        }
        let lines = self.people.at(&urls[0]).decisions("limit=1000&verdict=ALLOW").await;
        let used: Vec<_> = lines.iter().filter_map(|line| line["approval"]["id"].as_str()).collect();
        for approval in &came.approvals {
            assert_eq!(used.iter().filter(|id| *id == approval).count(), 1, "lines that used {approval}");
        }
        for url in &urls {
            for key in &came.revoked {
                let answer = self.tenant.api.at(url).with_key(key).check(&Api::harmless()).await;
                assert_eq!(answer.status, 401, "a revoked key: {}", answer.text);
            }
        }
        came
    }
}

impl Came {
    /// Every check got a decision, and each attempt without one has a reason that the documents give.
    #[track_caller]
    pub(super) fn assert_undisturbed(&self) {
        assert_eq!(self.failed, [""; 0], "checks without a decision");
        let is_known = |why: &str| EXPLAINED.iter().any(|(begin, _)| why.starts_with(begin));
        let unknown = self.refused.iter().filter(|((asked, _, why), _)| *asked == "check" && !is_known(why));
        let unknown: Vec<_> = unknown.collect();
        assert!(unknown.is_empty(), "attempts that nothing explains: {unknown:?}");
    }

    /// What a person wants to know of it.
    fn report(&mut self) {
        for (step, took) in &mut self.took {
            took.sort();
            let (all, longest) = (took.len(), took.last().unwrap());
            eprintln!("{step}: {all} checks, p99 {:?}, longest {longest:?}", took[(all - 1) * 99 / 100]);
        }
        for ((asked, step, why), count) in &self.refused {
            let explained = EXPLAINED.iter().find(|(begin, _)| why.starts_with(begin));
            let explained = explained.map(|(_, why)| format!(" ({why})")).unwrap_or_default();
            eprintln!("{asked}, {step}: {count} × {why}{explained}");
        }
        let (runs, approvals, revoked) = (self.runs, self.approvals.len(), self.revoked.len());
        eprintln!("{} answers, {runs} runs, {approvals} approvals, {revoked} keys revoked", self.answers.len());
    }
}

impl Shared {
    fn ends(&self) -> bool {
        self.ends.load(Ordering::SeqCst)
    }

    fn refused(&self, asked: &'static str, why: &str) {
        let mut came = self.came.lock().unwrap();
        let step = came.during.clone();
        *came.refused.entry((asked, step, why.to_owned())).or_default() += 1;
    }
}

impl Caller {
    /// What is sent to whichever gateway accepts the connection.
    async fn try_once(&self, method: &Method, path: &str, key: &str, body: &Value) -> Result<Answer, Refused> {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        for redispatch in 0..ATTEMPTS {
            let url = {
                let urls = self.shared.urls.read().unwrap();
                urls[(self.turn / 2 + redispatch) % urls.len()].clone()
            };
            let api = match self.is_fresh {
                true => Api::new(&url, &self.shared.ca, self.api.key.as_deref()),
                false => self.api.at(&url),
            };
            let body = (!body.is_null()).then(|| body.to_string().into_bytes());
            match api.try_send(method.clone(), path, &headers, body).await {
                Ok(answer) if answer.status == 503 => {
                    let why = format!("503 {}", answer.body["message"].as_str().unwrap());
                    let seconds = answer.header("retry-after").parse().expect("seconds");
                    return Err(Refused { why, retry_after: Some(Duration::from_secs(seconds)) });
                }
                Ok(answer) => return Ok(answer),
                Err(error) if error.is_connect() => {}
                Err(error) => {
                    let why = format!("the connection broke: {:?}", std::error::Error::source(&error));
                    return Err(Refused { why, retry_after: None });
                }
            }
        }
        Err(Refused { why: "no gateway accepts connections".to_owned(), retry_after: None })
    }

    /// An answer that is no 503; none: there was none in so many attempts.
    async fn send(
        &mut self,
        asked: &'static str,
        attempts: usize,
        (method, path, body): (Method, &str, &Value),
    ) -> Option<Answer> {
        let key = format!("load-{}", self.shared.keys.fetch_add(1, Ordering::SeqCst));
        for attempt in 0..attempts {
            self.turn += 2;
            let refused = match self.try_once(&method, path, &key, body).await {
                Ok(answer) => return Some(answer),
                Err(refused) => refused,
            };
            self.shared.refused(asked, &refused.why);
            let delay = Duration::from_millis(200 << attempt.min(2));
            tokio::time::sleep(refused.retry_after.unwrap_or(delay)).await;
        }
        None
    }

    async fn check(&mut self, body: &Value) -> Option<Value> {
        let began = Instant::now();
        let answer = self.send("check", ATTEMPTS, (Method::POST, "/check", body)).await;
        let mut came = self.shared.came.lock().unwrap();
        let step = came.during.clone();
        came.took.entry(step.clone()).or_default().push(began.elapsed());
        if answer.is_none() {
            came.failed.push(format!("{step}: {body}"));
        }
        drop(came);
        Some(answer?.expect(200))
    }

    /// A check of the tenant, which has this verdict.
    async fn decide(&mut self, body: &Value, verdict: &str) {
        if let Some(answer) = self.check(body).await {
            assert_eq!(answer["verdict"], verdict, "{answer:#}");
            let id = answer["request_id"].as_str().unwrap().to_owned();
            self.shared.came.lock().unwrap().answers.insert(id, verdict.to_owned());
        }
        tokio::time::sleep(CHECK_INTERVAL).await;
    }

    async fn manage(&mut self, method: Method, path: &str, body: &Value) -> Answer {
        loop {
            let answer = self.send("management", MANAGEMENT_ATTEMPTS, (method.clone(), path, body)).await;
            let answer = answer.expect("the keystore is back");
            // An answer was lost, and what it made may be there: nothing here minds, and asks under another key.
            if answer.status != 409 || !answer.text.contains("`Idempotency-Key` ended without an answer") {
                return answer;
            }
            self.shared.refused("management", "409 whether it was done is not known");
        }
    }

    async fn checks(mut self) {
        while !self.shared.ends() {
            self.decide(&Api::harmless(), "ALLOW").await;
            self.decide(&Api::forbidden(), "DENY").await;
            self.decide(&Api::unclear(), "DEFER").await;
        }
    }

    /// One run after the other to its limit, and beyond.
    async fn runs(mut self) {
        for run in 0.. {
            let body = json!({"goal": "Search for Python documentation", "success_criteria": ["found"],
                "constraints": [format!("max_iterations: {RUN_LIMIT}")], "context": {"run_id": format!("run-{run}")}});
            for check in 0..RUN_LIMIT + 2 {
                if self.shared.ends() {
                    return;
                }
                self.decide(&body, if check < RUN_LIMIT { "ALLOW" } else { "DEFER" }).await;
            }
            self.shared.came.lock().unwrap().runs += 1;
        }
    }

    /// Actions that a person approves, each of which is allowed once.
    async fn approvals(mut self, member: Member, account: Value) {
        let mut operator = self.clone();
        let mut member = Self { api: member.api, ..self.clone() };
        for action in 0.. {
            // A workload may open only so many approvals in an hour.
            if action % ACTIONS_OF_ONE == 0 {
                let agent = json!({"account": account, "name": "agent", "scopes": ["check"]});
                let made = operator.manage(Method::POST, "/v1/keys", &agent).await.expect(201);
                self.api = self.api.with_key(made["key"].as_str().unwrap());
            }
            let body = Api::deployment_of(&format!("service {action}"));
            let Some(approval) = self.until(&body, |answer| answer["approval"].is_object()).await else { return };
            assert_eq!(approval["verdict"], "DEFER", "{approval:#}");
            let approval = approval["approval"].clone();
            let path = format!("/v1/approvals/{}/approve", approval["id"].as_str().unwrap());
            let vote = json!({"action_digest": approval["action_digest"], "reason": "checked the plan"});
            done_once(&member.manage(Method::POST, &path, &vote).await);
            let Some(_) = self.until(&body, |answer| answer["verdict"] == "ALLOW").await else { return };
            if let Some(again) = self.check(&body).await {
                assert_eq!(again["verdict"], "DEFER", "an approval was used twice: {again:#}");
                // It has opened another one, and a workload may have only some that are pending.
                if let Some(next) = again["approval"]["id"].as_str() {
                    let path = format!("/v1/approvals/{next}/cancel");
                    done_once(&self.manage(Method::POST, &path, &json!({"reason": "no longer needed"})).await);
                }
            }
            let id = approval["id"].as_str().unwrap().to_owned();
            self.shared.came.lock().unwrap().approvals.push(id);
        }
    }

    /// Asks until the answer is as wanted: while no keystore serves, or a gateway does not know every process yet, no
    /// approval is opened or used. None: it ends.
    async fn until(&mut self, body: &Value, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        let began = Instant::now();
        while !self.shared.ends() {
            if let Some(answer) = self.check(body).await {
                if wanted(&answer) {
                    return Some(answer);
                }
                assert_eq!(answer["verdict"], "DEFER", "{answer:#}");
                assert!(began.elapsed() < WAIT_TIMEOUT, "{answer:#}");
                let mut why = answer["issues"].as_array().unwrap().iter().map(|issue| &issue["details"]["approval"]);
                let why = why.find_map(Value::as_str).unwrap_or("no reason");
                self.shared.refused("approval", why);
            }
            tokio::time::sleep(3 * CHECK_INTERVAL).await;
        }
        None
    }

    /// Keys that are made, used and revoked.
    async fn keys(mut self, account: Value) {
        while !self.shared.ends() {
            let wanted = json!({"account": account, "name": "short", "scopes": ["check"]});
            let made = self.manage(Method::POST, "/v1/keys", &wanted).await.expect(201);
            let key = made["key"].as_str().unwrap().to_owned();
            let mut user = Self { api: self.api.with_key(&key), ..self.clone() };
            if let Some(answer) = user.check(&Api::harmless()).await {
                assert_eq!(answer["verdict"], "ALLOW", "{answer:#}");
            }
            let path = format!("/v1/keys/{}", made["id"].as_str().unwrap());
            self.manage(Method::DELETE, &path, &Value::Null).await.expect(204);
            self.until_refused(&user.api).await;
            self.shared.came.lock().unwrap().revoked.push(key);
            tokio::time::sleep(3 * CHECK_INTERVAL).await;
        }
    }

    /// At every gateway. A 503 says that it is not known, which is no right to act.
    async fn until_refused(&self, api: &Api) {
        let revoked = Instant::now();
        let urls = self.shared.urls.read().unwrap().clone();
        for url in urls {
            let gateway = api.at(&url);
            while let Ok(answer) = gateway.try_check(&Api::harmless()).await {
                match answer.status {
                    401 => break,
                    503 => self.shared.refused("revoked key", &answer.text),
                    _ => assert!(revoked.elapsed() < REVOCATION_TIMEOUT, "{}", answer.text),
                }
            }
        }
    }
}

/// A second attempt finds what the first one did, whose answer was lost.
#[track_caller]
fn done_once(answer: &Answer) {
    assert!([200, 409].contains(&answer.status), "{}", answer.text);
}
