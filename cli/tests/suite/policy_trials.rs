//! `stage0 policy replay`, `shadow`, `candidates`, `withdraw` and `activate --canary`: what is sent, what is shown, and
//! the exit codes.

use serde_json::{Value, json};

use crate::harness::{Dev, ended, run};
use crate::impostor::{Impostor, answer, refusal};

const VERSION: &str = "acme@1.2.0+0123456789ab";
const REPLAY: &str = include_str!("../../../contract/fixtures/policy_replay.json");
const CANDIDATES: &str = include_str!("../../../contract/fixtures/candidates.json");
const COMPARISON: &str = include_str!("../../../contract/fixtures/policy_comparison.json");
const CANARY: &str = include_str!("../../../contract/fixtures/activation_canary.json");
const SHADOW: &str = include_str!("../../../contract/fixtures/activation_shadow.json");
const WITHDRAWN: &str = include_str!("../../../contract/fixtures/activation_withdrawn.json");

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_replay_is_shown_with_the_gravest_changes_first_and_what_is_looser_is_exit_code_1() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let (server, requests) = Impostor::recording(&dev, vec![answer(REPLAY)]);
    let time = "2026-03-16T12:00:00Z";
    let query = ["--environment", "eu west", "--until", time, "--from", "2026-03-09T12:00:00Z", "--limit", "1000"];
    let replayed = ended(&mut server.client(&[&["policy", "replay", VERSION], &query[..]].concat()));
    assert_eq!(replayed.code, 1, "{}", replayed.err);
    let line = requests.try_recv().unwrap().line;
    let asked = format!(
        "GET /v1/policies/{VERSION}/replay?environment=eu+west&from=2026-03-09T12%3A00%3A00Z\
         &until=2026-03-16T12%3A00%3A00Z&limit=1000 "
    );
    assert!(line.starts_with(&asked), "{line}");
    let at = |part: &str| replayed.out.find(part).unwrap_or_else(|| panic!("`{part}` in {}", replayed.out));
    let order = [
        "1000 read",
        "940, and 60 not",
        "DENY → ALLOW   1",
        "DEFER → ALLOW  2",
        "ALLOW → DENY   5",
        "no facts were kept",
        "DENY → ALLOW  2026-03-16T11:58:21Z",
        "7 more differ",
    ];
    assert!(order.map(at).is_sorted(), "{}", replayed.out);

    let accepted = ended(&mut server.client(&["policy", "replay", VERSION, "--allow-looser", "--json"]));
    assert_eq!((accepted.code, parsed(&accepted.out)), (0, parsed(REPLAY)));
    let mut same = parsed(REPLAY);
    for (member, value) in [("flips", json!(0)), ("changes", json!([])), ("items", json!([])), ("left_out", json!(0))] {
        same[member] = value;
    }
    let harmless = Impostor::start(&dev, vec![answer(&same.to_string())]);
    let harmless = ended(&mut harmless.client(&["policy", "replay", VERSION]));
    assert!(harmless.code == 0 && !harmless.out.contains("CHANGE"), "{}{}", harmless.out, harmless.err);
}

#[test]
fn candidates_are_shown_with_counts_and_then_with_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let (server, requests) = Impostor::recording(&dev, vec![answer(CANDIDATES)]);
    let shown = ended(&mut server.client(&["policy", "candidates", "--account", "acc_7"]));
    assert_eq!(shown.code, 0, "{}", shown.err);
    assert!(requests.try_recv().unwrap().line.starts_with("GET /v1/policies/candidates?account=acc_7 "));
    let lines: Vec<&str> = shown.out.lines().collect();
    assert_eq!(lines[0], "canary  acme@1.2.0+0123456789ab");
    let heading = lines.iter().position(|line| line.starts_with("CHANGE")).unwrap();
    assert!(lines[heading + 1].starts_with("DENY → ALLOW") && lines[heading + 1].contains("refund-bot"));
    assert_eq!(parsed(&ended(&mut server.client(&["policy", "candidates", "--json"])).out), parsed(CANDIDATES));
    let none = Impostor::start(&dev, vec![answer(r#"{"items": []}"#)]);
    let none = ended(&mut none.client(&["policy", "candidates"]));
    assert_eq!((none.code, none.out.as_str(), none.err.trim()), (0, "", "no policy is tried here"));
}

#[test]
fn a_shadow_begins_and_a_candidate_is_withdrawn_as_the_flags_say() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let sent = |arguments: &[&str], reply: &str| {
        let (server, requests) = Impostor::recording(&dev, vec![answer(reply)]);
        let done = ended(&mut server.client(&[&["policy"], arguments].concat()));
        assert_eq!(done.code, 0, "{arguments:?}: {}", done.err);
        let request = requests.try_recv().unwrap();
        (request.line, parsed(&request.body), done.out)
    };
    let (line, body, told) = sent(&["shadow", VERSION], SHADOW);
    assert!(line.starts_with(&format!("POST /v1/policies/{VERSION}/shadow ")), "{line}");
    assert_eq!(body, json!({}));
    assert!(told.starts_with("shadow started\n") && told.contains("judges 20% of the runs"), "{told}");
    let place = ["--environment", "prod", "--account", "acc_7", "--reason", "r"];
    let (_, body, _) = sent(&[&["shadow", VERSION, "--percent", "20"], &place[..]].concat(), SHADOW);
    assert_eq!(body, json!({"environment": "prod", "account": "acc_7", "reason": "r", "percent": 20}));
    let (line, body, told) = sent(&[&["withdraw"], &place[..]].concat(), WITHDRAWN);
    assert!(line.starts_with("POST /v1/policies/withdraw "), "{line}");
    assert_eq!(body, json!({"environment": "prod", "account": "acc_7", "reason": "r"}));
    assert!(told.starts_with("canary ended\n") && told.contains("acme@1.1.0+ba9876543210"), "{told}");
    assert_eq!(parsed(&sent(&["withdraw", "--json"], WITHDRAWN).2), parsed(WITHDRAWN));

    let refused = Impostor::start(&dev, vec![refusal("409 Conflict", "no policy is tried there")]);
    let refused = ended(&mut refused.client(&["policy", "withdraw"]));
    assert!(refused.code == 1 && refused.err.contains("no policy is tried there"), "{}", refused.err);
}

#[test]
fn a_canary_begins_with_its_terms_and_a_refusal_shows_the_replay_and_the_command_that_accepts_it() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let (server, requests) = Impostor::recording(&dev, vec![answer(CANARY)]);
    let canary = ["policy", "activate", VERSION, "--canary", "10", "--return-at-disagreement", "5"];
    let begun = ended(&mut server.client(&canary));
    assert_eq!(begun.code, 0, "{}", begun.err);
    let return_at = json!({"disagreement_percent": 5, "error_percent": 0, "min_checks": 50});
    let body = parsed(&requests.try_recv().unwrap().body);
    assert_eq!(body, json!({"canary": {"percent": 10, "return_at": return_at}}));
    assert!(begun.out.starts_with("canary started\n") && begun.out.contains("more than 2% of its verdicts differ"));

    let flips = parsed(COMPARISON)["flips"].as_u64().unwrap() + parsed(REPLAY)["flips"].as_u64().unwrap();
    let why = format!(
        "{flips} are looser; send `accept_flips`: {flips} and `replayed_until`: 2026-03-16T12:00:00Z with a `reason`"
    );
    let looser = refusal("409 Conflict", &why);
    let answers = vec![looser.clone(), answer(COMPARISON), answer(REPLAY)];
    let (server, requests) = Impostor::recording(&dev, answers);
    let refused = ended(&mut server.client(&canary));
    assert_eq!(refused.code, 1, "{}", refused.err);
    let lines: Vec<String> = requests.try_iter().map(|request| request.line).collect();
    let replay = format!("GET /v1/policies/{VERSION}/replay?until=2026-03-16T12%3A00%3A00Z&gate=true ");
    assert!(lines.len() == 3 && lines[2].starts_with(&replay), "{lines:?}");
    assert!(refused.out.contains("refund-600") && refused.out.contains("DENY → ALLOW   1"), "{}", refused.out);
    let command = format!(
        "  stage0 policy activate {VERSION} --canary 10 --return-at-disagreement 5 --accept-flips {flips} \
         --replayed-until 2026-03-16T12:00:00Z --diff-digest {} --reason WHY",
        parsed(COMPARISON)["diff_digest"].as_str().unwrap()
    );
    assert!(refused.err.contains(&command), "{}", refused.err);
    let (server, _requests) = Impostor::recording(&dev, vec![looser.clone(), answer(COMPARISON), answer(REPLAY)]);
    let told = parsed(&ended(&mut server.client(&["policy", "activate", VERSION, "--json"])).out);
    assert_eq!((&told["activated"], &told["replay"]), (&json!(false), &parsed(REPLAY)));

    // An operator may not replay: the command stands all the same, without a digest that was not shown whole.
    let denied = refusal("403 Forbidden", "the key needs the scope `policies:manage`");
    let (server, _requests) = Impostor::recording(&dev, vec![looser, answer(COMPARISON), denied]);
    let refused = ended(&mut server.client(&["policy", "activate", VERSION]));
    let command = format!("--accept-flips {flips} --replayed-until 2026-03-16T12:00:00Z --reason WHY");
    assert!(refused.err.contains(&command) && !refused.out.contains("REQUEST"), "{}", refused.err);
    let look = format!("\n  stage0 policy replay {VERSION} --until 2026-03-16T12:00:00Z --gate --url ");
    assert!(refused.err.contains(&look), "{}", refused.err);
    let (server, requests) = Impostor::recording(&dev, vec![answer(CANARY)]);
    let accepting = ["policy", "activate", VERSION, "--replayed-until", "2026-03-16T12:00:00Z"];
    assert_eq!(ended(&mut server.client(&accepting)).code, 0);
    let body = parsed(&requests.try_recv().unwrap().body);
    assert_eq!(body["replayed_until"], json!("2026-03-16T12:00:00Z"));
}

#[test]
fn what_cannot_be_meant_is_exit_code_64() {
    for (wrong, part) in [
        (&["policy", "activate", "a@1.0.0", "--canary", "20%"][..], "must be a whole number from 1 to 100"),
        (&["policy", "activate", "a@1.0.0", "--canary", "10", "--floor"], "--floor"),
        (&["policy", "activate", "a@1.0.0", "--return-at-errors", "1"], "--canary"),
        (&["policy", "shadow", "a@1.0.0", "--percent", "12.5"], "must be a whole number from 1 to 100"),
        (&["policy", "replay", "a@1.0.0", "--limit", "10001"], "1 to 10000"),
        (&["policy", "replay"], "<VERSION>"),
        (&["policy", "activate", "a@1.0.0", "--replayed-until", "noon"], "must be a time such as 2026-03-16T12:00:00Z"),
        (&["policy", "history", "--limit", "many"], "must be a whole number of at least 1"),
        (&["policy", "proposals", "--limit", "0"], "must be a whole number of at least 1"),
        (&["accounts", "update", "acc_7", "--record-facts", "maybe"], "true, false"),
    ] {
        let refused = run(wrong);
        assert!(refused.code == 64 && refused.err.contains(part), "{wrong:?}: {}", refused.err);
    }
}

#[test]
fn whether_facts_are_recorded_is_set_and_listed() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let account = parsed(include_str!("../../../contract/fixtures/account_reply_facts.json"))["done"].clone();
    let (server, requests) = Impostor::recording(&dev, vec![answer(&account.to_string())]);
    let update = |switch| ended(&mut server.client(&["accounts", "update", "acc_1", "--record-facts", switch]));
    for (switch, sent) in [("true", true), ("false", false)] {
        let done = update(switch);
        assert!(done.code == 0 && done.out.contains("recorded with decisions"), "{}{}", done.out, done.err);
        assert_eq!(parsed(&requests.try_recv().unwrap().body), json!({"record_facts": sent}));
    }
    let mut other = account.clone();
    other.as_object_mut().unwrap().remove("record_facts");
    let listed = Impostor::start(&dev, vec![answer(&json!({"items": [account, other]}).to_string())]);
    let listed = ended(&mut listed.client(&["accounts", "list"]));
    let lines: Vec<&str> = listed.out.lines().collect();
    assert!(lines[0].contains("FACTS") && lines[1].contains("recorded") && !lines[2].contains("recorded"), "{lines:?}");
}
