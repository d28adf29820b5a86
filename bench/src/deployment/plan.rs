//! What a deployment is made of, and the command line of each of its processes.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use stage0_backplane::nats::{KeySet, Requirement};
use stage0_backplane::testing::NODES;
use stage0_contract::Role;

use super::{Nats, Process};

/// All load comes from one address, keeps its connections over the turns of others, and is set up by one operator.
const GATEWAY: [&str; 10] = [
    "--requests-per-second-per-address",
    "0",
    "--max-connections-per-address",
    "0",
    "--max-connections",
    "20000",
    "--management-calls-per-minute",
    "0",
    "--keep-alive-ms",
    "3600000",
];
/// Receivers of webhooks are on this machine.
const PRIVATE_WEBHOOKS: &str = "--dangerous-allow-private-webhooks";
const MESSAGE_KEYS_DIR: &str = "message-keys";

/// Which servers of NATS there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Servers {
    One,
    /// With a copy of each stream on each.
    Three,
    /// One of three is lost once all else is ready.
    TwoOfThree,
    /// They sync every two minutes.
    ThreeRelaxed,
}

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(super) stage0: PathBuf,
    pub(super) is_embedded: bool,
    pub(super) gateways: usize,
    pub(super) evaluators: usize,
    pub(super) servers: Servers,
    is_authenticated: bool,
    files: Option<PathBuf>,
    evaluator_arguments: Vec<String>,
}

impl Plan {
    /// `stage0 dev`: every role in one process.
    pub(crate) fn embedded(stage0: &Path) -> Self {
        Self { is_embedded: true, ..Self::on_nats(stage0) }
    }

    /// One process for each role, on a nats-server that syncs each message.
    pub(crate) fn on_nats(stage0: &Path) -> Self {
        Self {
            stage0: stage0.to_owned(),
            is_embedded: false,
            gateways: 1,
            evaluators: 1,
            servers: Servers::One,
            is_authenticated: false,
            files: None,
            evaluator_arguments: Vec::new(),
        }
    }

    /// On three servers instead of one.
    #[must_use]
    pub(crate) fn clustered(self) -> Self {
        Self { servers: Servers::Three, ..self }
    }

    /// On three servers, one of which is lost.
    #[must_use]
    pub(crate) fn clustered_with_one_lost(self) -> Self {
        Self { servers: Servers::TwoOfThree, ..self }
    }

    /// On three servers that acknowledge before they sync.
    #[must_use]
    pub(crate) fn clustered_and_relaxed(self) -> Self {
        Self { servers: Servers::ThreeRelaxed, ..self }
    }

    #[must_use]
    pub(crate) fn gateways(self, gateways: usize) -> Self {
        Self { gateways: gateways.max(1), ..self }
    }

    #[must_use]
    pub(crate) fn evaluators(self, evaluators: usize) -> Self {
        Self { evaluators: evaluators.max(1), ..self }
    }

    /// Messages on NATS are authenticated, as in a deployment that follows the guide.
    #[must_use]
    pub(crate) fn authenticated(self) -> Self {
        Self { is_authenticated: true, ..self }
    }

    /// The keystore, or `dev`, starts with the files of this directory, which is moved.
    #[must_use]
    pub(crate) fn with_data(self, files: &Path) -> Self {
        Self { files: Some(files.to_owned()), ..self }
    }

    /// For `dev` and every evaluator.
    #[must_use]
    pub(crate) fn evaluator_with(mut self, arguments: &[&str]) -> Self {
        self.evaluator_arguments.extend(owned(arguments));
        self
    }

    pub(super) fn dev(&self, directory: &Path, data: &Path) -> anyhow::Result<Process> {
        let own = ["dev", "--listen", "127.0.0.1:0", "--log-format", "json", PRIVATE_WEBHOOKS];
        let data = ["--data-dir".to_owned(), data.display().to_string()];
        // A directory with a keystore's data has had a log.
        let new_log = if self.files.is_some() { owned(&["--accept-new-log"]) } else { Vec::new() };
        let arguments = [owned(&own), data.to_vec(), new_log, owned(&GATEWAY), self.evaluator_arguments.clone()];
        Process::start("dev", &self.stage0, &arguments.concat(), directory)
    }

    pub(super) fn gateway(&self, name: &str, nats: &Nats, directory: &Path) -> anyhow::Result<Process> {
        let tls = ["--tls-dev-dir".to_owned(), directory.join("tls").display().to_string()];
        let own = owned(&["--listen", "127.0.0.1:0"]);
        let arguments = [own, self.recording(nats), tls.to_vec(), owned(&GATEWAY)].concat();
        self.role(Role::Gateway, name, nats, directory, &arguments)
    }

    pub(super) fn evaluator(&self, name: &str, nats: &Nats, directory: &Path) -> anyhow::Result<Process> {
        self.role(Role::Evaluator, name, nats, directory, &self.evaluator_arguments)
    }

    pub(super) fn keystore(&self, name: &str, nats: &Nats, directory: &Path, data: &Path) -> anyhow::Result<Process> {
        let own = ["--data-dir".to_owned(), data.display().to_string()];
        self.role(Role::Keystore, name, nats, directory, &own)
    }

    pub(super) fn exporter(&self, name: &str, nats: &Nats, directory: &Path) -> anyhow::Result<Process> {
        self.role(Role::AuditExport, name, nats, directory, &self.recording(nats))
    }

    /// Puts the keystore's files, where there are any, into its directory, which must not exist.
    pub(super) fn place_files(&self, data: &Path) -> anyhow::Result<()> {
        Ok(self.files.iter().try_for_each(|files| std::fs::rename(files, data))?)
    }

    /// Writes the message keys of each role, where messages are authenticated.
    pub(super) fn make_message_keys(&self, directory: &Path) -> anyhow::Result<()> {
        if !self.is_authenticated {
            return Ok(());
        }
        let keys = directory.join(MESSAGE_KEYS_DIR);
        std::fs::create_dir(&keys)?;
        for (role, of_role) in KeySet::create(Requirement::Always)?.roles() {
            let path = keys.join(format!("{role}.keys"));
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(of_role.render()?.as_bytes())?;
        }
        Ok(())
    }

    /// Of the roles that use the log.
    fn recording(&self, nats: &Nats) -> Vec<String> {
        let mut all = owned(&[PRIVATE_WEBHOOKS, "--nats-monitor", &nats.monitors()]);
        if self.servers == Servers::ThreeRelaxed {
            all.push("--dangerous-relaxed-sync".to_owned());
        }
        all
    }

    fn role(
        &self,
        role: Role,
        name: &str,
        nats: &Nats,
        directory: &Path,
        arguments: &[String],
    ) -> anyhow::Result<Process> {
        let mut all = owned(&[&role.to_string(), "--nats", &nats.urls()]);
        if nats.is_cluster() {
            all.extend(owned(&["--log-replicas", &NODES.to_string()]));
        }
        if self.is_authenticated {
            let keys = directory.join(MESSAGE_KEYS_DIR).join(format!("{role}.keys"));
            all.extend(["--message-keys".to_owned(), keys.display().to_string()]);
        }
        all.extend_from_slice(arguments);
        Process::start(name, &self.stage0, &all, directory)
    }
}

fn owned(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|&argument| argument.to_owned()).collect()
}
