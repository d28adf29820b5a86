//! Members by their invitations, and the keys of members.
//!
//! An invitation is found by the hash of its code alone, so an unknown code costs one look-up and no read. The keys of
//! a member are found without reading all keys of its account, because evaluators ask who may decide at every approval.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;
use stage0_contract::{AccountId, KeyId, MemberId, Scope};

use crate::store::record::{CodeHash, Forgotten, KeyRecord, MemberRecord, Record};

#[derive(Debug, Default)]
pub(crate) struct People {
    invited: HashMap<CodeHash, MemberId>,
    codes: HashMap<MemberId, CodeHash>,
    keys: HashMap<AccountId, HashMap<KeyId, MemberKey>>,
}

#[derive(Debug)]
struct MemberKey {
    member: MemberId,
    /// The first key of its rotations.
    workload: KeyId,
    may_decide: bool,
    ends: Option<Timestamp>,
}

impl People {
    pub(super) fn put(&mut self, record: &Record) {
        match record {
            Record::Member(record) => self.put_invitation(record),
            Record::Key(key) => self.put_key(key),
            Record::Forgotten(Forgotten::Key { id, account }) => {
                self.keys.get_mut(account).and_then(|keys| keys.remove(id));
            }
            Record::Forgotten(Forgotten::Member { id, .. }) => self.end_invitation(id),
            Record::Account(_)
            | Record::Webhook(_)
            | Record::SigningKey(_)
            | Record::Mark(_)
            | Record::Stop(_)
            | Record::Policy(_)
            | Record::DeletedPolicy(_)
            | Record::ActivePolicies(_)
            | Record::Activation(_)
            | Record::Proposal(_)
            | Record::Forgotten(
                Forgotten::Webhook { .. }
                | Forgotten::Stop { .. }
                | Forgotten::Policy(_)
                | Forgotten::DeletedPolicy(_)
                | Forgotten::Activation { .. }
                | Forgotten::Proposal { .. },
            ) => {}
        }
    }

    fn put_invitation(&mut self, record: &MemberRecord) {
        let id = &record.member.id;
        self.end_invitation(id);
        if let Some(invitation) = &record.invitation {
            self.invited.insert(invitation.hash.clone(), id.clone());
            self.codes.insert(id.clone(), invitation.hash.clone());
        }
    }

    fn end_invitation(&mut self, id: &MemberId) {
        if let Some(hash) = self.codes.remove(id) {
            self.invited.remove(&hash);
        }
    }

    fn put_key(&mut self, key: &KeyRecord) {
        let Some(holder) = &key.holder else { return };
        let Some(member) = holder.member.clone() else { return };
        let may_decide = key.scopes.contains(&Scope::ApprovalsDecide);
        let of_member = MemberKey { member, workload: holder.workload.clone(), may_decide, ends: key.ends() };
        self.keys.entry(key.account.clone()).or_default().insert(key.id.clone(), of_member);
    }

    /// The member whose newest invitation has this code. Whether it has expired is not judged here.
    pub(crate) fn invited_by(&self, hash: &CodeHash) -> Option<MemberId> {
        self.invited.get(hash).cloned()
    }

    pub(crate) fn live_keys(&self, account: &AccountId, member: &MemberId, now: Timestamp) -> Vec<KeyId> {
        let keys = self.keys.get(account).into_iter().flatten();
        let live = keys.filter(|(_, key)| key.member == *member && key.is_live(now));
        let mut ids: Vec<_> = live.map(|(id, _)| id.clone()).collect();
        ids.sort_unstable();
        ids
    }

    /// The members that have a live key with `approvals:decide`, and those keys by the first of their rotations.
    pub(crate) fn deciders(&self, account: &AccountId, now: Timestamp) -> HashMap<MemberId, BTreeSet<KeyId>> {
        let mut deciders: HashMap<MemberId, BTreeSet<KeyId>> = HashMap::new();
        let keys = self.keys.get(account).into_iter().flat_map(HashMap::values);
        for key in keys.filter(|key| key.may_decide && key.is_live(now)) {
            deciders.entry(key.member.clone()).or_default().insert(key.workload.clone());
        }
        deciders
    }
}

impl MemberKey {
    fn is_live(&self, now: Timestamp) -> bool {
        self.ends.is_none_or(|end| end > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::Invitation;
    use crate::store::record::tests::{account, at, key, member};
    use stage0_contract::Holder;

    fn invited(id: &str, code: &str) -> Record {
        let invitation = Invitation { hash: CodeHash(code.to_owned()), expires_at: at(9) };
        Record::Member(MemberRecord { invitation: Some(invitation), ..member(id, "a") })
    }

    fn key_of(id: &str, of: &str, scope: Scope, revoked_at: Option<i64>) -> Record {
        let mut record = key(id, "a", &[scope]);
        record.holder = Some(Holder { member: Some(member(of, "a").member.id), ..record.holder() });
        record.revoked_at = revoked_at.map(at);
        Record::Key(record)
    }

    #[test]
    fn only_the_newest_invitation_of_a_member_is_found_until_it_is_used() {
        let mut people = People::default();
        let found = |people: &People, code: &str| people.invited_by(&CodeHash(code.to_owned()));
        people.put(&invited("m1", "first"));
        assert_eq!(found(&people, "first"), Some(member("m1", "a").member.id));
        people.put(&invited("m1", "second"));
        assert_eq!((found(&people, "first"), found(&people, "second").is_some()), (None, true));
        people.put(&Record::Member(member("m1", "a")));
        assert_eq!(found(&people, "second"), None);
    }

    #[test]
    fn a_member_decides_while_it_has_a_live_key_that_may() {
        let mut people = People::default();
        let (of, m1) = (account("a").id, member("m1", "a").member.id);
        people.put(&key_of("k1", "m1", Scope::ApprovalsDecide, None));
        people.put(&key_of("k2", "m2", Scope::Check, None));
        people.put(&Record::Key(key("k3", "a", &[Scope::ApprovalsDecide])));
        let k1 = key("k1", "a", &[]).id;
        assert_eq!(people.deciders(&of, at(5)), [(m1.clone(), [k1].into())].into());
        assert_eq!(people.live_keys(&of, &m1, at(5)), [key("k1", "a", &[]).id]);
        people.put(&key_of("k1", "m1", Scope::ApprovalsDecide, Some(5)));
        assert_eq!((people.deciders(&of, at(5)), people.live_keys(&of, &m1, at(5))), (HashMap::new(), Vec::new()));
    }
}
