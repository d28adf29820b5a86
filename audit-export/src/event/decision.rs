//! Reads the members of a decision's line that its event holds. The others are skipped, not parsed: the request, which
//! is most of the line, is among them. Pure.

use std::fmt::{Formatter, Result as FmtResult};

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use stage0_contract::{DELIVERED_MEMBERS, LineType};

/// In the order of `DELIVERED_MEMBERS`.
pub(super) struct Delivered([Option<Value>; DELIVERED_MEMBERS.len()]);

impl Delivered {
    /// None if the line is not one of a decision.
    pub(super) fn of(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(index(name)?)?.as_ref()
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.as_str()
    }

    pub(super) fn members(&self) -> impl Iterator<Item = (&str, &Value)> {
        DELIVERED_MEMBERS.into_iter().zip(&self.0).filter_map(|(name, value)| Some((name, value.as_ref()?)))
    }
}

fn index(name: &str) -> Option<usize> {
    DELIVERED_MEMBERS.iter().position(|delivered| *delivered == name)
}

impl<'de> Deserialize<'de> for Delivered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Members)
    }
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Delivered;

    fn expecting(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str("the line of a decision")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Delivered, A::Error> {
        let (mut values, mut is_decision) = ([const { None }; DELIVERED_MEMBERS.len()], false);
        while let Some(name) = map.next_key()? {
            match name {
                Name::Type if map.next_value::<LineType>()? == LineType::Decision => is_decision = true,
                Name::Type => return Err(A::Error::custom("not a decision")),
                Name::Delivered(index) => {
                    let value = map.next_value()?;
                    // The last one counts, where a member is there twice.
                    if let Some(slot) = values.get_mut(index) {
                        *slot = Some(value);
                    }
                }
                Name::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        if is_decision { Ok(Delivered(values)) } else { Err(A::Error::missing_field("type")) }
    }
}

enum Name {
    Type,
    Delivered(usize),
    Other,
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_identifier(NameVisitor)
    }
}

struct NameVisitor;

impl Visitor<'_> for NameVisitor {
    type Value = Name;

    fn expecting(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str("a member's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Name, E> {
        Ok(match name {
            "type" => Name::Type,
            name => index(name).map_or(Name::Other, Name::Delivered),
        })
    }
}
