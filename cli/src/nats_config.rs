//! `stage0 nats-config`: prints what a nats-server of this product is told. Rights and subjects are the backplane's and the contract's.

use stage0_backplane::nats::{Logins, Requirement, ServerFile};

use crate::args::nats_config::NatsConfigArgs;
use crate::exit::Exit;
use crate::{logins, message_keys, out};

/// Prints it.
pub(crate) fn run(args: NatsConfigArgs) -> Exit {
    crate::run::finished(print(args))
}

fn print(args: NatsConfigArgs) -> anyhow::Result<()> {
    let NatsConfigArgs { prefix, name, listen, monitor, tls_dir, store_dir, max_store, passwords, .. } = args;
    let NatsConfigArgs { keys_dir, logins_dir, gateways, evaluators, keystores, audit_exports, .. } = args;
    let logins = Logins { gateways, evaluators, keystores, audit_exports };
    if let Some(dir) = keys_dir {
        // The file is on standard output.
        match message_keys::create(&dir, Requirement::Always)? {
            true => out::complain(format!("message keys of each role are in `{}`", dir.display())),
            false => out::complain(format!("message keys in `{}` stay as they are", dir.display())),
        }
    }
    if let Some(dir) = logins_dir {
        logins::create(&dir, logins)?;
        out::complain(format!("passwords of each login are in `{}`", dir.display()));
    }
    let max_file = max_store;
    let file = ServerFile { prefix, name, listen, monitor, tls_dir, store_dir, max_file, passwords, logins };
    Ok(out::write(file.render().as_bytes())?)
}
