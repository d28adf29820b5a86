//! Recorded decisions that another policy decides again before it is active: what flips, what could not be replayed,
//! and the gate that counts them.

use std::time::Duration;

use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Api, Receiver, Stack, Team};

use crate::policies::{activate, decided, publish};

const TIMEOUT: Duration = Duration::from_secs(30);
const CODE: &str = "AMOUNT_ABOVE_LIMIT";
/// Stands in the texts of every request, and must never be kept.
const TEXT: &str = "quokka";

/// A pack that denies above a limit on a member of its own.
fn limit(version: &str, most: i64) -> Value {
    let manifest = format!("name = \"acme\"\nversion = \"{version}\"\nextends = \"baseline@2\"\n");
    let rules = format!(
        "@id(\"acme.limit\")\n@effect(\"deny\")\n@code(\"{CODE}\")\n@message(\"the amount is above the limit\")\n\
         @details(\"custom.amount\")\nforbid (principal, action, resource)\n\
         when {{ context.custom has amount && context.custom.amount > {most} }};\n"
    );
    let codes = format!("[{CODE}]\nmeaning = \"The amount is above the limit.\"\nremedy = \"Ask for less.\"\n");
    let case = |id: &str, amount: i64, expect: &str| {
        let mut case = json!({"id": id, "expect": [expect],
            "request": {"goal": "Look the order up", "success_criteria": ["found"], "tools": ["web_search"],
                "context": {"amount": amount}}});
        if expect == "DENY" {
            case["codes"] = json!([CODE]);
        }
        case
    };
    let cases = json!([case("above", most + 1, "DENY"), case("at", most, "ALLOW")]);
    json!({"packs": [{"files": {"pack.toml": manifest, "own.cedar": rules, "codes.toml": codes,
        "schema.cedarschema": "type Custom = { amount?: Long };\n", "cases.json": cases.to_string()}}]})
}

fn of(amount: &Value) -> Value {
    json!({"goal": format!("Look the order of the {TEXT} up"), "success_criteria": [format!("the {TEXT} is found")],
        "tools": ["web_search"], "side_effects": ["none"],
        "context": {"amount": amount, "note": format!("a {TEXT} of two words")}})
}

/// Asks until checks carry the account's new setting to evaluators.
async fn until_kept(team: &Team, api: &Api) {
    team.set(&json!({"record_facts": true})).await;
    let kept = async || {
        let id = api.decide(&of(&json!(1))).await;
        team.admin.get(&format!("/v1/decisions/{id}")).await.expect(200)["facts"].is_object()
    };
    wait_for("a decision with its facts", TIMEOUT, kept).await;
}

async fn replay(team: &Team, version: &str) -> Value {
    team.admin.get(&format!("/v1/policies/{version}/replay")).await.expect(200)
}

/// How many went from one verdict to the other.
fn changed(replay: &Value, from: &str, to: &str) -> u64 {
    let changes = replay["changes"].as_array().unwrap();
    let found = changes.iter().find(|change| change["from"] == from && change["to"] == to);
    found.map_or(0, |change| change["count"].as_u64().unwrap())
}

fn not_replayed(replay: &Value, why: &str) -> u64 {
    let all = replay["not_replayed"].as_array().unwrap();
    all.iter().find(|one| one["why"] == why).map_or(0, |one| one["count"].as_u64().unwrap())
}

#[tokio::test]
async fn a_new_limit_is_replayed_over_recorded_decisions_before_it_decides_any() {
    for nats in [false, true] {
        let build = Stack::build();
        let stack = if nats { build.gateways(2).evaluators(2).nats().await } else { build.dev().await };
        let team = Team::caller(&stack).await;
        let agent = team.agent().await;
        // Before the account wants facts, none are kept.
        agent.api.check(&of(&json!(900))).await.expect(200);
        until_kept(&team, &agent.api).await;
        for amount in [json!(100), json!(500), json!(501), json!(900), json!("900"), Value::Null] {
            assert_eq!(agent.api.check(&of(&amount)).await.expect(200)["verdict"], "ALLOW", "{amount}");
        }
        let version = publish(&team.admin, &limit("1.0.0", 500)).await;
        let replay = replay(&team, &version).await;
        assert_eq!((changed(&replay, "ALLOW", "DENY"), &replay["flips"]), (2, &json!(0)), "{replay:#}");
        assert_eq!(not_replayed(&replay, "member"), 1, "a text is not kept: {replay:#}");
        assert!(not_replayed(&replay, "not_kept") >= 1, "{replay:#}");
        let read = replay["decisions"].as_u64().unwrap();
        let missed: u64 = replay["not_replayed"].as_array().unwrap().iter().map(|o| o["count"].as_u64().unwrap()).sum();
        assert_eq!(replay["replayed"], json!(read - missed));
        let item = &replay["items"][0];
        assert_eq!((&item["from"], &item["to"], &item["code"]), (&json!("ALLOW"), &json!("DENY"), &json!(CODE)));
        assert_eq!(item["rule"], "acme.limit");
        // Nothing is active, and the account of another key has nothing of it.
        assert_eq!(agent.api.check(&of(&json!(900))).await.expect(200)["verdict"], "ALLOW");
        let other = Team::caller(&stack).await;
        other.admin.get(&format!("/v1/policies/{version}/replay")).await.assert_error(404, "not_found");
        agent.api.get(&format!("/v1/policies/{version}/replay")).await.assert_error(403, "scope_missing");
    }
}

#[tokio::test]
async fn a_policy_that_would_have_let_denied_actions_pass_is_activated_only_where_each_of_them_is_accepted() {
    let stack = Stack::build().gateways(2).evaluators(2).nats().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent().await;
    until_kept(&team, &agent.api).await;
    let strict = publish(&team.admin, &limit("1.0.0", 500)).await;
    activate(&team.admin, &strict, &json!({})).await;
    let is_strict = async || decided(&agent.api, &of(&json!(1))).await.is_some_and(|(_, by)| by == strict);
    wait_for("the limit decides", TIMEOUT, is_strict).await;
    for amount in [600, 700, 5_000] {
        assert_eq!(agent.api.check(&of(&json!(amount))).await.expect(200)["verdict"], "DENY");
    }
    let mild = publish(&team.admin, &limit("1.1.0", 1_000)).await;
    let found = replay(&team, &mild).await;
    assert_eq!((&found["flips"], changed(&found, "DENY", "ALLOW")), (&json!(2), 2), "{found:#}");
    // What was allowed goes no further: the gate reads the refused decisions alone.
    let gate = team.admin.get(&format!("/v1/policies/{mild}/replay?gate=true")).await.expect(200);
    assert_eq!((&gate["decisions"], &gate["flips"]), (&json!(3), &json!(2)), "{gate:#}");
    assert!(found["decisions"].as_u64() > gate["decisions"].as_u64());
    let of_packs = team.admin.get(&format!("/v1/policies/{mild}/diff")).await.expect(200)["flips"].as_u64().unwrap();
    let path = format!("/v1/policies/{mild}/activate");
    let accepts = json!({"accept_flips": of_packs, "reason": "the limit is raised"});
    let refused = team.admin.post(&path, &accepts).await;
    refused.assert_error(409, "conflict");
    let text = refused.body["message"].as_str().unwrap();
    assert!(text.contains("replayed_until") && text.contains(&(of_packs + 2).to_string()), "{text}");
    // What comes meanwhile changes nothing of what was looked at.
    let until = &found["until"];
    agent.api.check(&of(&json!(800))).await.expect(200);
    // A time before all of them fixes no smaller number.
    let before = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(23);
    let skips = json!({"accept_flips": of_packs, "replayed_until": before, "reason": "the limit is raised"});
    let refused = team.admin.post(&path, &skips).await;
    refused.assert_error(409, "conflict");
    assert!(refused.body["message"].as_str().unwrap().contains("since `replayed_until`"), "{}", refused.text);
    let accepts = json!({"accept_flips": of_packs + 2, "replayed_until": until, "reason": "the limit is raised"});
    let activated = activate(&team.admin, &mild, &accepts).await;
    assert_eq!((&activated["accepted_flips"], &activated["replayed"]["flips"]), (&json!(of_packs + 2), &json!(2)));
    assert_eq!(&activated["replayed"]["until"], until);
    let lines = team.admin.lines().await;
    let line = lines.iter().rfind(|line| line["type"] == "policy.activated").unwrap();
    assert_eq!(line["details"]["replayed"]["flips"], 2, "{line:#}");
    assert_eq!(team.admin.verify().await["ok"], true);
}

#[tokio::test]
async fn what_is_kept_of_a_decision_holds_no_text_and_leaves_with_no_webhook_and_no_answer() {
    let receiver = Receiver::plain().await;
    let stack = Stack::build().private_webhooks().dev().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent().await;
    team.admin.webhook(&receiver.url("/hook")).await;
    until_kept(&team, &agent.api).await;
    let answer = agent.api.check(&of(&json!(700))).await.expect(200);
    assert_eq!(answer.get("facts"), None);
    let record = team.admin.get(&format!("/v1/decisions/{}", answer["request_id"].as_str().unwrap())).await.expect(200);
    let facts = &record["facts"];
    assert_eq!((&facts["v"], &facts["members"]["amount"]), (&json!(1), &json!(700)), "{facts:#}");
    assert_eq!(facts["unkept"], json!(["note"]));
    assert!(!facts.to_string().contains(TEXT), "{facts:#}");
    let secret = json!({"goal": "Look the order up", "tools": ["web_search"],
        "context": {"note": "the key is AKIAIOSFODNN7EXAMPLE"}});
    let id = agent.api.decide(&secret).await;
    assert_eq!(team.admin.get(&format!("/v1/decisions/{id}")).await.expect(200).get("facts"), None);
    let came = async || receiver.seen("/hook").iter().filter(|one| one.kind() == "decision.recorded").count() >= 3;
    wait_for("the decisions", TIMEOUT, came).await;
    assert!(receiver.seen("/hook").iter().all(|one| !one.event().to_string().contains("read_by")));
}
