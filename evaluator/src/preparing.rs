//! Turns to parse the rules of published packs for a shard: one at a time, fair between accounts.
//!
//! Checks that need the same engine wait for one of them. An account whose checks need more engines than it has room
//! for has them parsed over and over, in its own turns.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use stage0_contract::AccountId;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{Instant, timeout_at};

use crate::fair_turns::{FairTurns, Turn};

/// More accounts than this have no published packs in use at a shard at once.
const MAX_WAITING: usize = 4_096;

pub(crate) struct Preparing {
    /// Held by the check of an account that waits for a turn, or has it; none: the deployment's.
    first: RefCell<HashMap<Option<AccountId>, Arc<Mutex<()>>>>,
    turns: FairTurns,
}

/// The right to parse.
pub(crate) struct MayPrepare {
    _first: OwnedMutexGuard<()>,
    _turn: Turn,
}

impl Preparing {
    pub(crate) fn new() -> Self {
        Self { first: RefCell::default(), turns: FairTurns::new(MAX_WAITING) }
    }

    /// Waits until this account may have rules parsed; none if that takes too long. `is_done` says that another check
    /// has done it meanwhile.
    pub(crate) async fn turn(
        &self,
        account: Option<&AccountId>,
        deadline: Instant,
        is_done: impl Fn() -> bool,
    ) -> Option<MayPrepare> {
        let account = account.cloned();
        let first = Arc::clone(self.first.borrow_mut().entry(account.clone()).or_default());
        let held = timeout_at(deadline, Arc::clone(&first).lock_owned()).await;
        let turn = match held {
            Ok(held) if is_done() => {
                drop(held);
                None
            }
            Ok(held) => {
                let turn = self.turns.wait(account.as_ref(), deadline).await;
                turn.ok().map(|turn| MayPrepare { _first: held, _turn: turn })
            }
            Err(_) => None,
        };
        drop(first);
        // Those of accounts for which nothing is prepared now.
        self.first.borrow_mut().retain(|_, first| Arc::strong_count(first) > 1);
        turn
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
    async fn many_checks_of_one_account_delay_another_account_by_one_of_them() {
        let (preparing, busy, quiet) = (Preparing::new(), account("busy"), account("quiet"));
        let working = preparing.turn(Some(&busy), soon(), || false).await.unwrap();
        let mut others: Vec<_> = (0..8).map(|_| Box::pin(preparing.turn(Some(&busy), soon(), || false))).collect();
        others.iter_mut().for_each(|one| assert!(one.now_or_never().is_none()));
        let mut its_turn = Box::pin(preparing.turn(Some(&quiet), soon(), || false));
        assert!((&mut its_turn).now_or_never().is_none());
        drop(working);
        assert!(its_turn.now_or_never().flatten().is_some(), "it comes before the others of the busy one");
        drop(others);
        assert!(preparing.turn(None, soon(), || false).await.is_some());
        assert_eq!(preparing.first.borrow().len(), 1, "what is over is forgotten");
    }

    #[tokio::test]
    async fn what_another_check_has_prepared_meanwhile_takes_no_turn() {
        let (preparing, acc) = (Preparing::new(), account("acc"));
        assert!(preparing.turn(Some(&acc), soon(), || true).await.is_none());
        assert!(preparing.turn(Some(&acc), Instant::now(), || false).await.is_some(), "nothing holds it");
    }
}
