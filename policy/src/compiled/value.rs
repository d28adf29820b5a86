//! The value of an expression, borrowed from the facts or from the rule.

use std::cmp::Ordering;

use crate::facts::{Decimal, FactView};

use super::Failed;
use super::texts::Texts;

#[derive(Debug)]
pub(super) enum Value<'v> {
    Bool(bool),
    Long(i64),
    Text(&'v str),
    Decimal(Decimal),
    /// Milliseconds since the epoch.
    Datetime(i64),
    Texts(Texts<'v>),
}

impl<'v> Value<'v> {
    /// Fails for a fact that no compiled rule compares as a whole.
    pub(super) fn of(fact: FactView<'v>) -> Result<Self, Failed> {
        Ok(match fact {
            FactView::Bool(value) => Self::Bool(value),
            FactView::Long(value) => Self::Long(value),
            FactView::Text(text) => Self::Text(text),
            FactView::Names(names) => Self::Texts(Texts::Names(names)),
            FactView::Words(words) => Self::Texts(Texts::Words(words)),
            FactView::Gathered(words) => Self::Texts(Texts::Gathered(words)),
            FactView::Decimal(value) => Self::Decimal(value),
            FactView::Datetime(at) => Self::Datetime(at.as_millisecond()),
            FactView::Custom(_) | FactView::RunCalls(_) => return Err(Failed),
        })
    }

    pub(super) fn bool(&self) -> Result<bool, Failed> {
        if let Self::Bool(value) = self { Ok(*value) } else { Err(Failed) }
    }

    pub(super) fn long(&self) -> Result<i64, Failed> {
        if let Self::Long(value) = self { Ok(*value) } else { Err(Failed) }
    }

    pub(super) fn text(&self) -> Result<&'v str, Failed> {
        if let Self::Text(text) = self { Ok(text) } else { Err(Failed) }
    }

    pub(super) fn decimal(&self) -> Result<Decimal, Failed> {
        if let Self::Decimal(value) = self { Ok(*value) } else { Err(Failed) }
    }

    pub(super) fn texts(&self) -> Result<&Texts<'v>, Failed> {
        if let Self::Texts(texts) = self { Ok(texts) } else { Err(Failed) }
    }

    /// Which of two numbers or moments is less; fails for other types, and for one of each.
    pub(super) fn compare(&self, other: &Self) -> Result<Ordering, Failed> {
        match (self, other) {
            (Self::Long(one), Self::Long(other)) | (Self::Datetime(one), Self::Datetime(other)) => Ok(one.cmp(other)),
            _ => Err(Failed),
        }
    }

    /// Whether two values are equal. Values of two types never are, as in Cedar.
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Bool(one), Self::Bool(other)) => one == other,
            (Self::Long(one), Self::Long(other)) => one == other,
            (Self::Text(one), Self::Text(other)) => one == other,
            (Self::Decimal(one), Self::Decimal(other)) => one == other,
            (Self::Datetime(one), Self::Datetime(other)) => one == other,
            (Self::Texts(one), Self::Texts(other)) => one.contains_all(other) && other.contains_all(one),
            _ => false,
        }
    }
}
