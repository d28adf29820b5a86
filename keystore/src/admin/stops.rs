//! Stops: made, listed and resumed.
//!
//! A stop takes rights away, so it is stored on a nearly full disk too, ahead of other changes, and succeeds only once
//! every gateway was notified. An equal stop that was made just now is not made twice: its notice may have been lost.

use jiff::Timestamp;
use stage0_contract::{
    AccountId, Caller, CreateStop, KeyChanged, ListStops, Page, Refusal, ResumeStop, Resumed, Scope, Stop, StopId,
    StopScope,
};

use super::pages::one_page;
use super::rules::stops::{self as stop_rules, Resumption};
use super::{AdminService, ChangeResult, ManageError, REPEAT_TTL, account_changed, authorized, granter, new_id};
use crate::admin::announce::Changed;
use crate::admin::rules::{self, whole_seconds};
use crate::sources::random;
use crate::store::record::{Record, StopRecord};
use crate::store::record_store::{RecordStore, StoreError};

/// Stops whose time is over that one change notes as ended. A change stays small.
const MAX_NOTED: usize = 8;

impl AdminService {
    pub(crate) fn create_stop(&mut self, call: &CreateStop) -> ChangeResult<Stop> {
        let (now, store) = (self.now(), self.store());
        let granter = granter(store, &call.caller, Scope::StopsManage, now)?;
        let caller = &granter.caller;
        let account = rules::target_account(caller, call.account.as_ref())?;
        let key = stop_rules::named_key(call).map(|id| store.key(&id)).transpose()?.flatten();
        let value = stop_rules::valid_stop(caller, call, (&account, key.as_ref()), now)?;
        store.account(&account)?.ok_or(Refusal::NotFound)?;
        let stop = Stop {
            id: new_id("stop", random()?, StopId::parse)?,
            account: (call.scope != StopScope::All).then(|| account.clone()),
            scope: call.scope,
            value,
            reason: call.reason.clone(),
            created_at: now,
            until: call.until.map(whole_seconds),
            key_id: caller.key_id.clone(),
            member_id: granter.holder.member.clone(),
        };
        let listed = store.stops(&account, None).collect::<Result<Vec<_>, StoreError>>()?;
        let changed = changed(&account, &stop, caller);
        if let Some(same) = listed.iter().find(|record| is_repeated(record, &stop, now)) {
            return Ok((same.stop.clone(), Some(changed)));
        }
        let holding = listed.iter().filter(|record| record.holds_at(now)).map(|record| record.stop.scope);
        stop_rules::check_stop_cap(stop.scope, holding)?;
        let mut change =
            vec![Record::Stop(StopRecord { stop: stop.clone(), account: account.clone(), ended_at: None })];
        let over = listed.into_iter().filter(|record| !record.holds_at(now)).take(MAX_NOTED);
        change.extend(over.map(|record| Record::Stop(StopRecord { ended_at: record.stop.until, ..record })));
        change.extend(self.precheck().population().surplus_stops(&account, now));
        self.commit(&change)?;
        let (scope, value) = (stop.scope, stop.value.as_deref());
        tracing::warn!(%account, stop = %stop.id, ?scope, value, by = %caller.key_id, "checks stopped");
        Ok((stop, Some(changed)))
    }

    /// A repeated call is announced only for [`REPEAT_TTL`], as a repeated revocation is.
    pub(crate) fn resume_stop(&mut self, call: &ResumeStop) -> ChangeResult<Resumed> {
        let now = self.now();
        let granter = granter(self.store(), &call.caller, Scope::StopsManage, now)?;
        let caller = &granter.caller;
        match stop_rules::resumed(&granter, self.store().stop(&call.id)?, &call.reason, now)? {
            Resumption::Already(record) => {
                let announce = record.ends().is_some_and(|at| now.duration_since(at) <= REPEAT_TTL);
                let changed = announce.then(|| changed(&record.account, &record.stop, caller));
                Ok((record.stop, changed))
            }
            Resumption::New(record) => {
                self.commit(&[Record::Stop(record.clone())])?;
                let StopRecord { stop, account, .. } = record;
                tracing::warn!(%account, stop = %stop.id, by = %caller.key_id, "checks resumed");
                let changed = changed(&account, &stop, caller);
                Ok((stop, Some(changed)))
            }
        }
    }
}

pub(crate) fn list_stops(store: &RecordStore, call: &ListStops, now: Timestamp) -> Result<Page<Stop>, ManageError> {
    let caller = authorized(store, &call.caller, Scope::StopsManage, now)?;
    let account = rules::target_account(&caller, call.account.as_ref())?;
    let (after, limit) = rules::page(call.cursor.as_deref(), call.limit, StopId::parse)?;
    store.account(&account)?.ok_or(Refusal::NotFound)?;
    let holding =
        store.stops(&account, after.as_ref()).filter(|record| record.as_ref().map_or(true, |of| of.holds_at(now)));
    let (items, next) = one_page(holding.map(|record| record.map(|of| of.stop)), limit, |stop| stop.id.clone())?;
    Ok(Page { items, next_cursor: next.map(|id| id.as_str().to_owned()) })
}

/// Whether the record is of the same stop, made by the same key a moment ago.
fn is_repeated(record: &StopRecord, stop: &Stop, now: Timestamp) -> bool {
    let made = &record.stop;
    let same = Stop { id: made.id.clone(), created_at: made.created_at, ..stop.clone() };
    record.holds_at(now) && *made == same && now.duration_since(made.created_at) <= REPEAT_TTL
}

fn changed(account: &AccountId, stop: &Stop, caller: &Caller) -> Changed {
    match stop.scope {
        StopScope::All => Changed::Key(KeyChanged::Any {}),
        StopScope::Account | StopScope::Environment | StopScope::Tool | StopScope::Key => {
            account_changed(account.clone(), caller)
        }
    }
}
