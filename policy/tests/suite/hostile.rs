//! Packs that are built to do harm: to run for ever, to fill the memory, to read files outside of their folder. Each is
//! refused with a fault that its author could act on, in bounded time, and its nearest harmless neighbour is loaded.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use serde_json::json;
use stage0_policy::{Engine, Pack};

use super::packs_extend::{Packs, with_rule};

/// What takes longer than this, even on a slow machine without optimisation, would not end in an hour.
const LIMIT: Duration = Duration::from_secs(60);
/// The longest text of a fault, with its help.
const MAX_FAULT_BYTES: usize = 4_000;

/// Loads on a thread of its own, so that a load that does not end fails the test.
fn loaded(folder: &Path) -> Result<Arc<Pack>, Vec<String>> {
    let (send, receive) = mpsc::channel();
    let named = folder.to_owned();
    thread::spawn(move || send.send(Pack::from_dir(&named)));
    let loaded = receive.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("{} takes too long", folder.display()));
    loaded.map_err(|error| {
        for fault in &error.faults {
            let bytes = fault.message.len() + fault.help.as_ref().map_or(0, |help| help.len());
            assert!(!fault.file.is_empty() && bytes < MAX_FAULT_BYTES, "{bytes} bytes: {:.200}", fault.message);
        }
        error.faults.iter().map(ToString::to_string).collect()
    })
}

/// The faults of the pack `ours` with this file.
fn faults_with(file: &str, text: &str) -> Vec<String> {
    let mut files = with_rule();
    files.retain(|(known, _)| *known != file);
    let packs = Packs::new().pack("ours", "baseline@2", "", &files);
    fs::write(packs.path("ours").join(file), text).unwrap();
    loaded(&packs.path("ours")).err().unwrap_or_default()
}

fn is_refused(file: &str, text: &str, told: &str) {
    let faults = faults_with(file, text);
    let is_told = faults.iter().any(|fault| fault.starts_with(&format!("{file}:")) && fault.contains(told));
    assert!(is_told, "{told}: {} faults, first {:?}", faults.len(), faults.first());
}

#[test]
fn a_pipe_a_socket_and_links_in_a_circle_are_no_files_of_a_pack() {
    let packs = Packs::new().pack("ours", "baseline@2", "", &with_rule());
    let folder = packs.path("ours");
    assert!(loaded(&folder).is_ok());
    let refused = |name: &str, told: &str| {
        let faults = loaded(&folder).unwrap_err();
        assert!(faults.len() == 1 && faults[0].starts_with(&format!("{name}: {told}")), "{faults:?}");
        fs::remove_file(folder.join(name)).unwrap();
    };
    assert!(Command::new("mkfifo").arg(folder.join("pipe.cedar")).status().unwrap().success());
    refused("pipe.cedar", "is no file of a pack");
    // Nothing is ever written to it, and a link to it within the folder is no better.
    assert!(Command::new("mkfifo").arg(folder.join(".pipe")).status().unwrap().success());
    assert!(loaded(&folder).is_ok(), "hidden files are ignored");
    symlink(".pipe", folder.join("linked.cedar")).unwrap();
    refused("linked.cedar", "is no file of a pack");
    let _socket = std::os::unix::net::UnixListener::bind(folder.join("socket.cedar")).unwrap();
    refused("socket.cedar", "is no file of a pack");
    symlink("self.cedar", folder.join("self.cedar")).unwrap();
    refused("self.cedar", "cannot be read: ");
    symlink(".", folder.join("again.cedar")).unwrap();
    refused("again.cedar", "is no file of a pack");
    symlink("..", folder.join("above.cedar")).unwrap();
    refused("above.cedar", "is a link that leads out of the pack's folder");
    // A hidden folder of its own is the pack's, and a link that only looks as if it left is within.
    symlink("../ours/ours.cedar", folder.join("same.cedar")).unwrap();
    let twice = loaded(&folder).unwrap_err();
    assert!(twice[0].contains("`@id` is taken by"), "read like any other file: {twice:?}");
}

#[test]
fn what_lies_beside_a_pack_cannot_hinder_it() {
    let packs = Packs::new().pack("ours", "baseline@2", "", &with_rule());
    let beside = |name: &str| {
        fs::create_dir(packs.path(name)).unwrap();
        packs.path(name).join("pack.toml")
    };
    assert!(Command::new("mkfifo").arg(beside("pipe")).status().unwrap().success());
    symlink("/dev/zero", beside("zero")).unwrap();
    symlink("pack.toml", beside("circle")).unwrap();
    fs::write(beside("huge"), " ".repeat(5 << 20)).unwrap();
    fs::write(beside("deep"), format!("a = {}", "[".repeat(1 << 20))).unwrap();
    fs::write(beside("binary"), [0xff, 0xfe, 0]).unwrap();
    symlink("..", packs.path("above")).unwrap();
    assert!(loaded(&packs.path("ours")).is_ok());
    // A folder of packs that is none.
    for number in 0..1_001 {
        let path = packs.path(&format!("p{number}"));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("pack.toml"), "name = \"p\"\nversion = \"1.0.0\"\n").unwrap();
    }
    let faults = loaded(&packs.path("ours")).unwrap_err();
    assert!(faults.len() == 1 && faults[0].contains("has more than 1000 packs in it"), "{faults:?}");
}

#[test]
fn a_table_that_is_deep_or_wide_is_refused_in_each_file() {
    for file in ["pack.toml", "vocabulary.toml", "effects.toml", "tools.toml", "constraints.toml", "codes.toml"] {
        for (what, text) in [
            ("arrays", format!("a = {}", "[".repeat(200_000))),
            ("closed arrays", format!("a = {}{}", "[".repeat(100_000), "]".repeat(100_000))),
            ("inline tables", format!("a = {}", "{ a = ".repeat(40_000))),
            ("a header", format!("[a{}]\n", ".a".repeat(100_000))),
            ("a dotted key", format!("a{} = 1\n", ".a".repeat(100_000))),
            ("keys", (0..20_000).map(|n| format!("k{n} = 1\n")).collect::<String>()),
            ("tables", (0..20_000).map(|n| format!("[t{n}]\n")).collect::<String>()),
            ("one key again", "a = 1\n".repeat(40_000)),
        ] {
            // The manifest must still say what it extends.
            let head = "name = \"ours\"\nversion = \"1.0.0\"\nextends = \"baseline@2\"\n";
            let text = if file == "pack.toml" { format!("{head}{text}") } else { text };
            let packs = Packs::new().pack("ours", "baseline@2", "", &with_rule());
            fs::write(packs.path("ours").join(file), &text).unwrap();
            let faults = loaded(&packs.path("ours")).expect_err(what);
            assert!(faults[0].starts_with(&format!("{file}:")), "{what} in {file}: {:.200}", faults[0]);
        }
    }
}

#[test]
fn many_wrong_words_are_reported_in_time_that_grows_with_their_number() {
    let words: String = (0..5_000).map(|n| format!("  \"Word {n}\",\n")).collect();
    is_refused("effects.toml", &format!("[verbs]\nhigh = [\n{words}]\n"), "`Word 1`");
    let words: String = (0..5_000).map(|n| format!("  \"{n}\",\n")).collect();
    is_refused(
        "pack.toml",
        &format!(
            "name = \"ours\"\nversion = \"1.0.0\"\nextends = \"baseline@2\"\n\
             [weakens]\nreason = \"r\"\nwords = [\n{words}]\n"
        ),
        "`1`",
    );
    let codes: String = (0..3_000).map(|n| format!("[C{n}]\nmeaning = \"m\"\nremedy = \"r\"\n")).collect();
    is_refused("codes.toml", &codes, "is given by no rule");
}

#[test]
fn cases_that_would_run_for_hours_are_refused_before_they_run() {
    let list = "\"a\", ".repeat(2_000);
    let rules = |count: usize| -> String {
        (0..count)
            .map(|n| {
                format!(
                    "@id(\"slow.r{n}\") @effect(\"advise\") @code(\"LARGE_AMOUNT\") @message(\"m\")\n\
                     forbid (principal, action, resource) when {{ [{list}].containsAll(context.tools) }};\n"
                )
            })
            .collect()
    };
    let cases = |count: usize| -> String {
        let case = |n| {
            format!(
                "{{\"id\": \"s{n}\", \"expect\": [\"ALLOW\"], \"request\": {{\"goal\": \"Read the report\", \
                 \"success_criteria\": [\"x\"]}}}}"
            )
        };
        format!("[\n{}\n]", (0..count).map(case).collect::<Vec<_>>().join(",\n"))
    };
    let codes = "[LARGE_AMOUNT]\nmeaning = \"m\"\nremedy = \"r\"\n";
    let load = |rules: &str, cases: &str| {
        let files = [("slow.cedar", rules), ("codes.toml", codes), ("cases.json", cases)];
        let packs = Packs::new().pack("ours", "baseline@2", "", &files);
        let tested = Pack::test(&packs.path("ours")).map(|_| ()).map_err(|error| error.to_string());
        (loaded(&packs.path("ours")).map(|_| ()), tested)
    };
    let (loaded, tested) = load(&rules(300), &cases(2_000));
    let faults = loaded.unwrap_err();
    let told = faults.len() == 1 && faults[0].starts_with("cases.json: 2679 cases, 679 of them inherited, of ");
    assert!(told && faults[0].ends_with("and may evaluate 1000000000"), "{faults:?}");
    assert!(tested.unwrap_err().contains("and may evaluate"), "`stage0 policy test` would run for hours, too");
    // Two cases of its own are few, but those of the baseline run against its rules as well.
    let (loaded, tested) = load(&rules(300), &cases(2));
    assert!(loaded.unwrap_err()[0].starts_with("cases.json: 681 cases, 679 of them inherited, of "));
    assert!(tested.is_err());
    let (loaded, tested) = load(&rules(3), &cases(2));
    assert_eq!((loaded, tested), (Ok(()), Ok(())));
}

#[test]
fn a_file_of_words_or_types_is_small() {
    let packs = Packs::new().pack("ours", "baseline@2", "", &with_rule());
    let comment = |bytes: usize| format!("# {}\n{}", "a".repeat(bytes), "[verbs]\nhigh = [\"teleport\"]\n");
    for file in ["effects.toml", "pack.toml", "schema.cedarschema"] {
        let before = fs::read(packs.path("ours").join(file)).unwrap_or_default();
        fs::write(packs.path("ours").join(file), comment(256 << 10)).unwrap();
        assert_eq!(loaded(&packs.path("ours")).unwrap_err(), [format!("{file}: is larger than 262144 bytes")]);
        fs::write(packs.path("ours").join(file), before).unwrap();
    }
    fs::write(packs.path("ours").join("effects.toml"), comment(255 << 10)).unwrap();
    assert!(loaded(&packs.path("ours")).is_ok());
}

#[test]
fn text_that_is_no_cedar_is_refused_however_long_it_is() {
    let many = 1 << 20;
    for text in [
        "@".repeat(many),
        "forbid(".repeat(many / 8),
        "forbid (principal, action, resource)\n".repeat(many / 64),
        "permit ;\n".repeat(many / 16),
        format!("@id(\"{}", "a".repeat(many)),
        format!("forbid (principal, action, resource) when {{ \"{}", "\\\"".repeat(many)),
        "\u{0}".repeat(many),
        "\u{1f600}".repeat(many / 4),
        format!("@id(\"x\") forbid (principal, action, resource) when {{ [{}].contains(1) }}", "1,".repeat(many)),
    ] {
        let faults = faults_with("ours.cedar", &text);
        assert!(faults.iter().any(|fault| fault.starts_with("ours.cedar")), "{text:.40}: {faults:.3?}");
    }
    assert!(faults_with("ours.cedar", &format!("\u{feff}{}", with_rule()[0].1)).len() <= 1);
    let windows = with_rule()[0].1.replace('\n', "\r\n");
    assert_eq!(faults_with("ours.cedar", &windows), [""; 0], "lines that end as on Windows");
}

#[test]
fn types_that_name_themselves_or_take_the_place_of_facts_are_refused() {
    for (schema, told) in [
        ("type Custom = { amount?: Custom };\n", ""),
        ("type Custom = { amount?: Set<Custom> };\n", ""),
        ("type Custom = RunCalls;\ntype RunCalls = Custom;\n", ""),
        ("type Custom = Long;\n", "`Custom` must be a record"),
        ("type Custom = { amount?: Facts };\n", ""),
        ("type Facts = { bare?: Bool };\n", "`Facts` is not the pack's to declare"),
        ("type Custom = { amount?: Long };\ntype Custom = { amount?: String };\n", ""),
        ("namespace Other { type Custom = { amount?: Long }; }\n", "is not the pack's to declare"),
        ("entity Agent;\n", "`Agent` is not the pack's to declare"),
        ("action check;\n", "`check` is not the pack's to declare"),
        ("type RunCalls = { send_email: Long, \"send email\": Long };\n", "`send email` would count nothing"),
    ] {
        is_refused("schema.cedarschema", schema, told);
    }
    let aliases: String = (1..1_000).map(|n| format!("type T{n} = T{};\n", n - 1)).collect();
    is_refused("schema.cedarschema", &format!("type T0 = Long;\n{aliases}"), "is not the pack's to declare");
    let wide: String = (0..10_000).map(|n| format!("m{n}?: Long, ")).collect();
    is_refused("schema.cedarschema", &format!("type Custom = {{ {wide} }};\n"), "members, and may have 50");
    let members: String = (0..50).map(|n| format!("m{n}?: Long, ")).collect();
    let own = format!("type Custom = {{ amount?: Long, {} }};\n", members.trim_end_matches("m49?: Long, "));
    assert_eq!(faults_with("schema.cedarschema", &own), [""; 0], "fifty members");
}

/// The faults of a pack with one member of its own, and a rule about it.
fn faults_with_member(name: &str) -> Vec<String> {
    let quoted = serde_json::to_string(name).unwrap();
    let files = [
        ("schema.cedarschema", format!("type Custom = {{ {quoted}?: Long }};\n")),
        (
            "ours.cedar",
            format!(
                "@id(\"ours.member\") @effect(\"deny\") @code(\"LARGE_AMOUNT\") @message(\"m\")\n\
                 forbid (principal, action, resource)\n\
                 when {{ context.custom has {quoted} && context.custom[{quoted}] > 500 }};\n"
            ),
        ),
        ("codes.toml", "[LARGE_AMOUNT]\nmeaning = \"m\"\nremedy = \"r\"\n".to_owned()),
        (
            "cases.json",
            json!([
                {"id": "large", "expect": ["DENY"], "codes": ["LARGE_AMOUNT"],
                    "request": {"goal": "Pay the invoice of May", "context": {name: 501}}},
                {"id": "small", "expect": ["ALLOW"], "request": {"goal": "Pay the invoice of May",
                    "success_criteria": ["x"], "context": {name: 500}}},
            ])
            .to_string(),
        ),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(file, text)| (*file, text.as_str())).collect();
    let packs = Packs::new().pack("ours", "baseline@2", "", &files);
    match loaded(&packs.path("ours")) {
        Ok(pack) => drop(Engine::new(pack).unwrap()),
        Err(faults) => return faults,
    }
    vec![]
}

#[test]
fn a_member_of_ones_own_has_a_name_that_a_rule_can_use() {
    let long = "m".repeat(65);
    for name in ["", " ", "the amount", "amount ", "1st", "über", "d\u{435}", "a.b", "a\"b", "a\nb", "\u{200b}a", &long]
    {
        let faults = faults_with_member(name);
        assert!(faults.iter().any(|fault| fault.starts_with("schema.cedarschema:")), "{name:?}: {faults:?}");
    }
    // Names that mean something to Cedar or to other languages are names like others, or are refused by name.
    for name in ["__proto__", "constructor", "toString", "_", "principal", "Custom", "Long", "m64"] {
        assert_eq!(faults_with_member(name), [""; 0], "{name}");
    }
    for name in ["if", "then", "else", "true", "false", "in", "is", "has", "like", "__cedar"] {
        let faults = faults_with_member(name);
        let names_it = |fault: &String| fault.starts_with("schema.cedarschema:") && fault.contains(name);
        assert!(faults.is_empty() || faults.iter().any(names_it), "{name}: {faults:?}");
    }
}

#[test]
fn cases_that_are_deep_many_or_wrong_are_refused_at_their_line() {
    let case = |more: &str| {
        format!(
            "[\n{{\"id\": \"c\", \"expect\": [\"ALLOW\"], {more}\"request\": {{\"goal\": \"Read the report\"}}}}\n]"
        )
    };
    for (text, told) in [
        ("[".repeat(1 << 20), "invalid type"),
        (case(&format!("\"basis\": {}", "[".repeat(1 << 20))), ""),
        (case("\"expects\": 1, "), "unknown field `expects`"),
        (case("\"caller\": {\"keyname\": \"bot\"}, "), "unknown field `keyname`"),
        (case("\"caller\": {\"groups\": \"ops\"}, "), "invalid type"),
        (case("\"run\": {\"target_tool\": {}}, "), "unknown field `target_tool`"),
        (case("\"run\": {\"allowed\": 1.5}, "), "invalid type"),
        (case("\"run\": {\"allowed\": 99999999999999999999}, "), "invalid"),
        (case("\"evaluated_at\": \"noon\", "), "invalid type"),
        (case("\"id\": \"d\", "), "duplicate field `id`"),
        (format!("{}1", case("")), "trailing characters"),
        ("{}".to_owned(), "invalid type"),
    ] {
        is_refused("cases.json", &text, told);
    }
    let many: Vec<String> = (0..40_000)
        .map(|n| format!("{{\"id\":\"c{n}\",\"expect\":[\"ALLOW\"],\"request\":{{\"goal\":\"a b\"}}}}"))
        .collect();
    let faults = faults_with("cases.json", &format!("[{}]", many.join(",\n")));
    assert_eq!(faults, ["cases.json: there are 40000 cases, and may be 2000"]);
    // Each of them fails, and each is named with its line.
    let faults = faults_with("cases.json", &format!("[{}]", many[..2_000].join(",\n")));
    assert!(faults.len() >= 2_000, "{faults:.3?}");
    let last = faults.iter().find(|fault| fault.contains("c1999")).unwrap();
    assert!(last.starts_with("cases.json:2000: "), "{last}");
}
