//! Streams with wrong settings, streams of an earlier version, and limits that one role cannot use up for another.

// Plain NATS tools block, and a test is short.
#![allow(clippy::disallowed_methods)]

use async_nats::HeaderMap;
use bytes::Bytes;
use serde_json::{Value, json};
use stage0_backplane::nats::{
    AdminError, Connection, KeySet, Logins, MessageAuth, NatsConfig, NatsServerConf, Requirement, Sizes, StreamAdmin,
};
use stage0_backplane::testing::{NatsServer, wait_for};
use stage0_backplane::{AppendError, Backplane, PutError};
use stage0_contract::Role;

use crate::PATIENT;
use crate::roles::{open, prepared, raw, server_with};
use crate::writing::{account, append, batch, decisions, recorder, soon, verified, write};

pub(crate) const STREAMS: [&str; 10] = [
    "S0_LOG",
    "S0_LEDGER",
    "S0_RUNS",
    "S0_APPROVALS",
    "S0_OUTCOMES",
    "S0_GUARDS",
    "S0_CANDIDATES",
    "S0_USAGE",
    "S0_IDEMPOTENCY",
    "S0_KEYSTORE",
];
/// What a deployment of the version before approvals has not.
const ADDED: [&str; 4] =
    ["`S0_APPROVALS` was made", "`S0_OUTCOMES` was made", "`S0_GUARDS` was made", "`S0_CANDIDATES` was made"];
pub(crate) const SIZES: Sizes = Sizes { replicas: 1, max_store: None, max_records: 1_000_000 };

/// What JetStream answers to a client without restrictions.
async fn api(client: &async_nats::Client, what: &str, body: &Value) -> Value {
    let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let said = client.request(format!("$JS.API.{what}"), body).await.unwrap();
    serde_json::from_slice(&said.payload).unwrap()
}

async fn config(client: &async_nats::Client, stream: &str) -> Value {
    api(client, &format!("STREAM.INFO.{stream}"), &Value::Null).await["config"].clone()
}

/// Sets another value of one setting; returns the previous configuration.
async fn change(client: &async_nats::Client, stream: &str, setting: &str, value: Value) -> Value {
    let before = config(client, stream).await;
    let mut changed = before.clone();
    changed[setting] = value;
    let said = api(client, &format!("STREAM.UPDATE.{stream}"), &changed).await;
    assert!(said.get("error").is_none(), "{setting}: {said}");
    before
}

#[tokio::test]
async fn nothing_is_recorded_in_a_stream_with_a_wrong_setting_until_it_is_corrected() {
    let nats = NatsServer::start().await;
    let connection = recorder(&nats).await;
    let (backplane, admin) = (connection.backplane(), async_nats::connect(nats.url()).await.unwrap());
    let worker = Connection::open(&verified(&nats)).await.unwrap().backplane();
    write(&*worker.log, &account("a"), "before").await;
    for (setting, value) in [
        ("subject_transform", json!({"src": "s0.log.*.d", "dest": "s0.log.x.d"})),
        ("republish", json!({"src": ">", "dest": "elsewhere.>"})),
        ("sources", json!([{"name": "S0_RUNS"}])),
        ("max_age", json!(3_600_000_000_000_u64)),
        ("discard", json!("old")),
        ("max_msgs_per_subject", json!(1_000)),
        ("allow_rollup_hdrs", json!(true)),
        ("no_ack", json!(true)),
    ] {
        let before = change(&admin, "S0_LOG", setting, value).await;
        let why = backplane.log.ready().await.unwrap_err().to_string();
        let says = |why: &str| why.contains(&format!("`S0_LOG` is not as it has to be: its `{setting}` differs"));
        assert!(says(&why) && why.contains("stage0 nats-admin check"), "{why}");
        let answer = append(&*backplane.log, batch(&account("a"), "unheard"), soon()).await;
        assert!(matches!(&answer, Err(AppendError::NotStored(why)) if says(&why.to_string())), "{setting}: {answer:?}");
        assert!(backplane.log.append_mark(&account("a"), "unheard".into(), None, soon()).await.is_err());
        let started = Connection::open(&verified(&nats)).await.unwrap().prepare(Role::Gateway, 1).await;
        assert!(says(&started.unwrap_err().to_string()), "{setting}");
        let said = api(&admin, "STREAM.UPDATE.S0_LOG", &before).await;
        assert!(said.get("error").is_none(), "{said}");
        assert_eq!(backplane.log.ready().await, Ok(Vec::new()), "{setting}");
    }
    // Processes that only append notice it themselves within seconds.
    let before = change(&admin, "S0_LOG", "republish", json!({"src": ">", "dest": "elsewhere.>"})).await;
    wait_for("a worker finds out", PATIENT, async || {
        append(&*worker.log, batch(&account("w"), "x"), soon()).await.is_err()
    })
    .await;
    api(&admin, "STREAM.UPDATE.S0_LOG", &before).await;
    write(&*backplane.log, &account("a"), "after").await;
    assert_eq!(decisions(&*backplane.log, &account("a")).await, ["before", "after"]);
}

#[tokio::test]
async fn the_operators_choices_pass_the_stream_check_and_a_wrong_state_store_takes_no_record() {
    let nats = NatsServer::start().await;
    let backplane = recorder(&nats).await.backplane();
    let admin = async_nats::connect(nats.url()).await.unwrap();
    for (setting, value) in [
        ("description", json!("ours")),
        ("max_bytes", json!(64 << 20)),
        ("compression", json!("s2")),
        ("max_age", json!(0)),
        ("metadata", json!({"team": "x"})),
    ] {
        change(&admin, "S0_LOG", setting, value).await;
        assert_eq!(backplane.log.ready().await, Ok(Vec::new()), "{setting}");
    }
    write(&*backplane.log, &account("a"), "kept").await;
    backplane.state_store.put("runs.a.r", "1".into(), None, None, soon()).await.unwrap();
    let before = change(&admin, "S0_RUNS", "republish", json!({"src": ">", "dest": "elsewhere.>"})).await;
    let why = backplane.state_store.ready().await.unwrap_err().to_string();
    assert!(why.contains("`S0_RUNS`") && why.contains("`republish`"), "{why}");
    let put = backplane.state_store.put("runs.a.s", "1".into(), None, None, soon()).await;
    assert!(matches!(&put, Err(PutError::Failed(why)) if why.to_string().contains("`republish`")), "{put:?}");
    backplane.state_store.put("usage.a.m1", "1".into(), None, None, soon()).await.unwrap();
    api(&admin, "STREAM.UPDATE.S0_RUNS", &before).await;
    assert_eq!(backplane.state_store.ready().await, Ok(()));
    backplane.state_store.put("runs.a.s", "1".into(), None, None, soon()).await.unwrap();
}

/// The two streams of 0.1.0, as audit-export created them.
async fn make_former_streams(client: &async_nats::Client) {
    let common = json!({"retention": "limits", "storage": "file", "discard": "new", "num_replicas": 1,
        "duplicate_window": 120_000_000_000_u64, "allow_direct": true});
    let with = |more: Value| {
        let mut settings = common.clone();
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        settings
    };
    let log = with(json!({"name": "S0_LOG", "subjects": ["s0.log.*.d", "s0.log.*.m"],
        "max_age": 395 * 86_400 * 1_000_000_000_u64}));
    let state_store = with(json!({"name": "S0_LEDGER", "subjects": ["s0.ledger.>"], "max_msgs_per_subject": 1,
        "discard_new_per_subject": false, "allow_msg_ttl": true}));
    for settings in [log, state_store] {
        let name = settings["name"].as_str().unwrap().to_owned();
        let said = api(client, &format!("STREAM.CREATE.{name}"), &settings).await;
        assert!(said.get("error").is_none(), "{said}");
    }
}

/// An open server on which an earlier version ran, with message keys, and a gateway's connection to it.
struct Former {
    nats: NatsServer,
    client: async_nats::Client,
    gateway: NatsConfig,
}

impl Former {
    /// A counter was written twice, and there is much other data.
    async fn start() -> Self {
        let nats = NatsServer::start().await;
        let client = async_nats::connect(nats.url()).await.unwrap();
        let keys = KeySet::create(Requirement::Always).unwrap();
        let auth = MessageAuth::new(keys.role(Role::Gateway).unwrap(), Role::Gateway, false).unwrap();
        let gateway = NatsConfig { auth: Some(auth), name: "gateway".to_owned(), ..verified(&nats) };
        // What such a gateway writes, as it is stored: the same sequences and headers, whatever the stream's name is.
        let writer = Connection::open(&gateway).await.unwrap();
        writer.prepare_log(1).await.unwrap();
        let state_store = writer.backplane().state_store;
        let mut written = Vec::new();
        for _ in 0..2 {
            state_store.add("usage.a.m1", 3, 100, PATIENT * 100, soon()).await.unwrap();
            let stored =
                client.request("$JS.API.DIRECT.GET.S0_USAGE.s0.ledger.usage.a.m1", Bytes::new()).await.unwrap();
            written.push(stored);
        }
        for stream in STREAMS {
            api(&client, &format!("STREAM.DELETE.{stream}"), &Value::Null).await;
        }
        make_former_streams(&client).await;
        for stored in written {
            let mut headers = HeaderMap::new();
            for (name, values) in stored.headers.as_ref().unwrap().iter() {
                let text = name.to_string();
                let of_server = ["Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp"];
                if !of_server.contains(&text.as_str()) {
                    values.iter().for_each(|value| headers.append(name.clone(), value.clone()));
                }
            }
            let subject = "s0.ledger.usage.a.m1";
            let said = client.request_with_headers(subject, headers, stored.payload).await.unwrap();
            assert!(!String::from_utf8_lossy(&said.payload).contains("error"), "{said:?}");
        }
        for number in 0..500 {
            for subject in [format!("s0.ledger.runs.a.r{number}"), format!("s0.ledger.cursor.e{number}")] {
                client.request(subject, "of before".into()).await.unwrap();
            }
        }
        client.request("s0.log.a.d", "of before".into()).await.unwrap();
        Self { nats, client, gateway }
    }

    async fn admin(&self) -> StreamAdmin {
        StreamAdmin::new(Connection::open(&self.nats.config("admin")).await.unwrap())
    }

    async fn gateway(&self) -> Backplane {
        let connection = Connection::open(&self.gateway).await.unwrap();
        connection.prepare(Role::Gateway, 1).await.unwrap();
        connection.backplane()
    }

    async fn messages(&self, stream: &str) -> u64 {
        api(&self.client, &format!("STREAM.INFO.{stream}"), &Value::Null).await["state"]["messages"].as_u64().unwrap()
    }

    /// Everything is where it belongs, and counting continues.
    async fn has_moved(&self) {
        assert!(self.admin().await.check().await.unwrap().iter().all(|state| state.differences.is_empty()));
        assert_eq!((self.messages("S0_RUNS").await, self.messages("S0_USAGE").await), (500, 1));
        let gateway = self.gateway().await;
        assert_eq!(gateway.log.ready().await, Ok(Vec::new()));
        assert_eq!(gateway.state_store.count("usage.a.m1", soon()).await, Ok(6));
        let added = gateway.state_store.add("usage.a.m1", 1, 7, PATIENT, soon()).await.unwrap();
        assert_eq!((added.granted, added.total), (1, 7), "it went on");
        assert_eq!(gateway.state_store.add("usage.a.m1", 1, 7, PATIENT, soon()).await.unwrap().granted, 0);
        assert_eq!(gateway.state_store.count("usage.a.m2", soon()).await, Ok(0));
        assert_eq!(self.messages("S0_LOG").await, 1);
    }
}

#[tokio::test]
async fn records_of_an_earlier_version_move_with_their_places_and_no_counter_begins_again() {
    let former = Former::start().await;
    for role in Role::ALL {
        let started = Connection::open(&former.gateway).await.unwrap().prepare(role, 1).await;
        let why = started.unwrap_err().to_string();
        assert!(why.contains("stage0 nats-admin") && why.contains("upgrade"), "{role}: {why}");
    }
    let why = former.admin().await.init(&SIZES).await.unwrap_err().to_string();
    assert!(why.contains("run `stage0 nats-admin upgrade`"), "{why}");
    let done = former.admin().await.upgrade(&SIZES).await.unwrap();
    assert!(done.iter().any(|line| line.contains("`S0_USAGE` holds its records")), "{done:?}");
    former.has_moved().await;
    assert_eq!(former.admin().await.upgrade(&SIZES).await.unwrap(), Vec::<String>::new());
}

/// A deployment of the version before approvals: its six streams may take 95 percent of the space, and hold records.
#[tokio::test]
async fn a_deployment_without_the_stream_of_approvals_gets_it_and_keeps_what_it_has() {
    const PERCENT: [(&str, u64); 6] =
        [("S0_LOG", 60), ("S0_LEDGER", 8), ("S0_RUNS", 10), ("S0_USAGE", 7), ("S0_IDEMPOTENCY", 6), ("S0_KEYSTORE", 4)];
    let (model, nats) = (server_with("96MB", Logins::SHARED).await, server_with("96MB", Logins::SHARED).await);
    StreamAdmin::new(open(&model, NatsServerConf::ADMIN_USER).await).init(&SIZES).await.unwrap();
    let (model, client) = (raw(&model, NatsServerConf::ADMIN_USER).await, raw(&nats, NatsServerConf::ADMIN_USER).await);
    for (name, percent) in PERCENT {
        let said = model.request(format!("s0.api.STREAM.INFO.{name}"), Bytes::new()).await.unwrap();
        let mut config = serde_json::from_slice::<Value>(&said.payload).unwrap()["config"].take();
        config["max_bytes"] = json!(96_000_000 / 100 * percent);
        let said = client.request(format!("s0.api.STREAM.CREATE.{name}"), config.to_string().into()).await.unwrap();
        assert!(!String::from_utf8_lossy(&said.payload).contains(r#""error""#), "{said:?}");
    }
    let why = open(&nats, "evaluator").await.prepare(Role::Evaluator, 1).await.unwrap_err().to_string();
    assert!(why.contains("`S0_APPROVALS` is missing") && why.contains("`stage0 nats-admin upgrade`"), "{why}");
    write(&*prepared(&nats, "gateway").await.log, &account("a"), "kept").await;

    let admin = StreamAdmin::new(open(&nats, NatsServerConf::ADMIN_USER).await);
    assert_eq!(admin.upgrade(&SIZES).await.unwrap(), ADDED);
    assert_eq!(admin.upgrade(&SIZES).await.unwrap(), Vec::<String>::new());
    assert!(admin.check().await.unwrap().iter().all(|state| state.differences.is_empty()));
    let evaluator = prepared(&nats, "evaluator").await;
    for key in ["approvals.a.acc.x", "outcomes.d.acc.x", "guards.g.acc.x", "candidates.acc.x", "runs.acc.r"] {
        evaluator.state_store.put(key, "1".into(), None, None, soon()).await.unwrap();
    }
    assert_eq!(decisions(&*prepared(&nats, "audit-export").await.log, &account("a")).await, ["kept"]);
}

/// A deployment that got its approvals by an upgrade: they took the last of the space.
#[tokio::test]
async fn where_no_space_is_free_further_streams_are_made_once_there_is() {
    const PERCENT: [(&str, u64); 7] = [
        ("S0_LOG", 60),
        ("S0_LEDGER", 8),
        ("S0_RUNS", 10),
        ("S0_USAGE", 7),
        ("S0_IDEMPOTENCY", 6),
        ("S0_KEYSTORE", 4),
        ("S0_APPROVALS", 5),
    ];
    let (model, nats) = (server_with("96MB", Logins::SHARED).await, server_with("96MB", Logins::SHARED).await);
    StreamAdmin::new(open(&model, NatsServerConf::ADMIN_USER).await).init(&SIZES).await.unwrap();
    let (model, client) = (raw(&model, NatsServerConf::ADMIN_USER).await, raw(&nats, NatsServerConf::ADMIN_USER).await);
    let mut approvals = Value::Null;
    for (name, percent) in PERCENT {
        let said = model.request(format!("s0.api.STREAM.INFO.{name}"), Bytes::new()).await.unwrap();
        let mut config = serde_json::from_slice::<Value>(&said.payload).unwrap()["config"].take();
        config["max_bytes"] = json!((96 << 20) / 100 * percent);
        let said = client.request(format!("s0.api.STREAM.CREATE.{name}"), config.to_string().into()).await.unwrap();
        assert!(!String::from_utf8_lossy(&said.payload).contains(r#""error""#), "{said:?}");
        approvals = config;
    }
    let admin = StreamAdmin::new(open(&nats, NatsServerConf::ADMIN_USER).await);
    let why = admin.upgrade(&SIZES).await.unwrap_err().to_string();
    assert!(why.contains("`S0_OUTCOMES` cannot be made"), "{why}");
    approvals["max_bytes"] = json!((96 << 20) / 100 * 2);
    let update = client.request("s0.api.STREAM.UPDATE.S0_APPROVALS", approvals.to_string().into()).await.unwrap();
    assert!(!String::from_utf8_lossy(&update.payload).contains(r#""error""#), "{update:?}");
    assert_eq!(admin.upgrade(&SIZES).await.unwrap(), ADDED[1..]);
    let evaluator = prepared(&nats, "evaluator").await;
    evaluator.state_store.put("candidates.acc.x", "1".into(), None, None, soon()).await.unwrap();
}

#[tokio::test]
async fn an_upgrade_that_was_cut_off_is_completed_by_the_next() {
    let former = Former::start().await;
    // Interrupted: some mirrors exist, and no record can be written any more.
    for (name, word) in [("S0_RUNS", "runs"), ("S0_USAGE", "usage")] {
        let source = json!({"name": "S0_LEDGER", "filter_subject": format!("s0.ledger.{word}.>")});
        let mirror = json!({
            "name": name, "mirror": source, "retention": "limits", "storage": "file", "discard": "new",
            "max_msgs_per_subject": 1, "allow_msg_ttl": true, "allow_direct": true, "num_replicas": 1,
        });
        let said = api(&former.client, &format!("STREAM.CREATE.{name}"), &mirror).await;
        assert!(said.get("error").is_none(), "{said}");
    }
    let narrowed = json!(["s0.ledger.cursor.>", "s0.ledger.replay.>", "s0.ledger.*"]);
    change(&former.client, "S0_LEDGER", "subjects", narrowed).await;
    former.admin().await.upgrade(&SIZES).await.unwrap();
    former.has_moved().await;
}

#[tokio::test]
async fn a_moved_record_that_was_altered_is_rejected() {
    let former = Former::start().await;
    former.admin().await.upgrade(&SIZES).await.unwrap();
    let gateway = former.gateway().await;
    // Without the header that a mirror drops, and with the proof of the record that moved.
    let moved = "$JS.API.DIRECT.GET.S0_USAGE.s0.ledger.usage.a.m1";
    let stored = former.client.request(moved, Bytes::new()).await.unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("Stage0-Auth", stored.headers.as_ref().unwrap().get("Stage0-Auth").unwrap().as_str());
    assert_eq!(gateway.state_store.count("usage.a.m1", soon()).await, Ok(6));
    for body in [r#"{"count":0}"#, std::str::from_utf8(&stored.payload).unwrap()] {
        let subject = "s0.ledger.usage.a.m1";
        former.client.request_with_headers(subject, headers.clone(), body.to_owned().into()).await.unwrap();
        assert!(gateway.state_store.count("usage.a.m1", soon()).await.is_err(), "{body}");
    }
}

#[tokio::test]
async fn an_upgrade_that_would_leave_no_room_for_the_log_changes_nothing() {
    let former = Former::start().await;
    for _ in 0..9 {
        former.client.request("s0.log.a.d", vec![b'x'; 1_000_000].into()).await.unwrap();
    }
    let sizes = Sizes { max_store: Some(10_000_000), ..SIZES };
    let refused = former.admin().await.upgrade(&sizes).await.unwrap_err();
    assert!(
        matches!(refused, AdminError::NoRoom { needed, max_total: 10_000_000 } if needed > 10_000_000),
        "{refused}"
    );
    assert!(api(&former.client, "STREAM.INFO.S0_RUNS", &Value::Null).await.get("error").is_some());
    assert_eq!(config(&former.client, "S0_LEDGER").await["subjects"], json!(["s0.ledger.>"]));
    former.admin().await.upgrade(&Sizes { max_store: Some(100_000_000), ..SIZES }).await.unwrap();
}

/// Until the server takes no more; returns how many it took.
async fn fill(client: &async_nats::Client, subject: impl Fn(usize) -> String, body: usize, most: usize) -> usize {
    for number in 0..most {
        let said = client.request(subject(number), vec![b'x'; body].into()).await.unwrap();
        if String::from_utf8_lossy(&said.payload).contains("error") {
            return number;
        }
    }
    panic!("it takes all");
}

#[tokio::test]
async fn a_role_that_writes_without_end_fills_only_its_own_stream() {
    let nats = server_with("96MB", Logins::SHARED).await;
    let sizes = Sizes { max_records: 1_000, ..SIZES };
    StreamAdmin::new(open(&nats, NatsServerConf::ADMIN_USER).await).init(&sizes).await.unwrap();
    let (gateway, exporter) = (prepared(&nats, "gateway").await, prepared(&nats, "audit-export").await);
    let (evaluator, keystore) = (prepared(&nats, "evaluator").await, prepared(&nats, "keystore").await);
    evaluator.state_store.put("runs.a.own", "1".into(), None, None, soon()).await.unwrap();

    let thief = raw(&nats, "evaluator").await;
    let large = fill(&thief, |n| format!("s0.ledger.runs.a.large{n}"), 900_000, 30).await;
    assert!(large > 0 && large < 12, "{large}");
    let why = evaluator.state_store.ready().await.unwrap_err().to_string();
    assert!(why.contains("`S0_RUNS` has no room"), "{why}");
    let oversized = thief.request("s0.ledger.runs.a.larger", vec![b'x'; 2_000_000].into()).await.unwrap();
    assert!(String::from_utf8_lossy(&oversized.payload).contains("exceeds maximum"), "{oversized:?}");
    // And by the number of another role's records.
    let thief = raw(&nats, "gateway").await;
    let small = fill(&thief, |n| format!("s0.ledger.idempotency.a.k.small{n}"), 1, 2_000).await;
    assert_eq!(small, 1_000);

    for _ in 0..10 {
        write(&*gateway.log, &account("a"), vec![b'y'; 1_000_000]).await;
    }
    gateway.state_store.put("usage.a.m1", "1".into(), None, None, soon()).await.unwrap();
    exporter.state_store.put("cursor.e", "1".into(), None, None, soon()).await.unwrap();
    keystore.state_store.put("keystore.x", "1".into(), None, None, soon()).await.unwrap();
    exporter.log.ready().await.unwrap();
    let own = evaluator.state_store.get("runs.a.own", soon()).await.unwrap().unwrap();
    evaluator.state_store.put("runs.a.own", "2".into(), Some(own.revision), None, soon()).await.unwrap();
}

#[tokio::test]
async fn a_full_log_is_not_ready_and_leaves_the_state_store_its_space() {
    let nats = server_with("96MB", Logins::SHARED).await;
    StreamAdmin::new(open(&nats, NatsServerConf::ADMIN_USER).await).init(&SIZES).await.unwrap();
    let (gateway, exporter) = (prepared(&nats, "gateway").await, prepared(&nats, "audit-export").await);
    let mut taken = 0;
    let refused = loop {
        match append(&*gateway.log, batch(&account("a"), vec![b'x'; 2_000_000]), soon()).await {
            Ok(()) => taken += 1,
            Err(refused) => break refused,
        }
        assert!(taken < 48, "it takes all");
    };
    assert!(matches!(refused, AppendError::NotStored(_)), "{refused:?}");
    assert!(taken > 20, "{taken}");
    let why = gateway.log.ready().await.unwrap_err().to_string();
    assert!(why.contains("no room") || why.contains("has no room"), "{why}");
    gateway.state_store.put("usage.a.m1", "1".into(), None, None, soon()).await.unwrap();
    exporter.state_store.put("cursor.e", "1".into(), None, None, soon()).await.unwrap();
}

/// The server then counts from zero again: it stores, acknowledges, and finds nothing.
#[tokio::test]
async fn after_a_purge_beyond_the_last_sequence_nothing_is_recorded_and_every_role_reports_it() {
    let nats = NatsServer::start().await;
    let backplane = recorder(&nats).await.backplane();
    let admin = async_nats::connect(nats.url()).await.unwrap();
    write(&*backplane.log, &account("a"), "one").await;
    write(&*backplane.log, &account("a"), "two").await;
    let purge = async |up_to: u64| {
        let said = api(&admin, "STREAM.PURGE.S0_LOG", &json!({"seq": up_to})).await;
        assert_eq!(said["success"], true, "{said}");
    };
    // An ordinary purge, also one up to a position behind the end.
    for up_to in [2, 100] {
        purge(up_to).await;
        write(&*backplane.log, &account("a"), "three").await;
        assert_eq!(backplane.log.ready().await, Ok(Vec::new()));
    }
    purge(u64::MAX).await;
    let answer = append(&*backplane.log, batch(&account("a"), "lost"), soon()).await;
    assert!(matches!(&answer, Err(AppendError::Unknown(_) | AppendError::NotStored(_))), "{answer:?}");
    assert!(backplane.log.append_mark(&account("a"), "lost".into(), None, soon()).await.is_err());
    let says = |why: String| assert!(why.contains("`S0_LOG` counts its messages from where no stream begins"), "{why}");
    says(backplane.log.ready().await.unwrap_err().to_string());
    says(Connection::open(&verified(&nats)).await.unwrap().prepare(Role::Gateway, 1).await.unwrap_err().to_string());
}
