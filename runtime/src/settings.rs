//! How a service declares its settings, and how declared settings are read.
//!
//! Each setting is one row of [`settings!`](crate::settings!), beside the service that uses it. Flags, variables, keys
//! of the file, `--help` and `docs/CONFIGURATION.md` follow from the row. The command line hands a [`Reader`] the text
//! that it found for each name.
//! INVARIANT: no secret's value is in a mistake.

use std::fmt;

pub mod kinds;
mod reader;

pub use kinds::Kind;
pub use reader::{Given, Reader};

/// One setting, as its row declares it.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Flag and file key; the variable is derived from it.
    pub name: &'static str,
    /// The placeholder of the value in help texts, which names its unit.
    pub value: &'static str,
    /// Heading in help and documentation.
    pub group: &'static str,
    /// What it does, without a full stop at the end.
    pub help: &'static str,
    /// Where it may be given, and whether its value may be shown.
    pub places: Places,
    /// What holds when it is not given.
    pub absent: Absent,
}

/// Where a setting may be given, and whether its value may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Places {
    /// Flag, variable and file.
    Everywhere,
    /// Flag and variable: it names the file itself, or applies to one start.
    NotInFile,
    /// As `Everywhere`, and never shown: people put credentials into it by mistake.
    Hidden,
    /// A secret: never shown, and only in a file that no other user can read.
    Secret,
    /// A secret that is neither in a command line, which every process of the machine can read, nor in a file.
    VariableOnly,
}

/// What holds when a setting is not given.
#[derive(Debug, Clone, Copy)]
pub enum Absent {
    /// It must be given.
    Required,
    /// It may be left out.
    Optional,
    /// This text, as an operator would write it.
    Default(fn() -> String),
}

impl Setting {
    /// The environment variable.
    pub fn variable(&self) -> String {
        format!("STAGE0_{}", self.name.to_ascii_uppercase().replace('-', "_"))
    }

    /// Whether its value is never shown.
    pub fn is_secret(&self) -> bool {
        matches!(self.places, Places::Hidden | Places::Secret | Places::VariableOnly)
    }

    /// Whether there is a flag.
    pub fn has_flag(&self) -> bool {
        self.places != Places::VariableOnly
    }

    /// Whether a file may have it.
    pub fn in_file(&self) -> bool {
        !matches!(self.places, Places::NotInFile | Places::VariableOnly)
    }
}

/// One thing that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Flag, variable, or key and file.
    pub origin: String,
    /// Lower case, without the value of a secret.
    pub text: String,
}

/// All mistakes that were found.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("error: the settings are not usable")?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {}: {}", mistake.origin, mistake.text))
    }
}

/// Declares a configuration struct and its settings. Each row is
///
/// ```text
/// /// What it does, without a full stop at the end
/// field: Type = "name" "VALUE" in "Group" [as Places], ABSENCE, KIND;
/// ```
///
/// where `ABSENCE` is `required`, `optional` (the field is an `Option`), `or(VALUE)` for an optional setting whose
/// absence means that value, or `default(VALUE)`, whose text is shown as the default. Fields that are no settings
/// follow in a block `given { field: Type = initial; }`. The macro derives `SETTINGS`, `read`, and `defaults`, in
/// which required fields are empty.
#[macro_export]
macro_rules! settings {
    (
        $(#[$attribute:meta])*
        $vis:vis struct $config:ident {
            $(
                $(#[doc = $help:literal])+
                $field:ident: $type:ty = $name:literal $value:literal in $group:literal $(as $places:ident)?,
                    $absent:ident $(($absent_value:expr))?, $kind:expr;
            )*
        }
        $(given {
            $( $(#[$given_attribute:meta])* $given:ident: $given_type:ty = $initial:expr; )*
        })?
    ) => {
        $(#[$attribute])*
        $vis struct $config {
            $( $(#[doc = $help])+ $vis $field: $type, )*
            $($( $(#[$given_attribute])* $vis $given: $given_type, )*)?
        }

        impl $config {
            /// The settings that it is read from.
            $vis const SETTINGS: &'static [$crate::settings::Setting] = &[
                $( $crate::settings::Setting {
                    name: $name,
                    value: $value,
                    group: $group,
                    help: concat!($($help),+).trim_ascii_start(),
                    places: $crate::settings!(@places $($places)?),
                    absent: $crate::settings!(@absent $type, $absent $(($absent_value))?, $kind),
                }, )*
            ];

            /// Reads every setting before any can fail, so that all mistakes are found.
            $vis fn read(reader: &mut $crate::settings::Reader) -> Option<Self> {
                $( let $field = $crate::settings!(@read reader, $name, $absent $(($absent_value))?, $kind); )*
                Some(Self { $( $field: $field?, )* $($( $given: $initial, )*)? })
            }

            #[allow(dead_code, reason = "not every configuration is made without being read")]
            fn defaults() -> Self {
                Self {
                    $( $field: $crate::settings!(@default $absent $(($absent_value))?), )*
                    $($( $given: $initial, )*)?
                }
            }
        }
    };
    (@places) => { $crate::settings::Places::Everywhere };
    (@places $places:ident) => { $crate::settings::Places::$places };
    (@absent $type:ty, required, $kind:expr) => { $crate::settings::Absent::Required };
    (@absent $type:ty, optional, $kind:expr) => { $crate::settings::Absent::Optional };
    (@absent $type:ty, or($value:expr), $kind:expr) => { $crate::settings::Absent::Optional };
    (@absent $type:ty, default($value:expr), $kind:expr) => {
        $crate::settings::Absent::Default(|| {
            let value: $type = $value;
            $kind.text(&value)
        })
    };
    (@read $reader:ident, $name:literal, optional, $kind:expr) => { Some($reader.optional($name, &$kind)) };
    (@read $reader:ident, $name:literal, or($value:expr), $kind:expr) => {
        Some($reader.optional($name, &$kind).unwrap_or_else(|| $value))
    };
    (@read $reader:ident, $name:literal, $absent:ident $(($value:expr))?, $kind:expr) => {
        $reader.required($name, &$kind)
    };
    (@default or($value:expr)) => { $value };
    (@default default($value:expr)) => { $value };
    (@default $absent:ident) => { Default::default() };
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroU32;
    use std::path::PathBuf;
    use std::time::Duration;

    use super::kinds::{count, limit, milliseconds, path, text};
    use super::*;

    crate::settings! {
        /// Of the test.
        #[derive(Debug, PartialEq)]
        struct Config {
            /// Where data is
            dir: PathBuf = "dir" "DIR" in "Data", required, path();
            /// How many there are,
            /// in two lines
            workers: Option<usize> = "workers" "N" in "Data", optional, count(4);
            /// How long it takes
            wait: Duration = "wait-ms" "MS" in "Data", default(Duration::from_millis(20)), milliseconds();
            /// How many may come; 0 disables the limit
            most: Option<NonZeroU32> = "most" "N" in "Data", default(None), limit(9);
            /// A password
            word: String = "word" "TEXT" in "Data" as Secret, or("none".to_owned()), text();
        }
        given {
            /// No setting.
            extra: u8 = 7;
        }
    }

    fn read(given: &[(&'static str, &str)]) -> Result<Config, Mistakes> {
        let given =
            given.iter().map(|(name, text)| (*name, Given { text: (*text).to_owned(), origin: format!("--{name}") }));
        let mut reader = Reader::new(Config::SETTINGS.to_vec(), given.collect::<BTreeMap<_, _>>(), Vec::new());
        let config = Config::read(&mut reader);
        reader.finish(config)
    }

    #[test]
    fn a_row_declares_field_name_help_and_default_at_once() {
        let [_, workers, wait, most, word] = Config::SETTINGS else { panic!("five rows") };
        assert_eq!((workers.help, workers.variable().as_str()), ("How many there are, in two lines", "STAGE0_WORKERS"));
        let default = |setting: &Setting| match setting.absent {
            Absent::Default(text) => Some(text()),
            Absent::Required | Absent::Optional => None,
        };
        assert_eq!([default(workers), default(wait), default(most)], [None, Some("20".into()), Some("0".into())]);
        assert!(word.is_secret() && word.has_flag() && word.in_file());
        let read = read(&[("dir", "d")]).unwrap();
        assert_eq!(read, Config { dir: "d".into(), ..Config::defaults() });
        assert_eq!((read.extra, read.wait, read.word.as_str()), (7, Duration::from_millis(20), "none"));
    }

    #[test]
    fn every_mistake_is_found_and_no_secret_is_shown() {
        let mistakes = read(&[("workers", "5"), ("wait-ms", "soon"), ("word", " ")]).unwrap_err().to_string();
        let lines: Vec<&str> = mistakes.lines().collect();
        let expected = [
            "error: the settings are not usable",
            "  `dir`: is required (--dir DIR, or STAGE0_DIR)",
            "  --workers: must be a whole number from 1 to 4, not `5`",
            "  --wait-ms: must be a whole number from 1 to 3600000 (milliseconds), not `soon`",
            "  --word: must not be empty",
        ];
        assert_eq!(lines, expected);
    }
}
