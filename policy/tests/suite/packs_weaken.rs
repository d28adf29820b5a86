//! What a pack makes milder than the pack that it extends must be named; what is stricter need not be.

use std::fs;
use std::sync::Arc;

use serde_json::{Value, json};
use stage0_contract::CheckRequest;
use stage0_policy::{Engine, Pack, Weakened};

use super::packs_extend::{Packs, with_rule};

const CASES: &str = r#"[{"id": "greet", "expect": ["ALLOW"],
 "request": {"goal": "Summarize the minutes of May", "success_criteria": ["x"]}}]"#;

/// A pack with one file besides its manifest.
fn with_file(file: &str, text: &str, manifest: &str) -> Packs {
    Packs::new().pack("ours", "baseline@2", manifest, &[(file, text), ("cases.json", CASES)])
}

fn section(list: &str, names: &[&str]) -> String {
    format!("[weakens]\nreason = \"we know better\"\n{list} = {names:?}\n")
}

/// Loads a pack with a milder word, without and with naming it, and one with a word too many.
fn is_milder(file: &str, text: &str, word: &str) {
    let faults = with_file(file, text, "").faults("ours");
    let quoted = format!("`{word}`");
    let is_told = |fault: &String| {
        fault.starts_with(&format!("{file}:"))
            && fault.contains(&quoted)
            && fault.ends_with(": what is milder must be said")
    };
    assert!(faults.len() == 1 && is_told(&faults[0]), "{file} {text}: {faults:#?}");
    let named = with_file(file, text, &section("words", &[word]));
    let pack = named.load("ours").unwrap_or_else(|error| panic!("{file} {text}: {error}"));
    let expected = Weakened {
        reason: "we know better".to_owned(),
        without: Vec::new(),
        replaces: Vec::new(),
        words: vec![word.to_owned()],
        numbers: Vec::new(),
    };
    assert_eq!(pack.weakened(), Some(&expected));
}

fn is_stricter(file: &str, text: &str) {
    with_file(file, text, "").load("ours").unwrap_or_else(|error| panic!("{file} {text}: {error}"));
}

#[test]
fn an_effect_in_a_milder_class_must_be_named() {
    for (text, word) in [
        // Beside a negation a word of the class `none` is unknown, which counts as high.
        ("[listed]\nmedium = [\"dry_run\"]\n", "dry_run"),
        ("[listed]\nloop = [\"informational\"]\n", "informational"),
        ("[verbs]\nmedium = [\"query\"]\n", "query"),
        ("[verbs]\nloop = [\"fetch\"]\n", "fetch"),
        ("[verbs]\napproval = [\"fetch\"]\n", "fetch"),
        // Only what says that there is no effect leaves a goal vague.
        ("[listed]\nmedium = [\"noop\"]\n", "noop"),
        ("[listed]\nhigh = [\"no_op\"]\n", "no_op"),
        // A phrase hides the class of its parts, which has rules of its own.
        ("[listed]\nhigh = [\"email_newsletter\"]\n", "email_newsletter"),
        ("[listed]\nhigh = [\"approve_invoice\"]\n", "approve_invoice"),
        ("[listed]\nhigh = [\"retry_upload\"]\n", "retry_upload"),
        // Down from the class of the parent.
        ("[verbs]\nmedium = [\"refund\"]\n", "refund"),
        ("[verbs]\ncommunication = [\"refund\"]\n", "refund"),
        ("[verbs]\nnone = [\"create\"]\n", "create"),
        ("[listed]\nnothing = [\"read_only\"]\n", "read_only"),
        ("[listed]\nno_effects = [\"nothing\"]\n", "nothing"),
        ("[listed]\nno_effects = [\"dry_run\"]\n", "dry_run"),
        // An unknown word counts as high.
        ("[verbs]\nmedium = [\"teleport\"]\n", "teleport"),
        ("[verbs]\napproval = [\"teleport\"]\n", "teleport"),
        ("[verbs]\nnone = [\"teleport\"]\n", "teleport"),
        ("[listed]\nnone = [\"teleport_home\"]\n", "teleport_home"),
        ("[nouns]\nthings = [\"teleporter\"]\n", "teleporter"),
        ("[nouns]\nfillers = [\"erm\"]\n", "erm"),
        // A word leaves a class that has rules of its own.
        ("[verbs]\nhigh = [\"repeat\"]\n", "repeat"),
        ("[verbs]\nhigh = [\"sms\"]\n", "sms"),
        ("[verbs]\nmedium = [\"approve\"]\n", "approve"),
        // Beside a weighty word a medium effect is high, and one of these classes is not.
        ("[verbs]\ncommunication = [\"create\"]\n", "create"),
        ("[verbs]\napproval = [\"list\"]\n", "list"),
        // Forms of a word, and words that hide the words in them.
        ("[verbs]\nnone = [\"deletes\"]\n", "deletes"),
        ("[irregular]\nperished = \"read\"\n", "perished"),
        ("[irregular]\npaid = \"read\"\n", "paid"),
        ("[listed]\nmedium = [\"delete_draft\"]\n", "delete_draft"),
        ("[nouns]\nthings = [\"delete_page\"]\n", "delete_page"),
        ("[weights]\nheavy = [\"delete_page\"]\n", "delete_page"),
        ("[weights]\nheavy = [\"delete\"]\n", "delete"),
        ("[listed]\nhigh = [\"service_impact_delete\"]\n", "service_impact_delete"),
        ("[verbs]\nhigh = [\"creates\"]\n", "creates"),
        // Marks that let a word pass for a noun or the name of a service, and words between effects.
        ("[marks]\nverb_and_noun = [\"wipe\"]\n", "wipe"),
        ("[marks]\nhead_nouns = [\"wipe\"]\n", "wipe"),
        ("[marks]\nservices = [\"wipe\"]\n", "wipe"),
        ("[grammar]\nseparators = [\"whereupon\"]\n", "whereupon"),
        ("[grammar]\nnegations = [\"wipe\"]\n", "wipe"),
    ] {
        is_milder("effects.toml", text, word);
    }
}

#[test]
fn an_effect_in_a_stricter_class_needs_no_name() {
    is_stricter(
        "effects.toml",
        "[verbs]\nhigh = [\"create\", \"read\", \"teleport\", \"navigates\", \"table\"]\n\
         [listed]\nhigh = [\"read_only\", \"teleport_home\", \"delete_newsletter\", \"read_ledger\"]\n\
         nothing = [\"no_effects\"]\n\
         [marks]\nwrites = [\"wipe\"]\nsends = [\"wipe\"]\nimpact = [\"wipe\"]\ncustomer_visible = [\"wipe\"]\n\
         [weights]\nheavy = [\"tritium\", \"file\"]\nsensitive = [\"uranium\"]\nbeside_verbs = [\"acid\"]\n\
         [grammar]\nnegations = [\"nay\"]\n[irregular]\nteleportation = \"teleport\"\n",
    );
    // What the parent says already changes nothing.
    is_stricter("effects.toml", "[verbs]\nmedium = [\"create\"]\nnone = [\"read\"]\n[nouns]\nthings = [\"file\"]\n");
}

#[test]
fn a_word_that_makes_a_tool_harmless_must_be_named() {
    for (text, word) in [
        ("[harmless]\nreading = [\"fetch\"]\n", "fetch"),
        ("[harmless]\nabout = [\"recipe\"]\n", "recipe"),
        ("[harmless]\nabout = [\"get\"]\n", "get"),
        ("[harmless]\nreading = [\"sudo\"]\n", "sudo"),
        ("[sensitive]\nhosts = [\"sudo\"]\n", "sudo"),
    ] {
        is_milder("tools.toml", text, word);
    }
    is_stricter(
        "tools.toml",
        "undeclared_effects = \"advise\"\n[sensitive]\nruns = [\"bash\", \"warp_drive\", \"get\"]\nhosts = [\"warp\"]\n\
         [harmless]\nreading = [\"list\"]\nabout = [\"help\"]\n",
    );
}

#[test]
fn what_is_done_about_undeclared_effects_becomes_stricter_and_stays_so() {
    let body = json!({"goal": "Clean up the folder of May", "success_criteria": ["x"], "tools": ["delete_file"],
        "side_effects": []});
    let packs = with_file("tools.toml", "undeclared_effects = \"defer\"\n", "");
    assert_eq!(verdict(&packs.load("ours").unwrap(), &body), "DEFER");
    let packs = packs.pack(
        "grand",
        "ours@1",
        "",
        &[("tools.toml", "undeclared_effects = \"advise\"\n"), ("cases.json", CASES)],
    );
    let faults = packs.faults("grand");
    assert!(faults.len() == 1 && faults[0].starts_with("tools.toml:1: `undeclared_effects`"), "{faults:#?}");
}

#[test]
fn a_constraint_that_stops_less_must_be_named() {
    for (text, word) in [
        ("guardrails = [\"environment\"]\n", "environment"),
        ("guardrails = [\"sandbox\"]\n", "sandbox"),
        ("tags = [\"be_careful\"]\n", "be_careful"),
        ("tags = [\"hitl\"]\n", "hitl"),
        ("[aliases]\nmax_iterations = [\"be_careful\"]\n", "be_careful"),
        ("[aliases]\nmax_iterations = [\"hitl\"]\n", "hitl"),
        ("[aliases]\nsandbox = [\"note\"]\n", "note"),
    ] {
        is_milder("constraints.toml", text, word);
    }
    is_stricter(
        "constraints.toml",
        "guardrails = [\"max_retries\"]\ntags = [\"note\"]\n[aliases]\napproval_required = [\"hitl\"]\n",
    );
}

#[test]
fn another_name_of_an_environment_must_be_named() {
    for (text, word) in [
        ("[environments]\nstaging = [\"live\"]\n", "live"),
        ("[environments]\ndevelopment = [\"canary\"]\n", "canary"),
        ("[environments]\ncanary = [\"prd\"]\n", "prd"),
        ("[environments]\nproduction = [\"stage\"]\n", "stage"),
        // The environments that a caller allows can have `production` among them.
        ("[environments]\nproduction = [\"qa\"]\n", "qa"),
    ] {
        is_milder("vocabulary.toml", text, word);
    }
    // An environment of its own takes its name away from the one that it was another name of.
    let faults = with_file("vocabulary.toml", "[environments]\nprd = [\"canary\"]\n", "").faults("ours");
    let told =
        ["vocabulary.toml:2: `prd` is the environment `prd` here and `production` in", "vocabulary.toml:2: `canary`"];
    assert!(faults.len() == 2 && faults.iter().zip(told).all(|(fault, told)| fault.starts_with(told)), "{faults:#?}");
    is_stricter("vocabulary.toml", "[environments]\nproduction = [\"prod\"]\nstaging = [\"stg\"]\n");
}

#[test]
fn a_word_of_approvals_must_be_named_unless_it_refuses() {
    for (text, word) in [
        ("[approval]\npending = [\"denied\"]\n", "denied"),
        ("[approval]\nnone = [\"whatever\"]\n", "whatever"),
        ("[approval]\nmissing = [\"no\"]\n", "no"),
        ("[approval]\nnone = [\"waiting\"]\npending = [\"pending\"]\n", "waiting"),
    ] {
        is_milder("vocabulary.toml", text, word);
    }
    is_stricter(
        "vocabulary.toml",
        "[approval]\nrejected = [\"nope\", \"denied\"]\n[goals]\nvague = [\"make it nice\"]\n",
    );
}

#[test]
fn a_word_that_hides_secrets_must_be_named() {
    for (text, word) in [
        ("[names]\nother_before = [\"public_ish\"]\n", "public_ish"),
        ("[names]\nends_meaning = [\"ish\"]\n", "ish"),
        ("[names]\nhints = [\"losungswort\"]\n", "losungswort"),
        // The last word of a name decides, so that `password_prod` would be a token.
        ("[names]\ntokens = [\"prod\"]\n", "prod"),
        ("[names]\ntokens = [\"my password\"]\n", "my password"),
        ("[names]\nsecrets = [\"losungsziffer\"]\n", "losungsziffer"),
        ("[names]\npasswords = [\"losungswort\"]\n", "losungswort"),
        ("[values]\nplaceholders = [\"hunter22\"]\n", "hunter22"),
        ("[values]\nreferences = [\"acme-vault:\"]\n", "acme-vault:"),
        ("[values]\nrequirements = [\"roundish\"]\n", "roundish"),
        ("[values]\nordinary = [\"hunter\"]\n", "hunter"),
    ] {
        is_milder("secrets.toml", text, word);
    }
    is_stricter(
        "secrets.toml",
        "extends = \"baseline\"\n[[forms]]\nkind = \"acme\"\npatterns = ['acmekey_[0-9a-z]{20,}']\n[names]\n\
         phrases = [\"losungssatz\"]\nkeeps_meaning = [\"alt\"]\nlinks = [\"lautete\"]\n",
    );
    // No form can be taken out, and no name can be moved to a weaker list.
    let moved = with_file("secrets.toml", "[names]\nhints = [\"password\"]\n", "").faults("ours");
    assert!(
        moved.len() == 1 && moved[0].starts_with("secrets.toml:2: `password` in `hints` stands twice"),
        "{moved:#?}"
    );
}

#[test]
fn milder_numbers_must_be_named() {
    let window =
        |days: &str, hours: &str| format!("[windows.business_hours]\nzone = \"Etc/UTC\"\ndays = {days}\n{hours}\n");
    let hours = "opens = \"09:00\"\ncloses = \"17:00\"";
    let week = "[\"mon\", \"tue\", \"wed\", \"thu\", \"fri\"]";
    for (manifest, name) in [
        ("[scores.floor]\ndeny = 60\n".to_owned(), "scores.floor.deny"),
        ("[scores.floor]\ndefer = 29\n".to_owned(), "scores.floor.defer"),
        ("[scores.base]\nhigh = 44\n".to_owned(), "scores.base.high"),
        ("[scores.base]\nloop = 0\n".to_owned(), "scores.base.loop"),
        ("[pro]\ndenies_from = \"HIGH\"\n".to_owned(), "pro.denies_from"),
        (window("[\"sat\"]", hours), "windows.business_hours"),
        (window("[\"tue\"]", hours).replace("business_hours", "always"), "windows.always"),
        (window(week, "opens = \"08:59\"\ncloses = \"17:00\""), "windows.business_hours"),
        (window(week, hours).replace("Etc/UTC", "Asia/Tokyo"), "windows.business_hours"),
        ("[approvals]\nwithin = \"61m\"\n".to_owned(), "approvals.within"),
        ("[approvals]\nvalid_for = \"16m\"\n".to_owned(), "approvals.valid_for"),
        ("[approvals]\nvolatile = [\"trace\"]\n".to_owned(), "approvals.volatile"),
    ] {
        let faults = Packs::new().pack("ours", "baseline@2", &manifest, &[]).faults("ours");
        let is_told = faults[0].starts_with("pack.toml:") && faults[0].contains(&format!("`{name}`"));
        assert!(faults.len() == 1 && is_told, "{manifest}: {faults:#?}");
        let named = format!("{manifest}{}", section("numbers", &[name]));
        let packs = Packs::new().pack("ours", "baseline@2", &named, &[]);
        let pack = packs.load("ours").unwrap_or_else(|error| panic!("{manifest}: {error}"));
        assert_eq!(pack.weakened().unwrap().numbers, [name]);
    }
    let stricter = format!(
        "{}[scores.floor]\ndeny = 61\ndefer = 40\n[scores.base]\nhigh = 50\n[pro]\ndenies_from = \"MEDIUM\"\n\
         [approvals]\nquorum = 2\nwithin = \"30m\"\nvalid_for = \"5m\"\napprovers = [\"ops\"]\nreason = \"required\"\n",
        window("[\"tue\"]", "opens = \"10:00\"\ncloses = \"16:00\"")
    );
    Packs::new().pack("ours", "baseline@2", &stricter, &[]).load("ours").unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn milder_terms_of_approvals_must_be_named() {
    let parent = "[approvals]\napprovers = [\"dba\", \"ops\"]\nquorum = 2\nwithin = \"2h\"\nvalid_for = \"10m\"\n\
                  escalate_after = \"30m\"\nescalate_to = [\"duty\"]\nreason = \"required\"\n";
    let named = |names: &[&str]| format!("{parent}{}", section("numbers", names));
    let parent = named(&["approvals.within", "approvals.escalate_after", "approvals.escalate_to"]);
    let child =
        |manifest: &str| Packs::new().pack("ours", "baseline@2", &parent, &[]).pack("grand", "ours@1", manifest, &[]);
    for (manifest, names) in [
        ("[approvals]\napprovers = [\"ops\", \"all\"]\n", &["approvals.approvers"][..]),
        ("[approvals]\nquorum = 1\n", &["approvals.quorum"]),
        ("[approvals]\nwithin = \"3h\"\n", &["approvals.within"]),
        ("[approvals]\nvalid_for = \"11m\"\n", &["approvals.valid_for"]),
        ("[approvals]\nescalate_after = \"29m\"\n", &["approvals.escalate_after"]),
        ("[approvals]\nescalate_to = [\"all\"]\n", &["approvals.escalate_to"]),
    ] {
        let faults = child(manifest).faults("grand");
        assert!(faults.len() == names.len() && faults[0].contains(names[0]), "{manifest}: {faults:#?}");
        let named = format!("{manifest}{}", section("numbers", names));
        child(&named).load("grand").unwrap_or_else(|error| panic!("{manifest}: {error}"));
    }
    let stricter = "[approvals]\napprovers = [\"ops\"]\nescalate_to = [\"duty\"]\nquorum = 3\nwithin = \"1h\"\n\
                    valid_for = \"5m\"\nescalate_after = \"45m\"\n";
    child(stricter).load("grand").unwrap_or_else(|error| panic!("{error}"));
    // The parent's escalation would come only after the time that is left.
    let late = child("\n[approvals]\nwithin = \"20m\"\n").faults("grand");
    assert!(late.len() == 1 && late[0].starts_with("pack.toml:"), "{late:#?}");
}

fn verdict(pack: &Arc<Pack>, body: &Value) -> &'static str {
    let request = CheckRequest::parse(body.clone()).unwrap();
    Engine::new(Arc::clone(pack)).unwrap().decide(&request, 1_773_662_400).unwrap().verdict.as_str()
}

fn deploy() -> Value {
    json!({"goal": "Deploy the hotfix of May", "success_criteria": ["x"], "side_effects": ["deploy"],
        "constraints": ["approval_required"], "environment": "staging", "context": {}})
}

/// The rules of the baseline that defer `deploy`.
const DEFERRING: [&str; 2] = ["approval.required", "approval.high_effect"];

#[test]
fn a_rule_is_left_out_by_name_and_with_a_reason() {
    let without = |names: &[&str]| Packs::new().pack("ours", "baseline@2", &section("without", names), &[]);
    let pack = without(&DEFERRING).load("ours").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(pack.weakened().unwrap().without, DEFERRING);
    assert_eq!(pack.rule_count() + 2, Pack::embedded().unwrap().rule_count());
    assert_eq!((verdict(&Pack::embedded().unwrap(), &deploy()), verdict(&pack, &deploy())), ("DEFER", "ALLOW"));
    assert_eq!(
        without(&["approval.high_effort"]).faults("ours"),
        ["pack.toml:6: `approval.high_effort` in `without` is no rule of `baseline@2.0.0`"]
    );
    // A code that no rule gives any longer is gone with it.
    let alone = without(&["secrets.in_request"]).load("ours").unwrap();
    assert!(!alone.reference()["codes"].to_string().contains("SECRET_IN_REQUEST"));
}

#[test]
fn a_rule_takes_the_place_of_another_only_if_it_says_so() {
    let rule = with_rule()[0].1.replace("ours.large", "approval.high_effect");
    let files = |manifest: &str| {
        let mut files = with_rule();
        files.retain(|(file, _)| *file != "ours.cedar");
        files.push(("ours.cedar", &rule));
        Packs::new().pack("ours", "baseline@2", manifest, &files)
    };
    assert_eq!(
        files("").faults("ours"),
        ["ours.cedar:1: approval.high_effect: its `@id` is that of a rule of `baseline@2.0.0`"]
    );
    let wrong = files(&section("without", &["approval.high_effect"])).faults("ours");
    assert_eq!(
        wrong,
        ["pack.toml:6: `approval.high_effect` in `without` has a rule of the same `@id` here: name it in `replaces`"]
    );
    let packs = files(&section("replaces", &["approval.high_effect"]));
    let pack = packs.load("ours").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(pack.rule_count(), Pack::embedded().unwrap().rule_count());
    let request = CheckRequest::parse(deploy()).unwrap();
    let engine = Engine::new(pack).unwrap();
    let explanation = engine.explain(&request, 0).unwrap();
    assert!(!explanation.rules_matched.contains(&"approval.high_effect".to_owned()), "the amount is not large");
    let none = Packs::new().pack("ours", "baseline@2", &section("replaces", &["approval.high_effect"]), &[]);
    assert_eq!(
        none.faults("ours"),
        ["pack.toml:6: `approval.high_effect` in `replaces` has no rule of that `@id` here: name it in `without`"]
    );
}

#[test]
fn advice_of_the_same_code_takes_nothing_from_the_parents_issue() {
    let advice = r#"@id("aaa.first")
@family("ours")
@trigger("always")
@effect("advise")
@code("APPROVAL_REQUIRED")
@severity("MEDIUM")
@message("never mind")
@next_action("wait")
@weight("0")
@about("approval")
forbid (principal, action, resource)
when { context.high_effect };
"#;
    let case = r#"[{"id": "deploy", "expect": ["DEFER"], "codes": ["APPROVAL_REQUIRED"],
        "request": {"goal": "Deploy the hotfix of May", "success_criteria": ["x"], "side_effects": ["deploy"],
        "constraints": ["approval_required"], "environment": "staging", "context": {}}}]"#;
    let packs = Packs::new().pack("ours", "baseline@2", "", &[("ours.cedar", advice), ("cases.json", case)]);
    let pack = packs.load("ours").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(verdict(&pack, &deploy()), "DEFER");
}

#[test]
fn what_is_named_must_be_milder_and_have_a_reason() {
    let load = |manifest: &str| Packs::new().pack("ours", "baseline@2", manifest, &[]).faults("ours");
    for (list, name) in [("words", "refund"), ("numbers", "scores.floor.deny")] {
        let told = format!("pack.toml:6: `{name}` in `{list}` is not milder than in `baseline@2.0.0`: take it out");
        assert_eq!(load(&section(list, &[name])), [told]);
    }
    let stricter = format!("scores.floor.deny = 62\n{}", section("numbers", &["scores.floor.deny"]));
    assert_eq!(load(&stricter).len(), 1);
    for (section, told) in [
        ("[weakens]\nwithout = [\"loop.cost\"]\n", "pack.toml:4: `[weakens]` needs a `reason`"),
        ("[weakens]\n", "pack.toml:4: `[weakens]` needs a `reason`"),
        ("[weakens]\nreason = \" \"\n", "pack.toml:5: `reason` in `[weakens]` must be a text"),
        ("[weakens]\nreason = \"r\"\nrules = []\n", "pack.toml:6: unknown field `rules`"),
        ("[weakens]\nreason = \"r\"\nwords = \"refund\"\n", "pack.toml:6: invalid type"),
        (
            "[weakens]\nreason = \"r\"\nwithout = [\"loop.cost\", \"loop.cost\"]\n",
            "pack.toml:6: `loop.cost` stands twice in `without`",
        ),
        ("[weakens]\nreason = \"r\"\n", "pack.toml:4: `[weakens]` names nothing: take it out"),
    ] {
        let faults = load(section);
        assert!(faults.len() == 1 && faults[0].starts_with(told), "{section}: {faults:#?}");
    }
    // A pack that extends none has nothing to weaken.
    let packs = Packs::new().copy("ours", |_, text| text);
    let manifest = fs::read_to_string(packs.path("ours").join("pack.toml")).unwrap();
    let manifest = format!("{manifest}{}", section("words", &["refund"]));
    fs::write(packs.path("ours").join("pack.toml"), manifest).unwrap();
    assert!(packs.fault("ours").contains(": unknown field `weakens`"), "{}", packs.fault("ours"));
}

/// A rule of the pack `ours` with this condition, and a case that satisfies it.
fn over_rule(condition: &str, request: &str, file: &str, text: &str) -> Vec<String> {
    let rule = with_rule()[0].1.replace("context.custom has amount && context.custom.amount > 500", condition);
    let case = format!(
        r#"[{{"id": "c", "expect": ["DEFER", "DENY"], "codes": ["LARGE_AMOUNT"],
            "request": {{"goal": "Pay the invoice of May", "success_criteria": ["x"], {request} "context": {{}}}}}}]"#
    );
    let mut files = with_rule();
    (files[0].1, files[3].1) = (&rule, &case);
    let manifest = format!("{WINDOW}{}", section("numbers", &["windows.freeze"]));
    let packs = Packs::new().pack("ours", "baseline@2", &manifest, &files);
    packs.load("ours").unwrap_or_else(|error| panic!("{condition}: {error}"));
    let packs = match file {
        "pack.toml" => packs.pack("grand", "ours@1", text, &[]),
        file => packs.pack("grand", "ours@1", "", &[(file, text), ("cases.json", CASES)]),
    };
    packs.load("grand").map_or_else(|_| packs.faults("grand"), |_| Vec::new())
}

const WINDOW: &str = "[windows.freeze]\nzone = \"Etc/UTC\"\ndays = [\"mon\"]\nopens = \"09:00\"\ncloses = \"17:00\"\n";

#[test]
fn what_the_rules_of_the_parent_read_decides_what_is_milder() {
    let narrow = WINDOW.replace("17:00", "16:00");
    let other = WINDOW.replace("freeze", "thaw");
    let any = "context.windows_open.contains(\"freeze\")";
    let none = "!context.windows_open.isEmpty()";
    let milder = |faults: Vec<String>, name: &str| {
        assert!(faults.len() == 1 && faults[0].contains(&format!("`{name}`")), "{name}: {faults:#?}");
    };
    milder(over_rule(any, "", "pack.toml", &narrow), "windows.freeze");
    milder(over_rule(any, "", "pack.toml", &other), "windows.thaw");
    milder(over_rule(none, "", "pack.toml", &other), "windows.thaw");
    assert_eq!(over_rule(any, "", "pack.toml", WINDOW), Vec::<String>::new(), "it is the same");
    assert_eq!(over_rule("context.criteria_missing || true", "", "pack.toml", &narrow), Vec::<String>::new());

    let canary = "context.environments.contains(\"canary\")";
    let words = "[environments]\nproduction = [\"canary\"]\n";
    milder(over_rule(canary, "\"environment\": \"canary\",", "vocabulary.toml", words), "canary");
    let words = "[environments]\nproduction = [\"prod\"]\n";
    assert!(over_rule(canary, "\"environment\": \"canary\",", "vocabulary.toml", words).is_empty());

    let medium = "context.effect_classes.contains(\"medium\")";
    let phrase = "[listed]\nhigh = [\"export_ledger\"]\n";
    milder(over_rule(medium, "\"side_effects\": [\"edit\"],", "effects.toml", phrase), "export_ledger");
    assert!(over_rule(canary, "\"environment\": \"canary\",", "effects.toml", phrase).is_empty());
    let words = "[verbs]\nhigh = [\"create\"]\n";
    milder(over_rule(medium, "\"side_effects\": [\"edit\"],", "effects.toml", words), "create");
    assert!(over_rule(canary, "\"environment\": \"canary\",", "effects.toml", words).is_empty());
}

#[test]
fn all_that_is_milder_is_reported_at_once_with_what_to_write() {
    let packs = with_file("effects.toml", "[verbs]\nmedium = [\"refund\", \"wipe\"]\n", "scores.floor.deny = 0\n");
    let refused = packs.load("ours").unwrap_err();
    let shown: Vec<_> =
        refused.faults.iter().map(|fault| (fault.to_string(), fault.help.clone().unwrap().into_string())).collect();
    let help =
        |list: &str, name: &str| format!("write `[weakens]` in pack.toml, with a `reason` and `{list} = [\"{name}\"]`");
    let milder = |word: &str| {
        format!("effects.toml:2: `{word}` is medium here and high in `baseline@2.0.0`: what is milder must be said")
    };
    let number = "pack.toml:4: `scores.floor.deny` is lower than in `baseline@2.0.0`: what is milder must be said";
    assert_eq!(
        shown,
        [
            (milder("refund"), help("words", "refund")),
            (milder("wipe"), help("words", "wipe")),
            (number.to_owned(), help("numbers", "scores.floor.deny")),
        ]
    );
}

#[test]
fn a_rule_that_is_left_out_explains_the_cases_of_the_parent_that_it_decided() {
    let packs = Packs::new().pack("base", "baseline@2", "", &with_rule());
    let packs = packs.pack("ours", "base@1", &section("without", &["ours.large"]), &[]);
    let pack = packs.load("ours").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(pack.weakened().unwrap().without, ["ours.large"]);
}

#[test]
fn an_entry_has_the_effect_that_it_names_and_no_other() {
    let packs = with_file("effects.toml", "[verbs]\nmedium = [\"refund\"]\n", &section("words", &["refund"]));
    let pack = packs.load("ours").unwrap();
    let effect = |pack: &Arc<Pack>, effect: &str| {
        verdict(
            pack,
            &json!({"goal": "Carry out the step of May", "success_criteria": ["x"], "side_effects": [effect],
            "context": {}}),
        )
    };
    let baseline = Pack::embedded().unwrap();
    assert_eq!([&baseline, &pack].map(|pack| effect(pack, "refund")), ["DENY", "ALLOW"]);
    assert_eq!([&baseline, &pack].map(|pack| effect(pack, "refunded")), ["DENY", "ALLOW"]);
    assert_eq!([&baseline, &pack].map(|pack| effect(pack, "wipe")), ["DENY", "DENY"]);
    // It is milder for a pack that extends this one only where it differs again.
    let packs = packs.pack("grand", "ours@1", "", &[]);
    assert_eq!(effect(&packs.load("grand").unwrap(), "refund"), "ALLOW");
    let back =
        packs.pack("back", "ours@1", "", &[("effects.toml", "[verbs]\nhigh = [\"refund\"]\n"), ("cases.json", CASES)]);
    assert_eq!(effect(&back.load("back").unwrap_or_else(|error| panic!("{error}")), "refund"), "DENY");
}
