//! Three servers that replicate each stream: what a role notices while servers are lost, and the file of
//! `stage0 nats-config` for them.

// Plain NATS tools block, and a test is short.
#![allow(clippy::disallowed_methods)]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use stage0_backplane::nats::{
    ClusterConf, ClusterRoute, Connection, KeySet, Login, Logins, MessageAuth, NatsConfig, NatsServerConf, Requirement,
    Sizes, StreamAdmin,
};
use stage0_backplane::testing::{NODES, NatsCluster, SYNCED, wait_for};
use stage0_backplane::{AppendError, Backplane, DecisionLog, EntryKind, Event, MarkError};
use stage0_contract::{EvaluateRequest, Request as _, Role};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::roles::{serve, settings_of};
use crate::settled::{cluster, verified};
use crate::streams::SIZES;
use crate::writing::{MARKS, account, append, batch, decisions, everything, mark, soon, write};
use crate::{Changed, PATIENT, answer_all, ask};

const SHORT: Duration = Duration::from_millis(500);
/// An election takes up to nine seconds, and a write that meets it is tried again.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(45);

/// A connection that begins at this server, with its streams created on all of them.
async fn recorder(cluster: &NatsCluster, first: usize) -> Connection {
    let connection = Connection::open(&verified(cluster, "suite", first)).await.unwrap();
    connection.prepare_log(NODES).await.unwrap();
    connection
}

/// Appends until it is acknowledged, always under the same id.
async fn append_patiently(log: &dyn DecisionLog, text: &str) {
    let batch = batch(&account("a"), text.to_owned());
    wait_for("the batch is acknowledged", RECOVERY_TIMEOUT, async || {
        append(log, batch.clone(), Instant::now() + SHORT).await.is_ok()
    })
    .await;
}

/// The server that a connection is at.
fn at(connection: &Connection) -> usize {
    (0..NODES).find(|node| connection.server().name == format!("n{}", node + 1)).unwrap()
}

#[tokio::test]
async fn a_role_goes_on_at_another_server_when_its_own_is_killed_and_readiness_names_what_is_lost() {
    let Some(mut cluster) = cluster().await else { return };
    let connection = recorder(&cluster, 0).await;
    let log = connection.backplane().log;
    write(&*log, &account("a"), "before").await;
    assert_eq!((at(&connection), log.ready().await), (0, Ok(Vec::new())));
    let gone = cluster.monitor(0);
    cluster.kill(0);
    append_patiently(&*log, "without the first server").await;
    assert_ne!(at(&connection), 0);
    let names_it = |remarks: &[String]| remarks.iter().any(|remark| remark.contains(&gone));
    wait_for("it is ready, and says what is lost", RECOVERY_TIMEOUT, async || {
        log.ready().await.is_ok_and(|remarks| names_it(&remarks))
    })
    .await;

    cluster.restart(0).await;
    cluster.wait_until_current().await;
    wait_for("nothing is lost any more", RECOVERY_TIMEOUT, async || log.ready().await == Ok(Vec::new())).await;
    cluster.settle().await;
    assert_eq!(decisions(&*log, &account("a")).await, ["before", "without the first server"]);
}

#[tokio::test]
async fn a_role_starts_while_a_server_is_gone_and_its_streams_have_no_leader_yet() {
    let Some(mut cluster) = cluster().await else { return };
    let first = recorder(&cluster, 0).await.backplane().log;
    write(&*first, &account("a"), "before").await;
    let leader = cluster.wait_for_leader("S0_LOG").await;
    cluster.kill(leader);
    // It is named first, and no election has ended.
    let connection = Connection::open(&verified(&cluster, "suite", leader)).await.unwrap();
    wait_for("its streams are there", RECOVERY_TIMEOUT, async || connection.prepare_log(NODES).await.is_ok()).await;
    append_patiently(&*connection.backplane().log, "after").await;
    cluster.settle().await;
    assert_eq!(decisions(&*connection.backplane().log, &account("a")).await, ["before", "after"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_or_doubled_while_the_leader_is_killed_again_and_again() {
    const WRITERS: usize = 4;
    const EACH: usize = 60;
    let Some(mut cluster) = cluster().await else { return };
    let connections = join_all((0..WRITERS).map(|writer| recorder(&cluster, writer % NODES))).await;
    let logs: Vec<_> = connections.iter().map(|connection| connection.backplane().log).collect();
    let acknowledged = AtomicUsize::new(0);
    let writers = join_all(logs.iter().enumerate().map(async |(writer, log)| {
        for number in 0..EACH {
            append_patiently(&**log, &format!("{writer} {number:03}")).await;
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
    }));
    let kills = async {
        for round in 1..=2 {
            let enough = async || acknowledged.load(Ordering::Relaxed) > round * 60;
            wait_for("some are acknowledged", RECOVERY_TIMEOUT, enough).await;
            let leader = cluster.wait_for_leader("S0_LOG").await;
            cluster.kill(leader);
            cluster.wait_for_leader("S0_LOG").await;
            cluster.restart(leader).await;
        }
    };
    tokio::join!(writers, kills);
    cluster.settle().await;
    let written = (0..WRITERS).flat_map(|writer| (0..EACH).map(move |number| format!("{writer} {number:03}")));
    let written: Vec<_> = written.collect();
    for log in &logs {
        wait_for("it is connected", RECOVERY_TIMEOUT, async || log.ready().await.is_ok()).await;
        let mut found = decisions(&**log, &account("a")).await;
        found.sort();
        assert_eq!(found, written);
    }
}

#[tokio::test]
async fn a_leader_that_was_frozen_takes_nothing_back_when_it_runs_again() {
    let Some(mut cluster) = cluster().await else { return };
    let connection = recorder(&cluster, 0).await;
    let (log, state_store) = (connection.backplane().log, connection.backplane().state_store);
    let first = state_store.put("k", "first".into(), None, None, soon()).await.unwrap();
    let leader = cluster.wait_for_leader("S0_LEDGER").await;
    cluster.freeze(leader);
    let mut expected = Some(first);
    wait_for("a put is acknowledged", RECOVERY_TIMEOUT, async || {
        // Its acknowledgement may have been lost, so it is read what it replaces.
        let until = Instant::now() + SHORT;
        if let Ok(Some(found)) = state_store.get("k", until).await {
            expected = Some(found.revision);
        }
        state_store.put("k", "second".into(), expected, None, until).await.is_ok()
    })
    .await;
    append_patiently(&*log, "meanwhile").await;
    cluster.thaw(leader);
    // While it learns what it missed.
    let stale = state_store.put("k", "from the first".into(), Some(first), None, Instant::now() + SHORT).await;
    assert!(stale.is_err(), "{stale:?}");
    cluster.wait_until_current().await;
    cluster.settle().await;
    assert_eq!(state_store.get("k", soon()).await.unwrap().unwrap().value, "second");
    assert_eq!(decisions(&*log, &account("a")).await, ["meanwhile"]);
}

/// A connection of a role that authenticates its records.
async fn of_role(cluster: &NatsCluster, keys: &KeySet, role: Role, first: usize) -> Backplane {
    let auth = MessageAuth::new(keys.role(role).unwrap(), role, false).unwrap();
    let config = NatsConfig { auth: Some(auth), ..verified(cluster, role.as_str(), first) };
    let connection = Connection::open(&config).await.unwrap();
    connection.prepare_log(NODES).await.unwrap();
    connection.backplane()
}

#[tokio::test]
async fn a_record_is_read_as_it_was_put_by_the_same_process_though_any_replica_answers() {
    let Some(cluster) = cluster().await else { return };
    let keys = KeySet::create(Requirement::Always).unwrap();
    for first in 0..NODES {
        let state_store = of_role(&cluster, &keys, Role::AuditExport, first).await.state_store;
        let key = format!("cursor.r{first}");
        let mut expected = state_store.put(&key, "first".into(), None, None, soon()).await.unwrap();
        cluster.settle().await;
        for number in 0..150_u32 {
            let value = Bytes::from(number.to_string());
            expected = state_store.put(&key, value.clone(), Some(expected), None, soon()).await.unwrap();
            // At once, which a replica that lags is too slow for.
            let found = state_store.get(&key, soon()).await.unwrap().unwrap();
            assert_eq!((found.value, found.revision), (value, expected));
        }
    }
}

#[tokio::test]
async fn of_two_marks_behind_a_forged_one_one_is_written_though_any_replica_answers() {
    const ROUNDS: usize = 15;
    let Some(cluster) = cluster().await else { return };
    let keys = KeySet::create(Requirement::Always).unwrap();
    let one = of_role(&cluster, &keys, Role::AuditExport, 0).await.log;
    let other = of_role(&cluster, &keys, Role::AuditExport, 1).await.log;
    let bystander = async_nats::connect(cluster.url(2)).await.unwrap();
    let a = account("a");
    let mut last = None;
    for round in 0..ROUNDS {
        let forged = bystander.request("s0.log.a.m", Bytes::from_static(b"forged")).await.unwrap();
        assert!(forged.payload.starts_with(b"{\"stream\""), "{:?}", forged.payload);
        let lines = ["one", "other"].map(|writer| Bytes::from(format!("{writer} {round}")));
        let [line, its_line] = lines;
        let (first, second) =
            tokio::join!(one.append_mark(&a, line, last, soon()), other.append_mark(&a, its_line, last, soon()));
        let answers = [first, second];
        let written: Vec<_> = answers.iter().flatten().copied().collect();
        assert_eq!(written.len(), 1, "{round}: {answers:?}");
        assert!(answers.contains(&Err(MarkError::Conflict)), "{round}: {answers:?}");
        last = Some(written[0]);
    }
    cluster.settle().await;
    assert_eq!(everything(&*one, &a, MARKS).await.len(), ROUNDS);
}

#[tokio::test]
async fn requests_and_notices_cross_between_servers() {
    let Some(cluster) = cluster().await else { return };
    let connect = async |first| Backplane::connect(&cluster.config("suite", first)).await.unwrap();
    let (asker, server) = (connect(0).await, connect(1).await);
    let served = tokio::spawn(answer_all(server.requests.serve().await.unwrap()));
    // Another server learns of a subscription a moment later.
    wait_for("the request is answered", PATIENT, async || ask(&asker, "hello", SHORT).await.as_deref() == Ok("hello"))
        .await;
    let mut listener = connect(2).await.notices.subscribe::<Changed>().await.unwrap();
    wait_for("a notice arrives", PATIENT, async || {
        asker.notices.publish(&Changed { number: 1 }).await.unwrap();
        matches!(tokio::time::timeout(SHORT, listener.next()).await, Ok(Some(Event::Message(Changed { number: 1 }))))
    })
    .await;
    served.abort();
}

/// An authority, and certificates of it for servers that are called `localhost` and for a role.
struct Certificates {
    directory: TempDir,
    authority: CertificateDer<'static>,
    params: CertificateParams,
    key: KeyPair,
}

impl Certificates {
    fn new() -> Self {
        let (directory, key) = (tempfile::tempdir().unwrap(), KeyPair::generate().unwrap());
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(directory.path().join("ca.pem"), certificate.pem()).unwrap();
        let made = Self { directory, authority: certificate.der().clone(), params, key };
        let (server, server_key) = made.issue("localhost");
        std::fs::write(made.path().join("server.pem"), server.pem()).unwrap();
        std::fs::write(made.path().join("server.key"), server_key.serialize_pem()).unwrap();
        made
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// For both directions, with this DNS name.
    fn issue(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let (key, issuer) = (KeyPair::generate().unwrap(), Issuer::from_params(&self.params, &self.key));
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &issuer).unwrap();
        (certificate, key)
    }

    /// What a server says to a route from a certificate with this name.
    fn route_as(&self, name: &str, port: u16) -> String {
        let (certificate, key) = self.issue(name);
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone()).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let server = ServerName::try_from("localhost").unwrap();
        let connection = ClientConnection::new(Arc::new(config), server).unwrap();
        let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.set_read_timeout(Some(PATIENT)).unwrap();
        let mut stream = StreamOwned::new(connection, socket);
        stream.write_all(b"CONNECT {\"tls_required\":true,\"name\":\"x\",\"cluster\":\"c\"}\r\nPING\r\n").unwrap();
        let (mut said, mut piece) = (String::new(), [0; 4096]);
        while !said.contains("PONG") && !said.contains("-ERR") {
            let read = stream.read(&mut piece).unwrap();
            assert!(read > 0, "{said}");
            said.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
        said
    }
}

/// Each server with its file of `stage0 nats-config`, except for addresses, the TLS of clients and passwords.
async fn configured(certificates: &Certificates) -> Option<(NatsCluster, Vec<u16>)> {
    let ports = std::sync::Mutex::new(Vec::new());
    let cluster = NatsCluster::start_each(|node, routes| {
        *ports.lock().unwrap() = routes.to_vec();
        let route = |port: &u16| ClusterRoute::parse(&format!("localhost:{port}")).unwrap();
        let own = routes[node];
        let cluster = ClusterConf {
            name: "c".to_owned(),
            listen: format!("127.0.0.1:{own}").parse().unwrap(),
            routes: routes.iter().filter(|port| **port != own).map(route).collect(),
            tls_dir: certificates.path().to_owned(),
        };
        settings_of(&NatsServerConf {
            prefix: "s0".to_owned(),
            name: format!("n{}", node + 1),
            listen: "127.0.0.1:4222".parse().unwrap(),
            monitor: "127.0.0.1:8222".parse().unwrap(),
            tls_dir: "/etc/nats".into(),
            store_dir: "/var/lib/nats".into(),
            max_file: "1GB".to_owned(),
            passwords: None,
            logins: Logins::SHARED,
            cluster: Some(cluster),
        })
    })
    .await;
    if cluster.is_none() {
        eprintln!("NOT TESTED: a cluster needs the binary of nats-server");
    }
    Some((cluster?, ports.into_inner().unwrap()))
}

async fn logged_in(cluster: &NatsCluster, user: &str, first: usize) -> Connection {
    let login = Login::Password { user: user.to_owned(), password: "right".to_owned() };
    let config = verified(cluster, user, first);
    let config = NatsConfig { login: Some(login), jetstream_api: "s0.api".to_owned(), ..config };
    Connection::open(&config).await.unwrap()
}

#[tokio::test]
async fn the_servers_of_nats_config_replicate_the_streams_and_roles_at_each_of_them_do_their_part() {
    let certificates = Certificates::new();
    let Some((cluster, _)) = configured(&certificates).await else { return };
    let admin = StreamAdmin::new(logged_in(&cluster, NatsServerConf::ADMIN_USER, 0).await);
    let made = admin.init(&Sizes { replicas: NODES, ..SIZES }).await.unwrap();
    assert!(made.iter().all(|state| state.is_new && state.differences.is_empty()), "{made:?}");
    let prepared = async |role: Role, first| {
        let connection = logged_in(&cluster, role.as_str(), first).await;
        connection.prepare(role, NODES).await.unwrap();
        connection.backplane()
    };
    let (gateway, exporter) = (prepared(Role::Gateway, 0).await, prepared(Role::AuditExport, 1).await);
    let (evaluator, keystore) = (prepared(Role::Evaluator, 2).await, prepared(Role::Keystore, 0).await);
    let a = account("a");
    write(&*gateway.log, &a, "one").await;
    let first = mark(&*exporter.log, &a, "mark", None).await;
    let records =
        [(&gateway, "usage.a.m1"), (&exporter, "cursor.a"), (&evaluator, "runs.a.r"), (&keystore, "keystore.lease")];
    for (role, record) in records {
        role.state_store.put(record, "there".into(), None, None, soon()).await.unwrap();
    }
    cluster.settle().await;
    for (role, record) in records {
        assert_eq!(role.state_store.get(record, soon()).await.unwrap().unwrap().value, "there", "{record}");
    }
    assert_eq!(decisions(&*exporter.log, &a).await, ["one"]);
    assert_eq!(gateway.log.last(&a, EntryKind::Mark, soon()).await.unwrap().unwrap().position, first);
    assert_eq!(gateway.log.ready().await, Ok(Vec::new()));
    let forged = append(&*exporter.log, batch(&a, "forged"), soon()).await;
    assert!(matches!(forged, Err(AppendError::NotStored(_))), "{forged:?}");

    let _serving = serve(&evaluator, &[EvaluateRequest::SUBJECT]).await;
    wait_for("the request is answered", PATIENT, async || {
        let asked = gateway.requests.request_bytes(EvaluateRequest::SUBJECT, "{}".into(), Instant::now() + SHORT);
        asked.await.as_deref() == Ok(&b"{}"[..])
    })
    .await;
}

#[tokio::test]
async fn a_route_from_the_certificate_of_a_role_is_refused() {
    let certificates = Certificates::new();
    let Some((_cluster, routes)) = configured(&certificates).await else { return };
    let said = |name: &'static str| certificates.route_as(name, routes[0]);
    let role = said("gateway");
    assert!(role.contains("Authorization Violation"), "{role}");
    let server = said("localhost");
    assert!(server.contains("PONG"), "{server}");
}

#[tokio::test]
async fn a_server_alone_that_is_asked_for_copies_says_that_it_is_no_cluster() {
    let nats = stage0_backplane::testing::NatsServer::start_with(SYNCED).await;
    let connection = Connection::open(&nats.config("suite")).await.unwrap();
    let why = connection.prepare_log(NODES).await.unwrap_err().to_string();
    assert!(why.contains("replicas > 1 not supported in non-clustered mode"), "{why}");
}
