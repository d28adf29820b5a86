//! Rules that an organisation writes about runs and callers, on a running product: a limit for each run holds however
//! many ask at once and whatever is killed, a rule about a caller holds for the key that asks, and a template's rule
//! that asks for an approval is settled by one.

use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Agent, Api, Packs, Stack, Team};

use crate::approvals::path::may_not_decide;

const RECOVERY_TIMEOUT: Duration = Duration::from_secs(30);
/// Within a second at every gateway; the machine may be slow.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(10);
const CHECKS: usize = 64;

const TYPES: &str = "type RunCalls = { send_email: Long };\n";

const RULES: &str = r#"
@id("team.emails")
@effect("deny")
@code("TOO_MANY_EMAILS")
@message("a run sends three e-mails at most, and is named")
@details("run_calls.send_email")
forbid (principal, action, resource)
when { context.tools.contains("send_email") && (!context.run_named || context.run_calls.send_email >= 3) };

@id("team.unread")
@effect("deny")
@code("NOT_READ_BEFORE")
@message("a record is deleted only after it was read in the same run")
@details("targets, run_target_tools")
forbid (principal, action, resource)
when {
    context.tools.contains("delete_record")
        && (!context.run_named || !context.run_target_tools.contains("read_record"))
};

@id("team.bot")
@effect("deny")
@code("KEY_MAY_NOT_DEPLOY")
@message("this key may not deploy")
@details("key_name")
forbid (principal, action, resource)
when { context.effects.contains("deploy") && context.key_name == "bot-1" };

@id("team.group")
@effect("deny")
@code("GROUP_MAY_NOT_PUBLISH")
@message("only the workloads of release managers publish")
@details("groups")
forbid (principal, action, resource)
when { context.effects.contains("publish") && !context.groups.contains("release-managers") };
"#;

const CODES: &str = r#"
[TOO_MANY_EMAILS]
meaning = "The run has sent three e-mails."
remedy = "Final for this run."

[NOT_READ_BEFORE]
meaning = "A record would be deleted that this run has not read."
remedy = "Read it first."

[KEY_MAY_NOT_DEPLOY]
meaning = "The key is not one that deploys."
remedy = "Final for this key."

[GROUP_MAY_NOT_PUBLISH]
meaning = "Nobody in `release-managers` answers for the workload."
remedy = "Final for this workload."
"#;

const CASES: &str = r#"[
{"id": "emails", "expect": ["DENY"], "codes": ["TOO_MANY_EMAILS"], "run": {"allowed": 3, "calls": {"send_email": 3}},
 "request": {"goal": "Tell the team what changed", "tools": ["send_email"], "context": {"run_id": "r"}}},
{"id": "unread", "expect": ["DENY"], "codes": ["NOT_READ_BEFORE"],
 "request": {"goal": "Remove the duplicate record", "tools": ["delete_record"], "context": {"run_id": "r"}}},
{"id": "bot", "expect": ["DENY"], "codes": ["KEY_MAY_NOT_DEPLOY"], "caller": {"key_name": "bot-1"},
 "request": {"goal": "Deploy the payments service", "side_effects": ["deploy"]}},
{"id": "group", "expect": ["DENY"], "codes": ["GROUP_MAY_NOT_PUBLISH"], "caller": {"groups": ["interns"]},
 "request": {"goal": "Publish the release notes", "side_effects": ["publish"]}}
]
"#;

fn packs() -> Packs {
    let files = [("own.cedar", RULES), ("schema.cedarschema", TYPES), ("codes.toml", CODES), ("cases.json", CASES)];
    Packs::extending_baseline("1.0.0", &files)
}

fn call(tool: &str, context: &Value) -> Value {
    json!({"goal": "Carry out the step that was planned", "success_criteria": ["it is done"], "tools": [tool],
        "side_effects": ["none"], "context": context})
}

fn email(run: &str) -> Value {
    call("send_email", &json!({"run_id": run}))
}

/// Carried out with the caller's own word that it is approved.
fn approved(effect: &str) -> Value {
    json!({"goal": "Carry out the change that was planned", "success_criteria": ["it is done"],
        "side_effects": [effect], "constraints": ["allowed_tools: argo_cd"], "tools": ["argo_cd"],
        "environment": "staging", "context": {"actor_role": "sre", "approval_status": "approved",
        "approved_by": "lead@example.com", "approved_at": jiff::Timestamp::now().to_string()}})
}

/// The verdict, and the codes of the issues.
async fn judged(api: &Api, body: &Value) -> (String, Vec<String>) {
    let answer = api.check(body).await.expect(200);
    let codes = answer["issues"].as_array().unwrap().iter().map(|issue| issue["code"].as_str().unwrap().to_owned());
    (answer["verdict"].as_str().unwrap().to_owned(), codes.collect())
}

async fn is_allowed(api: &Api, body: &Value) -> bool {
    judged(api, body).await.0 == "ALLOW"
}

/// Whether it is denied for this reason.
async fn is_denied(api: &Api, body: &Value, code: &str) -> bool {
    let (verdict, codes) = judged(api, body).await;
    verdict == "DENY" && codes.iter().any(|known| known == code)
}

/// Asks this many times at once, at the gateways in turn: how many were allowed and denied, and how many had no answer.
async fn storm(stack: &Stack, body: &Value) -> (usize, usize, usize) {
    let asks = (0..CHECKS).map(|number| {
        let api = stack.api_at(number % stack.urls.len());
        async move { api.try_check(body).await.ok() }
    });
    let answers = join_all(asks).await;
    let said = |verdict: &str| answers.iter().flatten().filter(|answer| answer.body["verdict"] == verdict).count();
    let (allowed, denied) = (said("ALLOW"), said("DENY"));
    (allowed, denied, CHECKS - allowed - denied)
}

#[tokio::test]
async fn three_e_mails_of_a_run_pass_and_no_more_of_64_concurrent_checks_on_three_evaluators() {
    let packs = packs();
    let stack = Stack::build().policies(&packs).gateways(2).evaluators(3).nats().await;
    assert_eq!(storm(&stack, &email("r")).await, (3, 61, 0));
    let recorded = stack.api.decisions("run_id=r&limit=1000").await;
    let allowed = recorded.iter().filter(|line| line["verdict"] == "ALLOW").count();
    assert_eq!((recorded.len(), allowed), (64, 3));
    let denied = stack.api.check(&email("r")).await.expect(200);
    let issue = denied["issues"].as_array().unwrap().iter().find(|issue| issue["rule"] == "team.emails").unwrap();
    assert_eq!((&issue["code"], &issue["details"]["run_calls.send_email"]), (&json!("TOO_MANY_EMAILS"), &json!(3)));
    // Another tool of the run, and another run, are not in the way.
    assert!(is_allowed(&stack.api, &call("read_record", &json!({"run_id": "r"}))).await);
    assert!(is_allowed(&stack.api, &email("other")).await);
    let nameless = call("send_email", &json!({}));
    assert!(is_denied(&stack.api, &nameless, "TOO_MANY_EMAILS").await, "an uncounted call is not allowed");
}

#[tokio::test]
async fn killed_evaluators_let_no_fourth_e_mail_pass() {
    let packs = packs();
    let mut stack = Stack::build().policies(&packs).evaluators(3).nats().await;
    for round in 0..3 {
        let run = format!("r{round}");
        let (api, body) = (stack.api.clone(), email(&run));
        let asks = tokio::spawn(async move {
            let mut allowed = 0;
            // Until the run has surely come to its end.
            for _ in 0..200 {
                let answers = join_all((0..16).map(|_| api.check(&body))).await;
                allowed += answers.iter().filter(|answer| answer.body["verdict"] == "ALLOW").count();
                if answers.iter().all(|answer| answer.body["verdict"] == "DENY") {
                    break;
                }
            }
            allowed
        });
        stack.restart_evaluator(round);
        stack.restart_evaluator((round + 1) % 3);
        let allowed = asks.await.unwrap();
        assert!(allowed <= 3, "{allowed}");
        // A reply that was lost has counted all the same.
        let body = email(&run);
        wait_for("an answer", RECOVERY_TIMEOUT, async || stack.api.check(&body).await.body["verdict"] == "DENY").await;
        let recorded = stack.api.decisions(&format!("run_id={run}&verdict=ALLOW")).await.len();
        assert!((allowed..=3).contains(&recorded), "{allowed} answered, {recorded} recorded");
    }
}

/// Deletes what was read in the same run, and nothing else.
async fn deletes_only_after_a_read(stack: &Stack) {
    let on = |tool: &str, run: &str, targets: Value| call(tool, &json!({"run_id": run, "target_resources": targets}));
    let api = &stack.api;
    let is_unread =
        async |run: &str, targets: Value| is_denied(api, &on("delete_record", run, targets), "NOT_READ_BEFORE").await;
    assert!(is_unread("r", json!(["record/7"])).await, "nothing was read");
    // A read that was denied is no read.
    let mut refused = on("read_record", "r", json!(["record/7"]));
    refused["constraints"] = json!(["denied_tools: read_record"]);
    assert_eq!(judged(api, &refused).await.0, "DENY");
    assert!(is_unread("r", json!(["record/7"])).await);
    // Nor is one that the caller only tells of.
    let mut told = on("delete_record", "r", json!(["record/7"]));
    told["context"]["recent_tools"] = json!(["read_record"]);
    assert!(is_denied(api, &told, "NOT_READ_BEFORE").await);
    // A target of another spelling may be another record.
    assert!(is_allowed(api, &on("read_record", "r", json!(["Record/7"]))).await);
    assert!(is_unread("r", json!(["record/7"])).await);
    assert!(is_allowed(api, &on("read_record", "r", json!(["record/7"]))).await);
    assert!(is_allowed(api, &on("delete_record", "r", json!(["record/7"]))).await);
    for targets in [json!(["record/8"]), json!(["record/7", "record/8"]), json!([]), json!(["record/7", "../x"])] {
        assert!(is_unread("r", targets.clone()).await, "{targets}");
    }
    assert!(is_unread("another", json!(["record/7"])).await, "another run");
    let nameless = call("delete_record", &json!({"target_resources": ["record/7"]}));
    assert!(is_denied(api, &nameless, "NOT_READ_BEFORE").await);
    let (_, key, _) = stack.operator.account("b", None, &["check"]).await;
    let stranger = stack.api.with_key(&key);
    let theirs = on("delete_record", "r", json!(["record/7"]));
    assert!(is_denied(&stranger, &theirs, "NOT_READ_BEFORE").await, "a run of the same name in another account");
}

#[tokio::test]
async fn a_record_is_deleted_only_after_a_read_of_it_in_the_same_run_in_one_process() {
    let packs = packs();
    let mut stack = Stack::build().policies(&packs).dev().await;
    deletes_only_after_a_read(&stack).await;
    stack.restart_dev();
    let again = call("delete_record", &json!({"run_id": "r", "target_resources": ["record/7"]}));
    assert!(is_allowed(&stack.api, &again).await, "what a run remembers outlives a restart");
}

#[tokio::test]
async fn a_record_is_deleted_only_after_a_read_of_it_in_the_same_run_on_nats() {
    let packs = packs();
    deletes_only_after_a_read(&Stack::build().policies(&packs).evaluators(2).nats().await).await;
}

#[tokio::test]
async fn a_rule_about_a_key_holds_for_that_key_and_for_what_it_is_rotated_to() {
    let packs = packs();
    let stack = Stack::build().policies(&packs).dev().await;
    let team = Team::caller(&stack).await;
    let [one, two] =
        [team.agent_with(&json!({"name": "bot-1"})).await, team.agent_with(&json!({"name": "bot-2"})).await];
    let deploy = approved("deploy");
    assert!(is_denied(&one.api, &deploy, "KEY_MAY_NOT_DEPLOY").await);
    assert!(is_allowed(&two.api, &deploy).await);
    assert!(is_allowed(&one.api, &call("read_record", &json!({}))).await, "what the rule does not forbid");
    let mut claims = deploy.clone();
    claims["context"]["agent_id"] = json!("bot-2");
    claims["context"]["key_name"] = json!("bot-2");
    assert!(is_denied(&one.api, &claims, "KEY_MAY_NOT_DEPLOY").await, "a caller's word names no key");
    let rotated = one.rotated(&team.admin).await;
    assert!(is_denied(&rotated.api, &deploy, "KEY_MAY_NOT_DEPLOY").await);
}

#[tokio::test]
async fn a_rule_about_groups_follows_the_member_who_answers_for_the_workload() {
    let packs = packs();
    let stack = Stack::build().policies(&packs).gateways(2).nats().await;
    let team = Team::caller(&stack).await;
    let ada = team.member("Ada", &["release-managers"]).await;
    let bob = team.member("Bob", &["interns"]).await;
    let owned = async |owner: &str| team.agent_with(&json!({"owner": owner})).await;
    let [hers, his, nobodys] = [owned(&ada.id).await, owned(&bob.id).await, team.agent().await];
    let publish = approved("publish");
    let forbids = async |agent: &Agent| is_denied(&agent.api, &publish, "GROUP_MAY_NOT_PUBLISH").await;
    assert!(is_allowed(&hers.api, &publish).await);
    assert!(forbids(&his).await && forbids(&nobodys).await);
    assert!(is_allowed(&his.api, &call("read_record", &json!({}))).await);
    // A change of groups reaches each gateway.
    for (member, groups) in [(&ada, json!([])), (&bob, json!(["release-managers"]))] {
        team.admin.patch(&format!("/v1/members/{}", member.id), &json!({"groups": groups})).await.expect(200);
    }
    for url in &stack.urls {
        let (hers, his) = (hers.at(url), his.at(url));
        wait_for("Ada's groups", NOTICE_TIMEOUT, async || forbids(&hers).await).await;
        wait_for("Bob's groups", NOTICE_TIMEOUT, async || is_allowed(&his.api, &publish).await).await;
    }
}

/// The rules and cases of a template in a pack of these tests.
fn template(name: &str) -> Packs {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies").join(name);
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: &Path| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, std::fs::read_to_string(path).unwrap())
    };
    let files: Vec<_> = entries.map(|path| read(&path)).filter(|(name, _)| name != "pack.toml").collect();
    let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    Packs::extending_baseline("1.0.0", &files)
}

/// A query of an analyst, which has no side effect.
fn query(cost_usd: f64) -> Value {
    json!({"goal": "How did returns develop by country in February?",
        "success_criteria": ["one table with a number for each country"], "tools": ["run_query"], "side_effects": [],
        "constraints": ["read_only"], "environment": "production",
        "context": {"run_id": "question-311", "statement": "SELECT country, count(*) FROM returns LIMIT 500",
            "record_count": 500, "estimated_cost_usd": cost_usd}})
}

#[tokio::test]
async fn an_expensive_query_without_side_effects_is_allowed_once_after_a_data_owner_approved_it() {
    let packs = template("read-only-analyst");
    let stack = Stack::build().policies(&packs).dev().await;
    let team = Team::verified(&stack).await;
    let agent = team.agent().await;
    let (dana, eve) = (team.member("Dana", &["data-owners"]).await, team.member("Eve", &["interns"]).await);
    assert!(is_allowed(&agent.api, &query(4.99)).await, "a cheap query needs no approval");

    let approval = agent.api.deferred(&query(5.01)).await;
    assert_eq!((&approval["groups"], &approval["quorum"]), (&json!(["data-owners"]), &json!(1)), "{approval:#}");
    // The agent's own word approves nothing.
    let mut claims = query(5.01);
    claims["context"]["approval_status"] = json!("approved");
    claims["context"]["approved_by"] = json!("dana@example.com");
    assert_eq!(agent.api.deferred(&claims).await["id"], approval["id"]);
    may_not_decide(&eve.api.approve(&approval).await);
    assert_eq!(agent.api.deferred(&query(5.01)).await["id"], approval["id"]);

    dana.api.approve(&approval).await.expect(200);
    assert_ne!(agent.api.deferred(&query(5.02)).await["id"], approval["id"], "a dearer query is another action");
    let (verdict, answer) = agent.api.verdict(&query(5.01)).await;
    assert_eq!((verdict.as_str(), &answer["approval"]["id"]), ("ALLOW", &approval["id"]), "{answer:#}");
    agent.api.until(&approval, "consumed").await;
    assert_ne!(agent.api.deferred(&query(5.01)).await["id"], approval["id"], "an approval is used once");
}
