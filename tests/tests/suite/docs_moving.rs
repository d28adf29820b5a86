//! What docs/moving-from-hosted.md says of requests is what the product answers.
//!
//! Each claim names a passage of the document, a request of that kind, and the answer that the document promises: a 422
//! with a text in it, or a verdict with a code among the issues. A passage that is gone from the document fails too, so
//! that claims and document stay together.

use serde_json::{Value, json};
use stage0_tests::Stack;

use crate::docs_examples::document;

enum Says {
    /// 422, and this in the message.
    Wrong(&'static str),
    /// One of these verdicts, with this code.
    Has(&'static [&'static str], &'static str),
    /// ALLOW, and no issue above LOW.
    Passes,
    /// ALLOW, and this constraint is named as one without effect.
    Ignores(&'static str),
}

use Says::{Has, Ignores, Passes, Wrong};

const DENY: &[&str] = &["DENY"];
const DEFER: &[&str] = &["DEFER"];
const ALLOW: &[&str] = &["ALLOW"];
const CAREFUL: &[&str] = &["DENY", "DEFER"];

/// Evidence that an approver other than the agent gave.
const APPROVED: &str = r#""approval_status": "approved", "approved_by": "lead@example.com""#;

fn with_constraint(constraint: &str) -> Value {
    json!({"side_effects": ["write"], "constraints": [constraint], "context": {}})
}

fn with_effect(effect: &str) -> Value {
    json!({"side_effects": [effect], "context": {}})
}

fn with_tool(tool: &str, constraints: &[&str]) -> Value {
    json!({"tools": [tool], "side_effects": [], "constraints": constraints, "context": {}})
}

fn deployed(context: &str) -> Value {
    let context: Value = serde_json::from_str(&format!("{{{context}}}")).unwrap();
    json!({"side_effects": ["deploy"], "constraints": ["approval_required"], "context": context})
}

fn shapes() -> Vec<(&'static str, Value, Says)> {
    vec![
        ("`sideEffects`", json!({"sideEffects": ["deploy"]}), Wrong("`side_effects`")),
        ("`side_effect`", json!({"side_effect": ["deploy"]}), Wrong("`side_effects`")),
        ("`Constraints`", json!({"Constraints": ["read_only"]}), Wrong("`constraints`")),
        ("`tool` at top level", json!({"tool": ["shell"]}), Wrong("`tools`")),
        ("`approvalStatus`", json!({"context": {"approvalStatus": "approved"}}), Wrong("approval_status")),
        ("`runId`", json!({"context": {"runId": "r"}}), Wrong("run_id")),
        ("`target_resource` in `context`", json!({"context": {"target_resource": "x"}}), Wrong("target_resources")),
        ("`tools` or `goal` inside `context`", json!({"context": {"tools": ["x"]}}), Wrong("context.tools")),
        ("`tools` or `goal` inside `context`", json!({"context": {"goal": "x"}}), Wrong("context.goal")),
        ("`approval_status` at top level", json!({"approval_status": "approved"}), Wrong("context.approval_status")),
        (
            "`environment` twice",
            json!({"environment": "prod", "context": {"environment": "staging"}}),
            Wrong("environment"),
        ),
        (
            "such as `prod` and `production`",
            json!({"environment": "prod", "context": {"environment": "production"}}),
            Passes,
        ),
        ("`max_iterations: three`", with_constraint("max_iterations: three"), Wrong("max_iterations")),
        ("`max_cost_usd: five`", with_constraint("max_cost_usd: five"), Wrong("max_cost_usd")),
        ("`timeout: soon`", with_constraint("timeout: soon"), Wrong("timeout")),
        ("`allowed_environment:`", with_constraint("allowed_environment:"), Wrong("allowed_environment")),
        ("dev and staging`", with_constraint("allowed_environment: dev and staging"), Wrong("constraints[0]")),
        ("`(dev, staging)`", with_constraint("allowed_environment: (dev, staging)"), Wrong("constraints[0]")),
        ("`!production`", with_constraint("allowed_environment: !production"), Wrong("constraints[0]")),
        ("`allowed_environment: prod*`", with_constraint("allowed_environment: prod*"), Wrong("constraints[0]")),
        ("a `null` inside an array of strings", json!({"tools": [null]}), Wrong("tools[0]")),
        ("absent, and is fine", json!({"tools": null, "context": {"environment": "staging"}}), Passes),
    ]
}

fn constraints() -> Vec<(&'static str, Value, Says)> {
    let not_understood = "CONSTRAINT_NOT_UNDERSTOOD";
    vec![
        ("`allowed_tolls: x`", with_constraint("allowed_tolls: x"), Has(DEFER, not_understood)),
        ("`budget <= 5`", with_constraint("budget <= 5"), Has(DEFER, not_understood)),
        ("a JSON object", with_constraint(r#"{"max_cost": 5}"#), Has(DEFER, not_understood)),
        (
            "advice otherwise",
            json!({"constraints": ["allowed_tolls: x"], "side_effects": [], "context": {}}),
            Has(ALLOW, not_understood),
        ),
        ("beside an effect that writes", with_constraint("read_only"), Has(DEFER, "CONSTRAINTS_CONTRADICT")),
        ("`LIMIT_NOT_ENFORCED`", with_constraint("max_iterations: 5"), Has(ALLOW, "LIMIT_NOT_ENFORCED")),
        ("`LOOP_LIMITS_MISSING`", with_effect("loop"), Has(ALLOW, "LOOP_LIMITS_MISSING")),
        (
            r#"`"mfa_verified": "yes"`"#,
            json!({"side_effects": ["write"], "constraints": ["mfa_required"], "context": {"mfa_verified": "yes"}}),
            Has(DEFER, "CONTEXT_REQUIRED"),
        ),
        ("such as `max_tokens: 500`", with_constraint("max_tokens: 500"), Ignores("max_tokens: 500")),
        ("`disallowed_tools`", with_tool("reader", &["disallowed_tools: reader"]), Has(DENY, "TOOL_NOT_ALLOWED")),
        (
            "is no guardrail",
            json!({"side_effects": ["deploy"], "constraints": ["environment: staging"],
                   "context": {"environment": "staging", "approval_status": "approved", "approved_by": "lead"}}),
            Has(DENY, "SIDE_EFFECTS_NEED_GUARDRAILS"),
        ),
    ]
}

fn effects() -> Vec<(&'static str, Value, Says)> {
    let guardrails = "SIDE_EFFECTS_NEED_GUARDRAILS";
    let scoped = |target: &str| {
        json!({"side_effects": ["write"], "constraints": ["resource_scope: a/b/*"],
               "context": {"target_resources": [target]}})
    };
    vec![
        (
            "An approval in `context` alone",
            json!({"side_effects": ["delete"], "context": {"approval_status": "approved", "approved_by": "lead"}}),
            Has(DENY, guardrails),
        ),
        ("`DROP TABLE`", with_effect("DROP TABLE"), Has(DENY, guardrails)),
        ("`kubectl_delete`", with_effect("kubectl_delete"), Has(DENY, guardrails)),
        ("`write: s3:DeleteObject`", with_effect("write: s3:DeleteObject"), Has(DENY, guardrails)),
        ("`execute: rm -rf x`", with_effect("execute: rm -rf x"), Has(DENY, guardrails)),
        ("`write: report.pdf` stays", with_effect("write: report.pdf"), Passes),
        ("no part of the word is known", with_effect("frobnicate"), Has(CAREFUL, "UNKNOWN_SIDE_EFFECT")),
        ("`write flurb`", with_effect("write flurb"), Has(ALLOW, "UNKNOWN_SIDE_EFFECT")),
        ("`read: /etc/shadow`", with_effect("read: /etc/shadow"), Has(CAREFUL, "UNKNOWN_SIDE_EFFECT")),
        ("`not delete`", with_effect("not delete"), Has(CAREFUL, guardrails)),
        (
            "`none`, `n/a`, `read_only`, `list_files`, `search`",
            json!({"side_effects": ["none", "n/a", "read_only", "list_files", "search"], "context": {}}),
            Passes,
        ),
        ("`delete_file`", with_tool("delete_file", &[]), Has(ALLOW, "UNDECLARED_SIDE_EFFECT")),
        ("`send_email`", with_tool("send_email", &[]), Has(ALLOW, "UNDECLARED_SIDE_EFFECT")),
        ("`terraform`", with_tool("terraform", &[]), Has(ALLOW, "SENSITIVE_TOOLS_NEED_CONSTRAINTS")),
        (
            "`*` alone bounds",
            with_tool("terraform", &["allowed_tools: *"]),
            Has(ALLOW, "SENSITIVE_TOOLS_NEED_CONSTRAINTS"),
        ),
        (
            "never means a tool of one",
            with_tool("mcp__hub__make", &["allowed_tools: make"]),
            Has(DENY, "TOOL_NOT_ALLOWED"),
        ),
        ("or `mcp__server__*`", with_tool("mcp__hub__make", &["allowed_tools: mcp__hub__*"]), Passes),
        ("no one plain form", scoped("a/b/%252e%252e/c"), Has(DENY, "RESOURCE_SCOPE_VIOLATION")),
        ("`%2e`", scoped("a/b/%2e%2e/c"), Has(DENY, "RESOURCE_SCOPE_VIOLATION")),
        ("the plain path", scoped("a/b/c"), Passes),
    ]
}

fn evidence() -> Vec<(&'static str, Value, Says)> {
    let required = "APPROVAL_REQUIRED";
    let own = r#""approval_status": "approved", "approved_by": "a1", "agent_id": "a1""#;
    let old = json!({"side_effects": ["deploy"], "constraints": ["approval_required", "approval_max_age: 30m"],
        "context": {"approval_status": "approved", "approved_by": "lead", "approved_at": "2026-01-01T00:00:00Z"}});
    vec![
        ("pending, missing or absent", deployed(r#""approval_status": "pending""#), Has(DEFER, required)),
        ("the effect or a constraint needs an approval", deployed(APPROVED), Passes),
        ("no RFC 3339 time", deployed(&format!(r#"{APPROVED}, "approved_at": "yesterday""#)), Has(DEFER, required)),
        (
            "lies more than 5 minutes ahead",
            deployed(&format!(r#"{APPROVED}, "approved_at": "2099-01-01T00:00:00Z""#)),
            Has(DEFER, required),
        ),
        ("older than `approval_max_age`", old, Has(DEFER, required)),
        (
            "`declined`",
            json!({"side_effects": ["write"], "context": {"approval_status": "declined"}}),
            Has(DENY, "APPROVAL_STATUS_INVALID"),
        ),
        ("is another word", deployed(r#""approval_status": "LGTM""#), Has(DEFER, "CONTEXT_REQUIRED")),
        ("equals `actor_id`, `agent_id`", deployed(own), Has(DEFER, "SELF_APPROVAL")),
        ("`APPROVED_BY_MISSING`", deployed(r#""approval_status": "approved""#), Has(ALLOW, "APPROVED_BY_MISSING")),
    ]
}

/// What of the answer is not as the document says.
fn fault(status: u16, answer: &Value, says: &Says) -> Option<String> {
    let none = vec![];
    let issues = answer["issues"].as_array().unwrap_or(&none);
    let verdict = answer["verdict"].as_str().unwrap_or_default();
    let holds = match says {
        Wrong(text) => status == 422 && answer["message"].as_str().is_some_and(|message| message.contains(text)),
        Has(verdicts, code) => verdicts.contains(&verdict) && issues.iter().any(|issue| issue["code"] == *code),
        Passes => verdict == "ALLOW" && issues.iter().all(|issue| issue["severity"] == "LOW"),
        Ignores(text) => {
            let ignored = answer["constraints_ignored"].as_array().unwrap_or(&none);
            verdict == "ALLOW" && ignored.iter().any(|constraint| constraint == text)
        }
    };
    let codes: Vec<_> = issues.iter().map(|issue| &issue["code"]).collect();
    (!holds).then(|| format!("{status} {verdict} {codes:?} {}", answer["message"]))
}

async fn hold(claims: Vec<(&'static str, Value, Says)>) {
    let stack = Stack::build().dev().await;
    let text = document("moving-from-hosted.md");
    let mut faults = vec![];
    for (passage, mut request, says) in claims {
        if !text.contains(passage) {
            faults.push(format!("{passage}: is not in the document"));
        }
        request["goal"] = "Carry out the planned step".into();
        request["success_criteria"] = json!(["done as described"]);
        let answer = stack.api.check(&request).await;
        if let Some(fault) = fault(answer.status, &answer.body, &says) {
            faults.push(format!("{passage}: {request}\n    {fault}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[tokio::test]
async fn what_moving_says_of_shapes_holds() {
    hold(shapes()).await;
}

#[tokio::test]
async fn what_moving_says_of_constraints_holds() {
    hold(constraints()).await;
}

#[tokio::test]
async fn what_moving_says_of_effects_and_tools_holds() {
    hold(effects()).await;
}

#[tokio::test]
async fn what_moving_says_of_evidence_holds() {
    hold(evidence()).await;
}
