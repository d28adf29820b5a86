//! What the server remembers of a run, and how a check changes it.
//!
//! Owns the rules of contract section 6: only an ALLOW advances a run, the highest value ever reported is kept, an estimate is
//! reserved until it is settled or expires, and a check that is asked again counts once. Pure; `desk` brings it to the ledger.
//! INVARIANT: nothing that a caller sends makes a count smaller, but for a settlement that its key allows.

mod desk;
mod list;
mod quota;
mod view;
mod waiting;

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use stage0_contract::{Decision, FieldError, MAX_USD, ManageReply, Micros, Refusal, RequestId, RunId, Scope, Verdict};

use crate::facts::{Calls, Facts, Past, Said};

pub use desk::RunConfig;
pub(crate) use desk::Runs;

/// Allowed checks that a run remembers one by one: they can be asked again and settled. Estimates of older ones count as spent.
const MOST_ALLOWED: usize = 100;
/// Calls that are shown.
const MOST_TOOLS: usize = 100;
/// Tools that are told apart; calls of further ones count for all.
const MOST_NAMES: usize = 200;
/// And what their names take in the record together.
const MAX_NAME_BYTES: usize = 16 * 1_024;
/// What the names of the calls that are shown take together.
const MAX_SHOWN_BYTES: usize = 8 * 1_024;
/// Seconds for which a check can be asked again, at least: an idempotency key lives as long.
const REPEATABLE: i64 = 600;
/// Seconds by which two readings of the store's clock may differ at most.
const CLOCK_TOLERANCE: i64 = 10;
/// A name that mixes scripts.
const ANY_TOOL: &str = "?";

/// A run, as the ledger has it. Times are whole seconds since the epoch, money is in millionths of a dollar.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RunState {
    /// As its first check without a secret names it; none until then, and of an earlier version.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<RunId>,
    /// The run was ended: as good as absent.
    ended: bool,
    first_seen: i64,
    last_seen: i64,
    expires_at: i64,
    /// The highest that was allowed.
    iterations: i64,
    /// The highest that was reported.
    reported_iteration: i64,
    retries: i64,
    /// The highest that was reported.
    elapsed_micros: i64,
    /// Settled, expired, and what was reported beyond all that was counted.
    spent_micros: i64,
    calls: std::collections::BTreeMap<String, i64>,
    any_calls: i64,
    tools: VecDeque<String>,
    allowed: VecDeque<Allowed>,
    /// The last day, since the epoch, on which it counted as one of its account's runs.
    counted_on: i64,
}

/// A check that was allowed, with what decides when it is asked again. A run holds many: names are short, and what is usual is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Allowed {
    /// Its first attempt.
    #[serde(rename = "o")]
    operation: RequestId,
    /// Its last attempt, where that is another one: the one that may have been answered.
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    again: Option<RequestId>,
    #[serde(rename = "t")]
    at: i64,
    #[serde(rename = "i")]
    iteration: i64,
    /// Calls of the busiest tool with it.
    #[serde(rename = "c", default, skip_serializing_if = "is_zero")]
    calls: i64,
    /// Money before it.
    #[serde(rename = "b", default, skip_serializing_if = "is_zero")]
    before_micros: i64,
    #[serde(rename = "e", default, skip_serializing_if = "is_zero")]
    estimate_micros: i64,
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    settled_micros: Option<i64>,
    /// Nobody settled it in time: its estimate is spent.
    #[serde(rename = "x", default, skip_serializing_if = "std::ops::Not::not")]
    expired: bool,
}

/// What a run learns from a check that was decided.
#[derive(Debug)]
pub(crate) struct Lesson {
    allowed: bool,
    iteration: i64,
    calls: i64,
    before_micros: i64,
    estimate_micros: i64,
    said: Option<Said>,
    /// A request with a secret in it teaches no names.
    secret: bool,
}

/// One check of a run: when, and which.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Occasion {
    pub(crate) now: i64,
    pub(crate) request_id: RequestId,
    pub(crate) operation: RequestId,
}

impl Lesson {
    pub(crate) fn new(decision: &Decision, facts: Facts) -> Self {
        let run = facts.run;
        let estimate_micros = run.estimated_cost.map_or(0, Micros::get);
        Self {
            allowed: decision.verdict == Verdict::Allow,
            iteration: run.iteration,
            calls: run.same_tool_calls,
            before_micros: run.cost_micros.saturating_sub(estimate_micros),
            estimate_micros,
            said: run.said,
            secret: !facts.secrets.is_empty(),
        }
    }
}

impl RunState {
    /// A run that nobody has seen.
    pub(crate) fn new(now: i64) -> Self {
        Self { first_seen: now, last_seen: now, ..Self::default() }
    }

    /// The clocks of those who ask differ: what counts tomorrow counts today.
    fn counts_on(&self, day: i64) -> bool {
        self.counted_on == day || self.counted_on == day + 1
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// What stands in the place of a run that was ended, until the ledger forgets it.
    pub(crate) fn tombstone() -> Self {
        Self { ended: true, ..Self::default() }
    }

    /// Turns estimates that nobody settled in time into money spent, and forgets what can no longer be asked again.
    pub(crate) fn expire(&mut self, now: i64, reserved_for: i64) {
        self.follow(now);
        for allowed in &mut self.allowed {
            if allowed.at.saturating_add(reserved_for) <= now {
                self.spent_micros = self.spent_micros.saturating_add(allowed.reserved());
                allowed.expired = true;
            }
        }
        let kept_for = reserved_for.max(REPEATABLE);
        while self.allowed.front().is_some_and(|allowed| allowed.at.saturating_add(kept_for) <= now) {
            self.allowed.pop_front();
        }
    }

    /// After the store's clock was ahead and is right again, a run that began meanwhile goes on from the time that it
    /// had run: its own beginning is still to come, and until then its time would stand still.
    fn follow(&mut self, now: i64) {
        if self.last_seen > now.saturating_add(CLOCK_TOLERANCE) {
            let ran = self.last_seen.saturating_sub(self.first_seen).max(0);
            (self.first_seen, self.last_seen) = (now.saturating_sub(ran), now);
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.allowed.pop_front() {
            self.spent_micros = self.spent_micros.saturating_add(oldest.reserved());
        }
    }

    fn reserved_micros(&self) -> i64 {
        self.allowed.iter().map(Allowed::reserved).fold(0, i64::saturating_add)
    }

    /// Ten thousand amounts of the largest kind are more than can be counted: what is spent stays at the most there is
    /// then, above every limit.
    fn total_micros(&self) -> i64 {
        self.spent_micros.saturating_add(self.reserved_micros())
    }

    fn elapsed_micros(&self, now: i64) -> i64 {
        // The clocks of those who ask differ a little: time does not go back for it.
        let now = now.max(self.last_seen);
        let by_the_clock = now.saturating_sub(self.first_seen).max(0).saturating_mul(1_000_000);
        self.elapsed_micros.max(by_the_clock)
    }

    /// What a check finds; one that was allowed before finds what it found then.
    pub(crate) fn past(&self, occasion: Occasion) -> Past {
        let (retries, elapsed_micros) = (self.retries, self.elapsed_micros(occasion.now));
        match self.allowed.iter().find(|allowed| allowed.operation == occasion.operation) {
            Some(again) => Past {
                iteration: again.iteration,
                retries,
                elapsed_micros,
                cost_micros: again.before_micros,
                calls: Calls::default(),
                same_tool_calls: again.calls,
            },
            None => Past {
                iteration: self.iterations.saturating_add(1).max(self.reported_iteration),
                retries,
                elapsed_micros,
                cost_micros: self.total_micros(),
                calls: Calls { known: self.calls.clone(), any: self.any_calls },
                same_tool_calls: 0,
            },
        }
    }

    /// Learns the run's name from a decided check that names it.
    pub(crate) fn learn_name(&mut self, lesson: &Lesson, name: Option<RunId>) {
        if self.name.is_none() && !lesson.secret {
            self.name = name;
        }
    }

    /// Takes in a decided check.
    pub(crate) fn learn(&mut self, occasion: Occasion, lesson: &Lesson) {
        if let Some(said) = &lesson.said {
            self.hear(said, lesson.secret);
        }
        if !lesson.allowed {
            return;
        }
        if let Some(again) = self.allowed.iter_mut().find(|allowed| allowed.operation == occasion.operation) {
            // A first question that arrives late names no attempt that anybody still waits for.
            if occasion.request_id != again.operation {
                again.again = Some(occasion.request_id);
            }
            return;
        }
        self.last_seen = self.last_seen.max(occasion.now);
        self.iterations = self.iterations.max(lesson.iteration);
        if self.allowed.len() >= MOST_ALLOWED {
            self.forget_oldest();
        }
        self.allowed.push_back(Allowed {
            operation: occasion.operation,
            again: (occasion.request_id != occasion.operation).then_some(occasion.request_id),
            at: occasion.now,
            iteration: lesson.iteration,
            calls: lesson.calls,
            before_micros: lesson.before_micros,
            estimate_micros: lesson.estimate_micros,
            settled_micros: None,
            expired: false,
        });
        for tool in lesson.said.iter().flat_map(|said| &said.proposed) {
            self.call(tool.as_deref());
        }
    }

    fn hear(&mut self, said: &Said, secret: bool) {
        self.reported_iteration = self.reported_iteration.max(said.iteration);
        self.retries = self.retries.max(said.retries);
        self.elapsed_micros = self.elapsed_micros.max(said.elapsed_micros);
        self.spent_micros =
            self.spent_micros.saturating_add(said.spent_micros.saturating_sub(self.total_micros()).max(0));
        if secret {
            return;
        }
        self.any_calls = self.any_calls.max(said.calls.any);
        for (name, count) in &said.calls.known {
            match self.known_calls(name) {
                Some(calls) => *calls = (*calls).max(*count),
                None => self.any_calls = self.any_calls.max(*count),
            }
        }
    }

    fn call(&mut self, tool: Option<&str>) {
        let name = tool.unwrap_or(ANY_TOOL).to_owned();
        let counted = tool.and_then(|_| self.known_calls(&name));
        match counted {
            Some(calls) => *calls = calls.saturating_add(1),
            None => self.any_calls = self.any_calls.saturating_add(1),
        }
        self.tools.push_back(name);
        while self.tools.len() > MOST_TOOLS || written(&self.tools) > MAX_SHOWN_BYTES {
            self.tools.pop_front();
        }
    }

    /// The count of a tool that is, or can still be, told apart.
    fn known_calls(&mut self, name: &str) -> Option<&mut i64> {
        let fits = || self.calls.len() < MOST_NAMES && written(self.calls.keys()) + written([name]) <= MAX_NAME_BYTES;
        if self.calls.contains_key(name) || fits() {
            Some(self.calls.entry(name.to_owned()).or_default())
        } else {
            None
        }
    }

    /// Replaces an estimate by a cost; the estimate.
    pub(crate) fn settle(
        &mut self,
        request_id: RequestId,
        actual_micros: i64,
        may_lower: bool,
    ) -> Result<i64, Refusal> {
        let open = |allowed: &&mut Allowed| allowed.request_id() == request_id && !allowed.expired;
        let found = self.allowed.iter_mut().find(open).ok_or(Refusal::NotFound)?;
        if let Some(settled) = found.settled_micros {
            let settled = Micros::from_micros(settled).map_or_else(|_| settled.to_string(), Micros::to_decimal);
            return Err(Refusal::Conflict(format!("the check was settled already, with {settled} USD")));
        }
        // The gateway has looked, and anybody may ask.
        if Micros::from_micros(actual_micros).and_then(Micros::at_most_usd).is_err() {
            let message = format!("must be from 0 to {MAX_USD} US dollars");
            return Err(Refusal::Invalid(vec![FieldError::new("actual_cost_usd", message)]));
        }
        if actual_micros < found.estimate_micros && !may_lower {
            return Err(Refusal::ScopeMissing(Scope::RunsManage));
        }
        let estimate = found.estimate_micros;
        let Some(spent) = self.spent_micros.checked_add(actual_micros) else {
            let text = "the run has spent more than can be counted: end it, and go on with a new one";
            return Err(Refusal::Conflict(text.to_owned()));
        };
        found.settled_micros = Some(actual_micros);
        self.spent_micros = spent;
        Ok(estimate)
    }

    /// Moves the run's end when it changed, or when a good part of its time is over; whether it must be written.
    pub(crate) fn keep(&mut self, before: &Self, now: i64, kept_for: i64) -> bool {
        let end = now.saturating_add(kept_for);
        let due = end.saturating_sub(self.expires_at) > kept_for / 24;
        let changed = self != before;
        if changed || due {
            self.last_seen = self.last_seen.max(now);
            self.expires_at = self.expires_at.max(end);
        }
        changed || due
    }
}

/// What names take in a record, as JSON.
fn written<Name: AsRef<str>>(names: impl IntoIterator<Item = Name>) -> usize {
    let byte = |byte: u8| match byte {
        b'"' | b'\\' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    names.into_iter().map(|name| name.as_ref().bytes().map(byte).sum::<usize>() + "\"\",".len()).sum()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl Allowed {
    /// The attempt that may have been answered.
    fn request_id(&self) -> RequestId {
        self.again.unwrap_or(self.operation)
    }

    /// What it still holds back.
    fn reserved(&self) -> i64 {
        if self.expired || self.settled_micros.is_some() { 0 } else { self.estimate_micros }
    }
}

/// The reply to a question about a run.
fn refused<T>(refusal: Refusal) -> ManageReply<T> {
    ManageReply::Refused(refusal)
}

#[cfg(test)]
mod tests;
