//! Facts that are recorded with a decision, and what other packs decide from them.

use serde_json::{Map, Value, json};
use stage0_contract::{
    AccountRules, Decision, KeptFacts, MAX_KEPT_FACTS_BYTES, MAX_KEPT_MEMBERS, ReplayGap, Replayed, Stop, Verdict,
};
use stage0_policy::{Answer, Engine, HeldApproval, RunSnapshot, TimeLimit, deciding_issue};

use super::approvals::{NOON, baseline, check};
use super::packs_extend::{Packs, RULE, with_rule};

fn recording() -> AccountRules {
    AccountRules { record_facts: true, ..AccountRules::default() }
}

fn answer(engine: &Engine, body: &Value, rules: AccountRules, held: Option<HeldApproval<'_>>) -> Answer {
    engine.answer(&check(body, NOON, rules), Some(&RunSnapshot::default()), held, TimeLimit::NONE).unwrap()
}

fn kept_of(answer: Answer) -> Option<KeptFacts> {
    let facts = answer.evaluation.recordable.unwrap().facts?;
    Some(serde_json::from_str(&serde_json::to_string(&*facts).unwrap()).unwrap())
}

/// The facts of a check that is recorded by an engine.
fn kept(engine: &Engine, body: &Value) -> KeptFacts {
    kept_of(answer(engine, body, recording(), None)).expect("facts are kept")
}

fn engine(packs: &Packs, name: &str) -> Engine {
    let pack = packs.load(name).unwrap_or_else(|error| panic!("{:#?}", error.faults));
    Engine::new(pack).unwrap()
}

/// Defers a payment above 500.
fn strict() -> Engine {
    engine(&Packs::new().pack("strict", "baseline@2", "", &with_rule()), "strict")
}

/// A pack with [`RULE`] under another condition, and with these lines in its manifest.
fn with_condition(condition: &str, manifest: &str, case: &Value, schema: &str) -> Engine {
    let rule = RULE.replace("context.custom has amount && context.custom.amount > 500", condition);
    let mut case = case.clone();
    case.as_object_mut().unwrap().extend([
        ("id".to_owned(), "own".into()),
        ("expect".to_owned(), json!(["DEFER", "DENY"])),
        ("codes".to_owned(), json!(["LARGE_AMOUNT"])),
    ]);
    let cases = json!([case]).to_string();
    let mut files = with_rule();
    files[0].1 = &rule;
    files[1].1 = schema;
    files[3].1 = &cases;
    engine(&Packs::new().pack("ours", "baseline@2", manifest, &files), "ours")
}

fn payment(amount: impl Into<Value>) -> Value {
    json!({"goal": "Pay the invoice of May", "success_criteria": ["x"], "context": {"amount": amount.into()}})
}

fn decided(verdict: Verdict, issue: Option<(&str, &str)>) -> Value {
    let mut decided = json!({"verdict": verdict});
    if let Some((code, rule)) = issue {
        decided["code"] = code.into();
        decided["rule"] = rule.into();
    }
    json!({"decided": decided})
}

fn replay(engine: &Engine, kept: &KeptFacts) -> Value {
    serde_json::to_value(engine.replay(kept)).unwrap()
}

fn as_decided(decision: &Decision) -> Value {
    let issue = deciding_issue(decision);
    decided(decision.verdict, issue.map(|issue| (issue.code.as_str(), issue.rule.as_str())))
}

#[test]
fn a_limit_on_a_new_member_decides_what_was_recorded_without_it() {
    let (before, own) = (baseline(), strict());
    for (amount, expected) in [
        (json!(500), decided(Verdict::Allow, None)),
        (json!(501), decided(Verdict::Defer, Some(("LARGE_AMOUNT", "ours.large")))),
        (json!(501.0), decided(Verdict::Defer, Some(("LARGE_AMOUNT", "ours.large")))),
        (json!(500.5), decided(Verdict::Defer, Some(("CONTEXT_REQUIRED", "context.custom")))),
        (json!(true), decided(Verdict::Defer, Some(("CONTEXT_REQUIRED", "context.custom")))),
        (json!(null), decided(Verdict::Allow, None)),
        (json!(" "), decided(Verdict::Allow, None)),
        (json!("501"), json!({"not": "member"})),
        (json!([501]), json!({"not": "member"})),
        (json!({"eur": 501}), json!({"not": "member"})),
    ] {
        let body = payment(amount.clone());
        let recorded = kept(&before, &body);
        assert_eq!(replay(&before, &recorded), decided(Verdict::Allow, None), "{amount}");
        assert_eq!(replay(&own, &recorded), expected, "{amount}");
        // As a check, and recorded by the pack that declares it.
        let live = as_decided(&answer(&own, &body, AccountRules::default(), None).evaluation.decision);
        assert!(expected == live || expected == json!({"not": "member"}), "{amount}: {live}");
        assert_eq!(replay(&own, &kept(&own, &body)), live, "{amount}");
    }
    let absent = json!({"goal": "Pay the invoice of May", "success_criteria": ["x"]});
    assert_eq!(replay(&own, &kept(&before, &absent)), decided(Verdict::Allow, None));
}

#[test]
fn what_another_pack_declared_is_read_by_the_type_of_the_one_that_replays() {
    let packs = |kind: &str, condition: &str, value: Value| {
        let schema = format!("type Custom = {{ amount?: {kind} }};\n");
        with_condition(condition, "", &json!({"request": payment(value)}), &schema)
    };
    let long = strict();
    let decimal = packs(
        "decimal",
        "context.custom has amount && context.custom.amount.greaterThan(decimal(\"500.0\"))",
        json!("501"),
    );
    let text = packs("String", "context.custom has amount && context.custom.amount == \"EUR\"", json!("EUR"));
    let member = || json!({"not": "member"});
    let large = || decided(Verdict::Defer, Some(("LARGE_AMOUNT", "ours.large")));
    let mistyped = || decided(Verdict::Defer, Some(("CONTEXT_REQUIRED", "context.custom")));
    for (by, value, expected) in [
        (&decimal, json!(501), [large(), large(), mistyped()]),
        (&decimal, json!("501.00"), [mistyped(), large(), member()]),
        (&text, json!("501"), [mistyped(), member(), decided(Verdict::Allow, None)]),
        (&text, json!("EUR"), [mistyped(), mistyped(), large()]),
        (&text, json!(501), [large(), large(), mistyped()]),
        (&long, json!("EUR"), [mistyped(), mistyped(), member()]),
    ] {
        let kept = kept(by, &payment(value.clone()));
        let replayed = [&long, &decimal, &text].map(|engine| replay(engine, &kept));
        assert_eq!(replayed, expected, "{value}");
    }
}

#[test]
fn facts_that_were_read_by_other_words_decide_nothing_and_other_rules_and_scores_are_no_other_words() {
    let case = r#"[{"id": "greet", "expect": ["ALLOW", "DEFER"],
        "request": {"goal": "Summarize the minutes of May", "success_criteria": ["x"]}}]"#;
    let recorded = kept(&baseline(), &payment(1));
    let other = |file: &str, text: &str| {
        let milder = ["rehearsal", "our_sandbox"].into_iter().find(|word| text.contains(word));
        let weakens = |word| format!("[weakens]\nreason = \"ours\"\nwords = [\"{word}\"]\n");
        let manifest = milder.map(weakens).unwrap_or_default();
        engine(&Packs::new().pack("ours", "baseline@2", &manifest, &[(file, text), ("cases.json", case)]), "ours")
    };
    for (file, text) in [
        ("vocabulary.toml", "[goals]\nvague = [\"make it nicer\"]\n"),
        ("vocabulary.toml", "[approval]\nrejected = [\"nah\"]\n"),
        ("vocabulary.toml", "[environments]\nstaging = [\"rehearsal\"]\n"),
        ("effects.toml", "[listed]\nhigh = [\"shred_it\"]\n"),
        ("tools.toml", "[sensitive]\nruns = [\"frobnicate\"]\n"),
        ("constraints.toml", "[aliases]\nsandbox = [\"our_sandbox\"]\n"),
    ] {
        assert_eq!(replay(&other(file, text), &recorded), json!({"not": "words"}), "{file}: {text}");
    }
    let forms = "[[forms]]\nkind = \"acmekey\"\npatterns = ['acmekey_[0-9a-z]{20,}']\n";
    let cases = r#"[{"id": "key", "expect": ["DENY"], "codes": ["SECRET_IN_REQUEST"],
        "request": {"goal": "Use acmekey_0123456789abcdefghijklm for it"}}]"#;
    let house = Packs::new().pack("house", "baseline@2", "", &[("secrets.toml", forms), ("cases.json", cases)]);
    assert_eq!(replay(&engine(&house, "house"), &recorded), json!({"not": "words"}));
    // Nearest neighbours: numbers of scores, and a pack without words of its own.
    let scores = Packs::new().pack("ours", "baseline@2", "[scores.floor]\ndeny = 61\n", &[]);
    assert_eq!(replay(&engine(&scores, "ours"), &recorded), decided(Verdict::Allow, None));
    let defers = other("tools.toml", "undeclared_effects = \"defer\"\n");
    assert_eq!(replay(&defers, &recorded), decided(Verdict::Allow, None));
}

const WINDOW: &str = "[windows.freeze]\nzone = \"Etc/UTC\"\ndays = [\"mon\"]\nopens = \"09:00\"\ncloses = \"17:00\"\n";
const NAMED: &str = "[weakens]\nreason = \"ours\"\nnumbers = [\"windows.freeze\"]\n";
const NONE: &str = "type Custom = {};\n";

#[test]
fn other_windows_matter_where_a_rule_or_the_request_names_one() {
    let manifest = format!("{WINDOW}{NAMED}");
    let case = json!({"request": payment(1)});
    let names = with_condition("context.windows_open.contains(\"freeze\")", &manifest, &case, NONE);
    let has = engine(&Packs::new().pack("ours", "baseline@2", &manifest, &[]), "ours");
    let recorded = kept(&baseline(), &payment(1));
    assert_eq!(replay(&names, &recorded), json!({"not": "windows"}));
    assert_eq!(replay(&has, &recorded), decided(Verdict::Allow, None));
    let mut declares = payment(1);
    declares["constraints"] = json!(["allowed_change_window: business_hours"]);
    let recorded = kept(&baseline(), &declares);
    assert_eq!(replay(&has, &recorded), json!({"not": "windows"}));
    assert_eq!(replay(&baseline(), &recorded), decided(Verdict::Allow, None));
    // The same windows, written otherwise.
    let same = format!("{}{NAMED}", WINDOW.replace("[\"mon\"]", "[\"mon\", \"mon\"]"));
    let same = with_condition("context.windows_open.contains(\"freeze\")", &same, &case, NONE);
    let by_itself = replay(&names, &kept(&names, &payment(1)));
    assert_eq!(by_itself, decided(Verdict::Defer, Some(("LARGE_AMOUNT", "ours.large"))));
    assert_eq!(replay(&same, &kept(&names, &payment(1))), by_itself);
}

#[test]
fn facts_of_a_run_decide_only_where_the_same_was_counted() {
    let mut body = payment(1);
    body["context"]["run_id"] = "r".into();
    let case = json!({"request": body, "run": {"denied": 3}});
    let own = with_condition("!context.run_named || context.run_denied > 2", "", &case, NONE);
    assert_eq!(replay(&own, &kept(&baseline(), &body)), json!({"not": "run"}));
    assert_eq!(replay(&own, &kept(&own, &body)), decided(Verdict::Allow, None));
    // Where the history was not told, nothing about it is known.
    let check = check(&body, NOON, recording());
    let untold = kept_of(own.answer(&check, None, None, TimeLimit::NONE).unwrap()).unwrap();
    assert!(untold.unread.contains(&"run_denied".to_owned()), "{:?}", untold.unread);
    assert_eq!(replay(&own, &untold), json!({"not": "fact"}));
    let by_baseline = replay(&baseline(), &KeptFacts { read_by: baseline().pack().read_by().clone(), ..untold });
    assert_eq!(by_baseline, decided(Verdict::Allow, None));
}

#[test]
fn a_denial_by_a_person_denies_again_and_a_stricter_floor_stays_the_stricter_one() {
    let (own, floor) = (baseline(), strict());
    let denied = kept_of(answer(&own, &payment(1), recording(), Some(HeldApproval::Denied))).unwrap();
    assert!(denied.denied);
    assert_eq!(replay(&own, &denied), decided(Verdict::Deny, Some(("APPROVAL_STATUS_INVALID", "approval.denied"))));
    let both = |amount: i64| {
        let ask = |engine| answer(engine, &payment(amount), recording(), None);
        ask(&own).with_floor(ask(&floor))
    };
    let (mild, strict) = (kept_of(both(500)).unwrap(), kept_of(both(501)).unwrap());
    assert_eq!((mild.floor, strict.floor), (Some(Verdict::Allow), Some(Verdict::Defer)));
    assert_eq!(mild.read_by, *own.pack().read_by());
    assert_eq!(replay(&own, &mild), decided(Verdict::Allow, None));
    assert_eq!(replay(&own, &strict), decided(Verdict::Defer, None));
    // Of two equal verdicts the own pack's issue is named.
    assert_eq!(replay(&floor, &strict), decided(Verdict::Defer, Some(("LARGE_AMOUNT", "ours.large"))));
    let issue = deciding_issue(&both(501).evaluation.decision).map(|issue| issue.rule.clone());
    assert_eq!(issue.as_deref(), Some("ours.large"));
}

#[test]
fn nothing_is_kept_without_the_accounts_wish_beside_a_secret_or_under_a_stop() {
    let own = baseline();
    assert_eq!(kept_of(answer(&own, &payment(1), AccountRules::default(), None)), None);
    let secret = json!({"goal": "Log in with password=hunter22", "success_criteria": ["x"]});
    assert_eq!(kept_of(answer(&own, &secret, recording(), None)), None);
    let stop: Stop = serde_json::from_value(json!({"id": "stp_1", "account": null, "scope": "all", "value": null,
        "reason": "r", "created_at": "2026-03-16T11:00:00Z", "until": null, "key_id": "key_9"}))
    .unwrap();
    let stopped = AccountRules { stops: vec![stop], ..recording() };
    assert_eq!(kept_of(answer(&own, &payment(1), stopped, None)), None);
    // A secret that only the floor finds.
    let forms = "[[forms]]\nkind = \"acmekey\"\npatterns = ['acmekey_[0-9a-z]{20,}']\n";
    let cases = r#"[{"id": "key", "expect": ["DENY"], "codes": ["SECRET_IN_REQUEST"],
        "request": {"goal": "Use acmekey_0123456789abcdefghijklm for it"}}]"#;
    let packs = Packs::new().pack("house", "baseline@2", "", &[("secrets.toml", forms), ("cases.json", cases)]);
    let floor = engine(&packs, "house");
    let both = |body: &Value| {
        let ask = |engine| answer(engine, body, recording(), None);
        kept_of(ask(&own).with_floor(ask(&floor)))
    };
    assert_eq!(both(&json!({"goal": "Read acmekey_0123456789abcdefghijklm", "success_criteria": ["x"]})), None);
    assert!(both(&json!({"goal": "Read house 12", "success_criteria": ["x"]})).is_some());
}

#[test]
fn no_goal_argument_or_longer_text_is_kept() {
    let marks = ["markgoal", "markcriterion", "markargument", "marknote", "marknested", "markclient", "marklong"];
    let [goal, criterion, argument, note, nested, client, long] = marks;
    let body = json!({
        "goal": format!("Read the report {goal}"), "success_criteria": [criterion], "side_effects": [
            format!("write file({argument})"), format!("export {}", long.repeat(40))],
        "tools": [format!("read_file(path={argument})")], "constraints": [format!("please {note}")],
        "context": {"note": note, "arguments": {"path": argument}, "request_channel": client, "amount": 7,
            "labels": [nested], "actor_role": "admin (on call)",
            "current_tool": format!("grep({argument})"), "a note": note, "urgent": true,
            "target_resources": [format!("files/{}", long.repeat(40))], "run_id": client},
        "debug_store_input": true,
    });
    for engine in [baseline(), strict()] {
        let mut snapshot = RunSnapshot::default();
        snapshot.history.tools.insert(format!("read_file(path={argument})"), 1);
        let check = check(&body, NOON, recording());
        let kept = kept_of(engine.answer(&check, Some(&snapshot), None, TimeLimit::NONE).unwrap()).unwrap();
        let json = serde_json::to_string(&kept).unwrap();
        for mark in marks {
            assert!(!json.contains(mark), "{mark}: {json}");
        }
        // The asker of these tests has no name and no groups.
        let unread = ["effects", "groups", "key_name", "run_tools", "targets", "tool_names", "tools"];
        assert_eq!(kept.unread, unread);
        assert!(kept.values["role"].as_str().is_some_and(|role| role.contains('(')), "{json}");
        let unkept = [
            "actor_role",
            "arguments",
            "current_tool",
            "labels",
            "note",
            "request_channel",
            "run_id",
            "target_resources",
        ];
        assert_eq!(kept.unkept, unkept);
        assert_eq!(kept.members.get("urgent"), Some(&json!(true)));
        assert_eq!(kept.members.contains_key("amount"), !kept.values.contains_key("custom"), "{json}");
    }
}

#[test]
fn members_and_bytes_have_their_bounds() {
    let engine = baseline();
    let with = |count: usize| {
        let context: Map<String, Value> = (0..count).map(|n| (format!("member_{n:03}"), n.into())).collect();
        answer(&engine, &json!({"goal": "g", "success_criteria": ["x"], "context": context}), recording(), None)
    };
    let some = kept_of(with(MAX_KEPT_MEMBERS + 1)).unwrap();
    assert_eq!((some.members.len(), some.unkept), (MAX_KEPT_MEMBERS, vec!["member_050".to_owned()]));
    assert!(kept_of(with(200)).is_some());
    assert_eq!(kept_of(with(201)), None);
    // No pack can declare such a member, so its name is nothing that a replay needs.
    let odd =
        json!({"goal": "g", "success_criteria": ["x"], "context": {"a b": 1, "x".repeat(65): 1, "7up": 1, "ok": 1}});
    let odd = kept(&engine, &odd);
    assert_eq!((odd.members.len(), odd.members.contains_key("ok"), odd.unkept.is_empty()), (1, true, true));
    let targets = |count: usize| {
        let targets: Vec<String> = (0..count).map(|n| format!("files/{n:03}/{}", "x".repeat(200))).collect();
        let body = json!({"goal": "g", "success_criteria": ["x"], "context": {"target_resources": targets}});
        kept_of(answer(&engine, &body, recording(), None))
    };
    assert!(serde_json::to_vec(&targets(20).unwrap()).unwrap().len() < MAX_KEPT_FACTS_BYTES);
    assert_eq!(targets(100), None);
}

#[test]
fn hostile_facts_are_unreadable_or_missing_and_never_a_decision() {
    let engine = strict();
    let recorded = kept(&engine, &payment(501));
    let rules = ["goal_vague", "approval_status", "iteration", "declared"];
    for name in rules {
        for value in [json!(null), json!({"a": 1}), json!([1]), json!(1.5), json!({}), json!([[]])] {
            let mut hostile = recorded.clone();
            hostile.values.insert(name.to_owned(), value.clone());
            assert_eq!(engine.replay(&hostile), Replayed::Not(ReplayGap::Unreadable), "{name}: {value}");
        }
        let mut hostile = recorded.clone();
        hostile.values.remove(name);
        assert_eq!(engine.replay(&hostile), Replayed::Not(ReplayGap::Fact), "{name}");
        let unread = KeptFacts { unread: vec![name.to_owned()], ..recorded.clone() };
        assert_eq!(engine.replay(&unread), Replayed::Not(ReplayGap::Fact), "{name}");
    }
    let other = KeptFacts { v: 2, ..recorded.clone() };
    assert_eq!(engine.replay(&other), Replayed::Not(ReplayGap::Unreadable));
    assert_eq!(engine.replay(&KeptFacts::default()), Replayed::Not(ReplayGap::Unreadable));
    // What no rule reads does no harm.
    let mut more = recorded.clone();
    more.values.insert("weather".to_owned(), json!("fine"));
    more.unread.push("climate".to_owned());
    more.members.insert("weather".to_owned(), json!([]));
    assert_eq!(engine.replay(&more), engine.replay(&recorded));
    let every = with_condition(
        "context.now > datetime(\"2020-01-01\") && context.targets.isEmpty()",
        "",
        &json!({"request": payment(1)}),
        NONE,
    );
    let recorded = kept(&every, &payment(1));
    assert_eq!(replay(&every, &recorded), decided(Verdict::Defer, Some(("LARGE_AMOUNT", "ours.large"))));
    for now in ["", "soon", "-009999-01-02T00:00:00Z", "2026-03-16T12:00:00.5Z", "2026-03-16", "12026-03-16T12:00:00Z"]
    {
        let mut hostile = recorded.clone();
        hostile.values.insert("now".to_owned(), now.into());
        assert_eq!(every.replay(&hostile), Replayed::Not(ReplayGap::Unreadable), "{now}");
    }
}
