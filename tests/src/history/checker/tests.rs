//! Made-up histories: each violation is found, and its harmless neighbour is not.

use std::time::Duration;

use super::check;
use crate::history::{Asked, Broken, Came, Change, Delivered, Found, History, Op, Promise, Record, Rules, What};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn op(at: u64, what: What, came: Came) -> Op {
    Op { start: seconds(at), end: seconds(at), gateway: 0, what, came }
}

fn asked(key: &str) -> Asked {
    Asked { account: "a".to_owned(), key: key.to_owned(), ..Asked::default() }
}

fn decided(id: &str, verdict: &str) -> Came {
    Came::Decided { id: id.to_owned(), verdict: verdict.to_owned(), approval: None }
}

fn change(at: u64, change: Change) -> Op {
    op(at, What::Change(change), Came::Done)
}

fn record(id: &str, verdict: &str) -> Record {
    Record {
        account: "a".to_owned(),
        id: id.to_owned(),
        verdict: verdict.to_owned(),
        key: "k".to_owned(),
        ..Record::default()
    }
}

fn delivery(id: &str, sequence: u64) -> Delivered {
    Delivered {
        account: "a".to_owned(),
        event: format!("dec_{id}"),
        sequence,
        decision: Some((id.to_owned(), "ALLOW".to_owned())),
        is_signed: true,
        body: sequence,
    }
}

/// Three checks of one key that were answered, recorded and delivered.
struct Case {
    history: History,
    found: Found,
    rules: Rules,
}

impl Case {
    fn sound() -> Self {
        let ids = ["r1", "r2", "r3"];
        let ops = ids.iter().zip(1..).map(|(id, at)| op(at, What::Check(asked("k")), decided(id, "ALLOW"))).collect();
        let found = Found {
            records: ids.iter().map(|id| record(id, "ALLOW")).collect(),
            deliveries: ids.iter().zip(1..).map(|(id, number)| delivery(id, number)).collect(),
            verified: [("a".to_owned(), (true, 3))].into(),
            ..Found::default()
        };
        let rules = Rules {
            verdicts: [("k".to_owned(), vec!["ALLOW".to_owned()])].into(),
            run_limit: 2,
            account_limits: [("a".to_owned(), 3)].into(),
            delivered: vec!["a".to_owned()],
        };
        Self { history: History { ops, faults: vec![] }, found, rules }
    }

    #[track_caller]
    fn finds(&self, promises: &[Promise]) {
        let findings = check(&self.history, &self.found, &self.rules);
        let found: Vec<_> = findings.iter().map(|finding| finding.promise).collect();
        assert_eq!(found, promises, "{findings:#?}");
    }

    fn asks(&mut self, at: u64, asked: Asked, came: Came) {
        self.history.ops.push(op(at, What::Check(asked), came));
    }

    /// A record that was delivered and counted.
    fn records(&mut self, record: Record) {
        let number = self.found.deliveries.len() as u64 + 1;
        let decision = Some((record.id.clone(), record.verdict.clone()));
        self.found.deliveries.push(Delivered { decision, ..delivery(&record.id, number) });
        self.found.records.push(record);
        self.found.verified.insert("a".to_owned(), (true, number));
        self.rules.account_limits.clear();
    }

    fn with_fault(&mut self, delays_notices: bool) {
        let what = "partition".to_owned();
        self.history.faults.push(Broken {
            from: seconds(9),
            healed: seconds(10),
            until: seconds(11),
            what,
            delays_notices,
        });
    }
}

#[test]
fn a_sound_history_has_no_finding() {
    Case::sound().finds(&[]);
}

#[test]
fn an_answer_without_its_record_is_found_and_a_record_without_its_answer_is_not() {
    let mut case = Case::sound();
    case.asks(5, asked("k"), decided("r4", "ALLOW"));
    case.finds(&[Promise::EveryAnswerIsRecorded]);
    let mut case = Case::sound();
    case.records(record("r4", "ALLOW"));
    case.asks(5, asked("k"), Came::Nothing("reset".to_owned()));
    case.finds(&[]);
}

#[test]
fn a_record_with_another_verdict_is_found() {
    let mut case = Case::sound();
    case.rules.verdicts.clear();
    case.records(record("r4", "DENY"));
    case.finds(&[]);
    case.asks(5, asked("k"), decided("r4", "ALLOW"));
    case.finds(&[Promise::EveryAnswerIsRecorded]);
}

#[test]
fn a_decision_that_is_recorded_twice_is_found() {
    let mut case = Case::sound();
    case.found.records.push(record("r3", "ALLOW"));
    case.found.verified.insert("a".to_owned(), (true, 4));
    case.finds(&[Promise::NothingIsRecordedTwice]);
}

#[test]
fn an_allow_that_the_policy_denies_is_found_answered_or_recorded() {
    let mut case = Case::sound();
    case.rules.verdicts.insert("k".to_owned(), vec!["ALLOW".to_owned(), "DEFER".to_owned()]);
    case.finds(&[]);
    case.rules.verdicts.insert("denied".to_owned(), vec!["DENY".to_owned()]);
    case.records(Record { key: "denied".to_owned(), ..record("r4", "DENY") });
    case.finds(&[]);
    case.records(Record { key: "denied".to_owned(), ..record("r5", "ALLOW") });
    case.finds(&[Promise::NoVerdictAgainstThePolicy]);
}

#[test]
fn a_run_over_its_limit_is_found_and_its_repeated_answers_are_not() {
    let run = || Asked { run: Some("run".to_owned()), ..asked("k") };
    let of_run = |id: &str| Record { run: Some("run".to_owned()), ..record(id, "ALLOW") };
    let mut case = Case::sound();
    for id in ["r4", "r5"] {
        case.records(of_run(id));
        case.asks(5, run(), decided(id, "ALLOW"));
        case.asks(6, run(), decided(id, "ALLOW"));
    }
    case.found.runs.insert("run".to_owned(), 2);
    case.finds(&[]);
    case.found.runs.insert("run".to_owned(), 3);
    case.finds(&[]);
    case.found.runs.insert("run".to_owned(), 1);
    case.finds(&[Promise::EveryAllowIsCounted]);
    case.found.runs.insert("run".to_owned(), 3);
    case.records(of_run("r6"));
    case.finds(&[Promise::NoRunOverItsLimit]);
}

#[test]
fn an_account_over_its_limit_is_found() {
    let mut case = Case::sound();
    case.rules.account_limits.insert("a".to_owned(), 2);
    case.finds(&[Promise::NoAccountOverItsLimit]);
}

#[test]
fn an_approval_that_is_used_twice_is_found_and_two_refusals_of_it_are_not() {
    let of_it = |id: &str, verdict: &str| Record { approval: Some("apr".to_owned()), ..record(id, verdict) };
    let with = || Asked { approval: Some("apr".to_owned()), ..asked("k") };
    let mut case = Case::sound();
    case.rules.verdicts.clear();
    case.found.approvals.insert("apr".to_owned(), ("consumed".to_owned(), Some("r4".to_owned())));
    case.records(of_it("r4", "ALLOW"));
    case.records(of_it("r5", "DEFER"));
    case.asks(5, with(), decided("r4", "ALLOW"));
    case.asks(6, with(), decided("r5", "DEFER"));
    case.finds(&[]);
    case.records(of_it("r6", "ALLOW"));
    case.finds(&[Promise::NoApprovalIsUsedTwice]);
}

#[test]
fn an_approval_that_was_used_and_can_be_used_again_is_found() {
    let mut case = Case::sound();
    case.records(Record { approval: Some("apr".to_owned()), ..record("r4", "ALLOW") });
    case.found.approvals.insert("apr".to_owned(), ("reserved".to_owned(), Some("r4".to_owned())));
    case.finds(&[]);
    case.found.approvals.insert("apr".to_owned(), ("consumed".to_owned(), Some("other".to_owned())));
    case.finds(&[Promise::AUsedApprovalSaysWhoUsedIt]);
    case.found.approvals.insert("apr".to_owned(), ("approved".to_owned(), None));
    case.finds(&[Promise::AUsedApprovalSaysWhoUsedIt]);
}

#[test]
fn two_decisions_under_one_idempotency_key_are_found_and_the_same_one_twice_is_not() {
    let once = || Asked { once: Some("once".to_owned()), ..asked("k") };
    let mut case = Case::sound();
    case.asks(5, once(), decided("r1", "ALLOW"));
    case.asks(6, once(), decided("r1", "ALLOW"));
    case.finds(&[]);
    case.asks(7, once(), decided("r2", "ALLOW"));
    case.finds(&[Promise::OneAnswerForEachIdempotencyKey]);
}

#[test]
fn a_lost_key_a_key_that_came_back_and_a_lost_stop_are_found() {
    let stop = || Change::Stopped { id: "stop".to_owned(), key: "s".to_owned() };
    let mut case = Case::sound();
    case.history.ops.push(change(1, Change::KeyMade("made".to_owned())));
    case.history.ops.push(change(1, Change::KeyMade("gone".to_owned())));
    case.history.ops.push(change(2, Change::KeyRevoked("gone".to_owned())));
    case.history.ops.push(change(2, stop()));
    case.found.keys = [("made".to_owned(), true), ("gone".to_owned(), false)].into();
    case.found.stops.insert("stop".to_owned(), true);
    case.finds(&[]);
    for (key, works) in [("made", false), ("gone", true)] {
        let before = case.found.keys.insert(key.to_owned(), works).unwrap();
        case.finds(&[Promise::NoAcknowledgedChangeIsLost]);
        case.found.keys.insert(key.to_owned(), before);
    }
    case.found.stops.insert("stop".to_owned(), false);
    case.finds(&[Promise::NoAcknowledgedChangeIsLost]);
    case.history.ops.push(change(3, Change::Resumed { id: "stop".to_owned(), key: "s".to_owned() }));
    case.finds(&[]);
}

#[test]
fn a_change_that_was_never_acknowledged_may_be_lost() {
    let mut case = Case::sound();
    let made = What::Change(Change::KeyRevoked("k2".to_owned()));
    case.history.ops.push(op(1, made, Came::Refused { status: 503, why: "unavailable".to_owned() }));
    case.found.keys.insert("k2".to_owned(), true);
    case.finds(&[]);
}

#[test]
fn a_revoked_key_that_is_answered_is_found_once_every_gateway_must_know() {
    let mut case = Case::sound();
    case.history.ops.push(change(10, Change::KeyRevoked("k2".to_owned())));
    let late = |id: &str| Record { key: "k2".to_owned(), ..record(id, "ALLOW") };
    case.records(late("r4"));
    case.asks(11, asked("k2"), decided("r4", "ALLOW"));
    case.finds(&[]);
    case.records(late("r5"));
    case.asks(20, asked("k2"), decided("r5", "ALLOW"));
    case.finds(&[Promise::ARevokedKeyIsRefused]);
    // A fault that keeps no notice back is no excuse; a partition is one, for as long as a cached key lives.
    case.with_fault(false);
    case.finds(&[Promise::ARevokedKeyIsRefused]);
    case.with_fault(true);
    case.finds(&[]);
    case.records(late("r6"));
    case.asks(80, asked("k2"), decided("r6", "ALLOW"));
    case.finds(&[Promise::ARevokedKeyIsRefused]);
}

#[test]
fn a_new_key_that_is_unknown_is_found_and_a_revoked_one_is_not() {
    let unknown = || Came::Refused { status: 401, why: "unauthorized".to_owned() };
    let mut case = Case::sound();
    case.asks(1, asked("k2"), unknown());
    case.history.ops.push(change(2, Change::KeyMade("k2".to_owned())));
    case.history.ops.push(change(10, Change::KeyRevoked("k2".to_owned())));
    case.asks(11, asked("k2"), unknown());
    case.finds(&[]);
    case.asks(5, asked("k2"), unknown());
    case.finds(&[Promise::NoAcknowledgedChangeIsLost]);
}

#[test]
fn an_allow_during_a_stop_is_found_and_one_after_it_is_not() {
    let (id, key) = ("stop".to_owned(), "k".to_owned());
    let mut case = Case::sound();
    case.history.ops.push(change(10, Change::Stopped { id: id.clone(), key: key.clone() }));
    case.history.ops.push(change(30, Change::Resumed { id, key }));
    case.asks(11, asked("k"), decided("r1", "ALLOW"));
    case.asks(31, asked("k"), decided("r2", "ALLOW"));
    case.finds(&[]);
    case.asks(20, asked("k"), decided("r3", "ALLOW"));
    case.finds(&[Promise::AStopHolds]);
}

#[test]
fn an_event_that_never_came_is_found_and_one_that_came_twice_is_not() {
    let mut case = Case::sound();
    case.found.deliveries.push(delivery("r2", 2));
    case.finds(&[]);
    case.found.deliveries.retain(|delivery| delivery.sequence != 2);
    case.finds(&[Promise::EveryRecordIsDelivered, Promise::DeliveriesAreSignedAndNumbered]);
}

#[test]
fn an_event_of_no_record_is_found() {
    let mut case = Case::sound();
    case.found.deliveries.push(delivery("r4", 4));
    case.finds(&[Promise::EveryRecordIsDelivered]);
    case.found.deliveries[3].decision = None;
    case.finds(&[]);
}

#[test]
fn events_without_a_signature_with_two_bodies_or_one_number_are_found() {
    let spoilt: [fn(&mut Delivered); 2] = [|delivery| delivery.is_signed = false, |delivery| delivery.body = 9];
    for spoil in spoilt {
        let mut case = Case::sound();
        let mut again = delivery("r2", 2);
        spoil(&mut again);
        case.found.deliveries.push(again);
        case.finds(&[Promise::DeliveriesAreSignedAndNumbered]);
    }
    let mut case = Case::sound();
    case.records(record("r4", "ALLOW"));
    case.found.deliveries[3].sequence = 3;
    case.finds(&[Promise::DeliveriesAreSignedAndNumbered]);
}

#[test]
fn a_log_that_is_not_whole_or_verifies_less_than_it_exports_is_found() {
    for (verified, promises) in
        [((true, 4), vec![]), ((false, 3), vec![Promise::TheLogIsWhole]), { ((true, 2), vec![Promise::TheLogIsWhole]) }]
    {
        let mut case = Case::sound();
        case.found.verified.insert("a".to_owned(), verified);
        case.finds(&promises);
    }
}

#[test]
fn a_500_is_found_and_a_503_is_not() {
    let mut case = Case::sound();
    let refused = |status| Came::Refused { status, why: "why".to_owned() };
    for known in [503, 402] {
        case.asks(5, asked("k"), refused(known));
    }
    case.finds(&[]);
    for odd in [500, 422, 404, 409] {
        case.asks(5, asked("k"), refused(odd));
    }
    case.finds(&[Promise::OnlyKnownRefusals; 4]);
    let mut case = Case::sound();
    case.rules.account_limits.clear();
    case.asks(5, asked("k"), refused(402));
    case.finds(&[Promise::OnlyKnownRefusals]);
}

#[test]
fn a_vote_on_an_approval_that_a_replica_lacks_is_found_unless_a_server_catches_up() {
    let missing = || Came::Refused { status: 404, why: "not found".to_owned() };
    let mut case = Case::sound();
    case.history.ops.push(op(12, What::Change(Change::Approved("apr".to_owned())), missing()));
    case.with_fault(false);
    case.finds(&[Promise::OnlyKnownRefusals]);
    case.with_fault(true);
    case.finds(&[]);
    case.history.ops.push(op(12, What::Change(Change::KeyRevoked("k2".to_owned())), missing()));
    case.finds(&[Promise::OnlyKnownRefusals]);
}

#[test]
fn a_story_has_what_concerns_the_finding_in_order_of_time_and_nothing_else() {
    let mut case = Case::sound();
    case.with_fault(false);
    let once = || Asked { once: Some("once".to_owned()), ..asked("k") };
    case.asks(12, once(), decided("lost", "ALLOW"));
    case.asks(10, once(), Came::Nothing("reset".to_owned()));
    case.asks(10, asked("k"), decided("r1", "ALLOW"));
    let findings = check(&case.history, &case.found, &case.rules);
    assert_eq!(findings.len(), 1, "{findings:#?}");
    let story = findings[0].story.join("\n");
    assert_eq!(
        story, "12.000s to 12.000s gateway 0: check of key k once once -> ALLOW lost",
        "only the one check has this id"
    );
    case.asks(13, once(), decided("r1", "ALLOW"));
    let findings = check(&case.history, &case.found, &case.rules);
    let told = &findings.iter().find(|f| f.promise == Promise::OneAnswerForEachIdempotencyKey).unwrap().story;
    let wanted = ["1.000s to", "9.000s FAULT partition", "10.000s healed", "no answer: reset", "r1", "lost", "r1"];
    assert!(told.len() >= wanted.len(), "{told:#?}");
    assert!(told.iter().zip(["1.000s", "9.000s FAULT"]).all(|(line, start)| line.starts_with(start)), "{told:#?}");
    assert!(!told.iter().any(|line| line.contains("r2") || line.contains("r3")), "{told:#?}");
}
