//! Evaluators that share runs through a state store: one takes from another's journal, one dies, freezes, is late, or
//! loses an acknowledgement. Each change gives a run the next number, and no number may be given twice.

mod faulty;
mod random;
mod simulated;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use stage0_backplane::embedded::Bus;
use stage0_backplane::{Revision, StateStore};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::records::{Place, StoredRun};
use super::super::{RunCoordinator, RunState};
use super::record::RunRecord;
use super::{GATHER_TIME, Journal, Waiting, take};
use crate::config::RunConfig;
use faulty::{Fault, Faulty};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn evaluator(store: &Arc<Faulty>) -> RunCoordinator {
    RunCoordinator::new(Arc::clone(store) as Arc<dyn StateStore>, RunConfig::default())
}

fn store(bus: &Bus) -> Arc<Faulty> {
    Faulty::over(bus.connect().state_store)
}

/// Why a change has no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Undone {
    Conflict,
    /// It was never sent to be stored.
    Unread,
    /// It may be stored.
    Unknown,
}

/// Gives a run its next number.
async fn count(evaluator: &RunCoordinator, key: &str) -> Result<i64, Undone> {
    count_within(evaluator, key, Duration::from_secs(30)).await
}

async fn count_within(evaluator: &RunCoordinator, key: &str, timeout: Duration) -> Result<i64, Undone> {
    let deadline = Instant::now() + timeout;
    let StoredRun { state, place } = evaluator.read(key, deadline).await.map_err(|_| Undone::Unread)?;
    let mut state = state.unwrap_or_else(|| RunState::new(evaluator.now()));
    state.iterations += 1;
    state.expires_at = evaluator.now() + 86_400;
    let number = state.iterations;
    match evaluator.write(key, state, place, deadline).await {
        Ok(true) => Ok(number),
        Ok(false) => Err(Undone::Conflict),
        Err(_) => Err(Undone::Unknown),
    }
}

/// Until it has one.
async fn surely_count(evaluator: &RunCoordinator, key: &str) -> i64 {
    loop {
        match count(evaluator, key).await {
            Ok(number) => return number,
            Err(Undone::Conflict) => {}
            Err(Undone::Unread | Undone::Unknown) => panic!("the state store failed"),
        }
    }
}

/// Changes a run until the journal holds it; its number then.
async fn held(evaluator: &RunCoordinator, key: &str) -> i64 {
    let mut number = 0;
    while !evaluator.journal.lock().runs.contains_key(key) {
        number = surely_count(evaluator, key).await;
        assert!(number < 100, "{key} is never held");
    }
    // The first change that is the journal's.
    assert_eq!(surely_count(evaluator, key).await, number + 1);
    number + 1
}

async fn names_a_journal(bus: &Bus, key: &str) -> bool {
    let record = bus.connect().state_store.get(key, soon()).await.unwrap().unwrap();
    matches!(RunRecord::parse(&record.value).unwrap(), RunRecord::Held(_))
}

#[tokio::test]
async fn changes_of_many_held_runs_share_a_write() {
    let bus = Bus::new();
    let store = store(&bus);
    let one = evaluator(&store);
    let keys: Vec<String> = (0..20).map(|run| format!("runs.acc.r{run}")).collect();
    let mut before = Vec::new();
    for key in &keys {
        before.push(held(&one, key).await);
    }
    let puts = store.puts();
    let after = join_all(keys.iter().map(|key| surely_count(&one, key))).await;
    assert!(after.iter().zip(&before).all(|(after, before)| *after == before + 1));
    // The first one's write, and one for all that came meanwhile; more of them on a busy machine.
    let puts = store.puts() - puts;
    assert!(puts < keys.len(), "{puts} writes");
}

#[tokio::test(start_paused = true)]
async fn a_small_round_waits_for_as_many_changes_as_the_last_one_had_and_not_for_long() {
    let journal = Journal::new();
    let come = |count| {
        let change = || {
            let (key, base) = ("runs.acc.r".to_owned(), Revision(1));
            Waiting { key, base, deadline: soon(), done: oneshot::channel().0 }
        };
        journal.lock().waiting.extend((0..count).map(|_| change()));
    };
    journal.lock().last_round = 4;
    assert_eq!(journal.gather().now_or_never(), Some(()), "nothing waits");
    come(1);
    let began = Instant::now();
    journal.gather().await;
    let waited = began.elapsed();
    assert!(waited >= GATHER_TIME && waited <= 2 * GATHER_TIME, "{waited:?}");
    let mut gathering = Box::pin(journal.gather());
    assert_eq!(gathering.as_mut().now_or_never(), None);
    journal.filled.notify_waiters();
    assert_eq!(gathering.as_mut().now_or_never(), Some(()));
    come(2);
    assert_eq!(journal.gather().now_or_never(), Some(()), "more than half have come");
}

#[tokio::test]
async fn a_held_run_is_taken_by_another_evaluator_and_only_its_own_change_conflicts() {
    let bus = Bus::new();
    let (one, two) = (evaluator(&store(&bus)), evaluator(&store(&bus)));
    let (taken, kept) = ("runs.acc.taken", "runs.acc.kept");
    let (number, other) = (held(&one, taken).await, held(&one, kept).await);
    assert_eq!(surely_count(&two, taken).await, number + 1);
    assert!(!names_a_journal(&bus, taken).await && names_a_journal(&bus, kept).await);
    // Both are in one round of an evaluator that does not know yet.
    let (late, unaffected) = tokio::join!(count(&one, taken), count(&one, kept));
    assert_eq!((late, unaffected), (Err(Undone::Conflict), Ok(other + 1)));
    assert_eq!(surely_count(&one, taken).await, number + 2);
    assert_eq!(surely_count(&two, taken).await, number + 3);
}

#[tokio::test]
async fn the_runs_of_an_evaluator_that_died_go_on_at_once() {
    let bus = Bus::new();
    let one = evaluator(&store(&bus));
    let keys: Vec<String> = (0..5).map(|run| format!("runs.acc.r{run}")).collect();
    let mut numbers = Vec::new();
    for key in &keys {
        numbers.push(held(&one, key).await);
    }
    drop(one);
    let two = evaluator(&store(&bus));
    for (key, number) in keys.iter().zip(numbers) {
        let shown = two.look(key, soon()).await.unwrap().unwrap();
        assert_eq!(shown.iterations, number, "it is shown without being taken");
        assert_eq!(surely_count(&two, key).await, number + 1);
    }
}

#[tokio::test]
async fn an_evaluator_that_dies_while_it_takes_a_run_loses_no_change() {
    let (bus, key) = (Bus::new(), "runs.acc.r");
    let one = evaluator(&store(&bus));
    let number = held(&one, key).await;
    // Taken, and the run's own record is never written.
    let state_store = bus.connect().state_store;
    let record = state_store.get(key, soon()).await.unwrap().unwrap();
    let RunRecord::Held(record_of_run) = RunRecord::parse(&record.value).unwrap() else { panic!("not held") };
    let day = Duration::from_secs(86_400);
    let taken = take(&*state_store, key, record.revision, record_of_run, day, soon()).await.unwrap();
    assert_eq!(taken.iterations, number);
    assert_eq!(count(&one, key).await, Err(Undone::Conflict), "nothing may follow what was taken");
    // Its entry stays in the journal through other rounds.
    let other = "runs.acc.other";
    held(&one, other).await;
    surely_count(&one, other).await;
    let two = evaluator(&store(&bus));
    assert_eq!(surely_count(&two, key).await, number + 1);
    // The journal's own evaluator finds that out, too.
    one.journal.release_all(&*state_store, soon()).await;
    assert!(one.journal.lock().left.is_empty() && one.journal.lock().runs.is_empty());
    assert_eq!(surely_count(&two, key).await, number + 2);
}

#[tokio::test]
async fn the_journals_evaluator_writes_what_was_taken_where_the_taker_died() {
    let (bus, key) = (Bus::new(), "runs.acc.r");
    let one = evaluator(&store(&bus));
    let number = held(&one, key).await;
    let state_store = bus.connect().state_store;
    let record = state_store.get(key, soon()).await.unwrap().unwrap();
    let RunRecord::Held(held) = RunRecord::parse(&record.value).unwrap() else { panic!("not held") };
    take(&*state_store, key, record.revision, held, Duration::from_secs(86_400), soon()).await.unwrap();
    assert_eq!(count(&one, key).await, Err(Undone::Conflict));
    one.journal.release_all(&*state_store, soon()).await;
    assert!(!names_a_journal(&bus, key).await);
    assert_eq!(surely_count(&one, key).await, number + 1);
}

#[tokio::test]
async fn a_round_without_an_acknowledgement_is_no_answer_and_what_it_stored_counts() {
    for (fault, stored) in [(Fault::LoseAcknowledgement, 1), (Fault::Fail, 0)] {
        let (bus, key) = (Bus::new(), "runs.acc.r");
        let store = store(&bus);
        let one = evaluator(&store);
        let number = held(&one, key).await;
        store.fail_next("runs.journal", fault);
        assert_eq!(count(&one, key).await, Err(Undone::Unknown));
        // Another journal has begun, and the run is taken from the old one.
        assert!(one.journal.lock().runs.is_empty());
        assert_eq!(surely_count(&one, key).await, number + stored + 1);
    }
}

#[tokio::test]
async fn a_round_that_arrives_late_is_refused_once_a_run_of_it_was_taken() {
    let (bus, key, other) = (Bus::new(), "runs.acc.r", "runs.acc.other");
    let store_of_one = store(&bus);
    let (one, two) = (evaluator(&store_of_one), evaluator(&store(&bus)));
    let (number, of_other) = (held(&one, key).await, held(&one, other).await);
    let (release, released) = tokio::sync::oneshot::channel();
    store_of_one.fail_next("runs.journal", Fault::Before(released));
    let mut late = Box::pin(async { tokio::join!(count(&one, key), surely_count(&one, other)) });
    assert!((&mut late).now_or_never().is_none());
    assert_eq!(surely_count(&two, key).await, number + 1, "a frozen evaluator keeps no run");
    release.send(()).unwrap();
    assert_eq!(late.await, (Err(Undone::Conflict), of_other + 1));
    assert_eq!(surely_count(&one, key).await, number + 2);
}

#[tokio::test]
async fn a_run_that_is_taken_while_it_becomes_held_is_not() {
    let (bus, key) = (Bus::new(), "runs.acc.r");
    let store_of_one = store(&bus);
    let (one, two) = (evaluator(&store_of_one), evaluator(&store(&bus)));
    for _ in 0..3 {
        surely_count(&one, key).await;
    }
    // Its record names the journal, and the evaluator of the journal freezes before it knows.
    let (release, released) = tokio::sync::oneshot::channel();
    store_of_one.fail_next(key, Fault::After(released));
    let mut frozen = Box::pin(count(&one, key));
    while !names_a_journal(&bus, key).await {
        assert!((&mut frozen).now_or_never().is_none());
    }
    assert_eq!(surely_count(&two, key).await, 5);
    release.send(()).unwrap();
    assert_eq!(frozen.await, Ok(4), "it was stored, and counted before the other");
    assert_eq!(count(&one, key).await, Err(Undone::Conflict));
    assert_eq!(surely_count(&one, key).await, 6);
}

#[tokio::test]
async fn a_caller_that_leaves_while_it_stores_a_round_takes_none_of_the_others_with_it() {
    let (bus, key, other) = (Bus::new(), "runs.acc.r", "runs.acc.other");
    let store_of_one = store(&bus);
    let one = evaluator(&store_of_one);
    let (number, of_other) = (held(&one, key).await, held(&one, other).await);
    let (_never, released) = tokio::sync::oneshot::channel();
    store_of_one.fail_next("runs.journal", Fault::Before(released));
    let mut leaving = Box::pin(count(&one, key));
    assert!((&mut leaving).now_or_never().is_none());
    let mut waiting = Box::pin(count(&one, other));
    assert!((&mut waiting).now_or_never().is_none());
    drop(leaving);
    assert_eq!(waiting.await, Err(Undone::Conflict), "it is decided again");
    assert_eq!(surely_count(&one, other).await, of_other + 1);
    let next = surely_count(&one, key).await;
    assert_eq!(next, number + 1);
}

#[tokio::test]
async fn a_run_that_is_given_up_has_its_last_state_and_is_held_again_when_it_goes_on() {
    let (bus, key) = (Bus::new(), "runs.acc.r");
    let state_store = bus.connect().state_store;
    let (one, two) = (evaluator(&store(&bus)), evaluator(&store(&bus)));
    let number = held(&one, key).await;
    one.drain().await;
    assert!(!names_a_journal(&bus, key).await);
    assert_eq!(surely_count(&two, key).await, number + 1, "there is nothing to be taken");
    assert_eq!(held(&one, key).await, number + 6, "its checks come here again");
    // With a check of it being decided, it stays.
    let deciding = one.read(key, soon()).await.unwrap();
    one.journal.release(&*state_store, key, soon()).await;
    assert!(names_a_journal(&bus, key).await && matches!(deciding.place, Place::Journal(_)));
    drop(deciding);
    assert!(one.write_tombstone(key, soon()).await.unwrap().is_some_and(|(_, written)| written));
    assert!(two.look(key, soon()).await.unwrap().is_none());
    assert_eq!(surely_count(&two, key).await, 1, "an ended run starts over");
}

#[tokio::test]
async fn a_put_that_may_have_given_a_run_up_leaves_its_state_in_the_journal() {
    let (bus, key, other) = (Bus::new(), "runs.acc.r", "runs.acc.other");
    let store_of_one = store(&bus);
    let (one, two) = (evaluator(&store_of_one), evaluator(&store(&bus)));
    let number = held(&one, key).await;
    held(&one, other).await;
    store_of_one.fail_next(key, Fault::Fail);
    one.journal.release(&*store_of_one, key, soon()).await;
    assert_eq!(one.journal.lock().left.len(), 1);
    surely_count(&one, other).await;
    assert_eq!(surely_count(&two, key).await, number + 1);
}

#[tokio::test]
async fn a_torn_or_lost_journal_makes_no_run_start_over() {
    let (bus, key) = (Bus::new(), "runs.acc.r");
    let one = evaluator(&store(&bus));
    held(&one, key).await;
    let journal = one.journal.lock().id.key();
    drop(one);
    let (state_store, two) = (bus.connect().state_store, evaluator(&store(&bus)));
    let whole = state_store.get(&journal, soon()).await.unwrap().unwrap();
    let torn = whole.value.slice(..whole.value.len() - 1);
    state_store.put(&journal, torn, Some(whole.revision), None, soon()).await.unwrap();
    assert_eq!(count(&two, key).await, Err(Undone::Unread));
    assert!(two.look(key, soon()).await.is_err());
}

#[tokio::test]
async fn a_run_that_became_too_large_for_the_journal_goes_on_without_it() {
    let (bus, key) = (Bus::new(), "runs.acc.r");
    let one = evaluator(&store(&bus));
    let number = held(&one, key).await;
    let StoredRun { state, place } = one.read(key, soon()).await.unwrap();
    let mut large = state.unwrap();
    large.iterations += 1;
    large.calls = (0..150).map(|tool| (format!("{tool:0>90}"), 1)).collect();
    assert!(!one.write(key, large.clone(), place, soon()).await.unwrap());
    let StoredRun { place, .. } = one.read(key, soon()).await.unwrap();
    assert!(matches!(place, Place::Own(_)));
    assert!(one.write(key, large, place, soon()).await.unwrap());
    assert_eq!(surely_count(&one, key).await, number + 2);
    assert!(!names_a_journal(&bus, key).await);
}

#[tokio::test]
async fn runs_that_are_forgotten_soon_are_not_held() {
    let (bus, key) = (Bus::new(), "runs.acc.r");
    let config = RunConfig { kept_for: Duration::from_secs(59), ..RunConfig::default() };
    let one = RunCoordinator::new(bus.connect().state_store, config);
    for _ in 0..10 {
        surely_count(&one, key).await;
    }
    assert!(!names_a_journal(&bus, key).await);
}

#[tokio::test]
async fn a_mark_of_a_run_that_the_journal_never_changed_keeps_the_runs_own_state() {
    let (bus, key) = (Bus::new(), "runs.acc.r");
    let (one, two) = (evaluator(&store(&bus)), evaluator(&store(&bus)));
    for number in 1..=4 {
        assert_eq!(surely_count(&one, key).await, number);
    }
    assert!(names_a_journal(&bus, key).await);
    assert_eq!(surely_count(&two, key).await, 5);
    assert_eq!(count(&one, key).await, Err(Undone::Conflict));
    assert_eq!(surely_count(&one, key).await, 6);
}
