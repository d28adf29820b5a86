//! SIGTERM and SIGINT: the first asks the services to drain, the second ends the process at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Listens from now on; the token is cancelled by the first signal.
pub(crate) fn stop_token() -> io::Result<CancellationToken> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    // Ends with the process: there is nothing to join.
    tokio::spawn(async move {
        either(&mut term, &mut int).await;
        tracing::info!("stopping: no new work, finishing what is in hand");
        stopping.cancel();
        either(&mut term, &mut int).await;
        tracing::warn!("second signal: ending at once");
        std::process::exit(1);
    });
    Ok(stop)
}

async fn either(term: &mut Signal, int: &mut Signal) {
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
