//! `stage0 stack init`: authority, certificates, passwords and NATS' configuration, each service's in a folder of its own.
//!
//! Owns what is in those folders. `authority/` holds what all else is made of and is no service's: the authority's key and the
//! passwords. INVARIANT: a folder holds no secret of another service, but that NATS knows every role's password. Files are replaced
//! whole, so a crash at any point leaves a state that the next run completes.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use stage0_backplane::nats::ServerFile;
use stage0_contract::Role;
use stage0_gateway::{Authority, Leaf, TlsFiles};

use super::CA_FILE;
use crate::{files, out};

/// Where each service finds its folder.
const MOUNTED_AT: &str = "/etc/stage0";
const PASSWORDS_FILE: &str = "passwords.conf";
/// What the gateways' certificate is for, beside what is asked for.
const GATEWAY_HOSTS: [&str; 5] = ["localhost", "127.0.0.1", "::1", "gateway", "balancer"];

pub(super) fn init(dir: &Path, hosts: &[String]) -> anyhow::Result<()> {
    for host in hosts {
        let usable = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:".contains(&b));
        ensure!(usable, "`--host` must be a name or an address, not `{}`", host.escape_debug());
    }
    let own = dir.join("authority");
    files::private_dir(&own)?;
    let authority = Authority::open(&own, "Stage0 local stack CA").context("cannot make an authority")?;
    let stack = Stack { dir, authority };
    let mut passwords = String::new();
    for role in Role::ALL {
        let password = kept(&own.join(format!("{role}.password")))?;
        passwords.push_str(&format!("{}: {password:?}\n", ServerFile::password_variable(role)));
        let folder = stack.folder(role.as_str())?;
        files::replace(&folder.join("nats.password"), &format!("{password}\n"))?;
        stack.certificate(role.as_str(), "nats", &[role.as_str()])?;
    }
    let folder = stack.folder("nats")?;
    files::replace(&folder.join(PASSWORDS_FILE), &passwords)?;
    files::replace(&folder.join("nats.conf"), &server_file().render())?;
    stack.certificate("nats", "server", &["nats", "localhost", "127.0.0.1"])?;

    let mut names = GATEWAY_HOSTS.to_vec();
    names.extend(hosts.iter().map(String::as_str).filter(|host| !GATEWAY_HOSTS.contains(host)));
    stack.certificate("gateway", "server", &names)?;
    stack.folder("receiver")?;
    stack.certificate("receiver", "server", &["receiver", "localhost", "127.0.0.1"])?;
    stack.folder("balancer")?;
    stack.folder("client")?;
    Ok(out::line(format!("secrets and certificates are in `{}`", dir.display()))?)
}

struct Stack<'a> {
    dir: &'a Path,
    authority: Authority,
}

impl Stack<'_> {
    /// A service's folder, with the authority's certificate in it.
    fn folder(&self, service: &str) -> anyhow::Result<PathBuf> {
        let folder = self.dir.join(service);
        files::private_dir(&folder)?;
        let ca = std::fs::read_to_string(self.authority.cert()).context("cannot read the authority's certificate")?;
        files::replace(&folder.join(CA_FILE), &ca)?;
        Ok(folder)
    }

    /// `<service>/<name>.pem` and `.key`, made anew when they are old or for other hosts.
    fn certificate(&self, service: &str, name: &str, hosts: &[&str]) -> anyhow::Result<()> {
        let folder = self.dir.join(service);
        let files = TlsFiles { cert: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}.key")) };
        let (noted, wanted) = (folder.join(format!("{name}.hosts")), format!("{}\n", hosts.join("\n")));
        if std::fs::read_to_string(&noted).ok().as_ref() != Some(&wanted) {
            // Without its key a certificate is made again, whatever happens before the note is written.
            match std::fs::remove_file(&files.key) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot replace `{}`", files.key.display()));
                }
                Ok(()) | Err(_) => {}
            }
        }
        let leaf = Leaf { name: service, hosts, client: true };
        self.authority.issue(&leaf, &files).with_context(|| format!("cannot make the certificate of {service}"))?;
        files::replace(&noted, &wanted)
    }
}

/// The secret of this file, which is made when it is not there.
fn kept(path: &Path) -> anyhow::Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let text = text.trim_end().to_owned();
            ensure!(!text.is_empty(), "`{}` is empty: remove it, and all services get new passwords", path.display());
            Ok(text)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut secret = [0; 32];
            getrandom::fill(&mut secret).context("the system gives no random bytes")?;
            let secret = data_encoding::HEXLOWER.encode(&secret);
            files::replace(path, &format!("{secret}\n"))?;
            Ok(secret)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read `{}`", path.display())),
    }
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
    }
}
