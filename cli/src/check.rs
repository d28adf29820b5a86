//! `stage0 check`: asks whether an action may run, and says so to people, programs and shells.
//!
//! INVARIANT: exit code 0 comes from one place, a whole 200 answer of the contract whose verdict is ALLOW and whose signal is
//! paired with it, printed without an error. Everything else is another code; what is no decision says that the action must not run.

use std::io;

use reqwest::{Method, StatusCode};
use stage0_contract::{CheckResponse, Verdict, parse_strict};

use crate::action::{self, ActionError};
use crate::args::CheckArgs;
use crate::client::{Client, ClientError, Target, Whose, block_on};
use crate::decision;
use crate::exit::Exit;
use crate::out::{self, plain};
use crate::settings::client::ClientSettings;

/// Why nothing was decided.
#[derive(Debug, thiserror::Error)]
enum NoDecision {
    #[error(transparent)]
    Action(#[from] ActionError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

/// Asks, prints, and turns the verdict into an exit code.
pub(crate) fn run(arguments: &CheckArgs, settings: &ClientSettings) -> Exit {
    match decide(arguments, settings) {
        Ok(Verdict::Allow) => Exit::Done,
        Ok(Verdict::Deny) => Exit::Failed,
        Ok(Verdict::Defer) => Exit::Deferred,
        Err(error) => {
            out::complain(format!("error: {error}\nno decision: the action must not run"));
            Exit::NoDecision
        }
    }
}

fn decide(arguments: &CheckArgs, settings: &ClientSettings) -> Result<Verdict, NoDecision> {
    let action = action::read(&arguments.file)?;
    let client = Client::new(Target::find(settings, Whose::Account)?, settings.timeout)?;
    let answer = block_on(client.send(Method::POST, &["check"], &[], Some(action.body)))?;
    if answer.status != StatusCode::OK && arguments.json {
        out::json_text(&answer.body)?;
    }
    let status = answer.status;
    let body = answer.successful()?;
    let answer = read_answer(status, &body)?;
    if arguments.json {
        out::json_text(&body)?;
    } else {
        out::decision(&for_people(&answer))?;
    }
    Ok(answer.decided.verdict)
}

/// A 200 that is not wholly of the contract decides nothing: a proxy's page, a verdict without its pair, a member named twice.
fn read_answer(status: StatusCode, body: &[u8]) -> Result<CheckResponse, ClientError> {
    let unreadable = |why: String| ClientError::Unreadable(why);
    if status != StatusCode::OK {
        return Err(unreadable(format!("a decision has status 200, this has {status}")));
    }
    let value = parse_strict(body).map_err(|error| unreadable(error.to_string()))?;
    let response: CheckResponse =
        serde_json::from_value(value).map_err(|error| unreadable(plain(&error.to_string())))?;
    if response.signal != response.decided.verdict.signal() {
        return Err(unreadable("`decision` and `verdict` contradict each other".to_owned()));
    }
    Ok(response)
}

fn for_people(response: &CheckResponse) -> String {
    format!("{}\nrequest  {}", decision::for_people(&response.decided), response.request_id)
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
            "meta": {"source": "stage0", "test_mode": false, "client_request_id": null, "audit": "none"}
        })
    }

    fn read(body: &Value) -> Result<CheckResponse, ClientError> {
        read_answer(StatusCode::OK, body.to_string().as_bytes())
    }

    #[test]
    fn only_a_whole_and_paired_answer_is_a_decision() {
        assert_eq!(read(&answer()).unwrap().decided.verdict, Verdict::Allow);
        for member in ["decision", "verdict", "reason", "request_id", "policy_version"] {
            let mut body = answer();
            body.as_object_mut().unwrap().remove(member);
            assert!(read(&body).is_err(), "without {member}");
        }
        for (member, value) in [("decision", "NO_GO"), ("decision", "DEFER"), ("verdict", "DENY"), ("verdict", "allow")]
        {
            let mut body = answer();
            body[member] = value.into();
            assert!(read(&body).is_err(), "{member} = {value}");
        }
        assert!(read_answer(StatusCode::CREATED, answer().to_string().as_bytes()).is_err());
    }

    #[test]
    fn a_verdict_that_is_said_twice_is_no_decision() {
        let twice = answer().to_string().replacen('{', r#"{"verdict":"DENY","#, 1);
        assert!(read_answer(StatusCode::OK, twice.as_bytes()).is_err());
    }

    #[test]
    fn people_see_verdict_reason_and_where_to_look() {
        let mut body = answer();
        body["verdict"] = "DENY".into();
        body["decision"] = "NO_GO".into();
        body["issues"] = json!([{"code": "SECRET_IN_REQUEST", "severity": "HIGH", "message": "a secret\u{1b}[2J",
            "rule": "secret", "next_action": "fix_request", "details": {}}]);
        let shown = for_people(&read(&body).unwrap());
        assert!(shown.starts_with("DENY (NO_GO)\n"), "{shown}");
        assert!(
            shown.contains("HIGH     SECRET_IN_REQUEST: a secret") && shown.contains("next: fix_request"),
            "{shown}"
        );
        assert!(shown.contains("0190163d-8694-739b-aea5-966c26f8ad91") && shown.contains("baseline@1.0.0+0123"));
        assert!(!shown.contains('\u{1b}'));
    }

    #[test]
    fn people_see_what_to_change_and_which_constraints_have_no_effect() {
        let mut body = answer();
        (body["verdict"], body["decision"]) = ("DEFER".into(), "DEFER".into());
        body["issues"] = json!([{"code": "CONSTRAINT_NOT_UNDERSTOOD", "severity": "MEDIUM", "message": "m", "rule": "r",
            "next_action": "fix_request", "details": {"at": ["constraints[1]"], "found": "max_cots: 5",
            "write": [{"op": "replace", "path": "constraints[1]", "value": "max_cost_usd: 5"},
                {"path": "context.approval_status", "by": "person"}]}}]);
        body["clarifying_questions"] = json!(["What is the limit?"]);
        body["constraints_ignored"] = json!(["be nice\u{1b}[2J"]);
        let shown = for_people(&read(&body).unwrap());
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
}
