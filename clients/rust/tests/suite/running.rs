//! Acting and reporting: which outcome is reported, and what is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use stage0_client::selftest::{Reply, Request};
use stage0_client::{Allowed, GuardReport, OutcomeReport, RunError, ToolsProbe};
use stage0_contract::{GuardCounts, GuardId, OutcomeStatus, ProbedTool};

use crate::harness::{REQUEST_ID, Scripted, action, allow, decided, ok, refused};

fn reported() -> Reply {
    ok(&json!({"request_id": REQUEST_ID, "status": "succeeded", "reported_at": "2026-03-16T13:00:00Z", "late": false,
        "key_id": "0w3ge1r70w3ge1r7", "tool_call_id": null, "duration_ms": 1, "cost_usd": null, "settled": null}))
}

fn allowing(request: &Request, outcome: &Reply) -> Reply {
    if request.line.starts_with("POST /check ") { ok(&allow()) } else { outcome.clone() }
}

fn body(request: &Request) -> Value {
    serde_json::from_slice(&request.body).unwrap()
}

#[tokio::test]
async fn an_action_that_ran_is_reported_as_it_ended() {
    for (result, status) in [(Ok(7), "succeeded"), (Err("no disk"), "failed")] {
        let server = Scripted::start(|request, _| allowing(request, &reported())).await;
        let got = server.client().run(&action(), async |_: Allowed| result).await;
        match (&got, result) {
            (Ok(got), Ok(value)) => assert_eq!(*got, value),
            (Err(RunError::Failed(got)), Err(why)) => assert_eq!(*got, why),
            _ => panic!("{got:?}"),
        }
        let seen = server.seen();
        assert_eq!(seen[1].line, format!("POST /v1/decisions/{REQUEST_ID}/outcome HTTP/1.1"));
        assert_eq!(body(&seen[1])["status"], status);
        assert!(body(&seen[1])["duration_ms"].is_u64());
    }
}

#[tokio::test]
async fn an_action_that_is_not_allowed_does_not_run_and_is_not_reported() {
    let server = Scripted::start(|_, _| ok(&decided("DENY", "NO_GO"))).await;
    let ran = AtomicBool::new(false);
    let work = async |_: Allowed| {
        ran.store(true, Ordering::SeqCst);
        Ok::<(), ()>(())
    };
    let Err(RunError::NotAllowed(error)) = server.client().run(&action(), work).await else { panic!("it ran") };
    assert!(!ran.load(Ordering::SeqCst));
    assert_eq!(server.seen().len(), 1);
    let advice = error.advice();
    for part in ["The action did not run. denied: ", "- APPROVAL_REQUIRED: a person must approve it (next: request"] {
        assert!(advice.contains(part), "{advice}");
    }
}

#[tokio::test]
async fn an_action_that_is_broken_off_is_reported_as_unknown() {
    let server = Scripted::start(|request, _| allowing(request, &reported())).await;
    let client = server.client();
    let begun = Arc::new(tokio::sync::Notify::new());
    let begins = Arc::clone(&begun);
    let running = tokio::spawn(async move {
        let work = async |_: Allowed| {
            begins.notify_one();
            std::future::pending::<Result<(), ()>>().await
        };
        client.run(&action(), work).await
    });
    begun.notified().await;
    running.abort();
    let seen = server.saw(2).await;
    assert_eq!(body(&seen[1])["status"], "unknown");
}

#[tokio::test]
async fn a_key_that_may_not_report_is_not_asked_to_again() {
    let server = Scripted::start(|request, _| allowing(request, &refused(403))).await;
    let client = server.client();
    for _ in 0..3 {
        client.run(&action(), async |_: Allowed| Ok::<(), ()>(())).await.unwrap();
    }
    let reports = server.seen().iter().filter(|request| request.line.contains("/outcome")).count();
    assert_eq!(reports, 1);
}

#[tokio::test]
async fn a_report_that_fails_changes_nothing() {
    let server = Scripted::start(|request, _| allowing(request, &refused(500))).await;
    let client = server.client();
    for _ in 0..2 {
        assert_eq!(client.run(&action(), async |_: Allowed| Ok::<u8, ()>(3)).await.unwrap(), 3);
    }
    assert_eq!(server.seen().len(), 4, "only a 403 ends the reports");
}

#[tokio::test]
async fn a_check_carries_the_defaults_of_its_client() {
    let server = Scripted::start(|_, _| ok(&allow())).await;
    let client = server.client().with_run_id("run-1").with_agent("a1").with_environment("prod");
    client.check(&action().context("run_id", "other")).await.unwrap();
    let sent = body(&server.seen()[0]);
    assert_eq!(sent["context"], json!({"run_id": "other", "agent_id": "a1"}));
    assert_eq!((&sent["environment"], &sent["tools"]), (&json!("prod"), &json!(["deploy"])));
}

#[tokio::test]
async fn the_other_calls_send_what_the_server_reads() {
    let server = Scripted::start(|_, _| refused(404)).await;
    let client = server.client().with_run_id("run-1").with_environment("prod");
    let id = serde_json::from_value(json!(REQUEST_ID)).unwrap();
    let report = OutcomeReport::new(OutcomeStatus::Skipped).tool_call_id("t1").cost_usd(0.5);
    let report = report.duration(Duration::from_millis(12));
    client.report_outcome(id, &report).await.unwrap_err();
    client.settle("run/1", id, 0.25).await.unwrap_err();
    let counts = GuardCounts { asked: 5, refused: 2, undecided: 1, ran_undecided: 0 };
    let alive = GuardReport {
        guard_id: GuardId::parse("g1").unwrap(),
        kind: "mcp".to_owned(),
        version: "1".to_owned(),
        agent_version: None,
        host: None,
        next_within_seconds: 60,
        counts,
    };
    client.heartbeat(&alive).await.unwrap_err();
    let tools = vec![ProbedTool { tool: "rm".to_owned(), side_effects: vec!["delete".to_owned()] }];
    client.probe(&ToolsProbe { tools, ..ToolsProbe::default() }).await.unwrap_err();
    client.decision(id).await.unwrap_err();
    let seen = server.seen();
    let lines: Vec<&str> = seen.iter().map(|request| request.line.trim_end_matches(" HTTP/1.1")).collect();
    assert_eq!(
        lines,
        [
            &format!("POST /v1/decisions/{REQUEST_ID}/outcome"),
            "POST /v1/runs/run%2F1/settle",
            "POST /v1/guards",
            "POST /v1/probes",
            &format!("GET /v1/decisions/{REQUEST_ID}"),
        ]
    );
    assert_eq!(body(&seen[0]), json!({"status": "skipped", "tool_call_id": "t1", "duration_ms": 12, "cost_usd": 0.5}));
    assert_eq!(body(&seen[1]), json!({"request_id": REQUEST_ID, "actual_cost_usd": 0.25}));
    assert_eq!(
        body(&seen[2]),
        json!({"guard_id": "g1", "kind": "mcp", "version": "1", "next_within_seconds": 60, "asked": 5, "refused": 2,
            "undecided": 1, "ran_undecided": 0})
    );
    assert_eq!(body(&seen[3]), json!({"environment": "prod", "tools": [{"tool": "rm", "side_effects": ["delete"]}]}));
}
