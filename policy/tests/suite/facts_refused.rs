//! Rules and schemas that a pack cannot have about facts that only some packs read, and what a short rule need not say.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use stage0_contract::CheckRequest;
use stage0_policy::{Engine, Pack, TimeLimit};

use super::approvals::NOON;
use super::facts::{CUSTOM, RUN_CALLS, asked, body, full_asker, issue, rule, with_case, with_rules, with_types};

/// The faults of a pack with one rule that its own file has, without the one that its missing case brings.
fn faults(effect: &str, more: &str, condition: &str) -> Vec<String> {
    let pack = with_rules(&rule(effect, more, condition));
    let faults = Pack::from_dir(pack.folder.path()).err().map(|error| error.faults).unwrap_or_default().into_iter();
    let faults = faults.filter(|fault| fault.file == "own.cedar" && !fault.message.contains("no case satisfies it"));
    faults.map(|fault| fault.to_string()).collect()
}

#[test]
fn a_rule_about_a_run_that_does_not_say_what_holds_without_one_is_refused() {
    let refused = faults("deny", "", "context.run_calls.send_email >= 3");
    assert!(refused.len() == 1 && refused[0].contains("in `when` write `!context.run_named || …`"), "{refused:#?}");
    assert_eq!(faults("deny", "", "!context.run_named || context.run_calls.send_email >= 3"), [""; 0]);
}

#[test]
fn a_rule_that_asks_whether_the_caller_is_told_is_refused() {
    let refused = faults("deny", "", "context has key_name && context.key_name == \"x\"");
    assert!(refused.len() == 1 && refused[0].contains("must be left out"), "{refused:#?}");
    assert_eq!(faults("deny", "", "context.key_name == \"x\""), [""; 0]);
    assert_eq!(faults("deny", "", "context.custom has amount && context.custom.amount > 5"), [""; 0]);
}

#[test]
fn a_member_of_ones_own_cannot_be_read_without_asking_whether_it_is_there() {
    assert_eq!(faults("deny", "", "context.custom.amount > 500").len(), 1);
    let refused = faults("deny", "", "context.custom has total && context.custom.total > 5");
    assert!(!refused.is_empty(), "{refused:#?}");
}

#[test]
fn a_detail_that_is_no_fact_is_refused_with_the_name_that_was_meant() {
    for (details, told) in [
        ("tolls", "`tolls` is no fact that the evaluator computes: did you mean `tools`?"),
        ("custom.amout", "`type Custom` of the schema does not declare `amout`"),
        ("run_calls.delete", "`type RunCalls` of the schema does not declare `delete`"),
        ("tools.count", "`tools` has no members"),
    ] {
        let refused = faults("advise", &format!("@details(\"bare, {details}\")"), "context.bare");
        assert!(refused.len() == 1 && refused[0].contains(told), "{refused:#?}");
    }
    for details in ["tools", "custom", "custom.amount", "run_calls.send_email, role, next_opening"] {
        assert_eq!(faults("advise", &format!("@details(\"{details}\")"), "context.bare"), [""; 0]);
    }
}

#[test]
fn own_types_that_no_rule_could_use_are_refused_at_their_line() {
    let rules = rule("deny", "", "context.bare");
    let refused = |custom: &str, run_calls: &str| {
        let pack = with_types(&rules, custom, run_calls);
        let text = pack.text("schema.cedarschema");
        let own = pack.faults().into_iter().filter(|fault| fault.file == "schema.cedarschema");
        let told = own.map(|fault| {
            let line = text.lines().nth(fault.line.unwrap() - 1).unwrap();
            format!("{}|{}", line.trim(), fault.message)
        });
        told.collect::<Vec<_>>()
    };
    assert_eq!(refused(CUSTOM, RUN_CALLS), [""; 0]);
    for (from, to, told) in [
        ("amount?: Long", "amount: Long", "amount: Long,|a request may leave `amount` out: write `amount?: Long`"),
        ("amount?: Long", "amount?: ipaddr", "amount?: ipaddr,|`amount` must have one of the types Long, decimal"),
        ("amount?: Long", "amount?: { a?: Long }", "amount?: { a?: Long },|`amount` must have one of the types"),
        ("amount?: Long", "\"the amount\"?: Long", "\"the amount\"?: Long,|`the amount` must be 1 to 64 letters"),
        ("labels?: Set<String>", "labels?: Set<Long>", "labels?: Set<Long>,|`labels` must have one of the types"),
    ] {
        let refused = refused(&CUSTOM.replace(from, to), RUN_CALLS);
        assert!(refused.len() == 1 && refused[0].starts_with(told), "{refused:#?}");
    }
    for (to, told) in [
        ("send_email?: Long", "send_email?: Long,|`send_email` is a number of calls: write `send_email: Long`"),
        ("send_email: Bool", "send_email: Bool,|`send_email` is a number of calls"),
        ("sendEmail: Long", "sendEmail: Long,|`sendEmail` would count nothing"),
        ("\"send-email\": Long", "\"send-email\": Long,|`send-email` would count nothing"),
        ("\"?\": Long", "\"?\": Long,|`?` would count nothing"),
    ] {
        let refused = refused(CUSTOM, &RUN_CALLS.replace("send_email: Long", to));
        assert!(refused.len() == 1 && refused[0].starts_with(told), "{refused:#?}");
    }
    let members = |count: usize| (0..count).map(|n| format!("m{n}?: Long, ")).collect::<String>();
    let with = |count: usize| refused(&format!("type Custom = {{ {} }};\n", members(count)), RUN_CALLS);
    assert_eq!(with(50), [""; 0]);
    assert!(with(51)[0].contains("`Custom` has 51 members, and may have 50"));
}

#[test]
fn a_schema_that_gives_a_fact_another_type_is_refused() {
    for (from, to, told) in [
        ("    tools: Set<String>,", "    tools: String,", "`tools` is of another type: write `tools: Set<String>`"),
        ("    now: datetime,", "    now: Long,", "`now` is of another type: write `now: datetime`"),
        ("    custom: Custom,", "    custom: { a?: Long },", "`custom` is of another type: write `custom: Custom`"),
        (
            "    estimated_cost_micros?: Long,",
            "    estimated_cost_micros: Long,",
            "`estimated_cost_micros` may be absent: write `estimated_cost_micros?: Long`",
        ),
    ] {
        let (pack, line) = with_rules("").replace("schema.cedarschema", from, to);
        let faults = pack.faults();
        let found = faults.iter().find(|fault| fault.message == told).unwrap_or_else(|| panic!("{told}: {faults:#?}"));
        assert_eq!((found.file.as_str(), found.line), ("schema.cedarschema", Some(line)));
    }
}

#[test]
fn a_pack_of_the_first_edition_has_none_of_these_facts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/first-edition");
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    assert!(Pack::from_dir(copy.path()).is_ok());
    let schema = fs::read_to_string(copy.path().join("schema.cedarschema")).unwrap();
    let more = schema.replace("type Facts = {\n", "type Facts = {\n    tools: Set<String>,\n");
    fs::write(copy.path().join("schema.cedarschema"), more).unwrap();
    let faults = Pack::from_dir(copy.path()).unwrap_err().faults;
    assert!(faults.iter().all(|fault| fault.message.starts_with("`tools` is no fact")), "{faults:#?}");
}

#[test]
fn a_short_rule_has_the_defaults_of_its_effect() {
    for (effect, more, verdict, severity, action) in [
        ("deny", "", "DENY", "HIGH", "stop"),
        ("defer", "@question(\"Why?\")", "DEFER", "MEDIUM", "provide_context"),
        ("advise", "", "ALLOW", "LOW", "provide_context"),
    ] {
        let case = json!({"id": "own", "expect": [verdict], "codes": ["OWN"],
            "request": body(json!({"tools": ["own_tool"]}))});
        let rules = rule(effect, more, "context.tools.contains(\"own_tool\")");
        let pack = with_case(with_rules(&rules), &case);
        let engine = Engine::new(Pack::from_dir(pack.folder.path()).unwrap()).unwrap();
        let check = asked(&body(json!({"tools": ["own_tool"]})), &full_asker());
        let decision = engine.answer(&check, None, None, TimeLimit::NONE).unwrap().evaluation.decision;
        let found = json!(issue(&decision, "own.rule"));
        assert_eq!((&found["severity"], &found["next_action"]), (&json!(severity), &json!(action)));
        let check = asked(&body(json!({"tools": ["other"]})), &full_asker());
        let other = engine.answer(&check, None, None, TimeLimit::NONE).unwrap().evaluation.decision;
        assert!(other.issues.iter().all(|issue| issue.rule != "own.rule"));
    }
}

#[test]
fn a_rule_may_wait_for_a_run_or_a_member_of_its_own() {
    for (trigger, condition, context) in [
        ("run", "context.run_named && context.tools.contains(\"own_tool\")", json!({"run_id": "r"})),
        ("custom", "context.custom has amount && context.custom.amount > 5", json!({"amount": 6})),
    ] {
        let request = body(json!({"tools": ["own_tool"], "context": context}));
        let case = json!({"id": "own", "expect": ["DENY"], "codes": ["OWN"], "request": request});
        let rules = rule("deny", &format!("@trigger(\"{trigger}\")"), condition);
        let pack = with_case(with_rules(&rules), &case);
        let engine = Engine::new(Pack::from_dir(pack.folder.path()).unwrap()).unwrap();
        let evaluated = |body: Value| {
            let request = CheckRequest::parse(body).unwrap();
            engine.explain(&request, NOON).unwrap().rules_evaluated.contains(&"own.rule".to_owned())
        };
        assert!(evaluated(request.clone()) && !evaluated(body(json!({"tools": ["own_tool"]}))), "{trigger}");
    }
}
