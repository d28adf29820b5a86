//! Members of `context` that a pack declares as its own in `type Custom`, for rules such as
//! `context.custom has amount && context.custom.amount > 500`.
//!
//! A member that is absent, null or blank is absent. What the pack does not declare, no rule sees.
//! INVARIANT: a member of another type than declared is never treated as absent; the check is deferred for it.

mod kept;

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use stage0_contract::{Word, is_blank, plain, whole_text};

pub(crate) use kept::{CUSTOM, is_harmless, is_short};

use super::decimal::Decimal;
use super::proposal::AMBIGUOUS;
use super::table::FactValue;

/// Members that a pack may declare.
pub(crate) const MAX_CUSTOM_MEMBERS: usize = 50;

/// The type of a declared member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CustomType {
    Long,
    Decimal,
    Text,
    Bool,
    Set,
}

impl CustomType {
    pub(crate) const ALL: [Self; 5] = [Self::Long, Self::Decimal, Self::Text, Self::Bool, Self::Set];

    /// As it is written in a schema.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Long => "Long",
            Self::Decimal => "decimal",
            Self::Text => "String",
            Self::Bool => "Bool",
            Self::Set => "Set<String>",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// What a value of the type is, as in "`amount` must be …".
    pub(crate) fn told(self) -> &'static str {
        match self {
            Self::Long => "a whole number",
            Self::Decimal => "a number with at most four decimals, or a text of one",
            Self::Text => "a text",
            Self::Bool => "true or false",
            Self::Set => "a list of texts",
        }
    }

    /// Its type in JSON, in the words of the contract.
    pub(crate) fn json_type(self) -> &'static str {
        match self {
            Self::Long => "integer",
            Self::Decimal => "number or string",
            Self::Text => "string",
            Self::Bool => "boolean",
            Self::Set => "array of strings",
        }
    }

    fn read(self, value: &Value) -> Option<FactValue> {
        match (self, value) {
            (Self::Long, Value::Number(number)) => whole_text(number)?.parse().ok().map(FactValue::Long),
            (Self::Decimal, Value::Number(number)) => Decimal::of_number(number).map(FactValue::Decimal),
            (Self::Decimal, Value::String(text)) => Decimal::parse(text.trim()).map(FactValue::Decimal),
            (Self::Text, Value::String(text)) => Some(FactValue::Text(shown(text))),
            (Self::Bool, Value::Bool(value)) => Some(FactValue::Bool(*value)),
            (Self::Set, Value::Array(items)) => {
                let texts: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
                Some(FactValue::Set(texts?.into_iter().filter(|text| !is_blank(text)).map(shown).collect()))
            }
            _ => None,
        }
    }
}

/// Without invisible characters, so that they make no other text of it. Case counts. A name that mixes scripts, and so
/// may look like another one, is `?`; a longer text, such as a command, is left as it is.
fn shown(text: &str) -> String {
    let text = plain(text).trim().to_owned();
    let is_name = text.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-'));
    if is_name && Word::new(&text).known().is_none() { AMBIGUOUS.to_owned() } else { text }
}

/// Whether a member counts as not given.
pub(crate) fn is_absent(value: &Value) -> bool {
    value.is_null() || value.as_str().is_some_and(is_blank)
}

/// The declared members with their types.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CustomTypes(pub(crate) BTreeMap<String, CustomType>);

impl CustomTypes {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn get(&self, member: &str) -> Option<CustomType> {
        self.0.get(member).copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, CustomType)> {
        self.0.iter().map(|(name, kind)| (name.as_str(), *kind))
    }
}

/// The declared members of one request.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Custom {
    members: Vec<(String, FactValue)>,
    /// Members whose value has another type than declared, by name.
    pub(crate) mistyped: Vec<(String, CustomType)>,
}

impl Custom {
    pub(super) fn read(types: &CustomTypes, context: Option<&Map<String, Value>>) -> Self {
        let mut custom = Self::default();
        for (name, kind) in types.iter() {
            let Some(value) = context.and_then(|context| context.get(name)).filter(|value| !is_absent(value)) else {
                continue;
            };
            match kind.read(value) {
                Some(value) => custom.members.push((name.to_owned(), value)),
                None => custom.mistyped.push((name.to_owned(), kind)),
            }
        }
        custom
    }

    /// Whether a declared member is given, of whatever type.
    pub(super) fn is_given(&self) -> bool {
        !self.members.is_empty() || !self.mistyped.is_empty()
    }

    pub(crate) fn record(&self) -> FactValue {
        FactValue::Record(self.members.clone())
    }

    /// The value of one member; none where it is not given.
    pub(super) fn get(&self, member: &str) -> Option<&FactValue> {
        self.members.iter().find(|(name, _)| name == member).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(kind: CustomType, value: Value) -> Result<Option<FactValue>, ()> {
        let types = CustomTypes(BTreeMap::from([("m".to_owned(), kind)]));
        let context = Map::from_iter([("m".to_owned(), value), ("other".to_owned(), 1.into())]);
        let custom = Custom::read(&types, Some(&context));
        let is_absent = custom.members.is_empty() && custom.mistyped.is_empty();
        assert_eq!(custom.is_given(), !is_absent);
        if custom.mistyped.is_empty() { Ok(custom.record().member("m")) } else { Err(()) }
    }

    #[test]
    fn a_value_of_the_declared_type_is_read() {
        let text = |text: &str| FactValue::Text(text.to_owned());
        for (kind, value, wanted) in [
            (CustomType::Long, json!(500), FactValue::Long(500)),
            (CustomType::Long, json!(5.0), FactValue::Long(5)),
            (CustomType::Long, json!(-7), FactValue::Long(-7)),
            (CustomType::Long, json!(-7.0), FactValue::Long(-7)),
            (CustomType::Decimal, json!(19.99), FactValue::Decimal(Decimal::parse("19.99").unwrap())),
            (CustomType::Decimal, json!(" 19.99 "), FactValue::Decimal(Decimal::parse("19.99").unwrap())),
            (CustomType::Decimal, json!(7), FactValue::Decimal(Decimal::parse("7").unwrap())),
            (CustomType::Text, json!(" D\u{200b}E "), text("DE")),
            (CustomType::Text, json!("\u{ff24}\u{ff25}"), text("DE")),
            (CustomType::Bool, json!(false), FactValue::Bool(false)),
            (CustomType::Text, json!("ir"), text("ir")),
            (CustomType::Text, json!("\u{406}R"), text("?")),
            (CustomType::Text, json!("\u{41a}\u{42d}"), text("\u{41a}\u{42d}")),
            (CustomType::Text, json!("\u{65e5}\u{672c}\u{306e}"), text("\u{65e5}\u{672c}\u{306e}")),
            // A rule must still find `psql` in it.
            (CustomType::Text, json!("{psql,-c,'\u{416}'}"), text("{psql,-c,'\u{416}'}")),
            (CustomType::Text, json!("psql -c \u{416}"), text("psql -c \u{416}")),
            (CustomType::Set, json!(["p\u{456}i", "pii"]), FactValue::Set(vec!["?".to_owned(), "pii".to_owned()])),
            (CustomType::Set, json!(["a", " ", "B"]), FactValue::Set(vec!["a".to_owned(), "B".to_owned()])),
            (CustomType::Set, json!([]), FactValue::Set(Vec::new())),
        ] {
            assert_eq!(read(kind, value.clone()), Ok(Some(wanted)), "{value}");
        }
    }

    #[test]
    fn a_value_of_another_type_is_mistyped_and_never_absent() {
        for (kind, value) in [
            (CustomType::Long, json!("500")),
            (CustomType::Long, json!(5.5)),
            (CustomType::Long, json!(1e300)),
            (CustomType::Long, json!(18_446_744_073_709_551_615_u64)),
            (CustomType::Long, json!([])),
            (CustomType::Decimal, json!(0.12345)),
            (CustomType::Decimal, json!("5 EUR")),
            (CustomType::Decimal, json!(true)),
            (CustomType::Text, json!(5)),
            (CustomType::Bool, json!("true")),
            (CustomType::Bool, json!(1)),
            (CustomType::Set, json!("a")),
            (CustomType::Set, json!(["a", 1])),
            (CustomType::Set, json!(["a", null])),
            (CustomType::Set, json!({"a": 1})),
        ] {
            assert_eq!(read(kind, value.clone()), Err(()), "{kind:?} {value}");
        }
    }

    #[test]
    fn null_and_blank_are_absent_for_every_type() {
        for kind in CustomType::ALL {
            for value in [json!(null), json!(""), json!(" \u{200b}")] {
                assert_eq!(read(kind, value.clone()), Ok(None), "{kind:?} {value}");
            }
            assert_eq!(CustomType::parse(kind.as_str()), Some(kind));
        }
    }
}
