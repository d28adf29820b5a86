//! Permits for deletions: proof that a caller whose key the keystore verified asked for exactly this deletion.
//!
//! A deletion passes from the gateway to an exporter and cannot be undone. Its mark is signed only with the permit that
//! was issued for the same account, time and key, so neither can invent a deletion or put another name into its mark. A
//! permit ends with this process; a deletion that is too late must be requested again.

use aws_lc_rs::hmac;
use data_encoding::BASE64URL_NOPAD;
use jiff::{SignedDuration, Timestamp};
use stage0_contract::{AccountId, DeletionPermit, KeyId, Mark, MarkBody};

const PERMIT_TTL: SignedDuration = SignedDuration::from_mins(5);

pub(crate) struct Permits {
    key: hmac::Key,
}

impl Permits {
    /// `secret` is random and known to this process only.
    pub(crate) fn new(secret: &[u8; 32]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, secret) }
    }

    pub(crate) fn issue(&self, account: &AccountId, before: Timestamp, by: &KeyId, now: Timestamp) -> DeletionPermit {
        let expires_at = now.checked_add(PERMIT_TTL).unwrap_or(now);
        let mac = hmac::sign(&self.key, &text(account, before, by, expires_at));
        DeletionPermit { expires_at, mac: BASE64URL_NOPAD.encode(mac.as_ref()) }
    }

    /// Whether a mark may be signed. Only the mark of a deletion needs a permit.
    pub(crate) fn allow(&self, mark: &Mark, permit: Option<&DeletionPermit>, now: Timestamp) -> bool {
        let MarkBody::Deletion(deletion) = &mark.body else { return true };
        let Some(permit) = permit.filter(|permit| now < permit.expires_at) else { return false };
        let text = text(&mark.account, deletion.before, &deletion.requested_by, permit.expires_at);
        let mac = BASE64URL_NOPAD.decode(permit.mac.as_bytes());
        mac.is_ok_and(|mac| hmac::verify(&self.key, &text, &mac).is_ok())
    }
}

/// The text that a permit authenticates. No part of it can contain a line break.
fn text(account: &AccountId, before: Timestamp, by: &KeyId, expires_at: Timestamp) -> Vec<u8> {
    let (before, expires_at) = (before.as_nanosecond(), expires_at.as_nanosecond());
    format!("stage0 deletion permit v1\n{account}\n{before}\n{by}\n{expires_at}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::tests::at;
    use stage0_contract::Deletion;

    fn deletion(account: &str, before: i64, by: &str) -> Mark {
        Mark {
            body: MarkBody::Deletion(Deletion {
                before: at(before),
                from: None,
                to: None,
                count: 3,
                through: 0,
                deleted: Vec::new(),
                requested_by: KeyId::parse(by).unwrap(),
            }),
            account: AccountId::parse(account).unwrap(),
            number: 1,
            previous: None,
            recorded_at: at(5),
            expires_at: 500,
            through: 12,
            covered: 3,
            heads: Vec::new(),
        }
    }

    #[test]
    fn a_deletions_mark_is_signed_with_its_own_permit_and_with_no_other() {
        let permits = Permits::new(&[1; 32]);
        let (account, by) = (AccountId::parse("a").unwrap(), KeyId::parse("k").unwrap());
        let permit = permits.issue(&account, at(100), &by, at(1_000));
        let allowed = |mark: &Mark, permit: Option<&DeletionPermit>| permits.allow(mark, permit, at(1_001));
        assert!(allowed(&deletion("a", 100, "k"), Some(&permit)));
        assert!(!allowed(&deletion("a", 100, "k"), None));
        for other in [deletion("b", 100, "k"), deletion("a", 101, "k"), deletion("a", 100, "invented")] {
            assert!(!allowed(&other, Some(&permit)), "{other:?}");
        }
        let longer = DeletionPermit { expires_at: at(9_000), ..permit.clone() };
        assert!(!allowed(&deletion("a", 100, "k"), Some(&longer)));
        let invented = DeletionPermit { expires_at: permit.expires_at, mac: BASE64URL_NOPAD.encode(&[0; 32]) };
        assert!(!allowed(&deletion("a", 100, "k"), Some(&invented)));
        assert!(!Permits::new(&[2; 32]).allow(&deletion("a", 100, "k"), Some(&permit), at(1_001)), "another process's");
        assert!(!permits.allow(&deletion("a", 100, "k"), Some(&permit), permit.expires_at), "expired");
        let checkpoint = Mark { body: MarkBody::Checkpoint {}, ..deletion("a", 100, "k") };
        assert!(allowed(&checkpoint, None), "any other mark needs none");
    }
}
