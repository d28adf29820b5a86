//! The nats-server configuration that lets each role do its part and nothing of another's: one account for each role,
//! one for the streams, one for the administrator who creates them, and between them what [`REQUESTS`], [`EVENTS`] and
//! [`RECORDS`] of the contract list. Holds no secret: passwords come from variables.
//!
//! Why accounts instead of one account with permissions for each user: the server sends acknowledgements and messages
//! that it reads from a stream to whatever reply subject it is given, without checking permissions. In one account a
//! compromised gateway could so have one of its stored messages delivered to `$JS.API.STREAM.PURGE.S0_LOG`. Between
//! accounts an answer returns to the account of the request, where no such subject leads further.
//! INVARIANT: no role may create or change a stream: its settings control everything in it.

mod cluster;

use std::net::SocketAddr;
use std::path::PathBuf;

use stage0_contract::{APPROVAL_RECORDS, EVENTS, GUARD_RECORDS, RECORDS, REQUESTS, RUN_RECORDS, Role};

use super::config::INBOXES;
use super::jetstream::MAX_READS;
use super::streams::{StreamName, StreamSpec};
use crate::MAX_CONCURRENT_LISTS;

pub use cluster::{ClusterConf, ClusterRoute};

/// What differs between two deployments.
#[derive(Debug, Clone)]
pub struct NatsServerConf {
    /// What every subject starts with.
    pub prefix: String,
    /// The server's name; each server of a cluster has its own.
    pub name: String,
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where the monitor listens.
    pub monitor: SocketAddr,
    /// Holds `server.pem`, `server.key` and `ca.pem`.
    pub tls_dir: PathBuf,
    /// Where JetStream keeps its files.
    pub store_dir: PathBuf,
    /// How much disk of this server JetStream may use, for example `20GB`.
    pub max_file: String,
    /// A file that sets the password variables, relative to this file; none: they come from the environment.
    pub passwords: Option<String>,
    /// How many processes of each role get a login of their own.
    pub logins: Logins,
    /// None for a server that is no part of a cluster.
    pub cluster: Option<ClusterConf>,
}

/// How many logins each role has: `gateway-1`, `gateway-2`, and so on, so that no process receives the replies to
/// another's requests. Zero: one login with the role's name, which all its processes share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logins {
    /// Logins of gateways.
    pub gateways: u16,
    /// Logins of evaluators.
    pub evaluators: u16,
    /// Logins of keystores: one serves, one stands by, and `doctor` checks.
    pub keystores: u16,
    /// Logins of audit-export.
    pub audit_exports: u16,
}

impl Default for Logins {
    fn default() -> Self {
        Self { gateways: 8, evaluators: 16, keystores: 3, audit_exports: 8 }
    }
}

impl Logins {
    /// One login for all processes of a role, as in earlier versions.
    pub const SHARED: Self = Self { gateways: 0, evaluators: 0, keystores: 0, audit_exports: 0 };

    /// The names of a role's logins.
    pub fn of(self, role: Role) -> Vec<String> {
        let count = match role {
            Role::Gateway => self.gateways,
            Role::Evaluator => self.evaluators,
            Role::Keystore => self.keystores,
            Role::AuditExport => self.audit_exports,
        };
        if count == 0 {
            return vec![role.to_string()];
        }
        (1..=count).map(|number| format!("{role}-{number}")).collect()
    }
}

struct Share {
    kind: ShareKind,
    from: &'static str,
    to: Vec<&'static str>,
    subject: String,
    /// The subject for the importing accounts, if it differs.
    named: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ShareKind {
    Stream,
    Service,
    /// Requests that several messages answer.
    ServiceOfMany,
}

/// The account of the streams, which has no login.
const LOG: &str = "LOG";
/// The account of the administrator who creates the streams.
const ADMIN: &str = "ADMIN";
const MAX_ADMIN_CONNECTIONS: usize = 8;
/// Subscriptions in addition to what a connection serves, receives and reads: its inbox, and some to spare.
const SPARE_SUBSCRIPTIONS: usize = 4;
const MAX_CONTROL_LINE: usize = 4_096;
/// Records that an evaluator lists by account.
const LISTED_RECORDS: [&str; 3] = [RUN_RECORDS, APPROVAL_RECORDS, GUARD_RECORDS];

impl NatsServerConf {
    /// The prefix under which every role imports JetStream's API.
    pub fn jetstream_api(prefix: &str) -> String {
        format!("{prefix}.api")
    }

    /// The name of the administrator's login.
    pub const ADMIN_USER: &'static str = "admin";
    /// The variable with the administrator's password.
    pub const ADMIN_PASSWORD_VARIABLE: &'static str = "ADMIN_PASSWORD";

    /// The variable with a login's password.
    pub fn password_variable(login: &str) -> String {
        format!("{}_PASSWORD", login.to_ascii_uppercase().replace('-', "_"))
    }

    /// The file, in nats-server's own format.
    pub fn render(&self) -> String {
        let shares = shares(&self.prefix);
        // Of a cluster's account, each copy of a stream counts.
        let max_file = match &self.cluster {
            None => self.max_file.clone(),
            Some(_) => cluster::times(&self.max_file, cluster::COPIES),
        };
        let max_streams = StreamSpec::all(&self.prefix).len();
        let mut accounts = vec![
            format!(
                "  # The streams. There are no logins here.\n  {LOG}: {{\n    jetstream: {{ max_file: {max_file}, \
                 max_mem: 1MB, max_streams: {max_streams} }}\n{}  }}\n",
                exports(LOG, &shares)
            ),
            format!(
                "  # Makes and changes the streams (`stage0 nats-admin`), and can do nothing else. No role has this \
                 login.\n  {ADMIN}: {{\n{}{}{}  }}\n",
                limits(MAX_ADMIN_CONNECTIONS, SPARE_SUBSCRIPTIONS),
                admin(),
                imports(ADMIN, &shares)
            ),
        ];
        for role in Role::ALL {
            let (name, users) = (account(role), users(&self.prefix, role, self.logins));
            let limits = limits(max_connections(role), max_subscriptions(role));
            let (exports, imports) = (exports(name, &shares), imports(name, &shares));
            accounts.push(format!("  {name}: {{\n{limits}{users}{exports}{imports}  }}\n"));
        }
        format!("{}\naccounts {{\n{}}}\n", self.head(), accounts.join("\n"))
    }

    fn head(&self) -> String {
        let Self { prefix, name, listen, monitor, tls_dir, store_dir, max_file, passwords, .. } = self;
        let passwords = match passwords {
            Some(file) => format!("# Sets the passwords' variables.\ninclude {}\n", quoted(file)),
            None => {
                "# Passwords come from the environment; a server whose variable is missing does not start.\n".to_owned()
            }
        };
        let tls = |file: &str| quoted(&tls_dir.join(file).display().to_string());
        let (cert, key, ca) = (tls("server.pem"), tls("server.key"), tls("ca.pem"));
        let store = quoted(&store_dir.display().to_string());
        let max_connections = Role::ALL.into_iter().map(max_connections).sum::<usize>() + MAX_ADMIN_CONNECTIONS;
        let cluster = self.cluster.as_ref().map(ClusterConf::render).unwrap_or_default();
        format!(
            r#"# NATS for a deployment of Stage0 with the prefix `{prefix}`, made by `stage0 nats-config`.
# Needs nats-server 2.15 or newer. There is one account per role, and between accounts only what the roles need. Each
# process logs in as a user of its own; `--nats-jetstream-api {prefix}.api` tells it the prefix of JetStream's subjects.
# `stage0 nats-admin init` creates the streams, with the login `admin`.
{passwords}
server_name: {name}
listen: "{listen}"
# Shows whether the server syncs (`/jsz`) and can still write (`/healthz`). Only gateways and audit-export need to reach
# it.
http: "{monitor}"
tls {{
  cert_file: {cert}
  key_file: {key}
  ca_file: {ca}
  verify: true
  timeout: 5
}}
# A check is up to 1,000,000 bytes and grows when it is written as JSON again; a batch of the log is up to 4 MiB.
max_payload: 8MB
# The connections of all accounts together, so that no role can use up those of another. An account's `max_connections`
# covers all its connections, its `max_subscriptions` each of them: as many as the role needs, so that one login cannot
# receive the requests of all.
max_connections: {max_connections}
max_control_line: {MAX_CONTROL_LINE}
# What the server holds for a client that reads slowly: some of the largest answers.
max_pending: 64MB
# A server or a client that froze is given up within three seconds; the defaults take minutes.
ping_interval: "1s"
ping_max: 2
write_deadline: "5s"
lame_duck_grace_period: "5s"
lame_duck_duration: "30s"
{cluster}
jetstream {{
  store_dir: {store}
  max_file: {max_file}
  max_mem: 64MB
  # Without this, a power cut loses the decisions of the last two minutes. A role that knows the monitor's URL refuses
  # to record on a server that lacks it.
  sync_interval: always
}}
"#
        )
    }
}

fn shares(prefix: &str) -> Vec<Share> {
    let between = |kind, from: Role, to: &[Role], subject: String| {
        let to: Vec<_> = to.iter().filter(|role| **role != from).map(|role| account(*role)).collect();
        (!to.is_empty()).then(|| Share { kind, from: account(from), to, subject, named: None })
    };
    let requests = REQUESTS.iter().filter_map(|route| {
        between(ShareKind::Service, route.to, route.from, format!("{prefix}.req.{}", route.subject))
    });
    let events = EVENTS.iter().flat_map(|event| {
        let subject = format!("{prefix}.{}", event.subject);
        event.from.iter().filter_map(move |from| between(ShareKind::Stream, *from, event.to, subject.clone()))
    });
    requests.chain(events).chain(of_streams(prefix)).collect()
}

/// What the roles may do with the log and the state store, and the administrator with the streams.
fn of_streams(prefix: &str) -> Vec<Share> {
    let (log, state_store) = (StreamName::log(prefix), StreamName::state_store(prefix));
    let (log, state_store) = (log.as_str(), state_store.as_str());
    let plain = |subject: String, to: Role| Share {
        kind: ShareKind::Service,
        from: LOG,
        to: vec![account(to)],
        subject: format!("{prefix}.{subject}"),
        named: None,
    };
    let api = |kind, what: String, to: Vec<&'static str>| Share {
        kind,
        from: LOG,
        to,
        subject: format!("$JS.API.{what}"),
        named: Some(format!("{}.{what}", NatsServerConf::jetstream_api(prefix))),
    };
    let mut shares = Vec::new();
    for spec in StreamSpec::all(prefix) {
        let (name, mut to) = (spec.name.as_str(), spec.used_by.iter().map(|role| account(*role)).collect::<Vec<_>>());
        to.push(ADMIN);
        shares.push(api(ShareKind::Service, format!("STREAM.INFO.{name}"), to));
        for what in ["CREATE", "UPDATE"] {
            shares.push(api(ShareKind::Service, format!("STREAM.{what}.{name}"), vec![ADMIN]));
        }
    }
    shares.push(api(ShareKind::Service, "INFO".to_owned(), vec![ADMIN]));
    // The gateway appends decisions, audit-export marks; both read them, and audit-export purges.
    let readers = [Role::Gateway, Role::AuditExport].map(account).to_vec();
    shares.extend([
        plain("log.*.d".to_owned(), Role::Gateway),
        plain("log.*.m".to_owned(), Role::AuditExport),
        api(ShareKind::ServiceOfMany, format!("DIRECT.GET.{log}"), readers),
        api(ShareKind::Service, format!("STREAM.PURGE.{log}"), vec![account(Role::AuditExport)]),
    ]);
    let single = (Role::AuditExport, "ledger.*".to_owned());
    let records = RECORDS.iter().map(|records| (records.of, format!("ledger.{}.>", records.word)));
    for (of, keys) in records.chain([single]) {
        let key = keys.trim_start_matches("ledger.").replace('>', "x");
        let own = StreamName::of_record(prefix, &key);
        // Records that moved out of an earlier version's single stream are proven there until they expire.
        let streams = if own.as_str() == state_store { vec![state_store] } else { vec![own.as_str(), state_store] };
        for stream in streams {
            let read = format!("DIRECT.GET.{stream}.{prefix}.{keys}");
            shares.push(api(ShareKind::ServiceOfMany, read, vec![account(of)]));
        }
        shares.push(plain(keys, of));
    }
    // An account's runs, approvals and guards are listed by one request for many records; these streams hold only
    // evaluators' own records.
    for word in LISTED_RECORDS {
        let stream = StreamName::of_record(prefix, &format!("{word}.x"));
        let list = format!("DIRECT.GET.{}", stream.as_str());
        shares.push(api(ShareKind::ServiceOfMany, list, vec![account(Role::Evaluator)]));
    }
    shares
}

/// One for each thread of a role's processes. An operator with very many processes edits the file.
fn max_connections(role: Role) -> usize {
    match role {
        Role::Gateway => 256,
        Role::Evaluator => 128,
        Role::AuditExport => 64,
        Role::Keystore => 16,
    }
}

/// One for each request type that a role serves, for each event that it receives, and for each concurrent read of the
/// log or list of records.
fn max_subscriptions(role: Role) -> usize {
    let serves = REQUESTS.iter().filter(|route| route.to == role).count();
    let hears = EVENTS.iter().filter(|event| event.to.contains(&role)).count();
    let reads = match role {
        Role::Gateway | Role::AuditExport => MAX_READS,
        Role::Evaluator => LISTED_RECORDS.len() * MAX_CONCURRENT_LISTS,
        Role::Keystore => 0,
    };
    serves + hears + reads + SPARE_SUBSCRIPTIONS
}

fn limits(connections: usize, subscriptions: usize) -> String {
    format!("    limits: {{ max_connections: {connections}, max_subscriptions: {subscriptions} }}\n")
}

fn admin() -> String {
    let (user, variable) = (NatsServerConf::ADMIN_USER, NatsServerConf::ADMIN_PASSWORD_VARIABLE);
    let subscribe = quoted(&format!("{INBOXES}{user}.>"));
    format!("    users: [{{ user: {user}, password: ${variable}, permissions: {{ subscribe: [{subscribe}] }} }}]\n")
}

fn account(role: Role) -> &'static str {
    match role {
        Role::Gateway => "GATEWAY",
        Role::Evaluator => "EVALUATOR",
        Role::Keystore => "KEYSTORE",
        Role::AuditExport => "AUDIT_EXPORT",
    }
}

/// A login receives its own replies and its role's events, and serves its role's requests only in the queue group, so
/// that no process sees what another is asked. What it publishes reaches other accounts through imports only:
/// forbidding the rest by name would turn the server's instant "no responders" into silence. `$SYS` is denied because
/// it lists the account's other connections, and with them their reply subjects.
fn users(prefix: &str, role: Role, logins: Logins) -> String {
    let users: String = logins.of(role).iter().map(|login| user(prefix, role, login)).collect();
    format!("    users: [\n{users}    ]\n")
}

fn user(prefix: &str, role: Role, login: &str) -> String {
    let serves = REQUESTS.iter().filter(|route| route.to == role);
    let hears = EVENTS.iter().filter(|event| event.to.contains(&role));
    let mut subscribe = vec![format!("{INBOXES}{login}.>")];
    subscribe.extend(serves.map(|route| format!("{prefix}.req.{} {prefix}", route.subject)));
    subscribe.extend(hears.map(|event| format!("{prefix}.{}", event.subject)));
    let (variable, subscribe) = (NatsServerConf::password_variable(login), subscribe.iter().map(|to| quoted(to)));
    let subscribe: String = subscribe.map(|subject| format!("        {subject}\n")).collect();
    format!(
        "      {{ user: {login}, password: ${variable}, permissions: {{\n      publish: {{ \
         deny: [\"$SYS.>\"] }}\n      subscribe: [\n{subscribe}      ]\n    }} }}\n"
    )
}

fn exports(from: &str, shares: &[Share]) -> String {
    let lines = shares.iter().filter(|share| share.from == from).map(|share| {
        let (kind, subject) = (share.kind.word(), quoted(&share.subject));
        let many = if share.kind == ShareKind::ServiceOfMany { ", response_type: stream" } else { "" };
        format!("{{ {kind}: {subject}{many}, accounts: [{}] }}", share.to.join(", "))
    });
    list("exports", lines)
}

fn imports(to: &str, shares: &[Share]) -> String {
    let lines = shares.iter().filter(|share| share.to.contains(&to)).map(|share| {
        let (kind, from, subject) = (share.kind.word(), share.from, quoted(&share.subject));
        let named = share.named.as_ref().map(|name| format!(", to: {}", quoted(name))).unwrap_or_default();
        format!("{{ {kind}: {{ account: {from}, subject: {subject} }}{named} }}")
    });
    list("imports", lines)
}

impl ShareKind {
    fn word(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Service | Self::ServiceOfMany => "service",
        }
    }
}

fn list(name: &str, lines: impl Iterator<Item = String>) -> String {
    let lines: String = lines.map(|line| format!("      {line}\n")).collect();
    if lines.is_empty() { lines } else { format!("    {name}: [\n{lines}    ]\n") }
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}
