//! Calls that change an approval: votes, cancellations, and what its workload reports.
//!
//! Who may call is judged first: an approval of another account or workload is not found. A vote reads people as
//! they are now. INVARIANT: the reply carries what must be recorded before anybody is answered.

use std::rc::Rc;
use std::time::Duration;

use stage0_contract::{
    Actor, ApprovalChange, ApprovalChanged, ApprovalEvent, ApprovalId, ApprovalStatus, ChangeApproval, ManageReply,
    People, Refusal, ReportDecisionOutcome, Scope, Unrecorded,
};
use tokio::time::Instant;

use super::people::Directory;
use super::record::StoredApproval;
use super::serve::{conflict, failed, invalid, is_own, not_found, sees_all};
use super::state::Change;
use super::store::{ApprovalStore, StoreError, pause};
use super::{Approvals, reason};
use crate::engines::{Engines, SecretForms};
use crate::metrics;

/// The longest evidence of a system outside, and the longest name of an approver there, in characters.
const MAX_EVIDENCE_CHARS: usize = 2_000;
const MAX_NAME_CHARS: usize = 200;
const MAX_NAMES: usize = 10;
/// The longest time that a text is kept which its own workload took back: no one has to read it any more.
const OWN_CANCEL_TEXT_TTL: Duration = Duration::from_secs(60);

impl Approvals {
    /// `POST /v1/approvals/{id}/…`.
    pub(crate) async fn change(
        &self,
        engines: &Engines,
        message: &ChangeApproval,
        deadline: Instant,
    ) -> ManageReply<ApprovalChanged> {
        let ChangeApproval { account, actor, id, change, .. } = message;
        let found = match self.store.find(account, id, deadline).await {
            Ok(found) => found.filter(|(_, approval, _)| may_see(actor, approval, change)),
            Err(error) => return failed(account, &error),
        };
        let Some((place, approval, _)) = found else { return not_found() };
        if let Err(refusal) = may_call(actor, &approval, change) {
            return ManageReply::Refused(refusal);
        }
        if !actor.can_record {
            // A process of an earlier version reads the log: what happens here could not be recorded.
            return ManageReply::Failed;
        }
        if !place.is_current && !matches!(change, ApprovalChange::Report { .. }) {
            return conflict("it has ended, and a newer approval of the same action was opened");
        }
        let reason = match self.checked_reason(engines, message, deadline).await {
            Ok(reason) => reason,
            Err(refusal) => return ManageReply::Refused(refusal),
        };
        let Some(people) = self.people(account, deadline).await else { return ManageReply::Failed };
        match self.changed(engines, message, &reason, &people, deadline).await {
            Ok(Ok(changed)) => ManageReply::Done(changed),
            Ok(Err(refusal)) => ManageReply::Refused(refusal),
            Err(error) => failed(account, &error),
        }
    }

    /// The reason without secrets, and nothing odd in it or in what a system outside says.
    async fn checked_reason(
        &self,
        engines: &Engines,
        message: &ChangeApproval,
        deadline: Instant,
    ) -> Result<String, Refusal> {
        let text = reason::checked("reason", &message.reason)?.to_owned();
        if let ApprovalChange::Register { external, .. } = &message.change {
            let refuse = |path: &str, why: String| match invalid::<()>(path, why) {
                ManageReply::Refused(refusal) => Err(refusal),
                _ => Ok(String::new()),
            };
            let names = &external.approved_by;
            let is_name = |name: &String| {
                let length = name.chars().count();
                !stage0_contract::is_blank(name) && length <= MAX_NAME_CHARS && stage0_contract::hidden(name).is_none()
            };
            if names.is_empty() || names.len() > MAX_NAMES || !names.iter().all(is_name) {
                let why = format!("must be 1 to {MAX_NAMES} names of 1 to {MAX_NAME_CHARS} characters");
                return refuse("approved_by", why);
            }
            if external.evidence.chars().count() > MAX_EVIDENCE_CHARS {
                return refuse("evidence", format!("must be at most {MAX_EVIDENCE_CHARS} characters"));
            }
        }
        if text.is_empty() {
            return Ok(text);
        }
        let forms = SecretForms::of(&message.account, &message.actor.rules);
        let masked = engines.with_mask(forms, text.len(), deadline, move |mask| mask(&text)).await;
        Ok(masked.unwrap_or_else(|| reason::LEFT_OUT.to_owned()))
    }

    async fn changed(
        &self,
        engines: &Engines,
        message: &ChangeApproval,
        reason: &str,
        people: &Rc<People>,
        deadline: Instant,
    ) -> Result<Result<ApprovalChanged, Refusal>, StoreError> {
        let ChangeApproval { account, actor, id, change, .. } = message;
        let directory = Directory::new(people);
        while Instant::now() < deadline {
            let Some((place, mut approval, revision)) = self.store.find(account, id, deadline).await? else {
                return Ok(Err(Refusal::NotFound));
            };
            let now = self.store.now();
            approval.pass_time(now);
            let is_vote = !matches!(change, ApprovalChange::Cancel {} | ApprovalChange::Report { .. });
            if is_vote && !actor.rules.stops.is_empty() {
                let request = self.action(&approval, people, deadline).await?;
                if let Some(reason) = self.stop_over(engines, actor, &approval, request.as_ref(), deadline).await {
                    let text = format!("it is stopped: {reason}. Resume the stop first");
                    return Ok(Err(Refusal::Conflict(text)));
                }
            }
            let by = Change { actor, directory: &directory, reason, now };
            let before = approval.status;
            let result = match change {
                ApprovalChange::Approve { action_digest } => approval.approve(action_digest, by),
                ApprovalChange::Deny { action_digest } => approval.deny(action_digest, by),
                ApprovalChange::Register { action_digest, external } => {
                    let forms = SecretForms::of(account, &actor.rules);
                    let external = masked_evidence(engines, forms, external, deadline).await;
                    approval.register(action_digest, &external, by)
                }
                ApprovalChange::Cancel {} => approval.cancel(by),
                ApprovalChange::Reopen {} => approval.reopen(by),
                ApprovalChange::Report { status } => approval.report(*status, by).map(|_| ()),
            };
            if let Err(refusal) = result {
                return Ok(Err(refusal));
            }
            if !self.store.put(&place, &approval, Some(revision), deadline).await? {
                pause().await;
                continue;
            }
            if place.is_current {
                self.after_change(&approval, before, deadline).await;
            } else {
                self.pass_on(&approval, deadline).await?;
            }
            if matches!(change, ApprovalChange::Cancel {}) && is_own(actor, &approval) {
                let ttl = self.store.config.approval_text_ttl.min(OWN_CANCEL_TEXT_TTL);
                self.shorten_text(&approval, ttl, deadline).await?;
            }
            let status = approval.status.as_str();
            tracing::info!(%account, approval_id = %id, key_id = %actor.key_id, status, "approval changed");
            self.announce(account, id).await;
            let events = approval.outbox.unrecorded(None);
            let view = self.view(engines, actor, &approval, Some(people), deadline).await?;
            return Ok(Ok(ApprovalChanged { approval: view, unrecorded: Unrecorded { events } }));
        }
        Err(StoreError::Contended)
    }

    /// Notes what came of the action of a decision that used this approval. Returns what of the approval is not known
    /// to be recorded. Where the approval says something else already, it stays.
    pub(crate) async fn note_outcome(
        &self,
        id: &ApprovalId,
        report: &ReportDecisionOutcome,
        deadline: Instant,
    ) -> Result<Vec<ApprovalEvent>, ()> {
        let account = &report.account;
        self.noted(id, report, deadline).await.map_err(|error| drop(failed::<()>(account, &error)))
    }

    async fn noted(
        &self,
        id: &ApprovalId,
        report: &ReportDecisionOutcome,
        deadline: Instant,
    ) -> Result<Vec<ApprovalEvent>, StoreError> {
        let ReportDecisionOutcome { account, actor, request_id, status, .. } = report;
        while Instant::now() < deadline {
            let found = self.store.find(account, id, deadline).await?;
            let used = found.filter(|(_, approval, _)| approval.is_used_by(*request_id));
            // It was reopened, or it is kept no longer.
            let Some((place, mut approval, revision)) = used else { return Ok(Vec::new()) };
            let before = approval.status;
            match approval.report_by(*status, actor.clone(), "", self.store.now()) {
                Ok(false) => return Ok(approval.outbox.unrecorded(None)),
                Ok(true) => {}
                Err(_) => {
                    tracing::info!(%account, approval_id = %id, "the approval has another outcome: it stays");
                    return Ok(Vec::new());
                }
            }
            if !self.store.put(&place, &approval, Some(revision), deadline).await? {
                pause().await;
                continue;
            }
            if place.is_current {
                self.after_change(&approval, before, deadline).await;
            } else {
                self.pass_on(&approval, deadline).await?;
            }
            self.announce(account, id).await;
            return Ok(approval.outbox.unrecorded(None));
        }
        Err(StoreError::Contended)
    }

    /// Has the current approval of the action tell what happened to one that has ended: maintenance reads that one's
    /// events alone. A caller that hears of a failure asks again, and this is done then.
    async fn pass_on(&self, ended: &StoredApproval, deadline: Instant) -> Result<(), StoreError> {
        let account = &ended.account;
        while Instant::now() < deadline {
            let found = self.store.current(account, ended.slot(), deadline).await?;
            let Some(mut heir) = found.value.filter(|heir| heir.id != ended.id) else { return Ok(()) };
            if !heir.outbox.adopt(&ended.outbox) {
                return Ok(());
            }
            let place = ApprovalStore::place(account, &heir.action_digest);
            if self.store.put(&place, &heir, found.revision, deadline).await? {
                return self.store.reindex(&heir, deadline).await;
            }
            pause().await;
        }
        Err(StoreError::Contended)
    }

    /// What follows once a change is stored. The change stands if this fails: maintenance does it again.
    pub(super) async fn after_change(&self, approval: &StoredApproval, before: ApprovalStatus, deadline: Instant) {
        let account = &approval.account;
        if let Err(error) = self.store.reindex(approval, deadline).await {
            tracing::debug!(%account, error = &error as &dyn std::error::Error, "index of approvals lags");
        }
        if approval.status == before {
            return;
        }
        if approval.status == ApprovalStatus::Approved || approval.status.is_final() {
            metrics::approval_decided(approval.status);
        }
        if approval.status.is_final()
            && let Err(error) = self.shorten_text(approval, self.store.config.approval_text_ttl, deadline).await
        {
            tracing::warn!(%account, error = &error as &dyn std::error::Error, "an action's text is kept for longer");
        }
    }

    /// From its approval's end on, the text is kept for this time.
    pub(super) async fn shorten_text(
        &self,
        approval: &StoredApproval,
        ttl: Duration,
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let StoredApproval { account, id, .. } = approval;
        let Some(sealed) = self.store.text(account, id, deadline).await? else { return Ok(()) };
        self.store.put_text(account, id, sealed.to_vec(), ttl, deadline).await
    }
}

/// Whether the caller learns that there is such an approval.
fn may_see(actor: &Actor, approval: &StoredApproval, change: &ApprovalChange) -> bool {
    let registers = matches!(change, ApprovalChange::Register { .. });
    let is_system = registers && actor.scopes.contains(&Scope::ApprovalsGrant);
    is_own(actor, approval) || sees_all(actor) || is_system
}

/// Whether the caller may make such a call at all.
fn may_call(actor: &Actor, approval: &StoredApproval, change: &ApprovalChange) -> Result<(), Refusal> {
    let decides = actor.scopes.contains(&Scope::ApprovalsDecide) && actor.holder.member.is_some();
    let (may, scope) = match change {
        ApprovalChange::Approve { .. } | ApprovalChange::Deny { .. } | ApprovalChange::Reopen {} => {
            (decides, Scope::ApprovalsDecide)
        }
        ApprovalChange::Cancel {} => (decides || is_own(actor, approval), Scope::ApprovalsDecide),
        ApprovalChange::Register { .. } => (actor.scopes.contains(&Scope::ApprovalsGrant), Scope::ApprovalsGrant),
        ApprovalChange::Report { .. } => {
            return if is_own(actor, approval) { Ok(()) } else { Err(Refusal::NotFound) };
        }
    };
    if may { Ok(()) } else { Err(Refusal::ScopeMissing(scope)) }
}

/// What a system outside says, with secrets masked.
async fn masked_evidence(
    engines: &Engines,
    forms: SecretForms<'_>,
    external: &stage0_contract::ExternalApproval,
    deadline: Instant,
) -> stage0_contract::ExternalApproval {
    let mut masked = external.clone();
    let work = move |mask: &dyn Fn(&str) -> String| {
        masked.evidence = mask(&masked.evidence);
        for name in &mut masked.approved_by {
            *name = mask(name);
        }
        masked
    };
    let empty =
        || stage0_contract::ExternalApproval { approved_by: external.approved_by.clone(), evidence: String::new() };
    engines.with_mask(forms, external.evidence.len(), deadline, work).await.unwrap_or_else(empty)
}
