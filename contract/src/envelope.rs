//! Whose a check is, before it is read: a server that has many takes them in turns by account, and reading a large one
//! costs what a hundred small ones cost. Nothing is decided by it.

use std::fmt;

use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::{AccountId, EvaluateRequest, RequestId};

/// The first members of an [`EvaluateRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// For the log.
    pub request_id: RequestId,
    /// Whose check it is.
    pub account: AccountId,
}

impl From<&EvaluateRequest> for Envelope {
    fn from(EvaluateRequest { request_id, account, .. }: &EvaluateRequest) -> Self {
        Self { request_id: *request_id, account: account.clone() }
    }
}

impl Envelope {
    /// Reads as far as both are known; nothing where they are not there.
    pub fn of(request: &[u8]) -> Option<Self> {
        let mut found = Found::default();
        // Once both are known the reading is broken off, which is an error like any other.
        let _ = serde_json::Deserializer::from_slice(request).deserialize_map(&mut found);
        Some(Self { request_id: found.request_id?, account: found.account? })
    }
}

#[derive(Default)]
struct Found {
    request_id: Option<RequestId>,
    account: Option<AccountId>,
}

impl<'de> Visitor<'de> for &mut Found {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a request")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while self.request_id.is_none() || self.account.is_none() {
            let Some(name) = members.next_key::<String>()? else { return Ok(()) };
            match name.as_str() {
                "request_id" => self.request_id = Some(members.next_value()?),
                "account" => self.account = Some(members.next_value()?),
                _ => {
                    members.next_value::<IgnoredAny>()?;
                }
            }
        }
        Err(A::Error::custom("enough"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0190163d-8694-739b-aea5-966c26f8ad91";

    #[test]
    fn it_is_known_from_the_first_members_whatever_follows() {
        let known = Envelope { request_id: RequestId::parse(ID).unwrap(), account: AccountId::parse("acc").unwrap() };
        for request in [
            format!(r#"{{"request_id":"{ID}","account":"acc","request":{{"goal":"#),
            format!(r#"{{"request":{{"account":"other"}},"account":"acc","request_id":"{ID}"}}"#),
        ] {
            assert_eq!(Envelope::of(request.as_bytes()), Some(known.clone()), "{request}");
        }
    }

    #[test]
    fn a_question_that_does_not_say_has_none() {
        for request in ["", "[]", "{}", r#"{"account":"acc"}"#, r#"{"account":"a b","request_id":"x"}"#] {
            assert_eq!(Envelope::of(request.as_bytes()), None, "{request}");
        }
    }
}
