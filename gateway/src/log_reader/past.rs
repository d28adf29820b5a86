//! Decisions of the past, the newest first, with the facts that were kept with them.
//!
//! A piece of the log is read at a time, so that memory is bounded however many decisions are asked for.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use stage0_backplane::{EntryKind, ReadError, SeekBack};
use stage0_contract::{IssueCode, KeptFacts, LineType, PolicyVersion, RequestId, Verdict, is_same_environment};
use tokio::task::yield_now;
use tokio::time::Instant;

use super::{CHUNK_BYTES, CHUNK_TIMEOUT, FAR, LINES_PER_YIELD, LogReader, MAX_CLOCK_SKEW};

/// The most bytes of decisions that are looked at for one question: decisions of a small environment may lie far apart
/// among those of a large one.
const MAX_SCAN_BYTES: usize = 64 << 20;

/// In which environments decisions were made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Environments {
    Only(String),
    /// In all others than these, and in none.
    Except(Vec<String>),
}

/// What of the log is read, piece by piece.
pub(crate) struct Past {
    log: LogReader,
    from: Timestamp,
    until: Timestamp,
    environments: Environments,
    /// Whether those that were allowed are left out: nothing lets them further.
    refused_only: bool,
    /// Where the next piece begins; none after the last.
    seek: Option<SeekBack>,
    /// How many more decisions are wanted.
    left: usize,
    scanned: usize,
    has_older: bool,
}

/// A recorded decision.
#[derive(Debug)]
pub(crate) struct PastDecision {
    pub(crate) request_id: RequestId,
    pub(crate) recorded_at: Timestamp,
    pub(crate) policy_version: PolicyVersion,
    pub(crate) floor_version: Option<PolicyVersion>,
    /// By which the policy was selected. Empty without one.
    pub(crate) environment: String,
    pub(crate) verdict: Verdict,
    /// The code and the rule of the gravest issue.
    pub(crate) issue: Option<(IssueCode, String)>,
    pub(crate) facts: Kept,
    /// The length of its line.
    pub(crate) bytes: usize,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Kept {
    Facts(Box<KeptFacts>),
    Nothing,
    /// By another release, in a form that this one does not know.
    Unreadable,
    /// They were taken out.
    Taken,
}

/// The members of a line that say whether it is wanted.
#[derive(Deserialize)]
struct PlaceFields<'l> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'l, str>,
    recorded_at: Timestamp,
    expires_at: i64,
    verdict: Verdict,
    #[serde(borrow)]
    environment: Cow<'l, str>,
    #[serde(default, borrow)]
    facts: Option<PlaceOfFacts<'l>>,
}

/// Beside facts: the resolved environment may come from another member than the one that selects the policy.
#[derive(Deserialize)]
struct PlaceOfFacts<'l> {
    #[serde(default, borrow)]
    place: Cow<'l, str>,
}

#[derive(Deserialize)]
struct DecisionFields {
    request_id: RequestId,
    recorded_at: Timestamp,
    policy_version: PolicyVersion,
    floor_version: Option<PolicyVersion>,
    environment: String,
    verdict: Verdict,
    issues: Vec<IssueFields>,
    facts: Option<Value>,
}

#[derive(Deserialize)]
struct IssueFields {
    code: IssueCode,
    rule: String,
}

impl Environments {
    fn has(&self, environment: &str) -> bool {
        match self {
            Self::Only(wanted) => is_same_environment(wanted, environment),
            Self::Except(others) => !others.iter().any(|other| is_same_environment(other, environment)),
        }
    }
}

impl Past {
    /// At most `limit` decisions that were recorded at or after `from` and before `until`.
    pub(crate) fn new(
        log: LogReader,
        (from, until): (Timestamp, Timestamp),
        environments: Environments,
        limit: usize,
    ) -> Self {
        // An entry is stored after it was recorded, by a clock that may differ.
        let seek = Some(SeekBack::Time(until.checked_add(FAR.after).unwrap_or(Timestamp::MAX)));
        let refused_only = false;
        Self { log, from, until, environments, refused_only, seek, left: limit, scanned: 0, has_older: false }
    }

    /// Only those that were not allowed.
    #[must_use]
    pub(crate) fn refused_only(mut self, refused_only: bool) -> Self {
        self.refused_only = refused_only;
        self
    }

    /// Whether there is another piece to read.
    pub(crate) fn goes_on(&self) -> bool {
        self.seek.is_some()
    }

    /// Whether it ended before the log did.
    pub(crate) fn has_older(&self) -> bool {
        self.has_older
    }

    /// The decisions of the next piece, and the rest.
    pub(crate) async fn next(mut self) -> Result<(Vec<PastDecision>, Self), ReadError> {
        let Some(seek) = self.seek.take() else { return Ok((Vec::new(), self)) };
        let LogReader { log, account, .. } = &self.log;
        let deadline = Instant::now() + CHUNK_TIMEOUT;
        let chunk = log.read_back(account, EntryKind::Decisions, seek, CHUNK_BYTES, deadline).await?;
        let earliest = self.from.max(self.log.horizon).checked_sub(MAX_CLOCK_SKEW).unwrap_or(Timestamp::UNIX_EPOCH);
        let mut found = Vec::new();
        let mut lines = 0;
        for entry in &chunk.entries {
            if entry.stored_at < earliest {
                return Ok((found, self));
            }
            let mut of_entry: Vec<&[u8]> = entry.lines().collect();
            of_entry.reverse();
            for line in of_entry {
                lines += 1;
                if lines % LINES_PER_YIELD == 0 {
                    yield_now().await;
                }
                if !self.is_wanted(line) {
                    continue;
                }
                let Some(decision) = PastDecision::read(line) else { continue };
                if self.left == 0 {
                    self.has_older = true;
                    return Ok((found, self));
                }
                self.left -= 1;
                found.push(decision);
            }
        }
        self.seek = chunk.entries.last().filter(|_| chunk.more).map(|last| SeekBack::Before(last.position));
        if self.scanned >= MAX_SCAN_BYTES && self.seek.is_some() {
            (self.seek, self.has_older) = (None, true);
        }
        Ok((found, self))
    }

    /// Whether the line is a decision that was asked for. What was recorded later does not count as looked at, so that
    /// the same question later looks at the same.
    fn is_wanted(&mut self, line: &[u8]) -> bool {
        let Ok(fields) = serde_json::from_slice::<PlaceFields<'_>>(line) else { return false };
        if fields.recorded_at >= self.until {
            return false;
        }
        self.scanned = self.scanned.saturating_add(line.len());
        fields.kind == LineType::Decision.as_str()
            && fields.recorded_at >= self.from
            && self.log.is_visible(fields.recorded_at, fields.expires_at)
            && !(self.refused_only && fields.verdict == Verdict::Allow)
            && self.environments.has(fields.facts.as_ref().map_or(&fields.environment, |facts| &facts.place))
    }
}

impl Kept {
    /// Takes the facts out, if there are any.
    pub(crate) fn take(&mut self) -> Option<KeptFacts> {
        match std::mem::replace(self, Self::Taken) {
            Self::Facts(facts) => Some(*facts),
            other => {
                *self = other;
                None
            }
        }
    }
}

impl PastDecision {
    /// None for a line that is damaged.
    fn read(line: &[u8]) -> Option<Self> {
        let DecisionFields {
            request_id,
            recorded_at,
            policy_version,
            floor_version,
            environment,
            verdict,
            issues,
            facts,
        } = serde_json::from_slice(line).ok()?;
        let facts = match facts {
            None | Some(Value::Null) => Kept::Nothing,
            Some(facts) => serde_json::from_value(facts).map_or(Kept::Unreadable, |facts| Kept::Facts(Box::new(facts))),
        };
        // They are in the order of their gravity.
        let issue = issues.into_iter().next().map(|issue| (issue.code, issue.rule));
        let environment = match &facts {
            Kept::Facts(facts) => facts.place.clone().unwrap_or_default(),
            Kept::Nothing | Kept::Unreadable | Kept::Taken => environment,
        };
        Some(Self {
            request_id,
            recorded_at,
            policy_version,
            floor_version,
            environment,
            verdict,
            issue,
            facts,
            bytes: line.len(),
        })
    }
}

#[cfg(test)]
mod tests;
