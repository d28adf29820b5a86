//! Which log a data directory has: an id in the log's file, and the same id in a file beside it.
//!
//! A directory that had a log never starts another one by itself: a log file that is missing, empty or a different log
//! is refused before anything is written, until an operator accepts it. A log of an older version that has no id yet
//! gets one.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTableMetadata};

use super::store::{CLOCK, DECISIONS, LEDGER, MARKS, OpenError, next_position};
use crate::clock::settled;

const ID_FILE: &str = "log.id";
/// Key of the id in the state store of the log's own file; the record never expires.
const RECORD: &str = "log.id";
const NEVER: u64 = u64::MAX;

/// What a directory knows about its log apart from the log itself.
#[derive(Debug, Clone, Copy)]
pub struct LogHistory {
    /// Something else in the directory shows that there was a log.
    pub expected: bool,
    /// The operator accepts whatever log is there now.
    pub accept_new: bool,
}

/// Why a log is not the one that the directory had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// There is no log file.
    #[error("it is missing")]
    Missing,
    /// The log file holds nothing.
    #[error("it is empty")]
    Empty,
    /// The log has another id, or none.
    #[error("it is not the log that this directory had")]
    Another,
}

/// Refuses a log file that is missing or has no length, before a new one would be created in its place.
pub(super) fn before_open(log: &Path, history: LogHistory) -> Result<(), OpenError> {
    let io = |error: io::Error| OpenError::Io(log.to_owned(), error.to_string());
    let fault = match std::fs::metadata(log) {
        Ok(found) if found.len() > 0 => return Ok(()),
        Ok(_) => Fault::Empty,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Fault::Missing,
        Err(error) => return Err(io(error)),
    };
    let had = read_id_file(log).map_err(io)?.is_some() || history.expected;
    accept_or_refuse(log, had.then_some(fault), history)
}

pub(super) fn after_open(log: &Path, database: &Database, history: LogHistory) -> Result<(), OpenError> {
    let io = |error: io::Error| OpenError::Io(log.to_owned(), error.to_string());
    let failed = |error: redb::Error| OpenError::Io(log.to_owned(), error.to_string());
    let (own, beside) = (read_id_record(database).map_err(failed)?, read_id_file(log).map_err(io)?);
    let fault = match (&own, &beside) {
        (Some(own), Some(beside)) if own == beside => return Ok(()),
        (_, Some(_)) => Some(Fault::Another),
        (None, None) if history.expected && is_empty(database).map_err(failed)? => Some(Fault::Empty),
        // Either the first start, or the first start of a version with ids: the log may have got its id before a crash.
        (_, None) => None,
    };
    accept_or_refuse(log, fault, history)?;
    if let Some(id) = own {
        return write_id_file(log, &id).map_err(io);
    }
    let id = new_id().map_err(io)?;
    write_id_record(database, &id).map_err(failed)?;
    write_id_file(log, &id).map_err(io)
}

fn accept_or_refuse(log: &Path, fault: Option<Fault>, history: LogHistory) -> Result<(), OpenError> {
    match fault {
        None => Ok(()),
        Some(fault) if history.accept_new => {
            tracing::warn!(log = %log.display(), %fault, "decision log is not the one of before, and was accepted");
            Ok(())
        }
        Some(fault) => Err(OpenError::NotTheSame(log.to_owned(), fault)),
    }
}

fn read_id_record(database: &Database) -> Result<Option<String>, redb::Error> {
    let transaction = database.begin_read()?;
    let table = transaction.open_table(LEDGER)?;
    let found = table.get(RECORD)?;
    Ok(found.map(|found| String::from_utf8_lossy(found.value().2).into_owned()))
}

fn write_id_record(database: &Database, id: &str) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    let revision = next_position(&transaction, settled())?;
    transaction.open_table(LEDGER)?.insert(RECORD, (revision, NEVER, id.as_bytes()))?;
    transaction.commit()?;
    Ok(())
}

fn is_empty(database: &Database) -> Result<bool, redb::Error> {
    let transaction = database.begin_read()?;
    let entries = transaction.open_table(DECISIONS)?.len()? + transaction.open_table(MARKS)?.len()?;
    Ok(entries == 0 && transaction.open_table(LEDGER)?.is_empty()? && transaction.open_table(CLOCK)?.is_empty()?)
}

fn new_id() -> io::Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(data_encoding::HEXLOWER.encode(&bytes))
}

fn read_id_file(log: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(log.with_file_name(ID_FILE)) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Written to a new file and renamed, so that a crash leaves either the old id or the new one.
fn write_id_file(log: &Path, id: &str) -> io::Result<()> {
    let (file, new) = (log.with_file_name(ID_FILE), log.with_file_name("log.id.new"));
    let mut options = std::fs::OpenOptions::new();
    let mut written = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    written.write_all(format!("{id}\n").as_bytes())?;
    written.sync_all()?;
    std::fs::rename(&new, &file)?;
    match file.parent() {
        Some(directory) => std::fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::{Bus, LOG_FILE};

    const NO_HISTORY: LogHistory = LogHistory { expected: false, accept_new: false };
    const WITH_HISTORY: LogHistory = LogHistory { expected: true, accept_new: false };

    fn open(directory: &Path, history: LogHistory) -> Result<(), Fault> {
        match Bus::open_remembered(directory, history) {
            Ok(_) => Ok(()),
            Err(OpenError::NotTheSame(_, fault)) => Err(fault),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_directory_without_history_begins_a_log_and_has_it_from_then_on() {
        let directory = tempfile::tempdir().unwrap();
        for history in [NO_HISTORY, NO_HISTORY, WITH_HISTORY] {
            assert_eq!(open(directory.path(), history), Ok(()));
        }
        // As after a crash between the two.
        std::fs::remove_file(directory.path().join(ID_FILE)).unwrap();
        assert_eq!(open(directory.path(), WITH_HISTORY), Ok(()));
        assert!(directory.path().join(ID_FILE).exists());
    }

    #[test]
    fn the_log_of_an_older_version_gets_its_id() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join(LOG_FILE);
        let older = super::super::store::Store::open(&log, None).unwrap();
        drop(older);
        let database = Database::open(&log).unwrap();
        let transaction = database.begin_write().unwrap();
        next_position(&transaction, settled()).unwrap();
        transaction.commit().unwrap();
        drop(database);
        assert_eq!(open(directory.path(), WITH_HISTORY), Ok(()));
        assert_eq!(open(directory.path(), WITH_HISTORY), Ok(()));
    }

    #[test]
    fn a_log_that_is_missing_empty_or_another_one_is_refused_and_left_as_it_is_until_it_is_accepted() {
        let another = tempfile::tempdir().unwrap();
        assert_eq!(open(another.path(), NO_HISTORY), Ok(()));
        let blank = tempfile::tempdir().unwrap();
        drop(Bus::open(blank.path()).unwrap());
        let made_of = |from: &Path| std::fs::read(from.join(LOG_FILE)).unwrap();
        let cases = [
            (None, Fault::Missing),
            (Some(Vec::new()), Fault::Empty),
            (Some(made_of(another.path())), Fault::Another),
            (Some(made_of(blank.path())), Fault::Another),
        ];
        for (content, fault) in cases {
            let directory = tempfile::tempdir().unwrap();
            let log = directory.path().join(LOG_FILE);
            assert_eq!(open(directory.path(), NO_HISTORY), Ok(()));
            match &content {
                Some(content) => std::fs::write(&log, content).unwrap(),
                None => std::fs::remove_file(&log).unwrap(),
            }
            for _ in 0..2 {
                assert_eq!(open(directory.path(), NO_HISTORY), Err(fault));
            }
            // Of a log with content redb itself may give free pages back.
            let left = std::fs::metadata(&log).ok().map(|found| found.len() > 0);
            assert_eq!(left, content.map(|bytes| !bytes.is_empty()));
            assert_eq!(open(directory.path(), LogHistory { accept_new: true, ..NO_HISTORY }), Ok(()));
            assert_eq!(open(directory.path(), WITH_HISTORY), Ok(()));
        }
    }

    #[test]
    fn a_log_without_an_id_is_expected_if_the_directory_shows_one() {
        for content in [None, Some("")] {
            let directory = tempfile::tempdir().unwrap();
            if let Some(content) = content {
                std::fs::write(directory.path().join(LOG_FILE), content).unwrap();
            }
            assert!(open(directory.path(), WITH_HISTORY).is_err());
            assert_eq!(open(directory.path(), NO_HISTORY), Ok(()));
        }
        let directory = tempfile::tempdir().unwrap();
        drop(Bus::open(directory.path()).unwrap());
        assert_eq!(open(directory.path(), WITH_HISTORY), Err(Fault::Empty));
    }
}
