//! What becomes of a directory that is older than what was acknowledged, once the operator accepts it.
//!
//! Owns the rule, pure: a key stays alive only where the state store's list names it, with the end that the list has;
//! every other key is revoked. What the backup does not hold is told. Endpoints are disabled, as they may have been deleted or may lead elsewhere by now;
//! accounts are as the backup has them. The directory gets a new lineage: none of its copies is taken for it again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use stage0_contract::{AccountId, KeyId, WebhookId};

use crate::head::Mismatch;
use crate::image::{Image, Lineage};
use crate::live_keys::LiveKeys;
use crate::record::{KeyRecord, Record};
use crate::trail::Trail;

/// Why the exporter does not serve an endpoint of a restored directory.
const DISABLED: &str = "the keystore was restored from a backup: look at the endpoint and enable it";

/// What was done to a restored directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// What was found.
    pub why: String,
    /// Keys that go on living, because the state store lists them.
    pub kept: usize,
    /// Keys that lived in the backup, and are revoked.
    pub revoked: Vec<KeyId>,
    /// Keys that the state store lists and the backup does not hold: made after it, and dead.
    pub unknown: Vec<KeyId>,
    /// Accounts that the state store knows and the backup does not hold: gone, with their keys.
    pub vanished: Vec<AccountId>,
    /// Endpoints that are disabled.
    pub disabled: Vec<WebhookId>,
    /// Accounts whose list of live keys is lost: none of their keys lives.
    pub unlisted: Vec<AccountId>,
    /// A new operator's key was written, because none lived any more.
    pub new_operator_key: bool,
}

/// What the state store knows.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// The newest change.
    pub(crate) newest: u64,
    /// Accounts that are noted there.
    pub(crate) accounts: BTreeSet<AccountId>,
    /// Lists of live keys, of accounts of the backup and of those.
    pub(crate) lists: BTreeMap<AccountId, LiveKeys>,
}

/// The image that is served from now on, and what it differs in.
pub(crate) fn restored(
    image: &Image,
    known: &Known,
    (fresh, why, now): (Lineage, Mismatch, Timestamp),
) -> Result<(Image, Restored), serde_json::Error> {
    let mut done = Restored {
        why: why.to_string(),
        kept: 0,
        revoked: Vec::new(),
        unknown: Vec::new(),
        vanished: Vec::new(),
        disabled: Vec::new(),
        unlisted: Vec::new(),
        new_operator_key: false,
    };
    let Known { newest, accounts, lists } = known;
    let held: BTreeSet<_> = image.accounts().cloned().collect();
    done.vanished = accounts.difference(&held).cloned().collect();
    let mut held = BTreeSet::new();
    let mut records = image.records();
    for record in &mut records {
        match record {
            Record::Account(account) if !lists.contains_key(&account.id) => done.unlisted.push(account.id.clone()),
            Record::Key(key) => {
                held.insert(key.id.clone());
                judge_key(key, lists.get(&key.account), now, &mut done);
            }
            Record::Webhook(record) if record.lives() && record.webhook.enabled => {
                record.webhook.enabled = false;
                record.webhook.disabled_reason = Some(DISABLED.to_owned());
                done.disabled.push(record.webhook.id.clone());
            }
            Record::Account(_)
            | Record::Webhook(_)
            | Record::SigningKey(_)
            | Record::Mark(_)
            | Record::Forgotten(_) => {}
        }
    }
    let listed = lists.values().flat_map(|list| list.keys.keys());
    done.unknown = listed.filter(|id| !held.contains(*id)).cloned().collect();
    // Above everything that was ever acknowledged: numbers are not given twice.
    let sequence = image.position.sequence.max(*newest).saturating_add(1);
    let image = Image::of(fresh, sequence, records)?;
    let mut trail = Trail::default();
    // Whatever happens before its first head: there was one.
    trail.acknowledge(image.position);
    Ok((image.with_trail(trail), done))
}

fn judge_key(key: &mut KeyRecord, list: Option<&LiveKeys>, now: Timestamp, done: &mut Restored) {
    if !key.lives_at(now) {
        return;
    }
    let Some(ends) = list.and_then(|list| list.keys.get(&key.id)) else {
        key.revoked_at = Some(now);
        done.revoked.push(key.id.clone());
        return;
    };
    // A rotation after the backup gave it an end.
    let ends = ends.and_then(|ends| Timestamp::from_second(ends).ok());
    key.expires_at = key.expires_at.into_iter().chain(ends).min();
    done.kept += 1;
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids = |ids: Vec<&str>| if ids.is_empty() { String::new() } else { format!(": {}", ids.join(" ")) };
        writeln!(f, "restored: {}", self.why)?;
        writeln!(f, "  {} keys live on", self.kept)?;
        let revoked = self.revoked.iter().map(KeyId::as_str).collect();
        writeln!(f, "  {} keys are revoked{}", self.revoked.len(), ids(revoked))?;
        let unknown = self.unknown.iter().map(KeyId::as_str).collect();
        writeln!(f, "  {} keys were made after the backup and are dead{}", self.unknown.len(), ids(unknown))?;
        let vanished = self.vanished.iter().map(AccountId::as_str).collect();
        writeln!(f, "  {} accounts were made after the backup and are gone{}", self.vanished.len(), ids(vanished))?;
        let disabled = self.disabled.iter().map(WebhookId::as_str).collect();
        writeln!(f, "  {} endpoints are disabled{}", self.disabled.len(), ids(disabled))?;
        let unlisted = self.unlisted.iter().map(AccountId::as_str).collect();
        writeln!(f, "  {} accounts have no list of live keys{}", self.unlisted.len(), ids(unlisted))?;
        let operator = if self.new_operator_key { "a new one is in `operator.key`" } else { "the old one lives" };
        write!(f, "  the operator's key: {operator}\nstart without --accept-restore from now on")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{account, at, key, webhook};

    fn lists(of: &str, keys: &[(&str, Option<i64>)]) -> BTreeMap<AccountId, LiveKeys> {
        let keys = keys.iter().map(|(id, ends)| (key(id, of, &[]).id, *ends)).collect();
        BTreeMap::from([(account(of).id, LiveKeys { term: 1, keys })])
    }

    fn image() -> Image {
        let records = vec![
            Record::Account(account("a")),
            Record::Account(account("b")),
            Record::Key(key("k1", "a", &[])),
            Record::Key(key("k2", "a", &[])),
            Record::Key(key("k3", "b", &[])),
            Record::Webhook(webhook("we_1", "a")),
        ];
        Image::of(Lineage::from_random([1; 16]), 5, records).unwrap()
    }

    fn restore(lists: &BTreeMap<AccountId, LiveKeys>) -> (Image, Restored) {
        let why = Mismatch::Older { found: 5, known: 9 };
        let known = Known { newest: 9, accounts: ["a", "gone"].map(|id| account(id).id).into(), lists: lists.clone() };
        restored(&image(), &known, (Lineage::from_random([2; 16]), why, at(50))).unwrap()
    }

    fn found(image: &Image, id: &str) -> KeyRecord {
        let of = |record| match record {
            Record::Key(found) if found.id.as_str() == id => Some(found),
            _ => None,
        };
        image.records().into_iter().find_map(of).unwrap()
    }

    #[test]
    fn only_keys_that_are_listed_live_on_and_a_rotated_one_keeps_its_end() {
        let (image, done) = restore(&lists("a", &[("k1", Some(60)), ("k9", None)]));
        assert_eq!(found(&image, "k1").expires_at, Some(at(60)));
        assert!(found(&image, "k1").lives_at(at(50)) && !found(&image, "k2").lives_at(at(50)));
        assert_eq!(found(&image, "k3").revoked_at, Some(at(50)), "the list of its account is lost");
        let ids = |ids: &[KeyId]| ids.iter().map(KeyId::to_string).collect::<Vec<_>>();
        assert_eq!(
            (done.kept, ids(&done.revoked), ids(&done.unknown)),
            (1, vec!["k2".into(), "k3".into()], vec!["k9".into()])
        );
        assert_eq!((done.unlisted, done.vanished), (vec![account("b").id], vec![account("gone").id]));
        assert_eq!((image.position.sequence, image.position.lineage), (10, Lineage::from_random([2; 16])));
    }

    #[test]
    fn without_any_list_no_key_lives() {
        let (image, done) = restore(&BTreeMap::new());
        assert!(["k1", "k2", "k3"].iter().all(|id| !found(&image, id).lives_at(at(50))));
        assert_eq!((done.kept, done.revoked.len(), done.disabled.len()), (0, 3, 1));
        let text = done.to_string();
        assert!(text.contains("1 accounts were made after the backup and are gone: gone"), "{text}");
        assert!(
            text.contains("3 keys are revoked: k1 k2 k3") && text.contains("endpoints are disabled: we_1"),
            "{text}"
        );
    }
}
