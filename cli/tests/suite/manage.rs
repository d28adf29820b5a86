//! `stage0 keys` and `stage0 accounts` against a running server.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::harness::{Dev, ended};
use crate::impostor::{Impostor, answer};

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_key_works_until_it_is_revoked() {
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
    assert!(again.err.contains("cannot create `"), "{}", again.err);
    let listed = json_of(&dev.ask(&["keys", "list", "--json"]).out);
    assert_eq!(listed["items"].as_array().unwrap().len(), 2, "no key was made without a place");

    let rotated = dev.ask(&["keys", "rotate", &id, "--overlap", "60", "--json"]);
    assert!(rotated.err.contains(&format!("The old key {id} works until ")), "{}", rotated.err);
    let rotated = json_of(&rotated.out);
    assert_ne!(rotated["id"], id.as_str());
    assert_eq!(dev.check(&action, &["--key-file", path]).code, 0, "the old key lives on for the overlap");

    let replaced = rotated["id"].as_str().unwrap();
    let dead = dev.ask(&["keys", "rotate", replaced]);
    assert_eq!(dead.code, 0, "{}", dead.err);
    assert!(dead.out.contains(&format!("The old key {replaced} no longer works")), "{}", dead.out);
    let third = dead.out.lines().find_map(|line| line.strip_prefix("id ")).unwrap().trim().to_owned();
    let filed = dir.path().join("third.key");
    let silent = dev.ask(&["keys", "rotate", &third, "--out", filed.to_str().unwrap()]);
    assert!(
        silent.err.contains(&format!("{third} no longer works")) && silent.out.lines().count() == 1,
        "{}",
        silent.err
    );

    let revoked = json_of(&dev.ask(&["keys", "revoke", &id, "--json"]).out);
    assert_eq!(revoked, json!({"id": id, "revoked": true}));
    assert_eq!(dev.check(&action, &["--key-file", path]).code, 3);
    let table = dev.ask(&["keys", "list"]).out;
    let row = table.lines().find(|line| line.starts_with(&id)).unwrap();
    let cells: Vec<&str> = row.split("  ").filter(|cell| !cell.is_empty()).collect();
    assert!(cells[5].trim().starts_with("20"), "it shows when it was revoked: {row}");
}

/// Members that other versions of the server send.
#[test]
fn a_list_of_keys_shows_the_last_use_and_its_json_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let key = |id: &str, more: Value| {
        let mut key = json!({"id": id, "prefix": "s0_", "name": "ci", "scopes": ["check"],
            "created_at": "2026-11-01T00:00:00Z", "expires_at": null, "revoked_at": null});
        key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        key
    };
    let used = key("0w3ge1r70w3ge1r7", json!({"last_used_at": "2026-11-26T13:00:00Z", "news": 1}));
    let unused = key("144gj289144gj289", json!({}));
    let page = answer(&json!({"items": [used, unused], "next_cursor": null}).to_string());
    let server = Impostor::start(&dev, vec![page]);
    let list = |more: &[&str]| ended(server.client(&["keys", "list"]).args(more));
    let table = list(&[]);
    assert_eq!(table.code, 0, "{}", table.err);
    let lines: Vec<&str> = table.out.lines().collect();
    assert!(lines[0].ends_with("  LAST USED") && lines[1].ends_with("  2026-11-26T13h"), "{}", table.out);
    assert!(lines[2].ends_with("  -"), "{}", table.out);
    assert_eq!(json_of(&list(&["--json"]).out)["items"][0]["news"], 1);
}

#[test]
fn an_operator_creates_the_first_key_of_an_account() {
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
        row.split_whitespace().nth(5).unwrap().to_owned()
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
fn a_refusal_quotes_the_server() {
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
