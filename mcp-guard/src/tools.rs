//! The tools that the server has listed: what a call needs to know of each, and lists as the client may see them.

use std::collections::{HashMap, HashSet};

use stage0_contract::{canonical_hash, parse_strict};

use crate::headers::MirroredArgument;
use crate::json::{Object, folded, items};
use crate::pins::MAX_TOOLS;
use crate::version::Version;

/// The longest name of a tool, in characters.
pub(crate) const MAX_NAME_CHARS: usize = 256;

/// A tool of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tool {
    /// Hex SHA-256 of the definition's canonical JSON.
    pub(crate) sha256: String,
    pub(crate) has_output_schema: bool,
    /// The names of the arguments in the tool's schema.
    arguments: HashSet<String>,
    /// Arguments that clients repeat in headers, since 2026-07-28.
    pub(crate) mirrored: Vec<MirroredArgument>,
    /// The definition is not the one that is trusted.
    pub(crate) is_changed: bool,
    /// The policy can never allow it, as far as was known when it was listed.
    pub(crate) is_hidden: bool,
}

/// Every tool that was listed, by name.
pub(crate) type Tools = HashMap<String, Tool>;

/// One page of a list, as the server sent it.
#[derive(Debug)]
pub(crate) struct Page<'a> {
    result: Object<'a>,
    /// Name, raw definition and what was read of it.
    pub(crate) tools: Vec<(String, &'a str, Tool)>,
    /// Definitions that cannot be read, or are second ones of the same name. The client does not see them.
    pub(crate) left_out: usize,
}

/// Why a list is not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ListError {
    #[error("the server's list of tools cannot be read")]
    Unreadable,
    #[error("the server lists more than {MAX_TOOLS} tools")]
    TooMany,
}

impl<'a> Page<'a> {
    pub(crate) fn read(result: &'a str) -> Result<Self, ListError> {
        let result = Object::parse(result).map_err(|_| ListError::Unreadable)?;
        let raw = result.get("tools").and_then(items).ok_or(ListError::Unreadable)?;
        if raw.len() > MAX_TOOLS {
            return Err(ListError::TooMany);
        }
        let mut tools: Vec<(String, &str, Tool)> = Vec::with_capacity(raw.len());
        let mut names = HashSet::new();
        for definition in &raw {
            if let Some((name, tool)) = read_tool(definition)
                && names.insert(name.clone())
            {
                tools.push((name, definition, tool));
            }
        }
        let left_out = raw.len() - tools.len();
        Ok(Self { result, tools, left_out })
    }

    /// The result with the tools that may be seen. Each definition stays byte for byte as it came.
    pub(crate) fn visible(&self, version: Version) -> String {
        let shown: Vec<&str> =
            self.tools.iter().filter(|(_, _, tool)| tool.is_visible()).map(|(_, raw, _)| *raw).collect();
        let shown = format!("[{}]", shown.join(","));
        let result = self.result.clone().with("tools", &shown);
        if version.is_stateless() {
            // Another caller may see other tools, and this one others tomorrow.
            result.with("ttlMs", "0").with("cacheScope", "\"private\"").to_text()
        } else {
            result.to_text()
        }
    }
}

impl Tool {
    /// Whether this is the name of an argument only to a reader that does not regard case. A policy that reads
    /// `path` would not see the `PATH` that such a server takes for it.
    pub(crate) fn is_near_argument(&self, name: &str) -> bool {
        !self.arguments.contains(name) && self.arguments.iter().any(|own| folded(own) == folded(name))
    }

    fn is_visible(&self) -> bool {
        !self.is_changed && !self.is_hidden
    }
}

/// `None`: it cannot be read, or two parsers could read it differently.
fn read_tool(definition: &str) -> Option<(String, Tool)> {
    let name = Object::parse(definition).ok()?.text("name")?;
    let length = name.chars().count();
    if length == 0 || length > MAX_NAME_CHARS || name.chars().any(char::is_control) {
        return None;
    }
    let Ok(serde_json::Value::Object(members)) = parse_strict(definition.as_bytes()) else { return None };
    let schema = members.get("inputSchema").unwrap_or(&serde_json::Value::Null);
    let properties = schema.get("properties").and_then(serde_json::Value::as_object);
    let tool = Tool {
        arguments: properties.map(|own| own.keys().cloned().collect()).unwrap_or_default(),
        sha256: canonical_hash(&members),
        has_output_schema: members.contains_key("outputSchema"),
        mirrored: MirroredArgument::of_schema(schema),
        is_changed: false,
        is_hidden: false,
    };
    Some((name, tool))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = concat!(
        r#"{"nextCursor" : "c\u0061", "tools":[ {"name":"a", "description":"\u0061 1.0"},"#,
        r#"{"name":"b","outputSchema":{}} ],"ttlMs":9,"cacheScope":"public"}"#
    );

    #[test]
    fn a_list_keeps_the_bytes_of_what_is_seen() {
        let mut page = Page::read(LIST).unwrap();
        page.tools[1].2.is_hidden = true;
        let text = page.visible(Version::V2025_11_25);
        assert!(text.contains(r#""tools":[{"name":"a", "description":"\u0061 1.0"}]"#), "{text}");
        assert!(text.contains(r#""nextCursor":"c\u0061""#) && text.contains(r#""cacheScope":"public""#), "{text}");
    }

    #[test]
    fn a_list_of_the_new_protocol_cannot_be_shared_or_kept() {
        let text = Page::read(LIST).unwrap().visible(Version::V2026_07_28);
        assert!(text.contains(r#""cacheScope":"private""#) && text.contains(r#""ttlMs":0"#), "{text}");
        assert!(!text.contains("public") && !text.contains("\"ttlMs\":9"), "{text}");
        let bare = Page::read(r#"{"tools":[]}"#).unwrap().visible(Version::V2026_07_28);
        assert!(bare.contains(r#""cacheScope":"private""#) && bare.contains(r#""ttlMs":0"#), "{bare}");
    }

    #[test]
    fn an_argument_in_another_case_is_near_and_an_unknown_one_is_not() {
        let text = r#"{"name":"a","inputSchema":{"properties":{"path":{},"A":{},"a":{}}}}"#;
        let (_, tool) = read_tool(text).unwrap();
        for near in ["PATH", "Path", "paTh"] {
            assert!(tool.is_near_argument(near), "{near}");
        }
        for other in ["path", "a", "A", "paths", "other"] {
            assert!(!tool.is_near_argument(other), "{other}");
        }
    }

    #[test]
    fn the_hash_is_of_what_a_definition_says_and_not_of_its_white_space() {
        let hash = |text: &str| read_tool(text).unwrap().1.sha256;
        let first = hash(r#"{"name":"a","description":"d"}"#);
        assert_eq!(first, hash(r#"{ "description":"\u0064", "name":"a"}"#));
        assert_ne!(first, hash(r#"{"name":"a","description":"D"}"#));
        assert_ne!(first, hash(r#"{"name":"a","description":"d","annotations":{}}"#));
    }

    #[test]
    fn definitions_that_cannot_be_read_are_left_out_and_their_neighbours_are_not() {
        for bad in [
            r#"{"name":"a","description":"second"}"#,
            "1",
            "{}",
            r#"{"name":""}"#,
            r#"{"name":1}"#,
            r#"{"name":"b","Name":"c"}"#,
            r#"{"name":"b","inputSchema":{"type":1,"type":2}}"#,
        ] {
            let list = format!(r#"{{"tools":[{{"name":"a"}},{bad}]}}"#);
            let page = Page::read(&list).unwrap();
            assert_eq!(
                (page.left_out, page.visible(Version::V2025_06_18).as_str()),
                (1, r#"{"tools":[{"name":"a"}]}"#)
            );
        }
    }

    #[test]
    fn a_list_that_cannot_be_read_is_refused() {
        for text in ["{}", "[]", r#"{"tools":{}}"#, r#"{"tools":[],"tools":[]}"#, r#"{"tools":[],"Tools":[]}"#] {
            assert_eq!(Page::read(text).unwrap_err(), ListError::Unreadable, "{text}");
        }
        let many: Vec<String> = (0..=MAX_TOOLS).map(|n| format!(r#"{{"name":"t{n}"}}"#)).collect();
        assert_eq!(Page::read(&format!(r#"{{"tools":[{}]}}"#, many.join(","))).unwrap_err(), ListError::TooMany);
    }
}
