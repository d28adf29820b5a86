//! Names that reveal a secret as their value, matched by their parts: `DB_PASS`, `clientSecret1`, `mot de passe`.
//!
//! The words after the revealing ones count too: `token_count` reveals nothing, `PASSWORD_PROD` a password.

use std::collections::{HashMap, HashSet};

use aho_corasick::{AhoCorasick, AhoCorasickKind};
use stage0_contract::plain;

/// How much a name reveals: the more it does, the less its value must look like a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NameKind {
    /// What is long and random there is a secret.
    Hint,
    /// What is random there.
    Token,
    /// What a machine made, whatever is no name of a thing.
    Secret,
    /// What a person chose; any word.
    Password,
    /// The same in several words.
    Phrase,
}

#[derive(Debug, Default)]
pub(crate) struct NameWords {
    /// Each with its parts side by side.
    pub(crate) telling: Vec<(String, NameKind)>,
    pub(crate) other_before: Vec<String>,
    pub(crate) ends_meaning: Vec<String>,
    pub(crate) keeps_meaning: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Names {
    telling: HashMap<String, NameKind>,
    /// Those that a longer word may end with.
    endings: Vec<(String, NameKind)>,
    other_before: HashSet<String>,
    ends_meaning: HashSet<String>,
    keeps_meaning: HashSet<String>,
    anchors: Vec<String>,
    search: AhoCorasick,
}

/// Letters of a word that may end another: `dbpassword`.
const MIN_ENDING_CHARS: usize = 6;
const MAX_WORDS: usize = 5;
/// Bytes of a name that are read; longer ones from their end.
const MAX_NAME_BYTES: usize = 96;

impl Names {
    pub(super) fn new(words: NameWords) -> Result<Self, String> {
        let anchors = anchors_of(&words.telling);
        let search =
            AhoCorasick::builder().ascii_case_insensitive(true).kind(Some(AhoCorasickKind::DFA)).build(&anchors);
        let telling: HashMap<String, NameKind> =
            words.telling.iter().map(|(name, kind)| (parts(name).concat(), *kind)).collect();
        let is_ending = |name: &str| name.chars().count() >= MIN_ENDING_CHARS || !name.is_ascii();
        let mut endings: Vec<(String, NameKind)> =
            telling.clone().into_iter().filter(|(name, _)| is_ending(name)).collect();
        endings.sort_unstable_by(|(a, _), (b, _)| (b.len(), b).cmp(&(a.len(), a)));
        Ok(Self {
            telling,
            endings,
            other_before: words.other_before.into_iter().collect(),
            ends_meaning: words.ends_meaning.into_iter().collect(),
            keeps_meaning: words.keeps_meaning.into_iter().collect(),
            search: search.map_err(|error| error.to_string())?,
            anchors,
        })
    }

    /// Each telling name has one of these texts, in any case.
    pub(super) fn anchors(&self) -> &[String] {
        &self.anchors
    }

    pub(super) fn places<'s>(&'s self, text: &'s str) -> impl Iterator<Item = std::ops::Range<usize>> + use<'s> {
        self.search.find_iter(text).map(|found| found.range())
    }

    /// What a member's name reveals. Ask once for all that is in the member.
    pub(super) fn member(&self, name: &str) -> Option<NameKind> {
        if !name.is_ascii() {
            return self.kind(&plain(name));
        }
        if self.search.is_match(name) { self.kind(name) } else { None }
    }

    /// What a name reveals, by the last of its telling words.
    pub(super) fn kind(&self, name: &str) -> Option<NameKind> {
        let from = name.ceil_char_boundary(name.len().saturating_sub(MAX_NAME_BYTES));
        let parts = parts(name.get(from..)?);
        let joined = |from: usize, to: usize| parts.get(from..to).unwrap_or_default().concat();
        for end in (1..=parts.len()).rev() {
            for start in end.saturating_sub(MAX_WORDS)..end {
                let exact = self.telling.get(&joined(start, end)).copied();
                let kind = exact.or_else(|| {
                    let word = (start + 1 == end).then(|| parts.get(start)).flatten()?;
                    self.endings.iter().find(|(ending, _)| word.ends_with(ending)).map(|(_, kind)| *kind)
                });
                if let Some(kind) = kind {
                    let before = start.checked_sub(1).and_then(|at| parts.get(at));
                    if exact.is_some() && before.is_some_and(|word| self.other_before.contains(word)) {
                        return None;
                    }
                    return self.after(kind, parts.get(end..).unwrap_or_default());
                }
            }
        }
        None
    }

    fn after(&self, mut kind: NameKind, rest: &[String]) -> Option<NameKind> {
        for word in rest {
            if self.ends_meaning.contains(word) {
                return None;
            }
            let keeps = self.keeps_meaning.contains(word) || word.chars().count() == 1 || is_number(word);
            if !keeps {
                kind = kind.min(NameKind::Token);
            }
        }
        Some(kind)
    }
}

/// A word of each telling name that every spelling of it has. Each is searched for in every text, so they must be few.
fn anchors_of(telling: &[(String, NameKind)]) -> Vec<String> {
    let mut anchors: Vec<String> =
        telling.iter().map(|(name, _)| name.clone()).filter(|name| !name.contains(' ')).collect();
    for (name, _) in telling.iter().filter(|(name, _)| name.contains(' ')) {
        if !name.split(' ').any(|word| anchors.iter().any(|anchor| word.contains(anchor.as_str()))) {
            anchors.extend(name.split(' ').max_by_key(|word| word.len()).map(str::to_owned));
        }
    }
    // The search folds the case of ASCII letters only.
    let cases = |anchor: String| {
        let capital = anchor.chars().next().map(char::to_uppercase).into_iter().flatten();
        let capitalised: String = capital.chain(anchor.chars().skip(1)).collect();
        let upper = anchor.to_uppercase();
        if anchor.is_ascii() { vec![anchor] } else { vec![anchor, capitalised, upper] }
    };
    let mut anchors: Vec<String> = anchors.into_iter().flat_map(cases).collect();
    anchors.sort_unstable();
    anchors.dedup();
    anchors
}

fn is_number(word: &str) -> bool {
    word.bytes().all(|byte| byte.is_ascii_digit())
}

/// The words of a name in small letters: at separators, before capitals, between letters and digits.
pub(super) fn parts(name: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    let mut part = String::new();
    let mut before = None;
    let mut chars = name.chars().peekable();
    while let Some(c) = chars.next() {
        let hump = |before: char| {
            let next_small = chars.peek().is_some_and(|next| next.is_lowercase());
            c.is_uppercase() && (before.is_lowercase() || (before.is_uppercase() && next_small))
                || c.is_ascii_digit() != before.is_ascii_digit()
        };
        let ends = !c.is_alphanumeric() || before.is_some_and(hump);
        if ends && !part.is_empty() {
            parts.push(std::mem::take(&mut part));
        }
        before = c.is_alphanumeric().then_some(c);
        if c.is_alphanumeric() {
            part.extend(c.to_lowercase());
        }
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::baseline;

    fn kind(name: &str) -> Option<NameKind> {
        baseline().names().member(name)
    }

    #[test]
    fn names_are_read_by_their_parts() {
        assert_eq!(parts("DBPassword2"), ["db", "password", "2"]);
        assert_eq!(parts("clientSecret.API-Key_v2"), ["client", "secret", "api", "key", "v", "2"]);
        for (name, wanted) in [
            ("password", NameKind::Password),
            ("DB-Password", NameKind::Password),
            ("dbpassword", NameKind::Password),
            ("DB_PASS", NameKind::Password),
            ("password1", NameKind::Password),
            ("PASSWORD_PROD", NameKind::Password),
            ("passwordConfirm", NameKind::Password),
            ("pass\u{200b}word", NameKind::Password),
            ("passWord", NameKind::Password),
            ("Contraseña", NameKind::Password),
            ("ПАРОЛЬ", NameKind::Password),
            ("数据库密码", NameKind::Password),
            ("mot_de_passe", NameKind::Password),
            ("clientSecret", NameKind::Secret),
            ("X-Api-Key", NameKind::Secret),
            ("APIKEY", NameKind::Secret),
            ("SECRET_KEY_BASE", NameKind::Secret),
            ("AWS_SECRET_ACCESS_KEY", NameKind::Secret),
            ("credentials", NameKind::Secret),
            ("token", NameKind::Token),
            ("JSESSIONID", NameKind::Token),
            ("session", NameKind::Hint),
            ("passphrase", NameKind::Phrase),
        ] {
            assert_eq!(kind(name), Some(wanted), "{name}");
        }
    }

    #[test]
    fn what_follows_or_precedes_a_telling_word_can_make_it_another() {
        for name in [
            "password_policy",
            "passwordless",
            "token_count",
            "max_tokens",
            "next_page_token",
            "pageToken",
            "public_key",
            "cache_key",
            "AWS_ACCESS_KEY_ID",
            "secret_name",
            "secretArn",
            "api_key_id",
            "password_changed_at",
            "session_id",
            "idempotency-key",
            "approval_status",
            "bypass",
            "compass",
            "monkey",
            "tokenizer",
        ] {
            assert_eq!(kind(name), None, "{name}");
        }
    }
}
