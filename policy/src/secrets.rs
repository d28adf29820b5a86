//! Secrets in a request: found anywhere in it, reported by kind and path, never shown.
//!
//! Every string of a request is searched: values and member names, raw and normalised. A report never contains a value,
//! or a member name that is not the contract's: either may be the secret. The pack defines what a secret looks like.
//! INVARIANT: a search that did not reach the end of the request yields no answer.

mod assignment;
mod detector;
#[cfg(test)]
pub(crate) mod forms;
mod masking;
mod names;
pub(crate) mod spec;
mod trigger;
mod value;

use std::collections::BTreeSet;
use std::fmt;
use std::ops::ControlFlow;

use serde::Serialize;
use serde_json::{Map, Value};
use stage0_contract::{CheckRequest, plain};

pub use detector::Detector;

pub(crate) use detector::{Form, Proof};
pub(crate) use masking::Masking;
pub(crate) use names::{NameKind, NameWords};
pub(crate) use value::{MAX_TELLING, ValueWords};

use crate::time_limit::{OutOfTime, TimeLimit};
use detector::Suspicion;

pub(crate) const REDACTED: &str = "[redacted]";

/// The most findings of a request. More would not change the verdict.
const MAX_FINDINGS: usize = 100;
/// Bytes of texts that are searched together: a search costs something for each text, however short.
const SEARCHED_TOGETHER_BYTES: usize = 65_536;

/// One secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// `aws_access_key_id`, `password`, …
    pub kind: String,
    /// `goal`, `context.*`, `tools[2]`: no name that the contract does not know.
    pub path: String,
}

/// Member names that a finding's path may show.
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

/// The secrets in a request, each kind and place once, a hundred at most.
pub fn find(request: &CheckRequest, detector: &Detector) -> Vec<Finding> {
    let found = find_within(request, detector, TimeLimit::NONE);
    // Unreachable without a limit; a request that was not searched to its end would be as bad as one with a secret.
    found.unwrap_or_else(|OutOfTime| vec![Finding { kind: "unknown".to_owned(), path: "body".to_owned() }])
}

/// As [`find`], or not in time.
pub(crate) fn find_within(
    request: &CheckRequest,
    detector: &Detector,
    limit: TimeLimit,
) -> Result<Vec<Finding>, OutOfTime> {
    let mut search = Search { detector, limit, text: String::new(), found: Suspicion::default() };
    let mut in_time = Ok(());
    // Names are not classified before a secret is found.
    let _ = each_text(request, None, &mut |_, _, text| {
        search.note(text);
        in_time = limit.check();
        if in_time.is_ok() && !search.found.secret { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    in_time?;
    search.search();
    limit.check()?;
    if !search.found.secret && !search.found.name {
        return Ok(Vec::new());
    }
    let mut found = BTreeSet::new();
    let _ = each_text(request, Some(detector), &mut |place, member, text| {
        in_time = limit.check();
        let of_member = || member.filter(|kind| detector.member_is_secret(*kind, text)).map(|_| detector::BY_NAME);
        if in_time.is_ok()
            && let Some(kind) = detector.kind(text, limit).or_else(of_member)
        {
            found.insert(Finding { kind: kind.to_owned(), path: place.to_string() });
        }
        if in_time.is_ok() && found.len() < MAX_FINDINGS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    limit.check()?;
    Ok(found.into_iter().collect())
}

/// The text with every secret in it replaced by [`REDACTED`].
pub(crate) fn mask(text: &str, detector: &Detector) -> String {
    mask_within(text, detector, TimeLimit::NONE)
}

/// As [`mask`]; means nothing once `limit` is reached.
fn mask_within(text: &str, detector: &Detector, limit: TimeLimit) -> String {
    if !detector.suspects(text, limit) {
        return text.to_owned();
    }
    let masked = detector.replace(text, limit);
    // What shows only after normalisation, or only once its neighbour is gone, has no place that could be cut out.
    if detector.kind(&masked, limit).is_some() { REDACTED.to_owned() } else { masked }
}

#[cfg(test)]
pub(crate) fn baseline() -> &'static Detector {
    static BASELINE: std::sync::LazyLock<std::sync::Arc<Detector>> = std::sync::LazyLock::new(|| {
        let mut faults = Vec::new();
        crate::secrets::spec::baseline(&mut faults).unwrap_or_else(|| panic!("{faults:#?}"))
    });
    &BASELINE
}

struct Search<'d> {
    detector: &'d Detector,
    limit: TimeLimit,
    /// What is not searched yet.
    text: String,
    found: Suspicion,
}

impl Search<'_> {
    fn note(&mut self, text: &str) {
        self.search_later(text);
        if !text.is_ascii() {
            self.search_later(&plain(text));
        }
    }

    fn search_later(&mut self, text: &str) {
        self.text.push_str(text);
        self.text.push('\n');
        if self.text.len() >= SEARCHED_TOGETHER_BYTES {
            self.search();
        }
    }

    fn search(&mut self) {
        let found = self.detector.may_find(&self.text, self.limit);
        self.found.secret |= found.secret;
        self.found.name |= found.name;
        self.text.clear();
    }
}

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

/// Called with the place, what the name of the innermost member reveals (nothing without a detector), and the text.
type See<'s> = &'s mut dyn FnMut(&Place<'_>, Option<NameKind>, &str) -> ControlFlow<()>;

/// The lists of a request by name.
pub(crate) fn lists(request: &CheckRequest) -> [(&'static str, &[String]); 4] {
    [
        ("success_criteria", &request.success_criteria),
        ("constraints", &request.constraints),
        ("tools", &request.tools),
        ("side_effects", &request.side_effects),
    ]
}

fn each_text(request: &CheckRequest, detector: Option<&Detector>, see: See<'_>) -> ControlFlow<()> {
    see(&Place::Field("goal"), None, &request.goal)?;
    for (name, items) in lists(request) {
        let field = Place::Field(name);
        for (index, item) in items.iter().enumerate() {
            see(&Place::Item(&field, index), None, item)?;
        }
    }
    for (name, text) in [("environment", &request.environment), ("policy_pack_version", &request.policy_pack_version)] {
        if let Some(text) = text {
            see(&Place::Field(name), None, text)?;
        }
    }
    if let Some(context) = &request.context {
        each_member(context, &Place::Field("context"), None, detector, see)?;
    }
    each_member(&request.unknown, &Place::Field("body"), None, detector, see)
}

/// Names of members that tell nothing by themselves: the one around them does.
const SAYS_NOTHING: [&str; 9] = ["value", "val", "raw", "plain", "plaintext", "string", "text", "content", "data"];

fn each_member(
    members: &Map<String, Value>,
    place: &Place<'_>,
    around: Option<NameKind>,
    detector: Option<&Detector>,
    see: See<'_>,
) -> ControlFlow<()> {
    for (name, value) in members {
        see(place, None, name)?;
        let own = detector.and_then(|detector| telling(detector, members, name));
        // `{"password": {"value": …}}`
        let reported = || around.filter(|_| SAYS_NOTHING.iter().any(|nothing| name.eq_ignore_ascii_case(nothing)));
        each_value(value, &Place::Member(place, name), own.or_else(reported), detector, see)?;
    }
    ControlFlow::Continue(())
}

fn each_value(
    value: &Value,
    place: &Place<'_>,
    member: Option<NameKind>,
    detector: Option<&Detector>,
    see: See<'_>,
) -> ControlFlow<()> {
    match value {
        Value::String(text) => see(place, member, text)?,
        Value::Array(items) => {
            let mut before = None;
            for (index, item) in items.iter().enumerate() {
                let member = member.or_else(|| revealed_by_option(detector?, before));
                each_value(item, &Place::Item(place, index), member, detector, see)?;
                before = Some(item);
            }
        }
        Value::Object(members) => each_member(members, place, member, detector, see)?,
        Value::Number(number) if member.is_some() => see(place, member, &number.to_string())?,
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    ControlFlow::Continue(())
}

/// What an option before this argument reveals: `["--password", "…"]`.
fn revealed_by_option(detector: &Detector, before: Option<&Value>) -> Option<NameKind> {
    let option = before?.as_str().filter(|option| option.starts_with('-') && !option.contains(['=', ' ']))?;
    detector.names().member(option)
}

/// How much a member's name reveals. For `{"name": "DB_PASSWORD", "value": …}` the value of `name` is the name.
fn telling(detector: &Detector, members: &Map<String, Value>, name: &str) -> Option<NameKind> {
    let names = detector.names();
    let named = || {
        let told =
            ["name", "key", "variable", "field", "header"].into_iter().find_map(|name| members.get(name)?.as_str());
        told.and_then(|told| names.member(told))
    };
    names.member(name).or_else(|| if name.eq_ignore_ascii_case("value") { named() } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const AWS: &str = "AKIAIOSFODNN7EXAMPLE";

    fn paths(body: Value) -> Vec<String> {
        find(&CheckRequest::parse(body).unwrap(), baseline()).into_iter().map(|f| f.path).collect()
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
            (json!({"goal": "g", "context": {"password": {"value": "hunter22"}}}), "context.*.*"),
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
        assert_eq!(mask("use AKIA\u{200b}IOSFODNN7EXAMPLE", baseline()), REDACTED);
    }

    #[test]
    fn a_request_full_of_secrets_names_a_hundred_places() {
        let rows = |rows: usize| json!({"goal": "g", "context": {"rows": vec![AWS; rows]}});
        assert_eq!(paths(rows(99)).len(), 99);
        assert_eq!(paths(rows(1_000)).len(), MAX_FINDINGS);
    }

    #[test]
    fn a_search_that_is_out_of_time_says_so() {
        let request = CheckRequest::parse(json!({"goal": "read the report"})).unwrap();
        assert_eq!(find_within(&request, baseline(), TimeLimit::over()), Err(OutOfTime));
        assert_eq!(find_within(&request, baseline(), TimeLimit::NONE), Ok(Vec::new()));
        let masking = Masking::of(&request, [], baseline(), TimeLimit::over());
        assert!(masking.is_err() && Masking::new(baseline(), TimeLimit::over()).text("x").is_err());
    }

    #[test]
    fn a_harmless_request_has_no_findings() {
        assert!(
            paths(json!({"goal": "Reset the password: user forgot it", "context": {"password": "required"}}))
                .is_empty()
        );
    }

    #[test]
    fn of_values_within_each_other_the_innermost_masks_them_all() {
        for goal in ["password=xhunter22y password=hunter22", "password=hunter22 password=xhunter22y"] {
            let request = CheckRequest::parse(json!({"goal": goal})).unwrap();
            let masking = Masking::of(&request, [], baseline(), TimeLimit::NONE).unwrap();
            for masked in ["he said hunter22 to us", "he said xhunter22y to us"] {
                assert_eq!(masking.text(masked).unwrap(), REDACTED, "{masked} after {goal}");
            }
            assert_eq!(masking.text("he said xhunter to us").unwrap(), "he said xhunter to us");
        }
    }

    #[test]
    fn masking_leaves_the_rest_of_the_text() {
        assert_eq!(mask(&format!("use {AWS} now"), baseline()), format!("use {REDACTED} now"));
        assert_eq!(mask("login with password=hunter22, then go", baseline()), format!("login with {REDACTED} then go"));
        assert_eq!(mask("nothing here", baseline()), "nothing here");
        assert_eq!(mask("ünïcode stays", baseline()), "ünïcode stays");
        let pem = "x -----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY----- y";
        assert_eq!(mask(pem, baseline()), format!("x {REDACTED} y"));
        assert_eq!(mask("-----BEGIN PRIVATE KEY-----\nMIIcut off", baseline()), REDACTED);
    }
}
