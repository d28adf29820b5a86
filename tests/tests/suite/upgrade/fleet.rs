//! A deployment of `stage0 stack init` with two gateways, evaluators, two exporters and a keystore, whose processes are
//! replaced one by one, in the order of docs/OPERATIONS.md.
//!
//! A process is restarted as its service manager does it: it ends, then the next one starts. Nothing else is taken out
//! of the way first: a balancer learns from refused connections that a gateway is gone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use stage0_backplane::testing::wait_for;
use stage0_contract::Role;
use stage0_tests::{Api, Process, serves};

use super::load::{Load, Urls};
use crate::starting::Deployment;

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// Of gateways and of exporters.
const PAIR: usize = 2;
/// Checks beside which old and new processes run.
const SIDE_BY_SIDE: usize = 15;

pub(super) struct Fleet {
    pub(super) deployment: Deployment,
    keystore: Option<Process>,
    evaluators: Vec<Process>,
    exporters: Vec<Process>,
    gateways: Vec<Process>,
    pub(super) urls: Urls,
}

/// How a keystore makes room for the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keystore {
    /// It ends, then the next one starts.
    Restarted,
    /// The next one stands by before it ends.
    TakenOver,
}

impl Fleet {
    /// Everything of this binary.
    pub(super) async fn start(program: &Path, evaluators: usize) -> Self {
        let mut deployment = Deployment::made_by(program, "20GB").await;
        // From now on its ports stand in its file, so that it can read it again.
        deployment.nats.restart().await;
        let (code, said) = deployment.admin("init");
        assert_eq!(code, Some(0), "{said}");
        let (keystore, urls) = (Some(deployment.role("keystore")), Urls::default());
        let mut fleet =
            Self { deployment, keystore, evaluators: Vec::new(), exporters: Vec::new(), gateways: Vec::new(), urls };
        fleet.evaluators.extend((0..evaluators).map(|_| fleet.deployment.role("evaluator")));
        fleet.exporters.extend((0..PAIR).map(|_| exporter(&fleet.deployment)));
        fleet.gateways.extend((0..PAIR).map(|_| gateway(&fleet.deployment)));
        serves(fleet.keystore.as_ref().unwrap());
        fleet.evaluators.iter().for_each(decides);
        fleet.exporters.iter().for_each(delivers);
        for gateway in &fleet.gateways {
            let url = fleet.is_ready(gateway).await;
            fleet.urls.write().unwrap().push(url);
        }
        fleet
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.deployment.file("client", "ca.pem").into()
    }

    /// At the first gateway.
    pub(super) fn operator(&self) -> Api {
        let key = std::fs::read_to_string(self.operator_key()).unwrap();
        Api::new(&self.urls.read().unwrap()[0], &self.ca(), Some(key.trim()))
    }

    fn operator_key(&self) -> String {
        self.deployment.file("keystore", "data/operator.key")
    }

    /// Every process that runs, of any role.
    pub(super) fn processes(&self) -> impl Iterator<Item = &Process> {
        self.keystore.iter().chain(&self.evaluators).chain(&self.exporters).chain(&self.gateways)
    }

    /// Waits until a gateway can decide and record: its URL.
    async fn is_ready(&self, gateway: &Process) -> String {
        let address = gateway.wait_for_log("gateway starts", "address");
        let url = format!("https://localhost:{}", address.rsplit(':').next().unwrap());
        let api = Api::new(&url, &self.ca(), None);
        wait_for("a ready gateway", WAIT_TIMEOUT, async || api.get("/readyz").await.status == 200).await;
        url
    }

    /// Every process of the role, one after the other, by one of the binary that is current now.
    pub(super) async fn replace(&mut self, role: Role, keystore: Keystore, load: &Load) {
        match role {
            Role::Keystore if keystore == Keystore::TakenOver => {
                let next = self.deployment.role("keystore");
                next.wait_for("that it stands by", |line| line.contains("stands by").then_some(()));
                load.more(SIDE_BY_SIDE).await;
                stop(&mut self.keystore.take().unwrap());
                serves(&next);
                self.keystore = Some(next);
                load.more(SIDE_BY_SIDE).await;
            }
            Role::Keystore => {
                stop(&mut self.keystore.take().unwrap());
                let next = self.deployment.role("keystore");
                serves(&next);
                self.keystore = Some(next);
                load.more(SIDE_BY_SIDE).await;
            }
            Role::Evaluator => {
                for index in 0..self.evaluators.len() {
                    stop(&mut self.evaluators[index]);
                    self.evaluators[index] = self.deployment.role("evaluator");
                    decides(&self.evaluators[index]);
                    load.more(SIDE_BY_SIDE).await;
                }
            }
            Role::AuditExport => {
                for index in 0..PAIR {
                    stop(&mut self.exporters[index]);
                    self.exporters[index] = exporter(&self.deployment);
                    delivers(&self.exporters[index]);
                    load.more(SIDE_BY_SIDE).await;
                }
            }
            Role::Gateway => {
                for index in 0..PAIR {
                    stop(&mut self.gateways[index]);
                    self.gateways[index] = gateway(&self.deployment);
                    let url = self.is_ready(&self.gateways[index]).await;
                    self.urls.write().unwrap()[index] = url;
                    load.more(SIDE_BY_SIDE).await;
                }
            }
        }
    }

    /// `stage0 status`: its exit code, and what it said.
    pub(super) fn status(&self) -> (Option<i32>, String) {
        let (url, ca) = (self.urls.read().unwrap()[0].clone(), self.ca());
        let (key, ca) = (self.operator_key(), ca.to_str().unwrap().to_owned());
        let words = ["status", "--url", &url, "--ca", &ca, "--key-file", &key];
        self.deployment.command(&words.map(str::to_owned))
    }

    /// Role and protocol of every process that gateways hear of and that has not ended.
    pub(super) async fn protocols(&self) -> Vec<(String, u64)> {
        let status = self.operator().get("/v1/status").await.expect(200);
        let running = status["instances"].as_array().unwrap().iter().filter(|one| one["state"] != "lost");
        let named = |one: &Value| {
            (one["role"].as_str().unwrap().to_owned(), one["protocol_version"].as_u64().unwrap_or_default())
        };
        running.map(named).collect()
    }
}

fn exporter(deployment: &Deployment) -> Process {
    deployment.role_with("audit-export", &["--checkpoint-seconds", "1", "--dangerous-allow-private-webhooks"])
}

/// With a patient budget: on a busy machine a check may wait long for its turn, and a 503 would say nothing of the
/// product. How long checks took is in the load's report.
fn gateway(deployment: &Deployment) -> Process {
    let budget = ["--request-budget-ms", "10000"];
    let own = ["--dangerous-allow-private-webhooks", "--failed-logins-per-minute", "1000000"];
    deployment.role_with("gateway", &[own.as_slice(), &budget].concat())
}

fn decides(evaluator: &Process) {
    evaluator.wait_for_log("evaluator starts", "version");
}

fn delivers(exporter: &Process) {
    exporter.wait_for_log("audit-export serves", "message");
}

/// As an operator does, or the service manager: it ends with 0.
fn stop(process: &mut Process) {
    assert!(process.stop().success(), "{}", process.said());
}
