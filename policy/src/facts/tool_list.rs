//! Lists of tools: `allowed_tools` and `denied_tools`.
//!
//! The server in `mcp__server__tool` is compared exactly, the tool's own part in every spelling. An entry without a
//! server never allows a tool of a server, but it denies that tool of every server. A deny list matches a tool if any
//! reading of its name is on the list, and it matches every ambiguous name (letters of mixed scripts).

use stage0_contract::{Spelling, Word, plain, visible};

use super::mcp;
use super::patterns::Patterns;
use super::tool_name::{last_part, without_arguments};
use crate::vocabulary::Edition;

#[derive(Debug)]
pub(crate) struct AllowedTools {
    edition: Edition,
    /// In lower case with folded separators.
    folded: Patterns,
    /// With camel case split as well.
    split: Patterns,
}

#[derive(Debug, Default)]
pub(crate) struct DeniedTools {
    names: Patterns,
    /// An entry is ambiguous, so it may be any tool.
    any: bool,
}

struct Keys {
    folded: String,
    split: String,
}

impl AllowedTools {
    /// What every list allows; `None` without a list.
    pub(crate) fn of(lists: &[Vec<String>], edition: Edition) -> Option<Self> {
        let keys: Vec<Vec<Keys>> =
            lists.iter().map(|list| list.iter().filter_map(|entry| keys(entry, edition)).collect()).collect();
        let patterns = |form: fn(&Keys) -> &String| {
            let list = |keys: &Vec<Keys>| match edition {
                Edition::First => Patterns::of(keys.iter().map(form).cloned().collect(), Vec::new()),
                Edition::Second => Patterns::of_entries(keys.iter().map(form).cloned()),
            };
            Patterns::intersection(keys.iter().map(list).collect())
        };
        Some(Self { edition, folded: patterns(|keys| &keys.folded)?, split: patterns(|keys| &keys.split)? })
    }

    pub(crate) fn allows(&self, tool: &str) -> bool {
        keys(tool, self.edition)
            .is_some_and(|keys| self.folded.matches(&keys.folded) || self.split.matches(&keys.split))
    }
}

impl DeniedTools {
    pub(crate) fn of(entries: &[String]) -> Self {
        let mut names = Vec::new();
        let mut any = false;
        for entry in entries {
            match readings(entry) {
                Some(readings) => names.extend(readings),
                None => any = true,
            }
            // A server without a tool denies all of its tools.
            if let Some((server, None)) = mcp::split(entry.trim()) {
                names.extend(folded(server).map(|server| format!("m:{server}{}*", mcp::SEPARATOR)));
            }
        }
        Self { names: Patterns::of_entries(names), any }
    }

    pub(crate) fn denies(&self, tool: &str) -> bool {
        if self.any {
            return true;
        }
        // Arguments in brackets and a prefix such as `vendor.` are not part of the tool's own name.
        let called = without_arguments(tool);
        let mut names = vec![tool, called, last_part(called)];
        names.dedup();
        names.into_iter().any(|name| self.denies_name(name))
    }

    fn denies_name(&self, tool: &str) -> bool {
        let is_listed = |readings: Option<Vec<String>>| {
            readings.is_none_or(|readings| readings.iter().any(|reading| self.names.matches(reading)))
        };
        // A server's name may hold `__` too, so the tool may begin after any of them.
        is_listed(readings(tool)) || mcp::tools(tool.trim()).any(|tool| is_listed(readings_of_tool(tool)))
    }
}

/// Whether both are the same tool in every reading: the tool that a grant names, not one that only may be it.
pub(crate) fn is_same_tool(one: &str, other: &str) -> bool {
    let both = keys(one, Edition::Second).zip(keys(other, Edition::Second));
    both.is_some_and(|(one, other)| one.folded == other.folded && one.split == other.split)
}

/// `None` for an ambiguous name.
fn keys(tool: &str, edition: Edition) -> Option<Keys> {
    let word = Word::new(tool);
    let known = word.known()?;
    if edition == Edition::First || known == "*" {
        return Some(Keys { folded: known.to_owned(), split: known.to_owned() });
    }
    let plain = plain(tool);
    let (prefix, name) = match mcp::split(plain.trim()) {
        Some((server, tool)) => (format!("m:{}{}", visible(server), mcp::SEPARATOR), tool.unwrap_or_default()),
        None => ("t:".to_owned(), plain.trim()),
    };
    let spelling = Spelling::of(name);
    Some(Keys { folded: format!("{prefix}{}", spelling.folded()?), split: format!("{prefix}{}", spelling.split()?) })
}

/// Every reading of a tool's whole name; `None` for an ambiguous one.
fn readings(tool: &str) -> Option<Vec<String>> {
    let word = Word::new(tool);
    if word.known()? == "*" {
        return Some(vec!["*".to_owned()]);
    }
    let plain = plain(tool);
    let Some((server, tool)) = mcp::split(plain.trim()) else { return readings_of_tool(&plain) };
    let prefix = format!("m:{}{}", folded(server)?, mcp::SEPARATOR);
    let spelling = Spelling::of(tool.unwrap_or_default());
    Some(vec![format!("{prefix}{}", spelling.folded()?), format!("{prefix}{}", spelling.split()?)])
}

fn readings_of_tool(tool: &str) -> Option<Vec<String>> {
    let spelling = Spelling::of(tool);
    Some(vec![format!("t:{}", spelling.folded()?), format!("t:{}", spelling.split()?)])
}

fn folded(text: &str) -> Option<String> {
    Spelling::of(text).folded().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &str) -> Vec<String> {
        entries.split(',').map(|entry| entry.trim().to_owned()).collect()
    }

    fn allows(entries: &str, tool: &str) -> bool {
        AllowedTools::of(&[list(entries)], Edition::Second).unwrap().allows(tool)
    }

    fn denies(entries: &str, tool: &str) -> bool {
        DeniedTools::of(&list(entries)).denies(tool)
    }

    #[test]
    fn allowed_tools_matches_every_spelling_of_a_tools_own_part() {
        for (entries, tool) in [
            ("list_queries", "list-queries"),
            ("readFile", "read_file"),
            ("read_file", "ReadFile"),
            ("readfile", "readFile"),
            ("mcp__github__getIssue", "MCP__GitHub__get-issue"),
            ("mcp__context7__*", "mcp__context7__resolve-library-id"),
            ("read_*", "readFile"),
            ("read*", "read_file"),
            ("*", "mcp__any__thing"),
            ("*", "anything"),
            ("a, b", "b"),
        ] {
            assert!(allows(entries, tool), "{entries} {tool}");
        }
        for (entries, tool) in [
            ("read_file", "readfile"),
            ("read__file", "read_file"),
            ("read_file", "read_files"),
            ("read_file", "mcp__x__read_file"),
            ("read*", "mcp__x__read_file"),
            ("m*", "mcp__x__read_file"),
            ("mcp__git-hub__get", "mcp__git_hub__get"),
            ("mcp__gitHub__*", "mcp__git_hub__get"),
            ("mcp__github__*", "mcp__github2__get"),
            ("mcp__github__*", "github_get"),
            ("mcp__github", "mcp__github__get"),
            ("read_*", "write_file"),
            ("d\u{435}ploy", "d\u{435}ploy"),
            ("*", "d\u{435}ploy"),
        ] {
            assert!(!allows(entries, tool), "{entries} {tool}");
        }
    }

    #[test]
    fn denied_tools_matches_any_reading_of_a_name() {
        for (entries, tool) in [
            ("Bash", "bash"),
            ("read_file", "readFile"),
            ("readFile", "readfile"),
            ("readfile", "readFile"),
            ("delete_repo", "mcp__github__delete-repo"),
            ("delete_*", "mcp__github__deleteRepo"),
            ("mcp__git-hub__delete", "mcp__git_hub__delete"),
            ("mcp__github__*", "mcp__github__get"),
            ("mcp__github", "mcp__github__get"),
            ("*", "x"),
            ("bash", "b\u{430}sh"),
            ("b\u{430}sh", "anything"),
        ] {
            assert!(denies(entries, tool), "{entries} {tool}");
        }
        for (entries, tool) in [
            ("bash", "bash_history"),
            ("delete", "undelete"),
            ("mcp__github__delete", "mcp__gitlab__delete"),
            ("mcp__github", "mcp__github2__get"),
            ("mcp__github__delete", "delete"),
            ("delete_*", "mcp__github__get"),
        ] {
            assert!(!denies(entries, tool), "{entries} {tool}");
        }
    }

    #[test]
    fn several_lists_of_allowed_tools_allow_what_each_of_them_allows() {
        let lists = [list("read_*, write_file"), list("readFile, write_*"), list("read_file, writeFile, x")];
        let tools = AllowedTools::of(&lists, Edition::Second).unwrap();
        assert!(
            tools.allows("read_file") && tools.allows("write_file") && !tools.allows("read_dir") && !tools.allows("x")
        );
        assert!(AllowedTools::of(&[], Edition::Second).is_none());
    }

    #[test]
    fn the_first_edition_compares_tools_as_whole_words() {
        let tools = AllowedTools::of(&[list("readFile, x*")], Edition::First).unwrap();
        assert!(tools.allows("READFILE") && tools.allows("X*") && !tools.allows("read_file") && !tools.allows("xy"));
    }
}
