//! `stage0 approvals`: what a person is shown, what is asked, and what is sent.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::Receiver;

use serde_json::{Value, json};

use crate::harness::{Dev, Ended, ended, run, run_with_input, wait_for};
use crate::impostor::{Impostor, Received, answer, answer_with, refusal};
use crate::terminal::on_terminal;

const DIGEST: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

fn approval(status: &str) -> Value {
    let text = include_str!("../../../contract/fixtures/approval_reply_done.json");
    let mut approval = serde_json::from_str::<Value>(text).unwrap()["done"].clone();
    approval["status"] = status.into();
    approval
}

fn page(items: &[Value]) -> String {
    answer(&json!({"items": items, "next_cursor": null}).to_string())
}

/// What was sent to the double.
fn sent(requests: &Receiver<Received>) -> Vec<Received> {
    requests.try_iter().collect()
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Runs the command at a terminal where `typed` is typed.
fn at_terminal(command: &Command, typed: &str) -> Ended {
    let mut script = on_terminal(command, 100, &[("NO_COLOR", "1")]);
    let mut ended = run_with_input(&mut script, typed);
    ended.out = ended.out.replace("\r\n", "\n");
    ended
}

#[test]
fn show_makes_every_hidden_character_visible_and_begins_with_the_risk() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let mut hostile = approval("pending");
    hostile["action"] = json!({"goal": "Send the re\u{202e}tropeR\u{202c}\nApproved by all", "tools": ["ma\u{200b}il"],
        "side_effects": ["payment\u{1b}[2J"], "context": {"note\u{feff}": "x".repeat(300)}});
    let (server, requests) = Impostor::recording(&dev, vec![answer(&hostile.to_string())]);
    let shown = ended(&mut server.client(&["approvals", "show", "apr_1", "--wait", "2s"]));
    assert_eq!((shown.code, shown.err.as_str()), (0, ""), "{}", shown.err);
    assert!(sent(&requests)[0].line.starts_with("GET /v1/approvals/apr_1?wait=2s "));
    for part in [
        "pending  apr_1\n",
        r"look out        5 characters are invisible",
        r"side effects    payment\u{1b}[2J",
        r"tools           ma\u{200b}il",
        r"goal            Send the re\u{202e}tropeR\u{202c}\u{a}",
        r#""note\u{feff}": "#,
        &format!("digest          {DIGEST}\n"),
    ] {
        assert!(shown.out.contains(part), "{part}: {}", shown.out);
    }
    let places = ["Risk\n", "Action\n", "Approval\n"].map(|heading| shown.out.find(heading).unwrap());
    assert!(places.is_sorted(), "{}", shown.out);
    assert!(!shown.out.chars().any(|c| (c.is_control() && c != '\n') || "\u{202e}\u{200b}\u{feff}".contains(c)));
    assert!(shown.out.replace("\n        ↳ ", "").contains(&"x".repeat(300)), "nothing is cut: {}", shown.out);

    let json = ended(&mut server.client(&["approvals", "show", "apr_1", "--json"]));
    assert_eq!(json_of(&json.out), hostile, "JSON is complete: {}", json.err);
}

#[test]
fn nothing_is_decided_without_a_terminal_or_a_named_digest() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let (server, requests) = Impostor::recording(&dev, vec![answer(&approval("pending").to_string())]);
    for (arguments, part) in [
        (&["approve", "apr_1"][..], "not a terminal"),
        (&["approve", "apr_1", "--digest", DIGEST], "--yes and --digest"),
        (&["approve", "apr_1", "--yes"], "--digest"),
        (&["approve", "apr_1", "--yes", "--digest", "9f86"], "64 hexadecimal"),
        (&["deny", "apr_1", "--reason", "no"], "not a terminal"),
        (&["deny", "apr_1", "--yes", "--digest", DIGEST], "--reason"),
        (&["deny", "apr_1", "--yes", "--digest", DIGEST, "--reason", " "], "--reason"),
        (&["reopen", "apr_1", "--reason", "x"], "--yes"),
        (&["grant", "--key", "key_1", "--tool", "psql", "--until", "1h", "--reason", "x"], "--yes"),
        (&["grant", "--key", "key_1", "--until", "1h", "--reason", "x", "--yes"], "--tool"),
        (&["approve-grant", "grt_1", "--reason", "x"], "--yes"),
    ] {
        let refused = run_with_input(&mut server.client(&[&["approvals"], arguments].concat()), "y\ny\n");
        assert_eq!((refused.code, refused.out.as_str()), (64, ""), "{arguments:?}: {}", refused.err);
        assert!(refused.err.contains(part), "{arguments:?}: {}", refused.err);
    }
    assert!(sent(&requests).is_empty(), "nothing was sent");
}

#[test]
fn the_digest_that_is_sent_is_the_one_that_was_shown() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let mut approved = approval("approved");
    approved["usable_until"] = "2026-03-16T12:20:00Z".into();
    let answers = || vec![answer(&approval("pending").to_string()), answer(&approved.to_string())];
    let (server, requests) = Impostor::recording(&dev, answers());
    let done = at_terminal(&server.client(&["approvals", "approve", "apr_1", "--reason", "CHG-12"]), "y\n");
    assert_eq!(done.code, 0, "{}", done.out);
    for part in [
        "goal            Deploy the payments service",
        DIGEST,
        "Workload key_1 asked for this. It needs 2 members of release-managers; 1 so far.",
        "once, within 15 min. Approve it? [y/N]",
        "approved  apr_1\n",
        "may use it once, until 2026-03-16T12:20:00Z",
    ] {
        assert!(done.out.contains(part), "{part}: {}", done.out);
    }
    let requests = sent(&requests);
    assert_eq!(requests.len(), 2);
    assert!(requests[1].line.starts_with("POST /v1/approvals/apr_1/approve "), "{}", requests[1].line);
    assert_eq!(json_of(&requests[1].body), json!({"action_digest": DIGEST, "reason": "CHG-12"}));

    let (server, requests) = Impostor::recording(&dev, answers());
    let left = at_terminal(&server.client(&["approvals", "deny", "apr_1", "--reason", "no"]), "n\n");
    assert_eq!(left.code, 1, "{}", left.out);
    assert!(left.out.contains("Deny it? [y/N]") && left.out.contains("nothing was sent"), "{}", left.out);
    assert_eq!(sent(&requests).len(), 1, "it was read and not decided");
}

#[test]
fn a_program_names_the_digest_and_a_refusal_is_shown_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let decided = ["approvals", "deny", "apr_1", "--yes", "--digest", DIGEST, "--reason", "not on a Friday"];
    let (server, requests) = Impostor::recording(&dev, vec![answer(&approval("denied").to_string())]);
    let denied = ended(&mut server.client(&decided));
    assert_eq!((denied.code, denied.err.as_str()), (0, ""), "{}", denied.err);
    assert!(denied.out.starts_with("denied  apr_1\n") && denied.out.contains("for an hour"), "{}", denied.out);
    let requests = sent(&requests);
    assert_eq!(requests.len(), 1, "the action is not read for a program");
    assert!(requests[0].line.starts_with("POST /v1/approvals/apr_1/deny "), "{}", requests[0].line);
    assert_eq!(json_of(&requests[0].body), json!({"action_digest": DIGEST, "reason": "not on a Friday"}));

    let why = "the approval is of another action now: read it again";
    let (server, _requests) = Impostor::recording(&dev, vec![refusal("409 Conflict", why)]);
    let refused = ended(&mut server.client(&["approvals", "approve", "apr_1", "--yes", "--digest", DIGEST]));
    assert_eq!((refused.code, refused.out.as_str()), (1, ""));
    assert!(refused.err.contains(why) && refused.err.contains("apr_1 does not count: "), "{}", refused.err);

    let why = "the key lacks the scope `approvals:decide`";
    for (arguments, what) in
        [(&decided[..], "denial"), (&["approvals", "approve", "apr_1", "--yes", "--digest", DIGEST], "approval")]
    {
        let (server, _requests) = Impostor::recording(&dev, vec![refusal("403 Forbidden", why)]);
        let refused = ended(&mut server.client(arguments));
        assert_eq!(refused.code, 1);
        let text =
            format!("your {what} of apr_1 does not count (--key-file FILE names the key of a member who may decide)");
        assert!(refused.err.contains(&text) && refused.err.contains(why), "{}", refused.err);
    }
}

#[test]
fn what_was_not_seen_or_is_over_is_not_asked_about() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let mut unseen = approval("pending");
    unseen["action"] = Value::Null;
    let own_key = std::fs::read_to_string(dev.data_dir.join("api.key")).unwrap();
    let own_key = stage0_contract::ApiKey::parse(own_key.trim()).unwrap();
    let (mut own, mut rotated) = (approval("pending"), approval("pending"));
    own["key_id"] = own_key.id().as_str().into();
    rotated["workload"] = own_key.id().as_str().into();
    let mut with_reason = approval("pending");
    with_reason["terms"]["reason_required"] = true.into();
    let other = "0".repeat(64);
    for (found, more, code, part) in [
        (unseen, &[][..], 1, "is not shown to this key"),
        (own, &[], 1, "--key-file FILE names the key of a member"),
        (rotated, &[], 1, "was asked for with this very key"),
        (approval("expired"), &[], 1, "apr_1 is expired and no longer pending"),
        (with_reason, &[], 64, "demands a reason"),
        (approval("pending"), &["--digest", &other], 1, "is of another action than the one"),
    ] {
        let (server, requests) = Impostor::recording(&dev, vec![answer(&found.to_string())]);
        let command = server.client(&[&["approvals", "approve", "apr_1"], more].concat());
        let refused = at_terminal(&command, "y\n");
        assert_eq!(refused.code, code, "{part}: {}", refused.out);
        assert!(refused.out.contains(part) && !refused.out.contains("[y/N]"), "{part}: {}", refused.out);
        assert_eq!(sent(&requests).len(), 1, "{part}: only read");
    }
}

#[test]
fn approvals_are_listed_with_what_they_wait_for() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let (server, requests) = Impostor::recording(&dev, vec![page(&[approval("pending")])]);
    let table = ended(&mut server.client(&["approvals", "list", "--status", "pending", "--group", "on-call"]));
    assert_eq!((table.code, table.err.as_str()), (0, ""), "{}", table.err);
    let row = table.out.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    for cell in ["apr_1 pending production APPROVAL_REQUIRED 1 of 2", "release-managers", "2026-03-16T13:00:00Z"] {
        assert!(row.contains(cell), "{cell}: {row}");
    }
    assert!(row.ends_with(" argo_cd Deploy the payments service"), "{row}");
    let requests = sent(&requests);
    let line = &requests[0].line;
    assert!(line.contains("status=pending") && line.contains("group=on-call") && line.contains("limit=50"), "{line}");
    assert_eq!(requests.len(), 1, "the list had the action");
    let (server, _requests) = Impostor::recording(&dev, vec![page(&[])]);
    let none = ended(&mut server.client(&["approvals", "list"]));
    assert!(none.code == 0 && none.err.contains("no approvals found"), "{}", none.err);
    let wrong = run(&["approvals", "list", "--status", "open"]);
    assert!(wrong.code == 64 && wrong.err.contains("pending, approved"), "{}", wrong.err);
}

#[test]
fn a_list_reads_the_actions_of_open_approvals_and_says_where_it_could_not() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let without = |status| {
        let mut without = approval(status);
        without["action"] = Value::Null;
        without
    };
    let listed = || page(&[without("pending"), without("approved"), without("consumed")]);
    let hidden = answer(&without("approved").to_string());
    let (server, requests) =
        Impostor::recording(&dev, vec![listed(), answer(&approval("pending").to_string()), hidden]);
    let table = ended(&mut server.client(&["approvals", "list"]));
    assert_eq!((table.code, table.err.as_str()), (0, ""), "{}", table.err);
    let ends: Vec<bool> =
        table.out.lines().skip(1).map(|row| row.ends_with("  argo_cd  Deploy the payments service")).collect();
    assert_eq!(ends, [true, false, false], "{}", table.out);
    assert!(table.out.lines().skip(2).all(|row| row.split_whitespace().rev().take(2).eq(["-", "-"])), "{}", table.out);
    let paths: Vec<String> = sent(&requests).into_iter().map(|request| request.line).collect();
    assert_eq!(paths.len(), 3, "one that has ended is not read: {paths:?}");
    assert!(paths[1].starts_with("GET /v1/approvals/apr_1 "), "{paths:?}");

    let refused = refusal("429 Too Many Requests", "too many reads");
    let (server, requests) = Impostor::recording(&dev, vec![listed(), refused]);
    let table = ended(&mut server.client(&["approvals", "list"]));
    assert_eq!((table.code, table.out.lines().count()), (0, 4), "the list is there: {}", table.err);
    assert!(table.err.contains("tools and goals are not complete: the server answers 429"), "{}", table.err);
    assert_eq!(sent(&requests).len(), 2, "it does not go on");

    let (server, requests) = Impostor::recording(&dev, vec![listed()]);
    let json = ended(&mut server.client(&["approvals", "list", "--json"]));
    assert_eq!(json_of(&json.out)["items"][0], without("pending"), "{}", json.err);
    assert_eq!(sent(&requests).len(), 1, "JSON is the server's answer");
}

#[test]
fn watch_prints_what_is_new_and_each_change_once() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let pending = page(&[approval("pending")]);
    let answers = vec![
        pending.clone(),
        pending,
        // It is no longer among the pending ones, and so it is read on its own.
        page(&[]),
        answer(&approval("approved").to_string()),
        page(&[]),
        answer(&approval("consumed").to_string()),
        page(&[]),
    ];
    let (server, _requests) = Impostor::recording(&dev, answers);
    let mut command = server.client(&["approvals", "watch"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let lines: Vec<String> = lines.take(3).map(Result::unwrap).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    for (line, status) in lines.iter().zip(["pending", "approved", "consumed"]) {
        assert!(line.contains(&format!("  apr_1  {status}  production  ")), "{lines:?}");
    }
}

#[test]
fn changes_are_sent_to_their_own_paths() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let outside = ["--approved-by", "ops-lead", "--evidence", "https://tickets.example/CHG-12"];
    let register = [&["register", "apr_1", "--digest", DIGEST], &outside[..]].concat();
    for (arguments, path, body) in [
        (&["cancel", "apr_1"][..], "apr_1/cancel", json!({})),
        (&["cancel", "apr_1", "--reason", "late"], "apr_1/cancel", json!({"reason": "late"})),
        (
            &["reopen", "apr_1", "--reason", "it did not run", "--yes"],
            "apr_1/reopen",
            json!({"reason": "it did not run"}),
        ),
        (&["outcome", "apr_1", "failed"], "apr_1/outcome", json!({"status": "failed"})),
        (
            &register,
            "apr_1/register",
            json!({"action_digest": DIGEST, "approved_by": ["ops-lead"], "evidence": "https://tickets.example/CHG-12"}),
        ),
    ] {
        let (server, requests) = Impostor::recording(&dev, vec![answer(&approval("cancelled").to_string())]);
        let done = ended(&mut server.client(&[&["approvals"], arguments].concat()));
        assert_eq!((done.code, done.err.as_str()), (0, ""), "{arguments:?}: {}", done.err);
        assert!(done.out.starts_with("cancelled  apr_1\n"), "{}", done.out);
        let requests = sent(&requests);
        assert!(requests[0].line.starts_with(&format!("POST /v1/approvals/{path} ")), "{}", requests[0].line);
        assert_eq!(json_of(&requests[0].body), body, "{arguments:?}");
    }
}

#[test]
fn a_grant_is_asked_about_and_sent_with_all_that_limits_it() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let grant = include_str!("../../../contract/fixtures/grant.json");
    let (server, requests) = Impostor::recording(&dev, vec![answer_with("201 Created", grant)]);
    let until = "2026-03-16T20:00:00Z";
    let limits = ["--key", "key_1", "--run", "nightly-7", "--tool", "psql", "--effect", "write", "--until", until];
    let all = [&["approvals", "grant"], &limits[..], &["--reason", "CHG-12"]].concat();
    let made = at_terminal(&server.client(&all), "y\n");
    assert_eq!(made.code, 0, "{}", made.out);
    for part in ["run nightly-7, tool psql, effects write", "No person sees these actions", "grant        grt_1\n"] {
        assert!(made.out.contains(part), "{part}: {}", made.out);
    }
    let requests = sent(&requests);
    let body = json!({"key_id": "key_1", "run_id": "nightly-7", "tool": "psql", "effects": ["write"],
        "until": until, "reason": "CHG-12"});
    assert_eq!((requests.len(), json_of(&requests[0].body)), (1, body));

    let (server, requests) = Impostor::recording(&dev, vec![answer(grant)]);
    let revoked = ended(&mut server.client(&["approvals", "revoke", "grt_1", "--reason", "done"]));
    assert_eq!(revoked.code, 0, "{}", revoked.err);
    let requests = sent(&requests);
    assert!(requests[0].line.starts_with("POST /v1/grants/grt_1/revoke "), "{}", requests[0].line);

    let grants = include_str!("../../../contract/fixtures/grants.json");
    let grants = json_of(grants)["done"].to_string();
    let listed = ended(&mut Impostor::start(&dev, vec![answer(&grants)]).client(&["approvals", "grants"]));
    assert!(listed.code == 0 && listed.out.contains("run nightly-7, tool psql"), "{}{}", listed.out, listed.err);
}

#[test]
fn doctor_says_that_too_few_people_may_approve_and_what_the_key_may_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let members = json_of(include_str!("../../../contract/fixtures/member_page.json"))["done"].to_string();
    let server = Impostor::start(&dev, vec![answer(&members), page(&[approval("pending")])]);
    let found = ended(&mut server.client(&["doctor", "account"]));
    assert_eq!((found.code, found.err.as_str()), (0, ""), "a warning is no failure: {}", found.err);
    for part in ["look  members      1 may approve", "apr_1 needs 2 members of release-managers, and 1 may approve"] {
        assert!(found.out.contains(part), "{part}: {}", found.out);
    }
    let refused = refusal("403 Forbidden", "the key lacks the scope `members:manage`");
    let server = Impostor::start(&dev, vec![refused, page(&[])]);
    let found = ended(&mut server.client(&["doctor", "account", "--json"]));
    let report = json_of(&found.out);
    assert_eq!((&report["role"], &report["ok"]), (&json!("account"), &json!(true)));
    assert_eq!(report["findings"][0]["how"], "skipped", "{report}");
    assert_eq!(report["findings"][1]["how"], "good", "{report}");
}

/// The whole way on a real server: what an agent, an approver and the operator type.
#[test]
fn a_deferred_check_is_approved_by_an_invited_person_and_allowed_once() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start_with(dir.path(), &["--approvals", "verified"]);
    assert!(dev.banner.contains("\napprove verified: "), "{}", dev.banner);
    let file = dir.path().join("me.key");
    let key = ["--key-file", file.to_str().unwrap()];
    let invited = json_of(&dev.ask(&["members", "invite", "me", "--json"]).out);
    let code = invited["invitation_code"].as_str().unwrap();
    let accepted = run_with_input(&mut dev.client(&[&["members", "accept"], &key[..]].concat()), code);
    assert_eq!(accepted.code, 0, "{}", accepted.err);

    let action = json!({"goal": "Deploy build 7 to production", "success_criteria": ["health checks pass"],
        "side_effects": ["deploy"], "constraints": ["approval_required"], "context": {"ticket_id": "CHG-12"}});
    let deferred = dev.check(&action, &[]);
    assert_eq!(deferred.code, 2, "{}{}", deferred.out, deferred.err);
    let id = deferred.out.lines().find_map(|line| line.strip_prefix("approval ")?.strip_suffix(" is pending"));
    let id = id.unwrap_or_else(|| panic!("no approval was opened: {}", deferred.out)).to_owned();
    let shown = dev.ask(&["approvals", "show", &id, "--json"]);
    let digest = json_of(&shown.out)["action_digest"].as_str().unwrap().to_owned();

    for key in [&[][..], &key] {
        let listed = dev.ask(&[&["approvals", "list"], key].concat());
        assert!(listed.out.trim_end().ends_with("  Deploy build 7 to production"), "{}{}", listed.out, listed.err);
    }
    let asked = at_terminal(&dev.client(&["approvals", "approve", &id]), "y\n");
    assert!(asked.code == 1 && asked.out.contains("who asks does not decide"), "{}", asked.out);
    assert!(!asked.out.contains("[y/N]"), "before the question: {}", asked.out);
    let own = dev.ask(&["approvals", "approve", &id, "--yes", "--digest", &digest]);
    assert!(own.code == 1 && own.err.contains("approvals:decide"), "who asks does not approve: {}", own.err);
    let other = "0".repeat(64);
    let approve =
        |digest: &str| dev.ask(&[&["approvals", "approve", &id, "--yes", "--digest", digest], &key[..]].concat());
    let unseen = approve(&other);
    assert!(unseen.code == 1 && unseen.err.contains("the server answers 409"), "{}", unseen.err);
    let terminal = at_terminal(&dev.client(&[&["approvals", "approve", &id], &key[..]].concat()), "y\n");
    assert_eq!(terminal.code, 0, "{}", terminal.out);
    assert!(terminal.out.contains("ticket_id: \"CHG-12\"") && terminal.out.contains(&digest), "{}", terminal.out);

    let allowed = dev.check(&action, &[]);
    assert_eq!(allowed.code, 0, "{}{}", allowed.out, allowed.err);
    assert!(allowed.out.contains(&format!("approval {id} is used by this check")), "{}", allowed.out);
    assert_eq!(dev.check(&action, &[]).code, 2, "it is used once");
    let history = dev.ask(&["approvals", "history", &id]).out;
    for event in ["approval.requested", "approval.approved", "approval.used"] {
        assert!(history.contains(event), "{event}: {history}");
    }
    let reported = dev.ask(&["approvals", "outcome", &id, "succeeded"]);
    assert_eq!(reported.code, 0, "{}", reported.err);
}

#[test]
fn a_stop_denies_until_the_operator_resumes_it() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let action =
        json!({"goal": "Read the weekly sales report", "success_criteria": ["a summary"], "tools": ["read_file"]});
    assert_eq!(dev.check(&action, &[]).code, 0);
    let stopped = dev.ask(&["stop", "--tool", "read_file", "--reason", "incident 12", "--json"]);
    assert_eq!(stopped.code, 0, "{}", stopped.err);
    let id = json_of(&stopped.out)["id"].as_str().unwrap().to_owned();
    wait_for("the stop to reach the gateway", || dev.check(&action, &[]).code == 1);
    assert!(dev.check(&action, &[]).out.contains("STOPPED"));
    assert!(dev.ask(&["stops"]).out.contains(&id));
    let resumed = dev.ask(&["resume", &id, "--reason", "it is over"]);
    assert_eq!(resumed.code, 0, "{}", resumed.err);
    wait_for("the end of the stop to reach the gateway", || dev.check(&action, &[]).code == 0);
}
