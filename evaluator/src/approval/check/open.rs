//! Opens the approval that a check lacks, within the caps of its workload and account.
//!
//! In this order: the index, so that the caps hold; the sealed text; the ended approval under its own id; the record. A
//! crash in between leaves nothing that can be approved, and its entry in the index drops out by time.
//! INVARIANT: what an ended approval has not recorded yet goes over to the one that takes its place.

use stage0_contract::{ApprovalIssue, ApprovalIssueDetails, ApprovalStatus, EvaluateRequest, Issue};

use super::{Approvals, Ending, Wanting, no_approval, no_people};
use crate::approval::index::IndexEntry;
use crate::approval::note::Note;
use crate::approval::people::{Asker, Directory};
use crate::approval::record::{MAX_INHERITED, Outbox, StoredApproval, id_in, seconds_later, slot_of};
use crate::approval::store::{ApprovalStore, MIN_TTL, StoreError};
use crate::approval::text;
use crate::metrics::{self, ApprovalRefused};

impl Approvals {
    /// Opens an approval in the place of one that has ended; none if another evaluator was faster.
    pub(super) async fn open(
        &self,
        wanting: &Wanting<'_>,
        ended: Option<(StoredApproval, stage0_backplane::Revision)>,
        note: Note,
    ) -> Result<Option<Ending>, StoreError> {
        let EvaluateRequest { request_id, account, request, .. } = &**wanting.message;
        let refused = |why: String, cause| {
            let note = Note { approval: Some(why), used_by: note.used_by, electorate: None };
            Ok(Some(no_approval(note, cause)))
        };
        if let Some(ending) = wanting.cannot_record() {
            return Ok(Some(ending));
        }
        if !text::fits(request) {
            let most = stage0_contract::MAX_ACTION_BYTES >> 10;
            return refused(format!("the action is over {most} KiB: people cannot read it"), ApprovalRefused::TooLarge);
        }
        let Some(people) = self.people(account, wanting.deadline).await else { return Ok(Some(no_people())) };
        let now = self.store.now();
        let slot = slot_of(&wanting.digest);
        let asker = Asker::new(&wanting.asker.holder, wanting.asker.rules.four_eyes);
        let electorate = Directory::new(&people).electorate(wanting.question(&asker, now, now));
        let mut random = [0; 4];
        let random = aws_lc_rs::rand::fill(&mut random).ok().map(|()| random);
        let Some(id) = random.and_then(|random| id_in(slot, random)) else { return Err(StoreError::Forged) };
        if ended.as_ref().is_some_and(|(ended, _)| ended.outbox.inherited().count() > MAX_INHERITED) {
            let why = "too many events of the last approval wait to be recorded: try again";
            return refused(why.to_owned(), ApprovalRefused::Cap);
        }
        let expires_at = seconds_later(now, wanting.terms.within_seconds);
        let entry = IndexEntry {
            slot: slot.to_owned(),
            workload: wanting.asker.holder.workload.clone(),
            is_pending: true,
            expires_at,
            due_at: expires_at,
        };
        let admitted = self.store.change_index(account, wanting.deadline, |index| index.admit(entry.clone(), now));
        if let Err(cap) = admitted.await? {
            return refused(cap.to_string(), ApprovalRefused::Cap);
        }
        let Ok(sealed) = text::seal(&people.text_key, account, &wanting.digest, request) else {
            return refused("the action cannot be sealed".to_owned(), ApprovalRefused::Failed);
        };
        let usable_until = seconds_later(expires_at, wanting.terms.valid_seconds);
        let ttl = self.store.config.approval_text_ttl.saturating_add(self.store.until(usable_until));
        self.store.put_text(account, &id, sealed, ttl, wanting.deadline).await?;
        let mut approval = StoredApproval {
            id,
            account: account.clone(),
            status: ApprovalStatus::Pending,
            action_digest: wanting.digest.clone(),
            policy_version: wanting.deferred.policy_version.clone(),
            floor_version: wanting.deferred.floor_version.clone(),
            environment: wanting.deferred.environment.clone(),
            key_id: wanting.asker.key_id.clone(),
            asker: wanting.asker.holder.clone(),
            request_id: *request_id,
            issues: wanting.deferred.issues.iter().map(shown_issue).collect(),
            terms: wanting.terms.clone(),
            votes: Vec::new(),
            created_at: now,
            expires_at,
            decided_at: None,
            usable_until: None,
            used: None,
            outcome: None,
            escalated: false,
            escalated_after: None,
            after: note.used_by,
            retention_days: wanting.asker.retention_days,
            outbox: Outbox::default(),
        };
        approval.opened(electorate.eligible);
        let revision = match ended {
            Some((ended, revision)) => {
                self.store.archive(&ended, &revision, wanting.deadline).await?;
                approval.outbox.inherit(&ended.outbox);
                Some(revision)
            }
            None => None,
        };
        let place = ApprovalStore::place(account, &wanting.digest);
        if !self.store.put(&place, &approval, revision, wanting.deadline).await? {
            self.shorten_text(&approval, MIN_TTL, wanting.deadline).await?;
            return Ok(None);
        }
        metrics::approval_opened();
        tracing::info!(%account, %request_id, approval_id = %approval.id, "approval opened");
        let workload = &approval.asker.workload;
        let counted = self.store.change_index(account, wanting.deadline, |index| index.count_opening(workload, now));
        if let Err(error) = counted.await {
            tracing::debug!(%account, error = &error as &dyn std::error::Error, "index of approvals lags");
        }
        if let Err(error) = self.store.reindex(&approval, wanting.deadline).await {
            tracing::debug!(%account, error = &error as &dyn std::error::Error, "index of approvals lags");
        }
        let note = Note { electorate: Some((electorate, approval.terms.quorum())), ..note };
        let events = approval.outbox.unrecorded(None);
        Ok(Some(Ending::Waits { reference: Some(approval.reference()), note, events }))
    }
}

fn shown_issue(issue: &Issue) -> ApprovalIssue {
    ApprovalIssue {
        code: issue.code.clone(),
        severity: issue.severity,
        message: issue.message.clone(),
        details: ApprovalIssueDetails::of(issue),
    }
}
