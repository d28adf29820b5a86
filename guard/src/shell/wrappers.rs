//! Programs that run another command: it is judged in their place.

use super::lex::Word;
use super::names::Names;
use super::reader::{Input, Reader, is_assignment};
use crate::effects::{PRIVILEGE, READ, READ_SECRET};

/// A wrapper's options: those that stand alone and those that take the next word. Any other is unknown.
struct Options {
    alone: &'static [&'static str],
    valued: &'static [&'static str],
    /// Words between the options and the command, such as the duration of `timeout`.
    words: usize,
}

const NONE: Options = Options { alone: &[], valued: &[], words: 0 };

fn options(name: &str) -> Option<Options> {
    Some(match name {
        "nohup" | "builtin" | "exec" => NONE,
        "setsid" => Options { alone: &["-f", "-w", "--fork", "--wait"], ..NONE },
        "time" => Options { alone: &["-p", "-v"], ..NONE },
        "command" => Options { alone: &["-p"], ..NONE },
        "sudo" | "doas" => {
            Options { alone: &["-n", "-E", "-H", "-S", "-k", "-nE", "-EH"], valued: &["-u", "-g", "-C"], words: 0 }
        }
        "nice" => Options { alone: &[], valued: &["-n"], words: 0 },
        "ionice" => Options { alone: &["-t"], valued: &["-c", "-n"], words: 0 },
        "timeout" | "gtimeout" => Options {
            alone: &["--preserve-status", "--foreground", "-v", "--verbose"],
            valued: &["-s", "-k", "--signal", "--kill-after"],
            words: 1,
        },
        "stdbuf" => Options { alone: &["-oL", "-o0", "-eL", "-e0", "-iL", "-i0"], valued: &[], words: 0 },
        "caffeinate" => Options { alone: &["-i", "-s", "-d", "-m"], valued: &[], words: 0 },
        "xargs" => Options {
            alone: &["-0", "-r", "-t", "-x", "--null", "--no-run-if-empty", "-0r", "-r0"],
            valued: &["-n", "-P", "-L", "-I", "-d", "-s", "--max-args", "--max-procs", "--delimiter"],
            words: 0,
        },
        _ => return None,
    })
}

/// Judges a wrapper; false if the program is none.
pub(super) fn read(reader: &mut Reader<'_>, name: &str, arguments: &[Word], input: Input) -> bool {
    match name {
        "env" => env(reader, arguments, input),
        "bash" | "sh" | "zsh" | "dash" | "ksh" | "ash" => shell(reader, arguments),
        // It only says where a program lies.
        "command" if arguments.first().is_some_and(|word| matches!(word.text.as_str(), "-v" | "-V")) => {
            reader.found.add(READ);
        }
        _ => match options(name) {
            Some(options) => wrapped(reader, name, &options, arguments, input),
            None => return false,
        },
    }
    true
}

fn wrapped(reader: &mut Reader<'_>, name: &str, options: &Options, arguments: &[Word], input: Input) {
    if matches!(name, "sudo" | "doas") {
        reader.found.add(PRIVILEGE);
    }
    let mut replaced = None;
    let mut at = 0;
    while let Some(word) = arguments.get(at).filter(|word| word.text.starts_with('-')) {
        let text = word.text.as_str();
        if text == "--" {
            at += 1;
            break;
        }
        let number = text.get(1..).is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c.is_ascii_digit()));
        let value = options.valued.iter().any(|option| {
            text.strip_prefix(option).is_some_and(|rest| {
                option.starts_with("--") && rest.starts_with('=') || !option.starts_with("--") && !rest.is_empty()
            })
        });
        if options.valued.contains(&text) {
            if text == "-I" {
                replaced = arguments.get(at + 1).map(|word| word.text.clone());
            }
            at += 2;
        } else if name == "xargs" && text.starts_with("-I") {
            replaced = text.get(2..).map(str::to_owned);
            at += 1;
        } else if options.alone.contains(&text) || value || (number && name == "nice") {
            at += 1;
        } else {
            return reader.found.unknown("an option of a program that runs another one");
        }
    }
    let mut words: Vec<Word> = arguments.get(at + options.words..).unwrap_or_default().to_vec();
    if words.is_empty() {
        // `xargs` alone prints; the others do nothing.
        return reader.found.add(READ);
    }
    if name == "xargs" {
        if let Err(why) = piped_arguments(&mut words, replaced.as_deref(), input) {
            return reader.found.unknown(why);
        }
        let narrow = matches!(input.names, Names::Listed { narrow: true, .. });
        return reader.on_files(&words, input, narrow);
    }
    if matches!(name, "sudo" | "doas") && words.first().is_some_and(is_assignment) {
        reader.found.unknown("a variable that may change what programs do");
    }
    reader.command(&words, input);
}

/// What `xargs` adds: files in the working directory where only names of files were piped, and otherwise anything. A
/// name may look like an option unless it begins with its directory.
fn piped_arguments(words: &mut Vec<Word>, replaced: Option<&str>, input: Input) -> Result<(), &'static str> {
    let (listed, placed) = match input.names {
        Names::Unknown => (false, false),
        Names::Listed { placed, .. } => (true, placed),
    };
    let piped = Word { text: ".".to_owned(), variable: !listed, leading_glob: !placed, ..Word::default() };
    let Some(text) = replaced.filter(|text| !text.is_empty()) else {
        words.push(piped);
        return Ok(());
    };
    for word in words.iter_mut().filter(|word| word.text.contains(text)) {
        if word.text != text && word.text.contains(char::is_whitespace) {
            return Err("a text with piped words in it");
        }
        *word = Word { text: word.text.replace(text, "."), glob: false, ..piped.clone() };
    }
    Ok(())
}

/// `env NAME=value command`. Alone it prints the environment, which may hold secrets.
fn env(reader: &mut Reader<'_>, arguments: &[Word], input: Input) {
    let mut at = 0;
    while let Some(word) = arguments.get(at) {
        match word.text.as_str() {
            "-i" | "--ignore-environment" => at += 1,
            "-u" => at += 2,
            "--" => at += 1,
            _ if is_assignment(word) => {
                reader.assignment(word, false);
                at += 1;
            }
            text if text.starts_with('-') => {
                return reader.found.unknown("an option of a program that runs another one");
            }
            _ => break,
        }
    }
    match arguments.get(at..).filter(|words| !words.is_empty()) {
        Some(words) => reader.command(words, input),
        None => reader.found.add(READ_SECRET),
    }
}

/// `bash -c 'text'`: the text is read like the whole. A file, standard input or any other option is not read.
fn shell(reader: &mut Reader<'_>, arguments: &[Word]) {
    let options: Vec<&Word> = arguments.iter().take_while(|word| word.text.starts_with('-')).collect();
    let plain =
        |word: &&Word| matches!(word.text.as_str(), "-c" | "-lc" | "-ec" | "-euc" | "-exc" | "-e" | "-u" | "-x" | "-l");
    let asks = options.last().is_some_and(|word| word.text.ends_with('c'));
    match arguments.get(options.len()) {
        Some(text) if asks && options.iter().all(plain) && text.is_literal() => reader.nested(&text.text),
        None if options.len() == 1 && options.iter().all(|word| word.text == "--version") => reader.found.add(READ),
        _ => reader.found.unknown("a shell that runs what cannot be read"),
    }
}
