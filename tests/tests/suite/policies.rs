//! Policies that are published and activated on a running product: within a second everywhere, for one account or one
//! environment, with a floor that none can weaken, and the same after a restart.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Api, Stack, Team};

/// What the product promises.
const ACTIVATION_TIMEOUT: Duration = Duration::from_secs(1);
/// Beside other tests a pack may wait long for its turn.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(30);
const CODE: &str = "TOOL_IS_FORBIDDEN";

/// A pack that extends the baseline and forbids one tool.
fn pack(name: &str, version: &str, tool: &str) -> Value {
    let manifest = format!("name = \"{name}\"\nversion = \"{version}\"\nextends = \"baseline@2\"\n");
    let rules = format!(
        "@id(\"{name}.tool\")\n@effect(\"deny\")\n@code(\"{CODE}\")\n@message(\"this tool is not used here\")\n\
         @details(\"tools\")\nforbid (principal, action, resource)\nwhen {{ context.tools.contains(\"{tool}\") }};\n"
    );
    let codes = format!("[{CODE}]\nmeaning = \"The tool is not used here.\"\nremedy = \"Use another one.\"\n");
    let cases = json!([{"id": "tool", "expect": ["DENY"], "codes": [CODE],
        "request": {"goal": "Carry out the step that was planned", "tools": [tool]}}]);
    json!({"packs": [{"files": {"pack.toml": manifest, "own.cedar": rules, "codes.toml": codes,
        "cases.json": cases.to_string()}}]})
}

async fn publish(api: &Api, pack: &Value) -> String {
    let published = api.post("/v1/policies", pack).await.expect(201);
    published["version"].as_str().unwrap().to_owned()
}

async fn activate(api: &Api, version: &str, body: &Value) -> Value {
    api.post(&format!("/v1/policies/{version}/activate"), body).await.expect(200)
}

fn harmless_in(environment: &str) -> Value {
    let mut body = Api::harmless();
    body["environment"] = json!(environment);
    body
}

/// The verdict and the version that decided; none where there was no answer.
async fn decided(api: &Api, body: &Value) -> Option<(String, String)> {
    // A connection from before a restart breaks.
    let sent = [("content-type", "application/json")];
    let answer =
        api.try_send(reqwest::Method::POST, "/check", &sent, Some(body.to_string().into_bytes())).await.ok()?;
    let text = |name: &str| answer.body[name].as_str().map(str::to_owned);
    if answer.status == 200 { text("verdict").zip(text("policy_version")) } else { None }
}

async fn until_decided_by(api: &Api, body: &Value, version: &str, verdict: &str, timeout: Duration) {
    let wanted = (verdict.to_owned(), version.to_owned());
    wait_for(&format!("{wanted:?}"), timeout, async || decided(api, body).await.as_ref() == Some(&wanted)).await;
}

#[tokio::test]
async fn an_activation_decides_at_every_gateway_within_a_second_and_so_does_its_rollback() {
    let stack = Stack::build().gateways(2).evaluators(2).nats().await;
    let team = Team::caller(&stack).await;
    let (agent, body) = (team.agent().await, Api::harmless());
    let before = decided(&agent.api, &body).await.unwrap();
    assert_eq!(before.0, "ALLOW");
    let first = publish(&team.admin, &pack("acme", "1.0.0", "web_search")).await;
    assert_eq!(publish(&team.admin, &pack("acme", "1.0.0", "web_search")).await, first, "which is no change");
    team.admin.post("/v1/policies", &pack("acme", "1.0.0", "calculator")).await.assert_error(409, "conflict");
    assert_eq!(decided(&agent.api, &body).await.as_ref(), Some(&before), "publishing activates nothing");
    let shown = async || team.admin.get(&format!("/v1/policies/{first}")).await.expect(200);
    let everywhere = async || {
        let evaluators = shown().await["evaluators"].as_array().unwrap().clone();
        evaluators.len() == 2 && evaluators.iter().all(|evaluator| evaluator["loaded"] == true)
    };
    wait_for("every evaluator has it", RECOVERY_TIMEOUT, everywhere).await;

    activate(&team.admin, &first, &json!({"reason": "no searches"})).await;
    for url in &stack.urls {
        until_decided_by(&agent.api.at(url), &body, &first, "DENY", ACTIVATION_TIMEOUT).await;
    }
    // Another account is decided as before.
    assert_eq!(decided(&stack.api, &body).await.as_ref(), Some(&before));
    let asks = json!({"expected": before.1});
    team.admin.post("/v1/policies/rollback", &asks).await.assert_error(409, "conflict");
    team.admin.post("/v1/policies/rollback", &json!({"expected": first, "reason": "too much"})).await.expect(200);
    for url in &stack.urls {
        until_decided_by(&agent.api.at(url), &body, &before.1, "ALLOW", ACTIVATION_TIMEOUT).await;
    }
    team.admin.post("/v1/policies/rollback", &json!({})).await.assert_error(409, "conflict");

    let history = team.admin.get("/v1/policies/history").await.expect(200)["items"].clone();
    let kinds: Vec<_> = history.as_array().unwrap().iter().map(|change| change["kind"].clone()).collect();
    assert_eq!(kinds, ["rolled_back", "activated"]);
    let lines = team.admin.lines().await;
    let of = |kind: &str| lines.iter().filter(|line| line["type"] == kind).cloned().collect::<Vec<_>>();
    let (activated, rolled_back) = (of("policy.activated"), of("policy.rolled_back"));
    assert_eq!((of("policy.published").len(), activated.len(), rolled_back.len()), (2, 1, 1));
    assert_eq!((&activated[0]["policy_version"], &activated[0]["reason"]), (&json!(first), &json!("no searches")));
    assert_eq!(rolled_back[0]["details"]["from"], json!(first));
    assert_eq!(team.admin.verify().await["ok"], true);
}

#[tokio::test]
async fn an_environment_has_its_own_policy_by_all_of_its_names_and_a_restart_changes_nothing() {
    let mut stack = Stack::build().dev().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent().await;
    let version = publish(&team.admin, &pack("acme", "1.0.0", "web_search")).await;
    activate(&team.admin, &version, &json!({"environment": "production"})).await;
    until_decided_by(&agent.api, &harmless_in("prod"), &version, "DENY", ACTIVATION_TIMEOUT).await;
    for restarted in [false, true] {
        if restarted {
            stack.restart_dev();
        }
        for name in ["production", "PRD", "live"] {
            until_decided_by(&agent.api, &harmless_in(name), &version, "DENY", RECOVERY_TIMEOUT).await;
        }
        for other in [harmless_in("staging"), Api::harmless()] {
            assert_eq!(decided(&agent.api, &other).await.unwrap().0, "ALLOW", "{other}");
        }
    }
    let active = team.admin.get("/v1/policies/active").await.expect(200);
    assert_eq!(active["own"], json!({"environments": {"production": version}}));
    team.admin.delete(&format!("/v1/policies/{version}")).await.assert_error(409, "conflict");
}

#[tokio::test]
async fn no_pack_of_an_account_weakens_the_operators_floor() {
    let stack = Stack::build().dev().await;
    let team = Team::caller(&stack).await;
    let (agent, body) = (team.agent().await, Api::harmless());
    let floor = publish(&stack.operator, &pack("house", "1.0.0", "web_search")).await;
    let own = publish(&team.admin, &pack("acme", "1.0.0", "calculator")).await;
    team.admin
        .post(&format!("/v1/policies/{floor}/activate"), &json!({"floor": true}))
        .await
        .assert_error(403, "scope_missing");
    activate(&stack.operator, &floor, &json!({"floor": true})).await;
    activate(&team.admin, &own, &json!({})).await;
    until_decided_by(&agent.api, &body, &own, "DENY", ACTIVATION_TIMEOUT).await;
    let answer = agent.api.check(&body).await.expect(200);
    assert_eq!(answer["floor_version"], json!(floor));
    let issue = answer["issues"].as_array().unwrap().iter().find(|issue| issue["code"] == CODE).unwrap();
    assert_eq!(issue["details"]["policy"], json!(floor), "{issue:#}");
    // What neither forbids is allowed, and what the account forbids is denied.
    let with = |tool: &str| {
        let mut body = Api::harmless();
        body["tools"] = json!([tool]);
        body["success_criteria"] = json!(["found"]);
        body
    };
    assert_eq!(decided(&agent.api, &with("read_file")).await.unwrap().0, "ALLOW");
    assert_eq!(decided(&agent.api, &with("calculator")).await.unwrap().0, "DENY");
    stack.operator.post("/v1/policies/rollback", &json!({"floor": true})).await.expect(200);
    until_decided_by(&agent.api, &body, &own, "ALLOW", ACTIVATION_TIMEOUT).await;
}

#[tokio::test]
async fn a_pack_with_a_fault_changes_nothing_and_is_a_422_with_file_and_line() {
    let stack = Stack::build().dev().await;
    let team = Team::caller(&stack).await;
    let mut broken = pack("acme", "1.0.0", "web_search");
    let rules = broken["packs"][0]["files"]["own.cedar"].as_str().unwrap().replace("context.tools", "context.toolz");
    broken["packs"][0]["files"]["own.cedar"] = json!(rules);
    let refused = team.admin.post("/v1/policies", &broken).await;
    refused.assert_error(422, "validation_failed");
    let errors = refused.body["errors"].as_array().unwrap();
    assert!(errors.iter().any(|error| error["path"].as_str().unwrap().starts_with("own.cedar:")), "{errors:#?}");
    let mut uncovered = pack("acme", "1.0.0", "web_search");
    uncovered["packs"][0]["files"]["cases.json"] = json!("[]");
    team.admin.post("/v1/policies", &uncovered).await.assert_error(422, "validation_failed");
    let mut hostile = pack("acme", "1.0.0", "web_search");
    hostile["packs"][0]["files"]["../../etc/passwd"] = json!("x");
    team.admin.post("/v1/policies", &hostile).await.assert_error(422, "validation_failed");
    let listed = team.admin.get("/v1/policies").await.expect(200);
    assert_eq!(listed["items"], json!([]));
    assert!(team.admin.lines().await.is_empty());
}

#[tokio::test]
async fn policies_of_one_account_are_unknown_to_another() {
    let stack = Stack::build().dev().await;
    let (team, other) = (Team::caller(&stack).await, Team::caller(&stack).await);
    let version = publish(&team.admin, &pack("acme", "1.0.0", "web_search")).await;
    other.admin.get(&format!("/v1/policies/{version}")).await.assert_error(404, "not_found");
    let path = format!("/v1/policies/{version}/activate");
    other.admin.post(&path, &json!({})).await.assert_error(404, "not_found");
    other.admin.post(&path, &json!({"account": team.account})).await.assert_error(404, "not_found");
    other.admin.delete(&format!("/v1/policies/{version}")).await.assert_error(404, "not_found");
    assert_eq!(other.admin.get("/v1/policies").await.expect(200)["items"], json!([]));
    let shared = publish(&stack.operator, &pack("house", "1.0.0", "calculator")).await;
    activate(&other.admin, &shared, &json!({})).await;
    let agent = other.agent().await;
    until_decided_by(&agent.api, &Api::harmless(), &shared, "ALLOW", ACTIVATION_TIMEOUT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_check_under_load_is_decided_by_a_version_that_was_active_and_none_by_an_old_one_a_second_later() {
    let stack = Stack::build().gateways(2).evaluators(3).nats().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent().await;
    let versions = [
        publish(&team.admin, &pack("acme", "1.0.0", "web_search")).await,
        publish(&team.admin, &pack("acme", "1.1.0", "calculator")).await,
    ];
    activate(&team.admin, &versions[0], &json!({})).await;
    for url in &stack.urls {
        until_decided_by(&agent.api.at(url), &Api::harmless(), &versions[0], "DENY", RECOVERY_TIMEOUT).await;
    }
    let ends = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..6)
        .map(|number| {
            let (api, ends) = (agent.api.at(&stack.urls[number % stack.urls.len()]), Arc::clone(&ends));
            tokio::spawn(async move {
                let mut answers = Vec::new();
                while !ends.load(Ordering::SeqCst) {
                    let began = Instant::now();
                    answers.push((began, decided(&api, &Api::harmless()).await));
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                answers
            })
        })
        .collect();
    let mut changes = Vec::new();
    for round in 1..=6 {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let version = &versions[round % 2];
        activate(&team.admin, version, &json!({})).await;
        changes.push((Instant::now(), version.clone()));
    }
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    ends.store(true, Ordering::SeqCst);
    let (mut all, mut refused) = (0, 0);
    for caller in callers {
        for (began, answer) in caller.await.unwrap() {
            all += 1;
            let Some((verdict, version)) = answer else {
                refused += 1;
                continue;
            };
            // A rule of one version never decides under the name of the other.
            assert_eq!(verdict, if version == versions[0] { "DENY" } else { "ALLOW" }, "{version}");
            let before = changes.iter().rev().find(|(at, _)| *at + ACTIVATION_TIMEOUT <= began);
            let since: BTreeSet<&String> =
                changes.iter().filter(|(at, _)| *at + ACTIVATION_TIMEOUT > began).map(|(_, version)| version).collect();
            if let Some((_, active)) = before {
                assert!(version == *active || since.contains(&version), "decided by {version}, {active} is active");
            }
        }
    }
    assert!(all > 500, "there was load: {all}");
    // Those in flight at a change, at most one of each caller.
    assert!(refused <= 6 * changes.len(), "{refused} of {all}");
    assert_eq!(team.admin.verify().await["ok"], true);
}
