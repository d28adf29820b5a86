//! A run as its owner sees it.

use jiff::Timestamp;
use stage0_contract::{RequestId, Reservation, RunCost, RunId, RunSettled, RunView};

use super::{Allowed, RunState};

impl RunState {
    pub(super) fn view(&self, run_id: RunId, now: i64, reserved_for: i64) -> RunView {
        let open = self.allowed.iter().filter(|allowed| allowed.settled_micros.is_none() && !allowed.expired);
        RunView {
            run_id,
            first_seen: time(self.first_seen),
            last_seen: time(self.last_seen),
            expires_at: time(self.expires_at),
            iterations: self.iterations.max(self.reported_iteration),
            retries: self.retries,
            elapsed_seconds: units(self.elapsed_micros(now)),
            cost: self.cost(),
            tools: self.tools.iter().cloned().collect(),
            tool_calls: self.calls.clone(),
            reservations: open.map(|allowed| allowed.view(reserved_for)).collect(),
        }
    }

    pub(super) fn cost(&self) -> RunCost {
        RunCost {
            spent_usd: units(self.spent_micros),
            reserved_usd: units(self.reserved_micros()),
            total_usd: units(self.total_micros()),
        }
    }

    pub(super) fn settled(&self, run_id: RunId, request_id: RequestId, estimate: i64, actual: i64) -> RunSettled {
        RunSettled {
            run_id,
            request_id,
            estimated_cost_usd: units(estimate),
            actual_cost_usd: units(actual),
            cost: self.cost(),
        }
    }
}

impl Allowed {
    fn view(&self, reserved_for: i64) -> Reservation {
        Reservation {
            request_id: self.request_id(),
            estimated_cost_usd: units(self.estimate_micros),
            reserved_at: time(self.at),
            expires_at: time(self.at.saturating_add(reserved_for)),
        }
    }
}

/// Dollars or seconds for display; no decision uses them.
#[expect(clippy::cast_precision_loss, reason = "exact below nine billion units")]
fn units(micros: i64) -> f64 {
    micros as f64 / 1e6
}

fn time(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH)
}
