//! Every setting, declared once: name, help, default, whether it is a secret, and who uses it.
//!
//! Owns names and defaults. Flags, variables, file keys and `docs/CONFIGURATION.md` are derived from here; how a value is read
//! stands beside its use in `roles.rs`. A default here is text and is parsed like any other value.

use super::Absent::{Default, Optional, Required};
use super::Places::{All, NotInFile, VariableOnly};
use super::Role::{AuditExport, Client, Dev, Evaluator, Gateway, Health, Keystore, NatsAdmin, Receiver};
use super::{Absent, Role, Setting};

/// The roles that speak NATS, and who makes their streams there, with the same answer for each.
const fn on_nats(absent: Absent) -> [(Role, Absent); 5] {
    [(Gateway, absent), (Evaluator, absent), (Keystore, absent), (AuditExport, absent), (NatsAdmin, absent)]
}

const fn of_messages(absent: Absent) -> [(Role, Absent); 4] {
    [(Gateway, absent), (Evaluator, absent), (Keystore, absent), (AuditExport, absent)]
}

macro_rules! settings {
    ($($(#[$attribute:meta])* $constant:ident = $name:literal $value:literal in $group:literal, $help:literal, $secret:ident, $places:ident, $uses:expr;)*) => {
        $(
            $(#[$attribute])*
            pub(crate) static $constant: Setting = Setting {
                name: $name,
                value: $value,
                help: $help,
                group: $group,
                secret: $secret,
                places: $places,
                uses: $uses,
            };
        )*

        /// All of them, in the order of help and documentation.
        pub(crate) static SETTINGS: &[&Setting] = &[$(&$constant),*];
    };
}

const SECRET: bool = true;
const OPEN: bool = false;

settings! {
    CONFIG = "config" "FILE" in "Settings", "TOML file with settings; its keys are the names in this list", OPEN, NotInFile, &[
        (Dev, Optional), (Gateway, Optional), (Evaluator, Optional), (Keystore, Optional), (AuditExport, Optional), (Receiver, Optional), (Client, Optional)];

    LISTEN = "listen" "ADDR" in "Server", "Address to serve HTTPS on; port 0 takes a free one", OPEN, All, &[
        (Dev, Default("127.0.0.1:8443")), (Gateway, Default("0.0.0.0:8443")), (Receiver, Default("127.0.0.1:9443"))];
    BASE_PATH = "base-path" "PATH" in "Server", "Path before every route, such as `/stage0`, when a proxy does not strip it", OPEN, All, &[
        (Dev, Optional), (Gateway, Optional)];
    WORKERS = "workers" "N" in "Server", "Threads that serve requests; absent: one per core", OPEN, All, &[
        (Dev, Optional), (Gateway, Optional)];
    TRUSTED_PROXIES = "trusted-proxies" "LIST" in "Server", "Addresses and networks, separated by commas, of proxies whose `Forwarded` or `X-Forwarded-For` tells the client's address; from others both are ignored", OPEN, All, &[
        (Dev, Optional), (Gateway, Optional)];
    PROXY_PROTOCOL_FROM = "proxy-protocol-from" "LIST" in "Server", "Addresses and networks, separated by commas, of layer-4 balancers: each of their connections must begin with a PROXY protocol header of version 2, which tells the client's address; from others none is believed", OPEN, All, &[
        (Dev, Optional), (Gateway, Optional)];
    TLS_CERT = "tls-cert" "FILE" in "TLS", "PEM file: the server's certificate, then its chain; read again when it changes", OPEN, All, &[
        (Gateway, Optional), (Receiver, Required)];
    TLS_KEY = "tls-key" "FILE" in "TLS", "PEM file: the certificate's private key", OPEN, All, &[
        (Gateway, Optional), (Receiver, Required)];
    TLS_DEV_DIR = "tls-dev-dir" "DIR" in "TLS", "Instead of the two above: make a local CA (`ca.pem`) and a certificate for localhost here, once", OPEN, All, &[
        (Gateway, Optional)];

    REQUEST_BUDGET_MS = "request-budget-ms" "MS" in "Limits", "Time from a request to its answer, the arrival of its body not counted", OPEN, All, &[
        (Dev, Default("2000")), (Gateway, Default("2000"))];
    HEADER_TIMEOUT_MS = "header-timeout-ms" "MS" in "Limits", "Time in which a PROXY header, a TLS handshake, and a request's headers, must arrive", OPEN, All, &[
        (Dev, Default("5000")), (Gateway, Default("5000"))];
    BODY_TIMEOUT_MS = "body-timeout-ms" "MS" in "Limits", "Time in which a body must arrive", OPEN, All, &[
        (Dev, Default("10000")), (Gateway, Default("10000"))];
    KEEP_ALIVE_MS = "keep-alive-ms" "MS" in "Limits", "Time after which an idle connection is closed", OPEN, All, &[
        (Dev, Default("75000")), (Gateway, Default("75000"))];
    FAILED_LOGINS = "failed-logins-per-minute" "N" in "Limits", "Failed logins of one address, or with one key id, before keys that were not verified recently get 429", OPEN, All, &[
        (Dev, Default("50")), (Gateway, Default("50"))];
    REQUESTS_PER_SECOND = "requests-per-second-per-address" "N" in "Limits", "Requests a second of one address, whatever their keys, before more get 429; 0: no limit", OPEN, All, &[
        (Dev, Default("10000")), (Gateway, Default("10000"))];
    MANAGEMENT_CALLS = "management-calls-per-minute" "N" in "Limits", "Calls of the control API (accounts, keys, webhooks) with one key in a minute before more get 429; all keys of an account together have four times as many, revocations as many again; 0: no limit", OPEN, All, &[
        (Dev, Default("600")), (Gateway, Default("600"))];
    CONNECTIONS = "max-connections" "N" in "Limits", "Connections that the gateway holds at the same time before one more closes one that waits for its client; each may take some 80 KiB of memory, and no more are held than the limit on open files allows", OPEN, All, &[
        (Dev, Default("4000")), (Gateway, Default("4000"))];
    MAX_CONNECTIONS = "max-connections-per-worker" "N" in "Limits", "Connections that one worker holds at the same time before more wait to be accepted", OPEN, All, &[
        (Dev, Default("25000")), (Gateway, Default("25000"))];
    CONNECTIONS_PER_ADDRESS = "max-connections-per-address" "N" in "Limits", "Connections that one address holds at the same time before one more closes one of them that waits for its client; trusted proxies have no limit, nor balancers for themselves; 0: none has", OPEN, All, &[
        (Dev, Default("2000")), (Gateway, Default("2000"))];
    BYTES_IN_FLIGHT = "max-bytes-in-flight" "BYTES" in "Limits", "Bytes of request bodies that arrive, and of answers from the log that are not taken yet, before the gateway answers 503; an account or an address that holds a quarter of it gets 429, and whoever stalls is cut first. What is made of the bodies may take twice as much again", OPEN, All, &[
        (Dev, Default("67108864")), (Gateway, Default("67108864"))];
    READS_PER_SECOND = "reads-per-second-per-account" "N" in "Limits", "Reads of the log (lists, look-ups, downloads, verifications), and calls of `/v1/runs` and `/usage`, a second of one account before more get 429; 0: no limit", OPEN, All, &[
        (Dev, Default("200")), (Gateway, Default("200"))];

    QUOTAS_ON_FAILURE = "quotas-on-failure" "MODE" in "Limits", "What becomes of accounts with limits while their counters cannot be reached: `closed` refuses their checks (503), `open` lets them pass and counts them later", OPEN, All, &[
        (Dev, Default("closed")), (Gateway, Default("closed"))];
    PLANS = "plans" "FILE" in "Limits", "TOML file with what each plan allows, in the place of the built-in plans (keystore/plans.toml)", OPEN, All, &[
        (Dev, Optional), (Keystore, Optional)];

    DATA_DIR = "data-dir" "DIR" in "Data", "Directory of accounts and keys, held by one process at a time; clients find a dev server and keys in it", OPEN, All, &[
        (Dev, Default(".stage0")), (Keystore, Required), (Client, Default(".stage0"))];
    ACCEPT_NEW_LOG = "accept-new-log" "BOOL" in "Data", "For one start: goes on with the decision log that is there, though the data directory had another one", OPEN, NotInFile, &[
        (Dev, Default("false"))];
    OPERATOR_KEY_COPY = "operator-key-copy" "FILE" in "Data", "Where each start also puts the operator's first key, for whoever must not see the data directory", OPEN, All, &[
        (Keystore, Optional)];
    ACCEPT_RESTORE = "accept-restore" "BOOL" in "Data", "Starts once on a data directory that is older than what was acknowledged, such as a restored backup: every key that the state store does not list as live is revoked (docs/OPERATIONS.md)", OPEN, All, &[
        (Dev, Default("false")), (Keystore, Default("false"))];
    HASH_THREADS = "hash-threads" "N" in "Data", "Keys that are hashed at the same time, 19 MiB each; absent: one for every two cores", OPEN, All, &[
        (Dev, Optional), (Keystore, Optional)];
    HASH_QUEUE = "hash-queue" "N" in "Data", "Keys that may wait for a hash before more are told to come again", OPEN, All, &[
        (Dev, Default("64")), (Keystore, Default("64"))];

    SECRETS_KEY_FILE = "secrets-key-file" "FILE" in "Data", "File with the key that seals webhook secrets (64 hexadecimal digits); absent: `secrets.key` in the data directory, made once", OPEN, All, &[
        (Dev, Optional), (Keystore, Optional)];
    SECRETS_KEY = "secrets-key" "HEX" in "Data", "The same key itself, instead of a file", SECRET, VariableOnly, &[(Dev, Optional), (Keystore, Optional)];
    SIGNING_KEY_FILE = "signing-key-file" "FILE" in "Data", "File with the Ed25519 seed that signs checkpoints (64 hexadecimal digits); absent: `signing.key` in the data directory, made once", OPEN, All, &[
        (Dev, Optional), (Keystore, Optional)];

    AUDIT = "audit" "MODE" in "Audit", "`required`: no answer leaves before its record is on disk; `best-effort`: answers leave even when they cannot be recorded", OPEN, All, &[
        (Dev, Default("required")), (Gateway, Default("required"))];
    CHECKPOINT_SECONDS = "checkpoint-seconds" "N" in "Audit", "How often an account whose decisions grew gets a signed checkpoint", OPEN, All, &[
        (Dev, Default("10")), (AuditExport, Default("10"))];
    JETSTREAM_API = "nats-jetstream-api" "SUBJECT" in "Audit", "What JetStream's subjects start with, where the role's NATS account imports them under another name, as `stage0 nats-config` has it", OPEN, All, &[
        (Gateway, Default("$JS.API")), (Evaluator, Default("$JS.API")), (Keystore, Default("$JS.API")), (AuditExport, Default("$JS.API")), (NatsAdmin, Default("$JS.API"))];
    LOG_REPLICAS = "log-replicas" "N" in "Audit", "Copies of the streams in a NATS cluster: 1, 3 or 5; counts when they are made, by `stage0 nats-admin`, or on a server that takes everybody by the roles", OPEN, All, &[
        (Gateway, Default("1")), (AuditExport, Default("1")), (NatsAdmin, Default("1"))];
    STREAMS_MAX_STORE = "max-store" "SIZE" in "Audit", "What all streams together may take of the disk, such as 20GB; absent: what the server lets their account take", OPEN, All, &[
        (NatsAdmin, Optional)];
    STREAMS_MAX_RECORDS = "max-records" "N" in "Audit", "Runs, counters and repeated checks that are remembered at the same time, of each kind; some 200 bytes of the server's memory each", OPEN, All, &[
        (NatsAdmin, Default("1000000"))];
    NATS_MONITOR = "nats-monitor" "URL" in "Audit", "HTTP monitors of the NATS servers, separated by commas: proves at start and on every reconnect that each message is synced to disk", OPEN, All, &[
        (Gateway, Optional), (AuditExport, Optional)];
    RELAXED_SYNC = "dangerous-relaxed-sync" "BOOL" in "Audit", "Records on NATS servers that do not sync each message: a power cut may lose decisions that were answered", OPEN, All, &[
        (Gateway, Default("false")), (AuditExport, Default("false"))];
    WEBHOOK_CA = "webhook-ca" "FILE" in "Audit", "PEM file: authorities to trust for webhooks beside the system's", OPEN, All, &[
        (Dev, Optional), (AuditExport, Optional)];
    WEBHOOK_NAME_SERVERS = "webhook-name-servers" "LIST" in "Audit", "Addresses with ports, separated by commas, of the DNS servers at which webhooks' hosts are looked up, beside the hosts file; absent: those of `/etc/resolv.conf`", OPEN, All, &[
        (Dev, Optional), (AuditExport, Optional)];
    PRIVATE_WEBHOOKS = "dangerous-allow-private-webhooks" "BOOL" in "Audit", "Lets webhooks reach loopback and private addresses, those also over plain http: for local stacks", OPEN, All, &[
        (Dev, Default("false")), (Gateway, Default("false")), (AuditExport, Default("false"))];

    POLICIES = "policies" "DIR" in "Policy", "Directory of policy packs, one folder each, beside the built-in baseline", OPEN, All, &[
        (Dev, Optional), (Evaluator, Optional)];
    ACTIVE_POLICY = "active-policy" "VERSION" in "Policy", "What decides: `name@1.0.0` or a whole version; absent: the built-in baseline", OPEN, All, &[
        (Dev, Optional), (Evaluator, Optional)];
    SELECTABLE_POLICIES = "selectable-policies" "LIST" in "Policy", "What a request may ask for beside the active one, separated by commas", OPEN, All, &[
        (Dev, Optional), (Evaluator, Optional)];
    SHARDS = "shards" "N" in "Policy", "Threads that decide; absent: one per core", OPEN, All, &[
        (Dev, Optional), (Evaluator, Optional)];

    RUNS_KEPT = "runs-kept-seconds" "N" in "Runs", "How long what a run has counted is remembered after its last change", OPEN, All, &[
        (Dev, Default("86400")), (Evaluator, Default("86400"))];
    RESERVATIONS_KEPT = "reservations-kept-seconds" "N" in "Runs", "After which the estimate of an allowed check that nobody settled counts as spent", OPEN, All, &[
        (Dev, Default("3600")), (Evaluator, Default("3600"))];

    NATS = "nats" "URL" in "NATS", "Servers, `nats://host:port` or `tls://host:port`, separated by commas; without credentials", SECRET, All, &on_nats(Required);
    NATS_PREFIX = "nats-prefix" "WORD" in "NATS", "First part of every subject; deployments that share a server take different ones", OPEN, All, &on_nats(Default("s0"));
    NATS_USER = "nats-user" "NAME" in "NATS", "User name; needs the password too", OPEN, All, &on_nats(Optional);
    NATS_PASSWORD = "nats-password" "TEXT" in "NATS", "Password; better by variable or file, as others on the machine can read a command line", SECRET, All, &on_nats(Optional);
    NATS_PASSWORD_FILE = "nats-password-file" "FILE" in "NATS", "File with the password, instead of the setting above", OPEN, All, &on_nats(Optional);
    NATS_LOGINS = "nats-logins" "DIR" in "NATS", "Directory with files `<user>.password`, such as `gateway-1.password`: the process takes the first that no other process on this machine has, so that each replica has a login of its own; instead of user and password", OPEN, All, &of_messages(Optional);
    NATS_CA = "nats-ca" "FILE" in "NATS", "PEM file: the authority that signed the servers' certificates", OPEN, All, &on_nats(Optional);
    NATS_CERT = "nats-cert" "FILE" in "NATS", "PEM file: our certificate, where servers ask for one", OPEN, All, &on_nats(Optional);
    NATS_KEY = "nats-key" "FILE" in "NATS", "PEM file: its private key", OPEN, All, &on_nats(Optional);

    MESSAGE_KEYS = "message-keys" "FILE" in "NATS", "This role's message keys, made by `stage0 nats-keys create`: what it sends is authenticated, and what it hears is checked; read again when it changes", OPEN, All, &of_messages(Optional);
    MESSAGE_AUTH = "message-auth" "MODE" in "NATS", "`required`: what is not authenticated is refused from now on; `when-all-can`: from when every role was heard to authenticate, and never less again; absent: as the keys say", OPEN, All, &of_messages(Optional);
    OPEN_NATS = "dangerous-open-nats" "BOOL" in "NATS", "Uses NATS servers off this machine that take no login or no TLS: whoever reaches them hears all and may disturb all", OPEN, All, &on_nats(Default("false"));

    URL = "url" "URL" in "Connection", "Server to ask; absent: the `stage0 dev` of the data directory", OPEN, All, &[(Client, Optional)];
    CA = "ca" "FILE" in "Connection", "PEM file: the authority to trust instead of the system's", OPEN, All, &[(Client, Optional)];
    KEY_FILE = "key-file" "FILE" in "Connection", "File with the API key. There is no flag for the key itself: others on the machine can read a command line", OPEN, All, &[
        (Client, Optional)];
    API_KEY = "api-key" "KEY" in "Connection", "The account's API key, when no key file is given", SECRET, VariableOnly, &[(Client, Optional)];
    TIMEOUT = "timeout" "SECONDS" in "Connection", "Time for the whole exchange, from connecting to the last byte; of `decisions export` the time in which no line came; where it is not given, `decisions export` and `verify` have 600", OPEN, All, &[(Client, Default("5"))];

    SECRET_FILE = "secret-file" "FILE" in "Receiver", "File with the endpoint's secret, `whsec_…`, or with several, one a line; read at each delivery, so it may appear and change later", OPEN, All, &[
        (Receiver, Required)];
    PAGE_LISTEN = "page-listen" "ADDR" in "Receiver", "Address to show what arrives on, over plain HTTP and without a key; absent: nowhere", OPEN, All, &[
        (Receiver, Optional)];

    LOG = "log" "FILTER" in "Logs", "What is logged: a level, or such as `info,stage0_gateway=debug`", OPEN, All, &[
        (Dev, Default("info,actix_server=warn,async_nats=off")), (Gateway, Default("info,actix_server=warn,async_nats=off")), (Evaluator, Default("info,actix_server=warn,async_nats=off")), (Keystore, Default("info,actix_server=warn,async_nats=off")), (AuditExport, Default("info,actix_server=warn,async_nats=off")), (Receiver, Default("info,actix_server=warn,async_nats=off"))];
    LOG_FORMAT = "log-format" "FORMAT" in "Logs", "`text` for people or `json` for programs, on standard error", OPEN, All, &[
        (Dev, Default("text")), (Gateway, Default("json")), (Evaluator, Default("json")), (Keystore, Default("json")), (AuditExport, Default("json")), (Receiver, Default("text"))];

    METRICS_LISTEN = "metrics-listen" "ADDR" in "Metrics", "Address to serve `/metrics` (Prometheus), `/healthz` and `/readyz` on, over plain HTTP and without a key; absent: not at all", OPEN, All, &[
        (Dev, Optional), (Gateway, Optional), (Evaluator, Optional), (Keystore, Optional), (AuditExport, Optional), (Receiver, Optional), (Health, Required)];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_declared_twice_and_each_has_a_user() {
        for (index, setting) in SETTINGS.iter().enumerate() {
            assert!(SETTINGS.iter().skip(index + 1).all(|other| other.name != setting.name), "{}", setting.name);
            assert!(!setting.uses.is_empty(), "{}", setting.name);
            assert!(setting.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{}", setting.name);
        }
    }
}
