//! Approvals of deferred actions: opened by a check, decided by people, used by one check, recorded throughout.
//!
//! The rules are pure (`people`, `state`, `index`, `grants`); around them are the state store, the path of a check and
//! the served requests. What a caller may do is judged here; people are read from the keystore each time that a vote is
//! given or counts.
//! INVARIANT: of all checks that one approval would let pass, one passes. If something cannot be read or recorded, none
//! does.

mod change;
mod check;
mod collect;
mod grants;
mod index;
mod note;
mod people;
#[cfg(test)]
mod people_tests;
mod reason;
mod record;
mod serve;
#[cfg(test)]
mod simulated;
mod state;
mod store;
#[cfg(test)]
mod tests;
mod text;
mod wider;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use stage0_backplane::{Backplane, MAX_CONCURRENT_LISTS, Notices, Requests};
use stage0_contract::{AccountId, ApprovalId, ApprovalsChanged, GrantId, ManageReply, People, ReadPeople, RequestId};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use uuid::Uuid;

pub(crate) use check::Hold;
use store::{ApprovalStore, StoreError};

use crate::config::RunConfig;
use crate::metrics;
use crate::outcomes::Outcomes;

/// Timeout for the keystore's answer about people.
const PEOPLE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long people are remembered for lists; votes and uses read them again.
const PEOPLE_TTL: Duration = Duration::from_secs(2);
/// Accounts whose people are remembered.
const MAX_REMEMBERED: usize = 64;
/// Timeout for giving a reservation back.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// One shard's approvals.
pub(crate) struct Approvals {
    store: ApprovalStore,
    requests: Arc<dyn Requests>,
    notices: Arc<dyn Notices>,
    people: RefCell<HashMap<AccountId, (Instant, Rc<People>)>>,
    /// One permit per list request.
    lists: Semaphore,
    /// What an ALLOW may have to wait for.
    outcomes: Outcomes,
}

impl Approvals {
    pub(crate) fn new(backplane: &Backplane, config: RunConfig) -> Self {
        Self {
            store: ApprovalStore { state_store: Arc::clone(&backplane.state_store), config },
            requests: Arc::clone(&backplane.requests),
            notices: Arc::clone(&backplane.notices),
            people: RefCell::default(),
            lists: Semaphore::new(MAX_CONCURRENT_LISTS),
            outcomes: Outcomes::new(Arc::clone(&backplane.state_store)),
        }
    }

    /// The account's people as they are now; none where the keystore does not answer in time.
    async fn people(&self, account: &AccountId, deadline: Instant) -> Option<Rc<People>> {
        let deadline = deadline.min(Instant::now() + PEOPLE_TIMEOUT);
        let reply = self.requests.request_until(&ReadPeople { account: account.clone() }, deadline).await;
        let people = match reply {
            Ok(ManageReply::Done(people)) => Rc::new(people),
            Ok(ManageReply::Refused(_) | ManageReply::Failed | ManageReply::Busy) => {
                tracing::warn!(%account, "people cannot be read: the keystore refused");
                return None;
            }
            Err(error) => {
                tracing::warn!(%account, error = &error as &dyn std::error::Error, "people cannot be read");
                return None;
            }
        };
        let mut remembered = self.people.borrow_mut();
        if remembered.len() >= MAX_REMEMBERED {
            remembered.retain(|_, (read_at, _)| read_at.elapsed() < PEOPLE_TTL);
        }
        if remembered.len() < MAX_REMEMBERED {
            remembered.insert(account.clone(), (Instant::now(), Rc::clone(&people)));
        }
        Some(people)
    }

    /// The account's people as they were at most two seconds ago: for what is shown, never for what is decided.
    async fn recent_people(&self, account: &AccountId, deadline: Instant) -> Option<Rc<People>> {
        let recent = self.people.borrow().get(account).filter(|(read_at, _)| read_at.elapsed() < PEOPLE_TTL).cloned();
        match recent {
            Some((_, people)) => Some(people),
            None => self.people(account, deadline).await,
        }
    }

    /// Wakes those who wait for a change. A lost notice only makes them wait longer.
    async fn announce(&self, account: &AccountId, id: &ApprovalId) {
        let changed = ApprovalsChanged { account: account.clone(), ids: vec![id.clone()] };
        if let Err(error) = self.notices.publish(&changed).await {
            tracing::debug!(%account, error = &error as &dyn std::error::Error, "change of an approval not announced");
        }
    }

    /// Frees what this attempt of a check reserved: its decision is surely not in the log. `claim` is that of the
    /// evaluator that gives up; none: the gateway has, and it alone could have recorded the decision.
    async fn release(
        &self,
        account: &AccountId,
        request_id: RequestId,
        claim: Option<Uuid>,
        approval: Option<&ApprovalId>,
        grant: Option<&GrantId>,
        deadline: Instant,
    ) -> Result<(), StoreError> {
        if let Some(id) = approval {
            let released =
                self.update(account, id, deadline, |approval, now| approval.release(request_id, claim, now)).await?;
            if released {
                metrics::approval_released();
                tracing::info!(%account, %request_id, approval_id = %id, "reserved approval released");
                self.announce(account, id).await;
            }
        }
        if let Some(id) = grant {
            let release = |grants: &mut grants::StoredGrants, _| {
                Ok::<_, std::convert::Infallible>(grants.find(id).is_some_and(|grant| grant.release(request_id)))
            };
            if matches!(self.store.change_grants(account, deadline, release).await?, Ok(true)) {
                metrics::approval_released();
                tracing::info!(%account, %request_id, grant_id = %id, "use of a grant released");
            }
        }
        Ok(())
    }

    /// Changes an approval until its record is stored; whether `change` changed anything.
    async fn update(
        &self,
        account: &AccountId,
        id: &ApprovalId,
        deadline: Instant,
        change: impl Fn(&mut record::StoredApproval, jiff::Timestamp) -> bool,
    ) -> Result<bool, StoreError> {
        while Instant::now() < deadline {
            let Some((place, mut approval, revision)) = self.store.find(account, id, deadline).await? else {
                return Ok(false);
            };
            if !change(&mut approval, self.store.now()) {
                return Ok(false);
            }
            if self.store.put(&place, &approval, Some(revision), deadline).await? {
                if place.is_current {
                    self.store.reindex(&approval, deadline).await?;
                }
                return Ok(true);
            }
            store::pause().await;
        }
        Err(StoreError::Contended)
    }
}
