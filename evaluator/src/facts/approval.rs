//! Approval: what was said yes to, by whom, and what asks for it.
//!
//! Owns the five words of `approval_status` and the matching of `require_approval_for`. A side effect or tool whose name cannot
//! be trusted (mixed scripts) matches every action: what may be a look-alike needs the approval.

use stage0_contract::{CheckRequest, Word};

use super::declared::Declared;
use super::evidence::Evidence;
use super::prefixes::{Prefixes, any_begins_with};
use super::scope::ProposedTools;

/// The evidence of approval.
#[derive(Debug)]
pub(crate) struct Approval {
    pub(crate) status: Status,
    pub(crate) approver_named: bool,
    /// `customer_visible_approved` is false.
    pub(crate) customer_visible_refused: bool,
    /// `require_approval_for` names one of the side effects or tools.
    pub(crate) named: bool,
}

/// What `approval_status` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Approved,
    Pending,
    Missing,
    None,
    Rejected,
    Absent,
    Unrecognised,
}

/// Shorter words are prefixes of too much.
const LEAST_PREFIX: usize = 4;

impl Approval {
    pub(crate) fn read(
        declared: &Declared,
        request: &CheckRequest,
        tools: &ProposedTools,
        evidence: &mut Evidence<'_>,
    ) -> Self {
        let actions = &declared.approval_for;
        let named = !actions.is_empty() && {
            let effects = request.side_effects.iter().map(|e| Word::name(e));
            let names = tools.all().map(|t| Word::name(t.as_str()));
            effects.chain(names).any(|subject| actions.cover(&subject))
        };
        let approver_named = evidence.text("approved_by").is_some();
        Self {
            status: Status::read(evidence),
            approver_named,
            customer_visible_refused: evidence.flag("customer_visible_approved") == Some(false),
            named,
        }
    }
}

impl Status {
    fn read(evidence: &mut Evidence<'_>) -> Self {
        const NAME: &str = "approval_status";
        let present = evidence.member(NAME).is_some();
        let Some(word) = evidence.text(NAME).map(Word::new) else {
            let malformed = present && evidence.member(NAME).is_some_and(|v| !v.is_string());
            return if malformed { Self::Unrecognised } else { Self::Absent };
        };
        match word.known() {
            Some("approved") => Self::Approved,
            Some("pending") => Self::Pending,
            Some("missing") => Self::Missing,
            Some("none") => Self::None,
            Some("rejected") => Self::Rejected,
            _ => {
                evidence.mark(NAME);
                Self::Unrecognised
            }
        }
    }

    /// As rules see it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::Pending => "pending",
            Self::Missing => "missing",
            Self::None => "none",
            Self::Rejected => "rejected",
            Self::Absent => "absent",
            Self::Unrecognised => "unrecognised",
        }
    }
}

/// Action words such as `deploy`, as `require_approval_for` names them.
#[derive(Debug, Default)]
pub(crate) struct Actions {
    /// Sorted, each once.
    words: Vec<String>,
    /// Those that are long enough to be the beginning of another word.
    beginnings: Prefixes,
    /// One of them mixes scripts: it may be any.
    any: bool,
}

impl Actions {
    pub(crate) fn of(words: &[Word]) -> Self {
        let names: Vec<Word> = words.iter().map(|word| Word::name(word.as_str())).collect();
        let any = words.iter().chain(&names).any(|word| word.known().is_none());
        let mut words: Vec<String> = names.iter().filter_map(Word::known).map(str::to_owned).collect();
        words.sort_unstable();
        words.dedup();
        let beginnings = Prefixes::of(words.iter().filter(|word| is_beginning(word)).cloned().collect());
        Self { words, beginnings, any }
    }

    fn is_empty(&self) -> bool {
        self.words.is_empty() && !self.any
    }

    /// Whether one of them means this side effect or tool: equal, or equal to or a prefix of one of its parts, or the
    /// other way.
    fn cover(&self, subject: &Word) -> bool {
        let Some(subject) = subject.known().filter(|_| !self.any) else { return true };
        let means = |part: &str| {
            self.words.binary_search_by(|word| word.as_str().cmp(part)).is_ok()
                || (is_beginning(part) && (self.beginnings.cover(part) || any_begins_with(&self.words, part)))
        };
        means(subject) || subject.split(|c: char| !c.is_alphanumeric()).filter(|part| !part.is_empty()).any(means)
    }
}

fn is_beginning(word: &str) -> bool {
    word.chars().nth(LEAST_PREFIX - 1).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(value: impl Into<serde_json::Value>) -> (Status, Vec<&'static str>) {
        let context = json!({"approval_status": value.into()});
        let mut evidence = Evidence::new(context.as_object());
        let status = Status::read(&mut evidence);
        (status, evidence.malformed())
    }

    #[test]
    fn only_the_word_approved_is_an_approval() {
        for value in [json!("approved!"), json!("yes"), json!("appr\u{43e}ved"), json!(true), json!(["approved"])] {
            assert_eq!(status(value.clone()), (Status::Unrecognised, vec!["approval_status"]), "{value}");
        }
        for value in [json!(null), json!(" ")] {
            assert_eq!(status(value), (Status::Absent, vec![]));
        }
        assert_eq!(status(json!(" Approved\u{200b}")).0, Status::Approved);
        assert_eq!(status(json!("NONE")).0, Status::None);
    }

    #[test]
    fn an_action_word_means_its_forms_and_nothing_else() {
        let covers = |action: &str, subject: &str| {
            let among_others = ["zzz", action, "aaaa"].map(Word::new);
            Actions::of(&among_others).cover(&Word::name(subject))
        };
        for (action, subject) in [
            ("deploy", "deploy"),
            ("deploy", "deployment"),
            ("deployment", "deploy"),
            ("deploy", "deploy.production"),
            ("money movement", "money_movement"),
            ("production_change", "production_change: db"),
            ("delete", "accounts.delete"),
            ("deploy", "d\u{435}ploy"),
        ] {
            assert!(covers(action, subject), "{action} {subject}");
        }
        for (action, subject) in [("deploy", "write"), ("pay", "payload"), ("rm", "rmdir"), ("publish", "republish")] {
            assert!(!covers(action, subject), "{action} {subject}");
        }
    }
}
