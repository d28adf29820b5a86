//! Terms: what a rule that asks for an approval demands of it, and what several such rules demand together.
//!
//! A rule says what it needs in annotations, a pack in `[approvals]` of `pack.toml` for rules that say nothing. Without
//! either, any one member may approve within an hour, and the approval may be used for a quarter of an hour.
//! INVARIANT: terms taken together are never looser than those of any rule among them. So an escalation of one rule
//! opens that rule's requirement and no other.

use stage0_contract::{ApprovalTerms, Escalation, Requirement};

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
pub(crate) const DAY: i64 = 24 * HOUR;

const DEFAULT_APPROVAL_TIMEOUT: i64 = HOUR;
const DEFAULT_VALID_FOR: i64 = 15 * MINUTE;
const MAX_QUORUM: u32 = 10;
const MAX_GROUP_BYTES: usize = 64;

/// What one rule, or `[approvals]`, says. `None`: nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) approvers: Option<Vec<String>>,
    pub(crate) quorum: Option<u32>,
    pub(crate) within: Option<i64>,
    pub(crate) valid_for: Option<i64>,
    pub(crate) escalation: Option<Escalation>,
    pub(crate) reason_required: bool,
}

impl Terms {
    pub(crate) fn within_or(&self, defaults: &Self) -> i64 {
        self.within.or(defaults.within).unwrap_or(DEFAULT_APPROVAL_TIMEOUT)
    }

    /// Whether these terms escalate only after the time to decide is over.
    pub(crate) fn escalates_too_late(&self, defaults: &Self) -> bool {
        self.escalation.as_ref().is_some_and(|escalation| escalation.after_seconds >= self.within_or(defaults))
    }

    /// These terms alone, with the pack's defaults for what they do not say.
    pub(crate) fn or(&self, defaults: &Self) -> ApprovalTerms {
        with_shared_escalation(self.alone(defaults))
    }

    /// As [`Terms::or`], with the escalation at the requirement.
    fn alone(&self, defaults: &Self) -> ApprovalTerms {
        let groups = self.approvers.clone().or_else(|| defaults.approvers.clone()).unwrap_or_default();
        let quorum = self.quorum.or(defaults.quorum).unwrap_or(1);
        let within_seconds = self.within_or(defaults);
        let escalation = self.escalation.as_ref().or(defaults.escalation.as_ref());
        ApprovalTerms {
            requirements: vec![Requirement { groups, quorum, escalation: escalation.cloned() }],
            within_seconds,
            valid_seconds: self.valid_for.or(defaults.valid_for).unwrap_or(DEFAULT_VALID_FOR),
            reason_required: self.reason_required || defaults.reason_required,
            escalation: None,
        }
    }

    /// The terms of several rules together; without a rule those of the pack.
    pub(crate) fn together<'t>(rules: impl Iterator<Item = &'t Self>, defaults: &Self) -> ApprovalTerms {
        let together = rules.map(|rule| rule.alone(defaults)).reduce(merged);
        let mut together = together.unwrap_or_else(|| Self::default().alone(defaults));
        together.requirements.sort_unstable_by(|a, b| a.groups.cmp(&b.groups));
        with_shared_escalation(together)
    }
}

/// The terms of two packs together.
pub(crate) fn joined(one: ApprovalTerms, other: ApprovalTerms) -> ApprovalTerms {
    let mut joined = merged(with_own_escalations(one), with_own_escalations(other));
    joined.requirements.sort_unstable_by(|a, b| a.groups.cmp(&b.groups));
    with_shared_escalation(joined)
}

/// Moves an escalation that all requirements share to each of them.
fn with_own_escalations(mut terms: ApprovalTerms) -> ApprovalTerms {
    if let Some(shared) = terms.escalation.take() {
        terms.requirements.iter_mut().for_each(|one| one.escalation = one.escalation.take().or(Some(shared.clone())));
    }
    terms
}

fn merged(mut all: ApprovalTerms, more: ApprovalTerms) -> ApprovalTerms {
    for one in more.requirements {
        // Of two requirements of the same groups the larger quorum includes the smaller one.
        match all.requirements.iter_mut().find(|known| known.groups == one.groups) {
            Some(known) => {
                known.quorum = known.quorum.max(one.quorum);
                known.escalation = known.escalation.take().zip(one.escalation).and_then(|(a, b)| of_both(a, &b));
            }
            None => all.requirements.push(one),
        }
    }
    ApprovalTerms {
        requirements: all.requirements,
        within_seconds: all.within_seconds.min(more.within_seconds),
        valid_seconds: all.valid_seconds.min(more.valid_seconds),
        reason_required: all.reason_required || more.reason_required,
        escalation: None,
    }
}

/// Who may decide for two rules with the same requirement: who may for each of them, once the later time has come.
fn of_both(one: Escalation, other: &Escalation) -> Option<Escalation> {
    let groups: Vec<String> = one.groups.into_iter().filter(|group| other.groups.contains(group)).collect();
    let after_seconds = one.after_seconds.max(other.after_seconds);
    (!groups.is_empty()).then_some(Escalation { after_seconds, groups })
}

/// Moves an escalation that all requirements have beside them, where readers of the first version of the terms look.
/// One that would come only after the time to decide is over is taken out.
fn with_shared_escalation(mut terms: ApprovalTerms) -> ApprovalTerms {
    let within = terms.within_seconds;
    for requirement in &mut terms.requirements {
        requirement.escalation.take_if(|escalation| escalation.after_seconds >= within);
    }
    let first = terms.requirements.first().and_then(|one| one.escalation.clone());
    if first.is_some() && terms.requirements.iter().all(|one| one.escalation == first) {
        terms.requirements.iter_mut().for_each(|one| one.escalation = None);
        terms.escalation = first;
    }
    terms
}

/// The name of a group of members, as `stage0 members` takes it.
pub(crate) fn group(text: &str) -> Option<String> {
    let is_name_byte =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_' | b'.');
    let is_name = (1..=MAX_GROUP_BYTES).contains(&text.len()) && text.bytes().all(is_name_byte);
    is_name.then(|| text.to_owned())
}

pub(crate) fn quorum(number: i64) -> Option<u32> {
    u32::try_from(number).ok().filter(|quorum| (1..=MAX_QUORUM).contains(quorum))
}

/// The seconds of a duration such as `90s`, `15m`, `1h` or `7d`.
fn seconds(text: &str) -> Option<i64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let factor = match unit {
        "s" => 1,
        "m" => MINUTE,
        "h" => HOUR,
        "d" => DAY,
        _ => return None,
    };
    let is_number = (1..=9).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
    number.parse::<i64>().ok().filter(|_| is_number)?.checked_mul(factor)
}

/// As [`seconds`], from a minute to `most`.
pub(crate) fn within_seconds(text: &str, most: i64) -> Option<i64> {
    seconds(text).filter(|seconds| (MINUTE..=most).contains(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(approvers: &[&str], quorum: u32) -> Terms {
        let approvers = (!approvers.is_empty()).then(|| approvers.iter().map(|name| (*name).to_owned()).collect());
        Terms { approvers, quorum: Some(quorum), ..Terms::default() }
    }

    fn escalation(after_seconds: i64, group: &str) -> Option<Escalation> {
        Some(Escalation { after_seconds, groups: vec![group.to_owned()] })
    }

    fn requirement(groups: &[&str], quorum: u32) -> Requirement {
        Requirement { groups: groups.iter().map(|name| (*name).to_owned()).collect(), quorum, escalation: None }
    }

    #[test]
    fn without_a_word_any_one_member_approves_within_an_hour_for_a_quarter_of_an_hour() {
        let built_in = Terms::together([].into_iter(), &Terms::default());
        assert_eq!(built_in.requirements, [requirement(&[], 1)]);
        assert_eq!((built_in.within_seconds, built_in.valid_seconds), (3_600, 900));
        assert!(!built_in.reason_required && built_in.escalation.is_none());
    }

    #[test]
    fn a_rule_overrides_the_defaults_of_the_pack_word_by_word() {
        let defaults = Terms {
            within: Some(7_200),
            reason_required: true,
            escalation: escalation(1_800, "duty"),
            ..terms(&["ops"], 2)
        };
        let rule = Terms { quorum: Some(3), valid_for: Some(60), ..Terms::default() };
        let alone = rule.or(&defaults);
        assert_eq!(alone.requirements, [requirement(&["ops"], 3)]);
        assert_eq!((alone.within_seconds, alone.valid_seconds, alone.reason_required), (7_200, 60, true));
        assert_eq!(alone.escalation, defaults.escalation);
        assert_eq!(terms(&["dba"], 1).or(&defaults).requirements, [requirement(&["dba"], 1)]);
    }

    #[test]
    fn several_rules_demand_what_each_of_them_demands() {
        let rules = [
            Terms { within: Some(3_600), escalation: escalation(1_800, "late"), ..terms(&["release"], 2) },
            Terms { within: Some(600), reason_required: true, ..terms(&["dba", "ops"], 1) },
            Terms { valid_for: Some(60), escalation: escalation(120, "b"), ..terms(&["release"], 1) },
            Terms { escalation: escalation(120, "a"), ..terms(&["release"], 2) },
        ];
        for turned in 0..rules.len() {
            let mut rules = rules.clone();
            rules.rotate_left(turned);
            let together = Terms::together(rules.iter(), &Terms::default());
            assert_eq!(together.requirements, [requirement(&["dba", "ops"], 1), requirement(&["release"], 2)]);
            assert_eq!((together.within_seconds, together.valid_seconds, together.reason_required), (600, 60, true));
            assert_eq!(together.escalation, None, "of those for `release` no group is in all");
        }
    }

    #[test]
    fn an_escalation_opens_the_requirement_of_its_own_rule_and_no_other() {
        let ours = Terms { escalation: escalation(60, "my-team"), ..terms(&["ours"], 1) };
        let theirs = terms(&["payments"], 2);
        for rules in [[&ours, &theirs], [&theirs, &ours]] {
            let together = Terms::together(rules.into_iter(), &Terms::default());
            let open = Requirement { escalation: escalation(60, "my-team"), ..requirement(&["ours"], 1) };
            assert_eq!(together.requirements, [open, requirement(&["payments"], 2)]);
            assert_eq!((together.escalation.as_ref(), together.escalations().count()), (None, 1));
        }
        // The harmless neighbour: the escalation that all of them have stands beside them, as it always did.
        let both = [ours, Terms { escalation: escalation(60, "my-team"), ..theirs }];
        let together = Terms::together(both.iter(), &Terms::default());
        assert_eq!(together.requirements, [requirement(&["ours"], 1), requirement(&["payments"], 2)]);
        assert_eq!(together.escalation, escalation(60, "my-team"));
    }

    #[test]
    fn of_two_equal_requirements_the_one_without_an_escalation_wins() {
        let silent = terms(&["payments"], 2);
        let escalates = |after, groups: &[&str]| {
            let groups = groups.iter().map(|name| (*name).to_owned()).collect();
            Terms { escalation: Some(Escalation { after_seconds: after, groups }), ..terms(&["payments"], 1) }
        };
        let open = escalates(60, &["my-team"]);
        for rules in [[&open, &silent], [&silent, &open]] {
            let together = Terms::together(rules.into_iter(), &Terms::default());
            assert_eq!(together.requirements, [requirement(&["payments"], 2)]);
            assert_eq!(together.escalations().count(), 0);
        }
        // Who may decide for both rules may do so once both let them.
        let both = [escalates(60, &["duty", "my-team"]), escalates(120, &["duty", "late"])];
        for rules in [[&both[0], &both[1]], [&both[1], &both[0]]] {
            assert_eq!(Terms::together(rules.into_iter(), &Terms::default()).escalation, escalation(120, "duty"));
        }
    }

    #[test]
    fn the_terms_of_two_packs_are_met_together() {
        let ours = Terms { escalation: escalation(60, "my-team"), ..terms(&["ours"], 1) }.or(&Terms::default());
        let theirs = Terms { within: Some(600), ..terms(&["payments"], 2) }.or(&Terms::default());
        assert_eq!(ours.escalation, escalation(60, "my-team"), "shared by all requirements of its pack");
        for (one, other) in [(&ours, &theirs), (&theirs, &ours)] {
            let together = joined(one.clone(), other.clone());
            let open = Requirement { escalation: escalation(60, "my-team"), ..requirement(&["ours"], 1) };
            assert_eq!(together.requirements, [open, requirement(&["payments"], 2)]);
            assert_eq!((together.within_seconds, together.escalation), (600, None));
        }
        assert_eq!(joined(ours.clone(), ours.clone()), ours);
    }

    #[test]
    fn an_escalation_after_the_end_never_comes() {
        let rule = Terms { escalation: escalation(3_600, "duty"), ..Terms::default() };
        assert!(rule.escalates_too_late(&Terms::default()));
        let longer = Terms { within: Some(3_601), ..rule.clone() };
        assert!(!longer.escalates_too_late(&Terms::default()) && !rule.escalates_too_late(&longer));
        assert_eq!(Terms::default().or(&longer).escalation, rule.escalation);
        // A rule with less time than the pack's escalation takes is no fault: no other group is asked.
        let shorter = Terms { within: Some(60), ..Terms::default() };
        assert!(!shorter.escalates_too_late(&longer) && shorter.or(&longer).escalation.is_none());
    }

    #[test]
    fn durations_have_a_whole_number_and_a_unit() {
        for (text, expected) in
            [("90s", 90), ("1m", 60), ("15m", 900), ("1h", 3_600), ("7d", 604_800), ("0s", 0), ("007m", 420)]
        {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        for text in
            ["", "s", "1", "1.5h", "-1m", "+1m", "1 h", " 1h", "1H", "1w", "1hm", "٣m", "1h\u{200b}", "9999999999s"]
        {
            assert_eq!(seconds(text), None, "{text}");
        }
        assert_eq!([within_seconds("59s", HOUR), within_seconds("61m", HOUR)], [None, None]);
        assert_eq!([within_seconds("60s", HOUR), within_seconds("60m", HOUR)], [Some(60), Some(HOUR)]);
    }

    #[test]
    fn groups_and_quorums_have_bounds() {
        for name in ["release-managers", "on_call.eu", "7", &"g".repeat(64)] {
            assert_eq!(group(name).as_deref(), Some(name));
        }
        for name in ["", " ", "a b", "a,b", "Ops", "g\u{430}", "a\u{200b}", &"g".repeat(65)] {
            assert_eq!(group(name), None, "{name}");
        }
        assert_eq!([quorum(0), quorum(11), quorum(-1), quorum(i64::MAX)], [None; 4]);
        assert_eq!([quorum(1), quorum(10)], [Some(1), Some(10)]);
    }
}
