//! The output of `stage0 nats-config` on a real server: each role can do its part, and nothing of another's.

// Plain NATS tools block, and a test is short.
#![allow(clippy::disallowed_methods)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use stage0_backplane::clock::boottime;
use stage0_backplane::nats::{Connection, Login, Logins, NatsConfig, NatsServerConf, StreamAdmin};
use stage0_backplane::testing::{NatsServer, wait_for};
use stage0_backplane::{
    AppendError, Backplane, ClockError, EntryFilter, EntryKind, Event, Liveness, MarkError, Position, PutError,
    RequestError, Seek,
};
use stage0_contract::{
    ApprovalsChanged, DecisionsRecorded, DisableWebhook, EvaluateRequest, FetchPolicy, InstanceHeartbeat, KeyChanged,
    ListActiveVersions, ListEndpoints, ListRetentions, Notice, REQUESTS, ReadPeople, Request, Role, SignMark,
    VerifyKey, WebhookChanged,
};
use tokio::time::Instant;

use crate::PATIENT;
use crate::streams::{SIZES, STREAMS};
use crate::writing::{account, append, batch, decisions, everything, mark, soon, verified, write};

/// What only audit-export may ask of the keystore, whatever the table of the contract says.
const OF_SECRETS: [&str; 4] =
    [ListEndpoints::SUBJECT, DisableWebhook::SUBJECT, SignMark::SUBJECT, ListRetentions::SUBJECT];

/// What a role serves.
fn served_by(role: Role) -> Vec<&'static str> {
    REQUESTS.iter().filter(|request| request.to == role).map(|request| request.subject).collect()
}

/// What a role asks of another one.
fn asked_by(from: Role, to: Role) -> Vec<&'static str> {
    let asked = REQUESTS.iter().filter(|request| request.to == to && request.from.contains(&from));
    let asked: Vec<_> = asked.map(|request| request.subject).collect();
    assert!(!asked.is_empty(), "{from} asks nothing of {to}");
    asked
}

/// What a gateway asks of all others.
async fn ask_as_gateway(gateway: &Backplane) {
    for to in [Role::Evaluator, Role::Keystore, Role::AuditExport] {
        ask_each(gateway, &asked_by(Role::Gateway, to)).await;
    }
}

/// The file as `stage0 nats-config` writes it, except for addresses, TLS and passwords.
async fn server() -> NatsServer {
    server_with("20GB", Logins::SHARED).await
}

/// With this much space for the streams, and these logins.
pub(crate) async fn server_with(max_file: &str, logins: Logins) -> NatsServer {
    let file = NatsServerConf {
        prefix: "s0".to_owned(),
        name: "n1".to_owned(),
        listen: "127.0.0.1:4222".parse().unwrap(),
        monitor: "127.0.0.1:8222".parse().unwrap(),
        tls_dir: "/etc/nats".into(),
        store_dir: "/var/lib/nats".into(),
        max_file: max_file.to_owned(),
        passwords: None,
        logins,
        cluster: None,
    };
    NatsServer::start_with(&settings_of(&file)).await
}

/// The file without what differs in a test: addresses, the TLS of clients and passwords.
pub(crate) fn settings_of(file: &NatsServerConf) -> String {
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
    let of_roles = Role::ALL.into_iter().flat_map(|role| file.logins.of(role));
    let variables = of_roles.map(|login| NatsServerConf::password_variable(&login));
    for variable in variables.chain([NatsServerConf::ADMIN_PASSWORD_VARIABLE.to_owned()]) {
        let variable = format!("${variable}");
        assert!(settings.contains(&variable), "{variable}");
        settings = settings.replace(&variable, "\"right\"");
    }
    settings
}

pub(crate) async fn open(nats: &NatsServer, role: &str) -> Connection {
    open_as(nats, role, role).await
}

async fn open_as(nats: &NatsServer, role: &str, user: &str) -> Connection {
    let login = Login::Password { user: user.to_owned(), password: "right".to_owned() };
    let jetstream_api = "s0.api".to_owned();
    let config = NatsConfig { name: role.to_owned(), login: Some(login), jetstream_api, ..verified(nats) };
    Connection::open(&config).await.unwrap()
}

pub(crate) async fn prepared(nats: &NatsServer, role: &str) -> Backplane {
    let connection = open(nats, role).await;
    connection.prepare(role_of(role), 1).await.unwrap();
    connection.backplane()
}

fn role_of(name: &str) -> Role {
    Role::ALL.into_iter().find(|role| role.as_str() == name).unwrap()
}

/// A server whose streams were created by the administrator.
async fn with_streams() -> (NatsServer, Backplane) {
    let nats = server().await;
    let admin = StreamAdmin::new(open(&nats, NatsServerConf::ADMIN_USER).await);
    let made = admin.init(&SIZES).await.unwrap();
    assert!(made.iter().all(|state| state.is_new && state.differences.is_empty()), "{made:?}");
    let exporter = prepared(&nats, "audit-export").await;
    (nats, exporter)
}

/// Serves subjects by returning the request; the tasks end when the value is dropped.
pub(crate) async fn serve(backplane: &Backplane, subjects: &[&'static str]) -> tokio::task::JoinSet<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for subject in subjects {
        let mut inbox = backplane.requests.serve_bytes(subject).await.unwrap();
        tasks.spawn(async move {
            while let Some(asked) = inbox.next().await {
                asked.replier.reply(asked.body.as_bytes().unwrap().clone()).await;
            }
        });
    }
    tasks
}

async fn ask_each(backplane: &Backplane, subjects: &[&'static str]) {
    for subject in subjects {
        let answer = backplane.requests.request_bytes(subject, Bytes::from_static(b"{}"), soon()).await;
        assert_eq!(answer.as_deref(), Ok(&b"{}"[..]), "{subject}");
    }
}

#[tokio::test]
async fn no_role_can_create_a_stream_and_each_names_the_command_that_does() {
    let nats = server().await;
    let started = Instant::now();
    for role in Role::ALL {
        let why = open(&nats, role.as_str()).await.prepare(role, 1).await.unwrap_err().to_string();
        assert!(why.contains("is missing") && why.contains("`stage0 nats-admin init`"), "{role}: {why}");
    }
    assert!(started.elapsed() < PATIENT / 6, "{:?}", started.elapsed());
    let admin = StreamAdmin::new(open(&nats, "admin").await);
    assert_eq!(admin.check().await.unwrap().len(), admin.init(&SIZES).await.unwrap().len());
    for role in Role::ALL {
        open(&nats, role.as_str()).await.prepare(role, 1).await.unwrap();
    }
    let gateway = prepared(&nats, "gateway").await;
    assert_eq!(gateway.log.ready().await, Ok(Vec::new()));
    gateway.requests.ready().await.unwrap();
}

#[tokio::test]
async fn every_role_can_request_serve_publish_and_subscribe_to_what_it_needs() {
    let (nats, exporter) = with_streams().await;
    let gateway = prepared(&nats, "gateway").await;
    let (evaluator, keystore) = (open(&nats, "evaluator").await.backplane(), open(&nats, "keystore").await.backplane());
    let _serving = [
        serve(&evaluator, &served_by(Role::Evaluator)).await,
        serve(&keystore, &served_by(Role::Keystore)).await,
        serve(&exporter, &served_by(Role::AuditExport)).await,
    ];
    ask_as_gateway(&gateway).await;
    ask_each(&exporter, &OF_SECRETS).await;
    ask_each(&exporter, &asked_by(Role::AuditExport, Role::Keystore)).await;
    let mut asked = asked_by(Role::Evaluator, Role::Keystore);
    asked.sort_unstable();
    assert_eq!(asked, [ReadPeople::SUBJECT, FetchPolicy::SUBJECT, ListActiveVersions::SUBJECT]);
    ask_each(&evaluator, &asked).await;

    let mut hearing = gateway.notices.subscribe_bytes(ApprovalsChanged::SUBJECT).await.unwrap();
    evaluator.notices.publish_bytes(ApprovalsChanged::SUBJECT, Bytes::from_static(b"{}")).await.unwrap();
    assert_eq!(hearing.next().await, Some(Event::Message(Bytes::from_static(b"{}"))));
    for (teller, subject) in
        [(&keystore, KeyChanged::SUBJECT), (&keystore, WebhookChanged::SUBJECT), (&gateway, DecisionsRecorded::SUBJECT)]
    {
        for hearer in [&gateway, &exporter] {
            let mut hearing = hearer.notices.subscribe_bytes(subject).await.unwrap();
            teller.notices.publish_bytes(subject, Bytes::from_static(b"{}")).await.unwrap();
            assert_eq!(hearing.next().await, Some(Event::Message(Bytes::from_static(b"{}"))), "{subject}");
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
        assert_eq!(everything(&*reader.log, &a, EntryFilter::All).await.len(), 3);
        assert_eq!(reader.log.last(&a, EntryKind::Mark, soon()).await.unwrap().unwrap().position, first);
        assert_eq!(reader.log.accounts(soon()).await.unwrap(), std::slice::from_ref(&a));
        assert_eq!(reader.log.ready().await, Ok(Vec::new()));
    }
    let revision = exporter.state_store.put("cursor.a", "1".into(), None, None, soon()).await.unwrap();
    exporter.state_store.put("cursor.a", "2".into(), Some(revision), Some(PATIENT), soon()).await.unwrap();
    assert_eq!(exporter.state_store.get("cursor.a", soon()).await.unwrap().unwrap().value, "2");
    assert_eq!(exporter.log.remove_through(&a, EntryKind::Decisions, first, soon()).await, Ok(2));
    gateway.requests.ready().await.unwrap();
    exporter.requests.ready().await.unwrap();
}

#[tokio::test]
async fn a_gateway_can_neither_remove_nor_write_marks_or_records() {
    let (nats, exporter) = with_streams().await;
    let (gateway, a) = (prepared(&nats, "gateway").await, account("a"));
    write(&*gateway.log, &a, "kept").await;
    let started = Instant::now();
    let (log, state_store) = (&gateway.log, &gateway.state_store);
    let removed = log.remove_through(&a, EntryKind::Decisions, Position(u64::MAX), soon()).await;
    assert!(removed.unwrap_err().0.to_string().contains("this service may not ask"));
    assert!(state_store.get("k", soon()).await.is_err());
    assert!(matches!(log.append_mark(&a, "forged".into(), None, soon()).await, Err(MarkError::Failed(_))));
    assert!(matches!(state_store.put("k", "forged".into(), None, None, soon()).await, Err(PutError::Failed(_))));
    let secrets = [&OF_SECRETS[..], &[ReadPeople::SUBJECT]].concat();
    let _serving = serve(&open(&nats, "keystore").await.backplane(), &secrets).await;
    for subject in secrets {
        let answer = gateway.requests.request_bytes(subject, Bytes::new(), soon()).await;
        assert_eq!(answer, Err(RequestError::NoResponders), "{subject}");
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
        let mut proving = one.notices.subscribe_bytes(subject).await.unwrap();
        proving.prove(Arc::clone(&liveness));
        // Another process of the role receives the echoes and ignores them.
        let mut beside = other.notices.subscribe_bytes(subject).await.unwrap();
        for _ in 0..3 {
            let since = boottime();
            tokio::select! {
                () = liveness.wait_for_proof(|| liveness.proven_at() >= Some(since)) => {}
                event = proving.next() => panic!("{event:?}"),
                event = beside.next() => panic!("{event:?}"),
                () = tokio::time::sleep(PATIENT) => panic!("{role} proves nothing"),
            }
        }
        keystore.notices.publish_bytes(subject, Bytes::from_static(b"{}")).await.unwrap();
        for listener in [&mut proving, &mut beside] {
            assert_eq!(listener.next().await, Some(Event::Message(Bytes::from_static(b"{}"))), "{role}");
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
        assert!(backplane.log.read(&a, EntryFilter::All, Seek::Start, 1, soon()).await.is_err());
        assert!(backplane.log.last(&a, EntryKind::Decisions, soon()).await.is_err());
        assert!(backplane.log.accounts(soon()).await.is_err());
        assert!(backplane.state_store.get("k", soon()).await.is_err());
        assert!(backplane.log.ready().await.is_err());
        raw_messages_change_nothing(&nats, role, &exporter).await;
    }
}

#[tokio::test]
async fn each_role_has_its_own_records_and_no_others() {
    let (nats, exporter) = with_streams().await;
    let (gateway, evaluator) = (prepared(&nats, "gateway").await, open(&nats, "evaluator").await.backplane());
    let keystore = prepared(&nats, "keystore").await;
    let records = [
        "runs.a.r",
        "approvals.a.x",
        "candidates.a.x",
        "usage.a.m1",
        "idempotency.a.k.h",
        "keystore.lease",
        "cursor.a",
        "replay.a",
        "message-auth",
    ];
    let all = [(&evaluator, &records[..3]), (&gateway, &records[3..5]), (&keystore, &records[5..6])];
    let all = [&all[..], &[(&exporter, &records[6..])]].concat();
    for (role, own) in &all {
        for record in *own {
            role.state_store.put(record, "there".into(), None, None, soon()).await.unwrap();
        }
    }
    for (role, own) in all {
        for record in records {
            let found = role.state_store.get(record, soon()).await;
            if !own.contains(&record) {
                assert!(found.is_err(), "{record}: {found:?}");
                let put = role.state_store.put(record, "forged".into(), None, None, soon()).await;
                assert!(matches!(put, Err(PutError::Failed(_))), "{record}: {put:?}");
                continue;
            }
            let found = found.unwrap_or_else(|error| panic!("{record}: {error}")).unwrap();
            assert_eq!(found.value, "there");
            role.state_store.put(record, "mine".into(), Some(found.revision), Some(PATIENT), soon()).await.unwrap();
        }
        // A missing record is reported as missing, not as a timeout.
        for record in own {
            let other = record.replace(".a", ".none");
            assert_eq!(role.state_store.get(&other, soon()).await.unwrap().is_some(), other == *record);
        }
    }
    // Only runs and approvals can be listed, and only by evaluators.
    for (under, word) in [("runs.a", "r"), ("approvals.a", "x")] {
        let listed = evaluator.state_store.list(under, None, 10, soon()).await.unwrap();
        assert_eq!(listed.records.iter().map(|(word, _)| word.as_str()).collect::<Vec<_>>(), [word]);
        for role in [&gateway, &keystore, &exporter] {
            assert!(role.state_store.list(under, None, 10, soon()).await.is_err());
        }
    }
    for others in ["candidates.a", "usage.a", "idempotency.a", "keystore", "cursor"] {
        assert!(evaluator.state_store.list(others, None, 10, soon()).await.is_err(), "{others}");
    }
    let (run, raw) = ("s0.ledger.runs.a.r", raw(&nats, "evaluator").await);
    // Through the server's answers: what it reads for one role reaches no other role's record.
    for harmful in ["s0.ledger.usage.a.m1", "s0.ledger.cursor.a", "s0.log.a.d"] {
        raw.publish_with_reply(run, harmful, Bytes::from_static(b"x")).await.unwrap();
        let read = format!("s0.api.DIRECT.GET.S0_RUNS.{run}");
        raw.publish_with_reply(read, harmful, Bytes::new()).await.unwrap();
    }
    is_done(&raw).await;
    assert_eq!(exporter.log.ready().await, Ok(Vec::new()));
    assert_eq!(gateway.state_store.get("usage.a.m1", soon()).await.unwrap().unwrap().value, "mine");
    assert_eq!(exporter.state_store.get("cursor.a", soon()).await.unwrap().unwrap().value, "mine");
    assert!(everything(&*exporter.log, &account("a"), EntryFilter::All).await.is_empty());
}

#[tokio::test]
async fn each_role_reads_the_stores_clock_by_the_stream_of_its_own_records() {
    let (nats, _exporter) = with_streams().await;
    for role in Role::ALL {
        let state_store = prepared(&nats, role.as_str()).await.state_store;
        assert_eq!(state_store.clock().check(), Err(ClockError::Unknown), "{role}");
        assert_eq!(state_store.read_clock(Duration::ZERO, soon()).await, Ok(()), "{role}");
        let differs = state_store.clock().now().duration_since(jiff::Timestamp::now());
        assert!(differs.as_secs().abs() <= 2, "{role}: {differs:?}");
    }
    // Without the names of its streams there is no clock to read.
    let state_store = open(&nats, "keystore").await.backplane().state_store;
    assert_eq!(state_store.read_clock(Duration::ZERO, soon()).await, Err(ClockError::Unknown));
}

#[tokio::test]
async fn audit_export_cannot_append_decisions() {
    let (nats, exporter) = with_streams().await;
    let a = account("a");
    write(&*prepared(&nats, "gateway").await.log, &a, "kept").await;
    let answer = append(&*exporter.log, batch(&a, "forged"), soon()).await;
    assert!(matches!(answer, Err(AppendError::NotStored(_))), "{answer:?}");
    let others = [VerifyKey::SUBJECT, ReadPeople::SUBJECT];
    let _serving = serve(&open(&nats, "keystore").await.backplane(), &others).await;
    for subject in others {
        let asked = exporter.requests.request_bytes(subject, Bytes::new(), soon()).await;
        assert_eq!(asked, Err(RequestError::NoResponders), "{subject}");
    }

    // Through the server's answers: an acknowledgement, and one of the role's own records.
    let raw = raw(&nats, "audit-export").await;
    exporter.state_store.put("k", "forged".into(), None, None, soon()).await.unwrap();
    raw.publish_with_reply("s0.ledger.other", "s0.log.a.d", Bytes::new()).await.unwrap();
    raw.publish_with_reply("s0.api.DIRECT.GET.S0_LEDGER.s0.ledger.k", "s0.log.a.d", Bytes::new()).await.unwrap();
    is_done(&raw).await;
    assert_eq!(decisions(&*exporter.log, &a).await, ["kept"]);
}

/// Subjects where a message would do harm, if it could be sent there.
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

pub(crate) async fn raw(nats: &NatsServer, role: &str) -> async_nats::Client {
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

/// What a compromised role might send itself, or make the server send.
async fn raw_messages_change_nothing(nats: &NatsServer, role: &str, exporter: &Backplane) {
    let (client, a) = (raw(nats, role).await, account("a"));
    let mut snooping = Vec::new();
    for subject in [">", "s0.>", "$JS.>", "_INBOX_audit-export.>", "_R_.>"] {
        snooping.push(client.subscribe(subject).await.unwrap());
    }
    is_done(&client).await;
    let key = format!("cursor.{role}");
    exporter.state_store.put(&key, "secret".into(), None, None, soon()).await.unwrap();
    // An empty object is a request to purge everything, and an empty record.
    client.publish("s0.log.a.d", Bytes::from_static(b"{}")).await.unwrap();
    is_done(&client).await;
    let before = everything(&*exporter.log, &a, EntryFilter::All).await;
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
        // A self-ping, and a reply to that.
        client.publish_with_reply(client.new_inbox(), harmful, Bytes::new()).await.unwrap();
        client.publish(harmful, Bytes::from_static(b"{}")).await.unwrap();
    }
    is_done(&client).await;
    // Requests of one kind are handled in order: this one comes last.
    assert_eq!(exporter.log.ready().await, Ok(Vec::new()));
    assert_eq!(everything(&*exporter.log, &a, EntryFilter::All).await, before);
    assert!(everything(&*exporter.log, &account("victim"), EntryFilter::All).await.is_empty());
    assert_eq!(exporter.state_store.get("k", soon()).await, Ok(None));
    assert_eq!(exporter.state_store.get(&key, soon()).await.unwrap().unwrap().value, "secret");
    for mut heard in snooping {
        heard.unsubscribe().await.unwrap();
        while let Some(message) = heard.next().await {
            assert!(!message.payload.windows(6).any(|part| part == b"secret"), "{message:?}");
        }
    }
}

#[tokio::test]
async fn a_reply_is_sent_only_to_an_inbox() {
    let nats = NatsServer::start().await;
    let server = crate::writing::recorder(&nats).await.backplane();
    let _serving = serve(&server, &[VerifyKey::SUBJECT]).await;
    let stranger = async_nats::connect(nats.url()).await.unwrap();
    let mut heard = stranger.subscribe("_INBOX_stranger").await.unwrap();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Stage0-Deadline", "99999999999999");
    headers.insert("Stage0-Budget-Ms", "10000");
    for reply in ["s0.log.a.m", "s0.ledger.k", "$JS.API.STREAM.PURGE.S0_LOG", "_INBOX_stranger"] {
        let request = Bytes::from_static(b"{}");
        let asked = stranger.publish_with_reply_and_headers("s0.req.keys.verify", reply, headers.clone(), request);
        asked.await.unwrap();
    }
    // One inbox answers in order.
    assert_eq!(heard.next().await.unwrap().payload, "{}");
    assert!(everything(&*server.log, &account("a"), EntryFilter::All).await.is_empty());
    assert_eq!(server.state_store.get("k", soon()).await, Ok(None));
}

#[tokio::test]
async fn a_compromised_evaluator_receives_no_other_requests_and_cannot_act_as_another_role() {
    let (nats, _exporter) = with_streams().await;
    let gateway = prepared(&nats, "gateway").await;
    let evaluator = open(&nats, "evaluator").await.backplane();
    let _serving = serve(&evaluator, &served_by(Role::Evaluator)).await;
    let raw = raw(&nats, "evaluator").await;
    let mut heard = Vec::new();
    for subject in ["s0.req.evaluate", "s0.req.*", "_INBOX_gateway.>", "s0.notice.>"] {
        heard.push(raw.subscribe(subject).await.unwrap());
    }
    // Another queue group would receive every request once more.
    heard.push(raw.queue_subscribe("s0.req.evaluate", "mine".to_owned()).await.unwrap());
    is_done(&raw).await;
    let mut said = gateway.notices.subscribe_bytes(InstanceHeartbeat::subject(Role::Keystore)).await.unwrap();
    let mut own = gateway.notices.subscribe_bytes(InstanceHeartbeat::subject(Role::Evaluator)).await.unwrap();
    for role in [Role::Keystore, Role::Evaluator] {
        let subject = format!("s0.{}", InstanceHeartbeat::subject(role));
        raw.publish(subject, Bytes::from_static(b"{}")).await.unwrap();
    }
    is_done(&raw).await;
    assert_eq!(own.next().await, Some(Event::Message(Bytes::from_static(b"{}"))));
    ask_each(&gateway, &asked_by(Role::Gateway, Role::Evaluator)).await;
    for mut heard in heard {
        heard.unsubscribe().await.unwrap();
        assert!(heard.next().await.is_none());
    }
    let keystore = open(&nats, "keystore").await.backplane();
    // Of the keystore it may ask for people and published policies, and nothing else.
    let _keystore_serves = serve(&keystore, &served_by(Role::Keystore)).await;
    let asked = [ReadPeople::SUBJECT, FetchPolicy::SUBJECT, ListActiveVersions::SUBJECT];
    for subject in served_by(Role::Keystore).into_iter().filter(|subject| !asked.contains(subject)) {
        let asked = evaluator.requests.request_bytes(subject, Bytes::new(), soon()).await;
        assert_eq!(asked, Err(RequestError::NoResponders), "{subject}");
    }
    keystore
        .notices
        .publish_bytes(InstanceHeartbeat::subject(Role::Keystore), Bytes::from_static(b"true"))
        .await
        .unwrap();
    assert_eq!(said.next().await, Some(Event::Message(Bytes::from_static(b"true"))), "the forged one came first");
}

/// Every API request about a stream, in its most harmful form.
fn about_streams(stream: &str) -> Vec<(String, String)> {
    let own =
        |settings: &str| format!(r#"{{"name":"{stream}","subjects":["s0.log.*.d"],"storage":"file",{settings}}}"#);
    let transform = own(r#""subject_transform":{"src":"s0.log.*.d","dest":"s0.log.x.d"}"#);
    let republish = own(r#""republish":{"src":">","dest":"$JS.API.STREAM.MSG.DELETE.S0_LOG"}"#);
    let sources = own(r#""sources":[{"name":"S0_LOG"}]"#);
    let short = own(r#""max_age":100000000,"max_msgs":1,"discard":"old""#);
    let mut asked = Vec::new();
    for what in ["CREATE", "UPDATE"] {
        let bodies = [&transform, &republish, &sources, &short];
        asked.extend(bodies.map(|body| (format!("STREAM.{what}.{stream}"), body.clone())));
    }
    asked.push((
        format!("STREAM.CREATE.EVIL_{stream}"),
        own("\"no_ack\":true").replacen(stream, &format!("EVIL_{stream}"), 1),
    ));
    for (what, body) in [
        ("STREAM.DELETE", "{}"),
        ("STREAM.PURGE", "{}"),
        ("STREAM.MSG.DELETE", r#"{"seq":1,"no_erase":true}"#),
        ("STREAM.MSG.GET", r#"{"seq":1}"#),
        ("STREAM.RESTORE", "{}"),
        ("STREAM.SNAPSHOT", r#"{"deliver_subject":"_INBOX_x"}"#),
        ("STREAM.LEADER.STEPDOWN", "{}"),
        ("STREAM.PEER.REMOVE", r#"{"peer":"n1"}"#),
        ("CONSUMER.CREATE", r#"{"stream_name":"S0_LOG","config":{"deliver_subject":"_INBOX_x","ack_policy":"none"}}"#),
        ("CONSUMER.NAMES", "{}"),
        ("CONSUMER.LIST", "{}"),
    ] {
        asked.push((format!("{what}.{stream}"), body.to_owned()));
    }
    asked
}

/// There is no responder, or JetStream refuses this account.
fn is_refused(answer: &Result<async_nats::Message, async_nats::RequestError>) -> bool {
    answer.as_ref().map_or(true, |message| String::from_utf8_lossy(&message.payload).contains(r#""error":"#))
}

/// The content and the settings of the streams, as the administrator sees them.
async fn state_of_streams(admin: &async_nats::Client) -> Vec<String> {
    let mut states = Vec::new();
    for stream in STREAMS {
        let said = admin.request(format!("s0.api.STREAM.INFO.{stream}"), Bytes::new()).await.unwrap();
        let said: serde_json::Value = serde_json::from_slice(&said.payload).unwrap();
        states.push(format!("{} {} {}", said["config"], said["state"]["messages"], said["state"]["consumer_count"]));
    }
    states
}

#[tokio::test]
async fn no_role_may_make_change_empty_copy_or_follow_a_stream_but_for_the_exporters_purge_of_the_log() {
    let (nats, exporter) = with_streams().await;
    write(&*prepared(&nats, "gateway").await.log, &account("a"), "kept").await;
    exporter.state_store.put("cursor.a", "kept".into(), None, None, soon()).await.unwrap();
    let admin = raw(&nats, "admin").await;
    let before = state_of_streams(&admin).await;
    for role in Role::ALL {
        let client = raw(&nats, role.as_str()).await;
        for stream in STREAMS {
            for (what, body) in about_streams(stream) {
                // Its one right to remove, documented in docs/nats-security.md.
                if role == Role::AuditExport && what == "STREAM.PURGE.S0_LOG" {
                    continue;
                }
                for api in ["s0.api", "$JS.API"] {
                    let answer = client.request(format!("{api}.{what}"), body.clone().into()).await;
                    assert!(is_refused(&answer), "{role} {api}.{what}: {answer:?}");
                }
            }
        }
    }
    assert_eq!(state_of_streams(&admin).await, before);
    assert_eq!(decisions(&*exporter.log, &account("a")).await, ["kept"]);
}

#[tokio::test]
async fn the_administrator_makes_and_changes_streams_and_nothing_else() {
    let (nats, exporter) = with_streams().await;
    write(&*prepared(&nats, "gateway").await.log, &account("a"), "kept").await;
    exporter.state_store.put("cursor.a", "kept".into(), None, None, soon()).await.unwrap();
    let client = raw(&nats, "admin").await;
    let before = state_of_streams(&client).await;
    for stream in STREAMS {
        for (what, body) in about_streams(stream) {
            if what.starts_with("STREAM.CREATE.S0") || what.starts_with("STREAM.UPDATE.S0") {
                continue;
            }
            for api in ["s0.api", "$JS.API"] {
                let answer = client.request(format!("{api}.{what}"), body.clone().into()).await;
                assert!(is_refused(&answer), "{api}.{what}: {answer:?}");
            }
        }
        let read = format!("s0.api.DIRECT.GET.{stream}");
        assert!(client.request(read, r#"{"seq":1}"#.into()).await.is_err());
    }
    for subject in
        ["s0.log.a.d", "s0.log.a.m", "s0.ledger.cursor.a", "s0.ledger.k", "s0.req.evaluate", "s0.req.keys.sign"]
    {
        assert!(client.request(subject, "{}".into()).await.is_err(), "{subject}");
    }
    let mut snooping = Vec::new();
    for subject in [">", "s0.>", "_INBOX_gateway.>"] {
        snooping.push(client.subscribe(subject).await.unwrap());
    }
    is_done(&client).await;
    write(&*prepared(&nats, "gateway").await.log, &account("b"), "unheard").await;
    for mut heard in snooping {
        heard.unsubscribe().await.unwrap();
        assert!(heard.next().await.is_none());
    }
    assert_eq!(state_of_streams(&client).await[1..], before[1..]);
    assert_eq!(decisions(&*exporter.log, &account("a")).await, ["kept"]);
}

#[tokio::test]
async fn three_hundred_queue_subscriptions_of_one_login_are_limited_and_requests_are_answered() {
    let (nats, _exporter) = with_streams().await;
    let gateway = prepared(&nats, "gateway").await;
    let evaluator = open(&nats, "evaluator").await.backplane();
    let _serving = serve(&evaluator, &served_by(Role::Evaluator)).await;
    let thief = raw(&nats, "evaluator").await;
    let mut swallowing = Vec::new();
    for _ in 0..300 {
        swallowing.push(thief.queue_subscribe("s0.req.evaluate", "s0".to_owned()).await.unwrap());
    }
    // Its own inbox is one too many by now.
    let monitor = format!("{}/connz?subs=1&auth=1", nats.monitor());
    let held = async || {
        let said = reqwest::get(&monitor).await.unwrap().text().await.unwrap();
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        let connections = said["connections"].as_array().unwrap();
        let of_evaluators = connections.iter().filter(|one| one["authorized_user"] == "evaluator");
        of_evaluators.map(|one| one["subscriptions"].as_u64().unwrap()).max().unwrap()
    };
    let served = served_by(Role::Evaluator).len() as u64;
    wait_for("the server has bounded it", PATIENT, async || held().await >= served).await;
    // The server hands each request to one subscription, by chance: one in some thirty is the evaluator's.
    let mut is_answered = false;
    for _ in 0..20 {
        let deadline = Instant::now() + Duration::from_secs(1);
        let ask = |_| gateway.requests.request_bytes(EvaluateRequest::SUBJECT, "{}".into(), deadline);
        is_answered |= join_all((0..40).map(ask)).await.iter().any(Result::is_ok);
        if is_answered {
            break;
        }
    }
    let most = held().await;
    assert!(most <= served + 11, "{most} subscriptions");
    assert!(is_answered, "no request was answered");
    drop(swallowing);
}

#[tokio::test]
async fn each_process_has_a_login_of_its_own_with_which_it_does_its_part() {
    let nats = server_with("20GB", Logins::default()).await;
    StreamAdmin::new(open(&nats, NatsServerConf::ADMIN_USER).await).init(&SIZES).await.unwrap();
    let exporter = open_as(&nats, "audit-export", "audit-export-4").await;
    exporter.prepare(Role::AuditExport, 1).await.unwrap();
    let (evaluator, other) =
        (open_as(&nats, "evaluator", "evaluator-1").await, open_as(&nats, "evaluator", "evaluator-4").await);
    let keystore = open_as(&nats, "keystore", "keystore-2").await.backplane();
    let _serving = [
        serve(&evaluator.backplane(), &served_by(Role::Evaluator)).await,
        serve(&other.backplane(), &served_by(Role::Evaluator)).await,
        serve(&keystore, &served_by(Role::Keystore)).await,
        serve(&exporter.backplane(), &served_by(Role::AuditExport)).await,
    ];
    for login in ["gateway-1", "gateway-4"] {
        let gateway = open_as(&nats, "gateway", login).await;
        gateway.prepare(Role::Gateway, 1).await.unwrap();
        let gateway = gateway.backplane();
        ask_as_gateway(&gateway).await;
        write(&*gateway.log, &account("a"), login).await;
        gateway.requests.ready().await.unwrap();
    }
    assert_eq!(decisions(&*exporter.backplane().log, &account("a")).await, ["gateway-1", "gateway-4"]);
}

#[tokio::test]
async fn a_process_receives_no_reply_to_another_process_of_its_role() {
    let nats = server_with("20GB", Logins::default()).await;
    let gateway = open_as(&nats, "gateway", "gateway-1").await.backplane();
    let keystore = open_as(&nats, "keystore", "keystore-1").await.backplane();
    let _serving = serve(&keystore, &served_by(Role::Keystore)).await;
    let spy = raw(&nats, "gateway-2").await;
    let mut heard = Vec::new();
    for subject in ["_INBOX_gateway-1.>", "_INBOX_gateway.>", "_INBOX_*.>", "_INBOX_gateway-1.*.*", "_R_.>", ">"] {
        heard.push(spy.subscribe(subject).await.unwrap());
    }
    let mut own = spy.subscribe("_INBOX_gateway-2.x").await.unwrap();
    // Also not by name: the server sends each answer to the account, and a login receives only its own.
    ask_each(&gateway, &asked_by(Role::Gateway, Role::Keystore)).await;
    spy.publish("_INBOX_gateway-2.x", Bytes::from_static(b"mine")).await.unwrap();
    assert_eq!(own.next().await.unwrap().payload, "mine");
    for mut heard in heard {
        heard.unsubscribe().await.unwrap();
        assert!(heard.next().await.is_none());
    }
}

/// A client that may publish into an inbox, as every login of an account may, would have to guess 128 bits for each
/// request.
#[tokio::test]
async fn reply_subjects_are_random_and_a_reply_under_a_guessed_one_is_dropped() {
    let nats = NatsServer::start().await;
    let asker = crate::writing::recorder(&nats).await.backplane();
    let stranger = async_nats::connect(nats.url()).await.unwrap();
    let mut requests = stranger.subscribe("s0.req.evaluate").await.unwrap();
    stranger.flush().await.unwrap();
    let (heard, mut tokens_heard) = tokio::sync::mpsc::unbounded_channel();
    let answering = tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let to = request.reply.unwrap().to_string();
            let (inbox, token) = to.rsplit_once('.').unwrap();
            // Each that differs from it in one letter, and the numbers that once were there.
            let altered = (0..token.len()).map(|at| {
                let letter = if token.as_bytes()[at] == b'A' { "B" } else { "A" };
                format!("{}{letter}{}", &token[..at], &token[at + 1..])
            });
            for guess in altered.chain((0..100).map(|number: u8| number.to_string())) {
                stranger.publish(format!("{inbox}.{guess}"), Bytes::from_static(b"forged")).await.unwrap();
            }
            stranger.publish(to.clone(), Bytes::from_static(b"right")).await.unwrap();
            heard.send(token.to_owned()).unwrap();
        }
    });
    let (mut tokens, mut answered) = (Vec::new(), 0);
    while answered < 8 {
        // On a busy machine a connection may break and miss the message, so the request is repeated.
        match asker.requests.request_bytes(EvaluateRequest::SUBJECT, Bytes::from_static(b"{}"), soon()).await {
            Ok(answer) => {
                assert_eq!(answer, "right");
                answered += 1;
            }
            Err(RequestError::NoResponders | RequestError::Disconnected) => {}
            Err(error) => panic!("{error}"),
        }
    }
    answering.abort();
    while let Ok(token) = tokens_heard.try_recv() {
        tokens.push(token);
    }
    assert!(tokens.iter().all(|token| token.len() == 22), "{tokens:?}");
    // Two random tokens share about one letter in 64 at each place; numbers that count up share nearly all.
    for pair in tokens.windows(2) {
        let same = pair[0].bytes().zip(pair[1].bytes()).filter(|(one, other)| one == other).count();
        assert!(same < 8, "{pair:?}");
    }
}

#[tokio::test]
async fn no_login_can_list_its_accounts_other_connections() {
    let nats = server().await;
    for login in ["gateway", "evaluator", "keystore", "audit-export"] {
        let client = raw(&nats, login).await;
        for about in ["$SYS.REQ.ACCOUNT.PING.CONNZ", "$SYS.REQ.ACCOUNT.PING.SUBSZ", "$SYS.REQ.SERVER.PING"] {
            let asked = client.request(about, r#"{"subscriptions": true}"#.into());
            let answer = tokio::time::timeout(Duration::from_millis(300), asked).await;
            assert!(!matches!(answer, Ok(Ok(_))), "{login}: {about}: {answer:?}");
        }
        is_done(&client).await;
    }
}
