//! `stage0 policy compare`, and an activation that is looser: shown, refused, and accepted by its number.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Dev, Ended, ended, run};
use crate::impostor::{Impostor, answer, refusal};
use crate::policy::change;
use crate::policy_writing::new_pack;

const VERSION: &str = "acme@1.2.0+0123456789ab";

fn ask(dev: &Dev, arguments: &[&str]) -> Ended {
    ended(&mut dev.client(&[&["policy"], arguments].concat()))
}

fn comparison() -> Value {
    serde_json::from_str(include_str!("../../../contract/fixtures/policy_comparison.json")).unwrap()
}

/// Raises the limit, and has the case at the old limit pass.
fn loosen(pack: &Path) {
    change(pack, "pack.toml", "0.1.0", "0.2.0");
    change(pack, "rules.cedar", "<= 20", "<= 30");
    let cases = fs::read_to_string(pack.join("cases.json")).unwrap();
    let cases = cases.replace("\"discount_percent\": 20", "\"discount_percent\": 30");
    fs::write(pack.join("cases.json"), cases.replace("\"discount_percent\": 21", "\"discount_percent\": 31")).unwrap();
}

#[test]
fn a_looser_pack_is_shown_and_refused_and_the_command_that_is_shown_accepts_it() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let (_packs, pack) = new_pack();
    let folder = pack.to_str().unwrap();
    assert_eq!(ask(&dev, &["publish", folder]).code, 0);
    let stricter = ask(&dev, &["compare", "acme@0.1.0"]);
    assert_eq!(stricter.code, 0, "only a rule more than the baseline: {}{}", stricter.out, stricter.err);
    assert!(stricter.out.contains("discount.too_high"), "{}", stricter.out);
    assert_eq!(ask(&dev, &["activate", "acme@0.1.0"]).code, 0, "which needs no acceptance");

    loosen(&pack);
    assert_eq!(ask(&dev, &["publish", folder]).code, 0);
    let looser = ask(&dev, &["compare", "acme@0.2.0"]);
    assert_eq!(looser.code, 1, "{}", looser.err);
    let case = looser.out.lines().find(|line| line.contains("discount-above-the-limit")).unwrap();
    assert!(case.starts_with("looser") && case.contains("DENY → ALLOW"), "{}", looser.out);
    assert_eq!(ask(&dev, &["compare", "acme@0.2.0", "--allow-looser"]).code, 0);
    let told: Value = serde_json::from_str(&ask(&dev, &["compare", "acme@0.2.0", "--json"]).out).unwrap();
    let flips = told["flips"].as_u64().unwrap();
    assert!(flips > 0);
    let back = ask(&dev, &["compare", "acme@0.1.0", "--from", "acme@0.2.0"]);
    assert!(back.out.contains("old       acme@0.2.0+"), "{}{}", back.out, back.err);

    let refused = ask(&dev, &["activate", "acme@0.2.0", "--reason", "it's agreed"]);
    assert_eq!(refused.code, 1, "{}", refused.out);
    assert!(refused.out.contains("discount-above-the-limit") && refused.err.contains("409"), "{}", refused.err);
    let shown = refused.err.lines().find(|line| line.starts_with("  stage0 policy activate ")).unwrap();
    let digest = told["diff_digest"].as_str().unwrap();
    let accepting = format!("--accept-flips {flips} --diff-digest {digest} --reason 'it'\\''s agreed'");
    assert!(shown.ends_with(&format!("{accepting} --data-dir {} --timeout 30", dev.data_dir.display())), "{shown}");
    assert!(
        refused.err.contains(&format!("to accept it ({flips} of cases and entries; no recorded")),
        "{}",
        refused.err
    );
    let shown = ask(&dev, &["activate", "acme@0.2.0", "--json"]);
    let shown: Value = serde_json::from_str(&shown.out).unwrap();
    assert_eq!((&shown["activated"], &shown["comparison"]["flips"]), (&json!(false), &json!(flips)));
    let wrong = ask(&dev, &["activate", "acme@0.2.0", "--reason", "r", "--accept-flips", "99"]);
    assert!(wrong.code == 1 && wrong.err.contains("`accept_flips` is 99"), "{}", wrong.err);

    let flips = flips.to_string();
    let accepting = ["--reason", "agreed", "--accept-flips", &flips, "--diff-digest", digest];
    let accepted = ask(&dev, &[&["activate", "acme@0.2.0"], &accepting[..]].concat());
    assert_eq!(accepted.code, 0, "{}", accepted.err);
    let history = ask(&dev, &["history", "--json"]);
    let history: Value = serde_json::from_str(&history.out).unwrap();
    assert_eq!(history["items"][0]["accepted_flips"].to_string(), flips, "{history:#}");
}

#[test]
fn the_place_is_compared_and_named_in_the_command_that_accepts() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let looser = refusal("409 Conflict", "3 of what it changes are looser; send `accept_flips`: 3 with a `reason`");
    let (server, requests) = Impostor::recording(&dev, vec![looser, answer(&comparison().to_string())]);
    let place = ["--environment", "eu west", "--account", "acc_7", "--wait"];
    let refused = ended(&mut server.client(&[&["policy", "activate", VERSION], &place[..]].concat()));
    assert_eq!(refused.code, 1, "{}", refused.err);
    requests.try_recv().unwrap();
    let line = requests.try_recv().unwrap().line;
    let asked = "GET /v1/policies/acme@1.2.0+0123456789ab/diff?account=acc_7&environment=eu+west ";
    assert!(line.starts_with(asked), "{line}");
    let command = format!(
        "  stage0 policy activate {VERSION} --environment 'eu west' --account acc_7 --accept-flips 3 --diff-digest {} \
         --reason WHY --wait",
        comparison()["diff_digest"].as_str().unwrap()
    );
    assert!(refused.err.contains(&command), "{}", refused.err);
    let lines: Vec<&str> = refused.out.lines().collect();
    assert!(lines[1].starts_with("looser") && lines[1].contains("refund-600") && lines[1].contains("DENY → ALLOW"));
    assert!(lines[2].contains("changed: condition") && lines[3].contains("none → verbs.medium"), "{}", refused.out);

    // Another conflict is no question of acceptance.
    let (server, requests) = Impostor::recording(&dev, vec![refusal("409 Conflict", "`a` is not active there")]);
    let refused = ended(&mut server.client(&["policy", "activate", VERSION, "--reason", "r", "--accept-flips", "3"]));
    assert!(refused.code == 1 && !refused.err.contains("to accept it"), "{}", refused.err);
    let body: Value = serde_json::from_str(&requests.try_recv().unwrap().body).unwrap();
    assert_eq!(body["accept_flips"], json!(3));
    assert!(requests.try_recv().is_err(), "nothing more is asked");
}

#[test]
fn what_cannot_be_meant_is_not_sent() {
    for (wrong, part) in [
        (&["policy", "activate", "a@1.0.0", "--accept-flips", "3"][..], "--reason"),
        (&["policy", "activate", "a@1.0.0", "--accept-flips", "-1", "--reason", "r"], "-1"),
        (&["policy", "compare", "a@1.0.0", "--from", "a@1.1.0", "--environment", "prod"], "--environment"),
        (&["policy", "compare", "a@1.0.0", "--floor", "--environment", "prod"], "--environment"),
        (&["policy", "compare"], "<VERSION>"),
    ] {
        let refused = run(wrong);
        assert!(refused.code == 64 && refused.err.contains(part), "{wrong:?}: {}", refused.err);
    }
}
