//! Who sees the text of an action, and where it is never found: in the log, webhooks, metrics, and in clear on a disk.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use stage0_tests::{Api, MovedClock, Receiver, Stack, Team, two_release_managers};

use crate::abuse::{free_port, metrics};

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
/// A word that stands in an action and nowhere else.
const CANARY: &str = "zanzibarcanaryword";
/// A secret of a known form.
const SECRET: &str = "AKIAIOSFODNN7EXAMPLE";

fn canary() -> Value {
    let mut body = Api::deployment_of(CANARY);
    body["context"]["note"] = json!(format!("for {CANARY}"));
    body
}

/// Every file below that holds these bytes.
fn holding(directory: &Path, bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(holding(&path, bytes));
        } else if let Ok(content) = std::fs::read(&path)
            && content.windows(bytes.len()).any(|part| part == bytes)
        {
            found.push(path.display().to_string());
        }
    }
    found
}

/// One whole path, with the canary in its action.
async fn use_canary(team: &Team, receiver: &Receiver) -> Value {
    let agent = team.agent().await;
    let (ada, bob) = (team.member("Ada", &["release-managers"]).await, team.member("Bob", &["release-managers"]).await);
    team.admin.webhook_with(&json!({"url": receiver.url("/in"), "events": ["decision.recorded", "approval.*"]})).await;
    let approval = agent.api.deferred(&canary()).await;
    for member in [&ada, &bob] {
        let shown = member.api.approval(&approval).await.expect(200);
        assert!(shown["action"].to_string().contains(CANARY), "{shown:#}");
        member.api.approve(&shown).await.expect(200);
    }
    assert_eq!(agent.api.verdict(&json!({"approval_id": approval["id"]})).await.0, "ALLOW");
    agent.api.report(&approval, "succeeded").await.expect(200);
    approval
}

async fn is_nowhere(team: &Team, receiver: &Receiver, metrics: &str) {
    let used = |came: &[stage0_tests::Delivery]| came.iter().any(|one| one.kind() == "approval.outcome").then_some(());
    receiver.wait_for("the last event", "/in", WAIT_TIMEOUT, used).await;
    for delivery in receiver.seen("/in") {
        let text = String::from_utf8(delivery.body).unwrap();
        assert!(!text.contains(CANARY), "{text}");
    }
    let log = team.admin.get("/v1/decisions/export").await.text;
    assert!(log.contains("approval.used"), "{log}");
    let list = team.admin.get("/v1/decisions?limit=100").await.text;
    for text in [&log, &list, metrics] {
        assert!(!text.contains(CANARY), "{text}");
    }
    // The log names people by their ids alone.
    assert!(!log.contains("Ada") && !log.contains("Bob"), "{log}");
}

#[tokio::test]
async fn the_text_of_an_action_is_in_no_log_webhook_metric_process_output_or_file() {
    let packs = two_release_managers();
    let receiver = Receiver::plain().await;
    let address = free_port();
    let build = Stack::build().policies(&packs).private_webhooks().gateway_with(&["--metrics-listen", &address]);
    let mut stack = build.dev().await;
    let team = Team::verified(&stack).await;
    use_canary(&team, &receiver).await;
    is_nowhere(&team, &receiver, &metrics(&address).await).await;
    stack.stop_dev();
    assert_eq!(holding(&stack.data(), CANARY.as_bytes()), [""; 0]);
    // The search finds what is there.
    assert_ne!(holding(&stack.data(), b"approval.used"), [""; 0]);
}

#[tokio::test]
async fn the_text_of_an_action_is_not_in_the_files_of_nats() {
    let packs = two_release_managers();
    let receiver = Receiver::plain().await;
    let mut stack = Stack::build().policies(&packs).private_webhooks().nats().await;
    let team = Team::verified(&stack).await;
    use_canary(&team, &receiver).await;
    is_nowhere(&team, &receiver, "").await;
    assert!(!stack.said().contains(CANARY));
    let agent = team.agent().await;
    agent.api.deferred(&canary()).await;
    stack.nats.as_mut().unwrap().kill();
    let files = stack.directory.path();
    assert_eq!(holding(files, CANARY.as_bytes()), [""; 0]);
    assert_ne!(holding(files, b"approval.used"), [""; 0], "the search finds what is there");
}

#[tokio::test]
async fn an_action_is_read_by_its_workload_and_by_members_who_may_decide_and_by_no_other_caller() {
    let packs = two_release_managers();
    let stack = Stack::build().policies(&packs).dev().await;
    let team = Team::verified(&stack).await;
    let (agent, other) = (team.agent().await, team.agent().await);
    let (ada, eve) = (team.member("Ada", &["release-managers"]).await, team.member("Eve", &["interns"]).await);
    let approval = agent.api.deferred(&canary()).await;
    for reader in [&agent.api, &ada.api] {
        let shown = reader.approval(&approval).await.expect(200);
        assert_eq!(shown["action"]["goal"], canary()["goal"], "{shown:#}");
    }
    // A member of another group and a key that reads decisions see that there is something, not what.
    for reader in [&eve.api, &team.admin] {
        let shown = reader.approval(&approval).await.expect(200);
        assert_eq!((&shown["action"], &shown["status"]), (&json!(null), &json!("pending")), "{shown:#}");
        assert!(!shown.to_string().contains(CANARY), "{shown:#}");
    }
    other.api.approval(&approval).await.assert_error(404, "not_found");
    stack.operator.approval(&approval).await.assert_error(403, "scope_missing");
    for (reader, count) in [(&agent.api, 1), (&ada.api, 1), (&eve.api, 1), (&team.admin, 1), (&other.api, 0)] {
        let page = reader.get("/v1/approvals").await.expect(200);
        let items = page["items"].as_array().unwrap();
        assert_eq!(items.len(), count, "{page:#}");
        assert!(items.iter().all(|item| item["action"] == json!(null)), "{page:#}");
    }
}

#[tokio::test]
async fn secrets_are_masked_in_the_action_and_in_reasons() {
    let stack = Stack::build().dev().await;
    let team = Team::verified(&stack).await;
    let (agent, ada) = (team.agent().await, team.member("Ada", &[]).await);
    let approval = agent.api.deferred(&Api::deployment_of("payments")).await;
    let denied = ada.api.deny(&approval, &format!("it uses {SECRET}")).await.expect(200);
    assert!(!denied.to_string().contains(SECRET), "{denied:#}");
    assert!(denied["votes"][0]["reason"].as_str().unwrap().contains("[redacted]"), "{denied:#}");
    let history = ada.api.get(&format!("/v1/approvals/{}/history", approval["id"].as_str().unwrap())).await;
    let log = team.admin.get("/v1/decisions/export").await;
    for text in [&history.text, &log.text] {
        assert!(text.contains("[redacted]") && !text.contains(SECRET), "{text}");
    }
}

#[tokio::test]
async fn the_text_of_an_action_is_deleted_a_day_after_the_end_and_the_rest_is_kept() {
    let clock = MovedClock::ahead(0);
    let stack = Stack::build().with_clock(&clock).dev().await;
    let team = Team::verified(&stack).await;
    let (agent, ada) = (team.agent().await, team.member("Ada", &[]).await);
    let approval = agent.api.deferred(&canary()).await;
    ada.api.deny(&approval, "no").await.expect(200);
    assert!(ada.api.approval(&approval).await.expect(200)["action"].is_object(), "while it may be asked about");
    clock.creep(25 * 3_600, &ada.api).await;
    let shown = ada.api.approval(&approval).await.expect(200);
    assert_eq!((&shown["status"], &shown["action"]), (&json!("denied"), &json!(null)), "{shown:#}");
    assert_eq!(ada.api.history(&approval).await, ["approval.requested", "approval.denied"]);
}

#[tokio::test]
async fn of_another_accounts_approvals_nothing_is_seen_or_done() {
    let stack = Stack::build().dev().await;
    let (ours, theirs) = (Team::verified(&stack).await, Team::verified(&stack).await);
    let (agent, ada) = (ours.agent().await, ours.member("Ada", &[]).await);
    let approval = agent.api.deferred(&canary()).await;
    let grant = json!({"key_id": agent.key_id, "tool": "argo_cd", "reason": "x",
        "until": (jiff::Timestamp::now() + Duration::from_secs(600)).to_string()});
    let made = ada.api.post("/v1/grants", &grant).await.expect(201);
    let grant_path = format!("/v1/grants/{}", made["id"].as_str().unwrap());
    let stop = ours.admin.stop(&json!({"scope": "tool", "value": "psql", "reason": "x"})).await;
    let (stranger, spy) = (theirs.member("Mal", &["release-managers"]).await, theirs.agent().await);

    for reader in [&stranger.api, &spy.api, &theirs.admin] {
        reader.approval(&approval).await.assert_error(404, "not_found");
        reader.wait(&approval, "1s").await.assert_error(404, "not_found");
        let history = format!("/v1/approvals/{}/history", approval["id"].as_str().unwrap());
        reader.get(&history).await.assert_error(404, "not_found");
        reader.cancel(&approval).await.assert_error(404, "not_found");
        assert_eq!(reader.get("/v1/approvals").await.expect(200)["items"], json!([]));
        assert_eq!(reader.get("/v1/grants").await.expect(200)["items"], json!([]));
    }
    stranger.api.approve(&approval).await.assert_error(404, "not_found");
    stranger.api.deny(&approval, "x").await.assert_error(404, "not_found");
    stranger.api.reopen(&approval, "x").await.assert_error(404, "not_found");
    spy.api.report(&approval, "failed").await.assert_error(404, "not_found");
    spy.api.check(&json!({"approval_id": approval["id"]})).await.assert_error(404, "not_found");
    for verb in ["approve", "revoke"] {
        let answer = stranger.api.post(&format!("{grant_path}/{verb}"), &json!({"reason": "x"})).await;
        answer.assert_error(404, "not_found");
    }
    stranger.api.post("/v1/grants", &grant).await.assert_error(404, "not_found");
    assert_eq!(theirs.admin.get("/v1/stops").await.expect(200)["items"], json!([]));
    let keeper = theirs.member_with(&json!({"name": "S", "groups": [], "scopes": ["stops:manage"]})).await;
    keeper.api.resume(&stop, "x").await.assert_error(404, "not_found");
    let member_path = format!("/v1/members/{}", ada.id);
    theirs.admin.patch(&member_path, &json!({"groups": ["x"]})).await.assert_error(404, "not_found");
    theirs.admin.delete(&member_path).await.assert_error(404, "not_found");
    theirs.admin.post(&format!("{member_path}/invite"), &json!({})).await.assert_error(404, "not_found");
    // Without the right to delegate in another's place, every id is refused alike.
    for id in [ada.id.as_str(), "mem_unknown"] {
        let answer = theirs.admin.post(&format!("/v1/members/{id}/delegate"), &json!({})).await;
        answer.assert_error(403, "scope_missing");
    }
    theirs.admin.get(&format!("/v1/members?account={}", ours.account)).await.assert_error(404, "not_found");
    let key = json!({"name": "k", "scopes": ["check"], "owner": ada.id});
    assert!([404, 422].contains(&theirs.admin.post("/v1/keys", &key).await.status));
    // Nothing was changed by it, and those whose it is go on.
    ada.api.approve(&approval).await.expect(200);
    assert_eq!(agent.api.verdict(&json!({"approval_id": approval["id"]})).await.0, "ALLOW");
}
