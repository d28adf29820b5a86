//! Values of constraints: switches, numbers, durations and lists.
//!
//! What could be meant in two ways (`1,000`, `dev/staging`, `!prod`) is an error that names a valid form: a wrong guess
//! could allow more than was meant.

use super::names::{Unit, Wildcards};
use super::{ConstraintError, ListName, MAX_LIST_ENTRIES};
use crate::number::{Micros, NumberError};
use crate::word::{Word, visible};

/// Values that switch a flag off.
const OFF: [&str; 11] = ["false", "no", "off", "0", "none", "n", "f", "never", "disabled", "null", "0.0"];
/// Values that switch a flag off in packs of the first edition.
const FIRST_OFF: [&str; 4] = ["false", "no", "off", "0"];
/// Quotes that may enclose a value.
const QUOTES: [char; 7] = ['"', '\'', '`', '\u{201c}', '\u{201d}', '\u{2018}', '\u{2019}'];
const SEPARATORS: [char; 4] = [',', ';', '|', '、'];
/// Words for "everything"; in a list that denies they would match no name.
const EVERYTHING: [&str; 5] = ["all", "any", "each", "every", "everything"];
/// The last labels of hosts that are written without a scheme.
const HOST_ENDS: [&str; 16] =
    ["com", "org", "net", "io", "dev", "ai", "co", "app", "cloud", "internal", "local", "gov", "edu", "eu", "de", "uk"];
/// Environments that are known without a pack, as keys.
const ENVIRONMENTS: [&str; 20] = [
    "production",
    "prod",
    "prd",
    "live",
    "staging",
    "stage",
    "stg",
    "development",
    "dev",
    "test",
    "testing",
    "qa",
    "uat",
    "preprod",
    "preproduction",
    "sandbox",
    "local",
    "demo",
    "canary",
    "ci",
];

pub(super) fn is_on(value: Option<&str>, first_edition: bool) -> bool {
    let Some(value) = value else { return true };
    if first_edition {
        return !FIRST_OFF.contains(&visible(value).as_str());
    }
    let word = visible(unquoted(value.trim().trim_end_matches(['.', ',', ';', '!'])));
    !OFF.contains(&word.as_str())
}

/// The value without enclosing quotes and blanks, however many of them there are: what is read here is written as it
/// is read, and must then be read as the same.
pub(super) fn unquoted(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || QUOTES.contains(&c))
}

/// The entries of a list, each usable.
pub(super) fn list(name: &'static str, list: ListName, value: Option<&str>) -> Result<Vec<String>, ConstraintError> {
    let value = value.unwrap_or_default().trim();
    let inner = value.strip_prefix('[').and_then(|v| v.strip_suffix(']')).unwrap_or(value);
    let entries: Vec<&str> = inner.split(SEPARATORS).map(unquoted).filter(|entry| !entry.is_empty()).collect();
    match entries.len() {
        0 => return Err(ConstraintError::EmptyList(name)),
        1..=MAX_LIST_ENTRIES => {}
        _ => return Err(ConstraintError::TooManyEntries(name)),
    }
    entries.into_iter().map(|entry| usable(name, list, entry)).collect()
}

fn usable(name: &'static str, list: ListName, entry: &str) -> Result<String, ConstraintError> {
    // Paths may contain all of these.
    if list != ListName::ResourceScope {
        if entry.contains(['(', ')', '{', '}', '[', ']']) {
            return Err(ConstraintError::Brackets(name));
        }
        let words: Vec<&str> = entry.split_whitespace().collect();
        let is = |word: &&str, other: &str| word.eq_ignore_ascii_case(other);
        if entry.starts_with('!') || (words.len() > 1 && words.first().is_some_and(|word| is(word, "not"))) {
            return Err(ConstraintError::Negated { name });
        }
        let joins = |word: &&str| ["and", "or", "&", "+", "/"].into_iter().any(|joint| is(word, joint));
        if words.len() > 1 && words.iter().any(joins) {
            return Err(ConstraintError::Joined(name));
        }
    }
    let denies = matches!(list, ListName::DeniedTools | ListName::DeniedEnvironment | ListName::RequireApprovalFor);
    if denies && EVERYTHING.iter().any(|word| entry.eq_ignore_ascii_case(word)) {
        return Err(ConstraintError::Everything(name));
    }
    let of_environments =
        matches!(list, ListName::AllowedEnvironment | ListName::Environment | ListName::DeniedEnvironment);
    if of_environments && joins_environments(entry) {
        return Err(ConstraintError::Joined(name));
    }
    wildcard(name, list.wildcards(), entry)
}

/// Whether the entry is two known environments in one, such as `dev/staging` or `dev staging`.
fn joins_environments(entry: &str) -> bool {
    let mut before = false;
    for piece in entry.split(|c: char| c == '/' || c.is_whitespace()).filter(|piece| !piece.is_empty()) {
        let known = Word::new(piece).known().is_some_and(|word| ENVIRONMENTS.contains(&word));
        if before && known {
            return true;
        }
        before = known;
    }
    false
}

/// Allows a `*` only as the last character.
fn wildcard(name: &'static str, wildcards: Wildcards, entry: &str) -> Result<String, ConstraintError> {
    if !entry.contains('*') {
        return Ok(entry.to_owned());
    }
    if wildcards == Wildcards::None {
        return Err(ConstraintError::NoWildcard(name));
    }
    let stem = entry.trim_end_matches('*');
    if stem.len() == entry.len() || stem.contains('*') {
        return Err(ConstraintError::Wildcard(name));
    }
    let small = stem.to_lowercase();
    if wildcards == Wildcards::Tools {
        let server = small.strip_prefix("mcp__").map(|rest| rest.split_once("__").map_or("", |(server, _)| server));
        if server == Some("") {
            return Err(ConstraintError::McpWildcard(name));
        }
    } else if ends_in_host(&small) {
        return Err(ConstraintError::HostWildcard(name));
    }
    Ok(format!("{stem}*"))
}

/// Whether a `*` after the entry could match another host, as in `https://api.example.com*` or `api.example.com*`.
fn ends_in_host(stem: &str) -> bool {
    if let Some((_, rest)) = stem.split_once("://") {
        return !rest.is_empty() && !rest.contains(['/', '\\']);
    }
    let host = stem.split_once(':').map_or(stem, |(host, _)| host);
    !stem.contains(['/', '\\'])
        && host.rsplit_once('.').is_some_and(|(rest, end)| !rest.is_empty() && HOST_ENDS.contains(&end))
}

/// A limit: a whole number, or millionths of a second or a dollar.
pub(super) fn limit(name: &'static str, unit: Unit, value: Option<&str>) -> Result<i64, ConstraintError> {
    let value = unquoted(value.unwrap_or_default());
    let (limit, example, form) = match unit {
        Unit::Whole => (whole_number(value), "3", ", a whole number"),
        Unit::Seconds => (duration(value), "300", " in seconds, or `300s`, `5m`, `1h`"),
        Unit::Dollars => {
            let dollars = Micros::parse(value, false).and_then(Micros::at_most_usd).map(Micros::get);
            (dollars, "2.50", ", US dollars in digits with at most one point, at most 1000000000")
        }
    };
    limit.map_err(|error| ConstraintError::Number { name, error, example, form })
}

/// A whole number, which may end in `.0`. It is never rounded: `2.9999999` would become 3.
fn whole_number(value: &str) -> Result<i64, NumberError> {
    let (whole, zeros) = value.split_once('.').unwrap_or((value, "0"));
    if zeros.is_empty() || zeros.bytes().any(|byte| byte != b'0') {
        return Err(NumberError::NotANumber);
    }
    Ok(Micros::parse(whole, false)?.get() / Micros::UNIT)
}

/// Seconds, or a number with `s`, `m` or `h`, in millionths of a second.
fn duration(value: &str) -> Result<i64, NumberError> {
    let units = [(['s', 'S'], 1), (['m', 'M'], 60), (['h', 'H'], 3_600)];
    let with_unit = units.into_iter().find_map(|(unit, seconds)| Some((value.strip_suffix(unit)?.trim_end(), seconds)));
    let (digits, seconds) = with_unit.unwrap_or((value, 1));
    Micros::parse(digits, false)?.get().checked_mul(seconds).ok_or(NumberError::OutOfRange)
}
