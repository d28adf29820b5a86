//! `stage0 keys` and `stage0 accounts` against a running server.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::harness::Dev;

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_key_lives_from_its_making_to_its_revocation() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let action =
        json!({"goal": "Read the weekly sales report", "success_criteria": ["a summary"], "tools": ["read_file"]});
    let file = dir.path().join("ci.key");
    let path = file.to_str().unwrap();

    let made = dev.ask(&["keys", "create", "--name", "ci", "--scope", "check", "--out", path]);
    assert_eq!(made.code, 0, "{}", made.err);
    let id = made.out.trim().to_owned();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(dev.check(&action, &["--key-file", path]).code, 0);

    let again = dev.ask(&["keys", "create", "--name", "ci", "--scope", "check", "--out", path]);
    assert_eq!(again.code, 1);
    assert!(again.err.contains("cannot make `"), "{}", again.err);
    let listed = json_of(&dev.ask(&["keys", "list", "--json"]).out);
    assert_eq!(listed["items"].as_array().unwrap().len(), 2, "no key was made without a place");

    let rotated = json_of(&dev.ask(&["keys", "rotate", &id, "--overlap", "60", "--json"]).out);
    assert_ne!(rotated["id"], id.as_str());
    assert_eq!(dev.check(&action, &["--key-file", path]).code, 0, "the old key lives on for the overlap");

    assert_eq!(dev.ask(&["keys", "revoke", &id]).code, 0);
    assert_eq!(dev.check(&action, &["--key-file", path]).code, 3);
    let table = dev.ask(&["keys", "list"]).out;
    let row = table.lines().find(|line| line.starts_with(&id)).unwrap();
    assert!(!row.ends_with('-'), "it shows when it was revoked: {row}");
}

#[test]
fn an_operator_gives_another_account_its_first_key() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let account = json_of(&dev.ask(&["accounts", "create", "--name", "Payments", "--plan", "free", "--json"]).out);
    let id = account["id"].as_str().unwrap();
    assert_eq!((&account["name"], &account["plan"]), (&json!("Payments"), &json!("free")));
    let made =
        dev.ask(&["keys", "create", "--name", "first", "--scope", "check", "--scope", "keys:manage", "--account", id]);
    assert_eq!(made.code, 0, "{}", made.err);
    assert!(made.out.contains(&format!("account  {id}")) && made.out.contains("shown this once"), "{}", made.out);
    assert!(dev.ask(&["accounts", "list"]).out.contains("Payments"));
    let retention = || {
        let table = dev.ask(&["accounts", "list"]).out;
        let row = table.lines().find(|line| line.starts_with(id)).unwrap().to_owned();
        row.split_whitespace().nth(3).unwrap().to_owned()
    };
    assert_eq!(retention(), "30d");
    let set = dev.ask(&["accounts", "set-retention", id, "--days", "90"]);
    assert_eq!((set.code, set.out), (0, format!("account    {id}\nretention  90 days\n")));
    assert_eq!(retention(), "90d");
    let set = dev.ask(&["accounts", "set-retention", id, "--plan-default"]);
    assert!(set.code == 0 && set.out.ends_with("retention  30 days, as its plan says\n"), "{}{}", set.out, set.err);
    assert_eq!(retention(), "30d");
    let keys = json_of(&dev.ask(&["keys", "list", "--account", id, "--json"]).out);
    assert_eq!(keys["items"][0]["scopes"], json!(["check", "keys:manage"]));
}

#[test]
fn a_refusal_is_told_in_the_servers_words() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let unknown = dev.ask(&["keys", "revoke", "nobody"]);
    assert_eq!((unknown.code, unknown.out.as_str()), (1, ""));
    assert!(unknown.err.contains("the server answers 404") && unknown.err.contains("(request "), "{}", unknown.err);
    let late = dev.ask(&["keys", "create", "--name", "x", "--scope", "check", "--expires-at", "2001-01-01T00:00:00Z"]);
    assert!(late.code == 1 && late.err.contains("expires_at"), "{}", late.err);
    let api_key = dir.path().join("api.key");
    let account = dev.ask(&["accounts", "list", "--key-file", api_key.to_str().unwrap()]);
    assert!(account.code == 1 && account.err.contains("the server answers 403"), "{}", account.err);
    let out = dir.path().join("never.key");
    let refused = dev.ask(&["keys", "create", "--name", " ", "--scope", "check", "--out", out.to_str().unwrap()]);
    assert_eq!(refused.code, 1);
    assert!(!out.exists(), "no empty file is left");
}
