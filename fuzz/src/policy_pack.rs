//! The loader of policy packs: a pack loads, and again as the same version, or every fault names a file and a line that
//! is in it.
//!
//! An input is the files of one pack, each below a line `=== NAME`. It is read as a bundle, as a server gets one; a
//! pack that loads has run all of its cases and those of the baseline that it extends.

use std::collections::BTreeMap;

use stage0_contract::{PolicyBundle, PolicyFault, PolicyFiles};
use stage0_policy::Pack;

use crate::{Target, text};

pub(crate) const TARGET: Target = Target::new("policy_pack", check);

fn check(input: &[u8]) -> bool {
    let bundle = PolicyBundle { packs: vec![PolicyFiles { files: files(&text(input)) }] };
    // A gateway refuses these.
    if !bundle.errors().is_empty() {
        return false;
    }
    match Pack::from_bundle(&bundle) {
        Ok(pack) => {
            let again = Pack::published(&bundle, pack.version()).unwrap_or_else(|refused| panic!("again: {refused}"));
            assert_eq!(again.version(), pack.version());
            assert_eq!((again.rule_count(), again.case_count()), (pack.rule_count(), pack.case_count()));
            true
        }
        Err(refused) => {
            let faults = refused.to_faults();
            assert!(!faults.is_empty(), "a refusal without a fault");
            faults.iter().for_each(|fault| is_placed(fault, &bundle));
            false
        }
    }
}

fn files(text: &str) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut name = "pack.toml";
    for line in text.split_inclusive('\n') {
        if let Some(next) = line.strip_prefix("=== ") {
            name = next.trim_end();
        }
        let file: &mut String = files.entry(name.to_owned()).or_default();
        if !line.starts_with("=== ") {
            file.push_str(line);
        }
    }
    files
}

fn is_placed(fault: &PolicyFault, bundle: &PolicyBundle) {
    assert!(!fault.message.trim().is_empty(), "{fault:?}");
    let file = fault.file.as_deref().unwrap_or_default();
    assert!(!file.is_empty(), "{fault:?}");
    let Some(line) = fault.line else { return };
    // A file of the baseline may be named as well.
    if let Some(text) = bundle.packs[fault.pack].files.get(file) {
        assert!(
            (1..=text.lines().count() + 1).contains(&line),
            "{fault:?} in a file of {} lines",
            text.lines().count()
        );
    }
}
