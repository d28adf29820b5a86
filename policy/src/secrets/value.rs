//! Whether a value is a secret, or a placeholder, a reference, a requirement or an ordinary name.
//!
//! After `=` or in quotes nearly everything counts as a password; a token or a key only if a machine could have
//! generated it, since people write `secret: db-main`.

use super::names::{NameKind, Names, parts};

/// In bytes; longer values are cut for the judgement, not for the masking.
const MAX_JUDGED: usize = 256;
/// Longer than any of the words of a pack's placeholders and references, in bytes.
pub(crate) const MAX_TELLING: usize = 24;
/// Letters and digits of what looks random.
const MIN_TOKEN: usize = 8;
/// The same where the name reveals little.
const MIN_HINTED: usize = 20;
const MIN_MEMBER_CHARS: usize = 4;
/// What stands before a secret in an `Authorization` header.
const SCHEMES: [&str; 5] = ["basic", "bearer", "token", "apikey", "digest"];
/// What the name of a thing or a sentence about values has at most; longer values are not read word by word.
const MAX_WORDS_BYTES: usize = 96;
const MAX_NAME_PART: usize = 24;
pub(super) const QUOTES: [char; 3] = ['"', '\'', '`'];

#[derive(Debug, Default)]
pub(crate) struct ValueWords {
    pub(crate) placeholders: Vec<String>,
    pub(crate) references: Vec<String>,
    pub(crate) requirements: Vec<String>,
    pub(crate) ordinary: Vec<String>,
    pub(crate) links: Vec<String>,
}

#[derive(Debug)]
pub(super) struct ValueClassifier(ValueWords);

impl ValueClassifier {
    pub(super) fn new(mut words: ValueWords) -> Self {
        words.placeholders.sort_unstable();
        words.requirements.sort_unstable();
        words.ordinary.sort_unstable();
        // The longest first: `is` begins no `ist`.
        words.links.sort_unstable_by_key(|link| std::cmp::Reverse(link.len()));
        Self(words)
    }

    pub(super) fn links(&self) -> impl Iterator<Item = &str> {
        self.0.links.iter().map(String::as_str)
    }

    /// What a name of this kind makes a secret of; `least` in characters.
    pub(super) fn is_secret(&self, text: &str, kind: NameKind, least: usize) -> bool {
        let text = cut(text);
        let judged = text.trim_end_matches(['.', ',', ';', ')', ']', '}', '!', '?', '\\']);
        let judged = first_field(judged);
        if !self.may_be_secret(judged, least) || is_expression(judged) || is_date(judged) || self.is_requirement(judged)
        {
            return false;
        }
        let thing = self.names_a_thing(judged);
        match kind {
            NameKind::Password | NameKind::Phrase => !(thing && judged.contains('/')),
            NameKind::Secret => !thing && !is_small_number(judged),
            NameKind::Token => !thing && looks_random(judged, MIN_TOKEN),
            NameKind::Hint => {
                !thing && looks_random(judged, MIN_HINTED) && !is_uuid(judged) && !is_hex(judged) && is_mixed(judged)
            }
        }
    }

    pub(super) fn may_be_secret(&self, text: &str, least: usize) -> bool {
        text.chars().nth(least.saturating_sub(1)).is_some() && !self.is_placeholder(cut(text))
    }

    fn is_placeholder(&self, text: &str) -> bool {
        // No word or beginning that is looked for is longer.
        let lower = text.get(..text.floor_char_boundary(MAX_TELLING)).unwrap_or_default().to_lowercase();
        let filler =
            text.chars().all(|c| matches!(c, '*' | 'x' | 'X' | '.' | '…' | '•' | '●' | '-' | '_' | '?' | '#' | '0'));
        let word = |c: char| c.is_alphanumeric() || "<>[]{}_- :.".contains(c);
        let bracketed = text.starts_with(['<', '[', '{', '%', ':', '@'])
            && text.chars().skip(1).all(|c| word(c) || c == '%')
            && text.chars().any(char::is_alphabetic)
            && !has_digit(text);
        let template = ["${", "$(", "{{", "{%", "%(", "#{", "<%", "@{", "[["].iter().any(|t| text.starts_with(t));
        let is_name = |v: &str| !v.is_empty() && v.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let variable = text.strip_prefix('$').is_some_and(|v| {
            let v = v.strip_prefix("env:").unwrap_or(v);
            is_name(v) && (!has_digit(v) || v.bytes().all(|b| !b.is_ascii_lowercase()) || v.len() == 1)
        });
        let starred = text.chars().filter(|c| matches!(c, '*' | '•' | '●')).count() >= 4;
        filler
            || bracketed
            || template
            || variable
            || starred
            || (text.len() <= MAX_TELLING && self.0.placeholders.binary_search(&lower).is_ok())
            || self.0.references.iter().any(|r| lower.starts_with(r.as_str()))
    }

    /// A sentence about values: `minimum-12-characters`.
    fn is_requirement(&self, text: &str) -> bool {
        if text.len() > MAX_WORDS_BYTES {
            return false;
        }
        let parts = parts(text);
        parts.len() >= 2
            && parts.len() <= 12
            && parts.iter().all(|part| part.len() <= MAX_NAME_PART)
            && parts.iter().any(|part| self.0.requirements.binary_search(part).is_ok())
            && !text.contains(['!', '@', '#', '$', '%', '^', '&', '*'])
    }

    /// An ordinary name: words of one case, at most half of them with a short number, such as `production-key-2`.
    fn names_a_thing(&self, text: &str) -> bool {
        if text.len() > MAX_WORDS_BYTES {
            return false;
        }
        let mut words = 0;
        let (mut numbered, mut lettered) = (0, 0);
        for word in text.split(['-', '_', '.', '/', ':', '@', ' ', '#', '=', ',']).filter(|word| !word.is_empty()) {
            words += 1;
            let letters = word.trim_end_matches(|c: char| c.is_ascii_digit());
            let digits = word.len() - letters.len();
            let cased =
                letters.chars().skip(1).all(|c| !c.is_uppercase()) || letters.chars().all(|c| !c.is_lowercase());
            if digits > 4 || letters.len() > MAX_NAME_PART || !cased || !letters.chars().all(char::is_alphabetic) {
                return false;
            }
            numbered += usize::from(digits > 0);
            lettered += usize::from(!letters.is_empty());
        }
        let known = || {
            let lower = text.get(..text.floor_char_boundary(MAX_TELLING)).unwrap_or_default().to_lowercase();
            let word = lower.trim_end_matches(|c: char| c.is_ascii_digit());
            self.0.ordinary.iter().any(|known| known == &lower || known == word)
        };
        lettered > 0 && numbered * 2 <= words && (words > 1 || known()) || words == 1 && known()
    }

    pub(super) fn is_member_secret(&self, text: &str, kind: NameKind, names: &Names) -> bool {
        let text = cut(text.trim());
        if let Some((scheme, rest)) = text.split_once(' ')
            && SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known))
        {
            return self.is_secret(rest.trim_start(), kind.max(NameKind::Secret), 6);
        }
        if kind == NameKind::Hint && text.contains('=') {
            let random = |part: &str| looks_random(part, 2 * MIN_TOKEN) && !is_uuid(part) && !self.names_a_thing(part);
            return text.split([';', ' ', '=', ',']).any(random);
        }
        let one_word = !text.contains(char::is_whitespace) || kind == NameKind::Phrase;
        one_word && self.is_secret(text, kind, MIN_MEMBER_CHARS) && !self.is_variable(text, names)
    }

    /// A variable that is named for what it holds: `userPassword`, `db_password`.
    pub(super) fn is_variable(&self, text: &str, names: &Names) -> bool {
        let text = cut(text).trim_end_matches(['.', ',', ';', ')', ']', '}', '!', '?']);
        let name = |c: char| c.is_alphabetic() || c == '_' || c == '-' || c == '.';
        text.len() <= 2 * MAX_NAME_PART
            && text.chars().all(name)
            && parts(text).len() >= 2
            && parts(text).len() <= 4
            && names.kind(text).is_some()
    }

    /// In a sentence, after `is`: letters and digits together.
    pub(super) fn is_secret_after_is(&self, text: &str, kind: NameKind) -> bool {
        let letters = text.chars().any(char::is_alphabetic);
        let compound = text.contains(['-', '/', '.']) && self.names_a_thing(text.trim_end_matches(['.', ',']));
        letters && has_digit(text) && !compound && self.is_secret(text, kind, 6)
    }

    /// In a sentence, straight after the name: nothing that is written of a password but the password.
    pub(super) fn is_secret_after_nothing(&self, text: &str, kind: NameKind) -> bool {
        let least = if kind >= NameKind::Password { MIN_TOKEN } else { 2 * MIN_TOKEN };
        let chars: Vec<char> = cut(text).chars().collect();
        let inner = chars.windows(3).any(|three| match three {
            [a, b, c] => a.is_alphabetic() && b.is_ascii_digit() && c.is_alphabetic(),
            _ => false,
        });
        inner
            && chars.len() >= least
            && chars.iter().any(|c| c.is_uppercase())
            && chars.iter().any(|c| c.is_lowercase())
            && !text.contains(['-', '/', '.', '_', '('])
            && self.is_secret(text, kind, least)
    }
}

/// Of `a&user=b` and `a;user=b` the first.
fn first_field(text: &str) -> &str {
    match text.find(['&', ';']) {
        Some(at) if text.get(at..).is_some_and(|rest| rest.contains('=')) => text.get(..at).unwrap_or(text),
        _ => text,
    }
}

/// Code that yields the value: `getpass.getpass()`, `req.body.password`, `config["password"]`, `Secret::new`.
fn is_expression(text: &str) -> bool {
    let text = text.trim_start_matches(['&', '*', '@', '!', '$', '(']);
    let (head, called) = match text.find(['(', '[', '{']) {
        Some(at) => (text.get(..at).unwrap_or_default(), true),
        None => (text, false),
    };
    let head = head.trim_end_matches(['.', ':', '?', '!']);
    let mut names = 0;
    for name in head.split(['.', ':', '>', '?']).map(|name| name.trim_end_matches('-')).filter(|name| !name.is_empty())
    {
        let first = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_' || c == '$');
        // A digit between letters is more often a token's than a name's.
        let inner = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let digits = inner.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty()).count();
        if !first
            || name.len() > 40
            || digits > 1
            || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'$')
        {
            return false;
        }
        names += 1;
    }
    let joined = head.contains('.') || head.contains("::") || head.contains("->");
    names > 0 && if called { true } else { joined && names > 1 && !has_digit(head) || joined && names > 2 }
}

fn is_date(text: &str) -> bool {
    let digits = |range: std::ops::Range<usize>| text.get(range).is_some_and(|d| d.bytes().all(|b| b.is_ascii_digit()));
    let bytes = text.as_bytes();
    digits(0..4) && digits(5..7) && digits(8..10) && bytes.get(4) == Some(&b'-') && bytes.get(7) == Some(&b'-')
}

fn is_small_number(text: &str) -> bool {
    text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_mixed(text: &str) -> bool {
    has_digit(text) && text.bytes().any(|b| b.is_ascii_uppercase()) && text.bytes().any(|b| b.is_ascii_lowercase())
}

/// One word with at least two digits among letters, or a long one of mixed case.
fn looks_random(text: &str, least: usize) -> bool {
    let plausible = |c: char| c.is_ascii_alphanumeric() || "-_.~+/=%:|!@#$^&*".contains(c);
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    let letters = text.bytes().filter(u8::is_ascii_alphabetic).count();
    let capitals = text.bytes().skip(1).filter(u8::is_ascii_uppercase).count();
    let long = letters >= 20 && capitals >= 4 && capitals + 4 <= letters && !text.contains(' ');
    text.len() >= least && text.chars().all(plausible) && letters >= 1 && (digits >= 2 || long) && !is_version(text)
}

/// `v1.2.3`, `2026-03-15T09:30:00Z`, `10.0.0.1:8080`.
fn is_version(text: &str) -> bool {
    let letters = text.bytes().filter(u8::is_ascii_alphabetic).count();
    letters <= 2 && text.bytes().any(|b| matches!(b, b'.' | b':' | b'-'))
}

pub(super) fn has_digit(text: &str) -> bool {
    text.bytes().any(|b| b.is_ascii_digit())
}

fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_JUDGED)).unwrap_or(text)
}

pub(super) fn ends_value(c: char) -> bool {
    c.is_whitespace() || QUOTES.contains(&c)
}

/// Where what was found ends when it is cut out, in bytes of the text; it is known to go on to `known`.
pub(super) fn end(text: &str, phrase: bool, known: usize) -> usize {
    let rest = text.get(known..).unwrap_or_default();
    let stops = |c: char| if phrase { c == '\n' } else { ends_value(c) };
    known + rest.find(stops).unwrap_or(rest.len())
}
