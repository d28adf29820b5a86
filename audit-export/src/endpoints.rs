//! Runs a delivery worker for each enabled endpoint, and wakes it when decisions are recorded.
//!
//! The keystore's list of endpoints is fetched whole at the start, on every notice of a change and every half minute.
//! When it cannot be fetched, the workers of the last list go on.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex};
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
use crate::shared::{Shared, lock, next_event};

const LIST_INTERVAL: Duration = Duration::from_secs(30);
const LIST_RETRY_DELAY: Duration = Duration::from_secs(1);

type EndpointMap = HashMap<WebhookId, Arc<DeliveryEndpoint>>;

#[derive(Clone, Default)]
pub(crate) struct Directory(Arc<Mutex<EndpointMap>>);

impl Directory {
    pub(crate) fn find(&self, account: &AccountId, id: &WebhookId) -> Option<Arc<DeliveryEndpoint>> {
        lock(&self.0).get(id).filter(|endpoint| endpoint.webhook.account == *account).cloned()
    }

    fn replace(&self, all: EndpointMap) -> EndpointMap {
        std::mem::replace(&mut *lock(&self.0), all)
    }
}

struct RunningWorker {
    endpoint: watch::Sender<Arc<DeliveryEndpoint>>,
    wake: Arc<Notify>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

pub(crate) struct Endpoints {
    shared: Arc<Shared>,
    directory: Directory,
    workers: HashMap<WebhookId, RunningWorker>,
    /// The workers of each account: a notice of one account costs nothing for the others.
    wakes: HashMap<AccountId, Vec<Arc<Notify>>>,
    stopping: Vec<JoinHandle<()>>,
}

impl Endpoints {
    pub(crate) fn new(shared: Arc<Shared>, directory: Directory) -> Self {
        Self { shared, directory, workers: HashMap::new(), wakes: HashMap::new(), stopping: Vec::new() }
    }

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
                        let workers = accounts.iter().filter_map(|account| self.wakes.get(account));
                        workers.flatten().for_each(|worker| worker.notify_one());
                    }
                    Some(Event::Gap) => self.wakes.values().flatten().for_each(|worker| worker.notify_one()),
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
                Some(worker) if *worker.endpoint.borrow() != endpoint => {
                    worker.endpoint.send_replace(endpoint);
                }
                None if endpoint.webhook.enabled => {
                    let worker = self.start(endpoint);
                    self.workers.insert(id, worker);
                }
                Some(_) | None => {}
            }
        }
        self.wakes.clear();
        for worker in self.workers.values() {
            let account = worker.endpoint.borrow().webhook.account.clone();
            self.wakes.entry(account).or_default().push(Arc::clone(&worker.wake));
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

pub(crate) async fn list(shared: &Shared) -> Option<EndpointMap> {
    let (mut found, mut cursor) = (HashMap::new(), None);
    loop {
        let EndpointsPage { items, next_cursor } = match page(shared, cursor).await {
            Ok(page) => page,
            Err(why) => {
                if shared.unlisted.set(&why) {
                    tracing::warn!(why, "endpoints are not listed; those that are known are served");
                }
                return None;
            }
        };
        found.extend(items.into_iter().map(|item| (item.webhook.id.clone(), Arc::new(item.into()))));
        match next_cursor {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    shared.unlisted.clear();
    Some(found)
}

async fn page(shared: &Shared, cursor: Option<WebhookId>) -> Result<EndpointsPage, String> {
    match shared.backplane.requests.request(&ListEndpoints { cursor }, Shared::STORE_TIMEOUT).await {
        Ok(ManageReply::Done(page)) => Ok(page),
        Ok(ManageReply::Refused(_) | ManageReply::Failed) => Err("the keystore cannot read them".to_owned()),
        Ok(ManageReply::Busy) => Err("the keystore has too much to do".to_owned()),
        Err(error) => Err(format!("the keystore does not answer: {error}")),
    }
}
