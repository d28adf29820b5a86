//! The state of a run, and how a check changes it.
//!
//! Owns the rules of counting: only an ALLOW advances a run, the highest value ever reported is kept, an
//! estimate is reserved until it is settled or expires, and a repeated check counts once. Pure.
//! INVARIANT: a caller cannot lower a count, except by a settlement that its key allows.

mod called;
mod coordinator;
mod history;
mod journal;
mod list;
mod queues;
mod quota;
mod records;
mod view;

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use stage0_contract::{Evaluation, FieldError, MAX_USD, Micros, Refusal, RequestId, RunId, Scope, Verdict};
use stage0_policy::{Reported, RunFacts, RunNeeds, RunSnapshot, ToolCalls};

pub(crate) use coordinator::RunCoordinator;
use history::{History, own_tools};
pub(crate) use journal::Journal;

/// Allowed checks that a run keeps individually, so that they can be repeated and settled. Estimates of older ones
/// count as spent.
const MAX_ALLOWED: usize = 100;
/// Recent calls that are shown, and the total size of their names.
const MAX_TOOLS: usize = 100;
const MAX_SHOWN_BYTES: usize = 8 * 1_024;
/// Tools that are counted separately, and the total size of their names; calls of further tools count for every tool.
const MAX_NAMES: usize = 200;
const MAX_NAME_BYTES: usize = 16 * 1_024;
/// How many seconds a check can be repeated at least: the TTL of an idempotency key.
const REPEATABLE: i64 = 600;
/// The largest difference between two readings of the store's clock, in seconds.
const CLOCK_TOLERANCE: i64 = 10;
/// Stands for a tool whose name mixes scripts.
const ANY_TOOL: &str = "?";

/// A run in the state store. Times are Unix seconds, money is in millionths of a dollar.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RunState {
    /// The name in its first check without a secret; `None` until then, and in records of an earlier version.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<RunId>,
    /// The run was ended and counts as absent.
    ended: bool,
    first_seen: i64,
    last_seen: i64,
    expires_at: i64,
    /// The highest allowed iteration.
    iterations: i64,
    /// The highest reported iteration.
    reported_iteration: i64,
    retries: i64,
    /// The highest reported time.
    elapsed_micros: i64,
    /// Settled and expired costs, and reported costs beyond all counted ones.
    spent_micros: i64,
    calls: BTreeMap<String, i64>,
    any_calls: i64,
    tools: VecDeque<String>,
    allowed: VecDeque<Allowed>,
    /// The last day, since the epoch, on which the run was counted against its account's limit.
    counted_on: i64,
    /// For rules that look back; evaluators of earlier versions drop it when they write.
    #[serde(skip_serializing_if = "History::is_empty")]
    history: History,
}

/// An allowed check. A run holds many, so member names are short and default values are left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Allowed {
    /// The request id of the first attempt.
    #[serde(rename = "o")]
    operation: RequestId,
    /// The request id of the last attempt, if it differs: that attempt may have been answered.
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    again: Option<RequestId>,
    #[serde(rename = "t")]
    at: i64,
    #[serde(rename = "i")]
    iteration: i64,
    /// Calls of the busiest tool with it.
    #[serde(rename = "c", default, skip_serializing_if = "is_zero")]
    calls: i64,
    /// The run's cost before it.
    #[serde(rename = "b", default, skip_serializing_if = "is_zero")]
    before_micros: i64,
    #[serde(rename = "e", default, skip_serializing_if = "is_zero")]
    estimate_micros: i64,
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    settled_micros: Option<i64>,
    /// It was not settled in time, so its estimate is spent.
    #[serde(rename = "x", default, skip_serializing_if = "std::ops::Not::not")]
    expired: bool,
    /// It was allowed with an approval, and the run counts those.
    #[serde(rename = "p", default, skip_serializing_if = "std::ops::Not::not")]
    approved: bool,
}

/// What a decided check changes in its run.
#[derive(Debug)]
pub(crate) struct RunUpdate {
    verdict: Verdict,
    /// The verdict relies on an approval.
    approved: bool,
    /// What the rules of the deciding pack ask of the run.
    needs: RunNeeds,
    facts: RunFacts,
}

/// A check of a run: its time and its ids.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CheckRef {
    pub(crate) now: i64,
    pub(crate) request_id: RequestId,
    pub(crate) operation: RequestId,
}

impl RunUpdate {
    pub(crate) fn new(evaluation: &Evaluation, needs: RunNeeds, facts: RunFacts) -> Self {
        let approved = evaluation.approval_source.is_some();
        Self { verdict: evaluation.decision.verdict, approved, needs, facts }
    }

    /// That of the same check, deferred after its rules had allowed it.
    pub(crate) fn deferred(self) -> Self {
        Self { verdict: Verdict::Defer, approved: false, ..self }
    }
}

impl RunState {
    pub(crate) fn new(now: i64) -> Self {
        Self { first_seen: now, last_seen: now, ..Self::default() }
    }

    /// Whether the run was counted on this day, or on the next one by another gateway's clock.
    fn is_counted_on(&self, day: i64) -> bool {
        self.counted_on == day || self.counted_on == day + 1
    }

    /// Counts estimates that were not settled in time as spent, and drops checks that can no longer be repeated.
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
        self.history.expire(now);
    }

    /// Moves a run that began while the store's clock was ahead: otherwise its start would lie in the future and its
    /// elapsed time would stand still.
    fn follow(&mut self, now: i64) {
        if self.last_seen > now.saturating_add(CLOCK_TOLERANCE) {
            let ran = self.last_seen.saturating_sub(self.first_seen).max(0);
            (self.first_seen, self.last_seen) = (now.saturating_sub(ran), now);
            self.history.follow(now);
        }
    }

    fn reserved_micros(&self) -> i64 {
        self.allowed.iter().map(Allowed::reserved).fold(0, i64::saturating_add)
    }

    /// Saturates: an overflowing cost stays at the maximum, above every limit.
    fn total_micros(&self) -> i64 {
        self.spent_micros.saturating_add(self.reserved_micros())
    }

    fn elapsed_micros(&self, now: i64) -> i64 {
        // Gateways' clocks differ a little; the run's time never goes back.
        let now = now.max(self.last_seen);
        let by_the_clock = now.saturating_sub(self.first_seen).max(0).saturating_mul(1_000_000);
        self.elapsed_micros.max(by_the_clock)
    }

    /// The counts for a check. A repeated check gets the counts of its first attempt.
    pub(crate) fn snapshot(&self, check_ref: CheckRef, needs: RunNeeds) -> RunSnapshot {
        let (retries, elapsed_micros) = (self.retries, self.elapsed_micros(check_ref.now));
        let history = self.history(check_ref, needs);
        match self.allowed.iter().find(|allowed| allowed.operation == check_ref.operation) {
            Some(again) => RunSnapshot {
                iteration: again.iteration,
                retries,
                elapsed_micros,
                cost_micros: again.before_micros,
                calls: ToolCalls::default(),
                same_tool_calls: again.calls,
                history,
            },
            None => RunSnapshot {
                iteration: self.iterations.saturating_add(1).max(self.reported_iteration),
                retries,
                elapsed_micros,
                cost_micros: self.total_micros(),
                calls: ToolCalls { known: self.calls.clone(), any: self.any_calls },
                same_tool_calls: 0,
                history,
            },
        }
    }

    /// Stores the run's name if it is not known yet.
    pub(crate) fn apply_name(&mut self, update: &RunUpdate, name: Option<RunId>) {
        if self.name.is_none() && !update.facts.has_secrets {
            self.name = name;
        }
    }

    pub(crate) fn apply(&mut self, check_ref: CheckRef, update: &RunUpdate) {
        let facts = &update.facts;
        if let Some(reported) = &facts.reported {
            self.apply_reported(reported, facts.has_secrets);
        }
        if update.needs.verdicts {
            self.history.note_verdict(check_ref, update.verdict, &self.allowed);
        }
        if update.verdict != Verdict::Allow {
            return;
        }
        if let Some(again) = self.allowed.iter_mut().find(|allowed| allowed.operation == check_ref.operation) {
            // A late first attempt is not the one that may have been answered.
            if check_ref.request_id != again.operation {
                again.again = Some(check_ref.request_id);
            }
            return;
        }
        self.last_seen = self.last_seen.max(check_ref.now);
        self.history.note_allowed(check_ref.now, update, self.iterations);
        self.history.note_calls(update, &self.calls, self.any_calls);
        self.iterations = self.iterations.max(facts.iteration);
        if self.allowed.len() >= MAX_ALLOWED
            && let Some(oldest) = self.allowed.pop_front()
        {
            self.spent_micros = self.spent_micros.saturating_add(oldest.reserved());
        }
        let estimate_micros = facts.estimated_cost.map_or(0, Micros::get);
        self.allowed.push_back(Allowed {
            operation: check_ref.operation,
            again: (check_ref.request_id != check_ref.operation).then_some(check_ref.request_id),
            at: check_ref.now,
            iteration: facts.iteration,
            calls: facts.same_tool_calls,
            before_micros: facts.cost_micros.saturating_sub(estimate_micros),
            estimate_micros,
            settled_micros: None,
            expired: false,
            approved: update.approved && self.history.keeps_allowed(),
        });
        for tool in own_tools(facts) {
            self.count_call(tool);
        }
    }

    fn apply_reported(&mut self, reported: &Reported, secret: bool) {
        self.reported_iteration = self.reported_iteration.max(reported.iteration);
        self.retries = self.retries.max(reported.retries);
        self.elapsed_micros = self.elapsed_micros.max(reported.elapsed_micros);
        self.spent_micros =
            self.spent_micros.saturating_add(reported.spent_micros.saturating_sub(self.total_micros()).max(0));
        if secret {
            return;
        }
        self.raise_calls(ANY_TOOL, reported.calls.any);
        for (name, count) in &reported.calls.known {
            self.raise_calls(name, *count);
        }
    }

    /// Keeps reported calls apart from allowed ones, under every pack: another one may ask for them later.
    fn raise_calls(&mut self, name: &str, count: i64) {
        let (calls, known) = self.calls_of(name);
        let raised_by = count.saturating_sub(*calls);
        *calls = (*calls).max(count);
        self.history.note_report(known.then_some(name), raised_by);
    }

    fn count_call(&mut self, name: &str) {
        let (calls, _) = self.calls_of(name);
        *calls = calls.saturating_add(1);
        self.tools.push_back(name.to_owned());
        while self.tools.len() > MAX_TOOLS || written(&self.tools) > MAX_SHOWN_BYTES {
            self.tools.pop_front();
        }
    }

    /// The count of a tool, and whether it is, or can still be, counted separately. `?` never is.
    fn calls_of(&mut self, name: &str) -> (&mut i64, bool) {
        let fits = || self.calls.len() < MAX_NAMES && written(self.calls.keys()) + written([name]) <= MAX_NAME_BYTES;
        if name != ANY_TOOL && (self.calls.contains_key(name) || fits()) {
            (self.calls.entry(name.to_owned()).or_default(), true)
        } else {
            (&mut self.any_calls, false)
        }
    }

    /// Replaces an estimate by the actual cost, and returns the estimate.
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
        // The gateway has validated this, but any process may send a request.
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

    /// The estimate of a check that was settled with exactly this cost.
    pub(crate) fn settled_with(&self, request_id: RequestId, actual_micros: i64) -> Option<i64> {
        let is_it = |allowed: &&Allowed| allowed.request_id() == request_id && !allowed.expired;
        let found = self.allowed.iter().find(is_it)?;
        (found.settled_micros == Some(actual_micros)).then_some(found.estimate_micros)
    }

    /// Extends the expiry if the run changed or if a good part of its TTL is over; returns whether it must be written.
    pub(crate) fn extend_expiry(&mut self, before: &Self, now: i64, kept_for: i64) -> bool {
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

/// The size of names in a record, as JSON.
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
    /// The request id of the attempt that may have been answered.
    fn request_id(&self) -> RequestId {
        self.again.unwrap_or(self.operation)
    }

    /// What it counts for in the run's cost.
    fn cost_micros(&self) -> i64 {
        self.settled_micros.unwrap_or(self.estimate_micros)
    }

    fn reserved(&self) -> i64 {
        if self.expired || self.settled_micros.is_some() { 0 } else { self.estimate_micros }
    }
}

#[cfg(test)]
mod tests;
