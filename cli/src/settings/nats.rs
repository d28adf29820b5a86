//! How a role reaches NATS, and how its messages are authenticated: the same for every role on NATS.
//!
//! The backplane checks the same rules again; here their violation is listed together with every other mistake.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use stage0_backplane::nats::{
    JETSTREAM_API, Login, MessageAuth, NatsConfig, NatsServerConf, Requirement, SyncMode, Tls,
};
use stage0_contract::Role;
use stage0_runtime::settings;
use stage0_runtime::settings::kinds::{boolean, choice, count, list, path, secret_file, text};
use stage0_runtime::settings::{Kind, Reader};

use crate::logins::{self, TakenLogin};
use crate::message_keys;

/// The server keeps some of each in memory.
const MAX_RECORDS: u32 = 100_000_000;

settings! {
    pub(crate) struct NatsSettings {
        /// Servers, `nats://host:port` or `tls://host:port`, separated by commas; without credentials
        servers: Vec<String> = "nats" "URL" in "NATS" as Hidden, required, servers();
        /// First part of every subject; deployments that share a server take different ones
        prefix: String = "nats-prefix" "WORD" in "NATS", default("s0".to_owned()), prefix();
        /// User name; needs the password too
        user: Option<String> = "nats-user" "NAME" in "NATS", optional, text();
        /// Password; better given by variable or file, as others on the machine can read a command line
        password: Option<String> = "nats-password" "TEXT" in "NATS" as Secret, optional, text();
        /// File with the password, instead of the setting above
        password_file: Option<PathBuf> = "nats-password-file" "FILE" in "NATS", optional, secret_file();
        /// PEM file: the authority that signed the servers' certificates
        ca: Option<PathBuf> = "nats-ca" "FILE" in "NATS", optional, path();
        /// PEM file: our certificate, where servers ask for one
        cert: Option<PathBuf> = "nats-cert" "FILE" in "NATS", optional, path();
        /// PEM file: its private key
        key: Option<PathBuf> = "nats-key" "FILE" in "NATS", optional, secret_file();
        /// First part of JetStream's own subjects, where the role's NATS account imports them under another name, as
        /// in the configuration of `stage0 nats-config`
        jetstream_api: String = "nats-jetstream-api" "SUBJECT" in "NATS", default(JETSTREAM_API.to_owned()),
            jetstream_api();
        /// Accepts NATS servers off this machine that require no login or no TLS: anyone who reaches them can read
        /// every message and disturb the service
        open_allowed: bool = "dangerous-open-nats" "BOOL" in "NATS", default(false), boolean();
    }
}

settings! {
    /// What tells a role from the others. The administrator sends no messages, so it has none of these.
    pub(crate) struct MessageSettings {
        /// Directory with files `<user>.password`, such as `gateway-1.password`: the process takes the first that no
        /// other process on this machine has, so that each replica has a login of its own; instead of user and
        /// password
        logins: Option<PathBuf> = "nats-logins" "DIR" in "NATS", optional, path();
        /// This role's message keys, made by `stage0 nats-keys create`: they authenticate what it sends and check what
        /// it receives; read again when the file changes
        keys: Option<PathBuf> = "message-keys" "FILE" in "NATS", optional, path();
        /// `required`: messages that are not authenticated are refused from now on; `when-all-can`: they are refused
        /// once every role has sent authenticated ones, and stay refused (default: as the keys say)
        auth: Option<Requirement> = "message-auth" "MODE" in "NATS", optional,
            choice(&[("required", Requirement::Always), ("when-all-can", Requirement::WhenAllCan)]);
    }
}

settings! {
    /// How roles that record decisions make sure that the server syncs them.
    pub(crate) struct SyncSettings {
        /// HTTP monitors of all NATS servers, separated by commas: prove at start and on every reconnect that each
        /// message is synced to disk; of several, more than half must answer
        monitors: Vec<String> = "nats-monitor" "URL" in "NATS", or(Vec::new()), monitors();
        /// Records on NATS servers that do not sync each message: a power cut may lose decisions that were answered
        dangerous_relaxed: bool = "dangerous-relaxed-sync" "BOOL" in "NATS", default(false), boolean();
    }
}

settings! {
    pub(crate) struct LogStreamSettings {
        /// Copies of the streams in a NATS cluster: 1, 3 or 5; used when streams are made, by `stage0 nats-admin`, or
        /// by the roles on a server that restricts no login
        replicas: usize = "log-replicas" "N" in "NATS", default(1), replicas();
    }
}

settings! {
    pub(crate) struct StreamSettings {
        /// Disk space of all streams together, such as 20GB (default: what the server allows their account)
        max_store: Option<u64> = "max-store" "SIZE" in "NATS", optional, stream_size();
        /// Runs, counters and idempotency keys that are stored at the same time, of each kind; some 200 bytes of the
        /// server's memory each
        max_records: u64 = "max-records" "N" in "NATS", default(1_000_000), count(MAX_RECORDS);
    }
}

/// What a role's process does about the safety of NATS.
pub(crate) struct NatsSafety {
    /// A server off this machine may require no login or no TLS.
    pub(crate) open_allowed: bool,
    /// The file of the role's keys, which is read again when it changes.
    pub(crate) message_keys: Option<PathBuf>,
    /// Keeps other processes from the login that this one took.
    _login: Option<TakenLogin>,
}

pub(super) fn read(reader: &mut Reader, role: Role) -> Option<(NatsConfig, NatsSafety)> {
    let messages = MessageSettings::read(reader);
    let settings = NatsSettings::read(reader);
    let login = role_login(reader, settings.as_ref(), role);
    let config = config(reader, settings, role.as_str());
    let MessageSettings { keys, auth, .. } = messages?;
    let auth = message_auth(reader, role, auth);
    let RoleLogin { login, taken } = login?;
    let (config, open_allowed) = config?;
    // A server that is not there yet is waited for: the next start of the role would find no more than this one.
    let config = NatsConfig { login, auth: auth?, role: Some(role), connect_timeout: None, ..config };
    Some((config, NatsSafety { open_allowed, message_keys: keys, _login: taken }))
}

/// Reads the connection of the administrator, who sends no message that a role relies on.
pub(super) fn read_admin(reader: &mut Reader) -> Option<(NatsConfig, NatsSafety)> {
    let settings = NatsSettings::read(reader);
    let login = given_login(reader, settings.as_ref());
    let (config, open_allowed) = config(reader, settings, NatsServerConf::ADMIN_USER)?;
    let config = NatsConfig { login: login?.login, ..config };
    Some((config, NatsSafety { open_allowed, message_keys: None, _login: None }))
}

fn config(reader: &mut Reader, settings: Option<NatsSettings>, name: &str) -> Option<(NatsConfig, bool)> {
    let sync = SyncSettings::read(reader);
    reader.both("nats-cert", "nats-key")?;
    let NatsSettings { servers, prefix, ca, cert, key, jetstream_api, open_allowed, .. } = settings?;
    let client = cert.zip(key);
    let tls = (ca.is_some() || client.is_some()).then_some(Tls { ca, client });
    let SyncSettings { monitors, dangerous_relaxed } = sync?;
    let sync = SyncMode { monitors, dangerous_relaxed };
    Some((NatsConfig { servers, prefix, tls, jetstream_api, sync, ..NatsConfig::new("", name) }, open_allowed))
}

/// `Some(None)`: messages are not authenticated.
fn message_auth(reader: &mut Reader, role: Role, mode: Option<Requirement>) -> Option<Option<Arc<MessageAuth>>> {
    if !reader.is_given("message-keys") {
        if reader.is_given("message-auth") {
            reader.miss("message-keys", "is needed beside `message-auth`");
            return None;
        }
        return Some(None);
    }
    let keys = Kind::parsed(move |path| message_keys::read(path.as_ref(), role));
    let keys = reader.optional("message-keys", &keys)?;
    if mode == Some(Requirement::WhenAllCan) && keys.requirement() == Requirement::Always {
        let why = "cannot be `when-all-can`: this deployment's keys say that messages are always authenticated";
        reader.clash("message-auth", why);
        return None;
    }
    match MessageAuth::new(&keys, role, mode == Some(Requirement::Always)) {
        Ok(auth) => Some(Some(auth)),
        Err(error) => {
            reader.clash("message-keys", &error.to_string());
            None
        }
    }
}

/// The login of a process: none for a server that asks for none.
struct RoleLogin {
    login: Option<Login>,
    /// What it holds of a directory of logins.
    taken: Option<TakenLogin>,
}

fn role_login(reader: &mut Reader, settings: Option<&NatsSettings>, role: Role) -> Option<RoleLogin> {
    if !reader.is_given("nats-logins") {
        return given_login(reader, settings);
    }
    for other in ["nats-user", "nats-password", "nats-password-file"] {
        if reader.is_given(other) {
            reader.clash(other, "does not go with `nats-logins`");
            return None;
        }
    }
    let taken = reader.optional("nats-logins", &Kind::parsed(move |dir| logins::take(dir.as_ref(), role)))?;
    let login = Login::Password { user: taken.user.clone(), password: taken.password.clone() };
    Some(RoleLogin { login: Some(login), taken: Some(taken) })
}

/// User and password, or user and password file. Complains about combinations even where single settings are wrong.
fn given_login(reader: &mut Reader, settings: Option<&NatsSettings>) -> Option<RoleLogin> {
    let is_in_file = reader.is_given("nats-password-file");
    if is_in_file && reader.is_given("nats-password") {
        reader.clash("nats-password-file", "does not go with `nats-password`");
        return None;
    }
    reader.both("nats-user", if is_in_file { "nats-password-file" } else { "nats-password" })?;
    let NatsSettings { user, password, password_file, .. } = settings?;
    let password = match password_file {
        None => password.clone(),
        Some(file) => match first_line(file) {
            Ok(line) => Some(line),
            Err(why) => {
                reader.clash("nats-password-file", &why);
                return None;
            }
        },
    };
    let login = user.clone().zip(password).map(|(user, password)| Login::Password { user, password });
    Some(RoleLogin { login, taken: None })
}

/// The one line of a password file. Never quoted: it is a secret.
fn first_line(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("must name a file that can be read ({error})"))?;
    let line = text.trim_end_matches(['\r', '\n']);
    if line.is_empty() || line.contains('\n') {
        return Err("must name a file with one line, the password".to_owned());
    }
    Ok(line.to_owned())
}

fn servers() -> Kind<Vec<String>> {
    let plain = |server: &String| {
        let rest = server.strip_prefix("nats://").or_else(|| server.strip_prefix("tls://"));
        rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['@', '/', ' ']))
    };
    urls(plain, "must be `nats://host:port` or `tls://host:port`, several separated by commas, without credentials")
}

fn monitors() -> Kind<Vec<String>> {
    let plain = |monitor: &String| {
        let url = monitor.parse::<reqwest::Url>().ok();
        url.is_some_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none())
    };
    urls(plain, "must be `http://host:port`, several separated by commas")
}

fn urls(plain: impl Fn(&String) -> bool + 'static, rule: &'static str) -> Kind<Vec<String>> {
    let list = list();
    Kind::parsed(move |text| {
        list.parse(text).ok().filter(|urls| urls.iter().all(&plain)).ok_or_else(|| rule.to_owned())
    })
}

fn jetstream_api() -> Kind<String> {
    let parse = |text: &str| if text == JETSTREAM_API { Ok(text.to_owned()) } else { prefix().parse(text) };
    Kind::new(parse, String::clone)
}

fn prefix() -> Kind<String> {
    let token =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let rule = "must be letters, digits, `-` and `_`, in parts joined by dots";
    let parse = move |text: &str| match text.split('.').all(token) {
        true => Ok(text.to_owned()),
        false => Err(rule.to_owned()),
    };
    Kind::new(parse, String::clone)
}

fn replicas() -> Kind<usize> {
    let parse = |text: &str| {
        text.parse().ok().filter(|count| [1, 3, 5].contains(count)).ok_or_else(|| "must be 1, 3 or 5".to_owned())
    };
    Kind::new(parse, ToString::to_string)
}

/// A number and a unit, as nats-server counts them.
pub(crate) fn stream_size() -> Kind<u64> {
    Kind::parsed(|text| {
        let units = [("KB", 10), ("MB", 20), ("GB", 30), ("TB", 40)];
        let size = units.into_iter().find_map(|(unit, shift)| {
            let number = text.strip_suffix(unit)?.parse::<u32>().ok().filter(|number| *number > 0)?;
            u64::from(number).checked_shl(shift)
        });
        size.ok_or_else(|| "must be a whole number with KB, MB, GB or TB, such as 20GB".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_file_holds_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            first_line(&path)
        };
        assert_eq!(read("hunter2\n").as_deref(), Ok("hunter2"));
        assert_eq!(read(" hunter2").as_deref(), Ok(" hunter2"), "a space may belong to it");
        for bad in ["", "\n", "hunter2\nhunter3\n"] {
            assert!(!read(bad).unwrap_err().contains("hunter"), "{bad:?}");
        }
        assert!(first_line(Path::new("/nowhere/password")).unwrap_err().contains("No such file"));
    }

    #[test]
    fn a_server_with_credentials_is_refused_and_not_quoted() {
        for bad in
            ["nats://user:hunter2@h", "localhost:4222", "http://h", "nats://", "nats://a,,nats://b", "nats://h/x"]
        {
            let why = servers().parse(bad).unwrap_err();
            assert!(!why.contains("hunter2"), "{why}");
        }
        assert_eq!(servers().parse("nats://a:4222, tls://b").unwrap(), ["nats://a:4222", "tls://b"]);
    }
}
