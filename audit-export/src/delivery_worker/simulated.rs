//! A simulation: exporters take one endpoint over from each other while log, state store and receiver fail, and while
//! their clocks differ by as much as they may. INVARIANT: the number of an event is its place among the events of the
//! log, whichever exporter sends it and however often; nothing is sent on an old lease; and each event arrives or is
//! still open in the stored cursor.

use std::sync::{LazyLock, Mutex};

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use stage0_backplane::clock::Clocks;
use stage0_backplane::sim::{Fault, Faults, Flaw, Node, Plan, Sim, Test, explore, finds_a_violation, story};
use stage0_backplane::{Backplane, Batch, WaitReason};
use stage0_contract::{AccountId, Endpoint};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::sleep;

use super::*;
use crate::clock::Clock;
use crate::cursor::{Cursor, LeaseHolder};
use crate::egress::{Egress, EgressConfig, Resolver, Response, SendError};
use crate::lag::LagTracker;
use crate::reads::LogReads;
use crate::shared::lock;

const TEST: Test = Test { package: "stage0-audit-export", name: "each_event_has_one_number_and_arrives" };
const SECOND: Duration = Duration::from_secs(1);
/// Two workers' clocks differ by at most the time between the end of trust in a lease and its end.
const MAX_CLOCK_ERROR_MILLIS: u64 = 1_400;
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// With faults over, events whose attempts failed twice are tried again within this time.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(600);

/// Never used; reading the system's certificates takes long.
static EGRESS: LazyLock<Arc<Egress>> =
    LazyLock::new(|| Arc::new(Egress::build(&EgressConfig::default(), Resolver::System).unwrap()));
static BACKPLANE: LazyLock<Backplane> = LazyLock::new(Backplane::embedded);

/// The endpoint, as one exporter reaches it.
#[derive(Clone)]
pub(crate) struct Receiver {
    sim: Sim,
    node: Node,
    worker: Uuid,
    /// How often each number arrived.
    arrived: Arc<Mutex<Vec<u32>>>,
}

impl Receiver {
    pub(crate) async fn receive(&self, event: &str, body: &Bytes) -> Result<Response, SendError> {
        let body: Value = serde_json::from_slice(body).unwrap();
        let number = body["data"]["sequence"].as_u64().unwrap();
        self.sim.count("attempts");
        let holder = stored::<Held>(&self.sim).and_then(|held| held.holder).map(|holder| holder.worker);
        if holder != Some(self.worker) && !self.node.is_frozen() {
            self.sim.violated(format!("{number} is sent by {}, and {holder:?} holds the lease", self.worker));
        }
        if event != event_of(number) {
            self.sim.violated(format!("{number} is the number of {event}"));
        }
        self.node.tell(format_args!("sends {number}"));
        let (arrived, status) = (Arc::clone(&self.arrived), if self.node.chance(60) { 503 } else { 200 });
        let arrive = move || {
            let (mut arrived, number) = (lock(&arrived), usize::try_from(number).unwrap());
            if arrived.len() <= number {
                arrived.resize(number + 1, 0);
            }
            arrived[number] += 1;
        };
        match self.node.call(Instant::now() + ATTEMPT_TIMEOUT, arrive).await {
            Some(()) => Ok(Response { status, retry_after: None }),
            None => Err(SendError::Timeout),
        }
    }
}

fn plan() -> Plan {
    // Leases of cursors go by the exporters' wall clocks: one that is set further than that lets two send for seconds.
    let faults = Faults::ALL.without(Fault::ClockSet);
    Plan { seed: 0, nodes: 3, steps: 40, pace: 3 * SECOND, faults, flaw: None }
}

fn event_of(number: u64) -> String {
    format!("dec_d{number}")
}

fn account() -> AccountId {
    AccountId::parse("acc_1").unwrap()
}

fn endpoint() -> Arc<DeliveryEndpoint> {
    let endpoint: Endpoint = serde_json::from_value(json!({
        "id": "wh_1", "account": "acc_1", "url": "https://receiver.example/", "verdicts": null, "environments": null,
        "description": "", "rate_limit": null, "enabled": true, "disabled_reason": null,
        "created_at": "2026-01-01T00:00:00Z", "secrets": [], "retention_days": 30,
    }))
    .unwrap();
    Arc::new(endpoint.into())
}

/// The part of a cursor that tells who holds the lease.
#[derive(Deserialize)]
struct Held {
    holder: Option<LeaseHolder>,
}

fn stored<Part: DeserializeOwned>(sim: &Sim) -> Option<Part> {
    let stored = sim.peek("cursor.wh_1")?;
    Some(serde_json::from_slice(&stored).unwrap())
}

/// What the processes of a run share.
#[derive(Clone)]
struct Run {
    sim: Sim,
    arrived: Arc<Mutex<Vec<u32>>>,
    wake: Arc<Notify>,
    over: CancellationToken,
}

/// Exporters of one place, one after the other; each has its own clock.
async fn exporters(run: Run, node: Node) {
    while !run.over.is_cancelled() {
        let error = SignedDuration::from_millis(i64::try_from(node.below(2 * MAX_CLOCK_ERROR_MILLIS)).unwrap());
        let error = error - SignedDuration::from_millis(i64::try_from(MAX_CLOCK_ERROR_MILLIS).unwrap());
        let clocks = move || {
            let Clocks { wall, boot } = Clocks::now();
            Clocks { wall: wall + error, boot }
        };
        let worker_id = Uuid::from_u64_pair(node.number() as u64 + 1, node.below(1 << 32));
        let Run { sim, arrived, .. } = run.clone();
        let receiver = Receiver { sim, node: node.clone(), worker: worker_id, arrived };
        let shared = Shared {
            backplane: Backplane { log: node.log(), state_store: node.state_store(), ..BACKPLANE.clone() },
            egress: Arc::clone(&EGRESS),
            receiver: Some(receiver),
            worker_id,
            lag: LagTracker::default(),
            clock: Clock::new(Arc::new(clocks)),
            reads: LogReads::default(),
            unlisted: WaitReason::default(),
        };
        let (_changes, watched) = watch::channel(endpoint());
        let wake = Arc::clone(&run.wake);
        let worker = DeliveryWorker { shared: Arc::new(shared), endpoint: watched, wake, overlong_lease: None };
        let (stop, stint) = (run.over.child_token(), node.moment() * 15);
        let stops = async {
            sleep(stint).await;
            stop.cancel();
        };
        tokio::select! {
            biased;
            () = worker.run(stop.clone()) => {}
            () = async { stops.await; std::future::pending().await } => {}
        }
        node.tell("has ended");
    }
}

/// Records decisions; how many.
async fn record(run: Run) -> u64 {
    let (recorder, mut recorded) = (run.sim.observer(), 0);
    while run.sim.step() {
        sleep(recorder.moment() / 2).await;
        let first = recorded + 1;
        recorded += 1 + recorder.below(3);
        let now = Clocks::now().wall;
        let lines = (first..=recorded).map(|number| {
            let line = json!({
                "type": "decision.recorded", "account": "acc_1", "request_id": format!("d{number}"),
                "recorded_at": now.to_string(), "expires_at": now.as_second() + 30 * 86_400, "verdict": "DENY",
            });
            line.to_string()
        });
        let lines = lines.collect::<Vec<_>>().join("\n");
        let batch = Batch { account: account(), id: format!("to-{recorded}"), lines: lines.into() };
        assert_eq!(recorder.log().append(vec![batch], Instant::now() + SECOND).await, [Ok(())]);
        if recorder.chance(700) {
            run.wake.notify_waiters();
        }
    }
    recorded
}

async fn deliveries(sim: Sim) -> Result<(), String> {
    let run = Run { sim, arrived: Arc::default(), wake: Arc::default(), over: CancellationToken::new() };
    let lives: Vec<JoinHandle<()>> = run
        .sim
        .nodes()
        .into_iter()
        .map(|node| {
            let run = run.clone();
            spawn_local(async move { node.live(|| exporters(run.clone(), node.clone())).await })
        })
        .collect();
    let recorded = record(run.clone()).await;
    let Run { sim, arrived, over, .. } = run;
    sim.calm();
    let all_arrived = || (1..=recorded).all(|number| arrivals(&arrived, number) > 0);
    let began = Instant::now();
    while began.elapsed() < DRAIN_TIMEOUT && !all_arrived() {
        sleep(SECOND).await;
    }
    over.cancel();
    for life in lives {
        life.await.map_err(|error| error.to_string())?;
    }
    sim.settle().await;
    let cursor: Cursor = stored(&sim).ok_or("there is no cursor")?;
    if cursor.next_sequence() != recorded + 1 {
        return Err(format!("{recorded} events are recorded, and the next number is {}", cursor.next_sequence()));
    }
    if let Some(holder) = &cursor.holder {
        return Err(format!("all have ended, and the lease is held: {holder:?}"));
    }
    for number in 1..=recorded {
        let is_open = cursor.due(Timestamp::MAX).any(|open| open.sequence == number && open.event == event_of(number));
        if arrivals(&arrived, number) == 0 && !is_open {
            return Err(format!("{number} has neither arrived nor is it open"));
        }
        if arrivals(&arrived, number) > 1 {
            sim.count("sent again");
        }
    }
    Ok(())
}

fn arrivals(arrived: &Mutex<Vec<u32>>, number: u64) -> u32 {
    lock(arrived).get(usize::try_from(number).unwrap()).copied().unwrap_or_default()
}

#[test]
fn each_event_has_one_number_and_arrives() {
    let totals = explore(TEST, &plan(), 150, deliveries);
    for what in ["attempts", "sent again", "deaths", "freezes"] {
        assert!(totals.get(what).is_some_and(|count| *count > 300), "{what}: {totals:?}");
    }
}

#[test]
fn an_endpoint_on_a_store_that_breaks_its_contract_is_found_out() {
    for flaw in [Flaw::IgnoresExpected, Flaw::Forgets] {
        assert!(finds_a_violation(&Plan { flaw: Some(flaw), ..plan() }, 100, deliveries).is_some(), "{flaw:?}");
    }
}

#[test]
fn a_seed_of_the_simulation_of_deliveries_gives_the_same_story_each_time() {
    for seed in 1..=3 {
        assert_eq!(story(&plan(), seed, deliveries), story(&plan(), seed, deliveries), "seed {seed}");
    }
}
