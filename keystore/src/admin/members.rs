//! Members: invited, listed, changed, removed, and their keys.
//!
//! A member's key is made when its invitation is accepted and leaves the keystore in that answer alone. The log of this
//! process and the records of stops have ids, never names or mail.
//! INVARIANT: a code makes one key: the change that stores the key also ends the invitation.

use std::collections::HashSet;

use jiff::Timestamp;
use stage0_contract::{
    AccountId, DelegateMember, InvitationAccepted, InvitationCode, InviteMember, KeyChanged, ListMembers, Member,
    MemberId, MemberInvited, MemberRemoved, MemberStatus, Page, People, Person, PersonRecord, ReadPeople, Refusal,
    ReinviteMember, RemoveMember, Scope, UpdateMember,
};

use super::new_key::HashedKey;
use super::pages::one_page;
use super::rules::members::{self as member_rules, Removal};
use super::{
    AdminService, ChangeResult, ManageError, NewHolder, NewKey, Precheck, REPEAT_TTL, account_changed, as_recorded,
    authorized, granter, new_id,
};
use crate::admin::announce::Changed;
use crate::admin::rules;
use crate::seal::Sealer;
use crate::sources::random;
use crate::store::record::{CodeHash, Invitation, KeyRecord, MemberRecord, Record};
use crate::store::record_store::{RecordStore, StoreError};

/// Records of one change that revokes keys of a member. A member that rotates its key often has many.
const MAX_REVOKED: usize = 32;
/// JSON bytes of a member's keys where its people are read: one, by the first of its rotations.
const BYTES_OF_KEYS: usize = 40;

impl AdminService {
    pub(crate) fn invite_member(&mut self, call: InviteMember) -> ChangeResult<MemberInvited> {
        let (now, store) = (self.now(), self.store());
        let granter = granter(store, &call.caller, Scope::MembersManage, now)?;
        let account = rules::target_account(&granter.caller, call.account.as_ref())?;
        let scopes = member_rules::valid_invitation(&granter.caller, &call)?;
        store.account(&account)?.ok_or(Refusal::NotFound)?;
        member_rules::check_member_cap(self.precheck().population().existing_members(&account, now))?;
        let id = new_id("mem", random()?, MemberId::parse)?;
        let member = Member {
            id: id.clone(),
            account: account.clone(),
            name: call.name,
            mail: call.mail,
            groups: call.groups,
            status: MemberStatus::Invited,
            scopes,
            created_at: now,
            delegate: None,
        };
        let made_by = member_rules::with_makers(&granter, Vec::new(), &id)?;
        let (code, invitation) = new_invitation(call.valid_seconds, now)?;
        let expires_at = invitation.expires_at;
        let record = MemberRecord { member, made_by, invitation: Some(invitation), removed_at: None };
        self.check_people(&record, now)?;
        let mut change = vec![Record::Member(record.clone())];
        change.extend(self.surplus_members(&account, now)?);
        self.commit(&change)?;
        tracing::info!(%account, member = %id, by = %granter.caller.key_id, "member invited");
        Ok((invited(record, code, expires_at, now), None))
    }

    pub(crate) fn reinvite_member(&mut self, call: &ReinviteMember) -> ChangeResult<MemberInvited> {
        let now = self.now();
        let granter = granter(self.store(), &call.caller, Scope::MembersManage, now)?;
        let mut record = member_rules::reinvited(&granter, call, self.store().member(&call.id)?)?;
        let (code, invitation) = new_invitation(call.valid_seconds, now)?;
        let expires_at = invitation.expires_at;
        record.invitation = Some(invitation);
        self.check_people(&record, now)?;
        self.commit(&[Record::Member(record.clone())])?;
        let (account, by) = (&record.member.account, &granter.caller.key_id);
        tracing::info!(%account, member = %call.id, %by, "member invited again");
        Ok((invited(record, code, expires_at, now), None))
    }

    /// Makes the member's key and revokes those that it had: a member that is invited again has lost them.
    pub(crate) fn accept_invitation(&mut self, code: &CodeHash, hashed: HashedKey) -> ChangeResult<InvitationAccepted> {
        let now = self.now();
        let precheck = self.precheck();
        let id = precheck.population().people.invited_by(code);
        let found = id.map(|id| self.store().member(&id)).transpose()?.flatten();
        let record = member_rules::accepted(found, code, now)?;
        let Member { id, account, scopes, .. } = record.member.clone();
        let earlier = self.ended_keys(&account, &id, now)?;
        let live = precheck.population().active_keys(&account, now).saturating_sub(earlier.len() as u64);
        rules::check_key_cap(live, &precheck.caps(&account)?)?;
        let holder = NewHolder::Member(id.clone());
        let name = id.as_str().to_owned();
        let new = NewKey { account: account.clone(), name, scopes, expires_at: None, holder };
        let (key, key_record) = new.with(hashed, now);
        let key_id = key_record.id.clone();
        // Before the new key, so that the change that makes it stays small.
        self.revoke_keys(Vec::new(), earlier)?;
        let mut change = vec![Record::Key(key_record), Record::Member(record.clone())];
        change.extend(precheck.population().surplus_keys(&account, now));
        self.commit(&change)?;
        tracing::info!(%account, member = %id, %key_id, "invitation accepted");
        let changed = Changed::Key(KeyChanged::One { account, key_id: key_id.clone() });
        Ok((InvitationAccepted { member: record.shown(now), key_id, key }, Some(changed)))
    }

    pub(crate) fn update_member(&mut self, call: UpdateMember) -> ChangeResult<Member> {
        let now = self.now();
        let granter = granter(self.store(), &call.caller, Scope::MembersManage, now)?;
        let found = self.store().member(&call.id)?;
        let record = member_rules::updated(&granter, call, found)?;
        self.check_people(&record, now)?;
        self.put_member(record, &granter, "changed", now)
    }

    pub(crate) fn delegate_member(&mut self, call: &DelegateMember) -> ChangeResult<Member> {
        let (now, store) = (self.now(), self.store());
        let granter = as_recorded(store, &call.caller, now)?;
        let to = call.to.as_ref().map(|to| store.member(to)).transpose()?.flatten();
        let record = member_rules::delegated(&granter, call, store.member(&call.id)?, to.as_ref(), now)?;
        self.put_member(record, &granter, "given a delegate or none", now)
    }

    /// A repeated removal is announced only for [`REPEAT_TTL`], as a repeated revocation is, and revokes what is left.
    pub(crate) fn remove_member(&mut self, call: &RemoveMember) -> ChangeResult<MemberRemoved> {
        let now = self.now();
        let caller = authorized(self.store(), &call.caller, Scope::MembersManage, now)?;
        match member_rules::removed(&caller, self.store().member(&call.id)?, now)? {
            Removal::Already(record) => {
                let account = record.member.account;
                self.revoke_keys(Vec::new(), self.ended_keys(&account, &call.id, now)?)?;
                let announce = record.removed_at.is_some_and(|at| now.duration_since(at) <= REPEAT_TTL);
                Ok((MemberRemoved {}, announce.then(|| account_changed(account, &caller))))
            }
            Removal::New(record) => {
                let account = record.member.account.clone();
                let ended = self.ended_keys(&account, &call.id, now)?;
                let revoked = ended.len();
                self.revoke_keys(vec![Record::Member(record)], ended)?;
                tracing::info!(%account, member = %call.id, revoked, by = %caller.key_id, "member removed");
                Ok((MemberRemoved {}, Some(account_changed(account, &caller))))
            }
        }
    }

    /// Stores the first change, then the revoked keys, a few in each change. A call that is cut short is made again.
    fn revoke_keys(&mut self, mut change: Vec<Record>, revoked: Vec<KeyRecord>) -> Result<(), ManageError> {
        for key in revoked {
            if change.len() == MAX_REVOKED {
                self.commit(&std::mem::take(&mut change))?;
            }
            change.push(Record::Key(key));
        }
        if !change.is_empty() {
            self.commit(&change)?;
        }
        Ok(())
    }

    fn put_member(
        &mut self,
        record: MemberRecord,
        granter: &rules::Granter,
        change: &'static str,
        now: Timestamp,
    ) -> ChangeResult<Member> {
        self.commit(&[Record::Member(record.clone())])?;
        let (account, by) = (record.member.account.clone(), &granter.caller.key_id);
        tracing::info!(%account, member = %record.member.id, %by, change, "member changed");
        let changed = account_changed(account, &granter.caller);
        Ok((record.shown(now), Some(changed)))
    }

    /// The live keys of a member, as they are once they are revoked.
    fn ended_keys(
        &self,
        account: &AccountId,
        member: &MemberId,
        now: Timestamp,
    ) -> Result<Vec<KeyRecord>, ManageError> {
        let ids = self.precheck().population().people.live_keys(account, member, now);
        let mut keys = Vec::with_capacity(ids.len());
        for id in ids {
            let key = self.store().key(&id)?.ok_or(StoreError::Inconsistent)?;
            keys.push(KeyRecord { revoked_at: Some(now), ..key });
        }
        Ok(keys)
    }

    /// Refuses a member with whom its account's people would be too much for one message.
    fn check_people(&self, changed: &MemberRecord, now: Timestamp) -> Result<(), ManageError> {
        let others = self.store().members_and_removed(&changed.member.account)?;
        let others = others.into_iter().filter(|record| record.member.id != changed.member.id);
        let mut bytes = 0;
        for record in others.chain([changed.clone()]) {
            let person = serde_json::to_vec(&record.person(Vec::new(), now)).map_err(StoreError::Json)?;
            bytes += person.len() + BYTES_OF_KEYS;
        }
        Ok(member_rules::check_people_bytes(bytes)?)
    }

    /// Records that forget members who were removed long ago and of whom neither a member nor a key knows any more.
    fn surplus_members(&self, account: &AccountId, now: Timestamp) -> Result<Vec<Record>, ManageError> {
        let precheck = self.precheck();
        if !precheck.population().has_surplus_members(account, now) {
            return Ok(Vec::new());
        }
        let mut needed = HashSet::new();
        let mut need = |person| {
            if let Person::Member(id) = person {
                needed.insert(id);
            }
        };
        for record in self.store().members_and_removed(account)? {
            record.made_by.into_iter().for_each(&mut need);
        }
        for key in self.store().keys(account, None, usize::MAX)? {
            key.holder().persons().for_each(&mut need);
        }
        Ok(precheck.population().surplus_members(account, now, |id| needed.contains(id)))
    }
}

pub(crate) fn list_members(
    store: &RecordStore,
    call: &ListMembers,
    now: Timestamp,
) -> Result<Page<Member>, ManageError> {
    let caller = authorized(store, &call.caller, Scope::MembersManage, now)?;
    let account = rules::target_account(&caller, call.account.as_ref())?;
    let (after, limit) = rules::page(call.cursor.as_deref(), call.limit, MemberId::parse)?;
    store.account(&account)?.ok_or(Refusal::NotFound)?;
    let members = store.members(&account, after.as_ref()).map(|record| record.map(|record| record.shown(now)));
    let (items, next) = one_page(members, limit, |member| member.id.clone())?;
    Ok(Page { items, next_cursor: next.map(|id| id.as_str().to_owned()) })
}

/// For evaluators, which have no key: the backplane's credentials decide who may send this.
pub(crate) fn read_people(
    store: &RecordStore,
    precheck: &Precheck,
    sealer: &Sealer,
    call: &ReadPeople,
    now: Timestamp,
) -> Result<People, ManageError> {
    store.account(&call.account)?.ok_or(Refusal::NotFound)?;
    let mut deciders = precheck.population().people.deciders(&call.account, now);
    let person = |record: MemberRecord| -> PersonRecord {
        let keys = deciders.remove(&record.member.id).unwrap_or_default();
        record.person(keys.into_iter().collect(), now)
    };
    let members = store.members_and_removed(&call.account)?.into_iter().map(person).collect();
    Ok(People { members, text_key: sealer.text_key(&call.account)? })
}

fn new_invitation(valid_seconds: u64, now: Timestamp) -> Result<(InvitationCode, Invitation), ManageError> {
    let code = InvitationCode::from_random(&random()?);
    let expires_at = member_rules::invitation_end(valid_seconds, now);
    let hash = CodeHash::of(&code);
    Ok((code, Invitation { hash, expires_at }))
}

fn invited(record: MemberRecord, code: InvitationCode, expires_at: Timestamp, now: Timestamp) -> MemberInvited {
    MemberInvited { member: record.shown(now), invitation_code: code, invitation_expires_at: expires_at }
}
