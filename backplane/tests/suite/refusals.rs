//! A NATS server that refuses: addresses, credentials, certificates, permissions, sizes.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use stage0_backplane::nats::{ConnectError, Connection, Login, NatsConfig, Tls};
use stage0_backplane::testing::{NatsServer, wait_for};
use stage0_backplane::{Backplane, RequestError};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::{Echo, PATIENT, ask};

/// One login that may only serve `echo`, one that may only request it, and one that may not even receive replies.
const USERS: &str = r#"
max_payload: 8MB
authorization {
  users = [
    { user: server, password: "right", permissions: {
        publish: "_INBOX_server.>", subscribe: ["_INBOX_server.>", "s0.req.echo s0"], allow_responses: true } }
    { user: asker, password: "right", permissions: {
        publish: ["_INBOX_asker.>", "s0.req.echo"], subscribe: "_INBOX_asker.>" } }
    { user: deaf, password: "right", permissions: { publish: ">", subscribe: "s0.>" } }
  ]
}"#;

fn impatient(config: NatsConfig) -> NatsConfig {
    NatsConfig { connect_timeout: Some(Duration::from_millis(500)), ..config }
}

fn as_user(nats: &NatsServer, user: &str, password: &str) -> NatsConfig {
    let login = Login::Password { user: user.to_owned(), password: password.to_owned() };
    NatsConfig { login: Some(login), ..nats.config(user) }
}

async fn refusal(config: &NatsConfig) -> ConnectError {
    Backplane::connect(config).await.err().expect("no connection")
}

#[tokio::test]
async fn an_address_without_a_server_is_unreachable() {
    let mut nats = NatsServer::start().await;
    nats.kill();
    let error = refusal(&impatient(nats.config("suite"))).await;
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error:?}");
    let address = nats.url().replace("nats://", "");
    assert_eq!(error.to_string(), format!("no NATS server at `{address}`"));
}

#[tokio::test]
async fn a_server_that_is_late_is_waited_for() {
    let mut nats = NatsServer::start().await;
    nats.kill();
    let config = NatsConfig { connect_timeout: Some(PATIENT), ..nats.config("suite") };
    let (connected, ()) = tokio::join!(Backplane::connect(&config), nats.restart());
    assert!(connected.is_ok());
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_silent() {
    let nats = NatsServer::start().await;
    nats.freeze();
    let error = refusal(&impatient(nats.config("suite"))).await;
    assert!(matches!(error, ConnectError::Silent { .. }), "{error:?}");
    nats.thaw();
}

#[tokio::test]
async fn a_wrong_password_is_refused_at_once_and_not_tried_again() {
    let nats = NatsServer::start_with(USERS).await;
    let asked = Instant::now();
    let config = NatsConfig { connect_timeout: Some(PATIENT), ..as_user(&nats, "asker", "wrong") };
    let error = refusal(&config).await;
    assert!(matches!(error, ConnectError::Refused { .. }), "{error:?}");
    assert!(asked.elapsed() < PATIENT / 2);
    assert!(!format!("{error:?} {error}").contains("wrong"));
    assert!(matches!(refusal(&nats.config("suite")).await, ConnectError::Refused { .. }));
}

#[tokio::test]
async fn one_server_that_works_is_enough() {
    let (gone, works) = (NatsServer::start_with(USERS).await, NatsServer::start().await);
    let config = NatsConfig { servers: vec![gone.url(), works.url()], ..works.config("suite") };
    let connection = Connection::open(&config).await.unwrap();
    connection.backplane().requests.ready().await.unwrap();
}

#[tokio::test]
async fn a_forbidden_request_times_out_and_the_connection_is_no_longer_ready() {
    let nats = NatsServer::start_with(USERS).await;
    let connection = Connection::open(&as_user(&nats, "server", "right")).await.unwrap();
    let backplane = connection.backplane();
    backplane.requests.ready().await.unwrap();
    assert_eq!(ask(&backplane, "may I?", Duration::from_millis(100)).await, Err(RequestError::Timeout));
    let mut reason = String::new();
    wait_for("the violation is known", PATIENT, async || match backplane.requests.ready().await {
        Ok(()) => false,
        Err(error) => {
            reason = error.to_string();
            true
        }
    })
    .await;
    assert!(reason.contains("s0.req.echo"), "{reason}");
    assert_eq!(connection.health().violations(), 1);
}

#[tokio::test]
async fn a_forbidden_subject_cannot_be_served_and_the_connection_is_no_longer_ready() {
    let nats = NatsServer::start_with(USERS).await;
    let backplane = Backplane::connect(&as_user(&nats, "asker", "right")).await.unwrap();
    if let Err(error) = backplane.requests.serve::<Echo>().await {
        assert_eq!(error.subject, "s0.req.echo");
    }
    wait_for("the violation is known", PATIENT, async || {
        backplane.requests.ready().await.is_err_and(|error| error.to_string().contains("s0.req.echo"))
    })
    .await;
}

#[tokio::test]
async fn services_with_only_the_permissions_that_they_need_work() {
    let nats = NatsServer::start_with(USERS).await;
    let server = Backplane::connect(&as_user(&nats, "server", "right")).await.unwrap();
    let asker = Backplane::connect(&as_user(&nats, "asker", "right")).await.unwrap();
    let served = tokio::spawn(crate::answer_all(server.requests.serve::<Echo>().await.unwrap()));
    assert_eq!(ask(&asker, "hello", PATIENT).await.as_deref(), Ok("hello"));
    asker.requests.ready().await.unwrap();
    server.requests.ready().await.unwrap();
    served.abort();
}

#[tokio::test]
async fn a_login_that_may_not_receive_replies_cannot_connect() {
    let nats = NatsServer::start_with(USERS).await;
    let error = refusal(&as_user(&nats, "deaf", "right")).await;
    assert!(matches!(error, ConnectError::NotCarried { .. }), "{error:?}");
}

#[tokio::test]
async fn a_request_larger_than_max_payload_is_refused_before_it_is_sent() {
    let nats = NatsServer::start_with("max_payload: 1MB").await;
    let asker = Backplane::connect(&nats.config("suite")).await.unwrap();
    for size in [1024 * 1024, 2_000_000] {
        let request = Bytes::from(vec![b'x'; size]);
        let asked = asker.requests.request_bytes("echo", request, Instant::now() + PATIENT).await;
        assert_eq!(asked, Err(RequestError::TooLarge), "{size} bytes and headers");
    }
    asker.requests.ready().await.unwrap();
}

#[tokio::test]
async fn tls_must_be_enabled_and_trusted_by_both_sides() {
    let directory = tempfile::tempdir().unwrap();
    let (ca, certificate, key) = certificates(directory.path());
    let encrypted = NatsServer::start_with(&format!("tls {{ cert_file: {certificate:?}, key_file: {key:?} }}")).await;
    let plain = NatsServer::start().await;
    let trusting = Some(Tls { ca: Some(ca), client: None });

    let stranger = NatsConfig { tls: Some(Tls::default()), ..encrypted.config("suite") };
    let unaware = encrypted.config("suite");
    let mismatched = NatsConfig { tls: trusting.clone(), ..plain.config("suite") };
    for config in [stranger, unaware, mismatched] {
        let error = refusal(&config).await;
        assert!(matches!(error, ConnectError::Tls { .. }), "{error:?}");
    }
    let trusted = NatsConfig { tls: trusting, ..encrypted.config("suite") };
    Backplane::connect(&trusted).await.unwrap().requests.ready().await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_too_old_is_refused_with_its_version() {
    // It is refused for its greeting alone; no machine of ours has a server that old.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let greeting = async {
        let (stream, _) = listener.accept().await.unwrap();
        let (reading, mut writing) = stream.into_split();
        let info = json!({
            "server_id": "x", "server_name": "x", "version": "2.14.9", "proto": 1, "headers": true,
            "max_payload": 8_388_608,
        });
        writing.write_all(format!("INFO {info}\r\n").as_bytes()).await.unwrap();
        let mut lines = BufReader::new(reading).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if line == "PING" {
                writing.write_all(b"PONG\r\n").await.unwrap();
            }
        }
    };
    let config = NatsConfig::new(format!("nats://{address}"), "suite");
    let error = tokio::select! {
        error = refusal(&config) => error,
        () = greeting => panic!("it hung up"),
    };
    let wanted = format!("the NATS server at `{address}` has version `2.14.9`; at least 2.15 is needed");
    assert_eq!(error.to_string(), wanted);
}

/// PEM files of an authority, and of a certificate for 127.0.0.1 with its key.
fn certificates(directory: &std::path::Path) -> (PathBuf, PathBuf, PathBuf) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = authority.self_signed(&authority_key).unwrap();
    let issuer = Issuer::from_params(&authority, &authority_key);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let write = |name: &str, pem: String| {
        let path = directory.join(name);
        std::fs::write(&path, pem).unwrap();
        path
    };
    (write("ca.pem", ca.pem()), write("cert.pem", certificate.pem()), write("key.pem", key.serialize_pem()))
}
