//! An attacker who can write to the disk can change the log; verification finds each way of doing so and names it.

use std::path::Path;

use redb::{Database, ReadableDatabase as _, TableDefinition};
use serde_json::{Value, json};
use stage0_tests::{Api, Stack};

type Entries = TableDefinition<'static, (&'static str, u64), &'static [u8]>;

const DECISIONS: Entries = TableDefinition::new("decisions");
const MARKS: Entries = TableDefinition::new("marks");

/// The entries of one account in a stopped `dev`'s log, by position.
pub(crate) fn entries(data: &Path, table: Entries, account: &str) -> Vec<(u64, Vec<u8>)> {
    let database = Database::open(data.join("decisions.redb")).unwrap();
    let transaction = database.begin_read().unwrap();
    let table = transaction.open_table(table).unwrap();
    let found = table.range((account, 0)..=(account, u64::MAX)).unwrap();
    found.map(|entry| entry.map(|(key, lines)| (key.value().1, lines.value().to_vec())).unwrap()).collect()
}

pub(crate) fn put(data: &Path, table: Entries, account: &str, entries: &[(u64, Option<Vec<u8>>)]) {
    let database = Database::open(data.join("decisions.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut table = transaction.open_table(table).unwrap();
        for (position, lines) in entries {
            match lines {
                Some(lines) => drop(table.insert((account, *position), lines.as_slice()).unwrap()),
                None => drop(table.remove((account, *position)).unwrap()),
            }
        }
    }
    transaction.commit().unwrap();
}

pub(crate) const fn marks() -> Entries {
    MARKS
}

pub(crate) const fn decisions() -> Entries {
    DECISIONS
}

/// A stopped `dev` whose log has ten decisions by each of two writers, with a mark behind each ten.
struct Victim {
    stack: Stack,
    decisions: Vec<(u64, Vec<u8>)>,
    marks: Vec<(u64, Vec<u8>)>,
}

impl Victim {
    async fn new() -> Self {
        let mut stack = Stack::build().dev().await;
        for n in 0..20 {
            stack.api.decide(&if n % 2 == 0 { Api::forbidden() } else { Api::harmless() }).await;
            if n == 9 {
                stack.restart_dev();
            }
        }
        let report = stack.api.verify().await;
        assert_eq!((&report["ok"], &report["writers"]), (&json!(true), &json!(2)), "{report:#}");
        stack.stop_dev();
        let data = stack.directory.path().join("data");
        let (decisions, marks) = (entries(&data, DECISIONS, &stack.account), entries(&data, MARKS, &stack.account));
        assert_eq!(decisions.len(), 20, "one entry for each");
        assert!(marks.len() >= 2, "{} marks", marks.len());
        Self { stack, decisions, marks }
    }

    fn change(&self, table: Entries, changes: &[(u64, Option<Vec<u8>>)]) {
        put(&self.stack.directory.path().join("data"), table, &self.stack.account, changes);
    }

    /// What a verification says after a restart, and that a new decision hides nothing of it.
    async fn findings(mut self, query: &str) -> Vec<Value> {
        self.stack.start_dev();
        let path = format!("/v1/decisions/verify{query}");
        let first = self.stack.api.get(&path).await.expect(200);
        self.stack.api.decide(&Api::harmless()).await;
        let report = self.stack.api.get(&path).await.expect(200);
        assert_eq!(report["ok"], report["findings"] == json!([]), "{report:#}");
        assert_eq!(first["findings"], report["findings"], "a new decision changes what is found");
        report["findings"].as_array().unwrap().clone()
    }
}

/// Kind, sequence and count of each finding.
fn short(findings: &[Value]) -> Vec<(&str, u64, u64)> {
    findings
        .iter()
        .map(|f| (f["kind"].as_str().unwrap(), f["sequence"].as_u64().unwrap_or(0), f["count"].as_u64().unwrap()))
        .collect()
}

/// The same line with the verdict that somebody would like better.
fn altered(line: &[u8]) -> Vec<u8> {
    let text = String::from_utf8(line.to_vec()).unwrap();
    let (was, wanted) = if text.contains("\"verdict\":\"DENY\"") { ("DENY", "ALLOW") } else { ("ALLOW", "DENY") };
    let other = text.replacen(&format!("\"verdict\":\"{was}\""), &format!("\"verdict\":\"{wanted}\""), 1);
    assert_ne!(other, text);
    other.into_bytes()
}

#[tokio::test]
async fn an_untouched_log_has_no_finding() {
    assert_eq!(short(&Victim::new().await.findings("").await), []);
}

#[tokio::test]
async fn a_removed_decision_is_reported_missing() {
    let victim = Victim::new().await;
    victim.change(DECISIONS, &[(victim.decisions[4].0, None)]);
    assert_eq!(short(&victim.findings("").await), [("missing", 5, 1)]);
}

#[tokio::test]
async fn a_removed_writer_is_reported_missing() {
    let victim = Victim::new().await;
    let all: Vec<_> = victim.decisions[..10].iter().map(|(position, _)| (*position, None)).collect();
    victim.change(DECISIONS, &all);
    let findings = victim.findings("").await;
    assert!(!findings.is_empty() && findings.iter().all(|f| f["kind"] == "missing"), "{findings:#?}");
}

#[tokio::test]
async fn the_last_decisions_cut_off_are_missing_because_a_mark_names_them() {
    let victim = Victim::new().await;
    victim.change(DECISIONS, &[(victim.decisions[18].0, None), (victim.decisions[19].0, None)]);
    assert_eq!(short(&victim.findings("").await), [("missing", 9, 2)]);
}

#[tokio::test]
async fn a_changed_verdict_is_found() {
    let victim = Victim::new().await;
    let (position, line) = &victim.decisions[4];
    victim.change(DECISIONS, &[(*position, Some(altered(line)))]);
    assert_eq!(short(&victim.findings("").await), [("altered", 5, 1)]);
}

#[tokio::test]
async fn a_changed_verdict_of_the_last_decision_is_found() {
    let victim = Victim::new().await;
    let (position, line) = &victim.decisions[19];
    victim.change(DECISIONS, &[(*position, Some(altered(line)))]);
    assert_eq!(short(&victim.findings("").await), [("altered", 10, 1)]);
}

#[tokio::test]
async fn a_garbled_log_line_is_reported_unreadable_and_missing() {
    let victim = Victim::new().await;
    victim.change(DECISIONS, &[(victim.decisions[4].0, Some(b"{\"type\":\"decision.recorded\"".to_vec()))]);
    let findings = victim.findings("").await;
    let mut kinds: Vec<_> = findings.iter().map(|f| f["kind"].as_str().unwrap()).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["missing", "unreadable"], "{findings:#?}");
}

#[tokio::test]
async fn a_duplicated_decision_is_found() {
    let victim = Victim::new().await;
    let (between, line) = (victim.decisions[6].0 + 1, victim.decisions[4].1.clone());
    victim.change(DECISIONS, &[(between, Some(line))]);
    assert_eq!(short(&victim.findings("").await), [("duplicate", 5, 1)]);
}

#[tokio::test]
async fn two_decisions_that_were_swapped_are_found() {
    let victim = Victim::new().await;
    let [(fourth, a), (fifth, b)] = [&victim.decisions[3], &victim.decisions[4]];
    victim.change(DECISIONS, &[(*fourth, Some(b.clone())), (*fifth, Some(a.clone()))]);
    let findings = victim.findings("").await;
    assert_eq!(short(&findings), [("reordered", 4, 1)], "{findings:#?}");
}

#[tokio::test]
async fn decisions_of_another_account_in_the_log_are_rejected() {
    let mut victim = Victim::new().await;
    victim.stack.start_dev();
    let (theirs, key, _) = victim.stack.operator.account("theirs", None, &["check"]).await;
    victim.stack.api.with_key(&key).decide(&Api::harmless()).await;
    victim.stack.stop_dev();
    let data = victim.stack.directory.path().join("data");
    let stolen = entries(&data, DECISIONS, &theirs).pop().unwrap().1;
    victim.change(DECISIONS, &[(victim.decisions[6].0 + 1, Some(stolen))]);
    let findings = victim.findings("").await;
    assert_eq!(
        findings.iter().map(|f| f["kind"].as_str().unwrap()).collect::<Vec<_>>(),
        ["unreadable"],
        "{findings:#?}"
    );
}

#[tokio::test]
async fn a_tail_cut_off_with_its_mark_is_found_by_the_keystore_and_with_a_kept_mark() {
    let mut victim = Victim::new().await;
    victim.stack.start_dev();
    let kept = victim.stack.api.verify().await["last_mark"].clone();
    victim.stack.stop_dev();
    let kept = format!("?kept={}:{}", kept["number"], kept["hash"].as_str().unwrap());
    let tail: Vec<_> = victim.decisions[10..].iter().map(|(position, _)| (*position, None)).collect();
    victim.change(DECISIONS, &tail);
    let marks: Vec<_> = victim
        .marks
        .iter()
        .filter(|(position, _)| *position > victim.decisions[10].0)
        .map(|(p, _)| (*p, None))
        .collect();
    assert!(!marks.is_empty());
    victim.change(MARKS, &marks);
    // What is left is a log as it once was: only who knows the last mark can tell.
    victim.stack.start_dev();
    for query in ["", &kept] {
        let report = victim.stack.api.get(&format!("/v1/decisions/verify{query}")).await.expect(200);
        let findings = report["findings"].as_array().unwrap();
        assert_eq!(short(findings)[0].0, "mark_missing", "{report:#}");
    }
}

#[tokio::test]
async fn a_kept_mark_that_is_in_the_log_is_no_finding() {
    let mut victim = Victim::new().await;
    victim.stack.start_dev();
    let kept = victim.stack.api.verify().await["last_mark"].clone();
    victim.stack.stop_dev();
    let kept = format!("?kept={}:{}", kept["number"], kept["hash"].as_str().unwrap());
    assert_eq!(short(&victim.findings(&kept).await), []);
}

#[tokio::test]
async fn a_removed_mark_is_reported_missing() {
    let victim = Victim::new().await;
    victim.change(MARKS, &[(victim.marks[0].0, None)]);
    let findings = victim.findings("").await;
    assert!(short(&findings).contains(&("mark_missing", 1, 1)), "{findings:#?}");
}

#[tokio::test]
async fn a_mark_that_was_changed_has_a_bad_signature() {
    let victim = Victim::new().await;
    let (position, line) = &victim.marks[0];
    let text = String::from_utf8(line.clone()).unwrap();
    let covered = text.split("\"covered\":").nth(1).unwrap().split(',').next().unwrap().to_owned();
    let other = text.replacen(&format!("\"covered\":{covered}"), "\"covered\":9999", 1);
    victim.change(MARKS, &[(*position, Some(other.into_bytes()))]);
    let findings = victim.findings("").await;
    assert!(findings.iter().any(|f| f["kind"] == "bad_signature"), "{findings:#?}");
}

#[tokio::test]
async fn a_message_that_was_deleted_from_nats_is_missing() {
    let stack = Stack::build().nats().await;
    for _ in 0..10 {
        stack.api.decide(&Api::harmless()).await;
    }
    let client = async_nats::connect(stack.nats.as_ref().unwrap().url()).await.unwrap();
    let stream = async_nats::jetstream::new(client).get_stream("S0_LOG").await.unwrap();
    let subject = format!("s0.log.{}.d", stack.account);
    let last = stream.get_last_raw_message_by_subject(&subject).await.unwrap();
    let line: Value = serde_json::from_slice(&last.payload).unwrap();
    let mut fifth = last.sequence;
    // Marks may stand between the decisions.
    loop {
        let message = stream.get_raw_message(fifth).await.unwrap();
        let line: Value = serde_json::from_slice(&message.payload).unwrap();
        if message.subject.as_str() == subject && line["chain"]["sequence"] == 5 {
            break;
        }
        fifth -= 1;
    }
    assert_eq!(line["chain"]["sequence"], 10);
    assert!(stream.delete_message(fifth).await.unwrap());
    let report = stack.api.verify().await;
    assert_eq!(short(report["findings"].as_array().unwrap()), [("missing", 5, 1)], "{report:#}");
    assert_eq!(report["ok"], false);
}
