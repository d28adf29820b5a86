//! `codes.toml`: what each code of a pack means and what settles it, for people and agents who read an answer.
//!
//! Every code of a rule must be described, and every described code must belong to a rule. A pack of the first edition
//! has no such file. Codes that the policy crate itself gives have a meaning here, where a pack does not describe them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use stage0_contract::{IssueCode, Severity};

use crate::files::{CODES, Fault, Files};
use crate::rule::Rule;
use crate::vocabulary::Edition;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Meaning {
    pub(crate) meaning: String,
    pub(crate) remedy: String,
}

pub(crate) type Codes = BTreeMap<IssueCode, Meaning>;

/// Codes that no rule needs to give, with the severity and meaning of each.
pub(super) type BuiltIn = Vec<(IssueCode, Severity, Meaning)>;

/// `has_custom`: the pack declares members of `context` of its own. `holds_unknown`: it holds up actions whose outcome
/// is not known.
pub(super) fn built_in(has_custom: bool, holds_unknown: bool) -> BuiltIn {
    let meaning = |meaning: &str, remedy: &str| Meaning { meaning: meaning.to_owned(), remedy: remedy.to_owned() };
    let denied = meaning("the approval of this action was refused", "Do not act. Ask the approver why it was refused.");
    let failed = meaning("a rule of the policy failed while it was evaluated", "Tell the operator of the policy.");
    let stopped = meaning(
        "a person has stopped what this check is part of: its account, environment, tool or key",
        "Stop, and do not retry. A member or the operator ends the stop with a reason.",
    );
    let unread = meaning(
        "a member of `context` that the policy declares as its own cannot be read",
        "Send the member that `details.write` names, in the type that the message tells.",
    );
    let mut codes = vec![
        (IssueCode::approval_status_invalid(), Severity::High, denied),
        (IssueCode::policy_error(), Severity::High, failed),
        (IssueCode::stopped(), Severity::Critical, stopped),
    ];
    let open = meaning(
        "an earlier check of the same action was allowed, and what came of it is not known",
        "Find out what came of it, and report the outcome of the request that `details` names. Do not act before that.",
    );
    codes.extend(holds_unknown.then(|| (IssueCode::outcome_unknown(), Severity::High, open)));
    codes.extend(has_custom.then(|| (IssueCode::context_required(), Severity::Medium, unread)));
    codes
}

pub(super) fn parse(
    files: &Files,
    edition: Edition,
    rules: &BTreeMap<String, Rule>,
    built_in: &BuiltIn,
    is_own: impl Fn(&str) -> bool,
    faults: &mut Vec<Fault>,
) -> Option<Codes> {
    if edition == Edition::First && files.get(CODES).is_none() {
        return Some(Codes::new());
    }
    let (text, mut codes): (_, Codes) = files.toml(CODES, faults)?;
    if !faults.is_empty() {
        // A faulty rule has no code yet; its fault is reported already.
        return Some(codes);
    }
    let mut given: BTreeSet<&IssueCode> = rules.values().map(|rule| &rule.code).collect();
    let policy_error = IssueCode::policy_error();
    given.insert(&policy_error);
    for code in given.iter().filter(|code| !codes.contains_key(code)) {
        faults.push(missing(code, rules));
    }
    // The parent describes codes of rules that the pack may have left out.
    codes.retain(|code, _| is_own(code.as_str()) || given.contains(code));
    for (code, meaning) in &codes {
        let header = format!("[{code}]");
        let line = || text.lines().position(|line| line.trim() == header).map_or(1, |index| index + 1);
        let mut fault = |message: String| faults.push(Fault::new(CODES, message).at(line()));
        if !given.contains(code) && built_in.iter().all(|(known, ..)| known != code) {
            fault(format!("`{code}` is given by no rule"));
        }
        if meaning.meaning.trim().is_empty() || meaning.remedy.trim().is_empty() {
            fault(format!("`{code}` needs a `meaning` and a `remedy`"));
        }
    }
    Some(codes)
}

/// The fault of a code that is not described, with what to add.
fn missing(code: &IssueCode, rules: &BTreeMap<String, Rule>) -> Fault {
    let given = rules.values().find(|rule| rule.code == *code);
    let by = given.map_or("the evaluator".to_owned(), |rule| format!("`{}` ({}:{})", rule.id, rule.file, rule.line));
    let fault = Fault::new(CODES, format!("`{code}` is missing: {by} gives it"));
    let help = format!("add these lines to {CODES}:\n[{code}]\nmeaning = \"what it means\"\nremedy = \"what to do\"");
    let fault = fault.help(help);
    match given {
        Some(rule) => fault.rule(&rule.id),
        None => fault,
    }
}
