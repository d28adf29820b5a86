//! NATS: whether it is reached as the role reaches it, its version and sync setting, its clock, its disk, and the role's rights there.
//!
//! The monitor (`nats-monitor`) tells sync setting, clock and disk; where the role has none, that is said. Rights are tried with questions
//! that change nothing, those that the role needs and one that it must not have.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::Client;
use serde::Deserialize;
use stage0_backplane::nats::{Connection, Exposure, JetStreamState, NatsConfig, exposure};
use stage0_backplane::{Backplane, ClockError};
use stage0_contract::{
    EvaluatorStatus, KEYSTORE_RECORDS, KeystoreStatus, RUN_RECORDS, Role, SigningKeys, USAGE_RECORDS,
};
use tokio::time::Instant;

use super::{Finding, How, room};
use crate::nats_safety::MAKE_SAFE;

const CONNECT_WITHIN: Duration = Duration::from_secs(4);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Gateways' clocks and the store's must agree within a few seconds.
const MOST_SKEW_SECONDS: f64 = 2.0;
const MAX_PAYLOAD: usize = 8 << 20;
/// Records that audit-export alone may read.
const NOT_OURS: &str = "cursor.doctor";
const GET_RIGHTS: &str =
    "give the server what `stage0 nats-config` prints, and the role the user of its name with --nats-jetstream-api";

/// What the server's monitor says of itself.
#[derive(Deserialize)]
struct Varz {
    now: Timestamp,
}

pub(super) async fn look(role: Role, config: &NatsConfig, open_allowed: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for monitor in &config.sync.monitors {
        findings.extend(ask_monitor(monitor).await);
    }
    if config.login.is_none() {
        findings.push(Finding::doubtful(
            "login",
            "this role logs in as nobody: the server tells it from no other",
            GET_RIGHTS,
        ));
    }
    findings.extend(exposed(config, open_allowed).await);
    findings.push(keys(config));
    let needs_monitor = matches!(role, Role::Gateway | Role::AuditExport);
    if config.sync.monitors.is_empty() && needs_monitor {
        findings.push(Finding::doubtful(
            "nats sync",
            "nobody knows whether the server syncs each message",
            "give --nats-monitor http://host:8222",
        ));
    }
    if !needs_monitor {
        findings.push(Finding::good(
            "clock",
            "not compared, nor the server's sync and disk looked at: this role has no monitor; doctor gateway does it",
        ));
    }
    if config.sync.dangerous_relaxed {
        findings.push(Finding::doubtful(
            "nats sync",
            "relaxed sync was asked for: a power cut may lose decisions that were answered",
            "remove dangerous-relaxed-sync",
        ));
    }
    let config = NatsConfig { connect_within: CONNECT_WITHIN, ..config.clone() };
    match Connection::open(&config).await {
        Err(error) => {
            let why = format!("{:#}", anyhow::Error::from(error));
            let advice =
                "see that it runs and that address, user, password and certificates are those of its configuration";
            findings.push(Finding::bad("nats", why, advice));
        }
        Ok(connection) => {
            findings.push(server(&connection));
            findings.push(streams(role, &connection).await);
            let backplane = connection.backplane();
            findings.extend(rights(role, &backplane).await);
            backplane.requests.close().await;
        }
    }
    findings
}

/// Whether anybody may use the servers.
async fn exposed(config: &NatsConfig, open_allowed: bool) -> Vec<Finding> {
    match exposure(config).await {
        Ok(found) => found.iter().map(|found| judged(found, open_allowed)).collect(),
        Err(error) => vec![Finding::bad("exposure", error.to_string(), "correct the setting")],
    }
}

fn judged(found: &Exposure, open_allowed: bool) -> Finding {
    const ABOUT: &str = "exposure";
    let server = &found.server;
    match (found.fault(), found.unknown()) {
        (Some(fault), _) if found.is_loopback || open_allowed => {
            Finding::doubtful(ABOUT, format!("{server} {fault}: whoever reaches it hears all"), MAKE_SAFE)
        }
        (Some(fault), _) => {
            Finding::bad(ABOUT, format!("{server} {fault}: this role does not start with it"), MAKE_SAFE)
        }
        (None, Some(why)) => Finding::doubtful(ABOUT, format!("{server}: {why}"), "see that it runs, and look again"),
        (None, None) => Finding::good(ABOUT, format!("{server} takes nobody without credentials, and TLS")),
    }
}

fn keys(config: &NatsConfig) -> Finding {
    const ABOUT: &str = "keys";
    let create = "stage0 nats-keys create --dir DIR, and give each role its file: docs/nats-security.md";
    match &config.auth {
        None => Finding::doubtful(
            ABOUT,
            "messages are not authenticated: whoever may use NATS can speak for other roles",
            create,
        ),
        Some(auth) if auth.is_required() => Finding::good(ABOUT, "messages are authenticated, and others refused"),
        Some(_) => Finding::good(ABOUT, "messages are authenticated; others are refused once every role has keys"),
    }
}

fn server(connection: &Connection) -> Finding {
    let server = connection.server();
    let found = format!("{} {}, messages up to {} bytes", server.name, server.version, server.max_payload);
    if server.max_payload < MAX_PAYLOAD {
        return Finding::doubtful("nats", found, "raise its max_payload to 8MB: large checks are refused");
    }
    Finding::good("nats", found)
}

async fn ask_monitor(monitor: &str) -> Vec<Finding> {
    let unusable = |why: String| {
        let found = format!("its monitor at {monitor} {why}");
        vec![Finding::bad("nats monitor", found, "see that the server has `http:` there and that this role reaches it")]
    };
    let Ok(client) = Client::builder().no_proxy().timeout(ANSWER_WITHIN).build() else {
        return unusable("cannot be asked".to_owned());
    };
    let asked = Timestamp::now();
    let theirs = match time(&client, monitor).await {
        Ok(theirs) => theirs,
        Err(why) => return unusable(why),
    };
    let answered = Timestamp::now();
    match JetStreamState::ask(&client, monitor).await {
        Ok(said) => vec![clock(theirs, asked, answered), sync(monitor, &said), storage(monitor, &said)],
        Err(why) => unusable(why),
    }
}

/// The server's.
async fn time(client: &Client, monitor: &str) -> Result<Timestamp, String> {
    let url = format!("{}/varz", monitor.trim_end_matches('/'));
    let unanswered = |error: reqwest::Error| format!("does not answer: {}", error.without_url());
    let bytes = client.get(url).send().await.map_err(unanswered)?.bytes().await.map_err(unanswered)?;
    let varz = serde_json::from_slice::<Varz>(&bytes).map_err(|_| "is no monitor of nats".to_owned())?;
    Ok(varz.now)
}

/// The server's clock was read between the two.
fn clock(theirs: Timestamp, asked: Timestamp, answered: Timestamp) -> Finding {
    let behind = asked.duration_since(theirs).as_secs_f64();
    let ahead = theirs.duration_since(answered).as_secs_f64();
    let skew = behind.max(ahead).max(0.0);
    let found = format!("{skew:.1} s from the server's");
    if skew > MOST_SKEW_SECONDS {
        return Finding::bad("clock", found, "let NTP set both: limits, windows and webhook signatures go by it");
    }
    Finding::good("clock", found)
}

fn sync(monitor: &str, said: &JetStreamState) -> Finding {
    if !said.enabled {
        return Finding::bad(
            "nats sync",
            format!("JetStream is off at {monitor}"),
            "turn it on, with `sync_interval: always`",
        );
    }
    if said.sync_always {
        return Finding::good("nats sync", "each message is synced to disk before it is acknowledged");
    }
    let found = format!("{monitor} does not sync each message: a power cut loses decisions that were answered");
    Finding::bad("nats sync", found, "set `sync_interval: always` in its `jetstream` block (nats-server 2.15 or newer)")
}

fn storage(monitor: &str, said: &JetStreamState) -> Finding {
    let place = format!("JetStream at {monitor} by its `max_file`");
    let Some(most) = said.most else {
        return Finding::doubtful(
            "nats disk",
            format!("{place}: it does not say how much it may take"),
            "look at its disk",
        );
    };
    if said.is_full() {
        let found = format!("{place}: no room is left for the largest batch");
        return Finding::bad("nats disk", found, "raise `max_file`, or let decisions expire: checks end with 503");
    }
    room("nats disk", &place, most.saturating_sub(said.taken), most)
}

async fn rights(role: Role, backplane: &Backplane) -> Vec<Finding> {
    let mut findings = vec![carries(backplane).await];
    match role {
        Role::Gateway => {
            findings.push(asked("evaluator", backplane.requests.ask(&EvaluatorStatus {}, ANSWER_WITHIN).await.err()));
            findings.push(asked("keystore", backplane.requests.ask(&KeystoreStatus {}, ANSWER_WITHIN).await.err()));
            findings.push(log(backplane).await);
            findings.extend(ledger(backplane, USAGE_RECORDS).await);
            findings.push(store_clock(backplane).await);
        }
        Role::Evaluator => {
            findings.extend(ledger(backplane, RUN_RECORDS).await);
            findings.push(store_clock(backplane).await);
        }
        Role::Keystore => {
            findings.extend(ledger(backplane, KEYSTORE_RECORDS).await);
            findings.push(lease(backplane).await);
        }
        Role::AuditExport => {
            findings
                .push(asked("keystore", backplane.requests.ask(&SigningKeys::default(), ANSWER_WITHIN).await.err()));
            findings.push(log(backplane).await);
        }
    }
    findings
}

/// This host's clock by that of the server that leads the ledger's stream.
async fn store_clock(backplane: &Backplane) -> Finding {
    const ABOUT: &str = "store clock";
    let ledger = &backplane.ledger;
    match ledger.read_clock(Duration::ZERO, Instant::now() + ANSWER_WITHIN).await {
        Ok(()) => match ledger.clock().remark() {
            None => Finding::good(ABOUT, "this host's agrees with it"),
            Some(remark) => Finding::doubtful(ABOUT, remark, "let NTP set both clocks"),
        },
        Err(ClockError::Unknown) => {
            Finding::bad(ABOUT, "it cannot be read", "give this role its rights anew: `stage0 nats-config`")
        }
        Err(error) => Finding::bad(ABOUT, format!("{error}: no check is decided"), "set this host's clock, by NTP"),
    }
}

/// The role's own records, and one of another's.
async fn ledger(backplane: &Backplane, word: &str) -> [Finding; 2] {
    let own = records(backplane, word).await;
    let confined = confined(backplane, own.how == How::Good).await;
    [own, confined]
}

/// Who serves: a second keystore stands by.
async fn lease(backplane: &Backplane) -> Finding {
    match stage0_keystore::lease_holder(&backplane.ledger).await {
        Ok(Some(holder)) => Finding::good("lease", format!("{holder}; another keystore stands by until it ends")),
        Ok(None) => Finding::good("lease", "free: the next keystore that starts serves"),
        Err(error) => Finding::bad("lease", error, GET_RIGHTS),
    }
}

async fn carries(backplane: &Backplane) -> Finding {
    match backplane.requests.ready().await {
        Ok(()) => Finding::good("messages", "come back"),
        Err(error) => Finding::bad("messages", error.to_string(), GET_RIGHTS),
    }
}

fn asked(whom: &'static str, error: Option<stage0_backplane::AskError>) -> Finding {
    match error {
        None => Finding::good(whom, "answers"),
        Some(error) => Finding::bad(whom, error.to_string(), format!("start one, or: {GET_RIGHTS}")),
    }
}

async fn log(backplane: &Backplane) -> Finding {
    match backplane.log.ready().await {
        Ok(remarks) if remarks.is_empty() => Finding::good("log", "is there and can be read"),
        Ok(remarks) => Finding::doubtful("log", remarks.join("; "), "read docs/audit.md on the log's settings"),
        Err(error) => Finding::bad(
            "log",
            error.to_string(),
            "mend what it says; streams are made and set right by `stage0 nats-admin`",
        ),
    }
}

async fn records(backplane: &Backplane, word: &str) -> Finding {
    match backplane.ledger.get(&format!("{word}.doctor"), Instant::now() + ANSWER_WITHIN).await {
        Ok(_) => Finding::good("ledger", "its own records can be read"),
        Err(error) => {
            Finding::bad("ledger", error.to_string(), format!("run `stage0 nats-admin init`, or: {GET_RIGHTS}"))
        }
    }
}

/// Whether the role's streams are there and what they have to be.
async fn streams(role: Role, connection: &Connection) -> Finding {
    match connection.check_streams(role).await {
        Ok(remarks) if remarks.is_empty() => Finding::good("streams", "are as they have to be"),
        Ok(remarks) => Finding::doubtful("streams", remarks.join("; "), "see docs/nats-security.md on the streams"),
        Err(error) => Finding::bad(
            "streams",
            error.to_string(),
            format!("run `stage0 nats-admin check` with the administrator's login, or: {GET_RIGHTS}"),
        ),
    }
}

/// A server without accounts lets everybody read everything, also whoever takes this role over. That a foreign record cannot be read says
/// something only where the role's own can.
async fn confined(backplane: &Backplane, own_records: bool) -> Finding {
    match backplane.ledger.get(NOT_OURS, Instant::now() + ANSWER_WITHIN).await {
        Err(_) if own_records => Finding::good("rights", "other roles' records are out of reach"),
        Err(_) => Finding::doubtful("rights", "could not be tried: the role's own records cannot be read", GET_RIGHTS),
        Ok(_) => {
            let found = "this role can read other roles' records: whoever takes it over has all of them";
            Finding::doubtful("rights", found, GET_RIGHTS)
        }
    }
}

#[cfg(test)]
mod tests {
    use stage0_backplane::nats::Asked;

    use super::*;

    #[test]
    fn a_clock_is_good_within_two_seconds_of_when_the_server_was_asked() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(clock(at(100), at(99), at(101)).how, How::Good);
        assert_eq!(clock(at(98), at(100), at(100)).how, How::Good);
        assert_eq!(clock(at(97), at(100), at(100)).how, How::Bad);
        assert_eq!(clock(at(103), at(100), at(100)).how, How::Bad);
    }

    #[test]
    fn a_server_that_anybody_may_use_is_bad_off_this_machine_and_told_on_it() {
        let found = |is_loopback, login| Exposure { server: "n:1".to_owned(), is_loopback, login, tls: Asked::Yes };
        assert_eq!(judged(&found(false, Asked::No), false).how, How::Bad);
        assert_eq!(judged(&found(false, Asked::No), true).how, How::Doubtful);
        assert_eq!(judged(&found(true, Asked::No), false).how, How::Doubtful);
        assert_eq!(judged(&found(false, Asked::Unknown("x".to_owned())), false).how, How::Doubtful);
        assert_eq!(judged(&found(false, Asked::Yes), false).how, How::Good);
    }

    #[test]
    fn a_store_without_room_for_a_batch_is_bad_and_a_nearly_full_one_is_told() {
        let how = |taken: u64, most: u64| {
            let jsz = format!(r#"{{"storage":{taken},"config":{{"max_storage":{most}}}}}"#);
            storage("m", &serde_json::from_str(&jsz).unwrap()).how
        };
        assert_eq!(how(0, 20 << 30), How::Good);
        assert_eq!(how((20 << 30) - (100 << 20), 20 << 30), How::Doubtful);
        assert_eq!(how((20 << 30) - (4 << 20) + 1, 20 << 30), How::Bad);
    }

    #[test]
    fn a_server_that_syncs_rarely_or_not_at_all_is_bad() {
        let jsz = |text: &str| sync("m", &serde_json::from_str(text).unwrap()).how;
        assert_eq!(jsz(r#"{"config":{"sync_always":true}}"#), How::Good);
        assert_eq!(jsz(r#"{"config":{"sync_interval":120}}"#), How::Bad);
        assert_eq!(jsz(r#"{"disabled":true,"config":{}}"#), How::Bad);
    }
}
