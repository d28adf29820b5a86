//! The path of a check whose only missing thing is an approval: it opens one, waits for one, or uses one.
//!
//! A check is first decided as ever; only a DEFER goes on, and only if it would be ALLOW with an approval. What was
//! reserved for a check that does not end as that ALLOW is released.
//! INVARIANT: ALLOW with an approval is answered only after the state store has reserved it for this check.

mod await_outcome;
mod open;
mod reserve;

use std::sync::Arc;

use jiff::SignedDuration;
use stage0_contract::{
    ActionDigest, Actor, ApprovalEvent, ApprovalId, ApprovalRef, ApprovalSource, ApprovalStatus, ApprovalTerms,
    Decision, EvaluateReply, EvaluateRequest, GrantId, RequestId, Verdict,
};
use stage0_policy::RunSnapshot;
use tokio::time::Instant;

use super::note::Note;
use super::people::{Asker, Directory, Question};
use super::record::{Claim, StoredApproval, Use, later, slot_of};
use super::store::{StoreError, pause};
use super::{Approvals, RELEASE_TIMEOUT};
use crate::engines::Engines;
use crate::handler::{Decided, Held};
use crate::in_flight::InFlightCheck;
use crate::metrics::{self, ApprovalRefused};
use crate::run::RunUpdate;

/// What is reserved for a check that is not answered yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hold {
    Approval(ApprovalId),
    Grant(GrantId),
    /// The action, until its outcome is known.
    Action(ActionDigest),
}

/// A check that would pass with an approval.
struct Wanting<'a> {
    engines: &'a Engines,
    check: &'a InFlightCheck,
    message: &'a Arc<EvaluateRequest>,
    snapshot: Option<&'a RunSnapshot>,
    asker: &'a Actor,
    /// Of the rules that deferred it.
    terms: ApprovalTerms,
    digest: ActionDigest,
    /// The decision without an approval.
    deferred: &'a Decision,
    operation: RequestId,
    deadline: Instant,
}

/// How it ends.
enum Ending {
    /// ALLOW, by an approval or a grant.
    Used(Box<Used>),
    /// Another decision than the first.
    Instead(Box<Decided>),
    /// DEFER, with the approval that it waits for.
    Waits { reference: Option<ApprovalRef>, note: Note, events: Vec<ApprovalEvent> },
}

struct Used {
    decided: Decided,
    reference: ApprovalRef,
    source: ApprovalSource,
    events: Vec<ApprovalEvent>,
}

fn no_approval(note: Note, why: ApprovalRefused) -> Ending {
    metrics::approval_refused(why);
    Ending::Waits { reference: None, note, events: Vec::new() }
}

fn is_allowed(decided: &Decided) -> bool {
    is_allow(&decided.reply)
}

fn is_allow(reply: &EvaluateReply) -> bool {
    matches!(reply, EvaluateReply::Decided(evaluation) if evaluation.decision.verdict == Verdict::Allow)
}

/// What exactly an approval or an outcome of this check is of.
async fn digest_of(engines: &Engines, check: &InFlightCheck) -> Option<ActionDigest> {
    let (message, chosen) = (Arc::clone(check.request()), check.chosen.clone());
    engines.inspect(check.bytes, move |handler| handler.action_digest(&message, &chosen)).await.flatten()
}

impl Approvals {
    /// Decides a check with what the server holds of approvals. A check that is not deferred costs nothing more.
    pub(crate) async fn decide(
        &self,
        engines: &Engines,
        check: &InFlightCheck,
        snapshot: Option<&RunSnapshot>,
    ) -> (EvaluateReply, Option<RunUpdate>) {
        let message = check.request();
        let first = engines.evaluate(check, snapshot, None).await;
        let Decided { reply, update, terms, stopped, hold, .. } = first;
        if stopped {
            return (reply, None);
        }
        let EvaluateReply::Decided(evaluation) = &reply else { return (reply, update) };
        check.note_decided(None);
        let awaits = hold.holds() && message.asker.as_ref().is_some_and(|asker| asker.reports_outcomes);
        let (reply, update) = match (&message.asker, terms) {
            (Some(asker), Some(terms)) if evaluation.decision.verdict == Verdict::Defer => {
                // Boxed, so that a check which is not deferred does not carry the room for it.
                let decided = (reply, update);
                Box::pin(self.decide_deferred(engines, check, snapshot, decided, (asker, terms, awaits))).await
            }
            _ => (reply, update),
        };
        match &message.asker {
            Some(asker) if awaits && is_allow(&reply) => {
                Box::pin(self.await_outcome(engines, check, asker, reply, update)).await
            }
            _ => (reply, update),
        }
    }

    async fn decide_deferred(
        &self,
        engines: &Engines,
        check: &InFlightCheck,
        snapshot: Option<&RunSnapshot>,
        (mut reply, update): (EvaluateReply, Option<RunUpdate>),
        (asker, terms, awaits): (&Actor, ApprovalTerms, bool),
    ) -> (EvaluateReply, Option<RunUpdate>) {
        let message = check.request();
        let EvaluateReply::Decided(evaluation) = &mut reply else { return (reply, update) };
        // Any approver and time: whether an approval is the only thing missing.
        let held = Held::Approved { by: "approver".to_owned(), at: message.evaluated_at };
        if !is_allowed(&engines.evaluate(check, snapshot, Some(held)).await) {
            return (reply, update);
        }
        let Some(digest) = digest_of(engines, check).await else { return (reply, update) };
        // No one is asked to approve what would be held up all the same.
        if awaits && self.is_held_up(engines, check, &digest, evaluation).await {
            return (reply, update);
        }
        let wanting = Wanting {
            engines,
            check,
            message,
            snapshot,
            asker,
            terms,
            digest,
            deferred: &evaluation.decision,
            operation: message.operation.unwrap_or(message.request_id),
            deadline: check.deadline(),
        };
        let ending = match self.settle_check(&wanting).await {
            Ok(ending) => ending,
            Err(error) => {
                let EvaluateRequest { request_id, account, .. } = &**message;
                metrics::approvals_failed();
                let error = &error as &dyn std::error::Error;
                tracing::warn!(%request_id, %account, error, "approvals failed");
                no_approval(Note::why("approvals cannot be read or stored now: try again"), ApprovalRefused::Failed)
            }
        };
        match ending {
            Ending::Instead(decided) => {
                let Decided { reply, update, held, .. } = *decided;
                check.note_decided(held);
                (reply, update)
            }
            Ending::Used(used) => {
                let Used { decided, reference, source, events } = *used;
                let Decided { mut reply, update, held, .. } = decided;
                check.note_decided(held);
                if let EvaluateReply::Decided(evaluation) = &mut reply {
                    evaluation.decision.approval = Some(reference);
                    evaluation.approval_source = Some(source);
                    evaluation.events = events;
                }
                (reply, update)
            }
            Ending::Waits { reference, note, events } => {
                note.write(&mut evaluation.decision);
                evaluation.decision.approval = reference;
                evaluation.events = events;
                (reply, update)
            }
        }
    }

    /// Answers a check; one that does not end as the ALLOW that something was reserved for gives it back.
    pub(crate) async fn finish(&self, check: InFlightCheck, reply: Option<EvaluateReply>) {
        let used = match &reply {
            Some(EvaluateReply::Decided(evaluation)) if evaluation.decision.verdict == Verdict::Allow => {
                evaluation.decision.approval.as_ref()
            }
            _ => None,
        };
        let holds = check.take_holds();
        let is_allowed = reply.as_ref().is_some_and(is_allow);
        // The gateway waits no longer: it has recorded nothing, and must not hear of this ALLOW.
        let is_too_late = is_allowed && !holds.is_empty() && check.deadline() <= Instant::now();
        let used = used.filter(|_| !is_too_late);
        let is_kept = |hold: &Hold| match hold {
            Hold::Approval(id) => used.is_some_and(|used| used.id.as_ref() == Some(id)),
            Hold::Grant(id) => used.is_some_and(|used| used.grant_id.as_ref() == Some(id)),
            Hold::Action(_) => is_allowed && !is_too_late,
        };
        for hold in holds.into_iter().filter(|hold| !is_kept(hold)) {
            let EvaluateRequest { request_id, account, .. } = &**check.request();
            let deadline = Instant::now() + RELEASE_TIMEOUT;
            let (approval, grant) = match &hold {
                Hold::Approval(id) => (Some(id), None),
                Hold::Grant(id) => (None, Some(id)),
                Hold::Action(digest) => {
                    Box::pin(self.give_action_back(&check, digest, deadline)).await;
                    continue;
                }
            };
            let released = self.release(account, *request_id, Some(check.claim), approval, grant, deadline);
            if let Err(error) = Box::pin(released).await {
                // It stays used, and names this check; a person can reopen it.
                let error = &error as &dyn std::error::Error;
                tracing::warn!(%request_id, %account, error, "a reserved approval was not released");
            }
        }
        match reply {
            Some(reply) if !is_too_late => check.decided(reply).await,
            _ => check.late(),
        }
    }

    async fn settle_check(&self, wanting: &Wanting<'_>) -> Result<Ending, StoreError> {
        let account = &wanting.message.account;
        // What a person denied stays denied, whatever else was granted.
        let current = self.store.current(account, slot_of(&wanting.digest), wanting.deadline).await?.value;
        let is_denied = current.as_ref().is_some_and(|approval| self.is_denied_still(approval, self.store.now()));
        if !is_denied && let Some(ending) = self.use_grant(wanting).await? {
            return Ok(ending);
        }
        let slot = slot_of(&wanting.digest);
        while Instant::now() < wanting.deadline {
            let found = self.store.current(account, slot, wanting.deadline).await?;
            let ending = match found.value {
                None => self.open(wanting, None, Note::default()).await?,
                Some(approval) if approval.action_digest != wanting.digest => return Err(StoreError::Forged),
                Some(approval) => {
                    let Some(revision) = found.revision else { return Err(StoreError::Forged) };
                    self.meet(wanting, approval, revision).await?
                }
            };
            if let Some(ending) = ending {
                return Ok(ending);
            }
            pause().await;
        }
        Err(StoreError::Contended)
    }

    /// What the action's current approval is worth for this check; none if it was changed meanwhile.
    async fn meet(
        &self,
        wanting: &Wanting<'_>,
        mut approval: StoredApproval,
        revision: stage0_backplane::Revision,
    ) -> Result<Option<Ending>, StoreError> {
        let now = self.store.now();
        approval.pass_time(now);
        let is_own = approval.asker.workload == wanting.asker.holder.workload;
        let used_by = approval.used.as_ref().map(Use::request_id);
        let is_again = approval.used.as_ref().is_some_and(|used| used.operation == wanting.operation);
        match approval.status {
            ApprovalStatus::Reserved | ApprovalStatus::Consumed if is_again && is_own => {
                self.use_approval(wanting, approval, revision).await
            }
            ApprovalStatus::Reserved => {
                let note = Note { used_by, ..Note::why("another check uses the approval, or used it") };
                Ok(Some(no_approval(note, ApprovalRefused::Used)))
            }
            ApprovalStatus::Consumed => {
                let note = Note { used_by, ..Note::why("the approval was used: this is a new one") };
                self.open(wanting, Some((approval, revision)), note).await
            }
            ApprovalStatus::Denied if self.is_denied_still(&approval, now) => {
                let decided = wanting.evaluate(Held::Denied).await;
                let is_denied = matches!(&decided.reply, EvaluateReply::Decided(evaluation)
                    if evaluation.decision.verdict == Verdict::Deny);
                let note = Note::why("a person denied this action");
                Ok(Some(if is_denied {
                    Ending::Instead(Box::new(decided))
                } else {
                    no_approval(note, ApprovalRefused::Denied)
                }))
            }
            ApprovalStatus::Denied | ApprovalStatus::Expired | ApprovalStatus::Cancelled => {
                // A caller that had an approval in hand must see why it waits again.
                let note = Note::why(format!("the last approval is {}: this is a new one", approval.status.as_str()));
                self.open(wanting, Some((approval, revision)), note).await
            }
            ApprovalStatus::Pending => {
                let people = self.recent_people(&wanting.message.account, wanting.deadline).await;
                let electorate = people.map(|people| {
                    let asker = approval.asker(wanting.asker.rules.four_eyes);
                    let question = wanting.question(&asker, approval.created_at, now);
                    (Directory::new(&people).electorate(question), approval.terms.quorum())
                });
                let note = Note { electorate, used_by: approval.after, ..Note::default() };
                Ok(Some(Ending::Waits {
                    reference: Some(approval.reference()),
                    note,
                    events: approval.outbox.unrecorded(None),
                }))
            }
            ApprovalStatus::Approved if !is_own => Ok(Some(Ending::Waits {
                reference: Some(approval.reference()),
                note: Note::why("it is approved for another workload: only the one that asked first can use it"),
                events: Vec::new(),
            })),
            ApprovalStatus::Approved => self.use_approval(wanting, approval, revision).await,
        }
    }

    fn is_denied_still(&self, approval: &StoredApproval, now: jiff::Timestamp) -> bool {
        let denied_for = SignedDuration::try_from(self.store.config.denied_for).unwrap_or_default();
        approval.status == ApprovalStatus::Denied
            && later(approval.decided_at.unwrap_or(approval.created_at), denied_for) > now
    }
}

impl Wanting<'_> {
    async fn evaluate(&self, held: Held) -> Decided {
        self.engines.evaluate(self.check, self.snapshot, Some(held)).await
    }

    fn claim(&self) -> Claim<'_> {
        let key_id = &self.asker.key_id;
        let (operation, request_id) = (self.operation, self.message.request_id);
        Claim { key_id, operation, request_id, claim: self.check.claim }
    }

    fn question<'a>(&'a self, asker: &'a Asker, opened_at: jiff::Timestamp, now: jiff::Timestamp) -> Question<'a> {
        Question { asker, terms: &self.terms, opened_at, now }
    }

    /// Without readers that know the lines, nothing may happen that must be recorded.
    fn cannot_record(&self) -> Option<Ending> {
        let note =
            || Note::why("a process of an earlier version runs that cannot read lines about approvals: update it");
        (!self.asker.can_record).then(|| no_approval(note(), ApprovalRefused::NotRecordable))
    }
}

fn no_people() -> Ending {
    no_approval(Note::why("who may approve cannot be read now: try again"), ApprovalRefused::NoPeople)
}
