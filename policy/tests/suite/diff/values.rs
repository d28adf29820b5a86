//! Words and values that differ between two packs, by file, list and name, and how each is judged.

use std::path::Path;

use serde_json::Value;
use stage0_policy::Pack;
use stage0_policy::diff::{Change, Direction, PackDiff};

use super::super::packs_extend::Packs;
use super::{GREET, between, edited, greeting, pack, rule_file, weakens, with_our_rule};

#[test]
fn words_are_told_by_file_and_list_and_judged_as_in_weakens() {
    use Direction::{Looser, Stricter, Unclear};
    const PRODUCTION: &str = "environments.production";
    const STAGING: &str = "environments.staging";
    for (file, text, word, from, to, direction, back) in [
        ("effects.toml", "[verbs]\nhigh = [\"teleport\"]\n", "teleport", "", "verbs.high", Stricter, Looser),
        ("effects.toml", "[verbs]\nmedium = [\"teleport\"]\n", "teleport", "", "verbs.medium", Looser, Unclear),
        ("effects.toml", "[verbs]\nmedium = [\"refund\"]\n", "refund", "verbs.high", "verbs.medium", Looser, Stricter),
        ("effects.toml", "[verbs]\nhigh = [\"create\"]\n", "create", "verbs.medium", "verbs.high", Stricter, Looser),
        ("tools.toml", "[harmless]\nreading = [\"fetch\"]\n", "fetch", "", "harmless.reading", Looser, Stricter),
        ("tools.toml", "[sensitive]\nruns = [\"beam\"]\n", "beam", "", "sensitive.runs", Stricter, Looser),
        (
            "tools.toml",
            "[sensitive]\nhosts = [\"sudo\"]\n",
            "sudo",
            "sensitive.runs",
            "sensitive.hosts",
            Looser,
            Stricter,
        ),
        ("constraints.toml", "guardrails = [\"dry_run\"]\n", "dry_run", "", "guardrails", Looser, Stricter),
        ("constraints.toml", "tags = [\"lucky\"]\n", "lucky", "", "tags", Looser, Stricter),
        (
            "constraints.toml",
            "[aliases]\ndry_run = [\"rehearse\"]\n",
            "rehearse",
            "",
            "aliases.dry_run",
            Looser,
            Unclear,
        ),
        ("vocabulary.toml", "[environments]\nproduction = [\"main\"]\n", "main", "", PRODUCTION, Unclear, Unclear),
        ("vocabulary.toml", "[environments]\nstaging = [\"live\"]\n", "live", PRODUCTION, STAGING, Unclear, Unclear),
        (
            "vocabulary.toml",
            "[goals]\nvague = [\"make it nice\"]\n",
            "make it nice",
            "",
            "goals.vague",
            Stricter,
            Looser,
        ),
        ("vocabulary.toml", "[approval]\nrejected = [\"nope\"]\n", "nope", "", "approval.rejected", Stricter, Looser),
        ("secrets.toml", "[names]\npasswords = [\"losung\"]\n", "losung", "", "names.passwords", Unclear, Unclear),
        ("secrets.toml", "[values]\nordinary = [\"hunter\"]\n", "hunter", "", "values.ordinary", Looser, Stricter),
        (
            "secrets.toml",
            "[[forms]]\nkind = \"acme\"\npatterns = ['acmekey_']\n",
            "acmekey_",
            "",
            "forms.acme",
            Stricter,
            Looser,
        ),
    ] {
        let files = vec![(file, text), ("cases.json", GREET)];
        let packs = |manifest: &str| Packs::new().pack("ours", "baseline@2", manifest, &files).load("ours");
        let new =
            packs("").or_else(|_| packs(&weakens("words", &[word]))).unwrap_or_else(|error| panic!("{text}: {error}"));
        let (old, new) = (greeting(), new);
        let diff = between(&old, &new);
        let [found] = diff.words.as_slice() else { panic!("{text}: {:#?}", diff.words) };
        let change = if from.is_empty() { Change::Added } else { Change::Moved };
        assert_eq!((found.file, found.word.as_str(), found.change), (file, word, change));
        assert_eq!((found.from.join(" "), found.to.join(" ")), (from.to_owned(), to.to_owned()));
        assert_eq!(found.direction, direction, "{text}");
        assert_eq!(diff.outcome.is_looser(), direction != Stricter, "{text}: {:#?}", diff.cases.changed);
        assert!(diff.rules.is_empty() && diff.values.is_empty(), "{diff:#?}");
        let reversed = between(&new, &old);
        let [found] = reversed.words.as_slice() else { panic!("{text}: {:#?}", reversed.words) };
        assert_eq!(
            (found.direction, found.from.join(" "), found.to.join(" ")),
            (back, to.to_owned(), from.to_owned()),
            "{text}"
        );
    }
}

#[test]
fn numbers_windows_and_terms_are_told_by_name_with_both_values() {
    use Direction::{Looser, Stricter, Unclear};
    let window = "zone = \"Etc/UTC\"\ndays = [\"sat\"]\nopens = \"09:00\"\ncloses = \"17:00\"\n";
    for (manifest, name, from, to, direction, back) in [
        ("[scores.floor]\ndeny = 60\n", "scores.floor.deny", "61", "60", Looser, Stricter),
        ("[scores.base]\nhigh = 50\n", "scores.base.high", "45", "50", Stricter, Looser),
        ("[pro]\ndenies_from = \"HIGH\"\n", "pro.denies_from", "\"MEDIUM\"", "\"HIGH\"", Looser, Stricter),
        ("[approvals]\nquorum = 2\n", "approvals.quorum", "", "2", Stricter, Looser),
        ("[approvals]\nvalid_for = \"16m\"\n", "approvals.valid_for", "", "\"16m\"", Looser, Stricter),
        ("[approvals]\nvolatile = [\"trace\"]\n", "approvals.volatile", "", "[\"trace\"]", Looser, Stricter),
        ("[windows.night]\n{window}", "windows.night", "", "{", Looser, Stricter),
        ("[windows.business_hours]\n{window}", "windows.business_hours", "{", "{", Unclear, Unclear),
    ] {
        let manifest = manifest.replace("{window}", window);
        let packs =
            |more: &str| Packs::new().pack("ours", "baseline@2", &format!("{manifest}{more}"), &[]).load("ours");
        let named = || packs(&weakens("numbers", &[name])).unwrap_or_else(|error| panic!("{name}: {error}"));
        let new = packs("").unwrap_or_else(|_| named());
        let old = Pack::embedded().unwrap();
        let told = |diff: &PackDiff| {
            let [value] = diff.values.as_slice() else { panic!("{name}: {:#?}", diff.values) };
            assert_eq!((value.file, value.name.as_str()), ("pack.toml", name));
            assert!(diff.rules.is_empty() && diff.words.is_empty(), "a default of the pack is told once: {diff:#?}");
            let text = |value: &Option<Value>| value.as_ref().map(Value::to_string).unwrap_or_default();
            (text(&value.from), text(&value.to), value.direction)
        };
        let (was, is, found) = told(&between(&old, &new));
        assert!(was.starts_with(from) && is.starts_with(to) && was.is_empty() == from.is_empty(), "{name}: {was} {is}");
        assert_eq!((found, told(&between(&new, &old)).2), (direction, back), "{name}");
    }
}

#[test]
fn declared_members_counted_tools_codes_and_undeclared_effects_are_values() {
    let rule = rule_file();
    let old = with_our_rule();
    let schema = "type Custom = { amount?: Long, urgent?: Bool };\ntype RunCalls = { pay: Long };";
    let new = pack("", &edited("schema.cedarschema", schema));
    let told = |diff: &PackDiff| -> Vec<(&'static str, String, Direction)> {
        diff.values.iter().map(|value| (value.file, value.name.clone(), value.direction)).collect()
    };
    let member = |direction| ("schema.cedarschema", "Custom.urgent".to_owned(), direction);
    let calls = ("schema.cedarschema", "RunCalls.pay".to_owned(), Direction::Neutral);
    assert_eq!(told(&between(&old, &new)), [member(Direction::Stricter), calls.clone()]);
    assert_eq!(told(&between(&new, &old)), [member(Direction::Looser), calls]);

    let decimal = rule.replace("context.custom.amount > 500", "context.custom.amount.greaterThan(decimal(\"500.0\"))");
    let mut files = edited("ours.cedar", &decimal);
    files[1] = ("schema.cedarschema", "type Custom = { amount?: decimal };");
    let diff = between(&old, &pack("", &files));
    assert_eq!(told(&diff), [("schema.cedarschema", "Custom.amount".to_owned(), Direction::Unclear)]);
    assert_eq!(
        (diff.values[0].from.as_ref().unwrap(), diff.values[0].to.as_ref().unwrap()),
        (&"Long".into(), &"decimal".into())
    );

    let code = "[LARGE_AMOUNT]\nmeaning = \"much\"\nremedy = \"r\"\n";
    let diff = between(&old, &pack("", &edited("codes.toml", code)));
    assert_eq!(told(&diff), [("codes.toml", "LARGE_AMOUNT".to_owned(), Direction::Neutral)]);
    assert!(diff.outcome.is_different() && !diff.outcome.is_looser() && diff.outcome.stricter.entries == 0);

    let defers = pack("", &[("tools.toml", "undeclared_effects = \"defer\"\n"), ("cases.json", GREET)]);
    let greets = greeting();
    let undeclared = |direction| ("tools.toml", "undeclared_effects".to_owned(), direction);
    let diff = between(&greets, &defers);
    assert_eq!(told(&diff), [undeclared(Direction::Stricter)]);
    let effect = &diff.rules[0].annotations[0];
    assert_eq!((effect.name, effect.to.as_deref(), effect.direction), ("effect", Some("defer"), Direction::Stricter));
    assert_eq!(told(&between(&defers, &greets)), [undeclared(Direction::Looser)]);
    // To say what holds anyway is no difference.
    let advises = pack("", &[("tools.toml", "undeclared_effects = \"advise\"\n"), ("cases.json", GREET)]);
    assert!(!between(&greets, &advises).outcome.is_different());
}

#[test]
fn words_of_the_first_edition_cannot_be_judged() {
    let first = Pack::from_dir(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/first-edition")).unwrap();
    let diff = between(&first, &Pack::embedded().unwrap());
    assert!(!diff.words.is_empty());
    let judged = diff.words.iter().filter(|word| word.file != "secrets.toml" && word.direction != Direction::Unclear);
    assert_eq!(judged.count(), 0);
    let edition = diff.values.iter().find(|value| value.name == "edition").unwrap();
    assert_eq!(edition.direction, Direction::Unclear);
    assert!(!between(&first, &first).outcome.is_different());
}

#[test]
fn a_form_of_a_secret_without_its_proof_finds_more() {
    let form = |proof: &str| format!("[[forms]]\nkind = \"acme\"\npatterns = ['acmekey_[0-9a-z]{{20,}}']\n{proof}");
    let [proven, plain] = ["proof = \"digit\"\n", ""]
        .map(|proof| pack("", &[("secrets.toml", form(proof).as_str()), ("cases.json", GREET)]));
    for (old, new, direction) in [(&proven, &plain, Direction::Stricter), (&plain, &proven, Direction::Looser)] {
        let diff = between(old, new);
        let [found] = diff.words.as_slice() else { panic!("{:#?}", diff.words) };
        assert_eq!((found.change, found.direction), (Change::Moved, direction), "{found:?}");
        assert!(found.from.concat().contains("acme") && found.from != found.to, "{found:?}");
    }
    assert!(!between(&plain, &plain).outcome.is_different());
}
