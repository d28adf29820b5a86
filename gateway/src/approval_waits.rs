//! Calls that wait for an approval to change: who waits for which, and how many there are.
//!
//! Evaluators publish which approvals they changed; a gateway subscribes once, and wakes those that wait for one of
//! them. A notice may be lost, so a waiting call reads again every few seconds anyway. INVARIANT: a call counts against
//! its key and account until its [`Wait`] is dropped; it ends when its client closes the connection.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::error::Error;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stage0_backplane::{Backplane, Event, ServeError};
use stage0_contract::{AccountId, ApprovalId, ApprovalsChanged, KeyId, KeyIdentity};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::metrics;

const MAX_WAITS_OF_ACCOUNT: usize = 200;
const MAX_WAITS_OF_KEY: usize = 20;
/// Notices are best effort.
const READ_INTERVAL: Duration = Duration::from_secs(5);
const SUBSCRIBE_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Whose waiting calls are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitsOf {
    Key,
    Account,
}

#[derive(Default)]
pub(crate) struct ApprovalWaits {
    waiting: Mutex<Waiting>,
    ended: CancellationToken,
}

#[derive(Default)]
struct Waiting {
    accounts: HashMap<AccountId, usize>,
    keys: HashMap<KeyId, usize>,
    approvals: HashMap<(AccountId, ApprovalId), watch::Sender<()>>,
}

/// One waiting call.
pub(crate) struct Wait {
    waits: Arc<ApprovalWaits>,
    account: AccountId,
    key_id: KeyId,
    id: ApprovalId,
    changes: watch::Receiver<()>,
}

impl ApprovalWaits {
    /// From now on changes of the approval wake the call, unless too many calls wait.
    pub(crate) fn begin(self: &Arc<Self>, identity: &KeyIdentity, id: &ApprovalId) -> Result<Wait, WaitsOf> {
        let (account, key_id) = (identity.account.clone(), identity.key_id.clone());
        let mut waiting = self.lock();
        if waiting.keys.get(&key_id).is_some_and(|waits| *waits >= MAX_WAITS_OF_KEY) {
            return Err(WaitsOf::Key);
        }
        if waiting.accounts.get(&account).is_some_and(|waits| *waits >= MAX_WAITS_OF_ACCOUNT) {
            return Err(WaitsOf::Account);
        }
        *waiting.keys.entry(key_id.clone()).or_default() += 1;
        *waiting.accounts.entry(account.clone()).or_default() += 1;
        let changes = waiting.approvals.entry((account.clone(), id.clone())).or_insert_with(|| watch::channel(()).0);
        let changes = changes.subscribe();
        metrics::wait_began();
        Ok(Wait { waits: Arc::clone(self), account, key_id, id: id.clone(), changes })
    }

    /// Receives notices of changed approvals. Never returns.
    pub(crate) async fn listen(&self, backplane: &Backplane) {
        loop {
            if let Err(error) = self.receive(backplane).await {
                tracing::warn!(error = &error as &dyn Error, "cannot hear of changed approvals, waiting calls poll");
            }
            tokio::time::sleep(SUBSCRIBE_RETRY_DELAY).await;
        }
    }

    async fn receive(&self, backplane: &Backplane) -> Result<(), ServeError> {
        let mut notices = backplane.notices.subscribe::<ApprovalsChanged>().await?;
        while let Some(event) = notices.next().await {
            let waiting = self.lock();
            match event {
                Event::Message(ApprovalsChanged { account, ids }) => {
                    let changed = ids.into_iter().filter_map(|id| waiting.approvals.get(&(account.clone(), id)));
                    changed.for_each(|changes| changes.send_replace(()));
                }
                Event::Gap => waiting.approvals.values().for_each(|changes| changes.send_replace(())),
            }
        }
        Ok(())
    }

    /// The gateway drains: every call is answered now.
    pub(crate) fn end(&self) {
        self.ended.cancel();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wait {
    /// Waits until the approval may have changed; false once `until` has passed, or the gateway drains.
    pub(crate) async fn changed(&mut self, until: Instant) -> bool {
        let read_again = Instant::now() + READ_INTERVAL;
        tokio::select! {
            biased;
            () = self.waits.ended.cancelled() => false,
            // The sender lives as long as this does.
            _ = self.changes.changed() => true,
            () = sleep(until.min(read_again).saturating_duration_since(Instant::now())) => read_again < until,
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut waiting = self.waits.lock();
        leave(&mut waiting.keys, &self.key_id);
        leave(&mut waiting.accounts, &self.account);
        if let Entry::Occupied(changes) = waiting.approvals.entry((self.account.clone(), self.id.clone()))
            && changes.get().receiver_count() <= 1
        {
            changes.remove();
        }
        metrics::wait_ended();
    }
}

fn leave<K: Eq + Hash + Clone>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Entry::Occupied(mut count) = counts.entry(key.clone()) {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stage0_contract::{AccountRules, Caps, Limits, Plan, Scopes};

    fn identity(account: &str, key: &str) -> KeyIdentity {
        KeyIdentity {
            key_id: KeyId::parse(key).unwrap(),
            account: AccountId::parse(account).unwrap(),
            scopes: Scopes::new(),
            plan: Plan::Free,
            expires_at: None,
            retention_days: 30,
            limits: Limits::NONE,
            require_run_id: false,
            caps: Caps::NONE,
            holder: None,
            key_name: None,
            groups: None,
            rules: AccountRules::default(),
        }
    }

    fn id(text: &str) -> ApprovalId {
        ApprovalId::parse(text).unwrap()
    }

    fn in_a_minute() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn a_key_and_an_account_have_so_many_waits_and_a_dropped_one_is_free_again() {
        let waits = Arc::new(ApprovalWaits::default());
        let begin = |account: &str, key: &str| waits.begin(&identity(account, key), &id("apr_1"));
        let mut of_key: Vec<Wait> = (0..MAX_WAITS_OF_KEY).map(|_| begin("a", "k").ok().unwrap()).collect();
        assert_eq!(begin("a", "k").err(), Some(WaitsOf::Key));
        of_key.pop();
        of_key.push(begin("a", "k").ok().unwrap());
        let others: Vec<Wait> = (MAX_WAITS_OF_KEY..MAX_WAITS_OF_ACCOUNT)
            .map(|n| begin("a", &format!("k{}", n / MAX_WAITS_OF_KEY)).ok().unwrap())
            .collect();
        assert_eq!(begin("a", "fresh").err(), Some(WaitsOf::Account));
        assert!(begin("b", "other").is_ok(), "another account is another");
        drop((of_key, others));
        let waiting = waits.lock();
        assert!(waiting.keys.is_empty() && waiting.accounts.is_empty() && waiting.approvals.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_notice_wakes_the_calls_of_its_approval_and_account_alone() {
        let (backplane, waits) = (Backplane::embedded(), Arc::new(ApprovalWaits::default()));
        let mut mine = waits.begin(&identity("a", "k"), &id("apr_1")).ok().unwrap();
        let mut other = waits.begin(&identity("a", "k"), &id("apr_2")).ok().unwrap();
        let mut foreign = waits.begin(&identity("b", "l"), &id("apr_1")).ok().unwrap();
        let notice = ApprovalsChanged { account: AccountId::parse("a").unwrap(), ids: vec![id("apr_1")] };
        let publishing = async {
            // Before the subscription, notices are lost.
            loop {
                backplane.notices.publish(&notice).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let woken = tokio::select! {
            woken = mine.changed(in_a_minute()) => woken,
            () = waits.listen(&backplane) => false,
            () = publishing => false,
        };
        assert!(woken);
        assert!(!other.changes.has_changed().unwrap() && !foreign.changes.has_changed().unwrap());
        let soon = Instant::now() + Duration::from_secs(1);
        assert!(!other.changed(soon).await && !foreign.changed(soon).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_reads_again_every_few_seconds_until_its_time_is_over_or_the_gateway_drains() {
        let waits = Arc::new(ApprovalWaits::default());
        let mut wait = waits.begin(&identity("a", "k"), &id("apr_1")).ok().unwrap();
        let (began, until) = (Instant::now(), Instant::now() + Duration::from_secs(12));
        assert!(wait.changed(until).await && wait.changed(until).await && !wait.changed(until).await);
        assert_eq!(began.elapsed(), Duration::from_secs(12));
        waits.end();
        assert!(!wait.changed(in_a_minute()).await);
        assert_eq!(began.elapsed(), Duration::from_secs(12));
    }
}
