//! Namespaces of a test's own, and rules of a firewall in them that cut processes off from each other or lose packets.
//!
//! All processes share the loopback device, so a rule knows them by their group: a connection gets a mark when its
//! client opens it, and servers are known by their ports. A cut is what a broken cable is: nothing is refused, packets
//! do not arrive. Needs root; without it the test fails, unless `STAGE0_ALLOW_NO_POWERCUT=1` is set.

use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::time::Duration;

use stage0_backplane::testing::{run, wait_for};

use super::plan::{Link, Party};

/// Set for the process that runs in the namespaces: the network of the one that started it.
const OUTER_VARIABLE: &str = "FAULTS_STARTED_FROM_NETWORK";
const ALLOWED_VARIABLE: &str = "STAGE0_ALLOW_NO_POWERCUT";
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Of packets from or to a slow process. TCP sends each of them again after 200 ms or more.
const LOSS: &str = "0.15";

/// Runs this test once more in namespaces of its own (network, mounts, processes) and fails if it fails. True: this is
/// that run, and the test goes on. With it end all of its processes, mounts and rules, however it ends.
pub fn isolated(test: &str) -> bool {
    let network = std::fs::metadata("/proc/self/ns/net").expect("a network namespace").ino().to_string();
    if std::env::var(OUTER_VARIABLE).is_ok_and(|outer| outer != network) {
        return true;
    }
    if let Err(why) = run("unshare", &["--net", "--mount", "--pid", "--fork", "true"]).and_then(|()| needs_iptables()) {
        eprintln!("NOT TESTED: faults need root, unshare (util-linux) and iptables: {why}");
        let allowed = std::env::var(ALLOWED_VARIABLE).is_ok_and(|value| value == "1");
        assert!(allowed, "set {ALLOWED_VARIABLE}=1 to go without the tests of faults: {why}");
        return false;
    }
    let own = std::env::current_exe().expect("the test has a path");
    let up = "ip link set lo up && exec \"$0\" \"$@\"";
    // It ends with this process, however that ends.
    let status = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare"])
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", up])
        .arg(own)
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env(OUTER_VARIABLE, network)
        .status()
        .expect("unshare starts");
    assert!(status.success(), "the run in namespaces of its own failed: its output is above");
    false
}

fn needs_iptables() -> Result<(), String> {
    run("ip", &["-V"]).and_then(|()| run("setpriv", &["--version"])).and_then(|()| run("iptables", &["--version"]))
}

/// The rules of this network namespace.
pub struct Network {
    /// Of each party that others connect to.
    ports: Vec<(Party, Vec<u16>)>,
}

impl Network {
    /// Before any process starts: connections are marked when they are opened.
    pub fn new() -> Self {
        for party in [Party::roles(), Party::nodes()].concat() {
            let group = group(party);
            let new = ["-m", "conntrack", "--ctstate", "NEW", "-m", "owner", "--gid-owner", &group];
            let mark = ["-j", "CONNMARK", "--set-mark", &group];
            rule(&[&["-t", "mangle", "-A", "OUTPUT", "-p", "tcp"], &new[..], &mark[..]].concat());
        }
        Self { ports: Vec::new() }
    }

    /// Says where a party listens.
    pub fn listens(&mut self, party: Party, ports: Vec<u16>) {
        self.ports.push((party, ports));
    }

    /// From now on nothing passes on these links.
    pub fn cut(&self, links: &[Link]) {
        for link in links {
            // On connections that the sender opened, and on those that the other side did.
            self.lose(link.from, "ORIGINAL", "--dports", link.to);
            self.lose(link.to, "REPLY", "--sports", link.from);
        }
    }

    /// From now on some packets from and to this party are lost, to and from every process.
    pub fn slow(&self, party: Party) {
        let some = ["-m", "statistic", "--mode", "random", "--probability", LOSS];
        if party.group().is_some() {
            let mark = group(party);
            drop_rule(&[&["-m", "connmark", "--mark", &mark], &some[..]].concat());
        }
        if let Some(ports) = self.ports_of(party) {
            for side in ["--dports", "--sports"] {
                drop_rule(&[&["-m", "multiport", side, &ports], &some[..]].concat());
            }
        }
    }

    /// Everything passes. How many packets did not since the last time.
    pub fn heal(&self) -> u64 {
        let lost = self.lost();
        rule(&["-F", "INPUT"]);
        lost
    }

    /// Shows that a rule finds the packets of a role that is connected to NATS, in each direction.
    pub async fn prove(&self, role: Party) {
        for is_out in [true, false] {
            let link = |node| if is_out { Link { from: role, to: node } } else { Link { from: node, to: role } };
            self.cut(&Party::nodes().into_iter().map(link).collect::<Vec<_>>());
            // Servers ping each second.
            wait_for("a packet that is lost", PING_TIMEOUT, async || self.lost() > 0).await;
            self.heal();
        }
    }

    fn lost(&self) -> u64 {
        let listed = Command::new("iptables").args(["-w", "-nvxL", "INPUT"]).output().expect("iptables starts");
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let count = |line: &str| line.split_whitespace().next().and_then(|packets| packets.parse::<u64>().ok());
        listed.lines().filter(|line| line.contains("DROP")).filter_map(count).sum()
    }

    fn lose(&self, client: Party, direction: &str, side: &str, server: Party) {
        if client.group().is_none() {
            return;
        }
        let mark = group(client);
        if let Some(ports) = self.ports_of(server) {
            let of = ["-m", "connmark", "--mark", &mark, "-m", "conntrack", "--ctdir", direction];
            drop_rule(&[&of[..], &["-m", "multiport", side, &ports]].concat());
        }
    }

    fn ports_of(&self, party: Party) -> Option<String> {
        let (_, ports) = self.ports.iter().find(|(known, _)| *known == party)?;
        Some(ports.iter().map(u16::to_string).collect::<Vec<_>>().join(","))
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

fn group(party: Party) -> String {
    party.group().expect("a process with a group").to_string()
}

/// Where packets arrive: a sender gets an error for one that is dropped where it leaves.
fn drop_rule(matches: &[&str]) {
    rule(&[&["-A", "INPUT", "-p", "tcp"], matches, &["-j", "DROP"]].concat());
}

fn rule(arguments: &[&str]) {
    run("iptables", &[&["-w"], arguments].concat()).expect("a rule in a network of the test's own");
}
