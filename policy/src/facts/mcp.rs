//! Names of tools of MCP servers: `mcp__<server>__<tool>`.
//!
//! A server's own name may hold `__`, so a name can be split in more than one way: `split` ends the server at the first
//! separator, `servers` gives every candidate.

use stage0_contract::visible;

const PREFIX: &str = "mcp__";
pub(super) const SEPARATOR: &str = "__";

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

/// Every server that the tool may belong to, normalised as identities are compared, the longest name first.
pub(super) fn servers(tool: &str) -> Vec<String> {
    let tool = visible(tool);
    let Some(rest) = tool.strip_prefix(PREFIX) else { return Vec::new() };
    let mut servers: Vec<String> =
        rest.match_indices(SEPARATOR).filter_map(|(at, _)| rest.get(..at)).map(str::to_owned).collect();
    if servers.is_empty() {
        servers.push(rest.to_owned());
    }
    servers.reverse();
    servers
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
}
