//! Retained decisions: what the log asks of its store as it fills, embedded and on NATS.
//!
//! The entries are written by the product's own log, one decision each, but with [`LINE_BYTES`] of filler: ten million
//! real ones need 20 GB. What is read is what the gateway's list, a chain's continuation and an exporter's cursor read.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use jiff::Timestamp;
use stage0_backplane::embedded::{Bus, LOG_FILE};
use stage0_backplane::nats::{Connection, NatsConfig};
use stage0_backplane::testing::{NatsServer, SYNCED};
use stage0_backplane::{Backplane, Batch, EntryFilter, EntryKind, Seek, SeekBack};
use stage0_contract::AccountId;
use tokio::time::Instant;

use super::curve::{Curve, Measured, measured};
use crate::deployment::Usage;
use crate::quantiles::median;

pub(super) const SIZES: [u64; 4] = [10_000, 100_000, 1_000_000, 10_000_000];
const DECISIONS: EntryKind = EntryKind::Decisions;
const LINE_BYTES: usize = 200;
const ACCOUNTS: u64 = 20;
/// More than a page.
const OF_OLDEST: u64 = 250;
const UNSYNCED: &str = "max_payload: 8MB\njetstream {}";
/// A store remembers the ids of what was appended for two minutes. Between more entries than that, they are waited for.
const ID_TTL: Duration = Duration::from_secs(125);
const MANY: u64 = 1_000_000;
/// Entries of one call while the log is filled.
const FILLED_TOGETHER: u64 = 1_000;
const REPEATS: usize = 31;
/// About twenty decisions of the usual size.
const PAGE_BYTES: usize = 40 << 10;
const TIMEOUT: Duration = Duration::from_secs(120);

/// A log that is being filled.
struct Filled {
    backplane: Backplane,
    entries: u64,
    accounts: Vec<AccountId>,
    /// An account whose only decisions are the log's first: the worst that a backwards read can meet.
    oldest: AccountId,
    half: Option<Timestamp>,
}

pub(super) async fn curves(sizes: &[u64]) -> anyhow::Result<Vec<Curve>> {
    Ok(vec![embedded(sizes).await?, on_nats(sizes).await?])
}

fn new_curve(place: &str) -> Curve {
    let method = format!(
        "Entries of one decision with {LINE_BYTES} bytes of filler instead of about 2,000, of {ACCOUNTS} accounts, \
         appended by the product's log; median wall time of {REPEATS} calls. A page is {} KiB.",
        PAGE_BYTES >> 10
    );
    let expected = "flat, or a logarithm: indexes are trees, and only the disk is linear.";
    Curve::new(&format!("retained decisions, {place}"), "decisions", method, expected)
}

async fn embedded(sizes: &[u64]) -> anyhow::Result<Curve> {
    let directory = tempfile::tempdir()?;
    let backplane = Bus::open(directory.path())?.connect();
    let mut log = Filled::new(backplane)?;
    let mut curve = new_curve("embedded");
    let before = Usage::of_load()?.anonymous;
    for &size in sizes {
        log.fill(size).await?;
        let mut numbers = log.point().await?;
        let disk = std::fs::metadata(directory.path().join(LOG_FILE))?.len() as f64;
        numbers.push(measured("disk of an entry", "bytes", disk / size as f64));
        let memory = Usage::of_load()?.anonymous.saturating_sub(before) as f64;
        numbers.push(measured("memory above that of an empty log", "MB", memory / 1e6));
        curve.add(size, numbers);
        eprintln!("embedded, {size}: done");
    }
    Ok(curve)
}

/// While it is filled the server does not sync each message: a million would take minutes, and ten million hours.
async fn on_nats(sizes: &[u64]) -> anyhow::Result<Curve> {
    let mut server = NatsServer::start().await;
    let config = NatsConfig::new(server.url(), "bench-log");
    let connection = Connection::open(&config).await?;
    connection.prepare_log(1).await?;
    let mut log = Filled::new(Backplane::connect(&config).await?)?;
    let mut curve = new_curve("NATS");
    for &size in sizes {
        log.backplane.requests.close().await;
        server.restart_with(UNSYNCED).await;
        log.backplane = Backplane::connect(&config).await?;
        log.fill(size).await?;
        log.backplane.requests.close().await;
        server.restart_with(SYNCED).await;
        log.backplane = Backplane::connect(&config).await?;
        let mut numbers = log.point().await?;
        numbers.push(measured("memory of nats-server", "MB", server_memory(&server).await? / 1e6));
        curve.add(size, numbers);
        eprintln!("NATS, {size}: done");
    }
    Ok(curve)
}

/// The resident memory that the server's monitor names.
async fn server_memory(server: &NatsServer) -> anyhow::Result<f64> {
    let text = reqwest::get(format!("{}/varz", server.monitor())).await?.text().await?;
    let varz: serde_json::Value = serde_json::from_str(&text)?;
    varz.get("mem").and_then(serde_json::Value::as_f64).context("the monitor names no memory")
}

impl Filled {
    fn new(backplane: Backplane) -> anyhow::Result<Self> {
        let accounts = (0..ACCOUNTS).map(|number| AccountId::parse(&format!("acc-{number:04}")));
        let (accounts, oldest) = (accounts.collect::<Result<_, _>>()?, AccountId::parse("oldest")?);
        Ok(Self { backplane, entries: 0, accounts, oldest, half: None })
    }

    async fn fill(&mut self, size: u64) -> anyhow::Result<()> {
        let half = size / 2;
        while self.entries < size {
            let end = size.min(self.entries + FILLED_TOGETHER);
            let batches = (self.entries..end).map(|number| self.batch(number)).collect();
            let stored = self.backplane.log.append(batches, Instant::now() + TIMEOUT).await;
            stored.into_iter().collect::<Result<Vec<_>, _>>()?;
            if self.entries <= half && end > half {
                self.half = Some(Timestamp::now());
            }
            self.entries = end;
        }
        if size >= MANY {
            tokio::time::sleep(ID_TTL).await;
        }
        Ok(())
    }

    fn batch(&self, number: u64) -> Batch {
        let account = if number < OF_OLDEST { Some(&self.oldest) } else { self.account(number) };
        let line = format!("{{\"number\":{number:012},\"filler\":\"{}\"}}", "x".repeat(LINE_BYTES - 35));
        let account = account.unwrap_or(&self.oldest).clone();
        Batch { account, id: format!("b{number}"), lines: Bytes::from(line) }
    }

    fn account(&self, number: u64) -> Option<&AccountId> {
        self.accounts.get((number % ACCOUNTS) as usize)
    }

    async fn point(&mut self) -> anyhow::Result<Vec<Measured>> {
        let busy = self.accounts.first().context("no accounts")?.clone();
        let mut appends = Vec::new();
        for _ in 0..REPEATS {
            let batch = self.batch(self.entries);
            let begun = Instant::now();
            let stored = self.backplane.log.append(vec![batch], begun + TIMEOUT).await;
            stored.into_iter().collect::<Result<Vec<_>, _>>()?;
            appends.push(begun.elapsed().as_secs_f64() * 1e6);
            self.entries += 1;
        }
        let last =
            self.times(async |deadline| Ok(self.backplane.log.last(&busy, DECISIONS, deadline).await?.is_some()));
        let last = last.await?;
        let newest = self.page_back(&busy).await?;
        let oldest = self.page_back(&self.oldest).await?;
        let half = self.half.context("the log was not filled")?;
        let seek = self.times(async |deadline| {
            let filter = EntryFilter::Only(DECISIONS);
            let found = self.backplane.log.read(&busy, filter, Seek::Time(half), PAGE_BYTES, deadline).await?;
            Ok(!found.entries.is_empty())
        });
        let seek = seek.await?;
        Ok(vec![
            measured("append, synced", "µs", median(appends)),
            measured("last entry of an account", "µs", last),
            measured("newest page of an account", "µs", newest),
            measured("the same, of one that is long idle", "µs", oldest),
            measured("page from the middle, by time", "µs", seek),
        ])
    }

    async fn page_back(&self, account: &AccountId) -> anyhow::Result<f64> {
        let read = self.times(async |deadline| {
            let found = self.backplane.log.read_back(account, DECISIONS, SeekBack::End, PAGE_BYTES, deadline).await?;
            Ok(!found.entries.is_empty())
        });
        read.await
    }

    /// The median time of a read that has to find something, in microseconds.
    async fn times(&self, read: impl AsyncFn(Instant) -> anyhow::Result<bool>) -> anyhow::Result<f64> {
        let mut times = Vec::new();
        for _ in 0..REPEATS {
            let begun = Instant::now();
            ensure!(read(begun + TIMEOUT).await?, "a read found nothing");
            times.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        Ok(median(times))
    }
}
