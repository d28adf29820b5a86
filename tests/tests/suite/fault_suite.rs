//! Everything is broken, one thing after the other, on three NATS servers and under load; then what was answered,
//! recorded, delivered, consumed and counted is compared, and one report says what was found.
//!
//! The short form is a part of the ordinary tests: each kind of fault once. The long form, as root:
//!
//! ```text
//! STAGE0_FAULTS=500 STAGE0_FAULT_CHECKS=1000000 STAGE0_FAULT_REPORT=/tmp/faults.md \
//!     cargo test -p stage0-tests --test suite fault_suite
//! ```
//!
//! Targets, partitions and times come from a seed, which is printed and repeated with `STAGE0_SEED`. Processes decide
//! when to act, so the same seed breaks the same things, not at the same instruction.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt as _;
use stage0_backplane::testing::NODES;
use stage0_tests::faults::{
    Deployment, Fault, Kind, Load, Measured, Report, Rolling, Tenants, isolated, measure, plan,
};
use stage0_tests::history::{Broken, Found, check};

const SHORT_FAULTS: usize = Kind::ALL.len();
const SHORT_CHECKS: usize = 300;
/// The short form breaks the same each time, so that what another seed would find is not blamed on what changed. The
/// long form draws one.
const SHORT_SEED: u64 = 122_210_092;
/// Leaves time to whatever runs beside it.
const SHORT_PAUSE: Duration = Duration::from_millis(60);
/// Answers after which they are taken to go on.
const GOING_ON: usize = 20;
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(120);

/// What is wanted of a run.
struct Wanted {
    seed: u64,
    faults: usize,
    checks: usize,
    is_long: bool,
}

impl Wanted {
    fn read() -> Self {
        let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
        let count = |name: &str| number(name).map(|count| usize::try_from(count).unwrap());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let (faults, checks) = (count("STAGE0_FAULTS"), count("STAGE0_FAULT_CHECKS"));
        let is_long = faults.is_some() || checks.is_some();
        let drawn = if is_long { u64::from(now.subsec_nanos()) } else { SHORT_SEED };
        Self {
            seed: number("STAGE0_SEED").unwrap_or(drawn),
            faults: faults.unwrap_or(SHORT_FAULTS),
            checks: checks.unwrap_or(SHORT_CHECKS),
            is_long,
        }
    }

    fn command(&self) -> String {
        let long = format!(" STAGE0_FAULTS={} STAGE0_FAULT_CHECKS={}", self.faults, self.checks);
        let long = if self.is_long { long.as_str() } else { "" };
        format!("STAGE0_SEED={}{long} cargo test -p stage0-tests --test suite fault_suite", self.seed)
    }
}

/// Breaks one thing, mends it, and waits until answers go on.
async fn one(deployment: &mut Deployment, load: &Load, fault: &Fault) -> (Measured, Vec<String>) {
    let from = load.now();
    deployment.inject(fault);
    tokio::time::sleep(fault.hold).await;
    let healed = load.now();
    let crashes = if fault.kind == Kind::Kill { vec![] } else { deployment.ended() };
    let lost = deployment.heal(fault).await;
    let goes_on = load.goes_on(GOING_ON, RECOVERY_TIMEOUT).await;
    assert!(goes_on, "no answers {RECOVERY_TIMEOUT:?} after it was healed: {fault}");
    let until = load.now();
    deployment.all_serve().await;
    load.note(Broken { from, healed, until, what: fault.to_string(), delays_notices: fault.delays_notices() });
    (Measured { lost, ..load.since(from, |ops| measure(ops, from, until)) }, crashes)
}

async fn rolling(deployment: &mut Deployment, load: &Load, servers: usize) -> Rolling {
    let (from, before) = (load.now(), load.counts());
    let mut steps = Vec::new();
    deployment.rolling_restart(servers, |party| steps.push((load.now(), party))).await;
    assert!(load.goes_on(GOING_ON, RECOVERY_TIMEOUT).await, "no answers after a rolling restart");
    let (until, after) = (load.now(), load.counts());
    let what = "rolling restart".to_owned();
    load.note(Broken { from, healed: until, until, what, delays_notices: false });
    let ends = steps.iter().skip(1).map(|(at, _)| *at).chain([until]).collect::<Vec<_>>();
    let mut explained = BTreeMap::new();
    for ((start, party), end) in steps.into_iter().zip(ends) {
        for (reason, count) in load.since(start, |ops| measure(ops, start, end)).failed {
            *explained.entry(format!("while {party} was restarted: {reason}")).or_default() += count;
        }
    }
    Rolling {
        explained,
        took: until - from,
        servers,
        asked: after.0 - before.0,
        failed: after.2 - before.2,
        measured: load.since(from, |ops| measure(ops, from, until)),
    }
}

#[test]
fn whatever_breaks_under_load_no_promise_is_broken() {
    if isolated("fault_suite::whatever_breaks_under_load_no_promise_is_broken") {
        tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap().block_on(run());
    }
}

/// What came of the faults so far.
#[derive(Default)]
struct Seen {
    faults: Vec<(Fault, Measured)>,
    restarts: Vec<Rolling>,
    crashes: Vec<String>,
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic").chars().take(400).collect()
}

async fn break_all(wanted: &Wanted, deployment: &mut Deployment, load: &Load, seen: &mut Seen, began: Instant) {
    for (number, fault) in plan(wanted.seed, wanted.faults).into_iter().enumerate() {
        let measured = if fault.kind == Kind::RollingRestart {
            let servers = if wanted.is_long { NODES } else { 1 };
            let rolling = rolling(deployment, load, servers).await;
            let measured = rolling.measured.clone();
            seen.restarts.push(rolling);
            measured
        } else {
            let (measured, ended) = one(deployment, load, &fault).await;
            seen.crashes.extend(ended.into_iter().map(|ended| format!("during {fault}: {ended}")));
            measured
        };
        eprintln!("{:?}: {}: {fault}: {:?} without an answer", began.elapsed(), number + 1, measured.silence);
        seen.faults.push((fault, measured));
    }
    while load.counts().1 < wanted.checks {
        let (goes_on, left) = (load.goes_on(GOING_ON, RECOVERY_TIMEOUT).await, wanted.checks - load.counts().1);
        assert!(goes_on, "no answers after the last fault, {left} checks before the end");
    }
}

async fn run() {
    let wanted = Wanted::read();
    eprintln!("to repeat it: {}", wanted.command());
    let began = Instant::now();
    let Some(mut deployment) = Deployment::start(wanted.checks as u64).await else { return };
    let tenants = std::sync::Arc::new(Tenants::new(&deployment).await);
    let pause = if wanted.is_long { Duration::ZERO } else { SHORT_PAUSE };
    let load = Load::start(&tenants, &deployment.urls, wanted.seed, pause);
    assert!(load.goes_on(GOING_ON, RECOVERY_TIMEOUT).await, "no answers before the first fault");
    eprintln!("{:?}: answers", began.elapsed());
    let mut seen = Seen::default();
    let breaking = break_all(&wanted, &mut deployment, &load, &mut seen, began);
    // Whatever goes wrong, there is a report.
    if let Err(panic) = AssertUnwindSafe(breaking).catch_unwind().await {
        seen.crashes.push(format!("the run ended early: {}", said(&*panic)));
    }
    let checks = load.counts();
    let (history, keys) = load.end().await;
    eprintln!("{:?}: {} of {} checks decided", began.elapsed(), checks.1, checks.0);
    // What a client reads may be wrong then, so what follows is compared all the same.
    if AssertUnwindSafe(deployment.cluster.settle()).catch_unwind().await.is_err() {
        let differences = deployment.cluster.differences().await.join("; ");
        seen.crashes.push(format!("the NATS servers do not agree a minute after the last fault: {differences}"));
    }
    let reading = tenants.find(&deployment, &history, &keys);
    let found = AssertUnwindSafe(reading).catch_unwind().await;
    eprintln!("{:?}: everything is read back", began.elapsed());
    seen.crashes.extend(deployment.ended());
    seen.crashes.extend(deployment.panics());
    let (findings, found) = match found {
        Ok(found) => (check(&history, &found, &tenants.rules()), found),
        Err(panic) => {
            seen.crashes.push(format!("nothing could be compared: {}", said(&*panic)));
            (vec![], Found::default())
        }
    };
    let Seen { faults, restarts, crashes } = seen;
    let (seed, command, took) = (wanted.seed, wanted.command(), began.elapsed());
    let report = Report { seed, command, took, faults, rolling: restarts, checks, crashes, findings };
    let path = report.write(if wanted.is_long { "long" } else { "short" }, &history, &found);
    eprintln!("the report: {}", path.display());
    for finding in report.findings.iter().take(10) {
        eprintln!("BROKEN: {}: {}\n{}", finding.promise, finding.about, finding.story.join("\n"));
    }
    assert!(report.is_clean(), "a promise was broken: {}; {:?}", path.display(), report.crashes);
}
