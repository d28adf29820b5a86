//! Rules that look back at a run and at who asks, with several evaluators at once.

use std::sync::LazyLock;

use serde_json::{Value, json};
use stage0_contract::{
    AccountId, AccountRules, Actor, CheckRequest, EndRun, EvaluateReply, EvaluateRequest, Holder, KeyId, ManageReply,
    RunId, Scopes, SettleRun, Verdict,
};
use stage0_evaluator::RunConfig;
use stage0_policy::PackSet;

use super::runs::{Stage, WAIT_TIMEOUT, allowed_of, check, decision, id, verdict};

use Verdict::{Allow, Defer, Deny};

const MANIFEST: &str = "name = \"looking-back\"\nversion = \"1.0.0\"\nextends = \"baseline@2\"\n";
const SCHEMA: &str = "type RunCalls = { counted: Long };\n";
const CODES: &str = r#"
[RUN_HISTORY]
meaning = "The run did too much, too little, or what was refused."
remedy = "Look at what the run did."
[FINANCE_ONLY]
meaning = "Only members of finance may do this."
remedy = "Ask with a key that a member of finance answers for."
"#;
const RULES: &str = r#"
@id("past.counted")
@effect("deny")
@code("RUN_HISTORY")
@message("three calls of the counted tool in a run")
forbid (principal, action, resource)
when { context.tools.contains("counted") }
unless { context.run_named && context.run_calls.counted < 3 };

@id("past.opened")
@effect("defer")
@code("RUN_HISTORY")
@message("the opener was not used in this run")
@question("When was it opened?")
forbid (principal, action, resource)
when { context.tools.contains("follower") }
unless { context.run_named && context.run_tools.contains("opener") };

@id("past.same_target")
@effect("defer")
@code("RUN_HISTORY")
@message("the target was not opened in this run")
@question("When was it opened?")
forbid (principal, action, resource)
when { context.tools.contains("closer") }
unless { context.run_named && context.run_target_tools.contains("opener") };

@id("past.approved")
@effect("defer")
@code("RUN_HISTORY")
@message("nothing was approved in this run")
@question("What was approved?")
forbid (principal, action, resource)
when { context.tools.contains("publisher") }
unless { context.run_named && context.run_approved };

@id("past.halted")
@effect("deny")
@code("RUN_HISTORY")
@message("two checks of this run were denied")
forbid (principal, action, resource)
when { context.run_named && context.run_denied >= 2 };

@id("caller.finance")
@effect("deny")
@code("FINANCE_ONLY")
@message("only finance may do this")
forbid (principal, action, resource)
when { context.tools.contains("ledger") }
unless { context.groups.contains("finance") };
"#;

/// Both outcomes of each rule.
fn cases() -> Value {
    let case = |name: &str, expect: &str, tool: &str, more: Value| {
        let code = if tool == "ledger" { "FINANCE_ONLY" } else { "RUN_HISTORY" };
        let codes = if expect == "ALLOW" { json!([]) } else { json!([code]) };
        let request = json!({"goal": "read the report", "success_criteria": ["x"], "tools": [tool],
            "context": {"run_id": "r", "target_resources": ["record/7"]}});
        let mut case = json!({"id": name, "expect": [expect], "codes": codes, "request": request});
        for (member, value) in more.as_object().unwrap() {
            case[member] = value.clone();
        }
        case
    };
    let seven = json!({"run": {"target_tools": {"record/7": ["opener"]}}});
    json!([
        case("counted", "ALLOW", "counted", json!({"run": {"calls": {"counted": 2}}})),
        case("counted-out", "DENY", "counted", json!({"run": {"calls": {"counted": 3}}})),
        case("opened", "ALLOW", "follower", json!({"run": {"calls": {"opener": 1}}})),
        case("not-opened", "DEFER", "follower", json!({})),
        case("same-target", "ALLOW", "closer", seven),
        case("other-target", "DEFER", "closer", json!({"run": {"target_tools": {"record/8": ["opener"]}}})),
        case("approved", "ALLOW", "publisher", json!({"run": {"approved": true}})),
        case("not-approved", "DEFER", "publisher", json!({"run": {"allowed": 1}})),
        case("denied-once", "ALLOW", "reader", json!({"run": {"denied": 1}})),
        case("halted", "DENY", "reader", json!({"run": {"denied": 2}})),
        case("finance", "ALLOW", "ledger", json!({"caller": {"groups": ["finance"]}})),
        case("not-finance", "DENY", "ledger", json!({"caller": {"groups": ["support"]}})),
    ])
}

static BASELINE: LazyLock<String> =
    LazyLock::new(|| PackSet::embedded().unwrap().active().version().as_str().to_owned());

/// Loaded once, because loading it decides each case of the baseline too.
static PACKS: LazyLock<PackSet> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let pack = folder.path().join("looking-back");
    std::fs::create_dir(&pack).unwrap();
    let write = |name: &str, text: &str| std::fs::write(pack.join(name), text).unwrap();
    write("pack.toml", MANIFEST);
    write("schema.cedarschema", SCHEMA);
    write("codes.toml", CODES);
    write("past.cedar", RULES);
    write("cases.json", &cases().to_string());
    let mut packs = PackSet::embedded().unwrap().with_dir(folder.path()).unwrap_or_else(|error| panic!("{error}"));
    packs.allow(&BASELINE).unwrap();
    packs.activate("looking-back@1.0.0").unwrap();
    packs
});

async fn stage(evaluators: usize) -> Stage {
    Stage::with_packs(evaluators, RunConfig::default(), &PACKS).await
}

/// A check of the run `r` that proposes one tool.
fn using(number: u64, tool: &str, mut context: Value) -> EvaluateRequest {
    context["run_id"] = json!("r");
    let mut message = check(number, "acc", &[], context);
    message.request.tools = vec![tool.to_owned()];
    message
}

fn on(number: u64, tool: &str, targets: &[&str]) -> EvaluateRequest {
    using(number, tool, json!({"target_resources": targets}))
}

/// The same check under the next id, as with an `Idempotency-Key`.
fn again(number: u64, first: &EvaluateRequest) -> EvaluateRequest {
    EvaluateRequest { request_id: id(number), operation: Some(first.request_id), ..first.clone() }
}

/// The rules that decided.
fn rules(reply: &EvaluateReply) -> Vec<(&str, &str)> {
    decision(reply).issues.iter().map(|issue| (issue.rule.as_str(), issue.code.as_str())).collect()
}

#[tokio::test]
async fn of_many_calls_at_once_on_three_evaluators_exactly_as_many_pass_as_the_rule_allows() {
    let stage = stage(3).await;
    let checks = (0..64).map(|number| using(number, "counted", json!({}))).collect();
    assert_eq!(allowed_of(&stage, checks).await, 3);
    let other_run = check(100, "acc", &[], json!({"run_id": "s"}));
    let other_run = EvaluateRequest {
        request: CheckRequest { tools: vec!["counted".to_owned()], ..other_run.request.clone() },
        ..other_run
    };
    assert_eq!(verdict(&stage.ask(other_run).await), Allow);
    let unnamed = EvaluateRequest { request: check_without_run("counted"), ..using(101, "counted", json!({})) };
    assert_eq!(verdict(&stage.ask(unnamed).await), Deny, "without a run nothing is counted");
}

fn check_without_run(tool: &str) -> CheckRequest {
    let body = json!({"goal": "read the report", "success_criteria": ["x"], "tools": [tool]});
    CheckRequest::parse(body).unwrap()
}

#[tokio::test]
async fn a_call_that_a_caller_only_reports_is_no_proof_of_it() {
    let stage = stage(2).await;
    let reported = json!({"recent_tools": ["opener", "opener"], "loop_state": {"repeated_tools": ["opener"]}});
    assert_eq!(verdict(&stage.ask(using(1, "follower", reported.clone())).await), Defer);
    assert_eq!(verdict(&stage.ask(using(2, "reader", reported)).await), Allow, "and is noted as a report");
    assert_eq!(verdict(&stage.ask(using(3, "follower", json!({}))).await), Defer);
    assert_eq!(verdict(&stage.ask(using(4, "Opener", json!({}))).await), Allow);
    assert_eq!(verdict(&stage.ask(using(5, "follower", json!({}))).await), Allow);
}

#[tokio::test]
async fn a_tool_is_counted_however_its_name_is_written() {
    let stage = stage(2).await;
    let spellings = ["Counted", "mcp__x__counted", "vendor.counted", "counted(a)", "counted;"];
    for (number, tool) in (0..).zip(spellings) {
        let wanted = if number < 3 { Allow } else { Deny };
        assert_eq!(verdict(&stage.ask(using(number, tool, json!({}))).await), wanted, "{tool}");
    }
    let other = stage.ask(using(9, "recounted", json!({}))).await;
    assert_eq!(rules(&other), [("past.halted", "RUN_HISTORY")], "the two denials, and no call too many");
}

#[tokio::test]
async fn a_tool_that_rules_see_is_counted_beside_another_one_that_is_called_next() {
    let stage = stage(1).await;
    for number in 0..4 {
        let reply = stage.ask(using(number, "counted", json!({"current_tool": "think"}))).await;
        assert_eq!(verdict(&reply), if number < 3 { Allow } else { Deny });
    }
    assert_eq!(verdict(&stage.ask(using(9, "think", json!({}))).await), Allow, "it is not limited");
}

#[tokio::test]
async fn a_report_under_a_pack_that_asks_for_nothing_is_no_proof_under_one_that_does() {
    let stage = stage(1).await;
    let of_baseline = |number: u64, tool: &str, context: Value| {
        let mut message = using(number, tool, context);
        message.request.policy_pack_version = Some(BASELINE.clone());
        message
    };
    let reported = json!({"recent_tools": ["opener"]});
    assert_eq!(verdict(&stage.ask(of_baseline(1, "reader", reported)).await), Allow);
    assert_eq!(verdict(&stage.ask(using(2, "follower", json!({}))).await), Defer);
    // Once the run is counted under readings, what another pack allows is evidence.
    assert_eq!(verdict(&stage.ask(using(3, "reader", json!({}))).await), Allow);
    assert_eq!(verdict(&stage.ask(of_baseline(4, "opener", json!({}))).await), Allow);
    assert_eq!(verdict(&stage.ask(using(5, "follower", json!({}))).await), Allow);
}

#[tokio::test]
async fn a_target_is_closed_only_after_the_same_one_was_opened() {
    let stage = stage(2).await;
    assert_eq!(verdict(&stage.ask(on(1, "closer", &["record/7"])).await), Defer);
    assert_eq!(verdict(&stage.ask(on(2, "opener", &["record/8"])).await), Allow);
    assert_eq!(verdict(&stage.ask(on(3, "closer", &["record/7"])).await), Defer, "another target");
    assert_eq!(verdict(&stage.ask(on(20, "opener", &["Record/7", "record%2F7"])).await), Allow);
    assert_eq!(verdict(&stage.ask(on(21, "closer", &["record/7"])).await), Defer, "a target of another spelling");
    let opener = on(4, "opener", &["record/7"]);
    assert_eq!(verdict(&stage.ask(opener.clone()).await), Allow);
    assert_eq!(verdict(&stage.ask(on(5, "closer", &["record/7"])).await), Allow);
    assert_eq!(verdict(&stage.ask(on(6, "closer", &["record/7", "record/8"])).await), Allow, "each was opened");
    assert_eq!(verdict(&stage.ask(on(7, "closer", &["record/7", "record/9"])).await), Defer, "one was not");
    assert_eq!(verdict(&stage.ask(on(8, "closer", &[])).await), Defer, "no target");
    // Settling changes nothing of it, and ending the run forgets it.
    let settle = SettleRun {
        account: AccountId::parse("acc").unwrap(),
        run_id: RunId::parse("r").unwrap(),
        request_id: opener.request_id,
        actual_micros: 1,
        may_lower: false,
    };
    assert!(matches!(stage.caller.requests.request(&settle, WAIT_TIMEOUT).await.unwrap(), ManageReply::Done(_)));
    assert_eq!(verdict(&stage.ask(on(9, "closer", &["record/7"])).await), Allow);
    let end = EndRun { account: AccountId::parse("acc").unwrap(), run_id: RunId::parse("r").unwrap() };
    assert!(matches!(stage.caller.requests.request(&end, WAIT_TIMEOUT).await.unwrap(), ManageReply::Done(_)));
    assert_eq!(verdict(&stage.ask(on(10, "closer", &["record/7"])).await), Defer);
}

#[tokio::test]
async fn a_run_is_approved_once_a_check_of_it_was_allowed_with_an_approval() {
    let stage = stage(1).await;
    let deploy = |number: u64, approval: Value| {
        let mut context = approval;
        (context["run_id"], context["environment"]) = (json!("r"), json!("production"));
        let body = json!({"goal": "Deploy the hotfix", "success_criteria": ["error rate below 1 %"],
            "tools": ["kubectl"], "side_effects": ["deploy"], "constraints": ["approval required"],
            "context": context});
        EvaluateRequest { request: CheckRequest::parse(body).unwrap(), ..using(number, "kubectl", json!({})) }
    };
    assert_eq!(verdict(&stage.ask(deploy(1, json!({}))).await), Defer);
    assert_eq!(verdict(&stage.ask(using(2, "reader", json!({}))).await), Allow);
    assert_eq!(verdict(&stage.ask(using(3, "publisher", json!({}))).await), Defer, "nothing was approved");
    let approval = json!({"approval_status": "approved", "approved_by": "dana@example.com",
        "approved_at": jiff::Timestamp::now().to_string()});
    assert_eq!(verdict(&stage.ask(deploy(4, approval)).await), Allow);
    assert_eq!(verdict(&stage.ask(using(5, "publisher", json!({}))).await), Allow);
}

#[tokio::test]
async fn a_denied_check_that_arrives_many_times_is_denied_once_in_its_run() {
    let stage = stage(3).await;
    for number in 0..3 {
        assert_eq!(verdict(&stage.ask(using(number, "counted", json!({}))).await), Allow);
    }
    let denied = using(10, "counted", json!({}));
    let copies = (0..30).map(|_| denied.clone()).collect();
    assert_eq!(allowed_of(&stage, copies).await, 0);
    assert_eq!(verdict(&stage.ask(again(11, &denied)).await), Deny, "and under an idempotency key");
    assert_eq!(verdict(&stage.ask(using(12, "reader", json!({}))).await), Allow, "one denial");
    assert_eq!(verdict(&stage.ask(using(13, "counted", json!({}))).await), Deny);
    let halted = stage.ask(using(14, "reader", json!({}))).await;
    assert_eq!((verdict(&halted), rules(&halted)), (Deny, vec![("past.halted", "RUN_HISTORY")]));
}

#[tokio::test]
async fn a_repeated_call_passes_again_and_sees_what_the_run_did_since() {
    let stage = stage(2).await;
    let third = using(3, "counted", json!({}));
    for number in 1..=2 {
        assert_eq!(verdict(&stage.ask(using(number, "counted", json!({}))).await), Allow);
    }
    assert_eq!(verdict(&stage.ask(third.clone()).await), Allow);
    for number in 10..14 {
        assert_eq!(verdict(&stage.ask(again(number, &third)).await), Allow, "the third call, once more");
    }
    assert_eq!(verdict(&stage.ask(using(20, "counted", json!({}))).await), Deny, "a fourth one");
    assert_eq!(verdict(&stage.ask(using(21, "counted", json!({}))).await), Deny);
    assert_eq!(verdict(&stage.ask(again(22, &third)).await), Deny, "two denials halt it");
}

#[tokio::test]
async fn groups_are_those_of_the_caller_and_where_they_are_not_told_the_rule_denies() {
    let stage = stage(1).await;
    let asking = |number: u64, groups: Option<&[&str]>| {
        let key = KeyId::parse("agent").unwrap();
        let groups = groups.map(|groups| groups.iter().map(|group| (*group).to_owned()).collect());
        let asker = Actor {
            key_id: key.clone(),
            holder: Holder::of_workload(key),
            key_name: groups.as_ref().map(|_: &Vec<String>| "refunds-bot".to_owned()),
            groups,
            scopes: Scopes::new(),
            rules: AccountRules::default(),
            can_record: false,
            reports_outcomes: false,
            retention_days: 30,
        };
        EvaluateRequest { asker: Some(asker), request: check_without_run("ledger"), ..on(number, "ledger", &[]) }
    };
    assert_eq!(verdict(&stage.ask(asking(1, Some(&["support", "finance"]))).await), Allow);
    for (number, groups, code) in [(2, Some(&["support"][..]), "FINANCE_ONLY"), (3, Some(&[]), "FINANCE_ONLY")] {
        let reply = stage.ask(asking(number, groups)).await;
        assert_eq!((verdict(&reply), rules(&reply)), (Deny, vec![("caller.finance", code)]));
    }
    let older = stage.ask(asking(4, None)).await;
    assert_eq!((verdict(&older), rules(&older)), (Deny, vec![("caller.finance", "POLICY_ERROR")]));
    let oldest = stage.ask(EvaluateRequest { asker: None, ..asking(5, None) }).await;
    assert_eq!((verdict(&oldest), rules(&oldest)), (Deny, vec![("caller.finance", "POLICY_ERROR")]));
}
