//! `stage0 nats-config`: prints the configuration of nats-server.

use stage0_backplane::nats::{Logins, NatsServerConf, Requirement};

use crate::args::nats::NatsConfigArgs;
use crate::{logins, message_keys, out};

pub(crate) fn run(args: NatsConfigArgs) -> anyhow::Result<()> {
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
    let file =
        NatsServerConf { prefix, name, listen, monitor, tls_dir, store_dir, max_file: max_store, passwords, logins };
    Ok(out::write(file.render().as_bytes())?)
}
