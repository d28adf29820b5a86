//! What a stack is made of, and the command line of each of its processes.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use stage0_backplane::nats::{KeySet, Requirement};
use stage0_backplane::testing::NODES;
use stage0_contract::Role;

use super::{Authority, Process, Servers, Stack};
use crate::moved_clock::MovedClock;
use crate::team::Packs;

/// Signed checkpoints follow at once, so that no test waits for one.
const CHECKPOINTS: [&str; 2] = ["--checkpoint-seconds", "1"];
/// Beside other tests a check may wait long for its turn on the machine, and a 503 would say nothing of the product.
const PATIENT_BUDGET_MS: u64 = 10_000;
const PRIVATE_WEBHOOKS: &str = "--dangerous-allow-private-webhooks";

#[derive(Default, Clone)]
pub struct StackBuilder {
    pub(super) evaluators: Option<usize>,
    pub(super) gateways: Option<usize>,
    pub(super) exporters: Option<usize>,
    pub(super) nats_settings: Option<String>,
    pub(super) is_clustered: bool,
    arguments: Vec<String>,
    gateway_arguments: Vec<String>,
    export_arguments: Vec<String>,
    /// Of `dev` and every evaluator that is started from now on.
    pub(super) policy_arguments: Vec<String>,
    private_webhooks: bool,
    unverified: bool,
    memory: Option<u64>,
    /// Of `dev`, evaluators and gateways that are started from now on.
    pub(super) environment: Vec<(String, String)>,
    keystore_on: Option<PathBuf>,
    /// Instead of the patient one.
    budget_ms: Option<u64>,
    message_keys: MessageKeys,
    /// With every role's message keys, once there are.
    pub(super) keys_dir: Option<PathBuf>,
}

/// Which message keys the processes of a stack on NATS have.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum MessageKeys {
    /// Those of a new deployment.
    #[default]
    Always,
    /// Those of one that was upgraded.
    Upgraded,
    /// Without a NATS server: everything in one process.
    Without,
}

impl StackBuilder {
    #[must_use]
    pub fn evaluators(self, count: usize) -> Self {
        Self { evaluators: Some(count), ..self }
    }

    #[must_use]
    pub fn gateways(self, count: usize) -> Self {
        Self { gateways: Some(count), ..self }
    }

    #[must_use]
    pub fn exporters(self, count: usize) -> Self {
        Self { exporters: Some(count), ..self }
    }

    /// For every process.
    #[must_use]
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(owned(arguments));
        self
    }

    /// For `dev` and every gateway.
    #[must_use]
    pub fn gateway_with(mut self, arguments: &[&str]) -> Self {
        self.gateway_arguments.extend(owned(arguments));
        self
    }

    /// For `dev` and every exporter.
    #[must_use]
    pub fn export_with(mut self, arguments: &[&str]) -> Self {
        self.export_arguments.extend(owned(arguments));
        self
    }

    /// `dev` and every evaluator decide by the first of these packs.
    #[must_use]
    pub fn policies(self, packs: &Packs) -> Self {
        Self { policy_arguments: packs.arguments(), ..self }
    }

    /// Checks are answered within the time that a user's gateway takes at most.
    #[must_use]
    pub fn usual_budget(self) -> Self {
        Self { budget_ms: Some(2_000), ..self }
    }

    /// Each process of the product may have this many megabytes, as in a container.
    #[must_use]
    pub fn memory_limit(self, megabytes: u64) -> Self {
        Self { memory: Some(megabytes << 20), ..self }
    }

    /// `dev`, evaluators and gateways have this clock.
    #[must_use]
    pub fn with_clock(self, clock: &MovedClock) -> Self {
        Self { environment: clock.environment(), ..self }
    }

    /// The keystore's data directory on NATS is this one, on a disk of the test's own.
    #[must_use]
    pub fn keystore_on(self, directory: &Path) -> Self {
        Self { keystore_on: Some(directory.to_owned()), ..self }
    }

    /// Webhooks may reach this machine.
    #[must_use]
    pub fn private_webhooks(self) -> Self {
        Self { private_webhooks: true, ..self }
    }

    /// Receivers with certificates of this authority are trusted.
    #[must_use]
    pub fn trusting(self, authority: &Authority) -> Self {
        self.export_with(&["--webhook-ca", authority.file().to_str().unwrap()])
    }

    /// No role is given the URL of nats-server's monitor.
    #[must_use]
    pub fn unverified(self) -> Self {
        Self { unverified: true, ..self }
    }

    /// Processes on NATS have the message keys of a deployment that ran without before.
    #[must_use]
    pub fn upgraded_keys(self) -> Self {
        Self { message_keys: MessageKeys::Upgraded, ..self }
    }

    /// Processes on NATS have no message keys.
    #[must_use]
    pub fn without_keys(self) -> Self {
        Self { message_keys: MessageKeys::Without, ..self }
    }

    /// Processes that are started from now on have the keys of an upgraded deployment.
    pub(super) fn upgrade(&mut self) {
        self.message_keys = MessageKeys::Upgraded;
    }

    /// nats-server gets these settings instead of the right ones.
    #[must_use]
    pub fn nats_with(self, settings: &str) -> Self {
        Self { nats_settings: Some(settings.to_owned()), ..self }
    }

    /// `stage0 dev`.
    pub async fn dev(self) -> Stack {
        Stack::on_dev(self).await
    }

    /// On three servers of NATS that replicate each stream, instead of one.
    #[must_use]
    pub fn clustered(self) -> Self {
        Self { is_clustered: true, ..self.with(&["--log-replicas", &NODES.to_string()]) }
    }

    /// One process for each role, on a nats-server of its own.
    pub async fn nats(self) -> Stack {
        Stack::on_nats(self).await
    }

    /// Makes the message keys that are wanted.
    pub(super) fn make_keys(&mut self, directory: &Path) {
        let require = match self.message_keys {
            MessageKeys::Always => Requirement::Always,
            MessageKeys::Upgraded => Requirement::WhenAllCan,
            MessageKeys::Without => return,
        };
        let dir = directory.join("message-keys");
        std::fs::create_dir_all(&dir).unwrap();
        write_keys(&dir, &KeySet::create(require).unwrap());
        self.keys_dir = Some(dir);
    }

    fn keys(&self, role: Role) -> Vec<String> {
        match &self.keys_dir {
            Some(dir) if self.message_keys != MessageKeys::Without => {
                owned(&["--message-keys", dir.join(format!("{role}.keys")).to_str().unwrap()])
            }
            Some(_) | None => vec![],
        }
    }

    pub(super) fn start_dev(&self, directory: &Path) -> Process {
        let data = directory.join("data");
        let own = ["dev", "--listen", "127.0.0.1:0", "--log-format", "json", "--data-dir", data.to_str().unwrap()];
        let parts =
            [&owned(&own), &self.arguments, &self.gateway_arguments, &self.export_arguments, &owned(&CHECKPOINTS)];
        let rest = [self.private(), self.budget(), self.policy_arguments.clone()].concat();
        let arguments = [parts.map(Vec::clone).concat(), rest].concat();
        let dev = Process::start_in(&arguments, self.memory, &self.environment);
        dev.wait_for("the end of the banner", |line| line.starts_with("Ctrl-C stops it").then_some(()));
        dev
    }

    /// Puts the keystore's data directory where it is wanted.
    pub(super) fn place_keystore(&self, data: &Path) {
        if let Some(elsewhere) = &self.keystore_on {
            std::os::unix::fs::symlink(elsewhere, data).unwrap();
        }
    }

    /// Started, and perhaps waiting.
    pub(super) fn begin_keystore(&self, nats: &Servers, data: &Path, with: &[&str]) -> Process {
        let own = ["keystore", "--nats", &nats.url, "--data-dir", data.to_str().unwrap()];
        Process::start_within(
            &[owned(&own), self.arguments.clone(), self.keys(Role::Keystore), owned(with)].concat(),
            self.memory,
        )
    }

    pub(super) fn start_evaluator(&self, nats: &Servers) -> Process {
        let own = ["evaluator", "--nats", &nats.url];
        let arguments =
            [owned(&own), self.arguments.clone(), self.policy_arguments.clone(), self.keys(Role::Evaluator)].concat();
        let evaluator = Process::start_in(&arguments, self.memory, &self.environment);
        evaluator.wait_for_log("evaluator starts", "version");
        evaluator
    }

    pub(super) fn start_exporter(&self, nats: &Servers) -> Process {
        let own = [owned(&["audit-export", "--nats", &nats.url]), owned(&CHECKPOINTS), self.monitor(nats)];
        let keys = self.keys(Role::AuditExport);
        let rest = [self.arguments.clone(), self.export_arguments.clone(), self.private(), keys];
        let exporter = Process::start_within(&[own.concat(), rest.concat()].concat(), self.memory);
        exporter.wait_for("a serving exporter", |line| line.contains("audit-export serves").then_some(()));
        exporter
    }

    pub(super) fn start_gateway(&self, nats: &Servers, directory: &Path) -> (Process, String) {
        let (url, tls) = (nats.url.clone(), directory.join("tls"));
        let own = ["gateway", "--nats", &url, "--listen", "127.0.0.1:0", "--tls-dev-dir", tls.to_str().unwrap()];
        let own = [owned(&own), self.budget(), self.monitor(nats), self.private()].concat();
        let rest = [self.arguments.clone(), self.gateway_arguments.clone(), self.keys(Role::Gateway)];
        let arguments = [own, rest.concat()].concat();
        let gateway = Process::start_in(&arguments, self.memory, &self.environment);
        let address = gateway.wait_for_log("gateway starts", "address");
        (gateway, format!("https://{address}"))
    }

    fn budget(&self) -> Vec<String> {
        owned(&["--request-budget-ms", &self.budget_ms.unwrap_or(PATIENT_BUDGET_MS).to_string()])
    }

    fn monitor(&self, nats: &Servers) -> Vec<String> {
        if self.unverified { vec![] } else { owned(&["--nats-monitor", &nats.monitors]) }
    }

    fn private(&self) -> Vec<String> {
        if self.private_webhooks { owned(&[PRIVATE_WEBHOOKS]) } else { vec![] }
    }
}

/// Puts each role's keys into its file.
pub fn write_keys(dir: &Path, set: &KeySet) {
    for (role, keys) in set.roles() {
        let (path, new) = (dir.join(format!("{role}.keys")), dir.join(format!("{role}.new")));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new).unwrap();
        file.write_all(keys.render().unwrap().as_bytes()).unwrap();
        std::fs::rename(new, path).unwrap();
    }
}

fn owned(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|&argument| argument.to_owned()).collect()
}
