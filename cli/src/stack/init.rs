//! `stage0 stack init`: certificates, passwords and the NATS configuration, in a directory for each service.
//!
//! `authority/` belongs to no service: it holds the keys of two authorities (HTTPS, NATS), the passwords and the
//! message keys of all roles. INVARIANT: a directory holds no secret of another service, except that every server of
//! NATS knows the passwords of all roles and that two roles share the key with which they authenticate each other.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use stage0_backplane::nats::{ClusterConf, ClusterRoute, Logins, NatsServerConf, Requirement};
use stage0_contract::Role;
use stage0_gateway::{Authority, Leaf, TlsFiles};

use super::CA_FILE;
use crate::nats_config::ROUTES_PORT;
use crate::{files, logins, message_keys, out};

const MOUNTED_AT: &str = "/etc/stage0";
/// NATS has its own authority, so that a certificate of the other one is not accepted for a role.
const NATS_CA_FILE: &str = "nats-ca.pem";
const BALANCER_CONFIG: &str = include_str!("../../../deploy/haproxy.cfg");
const MESSAGE_KEYS_FILE: &str = "message.keys";
const PASSWORDS_FILE: &str = "passwords.conf";
const LOGINS_DIR: &str = "logins";
/// The names in the gateways' certificate, beside those of `--host`.
const GATEWAY_HOSTS: [&str; 5] = ["localhost", "127.0.0.1", "::1", "gateway", "balancer"];

/// The first server of NATS; others have numbers.
const NATS: &str = "nats";
const CLUSTER: &str = "stage0";

pub(super) fn init(dir: &Path, hosts: &[String], nats_nodes: u16) -> anyhow::Result<()> {
    for host in hosts {
        let usable = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:".contains(&b));
        ensure!(usable, "`--host` must be a name or an address, not `{}`", host.escape_debug());
    }
    let authority_dir = dir.join("authority");
    // A stack that is older than message keys has stored data without them, which must stay readable.
    let is_upgraded = [Role::Gateway.to_string(), format!("{}-1", Role::Gateway)]
        .iter()
        .any(|login| authority_dir.join(format!("{login}.password")).exists());
    let require = if is_upgraded { Requirement::WhenAllCan } else { Requirement::Always };
    let authority = open_authority(&authority_dir, "Stage0 local stack CA")?;
    let nats = open_authority(&authority_dir.join("nats"), "Stage0 local stack NATS CA")?;
    let keys = authority_dir.join("message-keys");
    message_keys::create(&keys, require)?;
    let keys = message_keys::load(&keys)?;
    let mut passwords = String::new();
    for role in Role::ALL {
        let folder = service_dir(dir, role.as_str(), &authority)?;
        write_ca(&folder, NATS_CA_FILE, &nats)?;
        let logins_dir = folder.join(LOGINS_DIR);
        files::private_dir(&logins_dir)?;
        for user in Logins::default().of(role) {
            let password = logins::read_or_create(&authority_dir.join(format!("{user}.password")))?;
            passwords.push_str(&logins::variable(&user, &password));
            logins::put(&logins_dir, &user, &password)?;
        }
        if let Some(keys) = keys.role(role) {
            files::replace(&folder.join(MESSAGE_KEYS_FILE), &keys.render()?)?;
        }
        issue(&nats, &folder, "nats", &Leaf { name: role.as_str(), hosts: &[role.as_str()], client: true })?;
    }
    init_admin(dir, &authority_dir, &nats, &mut passwords)?;
    init_nats(dir, &nats, nats_nodes, &passwords)?;
    let server = |name, hosts| Leaf { name, hosts, client: false };
    // Without `--host` the names stay, so that a renewal takes none away.
    let last = Authority::last_hosts(&tls_files(&dir.join("gateway"), "server"))?;
    let hosts = if hosts.is_empty() { last.as_slice() } else { hosts };
    let mut names = GATEWAY_HOSTS.to_vec();
    names.extend(hosts.iter().map(String::as_str).filter(|host| !GATEWAY_HOSTS.contains(host)));
    issue(&authority, &dir.join("gateway"), "server", &server("gateway", &names))?;
    let receiver = service_dir(dir, "receiver", &authority)?;
    issue(&authority, &receiver, "server", &server("receiver", &["receiver", "localhost", "127.0.0.1"]))?;
    files::replace(&service_dir(dir, "balancer", &authority)?.join("haproxy.cfg"), BALANCER_CONFIG)?;
    service_dir(dir, "client", &authority)?;
    if authority.is_new() || nats.is_new() {
        out::line(
            "a new authority was created: restart all running services, NATS too, and give clients the new `ca.pem`",
        )?;
    }
    Ok(out::line(format!("secrets and certificates are in `{}`", dir.display()))?)
}

/// Servers of a cluster know each other by the names in their certificates, and connect to each other as clients.
fn init_nats(dir: &Path, authority: &Authority, nodes: u16, passwords: &str) -> anyhow::Result<()> {
    let name = |number: u16| if number == 1 { NATS.to_owned() } else { format!("{NATS}-{number}") };
    let names: Vec<String> = (1..=nodes).map(name).collect();
    for node in &names {
        let folder = service_dir(dir, node, authority)?;
        files::replace(&folder.join(PASSWORDS_FILE), passwords)?;
        files::replace(&folder.join("nats.conf"), &server_file(node, &names).render())?;
        let hosts = [node.as_str(), "localhost", "127.0.0.1"];
        issue(authority, &folder, "server", &Leaf { name: node, hosts: &hosts, client: names.len() > 1 })?;
    }
    Ok(())
}

/// The administrator of the streams is no role, but has a login and a certificate like one.
fn init_admin(dir: &Path, authority_dir: &Path, nats: &Authority, passwords: &mut String) -> anyhow::Result<()> {
    let name = NatsServerConf::ADMIN_USER;
    let password = logins::read_or_create(&authority_dir.join(format!("{name}.password")))?;
    passwords.push_str(&logins::variable(name, &password));
    let folder = service_dir(dir, name, nats)?;
    write_ca(&folder, NATS_CA_FILE, nats)?;
    files::replace(&folder.join("nats.password"), &format!("{password}\n"))?;
    issue(nats, &folder, "nats", &Leaf { name, hosts: &[name], client: true })
}

fn open_authority(dir: &Path, name: &str) -> anyhow::Result<Authority> {
    files::private_dir(dir)?;
    Authority::open(dir, name).with_context(|| format!("cannot create an authority in `{}`", dir.display()))
}

fn service_dir(dir: &Path, service: &str, trusted: &Authority) -> anyhow::Result<PathBuf> {
    let folder = dir.join(service);
    files::private_dir(&folder)?;
    write_ca(&folder, CA_FILE, trusted)?;
    Ok(folder)
}

fn write_ca(folder: &Path, name: &str, authority: &Authority) -> anyhow::Result<()> {
    let ca = std::fs::read_to_string(authority.cert()).context("cannot read the authority's certificate")?;
    files::replace(&folder.join(name), &ca)
}

fn issue(authority: &Authority, folder: &Path, name: &str, leaf: &Leaf<'_>) -> anyhow::Result<()> {
    let files = tls_files(folder, name);
    authority.issue(leaf, &files).with_context(|| format!("cannot issue the certificate of {}", leaf.name))
}

fn tls_files(folder: &Path, name: &str) -> TlsFiles {
    TlsFiles { cert: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}.key")) }
}

fn server_file(node: &str, nodes: &[String]) -> NatsServerConf {
    let everywhere = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let others = nodes.iter().filter(|other| *other != node);
    let routes: Vec<_> = others.filter_map(|other| ClusterRoute::parse(&format!("{other}:{ROUTES_PORT}"))).collect();
    let cluster = (!routes.is_empty()).then(|| ClusterConf {
        name: CLUSTER.to_owned(),
        listen: everywhere(ROUTES_PORT),
        routes,
        tls_dir: MOUNTED_AT.into(),
    });
    NatsServerConf {
        prefix: "s0".to_owned(),
        name: node.to_owned(),
        listen: everywhere(4222),
        monitor: everywhere(8222),
        tls_dir: MOUNTED_AT.into(),
        store_dir: "/var/lib/nats".into(),
        max_file: "20GB".to_owned(),
        passwords: Some(PASSWORDS_FILE.to_owned()),
        logins: Logins::default(),
        cluster,
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
    fn a_second_run_changes_nothing_and_a_new_host_changes_one_certificate() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), &[], 1).unwrap();
        let first = texts(dir.path());
        init(dir.path(), &[], 1).unwrap();
        assert_eq!(texts(dir.path()), first);
        init(dir.path(), &["stage0.example".to_owned()], 1).unwrap();
        let changed = texts(dir.path()).into_iter().filter(|file| !first.contains(file)).map(|(path, _)| path);
        let changed: Vec<_> = changed.map(|path| path.strip_prefix(dir.path()).unwrap().to_owned()).collect();
        assert_eq!(changed, ["gateway/server.issued", "gateway/server.key", "gateway/server.pem"].map(PathBuf::from));
        let with_host = texts(dir.path());
        init(dir.path(), &[], 1).unwrap();
        assert_eq!(texts(dir.path()), with_host, "its name stays");
        assert!(init(dir.path(), &["a b".to_owned()], 1).is_err());
    }

    #[test]
    fn each_server_of_a_cluster_has_a_folder_with_routes_to_the_others() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), &[], 1).unwrap();
        let read = |path: &str| std::fs::read_to_string(dir.path().join(path)).unwrap();
        let alone = (read("nats/nats.conf"), read("nats/server.pem"));
        assert!(!alone.0.contains("cluster") && !dir.path().join("nats-2").exists());
        init(dir.path(), &[], 3).unwrap();
        let first = texts(dir.path());
        for (node, others) in [("nats", ["nats-2", "nats-3"]), ("nats-2", ["nats", "nats-3"])] {
            let file = read(&format!("{node}/nats.conf"));
            assert!(file.contains(&format!("\nserver_name: {node}\n")), "{node}");
            assert!(others.iter().all(|other| file.contains(&format!("\"nats-route://{other}:6222\""))), "{node}");
            assert!(!file.contains(&format!("//{node}:6222")), "{node}");
            assert_eq!(read(&format!("{node}/passwords.conf")), read("nats-3/passwords.conf"));
        }
        assert_ne!(read("nats/server.pem"), alone.1, "it is a client of the others too");
        init(dir.path(), &[], 3).unwrap();
        assert_eq!(texts(dir.path()), first, "a second run changes nothing");
        init(dir.path(), &[], 1).unwrap();
        assert_eq!(read("nats/nats.conf"), alone.0);
    }

    #[test]
    fn each_role_has_message_keys_and_an_older_stack_stays_readable() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), &[], 1).unwrap();
        let found =
            |role: Role| message_keys::read(&dir.path().join(role.as_str()).join(MESSAGE_KEYS_FILE), role).unwrap();
        assert!(Role::ALL.iter().all(|role| found(*role).requirement() == Requirement::Always));
        assert!(!dir.path().join("nats").join(MESSAGE_KEYS_FILE).exists());
        std::fs::remove_dir_all(dir.path().join("authority/message-keys")).unwrap();
        init(dir.path(), &[], 1).unwrap();
        assert!(Role::ALL.iter().all(|role| found(*role).requirement() == Requirement::WhenAllCan));
    }

    #[test]
    fn no_service_has_a_secret_of_another_service() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), &[], 1).unwrap();
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
