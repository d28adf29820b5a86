//! What came of an attempt: into the cursor, the metrics and the log, where `request_id` finds every attempt of a decision.
//!
//! Owns what follows from it, up to having an endpoint disabled. The log names endpoint and event and says nothing of the body.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use stage0_contract::{DisableWebhook, Endpoint, ManageReply, MarkBody, WebhookDisabled};

use super::{Courier, Held, Step, random};
use crate::cursor::{Attempt, Open, Settled};
use crate::egress::{Response, SendError};
use crate::metrics;
use crate::post;
use crate::shared::Shared;
use crate::verdict::outcome;

/// An attempt that is over.
pub(super) struct Flight {
    pub(super) open: Open,
    /// When it ended: from then on a receiver that wants time is given it.
    pub(super) at: Timestamp,
    pub(super) answer: Result<Response, SendError>,
    pub(super) took: Duration,
}

impl Courier {
    /// Notes what came of an attempt.
    pub(super) async fn land(&mut self, held: &mut Held, endpoint: &Endpoint, flight: Flight) -> Step {
        let Flight { open, at, answer, took } = flight;
        held.aloft.remove(&open.sequence);
        held.changed = true;
        let judged = outcome(&answer, at);
        let attempt = Attempt {
            at,
            status: answer.as_ref().ok().map(|response| response.status),
            error: post::reason(&judged),
            latency_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        };
        let reason = attempt.error.clone();
        let settled = held.cursor.settle(open.sequence, &judged, attempt, random());
        metrics::settled(&settled, took, open.recorded_at, at);
        say(endpoint, &open, &settled, took, reason.as_deref());
        match settled {
            Settled::Delivered | Settled::Waiting | Settled::Exhausted => Step::GoOn,
            // Others were on their way when the first one said so.
            Settled::Disable(_) if held.cursor.disabled => Step::GoOn,
            Settled::Disable(reason) => {
                let step = self.disable(endpoint, reason).await;
                held.cursor.disabled = matches!(step, Step::Disabled);
                step
            }
        }
    }

    /// Has the keystore disable the endpoint, and puts a mark into the log, which other endpoints of the account get.
    async fn disable(&self, endpoint: &Endpoint, reason: String) -> Step {
        let webhook = endpoint.webhook.id.clone();
        tracing::warn!(%webhook, account = %endpoint.webhook.account, reason, "endpoint is disabled");
        let ask = DisableWebhook { id: webhook.clone(), reason: reason.clone() };
        match self.shared.backplane.requests.ask(&ask, Shared::STORE_WITHIN).await {
            Ok(ManageReply::Done(WebhookDisabled {})) => metrics::endpoint_disabled(),
            Ok(ManageReply::Refused(_) | ManageReply::Failed | ManageReply::Busy) | Err(_) => {
                // The next failure asks again.
                tracing::error!(%webhook, "endpoint could not be disabled");
                return Step::GoOn;
            }
        }
        let body = MarkBody::WebhookDisabled { webhook, reason };
        let (account, days) = (&endpoint.webhook.account, endpoint.retention_days);
        if let Err(error) = self.shared.mark(account, days, body, SignedDuration::ZERO).await {
            tracing::error!(webhook = %endpoint.webhook.id, %error, "notice of the disabled endpoint was not written");
        }
        Step::Disabled
    }
}

/// One line for each attempt. What is as it should be is told on demand only.
fn say(endpoint: &Endpoint, open: &Open, settled: &Settled, took: Duration, reason: Option<&str>) {
    let (webhook, request_id, event) = (&endpoint.webhook.id, open.request_id(), &open.event);
    let (attempt, outcome) = (open.attempts.saturating_add(1), metrics::outcome(settled));
    let duration_ms = took.as_secs_f64() * 1e3;
    match settled {
        Settled::Delivered if attempt == 1 => {
            tracing::debug!(request_id, %webhook, event, attempt, outcome, duration_ms, "event delivered");
        }
        Settled::Delivered => {
            tracing::info!(request_id, %webhook, event, attempt, outcome, duration_ms, "event delivered at last");
        }
        Settled::Waiting => {
            tracing::info!(request_id, %webhook, event, attempt, outcome, duration_ms, reason, "delivery failed and waits for another try");
        }
        Settled::Exhausted => {
            tracing::warn!(request_id, %webhook, event, attempt, outcome, duration_ms, reason, "delivery failed to the end and is parked");
        }
        Settled::Disable(_) => {
            tracing::warn!(request_id, %webhook, event, attempt, outcome, duration_ms, reason, "delivery failed and the endpoint gets no more");
        }
    }
}
