//! What a run remembers for rules that look back, beyond the counts that every run keeps.
//!
//! It is kept only where a rule of the deciding pack asks for it ([`RunNeeds`]), except for what callers report: for
//! other packs the rest is empty, is not written, and a denied check changes nothing. Memory is bounded, and the oldest
//! is forgotten first.
//! INVARIANT: what a caller only reports is no evidence that a call was allowed; a repeated check counts once and does
//! not see itself; of a request that holds a secret no word is kept.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use stage0_contract::{RequestId, Verdict};
use stage0_policy::{RunFacts, RunHistory, RunNeeds, RunSnapshot, TargetHash, ToolCalls};

use super::called::{Called, leave_out, own_calls};
use super::{ANY_TOOL, Allowed, CheckRef, REPEATABLE, RunState, RunUpdate, is_zero, written};

/// Denied and deferred checks that are kept individually, so that they can be repeated. A repeat of an older one counts
/// again.
const MAX_REFUSED: usize = 100;
/// Pairs of a target and a tool, and the total size of the tools' names.
const MAX_PAIRS: usize = 500;
const MAX_PAIR_BYTES: usize = 16 * 1_024;

/// Times are Unix seconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct History {
    /// Checks that were allowed; none until a pack asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_allowed_at: Option<i64>,
    /// Checks that were allowed with an approval.
    #[serde(skip_serializing_if = "is_zero")]
    approved: i64,
    #[serde(skip_serializing_if = "is_zero")]
    denied: i64,
    #[serde(skip_serializing_if = "is_zero")]
    deferred: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<LastVerdict>,
    #[serde(skip_serializing_if = "VecDeque::is_empty")]
    refused: VecDeque<Refused>,
    /// How many of a tool's counted calls were only reported.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    reported_calls: BTreeMap<String, i64>,
    #[serde(skip_serializing_if = "is_zero")]
    reported_any: i64,
    /// None until a pack asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    called: Option<Called>,
    #[serde(skip_serializing_if = "VecDeque::is_empty")]
    target_tools: VecDeque<Pair>,
}

/// What the last check came to. A repeat of it sees the one before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct LastVerdict {
    #[serde(rename = "o")]
    operation: RequestId,
    #[serde(rename = "v")]
    verdict: Verdict,
    #[serde(rename = "b", default, skip_serializing_if = "Option::is_none")]
    before: Option<Verdict>,
}

/// A check that was denied or deferred.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Refused {
    #[serde(rename = "o")]
    operation: RequestId,
    #[serde(rename = "t")]
    at: i64,
    #[serde(rename = "v")]
    verdict: Verdict,
}

/// A tool that was allowed for a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Pair {
    #[serde(rename = "h")]
    target: TargetHash,
    #[serde(rename = "t")]
    tool: String,
    /// How many checks were allowed with both.
    #[serde(rename = "n", default = "one", skip_serializing_if = "is_one")]
    checks: i64,
}

impl Pair {
    fn key(&self) -> (&TargetHash, &str) {
        (&self.target, &self.tool)
    }
}

impl History {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Forgets denied and deferred checks that can no longer be repeated.
    pub(super) fn expire(&mut self, now: i64) {
        while self.refused.front().is_some_and(|refused| refused.at.saturating_add(REPEATABLE) <= now) {
            self.refused.pop_front();
        }
    }

    /// Notes that a report raised the count of a tool, or of calls that are not told apart.
    pub(super) fn note_report(&mut self, tool: Option<&str>, raised_by: i64) {
        if raised_by <= 0 {
            return;
        }
        let reported = match tool {
            Some(tool) => self.reported_calls.entry(tool.to_owned()).or_default(),
            None => &mut self.reported_any,
        };
        *reported = reported.saturating_add(raised_by);
    }

    /// Of so many counted calls of a tool, or of those that are not told apart, how many were not only reported.
    pub(super) fn without_reported(&self, tool: Option<&str>, calls: i64) -> i64 {
        let reported = match tool {
            Some(tool) => self.reported_calls.get(tool).copied().unwrap_or(0),
            None => self.reported_any,
        };
        calls.saturating_sub(reported).max(0)
    }

    /// Notes the calls of a newly allowed check. `calls` and `any` are those that were counted before it.
    pub(super) fn note_calls(&mut self, update: &RunUpdate, calls: &BTreeMap<String, i64>, any: i64) {
        // What was begun is continued under a pack that does not ask.
        let mut called = match self.called.take() {
            Some(called) => called,
            None if update.needs.calls => Called::before(calls, any, self),
            None => return,
        };
        called.count(&own_calls(&update.facts));
        self.called = Some(called);
    }

    /// Notes what a check came to. `before` are the checks that were allowed before it.
    pub(super) fn note_verdict(&mut self, check_ref: CheckRef, verdict: Verdict, before: &VecDeque<Allowed>) {
        let CheckRef { now, operation, .. } = check_ref;
        // A check that was allowed stays allowed, whatever its repeat comes to: its answer may have left.
        if before.iter().any(|allowed| allowed.operation == operation) {
            return;
        }
        if let Some(found) = self.refused.iter().position(|refused| refused.operation == operation) {
            match self.refused.get(found).map(|refused| refused.verdict) {
                Some(earlier) if earlier == verdict => return,
                Some(earlier) => self.count_refused(earlier, -1),
                None => {}
            }
            self.refused.remove(found);
        }
        self.count_refused(verdict, 1);
        if verdict != Verdict::Allow {
            self.refused.push_back(Refused { operation, at: now, verdict });
            while self.refused.len() > MAX_REFUSED {
                self.refused.pop_front();
            }
        }
        self.last = Some(match self.last.take() {
            Some(last) if last.operation == operation => LastVerdict { verdict, ..last },
            last => LastVerdict { operation, verdict, before: last.map(|last| last.verdict) },
        });
    }

    fn count_refused(&mut self, verdict: Verdict, by: i64) {
        let count = match verdict {
            Verdict::Allow => return,
            Verdict::Deny => &mut self.denied,
            Verdict::Defer => &mut self.deferred,
        };
        *count = count.saturating_add(by).max(0);
    }

    pub(super) fn keeps_allowed(&self) -> bool {
        self.allowed.is_some()
    }

    /// Corrects a time that was noted while the store's clock was ahead.
    pub(super) fn follow(&mut self, now: i64) {
        self.last_allowed_at = self.last_allowed_at.map(|last| last.min(now));
    }

    /// Notes a newly allowed check. `before` is how many were allowed at most, where that was not counted.
    pub(super) fn note_allowed(&mut self, now: i64, update: &RunUpdate, before: i64) {
        // What was begun is continued under a pack that does not ask.
        if update.needs.allowed || self.keeps_allowed() {
            self.allowed = Some(self.allowed.unwrap_or(before).saturating_add(1));
            self.last_allowed_at = Some(self.last_allowed_at.map_or(now, |last| last.max(now)));
            self.approved = self.approved.saturating_add(i64::from(update.approved));
        }
        if update.needs.targets {
            self.note_targets(&update.facts);
        }
    }

    fn note_targets(&mut self, facts: &RunFacts) {
        let calls = own_calls(facts);
        let tools = names(&calls);
        if facts.has_secrets || tools.is_empty() || facts.targets.is_empty() {
            return;
        }
        // Of a request with more pairs than are kept, the last ones are.
        let kept = MAX_PAIRS.div_ceil(tools.len());
        let targets = facts.targets.iter().skip(facts.targets.len().saturating_sub(kept));
        let own: BTreeSet<(&TargetHash, &str)> =
            targets.flat_map(|target| tools.iter().map(move |tool| (target, *tool))).collect();
        let all = std::mem::take(&mut self.target_tools).into_iter();
        let (again, others): (VecDeque<Pair>, VecDeque<Pair>) = all.partition(|pair| own.contains(&pair.key()));
        let again: BTreeMap<_, i64> = again.iter().map(|pair| (pair.key(), pair.checks)).collect();
        self.target_tools = others;
        self.target_tools.extend(own.into_iter().map(|(target, tool)| Pair {
            target: target.clone(),
            tool: tool.to_owned(),
            checks: again.get(&(target, tool)).copied().unwrap_or(0).saturating_add(1),
        }));
        let mut bytes: usize = self.target_tools.iter().map(|pair| written([&pair.tool])).sum();
        while self.target_tools.len() > MAX_PAIRS || bytes > MAX_PAIR_BYTES {
            let Some(oldest) = self.target_tools.pop_front() else { break };
            bytes = bytes.saturating_sub(written([&oldest.tool]));
        }
    }
}

impl RunState {
    /// What the run did before a check, as far as the rules ask for it. A repeat does not see its own verdict; its own
    /// calls and targets are only known once it is read: [`RunState::leave_out_own`].
    pub(super) fn history(&self, check_ref: CheckRef, needs: RunNeeds) -> RunHistory {
        let History { allowed, approved, denied, deferred, last, .. } = &self.history;
        let own = self.allowed.iter().find(|allowed| allowed.operation == check_ref.operation);
        let refused = self.history.refused.iter().find(|refused| refused.operation == check_ref.operation);
        let own_refused = |verdict| i64::from(refused.is_some_and(|refused| refused.verdict == verdict));
        let own_approved = i64::from(own.is_some_and(|own| own.approved));
        let mut history = RunHistory {
            allowed: allowed.unwrap_or(self.iterations).saturating_sub(i64::from(own.is_some())).max(0),
            denied: denied.saturating_sub(own_refused(Verdict::Deny)).max(0),
            deferred: deferred.saturating_sub(own_refused(Verdict::Defer)).max(0),
            last_verdict: match last {
                Some(last) if last.operation == check_ref.operation => last.before,
                last => last.as_ref().map(|last| last.verdict),
            },
            cost_micros: self.total_micros().saturating_sub(own.map_or(0, Allowed::cost_micros)).max(0),
            seconds: self.seconds_since(self.first_seen, check_ref.now),
            seconds_since_allowed: self.last_allowed(own).map(|last| self.seconds_since(last, check_ref.now)),
            approved: approved.saturating_sub(own_approved) > 0,
            ..RunHistory::default()
        };
        if needs.calls {
            let before = || Called::before(&self.calls, self.any_calls, &self.history);
            self.history.called.clone().unwrap_or_else(before).tell(&mut history);
        }
        if needs.targets {
            for Pair { target, tool, .. } in &self.history.target_tools {
                history.target_tools.entry(target.clone()).or_default().insert(tool.clone());
            }
        }
        history
    }

    /// Whether an attempt of this check was allowed before.
    pub(super) fn is_repeat(&self, check_ref: CheckRef) -> bool {
        self.allowed.iter().any(|allowed| allowed.operation == check_ref.operation)
    }

    /// Takes a repeated check's own calls and targets out of what the run did before it.
    pub(super) fn leave_out_own(&self, snapshot: &mut RunSnapshot, update: &RunUpdate) {
        let (history, facts) = (&mut snapshot.history, &update.facts);
        let calls = own_calls(facts);
        leave_out(history, &calls);
        if facts.has_secrets {
            return;
        }
        let tools = names(&calls);
        let targets: BTreeSet<&TargetHash> = facts.targets.iter().collect();
        for Pair { target, tool, checks } in &self.history.target_tools {
            let is_own = *checks == 1 && targets.contains(target) && tools.contains(tool.as_str());
            if is_own && let Some(others) = history.target_tools.get_mut(target) {
                others.remove(tool);
            }
        }
    }

    fn seconds_since(&self, then: i64, now: i64) -> i64 {
        // As the run's elapsed time: it never goes back.
        now.max(self.last_seen).saturating_sub(then).max(0)
    }

    /// When a check was allowed last, `own` excepted.
    fn last_allowed(&self, own: Option<&Allowed>) -> Option<i64> {
        let others = self.allowed.iter().filter(|allowed| own.is_none_or(|own| own.operation != allowed.operation));
        let listed = others.map(|allowed| allowed.at).max();
        let Some(own) = own else {
            // A run from before it was kept was allowed something at the latest when it was last seen.
            let unlisted = (self.iterations > 0).then_some(self.last_seen);
            return self.history.last_allowed_at.or(listed).or(unlisted);
        };
        let kept = self.history.last_allowed_at.filter(|last| *last != own.at);
        // Checks that are listed no more were allowed long ago.
        let has_others = self.history.allowed.unwrap_or(self.iterations) > 1;
        kept.or(listed).or(has_others.then_some(self.first_seen))
    }
}

/// The tools of a check as they are counted: `?` for one under an ambiguous name, or beside a secret.
pub(super) fn own_tools(facts: &RunFacts) -> impl Iterator<Item = &str> {
    let proposed = facts.reported.iter().flat_map(|reported| &reported.proposed);
    proposed.map(|tool| tool.as_deref().filter(|_| !facts.has_secrets).unwrap_or(ANY_TOOL))
}

/// The readings of a check's tools, and `?` beside them for an ambiguous name.
fn names(calls: &ToolCalls) -> BTreeSet<&str> {
    calls.known.keys().map(String::as_str).chain((calls.any > 0).then_some(ANY_TOOL)).collect()
}

fn one() -> i64 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(number: &i64) -> bool {
    *number == 1
}

#[cfg(test)]
mod tests;
