//! Signatures of marks: which bytes are signed, and whether a signature holds.
//!
//! The signed bytes are the line up to `,"signature":"…"}`, closed with `}`: a reader cuts and never re-serialises.
//! Making a signature is the keystore's, which alone has the key.

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use data_encoding::{BASE64, HEXLOWER};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::id::text_id;
use crate::record::Mark;

const MEMBER: &[u8] = b",\"signature\":\"";
const END: &[u8] = b"\"}";

text_id!(
    /// A signing key by the first 16 hexadecimal digits of its public key's SHA-256.
    SigningKeyId,
    "a signing key's id: 16 hexadecimal digits in lower case",
    |text| text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
);

impl SigningKeyId {
    /// Of a public key.
    pub fn of(public: &[u8; 32]) -> Self {
        Self(HEXLOWER.encode(&Sha256::digest(public)).chars().take(16).collect::<String>().into())
    }
}

/// A public key that marks are or were signed with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "SigningKey")]
pub struct PublicKey {
    /// The first 16 hexadecimal digits of the SHA-256 of the key's 32 bytes.
    pub id: SigningKeyId,
    /// The public key, base64 of 32 bytes.
    #[schemars(extend("pattern" = "^[A-Za-z0-9+/]{43}=$"))]
    pub ed25519: String,
    /// Since when it signs.
    pub created_at: Timestamp,
}

/// A mark before it is signed: the bytes that the signature is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsigned(String);

#[derive(Serialize)]
struct WithKey<'a> {
    #[serde(flatten)]
    mark: &'a Mark,
    signed_by: &'a SigningKeyId,
}

impl Unsigned {
    /// Puts a mark and the key that will sign it into bytes.
    pub fn new(mark: &Mark, signed_by: &SigningKeyId) -> Result<Self, serde_json::Error> {
        Ok(Self(serde_json::to_string(&WithKey { mark, signed_by })?))
    }

    /// What is signed.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The line.
    pub fn signed(&self, signature: &[u8; 64]) -> Vec<u8> {
        let mut line = self.0.strip_suffix('}').unwrap_or(&self.0).as_bytes().to_vec();
        line.extend_from_slice(MEMBER);
        line.extend_from_slice(BASE64.encode(signature).as_bytes());
        line.extend_from_slice(END);
        line
    }
}

/// A line's signed bytes and its signature; none when it has no signature at its end.
pub fn signed_part(line: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let at = line.windows(MEMBER.len()).rposition(|window| window == MEMBER)?;
    let signature = line.get(at + MEMBER.len()..)?.strip_suffix(END)?;
    let mut bytes = line.get(..at)?.to_vec();
    bytes.push(b'}');
    let decoded = BASE64.decode(signature).ok()?;
    // Two texts that were joined are decoded as well: another line that any other verifier rejects.
    (BASE64.encode(&decoded).as_bytes() == signature).then_some((bytes, decoded))
}

impl PublicKey {
    /// Of the raw key.
    pub fn new(public: &[u8; 32], created_at: Timestamp) -> Self {
        Self { id: SigningKeyId::of(public), ed25519: BASE64.encode(public), created_at }
    }

    /// Whether this key signed the line.
    pub fn signed(&self, line: &[u8]) -> bool {
        let Some((bytes, signature)) = signed_part(line) else { return false };
        let Ok(public) = BASE64.decode(self.ed25519.as_bytes()) else { return false };
        UnparsedPublicKey::new(&ED25519, public).verify(&bytes, &signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

    /// RFC 8032, section 7.1, test 2: what any other implementation agrees with.
    #[test]
    fn the_algorithm_is_the_one_of_rfc_8032() {
        let public = HEXLOWER.decode(b"3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c").unwrap();
        let signature = HEXLOWER
            .decode(b"92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00")
            .unwrap();
        assert!(UnparsedPublicKey::new(&ED25519, public).verify(&[0x72], &signature).is_ok());
    }

    /// The whole way, for the author of another verifier: a line as it accept in a log, and the key that signed it.
    #[test]
    fn a_signed_mark_is_this_line() {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        let key = PublicKey::new(pair.public_key().as_ref().try_into().unwrap(), Timestamp::UNIX_EPOCH);
        assert_eq!(
            (key.id.as_str(), key.ed25519.as_str()),
            ("fe812c12f3ab4ce6", "6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=")
        );
        let mark: Mark = serde_json::from_str(include_str!("../../fixtures/mark_checkpoint.json")).unwrap();
        let unsigned = Unsigned::new(&mark, &key.id).unwrap();
        let line = unsigned.signed(pair.sign(unsigned.bytes()).as_ref().try_into().unwrap());
        assert!(key.signed(&line));
        let text = String::from_utf8(line).unwrap();
        let end = concat!(
            r#","signed_by":"fe812c12f3ab4ce6","signature":"cyLrDyf13f9F0EoSCWq9LG6rK6eNeAEin40Y0K3e6pBj"#,
            r#"TAwop/n63vt5YlGABYf6YMjLpt118yQMxqhEWXAFDQ=="}"#
        );
        assert!(
            text.starts_with(r#"{"type":"checkpoint.signed","account":"acc_1","number":1,"previous":null,"#),
            "{text}"
        );
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn a_line_that_was_touched_is_not_signed_any_more() {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        let key = PublicKey::new(pair.public_key().as_ref().try_into().unwrap(), Timestamp::UNIX_EPOCH);
        let unsigned = Unsigned("{\"a\":1,\"b\":\"x\"}".to_owned());
        let line = unsigned.signed(pair.sign(unsigned.bytes()).as_ref().try_into().unwrap());
        for at in 0..line.len() {
            for flip in [1, 2, 4, 32] {
                let mut touched = line.clone();
                touched[at] ^= flip;
                assert!(!key.signed(&touched), "{at}: {}", String::from_utf8_lossy(&touched));
            }
        }
        for added in [&b" "[..], b"\n", b"}"] {
            assert!(!key.signed(&[&line, added].concat()));
        }
        assert!(!PublicKey { ed25519: "AAAA".to_owned(), ..key }.signed(&line));
        assert!(!PublicKey::new(&[9; 32], Timestamp::UNIX_EPOCH).signed(&line));
    }

    #[test]
    fn a_line_without_a_signature_at_its_end_is_not_signed() {
        let of = |signature: &str| format!("{{\"a\":1,\"signature\":\"{signature}\"}}");
        assert!(signed_part(of("AAAA").as_bytes()).is_some());
        let behind = "{\"a\":1,\"signature\":\"AA==\",\"b\":2}".to_owned();
        for line in [String::new(), "{}".to_owned(), behind, of("!"), of("AA==AA=="), of("AB==")] {
            assert_eq!(signed_part(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn what_is_signed_comes_back_to_the_byte() {
        for body in ["{\"a\":{\"b\":{}}}", "{\"a\":1}"] {
            let line = Unsigned(body.to_owned()).signed(&[7; 64]);
            let (bytes, signature) = signed_part(&line).unwrap();
            assert_eq!((bytes.as_slice(), signature.as_slice()), (body.as_bytes(), [7; 64].as_slice()));
            assert!(serde_json::from_slice::<serde_json::Value>(&line).is_ok());
        }
    }
}
