//! The events of coding agents' hooks: asked as checks, and answered to the byte in each agent's own form.

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use stage0_contract::{
    EventsSettled, GuardCounts, ManageReply, OutcomeStatus, ReportDecisionOutcome, ReportGuard, Scope, SettleEvents,
};

use crate::harness::{Answer, Stack, TENANT, send};
use crate::outcomes::{allow, reported};

pub(crate) const AGENTS: [&str; 5] = ["claude-code", "codex", "cursor", "gemini", "opencode"];

/// An event that asks about a tool call.
pub(crate) fn call_of(agent: &str) -> Value {
    let named = |name: &str| {
        json!({
            "hook_event_name": name, "session_id": "s-1", "cwd": "/work", "tool_name": "Read",
            "tool_input": {"file_path": "/work/notes.txt"}, "tool_use_id": "toolu_01", "model": "m",
        })
    };
    match agent {
        "claude-code" | "codex" => named("PreToolUse"),
        "cursor" => named("preToolUse"),
        "gemini" => named("BeforeTool"),
        _ => json!({
            "hook_event_name": "tool.execute.before", "sessionID": "s-1", "directory": "/work", "tool": "read",
            "callID": "toolu_01", "args": {"filePath": "/work/notes.txt"},
        }),
    }
}

/// The exact answer that lets the tool run.
pub(crate) fn allowed(agent: &str, request_id: &str) -> String {
    match agent {
        "claude-code" | "codex" => r#"{"hookSpecificOutput":{"hookEventName":"PreToolUse"}}"#.to_owned(),
        "cursor" => r#"{"continue":true}"#.to_owned(),
        "gemini" => r#"{"decision":"allow"}"#.to_owned(),
        _ => format!(r#"{{"decision":"allow","request_id":"{request_id}"}}"#),
    }
}

/// What the agent reads, of an answer that has to be its exact denial.
pub(crate) fn denied(agent: &str, answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{agent}: {}", answer.text);
    assert_eq!(answer.header("content-type"), Some("application/json"), "{agent}");
    let pointer = match agent {
        "claude-code" | "codex" => "/hookSpecificOutput/permissionDecisionReason",
        "cursor" => "/user_message",
        _ => "/reason",
    };
    let shown = answer.json();
    let text = shown.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("{agent}: {}", answer.text));
    let expected = match agent {
        "claude-code" | "codex" => json!({"hookSpecificOutput": {
            "hookEventName": "PreToolUse", "permissionDecision": "deny", "permissionDecisionReason": text,
        }}),
        "cursor" => json!({"agent_message": text, "permission": "deny", "user_message": text}),
        _ => json!({"decision": "deny", "reason": text}),
    };
    // To the byte: members are in alphabetical order, as every build of the JSON library writes them.
    assert_eq!(answer.text, expected.to_string(), "{agent}");
    text.to_owned()
}

pub(crate) fn event(stack: &Stack, agent: &str, event: &Value) -> RequestBuilder {
    stack
        .request_as(TENANT, Method::POST, &format!("/v1/hooks/{agent}"))
        .header("content-type", "application/json")
        .body(event.to_string())
}

pub(crate) async fn ask(stack: &Stack, agent: &str) -> Answer {
    send(event(stack, agent, &call_of(agent))).await
}

#[tokio::test]
async fn a_hooks_allow_leaves_in_the_agents_form_and_only_after_its_record() {
    let stack = Stack::start().await;
    allow(&stack, None);
    for agent in AGENTS {
        let held = stack.log.hold().await;
        let asking = tokio::spawn(send(event(&stack, agent, &call_of(agent))));
        while stack.log.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        assert!(!asking.is_finished(), "{agent}: nothing leaves before its record");
        drop(held);
        let answer = asking.await.unwrap();
        let id = answer.header("x-request-id").unwrap();
        assert_eq!((answer.status.as_u16(), answer.text.as_str()), (200, allowed(agent, id).as_str()), "{agent}");
        let record = stack.get(TENANT, &format!("/v1/decisions/{id}")).await.json();
        assert_eq!((&record["verdict"], &record["request_id"]), (&json!("ALLOW"), &json!(id)), "{agent}");
    }
}

#[tokio::test]
async fn a_call_is_asked_about_like_any_check_and_under_the_agents_id_of_it() {
    let stack = Stack::start().await;
    allow(&stack, None);
    for agent in AGENTS {
        assert_eq!(ask(&stack, agent).await.status, 200);
        let asked = stack.services.evaluated.lock().unwrap().clone().unwrap();
        let request = serde_json::to_value(&asked.request).unwrap();
        assert_eq!((&request["context"]["run_id"], &request["context"]["agent_id"]), (&json!("s-1"), &json!(agent)));
        assert!(request["tools"][0].as_str().unwrap().eq_ignore_ascii_case("read"), "{agent}: {request}");
        assert!(request["context"]["arguments_sha256"].is_string(), "{agent}");
        // Gemini's events have no id of their call.
        let expected = (agent != "gemini").then_some("toolu_01");
        assert_eq!(asked.caller.client_request_id.as_deref(), expected, "{agent}");
    }
    let own = event(&stack, "claude-code", &call_of("claude-code")).header("x-request-id", "mine-7");
    assert_eq!(send(own).await.status, 200);
    let asked = stack.services.evaluated.lock().unwrap().clone().unwrap();
    assert_eq!(asked.caller.client_request_id.as_deref(), Some("mine-7"), "the caller's own id goes first");
}

#[tokio::test]
async fn a_refused_call_is_denied_with_the_reasons_and_the_approval() {
    let stack = Stack::start().await;
    for agent in AGENTS {
        let answer = ask(&stack, agent).await;
        let text = denied(agent, &answer);
        assert!(text.contains("APPROVAL_REQUIRED") && text.contains("a person must approve"), "{agent}: {text}");
        assert!(text.contains(answer.header("x-request-id").unwrap()), "{agent}: {text}");
    }
    *stack.services.reply.lock().unwrap() = crate::approved_checks::deferred();
    let text = denied("claude-code", &ask(&stack, "claude-code").await);
    assert!(text.contains("stage0 approvals approve apr_1"), "{text}");
    let recorded = stack.lines().await.iter().filter(|line| line["type"] == "decision.recorded").count();
    assert_eq!(recorded, AGENTS.len() + 1, "a refusal is recorded, too");
}

#[tokio::test]
async fn a_retried_hook_gets_its_decision_again_under_an_idempotency_key_and_by_no_other_sign() {
    let stack = Stack::start().await;
    allow(&stack, None);
    let call = call_of("claude-code");
    let keyed = async |call: &Value| send(event(&stack, "claude-code", call).header("idempotency-key", "once")).await;
    let (first, again) = (keyed(&call).await, keyed(&call).await);
    assert_eq!(first.text, allowed("claude-code", ""));
    assert_eq!((&again.text, again.header("x-request-id")), (&first.text, first.header("x-request-id")));
    assert_eq!(stack.services.evaluations(), 1);

    let mut other = call.clone();
    other["tool_input"]["file_path"] = json!("/etc/passwd");
    let text = denied("claude-code", &keyed(&other).await);
    assert!(text.contains("Idempotency-Key"), "{text}");
    assert_eq!(stack.services.evaluations(), 1);

    // The id of a call may repeat: each event is decided.
    for evaluations in 2..4 {
        assert_eq!(send(event(&stack, "claude-code", &call)).await.text, allowed("claude-code", ""));
        assert_eq!(stack.services.evaluations(), evaluations);
    }
}

#[tokio::test]
async fn an_event_that_asks_nothing_is_answered_with_nothing() {
    let stack = Stack::start().await;
    let (mut ended, mut began) = (call_of("claude-code"), call_of("cursor"));
    ended["hook_event_name"] = json!("PostToolUse");
    began["hook_event_name"] = json!("sessionStart");
    let other = json!({"hook_event_name": "Notification", "message": "m"});
    for (agent, unasked) in [("claude-code", &ended), ("codex", &ended), ("cursor", &began), ("gemini", &other)] {
        let answer = send(event(&stack, agent, unasked)).await;
        assert_eq!((answer.status.as_u16(), answer.text.as_str()), (200, "{}"), "{agent}");
        assert!(answer.header("x-request-id").is_some(), "{agent}");
    }
    assert_eq!((stack.services.evaluations(), stack.lines().await), (0, Vec::<Value>::new()));
}

#[tokio::test]
async fn the_end_of_a_call_is_the_outcome_of_the_decision_that_its_hook_names() {
    let mut stack = Stack::start().await;
    stack.services.change(TENANT, |identity| {
        identity.scopes.insert(Scope::OutcomesReport);
    });
    stack.serve::<SettleEvents>(|_| ManageReply::Done(EventsSettled {})).await;
    let mut asked = stack.serve::<ReportDecisionOutcome>(|_| ManageReply::Done(reported())).await;
    allow(&stack, None);
    let id = ask(&stack, "claude-code").await.header("x-request-id").unwrap().to_owned();
    let ended = json!({
        "hook_event_name": "PostToolUse", "session_id": "s-1", "cwd": "/work", "tool_name": "Read",
        "tool_input": {}, "tool_response": {"success": true}, "tool_use_id": "toolu_01", "duration_ms": 420,
    });
    let end = |decision: &str| event(&stack, "claude-code", &ended).header("stage0-decision", decision);
    let answer = send(end(&id)).await;
    assert_eq!((answer.status.as_u16(), answer.text.as_str()), (200, "{}"));
    let message = asked.try_recv().unwrap();
    assert_eq!((message.request_id.to_string(), message.status), (id.clone(), OutcomeStatus::Succeeded));
    assert_eq!((message.tool_call_id.as_deref(), message.actual_micros), (Some("toolu_01"), None));
    let lines = stack.lines().await;
    assert!(lines.iter().any(|line| line["type"] == "decision.outcome"), "{lines:?}");

    // No decision, none that is one, and an event that ends nothing: nothing is reported, and nothing denied.
    for unnamed in [event(&stack, "claude-code", &ended), end(""), end("latest"), end(&"7".repeat(4_000))] {
        assert_eq!(send(unnamed).await.text, "{}");
    }
    let began = json!({"hook_event_name": "SessionStart", "session_id": "s-1"});
    assert_eq!(send(event(&stack, "claude-code", &began).header("stage0-decision", &id)).await.text, "{}");
    // A call is asked about, whatever it names.
    let call = event(&stack, "claude-code", &call_of("claude-code")).header("stage0-decision", &id);
    assert_eq!(send(call).await.text, allowed("claude-code", ""));
    assert!(asked.try_recv().is_err());
}

#[tokio::test]
async fn a_hook_whose_key_may_not_report_outcomes_reports_none() {
    let mut stack = Stack::start().await;
    let mut asked = stack.serve::<ReportDecisionOutcome>(|_| ManageReply::Done(reported())).await;
    allow(&stack, None);
    let id = ask(&stack, "codex").await.header("x-request-id").unwrap().to_owned();
    let ended = json!({
        "hook_event_name": "PostToolUse", "session_id": "s-1", "cwd": "/work", "tool_name": "Read",
        "tool_input": {}, "tool_response": {}, "tool_use_id": "toolu_01", "model": "m",
    });
    let end = send(event(&stack, "codex", &ended).header("stage0-decision", &id)).await;
    assert_eq!((end.status.as_u16(), end.text.as_str()), (200, "{}"));
    assert!(asked.try_recv().is_err());
}

#[tokio::test]
async fn a_hook_that_asks_is_a_guard_that_is_alive_and_reported_once_a_minute() {
    let mut stack = Stack::start().await;
    let mut reports = stack.serve::<ReportGuard>(|_| ManageReply::Failed).await;
    allow(&stack, None);
    let asked = |agent: &str| event(&stack, agent, &call_of(agent));
    for request in [
        asked("claude-code").header("user-agent", "stage0-python-hook/0.1.0"),
        asked("claude-code"),
        asked("codex").header("user-agent", "Mozilla/5.0 (X11)"),
    ] {
        let agent_answer = send(request).await;
        assert_eq!(agent_answer.text, allowed("codex", ""), "a report that is not kept changes no decision");
    }
    let mut told = Vec::new();
    for _ in 0..2 {
        let report = reports.recv().await.unwrap();
        assert_eq!(report.counts, GuardCounts::default());
        assert_eq!(report.guard_id.as_str(), format!("{}-{}", report.kind, report.key_id));
        told.push((report.kind, report.version));
    }
    told.sort();
    let expected = [("claude-code", "stage0-python-hook/0.1.0"), ("codex", "http")];
    assert_eq!(told, expected.map(|(kind, version)| (kind.to_owned(), version.to_owned())));
    assert!(reports.try_recv().is_err(), "the second call within the minute");
}

#[tokio::test]
async fn the_address_of_a_hook_says_where_the_agent_works() {
    let stack = Stack::start().await;
    allow(&stack, None);
    let asked = |agent: &str, query: &str| {
        let path = format!("/v1/hooks/{agent}{query}");
        let request = stack.request_as(TENANT, Method::POST, &path).header("content-type", "application/json");
        request.body(call_of("claude-code").to_string())
    };
    let environment = || {
        let asked = stack.services.evaluated.lock().unwrap().clone().unwrap();
        serde_json::to_value(&asked.request).unwrap()["environment"].clone()
    };
    assert_eq!(send(asked("claude-code", "?environment=staging")).await.text, allowed("claude-code", ""));
    assert_eq!(environment(), "staging");
    assert_eq!(send(asked("claude-code", "")).await.text, allowed("claude-code", ""));
    assert_ne!(environment(), "staging");
    for query in ["?enviroment=staging", "?environment=a&environment=b", "?environment"] {
        let text = denied("claude-code", &send(asked("claude-code", query)).await);
        assert!(text.contains("nvironment") || text.contains("enviroment"), "{query}: {text}");
    }
    assert_eq!(stack.services.evaluations(), 2);
}

#[tokio::test]
async fn an_agent_that_does_not_exist_is_denied_and_another_method_a_405() {
    let stack = Stack::start().await;
    for agent in ["vim", "Claude-Code"] {
        let text = denied("claude-code", &send(event(&stack, agent, &call_of("claude-code"))).await);
        assert!(text.contains("must be claude-code, codex, cursor, gemini or opencode"), "{agent}: {text}");
    }
    let deeper = send(event(&stack, "claude-code/x", &call_of("claude-code"))).await;
    assert!(denied("claude-code", &deeper).contains("there is nothing here"), "{}", deeper.text);
    let elsewhere = stack.post(TENANT, "/v1/hook/claude-code", &call_of("claude-code")).await;
    assert_eq!(elsewhere.refusal(), (404, "not_found".to_owned()));
    let read = stack.get(TENANT, "/v1/hooks/claude-code").await;
    assert_eq!(read.refusal(), (405, "method_not_allowed".to_owned()));
    assert_eq!(stack.services.evaluations(), 0);
}

#[tokio::test]
async fn a_hook_is_denied_in_its_form_below_a_base_path_and_however_its_path_is_written() {
    let stack = Stack::with(|config| config.base_path = "/stage0".to_owned()).await;
    allow(&stack, None);
    for path in ["/v1/hooks/cursor", "/v1/hooks/cursor/", "/v1//hooks/cursor", "/v1/hooks/%63ursor"] {
        let request = || {
            let request = stack.request(Method::POST, path).header("content-type", "application/json");
            request.body(call_of("cursor").to_string())
        };
        assert!(denied("cursor", &send(request()).await).contains("API key"), "{path}");
        let keyed = request().header("x-api-key", crate::harness::key(TENANT).expose());
        assert_eq!(send(keyed).await.text, allowed("cursor", ""), "{path}");
    }
}
