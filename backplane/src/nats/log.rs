//! The decision log on JetStream: the lines of one account that are appended together are one message, so one fsync.
//!
//! Subjects name the account, so that the server removes an account's decisions by subject; it indexes two subjects for
//! each account and nothing for each decision.
//! INVARIANT: nothing is appended while it is unknown whether the server syncs each message, where that is to be
//! verified, nor while the stream's settings are wrong.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use stage0_contract::AccountId;
use tokio::time::{Instant, sleep};

use super::jetstream::{
    self, DUPLICATE_IN_PROCESS, JetError, REPLICA_LAG_TIMEOUT, REPLICA_RETRY_DELAY, STORE_FAILED, Stored, is_malformed,
    publish, publish_expecting, purge,
};
use super::stream_watch::MAX_SEQUENCE;
use super::streams::StreamName;
use super::{Connection, SUBSCRIPTION_CAPACITY};
use crate::{
    AppendError, Batch, BoxFuture, Cause, Chunk, DecisionLog, Entry, EntryFilter, EntryKind, MAX_MESSAGE_BYTES,
    MarkError, NotReady, Position, ReadError, Seek, SeekBack, StateStore,
};

pub(super) const MESSAGE_ID: HeaderName = HeaderName::from_static("Nats-Msg-Id");
pub(super) const EXPECTED_LAST: HeaderName = HeaderName::from_static("Nats-Expected-Last-Subject-Sequence");
/// The client's queue holds twice as many.
const MAX_MESSAGES: usize = SUBSCRIPTION_CAPACITY / 2;
/// Far below what makes the server drop a slow reader.
const MAX_BYTES: usize = 2 * MAX_MESSAGE_BYTES;
/// A backwards read starts this many sequences (of all accounts) before the end, and widens or narrows by the factor.
const MIN_REACH: u64 = 512;
const REACH_FACTOR: u64 = 8;
/// A backwards read stops widening once this fraction of an answer is filled.
const ENOUGH_FRACTION: usize = 8;
/// The server excludes the time itself, so it is asked for a moment more; later messages are dropped here.
const TIME_STEP: SignedDuration = SignedDuration::from_millis(1);
const SUBJECTS_PER_PAGE: u64 = 100_000;
/// Acknowledgements that arrive together may be seen out of order; fewer than this are under way at a time.
const MAX_REORDERED: u64 = 4_096;
const MAX_INLINE_SIGNATURES: usize = 4;
const READY_TIMEOUT: Duration = Duration::from_secs(1);

impl DecisionLog for Connection {
    fn append(&self, batches: Vec<Batch>, deadline: Instant) -> BoxFuture<'_, Vec<Result<(), AppendError>>> {
        Box::pin(async move {
            match self.check_writable(deadline).await {
                Ok(connects) => {
                    join_all(batches.into_iter().map(|batch| self.append_one(batch, connects, deadline))).await
                }
                Err(why) => vec![Err(AppendError::NotStored(why)); batches.len()],
            }
        })
    }

    fn append_mark<'a>(
        &'a self,
        account: &'a AccountId,
        line: Bytes,
        after: Option<Position>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Position, MarkError>> {
        Box::pin(async move {
            let connects = self.check_writable(deadline).await.map_err(MarkError::Failed)?;
            let after = after.map_or(0, |position| position.0);
            let appended = self.append_mark_after(account, line.clone(), after, connects, deadline).await;
            if appended != Err(MarkError::Conflict) {
                return appended;
            }
            // Forged marks must not block a genuine one behind them.
            let last = self.forged_behind(account, after, deadline).await?.ok_or(MarkError::Conflict)?;
            self.append_mark_after(account, line, last, connects, deadline).await
        })
    }

    fn read<'a>(
        &'a self,
        account: &'a AccountId,
        filter: EntryFilter,
        from: Seek,
        max_bytes: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Chunk, ReadError>> {
        Box::pin(async move {
            let subject = match filter {
                EntryFilter::All => format!("{}.log.{account}.*", self.link.prefix),
                EntryFilter::Only(kind) => self.subject(account, kind),
            };
            let bytes = max_bytes.clamp(1, MAX_BYTES);
            let (mut from, mut rejected) = (from, 0);
            loop {
                let (found, more) = self.read_range(&subject, from, bytes, deadline).await?;
                let last = found.last().map(|last| Position(last.sequence));
                let genuine = self.retain_genuine(found, &mut rejected).await?;
                // A run of forged entries must not hide what follows it.
                if let Some(last) = last.filter(|_| genuine.is_empty() && more) {
                    from = Seek::After(last);
                    continue;
                }
                return Ok(chunk(genuine, more, max_bytes, rejected)?);
            }
        })
    }

    fn read_back<'a>(
        &'a self,
        account: &'a AccountId,
        kind: EntryKind,
        from: SeekBack,
        max_bytes: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Chunk, ReadError>> {
        Box::pin(async move {
            let (subject, bytes) = (self.subject(account, kind), max_bytes.clamp(1, MAX_BYTES));
            let (mut sequence, mut rejected) = (from, 0);
            loop {
                let (mut found, more) = self.read_range_back(&subject, sequence, bytes, deadline).await?;
                let first = found.last().map(|first| Position(first.sequence));
                if let SeekBack::Time(time) = from {
                    found.retain(|stored| stored.at <= time);
                }
                let genuine = self.retain_genuine(found, &mut rejected).await?;
                if let Some(first) = first.filter(|_| genuine.is_empty() && more) {
                    sequence = SeekBack::Before(first);
                    continue;
                }
                return Ok(chunk(genuine, more, max_bytes, rejected)?);
            }
        })
    }

    fn last<'a>(
        &'a self,
        account: &'a AccountId,
        kind: EntryKind,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Option<Entry>, ReadError>> {
        Box::pin(async move {
            let found = self.last_genuine(&self.subject(account, kind), deadline).await?;
            Ok(found.map(entry).transpose()?)
        })
    }

    fn remove_through<'a>(
        &'a self,
        account: &'a AccountId,
        kind: EntryKind,
        through: Position,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<u64, ReadError>> {
        Box::pin(async move {
            let subject = self.subject(account, kind);
            Ok(purge(&self.link, &self.stream(), &subject, through.0.saturating_add(1), deadline).await?)
        })
    }

    fn accounts(&self, deadline: Instant) -> BoxFuture<'_, Result<Vec<AccountId>, ReadError>> {
        Box::pin(async move {
            let (mut accounts, mut offset) = (BTreeSet::new(), 0_u64);
            loop {
                let about = json!({"subjects_filter": format!("{}.log.>", self.link.prefix), "offset": offset});
                let info = jetstream::info(&self.link, &self.stream(), &about, deadline).await?;
                let page = info.pointer("/state/subjects").and_then(Value::as_object);
                let subjects = page.into_iter().flat_map(|page| page.keys());
                accounts.extend(subjects.filter_map(|subject| account_in(subject)));
                offset += SUBJECTS_PER_PAGE;
                if info.get("total").and_then(Value::as_u64).unwrap_or(0) <= offset {
                    return Ok(accounts.into_iter().collect());
                }
            }
        })
    }

    fn ready(&self) -> BoxFuture<'_, Result<Vec<String>, NotReady>> {
        Box::pin(async move {
            let deadline = Instant::now() + READY_TIMEOUT;
            let looked = self.link.streams.check_now(&self.link, &self.stream(), deadline).await;
            let mut remarks = looked.map_err(|error| NotReady(format!("the decision log: {error}").into()))?;
            // Without its records no check is counted and no delivery progresses.
            StateStore::ready(self).await.map_err(|error| NotReady(format!("the ledger: {error}").into()))?;
            self.check_writable(deadline).await.map_err(NotReady)?;
            let of_servers = self.link.fsync_check.remarks(self.stream().as_str(), deadline).await;
            remarks.extend(of_servers.map_err(|why| NotReady(why.into()))?);
            Ok(remarks)
        })
    }
}

impl Connection {
    fn stream(&self) -> StreamName {
        StreamName::log(&self.link.prefix)
    }

    fn subject(&self, account: &AccountId, kind: EntryKind) -> String {
        let kind = match kind {
            EntryKind::Decisions => 'd',
            EntryKind::Mark => 'm',
        };
        format!("{}.log.{account}.{kind}", self.link.prefix)
    }

    /// The number of the connection on which acknowledgements may be trusted: one on a later connection comes from a
    /// server that may have restarted in between.
    async fn check_writable(&self, deadline: Instant) -> Result<u64, Cause> {
        let connects = self.link.connects();
        self.link.fsync_check.check(connects, deadline).await.map_err(Cause::new)?;
        self.link.streams.check(&self.link, &self.stream(), deadline).await.map_err(Cause::new)?;
        Ok(connects)
    }

    async fn append_one(&self, batch: Batch, connects: u64, deadline: Instant) -> Result<(), AppendError> {
        let refuse = |why: &str| AppendError::NotStored(why.into());
        if let Some(fault) = batch.fault() {
            return Err(refuse(fault));
        }
        let mut headers = HeaderMap::new();
        let subject = self.subject(&batch.account, EntryKind::Decisions);
        match &self.link.auth {
            None => {
                let id = batch.id.parse::<HeaderValue>().map_err(|_| refuse("its id is malformed"))?;
                headers.insert(MESSAGE_ID, id);
            }
            Some(auth) => {
                let id = auth.message_id(&batch.id, &batch.lines);
                let signed = auth.sign_entry(&subject, &id, &batch.lines, &mut headers);
                signed.ok_or_else(|| refuse("this role appends no decisions"))?;
                headers.insert(MESSAGE_ID, HeaderValue::from(id.as_str()));
            }
        }
        let published = publish(&self.link, subject.clone(), headers, batch.lines.clone(), deadline).await;
        match published.as_ref().map_err(JetError::no_space) {
            Ok(_) => self.link.fsync_check.appended(None),
            Err(Some(why)) => self.link.fsync_check.appended(Some(why.to_owned())),
            Err(None) => {}
        }
        let stored = match published {
            Ok(ack) => self.check_sequence(&ack, deadline).await.map(|sequence| (sequence, is_duplicate(&ack))),
            Err(error) => Err(error),
        };
        let untrusted = self.link.auth.is_some();
        match stored {
            Ok(_) if self.link.connects() != connects => Err(AppendError::Unknown(JetError::LOST.into())),
            Ok((sequence, true)) if untrusted => self.confirm_duplicate(&subject, &batch, sequence, deadline).await,
            Ok(_) => Ok(()),
            Err(error) if is_certainly_not_stored(&error, untrusted) => Err(AppendError::NotStored(error.into())),
            Err(error) => Err(AppendError::Unknown(error.into())),
        }
    }

    /// The acknowledged sequence. Where it does not continue the previous ones, and at the first append, the stream is
    /// checked: a message that is stored where no reader finds it is not recorded.
    async fn check_sequence(&self, ack: &Value, deadline: Instant) -> Result<u64, JetError> {
        let sequence = ack.get("seq").and_then(Value::as_u64).filter(|sequence| *sequence > 0);
        let sequence = sequence.ok_or(JetError::Malformed)?;
        let before = self.link.last_log_sequence.fetch_max(sequence, Ordering::AcqRel);
        let goes_on = sequence > before || (before > MAX_REORDERED && before - sequence < MAX_REORDERED);
        if before > 0 && goes_on && sequence <= MAX_SEQUENCE {
            return Ok(sequence);
        }
        match self.link.streams.check_now(&self.link, &self.stream(), deadline).await {
            Ok(_) | Err(JetError::Full(_)) => Ok(sequence),
            Err(error @ (JetError::Wrapped(_) | JetError::WrongSettings { .. })) => Err(error),
            // It was stored, but perhaps where no reader finds it.
            Err(_) => Err(JetError::Malformed),
        }
    }

    async fn fetch(&self, get: &Value, deadline: Instant) -> Result<(Vec<Stored>, bool), JetError> {
        jetstream::fetch(&self.link, &self.stream(), get, deadline).await
    }

    async fn fetch_one(&self, get: Value, deadline: Instant) -> Result<Option<Stored>, JetError> {
        Ok(self.fetch(&get, deadline).await?.0.into_iter().next())
    }

    /// Genuine or not; the flag: there are more.
    async fn read_range(
        &self,
        subject: &str,
        from: Seek,
        bytes: usize,
        deadline: Instant,
    ) -> Result<(Vec<Stored>, bool), JetError> {
        let mut get = json!({"batch": MAX_MESSAGES, "max_bytes": bytes, "next_by_subj": subject});
        let (name, value): (&str, Value) = match from {
            Seek::Start => ("seq", 1.into()),
            Seek::After(position) => ("seq", position.0.saturating_add(1).into()),
            Seek::Time(time) => ("start_time", in_range(time).to_string().into()),
        };
        if let Some(members) = get.as_object_mut() {
            members.insert(name.to_owned(), value);
        }
        self.fetch(&get, deadline).await
    }

    /// The newest first; the flag: there may be more. The server only reads forwards, so one request finds the end and
    /// others read up to it, each starting further back, until enough is found or an answer is full.
    async fn read_range_back(
        &self,
        subject: &str,
        from: SeekBack,
        bytes: usize,
        deadline: Instant,
    ) -> Result<(Vec<Stored>, bool), JetError> {
        let get = match from {
            SeekBack::End => json!({"last_by_subj": subject}),
            // The server has no such sequence, and would find nothing before it.
            SeekBack::Before(position) if position.0 > MAX_SEQUENCE => json!({"last_by_subj": subject}),
            SeekBack::Before(Position(0 | 1)) => return Ok((Vec::new(), false)),
            SeekBack::Before(position) => {
                json!({"batch": 1, "multi_last": [subject], "up_to_seq": position.0.saturating_sub(1)})
            }
            SeekBack::Time(time) => {
                // The server excludes the time itself.
                let up_to = in_range(time.checked_add(TIME_STEP).unwrap_or(Timestamp::MAX));
                json!({"batch": 1, "multi_last": [subject], "up_to_time": up_to.to_string()})
            }
        };
        let Some(newest) = self.fetch_one(get, deadline).await? else { return Ok((Vec::new(), false)) };
        let end = newest.sequence;
        let (mut best, mut reach, mut grows) = (vec![newest], MIN_REACH, true);
        while reach > 0 {
            let first = end.saturating_sub(reach).max(1);
            let (mut found, _) =
                self.read_range(subject, Seek::After(Position(first.saturating_sub(1))), bytes, deadline).await?;
            let is_whole = found.last().is_some_and(|last| last.sequence >= end);
            if !is_whole {
                // Too far back to reach the end in one answer: the result of a closer start is used if there is one.
                if best.len() > 1 {
                    break;
                }
                (reach, grows) = (reach / REACH_FACTOR, false);
                continue;
            }
            found.retain(|stored| stored.sequence <= end);
            found.reverse();
            best = found;
            if first == 1 {
                return Ok((best, false));
            }
            let size: usize = best.iter().map(|stored| stored.payload.len()).sum();
            if !grows || size >= bytes / ENOUGH_FRACTION || best.len() >= MAX_MESSAGES / ENOUGH_FRACTION {
                break;
            }
            reach = reach.saturating_mul(REACH_FACTOR);
        }
        Ok((best, end > 1))
    }

    /// Drops and counts the others. Signatures take time, so many are checked on a blocking thread.
    async fn retain_genuine(&self, mut found: Vec<Stored>, rejected: &mut u64) -> Result<Vec<Stored>, JetError> {
        let all = found.len();
        let genuine = match self.link.auth.clone() {
            Some(auth) if all > MAX_INLINE_SIGNATURES => {
                let checking = tokio::task::spawn_blocking(move || {
                    found.retain(|stored| auth.is_genuine(stored));
                    found
                });
                checking.await.map_err(|_| JetError::Malformed)?
            }
            Some(_) | None => {
                found.retain(|stored| self.is_genuine(stored));
                found
            }
        };
        *rejected += (all - genuine.len()) as u64;
        Ok(genuine)
    }

    fn is_genuine(&self, stored: &Stored) -> bool {
        match &self.link.auth {
            Some(auth) => auth.is_genuine(stored),
            None => !is_malformed(stored.headers.as_ref()),
        }
    }

    async fn last_genuine(&self, subject: &str, deadline: Instant) -> Result<Option<Stored>, JetError> {
        match self.fetch_one(json!({"last_by_subj": subject}), deadline).await? {
            Some(newest) => self.last_genuine_through(subject, newest, deadline).await,
            None => Ok(None),
        }
    }

    /// The last genuine message of a subject up to its `newest`. If forged ones follow it, growing steps back find a
    /// genuine one, and what lies between is read: a thousand forged messages cost a few requests, not a thousand.
    /// INVARIANT: nothing between is left out, whichever replicas answer: they are asked until one has `newest`.
    async fn last_genuine_through(
        &self,
        subject: &str,
        newest: Stored,
        deadline: Instant,
    ) -> Result<Option<Stored>, JetError> {
        let end = newest.sequence;
        if self.is_genuine(&newest) {
            return Ok(Some(newest));
        }
        let (mut back, mut up_to) = (1_u64, end.saturating_sub(1));
        let mut last = loop {
            if up_to == 0 {
                break None;
            }
            let get = json!({"batch": 1, "multi_last": [subject], "up_to_seq": up_to});
            let Some(found) = self.fetch_one(get, deadline).await? else { break None };
            if self.is_genuine(&found) {
                break Some(found);
            }
            up_to = found.sequence.saturating_sub(back);
            back = back.saturating_mul(2);
        };
        let mut from = last.as_ref().map_or(Seek::Start, |last| Seek::After(Position(last.sequence)));
        loop {
            let (mut found, more) = self.read_range(subject, from, MAX_BYTES, deadline).await?;
            let read_to = found.last().map(|read| read.sequence);
            found.retain(|stored| stored.sequence <= end);
            last = self.retain_genuine(found, &mut 0).await?.into_iter().next_back().or(last);
            if read_to.is_some_and(|sequence| sequence >= end) {
                return Ok(last);
            }
            if let Some(sequence) = read_to {
                from = Seek::After(Position(sequence));
            }
            if !more {
                sleep(REPLICA_RETRY_DELAY).await;
            }
        }
    }

    async fn append_mark_after(
        &self,
        account: &AccountId,
        line: Bytes,
        after: u64,
        connects: u64,
        deadline: Instant,
    ) -> Result<Position, MarkError> {
        let (mut headers, subject) = (HeaderMap::new(), self.subject(account, EntryKind::Mark));
        headers.insert(EXPECTED_LAST, HeaderValue::from(after));
        if let Some(auth) = &self.link.auth
            && auth.sign_entry(&subject, "", &line, &mut headers).is_none()
        {
            return Err(MarkError::Failed("this role appends no marks".into()));
        }
        let ack = publish_expecting(&self.link, &subject, &headers, &line, deadline).await?;
        if self.link.connects() != connects {
            return Err(JetError::LOST.into());
        }
        Ok(Position(self.check_sequence(&ack, deadline).await?))
    }

    /// The sequence of the last mark, if only forged marks follow `after`. A genuine mark that is appended later comes
    /// behind it, where the append that names it conflicts.
    async fn forged_behind(&self, account: &AccountId, after: u64, deadline: Instant) -> Result<Option<u64>, JetError> {
        let subject = self.subject(account, EntryKind::Mark);
        let until = deadline.min(Instant::now() + REPLICA_LAG_TIMEOUT);
        let newest = loop {
            let get = json!({"last_by_subj": subject});
            let Some(newest) = self.fetch_one(get, deadline).await? else { return Ok(None) };
            // The leader has another last mark, so this was the answer of a replica that lags.
            if newest.sequence != after || Instant::now() + REPLICA_RETRY_DELAY >= until {
                break newest;
            }
            sleep(REPLICA_RETRY_DELAY).await;
        };
        let last = newest.sequence;
        let genuine = self.last_genuine_through(&subject, newest, deadline).await?;
        Ok((genuine.map_or(0, |genuine| genuine.sequence) == after).then_some(last))
    }

    /// The server already knows the batch's id: from an earlier attempt, or because another client used it first.
    async fn confirm_duplicate(
        &self,
        subject: &str,
        batch: &Batch,
        sequence: u64,
        deadline: Instant,
    ) -> Result<(), AppendError> {
        let until = deadline.min(Instant::now() + REPLICA_LAG_TIMEOUT);
        let found = loop {
            let found = self.fetch_one(json!({"seq": sequence}), deadline).await;
            let found = found.map_err(|error| AppendError::Unknown(error.into()))?;
            // A replica that lags does not have it yet.
            if found.is_some() || Instant::now() + REPLICA_RETRY_DELAY >= until {
                break found;
            }
            sleep(REPLICA_RETRY_DELAY).await;
        };
        let ours =
            |stored: &Stored| stored.subject == subject && stored.payload == batch.lines && self.is_genuine(stored);
        if found.as_ref().is_some_and(ours) {
            return Ok(());
        }
        Err(AppendError::Unknown("the server says that it has it, and has something else".into()))
    }
}

fn is_duplicate(ack: &Value) -> bool {
    ack.get("duplicate").and_then(Value::as_bool).unwrap_or(false)
}

/// The server counts nanoseconds since the epoch in 64 bits.
fn in_range(time: Timestamp) -> Timestamp {
    let last = Timestamp::from_nanosecond(i64::MAX.into()).unwrap_or(Timestamp::MAX);
    time.clamp(Timestamp::UNIX_EPOCH, last)
}

/// Whether the message is certainly not in the stream and will not be. `untrusted`: on an authenticated deployment a
/// refusal proves nothing, as any client of an open server could have sent it; a chain that continued after a forged
/// one would fork.
fn is_certainly_not_stored(error: &JetError, untrusted: bool) -> bool {
    match error {
        error if error.no_space().is_some() => !untrusted,
        JetError::Refused { code, .. } => !untrusted && !matches!(*code, STORE_FAILED | DUPLICATE_IN_PROCESS),
        JetError::NoResponders
        | JetError::Missing(_)
        | JetError::OldLayout(_)
        | JetError::Full(_)
        | JetError::NotInAccount(_) => !untrusted,
        JetError::Forbidden(_) | JetError::DeadlinePassed | JetError::NotConnected => true,
        // It may have been stored before.
        JetError::Unacknowledged(_) | JetError::Malformed => false,
        JetError::WrongSettings { .. } | JetError::Wrapped(_) => false,
    }
}

/// The server stops only once it has exceeded the limit.
fn chunk(found: Vec<Stored>, more: bool, max_bytes: usize, rejected: u64) -> Result<Chunk, JetError> {
    let entries = found.into_iter().map(entry).collect::<Result<_, _>>()?;
    let mut chunk = Chunk { entries, more, rejected };
    chunk.fit(max_bytes);
    Ok(chunk)
}

fn entry(found: Stored) -> Result<Entry, JetError> {
    let kind = match found.subject.rsplit('.').next() {
        Some("d") => EntryKind::Decisions,
        Some("m") => EntryKind::Mark,
        _ => return Err(JetError::Malformed),
    };
    Ok(Entry { position: Position(found.sequence), stored_at: found.at, kind, lines: found.payload })
}

/// The account in `<prefix>.log.<account>.<kind>`.
fn account_in(subject: &str) -> Option<AccountId> {
    AccountId::parse(subject.rsplit('.').nth(1)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_append_counts_as_unknown_where_any_client_could_have_forged_the_refusal() {
        let full = JetError::Refused { code: 10_002, description: String::new() };
        let at_limit = JetError::Refused { code: STORE_FAILED, description: "maximum bytes exceeded".to_owned() };
        let failed = JetError::Refused { code: STORE_FAILED, description: "disk".to_owned() };
        for (error, certain, untrusted) in [
            (full, true, false),
            (at_limit, true, false),
            (failed, false, false),
            (JetError::NoResponders, true, false),
            (JetError::DeadlinePassed, true, true),
            (JetError::NotConnected, true, true),
            (JetError::Malformed, false, false),
        ] {
            assert_eq!(
                (is_certainly_not_stored(&error, false), is_certainly_not_stored(&error, true)),
                (certain, untrusted),
                "{error}"
            );
        }
    }
}
