//! How a role reaches NATS. The backplane checks the same rules again; here they are told together with every other mistake.

use std::path::PathBuf;
use std::sync::Arc;

use stage0_backplane::nats::{
    JETSTREAM_API, Login, MessageAuth, MessageKeys, NatsConfig, Requirement, ServerFile, SyncMode, Tls,
};
use stage0_contract::Role;

use super::parse::{boolean, list, path, text};
use super::{Reader, table};
use crate::logins::{self, TakenLogin};
use crate::message_keys;

/// What a role's process does about the safety of NATS.
pub(crate) struct NatsSafety {
    /// A server off this machine may take no login or no TLS.
    pub(crate) open_allowed: bool,
    /// Where the role's keys are read from, again and again.
    pub(crate) message_keys: Option<PathBuf>,
    /// Keeps other processes from the login that this one took.
    _login: Option<TakenLogin>,
}

/// Reads it for the role.
pub(super) fn read(reader: &mut Reader, role: Role) -> Option<(NatsConfig, NatsSafety)> {
    let login = login(reader, role);
    let (config, login) = read_config(reader, role.as_str(), login).unzip();
    let open_allowed = reader.required(&table::OPEN_NATS, boolean);
    let message_keys = reader.optional(&table::MESSAGE_KEYS, path);
    let auth = auth(reader, role);
    let config = NatsConfig { auth: auth?, role: Some(role), ..config? };
    Some((config, NatsSafety { open_allowed: open_allowed?, message_keys, _login: login? }))
}

/// Reads it for whoever makes the streams: he says nothing that another role would have to believe.
pub(super) fn read_admin(reader: &mut Reader) -> Option<(NatsConfig, NatsSafety)> {
    let login = given_login(reader).map(|login| (login, None));
    let config = read_config(reader, ServerFile::ADMIN_USER, login);
    let open_allowed = reader.required(&table::OPEN_NATS, boolean);
    Some((config?.0, NatsSafety { open_allowed: open_allowed?, message_keys: None, _login: None }))
}

/// A number and a unit, as nats-server counts them.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let units = [("KB", 10), ("MB", 20), ("GB", 30), ("TB", 40)];
    let size = units.into_iter().find_map(|(unit, shift)| {
        let number = text.strip_suffix(unit)?.parse::<u32>().ok().filter(|number| *number > 0)?;
        u64::from(number).checked_shl(shift)
    });
    size.ok_or_else(|| "must be a whole number with KB, MB, GB or TB, such as 20GB".to_owned())
}

/// The outer `None` is a mistake, the inner one no keys.
fn auth(reader: &mut Reader, role: Role) -> Option<Option<Arc<MessageAuth>>> {
    let is_given = reader.is_given(&table::MESSAGE_KEYS);
    let keys = reader.optional(&table::MESSAGE_KEYS, |path| message_keys::read(path.as_ref(), role));
    let mode = reader.optional(&table::MESSAGE_AUTH, requirement);
    if reader.is_given(&table::MESSAGE_AUTH) {
        mode?;
        if !is_given {
            reader.miss(&table::MESSAGE_KEYS, "is needed beside `message-auth`");
            return None;
        }
    }
    if !is_given {
        return Some(None);
    }
    let keys: MessageKeys = keys?;
    if mode == Some(Requirement::WhenAllCan) && keys.requirement() == Requirement::Always {
        let why = "cannot be `when-all-can`: this deployment's keys say that messages are always authenticated";
        reader.clash(&table::MESSAGE_AUTH, why);
        return None;
    }
    match MessageAuth::new(&keys, role, mode == Some(Requirement::Always)) {
        Ok(auth) => Some(Some(auth)),
        Err(error) => {
            reader.clash(&table::MESSAGE_KEYS, &error.to_string());
            None
        }
    }
}

fn requirement(text: &str) -> Result<Requirement, String> {
    match text {
        "required" => Ok(Requirement::Always),
        "when-all-can" => Ok(Requirement::WhenAllCan),
        _ => Err("must be `required` or `when-all-can`".to_owned()),
    }
}

/// What was found as a login: the outer `None` is a mistake, which the reader has noted.
type FoundLogin = Option<(Option<Login>, Option<TakenLogin>)>;

fn read_config(reader: &mut Reader, name: &str, login: FoundLogin) -> Option<(NatsConfig, Option<TakenLogin>)> {
    let servers = reader.required(&table::NATS, servers);
    let prefix = reader.required(&table::NATS_PREFIX, prefix);
    let tls = tls(reader);
    let sync = SyncMode {
        monitors: reader.optional(&table::NATS_MONITOR, monitors).unwrap_or_default(),
        dangerous_relaxed: reader.optional(&table::RELAXED_SYNC, boolean).unwrap_or_default(),
    };
    let jetstream_api = reader.optional(&table::JETSTREAM_API, jetstream_api);
    let (servers, prefix) = servers.zip(prefix)?;
    let (login, taken) = login?;
    let config = NatsConfig { servers, prefix, login, tls: tls?, sync, ..NatsConfig::new("", name) };
    Some((NatsConfig { jetstream_api: jetstream_api.unwrap_or(config.jetstream_api), ..config }, taken))
}

/// The login, if there is one, and what was taken of a directory of logins.
fn login(reader: &mut Reader, role: Role) -> FoundLogin {
    if !reader.is_given(&table::NATS_LOGINS) {
        return Some((given_login(reader)?, None));
    }
    for other in [&table::NATS_USER, &table::NATS_PASSWORD, &table::NATS_PASSWORD_FILE] {
        if reader.is_given(other) {
            reader.clash(other, "does not go with `nats-logins`");
            return None;
        }
    }
    let taken = reader.optional(&table::NATS_LOGINS, |dir| logins::take(dir.as_ref(), role))?;
    let login = Login::Password { user: taken.user.clone(), password: taken.password.clone() };
    Some((Some(login), Some(taken)))
}

/// The outer `None` is a mistake, the inner one no login.
fn given_login(reader: &mut Reader) -> Option<Option<Login>> {
    let user = reader.optional(&table::NATS_USER, text);
    let (given, in_file) = (&table::NATS_PASSWORD, &table::NATS_PASSWORD_FILE);
    if reader.is_given(given) && reader.is_given(in_file) {
        reader.clash(in_file, "does not go with `nats-password`");
        return None;
    }
    let password = if reader.is_given(in_file) {
        reader.both([&table::NATS_USER, in_file])?;
        let file = reader.optional(in_file, path);
        reader.private(in_file, file)?;
        Some(reader.optional(in_file, first_line)?)
    } else {
        reader.both([&table::NATS_USER, given])?;
        reader.optional(given, text)
    };
    Some(user.zip(password).map(|(user, password)| Login::Password { user, password }))
}

/// What stands in a file, but for the end of its line. Never quoted: it is a secret.
fn first_line(path: &str) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("must name a file that can be read ({error})"))?;
    let line = text.trim_end_matches(['\r', '\n']);
    if line.is_empty() || line.contains('\n') {
        return Err("must name a file with one line, the password".to_owned());
    }
    Ok(line.to_owned())
}

fn tls(reader: &mut Reader) -> Option<Option<Tls>> {
    let ca = reader.optional(&table::NATS_CA, path);
    let (cert, key) = (reader.optional(&table::NATS_CERT, path), reader.optional(&table::NATS_KEY, path));
    let key = reader.private(&table::NATS_KEY, key);
    reader.both([&table::NATS_CERT, &table::NATS_KEY])?;
    let client = cert.zip(key);
    Some((ca.is_some() || client.is_some()).then_some(Tls { ca, client }))
}

fn servers(text: &str) -> Result<Vec<String>, String> {
    let plain = |server: &String| {
        let rest = server.strip_prefix("nats://").or_else(|| server.strip_prefix("tls://"));
        rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['@', '/', ' ']))
    };
    let rule = "must be `nats://host:port` or `tls://host:port`, several separated by commas, without credentials";
    list(text).ok().filter(|servers| servers.iter().all(plain)).ok_or_else(|| rule.to_owned())
}

fn monitors(text: &str) -> Result<Vec<String>, String> {
    let plain = |monitor: &String| {
        let url = monitor.parse::<reqwest::Url>().ok();
        url.is_some_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none())
    };
    let rule = "must be `http://host:port`, several separated by commas";
    list(text).ok().filter(|monitors| monitors.iter().all(plain)).ok_or_else(|| rule.to_owned())
}

fn jetstream_api(text: &str) -> Result<String, String> {
    if text == JETSTREAM_API { Ok(text.to_owned()) } else { prefix(text) }
}

fn prefix(text: &str) -> Result<String, String> {
    let token =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let rule = "must be letters, digits, `-` and `_`, in parts joined by dots";
    if text.split('.').all(token) { Ok(text.to_owned()) } else { Err(rule.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_the_one_line_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            first_line(path.to_str().unwrap())
        };
        assert_eq!(read("hunter2\n").as_deref(), Ok("hunter2"));
        assert_eq!(read(" hunter2").as_deref(), Ok(" hunter2"), "a space may belong to it");
        for bad in ["", "\n", "hunter2\nhunter3\n"] {
            assert!(!read(bad).unwrap_err().contains("hunter"), "{bad:?}");
        }
        assert!(first_line("/nowhere/password").unwrap_err().contains("No such file"));
    }

    #[test]
    fn a_server_with_credentials_is_refused_and_not_quoted() {
        for bad in
            ["nats://user:hunter2@h", "localhost:4222", "http://h", "nats://", "nats://a,,nats://b", "nats://h/x"]
        {
            let why = servers(bad).unwrap_err();
            assert!(!why.contains("hunter2"), "{why}");
        }
        assert_eq!(servers("nats://a:4222, tls://b").unwrap(), ["nats://a:4222", "tls://b"]);
    }
}
