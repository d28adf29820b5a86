//! What a shell command does, as far as its text says it.
//!
//! A command is split as a POSIX shell splits it, each simple command is looked up in a table of programs, and the
//! effects are put together. INVARIANT: what cannot be read (substitutions, `eval`, code for interpreters, programs and
//! options that the table does not know, odd characters) is `unknown`, which counts as high; the rest of the command is
//! still judged. Time and memory are linear in the command.
//!
//! What it promises: a command that reads well is what it says. What it cannot promise: what a program does that the
//! project itself makes. An agent may write a test, a `Makefile` or a build script and then run it with `cargo test` or
//! `make`, and both are ordinary work; so are install scripts of packages. Nor does it see where symbolic links lead,
//! what a recursive search such as `grep -r` comes across, what a repository's own settings start (`git -C dir`), files
//! whose names look like options, or aliases and settings of the person's shell. It stops habits and mistakes. Against
//! code that means harm there is the sandbox, or a table in which builds are `unknown`.

mod arguments;
mod commands;
mod lex;
mod names;
mod network;
mod options;
mod reader;
mod scripts;
mod tasks;
mod wrappers;

use std::collections::BTreeSet;

use serde_json::Value;

pub(crate) use arguments::joined;
pub(crate) use commands::{CommandEntry, Commands};

pub(crate) use network::{Address, address_kind};

use crate::effects::{DOWNLOAD, UNKNOWN, listed};
use crate::path::{Base, OwnFiles};
use crate::table::Table;

/// The most targets of one command; more make it unknown.
const MAX_TARGETS: usize = 200;

/// The longest working directory, in bytes.
pub(crate) const MAX_DIRECTORY_BYTES: usize = 4_096;

/// What a command does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reading {
    /// Its effects, sorted; never empty.
    pub effects: Vec<String>,
    /// Files and hosts that it names, in the order in which it names them.
    pub targets: Vec<String>,
    /// Why it is `unknown`, for people: what could not be read. Quotes nothing of the command.
    pub unread: Vec<&'static str>,
}

/// Reads a shell command that is run in `cwd`, which is the project.
pub fn classify(table: &Table, command: &str, cwd: Option<&str>) -> Reading {
    classify_in(table, command, Base { cwd, moved: None, own: &OwnFiles::default() })
}

/// The same, with all that is known about where it runs.
pub(crate) fn classify_in(table: &Table, command: &str, base: Base<'_>) -> Reading {
    let mut found = Found::default();
    found.marks(command);
    let cwd = base.cwd.filter(|cwd| {
        cwd.len() <= MAX_DIRECTORY_BYTES || {
            found.unknown("a working directory that is too long");
            false
        }
    });
    reader::read(&table.commands, command, Base { cwd, ..base }, &mut found);
    if found.effects.contains(DOWNLOAD) && found.effects.contains("execute") {
        found.unknown("code that is downloaded and run in one command");
    }
    Reading { effects: listed(found.effects), targets: found.targets, unread: found.unread.into_iter().collect() }
}

/// The text of a command argument: a text, or a list of words as an agent would run it without a shell.
pub(crate) fn command_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(items) => {
            let words: Vec<&str> = items.iter().map(Value::as_str).collect::<Option<_>>()?;
            Some(match words.as_slice() {
                [shell, flag, script] if is_shell(shell) && matches!(*flag, "-c" | "-lc") => (*script).to_owned(),
                _ => words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
            })
        }
        _ => None,
    }
}

fn is_shell(name: &str) -> bool {
    matches!(reader::program_name(name), "bash" | "sh" | "zsh" | "dash")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ':' | '=' | ',' | '+' | '@');
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// What was found so far.
#[derive(Debug, Default)]
struct Found {
    effects: BTreeSet<String>,
    targets: Vec<String>,
    unread: BTreeSet<&'static str>,
}

impl Found {
    fn add(&mut self, effect: &str) {
        if !self.effects.contains(effect) {
            self.effects.insert(effect.to_owned());
        }
    }

    fn unknown(&mut self, why: &'static str) {
        self.add(UNKNOWN);
        self.unread.insert(why);
    }

    fn target(&mut self, target: &str) {
        if self.targets.len() >= MAX_TARGETS {
            self.unknown("more targets than are named");
        } else if !self.targets.iter().any(|known| known == target) {
            self.targets.push(target.to_owned());
        }
    }

    /// Marks that make a command unknown wherever they stand, even in quotes: a shell that is handed the quoted text
    /// later would act on them.
    fn marks(&mut self, command: &str) {
        for (mark, why) in [
            ("`", "a command substitution"),
            ("$(", "a command substitution"),
            ("<(", "a process substitution"),
            (">(", "a process substitution"),
        ] {
            if command.contains(mark) {
                self.unknown(why);
            }
        }
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if command.split(|c: char| !is_word(c)).any(|word| word == "eval") {
            self.unknown("`eval`");
        }
        if command.chars().any(is_odd) {
            self.unknown("a control character or an invisible one");
        }
    }
}

/// Control characters but tab and line feed, and characters that are not visible.
fn is_odd(c: char) -> bool {
    (c.is_control() && !matches!(c, '\t' | '\n')) || stage0_contract::is_invisible(c)
}
