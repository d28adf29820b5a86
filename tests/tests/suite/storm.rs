//! The promise as a whole: processes are killed under load, and still nothing is answered that is not recorded, and
//! every record reaches its auditor, signed and numbered without a gap.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use serde_json::Value;
use stage0_backplane::testing::{NODES, wait_for};
use stage0_tests::{Api, Authority, Delivery, Receiver, Stack, account_scopes};
use tokio::task::JoinHandle;

const CALLERS: usize = 16;
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(30);
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(60);

/// An account, its key, and the endpoint that hears of it.
#[derive(Clone)]
pub(crate) struct Tenant {
    pub(crate) api: Api,
    path: &'static str,
    secret: String,
}

impl Tenant {
    /// A new account, whose events go to this path.
    pub(crate) async fn new(operator: &Api, receiver: &Receiver, path: &'static str) -> Self {
        let (_, key, _) = operator.account(path, None, &account_scopes()).await;
        let api = operator.with_key(&key);
        let (_, secret) = api.webhook(&receiver.url(path)).await;
        Self { api, path, secret }
    }

    /// Every answer (id and verdict) is in the log as it was given, the log is whole, and all of it was delivered.
    pub(crate) async fn assert_kept(&self, receiver: &Receiver, answers: &BTreeMap<String, String>) {
        let api = &self.api;
        let records = api.decisions("limit=1000").await;
        let recorded: BTreeMap<String, String> = records.iter().map(id_and_verdict).collect();
        assert_eq!(recorded.len(), records.len(), "a decision was recorded twice");
        let lost: Vec<_> = answers.iter().filter(|(id, verdict)| recorded.get(*id) != Some(verdict)).collect();
        assert!(lost.is_empty(), "{} of {} answers are not in the log: {lost:?}", lost.len(), answers.len());
        for id in answers.keys().step_by(50) {
            api.get(&format!("/v1/decisions/{id}")).await.expect(200);
        }
        assert_delivered(receiver, self, &recorded).await;
        wait_for("a checkpoint over all", RECOVERY_TIMEOUT, async || api.verify().await["unsealed"] == 0).await;
        let report = api.verify().await;
        assert_eq!(report["ok"], true, "{report:#}");
        assert_eq!(report["records"], recorded.len());
        let (answered, recorded) = (answers.len(), recorded.len());
        eprintln!("{}: {answered} answered, {recorded} recorded, {} writers", self.path, report["writers"]);
    }
}

async fn tenants(stack: &Stack, receiver: &Receiver) -> Vec<Tenant> {
    let mut tenants = Vec::new();
    for path in ["/one", "/two"] {
        tenants.push(Tenant::new(&stack.operator, receiver, path).await);
    }
    tenants
}

/// Callers that ask without a pause, each at whichever gateway is there, and note every answer.
struct Load {
    /// By tenant: id and verdict.
    answers: Vec<Arc<Mutex<BTreeMap<String, String>>>>,
    urls: Arc<RwLock<Vec<String>>>,
    answered: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
    ends: Arc<AtomicBool>,
    callers: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(stack: &Stack, tenants: &[Tenant]) -> Self {
        let mut load = Self {
            answers: tenants.iter().map(|_| Arc::default()).collect(),
            urls: Arc::new(RwLock::new(stack.urls.clone())),
            answered: Arc::default(),
            refused: Arc::default(),
            ends: Arc::default(),
            callers: vec![],
        };
        let callers = (0..CALLERS).map(|number| {
            let tenant = number % tenants.len();
            let (api, answers) = (tenants[tenant].api.clone(), Arc::clone(&load.answers[tenant]));
            let (answered, refused) = (Arc::clone(&load.answered), Arc::clone(&load.refused));
            let (urls, ends) = (Arc::clone(&load.urls), Arc::clone(&load.ends));
            tokio::spawn(async move {
                for round in number.. {
                    if ends.load(Ordering::SeqCst) {
                        return;
                    }
                    let url = {
                        let urls = urls.read().unwrap();
                        urls[round % urls.len()].clone()
                    };
                    let (body, verdict) = match round % 3 {
                        0 => (Api::harmless(), "ALLOW"),
                        1 => (Api::forbidden(), "DENY"),
                        _ => (Api::unclear(), "DEFER"),
                    };
                    match ask(&api.at(&url), &body, verdict).await {
                        Some(id) => {
                            answers.lock().unwrap().insert(id, verdict.to_owned());
                            answered.fetch_add(1, Ordering::SeqCst);
                        }
                        None => {
                            refused.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                }
            })
        });
        load.callers = callers.collect();
        load
    }

    fn answered(&self) -> usize {
        self.answered.load(Ordering::SeqCst)
    }

    /// A random moment: after this many more answers.
    async fn more(&self, answers: usize) {
        let goal = self.answered() + answers;
        wait_for("answers", RECOVERY_TIMEOUT, async || self.answered() >= goal).await;
    }

    /// Until so many more were refused.
    async fn refusals(&self, count: usize) {
        let goal = self.refused.load(Ordering::SeqCst) + count;
        wait_for("refusals", RECOVERY_TIMEOUT, async || self.refused.load(Ordering::SeqCst) >= goal).await;
    }

    fn is_at(&self, urls: &[String]) {
        *self.urls.write().unwrap() = urls.to_vec();
    }

    async fn end(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        for caller in self.callers.drain(..) {
            caller.await.unwrap();
        }
    }
}

/// The id of a decision that was answered with this verdict. Only that, a 503 or a broken connection may happen.
async fn ask(api: &Api, body: &Value, verdict: &str) -> Option<String> {
    let sent = [("content-type", "application/json")];
    let answer =
        api.try_send(reqwest::Method::POST, "/check", &sent, Some(body.to_string().into_bytes())).await.ok()?;
    if answer.status == 503 {
        answer.assert_error(503, "unavailable");
        // A refused client retries a little later, as the answer asks it to.
        tokio::task::yield_now().await;
        return None;
    }
    let answer = answer.expect(200);
    assert_eq!(answer["verdict"], verdict);
    Some(answer["request_id"].as_str().unwrap().to_owned())
}

/// A few of `most`, as a machine's own randomness has it.
fn some(most: usize) -> usize {
    use std::hash::{BuildHasher as _, Hasher as _};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    usize::try_from(random % most as u64).unwrap()
}

async fn assert_kept(stack: &Stack, receiver: &Receiver, tenants: &[Tenant], load: &Load) {
    for (tenant, answers) in tenants.iter().zip(&load.answers) {
        let tenant = Tenant { api: tenant.api.at(&stack.urls[0]), ..tenant.clone() };
        let answers = answers.lock().unwrap().clone();
        tenant.assert_kept(receiver, &answers).await;
    }
}

fn id_and_verdict(record: &Value) -> (String, String) {
    let text = |name: &str| record[name].as_str().unwrap().to_owned();
    (text("request_id"), text("verdict"))
}

async fn assert_delivered(receiver: &Receiver, tenant: &Tenant, recorded: &BTreeMap<String, String>) {
    let came = receiver
        .wait_for("every record without a gap", tenant.path, DELIVERY_TIMEOUT, |came| {
            let ids: BTreeSet<_> = came.iter().map(|delivery| delivery.id().trim_start_matches("dec_")).collect();
            // Events are sent side by side: a checkpoint among the last ones may come after them.
            let sequences: BTreeSet<u64> = came.iter().map(Delivery::sequence).collect();
            let gapless = sequences.iter().copied().eq(1..=sequences.len() as u64);
            (gapless && recorded.keys().all(|id| ids.contains(id.as_str()))).then(|| came.to_vec())
        })
        .await;
    let unsigned = came.iter().filter(|delivery| !delivery.is_signed_by(&tenant.secret)).count();
    assert_eq!(unsigned, 0, "deliveries without a signature that holds");
    let mut bodies: BTreeMap<&str, &[u8]> = BTreeMap::new();
    for delivery in &came {
        let first = bodies.entry(delivery.id()).or_insert(&delivery.body);
        assert_eq!(*first, delivery.body, "{} came with two bodies", delivery.id());
    }
    let delivered: BTreeMap<String, String> = came.iter().filter_map(decision).collect();
    assert_eq!(&delivered, recorded);
    let marks = bodies.keys().filter(|id| id.starts_with("mark_")).count();
    assert_eq!(bodies.len(), delivered.len() + marks);
    let sequences: BTreeSet<u64> = came.iter().map(Delivery::sequence).collect();
    assert_eq!(sequences.len(), bodies.len(), "two events have one number");
    eprintln!("{}: {} deliveries of {} events", tenant.path, came.len(), bodies.len());
}

fn decision(delivery: &Delivery) -> Option<(String, String)> {
    let event = delivery.event();
    (event["type"] == "decision.recorded").then(|| id_and_verdict(&event["data"]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_is_killed_under_load_every_answer_is_recorded_and_every_record_is_delivered() {
    let authority = Authority::default();
    let receiver = Receiver::tls(&authority).await;
    let stack = Stack::build().gateways(2).evaluators(2).exporters(2).private_webhooks().trusting(&authority);
    let mut stack = stack.nats().await;
    let tenants = tenants(&stack, &receiver).await;
    let mut load = Load::start(&stack, &tenants);
    let began = Instant::now();
    let mut rounds = 0;
    while rounds < 2 || began.elapsed() < Duration::from_secs(20) {
        load.more(20 + some(120)).await;
        stack.restart_gateway(rounds % 2);
        load.is_at(&stack.urls);
        load.more(20 + some(120)).await;
        stack.restart_evaluator(rounds % 2);
        load.more(20 + some(120)).await;
        stack.restart_exporter(rounds % 2);
        load.more(20 + some(120)).await;
        stack.start_keystore();
        load.more(20 + some(120)).await;
        if rounds % 2 == 1 {
            // Requests on their way to it are lost with it, which shows only when it is too late to retry.
            stack.nats.as_ref().unwrap().freeze();
            load.refusals(CALLERS).await;
        }
        stack.restart_nats().await;
        rounds += 1;
    }
    load.more(50).await;
    load.end().await;
    let refused = load.refused.load(Ordering::SeqCst);
    eprintln!("{rounds} rounds, {} answers, {refused} refusals, {:?}", load.answered(), began.elapsed());
    assert_kept(&stack, &receiver, &tenants, &load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn dev_killed_under_load_has_recorded_every_answer_and_delivers_every_record() {
    let receiver = Receiver::plain().await;
    let mut stack = Stack::build().private_webhooks().dev().await;
    let tenants = tenants(&stack, &receiver).await;
    let mut load = Load::start(&stack, &tenants);
    for _ in 0..5 {
        load.more(50 + some(200)).await;
        stack.kill_dev();
        stack.start_dev();
        load.is_at(&stack.urls);
    }
    load.more(50).await;
    load.end().await;
    assert_kept(&stack, &receiver, &tenants, &load).await;
}

/// What happens to a server of the cluster.
#[derive(Debug, Clone, Copy)]
enum Loss {
    Killed,
    Frozen,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whichever_of_three_nats_servers_is_lost_checks_go_on_and_every_answer_is_recorded_and_delivered() {
    let authority = Authority::default();
    let receiver = Receiver::tls(&authority).await;
    let stack = Stack::build().clustered().gateways(2).evaluators(2).exporters(2).private_webhooks();
    let mut stack = stack.trusting(&authority).nats().await;
    let tenants = tenants(&stack, &receiver).await;
    let mut load = Load::start(&stack, &tenants);
    load.more(100).await;
    for (node, loss) in (0..NODES).zip([Loss::Killed, Loss::Frozen, Loss::Killed]) {
        let lost = Instant::now();
        match loss {
            Loss::Killed => stack.cluster.as_mut().unwrap().kill(node),
            Loss::Frozen => stack.cluster.as_mut().unwrap().freeze(node),
        }
        // Those of every caller that waited for the lost server.
        load.more(10 * CALLERS).await;
        eprintln!("server {node} {loss:?}: {} answers in {:?}", 10 * CALLERS, lost.elapsed());
        let cluster = stack.cluster.as_mut().unwrap();
        match loss {
            Loss::Killed => cluster.restart(node).await,
            Loss::Frozen => cluster.thaw(node),
        }
        cluster.wait_until_current().await;
        load.more(50).await;
    }
    // A process of each role, while all servers are there.
    stack.restart_gateway(0);
    load.is_at(&stack.urls);
    stack.restart_evaluator(0);
    stack.restart_exporter(0);
    stack.start_keystore();
    load.more(50).await;
    load.end().await;
    stack.cluster.as_ref().unwrap().settle().await;
    let refused = load.refused.load(Ordering::SeqCst);
    eprintln!("{} answers, {refused} refusals", load.answered());
    assert_kept(&stack, &receiver, &tenants, &load).await;
}
