//! The state store of a simulation: pure, with every state of each record kept for replicas that lag.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::Sim;
use super::hosts::true_time;
use super::links::Peer;
use super::plan::{Fault, Flaw};
use super::world::{Version, World};
use crate::state_store::fault;
use crate::{
    BoxFuture, ClockError, ListError, PutError, ReadError, Record, RecordPage, Revision, StateStore, StoreClock,
};

/// A record expires up to this long after its TTL.
const LATE_EXPIRY: Duration = Duration::from_secs(1);

pub(super) struct SimStore {
    sim: Sim,
    node: usize,
    /// The newest revision of each record that this process knows of, where it would notice an older one.
    newest: Option<Mutex<HashMap<String, Revision>>>,
    clock: Arc<StoreClock>,
}

impl SimStore {
    pub(super) fn new(sim: Sim, node: usize) -> Self {
        let is_broken = sim.lock().plan.flaw == Some(Flaw::HostClocks);
        let clock = if is_broken { Arc::clone(StoreClock::own()) } else { Arc::new(StoreClock::remote()) };
        Self { sim, node, newest: None, clock }
    }

    pub(super) fn with_keys(self) -> Self {
        Self { newest: Some(Mutex::default()), ..self }
    }

    async fn stored(&self, key: &str, deadline: Instant) -> Result<Option<Record>, ReadError> {
        let (node, key) = (self.node, key.to_owned());
        let work = move |world: &mut World| {
            let at = world.seen_at(node);
            let found = world.version(&key, at).map(Version::record);
            let revision = found.as_ref().map_or(0, |found| found.revision.0);
            let lag = if at < Instant::now() { ", from a replica that lags" } else { "" };
            world.note(node, format_args!("reads {key}: {revision}{lag}"));
            found
        };
        self.sim.exchange(node, Peer::Replica, deadline, work).await.map_err(|why| ReadError(why.cause()))
    }

    fn known(&self, key: &str) -> Option<Revision> {
        self.newest.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }

    fn note_newest(&self, key: &str, revision: Revision) {
        if let Some(newest) = &self.newest {
            let mut newest = newest.lock().unwrap_or_else(PoisonError::into_inner);
            let known = newest.entry(key.to_owned()).or_insert(revision);
            *known = revision.max(*known);
        }
    }
}

impl World {
    /// The state of the store that this read sees: now, or before a while.
    pub(super) fn seen_at(&mut self, node: usize) -> Instant {
        let is_lagging = self.strikes(node, Fault::Lagging);
        let pace = self.plan.pace;
        let lag = self.within(node, 3 * pace);
        let now = Instant::now();
        let at = if is_lagging { now.checked_sub(lag).unwrap_or(now) } else { now };
        self.links.behind_since(node).map_or(at, |since| at.min(since))
    }

    pub(super) fn version(&self, key: &str, at: Instant) -> Option<&Version> {
        let stored = self.records.get(key)?.iter().rev().find(|version| version.stored_at <= at)?;
        Some(stored).filter(|version| version.expires_at.is_none_or(|end| end > Instant::now()))
    }

    fn put(
        &mut self,
        key: &str,
        value: Bytes,
        expected: Option<Revision>,
        ttl: Option<Duration>,
    ) -> Result<Revision, PutError> {
        let now = Instant::now();
        let current = self.version(key, now).map(|version| version.revision);
        if current != expected && self.plan.flaw != Some(Flaw::IgnoresExpected) {
            return Err(PutError::Conflict);
        }
        let revision = Revision(self.next_revision());
        if self.fails_by(Flaw::Forgets) || self.is_alone {
            return Ok(revision);
        }
        let late = LATE_EXPIRY.mul_f64(self.numbers.fraction());
        let expires_at = ttl.map(|ttl| now + ttl + late);
        let version = Version { revision, value, stored_at: now, expires_at };
        self.records.entry(key.to_owned()).or_default().push(version);
        Ok(revision)
    }

    /// In the order of the keys; the cursor is the last word that was looked at.
    fn list(&self, at: Instant, under: &str, after: Option<&str>, most: usize) -> RecordPage {
        let prefix = format!("{under}.");
        let words = self.records.keys().filter_map(|key| key.strip_prefix(&prefix));
        let words = words.filter(|word| !word.contains('.') && after.is_none_or(|after| *word > after));
        let mut words = words.peekable();
        let mut page = RecordPage::default();
        while page.records.len() < most
            && let Some(word) = words.next()
        {
            if let Some(version) = self.version(&format!("{prefix}{word}"), at) {
                page.records.push((word.to_owned(), version.record()));
            }
            page.next = words.peek().is_some().then(|| word.to_owned());
        }
        page
    }
}

impl Version {
    fn record(&self) -> Record {
        Record { revision: self.revision, value: self.value.clone() }
    }
}

impl StateStore for SimStore {
    fn get<'a>(&'a self, key: &'a str, deadline: Instant) -> BoxFuture<'a, Result<Option<Record>, ReadError>> {
        Box::pin(async move {
            let known = self.known(key);
            let found = self.stored(key, deadline).await?;
            match &found {
                Some(found) if known > Some(found.revision) => {
                    return Err(ReadError("the record is an old one".into()));
                }
                Some(found) => self.note_newest(key, found.revision),
                None => {}
            }
            Ok(found)
        })
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expected: Option<Revision>,
        expires_in: Option<Duration>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Revision, PutError>> {
        Box::pin(async move {
            if let Some(why) = fault(key, &value) {
                return Err(PutError::Failed(why.into()));
            }
            let (node, of) = (self.node, key.to_owned());
            let work = move |world: &mut World| {
                let put = world.put(&of, value, expected, expires_in);
                let from = expected.map_or(0, |revision| revision.0);
                match &put {
                    Ok(Revision(to)) => world.note(node, format_args!("puts {of}: {from} becomes {to}")),
                    Err(_) => world.note(node, format_args!("puts {of}: it is not {from}, a conflict")),
                }
                put
            };
            let put = self.sim.exchange(node, Peer::Leader, deadline, work).await;
            let revision = put.map_err(|why| PutError::Failed(why.cause()))??;
            self.note_newest(key, revision);
            Ok(revision)
        })
    }

    fn list<'a>(
        &'a self,
        under: &'a str,
        after: Option<&'a str>,
        most: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<RecordPage, ListError>> {
        Box::pin(async move {
            let (node, under, after) = (self.node, under.to_owned(), after.map(str::to_owned));
            let work = move |world: &mut World| {
                let at = world.seen_at(node);
                let page = world.list(at, &under, after.as_deref(), most);
                world.note(node, format_args!("lists {under}: {} records", page.records.len()));
                page
            };
            self.sim.exchange(node, Peer::Replica, deadline, work).await.map_err(|why| ReadError(why.cause()).into())
        })
    }

    fn was_rolled_back<'a>(&'a self, key: &'a str, deadline: Instant) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let known = self.known(key);
            matches!(self.stored(key, deadline).await, Ok(Some(found)) if known > Some(found.revision))
        })
    }

    fn clock(&self) -> &Arc<StoreClock> {
        &self.clock
    }

    fn read_clock(&self, max_age: Duration, deadline: Instant) -> BoxFuture<'_, Result<(), ClockError>> {
        Box::pin(async move {
            let ask =
                |until| async move { self.sim.exchange(self.node, Peer::Leader, until, |_| true_time()).await.ok() };
            self.clock.read(max_age, deadline, ask).await;
            self.clock.check()
        })
    }
}
