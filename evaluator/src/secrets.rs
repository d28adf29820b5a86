//! Secrets in a request: found anywhere in it, told by kind and place, shown nowhere.
//!
//! Owns the walk over every string of a request (values and member names, raw and normalised) and the masking of texts that are
//! to be kept. Refuses to name a value, or a member name that is not the contract's: either may be the secret.
//! INVARIANT: a detector that cannot be built finds a secret in everything.

mod assignment;
mod masking;
mod patterns;

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};
use stage0_contract::{CheckRequest, plain};

pub(crate) use masking::Masking;
#[cfg(test)]
pub(crate) use patterns::EXAMPLES;

use patterns::Detector;

/// What a masked text or value reads.
pub const REDACTED: &str = "[redacted]";

/// A secret's kind and place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// `aws_access_key_id`, `password`, …
    pub kind: &'static str,
    /// `goal`, `context.*`, `tools[2]`: no name that the contract does not know.
    pub path: String,
}

/// Members of a request whose names may be told.
const KNOWN_MEMBERS: [&str; 28] = [
    "actor_role",
    "user_role",
    "requester_role",
    "approval_status",
    "approved_by",
    "approved_at",
    "approval_reason",
    "customer_visible_approved",
    "environment",
    "target_environment",
    "request_channel",
    "resource_scope",
    "target_resources",
    "active_mcp_servers",
    "tenant_id",
    "target_tenants",
    "output_policy",
    "ticket_id",
    "rollback_plan",
    "mfa_verified",
    "record_count",
    "run_id",
    "current_iteration",
    "retry_count",
    "current_tool",
    "recent_tools",
    "loop_state",
    "repeated_tools",
];

/// Every secret in a request, each kind and place once.
pub fn find(request: &CheckRequest) -> Vec<Finding> {
    let detector = Detector::get();
    let mut suspicion = Suspicion { text: String::new(), named: false };
    each_text(request, &mut |_, member, text| suspicion.note(member, text));
    if !suspicion.named && !detector.suspects(&suspicion.text) {
        return Vec::new();
    }
    let mut found = Vec::new();
    each_text(request, &mut |place, member, text| {
        if let Some(kind) = detector.kind(text).or_else(|| member.and_then(|m| assignment::member_kind(m, text))) {
            found.push(Finding { kind, path: place.to_string() });
        }
    });
    found.sort_unstable();
    found.dedup();
    found
}

/// The text with every secret in it replaced by [`REDACTED`].
pub fn mask(text: &str) -> String {
    if !suspects(text) {
        return text.to_owned();
    }
    let detector = Detector::get();
    let masked = detector.replace(text);
    // What shows only after normalisation, or only once its neighbour is gone, has no place that could be cut out.
    if detector.kind(&masked).is_some() { REDACTED.to_owned() } else { masked }
}

/// Whether a text may hold a secret; `false` is certain.
pub(crate) fn suspects(text: &str) -> bool {
    !text.is_ascii() || Detector::get().suspects(text)
}

/// All texts in one, so that the usual request costs one search.
struct Suspicion {
    text: String,
    named: bool,
}

impl Suspicion {
    fn note(&mut self, member: Option<&str>, text: &str) {
        self.text.push_str(text);
        self.text.push('\n');
        if !text.is_ascii() {
            self.text.push_str(&plain(text));
            self.text.push('\n');
        }
        self.named |= member.is_some_and(assignment::is_secret_name);
    }
}

/// Where a text stands; rendered only when something is found there.
enum Place<'p> {
    Field(&'static str),
    Member(&'p Place<'p>, &'p str),
    Item(&'p Place<'p>, usize),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => f.write_str(name),
            Self::Member(parent, name) => {
                let shown = if KNOWN_MEMBERS.contains(name) { name } else { "*" };
                write!(f, "{parent}.{shown}")
            }
            Self::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// Called with the place, the member that names the text, and the text.
type See<'s> = &'s mut dyn FnMut(&Place<'_>, Option<&str>, &str);

fn each_text(request: &CheckRequest, see: See<'_>) {
    see(&Place::Field("goal"), None, &request.goal);
    for (name, items) in [
        ("success_criteria", &request.success_criteria),
        ("constraints", &request.constraints),
        ("tools", &request.tools),
        ("side_effects", &request.side_effects),
    ] {
        let field = Place::Field(name);
        for (index, item) in items.iter().enumerate() {
            see(&Place::Item(&field, index), None, item);
        }
    }
    for (name, text) in [("environment", &request.environment), ("policy_pack_version", &request.policy_pack_version)] {
        if let Some(text) = text {
            see(&Place::Field(name), None, text);
        }
    }
    if let Some(context) = &request.context {
        each_member(context, &Place::Field("context"), see);
    }
    each_member(&request.unknown, &Place::Field("body"), see);
}

fn each_member(members: &Map<String, Value>, place: &Place<'_>, see: See<'_>) {
    for (name, value) in members {
        see(place, None, name);
        each_value(value, &Place::Member(place, name), Some(name), see);
    }
}

fn each_value(value: &Value, place: &Place<'_>, member: Option<&str>, see: See<'_>) {
    match value {
        Value::String(text) => see(place, member, text),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                each_value(item, &Place::Item(place, index), member, see);
            }
        }
        Value::Object(members) => each_member(members, place, see),
        Value::Number(number) if member.is_some_and(assignment::is_secret_name) => {
            see(place, member, &number.to_string());
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const AWS: &str = "AKIAIOSFODNN7EXAMPLE";

    fn paths(body: Value) -> Vec<String> {
        find(&CheckRequest::parse(body).unwrap()).into_iter().map(|f| f.path).collect()
    }

    #[test]
    fn a_secret_is_found_wherever_it_stands() {
        for (body, path) in [
            (json!({"goal": format!("use {AWS} now")}), "goal"),
            (json!({"goal": "g", "success_criteria": ["x", AWS]}), "success_criteria[1]"),
            (json!({"goal": "g", "constraints": [AWS]}), "constraints[0]"),
            (json!({"goal": "g", "tools": [AWS]}), "tools[0]"),
            (json!({"goal": "g", "side_effects": [AWS]}), "side_effects[0]"),
            (json!({"goal": "g", "environment": AWS}), "environment"),
            (json!({"goal": "g", "policy_pack_version": AWS}), "policy_pack_version"),
            (json!({"goal": "g", "context": {"ticket_id": AWS}}), "context.ticket_id"),
            (json!({"goal": "g", "context": {AWS: 1}}), "context"),
            (json!({"goal": "g", "context": {"a": [{"b": {"c": AWS}}]}}), "context.*[0].*.*"),
            (json!({"goal": "g", "context": {"db": {"password": "hunter22"}}}), "context.*.*"),
            (json!({"goal": "g", "colour": AWS}), "body.*"),
            (json!({"goal": "g", AWS: 1}), "body"),
        ] {
            assert_eq!(paths(body.clone()), [path], "{body}");
        }
    }

    #[test]
    fn a_secret_does_not_hide_behind_invisible_or_wide_characters() {
        assert_eq!(paths(json!({"goal": "use AKIA\u{200b}IOSFODNN7EXAMPLE"})), ["goal"]);
        assert_eq!(paths(json!({"goal": "ｐａｓｓｗｏｒｄ＝hunter22"})), ["goal"]);
        assert_eq!(mask("use AKIA\u{200b}IOSFODNN7EXAMPLE"), REDACTED);
    }

    #[test]
    fn a_harmless_request_has_no_findings() {
        assert!(
            paths(json!({"goal": "Reset the password: user forgot it", "context": {"password": "required"}}))
                .is_empty()
        );
    }

    #[test]
    fn masking_leaves_the_rest_of_the_text() {
        assert_eq!(mask(&format!("use {AWS} now")), format!("use {REDACTED} now"));
        assert_eq!(mask("login with password=hunter22, then go"), format!("login with {REDACTED} then go"));
        assert_eq!(mask("nothing here"), "nothing here");
        assert_eq!(mask("ünïcode stays"), "ünïcode stays");
        let pem = "x -----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY----- y";
        assert_eq!(mask(pem), format!("x {REDACTED} y"));
        assert_eq!(mask("-----BEGIN PRIVATE KEY-----\nMIIcut off"), REDACTED);
    }
}
