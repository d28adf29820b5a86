//! Events of coding agents: one that cannot be read is denied in the agent's own form, and only an ALLOW of a call lets
//! its tool run.
//!
//! Every agent's reader gets every input. What an agent waits for before it runs a tool is never taken for another
//! event.

use std::sync::LazyLock;

use serde_json::{Value, json};
use stage0_contract::parse_strict;
use stage0_guard::{Agent, Answer, Decision, Event, Options, Table, ToolCall, answer, ask, read};

use crate::Target;

pub(crate) const TARGET: Target = Target::new("hook_event", check);

const ID: &str = "01940a6e-8c00-7d7a-b1f5-2f4d3c1a9e55";
const MAX_REASON_CHARS: usize = 200;

static TABLE: LazyLock<Table> = LazyLock::new(|| Table::builtin().unwrap());

fn check(input: &[u8]) -> bool {
    let mut is_call = false;
    for agent in Agent::ALL {
        for grant_permission in [false, true] {
            let options = Options { grant_permission, ..Options::default() };
            is_call |= is_answered(agent, input, &options);
        }
    }
    is_call
}

fn allow() -> Decision {
    Decision::Allow { request_id: ID.to_owned() }
}

fn refusals() -> [Decision; 3] {
    [
        Decision::Deny { request_id: ID.to_owned(), text: "no".to_owned() },
        Decision::Defer { request_id: ID.to_owned(), text: String::new() },
        Decision::undecided("the server cannot be reached"),
    ]
}

/// The events before which an agent waits.
fn gates(agent: Agent) -> &'static [&'static str] {
    match agent {
        Agent::ClaudeCode | Agent::Codex => &["PreToolUse"],
        Agent::Cursor => {
            &["preToolUse", "beforeShellExecution", "beforeMCPExecution", "beforeReadFile", "beforeTabFileRead"]
        }
        Agent::Gemini => &["BeforeTool"],
        Agent::OpenCode => &["tool.execute.before"],
    }
}

/// Whether the input is a call.
fn is_answered(agent: Agent, input: &[u8], options: &Options) -> bool {
    let event = match read(agent, input) {
        Ok(event) => event,
        Err(why) => {
            assert!(why.to_string().chars().count() <= MAX_REASON_CHARS, "{why}");
            for decision in refusals().iter().chain([&allow()]) {
                denies(agent, &answer(agent, None, decision, options));
            }
            return false;
        }
    };
    let Ok(Value::Object(members)) = parse_strict(input) else { panic!("{agent} reads what is no strict JSON") };
    let name = members["hook_event_name"].as_str().expect("an event has a name");
    let is_gate = gates(agent).iter().any(|gate| gate.eq_ignore_ascii_case(name.trim()));
    let Event::Call(call) = &event else {
        assert!(!is_gate, "{agent} takes {name} for {event:?}");
        for decision in refusals().iter().chain([&allow()]) {
            let answered = answer(agent, Some(&event), decision, options);
            assert_eq!((answered.exit_code, answered.body), (0, json!({})), "{agent} {name}");
        }
        return false;
    };
    assert!(is_gate, "{agent} takes {name} for a call");
    for decision in &refusals() {
        denies(agent, &answer(agent, Some(&event), decision, options));
    }
    let allowed = answer(agent, Some(&event), &allow(), options);
    assert!(allowed.exit_code == 0 && allowed.body != json!({}) && allowed.stderr.is_empty(), "{allowed:?}");
    assert!(allowed.stdout().ends_with("}\n") && allowed.stdout().lines().count() == 1, "{allowed:?}");
    is_asked(call, options);
    true
}

/// A denial holds by its exit code and by its body, whichever of the two arrives.
fn denies(agent: Agent, answered: &Answer) {
    let body = &answered.body;
    let word = match agent {
        Agent::ClaudeCode | Agent::Codex => &body["hookSpecificOutput"]["permissionDecision"],
        Agent::Cursor => &body["permission"],
        Agent::Gemini | Agent::OpenCode => &body["decision"],
    };
    assert_eq!((answered.exit_code, word), (2, &json!("deny")), "{agent}: {answered:?}");
    assert!(!answered.stderr.trim().is_empty(), "{agent}: {answered:?}");
}

/// The same call is asked about alike, whatever its agent calls it, and with an effect.
fn is_asked(call: &ToolCall, options: &Options) {
    let asked = ask::body(&TABLE, options, call);
    let again = ToolCall { call_id: Some("another".to_owned()), ..call.clone() };
    assert_eq!(asked, ask::body(&TABLE, options, &again), "an approval would not be of this call");
    let effects = asked["side_effects"].as_array().expect("side effects are listed");
    assert!(!effects.is_empty() && effects.iter().all(Value::is_string), "{effects:?}");
    assert!(asked["goal"].as_str().is_some_and(|goal| !goal.contains(char::is_control)), "{}", asked["goal"]);
}
