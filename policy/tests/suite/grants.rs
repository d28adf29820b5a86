//! Wider grants: a grant covers a check only if all that the check proposes is what was granted.

use serde_json::{Value, json};
use stage0_contract::{CheckRequest, Grant};

use super::approvals::baseline;

fn grant(limits: &Value) -> Grant {
    let mut grant = json!({"id": "grt_1", "workload": "key_1", "run_id": null, "tool": null, "effects": null,
        "environment": null, "until": "2026-03-16T20:00:00Z", "created_at": "2026-03-16T12:00:00Z", "votes": [],
        "revoked_at": null, "uses": 0, "used_by": []});
    let members = grant.as_object_mut().unwrap();
    members.extend(limits.as_object().unwrap().clone());
    serde_json::from_value(grant).unwrap()
}

#[expect(clippy::needless_pass_by_value, reason = "callers write it in place")]
fn covers(limits: Value, body: Value) -> bool {
    let mut request = json!({"goal": "Clean up the old branches"});
    request.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
    baseline().grant_covers(&grant(&limits), &CheckRequest::parse(request).unwrap())
}

#[test]
fn a_grant_without_limits_covers_every_check() {
    assert!(covers(json!({}), json!({})));
    assert!(covers(json!({}), json!({"tools": ["bash"], "side_effects": ["deploy"], "environment": "production"})));
}

#[test]
fn every_proposed_tool_must_be_the_granted_one() {
    let tool = |granted: &str, body: Value| covers(json!({"tool": granted}), body);
    for (granted, tool_name) in [
        ("delete_branch", "delete_branch"),
        ("delete_branch", "Delete-Branch"),
        ("delete_branch", "ｄｅｌｅｔｅ＿ｂｒａｎｃｈ"),
        ("deleteBranch", "deleteBranch"),
        ("mcp__github__delete_branch", "MCP__GitHub__delete-branch"),
    ] {
        assert!(tool(granted, json!({"tools": [tool_name]})), "{granted} {tool_name}");
        assert!(tool(granted, json!({"tools": [tool_name], "context": {"current_tool": tool_name}})), "{granted}");
        assert!(tool(granted, json!({"context": {"current_tool": tool_name}})), "{granted}");
    }
    for (granted, tool_name) in [
        ("delete_branch", "delete_branches"),
        ("delete_branch", "deletebranch"),
        ("delete_branch", "deleteBranch"),
        ("deletebranch", "deleteBranch"),
        ("delete_branch", "mcp__github__delete_branch"),
        ("mcp__github__delete_branch", "delete_branch"),
        ("mcp__github__delete_branch", "mcp__gitlab__delete_branch"),
        ("delete_branch", "delete_branch(main)"),
        ("delete_branch", "d\u{435}lete_branch"),
        ("d\u{435}lete_branch", "d\u{435}lete_branch"),
        ("delete_*", "delete_branch"),
        ("*", "delete_branch"),
    ] {
        assert!(!tool(granted, json!({"tools": [tool_name]})), "{granted} {tool_name}");
    }
    assert!(!tool("delete_branch", json!({})), "no tool is proposed");
    assert!(!tool("delete_branch", json!({"tools": ["delete_branch", "bash"]})), "one of them is another");
    for current in [json!("bash"), json!(["delete_branch"]), json!(7)] {
        let body = json!({"tools": ["delete_branch"], "context": {"current_tool": current}});
        assert!(!tool("delete_branch", body), "{current}");
    }
}

#[test]
fn every_declared_effect_must_be_among_the_granted_ones() {
    let effects =
        |declared: Value| covers(json!({"effects": ["deploy", "data deletion"]}), json!({"side_effects": declared}));
    for declared in [json!(["deploy"]), json!(["DEPLOY", "data_deletion"]), json!(["Data-Deletion"])] {
        assert!(effects(declared.clone()), "{declared}");
    }
    for declared in [json!([]), json!(["deploy", "publish"]), json!(["deployment"]), json!(["d\u{435}ploy"])] {
        assert!(!effects(declared.clone()), "{declared}");
    }
    assert!(!covers(json!({"effects": ["deploy"]}), json!({})), "none is declared");
    assert!(!covers(json!({"effects": []}), json!({"side_effects": ["deploy"]})), "none is granted");
}

#[test]
fn every_named_environment_must_be_the_granted_one() {
    let within = |granted: &str, body: Value| covers(json!({"environment": granted}), body);
    for (granted, name) in
        [("staging", "staging"), ("stage", "STG"), ("prod", "production"), ("eu-west", "EU_West"), ("live", "ｐｒｄ")]
    {
        assert!(within(granted, json!({"environment": name})), "{granted} {name}");
        let both = json!({"environment": name, "context": {"environment": name, "target_environment": name}});
        assert!(within(granted, both), "{granted} {name}");
    }
    for (granted, name) in [
        ("staging", "production"),
        ("staging", "staging2"),
        ("eu-west", "eu-west-1"),
        ("staging", "st\u{430}ging"),
        ("st\u{430}ging", "st\u{430}ging"),
    ] {
        assert!(!within(granted, json!({"environment": name})), "{granted} {name}");
    }
    assert!(!within("staging", json!({})), "none is named");
    assert!(!within("staging", json!({"environment": " "})), "none is named");
    for target in [json!("production"), json!(["staging"]), json!(7)] {
        let body = json!({"environment": "staging", "context": {"target_environment": target}});
        assert!(!within("staging", body), "{target}");
    }
}

#[test]
fn the_run_must_be_the_granted_one() {
    let within = |granted: &str, context: Value| covers(json!({"run_id": granted}), json!({"context": context}));
    for context in [
        json!({"run_id": "run 7"}),
        json!({"run_id": " run\u{200b}  7 "}),
        json!({"loop_state": {"run_id": "run 7"}}),
        json!({"run_id": "run 7", "loop_state": {"run_id": "run  7"}}),
    ] {
        assert!(within("run 7", context.clone()), "{context}");
    }
    assert!(within("7", json!({"run_id": 7})));
    for context in [
        json!({}),
        json!({"run_id": "run 8"}),
        json!({"run_id": "Run 7"}),
        json!({"run_id": "run 7", "loop_state": {"run_id": "run 8"}}),
        json!({"run_id": ["run 7"]}),
        json!({"run_id": " "}),
    ] {
        assert!(!within("run 7", context.clone()), "{context}");
    }
    assert!(!within(" ", json!({"run_id": " "})), "a blank name is no run");
}

#[test]
fn all_limits_of_a_grant_hold_together() {
    let limits = json!({"tool": "deploy_service", "effects": ["deploy"], "environment": "staging", "run_id": "r"});
    let body = json!({"tools": ["deploy_service"], "side_effects": ["deploy"], "environment": "stage",
        "context": {"run_id": "r"}});
    assert!(covers(limits.clone(), body.clone()));
    for (name, value) in [
        ("tools", json!(["other"])),
        ("side_effects", json!(["publish"])),
        ("environment", json!("production")),
        ("context", json!({"run_id": "q"})),
    ] {
        let mut other = body.clone();
        other[name] = value;
        assert!(!covers(limits.clone(), other), "{name}");
    }
}
