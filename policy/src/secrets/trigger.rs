//! The trigger of a pattern: fixed parts or one long word that every match contains, derived from the pattern itself.
//!
//! A form's pattern runs only on a text with its trigger, so many forms are cheap. A pattern without one is refused.
//! INVARIANT: a text without a pattern's trigger has no match of the pattern.

use regex_syntax::hir::{Class, Hir, HirKind, Look};

/// Shorter fixed parts occur in nearly every text.
const MIN_FIXED_BYTES: usize = 2;
/// Fixed parts that are rarer than long words.
const RARE_BYTES: usize = 3;
/// Words of at least this many bytes are rare in a request.
pub(super) const LONG_WORD_BYTES: usize = 24;
/// The largest class that counts as fixed letters.
const MAX_LETTERS: usize = 9;
const MAX_FIXED: usize = 64;
const MAX_PATTERN_CHARS: usize = 1_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trigger {
    /// One of these, in small letters.
    Fixed(Vec<String>),
    /// At least [`LONG_WORD_BYTES`] of [`is_word_byte`] in a row.
    LongWord,
}

pub(super) fn of(pattern: &str) -> Result<Trigger, String> {
    if pattern.chars().count() > MAX_PATTERN_CHARS {
        return Err(format!("is longer than {MAX_PATTERN_CHARS} characters"));
    }
    let hir = regex_syntax::parse(pattern).map_err(|error| {
        let told = error.to_string();
        let last = told.lines().last().unwrap_or("cannot be read").trim_start_matches("error: ");
        format!("is no regular expression: {last}")
    })?;
    if repeats_a_repetition(&hir, false) {
        return Err("repeats what repeats already: write the inner part as one class of characters".to_owned());
    }
    let looks = hir.properties().look_set();
    if looks.contains_word_unicode() {
        return Err(r"has `\b`: write `(?-u:\b)`, which is as fast in every text".to_owned());
    }
    if looks.contains(Look::Start) || looks.contains(Look::End) {
        return Err(
            "asks for the start or the end of the text, and texts are searched together: write `(?m:^)`, `(?m:$)`"
                .to_owned(),
        );
    }
    if hir.properties().minimum_len().is_none_or(|length| length == 0) {
        return Err("matches the empty text".to_owned());
    }
    let fixed = fixed(&hir).needed.unwrap_or_default();
    if shortest(&fixed) >= RARE_BYTES {
        return Ok(Trigger::Fixed(fixed));
    }
    if word_bytes(&hir).longest >= LONG_WORD_BYTES {
        return Ok(Trigger::LongWord);
    }
    if shortest(&fixed) >= MIN_FIXED_BYTES {
        return Ok(Trigger::Fixed(fixed));
    }
    Err(format!(
        "has no part of at least {MIN_FIXED_BYTES} characters that stands in each match, and no word of \
         {LONG_WORD_BYTES} or more: it would be looked for in every text"
    ))
}

/// A byte of the words that [`Trigger::LongWord`] means.
pub(super) fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'~' | b'+' | b'/' | b'=')
}

fn repeats_a_repetition(hir: &Hir, inside: bool) -> bool {
    match hir.kind() {
        HirKind::Repetition(repetition) => {
            let repeats = repetition.max.is_none_or(|max| max > 1);
            let unbounded = repetition.max.is_none();
            (inside && repeats) || repeats_a_repetition(&repetition.sub, inside || unbounded)
        }
        HirKind::Capture(capture) => repeats_a_repetition(&capture.sub, inside),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().any(|part| repeats_a_repetition(part, inside))
        }
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) | HirKind::Look(_) => false,
    }
}

/// What is fixed in an expression, in small letters.
#[derive(Clone, Default)]
struct Fixed {
    /// All that it can match, where that is few.
    exact: Option<Vec<String>>,
    /// Parts of which each match has at least one.
    needed: Option<Vec<String>>,
}

impl Fixed {
    fn exact(texts: Vec<String>) -> Self {
        Self { needed: Some(texts.clone()), exact: Some(texts) }
    }
}

fn fixed(hir: &Hir) -> Fixed {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => Fixed::exact(vec![String::new()]),
        HirKind::Literal(literal) => match std::str::from_utf8(&literal.0) {
            Ok(text) => Fixed::exact(vec![text.to_ascii_lowercase()]),
            Err(_) => Fixed::default(),
        },
        HirKind::Class(class) => letters_of(class).map(Fixed::exact).unwrap_or_default(),
        HirKind::Capture(capture) => fixed(&capture.sub),
        HirKind::Repetition(repetition) => {
            let inner = fixed(&repetition.sub);
            match (repetition.min, repetition.max, inner.exact) {
                (1, Some(1), exact) => Fixed { exact, needed: inner.needed },
                (0, Some(1), Some(mut texts)) => {
                    texts.push(String::new());
                    Fixed::exact(texts)
                }
                (0, ..) => Fixed::default(),
                (min, Some(max), Some(texts)) if min == max && texts.len() == 1 && min <= 16 => {
                    let times = usize::try_from(min).unwrap_or(1);
                    Fixed::exact(texts.iter().map(|text| text.repeat(times)).collect())
                }
                (min, _, Some(texts)) if texts.len() == 1 && min <= 16 => {
                    let times = usize::try_from(min).unwrap_or(1);
                    Fixed { exact: None, needed: Some(texts.iter().map(|text| text.repeat(times)).collect()) }
                }
                _ => Fixed { exact: None, needed: inner.needed },
            }
        }
        HirKind::Alternation(branches) => {
            let branches: Vec<Fixed> = branches.iter().map(fixed).collect();
            let all = |of: fn(&Fixed) -> &Option<Vec<String>>| {
                let lists: Option<Vec<&Vec<String>>> = branches.iter().map(|branch| of(branch).as_ref()).collect();
                let mut texts: Vec<String> = lists?.into_iter().flatten().cloned().collect();
                texts.sort_unstable();
                texts.dedup();
                (texts.len() <= MAX_FIXED).then_some(texts)
            };
            Fixed { exact: all(|branch| &branch.exact), needed: all(|branch| &branch.needed) }
        }
        HirKind::Concat(parts) => in_a_row(parts),
    }
}

/// The best of the parts: what is fixed side by side counts as one.
fn in_a_row(parts: &[Hir]) -> Fixed {
    let mut best: Option<Vec<String>> = None;
    let mut offer = |texts: Vec<String>| {
        let better = best.as_ref().is_none_or(|best| {
            let (new, old) = (shortest(&texts), shortest(best));
            new > old || (new == old && texts.len() < best.len())
        });
        if better {
            best = Some(texts);
        }
    };
    let mut row = vec![String::new()];
    let mut whole = true;
    for part in parts {
        let part = fixed(part);
        match part.exact {
            Some(next) if row.len() * next.len() <= MAX_FIXED => {
                row = row.iter().flat_map(|left| next.iter().map(move |right| format!("{left}{right}"))).collect();
            }
            exact => {
                whole = false;
                offer(std::mem::replace(&mut row, vec![String::new()]));
                match exact {
                    Some(next) => row = next,
                    None => part.needed.into_iter().for_each(&mut offer),
                }
            }
        }
    }
    offer(row.clone());
    Fixed { exact: whole.then_some(row), needed: best }
}

/// The letters of a small class, each case folded.
fn letters_of(class: &Class) -> Option<Vec<String>> {
    let ranges: Vec<(u32, u32)> = match class {
        Class::Unicode(class) => class.iter().map(|range| (range.start().into(), range.end().into())).collect(),
        Class::Bytes(class) => class.to_unicode_class()?.iter().map(|r| (r.start().into(), r.end().into())).collect(),
    };
    let few: u32 = ranges.iter().map(|(start, end)| end - start + 1).sum();
    if usize::try_from(few).ok()? > 2 * MAX_LETTERS {
        return None;
    }
    let chars = ranges.into_iter().flat_map(|(start, end)| start..=end).filter_map(char::from_u32);
    let mut letters: Vec<String> = chars.map(|c| c.to_ascii_lowercase().to_string()).collect();
    letters.sort_unstable();
    letters.dedup();
    (1..=MAX_LETTERS).contains(&letters.len()).then_some(letters)
}

/// Bytes of [`is_word_byte`] in a row that each match has.
#[derive(Clone, Copy, Default)]
struct WordBytes {
    longest: usize,
    /// The whole expression matches nothing else.
    whole: Option<usize>,
}

fn word_bytes(hir: &Hir) -> WordBytes {
    if is_one_word(hir) {
        let length = hir.properties().minimum_len().unwrap_or_default();
        return WordBytes { longest: length, whole: Some(length) };
    }
    let longest = match hir.kind() {
        HirKind::Capture(capture) => word_bytes(&capture.sub).longest,
        HirKind::Repetition(repetition) if repetition.min > 0 => word_bytes(&repetition.sub).longest,
        HirKind::Alternation(parts) => parts.iter().map(|part| word_bytes(part).longest).min().unwrap_or_default(),
        HirKind::Concat(parts) => {
            let (mut longest, mut row) = (0, 0);
            for part in parts.iter().map(word_bytes) {
                row = part.whole.map_or(0, |length| row + length);
                longest = longest.max(row).max(part.longest);
            }
            longest
        }
        _ => 0,
    };
    WordBytes { longest, whole: None }
}

fn is_one_word(hir: &Hir) -> bool {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => true,
        HirKind::Literal(literal) => literal.0.iter().all(|byte| is_word_byte(*byte)),
        HirKind::Class(Class::Unicode(class)) => {
            class.iter().all(|range| range.end().is_ascii() && (range.start()..=range.end()).all(is_word_char))
        }
        HirKind::Class(Class::Bytes(class)) => {
            class.iter().all(|range| (range.start()..=range.end()).all(is_word_byte))
        }
        HirKind::Repetition(repetition) => is_one_word(&repetition.sub),
        HirKind::Capture(capture) => is_one_word(&capture.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => parts.iter().all(is_one_word),
    }
}

fn is_word_char(c: char) -> bool {
    u8::try_from(c).is_ok_and(is_word_byte)
}

fn shortest(texts: &[String]) -> usize {
    texts.iter().map(String::len).min().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed_of(pattern: &str) -> Vec<String> {
        match of(pattern) {
            Ok(Trigger::Fixed(fixed)) => fixed,
            other => panic!("{pattern}: {other:?}"),
        }
    }

    #[test]
    fn the_fixed_parts_of_a_pattern_are_those_that_each_match_has() {
        for (pattern, fixed) in [
            (r"(?-u:\b)npm_[0-9A-Za-z]{36}", &["npm_"][..]),
            (r"(?-u:\b)(?:AKIA|ASIA)[0-9A-Z]{16}", &["akia", "asia"]),
            ("gh[po]_[0-9a-z]{36}", &["gho_", "ghp_"]),
            ("(?i)bearer x", &["bearer x"]),
            ("sk-(?:ab-)?[0-9]{9}", &["sk-ab-", "sk-"]),
            ("[0-9]{5}-(?:aa|bb)-[0-9]{5}", &["-aa-", "-bb-"]),
            ("a{3}[0-9]+b{2,}", &["aaa"]),
        ] {
            assert_eq!(fixed_of(pattern), fixed, "{pattern}");
        }
        for pattern in ["[0-9a-f]{16}[.][0-9a-f]{16}", "SK[0-9a-f]{32}", "(?:x|[ ])(?:[0-9]{9} )?([0-9a-z]{24})"] {
            assert_eq!(of(pattern), Ok(Trigger::LongWord), "{pattern}");
        }
    }

    #[test]
    fn a_pattern_that_would_be_dear_is_refused() {
        for (pattern, told) in [
            ("npm_(", "no regular expression"),
            ("npm_(?:[a-z]+ )*x", "repeats what repeats"),
            ("npm_(?:[a-z]{2,9}-)+x", "repeats what repeats"),
            (r"\bnpm_[a-z]+", r"write `(?-u:\b)`"),
            ("x?", "empty text"),
            ("^npm_[a-z]+", "start or the end"),
            (r"npm_[a-z]+\z", "start or the end"),
            ("[a-z]{9}", "looked for in every text"),
            ("[a-z ]{90}", "looked for in every text"),
            ("(?:ab)?[0-9]{9}", "looked for in every text"),
            ("x[0-9]{9}", "looked for in every text"),
        ] {
            let error = of(pattern).unwrap_err();
            assert!(error.contains(told), "{pattern}: {error}");
        }
        assert!(of(&"a".repeat(MAX_PATTERN_CHARS + 1)).is_err());
        assert!(of("npm_(?:[a-z]{2}-){3}x").is_ok(), "how often is known");
    }
}
