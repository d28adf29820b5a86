//! Completes an attempt: its result goes to the cursor, the metrics and the log.
//!
//! The log names endpoint and event, never the body; `request_id` finds every attempt to deliver a decision.

use std::error::Error;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use stage0_backplane::random_fraction;
use stage0_contract::{DisableWebhook, ManageReply, MarkBody, WebhookDisabled};

use super::{DeliveryWorker, Ended, Lease};
use crate::classify::classify;
use crate::cursor::{Attempt, Completion, OpenEvent};
use crate::egress::{Response, SendError};
use crate::send::DeliveryEndpoint;
use crate::shared::Shared;
use crate::{marks, metrics};

pub(super) struct FinishedAttempt {
    pub(super) event: OpenEvent,
    /// When it ended; a `Retry-After` counts from here.
    pub(super) at: Timestamp,
    pub(super) result: Result<Response, SendError>,
    pub(super) took: Duration,
}

impl DeliveryWorker {
    pub(super) async fn complete(
        &mut self,
        lease: &mut Lease,
        endpoint: &DeliveryEndpoint,
        finished: FinishedAttempt,
    ) -> Result<(), Ended> {
        let FinishedAttempt { event, at, result, took } = finished;
        lease.in_flight.remove(&event.sequence);
        lease.changed = true;
        let outcome = classify(&result, at);
        let attempt = Attempt {
            at,
            status: result.as_ref().ok().map(|response| response.status),
            error: outcome.reason().map(str::to_owned),
            latency_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        };
        let completion = lease.cursor.complete(event.sequence, &outcome, attempt, random_fraction());
        metrics::attempt(&completion, took, event.recorded_at, at);
        log_attempt(endpoint, &event, &completion, took, outcome.reason());
        match completion {
            Completion::Delivered | Completion::RetryScheduled | Completion::DeadLettered => Ok(()),
            // Other attempts were in flight when the first one disabled the endpoint.
            Completion::Disable(_) if lease.cursor.disabled => Ok(()),
            Completion::Disable(reason) => {
                // If the keystore does not answer, the next failure tries again.
                lease.cursor.disabled = self.disable(endpoint, reason).await;
                if lease.cursor.disabled { Err(Ended::Disabled) } else { Ok(()) }
            }
        }
    }

    /// Has the keystore disable the endpoint, and records a mark that the account's other endpoints receive.
    async fn disable(&self, endpoint: &DeliveryEndpoint, reason: String) -> bool {
        let webhook = endpoint.webhook.id.clone();
        tracing::warn!(%webhook, account = %endpoint.webhook.account, reason, "endpoint is disabled");
        let request = DisableWebhook { id: webhook.clone(), reason: reason.clone() };
        let reply = self.shared.backplane.requests.request(&request, Shared::STORE_TIMEOUT).await;
        let Ok(ManageReply::Done(WebhookDisabled {})) = reply else {
            tracing::error!(%webhook, "endpoint could not be disabled");
            return false;
        };
        metrics::endpoint_disabled();
        let body = MarkBody::WebhookDisabled { webhook, reason };
        let (account, days, now) = (&endpoint.webhook.account, endpoint.retention_days, self.shared.clock.now());
        let written = marks::write(&self.shared.backplane, account, days, body, SignedDuration::ZERO, now).await;
        if let Err(error) = written {
            let error = &error as &dyn Error;
            tracing::error!(webhook = %endpoint.webhook.id, error, "notice of the disabled endpoint was not written");
        }
        true
    }
}

/// One line for each attempt. A first attempt that succeeds is logged at debug level only.
fn log_attempt(
    endpoint: &DeliveryEndpoint,
    event: &OpenEvent,
    completion: &Completion,
    took: Duration,
    reason: Option<&str>,
) {
    let (webhook, request_id) = (&endpoint.webhook.id, event.request_id());
    let (attempt, outcome) = (event.attempts.saturating_add(1), completion.label());
    let (event, duration_ms) = (&event.event, took.as_secs_f64() * 1e3);
    match completion {
        Completion::Delivered if attempt == 1 => {
            tracing::debug!(request_id, %webhook, event, attempt, outcome, duration_ms, "event delivered");
        }
        Completion::Delivered => {
            tracing::info!(request_id, %webhook, event, attempt, outcome, duration_ms, "event delivered at last");
        }
        Completion::RetryScheduled => tracing::info!(
            request_id, %webhook, event, attempt, outcome, duration_ms, reason,
            "delivery failed and waits for another try"
        ),
        Completion::DeadLettered => tracing::warn!(
            request_id, %webhook, event, attempt, outcome, duration_ms, reason,
            "delivery failed to the end and is parked"
        ),
        Completion::Disable(_) => tracing::warn!(
            request_id, %webhook, event, attempt, outcome, duration_ms, reason,
            "delivery failed and the endpoint gets no more"
        ),
    }
}
