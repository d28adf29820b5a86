//! Facts that only some packs read: the value of each, what is hidden of it beside a secret, and the rules that a pack
//! cannot have about them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use stage0_contract::{AccountRules, Decision, EvaluateRequest, Issue, Severity, Verdict};
use stage0_policy::{Engine, Pack, RunHistory, RunSnapshot, TimeLimit, fact_table};

use super::approvals::{NOON, check};
use super::packs::Broken;

pub(super) const CUSTOM: &str = "type Custom = {\n    amount?: Long,\n    price?: decimal,\n    country?: String,\n    \
                      urgent?: Bool,\n    labels?: Set<String>,\n    record_count?: Long,\n};\n";
pub(super) const RUN_CALLS: &str = "type RunCalls = {\n    send_email: Long,\n    read_record: Long,\n};\n";

/// The baseline with every fact in its schema, and these rules of its own.
pub(super) fn with_rules(rules: &str) -> Broken {
    with_types(rules, CUSTOM, RUN_CALLS)
}

pub(super) fn with_types(rules: &str, custom: &str, run_calls: &str) -> Broken {
    let pack = Broken::new();
    let more = fact_table().filter(|row| row.edition == 2).filter_map(|row| {
        let mark = if row.is_optional { "?" } else { "" };
        Some(format!("    {}{mark}: {},\n", row.name, row.cedar_type?))
    });
    let more: String = more.filter(|line| !custom.is_empty() || !line.contains("Custom")).collect();
    let schema = pack.text("schema.cedarschema");
    let schema = schema.replace("type Facts = {\n", &format!("{custom}{run_calls}type Facts = {{\n{more}"));
    let codes = format!("{}\n[OWN]\nmeaning = \"A rule of a test.\"\nremedy = \"None.\"\n", pack.text("codes.toml"));
    pack.write("schema.cedarschema", &schema).write("own.cedar", rules).write("codes.toml", &codes)
}

/// A rule with a condition, and the annotations that it must have at least.
pub(super) fn rule(effect: &str, more: &str, condition: &str) -> String {
    format!(
        "@id(\"own.rule\")\n@effect(\"{effect}\")\n@code(\"OWN\")\n@message(\"a rule of a test\")\n{more}\n\
         forbid (principal, action, resource)\nwhen {{ {condition} }};\n"
    )
}

pub(super) fn with_case(pack: Broken, case: &Value) -> Broken {
    pack.write("cases-own.json", &json!([case]).to_string())
}

/// A pack that shows every fact that only some packs read.
fn showing() -> Engine {
    let names: Vec<&str> =
        fact_table().filter(|row| row.edition == 2 && row.cedar_type.is_some()).map(|row| row.name).collect();
    let details = format!("@details(\"{}, custom.amount, run_calls.send_email\")", names.join(", "));
    let pack = with_case(
        with_rules(&rule("advise", &details, "context.run_named || !context.run_named")),
        &json!({"id": "own", "expect": ["ALLOW"], "codes": ["OWN"],
            "request": {"goal": "Read the report", "success_criteria": ["read"], "side_effects": ["none"]}}),
    );
    Engine::new(Pack::from_dir(pack.folder.path()).unwrap()).unwrap()
}

pub(super) fn issue<'a>(decision: &'a Decision, rule: &str) -> &'a Issue {
    decision.issues.iter().find(|issue| issue.rule == rule).unwrap_or_else(|| panic!("{rule}: {decision:#?}"))
}

pub(super) fn asked(body: &Value, asker: &Value) -> EvaluateRequest {
    let mut check = check(body, NOON, AccountRules::default());
    check.asker = serde_json::from_value(asker.clone()).unwrap();
    check
}

pub(super) fn full_asker() -> Value {
    json!({"key_id": "key_2", "key_name": "bot-1", "groups": ["ops", "sre"],
        "holder": {"workload": "key_1", "owner": "mem_7"}})
}

fn shown(engine: &Engine, body: &Value, snapshot: Option<&RunSnapshot>) -> Map<String, Value> {
    let answer = engine.answer(&asked(body, &full_asker()), snapshot, None, TimeLimit::NONE).unwrap();
    issue(&answer.evaluation.decision, "own.rule").details.clone()
}

pub(super) fn body(more: Value) -> Value {
    let mut body = json!({"goal": "Do what was asked of you", "success_criteria": ["done"], "side_effects": ["none"]});
    let Value::Object(more) = more else { panic!("no object") };
    body.as_object_mut().unwrap().extend(more);
    body
}

/// Asserts the value of each named fact of a request.
fn assert_facts(engine: &Engine, more: &Value, wanted: &Value) {
    let details = shown(engine, &body(more.clone()), Some(&RunSnapshot::default()));
    for (name, value) in wanted.as_object().unwrap() {
        assert_eq!(details.get(name), Some(value).filter(|value| !value.is_null()), "{name} of {more}");
    }
}

#[test]
fn the_words_of_a_request_are_facts_in_normal_form() {
    let engine = showing();
    for (more, wanted) in [
        (
            json!({"tools": ["Send-Email", "read file", "READ_FILE"],
                "context": {"current_tool": "mcp__GitHub__push"}}),
            json!({"tools": ["mcp__github__push", "push", "read_file", "send_email"], "tool_count": 3,
                "tool_names": ["mcp__github__push", "read_file", "send_email"], "mcp_servers": ["github"]}),
        ),
        (json!({"tools": ["d\u{435}ploy", "d\u{435}ploy2"]}), json!({"tools": ["?"], "tool_count": 2})),
        (json!({"tools": ["a"], "context": {"current_tool": 7}}), json!({"tools": ["a", "?"], "tool_count": 2})),
        (json!({"tools": ["?"]}), json!({"tools": ["?"], "tool_count": 1})),
        (json!({}), json!({"tools": [], "tool_count": 0, "mcp_servers": [], "targets": [], "target_count": 0})),
        (
            json!({"tools": ["mcp__a__b__c"], "context": {"active_mcp_servers": ["Files", " ", "fil\u{435}s"]}}),
            json!({"mcp_servers": ["?", "a", "a__b", "files"]}),
        ),
        (json!({"context": {"active_mcp_servers": "files"}}), json!({"mcp_servers": ["?"]})),
        (
            json!({"side_effects": ["sendEmail", "external notification", "d\u{435}ploy"]}),
            json!({"effects": ["?", "external_notification", "send_email", "sendemail"]}),
        ),
        (
            json!({"side_effects": ["deploy", "external_notification", "retry"]}),
            json!({"effect_classes": ["communication", "high", "loop"]}),
        ),
        (json!({"side_effects": ["none"]}), json!({"effects": ["none"], "effect_classes": []})),
        (
            json!({"context": {"target_resources": ["A/x/../B", "a/b", "..", " "], "resource_scope": "S3://Bucket/k"}}),
            json!({"targets": ["?", "a/b", "s3://bucket/k"], "target_count": 3}),
        ),
        (json!({"context": {"target_resources": ["a", 1]}}), json!({"targets": ["?", "a"], "target_count": 2})),
        (json!({"context": {"target_resources": "a"}}), json!({"targets": ["?"], "target_count": 1})),
        (
            json!({"context": {"tenant_id": " Acme ", "target_tenants": ["ACME", "b\u{43e}b"]}}),
            json!({"tenant": "acme", "target_tenants": ["?", "acme"]}),
        ),
        (json!({"context": {"tenant_id": 7}}), json!({"tenant": "?", "target_tenants": []})),
        (json!({}), json!({"tenant": "", "environment": "", "agent": "", "estimated_cost_micros": null})),
        (json!({"environment": "PRD"}), json!({"environment": "production"})),
        (
            json!({"environment": "prd", "context": {"target_environment": "live"}}),
            json!({"environment": "production"}),
        ),
        (json!({"environment": "prd", "context": {"target_environment": "qa"}}), json!({"environment": "?"})),
        (json!({"context": {"environment": 3}}), json!({"environment": "?"})),
        (json!({"environment": "pr\u{43e}d"}), json!({"environment": "?"})),
        (json!({"context": {"agent_id": "Bot-1"}}), json!({"agent": "bot-1"})),
        (json!({"context": {"agent_id": ["bot-1"]}}), json!({"agent": "?"})),
        (json!({"context": {"estimated_cost_usd": 1.5}}), json!({"estimated_cost_micros": 1_500_000})),
    ] {
        assert_facts(&engine, &more, &wanted);
    }
}

#[test]
fn the_time_and_the_open_windows_are_facts() {
    let engine = showing();
    assert_facts(&engine, &json!({}), &json!({"now": "2026-03-16T12:00:00Z", "windows_open": ["business_hours"]}));
    let mut check = asked(&body(json!({})), &full_asker());
    check.evaluated_at = NOON + 12 * 3_600;
    let answer = engine.answer(&check, None, None, TimeLimit::NONE).unwrap();
    let details = &issue(&answer.evaluation.decision, "own.rule").details;
    assert_eq!((&details["now"], &details["windows_open"]), (&json!("2026-03-17T00:00:00Z"), &json!([])));
}

#[test]
fn the_caller_is_as_its_key_proves() {
    let engine = showing();
    let wanted = json!({"account": "acc", "key_id": "key_2", "key_name": "bot-1", "workload": "key_1", "member": "",
        "owner": "mem_7", "groups": ["ops", "sre"]});
    assert_facts(&engine, &json!({"context": {"agent_id": "boss", "key_name": "boss"}}), &wanted);
}

#[test]
fn a_caller_that_an_older_gateway_does_not_tell_is_denied_by_every_rule_about_it() {
    for (fact, condition) in [
        ("key_id", "context.key_id == \"k\""),
        ("key_name", "context.key_name == \"bot-1\""),
        ("workload", "context.workload == \"x\""),
        ("member", "context.member == \"x\""),
        ("owner", "context.owner == \"x\""),
        ("groups", "context.groups.contains(\"interns\")"),
    ] {
        let caller = match fact {
            "groups" => json!({"groups": ["interns"]}),
            fact => json!({fact: condition.split('"').nth(1).unwrap()}),
        };
        let case = json!({"id": "own", "expect": ["DENY"], "codes": ["OWN"], "caller": caller,
            "request": body(json!({}))});
        let pack = with_case(with_rules(&rule("deny", "", condition)), &case);
        let engine = Engine::new(Pack::from_dir(pack.folder.path()).unwrap()).unwrap();
        let decide = |asker: &Value| {
            engine.answer(&asked(&body(json!({})), asker), None, None, TimeLimit::NONE).unwrap().evaluation.decision
        };
        // Another caller is known, and passes.
        let other = json!({"key_id": "key_2", "key_name": "bot-2", "groups": ["ops"], "holder": {"workload": "key_1"}});
        assert_eq!(decide(&other).verdict, Verdict::Allow, "{fact}");
        let older = json!({"key_id": "key_2", "holder": {"workload": "key_1"}});
        let untold = if ["key_name", "groups"].contains(&fact) { older } else { json!(null) };
        let denied = decide(&untold);
        assert_eq!(denied.verdict, Verdict::Deny, "{fact}");
        assert_eq!(issue(&denied, "own.rule").code.as_str(), "POLICY_ERROR", "{fact}");
    }
}

fn run_of(history: RunHistory) -> RunSnapshot {
    RunSnapshot { history, ..RunSnapshot::default() }
}

#[test]
fn what_a_run_did_before_is_a_fact() {
    let engine = showing();
    let named = body(json!({"context": {"run_id": "r"}, "tools": ["read_record"]}));
    let tools = BTreeMap::from([("send_email".to_owned(), 2), ("forgotten".to_owned(), 0)]);
    let history = RunHistory {
        tools,
        unproven: BTreeMap::new(),
        any: 1,
        allowed: 4,
        denied: 3,
        deferred: 2,
        last_verdict: Some(Verdict::Defer),
        cost_micros: 1_500_000,
        seconds: 60,
        seconds_since_allowed: Some(5),
        approved: true,
        target_tools: BTreeMap::new(),
    };
    let details = shown(&engine, &named, Some(&run_of(history)));
    let wanted = json!({"run_named": true, "run_tools": ["send_email", "?"], "run_allowed": 4, "run_denied": 3,
        "run_calls": {"send_email": 3, "read_record": 1}, "run_calls.send_email": 3, "run_deferred": 2,
        "run_last_verdict": "DEFER", "run_cost_micros": 1_500_000, "run_seconds": 60, "run_seconds_since_allowed": 5,
        "run_approved": true, "run_target_tools": []});
    for (name, value) in wanted.as_object().unwrap() {
        assert_eq!(details.get(name), Some(value), "{name}");
    }
    let unnamed = shown(&engine, &body(json!({})), None);
    let first = shown(&engine, &named, Some(&RunSnapshot::default()));
    let none = json!({"run_tools": [], "run_calls": {"send_email": 0, "read_record": 0}, "run_allowed": 0,
        "run_last_verdict": "", "run_seconds_since_allowed": -1, "run_approved": false});
    for (name, value) in none.as_object().unwrap() {
        assert_eq!((unnamed.get(name), first.get(name)), (Some(value), Some(value)), "{name}");
    }
    assert_eq!((&unnamed["run_named"], &first["run_named"]), (&json!(false), &json!(true)));
}

#[test]
fn the_tools_of_all_targets_are_those_that_each_of_them_had() {
    let engine = showing();
    let targets = |targets: Value| body(json!({"context": {"run_id": "r", "target_resources": targets}}));
    // What the server learns from a check under its targets, it hands back as their hashes.
    let learnt = |target: &str| {
        let check = asked(&targets(json!([target])), &full_asker());
        engine.answer(&check, Some(&RunSnapshot::default()), None, TimeLimit::NONE).unwrap().run.targets
    };
    let tools = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let mut target_tools = BTreeMap::new();
    for (target, names) in [("record/7", &["read_record", "list"][..]), ("record/8", &["read_record"])] {
        let hashes = learnt(target);
        assert_eq!(hashes.len(), 1);
        assert_eq!(hashes[0].as_str().len(), 16);
        target_tools.insert(hashes[0].clone(), tools(names));
    }
    let run = run_of(RunHistory { target_tools, ..RunHistory::default() });
    for (named, wanted) in [
        (json!(["record/7"]), json!(["list", "read_record"])),
        (json!([" record/7 ", "record/8"]), json!(["read_record"])),
        // Where a scope sees one thing, a store may keep two.
        (json!(["record/7", "RECORD/8"]), json!([])),
        (json!(["record/./7"]), json!([])),
        (json!(["record%2F7"]), json!([])),
        (json!(["record/7", "record/9"]), json!([])),
        (json!(["record/7", "../9"]), json!([])),
        (json!([]), json!([])),
    ] {
        assert_eq!(shown(&engine, &targets(named.clone()), Some(&run))["run_target_tools"], wanted, "{named}");
    }
    assert!(learnt("../x").is_empty());
}

#[test]
fn a_check_with_a_secret_teaches_its_run_no_target() {
    let engine = showing();
    let learnt = |goal: &str| {
        let body = body(json!({"goal": goal, "context": {"run_id": "r", "target_resources": ["a"]}}));
        let check = asked(&body, &full_asker());
        engine.answer(&check, Some(&RunSnapshot::default()), None, TimeLimit::NONE).unwrap().run.targets.len()
    };
    assert_eq!((learnt("Read what was asked"), learnt("Log in with password=hunter22")), (1, 0));
}

#[test]
fn the_counts_of_a_run_that_are_not_told_deny() {
    let condition = "context.tools.contains(\"own_tool\") && (!context.run_named || context.run_allowed >= 3)";
    let case = json!({"id": "own", "expect": ["DENY"], "codes": ["OWN"],
        "request": body(json!({"tools": ["own_tool"]}))});
    let pack = with_case(with_rules(&rule("deny", "", condition)), &case);
    let engine = Engine::new(Pack::from_dir(pack.folder.path()).unwrap()).unwrap();
    let named = asked(&body(json!({"tools": ["own_tool"], "context": {"run_id": "r"}})), &full_asker());
    let decide = |snapshot| engine.answer(&named, snapshot, None, TimeLimit::NONE).unwrap().evaluation.decision;
    let first = RunSnapshot::default();
    assert_eq!(decide(Some(&first)).verdict, Verdict::Allow);
    let denied = decide(None);
    assert_eq!(issue(&denied, "own.rule").code.as_str(), "POLICY_ERROR");
}

#[test]
fn beside_a_secret_no_detail_holds_a_word_of_the_request() {
    let engine = showing();
    let words = json!({"goal": "Log in with password=hunter22", "tools": ["hunter22", "mcp__hunter22__x"],
        "side_effects": ["hunter22"], "environment": "hunter22",
        "context": {"tenant_id": "hunter22", "target_tenants": ["hunter22"], "agent_id": "hunter22", "run_id": "r",
            "target_resources": ["hunter22"], "country": "hunter22", "labels": ["hunter22"], "amount": 7}});
    let history = RunHistory { tools: BTreeMap::from([("hunter22".to_owned(), 1)]), ..RunHistory::default() };
    let details = shown(&engine, &words, Some(&run_of(history)));
    let hidden: BTreeSet<&str> =
        details.iter().filter(|(_, value)| **value == json!("[redacted]")).map(|(name, _)| name.as_str()).collect();
    let of_words = fact_table().filter(|row| row.edition == 2 && row.holds_words).map(|row| row.name);
    let wanted: BTreeSet<&str> = of_words.chain(["custom.amount"]).collect();
    assert_eq!(hidden, wanted);
    assert!(!json!(details).to_string().contains("hunter22"), "{details:#?}");
    // Numbers, and what the key proves, are no words of the request.
    assert_eq!((&details["tool_count"], &details["key_name"]), (&json!(2), &json!("bot-1")));
}

#[test]
fn details_are_cut_to_a_size_that_an_answer_can_carry() {
    let engine = showing();
    let tools: Vec<String> = (0..30).map(|n| format!("tool_{n:02}")).collect();
    let details = shown(&engine, &body(json!({"tools": tools, "context": {"country": "é".repeat(200)}})), None);
    assert_eq!(details["tools"].as_array().unwrap().len(), 20);
    assert_eq!(details["custom"]["country"], json!("é".repeat(128)));
}

#[test]
fn members_of_ones_own_are_exact_and_what_is_not_declared_is_not_visible() {
    let engine = showing();
    let context = json!({"amount": 5.0, "price": "19.990", "country": " DE ", "urgent": false, "labels": ["b", "a"],
        "record_count": 3, "other": 1});
    let wanted = json!({"custom": {"amount": 5, "price": "19.99", "country": "DE", "urgent": false,
        "labels": ["b", "a"], "record_count": 3}, "custom.amount": 5});
    assert_facts(&engine, &json!({"context": context}), &wanted);
    assert_facts(
        &engine,
        &json!({"context": {"amount": null, "country": " "}}),
        &json!({"custom": {}, "custom.amount": null}),
    );
}

#[test]
fn a_declared_member_of_another_type_defers_with_where_and_what() {
    let engine = showing();
    for (member, value, told) in [
        ("amount", json!("500"), "`amount` must be a whole number"),
        ("price", json!(0.12345), "`price` must be a number with at most four decimals, or a text of one"),
        ("country", json!(49), "`country` must be a text"),
        ("urgent", json!("yes"), "`urgent` must be true or false"),
        ("labels", json!("a"), "`labels` must be a list of texts"),
    ] {
        let decide = |value: &Value| {
            let check = asked(&body(json!({"context": {member: value}})), &full_asker());
            engine.answer(&check, None, None, TimeLimit::NONE).unwrap().evaluation.decision
        };
        let decision = decide(&value);
        let found = issue(&decision, "context.custom");
        assert_eq!((decision.verdict, found.message.as_str()), (Verdict::Defer, told));
        assert_eq!((found.code.as_str(), found.severity), ("CONTEXT_REQUIRED", Severity::Medium));
        assert_eq!(found.details["at"], json!([format!("context.{member}")]));
        assert!(decision.defer_questions.iter().any(|question| question.contains(&format!("`context.{member}`"))));
        assert_eq!(decide(&json!(null)).verdict, Verdict::Allow, "{member}: absent is no fault");
    }
    let both = json!({"context": {"amount": "x", "urgent": "y"}});
    let check = asked(&body(both), &full_asker());
    let decision = engine.answer(&check, None, None, TimeLimit::NONE).unwrap().evaluation.decision;
    assert_eq!(decision.issues.iter().filter(|issue| issue.rule == "context.custom").count(), 2);
}

#[test]
fn the_reference_of_a_pack_names_its_own_members_and_the_code_for_them() {
    let engine = showing();
    let reference = engine.pack().reference();
    let context = reference["context"].as_array().unwrap();
    let named = |name: &str| context.iter().filter(|member| member["name"] == *name).collect::<Vec<_>>();
    assert_eq!(named("amount")[0]["type"], "integer");
    assert_eq!(named("record_count").len(), 1, "a member of the contract stands once");
    assert!(Pack::embedded().unwrap().reference()["context"].as_array().unwrap().len() < context.len());
}
