//! The command that an agent runs for a hook: written by `install`, found again and judged by `doctor`.
//!
//! INVARIANT: only a command of exactly the form that is written here is ours. One that merely mentions us is not, and
//! one that was changed is not what `doctor` vouches for.

use stage0_guard::Agent;

const SHELL: &str = "/bin/sh -c ";
/// A program that is gone, cannot be executed or was killed ends with a code that agents take for "run the tool". This
/// makes 2 of it, with the text on standard error without which some do not deny.
const OR_DENIED: &str = " || { [ $? = 2 ] || echo \"the guard of Stage0 could not run, so the tool does not run\" >&2; \
    exit 2; }";

/// A command for a shell of any kind. The words are the program, `guard`, `hook`, the agent and flags.
pub(super) fn written(words: &[String]) -> String {
    let hook = words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
    format!("{SHELL}{}", quoted(&format!("{hook}{OR_DENIED}")))
}

/// The words of a command of ours for this agent; none for another one.
pub(super) fn words(command: &str, agent: Agent) -> Option<Vec<String>> {
    let script = match split(command.strip_prefix(SHELL)?)?.as_slice() {
        [script] => script.clone(),
        _ => return None,
    };
    let words = split(script.strip_suffix(OR_DENIED)?)?;
    let is_ours = matches!(words.as_slice(), [_, guard, hook, named, ..]
        if guard == "guard" && hook == "hook" && named == agent.as_str());
    (is_ours && written(&words) == command).then_some(words)
}

/// The value of a flag.
pub(super) fn flag<'w>(words: &'w [String], name: &str) -> Option<&'w str> {
    let at = words.iter().position(|word| word == name)?;
    words.get(at + 1).map(String::as_str)
}

/// A word for a shell.
pub(super) fn quoted(word: &str) -> String {
    if !word.is_empty() && word.bytes().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn is_plain(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"_-./:=@%+,".contains(&b)
}

/// Words as [`quoted`] writes them, with one blank between them; none for anything else that a shell reads.
fn split(text: &str) -> Option<Vec<String>> {
    let (mut words, mut rest) = (Vec::new(), text);
    loop {
        let (word, after) = first_word(rest)?;
        words.push(word);
        if after.is_empty() {
            return Some(words);
        }
        rest = after.strip_prefix(' ')?;
    }
}

fn first_word(text: &str) -> Option<(String, &str)> {
    let (mut word, mut rest) = (String::new(), text);
    while !rest.is_empty() && !rest.starts_with(' ') {
        if let Some(quoted) = rest.strip_prefix('\'') {
            let (inside, after) = quoted.split_once('\'')?;
            word.push_str(inside);
            rest = after;
        } else if let Some(after) = rest.strip_prefix(r"\'") {
            word.push('\'');
            rest = after;
        } else {
            let plain = rest.bytes().take_while(|b| is_plain(*b)).count();
            let (plain, after) = rest.split_at_checked(plain).filter(|(plain, _)| !plain.is_empty())?;
            word.push_str(plain);
            rest = after;
        }
    }
    (rest.len() < text.len()).then_some((word, rest))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Output};

    use super::*;

    fn run(hook: &str) -> Output {
        let script = format!("{hook}{OR_DENIED}");
        Command::new("/bin/sh").args(["-c", &format!("{SHELL}{}", quoted(&script))]).output().unwrap()
    }

    fn of(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_hook_that_is_gone_cannot_be_executed_or_is_killed_denies() {
        for broken in ["/no/such/stage0 guard hook codex", "/etc/passwd", "sh -c 'exit 1'", "sh -c 'kill -9 $$'"] {
            let output = run(broken);
            assert_eq!(output.status.code(), Some(2), "{broken}");
            assert!(!output.stderr.is_empty(), "{broken}: {output:?}");
        }
        let denied = run("sh -c 'echo {}; echo no >&2; exit 2'");
        assert_eq!((denied.status.code(), denied.stderr.as_slice()), (Some(2), &b"no\n"[..]), "its own text alone");
        let allowed = run("true");
        assert_eq!((allowed.status.code(), allowed.stderr.len()), (Some(0), 0));
    }

    #[test]
    fn a_command_is_found_again_word_by_word_whatever_is_in_them() {
        let words =
            of(&["/my dir/it's $(x)/stage0", "guard", "hook", "codex", "--url", "https://h:1/", "--table", "a\"b"]);
        let command = written(&words);
        assert_eq!(self::words(&command, Agent::Codex), Some(words.clone()));
        assert_eq!(self::words(&command, Agent::Gemini), None);
        assert_eq!(flag(&words, "--url"), Some("https://h:1/"));
        assert_eq!(flag(&words, "--ca"), None);
    }

    #[test]
    fn what_was_changed_or_only_mentions_us_is_not_ours() {
        let command = written(&of(&["/opt/stage0", "guard", "hook", "claude-code"]));
        for other in [
            format!("{command} || true"),
            format!("{command}; exit 0"),
            command.replace("exit 2", "exit 0"),
            command.replace("[ $? = 2 ]", "true"),
            command.replace("guard hook", "guard hook; true"),
            format!("my-audit.sh --wrap '{command}' && notify"),
            "my-audit.sh --wrap 'x guard hook claude-code'".to_owned(),
            "/opt/stage0 guard hook claude-code".to_owned(),
            command.replacen("/opt/stage0", "$(x)", 1),
            String::new(),
        ] {
            assert_eq!(words(&other, Agent::ClaudeCode), None, "{other}");
        }
    }

    #[test]
    fn a_word_is_quoted_where_a_shell_would_read_more_into_it() {
        assert_eq!(quoted("/opt/stage0"), "/opt/stage0");
        assert_eq!(quoted("/my dir/it's"), r"'/my dir/it'\''s'");
        assert_eq!(quoted("$(x)"), "'$(x)'");
        assert_eq!(quoted(""), "''");
    }
}
