//! The decision about a check that a stop covers: DENY `STOPPED`, without a rule of the pack.
//!
//! It has the members of any other decision, so that it is recorded and read like one.
//! INVARIANT: its texts hold nothing of the request that another decision would not show.

use serde_json::{Map, Value};
use stage0_contract::{CheckRequest, Decision, Issue, IssueCode, NextAction, Severity, Stop, StopScope, Verdict};

use super::{Draft, decision};
use crate::facts::Facts;
use crate::pack::Pack;
use crate::rule::Outcome;
use crate::secrets;

/// Facts must be those of the request, read without the counts of its run.
pub(crate) fn stopped(pack: &Pack, request: &CheckRequest, facts: &Facts, stop: &Stop) -> Decision {
    let what = match stop.scope {
        StopScope::Account => "all checks of the account are stopped",
        StopScope::Environment => "this environment is stopped, and so are checks that name none",
        StopScope::Tool => "this tool is stopped",
        StopScope::Key => "this key is stopped",
        StopScope::All => "all checks are stopped",
    };
    let scope = scope(stop.scope);
    let issue = Issue {
        code: IssueCode::stopped(),
        severity: Severity::Critical,
        message: format!("{what}: {}", secrets::mask(stop.reason.trim(), pack.secrets())),
        rule: format!("stop.{scope}"),
        next_action: NextAction::Stop,
        details: Map::from_iter([
            ("stop".to_owned(), Value::from(stop.id.as_str())),
            ("scope".to_owned(), scope.into()),
        ]),
    };
    decision(pack, request, facts, &Outcome::default(), &[], vec![Draft::denying(issue)], Verdict::Deny)
}

fn scope(scope: StopScope) -> &'static str {
    match scope {
        StopScope::Account => "account",
        StopScope::Environment => "environment",
        StopScope::Tool => "tool",
        StopScope::Key => "key",
        StopScope::All => "all",
    }
}
