//! Scores, windows, terms of approvals and what holds while an outcome is unknown, where they are milder than the
//! parent's.

use stage0_contract::ApprovalTerms;

use super::{Child, List, Weaker};
use crate::approval::Terms;
use crate::files::MANIFEST;
use crate::pack::Pack;
use crate::pack::manifest::Scores;
use crate::pack::merge::Merged;

pub(super) fn find(parent: &Pack, child: &Child<'_>, own: &Merged) -> Vec<Weaker> {
    // Without numbers of its own a pack has its parent's.
    let Some(manifest) = own.own(MANIFEST) else { return Vec::new() };
    let label = parent.label();
    let mut found = Vec::new();
    let mut weaker = |path: &[&str], what: &str| {
        let name = path.join(".");
        let what = format!("`{name}` {what} than in `{label}`");
        found.push(Weaker { list: List::Numbers, name, file: MANIFEST, line: manifest.line(path), what });
    };
    let after: Vec<_> = scores(child.scores).collect();
    for ((table, key, before), (.., after)) in scores(&parent.scores).zip(after) {
        if after < before {
            weaker(&["scores", table, key], "is lower");
        }
    }
    if child.pro.denies_from > parent.pro.denies_from {
        weaker(&["pro", "denies_from"], "is higher");
    }
    // A rule may object while a window is open. A new window can be named by a request, which was refused before.
    let is_read = parent.reads("windows_open");
    for (name, window) in child.windows {
        let what = match parent.windows.get(name) {
            None => Some("can be named by requests, which is more"),
            Some(before) if !window.is_within(before) || (is_read && !before.is_within(window)) => {
                Some("is open at other times")
            }
            Some(_) => None,
        };
        if let Some(what) = what {
            weaker(&["windows", name], what);
        }
    }
    let (before, after) = (&parent.approvals, child.approvals);
    for (key, what) in terms(&before.terms, &after.terms) {
        weaker(&["approvals", key], what);
    }
    if after.volatile.iter().any(|member| !before.volatile.contains(member)) {
        weaker(&["approvals", "volatile"], "has more members");
    }
    if parent.outcomes.hold_unknown && !child.outcomes.hold_unknown {
        weaker(&["outcomes", "hold_unknown"], "holds less");
    }
    found
}

fn scores(scores: &Scores) -> impl Iterator<Item = (&'static str, &'static str, u8)> + use<> {
    let Scores { base, floor } = *scores;
    [
        ("base", "none", base.none),
        ("base", "medium", base.medium),
        ("base", "loop", base.looping),
        ("base", "communication", base.communication),
        ("base", "approval", base.approval),
        ("base", "high", base.high),
        ("floor", "allow", floor.allow),
        ("floor", "defer", floor.defer),
        ("floor", "deny", floor.deny),
    ]
    .into_iter()
}

/// The terms of an approval that are milder, and in what.
pub(in crate::pack) fn terms(before: &Terms, after: &Terms) -> Vec<(&'static str, &'static str)> {
    let effective = |terms: &Terms| Terms::default().or(terms);
    let (old, new): (ApprovalTerms, ApprovalTerms) = (effective(before), effective(after));
    let first = |terms: &ApprovalTerms| terms.requirements.first().map(|one| (one.groups.clone(), one.quorum));
    let ((old_groups, old_quorum), (new_groups, new_quorum)) =
        (first(&old).unwrap_or_default(), first(&new).unwrap_or_default());
    // Without a group any member may approve.
    let is_subset = |some: &[String], all: &[String]| some.iter().all(|group| all.contains(group));
    let more_groups = !old_groups.is_empty() && (new_groups.is_empty() || !is_subset(&new_groups, &old_groups));
    let (sooner, more_escalated) = match (&before.escalation, &after.escalation) {
        (_, None) => (false, false),
        (None, Some(_)) => (true, true),
        (Some(old), Some(new)) => (new.after_seconds < old.after_seconds, !is_subset(&new.groups, &old.groups)),
    };
    [
        ("approvers", more_groups, "lets others approve"),
        ("quorum", new_quorum < old_quorum, "is lower"),
        ("within", new.within_seconds > old.within_seconds, "is longer"),
        ("valid_for", new.valid_seconds > old.valid_seconds, "is longer"),
        ("escalate_after", sooner, "comes sooner"),
        ("escalate_to", more_escalated, "lets others approve"),
        ("reason", old.reason_required && !new.reason_required, "asks for less"),
    ]
    .into_iter()
    .filter_map(|(key, weaker, what)| weaker.then_some((key, what)))
    .collect()
}
