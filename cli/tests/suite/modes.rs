//! File modes: files that commands create, and secrets that are refused because others can read them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::harness::{Dev, allow, ended, run_with_input, stage0, write_secret};

/// The same command under `umask 000`.
fn under_umask_000(command: &Command) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "umask 000; exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

/// The files of a directory, itself included, on which others have any right.
fn open_to_others(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        let data = std::fs::symlink_metadata(&path).unwrap();
        if data.is_dir() {
            left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let mode = data.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            found.push((path, format!("{mode:04o}")));
        }
    }
    found
}

#[test]
fn files_are_private_whatever_the_umask() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("deep/data");
    let dev = Dev::start_as(&data, |command| under_umask_000(&command));
    assert_eq!(dev.check(&json!({"goal": "Read the report", "context": {"run_id": "r"}}), &[]).code, 0);
    let out = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for command in [
        &["keys", "create", "--name", "n", "--scope", "check", "--out", &out("new.key")][..],
        &["decisions", "export", "--out", &out("log.ndjson")],
        &["stack", "init", "--dir", &out("stack")],
    ] {
        let command = if command[0] == "stack" { stage0(command) } else { dev.client(command) };
        let done = ended(&mut under_umask_000(&command));
        assert_eq!(done.code, 0, "{}", done.err);
    }
    let (status, log) = dev.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    for made in ["deep", "new.key", "log.ndjson", "stack"] {
        assert_eq!(open_to_others(&dir.path().join(made)), [], "{made}");
    }
    for file in ["decisions.redb", "operator.key", "dev.json", "journal", "store/db", "tls/server.key"] {
        assert!(data.join(file).exists(), "{file} was looked at");
    }
}

#[test]
fn a_key_file_that_others_can_read_is_refused_with_the_chmod_command() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"));
    let file = dir.path().join("my.key");
    write_secret(&file, &dev.text("api.key"));
    let usage = || {
        let mut command = dev.client(&["usage"]);
        ended(command.arg("--key-file").arg(&file))
    };
    assert_eq!(usage().code, 0);
    for mode in [0o644, 0o604, 0o660, 0o620, 0o777] {
        allow(&file, mode);
        let refused = usage();
        assert!(refused.code == 1 && refused.out.is_empty(), "{mode:o}: {}", refused.err);
        assert!(refused.err.contains(&format!("type `chmod 600 {}`", file.display())), "{mode:o}: {}", refused.err);
        assert!(!refused.err.contains("s0_"), "{}", refused.err);
    }
    let mut check = dev.client(&["check", "-"]);
    let no_decision =
        run_with_input(check.arg("--key-file").arg(&file), r#"{"goal": "Read the report", "context": {}}"#);
    assert!(no_decision.code == 3 && no_decision.err.contains("chmod 600"), "{}", no_decision.err);
    allow(&file, 0o400);
    assert_eq!(usage().code, 0);
    for (name, command) in [("dev.json", "usage"), ("operator.key", "status")] {
        let path = dev.data_dir.join(name);
        allow(&path, 0o644);
        let refused = dev.ask(&[command]);
        assert!(refused.code == 1 && refused.err.contains(&format!("chmod 600 {}", path.display())), "{}", refused.err);
        allow(&path, 0o600);
        assert_eq!(dev.ask(&[command]).code, 0, "{command}");
    }
}

#[test]
fn secrets_that_others_can_read_are_listed_with_the_other_mistakes() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        let path = dir.path().join(name);
        write_secret(&path, "hunter2");
        allow(&path, 0o644);
        path.to_str().unwrap().to_owned()
    };
    let nats = ["--nats", "nats://127.0.0.1:1", "--nats-user", "u", "--nats-cert", "c"];
    let (password, nats_key, tls_key) = (file("password"), file("nats.key"), file("tls.key"));
    let (sealing, signing, secret) = (file("sealing"), file("signing"), file("secret"));
    let shared = [&nats[..], &["--nats-password-file", &password, "--nats-key", &nats_key]].concat();
    let gateway = [&["gateway", "--listen", "nowhere", "--tls-cert", "c", "--tls-key", &tls_key], &shared[..]].concat();
    let keystore = ["keystore", "--data-dir", "d", "--secrets-key-file", &sealing, "--signing-key-file", &signing];
    let receiver =
        ["receiver", "--listen", "nowhere", "--tls-cert", "c", "--tls-key", &tls_key, "--secret-file", &secret];
    for (role, flags) in [
        (&gateway[..], &["--tls-key", "--nats-password-file", "--nats-key"][..]),
        (&[&keystore[..], &shared].concat(), &["--secrets-key-file", "--signing-key-file", "--nats-password-file"]),
        (&receiver, &["--tls-key", "--secret-file"]),
    ] {
        let refused = ended(&mut stage0(role));
        assert_eq!((refused.code, refused.out.as_str()), (64, ""), "{}", refused.err);
        for flag in flags {
            assert!(refused.err.contains(&format!("  {flag}: others may read or change `")), "{flag}: {}", refused.err);
        }
        assert!(refused.err.contains("(its mode is 0644): type `chmod 600 ") && !refused.err.contains("hunter2"));
        assert!(role[0] == "keystore" || refused.err.contains("--listen: must be"), "{}", refused.err);
    }
    let config = dir.path().join("s.toml");
    std::fs::write(&config, "nats-password = 'hunter2'").unwrap();
    for (mode, refused) in [(0o644, true), (0o600, false)] {
        allow(&config, mode);
        let told = ended(stage0(&["evaluator", "--nats", "x"]).arg("--config").arg(&config)).err;
        assert_eq!(told.contains("`nats-password` in ") && told.contains("chmod 600"), refused, "{told}");
    }
}

#[test]
fn the_keystore_removes_the_rights_of_others_on_its_files() {
    let dir = tempfile::tempdir().unwrap();
    Dev::start(dir.path()).kill();
    for file in ["signing.key", "secrets.key", "operator.key", "journal"] {
        allow(&dir.path().join(file), 0o644);
    }
    allow(dir.path(), 0o777);
    let dev = Dev::start(dir.path());
    assert_eq!(open_to_others(dir.path()), []);
    let (_, log) = dev.stop();
    assert_eq!(log.matches("others could read a file of the keystore").count(), 4, "{log}");
}

#[test]
fn best_effort_audit_is_reported_at_the_start_and_by_status() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start_with(dir.path(), &["--audit", "best-effort"]);
    let status = dev.ask(&["status"]);
    assert!(status.out.contains("audit: best-effort"), "{}{}", status.out, status.err);
    let (_, log) = dev.stop();
    assert!(log.contains("WARN") && log.contains("audit is `best-effort`"), "{log}");
    let usual = Dev::start(&dir.path().join("usual"));
    let (_, log) = usual.stop();
    assert!(!log.contains("best-effort"), "{log}");
}
