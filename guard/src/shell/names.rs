//! Which commands write names of files and nothing else, for `xargs`, and which files these can be.

use super::lex::Word;

/// Kinds of files in which nothing decides what an agent, its guard or a shell may do.
const PLAIN_ENDINGS: &[&str] = &[
    "bak", "c", "cc", "cpp", "cs", "css", "go", "h", "hpp", "html", "java", "js", "jsx", "kt", "log", "md", "o",
    "orig", "php", "py", "pyc", "rb", "rej", "rs", "rst", "scss", "snap", "svelte", "swift", "tmp", "ts", "tsx", "txt",
    "vue",
];

/// What a command writes on its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    /// Any text, which may name or be anything.
    Unknown,
    /// Names of files.
    Listed {
        /// None of them is a file that decides what runs.
        narrow: bool,
        /// Each begins with its directory, so that none can be an option.
        placed: bool,
    },
}

/// What a command writes; `piped`: what it reads, if it reads another command.
pub(super) fn written(words: &[Word], piped: Option<Names>) -> Names {
    let Some((program, arguments)) = words.split_first() else { return Names::Unknown };
    if arguments.iter().any(|word| word.variable) {
        return Names::Unknown;
    }
    let has = |option: &str| arguments.iter().any(|word| word.text == option);
    let begins = |option: &str| arguments.iter().any(|word| word.text.starts_with(option));
    let listed = |narrow: bool, placed: bool| Names::Listed { narrow, placed };
    match program.text.as_str() {
        "find" => {
            let (roots, expression) = find_parts(arguments);
            let prints = ["-printf", "-fprintf", "-exec", "-execdir", "-ok", "-okdir", "-ls", "-fls"];
            if prints.iter().any(|option| has(option)) {
                return Names::Unknown;
            }
            let placed = roots.iter().all(|root| !root.text.starts_with('-'));
            listed(is_narrow(roots, expression), placed)
        }
        "fd" | "fdfind" => listed(!begins("-H") && !begins("-u") && !begins("--hidden") && !begins("--u"), false),
        "ls" if !begins("-l") && !begins("--format") => listed(!begins("-a") && !begins("-A"), false),
        "rg" if has("-l") || has("--files") || has("--files-with-matches") => {
            listed(!begins("-u") && !begins("--hidden") && !begins("--u") && !has("-."), false)
        }
        "grep" | "egrep" | "fgrep" if !begins("--label") && short(arguments, 'l') => {
            let operands: Vec<&Word> = arguments.iter().filter(|word| !word.text.starts_with('-')).skip(1).collect();
            let included = arguments.iter().any(|word| word.text.strip_prefix("--include=").is_some_and(is_plain_kind));
            listed(included || !operands.is_empty() && operands.iter().all(|word| is_plain_root(&word.text)), false)
        }
        "git" if has("ls-files") || has("--name-only") && !begins("--format") && !begins("--pretty") => {
            let operands: Vec<&Word> = arguments.iter().filter(|word| !word.text.starts_with('-')).skip(1).collect();
            let plain = |word: &&Word| is_plain_root(&word.text) || is_plain_kind(&word.text);
            listed(has("ls-files") && !operands.is_empty() && operands.iter().all(plain), false)
        }
        "head" | "tail" | "sort" | "uniq" | "grep" if only_filters(program, arguments) => {
            piped.unwrap_or(Names::Unknown)
        }
        _ => Names::Unknown,
    }
}

fn short(arguments: &[Word], letter: char) -> bool {
    arguments
        .iter()
        .any(|word| word.text.strip_prefix('-').is_some_and(|rest| !rest.starts_with('-') && rest.contains(letter)))
}

/// Whether a filter reads only what it is piped, and writes only lines of it.
fn only_filters(program: &Word, arguments: &[Word]) -> bool {
    let operands = arguments.iter().filter(|word| !word.text.starts_with('-'));
    let plain = |word: &&Word| word.text.chars().all(|c| c.is_ascii_digit());
    match program.text.as_str() {
        "grep" => operands.count() == 1 && !short(arguments, 'o') && !short(arguments, 'r') && !short(arguments, 'H'),
        _ => operands.clone().all(|word| plain(&word)) && arguments.iter().all(|word| word.text.len() < 6),
    }
}

/// The roots of a `find` and its expression. Options before the roots are not known here.
pub(super) fn find_parts(arguments: &[Word]) -> (&[Word], &[Word]) {
    let links = arguments.iter().take_while(|word| matches!(word.text.as_str(), "-H" | "-L" | "-P")).count();
    let arguments = arguments.get(links..).unwrap_or_default();
    let roots = arguments.iter().take_while(|word| !word.text.starts_with(['-', '(', '!'])).count();
    arguments.split_at(roots)
}

/// Whether a `find` finds no file that decides what runs: all its roots are ordinary directories, or all names are of
/// plain kinds.
pub(super) fn is_narrow(roots: &[Word], expression: &[Word]) -> bool {
    if !roots.is_empty() && roots.iter().all(|root| root.is_literal() && is_plain_root(&root.text)) {
        return true;
    }
    let text = |at: usize| expression.get(at).map_or("", |word| word.text.as_str());
    let mut named = false;
    for at in 0..expression.len() {
        let before = |back: usize| at.checked_sub(back).map_or("", text);
        match text(at) {
            "-name" | "-iname" if !is_plain_kind(text(at + 1)) => return false,
            "-name" | "-iname" => named = true,
            "-o" | "-or" | "," if before(2) != "-name" || text(at + 1) != "-name" => return false,
            "!" | "-not" if !matches!(text(at + 1), "-path" | "-wholename") => return false,
            _ => {}
        }
    }
    named
}

/// `src`, `src/a`: a directory below this one that is not hidden.
fn is_plain_root(text: &str) -> bool {
    let text = text.strip_prefix("./").unwrap_or(text);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '/' | '.');
    text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.chars().all(plain)
        && !text.split('/').any(|part| part.starts_with('.'))
}

/// A pattern such as `*.rs`: files of a plain kind.
fn is_plain_kind(text: &str) -> bool {
    let name = text.rsplit('/').next().unwrap_or_default();
    name.strip_prefix('*')
        .and_then(|rest| rest.rsplit_once('.'))
        .is_some_and(|(before, ending)| PLAIN_ENDINGS.contains(&ending) && !before.contains(['[', '?', '{']))
}
