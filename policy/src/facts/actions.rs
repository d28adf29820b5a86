//! Actions: what `require_approval_for` names, and whether a side effect or tool is one of them.
//!
//! Matches by the parts of a name: equal, one a prefix of the other, or another form of the verb (`delete`, `deletion`,
//! `deleting`). An ambiguous name (letters of mixed scripts) matches every action, because a look-alike must not avoid
//! the approval.

use stage0_contract::{Word, parts};

use super::mcp;
use super::patterns::{Prefixes, any_starts_with};

/// The length in characters from which a word is compared as a prefix; a shorter one is a prefix of too many words.
const MIN_PREFIX_CHARS: usize = 4;
/// Further parts of an action are ignored.
const MAX_PARTS: usize = 16;
/// Endings of the forms of a verb, the longest first.
const ENDINGS: [&str; 7] = ["ions", "ion", "ing", "ed", "es", "s", "e"];

/// Action words such as `deploy`, as `require_approval_for` names them.
#[derive(Debug, Default)]
pub(crate) struct Actions {
    words: WordSet,
    /// Their parts joined with `_`, where that differs from the normalised word.
    joined: WordSet,
    /// One of them is ambiguous, so it may mean anything.
    any: bool,
}

#[derive(Debug, Default)]
struct WordSet {
    sorted: Vec<String>,
    /// Those that are long enough to be compared as a prefix.
    prefixes: Prefixes,
}

impl WordSet {
    fn of(mut texts: Vec<String>) -> Self {
        texts.sort_unstable();
        texts.dedup();
        let prefixes = Prefixes::of(texts.iter().filter(|text| is_long(text)).cloned().collect());
        Self { sorted: texts, prefixes }
    }

    fn contains(&self, text: &str) -> bool {
        self.sorted.binary_search_by(|one| one.as_str().cmp(text)).is_ok()
    }

    /// Whether one of them equals the text, or one is a prefix of the other.
    fn matches(&self, text: &str) -> bool {
        let by_prefix = || self.prefixes.match_start_of(text) || any_starts_with(&self.sorted, text);
        self.contains(text) || (is_long(text) && by_prefix())
    }
}

impl Actions {
    pub(crate) fn of(words: &[Word]) -> Self {
        let mut any = false;
        let (mut names, mut joined) = (Vec::new(), Vec::new());
        for word in words {
            let name = Word::name(word.as_str());
            let (Some(text), Some(name)) = (word.known(), name.known()) else {
                any = true;
                continue;
            };
            let by_parts = join(&split(text));
            if by_parts != name && !by_parts.is_empty() {
                joined.push(by_parts);
            }
            names.push(name.to_owned());
        }
        Self { words: WordSet::of(names), joined: WordSet::of(joined), any }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words.sorted.is_empty() && !self.any
    }

    /// In the first edition an action equals the whole word or one of its parts, or one is a prefix of the other.
    pub(crate) fn match_word(&self, subject: &Word) -> bool {
        let Some(subject) = subject.known().filter(|_| !self.any) else { return true };
        let mut parts = subject.split(|c: char| !c.is_alphanumeric()).filter(|part| !part.is_empty());
        self.words.matches(subject) || parts.any(|part| self.words.matches(part))
    }

    pub(crate) fn match_effect(&self, effect: &str) -> bool {
        self.any || Word::new(effect).known().is_none_or(|known| self.match_parts(effect, known))
    }

    /// Whether one of them means this tool, by the tool's own name or by the whole name of its server.
    pub(crate) fn match_tool(&self, tool: &str) -> bool {
        if self.any {
            return true;
        }
        let word = Word::new(tool);
        let Some(known) = word.known() else { return true };
        match mcp::split(known) {
            Some((server, Some(own))) => {
                let sent = tool.rsplit_once(mcp::SEPARATOR).filter(|(_, sent)| sent.to_lowercase() == own);
                self.contains(&join(&split(server))) || self.match_parts(sent.map_or(own, |(_, sent)| sent), own)
            }
            _ => self.match_parts(tool, known),
        }
    }

    /// Compares every action with the name from each of its parts on, as it was sent and normalised.
    fn match_parts(&self, sent: &str, known: &str) -> bool {
        // Normalising loses only camel case, and splitting the sent text is the dearest step.
        let parts = if sent.chars().any(char::is_uppercase) { parts(sent) } else { split(known) };
        (0..parts.len()).any(|at| {
            let rest = parts.get(at..).unwrap_or_default();
            // Short parts are not compared as prefixes, so an action of two short parts is looked up whole.
            let pair = rest.get(..2).filter(|pair| pair.iter().all(|part| !is_long(part)));
            pair.is_some_and(|pair| self.contains(&pair.join("_")))
                || rest.first().is_some_and(|part| self.matches(part) || self.contains_form_of(part))
                || self.matches(&join(rest))
        })
    }

    fn contains(&self, text: &str) -> bool {
        self.words.contains(text) || self.joined.contains(text)
    }

    fn matches(&self, text: &str) -> bool {
        self.words.matches(text) || self.joined.matches(text)
    }

    /// Whether one of them is another form of the word, as `deletion` is of `delete`.
    fn contains_form_of(&self, part: &str) -> bool {
        let stem = ENDINGS.into_iter().find_map(|ending| part.strip_suffix(ending)).unwrap_or(part);
        let has_ending = |ending| self.contains(&format!("{stem}{ending}"));
        is_long(stem) && (self.contains(stem) || ENDINGS.into_iter().any(has_ending))
    }
}

/// The parts of a normalised text: runs of letters, and runs of digits.
fn split(text: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    let mut before: Option<bool> = None;
    for c in text.chars() {
        let digit = c.is_alphanumeric().then(|| c.is_numeric());
        match parts.last_mut() {
            Some(part) if digit.is_some() && digit == before => part.push(c),
            _ if digit.is_some() => parts.push(c.into()),
            _ => {}
        }
        before = digit;
    }
    parts
}

fn join(parts: &[String]) -> String {
    parts.get(..MAX_PARTS).unwrap_or(parts).join("_")
}

fn is_long(word: &str) -> bool {
    word.chars().nth(MIN_PREFIX_CHARS - 1).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn among_others(action: &str) -> Actions {
        Actions::of(&["zzz", action, "aaaa"].map(Word::new))
    }

    const MATCHING: [(&str, &str); 7] = [
        ("deploy", "deploy"),
        ("deploy", "deployment"),
        ("deployment", "deploy"),
        ("deploy", "deploy.production"),
        ("money movement", "money_movement"),
        ("production_change", "production_change: db"),
        ("delete", "accounts.delete"),
    ];
    const NOT_MATCHING: [(&str, &str); 4] =
        [("deploy", "write"), ("pay", "payload"), ("rm", "rmdir"), ("publish", "republish")];

    #[test]
    fn require_approval_for_matches_the_forms_of_a_word_and_nothing_else() {
        for (action, subject) in MATCHING {
            let actions = among_others(action);
            assert!(actions.match_word(&Word::name(subject)), "{action} {subject}");
            assert!(actions.match_effect(subject) && actions.match_tool(subject), "{action} {subject}");
        }
        for (action, subject) in NOT_MATCHING {
            let actions = among_others(action);
            assert!(!actions.match_word(&Word::name(subject)), "{action} {subject}");
            assert!(!actions.match_effect(subject) && !actions.match_tool(subject), "{action} {subject}");
        }
        let actions = among_others("deploy");
        assert!(actions.match_word(&Word::name("d\u{435}ploy")) && actions.match_effect("d\u{435}ploy"));
        assert!(actions.match_tool("d\u{435}ploy") && Actions::of(&[Word::new("d\u{435}ploy")]).match_tool("read"));
    }

    #[test]
    fn splitting_a_normalised_text_gives_the_parts_of_the_contract() {
        for text in ["", "a", "a b", "__x--y1z22", "s3:deleteobject", "größe/本番2", "\u{344}", "٣a"] {
            assert_eq!(split(text), parts(text), "{text}");
        }
    }

    #[test]
    fn require_approval_for_matches_a_tool_by_the_parts_of_its_own_name() {
        for (action, tool) in [
            ("delete", "bulkDeleteIssues"),
            ("delete", "mcp__supabase__delete_branch"),
            ("delete", "mcp__filesystem__delete_file"),
            ("delete", "workspace.DeleteFile"),
            ("delete", "rowDeletion"),
            ("deletion", "delete_rows"),
            ("rm", "fs.rm"),
            ("delete branch", "mcp__supabase__deleteBranch"),
            ("a b", "c.a.b"),
            ("s3", "s3:DeleteObject"),
            ("money_movement", "start-money-movements"),
            ("github", "mcp__github__push_files"),
            ("delete", "MCP__Files__bulkDeleteRows"),
            ("delete", "mcp__a__b__c_delete"),
        ] {
            assert!(among_others(action).match_tool(tool), "{action} {tool}");
        }
        for (action, tool) in [
            ("delete", "grep"),
            ("delete", "mcp__delete_service__list_rows"),
            ("money_movement", "money"),
            ("delete branch", "branch_drop"),
            ("rm", "form"),
            ("a b", "a_c_b"),
        ] {
            let matched = among_others(action).match_tool(tool);
            // A prefix of a longer action matches it.
            assert_eq!(matched, tool == "money", "{action} {tool}");
        }
    }
}
