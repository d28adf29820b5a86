//! All endpoints and their couriers: who should run, who runs.
//!
//! Owns the list as the keystore has it, fetched whole at start, on every notice and every half minute; a courier for each endpoint
//! that is enabled; and waking them when decisions are recorded. A list that cannot be had changes nothing: couriers go on, and it is asked
//! for again a second later.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use stage0_backplane::Event;
use stage0_contract::{
    AccountId, DecisionsRecorded, Endpoint, EndpointsPage, ListEndpoints, ManageReply, WebhookChanged, WebhookId,
};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::courier::Courier;
use crate::metrics;
use crate::shared::Shared;

const LIST_EVERY: Duration = Duration::from_secs(30);
const LIST_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Endpoints by id, for everybody in this worker.
#[derive(Clone, Default)]
pub(crate) struct Directory(Arc<RwLock<HashMap<WebhookId, Arc<Endpoint>>>>);

impl Directory {
    /// The endpoint, if it is this account's.
    pub(crate) fn find(&self, account: &AccountId, id: &WebhookId) -> Option<Arc<Endpoint>> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.get(id).filter(|endpoint| endpoint.webhook.account == *account).cloned()
    }

    fn replace(&self, all: HashMap<WebhookId, Arc<Endpoint>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = all;
    }
}

/// One courier that runs.
struct Running {
    endpoint: watch::Sender<Arc<Endpoint>>,
    wake: Arc<Notify>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// The loop that starts and stops couriers.
pub(crate) struct Endpoints {
    shared: Arc<Shared>,
    directory: Directory,
    running: HashMap<WebhookId, Running>,
    /// Couriers that were told to stop.
    ending: Vec<JoinHandle<()>>,
}

impl Endpoints {
    pub(crate) fn new(shared: Arc<Shared>, directory: Directory) -> Self {
        Self { shared, directory, running: HashMap::new(), ending: Vec::new() }
    }

    /// Until stopped; then every courier lands what it has on its way.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut list = interval(LIST_EVERY);
        list.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut recorded, mut changed) = (None, None);
        loop {
            if recorded.is_none() {
                recorded = self.shared.backplane.notices.listen::<DecisionsRecorded>().await.ok();
            }
            if changed.is_none() {
                changed = self.shared.backplane.notices.listen::<WebhookChanged>().await.ok();
            }
            let hear_recorded = async {
                match &mut recorded {
                    Some(listener) => listener.next().await,
                    None => std::future::pending().await,
                }
            };
            let hear_changed = async {
                match &mut changed {
                    Some(listener) => listener.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                event = hear_changed => match event {
                    Some(Event::Heard(WebhookChanged { .. }) | Event::Gap) => list.reset_immediately(),
                    None => changed = None,
                },
                _ = list.tick() => if !self.refresh().await {
                    list.reset_after(LIST_AGAIN_AFTER);
                },
                event = hear_recorded => match event {
                    Some(Event::Heard(DecisionsRecorded { accounts })) => {
                        let accounts: HashSet<_> = accounts.into_iter().collect();
                        self.wake(|account| accounts.contains(account));
                    }
                    Some(Event::Gap) => self.wake(|_| true),
                    None => recorded = None,
                },
            }
        }
        let ending = self.running.into_values().map(|running| {
            running.stop.cancel();
            running.task
        });
        for task in ending.chain(self.ending) {
            if let Err(error) = task.await {
                tracing::error!(%error, "courier ended early");
            }
        }
    }

    fn wake(&self, whose: impl Fn(&AccountId) -> bool) {
        for running in self.running.values() {
            if whose(&running.endpoint.borrow().webhook.account) {
                running.wake.notify_one();
            }
        }
    }

    /// False when there was no list.
    async fn refresh(&mut self) -> bool {
        let listed = list(&self.shared).await;
        self.shared.lag.listed(listed.is_some());
        let Some(all) = listed else { return false };
        self.directory.replace(all.clone());
        let enabled = all.values().filter(|endpoint| endpoint.webhook.enabled).count();
        metrics::endpoints(enabled, all.len().saturating_sub(enabled));
        self.ending.retain(|task| !task.is_finished());
        // A courier ends by itself when its endpoint is disabled, and is not wanted then.
        let unwanted = |id: &WebhookId, running: &Running| {
            running.task.is_finished() || !all.get(id).is_some_and(|endpoint| endpoint.webhook.enabled)
        };
        let gone: Vec<WebhookId> =
            self.running.iter().filter(|(id, running)| unwanted(id, running)).map(|(id, _)| id.clone()).collect();
        for id in gone {
            if let Some(running) = self.running.remove(&id) {
                running.stop.cancel();
                self.ending.push(running.task);
            }
        }
        for (id, endpoint) in all {
            match self.running.get(&id) {
                Some(running) => {
                    running.endpoint.send_if_modified(|known| {
                        let modified = **known != *endpoint;
                        *known = endpoint;
                        modified
                    });
                }
                None if endpoint.webhook.enabled => {
                    let running = self.start(endpoint);
                    self.running.insert(id, running);
                }
                None => {}
            }
        }
        true
    }

    fn start(&self, endpoint: Arc<Endpoint>) -> Running {
        let (endpoint, watched) = watch::channel(endpoint);
        let (wake, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let courier =
            Courier { shared: Arc::clone(&self.shared), endpoint: watched, wake: Arc::clone(&wake), overlong: None };
        let task = tokio::spawn(courier.run(stop.clone()));
        Running { endpoint, wake, stop, task }
    }
}

/// Every endpoint, or nothing when the keystore does not answer.
pub(crate) async fn list(shared: &Shared) -> Option<HashMap<WebhookId, Arc<Endpoint>>> {
    let (mut found, mut cursor) = (HashMap::new(), None);
    loop {
        match shared.backplane.requests.ask(&ListEndpoints { cursor }, Shared::STORE_WITHIN).await {
            Ok(ManageReply::Done(EndpointsPage { items, next_cursor })) => {
                found.extend(items.into_iter().map(|endpoint| (endpoint.webhook.id.clone(), Arc::new(endpoint))));
                match next_cursor {
                    Some(next) => cursor = Some(next),
                    None => return Some(found),
                }
            }
            Ok(ManageReply::Refused(_) | ManageReply::Failed | ManageReply::Busy) | Err(_) => {
                tracing::warn!("the keystore does not list endpoints; those that are known are served");
                return None;
            }
        }
    }
}
