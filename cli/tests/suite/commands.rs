//! Help, version, completions, and the exit code for wrong arguments.

use crate::harness::{run, stage0};

const COMMANDS: [&str; 16] = [
    "dev",
    "gateway",
    "evaluator",
    "keystore",
    "audit-export",
    "check",
    "approvals",
    "stop",
    "resume",
    "stops",
    "members",
    "decisions",
    "webhooks",
    "keys",
    "accounts",
    "policy",
];

#[test]
fn help_names_every_command_with_examples() {
    let help = run(&["--help"]);
    assert_eq!(help.code, 0);
    for word in COMMANDS.into_iter().chain(["Examples:"]) {
        assert!(help.out.contains(word), "{word}");
    }
    for command in COMMANDS {
        let help = run(&[command, "--help"]);
        assert!(help.code == 0 && help.out.contains("Example"), "{command}: {}", help.out);
    }
}

#[test]
fn help_of_a_role_shows_its_settings_with_variable_and_default() {
    let help = run(&["gateway", "--help"]).out.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.contains("[default: 2000] [env: STAGE0_REQUEST_BUDGET_MS]"), "{help}");
    assert!(!run(&["check", "--help"]).out.contains("--api-key"));
}

#[test]
fn the_version_names_the_commit() {
    let version = run(&["--version"]);
    assert_eq!(version.code, 0);
    let commit = version.out.trim().strip_prefix(concat!("stage0 ", env!("CARGO_PKG_VERSION"), " (")).unwrap();
    let commit = commit.strip_suffix(')').unwrap();
    assert!(commit == "unknown" || commit.bytes().all(|b| b.is_ascii_hexdigit()), "{commit}");
}

#[test]
fn completions_know_the_commands_and_the_settings() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]);
        assert_eq!(script.code, 0);
        assert!(script.out.contains("audit-export") && script.out.contains("tls-dev-dir"), "{shell}");
    }
}

#[test]
fn wrong_arguments_are_exit_code_64() {
    for wrong in
        [&["nonsense"][..], &[], &["gateway", "--nonsense"], &["keys"], &["keys", "revoke", "a b"], &["policy", "test"]]
    {
        let ended = run(wrong);
        assert_eq!((ended.code, ended.out.as_str()), (64, ""), "{wrong:?}");
    }
    let scope = run(&["keys", "create", "--name", "n", "--scope", "everything"]);
    assert!(scope.code == 64 && scope.err.contains("decisions:read"), "{}", scope.err);
}

#[test]
fn a_closed_pipe_is_no_error() {
    let mut child = stage0(&["completions", "bash"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
