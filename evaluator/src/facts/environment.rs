//! Environments as lists compare them: by every reading of their name, an alias as what it stands for.
//!
//! Owns when an environment is on a list that denies: when any reading is. A name that cannot be told apart may be any.

use stage0_contract::Spelling;

use crate::pack::Names;

/// An environment that somebody named.
pub(super) struct Environment {
    /// None where it cannot be told apart.
    readings: Option<[String; 2]>,
}

impl Environment {
    pub(super) fn of(name: &str, names: &Names) -> Self {
        let spelling = Spelling::of(name);
        let readings = || Some([names.canonical(spelling.folded()?), names.canonical(spelling.split()?)]);
        Self { readings: readings() }
    }

    /// Whether any reading of the one is any reading of the other.
    pub(super) fn may_be(&self, other: &Self) -> bool {
        match (&self.readings, &other.readings) {
            (Some(one), Some(two)) => one.iter().any(|reading| two.contains(reading)),
            _ => true,
        }
    }
}
