//! The decision log on JetStream: one message for the lines of one account that are appended together, so one fsync for
//! all of them.
//!
//! Subjects name the account, so that the server removes an account's decisions by subject; the server indexes two
//! subjects for each account and nothing for each decision. The stream's `max_age` is the store's own expiry, by its
//! own clock: a far safety net. Who may publish and purge is decided by the credentials of each role (`server_file`);
//! no role may change the stream.
//! INVARIANT: nothing is appended while it is not known that the server syncs each message, where that is to be
//! verified, nor while the stream is foreign.

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
use super::stream_watch::MAX_PLACE;
use super::streams::StreamName;
use super::{Connection, SUBSCRIPTION_CAPACITY};
use crate::{
    AppendError, AskError, Batch, BoxFuture, Chunk, DecisionLog, Entry, Kind, Ledger, MAX_MESSAGE_BYTES, MarkError,
    NotReady, Position, ReadError, Seek, SeekBack, Which,
};

pub(super) const MESSAGE_ID: HeaderName = HeaderName::from_static("Nats-Msg-Id");
pub(super) const EXPECTED_LAST: HeaderName = HeaderName::from_static("Nats-Expected-Last-Subject-Sequence");
/// Messages that one question may bring; the client's queue holds twice as many.
const MOST_MESSAGES: usize = SUBSCRIPTION_CAPACITY / 2;
/// Bytes that one question may bring, whatever its asker can take: far below what makes the server drop a slow reader.
const MOST_BYTES: usize = 2 * MAX_MESSAGE_BYTES;
/// Reading backwards begins so many places before the end, of all accounts, and steps out and in by this factor.
const FIRST_REACH: u64 = 512;
const REACH_STEP: u64 = 8;
/// Whatever fills such a part of an answer is not looked for from further back.
const FILLED_PARTS: usize = 8;
/// What is read up to a time is read up to a moment after it, and the rest left out here.
const ABOUT_NOW: SignedDuration = SignedDuration::from_millis(1);
/// The server lists at most as many subjects at once.
const SUBJECTS_A_PAGE: u64 = 100_000;
/// Acknowledgements that arrive at once may be seen in another order: so many are never under way.
const MAX_REORDERED: u64 = 4_096;
/// Fewer signatures are checked at once.
const MANY_SIGNATURES: usize = 4;
const READY_WITHIN: Duration = Duration::from_secs(1);

impl DecisionLog for Connection {
    fn append(&self, batches: Vec<Batch>, deadline: Instant) -> BoxFuture<'_, Vec<Result<(), AppendError>>> {
        Box::pin(async move {
            match self.trusted(deadline).await {
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
            let connects = self.trusted(deadline).await.map_err(MarkError::Failed)?;
            let after = after.map_or(0, |position| position.0);
            let appended = self.append_mark_after(account, line.clone(), after, connects, deadline).await;
            if appended != Err(MarkError::Conflict) {
                return appended;
            }
            // What nobody who may append put there must not stand in the way of what comes behind it.
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
        which: Which,
        from: Seek,
        max_bytes: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Chunk, ReadError>> {
        Box::pin(async move {
            let subject = match which {
                Which::All => format!("{}.log.{account}.*", self.link.prefix),
                Which::Only(kind) => self.subject(account, kind),
            };
            let bytes = max_bytes.clamp(1, MOST_BYTES);
            let (mut from, mut rejected) = (from, 0);
            loop {
                let (found, more) = self.stretch(&subject, from, bytes, deadline).await?;
                let (last, all) = (found.last().map(|last| Position(last.sequence)), found.len());
                let genuine = self.genuine(found).await?;
                rejected += u64::try_from(all - genuine.len()).unwrap_or(u64::MAX);
                // Nobody can hide what follows behind much that is forged.
                if let Some(last) = last.filter(|_| genuine.is_empty() && more) {
                    from = Seek::After(last);
                    continue;
                }
                let entries = genuine.into_iter().map(entry).collect::<Option<Vec<_>>>();
                return Ok(fitting(entries.ok_or(JetError::Unreadable)?, more, max_bytes, rejected));
            }
        })
    }

    fn read_back<'a>(
        &'a self,
        account: &'a AccountId,
        kind: Kind,
        from: SeekBack,
        max_bytes: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Chunk, ReadError>> {
        Box::pin(async move {
            let (subject, bytes) = (self.subject(account, kind), max_bytes.clamp(1, MOST_BYTES));
            let (mut place, mut rejected) = (from, 0);
            loop {
                let (mut found, more) = self.stretch_back(&subject, place, bytes, deadline).await?;
                let first = found.last().map(|first| Position(first.sequence));
                if let SeekBack::Time(time) = from {
                    found.retain(|stored| stored.at <= time);
                }
                let all = found.len();
                let genuine = self.genuine(found).await?;
                rejected += u64::try_from(all - genuine.len()).unwrap_or(u64::MAX);
                if let Some(first) = first.filter(|_| genuine.is_empty() && more) {
                    place = SeekBack::Before(first);
                    continue;
                }
                let entries = genuine.into_iter().map(entry).collect::<Option<Vec<_>>>();
                return Ok(fitting(entries.ok_or(JetError::Unreadable)?, more, max_bytes, rejected));
            }
        })
    }

    fn last<'a>(
        &'a self,
        account: &'a AccountId,
        kind: Kind,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Option<Entry>, ReadError>> {
        Box::pin(async move {
            let found = self.last_genuine(&self.subject(account, kind), deadline).await?;
            found.map(|found| entry(found).ok_or(JetError::Unreadable.into())).transpose()
        })
    }

    fn remove_through<'a>(
        &'a self,
        account: &'a AccountId,
        kind: Kind,
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
                offset += SUBJECTS_A_PAGE;
                if info.get("total").and_then(Value::as_u64).unwrap_or(0) <= offset {
                    return Ok(accounts.into_iter().collect());
                }
            }
        })
    }

    fn ready(&self) -> BoxFuture<'_, Result<Vec<String>, NotReady>> {
        Box::pin(async move {
            let until = Instant::now() + READY_WITHIN;
            let looked = self.link.streams.look_now(&self.link, &self.stream(), until).await;
            looked.map_err(|error| NotReady(format!("the decision log: {error}")))?;
            // Without these no check is counted, and no delivery goes on.
            Ledger::ready(self).await.map_err(|NotReady(why)| NotReady(format!("the ledger: {why}")))?;
            self.trusted(until).await.map_err(NotReady)?;
            self.link.sync.remarks(self.stream().as_str(), until).await.map_err(NotReady)
        })
    }
}

impl Connection {
    fn stream(&self) -> StreamName {
        StreamName::log(&self.link.prefix)
    }

    fn subject(&self, account: &AccountId, kind: Kind) -> String {
        let kind = match kind {
            Kind::Decisions => 'd',
            Kind::Mark => 'm',
        };
        format!("{}.log.{account}.{kind}", self.link.prefix)
    }

    /// The number of the connection on which an append may be believed: an acknowledgement on a later one is of a server that may
    /// have started again meanwhile.
    async fn trusted(&self, deadline: Instant) -> Result<u64, String> {
        let connects = self.link.connects();
        self.link.sync.check(connects, deadline).await?;
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
        let subject = self.subject(&batch.account, Kind::Decisions);
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
            Ok(_) => self.link.sync.appended(None),
            Err(error) => {
                if let Some(why) = error.no_room() {
                    self.link.sync.appended(Some(why.to_owned()));
                }
            }
        }
        let published = match published {
            Ok(ack) => self.in_order(&ack, deadline).await.map(|()| ack),
            Err(error) => Err(error),
        };
        match published {
            Ok(_) if self.link.connects() != connects => Err(AppendError::Unknown(AskError::Lost.to_string())),
            Ok(ack) if is_duplicate(&ack) && self.link.auth.is_some() => {
                self.confirm_duplicate(&subject, &batch, sequence(&ack).unwrap_or_default(), deadline).await
            }
            Ok(_) => Ok(()),
            Err(error) if is_for_certain(&error, self.link.auth.is_some()) => {
                Err(AppendError::NotStored(error.to_string()))
            }
            Err(error) => Err(AppendError::Unknown(error.to_string())),
        }
    }

    /// Whether what the server acknowledges goes on where it was before; else the stream is looked at, and so at the
    /// first time. What it stores where nobody finds it is not recorded.
    async fn in_order(&self, ack: &Value, deadline: Instant) -> Result<(), JetError> {
        let place = sequence(ack).ok_or(JetError::Unreadable)?;
        let before = self.link.last_place.fetch_max(place, Ordering::AcqRel);
        let goes_on = place > before || (before > MAX_REORDERED && before - place < MAX_REORDERED);
        if before > 0 && goes_on && place <= MAX_PLACE {
            return Ok(());
        }
        match self.link.streams.look_now(&self.link, &self.stream(), deadline).await {
            Ok(()) | Err(JetError::Full(_)) => Ok(()),
            Err(error @ (JetError::Wrapped(_) | JetError::Foreign { .. })) => Err(error),
            // It was stored, and perhaps not where it is found.
            Err(_) => Err(JetError::Unreadable),
        }
    }
}

/// What is genuine among what is stored.
impl Connection {
    /// What is stored from some place on, whoever put it there; whether there is more.
    async fn stretch(
        &self,
        subject: &str,
        from: Seek,
        bytes: usize,
        deadline: Instant,
    ) -> Result<(Vec<Stored>, bool), JetError> {
        let mut get = json!({"batch": MOST_MESSAGES, "max_bytes": bytes, "next_by_subj": subject});
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

    /// What is stored before some place, the newest first; whether there may be more. The server reads forwards alone:
    /// so one question finds the end, and others what stands before it, each from further back until enough is found
    /// or more than an answer brings.
    async fn stretch_back(
        &self,
        subject: &str,
        from: SeekBack,
        bytes: usize,
        deadline: Instant,
    ) -> Result<(Vec<Stored>, bool), JetError> {
        let get = match from {
            SeekBack::End => json!({"last_by_subj": subject}),
            // The server has no such place, and would find nothing before it.
            SeekBack::Before(position) if position.0 > MAX_PLACE => json!({"last_by_subj": subject}),
            SeekBack::Before(Position(0 | 1)) => return Ok((Vec::new(), false)),
            SeekBack::Before(position) => {
                json!({"batch": 1, "multi_last": [subject], "up_to_seq": position.0.saturating_sub(1)})
            }
            SeekBack::Time(time) => {
                // The server takes what was stored before it.
                let up_to = in_range(time.checked_add(ABOUT_NOW).unwrap_or(Timestamp::MAX));
                json!({"batch": 1, "multi_last": [subject], "up_to_time": up_to.to_string()})
            }
        };
        let (found, _) = fetch(&self.link, &self.stream(), &get, deadline).await?;
        let Some(newest) = found.into_iter().next() else { return Ok((Vec::new(), false)) };
        let end = newest.sequence;
        let (mut best, mut reach, mut grows) = (vec![newest], FIRST_REACH, true);
        while reach > 0 {
            let first = end.saturating_sub(reach).max(1);
            let (mut found, _) =
                self.stretch(subject, Seek::After(Position(first.saturating_sub(1))), bytes, deadline).await?;
            let is_whole = found.last().is_some_and(|last| last.sequence >= end);
            if !is_whole {
                // Too far: what was found from nearer is taken, if it was looked for.
                if best.len() > 1 {
                    break;
                }
                (reach, grows) = (reach / REACH_STEP, false);
                continue;
            }
            found.retain(|stored| stored.sequence <= end);
            found.reverse();
            best = found;
            if first == 1 {
                return Ok((best, false));
            }
            let size: usize = best.iter().map(|stored| stored.payload.len()).sum();
            if !grows || size >= bytes / FILLED_PARTS || best.len() >= MOST_MESSAGES / FILLED_PARTS {
                break;
            }
            reach = reach.saturating_mul(REACH_STEP);
        }
        Ok((best, end > 1))
    }

    /// Without what nobody who may append put there. Signatures take time: many are checked where nobody else waits for
    /// it.
    async fn genuine(&self, mut found: Vec<Stored>) -> Result<Vec<Stored>, JetError> {
        let Some(auth) = self.link.auth.clone() else {
            found.retain(|stored| !is_malformed(stored.headers.as_ref()));
            return Ok(found);
        };
        if found.len() <= MANY_SIGNATURES {
            found.retain(|stored| auth.is_genuine(stored));
            return Ok(found);
        }
        let checking = tokio::task::spawn_blocking(move || {
            found.retain(|stored| auth.is_genuine(stored));
            found
        });
        checking.await.map_err(|_| JetError::Unreadable)
    }

    fn is_genuine(&self, stored: &Stored) -> bool {
        match &self.link.auth {
            Some(auth) => auth.is_genuine(stored),
            None => !is_malformed(stored.headers.as_ref()),
        }
    }

    /// The last of a subject that may be believed. Where others stand behind it, steps back grow until one that may is
    /// found, and what lies between is read: so a thousand forged ones cost a few questions, and not a thousand.
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
            let (found, more) = self.stretch(subject, from, MOST_BYTES, deadline).await?;
            let Some(end) = found.last().map(|end| end.sequence) else { return Ok(last) };
            last = self.genuine(found).await?.into_iter().next_back().or(last);
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
        let (mut headers, subject) = (HeaderMap::new(), self.subject(account, Kind::Mark));
        headers.insert(EXPECTED_LAST, HeaderValue::from(after));
        if let Some(auth) = &self.link.auth
            && auth.sign_entry(&subject, "", &line, &mut headers).is_none()
        {
            return Err(MarkError::Failed("this role appends no marks".to_owned()));
        }
        match publish(&self.link, subject, headers, line, deadline).await {
            Ok(ack) if self.link.connects() == connects => {
                let in_order = self.in_order(&ack, deadline).await;
                in_order.map_err(|error| MarkError::Failed(error.to_string()))?;
                sequence(&ack).map(Position).ok_or_else(|| MarkError::Failed(JetError::Unreadable.to_string()))
            }
            Ok(_) => Err(MarkError::Failed(AskError::Lost.to_string())),
            Err(JetError::Refused { code, .. }) if WRONG_LAST_SEQUENCE.contains(&code) => Err(MarkError::Conflict),
            Err(error) => Err(MarkError::Failed(error.to_string())),
        }
    }

    /// The last mark's place where only such stand behind `after` that nobody who may append put there.
    async fn forged_behind(&self, account: &AccountId, after: u64, deadline: Instant) -> Result<Option<u64>, JetError> {
        let subject = self.subject(account, Kind::Mark);
        // First: a genuine one that is appended meanwhile is seen by the second look.
        let get = json!({"last_by_subj": subject});
        let (found, _) = fetch(&self.link, &self.stream(), &get, deadline).await?;
        let genuine = self.last_genuine(&subject, deadline).await?.map_or(0, |last| last.sequence);
        Ok(found.into_iter().next().map(|last| last.sequence).filter(|_| genuine == after))
    }

    /// The server knows the batch's id already: from an earlier attempt, or from somebody who said it first.
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

/// Whether the message is certainly not in the stream, and will not be. `doubted`: a refusal is an answer like others,
/// and on a server that takes everybody anybody can give it; a chain that went on from there would fork.
fn is_for_certain(error: &JetError, doubted: bool) -> bool {
    match error {
        error if error.no_room().is_some() => !doubted,
        JetError::Refused { code, .. } => !doubted && !matches!(*code, STORE_FAILED | DUPLICATE_IN_PROCESS),
        JetError::Absent
        | JetError::Missing(_)
        | JetError::Former(_)
        | JetError::Full(_)
        | JetError::NotInAccount(_) => !doubted,
        JetError::Forbidden(_) | JetError::Overdue | JetError::NotSent => true,
        // Perhaps after it was stored.
        JetError::Unknown(_) | JetError::Unreadable | JetError::Foreign { .. } | JetError::Wrapped(_) => false,
    }
}

/// As many as fit, and at least one: the server stops only once it has sent too much.
fn fitting(mut entries: Vec<Entry>, more: bool, max_bytes: usize, rejected: u64) -> Chunk {
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
        "d" => Kind::Decisions,
        "m" => Kind::Mark,
        _ => return None,
    };
    Some(Entry { position: Position(found.sequence), stored_at: found.at, kind, lines: found.payload })
}

/// `<prefix>.log.<account>.<kind>`.
fn account_in(subject: &str) -> Option<AccountId> {
    AccountId::parse(subject.rsplit('.').nth(1)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_that_anybody_could_have_given_proves_nothing() {
        let full = JetError::Refused { code: 10_002, description: String::new() };
        let at_limit = JetError::Refused { code: STORE_FAILED, description: "maximum bytes exceeded".to_owned() };
        let failed = JetError::Refused { code: STORE_FAILED, description: "disk".to_owned() };
        for (error, certain, doubted) in [
            (full, true, false),
            (at_limit, true, false),
            (failed, false, false),
            (JetError::Absent, true, false),
            (JetError::Overdue, true, true),
            (JetError::NotSent, true, true),
            (JetError::Unreadable, false, false),
        ] {
            assert_eq!((is_for_certain(&error, false), is_for_certain(&error, true)), (certain, doubted), "{error}");
        }
    }
}
