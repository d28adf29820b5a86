//! What an exporter that is taken over can do to the proof of the log: with its credentials, its message keys and all
//! that it may ask. Nothing that it removes, rewrites or forges passes a verification, and no mark is signed twice.
//!
//! The attacker here is a process of its own on the deployment's NATS; what a crash leaves behind is made the same way.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use stage0_backplane::nats::{Connection, MessageAuth, MessageKeys, NatsConfig};
use stage0_backplane::testing::wait_for;
use stage0_backplane::{Backplane, Batch, EntryFilter, EntryKind, Position, Seek};
use stage0_contract::{
    AccountId, ApiKey, Caller, ChainVerifier, Deletion, DeletionPermit, Expiry, Head, LineHash, LineHeader, LineType,
    Link, ManageReply, Mark, MarkBody, MarkSigned, PermitDeletion, Previous, PublicKeys, Refusal, Report, Role,
    SignMark, VerifyKey, VerifyKeyReply, Window,
};
use stage0_tests::{Api, Stack};
use tokio::time::Instant;

use crate::retention::{data, history, wait_for_removal};
use crate::tampering::{decisions, entries, marks, put};

const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

fn soon() -> Instant {
    Instant::now() + WAIT_TIMEOUT
}

/// What a process has that has a role's credentials.
struct Insider {
    backplane: Backplane,
    account: AccountId,
}

impl Insider {
    async fn with_keys_of(role: Role, stack: &Stack) -> Self {
        let text = std::fs::read_to_string(stack.keys_dir().join(format!("{role}.keys"))).unwrap();
        let auth = MessageAuth::new(&MessageKeys::parse(&text).unwrap(), role, true).unwrap();
        let config = NatsConfig {
            auth: Some(Arc::clone(&auth)),
            ..NatsConfig::new(stack.nats.as_ref().unwrap().url(), "insider")
        };
        let backplane = Connection::open(&config).await.unwrap().backplane();
        Self { backplane, account: AccountId::parse(&stack.account).unwrap() }
    }

    async fn lines(&self, kind: EntryKind) -> Vec<Vec<u8>> {
        let read = self.backplane.log.read(&self.account, EntryFilter::Only(kind), Seek::Start, 4 << 20, soon());
        let chunk = read.await.unwrap();
        chunk.entries.iter().flat_map(|entry| entry.lines().map(<[u8]>::to_vec)).collect()
    }

    async fn last_mark(&self) -> (Mark, String, Position) {
        let entry = self.backplane.log.last(&self.account, EntryKind::Mark, soon()).await.unwrap().expect("a mark");
        let line = String::from_utf8(entry.lines.to_vec()).unwrap();
        (serde_json::from_str(&line).unwrap(), line, entry.position)
    }

    /// The next mark as an exporter makes it.
    async fn next(&self, body: MarkBody) -> Mark {
        let (last, line, _) = self.last_mark().await;
        let hash = LineHash::of(line.as_bytes());
        let now = Timestamp::from_millisecond(Timestamp::now().as_millisecond()).unwrap();
        Mark {
            body,
            number: last.number + 1,
            previous: Some(Previous { hash, recorded_at: last.recorded_at, expires_at: last.expires_at }),
            recorded_at: now,
            expires_at: now.as_second() + 31 * 86_400,
            ..last
        }
    }

    async fn ask(&self, mark: Mark) -> ManageReply<MarkSigned> {
        self.ask_with(mark, None).await
    }

    async fn ask_with(&self, mark: Mark, permit: Option<DeletionPermit>) -> ManageReply<MarkSigned> {
        let asked = SignMark { mark, last: None, takes_earlier: false, permit };
        self.backplane.requests.request(&asked, WAIT_TIMEOUT).await.unwrap()
    }

    async fn sign(&self, mark: Mark) -> String {
        match self.ask(mark).await {
            ManageReply::Done(MarkSigned { line, earlier: false }) => line,
            other => panic!("{other:?}"),
        }
    }

    async fn is_refused(&self, mark: Mark) {
        let answer = self.ask(mark).await;
        assert!(matches!(answer, ManageReply::Refused(Refusal::Conflict(_))), "{answer:?}");
    }

    async fn append_mark(&self, line: &str) {
        let (_, _, after) = self.last_mark().await;
        let line = line.to_owned().into();
        self.backplane.log.append_mark(&self.account, line, Some(after), soon()).await.unwrap();
    }

    async fn purge(&self, kind: EntryKind) {
        let last = self.backplane.log.last(&self.account, kind, soon()).await.unwrap().expect("an entry");
        self.backplane.log.remove_through(&self.account, kind, last.position, soon()).await.unwrap();
    }
}

async fn is_sealed(stack: &Stack) {
    wait_for("a mark for all", WAIT_TIMEOUT, async || stack.api.verify().await["unsealed"] == 0).await;
}

fn kinds(report: &Value) -> Vec<&str> {
    report["findings"].as_array().unwrap().iter().map(|found| found["kind"].as_str().unwrap()).collect()
}

/// A stack on NATS whose decisions are all sealed, and somebody with its exporter's credentials.
async fn taken_over() -> (Stack, Insider) {
    let stack = Stack::build().nats().await;
    for _ in 0..10 {
        stack.api.decide(&Api::forbidden()).await;
    }
    is_sealed(&stack).await;
    assert_eq!(stack.api.verify().await["ok"], true);
    let insider = Insider::with_keys_of(Role::AuditExport, &stack).await;
    (stack, insider)
}

#[tokio::test]
async fn an_account_whose_log_was_emptied_does_not_verify() {
    let (stack, insider) = taken_over().await;
    insider.purge(EntryKind::Decisions).await;
    insider.purge(EntryKind::Mark).await;
    let report = stack.api.verify().await;
    assert_eq!((&report["ok"], kinds(&report)), (&json!(false), vec!["mark_missing"]), "{report:#}");
    // Neither does it once it goes on.
    stack.api.decide(&Api::forbidden()).await;
    is_sealed(&stack).await;
    let report = stack.api.verify().await;
    assert_eq!(report["ok"], false, "{report:#}");
}

#[tokio::test]
async fn decisions_that_were_removed_without_a_mark_are_missing() {
    let (stack, insider) = taken_over().await;
    insider.purge(EntryKind::Decisions).await;
    let report = stack.api.verify().await;
    assert_eq!((&report["ok"], kinds(&report)), (&json!(false), vec!["missing"]), "{report:#}");
}

#[tokio::test]
async fn history_that_was_rewritten_gets_no_signature() {
    let (stack, insider) = taken_over().await;
    let next = insider.next(MarkBody::Checkpoint {}).await;
    let rewritten = |head: &Head| Head { hash: LineHash::of(b"ALLOW instead of DENY"), ..*head };
    let heads: Vec<Head> = next.heads.iter().map(rewritten).collect();
    // The same marks once more, the last one once more, and a next one over other decisions.
    let (last, ..) = insider.last_mark().await;
    insider.is_refused(Mark { number: 1, previous: None, heads: heads.clone(), ..next.clone() }).await;
    insider.is_refused(Mark { heads: heads.clone(), ..last }).await;
    insider.is_refused(Mark { heads, ..next.clone() }).await;
    // Nor one that takes decisions back, leaves them out or follows nothing.
    let back = next.heads.iter().map(|head| Head { sequence: head.sequence - 1, ..*head }).collect();
    insider.is_refused(Mark { heads: back, ..next.clone() }).await;
    insider.is_refused(Mark { heads: Vec::new(), ..next.clone() }).await;
    insider.is_refused(Mark { number: next.number + 1, ..next.clone() }).await;
    let alarm = |line: &str| line.contains("mark was not signed").then_some(());
    stack.keystore.as_ref().unwrap().wait_for("the alarm", alarm);
    // A mark that was requested by a process that reads the log is signed.
    insider.sign(next).await;
}

#[tokio::test]
async fn only_the_operator_can_shorten_a_retention() {
    let (stack, insider) = taken_over().await;
    let (last, ..) = insider.last_mark().await;
    let now = Timestamp::now();
    let expiry = |retention_days: u32, horizon: Timestamp| {
        let (before, expired) = (horizon, last.heads.clone());
        MarkBody::Expiry(Expiry { horizon, retention_days, before, from: None, to: None, count: 10, expired })
    };
    for (days, horizon) in [(30, now), (1, now), (1, now - SignedDuration::from_hours(24))] {
        insider.is_refused(insider.next(expiry(days, horizon)).await).await;
    }
    let report = stack.api.verify().await;
    assert_eq!(report["ok"], true, "{report:#}");
}

#[tokio::test]
async fn an_empty_or_forged_message_is_shown_and_does_not_keep_the_account_from_being_sealed() {
    for what in ["empty mark", "forged mark", "empty decision"] {
        let (stack, insider) = taken_over().await;
        let mut kind = "unreadable";
        if what == "empty mark" {
            insider.append_mark("").await;
        } else if what == "forged mark" {
            kind = "bad_signature";
            insider.append_mark(&serde_json::to_string(&insider.next(MarkBody::Checkpoint {}).await).unwrap()).await;
        } else {
            let gateway = Insider::with_keys_of(Role::Gateway, &stack).await;
            let batch = Batch { account: gateway.account.clone(), id: "empty".to_owned(), lines: "".into() };
            let appended = gateway.backplane.log.append(vec![batch], soon()).await;
            appended.into_iter().for_each(|one| one.unwrap());
        }
        let report = stack.api.verify().await;
        assert_eq!((&report["ok"], kinds(&report)), (&json!(false), vec![kind]), "{what}: {report:#}");
        assert_eq!(offline(&stack).await.findings.len(), 1, "{what}");
        let sealed = report["last_mark"]["number"].as_u64().unwrap();
        stack.api.decide(&Api::harmless()).await;
        wait_for("a mark behind it", WAIT_TIMEOUT, async || {
            let report = stack.api.verify().await;
            report["unsealed"] == 0 && report["last_mark"]["number"].as_u64().unwrap() > sealed
        })
        .await;
    }
}

#[tokio::test]
async fn an_empty_entry_on_the_disk_is_shown() {
    for table in [marks(), decisions()] {
        let mut stack = Stack::build().dev().await;
        stack.api.decide(&Api::harmless()).await;
        is_sealed(&stack).await;
        stack.stop_dev();
        let last = entries(&data(&stack), marks(), &stack.account).pop().unwrap().0;
        put(&data(&stack), table, &stack.account, &[(last + 1, Some(Vec::new()))]);
        stack.start_dev();
        let report = stack.api.verify().await;
        // Behind an empty mark the last one is stored once more, so that the next one can follow it.
        assert_eq!((&report["ok"], kinds(&report)[0]), (&json!(false), "unreadable"), "{report:#}");
    }
}

#[tokio::test]
async fn a_restored_log_backup_is_detected_and_the_account_continues() {
    let mut stack = Stack::build().dev().await;
    stack.api.decide(&Api::harmless()).await;
    is_sealed(&stack).await;
    stack.stop_dev();
    let (log, backup) = (data(&stack).join("decisions.redb"), stack.directory.path().join("backup"));
    std::fs::copy(&log, &backup).unwrap();
    stack.start_dev();
    for _ in 0..2 {
        stack.api.decide(&Api::harmless()).await;
        is_sealed(&stack).await;
    }
    stack.stop_dev();
    std::fs::copy(&backup, &log).unwrap();
    stack.start_dev();
    let report = stack.api.verify().await;
    assert_eq!((&report["ok"], kinds(&report)), (&json!(false), vec!["mark_missing"]), "{report:#}");
    stack.api.decide(&Api::harmless()).await;
    is_sealed(&stack).await;
    let report = stack.api.verify().await;
    assert!(report["ok"] == false && kinds(&report).contains(&"mark_missing"), "{report:#}");
}

/// What a program says that has the export and the public keys.
async fn offline(stack: &Stack) -> Report {
    let export = stack.api.get("/v1/decisions/export").await.text;
    let PublicKeys { items, .. } = serde_json::from_value(stack.api.get("/v1/signing-keys").await.body).unwrap();
    let window = Window {
        from: None,
        to: None,
        now: Timestamp::now(),
        horizon: Timestamp::UNIX_EPOCH,
        kept: None,
        signed: None,
    };
    let lines = || export.split_terminator('\n').map(str::as_bytes);
    let is_mark = |line: &&[u8]| !line.starts_with(br#"{"type":"decision.recorded""#) && !line.is_empty();
    let mut verifier = ChainVerifier::new(window, items, lines().filter(is_mark));
    lines().for_each(|line| verifier.read_line(line));
    verifier.finish()
}

async fn retention(stack: &Stack, days: u32) {
    let path = format!("/v1/accounts/{}", stack.account);
    stack.operator.patch(&path, &json!({"retention_days": days})).await.expect(200);
}

/// The marks of removals in an export.
async fn removals(stack: &Stack) -> Vec<Value> {
    let export = stack.api.get("/v1/decisions/export").await.text;
    let marks = export.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    marks.filter(|line| line["type"] == "decisions.expired").collect()
}

#[tokio::test]
async fn a_temporarily_shortened_retention_leaves_marks_and_the_log_verifies() {
    let (mut stack, _) = history(&[(20, 30), (9, 30), (2, 30)]).await;
    stack.start_dev();
    stack.api.decide(&Api::harmless()).await;
    // But for the three that were put in behind the exporter's back.
    wait_for("a mark", WAIT_TIMEOUT, async || stack.api.verify().await["unsealed"] == 3).await;
    assert!(offline(&stack).await.ok);
    retention(&stack, 1).await;
    // Two of today are left.
    wait_for_removal(&mut stack, 2).await;
    stack.start_dev();
    retention(&stack, 30).await;
    for _ in 0..2 {
        let report = stack.api.verify().await;
        assert_eq!(report["ok"], true, "{report:#}");
        let report = offline(&stack).await;
        assert!(report.ok, "{:#?}", report.findings);
        let removals = removals(&stack).await;
        assert_eq!(removals.iter().map(|mark| mark["count"].as_u64().unwrap()).sum::<u64>(), 3, "{removals:#?}");
        assert_eq!(report.expiries, removals.len() as u64);
        for mark in removals {
            assert_eq!((&mark["retention_days"], &mark["expired"][0]["sequence"].is_u64()), (&json!(1), &true));
            let at = |name: &str| mark[name].as_str().unwrap().parse::<Timestamp>().unwrap();
            assert!(at("to") < at("before") && at("before") <= at("horizon"));
            let age = at("recorded_at").duration_since(at("horizon"));
            assert_eq!(age.as_hours(), 24, "{mark:#}");
        }
        stack.restart_dev();
        stack.api.decide(&Api::harmless()).await;
        is_sealed(&stack).await;
    }
    // But nothing else is excused by them.
    stack.stop_dev();
    let first = entries(&data(&stack), decisions(), &stack.account).remove(0).0;
    put(&data(&stack), decisions(), &stack.account, &[(first, None)]);
    stack.start_dev();
    let report = stack.api.verify().await;
    assert_eq!((&report["ok"], kinds(&report)), (&json!(false), vec!["missing"]), "{report:#}");
}

/// Lines of earlier days, as a gateway appends them.
async fn append_history(stack: &Stack, ages: &[i64]) {
    let gateway = Insider::with_keys_of(Role::Gateway, stack).await;
    let writer = serde_json::from_value(json!("01890000-0000-7000-8000-000000000001")).unwrap();
    let mut head: Option<Head> = None;
    for (place, days) in ages.iter().enumerate() {
        let recorded_at = Timestamp::from_second(Timestamp::now().as_second() - days * 86_400).unwrap();
        let chain = Link {
            writer,
            sequence: head.map_or(1, |head| head.sequence + 1),
            previous: head.map(|head| head.as_previous()),
            after: None,
            mark: None,
        };
        let expires_at = recorded_at.as_second() + 30 * 86_400;
        let start = LineHeader { line: LineType::Decision, chain, recorded_at, expires_at };
        let rest = json!({"account": stack.account, "request_id": place.to_string(), "verdict": "DENY"});
        let line = start.with(&serde_json::to_vec(&rest).unwrap()).unwrap();
        head = Some(start.head(&line));
        let batch = Batch { account: gateway.account.clone(), id: format!("old-{place}"), lines: line.into() };
        let appended = gateway.backplane.log.append(vec![batch], soon()).await;
        appended.into_iter().for_each(|one| one.unwrap());
    }
}

#[tokio::test]
async fn on_nats_a_removal_by_retention_leaves_marks_too() {
    let mut stack = Stack::build().nats().await;
    append_history(&stack, &[20, 9, 2]).await;
    stack.api.decide(&Api::harmless()).await;
    is_sealed(&stack).await;
    retention(&stack, 1).await;
    let insider = Insider::with_keys_of(Role::AuditExport, &stack).await;
    for left in (1..=3).rev() {
        // A start is a look at the clock, and takes one of them.
        stack.restart_exporter(0);
        wait_for("a removal", WAIT_TIMEOUT, async || insider.lines(EntryKind::Decisions).await.len() <= left).await;
    }
    retention(&stack, 30).await;
    let report = stack.api.verify().await;
    assert_eq!(report["ok"], true, "{report:#}");
    let report = offline(&stack).await;
    assert!(report.ok && report.expiries == 3, "{report:#?}");
}

/// A deletion of all that is there, as an exporter asks for it.
/// A deletion that a caller asked for, as the exporter has it signed, and the keystore's permit for it.
async fn deletion(stack: &Stack, insider: &Insider) -> (Mark, DeletionPermit) {
    let gateway = Insider::with_keys_of(Role::Gateway, stack).await.backplane.requests;
    let key = ApiKey::parse(stack.api.key.as_ref().unwrap()).unwrap();
    let verified = gateway.request(&VerifyKey { key: key.clone(), request_id: None }, WAIT_TIMEOUT).await.unwrap();
    let VerifyKeyReply::Valid(identity) = verified else { panic!("{verified:?}") };
    let before = Timestamp::now();
    let permit = PermitDeletion { caller: Caller::new(&identity, &key), before };
    let ManageReply::Done(permit) = gateway.request(&permit, WAIT_TIMEOUT).await.unwrap() else { panic!("no permit") };
    let (last, ..) = insider.last_mark().await;
    let body = Deletion {
        before,
        from: None,
        to: None,
        count: 10,
        through: 0,
        deleted: last.heads,
        requested_by: identity.key_id,
    };
    (insider.next(MarkBody::Deletion(body)).await, permit)
}

#[tokio::test]
async fn a_retention_removal_is_finished_after_its_exporter_dies_past_the_mark() {
    for stored in [true, false] {
        let (mut stack, insider) = taken_over().await;
        stack.exporters[0].kill();
        // It died behind the append, or between signature and append.
        let (mark, permit) = deletion(&stack, &insider).await;
        assert_eq!(insider.ask(mark.clone()).await, ManageReply::Failed, "nobody asked for it");
        let signed = insider.ask_with(mark, Some(permit)).await;
        let ManageReply::Done(MarkSigned { line, earlier: false }) = signed else { panic!("{signed:?}") };
        if stored {
            insider.append_mark(&line).await;
        }
        stack.restart_exporter(0);
        stack.api.decide(&Api::harmless()).await;
        wait_for("the end of the removal", WAIT_TIMEOUT, async || insider.lines(EntryKind::Decisions).await.len() == 1)
            .await;
        is_sealed(&stack).await;
        let report = stack.api.verify().await;
        assert_eq!((&report["ok"], &report["deletions"]), (&json!(true), &json!(1)), "{report:#}");
        let marks = insider.lines(EntryKind::Mark).await;
        assert_eq!(marks.iter().filter(|mark| *mark == line.as_bytes()).count(), 1);
    }
}

#[tokio::test]
async fn two_exporters_of_one_account_have_all_of_it_sealed() {
    let stack = Stack::build().exporters(2).nats().await;
    for _ in 0..30 {
        stack.api.decide(&Api::harmless()).await;
        stack.api.delete(&format!("/v1/decisions?before={}", Timestamp::now())).await.expect(200);
    }
    stack.api.decide(&Api::harmless()).await;
    is_sealed(&stack).await;
    let report = stack.api.verify().await;
    assert_eq!(report["ok"], true, "{report:#}");
    assert!(!stack.said().contains("mark was not signed"), "{}", stack.said());
}
