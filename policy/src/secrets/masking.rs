//! Masks the secrets of a request in the texts that are stored.
//!
//! A value that was found in one place is masked everywhere, even where it looks like an ordinary word. A text is
//! masked as a whole if a part of a secret could be left over.
//! INVARIANT: if a request has too many different secrets, or one that is too long to search for, all its texts are
//! masked.

use std::ops::ControlFlow;

use serde_json::{Map, Value};
use stage0_contract::{CheckRequest, visible};

use super::detector::Detector;
use super::names::NameKind;
use super::{REDACTED, each_text, mask_within, revealed_by_option, telling};
use crate::time_limit::{OutOfTime, TimeLimit};

/// The most different secrets of one request: each is searched for in every text.
const MAX_VALUES: usize = 32;
/// Shorter values occur in many words, so they are masked only where they were found.
const MIN_CHARS: usize = 4;
/// The longest value in bytes that is searched for everywhere: longer than any private key in use.
const MAX_VALUE_BYTES: usize = 16_384;
const PEM_KIND: &str = "private_key";
const PEM_END: &str = "-----END";

#[derive(Debug)]
pub(crate) struct Masking<'d> {
    detector: &'d Detector,
    /// The values as [`visible`] normalises them. None contains another one, which is searched for in its place.
    values: Vec<String>,
    /// How many different ones there were.
    noted: usize,
    nothing_shown: bool,
    limit: TimeLimit,
}

impl<'d> Masking<'d> {
    /// Without known values: only what a form or a name reveals is masked.
    pub(crate) fn new(detector: &'d Detector, limit: TimeLimit) -> Self {
        Self { detector, values: Vec::new(), noted: 0, nothing_shown: false, limit }
    }

    pub(crate) fn of<'t>(
        request: &CheckRequest,
        beside: impl IntoIterator<Item = &'t str>,
        detector: &'d Detector,
        limit: TimeLimit,
    ) -> Result<Self, OutOfTime> {
        let mut masking = Self::new(detector, limit);
        let mut in_time = Ok(());
        let _ = each_text(request, Some(detector), &mut |_, member, text| {
            in_time = limit.check();
            if in_time.is_ok() { masking.note(member, text) } else { ControlFlow::Break(()) }
        });
        in_time?;
        for text in beside {
            if masking.note(None, text).is_break() {
                break;
            }
        }
        limit.check()?;
        Ok(masking)
    }

    pub(crate) fn text(&self, text: &str) -> Result<String, OutOfTime> {
        self.limit.check()?;
        if self.nothing_shown {
            return Ok(REDACTED.to_owned());
        }
        let masked = mask_within(text, self.detector, self.limit);
        self.limit.check()?;
        if self.values.is_empty() {
            return Ok(masked);
        }
        let seen = visible(&masked);
        Ok(if self.values.iter().any(|value| seen.contains(value)) { REDACTED.to_owned() } else { masked })
    }

    pub(crate) fn members(&self, members: &Map<String, Value>) -> Result<Map<String, Value>, OutOfTime> {
        self.members_in(members, None)
    }

    /// `around` is what the innermost revealing name around the value implies.
    fn members_in(
        &self,
        members: &Map<String, Value>,
        around: Option<NameKind>,
    ) -> Result<Map<String, Value>, OutOfTime> {
        let mut shown = Map::with_capacity(members.len());
        for (name, value) in members {
            let telling = telling(self.detector, members, name).or(around);
            let mut name = self.text(name)?;
            if shown.contains_key(&name) {
                name = format!("{name} ({})", shown.len());
            }
            shown.insert(name, self.value(value, telling)?);
        }
        Ok(shown)
    }

    fn value(&self, value: &Value, telling: Option<NameKind>) -> Result<Value, OutOfTime> {
        let told = |text: &str| telling.is_some_and(|kind| self.detector.member_is_secret(kind, text));
        Ok(match value {
            Value::String(text) if told(text) => REDACTED.into(),
            Value::String(text) => self.text(text)?.into(),
            Value::Array(items) => {
                let before = std::iter::once(None).chain(items.iter().map(Some));
                let shown = items.iter().zip(before).map(|(item, before)| {
                    self.value(item, telling.or_else(|| revealed_by_option(self.detector, before)))
                });
                Value::Array(shown.collect::<Result<_, _>>()?)
            }
            Value::Object(members) => self.members_in(members, telling)?.into(),
            Value::Number(number) => {
                let text = number.to_string();
                if told(&text) || self.text(&text)? != text { REDACTED.into() } else { value.clone() }
            }
            Value::Null | Value::Bool(_) => value.clone(),
        })
    }

    /// Stops early once everything is masked anyway.
    fn note(&mut self, member: Option<NameKind>, text: &str) -> ControlFlow<()> {
        if member.is_some_and(|kind| self.detector.member_is_secret(kind, text)) {
            self.hide(text)?;
        }
        self.note_hits(text)?;
        if text.is_ascii() { ControlFlow::Continue(()) } else { self.note_hits(&stage0_contract::plain(text)) }
    }

    fn note_hits(&mut self, text: &str) -> ControlFlow<()> {
        for (kind, hit) in self.detector.hits(text, self.limit) {
            let value = hit.value(text);
            // Its lines may be continued in other texts, where they match no form.
            if kind == PEM_KIND && !value.contains(PEM_END) {
                return self.show_nothing();
            }
            self.hide(value)?;
        }
        ControlFlow::Continue(())
    }

    fn hide(&mut self, value: &str) -> ControlFlow<()> {
        if value.len() > MAX_VALUE_BYTES {
            return self.show_nothing();
        }
        let value = visible(value.trim_matches(|c: char| c.is_whitespace() || "\"'`.,;)]}!?".contains(c)));
        if value.chars().count() < MIN_CHARS || self.values.contains(&value) {
            return ControlFlow::Continue(());
        }
        self.noted += 1;
        if self.noted > MAX_VALUES {
            return self.show_nothing();
        }
        // Without a space between them, each later value is a part of the one before.
        if !self.values.iter().any(|known| value.contains(known)) {
            self.values.retain(|known| !known.contains(&value));
            self.values.push(value);
        }
        ControlFlow::Continue(())
    }

    fn show_nothing(&mut self) -> ControlFlow<()> {
        self.nothing_shown = true;
        self.values = Vec::new();
        ControlFlow::Break(())
    }
}
