//! What a hook remembers between its processes: the guard's name and counts, and which calls it allowed.
//!
//! Several processes of one agent run at the same time; a lock keeps their changes apart, and is waited for briefly.
//! INVARIANT: nothing of it decides a call, and no text of a call is in it: an allowed call is the hash of its id.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, anyhow};
use data_encoding::HEXLOWER;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use stage0_contract::{GuardCounts, GuardId, canonical_hash, is_guard_text};

/// Heartbeats are sent at most this often, unless a session begins or ends.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(60);
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
const LOCK_INTERVAL: Duration = Duration::from_millis(5);
/// A call whose end was not seen by then is forgotten.
const CALL_TTL: Duration = Duration::from_secs(24 * 3_600);
/// The most files that one process looks at to forget old ones.
const MAX_LOOKED_AT: usize = 1_000;
const FILE: &str = "guard.json";

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    guard_id: GuardId,
    #[serde(flatten)]
    counts: GuardCounts,
    /// When the last report was accepted.
    #[serde(default)]
    reported_at: Option<SystemTime>,
}

/// What a process saw of a call.
pub(super) enum Seen<'s> {
    Allowed { call_id: Option<&'s str>, request_id: &'s str },
    Refused,
    Undecided,
    RanUndecided,
}

pub(super) struct State {
    dir: PathBuf,
    named: Option<GuardId>,
    agent: String,
}

/// The directory that is used where none is named.
pub(super) fn default_dir() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("stage0/guard"))
}

/// The machine's name, if it can stand in a report.
pub(super) fn host() -> Option<String> {
    let name = rustix::system::uname().nodename().to_str().ok()?.to_owned();
    is_guard_text(&name).then_some(name)
}

impl State {
    pub(super) fn open(dir: Option<&Path>, agent: &str, named: Option<&GuardId>) -> anyhow::Result<Self> {
        let base = dir.map(Path::to_owned).or_else(default_dir).context("neither HOME nor --state-dir is set")?;
        let dir = base.join(agent);
        fs::create_dir_all(dir.join("calls")).with_context(|| format!("cannot create `{}`", dir.display()))?;
        Ok(Self { dir, named: named.cloned(), agent: agent.to_owned() })
    }

    pub(super) fn note(&self, session: Option<&str>, seen: &Seen<'_>) -> anyhow::Result<()> {
        if let Seen::Allowed { call_id: Some(call_id), request_id } = seen {
            replace(&self.call(session, call_id), request_id.as_bytes())?;
        }
        self.change(|kept| {
            let counts = &mut kept.counts;
            match seen {
                Seen::Allowed { .. } => counts.asked += 1,
                Seen::Refused => (counts.asked, counts.refused) = (counts.asked + 1, counts.refused + 1),
                Seen::Undecided => (counts.asked, counts.undecided) = (counts.asked + 1, counts.undecided + 1),
                Seen::RanUndecided => counts.ran_undecided += 1,
            }
        })
        .map(|_| ())
    }

    /// The decision that allowed this call, once.
    pub(super) fn take(&self, session: Option<&str>, call_id: &str) -> anyhow::Result<Option<String>> {
        let path = self.call(session, call_id);
        match fs::read_to_string(&path) {
            Ok(request_id) => {
                let _ = fs::remove_file(&path);
                Ok(Some(request_id))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Name and counts for a report, if one is due.
    pub(super) fn due(&self, at_once: bool) -> anyhow::Result<Option<(GuardId, GuardCounts)>> {
        let kept = self.change(|_| ())?;
        let is_recent = kept.reported_at.and_then(|at| at.elapsed().ok()).is_some_and(|age| age < HEARTBEAT_INTERVAL);
        Ok((at_once || !is_recent).then_some((kept.guard_id, kept.counts)))
    }

    pub(super) fn reported(&self) {
        let _ = self.change(|kept| kept.reported_at = Some(SystemTime::now()));
        self.forget_old_calls();
    }

    fn call(&self, session: Option<&str>, call_id: &str) -> PathBuf {
        let named = json!({"session": session, "call": call_id});
        let hash = named.as_object().map(canonical_hash).unwrap_or_else(|| canonical_hash(&Map::new()));
        self.dir.join("calls").join(hash)
    }

    fn change(&self, change: impl FnOnce(&mut Kept)) -> anyhow::Result<Kept> {
        let lock = File::options().create(true).append(true).open(self.dir.join("lock"))?;
        let until = Instant::now() + LOCK_TIMEOUT;
        while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            if Instant::now() >= until {
                return Err(anyhow!("another process holds `{}`", self.dir.join("lock").display()));
            }
            thread::sleep(LOCK_INTERVAL);
        }
        let path = self.dir.join(FILE);
        // A file that cannot be read is begun again: a guard without a name could not report at all.
        let kept = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok());
        let is_new = kept.is_none();
        let mut kept = match kept {
            Some(kept) => kept,
            None => Kept { guard_id: self.new_id()?, counts: GuardCounts::default(), reported_at: None },
        };
        if let Some(named) = &self.named {
            kept.guard_id = named.clone();
        }
        let before = serde_json::to_vec(&kept)?;
        change(&mut kept);
        let after = serde_json::to_vec(&kept)?;
        if is_new || after != before {
            replace(&path, &after)?;
        }
        Ok(kept)
    }

    fn new_id(&self) -> anyhow::Result<GuardId> {
        let mut random = [0; 5];
        getrandom::fill(&mut random).map_err(|error| anyhow!("no randomness: {error}"))?;
        let host = host().unwrap_or_default();
        let plain: String = host.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(32).collect();
        let text = format!("{}-{plain}-{}", self.agent, HEXLOWER.encode(&random));
        Ok(GuardId::parse(&text)?)
    }

    fn forget_old_calls(&self) {
        let Ok(calls) = fs::read_dir(self.dir.join("calls")) else { return };
        for call in calls.flatten().take(MAX_LOOKED_AT) {
            let age = call.metadata().and_then(|data| data.modified()).ok().and_then(|at| at.elapsed().ok());
            if age.is_some_and(|age| age > CALL_TTL) {
                let _ = fs::remove_file(call.path());
            }
        }
    }
}

/// Replaces the whole file or leaves it as it was.
fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    let written = File::create(&beside).and_then(|mut file| file.write_all(bytes));
    written.and_then(|()| fs::rename(&beside, path)).with_context(|| format!("cannot write `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowed_call_is_found_once_and_only_by_its_own_session_and_id() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(Some(dir.path()), "codex", None).unwrap();
        state.note(Some("s"), &Seen::Allowed { call_id: Some("../c"), request_id: "r" }).unwrap();
        assert_eq!(state.take(Some("t"), "../c").unwrap(), None);
        assert_eq!(state.take(None, "../c").unwrap(), None);
        assert_eq!(state.take(Some("s"), "../c").unwrap().as_deref(), Some("r"));
        assert_eq!(state.take(Some("s"), "../c").unwrap(), None);
    }

    #[test]
    fn counts_are_kept_over_processes_and_threads_and_the_name_stays() {
        let dir = tempfile::tempdir().unwrap();
        let open = || State::open(Some(dir.path()), "codex", None).unwrap();
        let (name, _) = open().due(true).unwrap().unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..5).for_each(|_| open().note(None, &Seen::Refused).unwrap()));
            }
        });
        open().note(None, &Seen::Undecided).unwrap();
        open().note(None, &Seen::RanUndecided).unwrap();
        let (again, counts) = open().due(true).unwrap().unwrap();
        assert_eq!(again, name);
        assert_eq!(counts, GuardCounts { asked: 21, refused: 20, undecided: 1, ran_undecided: 1 });
        open().reported();
        assert!(open().due(false).unwrap().is_none() && open().due(true).unwrap().is_some());
        let named = GuardId::parse("mine").unwrap();
        let (own, _) = State::open(Some(dir.path()), "codex", Some(&named)).unwrap().due(true).unwrap().unwrap();
        assert_eq!(own, named);
    }

    #[test]
    fn a_damaged_file_is_begun_again() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(Some(dir.path()), "codex", None).unwrap();
        fs::write(dir.path().join("codex").join(FILE), "{").unwrap();
        state.note(None, &Seen::Refused).unwrap();
        assert_eq!(state.due(true).unwrap().unwrap().1.refused, 1);
    }
}
