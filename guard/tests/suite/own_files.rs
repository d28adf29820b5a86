//! The guard's own files, wherever they lie: to change one is more than an ordinary change, and what lies beside it is
//! as ordinary as before.

use serde_json::{Value, json};
use stage0_guard::{Agent, Event, Options, Table, ask, read};

const PROJECT: &str = "/home/ada/project";
const CONTROL: &str = "permission_change";

/// As a hook is given them: a table and a data directory in the project, all else elsewhere.
fn options() -> Options {
    let own = [
        "/home/ada/project/conf/rules.toml",
        "/home/ada/project/data",
        "/home/ada/project/.hidden/state",
        "/home/ada/keys/agent",
        "~/keys/agent",
        "/srv/Trust/ca.crt",
        "/opt/stage0/bin/stage0",
    ];
    Options { own_files: own.map(str::to_owned).to_vec(), ..Options::default() }
}

fn asked(options: &Options, tool: &str, input: &Value) -> Value {
    let event = json!({"hook_event_name": "PreToolUse", "cwd": PROJECT, "tool_name": tool, "tool_input": input});
    match read(Agent::ClaudeCode, event.to_string().as_bytes()).unwrap() {
        Event::Call(call) => ask::body(&Table::builtin().unwrap(), options, &call),
        other => panic!("{other:?}"),
    }
}

fn is_control(tool: &str, input: &Value) -> bool {
    let effects = asked(&options(), tool, input)["side_effects"].clone();
    effects.as_array().unwrap().iter().any(|effect| effect == CONTROL)
}

#[test]
fn a_tool_that_changes_one_of_the_guards_files_changes_what_the_guard_does() {
    for path in [
        "conf/rules.toml",
        "./conf/./rules.toml",
        "/home/ada/project/conf/rules.toml",
        "CONF/Rules.toml",
        "src/../conf/rules.toml",
        "data/x",
        "data/a/b.json",
        ".hidden/state/calls/1",
        "/home/ada/keys/agent",
        "../keys/agent",
        "~/keys/agent",
        "/srv/trust/CA.crt",
        "/opt/stage0/bin/stage0",
    ] {
        for tool in ["Write", "Edit", "NotebookEdit"] {
            assert!(is_control(tool, &json!({"file_path": path})), "{tool} {path}");
        }
        assert!(!is_control("Read", &json!({"file_path": path})), "to read {path} is what it was");
    }
    for path in
        ["conf/rules.toml.bak", "conf/other.toml", "rules.toml", "database/x", ".hidden/x", "src/data/x", "conf.toml"]
    {
        let body = asked(&options(), "Write", &json!({"file_path": path}));
        assert_eq!(body["side_effects"], json!(["code_modification"]), "{path}");
    }
    for path in ["/home/ada/keys/agent2", "/opt/stage0/bin/other", "/srv/trust/x"] {
        assert!(!is_control("Write", &json!({"file_path": path})), "{path}");
    }
}

#[test]
fn a_command_that_changes_one_of_the_guards_files_changes_what_the_guard_does() {
    for command in [
        "cp x conf/rules.toml",
        "cp evil/rules.toml conf",
        "cp evil/rules.toml conf/",
        "mv conf old",
        "mv other conf",
        "rm -rf data",
        "echo x > conf/rules.toml",
        "echo x >> /home/ada/project/conf/rules.toml",
        "sed -i s/a/b/ conf/rules.toml",
        "sed -i s/a/b/ conf/*.toml",
        "touch conf/r?les.toml",
        "sed -i s/a/b/ **/rules.toml",
        "cd conf && cp ../x rules.toml",
        "cd conf && cp ../evil/rules.toml .",
        "tee data/keys.json",
        "touch .h*/state/x",
        "mkdir -p data/a",
        "ln -sf /tmp/x conf/rules.toml",
        "find conf -name '*.md' -exec sed -i s/a/b/ {} +",
        "cp /tmp/x /opt/stage0/bin/stage0",
        "mv /tmp/agent ~/keys/agent",
        "curl -so /srv/trust/ca.crt https://example.com/ca",
        "dd if=/tmp/x of=/home/ada/keys/agent",
        "bash -c 'cp x conf/rules.toml'",
    ] {
        assert!(is_control("Bash", &json!({"command": command})), "{command}");
    }
    for (command, effects) in [
        ("cat conf/rules.toml", json!(["read"])),
        ("cp conf/rules.toml /tmp/x", json!(["filesystem_modification"])),
        ("ls data", json!(["read"])),
        ("cp x conf/other.toml", json!(["filesystem_modification"])),
        ("cp x .", json!(["filesystem_modification"])),
        ("touch database", json!(["filesystem_modification"])),
        ("sed -i s/a/b/ src/*.rs", json!(["filesystem_modification"])),
        ("sed -i s/a/b/ **/*.rs", json!(["filesystem_modification"])),
        ("touch conf/*.md", json!(["filesystem_modification"])),
        ("mkdir -p src/data", json!(["filesystem_modification"])),
        ("find src -name '*.md' -exec sed -i s/a/b/ {} +", json!(["filesystem_modification"])),
    ] {
        let body = asked(&options(), "Bash", &json!({"command": command}));
        assert_eq!(body["side_effects"], effects, "{command}");
    }
}

#[test]
fn a_pattern_reaches_a_hidden_name_only_as_a_shell_has_it() {
    let own_files = vec!["/home/ada/project/.data".to_owned()];
    let options = Options { own_files, ..Options::default() };
    let body = asked(&options, "Bash", &json!({"command": "touch *"}));
    assert!(!body["side_effects"].to_string().contains(CONTROL), "{body}");
    let body = asked(&options, "Bash", &json!({"command": "touch .d*"}));
    assert!(body["side_effects"].to_string().contains(CONTROL), "{body}");
}

#[test]
fn a_server_tool_that_the_table_lets_write_files_is_held_to_the_same() {
    let text = r#"
        [[mcp]]
        server = "fs"
        tool = "write"
        reader = "write"
        effects = ["filesystem_modification"]
        targets = ["path"]
    "#;
    let table = Table::builtin().unwrap().with("guard.toml", text).unwrap();
    let effects = |path: &str| {
        let call = stage0_guard::ToolCall {
            server: Some("fs".to_owned()),
            tool: "write".to_owned(),
            arguments: json!({"path": path}).as_object().unwrap().clone(),
            ..stage0_guard::ToolCall::default()
        };
        ask::body(&table, &options(), &call)["side_effects"].to_string()
    };
    assert!(effects("/home/ada/project/conf/rules.toml").contains(CONTROL));
    assert!(!effects("/home/ada/project/conf/other.toml").contains(CONTROL));
    assert!(!effects("conf/rules.toml").contains(CONTROL), "where that lies is not known");
}

#[test]
fn the_guards_files_are_no_part_of_what_is_asked() {
    let inputs = [
        ("Write", json!({"file_path": "src/a.rs"})),
        ("Bash", json!({"command": "cp x conf/other.toml"})),
        ("Read", json!({"file_path": "conf/rules.toml"})),
    ];
    for (tool, input) in inputs {
        assert_eq!(asked(&options(), tool, &input), asked(&Options::default(), tool, &input), "{tool} {input}");
    }
    let body = asked(&options(), "Write", &json!({"file_path": "conf/rules.toml"})).to_string();
    for absent in ["/srv/Trust", "keys/agent", "/opt/stage0", ".hidden"] {
        assert!(!body.to_lowercase().contains(&absent.to_lowercase()), "{absent}");
    }
}

#[test]
fn what_could_not_be_read_of_a_call_is_named_by_its_kind_alone() {
    let body = asked(&options(), "Bash", &json!({"command": "eval \"$SECRET_WORD\" hunter2"}));
    let unread = ask::unread(&body);
    assert!(unread.iter().any(|kind| kind == "`eval`"), "{unread:?}");
    assert!(!unread.iter().any(|kind| kind.contains("hunter2") || kind.contains("SECRET_WORD")), "{unread:?}");
    assert!(ask::unread(&asked(&options(), "Bash", &json!({"command": "ls"}))).is_empty());
    assert!(ask::unread(&asked(&options(), "Read", &json!({"file_path": "eval"}))).is_empty());
}
