//! Every event of `fixtures/events.json`: what it is, what is asked, and what each agent is answered.
//!
//! Other implementations are held to the same file. `STAGE0_GUARD_FIXTURES=write` writes what this crate does into it;
//! what changes then is read before it is kept.

use serde_json::{Value, json};
use stage0_contract::CheckRequest;
use stage0_guard::{Agent, Answer, Decision, Event, Options, Table, answer, ask, read};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/events.json");
const ID: &str = "01940a6e-8c00-7d7a-b1f5-2f4d3c1a9e55";

fn fixtures() -> Vec<Value> {
    serde_json::from_str(&std::fs::read_to_string(PATH).unwrap()).unwrap()
}

fn bytes(fixture: &Value) -> Vec<u8> {
    fixture["event"].to_string().into_bytes()
}

fn agent(fixture: &Value) -> Agent {
    fixture["agent"].as_str().unwrap().parse().unwrap()
}

fn allow() -> Decision {
    Decision::Allow { request_id: ID.to_owned() }
}

fn shown(answer: &Answer) -> Value {
    json!({"body": answer.body, "stdout": answer.stdout(), "stderr": answer.stderr, "exit_code": answer.exit_code})
}

/// All that the crate says about an event.
fn judged(fixture: &Value) -> Value {
    let table = Table::builtin().unwrap();
    let options = Options { environment: Some("development".to_owned()), ..Options::default() };
    let agent = agent(fixture);
    let event = read(agent, &bytes(fixture));
    let (kind, more) = match &event {
        Ok(Event::Call(call)) => ("call", json!({"call_id": call.call_id, "asked": ask::body(&table, &options, call)})),
        Ok(Event::Ended(end)) => (
            "ended",
            json!({"tool": end.tool, "call_id": end.call_id, "status": end.status.as_str(),
                "duration_ms": end.duration_ms}),
        ),
        Ok(Event::SessionStarted { session }) => ("session_started", json!({"session": session})),
        Ok(Event::SessionEnded { session }) => ("session_ended", json!({"session": session})),
        Ok(Event::Other { .. }) => ("other", json!({})),
        Err(why) => ("refused", json!({"why": why.to_string()})),
    };
    let event = event.ok();
    let deny = Decision::Deny { request_id: ID.to_owned(), text: "not allowed".to_owned() };
    let answers = json!({
        "allow": shown(&answer(agent, event.as_ref(), &allow(), &options)),
        "deny": shown(&answer(agent, event.as_ref(), &deny, &options)),
    });
    json!({"kind": kind, "details": more, "answers": answers})
}

#[test]
fn each_event_is_read_asked_about_and_answered_as_the_fixture_says() {
    let mut all = fixtures();
    if std::env::var("STAGE0_GUARD_FIXTURES").is_ok_and(|value| value == "write") {
        for fixture in &mut all {
            let expected = judged(fixture);
            fixture.as_object_mut().unwrap().insert("expected".to_owned(), expected);
        }
        // Tests beside this one read the file at any time.
        let whole = format!("{PATH}.new");
        std::fs::write(&whole, serde_json::to_string_pretty(&all).unwrap() + "\n").unwrap();
        std::fs::rename(whole, PATH).unwrap();
    }
    for fixture in all {
        assert_eq!(judged(&fixture), fixture["expected"], "{}", fixture["about"]);
    }
}

#[test]
fn what_is_asked_is_a_valid_check() {
    let mut calls = 0;
    for fixture in fixtures() {
        let asked = judged(&fixture)["details"]["asked"].clone();
        if asked.is_object() {
            calls += 1;
            let request = CheckRequest::parse(asked).unwrap();
            assert!(!request.side_effects.is_empty() && request.unknown.is_empty(), "{}", fixture["about"]);
        }
    }
    assert!(calls > 25, "{calls}");
}

#[test]
fn only_an_allow_to_a_call_lets_a_tool_run() {
    let options = Options::default();
    let refusals = [
        Decision::Deny { request_id: ID.to_owned(), text: "no".to_owned() },
        Decision::Defer { request_id: ID.to_owned(), text: String::new() },
        Decision::undecided("the server cannot be reached"),
    ];
    for fixture in fixtures() {
        let (agent, about) = (agent(&fixture), &fixture["about"]);
        let event = read(agent, &bytes(&fixture));
        for refusal in &refusals {
            let answered = answer(agent, event.as_ref().ok(), refusal, &options);
            let is_no_call = matches!(&event, Ok(event) if !matches!(event, Event::Call(_)));
            assert_eq!(answered.exit_code, if is_no_call { 0 } else { 2 }, "{about}");
            assert_eq!(answered.stderr.trim().is_empty(), is_no_call, "{about}");
            assert_eq!(answered.body == json!({}), is_no_call, "{about}");
        }
        if event.is_err() {
            let answered = answer(agent, None, &allow(), &options);
            assert_eq!((answered.exit_code, answered.body.to_string().contains("deny")), (2, true), "{about}");
        }
    }
}

#[test]
fn an_allow_leaves_the_agents_own_prompts_unless_it_is_granted() {
    for agent in Agent::ALL {
        let event = fixtures()
            .into_iter()
            .filter(|f| f["agent"] == agent.as_str())
            .find_map(|f| read(agent, &bytes(&f)).ok().filter(|event| matches!(event, Event::Call(_))));
        let plain = answer(agent, event.as_ref(), &allow(), &Options::default());
        assert!(plain.body.get("permission").is_none() && plain.exit_code == 0, "{agent}");
        assert!(plain.body.pointer("/hookSpecificOutput/permissionDecision").is_none(), "{agent}");
        assert_ne!(plain.body, json!({}), "{agent}: an empty body is what an accident looks like");
        let granted =
            answer(agent, event.as_ref(), &allow(), &Options { grant_permission: true, ..Options::default() });
        let says = granted.body.to_string().contains(r#""allow""#);
        assert_eq!(says, agent != Agent::Codex, "Codex runs the tool if it is told `allow`: {}", granted.body);
    }
}

#[test]
fn the_same_call_is_asked_about_in_the_same_words() {
    let table = Table::builtin().unwrap();
    let body = |event: Value| match read(Agent::ClaudeCode, event.to_string().as_bytes()).unwrap() {
        Event::Call(call) => ask::body(&table, &Options::default(), &call),
        other => panic!("{other:?}"),
    };
    let event = |input: Value, id: &str| {
        json!({"hook_event_name": "PreToolUse", "session_id": "s", "cwd": "/p", "tool_name": "Bash",
            "tool_input": input, "tool_use_id": id, "transcript_path": id, "prompt_id": id})
    };
    let first = body(event(json!({"command": "ls", "description": "a"}), "1"));
    assert_eq!(first, body(event(json!({"description": "b", "command": "ls"}), "2")));
    assert_eq!(first, body(event(json!({"command": "ls", "timeout": 1}), "1")), "a time limit is no other action");
    let background = json!({"command": "ls", "run_in_background": true});
    assert_ne!(first, body(event(background, "1")), "what changes the call is bound");
    assert_ne!(first, body(event(json!({"command": "ls "}), "1")));
}

#[test]
fn an_event_that_cannot_be_read_is_refused() {
    let large = format!(r#"{{"hook_event_name":"PreToolUse","x":"{}"}}"#, "a".repeat(1_000_000));
    let twice = r#"{"hook_event_name":"PreToolUse","tool_name":"Read","tool_name":"Bash","tool_input":{}}"#;
    for agent in Agent::ALL {
        for bytes in ["", "null", "[]", "{", "{}", twice, &large, "\u{1}"] {
            assert!(read(agent, bytes.as_bytes()).is_err(), "{agent}: {}", &bytes[..bytes.len().min(40)]);
        }
    }
}

#[test]
fn what_a_person_configured_stands_beside_what_the_guard_saw_and_never_in_its_place() {
    let text = "environment = \"test\"\n[context]\ncredentials = [\"test\"]\nrun_id = \"other\"\ncommand = \"ls\"\n";
    let table = Table::builtin().unwrap().with("guard.toml", text).unwrap();
    let context = json!({"branch": "agent/x", "agent_id": "other", "arguments_sha256": "0", "target_resources": ["a"]});
    let options = Options { context: context.as_object().unwrap().clone(), ..Options::default() };
    let event = fixtures().into_iter().find(|f| f["about"] == "Claude Code deletes").unwrap();
    let Ok(Event::Call(call)) = read(Agent::ClaudeCode, &bytes(&event)) else { panic!("no call") };
    let body = ask::body(&table, &options, &call);
    assert_eq!(body["environment"], "test");
    assert_eq!(body["context"]["credentials"], json!(["test"]));
    assert_eq!(body["context"]["branch"], "agent/x");
    assert_eq!(body["context"]["agent_id"], "claude-code");
    assert_eq!(body["context"]["run_id"], "5f1c");
    assert_eq!(body["context"]["command"], "rm -rf build");
    assert_eq!(body["context"]["target_resources"], json!(["build"]));
    assert_eq!(body["context"]["arguments_sha256"], json!(ask::arguments_sha256(&call.arguments)));
    let mut bare = call;
    (bare.session, bare.tool) = (None, "TodoRead".to_owned());
    let body = ask::body(&table, &options, &bare);
    assert_eq!((body["context"].get("run_id"), body["context"].get("command")), (None, None), "not made up either");
}

#[test]
fn no_contents_and_no_unnamed_argument_is_sent() {
    for fixture in fixtures() {
        let asked = judged(&fixture)["details"]["asked"].to_string();
        for absent in ["new_string", "old_string", "content", "newString", "secret", "toolu_", "call_1", "transcript"] {
            assert!(!asked.contains(absent), "{}: {absent}", fixture["about"]);
        }
    }
}

fn asked(agent: Agent, event: &Value) -> Value {
    match read(agent, event.to_string().as_bytes()).unwrap() {
        Event::Call(call) => ask::body(&Table::builtin().unwrap(), &Options::default(), &call),
        other => panic!("{other:?}"),
    }
}

fn effects(agent: Agent, cwd: &str, tool: &str, input: &Value) -> String {
    let event = match agent {
        Agent::OpenCode => {
            json!({"hook_event_name": "tool.execute.before", "directory": cwd, "tool": tool, "args": input})
        }
        Agent::Cursor => json!({"hook_event_name": "preToolUse", "cwd": cwd, "tool_name": tool, "tool_input": input}),
        Agent::Gemini => json!({"hook_event_name": "BeforeTool", "cwd": cwd, "tool_name": tool, "tool_input": input}),
        _ => json!({"hook_event_name": "PreToolUse", "cwd": cwd, "tool_name": tool, "tool_input": input}),
    };
    asked(agent, &event)["side_effects"].to_string()
}

#[test]
fn a_directory_that_a_call_names_never_becomes_the_project() {
    let at = "/home/ada/project";
    for (agent, tool, input, effect) in [
        (Agent::Codex, "Bash", json!({"command": "cp evil passwd", "workdir": "/etc"}), "overwrite"),
        (Agent::Codex, "exec_command", json!({"cmd": "tee cron.d/x", "workdir": "/etc"}), "overwrite"),
        (
            Agent::Codex,
            "Bash",
            json!({"command": "cp x settings.json", "workdir": "/home/u/.claude"}),
            "permission_change",
        ),
        (Agent::Codex, "Bash", json!({"command": "cat config", "workdir": "/home/u/.kube"}), "read: credentials"),
        (Agent::Codex, "Bash", json!({"command": "cp x y", "workdir": "../../.."}), "overwrite"),
        (Agent::Gemini, "run_shell_command", json!({"command": "cp x y", "dir_path": "/etc"}), "overwrite"),
        (Agent::OpenCode, "bash", json!({"command": "cp x y", "workdir": "/etc"}), "overwrite"),
        (Agent::Cursor, "Shell", json!({"command": "cp x y", "working_directory": "/etc"}), "overwrite"),
    ] {
        let found = effects(agent, at, tool, &input);
        assert!(found.contains(effect), "{agent} {input}: {found}");
    }
    for moved in ["/home/ada/project", "/home/ada/project/sub", "sub", "./sub"] {
        let found = effects(Agent::Codex, at, "Bash", &json!({"command": "cp x y", "workdir": moved}));
        assert_eq!(found, r#"["filesystem_modification"]"#, "{moved}");
    }
}

#[test]
fn a_session_in_a_home_or_a_directory_of_the_system_has_no_project() {
    for (cwd, tool, input, effect) in [
        ("/home/u/.claude", "Write", json!({"file_path": "settings.json"}), "permission_change"),
        ("/home/u/.kube", "Read", json!({"file_path": "config"}), "read: credentials"),
        ("/etc", "Write", json!({"file_path": "/etc/passwd"}), "overwrite"),
        ("/home/u", "Write", json!({"file_path": ".config/opencode/plugin/stage0.js"}), "permission_change"),
        ("/home/u/p", "Write", json!({"file_path": "/home/u/p/l/../etc/cron.d/x"}), "overwrite"),
    ] {
        let found = effects(Agent::ClaudeCode, cwd, tool, &input);
        assert!(found.contains(effect), "{cwd} {input}: {found}");
    }
    let found = effects(Agent::ClaudeCode, "/home/u/p", "Write", &json!({"file_path": "src/a.rs"}));
    assert_eq!(found, r#"["code_modification"]"#);
}

#[test]
fn arguments_that_change_what_a_call_does_are_looked_at() {
    let at = "/home/ada/project";
    for (agent, tool, input, effect) in [
        (Agent::Codex, "exec_command", json!({"command": "ls", "cmd": "rm -rf /"}), "unknown"),
        (
            Agent::Codex,
            "apply_patch",
            json!({"command": "*** Add File: a", "input": "*** Add File: /etc/x"}),
            "unknown",
        ),
        (Agent::Codex, "exec_command", json!({"cmd": "ls", "shell": "./evil/bash"}), "unknown"),
        (Agent::Codex, "shell", json!({"command": ["/tmp/evil/sh", "-lc", "ls"]}), "unknown"),
        (Agent::Codex, "shell", json!({"command": ["ls"], "with_escalated_permissions": true}), "privilege_escalation"),
        (
            Agent::Codex,
            "Bash",
            json!({"command": "ls", "sandbox_permissions": "require_escalated"}),
            "privilege_escalation",
        ),
        (
            Agent::ClaudeCode,
            "Bash",
            json!({"command": "ls", "dangerouslyDisableSandbox": true}),
            "privilege_escalation",
        ),
        (Agent::Cursor, "Shell", json!({"command": "ls", "required_permissions": ["all"]}), "privilege_escalation"),
        (Agent::ClaudeCode, "Grep", json!({"pattern": ".", "path": ".", "glob": ".env"}), "read: credentials"),
        (Agent::Cursor, "Grep", json!({"pattern": ".", "glob": ".env"}), "read: credentials"),
        (Agent::Gemini, "grep_search", json!({"pattern": ".", "include_pattern": ".env"}), "read: credentials"),
        (Agent::Gemini, "read_many_files", json!({"paths": [".e*v"]}), "read: credentials"),
        (Agent::Gemini, "read_many_files", json!({"include": ["**/.e?v"]}), "read: credentials"),
        (Agent::OpenCode, "grep", json!({"pattern": ".", "include": ".env"}), "read: credentials"),
        (Agent::ClaudeCode, "WebFetch", json!({"url": "file:///etc/passwd"}), "unknown"),
        (Agent::ClaudeCode, "WebFetch", json!({"url": "http://169.254.169.254/latest"}), "read: credentials"),
    ] {
        let found = effects(agent, at, tool, &input);
        assert!(found.contains(effect), "{agent} {input}: {found}");
    }
    for (agent, tool, input, expected) in [
        (Agent::Codex, "shell", json!({"command": ["/bin/bash", "-lc", "ls"]}), r#"["read"]"#),
        (Agent::Codex, "shell", json!({"command": ["ls"], "with_escalated_permissions": false}), r#"["read"]"#),
        (Agent::Codex, "Bash", json!({"command": "ls", "sandbox_permissions": "use_default"}), r#"["read"]"#),
        (Agent::Cursor, "Shell", json!({"command": "ls", "required_permissions": []}), r#"["read"]"#),
        (Agent::ClaudeCode, "Grep", json!({"pattern": ".", "glob": "*.{ts,tsx}"}), r#"["read"]"#),
        (Agent::ClaudeCode, "WebFetch", json!({"url": "https://example.com:8443/a"}), r#"["external_api"]"#),
    ] {
        assert_eq!(effects(agent, at, tool, &input), expected, "{agent} {input}");
    }
}

#[test]
fn an_approval_is_of_one_directory_however_long_it_is() {
    let body = |cwd: &str| {
        asked(
            Agent::ClaudeCode,
            &json!({"hook_event_name": "PreToolUse", "cwd": cwd, "tool_name": "Bash",
                "tool_input": {"command": "rm -rf q"}}),
        )
    };
    let long = format!("/{}", "x".repeat(1_050));
    assert_ne!(body(&format!("{long}/A")), body(&format!("{long}/B")));
    assert_ne!(body("/x/y"), body("/x/y\n"));
    assert_ne!(body("/x/y\t"), body("/x/y\n"));
    assert!(body("/x/y")["context"].get("working_directory_sha256").is_none());
}
