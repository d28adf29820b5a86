//! What is refused of a pack that is to be published, beside what a folder must be; and the nearest that is not.

use std::path::Path;
use std::time::Instant;

use stage0_contract::{PolicyBundle, PolicyFiles};
use stage0_policy::{MAX_LOADED_RULE_BYTES, MAX_RULE_BYTES, Pack, TimeLimit};

use super::packs_extend::{Packs, RULE, with_rule};

fn ours() -> PolicyBundle {
    Pack::bundle(&Packs::new().pack("ours", "baseline@2", "", &with_rule()).path("ours")).unwrap()
}

fn with(file: &str, edit: impl FnOnce(&str) -> String) -> PolicyBundle {
    let mut bundle = ours();
    let files: &mut PolicyFiles = &mut bundle.packs[0];
    let text = files.files.get(file).cloned().unwrap_or_default();
    files.files.insert(file.to_owned(), edit(&text));
    bundle
}

/// All faults, each with its place.
fn faults(bundle: &PolicyBundle) -> Vec<String> {
    match Pack::judge(bundle, TimeLimit::NONE) {
        Ok(_) => Vec::new(),
        Err(error) => error.refused.faults.iter().map(ToString::to_string).collect(),
    }
}

fn template(name: &str) -> PolicyBundle {
    Pack::bundle(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies").join(name)).unwrap()
}

#[test]
fn a_pack_may_not_pass_for_one_that_is_compiled_in() {
    let named = |name: &str| with("pack.toml", |text| text.replace("\"ours\"", &format!("\"{name}\"")));
    for name in Pack::templates().chain(["baseline"]) {
        let found = faults(&named(name));
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        let told = format!("pack.toml:1: `{name}` is the name of a pack that is compiled in, and this is another one");
        assert!(found[0].starts_with(&told), "{found:?}");
    }
    assert!(faults(&named("baseline-ours")).is_empty());
    // What is compiled in is what it seems to be.
    for name in Pack::templates().chain(["baseline"]) {
        assert!(faults(&template(name)).is_empty(), "{name}");
    }
    let mut altered = template("money-movement");
    let manifest = altered.packs[0].files.get_mut("pack.toml").unwrap();
    manifest.push_str("# Ours.\n");
    assert_eq!(faults(&altered).len(), 1, "{:?}", faults(&altered));
}

#[test]
fn texts_that_people_read_have_no_character_that_misleads() {
    for bad in ['\u{202e}', '\u{2066}', '\u{200b}', '\u{200f}', '\u{feff}'] {
        // As an escape, which no reader of the file could overlook, and no reader of an answer sees.
        let escaped = format!("\\u{{{:x}}}", u32::from(bad));
        let message = with("ours.cedar", |text| text.replace("amount is large", &format!("amount{escaped} is large")));
        let question = with("ours.cedar", |text| text.replace("Who approves", &format!("Who{escaped} approves")));
        for (bundle, what) in [(message, "`@message`"), (question, "`@question`")] {
            let found = faults(&bundle);
            let told = format!("{what} has U+{:04X}", u32::from(bad));
            assert!(found.len() == 1 && found[0].starts_with("ours.cedar:1:") && found[0].contains(&told), "{found:?}");
        }
        let escaped = format!("\\u{:04x}", u32::from(bad));
        let remedy = with("codes.toml", |text| text.replace("\"r\"", &format!("\"r{escaped}\"")));
        let found = faults(&remedy);
        assert!(
            found.len() == 1 && found[0].starts_with("codes.toml:1:") && found[0].contains("`remedy`"),
            "{found:?}"
        );
        let case = with("cases.json", |text| text.replace("\"large\"", &format!("\"lar{escaped}ge\"")));
        let found = faults(&case);
        assert!(found.len() == 1 && found[0].starts_with("cases.json:") && found[0].contains("`id`"), "{found:?}");
    }
    for good in ["é", "金額", "مبلغ", "⚠️"] {
        let message = with("ours.cedar", |text| text.replace("amount is large", good));
        assert!(faults(&message).is_empty(), "{good}: {:?}", faults(&message));
    }
}

#[test]
fn no_line_of_rules_or_words_reads_in_another_order_than_it_stands() {
    let comment = |text: &str| with("ours.cedar", |rules| format!("{rules}// {text}\n"));
    let line = RULE.lines().count() + 1;
    for bad in ['\u{202a}', '\u{202e}', '\u{2066}', '\u{2069}'] {
        let found = faults(&comment(&format!("a{bad}b")));
        assert!(found.len() == 1 && found[0].starts_with(&format!("ours.cedar:{line}: U+")), "{found:?}");
        let words = with("pack.toml", |text| format!("# {bad}\n{text}"));
        assert!(faults(&words)[0].starts_with("pack.toml:1: U+"), "{:?}", faults(&words));
        // A request may say anything, and so may the case that tests it.
        let case = with("cases.json", |text| text.replace("of May", &format!("of {bad}May")));
        assert!(faults(&case).is_empty(), "{:?}", faults(&case));
    }
    assert!(faults(&comment("é, 金額, مبلغ: ordinary")).is_empty());
}

#[test]
fn rules_have_so_many_bytes_and_the_largest_file_is_named() {
    let padded =
        |bytes: usize| with("zz.cedar", |_| format!("// {}\n", "x".repeat(bytes - RULE.len() - "// \n".len())));
    let most = Pack::judge(&padded(MAX_RULE_BYTES), TimeLimit::NONE).unwrap();
    assert!((MAX_RULE_BYTES..=MAX_LOADED_RULE_BYTES).contains(&most.rule_bytes()), "{}", most.rule_bytes());
    let found = faults(&padded(MAX_RULE_BYTES + 1));
    let told = format!("have {} bytes, and may have {MAX_RULE_BYTES}", MAX_RULE_BYTES + 1);
    assert!(found.len() == 1 && found[0].starts_with("zz.cedar: ") && found[0].contains(&told), "{found:?}");
    for name in Pack::templates() {
        let bytes = Pack::template(name).unwrap().unwrap().rule_bytes();
        assert!(bytes + MAX_RULE_BYTES <= MAX_LOADED_RULE_BYTES, "{name} has {bytes}");
    }
}

#[test]
fn what_takes_too_long_is_refused_and_tells_what_to_do() {
    let refused = Pack::judge(&ours(), TimeLimit::at(Instant::now())).unwrap_err().refused;
    assert!(refused.to_string().contains("takes too long: give it fewer rules or cases"), "{refused}");
    assert!(Pack::judge(&ours(), TimeLimit::NONE).is_ok());
}
