//! Runs a delivery worker for each enabled endpoint, and wakes it when decisions are recorded.
//!
//! Owns the keystore's list of endpoints, which is fetched whole at the start, on every notice of a change and every
//! half minute. When the list cannot be fetched, the workers of the last list go on, and it is requested again a second
//! later.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use stage0_backplane::Event;
use stage0_contract::{
    AccountId, DecisionsRecorded, EndpointsPage, ListEndpoints, ManageReply, WebhookChanged, WebhookId,
};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::delivery_worker::DeliveryWorker;
use crate::metrics;
use crate::send::DeliveryEndpoint;
use crate::shared::{Shared, next_event};

const LIST_INTERVAL: Duration = Duration::from_secs(30);
const LIST_RETRY_DELAY: Duration = Duration::from_secs(1);

type EndpointMap = HashMap<WebhookId, Arc<DeliveryEndpoint>>;

/// The endpoints of the last list.
#[derive(Clone, Default)]
pub(crate) struct Directory(Arc<RwLock<EndpointMap>>);

impl Directory {
    /// The endpoint, if it belongs to this account.
    pub(crate) fn find(&self, account: &AccountId, id: &WebhookId) -> Option<Arc<DeliveryEndpoint>> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.get(id).filter(|endpoint| endpoint.webhook.account == *account).cloned()
    }

    /// Returns the endpoints of the list before.
    fn replace(&self, all: EndpointMap) -> EndpointMap {
        std::mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), all)
    }
}

/// A delivery worker that was started.
struct RunningWorker {
    endpoint: watch::Sender<Arc<DeliveryEndpoint>>,
    wake: Arc<Notify>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Starts and stops the delivery workers.
pub(crate) struct Endpoints {
    shared: Arc<Shared>,
    directory: Directory,
    workers: HashMap<WebhookId, RunningWorker>,
    /// Workers that were stopped and complete their attempts.
    stopping: Vec<JoinHandle<()>>,
}

impl Endpoints {
    pub(crate) fn new(shared: Arc<Shared>, directory: Directory) -> Self {
        Self { shared, directory, workers: HashMap::new(), stopping: Vec::new() }
    }

    /// Runs until stopped, and returns when every worker has completed its attempts in flight.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut list = interval(LIST_INTERVAL);
        list.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut recorded, mut changed) = (None, None);
        loop {
            if recorded.is_none() {
                recorded = self.shared.backplane.notices.subscribe::<DecisionsRecorded>().await.ok();
            }
            if changed.is_none() {
                changed = self.shared.backplane.notices.subscribe::<WebhookChanged>().await.ok();
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                event = next_event(&mut changed) => match event {
                    Some(Event::Message(WebhookChanged { .. }) | Event::Gap) => list.reset_immediately(),
                    None => changed = None,
                },
                _ = list.tick() => if !self.refresh().await {
                    list.reset_after(LIST_RETRY_DELAY);
                },
                event = next_event(&mut recorded) => match event {
                    Some(Event::Message(DecisionsRecorded { accounts })) => {
                        let accounts: HashSet<_> = accounts.into_iter().collect();
                        self.wake(|account| accounts.contains(account));
                    }
                    Some(Event::Gap) => self.wake(|_| true),
                    None => recorded = None,
                },
            }
        }
        let stopping = self.workers.into_values().map(|worker| {
            worker.stop.cancel();
            worker.task
        });
        for task in stopping.chain(self.stopping) {
            if let Err(error) = task.await {
                tracing::error!(error = &error as &dyn Error, "delivery worker ended early");
            }
        }
    }

    fn wake(&self, has_news: impl Fn(&AccountId) -> bool) {
        for worker in self.workers.values() {
            if has_news(&worker.endpoint.borrow().webhook.account) {
                worker.wake.notify_one();
            }
        }
    }

    /// Fetches the list, and starts, updates and stops workers by it. Returns false when it could not be fetched.
    async fn refresh(&mut self) -> bool {
        let listed = list(&self.shared).await;
        self.shared.lag.set_listed(listed.is_some());
        let Some(all) = listed else { return false };
        let before = self.directory.replace(all.clone());
        log_new_faults(&before, &all);
        let enabled = all.values().filter(|endpoint| endpoint.webhook.enabled).count();
        metrics::endpoints(enabled, all.len().saturating_sub(enabled));
        self.stopping.retain(|task| !task.is_finished());
        // A worker ends by itself when it disables its endpoint.
        let is_wanted = |id: &WebhookId, worker: &RunningWorker| {
            !worker.task.is_finished() && all.get(id).is_some_and(|endpoint| endpoint.webhook.enabled)
        };
        for (_, worker) in self.workers.extract_if(|id, worker| !is_wanted(id, worker)) {
            worker.stop.cancel();
            self.stopping.push(worker.task);
        }
        for (id, endpoint) in all {
            match self.workers.get(&id) {
                Some(worker) => {
                    worker.endpoint.send_if_modified(|known| {
                        let modified = *known != endpoint;
                        *known = endpoint;
                        modified
                    });
                }
                None if endpoint.webhook.enabled => {
                    let worker = self.start(endpoint);
                    self.workers.insert(id, worker);
                }
                None => {}
            }
        }
        true
    }

    fn start(&self, endpoint: Arc<DeliveryEndpoint>) -> RunningWorker {
        let (endpoint, watched) = watch::channel(endpoint);
        let (wake, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let worker = DeliveryWorker {
            shared: Arc::clone(&self.shared),
            endpoint: watched,
            wake: Arc::clone(&wake),
            overlong_lease: None,
        };
        let task = tokio::spawn(worker.run(stop.clone()));
        RunningWorker { endpoint, wake, stop, task }
    }
}

/// Logs the enabled endpoints that cannot be sent to, once until they change.
fn log_new_faults(before: &EndpointMap, all: &EndpointMap) {
    for (webhook, endpoint) in all.iter().filter(|(_, endpoint)| endpoint.webhook.enabled) {
        if let Some(fault) = endpoint.fault()
            && before.get(webhook) != Some(endpoint)
        {
            let error = &fault as &dyn Error;
            tracing::error!(%webhook, account = %endpoint.webhook.account, error, "endpoint cannot be sent to");
        }
    }
}

/// Fetches every endpoint, or nothing when the keystore does not answer.
pub(crate) async fn list(shared: &Shared) -> Option<EndpointMap> {
    let (mut found, mut cursor) = (HashMap::new(), None);
    loop {
        match shared.backplane.requests.request(&ListEndpoints { cursor }, Shared::STORE_TIMEOUT).await {
            Ok(ManageReply::Done(EndpointsPage { items, next_cursor })) => {
                found.extend(items.into_iter().map(|item| (item.webhook.id.clone(), Arc::new(item.into()))));
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
