//! Where the pack that another one extends is found, and what is read of a folder of packs.

use std::fs;
use std::path::Path;

use stage0_policy::{Pack, PackSet};

use super::packs_extend::{Packs, RULE};

#[test]
fn what_a_pack_extends_must_be_there_and_be_named_with_its_major_version() {
    for wrong in ["\"baseline\"", "\"baseline@2.0.0\"", "\"baseline@02\"", "\"Base line@2\"", "\"@2\"", "2"] {
        let packs = Packs::new().pack("ours", "baseline@2", "", &[]);
        let manifest = format!("name = \"ours\"\nversion = \"1.0.0\"\n\nextends = {wrong}\n");
        fs::write(packs.path("ours").join("pack.toml"), manifest).unwrap();
        let told = "pack.toml:4: `extends` must be a name and a major version such as `baseline@2`";
        assert_eq!(packs.fault("ours"), told, "{wrong}");
    }
    for missing in ["baseline@3", "other@2"] {
        let fault = Packs::new().pack("ours", missing, "", &[]).fault("ours");
        let name = missing.split('@').next().unwrap();
        assert!(fault.starts_with(&format!("pack.toml:3: there is no pack `{name}` of version")), "{fault}");
        assert!(fault.contains("baseline@2"), "what there is: {fault}");
    }
}

#[test]
fn the_highest_version_beside_the_pack_is_extended() {
    let raised = |version| named("house", version);
    let packs =
        Packs::new().copy("newer", raised("2.10.0")).copy("older", raised("2.9.9")).copy("next", raised("3.0.0"));
    let packs = packs.copy("same", raised("2.0.0")).pack("ours", "house@2", "", &[]);
    let parent = |packs: &Packs| packs.load("ours").unwrap().parent().unwrap().to_string();
    assert!(parent(&packs).starts_with("house@2.10.0+"));
    fs::remove_dir_all(packs.path("newer")).unwrap();
    fs::remove_dir_all(packs.path("older")).unwrap();
    assert!(parent(&packs).starts_with("house@2.0.0+"));
    let changed = move |file: &str, text: String| {
        let text = raised("2.0.0")(file, text);
        if file == "value.cedar" { format!("{text}\n// Ours.\n") } else { text }
    };
    let packs = packs.copy("changed", changed);
    assert_eq!(packs.fault("ours"), "pack.toml:3: there are two packs `house@2.0.0` of different content");
}

/// Gives a copy of the baseline another name and version.
fn named(name: &'static str, version: &'static str) -> impl Fn(&str, String) -> String + Copy {
    move |file, text| match file {
        "pack.toml" => text
            .replace("name = \"baseline\"", &format!("name = \"{name}\""))
            .replace("version = \"2.0.0\"", &format!("version = \"{version}\"")),
        _ => text,
    }
}

#[test]
fn no_folder_takes_the_place_of_a_pack_that_is_compiled_in() {
    // A higher version, another major version and a changed copy of the same version.
    for (version, extends) in [("2.0.1", "baseline@2"), ("3.0.0", "baseline@3"), ("2.0.0", "baseline@2")] {
        let changed = move |file: &str, text: String| {
            let text = named("baseline", version)(file, text);
            if file == "value.cedar" { format!("{text}\n// Ours.\n") } else { text }
        };
        let packs = Packs::new().copy("aaa", changed).pack("ours", extends, "", &[]);
        let told = "pack.toml:3: `baseline` is the name of a pack that is compiled in, and the folder `aaa` beside \
                    this one has a pack of that name with other content";
        assert!(packs.fault("ours").starts_with(told), "{}", packs.fault("ours"));
        assert!(packs.load("aaa").is_ok(), "alone it is a pack like any other");
    }
    let template = Packs::new().pack("coding-agent", "baseline@2", "", &[]).pack("ours", "coding-agent@1", "", &[]);
    assert!(template.fault("ours").contains("`coding-agent` is the name of a pack that is compiled in"));
    // The harmless neighbours: a copy of what is compiled in is the same pack; another name or another major version
    // is another pack.
    let packs = Packs::new().copy("same", |_, text| text).copy("house", named("house", "2.0.1"));
    let packs = packs.copy("next", named("baseline", "3.0.0"));
    let packs = packs.pack("ours", "baseline@2", "", &[]);
    assert_eq!(packs.load("ours").unwrap().parent(), Some(Pack::embedded().unwrap().version()));
}

#[test]
fn a_pack_names_all_packs_that_it_extends_and_what_each_of_them_weakens() {
    let weakens = "[weakens]\nreason = \"ours\"\nwithout = [\"loop.cost\"]\n";
    let packs = Packs::new().pack("a", "baseline@2", weakens, &[]).pack("b", "a@1", "", &[]);
    let pack = packs.load("b").unwrap();
    let parents: Vec<_> = pack.parents().map(|parent| parent.version().to_string()).collect();
    let expected = [packs.load("a").unwrap(), Pack::embedded().unwrap()].map(|pack| pack.version().to_string());
    assert_eq!(parents, expected);
    let [weakening] = &pack.weakenings()[..] else { panic!("{:?}", pack.weakenings()) };
    assert_eq!((weakening.pack.as_str(), &weakening.weakened.without[..]), ("a@1.0.0", &["loop.cost".to_owned()][..]));
    assert!(Pack::embedded().unwrap().weakenings().is_empty());
}

#[test]
fn a_chain_has_four_packs_at_most_and_no_circle() {
    let packs = Packs::new().pack("a", "baseline@2", "", &[]).pack("b", "a@1", "", &[]).pack("c", "b@1", "", &[]);
    let packs = packs.pack("d", "c@1", "", &[]);
    assert!(packs.load("c").is_ok());
    let long = packs.fault("d");
    assert!(long.starts_with("pack.toml:3: `c@1`, which it extends, is refused itself: "), "{long}");
    assert!(long.ends_with("pack.toml:3: more than 4 packs extend each other, this one included"), "{long}");
    let packs = Packs::new().pack("a", "b@1", "", &[]).pack("b", "c@1", "", &[]).pack("c", "b@1", "", &[]);
    let fault = packs.fault("a");
    assert!(fault.starts_with("pack.toml:3: `b@1`, which it extends, is refused itself: ") && fault.contains("circle"));
    // A pack may have the name of the one that it extends, and never extends itself.
    let own = Packs::new().pack("baseline", "baseline@2", "", &[]);
    let manifest = "name = \"baseline\"\nversion = \"2.7.0\"\nextends = \"baseline@2\"\n";
    fs::write(own.path("baseline").join("pack.toml"), manifest).unwrap();
    assert_eq!(own.load("baseline").unwrap().parent(), Some(Pack::embedded().unwrap().version()));
    let alone = Packs::new().pack("alone", "alone@1", "", &[]);
    assert!(alone.fault("alone").contains("there is no pack `alone` of version 1"));
}

#[test]
fn a_folder_with_too_many_packs_is_not_searched() {
    let packs = Packs::new().pack("ours", "baseline@2", "", &[]);
    for n in 0..1_000 {
        fs::create_dir(packs.path(&n.to_string())).unwrap();
        fs::write(packs.path(&n.to_string()).join("pack.toml"), "").unwrap();
    }
    assert!(packs.fault("ours").ends_with(": has more than 1000 packs in it"), "{}", packs.fault("ours"));
    fs::remove_dir_all(packs.path("7")).unwrap();
    assert!(packs.load("ours").is_ok(), "what is no pack is passed over");
}

#[test]
fn a_fault_of_the_parent_is_reported_where_it_is_extended() {
    let packs = Packs::new().pack("a", "baseline@2", "[scores.base]\nnone = 101\n", &[]).pack("b", "a@1", "", &[]);
    let fault = packs.fault("b");
    assert!(
        fault.starts_with("pack.toml:3: `a@1`, which it extends, is refused itself: pack.toml:4: a score"),
        "{fault}"
    );
    let first = Packs::new().pack("b", "first@1", "", &[]);
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/first-edition");
    fs::create_dir(first.path("first")).unwrap();
    for entry in fs::read_dir(fixture).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), first.path("first").join(entry.file_name())).unwrap();
    }
    let manifest = fs::read_to_string(first.path("first/pack.toml")).unwrap();
    let named: Vec<String> = manifest
        .lines()
        .map(|line| match line.split_once(" = ") {
            Some(("name", _)) => "name = \"first\"".to_owned(),
            Some(("version", _)) => "version = \"1.0.0\"".to_owned(),
            _ => line.to_owned(),
        })
        .collect();
    fs::write(first.path("first/pack.toml"), named.join("\n")).unwrap();
    assert_eq!(first.fault("b"), "pack.toml:3: `first@1.0.0` is a pack of `edition = 1`, which cannot be extended");
}

#[test]
fn a_folder_of_packs_loads_a_parent_once_and_lists_it() {
    let packs = Packs::new().pack("a", "baseline@2", "", &[]).pack("b", "a@1", "", &[]).pack("c", "a@1", "", &[]);
    let set = PackSet::embedded().unwrap().with_dir(packs.folder.path()).unwrap();
    let versions: Vec<String> = set.versions().iter().map(ToString::to_string).collect();
    assert_eq!(versions.len(), 4, "{versions:?}");
    assert!(set.packs().any(|pack| pack.parent().is_some_and(|parent| parent.as_str().starts_with("a@1.0.0+"))));
}

#[test]
#[cfg(unix)]
fn a_link_is_followed_within_the_folder_of_the_pack_only() {
    use std::os::unix::fs::symlink;

    // As Kubernetes mounts a ConfigMap: each file is a link through `..data` to a hidden folder.
    let packs = Packs::new().pack("ours", "baseline@2", "", &[]);
    let mount = packs.path("ours");
    fs::create_dir(mount.join("..2026_01")).unwrap();
    fs::rename(mount.join("pack.toml"), mount.join("..2026_01/pack.toml")).unwrap();
    symlink("..2026_01", mount.join("..data")).unwrap();
    symlink("..data/pack.toml", mount.join("pack.toml")).unwrap();
    assert!(packs.load("ours").is_ok());
    symlink(&mount, packs.path("linked")).unwrap();
    assert!(packs.load("linked").is_ok(), "the folder itself may be a link");

    fs::write(packs.path("outside.cedar"), RULE).unwrap();
    symlink("../outside.cedar", mount.join("ours.cedar")).unwrap();
    assert_eq!(packs.fault("ours"), "ours.cedar: is a link that leads out of the pack's folder");
    fs::remove_file(mount.join("ours.cedar")).unwrap();
    symlink("/dev/zero", mount.join("zero.cedar")).unwrap();
    assert_eq!(packs.fault("ours"), "zero.cedar: is a link that leads out of the pack's folder");
    fs::remove_file(mount.join("zero.cedar")).unwrap();
    symlink("gone.cedar", mount.join("ours.cedar")).unwrap();
    assert!(packs.fault("ours").starts_with("ours.cedar: cannot be read: "));
}

#[test]
fn the_compiled_in_templates_are_loaded_by_name() {
    for name in Pack::templates() {
        let pack = Pack::template(name).unwrap().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(pack.version().as_str().starts_with(&format!("{name}@")) && pack.parent().is_some(), "{name}");
        let ours = Packs::new().pack("ours", &format!("{name}@1"), "", &[]);
        assert_eq!(ours.load("ours").unwrap().parent(), Some(pack.version()));
    }
    assert!(Pack::template("baseline").is_none() && Pack::template("other").is_none());
}

#[test]
fn what_is_compiled_in_passes_its_cases_which_no_start_runs() {
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    for name in Pack::templates().chain(["baseline"]) {
        let proven = Pack::from_dir(&policies.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let compiled_in = Pack::template(name).unwrap_or_else(Pack::embedded).unwrap();
        assert_eq!(proven.version(), compiled_in.version());
        assert!(proven.case_count() > 0 && proven.case_count() == compiled_in.case_count(), "{name}");
        assert!(!proven.is_left_to_cedar(), "{name}: a compiled rule differs from Cedar");
    }
}
