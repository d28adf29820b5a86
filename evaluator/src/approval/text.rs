//! The texts of actions at rest: AES-256-GCM, with a key of the account that the keystore hands out.
//!
//! Account and digest are authenticated with the text, so it cannot be put in another action's place. A sealed text is
//! nonce, ciphertext and tag.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use stage0_contract::{AccountId, ActionDigest, CheckRequest, MAX_ACTION_BYTES, TextKey};
use zeroize::Zeroizing;

/// Why there is no text. The library gives no reason, on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum TextError {
    #[error("the action is too large for people to read")]
    TooLarge,
    #[error("the action's text cannot be sealed")]
    Seal,
    #[error("the action's text cannot be opened")]
    Open,
}

fn aad(account: &AccountId, digest: &ActionDigest) -> Aad<String> {
    Aad::from(format!("{account}|{digest}"))
}

fn cipher(key: &TextKey, error: TextError) -> Result<RandomizedNonceKey, TextError> {
    RandomizedNonceKey::new(&AES_256_GCM, key.bytes()).map_err(|_| error)
}

/// Whether an action is small enough to be approved.
pub(super) fn fits(request: &CheckRequest) -> bool {
    serde_json::to_vec(request).is_ok_and(|text| text.len() <= MAX_ACTION_BYTES)
}

pub(super) fn seal(
    key: &TextKey,
    account: &AccountId,
    digest: &ActionDigest,
    request: &CheckRequest,
) -> Result<Vec<u8>, TextError> {
    let mut text = serde_json::to_vec(request).map_err(|_| TextError::Seal)?;
    if text.len() > MAX_ACTION_BYTES {
        return Err(TextError::TooLarge);
    }
    let nonce = cipher(key, TextError::Seal)?.seal_in_place_append_tag(aad(account, digest), &mut text);
    let nonce = nonce.map_err(|_| TextError::Seal)?;
    Ok([nonce.as_ref().as_slice(), &text].concat())
}

pub(super) fn open(
    key: &TextKey,
    account: &AccountId,
    digest: &ActionDigest,
    sealed: &[u8],
) -> Result<CheckRequest, TextError> {
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(TextError::Open)?;
    let mut text = Zeroizing::new(sealed.to_vec());
    let cipher = cipher(key, TextError::Open)?;
    let opened = cipher.open_in_place(Nonce::from(nonce), aad(account, digest), &mut text);
    serde_json::from_slice(opened.map_err(|_| TextError::Open)?).map_err(|_| TextError::Open)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_sealed_action_opens_only_unchanged_in_its_place_and_with_its_key() {
        let (key, other) = (TextKey::new([7; 32]), TextKey::new([8; 32]));
        let account = |text| AccountId::parse(text).unwrap();
        let digest = |text: &str| ActionDigest::parse(&text.repeat(64)).unwrap();
        let request = CheckRequest::parse(json!({"goal": "deploy the payroll", "note": 1})).unwrap();
        let sealed = seal(&key, &account("a"), &digest("0"), &request).unwrap();
        assert!(!String::from_utf8_lossy(&sealed).contains("payroll"));
        assert_ne!(sealed, seal(&key, &account("a"), &digest("0"), &request).unwrap());
        assert_eq!(open(&key, &account("a"), &digest("0"), &sealed), Ok(request));
        for (key, account, digest) in
            [(&other, account("a"), digest("0")), (&key, account("b"), digest("0")), (&key, account("a"), digest("1"))]
        {
            assert_eq!(open(key, &account, &digest, &sealed), Err(TextError::Open));
        }
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(open(&key, &account("a"), &digest("0"), &changed), Err(TextError::Open), "{at}");
        }
        assert_eq!(open(&key, &account("a"), &digest("0"), &sealed[..5]), Err(TextError::Open));
    }

    #[test]
    fn an_action_that_is_too_large_is_not_sealed() {
        let request = |bytes| CheckRequest::parse(json!({"goal": "g", "context": {"n": "x".repeat(bytes)}})).unwrap();
        let (key, account) = (TextKey::new([7; 32]), AccountId::parse("a").unwrap());
        let digest = ActionDigest::parse(&"0".repeat(64)).unwrap();
        assert!(fits(&request(100_000)) && seal(&key, &account, &digest, &request(100_000)).is_ok());
        assert!(!fits(&request(MAX_ACTION_BYTES)));
        assert_eq!(seal(&key, &account, &digest, &request(MAX_ACTION_BYTES)), Err(TextError::TooLarge));
    }
}
