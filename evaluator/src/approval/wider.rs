//! Served requests about wider grants: made by a member, approved by further ones, listed, revoked.
//!
//! A workload sees its own grants, keys with `approvals:decide` or `decisions:read` all of their account's.

use std::rc::Rc;

use stage0_contract::{
    ChangeGrant, CreateGrant, Grant, GrantChange, GrantChanged, GrantId, Grants, ListGrants, ManageReply, People,
    Refusal, Scope, Unrecorded,
};
use tokio::time::Instant;

use super::grants::{self, StoredGrant, StoredGrants};
use super::people::Directory;
use super::record::Outbox;
use super::serve::{failed, invalid, not_found, sees_all};
use super::{Approvals, reason};
use crate::engines::{Engines, SecretForms};

impl Approvals {
    /// `POST /v1/grants`.
    pub(crate) async fn create_grant(
        &self,
        engines: &Engines,
        message: &CreateGrant,
        deadline: Instant,
    ) -> ManageReply<GrantChanged> {
        let CreateGrant { account, actor, holder, .. } = message;
        if !actor.scopes.contains(&Scope::ApprovalsDecide) || actor.holder.member.is_none() {
            return ManageReply::Refused(Refusal::ScopeMissing(Scope::ApprovalsDecide));
        }
        if !actor.can_record {
            return ManageReply::Failed;
        }
        // The gateway asked the keystore whose key it is.
        let Some(holder) = holder else { return invalid("key_id", "must be a key of this account") };
        if let Some(fault) = grants::fault(message, self.store.now()) {
            return ManageReply::Refused(Refusal::Invalid(vec![fault]));
        }
        let reason =
            match self.grant_reason(engines, SecretForms::of(account, &actor.rules), &message.reason, deadline).await {
                Ok(reason) => reason,
                Err(refusal) => return ManageReply::Refused(refusal),
            };
        let mut random = [0; 16];
        let id = aws_lc_rs::rand::fill(&mut random).ok();
        let id = id.and_then(|()| GrantId::parse(&format!("grt_{}", data_encoding::HEXLOWER.encode(&random))).ok());
        let Some(id) = id else { return ManageReply::Failed };
        let Some(people) = self.people(account, deadline).await else { return ManageReply::Failed };
        let directory = Directory::new(&people);
        let add = |grants: &mut StoredGrants, now| {
            let grant = Grant {
                id: id.clone(),
                workload: holder.workload.clone(),
                run_id: message.run_id.clone(),
                tool: message.tool.clone(),
                effects: message.effects.clone(),
                environment: message.environment.clone(),
                until: message.until,
                created_at: now,
                votes: Vec::new(),
                revoked_at: None,
                uses: 0,
                used_by: Vec::new(),
            };
            let (votes, outbox) = (Vec::new(), Outbox::default());
            let mut stored = StoredGrant { grant, votes, asker: holder.clone(), outbox, is_crowded: false };
            stored.approve(actor, &directory, &reason, now)?;
            let (view, events) = (stored.view(), stored.outbox.unrecorded(None));
            grants.retention_days = actor.retention_days;
            grants.add(stored, now)?;
            Ok(GrantChanged { grant: view, unrecorded: Unrecorded { events } })
        };
        match self.store.change_grants(account, deadline, add).await {
            Ok(Ok(changed)) => {
                tracing::info!(%account, grant_id = %id, key_id = %actor.key_id, "grant made");
                ManageReply::Done(changed)
            }
            Ok(Err(refusal)) => ManageReply::Refused(refusal),
            Err(error) => failed(account, &error),
        }
    }

    async fn grant_reason(
        &self,
        engines: &Engines,
        forms: SecretForms<'_>,
        text: &str,
        deadline: Instant,
    ) -> Result<String, Refusal> {
        let text = reason::checked("reason", text)?.to_owned();
        if text.is_empty() {
            let required = stage0_contract::FieldError::new("reason", "is required".to_owned());
            return Err(Refusal::Invalid(vec![required]));
        }
        let masked = engines.with_mask(forms, text.len(), deadline, move |mask| mask(&text)).await;
        Ok(masked.unwrap_or_else(|| reason::LEFT_OUT.to_owned()))
    }

    /// `GET /v1/grants`.
    pub(crate) async fn list_grants(&self, message: &ListGrants, deadline: Instant) -> ManageReply<Grants> {
        let ListGrants { account, actor } = message;
        match self.store.grants(account, deadline).await {
            Ok(found) => {
                let now = self.store.now();
                let is_seen = |stored: &&StoredGrant| {
                    stored.holds(now) && (sees_all(actor) || stored.grant.workload == actor.holder.workload)
                };
                let stored = found.value.map(|grants| grants.grants).unwrap_or_default();
                ManageReply::Done(Grants { items: stored.iter().filter(is_seen).map(StoredGrant::view).collect() })
            }
            Err(error) => failed(account, &error),
        }
    }

    /// `POST /v1/grants/{id}/approve` and `revoke`.
    pub(crate) async fn change_grant(
        &self,
        engines: &Engines,
        message: &ChangeGrant,
        deadline: Instant,
    ) -> ManageReply<GrantChanged> {
        let ChangeGrant { account, actor, id, change, reason } = message;
        let is_member = actor.scopes.contains(&Scope::ApprovalsDecide) && actor.holder.member.is_some();
        if !is_member && !sees_all(actor) {
            return not_found();
        }
        if !is_member {
            return ManageReply::Refused(Refusal::ScopeMissing(Scope::ApprovalsDecide));
        }
        if !actor.can_record {
            return ManageReply::Failed;
        }
        let reason = match self.grant_reason(engines, SecretForms::of(account, &actor.rules), reason, deadline).await {
            Ok(reason) => reason,
            Err(refusal) => return ManageReply::Refused(refusal),
        };
        let people: Option<Rc<People>> = self.people(account, deadline).await;
        let Some(people) = people else { return ManageReply::Failed };
        let directory = Directory::new(&people);
        let apply = |grants: &mut StoredGrants, now| {
            let stored = grants.find(id).ok_or(Refusal::NotFound)?;
            match change {
                GrantChange::Approve => stored.approve(actor, &directory, &reason, now)?,
                GrantChange::Revoke => stored.revoke(actor, &reason, now)?,
            }
            let (grant, events) = (stored.view(), stored.outbox.unrecorded(None));
            if matches!(change, GrantChange::Approve) {
                grants.check_size()?;
            }
            Ok(GrantChanged { grant, unrecorded: Unrecorded { events } })
        };
        match self.store.change_grants(account, deadline, apply).await {
            Ok(Ok(changed)) => {
                tracing::info!(%account, grant_id = %id, key_id = %actor.key_id, change = ?change, "grant changed");
                ManageReply::Done(changed)
            }
            Ok(Err(refusal)) => ManageReply::Refused(refusal),
            Err(error) => failed(account, &error),
        }
    }
}
