//! Every failure of a hook's call: status 200, and a body that denies in the agent's own form.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use serde_json::json;
use stage0_contract::{EvaluateReply, FieldError, Limits, Verdict};

use crate::failing_log::Appends;
use crate::harness::{READER, Stack, TENANT, key, send};
use crate::hooks::{AGENTS, allowed, ask, call_of, denied, event};
use crate::outcomes::allow;

fn post(stack: &Stack, agent: &str) -> RequestBuilder {
    stack.request(Method::POST, &format!("/v1/hooks/{agent}")).header("content-type", "application/json")
}

#[tokio::test]
async fn a_bad_key_scope_type_or_header_denies_and_reaches_no_evaluator() {
    let stack = Stack::start().await;
    allow(&stack, None);
    let (good, unknown) = (key(TENANT), key(8));
    for agent in AGENTS {
        let body = call_of(agent).to_string();
        let keyed = || post(&stack, agent).header("x-api-key", good.expose()).body(body.clone());
        let plain = stack.request_as(TENANT, Method::POST, &format!("/v1/hooks/{agent}"));
        for (request, why) in [
            (post(&stack, agent).body(body.clone()), "the API key is missing"),
            (post(&stack, agent).header("x-api-key", unknown.expose()).body(body.clone()), "the API key is missing"),
            (keyed().header("x-api-key", good.expose()), "the API key is missing"),
            (post(&stack, agent).header("x-api-key", key(READER).expose()).body(body.clone()), "the scope `check`"),
            (plain.header("content-type", "text/plain").body(body.clone()), "application/json"),
            (keyed().header("content-encoding", "gzip"), "application/json"),
            (keyed().header("idempotency-key", "a b"), "Idempotency-Key"),
            (keyed().header("x-request-id", "a b"), "X-Request-Id"),
            (keyed().header("x-stage0-min-policy", "latest"), "X-Stage0-Min-Policy"),
        ] {
            let answer = send(request).await;
            let text = denied(agent, &answer);
            assert!(text.contains(why), "{agent}: {why}: {text}");
            assert!(text.contains(answer.header("x-request-id").unwrap()), "{agent}: {text}");
            assert!(answer.header("www-authenticate").is_none() && answer.header("retry-after").is_none(), "{agent}");
        }
        assert_eq!(stack.services.evaluations(), 0, "{agent}");
    }
    assert_eq!(
        send(post(&stack, "gemini").header("x-api-key", good.expose()).body(call_of("gemini").to_string())).await.text,
        allowed("gemini", "")
    );
}

#[tokio::test]
async fn an_event_that_cannot_be_read_denies() {
    let stack = Stack::start().await;
    allow(&stack, None);
    let mut nameless = call_of("claude-code");
    nameless.as_object_mut().unwrap().remove("hook_event_name");
    let mut unknown = call_of("claude-code");
    unknown["hook_event_name"] = json!("PreSomething");
    let mut toolless = call_of("claude-code");
    toolless["tool_name"] = json!(7);
    let large = json!({"hook_event_name": "PreToolUse", "x": "y".repeat(stage0_contract::MAX_BODY_BYTES)});
    for (body, why) in [
        (String::new(), "empty"),
        ("{".to_owned(), "JSON"),
        ("[]".to_owned(), "JSON object"),
        (r#"{"hook_event_name":"Stop","hook_event_name":"PreToolUse"}"#.to_owned(), "twice"),
        ("[".repeat(100) + &"]".repeat(100), "deep"),
        (nameless.to_string(), "hook_event_name"),
        (unknown.to_string(), "does not know the event"),
        (toolless.to_string(), "tool_name"),
        (large.to_string(), "1000000 bytes"),
    ] {
        let request = stack.request_as(TENANT, Method::POST, "/v1/hooks/claude-code");
        let answer = send(request.header("content-type", "application/json").body(body)).await;
        let text = denied("claude-code", &answer);
        assert!(text.contains(why), "{why}: {text}");
    }
    assert_eq!(stack.services.evaluations(), 0);
    assert_eq!(ask(&stack, "claude-code").await.text, allowed("claude-code", ""));
}

#[tokio::test]
async fn a_megabyte_of_arguments_is_decided_and_not_kept() {
    let stack = Stack::start().await;
    allow(&stack, None);
    let mut large = call_of("claude-code");
    large["tool_name"] = json!("Write");
    large["tool_input"]["content"] = json!("y".repeat(990_000));
    let answer = send(event(&stack, "claude-code", &large)).await;
    assert_eq!(answer.text, allowed("claude-code", ""));
    let asked = stack.services.evaluated.lock().unwrap().clone().unwrap();
    assert!(!serde_json::to_string(&asked).unwrap().contains("yyyyyyyy"), "only its digest is sent on");
}

#[tokio::test]
async fn what_no_evaluator_decides_denies() {
    let stack = Stack::with(|config| config.request_budget = Duration::from_secs(2)).await;
    allow(&stack, None);
    let mut unsound = stack.services.reply.lock().unwrap().clone();
    let EvaluateReply::Decided(evaluation) = &mut unsound else { panic!("the fixture has changed") };
    evaluation.decision.verdict = Verdict::Allow;
    evaluation.decision.risk_score = 100;
    for (reply, why) in [
        (EvaluateReply::Unable("why".to_owned()), "the evaluator failed"),
        (EvaluateReply::Busy, "too much to do"),
        (EvaluateReply::Invalid(vec![FieldError::new("constraints[0]", "is bad")]), "constraints[0]"),
        (EvaluateReply::TooManyRuns { limit: 3 }, "daily quota of 3 runs"),
        (unsound, "could not answer"),
    ] {
        *stack.services.reply.lock().unwrap() = reply;
        for agent in AGENTS {
            let text = denied(agent, &ask(&stack, agent).await);
            assert!(text.contains(why), "{agent}: {why}: {text}");
        }
    }
    assert!(stack.lines().await.is_empty(), "nothing was decided");
}

#[tokio::test]
async fn what_cannot_be_recorded_denies() {
    for appends in [Appends::Failed, Appends::Lost, Appends::Unacknowledged] {
        let stack = Stack::with(|config| config.request_budget = Duration::from_millis(500)).await;
        allow(&stack, None);
        stack.log.set(appends);
        for agent in AGENTS {
            let text = denied(agent, &ask(&stack, agent).await);
            assert!(text.contains("the decision log cannot be written"), "{appends:?} {agent}: {text}");
        }
        stack.log.set(Appends::Acknowledged);
        assert_eq!(ask(&stack, "cursor").await.text, allowed("cursor", ""), "{appends:?}");
    }
}

#[tokio::test]
async fn a_hook_is_counted_and_limited_like_a_check() {
    let stack = Stack::start().await;
    allow(&stack, None);
    stack.services.change(TENANT, |identity| {
        identity.limits = Limits { daily: Some(2), ..Limits::NONE };
    });
    assert_eq!(stack.check(&json!({"goal": "g"})).await.status, 200);
    let counted = ask(&stack, "codex").await;
    assert_eq!(counted.text, allowed("codex", ""));
    assert_eq!(counted.header("ratelimit-remaining"), Some("0"), "its rate limit is shown, too");
    let text = denied("codex", &ask(&stack, "codex").await);
    assert!(text.contains("daily quota of 2 checks is used up"), "{text}");
    assert_eq!(stack.services.evaluations(), 2);

    let stack = Stack::start().await;
    allow(&stack, None);
    stack.services.change(TENANT, |identity| {
        identity.limits = Limits { per_minute: Some(1), ..Limits::NONE };
    });
    // A minute may end in between.
    let mut text = String::new();
    for _ in 0..10 {
        let answer = ask(&stack, "opencode").await;
        if answer.json()["decision"] == "deny" {
            text = denied("opencode", &answer);
            break;
        }
    }
    assert!(text.contains("checks of this minute are used up"), "{text}");
}

#[tokio::test]
async fn an_address_beyond_its_rate_is_denied_before_its_hook_is_routed() {
    let stack = Stack::with(|config| config.requests_per_second_per_address = NonZeroU32::new(1)).await;
    allow(&stack, None);
    for agent in AGENTS {
        let mut text = String::new();
        for _ in 0..1_000 {
            let answer = ask(&stack, agent).await;
            assert_eq!(answer.status, 200, "{agent}: {}", answer.text);
            if answer.text.contains("too many requests") {
                text = denied(agent, &answer);
                break;
            }
        }
        assert!(text.contains("too many requests from this address"), "{agent}");
    }
}

/// Revokes the tenant's key, and has the gateway know of it once this returns.
async fn revoke(stack: &Stack) {
    stack.services.revoke(TENANT);
    stack.publish_change().await;
    while stack.get(TENANT, "/usage").await.status != 401 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_key_that_is_revoked_while_its_hook_is_decided_denies_and_nothing_is_recorded() {
    for agent in AGENTS {
        let stack = Stack::start().await;
        allow(&stack, None);
        let services = Arc::clone(&stack.services);
        let deciding = services.deciding.lock().await;
        let asking = tokio::spawn(send(event(&stack, agent, &call_of(agent))));
        while services.evaluations() == 0 {
            tokio::task::yield_now().await;
        }
        revoke(&stack).await;
        drop(deciding);
        let text = denied(agent, &asking.await.unwrap());
        assert!(text.contains("the API key is missing or not valid"), "{agent}: {text}");
        let lines = stack.get(READER, "/v1/decisions/export").await;
        assert_eq!((lines.status.as_u16(), lines.text.as_str()), (200, ""), "{agent}");
    }
}

#[tokio::test]
async fn a_key_that_is_revoked_right_before_its_answer_leaves_denies_in_the_agents_form() {
    for agent in AGENTS {
        let stack = Stack::start().await;
        allow(&stack, None);
        let held = stack.log.hold().await;
        let asking = tokio::spawn(send(event(&stack, agent, &call_of(agent))));
        while stack.log.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        revoke(&stack).await;
        drop(held);
        let text = denied(agent, &asking.await.unwrap());
        assert!(text.contains("the API key is missing or not valid"), "{agent}: {text}");
        let lines = stack.get(READER, "/v1/decisions/export").await.text;
        assert_eq!(lines.lines().count(), 1, "{agent}: the decision had been recorded");
    }
}
