//! What is believed and what is not, message by message; the wire is in `tests/suite/auth.rs`.

use std::time::Duration;

use async_nats::{HeaderValue, Message};
use bytes::Bytes;

use super::super::deadline::Timing;
use super::super::jetstream::Stored;
use super::super::link::ReplyAddress;
use super::super::log::EXPECTED_LAST;
use super::super::waiters::Token;
use super::live::{ExpectedReply, REPLY_TO};
use super::*;

fn set() -> KeySet {
    KeySet::create(Requirement::Always).unwrap()
}

fn of(set: &KeySet, role: Role) -> Arc<MessageAuth> {
    MessageAuth::new(set.role(role).unwrap(), role, false).unwrap()
}

fn sent() -> Timing {
    Timing::new(Duration::from_secs(2), SystemTime::now())
}

fn message(subject: &str, reply: Option<&str>, headers: HeaderMap, body: &'static [u8]) -> Message {
    Message {
        subject: subject.into(),
        reply: reply.map(Into::into),
        payload: Bytes::from_static(body),
        headers: Some(headers),
        status: None,
        description: None,
        length: 0,
    }
}

const INBOX: &str = "_INBOX_gateway.x.1";
const EVALUATE: &str = "s0.req.evaluate";

fn inbox() -> ReplyAddress {
    ReplyAddress { subject: INBOX.to_owned(), token: Token::random().unwrap() }
}

/// A gateway's request to an evaluator, and what the gateway waits for.
fn asked(gateway: &MessageAuth, sent: Timing) -> (Message, ExpectedReply) {
    let mut headers = sent.headers();
    let expected = gateway.sign_request("evaluate", EVALUATE, &inbox(), sent, b"{}", &mut headers).unwrap();
    (message(EVALUATE, Some(INBOX), headers, b"{}"), expected)
}

#[test]
fn a_request_is_accepted_once_and_only_unaltered() {
    let set = set();
    let (gateway, evaluator) = (of(&set, Role::Gateway), of(&set, Role::Evaluator));
    let (request, _) = asked(&gateway, sent());
    let sent = Timing::parse(request.headers.as_ref()).unwrap();
    let judge = |message: &Message| evaluator.check_request(message, "evaluate", sent);
    let altered = Message { payload: Bytes::from_static(b"[]"), ..request.clone() };
    assert_eq!(judge(&altered), Err(Rejection::Forged));
    let moved = Message { reply: Some("_INBOX_mine.1".into()), ..request.clone() };
    assert_eq!(judge(&moved), Err(Rejection::Forged));
    let longer = Timing::new(Duration::from_secs(3), SystemTime::now());
    assert_eq!(evaluator.check_request(&request, "evaluate", longer), Err(Rejection::Forged));
    let elsewhere = Message { subject: "s0.req.review".into(), ..request.clone() };
    assert_eq!(evaluator.check_request(&elsewhere, "review", sent), Err(Rejection::Forged));
    let bare = Message { headers: Some(sent.headers()), ..request.clone() };
    assert_eq!(judge(&bare), Err(Rejection::Unauthenticated));
    assert_eq!(judge(&request).unwrap().unwrap().role, Role::Gateway);
    assert_eq!(judge(&request), Err(Rejection::Replayed));
    let (another, _) = asked(&gateway, sent);
    assert!(judge(&another).unwrap().is_some());
}

#[test]
fn between_accounts_the_server_may_name_another_inbox() {
    let set = set();
    let (gateway, evaluator) = (of(&set, Role::Gateway), of(&set, Role::Evaluator));
    let (request, _) = asked(&gateway, sent());
    let sent = Timing::parse(request.headers.as_ref()).unwrap();
    let renamed = Message { reply: Some("_R_.abc.1".into()), ..request };
    assert!(evaluator.check_request(&renamed, "evaluate", sent).is_ok());
}

#[test]
fn a_role_can_send_only_its_own_messages() {
    let set = set();
    let (evaluator, keystore) = (of(&set, Role::Evaluator), of(&set, Role::Keystore));
    // It does not ask at all by itself …
    assert!(
        evaluator
            .sign_request("keys.verify", "s0.req.keys.verify", &inbox(), sent(), b"{}", &mut HeaderMap::new())
            .is_none()
    );
    // … and with its own keys and other code it is refused, under its own name and under another's.
    let (sent, ring) = (sent(), evaluator.ring());
    for sender in [Role::Evaluator, Role::Gateway] {
        let envelope = Envelope { sender, ..evaluator.envelope(1, [3; 16]) };
        let more = sent.bytes();
        let content = Content {
            kind: MessageKind::Request,
            receiver: Some(Role::Keystore),
            subject: "s0.req.keys.verify",
            more: &[INBOX.as_bytes(), &more],
            body: b"{}",
        };
        let mac = envelope.mac(ring.active.pair(Role::Keystore).unwrap(), &content);
        let mut headers = sent.headers();
        envelope.seal(&mut headers, [(Some(Role::Keystore), mac.as_ref())]);
        headers.insert(REPLY_TO, HeaderValue::from(INBOX));
        let request = message("s0.req.keys.verify", Some(INBOX), headers, b"{}");
        let wanted = if sender == Role::Evaluator { Rejection::NotAllowed } else { Rejection::Forged };
        assert_eq!(keystore.check_request(&request, "keys.verify", sent), Err(wanted));
    }
}

#[test]
fn an_evaluator_asks_the_keystore_for_people_and_no_other_role_does() {
    let (set, to) = (set(), "s0.req.keys.people");
    let keystore = of(&set, Role::Keystore);
    for role in Role::ALL {
        let (auth, asked_at) = (of(&set, role), sent());
        let mut headers = asked_at.headers();
        let signed = auth.sign_request("keys.people", to, &inbox(), asked_at, b"{}", &mut headers);
        assert_eq!(signed.is_some(), role == Role::Evaluator, "{role}");
        if let Some(expected) = signed {
            let request = message(to, Some(INBOX), headers, b"{}");
            let sent = Timing::parse(request.headers.as_ref()).unwrap();
            let requester = keystore.check_request(&request, "keys.people", sent).unwrap().unwrap();
            assert_eq!(requester.role, Role::Evaluator);
            let mut headers = HeaderMap::new();
            keystore.reply(requester, to, b"people", &mut headers).unwrap();
            assert!(auth.is_reply(&expected, &message(INBOX, None, headers, b"people")));
        }
    }
}

#[test]
fn a_reply_is_accepted_only_for_its_request_and_from_the_role_that_serves_it() {
    let set = set();
    let (gateway, evaluator) = (of(&set, Role::Gateway), of(&set, Role::Evaluator));
    let ((request, expected), (_, other)) = (asked(&gateway, sent()), asked(&gateway, sent()));
    let sent = Timing::parse(request.headers.as_ref()).unwrap();
    let requester = evaluator.check_request(&request, "evaluate", sent).unwrap().unwrap();
    let mut headers = HeaderMap::new();
    evaluator.reply(requester, EVALUATE, b"ALLOW", &mut headers).unwrap();
    let answer = message(INBOX, None, headers.clone(), b"ALLOW");
    assert!(gateway.is_reply(&expected, &answer));
    assert_eq!(gateway.verify_reply(&other, &answer), Err(Rejection::Replayed));
    assert_eq!(gateway.verify_reply(&expected, &message(INBOX, None, headers, b"DENY")), Err(Rejection::Forged));
    let bare = message(INBOX, None, HeaderMap::new(), b"ALLOW");
    assert_eq!(gateway.verify_reply(&expected, &bare), Err(Rejection::Unauthenticated));
    // The gateway shares the key, but what it says is no answer; nor is its own request.
    assert!(gateway.verify_reply(&expected, &request).is_err());
    let keystore = of(&set, Role::Keystore);
    let mut headers = HeaderMap::new();
    keystore.reply(Requester { role: Role::Gateway, ..requester }, EVALUATE, b"ALLOW", &mut headers).unwrap();
    assert_eq!(gateway.verify_reply(&expected, &message(INBOX, None, headers, b"ALLOW")), Err(Rejection::NotAllowed));
}

#[test]
fn a_request_with_a_wrong_clock_or_from_before_the_servers_start_is_refused() {
    let set = set();
    let (gateway, evaluator) = (of(&set, Role::Gateway), of(&set, Role::Evaluator));
    let at = |seconds: i64| {
        let now = SystemTime::now();
        let moved = Duration::from_secs(seconds.unsigned_abs());
        Timing::new(Duration::from_secs(2), if seconds < 0 { now - moved } else { now + moved })
    };
    for (seconds, right) in [(-40, false), (-3, false), (0, true), (20, true), (40, false)] {
        let (request, _) = asked(&gateway, at(seconds));
        let sent = Timing::parse(request.headers.as_ref()).unwrap();
        let judged = evaluator.check_request(&request, "evaluate", sent);
        assert_eq!(judged.is_ok(), right, "{seconds} s: {judged:?}");
        assert!(right || judged == Err(Rejection::Clock));
    }
}

#[test]
fn a_notice_is_accepted_by_each_receiving_role_once_for_each_subscriber() {
    let set = set();
    let keystore = of(&set, Role::Keystore);
    let (subject, to) = ("notice.key.changed", "s0.notice.key.changed");
    let mut headers = HeaderMap::new();
    keystore.notice(subject, to, b"{}", &mut headers).unwrap();
    let told = message(to, None, headers, b"{}");
    for role in [Role::Gateway, Role::AuditExport] {
        let (hearer, mut before) = (of(&set, role), SeenNotices::default());
        assert_eq!(hearer.check_notice(&told, subject, &mut before), NoticeCheck::Valid, "{role}");
        assert_eq!(hearer.check_notice(&told, subject, &mut before), NoticeCheck::Rejected, "{role}");
        assert_eq!(hearer.check_notice(&told, subject, &mut SeenNotices::default()), NoticeCheck::Valid, "{role}");
        let altered = Message { payload: Bytes::from_static(b"[]"), ..told.clone() };
        let fresh = || SeenNotices::default();
        assert_eq!(hearer.check_notice(&altered, subject, &mut fresh()), NoticeCheck::Rejected, "{role}");
        let bare = message(to, None, HeaderMap::new(), b"{}");
        assert_eq!(hearer.check_notice(&bare, subject, &mut fresh()), NoticeCheck::Rejected, "{role}");
    }
    // An evaluator does not tell of keys; and hears of none.
    assert!(of(&set, Role::Evaluator).notice(subject, to, b"{}", &mut HeaderMap::new()).is_none());
    let mut before = SeenNotices::default();
    assert_eq!(of(&set, Role::Evaluator).check_notice(&told, subject, &mut before), NoticeCheck::Rejected);
}

#[test]
fn a_notice_too_old_for_the_replay_check_is_a_gap() {
    let set = set();
    let (keystore, gateway) = (of(&set, Role::Keystore), of(&set, Role::Gateway));
    let ring = keystore.ring();
    let envelope = Envelope { at: now() - 31_000, ..keystore.envelope(1, [1; 16]) };
    let (subject, to) = ("notice.key.changed", "s0.notice.key.changed");
    let content =
        Content { kind: MessageKind::Notice, receiver: Some(Role::Gateway), subject: to, more: &[], body: b"{}" };
    let mac = envelope.mac(ring.active.pair(Role::Gateway).unwrap(), &content);
    let mut headers = HeaderMap::new();
    envelope.seal(&mut headers, [(Some(Role::Gateway), mac.as_ref())]);
    let told = message(to, None, headers, b"{}");
    assert_eq!(gateway.check_notice(&told, subject, &mut SeenNotices::default()), NoticeCheck::Stale);
}

fn stored(subject: &str, headers: HeaderMap, body: &'static [u8]) -> Stored {
    let (payload, at) = (Bytes::from_static(body), Timestamp::now());
    Stored { sequence: 7, at, subject: subject.to_owned(), payload, headers: Some(headers) }
}

#[test]
fn entries_are_accepted_only_from_the_gateway_and_marks_only_from_audit_export_in_their_position() {
    let set = set();
    let (gateway, exporter) = (of(&set, Role::Gateway), of(&set, Role::AuditExport));
    let signed = |auth: &MessageAuth, subject: &str| {
        let mut headers = HeaderMap::new();
        if subject.ends_with(".m") {
            headers.insert(EXPECTED_LAST, HeaderValue::from(3_u64));
        }
        auth.sign_entry(subject, "", b"line", &mut headers).unwrap();
        headers
    };
    // A mark in another place than it was signed for, or where no place was checked.
    for (name, value) in [(EXPECTED_LAST.to_string(), "9"), (format!("{EXPECTED_LAST}-Subject"), "s0.log.none.m")] {
        let mut again = signed(&exporter, "s0.log.a.m");
        again.insert(name.as_str(), value);
        assert!(!exporter.is_genuine(&stored("s0.log.a.m", again, b"line")), "{name}");
    }
    let entry = signed(&gateway, "s0.log.a.d");
    for reader in [&gateway, &exporter] {
        assert!(reader.is_genuine(&stored("s0.log.a.d", entry.clone(), b"line")));
        assert!(reader.is_genuine(&stored("s0.log.a.m", signed(&exporter, "s0.log.a.m"), b"line")));
        assert!(!reader.is_genuine(&stored("s0.log.b.d", entry.clone(), b"line")), "another account's");
        assert!(!reader.is_genuine(&stored("s0.log.a.d", entry.clone(), b"lime")));
        assert!(!reader.is_genuine(&stored("s0.log.a.d", HeaderMap::new(), b"line")));
        assert!(!reader.is_genuine(&stored("s0.log.a.d", signed(&exporter, "s0.log.a.d"), b"line")));
        assert!(!reader.is_genuine(&stored("s0.log.a.m", signed(&gateway, "s0.log.a.m"), b"line")));
    }
    assert!(of(&set, Role::Evaluator).sign_entry("s0.log.a.d", "", b"line", &mut HeaderMap::new()).is_none());
    // Another deployment's gateway.
    assert!(!of(&KeySet::create(Requirement::Always).unwrap(), Role::Gateway).is_genuine(&stored(
        "s0.log.a.d",
        entry,
        b"line"
    )));
}

#[test]
fn a_record_is_accepted_only_from_its_owner_under_its_key_and_for_its_revision() {
    let set = set();
    let (gateway, evaluator) = (of(&set, Role::Gateway), of(&set, Role::Evaluator));
    let put = |expected: u64| {
        let mut headers = HeaderMap::new();
        headers.insert(EXPECTED_LAST, HeaderValue::from(expected));
        gateway.record("usage.a.m1", "s0.ledger.usage.a.m1", b"5", &mut headers).unwrap();
        headers
    };
    let judge = |headers: HeaderMap, body| {
        gateway.check_record("usage.a.m1", &stored("s0.ledger.usage.a.m1", headers, body), false, None)
    };
    assert_eq!(judge(put(3), b"5"), Ok(()));
    assert_eq!(judge(put(3), b"0"), Err(Rejection::Forged));
    let mut moved = put(3);
    moved.insert(EXPECTED_LAST, HeaderValue::from(9_u64));
    assert_eq!(judge(moved, b"5"), Err(Rejection::Forged), "put back in the place of a later one");
    let mut twice = put(3);
    twice.append(EXPECTED_LAST, HeaderValue::from(9_u64));
    assert_eq!(judge(twice, b"5"), Err(Rejection::Forged));
    assert_eq!(judge(HeaderMap::new(), b"5"), Err(Rejection::Unauthenticated));
    let elsewhere = stored("s0.ledger.usage.b.m1", put(3), b"5");
    assert_eq!(gateway.check_record("usage.b.m1", &elsewhere, false, None), Err(Rejection::Forged));
    assert!(evaluator.record("usage.a.m1", "s0.ledger.usage.a.m1", b"5", &mut HeaderMap::new()).is_none());
    assert!(evaluator.check_record("usage.a.m1", &stored("s0.ledger.usage.a.m1", put(3), b"5"), false, None).is_err());
}

#[test]
fn a_record_older_than_a_known_version_is_rejected_whatever_sequence_the_answer_names() {
    let set = set();
    let gateway = of(&set, Role::Gateway);
    let (key, subject) = ("usage.a.m1", "s0.ledger.usage.a.m1");
    let put = |expected: u64| {
        let mut headers = HeaderMap::new();
        headers.insert(EXPECTED_LAST, HeaderValue::from(expected));
        gateway.record(key, subject, b"5", &mut headers).unwrap();
        headers
    };
    let judge = |headers: &HeaderMap| {
        let found = Stored { sequence: 99, ..stored(subject, headers.clone(), b"5") };
        gateway.check_record(key, &found, false, gateway.newest(subject).as_ref())
    };
    let (old, new) = (put(3), put(7));
    assert_eq!(judge(&old), Ok(()));
    assert_eq!(judge(&old), Ok(()), "the same again");
    // It was put and acknowledged.
    gateway.note_newest(subject, Some(&new));
    assert_eq!(judge(&old), Err(Rejection::Replayed));
    assert_eq!(judge(&new), Ok(()));
    assert_eq!(judge(&put(8)), Ok(()), "another process's");
}

#[test]
fn before_the_switch_unauthenticated_messages_are_accepted_and_forged_ones_are_not() {
    let set = KeySet::create(Requirement::WhenAllCan).unwrap();
    let (gateway, evaluator) = (of(&set, Role::Gateway), of(&set, Role::Evaluator));
    let (request, _) = asked(&gateway, sent());
    let sent = Timing::parse(request.headers.as_ref()).unwrap();
    let bare = Message { headers: Some(sent.headers()), ..request.clone() };
    assert_eq!(evaluator.check_request(&bare, "evaluate", sent), Ok(None));
    let altered = Message { payload: Bytes::from_static(b"[]"), ..request };
    assert_eq!(evaluator.check_request(&altered, "evaluate", sent), Err(Rejection::Forged));

    gateway.require(Timestamp::now());
    // It hears of it with the next request, and never goes back.
    let (marked, _) = asked(&gateway, sent);
    assert!(evaluator.check_request(&marked, "evaluate", sent).unwrap().is_some());
    assert_eq!(evaluator.check_request(&bare, "evaluate", sent), Err(Rejection::Unauthenticated));
    evaluator.replace(set.role(Role::Evaluator).unwrap()).unwrap();
    assert!(evaluator.is_required());
}

#[test]
fn only_a_gateways_requirement_mark_is_followed() {
    let set = KeySet::create(Requirement::WhenAllCan).unwrap();
    let (keystore, gateway) = (of(&set, Role::Keystore), of(&set, Role::Gateway));
    keystore.require(Timestamp::now());
    let mut headers = HeaderMap::new();
    keystore.notice("notice.key.changed", "s0.notice.key.changed", b"{}", &mut headers).unwrap();
    let told = message("s0.notice.key.changed", None, headers, b"{}");
    let standing = gateway.check_notice(&told, "notice.key.changed", &mut SeenNotices::default());
    assert_eq!((standing, gateway.is_required()), (NoticeCheck::Valid, false));
}

#[test]
fn unauthenticated_data_is_readable_only_if_stored_before_the_switch() {
    let set = KeySet::create(Requirement::WhenAllCan).unwrap();
    let gateway = of(&set, Role::Gateway);
    let since = Timestamp::now();
    let at = |seconds: i64| Stored {
        at: since.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap(),
        ..stored("s0.log.a.d", HeaderMap::new(), b"line")
    };
    assert!(gateway.is_genuine(&at(9)), "nothing is required yet");
    gateway.require(since);
    assert!(gateway.is_genuine(&at(-1)) && !gateway.is_genuine(&at(0)) && !gateway.is_genuine(&at(9)));
    // A later word does not move it on.
    gateway.require(since.checked_add(jiff::SignedDuration::from_secs(60)).unwrap());
    assert!(!gateway.is_genuine(&at(9)));
    let record = Stored { subject: "s0.ledger.usage.a.m1".to_owned(), ..at(-1) };
    assert_eq!(gateway.check_record("usage.a.m1", &record, false, None), Ok(()));
    assert_eq!(gateway.check_record("usage.a.m1", &record, true, None), Err(Rejection::Unauthenticated));
}

#[test]
fn two_generations_are_accepted_and_a_retired_one_only_of_what_was_stored() {
    let mut keys = set();
    let (old, retired_at) = (of(&keys, Role::Gateway), Timestamp::now());
    let evaluator = of(&keys, Role::Evaluator);
    let mut entry = HeaderMap::new();
    old.sign_entry("s0.log.a.d", "", b"line", &mut entry).unwrap();
    let judged = |gateway: &MessageAuth| {
        let (request, _) = asked(gateway, sent());
        let sent = Timing::parse(request.headers.as_ref()).unwrap();
        evaluator.check_request(&request, "evaluate", sent).map(|requester| requester.unwrap().generation)
    };
    for wanted in [Ok(1), Ok(1), Err(Rejection::UnknownKey)] {
        keys.rotate(retired_at).unwrap();
        evaluator.replace(keys.role(Role::Evaluator).unwrap()).unwrap();
        assert_eq!(judged(&old), wanted);
    }
    let new = of(&keys, Role::Gateway);
    assert_eq!(judged(&new), Ok(2));
    let before = retired_at.checked_sub(jiff::SignedDuration::from_secs(1)).unwrap();
    assert!(new.is_genuine(&Stored { at: before, ..stored("s0.log.a.d", entry.clone(), b"line") }));
    assert!(!new.is_genuine(&Stored { at: retired_at, ..stored("s0.log.a.d", entry, b"line") }));
}

#[test]
fn keys_of_another_role_are_refused() {
    let set = set();
    let wrong = MessageAuth::new(set.role(Role::Keystore).unwrap(), Role::Gateway, false);
    assert!(matches!(wrong, Err(KeysError::Role { found: Role::Keystore, wanted: Role::Gateway })));
    let gateway = of(&set, Role::Gateway);
    assert!(gateway.replace(set.role(Role::Keystore).unwrap()).is_err());
    assert!(!format!("{gateway:?}").contains("pairs"));
}

#[test]
fn the_keystore_with_the_higher_term_is_trusted_and_no_reply_without_a_term_after_it() {
    const VERIFY: &str = "s0.req.keys.verify";
    let set = set();
    let gateway = of(&set, Role::Gateway);
    let answered = |term: Option<(u64, &str)>| {
        let keystore = of(&set, Role::Keystore);
        if let Some((number, lineage)) = term {
            keystore.serve_in_term(number, lineage);
        }
        let sent = sent();
        let mut headers = sent.headers();
        let expected = gateway.sign_request("keys.verify", VERIFY, &inbox(), sent, b"{}", &mut headers).unwrap();
        let request = message(VERIFY, Some(INBOX), headers, b"{}");
        let sent = Timing::parse(request.headers.as_ref()).unwrap();
        let requester = keystore.check_request(&request, "keys.verify", sent).unwrap().unwrap();
        let mut headers = HeaderMap::new();
        keystore.reply(requester, VERIFY, b"invalid", &mut headers).unwrap();
        (expected, message(INBOX, None, headers, b"invalid"))
    };
    let judged = |(expected, answer): (ExpectedReply, Message)| gateway.verify_reply(&expected, &answer);
    assert_eq!(judged(answered(None)), Ok(true), "of a version without terms");
    assert_eq!(judged(answered(Some((5, "aa")))), Ok(true));
    assert_eq!(judged(answered(Some((5, "aa")))), Ok(true));
    for superseded in [Some((4, "aa")), Some((5, "bb")), None] {
        assert_eq!(judged(answered(superseded)), Err(Rejection::Superseded), "{superseded:?}");
    }
    assert_eq!(judged(answered(Some((6, "bb")))), Ok(true));
    // A term that is absurdly far ahead is rejected, since accepting it would lock out every later keystore.
    assert_eq!(judged(answered(Some((u64::MAX, "thief")))), Err(Rejection::Superseded));
    assert_eq!(judged(answered(Some((5, "aa")))), Err(Rejection::Superseded));
    // A term that somebody else put there, or that belongs to another answer, is not believed, and moves nothing.
    let (expected, mut answer) = answered(Some((6, "bb")));
    let other = answered(Some((9, "cc"))).1.headers.unwrap();
    let term = other.get("Stage0-Term").unwrap().clone();
    answer.headers.as_mut().unwrap().insert("Stage0-Term", term);
    assert_eq!(gateway.verify_reply(&expected, &answer), Err(Rejection::Forged));
    assert_eq!(judged(answered(Some((6, "bb")))), Ok(true));
}
