//! Strict JSON: policy input is security input, so a document that two parsers could read differently is refused.
//!
//! Refuses what `serde_json` does not: a member named twice (it keeps the last), a number that does not fit (it turns
//! 30 digits into a float), nesting deeper than [`MAX_DEPTH`], more than [`MAX_VALUES`] values. Time and memory are
//! linear in the length of the body.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The deepest nesting of arrays and objects that is read.
pub const MAX_DEPTH: usize = 32;
/// The most values in a document: scalars, arrays and objects. Each takes about a hundred bytes of memory.
pub const MAX_VALUES: usize = 50_000;
/// Members that are buffered before their map is allocated: a growing map of one member takes four times the memory.
const MAX_MEMBERS_AHEAD: usize = 8;

/// Why a body is refused. The texts are public, and none quotes the body.
/// Lines and columns count from 1, offsets from 0.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what is wrong")]
pub enum JsonError {
    #[error("the body is not valid UTF-8")]
    NotUtf8,
    #[error("the body is not valid JSON (line {line}, column {column})")]
    Syntax { line: usize, column: usize },
    #[error("the body is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    #[error("the body has a member name twice in one object (line {line}, column {column})")]
    DuplicateMember { line: usize, column: usize },
    #[error("the body has a number that does not fit (byte {offset})")]
    NumberDoesNotFit { offset: usize },
    #[error("the body has more than {MAX_VALUES} JSON values")]
    TooManyValues,
}

/// Some editors and clients put this before UTF-8 text.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Parses one JSON document, or says why it is refused. A byte order mark before it is skipped.
pub fn parse_strict(body: &[u8]) -> Result<Value, JsonError> {
    let whole = std::str::from_utf8(body).map_err(|_| JsonError::NotUtf8)?;
    scan(whole)?;
    let text = whole.strip_prefix(BYTE_ORDER_MARK).unwrap_or(whole);
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let left = Cell::new(MAX_VALUES);
    let value = Unique { left: &left }.deserialize(&mut deserializer).map_err(|e| refusal(&e))?;
    deserializer.end().map_err(|e| refusal(&e))?;
    Ok(value)
}

const DUPLICATE: &str = "duplicate member";
const TOO_MANY: &str = "too many values";

fn refusal(error: &serde_json::Error) -> JsonError {
    let (line, column) = (error.line(), error.column());
    // Only our own errors are data errors; their texts do not quote the body.
    match error.is_data().then(|| error.to_string()) {
        Some(text) if text.starts_with(DUPLICATE) => JsonError::DuplicateMember { line, column },
        Some(text) if text.starts_with(TOO_MANY) => JsonError::TooManyValues,
        Some(_) | None => JsonError::Syntax { line, column },
    }
}

/// Members of an object in a message between services: as [`parse_strict`] reads them, without its bound on values.
pub(crate) fn members<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Map<String, Value>, D::Error> {
    optional_members(deserializer)?.ok_or_else(|| D::Error::custom("an object is missing"))
}

/// As [`members`], where null stands for no object.
pub(crate) fn optional_members<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Map<String, Value>>, D::Error> {
    let left = Cell::new(usize::MAX);
    match (Unique { left: &left }).deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::Object(members) => Ok(Some(members)),
        _ => Err(D::Error::custom("no object")),
    }
}

pub(crate) fn is_zero<N: Default + PartialEq>(count: &N) -> bool {
    *count == N::default()
}

/// Depth and numbers, before anything recurses. Looks at bytes outside of strings only; the parser checks syntax.
fn scan(text: &str) -> Result<(), JsonError> {
    let (mut depth, mut at) = (0_usize, 0_usize);
    let bytes = text.as_bytes();
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => at += string_length(bytes.get(at..).unwrap_or_default()),
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(JsonError::TooDeep);
                }
                at += 1;
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                at += 1;
            }
            b'-' | b'0'..=b'9' => {
                let rest = text.get(at..).unwrap_or_default();
                let length =
                    rest.bytes().take_while(|b| matches!(b, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')).count();
                if !fits(rest.get(..length).unwrap_or_default()) {
                    return Err(JsonError::NumberDoesNotFit { offset: at });
                }
                at += length;
            }
            _ => at += 1,
        }
    }
    Ok(())
}

/// Bytes of the string literal that begins here, quotes included.
fn string_length(bytes: &[u8]) -> usize {
    let mut at = 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn fits(number: &str) -> bool {
    if number.bytes().any(|b| matches!(b, b'.' | b'e' | b'E')) {
        // A mantissa that is not zero must not become zero, nor infinity.
        let mantissa = number.split(['e', 'E']).next().unwrap_or_default();
        let zero = !mantissa.bytes().any(|b| matches!(b, b'1'..=b'9'));
        // Text that is not a number is left to the parser, which reports its position.
        number.parse::<f64>().map_or(true, |float| float.is_finite() && (zero || float != 0.0))
    } else {
        let digits = number.strip_prefix('-').unwrap_or(number);
        let whole = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        !whole || number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok()
    }
}

/// Builds a [`Value`], refuses a member name that occurs twice, and counts what it builds.
#[derive(Clone, Copy)]
struct Unique<'c> {
    /// How many more values are allowed.
    left: &'c Cell<usize>,
}

impl Unique<'_> {
    fn counted<E: serde::de::Error>(self, value: Value) -> Result<Value, E> {
        self.count()?;
        Ok(value)
    }

    fn count<E: serde::de::Error>(self) -> Result<(), E> {
        let left = self.left.get().checked_sub(1).ok_or_else(|| E::custom(TOO_MANY))?;
        self.left.set(left);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Unique<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        self.counted(Value::Null)
    }
    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        self.counted(Value::Bool(value))
    }
    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        self.counted(Value::Number(value.into()))
    }
    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        self.counted(Value::Number(value.into()))
    }
    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("number out of range"))?;
        self.counted(Value::Number(number))
    }
    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.counted(Value::String(value.to_owned()))
    }
    fn visit_string<E: serde::de::Error>(self, value: String) -> Result<Value, E> {
        self.counted(Value::String(value))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.count()?;
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            array.push(item);
        }
        array.shrink_to_fit();
        Ok(Value::Array(array))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        self.count()?;
        let mut first = Vec::new();
        while first.len() < MAX_MEMBERS_AHEAD
            && let Some(name) = members.next_key::<String>()?
        {
            first.push((name, members.next_value_seed(self)?));
        }
        let mut map = Map::with_capacity(first.len());
        for (name, value) in first {
            insert(&mut map, name, value)?;
        }
        if map.len() == MAX_MEMBERS_AHEAD {
            while let Some(name) = members.next_key::<String>()? {
                let value = members.next_value_seed(self)?;
                insert(&mut map, name, value)?;
            }
        }
        Ok(Value::Object(map))
    }
}

fn insert<E: serde::de::Error>(map: &mut Map<String, Value>, name: String, value: Value) -> Result<(), E> {
    if map.insert(name, value).is_some() { Err(E::custom(DUPLICATE)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_json_allows_is_read_as_serde_json_reads_it() {
        for text in [
            r#"{"a":[1,-2,3.5,1e3,"x\"y",true,null,{}],"é":"\u00e9"}"#,
            "[]",
            "\"a\"",
            " 7 ",
            "-0",
            "0.0",
            "18446744073709551615",
            "-9223372036854775808",
            "1e300",
            "\"1e999\"",
            r#""\\""#,
        ] {
            assert_eq!(parse_strict(text.as_bytes()).unwrap(), serde_json::from_str::<Value>(text).unwrap(), "{text}");
        }
    }

    #[test]
    fn one_byte_order_mark_before_the_document_is_skipped() {
        assert_eq!(parse_strict(b"\xef\xbb\xbf{\"a\":1}").unwrap(), serde_json::json!({"a": 1}));
        assert_eq!(parse_strict(b"\xef\xbb\xbf1e999"), Err(JsonError::NumberDoesNotFit { offset: 3 }));
        for text in ["\u{feff}\u{feff}{}", "{}\u{feff}", "{\u{feff}}", " \u{feff}{}", "\u{feff}"] {
            assert!(matches!(parse_strict(text.as_bytes()), Err(JsonError::Syntax { .. })), "{text:?}");
        }
    }

    #[test]
    fn a_member_named_twice_is_refused_at_every_depth_and_spelling() {
        for text in [r#"{"a":1,"a":1}"#, r#"[{"x":{"a":1,"b":2,"a":3}}]"#, r#"{"a":1,"\u0061":2}"#] {
            assert!(matches!(parse_strict(text.as_bytes()), Err(JsonError::DuplicateMember { .. })), "{text}");
        }
    }

    #[test]
    fn a_number_that_does_not_fit_is_refused() {
        for number in [
            "1e999",
            "-1e999",
            "123456789012345678901234567890",
            "18446744073709551616",
            "-9223372036854775809",
            "1e-999",
        ] {
            let text = format!("{{\"a\": {number}}}");
            assert_eq!(parse_strict(text.as_bytes()), Err(JsonError::NumberDoesNotFit { offset: 6 }), "{number}");
        }
    }

    #[test]
    fn nesting_ends_at_thirty_two() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse_strict(nested(32).as_bytes()).is_ok());
        assert_eq!(parse_strict(nested(33).as_bytes()), Err(JsonError::TooDeep));
        assert_eq!(parse_strict("[".repeat(100_000).as_bytes()), Err(JsonError::TooDeep));
        assert!(parse_strict(format!("\"{}\"", "[".repeat(100)).as_bytes()).is_ok(), "brackets in a string are text");
    }

    #[test]
    fn every_scalar_array_and_object_counts_as_a_value_and_no_name_does() {
        // The outer array is one more.
        for (item, values) in
            [("0", 1), ("\"a,b\"", 1), ("null", 1), ("{}", 1), ("[]", 1), ("[1]", 2), ("{\"a\":{\"b\":1}}", 3)]
        {
            let items = (MAX_VALUES - 1) / values;
            let body = |items: usize| format!("[{}]", vec![item; items].join(","));
            assert!(parse_strict(body(items).as_bytes()).is_ok(), "{item}");
            assert_eq!(parse_strict(body(items + 1).as_bytes()), Err(JsonError::TooManyValues), "{item}");
        }
    }

    #[test]
    fn an_object_of_any_size_is_read_whole() {
        for size in [0, 1, MAX_MEMBERS_AHEAD - 1, MAX_MEMBERS_AHEAD, MAX_MEMBERS_AHEAD + 1, 100] {
            let members: Vec<String> = (0..size).map(|n| format!("\"{n}\":{n}")).collect();
            let text = format!("{{{}}}", members.join(","));
            let read = parse_strict(text.as_bytes()).unwrap();
            assert_eq!(read, serde_json::from_str::<Value>(&text).unwrap());
            assert_eq!(read.as_object().unwrap().len(), size);
            if size > 0 {
                let twice = format!("{{{},\"0\":1}}", members.join(","));
                assert!(matches!(parse_strict(twice.as_bytes()), Err(JsonError::DuplicateMember { .. })), "{size}");
            }
        }
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for text in [
            "",
            "{",
            "{}x",
            "{'a':1}",
            "{\"a\":01}",
            "[1,]",
            "NaN",
            "\"\\ud800\"",
            "\"\u{1}\"",
            "-",
            "1.",
            "{\"a\":--1}",
            "\"a",
        ] {
            assert!(matches!(parse_strict(text.as_bytes()), Err(JsonError::Syntax { .. })), "{text:?}");
        }
        assert_eq!(parse_strict(b"\"\xff\""), Err(JsonError::NotUtf8));
    }
}
