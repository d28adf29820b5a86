//! `stage0 approvals approve` and `deny`: shows the action, says what will happen, asks, and sends the answer.
//!
//! The question and what it is about go to standard error, because standard output is for the result. Without a
//! terminal the caller names the digest of what a person has read, or nothing is sent.

use anyhow::{Context as _, bail};
use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{ActionDigest, Approval, ApprovalStatus, KeyId};

use super::{fetch, path, report, show};
use crate::args::approvals::{ApprovalArgs, DecideArgs};
use crate::client::{Connection, ConnectionError, Credential, block_on, target};
use crate::confirm;
use crate::exit::{Exit, UsageError};
use crate::keys::set;
use crate::out::{self, Terminal};
use crate::settings::client::ClientSettings;

const OTHER_KEY: &str = "--key-file FILE names the key of a member who may decide";
const NO_TERMINAL: &str = "standard input is not a terminal, so no person can be asked: read the action with `stage0 \
                           approvals show ID`, then give --yes and --digest DIGEST of what you read";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Approve,
    Deny,
}

impl Answer {
    fn call(self) -> &'static str {
        match self {
            Self::Approve => "approve",
            Self::Deny => "deny",
        }
    }
}

pub(super) fn decide(args: &DecideArgs, answer: Answer, settings: &ClientSettings) -> anyhow::Result<Exit> {
    if answer == Answer::Deny && args.reason.as_deref().is_none_or(|reason| reason.trim().is_empty()) {
        return Err(UsageError("to deny, say why: --reason TEXT").into());
    }
    confirm::require(args.yes, NO_TERMINAL)?;
    let target = target(settings, Credential::Account)?;
    let own = target.key.as_ref().map(|key| key.id().clone());
    let client = Connection::new(target, settings.timeout)?;
    let digest = match (&args.digest, args.yes) {
        (Some(digest), true) => digest.clone(),
        // The parser demands a digest beside --yes.
        (None, true) => return Err(UsageError(NO_TERMINAL).into()),
        (named, false) => match asked(&client, own.as_ref(), args, answer, named.as_ref())? {
            Some(digest) => digest,
            None => {
                out::stderr_line(format!("nothing was sent: {} waits as before", args.approval.id));
                return Ok(Exit::Failed);
            }
        },
    };
    send(&client, &args.approval, answer, &digest, args.reason.as_deref())?;
    Ok(Exit::Done)
}

/// Shows the approval and asks. Returns the digest of what was shown if the person agrees.
fn asked(
    client: &Connection,
    own: Option<&KeyId>,
    args: &DecideArgs,
    answer: Answer,
    named: Option<&ActionDigest>,
) -> anyhow::Result<Option<ActionDigest>> {
    let approval = fetch(client, &args.approval.id)?;
    let id = &approval.id;
    out::stderr_painted(&show::for_people(&approval, Terminal::of_stderr()))?;
    if let Some(named) = named.filter(|named| **named != approval.action_digest) {
        bail!("{id} is of another action than the one with the digest {named}: nothing was sent");
    }
    if approval.status != ApprovalStatus::Pending {
        bail!("{id} is {} and no longer pending: nothing was sent", approval.status.as_str());
    }
    // The server would say so too, but only after the question. What it judges of a member, it judges then.
    if own.is_some_and(|own| *own == approval.key_id || *own == approval.workload) {
        bail!("{id} was asked for with this very key, and who asks does not decide: nothing was sent. {OTHER_KEY}");
    }
    if approval.action.is_none() {
        bail!(
            "the action of {id} is not shown to this key, so there is nothing to decide about: nothing was sent. \
             {OTHER_KEY}"
        );
    }
    let needs_reason = answer == Answer::Approve && approval.terms.reason_required;
    if needs_reason && args.reason.as_deref().is_none_or(|reason| reason.trim().is_empty()) {
        return Err(UsageError("the policy demands a reason for this approval: --reason TEXT").into());
    }
    let agreed = confirm::agrees(format!("\n{}", question(&approval, answer)))?;
    Ok(agreed.then_some(approval.action_digest))
}

fn question(approval: &Approval, answer: Answer) -> String {
    let (key, workload) = (&approval.key_id, &approval.workload);
    let asker = if key == workload { format!("Workload {key}") } else { format!("Key {key} of workload {workload}") };
    match answer {
        Answer::Approve => {
            let demands: Vec<String> = approval.terms.requirements.iter().map(show::demand).collect();
            let (needed, given) = (demands.join(" and "), show::approvals_given(approval));
            let valid = show::length(approval.terms.valid_seconds);
            format!(
                "{asker} asked for this. It needs {needed}; {given} so far.\nOnce it has them, {workload} may do \
                 exactly this, once, within {valid}. Approve it?"
            )
        }
        Answer::Deny => format!(
            "{asker} asked for this. Your denial alone ends it, and for an hour the same action is DENY. Deny it?"
        ),
    }
}

fn send(
    client: &Connection,
    args: &ApprovalArgs,
    answer: Answer,
    digest: &ActionDigest,
    reason: Option<&str>,
) -> anyhow::Result<()> {
    let mut body = json!({"action_digest": digest});
    set(&mut body, "reason", reason);
    let sent = block_on(client.call(Method::POST, &path(&args.id, &[answer.call()]), &[], Some(&body)));
    let is_other_key = matches!(&sent, Err(ConnectionError::Refused { status: 403, .. }));
    let changed: Value = sent.with_context(|| {
        let what = match answer {
            Answer::Approve => "approval",
            Answer::Deny => "denial",
        };
        let advice = if is_other_key { format!(" ({OTHER_KEY})") } else { String::new() };
        format!("your {what} of {} does not count{advice}", args.id)
    })?;
    report(&changed, args.json)
}

#[cfg(test)]
mod tests {
    use super::super::tests::fixtures;
    use super::*;

    #[test]
    fn the_question_says_who_asked_how_many_are_needed_and_for_how_long() {
        let mut approval = fixtures().remove(0);
        let asked = question(&approval, Answer::Approve);
        for part in [
            "Workload key_1 asked",
            "needs 2 members of release-managers; 1 so far",
            "once, within 15 min",
            "Approve it?",
        ] {
            assert!(asked.contains(part), "{part}: {asked}");
        }
        approval.key_id = stage0_contract::KeyId::parse("key_9").unwrap();
        let asked = question(&approval, Answer::Deny);
        assert!(asked.starts_with("Key key_9 of workload key_1 asked") && asked.contains("for an hour"), "{asked}");
    }
}
