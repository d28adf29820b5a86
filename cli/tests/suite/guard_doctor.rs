//! `stage0 guard doctor codex` with a double of Codex on the PATH. scripts/agents.sh runs it with the real one.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Dev, Ended, ended, run_with_input, stage0};

/// Puts a `codex` into the directory that reads the requests and answers from files.
fn put_codex(dir: &Path) {
    let script = "#!/bin/sh\ncd \"${0%/*}\" || exit 9\ncase $1 in\n--version) echo codex-cli 0.171.0 ;;\n\
        app-server) read -r one; echo '{\"id\":1,\"result\":{}}'; read -r two; read -r three; cat answer ;;\nesac\n";
    // By a process of its own: a child of another test would inherit the open file, and it could not be executed.
    let mut cat = Command::new("/bin/sh");
    cat.args(["-c", "cat > \"$0\" && chmod 755 \"$0\""]).arg(dir.join("codex"));
    assert_eq!(run_with_input(&mut cat, script).code, 0);
}

#[test]
fn doctor_of_codex_fails_until_codex_trusts_the_hook_and_says_where_it_cannot_know() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"));
    let (home, bin) = (dir.path().join("home"), dir.path().join("bin"));
    std::fs::create_dir(&home).unwrap();
    std::fs::create_dir(&bin).unwrap();
    let in_home = |mut command: Command| -> Ended {
        let path = format!("{}:/usr/bin:/bin", bin.display());
        for name in ["CODEX_HOME", "XDG_STATE_HOME"] {
            command.env_remove(name);
        }
        ended(command.env("HOME", &home).env("PATH", path))
    };
    let installed = in_home(dev.client(&["guard", "install", "codex"]));
    assert_eq!(installed.code, 0, "{}", installed.err);
    let doctor = |more: &[&str]| in_home(stage0(&[&["guard", "doctor", "codex"], more].concat()));

    let unknown = doctor(&[]);
    assert_eq!(unknown.code, 0, "{}{}", unknown.out, unknown.err);
    assert!(unknown.out.contains("skip  trust        not checked: `codex` is not on the PATH"), "{}", unknown.out);

    put_codex(&bin);
    let settings = home.join(".codex/hooks.json");
    let hooks: Value = serde_json::from_str(&std::fs::read_to_string(&settings).unwrap()).unwrap();
    let command = &hooks["hooks"]["PreToolUse"][0]["hooks"][0]["command"];
    let answer = |trust: &str| {
        let hook = json!({"eventName": "preToolUse", "command": command, "sourcePath": settings, "enabled": true,
            "trustStatus": trust});
        let answer = json!({"id": 2, "result": {"data": [{"cwd": "/", "hooks": [hook], "errors": []}]}});
        std::fs::write(bin.join("answer"), format!("{answer}\n")).unwrap();
    };
    answer("untrusted");
    let untrusted = doctor(&[]);
    assert_eq!(untrusted.code, 1, "{}", untrusted.out);
    assert!(untrusted.out.contains("BAD   trust        Codex does not trust the hook yet"), "{}", untrusted.out);
    assert!(untrusted.out.contains("ok    must deny"), "the hook itself is good: {}", untrusted.out);

    answer("trusted");
    let trusted = doctor(&[]);
    assert_eq!(trusted.code, 0, "{}", trusted.out);
    assert!(trusted.out.contains("ok    trust        Codex says that it trusts the hook"), "{}", trusted.out);
    assert!(!trusted.out.contains("by hand"), "nothing is left to do: {}", trusted.out);

    std::fs::write(bin.join("answer"), "{\"id\":2,\"error\":{\"code\":-32600,\"message\":\"unknown variant\"}}\n")
        .unwrap();
    let old: Value = serde_json::from_str(&doctor(&["--json"]).out).unwrap();
    let trust = old["findings"].as_array().unwrap().iter().find(|finding| finding["about"] == "trust").unwrap();
    assert_eq!((&old["ok"], &trust["how"]), (&json!(true), &json!("skipped")), "{old}");
    assert!(trust["found"].as_str().unwrap().contains("update it"), "{old}");
}
