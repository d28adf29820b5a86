//! `stage0 check`: the exit code is the answer, and only 0 lets an action run.

use serde_json::{Value, json};

use crate::harness::{Dev, ended, run, run_with_input, stage0};

fn allowed() -> Value {
    json!({"goal": "Read the weekly sales report and summarise it", "success_criteria": ["a summary of ten lines"],
        "constraints": ["read-only"], "tools": ["read_file"], "side_effects": [], "context": {}})
}

fn denied() -> Value {
    json!({"goal": "Deploy the hotfix to production", "success_criteria": ["it runs"], "side_effects": ["deploy"],
        "context": {}})
}

fn deferred() -> Value {
    json!({"goal": "Deploy build 7 to production", "success_criteria": ["it runs"], "side_effects": ["deploy"],
        "constraints": ["approval_required"], "context": {"approval_status": "pending"}})
}

/// Exit code 3, and both error and consequence are printed.
fn assert_undecided(ended: &crate::harness::Ended, why: &str) {
    assert_eq!(ended.code, 3, "{}", ended.err);
    assert!(ended.err.contains(why), "{why}: {}", ended.err);
    assert!(ended.err.contains("the action must not run"), "{}", ended.err);
}

#[test]
fn the_exit_code_is_the_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());

    let allow = dev.check(&allowed(), &[]);
    assert_eq!(allow.code, 0, "{}{}", allow.out, allow.err);
    assert!(allow.out.starts_with("ALLOW (GO)\n") && allow.out.contains("policy   baseline@"), "{}", allow.out);

    let deny = dev.check(&denied(), &[]);
    assert_eq!(deny.code, 1, "{}{}", deny.out, deny.err);
    assert!(deny.out.starts_with("DENY (NO_GO)\n"), "{}", deny.out);
    assert!(deny.out.contains("HIGH     SIDE_EFFECTS_NEED_GUARDRAILS: "), "{}", deny.out);

    let defer = dev.check(&deferred(), &["--json"]);
    assert_eq!(defer.code, 2, "{}{}", defer.out, defer.err);
    let raw: Value = serde_json::from_str(&defer.out).unwrap();
    assert_eq!((&raw["verdict"], &raw["decision"]), (&json!("DEFER"), &json!("DEFER")));

    let file = dir.path().join("action.json");
    std::fs::write(&file, denied().to_string()).unwrap();
    assert_eq!(ended(dev.client(&["check"]).arg(&file)).code, 1);
}

#[test]
fn a_request_that_the_server_refuses_is_no_decision() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    assert_undecided(&dev.check(&json!({"goal": ""}), &[]), "the server answers 422");
    let unknown = "s0_0w3ge1r70w3ge1r7_144gj289144gj289144gj289144gj289ka2s328";
    let mut command = dev.client(&["check", "-"]);
    let answer = run_with_input(command.env("STAGE0_API_KEY", unknown), &allowed().to_string());
    assert_undecided(&answer, "the server answers 401");
    assert!(!answer.err.contains(unknown));
    let operator = dir.path().join("operator.key");
    let answer = dev.check(&allowed(), &["--key-file", operator.to_str().unwrap()]);
    assert_undecided(&answer, "the server answers 403");
    assert!(answer.err.contains("(request "), "{}", answer.err);
}

#[test]
fn an_unreachable_or_untrusted_server_is_no_decision() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let other = tempfile::tempdir().unwrap();
    let elsewhere = Dev::start(other.path());
    let ca = elsewhere.data_dir.join("tls/ca.pem");
    let answer = dev.check(&allowed(), &["--ca", ca.to_str().unwrap()]);
    assert_undecided(&answer, "is not trusted: ");
    assert!(answer.err.contains("--ca FILE"), "{}", answer.err);

    let garbage = dir.path().join("garbage.pem");
    std::fs::write(&garbage, "no certificate").unwrap();
    assert_undecided(&dev.check(&allowed(), &["--ca", garbage.to_str().unwrap()]), "it holds no PEM certificate");

    let data_dir = dev.data_dir.clone();
    dev.kill();
    let mut command = stage0(&["check", "-", "--data-dir"]);
    assert_undecided(
        &run_with_input(command.arg(&data_dir), &allowed().to_string()),
        "cannot reach `https://127.0.0.1:",
    );
}

#[test]
fn input_that_is_not_json_is_no_decision() {
    let dir = tempfile::tempdir().unwrap();
    assert_undecided(&run(&["check", "missing.json"]), "cannot read `missing.json`");
    for bad in ["", "{", r#"{"goal": "a", "goal": "b"}"#, "\u{0}"] {
        assert_undecided(&run_with_input(&mut stage0(&["check", "-"]), bad), "cannot read `-`");
    }
    let large = dir.path().join("large.json");
    std::fs::write(&large, format!("\"{}\"", "x".repeat(1_000_000))).unwrap();
    assert_undecided(&ended(stage0(&["check"]).arg(&large)), "larger than 1000000 bytes");
}

#[test]
fn wrong_arguments_are_no_decision() {
    for wrong in [&["check"][..], &["check", "-", "--nonsense"], &["check", "-", "--url", "http://localhost"]] {
        assert_undecided(&run(wrong), "");
    }
    assert_undecided(&ended(stage0(&["check", "-"]).env("STAGE0_NONSENSE", "x")), "STAGE0_NONSENSE: is not a setting");
}
