//! Packs that say who must approve: annotations of rules, `[approvals]`, and what of them reaches an answer.

use serde_json::{Value, json};
use stage0_contract::{AccountRules, ApprovalTerms, CheckRequest, Escalation, Requirement, Verdict};
use stage0_policy::{Engine, HeldApproval, Pack, TimeLimit};

use super::approvals::{NOON, check};
use super::packs::Broken;

const HIGH: &str = "@id(\"approval.high_effect\")\n";
const NAMED: &str = "@id(\"approval.named_action\")\n";

/// The baseline with annotations at two rules and a section in its manifest.
fn pack(high: &str, named: &str, section: &str) -> Broken {
    let pack = Broken::new().replace("approval.cedar", HIGH, &format!("{HIGH}{high}")).0;
    let pack = pack.replace("approval.cedar", NAMED, &format!("{NAMED}{named}")).0;
    let manifest = format!("{}\n{section}", pack.text("pack.toml"));
    pack.write("pack.toml", &manifest)
}

fn engine(pack: &Broken) -> Engine {
    Engine::new(Pack::from_dir(pack.folder.path()).unwrap()).unwrap()
}

fn terms(engine: &Engine, body: &Value) -> Option<ApprovalTerms> {
    let answer = engine.answer(&check(body, NOON, AccountRules::default()), None, None, TimeLimit::NONE).unwrap();
    assert_eq!(answer.terms.is_some(), answer.evaluation.decision.verdict == Verdict::Defer);
    answer.terms
}

fn deploy() -> Value {
    json!({"goal": "Deploy the payments service", "success_criteria": ["it is healthy"], "environment": "staging",
        "constraints": ["require_approval_for: argo"], "tools": ["argo"], "side_effects": ["deploy"], "context": {}})
}

fn requirement(groups: &[&str], quorum: u32) -> Requirement {
    Requirement { groups: groups.iter().map(|name| (*name).to_owned()).collect(), quorum, escalation: None }
}

/// The faults of the first rule, with the words that name file, line and rule.
fn faults_at_rule(high: &str) -> Vec<String> {
    let broken = pack(high, "", "");
    let text = broken.text("approval.cedar");
    let line = text[..text.find(HIGH).unwrap()].lines().count() + 1;
    let start = format!("approval.cedar:{line}: approval.high_effect: ");
    let faults: Vec<String> = broken.faults().iter().map(ToString::to_string).collect();
    faults.iter().map(|fault| fault.strip_prefix(&start).unwrap_or_else(|| panic!("{faults:#?}")).to_owned()).collect()
}

#[test]
fn without_annotations_and_section_any_member_approves() {
    let terms = terms(&engine(&Broken::new()), &deploy()).unwrap();
    assert_eq!(terms.requirements, [requirement(&[], 1)]);
    assert_eq!((terms.within_seconds, terms.valid_seconds), (3_600, 900));
    assert!(!terms.reason_required && terms.escalation.is_none());
}

#[test]
fn annotations_of_all_rules_that_ask_are_taken_together() {
    let high = "@approvers(\"release-managers, on-call\") @quorum(\"2\") @approve_within(\"2h\")\n\
                @approval_valid_for(\"5m\") @escalate_after(\"20m\") @escalate_to(\"duty-managers\")\n";
    let named = "@approvers(\"dba\") @approve_within(\"30m\") @approval_reason(\"required\")\n";
    let engine = engine(&pack(high, named, ""));
    let both = terms(&engine, &deploy()).unwrap();
    // Only the rule that escalates is opened by it: the other one still wants its own approvers.
    let escalation = Some(Escalation { after_seconds: 1_200, groups: vec!["duty-managers".to_owned()] });
    let escalates = Requirement { escalation: escalation.clone(), ..requirement(&["on-call", "release-managers"], 2) };
    assert_eq!(both.requirements, [requirement(&["dba"], 1), escalates]);
    assert_eq!((both.within_seconds, both.valid_seconds, both.reason_required), (1_800, 300, true));
    assert_eq!(both.escalation, None);
    let mut one = deploy();
    one["constraints"] = json!(["allowed_environment: staging"]);
    let one = terms(&engine, &one).unwrap();
    assert_eq!(one.requirements, [requirement(&["on-call", "release-managers"], 2)]);
    assert_eq!(one.escalation, escalation, "what all requirements have stands beside them");
    assert_eq!((one.within_seconds, one.reason_required), (7_200, false));
    let held = HeldApproval::Approved { by: "mem_1", at: NOON };
    let answer = engine.answer(&check(&deploy(), NOON, AccountRules::default()), None, Some(held), TimeLimit::NONE);
    assert!(answer.unwrap().terms.is_none(), "there is nothing left to approve");
}

#[test]
fn the_section_fills_in_what_a_rule_does_not_say() {
    let section = "[approvals]\napprovers = [\"ops\", \"leads\", \"ops\"]\nquorum = 2\nwithin = \"4h\"\n\
        valid_for = \"10m\"\nescalate_after = \"1h\"\nescalate_to = [\"duty\"]\nreason = \"required\"\n";
    let high = "@approvers(\"release-managers\") @approve_within(\"30m\")\n";
    let engine = engine(&pack(high, "", section));
    let together = terms(&engine, &deploy()).unwrap();
    assert_eq!(together.requirements, [requirement(&["leads", "ops"], 2), requirement(&["release-managers"], 2)]);
    assert_eq!((together.within_seconds, together.valid_seconds, together.reason_required), (1_800, 600, true));
    let codes = engine.pack().reference()["codes"].as_array().unwrap();
    let rules: Vec<&Value> = codes.iter().flat_map(|code| code["rules"].as_array().unwrap()).collect();
    let rule = |id: &str| *rules.iter().find(|rule| rule["id"] == id).unwrap();
    let told = &rule("approval.high_effect")["approval"];
    assert_eq!(told["requirements"], json!([{"groups": ["release-managers"], "quorum": 2}]));
    assert_eq!((&told["within_seconds"], &told["reason_required"]), (&json!(1_800), &json!(true)));
    assert!(told.get("escalation").is_none(), "its time is over before others are asked");
    assert_eq!(rule("approval.communication")["approval"]["escalation"]["groups"], json!(["duty"]));
    assert!(rule("change.ticket_missing").get("approval").is_none(), "it asks for no approval");
}

#[test]
fn a_deferral_for_another_reason_demands_what_the_section_says() {
    let engine = engine(&pack("", "", "[approvals]\nquorum = 3\n"));
    let body = json!({"goal": "Rotate the node", "success_criteria": ["x"], "constraints": ["require_ticket"],
        "side_effects": ["write"], "environment": "staging", "context": {}});
    assert_eq!(terms(&engine, &body).unwrap().requirements, [requirement(&[], 3)]);
}

#[test]
fn a_wrong_annotation_is_a_fault_that_says_what_would_do() {
    let long = format!("@approvers(\"{}\")", "g".repeat(65));
    let many = format!("@approvers(\"{}\")", (0..51).map(|n| format!("g{n}")).collect::<Vec<_>>().join(","));
    for (annotation, told) in [
        ("@approvers(\"\")", "`@approvers` must be 1 to 50 names of groups"),
        ("@approvers(\"ops,,leads\")", "`@approvers` must be 1 to 50 names of groups"),
        ("@approvers(\"Release Managers\")", "`@approvers` must be 1 to 50 names of groups"),
        (&long, "`@approvers` must be 1 to 50 names of groups"),
        (&many, "`@approvers` must be 1 to 50 names of groups"),
        ("@quorum(\"0\")", "`@quorum` must be a number from 1 to 10"),
        ("@quorum(\"11\")", "`@quorum` must be a number from 1 to 10"),
        ("@quorum(\"+2\")", "`@quorum` must be a number from 1 to 10"),
        ("@quorum(\"two\")", "`@quorum` must be a number from 1 to 10"),
        ("@approve_within(\"59s\")", "`@approve_within` must be a duration such as `15m`, from `1m` to `7d`"),
        ("@approve_within(\"8d\")", "`@approve_within` must be a duration such as `15m`, from `1m` to `7d`"),
        ("@approve_within(\"60\")", "`@approve_within` must be a duration such as `15m`, from `1m` to `7d`"),
        ("@approval_valid_for(\"25h\")", "`@approval_valid_for` must be a duration such as `15m`, from `1m` to `24h`"),
        ("@approval_valid_for(\"1s\")", "`@approval_valid_for` must be a duration such as `15m`, from `1m` to `24h`"),
        ("@escalate_after(\"30m\")", "`@escalate_after` needs `@escalate_to` beside it"),
        ("@escalate_to(\"duty\")", "`@escalate_to` needs `@escalate_after` beside it"),
        ("@escalate_after(\"x\") @escalate_to(\"duty\")", "`@escalate_after` must be a duration"),
        ("@escalate_after(\"1h\") @escalate_to(\"duty\")", "the escalation would come only after the time to approve"),
        ("@approval_reason(\"yes\")", "`@approval_reason` must be `required`"),
        ("@approver(\"ops\")", "`@approver` is no annotation of a rule"),
    ] {
        let faults = faults_at_rule(&format!("{annotation}\n"));
        assert!(faults.len() == 1 && faults[0].starts_with(told), "{annotation}: {faults:#?}");
    }
    // The nearest annotations that are right.
    for annotation in [
        "@approvers(\"ops\")",
        "@approvers(\" ops , leads \")",
        "@quorum(\"1\")",
        "@quorum(\"10\")",
        "@approve_within(\"60s\")",
        "@approve_within(\"7d\")",
        "@approval_valid_for(\"1m\")",
        "@approval_valid_for(\"24h\")",
        "@escalate_after(\"59m\") @escalate_to(\"duty\")",
        "@escalate_after(\"1h\") @escalate_to(\"duty\") @approve_within(\"61m\")",
        "@approval_reason(\"required\")",
    ] {
        engine(&pack(&format!("{annotation}\n"), "", ""));
    }
}

#[test]
fn only_a_rule_that_asks_for_an_approval_may_say_who_approves() {
    for (file, id) in [
        ("change.cedar", "@id(\"change.ticket_missing\")\n"),
        ("approval.cedar", "@id(\"approval.rejected\")\n"),
        ("approval.cedar", "@id(\"approval.customer_visible\")\n"),
    ] {
        for annotation in [
            "@approvers(\"ops\")",
            "@quorum(\"2\")",
            "@approve_within(\"1h\")",
            "@approval_valid_for(\"1h\")",
            "@approval_reason(\"required\")",
            "@escalate_after(\"5m\") @escalate_to(\"duty\")",
        ] {
            let (broken, line) = Broken::new().replace(file, id, &format!("{id}{annotation}\n"));
            let faults = broken.faults();
            let count = annotation.matches('@').count();
            assert_eq!(faults.len(), count, "{annotation}: {faults:#?}");
            assert!(faults.iter().all(|fault| fault.file == file
                && fault.line == Some(line)
                && fault.message.contains("needs a rule that asks for an approval: `@effect(\"defer\")`")));
        }
    }
}

#[test]
fn a_wrong_section_is_a_fault_with_its_line() {
    for (section, told) in [
        ("approvers = []", "`approvers` in `[approvals]` must be 1 to 50 names of groups"),
        ("approvers = [\"A B\"]", "`approvers` in `[approvals]` must be 1 to 50 names of groups"),
        ("approvers = \"ops\"", "invalid type"),
        ("quorum = 0", "`quorum` in `[approvals]` must be a number from 1 to 10"),
        ("quorum = 11", "`quorum` in `[approvals]` must be a number from 1 to 10"),
        ("quorum = \"2\"", "invalid type"),
        ("within = \"30s\"", "`within` in `[approvals]` must be a duration such as `15m`, from `1m` to `7d`"),
        ("valid_for = \"2d\"", "`valid_for` in `[approvals]` must be a duration such as `15m`, from `1m` to `24h`"),
        ("escalate_after = \"5m\"", "`escalate_after` and `escalate_to` are needed together"),
        ("escalate_to = [\"duty\"]", "`escalate_after` and `escalate_to` are needed together"),
        ("escalate_to = [\"duty\"]\nescalate_after = \"1h\"", "`escalate_after` must be shorter than `within`"),
        ("reason = \"optional\"", "`reason` in `[approvals]` must be `required`"),
        ("volatile = [\"record_count\"]", "`record_count` in `volatile` is a member of the contract"),
        ("volatile = [\"Record-Count\"]", "`Record-Count` in `volatile` is a member of the contract"),
        ("volatile = [\"target_resources\"]", "`target_resources` in `volatile` is a member of the contract"),
        ("volatile = [\"environment\"]", "`environment` in `volatile` is a member of the contract"),
        ("volatile = [\"loop_state\"]", "`loop_state` in `volatile` is a member of the contract"),
        ("volatile = [\"retry_count\"]", "`retry_count` is volatile anyway"),
        ("volatile = [\"approval_note\"]", "`approval_note` is volatile anyway"),
        ("volatile = [\" \"]", "` ` in `volatile` must be the name of a member of `context`, once"),
        ("volatile = [\"a\", \"a\"]", "`a` in `volatile` must be the name of a member of `context`, once"),
        ("volatil = []", "unknown field `volatil`"),
    ] {
        let broken = pack("", "", &format!("[approvals]\n{section}\n"));
        let first = broken.text("pack.toml").lines().position(|line| line == "[approvals]").unwrap() + 2;
        let faults = broken.faults();
        let [fault] = faults.as_slice() else { panic!("{section}: {faults:#?}") };
        assert!(fault.file == "pack.toml" && fault.message.starts_with(told), "{section}: {fault}");
        assert!(fault.line.is_some_and(|line| (first..=first + 1).contains(&line)), "{section}: {fault}");
    }
}

#[test]
fn a_volatile_member_of_the_organisations_own_is_left_out_of_the_digest() {
    let account = stage0_contract::AccountId::parse("acc").unwrap();
    let request = |note: &str, other: &str| {
        let body = json!({"goal": "g g", "context": {"trace_id": note, "order": other}});
        CheckRequest::parse(body).unwrap()
    };
    let leaves_out = engine(&pack("", "", "[approvals]\nvolatile = [\"trace_id\"]\n"));
    let binds = engine(&Broken::new());
    let is_same = |engine: &Engine, one: &CheckRequest, other: &CheckRequest| {
        engine.action_digest(&account, one) == engine.action_digest(&account, other)
    };
    assert!(is_same(&leaves_out, &request("1", "x"), &request("2", "x")));
    assert!(!is_same(&leaves_out, &request("1", "x"), &request("1", "y")));
    assert!(!is_same(&binds, &request("1", "x"), &request("2", "x")));
    assert_ne!(leaves_out.pack().version(), binds.pack().version(), "the section is part of the version");
}

#[test]
fn codes_may_be_described_that_no_rule_gives_but_only_those_of_the_evaluator() {
    let describe = |code: &str| {
        let codes = Broken::new().text("codes.toml");
        Broken::new().write("codes.toml", &format!("{codes}\n[{code}]\nmeaning = \"m\"\nremedy = \"own words\"\n"))
    };
    let engine = engine(&describe("STOPPED"));
    let codes = engine.pack().reference()["codes"].as_array().unwrap();
    assert!(codes.iter().any(|code| code["code"] == "STOPPED" && code["remedy"] == "own words"));
    assert!(describe("HALTED").fault().contains("`HALTED` is given by no rule"));
}
