//! Reserves what a check needs: the approval of its action, or a use of a wider grant.
//!
//! People are read again, and the action is judged as a whole again, before anything is reserved.
//! INVARIANT: what may have been reserved is among the check's holds, so that a check which does not end as an ALLOW
//! gives it back.

use std::sync::Arc;

use stage0_contract::{ApprovalEvent, ApprovalRef, ApprovalSource, ApprovalStatus, EvaluateRequest, Grant, LineType};

use super::{Approvals, Ending, Hold, Used, Wanting, is_allowed, no_approval, no_people};
use crate::approval::grants::StoredGrant;
use crate::approval::note::Note;
use crate::approval::people::{Asker, Directory};
use crate::approval::record::{StoredApproval, approver_name, blank_event};
use crate::approval::state::Reserved;
use crate::approval::store::{ApprovalStore, StoreError};
use crate::handler::Held;
use crate::metrics::{self, ApprovalRefused};

impl Approvals {
    /// Uses an approval; none if it was changed meanwhile, or fell back to pending.
    pub(super) async fn use_approval(
        &self,
        wanting: &Wanting<'_>,
        mut approval: StoredApproval,
        revision: stage0_backplane::Revision,
    ) -> Result<Option<Ending>, StoreError> {
        let EvaluateRequest { request_id, account, .. } = &**wanting.message;
        if let Some(ending) = wanting.cannot_record() {
            return Ok(Some(ending));
        }
        let place = ApprovalStore::place(account, &wanting.digest);
        let now = self.store.now();
        if approval.status == ApprovalStatus::Approved {
            let Some(people) = self.people(account, wanting.deadline).await else { return Ok(Some(no_people())) };
            let directory = Directory::new(&people);
            let asker = approval.asker(wanting.asker.rules.four_eyes);
            // Both who opened it and who would use it now: a rotated key may have another owner.
            let user = Asker::new(&wanting.asker.holder, wanting.asker.rules.four_eyes);
            let enough =
                |asker: &Asker| directory.is_enough(&approval.votes, wanting.question(asker, approval.created_at, now));
            if !enough(&asker) || !enough(&user) {
                let questions = [&asker, &user].map(|asker| wanting.question(asker, approval.created_at, now));
                approval.fall_back(&directory, questions);
                if self.store.put(&place, &approval, Some(revision), wanting.deadline).await? {
                    self.store.reindex(&approval, wanting.deadline).await?;
                    let status = approval.status.as_str();
                    tracing::info!(%account, approval_id = %approval.id, status, "votes no longer suffice");
                    self.announce(account, &approval.id).await;
                }
                return Ok(None);
            }
        }
        let (by, at) = approval.approver();
        let decided = wanting.evaluate(Held::Approved { by, at }).await;
        if !is_allowed(&decided) {
            return Ok(Some(Ending::Instead(Box::new(decided))));
        }
        let before = approval.clone();
        match approval.reserve(wanting.claim(), now) {
            Reserved::ForThis => {}
            Reserved::ByAnother(used_by) => {
                let note = Note { used_by: Some(used_by), ..Note::why("another check uses the approval, or used it") };
                return Ok(Some(no_approval(note, ApprovalRefused::Used)));
            }
            Reserved::Not => {
                let note = Note::why("the approval has been used too often: cancel it and ask for a new one");
                return Ok(Some(no_approval(note, ApprovalRefused::Used)));
            }
        }
        // Set before the put, whose outcome may be unknown.
        wanting.check.add_hold(Hold::Approval(approval.id.clone()));
        if approval != before {
            if !self.store.put(&place, &approval, Some(revision), wanting.deadline).await? {
                return Ok(None);
            }
            metrics::approval_used(ApprovalSource::Approval);
            tracing::info!(%account, %request_id, approval_id = %approval.id, "approval reserved");
            if let Err(error) = self.store.reindex(&approval, wanting.deadline).await {
                tracing::debug!(%account, error = &error as &dyn std::error::Error, "index of approvals lags");
            }
            self.announce(account, &approval.id).await;
        }
        let events = approval.outbox.unrecorded(Some(*request_id));
        let reference = approval.reference();
        let source = ApprovalSource::Approval;
        Ok(Some(Ending::Used(Box::new(Used { decided, reference, source, events }))))
    }

    /// Uses a wider grant that covers the check; none where none does.
    pub(super) async fn use_grant(&self, wanting: &Wanting<'_>) -> Result<Option<Ending>, StoreError> {
        let EvaluateRequest { request_id, account, .. } = &**wanting.message;
        let workload = &wanting.asker.holder.workload;
        let Some(grants) = self.store.grants(account, wanting.deadline).await?.value else { return Ok(None) };
        let now = self.store.now();
        let usable: Vec<StoredGrant> =
            grants.grants.into_iter().filter(|stored| stored.is_usable(workload, now)).collect();
        if usable.is_empty() || !wanting.asker.can_record {
            return Ok(None);
        }
        let terms: Vec<Grant> = usable.iter().map(StoredGrant::view).collect();
        let (message, chosen) = (Arc::clone(wanting.message), wanting.check.chosen.clone());
        let covers = move |handler: &crate::handler::Handler| {
            terms.iter().map(|grant| handler.grant_covers(grant, &message, &chosen)).collect::<Vec<bool>>()
        };
        let covers = wanting.engines.inspect(wanting.check.bytes, covers).await.unwrap_or_default();
        let covering = usable.into_iter().zip(covers).filter(|(_, covers)| *covers).map(|(stored, _)| stored);
        let mut people = None;
        for stored in covering {
            if people.is_none() {
                people = self.people(account, wanting.deadline).await;
            }
            let Some(people) = &people else { return Ok(None) };
            let asker = Asker::new(&wanting.asker.holder, wanting.asker.rules.four_eyes);
            let question = wanting.question(&asker, now, now);
            if !Directory::new(people).is_enough(&stored.votes, question) {
                continue;
            }
            let Some(last) = stored.votes.last().map(|last| &last.vote) else { continue };
            let held = Held::Approved { by: approver_name(last), at: last.at.as_second() };
            let decided = wanting.evaluate(held).await;
            if !is_allowed(&decided) {
                continue;
            }
            let id = &stored.grant.id;
            let is_new = wanting.check.add_hold(Hold::Grant(id.clone()));
            let event = ApprovalEvent {
                action_digest: Some(wanting.digest.clone()),
                policy_version: Some(wanting.deferred.policy_version.clone()),
                floor_version: wanting.deferred.floor_version.clone(),
                environment: Some(wanting.deferred.environment.clone()).filter(|name| !name.is_empty()),
                ..blank_event(LineType::ApprovalUsed, now)
            };
            let used = self.store.change_grants(account, wanting.deadline, |grants, now| {
                grants.retention_days = wanting.asker.retention_days;
                let found = grants.find(id).filter(|stored| stored.is_usable(workload, now));
                let Some(stored) = found else { return Err(()) };
                stored.record_use(&wanting.asker.key_id, wanting.operation, *request_id, event.clone());
                Ok::<_, ()>(stored.outbox.unrecorded(Some(*request_id)))
            });
            let Ok(events) = used.await? else {
                if is_new {
                    wanting.check.drop_hold(&Hold::Grant(id.clone()));
                }
                continue;
            };
            metrics::approval_used(ApprovalSource::Grant);
            tracing::info!(%account, %request_id, grant_id = %id, "grant used");
            let reference = ApprovalRef {
                id: None,
                grant_id: Some(id.clone()),
                status: ApprovalStatus::Consumed,
                action_digest: wanting.digest.clone(),
                quorum: wanting.terms.quorum(),
                groups: wanting.terms.groups(),
                expires_at: stored.grant.until,
                url: format!("/v1/grants/{id}"),
            };
            let source = ApprovalSource::Grant;
            return Ok(Some(Ending::Used(Box::new(Used { decided, reference, source, events }))));
        }
        Ok(None)
    }
}
