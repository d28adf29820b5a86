//! What `stage0 nats-config` writes, on a real server: each role can do its part, and nothing of another's.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use stage0_backplane::clock::boottime;
use stage0_backplane::nats::{Connection, Login, NatsConfig, ServerFile};
use stage0_backplane::testing::NatsServer;
use stage0_backplane::{
    AppendError, AskError, Backplane, ClockError, Event, Kind, Liveness, MarkError, Position, PutError, Seek, Which,
};
use stage0_contract::{
    CreateAccount, CreateKey, CreateWebhook, DecisionsRecorded, DeleteDecisions, DeleteWebhook, DisableWebhook,
    EnableWebhook, EndRun, EvaluateRequest, EvaluatorStatus, GetWebhook, InstanceSeen, KeyChanged, KeystoreStatus,
    ListAccounts, ListDeliveries, ListEndpoints, ListKeys, ListRetentions, ListWebhooks, Notice, RefreshKey,
    ReplayWebhook, Request, ReviewRequest, RevokeKey, Role, RotateKey, RotateWebhookSecret, SettleRun, ShowRun,
    SignMark, SigningKeys, TestWebhook, UpdateAccount, UpdateWebhook, VerifyKey, WebhookChanged,
};
use tokio::time::Instant;

use crate::PATIENT;
use crate::writing::{account, append, batch, decisions, everything, mark, soon, verified, write};

/// What a gateway asks of the keystore.
const OF_KEYS: [&str; 18] = [
    VerifyKey::SUBJECT,
    RefreshKey::SUBJECT,
    KeystoreStatus::SUBJECT,
    CreateAccount::SUBJECT,
    ListAccounts::SUBJECT,
    UpdateAccount::SUBJECT,
    CreateKey::SUBJECT,
    ListKeys::SUBJECT,
    RotateKey::SUBJECT,
    RevokeKey::SUBJECT,
    CreateWebhook::SUBJECT,
    ListWebhooks::SUBJECT,
    GetWebhook::SUBJECT,
    UpdateWebhook::SUBJECT,
    EnableWebhook::SUBJECT,
    RotateWebhookSecret::SUBJECT,
    DeleteWebhook::SUBJECT,
    SigningKeys::SUBJECT,
];
const OF_DECISIONS: [&str; 6] = [
    EvaluateRequest::SUBJECT,
    ReviewRequest::SUBJECT,
    EvaluatorStatus::SUBJECT,
    ShowRun::SUBJECT,
    EndRun::SUBJECT,
    SettleRun::SUBJECT,
];
const OF_DELIVERY: [&str; 4] =
    [TestWebhook::SUBJECT, ReplayWebhook::SUBJECT, ListDeliveries::SUBJECT, DeleteDecisions::SUBJECT];
/// What audit-export asks of the keystore, and nobody else.
const OF_SECRETS: [&str; 4] =
    [ListEndpoints::SUBJECT, DisableWebhook::SUBJECT, SignMark::SUBJECT, ListRetentions::SUBJECT];

/// The file as `stage0 nats-config` writes it, but for addresses, TLS and passwords.
async fn server() -> NatsServer {
    let file = ServerFile {
        prefix: "s0".to_owned(),
        name: "n1".to_owned(),
        listen: "127.0.0.1:4222".parse().unwrap(),
        monitor: "127.0.0.1:8222".parse().unwrap(),
        tls_dir: "/etc/nats".into(),
        store_dir: "/var/lib/nats".into(),
        max_file: "20GB".to_owned(),
        passwords: None,
    };
    let (mut settings, mut in_tls) = (String::new(), false);
    for line in file.render().lines() {
        in_tls |= line.starts_with("tls {");
        let of_this_place =
            ["server_name:", "listen:", "http:", "ping_interval:"].iter().any(|name| line.starts_with(name));
        if !in_tls && !of_this_place && !line.contains("store_dir:") {
            settings.push_str(line);
            settings.push('\n');
        }
        in_tls &= line != "}";
    }
    for role in Role::ALL {
        let variable = format!("${}", ServerFile::password_variable(role));
        assert!(settings.contains(&variable), "{variable}");
        settings = settings.replace(&variable, "\"right\"");
    }
    NatsServer::start_with(&settings).await
}

async fn open(nats: &NatsServer, role: &str) -> Connection {
    let login = Login::Password { user: role.to_owned(), password: "right".to_owned() };
    let jetstream_api = "s0.api".to_owned();
    let config = NatsConfig { name: role.to_owned(), login: Some(login), jetstream_api, ..verified(nats) };
    Connection::open(&config).await.unwrap()
}

async fn prepared(nats: &NatsServer, role: &str) -> Backplane {
    let connection = open(nats, role).await;
    connection.prepare_log(1).await.unwrap();
    connection.backplane()
}

/// A server whose streams were made by the one who makes them.
async fn with_streams() -> (NatsServer, Backplane) {
    let nats = server().await;
    let exporter = prepared(&nats, "audit-export").await;
    (nats, exporter)
}

/// Serves subjects by returning what was asked; the tasks end with the value.
async fn serve(backplane: &Backplane, subjects: &[&'static str]) -> tokio::task::JoinSet<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for subject in subjects {
        let mut inbox = backplane.requests.serve_bytes(subject).await.unwrap();
        tasks.spawn(async move {
            while let Some(asked) = inbox.next().await {
                asked.replier.reply(asked.question).await;
            }
        });
    }
    tasks
}

async fn ask_each(backplane: &Backplane, subjects: &[&'static str]) {
    for subject in subjects {
        let answer = backplane.requests.ask_bytes(subject, Bytes::from_static(b"{}"), soon()).await;
        assert_eq!(answer.as_deref(), Ok(&b"{}"[..]), "{subject}");
    }
}

#[tokio::test]
async fn a_gateway_makes_no_streams_and_says_who_does() {
    let nats = server().await;
    let started = Instant::now();
    let why = open(&nats, "gateway").await.prepare_log(1).await.unwrap_err().to_string();
    assert!(why.contains("`S0_LOG` is missing") && why.contains("start audit-export"), "{why}");
    assert!(started.elapsed() < PATIENT / 6, "{:?}", started.elapsed());
    let _exporter = prepared(&nats, "audit-export").await;
    let gateway = prepared(&nats, "gateway").await;
    assert_eq!(gateway.log.ready().await, Ok(Vec::new()));
    gateway.requests.ready().await.unwrap();
}

#[tokio::test]
async fn every_role_asks_serves_tells_and_hears_what_it_needs() {
    let (nats, exporter) = with_streams().await;
    let gateway = prepared(&nats, "gateway").await;
    let (evaluator, keystore) = (open(&nats, "evaluator").await.backplane(), open(&nats, "keystore").await.backplane());
    let _serving = [
        serve(&evaluator, &OF_DECISIONS).await,
        serve(&keystore, &OF_KEYS).await,
        serve(&keystore, &OF_SECRETS).await,
        serve(&exporter, &OF_DELIVERY).await,
    ];
    for subjects in [&OF_DECISIONS[..], &OF_KEYS, &OF_DELIVERY] {
        ask_each(&gateway, subjects).await;
    }
    ask_each(&exporter, &OF_SECRETS).await;
    ask_each(&exporter, &[SigningKeys::SUBJECT]).await;

    for (teller, subject) in
        [(&keystore, KeyChanged::SUBJECT), (&keystore, WebhookChanged::SUBJECT), (&gateway, DecisionsRecorded::SUBJECT)]
    {
        for hearer in [&gateway, &exporter] {
            let mut hearing = hearer.notices.listen_bytes(subject).await.unwrap();
            teller.notices.tell_bytes(subject, Bytes::from_static(b"{}")).await.unwrap();
            assert_eq!(hearing.next().await, Some(Event::Heard(Bytes::from_static(b"{}"))), "{subject}");
        }
    }
    for role in [&gateway, &evaluator, &keystore, &exporter] {
        role.requests.ready().await.unwrap();
    }
}

#[tokio::test]
async fn the_gateway_appends_and_reads_and_audit_export_does_the_rest() {
    let (nats, exporter) = with_streams().await;
    let (gateway, a) = (prepared(&nats, "gateway").await, account("a"));
    for text in ["one", "two"] {
        write(&*gateway.log, &a, text).await;
    }
    let first = mark(&*exporter.log, &a, "mark", None).await;
    for reader in [&gateway, &exporter] {
        assert_eq!(everything(&*reader.log, &a, Which::All).await.len(), 3);
        assert_eq!(reader.log.last(&a, Kind::Mark, soon()).await.unwrap().unwrap().position, first);
        assert_eq!(reader.log.accounts(soon()).await.unwrap(), std::slice::from_ref(&a));
        assert_eq!(reader.log.ready().await, Ok(Vec::new()));
    }
    let revision = exporter.ledger.put("cursor.a", "1".into(), None, None, soon()).await.unwrap();
    exporter.ledger.put("cursor.a", "2".into(), Some(revision), Some(PATIENT), soon()).await.unwrap();
    assert_eq!(exporter.ledger.get("cursor.a", soon()).await.unwrap().unwrap().value, "2");
    assert_eq!(exporter.log.remove_through(&a, Kind::Decisions, first, soon()).await, Ok(2));
    exporter.log.expire_after(Duration::from_secs(86_400), soon()).await.unwrap();
    gateway.requests.ready().await.unwrap();
    exporter.requests.ready().await.unwrap();
}

#[tokio::test]
async fn a_gateway_can_neither_remove_nor_expire_nor_write_marks_or_records() {
    let (nats, exporter) = with_streams().await;
    let (gateway, a) = (prepared(&nats, "gateway").await, account("a"));
    write(&*gateway.log, &a, "kept").await;
    let started = Instant::now();
    let (log, ledger) = (&gateway.log, &gateway.ledger);
    let removed = log.remove_through(&a, Kind::Decisions, Position(u64::MAX), soon()).await;
    assert!(removed.unwrap_err().to_string().contains("this service may not ask"));
    assert!(log.expire_after(Duration::from_secs(1), soon()).await.is_err());
    assert!(ledger.get("k", soon()).await.is_err());
    assert!(matches!(log.append_mark(&a, "forged".into(), None, soon()).await, Err(MarkError::Failed(_))));
    assert!(matches!(ledger.put("k", "forged".into(), None, None, soon()).await, Err(PutError::Failed(_))));
    let _serving = serve(&open(&nats, "keystore").await.backplane(), &OF_SECRETS).await;
    for subject in OF_SECRETS {
        let answer = gateway.requests.ask_bytes(subject, Bytes::new(), soon()).await;
        assert_eq!(answer, Err(AskError::Absent), "{subject}");
    }
    assert!(started.elapsed() < PATIENT / 2, "a refusal was waited for");
    raw_messages_change_nothing(&nats, "gateway", &exporter).await;
}

#[tokio::test]
async fn a_gateway_and_an_exporter_can_prove_that_notices_of_the_keystore_arrive() {
    let nats = server().await;
    let keystore = open(&nats, "keystore").await.backplane();
    for (role, subject) in [("gateway", KeyChanged::SUBJECT), ("audit-export", WebhookChanged::SUBJECT)] {
        let (one, other) = (open(&nats, role).await.backplane(), open(&nats, role).await.backplane());
        let liveness = Liveness::new();
        let mut proving = one.notices.listen_bytes(subject).await.unwrap();
        proving.prove(Arc::clone(&liveness));
        // Another process of the role hears the echoes, and thinks nothing of them.
        let mut beside = other.notices.listen_bytes(subject).await.unwrap();
        for _ in 0..3 {
            let since = boottime();
            tokio::select! {
                () = liveness.wait_until(|| liveness.proven_at() >= Some(since)) => {}
                event = proving.next() => panic!("{event:?}"),
                event = beside.next() => panic!("{event:?}"),
                () = tokio::time::sleep(PATIENT) => panic!("{role} proves nothing"),
            }
        }
        keystore.notices.tell_bytes(subject, Bytes::from_static(b"{}")).await.unwrap();
        for listener in [&mut proving, &mut beside] {
            assert_eq!(listener.next().await, Some(Event::Heard(Bytes::from_static(b"{}"))), "{role}");
        }
        one.requests.ready().await.unwrap();
    }
}

#[tokio::test]
async fn an_evaluator_and_a_keystore_can_neither_append_nor_read_the_log() {
    let (nats, exporter) = with_streams().await;
    write(&*prepared(&nats, "gateway").await.log, &account("a"), "kept").await;
    for role in ["evaluator", "keystore"] {
        let (backplane, a) = (open(&nats, role).await.backplane(), account("a"));
        let answer = append(&*backplane.log, batch(&a, "forged"), soon()).await;
        assert!(matches!(answer, Err(AppendError::NotStored(_))), "{answer:?}");
        assert!(backplane.log.append_mark(&a, "forged".into(), None, soon()).await.is_err());
        assert!(backplane.log.read(&a, Which::All, Seek::Start, 1, soon()).await.is_err());
        assert!(backplane.log.last(&a, Kind::Decisions, soon()).await.is_err());
        assert!(backplane.log.accounts(soon()).await.is_err());
        assert!(backplane.ledger.get("k", soon()).await.is_err());
        assert!(backplane.log.ready().await.is_err());
        raw_messages_change_nothing(&nats, role, &exporter).await;
    }
}

#[tokio::test]
async fn each_role_has_its_own_records_and_no_others() {
    let (nats, exporter) = with_streams().await;
    let (gateway, evaluator) = (prepared(&nats, "gateway").await, open(&nats, "evaluator").await.backplane());
    let keystore = open(&nats, "keystore").await.backplane();
    let records = ["runs.a.r", "usage.a.m1", "idempotency.a.k.h", "cursor.a"];
    for record in records {
        exporter.ledger.put(record, "there".into(), None, None, soon()).await.unwrap();
    }
    for (role, own) in [(&gateway, &records[1..3]), (&evaluator, &records[..1]), (&keystore, &[])] {
        for record in records {
            let found = role.ledger.get(record, soon()).await;
            if !own.contains(&record) {
                assert!(found.is_err(), "{record}: {found:?}");
                let put = role.ledger.put(record, "forged".into(), None, None, soon()).await;
                assert!(matches!(put, Err(PutError::Failed(_))), "{record}: {put:?}");
                continue;
            }
            let found = found.unwrap().unwrap();
            assert_eq!(found.value, "there");
            role.ledger.put(record, "mine".into(), Some(found.revision), Some(PATIENT), soon()).await.unwrap();
        }
        // A record that is not there is none, and not silence.
        for record in own {
            assert_eq!(role.ledger.get(&format!("{record}.none"), soon()).await, Ok(None));
        }
    }
    let (run, raw) = ("s0.ledger.runs.a.r", raw(&nats, "evaluator").await);
    // By way of the server's answers: what it reads for one role goes to no other's record.
    for harmful in ["s0.ledger.usage.a.m1", "s0.ledger.cursor.a", "s0.log.a.d"] {
        raw.publish_with_reply(run, harmful, Bytes::from_static(b"x")).await.unwrap();
        let read = format!("s0.api.DIRECT.GET.S0_LEDGER.{run}");
        raw.publish_with_reply(read, harmful, Bytes::new()).await.unwrap();
    }
    is_done(&raw).await;
    assert_eq!(exporter.log.ready().await, Ok(Vec::new()));
    assert_eq!(exporter.ledger.get("usage.a.m1", soon()).await.unwrap().unwrap().value, "mine");
    assert_eq!(exporter.ledger.get("cursor.a", soon()).await.unwrap().unwrap().value, "there");
    assert!(everything(&*exporter.log, &account("a"), Which::All).await.is_empty());
}

#[tokio::test]
async fn gateways_and_evaluators_read_the_stores_clock_and_a_keystore_cannot() {
    let (nats, _exporter) = with_streams().await;
    for role in ["gateway", "evaluator"] {
        let ledger = open(&nats, role).await.backplane().ledger;
        assert_eq!(ledger.clock().judge(), Err(ClockError::Unknown), "{role}");
        assert_eq!(ledger.read_clock(Duration::ZERO, soon()).await, Ok(()), "{role}");
        let differs = ledger.clock().now().duration_since(jiff::Timestamp::now());
        assert!(differs.as_secs().abs() <= 2, "{role}: {differs:?}");
    }
    let ledger = open(&nats, "keystore").await.backplane().ledger;
    assert_eq!(ledger.read_clock(Duration::ZERO, soon()).await, Err(ClockError::Unknown));
}

#[tokio::test]
async fn audit_export_cannot_append_decisions() {
    let (nats, exporter) = with_streams().await;
    let a = account("a");
    write(&*prepared(&nats, "gateway").await.log, &a, "kept").await;
    let answer = append(&*exporter.log, batch(&a, "forged"), soon()).await;
    assert!(matches!(answer, Err(AppendError::NotStored(_))), "{answer:?}");
    let _serving = serve(&open(&nats, "keystore").await.backplane(), &[VerifyKey::SUBJECT]).await;
    let asked = exporter.requests.ask_bytes(VerifyKey::SUBJECT, Bytes::new(), soon()).await;
    assert_eq!(asked, Err(AskError::Absent));

    // By way of the server's answers: an acknowledgement, and a record of one's own.
    let raw = raw(&nats, "audit-export").await;
    exporter.ledger.put("k", "forged".into(), None, None, soon()).await.unwrap();
    raw.publish_with_reply("s0.ledger.other", "s0.log.a.d", Bytes::new()).await.unwrap();
    raw.publish_with_reply("s0.api.DIRECT.GET.S0_LEDGER.s0.ledger.k", "s0.log.a.d", Bytes::new()).await.unwrap();
    is_done(&raw).await;
    assert_eq!(decisions(&*exporter.log, &a).await, ["kept"]);
}

/// What would do harm, if it could be sent there.
const HARMFUL: [&str; 20] = [
    "$JS.API.STREAM.DELETE.S0_LOG",
    "$JS.API.STREAM.DELETE.S0_LEDGER",
    "$JS.API.STREAM.PURGE.S0_LOG",
    "$JS.API.STREAM.PURGE.S0_LEDGER",
    "$JS.API.STREAM.UPDATE.S0_LOG",
    "$JS.API.STREAM.MSG.DELETE.S0_LOG",
    "$JS.API.STREAM.RESTORE.S0_LOG",
    "$JS.API.CONSUMER.CREATE.S0_LOG",
    "s0.api.STREAM.DELETE.S0_LOG",
    "s0.api.STREAM.DELETE.S0_LEDGER",
    "s0.api.STREAM.PURGE.S0_LOG",
    "s0.api.STREAM.PURGE.S0_LEDGER",
    "s0.api.STREAM.UPDATE.S0_LOG",
    "s0.api.STREAM.MSG.DELETE.S0_LOG",
    "s0.log.a.m",
    "s0.log.victim.m",
    "s0.ledger.k",
    "s0.req.keys.sign",
    "s0.req.keys.endpoints.list",
    "_INBOX_audit-export.x",
];

async fn raw(nats: &NatsServer, role: &str) -> async_nats::Client {
    let options = async_nats::ConnectOptions::new().user_and_password(role.to_owned(), "right".to_owned());
    options.custom_inbox_prefix(format!("_INBOX_{role}")).connect(nats.url()).await.unwrap()
}

/// The server has handled what this client sent before.
async fn is_done(client: &async_nats::Client) {
    let inbox = client.new_inbox();
    let mut echo = client.subscribe(inbox.clone()).await.unwrap();
    client.publish(inbox, Bytes::new()).await.unwrap();
    echo.next().await.unwrap();
}

/// What a role that was taken over might send by itself, or have the server send in its place.
async fn raw_messages_change_nothing(nats: &NatsServer, role: &str, exporter: &Backplane) {
    let (client, a) = (raw(nats, role).await, account("a"));
    let mut snooping = Vec::new();
    for subject in [">", "s0.>", "$JS.>", "_INBOX_audit-export.>", "_R_.>"] {
        snooping.push(client.subscribe(subject).await.unwrap());
    }
    is_done(&client).await;
    let key = format!("snooped.{role}");
    exporter.ledger.put(&key, "secret".into(), None, None, soon()).await.unwrap();
    // An empty object is a request to purge all, and an empty record.
    client.publish("s0.log.a.d", Bytes::from_static(b"{}")).await.unwrap();
    is_done(&client).await;
    let before = everything(&*exporter.log, &a, Which::All).await;
    assert_eq!(before.len(), if role == "gateway" { 2 } else { 1 });

    let last = Bytes::from_static(b"{\"last_by_subj\":\"s0.log.a.d\"}");
    let batch = Bytes::from_static(b"{\"batch\":9,\"seq\":1,\"next_by_subj\":\"s0.log.a.d\"}");
    for harmful in HARMFUL {
        client.publish(harmful, Bytes::from_static(b"{}")).await.unwrap();
        for get in [&last, &batch] {
            for api in ["s0.api", "$JS.API"] {
                let to = format!("{api}.DIRECT.GET.S0_LOG");
                client.publish_with_reply(to, harmful, get.clone()).await.unwrap();
            }
        }
        client.publish_with_reply("s0.api.STREAM.INFO.S0_LOG", harmful, Bytes::new()).await.unwrap();
        client.publish_with_reply("s0.log.other.d", harmful, Bytes::from_static(b"{}")).await.unwrap();
        // To oneself, and an answer to that.
        client.publish_with_reply(client.new_inbox(), harmful, Bytes::new()).await.unwrap();
        client.publish(harmful, Bytes::from_static(b"{}")).await.unwrap();
    }
    is_done(&client).await;
    // Requests of one kind are handled in order: this one comes last.
    assert_eq!(exporter.log.ready().await, Ok(Vec::new()));
    assert_eq!(everything(&*exporter.log, &a, Which::All).await, before);
    assert!(everything(&*exporter.log, &account("victim"), Which::All).await.is_empty());
    assert_eq!(exporter.ledger.get("k", soon()).await, Ok(None));
    assert_eq!(exporter.ledger.get(&key, soon()).await.unwrap().unwrap().value, "secret");
    for mut heard in snooping {
        heard.unsubscribe().await.unwrap();
        while let Some(message) = heard.next().await {
            assert!(!message.payload.windows(6).any(|part| part == b"secret"), "{message:?}");
        }
    }
}

#[tokio::test]
async fn an_answer_goes_to_an_inbox_and_nowhere_else() {
    let nats = NatsServer::start().await;
    let server = crate::writing::recorder(&nats).await.backplane();
    let _serving = serve(&server, &[VerifyKey::SUBJECT]).await;
    let stranger = async_nats::connect(nats.url()).await.unwrap();
    let mut heard = stranger.subscribe("_INBOX_stranger").await.unwrap();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Stage0-Deadline", "99999999999999");
    headers.insert("Stage0-Budget-Ms", "10000");
    for reply in ["s0.log.a.m", "s0.ledger.k", "$JS.API.STREAM.PURGE.S0_LOG", "_INBOX_stranger"] {
        let question = Bytes::from_static(b"{}");
        let asked = stranger.publish_with_reply_and_headers("s0.req.keys.verify", reply, headers.clone(), question);
        asked.await.unwrap();
    }
    // One inbox answers in order.
    assert_eq!(heard.next().await.unwrap().payload, "{}");
    assert!(everything(&*server.log, &account("a"), Which::All).await.is_empty());
    assert_eq!(server.ledger.get("k", soon()).await, Ok(None));
}

#[tokio::test]
async fn an_evaluator_that_was_taken_over_hears_no_question_of_another_and_speaks_for_no_other_role() {
    let (nats, _exporter) = with_streams().await;
    let gateway = prepared(&nats, "gateway").await;
    let evaluator = open(&nats, "evaluator").await.backplane();
    let _serving = serve(&evaluator, &OF_DECISIONS).await;
    let raw = raw(&nats, "evaluator").await;
    let mut heard = Vec::new();
    for subject in ["s0.req.evaluate", "s0.req.*", "_INBOX_gateway.>", "s0.notice.>"] {
        heard.push(raw.subscribe(subject).await.unwrap());
    }
    // Another group would get each question once more.
    heard.push(raw.queue_subscribe("s0.req.evaluate", "mine".to_owned()).await.unwrap());
    is_done(&raw).await;
    let mut said = gateway.notices.listen_bytes(InstanceSeen::subject(Role::Keystore)).await.unwrap();
    let mut own = gateway.notices.listen_bytes(InstanceSeen::subject(Role::Evaluator)).await.unwrap();
    for role in [Role::Keystore, Role::Evaluator] {
        let subject = format!("s0.{}", InstanceSeen::subject(role));
        raw.publish(subject, Bytes::from_static(b"{}")).await.unwrap();
    }
    is_done(&raw).await;
    assert_eq!(own.next().await, Some(Event::Heard(Bytes::from_static(b"{}"))));
    ask_each(&gateway, &OF_DECISIONS).await;
    for mut heard in heard {
        heard.unsubscribe().await.unwrap();
        assert!(heard.next().await.is_none());
    }
    let keystore = open(&nats, "keystore").await.backplane();
    keystore.notices.tell_bytes(InstanceSeen::subject(Role::Keystore), Bytes::from_static(b"true")).await.unwrap();
    assert_eq!(said.next().await, Some(Event::Heard(Bytes::from_static(b"true"))), "the forged one came first");
}
