//! Holds up a check of an action whose earlier check has no known outcome, where its pack and its key want that.
//!
//! INVARIANT: an ALLOW of such an action is answered only after the state store holds that the action is open for this
//! check. If that is not known, the check is not decided.

use stage0_contract::{ActionDigest, Actor, EvaluateReply, EvaluateRequest, Evaluation, OpenAction};
use tokio::time::Instant;

use super::{Approvals, Hold, digest_of};
use crate::engines::Engines;
use crate::in_flight::InFlightCheck;
use crate::metrics;
use crate::records::RecordError;
use crate::run::RunUpdate;

impl Approvals {
    /// Opens the action of an allowed check, or defers the check.
    pub(super) async fn await_outcome(
        &self,
        engines: &Engines,
        check: &InFlightCheck,
        asker: &Actor,
        mut reply: EvaluateReply,
        update: Option<RunUpdate>,
    ) -> (EvaluateReply, Option<RunUpdate>) {
        let Some(digest) = digest_of(engines, check).await else { return (unclear(), None) };
        let hold = Hold::Action(digest.clone());
        // Set before the put, whose outcome may be unknown.
        check.add_hold(hold.clone());
        match self.outcomes.open(check, &digest, asker.retention_days).await {
            Ok(None) => (reply, update),
            Ok(Some(open)) => {
                check.drop_hold(&hold);
                if let EvaluateReply::Decided(evaluation) = &mut reply {
                    // What was reserved for it is given back with the answer, and its events with it.
                    evaluation.decision.approval = None;
                    evaluation.approval_source = None;
                    evaluation.events.clear();
                    hold_up(engines, check, evaluation, &open);
                }
                (reply, update.map(RunUpdate::deferred))
            }
            Err(error) => {
                log(check, &error);
                (unclear(), None)
            }
        }
    }

    /// Whether a deferred check would be held up with an approval too; then its decision says so.
    pub(super) async fn is_held_up(
        &self,
        engines: &Engines,
        check: &InFlightCheck,
        digest: &ActionDigest,
        evaluation: &mut Evaluation,
    ) -> bool {
        match self.outcomes.find_open(check, digest).await {
            Ok(Some(open)) => {
                hold_up(engines, check, evaluation, &open);
                true
            }
            Ok(None) => false,
            // It is deferred anyway, and opens nothing that may be in vain.
            Err(error) => {
                log(check, &error);
                true
            }
        }
    }

    /// What this check has opened is open no longer: it does not end as that ALLOW.
    pub(super) async fn give_action_back(&self, check: &InFlightCheck, digest: &ActionDigest, deadline: Instant) {
        if let Err(error) = self.outcomes.give_back(check, digest, deadline).await {
            // It stays open, and names this check: its outcome can be reported.
            log(check, &error);
        }
    }
}

fn hold_up(engines: &Engines, check: &InFlightCheck, evaluation: &mut Evaluation, open: &OpenAction) {
    let EvaluateRequest { request_id, account, .. } = &**check.request();
    let wanted = check.request().request.policy_pack_version.as_deref();
    // It was chosen to decide the check, so it is there.
    if let Ok(pack) = engines.handler().choose(&check.chosen, wanted) {
        pack.hold_up(evaluation, open);
    }
    // No other policy would have decided so by its rules.
    check.forget_decided();
    tracing::info!(%request_id, %account, open_request_id = %open.request_id, "check held up: an outcome is not known");
}

fn unclear() -> EvaluateReply {
    EvaluateReply::Unable("whether the action's last outcome is known cannot be read or stored".to_owned())
}

fn log(check: &InFlightCheck, error: &RecordError) {
    let EvaluateRequest { request_id, account, .. } = &**check.request();
    metrics::outcomes_failed();
    tracing::warn!(%request_id, %account, error = error as &dyn std::error::Error, "outcomes failed");
}
