//! `[approvals]` of `pack.toml`: what an approval needs where the rule that asks for it says nothing, and which members
//! of `context` say nothing about the action.
//!
//! INVARIANT: a member that the contract knows is never volatile beyond those that always are, so that no pack can let
//! an approval of one action serve for another.

use serde::Deserialize;
use stage0_contract::{CONTEXT_MEMBERS, Escalation, VOLATILE_CONTEXT_MEMBERS, VOLATILE_CONTEXT_PREFIXES, is_blank};
use toml::Spanned;

use crate::approval::{DAY, Terms, group, quorum, within_seconds};
use crate::files::{Fault, MANIFEST, line_of};

const MAX_GROUPS: usize = 50;
const MAX_VOLATILE: usize = 50;
const MAX_MEMBER_CHARS: usize = 100;

/// The defaults of a pack.
#[derive(Debug, Default)]
pub(crate) struct Approvals {
    pub(crate) terms: Terms,
    /// Members of `context` that are left out of an action's digest, in addition to the contract's.
    pub(crate) volatile: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawApprovals {
    approvers: Option<Spanned<Vec<String>>>,
    quorum: Option<Spanned<i64>>,
    within: Option<Spanned<String>>,
    valid_for: Option<Spanned<String>>,
    escalate_after: Option<Spanned<String>>,
    escalate_to: Option<Spanned<Vec<String>>>,
    reason: Option<Spanned<String>>,
    #[serde(default)]
    volatile: Vec<Spanned<String>>,
}

/// Reads the section and collects its faults, each with its line.
pub(super) fn read(raw: RawApprovals, text: &str, faults: &mut Vec<Fault>) -> Approvals {
    let mut reader = Reader { text, faults };
    let approvers = reader.groups("approvers", raw.approvers.as_ref());
    let required = reader.value("reason", raw.reason, "`required`", |word| (word == "required").then_some(()));
    let quorum = reader.value("quorum", raw.quorum, "a number from 1 to 10", |number| quorum(*number));
    let within = reader.duration("within", raw.within, "`7d`", 7 * DAY);
    let valid_for = reader.duration("valid_for", raw.valid_for, "`24h`", DAY);
    let both = [raw.escalate_after.as_ref().map(Spanned::span), raw.escalate_to.as_ref().map(Spanned::span)];
    if let [Some(one), None] | [None, Some(one)] = &both {
        reader
            .fault(one.start, "`escalate_after` and `escalate_to` are needed together, or neither of them".to_owned());
    }
    let after_seconds = reader.duration("escalate_after", raw.escalate_after, "`7d`", 7 * DAY);
    let to = reader.groups("escalate_to", raw.escalate_to.as_ref());
    let escalation = after_seconds.zip(to).map(|(after_seconds, groups)| Escalation { after_seconds, groups });
    let terms = Terms { approvers, quorum, within, valid_for, escalation, reason_required: required.is_some() };
    if let (true, Some(escalate)) = (terms.escalates_too_late(&Terms::default()), &both[0]) {
        let message =
            "`escalate_after` must be shorter than `within`: nobody else would be asked before the time is over";
        reader.fault(escalate.start, message.to_owned());
    }
    Approvals { terms, volatile: reader.volatile(raw.volatile) }
}

struct Reader<'a> {
    text: &'a str,
    faults: &'a mut Vec<Fault>,
}

impl Reader<'_> {
    fn fault(&mut self, at: usize, message: String) {
        self.faults.push(Fault::new(MANIFEST, message).at(line_of(self.text, at)));
    }

    fn value<V, T>(
        &mut self,
        name: &str,
        value: Option<Spanned<V>>,
        wanted: &str,
        read: impl FnOnce(&V) -> Option<T>,
    ) -> Option<T> {
        let value = value?;
        let read = read(value.get_ref());
        if read.is_none() {
            self.fault(value.span().start, format!("`{name}` in `[approvals]` must be {wanted}"));
        }
        read
    }

    fn duration(&mut self, name: &str, value: Option<Spanned<String>>, longest: &str, most: i64) -> Option<i64> {
        let wanted = format!("a duration such as `15m`, from `1m` to {longest}");
        self.value(name, value, &wanted, |text| within_seconds(text, most))
    }

    fn groups(&mut self, name: &str, value: Option<&Spanned<Vec<String>>>) -> Option<Vec<String>> {
        let value = value?;
        let groups = groups(value.get_ref().iter().map(String::as_str));
        if groups.is_none() {
            self.fault(value.span().start, format!("`{name}` in `[approvals]` must be {GROUPS}"));
        }
        groups
    }

    fn volatile(&mut self, members: Vec<Spanned<String>>) -> Vec<String> {
        if let Some(over) = members.get(MAX_VOLATILE) {
            self.fault(over.span().start, format!("`volatile` may have {MAX_VOLATILE} members"));
        }
        let mut volatile: Vec<String> = Vec::new();
        for member in members {
            let (at, name) = (member.span().start, member.into_inner());
            if VOLATILE_CONTEXT_MEMBERS.contains(&name.as_str())
                || VOLATILE_CONTEXT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            {
                self.fault(at, format!("`{name}` is volatile anyway: take it out of `volatile`"));
            } else if is_of_contract(&name) {
                let told = "is a member of the contract: an approval is of its value too, so it cannot be volatile";
                self.fault(at, format!("`{name}` in `volatile` {told}"));
            } else if is_blank(&name) || name.chars().count() > MAX_MEMBER_CHARS || volatile.contains(&name) {
                self.fault(at, format!("`{name}` in `volatile` must be the name of a member of `context`, once"));
            } else {
                volatile.push(name);
            }
        }
        volatile
    }
}

/// Whether the contract or a rule knows a member of `context` of this name, in any spelling.
fn is_of_contract(name: &str) -> bool {
    let bare =
        |name: &str| -> String { stage0_contract::visible(name).chars().filter(|c| c.is_alphanumeric()).collect() };
    let wanted = bare(name);
    CONTEXT_MEMBERS.iter().any(|member| bare(member.name) == wanted)
}

pub(crate) const GROUPS: &str = "1 to 50 names of groups: small letters, digits, `-`, `_` and `.`, \
    at most 64 characters each, such as `release-managers`";

/// Names of groups, sorted, each once; `None` where one is no name, or there are none or too many.
pub(crate) fn groups<'a>(names: impl Iterator<Item = &'a str>) -> Option<Vec<String>> {
    let mut groups: Vec<String> = names.map(group).collect::<Option<_>>()?;
    groups.sort_unstable();
    groups.dedup();
    (1..=MAX_GROUPS).contains(&groups.len()).then_some(groups)
}
