//! What becomes of tables, lists and words of two files, and of the places of their faults.

use super::*;
use crate::pack::Pack;

fn merged(file: &str, parent: &str, own: &str) -> Merged {
    let [parent, own] = [parent, own].map(|text| Files::of([(file, text)]));
    merge(&own, &parent, &mut Vec::new()).unwrap()
}

fn value(file: &str, parent: &str, own: &str) -> toml::Value {
    toml::from_str(merged(file, parent, own).files.get(file).unwrap()).unwrap()
}

#[test]
fn tables_are_merged_lists_are_joined_and_numbers_are_replaced() {
    let parent = "name = \"p\"\nversion = \"1.0.0\"\nedition = 2\n[scores.base]\nnone = 5\nhigh = 45\n[approvals]\n\
                  volatile = [\"trace\"]\n";
    let own = "name = \"c\"\nversion = \"2.0.0\"\nextends = \"p@1\"\nscores.base.none = 7\n[approvals]\n\
               volatile = [\"span\"]\n[weakens]\nreason = \"r\"\n";
    let expected = "name = \"c\"\nversion = \"2.0.0\"\nedition = 2\nscores.base = { none = 7, high = 45 }\n\
                    approvals.volatile = [\"trace\", \"span\"]\n";
    assert_eq!(value(MANIFEST, parent, own), toml::from_str(expected).unwrap());
}

#[test]
fn a_window_is_replaced_as_a_whole() {
    let parent = "[windows.a]\nzone = \"Etc/UTC\"\nopens = \"09:00\"\n[windows.b]\nzone = \"Etc/UTC\"\n";
    let expected = "windows = { a = { zone = \"Asia/Tokyo\" }, b = { zone = \"Etc/UTC\" } }";
    assert_eq!(value(MANIFEST, parent, "[windows.a]\nzone = \"Asia/Tokyo\"\n"), toml::from_str(expected).unwrap());
}

#[test]
fn a_word_that_the_pack_lists_is_taken_out_of_the_parents_lists() {
    for (file, parent, own, expected) in [
        (
            EFFECTS,
            "verbs = { high = [\"pay\", \"wipe\"], medium = [\"edit\"] }\nnouns = { things = [\"file\"] }\n\
             marks = { writes = [\"pay\"] }\nirregular = { paid = \"pay\" }",
            "listed = { medium = [\"pay\"] }\nverbs = { high = [\"file\"] }\nirregular = { paid = \"edit\" }",
            "listed = { medium = [\"pay\"] }\nverbs = { high = [\"wipe\", \"file\"], medium = [\"edit\"] }\n\
             nouns = { things = [] }\nmarks = { writes = [\"pay\"] }\nirregular = { paid = \"edit\" }",
        ),
        (
            EFFECTS,
            "verbs = { high = [\"pay\", \"wipe\"] }\nmarks = { writes = [\"pay\"] }\nirregular = { pays = \"pay\" }\n\
             weights = { heavy = [\"pii\"] }",
            "nouns = { things = [\"pay\", \"pays\", \"pii\"] }",
            "verbs = { high = [\"wipe\"] }\nmarks = { writes = [] }\nirregular = {}\nweights = { heavy = [\"pii\"] }\n\
             nouns = { things = [\"pay\", \"pays\", \"pii\"] }",
        ),
        (
            TOOLS,
            "sensitive = { runs = [\"exec\"], hosts = [\"sh\"] }\nharmless = { reading = [\"get\"] }",
            "sensitive = { runs = [\"sh\"] }\nharmless = { about = [\"exec\"] }",
            "sensitive = { runs = [\"sh\"], hosts = [] }\nharmless = { reading = [\"get\"], about = [\"exec\"] }",
        ),
        (
            CONSTRAINTS,
            "tags = [\"note\", \"tip\"]\naliases = { sandbox = [\"boxed\"], dry_run = [] }\nguardrails = [\"sandbox\"]",
            "tags = [\"boxed\"]\naliases = { dry_run = [\"tip\"] }\nguardrails = [\"dry_run\"]",
            "tags = [\"note\", \"boxed\"]\naliases = { sandbox = [], dry_run = [\"tip\"] }\n\
             guardrails = [\"sandbox\", \"dry_run\"]",
        ),
        (
            VOCABULARY,
            "environments = { production = [\"prd\", \"live\"] }\n\
             approval = { none = [\"none\"], pending = [\"wait\"] }",
            "environments = { prd = [\"p1\"], staging = [\"live\"] }\napproval = { rejected = [\"none\"] }",
            "environments = { production = [], prd = [\"p1\"], staging = [\"live\"] }\n\
             approval = { none = [], pending = [\"wait\"], rejected = [\"none\"] }",
        ),
        (
            CODES,
            "[A]\nmeaning = \"a\"\nremedy = \"b\"\n",
            "[A]\nmeaning = \"c\"\n[B]\nmeaning = \"d\"\n",
            "A = { meaning = \"c\", remedy = \"b\" }\nB = { meaning = \"d\" }",
        ),
    ] {
        assert_eq!(value(file, parent, own), toml::from_str(expected).unwrap(), "{file}: {own}");
    }
}

#[test]
fn a_word_that_is_listed_again_stands_there_once() {
    let value = value(EFFECTS, "verbs = { high = [\"a\", \"b\"] }", "verbs = { high = [\"b\", \"c\", \"c\"] }");
    assert_eq!(
        value["verbs"]["high"].as_array().unwrap().len(),
        4,
        "twice in the pack itself is its own fault: {value}"
    );
}

#[test]
fn the_merged_text_holds_every_text_unchanged() {
    let own = "a = '''\n\\\"quoted\\\"\n\ttab'''\nb = \"\\u0000\\u007f\\u0085 é 本番\"\n\
               \"odd key\" = [1, 0x1F, 2.5, true, 1979-05-27, [\"x\"], { y = \"z\" }]\n[empty]\n\
               [\"odd.table\".\"in\"]\nc = []\n";
    let read = |text: &str| toml::from_str::<toml::Value>(text).unwrap();
    let merged = merged(CODES, "", own);
    assert_eq!(read(merged.files.get(CODES).unwrap()), read(own));
}

#[test]
fn a_fault_of_the_merged_text_is_moved_to_the_packs_own_line() {
    let parent = "[verbs]\nhigh = [\n    \"pay\",\n    \"wipe\",\n]\n";
    let own = "# A comment.\n\n[verbs]\nhigh = [\"burn\",\n  \"sell\"]\nmedium = [\"edit\"]\n";
    let merged = merged(EFFECTS, parent, own);
    let text = merged.files.get(EFFECTS).unwrap();
    let line = |word: &str| text.lines().position(|line| line.contains(word)).unwrap() + 1;
    let placed = |at: Option<usize>, message: &str| {
        let mut faults = [Fault { line: at, ..Fault::new(EFFECTS, message) }];
        merged.place(&mut faults);
        faults[0].line
    };
    assert_eq!(placed(Some(line("sell")), "odd"), Some(5));
    assert_eq!(placed(Some(line("edit")), "odd"), Some(6));
    assert_eq!(placed(Some(line("[verbs]")), "odd"), Some(3));
    assert_eq!(placed(Some(line("pay")), "`pay` and `burn` are odd"), Some(4), "the word that the pack has");
    assert_eq!(placed(Some(line("pay")), "`pay` is odd"), None);
    assert_eq!(placed(None, "`medium` is empty"), Some(6));
    let mut other = [Fault::new(TOOLS, "`burn`").at(77)];
    merged.place(&mut other);
    assert_eq!(other[0].line, Some(77), "a file that is not merged");
}

#[test]
fn a_file_that_cannot_be_read_is_reported_with_its_own_line() {
    let own = Files::of([(TOOLS, "a = 1\nb = [\"x\"\nc"), (CODES, "x = 1\nx = 2\n")]);
    let mut faults = Vec::new();
    assert!(merge(&own, &Files::default(), &mut faults).is_none());
    let places: Vec<_> =
        faults.iter().map(|fault| (fault.file.as_str(), fault.line.is_some_and(|line| line > 1))).collect();
    assert_eq!(places, [(TOOLS, true), (CODES, true)], "{faults:?}");
}

#[test]
fn merging_with_nothing_of_its_own_changes_no_value_of_the_baseline() {
    let baseline = Pack::embedded().unwrap();
    for file in MERGED {
        let text = baseline.lineage.files.get(file).unwrap();
        let again = Tree::read(text).unwrap().inherited().written().0;
        assert_eq!(toml::from_str::<toml::Value>(&again).unwrap(), toml::from_str(text).unwrap(), "{file}");
    }
}
