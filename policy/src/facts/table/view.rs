//! The value of a fact where it stands in the facts of a check: what compiled rules compare, without a copy.

use jiff::Timestamp;

use super::super::custom::Custom;
use super::super::decimal::Decimal;
use super::super::past::Past;
use super::value::FactValue;

#[derive(Debug)]
pub(crate) enum FactView<'f> {
    Bool(bool),
    Long(i64),
    Text(&'f str),
    /// Canonical names.
    Names(&'f [&'static str]),
    Words(&'f [String]),
    /// Texts that are not kept as a list.
    Gathered(Vec<String>),
    Decimal(Decimal),
    Datetime(Timestamp),
    Custom(&'f Custom),
    RunCalls(&'f Past),
}

impl<'f> FactView<'f> {
    /// The member of a record; none where it is absent, and where this is no record.
    pub(crate) fn member(&self, name: &str) -> Option<Self> {
        match *self {
            Self::Custom(custom) => Self::of(custom.get(name)?),
            Self::RunCalls(past) => past.calls_of(name).map(Self::Long),
            _ => None,
        }
    }

    /// None for a record.
    fn of(value: &'f FactValue) -> Option<Self> {
        Some(match value {
            FactValue::Bool(value) => Self::Bool(*value),
            FactValue::Long(value) => Self::Long(*value),
            FactValue::Text(text) => Self::Text(text),
            FactValue::Set(texts) => Self::Words(texts),
            FactValue::Decimal(value) => Self::Decimal(*value),
            FactValue::Datetime(at) => Self::Datetime(*at),
            FactValue::Record(_) => return None,
        })
    }
}

impl From<FactView<'_>> for FactValue {
    fn from(view: FactView<'_>) -> Self {
        match view {
            FactView::Bool(value) => Self::Bool(value),
            FactView::Long(value) => Self::Long(value),
            FactView::Text(text) => Self::Text(text.to_owned()),
            FactView::Names(names) => Self::Set(names.iter().map(|name| (*name).to_owned()).collect()),
            FactView::Words(words) => Self::Set(words.to_vec()),
            FactView::Gathered(words) => Self::Set(words),
            FactView::Decimal(value) => Self::Decimal(value),
            FactView::Datetime(at) => Self::Datetime(at),
            FactView::Custom(custom) => custom.record(),
            FactView::RunCalls(past) => past.record(),
        }
    }
}

impl From<bool> for FactView<'_> {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for FactView<'_> {
    fn from(value: i64) -> Self {
        Self::Long(value)
    }
}

impl<'f> From<&'f str> for FactView<'f> {
    fn from(text: &'f str) -> Self {
        Self::Text(text)
    }
}

impl<'f> From<&'f String> for FactView<'f> {
    fn from(text: &'f String) -> Self {
        Self::Text(text)
    }
}

impl<'f> From<&'f Vec<String>> for FactView<'f> {
    fn from(words: &'f Vec<String>) -> Self {
        Self::Words(words)
    }
}

impl From<Vec<String>> for FactView<'_> {
    fn from(words: Vec<String>) -> Self {
        Self::Gathered(words)
    }
}
