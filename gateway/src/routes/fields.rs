//! Bodies and queries of the control API, decoded member by member so that a refusal names every bad one.
//!
//! Unknown members are refused here, unlike on `/check`: a misspelt `expires_at` would make a key that never ends.

use actix_web::HttpRequest;
use actix_web::web::Query;
use jiff::Timestamp;
use serde_json::{Map, Value};
use stage0_contract::{
    AccountId, ActionDigest, ApprovalMode, Change, FieldError, MemberId, Plan, PolicyVersion, Scope, Scopes, Verdict,
    WebhookFilters, hidden, is_invisible, is_plain_name,
};

use crate::errors::ApiError;

const PAGE: u32 = 100;
const MAX_PAGE: u32 = 1_000;
/// Up to which a number with a zero behind its point is read exactly: with it, its digits fit into 53 bits.
const MAX_EXACT: f64 = 900_719_925_474_099.0;

/// Members that are taken out one by one; what is left at the end is unknown.
pub(super) struct Fields {
    members: Map<String, Value>,
    errors: Vec<FieldError>,
}

impl Fields {
    /// `errors` is what is wrong with the headers.
    pub(super) fn of_body(members: Map<String, Value>, errors: Vec<FieldError>) -> Self {
        Self { members, errors }
    }

    /// The query as text members; a parameter that is given twice is an error.
    pub(super) fn of_query(request: &HttpRequest) -> Self {
        let mut fields = Self::of_body(Map::new(), Vec::new());
        let Ok(pairs) = Query::<Vec<(String, String)>>::from_query(request.query_string()) else {
            fields.bad("query", "must be `name=value` pairs");
            return fields;
        };
        for (name, value) in pairs.into_inner() {
            if fields.members.insert(name.clone(), Value::String(value)).is_some() {
                fields.bad(&name, "must be given once");
            }
        }
        fields
    }

    fn bad(&mut self, path: &str, message: impl Into<String>) {
        self.errors.push(FieldError::new(path, message));
    }

    /// Refuses a member for a reason that only the call knows.
    pub(super) fn refuse(&mut self, name: &str, must: &str) {
        if self.errors.iter().all(|error| error.path != name) {
            self.bad(name, must);
        }
    }

    /// Refuses for reasons that were found elsewhere.
    pub(super) fn refuse_all(&mut self, errors: Vec<FieldError>) {
        self.errors.extend(errors);
    }

    /// Refuses what is wrong in the members of another object, with the path of that object before their names.
    pub(super) fn refuse_within(&mut self, path: &str, inner: Self) {
        if let Err(ApiError::Invalid(errors)) = inner.finish() {
            let within = |error: FieldError| FieldError::new(format!("{path}.{}", error.path), error.message);
            self.errors.extend(errors.into_iter().map(within));
        }
    }

    /// A member as it was sent.
    pub(super) fn value(&mut self, name: &str) -> Option<Value> {
        self.members.remove(name)
    }

    /// Whether the member is there, null included.
    pub(super) fn has(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    pub(super) fn take_null(&mut self, name: &str) -> bool {
        self.members.get(name).is_some_and(Value::is_null) && self.members.remove(name).is_some()
    }

    pub(super) fn optional<T>(&mut self, name: &str, must: &str, read: impl FnOnce(&Value) -> Option<T>) -> Option<T> {
        let value = self.members.remove(name).filter(|value| !value.is_null())?;
        let read = read(&value);
        if read.is_none() {
            self.bad(name, must);
        }
        read
    }

    /// A text that must be there; its rules are the keystore's.
    pub(super) fn required_text(&mut self, name: &str) -> String {
        self.required(name, "must be a string", |v| v.as_str().map(str::to_owned)).unwrap_or_default()
    }

    pub(super) fn required<T>(&mut self, name: &str, must: &str, read: impl FnOnce(&Value) -> Option<T>) -> Option<T> {
        if self.members.get(name).is_none_or(Value::is_null) {
            self.members.remove(name);
            self.bad(name, "is required");
        }
        self.optional(name, must, read)
    }

    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        self.optional(name, "must be a string", |v| v.as_str().map(str::to_owned))
    }

    pub(super) fn word<T>(&mut self, name: &str, must: &str, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        self.optional(name, must, |v| read(v.as_str()?))
    }

    pub(super) fn boolean(&mut self, name: &str) -> Option<bool> {
        self.optional(name, "must be `true` or `false`", Value::as_bool)
    }

    pub(super) fn number(&mut self, name: &str) -> Option<u32> {
        self.optional(name, "must be a whole number, not negative", |v| u32::try_from(whole(v)?).ok())
    }

    pub(super) fn large_number(&mut self, name: &str) -> Option<u64> {
        self.optional(name, "must be a whole number, not negative", whole)
    }

    /// A whole number between two bounds, both included.
    pub(super) fn number_within<T: TryFrom<u64>>(&mut self, name: &str, min: u64, max: u64) -> Option<T> {
        let must = format!("must be a whole number from {min} to {max}");
        self.optional(name, &must, |v| {
            whole(v).filter(|number| (min..=max).contains(number)).and_then(|number| T::try_from(number).ok())
        })
    }

    /// An object, whose bad and unknown members are named with its own name before theirs.
    pub(super) fn object<T>(&mut self, name: &str, read: impl FnOnce(&mut Self) -> T) -> Option<T> {
        let members = self.optional(name, "must be an object", |v| v.as_object().cloned())?;
        let mut inner = Self::of_body(members, Vec::new());
        let read = read(&mut inner);
        self.refuse_within(name, inner);
        Some(read)
    }

    /// A setting that null gives back to the plan.
    pub(super) fn change<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&mut Self, &str) -> Option<T>,
    ) -> Option<Change<T>> {
        if self.take_null(name) { Some(Change::Plans) } else { read(self, name).map(Change::Own) }
    }

    pub(super) fn texts(&mut self, name: &str) -> Option<Vec<String>> {
        self.items(name, "must be a string", |v| v.as_str().map(str::to_owned))
    }

    pub(super) fn verdicts(&mut self) -> Option<Vec<Verdict>> {
        self.items("verdicts", "must be `ALLOW`, `DENY` or `DEFER`", |v| Verdict::parse(v.as_str()?))
    }

    pub(super) fn events(&mut self) -> Option<Vec<String>> {
        let must =
            "must be the type of an event, such as `approval.requested`, or a kind, such as `approval.*` or `guard.*`";
        self.items("events", must, |v| v.as_str().filter(|event| WebhookFilters::can_name(event)).map(str::to_owned))
    }

    /// An array whose bad items are each named.
    pub(super) fn items<T>(&mut self, name: &str, must: &str, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
        let items = self.optional(name, "must be an array", |value| value.as_array().cloned())?;
        Some(self.each(&items, name, must, read))
    }

    fn each<T, C: FromIterator<T>>(
        &mut self,
        items: &[Value],
        name: &str,
        must: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> C {
        let read = |(index, item)| {
            let read = read(item);
            if read.is_none() {
                self.bad(&format!("{name}[{index}]"), must);
            }
            read
        };
        items.iter().enumerate().filter_map(read).collect()
    }

    pub(super) fn account(&mut self) -> Option<AccountId> {
        self.optional("account", "must be an account's id", |v| AccountId::parse(v.as_str()?).ok())
    }

    pub(super) fn member(&mut self, name: &str) -> Option<MemberId> {
        self.word(name, "must be a member's id", |text| MemberId::parse(text).ok())
    }

    pub(super) fn policy_version(&mut self, name: &str) -> Option<PolicyVersion> {
        self.word(name, "must be a policy version: `<pack>@<semver>+<digest>`", |text| PolicyVersion::parse(text).ok())
    }

    pub(super) fn approval_mode(&mut self) -> Option<ApprovalMode> {
        self.word("approvals", "must be `caller` or `verified`", ApprovalMode::parse)
    }

    pub(super) fn action_digest(&mut self) -> Option<ActionDigest> {
        let must = "must be that of the approval as it was read: 64 hexadecimal digits in lower case";
        self.required("action_digest", must, |v| ActionDigest::parse(v.as_str()?).ok())
    }

    /// Text for people that is kept: of at most so many characters, none of which is hidden.
    pub(super) fn prose(&mut self, name: &str, max_chars: usize) -> Option<String> {
        let must = format!("must be text of at most {max_chars} characters, without control and invisible ones");
        let is_shown = |c: char| !is_invisible(c) && (!c.is_control() || matches!(c, '\n' | '\t'));
        self.optional(name, &must, |v| {
            let text = v.as_str().filter(|text| text.chars().count() <= max_chars)?;
            (text.chars().all(is_shown) && hidden(text).is_none()).then(|| text.to_owned())
        })
    }

    /// As [`Fields::prose`], which must be there and say something.
    pub(super) fn required_prose(&mut self, name: &str, max_chars: usize) -> String {
        let is_absent = self.members.get(name).is_none_or(Value::is_null);
        let text = self.prose(name, max_chars);
        if is_absent || text.as_ref().is_some_and(|text| text.trim().is_empty()) {
            self.refuse(name, "is required");
        }
        text.unwrap_or_default()
    }

    pub(super) fn plan(&mut self) -> Option<Plan> {
        self.optional("plan", "must be `free`, `pro` or `unlimited`", |v| Plan::parse(v.as_str()?))
    }

    pub(super) fn timestamp(&mut self, name: &str) -> Option<Timestamp> {
        self.optional(name, "must be a time such as `2026-01-31T12:00:00Z` (RFC 3339)", |v| v.as_str()?.parse().ok())
    }

    pub(super) fn seconds(&mut self, name: &str) -> Option<u64> {
        self.optional(name, "must be a whole number of seconds, not negative", whole)
    }

    /// As [`Fields::limit`], for a page that is made here.
    pub(super) fn page_limit(&mut self) -> u32 {
        let limit = self.limit();
        if !(1..=MAX_PAGE).contains(&limit) {
            self.refuse("limit", "must be 1 to 1000");
        }
        limit
    }

    /// As [`Fields::page_limit`], for pages of another size.
    pub(super) fn limit_within(&mut self, default: u32, max: u32) -> u32 {
        let limit = if self.has("limit") { self.limit() } else { default };
        if !(1..=max).contains(&limit) {
            self.refuse("limit", &format!("must be 1 to {max}"));
        }
        limit
    }

    pub(super) fn limit(&mut self) -> u32 {
        let read = |v: &Value| {
            let text = v.as_str()?;
            let digits =
                text.split_once('.').filter(|(_, zeros)| !zeros.is_empty() && zeros.bytes().all(|b| b == b'0'));
            digits.map_or(text, |(digits, _)| digits).parse().ok()
        };
        self.optional("limit", "must be a whole number", read).unwrap_or(PAGE)
    }

    /// The scopes, if any are named.
    pub(super) fn optional_scopes(&mut self) -> Option<Scopes> {
        if self.take_null("scopes") || !self.has("scopes") {
            return None;
        }
        Some(self.scopes())
    }

    pub(super) fn scopes(&mut self) -> Scopes {
        let array = |value: &Value| value.as_array().cloned();
        let Some(items) = self.required("scopes", "must be an array of scopes", array) else { return Scopes::new() };
        let known = Scope::ALL.map(|scope| format!("`{scope}`")).join(", ");
        self.each(&items, "scopes", &format!("must be one of {known}"), |v| Scope::parse(v.as_str()?))
    }

    /// Refuses with everything that was wrong, unknown members included.
    pub(super) fn finish(mut self) -> Result<(), ApiError> {
        let names: Vec<String> = self.members.keys().cloned().collect();
        for name in names {
            // A name is the caller's text: one that is no name is not shown.
            let path = if is_plain_name(&name) { name.as_str() } else { "(unprintable name)" };
            self.bad(path, "is not known to this call");
        }
        if self.errors.is_empty() { Ok(()) } else { Err(ApiError::Invalid(self.errors)) }
    }
}

/// A number without a fraction, also where it is written with one: some languages have no other numbers.
fn whole(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let float = value.as_f64().filter(|float| float.fract() == 0.0 && (0.0..=MAX_EXACT).contains(float))?;
        // Without the sign of a negative zero.
        format!("{:.0}", float + 0.0).parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(body: &Value) -> Fields {
        Fields::of_body(body.as_object().unwrap().clone(), Vec::new())
    }

    #[test]
    fn every_bad_member_is_named_and_unknown_ones_are_refused() {
        let mut body =
            fields(&json!({"scopes": ["check", "root", 1], "expires_at": "soon", "account": "a b", "expire_at": 1}));
        body.required_text("name");
        body.scopes();
        body.timestamp("expires_at");
        body.account();
        let Err(ApiError::Invalid(errors)) = body.finish() else { panic!("accepted") };
        let paths: Vec<_> = errors.iter().map(|e| e.path.as_str()).collect();
        assert_eq!(paths, ["name", "scopes[1]", "scopes[2]", "expires_at", "account", "expire_at"]);
    }

    #[test]
    fn a_number_without_a_fraction_is_whole_however_it_is_written() {
        for (json, expected) in [
            ("256", Some(256)),
            ("256.0", Some(256)),
            ("2.56e2", Some(256)),
            ("0.0", Some(0)),
            ("-0.0", Some(0)),
            ("900719925474099.0", Some(900_719_925_474_099)),
            ("9007199254740991", Some(9_007_199_254_740_991)),
            ("9007199254740991.0", None),
            ("256.5", None),
            ("-1.0", None),
            ("-1", None),
            ("1e300", None),
            ("\"256\"", None),
            ("true", None),
        ] {
            let mut body = fields(&json!({"n": serde_json::from_str::<Value>(json).unwrap()}));
            assert_eq!(body.large_number("n"), expected, "{json}");
            assert_eq!(body.finish().is_ok(), expected.is_some(), "{json}");
        }
        assert_eq!(fields(&json!({"n": 7.0})).number("n"), Some(7));
        assert_eq!(fields(&json!({"n": 4_294_967_296.0})).number("n"), None);
        assert_eq!(fields(&json!({"n": 60.0})).seconds("n"), Some(60));
        for (text, expected) in [("10", 10), ("10.0", 10), ("10.00", 10)] {
            let mut query = fields(&json!({"limit": text}));
            assert_eq!((query.limit(), query.finish().is_ok()), (expected, true), "{text}");
        }
        for text in ["10.5", "10.", ".0", "-1", "1e1"] {
            let mut query = fields(&json!({"limit": text}));
            query.limit();
            assert!(query.finish().is_err(), "{text}");
        }
    }

    #[test]
    fn text_for_people_hides_nothing_and_is_not_too_long() {
        for (text, is_good) in [
            ("reviewed in CHG-12", true),
            ("zwei\nZeilen, größer", true),
            ("", true),
            ("a\u{202e}b", false),
            ("a\u{200b}b", false),
            ("a\u{1b}[2Jb", false),
            ("a\rb", false),
            ("12345678901234567890123", false),
        ] {
            let mut body = fields(&json!({ "reason": text }));
            assert_eq!(body.prose("reason", 22), is_good.then(|| text.to_owned()), "{text:?}");
            assert_eq!(body.finish().is_ok(), is_good, "{text:?}");
        }
        for absent in [json!({}), json!({"reason": null}), json!({"reason": " "}), json!({"reason": 1})] {
            let mut body = fields(&absent);
            body.required_prose("reason", 22);
            let Err(ApiError::Invalid(errors)) = body.finish() else { panic!("{absent} is accepted") };
            assert_eq!(errors.len(), 1, "{absent}");
        }
    }

    #[test]
    fn what_is_wrong_in_an_object_is_named_with_its_path() {
        let read = |body: &Value| {
            let mut body = fields(body);
            let share = body.object("canary", |canary| {
                let inner = canary.object("return_at", |at| at.number_within::<u8>("error_percent", 0, 100));
                (canary.number_within::<u8>("percent", 1, 100), inner)
            });
            (share, body.finish())
        };
        let (share, finished) = read(&json!({"canary": {"percent": 100.0, "return_at": {"error_percent": 0}}}));
        assert_eq!((share, finished), (Some((Some(100), Some(Some(0)))), Ok(())));
        for absent in [json!({}), json!({"canary": null})] {
            assert_eq!(read(&absent), (None, Ok(())));
        }
        let bad = json!({"canary": {"percent": 101, "share": 1, "return_at": {"error_percent": "1", "after": 2}}});
        let Err(ApiError::Invalid(errors)) = read(&bad).1 else { panic!("accepted") };
        let paths: Vec<_> = errors.iter().map(|error| error.path.as_str()).collect();
        let expected = ["canary.return_at.error_percent", "canary.return_at.after", "canary.percent", "canary.share"];
        assert_eq!(paths, expected);
        for (bad, path) in [(json!({"canary": 5}), "canary"), (json!({"canary": {"percent": 0}}), "canary.percent")] {
            let Err(ApiError::Invalid(errors)) = read(&bad).1 else { panic!("accepted") };
            assert_eq!((errors.len(), errors[0].path.as_str()), (1, path));
        }
    }

    #[test]
    fn null_is_absent_where_a_member_is_optional() {
        let mut body = fields(&json!({"name": "n", "expires_at": null}));
        assert_eq!((body.required_text("name"), body.timestamp("expires_at")), ("n".into(), None));
        assert!(body.finish().is_ok());
    }
}
