//! A simulation: gateways record lines of the same accounts while the log loses, delays and refuses what they append,
//! and while they freeze, die and start again. INVARIANT: what is answered as recorded is in the log once, what is
//! answered as surely not recorded is not, no line is there twice, lines that belong together stand together, and the
//! log verifies.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::LazyLock;

use serde_json::Value;
use stage0_backplane::sim::{Faults, Flaw, Node, Plan, Sim, Test, explore, finds_a_violation, story};
use stage0_backplane::{EntryFilter, Seek};
use stage0_contract::{ChainVerifier, Window};
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::*;

const TEST: Test = Test { package: "stage0-gateway", name: "what_is_answered_as_recorded_is_in_the_log_once" };
const ACCOUNTS: u64 = 2;
/// Checks that one gateway records at the same time.
const CALLERS: u64 = 4;

static BACKPLANE: LazyLock<Backplane> = LazyLock::new(Backplane::embedded);

/// What the caller of a group of lines knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Recorded,
    NotRecorded,
    /// Also while it is under way: its gateway may die.
    Unknown,
}

struct Group {
    account: AccountId,
    lines: usize,
    known: Known,
}

type Groups = Rc<RefCell<Vec<Group>>>;

fn plan() -> Plan {
    Plan { seed: 0, nodes: 3, steps: 120, pace: Duration::from_millis(60), faults: Faults::ALL, flaw: None }
}

fn account(number: u64) -> AccountId {
    AccountId::parse(&format!("acc_{number}")).unwrap()
}

/// Gateways of one place, one after the other.
async fn gateways(sim: Sim, node: Node, groups: Groups) {
    loop {
        let backplane = Backplane { log: node.log(), ..BACKPLANE.clone() };
        let (recorder, writer) = recorder(backplane, Arc::new(KeyCache::new([1; 32])));
        let stop = CancellationToken::new();
        let callers = async {
            let callers = join_all((0..CALLERS).map(|_| call(&sim, &node, &recorder, &groups))).await;
            stop.cancel();
            callers.into_iter().any(|is_over| is_over)
        };
        let (is_over, ()) = tokio::join!(callers, writer.run(stop.clone()));
        node.tell("has ended");
        if is_over {
            return;
        }
    }
}

/// Whether there is nothing left to do.
async fn call(sim: &Sim, node: &Node, recorder: &Recorder, groups: &Groups) -> bool {
    for _ in 0..5 + node.below(30) {
        if !sim.step() {
            return true;
        }
        sleep(node.moment() / 4).await;
        let (account, lines) = (account(node.below(ACCOUNTS)), 1 + usize::try_from(node.below(3)).unwrap());
        let number = {
            let mut groups = groups.borrow_mut();
            groups.push(Group { account: account.clone(), lines, known: Known::Unknown });
            groups.len() - 1
        };
        let line = |at: usize| NewLine {
            kind: LineType::Decision,
            body: format!("{{\"account\":\"{account}\",\"group\":{number},\"at\":{at}}}").into(),
        };
        let (lines, coming) = ((0..lines).map(line).collect(), Some(Arc::new(recorder.announce())));
        // A check takes its time between its announcement and its record.
        sleep(node.moment() / 20).await;
        let group = LineGroup { caller: None, account: account.clone(), retention_days: 30, lines, coming };
        let deadline = Instant::now() + Duration::from_millis(50 + node.below(3_000));
        let known = match recorder.record(group, deadline).await {
            Ok(()) => Known::Recorded,
            Err(NotRecorded::Failed(_) | NotRecorded::CallerStale) => Known::NotRecorded,
            Err(NotRecorded::Late | NotRecorded::Unknown(_)) => Known::Unknown,
        };
        node.tell(format_args!("group {number}: {known:?}"));
        groups.borrow_mut()[number].known = known;
        sim.count(match known {
            Known::Recorded => "recorded",
            Known::NotRecorded => "not recorded",
            Known::Unknown => "unknown",
        });
    }
    false
}

async fn recorders(sim: Sim) -> Result<(), String> {
    let groups = Groups::default();
    let lives = sim.nodes().into_iter().map(|node| {
        let (sim, groups) = (sim.clone(), Rc::clone(&groups));
        spawn_local(async move { node.live(|| gateways(sim.clone(), node.clone(), Rc::clone(&groups))).await })
    });
    for life in lives.collect::<Vec<_>>() {
        life.await.map_err(|error| error.to_string())?;
    }
    sim.calm();
    sim.settle().await;
    let (log, groups) = (sim.observer().log(), groups.take());
    let mut found = vec![0; groups.len()];
    for account in (0..ACCOUNTS).map(account) {
        let until = Instant::now() + Duration::from_secs(9);
        let chunk = log.read(&account, EntryFilter::All, Seek::Start, usize::MAX, until).await;
        let entries = chunk.map_err(|error| error.to_string())?.entries;
        verified(&entries)?;
        for entry in &entries {
            note(entry, &account, &groups, &mut found)?;
        }
    }
    for (number, (group, found)) in groups.into_iter().zip(found).enumerate() {
        let fits = match group.known {
            Known::Recorded => found == 1,
            Known::NotRecorded => found == 0,
            Known::Unknown => found <= 1,
        };
        if !fits {
            return Err(format!("group {number} is {:?}, and the log has it {found} times", group.known));
        }
    }
    Ok(())
}

/// The log as an auditor sees it, without marks.
fn verified(entries: &[Entry]) -> Result<(), String> {
    let now = Clocks::now().wall;
    let window = Window { from: None, to: None, now, horizon: Timestamp::UNIX_EPOCH, kept: None, signed: None };
    let mut verifier = ChainVerifier::new(window, Vec::new(), []);
    entries.iter().flat_map(Entry::lines).for_each(|line| verifier.read_line(line));
    let report = verifier.finish();
    if report.ok { Ok(()) } else { Err(format!("the log does not verify: {:?}", report.findings)) }
}

/// Counts the groups of an entry, each of which must be there as a whole and in its order.
fn note(entry: &Entry, account: &AccountId, groups: &[Group], found: &mut [u32]) -> Result<(), String> {
    let lines: Vec<Value> = entry.lines().map(|line| serde_json::from_slice(line).unwrap()).collect();
    let place = |line: &Value| line["group"].as_u64().zip(line["at"].as_u64());
    let places: Vec<(u64, u64)> = lines.iter().filter_map(place).collect();
    let mut left = &places[..];
    while let Some((number, _)) = left.first() {
        let number = usize::try_from(*number).unwrap();
        let group = &groups[number];
        let whole = (0..group.lines).map(|at| (number as u64, at as u64));
        if group.account != *account || left.len() < group.lines || !whole.eq(left[..group.lines].iter().copied()) {
            return Err(format!("the lines of group {number} do not stand together: {places:?}"));
        }
        left = &left[group.lines..];
        found[number] += 1;
    }
    Ok(())
}

#[test]
fn what_is_answered_as_recorded_is_in_the_log_once() {
    let totals = explore(TEST, &plan(), 200, recorders);
    for what in ["recorded", "not recorded", "unknown", "deaths", "lost answers"] {
        assert!(totals.get(what).is_some_and(|count| *count > 200), "{what}: {totals:?}");
    }
}

#[test]
fn a_log_that_breaks_its_contract_is_found_out() {
    for flaw in [Flaw::StoresTwice, Flaw::Forgets] {
        assert!(finds_a_violation(&Plan { flaw: Some(flaw), ..plan() }, 100, recorders).is_some(), "{flaw:?}");
    }
}

#[test]
fn a_seed_of_the_simulation_of_recorders_gives_the_same_story_each_time() {
    for seed in 1..=3 {
        assert_eq!(story(&plan(), seed, recorders), story(&plan(), seed, recorders), "seed {seed}");
    }
}
