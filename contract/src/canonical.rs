//! The canonical form of JSON, and hashes of it: what makes two requests the same one.
//!
//! Members are in the order of their names, without white space, whole floats as integers, whatever `serde_json` and
//! its maps do. The form is hashed while it is written: a request is never copied for its hash.

use data_encoding::HEXLOWER;
use serde_json::{Map, Number, Value};
use sha2::{Digest, Sha256};

/// Bytes that are hashed at a time.
const CHUNK_BYTES: usize = 4_096;
/// Floats below are whole numbers exactly.
const MAX_WHOLE: f64 = 9.0e15;

/// Hex SHA-256 of a whole body, whatever the order of its members.
pub fn canonical_hash(body: &Map<String, Value>) -> String {
    let mut canonical = Canonical::default();
    canonical.object(body, None);
    canonical.hash()
}

/// Hashes what is written to it.
#[derive(Default)]
pub(crate) struct Canonical {
    hasher: Sha256,
    chunk: Vec<u8>,
}

impl Canonical {
    pub(crate) fn hash(mut self) -> String {
        self.hasher.update(&self.chunk);
        HEXLOWER.encode(&self.hasher.finalize())
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.chunk.extend_from_slice(bytes);
        if self.chunk.len() >= CHUNK_BYTES {
            self.hasher.update(&self.chunk);
            self.chunk.clear();
        }
    }

    pub(crate) fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.raw(b"null"),
            Value::Bool(value) => self.bool(*value),
            Value::Number(number) => self.number(number),
            Value::String(text) => self.text(text),
            Value::Array(items) => {
                self.raw(b"[");
                for (index, item) in items.iter().enumerate() {
                    self.comma(index);
                    self.value(item);
                }
                self.raw(b"]");
            }
            Value::Object(members) => self.object(members, None),
        }
    }

    /// An object, as if it did not have the member `without`.
    pub(crate) fn object(&mut self, members: &Map<String, Value>, without: Option<&str>) {
        let mut sorted: Vec<_> = members.iter().filter(|(name, _)| Some(name.as_str()) != without).collect();
        sorted.sort_unstable_by_key(|(name, _)| name.as_str());
        self.raw(b"{");
        for (index, (name, member)) in sorted.into_iter().enumerate() {
            self.comma(index);
            self.text(name);
            self.raw(b":");
            self.value(member);
        }
        self.raw(b"}");
    }

    pub(crate) fn texts(&mut self, texts: &[String]) {
        self.raw(b"[");
        for (index, text) in texts.iter().enumerate() {
            self.comma(index);
            self.text(text);
        }
        self.raw(b"]");
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.raw(if value { b"true" } else { b"false" });
    }

    fn comma(&mut self, index: usize) {
        if index > 0 {
            self.raw(b",");
        }
    }

    fn number(&mut self, number: &Number) {
        let text = match number.as_f64() {
            Some(float) if !number.is_i64() && !number.is_u64() && float.fract() == 0.0 && float.abs() < MAX_WHOLE => {
                format!("{float:.0}").replace("-0", "0")
            }
            _ => number.to_string(),
        };
        self.raw(text.as_bytes());
    }

    /// A string literal: of the characters only `"`, `\` and those below a blank are escaped, the shortest way.
    pub(crate) fn text(&mut self, text: &str) {
        self.raw(b"\"");
        for piece in text.split_inclusive(|c: char| c < ' ' || c == '"' || c == '\\') {
            let Some(last) = piece.chars().next_back().filter(|c| *c < ' ' || *c == '"' || *c == '\\') else {
                self.raw(piece.as_bytes());
                continue;
            };
            // What is escaped is one byte long.
            self.raw(piece.as_bytes().split_last().map_or(&[], |(_, plain)| plain));
            match last {
                '"' => self.raw(b"\\\""),
                '\\' => self.raw(b"\\\\"),
                '\u{8}' => self.raw(b"\\b"),
                '\u{c}' => self.raw(b"\\f"),
                '\n' => self.raw(b"\\n"),
                '\r' => self.raw(b"\\r"),
                '\t' => self.raw(b"\\t"),
                other => self.raw(format!("\\u{:04x}", u32::from(other)).as_bytes()),
            }
        }
        self.raw(b"\"");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hash(text: &str) -> String {
        let Value::Object(body) = serde_json::from_str(text).unwrap() else { panic!("no object") };
        canonical_hash(&body)
    }

    fn sha256(text: &str) -> String {
        HEXLOWER.encode(&Sha256::digest(text.as_bytes()))
    }

    #[test]
    fn members_are_sorted_at_every_depth_and_whole_floats_are_integers() {
        let canonical = r#"{"a":[1,{"b":2,"c":null}],"é":0,"f":1.5,"g":false}"#;
        for text in [
            r#"{"a":[1,{"b":2,"c":null}],"é":0,"f":1.5,"g":false}"#,
            r#"{ "g":false, "é":-0.0, "a":[1.0,{"c":null,"b":2e0}], "f":1.50 }"#,
        ] {
            let sorted = r#"{"a":[1,{"b":2,"c":null}],"f":1.5,"g":false,"é":0}"#;
            assert_eq!(hash(text), sha256(sorted), "{text}");
        }
        assert_ne!(hash(canonical), sha256(canonical), "`é` stands behind `g`");
    }

    proptest! {
        #[test]
        fn a_text_is_escaped_as_serde_json_escapes_it(text in "(\\PC|[\\x00-\\x1f\"\\\\]){0,40}") {
            let mut canonical = Canonical::default();
            canonical.text(&text);
            prop_assert_eq!(canonical.hash(), sha256(&serde_json::to_string(&text).unwrap()));
        }
    }
}
