//! Environments on `denied_environment`, compared in every reading of their names; an alias reads as what it stands
//! for.
//!
//! An environment is denied if any reading of its name is on the list, or if its name is ambiguous (letters of mixed
//! scripts).

use stage0_contract::Spelling;

use crate::vocabulary::Names;

pub(super) struct Environment {
    /// `None` for an ambiguous name.
    readings: Option<[String; 2]>,
}

impl Environment {
    pub(super) fn of(name: &str, names: &Names) -> Self {
        let spelling = Spelling::of(name);
        let readings = || Some([names.canonical(spelling.folded()?), names.canonical(spelling.split()?)]);
        Self { readings: readings() }
    }

    /// Whether the two have a reading in common, or one of them is ambiguous.
    pub(super) fn may_be(&self, other: &Self) -> bool {
        match (&self.readings, &other.readings) {
            (Some(one), Some(two)) => one.iter().any(|reading| two.contains(reading)),
            _ => true,
        }
    }
}
