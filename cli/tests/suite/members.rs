//! `stage0 members`, and what keys, accounts and webhooks say about people.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::mpsc::Receiver;

use serde_json::{Value, json};

use crate::harness::{Dev, ended, run, run_with_input};
use crate::impostor::{Impostor, Received, answer, answer_with, refusal};
use crate::terminal::on_terminal;

const CODE: &str = "inv_0123456789abcdefghjkmnpqrstvwxyz";

fn fixture(name: &str) -> Value {
    let path = format!("{}/../contract/fixtures/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let fixture: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    fixture.get("done").cloned().unwrap_or(fixture)
}

fn created(name: &str) -> String {
    answer_with("201 Created", &fixture(name).to_string())
}

fn only(requests: &Receiver<Received>) -> Received {
    let mut all: Vec<Received> = requests.try_iter().collect();
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// The usual client without its key.
fn without_key(server: &Impostor<'_>, dev: &Dev, arguments: &[&str]) -> Command {
    let with_key = server.client(arguments);
    let mut command = dev.client(arguments);
    let words: Vec<_> = with_key.get_args().collect();
    for flag in ["--url", "--ca"] {
        let at = words.iter().position(|word| *word == flag).unwrap();
        command.arg(flag).arg(words[at + 1]);
    }
    command
}

#[test]
fn an_invitation_shows_its_code_once_and_no_key() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let (server, requests) = Impostor::recording(&dev, vec![created("member_invited")]);
    let invite = ["members", "invite", "Ada", "--mail", "ada@example.com", "--group", "release-managers"];
    let more = ["--scope", "approvals:decide", "--scope", "stops:manage", "--valid", "8h", "--account", "acc_1"];
    let made = ended(&mut server.client(&[&invite[..], &more].concat()));
    assert_eq!((made.code, made.err.as_str()), (0, ""), "{}", made.err);
    assert!(made.out.starts_with(&format!("code     {CODE}\n")), "{}", made.out);
    for part in ["shown this once", "stage0 members accept --url https://127.0.0.1:", "groups   release-managers"] {
        assert!(made.out.contains(part), "{part}: {}", made.out);
    }
    assert!(!made.out.contains("s0_"), "an invitation shows no key: {}", made.out);
    let request = only(&requests);
    assert!(request.line.starts_with("POST /v1/members "), "{}", request.line);
    let body = json!({"name": "Ada", "mail": "ada@example.com", "groups": ["release-managers"], "account": "acc_1",
        "scopes": ["approvals:decide", "stops:manage"], "valid_seconds": 28_800});
    assert_eq!(json_of(&request.body), body);

    let (server, requests) = Impostor::recording(&dev, vec![created("member_invited")]);
    let again = ended(&mut server.client(&["members", "invite-again", "mem_1", "--json"]));
    assert_eq!(json_of(&again.out)["invitation_code"], CODE, "{}", again.err);
    assert!(only(&requests).line.starts_with("POST /v1/members/mem_1/invite "));
    for wrong in ["59s", "25h", "forever"] {
        let refused = run(&["members", "invite", "Ada", "--valid", wrong]);
        assert!(refused.code == 64 && refused.err.contains("24h"), "{wrong}: {}", refused.err);
    }
}

#[test]
fn accepting_needs_no_key_and_writes_one_that_only_the_person_has() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let key = fixture("invitation_accepted")["key"].as_str().unwrap().to_owned();
    let file = dir.path().join("me.key");
    let path = file.to_str().unwrap();
    let (server, requests) = Impostor::recording(&dev, vec![created("invitation_accepted")]);
    let accept = ["members", "accept", "--key-file", path];
    let accepted = run_with_input(&mut without_key(&server, &dev, &accept), &format!("  {CODE}\n"));
    assert_eq!((accepted.code, accepted.err.as_str()), (0, ""), "{}", accepted.err);
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), key);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!accepted.out.contains(&key) && accepted.out.contains(path), "{}", accepted.out);
    let request = only(&requests);
    assert!(request.line.starts_with("POST /v1/invitations/accept "), "{}", request.line);
    assert_eq!(json_of(&request.body), json!({"code": CODE}));
    assert!(!request.headers.contains("x-api-key"), "{}", request.headers);

    let again = run_with_input(&mut without_key(&server, &dev, &accept), CODE);
    assert!(again.code == 1 && again.err.contains("cannot create `"), "{}", again.err);
    assert_eq!(requests.try_iter().count(), 0, "the code is not used for a key that cannot be stored");

    let printed = ended(&mut without_key(&server, &dev, &["members", "accept", CODE]));
    assert!(printed.out.starts_with(&format!("key      {key}\n")), "{}{}", printed.out, printed.err);
    assert!(printed.out.contains("shown this once"), "{}", printed.out);
}

#[test]
fn a_wrong_code_is_refused_and_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let file = dir.path().join("never.key");
    let accept = ["members", "accept", "--key-file", file.to_str().unwrap()];
    let (server, requests) = Impostor::recording(&dev, vec![refusal("404 Not Found", "there is no such invitation")]);
    for malformed in ["", "inv_", "s0_0w3ge1r7", &CODE.to_uppercase(), &CODE[..35]] {
        let refused = run_with_input(&mut without_key(&server, &dev, &accept), malformed);
        assert_eq!(refused.code, 64, "{malformed}: {}", refused.err);
        assert!(refused.err.contains("`inv_` and 32"), "{}", refused.err);
    }
    assert_eq!(requests.try_iter().count(), 0);
    let unknown = run_with_input(&mut without_key(&server, &dev, &accept), CODE);
    assert!(unknown.code == 1 && unknown.err.contains("invite-again"), "{}", unknown.err);
    assert!(!unknown.err.contains(CODE), "{}", unknown.err);
    assert!(!file.exists() && !dir.path().join("never.key.part").exists());
}

#[test]
fn members_are_listed_with_groups_and_with_who_stands_in() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let (server, requests) = Impostor::recording(&dev, vec![answer(&fixture("member_page").to_string())]);
    let table = ended(&mut server.client(&["members", "list", "--account", "acc_1"]));
    assert_eq!((table.code, table.err.as_str()), (0, ""), "{}", table.err);
    let lines: Vec<&str> = table.out.lines().collect();
    assert!(lines[0].starts_with("ID ") && lines.len() == 3, "{}", table.out);
    let first = lines[1].split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(first.starts_with("mem_1 Ada ada@example.com release-managers active "), "{first}");
    assert!(lines[1].ends_with("mem_2 until 2026-03-16T13:00:00Z"), "{}", lines[1]);
    assert!(lines[2].contains("invited"), "{}", lines[2]);
    assert!(only(&requests).line.starts_with("GET /v1/members?account=acc_1"));
}

#[test]
fn groups_are_added_removed_and_set_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let (page, member) =
        (answer(&fixture("member_page").to_string()), answer(&fixture("member_reply_done").to_string()));
    let change = |more: &[&str], answers: Vec<String>| {
        let (server, requests) = Impostor::recording(&dev, answers);
        let done = ended(&mut server.client(&[&["members", "groups", "mem_1"], more].concat()));
        assert_eq!((done.code, done.err.as_str()), (0, ""), "{}", done.err);
        let last = requests.try_iter().last().unwrap();
        assert!(last.line.starts_with("PATCH /v1/members/mem_1 "), "{}", last.line);
        json_of(&last.body)
    };
    let both = || vec![page.clone(), member.clone()];
    let added = change(&["--add", "on-call", "--add", "release-managers"], both());
    assert_eq!(added, json!({"groups": ["on-call", "release-managers"]}));
    assert_eq!(change(&["--remove", "release-managers"], both()), json!({"groups": []}));
    assert_eq!(change(&["--set", "a,b"], vec![member.clone()]), json!({"groups": ["a", "b"]}));
    assert_eq!(change(&["--set", ""], vec![member.clone()]), json!({"groups": []}));
    let unknown =
        ended(&mut Impostor::start(&dev, vec![page.clone()]).client(&["members", "groups", "mem_9", "--add", "x"]));
    assert!(unknown.code == 1 && unknown.err.contains("no member mem_9"), "{}", unknown.err);
    for wrong in [&[][..], &["--set", "a", "--add", "b"]] {
        assert_eq!(run(&[&["members", "groups", "mem_1"], wrong].concat()).code, 64, "{wrong:?}");
    }
}

#[test]
fn removing_asks_first_and_delegating_names_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let gone = "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n".to_owned();
    let (server, requests) = Impostor::recording(&dev, vec![gone]);
    let remove = ["members", "remove", "mem_1"];
    let refused = ended(&mut server.client(&remove));
    assert!(refused.code == 64 && refused.err.contains("--yes"), "{}", refused.err);
    let left = run_with_input(&mut on_terminal(&server.client(&remove), 100, &[]), "n\n");
    assert!(left.code == 1 && left.out.contains("nothing was removed"), "{}", left.out);
    assert_eq!(requests.try_iter().count(), 0);
    let removed = ended(&mut server.client(&[&remove[..], &["--yes"]].concat()));
    assert_eq!((removed.code, removed.out.as_str()), (0, "removed mem_1\n"), "{}", removed.err);
    assert!(only(&requests).line.starts_with("DELETE /v1/members/mem_1 "));

    let member = answer(&fixture("member_reply_done").to_string());
    let (server, requests) = Impostor::recording(&dev, vec![member]);
    let delegate = ["members", "delegate", "mem_1"];
    let until = "2026-12-24T08:00:00Z";
    let done = ended(&mut server.client(&[&delegate[..], &["--to", "mem_2", "--until", until]].concat()));
    assert_eq!(done.code, 0, "{}", done.err);
    let request = only(&requests);
    assert!(request.line.starts_with("POST /v1/members/mem_1/delegate "), "{}", request.line);
    assert_eq!(json_of(&request.body), json!({"to": "mem_2", "until": until}));
    assert_eq!(ended(&mut server.client(&[&delegate[..], &["--end"]].concat())).code, 0);
    assert_eq!(json_of(&only(&requests).body), json!({"to": null, "until": null}));
    for wrong in [&[][..], &["--to", "mem_2"], &["--until", until], &["--end", "--to", "mem_2", "--until", until]] {
        assert_eq!(run(&[&delegate[..], wrong].concat()).code, 64, "{wrong:?}");
    }
}

#[test]
fn a_key_has_an_owner_and_lists_show_whose_keys_are() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let (server, requests) = Impostor::recording(&dev, vec![created("key_created")]);
    let create = ["keys", "create", "--name", "agent", "--scope", "check", "--owner", "mem_1"];
    let made = ended(&mut server.client(&create));
    assert_eq!(made.code, 0, "{}", made.err);
    assert_eq!(json_of(&only(&requests).body)["owner"], "mem_1");
    let page = answer(&fixture("key_page_member").to_string());
    let table = ended(&mut Impostor::start(&dev, vec![page]).client(&["keys", "list"]));
    assert!(table.out.lines().next().unwrap().contains("  MEMBER  OWNER  LAST USED"), "{}{}", table.out, table.err);
    assert!(table.out.contains("mem_"), "{}", table.out);
}

#[test]
fn the_command_line_makes_verified_accounts_unless_it_says_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let mut account = fixture("account_reply_approvals");
    (account["approvals"], account["four_eyes"]) = ("verified".into(), false.into());
    let reply = answer(&account.to_string());
    let (server, requests) = Impostor::recording(&dev, vec![reply]);
    let create = ["accounts", "create", "--name", "Payments"];
    let made = ended(&mut server.client(&create));
    assert!(made.code == 0 && made.out.contains("approvals  verified"), "{}{}", made.out, made.err);
    assert_eq!(json_of(&only(&requests).body), json!({"name": "Payments", "approvals": "verified"}));
    ended(&mut server.client(&[&create[..], &["--approvals", "caller"]].concat()));
    assert_eq!(json_of(&only(&requests).body)["approvals"], "caller");

    let update = ["accounts", "update", "acc_1"];
    let changed =
        ended(&mut server.client(&[&update[..], &["--approvals", "verified", "--four-eyes", "off"]].concat()));
    assert!(changed.code == 0 && changed.out.contains("verified, four eyes off"), "{}{}", changed.out, changed.err);
    assert_eq!(json_of(&only(&requests).body), json!({"approvals": "verified", "four_eyes": false}));
    for wrong in [&[][..], &["--approvals", "nobody"], &["--four-eyes", "maybe"]] {
        assert_eq!(run(&[&update[..], wrong].concat()).code, 64, "{wrong:?}");
    }
}

#[test]
fn an_endpoint_names_the_events_that_it_gets() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let mut webhook = fixture("webhook_created");
    webhook["events"] = json!(["approval.*", "stop.*"]);
    let (server, requests) = Impostor::recording(&dev, vec![answer_with("201 Created", &webhook.to_string())]);
    let create = ["webhooks", "create", "--endpoint", "https://a.example.com", "--event", "approval.*"];
    let made = ended(&mut server.client(&[&create[..], &["--event", "stop.*"]].concat()));
    assert!(made.code == 0 && made.out.contains("events        approval.*,stop.*\n"), "{}{}", made.out, made.err);
    assert_eq!(json_of(&only(&requests).body)["events"], json!(["approval.*", "stop.*"]));
    let update = ["webhooks", "update", "x"];
    ended(&mut server.client(&[&update[..], &["--default-events"]].concat()));
    assert_eq!(json_of(&only(&requests).body), json!({"events": null}));
    ended(&mut server.client(&[&update[..], &["--event", "decision.recorded"]].concat()));
    assert_eq!(json_of(&only(&requests).body), json!({"events": ["decision.recorded"]}));
}
