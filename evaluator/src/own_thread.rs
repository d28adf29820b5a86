//! Work that takes long, on a thread of its own with a lower priority, so that checks do not wait for it.

use std::thread;

use tokio::sync::oneshot;

/// On Linux: about a tenth of a busy core.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;
/// For work that a caller waits for. On Linux: about a quarter of a busy core.
#[cfg(target_os = "linux")]
const NICENESS_OF_WORK: i32 = 5;

/// Runs `work` to its end, also where its result is not waited for. `None` if no thread can be started, or it panics.
pub(crate) fn on_own_thread<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = Option<T>> + Send {
    let (done, result) = oneshot::channel();
    let work = move || {
        #[cfg(target_os = "linux")]
        set_niceness(NICENESS_OF_WORK);
        // The caller may be gone.
        let _ = done.send(work());
    };
    let started = thread::Builder::new().name(name.to_owned()).spawn(work);
    async move {
        if let Err(error) = started {
            tracing::error!(error = &error as &dyn std::error::Error, "a thread cannot be started");
            return None;
        }
        result.await.ok()
    }
}

/// Lowers the priority of the calling thread.
pub(crate) fn lower_priority() {
    // On Linux the priority applies to the thread; elsewhere it would apply to the process.
    #[cfg(target_os = "linux")]
    set_niceness(NICENESS);
}

#[cfg(target_os = "linux")]
fn set_niceness(niceness: i32) {
    if let Err(error) = rustix::process::setpriority_process(None, niceness) {
        tracing::debug!(%error, "a thread keeps the priority of ordinary ones");
    }
}
