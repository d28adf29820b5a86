//! Hides the secrets of a request in what is kept of it.
//!
//! Owns the second look: a value that was found in one place is hidden in every other, where it may look like any word. A text is
//! masked as a whole where a part could be left over. INVARIANT: with more secrets than are worth telling apart nothing is shown.

use serde_json::{Map, Value};
use stage0_contract::{CheckRequest, visible};

use super::patterns::Detector;
use super::{REDACTED, assignment, each_text, mask, suspects};

/// Different secrets of one request that are looked for everywhere: the search takes time for each.
const MOST_VALUES: usize = 32;
/// Shorter values stand in half of all words; where they were found they are hidden all the same.
const LEAST_CHARS: usize = 4;
const PEM_KIND: &str = "private_key";
const PEM_END: &str = "-----END";

/// What is known of the secrets of one request.
#[derive(Debug, Default)]
pub(crate) struct Masking {
    /// As [`visible`] makes them.
    values: Vec<String>,
    nothing_shown: bool,
}

impl Masking {
    /// Looks for secrets in a request and in texts that came beside it.
    pub(crate) fn of<'t>(request: &CheckRequest, beside: impl IntoIterator<Item = &'t str>) -> Self {
        let mut masking = Self::default();
        each_text(request, &mut |_, member, text| masking.note(member, text));
        beside.into_iter().for_each(|text| masking.note(None, text));
        masking
    }

    /// The text with every secret in it replaced, this request's own wherever they stand.
    pub(crate) fn text(&self, text: &str) -> String {
        if self.nothing_shown {
            return REDACTED.to_owned();
        }
        let masked = mask(text);
        if self.values.is_empty() {
            return masked;
        }
        let seen = visible(&masked);
        if self.values.iter().any(|value| seen.contains(value)) { REDACTED.to_owned() } else { masked }
    }

    /// An object, its names and all that it holds.
    pub(crate) fn members(&self, members: &Map<String, Value>) -> Map<String, Value> {
        self.members_in(members, None)
    }

    /// `telling` is the innermost name around that tells of a secret.
    fn members_in(&self, members: &Map<String, Value>, telling: Option<&str>) -> Map<String, Value> {
        let mut shown = Map::new();
        for (name, value) in members {
            let telling = Some(name.as_str()).filter(|name| assignment::is_secret_name(name)).or(telling);
            let mut name = self.text(name);
            if shown.contains_key(&name) {
                name = format!("{name} ({})", shown.len());
            }
            shown.insert(name, self.value(value, telling));
        }
        shown
    }

    fn value(&self, value: &Value, telling: Option<&str>) -> Value {
        let told = |text: &str| telling.is_some_and(|name| assignment::member_kind(name, text).is_some());
        match value {
            Value::String(text) if told(text) => REDACTED.into(),
            Value::String(text) => self.text(text).into(),
            Value::Array(items) => items.iter().map(|item| self.value(item, telling)).collect(),
            Value::Object(members) => self.members_in(members, telling).into(),
            Value::Number(number) => {
                let text = number.to_string();
                if told(&text) || self.text(&text) != text { REDACTED.into() } else { value.clone() }
            }
            Value::Null | Value::Bool(_) => value.clone(),
        }
    }

    fn note(&mut self, member: Option<&str>, text: &str) {
        if self.nothing_shown {
            return;
        }
        if member.is_some_and(|name| assignment::member_kind(name, text).is_some()) {
            self.hide(text);
        }
        if suspects(text) {
            self.note_hits(text);
            if !text.is_ascii() {
                self.note_hits(&stage0_contract::plain(text));
            }
        }
    }

    fn note_hits(&mut self, text: &str) {
        for (kind, hit) in Detector::get().hits(text) {
            let value = hit.value(text);
            self.hide(value);
            // Its lines may go on in other texts, where they look like nothing.
            self.nothing_shown |= kind == PEM_KIND && !value.contains(PEM_END);
        }
    }

    fn hide(&mut self, value: &str) {
        let value = visible(value.trim_matches(|c: char| c.is_whitespace() || "\"'`.,;)]}!?".contains(c)));
        if value.chars().count() < LEAST_CHARS || self.values.contains(&value) {
            return;
        }
        self.values.push(value);
        self.nothing_shown |= self.values.len() > MOST_VALUES;
    }
}
