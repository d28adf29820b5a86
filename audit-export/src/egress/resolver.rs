//! Names to addresses, without a thread that waits.
//!
//! Owns who is asked: the hosts file, then the name servers of `/etc/resolv.conf` or those that were set, by UDP and
//! TCP. Both files are read again when they change. Refuses to judge an answer, and to remember one: time limit, share
//! of accounts and what failed lately are `look_ups`'. The system's own resolver is not used: it blocks a thread until
//! it gives up by itself, also when nobody waits any more.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::Name;
use hickory_resolver::system_conf::read_system_conf;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Who is asked for a host's addresses.
pub enum Resolver {
    /// The system's hosts file and name servers.
    System,
    /// A function, for a test of names that move.
    Scripted(Box<Script>),
}

/// The addresses of a name, as of this call.
pub type Script = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// Of one question to one server, before it is asked once more.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the two files are looked at, at most.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);
const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";

/// A resolver that is ready to be asked.
pub(super) enum Names {
    Asked(Dns),
    Scripted(Box<Script>),
}

/// The resolver, and what it was made from.
pub(super) struct Dns {
    /// Instead of those of `/etc/resolv.conf`.
    name_servers: Vec<SocketAddr>,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    looked_at: Instant,
    files: [Stamp; 2],
    /// None where none can be made.
    resolver: Option<Arc<TokioResolver>>,
}

/// Which state of a file it is; none where there is no such file.
type Stamp = Option<(u64, i64, i64, u64)>;

impl Names {
    /// Reads the files, so it blocks.
    pub(super) fn new(resolver: Resolver, name_servers: &[SocketAddr]) -> Self {
        match resolver {
            Resolver::System => {
                let files = stamps();
                let (looked_at, resolver) = (Instant::now(), load(name_servers));
                let loaded = Mutex::new(Loaded { looked_at, files, resolver });
                Self::Asked(Dns { name_servers: name_servers.to_vec(), loaded })
            }
            Resolver::Scripted(script) => Self::Scripted(script),
        }
    }

    pub(super) async fn look_up(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        match self {
            Self::Asked(dns) => {
                let name = Name::from_ascii(name).map_err(io::Error::other)?;
                let resolver = dns.current().await.ok_or_else(|| io::Error::other("there is no resolver"))?;
                let found = resolver.lookup_ip(name).await.map_err(io::Error::other)?;
                Ok(found.iter().collect())
            }
            Self::Scripted(script) => script(name),
        }
    }
}

impl Dns {
    /// The resolver, made again if a file changed.
    async fn current(&self) -> Option<Arc<TokioResolver>> {
        let mut loaded = self.loaded.lock().await;
        if loaded.looked_at.elapsed() >= RELOAD_INTERVAL {
            let (before, name_servers) = (loaded.files, self.name_servers.clone());
            let looked = tokio::task::spawn_blocking(move || {
                let files = stamps();
                (files, (files != before).then(|| load(&name_servers)))
            });
            if let Ok((files, resolver)) = looked.await {
                loaded.files = files;
                if let Some(resolver) = resolver {
                    tracing::info!("name servers and hosts were read again");
                    loaded.resolver = resolver;
                }
            }
            loaded.looked_at = Instant::now();
        }
        loaded.resolver.clone()
    }
}

/// A system without a usable configuration still knows its hosts file.
fn load(name_servers: &[SocketAddr]) -> Option<Arc<TokioResolver>> {
    let system = if name_servers.is_empty() {
        read_system_conf().unwrap_or_else(|error| {
            tracing::warn!(%error, "`{RESOLV_CONF}` names no name server: webhooks reach hosts of `{HOSTS}` alone");
            (ResolverConfig::from_parts(None, Vec::new(), Vec::new()), ResolverOpts::default())
        })
    } else {
        let servers = name_servers.iter().map(|address| {
            let port = |mut connection: ConnectionConfig| {
                connection.port = address.port();
                connection
            };
            let ways = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(port);
            NameServerConfig::new(address.ip(), true, ways.to_vec())
        });
        (ResolverConfig::from_parts(None, Vec::new(), servers.collect()), ResolverOpts::default())
    };
    let (config, mut options) = system;
    options.timeout = options.timeout.min(QUESTION_TIMEOUT);
    options.attempts = options.attempts.min(2);
    // One refused address refuses the host, so all of them are asked for.
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.use_hosts_file = ResolveHosts::Always;
    // A name is looked up again at every attempt: a host that moved must be found, and one that moved inside refused.
    options.cache_size = 0;
    options.max_active_requests = 256;
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    let made = builder.build();
    made.inspect_err(|error| tracing::error!(%error, "no resolver can be made: webhooks reach addresses alone"))
        .ok()
        .map(Arc::new)
}

fn stamps() -> [Stamp; 2] {
    [RESOLV_CONF, HOSTS].map(|file| {
        let of = |of: std::fs::Metadata| (of.ino(), of.mtime(), of.mtime_nsec(), of.len());
        std::fs::metadata(Path::new(file)).ok().map(of)
    })
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::System => "System",
            Self::Scripted(_) => "Scripted",
        })
    }
}
