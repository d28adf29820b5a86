//! Checks NATS with the role's own settings: connection, version, sync setting, clock, disk, and the role's rights.
//!
//! Sync setting, clock and disk come from the server's monitor. Rights are checked by requests that change nothing:
//! those that the role needs, and one that must be refused.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Client;
use serde::Deserialize;
use stage0_backplane::nats::{Connection, Exposure, JetStreamState, NatsConfig, Release, exposure};
use stage0_backplane::{Backplane, ClockError, Event};
use stage0_contract::{
    EvaluatorStatus, InstanceHeartbeat, KEYSTORE_RECORDS, KeystoreStatus, PROTOCOL_VERSION, RUN_RECORDS, Request, Role,
    SigningKeys, USAGE_RECORDS, may_run_together,
};
use tokio::time::Instant;

use super::{Finding, Severity, free_space};
use crate::args::VERSION;
use crate::nats_safety::MAKE_SAFE;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// In this time every process that runs sends a heartbeat.
const LISTEN_TIME: Duration = InstanceHeartbeat::INTERVAL.saturating_add(Duration::from_millis(500));
/// Limits, windows and webhook signatures depend on the clocks.
const MAX_SKEW_SECONDS: f64 = 2.0;
const MAX_PAYLOAD: usize = 8 << 20;
/// A record that only audit-export may read.
const FOREIGN_RECORD: &str = "cursor.doctor";
const GET_RIGHTS: &str =
    "give the server the output of `stage0 nats-config`, and the role its login and --nats-jetstream-api";

#[derive(Deserialize)]
struct Varz {
    now: Timestamp,
}

pub(super) async fn check(role: Role, config: &NatsConfig, open_allowed: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for monitor in &config.sync.monitors {
        findings.extend(ask_monitor(monitor).await);
    }
    if config.login.is_none() {
        let found = "this role has no login, so the server cannot tell it from others";
        findings.push(Finding::warn("login", found, GET_RIGHTS));
    }
    findings.extend(exposure_findings(config, open_allowed).await);
    findings.push(keys(config));
    let needs_monitor = matches!(role, Role::Gateway | Role::AuditExport);
    if config.sync.monitors.is_empty() && needs_monitor {
        let found = "it is unknown whether the server syncs each message";
        findings.push(Finding::warn("nats sync", found, "give --nats-monitor http://host:8222"));
    }
    if !needs_monitor {
        let found = "not compared, and the server's sync and disk not examined: this role has no monitor";
        findings.push(Finding::skipped("clock", found, "run `stage0 doctor gateway` with --nats-monitor"));
    }
    if config.sync.dangerous_relaxed {
        let found = "relaxed sync is allowed: a power cut may lose decisions that were answered";
        findings.push(Finding::warn("nats sync", found, "remove dangerous-relaxed-sync"));
    }
    let config = NatsConfig { connect_timeout: Some(CONNECT_TIMEOUT), ..config.clone() };
    match Connection::open(&config).await {
        Err(error) => {
            let why = format!("{:#}", anyhow::Error::from(error));
            let advice =
                "check that it runs, and that address, user, password and certificates match its configuration";
            findings.push(Finding::error("nats", why, advice));
        }
        Ok(connection) => {
            findings.push(server(&connection));
            findings.push(streams(role, &connection).await);
            findings.push(release(role, &connection).await);
            let backplane = connection.backplane();
            findings.extend(rights(role, &backplane).await);
            backplane.requests.close().await;
        }
    }
    findings
}

async fn exposure_findings(config: &NatsConfig, open_allowed: bool) -> Vec<Finding> {
    match exposure(config).await {
        Ok(found) => found.iter().map(|found| exposure_finding(found, open_allowed)).collect(),
        Err(error) => vec![Finding::error("exposure", error.to_string(), "correct the setting")],
    }
}

fn exposure_finding(found: &Exposure, open_allowed: bool) -> Finding {
    let server = &found.server;
    match (found.fault(), found.unknown()) {
        (Some(fault), _) if found.is_loopback || open_allowed => {
            let found = format!("{server} {fault}: any client that reaches it can read all messages");
            Finding::warn("exposure", found, MAKE_SAFE)
        }
        (Some(fault), _) => {
            Finding::error("exposure", format!("{server} {fault}: this role does not start with it"), MAKE_SAFE)
        }
        (None, Some(why)) => Finding::warn("exposure", format!("{server}: {why}"), "check that it runs, and try again"),
        (None, None) => Finding::ok("exposure", format!("{server} requires credentials and TLS")),
    }
}

fn keys(config: &NatsConfig) -> Finding {
    let create = "stage0 nats-keys create --dir DIR, and give each role its file: docs/nats-security.md";
    match &config.auth {
        None => Finding::warn("keys", "messages are not authenticated: any client of NATS can act as any role", create),
        Some(auth) if auth.is_required() => Finding::ok("keys", "messages are authenticated; others are refused"),
        Some(_) => Finding::ok("keys", "messages are authenticated; others are refused once every role has keys"),
    }
}

fn server(connection: &Connection) -> Finding {
    let server = connection.server();
    let found = format!("{} {}, messages up to {} bytes", server.name, server.version, server.max_payload);
    if server.max_payload < MAX_PAYLOAD {
        return Finding::warn("nats", found, "raise its max_payload to 8MB, or large checks are refused");
    }
    Finding::ok("nats", found)
}

async fn ask_monitor(monitor: &str) -> Vec<Finding> {
    let unusable = |why: String| {
        let advice = "check that the server has `http:` there and that this role can reach it";
        vec![Finding::error("nats monitor", format!("its monitor at {monitor} {why}"), advice)]
    };
    let Ok(client) = Client::builder().no_proxy().timeout(ANSWER_TIMEOUT).build() else {
        return unusable("cannot be reached: no HTTP client".to_owned());
    };
    let before = Timestamp::now();
    let server_time = match time(&client, monitor).await {
        Ok(time) => time,
        Err(why) => return unusable(why),
    };
    let after = Timestamp::now();
    match JetStreamState::fetch(&client, monitor).await {
        Ok(state) => vec![clock(server_time, before, after), sync(monitor, &state), storage(monitor, &state)],
        Err(why) => unusable(why),
    }
}

async fn time(client: &Client, monitor: &str) -> Result<Timestamp, String> {
    let url = format!("{}/varz", monitor.trim_end_matches('/'));
    let unanswered = |error: reqwest::Error| format!("does not answer: {}", error.without_url());
    let bytes = client.get(url).send().await.map_err(unanswered)?.bytes().await.map_err(unanswered)?;
    let varz = serde_json::from_slice::<Varz>(&bytes).map_err(|_| "is not a NATS monitor".to_owned())?;
    Ok(varz.now)
}

/// The server's clock was read at some time between `before` and `after`.
fn clock(server_time: Timestamp, before: Timestamp, after: Timestamp) -> Finding {
    let behind = before.duration_since(server_time).as_secs_f64();
    let ahead = server_time.duration_since(after).as_secs_f64();
    let skew = behind.max(ahead).max(0.0);
    let found = format!("{skew:.1} s from the server's");
    if skew > MAX_SKEW_SECONDS {
        let advice = "synchronise both by NTP: limits, windows and webhook signatures depend on it";
        return Finding::error("clock", found, advice);
    }
    Finding::ok("clock", found)
}

fn sync(monitor: &str, state: &JetStreamState) -> Finding {
    if !state.enabled {
        let found = format!("JetStream is off at {monitor}");
        return Finding::error("nats sync", found, "turn it on, with `sync_interval: always`");
    }
    if state.sync_always {
        return Finding::ok("nats sync", "each message is synced to disk before it is acknowledged");
    }
    let found = format!("{monitor} does not sync each message: a power cut loses decisions that were answered");
    let advice = "set `sync_interval: always` in its `jetstream` block (nats-server 2.15 or newer)";
    Finding::error("nats sync", found, advice)
}

fn storage(monitor: &str, state: &JetStreamState) -> Finding {
    let subject = format!("JetStream at {monitor} by its `max_file`");
    let Some(max) = state.max_bytes else {
        return Finding::warn("nats disk", format!("{subject}: its limit is unknown"), "check its disk");
    };
    if state.is_full() {
        let found = format!("{subject}: no room is left for the largest batch");
        return Finding::error("nats disk", found, "raise `max_file`, or let decisions expire: checks end with 503");
    }
    free_space("nats disk", &subject, max.saturating_sub(state.used_bytes), max)
}

async fn rights(role: Role, backplane: &Backplane) -> Vec<Finding> {
    let mut findings = vec![messages(backplane).await];
    match role {
        Role::Gateway => {
            findings.push(reachable("evaluator", backplane, &EvaluatorStatus {}).await);
            findings.push(reachable("keystore", backplane, &KeystoreStatus {}).await);
            findings.push(log(backplane).await);
            findings.extend(state_store(backplane, USAGE_RECORDS).await);
            findings.push(store_clock(backplane).await);
            let heard = heard(backplane).await;
            findings.push(log_editions(&heard));
            findings.push(protocols(&heard));
        }
        Role::Evaluator => {
            findings.extend(state_store(backplane, RUN_RECORDS).await);
            findings.push(store_clock(backplane).await);
        }
        Role::Keystore => {
            findings.extend(state_store(backplane, KEYSTORE_RECORDS).await);
            findings.push(lease(backplane).await);
        }
        Role::AuditExport => {
            findings.push(reachable("keystore", backplane, &SigningKeys::default()).await);
            findings.push(log(backplane).await);
        }
    }
    findings
}

/// One heartbeat, or more, of each process that runs.
async fn heard(backplane: &Backplane) -> Vec<InstanceHeartbeat> {
    let listen = |role| async move {
        let mut heard = Vec::new();
        let Ok(mut events) = backplane.notices.subscribe_bytes(InstanceHeartbeat::subject(role)).await else {
            return heard;
        };
        let deadline = Instant::now() + LISTEN_TIME;
        while let Ok(Some(event)) = tokio::time::timeout_at(deadline, events.next()).await {
            let Event::Message(bytes) = event else { continue };
            heard.extend(serde_json::from_slice::<InstanceHeartbeat>(&bytes).ok().filter(InstanceHeartbeat::is_small));
        }
        heard
    };
    let (gateways, evaluators, keystores, exporters) =
        tokio::join!(listen(Role::Gateway), listen(Role::Evaluator), listen(Role::Keystore), listen(Role::AuditExport));
    [gateways, evaluators, keystores, exporters].concat()
}

/// Approvals are opened only while every process can read their lines of the log.
fn log_editions(heard: &[InstanceHeartbeat]) -> Finding {
    if heard.is_empty() {
        return Finding::skipped("approvals", "no process was heard", "start the roles, and try again");
    }
    let old = heard.iter().filter(|one| one.log_edition < InstanceHeartbeat::LOG_EDITION);
    let old: BTreeSet<String> = old.map(|one| format!("{} {} ({})", one.role, one.instance, one.version)).collect();
    if old.is_empty() {
        return Finding::ok("approvals", "every process can read their lines of the log");
    }
    let names = old.into_iter().collect::<Vec<_>>().join(", ");
    Finding::warn("approvals", format!("none is opened while these cannot read their lines: {names}"), "upgrade them")
}

/// Processes of releases that are too far apart must not run side by side.
fn protocols(heard: &[InstanceHeartbeat]) -> Finding {
    if heard.is_empty() {
        return Finding::skipped("versions", "no process was heard", "start the roles, and try again");
    }
    let far = heard.iter().filter(|one| !may_run_together(one.protocol_version, PROTOCOL_VERSION));
    let name = |one: &InstanceHeartbeat| {
        format!("{} {} ({}, protocol {})", one.role, one.instance, one.version, one.protocol_version)
    };
    let far: BTreeSet<String> = far.map(name).collect();
    if far.is_empty() {
        return Finding::ok("versions", format!("every process may run beside this one (protocol {PROTOCOL_VERSION})"));
    }
    let names = far.into_iter().collect::<Vec<_>>().join(", ");
    let found = format!("these must not run beside this one, which speaks protocol {PROTOCOL_VERSION}: {names}");
    Finding::error("versions", found, "replace them: docs/OPERATIONS.md, \"Versions side by side\"")
}

/// Whether this version may start as the role, by what has run in this deployment.
async fn release(role: Role, connection: &Connection) -> Finding {
    let own = Release { protocol_version: PROTOCOL_VERSION, version: VERSION.to_owned() };
    let newest = match connection.newest_release(role).await {
        Ok(newest) => newest,
        Err(error) => {
            let why = format!("{:#}", anyhow::Error::from(error));
            return Finding::error("version", why, GET_RIGHTS);
        }
    };
    let Some(newest) = newest else {
        return Finding::ok("version", format!("{own}: it is the first {role} that is recorded here"));
    };
    match own.may_follow(&newest, role) {
        Ok(()) => Finding::ok("version", format!("{own}: the newest that has run here is {newest}")),
        Err(error) => Finding::error("version", error.to_string(), "install the right version"),
    }
}

/// Compares this host's clock with that of the server that leads the state store's stream.
async fn store_clock(backplane: &Backplane) -> Finding {
    let state_store = &backplane.state_store;
    match state_store.read_clock(Duration::ZERO, Instant::now() + ANSWER_TIMEOUT).await {
        Ok(()) => match state_store.clock().remark() {
            None => Finding::ok("store clock", "this host's agrees with it"),
            Some(remark) => Finding::warn("store clock", remark, "synchronise both clocks by NTP"),
        },
        Err(ClockError::Unknown) => {
            let advice = "this role lacks a right: update the server with `stage0 nats-config`";
            Finding::error("store clock", "it cannot be read", advice)
        }
        Err(error) => Finding::error(
            "store clock",
            format!("{error}: no check is decided"),
            "synchronise this host's clock by NTP",
        ),
    }
}

async fn state_store(backplane: &Backplane, word: &str) -> [Finding; 2] {
    let own = records(backplane, word).await;
    let confined = confined(backplane, own.severity == Severity::Ok).await;
    [own, confined]
}

async fn lease(backplane: &Backplane) -> Finding {
    match stage0_keystore::lease_holder(&backplane.state_store).await {
        Ok(Some(holder)) => Finding::ok("lease", format!("{holder}; other keystores are on standby")),
        Ok(None) => Finding::ok("lease", "free: the next keystore that starts serves"),
        Err(error) => Finding::error("lease", error, GET_RIGHTS),
    }
}

async fn messages(backplane: &Backplane) -> Finding {
    match backplane.requests.ready().await {
        Ok(()) => Finding::ok("messages", "are carried"),
        Err(error) => Finding::error("messages", error.to_string(), GET_RIGHTS),
    }
}

async fn reachable(service: &'static str, backplane: &Backplane, request: &impl Request) -> Finding {
    match backplane.requests.request(request, ANSWER_TIMEOUT).await {
        Ok(_) => Finding::ok(service, "answers"),
        Err(error) => Finding::error(service, error.to_string(), format!("start one, or: {GET_RIGHTS}")),
    }
}

async fn log(backplane: &Backplane) -> Finding {
    match backplane.log.ready().await {
        Ok(remarks) if remarks.is_empty() => Finding::ok("log", "exists and can be read"),
        Ok(remarks) => Finding::warn("log", remarks.join("; "), "see docs/audit.md about the settings of the log"),
        Err(error) => {
            Finding::error("log", error.to_string(), "correct it; `stage0 nats-admin` creates and corrects streams")
        }
    }
}

async fn records(backplane: &Backplane, word: &str) -> Finding {
    match backplane.state_store.get(&format!("{word}.doctor"), Instant::now() + ANSWER_TIMEOUT).await {
        Ok(_) => Finding::ok("ledger", "its own records can be read"),
        Err(error) => Finding::error(
            "ledger",
            format!("{error}: {}", error.0),
            format!("run `stage0 nats-admin init`, or: {GET_RIGHTS}"),
        ),
    }
}

async fn streams(role: Role, connection: &Connection) -> Finding {
    match connection.check_streams(role).await {
        Ok(remarks) if remarks.is_empty() => Finding::ok("streams", "exist with the right settings"),
        Ok(remarks) => Finding::warn("streams", remarks.join("; "), "see docs/nats-security.md about streams"),
        Err(error) => {
            let advice = format!("run `stage0 nats-admin check` with the administrator's login, or: {GET_RIGHTS}");
            Finding::error("streams", error.to_string(), advice)
        }
    }
}

/// Whether the role is kept from other roles' records. A server without accounts lets every client read everything. A
/// refusal proves something only if the role's own records can be read.
async fn confined(backplane: &Backplane, own_records: bool) -> Finding {
    match backplane.state_store.get(FOREIGN_RECORD, Instant::now() + ANSWER_TIMEOUT).await {
        Err(_) if own_records => Finding::ok("rights", "other roles' records are out of reach"),
        Err(_) => Finding::warn("rights", "not checked: the role's own records cannot be read", GET_RIGHTS),
        Ok(_) => {
            let found = "this role can read other roles' records, and so can an attacker who takes it over";
            Finding::warn("rights", found, GET_RIGHTS)
        }
    }
}

#[cfg(test)]
mod tests {
    use stage0_backplane::nats::Enforced;

    use super::*;

    #[test]
    fn a_clock_is_ok_within_two_seconds_of_the_request() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(clock(at(100), at(99), at(101)).severity, Severity::Ok);
        assert_eq!(clock(at(98), at(100), at(100)).severity, Severity::Ok);
        assert_eq!(clock(at(97), at(100), at(100)).severity, Severity::Error);
        assert_eq!(clock(at(103), at(100), at(100)).severity, Severity::Error);
    }

    #[test]
    fn an_open_server_is_an_error_on_another_machine_and_a_warning_on_this_one() {
        let found = |is_loopback, login| Exposure { server: "n:1".to_owned(), is_loopback, login, tls: Enforced::Yes };
        assert_eq!(exposure_finding(&found(false, Enforced::No), false).severity, Severity::Error);
        assert_eq!(exposure_finding(&found(false, Enforced::No), true).severity, Severity::Warn);
        assert_eq!(exposure_finding(&found(true, Enforced::No), false).severity, Severity::Warn);
        assert_eq!(exposure_finding(&found(false, Enforced::Unknown("x".to_owned())), false).severity, Severity::Warn);
        assert_eq!(exposure_finding(&found(false, Enforced::Yes), false).severity, Severity::Ok);
    }

    #[test]
    fn a_full_store_is_an_error_and_a_nearly_full_one_a_warning() {
        let severity = |taken: u64, most: u64| {
            let jsz = format!(r#"{{"storage":{taken},"config":{{"max_storage":{most}}}}}"#);
            storage("m", &serde_json::from_str(&jsz).unwrap()).severity
        };
        assert_eq!(severity(0, 20 << 30), Severity::Ok);
        assert_eq!(severity((20 << 30) - (100 << 20), 20 << 30), Severity::Warn);
        assert_eq!(severity((20 << 30) - (4 << 20) + 1, 20 << 30), Severity::Error);
    }

    #[test]
    fn a_server_that_does_not_sync_each_message_is_an_error() {
        let jsz = |text: &str| sync("m", &serde_json::from_str(text).unwrap()).severity;
        assert_eq!(jsz(r#"{"config":{"sync_always":true}}"#), Severity::Ok);
        assert_eq!(jsz(r#"{"config":{"sync_interval":120}}"#), Severity::Error);
        assert_eq!(jsz(r#"{"disabled":true,"config":{}}"#), Severity::Error);
    }

    #[test]
    fn a_process_that_cannot_read_lines_about_approvals_is_a_warning_and_one_of_a_distant_protocol_an_error() {
        let heartbeat = |name: &str, log_edition| InstanceHeartbeat {
            role: Role::AuditExport,
            instance: name.to_owned(),
            version: "0.1.0".to_owned(),
            started_at: Timestamp::UNIX_EPOCH,
            state: stage0_contract::InstanceState::Ready,
            remarks: Vec::new(),
            policy_version: None,
            delivery: None,
            log_edition,
            policy_edition: 0,
            policies: Vec::new(),
            protocol_version: PROTOCOL_VERSION,
        };
        assert_eq!(log_editions(&[]).severity, Severity::Skipped);
        let new = heartbeat("new", InstanceHeartbeat::LOG_EDITION);
        assert_eq!(log_editions(std::slice::from_ref(&new)).severity, Severity::Ok);
        let found = log_editions(&[new, heartbeat("old", 0), heartbeat("old", 0)]);
        assert_eq!(found.severity, Severity::Warn);
        assert!(found.found.ends_with("lines: audit-export old (0.1.0)"), "{}", found.found);

        assert_eq!(protocols(&[]).severity, Severity::Skipped);
        let speaks = |protocol_version| InstanceHeartbeat { protocol_version, ..heartbeat("one", 1) };
        assert_eq!(protocols(&[speaks(PROTOCOL_VERSION + 1)]).severity, Severity::Ok);
        let found = protocols(&[speaks(PROTOCOL_VERSION + 2)]);
        assert_eq!(found.severity, Severity::Error);
        assert!(found.found.ends_with("audit-export one (0.1.0, protocol 3)"), "{}", found.found);
    }
}
