//! Actions: what `require_approval_for` names, and whether a side effect or tool is one of them.
//!
//! Owns the matching: by the parts of a name, each as a whole, as the beginning of the other, or in another of its
//! forms (`delete`, `deletion`, `deleting`). A name that cannot be trusted (mixed scripts) matches every action: what may
//! be a look-alike needs the approval.

use stage0_contract::{Word, parts};

use super::prefixes::{Prefixes, any_begins_with};

/// Shorter words are prefixes of too much.
const LEAST_PREFIX: usize = 4;
/// Parts of an action that are compared: a longer one is meant by all that begins like it.
const MAX_PARTS: usize = 16;
/// Before the server and the tool in the name of a tool of MCP.
const MCP: &str = "mcp__";
/// What the forms of a verb end in, the longest first.
const ENDINGS: [&str; 7] = ["ions", "ion", "ing", "ed", "es", "s", "e"];

/// Action words such as `deploy`, as `require_approval_for` names them.
#[derive(Debug, Default)]
pub(crate) struct Actions {
    /// In normal form.
    words: Forms,
    /// By their parts, joined with `_`: those where that is another text.
    joined: Forms,
    /// One of them mixes scripts: it may be any.
    any: bool,
}

/// Texts that are looked for.
#[derive(Debug, Default)]
struct Forms {
    /// Sorted, each once.
    sorted: Vec<String>,
    /// Those that are long enough to be the beginning of another word.
    beginnings: Prefixes,
}

impl Forms {
    fn of(mut texts: Vec<String>) -> Self {
        texts.sort_unstable();
        texts.dedup();
        let beginnings = Prefixes::of(texts.iter().filter(|text| is_long(text)).cloned().collect());
        Self { sorted: texts, beginnings }
    }

    fn hold(&self, text: &str) -> bool {
        self.sorted.binary_search_by(|one| one.as_str().cmp(text)).is_ok()
    }

    /// Whether one is the text, or the beginning of it, or begins with it.
    fn mean(&self, text: &str) -> bool {
        self.hold(text) || (is_long(text) && (self.beginnings.cover(text) || any_begins_with(&self.sorted, text)))
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
        Self { words: Forms::of(names), joined: Forms::of(joined), any }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words.sorted.is_empty() && !self.any
    }

    /// As the first edition does: whether one of them means this side effect or tool, equal, or equal to or a prefix of
    /// one of its parts, or the other way.
    pub(crate) fn cover(&self, subject: &Word) -> bool {
        let Some(subject) = subject.known().filter(|_| !self.any) else { return true };
        let mut parts = subject.split(|c: char| !c.is_alphanumeric()).filter(|part| !part.is_empty());
        self.words.mean(subject) || parts.any(|part| self.words.mean(part))
    }

    /// Whether one of them means this side effect.
    pub(crate) fn cover_effect(&self, effect: &str) -> bool {
        // An action that may be any saves the reading.
        self.any || Word::new(effect).known().is_none_or(|known| self.cover_parts(effect, known))
    }

    /// Whether one of them means this tool: by its own name, or by the whole name of its server.
    pub(crate) fn cover_tool(&self, tool: &str) -> bool {
        if self.any {
            return true;
        }
        let word = Word::new(tool);
        let Some(known) = word.known() else { return true };
        let server_and_own = |name: &str| {
            let (server, own) = name.strip_prefix(MCP)?.split_once("__")?;
            Some((join(&split(server)), own.to_owned()))
        };
        match server_and_own(known) {
            Some((server, own)) => {
                let sent = tool.rsplit_once("__").filter(|(_, sent)| sent.to_lowercase() == own);
                self.hold(&server) || self.cover_parts(sent.map_or(own.as_str(), |(_, sent)| sent), &own)
            }
            None => self.cover_parts(tool, known),
        }
    }

    /// Looks for each action at the beginning of each part of a name, as it was sent and in normal form.
    fn cover_parts(&self, sent: &str, known: &str) -> bool {
        // Only camel case is lost in the normal form, and to read a text twice costs most of what there is to pay.
        let parts = if sent.chars().any(char::is_uppercase) { parts(sent) } else { split(known) };
        (0..parts.len()).any(|at| {
            let rest = parts.get(at..).unwrap_or_default();
            let pair = rest.get(..2).filter(|pair| pair.iter().all(|part| !is_long(part)));
            // Short actions are whole parts, at most two of them.
            pair.is_some_and(|pair| self.hold(&pair.join("_")))
                || rest.first().is_some_and(|part| self.mean(part) || self.hold_form(part))
                || self.mean(&join(rest))
        })
    }

    fn hold(&self, text: &str) -> bool {
        self.words.hold(text) || self.joined.hold(text)
    }

    fn mean(&self, text: &str) -> bool {
        self.words.mean(text) || self.joined.mean(text)
    }

    /// Whether one of them is another form of the word: `deletion` of `delete`.
    fn hold_form(&self, part: &str) -> bool {
        let stem = ENDINGS.into_iter().find_map(|ending| part.strip_suffix(ending)).unwrap_or(part);
        is_long(stem) && (self.hold(stem) || ENDINGS.into_iter().any(|ending| self.hold(&format!("{stem}{ending}"))))
    }
}

/// The parts of a text in normal form.
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

/// The first parts as one text.
fn join(parts: &[String]) -> String {
    parts.get(..MAX_PARTS).unwrap_or(parts).join("_")
}

fn is_long(word: &str) -> bool {
    word.chars().nth(LEAST_PREFIX - 1).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn among_others(action: &str) -> Actions {
        Actions::of(&["zzz", action, "aaaa"].map(Word::new))
    }

    const MEANT: [(&str, &str); 7] = [
        ("deploy", "deploy"),
        ("deploy", "deployment"),
        ("deployment", "deploy"),
        ("deploy", "deploy.production"),
        ("money movement", "money_movement"),
        ("production_change", "production_change: db"),
        ("delete", "accounts.delete"),
    ];
    const NOT_MEANT: [(&str, &str); 4] =
        [("deploy", "write"), ("pay", "payload"), ("rm", "rmdir"), ("publish", "republish")];

    #[test]
    fn an_action_word_means_its_forms_and_nothing_else() {
        for (action, subject) in MEANT {
            let actions = among_others(action);
            assert!(actions.cover(&Word::name(subject)), "{action} {subject}");
            assert!(actions.cover_effect(subject) && actions.cover_tool(subject), "{action} {subject}");
        }
        for (action, subject) in NOT_MEANT {
            let actions = among_others(action);
            assert!(!actions.cover(&Word::name(subject)), "{action} {subject}");
            assert!(!actions.cover_effect(subject) && !actions.cover_tool(subject), "{action} {subject}");
        }
        let actions = among_others("deploy");
        assert!(actions.cover(&Word::name("d\u{435}ploy")) && actions.cover_effect("d\u{435}ploy"));
        assert!(actions.cover_tool("d\u{435}ploy") && Actions::of(&[Word::new("d\u{435}ploy")]).cover_tool("read"));
    }

    #[test]
    fn a_text_in_normal_form_has_the_parts_that_every_text_has() {
        for text in ["", "a", "a b", "__x--y1z22", "s3:deleteobject", "größe/本番2", "\u{344}", "٣a"] {
            assert_eq!(split(text), parts(text), "{text}");
        }
    }

    #[test]
    fn a_tool_is_meant_by_the_parts_of_its_own_name() {
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
            assert!(among_others(action).cover_tool(tool), "{action} {tool}");
        }
        for (action, tool) in [
            ("delete", "grep"),
            ("delete", "mcp__delete_service__list_rows"),
            ("money_movement", "money"),
            ("delete branch", "branch_drop"),
            ("rm", "form"),
            ("a b", "a_c_b"),
        ] {
            let covered = among_others(action).cover_tool(tool);
            // The beginning of a longer action is meant by it.
            assert_eq!(covered, tool == "money", "{action} {tool}");
        }
    }
}
