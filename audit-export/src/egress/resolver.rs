//! Resolves names to addresses without blocking a thread.
//!
//! The hosts file and the name servers (configured, or those of `/etc/resolv.conf`) are read again when they change.
//! The system's own resolver would block a thread until its timeout, even after the attempt has ended.

use std::error::Error;
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

/// Where host names are resolved.
pub enum Resolver {
    /// The system's hosts file and name servers.
    System,
    /// By a function, for tests in which names change their addresses.
    Scripted(Box<Script>),
}

type Script = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// For one query to one server, before it is repeated.
const DNS_QUERY_TIMEOUT: Duration = Duration::from_secs(2);
/// The two files are checked for changes at most this often.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);
const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";

pub(super) enum NameResolver {
    Dns(Dns),
    Scripted(Box<Script>),
}

pub(super) struct Dns {
    /// Used instead of those in `/etc/resolv.conf`, unless empty.
    name_servers: Vec<SocketAddr>,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    checked_at: Instant,
    files: [FileVersion; 2],
    resolver: Option<Arc<TokioResolver>>,
}

/// Inode, modification time and size; none if the file does not exist.
type FileVersion = Option<(u64, i64, i64, u64)>;

impl NameResolver {
    /// Reads the two files, so it blocks.
    pub(super) fn new(resolver: Resolver, name_servers: &[SocketAddr]) -> Self {
        match resolver {
            Resolver::System => {
                let files = file_versions();
                let (checked_at, resolver) = (Instant::now(), load(name_servers));
                let loaded = Mutex::new(Loaded { checked_at, files, resolver });
                Self::Dns(Dns { name_servers: name_servers.to_vec(), loaded })
            }
            Resolver::Scripted(script) => Self::Scripted(script),
        }
    }

    pub(super) async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        match self {
            Self::Dns(dns) => {
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
    /// The resolver, rebuilt if a file has changed.
    async fn current(&self) -> Option<Arc<TokioResolver>> {
        let mut loaded = self.loaded.lock().await;
        if loaded.checked_at.elapsed() >= RELOAD_INTERVAL {
            let (before, name_servers) = (loaded.files, self.name_servers.clone());
            let looked = tokio::task::spawn_blocking(move || {
                let files = file_versions();
                (files, (files != before).then(|| load(&name_servers)))
            });
            if let Ok((files, resolver)) = looked.await {
                loaded.files = files;
                if let Some(resolver) = resolver {
                    tracing::info!("name servers and hosts were read again");
                    loaded.resolver = resolver;
                }
            }
            loaded.checked_at = Instant::now();
        }
        loaded.resolver.clone()
    }
}

/// Builds a resolver. Without a usable `/etc/resolv.conf` it still reads the hosts file.
fn load(name_servers: &[SocketAddr]) -> Option<Arc<TokioResolver>> {
    let system = if name_servers.is_empty() {
        read_system_conf().unwrap_or_else(|error| {
            let error = &error as &dyn Error;
            tracing::warn!(error, "`{RESOLV_CONF}` names no name server: webhooks reach only hosts in `{HOSTS}`");
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
    options.timeout = options.timeout.min(DNS_QUERY_TIMEOUT);
    options.attempts = options.attempts.min(2);
    // One refused address refuses the host, so all addresses are needed.
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.use_hosts_file = ResolveHosts::Always;
    // A host that moved must be found at every attempt, and refused if it moved to an internal address.
    options.cache_size = 0;
    options.max_active_requests = 256;
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    let built = builder.build();
    if let Err(error) = &built {
        let error = error as &dyn Error;
        tracing::error!(error, "no resolver can be built: webhooks reach only URLs with an IP address");
    }
    built.ok().map(Arc::new)
}

fn file_versions() -> [FileVersion; 2] {
    [RESOLV_CONF, HOSTS].map(|file| {
        let of = |of: std::fs::Metadata| (of.ino(), of.mtime(), of.mtime_nsec(), of.len());
        std::fs::metadata(Path::new(file)).ok().map(of)
    })
}
