//! `stage0 decisions export` and `verify` with a server or proxy that breaks off, refuses and repeats.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::decisions::{Exported, is_decision, offline};
use crate::harness::{Dev, ended, stage0};
use crate::impostor::{End, Impostor, Reply, answer, broken_answer};

const ENDS: [End; 3] = [End::Closed, End::Dropped, End::Reset];

/// The rest of an export after a decision, in chunks that do not end with a line.
fn exported(log: &[String], after: Option<&str>) -> Vec<u8> {
    let of = |line: &String| serde_json::from_str::<Value>(line).unwrap()["request_id"].as_str().map(str::to_owned);
    let from = after.map_or(0, |after| 1 + log.iter().position(|line| of(line).as_deref() == Some(after)).unwrap());
    let body: String = log[from..].iter().map(|line| format!("{line}\n")).collect();
    let mut bytes =
        b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for chunk in body.as_bytes().chunks(97) {
        bytes.extend(format!("{:x}\r\n", chunk.len()).bytes());
        bytes.extend(chunk);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\n\r\n");
    bytes
}

fn recorded_at(line: &str) -> String {
    serde_json::from_str::<Value>(line).unwrap()["recorded_at"].as_str().unwrap().to_owned()
}

/// The value of a parameter in the first line of a request.
fn parameter(request: &str, name: &str) -> Option<String> {
    let query = request.split(' ').nth(1)?.split_once('?')?.1;
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
}

fn error(status: &str, retry_after: Option<u32>, body: &Value) -> Vec<u8> {
    let retry = retry_after.map_or_else(String::new, |seconds| format!("retry-after: {seconds}\r\n"));
    let body = body.to_string();
    format!("HTTP/1.1 {status}\r\n{retry}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
        .into_bytes()
}

fn body_of(code: &str, message: &str) -> Value {
    json!({"message": message, "error": code, "detail": {"detail": message, "request_id": "r"}, "request_id": "r"})
}

#[test]
fn an_export_equals_the_log_wherever_the_download_breaks_off() {
    let dir = tempfile::tempdir().unwrap();
    let log = Exported::of(dir.path());
    // Marks between two decisions of a quiet account.
    let mut lines = log.lines();
    let marks: Vec<String> = lines.iter().filter(|line| !is_decision(line)).cloned().collect();
    for at in [0, 2] {
        lines.splice(at..at, marks.clone());
    }
    let whole: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (seen, served) = (Arc::clone(&asked), lines.clone());
    let mut turn = 0;
    let server = Impostor::judging(&log.dev, move |request| {
        let after = parameter(request, "after");
        seen.lock().unwrap().push((after.clone(), parameter(request, "from"), parameter(request, "to")));
        let mut bytes = exported(&served, after.as_deref());
        let end = ENDS[turn % 3];
        turn += 1;
        match turn {
            2 => return Reply { bytes: error("503 x", Some(0), &body_of("unavailable", "no log")), end },
            4 => return Reply { bytes: error("429 x", Some(1), &body_of("rate_limited", "two run")), end },
            6 => return Reply { bytes: error("502 x", None, &json!("<html>")), end },
            // The cut is in the head, in the length of a chunk, in a line, or at the end of a line.
            5 => bytes.truncate(20),
            7 => bytes.truncate(bytes.len() - 3),
            _ if turn < 14 => bytes.truncate(100 + turn * 211),
            _ => {}
        }
        Reply { bytes, end }
    });
    let arguments = ["decisions", "export", "--from", "2001-01-01T00:00:00Z", "--to", "2999-01-01T00:00:00Z", "--out"];
    let file = dir.path().join("cut.ndjson");
    let done = ended(&mut server.client(&[&arguments[..], &[file.to_str().unwrap()]].concat()));
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), whole);
    assert!(done.out.contains("in ") && done.out.contains(" parts"), "{}", done.out);
    assert!(done.err.contains("; continues ") && done.err.contains("the server answers 429: two run"), "{}", done.err);
    let asked = std::mem::take(&mut *asked.lock().unwrap());
    assert!(asked.len() > 7 && asked[0].0.is_none() && asked.last().unwrap().0.is_some(), "{asked:?}");
    assert!(asked.iter().all(|(_, from, to)| from == &asked[0].1 && to == &asked[0].2 && from.is_some()), "{asked:?}");
}

#[test]
fn an_export_to_a_pipe_has_each_line_once_and_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let log = Exported::of(dir.path());
    let (lines, mut turn) = (log.lines(), 0);
    let server = Impostor::judging(&log.dev, move |request| {
        let mut bytes = exported(&lines, parameter(request, "after").as_deref());
        turn += 1;
        if turn < 5 {
            bytes.truncate(bytes.len() / 2);
        }
        Reply { bytes, end: ENDS[turn % 3] }
    });
    let piped = ended(&mut server.client(&["decisions", "export", "--out", "-", "--progress"]));
    assert_eq!(piped.code, 0, "{}", piped.err);
    assert_eq!(piped.out, std::fs::read_to_string(&log.file).unwrap());
    let progress: Vec<&str> = piped.err.lines().filter(|line| line.contains(" lines, ")).collect();
    assert!(!progress.is_empty(), "progress was asked for: {}", piped.err);
    let times: Vec<String> = piped.out.lines().filter(|line| is_decision(line)).map(recorded_at).collect();
    for line in progress.iter().filter(|line| !line.starts_with(|c: char| c.is_ascii_digit() && !line.contains('T'))) {
        assert!(times.iter().any(|time| line.starts_with(&format!("{time}  "))), "the log's own time: {line}");
    }
    let file = dir.path().join("piped.ndjson");
    std::fs::write(&file, &piped.out).unwrap();
    let verified = offline(&file, &log.keys, &["--progress"]);
    assert!(verified.code == 0 && verified.out.starts_with("OK: "), "{}{}", verified.out, verified.err);
}

#[test]
fn an_older_gateway_that_cannot_resume_is_named_and_no_file_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let log = Exported::of(dir.path());
    let lines = log.lines();
    let server = Impostor::judging(&log.dev, move |request| {
        if parameter(request, "after").is_some() {
            let mut body = body_of("validation_failed", "after: is not known to this call");
            body["errors"] = json!([{"path": "after", "message": "is not known to this call"}]);
            return Reply { bytes: error("422 x", None, &body), end: End::Closed };
        }
        let mut bytes = exported(&lines, None);
        bytes.truncate(bytes.len() - 5);
        Reply { bytes, end: End::Dropped }
    });
    let file = dir.path().join("old.ndjson");
    let old = ended(&mut server.client(&["decisions", "export", "--out", file.to_str().unwrap()]));
    assert!(old.code == 1 && old.out.is_empty() && !file.exists(), "{}", old.err);
    for part in ["is older than this command line", "--from", "is not known to this call"] {
        assert!(old.err.contains(part), "{part}: {}", old.err);
    }
}

#[test]
fn a_download_resumes_at_a_time_if_its_last_decision_expired() {
    let dir = tempfile::tempdir().unwrap();
    let log = Exported::of(dir.path());
    let lines = log.lines();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (seen, mut turn) = (Arc::clone(&asked), 0);
    let server = Impostor::judging(&log.dev, move |request| {
        turn += 1;
        seen.lock().unwrap().push((parameter(request, "from"), parameter(request, "after")));
        let mut bytes = exported(&lines, None);
        match turn {
            1 => bytes.truncate(bytes.len() / 2),
            2 => {
                let mut body = body_of("validation_failed", "after: there is no decision with this id");
                body["errors"] = json!([{"path": "after", "message": "there is no decision with this id"}]);
                bytes = error("422 x", None, &body);
            }
            _ => {}
        }
        Reply { bytes, end: End::Closed }
    });
    let piped = ended(&mut server.client(&["decisions", "export", "--out", "-"]));
    assert_eq!(piped.code, 0, "{}", piped.err);
    assert_eq!(piped.out, std::fs::read_to_string(&log.file).unwrap());
    assert!(piped.err.contains("has expired; continues from 20"), "{}", piped.err);
    let asked = std::mem::take(&mut *asked.lock().unwrap());
    assert!(asked[0] == (None, None) && asked[1].1.is_some(), "{asked:?}");
    assert!(asked[2].0.is_some() && asked[2].1.is_none() && asked.len() == 3, "{asked:?}");
}

#[test]
fn a_download_without_progress_fails_and_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"));
    let file = dir.path().join("log.ndjson");
    let patience = |server: &Impostor<'_>, out: &str| {
        let mut command = server.client_with_timeout(&["decisions", "export", "--out", out], "1");
        ended(&mut command)
    };
    let cut = Impostor::start(&dev, vec![broken_answer("{\"type\":\"decision.recorded\"}\n")]);
    let busy = error("429 x", Some(3600), &body_of("rate_limited", "two run"));
    let busy = Impostor::start(&dev, vec![String::from_utf8(busy).unwrap()]);
    let endless = "HTTP/1.1 200 OK\r\n\r\n{\"type\":\"decision.recorded\"}\n".to_owned();
    let endless = Impostor::start(&dev, vec![endless]);
    for (server, why) in [(&cut, "broke off"), (&busy, "answers 429"), (&endless, "does not say where it ends")] {
        let given_up = patience(server, file.to_str().unwrap());
        assert!(given_up.code == 1 && given_up.out.is_empty(), "{why}: {}", given_up.err);
        assert!(given_up.err.contains(why), "{why}: {}", given_up.err);
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["data"], "{why}");
    }
    let piped = patience(&cut, "-");
    assert!(piped.code == 1 && piped.err.contains("broke off"), "{}", piped.err);
    assert_eq!(piped.out, "{\"type\":\"decision.recorded\"}\n", "once");
    let data_dir = dev.data_dir.clone();
    dev.kill();
    let gone = ended(stage0(&["decisions", "export", "--data-dir"]).arg(data_dir).arg("--out").arg(&file));
    assert!(gone.code == 1 && gone.err.contains("cannot reach") && !file.exists(), "{}", gone.err);
}

#[test]
fn a_busy_server_is_asked_to_verify_again_after_retry_after() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let busy = String::from_utf8(error("429 x", Some(0), &body_of("rate_limited", "many walks"))).unwrap();
    let report = json!({"ok": true, "records": 3, "writers": 1, "checkpoints": 1, "deletions": 0, "unsealed": 0,
        "first_at": null, "last_at": null, "last_mark": null, "findings": [], "more_findings": 0});
    let server = Impostor::start(&dev, vec![busy.clone(), busy, answer(&report.to_string())]);
    let verified = ended(&mut server.client(&["decisions", "verify"]));
    assert!(verified.code == 0 && verified.out.starts_with("OK: "), "{}{}", verified.out, verified.err);
    assert!(verified.err.contains("many walks (request r); retried in"), "{}", verified.err);
    let forbidden = String::from_utf8(error("403 x", Some(0), &body_of("scope_missing", "no"))).unwrap();
    let refused = ended(&mut Impostor::start(&dev, vec![forbidden]).client(&["decisions", "verify"]));
    assert!(refused.code == 1 && refused.err.contains("403"), "{}", refused.err);
}
