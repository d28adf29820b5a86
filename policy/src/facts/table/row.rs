//! One row of the fact table, and the few shapes that rows have.

use super::super::Facts;
use super::FactRow;
use super::view::FactView;
use crate::vocabulary::Edition;

/// The type of a fact in Cedar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Bool,
    Long,
    Text,
    Set,
    Datetime,
    /// The record of members that the pack declares.
    Custom,
    /// The record of tools that the pack names.
    RunCalls,
}

impl Kind {
    /// As it is written in a schema.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Bool => "Bool",
            Self::Long => "Long",
            Self::Text => "String",
            Self::Set => "Set<String>",
            Self::Datetime => "datetime",
            Self::Custom => "Custom",
            Self::RunCalls => "RunCalls",
        }
    }
}

/// What a fact is read from. All but `Request` are read only for a pack that names a fact of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    Request,
    Proposal,
    Time,
    Caller,
    Run,
    Custom,
}

impl Group {
    fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Proposal => "proposal",
            Self::Time => "time",
            Self::Caller => "caller",
            Self::Run => "run",
            Self::Custom => "custom",
        }
    }
}

/// A set of groups, as bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Groups(u8);

impl Groups {
    pub(crate) const ALL: Self = Self(u8::MAX);

    pub(crate) fn insert(&mut self, group: Group) {
        self.0 |= 1 << group as u8;
    }

    pub(crate) fn contains(self, group: Group) -> bool {
        self.0 & (1 << group as u8) != 0
    }
}

#[derive(Clone, Copy)]
enum Read {
    /// A Boolean attribute, and a trigger that holds when it is true.
    Flag(fn(&Facts) -> bool),
    /// A declared number, absent unless declared, and a trigger that holds when it is declared.
    Limit(fn(&Facts) -> Option<i64>),
    Trigger(fn(&Facts) -> bool),
    Bool(fn(&Facts) -> bool),
    Long(fn(&Facts) -> i64),
    MaybeLong(fn(&Facts) -> Option<i64>),
    Text(fn(&Facts) -> &str),
    MaybeText(fn(&Facts) -> Option<&str>),
    /// Canonical names.
    Names(fn(&Facts) -> &[&'static str]),
    Words(fn(&Facts) -> &[String]),
    MaybeWords(fn(&Facts) -> Option<&[String]>),
    Value(fn(&Facts) -> Option<FactView<'_>>),
}

/// A fact, a trigger, or both.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) kind: Option<Kind>,
    pub(super) is_optional: bool,
    /// It holds words of a request. They are hidden where the request holds a secret.
    pub(super) holds_words: bool,
    pub(super) group: Group,
    edition: Edition,
    read: Read,
    doc: &'static str,
}

impl Row {
    const fn of(name: &'static str, kind: Option<Kind>, read: Read, doc: &'static str) -> Self {
        let (group, edition) = (Group::Request, Edition::First);
        Self { name, kind, is_optional: false, holds_words: false, group, edition, read, doc }
    }

    pub(super) const fn trigger(name: &'static str, holds: fn(&Facts) -> bool, doc: &'static str) -> Self {
        Self::of(name, None, Read::Trigger(holds), doc)
    }

    /// A Boolean attribute that is a trigger too.
    pub(super) const fn flag(name: &'static str, read: fn(&Facts) -> bool, doc: &'static str) -> Self {
        Self::of(name, Some(Kind::Bool), Read::Flag(read), doc)
    }

    pub(super) const fn bool(name: &'static str, read: fn(&Facts) -> bool, doc: &'static str) -> Self {
        Self::of(name, Some(Kind::Bool), Read::Bool(read), doc)
    }

    /// A declared number that is a trigger too.
    pub(super) const fn limit(name: &'static str, read: fn(&Facts) -> Option<i64>, doc: &'static str) -> Self {
        Self::of(name, Some(Kind::Long), Read::Limit(read), doc).optional()
    }

    pub(super) const fn long(name: &'static str, read: fn(&Facts) -> i64, doc: &'static str) -> Self {
        Self::of(name, Some(Kind::Long), Read::Long(read), doc)
    }

    pub(super) const fn optional_long(name: &'static str, read: fn(&Facts) -> Option<i64>, doc: &'static str) -> Self {
        Self::of(name, Some(Kind::Long), Read::MaybeLong(read), doc).optional()
    }

    pub(super) const fn text(name: &'static str, read: fn(&Facts) -> &str, doc: &'static str) -> Self {
        Self::of(name, Some(Kind::Text), Read::Text(read), doc)
    }

    pub(super) const fn optional_word(name: &'static str, read: fn(&Facts) -> Option<&str>, doc: &'static str) -> Self {
        Self::of(name, Some(Kind::Text), Read::MaybeText(read), doc).optional().of_words()
    }

    pub(super) const fn names(name: &'static str, read: fn(&Facts) -> &[&'static str], doc: &'static str) -> Self {
        Self::of(name, Some(Kind::Set), Read::Names(read), doc)
    }

    pub(super) const fn words(name: &'static str, read: fn(&Facts) -> &[String], doc: &'static str) -> Self {
        Self::of(name, Some(Kind::Set), Read::Words(read), doc).of_words()
    }

    pub(super) const fn optional_words(
        name: &'static str,
        read: fn(&Facts) -> Option<&[String]>,
        doc: &'static str,
    ) -> Self {
        Self::of(name, Some(Kind::Set), Read::MaybeWords(read), doc).optional().of_words()
    }

    /// A fact of the second edition that is read only where it is named.
    pub(super) const fn more(
        name: &'static str,
        kind: Kind,
        group: Group,
        read: fn(&Facts) -> Option<FactView<'_>>,
        doc: &'static str,
    ) -> Self {
        Self { group, ..Self::of(name, Some(kind), Read::Value(read), doc).second() }
    }

    pub(super) const fn optional(self) -> Self {
        Self { is_optional: true, ..self }
    }

    pub(super) const fn of_words(self) -> Self {
        Self { holds_words: true, ..self }
    }

    pub(super) const fn second(self) -> Self {
        Self { edition: Edition::Second, ..self }
    }

    pub(super) fn is_known_to(&self, edition: Edition) -> bool {
        edition == Edition::Second || self.edition == Edition::First
    }

    pub(super) fn is_attribute(&self) -> bool {
        self.kind.is_some()
    }

    pub(super) fn is_trigger(&self) -> bool {
        matches!(self.read, Read::Flag(_) | Read::Limit(_) | Read::Trigger(_))
    }

    pub(super) fn view<'f>(&self, facts: &'f Facts) -> Option<FactView<'f>> {
        match self.read {
            Read::Flag(read) | Read::Bool(read) => Some(FactView::Bool(read(facts))),
            Read::Limit(read) | Read::MaybeLong(read) => read(facts).map(FactView::Long),
            Read::Long(read) => Some(FactView::Long(read(facts))),
            Read::Text(read) => Some(FactView::Text(read(facts))),
            Read::MaybeText(read) => read(facts).map(FactView::Text),
            Read::Names(read) => Some(FactView::Names(read(facts))),
            Read::Words(read) => Some(FactView::Words(read(facts))),
            Read::MaybeWords(read) => read(facts).map(FactView::Words),
            Read::Value(read) => read(facts),
            Read::Trigger(_) => None,
        }
    }

    pub(super) fn holds(&self, facts: &Facts) -> bool {
        match self.read {
            Read::Flag(holds) | Read::Trigger(holds) => holds(facts),
            Read::Limit(read) => read(facts).is_some(),
            _ => false,
        }
    }

    pub(super) fn described(&self) -> FactRow {
        FactRow {
            name: self.name,
            cedar_type: self.kind.map(Kind::as_str),
            is_optional: self.is_optional,
            is_trigger: self.is_trigger(),
            holds_words: self.holds_words,
            edition: self.edition as u8,
            group: self.group.as_str(),
            doc: self.doc,
        }
    }
}
