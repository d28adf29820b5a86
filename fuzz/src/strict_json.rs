//! Strict JSON: what it takes is what `serde_json` reads, and what it refuses of that has a stated reason.
//!
//! The reasons are found again by a reader of its own, which keeps a member that is there twice. The canonical form is
//! written a second time here, without the code that hashes it.

use std::fmt;

use data_encoding::HEXLOWER;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use stage0_contract::{JsonError, MAX_DEPTH, MAX_VALUES, canonical_hash, parse_strict};

use crate::Target;

pub(crate) const TARGET: Target = Target::new("strict_json", check);

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

fn check(input: &[u8]) -> bool {
    let bare = input.strip_prefix(BYTE_ORDER_MARK).unwrap_or(input);
    let plain = serde_json::from_slice::<Value>(bare).ok();
    match parse_strict(input) {
        Ok(value) => {
            assert_eq!(plain.as_ref(), Some(&value), "it reads something else than serde_json");
            let tree = serde_json::from_slice::<Tree>(bare).unwrap();
            assert!(!tree.has_same_names(), "a member is there twice");
            assert!(tree.depth() <= MAX_DEPTH && tree.values() <= MAX_VALUES, "it is beyond its bounds");
            is_read_again(&value);
            true
        }
        Err(refused) => {
            if plain.is_some() {
                let tree = serde_json::from_slice::<Tree>(bare).unwrap();
                assert!(has_reason(&refused, &tree, input), "valid JSON is refused: {refused}");
            }
            false
        }
    }
}

fn has_reason(refused: &JsonError, tree: &Tree, input: &[u8]) -> bool {
    match refused {
        JsonError::NotUtf8 | JsonError::Syntax { .. } => false,
        JsonError::TooDeep => tree.depth() > MAX_DEPTH,
        JsonError::DuplicateMember { .. } => tree.has_same_names(),
        JsonError::TooManyValues => tree.values() > MAX_VALUES,
        JsonError::NumberDoesNotFit { offset } => {
            let rest = input.get(*offset..).unwrap_or_default();
            let length = rest.iter().take_while(|b| b.is_ascii_digit() || b"+-.eE".contains(b)).count();
            let number = std::str::from_utf8(&rest[..length]).unwrap();
            let is_whole = !number.contains(['.', 'e', 'E']);
            let mantissa = number.split(['e', 'E']).next().unwrap_or_default();
            let float: f64 = number.parse().unwrap();
            if is_whole {
                number.parse::<i64>().is_err() && number.parse::<u64>().is_err()
            } else {
                float.is_infinite() || (float == 0.0 && mantissa.contains(|c: char| ('1'..='9').contains(&c)))
            }
        }
    }
}

/// What was read can be written, and is then read as the same. Floats are left out: `serde_json` may read the shortest
/// text of one as its neighbour.
fn is_read_again(value: &Value) {
    if !has_fractions(value) {
        assert_eq!(parse_strict(value.to_string().as_bytes()).as_ref(), Ok(value), "it is read as another one");
    }
    let Value::Object(members) = value else { return };
    let (hash, canonical) = (canonical_hash(members), canonical(value));
    assert_eq!(hash, HEXLOWER.encode(&Sha256::digest(canonical.as_bytes())), "the hash is of another text");
    if !has_fractions(value) {
        let Ok(Value::Object(again)) = parse_strict(canonical.as_bytes()) else { panic!("{canonical} is refused") };
        assert_eq!(hash, canonical_hash(&again), "the canonical form has another canonical form");
    }
    let reversed: Map<String, Value> =
        members.iter().rev().map(|(name, value)| (name.clone(), value.clone())).collect();
    assert_eq!(hash, canonical_hash(&reversed), "the order of members makes a difference");
}

fn has_fractions(value: &Value) -> bool {
    match value {
        Value::Number(number) => {
            number.is_f64() && number.as_f64().is_none_or(|float| float.fract() != 0.0 || float.abs() >= MAX_WHOLE)
        }
        Value::Array(items) => items.iter().any(has_fractions),
        Value::Object(members) => members.values().any(has_fractions),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
    }
}

/// Whole floats below are written as integers.
const MAX_WHOLE: f64 = 9.0e15;

fn canonical(value: &Value) -> String {
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < MAX_WHOLE => {
                format!("{:.0}", float + 0.0)
            }
            _ => number.to_string(),
        },
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(name, _)| name.as_str());
            let text =
                |(name, value): (&String, &Value)| format!("{}:{}", Value::from(name.as_str()), canonical(value));
            format!("{{{}}}", members.into_iter().map(text).collect::<Vec<_>>().join(","))
        }
        Value::Null | Value::Bool(_) | Value::String(_) => value.to_string(),
    }
}

/// The shape of a document, with every member.
enum Tree {
    Scalar,
    Array(Vec<Tree>),
    Object(Vec<(String, Tree)>),
}

impl Tree {
    fn children(&self) -> Box<dyn Iterator<Item = &Tree> + '_> {
        match self {
            Self::Scalar => Box::new(std::iter::empty()),
            Self::Array(items) => Box::new(items.iter()),
            Self::Object(members) => Box::new(members.iter().map(|(_, member)| member)),
        }
    }

    /// Of arrays and objects.
    fn depth(&self) -> usize {
        let inner = self.children().map(Tree::depth).max().unwrap_or(0);
        if matches!(self, Self::Scalar) { 0 } else { inner + 1 }
    }

    fn values(&self) -> usize {
        1 + self.children().map(Tree::values).sum::<usize>()
    }

    fn has_same_names(&self) -> bool {
        let mut names: Vec<&str> = match self {
            Self::Object(members) => members.iter().map(|(name, _)| name.as_str()).collect(),
            Self::Scalar | Self::Array(_) => Vec::new(),
        };
        names.sort_unstable();
        names.windows(2).any(|pair| pair[0] == pair[1]) || self.children().any(Tree::has_same_names)
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Shape)
    }
}

struct Shape;

impl<'de> Visitor<'de> for Shape {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }
    fn visit_str<E>(self, _: &str) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element()? {
            array.push(item);
        }
        Ok(Tree::Array(array))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Tree, A::Error> {
        let mut object = Vec::new();
        while let Some(member) = members.next_entry()? {
            object.push(member);
        }
        Ok(Tree::Object(object))
    }
}
