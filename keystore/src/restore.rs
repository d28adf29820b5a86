//! What becomes of a directory that is older than what was acknowledged, once the operator accepts it: pure.
//!
//! A key stays active only if the state store lists it, with the expiry that the list has; every other key is revoked.
//! Endpoints are disabled, because they may have been deleted or may lead elsewhere by now, and invitations end,
//! because they may have been accepted, and so do proposed activations, shadows and canaries. Stops of the backup hold
//! again. The directory gets a new id, so that none of its copies is taken for it again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use stage0_contract::{AccountId, KeyId, ProposalStatus, WebhookId};

use crate::head::Mismatch;
use crate::head::live_keys::LiveKeys;
use crate::store::record::{KeyRecord, Record};
use crate::store::snapshot::{Snapshot, StoreId};
use crate::store::trail::Trail;

const DISABLED: &str = "the keystore was restored from a backup: look at the endpoint and enable it";

/// What was done to a restored directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    pub why: String,
    pub kept: usize,
    /// Keys that were active in the backup and are revoked.
    pub revoked: Vec<KeyId>,
    /// Keys that the state store lists and the backup lacks: created after it, and lost.
    pub unknown: Vec<KeyId>,
    /// Accounts that the state store knows and the backup lacks: lost, with their keys.
    pub vanished: Vec<AccountId>,
    pub disabled: Vec<WebhookId>,
    /// Invitations that were pending in the backup and have ended.
    pub invitations: usize,
    /// Proposed activations that were pending in the backup and are cancelled.
    pub proposals: usize,
    /// Shadows and canaries of the backup, which have ended.
    pub candidates: usize,
    /// Accounts without a list of active keys: all their keys are revoked.
    pub unlisted: Vec<AccountId>,
    pub new_operator_key: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) newest: u64,
    pub(crate) accounts: BTreeSet<AccountId>,
    pub(crate) lists: BTreeMap<AccountId, LiveKeys>,
}

pub(crate) fn restored(
    snapshot: &Snapshot,
    known: &Known,
    (new_id, why, now): (StoreId, Mismatch, Timestamp),
) -> Result<(Snapshot, Restored), serde_json::Error> {
    let mut done = Restored { why: why.to_string(), ..Restored::default() };
    let Known { newest, accounts, lists } = known;
    let held: BTreeSet<_> = snapshot.accounts().cloned().collect();
    done.vanished = accounts.difference(&held).cloned().collect();
    let mut held = BTreeSet::new();
    let mut records = snapshot.records();
    for record in &mut records {
        match record {
            Record::Account(account) if !lists.contains_key(&account.id) => done.unlisted.push(account.id.clone()),
            Record::Key(key) => {
                held.insert(key.id.clone());
                restore_key(key, lists.get(&key.account), now, &mut done);
            }
            Record::Webhook(record) if record.exists() && record.webhook.enabled => {
                record.webhook.enabled = false;
                record.webhook.disabled_reason = Some(DISABLED.to_owned());
                done.disabled.push(record.webhook.id.clone());
            }
            Record::Member(record) if record.invitation.is_some() => {
                // It may have been accepted or replaced since.
                record.invitation = None;
                done.invitations += 1;
            }
            Record::Proposal(record) if record.is_pending(now) => {
                // It may have been denied since, and what it was compared with may be in force no longer.
                *record = record.clone().ended(ProposalStatus::Cancelled, None, now);
                done.proposals += 1;
            }
            Record::ActivePolicies(record) => {
                // A canary may have been withdrawn since, or have ended by its terms.
                done.candidates += record.candidates.len();
                record.candidates.clear();
            }
            Record::Account(_)
            | Record::Webhook(_)
            | Record::SigningKey(_)
            | Record::Mark(_)
            | Record::Forgotten(_)
            | Record::Member(_)
            | Record::Stop(_)
            | Record::Policy(_)
            | Record::DeletedPolicy(_)
            | Record::Activation(_)
            | Record::Proposal(_) => {}
        }
    }
    let listed = lists.values().flat_map(|list| list.keys.keys());
    done.unknown = listed.filter(|id| !held.contains(*id)).cloned().collect();
    // Above everything that was ever acknowledged, so that no number is used twice.
    let sequence = snapshot.position.sequence.max(*newest).saturating_add(1);
    let snapshot = Snapshot::of(new_id, sequence, records)?;
    let mut trail = Trail::default();
    // Records that there was a head, in case this start ends before it writes its own.
    trail.acknowledge(snapshot.position);
    Ok((snapshot.with_trail(trail), done))
}

fn restore_key(key: &mut KeyRecord, list: Option<&LiveKeys>, now: Timestamp, done: &mut Restored) {
    if !key.is_active_at(now) {
        return;
    }
    let Some(ends) = list.and_then(|list| list.keys.get(&key.id)) else {
        key.revoked_at = Some(now);
        done.revoked.push(key.id.clone());
        return;
    };
    // A rotation after the backup may have given it an expiry.
    let ends = ends.and_then(|ends| Timestamp::from_second(ends).ok());
    key.expires_at = key.expires_at.into_iter().chain(ends).min();
    done.kept += 1;
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "restored: {}", self.why)?;
        writeln!(f, "  {} keys live on", self.kept)?;
        for (what, ids) in [
            ("keys are revoked", ids(&self.revoked, KeyId::as_str)),
            ("keys were made after the backup and are dead", ids(&self.unknown, KeyId::as_str)),
            ("accounts were made after the backup and are gone", ids(&self.vanished, AccountId::as_str)),
            ("endpoints are disabled", ids(&self.disabled, WebhookId::as_str)),
            ("accounts have no list of live keys", ids(&self.unlisted, AccountId::as_str)),
        ] {
            let colon = if ids.is_empty() { "" } else { ": " };
            writeln!(f, "  {} {what}{colon}{}", ids.len(), ids.join(" "))?;
        }
        writeln!(f, "  {} invitations of members have ended", self.invitations)?;
        writeln!(f, "  {} proposed activations of policies are cancelled", self.proposals)?;
        writeln!(f, "  {} policies that were tried are tried no longer", self.candidates)?;
        writeln!(
            f,
            "  stops, members, policies and settings of accounts are the backup's: the log has later ones \
             (`stop.started`, `policy.activated`)"
        )?;
        let operator = if self.new_operator_key { "a new one is in `operator.key`" } else { "the old one lives" };
        write!(f, "  the operator's key: {operator}\nstart without --accept-restore from now on")
    }
}

fn ids<Id>(ids: &[Id], text: fn(&Id) -> &str) -> Vec<&str> {
    ids.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::policies::tests::{candidate, owner, version};
    use crate::store::record::proposals::tests::proposal;
    use crate::store::record::tests::{account, at, key, member, stop, webhook};
    use crate::store::record::{ActiveRecord, CodeHash, Invitation, MemberRecord, ProposalRecord};

    fn lists(of: &str, keys: &[(&str, Option<i64>)]) -> BTreeMap<AccountId, LiveKeys> {
        let keys = keys.iter().map(|(id, ends)| (key(id, of, &[]).id, *ends)).collect();
        BTreeMap::from([(account(of).id, LiveKeys { term: 1, keys })])
    }

    fn invitation() -> Invitation {
        Invitation { hash: CodeHash("hash".to_owned()), expires_at: at(90) }
    }

    fn pending() -> ProposalRecord {
        let mut record = proposal("prop_1", "a");
        record.proposal.expires_at = at(90);
        record
    }

    fn denied() -> ProposalRecord {
        proposal("prop_2", "a").ended(ProposalStatus::Denied, None, at(5))
    }

    fn active() -> ActiveRecord {
        let mut record = ActiveRecord { account: owner(Some("a")), sequence: 3, ..ActiveRecord::default() };
        record.default.activate(version("v1"));
        record.candidates = vec![candidate(1, "v2", None, None), candidate(2, "v2", Some("production"), None)];
        record
    }

    fn snapshot() -> Snapshot {
        let records = vec![
            Record::Account(account("a")),
            Record::Account(account("b")),
            Record::Key(key("k1", "a", &[])),
            Record::Key(key("k2", "a", &[])),
            Record::Key(key("k3", "b", &[])),
            Record::Webhook(webhook("we_1", "a")),
            Record::Member(MemberRecord { invitation: Some(invitation()), ..member("mem_1", "a") }),
            Record::Stop(stop("stop_1", "a")),
            Record::Proposal(pending()),
            Record::Proposal(denied()),
            Record::ActivePolicies(active()),
        ];
        Snapshot::of(StoreId::from_random([1; 16]), 5, records).unwrap()
    }

    fn restore(lists: &BTreeMap<AccountId, LiveKeys>) -> (Snapshot, Restored) {
        let why = Mismatch::Older { found: 5, known: 9 };
        let known = Known { newest: 9, accounts: ["a", "gone"].map(|id| account(id).id).into(), lists: lists.clone() };
        restored(&snapshot(), &known, (StoreId::from_random([2; 16]), why, at(50))).unwrap()
    }

    fn found(snapshot: &Snapshot, id: &str) -> KeyRecord {
        let of = |record| match record {
            Record::Key(found) if found.id.as_str() == id => Some(found),
            _ => None,
        };
        snapshot.records().into_iter().find_map(of).unwrap()
    }

    #[test]
    fn only_listed_keys_stay_active_and_a_rotated_key_keeps_its_expiry() {
        let (snapshot, done) = restore(&lists("a", &[("k1", Some(60)), ("k9", None)]));
        assert_eq!(found(&snapshot, "k1").expires_at, Some(at(60)));
        assert!(found(&snapshot, "k1").is_active_at(at(50)) && !found(&snapshot, "k2").is_active_at(at(50)));
        assert_eq!(found(&snapshot, "k3").revoked_at, Some(at(50)), "the list of its account is lost");
        let ids = |ids: &[KeyId]| ids.iter().map(KeyId::to_string).collect::<Vec<_>>();
        assert_eq!(
            (done.kept, ids(&done.revoked), ids(&done.unknown)),
            (1, vec!["k2".into(), "k3".into()], vec!["k9".into()])
        );
        assert_eq!((done.unlisted, done.vanished), (vec![account("b").id], vec![account("gone").id]));
        assert_eq!((snapshot.position.sequence, snapshot.position.store_id), (10, StoreId::from_random([2; 16])));
    }

    #[test]
    fn without_any_list_every_key_is_revoked() {
        let (snapshot, done) = restore(&BTreeMap::new());
        assert!(["k1", "k2", "k3"].iter().all(|id| !found(&snapshot, id).is_active_at(at(50))));
        assert_eq!((done.kept, done.revoked.len(), done.disabled.len()), (0, 3, 1));
        let text = done.to_string();
        assert!(text.contains("1 accounts were made after the backup and are gone: gone"), "{text}");
        assert!(
            text.contains("3 keys are revoked: k1 k2 k3") && text.contains("endpoints are disabled: we_1"),
            "{text}"
        );
    }

    #[test]
    fn a_restore_cancels_pending_proposals_and_leaves_ended_ones() {
        let (snapshot, done) = restore(&BTreeMap::new());
        let records = snapshot.records();
        let cancelled = pending().ended(ProposalStatus::Cancelled, None, at(50));
        assert!(records.contains(&Record::Proposal(cancelled)) && records.contains(&Record::Proposal(denied())));
        assert_eq!(done.proposals, 1);
        assert!(done.to_string().contains("1 proposed activations of policies are cancelled"), "{done}");
    }

    #[test]
    fn a_restore_ends_what_is_tried_and_keeps_what_is_active() {
        let (snapshot, done) = restore(&BTreeMap::new());
        let kept = ActiveRecord { candidates: Vec::new(), ..active() };
        assert!(snapshot.records().contains(&Record::ActivePolicies(kept)));
        assert_eq!(done.candidates, 2);
        assert!(done.to_string().contains("2 policies that were tried are tried no longer"), "{done}");
    }

    #[test]
    fn a_restore_keeps_members_and_stops_and_ends_invitations() {
        let (snapshot, done) = restore(&BTreeMap::new());
        let records = snapshot.records();
        assert!(records.contains(&Record::Member(member("mem_1", "a"))), "without its invitation");
        assert!(records.contains(&Record::Stop(stop("stop_1", "a"))));
        assert_eq!(done.invitations, 1);
        assert!(done.to_string().contains("1 invitations of members have ended"), "{done}");
    }
}
