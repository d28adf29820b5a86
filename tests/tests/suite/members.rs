//! Members: invited with a code that works once, in groups, removed; over HTTP and by command.

use std::time::Duration;

use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Answer, Api, MovedClock, Stack, Team};

/// Within a second at every gateway; the machine may be slow.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(10);

fn code(invited: &Value) -> &str {
    invited["invitation_code"].as_str().unwrap()
}

#[track_caller]
fn refused_fields(answer: &Answer, fields: &[&str]) {
    answer.assert_error(422, "validation_failed");
    let errors = answer.body["errors"].as_array().unwrap();
    for field in fields {
        assert!(errors.iter().any(|error| error["path"] == *field), "{field} in {}", answer.text);
    }
}

#[tokio::test]
async fn a_member_is_invited_accepts_is_listed_changed_and_removed() {
    let stack = Stack::build().dev().await;
    let team = Team::verified(&stack).await;
    let body = json!({"name": "Ada", "mail": "ada@example.com", "groups": ["release-managers"]});
    let mut with_account = body.clone();
    with_account["account"] = json!(team.account);
    let invited = stack.operator.post("/v1/members", &with_account).await.expect(201);
    assert_eq!((&invited["status"], &invited["scopes"]), (&json!("invited"), &json!(["approvals:decide"])));
    for (name, value) in body.as_object().unwrap() {
        assert_eq!(&invited[name], value, "{name}");
    }
    let ada = stack.operator.accept(code(&invited)).await;
    assert_eq!(json!(ada.id), invited["id"]);
    let listed = team.admin.get("/v1/members").await.expect(200);
    assert_eq!((&listed["items"][0]["id"], &listed["items"][0]["status"]), (&json!(ada.id), &json!("active")));
    assert!(!listed.to_string().contains("inv_"), "a code is shown once: {listed:#}");
    let keys = team.admin.get("/v1/keys").await.expect(200);
    let own = keys["items"].as_array().unwrap().iter().find(|key| key["id"] == json!(ada.key_id)).unwrap();
    assert_eq!(own["member"], json!(ada.id), "{own:#}");
    ada.api.get("/v1/approvals").await.expect(200);
    ada.api.get("/v1/members").await.assert_error(403, "scope_missing");
    ada.api.check(&Api::harmless()).await.assert_error(403, "scope_missing");

    let path = format!("/v1/members/{}", ada.id);
    let change = json!({"groups": ["on-call", "release-managers"], "mail": ""});
    let changed = team.admin.patch(&path, &change).await.expect(200);
    assert_eq!(
        (&changed["groups"], &changed["mail"], &changed["name"]),
        (&change["groups"], &json!(null), &json!("Ada"))
    );
    for _ in 0..2 {
        assert_eq!(team.admin.delete(&path).await.status, 204, "twice is no error");
    }
    assert_eq!(team.admin.get("/v1/members").await.expect(200)["items"], json!([]));
    let dead = async || ada.api.get("/v1/approvals").await.status == 401;
    wait_for("the end of the key", NOTICE_TIMEOUT, dead).await;
    team.admin.patch(&path, &json!({"name": "x"})).await.assert_error(404, "not_found");
    team.admin.post(&format!("{path}/invite"), &json!({})).await.assert_error(404, "not_found");
}

#[tokio::test]
async fn an_invitation_makes_one_key_once_and_ends_with_its_time_or_the_next_one() {
    let clock = MovedClock::ahead(0);
    let stack = Stack::build().with_clock(&clock).dev().await;
    let team = Team::verified(&stack).await;
    let invite = async |more: Value| {
        let mut body = json!({"name": "Ada", "groups": []});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        team.admin.post("/v1/members", &body).await
    };
    let invited = invite(json!({})).await.expect(201);
    let ada = team.admin.accept(code(&invited)).await;
    team.admin.try_accept(code(&invited)).await.assert_error(404, "not_found");
    // A member who lost the key is invited again: earlier codes end at once, the key once the new code is accepted.
    let path = format!("/v1/members/{}/invite", ada.id);
    let first = team.admin.post(&path, &json!({})).await.expect(201);
    let second = team.admin.post(&path, &json!({"valid_seconds": 60})).await.expect(201);
    team.admin.try_accept(code(&first)).await.assert_error(404, "not_found");
    clock.set(61);
    team.admin.try_accept(code(&second)).await.assert_error(404, "not_found");
    ada.api.get("/v1/approvals").await.expect(200);
    let third = team.admin.post(&path, &json!({})).await.expect(201);
    let again = team.admin.accept(code(&third)).await;
    assert_eq!(again.id, ada.id);
    assert_ne!(again.key_id, ada.key_id);
    again.api.get("/v1/approvals").await.expect(200);
    let dead = async || ada.api.get("/v1/approvals").await.status == 401;
    wait_for("the end of the lost key", NOTICE_TIMEOUT, dead).await;
    // The invitation of a member who was removed is nothing.
    let invited = invite(json!({})).await.expect(201);
    team.admin.delete(&format!("/v1/members/{}", invited["id"].as_str().unwrap())).await.expect(204);
    team.admin.try_accept(code(&invited)).await.assert_error(404, "not_found");
    for (more, field) in [
        (json!({"valid_seconds": 59}), "valid_seconds"),
        (json!({"valid_seconds": 86_401}), "valid_seconds"),
        (json!({"name": ""}), "name"),
        (json!({"groups": ["Release Managers"]}), "groups[0]"),
        (json!({"groups": [""]}), "groups[0]"),
        (json!({"scopes": []}), "scopes"),
        (json!({"colour": "red"}), "colour"),
    ] {
        refused_fields(&invite(more).await, &[field]);
    }
}

#[tokio::test]
async fn wrong_codes_are_not_found_and_many_of_them_are_held_back() {
    let stack = Stack::build().gateway_with(&["--failed-logins-per-minute", "5"]).dev().await;
    let team = Team::verified(&stack).await;
    let agent = team.agent().await;
    agent.api.check(&Api::harmless()).await.expect(200);
    let invited = team.admin.post("/v1/members", &json!({"name": "Ada", "groups": []})).await.expect(201);
    for bad in [json!("inv_"), json!("x"), json!(7), json!(null), json!(format!("{}x", code(&invited)))] {
        let answer = team.admin.without_key().post("/v1/invitations/accept", &json!({"code": bad})).await;
        answer.assert_error(422, "validation_failed");
        assert!(!answer.text.contains(code(&invited)), "a code is not shown again: {}", answer.text);
    }
    let wrong = |number: usize| format!("inv_{}{}", "0123456789abcdefghjkmnpqrstvwxy", number);
    let mut statuses = Vec::new();
    for number in 0..8 {
        statuses.push(team.admin.try_accept(&wrong(number)).await.status);
    }
    assert_eq!((statuses[0], statuses[7]), (404, 429), "{statuses:?}");
    let held = team.admin.try_accept(code(&invited)).await;
    held.assert_error(429, "too_many_failed_logins");
    assert!(held.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds > 0), "{}", held.text);
    // Keys that are known at the same address go on.
    agent.api.check(&Api::harmless()).await.expect(200);
}

#[tokio::test]
async fn only_members_keys_decide_and_the_scope_is_given_to_no_other_key() {
    let stack = Stack::build().dev().await;
    let team = Team::verified(&stack).await;
    let deciding = json!({"account": team.account, "name": "k", "scopes": ["check", "approvals:decide"]});
    for granter in [&stack.operator, &team.admin] {
        let mut body = deciding.clone();
        if granter.key == team.admin.key {
            body.as_object_mut().unwrap().remove("account");
        }
        let refused = granter.post("/v1/keys", &body).await;
        assert!([403, 422].contains(&refused.status), "{}", refused.text);
    }
    stack.operator.post("/v1/keys", &deciding).await.assert_error(422, "validation_failed");
    // A member's key gives none on either, whatever else it may do.
    let scopes = ["approvals:decide", "keys:manage", "members:manage", "check"];
    let boss = team.member_with(&json!({"name": "Boss", "groups": [], "scopes": scopes})).await;
    let refused = boss.api.post("/v1/keys", &json!({"name": "k", "scopes": ["approvals:decide"]})).await;
    refused.assert_error(422, "validation_failed");
    boss.api.post("/v1/keys", &json!({"name": "k", "scopes": ["check"]})).await.expect(201);
    // Somebody else's key is not rotated: the caller would see its secret.
    let ada = team.member("Ada", &[]).await;
    let rotate = format!("/v1/keys/{}/rotate", ada.key_id);
    for other in [&team.admin, &boss.api, &stack.operator] {
        let refused = other.post(&rotate, &json!({})).await;
        assert!([403, 409].contains(&refused.status), "{}", refused.text);
    }
    let refused = stack.operator.post(&rotate, &json!({})).await;
    refused.assert_error(409, "conflict");
    assert!(refused.text.contains("invite"), "it says what to do: {}", refused.text);
    ada.api.get("/v1/approvals").await.expect(200);
    let own = boss.api.post(&format!("/v1/keys/{}/rotate", boss.key_id), &json!({})).await.expect(201);
    assert_eq!(own["scopes"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn scopes_of_an_invitation_are_at_most_those_of_its_maker_and_no_member_changes_its_own_groups() {
    let stack = Stack::build().dev().await;
    let team = Team::verified(&stack).await;
    let scopes = ["approvals:decide", "members:manage"];
    let manager = team.member_with(&json!({"name": "Mia", "groups": [], "scopes": scopes})).await;
    let more = json!({"name": "x", "groups": [], "scopes": ["approvals:decide", "keys:manage"]});
    manager.api.post("/v1/members", &more).await.assert_error(403, "scope_missing");
    let operator = json!({"account": team.account, "name": "x", "groups": [], "scopes": ["operator"]});
    let refused = stack.operator.post("/v1/members", &operator).await;
    assert!([403, 422].contains(&refused.status), "{}", refused.text);
    let bob = manager.api.invite(&json!({"name": "Bob", "groups": [], "scopes": scopes})).await;
    let groups = json!({"groups": ["release-managers"]});
    let own = manager.api.patch(&format!("/v1/members/{}", manager.id), &groups).await;
    own.assert_error(409, "conflict");
    bob.api.patch(&format!("/v1/members/{}", bob.id), &groups).await.assert_error(409, "conflict");
    manager.api.patch(&format!("/v1/members/{}", bob.id), &groups).await.expect(200);
    stack.operator.patch(&format!("/v1/members/{}", manager.id), &groups).await.expect(200);
    // A name is one's own matter.
    manager.api.patch(&format!("/v1/members/{}", manager.id), &json!({"name": "Mia M."})).await.expect(200);
}

#[tokio::test]
async fn members_are_managed_by_command() {
    let stack = Stack::build().dev().await;
    let team = Team::verified(&stack).await;
    let directory = tempfile::tempdir().unwrap();
    let run = |api: &Api, arguments: &[&str]| {
        let output = api.cli(&stack.ca(), arguments);
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    };
    let json_of = |text: String| serde_json::from_str::<Value>(&text).unwrap();
    let invite = ["members", "invite", "Ada", "--mail", "ada@example.com", "--group", "on-call", "--json"];
    let invited = json_of(run(&team.admin, &invite));
    let key = directory.path().join("ada.key");
    let accept = ["members", "accept", code(&invited), "--key-file", key.to_str().unwrap()];
    let said = run(&team.admin.without_key(), &accept);
    let text = std::fs::read_to_string(&key).unwrap();
    assert!(!said.contains(text.trim()), "the key goes to the file alone: {said}");
    let ada = team.admin.with_key(text.trim());
    ada.get("/v1/approvals").await.expect(200);
    let id = invited["id"].as_str().unwrap();
    run(&team.admin, &["members", "groups", id, "--add", "release-managers"]);
    run(&team.admin, &["members", "groups", id, "--remove", "on-call"]);
    let listed = run(&team.admin, &["members", "list"]);
    for part in [id, "Ada", "release-managers"] {
        assert!(listed.contains(part), "{part} in {listed}");
    }
    assert!(!listed.contains("on-call"), "{listed}");
    run(&team.admin, &["members", "remove", id, "--yes"]);
    assert!(!run(&team.admin, &["members", "list"]).contains("Ada"));
    let dead = async || ada.get("/v1/approvals").await.status == 401;
    wait_for("the end of the key", NOTICE_TIMEOUT, dead).await;
}
