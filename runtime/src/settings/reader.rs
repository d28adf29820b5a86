//! Turns given texts into typed values, and goes on after a mistake: the operator sees all of them in one go.
//!
//! INVARIANT: a method that returns `None` for a setting that is not optional has put a mistake on the list, so
//! [`Reader::finish`] cannot let an incomplete configuration through. The value of a secret is in no mistake.

use std::collections::BTreeMap;

use super::{Absent, Kind, Mistake, Mistakes, Setting};

/// The text that was given for a setting. No `Debug`: it may be a secret.
pub struct Given {
    /// As it was written.
    pub text: String,
    /// Flag, variable, or key and file.
    pub origin: String,
}

/// Reads the settings of one process.
pub struct Reader {
    settings: Vec<Setting>,
    given: BTreeMap<&'static str, Given>,
    mistakes: Vec<Mistake>,
}

impl Reader {
    /// `settings` are all that may be read; `mistakes` are those that were found while collecting what was given.
    pub fn new(settings: Vec<Setting>, given: BTreeMap<&'static str, Given>, mistakes: Vec<Mistake>) -> Self {
        Self { settings, given, mistakes }
    }

    /// Reads a setting that must be given or has a default.
    pub fn required<T: 'static>(&mut self, name: &'static str, kind: &Kind<T>) -> Option<T> {
        if self.is_given(name) {
            return self.optional(name, kind);
        }
        if let Some(Absent::Default(text)) = self.setting(name).map(|setting| setting.absent) {
            return kind.parse(&text()).map_err(|why| self.refuse(format!("default of `{name}`"), why)).ok();
        }
        self.miss(name, "is required");
        None
    }

    /// Reads a setting that may be left out; also `None` when its value is wrong.
    pub fn optional<T: 'static>(&mut self, name: &'static str, kind: &Kind<T>) -> Option<T> {
        let given = self.given.get(name)?;
        let parsed =
            if given.text.trim().is_empty() { Err("must not be empty".to_owned()) } else { kind.parse(&given.text) };
        match parsed {
            Ok(parsed) => Some(parsed),
            Err(why) => {
                let is_shown = kind.is_about_text && !self.setting(name).is_none_or(|setting| setting.is_secret());
                // A URL with a password in it is not repeated.
                let is_shown = is_shown && !given.text.contains('@');
                let why = if is_shown { format!("{why}, not `{}`", given.text.escape_debug()) } else { why };
                let origin = given.origin.clone();
                self.refuse(origin, why);
                None
            }
        }
    }

    /// Whether any source has it.
    pub fn is_given(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    /// Reports a setting that is absent and must not be, and says how to give it.
    pub fn miss(&mut self, name: &'static str, why: &str) {
        let how = |setting: &Setting| format!(" (--{name} {}, or {})", setting.value, setting.variable());
        let how = self.setting(name).map(how).unwrap_or_default();
        self.refuse(format!("`{name}`"), format!("{why}{how}"));
    }

    /// Reports a setting that contradicts another, or whose value cannot be used.
    pub fn clash(&mut self, name: &'static str, why: &str) {
        let origin = self.given.get(name).map_or_else(|| name.to_owned(), |given| given.origin.clone());
        self.refuse(origin, why.to_owned());
    }

    /// Refuses one of a pair without the other; `None` is a mistake.
    pub fn both(&mut self, first: &'static str, second: &'static str) -> Option<()> {
        match (self.is_given(first), self.is_given(second)) {
            (true, false) => self.miss(second, &format!("is needed beside `{first}`")),
            (false, true) => self.miss(first, &format!("is needed beside `{second}`")),
            (true, true) | (false, false) => return Some(()),
        }
        None
    }

    /// Returns what was built, unless something was wrong.
    pub fn finish<T>(self, built: Option<T>) -> Result<T, Mistakes> {
        match built {
            Some(built) if self.mistakes.is_empty() => Ok(built),
            _ => Err(Mistakes(self.mistakes)),
        }
    }

    fn setting(&self, name: &str) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.name == name)
    }

    fn refuse(&mut self, origin: String, text: String) {
        let mistake = Mistake { origin, text };
        // Two services of one process may read the same setting.
        if !self.mistakes.contains(&mistake) {
            self.mistakes.push(mistake);
        }
    }
}
