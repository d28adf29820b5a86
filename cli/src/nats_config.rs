//! `stage0 nats-config`: prints the configuration of nats-server.

use std::net::{Ipv4Addr, SocketAddr};

use stage0_backplane::nats::{ClusterConf, Logins, NatsServerConf, Requirement};

use crate::args::nats::NatsConfigArgs;
use crate::exit::UsageError;
use crate::{logins, message_keys, out};

/// The port that nats-server's own documents use for routes.
pub(crate) const ROUTES_PORT: u16 = 6222;
/// With fewer servers than three, losing one loses the majority that streams need.
const MIN_ROUTES: usize = 2;

pub(crate) fn run(args: NatsConfigArgs) -> anyhow::Result<()> {
    let cluster = cluster(&args)?;
    let NatsConfigArgs { prefix, name, listen, monitor, tls_dir, store_dir, max_store, passwords, .. } = args;
    let NatsConfigArgs { keys_dir, logins_dir, gateways, evaluators, keystores, audit_exports, .. } = args;
    let logins = Logins { gateways, evaluators, keystores, audit_exports };
    if let Some(dir) = keys_dir {
        let is_new = message_keys::create(&dir, Requirement::Always)?;
        let state = if is_new { "were created" } else { "are unchanged" };
        out::stderr_line(format!("message keys of each role {state} in `{}`", dir.display()));
    }
    if let Some(dir) = logins_dir {
        logins::create(&dir, logins)?;
        out::stderr_line(format!("the password of each login is in `{}`", dir.display()));
    }
    let max_file = max_store;
    let file =
        NatsServerConf { prefix, name, listen, monitor, tls_dir, store_dir, max_file, passwords, logins, cluster };
    Ok(out::write(file.render().as_bytes())?)
}

/// None: the server is no part of a cluster.
fn cluster(args: &NatsConfigArgs) -> Result<Option<ClusterConf>, UsageError> {
    let Some(name) = args.cluster.clone() else {
        let alone = [
            (!args.routes.is_empty(), "--route needs --cluster NAME, the name that all servers of the cluster have"),
            (args.cluster_listen.is_some(), "--cluster-listen needs --cluster NAME and --route"),
            (args.cluster_tls_dir.is_some(), "--cluster-tls-dir needs --cluster NAME and --route"),
        ];
        return alone.into_iter().find(|(is_given, _)| *is_given).map_or(Ok(None), |(_, why)| Err(UsageError(why)));
    };
    let routes = args.routes.clone();
    if routes.len() < MIN_ROUTES {
        return Err(UsageError(
            "--cluster needs --route NAME:PORT for each other server, and at least two of them: fewer than three \
             servers do not survive the loss of one",
        ));
    }
    let are_distinct = routes.iter().enumerate().all(|(at, route)| !routes.iter().take(at).any(|known| known == route));
    if !are_distinct {
        return Err(UsageError("--route names the same server twice"));
    }
    if routes.iter().any(|route| route.host().eq_ignore_ascii_case(&args.name)) {
        return Err(UsageError("--route names this server itself (--name): give it for the others only"));
    }
    let listen = args.cluster_listen.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, ROUTES_PORT)));
    if [args.listen, args.monitor].into_iter().any(|other| collide(listen, other)) {
        return Err(UsageError("--cluster-listen must be another address than --listen and --monitor"));
    }
    let tls_dir = args.cluster_tls_dir.as_ref().unwrap_or(&args.tls_dir).clone();
    Ok(Some(ClusterConf { name, listen, routes, tls_dir }))
}

/// Whether one server cannot listen on both.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let same_host = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    same_host && one.port() == other.port()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: NatsConfigArgs,
    }

    fn made(words: &[&str]) -> Result<Option<ClusterConf>, String> {
        let line = Line::try_parse_from([&["nats-config"][..], words].concat()).map_err(|error| error.to_string())?;
        cluster(&line.args).map_err(|error| error.to_string())
    }

    const ONE: &[&str] = &["--cluster", "c", "--route", "n2:6222"];
    const TWO: &[&str] = &["--cluster", "c", "--route", "n2:6222", "--route", "n3:6222"];

    #[test]
    fn a_server_is_alone_unless_the_cluster_and_at_least_two_others_are_named() {
        assert!(made(&[]).unwrap().is_none());
        let cluster = made(&[TWO, &["--tls-dir", "/tls"]].concat()).unwrap().unwrap();
        assert_eq!((cluster.name.as_str(), cluster.listen.to_string()), ("c", "0.0.0.0:6222".to_owned()));
        assert_eq!(cluster.routes.iter().map(ToString::to_string).collect::<Vec<_>>(), ["n2:6222", "n3:6222"]);
        assert_eq!(cluster.tls_dir.to_str(), Some("/tls"));
        let own: &[&str] = &["--cluster-listen", "10.0.0.1:7000", "--cluster-tls-dir", "/routes"];
        let cluster = made(&[TWO, own].concat()).unwrap().unwrap();
        assert_eq!((cluster.listen.port(), cluster.tls_dir.to_str()), (7000, Some("/routes")));
    }

    #[test]
    fn flags_of_a_cluster_that_do_not_go_together_are_refused_by_name() {
        let refused = |base: &[&str], more: &[&str], why: &str| {
            let error = made(&[base, more].concat()).unwrap_err();
            assert!(error.contains(why), "{base:?} {more:?}: {error}");
        };
        refused(&[], &["--route", "n2:6222"], "--route needs --cluster");
        refused(&[], &["--cluster-listen", "0.0.0.0:6222"], "--cluster-listen needs --cluster");
        refused(&[], &["--cluster-tls-dir", "/x"], "--cluster-tls-dir needs --cluster");
        refused(&[], &["--cluster", "c"], "--cluster needs --route NAME:PORT");
        refused(ONE, &[], "at least two");
        refused(ONE, &["--route", "N2:6222"], "--route names the same server twice");
        refused(ONE, &["--route", "10.0.0.3:6222"], "must be a DNS name");
        refused(TWO, &["--name", "n3"], "--route names this server itself (--name)");
        for taken in ["127.0.0.1:4222", "127.0.0.1:8222"] {
            refused(TWO, &["--cluster-listen", taken], "--cluster-listen must be another address");
        }
    }
}
