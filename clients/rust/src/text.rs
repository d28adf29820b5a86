//! Text from the network, made safe to show: nothing in it moves a terminal's cursor, and nothing hides or reorders
//! other text.

/// Characters that have no width, control a terminal or reorder the text around them, and letters that look blank.
pub fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
            | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// Escapes foreign text to one line, in which nothing moves the cursor or hides or reorders text.
pub fn plain(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_invisible(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_cannot_control_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\r\nc\td\u{9b}e"), r"a\u{1b}[2Jb\u{d}\u{a}c\u{9}d\u{9b}e");
        assert_eq!(
            plain("pay \u{202e}000,1\u{202c} to\u{2066}x\u{2069}"),
            r"pay \u{202e}000,1\u{202c} to\u{2066}x\u{2069}"
        );
        assert_eq!(plain("ad\u{200b}min\u{feff}\u{e0041}\u{2028}"), r"ad\u{200b}min\u{feff}\u{e0041}\u{2028}");
        assert_eq!(plain(&plain("\u{202e}")), plain("\u{202e}"), "escaping is idempotent");
    }

    #[test]
    fn letters_of_every_script_and_emoji_are_not_escaped() {
        for text in ["Überprüfung", "审批", "עברית", "مرحبا", "🚀 ✓ …", "a b\u{a0}c", "\\u{202e}"] {
            assert_eq!(plain(text), text);
        }
    }
}
