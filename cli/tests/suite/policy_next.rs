//! What the commands about policies print to type next, and what they say where something is missing: the key, the
//! place, or anything to replay.

use serde_json::{Value, json};

use crate::harness::{Dev, Ended, ended, stage0, write_secret};
use crate::impostor::{Impostor, answer, refusal};

const VERSION: &str = "acme@1.2.0+0123456789ab";
const REPLAY: &str = include_str!("../../../contract/fixtures/policy_replay.json");
const COMPARISON: &str = include_str!("../../../contract/fixtures/policy_comparison.json");
const CANARY: &str = include_str!("../../../contract/fixtures/activation_canary.json");
const PROPOSED: &str = include_str!("../../../contract/fixtures/activation_proposed.json");
const ENDED: &str = include_str!("../../../contract/fixtures/candidates_ended.json");

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// What a person does who copies the command into a shell.
fn pasted(command: &str) -> Ended {
    let binary = env!("CARGO_BIN_EXE_stage0");
    let mut shell = std::process::Command::new("sh");
    // Without the variables of this test's environment.
    for (name, _) in stage0(&[]).get_envs() {
        shell.env_remove(name);
    }
    ended(shell.arg("-c").arg(command.trim().replacen("stage0 ", &format!("{binary} "), 1)))
}

#[test]
fn the_command_that_accepts_acts_with_the_key_of_the_command_before() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let compared = parsed(COMPARISON)["flips"].as_u64().unwrap();
    let flips = compared + 3;
    let why = format!(
        "{flips} are looser; send `accept_flips`: {flips} and `replayed_until`: `2026-03-16T12:00:00Z` with a `reason`"
    );
    let answers = vec![refusal("409 Conflict", &why), answer(COMPARISON), answer(REPLAY), answer(CANARY)];
    let (server, requests) = Impostor::recording(&dev, answers);
    let refused = ended(&mut server.client(&["policy", "activate", VERSION, "--reason", "it's agreed"]));
    assert_eq!(refused.code, 1, "{}", refused.err);
    let sum = format!("to accept it ({flips}: {compared} of cases and entries, 3 of recorded decisions):");
    assert!(refused.err.contains(&sum), "{}", refused.err);
    let command = refused.err.lines().find(|line| line.starts_with("  stage0 policy activate")).unwrap();
    let accepted = pasted(command);
    assert_eq!(accepted.code, 0, "{command}: {}", accepted.err);
    let sent: Vec<_> = requests.try_iter().collect();
    let key = format!("x-api-key: {}", dev.text("api.key").trim());
    let keys: Vec<bool> = sent.iter().map(|request| request.headers.contains(&key)).collect();
    let replayed = format!("GET /v1/policies/{VERSION}/replay?until=2026-03-16T12%3A00%3A00Z&gate=true ");
    assert!(sent[2].line.starts_with(&replayed), "what the gate replays: {}", sent[2].line);
    assert_eq!(keys, [true; 4], "the member's key, and never the operator's");
    let body = parsed(&sent[3].body);
    assert_eq!((&body["accept_flips"], &body["reason"]), (&json!(flips), &json!("it's agreed")));
    for part in ["3 of recorded decisions", "940 of 1000 refused decisions, 3 of them looser", "api.key)\n"] {
        assert!(accepted.out.contains(part), "`{part}` in {}", accepted.out);
    }
}

#[test]
fn a_key_in_a_variable_is_named_and_its_absence_stops_the_pasted_command() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let (_packs, pack) = crate::policy_writing::new_pack();
    let key = dev.text("operator.key").trim().to_owned();
    let account = dev.file()["account"].as_str().unwrap().to_owned();
    let publish = ["policy", "publish", pack.to_str().unwrap(), "--account", &account];
    let published = ended(dev.client(&publish).env("STAGE0_API_KEY", &key));
    assert_eq!(published.code, 0, "{}", published.err);
    let command = published.out.lines().last().unwrap();
    assert!(command.trim().starts_with("STAGE0_API_KEY=\"${STAGE0_API_KEY:?}\" stage0 policy activate"), "{command}");
    assert!(command.contains(&format!(" --account {account} ")), "{command}");
    assert!(!published.out.contains(&key), "the key itself is not shown");
    let stopped = pasted(command);
    assert!(stopped.code != 0 && stopped.err.contains("STAGE0_API_KEY"), "{}{}", stopped.out, stopped.err);
    let given = pasted(&format!("export STAGE0_API_KEY={key}; {}", command.trim()));
    assert_eq!(given.code, 0, "{}", given.err);
    assert!(given.out.contains("(STAGE0_API_KEY)"), "{}", given.out);
}

#[test]
fn a_proposal_names_its_share_and_the_command_of_another_member() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let mut proposed = parsed(PROPOSED);
    let candidate = parsed(CANARY)["candidate"].clone();
    proposed["proposal"]["canary"] = json!({"percent": 10, "return_at": candidate["return_at"]});
    proposed["proposal"]["replayed"] = parsed(CANARY)["replayed"].clone();
    let page = json!({"items": [proposed["proposal"]]});
    let answers = [proposed.to_string(), page.to_string(), CANARY.to_owned()].map(|body| answer(&body));
    let server = Impostor::start(&dev, answers.into());
    let told = ended(&mut server.client(&["policy", "activate", VERSION, "--canary", "10"]));
    assert_eq!(told.code, 0, "{}", told.err);
    for part in ["proposed: nothing", "a canary: decides 10% of the runs", "940 of 1000", "--key-file FILE"] {
        assert!(told.out.contains(part), "`{part}` in {}", told.out);
    }
    let own = dev.data_dir.join("api.key").display().to_string();
    assert!(!told.out.contains(&own), "the one that proposed it cannot approve it: {}", told.out);
    let listed = ended(&mut server.client(&["policy", "proposals"]));
    assert!(listed.out.contains("canary 10%") && listed.out.contains("3 looser  940 of 1000"), "{}", listed.out);
    let approved = ended(&mut server.client(&["policy", "approve", "prop_1"]));
    assert!(approved.out.starts_with("approved, and begun as a canary\n"), "{}", approved.out);
}

#[test]
fn that_nothing_was_replayed_is_exit_code_1_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let mut empty = parsed(REPLAY);
    for member in ["decisions", "replayed", "flips", "left_out"] {
        empty[member] = json!(0);
    }
    for member in ["changes", "not_replayed", "items"] {
        empty[member] = json!([]);
    }
    let mut none = empty.clone();
    (none["decisions"], none["not_replayed"]) = (json!(58), json!([{"why": "not_kept", "count": 58}]));
    for (answered, part) in [(empty, "no decision of that place"), (none, "of 58, no facts were kept")] {
        let server = Impostor::start(&dev, vec![answer(&answered.to_string())]);
        for more in [&[][..], &["--allow-looser", "--json"]] {
            let replayed = ended(&mut server.client(&[&["policy", "replay", VERSION], more].concat()));
            assert_eq!(replayed.code, 1, "{}", replayed.out);
            let why = replayed.err.contains("nothing was replayed: ") && replayed.err.contains(part);
            assert!(why, "{}", replayed.err);
        }
    }
}

#[test]
fn a_replay_with_the_operators_key_says_which_key_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let operator = dir.path().join("other.key");
    write_secret(&operator, &dev.text("operator.key"));
    for version in [VERSION, "acme@1.2.0"] {
        let replay = ["policy", "replay", version, "--key-file", operator.to_str().unwrap()];
        let refused = dev.ask(&replay);
        assert!(refused.code == 1 && refused.err.contains("needs a key of the account"), "{}", refused.err);
    }
    let unknown = dev.ask(&["policy", "replay", "acme@1.2.0"]);
    assert!(unknown.code == 1 && unknown.err.contains("no policy `acme@1.2.0` is published"), "{}", unknown.err);
}

#[test]
fn ended_candidates_are_asked_for_and_shown_with_their_end() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let (server, requests) = Impostor::recording(&dev, vec![answer(ENDED), answer(r#"{"items": []}"#)]);
    let shown = ended(&mut server.client(&["policy", "candidates", "--ended"]));
    assert_eq!(shown.code, 0, "{}", shown.err);
    assert!(requests.try_recv().unwrap().line.starts_with("GET /v1/policies/candidates?ended=true "));
    assert!(shown.out.contains("\nended          2026-03-16T13:00:00Z\n"), "{}", shown.out);
    let none = ended(&mut server.client(&["policy", "candidates", "--ended"]));
    assert_eq!((none.code, none.err.trim()), (0, "no trial ended here"));
}

#[test]
fn a_withdrawal_where_nothing_is_tried_says_where_something_is() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let in_force = include_str!("../../../contract/fixtures/policies_in_force_candidates.json");
    let in_force = parsed(in_force)["done"].to_string();
    let conflict = || refusal("409 Conflict", "no policy is tried there");
    let withdraw = |environment: &[&str]| {
        let server = Impostor::start(&dev, vec![conflict(), answer(&in_force)]);
        ended(&mut server.client(&[&["policy", "withdraw"], environment].concat()))
    };
    let told = withdraw(&[]);
    assert!(told.code == 1 && told.err.contains("no policy is tried there"), "{}", told.err);
    assert!(told.err.contains("canary 10% in staging") && told.err.contains("--environment staging"), "{}", told.err);
    let here = withdraw(&["--environment", "staging"]);
    assert!(here.code == 1 && !here.err.contains("elsewhere"), "{}", here.err);
}
