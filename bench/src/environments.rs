//! The environments in which the product runs here: one process with files of its own, and a real nats-server, with and
//! without authenticated messages.
//!
//! Owns what both subcommands start first, and keeps it alive: certificates, nats-server, and the keystore, evaluator
//! and exporter of each environment. Gateways are started by the code that measures them.

use std::path::PathBuf;
use std::sync::Arc;

use stage0_backplane::embedded::Bus;
use stage0_backplane::nats::{Connection, KeySet, NatsConfig, Requirement};
use stage0_backplane::testing::NatsServer;
use stage0_contract::Role;
use stage0_gateway::TlsFiles;
use tempfile::TempDir;

use crate::product::{Environment, Installation, of_role};

/// All environments, ready for gateways.
pub(crate) struct Environments {
    pub(crate) tls: TlsFiles,
    /// The authority that signed the server's certificate.
    pub(crate) ca: PathBuf,
    pub(crate) nats: NatsConfig,
    pub(crate) embedded: Installation,
    pub(crate) on_nats: Installation,
    /// On the same server under another prefix, with authenticated messages.
    pub(crate) authenticated: Installation,
    _server: NatsServer,
    _directory: TempDir,
}

impl Environments {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let (tls, ca) = stage0_gateway::dev_tls(&directory.path().join("tls"))?;
        let server = NatsServer::start().await;
        let nats = NatsConfig::new(server.url(), "bench");
        Connection::open(&nats).await?.prepare_log(1).await?;
        let embedded = directory.path().join("embedded");
        std::fs::create_dir(&embedded)?;
        let bus = Bus::open(&embedded)?;
        let embedded = Installation::start(Environment::Embedded(bus), &embedded, tls.clone()).await?;
        let on_nats = directory.path().join("nats");
        std::fs::create_dir(&on_nats)?;
        let on_nats =
            Installation::start(Environment::Nats(Box::new(nats.clone()), None), &on_nats, tls.clone()).await?;
        let authenticated = directory.path().join("authenticated");
        std::fs::create_dir(&authenticated)?;
        let keys = Arc::new(KeySet::create(Requirement::Always)?);
        let other = NatsConfig { prefix: "s1".to_owned(), ..nats.clone() };
        Connection::open(&of_role(&other, Some(&keys), Role::AuditExport)?).await?.prepare_log(1).await?;
        let place = Environment::Nats(Box::new(other), Some(keys));
        let authenticated = Installation::start(place, &authenticated, tls.clone()).await?;
        Ok(Self { tls, ca, nats, embedded, on_nats, authenticated, _server: server, _directory: directory })
    }
}
