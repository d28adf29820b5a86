//! What an option of a command is, by the entry of its program.
//!
//! INVARIANT: where an entry lists its harmless options, every other one is unknown. An abbreviation is none of them.

use super::commands::CommandEntry;

/// How an option stands in a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape<'a> {
    /// It is one word, and what is in it changes no file.
    Alone,
    /// It holds the name of a file that is changed.
    Value(&'a str),
    /// The next word is its value, and perhaps a file that is changed.
    Next { writes: bool },
    /// The entry lists its options, and this is none of them.
    Unknown,
}

/// What a word that begins with `-` is.
pub(super) fn shape<'a>(entry: &CommandEntry, word: &'a str) -> Shape<'a> {
    let is = |list: &[String], name: &str| list.iter().any(|option| option == name);
    if is(&entry.writes, word) {
        return Shape::Next { writes: true };
    }
    if is(&entry.values, word) {
        return Shape::Next { writes: false };
    }
    let (name, value) = match word.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (word, None),
    };
    if let Some(value) = value.filter(|_| is(&entry.writes, name)) {
        return Shape::Value(value);
    }
    let Some(harmless) = &entry.harmless else { return Shape::Alone };
    let known = is(harmless, name)
        || is(harmless, word)
        || value.is_some() && is(&entry.values, name)
        || entry.options.contains_key(name);
    if known { Shape::Alone } else { letters(entry, word) }
}

/// The part of a word in which letters are options: none of one that is known as a whole, and of others what stands
/// before a value. An entry that does not list its options knows no values that are joined.
pub(super) fn cluster<'a>(entry: &CommandEntry, word: &'a str) -> &'a str {
    let Some(harmless) = &entry.harmless else { return word };
    let name = word.split_once('=').map_or(word, |(name, _)| name);
    if word.starts_with("--") || !word.starts_with('-') {
        return word;
    }
    if harmless.iter().any(|option| option == name) {
        return "";
    }
    let valued = |c: char| {
        let is = |option: &String| option.strip_prefix('-').is_some_and(|name| name.chars().eq([c]));
        entry.values.iter().any(is) || entry.writes.iter().any(is)
    };
    let end = word.char_indices().skip(1).find(|(_, c)| valued(*c)).map_or(word.len(), |(at, c)| at + c.len_utf8());
    word.get(..end).unwrap_or(word)
}

/// `-abc`, `-n20`, `-5`: letters that stand alone, and perhaps one with its value behind it.
fn letters<'a>(entry: &CommandEntry, word: &'a str) -> Shape<'a> {
    let Some(given) = word.strip_prefix('-').filter(|given| !given.starts_with('-') && !given.is_empty()) else {
        return Shape::Unknown;
    };
    let one = |list: &[String], c: char| {
        list.iter().any(|option| option.strip_prefix('-').is_some_and(|name| name.chars().eq([c])))
    };
    for (at, c) in given.char_indices() {
        let behind = given.get(at + c.len_utf8()..).unwrap_or_default();
        if one(&entry.writes, c) {
            return if behind.is_empty() { Shape::Next { writes: true } } else { Shape::Value(behind) };
        }
        if one(&entry.values, c) {
            return if behind.is_empty() { Shape::Next { writes: false } } else { Shape::Alone };
        }
        let known = entry.letters.contains(c)
            || c.is_ascii_digit() && entry.letters.contains('#')
            || entry.options.keys().any(|option| option.strip_prefix('-').is_some_and(|name| name.chars().eq([c])));
        if !known {
            return Shape::Unknown;
        }
    }
    Shape::Alone
}

/// Whether a word is this option, in any way in which programs read options: alone, with a value behind `=`,
/// abbreviated, or as one of several letters.
pub(super) fn is_option(option: &str, word: &str) -> bool {
    if word == option {
        return true;
    }
    let name = word.split_once('=').map_or(word, |(name, _)| name);
    if let Some(long) = option.strip_prefix("--") {
        return name.strip_prefix("--").is_some_and(|given| !given.is_empty() && long.starts_with(given));
    }
    let mut letters = option.chars();
    match (letters.next(), letters.next(), letters.next()) {
        (Some('-'), Some(letter), None) => {
            word.strip_prefix('-').is_some_and(|given| !given.starts_with('-') && given.contains(letter))
        }
        // `-exec` and the like are whole words, also with a value and with two dashes.
        (Some('-'), Some(_), Some(_)) => name == option || name.strip_prefix('-') == Some(option),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_found_however_it_is_written() {
        for (option, word) in [
            ("-i", "-i"),
            ("-i", "-ni"),
            ("-i", "-i.bak"),
            ("--in-place", "--in-place=.bak"),
            ("--in-place", "--in-pl"),
            ("--checkpoint-action", "--checkpoint-act=exec=sh"),
            ("-exec", "-exec"),
            ("-exec", "--exec"),
            ("--upload-pack", "--u=x"),
            ("--", "--"),
            (".", "."),
        ] {
            assert!(is_option(option, word), "{option} {word}");
        }
        for (option, word) in [
            ("-i", "i"),
            ("-i", "--include"),
            ("--in-place", "--on"),
            ("--output", "--outer"),
            ("-exec", "-e"),
            (".", ".."),
        ] {
            assert!(!is_option(option, word), "{option} {word}");
        }
    }
}
