//! Headers that repeat the body, since 2026-07-28: a header that says something else than the body is refused.
//!
//! What routes, counts or limits by headers would otherwise see another call than the one that was decided. Of older
//! versions, a header that is there must be right as well.

use data_encoding::BASE64;
use serde_json::Value;

use crate::json::Object;
use crate::message::Request;

/// Repeats the method.
pub(crate) const METHOD: &str = "mcp-method";
/// Repeats the name of a tool or prompt, or the URI of a resource.
pub(crate) const NAME: &str = "mcp-name";
/// Begins each header that repeats an argument.
pub(crate) const PARAM_PREFIX: &str = "mcp-param-";
/// Names the version that the client speaks.
pub(crate) const PROTOCOL_VERSION: &str = "mcp-protocol-version";

/// The longest path to an argument that is repeated in a header.
const MAX_PATH: usize = 16;

/// An argument that the tool's schema wants in a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MirroredArgument {
    path: Vec<String>,
    /// In lower case.
    header: String,
}

impl MirroredArgument {
    /// From `x-mcp-header` in an `inputSchema`, at any depth of `properties`.
    pub(crate) fn of_schema(schema: &Value) -> Vec<Self> {
        let mut found = Vec::new();
        collect(schema, &mut Vec::new(), &mut found);
        found
    }
}

fn collect(schema: &Value, path: &mut Vec<String>, found: &mut Vec<MirroredArgument>) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    if path.len() >= MAX_PATH {
        return;
    }
    for (name, property) in properties {
        path.push(name.clone());
        if let Some(header) = property.get("x-mcp-header").and_then(Value::as_str) {
            let header = format!("{PARAM_PREFIX}{}", header.to_ascii_lowercase());
            found.push(MirroredArgument { path: path.clone(), header });
        }
        collect(property, path, found);
        path.pop();
    }
}

/// The headers of one request: names in lower case, values as they came. `None`: the value is no visible text.
#[derive(Debug, Default)]
pub(crate) struct Mirrored(pub(crate) Vec<(String, Option<String>)>);

impl Mirrored {
    /// The one value of a header. `Err`: it is there twice, or cannot be read.
    fn one(&self, name: &str) -> Result<Option<&str>, String> {
        let mut values = self.0.iter().filter(|(own, _)| own == name);
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some((_, Some(value))), None) => Ok(Some(value)),
            (Some((_, None)), None) => Err(format!("the header `{name}` cannot be read")),
            (Some(_), Some(_)) => Err(format!("the header `{name}` is there more than once")),
        }
    }

    /// The method's header, and the name's where the method has a name.
    pub(crate) fn check_standard(&self, request: &Request<'_>, is_required: bool) -> Result<(), String> {
        let missing = |name: &str| format!("the header `{name}` is missing");
        match self.one(METHOD)? {
            Some(value) if value != request.method => return Err(differs(METHOD)),
            None if is_required => return Err(missing(METHOD)),
            Some(_) | None => {}
        }
        let named = match request.method.as_str() {
            "tools/call" | "prompts/get" => request.params.text("name"),
            "resources/read" => request.params.text("uri"),
            _ => None,
        };
        match (self.one(NAME)?, named) {
            (Some(value), Some(named)) if decoded(value, NAME)? != named => Err(differs(NAME)),
            (None, Some(_)) if is_required => Err(missing(NAME)),
            _ => Ok(()),
        }
    }

    /// The headers of a call's arguments, as the tool's definition names them. Others pass, as the protocol demands.
    pub(crate) fn check_arguments(&self, tool: &[MirroredArgument], arguments: &Value) -> Result<(), String> {
        for mirrored in tool {
            let found = mirrored.path.iter().try_fold(arguments, |value, name| value.get(name));
            match (self.one(&mirrored.header)?, found.filter(|value| !value.is_null())) {
                (None, None) => {}
                (Some(header), Some(value)) if is_same(&decoded(header, &mirrored.header)?, value) => {}
                (Some(_), Some(_)) => return Err(differs(&mirrored.header)),
                (Some(_), None) => return Err(format!("the header `{}` repeats no argument", mirrored.header)),
                (None, Some(_)) => return Err(format!("the header `{}` is missing", mirrored.header)),
            }
        }
        Ok(())
    }
}

/// The protocol version in the header against the one in the body. `Err`: a text for the client.
pub(crate) fn check_version(header: Option<&str>, body: Option<&str>) -> Result<(), String> {
    match (header, body) {
        (Some(header), Some(body)) if header != body => Err(differs(PROTOCOL_VERSION)),
        (None, Some(_)) => Err(format!("the header `{PROTOCOL_VERSION}` is missing")),
        _ => Ok(()),
    }
}

/// The `_meta` of a request.
pub(crate) fn meta<'a>(params: &Object<'a>) -> Object<'a> {
    params.object("_meta").unwrap_or_default()
}

fn differs(name: &str) -> String {
    format!("the header `{name}` differs from the body")
}

fn decoded(value: &str, name: &str) -> Result<String, String> {
    let Some(encoded) = value.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?=")) else {
        return Ok(value.to_owned());
    };
    // Padding within is taken by the decoder, and by others as the end.
    let bytes = BASE64.decode(encoded.as_bytes()).ok().filter(|bytes| BASE64.encode(bytes) == encoded);
    bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| format!("the header `{name}` cannot be decoded"))
}

fn is_same(header: &str, value: &Value) -> bool {
    match value {
        Value::String(text) => header == text,
        Value::Bool(flag) => header == if *flag { "true" } else { "false" },
        // `42.0` and `42` are equal; as floats, two large numbers that differ would be too.
        Value::Number(number) if number.is_f64() => header.parse::<f64>().ok() == number.as_f64(),
        Value::Number(number) => {
            let (whole, fraction) = header.split_once('.').unwrap_or((header, ""));
            whole == number.to_string() && fraction.bytes().all(|digit| digit == b'0')
        }
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::message::{Message, of_client};

    fn headers(pairs: &[(&str, &str)]) -> Mirrored {
        Mirrored(pairs.iter().map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned()))).collect())
    }

    fn standard(pairs: &[(&str, &str)], body: &str, is_required: bool) -> Result<(), String> {
        let Ok(Message::Request(request)) = of_client(body.as_bytes()) else { panic!("{body}") };
        headers(pairs).check_standard(&request, is_required)
    }

    const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"über"}}"#;

    #[test]
    fn method_and_name_must_be_those_of_the_body() {
        let name = format!("=?base64?{}?=", BASE64.encode("über".as_bytes()));
        let right = [(METHOD, "tools/call"), (NAME, name.as_str())];
        assert_eq!(standard(&right, CALL, true), Ok(()));
        let wrong: [&[(&str, &str)]; 8] = [
            &[],
            &right[..1],
            &right[1..],
            &[(METHOD, "tools/list"), (NAME, &name)],
            &[(METHOD, "tools/call"), (NAME, "other")],
            &[(METHOD, "tools/call"), (METHOD, "tools/call"), (NAME, &name)],
            &[(METHOD, "tools/call"), (NAME, "=?base64?!?=")],
            // "ü" and "ber", joined.
            &[(METHOD, "tools/call"), (NAME, "=?base64?w7w=YmVy?=")],
        ];
        for pairs in wrong {
            assert!(standard(pairs, CALL, true).is_err(), "{pairs:?}");
        }
    }

    #[test]
    fn older_versions_need_no_headers_but_wrong_ones_are_refused() {
        assert_eq!(standard(&[], CALL, false), Ok(()));
        assert!(standard(&[(METHOD, "tools/list")], CALL, false).is_err());
        assert!(standard(&[(NAME, "other")], CALL, false).is_err());
    }

    #[test]
    fn arguments_in_headers_must_be_those_of_the_body() {
        let schema = json!({"properties": {
            "region": {"x-mcp-header": "Region"},
            "deep": {"properties": {"count": {"x-mcp-header": "Count"}}},
            "plain": {},
        }});
        let tool = MirroredArgument::of_schema(&schema);
        assert_eq!(tool.len(), 2);
        let check = |pairs: &[(&str, &str)], arguments: Value| headers(pairs).check_arguments(&tool, &arguments);
        let body = json!({"region": "eu", "deep": {"count": 42}, "plain": 1});
        assert_eq!(check(&[("mcp-param-region", "eu"), ("mcp-param-count", "42.0")], body.clone()), Ok(()));
        assert_eq!(check(&[("mcp-param-other", "x")], json!({})), Ok(()), "what is not recognised passes");
        assert_eq!(check(&[], json!({"region": null})), Ok(()));
        for pairs in [
            vec![("mcp-param-region", "us"), ("mcp-param-count", "42")],
            vec![("mcp-param-region", "eu"), ("mcp-param-count", "43")],
            vec![("mcp-param-region", "eu")],
            vec![("mcp-param-region", "eu"), ("mcp-param-region", "eu"), ("mcp-param-count", "42")],
        ] {
            assert!(check(&pairs, body.clone()).is_err(), "{pairs:?}");
        }
        assert!(check(&[("mcp-param-region", "eu")], json!({})).is_err(), "a header without an argument");
        let large = json!({"deep": {"count": 9_007_199_254_740_993_i64}});
        assert!(check(&[("mcp-param-count", "9007199254740992")], large.clone()).is_err(), "equal only as floats");
        assert_eq!(check(&[("mcp-param-count", "9007199254740993")], large), Ok(()));
    }

    #[test]
    fn the_version_in_the_header_must_be_the_one_in_the_body() {
        assert_eq!(check_version(Some("2026-07-28"), Some("2026-07-28")), Ok(()));
        assert_eq!(check_version(Some("2025-06-18"), None), Ok(()));
        assert!(check_version(Some("2025-06-18"), Some("2026-07-28")).is_err());
        assert!(check_version(None, Some("2026-07-28")).is_err());
    }
}
