//! Values that stand beside a telling name: `password=…`, `"api_key": "…"`, a member called `client_secret`.
//!
//! Owns what is a plausible value and what is prose or a placeholder. After `=` or in quotes nearly everything is a value; after a
//! bare `:` only what no sentence contains, since people write "password: required".

use std::ops::Range;

/// Member names, without separators; a longer name may end so.
const NAMES: [&str; 18] = [
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "apikey",
    "privatekey",
    "secretkey",
    "accesskey",
    "accountkey",
    "signingkey",
    "encryptionkey",
    "accesstoken",
    "refreshtoken",
    "authtoken",
    "sessiontoken",
    "bearertoken",
    "credential",
];

/// What stands where a value would, in templates and in prose.
const PLACEHOLDERS: [&str; 41] = [
    "required",
    "optional",
    "none",
    "null",
    "nil",
    "undefined",
    "true",
    "false",
    "redacted",
    "masked",
    "hidden",
    "removed",
    "unknown",
    "empty",
    "blank",
    "missing",
    "present",
    "absent",
    "string",
    "text",
    "value",
    "placeholder",
    "password",
    "your_password",
    "yourpassword",
    "your-password",
    "example",
    "todo",
    "n/a",
    "expired",
    "rotated",
    "needed",
    "unset",
    "user",
    "users",
    "policy",
    "reset",
    "prompt",
    "encrypted",
    "not_provided",
    "omitted",
];

/// Where values come from at run time.
const REFERENCES: [&str; 14] = [
    "process.env",
    "os.environ",
    "os.getenv",
    "getenv(",
    "env.",
    "env:",
    "env(",
    "vault:",
    "ref:",
    "arn:",
    "op://",
    "http://",
    "https://",
    "/",
];

const QUOTES: [char; 3] = ['"', '\'', '`'];
/// In bytes; longer values are cut for the judgement, not for the masking.
const MOST_JUDGED: usize = 256;
/// Longer than any of the words of [`PLACEHOLDERS`] and [`REFERENCES`], in bytes.
const MOST_TELLING: usize = 24;
const LEAST_AFTER_EQUALS: usize = 4;
const LEAST_AFTER_COLON: usize = 6;

/// The values of one text. Names may stand within each other's values (`secret=secret=…`): where a value ends is looked
/// for once.
pub(super) struct Values<'t> {
    text: &'t str,
    /// The last value without quotes.
    unquoted: Range<usize>,
    telling: Next,
    upper: Next,
    lower: Next,
}

/// Where the next character of a kind stands, for every start between the first one that was asked for and that place.
#[derive(Default)]
struct Next {
    asked: Range<usize>,
}

impl<'t> Values<'t> {
    pub(super) fn of(text: &'t str) -> Self {
        let [telling, upper, lower] = [Next::default(), Next::default(), Next::default()];
        Self { text, unquoted: 0..0, telling, upper, lower }
    }

    /// Where the secret is that begins at `start`, if it is one; `bare_colon` when a `:` alone stands before it.
    pub(super) fn at(&mut self, start: usize, bare_colon: bool) -> Option<Range<usize>> {
        let rest = self.text.get(start..)?;
        let quote = rest.chars().next().filter(|c| QUOTES.contains(c));
        let (text, length) = match quote {
            Some(quote) => {
                let inner = rest.get(1..)?;
                let mut escaped = false;
                let closes = |c: char| {
                    let closing = (c == quote && !escaped) || c == '\n';
                    escaped = c == '\\' && !escaped;
                    closing
                };
                let end = inner.find(closes).unwrap_or(inner.len());
                (inner.get(..end)?, 1 + end + usize::from(inner.get(end..)?.starts_with(quote)))
            }
            None => {
                if !self.unquoted.contains(&start) {
                    self.unquoted = start..start + rest.find(ends_value).unwrap_or(rest.len());
                }
                let length = self.unquoted.end - start;
                (rest.get(..length)?, length)
            }
        };
        let judged = cut(text).trim_end_matches(['.', ',', ';', ')', ']', '}', '!', '?']);
        let plausible = if quote.is_some() || !bare_colon {
            is_value(judged, LEAST_AFTER_EQUALS)
        } else {
            let begin = start + quote.map_or(0, char::len_utf8);
            !self.is_prose(begin..begin + judged.len()) && is_value(judged, LEAST_AFTER_COLON)
        };
        plausible.then(|| start..start + length)
    }

    /// Could stand in a sentence: letters and hyphens only, at most the first a capital.
    fn is_prose(&mut self, value: Range<usize>) -> bool {
        let Some(first) = self.text.get(value.clone()).and_then(|text| text.chars().next()) else { return true };
        let inner = value.start + first.len_utf8()..value.end;
        let telling = |c: char| c.is_ascii_digit() || "!@#$%^&*+=~\\|".contains(c);
        let inner_capital = self.upper.stands_in(self.text, &inner, char::is_uppercase)
            && self.lower.stands_in(self.text, &value, char::is_lowercase);
        !inner_capital && !self.telling.stands_in(self.text, &value, telling)
    }
}

impl Next {
    /// Whether such a character begins in the range.
    fn stands_in(&mut self, text: &str, range: &Range<usize>, is: impl Fn(char) -> bool) -> bool {
        if !(self.asked.start..=self.asked.end).contains(&range.start) || self.asked.is_empty() {
            let rest = text.get(range.start..).unwrap_or_default();
            self.asked = range.start..range.start + rest.find(is).unwrap_or(rest.len());
        }
        self.asked.end < range.end
    }
}

fn ends_value(c: char) -> bool {
    c.is_whitespace() || QUOTES.contains(&c)
}

/// Where what was found ends when it is cut out, in bytes of the text; it is known to go on to `known`.
pub(super) fn end(text: &str, found: &Range<usize>, known: usize) -> usize {
    let phrase = is_phrase(text, found);
    let rest = text.get(known..).unwrap_or_default();
    let stops = |c: char| if phrase { c == '\n' } else { ends_value(c) };
    known + rest.find(stops).unwrap_or(rest.len())
}

/// Whether what was found is a passphrase without quotes, which has blanks in it.
pub(super) fn is_phrase(text: &str, found: &Range<usize>) -> bool {
    let told = text.get(found.clone()).unwrap_or_default();
    if told.ends_with(QUOTES) {
        return false;
    }
    // What is found begins with a name only where it is an assignment.
    let Some((name, _)) = told.split_once(['=', ':']) else { return false };
    let name = name.trim_end_matches(|c| QUOTES.contains(&c) || c == ' ');
    secret_name(name) == Some("passphrase")
}

/// The kind of secret that a member holds whose name tells of `name`; see [`secret_name`].
pub(super) fn member_kind(name: &str, text: &str) -> Option<&'static str> {
    let text = cut(text.trim());
    let one_word = !text.contains(char::is_whitespace) || name == "passphrase";
    (one_word && is_value(text, LEAST_AFTER_EQUALS)).then_some("password")
}

/// A password in a URL, unless it is a template's.
pub(super) fn is_no_placeholder(text: &str) -> bool {
    is_value(text, 1)
}

/// What a member's name tells of, if it tells of a secret. Takes time for the name: ask once for all that is in the
/// member.
pub(super) fn secret_name(name: &str) -> Option<&'static str> {
    let plain = stage0_contract::plain(name);
    let squeezed: String = plain.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    NAMES.into_iter().find(|known| squeezed.ends_with(known))
}

fn is_value(text: &str, least: usize) -> bool {
    text.chars().nth(least.saturating_sub(1)).is_some() && !is_placeholder(text)
}

fn is_placeholder(text: &str) -> bool {
    // No word or beginning that is looked for is longer.
    let lower = text.get(..text.floor_char_boundary(MOST_TELLING)).unwrap_or_default().to_lowercase();
    let filler = text.chars().all(|c| matches!(c, '*' | 'x' | 'X' | '.' | '…' | '•' | '-' | '_' | '?' | '#'));
    let word = |c: char| c.is_alphabetic() || "<>[]_- ".contains(c);
    let bracketed = text.starts_with(['<', '[']) && text.chars().all(word);
    let template = ["${", "$(", "{{", "{%", "%("].iter().any(|t| text.starts_with(t));
    let variable = text.strip_prefix('$').is_some_and(|v| v.chars().all(|c| matches!(c, 'A'..='Z' | '0'..='9' | '_')));
    filler
        || bracketed
        || template
        || variable
        || (text.len() <= MOST_TELLING && PLACEHOLDERS.contains(&lower.as_str()))
        || REFERENCES.iter().any(|r| lower.starts_with(r))
}

fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MOST_JUDGED)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::super::patterns::{Detector, Suspects};
    use super::*;
    use crate::time_limit::TimeLimit;
    use proptest::prelude::*;

    fn replaced(text: &str) -> String {
        let detector = Detector::get();
        detector.replace(text, detector.suspects(text, Suspects::NONE), TimeLimit::NONE)
    }

    proptest! {
        #[test]
        fn what_is_remembered_of_a_text_changes_no_judgement(text in "[a-cA1=: '\"\n!é]{0,40}", bare in any::<bool>()) {
            let mut values = Values::of(&text);
            for (start, _) in text.char_indices() {
                prop_assert_eq!(values.at(start, bare), Values::of(&text).at(start, bare), "{}", start);
            }
        }
    }

    #[test]
    fn assigned_values_are_found() {
        for text in [
            "password=hunter22",
            "DB_PASSWORD = hunter",
            "password: hunter22",
            "the pwd: Tr0ub4dor&3",
            r#"{"password": "correcthorse"}"#,
            "api_key='abcd1234'",
            "apiKey: aB3dE6gH9",
            "client_secret => 'abcdef'",
            "clientSecret:=abcdef",
            "passphrase: \"correct horse battery staple\"",
            "secret: password: hunter22",
            "?access_token=abcdef123&x=1",
            "private-key = MIIEvQIBADANBg",
            "password: required, password: hunter22",
        ] {
            assert_eq!(Detector::get().any_kind(text, TimeLimit::NONE), Some("password"), "{text}");
        }
    }

    #[test]
    fn prose_and_placeholders_are_harmless() {
        for text in [
            "password: required",
            "Reset the password: user forgot it",
            "Password: must be rotated monthly",
            "secret: ingredients of the sauce",
            "password policy: 12 characters",
            "password=<your password>",
            "password=${DB_PASSWORD}",
            "password=$DB_PASSWORD",
            "password = {{ db_password }}",
            "password=********",
            "password: [redacted]",
            "password=xxxx",
            "api_key = os.environ['KEY']",
            "api_key: process.env.API_KEY",
            "PWD=/home/app/src2",
            "password == null",
            "client_secret: vault:kv/app1",
            "the secret: nobody knows",
            "password:",
        ] {
            assert_eq!(Detector::get().any_kind(text, TimeLimit::NONE), None, "{text}");
        }
    }

    #[test]
    fn a_telling_member_name_makes_its_value_a_secret() {
        let told = |name: &str, text: &str| secret_name(name).is_some_and(|name| member_kind(name, text).is_some());
        for (name, text) in [
            ("password", "correcthorse"),
            ("DB-Password", "hunter22"),
            ("clientSecret", "abcd"),
            ("api_key", "prod-key"),
            ("passphrase", "correct horse battery staple"),
            ("pass\u{200b}word", "hunter22"),
        ] {
            assert!(told(name, text), "{name}");
        }
        for (name, text) in [
            ("password", "required"),
            ("password", "user forgot it"),
            ("password", "***"),
            ("secret", "no"),
            ("password_policy", "strong-policy"),
            ("approval_status", "approved"),
            ("api_key", "${API_KEY}"),
            ("secret", "[redacted]"),
        ] {
            assert!(!told(name, text), "{name}: {text}");
        }
    }

    #[test]
    fn every_placeholder_fits_into_what_is_looked_at() {
        for word in PLACEHOLDERS.iter().chain(&REFERENCES) {
            assert!(word.len() <= MOST_TELLING, "{word}");
        }
        assert!(is_placeholder("Your_Password") && is_placeholder("process.env.API_KEY_OF_THE_WHOLE_SERVICE"));
        assert!(!is_placeholder("password-of-the-whole-service"));
    }

    #[test]
    fn values_within_values_are_each_found_and_cut_out_as_one() {
        let found = |text: &str| -> Vec<String> {
            let (detector, limit) = (Detector::get(), TimeLimit::NONE);
            let suspects = detector.suspects(text, Suspects::NONE);
            detector.hits(text, suspects, limit).map(|(_, hit)| hit.value(text).to_owned()).collect()
        };
        assert_eq!(found("secret=a1b2password=hunter22 x"), ["a1b2password=hunter22", "hunter22"]);
        assert_eq!(found("secret=none! password=hunter22 pwd='two words' x"), ["hunter22", "'two words'"]);
        for (text, masked) in [
            ("x secret=a1b2password=hunter22 y", "x [redacted] y"),
            ("x secret=a1b2passphrase=correct horse\ny", "x [redacted]\ny"),
            ("x passphrase=correct horse secret=hunter22 battery\ny", "x [redacted]\ny"),
            ("AKIAIOSFODNN7EXAMPLE.AKIAIOSFODNN7EXAMPLE. y", "[redacted] y"),
            ("pwd=hunter22 pwd=hunter23 y", "[redacted] [redacted] y"),
        ] {
            assert_eq!(replaced(text), masked, "{text}");
        }
    }

    #[test]
    fn what_clings_to_a_value_goes_with_it() {
        for (text, masked) in [
            ("open postgres://app:p@ss:w0rd@db/main now", "open [redacted] now"),
            ("passphrase=correct horse battery\nthen", "[redacted]\nthen"),
            ("passphrase: \"correct horse\" then", "[redacted] then"),
            (r#"{"password": "ab\"cd efgh", "x": 1}"#, r#"{"[redacted] "x": 1}"#),
            ("Bearer abc123def456ghi789:more x", "[redacted] x"),
        ] {
            assert_eq!(replaced(text), masked, "{text}");
        }
    }
}
