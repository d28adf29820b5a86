//! The units of `deploy/systemd` fit the product: roles, flags, variables, users and folders are those that there are.
//! `scripts/systemd.sh` has systemd's own tool verify them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use stage0_contract::Role;
use stage0_tests::command;

/// Each unit's file name, and its lines that are no comments.
fn units() -> BTreeMap<String, Vec<String>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let unit = |path: &Path| {
        let text = fs::read_to_string(path).unwrap();
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        (path.file_name().unwrap().to_str().unwrap().to_owned(), lines.map(str::to_owned).collect())
    };
    files.map(|path| unit(&path)).collect()
}

/// The values of a setting, in their order.
fn values<'a>(lines: &'a [String], name: &str) -> Vec<&'a str> {
    lines.iter().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).collect()
}

fn output(arguments: &[&str]) -> String {
    let output = command().args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn unit_of(role: Role) -> String {
    // One keystore serves; of the others any number may.
    format!("stage0-{role}{}.service", if role == Role::Keystore { "" } else { "@" })
}

#[test]
fn every_role_has_a_unit_whose_flags_and_variables_it_knows() {
    let (units, settings) = (units(), output(&["settings"]));
    assert_eq!(units.len(), Role::ALL.len() + 1, "{:?}", units.keys());
    for role in Role::ALL {
        let name = unit_of(role);
        let lines = units.get(&name).unwrap_or_else(|| panic!("{name} is missing"));
        let [start] = values(lines, "ExecStart")[..] else { panic!("{name}: one ExecStart") };
        let words: Vec<&str> = start.split(' ').collect();
        assert_eq!(words[..2], ["/usr/local/bin/stage0", role.as_str()], "{name}");
        let help = output(&[role.as_str(), "--help"]);
        for flag in words.iter().filter(|word| word.starts_with("--")) {
            assert!(help.contains(flag), "{name}: `{flag}`");
        }
        for variable in lines.iter().flat_map(|line| line.split(['=', ' '])).filter(|word| word.starts_with("STAGE0_"))
        {
            assert!(settings.contains(&format!("`{variable}`")), "{name}: `{variable}`");
        }
        assert!(start.ends_with(&format!(" --config /etc/stage0/{role}/stage0.toml")), "{name}: its own folder");
        assert_eq!(values(lines, "User"), [format!("stage0-{role}")], "{name}");
        // What its template does not fix may be in a file for each instance.
        let own = format!("-/etc/stage0/{role}/%i.env");
        assert_eq!(values(lines, "EnvironmentFile"), if name.contains('@') { vec![own] } else { vec![] }, "{name}");
    }
}

#[test]
fn no_unit_crash_loops_and_each_has_time_to_drain() {
    for (name, lines) in units() {
        let only = |setting: &str| match values(&lines, setting)[..] {
            [value] => value.to_owned(),
            _ => panic!("{name}: {setting}"),
        };
        assert_eq!(only("Restart"), "on-failure", "{name}");
        // A role must come back after any outage, so that the delay grows instead of ending the starts.
        assert_eq!(
            (only("StartLimitIntervalSec"), only("RestartMaxDelaySec")),
            ("0".to_owned(), "60".to_owned()),
            "{name}"
        );
        assert!(only("RestartSec").parse::<u32>().unwrap() >= 1 && !only("RestartSteps").is_empty(), "{name}");
        assert_eq!((only("KillSignal"), only("TimeoutStopSec")), ("SIGTERM".to_owned(), "60".to_owned()), "{name}");
        if name != "stage0-nats.service" {
            // Wrong settings; see `cli/src/exit.rs`.
            assert_eq!(only("RestartPreventExitStatus"), "64", "{name}");
        }
        for set in ["MemoryMax", "LimitNOFILE", "RestrictAddressFamilies", "CapabilityBoundingSet", "ProtectSystem"] {
            only(set);
        }
    }
}
