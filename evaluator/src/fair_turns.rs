//! Long work that is done one after the other, fair between accounts: each account has at most one piece that waits or
//! is being done, and they come in the order in which they asked. The deployment's own comes before all that wait.
//!
//! INVARIANT: a turn lasts until it is dropped, whether its caller still waits or not. So the work must be bounded.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stage0_contract::AccountId;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

/// Whose work it is; none: the deployment's.
type Owner = Option<AccountId>;

/// Turns of one kind of work.
#[derive(Debug, Clone)]
pub(crate) struct FairTurns(Arc<Line>);

#[derive(Debug)]
struct Line {
    max_waiting: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Whose turn it is.
    working: Option<Owner>,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    owner: Owner,
    turn: oneshot::Sender<Turn>,
}

/// The right to work; the next one gets it when this is dropped.
#[derive(Debug)]
pub(crate) struct Turn(Option<Arc<Line>>);

/// Why there is no turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoTurn;

impl FairTurns {
    /// At most so many accounts wait; the deployment has a place beside them.
    pub(crate) fn new(max_waiting: usize) -> Self {
        Self(Arc::new(Line { max_waiting, state: Mutex::default() }))
    }

    /// Waits for a turn. Fails at once if this owner has one or waits for one already, or too many others do.
    pub(crate) async fn wait(&self, owner: Option<&AccountId>, deadline: Instant) -> Result<Turn, NoTurn> {
        let waiting = {
            let mut state = self.0.lock();
            state.waiting.retain(|waiting| !waiting.turn.is_closed());
            let owner = owner.cloned();
            let is_known = state.working.as_ref() == Some(&owner) || state.waiting.iter().any(|one| one.owner == owner);
            let others = state.waiting.iter().filter(|one| one.owner.is_some()).count();
            if is_known || (owner.is_some() && others >= self.0.max_waiting) {
                return Err(NoTurn);
            }
            if state.working.is_none() {
                state.working = Some(owner);
                return Ok(Turn(Some(Arc::clone(&self.0))));
            }
            let (turn, waiting) = oneshot::channel();
            match owner {
                None => state.waiting.push_front(Waiting { owner, turn }),
                Some(_) => state.waiting.push_back(Waiting { owner, turn }),
            }
            waiting
        };
        match timeout_at(deadline, waiting).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => Err(NoTurn),
        }
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the turn to the next one that still waits.
    fn pass_on(self: &Arc<Self>) {
        loop {
            let next = {
                let mut state = self.lock();
                let next = state.waiting.pop_front();
                state.working = next.as_ref().map(|next| next.owner.clone());
                next
            };
            let Some(Waiting { turn, .. }) = next else { return };
            match turn.send(Turn(Some(Arc::clone(self)))) {
                Ok(()) => return,
                // It gave up. Its turn ends here, and must not pass on by itself.
                Err(mut unused) => drop(unused.0.take()),
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(line) = self.0.take() {
            line.pass_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;

    fn account(name: &str) -> AccountId {
        AccountId::parse(name).unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn a_quiet_account_waits_for_one_piece_of_work_of_a_busy_one() {
        let (turns, busy, quiet) = (FairTurns::new(4), account("busy"), account("quiet"));
        let first = turns.wait(Some(&busy), soon()).await.unwrap();
        // While its work is done, or waits, the busy account is refused at once.
        for _ in 0..8 {
            assert_eq!(turns.wait(Some(&busy), soon()).await.err(), Some(NoTurn));
        }
        let mut its_turn = Box::pin(turns.wait(Some(&quiet), soon()));
        assert!((&mut its_turn).now_or_never().is_none());
        drop(first);
        let mut again = Box::pin(turns.wait(Some(&busy), soon()));
        assert!((&mut again).now_or_never().is_none(), "the quiet one comes first");
        let quiet = its_turn.await.unwrap();
        drop(quiet);
        assert!(again.await.is_ok());
    }

    #[tokio::test]
    async fn the_deployments_own_has_a_place_and_comes_first() {
        let turns = FairTurns::new(2);
        let working = turns.wait(Some(&account("a")), soon()).await.unwrap();
        let (b, c) = (account("b"), account("c"));
        let mut waiting = [Box::pin(turns.wait(Some(&b), soon())), Box::pin(turns.wait(Some(&c), soon()))];
        waiting.iter_mut().for_each(|one| assert!(one.now_or_never().is_none()));
        assert_eq!(turns.wait(Some(&account("d")), soon()).await.err(), Some(NoTurn), "no place is left");
        let mut own = Box::pin(turns.wait(None, soon()));
        assert!((&mut own).now_or_never().is_none());
        assert_eq!(turns.wait(None, soon()).await.err(), Some(NoTurn), "one of its own at a time");
        drop(working);
        let own = own.await.unwrap();
        waiting.iter_mut().for_each(|one| assert!(one.now_or_never().is_none()));
        drop(own);
        let [b, c] = waiting;
        drop(b.await.unwrap());
        drop(c.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_gave_up_holds_no_turn_and_no_place() {
        let (turns, late) = (FairTurns::new(1), account("late"));
        let working = turns.wait(Some(&account("a")), soon()).await.unwrap();
        assert_eq!(turns.wait(Some(&late), Instant::now()).await.err(), Some(NoTurn));
        let mut next = Box::pin(turns.wait(Some(&late), soon()));
        assert!((&mut next).now_or_never().is_none(), "its place is free again");
        drop(working);
        // The turn was handed over, and is passed on although it was never taken.
        drop(next);
        assert!(turns.wait(Some(&account("b")), Instant::now()).await.is_ok());
    }
}
