//! Members of `context` in the facts that are recorded, and how another pack reads them from there.
//!
//! A number or a Boolean is kept as it was sent, a text or a list of texts only where the pack declares it as one. Of
//! any other value the form alone is kept, so that a pack that declares another type knows that it does not fit.
//! INVARIANT: a member reads as it would have read in the request, or it is a gap.

use serde_json::{Map, Value, json};
use stage0_contract::{KeptFacts, ReplayGap, is_blank};

use super::super::decimal::Decimal;
use super::super::table::FactValue;
use super::{Custom, CustomType, CustomTypes, is_absent, shown};

/// The fact that holds the members.
pub(crate) const CUSTOM: &str = "custom";
/// The longest text that is kept, in characters.
pub(crate) const MAX_TEXT_CHARS: usize = 256;

const DECIMAL: &str = "decimal";
const OTHER: &str = "other";
/// Forms of what is not kept: a text that is no decimal, a list of texts, another list, an object, a number that would
/// read as another one.
const TEXT: &str = "text";
const TEXTS: &str = "texts";
const LIST: &str = "list";
const OBJECT: &str = "object";
const NUMBER: &str = "number";

pub(crate) fn is_short(text: &str) -> bool {
    text.chars().nth(MAX_TEXT_CHARS).is_none()
}

/// Digits of a whole number that is kept of a member that no policy declares: longer ones name people, cards and
/// telephones.
const MAX_UNDECLARED: u64 = 99_999_999;

/// Whether the value of a member that the policy does not declare is kept.
pub(crate) fn is_harmless(value: &Value) -> bool {
    let is_small = |value: &Value| match (value.as_i64(), value.as_u64()) {
        (Some(number), _) => number.unsigned_abs() <= MAX_UNDECLARED,
        (None, Some(_)) => false,
        (None, None) => value.as_f64().is_none_or(|number| number.abs() <= 99_999_999.0),
    };
    is_plain(value) && is_small(value)
}

/// Whether a value is kept as it is: a Boolean, or a number that reads as the same one.
pub(crate) fn is_plain(value: &Value) -> bool {
    match value {
        Value::Bool(_) => true,
        Value::Number(number) if number.is_f64() => {
            serde_json::from_str::<Value>(&number.to_string()).is_ok_and(|read| read == *value)
        }
        Value::Number(_) => true,
        _ => false,
    }
}

impl CustomTypes {
    /// The declared members of a request as they are recorded.
    pub(crate) fn kept(&self, context: Option<&Map<String, Value>>) -> Map<String, Value> {
        let given = |name: &str| context?.get(name).filter(|value| !is_absent(value));
        self.iter().filter_map(|(name, kind)| Some((name.to_owned(), kind.kept(given(name)?)))).collect()
    }

    /// The declared members of a recorded request.
    pub(crate) fn recall(&self, kept: &KeptFacts) -> Result<Custom, ReplayGap> {
        let mut custom = Custom::default();
        let own = match kept.values.get(CUSTOM) {
            None => None,
            Some(own) => Some(own.as_object().ok_or(ReplayGap::Unreadable)?),
        };
        for (name, kind) in self.iter() {
            let read = match (own.and_then(|own| own.get(name)), kept.members.get(name)) {
                (Some(value), _) => kind.recall(value)?,
                (None, Some(value @ (Value::Bool(_) | Value::Number(_)))) => kind.read(value),
                (None, Some(_)) => return Err(ReplayGap::Unreadable),
                (None, None) if kept.unkept.iter().any(|known| known == name) => return Err(ReplayGap::Member),
                (None, None) => continue,
            };
            match read {
                Some(value) => custom.members.push((name.to_owned(), value)),
                None => custom.mistyped.push((name.to_owned(), kind)),
            }
        }
        Ok(custom)
    }
}

impl CustomType {
    fn kept(self, value: &Value) -> Value {
        let other = |form: &str| json!({ OTHER: form });
        match value {
            _ if is_plain(value) => value.clone(),
            Value::String(text) => {
                let written = Some(shown(text)).filter(|text| self == Self::Text && is_short(text));
                let decimal = || Decimal::parse(text.trim()).map(|decimal| json!({ DECIMAL: decimal.to_string() }));
                written.map(Value::from).or_else(decimal).unwrap_or_else(|| other(TEXT))
            }
            Value::Array(items) => {
                let texts: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
                let Some(texts) = texts else { return other(LIST) };
                let texts: Vec<String> = texts.into_iter().filter(|text| !is_blank(text)).map(shown).collect();
                let is_kept = self == Self::Set && texts.iter().all(|text| is_short(text));
                if is_kept { texts.into() } else { other(TEXTS) }
            }
            Value::Number(_) => other(NUMBER),
            _ => other(OBJECT),
        }
    }

    /// What a pack that declares this type reads; `None` for a value of another type.
    fn recall(self, kept: &Value) -> Result<Option<FactValue>, ReplayGap> {
        match kept {
            Value::Bool(_) | Value::Number(_) => Ok(self.read(kept)),
            Value::String(text) => match self {
                Self::Text => Ok(Some(FactValue::Text(text.clone()))),
                // As it was sent it may have had other characters.
                Self::Decimal if Decimal::parse(text).is_some() => Err(ReplayGap::Member),
                _ => Ok(None),
            },
            Value::Array(items) => {
                let texts: Option<Vec<String>> = items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
                let texts = texts.ok_or(ReplayGap::Unreadable)?;
                Ok(Some(FactValue::Set(texts)).filter(|_| self == Self::Set))
            }
            Value::Object(members) => match (members.get(DECIMAL), members.get(OTHER).and_then(Value::as_str)) {
                (Some(decimal), None) => {
                    let decimal = decimal.as_str().and_then(Decimal::parse).ok_or(ReplayGap::Unreadable)?;
                    match self {
                        Self::Decimal => Ok(Some(FactValue::Decimal(decimal))),
                        Self::Text => Err(ReplayGap::Member),
                        Self::Long | Self::Bool | Self::Set => Ok(None),
                    }
                }
                (None, Some(form)) => self.fits(form).map(|()| None),
                _ => Err(ReplayGap::Unreadable),
            },
            Value::Null => Err(ReplayGap::Unreadable),
        }
    }

    /// Fails where a value of this form, which was not kept, may be one of this type.
    fn fits(self, form: &str) -> Result<(), ReplayGap> {
        match (form, self) {
            (TEXT, Self::Text) | (TEXTS, Self::Set) | (NUMBER, Self::Long | Self::Decimal) => Err(ReplayGap::Member),
            (TEXT | TEXTS | LIST | OBJECT | NUMBER, _) => Ok(()),
            _ => Err(ReplayGap::Unreadable),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn types(kind: CustomType) -> CustomTypes {
        CustomTypes(BTreeMap::from([("m".to_owned(), kind)]))
    }

    fn recorded(kind: CustomType, value: &Value) -> KeptFacts {
        let context = Map::from_iter([("m".to_owned(), value.clone())]);
        let own = types(kind).kept(Some(&context));
        let values = Map::from_iter([(CUSTOM.to_owned(), own.into())]);
        let kept = KeptFacts { v: 1, values, ..KeptFacts::default() };
        serde_json::from_str(&serde_json::to_string(&kept).unwrap()).unwrap()
    }

    fn values() -> Vec<Value> {
        vec![
            json!(null),
            json!(""),
            json!(5),
            json!(5.0),
            json!(-0.5),
            json!(0.12345),
            json!(1e300),
            json!(u64::MAX),
            json!(i64::MIN),
            json!(true),
            json!("5"),
            json!(" 19.990 "),
            json!("5\u{200b}"),
            json!("\u{ff15}"),
            json!("5 EUR"),
            json!("\u{406}R"),
            json!("x".repeat(MAX_TEXT_CHARS)),
            json!("x".repeat(MAX_TEXT_CHARS + 1)),
            json!([]),
            json!(["a", " ", "B"]),
            json!(["a".repeat(MAX_TEXT_CHARS + 1)]),
            json!(["a", 1]),
            json!({"a": 1}),
        ]
    }

    #[test]
    fn every_type_reads_what_was_kept_under_every_type_as_it_reads_the_request_or_says_that_it_cannot() {
        let mut gaps = 0;
        for (own, other) in CustomType::ALL.into_iter().flat_map(|own| CustomType::ALL.map(|other| (own, other))) {
            for value in values() {
                let context = Map::from_iter([("m".to_owned(), value.clone())]);
                let live = Custom::read(&types(other), Some(&context));
                match types(other).recall(&recorded(own, &value)) {
                    Ok(recalled) => assert_eq!(recalled, live, "{own:?} as {other:?}: {value}"),
                    Err(gap) => {
                        assert_eq!(gap, ReplayGap::Member, "{own:?} as {other:?}: {value}");
                        let is_long = value.to_string().len() > MAX_TEXT_CHARS;
                        assert!(own != other || is_long, "{own:?}: {value}");
                        gaps += 1;
                    }
                }
            }
        }
        assert!((1..60).contains(&gaps), "{gaps}");
    }

    #[test]
    fn what_is_not_declared_is_read_from_the_other_members() {
        let read = |kind: CustomType, kept: Value| types(kind).recall(&serde_json::from_value(kept).unwrap());
        let kept = |more: Value| {
            let mut kept = json!({"v": 1, "values": {}, "read_by": {"words": "", "windows": "", "run": ""}});
            kept.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            kept
        };
        let amount = read(CustomType::Long, kept(json!({"members": {"m": 5.0}}))).unwrap();
        assert_eq!(amount.members, [("m".to_owned(), FactValue::Long(5))]);
        let mistyped = read(CustomType::Long, kept(json!({"members": {"m": true}}))).unwrap();
        assert_eq!(mistyped.mistyped, [("m".to_owned(), CustomType::Long)]);
        assert_eq!(read(CustomType::Long, kept(json!({"unkept": ["m"]}))), Err(ReplayGap::Member));
        assert_eq!(read(CustomType::Long, kept(json!({"unkept": ["n"]}))), Ok(Custom::default()));
        for hostile in [
            json!({"members": {"m": "5"}}),
            json!({"members": {"m": null}}),
            json!({"values": {"custom": []}}),
            json!({"values": {"custom": {"m": null}}}),
            json!({"values": {"custom": {"m": {}}}}),
            json!({"values": {"custom": {"m": {"other": "thing"}}}}),
            json!({"values": {"custom": {"m": {"decimal": "5 EUR"}}}}),
            json!({"values": {"custom": {"m": {"decimal": "5", "other": "text"}}}}),
            json!({"values": {"custom": {"m": [1]}}}),
        ] {
            for kind in CustomType::ALL {
                assert_eq!(read(kind, kept(hostile.clone())), Err(ReplayGap::Unreadable), "{kind:?} {hostile}");
            }
        }
    }
}
