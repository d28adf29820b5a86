//! The settings: their sources and precedence, and the mistakes that are reported.

use crate::harness::{ended, run, stage0};

#[test]
fn every_mistake_is_listed_at_once_with_its_origin_and_without_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("s.toml");
    std::fs::write(&file, "lissten = 1\nworkers = 'many'\nnats-password = 'hunter2-file'\nbody-timeout-ms = 0")
        .unwrap();
    let mut command = stage0(&["gateway", "--listen", "nowhere", "--nats", "nats://me:hunter2-flag@h"]);
    command.arg("--config").arg(&file);
    command.env("STAGE0_KEEP_ALIVE_MS", "soon").env("STAGE0_LISTN", "x").env("STAGE0_API_KEY", "hunter2-variable");
    let ended = ended(&mut command);
    assert_eq!((ended.code, ended.out.as_str()), (64, ""));
    let file = file.display();
    for line in [
        "--listen: must be an address and a port such as 127.0.0.1:8443 or [::1]:8443, not `nowhere`".to_owned(),
        "--nats: must be `nats://host:port`".to_owned(),
        "STAGE0_KEEP_ALIVE_MS: must be a whole number from 1 to 3600000 (milliseconds), not `soon`".to_owned(),
        "STAGE0_LISTN: is not a setting (did you mean `STAGE0_LISTEN`?)".to_owned(),
        format!("`lissten` in {file}: is not a setting (did you mean `listen`?)"),
        format!("`workers` in {file}: must be a whole number from 1 to 1024, not `many`"),
        format!("`body-timeout-ms` in {file}: must be"),
        "`nats-user`: is needed beside `nats-password` (--nats-user NAME, or STAGE0_NATS_USER)".to_owned(),
        "`tls-cert`: is required with `tls-key`, or else `tls-dev-dir`".to_owned(),
    ] {
        assert!(ended.err.contains(&format!("  {line}")), "{line}\n{}", ended.err);
    }
    assert!(!ended.err.contains("hunter2"), "{}", ended.err);
}

#[test]
fn a_missing_setting_is_reported_with_how_to_give_it() {
    let ended = run(&["keystore"]);
    assert_eq!(ended.code, 64);
    assert!(ended.err.contains("`nats`: is required (--nats URL, or STAGE0_NATS)"), "{}", ended.err);
    assert!(ended.err.contains("`data-dir`: is required (--data-dir DIR, or STAGE0_DATA_DIR)"), "{}", ended.err);
}

#[test]
fn an_unreadable_or_invalid_file_is_one_of_the_mistakes() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing.toml");
    let gone = ended(stage0(&["dev", "--listen", "x", "--config"]).arg(&missing));
    assert_eq!(gone.code, 64);
    assert!(gone.err.contains("--config: cannot read `") && gone.err.contains("--listen: must be"), "{}", gone.err);
    std::fs::write(&missing, "nats-password = hunter2").unwrap();
    let broken = ended(stage0(&["dev"]).env("STAGE0_CONFIG", &missing));
    assert_eq!(broken.code, 64);
    assert!(broken.err.contains(":1:17: is not valid TOML: string values must be quoted"), "{}", broken.err);
    assert!(!broken.err.contains("hunter2"), "{}", broken.err);
}

#[test]
fn mistakes_in_limits_proxies_and_plans_are_listed_with_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("plans.toml");
    std::fs::write(&file, "[free]\ndaily = 0\n[pro]\nhourly = 3\n[gold]\n").unwrap();
    let mut command = stage0(&["dev", "--quotas-on-failure", "maybe", "--trusted-proxies", "10.0.0.0/99,nobody"]);
    command.args(["--proxy-protocol-from", "10.0.0.1/8"]);
    command.args(["--runs-kept-seconds", "0", "--metrics-listen", "here", "--plans"]).arg(&file);
    let wrong = ended(&mut command);
    assert_eq!((wrong.code, wrong.out.as_str()), (64, ""));
    for part in [
        "--quotas-on-failure: must be `closed` or `open`",
        "--trusted-proxies: ",
        "--proxy-protocol-from: must hold only addresses, and networks without host bits such as `10.0.0.0/8` \
         (wrong: `10.0.0.1/8`)",
        "10.0.0.0/99",
        "nobody",
        "--runs-kept-seconds: must be a whole number from 1",
        "--metrics-listen: must be an address",
        "--plans: ",
        "free.daily must be a whole number",
        "pro.hourly is not known",
        "the table [unlimited] is missing",
        "`gold` is no plan",
    ] {
        assert!(wrong.err.contains(part), "{part}\n{}", wrong.err);
    }
    let missing = ended(stage0(&["dev", "--plans"]).arg(dir.path().join("none.toml")));
    assert_eq!(missing.code, 64);
    assert!(missing.err.contains("--plans: cannot be read"), "{}", missing.err);
}

#[test]
fn a_flag_comes_before_a_variable_and_that_before_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("s.toml");
    std::fs::write(&file, "workers = 'file'\nlisten = 'file'\nshards = 'file'").unwrap();
    let mut command = stage0(&["dev", "--workers", "flag", "--config"]);
    command.arg(&file).env("STAGE0_WORKERS", "variable").env("STAGE0_LISTEN", "variable");
    let ended = ended(&mut command);
    assert_eq!(ended.code, 64);
    let mistakes: Vec<&str> = ended.err.lines().skip(1).map(|line| line.rsplit(", not ").next().unwrap()).collect();
    assert_eq!(mistakes.len(), 3, "{}", ended.err);
    for from in ["`flag`", "`variable`", "`file`"] {
        assert!(mistakes.contains(&from), "{from}: {}", ended.err);
    }
}

#[test]
fn variables_of_the_tests_are_no_mistake() {
    let mut command = stage0(&["dev", "--listen", "x"]);
    command.env("STAGE0_TEST_NATS_SERVER", "x").env("STAGE0_BIN", "x").env("STAGE0_CRASH_ROUNDS", "x");
    command.env("STAGE0_SIM_SEED", "x").env("STAGE0_SIM_SEEDS", "x");
    assert!(!ended(&mut command).err.contains("is not a setting"));
}

#[test]
fn the_development_certificate_does_not_go_with_another() {
    let ended = run(&["gateway", "--nats", "nats://h", "--tls-dev-dir", "d", "--tls-cert", "c", "--tls-key", "k"]);
    assert_eq!(ended.code, 64);
    assert!(ended.err.contains("--tls-dev-dir: does not go with `tls-cert` and `tls-key`"), "{}", ended.err);
    let half = run(&["gateway", "--nats", "nats://h", "--tls-cert", "c"]);
    assert!(half.err.contains("`tls-key`: is needed beside `tls-cert`"), "{}", half.err);
}

#[test]
fn dev_serves_this_machine_only() {
    let ended = run(&["dev", "--listen", "192.0.2.1:8443"]);
    assert_eq!(ended.code, 64);
    assert!(ended.err.contains("--listen: must be a loopback address"), "{}", ended.err);
}

#[test]
fn the_page_about_configuration_is_up_to_date() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/CONFIGURATION.md");
    let written = std::fs::read_to_string(page).unwrap_or_default();
    let hint = "run `cargo run -- settings > docs/CONFIGURATION.md`";
    assert!(run(&["settings"]).out == written, "docs/CONFIGURATION.md is stale: {hint}");
}

#[test]
fn variables_of_client_libraries_are_named_once_and_ignored() {
    let foreign =
        ["STAGE0_BASE_URL", "STAGE0_TIMEOUT_SECONDS", "STAGE0_MOCK_MODE", "STAGE0_DEBUG", "STAGE0_MAX_RETRIES"];
    let mut server = stage0(&["gateway", "--listen", "nowhere"]);
    server.envs(foreign.map(|name| (name, "hunter2")));
    let server = ended(&mut server);
    assert_eq!(server.code, 64, "because of --listen");
    let lines: Vec<&str> = server.err.lines().filter(|line| line.contains("STAGE0_MOCK_MODE")).collect();
    let [line] = lines.as_slice() else { panic!("{}", server.err) };
    assert!(line.starts_with("warning: ") && foreign.iter().all(|name| line.contains(name)), "{line}");
    assert!(!server.err.contains("is not a setting") && !server.err.contains("hunter2"), "{}", server.err);
}

#[test]
fn an_unknown_variable_stops_a_server_and_a_command_with_the_near_name() {
    for command in [&["dev"][..], &["usage"], &["check", "-"]] {
        let ended = ended(stage0(command).env("STAGE0_LITSEN", "127.0.0.1:0").env("STAGE0_DRY_RUN", "true"));
        assert_eq!(ended.code, if command[0] == "check" { 3 } else { 64 }, "{}", ended.err);
        assert!(ended.err.contains("STAGE0_LITSEN: is not a setting (did you mean `STAGE0_LISTEN`?)"), "{}", ended.err);
        assert!(ended.err.contains("STAGE0_DRY_RUN: is not a setting"), "{}", ended.err);
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("s.toml");
    std::fs::write(&file, "body_timeout_ms = 1").unwrap();
    let wrong = ended(stage0(&["dev", "--config"]).arg(&file));
    assert!(wrong.code == 64 && wrong.err.contains("(did you mean `body-timeout-ms`?)"), "{}", wrong.err);
}

#[test]
fn commands_use_the_url_of_client_libraries_after_their_own() {
    let key = "s0_0w3ge1r70w3ge1r7_144gj289144gj289144gj289144gj289ka2s328";
    let dir = tempfile::tempdir().unwrap();
    let usage = |variables: &[(&str, &str)], flags: &[&str]| {
        let mut command = stage0(&["usage", "--data-dir"]);
        command.arg(dir.path()).args(flags).env("STAGE0_API_KEY", key).envs(variables.iter().copied());
        ended(&mut command)
    };
    let (base, api) = (("STAGE0_BASE_URL", "https://127.0.0.1:1/base"), ("STAGE0_API_BASE", "https://127.0.0.1:1/api"));
    for (asked, by) in [
        (usage(&[api], &[]), "/api`"),
        (usage(&[api, base], &[]), "/base`"),
        (usage(&[api, base, ("STAGE0_URL", "https://127.0.0.1:1/own")], &[]), "/own`"),
        (
            usage(&[api, base, ("STAGE0_URL", "https://127.0.0.1:1/own")], &["--url", "https://127.0.0.1:1/flag"]),
            "/flag`",
        ),
    ] {
        assert!(asked.code == 1 && asked.err.starts_with("error: cannot reach `https://127.0.0.1:1/"), "{}", asked.err);
        assert!(asked.err.contains(by), "{by}: {}", asked.err);
    }
    let plain = usage(&[("STAGE0_API_BASE", "http://127.0.0.1:8000")], &[]);
    assert!(plain.code == 64 && plain.err.contains("STAGE0_API_BASE: must be an https URL"), "{}", plain.err);
}
