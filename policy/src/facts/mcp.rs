//! Names of tools of MCP servers: `mcp__<server>__<tool>`.
//!
//! A server's own name may hold `__`, so a name can be split in more than one way: `split` ends the server at the first
//! separator, `servers` and `tools` give the candidates.
//! INVARIANT: a name has few candidates, however many separators it has.

use stage0_contract::visible;

pub(super) const PREFIX: &str = "mcp__";
pub(super) const SEPARATOR: &str = "__";

/// How many places within one name are tried as the end of its server.
pub(super) const MAX_SERVER_ENDS: usize = 8;

/// What follows the prefix, whose case does not matter; `None` for a name without it.
pub(super) fn rest(name: &str) -> Option<&str> {
    let (prefix, rest) = name.split_at_checked(PREFIX.len())?;
    prefix.eq_ignore_ascii_case(PREFIX).then_some(rest)
}

/// The server and, if there is a separator after it, the tool; `None` for a name without the prefix.
pub(super) fn split(name: &str) -> Option<(&str, Option<&str>)> {
    let rest = rest(name)?;
    Some(rest.split_once(SEPARATOR).map_or((rest, None), |(server, tool)| (server, Some(tool))))
}

/// The servers that the tool may belong to, normalised as identities are compared, the longest name first.
pub(super) fn servers(tool: &str) -> Vec<String> {
    let tool = visible(tool);
    let Some(rest) = tool.strip_prefix(PREFIX) else { return Vec::new() };
    let mut servers: Vec<String> = ends(rest).filter_map(|at| rest.get(..at)).map(str::to_owned).collect();
    if servers.is_empty() {
        servers.push(rest.to_owned());
    }
    servers.reverse();
    servers
}

/// What may be the tool's own name: all that follows one of the ends, and what follows the last separator of all. It is
/// the whole rest of a name without a separator.
pub(super) fn tools(name: &str) -> impl Iterator<Item = &str> {
    let rest = rest(name);
    let last = rest.map(|rest| rest.rsplit_once(SEPARATOR).map_or(rest, |(_, last)| last));
    rest.into_iter().flat_map(|rest| ends(rest).filter_map(|at| rest.get(at + SEPARATOR.len()..))).chain(last)
}

/// Whether the name has more places where its server may end than are tried.
pub(super) fn has_more_ends(tool: &str) -> bool {
    rest(tool.trim()).is_some_and(|rest| rest.match_indices(SEPARATOR).nth(MAX_SERVER_ENDS).is_some())
}

fn ends(rest: &str) -> impl Iterator<Item = usize> {
    rest.match_indices(SEPARATOR).take(MAX_SERVER_ENDS).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_may_have_more_than_one_part() {
        assert_eq!(servers("mcp__a__b__c"), ["a__b", "a"]);
        assert_eq!(servers("MCP__GitHub__x"), ["github"]);
        assert_eq!(servers("mcp__github"), ["github"]);
        assert!(servers("github__x").is_empty());
    }

    #[test]
    fn few_of_the_places_where_a_server_may_end_are_tried() {
        let eight = "mcp__s__1__2__3__4__5__6__7__8";
        assert_eq!(servers(eight).len(), MAX_SERVER_ENDS);
        assert!(!has_more_ends(eight) && has_more_ends(&format!("{eight}__9")) && !has_more_ends("a__b__c"));
        for many in [format!("mcp__NNN{}", "__a".repeat(331)), format!("mcp__NNN{}", "_".repeat(990))] {
            assert_eq!(servers(&many).len(), MAX_SERVER_ENDS);
            assert!(has_more_ends(&many) && tools(&many).count() == MAX_SERVER_ENDS + 1, "{many}");
        }
        let after = |name| tools(name).collect::<Vec<_>>();
        assert_eq!(
            (after("mcp__a__b__c"), after("mcp__a"), after("a__b")),
            (vec!["b__c", "c", "c"], vec!["a"], vec![])
        );
    }
}
