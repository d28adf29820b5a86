//! An evaluator of the simulation: what a shard serves, on a bus of its own that the simulated network ends at.

use std::future::pending;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use stage0_backplane::sim::Node;
use stage0_backplane::{Backplane, BoxFuture, Requests, follow_store_clock};
use stage0_contract::{ManageReply, People, ReadPeople, Request};
use stage0_policy::{Pack, PackSet};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::super::tests::people_of;
use super::*;
use crate::candidates::Candidates;
use crate::checks::{self, Deciders, ShardLimits};
use crate::engines::Engines;
use crate::run::RunCoordinator;
use crate::shard::serve_until;

/// Short ones, so that approvals end while a run goes on.
const MANIFEST: &str = "name = \"brief\"\nversion = \"1.0.0\"\nextends = \"baseline@2\"\n\n\
                        [approvals]\nquorum = 2\nwithin = \"1m\"\nvalid_for = \"1m\"\n";
pub(super) const PEOPLE: [&str; 3] = ["ann", "cem", "eve"];

/// A request that has arrived, and its way back.
type Delivery = Box<dyn FnOnce(Arc<dyn Requests>) -> BoxFuture<'static, ()> + Send>;

/// Where evaluators run, one after the other.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) node: Node,
    inbox: Arc<Mutex<Option<mpsc::UnboundedSender<Delivery>>>>,
}

thread_local! {
    /// Parsing the rules takes longer than many runs. An evaluation leaves nothing behind.
    static ENGINES: Rc<Engines> = Rc::new(engines());
}

fn engines() -> Engines {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("pack.toml"), MANIFEST).unwrap();
    Engines::open(Arc::new(PackSet::of(Pack::from_dir(folder.path()).unwrap()))).unwrap()
}

pub(super) fn config() -> RunConfig {
    RunConfig { denied_for: Duration::from_secs(20), ..RunConfig::default() }
}

fn people() -> People {
    people_of(&PEOPLE.map(|name| (name, &[] as &[&str], &[] as &[&str])))
}

impl Place {
    pub(super) fn new(node: Node) -> Self {
        Self { node, inbox: Arc::default() }
    }
}

impl Run {
    /// Asks one of the evaluators. None: there is no answer in time.
    pub(super) async fn ask<R: Request + Clone>(&self, from: &Node, request: &R, deadline: Instant) -> Option<R::Reply>
    where
        R::Reply: Send,
    {
        let at = usize::try_from(from.below(self.evaluators.len() as u64)).unwrap();
        let to = self.evaluators.get(at)?;
        let (answer, answered) = oneshot::channel();
        let (request, server, requester) = (request.clone(), to.node.clone(), from.clone());
        let delivery: Delivery = Box::new(move |requests| {
            Box::pin(async move {
                let Ok(reply) = requests.request_until(&request, deadline).await else { return };
                server.send(&requester, deadline, move || drop(answer.send(reply))).await;
            })
        });
        let inbox = Arc::clone(&to.inbox);
        let arrive = move || {
            let inbox = inbox.lock().unwrap_or_else(PoisonError::into_inner);
            // Where no process runs, it is lost.
            if let Some(inbox) = &*inbox {
                drop(inbox.send(delivery));
            }
        };
        let sending = async {
            from.send(&to.node, deadline, arrive).await;
            pending::<()>().await;
        };
        let received = async {
            tokio::select! {
                biased;
                Ok(reply) = answered => Some(reply),
                () = sending => None,
            }
        };
        timeout_at(deadline, received).await.ok().flatten()
    }
}

/// Serves until all is over.
pub(super) async fn serve(run: Run, place: Place) {
    let bus = Backplane::embedded();
    let backplane = Backplane { state_store: place.node.state_store(), log: place.node.log(), ..bus.clone() };
    let (sender, mut inbox) = mpsc::unbounded_channel::<Delivery>();
    *place.inbox.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
    let engines = ENGINES.with(Rc::clone);
    let engines = &*engines;
    let (approvals, candidates) = (&Approvals::new(&backplane, config()), &Candidates::new());
    let runs = &RunCoordinator::new(Arc::clone(&backplane.state_store), config());
    let (stop, requests) = (&run.over, &backplane.requests);
    let deliver = async {
        let mut under_way = FuturesUnordered::new();
        loop {
            tokio::select! {
                biased;
                Some(delivery) = inbox.recv() => under_way.push(delivery(Arc::clone(requests))),
                Some(()) = under_way.next(), if !under_way.is_empty() => {}
            }
        }
    };
    let tell_people = async {
        let mut asked = requests.serve::<ReadPeople>().await.unwrap();
        while let Some(read) = asked.next().await {
            // The keystore is elsewhere.
            if let Some(people) = place.node.call(read.deadline, people).await {
                read.answer(&ManageReply::Done(people)).await;
            }
        }
    };
    let deciders = Deciders { engines, runs, approvals, candidates };
    let serving: [BoxLocal<'_>; 7] = [
        Box::pin(follow_store_clock(&*backplane.state_store)),
        Box::pin(deliver),
        Box::pin(tell_people),
        Box::pin(async {
            let checks = requests.serve().await.unwrap();
            checks::serve_until(checks, stop, deciders, ShardLimits::of(1)).await;
        }),
        Box::pin(async {
            let changes = requests.serve().await.unwrap();
            serve_until(changes, stop, async |change, until| approvals.change(engines, change, until).await).await;
        }),
        Box::pin(async {
            let settles = requests.serve().await.unwrap();
            serve_until(settles, stop, async |settle, until| approvals.settle(settle, until).await).await;
        }),
        Box::pin(async {
            let collects = requests.serve().await.unwrap();
            serve_until(collects, stop, async |collect, until| approvals.collect(collect, until).await).await;
        }),
    ];
    stop.run_until_cancelled(join_all(serving)).await;
}

type BoxLocal<'a> = futures_util::future::LocalBoxFuture<'a, ()>;
