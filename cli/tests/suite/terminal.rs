//! Output on a terminal and in a pipe. The terminal is `script` of util-linux, which every Debian has.

use std::process::Command;

use serde_json::json;

use crate::harness::Dev;

/// The output of the command on a terminal of the given width.
fn at_terminal(command: &Command, columns: u32, variables: &[(&str, &str)]) -> String {
    let mut script = on_terminal(command, columns, variables);
    let output = script.stdin(std::process::Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("`script` of util-linux (Debian: bsdutils) is needed: {error}"));
    String::from_utf8(output.stdout).unwrap().replace("\r\n", "\n")
}

/// The command on a terminal of the given width. The terminal shows what is typed as well.
pub(crate) fn on_terminal(command: &Command, columns: u32, variables: &[(&str, &str)]) -> Command {
    let quoted = |text: &std::ffi::OsStr| format!("'{}'", text.to_str().unwrap().replace('\'', r"'\''"));
    let words: Vec<String> = std::iter::once(command.get_program()).chain(command.get_args()).map(quoted).collect();
    let line = format!("stty cols {columns}; {}", words.join(" "));
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &line, "/dev/null"]);
    for name in std::env::vars_os().map(|(name, _)| name).filter(|name| name.to_string_lossy().starts_with("STAGE0_")) {
        script.env_remove(name);
    }
    script.env_remove("NO_COLOR").env("TERM", "xterm").envs(variables.iter().copied());
    script
}

#[test]
fn lists_fit_the_terminal_and_only_terminals_have_colours() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let denied = json!({"goal": "Deploy the hotfix to production", "success_criteria": ["it runs"],
        "side_effects": ["deploy"], "environment": "production",
        "context": {"run_id": "a-run-with-a-long-name-1234567890"}});
    assert_eq!(dev.check(&denied, &[]).code, 1);
    let list = dev.client(&["decisions", "list", "--oldest-first"]);

    let narrow = at_terminal(&list, 80, &[("NO_COLOR", "1")]);
    let lines: Vec<&str> = narrow.lines().collect();
    assert!(lines.len() == 2 && lines.iter().all(|line| line.chars().count() <= 80), "{narrow}");
    assert!(lines[0].ends_with("REQUEST") && lines[1].contains("  DENY  ") && lines[1].contains('…'), "{narrow}");
    assert!(!narrow.contains('\u{1b}'), "NO_COLOR: {narrow:?}");
    let wide = at_terminal(&list, 300, &[]);
    assert!(wide.contains("\u{1b}[31mDENY\u{1b}[0m") && wide.contains("a-run-with-a-long-name-1234567890"), "{wide:?}");
    assert!(!wide.contains('…'), "{wide}");
    assert!(!at_terminal(&list, 300, &[("TERM", "dumb")]).contains('\u{1b}'));

    let piped = dev.ask(&["decisions", "list", "--oldest-first"]);
    assert!(
        piped.out.contains("a-run-with-a-long-name-1234567890") && !piped.out.contains(['\u{1b}', '…']),
        "{}",
        piped.out
    );

    let file = dir.path().join("action.json");
    std::fs::write(&file, denied.to_string()).unwrap();
    let mut check = dev.client(&["check"]);
    check.arg(&file);
    assert!(at_terminal(&check, 80, &[]).starts_with("\u{1b}[31mDENY\u{1b}[0m (NO_GO)\n"));
    assert!(at_terminal(&check, 80, &[("NO_COLOR", "1")]).starts_with("DENY (NO_GO)\n"));
}
