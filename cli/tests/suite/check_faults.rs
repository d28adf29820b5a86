//! `stage0 check` against servers that misbehave: only a complete ALLOW ends with exit code 0.

use std::process::Command;
use std::time::{Duration, Instant};

use stage0_client::selftest::{Scenario, Server, target};
use tokio::runtime::Runtime;

use crate::harness::{Ended, run_with_input, stage0, write_secret};

const ACTION: &str = r#"{"goal": "Deploy build 7", "tools": ["deploy"], "side_effects": ["deploy"]}"#;
const TIMEOUT: Duration = Duration::from_secs(5);
/// Most of the time is spent in waiting for timeouts.
const AT_ONCE: usize = 8;
/// Far longer than the process needs on a busy machine.
const EXTRA_TIME: Duration = Duration::from_secs(20);

fn check(server: &Server) -> Ended {
    let dir = tempfile::tempdir().unwrap();
    let key_file = dir.path().join("api.key");
    write_secret(&key_file, target(server).unwrap().key.unwrap().expose());
    let mut command: Command = stage0(&["check", "-", "--url", server.url().as_str(), "--ca"]);
    command.arg(server.ca()).arg("--key-file").arg(&key_file);
    command.args(["--data-dir", "no-such-directory", "--timeout", &TIMEOUT.as_secs().to_string()]);
    run_with_input(&mut command, ACTION)
}

#[test]
fn only_a_complete_allow_ends_with_exit_code_0() {
    let runtime = Runtime::new().unwrap();
    let allowed = check(&runtime.block_on(Scenario::ALLOW.start()).unwrap());
    assert_eq!(allowed.code, 0, "{}", allowed.err);
    for scenarios in Scenario::FAULTS.chunks(AT_ONCE) {
        let checks = scenarios.iter().map(|scenario| {
            let server = runtime.block_on(scenario.start()).unwrap();
            std::thread::spawn(move || {
                let started = Instant::now();
                let ended = check(&server);
                (scenario.name, ended, started.elapsed())
            })
        });
        for check in checks.collect::<Vec<_>>() {
            let (scenario, ended, took) = check.join().unwrap();
            let expected = match scenario {
                "DENY" => 1,
                "DEFER" => 2,
                _ => 3,
            };
            assert_eq!(ended.code, expected, "{scenario}: {}{}", ended.out, ended.err);
            let says_so = ended.err.ends_with("no decision: the action must not run\n");
            assert!(expected != 3 || says_so, "{scenario}: {}", ended.err);
            assert!(took < TIMEOUT + EXTRA_TIME, "{scenario} took {took:?}");
        }
    }
}
