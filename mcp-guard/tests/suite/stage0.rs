//! A Stage0 server that says what the test wants, and keeps what it was asked.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use stage0_client::selftest::{Reply, Request, Server, target};
use stage0_client::{Client, Target};

pub(crate) const ALLOWED_ID: &str = "0190163d-8694-739b-aea5-966c26f8ad91";

type Says = Box<dyn Fn(&str, &Value) -> Reply + Send>;

/// What it says to each path, and what it was asked.
#[derive(Clone)]
pub(crate) struct Stage0 {
    server: Arc<Server>,
    says: Arc<Mutex<Says>>,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Stage0 {
    /// One that allows every check, and has no other route.
    pub(crate) async fn start() -> Self {
        let says: Arc<Mutex<Says>> = Arc::new(Mutex::new(Box::new(|path, _| match path {
            "/check" => answer("ALLOW"),
            _ => Reply::answer(404, &[], "{}"),
        })));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (own_says, own_asked) = (Arc::clone(&says), Arc::clone(&asked));
        let server = Server::start(move |request: &Request| {
            let path = request.line.split(' ').nth(1).unwrap_or_default().to_owned();
            let body = serde_json::from_slice(&request.body).unwrap_or(Value::Null);
            own_asked.lock().unwrap().push((path.clone(), body.clone()));
            (own_says.lock().unwrap())(&path, &body)
        });
        Self { server: Arc::new(server.await.unwrap()), says, asked }
    }

    pub(crate) fn says(&self, says: impl Fn(&str, &Value) -> Reply + Send + 'static) {
        *self.says.lock().unwrap() = Box::new(says);
    }

    /// What was asked on a path, in order.
    pub(crate) fn asked(&self, path: &str) -> Vec<Value> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|(own, _)| own == path).map(|(_, body)| body.clone()).collect()
    }

    pub(crate) fn outcomes(&self) -> Vec<Value> {
        self.asked(&format!("/v1/decisions/{ALLOWED_ID}/outcome"))
    }

    pub(crate) fn target(&self) -> Target {
        target(&self.server).unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.target()).unwrap().with_timeout(Duration::from_secs(5))
    }
}

/// A complete answer to a check.
pub(crate) fn answer(verdict: &str) -> Reply {
    Reply::answer(200, &[], &body(verdict).to_string())
}

pub(crate) fn body(verdict: &str) -> Value {
    let signal = match verdict {
        "ALLOW" => "GO",
        "DENY" => "NO_GO",
        _ => "DEFER",
    };
    let questions = if verdict == "DEFER" { json!(["Who approves it?"]) } else { json!([]) };
    let issue = json!({"code": "TEST_REASON", "severity": "HIGH", "message": "the test says so", "rule": "r",
        "next_action": "request_approval", "details": {}});
    let issues = if verdict == "ALLOW" { json!([]) } else { json!([issue]) };
    json!({
        "decision": signal, "verdict": verdict, "reason": "TEST_REASON: the test says so", "issues": issues,
        "risk_score": 5, "value_risk": 0, "waste_risk": 0, "high_risk": false, "clarifying_questions": questions,
        "defer_questions": questions, "guardrails": [], "constraints_applied": [], "constraints_ignored": [],
        "value_findings": [], "guardrail_checks": {}, "cost_estimate": null, "approval": null,
        "request_id": ALLOWED_ID, "task_hash": "0".repeat(64),
        "policy_version": "baseline@1.0.0+0123456789ab", "policy_pack_version": "baseline@1.0.0+0123456789ab",
        "environment": "", "timestamp": 1, "evaluated_at": 1, "decision_trace_summary": "", "cached": false,
        "meta": {"source": "stage0", "test_mode": false, "client_request_id": null, "audit": "required"}
    })
}

/// A DEFER without an approval, which says why there is none.
pub(crate) fn without_approval(why: &str) -> Reply {
    let mut body = body("DEFER");
    body["issues"][0]["details"] = json!({"approval": why});
    Reply::answer(200, &[], &body.to_string())
}

/// As [`waits_for_approval`]: of two people of a group, of whom there is one.
pub(crate) fn waits_for_two(url: &str) -> Reply {
    let mut body = waiting(url);
    body["approval"]["quorum"] = 2.into();
    body["approval"]["groups"] = json!(["finance"]);
    body["issues"][0]["details"] = json!({"eligible": 1, "quorum": 2});
    Reply::answer(200, &[], &body.to_string())
}

/// A DEFER that waits for an approval, with its address.
pub(crate) fn waits_for_approval(url: &str) -> Reply {
    Reply::answer(200, &[], &waiting(url).to_string())
}

fn waiting(url: &str) -> Value {
    let mut body = body("DEFER");
    body["approval"] = json!({"id": "apr_0w3ge1r7", "status": "pending", "action_digest": "9".repeat(64), "quorum": 1,
        "groups": [], "expires_at": "2126-03-16T13:00:00Z", "url": url});
    body
}
