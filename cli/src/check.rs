//! `stage0 check`: asks whether an action may run. The exit code is the answer for shells.
//!
//! INVARIANT: exit code 0 needs what every client needs to act, a complete and recorded ALLOW (`stage0_client::judge`),
//! printed without an error.

use anyhow::Context as _;
use reqwest::{Method, StatusCode};
use stage0_client::{Judged, judge};
use stage0_contract::{ApprovalSource, ApprovalStatus, CheckResponse, Verdict};

use crate::action;
use crate::args::CheckArgs;
use crate::client::{Connection, Credential, block_on, target};
use crate::exit::Exit;
use crate::out::{self, plain};
use crate::settings::client::ClientSettings;
use crate::table::seconds;
use crate::{decision, failure};

pub(crate) fn run(arguments: &CheckArgs, settings: &ClientSettings) -> Exit {
    match decide(arguments, settings) {
        Ok(exit) => exit,
        Err(error) => {
            let error = failure::describe(&error);
            out::stderr_line(format!("error: {error}\nno decision: the action must not run"));
            Exit::NoDecision
        }
    }
}

fn decide(arguments: &CheckArgs, settings: &ClientSettings) -> anyhow::Result<Exit> {
    const CANNOT_WRITE: &str = "cannot write to standard output";
    let action = action::read(&arguments.file)?;
    let client = Connection::new(target(settings, Credential::Account)?, settings.timeout)?;
    let answer = block_on(client.send(Method::POST, &["check"], &[], Some(action.body)))?;
    if answer.status != StatusCode::OK && arguments.json {
        out::json_text(&answer.body).context(CANNOT_WRITE)?;
    }
    let status = answer.status;
    let body = answer.successful()?;
    let judged = judge(status.as_u16(), &body).context("the answer is not a complete decision")?;
    let written = if arguments.json { out::json_text(&body) } else { out::decision(&for_people(judged.response())) };
    written.context(CANNOT_WRITE)?;
    Ok(match judged {
        Judged::Allowed(_) => Exit::Done,
        Judged::Denied(_) => Exit::Failed,
        Judged::Deferred(_) => Exit::Deferred,
    })
}

fn for_people(response: &CheckResponse) -> String {
    let approval = approval_lines(response);
    format!("{}\nrequest  {}{approval}", decision::for_people(&response.decided), response.request_id)
}

/// The approval that the decision waits for, with what to do next, or the one that it used.
fn approval_lines(response: &CheckResponse) -> String {
    let Some(approval) = &response.decided.approval else {
        return match response.meta.approval_source {
            Some(ApprovalSource::Caller) => "\napproval only the request itself says that it is approved".to_owned(),
            Some(ApprovalSource::Approval | ApprovalSource::Grant) | None => String::new(),
        };
    };
    let name = match (&approval.id, &approval.grant_id) {
        (Some(id), _) => id.to_string(),
        (None, Some(grant)) => format!("wider grant {grant}"),
        (None, None) => "unknown".to_owned(),
    };
    let mut text = match response.decided.verdict {
        Verdict::Allow => format!("\napproval {name} is used by this check"),
        Verdict::Defer | Verdict::Deny => format!("\napproval {name} is {}", approval.status.as_str()),
    };
    text.push_str(&format!("\n         {}", plain(&approval.url)));
    if response.decided.verdict == Verdict::Defer
        && approval.status == ApprovalStatus::Pending
        && let Some(id) = &approval.id
    {
        let of = match approval.groups.as_slice() {
            [] => String::new(),
            groups => format!(" of {}", plain(&groups.join(", "))),
        };
        let people = if approval.quorum == 1 { "member" } else { "members" };
        text.push_str(&format!(
            "\n         next: {} {people}{of} must approve until {}: stage0 approvals approve {id}\n         \
             then ask again with the same action, or with {{\"approval_id\": \"{id}\"}}; stage0 approvals show {id} \
             --wait 30s waits",
            approval.quorum,
            seconds(approval.expires_at)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn answer() -> Value {
        json!({
            "decision": "GO", "verdict": "ALLOW", "reason": "nothing speaks against it", "issues": [],
            "risk_score": 5, "value_risk": 0, "waste_risk": 0, "high_risk": false, "clarifying_questions": [],
            "defer_questions": [], "guardrails": [], "constraints_applied": [], "value_findings": [],
            "guardrail_checks": {}, "cost_estimate": null, "request_id": "0190163d-8694-739b-aea5-966c26f8ad91",
            "task_hash": "00", "policy_version": "baseline@1.0.0+0123", "policy_pack_version": "baseline@1.0.0+0123",
            "environment": "", "timestamp": 1, "evaluated_at": 1, "decision_trace_summary": "", "cached": false,
            "meta": {"source": "stage0", "test_mode": false, "client_request_id": null, "audit": "required"}
        })
    }

    fn read(body: &Value) -> CheckResponse {
        judge(200, body.to_string().as_bytes()).unwrap().response().clone()
    }

    #[test]
    fn the_text_shows_verdict_reason_and_request_id() {
        let mut body = answer();
        body["verdict"] = "DENY".into();
        body["decision"] = "NO_GO".into();
        body["issues"] = json!([{"code": "SECRET_IN_REQUEST", "severity": "HIGH", "message": "a secret\u{1b}[2J",
            "rule": "secret", "next_action": "fix_request", "details": {}}]);
        let shown = for_people(&read(&body));
        assert!(shown.starts_with("DENY (NO_GO)\n"), "{shown}");
        assert!(
            shown.contains("HIGH     SECRET_IN_REQUEST: a secret") && shown.contains("next: fix_request"),
            "{shown}"
        );
        assert!(shown.contains("0190163d-8694-739b-aea5-966c26f8ad91") && shown.contains("baseline@1.0.0+0123"));
        assert!(!shown.contains('\u{1b}'));
    }

    #[test]
    fn the_text_shows_what_to_change_and_ignored_constraints() {
        let mut body = answer();
        (body["verdict"], body["decision"]) = ("DEFER".into(), "DEFER".into());
        body["issues"] = json!([{"code": "CONSTRAINT_NOT_UNDERSTOOD", "severity": "MEDIUM", "message": "m", "rule": "r",
            "next_action": "fix_request", "details": {"at": ["constraints[1]"], "found": "max_cots: 5",
            "write": [{"op": "replace", "path": "constraints[1]", "value": "max_cost_usd: 5"},
                {"path": "context.approval_status", "by": "person"}]}}]);
        body["clarifying_questions"] = json!(["What is the limit?"]);
        body["constraints_ignored"] = json!(["be nice\u{1b}[2J"]);
        let shown = for_people(&read(&body));
        for part in [
            "DEFER\n",
            "\n           at constraints[1]; found: max_cots: 5; write: constraints[1] = \"max_cost_usd: 5\"\n",
            "\n           a person must give context.approval_status\n",
            "\nConstraints without effect\n  - be nice\\u{1b}[2J\n",
            "\nQuestions\n  - What is the limit?\n",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }

    fn with_approval(verdict: &str, signal: &str, status: &str) -> Value {
        let mut body = answer();
        (body["verdict"], body["decision"]) = (verdict.into(), signal.into());
        body["clarifying_questions"] = json!(["Who approves it?"]);
        body["approval"] = json!({"id": "apr_1", "status": status, "action_digest": "9".repeat(64), "quorum": 2,
            "groups": ["release-managers\u{202e}"], "expires_at": "2026-03-16T13:00:00Z",
            "url": "https://s0.example/v1/approvals/apr_1"});
        body
    }

    #[test]
    fn a_deferred_check_says_which_approval_it_waits_for_and_what_to_do() {
        let shown = for_people(&read(&with_approval("DEFER", "DEFER", "pending")));
        for part in [
            "\napproval apr_1 is pending\n         https://s0.example/v1/approvals/apr_1\n",
            r"next: 2 members of release-managers\u{202e} must approve until 2026-03-16T13:00:00Z",
            ": stage0 approvals approve apr_1\n",
            r#"then ask again with the same action, or with {"approval_id": "apr_1"}"#,
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        let elsewhere = for_people(&read(&with_approval("DEFER", "DEFER", "approved")));
        assert!(elsewhere.contains("apr_1 is approved") && !elsewhere.contains("next: 2"), "{elsewhere}");
        let without = for_people(&read(&answer()));
        assert!(!without.contains("approval"), "{without}");
    }

    #[test]
    fn an_allowed_check_says_which_approval_it_used_or_that_only_the_request_says_so() {
        let shown = for_people(&read(&with_approval("ALLOW", "GO", "consumed")));
        assert!(shown.contains("\napproval apr_1 is used by this check\n") && !shown.contains("next: 2"), "{shown}");
        let mut body = with_approval("ALLOW", "GO", "consumed");
        (body["approval"]["id"], body["approval"]["grant_id"]) = (Value::Null, "grt_1".into());
        let shown = for_people(&read(&body));
        assert!(shown.contains("approval wider grant grt_1 is used by this check"), "{shown}");
        let mut body = answer();
        body["meta"]["approval_source"] = "caller".into();
        assert!(for_people(&read(&body)).contains("only the request itself says that it is approved"));
    }
}
