//! How many keys, endpoints, members and stops each account has, and in which order they ended.
//!
//! Caps are checked against this index in memory, which is filled from the store at start, so no list has to be read.
//! [`people`] finds members by their invitations and keys.
//! INVARIANT: every change of the store is applied here too, or an account's count is wrong until the next start.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use jiff::Timestamp;
use stage0_contract::{AccountId, KeyId, MemberId, StopId, WebhookId};

use crate::store::record::{Forgotten, Record};
use crate::store::record_store::{RecordStore, StoreError};

mod people;

use people::People;

/// Ended keys that an account keeps, and as many each of deleted endpoints, removed members and ended stops. The oldest
/// beyond are forgotten when a new one is added.
pub(crate) const MAX_ENDED: usize = 1_000;
const MAX_FORGOTTEN: usize = 16;

const NEVER: i64 = i64::MAX;

#[derive(Debug, Default)]
pub(crate) struct Population {
    keys: HashMap<AccountId, Lifetimes<KeyId>>,
    webhooks: HashMap<AccountId, Lifetimes<WebhookId>>,
    members: HashMap<AccountId, Lifetimes<MemberId>>,
    stops: HashMap<AccountId, Lifetimes<StopId>>,
    pub(crate) people: People,
}

#[derive(Debug)]
struct Lifetimes<Id> {
    /// In seconds since the epoch.
    ends: HashMap<Id, i64>,
    by_end: BTreeSet<(i64, Id)>,
}

impl Population {
    pub(crate) fn of(store: &RecordStore) -> Result<Self, StoreError> {
        let mut population = Self::default();
        for record in store.counted_records() {
            population.put(&record?);
        }
        Ok(population)
    }

    pub(crate) fn put(&mut self, record: &Record) {
        self.people.put(record);
        match record {
            Record::Key(key) => {
                let lifetimes = self.keys.entry(key.account.clone()).or_default();
                lifetimes.put(key.id.clone(), key.ends());
            }
            Record::Webhook(record) => {
                let lifetimes = self.webhooks.entry(record.webhook.account.clone()).or_default();
                lifetimes.put(record.webhook.id.clone(), record.deleted_at);
            }
            Record::Forgotten(Forgotten::Key { id, account }) => {
                self.keys.get_mut(account).into_iter().for_each(|lifetimes| lifetimes.remove(id));
            }
            Record::Forgotten(Forgotten::Webhook { id, account }) => {
                self.webhooks.get_mut(account).into_iter().for_each(|lifetimes| lifetimes.remove(id));
            }
            Record::Member(record) => {
                let lifetimes = self.members.entry(record.member.account.clone()).or_default();
                lifetimes.put(record.member.id.clone(), record.removed_at);
            }
            Record::Stop(record) => {
                let lifetimes = self.stops.entry(record.account.clone()).or_default();
                lifetimes.put(record.stop.id.clone(), record.ends());
            }
            Record::Forgotten(Forgotten::Member { id, account }) => {
                self.members.get_mut(account).into_iter().for_each(|lifetimes| lifetimes.remove(id));
            }
            Record::Forgotten(Forgotten::Stop { id, account }) => {
                self.stops.get_mut(account).into_iter().for_each(|lifetimes| lifetimes.remove(id));
            }
            // Policies and proposals are counted in the store, where there are new ones.
            Record::Account(_)
            | Record::SigningKey(_)
            | Record::Mark(_)
            | Record::Policy(_)
            | Record::DeletedPolicy(_)
            | Record::ActivePolicies(_)
            | Record::Activation(_)
            | Record::Proposal(_)
            | Record::Forgotten(
                Forgotten::Policy(_)
                | Forgotten::DeletedPolicy(_)
                | Forgotten::Activation { .. }
                | Forgotten::Proposal { .. },
            ) => {}
        }
    }

    pub(crate) fn active_keys(&self, account: &AccountId, now: Timestamp) -> u64 {
        self.keys.get(account).map_or(0, |lifetimes| lifetimes.active(now))
    }

    pub(crate) fn existing_webhooks(&self, account: &AccountId, now: Timestamp) -> u64 {
        self.webhooks.get(account).map_or(0, |lifetimes| lifetimes.active(now))
    }

    pub(crate) fn existing_members(&self, account: &AccountId, now: Timestamp) -> u64 {
        self.members.get(account).map_or(0, |lifetimes| lifetimes.active(now))
    }

    #[cfg(test)]
    fn holding_stops(&self, account: &AccountId, now: Timestamp) -> u64 {
        self.stops.get(account).map_or(0, |lifetimes| lifetimes.active(now))
    }

    /// Whether more members were removed than are kept.
    pub(crate) fn has_surplus_members(&self, account: &AccountId, now: Timestamp) -> bool {
        self.members.get(account).is_some_and(|lifetimes| lifetimes.surplus_count(now) > 0)
    }

    /// Records that forget the members that were removed first, beyond [`MAX_ENDED`], but none of whom `is_needed` says
    /// that it stands behind somebody.
    pub(crate) fn surplus_members(
        &self,
        account: &AccountId,
        now: Timestamp,
        is_needed: impl Fn(&MemberId) -> bool,
    ) -> Vec<Record> {
        let Some(lifetimes) = self.members.get(account) else { return Vec::new() };
        let surplus = lifetimes.ended(now).filter(|id| !is_needed(id)).take(lifetimes.surplus_count(now));
        surplus.map(|id| Record::Forgotten(Forgotten::Member { id: id.clone(), account: account.clone() })).collect()
    }

    pub(crate) fn surplus_stops(&self, account: &AccountId, now: Timestamp) -> Vec<Record> {
        let surplus = self.stops.get(account).map(|lifetimes| lifetimes.surplus(now)).unwrap_or_default();
        let forget = |id| Record::Forgotten(Forgotten::Stop { id, account: account.clone() });
        surplus.into_iter().map(forget).collect()
    }

    /// Records that forget the ended keys beyond [`MAX_ENDED`], oldest first.
    pub(crate) fn surplus_keys(&self, account: &AccountId, now: Timestamp) -> Vec<Record> {
        let surplus = self.keys.get(account).map(|lifetimes| lifetimes.surplus(now)).unwrap_or_default();
        let forget = |id| Record::Forgotten(Forgotten::Key { id, account: account.clone() });
        surplus.into_iter().map(forget).collect()
    }

    pub(crate) fn surplus_webhooks(&self, account: &AccountId, now: Timestamp) -> Vec<Record> {
        let surplus = self.webhooks.get(account).map(|lifetimes| lifetimes.surplus(now)).unwrap_or_default();
        let forget = |id| Record::Forgotten(Forgotten::Webhook { id, account: account.clone() });
        surplus.into_iter().map(forget).collect()
    }
}

impl<Id> Default for Lifetimes<Id> {
    fn default() -> Self {
        Self { ends: HashMap::new(), by_end: BTreeSet::new() }
    }
}

impl<Id: Clone + Ord + Hash> Lifetimes<Id> {
    fn put(&mut self, id: Id, end: Option<Timestamp>) {
        let end = end.map_or(NEVER, Timestamp::as_second);
        self.remove(&id);
        self.ends.insert(id.clone(), end);
        self.by_end.insert((end, id));
    }

    fn remove(&mut self, id: &Id) {
        if let Some(end) = self.ends.remove(id) {
            self.by_end.remove(&(end, id.clone()));
        }
    }

    fn active(&self, now: Timestamp) -> u64 {
        (self.by_end.len() - self.ended(now).count()) as u64
    }

    fn surplus(&self, now: Timestamp) -> Vec<Id> {
        self.ended(now).take(self.surplus_count(now)).cloned().collect()
    }

    /// How many may be forgotten now.
    fn surplus_count(&self, now: Timestamp) -> usize {
        self.ended(now).count().saturating_sub(MAX_ENDED).min(MAX_FORGOTTEN)
    }

    /// Oldest first. The second of the end counts as ended.
    fn ended(&self, now: Timestamp) -> impl Iterator<Item = &Id> {
        let now = now.as_second();
        self.by_end.iter().take_while(move |(end, _)| *end <= now).map(|(_, id)| id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::tests::store_with;
    use crate::store::record::KeyRecord;
    use crate::store::record::tests::{account, at, key, member, stop, webhook};

    fn of(id: &str) -> AccountId {
        account(id).id
    }

    fn key_until(id: &str, end: Option<i64>) -> Record {
        Record::Key(KeyRecord { expires_at: end.map(at), ..key(id, "a", &[]) })
    }

    #[test]
    fn revoked_and_expired_keys_and_those_of_other_accounts_do_not_count() {
        let mut population = Population::default();
        for record in [key_until("k1", None), key_until("k2", Some(10)), Record::Key(key("k3", "b", &[]))] {
            population.put(&record);
        }
        assert_eq!(population.active_keys(&of("a"), at(9)), 2);
        assert_eq!(population.active_keys(&of("a"), at(10)), 1);
        population.put(&Record::Key(KeyRecord { revoked_at: Some(at(9)), ..key("k1", "a", &[]) }));
        assert_eq!((population.active_keys(&of("a"), at(9)), population.active_keys(&of("b"), at(9))), (1, 1));
        assert_eq!(population.active_keys(&of("c"), at(9)), 0);
    }

    #[test]
    fn a_thousand_ended_keys_are_kept_and_older_ones_forgotten_a_few_at_a_time() {
        let mut population = Population::default();
        for number in 0..MAX_ENDED + 20 {
            let end = 10_000 - i64::try_from(number).unwrap();
            population.put(&key_until(&format!("k{number}"), Some(end)));
        }
        population.put(&key_until("lives", None));
        let first = population.surplus_keys(&of("a"), at(20_000));
        assert_eq!(first.len(), MAX_FORGOTTEN);
        let oldest = Record::Forgotten(Forgotten::Key { id: key("k1019", "a", &[]).id, account: of("a") });
        assert_eq!(first[0], oldest);
        first.iter().for_each(|record| population.put(record));
        let second = population.surplus_keys(&of("a"), at(20_000));
        assert_eq!(second.len(), 4);
        second.iter().for_each(|record| population.put(record));
        assert_eq!(population.surplus_keys(&of("a"), at(20_000)), []);
        assert_eq!(population.active_keys(&of("a"), at(20_000)), 1);
        assert_eq!(population.surplus_keys(&of("a"), at(0)), [], "nothing has ended yet");
    }

    #[test]
    fn the_population_is_filled_from_the_store_including_deleted_endpoints() {
        let records = vec![
            Record::Account(account("a")),
            key_until("k1", Some(5)),
            key_until("k2", None),
            Record::Webhook(webhook("we_1", "a")),
            Record::Webhook(webhook("we_2", "a").tombstone(at(3))),
        ];
        let (_dir, store) = store_with(records);
        let population = Population::of(&store).unwrap();
        assert_eq!((population.active_keys(&of("a"), at(9)), population.existing_webhooks(&of("a"), at(9))), (1, 1));
        assert_eq!(population.existing_webhooks(&of("a"), at(2)), 2);
    }

    #[test]
    fn removed_members_and_ended_stops_do_not_count() {
        let mut population = Population::default();
        let mut brief = stop("stop_2", "a");
        brief.stop.until = Some(at(10));
        population.put(&Record::Member(member("m1", "a")));
        population.put(&Record::Member(member("m2", "a").tombstone(at(5))));
        population.put(&Record::Stop(stop("stop_1", "a")));
        population.put(&Record::Stop(brief));
        assert_eq!(population.existing_members(&of("a"), at(9)), 1);
        assert_eq!([9, 10].map(|now| population.holding_stops(&of("a"), at(now))), [2, 1]);
        population.put(&Record::Forgotten(Forgotten::Stop { id: stop("stop_1", "a").stop.id, account: of("a") }));
        assert_eq!(population.holding_stops(&of("a"), at(9)), 1);
        assert_eq!((population.existing_members(&of("b"), at(9)), population.holding_stops(&of("b"), at(9))), (0, 0));
    }

    #[test]
    fn removed_members_beyond_a_thousand_are_forgotten_unless_they_stand_behind_somebody() {
        let mut population = Population::default();
        for number in 0..MAX_ENDED + 2 {
            let record = member(&format!("m{number:04}"), "a").tombstone(at(i64::try_from(number).unwrap()));
            population.put(&Record::Member(record));
        }
        assert!(population.has_surplus_members(&of("a"), at(9_000)));
        let needed = member("m0001", "a").member.id;
        let surplus = population.surplus_members(&of("a"), at(9_000), |id| *id == needed);
        let ids: Vec<_> = surplus.iter().map(|record| record.slot().1).collect();
        assert_eq!(ids, ["m0000", "m0002"]);
        surplus.iter().for_each(|record| population.put(record));
        assert!(!population.has_surplus_members(&of("a"), at(9_000)));
        assert_eq!(population.surplus_members(&of("a"), at(9_000), |_| false), []);
    }
}
