//! Rules about tools hold whatever way the name of a tool is written, and work and details stay within bounds.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use stage0_contract::Decision;
use stage0_policy::{Engine, Pack, RunHistory, RunSnapshot, TimeLimit};

use super::facts::{asked, body, full_asker, issue, rule, with_case, with_rules};

const PSQL: [&str; 9] = [
    "psql",
    "psql(select 1)",
    "psql (x)",
    "mcp__db__psql",
    "functions.psql",
    "db:psql",
    "psql;",
    "./psql",
    "psql('\u{416}')",
];
const SEND_EMAIL: [&str; 11] = [
    "send_email",
    "sendEmail",
    "SendEmail",
    "send_email(to=x)",
    "mcp__mail__send_email",
    "mcp__mail__sendEmail",
    "send.email",
    "send/email",
    "send__email",
    "send  email",
    "send_email_",
];

/// A pack with one rule of its own, which this request satisfies in a run of nine calls of `mail.sendEmail`. The rule
/// advises, because the cases of the baseline are the pack's cases too.
fn engine(condition: &str, more: &str, satisfies: Value) -> Engine {
    let run = json!({"calls": {"mail.sendEmail": 9}});
    let case = json!({"id": "own", "expect": ["ALLOW", "DENY"], "codes": ["OWN"], "run": run,
        "request": body(satisfies)});
    let pack = with_case(with_rules(&rule("advise", more, condition)), &case);
    Engine::new(Pack::from_dir(pack.folder.path()).unwrap_or_else(|error| panic!("{error:#?}"))).unwrap()
}

fn decide(engine: &Engine, request: Value, history: RunHistory) -> Decision {
    let snapshot = RunSnapshot { history, ..RunSnapshot::default() };
    let check = asked(&body(request), &full_asker());
    engine.answer(&check, Some(&snapshot), None, TimeLimit::NONE).unwrap().evaluation.decision
}

/// Whether the rule is satisfied.
fn is_found(engine: &Engine, request: Value, tools: &[(&str, i64)]) -> bool {
    let tools = tools.iter().map(|(tool, calls)| ((*tool).to_owned(), *calls)).collect();
    let decision = decide(engine, request, RunHistory { tools, ..RunHistory::default() });
    decision.issues.iter().any(|issue| issue.rule == "own.rule")
}

fn of_tools(tools: &[&str]) -> Value {
    json!({"tools": tools, "context": {"run_id": "r"}})
}

#[test]
fn a_rule_that_forbids_a_tool_finds_every_spelling_of_it_and_no_other_tool() {
    for (tool, spellings, others) in [
        ("psql", &PSQL[..], ["psql_history", "mcp__psql__dump", "psql.dump"]),
        ("send_email", &SEND_EMAIL, ["resend_email", "sendemail", "email.send"]),
    ] {
        let engine = engine(&format!("context.tools.contains(\"{tool}\")"), "", of_tools(&[tool]));
        for spelling in spellings {
            assert!(is_found(&engine, of_tools(&[spelling]), &[]), "{spelling}");
        }
        for other in others {
            assert!(!is_found(&engine, of_tools(&[other]), &[]), "{other}");
        }
    }
}

#[test]
fn a_list_that_allows_takes_the_whole_name_and_nothing_that_only_ends_in_it() {
    for fact in ["tools", "tool_names"] {
        let condition = format!("!([\"psql\", \"run_query\"].containsAll(context.{fact}))");
        let engine = engine(&condition, "", of_tools(&["dump"]));
        for tool in ["psql", "PSQL", "Run-Query"] {
            assert!(!is_found(&engine, of_tools(&[tool]), &[]), "{fact} {tool}");
        }
        for tool in PSQL.into_iter().skip(1).chain(["p\u{455}ql", "?", "psql_history"]) {
            assert!(is_found(&engine, of_tools(&["run_query", tool]), &[]), "{fact} {tool}");
        }
    }
    // A tool of a server is allowed by its whole name, and so by that of its server.
    let listed = "!([\"mcp__db__run_query\"].containsAll(context.tool_names))";
    let engine = engine(listed, "", of_tools(&["dump"]));
    for (tool, is_refused) in [
        ("mcp__db__runQuery", false),
        ("mcp__DB__run-query", false),
        ("mcp__evil__run_query", true),
        ("run_query", true),
        ("x.mcp__db__run_query", true),
    ] {
        assert_eq!(is_found(&engine, of_tools(&[tool]), &[]), is_refused, "{tool}");
    }
}

#[test]
fn a_limit_of_calls_holds_for_every_spelling() {
    let condition =
        "context.tools.contains(\"send_email\") && (!context.run_named || context.run_calls.send_email >= 3)";
    // The case counts nine calls of `mail.sendEmail`.
    let engine = engine(condition, "", of_tools(&["send_email"]));
    for spelling in SEND_EMAIL {
        assert!(is_found(&engine, of_tools(&[spelling]), &[("send_email", 3)]), "{spelling}");
        assert!(!is_found(&engine, of_tools(&[spelling]), &[("send_email", 2)]), "{spelling}");
        let check = asked(&body(of_tools(&[spelling])), &full_asker());
        let run = engine.answer(&check, Some(&RunSnapshot::default()), None, TimeLimit::NONE).unwrap().run;
        assert_eq!(run.called.unwrap().known["send_email"], 1, "{spelling}");
    }
    // What rules see is what is counted, whatever is called next.
    let beside = json!({"tools": ["send_email"], "context": {"run_id": "r", "current_tool": "think"}});
    let check = asked(&body(beside), &full_asker());
    let called =
        engine.answer(&check, Some(&RunSnapshot::default()), None, TimeLimit::NONE).unwrap().run.called.unwrap();
    assert_eq!(called.known, BTreeMap::from([("send_email".to_owned(), 1), ("think".to_owned(), 1)]));
}

#[test]
fn earlier_calls_that_may_only_be_reported_count_for_limits_and_prove_nothing() {
    let details = "@details(\"run_tools, run_calls\")";
    let engine = engine("context.run_named", details, of_tools(&["x"]));
    let tools = BTreeMap::from([("send_email".to_owned(), 3), ("read_record".to_owned(), 2)]);
    let unproven = BTreeMap::from([("send_email".to_owned(), 3), ("read_record".to_owned(), 1)]);
    let decision = decide(&engine, of_tools(&["x"]), RunHistory { tools, unproven, ..RunHistory::default() });
    let details = &issue(&decision, "own.rule").details;
    assert_eq!(details["run_tools"], json!(["read_record", "?"]), "a rule must not rely on their absence either");
    assert_eq!(details["run_calls"], json!({"read_record": 2, "send_email": 3}));
}

#[test]
fn a_secret_that_only_shows_decoded_is_shown_nowhere() {
    let engine = engine(
        "context.target_count > 0",
        "@details(\"targets\")",
        json!({"context": {"run_id": "r", "target_resources": ["a"]}}),
    );
    let shown = |target: &str| {
        let decision = decide(&engine, json!({"context": {"target_resources": [target]}}), RunHistory::default());
        assert!(decision.issues.iter().all(|issue| issue.code.as_str() != "SECRET_IN_REQUEST"), "{target}");
        issue(&decision, "own.rule").details["targets"][0].as_str().unwrap().to_owned()
    };
    let slack = "https://h/xoxb%2d123456789012%2d123456789012%2dabcdefabcdefabcdefabcdef";
    assert!(!shown(slack).contains("abcdefabcdef"), "{}", shown(slack));
    assert!(!shown("https://h/pass%77ord=hunter2x9").contains("hunter2x9"));
    assert_eq!(shown("https://h/annual%20report/2026"), "https://h/annual report/2026");
}

#[test]
fn names_with_many_separators_make_few_facts() {
    let details = "@details(\"mcp_servers, tools\")";
    let engine =
        engine("context.mcp_servers.contains(\"?\")", details, of_tools(&[&format!("mcp__s{}", "__a".repeat(9))]));
    let many: Vec<String> = (0..200).map(|n| format!("mcp__{n:03}{}", "__a".repeat(330))).collect();
    let tools: Vec<&str> = many.iter().map(String::as_str).collect();
    let decision = decide(&engine, of_tools(&tools), RunHistory::default());
    assert_eq!(issue(&decision, "own.rule").rule, "own.rule");
    assert!(json!(decision).to_string().len() < 100_000);
    let few = format!("mcp__s{}", "__a".repeat(8));
    assert!(!is_found(&engine, of_tools(&[&few]), &[]));
}
