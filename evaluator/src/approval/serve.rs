//! Served requests that read: lists of approvals, one approval, its history, its action; and whether a stop covers a
//! check.
//!
//! A workload sees its own approvals, keys with `approvals:decide` or `decisions:read` all of their account; for others
//! there is none. INVARIANT: an action's text goes to its workload and to members who may decide about it.

use serde_json::{Map, Value};
use stage0_backplane::ListError;
use stage0_contract::{
    AccountId, Actor, Approval, ApprovalEvent, ApprovalHistory, ApprovalId, ApprovalStatus, ApprovalTerms,
    CheckRequest, CoveredByStop, CoveredByStopReply, FetchAction, FetchedAction, FieldError, ListApprovals,
    ManageReply, MaskText, MaskTextReply, Page, People, ReadApprovalHistory, Refusal, Scope, ShowApproval,
};
use tokio::time::{Instant, timeout_at};

use super::people::{Directory, Question, Standing};
use super::record::StoredApproval;
use super::store::{StoreError, account_prefix};
use super::{Approvals, text};
use crate::engines::{Engines, SecretForms};
use crate::handler::Handler;
use crate::metrics;

const MAX_PAGE: u32 = 100;
/// Records that one page of a list looks at.
const MAX_SCANNED: usize = 1_000;

pub(super) fn not_found<T>() -> ManageReply<T> {
    ManageReply::Refused(Refusal::NotFound)
}

pub(super) fn conflict<T>(text: &str) -> ManageReply<T> {
    ManageReply::Refused(Refusal::Conflict(text.to_owned()))
}

pub(super) fn invalid<T>(path: &str, message: impl Into<String>) -> ManageReply<T> {
    ManageReply::Refused(Refusal::Invalid(vec![FieldError::new(path, message.into())]))
}

/// Logs a failure.
pub(super) fn failed<T>(account: &AccountId, error: &StoreError) -> ManageReply<T> {
    metrics::approvals_failed();
    tracing::warn!(%account, error = error as &dyn std::error::Error, "approvals failed");
    ManageReply::Failed
}

/// Whether this caller's own workload asked.
pub(super) fn is_own(actor: &Actor, approval: &StoredApproval) -> bool {
    actor.holder.workload == approval.asker.workload
}

/// Whether this caller sees all approvals of the account.
pub(super) fn sees_all(actor: &Actor) -> bool {
    actor.scopes.contains(&Scope::ApprovalsDecide) || actor.scopes.contains(&Scope::DecisionsRead)
}

/// Whether this caller may decide about the approval.
fn may_decide(people: &People, actor: &Actor, approval: &StoredApproval, now: jiff::Timestamp) -> bool {
    let Some(member) = actor.holder.member.as_ref().filter(|_| actor.scopes.contains(&Scope::ApprovalsDecide)) else {
        return false;
    };
    let asker = approval.asker(actor.rules.four_eyes);
    let question = Question { asker: &asker, terms: &approval.terms, opened_at: approval.created_at, now };
    matches!(Directory::new(people).standing(member, question), Standing::May { .. })
}

impl Approvals {
    /// The approval with this id, if the caller may see it.
    async fn seen(
        &self,
        account: &AccountId,
        actor: &Actor,
        id: &ApprovalId,
        deadline: Instant,
    ) -> Result<Option<StoredApproval>, StoreError> {
        let found = self.store.find(account, id, deadline).await?;
        let now = self.store.now();
        Ok(found.map(|(_, approval, _)| approval).filter(|approval| is_own(actor, approval) || sees_all(actor)).map(
            |mut approval| {
                approval.pass_time(now);
                approval
            },
        ))
    }

    fn eligible(&self, people: &People, actor: &Actor, approval: &StoredApproval) -> u32 {
        let asker = approval.asker(actor.rules.four_eyes);
        let now = self.store.now();
        let question = Question { asker: &asker, terms: &approval.terms, opened_at: approval.created_at, now };
        Directory::new(people).electorate(question).eligible
    }

    /// The sealed request of an approval; none once it is deleted.
    pub(super) async fn action(
        &self,
        approval: &StoredApproval,
        people: &People,
        deadline: Instant,
    ) -> Result<Option<CheckRequest>, StoreError> {
        let sealed = self.store.text(&approval.account, &approval.id, deadline).await?;
        let Some(sealed) = sealed else { return Ok(None) };
        let opened = text::open(&people.text_key, &approval.account, &approval.action_digest, &sealed);
        if let Err(error) = &opened {
            let (account, approval_id) = (&approval.account, &approval.id);
            tracing::warn!(%account, %approval_id, error = error as &dyn std::error::Error, "action not opened");
        }
        opened.map(Some).map_err(|_| StoreError::Forged)
    }

    /// Why a stop holds the approval up; none if none does. Where the action cannot be read, any stop does.
    pub(super) async fn stop_over(
        &self,
        engines: &Engines,
        actor: &Actor,
        approval: &StoredApproval,
        request: Option<&CheckRequest>,
        deadline: Instant,
    ) -> Option<String> {
        let now = self.store.now();
        let first = actor.rules.stops.iter().find(|stop| stop.until.is_none_or(|until| until > now))?;
        let Some(request) = request.cloned() else { return Some(first.reason.clone()) };
        // Judged as if its own key asked again.
        let asker = Actor { key_id: approval.key_id.clone(), holder: approval.asker.clone(), ..actor.clone() };
        let reason = first.reason.clone();
        let chosen = Box::pin(engines.choose(&approval.account, &asker.rules, &request, deadline)).await;
        let Ok(chosen) = chosen else { return Some(reason) };
        let bytes = serde_json::to_vec(&request).map_or(usize::MAX, |text| text.len());
        let work = move |handler: &Handler| handler.stop_over(&request, &chosen, &asker, now.as_second());
        engines.inspect(bytes, work).await.unwrap_or(Some(reason))
    }

    /// What this caller sees of an approval.
    pub(super) async fn view(
        &self,
        engines: &Engines,
        actor: &Actor,
        approval: &StoredApproval,
        people: Option<&People>,
        deadline: Instant,
    ) -> Result<Approval, StoreError> {
        let eligible = people.map(|people| self.eligible(people, actor, approval));
        let shows_text = people
            .is_some_and(|people| is_own(actor, approval) || may_decide(people, actor, approval, self.store.now()));
        let needs_text = shows_text || !actor.rules.stops.is_empty();
        let request = match people.filter(|_| needs_text) {
            Some(people) => self.action(approval, people, deadline).await?,
            None => None,
        };
        let waits = matches!(approval.status, ApprovalStatus::Pending | ApprovalStatus::Approved);
        let stopped =
            if waits { self.stop_over(engines, actor, approval, request.as_ref(), deadline).await } else { None };
        let mut view = approval.view(eligible, stopped);
        if let Some(request) = request.filter(|_| shows_text) {
            let bytes = serde_json::to_vec(&request).map_or(usize::MAX, |text| text.len());
            let forms = SecretForms::of(&approval.account, &actor.rules);
            let work = move |mask: &dyn Fn(&str) -> String| shown(mask, &request);
            view.action = engines.with_mask(forms, bytes, deadline, work).await.flatten();
        }
        Ok(view)
    }

    /// `GET /v1/approvals/{id}`.
    pub(crate) async fn show(
        &self,
        engines: &Engines,
        message: &ShowApproval,
        deadline: Instant,
    ) -> ManageReply<Approval> {
        let ShowApproval { account, actor, id, .. } = message;
        let shown = async {
            let Some(approval) = self.seen(account, actor, id, deadline).await? else { return Ok(None) };
            let people = self.people(account, deadline).await;
            self.view(engines, actor, &approval, people.as_deref(), deadline).await.map(Some)
        };
        match shown.await {
            Ok(Some(view)) => ManageReply::Done(view),
            Ok(None) => not_found(),
            Err(error) => failed(account, &error),
        }
    }

    /// `GET /v1/approvals/{id}/history`.
    pub(crate) async fn history(
        &self,
        message: &ReadApprovalHistory,
        deadline: Instant,
    ) -> ManageReply<ApprovalHistory> {
        let ReadApprovalHistory { account, actor, id } = message;
        match self.seen(account, actor, id, deadline).await {
            Ok(Some(approval)) => {
                let is_own = |event: &ApprovalEvent| event.approval_id.as_ref() == Some(id);
                let events = approval.outbox.events.into_iter().map(|stored| stored.event);
                ManageReply::Done(ApprovalHistory { items: events.filter(is_own).collect() })
            }
            Ok(None) => not_found(),
            Err(error) => failed(account, &error),
        }
    }

    /// `POST /check` with an `approval_id` alone: the sealed request, for the workload that asked.
    pub(crate) async fn fetch(&self, message: &FetchAction, deadline: Instant) -> ManageReply<FetchedAction> {
        let FetchAction { account, actor, id } = message;
        let found = match self.store.find(account, id, deadline).await {
            Ok(Some((_, approval, _))) if is_own(actor, &approval) => approval,
            Ok(_) => return not_found(),
            Err(error) => return failed(account, &error),
        };
        let Some(people) = self.people(account, deadline).await else { return ManageReply::Failed };
        match self.action(&found, &people, deadline).await {
            Ok(Some(request)) => ManageReply::Done(FetchedAction { request }),
            Ok(None) => conflict("the action's text is deleted: send the whole request again"),
            Err(error) => failed(account, &error),
        }
    }

    /// Whether a stop covers a check whose decision would be given again.
    pub(crate) async fn covered(
        &self,
        engines: &Engines,
        message: &CoveredByStop,
        deadline: Instant,
    ) -> CoveredByStopReply {
        let CoveredByStop { account, request, asker } = message.clone();
        if asker.rules.stops.is_empty() {
            return CoveredByStopReply { is_covered: false };
        }
        let bytes = serde_json::to_vec(&request).map_or(usize::MAX, |text| text.len());
        let now = self.store.now().as_second();
        let Ok(chosen) = Box::pin(engines.choose(&account, &asker.rules, &request, deadline)).await else {
            return CoveredByStopReply { is_covered: true };
        };
        let covers = move |handler: &Handler| handler.stop_over(&request, &chosen, &asker, now).is_some();
        let judged = engines.inspect(bytes, covers).await;
        CoveredByStopReply { is_covered: judged.unwrap_or(true) }
    }

    /// A text without its secrets; empty where that cannot be known.
    pub(crate) async fn masked(&self, engines: &Engines, message: &MaskText, deadline: Instant) -> MaskTextReply {
        let MaskText { account, text, policies, floor } = message.clone();
        let forms = SecretForms { account: &account, policies, floor: floor.as_ref() };
        let masked = engines.with_mask(forms, text.len(), deadline, move |mask| mask(&text)).await;
        MaskTextReply { text: masked.unwrap_or_default() }
    }

    /// `GET /v1/approvals`: without the actions' texts.
    pub(crate) async fn list(&self, message: &ListApprovals, deadline: Instant) -> ManageReply<Page<Approval>> {
        let ListApprovals { account, limit, .. } = message;
        // The gateway has validated this, but any process may send a request.
        if !(1..=MAX_PAGE).contains(limit) {
            return invalid("limit", format!("must be 1 to {MAX_PAGE}"));
        }
        let Ok(Ok(_turn)) = timeout_at(deadline, self.lists.acquire()).await else { return ManageReply::Busy };
        match self.page(message, deadline).await {
            Ok(page) => ManageReply::Done(page),
            Err(StoreError::List(ListError::Cursor)) => {
                invalid("cursor", "must be the `next_cursor` of an earlier page")
            }
            Err(error) => failed(account, &error),
        }
    }

    async fn page(&self, message: &ListApprovals, deadline: Instant) -> Result<Page<Approval>, StoreError> {
        let ListApprovals { account, actor, status, group, limit, cursor } = message;
        let under = account_prefix(account);
        let people = self.recent_people(account, deadline).await;
        let now = self.store.now();
        let most = usize::try_from(*limit).unwrap_or(usize::MAX);
        let (mut items, mut cursor, mut scanned) = (Vec::new(), cursor.clone(), 0);
        loop {
            let listed = self.store.state_store.list(&under, cursor.as_deref(), most - items.len(), deadline).await;
            let listed = listed.map_err(StoreError::List)?;
            scanned += most;
            for (key, record) in listed.records {
                // One record that is malformed, or does not belong there, does not hide the others.
                let read = serde_json::from_slice::<StoredApproval>(&record.value).ok();
                let Some(mut approval) = read.filter(|approval| approval.stands_at(account, &key)) else {
                    metrics::approvals_failed();
                    tracing::warn!(%account, record = key, "record of an approval cannot be read: not listed");
                    continue;
                };
                if !(is_own(actor, &approval) || sees_all(actor)) {
                    continue;
                }
                approval.pass_time(now);
                let has_group = |group: &String| asks_group(&approval.terms, group);
                if status.is_some_and(|status| status != approval.status) || !group.as_ref().is_none_or(has_group) {
                    continue;
                }
                let eligible = people.as_ref().map(|people| self.eligible(people, actor, &approval));
                items.push(approval.view(eligible, None));
            }
            cursor = listed.next;
            if cursor.is_none() || items.len() >= most || scanned >= MAX_SCANNED {
                break;
            }
        }
        items.sort_by_key(|approval| std::cmp::Reverse(approval.created_at));
        Ok(Page { items, next_cursor: cursor })
    }
}

/// Whether members of this group may decide, at once or once no decision came for a time.
pub(super) fn asks_group(terms: &ApprovalTerms, group: &String) -> bool {
    terms.requirements.iter().any(|one| one.groups.is_empty() || one.groups.contains(group))
        || terms.escalations().any(|escalation| escalation.groups.contains(group))
}

/// The action as people read it: every text in it with its secrets masked.
fn shown(mask: &dyn Fn(&str) -> String, request: &CheckRequest) -> Option<Map<String, Value>> {
    let mut action = serde_json::to_value(request).ok()?;
    mask_all(mask, &mut action);
    match action {
        Value::Object(members) => Some(members),
        _ => None,
    }
}

fn mask_all(mask: &dyn Fn(&str) -> String, value: &mut Value) {
    match value {
        Value::String(text) => *text = mask(text),
        Value::Array(items) => items.iter_mut().for_each(|item| mask_all(mask, item)),
        Value::Object(members) => members.values_mut().for_each(|item| mask_all(mask, item)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
