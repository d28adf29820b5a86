//! A running product: `stage0 dev` in one process, or one process for each role on a real nats-server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use stage0_backplane::testing::{NatsServer, wait_for};
use tempfile::TempDir;

use crate::api::Api;
use crate::process::Process;

const READY_WITHIN: Duration = Duration::from_secs(30);

pub struct Stack {
    pub directory: TempDir,
    pub nats: Option<NatsServer>,
    pub dev: Option<Process>,
    pub keystore: Option<Process>,
    pub evaluators: Vec<Process>,
    pub gateways: Vec<Process>,
    /// Of each gateway, or of `dev`.
    pub urls: Vec<String>,
    /// May do everything in its account.
    pub api: Api,
    /// The operator.
    pub operator: Api,
    pub account: String,
    settings: StackBuilder,
}

#[derive(Default, Clone)]
pub struct StackBuilder {
    evaluators: usize,
    gateways: usize,
    arguments: Vec<String>,
    gateway_arguments: Vec<String>,
}

impl StackBuilder {
    #[must_use]
    pub fn evaluators(mut self, count: usize) -> Self {
        self.evaluators = count;
        self
    }

    #[must_use]
    pub fn gateways(mut self, count: usize) -> Self {
        self.gateways = count;
        self
    }

    /// For every process.
    #[must_use]
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&a| a.to_owned()));
        self
    }

    /// For `dev` and every gateway.
    #[must_use]
    pub fn gateway_with(mut self, arguments: &[&str]) -> Self {
        self.gateway_arguments.extend(arguments.iter().map(|&a| a.to_owned()));
        self
    }

    /// `stage0 dev`.
    pub async fn dev(self) -> Stack {
        let directory = tempfile::tempdir().unwrap();
        self.dev_in(directory).await
    }

    /// `stage0 dev` on a directory that may have data.
    pub async fn dev_in(self, directory: TempDir) -> Stack {
        let data = directory.path().join("data");
        let dev = start_dev(&self, &data);
        let file = read_dev_file(&data);
        let text = |name: &str| file[name].as_str().unwrap().to_owned();
        let ca = PathBuf::from(text("ca_file"));
        let api = Api::new(&text("url"), &ca, Some(&text("api_key")));
        let operator = api.with_key(&text("operator_key"));
        Stack {
            directory,
            nats: None,
            dev: Some(dev),
            keystore: None,
            evaluators: vec![],
            gateways: vec![],
            urls: vec![text("url")],
            account: text("account"),
            api,
            operator,
            settings: self,
        }
    }

    /// One process for each role, on a nats-server of its own.
    pub async fn nats(self) -> Stack {
        let directory = tempfile::tempdir().unwrap();
        let nats = NatsServer::start().await;
        let url = nats.url();
        let keystore = start_keystore(&self, &url, directory.path());
        let evaluators = (0..self.evaluators.max(1)).map(|_| start_evaluator(&self, &url)).collect();
        let (mut gateways, mut urls) = (vec![], vec![]);
        for _ in 0..self.gateways.max(1) {
            let (gateway, url) = start_gateway(&self, &url, directory.path());
            gateways.push(gateway);
            urls.push(url);
        }
        let ca = directory.path().join("tls/ca.pem");
        let key = std::fs::read_to_string(directory.path().join("keys/operator.key")).unwrap();
        let operator = Api::new(&urls[0], &ca, Some(key.trim()));
        for url in &urls {
            let gateway = operator.at(url);
            wait_for("a ready gateway", READY_WITHIN, async || gateway.get("/readyz").await.status == 200).await;
        }
        let scopes = ["check", "keys:manage", "decisions:read"];
        let (account, key, _) = operator.account("tests", None, &scopes).await;
        let api = operator.with_key(&key);
        Stack {
            directory,
            nats: Some(nats),
            dev: None,
            keystore: Some(keystore),
            evaluators,
            gateways,
            urls,
            api,
            operator,
            account,
            settings: self,
        }
    }
}

impl Stack {
    /// What is wanted; finish with `dev` or `nats`.
    pub fn build() -> StackBuilder {
        StackBuilder::default()
    }

    pub fn ca(&self) -> PathBuf {
        let tls = if self.dev.is_some() { "data/tls/ca.pem" } else { "tls/ca.pem" };
        self.directory.path().join(tls)
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path().join(if self.dev.is_some() { "data" } else { "keys" })
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

    fn nats_url(&self) -> String {
        self.nats.as_ref().expect("a stack on NATS").url()
    }

    pub fn start_evaluator(&mut self) {
        let evaluator = start_evaluator(&self.settings, &self.nats_url());
        self.evaluators.push(evaluator);
    }

    pub fn start_keystore(&mut self) {
        self.keystore = None;
        self.keystore = Some(start_keystore(&self.settings, &self.nats_url(), self.directory.path()));
    }

    /// Ends `dev` as a user does and starts it on the same data; its port is a new one.
    pub async fn restart_dev(mut self) -> Self {
        let mut dev = self.dev.take().expect("a dev stack");
        assert!(dev.stop().success());
        drop(dev);
        let Self { directory, settings, .. } = self;
        settings.dev_in(directory).await
    }
}

fn arguments(settings: &StackBuilder, own: &[&str]) -> Vec<String> {
    own.iter().map(|&a| a.to_owned()).chain(settings.arguments.clone()).collect()
}

fn start_dev(settings: &StackBuilder, data: &Path) -> Process {
    let own = ["dev", "--listen", "127.0.0.1:0", "--log-format", "json", "--data-dir", data.to_str().unwrap()];
    let mut arguments = arguments(settings, &own);
    arguments.extend(settings.gateway_arguments.clone());
    let dev = Process::start(&arguments);
    dev.wait_for("the end of the banner", |line| line.starts_with("Ctrl-C stops it").then_some(()));
    dev
}

fn read_dev_file(data: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(data.join("dev.json")).unwrap()).unwrap_or(json!(null))
}

fn start_keystore(settings: &StackBuilder, nats: &str, directory: &Path) -> Process {
    let data = directory.join("keys");
    let keystore =
        Process::start(&arguments(settings, &["keystore", "--nats", nats, "--data-dir", data.to_str().unwrap()]));
    keystore.wait_for("a serving keystore", |line| line.contains("keystore serves").then_some(()));
    keystore
}

fn start_evaluator(settings: &StackBuilder, nats: &str) -> Process {
    let evaluator = Process::start(&arguments(settings, &["evaluator", "--nats", nats]));
    evaluator.wait_for_log("evaluator starts", "version");
    evaluator
}

fn start_gateway(settings: &StackBuilder, nats: &str, directory: &Path) -> (Process, String) {
    let tls = directory.join("tls");
    let own = ["gateway", "--nats", nats, "--listen", "127.0.0.1:0", "--tls-dev-dir", tls.to_str().unwrap()];
    let mut arguments = arguments(settings, &own);
    arguments.extend(settings.gateway_arguments.clone());
    let gateway = Process::start(&arguments);
    let address = gateway.wait_for_log("gateway starts", "address");
    (gateway, format!("https://{address}"))
}
