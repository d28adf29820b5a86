//! Values of constraints: switches, numbers, durations and lists.
//!
//! Owns what each may look like. What could be meant in two ways (`1,000`, `dev/staging`, `!prod`) is an error that
//! names a valid form: a wrong guess could allow more than was meant.

use super::names::{ConstraintName, Names, Wildcards};
use super::{ConstraintError, MAX_LIST_ENTRIES};
use crate::number::{Micros, NumberError};
use crate::word::visible;

/// Values that switch a flag off.
const OFF: [&str; 11] = ["false", "no", "off", "0", "none", "n", "f", "never", "disabled", "null", "0.0"];
/// Values that switch a flag off in packs of the first edition.
const FIRST_OFF: [&str; 4] = ["false", "no", "off", "0"];
/// Quotes that may enclose a value.
const QUOTES: [char; 7] = ['"', '\'', '`', '\u{201c}', '\u{201d}', '\u{2018}', '\u{2019}'];
/// Separators of list entries.
const SEPARATORS: [char; 4] = [',', ';', '|', '、'];
/// Words for "everything"; in a list that denies they would match no name.
const EVERYTHING: [&str; 5] = ["all", "any", "each", "every", "everything"];
/// The last labels of hosts that are written without a scheme.
const HOST_ENDS: [&str; 16] =
    ["com", "org", "net", "io", "dev", "ai", "co", "app", "cloud", "internal", "local", "gov", "edu", "eu", "de", "uk"];

/// Whether this value sets a flag.
pub(super) fn is_on(value: Option<&str>, first_edition: bool) -> bool {
    let Some(value) = value else { return true };
    if first_edition {
        return !FIRST_OFF.contains(&visible(value).as_str());
    }
    let word = visible(unquoted(value.trim().trim_end_matches(['.', ',', ';', '!'])));
    !OFF.contains(&word.as_str())
}

/// The value without enclosing quotes.
pub(super) fn unquoted(text: &str) -> &str {
    text.trim().trim_matches(QUOTES).trim()
}

/// The entries of a list, each usable.
pub(super) fn list(name: ConstraintName, value: Option<&str>, names: &Names) -> Result<Vec<String>, ConstraintError> {
    let value = value.unwrap_or_default().trim();
    let inner = value.strip_prefix('[').and_then(|v| v.strip_suffix(']')).unwrap_or(value);
    let entries: Vec<&str> = inner.split(SEPARATORS).map(unquoted).filter(|entry| !entry.is_empty()).collect();
    let told = name.as_str();
    match entries.len() {
        0 => return Err(ConstraintError::EmptyList { name: told }),
        1..=MAX_LIST_ENTRIES => {}
        _ => return Err(ConstraintError::TooManyEntries { name: told }),
    }
    entries.into_iter().map(|entry| usable(name, entry, names)).collect()
}

fn usable(name: ConstraintName, entry: &str, names: &Names) -> Result<String, ConstraintError> {
    let told = name.as_str();
    // Paths may contain all of these.
    if name != ConstraintName::ResourceScope {
        if entry.contains(['(', ')', '{', '}', '[', ']']) {
            return Err(ConstraintError::Brackets { name: told });
        }
        let words: Vec<&str> = entry.split_whitespace().collect();
        let is = |word: &&str, other: &str| word.eq_ignore_ascii_case(other);
        if entry.starts_with('!') || (words.len() > 1 && words.first().is_some_and(|word| is(word, "not"))) {
            return Err(ConstraintError::Negated { name: told });
        }
        let joins = |word: &&str| ["and", "or", "&", "+", "/"].into_iter().any(|joint| is(word, joint));
        if words.len() > 1 && words.iter().any(joins) {
            return Err(ConstraintError::Joined { name: told });
        }
    }
    let denies = matches!(
        name,
        ConstraintName::DeniedTools | ConstraintName::DeniedEnvironment | ConstraintName::RequireApprovalFor
    );
    if denies && EVERYTHING.iter().any(|word| entry.eq_ignore_ascii_case(word)) {
        return Err(ConstraintError::Everything { name: told });
    }
    if name.names_environments() && joins_environments(entry, names) {
        return Err(ConstraintError::Joined { name: told });
    }
    wildcard(name, entry)
}

/// Whether the entry is two known environments in one, such as `dev/staging` or `dev staging`.
fn joins_environments(entry: &str, names: &Names) -> bool {
    let mut before = false;
    for piece in entry.split(|c: char| c == '/' || c.is_whitespace()).filter(|piece| !piece.is_empty()) {
        let known = names.is_environment(piece);
        if before && known {
            return true;
        }
        before = known;
    }
    false
}

/// Allows a `*` only as the last character.
fn wildcard(name: ConstraintName, entry: &str) -> Result<String, ConstraintError> {
    if !entry.contains('*') {
        return Ok(entry.to_owned());
    }
    let told = name.as_str();
    let wildcards = name.wildcards();
    if wildcards == Wildcards::None {
        return Err(ConstraintError::NoWildcard { name: told });
    }
    let stem = entry.trim_end_matches('*');
    if stem.len() == entry.len() || stem.contains('*') {
        return Err(ConstraintError::Wildcard { name: told });
    }
    let small = stem.to_lowercase();
    if wildcards == Wildcards::Tools {
        let server = small.strip_prefix("mcp__").map(|rest| rest.split_once("__").map_or("", |(server, _)| server));
        if server == Some("") {
            return Err(ConstraintError::McpWildcard { name: told });
        }
    } else if ends_in_host(&small) {
        return Err(ConstraintError::HostWildcard { name: told });
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

/// A whole number, which may end in `.0`.
pub(super) fn whole_number(name: &'static str, value: Option<&str>) -> Result<u64, ConstraintError> {
    let bad = |error| ConstraintError::Number { name, wanted: format!("`{name}: 3`, a whole number"), error };
    let micros = Micros::parse(unquoted(value.unwrap_or_default()), true).map_err(bad)?.get();
    if micros % Micros::UNIT != 0 {
        return Err(bad(NumberError::NotANumber));
    }
    u64::try_from(micros / Micros::UNIT).map_err(|_| bad(NumberError::OutOfRange))
}

/// An amount of at most [`MAX_USD`](crate::MAX_USD) dollars.
pub(super) fn dollars(name: &'static str, value: Option<&str>) -> Result<Micros, ConstraintError> {
    let wanted = || format!("`{name}: 2.50`, US dollars in digits with at most one point, at most 1000000000");
    let amount = Micros::parse(unquoted(value.unwrap_or_default()), false).and_then(Micros::at_most_usd);
    amount.map_err(|error| ConstraintError::Number { name, wanted: wanted(), error })
}

/// Seconds, or a number with `s`, `m` or `h`.
pub(super) fn duration(name: &'static str, value: Option<&str>) -> Result<Micros, ConstraintError> {
    let value = unquoted(value.unwrap_or_default());
    let (digits, seconds) = match value.char_indices().next_back() {
        Some((at, unit @ ('s' | 'S' | 'm' | 'M' | 'h' | 'H'))) => {
            let seconds = match unit.to_ascii_lowercase() {
                'h' => 3_600,
                'm' => 60,
                _ => 1,
            };
            (value.get(..at).unwrap_or_default().trim_end(), seconds)
        }
        _ => (value, 1),
    };
    let read = Micros::parse(digits, false).and_then(|amount| {
        amount.get().checked_mul(seconds).ok_or(NumberError::OutOfRange).and_then(Micros::from_micros)
    });
    let wanted = || format!("`{name}: 300` in seconds, or `300s`, `5m`, `1h`");
    read.map_err(|error| ConstraintError::Number { name, wanted: wanted(), error })
}
