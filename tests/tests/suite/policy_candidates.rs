//! Policies that are tried on a running product: a shadow that only judges, a canary that decides a share of the runs
//! and ends by itself where it differs too often.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Agent, Api, Stack, Team};

use crate::policies::{activate, decided, pack, publish};

/// The thread that judges has a low priority, and other tests run beside it.
const TIMEOUT: Duration = Duration::from_secs(90);

async fn shown(team: &Team) -> Vec<Value> {
    let all = team.admin.get("/v1/policies/candidates").await.expect(200);
    all["items"].as_array().unwrap().clone()
}

fn of_run(run: &str) -> Value {
    let mut body = Api::harmless();
    body["context"]["run_id"] = json!(run);
    body
}

fn in_environment(environment: &str) -> Value {
    let mut body = Api::harmless();
    body["environment"] = json!(environment);
    body
}

async fn until_decided_by(agent: &Agent, body: &Value, version: &str) {
    wait_for(version, TIMEOUT, async || decided(&agent.api, body).await.is_some_and(|(_, by)| by == version)).await;
}

async fn lines_of(team: &Team, kind: &str) -> Vec<Value> {
    team.admin.lines().await.into_iter().filter(|line| line["type"] == kind).collect()
}

#[tokio::test]
async fn a_shadow_judges_what_every_evaluator_decides_and_changes_no_answer() {
    let stack = Stack::build().gateways(2).evaluators(3).nats().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent().await;
    let before = decided(&agent.api, &Api::harmless()).await.unwrap();
    let version = publish(&team.admin, &pack("acme", "1.0.0", "web_search")).await;
    let path = format!("/v1/policies/{version}/shadow");
    let refused = team.admin.post(&path, &json!({"percent": 0})).await;
    refused.assert_error(422, "validation_failed");
    assert!(refused.body["message"].as_str().unwrap().starts_with("percent: "), "{}", refused.text);
    let started = team.admin.post(&path, &json!({"reason": "no searches?"})).await.expect(200);
    assert_eq!((&started["kind"], &started["candidate"]["percent"]), (&json!("shadow_started"), &json!(100)));
    // Gateways have heard of it once a check is judged.
    let is_judged = async || {
        agent.api.check(&Api::harmless()).await.expect(200);
        shown(&team).await[0]["findings"]["counts"]["checks"].as_u64().unwrap() > 0
    };
    wait_for("a check that is judged", TIMEOUT, is_judged).await;
    let mut quiet = Api::harmless();
    quiet["tools"] = json!(["calculator"]);
    for url in stack.urls.iter().cycle().take(30) {
        assert_eq!(decided(&agent.api.at(url), &Api::harmless()).await.as_ref(), Some(&before));
        assert_eq!(decided(&agent.api.at(url), &quiet).await.unwrap().1, before.1);
    }
    // Each is counted once, and all of them within seconds.
    let mut last = (0, 0);
    let settled = async || {
        let counts = shown(&team).await[0]["findings"]["counts"].clone();
        let of = |name: &str| counts[name].as_u64().unwrap();
        let now = (of("checks") + of("not_judged"), of("disagreements"));
        let is_same = now == last && now.0 >= 60;
        last = now;
        tokio::time::sleep(Duration::from_secs(2)).await;
        is_same
    };
    wait_for("all checks that are counted", TIMEOUT, settled).await;
    let decisions = team.admin.decisions("limit=1000").await;
    let candidate = &shown(&team).await[0];
    let counts = &candidate["findings"]["counts"];
    assert!(last.0 <= decisions.len() as u64, "{} decisions: {candidate:#}", decisions.len());
    assert_eq!((&counts["looser"], &counts["errors"]), (&json!(0), &json!(0)));
    let found = candidate["findings"]["disagreements"].as_array().unwrap();
    assert_eq!(found.len(), 1, "{candidate:#}");
    assert_eq!((&found[0]["from"], &found[0]["to"]), (&json!("ALLOW"), &json!("DENY")));
    assert_eq!((&found[0]["code"], &found[0]["rule"]), (&json!("TOOL_IS_FORBIDDEN"), &json!("acme.tool")));
    let id = found[0]["request_id"].as_str().unwrap();
    assert!(decisions.iter().any(|decision| decision["request_id"] == id));

    team.admin.delete(&format!("/v1/policies/{version}")).await.assert_error(409, "conflict");
    let ended = team.admin.post("/v1/policies/withdraw", &json!({"reason": "seen"})).await.expect(200);
    assert_eq!(ended["kind"], "shadow_ended");
    team.admin.post("/v1/policies/withdraw", &json!({})).await.assert_error(409, "conflict");
    assert!(shown(&team).await.is_empty());
    // What was found of it stays readable.
    let ended = team.admin.get("/v1/policies/candidates?ended=true").await.expect(200)["items"][0].clone();
    assert!(ended["ended_at"].is_string() && ended["id"] == candidate["id"], "{ended:#}");
    assert_eq!(ended["findings"]["disagreements"][0]["rule"], "acme.tool");
    assert_eq!(lines_of(&team, "policy.shadow_started").await.len(), 1);
    assert_eq!(lines_of(&team, "policy.shadow_ended").await[0]["reason"], "seen");
    assert_eq!(team.admin.verify().await["ok"], true);
}

#[tokio::test]
async fn a_canary_decides_whole_runs_and_its_share_of_them_only() {
    let stack = Stack::build().gateways(2).evaluators(2).nats().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent().await;
    let before = decided(&agent.api, &Api::harmless()).await.unwrap();
    let version = publish(&team.admin, &pack("acme", "1.0.0", "web_search")).await;
    let never = json!({"disagreement_percent": 100, "error_percent": 100});
    let begun = activate(&team.admin, &version, &json!({"canary": {"percent": 50, "return_at": never}})).await;
    assert_eq!((&begun["kind"], &begun["version"]), (&json!("canary_started"), &json!(version)));
    let active = team.admin.get("/v1/policies/active").await.expect(200);
    assert_eq!((&active["own"], &active["candidates"][0]["version"]), (&json!({}), &json!(version)), "{active:#}");
    let has_begun = async || {
        let mut some = false;
        for number in 0..8 {
            some |= decided(&agent.api, &of_run(&format!("first-{number}"))).await.is_some_and(|(_, by)| by == version);
        }
        some
    };
    wait_for("a run that the canary decides", TIMEOUT, has_begun).await;
    for url in &stack.urls {
        // The second gateway has heard of it too.
        let agent = agent.at(url);
        let heard = async || {
            let mut some = false;
            for number in 0..8 {
                some |= decided(&agent.api, &of_run(&format!("first-{number}"))).await.unwrap().1 == version;
            }
            some
        };
        wait_for("a run that the canary decides", TIMEOUT, heard).await;
    }
    let mut by: BTreeMap<String, usize> = BTreeMap::new();
    for run in 0..60 {
        let mut versions = Vec::new();
        for url in stack.urls.iter().cycle().take(3) {
            let (verdict, version_of) = decided(&agent.api.at(url), &of_run(&format!("run-{run}"))).await.unwrap();
            assert_eq!(verdict == "DENY", version_of == version, "{verdict} by {version_of}");
            versions.push(version_of);
        }
        versions.dedup();
        assert_eq!(versions.len(), 1, "a run is decided by one policy: {versions:?}");
        *by.entry(versions.remove(0)).or_default() += 1;
    }
    // Of 60 runs at 50 percent; beyond these numbers once in some ten million.
    let canary = by[&version];
    assert!((10..=50).contains(&canary) && by[&before.1] == 60 - canary, "{by:?}");

    team.admin.post("/v1/policies/withdraw", &json!({})).await.expect(200);
    for run in 0..60 {
        until_decided_by(&agent, &of_run(&format!("run-{run}")), &before.1).await;
    }
    let started = lines_of(&team, "policy.canary_started").await;
    assert_eq!((started.len(), &started[0]["details"]["candidate"]["percent"]), (1, &json!(50)));
    assert_eq!(lines_of(&team, "policy.canary_ended").await.len(), 1);
    assert_eq!(team.admin.verify().await["ok"], true);
}

#[tokio::test]
async fn a_canary_that_differs_too_often_ends_by_itself_and_no_check_is_refused() {
    for nats in [false, true] {
        let build = Stack::build();
        let stack = if nats { build.gateways(2).evaluators(3).nats().await } else { build.dev().await };
        let team = Team::caller(&stack).await;
        let agent = team.agent().await;
        let body = in_environment("staging");
        let before = decided(&agent.api, &body).await.unwrap();
        let version = publish(&team.admin, &pack("acme", "1.0.0", "web_search")).await;
        let terms = json!({"percent": 100, "return_at": {"disagreement_percent": 10, "min_checks": 20}});
        let asked = json!({"environment": "staging", "canary": terms});
        activate(&team.admin, &version, &asked).await;
        until_decided_by(&agent, &body, &version).await;
        // Elsewhere what was active decides.
        assert_eq!(decided(&agent.api, &in_environment("production")).await.unwrap().1, before.1);
        let has_ended = async || {
            let (_, by) = decided(&agent.api, &body).await.expect("no check is refused");
            by == before.1
        };
        wait_for("the canary's end", TIMEOUT, has_ended).await;
        let listed = async || shown(&team).await.is_empty();
        wait_for("no candidate", TIMEOUT, listed).await;
        let history = team.admin.get("/v1/policies/history").await.expect(200)["items"].clone();
        let (ended, begun) = (&history[0], &history[1]);
        assert_eq!((&ended["kind"], &begun["kind"]), (&json!("canary_ended"), &json!("canary_started")));
        assert_eq!(ended["key_id"], begun["key_id"]);
        let counts = &ended["returned_for"];
        assert!(counts["disagreements"].as_u64().unwrap() > 2, "more than 10 percent of 20: {ended:#}");
        let lines = lines_of(&team, "policy.canary_ended").await;
        let not_made = lines_of(&team, "policy.not_changed").await;
        assert_eq!(lines.len() - not_made.len(), 1, "{lines:#?}");
        assert_eq!(lines[0]["environment"], "staging");
        assert_eq!(team.admin.verify().await["ok"], true);
    }
}

#[tokio::test]
async fn a_looser_canary_passes_the_gate_and_is_then_activated_as_a_whole() {
    let stack = Stack::build().evaluators(2).nats().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent().await;
    let strict = publish(&team.admin, &pack("acme", "1.0.0", "web_search")).await;
    let mild = publish(&team.admin, &pack("acme", "1.1.0", "calculator")).await;
    activate(&team.admin, &strict, &json!({})).await;
    until_decided_by(&agent, &Api::harmless(), &strict).await;
    let path = format!("/v1/policies/{mild}/activate");
    let terms = json!({"percent": 100, "return_at": {"disagreement_percent": 100}});
    team.admin.post(&path, &json!({"canary": terms})).await.assert_error(409, "conflict");
    let mut accepts = crate::policies::accepting(&team.admin, &mild).await;
    accepts["canary"] = terms;
    activate(&team.admin, &mild, &accepts).await;
    until_decided_by(&agent, &Api::harmless(), &mild).await;
    accepts.as_object_mut().unwrap().remove("canary");
    activate(&team.admin, &mild, &accepts).await;
    assert!(shown(&team).await.is_empty(), "the activation ends it");
    until_decided_by(&agent, &Api::harmless(), &mild).await;
    team.admin.post("/v1/policies/rollback", &json!({"expected": mild})).await.expect(200);
    until_decided_by(&agent, &Api::harmless(), &strict).await;
}

#[tokio::test]
async fn only_an_account_tries_policies_and_the_operator_sees_counts_alone() {
    let stack = Stack::build().dev().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent().await;
    let mut body = pack("house", "1.0.0", "web_search");
    body["all_accounts"] = json!(true);
    let version = publish(&stack.operator, &body).await;
    let path = format!("/v1/policies/{version}/shadow");
    stack.operator.post(&path, &json!({})).await.assert_error(422, "validation_failed");
    let canary = json!({"all_accounts": true, "canary": {"percent": 10}});
    stack
        .operator
        .post(&format!("/v1/policies/{version}/activate"), &canary)
        .await
        .assert_error(422, "validation_failed");
    stack.operator.post(&path, &json!({"account": team.account})).await.expect(200);
    let is_judged = async || {
        agent.api.check(&Api::harmless()).await.expect(200);
        shown(&team).await[0]["findings"]["counts"]["disagreements"].as_u64().unwrap() > 0
    };
    wait_for("a check that is judged", TIMEOUT, is_judged).await;
    let path = format!("/v1/policies/candidates?account={}", team.account);
    let seen = stack.operator.get(&path).await.expect(200)["items"][0]["findings"].clone();
    assert!(seen["counts"]["disagreements"].as_u64().unwrap() > 0 && seen["disagreements"] == json!([]), "{seen:#}");
    // Another account has none of it.
    let other = Team::caller(&stack).await;
    assert!(shown(&other).await.is_empty());
    agent.api.get("/v1/policies/candidates").await.assert_error(403, "scope_missing");
}
