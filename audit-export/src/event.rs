//! Turns a line of the log into the body that a webhook receives. Pure.
//!
//! The client's address, the request and text of it are never delivered, nor is a line that cannot be read.

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use stage0_contract::{AccountId, DELIVERED_MEMBERS, LineHash, LineType, Verdict, WebhookFilters, is_same_environment};

/// The prefix of a decision's event id, before its `request_id`.
pub(crate) const DECISION: &str = "dec_";
/// An event before it has its sequence number.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) recorded_at: Timestamp,
    kind: LineType,
    data: Map<String, Value>,
}

impl Event {
    /// The event of a log line; none if the line has expired, is past retention, or is not an event.
    pub(crate) fn of(line: &[u8], now: Timestamp, horizon: Timestamp) -> Option<Self> {
        let members: Map<String, Value> = serde_json::from_slice(line).ok()?;
        let kind: LineType = serde_json::from_value(members.get("type")?.clone()).ok()?;
        let recorded_at: Timestamp = members.get("recorded_at")?.as_str()?.parse().ok()?;
        let expires_at = members.get("expires_at")?.as_i64()?;
        if expires_at <= now.as_second() || recorded_at < horizon {
            return None;
        }
        let text = |name: &str| members.get(name).and_then(Value::as_str);
        let (id, data) = match kind {
            LineType::Decision => (format!("{DECISION}{}", text("request_id")?), decision(members, line)),
            LineType::Checkpoint | LineType::Deletion | LineType::Expiry | LineType::WebhookDisabled => {
                (format!("mark_{}_{}", text("account")?, members.get("number")?.as_u64()?), mark(members, line)?)
            }
        };
        Some(Self { id, recorded_at, kind, data })
    }

    pub(crate) fn test(account: &AccountId, id: &str, now: Timestamp) -> Bytes {
        let body = json!({
            "type": "webhook.test",
            "timestamp": now.to_string(),
            "data": {"account": account, "sequence": 0, "event": id},
        });
        body.to_string().into()
    }

    /// Marks go to every endpoint, except the hourly removals by retention, which go to none.
    pub(crate) fn passes(&self, filters: &WebhookFilters) -> bool {
        match self.kind {
            LineType::Decision => {}
            LineType::Checkpoint | LineType::Deletion | LineType::WebhookDisabled => return true,
            LineType::Expiry => return false,
        }
        let text = |name: &str| self.data.get(name).and_then(Value::as_str).unwrap_or_default();
        let verdict = Verdict::parse(text("verdict"));
        let environment = text("environment");
        let is_listed = |wanted: &Vec<String>| wanted.iter().any(|wanted| is_same_environment(environment, wanted));
        filters.verdicts.as_ref().is_none_or(|wanted| verdict.is_some_and(|verdict| wanted.contains(&verdict)))
            && filters.environments.as_ref().is_none_or(is_listed)
    }

    /// INVARIANT: the body of a given line never changes: every attempt sends the same bytes, and so do exporters of
    /// both versions during an upgrade. Members can be added to new lines only (fixtures/bodies).
    pub(crate) fn body(mut self, sequence: u64) -> Bytes {
        self.data.insert("sequence".to_owned(), sequence.into());
        let body = json!({
            "type": self.kind.as_str(),
            "timestamp": self.recorded_at.to_string(),
            "data": self.data,
        });
        body.to_string().into()
    }
}

fn decision(mut members: Map<String, Value>, line: &[u8]) -> Map<String, Value> {
    let mut data: Map<String, Value> =
        DELIVERED_MEMBERS.iter().filter_map(|name| Some(((*name).to_owned(), members.remove(*name)?))).collect();
    // The hash lets a receiver follow the chain from event to event.
    data.insert("hash".to_owned(), LineHash::of(line).to_string().into());
    data
}

/// All members of a mark, and the line itself, whose bytes are signed.
fn mark(mut members: Map<String, Value>, line: &[u8]) -> Option<Map<String, Value>> {
    // `swap_remove` puts the last member first: receivers have had this order since the first version.
    members.swap_remove("type");
    members.insert("hash".to_owned(), LineHash::of(line).to_string().into());
    members.insert("line".to_owned(), std::str::from_utf8(line).ok()?.into());
    Some(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = concat!(
        r#"{"type":"decision.recorded","chain":{"writer":"01a20c2e-c3d9-727d-9b3c-c2a79d458dbe","sequence":1,"previous":null},"#,
        r#""recorded_at":"2026-01-01T00:00:00Z","expires_at":2000000000,"#,
        r#""verdict":"DENY","decision":"NO_GO","environment":"Production","#,
        r#""request_id":"01a20c2e-c3d7-70ee-bb71-31e8ed670a1b","#,
        r#""meta":{"client_request_id":"mine"},"account":"acc_1","key_id":"k","#,
        r#""run_id":"r","client":{"address":"192.0.2.1","user_agent":"curl"},"#,
        r#""durations":{"total_ms":1},"input":{"goal":"tell nobody"}}"#,
    );

    fn event() -> Event {
        Event::of(LINE.as_bytes(), Timestamp::from_second(1_900_000_000).unwrap(), Timestamp::UNIX_EPOCH).unwrap()
    }

    fn filters(verdicts: Option<Vec<Verdict>>, environments: Option<Vec<&str>>) -> WebhookFilters {
        let environments = environments.map(|all| all.into_iter().map(str::to_owned).collect());
        WebhookFilters { verdicts, environments }
    }

    #[test]
    fn a_decision_is_delivered_without_input_client_and_durations() {
        let body = event().body(7);
        let value: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (&value["type"], &value["timestamp"]),
            (&json!("decision.recorded"), &json!("2026-01-01T00:00:00Z"))
        );
        let data = &value["data"];
        assert_eq!((&data["sequence"], &data["account"], &data["key_id"]), (&json!(7), &json!("acc_1"), &json!("k")));
        assert_eq!(
            (&data["verdict"], &data["run_id"], &data["chain"]["sequence"]),
            (&json!("DENY"), &json!("r"), &json!(1))
        );
        assert_eq!(data["hash"], LineHash::of(LINE.as_bytes()).to_string());
        let text = String::from_utf8(body.to_vec()).unwrap();
        for never in ["tell nobody", "192.0.2.1", "curl", "mine", "durations"] {
            assert!(!text.contains(never), "{never}");
        }
    }

    #[test]
    fn the_same_event_has_the_same_bytes_at_every_attempt() {
        assert_eq!(event().body(7), event().body(7));
        assert_eq!(event().id, "dec_01a20c2e-c3d7-70ee-bb71-31e8ed670a1b");
    }

    /// Never change an expected body: receivers have these bytes, and may receive them again from a newer version.
    #[test]
    fn the_bytes_of_an_event_are_the_same_in_every_version() {
        let kinds = [
            (
                include_str!("../tests/fixtures/bodies/decision.line"),
                include_str!("../tests/fixtures/bodies/decision.body"),
            ),
            (
                include_str!("../tests/fixtures/bodies/checkpoint.line"),
                include_str!("../tests/fixtures/bodies/checkpoint.body"),
            ),
            (
                include_str!("../tests/fixtures/bodies/deletion.line"),
                include_str!("../tests/fixtures/bodies/deletion.body"),
            ),
            (
                include_str!("../tests/fixtures/bodies/webhook_disabled.line"),
                include_str!("../tests/fixtures/bodies/webhook_disabled.body"),
            ),
        ];
        for (line, body) in kinds {
            let event = Event::of(line.trim_end().as_bytes(), Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH).unwrap();
            assert_eq!(std::str::from_utf8(&event.body(17)).unwrap(), body.trim_end());
        }
    }

    #[test]
    fn filters_select_by_verdict_and_by_environment_in_any_spelling() {
        assert!(event().passes(&filters(None, None)));
        assert!(event().passes(&filters(Some(vec![Verdict::Deny]), Some(vec![" production "]))));
        assert!(!event().passes(&filters(Some(vec![Verdict::Allow]), None)));
        assert!(!event().passes(&filters(None, Some(vec!["staging"]))));
    }

    #[test]
    fn marks_go_to_every_endpoint_except_removals_by_retention() {
        for (line, wanted) in [("checkpoint.signed", true), ("decisions.deleted", true), ("decisions.expired", false)] {
            let line = json!({
                "type": line, "account": "acc_1", "number": 3, "recorded_at": "2026-01-01T00:00:00Z",
                "expires_at": 2_000_000_000,
            });
            let now = Timestamp::from_second(1_900_000_000).unwrap();
            let event = Event::of(line.to_string().as_bytes(), now, Timestamp::UNIX_EPOCH).unwrap();
            assert_eq!(event.passes(&filters(None, None)), wanted, "{line}");
        }
    }

    #[test]
    fn an_expired_line_or_one_past_retention_is_not_delivered() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert!(Event::of(LINE.as_bytes(), at(2_000_000_000), Timestamp::UNIX_EPOCH).is_none());
        assert!(Event::of(LINE.as_bytes(), at(1_999_999_999), Timestamp::UNIX_EPOCH).is_some());
        assert!(Event::of(LINE.as_bytes(), at(1_900_000_000), at(1_800_000_000)).is_none());
        assert!(Event::of(b"not json", at(0), at(0)).is_none());
    }
}
