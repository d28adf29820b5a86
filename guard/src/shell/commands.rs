//! The table of programs: what each does, by its first words, and what its options add.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use super::lex::Word;
use super::options::{self, is_option};

/// What the operands of a command are: its arguments that are no options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Operands {
    /// Names of other things. One that names a file with secrets still counts.
    #[default]
    Names,
    /// Free text, such as a message.
    Text,
    /// Files that are read.
    Read,
    /// Files that are changed.
    Write,
    /// Files that are read, and the last one is changed.
    Copy,
    /// Names; behind the first one a directory that is changed.
    Last,
    /// There is none; one that stands there is unknown.
    None,
}

/// One entry: commands that begin with one of `run`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CommandEntry {
    /// A program, or a program and its sub-commands: `git push`.
    run: Vec<String>,
    pub(super) effects: Vec<String>,
    #[serde(default)]
    pub(super) operands: Operands,
    /// What an option, or any other word, adds.
    #[serde(default)]
    pub(super) options: BTreeMap<String, Vec<String>>,
    /// Options that take the next word.
    #[serde(default)]
    pub(super) values: Vec<String>,
    /// The same, where the value is a file or a directory that is changed.
    #[serde(default)]
    pub(super) writes: Vec<String>,
    /// Options that stand alone and change nothing about the effects. Where this list is, every option that is in none
    /// of the lists makes the command unknown; where it is not, options are only looked up in `options`.
    pub(super) harmless: Option<Vec<String>>,
    /// The same as single letters, which may stand together; `#` stands for digits.
    #[serde(default)]
    pub(super) letters: String,
    /// Options of the program itself, before a sub-command; those that end in `=` take the next word.
    #[serde(default)]
    global: Vec<String>,
    /// The operand names a task that the project defines: one that is called `deploy` is more than a build.
    #[serde(default)]
    pub(super) task: bool,
    /// What stands behind `--` goes to the task and names none.
    #[serde(default)]
    pub(super) passes_on: bool,
    /// One operand that is a usual branch is a name; any other one is a file whose changes are lost.
    #[serde(default)]
    pub(super) one_name: bool,
}

impl CommandEntry {
    /// The first of the commands that it is for.
    pub(crate) fn name(&self) -> &str {
        self.run.first().map_or("", String::as_str)
    }

    /// The lists of effects in it.
    pub(crate) fn named_effects(&self) -> impl Iterator<Item = &Vec<String>> {
        std::iter::once(&self.effects).chain(self.options.values())
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        let first = self.name();
        if self.run.is_empty() || self.run.iter().any(|run| run.trim().is_empty()) {
            return Err("`run` of a [[command]] is empty: write `run = [\"make test\"]`".to_owned());
        }
        let blank = |effects: &Vec<String>| effects.is_empty() || effects.iter().any(|effect| effect.trim().is_empty());
        if self.named_effects().any(blank) {
            return Err(format!("`effects` and `options` of the command `{first}` must name at least one effect each"));
        }
        Ok(())
    }
}

/// Entries by their program.
#[derive(Debug, Clone, Default)]
pub(crate) struct Commands {
    entries: Vec<CommandEntry>,
    /// For each program the first words of its entries behind it, with the entry's place, the longest first.
    programs: HashMap<String, Vec<(Vec<String>, usize)>>,
    globals: HashMap<String, Vec<String>>,
}

/// An entry that fits a command.
pub(super) struct Fit<'a> {
    pub(super) entry: &'a CommandEntry,
    /// Where the arguments behind the entry's words begin.
    pub(super) rest: usize,
    /// Values of options that stand before the sub-command, such as the directory of `git -C`.
    pub(super) before: Vec<String>,
}

impl Commands {
    pub(crate) fn of(entries: Vec<CommandEntry>) -> Self {
        let mut programs: HashMap<String, Vec<(Vec<String>, usize)>> = HashMap::new();
        let mut globals: HashMap<String, Vec<String>> = HashMap::new();
        for (place, entry) in entries.iter().enumerate() {
            for run in &entry.run {
                let mut words = run.split_whitespace().map(str::to_owned);
                let Some(program) = words.next() else { continue };
                globals.entry(program.clone()).or_default().extend(entry.global.iter().cloned());
                programs.entry(program).or_default().push((words.collect(), place));
            }
        }
        for prefixes in programs.values_mut() {
            // A stable sort: of equal prefixes the first entry holds, which is the user's.
            prefixes.sort_by_key(|(words, _)| std::cmp::Reverse(words.len()));
        }
        Self { entries, programs, globals }
    }

    /// Entries that take the place of equal ones here.
    pub(crate) fn put_before(&mut self, mut entries: Vec<CommandEntry>) {
        if !entries.is_empty() {
            entries.append(&mut self.entries);
            *self = Self::of(entries);
        }
    }

    /// The entry for a program and its arguments; `None` if the table does not know the program or its sub-command.
    pub(super) fn find(&self, program: &str, arguments: &[Word]) -> Option<Fit<'_>> {
        let prefixes = self.programs.get(program)?;
        let globals = self.globals.get(program).map(Vec::as_slice).unwrap_or_default();
        let (skipped, before) = skipped(globals, arguments);
        let behind = arguments.get(skipped..).unwrap_or_default();
        let begins = |words: &Vec<String>| {
            behind.len() >= words.len()
                && words.iter().zip(behind).all(|(word, argument)| argument.is_literal() && *word == argument.text)
        };
        let (words, place) = prefixes.iter().find(|(words, _)| begins(words))?;
        Some(Fit { entry: self.entries.get(*place)?, rest: skipped + words.len(), before })
    }
}

/// How many arguments are options of the program itself, and the values among them.
fn skipped(globals: &[String], arguments: &[Word]) -> (usize, Vec<String>) {
    let (mut at, mut values) = (0, Vec::new());
    while let Some(argument) = arguments.get(at).filter(|argument| argument.is_literal()) {
        let takes = |global: &&String| global.strip_suffix('=').is_some_and(|name| name == argument.text);
        let joined =
            |global: &&String| global.starts_with("--") && argument.text.strip_prefix(global.as_str()).is_some();
        if globals.contains(&argument.text) {
            at += 1;
        } else if globals.iter().any(|global| takes(&global)) {
            values.extend(arguments.get(at + 1).map(|value| value.text.clone()));
            at += 2;
        } else if globals.iter().filter(|global| global.ends_with('=')).any(|global| joined(&global)) {
            values.extend(argument.text.split_once('=').map(|(_, value)| value.to_owned()));
            at += 1;
        } else {
            break;
        }
    }
    (at.min(arguments.len()), values)
}

impl CommandEntry {
    /// Effects that a word adds, as one of the entry's options.
    pub(super) fn added(&self, word: &str) -> impl Iterator<Item = &str> {
        let letters = options::cluster(self, word);
        let fits = self.options.iter().filter(move |(option, _)| {
            let single = option.len() == 2 && option.starts_with('-') && *option != "--";
            is_option(option, if single { letters } else { word })
        });
        fits.flat_map(|(_, effects)| effects).map(String::as_str)
    }
}
