//! Clients that go on asking whatever breaks, and note every request with its answer.
//!
//! Each asks one gateway and, where that does not decide, the other one, as clients behind a balancer do. A check that
//! neither decided has failed; it is asked again under the same `Idempotency-Key` until it is decided.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::plan::Draw;
use super::tenants::{Asker, RUN_LIMIT, Tenants};
use crate::api::{Answer, Api};
use crate::history::{Asked, Broken, Came, Change, History, Op, What};

const CALLERS: usize = 6;
/// Checks of one run, about.
const CHECKS_OF_A_RUN: usize = 12;
/// Checks at once for one approved action.
const STORM: usize = 6;
/// What a client waits for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// How long a client goes on with one check or change.
const GIVE_UP: Duration = Duration::from_secs(60);
const STOP_LASTS: Duration = Duration::from_secs(4);
const CHANGE_INTERVAL: Duration = Duration::from_millis(500);

pub struct Load {
    notes: Arc<Notes>,
    tasks: Vec<JoinHandle<()>>,
}

/// What all clients share.
struct Notes {
    began: Instant,
    seed: u64,
    pause: Duration,
    urls: Vec<String>,
    ops: Mutex<Vec<Op>>,
    faults: Mutex<Vec<Broken>>,
    asked: AtomicUsize,
    decided: AtomicUsize,
    /// No gateway decided it when it was asked first.
    failed: AtomicUsize,
    ends: AtomicBool,
    /// Keys that were made, with clients of them.
    keys: Mutex<Vec<(String, Api)>>,
}

#[derive(Clone)]
struct Request<'r> {
    method: Method,
    path: &'r str,
    /// The `Idempotency-Key`.
    once: Option<&'r str>,
    body: Option<&'r Value>,
}

impl<'r> Request<'r> {
    fn post(path: &'r str, body: &'r Value) -> Self {
        Self { method: Method::POST, path, once: None, body: Some(body) }
    }
}

impl Load {
    /// Callers that pause for this long between two checks.
    pub fn start(tenants: &Arc<Tenants>, urls: &[String], seed: u64, pause: Duration) -> Self {
        let notes = Arc::new(Notes {
            began: Instant::now(),
            seed,
            pause,
            urls: urls.to_vec(),
            ops: Mutex::default(),
            faults: Mutex::default(),
            asked: AtomicUsize::new(0),
            decided: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
            ends: AtomicBool::new(false),
            keys: Mutex::default(),
        });
        let mut tasks: Vec<_> =
            (0..CALLERS).map(|number| tokio::spawn(Arc::clone(&notes).checks(Arc::clone(tenants), number))).collect();
        tasks.push(tokio::spawn(Arc::clone(&notes).approvals(Arc::clone(tenants))));
        tasks.push(tokio::spawn(Arc::clone(&notes).keys(Arc::clone(tenants))));
        tasks.push(tokio::spawn(Arc::clone(&notes).stops(Arc::clone(tenants))));
        Self { notes, tasks }
    }

    /// Since the load began.
    pub fn now(&self) -> Duration {
        self.notes.began.elapsed()
    }

    /// Checks that were asked, that were decided, and that no gateway decided when they were asked first.
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |of: &AtomicUsize| of.load(Ordering::SeqCst);
        (count(&self.notes.asked), count(&self.notes.decided), count(&self.notes.failed))
    }

    /// Waits for so many more decisions; false: they did not come in this time.
    pub async fn goes_on(&self, decisions: usize, within: Duration) -> bool {
        let (goal, began) = (self.counts().1 + decisions, Instant::now());
        while self.counts().1 < goal {
            if began.elapsed() > within {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        true
    }

    pub fn note(&self, fault: Broken) {
        self.notes.faults.lock().unwrap().push(fault);
    }

    /// Calls `read` with what was noted from a moment on.
    pub fn since<T>(&self, from: Duration, read: impl FnOnce(&[Op]) -> T) -> T {
        let ops = self.notes.ops.lock().unwrap();
        // Noted when they end, so everything of that time is behind the first one that ended in it.
        let first = ops.partition_point(|op| op.end < from);
        read(&ops[first..])
    }

    /// Ends the clients: the history, and the keys that were made.
    pub async fn end(self) -> (History, Vec<(String, Api)>) {
        self.notes.ends.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.expect("a client that does not panic");
        }
        let ops = std::mem::take(&mut *self.notes.ops.lock().unwrap());
        let faults = std::mem::take(&mut *self.notes.faults.lock().unwrap());
        let keys = std::mem::take(&mut *self.notes.keys.lock().unwrap());
        (History { ops, faults }, keys)
    }
}

impl Notes {
    fn is_over(&self) -> bool {
        self.ends.load(Ordering::SeqCst)
    }

    /// Sends a request, notes what came of it, and returns the answer.
    async fn send(
        &self,
        api: &Api,
        gateway: usize,
        request: Request<'_>,
        what: impl FnOnce(Option<&Answer>) -> What,
    ) -> Option<Answer> {
        let api = api.at(&self.urls[gateway]);
        let Request { method, path, once, body } = request;
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(once.map(|once| ("idempotency-key", once)));
        let start = self.began.elapsed();
        let sending = api.try_send(method, path, &headers, body.map(|body| body.to_string().into_bytes()));
        let (answer, came) = match tokio::time::timeout(ANSWER_TIMEOUT, sending).await {
            Ok(Ok(answer)) => {
                let came = told(&answer);
                (Some(answer), came)
            }
            Ok(Err(error)) if error.is_connect() => (None, Came::Nothing("no connection".to_owned())),
            Ok(Err(_)) => (None, Came::Nothing("the connection was lost".to_owned())),
            Err(_) => (None, Came::Nothing(format!("no answer in {} s", ANSWER_TIMEOUT.as_secs()))),
        };
        let what = what(answer.as_ref());
        let mut ops = self.ops.lock().unwrap();
        ops.push(Op { start, end: self.began.elapsed(), gateway, what, came });
        drop(ops);
        answer
    }

    /// One attempt of a check: the answer if it is a decision.
    async fn attempt(&self, by: &Asker, asked: &Asked, body: &Value, gateway: usize) -> Option<Value> {
        let once = asked.once.as_deref();
        let request = Request { method: Method::POST, path: "/check", once, body: Some(body) };
        let answer = self.send(&by.api, gateway, request, |_| What::Check(asked.clone())).await?;
        (answer.status == 200).then_some(answer.body)
    }

    /// A check at either gateway, until it is decided.
    async fn check(&self, by: &Asker, asked: Asked, body: &Value, first: usize) {
        let began = Instant::now();
        self.asked.fetch_add(1, Ordering::SeqCst);
        for attempt in 0.. {
            if self.attempt(by, &asked, body, (first + attempt) % self.urls.len()).await.is_some() {
                self.decided.fetch_add(1, Ordering::SeqCst);
                return;
            }
            if attempt + 1 == self.urls.len() {
                self.failed.fetch_add(1, Ordering::SeqCst);
            }
            if attempt > 0 {
                tokio::time::sleep(RETRY_DELAY).await;
            }
            if began.elapsed() > GIVE_UP || (attempt > 0 && self.is_over()) {
                return;
            }
        }
    }

    async fn checks(self: Arc<Self>, tenants: Arc<Tenants>, number: usize) {
        let mut draw = Draw::new(self.seed.wrapping_add(number as u64));
        for round in 0.. {
            if self.is_over() {
                return;
            }
            let once = Some(format!("{number}-{round}"));
            let asked = |by: &Asker| Asked { account: by.account.clone(), key: by.key.clone(), ..Asked::default() };
            let gateway = draw.below(self.urls.len());
            match draw.below(100) {
                0..75 => {
                    let (tenant, which) = (draw.below(tenants.plain.len()), draw.below(3));
                    let by = &tenants.plain[tenant][which];
                    let body = [Api::harmless(), Api::forbidden(), Api::unclear()][which].clone();
                    self.check(by, Asked { once, ..asked(by) }, &body, gateway).await;
                }
                75..98 => {
                    let by = &tenants.runs;
                    let run = format!("run-{}", self.asked.load(Ordering::SeqCst) / (4 * CHECKS_OF_A_RUN));
                    let body = json!({"goal": "Search for Python documentation", "success_criteria": ["found"],
                        "constraints": [format!("max_iterations: {RUN_LIMIT}")], "context": {"run_id": run}});
                    self.check(by, Asked { once, run: Some(run), ..asked(by) }, &body, gateway).await;
                }
                // Most of them are over the limit and get no decision, so no client waits for one.
                _ => drop(self.attempt(&tenants.capped, &asked(&tenants.capped), &Api::harmless(), gateway).await),
            }
            tokio::time::sleep(self.pause).await;
        }
    }

    /// A change at either gateway, until it is acknowledged with this status: the answer.
    async fn change(
        &self,
        api: &Api,
        request: Request<'_>,
        status: u16,
        what: impl Fn(&Value) -> Change,
    ) -> Option<Value> {
        let began = Instant::now();
        for attempt in 0.. {
            let noted =
                |answer: Option<&Answer>| What::Change(what(answer.map_or(&Value::Null, |answer| &answer.body)));
            let answer = self.send(api, attempt % self.urls.len(), request.clone(), noted).await;
            // A vote that was counted and not acknowledged is refused when it is repeated.
            let is_repeated =
                |answer: &Answer| attempt > 0 && answer.status == 409 && request.path.ends_with("/approve");
            if let Some(answer) = answer.filter(|answer| answer.status == status || is_repeated(answer)) {
                return Some(answer.body);
            }
            if began.elapsed() > GIVE_UP || self.is_over() {
                return None;
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
        None
    }

    /// Actions that two people approve, and that many ask for at once.
    async fn approvals(self: Arc<Self>, tenants: Arc<Tenants>) {
        let by = &tenants.agent;
        let asked = || Asked { account: by.account.clone(), key: by.key.clone(), ..Asked::default() };
        for round in 0.. {
            tokio::time::sleep(CHANGE_INTERVAL).await;
            if self.is_over() {
                return;
            }
            let body = Api::deployment_of(&format!("{round}th"));
            let Some(answer) = self.attempt(by, &asked(), &body, round % self.urls.len()).await else { continue };
            let approval = &answer["approval"];
            let Some(id) = approval["id"].as_str() else { continue };
            let vote = json!({"action_digest": approval["action_digest"], "reason": "checked the plan"});
            let mut is_approved = true;
            for member in &tenants.members {
                let path = format!("/v1/approvals/{id}/approve");
                let request = Request::post(&path, &vote);
                let voted = self.change(&member.api, request, 200, |_| Change::Approved(id.to_owned())).await;
                is_approved &= voted.is_some();
            }
            if !is_approved {
                continue;
            }
            let of_it = Asked { approval: Some(id.to_owned()), ..asked() };
            let storm = (0..STORM).map(|number| self.attempt(by, &of_it, &body, number % self.urls.len()));
            join_all(storm).await;
        }
    }

    /// Keys that are made, used, and revoked; those that were revoked are tried again later.
    async fn keys(self: Arc<Self>, tenants: Arc<Tenants>) {
        let mut draw = Draw::new(self.seed ^ 1);
        let mut revoked: Vec<Asker> = Vec::new();
        let asked = |by: &Asker| Asked { account: by.account.clone(), key: by.key.clone(), ..Asked::default() };
        for round in 0.. {
            tokio::time::sleep(CHANGE_INTERVAL).await;
            if self.is_over() {
                return;
            }
            let body = json!({"account": tenants.keys, "name": format!("key {round}"), "scopes": ["check"]});
            let id = |answer: &Value| Change::KeyMade(answer["id"].as_str().unwrap_or_default().to_owned());
            let request = Request::post("/v1/keys", &body);
            let Some(made) = self.change(&tenants.operator, request, 201, id).await else { continue };
            let key = made["id"].as_str().expect("an id").to_owned();
            let api = tenants.operator.with_key(made["key"].as_str().expect("a key"));
            self.keys.lock().unwrap().push((key.clone(), api.clone()));
            let by = Asker { account: tenants.keys.clone(), key: key.clone(), api };
            for gateway in 0..self.urls.len() {
                self.attempt(&by, &asked(&by), &Api::harmless(), gateway).await;
            }
            // One of three stays.
            if draw.below(3) > 0 {
                let path = format!("/v1/keys/{key}");
                let what = |_: &Value| Change::KeyRevoked(key.clone());
                let request = Request { method: Method::DELETE, path: &path, once: None, body: None };
                if self.change(&tenants.operator, request, 204, what).await.is_some() {
                    revoked.push(by);
                }
            }
            for _ in 0..revoked.len().min(4) {
                let by = &revoked[revoked.len() - 1 - draw.below(revoked.len().min(20))];
                self.attempt(by, &asked(by), &Api::harmless(), draw.below(self.urls.len())).await;
            }
        }
    }

    /// An account that is stopped and resumed, and asks all the while.
    async fn stops(self: Arc<Self>, tenants: Arc<Tenants>) {
        let by = &tenants.stopped;
        let asked = || Asked { account: by.account.clone(), key: by.key.clone(), ..Asked::default() };
        let ask_for = async |time: Duration| {
            let (began, mut gateway) = (Instant::now(), 0);
            while began.elapsed() < time && !self.is_over() {
                self.attempt(by, &asked(), &Api::harmless(), gateway % self.urls.len()).await;
                gateway += 1;
                tokio::time::sleep(RETRY_DELAY).await;
            }
        };
        while !self.is_over() {
            let stop = json!({"scope": "account", "reason": "a fault"});
            let named = |answer: &Value| answer["id"].as_str().unwrap_or_default().to_owned();
            let stopped = |answer: &Value| Change::Stopped { id: named(answer), key: by.key.clone() };
            let request = Request::post("/v1/stops", &stop);
            let Some(answer) = self.change(&tenants.stopper, request, 201, stopped).await else { continue };
            ask_for(STOP_LASTS).await;
            if self.is_over() {
                // The last one holds until the end, and must be found there.
                return;
            }
            let id = named(&answer);
            let path = format!("/v1/stops/{id}/resume");
            let resumed = |_: &Value| Change::Resumed { id: id.clone(), key: by.key.clone() };
            let reason = json!({"reason": "the fault is over"});
            let request = Request::post(&path, &reason);
            if self.change(&tenants.operator, request, 200, resumed).await.is_some() {
                ask_for(CHANGE_INTERVAL).await;
            }
        }
    }
}

fn told(answer: &Answer) -> Came {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match (answer.status, text(&answer.body["verdict"]), text(&answer.body["request_id"])) {
        (200, Some(verdict), Some(id)) => Came::Decided { id, verdict, approval: text(&answer.body["approval"]["id"]) },
        (200 | 201 | 204, ..) => Came::Done,
        (status, ..) => {
            let why = text(&answer.body["message"]).unwrap_or_else(|| answer.text.clone());
            Came::Refused { status, why: why.chars().take(160).collect() }
        }
    }
}
