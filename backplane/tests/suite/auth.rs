//! An outsider on an open NATS server, with plain NATS tools: no role accepts what it forges, replays or puts back, and
//! genuine messages still pass.

use std::time::Duration;

use async_nats::{Client, HeaderMap, Message};
use bytes::Bytes;
use futures_util::StreamExt as _;
use stage0_backplane::nats::{Connection, KeySet, MessageAuth, NatsConfig, Requirement};
use stage0_backplane::testing::NatsServer;
use stage0_backplane::{Backplane, EntryFilter, EntryKind, Event, PutError, RequestError, RequestQueue, Seek};
use stage0_contract::{DecisionsRecorded, EvaluateRequest, KeyChanged, Notice, Request, Role};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::PATIENT;
use crate::writing::{
    DECISIONS, MARKS, account, append, batch, decisions, everything, mark, soon, texts, verified, write,
};

const EVALUATE: &str = EvaluateRequest::SUBJECT;
const EVALUATE_AT: &str = "s0.req.evaluate";
const ALLOW: &str = r#"{"verdict":"ALLOW"}"#;

/// A server without logins, and the keys of a deployment on it.
pub(crate) struct Open {
    pub(crate) nats: NatsServer,
    pub(crate) keys: KeySet,
}

impl Open {
    pub(crate) async fn start() -> Self {
        Self::with(Requirement::Always).await
    }

    async fn with(require: Requirement) -> Self {
        Self { nats: NatsServer::start().await, keys: KeySet::create(require).unwrap() }
    }

    fn auth(&self, role: Role) -> std::sync::Arc<MessageAuth> {
        MessageAuth::new(self.keys.role(role).unwrap(), role, false).unwrap()
    }

    fn config(&self, role: Role) -> NatsConfig {
        NatsConfig { auth: Some(self.auth(role)), name: role.to_string(), ..verified(&self.nats) }
    }

    pub(crate) async fn connection(&self, role: Role) -> Connection {
        let connection = Connection::open(&self.config(role)).await.unwrap();
        if matches!(role, Role::Gateway | Role::AuditExport) {
            connection.prepare_log(1).await.unwrap();
        }
        connection
    }

    async fn connect(&self, role: Role) -> Backplane {
        self.connection(role).await.backplane()
    }

    pub(crate) async fn bystander(&self) -> Client {
        async_nats::connect(self.nats.url()).await.unwrap()
    }
}

/// The server has handled what this client sent before.
pub(crate) async fn is_done(client: &Client) {
    let inbox = client.new_inbox();
    let mut echo = client.subscribe(inbox.clone()).await.unwrap();
    client.publish(inbox, Bytes::new()).await.unwrap();
    echo.next().await.unwrap();
}

async fn publish(client: &Client, message: &Message) {
    let (subject, headers, body) = (message.subject.clone(), message.headers.clone(), message.payload.clone());
    let headers = headers.unwrap_or_default();
    match message.reply.clone() {
        Some(reply) => client.publish_with_reply_and_headers(subject, reply, headers, body).await.unwrap(),
        None => client.publish_with_headers(subject, headers, body).await.unwrap(),
    }
}

/// Sends a request in a task of its own.
fn ask_aside(gateway: &Backplane, text: &'static str) -> tokio::task::JoinHandle<Result<Bytes, RequestError>> {
    let gateway = gateway.clone();
    tokio::spawn(async move { gateway.requests.request_bytes(EVALUATE, text.into(), soon()).await })
}

async fn answer_next(inbox: &mut Box<dyn RequestQueue>, wanted: &str, answer: &'static str) {
    let asked = inbox.next().await.unwrap();
    assert_eq!(asked.body.as_bytes().unwrap(), wanted);
    asked.replier.reply(answer.into()).await;
}

#[tokio::test]
async fn a_forged_reply_is_rejected_and_ends_no_wait() {
    let open = Open::start().await;
    let (gateway, evaluator) = (open.connect(Role::Gateway).await, open.connect(Role::Evaluator).await);
    let mut inbox = evaluator.requests.serve_bytes(EVALUATE).await.unwrap();
    let bystander = open.bystander().await;
    let mut overheard = bystander.subscribe(EVALUATE_AT).await.unwrap();
    is_done(&bystander).await;

    let waiting = ask_aside(&gateway, "one");
    let request = overheard.next().await.unwrap();
    let to = request.reply.clone().unwrap();
    // Without a header, with the request's own header, and as a "no responders" status.
    bystander.publish(to.clone(), ALLOW.into()).await.unwrap();
    bystander.publish_with_headers(to.clone(), request.headers.clone().unwrap(), ALLOW.into()).await.unwrap();
    no_responders(&open, &to).await;
    is_done(&bystander).await;
    gateway.requests.ready().await.unwrap();
    assert!(!waiting.is_finished());
    answer_next(&mut inbox, "one", "genuine").await;
    assert_eq!(waiting.await.unwrap().unwrap(), "genuine");

    // An earlier reply, to another request.
    let mut answers = bystander.subscribe("_INBOX_gateway.>").await.unwrap();
    is_done(&bystander).await;
    let waiting = ask_aside(&gateway, "two");
    answer_next(&mut inbox, "two", "old").await;
    assert_eq!(waiting.await.unwrap().unwrap(), "old");
    let old = loop {
        let answer = answers.next().await.unwrap();
        if answer.payload == "old" {
            break answer;
        }
    };
    drop(overheard.next().await);
    let waiting = ask_aside(&gateway, "three");
    let request = overheard.next().await.unwrap();
    publish(&bystander, &Message { subject: request.reply.unwrap(), ..old }).await;
    is_done(&bystander).await;
    answer_next(&mut inbox, "three", "new").await;
    assert_eq!(waiting.await.unwrap().unwrap(), "new");
}

/// The server's status for a subject without responders.
async fn no_responders(open: &Open, to: &str) {
    say_status(open, to, "NATS/1.0 503\r\n\r\n").await;
}

/// A message with a status line of its own, which async-nats does not write for clients.
async fn say_status(open: &Open, to: &str, status: &str) {
    let mut raw = TcpStream::connect(open.nats.url().replace("nats://", "")).await.unwrap();
    let text = format!(
        "CONNECT {{\"verbose\":false,\"headers\":true}}\r\nHPUB {to} {0} {0}\r\n{status}\r\nPING\r\n",
        status.len()
    );
    raw.write_all(text.as_bytes()).await.unwrap();
    let (mut said, mut piece) = (String::new(), [0; 1024]);
    while !said.contains("PONG") {
        let read = raw.read(&mut piece).await.unwrap();
        assert!(read > 0, "{said}");
        said.push_str(&String::from_utf8_lossy(&piece[..read]));
    }
    assert!(!said.contains("-ERR"), "{said}");
}

#[tokio::test]
async fn an_outsider_that_takes_requests_makes_them_time_out_and_nothing_else() {
    let open = Open::start().await;
    let gateway = open.connect(Role::Gateway).await;
    let bystander = open.bystander().await;
    let mut taken = bystander.queue_subscribe(EVALUATE_AT, "s0".to_owned()).await.unwrap();
    is_done(&bystander).await;
    let asked = tokio::time::Instant::now() + Duration::from_millis(300);
    let waiting = gateway.requests.request_bytes(EVALUATE, "one".into(), asked);
    let forging = async {
        let request = taken.next().await.unwrap();
        bystander.publish(request.reply.unwrap(), ALLOW.into()).await.unwrap();
    };
    assert_eq!(tokio::join!(waiting, forging).0, Err(RequestError::Timeout));
}

#[tokio::test]
async fn a_request_without_a_server_fails_soon() {
    let open = Open::start().await;
    let gateway = open.connect(Role::Gateway).await;
    let asked = tokio::time::Instant::now();
    assert_eq!(gateway.requests.request_bytes(EVALUATE, "x".into(), soon()).await, Err(RequestError::NoResponders));
    assert!(asked.elapsed() < PATIENT / 6, "{:?}", asked.elapsed());
}

#[tokio::test]
async fn a_forged_or_replayed_request_gets_no_reply_and_the_next_genuine_one_does() {
    let open = Open::start().await;
    let (gateway, evaluator) = (open.connect(Role::Gateway).await, open.connect(Role::Evaluator).await);
    let mut inbox = evaluator.requests.serve_bytes(EVALUATE).await.unwrap();
    let bystander = open.bystander().await;
    let mut overheard = bystander.subscribe(EVALUATE_AT).await.unwrap();
    let mut heard = bystander.subscribe("_INBOX_bystander").await.unwrap();
    is_done(&bystander).await;

    let waiting = ask_aside(&gateway, "one");
    let request = overheard.next().await.unwrap();
    answer_next(&mut inbox, "one", "1").await;
    waiting.await.unwrap().unwrap();
    let mine = || Some("_INBOX_bystander".into());
    let bare: HeaderMap = {
        let mut headers = HeaderMap::new();
        headers.insert("Stage0-Deadline", "99999999999999");
        headers.insert("Stage0-Budget-Ms", "10000");
        headers
    };
    for forged in [
        request.clone(),
        Message { reply: mine(), ..request.clone() },
        Message { reply: Some("_R_.bystander".into()), ..request.clone() },
        Message { payload: "two".into(), reply: mine(), ..request.clone() },
        Message { headers: Some(bare), reply: mine(), ..request.clone() },
    ] {
        publish(&bystander, &forged).await;
    }
    is_done(&bystander).await;
    let waiting = ask_aside(&gateway, "three");
    // One inbox is read in order: a forged request would come first.
    answer_next(&mut inbox, "three", "3").await;
    assert_eq!(waiting.await.unwrap().unwrap(), "3");
    bystander.publish("_INBOX_bystander", "end".into()).await.unwrap();
    assert_eq!(heard.next().await.unwrap().payload, "end", "it got an answer");
}

#[tokio::test]
async fn a_role_without_keys_is_refused_where_they_are_required() {
    let open = Open::start().await;
    let evaluator = open.connect(Role::Evaluator).await;
    let mut inbox = evaluator.requests.serve_bytes(EVALUATE).await.unwrap();
    let without = Backplane::connect(&open.nats.config("gateway")).await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_millis(200);
    assert_eq!(without.requests.request_bytes(EVALUATE, "x".into(), deadline).await, Err(RequestError::Timeout));
    let gateway = open.connect(Role::Gateway).await;
    let waiting = ask_aside(&gateway, "with");
    answer_next(&mut inbox, "with", "yes").await;
    assert_eq!(waiting.await.unwrap().unwrap(), "yes");
}

#[tokio::test]
async fn forged_and_replayed_notices_are_dropped_and_the_genuine_one_is_received_once() {
    let open = Open::start().await;
    let (keystore, gateway) = (open.connect(Role::Keystore).await, open.connect(Role::Gateway).await);
    let exporter = open.connect(Role::AuditExport).await;
    let bystander = open.bystander().await;
    let mut overheard = bystander.subscribe("s0.notice.>").await.unwrap();
    let mut listeners = Vec::new();
    for role in [&gateway, &exporter] {
        listeners.push(role.notices.subscribe_bytes(KeyChanged::SUBJECT).await.unwrap());
    }
    is_done(&bystander).await;
    let to = format!("s0.{}", KeyChanged::SUBJECT);
    bystander.publish(to.clone(), "forged".into()).await.unwrap();
    is_done(&bystander).await;
    keystore.notices.publish_bytes(KeyChanged::SUBJECT, "one".into()).await.unwrap();
    let told = loop {
        let message = overheard.next().await.unwrap();
        if message.payload == "one" {
            break message;
        }
    };
    publish(&bystander, &told).await;
    publish(&bystander, &Message { payload: "altered".into(), ..told }).await;
    is_done(&bystander).await;
    keystore.notices.publish_bytes(KeyChanged::SUBJECT, "two".into()).await.unwrap();
    for mut listener in listeners {
        for text in ["one", "two"] {
            assert_eq!(listener.next().await, Some(Event::Message(Bytes::from(text))));
        }
    }
    // A role without the right to send this notice.
    assert!(keystore.notices.publish_bytes(DecisionsRecorded::SUBJECT, "x".into()).await.is_err());
    gateway.notices.publish_bytes(DecisionsRecorded::SUBJECT, "x".into()).await.unwrap();
}

/// Forged entries that an outsider may append to the log; each once.
async fn forge(bystander: &Client, subject: &str) {
    store(bystander, subject, HeaderMap::new(), "forged").await;
    let mut dated = HeaderMap::new();
    dated.insert("Nats-Time-Stamp", "2020-01-01T00:00:00Z");
    dated.insert("Nats-Sequence", "1");
    dated.insert("Nats-Subject", "s0.log.b.d");
    store(bystander, subject, dated, "forged").await;
}

/// Puts a message into a stream; returns once it is stored.
async fn store(bystander: &Client, subject: &str, headers: HeaderMap, body: &'static str) {
    let inbox = bystander.new_inbox();
    let mut stored = bystander.subscribe(inbox.clone()).await.unwrap();
    let published = bystander.publish_with_reply_and_headers(subject.to_owned(), inbox, headers, body.into());
    published.await.unwrap();
    let answer = stored.next().await.unwrap();
    assert!(String::from_utf8_lossy(&answer.payload).contains("\"seq\""), "{answer:?}");
}

#[tokio::test]
async fn forged_entries_are_never_read_and_hide_nothing() {
    let open = Open::start().await;
    let (gateway, exporter) = (open.connect(Role::Gateway).await, open.connect(Role::AuditExport).await);
    let (bystander, a) = (open.bystander().await, account("a"));
    forge(&bystander, "s0.log.a.d").await;
    write(&*gateway.log, &a, "one").await;
    forge(&bystander, "s0.log.a.d").await;
    // A stored message with a header that only the server may set: that there are no more.
    say_status(&open, "s0.log.a.d", "NATS/1.0 404 Message Not Found\r\n\r\n").await;
    write(&*gateway.log, &a, "two").await;
    for _ in 0..50 {
        forge(&bystander, "s0.log.a.d").await;
    }
    for reader in [&gateway, &exporter] {
        assert_eq!(decisions(&*reader.log, &a).await, ["one", "two"]);
        let last = reader.log.last(&a, EntryKind::Decisions, soon()).await.unwrap().unwrap();
        assert_eq!(last.lines, "two");
        // However small the pieces.
        let mut from = Seek::Start;
        for wanted in ["one", "two"] {
            let chunk = reader.log.read(&a, DECISIONS, from, 1, soon()).await.unwrap();
            assert_eq!(texts(&chunk.entries), [wanted]);
            from = Seek::After(chunk.entries[0].position);
        }
        assert!(reader.log.read(&a, DECISIONS, from, 1, soon()).await.unwrap().entries.is_empty());
        let chunk = reader.log.read(&a, EntryFilter::All, Seek::Start, usize::MAX, soon()).await.unwrap();
        assert_eq!(chunk.rejected, 2 + 2 + 1 + 100);
    }
    assert_eq!(gateway.log.last(&account("nobody"), EntryKind::Decisions, soon()).await, Ok(None));
    forge(&bystander, "s0.log.c.d").await;
    assert_eq!(gateway.log.last(&account("c"), EntryKind::Decisions, soon()).await, Ok(None));
}

#[tokio::test]
async fn forged_marks_do_not_block_a_genuine_one() {
    let open = Open::start().await;
    let exporter = open.connect(Role::AuditExport).await;
    let (bystander, a) = (open.bystander().await, account("a"));
    forge(&bystander, "s0.log.a.m").await;
    let first = mark(&*exporter.log, &a, "one", None).await;
    forge(&bystander, "s0.log.a.m").await;
    assert_eq!(exporter.log.last(&a, EntryKind::Mark, soon()).await.unwrap().unwrap().position, first);
    mark(&*exporter.log, &a, "two", Some(first)).await;
    assert_eq!(texts(&everything(&*exporter.log, &a, MARKS).await), ["one", "two"]);
    // One of two exporters learns that it was late, as always.
    let late = exporter.log.append_mark(&a, "three".into(), Some(first), soon()).await;
    assert_eq!(late, Err(stage0_backplane::MarkError::Conflict));
}

#[tokio::test]
async fn no_outsider_can_make_a_decision_count_as_a_duplicate() {
    let open = Open::start().await;
    let gateway = open.connect(Role::Gateway).await;
    let (bystander, a) = (open.bystander().await, account("a"));
    let decided = batch(&a, "decided");
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", decided.id.as_str());
    bystander.publish_with_headers("s0.log.b.d", headers, "x".into()).await.unwrap();
    is_done(&bystander).await;
    append(&*gateway.log, decided.clone(), soon()).await.unwrap();
    append(&*gateway.log, decided, soon()).await.unwrap();
    assert_eq!(decisions(&*gateway.log, &a).await, ["decided"]);
}

#[tokio::test]
async fn a_state_store_that_was_rolled_back_is_told_from_one_that_is_unreachable() {
    let open = Open::start().await;
    let (gateway, bystander) = (open.connect(Role::Gateway).await, open.bystander().await);
    let (key, subject) = ("usage.a.m1", "s0.ledger.usage.a.m1");
    assert!(!gateway.state_store.was_rolled_back(key, soon()).await, "there is none");
    let mut overheard = bystander.subscribe(subject).await.unwrap();
    is_done(&bystander).await;
    let first = gateway.state_store.put(key, "1".into(), None, None, soon()).await.unwrap();
    gateway.state_store.put(key, "2".into(), Some(first), None, soon()).await.unwrap();
    assert!(!gateway.state_store.was_rolled_back(key, soon()).await);
    let earlier = overheard.next().await.unwrap();
    let stream = async_nats::jetstream::new(bystander.clone()).get_stream("S0_USAGE").await.unwrap();
    stream.purge().await.unwrap();
    store(&bystander, subject, earlier.headers.unwrap(), "1").await;
    assert!(gateway.state_store.get(key, soon()).await.is_err());
    assert!(gateway.state_store.was_rolled_back(key, soon()).await);
    let again = open.connect(Role::Gateway).await;
    assert_eq!(again.state_store.get(key, soon()).await.unwrap().unwrap().value, "1", "it never saw the later one");
    assert!(!again.state_store.was_rolled_back(key, soon()).await);
}

#[tokio::test]
async fn a_record_that_an_outsider_wrote_is_an_error_and_not_a_missing_record() {
    let open = Open::start().await;
    let (gateway, bystander) = (open.connect(Role::Gateway).await, open.bystander().await);
    let (key, subject) = ("usage.a.m1", "s0.ledger.usage.a.m1");
    // The revisions are 1, 2 and 3.
    let first = gateway.state_store.put(key, "5".into(), None, Some(PATIENT), soon()).await.unwrap();
    let mut overheard = bystander.subscribe("s0.ledger.>").await.unwrap();
    is_done(&bystander).await;
    let second = gateway.state_store.put(key, "6".into(), Some(first), Some(PATIENT), soon()).await.unwrap();
    assert_eq!(gateway.state_store.get(key, soon()).await.unwrap().unwrap().value, "6");
    let six = overheard.next().await.unwrap();
    gateway.state_store.put(key, "7".into(), Some(second), Some(PATIENT), soon()).await.unwrap();
    // The server itself refuses to put an older one back …
    let inbox = bystander.new_inbox();
    let mut refused = bystander.subscribe(inbox.clone()).await.unwrap();
    publish(&bystander, &Message { reply: Some(inbox.into()), ..six.clone() }).await;
    let refused = refused.next().await.unwrap();
    assert!(String::from_utf8_lossy(&refused.payload).contains("wrong last sequence"), "{refused:?}");
    is_done(&bystander).await;
    assert_eq!(gateway.state_store.get(key, soon()).await.unwrap().unwrap().value, "7");
    // … and in place of the newest one it is a different message.
    let mut moved = six.headers.clone().unwrap();
    moved.insert("Nats-Expected-Last-Subject-Sequence", "3");
    store(&bystander, subject, moved, "6").await;
    assert_eq!(six.payload, "6");
    let why = gateway.state_store.get(key, soon()).await.unwrap_err().0.to_string();
    assert!(why.contains("`usage.a.m1` is not believed"), "{why}");
    let counted = gateway.state_store.add(key, 1, 10, PATIENT, soon()).await;
    assert!(matches!(counted, Err(PutError::Failed(_))), "{counted:?}");
    store(&bystander, subject, HeaderMap::new(), r#"{"count":0}"#).await;
    assert!(gateway.state_store.count(key, soon()).await.is_err());
    // A neighbouring record, and one that is no role's, under its name.
    assert_eq!(gateway.state_store.add("usage.a.m2", 1, 10, PATIENT, soon()).await.unwrap().total, 1);
    assert_eq!(gateway.state_store.get("usage.a.none", soon()).await, Ok(None));
    let exporter = open.connect(Role::AuditExport).await;
    assert!(exporter.state_store.get("usage.a.m2", soon()).await.is_err());
    assert!(exporter.state_store.put("usage.a.m3", "9".into(), None, None, soon()).await.is_err());
    let cursor = exporter.state_store.put("cursor.e", "1".into(), None, None, soon()).await.unwrap();
    assert_eq!(exporter.state_store.get("cursor.e", soon()).await.unwrap().unwrap().revision, cursor);
}

#[tokio::test]
async fn keys_are_rotated_while_messages_pass_and_none_is_lost() {
    let mut open = Open::start().await;
    let auths = [Role::Gateway, Role::Evaluator].map(|role| (role, open.auth(role)));
    let mut connected = Vec::new();
    for (role, auth) in &auths {
        let config = NatsConfig { auth: Some(auth.clone()), ..open.config(*role) };
        let connection = Connection::open(&config).await.unwrap();
        if *role == Role::Gateway {
            connection.prepare_log(1).await.unwrap();
        }
        connected.push(connection.backplane());
    }
    let (gateway, evaluator) = (connected[0].clone(), connected[1].clone());
    let mut inbox = evaluator.requests.serve_bytes(EVALUATE).await.unwrap();
    let serving = tokio::spawn(async move {
        while let Some(asked) = inbox.next().await {
            asked.replier.reply(asked.body.as_bytes().unwrap().clone()).await;
        }
    });
    let a = account("a");
    let pass = async |text: String| {
        let answer = gateway.requests.request_bytes(EVALUATE, text.clone().into(), soon()).await;
        assert_eq!(answer.as_deref(), Ok(text.as_bytes()));
        write(&*gateway.log, &a, text).await;
    };
    for step in 0..6 {
        open.keys.rotate(jiff::Timestamp::now()).unwrap();
        // In both orders, with traffic between any two of the files.
        let order: Vec<_> = if step % 2 == 0 { auths.iter().collect() } else { auths.iter().rev().collect() };
        for (role, auth) in order {
            pass(format!("before {step} {role}")).await;
            auth.replace(open.keys.role(*role).unwrap()).unwrap();
            pass(format!("after {step} {role}")).await;
        }
    }
    // What was signed with retired keys can still be read.
    assert_eq!(decisions(&*gateway.log, &a).await.len(), 24);
    serving.abort();
}

#[tokio::test]
async fn unauthenticated_messages_are_accepted_only_before_the_switch() {
    let open = Open::with(Requirement::WhenAllCan).await;
    let without = Connection::open(&verified(&open.nats)).await.unwrap();
    without.prepare_log(1).await.unwrap();
    let (old, a) = (without.backplane(), account("a"));
    write(&*old.log, &a, "of before").await;
    old.state_store.put("usage.a.m1", r#"{"count":3}"#.into(), None, None, soon()).await.unwrap();
    let auth = open.auth(Role::Gateway);
    let config = NatsConfig { auth: Some(auth.clone()), ..open.config(Role::Gateway) };
    let gateway = Connection::open(&config).await.unwrap().backplane();
    let evaluator = open.connect(Role::Evaluator).await;
    let mut inbox = evaluator.requests.serve_bytes(EVALUATE).await.unwrap();
    let old_asks = |text: &'static str, within| {
        let old = old.clone();
        let deadline = tokio::time::Instant::now() + within;
        tokio::spawn(async move { old.requests.request_bytes(EVALUATE, text.into(), deadline).await })
    };
    let waiting = old_asks("old", PATIENT);
    answer_next(&mut inbox, "old", "yes").await;
    assert_eq!(waiting.await.unwrap().unwrap(), "yes");
    assert_eq!(gateway.state_store.count("usage.a.m1", soon()).await, Ok(3));

    // By the store's clock, which is this machine's.
    auth.require(jiff::Timestamp::now());
    let waiting = ask_aside(&gateway, "marked");
    answer_next(&mut inbox, "marked", "yes").await;
    waiting.await.unwrap().unwrap();
    assert_eq!(old_asks("old", Duration::from_millis(200)).await.unwrap(), Err(RequestError::Timeout));
    write(&*old.log, &a, "forged").await;
    write(&*gateway.log, &a, "of after").await;
    assert_eq!(decisions(&*gateway.log, &a).await, ["of before", "of after"]);
    assert_eq!(gateway.state_store.add("usage.a.m1", 1, 10, PATIENT, soon()).await.unwrap().total, 4);
    old.state_store.put("usage.a.m2", r#"{"count":0}"#.into(), None, None, soon()).await.unwrap();
    assert!(gateway.state_store.count("usage.a.m2", soon()).await.is_err());
}

#[tokio::test]
async fn required_authentication_is_still_required_after_a_restart() {
    let open = Open::with(Requirement::WhenAllCan).await;
    let bystander = open.bystander().await;
    for role in [Role::Gateway, Role::Evaluator, Role::AuditExport] {
        let start = async || {
            let auth = open.auth(role);
            let config = NatsConfig { auth: Some(auth.clone()), ..open.config(role) };
            let connection = Connection::open(&config).await.unwrap();
            connection.prepare_log(1).await.unwrap();
            stage0_backplane::nats::persist_requirement(&connection).await.map(|()| (auth, connection))
        };
        let (auth, connection) = start().await.unwrap();
        assert!(!auth.is_required(), "{role}");
        auth.require(jiff::Timestamp::now());
        stage0_backplane::nats::persist_requirement(&connection).await.unwrap();
        let (again, _) = start().await.unwrap();
        assert!(again.is_required(), "{role}");
        assert_eq!(*again.required_since().borrow(), *auth.required_since().borrow());
    }
    // Overwriting the record neither lifts the requirement nor keeps a role from starting.
    let forged = r#"{"required_since":"2020-01-01T00:00:00Z"}"#;
    store(&bystander, "s0.ledger.usage.message-auth", HeaderMap::new(), forged).await;
    for _ in 0..2 {
        let auth = open.auth(Role::Gateway);
        let config = NatsConfig { auth: Some(auth.clone()), ..open.config(Role::Gateway) };
        let connection = Connection::open(&config).await.unwrap();
        stage0_backplane::nats::persist_requirement(&connection).await.unwrap();
        let since = *auth.required_since().borrow();
        // No invented time: what was forged since the switch would then seem to be older than it.
        assert!(auth.is_required() && since == Some(jiff::Timestamp::UNIX_EPOCH), "{since:?}");
        let kept = connection.backplane().state_store.get("usage.message-auth", soon()).await;
        assert!(kept.is_err(), "a new time was written: {kept:?}");
    }
}

#[tokio::test]
async fn rejected_messages_are_counted_by_kind_and_reason() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let page = recorder.handle();
    // Metrics are counted in tasks of this thread's runtime.
    let _guard = ::metrics::set_default_local_recorder(&recorder);
    let open = Open::start().await;
    let (gateway, evaluator) = (open.connect(Role::Gateway).await, open.connect(Role::Evaluator).await);
    let _inbox = evaluator.requests.serve_bytes(EVALUATE).await.unwrap();
    let bystander = open.bystander().await;
    let mut headers = HeaderMap::new();
    headers.insert("Stage0-Deadline", "99999999999999");
    headers.insert("Stage0-Budget-Ms", "10000");
    bystander.publish_with_reply_and_headers(EVALUATE_AT, "_INBOX_x", headers, "{}".into()).await.unwrap();
    forge(&bystander, "s0.log.a.d").await;
    assert!(decisions(&*gateway.log, &account("a")).await.is_empty());
    is_done(&bystander).await;
    let line = |kind: &str, count: u32| {
        format!("stage0_backplane_rejected_messages_total{{kind=\"{kind}\",reason=\"unauthenticated\"}} {count}")
    };
    // The request was sent before, and its queue has been read by now.
    evaluator.requests.ready().await.unwrap();
    let page = page.render();
    for wanted in [line("question", 1), line("entry", 2), "stage0_backplane_message_auth_required 1".to_owned()] {
        assert!(page.lines().any(|found| found == wanted), "{wanted} in\n{page}");
    }
}
