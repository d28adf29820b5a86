//! `stage0 nats-config`: prints what a nats-server of this product is told. Rights and subjects are the backplane's and the contract's.

use stage0_backplane::nats::ServerFile;

use crate::args::nats_config::NatsConfigArgs;
use crate::exit::Exit;
use crate::out;

/// Prints it.
pub(crate) fn run(args: NatsConfigArgs) -> Exit {
    let NatsConfigArgs { prefix, name, listen, monitor, tls_dir, store_dir, max_store, passwords } = args;
    let file = ServerFile { prefix, name, listen, monitor, tls_dir, store_dir, max_file: max_store, passwords };
    crate::run::finished(out::write(file.render().as_bytes()).map_err(anyhow::Error::from))
}
