//! Packs that extend others: what they inherit, what they may change, and where their faults are reported.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use stage0_contract::{AccountRules, CheckRequest, Decision};
use stage0_policy::{Engine, Pack, PackError, TimeLimit};

use super::approvals::{NOON, check};
use super::packs::many_rules;

/// A folder of packs.
pub(super) struct Packs {
    pub(super) folder: tempfile::TempDir,
}

impl Packs {
    pub(super) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Adds a pack of version 1.0.0 that extends another, with these lines in its manifest and these files.
    pub(super) fn pack(self, name: &str, extends: &str, manifest: &str, files: &[(&str, &str)]) -> Self {
        let manifest = format!("name = \"{name}\"\nversion = \"1.0.0\"\nextends = \"{extends}\"\n{manifest}");
        fs::create_dir_all(self.path(name)).unwrap();
        for (file, text) in files.iter().copied().chain([("pack.toml", manifest.as_str())]) {
            fs::write(self.path(name).join(file), text).unwrap();
        }
        self
    }

    /// A copy of the baseline under this name.
    pub(super) fn copy(self, name: &str, edit: impl Fn(&str, String) -> String) -> Self {
        fs::create_dir(self.path(name)).unwrap();
        for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/baseline")).unwrap() {
            let entry = entry.unwrap();
            let file = entry.file_name().into_string().unwrap();
            let text = edit(&file, fs::read_to_string(entry.path()).unwrap());
            fs::write(self.path(name).join(file), text).unwrap();
        }
        self
    }

    pub(super) fn load(&self, name: &str) -> Result<Arc<Pack>, PackError> {
        Pack::from_dir(&self.path(name))
    }

    pub(super) fn faults(&self, name: &str) -> Vec<String> {
        let refused = self.load(name).expect_err("the pack is refused");
        refused.faults.iter().map(ToString::to_string).collect()
    }

    pub(super) fn fault(&self, name: &str) -> String {
        let faults = self.faults(name);
        assert_eq!(faults.len(), 1, "{faults:#?}");
        faults[0].clone()
    }
}

pub(super) const RULE: &str = r#"@id("ours.large")
@family("ours")
@trigger("always")
@effect("defer")
@code("LARGE_AMOUNT")
@severity("MEDIUM")
@message("the amount is large")
@question("Who approves the amount?")
@next_action("request_approval")
@weight("10")
@about("approval")
forbid (principal, action, resource)
when { context.custom has amount && context.custom.amount > 500 };
"#;
const CUSTOM: &str = "// What is paid.\ntype Custom = { amount?: Long };\n";
const LARGE: &str = "[LARGE_AMOUNT]\nmeaning = \"m\"\nremedy = \"r\"\n";
const CASES: &str = r#"[
{"id": "large", "expect": ["DEFER"], "codes": ["LARGE_AMOUNT"],
 "request": {"goal": "Pay the invoice of May", "success_criteria": ["x"], "context": {"amount": 501}}},
{"id": "small", "expect": ["ALLOW"],
 "request": {"goal": "Pay the invoice of May", "success_criteria": ["x"], "context": {"amount": 500}}}
]
"#;

const ALLOWED: &str = r#"[{"id": "greet", "expect": ["ALLOW"],
 "request": {"goal": "Summarize the minutes of May", "success_criteria": ["x"]}}]"#;

pub(super) fn with_rule() -> Vec<(&'static str, &'static str)> {
    vec![("ours.cedar", RULE), ("schema.cedarschema", CUSTOM), ("codes.toml", LARGE), ("cases.json", CASES)]
}

fn decide(pack: &Arc<Pack>, body: &Value, at: i64) -> Option<Decision> {
    let request = CheckRequest::parse(body.clone()).ok()?;
    Engine::new(Arc::clone(pack)).unwrap().decide(&request, at).ok()
}

/// Every case of the baseline: its request and time.
fn baseline_cases() -> Vec<(Value, i64)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/baseline");
    let read =
        |file: &str| -> Vec<Value> { serde_json::from_str(&fs::read_to_string(folder.join(file)).unwrap()).unwrap() };
    let cases = [read("cases.json"), read("cases-2.json")].concat();
    let time = |case: &Value| case["evaluated_at"].as_i64().unwrap_or(1_773_662_400);
    cases.iter().map(|case| (case["request"].clone(), time(case))).collect()
}

#[test]
fn a_pack_without_anything_of_its_own_decides_each_case_as_its_parent_does() {
    let packs = Packs::new().pack("ours", "baseline@2", "", &[]).pack("grand", "ours@1", "edition = 2\n", &[]);
    let parent = Engine::new(Pack::embedded().unwrap()).unwrap();
    for name in ["ours", "grand"] {
        let pack = packs.load(name).unwrap();
        assert_eq!(pack.rule_count(), parent.pack().rule_count());
        assert_eq!(pack.reference(), parent.pack().reference());
        assert!(pack.weakened().is_none() && pack.version().as_str().starts_with(&format!("{name}@1.0.0+")));
        let child = Engine::new(pack).unwrap();
        let mut decided = 0;
        for (body, at) in baseline_cases() {
            let Ok(request) = CheckRequest::parse(body) else { continue };
            let [before, after] = [&parent, &child].map(|engine| {
                engine
                    .decide(&request, at)
                    .map(|decision| Decision { policy_version: parent.pack().version().clone(), ..decision })
            });
            assert_eq!(before, after, "{name}: {request:?}");
            decided += 1;
        }
        assert!(decided > 500, "{decided}");
    }
    assert_eq!(packs.load("grand").unwrap().parent(), Some(packs.load("ours").unwrap().version()));
}

#[test]
fn own_rules_and_members_are_added_to_those_of_the_parent() {
    let packs = Packs::new().pack("ours", "baseline@2", "", &with_rule());
    let pack = packs.load("ours").unwrap();
    assert_eq!(pack.rule_count(), Pack::embedded().unwrap().rule_count() + 1);
    assert_eq!(pack.case_count(), 2);
    let body = |amount: i64, tool: &str| {
        json!({"goal": "Pay the invoice of May", "success_criteria": ["x"], "tools": [tool],
            "context": {"amount": amount}})
    };
    let codes = |body: &Value| -> Vec<String> {
        let decision = decide(&pack, body, 0).unwrap();
        decision.issues.iter().map(|issue| issue.code.to_string()).collect()
    };
    assert!(codes(&body(501, "read_invoice")).contains(&"LARGE_AMOUNT".to_owned()));
    assert!(!codes(&body(500, "read_invoice")).contains(&"LARGE_AMOUNT".to_owned()));
    let both = codes(&body(501, "bash"));
    assert!(both.contains(&"LARGE_AMOUNT".to_owned()) && both.len() > 1, "{both:?}");
    assert!(pack.reference()["codes"].to_string().contains("LARGE_AMOUNT"));
}

#[test]
fn types_of_two_packs_are_merged_and_one_member_has_one_type() {
    let child = |types: &str| {
        let packs = Packs::new().pack("ours", "baseline@2", "", &with_rule());
        packs.pack("grand", "ours@1", "", &[("schema.cedarschema", types)])
    };
    let rule = RULE.replace("ours.large", "grand.large").replace(
        "context.custom has amount && context.custom.amount > 500",
        "context.custom has amount && context.custom has urgent && context.custom.urgent && \
         context.run_calls.pay < 1 && context.run_named && context.custom.amount > 500",
    );
    let case = r#"[{"id": "urgent", "expect": ["DEFER"], "request": {"goal": "Pay the invoice of May",
        "success_criteria": ["x"], "context": {"amount": 501, "urgent": true, "run_id": "r1"}}}]"#;
    let packs = child("type Custom = { urgent?: Bool, amount?: Long };\ntype RunCalls = { pay: Long };");
    let packs = packs.pack(
        "grand",
        "ours@1",
        "",
        &[
            ("schema.cedarschema", "type Custom = { urgent?: Bool, amount?: Long };\ntype RunCalls = { pay: Long };"),
            ("grand.cedar", &rule),
            ("cases.json", case),
        ],
    );
    packs.load("grand").unwrap_or_else(|error| panic!("{error}"));
    let fault = child("// One.\ntype Custom = {\n    amount?: String,\n};").fault("grand");
    assert_eq!(fault, "schema.cedarschema:3: `amount` is a Long in `ours@1.0.0`, and cannot have another type");
    for (types, line, name) in [
        ("entity User;", 1, "User"),
        ("type Custom = { a?: Long };\ntype Facts = { side_effects: Bool };", 2, "Facts"),
        ("\naction \"check\" appliesTo { principal: [A], resource: [A], context: {} };\nentity A;", 2, "A"),
        ("namespace N {\n type Custom = { a?: Long };\n}", 2, "Custom"),
    ] {
        let fault = child(types).fault("grand");
        assert!(fault.starts_with(&format!("schema.cedarschema:{line}: `{name}` is not the pack's")), "{fault}");
    }
    assert!(child("type Custom = {").fault("grand").starts_with("schema.cedarschema:1: "));
    assert!(child("type Custom = { amount: Long };").fault("grand").contains("`amount`"));
}

#[test]
fn rules_and_words_of_its_own_need_cases_of_its_own() {
    let without = |left_out: &str| {
        let files = with_rule().into_iter().filter(|(file, _)| *file != left_out).collect::<Vec<_>>();
        Packs::new().pack("ours", "baseline@2", "", &files)
    };
    assert_eq!(without("cases.json").fault("ours"), "cases.json: is missing");
    assert_eq!(
        without("codes.toml").fault("ours"),
        "codes.toml: ours.large: `LARGE_AMOUNT` is missing: `ours.large` (ours.cedar:1) gives it"
    );
    assert!(without("schema.cedarschema").faults("ours").iter().any(|fault| fault.starts_with("ours.cedar:")));
    let untested = CASES.replace("\"amount\": 501", "\"amount\": 5").replace("\"DEFER\"", "\"ALLOW\"");
    let untested = untested.replace("\"codes\": [\"LARGE_AMOUNT\"],", "");
    let packs = without("").pack("ours", "baseline@2", "", &[("cases.json", &untested)]);
    assert_eq!(packs.fault("ours"), "ours.cedar:1: ours.large: no case satisfies it: an untested rule is no rule");
    let words = Packs::new().pack("ours", "baseline@2", "", &[("effects.toml", "[verbs]\nhigh = [\"teleport\"]\n")]);
    assert_eq!(words.fault("ours"), "cases.json: is missing");
    let numbers = Packs::new().pack("ours", "baseline@2", "[scores.floor]\ndeny = 70\n", &[]);
    assert!(numbers.load("ours").is_ok());
}

#[test]
fn faults_name_the_packs_own_file_and_line() {
    for (file, text, told) in [
        (
            "effects.toml",
            "# Ours.\n[verbs]\nhigh = [\n  \"Teleport\",\n]\n",
            "effects.toml:4: `Teleport` in `high` is not",
        ),
        ("effects.toml", "[verbs]\nhigh = [\"beam\"]\nmedium = [\"beam\"]\n", "effects.toml:3: `beam` stands in two"),
        ("effects.toml", "[verbs]\nhigh = [\"beam\", \"beam\"]\n", "effects.toml:2: `beam` stands twice in `high`"),
        ("effects.toml", "[verbs]\n\nhihg = [\"beam\"]\n", "effects.toml:3: `hihg` is no list of `[verbs]`"),
        ("effects.toml", "[verb]\nhigh = []\n", "effects.toml:1: unknown field `verb`"),
        ("effects.toml", "[marks]\nwrites = [\"beam\"]\n", "effects.toml:2: `beam` in `writes` stands in no class"),
        ("effects.toml", "[verbs\n", "effects.toml:1: "),
        ("tools.toml", "[sensitive]\nruns = [\"Beam\"]\n", "tools.toml:2: `Beam` in `runs` is not in normal form"),
        ("tools.toml", "undeclared_effects = \"deny\"\n", "tools.toml:1: unknown variant `deny`"),
        ("constraints.toml", "\nguardrails = [\"prayer\"]\n", "constraints.toml:2: `prayer` is no canonical name"),
        ("vocabulary.toml", "[environments]\nlive = [\"production\"]\n", "vocabulary.toml:2: `production` is an envir"),
        ("vocabulary.toml", "[approval]\n\napproved = [\"ok\"]\n", "vocabulary.toml:3: unknown field `approved`"),
        ("vocabulary.toml", "[approval]\npending = [\"approved\"]\n", "vocabulary.toml:2: `approved` in `pending`"),
        ("codes.toml", "[A]\nmeaning = \"m\"\nremedy = \"r\"\n", "codes.toml:1: `A` is given by no rule"),
        ("codes.toml", "\n[APPROVAL_REQUIRED]\nremedy = \"\"\n", "codes.toml:2: `APPROVAL_REQUIRED` needs a `mean"),
        ("secrets.toml", "[names]\npasswords = [\"Losung\"]\n", "secrets.toml:2: `Losung` in `passwords` is not in"),
        ("secrets.toml", "extends = \"other\"\n", "secrets.toml:1: the forms of `baseline` are inherited: take"),
        ("notes.txt", "", "notes.txt: is no file of a pack"),
    ] {
        let cases = CASES.replace("\"DEFER\"", "\"ALLOW\"").replace("\"codes\": [\"LARGE_AMOUNT\"],", "");
        let files = [(file, text), ("cases.json", cases.as_str())];
        let faults = Packs::new().pack("ours", "baseline@2", "", &files).faults("ours");
        assert!(faults.len() == 1 && faults[0].starts_with(told), "{told}: {faults:#?}");
    }
    for (manifest, told) in [
        ("edition = 1\n", "pack.toml:4: `edition` is that of the pack that it extends: take it out"),
        ("\n[scores.base]\nnone = 101\n", "pack.toml:"),
        ("[scores.base]\nnoon = 10\n", "pack.toml:5: unknown field `noon`"),
        (
            "[windows.night]\nzone = \"Etc/UTC\"\ndays = [\"mon\"]\nopens = \"9\"\ncloses = \"10:00\"\n",
            "pack.toml:4: night: ",
        ),
        ("[approvals]\nquorum = 11\n", "pack.toml:5: `quorum` in `[approvals]` must be"),
        ("[approvals]\nvolatile = [\"environment\"]\n", "pack.toml:5: `environment` in `volatile`"),
        ("nmae = 1\n", "pack.toml:4: unknown field `nmae`"),
        ("edition = \n", "pack.toml:4: "),
    ] {
        let faults = Packs::new().pack("ours", "baseline@2", manifest, &[]).faults("ours");
        assert!(faults.len() == 1 && faults[0].starts_with(told), "{told}: {faults:#?}");
    }
    let nameless = Packs::new().pack("ours", "baseline@2", "", &[]);
    fs::write(nameless.path("ours").join("pack.toml"), "version = \"1.0.0\"\nextends = \"baseline@2\"\n").unwrap();
    assert_eq!(nameless.fault("ours"), "pack.toml: missing field `name`");
}

#[test]
fn a_pack_has_a_thousand_rules_at_most_with_those_that_it_inherits() {
    let load = |own: usize| {
        let packs =
            Packs::new().pack("ours", "baseline@2", "", &[("many.cedar", &many_rules(own)), ("cases.json", ALLOWED)]);
        packs.faults("ours")
    };
    let inherited = Pack::embedded().unwrap().rule_count();
    let told = "pack.toml: with those of `baseline@2.0.0` the pack has more than 1000 rules";
    assert_eq!(load(1_001 - inherited), [told]);
    let untested = load(1_000 - inherited);
    assert_eq!(untested.len(), 1_000 - inherited, "only its own rules need its cases: {}", untested[0]);
}

#[test]
fn an_inherited_rule_that_escalates_too_late_is_reported_where_the_time_is_shortened() {
    let escalates = RULE.replace("@about", "@escalate_after(\"30m\")\n@escalate_to(\"duty\")\n@about");
    let mut files = with_rule();
    files[0].1 = &escalates;
    let packs = Packs::new().pack("ours", "baseline@2", "", &files);
    let packs = packs.pack("grand", "ours@1", "\n[approvals]\nwithin = \"20m\"\n", &[]);
    assert!(packs.load("ours").is_ok());
    let fault = packs.fault("grand");
    assert!(fault.starts_with("pack.toml:6: ours.large: the escalation would come only after"), "{fault}");
    let packs = packs.pack("grand", "ours@1", "\n[approvals]\nwithin = \"40m\"\n", &[]);
    assert!(packs.load("grand").is_ok());
}

#[test]
fn the_version_covers_the_packs_files_and_the_parents_version() {
    let version = |packs: &Packs, name: &str| packs.load(name).unwrap().version().to_string();
    let [one, other, commented] = ["", "[scores.floor]\ndeny = 70\n", "# Ours.\n"]
        .map(|manifest| Packs::new().pack("a", "baseline@2", manifest, &[]).pack("b", "a@1", "", &[]));
    assert_eq!(
        version(&one, "b"),
        version(&Packs::new().pack("a", "baseline@2", "", &[]).pack("b", "a@1", "", &[]), "b")
    );
    assert_ne!(version(&one, "b"), version(&other, "b"), "the parent has other numbers");
    assert_ne!(version(&one, "b"), version(&commented, "b"), "the parent has another version");
}

#[test]
fn forms_of_secrets_are_inherited_and_added_to() {
    let form = |kind: &str| format!("[[forms]]\nkind = \"{kind}\"\npatterns = ['{kind}_[0-9a-z]{{20,}}']\n");
    let case = |kind: &str| {
        format!(
            r#"[{{"id": "{kind}", "expect": ["DENY"], "codes": ["SECRET_IN_REQUEST"],
            "request": {{"goal": "Use {kind}_0123456789abcdefghijklm for it"}}}}]"#
        )
    };
    let files = |kind: &str| [("secrets.toml", form(kind)), ("cases.json", case(kind))];
    let [one, two] = [files("acmekey"), files("betakey")];
    fn borrowed<'a>(files: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
        files.iter().map(|(file, text)| (*file, text.as_str())).collect()
    }
    let packs = Packs::new().pack("a", "baseline@2", "", &borrowed(&one)).pack("b", "a@1", "", &borrowed(&two));
    let packs = packs.pack("c", "b@1", "", &[]);
    let denies = |name: &str, text: &str| {
        let pack = packs.load(name).unwrap_or_else(|error| panic!("{error}"));
        let body = json!({"goal": format!("Use {text} for the nightly report"), "success_criteria": ["x"]});
        decide(&pack, &body, 0).unwrap().issues.iter().any(|issue| issue.code.as_str() == "SECRET_IN_REQUEST")
    };
    let [acme, beta, known] = ["acmekey_0123456789abcdefghij", "betakey_0123456789abcdefghij", "AKIAIOSFODNN7EXAMPLE"];
    assert_eq!(["a", "b", "c"].map(|name| denies(name, acme)), [true; 3]);
    assert_eq!(["a", "b", "c"].map(|name| denies(name, beta)), [false, true, true]);
    assert_eq!(["a", "b", "c"].map(|name| denies(name, known)), [true; 3]);
    let twice = Packs::new().pack("a", "baseline@2", "", &borrowed(&one)).pack("b", "a@1", "", &borrowed(&one));
    assert_eq!(twice.fault("b"), "secrets.toml:3: a pattern of `acmekey` stands twice");
}

#[test]
fn a_rule_that_asks_for_less_does_not_take_the_parents_defaults_away() {
    let asks = RULE.replace("@about", "@approve_within(\"7d\")\n@approval_valid_for(\"24h\")\n@about");
    let mut files = with_rule();
    files[0].1 = &asks;
    let packs = Packs::new().pack("ours", "baseline@2", "", &files).pack("grand", "ours@1", "", &[]);
    let times = |name: &str, constraints: Value| {
        let engine = Engine::new(packs.load(name).unwrap()).unwrap();
        let body = json!({"goal": "Pay the invoice of May", "success_criteria": ["x"], "constraints": constraints,
            "context": {"amount": 501}});
        let answer = engine.answer(&check(&body, NOON, AccountRules::default()), None, None, TimeLimit::NONE).unwrap();
        let terms = answer.terms.unwrap();
        (terms.within_seconds, terms.valid_seconds)
    };
    for name in ["ours", "grand"] {
        assert_eq!(times(name, json!([])), (604_800, 86_400), "{name}: the rule alone");
        // The parent defers for the ticket, and an approval of that is valid for a quarter of an hour.
        assert_eq!(times(name, json!(["require_ticket"])), (3_600, 900), "{name}");
    }
}
