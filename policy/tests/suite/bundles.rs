//! Packs in a message: they load without a disk as the version of their folder, or are refused.

use std::fs;
use std::path::Path;

use stage0_contract::{MAX_BUNDLE_BYTES, MAX_BUNDLE_PACKS, PolicyBundle, PolicyFiles, PolicyVersion};
use stage0_policy::{Pack, PackError};

use super::packs_extend::{Packs, with_rule};

/// Two packs that extend each other and the baseline.
fn two() -> Packs {
    Packs::new().pack("house", "baseline@2", "", &with_rule()).pack("ours", "house@1", "", &[])
}

fn bundle(packs: &Packs, name: &str) -> PolicyBundle {
    Pack::bundle(&packs.path(name)).unwrap()
}

/// Why a bundle is refused: the pack that has the fault, and its only fault.
fn fault(bundle: &PolicyBundle) -> (usize, String) {
    let error = Pack::from_bundle(bundle).expect_err("the bundle is refused");
    let faults = error.to_faults();
    assert_eq!(faults.len(), 1, "{faults:#?}");
    (faults[0].pack, error.refused.faults[0].to_string())
}

fn edited(bundle: &PolicyBundle, pack: usize, edit: impl FnOnce(&mut PolicyFiles)) -> PolicyBundle {
    let mut bundle = bundle.clone();
    edit(&mut bundle.packs[pack]);
    bundle
}

fn with(bundle: &PolicyBundle, pack: usize, file: &str, text: &str) -> PolicyBundle {
    edited(bundle, pack, |files| drop(files.files.insert(file.to_owned(), text.to_owned())))
}

#[test]
fn a_bundle_loads_as_the_version_of_its_folder_when_the_folder_is_gone() {
    let packs = two();
    for (name, count) in [("house", 1), ("ours", 2)] {
        let version = packs.load(name).unwrap().version().clone();
        let bundle = bundle(&packs, name);
        assert_eq!(bundle.packs.len(), count);
        let text = serde_json::to_string(&bundle).unwrap();
        fs::rename(packs.path("house"), packs.path("away")).unwrap();
        let sent: PolicyBundle = serde_json::from_str(&text).unwrap();
        assert_eq!(Pack::from_bundle(&sent).unwrap().version(), &version);
        assert_eq!(Pack::published(&sent, &version).unwrap().version(), &version);
        fs::rename(packs.path("away"), packs.path("house")).unwrap();
    }
}

#[test]
fn every_template_and_the_baseline_itself_can_be_bundled() {
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    for name in Pack::templates().chain(["baseline"]) {
        let bundle = Pack::bundle(&policies.join(name)).unwrap();
        assert_eq!(bundle.packs.len(), 1, "{name}: what is compiled in does not travel");
        let version = Pack::from_dir(&policies.join(name)).unwrap().version().clone();
        assert_eq!(Pack::from_bundle(&bundle).unwrap().version(), &version);
    }
}

#[test]
fn a_summary_names_parents_and_counts_inherited_rules_and_cases() {
    let packs = two();
    let pack = Pack::from_bundle(&bundle(&packs, "ours")).unwrap();
    let (summary, baseline) = (pack.summary(), Pack::embedded().unwrap());
    assert_eq!(summary.rules, baseline.rule_count() + 1);
    assert_eq!(summary.cases, baseline.case_count() + 2);
    let parents: Vec<&str> = summary.parents.iter().map(PolicyVersion::as_str).collect();
    assert!(parents.len() == 2 && parents[0].starts_with("house@1.0.0+") && parents[1] == baseline.version().as_str());
    assert!(summary.weakens.is_empty());
    let milder = "[weakens]\nreason = \"we ask elsewhere\"\nwithout = [\"approval.communication\"]\n";
    let packs = Packs::new().pack("milder", "baseline@2", milder, &[]);
    let summary = Pack::from_bundle(&bundle(&packs, "milder")).unwrap().summary();
    assert_eq!(summary.weakens, ["approval.communication"]);
}

#[test]
fn a_bundle_that_was_published_under_another_baseline_is_refused() {
    let packs = two();
    let bundle = bundle(&packs, "ours");
    let version = Pack::from_bundle(&bundle).unwrap().version().clone();
    // The digest covers the parent's version: with another baseline it would be another one.
    let other = PolicyVersion::parse("ours@1.0.0+000000000000").unwrap();
    let error = Pack::published(&bundle, &other).unwrap_err();
    let expected =
        format!("published as {other}, but loads as {version} here: this release compiles in another `baseline`");
    assert_eq!(error.refused.faults[0].message, expected);
}

#[test]
fn a_parent_with_the_name_of_a_pack_that_is_compiled_in_is_refused() {
    let named = |file: &str, text: String| if file == "value.cedar" { format!("{text}\n// Ours.\n") } else { text };
    let packs = Packs::new().copy("own", named).pack("ours", "baseline@2", "", &[]);
    let pack = |name: &str| {
        let read =
            |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap());
        let files = fs::read_dir(packs.path(name)).unwrap().map(|entry| read(entry.unwrap())).collect();
        PolicyFiles { files }
    };
    let bundle = PolicyBundle { packs: vec![pack("own"), pack("ours")] };
    let (at, message) = fault(&bundle);
    assert_eq!(at, 1);
    let expected = "pack.toml:3: `baseline@2` is a pack that is compiled in, and another one comes with it";
    assert_eq!(message, expected);
    // On its own it takes the place of nothing.
    assert!(Pack::from_bundle(&PolicyBundle { packs: vec![pack("own")] }).is_ok());
}

#[test]
fn each_pack_of_a_bundle_extends_the_one_before_it() {
    let packs = two().pack("other", "baseline@2", "", &[]).pack("lost", "house@2", "", &[]);
    let (ours, other) = (bundle(&packs, "ours"), bundle(&packs, "other"));
    let beside = PolicyBundle { packs: vec![ours.packs[0].clone(), other.packs[0].clone()] };
    assert_eq!(fault(&beside), (1, "pack.toml:3: extends `baseline@2`, and comes with `house@1.0.0`".to_owned()));
    let swapped = PolicyBundle { packs: ours.packs.iter().rev().cloned().collect() };
    let (at, message) = fault(&swapped);
    assert!(
        at == 0 && message.starts_with("pack.toml:3: there is no pack `house` of version 1 to extend"),
        "{message}"
    );
    let alone = edited(&ours, 1, |files| {
        files.files.insert("pack.toml".to_owned(), "name = \"ours\"\nversion = \"1.0.0\"\n".to_owned());
    });
    assert_eq!(fault(&alone), (1, "pack.toml: does not extend `house@1.0.0`, which comes with it".to_owned()));
    let wrong = with(&ours, 1, "pack.toml", "name = \"ours\"\nversion = \"1.0.0\"\nextends = \"house@2\"\n");
    assert_eq!(fault(&wrong), (1, "pack.toml:3: extends `house@2`, and comes with `house@1.0.0`".to_owned()));
    assert!(
        Pack::bundle(&packs.path("lost")).unwrap_err().to_string().contains("there is no pack `house` of version 2")
    );
}

#[test]
fn a_fault_of_an_extended_pack_is_named_with_its_place_in_the_bundle() {
    let packs = two();
    let broken = with(&bundle(&packs, "ours"), 0, "ours.cedar", "forbid (principal action, resource);\n");
    let error = Pack::from_bundle(&broken).unwrap_err();
    let faults = error.to_faults();
    assert!(faults.iter().all(|fault| fault.pack == 0) && !faults.is_empty(), "{faults:#?}");
    let fault = faults.iter().find(|fault| fault.file.as_deref() == Some("ours.cedar")).unwrap();
    assert_eq!(fault.line, Some(1));
}

#[test]
fn too_many_packs_files_and_bytes_are_refused_and_the_limit_itself_is_not() {
    let packs = two();
    let ours = bundle(&packs, "ours");
    assert_eq!(fault(&PolicyBundle { packs: Vec::new() }).1, "pack.toml: the bundle has no pack");
    let many = PolicyBundle { packs: vec![ours.packs[1].clone(); MAX_BUNDLE_PACKS + 1] };
    assert_eq!(fault(&many).1, "pack.toml: 5 packs are to be published together, and may be 4");
    let files = edited(&ours, 1, |files| {
        files.files.extend((0..600).map(|number| (format!("cases{number}.json"), "[]".to_owned())));
    });
    assert!(fault(&files).1.contains("files, and may have 400"), "{}", fault(&files).1);
    let files = edited(&ours, 1, |files| {
        files.files.extend((0..101).map(|number| (format!("cases{number}.json"), "[]".to_owned())));
    });
    assert_eq!(fault(&files), (1, "pack.toml: a pack has at most 100 files".to_owned()));
    let case = r#"[{"id": "may", "expect": ["ALLOW"],
        "request": {"goal": "Summarize the minutes of May", "success_criteria": ["x"]}}]"#;
    let padded = |surplus: usize| {
        let room = MAX_BUNDLE_BYTES - ours.bytes() - "cases.json".len() - case.len();
        with(&ours, 1, "cases.json", &format!("{case}{}", " ".repeat(room + surplus)))
    };
    let too_many = format!("have {} bytes, and may have {MAX_BUNDLE_BYTES}", MAX_BUNDLE_BYTES + 1);
    assert_eq!(padded(0).bytes(), MAX_BUNDLE_BYTES);
    assert!(Pack::from_bundle(&padded(0)).is_ok(), "{}", Pack::from_bundle(&padded(0)).unwrap_err());
    assert!(fault(&padded(1)).1.contains(&too_many), "{}", fault(&padded(1)).1);
    fs::write(packs.path("ours").join("cases.json"), &padded(1).packs[1].files["cases.json"]).unwrap();
    let refused: PackError = Pack::bundle(&packs.path("ours")).unwrap_err();
    assert!(refused.to_string().contains(&too_many), "{refused}");
}

#[test]
fn a_file_of_a_bundle_has_a_plain_name_and_the_size_that_it_may_have_in_a_folder() {
    let packs = two();
    let ours = bundle(&packs, "ours");
    for name in ["../x.cedar", "/x.cedar", "a/x.cedar", "a\\x.cedar", "c:x.cedar", ".x.cedar", "", "x\n.cedar"] {
        let (at, message) = fault(&with(&ours, 1, name, "// Nothing.\n"));
        assert!(at == 1 && message.contains("the name of a file must be 1 to 200 bytes long"), "{name:?}: {message}");
    }
    let long = format!("{}.cedar", "x".repeat(200));
    assert!(fault(&with(&ours, 1, &long, "")).1.contains("the name of a file must be"));
    assert!(Pack::from_bundle(&with(&ours, 0, "x y.cedar", "// Nothing.\n")).is_ok());
    assert_eq!(fault(&with(&ours, 1, "notes.txt", "x")).1, "notes.txt: is no file of a pack");
    let words = format!("# {}\n", "x".repeat(256 << 10));
    assert_eq!(fault(&with(&ours, 1, "tools.toml", &words)).1, "tools.toml: is larger than 262144 bytes");
}
