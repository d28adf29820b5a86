//! Turns a line of the log into the body that a webhook receives. Pure.
//!
//! The client's address, the request and text of it are never delivered. A line that cannot be read, and one of a type
//! that this version does not know, is no event. A line that was written twice is delivered under one `webhook-id`.

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use stage0_contract::{AccountId, DELIVERED_MEMBERS, LineHash, LineType, Verdict, WebhookFilters, is_same_environment};
use uuid::Uuid;

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
            mark if mark.is_mark() => {
                (format!("mark_{}_{}", text("account")?, members.get("number")?.as_u64()?), self::mark(members, line)?)
            }
            // Of an approval, a grant or a stop.
            _ => (format!("evt_{}", Uuid::parse_str(text("event_id")?).ok()?), all_members(members, line)),
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

    /// An endpoint that names no events gets decisions and marks, except the hourly removals by retention.
    pub(crate) fn passes(&self, filters: &WebhookFilters) -> bool {
        if !filters.wants(self.kind) {
            return false;
        }
        let text = |name: &str| self.data.get(name).and_then(Value::as_str);
        let verdict_passes = || {
            let verdict = Verdict::parse(text("verdict").unwrap_or_default());
            filters.verdicts.as_ref().is_none_or(|wanted| verdict.is_some_and(|verdict| wanted.contains(&verdict)))
        };
        let is_listed = |environment: &str| {
            let wanted = filters.environments.as_ref();
            wanted.is_none_or(|wanted| wanted.iter().any(|wanted| is_same_environment(environment, wanted)))
        };
        match self.kind {
            LineType::Decision => verdict_passes() && is_listed(text("environment").unwrap_or_default()),
            mark if mark.is_mark() => true,
            // Events of grants and stops name no environment.
            _ => text("environment").is_none_or(is_listed),
        }
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

/// All members of a line about an approval, a grant or a stop: by contract it holds no text of an action.
fn all_members(mut members: Map<String, Value>, line: &[u8]) -> Map<String, Value> {
    members.shift_remove("type");
    members.insert("hash".to_owned(), LineHash::of(line).to_string().into());
    members
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
        WebhookFilters { events: None, verdicts, environments }
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

    /// What a gateway writes of an approval.
    const APPROVED: &str = concat!(
        r#"{"type":"approval.approved","chain":{"writer":"01a20c2e-c3d9-727d-9b3c-c2a79d458dbe","sequence":2,"#,
        r#""previous":null},"recorded_at":"2026-01-01T00:00:01Z","expires_at":2000000000,"account":"acc_1","#,
        r#""event_id":"01A20C2E-C3D7-70EE-BB71-31E8ED670A1B","at":"2026-01-01T00:00:00Z","approval_id":"apr_1","#,
        r#""environment":"Production","request_id":"01a20c2e-c3d7-70ee-bb71-31e8ed670a1b","#,
        r#""actor":{"key_id":"k","member_id":"mem_1","authenticated_by":"api_key"},"reason":"as planned"}"#,
    );

    fn of(line: &str) -> Option<Event> {
        Event::of(line.as_bytes(), Timestamp::from_second(1_900_000_000).unwrap(), Timestamp::UNIX_EPOCH)
    }

    fn naming(events: &[&str]) -> WebhookFilters {
        let events = Some(events.iter().map(|event| (*event).to_owned()).collect());
        WebhookFilters { events, verdicts: None, environments: None }
    }

    #[test]
    fn an_event_of_an_approval_is_delivered_with_its_members_and_one_id_however_often_it_was_recorded() {
        let again = APPROVED.replace(r#""sequence":2"#, r#""sequence":9"#).replace("00:01Z", "00:07Z");
        let (first, second) = (of(APPROVED).unwrap(), of(&again).unwrap());
        assert_eq!(first.id, "evt_01a20c2e-c3d7-70ee-bb71-31e8ed670a1b");
        assert_eq!(first.id, second.id);
        let body = first.body(7);
        assert_eq!(body, of(APPROVED).unwrap().body(7));
        let value: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (&value["type"], &value["timestamp"]),
            (&json!("approval.approved"), &json!("2026-01-01T00:00:01Z"))
        );
        let mut data: Value = serde_json::from_str(APPROVED).unwrap();
        data.as_object_mut().unwrap().remove("type");
        data["hash"] = LineHash::of(APPROVED.as_bytes()).to_string().into();
        data["sequence"] = json!(7);
        assert_eq!(value["data"], data);
    }

    #[test]
    fn events_of_approvals_and_stops_go_only_to_endpoints_that_name_them() {
        let stop = APPROVED.replace("approval.approved", "stop.started");
        let grant = APPROVED.replace(r#""environment":"Production","#, "");
        let (approved, stop, grant) = (of(APPROVED).unwrap(), of(&stop).unwrap(), of(&grant).unwrap());
        for event in [&approved, &stop] {
            assert!(!event.passes(&filters(None, None)));
            assert!(!event.passes(&naming(&["decision.recorded", "checkpoint.signed", "approval.denied"])));
        }
        assert!(approved.passes(&naming(&["approval.*"])) && approved.passes(&naming(&["approval.approved"])));
        assert!(!stop.passes(&naming(&["approval.*"])) && stop.passes(&naming(&["stop.*"])));
        assert!(!event().passes(&naming(&["approval.*"])) && event().passes(&naming(&["decision.recorded"])));
        let in_staging = WebhookFilters { environments: Some(vec!["staging".to_owned()]), ..naming(&["approval.*"]) };
        let denials = WebhookFilters { verdicts: Some(vec![Verdict::Deny]), ..naming(&["approval.*"]) };
        assert!(!approved.passes(&in_staging) && grant.passes(&in_staging), "an event without an environment passes");
        assert!(approved.passes(&denials), "it has no verdict");
        let in_production = WebhookFilters { environments: Some(vec!["prod".to_owned()]), ..naming(&["approval.*"]) };
        assert!(approved.passes(&in_production));
    }

    #[test]
    fn a_line_of_an_unknown_type_or_without_its_id_is_no_event() {
        assert!(of(&APPROVED.replace("approval.approved", "approval.foreseen")).is_none());
        assert!(of(&APPROVED.replace("event_id", "event")).is_none());
        assert!(of(&APPROVED.replace("01A20C2E", "x")).is_none());
    }

    /// A decision of this version has the member, and one of an earlier version has not.
    #[test]
    fn the_approval_of_a_decision_is_delivered() {
        let approval = json!({"id": "apr_1", "status": "pending", "url": "/v1/approvals/apr_1"});
        let line = LINE.replacen(r#""verdict""#, &format!(r#""approval":{approval},"verdict""#), 1);
        let value: Value = serde_json::from_slice(&of(&line).unwrap().body(1)).unwrap();
        assert_eq!(value["data"]["approval"], approval);
        let value: Value = serde_json::from_slice(&event().body(1)).unwrap();
        assert!(value["data"].get("approval").is_none());
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
