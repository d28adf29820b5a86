//! Simple commands, their redirects and what joins them.

use super::arguments::{self, Directories};
use super::lex::{Token, Word, lex};
use super::names::{self, Names};
use super::{Commands, Found, network, scripts, wrappers};
use crate::effects::DISCARD;
use crate::path::Base;

/// Commands within commands: `bash -c` in `bash -c`.
const MAX_DEPTH: usize = 4;
/// Programs that run programs that run programs.
const MAX_WRAPPERS: usize = 20;
/// Parentheses within parentheses.
const MAX_PARENTHESES: usize = 64;
/// Words that only say how commands are joined, and stand before one.
const JOINING: &[&str] = &["!", "do", "elif", "else", "if", "then", "until", "while", "{"];
/// The same behind one.
const ENDING: &[&str] = &["}", "done", "fi"];
/// Variables whose assignment changes no program but the project's own.
const HARMLESS_VARIABLES: &[&str] = &[
    "CARGO_INCREMENTAL",
    "CARGO_NET_OFFLINE",
    "CARGO_TERM_COLOR",
    "CGO_ENABLED",
    "CI",
    "CLICOLOR",
    "COLUMNS",
    "DEBUG",
    "FORCE_COLOR",
    "GOARCH",
    "GOOS",
    "HOST",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "LINES",
    "LOG_LEVEL",
    "NODE_ENV",
    "NO_COLOR",
    "PORT",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONHASHSEED",
    "PYTHONUNBUFFERED",
    "RUST_BACKTRACE",
    "RUST_LOG",
    "TERM",
    "TZ",
    "VERBOSE",
];
/// Parts of lower-case names that shells read.
const HARMFUL_PARTS: &[&str] = &["path", "precmd", "preexec", "prompt"];
/// The most words that are judged in the commands of `find` and the like, for which one command is judged often.
const MAX_JUDGED: usize = 20_000;

/// One simple command.
#[derive(Debug, Default)]
struct Simple {
    words: Vec<Word>,
    /// It reads what another command writes.
    piped: bool,
    /// It writes a file.
    writes: bool,
}

/// What a command gets besides its words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input {
    /// What the commands before it in the pipe write: names of files, or anything.
    pub(super) names: Names,
}

pub(super) struct Reader<'a> {
    pub(super) commands: &'a Commands,
    pub(super) found: &'a mut Found,
    pub(super) directories: Directories,
    depth: usize,
    /// Directories before each open parenthesis.
    outer: Vec<Directories>,
    names: Names,
    wrappers: usize,
    /// How many words of commands within others were judged.
    pub(super) judged: usize,
}

/// Reads a whole command.
pub(super) fn read(commands: &Commands, command: &str, base: Base<'_>, found: &mut Found) {
    let mut directories = Directories::new(base.cwd, base.own);
    if let Some(moved) = base.moved {
        directories.begin(moved);
    }
    Reader { commands, found, directories, depth: 0, outer: Vec::new(), names: Names::Unknown, wrappers: 0, judged: 0 }
        .all(command);
}

impl Reader<'_> {
    /// A command within this one, such as the text of `bash -c`.
    pub(super) fn nested(&mut self, command: &str) {
        if self.depth >= MAX_DEPTH {
            return self.found.unknown("commands within commands");
        }
        Reader {
            commands: self.commands,
            found: self.found,
            directories: self.directories.clone(),
            depth: self.depth + 1,
            outer: Vec::new(),
            names: Names::Unknown,
            wrappers: 0,
            judged: self.judged,
        }
        .all(command);
    }

    fn all(mut self, command: &str) {
        let lexed = lex(command);
        for why in lexed.unread {
            self.found.unknown(why);
        }
        let mut simple = Simple::default();
        let mut tokens = lexed.tokens.into_iter().peekable();
        while let Some(token) = tokens.next() {
            match token {
                Token::Word(word) => simple.words.push(word),
                Token::End => self.flush(&mut simple, false),
                Token::Pipe => {
                    self.flush(&mut simple, true);
                    simple.piped = true;
                }
                Token::Open => {
                    self.flush(&mut simple, false);
                    if self.outer.len() < MAX_PARENTHESES {
                        self.outer.push(self.directories.clone());
                    } else {
                        self.found.unknown("parentheses within parentheses");
                        self.directories.lose();
                    }
                }
                Token::Close => {
                    self.flush(&mut simple, false);
                    match self.outer.pop() {
                        Some(directories) => self.directories = directories,
                        None => self.found.unknown("a parenthesis too many"),
                    }
                }
                Token::From | Token::To | Token::Data => match tokens.next() {
                    Some(Token::Word(word)) => {
                        simple.writes |= token == Token::To && !is_stream(&word.text);
                        self.redirect(&token, &word);
                    }
                    _ => self.found.unknown("a redirect without a target"),
                },
            }
        }
        self.flush(&mut simple, false);
        if !self.outer.is_empty() {
            self.found.unknown("a parenthesis without an end");
        }
    }

    fn redirect(&mut self, token: &Token, word: &Word) {
        let text = word.text.as_str();
        match token {
            Token::Data if arguments::holds_secret_variable(word) => self.found.add(crate::effects::READ_SECRET),
            Token::Data => {}
            _ if !word.is_literal() => self.found.unknown("a redirect whose target is made when the command runs"),
            _ if text.starts_with("/dev/tcp/") || text.starts_with("/dev/udp/") => {
                self.found.unknown("a redirect to the network");
            }
            Token::From => self.directories.read(text, self.found),
            _ => self.directories.write(text, self.found),
        }
    }

    fn flush(&mut self, simple: &mut Simple, into_pipe: bool) {
        let Simple { words, piped, writes } = std::mem::take(simple);
        let group = words.is_empty() || ENDING.iter().any(|word| words.first().is_some_and(|w| w.is_reserved(word)));
        let words = joined_words(&words);
        let nothing = words.first().is_none_or(|word| matches!(word.text.as_str(), ":" | "true")) && !group;
        if writes && (nothing || words.is_empty() && !piped) {
            // Nothing goes into the file: it is emptied.
            self.found.add(DISCARD);
        }
        if let Some(first) = words.first() {
            if ["for", "select"].iter().any(|word| first.is_reserved(word)) {
                return self.loop_variable(words);
            }
            if ["case", "coproc", "function", "((", "[["].iter().any(|word| first.is_reserved(word)) {
                return self.found.unknown("a construct of the shell that is not read");
            }
            let input = Input { names: if piped { self.names } else { Names::Unknown } };
            self.simple(words, input, piped || into_pipe);
            self.names = if group { Names::Unknown } else { names::written(words, piped.then_some(self.names)) };
        } else {
            self.names = Names::Unknown;
        }
    }

    /// `for name in …`: it assigns the name as `name=…` does, and what it holds is not known where it is used.
    fn loop_variable(&mut self, words: &[Word]) {
        let harmless = words.get(1).is_some_and(|word| word.is_literal() && is_own_variable(&word.text));
        if harmless {
            self.found.add(crate::effects::READ);
        } else {
            self.found.unknown("a variable that may change what programs do");
        }
    }

    /// Assignments, then a command.
    fn simple(&mut self, words: &[Word], input: Input, in_pipe: bool) {
        let count = words.iter().take_while(|word| is_assignment(word)).count();
        let (assignments, words) = words.split_at(count.min(words.len()));
        for word in assignments {
            self.assignment(word, words.is_empty());
        }
        let Some(program) = words.first() else { return };
        match program.text.as_str() {
            "cd" if program.is_literal() => self.cd(words, in_pipe),
            "export" if program.is_literal() => self.export(words),
            _ => self.command(words, input),
        }
    }

    /// `alone`: no program gets it in its environment.
    pub(super) fn assignment(&mut self, word: &Word, alone: bool) {
        let name = word.assigned.and_then(|at| word.text.get(..at)).unwrap_or_default().trim_end_matches('+');
        let harmless = HARMLESS_VARIABLES.contains(&name) || (alone && is_own_variable(name));
        if harmless {
            self.found.add(crate::effects::READ);
        } else {
            self.found.unknown("a variable that may change what programs do");
        }
    }

    fn export(&mut self, words: &[Word]) {
        for word in words.iter().skip(1) {
            if is_assignment(word) {
                self.assignment(word, false);
            } else {
                self.found.unknown("a variable that may change what programs do");
            }
        }
        if words.len() == 1 {
            self.found.add(crate::effects::READ_SECRET);
        }
    }

    fn cd(&mut self, words: &[Word], in_pipe: bool) {
        self.found.add(crate::effects::READ);
        match words {
            [_, to] if to.is_literal() && !in_pipe && !to.text.starts_with('-') => self.directories.change(&to.text),
            [_] if !in_pipe => self.directories.change("~"),
            _ => self.directories.lose(),
        }
    }

    /// A command that is run on files of a listing. `narrow`: none of them is a file that decides what runs.
    pub(super) fn on_files(&mut self, words: &[Word], input: Input, narrow: bool) {
        self.judged += words.len();
        if self.judged > MAX_JUDGED {
            return self.found.unknown("more words than are judged");
        }
        let before = std::mem::take(&mut self.found.effects);
        self.command(words, input);
        let changes = ["filesystem_modification", "code_modification", "discard"];
        let deletes = self.found.effects.contains(crate::effects::DELETE);
        if !narrow && !deletes && changes.iter().any(|effect| self.found.effects.contains(*effect)) {
            self.found.add(crate::effects::CONTROL);
        }
        self.found.effects.extend(before);
    }

    /// One command without assignments: a wrapper around another one, a program with a syntax of its own, or one that
    /// the table describes.
    pub(super) fn command(&mut self, words: &[Word], input: Input) {
        let Some((program, arguments)) = words.split_first() else { return };
        if !program.is_literal() {
            return self.found.unknown("a program whose name is made when the command runs");
        }
        let name = program_name(&program.text);
        if self.wrappers >= MAX_WRAPPERS {
            return self.found.unknown("commands within commands");
        }
        self.wrappers += 1;
        let read = wrappers::read(self, name, arguments, input) || scripts::read(self, name, arguments, input);
        self.wrappers -= 1;
        if read {
            return;
        }
        if network::read(name, arguments, &self.directories, self.found) {
            return;
        }
        match self.commands.find(name, arguments) {
            Some(fit) => arguments::judge(&fit, arguments, &self.directories, self.found),
            None => self.found.unknown("a program, or a command of it, that the table does not know"),
        }
    }
}

/// A variable that no program reads: in lower case, and none of those that shells read.
fn is_own_variable(name: &str) -> bool {
    let lower = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    lower && !HARMFUL_PARTS.iter().any(|part| name.contains(part))
}

fn is_stream(text: &str) -> bool {
    text.starts_with("/dev/")
}

/// Without the reserved words around a simple command.
fn joined_words(words: &[Word]) -> &[Word] {
    let mut words = words;
    while let Some((first, rest)) = words.split_first() {
        if JOINING.iter().any(|word| first.is_reserved(word)) || ENDING.iter().any(|word| first.is_reserved(word)) {
            words = rest;
        } else {
            break;
        }
    }
    words
}

pub(super) fn is_assignment(word: &Word) -> bool {
    let name = word.assigned.and_then(|at| word.text.get(..at)).unwrap_or_default().trim_end_matches('+');
    let first = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    first && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '[' || c == ']')
}

/// The program's own name where it lies in a directory of the system; a path to any other one stays as it is.
pub(super) fn program_name(text: &str) -> &str {
    let system = ["/bin/", "/usr/bin/", "/sbin/", "/usr/sbin/", "/usr/local/bin/", "/opt/homebrew/bin/"];
    match text.rsplit_once('/') {
        Some((_, name)) if system.iter().any(|directory| text.strip_prefix(directory) == Some(name)) => name,
        _ => text,
    }
}
