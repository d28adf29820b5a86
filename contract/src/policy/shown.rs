//! Characters that make a text look like another one, and the names of files, which people read in every fault.

use crate::word::is_hidden;

/// The longest name of a file, in bytes.
pub const MAX_FILE_NAME_BYTES: usize = 200;
/// Characters of a bad name that an error shows.
const MAX_SHOWN_CHARS: usize = 60;

/// Whether a text that people decide by must not have this character: it cannot be seen, or changes the direction of
/// text. Joiners within an emoji are among them; its variations are not.
pub fn is_misleading(c: char) -> bool {
    let is_zero_width = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    is_zero_width || c == '\u{61c}' || is_reordering(c) || is_hidden(c)
}

/// Whether a character reorders what stands behind it (UAX #9: embeddings, overrides and isolates), so that a comment
/// can look like a rule and a rule like a comment.
pub fn is_reordering(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// What is wrong with the name of a pack's file.
pub fn bad_file_name(name: &str) -> Option<String> {
    let is_bad = |c: char| c.is_control() || is_misleading(c) || matches!(c, '/' | '\\' | ':');
    let is_name = (1..=MAX_FILE_NAME_BYTES).contains(&name.len()) && !name.starts_with('.') && !name.contains(is_bad);
    let message = || {
        format!(
            "the name of a file must be 1 to {MAX_FILE_NAME_BYTES} bytes long, must not start with `.`, and must have \
             no `/`, `\\`, `:`, control characters and characters that cannot be seen"
        )
    };
    (!is_name).then(message)
}

/// The beginning of a bad name as an error shows it, with each character that may mislead as its number.
pub fn shown_file_name(name: &str) -> String {
    let mut shown = String::new();
    for c in name.chars().take(MAX_SHOWN_CHARS) {
        if c.is_control() || is_misleading(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    if name.chars().nth(MAX_SHOWN_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_plain_text_that_can_be_seen() {
        for good in
            ["rules.cedar", "règles.cedar", "規則.cedar", "a b.cedar", "⚠️.cedar", &"x".repeat(MAX_FILE_NAME_BYTES)]
        {
            assert_eq!(bad_file_name(good), None, "{good:?}");
        }
        for bad in [
            "",
            ".hidden",
            "a/b",
            "a\\b",
            "c:a",
            "a\nb",
            "rules\u{200b}.cedar",
            "rules.\u{202e}radec",
            "\u{feff}a",
            "a\u{2066}b",
            "a\u{200d}b",
            &"x".repeat(MAX_FILE_NAME_BYTES + 1),
        ] {
            assert!(bad_file_name(bad).is_some(), "{bad:?}");
        }
    }

    #[test]
    fn a_bad_name_is_shown_by_its_beginning_and_with_nothing_that_misleads() {
        assert_eq!(shown_file_name("a/é\u{202e}\n.cedar"), "a/é\\u{202e}\\u{a}.cedar");
        assert_eq!(shown_file_name(&"x".repeat(MAX_SHOWN_CHARS)), "x".repeat(MAX_SHOWN_CHARS));
        let long = "ä".repeat(MAX_SHOWN_CHARS + 1);
        assert_eq!(shown_file_name(&long), format!("{}…", "ä".repeat(MAX_SHOWN_CHARS)));
    }

    #[test]
    fn words_of_all_scripts_do_not_mislead() {
        assert!(!"Größe, 金額, مبلغ, ⚠️\tx".chars().any(is_misleading));
        for c in ['\u{200b}', '\u{200f}', '\u{202a}', '\u{202e}', '\u{2066}', '\u{2069}', '\u{feff}', '\u{61c}'] {
            assert!(is_misleading(c), "{c:?}");
        }
        assert!(is_reordering('\u{202e}') && is_reordering('\u{2066}') && !is_reordering('\u{200f}'));
    }
}
