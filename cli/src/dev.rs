//! `stage0 dev`: every service in one process on the embedded backplane, ready to be asked.
//!
//! Owns the order: policy, data, address, services, keys, files, and the banner last, so that whoever has read it can ask at once. It stops in the
//! order of a cluster: the gateway drains first, then the exporter, then those whom both ask. One service that ends by itself ends all, with exit code 1.

pub(crate) mod access;
pub(crate) mod banner;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stage0_audit_export::AuditExport;
use stage0_backplane::embedded::{Bus, LogHistory};
use stage0_backplane::{AskError, Backplane};
use stage0_contract::{KeystoreStatus, PolicyVersion, Role};
use stage0_gateway::Gateway;
use stage0_keystore::{Health, JOURNAL_FILE, Keystore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::args::VERSION;
use crate::dev_file::{DEV_FILE, DevFile};
use crate::exit::Exit;
use crate::roles::{Life, Telling, gateway_look, load, make_dev_tls, say_restored, serve};
use crate::settings::roles::DevSettings;
use crate::{files, out};

/// In which services of the same process answer; opening a damaged store may take long, and is over by then.
const READY_WITHIN: Duration = Duration::from_secs(10);
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// Runs it until a signal.
pub(crate) fn run(settings: DevSettings) -> Exit {
    let DevSettings { process, data_dir, accept_new_log, http, keystore, evaluator, export } = settings;
    serve(process, async move |Life { stop, vitals }| {
        // Before anything is written: a first start with a broken pack leaves no keys behind.
        let evaluator = load(evaluator).await?;
        files::private_dir(&data_dir)?;
        // The log next: it holds the data directory against a second process. A crash may have left it something to repair.
        let directory = data_dir.clone();
        // A keystore that has begun is younger than its log: without one, the log was lost.
        let history = LogHistory { expected: data_dir.join(JOURNAL_FILE).try_exists()?, accept_new: accept_new_log };
        let bus = tokio::task::spawn_blocking(move || Bus::open_remembered(&directory, history)).await??;
        let keystore = Keystore::build(keystore, bus.connect(), Health::default()).await?;
        say_restored(&keystore)?;
        let evaluator = stage0_evaluator::build(evaluator, shards_connect(bus.clone())).await?;
        let (tls, ca) = make_dev_tls(data_dir.join("tls")).await?;
        let base_path = http.base_path.clone();
        let config = http.config(tls);
        let audit = config.audit;
        let gateway = Gateway::build(config, workers_connect(bus.clone())).await?;
        let exporter = AuditExport::build(export, bus.connect()).await?;
        let look = gateway_look(bus.connect(), audit, Some(exporter.lag()));
        let url = format!("https://{}{base_path}", reachable(gateway.addr()));

        let (front, back) = (stop.child_token(), CancellationToken::new());
        let mut crew = Crew { front: front.clone(), members: JoinSet::new() };
        let (keystore_stop, evaluator_stop) = (back.clone(), back.clone());
        let (exporter_stop, exported) = (CancellationToken::new(), CancellationToken::new());
        crew.join(async move { Ok(keystore.run_until(keystore_stop.cancelled_owned()).await?) });
        let policy = evaluator.active().clone();
        crew.join(async move { Ok(evaluator.run_until(evaluator_stop.cancelled_owned()).await?) });
        let (exporter_stops, ended) = (exporter_stop.clone(), exported.clone().drop_guard());
        crew.join(async move {
            let served = exporter.run_until(exporter_stops).await;
            drop(ended);
            Ok(served?)
        });
        let open = Opening { backplane: bus.connect(), data_dir: &data_dir, ca: &ca, url, policy };
        let served = match open.open().await {
            Ok(()) => {
                let telling = Telling::start(&vitals, &Role::ALL, bus.connect(), look, &front);
                let served = gateway.run_until(front).await.map_err(anyhow::Error::from);
                telling.end().await;
                served
            }
            Err(error) => Err(error),
        };
        // Its last checkpoints need the keystore's signature.
        exporter_stop.cancel();
        exported.cancelled().await;
        back.cancel();
        crew.disband().await?;
        served?;
        anyhow::ensure!(stop.is_cancelled(), "a service ended by itself");
        tracing::info!("stopped");
        Ok(())
    })
}

/// Services that run until told; the end of one is the end of the front.
struct Crew {
    front: CancellationToken,
    members: JoinSet<anyhow::Result<()>>,
}

impl Crew {
    fn join(&mut self, work: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        let ends_front = self.front.clone().drop_guard();
        self.members.spawn(async move {
            let ended = work.await;
            drop(ends_front);
            ended
        });
    }

    /// Waits for all of them; the first failure is the result.
    async fn disband(mut self) -> anyhow::Result<()> {
        let mut result = Ok(());
        while let Some(ended) = self.members.join_next().await {
            result = result.and(ended.context("a service panicked").and_then(|ended| ended));
        }
        result
    }
}

/// What is left to do between "bound" and "ready".
struct Opening<'a> {
    backplane: Backplane,
    data_dir: &'a Path,
    ca: &'a Path,
    url: String,
    policy: PolicyVersion,
}

impl Opening<'_> {
    async fn open(self) -> anyhow::Result<()> {
        self.keystore_serves().await.context("the keystore does not answer")?;
        let access = access::secure(&self.backplane, self.data_dir).await?;
        self.publish(&access)?;
        tracing::info!(version = VERSION, url = self.url, policy_version = %self.policy, "ready");
        self.backplane.requests.close().await;
        Ok(())
    }

    /// Asks until it does: its loops start beside this one.
    async fn keystore_serves(&self) -> Result<(), AskError> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            match self.backplane.requests.ask_until(&KeystoreStatus {}, deadline).await {
                Err(AskError::Absent) if Instant::now() < deadline => tokio::time::sleep(ASK_AGAIN_AFTER).await,
                answer => return answer.map(|_| ()),
            }
        }
    }

    /// The files, then the banner: whoever waits for the banner finds the files.
    fn publish(&self, access: &access::Access) -> anyhow::Result<()> {
        let dev = DevFile {
            url: self.url.clone(),
            ca_file: self.ca.canonicalize().context("cannot find the CA file")?,
            api_key: access.api_key.clone(),
            operator_key: access.operator_key.clone(),
            account: access.account.clone(),
        };
        let text = serde_json::to_string_pretty(&dev).context("cannot write JSON")?;
        files::replace(&self.data_dir.join(DEV_FILE), &format!("{text}\n"))?;
        let banner = banner::Banner { url: &self.url, data_dir: self.data_dir, ca: self.ca, policy: &self.policy };
        out::line(banner).context("cannot write to standard output")
    }
}

/// Where clients of this machine reach it.
pub(crate) fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => std::net::Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        other => other,
    };
    SocketAddr::new(ip, bound.port())
}

/// One connection to the bus for each of the gateway's workers.
fn workers_connect(bus: Bus) -> stage0_gateway::Connect<Infallible> {
    Box::new(move || {
        let backplane = bus.connect();
        Box::pin(async move { Ok(backplane) })
    })
}

/// One for each of the evaluator's threads.
fn shards_connect(bus: Bus) -> stage0_evaluator::Connect {
    Arc::new(move || {
        let backplane = bus.connect();
        Box::pin(async move { Ok(backplane) })
    })
}
