//! The environments in which the product runs here: one process with files of its own, and a real nats-server, with and
//! without authenticated messages. Starts what both subcommands need and keeps it alive; gateways come later.

use std::path::PathBuf;
use std::sync::Arc;

use stage0_backplane::embedded::Bus;
use stage0_backplane::nats::{Connection, KeySet, NatsConfig, Requirement};
use stage0_contract::Role;
use stage0_gateway::TlsFiles;
use tempfile::TempDir;

use crate::deployment::Nats;
use crate::product::{Environment, Installation, of_role};

pub(crate) struct Environments {
    pub(crate) tls: TlsFiles,
    pub(crate) ca: PathBuf,
    pub(crate) nats: NatsConfig,
    pub(crate) embedded: Installation,
    pub(crate) on_nats: Installation,
    /// On the same server under another prefix, with authenticated messages.
    pub(crate) authenticated: Installation,
    _server: Nats,
    _directory: TempDir,
}

impl Environments {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let (tls, ca) = stage0_gateway::dev_tls(&directory.path().join("tls"))?;
        let server = Nats::start(directory.path()).await?;
        let nats = NatsConfig::new(server.url(), "bench");
        Connection::open(&nats).await?.prepare_log(1).await?;
        let new_dir = |name: &str| {
            let path = directory.path().join(name);
            std::fs::create_dir(&path).map(|()| path)
        };
        let embedded = new_dir("embedded")?;
        let bus = Bus::open(&embedded)?;
        let embedded = Installation::start(Environment::Embedded(bus), &embedded, tls.clone()).await?;
        let place = Environment::Nats(Box::new(nats.clone()), None);
        let on_nats = Installation::start(place, &new_dir("on-nats")?, tls.clone()).await?;
        let keys = Arc::new(KeySet::create(Requirement::Always)?);
        let other = NatsConfig { prefix: "s1".to_owned(), ..nats.clone() };
        Connection::open(&of_role(&other, Some(&keys), Role::AuditExport)?).await?.prepare_log(1).await?;
        let place = Environment::Nats(Box::new(other), Some(keys));
        let authenticated = Installation::start(place, &new_dir("authenticated")?, tls.clone()).await?;
        Ok(Self { tls, ca, nats, embedded, on_nats, authenticated, _server: server, _directory: directory })
    }
}
