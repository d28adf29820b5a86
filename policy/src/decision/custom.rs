//! The issue for a member of `context` that the pack declares with another type than the request sends.
//!
//! No rule of the pack gives it: a rule would see such a member as absent, and what cannot be read is not allowed.

use serde_json::Map;
use stage0_contract::{Effect, Issue, IssueCode, NextAction, Severity};

use super::Draft;
use super::remedy::{Change, Remedy};
use crate::facts::CustomType;

/// The name that stands where another issue names its rule.
const RULE: &str = "context.custom";

/// One issue for each such member. Names of members are the pack's words, so they are shown even beside a secret.
pub(super) fn mistyped(members: &[(String, CustomType)]) -> impl Iterator<Item = Draft> + '_ {
    members.iter().map(|(member, kind)| draft(member, *kind))
}

fn draft(member: &str, kind: CustomType) -> Draft {
    let path = format!("context.{member}");
    let issue = Issue {
        code: IssueCode::context_required(),
        severity: Severity::Medium,
        message: format!("`{member}` must be {}", kind.told()),
        rule: RULE.to_owned(),
        next_action: NextAction::ProvideContext,
        details: Map::new(),
    };
    Draft {
        issue,
        effect: Effect::Defer,
        rules: vec![RULE.to_owned()],
        question: Some(format!("What is `{member}`, as {}?", kind.told())),
        note: None,
        about: None,
        remedy: Remedy::default().at(&path).write(Change::system(&path)),
    }
}
