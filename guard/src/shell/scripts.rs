//! Programs whose arguments are a language of their own: `find`, `sed`, `awk`, `dd`.

use super::lex::Word;
use super::names::{find_parts, is_narrow};
use super::options::is_option;
use super::reader::{Input, Reader};
use crate::effects::{DELETE, DISCARD, READ, READ_SECRET, UNKNOWN};
use crate::path::{names_secret, pattern_names_control, pattern_names_secret};

/// Directories of one `find` for which its command is judged.
const MAX_ROOTS: usize = 8;
/// The longest of them, in bytes; a longer one leaves `{}` as it is, which is no known file.
const MAX_ROOT_BYTES: usize = 1_000;

/// Why a word is not read.
const MADE: &str = "an argument that is made when the command runs";

/// Judges such a program; false if it is none.
pub(super) fn read(reader: &mut Reader<'_>, name: &str, arguments: &[Word], input: Input) -> bool {
    match name {
        "find" => find(reader, arguments, input),
        "sed" | "gsed" => sed(reader, arguments),
        "awk" | "gawk" | "mawk" | "nawk" => awk(reader, arguments),
        "dd" => dd(reader, arguments),
        "test" | "[" => test(reader, arguments),
        "tar" => {
            tar(reader, arguments);
            return false;
        }
        "ps" => {
            // Old letters without a dash: `e` shows the environments of processes.
            let old = |word: &Word| word.text.contains('e') && word.text.chars().all(|c| c.is_ascii_alphabetic());
            if arguments.first().is_some_and(old) {
                reader.found.add(READ_SECRET);
            }
            return false;
        }
        // Their filters read the environment, and the table knows the rest.
        "jq" | "yq" => {
            if arguments.iter().any(|word| word.text.to_ascii_lowercase().contains("env")) {
                reader.found.add(READ_SECRET);
            }
            return false;
        }
        _ => return false,
    }
    true
}

fn find(reader: &mut Reader<'_>, arguments: &[Word], input: Input) {
    reader.found.add(READ);
    let (roots, expression) = find_parts(arguments);
    if roots.len() > MAX_ROOTS {
        reader.found.unknown("more directories than are read");
    }
    for root in roots {
        if root.variable || root.leading_glob {
            reader.found.unknown(MADE);
        }
        reader.directories.read_word(root, reader.found);
    }
    if expression.first().is_some_and(|word| word.text.starts_with("-O") || word.text == "-D") {
        reader.found.unknown("an option before the directories");
    }
    let narrow = is_narrow(roots, expression);
    let mut words = expression.iter();
    while let Some(word) = words.next() {
        match word.text.as_str() {
            "-exec" | "-execdir" | "-ok" | "-okdir" => {
                let mut command: Vec<&Word> = Vec::new();
                for word in words.by_ref() {
                    let ends =
                        word.text == ";" || word.text == "+" && command.last().is_some_and(|last| last.text == "{}");
                    if ends {
                        break;
                    }
                    command.push(word);
                }
                on_found(reader, roots, &command, input, narrow);
            }
            "-delete" => reader.found.add(DELETE),
            "-fprint" | "-fprint0" | "-fls" | "-fprintf" => match words.next() {
                Some(file) if file.is_literal() => reader.directories.write(&file.text, reader.found),
                _ => reader.found.unknown(MADE),
            },
            "-files0-from" => reader.found.unknown(MADE),
            _ if word.variable => reader.found.unknown(MADE),
            _ if word.glob && word.text.starts_with('-') => reader.found.unknown(MADE),
            text if names_secret(text) || pattern_names_secret(text) => reader.found.add(READ_SECRET),
            _ => {}
        }
    }
}

/// The command of an `-exec`, for each root.
fn on_found(reader: &mut Reader<'_>, roots: &[Word], command: &[&Word], input: Input, narrow: bool) {
    let here = Word { text: ".".to_owned(), ..Word::default() };
    let places = if roots.is_empty() { std::slice::from_ref(&here) } else { roots };
    let uses = command.iter().any(|word| word.text.contains("{}"));
    for root in places.iter().take(MAX_ROOTS) {
        if uses && reader.directories.is_outside(&root.text) {
            // Whatever lies there is handed to a program, and nothing is known about it.
            reader.found.add(READ_SECRET);
        }
        let command: Vec<Word> = command.iter().map(|word| matched(word, root)).collect();
        reader.on_files(&command, input, narrow || !uses);
    }
}

/// `{}` stands for what was found: something below a root.
fn matched(word: &Word, root: &Word) -> Word {
    if !word.text.contains("{}") || root.text.len() > MAX_ROOT_BYTES {
        return word.clone();
    }
    Word { text: word.text.replace("{}", &root.text), glob: false, leading_glob: false, ..word.clone() }
}

fn sed(reader: &mut Reader<'_>, arguments: &[Word]) {
    let mut scripts: Vec<&Word> = Vec::new();
    let mut files: Vec<&Word> = Vec::new();
    let (mut in_place, mut all) = (false, false);
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let text = word.text.as_str();
        match text {
            _ if all || !text.starts_with('-') || text == "-" => files.push(word),
            "--" => all = true,
            "-e" | "--expression" => scripts.extend(words.next()),
            "-i" | "--in-place" => in_place = true,
            "-n" | "-E" | "-r" | "-s" | "-u" | "-z" | "--quiet" | "--silent" | "--regexp-extended" | "--posix" => {}
            _ if text.starts_with("-i") || is_option("--in-place", text) => {
                in_place = true;
                // In a suffix `*` stands for the name, and a `/` leads to another directory.
                if word.glob || text.contains(['*', '/']) {
                    return reader.found.unknown("an option of an editor of streams");
                }
            }
            "-ni" | "-Ei" | "-nE" | "-nr" | "-En" | "-ri" => in_place |= text.ends_with('i'),
            _ => return reader.found.unknown("an option of an editor of streams"),
        }
    }
    if scripts.is_empty() && !files.is_empty() {
        scripts.push(files.remove(0));
    }
    if scripts.is_empty() || !scripts.iter().all(|script| !script.variable && is_plain_sed(&script.text)) {
        reader.found.unknown("a script for an editor of streams");
    }
    reader.found.add(READ);
    if in_place && scripts.iter().any(|script| matches!(script.text.trim(), "d" | "1,$d")) {
        reader.found.add(DISCARD);
    }
    for file in files {
        if in_place && (pattern_names_control(&file.text) || pattern_names_secret(&file.text)) && file.glob {
            reader.found.unknown(MADE);
        }
        if file.variable || file.leading_glob && file.text.starts_with('{') {
            reader.found.unknown("an argument that is made when the command runs");
        } else if in_place {
            reader.directories.write(&file.text, reader.found);
        } else {
            reader.directories.read_word(file, reader.found);
        }
    }
}

/// Scripts that only print, delete and replace: `s` without `e` and `w`, and `d`, `p`, `q`, `=` behind an address.
fn is_plain_sed(script: &str) -> bool {
    script.split([';', '\n']).all(|command| {
        let command = command.trim();
        command.is_empty() || is_plain_sed_command(command)
    })
}

fn is_plain_sed_command(command: &str) -> bool {
    let address = |c: char| c.is_ascii_digit() || matches!(c, ',' | '$' | '~' | '+' | '!' | ' ');
    let mut rest = command.trim_start_matches(address);
    // `/pattern/` as an address, once or as a range.
    for _ in 0..2 {
        if let Some(after) = rest.strip_prefix('/') {
            let Some(end) = unescaped(after, '/') else { return false };
            rest = after.get(end + 1..).unwrap_or_default().trim_start_matches(address);
        }
    }
    match rest.chars().next() {
        Some('p' | 'd' | 'q' | '=' | 'n' | 'N' | 'D' | 'P' | 'h' | 'H' | 'g' | 'G' | 'x' | 'l') => rest.len() == 1,
        Some('s') => is_plain_substitution(rest),
        _ => false,
    }
}

fn is_plain_substitution(command: &str) -> bool {
    let mut chars = command.chars().skip(1);
    let Some(delimiter) = chars.next().filter(|c| c.is_ascii_punctuation() && *c != '\\') else { return false };
    let body = command.get(2..).unwrap_or_default();
    let Some(first) = unescaped(body, delimiter) else { return false };
    let second = body.get(first + 1..).unwrap_or_default();
    let Some(end) = unescaped(second, delimiter) else { return false };
    second.get(end + 1..).unwrap_or_default().chars().all(|c| matches!(c, 'g' | 'i' | 'I' | 'p' | '0'..='9'))
}

/// Where a character stands that no backslash is before.
fn unescaped(text: &str, wanted: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == wanted => return Some(at),
            _ => {}
        }
    }
    None
}

fn awk(reader: &mut Reader<'_>, arguments: &[Word]) {
    let mut script = None;
    let mut words = arguments.iter();
    reader.found.add(READ);
    while let Some(word) = words.next() {
        let text = word.text.as_str();
        match text {
            _ if word.variable => reader.found.unknown("an argument that is made when the command runs"),
            "-F" | "-v" => _ = words.next(),
            _ if script.is_none() && (text.starts_with("-F") || text.starts_with("-v")) => {}
            _ if script.is_none() && text.starts_with('-') => {
                return reader.found.unknown("an option of a language");
            }
            _ if script.is_none() => script = Some(text),
            _ => reader.directories.read_word(word, reader.found),
        }
    }
    // A comparison with `>` looks like a redirect, and is taken for one.
    let runs = ["system", "|", ">", "getline", "@", "close", "ENVIRON", "ARGV", "ARGC"];
    if script.is_none_or(|script| runs.iter().any(|part| script.contains(part))) {
        reader.found.unknown("a script of a language");
    }
}

fn dd(reader: &mut Reader<'_>, arguments: &[Word]) {
    for word in arguments {
        match word.text.split_once('=') {
            _ if word.variable => reader.found.add(UNKNOWN),
            Some(("of", file)) => reader.directories.write(file, reader.found),
            Some(("if", file)) if file.starts_with("/dev/") => reader.found.add(DISCARD),
            Some(("if", file)) => reader.directories.read(file, reader.found),
            Some(_) => reader.found.add(READ),
            None => reader.found.unknown("an argument of `dd`"),
        }
    }
}

/// `tar`: the names in an archive are not seen, so unpacking may change any file of the directory. The first word may
/// be letters without a dash.
fn tar(reader: &mut Reader<'_>, arguments: &[Word]) {
    let first = arguments.first().map_or("", |word| word.text.as_str());
    let old = !first.starts_with('-');
    if old && !first.chars().all(|c| "cxtvzjJfrupk".contains(c)) {
        reader.found.unknown("an option of `tar`");
    }
    let unpacks = |word: &Word| {
        let text = word.text.as_str();
        text.starts_with("--ex") && !text.starts_with("--exclude")
            || text.starts_with("--g") && !text.starts_with("--gzip")
            || text.starts_with('-') && !text.starts_with("--") && text.contains('x')
    };
    if old && first.contains('x') || arguments.iter().any(unpacks) {
        reader.found.unknown("an archive whose contents are not seen");
    }
}

/// `test` and `[`. `-v` and `-R` work out what stands in brackets, which runs the substitutions in it.
fn test(reader: &mut Reader<'_>, arguments: &[Word]) {
    reader.found.add(READ);
    let operators = [
        "=", "==", "!=", "-eq", "-ne", "-lt", "-le", "-gt", "-ge", "-nt", "-ot", "-ef", "-a", "-o", "]", "<", ">", ")",
    ];
    for (at, word) in arguments.iter().enumerate() {
        let next = arguments.get(at + 1);
        let may_be_operator = word.variable && next.is_some_and(|next| !operators.contains(&next.text.as_str()));
        if matches!(word.text.as_str(), "-v" | "-R") || may_be_operator || word.variable && word.text.contains('[') {
            reader.found.unknown("a test that works out a text");
        }
    }
}
