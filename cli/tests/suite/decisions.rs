//! `stage0 decisions` against a running server, and against its downloaded log.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Dev, Ended, ended, run, stage0, wait_for};
use crate::impostor::{Impostor, answer};

const CHECKPOINTS: [&str; 2] = ["--checkpoint-seconds", "1"];

fn allowed(run_id: &str) -> Value {
    json!({"goal": "Read the weekly sales report", "success_criteria": ["a summary"], "tools": ["read_file"],
        "environment": "staging", "context": {"run_id": run_id}})
}

fn denied() -> Value {
    json!({"goal": "Deploy the hotfix to production", "success_criteria": ["it runs"], "side_effects": ["deploy"],
        "environment": "production", "context": {}})
}

fn json_of(ended: &Ended) -> Value {
    assert!(ended.err.is_empty(), "{}", ended.err);
    serde_json::from_str(&ended.out).unwrap()
}

fn decide(dev: &Dev, action: &Value) -> String {
    let answer: Value = serde_json::from_str(&dev.check(action, &["--json"]).out).unwrap();
    answer["request_id"].as_str().unwrap().to_owned()
}

fn ids(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().unwrap().iter();
    items.map(|item| item["request_id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn decisions_are_listed_newest_first_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let made = [decide(&dev, &allowed("run-1")), decide(&dev, &denied()), decide(&dev, &allowed("run-2"))];

    let table = dev.ask(&["decisions", "list"]);
    assert_eq!((table.code, table.err.as_str()), (0, ""));
    let lines: Vec<&str> = table.out.lines().collect();
    assert!(lines[0].starts_with("RECORDED ") && lines[0].ends_with(" REQUEST"), "{}", table.out);
    assert_eq!(lines.len(), 4);
    for (line, id) in lines[1..].iter().zip(made.iter().rev()) {
        assert!(line.ends_with(id.as_str()), "{line}");
    }
    assert!(lines[2].contains(" DENY ") && lines[2].contains(" production ") && lines[2].contains("SIDE_EFFECTS_NEED"));
    assert!(lines[1].contains(" ALLOW ") && lines[1].contains(" run-2 "), "{}", lines[1]);

    for (filter, found) in [
        (&["--verdict", "deny"][..], &made[1..2]),
        (&["--verdict", "DEFER"], &[]),
        (&["--environment", "staging", "--run-id", "run-2"], &made[2..]),
        (&["--code", "SIDE_EFFECTS_NEED_GUARDRAILS"], &made[1..2]),
        (&["--from", "-1h"], &made[..]),
        (&["--to", "-1h"], &[]),
        (&["--from", "2001-01-01T00:00:00Z", "--to", "2001-01-01T00:00:00Z"], &[]),
        (&["--limit", "2"], &made[1..]),
    ] {
        let listed = json_of(&dev.ask(&[&["decisions", "list", "--json"], filter].concat()));
        assert_eq!(ids(&listed), found.iter().rev().cloned().collect::<Vec<_>>(), "{filter:?}");
    }
    let oldest = json_of(&dev.ask(&["decisions", "list", "--json", "--oldest-first", "--limit", "2"]));
    assert_eq!(ids(&oldest), made[..2]);
    let first = dev.ask(&["decisions", "list", "--limit", "1"]);
    assert!(first.code == 0 && first.err.contains("newest 1; there may be more (--limit, --to)"), "{}", first.err);
    let none = dev.ask(&["decisions", "list", "--verdict", "DEFER"]);
    assert!(none.code == 0 && none.out.lines().count() == 1 && none.err.contains("no decision"), "{}", none.err);

    let shown = dev.ask(&["decisions", "show", &made[1]]);
    assert_eq!(shown.code, 0, "{}", shown.err);
    for part in ["DENY (NO_GO)\n", "SIDE_EFFECTS_NEED_GUARDRAILS", &made[1], "127.0.0.1", "production", "sequence "] {
        assert!(shown.out.contains(part), "{part}: {}", shown.out);
    }
    let raw = json_of(&dev.ask(&["decisions", "show", &made[1], "--json"]));
    assert_eq!((&raw["type"], &raw["request_id"]), (&json!("decision.recorded"), &json!(made[1])));
    let nobody = dev.ask(&["decisions", "show", "0190163d-8694-739b-aea5-966c26f8ad91"]);
    assert!(nobody.code == 1 && nobody.err.contains("404"), "{}", nobody.err);
    let operator = dev.data_dir.join("operator.key");
    let operator = dev.ask(&["decisions", "list", "--key-file", operator.to_str().unwrap()]);
    assert!(operator.code == 1 && operator.err.contains("403"), "{}", operator.err);
}

/// A running `stage0 decisions tail`.
struct Tail {
    child: Child,
    out: Receiver<String>,
    err: Receiver<String>,
}

impl Tail {
    fn start(dev: &Dev, more: &[&str]) -> Self {
        let mut command = dev.client(&[&["decisions", "tail"], more].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (out, err) = (lines_of(child.stdout.take().unwrap()), lines_of(child.stderr.take().unwrap()));
        let tail = Self { child, out, err };
        tail.says("waiting for decisions");
        tail
    }

    fn next(&self) -> String {
        self.out.recv_timeout(Duration::from_secs(60)).unwrap()
    }

    fn says(&self, what: &str) {
        let line = self.err.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(line.contains(what), "{what}: {line}");
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        // Both fail if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines_of(pipe: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines() {
            if sender.send(line.unwrap()).is_err() {
                return;
            }
        }
    });
    lines
}

#[test]
fn a_tail_prints_each_decision_once_even_across_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    decide(&dev, &denied());
    let (tail, denials) = (Tail::start(&dev, &[]), Tail::start(&dev, &["--verdict", "DENY", "--json"]));
    let first = [decide(&dev, &allowed("run-1")), decide(&dev, &denied())];
    for id in &first {
        let line = tail.next();
        assert!(line.ends_with(id.as_str()), "what was there before is not printed: {line}");
    }
    dev.kill();
    tail.says("waiting for the server: ");
    // The restarted server has another port, which the data directory names.
    let dev = Dev::start(dir.path());
    let third = decide(&dev, &denied());
    tail.says("the server answers again");
    let line = tail.next();
    assert!(line.ends_with(third.as_str()), "nothing is printed twice: {line}");
    for id in [&first[1], &third] {
        assert_eq!(serde_json::from_str::<Value>(&denials.next()).unwrap()["request_id"], id.as_str());
    }
    let pid = rustix::process::Pid::from_child(&tail.child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut tail = tail;
    let mut ended = None;
    // A shell's background job ignores the signal, and its children do.
    wait_for("the end by Ctrl-C, which a background job ignores", || {
        ended = tail.child.try_wait().unwrap();
        ended.is_some()
    });
    assert_eq!(ended.unwrap().signal(), Some(2), "Ctrl-C ends it");
}

#[test]
fn a_tail_ends_when_its_pipe_closes_and_does_not_start_without_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let mut command = dev.client(&["decisions", "tail"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let err = lines_of(child.stderr.take().unwrap());
    assert!(err.recv_timeout(Duration::from_secs(60)).unwrap().contains("waiting for decisions"));
    drop(child.stdout.take());
    decide(&dev, &denied());
    assert_eq!(child.wait().unwrap().code(), Some(0));

    let data_dir = dev.data_dir.clone();
    dev.kill();
    let refused = ended(stage0(&["decisions", "tail", "--data-dir"]).arg(data_dir));
    assert!(refused.code == 1 && refused.err.contains("cannot reach"), "{}", refused.err);
}

/// A server whose log is completely covered by checkpoints, and the downloaded log.
pub(crate) struct Exported {
    pub(crate) dev: Dev,
    pub(crate) file: PathBuf,
    pub(crate) keys: PathBuf,
}

impl Exported {
    pub(crate) fn of(dir: &Path) -> Self {
        let dev = Dev::start_with(&dir.join("data"), &CHECKPOINTS);
        for run in 0..5 {
            decide(&dev, &allowed(&format!("run-{run}")));
        }
        until_sealed(&dev);
        let (file, keys) = (dir.join("log.ndjson"), dir.join("keys.json"));
        let exported = dev.ask(&["decisions", "export", "--out", file.to_str().unwrap()]);
        assert_eq!(exported.code, 0, "{}", exported.err);
        let printed = dev.ask(&["decisions", "keys"]);
        assert_eq!(printed.code, 0, "{}", printed.err);
        std::fs::write(&keys, printed.out).unwrap();
        Self { dev, file, keys }
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        std::fs::read_to_string(&self.file).unwrap().lines().map(str::to_owned).collect()
    }

    /// Verifies the given lines offline.
    fn verify(&self, lines: &[String]) -> Ended {
        let file = self.file.with_extension("other");
        std::fs::write(&file, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        offline(&file, &self.keys, &[])
    }
}

/// Without a server: neither the working directory nor the environment names one.
pub(crate) fn offline(file: &Path, keys: &Path, more: &[&str]) -> Ended {
    let mut command = stage0(&["decisions", "verify", "--data-dir", "/nonexistent", "--file"]);
    ended(command.arg(file).arg("--keys").arg(keys).args(more))
}

fn until_sealed(dev: &Dev) {
    wait_for("a checkpoint over everything", || {
        let report = json_of(&dev.ask(&["decisions", "verify", "--json"]));
        assert_eq!(report["ok"], true, "{report}");
        report["unsealed"] == 0 && report["last_mark"].is_object()
    });
}

pub(crate) fn is_decision(line: &str) -> bool {
    line.starts_with(r#"{"type":"decision.recorded""#)
}

#[test]
fn an_untouched_log_verifies_on_the_server_and_offline() {
    let dir = tempfile::tempdir().unwrap();
    let log = Exported::of(dir.path());
    assert_eq!(std::fs::metadata(&log.file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(log.lines().iter().filter(|line| is_decision(line)).count(), 5);

    let there = log.dev.ask(&["decisions", "verify"]);
    assert_eq!(there.code, 0, "{}{}", there.out, there.err);
    assert!(there.out.starts_with("OK: ") && there.out.contains("records      5\n"), "{}", there.out);
    let here = offline(&log.file, &log.keys, &[]);
    assert_eq!(here.code, 0, "{}{}", here.out, here.err);
    assert_eq!(here.out, there.out, "both walk the same log");
    let mark = here.out.lines().last().unwrap().strip_prefix("last mark ").unwrap();
    let (mark, hint) = mark.split_once(' ').unwrap();
    assert!(hint.contains("--kept"), "{hint}");

    for ended in
        [log.dev.ask(&["decisions", "verify", "--kept", mark]), offline(&log.file, &log.keys, &["--kept", mark])]
    {
        assert_eq!(ended.code, 0, "{}{}", ended.out, ended.err);
    }
    let another = format!("{}:{}", mark.split_once(':').unwrap().0, "0".repeat(64));
    for ended in [
        log.dev.ask(&["decisions", "verify", "--kept", &another]),
        offline(&log.file, &log.keys, &["--kept", &another]),
    ] {
        assert!(ended.code == 1 && ended.out.contains("\naltered "), "{}{}", ended.out, ended.err);
    }
    let file = log.file.to_str().unwrap();
    assert_eq!(log.dev.ask(&["decisions", "verify", "--keys-from-server", "--file", file]).code, 0);

    let again = log.dev.ask(&["decisions", "export", "--out", file]);
    assert!(again.code == 1 && again.err.contains("cannot create `"), "no file is overwritten: {}", again.err);
    let piped = log.dev.ask(&["decisions", "export", "--out", "-", "--to", "-1h"]);
    assert_eq!((piped.code, piped.out.as_str()), (0, ""), "nothing is that old");
    assert!(piped.err.contains("the export is empty"), "{}", piped.err);
    let (empty, told) = (dir.path().join("empty.ndjson"), dir.path().join("told.ndjson"));
    let written = log.dev.ask(&["decisions", "export", "--to", "-1h", "--out", empty.to_str().unwrap()]);
    assert_eq!((written.code, written.out.as_str()), (0, "0 lines, 0 bytes\n"));
    assert!(written.err.contains("the export is empty") && empty.exists(), "{}", written.err);
    let told = json_of(&log.dev.ask(&["decisions", "export", "--json", "--out", told.to_str().unwrap()]));
    assert_eq!((&told["parts"], told["lines"].as_u64() >= Some(5)), (&json!(1), true), "{told}");
    let piped = log.dev.ask(&["decisions", "export", "--out", "-"]);
    assert!(piped.code == 0 && piped.out.lines().any(|line| line == log.lines()[0]), "{}", piped.err);
}

#[test]
fn every_change_to_a_log_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let log = Exported::of(dir.path());
    let whole = log.lines();
    assert_eq!(log.verify(&whole).code, 0);
    let decisions: Vec<usize> = (0..whole.len()).filter(|index| is_decision(&whole[*index])).collect();
    let marks: Vec<usize> = (0..whole.len()).filter(|index| !is_decision(&whole[*index])).collect();
    let (second, third) = (decisions[1], decisions[2]);
    let changed = |change: &dyn Fn(&mut Vec<String>)| {
        let mut lines = whole.clone();
        change(&mut lines);
        lines
    };
    for (what, finding, lines) in [
        ("a line removed", "missing", changed(&|lines| drop(lines.remove(second)))),
        ("the last line removed", "missing", changed(&|lines| drop(lines.remove(decisions[4])))),
        ("a verdict changed", "altered", changed(&|lines| lines[second] = lines[second].replace("ALLOW", "DENY"))),
        (
            "the last one changed",
            "altered",
            changed(&|lines| lines[decisions[4]] = lines[decisions[4]].replace("run-4", "run-5")),
        ),
        ("two lines swapped", "reordered", changed(&|lines| lines.swap(second, third))),
        ("a line twice", "duplicate", changed(&|lines| lines.insert(third, whole[second].clone()))),
        ("a line cut short", "unreadable", changed(&|lines| lines[second].truncate(40))),
        ("a line of nobody", "unreadable", changed(&|lines| lines.insert(second, "\u{1b}[2Jhello".to_owned()))),
        (
            "a mark changed",
            "bad_signature",
            changed(&|lines| lines[marks[0]] = lines[marks[0]].replace("\"number\":1", "\"number\":2")),
        ),
    ] {
        let ended = log.verify(&lines);
        assert_eq!((ended.code, ended.err.as_str()), (1, ""), "{what}: {}", ended.out);
        if !["unreadable", "bad_signature"].contains(&finding) {
            let row = ended.out.lines().find(|line| line.starts_with(finding)).unwrap();
            let named = decisions.iter().map(|index| serde_json::from_str::<Value>(&whole[*index]).unwrap());
            let mut named = named.map(|line| line["request_id"].as_str().unwrap().to_owned());
            assert!(named.any(|id| row.contains(&id)), "{what}: {row}");
        }
        assert!(ended.out.starts_with("NOT OK: "), "{what}: {}", ended.out);
        assert!(ended.out.contains(&format!("\n{finding} ")), "{what}: {}", ended.out);
    }
    let last = marks.last().unwrap();
    let cut = changed(&|lines| lines.truncate(*last));
    let kept = log.dev.ask(&["decisions", "verify"]);
    let kept = kept.out.lines().last().unwrap().split(' ').nth(2).unwrap().to_owned();
    std::fs::write(log.file.with_extension("cut"), cut.join("\n")).unwrap();
    let cut = offline(&log.file.with_extension("cut"), &log.keys, &["--kept", &kept]);
    assert!(cut.code == 1 && cut.out.contains("\nmark_missing "), "{}", cut.out);

    let report = offline(&log.file, &log.keys, &["--json"]);
    assert_eq!(serde_json::from_str::<Value>(&report.out).unwrap()["records"], 5);
}

#[test]
fn other_keys_prove_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let log = Exported::of(dir.path());
    let other = tempfile::tempdir().unwrap();
    let elsewhere = Dev::start(other.path());
    let keys = dir.path().join("other.json");
    std::fs::write(&keys, elsewhere.ask(&["decisions", "keys"]).out).unwrap();
    let wrong = offline(&log.file, &keys, &[]);
    assert!(wrong.code == 1 && wrong.out.contains("\nbad_signature "), "{}{}", wrong.out, wrong.err);
    assert!(wrong.out.lines().last().unwrap().starts_with("last mark -"), "no mark is worth keeping: {}", wrong.out);

    for (content, why) in [("{", "--keys"), (r#"{"items": []}"#, "it holds no key")] {
        std::fs::write(&keys, content).unwrap();
        let unusable = offline(&log.file, &keys, &[]);
        assert!(unusable.code == 1 && unusable.out.is_empty() && unusable.err.contains(why), "{}", unusable.err);
    }
    let missing = offline(&dir.path().join("missing"), &log.keys, &[]);
    assert!(missing.code == 1 && missing.err.contains("--file"), "{}", missing.err);
}

#[test]
fn deleted_decisions_are_gone_and_the_rest_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let log = Exported::of(dir.path());
    let refused = log.dev.ask(&["decisions", "delete", "--before", "-0s"]);
    assert!(refused.code == 64 && refused.err.contains("--yes"), "{}", refused.err);
    let nothing = log.dev.ask(&["decisions", "delete", "--before", "-1h", "--yes"]);
    assert!(nothing.code == 0 && nothing.out.contains("nothing"), "{}{}", nothing.out, nothing.err);
    let future = log.dev.ask(&["decisions", "delete", "--before", "2999-01-01T00:00:00Z", "--yes"]);
    assert!(future.code == 1 && future.err.contains("before"), "{}", future.err);

    let deleted = log.dev.ask(&["decisions", "delete", "--before", "-0s", "--yes"]);
    assert_eq!(deleted.code, 0, "{}", deleted.err);
    assert!(deleted.out.starts_with("deleted   5, ") && deleted.out.contains("\nmark      "), "{}", deleted.out);
    assert!(ids(&json_of(&log.dev.ask(&["decisions", "list", "--json"]))).is_empty());
    let last = decide(&log.dev, &denied());
    until_sealed(&log.dev);
    let report = json_of(&log.dev.ask(&["decisions", "verify", "--json"]));
    assert_eq!((&report["ok"], &report["records"], &report["deletions"]), (&json!(true), &json!(1), &json!(1)));
    assert_eq!(ids(&json_of(&log.dev.ask(&["decisions", "list", "--json"]))), [last]);

    let file = dir.path().join("after.ndjson");
    assert_eq!(log.dev.ask(&["decisions", "export", "--out", file.to_str().unwrap()]).code, 0);
    let after = offline(&file, &log.keys, &[]);
    assert_eq!(after.code, 0, "{}{}", after.out, after.err);
}

#[test]
fn short_and_empty_pages_do_not_end_a_list() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    for _ in 0..3 {
        decide(&dev, &denied());
    }
    let items = json_of(&dev.ask(&["decisions", "list", "--json"]))["items"].as_array().unwrap().clone();
    let page = |items: &[Value], next: Option<&str>| answer(&json!({"items": items, "next_cursor": next}).to_string());
    let pages = vec![page(&items[..1], Some("1.1")), page(&[], Some("2.1")), page(&items[1..], None)];
    let listed = ended(&mut Impostor::start(&dev, pages).client(&["decisions", "list"]));
    assert_eq!((listed.code, listed.out.lines().count()), (0, 4), "{}{}", listed.out, listed.err);
    assert!(listed.err.is_empty(), "{}", listed.err);
    let circle = vec![page(&items[..1], Some("1.1")), page(&items[1..2], Some("1.1"))];
    let listed = ended(&mut Impostor::start(&dev, circle).client(&["decisions", "list"]));
    assert_eq!((listed.code, listed.out.lines().count()), (0, 3), "a server that goes in circles ends: {}", listed.err);

    let old = json!({"message": "order: is not known to this call", "error": "validation_failed", "request_id": "r",
        "detail": {"detail": "x", "request_id": "r"},
        "errors": [{"path": "order", "code": "unknown", "message": "x"}]});
    let old = format!("HTTP/1.1 422 x\r\ncontent-length: {}\r\n\r\n{old}", old.to_string().len());
    let old = ended(&mut Impostor::start(&dev, vec![old]).client(&["decisions", "list"]));
    assert!(old.code == 1 && old.err.contains("--oldest-first"), "a gateway that is older: {}", old.err);

    let hostile = vec![answer(r#"{"items": [{"type": "\u001b[2J"}], "next_cursor": null}"#)];
    let hostile = ended(&mut Impostor::start(&dev, hostile).client(&["decisions", "list"]));
    assert!(hostile.code == 1 && hostile.err.contains("cannot be read"), "{}", hostile.err);
    assert!(!hostile.err.contains('\u{1b}'), "{:?}", hostile.err);
}

#[test]
fn wrong_arguments_are_exit_code_64_and_name_the_flag() {
    for (wrong, flag) in [
        (&["list", "--from", "yesterday"][..], "--from"),
        (&["list", "--from", "-1h", "--to", "-2h"], "--to"),
        (&["list", "--verdict", "MAYBE"], "--verdict"),
        (&["list", "--limit", "0"], "--limit"),
        (&["list", "--code", "lower"], "--code"),
        (&["show", "x"], "<REQUEST_ID>"),
        (&["export"], "--out"),
        (&["verify", "--kept", "1"], "--kept"),
        (&["verify", "--file", "x"], "--keys"),
        (&["verify", "--keys", "x"], "--file"),
        (&["verify", "--file", "x", "--keys", "x", "--keys-from-server"], "--keys-from-server"),
        (&["delete", "--yes"], "--before"),
        (&["delete", "--before", "-1h"], "--yes"),
    ] {
        let ended = run(&[&["decisions"], wrong].concat());
        assert_eq!((ended.code, ended.out.as_str()), (64, ""), "{wrong:?}: {}", ended.err);
        assert!(ended.err.contains(flag), "{wrong:?}: {}", ended.err);
    }
}
