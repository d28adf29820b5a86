//! Whether this process can do its part: asked by `/readyz`, and told to the gateways every two seconds.
//!
//! Owns the last look, which is at most a second old however often it is asked for, and what this process is called. What makes a role
//! ready is the role's own `Look`. Telling is best effort: an event that is lost is followed by the next.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use stage0_backplane::{Backplane, BoxFuture, TellError};
use stage0_contract::{DeliveryLag, InstanceSeen, InstanceState, PolicyVersion, Role};
use tokio::sync::Mutex;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;

use crate::args::VERSION;

const FRESH: Duration = Duration::from_secs(1);
/// A look that takes longer says as much.
const WITHIN: Duration = Duration::from_millis(1_500);

/// Looks at one role.
pub(crate) type Look = Box<dyn Fn() -> BoxFuture<'static, Seen> + Send + Sync>;

/// What a look finds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// Why the role cannot do its part; none: it can.
    pub(crate) faults: Vec<String>,
    /// What an operator should know.
    pub(crate) remarks: Vec<String>,
    /// Of an evaluator.
    pub(crate) policy_version: Option<PolicyVersion>,
    /// Of audit-export.
    pub(crate) delivery: Option<DeliveryLag>,
}

/// The state of this process.
#[derive(Clone)]
pub(crate) struct Vitals(Arc<Process>);

struct Process {
    instance: String,
    started_at: Timestamp,
    stop: CancellationToken,
    /// Unset while it starts.
    look: OnceLock<Look>,
    last: Mutex<Option<(Instant, Seen)>>,
}

impl Vitals {
    /// Of a process that starts now, and stops with the token.
    pub(crate) fn new(stop: CancellationToken) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        // Processes of several containers may share a host's name, and each be its first.
        let mut own = [0; 3];
        let instance = match getrandom::fill(&mut own) {
            Ok(()) => format!("{host}-{}", data_encoding::HEXLOWER.encode(&own)),
            Err(_) => format!("{host}-{}", std::process::id()),
        };
        let (look, last) = (OnceLock::new(), Mutex::default());
        Self(Arc::new(Process { instance, started_at: Timestamp::now(), stop, look, last }))
    }

    /// Says how it is looked at from now on. The first one stays.
    pub(crate) fn set(&self, look: Look) {
        let _ = self.0.look.set(look);
    }

    /// How it is now, or was a moment ago.
    pub(crate) async fn look(&self) -> Seen {
        if self.0.stop.is_cancelled() {
            return Seen { faults: vec!["it stops".to_owned()], ..Seen::default() };
        }
        let mut last = self.0.last.lock().await;
        if let Some((at, seen)) = &*last
            && at.elapsed() < FRESH
        {
            return seen.clone();
        }
        let seen = match self.0.look.get() {
            None => Seen { faults: vec!["it starts".to_owned()], ..Seen::default() },
            Some(look) => timeout(WITHIN, look()).await.unwrap_or_else(|_| Seen {
                faults: vec![format!("it could not be looked at within {WITHIN:?}")],
                ..Seen::default()
            }),
        };
        *last = self.0.look.get().map(|_| (Instant::now(), seen.clone()));
        seen
    }

    /// Tells the gateways how it is until it is stopped, and then that it stops. Ends with `stop`.
    pub(crate) async fn tell(self, roles: &'static [Role], backplane: Backplane, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(InstanceSeen::EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let stopping = tokio::select! {
                _ = ticks.tick() => false,
                () = stop.cancelled() => true,
            };
            let seen = if stopping { Seen::default() } else { self.look().await };
            for role in roles {
                let said = self.said(*role, &seen, stopping);
                let told = match serde_json::to_vec(&said) {
                    Ok(bytes) => backplane.notices.tell_bytes(InstanceSeen::subject(*role), bytes.into()).await,
                    Err(_) => Err(TellError),
                };
                if told.is_err() {
                    tracing::debug!(%role, "gateways were not told of this process");
                }
            }
            if stopping {
                return;
            }
        }
    }

    fn said(&self, role: Role, seen: &Seen, stopping: bool) -> InstanceSeen {
        let state = match (stopping, seen.faults.is_empty()) {
            (true, _) => InstanceState::Stopping,
            (false, true) => InstanceState::Ready,
            (false, false) => InstanceState::NotReady,
        };
        InstanceSeen {
            role,
            instance: self.0.instance.clone(),
            version: VERSION.to_owned(),
            started_at: self.0.started_at,
            state,
            remarks: InstanceSeen::remarks_of(seen.faults.iter().chain(&seen.remarks).cloned()),
            policy_version: seen.policy_version.clone().filter(|_| role == Role::Evaluator),
            delivery: seen.delivery.filter(|_| role == Role::AuditExport),
        }
    }
}

#[cfg(test)]
mod tests {
    use stage0_backplane::Event;

    use super::*;

    fn found(fault: &str) -> Look {
        let fault = fault.to_owned();
        Box::new(move || {
            let faults = vec![fault.clone()];
            Box::pin(async move { Seen { faults, ..Seen::default() } })
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_starts_is_not_ready_and_says_so_no_longer_than_it_is_true() {
        let vitals = Vitals::new(CancellationToken::new());
        assert_eq!(vitals.look().await.faults, ["it starts"]);
        vitals.set(found("x"));
        assert_eq!(vitals.look().await.faults, ["x"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_hangs_is_a_fault() {
        let vitals = Vitals::new(CancellationToken::new());
        vitals.set(Box::new(|| Box::pin(std::future::pending())));
        assert!(vitals.look().await.faults[0].contains("could not be looked at"));
    }

    #[tokio::test(start_paused = true)]
    async fn gateways_hear_how_a_process_is_and_that_it_stops() {
        let (backplane, stop) = (Backplane::embedded(), CancellationToken::new());
        let vitals = Vitals::new(stop.clone());
        vitals.set(found("x"));
        let mut heard = backplane.notices.listen_bytes(InstanceSeen::subject(Role::Keystore)).await.unwrap();
        let mut next = async || match heard.next().await.unwrap() {
            Event::Heard(bytes) => serde_json::from_slice::<InstanceSeen>(&bytes).unwrap(),
            Event::Gap => panic!("a gap"),
        };
        let stopping = vitals.clone();
        let telling = tokio::spawn(vitals.tell(&[Role::Keystore], backplane.clone(), stop.clone()));
        let said = next().await;
        assert_eq!(
            (said.role, said.state, said.remarks),
            (Role::Keystore, InstanceState::NotReady, vec!["x".to_owned()])
        );
        stop.cancel();
        telling.await.unwrap();
        assert_eq!(stopping.look().await.faults, ["it stops"]);
        let said = next().await;
        assert_eq!(said.state, InstanceState::Stopping);
    }
}
