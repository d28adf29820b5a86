//! A running product: `stage0 dev` in one process, or one process for each role on a real nats-server.
//!
//! Owns which processes there are and how each is started, so that a test can end one and start it again as it was. A
//! gateway that is started again has another port, and so has `dev`: `urls` says where they are.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use stage0_backplane::testing::{NODES, NatsCluster, NatsServer, SYNCED, wait_for};
use stage0_contract::Scope;
use tempfile::TempDir;

use crate::Authority;
use crate::api::Api;
use crate::moved_clock::MovedClock;
use crate::process::Process;
use crate::team::Packs;

mod builder;

pub use builder::{StackBuilder, write_keys};

const READY_TIMEOUT: Duration = Duration::from_secs(30);

pub struct Stack {
    pub directory: TempDir,
    pub nats: Option<NatsServer>,
    /// Instead of the one server.
    pub cluster: Option<NatsCluster>,
    pub dev: Option<Process>,
    pub keystore: Option<Process>,
    pub evaluators: Vec<Process>,
    pub gateways: Vec<Process>,
    pub exporters: Vec<Process>,
    /// Of each gateway, or of `dev`.
    pub urls: Vec<String>,
    /// May do everything in its account.
    pub api: Api,
    /// The operator.
    pub operator: Api,
    pub account: String,
    settings: StackBuilder,
}

/// Every scope that an account's key can have, a member's excepted.
pub fn account_scopes() -> Vec<&'static str> {
    let others = [Scope::Operator, Scope::ApprovalsDecide];
    Scope::ALL.into_iter().filter(|scope| !others.contains(scope)).map(Scope::as_str).collect()
}

/// It said so.
pub fn serves(keystore: &Process) {
    keystore.wait_for_log("keystore serves", "message");
}

impl Stack {
    /// What is wanted; finish with `dev` or `nats`.
    pub fn build() -> StackBuilder {
        StackBuilder::default()
    }

    async fn on_dev(settings: StackBuilder) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let dev = settings.start_dev(directory.path());
        let open = Open::read(directory.path());
        Self {
            directory,
            nats: None,
            cluster: None,
            dev: Some(dev),
            keystore: None,
            evaluators: vec![],
            gateways: vec![],
            exporters: vec![],
            urls: vec![open.url],
            api: open.api,
            operator: open.operator,
            account: open.account,
            settings,
        }
    }

    async fn on_nats(mut settings: StackBuilder) -> Self {
        let directory = tempfile::tempdir().unwrap();
        settings.make_keys(directory.path());
        let (nats, cluster) = match settings.is_clustered {
            true => (None, Some(NatsCluster::start().await.expect("a cluster needs nats-server as a binary"))),
            false => (Some(one_server(&settings, directory.path()).await), None),
        };
        let servers = Servers::of(nats.as_ref(), cluster.as_ref());
        // It waits for the streams, which exporters and gateways make.
        let keys = directory.path().join("keys");
        settings.place_keystore(&keys);
        let keystore = settings.begin_keystore(&servers, &keys, &[]);
        let evaluators = (0..settings.evaluators.unwrap_or(1)).map(|_| settings.start_evaluator(&servers)).collect();
        let exporters = (0..settings.exporters.unwrap_or(1)).map(|_| settings.start_exporter(&servers)).collect();
        let (gateways, urls): (Vec<_>, Vec<_>) =
            (0..settings.gateways.unwrap_or(1)).map(|_| settings.start_gateway(&servers, directory.path())).unzip();
        serves(&keystore);
        let key = std::fs::read_to_string(directory.path().join("keys/operator.key")).unwrap();
        let operator = Api::new(&urls[0], &directory.path().join("tls/ca.pem"), Some(key.trim()));
        for url in &urls {
            let gateway = operator.at(url);
            wait_for("a ready gateway", READY_TIMEOUT, async || gateway.get("/readyz").await.status == 200).await;
        }
        let (account, key, _) = operator.account("tests", None, &account_scopes()).await;
        let api = operator.with_key(&key);
        Self {
            directory,
            nats,
            cluster,
            dev: None,
            keystore: Some(keystore),
            evaluators,
            gateways,
            exporters,
            urls,
            api,
            operator,
            account,
            settings,
        }
    }

    pub fn ca(&self) -> PathBuf {
        let tls = if self.is_on_nats() { "tls/ca.pem" } else { "data/tls/ca.pem" };
        self.directory.path().join(tls)
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path().join(if self.is_on_nats() { "keys" } else { "data" })
    }

    fn is_on_nats(&self) -> bool {
        self.nats.is_some() || self.cluster.is_some()
    }

    /// `127.0.0.1:port` of the first gateway.
    pub fn address(&self) -> String {
        let url = self.urls[0].trim_start_matches("https://");
        url.replace("localhost", "127.0.0.1")
    }

    /// The same client at another gateway.
    pub fn api_at(&self, gateway: usize) -> Api {
        self.api.at(&self.urls[gateway])
    }

    /// What every process said, whatever its role.
    pub fn said(&self) -> String {
        let roles = self.gateways.iter().chain(&self.evaluators).chain(&self.exporters).chain(&self.keystore);
        roles.chain(&self.dev).map(Process::said).collect::<Vec<_>>().join("\n")
    }

    /// Directory with every role's message keys.
    pub fn keys_dir(&self) -> &Path {
        self.settings.keys_dir.as_deref().expect("a stack with message keys")
    }

    /// Processes that are started from now on have the message keys of an upgraded deployment.
    pub fn upgrade(&mut self) {
        self.settings.upgrade();
        self.settings.make_keys(self.directory.path());
    }

    /// Every process of the product that runs, with its role.
    pub fn processes(&mut self) -> Vec<(&'static str, &mut Process)> {
        let dev = self.dev.iter_mut().map(|process| ("dev", process));
        let keystore = self.keystore.iter_mut().map(|process| ("keystore", process));
        let evaluators = self.evaluators.iter_mut().map(|process| ("evaluator", process));
        let gateways = self.gateways.iter_mut().map(|process| ("gateway", process));
        let exporters = self.exporters.iter_mut().map(|process| ("audit-export", process));
        dev.chain(keystore).chain(evaluators).chain(gateways).chain(exporters).collect()
    }

    fn servers(&self) -> Servers {
        Servers::of(self.nats.as_ref(), self.cluster.as_ref())
    }

    /// Evaluators and gateways that are started from now on have this clock; none: this machine's.
    pub fn set_clock(&mut self, clock: Option<&MovedClock>) {
        self.settings.environment = clock.map(MovedClock::environment).unwrap_or_default();
    }

    /// `dev` and evaluators that are started from now on decide by this version.
    pub fn decide_by(&mut self, packs: &Packs, version: &str) {
        self.settings.policy_arguments = packs.active(version);
    }

    /// One more, at another address.
    pub fn start_gateway(&mut self) {
        let (gateway, url) = self.settings.start_gateway(&self.servers(), self.directory.path());
        self.gateways.push(gateway);
        self.urls.push(url);
    }

    pub fn start_evaluator(&mut self) {
        let evaluator = self.settings.start_evaluator(&self.servers());
        self.evaluators.push(evaluator);
    }

    pub fn start_exporter(&mut self) {
        let exporter = self.settings.start_exporter(&self.servers());
        self.exporters.push(exporter);
    }

    pub fn start_keystore(&mut self) {
        self.keystore = None;
        let keystore = self.begin_keystore(&self.data(), &[]);
        serves(&keystore);
        self.keystore = Some(keystore);
    }

    /// A further keystore, perhaps with another directory, which may have to wait or end.
    pub fn begin_keystore(&self, data: &Path, with: &[&str]) -> Process {
        self.settings.begin_keystore(&self.servers(), data, with)
    }

    /// kill -9, and a new one in its place.
    pub fn restart_evaluator(&mut self, index: usize) {
        self.evaluators[index].kill();
        self.evaluators[index] = self.settings.start_evaluator(&self.servers());
    }

    /// kill -9, and a new one in its place.
    pub fn restart_exporter(&mut self, index: usize) {
        self.exporters[index].kill();
        self.exporters[index] = self.settings.start_exporter(&self.servers());
    }

    /// kill -9, and a new one in its place, at another address.
    pub fn restart_gateway(&mut self, index: usize) {
        self.gateways[index].kill();
        let (gateway, url) = self.settings.start_gateway(&self.servers(), self.directory.path());
        (self.gateways[index], self.urls[index]) = (gateway, url);
        if index == 0 {
            (self.api, self.operator) = (self.api.at(&self.urls[0]), self.operator.at(&self.urls[0]));
        }
    }

    /// kill -9, and at once again with what is on its disk.
    pub async fn restart_nats(&mut self) {
        let nats = self.nats.as_mut().expect("a stack on NATS");
        nats.kill();
        nats.restart().await;
    }

    /// Ends `dev` as a user does.
    pub fn stop_dev(&mut self) {
        let mut dev = self.dev.take().expect("a dev stack that runs");
        assert!(dev.stop().success());
    }

    /// kill -9.
    pub fn kill_dev(&mut self) {
        self.dev.take().expect("a dev stack that runs").kill();
    }

    /// Starts `dev` again on the same data, at another address.
    pub fn start_dev(&mut self) {
        assert!(self.dev.is_none(), "dev runs already");
        self.dev = Some(self.settings.start_dev(self.directory.path()));
        let open = Open::read(self.directory.path());
        self.urls = vec![open.url];
        (self.api, self.operator, self.account) = (open.api, open.operator, open.account);
    }

    /// Ends `dev` as a user does and starts it on the same data.
    pub fn restart_dev(&mut self) {
        self.stop_dev();
        self.start_dev();
    }
}

/// Where roles find NATS: values of their settings.
pub(super) struct Servers {
    url: String,
    monitors: String,
}

impl Servers {
    fn of(nats: Option<&NatsServer>, cluster: Option<&NatsCluster>) -> Self {
        match (nats, cluster) {
            (Some(nats), _) => Self { url: nats.url(), monitors: nats.monitor() },
            (None, Some(cluster)) => {
                let urls: Vec<_> = (0..NODES).map(|node| cluster.url(node)).collect();
                Self { url: urls.join(","), monitors: cluster.monitors().join(",") }
            }
            (None, None) => panic!("a stack on NATS"),
        }
    }
}

/// In a directory of the test's, where that is possible.
async fn one_server(settings: &StackBuilder, directory: &Path) -> NatsServer {
    let server = settings.nats_settings.as_deref().unwrap_or(SYNCED);
    match NatsServer::start_in(&directory.join("nats"), server).await {
        Some(nats) => nats,
        None => NatsServer::start_with(server).await,
    }
}

/// What `dev` writes down for its clients.
struct Open {
    url: String,
    api: Api,
    operator: Api,
    account: String,
}

impl Open {
    fn read(directory: &Path) -> Self {
        let file = std::fs::read(directory.join("data/dev.json")).unwrap();
        let file: Value = serde_json::from_slice(&file).unwrap();
        let text = |name: &str| file[name].as_str().unwrap().to_owned();
        let api = Api::new(&text("url"), Path::new(&text("ca_file")), Some(&text("api_key")));
        let operator = api.with_key(&text("operator_key"));
        Self { url: text("url"), api, operator, account: text("account") }
    }
}
