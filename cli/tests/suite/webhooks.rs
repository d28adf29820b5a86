//! `stage0 webhooks` against a running server and a real receiver.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::harness::{Dev, Ended, run, wait_for};
use crate::receiver::Receiver;

fn json_of(ended: &Ended) -> Value {
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    serde_json::from_str(&ended.out).unwrap()
}

fn start(dir: &std::path::Path) -> Dev {
    Dev::start_with(dir, &["--dangerous-allow-private-webhooks"])
}

fn denied() -> Value {
    json!({"goal": "Deploy the hotfix to production", "success_criteria": ["it runs"], "side_effects": ["deploy"],
        "context": {}})
}

fn create(dev: &Dev, url: &str, more: &[&str]) -> String {
    let made = json_of(&dev.ask(&[&["webhooks", "create", "--endpoint", url, "--json"], more].concat()));
    assert!(made["secret"].as_str().unwrap().starts_with("whsec_"));
    made["id"].as_str().unwrap().to_owned()
}

#[test]
fn an_endpoint_is_created_changed_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let dev = start(dir.path());
    let made = dev.ask(&[
        "webhooks",
        "create",
        "--endpoint",
        "https://a.example.com/x",
        "--description",
        "first",
        "--rate-limit",
        "7",
    ]);
    assert_eq!(made.code, 0, "{}", made.err);
    assert!(made.out.starts_with("secret        whsec_") && made.out.contains("shown this once"), "{}", made.out);
    let id = made.out.lines().find_map(|line| line.strip_prefix("id ")).unwrap().trim().to_owned();

    let table = dev.ask(&["webhooks", "list"]).out;
    let row = table.lines().find(|line| line.starts_with(&id)).unwrap();
    assert!(row.contains(" all ") && row.contains(" 7 ") && row.ends_with("https://a.example.com/x"), "{row}");
    assert!(!table.contains("whsec_"));

    let update = ["webhooks", "update", &id, "--verdict", "deny", "--verdict", "DEFER", "--environment", "production"];
    let updated = dev.ask(&[&update[..], &["--endpoint", "https://b.example.com", "--rate-limit", "0"]].concat());
    assert_eq!(updated.code, 0, "{}", updated.err);
    let shown = json_of(&dev.ask(&["webhooks", "show", &id, "--json"]));
    assert_eq!((&shown["verdicts"], &shown["environments"]), (&json!(["DENY", "DEFER"]), &json!(["production"])));
    assert_eq!((&shown["description"], &shown["rate_limit"]), (&json!("first"), &Value::Null));
    assert_eq!(dev.ask(&["webhooks", "update", &id, "--all-verdicts", "--description", ""]).code, 0);
    let shown = dev.ask(&["webhooks", "show", &id]).out;
    assert!(shown.contains("verdicts      all\nenvironments  production\n"), "{shown}");
    assert_eq!(dev.ask(&["webhooks", "update", &id, "--all-environments"]).code, 0);
    assert!(dev.ask(&["webhooks", "disable", &id]).out.contains("state         disabled\n"));
    assert!(dev.ask(&["webhooks", "enable", &id]).out.contains("state         enabled\n"));

    let file = dir.path().join("hook.secret");
    let rotated = dev.ask(&["webhooks", "rotate-secret", &id, "--overlap", "60", "--out", file.to_str().unwrap()]);
    assert_eq!((rotated.code, rotated.out.trim()), (0, id.as_str()), "{}", rotated.err);
    assert!(std::fs::read_to_string(&file).unwrap().starts_with("whsec_"));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let again = dev.ask(&["webhooks", "rotate-secret", &id, "--out", file.to_str().unwrap()]);
    assert!(again.code == 1 && again.err.contains("cannot create `"), "{}", again.err);

    let deleted = dev.ask(&["webhooks", "delete", &id]);
    assert_eq!((deleted.code, deleted.out), (0, format!("deleted {id}\n")));
    let gone = dev.ask(&["webhooks", "show", &id]);
    assert!(gone.code == 1 && gone.err.contains("404"), "{}", gone.err);
    assert_eq!(json_of(&dev.ask(&["webhooks", "list", "--json"]))["items"], json!([]));
}

#[test]
fn decisions_are_delivered_and_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let dev = start(dir.path());
    let receiver = Receiver::start();
    let id = create(&dev, &receiver.url("/hook"), &["--verdict", "DENY"]);
    let tested = dev.ask(&["webhooks", "test", &id]);
    assert_eq!(tested.code, 0, "{}{}", tested.out, tested.err);
    assert!(tested.out.starts_with("delivered  yes\nstatus     204\nerror      -\n"), "{}", tested.out);
    let event = receiver.next();
    assert_eq!((event.path.as_str(), &event.body["type"]), ("/hook", &json!("webhook.test")));

    assert_eq!(dev.check(&denied(), &[]).code, 1);
    let event = receiver.next();
    assert_eq!((&event.body["type"], &event.body["data"]["verdict"]), (&json!("decision.recorded"), &json!("DENY")));
    wait_for("the delivery's record", || {
        let table = dev.ask(&["webhooks", "deliveries", &id]).out;
        assert!(table.starts_with("SEQUENCE ") && table.lines().next().unwrap().ends_with(" ERROR"), "{table}");
        table.lines().any(|line| line.contains(" delivered ") && line.contains(" 204 "))
    });
    let deliveries = json_of(&dev.ask(&["webhooks", "deliveries", &id, "--json"]));
    let delivered = deliveries["items"].as_array().unwrap().iter().find(|item| item["state"] == "delivered").unwrap();
    assert_eq!(delivered["attempts"], 1, "{deliveries}");

    let replayed = dev.ask(&["webhooks", "replay", &id, "--from", "-1h", "--to", "-0s"]);
    assert_eq!(replayed.code, 0, "{}", replayed.err);
    let again = receiver.next();
    assert_eq!(again.body["data"]["request_id"], event.body["data"]["request_id"]);
}

#[test]
fn a_failed_test_delivery_is_exit_code_1() {
    let dir = tempfile::tempdir().unwrap();
    let dev = start(dir.path());
    let receiver = Receiver::start();
    let id = create(&dev, &receiver.url("/"), &[]);
    receiver.answer(500);
    let tested = dev.ask(&["webhooks", "test", &id]);
    assert_eq!((tested.code, tested.err.as_str()), (1, ""), "{}", tested.out);
    assert!(tested.out.starts_with("delivered  no\nstatus     500\n"), "{}", tested.out);
    receiver.next();
    dev.check(&denied(), &[]);
    receiver.next();
    wait_for("the failed attempt's record", || {
        dev.ask(&["webhooks", "deliveries", &id])
            .out
            .lines()
            .any(|line| line.contains(" waiting ") && line.contains(" 500 "))
    });
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let id = create(&dev, &format!("http://{nobody}/"), &[]);
    let tested = dev.ask(&["webhooks", "test", &id]);
    assert!(tested.code == 1 && tested.out.contains("status     -\n"), "{}{}", tested.out, tested.err);
    assert!(!tested.out.contains("error      -\n"), "it says why: {}", tested.out);
}

#[test]
fn an_operator_acts_in_another_account() {
    let dir = tempfile::tempdir().unwrap();
    let dev = start(dir.path());
    let account = json_of(&dev.ask(&["accounts", "create", "--name", "Payments", "--json"]));
    let account = account["id"].as_str().unwrap();
    let operator = dir.path().join("operator.key");
    let operator = ["--key-file", operator.to_str().unwrap()];
    let id = create(&dev, "https://a.example.com", &[&["--account", account], &operator[..]].concat());
    let list = ["webhooks", "list", "--account", account];
    assert!(dev.ask(&[&list[..], &operator].concat()).out.contains(&id));
    assert_eq!(dev.ask(&[&["webhooks", "delete", &id], &operator[..]].concat()).code, 0);
    let foreign = dev.ask(&["webhooks", "create", "--endpoint", "https://a.example.com", "--account", account]);
    assert_eq!((foreign.code, foreign.out.as_str()), (1, ""), "{}", foreign.err);
    assert!(foreign.err.contains("the server answers 40"), "{}", foreign.err);
}

#[test]
fn a_refused_endpoint_leaves_no_file_and_wrong_arguments_are_exit_code_64() {
    let dir = tempfile::tempdir().unwrap();
    let dev = start(dir.path());
    let file = dir.path().join("never.secret");
    let refused = dev.ask(&["webhooks", "create", "--endpoint", "ftp://x", "--out", file.to_str().unwrap()]);
    assert!(refused.code == 1 && refused.err.contains("url"), "{}", refused.err);
    assert!(!file.exists() && !dir.path().join("never.secret.part").exists());
    for (wrong, flag) in [
        (&["create"][..], "--endpoint"),
        (&["create", "--endpoint", "https://x", "--verdict", "MAYBE"], "--verdict"),
        (&["update", "x"], "--endpoint"),
        (&["update", "x", "--verdict", "DENY", "--all-verdicts"], "--all-verdicts"),
        (&["replay", "x", "--from", "-1h"], "--to"),
        (&["show", "a b"], "<ID>"),
    ] {
        let ended = run(&[&["webhooks"], wrong].concat());
        assert_eq!((ended.code, ended.out.as_str()), (64, ""), "{wrong:?}: {}", ended.err);
        assert!(ended.err.contains(flag), "{wrong:?}: {}", ended.err);
    }
    let order = dev.ask(&["webhooks", "replay", "x", "--from", "-1h", "--to", "-2h"]);
    assert!(order.code == 64 && order.err.contains("--to"), "{}", order.err);
}
