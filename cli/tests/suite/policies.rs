//! `stage0 policy publish`, `activate`, `rollback`, `history`, `list` and `show`.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Dev, Ended, ended, run};
use crate::impostor::{Impostor, answer, answer_with, refusal};
use crate::policy::change;
use crate::policy_writing::new_pack;

fn fixture(text: &str) -> Value {
    let value: Value = serde_json::from_str(text).unwrap();
    value.get("done").cloned().unwrap_or(value)
}

fn ask(dev: &Dev, arguments: &[&str]) -> Ended {
    ended(&mut dev.client(&[&["policy"], arguments].concat()))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_pack_is_published_activated_and_rolled_back() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let (_packs, pack) = new_pack();
    let action = json!({"goal": "Offer a discount on order 8841", "success_criteria": ["the customer has the offer"],
        "tools": ["offer_discount"], "side_effects": [], "context": {"discount_percent": 40}});
    let before = dev.check(&action, &["--json"]);
    let code = "DISCOUNT_TOO_HIGH";
    assert!(!before.out.contains(code), "{}", before.out);

    let published = ask(&dev, &["publish", text(&pack)]);
    assert_eq!((published.code, published.err.as_str()), (0, ""), "{}", published.err);
    assert!(published.out.contains("makes it decide") && published.out.contains("acme@0.1.0+"), "{}", published.out);
    let again = ask(&dev, &["publish", text(&pack), "--json"]);
    let policy: Value = serde_json::from_str(&again.out).unwrap();
    let version = policy["version"].as_str().unwrap().to_owned();
    assert!(!dev.check(&action, &["--json"]).out.contains(code), "what is only published decides nothing");

    let activated = ask(&dev, &["activate", "acme@0.1.0", "--reason", "discounts", "--wait"]);
    assert_eq!(activated.code, 0, "{}", activated.err);
    assert!(activated.out.starts_with("activated\n") && activated.err.contains("every evaluator has it"));
    let checked = dev.check(&action, &["--json"]);
    assert!(checked.out.contains(code) && checked.out.contains(&version), "{}{}", checked.out, checked.err);

    let listed = ask(&dev, &["list"]);
    let line = listed.out.lines().find(|line| line.starts_with(&version)).unwrap();
    assert!(line.contains("default"), "{}", listed.out);
    let shown = ask(&dev, &["show", &version, "--files"]);
    assert!(shown.out.contains("  loaded\n") && shown.out.contains("── 0/rules.cedar"), "{}{}", shown.out, shown.err);

    let rolled_back = ask(&dev, &["rollback", "--expected", &version, "--reason", "too strict"]);
    assert_eq!(rolled_back.code, 0, "{}", rolled_back.err);
    assert!(!dev.check(&action, &["--json"]).out.contains(code), "the pack before decides again");
    let history = ask(&dev, &["history"]);
    let lines: Vec<&str> = history.out.lines().collect();
    assert_eq!(lines.len(), 3, "{}", history.out);
    assert!(lines[1].contains("rolled back") && lines[2].contains("activated"), "the newest first: {}", history.out);
    let stale = ask(&dev, &["rollback", "--expected", &version]);
    assert!(stale.code == 1 && stale.err.contains("409"), "{}", stale.err);
}

#[test]
fn a_broken_pack_is_shown_with_its_faults_and_never_sent() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let (_packs, pack) = new_pack();
    let sound = fs::read_to_string(pack.join("rules.cedar")).unwrap();
    fs::write(pack.join("rules.cedar"), sound.replace("forbid (", "forbid [")).unwrap();
    let (server, requests) = Impostor::recording(&dev, vec![answer("{}")]);
    let refused = ended(&mut server.client(&["policy", "publish", text(&pack)]));
    assert!(refused.code == 1 && refused.err.contains("rules.cedar:"), "{}", refused.err);
    let refused = ended(&mut server.client(&["policy", "publish", text(&pack), "--json"]));
    let told: Value = serde_json::from_str(&refused.out).unwrap();
    assert_eq!(
        (refused.code, &told["published"], &told["faults"][0]["file"]),
        (1, &json!(false), &json!("rules.cedar"))
    );
    let other = ended(&mut server.client(&["policy", "publish", text(dir.path())]));
    assert!(other.code == 1 && other.err.contains("is no policy pack"), "{}", other.err);
    assert!(requests.try_recv().is_err(), "nothing was sent");
}

#[test]
fn what_is_published_is_the_pack_with_those_that_it_extends() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let (packs, house) = new_pack();
    let ours = packs.path().join("ours");
    fs::create_dir(&ours).unwrap();
    fs::write(ours.join("pack.toml"), "name = \"ours\"\nversion = \"1.0.0\"\nextends = \"acme@0\"\n").unwrap();
    let policy = fixture(include_str!("../../../contract/fixtures/published_policy.json"));
    let (server, requests) = Impostor::recording(&dev, vec![answer_with("201 Created", &policy.to_string())]);
    let published = ended(&mut server.client(&["policy", "publish", text(&ours), "--account", "acc_7"]));
    assert_eq!(published.code, 0, "{}", published.err);
    let request = requests.try_recv().unwrap();
    assert!(request.line.starts_with("POST /v1/policies "), "{}", request.line);
    let body: Value = serde_json::from_str(&request.body).unwrap();
    assert_eq!((&body["account"], body["packs"].as_array().unwrap().len()), (&json!("acc_7"), 2));
    let rules = fs::read_to_string(house.join("rules.cedar")).unwrap();
    assert_eq!(body["packs"][0]["files"]["rules.cedar"], rules, "the extended pack first");
    assert!(body["packs"][1]["files"]["pack.toml"].as_str().unwrap().contains("ours"));
    // A fault of the extended pack is named as such: its files are elsewhere.
    change(&house, "rules.cedar", "forbid (", "forbid [");
    let refused = ended(&mut server.client(&["policy", "publish", text(&ours)]));
    assert!(refused.code == 1 && refused.err.contains("a pack that this one extends is refused"), "{}", refused.err);
    assert!(requests.try_recv().is_err());
}

#[test]
fn what_the_flags_say_is_sent_and_a_refusal_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let activation = fixture(include_str!("../../../contract/fixtures/activation.json"));
    let version = "acme@1.0.0+0123456789ab";
    let sent = |arguments: &[&str]| {
        let (server, requests) = Impostor::recording(&dev, vec![answer(&activation.to_string())]);
        let done = ended(&mut server.client(&[&["policy"], arguments].concat()));
        assert_eq!(done.code, 0, "{arguments:?}: {}", done.err);
        let request = requests.try_recv().unwrap();
        let body: Value = serde_json::from_str(&request.body).unwrap();
        (request.line, body)
    };
    let flags = ["--environment", "prod", "--reason", "r", "--expected", version, "--account", "acc_7"];
    let expected = json!({"environment": "prod", "reason": "r", "expected": version, "account": "acc_7"});
    let (line, body) = sent(&[&["activate", version], &flags[..]].concat());
    assert!(line.starts_with("POST /v1/policies/acme@1.0.0+0123456789ab/activate "), "{line}");
    assert_eq!(body, expected);
    let (line, body) = sent(&[&["rollback"], &flags[..]].concat());
    assert!(line.starts_with("POST /v1/policies/rollback "), "{line}");
    assert_eq!(body, expected);
    assert_eq!(sent(&["activate", version, "--floor"]).1, json!({"floor": true}));
    assert_eq!(sent(&["activate", version, "--all-accounts"]).1, json!({"all_accounts": true}));
    let why = "another version is active";
    let refused = Impostor::start(&dev, vec![refusal("409 Conflict", why)]);
    let refused = ended(&mut refused.client(&["policy", "activate", version]));
    assert!(refused.code == 1 && refused.err.contains(why), "{}", refused.err);
}

#[test]
fn a_version_that_is_written_wrongly_is_not_sent() {
    for (wrong, part) in [
        (&["policy", "activate"][..], "<VERSION>"),
        (&["policy", "activate", "a@1.0.0", "--floor", "--environment", "prod"], "--floor"),
        (&["policy", "history", "--limit", "0"], "--limit"),
    ] {
        let refused = run(wrong);
        assert!(refused.code == 64 && refused.err.contains(part), "{wrong:?}: {}", refused.err);
    }
}
