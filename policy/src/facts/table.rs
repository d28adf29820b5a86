//! The fact table: every attribute that a rule can read and every trigger that a rule can have, by name, with its type
//! and its meaning.
//!
//! Attributes are what rules see as `context.<name>`. None is a float or a null, because those could decide wrongly.
//! Triggers are cheap conditions that must hold before a rule is evaluated, so that most rules never are; a pack whose
//! trigger hides a rule is refused. The generated schema and the documentation come from this table alone.

mod more;
mod row;
mod rows;
mod value;
mod view;

use serde::Serialize;

pub(crate) use row::{Group, Groups, Kind};
pub(crate) use value::FactValue;
pub(crate) use view::FactView;

use super::Facts;
use crate::vocabulary::{Edition, nearest};
use more::MORE;
use row::Row;
use rows::ROWS;

/// The number of rows.
const ROW_COUNT: usize = ROWS.len() + MORE.len();

/// A fact or a trigger, for people who write rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FactRow {
    /// Rules see it as `context.<name>`, and name it in `@trigger`.
    pub name: &'static str,
    /// Its type in Cedar; `None` for a trigger that is no fact.
    pub cedar_type: Option<&'static str>,
    /// Whether it may be absent, so that a rule must ask with `has` first.
    pub is_optional: bool,
    /// Whether it can stand in `@trigger`.
    pub is_trigger: bool,
    /// Whether it holds words of the request, which are hidden where the request holds a secret.
    pub holds_words: bool,
    /// The edition of packs from which on it exists.
    pub edition: u8,
    /// What it belongs to: `request`, `proposal`, `time`, `caller`, `run` or `custom`.
    pub group: &'static str,
    /// One sentence.
    pub doc: &'static str,
}

/// Every fact and every trigger, in the order of the table.
pub fn table() -> impl Iterator<Item = FactRow> {
    all_rows().map(|(_, row)| row.described())
}

fn all_rows() -> impl Iterator<Item = (u8, &'static Row)> {
    (0..).zip(ROWS.iter().chain(MORE))
}

fn rows(wanted: fn(&Row) -> bool) -> impl Iterator<Item = (u8, &'static Row)> {
    all_rows().filter(move |(_, row)| wanted(row))
}

fn row(index: u8) -> Option<&'static Row> {
    let index = usize::from(index);
    ROWS.get(index).or_else(|| MORE.get(index.checked_sub(ROWS.len())?))
}

/// One attribute, by its index in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attribute(u8);

/// One trigger, by its index in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Trigger(u8);

impl Attribute {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::all().find(|attribute| attribute.name() == name)
    }

    /// The fact of this name, or what is wrong with the name, for a pack of this edition.
    pub(crate) fn of_edition(name: &str, edition: Edition) -> Result<Self, String> {
        if let Some(attribute) = Self::parse(name).filter(|attribute| attribute.is_known_to(edition)) {
            return Ok(attribute);
        }
        let known = Self::all().filter(|attribute| attribute.is_known_to(edition)).map(Self::name);
        let near = nearest(name, known, 1).into_iter().next();
        let near = near.map(|near| format!(": did you mean `{near}`?")).unwrap_or_default();
        Err(format!("is no fact that the evaluator computes{near}"))
    }

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        rows(Row::is_attribute).map(|(index, _)| Self(index))
    }

    pub(crate) fn name(self) -> &'static str {
        row(self.0).map_or("", |row| row.name)
    }

    /// Its type; that of a Boolean for an index without a row, which no attribute has.
    pub(crate) fn kind(self) -> Kind {
        row(self.0).and_then(|row| row.kind).unwrap_or(Kind::Bool)
    }

    pub(crate) fn group(self) -> Group {
        row(self.0).map_or(Group::Request, |row| row.group)
    }

    pub(crate) fn is_optional(self) -> bool {
        row(self.0).is_some_and(|row| row.is_optional)
    }

    pub(crate) fn holds_words(self) -> bool {
        row(self.0).is_some_and(|row| row.holds_words)
    }

    fn is_known_to(self, edition: Edition) -> bool {
        row(self.0).is_some_and(|row| row.is_known_to(edition))
    }

    /// Its value; `None` where an optional fact is absent, or one that was not told.
    pub(crate) fn value(self, facts: &Facts) -> Option<FactValue> {
        self.view(facts).map(FactValue::from)
    }

    /// As [`Attribute::value`], where it stands: nothing is copied.
    pub(crate) fn view(self, facts: &Facts) -> Option<FactView<'_>> {
        row(self.0).and_then(|row| row.view(facts))
    }
}

impl Trigger {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        rows(Row::is_trigger).find(|(_, row)| row.name == name).map(|(index, _)| Self(index))
    }

    pub(crate) fn name(self) -> &'static str {
        row(self.0).map_or("", |row| row.name)
    }

    /// The trigger of this name, if packs of this edition have it.
    pub(crate) fn of_edition(name: &str, edition: Edition) -> Option<Self> {
        Self::parse(name).filter(|trigger| row(trigger.0).is_some_and(|row| row.is_known_to(edition)))
    }
}

/// A bit for each row of the table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct RowSet([u64; ROW_COUNT.div_ceil(64)]);

impl RowSet {
    fn insert(&mut self, index: u8) {
        if let Some(word) = self.0.get_mut(usize::from(index) / 64) {
            *word |= 1 << (index % 64);
        }
    }

    fn contains(self, index: u8) -> bool {
        self.0.get(usize::from(index) / 64).is_some_and(|word| word & (1 << (index % 64)) != 0)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Attributes(RowSet);

impl Attributes {
    pub(crate) fn insert(&mut self, attribute: Attribute) {
        self.0.insert(attribute.0);
    }

    pub(crate) fn extend(&mut self, others: Self) {
        for (word, other) in self.0.0.iter_mut().zip(others.0.0) {
            *word |= other;
        }
    }

    pub(crate) fn contains(self, attribute: Attribute) -> bool {
        self.0.contains(attribute.0)
    }

    /// What its facts are read from.
    pub(crate) fn groups(self) -> Groups {
        let mut groups = Groups::default();
        self.iter().for_each(|attribute| groups.insert(attribute.group()));
        groups
    }

    /// In the order of the table.
    pub(crate) fn iter(self) -> impl Iterator<Item = Attribute> {
        Attribute::all().filter(move |attribute| self.0.contains(attribute.0))
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Triggers(RowSet);

impl Triggers {
    pub(crate) fn of(facts: &Facts) -> Self {
        let mut triggers = RowSet::default();
        for (index, _) in rows(Row::is_trigger).filter(|(_, row)| row.holds(facts)) {
            triggers.insert(index);
        }
        Self(triggers)
    }

    pub(crate) fn contains(self, trigger: Trigger) -> bool {
        self.0.contains(trigger.0)
    }

    pub(crate) fn names(self) -> Vec<&'static str> {
        rows(Row::is_trigger).filter(|(index, _)| self.0.contains(*index)).map(|(_, row)| row.name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_attributes_and_no_two_triggers_have_the_same_name() {
        for kind in [Row::is_attribute, Row::is_trigger] {
            let unique: BTreeSet<_> = rows(kind).map(|(_, row)| row.name).collect();
            assert_eq!(unique.len(), rows(kind).count());
        }
        assert!(u8::try_from(ROW_COUNT).is_ok(), "an index is a byte");
    }

    #[test]
    fn attributes_and_triggers_are_found_by_name() {
        assert_eq!(Attribute::parse("role").map(Attribute::name), Some("role"));
        assert_eq!(Attribute::parse("goal"), None);
        assert_eq!(Attribute::parse("always"), None, "a trigger that is no attribute");
        assert!(Trigger::parse("malformed").is_some() && Trigger::parse("high_effect").is_some());
        assert_eq!(Trigger::parse("sometimes"), None);
        assert_eq!(Trigger::parse("role"), None, "an attribute that is no trigger");
    }

    #[test]
    fn the_first_edition_knows_no_fact_and_no_trigger_of_the_second() {
        let told = Attribute::of_edition("tools", Edition::First).unwrap_err();
        assert!(told.starts_with("is no fact that the evaluator computes"), "{told}");
        assert!(Attribute::of_edition("tools", Edition::Second).is_ok());
        assert!(Attribute::of_edition("role", Edition::First).is_ok());
        assert!(
            Trigger::of_edition("run", Edition::First).is_none()
                && Trigger::of_edition("run", Edition::Second).is_some()
        );
        assert!(Trigger::of_edition("always", Edition::First).is_some());
    }

    #[test]
    fn a_slip_in_the_name_of_a_fact_brings_the_right_name() {
        let told = Attribute::of_edition("effect_clases", Edition::Second).unwrap_err();
        assert_eq!(told, "is no fact that the evaluator computes: did you mean `effect_classes`?");
        let told = Attribute::of_edition("weather", Edition::Second).unwrap_err();
        assert_eq!(told, "is no fact that the evaluator computes");
    }

    #[test]
    fn every_row_has_a_sentence_and_every_attribute_a_type() {
        for row in table() {
            assert!(row.doc.ends_with('.') && !row.doc.contains("  "), "{}: {}", row.name, row.doc);
            assert!(row.cedar_type.is_some() || row.is_trigger, "{}", row.name);
        }
    }

    #[test]
    fn a_set_of_attributes_keeps_the_order_of_the_table() {
        let mut wanted = Attributes::default();
        for name in ["role", "side_effects", "goal_vague"] {
            wanted.insert(Attribute::parse(name).unwrap());
        }
        let names: Vec<_> = wanted.iter().map(Attribute::name).collect();
        assert_eq!(names, ["side_effects", "role", "goal_vague"]);
    }

    #[test]
    fn every_attribute_has_a_bit_of_its_own() {
        for attribute in Attribute::all() {
            let mut set = Attributes::default();
            set.insert(attribute);
            assert_eq!(set.iter().collect::<Vec<_>>(), [attribute]);
            assert!(set.contains(attribute));
        }
    }
}
