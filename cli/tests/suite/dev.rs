//! `stage0 dev`: its files, and a restart on them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Dev, run, stage0};

const FILES: [&str; 5] = ["dev.json", "api.key", "operator.key", "tls/ca.key", "tls/server.key"];

fn action() -> Value {
    json!({"goal": "Read the weekly sales report and summarise it", "success_criteria": ["a summary"],
        "tools": ["read_file"]})
}

fn key(dev: &Dev, name: &str) -> String {
    dev.text(name).trim().to_owned()
}

#[test]
fn every_file_with_a_secret_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    for file in FILES {
        let mode = std::fs::metadata(dir.path().join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{file}");
    }
    let file = dev.file();
    assert_eq!(file["api_key"], key(&dev, "api.key"));
    assert_eq!(file["operator_key"], key(&dev, "operator.key"));
    assert!(Path::new(file["ca_file"].as_str().unwrap()).is_absolute());
    let (status, log) = dev.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    for name in ["api_key", "operator_key"] {
        let secret = file[name].as_str().unwrap().rsplit('_').next().unwrap();
        assert!(!log.contains(secret), "{name} is in the log");
    }
}

#[test]
fn dev_restarts_on_the_same_data() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let first = (dev.file()["account"].clone(), key(&dev, "api.key"), dev.text("tls/ca.pem"));
    dev.kill();
    let again = Dev::start(dir.path());
    assert_eq!((again.file()["account"].clone(), key(&again, "api.key"), again.text("tls/ca.pem")), first);
    assert_eq!(again.check(&action(), &[]).code, 0);
}

#[test]
fn the_next_start_creates_files_that_a_crash_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let (account, first) = (dev.file()["account"].clone(), key(&dev, "api.key"));
    dev.kill();
    for missing in ["dev.json", "api.key", "operator.key"] {
        std::fs::remove_file(dir.path().join(missing)).unwrap();
        let dev = Dev::start(dir.path());
        assert_eq!(dev.file()["account"], account, "{missing}");
        assert_eq!(dev.check(&action(), &[]).code, 0, "{missing}");
        assert_eq!(dev.ask(&["accounts", "list"]).code, 0, "{missing}");
        let (_, log) = dev.stop();
        assert_eq!(log.contains("one is created"), missing == "api.key", "{log}");
    }
    std::fs::write(dir.path().join("api.key"), first).unwrap();
    let dev = Dev::start(dir.path());
    assert_eq!(dev.check(&action(), &[]).code, 0, "the first key still lives");
}

#[test]
fn a_revoked_dev_key_is_replaced_with_a_notice() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let old = key(&dev, "api.key");
    let id = old.split('_').nth(1).unwrap();
    assert_eq!(dev.ask(&["keys", "revoke", id]).code, 0);
    assert_eq!(dev.check(&action(), &[]).code, 3);
    dev.kill();
    let dev = Dev::start(dir.path());
    assert_ne!(key(&dev, "api.key"), old);
    assert_eq!(dev.check(&action(), &[]).code, 0);
    let (_, log) = dev.stop();
    assert!(log.contains("a new one replaces it"), "{log}");
}

#[test]
fn dev_does_not_start_without_an_operators_key() {
    let dir = tempfile::tempdir().unwrap();
    Dev::start(dir.path()).kill();
    for file in ["dev.json", "operator.key"] {
        std::fs::remove_file(dir.path().join(file)).unwrap();
    }
    let data_dir = dir.path().to_str().unwrap();
    let ended = run(&["dev", "--listen", "127.0.0.1:0", "--data-dir", data_dir]);
    assert_eq!((ended.code, ended.out.as_str()), (1, ""));
    assert!(ended.err.contains("holds no active operator's key"), "{}", ended.err);
}

#[test]
fn a_second_dev_on_the_same_data_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Dev::start(dir.path());
    let second = run(&["dev", "--listen", "127.0.0.1:0", "--data-dir", dir.path().to_str().unwrap()]);
    assert_eq!((second.code, second.out.as_str()), (1, ""), "{}", second.err);
    assert_eq!(second.err.lines().filter(|line| line.contains("error: ")).count(), 1, "{}", second.err);
}

#[test]
fn a_taken_port_is_one_message() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let ended = run(&["dev", "--listen", &address, "--data-dir", dir.path().to_str().unwrap()]);
    assert_eq!((ended.code, ended.out.as_str()), (1, ""), "{}", ended.err);
    assert!(ended.err.contains(&format!("cannot listen on {address}")), "{}", ended.err);
    assert!(!dir.path().join("dev.json").exists());
}

#[test]
fn a_broken_pack_stops_the_start_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let packs = dir.path().join("packs");
    std::fs::create_dir_all(packs.join("mine")).unwrap();
    std::fs::write(packs.join("mine/pack.toml"), "name = ").unwrap();
    let mut command = stage0(&["dev", "--listen", "127.0.0.1:0", "--data-dir"]);
    let ended = crate::harness::ended(command.arg(dir.path().join("data")).arg("--policies").arg(&packs));
    assert_eq!((ended.code, ended.out.as_str()), (1, ""), "{}", ended.err);
    assert!(ended.err.contains("pack.toml:1"), "{}", ended.err);
}

#[test]
fn a_policy_that_is_not_loaded_cannot_be_active() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().to_str().unwrap();
    let ended = run(&["dev", "--listen", "127.0.0.1:0", "--data-dir", data_dir, "--active-policy", "baseline@9.9.9"]);
    assert_eq!((ended.code, ended.out.as_str()), (1, ""), "{}", ended.err);
    assert!(ended.err.contains("`baseline@9.9.9` is not loaded"), "{}", ended.err);
}

#[test]
fn the_printed_curl_command_works() {
    if std::process::Command::new("curl").arg("--version").output().is_err() {
        return;
    }
    let dir = tempfile::Builder::new().prefix("it's here ").tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let start = dev.banner.find("  curl").unwrap();
    let command = dev.banner[start..].split("\n\n").next().unwrap();
    let output = std::process::Command::new("sh").args(["-c", command]).env("NO_PROXY", "*").output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["verdict"], "DEFER", "{command}");
}
