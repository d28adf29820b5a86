//! JSON texts that are read without being written again: an object as its names and the raw texts of its values.
//!
//! INVARIANT: a value that is kept stays byte for byte as it came. Names that two readers could take for one another
//! are refused: a second parser could act on the one that this guard did not look at.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The members of one object, in their order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Object<'a> {
    members: Vec<(Cow<'a, str>, &'a str)>,
}

/// What is not read. No text quotes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ObjectError {
    #[error("it is not a JSON object")]
    NotAnObject,
    #[error("it has a member name twice, or two that differ only in upper and lower case")]
    SameName,
}

const SAME_NAME: &str = "same name";

impl<'a> Object<'a> {
    pub(crate) fn parse(text: &'a str) -> Result<Self, ObjectError> {
        serde_json::from_str(text).map_err(|error: serde_json::Error| {
            if error.to_string().starts_with(SAME_NAME) { ObjectError::SameName } else { ObjectError::NotAnObject }
        })
    }

    /// The raw text of a member.
    pub(crate) fn get(&self, name: &str) -> Option<&'a str> {
        self.members.iter().find(|(own, _)| own == name).map(|(_, value)| *value)
    }

    /// A member that is a string; `None` also where it is no string.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.get(name)?).ok()
    }

    /// A member that is an object; `None` also where it is none.
    pub(crate) fn object(&self, name: &str) -> Option<Object<'a>> {
        Object::parse(self.get(name)?).ok()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|(name, _)| name.as_ref())
    }

    /// The object with a member replaced, or added in front.
    pub(crate) fn with(mut self, name: &'static str, value: &'a str) -> Self {
        match self.members.iter_mut().find(|(own, _)| own == name) {
            Some(member) => member.1 = value,
            None => self.members.insert(0, (Cow::Borrowed(name), value)),
        }
        self
    }

    pub(crate) fn without(mut self, names: &[&str]) -> Self {
        self.members.retain(|(own, _)| !names.contains(&own.as_ref()));
        self
    }

    /// The object as text. The values are the bytes that were read.
    pub(crate) fn to_text(&self) -> String {
        let mut text = String::from("{");
        for (index, (name, value)) in self.members.iter().enumerate() {
            if index > 0 {
                text.push(',');
            }
            text.push_str(&quoted(name));
            text.push(':');
            text.push_str(value);
        }
        text.push('}');
        text
    }
}

/// The raw texts of an array's items; `None`: it is no array.
pub(crate) fn items(text: &str) -> Option<Vec<&str>> {
    let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
    Some(items.into_iter().map(RawValue::get).collect())
}

/// A name as readers take it that match names without regard to case: `ſ` is an `s` to them, the sign for kelvin a `k`,
/// and `ẞ` a `ß`, whose own capital is `SS`.
pub(crate) fn folded(name: &str) -> String {
    name.to_lowercase().to_uppercase().to_lowercase()
}

/// A text as a JSON string.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Members)
    }
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Object<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
        let mut members: Vec<(Cow<'de, str>, &'de str)> = Vec::new();
        let mut names = std::collections::HashSet::new();
        while let Some((Name(name), value)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
            if !names.insert(folded(&name)) {
                return Err(A::Error::custom(SAME_NAME));
            }
            members.push((name, value.get()));
        }
        Ok(Object { members })
    }
}

/// A member's name: borrowed where it has no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_byte_for_byte_as_they_came() {
        let text = r#" { "b" : [1.0e2, "\u0061"] , "a":{"x": null} , "c":-0 } "#;
        let object = Object::parse(text).unwrap();
        assert_eq!(object.get("b"), Some(r#"[1.0e2, "\u0061"]"#));
        assert_eq!(object.clone().without(&["c"]).to_text(), r#"{"b":[1.0e2, "\u0061"],"a":{"x": null}}"#);
        assert_eq!(object.clone().without(&["a", "b"]).with("c", "1").to_text(), r#"{"c":1}"#);
        assert_eq!(object.without(&["a", "b"]).with("d", "1").to_text(), r#"{"d":1,"c":-0}"#);
    }

    #[test]
    fn names_that_a_reader_could_take_for_one_another_are_refused() {
        for text in [
            r#"{"a":1,"a":2}"#,
            r#"{"a":1,"A":2}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"É":1,"é":1}"#,
            r#"{"s":1,"ſ":1}"#,
            r#"{"ẞ":1,"ß":1}"#,
            r#"{"Straße":1,"STRASSE":1}"#,
        ] {
            assert_eq!(Object::parse(text).unwrap_err(), ObjectError::SameName, "{text}");
        }
        assert!(Object::parse(r#"{"a":1,"b":{"a":1,"a":2}}"#).is_ok(), "only its own members are looked at");
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in ["[]", "1", "", "{", r#"{"a":1} x"#, "null"] {
            assert_eq!(Object::parse(text).unwrap_err(), ObjectError::NotAnObject, "{text}");
        }
    }

    #[test]
    fn items_are_raw_texts() {
        assert_eq!(items(r#"[ {"a" :1}, 2 ]"#), Some(vec![r#"{"a" :1}"#, "2"]));
        assert_eq!(items("{}"), None);
    }
}
