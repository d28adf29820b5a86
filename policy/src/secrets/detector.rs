//! Finding the forms of a pack in a text.
//!
//! One automaton searches for the trigger of every form, so that many forms cost little more than few; a form's own
//! pattern runs only if its trigger is found. The text after a name is read once, however many names precede it, so the
//! whole search is linear in the text.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use regex::{Regex, RegexBuilder};
use serde::Deserialize;
use stage0_contract::plain;

use super::assignment::Assignments;
use super::names::{NameKind, NameWords, Names};
use super::trigger::{LONG_WORD_BYTES, Trigger, is_word_byte};
use super::value::{ValueClassifier, ValueWords, end, has_digit};
use super::{REDACTED, trigger};
use crate::time_limit::TimeLimit;

/// The size limit of one compiled pattern: a counted repetition of a large class takes much memory.
const MAX_PATTERN_BYTES: usize = 1 << 20;
/// The cache of one pattern's lazy automaton, per thread.
const MAX_CACHE_BYTES: usize = 128 << 10;
/// Matches between two checks of the time limit.
const LOOKED_AT_TOGETHER: usize = 1_024;
/// The kind of a secret that is found by its name.
pub(super) const BY_NAME: &str = "password";

/// The additional condition on a match of a pattern.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Proof {
    /// None: the form suffices.
    #[default]
    Form,
    Digit,
    /// It mixes digits, capitals and small letters, or is long and has digits.
    Random,
    /// It looks like the value of an `Authorization` header and not like prose.
    Bearer,
    /// It is not a placeholder or a reference.
    Value,
    /// It is not a placeholder or a reference, and it has more than letters or more than digits.
    Password,
}

#[derive(Debug)]
pub(crate) struct Form {
    kind: String,
    regex: Regex,
    proof: Proof,
    trigger: Trigger,
}

impl Form {
    pub(crate) fn new(kind: &str, pattern: &str, proof: Proof) -> Result<Self, String> {
        let trigger = trigger::of(pattern)?;
        let built = RegexBuilder::new(pattern).size_limit(MAX_PATTERN_BYTES).dfa_size_limit(MAX_CACHE_BYTES).build();
        let regex = built.map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => "is too large when it is compiled: repeat less often".to_owned(),
            other => format!("is no regular expression: {}", other.to_string().replace('\n', "; ")),
        })?;
        Ok(Self { kind: kind.to_owned(), regex, proof, trigger })
    }
}

pub(super) struct Hit {
    /// The range to mask: the secret with its name or prefix.
    pub(super) whole: Range<usize>,
    /// The range of the secret itself, which must be masked everywhere.
    pub(super) value: Range<usize>,
    /// It extends to the end of its line.
    pub(super) phrase: bool,
}

/// The compiled forms, names and values of a pack.
pub struct Detector {
    forms: Vec<Form>,
    classifier: ValueClassifier,
    names: Names,
    search: AhoCorasick,
    /// For each trigger, the forms that need it; [`Detector::by_name`] stands for names.
    triggered: Vec<Vec<usize>>,
    for_long_words: Vec<usize>,
}

/// The result of the first search. Its negative answers are certain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Suspicion {
    /// A form or a name may match.
    pub(super) secret: bool,
    /// The text may contain a revealing name, for instance as a member name.
    pub(super) name: bool,
}

/// The forms that may match in a text, as a growable bit set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Suspects(Vec<u64>);

impl Suspects {
    fn has(&self, index: usize) -> bool {
        self.0.get(index / 64).is_some_and(|bits| bits & (1 << (index % 64)) != 0)
    }

    fn insert(&mut self, index: usize) {
        if self.0.len() <= index / 64 {
            self.0.resize(index / 64 + 1, 0);
        }
        if let Some(bits) = self.0.get_mut(index / 64) {
            *bits |= 1 << (index % 64);
        }
    }

    fn iter(&self) -> impl Iterator<Item = usize> + use<'_> {
        (0..self.0.len() * 64).filter(|index| self.has(*index))
    }
}

impl fmt::Debug for Detector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Detector").field("forms", &self.forms.len()).finish_non_exhaustive()
    }
}

impl Detector {
    pub(crate) fn new(forms: Vec<Form>, names: NameWords, values: ValueWords) -> Result<Self, String> {
        let names = Names::new(names)?;
        let mut by_trigger: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        let mut for_long_words = Vec::new();
        for (index, form) in forms.iter().enumerate() {
            match &form.trigger {
                Trigger::Fixed(parts) => parts.iter().for_each(|part| by_trigger.entry(part).or_default().push(index)),
                Trigger::LongWord => for_long_words.push(index),
            }
        }
        for anchor in names.anchors() {
            by_trigger.entry(anchor).or_default().push(forms.len());
        }
        let search = AhoCorasick::builder()
            .ascii_case_insensitive(true)
            .match_kind(MatchKind::Standard)
            .kind(Some(AhoCorasickKind::DFA))
            .build(by_trigger.keys())
            .map_err(|error| error.to_string())?;
        let triggered = by_trigger.into_values().collect();
        Ok(Self { forms, classifier: ValueClassifier::new(values), names, search, triggered, for_long_words })
    }

    pub(super) fn names(&self) -> &Names {
        &self.names
    }

    pub(super) fn member_is_secret(&self, kind: NameKind, text: &str) -> bool {
        self.classifier.is_member_secret(text, kind, &self.names)
    }

    /// The index that stands for names, after those of all forms.
    fn by_name(&self) -> usize {
        self.forms.len()
    }

    #[cfg(test)]
    pub(super) fn values_of<'a>(&'a self, text: &'a str) -> super::assignment::Values<'a> {
        super::assignment::Values::of(text, &self.names, &self.classifier)
    }

    pub(super) fn triggered(&self, text: &str, found: &mut Suspects) {
        let mut last = None;
        for place in self.search.find_overlapping_iter(text) {
            let id = place.pattern().as_usize();
            if last != Some(id) {
                self.triggered.get(id).into_iter().flatten().for_each(|index| found.insert(*index));
                last = Some(id);
            }
        }
        if has_long_word(text) {
            self.for_long_words.iter().for_each(|index| found.insert(*index));
        }
    }

    /// What may be in a text or in one of several that stand in it line by line. No form is proved: what fails its
    /// proof in all of them could hide another in one.
    pub(super) fn may_find(&self, text: &str, limit: TimeLimit) -> Suspicion {
        let mut suspects = Suspects::default();
        self.triggered(text, &mut suspects);
        let secret = suspects.iter().any(|index| match self.forms.get(index) {
            Some(form) => form.regex.is_match(text),
            None => self.secrets(index, text, limit).any(|_| true),
        });
        Suspicion { secret, name: suspects.has(self.by_name()) }
    }

    fn matches(&self, index: usize, text: &str, limit: TimeLimit) -> bool {
        self.forms.get(index).is_none_or(|form| form.regex.is_match(text))
            && self.secrets(index, text, limit).next().is_some()
    }

    /// The kind of the first secret in the text, raw or normalised. Means nothing once `limit` is reached.
    pub(super) fn kind(&self, text: &str, limit: TimeLimit) -> Option<&str> {
        let kind = |text: &str| {
            let mut suspects = Suspects::default();
            self.triggered(text, &mut suspects);
            let found = suspects.iter().find(|index| self.matches(*index, text, limit))?;
            Some(self.kind_of(found))
        };
        kind(text).or_else(|| if text.is_ascii() { None } else { kind(&plain(text)) })
    }

    fn kind_of(&self, index: usize) -> &str {
        self.forms.get(index).map_or(BY_NAME, |form| form.kind.as_str())
    }

    /// Every secret in the text as it stands, with its kind; not all of them once `limit` is reached.
    pub(super) fn hits(&self, text: &str, limit: TimeLimit) -> Vec<(&str, Hit)> {
        let mut suspects = Suspects::default();
        self.triggered(text, &mut suspects);
        let of_form = |index| self.secrets(index, text, limit).map(move |hit| (self.kind_of(index), hit));
        suspects.iter().flat_map(of_form).collect()
    }

    /// Whether the text may hold a secret; `false` is certain.
    pub(crate) fn suspects(&self, text: &str, limit: TimeLimit) -> bool {
        self.may_find(text, limit).secret || (!text.is_ascii() && self.may_find(&plain(text), limit).secret)
    }

    /// Replaces what can be cut out of the text. No pattern knows for certain where a value ends: what follows without
    /// a space or a quote goes with it, after the name of a passphrase the rest of the line. Means nothing once `limit`
    /// is reached.
    pub(super) fn replace(&self, text: &str, limit: TimeLimit) -> String {
        let mut hits: Vec<Hit> = self.hits(text, limit).into_iter().map(|(_, hit)| hit).collect();
        hits.sort_unstable_by_key(|hit| (hit.whole.start, hit.whole.end));
        let mut cuts: Vec<Range<usize>> = Vec::new();
        for hit in hits {
            match cuts.last_mut() {
                // Where the cut ends is known: it is asked again only from there on.
                Some(cut) if hit.whole.start < cut.end => {
                    if hit.whole.end > cut.end || hit.phrase {
                        cut.end = end(text, hit.phrase, hit.whole.end.max(cut.end));
                    }
                }
                _ => cuts.push(hit.whole.start..end(text, hit.phrase, hit.whole.end)),
            }
        }
        let mut masked = String::with_capacity(text.len());
        let mut kept = 0;
        for cut in cuts {
            masked.push_str(text.get(kept..cut.start).unwrap_or_default());
            masked.push_str(REDACTED);
            kept = cut.end;
        }
        masked.push_str(text.get(kept..).unwrap_or_default());
        masked
    }

    /// Where a form finds what is proved to be a secret, one after the other, until `limit`.
    fn secrets<'a>(&'a self, index: usize, text: &'a str, limit: TimeLimit) -> Box<dyn Iterator<Item = Hit> + 'a> {
        let mut looked_at = 0_usize;
        let mut in_time = move || {
            looked_at += 1;
            !looked_at.is_multiple_of(LOOKED_AT_TOGETHER) || limit.check().is_ok()
        };
        let Some(form) = self.forms.get(index) else {
            debug_assert_eq!(index, self.by_name(), "all that is no form is the names");
            let places = Assignments::of(text, &self.names, &self.classifier);
            return Box::new(places.take_while(move |_| in_time()).flatten());
        };
        let captures = form.regex.captures_iter(text).take_while(move |_| in_time());
        Box::new(captures.filter_map(|found| {
            let whole = found.get(0)?.range();
            let value = found.iter().skip(1).flatten().next().map_or(whole.clone(), |group| group.range());
            let proved = self.proves(form.proof, text.get(value.clone())?);
            proved.then_some(Hit { whole, value, phrase: false })
        }))
    }

    fn proves(&self, proof: Proof, value: &str) -> bool {
        match proof {
            Proof::Form => true,
            Proof::Digit => has_digit(value),
            Proof::Random => is_random(value),
            Proof::Bearer => {
                (has_digit(value) || value.len() >= 16 || has_humps(value)) && self.classifier.may_be_secret(value, 1)
            }
            Proof::Value => self.classifier.may_be_secret(value, 1),
            Proof::Password => {
                let letters = value.chars().any(char::is_alphabetic);
                let others = value.chars().any(|c| !c.is_alphabetic());
                letters && others && self.classifier.is_secret(value, NameKind::Password, 4)
            }
        }
    }
}

impl Hit {
    pub(super) fn value<'t>(&self, text: &'t str) -> &'t str {
        text.get(self.value.clone()).unwrap_or_default()
    }
}

fn has_long_word(text: &str) -> bool {
    let bytes = text.as_bytes();
    // Looks at each 24th byte first: a word of 24 holds one of them.
    let mut at = LONG_WORD_BYTES - 1;
    while let Some(byte) = bytes.get(at) {
        if is_word_byte(*byte) {
            let (before, after) = bytes.split_at(at);
            let is_word = |byte: &&u8| is_word_byte(**byte);
            let back = before.iter().rev().take(LONG_WORD_BYTES).take_while(is_word).count();
            let on = after.iter().take(LONG_WORD_BYTES).take_while(is_word).count();
            if back + on >= LONG_WORD_BYTES {
                return true;
            }
        }
        at += LONG_WORD_BYTES;
    }
    false
}

/// Capitals among small letters.
fn has_humps(token: &str) -> bool {
    token.bytes().skip(1).any(|b| b.is_ascii_uppercase()) && token.bytes().any(|b| b.is_ascii_lowercase())
}

/// Digits among capitals and small letters, or long with digits: no hyphenated prose.
fn is_random(token: &str) -> bool {
    let upper = token.bytes().any(|b| b.is_ascii_uppercase());
    has_digit(token) && (upper || token.len() >= 40 || !token.contains(['-', '_', '.', ' ']))
}

#[cfg(test)]
mod tests {
    use super::super::{baseline, find_within};
    use super::*;

    #[test]
    fn a_set_of_forms_has_no_end() {
        let mut suspects = Suspects::default();
        [700, 3, 64, 63].into_iter().for_each(|index| suspects.insert(index));
        assert_eq!(suspects.iter().collect::<Vec<_>>(), [3, 63, 64, 700]);
        assert!(suspects.has(700) && !suspects.has(701) && !suspects.has(4));
    }

    #[test]
    fn a_long_word_is_seen_wherever_it_stands() {
        for before in 0..60 {
            for length in [23, 24, 25, 60] {
                let text = format!("{} {} {}", "é ".repeat(before), "a".repeat(length), "b ".repeat(before % 7));
                assert_eq!(has_long_word(&text), length >= LONG_WORD_BYTES, "{before} {length}");
            }
        }
    }

    #[test]
    fn a_search_within_one_text_ends_with_its_time() {
        let text = format!("{}password=hunter22", "secret: none ".repeat(2 * LOOKED_AT_TOGETHER));
        assert_eq!(baseline().kind(&text, TimeLimit::NONE), Some("password"));
        assert_eq!(baseline().kind(&text, TimeLimit::over()), None, "who asks looks at the time, too");
        let request = stage0_contract::CheckRequest::parse(serde_json::json!({"goal": "g", "context": {"n": text}}));
        assert!(find_within(&request.unwrap(), baseline(), TimeLimit::over()).is_err());
    }

    #[test]
    fn what_no_proof_holds_for_hides_nothing_in_the_next_text() {
        let body = serde_json::json!({"goal": "g", "constraints": ["authorization: bearer"],
            "tools": ["Authorization: Bearer abc123def"]});
        let request = stage0_contract::CheckRequest::parse(body).unwrap();
        let found = find_within(&request, baseline(), TimeLimit::NONE).unwrap();
        assert_eq!(found.iter().map(|found| found.path.as_str()).collect::<Vec<_>>(), ["tools[0]"]);
    }
}
