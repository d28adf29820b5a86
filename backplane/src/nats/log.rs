//! The decision log on JetStream: the lines of one account that are appended together are one message, so one fsync.
//!
//! Subjects name the account, so that the server removes an account's decisions by subject; the server indexes two
//! subjects for each account and nothing for each decision. The stream's `max_age` is a distant safety net by the
//! server's own clock. The credentials of each role decide who may publish and purge (`nats_conf`); no role may change
//! the stream.
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
use tokio::time::Instant;

use super::jetstream::{
    self, DUPLICATE_IN_PROCESS, JetError, STORE_FAILED, Stored, WRONG_LAST_SEQUENCE, fetch, is_malformed, publish,
    purge,
};
use super::stream_watch::MAX_SEQUENCE;
use super::streams::StreamName;
use super::{Connection, SUBSCRIPTION_CAPACITY};
use crate::{
    AppendError, Batch, BoxFuture, Chunk, DecisionLog, Entry, EntryFilter, EntryKind, MAX_MESSAGE_BYTES, MarkError,
    NotReady, Position, ReadError, RequestError, Seek, SeekBack, StateStore,
};

pub(super) const MESSAGE_ID: HeaderName = HeaderName::from_static("Nats-Msg-Id");
pub(super) const EXPECTED_LAST: HeaderName = HeaderName::from_static("Nats-Expected-Last-Subject-Sequence");
/// Messages that one request may bring; the client's queue holds twice as many.
const MAX_MESSAGES: usize = SUBSCRIPTION_CAPACITY / 2;
/// Bytes that one request may bring, whatever its caller can take: far below what makes the server drop a slow reader.
const MAX_BYTES: usize = 2 * MAX_MESSAGE_BYTES;
/// A backwards read starts this many sequences (of all accounts) before the end, and widens or narrows by the factor.
const MIN_REACH: u64 = 512;
const REACH_FACTOR: u64 = 8;
/// A backwards read stops widening once this fraction of an answer is filled.
const ENOUGH_FRACTION: usize = 8;
/// The server returns what was stored before a time, so it is asked for a moment more, and later messages are dropped
/// here.
const TIME_STEP: SignedDuration = SignedDuration::from_millis(1);
/// Subjects in one page of the server's list.
const SUBJECTS_PER_PAGE: u64 = 100_000;
/// Acknowledgements that arrive together may be seen out of order; fewer than this are under way at a time.
const MAX_REORDERED: u64 = 4_096;
/// More signatures than this are checked on a blocking thread.
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
            match self.forged_behind(account, after, deadline).await {
                Ok(Some(last)) => self.append_mark_after(account, line, last, connects, deadline).await,
                Ok(None) => Err(MarkError::Conflict),
                Err(error) => Err(MarkError::Failed(error.to_string())),
            }
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
                let (last, all) = (found.last().map(|last| Position(last.sequence)), found.len());
                let genuine = self.retain_genuine(found).await?;
                rejected += u64::try_from(all - genuine.len()).unwrap_or(u64::MAX);
                // A run of forged entries must not hide what follows it.
                if let Some(last) = last.filter(|_| genuine.is_empty() && more) {
                    from = Seek::After(last);
                    continue;
                }
                let entries = genuine.into_iter().map(entry).collect::<Option<Vec<_>>>();
                return Ok(fit_chunk(entries.ok_or(JetError::Malformed)?, more, max_bytes, rejected));
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
                let all = found.len();
                let genuine = self.retain_genuine(found).await?;
                rejected += u64::try_from(all - genuine.len()).unwrap_or(u64::MAX);
                if let Some(first) = first.filter(|_| genuine.is_empty() && more) {
                    sequence = SeekBack::Before(first);
                    continue;
                }
                let entries = genuine.into_iter().map(entry).collect::<Option<Vec<_>>>();
                return Ok(fit_chunk(entries.ok_or(JetError::Malformed)?, more, max_bytes, rejected));
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
            found.map(|found| entry(found).ok_or(JetError::Malformed.into())).transpose()
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
            let before = through.0.saturating_add(1);
            purge(&self.link, &self.stream(), &subject, before, deadline).await.map_err(ReadError::from)
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
            looked.map_err(|error| NotReady(format!("the decision log: {error}")))?;
            // Without its records no check is counted and no delivery progresses.
            StateStore::ready(self).await.map_err(|NotReady(why)| NotReady(format!("the ledger: {why}")))?;
            self.check_writable(deadline).await.map_err(NotReady)?;
            self.link.fsync_check.remarks(self.stream().as_str(), deadline).await.map_err(NotReady)
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
    async fn check_writable(&self, deadline: Instant) -> Result<u64, String> {
        let connects = self.link.connects();
        self.link.fsync_check.check(connects, deadline).await?;
        let ours = self.link.streams.check(&self.link, &self.stream(), deadline).await;
        ours.map_err(|error| error.to_string())?;
        Ok(connects)
    }

    async fn append_one(&self, batch: Batch, connects: u64, deadline: Instant) -> Result<(), AppendError> {
        let refuse = |why: &str| AppendError::NotStored(why.to_owned());
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
        match &published {
            Ok(_) => self.link.fsync_check.appended(None),
            Err(error) => {
                if let Some(why) = error.no_space() {
                    self.link.fsync_check.appended(Some(why.to_owned()));
                }
            }
        }
        let published = match published {
            Ok(ack) => self.check_sequence(&ack, deadline).await.map(|()| ack),
            Err(error) => Err(error),
        };
        match published {
            Ok(_) if self.link.connects() != connects => {
                Err(AppendError::Unknown(RequestError::Disconnected.to_string()))
            }
            Ok(ack) if is_duplicate(&ack) && self.link.auth.is_some() => {
                self.confirm_duplicate(&subject, &batch, sequence(&ack).unwrap_or_default(), deadline).await
            }
            Ok(_) => Ok(()),
            Err(error) if is_certainly_not_stored(&error, self.link.auth.is_some()) => {
                Err(AppendError::NotStored(error.to_string()))
            }
            Err(error) => Err(AppendError::Unknown(error.to_string())),
        }
    }

    /// Whether an acknowledged sequence continues the previous ones; otherwise, and at the first append, the stream is
    /// checked. A message that is stored where no reader finds it is not recorded.
    async fn check_sequence(&self, ack: &Value, deadline: Instant) -> Result<(), JetError> {
        let sequence = sequence(ack).ok_or(JetError::Malformed)?;
        let before = self.link.last_log_sequence.fetch_max(sequence, Ordering::AcqRel);
        let goes_on = sequence > before || (before > MAX_REORDERED && before - sequence < MAX_REORDERED);
        if before > 0 && goes_on && sequence <= MAX_SEQUENCE {
            return Ok(());
        }
        match self.link.streams.check_now(&self.link, &self.stream(), deadline).await {
            Ok(()) | Err(JetError::Full(_)) => Ok(()),
            Err(error @ (JetError::Wrapped(_) | JetError::WrongSettings { .. })) => Err(error),
            // It was stored, but perhaps where no reader finds it.
            Err(_) => Err(JetError::Malformed),
        }
    }
}

/// Reading, and telling genuine messages from forged ones.
impl Connection {
    /// Reads stored messages from some sequence on, genuine or not; the flag: there are more.
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
        fetch(&self.link, &self.stream(), &get, deadline).await
    }

    /// Reads stored messages before some sequence, the newest first; the flag: there may be more. The server only reads
    /// forwards, so one request finds the end and others read up to it, each starting further back, until enough is
    /// found or an answer is full.
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
        let (found, _) = fetch(&self.link, &self.stream(), &get, deadline).await?;
        let Some(newest) = found.into_iter().next() else { return Ok((Vec::new(), false)) };
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

    /// Drops messages that no role that may append had put there. Signatures take time, so many are checked on a
    /// blocking thread.
    async fn retain_genuine(&self, mut found: Vec<Stored>) -> Result<Vec<Stored>, JetError> {
        let Some(auth) = self.link.auth.clone() else {
            found.retain(|stored| !is_malformed(stored.headers.as_ref()));
            return Ok(found);
        };
        if found.len() <= MAX_INLINE_SIGNATURES {
            found.retain(|stored| auth.is_genuine(stored));
            return Ok(found);
        }
        let checking = tokio::task::spawn_blocking(move || {
            found.retain(|stored| auth.is_genuine(stored));
            found
        });
        checking.await.map_err(|_| JetError::Malformed)
    }

    fn is_genuine(&self, stored: &Stored) -> bool {
        match &self.link.auth {
            Some(auth) => auth.is_genuine(stored),
            None => !is_malformed(stored.headers.as_ref()),
        }
    }

    /// The last genuine message of a subject. If forged ones follow it, growing steps back find a genuine one, and what
    /// lies between is read: a thousand forged messages cost a few requests instead of a thousand.
    async fn last_genuine(&self, subject: &str, deadline: Instant) -> Result<Option<Stored>, JetError> {
        let get = json!({"last_by_subj": subject});
        let (found, _) = fetch(&self.link, &self.stream(), &get, deadline).await?;
        let Some(newest) = found.into_iter().next() else { return Ok(None) };
        if self.is_genuine(&newest) {
            return Ok(Some(newest));
        }
        let (mut back, mut up_to) = (1_u64, newest.sequence.saturating_sub(1));
        let mut last = loop {
            if up_to == 0 {
                break None;
            }
            let get = json!({"batch": 1, "multi_last": [subject], "up_to_seq": up_to});
            let (found, _) = fetch(&self.link, &self.stream(), &get, deadline).await?;
            let Some(found) = found.into_iter().next() else { break None };
            if self.is_genuine(&found) {
                break Some(found);
            }
            up_to = found.sequence.saturating_sub(back);
            back = back.saturating_mul(2);
        };
        let mut from = last.as_ref().map_or(Seek::Start, |last| Seek::After(Position(last.sequence)));
        loop {
            let (found, more) = self.read_range(subject, from, MAX_BYTES, deadline).await?;
            let Some(end) = found.last().map(|end| end.sequence) else { return Ok(last) };
            last = self.retain_genuine(found).await?.into_iter().next_back().or(last);
            if end >= newest.sequence || !more {
                return Ok(last);
            }
            from = Seek::After(Position(end));
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
            return Err(MarkError::Failed("this role appends no marks".to_owned()));
        }
        match publish(&self.link, subject, headers, line, deadline).await {
            Ok(ack) if self.link.connects() == connects => {
                let checked = self.check_sequence(&ack, deadline).await;
                checked.map_err(|error| MarkError::Failed(error.to_string()))?;
                sequence(&ack).map(Position).ok_or_else(|| MarkError::Failed(JetError::Malformed.to_string()))
            }
            Ok(_) => Err(MarkError::Failed(RequestError::Disconnected.to_string())),
            Err(JetError::Refused { code, .. }) if WRONG_LAST_SEQUENCE.contains(&code) => Err(MarkError::Conflict),
            Err(error) => Err(MarkError::Failed(error.to_string())),
        }
    }

    /// The sequence of the last mark, if only forged marks follow `after`.
    async fn forged_behind(&self, account: &AccountId, after: u64, deadline: Instant) -> Result<Option<u64>, JetError> {
        let subject = self.subject(account, EntryKind::Mark);
        // Read first: a genuine mark that is appended in between is seen by the second read.
        let get = json!({"last_by_subj": subject});
        let (found, _) = fetch(&self.link, &self.stream(), &get, deadline).await?;
        let genuine = self.last_genuine(&subject, deadline).await?.map_or(0, |last| last.sequence);
        Ok(found.into_iter().next().map(|last| last.sequence).filter(|_| genuine == after))
    }

    /// The server already knows the batch's id: from an earlier attempt, or because another client used it first.
    async fn confirm_duplicate(
        &self,
        subject: &str,
        batch: &Batch,
        sequence: u64,
        deadline: Instant,
    ) -> Result<(), AppendError> {
        let found = fetch(&self.link, &self.stream(), &json!({"seq": sequence}), deadline).await;
        let (found, _) = found.map_err(|error| AppendError::Unknown(error.to_string()))?;
        let ours =
            |stored: &Stored| stored.subject == subject && stored.payload == batch.lines && self.is_genuine(stored);
        if found.first().is_some_and(ours) {
            return Ok(());
        }
        Err(AppendError::Unknown("the server says that it has it, and has something else".to_owned()))
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
        JetError::Unacknowledged(_) | JetError::Malformed | JetError::WrongSettings { .. } | JetError::Wrapped(_) => {
            false
        }
    }
}

/// As many entries as fit, and at least one: the server stops only once it has exceeded the limit.
fn fit_chunk(mut entries: Vec<Entry>, more: bool, max_bytes: usize, rejected: u64) -> Chunk {
    let mut bytes = 0;
    let fit = entries.iter().take_while(|entry| {
        bytes += entry.lines.len();
        bytes <= max_bytes
    });
    let fit = fit.count().max(1);
    let more = more || fit < entries.len();
    entries.truncate(fit);
    Chunk { entries, more, rejected }
}

fn sequence(ack: &Value) -> Option<u64> {
    ack.get("seq").and_then(Value::as_u64).filter(|sequence| *sequence > 0)
}

fn entry(found: Stored) -> Option<Entry> {
    let kind = match found.subject.rsplit('.').next()? {
        "d" => EntryKind::Decisions,
        "m" => EntryKind::Mark,
        _ => return None,
    };
    Some(Entry { position: Position(found.sequence), stored_at: found.at, kind, lines: found.payload })
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
