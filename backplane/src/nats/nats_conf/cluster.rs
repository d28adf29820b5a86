//! What makes a server one of a cluster: where it listens for routes, and to which servers it has them.
//!
//! A route carries the messages of every account and those that replicate the streams: one that is not ours reads and
//! writes everything. The authority of NATS also signs the certificates of the roles, so its signature is not enough.
//! INVARIANT: a server accepts a route only from a certificate that has the DNS name of a server in its `routes`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::quoted;

/// The copies of each stream that a cluster is made for.
pub(super) const COPIES: u64 = 3;

/// One server's place in a cluster.
#[derive(Debug, Clone)]
pub struct ClusterConf {
    /// The cluster's name, the same for all its servers.
    pub name: String,
    /// Where the other servers connect.
    pub listen: SocketAddr,
    /// Each other server.
    pub routes: Vec<ClusterRoute>,
    /// Holds `server.pem`, `server.key` and `ca.pem` of the routes.
    pub tls_dir: PathBuf,
}

/// Where another server of the cluster is: a DNS name, which its certificate has, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterRoute {
    host: String,
    port: u16,
}

impl ClusterRoute {
    /// Of `name:port`. None for an address: a certificate is compared with names only.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let letters = |label: &str| label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        let is_label =
            |label: &str| !label.is_empty() && letters(label) && !label.starts_with('-') && !label.ends_with('-');
        let is_name = host.split('.').all(is_label) && host.parse::<IpAddr>().is_err();
        let port = port.parse().ok().filter(|port| *port > 0)?;
        is_name.then(|| Self { host: host.to_ascii_lowercase(), port })
    }

    /// The server's DNS name.
    pub fn host(&self) -> &str {
        &self.host
    }
}

impl fmt::Display for ClusterRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl ClusterConf {
    /// The block `cluster`, with a blank line before it.
    pub(super) fn render(&self) -> String {
        let Self { name, listen, routes, tls_dir } = self;
        let tls = |file: &str| quoted(&tls_dir.join(file).display().to_string());
        let (cert, key, ca) = (tls("server.pem"), tls("server.key"), tls("ca.pem"));
        let routes = routes.iter().map(|route| format!("    {}\n", quoted(&format!("nats-route://{route}"))));
        let routes: String = routes.collect();
        format!(
            r#"
# This server is one of a cluster. Start it with an empty `store_dir`: half a minute after it joins, a server deletes
# the streams that the cluster does not know, such as those that it had alone.
cluster {{
  name: {name}
  listen: "{listen}"
  # Roles are given every server (`--nats`). What servers would tell them are addresses, which no certificate has.
  no_advertise: true
  # A route reads and writes everything, and roles have certificates of the same authority. So a server is accepted only
  # by a DNS name in its certificate that stands in `routes`. The certificate is used in both directions: it needs the
  # extended key usages `serverAuth` and `clientAuth`.
  tls {{
    cert_file: {cert}
    key_file: {key}
    ca_file: {ca}
    verify: true
    verify_cert_and_check_known_urls: true
    timeout: 5
  }}
  # Each other server.
  routes: [
{routes}  ]
}}
"#
        )
    }
}

/// A size such as `20GB`, multiplied.
pub(super) fn times(size: &str, factor: u64) -> String {
    let unit = size.trim_start_matches(|c: char| c.is_ascii_digit());
    let number = size.strip_suffix(unit).and_then(|number| number.parse::<u64>().ok());
    number.map_or_else(|| size.to_owned(), |number| format!("{}{unit}", number.saturating_mul(factor)))
}

#[cfg(test)]
mod tests {
    use super::super::{Logins, NatsServerConf};
    use super::*;

    fn conf(cluster: Option<ClusterConf>) -> String {
        let file = NatsServerConf {
            prefix: "s0".to_owned(),
            name: "n1".to_owned(),
            listen: "0.0.0.0:4222".parse().unwrap(),
            monitor: "127.0.0.1:8222".parse().unwrap(),
            tls_dir: "/etc/nats".into(),
            store_dir: "/var/lib/nats".into(),
            max_file: "20GB".to_owned(),
            passwords: None,
            logins: Logins::SHARED,
            cluster,
        };
        file.render()
    }

    fn three() -> ClusterConf {
        ClusterConf {
            name: "stage0".to_owned(),
            listen: "0.0.0.0:6222".parse().unwrap(),
            routes: ["n2:6222", "n3.example:6223"].map(|route| ClusterRoute::parse(route).unwrap()).to_vec(),
            tls_dir: "/etc/routes".into(),
        }
    }

    #[test]
    fn a_route_is_a_dns_name_and_a_port() {
        for good in ["n2:6222", "nats-2.example.com:1", "a_b:65535", "1n:6222"] {
            assert_eq!(ClusterRoute::parse(good).unwrap().to_string(), good);
        }
        assert_eq!(ClusterRoute::parse("N2.Example:6222").unwrap().host(), "n2.example");
        for bad in [
            "",
            "n2",
            "n2:",
            ":6222",
            "n2:0",
            "n2:65536",
            "10.0.0.2:6222",
            "[::1]:6222",
            "::1:6222",
            "a b:1",
            "a..b:1",
            "-a:1",
            "a-:1",
            "u:p@n2:6222",
            "nats-route://n2:6222",
            "n2\":1",
            "n2/x:1",
        ] {
            assert_eq!(ClusterRoute::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_server_of_a_cluster_differs_from_a_single_one_by_its_routes_and_the_space_of_the_streams() {
        let (single, one_of_three) = (conf(None), conf(Some(three())));
        assert!(!single.contains("cluster"), "{single}");
        let block = three().render();
        assert!(one_of_three.contains(&format!("lame_duck_duration: \"30s\"\n{block}\njetstream {{\n")), "{block}");
        let (of_account, of_cluster) = ("jetstream: { max_file: 20GB,", "jetstream: { max_file: 60GB,");
        assert!(single.contains(of_account) && one_of_three.contains(of_cluster));
        assert_eq!(one_of_three.replace(&block, "").replace(of_cluster, of_account), single);
        for part in [
            "  name: stage0\n  listen: \"0.0.0.0:6222\"\n",
            "    cert_file: \"/etc/routes/server.pem\"\n",
            "    verify_cert_and_check_known_urls: true\n",
            "  routes: [\n    \"nats-route://n2:6222\"\n    \"nats-route://n3.example:6223\"\n  ]\n",
            "no_advertise: true",
        ] {
            assert!(block.contains(part), "{part} in\n{block}");
        }
    }

    #[test]
    fn sizes_are_multiplied_in_their_unit() {
        assert_eq!((times("20GB", 3), times("1TB", 3), times("odd", 3)), ("60GB".into(), "3TB".into(), "odd".into()));
    }
}
