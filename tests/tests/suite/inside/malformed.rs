//! Messages whose headers cannot be read, written with a role's real login on the generated configuration: they end no
//! role's connection and stop nothing, and those that are stored are reported.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use stage0_backplane::testing::wait_for;
use stage0_contract::{EvaluateRequest, KeyChanged, Notice as _, Request as _};
use stage0_tests::{Api, account_scopes};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::streams::Running;

const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
const BLOCKS: [&[u8]; 5] = [
    b"NATS/1.0\r\nno colon here\r\n\r\n",
    b"NATS/1.0\r\nName: \xff\r\n\r\n",
    b"NATS/1.0\r\nna me: value\r\n\r\n",
    b"NATS/1.0\r\nName: lone\rreturn\r\n\r\n",
    b"NATS/2.0\r\n\r\n",
];

/// A login and certificate of a role, without a client that minds what it sends.
struct RawThief(TlsStream<TcpStream>);

impl RawThief {
    async fn connect(running: &Running, role: &str) -> Self {
        let file = |name: &str| running.deployment.file(role, name);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(file("nats-ca.pem")).unwrap()).unwrap();
        let certificate = CertificateDer::pem_file_iter(file("nats.pem")).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(file("nats.key")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots).with_client_auth_cert(certificate, key).unwrap();
        let address = running.deployment.nats.url().replace("nats://", "");
        let mut tcp = TcpStream::connect(&address).await.unwrap();
        while tcp.read_u8().await.unwrap() != b'\n' {}
        let name = ServerName::try_from(address.rsplit_once(':').unwrap().0.to_owned()).unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
        let password = std::fs::read_to_string(file(&format!("logins/{role}-1.password"))).unwrap();
        let login = json!({"user": format!("{role}-1"), "pass": password.trim(), "headers": true, "verbose": false});
        stream.write_all(format!("CONNECT {login}\r\n").as_bytes()).await.unwrap();
        Self(stream)
    }

    /// Each of the blocks so often; the server has taken all of it when this returns.
    async fn publish(&mut self, to: &str, times: usize) {
        for block in BLOCKS.into_iter().cycle().take(times * BLOCKS.len()) {
            let head = format!("HPUB {to} {} {}\r\n", block.len(), block.len() + 1);
            self.0.write_all(&[head.as_bytes(), block, b"x\r\n"].concat()).await.unwrap();
        }
        self.0.write_all(b"PING\r\n").await.unwrap();
        let (mut said, mut piece) = (String::new(), [0; 1024]);
        while !said.contains("PONG") {
            let read = self.0.read(&mut piece).await.unwrap();
            assert!(read > 0, "{said}");
            said.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
        assert!(!said.contains("-ERR"), "{said}");
    }
}

async fn is_sealed(api: &Api) -> u64 {
    wait_for("a mark for all", WAIT_TIMEOUT, async || api.verify().await["unsealed"] == 0).await;
    api.verify().await["last_mark"]["number"].as_u64().unwrap()
}

#[tokio::test]
async fn messages_with_malformed_headers_stop_no_check_export_or_mark_and_are_reported() {
    let running = Running::start().await;
    let (_, key, _) = running.gateway.account("others", None, &account_scopes()).await;
    let accounts = [running.api.clone(), running.gateway.with_key(&key)];
    let mut sealed = Vec::new();
    for api in &accounts {
        api.decide(&Api::harmless()).await;
        sealed.push(is_sealed(api).await);
    }
    let mut exporter = RawThief::connect(&running, "audit-export").await;
    let mut gateway = RawThief::connect(&running, "gateway").await;
    let mut keystore = RawThief::connect(&running, "keystore").await;
    exporter.publish(&format!("s0.log.{}.m", running.account), 1).await;
    gateway.publish(&format!("s0.log.{}.d", running.account), 1).await;
    // And live, more than a connection could be made again for.
    for _ in 0..10 {
        gateway.publish(&format!("s0.req.{} _INBOX_gateway-1.x", EvaluateRequest::SUBJECT), 20).await;
        keystore.publish(&format!("s0.{}", KeyChanged::SUBJECT), 20).await;
        for api in &accounts {
            api.decide(&Api::harmless()).await;
        }
    }
    for (api, (before, rejected)) in accounts.iter().zip(sealed.into_iter().zip([2 * BLOCKS.len() as u64, 0])) {
        assert!(is_sealed(api).await > before);
        let report = api.verify().await;
        assert_eq!(report["rejected"].as_u64().unwrap_or(0), rejected, "{report:#}");
        assert_eq!(report["findings"], json!([]), "{report:#}");
        let export = api.get("/v1/decisions/export").await;
        assert_eq!(export.status, 200);
        let lines = export.text.lines().filter(|line| line.contains("decision.recorded"));
        assert_eq!(lines.count(), 11);
    }
    for role in &running.roles {
        let said = role.said();
        assert!(!said.contains("disconnected"), "{said}");
    }
}
