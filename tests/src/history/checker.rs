//! Compares what was answered, recorded, delivered, consumed and counted, and finds each broken promise.
//!
//! A pure function: the same history gives the same findings. A check that was never answered may be recorded, so what
//! is recorded may be more than what was answered, and never less.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Asked, Came, Change, Delivered, Finding, Found, History, Op, Promise, Record, Rules, story};

#[cfg(test)]
mod tests;

/// Every gateway knows of a revoked key and of a stop within a second; a busy machine adds to it.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(2);
/// Where servers do not reach each other a cached key lives until it is asked for again (ADR 0013).
const CACHED_KEY_TTL: Duration = Duration::from_secs(61);
/// Findings of one promise that have a story.
const MAX_STORIES: usize = 5;

/// Every broken promise, by promise.
pub fn check(history: &History, found: &Found, rules: &Rules) -> Vec<Finding> {
    let mut judge = Judge { history, found, rules, findings: Vec::new() };
    let records = judge.records();
    judge.answers(&records);
    judge.verdicts();
    judge.limits();
    judge.approvals();
    judge.idempotency();
    judge.changes();
    judge.keys_and_stops();
    judge.deliveries();
    judge.verified();
    judge.refusals();
    judge.findings.sort_by_key(|finding| finding.promise);
    judge.findings
}

struct Judge<'h> {
    history: &'h History,
    found: &'h Found,
    rules: &'h Rules,
    findings: Vec<Finding>,
}

impl<'h> Judge<'h> {
    fn broke(&mut self, promise: Promise, about: String, ids: &[&str]) {
        let before = self.findings.iter().filter(|finding| finding.promise == promise).count();
        let story = if before < MAX_STORIES { story::of(self.history, self.found, ids) } else { vec![] };
        self.findings.push(Finding { promise, about, story });
    }

    fn checks(&self) -> impl Iterator<Item = (&'h Op, &'h Asked)> + use<'h> {
        self.history.ops.iter().filter_map(|op| Some((op, op.asked()?)))
    }

    fn records(&mut self) -> BTreeMap<&'h str, &'h Record> {
        let mut records = BTreeMap::new();
        for record in &self.found.records {
            if records.insert(record.id.as_str(), record).is_some() {
                let about = format!("{} is in the log more than once", record.id);
                self.broke(Promise::NothingIsRecordedTwice, about, &[&record.id]);
            }
        }
        records
    }

    fn answers(&mut self, records: &BTreeMap<&str, &Record>) {
        for (op, _) in self.checks() {
            let Some((id, verdict)) = op.decided() else { continue };
            let about = match records.get(id) {
                None => format!("{verdict} {id} was answered and is not in the log"),
                Some(record) if record.verdict != verdict => {
                    format!("{id} was answered as {verdict} and recorded as {}", record.verdict)
                }
                Some(_) => continue,
            };
            self.broke(Promise::EveryAnswerIsRecorded, about, &[id]);
        }
    }

    fn verdicts(&mut self) {
        let answered = self.checks().filter_map(|(op, asked)| Some((asked.key.as_str(), op.decided()?)));
        let recorded = self.found.records.iter().map(|r| (r.key.as_str(), (r.id.as_str(), r.verdict.as_str())));
        let all: BTreeSet<_> = answered.chain(recorded).collect();
        for (key, (id, verdict)) in all {
            let Some(right) = self.rules.verdicts.get(key) else { continue };
            if !right.iter().any(|right| right == verdict) {
                let about = format!("{id} is {verdict}, and the policy has {} for it", right.join(" or "));
                self.broke(Promise::NoVerdictAgainstThePolicy, about, &[id]);
            }
        }
    }

    /// Ids of ALLOWs, answered or recorded, by what `of` finds in them.
    fn allowed(
        &self,
        asked: impl Fn(&'h Op, &'h Asked) -> Option<&'h str>,
        recorded: impl Fn(&'h Record) -> Option<&'h str>,
    ) -> BTreeMap<&'h str, BTreeSet<&'h str>> {
        let mut all: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (op, check) in self.checks() {
            if let Some((id, "ALLOW")) = op.decided()
                && let Some(of) = asked(op, check)
            {
                all.entry(of).or_default().insert(id);
            }
        }
        for record in self.found.records.iter().filter(|record| record.verdict == "ALLOW") {
            if let Some(of) = recorded(record) {
                all.entry(of).or_default().insert(&record.id);
            }
        }
        all
    }

    fn limits(&mut self) {
        let runs = self.allowed(|_, asked| asked.run.as_deref(), |record| record.run.as_deref());
        for (run, allowed) in runs {
            let (count, limit) = (allowed.len() as u64, self.rules.run_limit);
            if count > limit {
                self.broke(Promise::NoRunOverItsLimit, format!("run {run}: {count} ALLOWs, limit {limit}"), &[run]);
            }
            if let Some(counted) = self.found.runs.get(run).copied()
                && counted < count
            {
                let about = format!("run {run}: {count} ALLOWs, and {counted} are counted");
                self.broke(Promise::EveryAllowIsCounted, about, &[run]);
            }
        }
        for (account, limit) in &self.rules.account_limits {
            let of_it = self.found.records.iter().filter(|record| record.account == *account);
            let ids: BTreeSet<&str> = of_it.map(|record| record.id.as_str()).collect();
            if ids.len() as u64 > *limit {
                let about = format!("account {account}: {} decisions, limit {limit}", ids.len());
                self.broke(Promise::NoAccountOverItsLimit, about, &ids.into_iter().collect::<Vec<_>>());
            }
        }
    }

    fn approvals(&mut self) {
        let used = |op: &'h Op, asked: &'h Asked| match &op.came {
            Came::Decided { approval: Some(used), .. } => Some(used.as_str()),
            _ => asked.approval.as_deref(),
        };
        let approvals = self.allowed(used, |record| record.approval.as_deref());
        for (approval, allowed) in &approvals {
            if allowed.len() > 1 {
                let about = format!("approval {approval} was used by {allowed:?}");
                self.broke(Promise::NoApprovalIsUsedTwice, about, &[approval]);
            }
            let Some((status, by)) = self.found.approvals.get(*approval) else { continue };
            let is_used = matches!(status.as_str(), "consumed" | "reserved");
            if !is_used || !by.as_deref().is_some_and(|by| allowed.contains(by)) {
                let about = format!("approval {approval} was used by {allowed:?}, and says {status}, {by:?}");
                self.broke(Promise::AUsedApprovalSaysWhoUsedIt, about, &[approval]);
            }
        }
    }

    fn idempotency(&mut self) {
        let mut all: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (op, asked) in self.checks() {
            if let (Some(once), Some((id, _))) = (&asked.once, op.decided()) {
                all.entry(once).or_default().insert(id);
            }
        }
        for (once, ids) in all.into_iter().filter(|(_, ids)| ids.len() > 1) {
            let mut about_it: Vec<&str> = ids.iter().copied().collect();
            about_it.push(once);
            let about = format!("key {once} has the decisions {ids:?}");
            self.broke(Promise::OneAnswerForEachIdempotencyKey, about, &about_it);
        }
    }

    fn changes(&mut self) {
        let mut keys: BTreeMap<&str, bool> = BTreeMap::new();
        let mut stops: BTreeMap<&str, bool> = BTreeMap::new();
        let mut changes: Vec<&Op> = self.history.ops.iter().filter(|op| op.changed().is_some()).collect();
        changes.sort_by_key(|op| op.end);
        for op in changes {
            match op.changed() {
                Some(Change::KeyMade(id)) => keys.insert(id, true),
                Some(Change::KeyRevoked(id)) => keys.insert(id, false),
                Some(Change::Stopped { id, .. }) => stops.insert(id, true),
                Some(Change::Resumed { id, .. }) => stops.insert(id, false),
                Some(Change::Approved(_)) | None => None,
            };
        }
        for (all, at_the_end, what) in [(keys, &self.found.keys, "key"), (stops, &self.found.stops, "stop")] {
            for (id, wanted) in all {
                if at_the_end.get(id).is_some_and(|is| *is != wanted) {
                    let about = format!("{what} {id}: {} at the end", if wanted { "gone" } else { "still there" });
                    self.broke(Promise::NoAcknowledgedChangeIsLost, about, &[id]);
                }
            }
        }
    }

    fn keys_and_stops(&mut self) {
        let mut revoked: BTreeMap<&str, Duration> = BTreeMap::new();
        let mut made: BTreeMap<&str, Duration> = BTreeMap::new();
        let mut revoking: BTreeMap<&str, Duration> = BTreeMap::new();
        let mut stops: Vec<(&str, &str, Duration, Duration)> = Vec::new();
        for op in &self.history.ops {
            let super::What::Change(change) = &op.what else { continue };
            let is_done = matches!(op.came, Came::Done);
            match change {
                Change::KeyMade(id) if is_done => drop(made.insert(id, op.end)),
                Change::KeyRevoked(id) => {
                    let first = revoking.entry(id).or_insert(op.start);
                    *first = op.start.min(*first);
                    if is_done {
                        let at = revoked.entry(id).or_insert(op.end);
                        *at = op.end.min(*at);
                    }
                }
                Change::Stopped { id, key } if is_done => stops.push((id, key, op.end, self.resumed(id))),
                _ => {}
            }
        }
        for (op, asked) in self.checks() {
            let key = asked.key.as_str();
            let is_allowed = op.decided().is_some_and(|(_, verdict)| verdict == "ALLOW");
            if op.decided().is_some() && revoked.get(key).is_some_and(|at| op.start > *at + self.grace(op)) {
                let about = format!("key {key} was answered after its revocation was acknowledged");
                self.broke(Promise::ARevokedKeyIsRefused, about, &[key]);
            }
            let is_unknown = matches!(op.came, Came::Refused { status: 401, .. });
            let is_live = made.get(key).is_some_and(|at| *at < op.start)
                && revoking.get(key).is_none_or(|revoking| op.end < *revoking);
            if is_unknown && is_live {
                let about = format!("key {key} was refused after its making was acknowledged");
                self.broke(Promise::NoAcknowledgedChangeIsLost, about, &[key]);
            }
            let holds = |(_, of, from, until): &&(&str, &str, Duration, Duration)| {
                *of == key && op.start > *from + self.grace(op) && op.end < *until
            };
            if is_allowed && let Some((stop, ..)) = stops.iter().find(holds) {
                self.broke(Promise::AStopHolds, format!("key {key} was allowed during stop {stop}"), &[stop, key]);
            }
        }
    }

    /// When somebody first asked for the end of a stop.
    fn resumed(&self, stop: &str) -> Duration {
        let ends = self.history.ops.iter().filter(|op| match &op.what {
            super::What::Change(Change::Resumed { id, .. }) => id == stop,
            _ => false,
        });
        ends.map(|op| op.start).min().unwrap_or(Duration::MAX)
    }

    /// How long a change may be unknown to the gateway that was asked here.
    fn grace(&self, op: &Op) -> Duration {
        if self.may_lag(op) { CACHED_KEY_TTL } else { NOTICE_TIMEOUT }
    }

    /// Whether notices and replicas may be late: parts did not reach each other, or a server catches up.
    fn may_lag(&self, op: &Op) -> bool {
        let delays = |fault: &super::Broken| {
            fault.delays_notices && fault.from <= op.end && op.start <= fault.until + CACHED_KEY_TTL
        };
        self.history.faults.iter().any(delays)
    }

    fn deliveries(&mut self) {
        let mut by_account: BTreeMap<&str, Vec<&Delivered>> = BTreeMap::new();
        for delivery in &self.found.deliveries {
            by_account.entry(&delivery.account).or_default().push(delivery);
        }
        for account in &self.rules.delivered {
            let came = by_account.remove(account.as_str()).unwrap_or_default();
            self.numbers(account, &came);
            let decisions = came.iter().filter_map(|delivery| delivery.decision.as_ref());
            let delivered: BTreeSet<(&str, &str)> =
                decisions.map(|(id, verdict)| (id.as_str(), verdict.as_str())).collect();
            let records = self.found.records.iter().filter(|record| record.account == *account);
            let recorded: BTreeSet<(&str, &str)> =
                records.map(|record| (record.id.as_str(), record.verdict.as_str())).collect();
            for (id, verdict) in recorded.difference(&delivered) {
                let about = format!("{verdict} {id} is recorded and was not delivered");
                self.broke(Promise::EveryRecordIsDelivered, about, &[id]);
            }
            for (id, verdict) in delivered.difference(&recorded) {
                let about = format!("{verdict} {id} was delivered and is not recorded");
                self.broke(Promise::EveryRecordIsDelivered, about, &[id]);
            }
        }
    }

    /// Signatures, numbers and bodies of an account's events.
    fn numbers(&mut self, account: &str, came: &[&Delivered]) {
        let mut events: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        let mut sequences: BTreeMap<u64, &str> = BTreeMap::new();
        for delivery in came {
            let event = delivery.event.as_str();
            let own = (delivery.sequence, delivery.body);
            let first = *events.entry(event).or_insert(own);
            let of_number = *sequences.entry(delivery.sequence).or_insert(event);
            let wrong = match () {
                () if !delivery.is_signed => "came without a signature that holds",
                () if first != own => "came with two bodies or numbers",
                () if of_number != event => "has the number of another event",
                () => continue,
            };
            let about = format!("{account}: {event} {wrong}");
            self.broke(Promise::DeliveriesAreSignedAndNumbered, about, &[event, of_number]);
        }
        let last = sequences.keys().next_back().copied().unwrap_or(0);
        let missing: Vec<u64> = (1..=last).filter(|number| !sequences.contains_key(number)).take(10).collect();
        if !missing.is_empty() {
            let about = format!("{account}: of 1 to {last} these numbers never came: {missing:?}");
            let beside = missing.iter().filter_map(|gap| sequences.get(&(gap - 1)).copied()).collect::<Vec<_>>();
            self.broke(Promise::DeliveriesAreSignedAndNumbered, about, &beside);
        }
    }

    fn verified(&mut self) {
        for (account, (is_whole, count)) in &self.found.verified {
            let records = self.found.records.iter().filter(|record| record.account == *account).count() as u64;
            if !is_whole {
                let about = format!("{account}: the verification says that it does not hold");
                self.broke(Promise::TheLogIsWhole, about, &[]);
            }
            if *count < records {
                let about = format!("{account}: {records} decisions are exported, and {count} verified");
                self.broke(Promise::TheLogIsWhole, about, &[]);
            }
        }
    }

    fn refusals(&mut self) {
        for op in &self.history.ops {
            let Came::Refused { status, why } = &op.came else { continue };
            let is_limited = op.asked().is_some_and(|asked| self.rules.account_limits.contains_key(&asked.account));
            let is_known = match status {
                503 | 401 => true,
                // A disk that is full, a change that another one overtook, or an action that is decided already.
                409 => op.asked().is_none_or(|asked| asked.once.is_some()),
                402 => is_limited,
                // A replica that lags does not have the approval yet (docs/cluster.md).
                404 => matches!(op.what, super::What::Change(Change::Approved(_))) && self.may_lag(op),
                _ => false,
            };
            if !is_known {
                let id = match &op.what {
                    super::What::Check(asked) => asked.once.clone().unwrap_or_else(|| asked.key.clone()),
                    super::What::Change(change) => change.id().to_owned(),
                };
                self.broke(Promise::OnlyKnownRefusals, format!("{id}: {status} {why}"), &[&id]);
            }
        }
    }
}
