//! The processes: three NATS servers on small disks of their own, two of each role, one keystore, each in a group that
//! the firewall knows, with a clock of its own, at an address that it keeps.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use stage0_backplane::nats::{KeySet, Requirement};
use stage0_backplane::testing::{Disk, NODES, NatsCluster, Place, wait_for};
use stage0_contract::Role;
use tempfile::TempDir;

use super::network::Network;
use super::plan::{Fault, Kind, Party};
use crate::api::Api;
use crate::authority::Authority;
use crate::moved_clock::MovedClock;
use crate::process::Process;
use crate::receiver::{Receiver, Reply};
use crate::stack::{serves, write_keys};
use crate::team::{Packs, two_release_managers};

const GATEWAY_PORTS: [u16; 2] = [7_101, 7_102];
const KEYSTORE_DISK_BYTES: u64 = 64 << 20;
/// What a server needs beside decisions, and for each of them: lines, counters, idempotency keys.
const NODE_DISK_BYTES: u64 = 256 << 20;
const BYTES_PER_CHECK: u64 = 6 << 10;
/// The least that nats-server takes. Each client is sent away within a second of the one before.
const LAME_DUCK: &str = "lame_duck_duration: \"30s\"\nlame_duck_grace_period: \"1s\"";
const READY_TIMEOUT: Duration = Duration::from_secs(90);
const SLOW_ANSWER: Duration = Duration::from_secs(2);

pub struct Deployment {
    running: BTreeMap<Party, Process>,
    pub cluster: NatsCluster,
    pub network: Network,
    pub receiver: Arc<Receiver>,
    pub urls: Vec<String>,
    clocks: BTreeMap<Party, MovedClock>,
    packs: Packs,
    authority: Authority,
    directory: TempDir,
    // Unmounted after everything that uses them has ended.
    keystore_disk: Disk,
    node_disks: Vec<Disk>,
}

impl Deployment {
    /// With room for this many checks. None: disks of its own are impossible here, and that was waived.
    pub async fn start(checks: u64) -> Option<Self> {
        let mut network = Network::new();
        let keystore_disk = Disk::small(KEYSTORE_DISK_BYTES)?;
        let mut node_disks = Vec::new();
        for _ in 0..NODES {
            node_disks.push(Disk::small(NODE_DISK_BYTES + checks * BYTES_PER_CHECK)?);
        }
        let place =
            |node: usize| Place { store: Some(node_disks[node].path().to_owned()), group: Party::Nats(node).group() };
        let cluster = NatsCluster::start_in([place(0), place(1), place(2)], LAME_DUCK).await?;
        for (node, party) in Party::nodes().into_iter().enumerate() {
            network.listens(party, cluster.ports(node));
        }
        for (number, port) in GATEWAY_PORTS.into_iter().enumerate() {
            network.listens(Party::Gateway(number), vec![port]);
        }
        let (directory, authority) = (tempfile::tempdir().unwrap(), Authority::default());
        let receiver = Arc::new(Receiver::tls(&authority).await);
        network.listens(Party::Receiver, vec![receiver.address.port()]);
        let keys = directory.path().join("message-keys");
        std::fs::create_dir(&keys).unwrap();
        write_keys(&keys, &KeySet::create(Requirement::Always).unwrap());
        let mut deployment = Self {
            running: BTreeMap::new(),
            cluster,
            network,
            receiver,
            urls: GATEWAY_PORTS.map(|port| format!("https://localhost:{port}")).to_vec(),
            clocks: Party::roles().into_iter().map(|party| (party, MovedClock::ahead(0))).collect(),
            packs: two_release_managers(),
            authority,
            directory,
            keystore_disk,
            node_disks,
        };
        // The keystore waits for the streams, which exporters and gateways make.
        for party in Party::roles() {
            let process = deployment.launch(party);
            deployment.running.insert(party, process);
        }
        deployment.all_serve().await;
        deployment.network.prove(Party::Evaluator(0)).await;
        Some(deployment)
    }

    /// The operator's client.
    pub fn operator(&self) -> Api {
        let key = std::fs::read_to_string(self.keystore_data().join("operator.key")).unwrap();
        Api::new(&self.urls[0], &self.directory.path().join("tls/ca.pem"), Some(key.trim())).undeclared()
    }

    /// Waits until everything is as it was before the first fault.
    pub async fn all_serve(&self) {
        serves(&self.running[&Party::Keystore]);
        self.cluster.wait_until_current().await;
        for gateway in 0..self.urls.len() {
            self.is_ready(gateway).await;
        }
    }

    async fn is_ready(&self, gateway: usize) {
        let api = self.operator().at(&self.urls[gateway]);
        let ready = async || {
            let answer = api.try_send(reqwest::Method::GET, "/readyz", &[], None).await;
            answer.is_ok_and(|answer| answer.status == 200)
        };
        wait_for("a ready gateway", READY_TIMEOUT, ready).await;
    }

    /// Breaks it.
    pub fn inject(&mut self, fault: &Fault) {
        match (fault.kind, fault.target) {
            (Kind::Kill, Some(Party::Nats(node))) => self.cluster.kill(node),
            (Kind::Kill, Some(Party::Receiver)) => self.receiver_replies(Reply::status(503)),
            (Kind::Kill, Some(party)) => self.process(party).kill(),
            (Kind::Freeze, Some(Party::Nats(node))) => self.cluster.freeze(node),
            (Kind::Freeze, Some(Party::Receiver)) => self.receiver_replies(Reply::Hang),
            (Kind::Freeze, Some(party)) => self.process(party).freeze(),
            (Kind::Slow, Some(Party::Receiver)) => self.receiver_replies(Reply::Late(SLOW_ANSWER, 200)),
            (Kind::Slow, Some(party)) => self.network.slow(party),
            (Kind::Partition, _) => self.network.cut(&fault.links),
            (Kind::DiskFull, Some(Party::Nats(node))) => self.node_disks[node].fill(0),
            (Kind::DiskFull, _) => self.keystore_disk.fill(0),
            (Kind::ClockJump, Some(party)) => self.clocks[&party].set(fault.jump),
            (Kind::Kill | Kind::Freeze | Kind::Slow | Kind::ClockJump, None) | (Kind::RollingRestart, _) => {}
        }
    }

    /// Mends it, as an operator or a supervisor does. How many packets were lost.
    pub async fn heal(&mut self, fault: &Fault) -> u64 {
        let mut lost = 0;
        match (fault.kind, fault.target) {
            (Kind::Kill, Some(Party::Nats(node))) => self.cluster.restart(node).await,
            (Kind::Freeze, Some(Party::Nats(node))) => self.cluster.thaw(node),
            (Kind::Kill | Kind::Freeze | Kind::Slow, Some(Party::Receiver)) => self.receiver.everywhere(None),
            (Kind::Kill, Some(party)) => self.start_again(party),
            (Kind::Freeze, Some(party)) => self.process(party).thaw(),
            (Kind::Slow | Kind::Partition, _) => lost = self.network.heal(),
            // A server that could not write may have disabled its JetStream until the next start.
            (Kind::DiskFull, Some(Party::Nats(node))) => {
                self.node_disks[node].empty();
                self.cluster.kill(node);
                self.cluster.restart(node).await;
            }
            (Kind::DiskFull, _) => self.keystore_disk.empty(),
            (Kind::ClockJump, Some(party)) => self.clocks[&party].set(0),
            (Kind::Kill | Kind::Freeze | Kind::ClockJump, None) | (Kind::RollingRestart, _) => {}
        }
        self.revive();
        lost
    }

    /// Restarts everything in good order, one after the other, as an operator does for an upgrade. Says what is next.
    pub async fn rolling_restart(&mut self, with_servers: usize, mut next: impl FnMut(Party)) {
        for party in Party::roles() {
            next(party);
            match party {
                // The new one is there before the old one ends.
                Party::Evaluator(_) | Party::Exporter(_) => {
                    let new = self.launch(party);
                    started(party, &new);
                    let mut old = self.running.insert(party, new).expect("it ran");
                    assert!(old.stop().success(), "{party} ends in good order");
                }
                Party::Gateway(number) => {
                    assert!(self.process(party).stop().success(), "{party} ends in good order");
                    self.start_again(party);
                    self.is_ready(number).await;
                }
                // The new one stands by until the old one has ended.
                Party::Keystore => {
                    let new = self.launch(party);
                    new.wait_for("a standby", |line| line.contains("keystore does not serve").then_some(()));
                    let mut old = self.running.insert(party, new).expect("it ran");
                    assert!(old.stop().success(), "{party} ends in good order");
                    serves(&self.running[&party]);
                }
                Party::Nats(_) | Party::Receiver => {}
            }
        }
        for node in 0..with_servers {
            next(Party::Nats(node));
            self.cluster.retire(node).await;
            self.cluster.restart(node).await;
            self.cluster.wait_until_current().await;
        }
    }

    /// What ended of its own accord and was not supposed to, with what it said last.
    pub fn ended(&mut self) -> Vec<String> {
        let mut ended = Vec::new();
        for (party, process) in &mut self.running {
            if !process.is_alive() {
                let said = process.said();
                let last: Vec<&str> = said.lines().rev().take(3).collect();
                ended.push(format!("{party} ended by itself: {}", last.join(" / ")));
            }
        }
        ended
    }

    /// Lines in which a process tells of a panic.
    pub fn panics(&self) -> Vec<String> {
        let told = |party: &Party, process: &Process| {
            let said = process.said();
            said.lines().filter(|line| line.contains("panicked at")).map(|line| format!("{party}: {line}")).collect()
        };
        self.running.iter().flat_map(|(party, process)| -> Vec<String> { told(party, process) }).collect()
    }

    /// A supervisor starts what has ended.
    fn revive(&mut self) {
        let is_gone = |(party, process): (&Party, &mut Process)| (!process.is_alive()).then_some(*party);
        let gone: Vec<Party> = self.running.iter_mut().filter_map(is_gone).collect();
        for party in gone {
            self.start_again(party);
        }
    }

    fn start_again(&mut self, party: Party) {
        let process = self.launch(party);
        self.running.insert(party, process);
    }

    fn process(&mut self, party: Party) -> &mut Process {
        self.running.get_mut(&party).expect("a process of the deployment")
    }

    fn receiver_replies(&self, reply: Reply) {
        self.receiver.everywhere(Some(reply));
    }

    fn keystore_data(&self) -> PathBuf {
        self.keystore_disk.path().join("keys")
    }

    fn launch(&self, party: Party) -> Process {
        let urls: Vec<String> = (0..NODES).map(|node| self.cluster.url(node)).collect();
        let (nats, monitors) = (urls.join(","), self.cluster.monitors().join(","));
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let owned = |own: &[&str]| own.iter().map(|&argument| argument.to_owned()).collect::<Vec<_>>();
        let private = "--dangerous-allow-private-webhooks";
        let (role, own) = match party {
            Party::Gateway(number) => {
                let (listen, tls) = (format!("127.0.0.1:{}", GATEWAY_PORTS[number]), self.directory.path().join("tls"));
                let own = ["--listen", &listen, "--tls-dev-dir", &text(&tls), "--nats-monitor", &monitors, private];
                // The tests' clients ask with revoked keys, all from one address.
                let more = ["--request-budget-ms", "2000", "--failed-logins-per-minute", "1000000"];
                (Role::Gateway, owned(&[&own[..], &more[..]].concat()))
            }
            Party::Evaluator(_) => (Role::Evaluator, self.packs.arguments()),
            Party::Exporter(_) => {
                let ca = text(&self.authority.file());
                let own = ["--checkpoint-seconds", "1", "--nats-monitor", &monitors, "--webhook-ca", &ca, private];
                (Role::AuditExport, owned(&own))
            }
            Party::Keystore => (Role::Keystore, owned(&["--data-dir", &text(&self.keystore_data())])),
            Party::Nats(_) | Party::Receiver => panic!("{party} is no role"),
        };
        let keys = text(&self.directory.path().join(format!("message-keys/{role}.keys")));
        let all = [role.as_str(), "--nats", &nats, "--log-replicas", "3", "--message-keys", &keys];
        let arguments = [owned(&all), own].concat();
        let group = party.group().expect("a role has one");
        Process::start_in_group(&arguments, &self.clocks[&party].environment(), group)
    }
}

fn started(party: Party, process: &Process) {
    let says = match party {
        Party::Evaluator(_) => "evaluator starts",
        _ => "audit-export serves",
    };
    process.wait_for(says, |line| line.contains(says).then_some(()));
}
