//! A server that answers by a script and remembers what it was asked.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use stage0_client::selftest::{Reply, Request, Server, target};
use stage0_client::{Action, Client};

pub(crate) const REQUEST_ID: &str = "0190163d-8694-739b-aea5-966c26f8ad91";

pub(crate) struct Scripted {
    server: Server,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Scripted {
    /// `reply` gets each request and how many came before it.
    pub(crate) async fn start(reply: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let server = Server::start(move |request| {
            let mut log = log.lock().unwrap();
            log.push(request.clone());
            reply(request, log.len() - 1)
        });
        Self { server: server.await.unwrap(), seen }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(target(&self.server).unwrap()).unwrap().with_timeout(Duration::from_secs(20))
    }

    pub(crate) fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// Waits until so many requests came, or fails after a while.
    pub(crate) async fn saw(&self, count: usize) -> Vec<Request> {
        let waiting = async {
            while self.seen().len() < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("the requests never came");
        self.seen()
    }
}

pub(crate) fn action() -> Action {
    Action::new("Deploy build 7").tool("deploy").effect("deploy")
}

pub(crate) fn ok(body: &Value) -> Reply {
    Reply::answer(200, &[], &body.to_string())
}

pub(crate) fn refused(status: u16) -> Reply {
    let body = json!({"message": "not now", "error": "unavailable", "request_id": "r-1",
        "detail": {"detail": "not now", "request_id": "r-1"}});
    Reply::answer(status, &[], &body.to_string())
}

/// A complete answer with this verdict.
pub(crate) fn decided(verdict: &str, signal: &str) -> Value {
    let questions = if verdict == "DEFER" { json!(["Who approves it?"]) } else { json!([]) };
    json!({
        "decision": signal, "verdict": verdict, "reason": "APPROVAL_REQUIRED: a person must approve it",
        "issues": [{"code": "APPROVAL_REQUIRED", "severity": "HIGH", "message": "a person must approve it",
            "rule": "r", "next_action": "request_approval", "details": {}}],
        "risk_score": 5, "value_risk": 0, "waste_risk": 0, "high_risk": false, "clarifying_questions": questions,
        "defer_questions": questions, "guardrails": [], "constraints_applied": [], "constraints_ignored": [],
        "value_findings": [], "guardrail_checks": {}, "cost_estimate": null, "approval": null,
        "request_id": REQUEST_ID, "task_hash": "0".repeat(64), "policy_version": "baseline@1.0.0+0123456789ab",
        "policy_pack_version": "baseline@1.0.0+0123456789ab", "environment": "", "timestamp": 1, "evaluated_at": 1,
        "decision_trace_summary": "", "cached": false,
        "meta": {"source": "stage0", "test_mode": false, "client_request_id": null, "audit": "required"}
    })
}

pub(crate) fn allow() -> Value {
    decided("ALLOW", "GO")
}

pub(crate) fn defer_with_approval() -> Value {
    let mut body = decided("DEFER", "DEFER");
    body["approval"] = json!({"id": "apr_1", "status": "pending", "action_digest": "9".repeat(64), "quorum": 1,
        "groups": [], "expires_at": "2026-03-16T13:00:00Z", "url": "https://s0.example/v1/approvals/apr_1"});
    body
}
