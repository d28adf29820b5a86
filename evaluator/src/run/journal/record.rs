//! The two records that a held run has: its own, which names the journal, and the journal's.
//!
//! A held run's own record has the state from which the journal took it over. INVARIANT: an evaluator of an earlier
//! version cannot read it, and so decides no check of the run: it would count from that state.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use stage0_backplane::Revision;
use stage0_contract::RUN_RECORDS;
use uuid::Uuid;

use super::super::RunState;
use super::compact::{Reader, put_bytes, put_number};
use super::packed::unpack;

/// How a held run's record begins.
const HELD: &[u8] = br#"{"ended":"held","#;
const FORMAT: u8 = 1;
const TAKEN: u8 = 1;
const CHANGED: u8 = 2;

/// Names one journal: an evaluator begins another one when it cannot know what the last has stored.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(in crate::run) struct JournalId(String);

impl JournalId {
    pub(super) fn new() -> Self {
        Self(Uuid::now_v7().simple().to_string())
    }

    /// Longer than that of a run by one word, so that it is no run of an account with this name.
    pub(super) fn key(&self) -> String {
        format!("{RUN_RECORDS}.journal.{}.runs", self.0)
    }
}

/// A run's own record.
#[derive(Debug)]
pub(in crate::run) enum RunRecord {
    Own(RunState),
    Held(HeldRecord),
}

/// Evaluators of earlier versions expect a boolean in `ended`.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::run) struct HeldRecord {
    ended: Mark,
    pub(in crate::run) journal: JournalId,
    pub(in crate::run) run: RunState,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mark {
    Held,
}

impl RunRecord {
    pub(in crate::run) fn parse(value: &[u8]) -> Result<Self, serde_json::Error> {
        if value.starts_with(HELD) {
            return serde_json::from_slice(value).map(Self::Held);
        }
        serde_json::from_slice(value).map(Self::Own)
    }
}

/// The journal that a run's record names. None: it is no held run's.
pub(super) fn journal_of(value: &[u8]) -> Option<JournalId> {
    match value.starts_with(HELD).then(|| serde_json::from_slice::<HeldRecord>(value)) {
        Some(Ok(held)) => Some(held.journal),
        Some(Err(_)) | None => None,
    }
}

pub(super) fn held(journal: JournalId, run: RunState) -> Result<Bytes, serde_json::Error> {
    serde_json::to_vec(&HeldRecord { ended: Mark::Held, journal, run }).map(Bytes::from)
}

/// A run in a journal's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    /// That of the run's own record since the journal holds it: names this hold.
    pub(super) base: Revision,
    /// No state may follow this one in the journal.
    pub(super) is_taken: bool,
    /// Packed; none: as in the run's own record.
    pub(super) state: Option<Bytes>,
}

impl Entry {
    pub(super) fn is_of(&self, key: &str, base: Revision) -> bool {
        self.base == base && self.key == key
    }

    /// The last state, if it is not that of the run's own record. `Err`: it cannot be read.
    pub(super) fn state(&self) -> Result<Option<RunState>, Unreadable> {
        self.state.as_deref().map(|packed| unpack(packed).ok_or(Unreadable)).transpose()
    }
}

/// The record of a journal was not written by this version or is torn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the record of the journal cannot be read")]
pub(in crate::run) struct Unreadable;

pub(super) fn encode<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Bytes {
    let mut out = vec![FORMAT];
    for Entry { key, base, is_taken, state } in entries {
        out.push(if *is_taken { TAKEN } else { 0 } | if state.is_some() { CHANGED } else { 0 });
        put_bytes(&mut out, key.as_bytes());
        put_number(&mut out, base.0);
        if let Some(state) = state {
            put_bytes(&mut out, state);
        }
    }
    out.into()
}

pub(super) fn decode(record: &Bytes) -> Result<Vec<Entry>, Unreadable> {
    let mut reader = Reader(record);
    if reader.byte() != Some(FORMAT) {
        return Err(Unreadable);
    }
    let mut entries = Vec::new();
    while !reader.is_empty() {
        entries.push(entry(&mut reader, record).ok_or(Unreadable)?);
    }
    Ok(entries)
}

fn entry(reader: &mut Reader<'_>, record: &Bytes) -> Option<Entry> {
    let flags = reader.byte().filter(|flags| *flags <= TAKEN | CHANGED)?;
    let key = std::str::from_utf8(reader.bytes()?).ok()?.to_owned();
    let base = Revision(reader.number()?);
    let state = if flags & CHANGED == 0 { None } else { Some(record.slice_ref(reader.bytes()?)) };
    Some(Entry { key, base, is_taken: flags & TAKEN != 0, state })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, is_taken: bool, state: Option<&'static [u8]>) -> Entry {
        Entry { key: key.to_owned(), base: Revision(300), is_taken, state: state.map(Bytes::from_static) }
    }

    #[test]
    fn a_journal_is_read_as_it_was_written_and_never_torn() {
        let entries = [
            entry("runs.a.1", false, Some(b"state")),
            entry("runs.a.2", true, Some(b"")),
            entry("runs.b.1", true, None),
            entry("runs.b.2", false, None),
        ];
        let record = encode(&entries);
        assert_eq!(decode(&record).as_deref(), Ok(&entries[..]));
        let whole: Vec<usize> = (0..=entries.len()).map(|count| encode(&entries[..count]).len()).collect();
        for end in 0..=record.len() {
            assert_eq!(decode(&record.slice(..end)).is_ok(), whole.contains(&end), "{end}");
        }
        assert_eq!(decode(&Bytes::from_static(b"{}")), Err(Unreadable));
        assert_eq!(entry("k", false, Some(b"x")).state(), Err(Unreadable));
    }

    #[test]
    fn an_earlier_version_cannot_read_a_held_run_and_this_one_reads_both() {
        let run = RunState { iterations: 7, ..RunState::new(9) };
        let record = held(JournalId::new(), run.clone()).unwrap();
        assert!(serde_json::from_slice::<RunState>(&record).is_err(), "it would count from an older state");
        let Ok(RunRecord::Held(held)) = RunRecord::parse(&record) else { panic!("not held") };
        assert_eq!(held.run, run);
        let own = serde_json::to_vec(&run).unwrap();
        assert!(matches!(RunRecord::parse(&own), Ok(RunRecord::Own(own)) if own == run));
    }
}
