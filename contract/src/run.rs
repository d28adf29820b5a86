//! Runs: the requests about the state that the server keeps for each account and `run_id`.
//!
//! How a run advances is the evaluator's; nothing here is text of a request except the run's id and names of tools.

#![expect(missing_docs, reason = "a test demands a description of every member that the API's document shows")]

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{AccountId, CheckRequest, IdError, RequestId, hidden, is_blank, plain, whole_text};

const NOT_A_NAME: IdError = IdError { expected: "a run's name: 1 to 1000 characters, not blank, none of them hidden" };

/// A run's name as its caller gives it: 1–1,000 characters, trimmed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(String);

impl RunId {
    pub const MAX_CHARS: usize = 1_000;

    /// Takes a name, white space around it removed.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let text = text.trim();
        if is_blank(text) || hidden(text).is_some() || text.chars().count() > Self::MAX_CHARS {
            Err(NOT_A_NAME)
        } else {
            Ok(Self(text.to_owned()))
        }
    }

    /// The run that a request names: `context.run_id`, or that of `context.loop_state`. Another run in each place is an
    /// error.
    pub fn of(request: &CheckRequest) -> Result<Option<Self>, IdError> {
        request.context.as_ref().map_or(Ok(None), Self::in_context)
    }

    /// As [`RunId::of`], of a `context` whose request is still to be judged.
    pub fn in_context(context: &Map<String, Value>) -> Result<Option<Self>, IdError> {
        let mut named: Option<Self> = None;
        for text in Self::named_in(context) {
            let run = Self::parse(&text?)?;
            // Two different runs: it would be unclear whose counters hold.
            if named.as_ref().is_some_and(|named| named.canonical() != run.canonical()) {
                return Err(NOT_A_NAME);
            }
            named = named.or(Some(run));
        }
        Ok(named)
    }

    /// Every text that names a run: `run_id`, then `loop_state.run_id`. Null and blank values name none; any other
    /// value that is neither a text nor a whole number is an error.
    pub fn named_in(context: &Map<String, Value>) -> impl Iterator<Item = Result<Cow<'_, str>, IdError>> {
        let inner = context.get("loop_state").and_then(Value::as_object);
        let values = [Some(context), inner].into_iter().flatten().filter_map(|members| members.get("run_id"));
        let texts = values.filter(|value| !value.is_null()).map(|value| Self::text_of(value).ok_or(NOT_A_NAME));
        texts.filter(|text| !text.as_ref().is_ok_and(|text| is_blank(text)))
    }

    /// A text is itself, a whole number its decimal digits: `5.0` is 5.
    fn text_of(value: &Value) -> Option<Cow<'_, str>> {
        match value {
            Value::String(text) => Some(Cow::Borrowed(text)),
            Value::Number(number) => whole_text(number).map(Cow::Owned),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        }
    }

    /// The form in which names are compared: NFKC, without invisible characters, and one space where there is white
    /// space. Case makes another run, as ids may depend on it.
    pub fn canonical(&self) -> String {
        plain(&self.0).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RunId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        Self::parse(&text)
    }
}

impl From<RunId> for String {
    fn from(id: RunId) -> Self {
        id.0
    }
}

/// `GET /v1/runs/{run_id}`: gateway to evaluator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShowRun {
    #[schemars(skip)]
    pub account: AccountId,
    /// As the checks name it, percent-encoded: `a/b` is `a%2Fb`.
    pub run_id: RunId,
}

/// What is known of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Run")]
pub struct RunView {
    /// The run's name.
    pub run_id: RunId,
    /// When its first check arrived.
    pub first_seen: Timestamp,
    /// When it last changed.
    pub last_seen: Timestamp,
    /// When it is forgotten, unless it goes on.
    pub expires_at: Timestamp,
    /// The highest that was allowed or reported.
    #[schemars(extend("minimum" = 0))]
    pub iterations: i64,
    /// The highest that was reported.
    #[schemars(extend("minimum" = 0))]
    pub retries: i64,
    /// Since its first check, or as reported, whichever is more.
    #[schemars(extend("minimum" = 0))]
    pub elapsed_seconds: f64,
    /// The money of the run.
    pub cost: RunCost,
    /// The last calls that were allowed, the oldest first. Of a name over 128 bytes its hash, `sha256:…`; `?` for a
    /// name that mixes scripts.
    #[schemars(extend("maxItems" = 100))]
    pub tools: Vec<String>,
    /// How often each tool was called; 200 are counted separately.
    pub tool_calls: BTreeMap<String, i64>,
    /// Allowed checks that are not settled, the oldest first.
    #[schemars(extend("maxItems" = 100))]
    pub reservations: Vec<Reservation>,
}

/// US dollars.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunCost {
    /// Settled, expired, or reported.
    #[schemars(extend("minimum" = 0))]
    pub spent_usd: f64,
    /// Estimated for allowed checks that are not settled.
    #[schemars(extend("minimum" = 0))]
    pub reserved_usd: f64,
    /// Both: what `max_cost_usd` is compared with, with the next check's estimate.
    #[schemars(extend("minimum" = 0))]
    pub total_usd: f64,
}

/// An allowed check's estimate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reservation {
    /// The check.
    pub request_id: RequestId,
    /// US dollars.
    #[schemars(extend("minimum" = 0))]
    pub estimated_cost_usd: f64,
    /// When it was allowed.
    pub reserved_at: Timestamp,
    /// When it counts as spent unless it is settled.
    pub expires_at: Timestamp,
}

/// `GET /v1/runs`: gateway to evaluator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListRuns {
    #[schemars(skip)]
    pub account: AccountId,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items of the page.
    #[schemars(with = "Option<u32>", extend("minimum" = 1, "maximum" = 1000, "default" = 100))]
    pub limit: u32,
}

/// `DELETE /v1/runs/{run_id}`: gateway to evaluator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EndRun {
    #[schemars(skip)]
    pub account: AccountId,
    /// As the checks name it, percent-encoded: `a/b` is `a%2Fb`.
    pub run_id: RunId,
}

/// The run's state is gone; the next check with its name begins a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunEnded {}

/// `POST /v1/runs/{run_id}/settle`: gateway to evaluator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SettleRun {
    #[schemars(skip)]
    pub account: AccountId,
    /// As the checks name it, percent-encoded: `a/b` is `a%2Fb`.
    pub run_id: RunId,
    /// The check's `request_id`.
    pub request_id: RequestId,
    /// What it cost: in the message millionths of a US dollar, in the body US dollars, to a millionth. Never negative.
    #[schemars(rename = "actual_cost_usd", with = "f64", extend("minimum" = 0, "maximum" = 1_000_000_000))]
    pub actual_micros: i64,
    /// Whether the caller may settle for less than was estimated (scope `runs:manage`).
    #[schemars(skip)]
    pub may_lower: bool,
}

/// The estimate is replaced by the cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunSettled {
    /// The run's name.
    pub run_id: RunId,
    /// The check.
    pub request_id: RequestId,
    /// US dollars.
    #[schemars(extend("minimum" = 0))]
    pub estimated_cost_usd: f64,
    /// US dollars.
    #[schemars(extend("minimum" = 0))]
    pub actual_cost_usd: f64,
    /// The run's money afterwards.
    pub cost: RunCost,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(context: impl Into<Value>) -> Result<Option<String>, IdError> {
        let context = context.into();
        let request = CheckRequest::parse(json!({"goal": "g", "context": context})).unwrap();
        RunId::of(&request).map(|run| run.map(String::from))
    }

    #[test]
    fn a_run_is_named_in_the_context_or_nested_there() {
        assert_eq!(of(json!({"run_id": " r1 "})), Ok(Some("r1".to_owned())));
        assert_eq!(of(json!({"loop_state": {"run_id": "r2"}})), Ok(Some("r2".to_owned())));
        assert_eq!(of(json!({"run_id": "r1", "loop_state": {"run_id": " r1"}})), Ok(Some("r1".to_owned())));
        assert!(of(json!({"run_id": "r1", "loop_state": {"run_id": "r2"}})).is_err(), "whose counters would hold?");
        assert_eq!(of(json!({"run_id": "", "loop_state": {"run_id": "r2"}})), Ok(Some("r2".to_owned())));
    }

    #[test]
    fn invisible_characters_do_not_make_another_run() {
        let canonical = |text: &str| RunId::parse(text).unwrap().canonical();
        for same in ["run1\u{200b}", "\u{202a}run1", "r\u{ad}un1", "ｒｕｎ１", " run1 "] {
            assert_eq!(canonical(same), "run1", "{same:?}");
        }
        assert_ne!(canonical("Run1"), "run1");
        for same in [
            "run\u{a0}1",
            "run  1",
            "run \u{200b} 1",
            "run\u{1680}1",
            "run\u{3000}1",
            "run\t1",
            "run\r\n1",
            "run\u{2028}1",
        ] {
            assert_eq!(canonical(same), "run 1", "{same:?}");
        }
        for hidden in ["run1\u{0}", "\u{2800}run1", "run\u{1b}1", "\u{9b}run1", "\u{0}", "\u{fffe}"] {
            assert!(RunId::parse(hidden).is_err(), "{hidden:?} is no name at all");
        }
    }

    #[test]
    fn null_and_blank_name_no_run_and_other_types_are_errors() {
        for none in [json!({}), json!({"run_id": null}), json!({"run_id": " "}), json!({"loop_state": {}})] {
            assert_eq!(of(none.clone()), Ok(None), "{none}");
        }
        for bad in [
            json!({"run_id": ["a"]}),
            json!({"run_id": {"id": 7}}),
            json!({"run_id": true}),
            json!({"run_id": 7.5}),
            json!({"run_id": 1e300}),
            json!({"run_id": "x".repeat(1_001)}),
            json!({"run_id": 7, "loop_state": {"run_id": 8}}),
        ] {
            assert!(of(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_whole_number_is_its_decimal_text() {
        for (number, text) in [
            (json!(11_233_637_052_i64), "11233637052"),
            (json!(u64::MAX), "18446744073709551615"),
            (json!(0), "0"),
            (json!(-0.0), "0"),
            (json!(-5), "-5"),
            (json!(256.0), "256"),
        ] {
            assert_eq!(of(json!({"run_id": number})), Ok(Some(text.to_owned())), "{number}");
            let both = json!({"run_id": number, "loop_state": {"run_id": text}});
            assert_eq!(of(both), Ok(Some(text.to_owned())), "the same run in both places");
        }
    }
}
