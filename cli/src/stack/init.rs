//! `stage0 stack init`: authority, certificates, passwords and NATS' configuration, each service's in a folder of its
//! own.
//!
//! Owns what is in those folders. `authority/` holds what all else is made of and is no service's: the keys of two
//! authorities, one for HTTPS and one for NATS alone, the passwords, and every role's message keys.
//! INVARIANT: a folder holds no secret of another service, but that NATS knows every role's password, and that two
//! roles share the key by which they know each other. Files are replaced whole, so a crash at any point leaves a state
//! that the next run completes.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use stage0_backplane::nats::{Logins, Requirement, ServerFile};
use stage0_contract::Role;
use stage0_gateway::{Authority, Leaf, TlsFiles};

use super::CA_FILE;
use crate::{files, logins, message_keys, out};

/// Where each service finds its folder.
const MOUNTED_AT: &str = "/etc/stage0";
/// Of NATS alone: who has a certificate of the other authority does not pass for a role there.
const NATS_CA_FILE: &str = "nats-ca.pem";
const BALANCER: &str = include_str!("../../../deploy/haproxy.cfg");
/// Of each role, in its folder.
const MESSAGE_KEYS_FILE: &str = "message.keys";
const PASSWORDS_FILE: &str = "passwords.conf";
/// Of each role, in its folder.
const LOGINS_DIR: &str = "logins";
/// What the gateways' certificate is for, beside what is asked for.
const GATEWAY_HOSTS: [&str; 5] = ["localhost", "127.0.0.1", "::1", "gateway", "balancer"];

pub(super) fn init(dir: &Path, hosts: &[String]) -> anyhow::Result<()> {
    for host in hosts {
        let usable = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:".contains(&b));
        ensure!(usable, "`--host` must be a name or an address, not `{}`", host.escape_debug());
    }
    let own = dir.join("authority");
    // A stack of before message keys has entries and records without them, which stay readable.
    let is_upgraded = [Role::Gateway.to_string(), format!("{}-1", Role::Gateway)]
        .iter()
        .any(|login| own.join(format!("{login}.password")).exists());
    let require = if is_upgraded { Requirement::WhenAllCan } else { Requirement::Always };
    let (authority, nats) =
        (opened(&own, "Stage0 local stack CA")?, opened(&own.join("nats"), "Stage0 local stack NATS CA")?);
    let keys = own.join("message-keys");
    message_keys::create(&keys, require)?;
    let keys = message_keys::load(&keys)?;
    let mut passwords = String::new();
    for role in Role::ALL {
        let folder = folder(dir, role.as_str(), &authority)?;
        trusts(&folder, NATS_CA_FILE, &nats)?;
        let of_role = folder.join(LOGINS_DIR);
        files::private_dir(&of_role)?;
        for user in Logins::default().of(role) {
            let password = logins::kept(&own.join(format!("{user}.password")))?;
            passwords.push_str(&logins::variable(&user, &password));
            logins::put(&of_role, &user, &password)?;
        }
        if let Some(keys) = keys.role(role) {
            files::replace(&folder.join(MESSAGE_KEYS_FILE), &keys.render()?)?;
        }
        issue(&nats, &folder, "nats", &Leaf { name: role.as_str(), hosts: &[role.as_str()], client: true })?;
    }
    admin(dir, &own, &nats, &mut passwords)?;
    let server = |name, hosts| Leaf { name, hosts, client: false };
    let of_nats = folder(dir, "nats", &nats)?;
    files::replace(&of_nats.join(PASSWORDS_FILE), &passwords)?;
    files::replace(&of_nats.join("nats.conf"), &server_file().render())?;
    issue(&nats, &of_nats, "server", &server("nats", &["nats", "localhost", "127.0.0.1"]))?;

    let mut names = GATEWAY_HOSTS.to_vec();
    names.extend(hosts.iter().map(String::as_str).filter(|host| !GATEWAY_HOSTS.contains(host)));
    issue(&authority, &dir.join("gateway"), "server", &server("gateway", &names))?;
    let receiver = folder(dir, "receiver", &authority)?;
    issue(&authority, &receiver, "server", &server("receiver", &["receiver", "localhost", "127.0.0.1"]))?;
    files::replace(&folder(dir, "balancer", &authority)?.join("haproxy.cfg"), BALANCER)?;
    folder(dir, "client", &authority)?;
    if authority.is_new() || nats.is_new() {
        out::line(
            "a new authority was made: what runs already, NATS too, must be restarted; clients need the new `ca.pem`",
        )?;
    }
    Ok(out::line(format!("secrets and certificates are in `{}`", dir.display()))?)
}

/// Whoever makes the streams is no role, and has a login like one.
fn admin(dir: &Path, own: &Path, nats: &Authority, passwords: &mut String) -> anyhow::Result<()> {
    let name = ServerFile::ADMIN_USER;
    let password = logins::kept(&own.join(format!("{name}.password")))?;
    passwords.push_str(&logins::variable(name, &password));
    let folder = folder(dir, name, nats)?;
    trusts(&folder, NATS_CA_FILE, nats)?;
    files::replace(&folder.join("nats.password"), &format!("{password}\n"))?;
    issue(nats, &folder, "nats", &Leaf { name, hosts: &[name], client: true })
}

fn opened(dir: &Path, name: &str) -> anyhow::Result<Authority> {
    files::private_dir(dir)?;
    Authority::open(dir, name).with_context(|| format!("cannot make an authority in `{}`", dir.display()))
}

/// A service's folder, with the certificate of whom it trusts.
fn folder(dir: &Path, service: &str, trusted: &Authority) -> anyhow::Result<PathBuf> {
    let folder = dir.join(service);
    files::private_dir(&folder)?;
    trusts(&folder, CA_FILE, trusted)?;
    Ok(folder)
}

fn trusts(folder: &Path, name: &str, authority: &Authority) -> anyhow::Result<()> {
    let ca = std::fs::read_to_string(authority.cert()).context("cannot read the authority's certificate")?;
    files::replace(&folder.join(name), &ca)
}

/// `<name>.pem` and `<name>.key` of this folder.
fn issue(authority: &Authority, folder: &Path, name: &str, leaf: &Leaf<'_>) -> anyhow::Result<()> {
    let files = TlsFiles { cert: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}.key")) };
    authority.issue(leaf, &files).with_context(|| format!("cannot make the certificate of {}", leaf.name))
}

fn server_file() -> ServerFile {
    let everywhere = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    ServerFile {
        prefix: "s0".to_owned(),
        name: "nats".to_owned(),
        listen: everywhere(4222),
        monitor: everywhere(8222),
        tls_dir: MOUNTED_AT.into(),
        store_dir: "/var/lib/nats".into(),
        max_file: "20GB".to_owned(),
        passwords: Some(PASSWORDS_FILE.to_owned()),
        logins: Logins::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(dir: &Path) -> Vec<(PathBuf, String)> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                found.extend(texts(&entry));
            } else {
                found.push((entry.clone(), std::fs::read_to_string(entry).unwrap()));
            }
        }
        found.sort();
        found
    }

    #[test]
    fn a_second_run_changes_nothing_and_another_host_one_certificate() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), &[]).unwrap();
        let first = texts(dir.path());
        init(dir.path(), &[]).unwrap();
        assert_eq!(texts(dir.path()), first);
        init(dir.path(), &["stage0.example".to_owned()]).unwrap();
        let changed = texts(dir.path()).into_iter().filter(|file| !first.contains(file)).map(|(path, _)| path);
        let changed: Vec<_> = changed.map(|path| path.strip_prefix(dir.path()).unwrap().to_owned()).collect();
        assert_eq!(changed, ["gateway/server.issued", "gateway/server.key", "gateway/server.pem"].map(PathBuf::from));
        assert!(init(dir.path(), &["a b".to_owned()]).is_err());
    }

    #[test]
    fn each_role_has_its_own_message_keys_and_a_stack_of_before_them_may_still_be_read() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), &[]).unwrap();
        let found =
            |role: Role| message_keys::read(&dir.path().join(role.as_str()).join(MESSAGE_KEYS_FILE), role).unwrap();
        assert!(Role::ALL.iter().all(|role| found(*role).requirement() == Requirement::Always));
        assert!(!dir.path().join("nats").join(MESSAGE_KEYS_FILE).exists());
        std::fs::remove_dir_all(dir.path().join("authority/message-keys")).unwrap();
        init(dir.path(), &[]).unwrap();
        assert!(Role::ALL.iter().all(|role| found(*role).requirement() == Requirement::WhenAllCan));
    }

    #[test]
    fn no_service_has_a_secret_of_another() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), &[]).unwrap();
        let files = texts(dir.path());
        let of_roles = Role::ALL
            .into_iter()
            .flat_map(|role| Logins::default().of(role).into_iter().map(move |user| (user, role.as_str())));
        for (user, role) in of_roles.chain([("admin".to_owned(), "admin")]) {
            let password = std::fs::read_to_string(dir.path().join("authority").join(format!("{user}.password")));
            let password = password.unwrap();
            let knows = |folder: &str| {
                let folder = dir.path().join(folder);
                files.iter().any(|(path, text)| path.starts_with(&folder) && text.contains(password.trim()))
            };
            assert!(knows("nats") && knows(role));
            for other in ["gateway", "evaluator", "keystore", "audit-export", "admin", "receiver", "balancer", "client"]
            {
                assert!(other == role || !knows(other), "{other} knows the password of {user}");
            }
        }
        let keys: Vec<_> = files.iter().filter(|(path, _)| path.extension().is_some_and(|end| end == "key")).collect();
        assert!(keys.iter().enumerate().all(|(at, (_, key))| keys[at + 1..].iter().all(|(_, other)| other != key)));
    }
}
