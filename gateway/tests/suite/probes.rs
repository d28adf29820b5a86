//! `POST /v1/probes`: what is refused, what is recorded before the answer, and what is counted.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{Limits, MayEver, PolicyVersion, ProbeFindings, ProbeReply, ProbeTools, Scope, ToolFinding};

use crate::failing_log::Appends;
use crate::harness::{MEMBER, OPERATOR, READER, Stack, TENANT, key, send};

const VERSION: &str = "baseline@1.0.0+0123456789ab";

fn version() -> PolicyVersion {
    PolicyVersion::parse(VERSION).unwrap()
}

/// `drop_table` is never allowed.
fn findings(message: &ProbeTools) -> ProbeFindings {
    let finding = |tool: &str| match tool {
        "drop_table" => json!({"tool": tool, "may": "never", "codes": ["TOOL_NOT_ALLOWED"]}),
        _ => json!({"tool": tool, "may": "maybe"}),
    };
    let tools: Vec<ToolFinding> =
        message.tools.iter().map(|asked| serde_json::from_value(finding(&asked.tool)).unwrap()).collect();
    let never = tools.iter().filter(|finding| finding.may == MayEver::Never);
    ProbeFindings {
        policy_version: version(),
        floor_version: None,
        environment: message.environment.clone().unwrap_or_default(),
        recordable: never.map(|finding| finding.tool.clone()).collect(),
        tools,
    }
}

fn probed(message: &ProbeTools) -> ProbeReply {
    ProbeReply::Probed(findings(message))
}

fn body() -> Value {
    json!({"environment": "production", "context": {"actor_role": "developer"}, "constraints": ["read_only"],
        "tools": [{"tool": "read_file", "side_effects": ["read"]}, {"tool": "drop_table", "side_effects": ["delete"]}]})
}

#[tokio::test]
async fn a_probe_is_answered_after_its_line_is_in_the_log() {
    let mut stack = Stack::start().await;
    let mut asked = stack.serve::<ProbeTools>(probed).await;
    let held = stack.log.hold().await;
    let body = body();
    let mut answer = Box::pin(stack.post(TENANT, "/v1/probes", &body));
    tokio::select! {
        answer = &mut answer => panic!("answered before it was recorded: {answer:?}"),
        asked = asked.recv() => {
            let message = asked.unwrap();
            assert_eq!((message.account.as_str(), &message.asker.key_id), ("acc", key(TENANT).id()));
            assert_eq!(json!(message.tools), body["tools"]);
            assert_eq!(json!(message.context), body["context"]);
            assert_eq!(message.constraints, ["read_only"]);
        }
    }
    tokio::select! {
        answer = &mut answer => panic!("answered before it was recorded: {answer:?}"),
        () = async { while stack.log.waiting() == 0 { tokio::task::yield_now().await } } => {}
    }
    drop(held);
    let answer = answer.await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let shown = answer.json();
    assert_eq!((&shown["policy_version"], &shown["floor_version"]), (&json!(VERSION), &Value::Null));
    let tools = json!([{"tool": "read_file", "may": "maybe"},
        {"tool": "drop_table", "may": "never", "codes": ["TOOL_NOT_ALLOWED"]}]);
    assert_eq!((&shown["tools"], &shown["environment"]), (&tools, &json!("production")));
    let lines = stack.lines().await;
    assert_eq!(lines.len(), 1);
    let line = &lines[0];
    assert_eq!((&line["type"], &line["request_id"]), (&json!("tools.probed"), &shown["request_id"]));
    assert_eq!((&line["policy_version"], &line["environment"]), (&json!(VERSION), &json!("production")));
    assert_eq!(line["actor"], json!({"key_id": key(TENANT).id(), "authenticated_by": "api_key"}));
    assert_eq!(line["details"], json!({"tools": 2, "never": 1, "names": ["drop_table"]}));
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_answered() {
    let mut stack = Stack::with(|config| config.request_budget = Duration::from_secs(2)).await;
    stack.serve::<ProbeTools>(probed).await;
    for appends in [Appends::Failed, Appends::Lost] {
        stack.log.set(appends);
        let answer = stack.post(TENANT, "/v1/probes", &body()).await;
        assert_eq!(answer.refusal(), (503, "unavailable".to_owned()), "{appends:?}");
        assert!(!answer.text.contains("never"), "{}", answer.text);
    }
    stack.log.set(Appends::Acknowledged);
    assert_eq!(stack.post(TENANT, "/v1/probes", &body()).await.status, 200);
}

#[tokio::test]
async fn a_line_that_not_every_process_can_read_is_not_written() {
    let mut stack = Stack::with(|config| config.single_process = false).await;
    let mut asked = stack.serve::<ProbeTools>(probed).await;
    let answer = stack.post(TENANT, "/v1/probes", &body()).await;
    assert_eq!(answer.refusal(), (503, "unavailable".to_owned()), "{}", answer.text);
    assert!(asked.try_recv().is_err(), "nothing was asked");
}

#[tokio::test]
async fn only_a_key_that_may_check_asks() {
    let mut stack = Stack::start().await;
    stack.serve::<ProbeTools>(probed).await;
    for number in [READER, MEMBER, OPERATOR] {
        let answer = send(stack.request_as(number, Method::POST, "/v1/probes").body("not JSON")).await;
        assert_eq!(answer.refusal(), (403, "scope_missing".to_owned()), "{number}");
    }
    let answer = send(stack.request(Method::POST, "/v1/probes").body("{}")).await;
    assert_eq!(answer.refusal(), (401, "unauthorized".to_owned()));
    stack.services.change(READER, |identity| identity.scopes = [Scope::Check].into());
    stack.publish_change().await;
    let mut answer = stack.post(READER, "/v1/probes", &body()).await;
    for _ in 0..200 {
        if answer.status == 200 {
            break;
        }
        answer = stack.post(READER, "/v1/probes", &body()).await;
    }
    assert_eq!(answer.status, 200, "{}", answer.text);
}

#[tokio::test]
async fn every_bad_member_is_named_and_what_is_just_within_the_bounds_is_taken() {
    let mut stack = Stack::start().await;
    stack.serve::<ProbeTools>(probed).await;
    let long = "x".repeat(1_001);
    for (body, bad) in [
        (json!({}), vec!["tools"]),
        (json!({"tools": []}), vec!["tools"]),
        (json!({"tools": {}}), vec!["tools"]),
        (json!({"tools": vec![json!({"tool": "a"}); 201]}), vec!["tools"]),
        (
            json!({"tools": ["a", {}, {"tool": " "}, {"tool": 1}, {"tool": long}, {"tool": "a", "name": "b"}]}),
            vec!["tools[0]", "tools[1].tool", "tools[2].tool", "tools[3].tool", "tools[4].tool", "tools[5].name"],
        ),
        (
            json!({"tools": [{"tool": "a", "side_effects": ["", 1, long]},
                {"tool": "a", "side_effects": vec!["x"; 201]}, {"tool": "a", "side_effects": "read"}]}),
            vec![
                "tools[0].side_effects[0]",
                "tools[0].side_effects[1]",
                "tools[0].side_effects[2]",
                "tools[1].side_effects",
                "tools[2].side_effects",
            ],
        ),
        (
            json!({"environment": 5, "context": [], "constraints": [" ", "max_retries: many"], "goal": "g",
                "tools": [{"tool": "a"}]}),
            vec!["constraints[0]", "constraints[1]", "context", "environment", "goal"],
        ),
    ] {
        let mut found = stack.post(TENANT, "/v1/probes", &body).await.bad_fields();
        found.sort_unstable();
        assert_eq!(found, bad, "{body}");
    }
    let most = "x".repeat(1_000);
    for body in [
        json!({"tools": vec![json!({"tool": "a"}); 200]}),
        json!({"tools": [{"tool": most, "side_effects": vec![most.as_str(); 200]}]}),
        json!({"tools": [{"tool": "a", "side_effects": null}], "environment": null, "context": null,
            "constraints": null}),
    ] {
        let answer = stack.post(TENANT, "/v1/probes", &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
}

#[tokio::test]
async fn a_probe_takes_a_check_of_the_minute_and_none_of_the_day() {
    let mut stack = Stack::start().await;
    stack.serve::<ProbeTools>(probed).await;
    stack.services.change(TENANT, |identity| {
        identity.limits = Limits { per_minute: Some(3), daily: Some(1), ..Limits::NONE };
    });
    for _ in 0..2 {
        assert_eq!(stack.post(TENANT, "/v1/probes", &body()).await.status, 200);
    }
    let usage = stack.get(TENANT, "/usage").await.json();
    assert_eq!((&usage["daily_used"], &usage["monthly_used"]), (&json!(0), &json!(0)), "{usage}");
    assert_eq!(stack.check(&json!({"goal": "g"})).await.status, 200, "the one of the day is left");
    // The minute may have turned.
    let mut refused = None;
    for _ in 0..8 {
        let answer = stack.post(TENANT, "/v1/probes", &body()).await;
        if answer.status != 200 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("a refusal");
    assert_eq!(refused.refusal(), (429, "rate_limited".to_owned()), "{}", refused.text);
    assert!(refused.header("retry-after").is_some());
}

#[tokio::test]
async fn an_evaluator_that_does_not_answer_this_question_is_a_503_without_a_line() {
    let wrong = |change: fn(&mut ProbeFindings)| {
        move |message: &ProbeTools| {
            let mut findings = findings(message);
            change(&mut findings);
            ProbeReply::Probed(findings)
        }
    };
    type Answer = Box<dyn Fn(&ProbeTools) -> ProbeReply + Send>;
    let answers: Vec<Answer> = vec![
        Box::new(|_| ProbeReply::Busy),
        Box::new(|_| ProbeReply::Unable("the policy failed".to_owned())),
        Box::new(|_| ProbeReply::PolicyMissing { version: version(), is_loading: true }),
        Box::new(wrong(|findings| findings.tools.reverse())),
        Box::new(wrong(|findings| findings.tools.truncate(1))),
        Box::new(wrong(|findings| findings.floor_version = Some(version()))),
    ];
    for answer in answers {
        let mut stack = Stack::start().await;
        stack.serve::<ProbeTools>(answer).await;
        let answer = stack.post(TENANT, "/v1/probes", &body()).await;
        assert_eq!(answer.refusal(), (503, "unavailable".to_owned()), "{}", answer.text);
        assert!(!answer.text.contains("the policy failed"), "{}", answer.text);
        assert!(stack.lines().await.is_empty());
    }
    let stack = Stack::with(|config| config.request_budget = Duration::from_secs(2)).await;
    assert_eq!(stack.post(TENANT, "/v1/probes", &body()).await.status, 503, "no evaluator serves it");
}

#[tokio::test]
async fn another_version_than_the_active_one_does_not_answer() {
    let mut stack = Stack::start().await;
    stack.serve::<ProbeTools>(probed).await;
    let with = |active: &str| {
        let active = PolicyVersion::parse(active).unwrap();
        stack.services.change(TENANT, |identity| identity.rules.policy.default = Some(active));
    };
    with("acme@1.0.0+0123456789ab");
    assert_eq!(stack.post(TENANT, "/v1/probes", &body()).await.status, 503);
    with(VERSION);
    stack.publish_change().await;
    let mut status = 503;
    for _ in 0..200 {
        status = stack.post(TENANT, "/v1/probes", &body()).await.status.as_u16();
        if status == 200 {
            break;
        }
    }
    assert_eq!(status, 200);
}
