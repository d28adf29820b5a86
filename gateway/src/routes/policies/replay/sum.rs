//! What a replay comes to. Pure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use stage0_contract::{
    IssueCode, MAX_LISTED_FLIPS, NotReplayed, PolicyReplay, PolicyVersion, ReplayGap, Replayed, ReplayedDecision,
    Verdict, VerdictChange, flip_gravity, is_looser,
};

use crate::log_reader::PastDecision;

/// What became of the decisions so far; they come in the order of their time, the newest first.
#[derive(Debug, Default)]
pub(super) struct Sum {
    decisions: u64,
    replayed: u64,
    flips: u64,
    not_replayed: BTreeMap<ReplayGap, u64>,
    /// By gravity, verdict of now and replayed one: how many, and the newest of them.
    changes: BTreeMap<(u8, Verdict, Verdict), (u64, Vec<ReplayedDecision>)>,
    kinds: BTreeSet<Kind>,
    pub(super) has_older: bool,
}

/// Flips for the same reason: both verdicts, code and rule.
type Kind = (Verdict, Verdict, Option<IssueCode>, Option<String>);

/// A replay, and which kinds of looser flips are in it.
pub(super) struct Finished {
    pub(super) shown: PolicyReplay,
    pub(super) kinds: BTreeSet<Kind>,
}

impl Sum {
    /// Adds a decision. `active` is what the active policy decides; none: what is recorded.
    pub(super) fn add(&mut self, past: PastDecision, active: Option<Replayed>, replayed: Replayed) {
        self.decisions += 1;
        let (to, code, rule) = match replayed {
            Replayed::Decided { verdict, code, rule } => (verdict, code, rule),
            Replayed::Not(gap) => {
                *self.not_replayed.entry(gap).or_default() += 1;
                return;
            }
        };
        let PastDecision { request_id, recorded_at, policy_version, verdict: recorded, issue, .. } = past;
        let (from, old_code, old_rule) = match active {
            Some(Replayed::Decided { verdict, code, rule }) => (verdict, code, rule),
            Some(Replayed::Not(_)) | None => {
                let (code, rule) = issue.unzip();
                (recorded, code, rule)
            }
        };
        self.replayed += 1;
        if from == to {
            return;
        }
        let (code, rule) = if from > to { (old_code, old_rule) } else { (code, rule) };
        if is_looser(Some(from), Some(to)) {
            self.flips += 1;
            self.kinds.insert((from, to, code.clone(), rule.clone()));
        }
        let (count, items) = self.changes.entry((flip_gravity(Some(from), Some(to)), from, to)).or_default();
        *count += 1;
        if items.len() < MAX_LISTED_FLIPS {
            items.push(ReplayedDecision { request_id, recorded_at, policy_version, recorded, from, to, code, rule });
        }
    }

    pub(super) fn finish(self, version: PolicyVersion, from: Timestamp, until: Timestamp) -> Finished {
        let Self { decisions, replayed, flips, not_replayed, changes, kinds, has_older } = self;
        let (mut shown, mut items) = (Vec::new(), Vec::new());
        for ((_, from, to), (count, of_pair)) in changes {
            shown.push(VerdictChange { from, to, count });
            items.extend(of_pair);
        }
        items.truncate(MAX_LISTED_FLIPS);
        let changed: u64 = shown.iter().map(|change| change.count).sum();
        let left_out = changed.saturating_sub(u64::try_from(items.len()).unwrap_or(u64::MAX));
        let not_replayed = not_replayed.into_iter().map(|(why, count)| NotReplayed { why, count }).collect();
        let shown = PolicyReplay {
            version,
            from,
            until,
            decisions,
            has_older,
            replayed,
            flips,
            changes: shown,
            not_replayed,
            items,
            left_out,
        };
        Finished { shown, kinds }
    }
}

impl Finished {
    /// Why what was accepted says too little of this, which came since; none: it holds nothing of another kind.
    pub(super) fn stale(&self, accepted: &BTreeSet<Kind>) -> Option<String> {
        if self.shown.has_older {
            let count = self.shown.decisions;
            return Some(format!("more than {count} decisions were recorded since `replayed_until`"));
        }
        let (from, to, _, rule) = self.kinds.difference(accepted).next()?;
        let rule = rule.as_ref().map(|rule| format!(" by the rule `{}`", super::super::gate::plain(rule)));
        let (from, to, rule) = (from.as_str(), to.as_str(), rule.unwrap_or_default());
        Some(format!("since `replayed_until` decisions were recorded that would come from {from}{rule} to {to}"))
    }
}
