//! Options and operands of one simple command, and the files among them.

use super::lex::Word;
use crate::effects::{DISCARD, READ, READ_SECRET, UNKNOWN, WRITE};
use crate::path::{OwnFiles, Place, names_secret, pattern_names_control, pattern_names_secret};

use super::Found;
use super::commands::{CommandEntry, Fit, Operands};
use super::options::{self, Shape};
use super::tasks;

/// Directories in which a command may run: behind a `cd` that can fail it is the one before or the one after.
const MAX_DIRECTORIES: usize = 8;
/// The longest directory that is followed, in bytes.
const MAX_PATH_BYTES: usize = 4_096;
/// The most patterns whose names are compared; more make a command unknown.
const MAX_PATTERNS: usize = 500;
/// Parts of the names of variables that hold secrets.
const SECRET_VARIABLES: &[&str] =
    &["AUTH", "CRED", "DATABASE", "DSN", "KEY", "PASS", "PAT", "PRIVATE", "SECRET", "TOKEN"];

/// Where relative paths lie: prefixes to the working directory of the whole command.
#[derive(Debug, Clone)]
pub(super) struct Directories {
    root: Option<String>,
    own: OwnFiles,
    prefixes: Vec<String>,
    lost: bool,
}

impl Directories {
    pub(super) fn new(root: Option<&str>, own: &OwnFiles) -> Self {
        Self { root: root.map(str::to_owned), own: own.clone(), prefixes: vec![String::new()], lost: false }
    }

    /// The directory in which the whole command begins.
    pub(super) fn begin(&mut self, at: &str) {
        if at.len() > MAX_PATH_BYTES {
            return self.lose();
        }
        self.prefixes = vec![at.to_owned()];
    }

    /// A `cd`: from now on it may be there.
    pub(super) fn change(&mut self, to: &str) {
        if self.lost || to.len() > MAX_PATH_BYTES {
            return self.lose();
        }
        let there: Vec<String> = self.prefixes.iter().map(|prefix| joined(prefix, to)).collect();
        for prefix in there {
            if !self.prefixes.contains(&prefix) {
                self.prefixes.push(prefix);
            }
        }
        let long = self.prefixes.iter().any(|prefix| prefix.len() > MAX_PATH_BYTES);
        if long || self.prefixes.len() > MAX_DIRECTORIES {
            self.lose();
        }
    }

    /// From now on it is not known where it is.
    pub(super) fn lose(&mut self) {
        self.lost = true;
        self.prefixes.truncate(1);
    }

    /// A file that is read.
    pub(super) fn read_word(&self, word: &Word, found: &mut Found) {
        if word.glob && pattern_names_secret(&word.text) {
            found.add(READ_SECRET);
        }
        self.read(&word.text, found);
    }

    /// The same by its name, which is no pattern.
    pub(super) fn read(&self, path: &str, found: &mut Found) {
        if names_secret(path) {
            found.add(READ_SECRET);
        }
        for place in self.places(path) {
            found.add(place.read());
            found.target(&place.text);
        }
    }

    /// A file that is changed.
    pub(super) fn write(&self, path: &str, found: &mut Found) {
        self.change_file(path, WRITE, found);
    }

    /// The same; `usual` is the effect where the file is an ordinary one.
    pub(super) fn change_file(&self, path: &str, usual: &'static str, found: &mut Found) {
        if self.lost && !path.starts_with('/') {
            found.unknown("a file in a directory that is not known");
        }
        for place in self.places(path) {
            if place.is_device() {
                found.add(READ);
                continue;
            }
            found.add(place.write(usual));
            found.target(&place.text);
        }
    }

    /// Whether a path may lie outside of the project.
    pub(super) fn is_outside(&self, path: &str) -> bool {
        self.lost || self.places(path).iter().any(Place::is_outside)
    }

    fn places(&self, path: &str) -> Vec<Place> {
        let root = self.root.as_deref();
        let mut places: Vec<Place> =
            self.prefixes.iter().map(|prefix| Place::of(root, &joined(prefix, path), &self.own)).collect();
        places.dedup();
        places
    }
}

/// A path behind a prefix, unless it stands alone.
pub(crate) fn joined(prefix: &str, path: &str) -> String {
    let stands_alone = prefix.is_empty() || path.starts_with(['/', '~']);
    if stands_alone { path.to_owned() } else { format!("{prefix}/{path}") }
}

/// Judges the arguments of a command by its entry.
pub(super) fn judge(fit: &Fit<'_>, arguments: &[Word], directories: &Directories, found: &mut Found) {
    let entry = fit.entry;
    let rest = arguments.get(fit.rest..).unwrap_or_default();
    for effect in &entry.effects {
        add(effect, found);
    }
    let changes = entry.effects.iter().any(|effect| effect != READ);
    for value in fit.before.iter().filter(|_| changes) {
        directories.change_file(value, READ, found);
    }
    let mut patterns = 0;
    for word in rest {
        entry.added(&word.text).for_each(|effect| add(effect, found));
        if word.variable || word.leading_glob {
            at_run_time(entry, word, found);
            if entry.operands == Operands::Text && holds_secret_variable(word) {
                found.add(READ_SECRET);
            }
        }
        if word.glob && entry.operands != Operands::Text {
            patterns += 1;
            if patterns > MAX_PATTERNS {
                found.unknown("more patterns than are compared");
                break;
            }
            pattern(entry, word, found);
        }
    }
    let operands = operands(entry, rest, directories, found);
    if entry.task {
        // Behind `--` stand arguments of the task, unless it is only there that one is named.
        let end = rest.iter().position(|word| entry.passes_on && word.text == "--").unwrap_or(rest.len());
        let named = rest.get(..end).unwrap_or_default();
        let mut own = self::operands(entry, named, directories, &mut Found::default());
        if own.is_empty() {
            own.clone_from(&operands);
        }
        tasks::judge(&own, found);
    }
    if entry.one_name {
        one_name(&operands, found);
    }
    let empties = operands.iter().any(|word| matches!(word.text.as_str(), "/dev/null" | "/dev/zero"));
    if empties && matches!(entry.operands, Operands::Write | Operands::Copy) && operands.len() > 1 {
        found.add(DISCARD);
    }
    for (index, word) in operands.iter().enumerate() {
        let last = index > 0 && index + 1 == operands.len();
        operand(entry, word, last, directories, found);
    }
}

/// A word with a pattern: an option that is made when the command runs, or the name of a file that matters.
fn pattern(entry: &CommandEntry, word: &Word, found: &mut Found) {
    let text = word.text.as_str();
    let value = text.find('=').unwrap_or(text.len());
    let in_option = text.starts_with('-') && word.glob_at.is_none_or(|at| at < value);
    let changes = entry.effects.iter().any(|effect| effect != READ);
    let deep = text.rsplit_once('/').is_some_and(|(directory, _)| {
        directory.split('/').any(|part| part.contains(['*', '?', '[', '{']) && part.chars().any(|c| c != '*'))
    });
    let hidden = text.split('/').any(|part| part.starts_with('.') && part.contains(['*', '?', '[', '{']));
    let writes = matches!(entry.operands, Operands::Write | Operands::Copy) && (deep || hidden);
    if in_option || writes || changes && pattern_names_control(text) {
        found.unknown("an argument that is made when the command runs");
    }
    if pattern_names_secret(text) {
        found.add(READ_SECRET);
    }
}

/// One operand is the name of a branch that everybody knows; any other one could be a file whose changes are lost.
fn one_name(operands: &[&Word], found: &mut Found) {
    let branches = ["main", "master", "develop", "dev", "trunk", "-"];
    match operands {
        [] => {}
        [name] if name.is_literal() && branches.contains(&name.text.as_str()) => {}
        _ => found.add(DISCARD),
    }
}

fn add(effect: &str, found: &mut Found) {
    if effect == UNKNOWN {
        found.unknown("a program, or an option of it, that runs what it is given");
    } else {
        found.add(effect);
    }
}

/// A word whose text is made when the command runs: it may be an option, or any file.
fn at_run_time(entry: &CommandEntry, word: &Word, found: &mut Found) {
    let harmless = entry.operands == Operands::Text && entry.options.is_empty();
    let listing = word.leading_glob && !word.variable && entry.options.is_empty() && entry.operands != Operands::Write;
    if !harmless && !listing {
        found.unknown("an argument that is made when the command runs");
    }
}

/// Arguments that are no options and no values of options. Options are judged on the way.
fn operands<'a>(entry: &CommandEntry, rest: &'a [Word], directories: &Directories, found: &mut Found) -> Vec<&'a Word> {
    let mut operands = Vec::new();
    let mut all = false;
    let mut words = rest.iter();
    while let Some(word) = words.next() {
        let text = word.text.as_str();
        if !all && text == "--" {
            all = true;
        } else if !all && text.starts_with('-') && text != "-" {
            let shape = options::shape(entry, text);
            option_value(entry, text, directories, found);
            match shape {
                Shape::Alone => {}
                Shape::Value(value) => option_file(value, directories, found),
                Shape::Next { writes } => {
                    let value = words.next().map_or("", |word| word.text.as_str());
                    if writes {
                        option_file(value, directories, found);
                    } else if entry.operands != Operands::Text && (names_secret(value) || pattern_names_secret(value)) {
                        found.add(READ_SECRET);
                    }
                }
                Shape::Unknown => found.unknown("an option that the table does not know"),
            }
        } else {
            operands.push(word);
        }
    }
    operands
}

/// The file or directory that an option names, which is changed.
fn option_file(value: &str, directories: &Directories, found: &mut Found) {
    if value.is_empty() {
        return;
    }
    if value.contains(['*', '?', '[', '{', '$']) {
        found.unknown("an argument that is made when the command runs");
    }
    directories.change_file(value, READ, found);
}

/// A file in the value of an option, such as `--file=.env` or `-C/etc`.
fn option_value(entry: &CommandEntry, text: &str, directories: &Directories, found: &mut Found) {
    if entry.operands != Operands::Text && names_secret(text) {
        found.add(READ_SECRET);
    }
    let value = text.split_once('=').map(|(_, value)| value);
    let joined = value.or_else(|| text.get(2..).filter(|_| text.contains('/') || text.contains("..")));
    if let Some(value) = joined.filter(|_| matches!(entry.operands, Operands::Write | Operands::Copy)) {
        directories.change_file(value, READ, found);
    }
}

fn operand(entry: &CommandEntry, word: &Word, last: bool, directories: &Directories, found: &mut Found) {
    let text = word.text.as_str();
    match entry.operands {
        Operands::Text => {}
        Operands::None => found.unknown("an argument where none is known"),
        Operands::Last if last => directories.change_file(text, READ, found),
        Operands::Names | Operands::Last => {
            let runs = entry.effects.iter().any(|effect| matches!(effect.as_str(), "install" | "execute"));
            if runs && (text.contains("://") || text.starts_with("git+") || text.starts_with("git@")) {
                found.unknown("code from an address is run");
            }
            let secret = |name: &str| name.to_ascii_lowercase().split(['/', '.']).next().is_some_and(is_secret_kind);
            if names_secret(text) || text.split(',').any(secret) {
                found.add(READ_SECRET);
            }
        }
        Operands::Read => directories.read_word(word, found),
        Operands::Copy if !last => directories.read_word(word, found),
        Operands::Write | Operands::Copy => {
            if word.glob && text.contains('{') {
                found.unknown("files that are made when the command runs");
            }
            if text.starts_with('@') {
                found.unknown("arguments from a file");
            }
            // What the entry says about an ordinary file holds.
            directories.change_file(text, READ, found);
        }
    }
}

/// How clusters call what holds secrets.
fn is_secret_kind(name: &str) -> bool {
    matches!(name, "secret" | "secrets")
}

/// Whether a word holds a variable whose name says that it is a secret.
pub(super) fn holds_secret_variable(word: &Word) -> bool {
    let secret = |text: &str| {
        let name: String = text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        let name = name.to_ascii_uppercase();
        name != "PATH" && SECRET_VARIABLES.iter().any(|part| name.contains(part))
    };
    word.variable && word.text.split('$').skip(1).any(secret)
}
