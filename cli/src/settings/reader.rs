//! Turns given texts into typed values, and goes on after a mistake: the operator sees all of them in one go.
//!
//! INVARIANT: whatever returns `None` without having been optional has put a mistake on the list, so [`Reader::finish`] cannot
//! let an incomplete configuration through. The value of a secret is in no mistake.

use std::path::PathBuf;

use stage0_backplane::check_secret_file;

use super::{Absent, Mistake, Mistakes, Setting, Sources};

/// Reads the settings of one role.
pub(crate) struct Reader {
    sources: Sources,
}

impl Reader {
    /// Starts with what was given, and with what is wrong about that already.
    pub(crate) fn new(sources: Sources) -> Self {
        Self { sources }
    }

    /// A setting that must be given or has a default.
    pub(crate) fn required<T>(
        &mut self,
        setting: &Setting,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        if !self.is_given(setting) {
            if let Some(Absent::Default(text)) = setting.absent(self.sources.role()) {
                return parse(text).map_err(|why| self.refuse(format!("default of `{}`", setting.name), why)).ok();
            }
            self.miss(setting, "is required");
        }
        self.optional(setting, parse)
    }

    /// A setting that may be left out; also `None` when it is wrong.
    pub(crate) fn optional<T>(
        &mut self,
        setting: &Setting,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.sources.values.get(setting.name)?;
        let parsed =
            if value.text.trim().is_empty() { Err("must not be empty".to_owned()) } else { parse(&value.text) };
        match parsed {
            Ok(parsed) => Some(parsed),
            Err(why) => {
                let shown = if setting.secret { why } else { format!("{why}, not `{}`", value.text.escape_debug()) };
                let origin = value.origin.clone();
                self.refuse(origin, shown);
                None
            }
        }
    }

    /// Refuses a file with a secret that others may read. Whether it exists is seen where it is used.
    pub(crate) fn private(&mut self, setting: &Setting, file: Option<PathBuf>) -> Option<PathBuf> {
        let file = file?;
        match check_secret_file(&file) {
            Ok(()) => Some(file),
            Err(exposed) => {
                self.clash(setting, &exposed.to_string());
                None
            }
        }
    }

    /// Whether any source has it.
    pub(crate) fn is_given(&self, setting: &Setting) -> bool {
        self.sources.values.contains_key(setting.name)
    }

    /// A setting that is absent and must not be: says how to give it.
    pub(crate) fn miss(&mut self, setting: &Setting, why: &str) {
        let how = format!("{why} (--{} {}, or {})", setting.name, setting.value, setting.variable());
        self.refuse(format!("`{}`", setting.name), how);
    }

    /// A setting that does not go with another, or with what it names.
    pub(crate) fn clash(&mut self, setting: &Setting, why: &str) {
        let origin =
            self.sources.values.get(setting.name).map_or_else(|| setting.name.to_owned(), |v| v.origin.clone());
        self.refuse(origin, why.to_owned());
    }

    /// Refuses one of a pair without the other; `None` is a mistake.
    pub(crate) fn both(&mut self, pair: [&Setting; 2]) -> Option<()> {
        let [first, second] = pair;
        match (self.is_given(first), self.is_given(second)) {
            (true, false) => self.miss(second, &format!("is needed beside `{}`", first.name)),
            (false, true) => self.miss(first, &format!("is needed beside `{}`", second.name)),
            (true, true) | (false, false) => return Some(()),
        }
        None
    }

    /// What was built, unless something was wrong.
    pub(crate) fn finish<T>(self, built: Option<T>) -> Result<T, Mistakes> {
        match built {
            Some(built) if self.sources.mistakes.is_empty() => Ok(built),
            _ => Err(Mistakes(self.sources.mistakes)),
        }
    }

    fn refuse(&mut self, origin: String, text: String) {
        self.sources.mistakes.push(Mistake { origin, text });
    }
}
