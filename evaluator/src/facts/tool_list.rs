//! Lists of tools: `allowed_tools` and `denied_tools`.
//!
//! Owns when a tool is on a list (contract, section 2): a server in `mcp__server__tool` is an identity, the tool's part is
//! folded. An entry without a server never allows a tool of a server, and denies that tool of every server; a denying
//! list holds a tool if any reading of it is on the list, and every name that cannot be told apart.

use stage0_contract::{Spelling, Word, plain, visible};

use super::patterns::Patterns;
use crate::pack::Edition;

/// Begins the name of a tool of an MCP server.
const MCP: &str = "mcp__";
/// Between the names of a server and a tool.
const JOINT: &str = "__";

/// Places in one name at which its server may end.
const MAX_JOINTS: usize = 8;

/// Tools that a request allows itself.
#[derive(Debug)]
pub(crate) struct AllowedTools {
    edition: Edition,
    /// In lower case with folded separators.
    folded: Patterns,
    /// With camel case split as well.
    split: Patterns,
}

/// Tools that a request forbids itself.
#[derive(Debug, Default)]
pub(crate) struct DeniedTools {
    /// In every reading.
    names: Patterns,
    /// An entry that cannot be told apart may be any tool.
    any: bool,
}

/// A name in the two forms in which it is compared.
struct Keys {
    folded: String,
    split: String,
}

impl AllowedTools {
    /// What all of several lists hold; none where there are none.
    pub(crate) fn of(lists: &[Vec<String>], edition: Edition) -> Option<Self> {
        let keys =
            |list: &Vec<String>| -> Vec<Keys> { list.iter().filter_map(|entry| allowed(entry, edition)).collect() };
        let keys: Vec<Vec<Keys>> = lists.iter().map(keys).collect();
        let patterns = |form: fn(&Keys) -> &String| {
            let list = |keys: &Vec<Keys>| match edition {
                Edition::First => Patterns::of(keys.iter().map(form).cloned().collect(), Vec::new()),
                Edition::Second => Patterns::of_entries(keys.iter().map(form).cloned()),
            };
            Patterns::all(keys.iter().map(list).collect())
        };
        Some(Self { edition, folded: patterns(|keys| &keys.folded)?, split: patterns(|keys| &keys.split)? })
    }

    pub(crate) fn hold(&self, tool: &str) -> bool {
        allowed(tool, self.edition).is_some_and(|keys| self.folded.hold(&keys.folded) || self.split.hold(&keys.split))
    }
}

impl DeniedTools {
    pub(crate) fn of(entries: &[String]) -> Self {
        let (mut names, mut any) = (Vec::new(), false);
        for entry in entries {
            match readings(entry) {
                Some(readings) => names.extend(readings),
                None => any = true,
            }
            // A server alone means all of its tools.
            if let Some((server, None)) = parts(entry) {
                names.extend(folded(server).map(|server| format!("m:{server}{JOINT}*")));
            }
        }
        Self { names: Patterns::of_entries(names), any }
    }

    pub(crate) fn hold(&self, tool: &str) -> bool {
        if self.any {
            return true;
        }
        // What stands in brackets is what it is called with, and before a `.` or `:` stands whose it is.
        let called = tool.split_once('(').map_or(tool, |(name, _)| name);
        let own = called.rsplit(['.', ':', '/']).find(|part| !part.trim().is_empty()).unwrap_or(called);
        let mut names = vec![tool, called, own];
        names.dedup();
        names.into_iter().any(|name| self.hold_name(name))
    }

    fn hold_name(&self, tool: &str) -> bool {
        let hold = |readings: Option<Vec<String>>| {
            readings.is_none_or(|readings| readings.iter().any(|reading| self.names.hold(reading)))
        };
        // A server's name may hold `__` too: the tool is what stands behind any of them.
        let behind = || {
            let rest = parts(tool).map(|_| tool.trim().get(MCP.len()..).unwrap_or_default()).unwrap_or_default();
            rest.match_indices(JOINT).take(MAX_JOINTS).filter_map(move |(at, joint)| rest.get(at + joint.len()..))
        };
        hold(readings(tool)) || behind().any(|tool| hold(readings_of_tool(tool)))
    }
}

/// The server and the tool of `mcp__server__tool`; nothing for a name without a server.
pub(super) fn parts(tool: &str) -> Option<(&str, Option<&str>)> {
    let tool = tool.trim();
    let (start, rest) = tool.split_at_checked(MCP.len())?;
    if !start.eq_ignore_ascii_case(MCP) {
        return None;
    }
    Some(rest.split_once(JOINT).map_or((rest, None), |(server, tool)| (server, Some(tool))))
}

/// What stands behind `mcp__`, as identities are compared, up to each `__`: the longest first.
pub(super) fn servers(tool: &str) -> Vec<String> {
    let tool = visible(tool);
    let Some(rest) = tool.strip_prefix(MCP) else { return Vec::new() };
    let mut servers: Vec<String> =
        rest.match_indices(JOINT).filter_map(|(at, _)| rest.get(..at)).map(str::to_owned).collect();
    if servers.is_empty() {
        servers.push(rest.to_owned());
    }
    servers.reverse();
    servers
}

/// None for a name that cannot be told apart.
fn allowed(tool: &str, edition: Edition) -> Option<Keys> {
    let word = Word::new(tool);
    let known = word.known()?;
    if edition == Edition::First {
        return Some(Keys { folded: known.to_owned(), split: known.to_owned() });
    }
    if known == "*" {
        return Some(Keys { folded: "*".to_owned(), split: "*".to_owned() });
    }
    let plain = plain(tool);
    let (place, name) = match parts(&plain) {
        Some((server, tool)) => (format!("m:{}{JOINT}", visible(server)), tool.unwrap_or_default()),
        None => ("t:".to_owned(), plain.trim()),
    };
    let spelling = Spelling::of(name);
    Some(Keys { folded: format!("{place}{}", spelling.folded()?), split: format!("{place}{}", spelling.split()?) })
}

/// Every reading of a tool's whole name; none where it cannot be told apart.
fn readings(tool: &str) -> Option<Vec<String>> {
    let word = Word::new(tool);
    if word.known()? == "*" {
        return Some(vec!["*".to_owned()]);
    }
    let plain = plain(tool);
    match parts(&plain) {
        Some((server, tool)) => {
            let (server, spelling) = (folded(server)?, Spelling::of(tool.unwrap_or_default()));
            Some(vec![
                format!("m:{server}{JOINT}{}", spelling.folded()?),
                format!("m:{server}{JOINT}{}", spelling.split()?),
            ])
        }
        None => readings_of_tool(&plain),
    }
}

/// The readings of a tool's name without its server.
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
        AllowedTools::of(&[list(entries)], Edition::Second).unwrap().hold(tool)
    }

    fn denies(entries: &str, tool: &str) -> bool {
        DeniedTools::of(&list(entries)).hold(tool)
    }

    #[test]
    fn a_tool_is_allowed_in_every_spelling_of_its_own_part() {
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
    fn a_tool_is_denied_in_any_reading() {
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
    fn several_lists_hold_what_each_of_them_holds() {
        let lists = [list("read_*, write_file"), list("readFile, write_*"), list("read_file, writeFile, x")];
        let tools = AllowedTools::of(&lists, Edition::Second).unwrap();
        assert!(tools.hold("read_file") && tools.hold("write_file") && !tools.hold("read_dir") && !tools.hold("x"));
        assert!(AllowedTools::of(&[], Edition::Second).is_none());
    }

    #[test]
    fn the_first_edition_compares_whole_words() {
        let tools = AllowedTools::of(&[list("readFile, x*")], Edition::First).unwrap();
        assert!(tools.hold("READFILE") && tools.hold("X*") && !tools.hold("read_file") && !tools.hold("xy"));
    }

    #[test]
    fn a_server_may_have_more_than_one_part() {
        assert_eq!(servers("mcp__a__b__c"), ["a__b", "a"]);
        assert_eq!(servers("MCP__GitHub__x"), ["github"]);
        assert_eq!(servers("mcp__github"), ["github"]);
        assert!(servers("github__x").is_empty());
    }
}
