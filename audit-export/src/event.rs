//! Turns a line of the log into the body that a webhook receives. Pure.
//!
//! The client's address, the request and text of it are never delivered. A line that cannot be read, and one of a type
//! that this version does not know, is no event. A line that was written twice is delivered under one `webhook-id`.

use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize as _;
use serde_json::{Map, Value, json};
use stage0_contract::{AccountId, LineHash, LineType, Verdict, WebhookFilters, is_same_environment};
use uuid::Uuid;

mod decision;

use decision::Delivered;

/// The prefix of a decision's event id, before its `request_id`.
pub(crate) const DECISION: &str = "dec_";
const SEQUENCE: &str = "sequence";
const TYPICAL_BODY_BYTES: usize = 2 << 10;

/// An event before it has its sequence number: all that endpoints of an account share.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) recorded_at: Timestamp,
    /// In seconds since 1970.
    expires_at: i64,
    kind: LineType,
    verdict: Option<Verdict>,
    environment: Option<String>,
    /// The body up to the sequence number, and what follows it.
    body: (Vec<u8>, Vec<u8>),
}

impl Event {
    /// The event of a log line; none if the line has expired, is past retention, or is not an event.
    pub(crate) fn of(line: &[u8], now: Timestamp, horizon: Timestamp) -> Option<Self> {
        Self::parse(line).filter(|event| event.is_kept(now, horizon))
    }

    /// The event of a log line, however old; none if the line is not an event.
    pub(crate) fn parse(line: &[u8]) -> Option<Self> {
        match Delivered::of(line) {
            Some(decision) => Self::of_decision(&decision, line),
            None => Self::of_other(line),
        }
    }

    fn of_decision(decision: &Delivered, line: &[u8]) -> Option<Self> {
        let recorded_at = decision.text("recorded_at")?.parse().ok()?;
        // The hash lets a receiver follow the chain from event to event.
        let (hash, sequence) = (hash(line), Value::Null);
        let members = decision.members().chain([("hash", &hash), (SEQUENCE, &sequence)]);
        Some(Self {
            id: format!("{DECISION}{}", decision.text("request_id")?),
            recorded_at,
            expires_at: decision.get("expires_at")?.as_i64()?,
            kind: LineType::Decision,
            verdict: Verdict::parse(decision.text("verdict").unwrap_or_default()),
            environment: decision.text("environment").map(str::to_owned),
            body: body_around_sequence(LineType::Decision, recorded_at, members).ok()?,
        })
    }

    fn of_other(line: &[u8]) -> Option<Self> {
        let members: Map<String, Value> = serde_json::from_slice(line).ok()?;
        let kind = LineType::deserialize(members.get("type")?).ok()?;
        let recorded_at: Timestamp = members.get("recorded_at")?.as_str()?.parse().ok()?;
        let expires_at = members.get("expires_at")?.as_i64()?;
        let text = |name: &str| members.get(name).and_then(Value::as_str);
        let (id, mut data) = match kind {
            // A line of two types.
            LineType::Decision => return None,
            mark if mark.is_mark() => {
                (format!("mark_{}_{}", text("account")?, members.get("number")?.as_u64()?), self::mark(members, line)?)
            }
            // Of an approval, a grant or a stop.
            _ => (format!("evt_{}", Uuid::parse_str(text("event_id")?).ok()?), all_members(members, line)),
        };
        // A member of that name keeps its place; otherwise it is the last.
        data.insert(SEQUENCE.to_owned(), Value::Null);
        let body = body_around_sequence(kind, recorded_at, data.iter().map(|(name, value)| (name.as_str(), value)));
        let environment = data.get("environment").and_then(Value::as_str).map(str::to_owned);
        Some(Self { id, recorded_at, expires_at, kind, verdict: None, environment, body: body.ok()? })
    }

    /// Whether the line has neither expired nor is past retention.
    pub(crate) fn is_kept(&self, now: Timestamp, horizon: Timestamp) -> bool {
        self.expires_at > now.as_second() && self.recorded_at >= horizon
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
        let verdict_passes = || {
            let wanted = filters.verdicts.as_ref();
            wanted.is_none_or(|wanted| self.verdict.is_some_and(|verdict| wanted.contains(&verdict)))
        };
        let is_listed = |environment: &str| {
            let wanted = filters.environments.as_ref();
            wanted.is_none_or(|wanted| wanted.iter().any(|wanted| is_same_environment(environment, wanted)))
        };
        match self.kind {
            LineType::Decision => verdict_passes() && is_listed(self.environment.as_deref().unwrap_or_default()),
            mark if mark.is_mark() => true,
            // Events of grants and stops name no environment.
            _ => self.environment.as_deref().is_none_or(is_listed),
        }
    }

    /// INVARIANT: the body of a given line never changes: every attempt sends the same bytes, and so do exporters of
    /// both versions during an upgrade. Members can be added to new lines only (fixtures/bodies).
    pub(crate) fn body(&self, sequence: u64) -> Bytes {
        let (head, tail) = &self.body;
        [head, sequence.to_string().as_bytes(), tail].concat().into()
    }
}

/// The body but for the sequence number, which is the only part that differs between endpoints.
fn body_around_sequence<'a>(
    kind: LineType,
    recorded_at: Timestamp,
    members: impl Iterator<Item = (&'a str, &'a Value)>,
) -> serde_json::Result<(Vec<u8>, Vec<u8>)> {
    let (mut head, mut tail) = (Vec::with_capacity(TYPICAL_BODY_BYTES), Vec::new());
    head.extend_from_slice(b"{\"type\":");
    serde_json::to_writer(&mut head, kind.as_str())?;
    head.extend_from_slice(b",\"timestamp\":");
    serde_json::to_writer(&mut head, &recorded_at.to_string())?;
    head.extend_from_slice(b",\"data\":");
    let (mut part, mut separator) = (&mut head, b'{');
    for (name, value) in members {
        part.push(separator);
        separator = b',';
        serde_json::to_writer(&mut *part, name)?;
        part.push(b':');
        if name == SEQUENCE {
            part = &mut tail;
        } else {
            serde_json::to_writer(&mut *part, value)?;
        }
    }
    part.extend_from_slice(b"}}");
    Ok((head, tail))
}

fn hash(line: &[u8]) -> Value {
    LineHash::of(line).to_string().into()
}

/// All members of a line about an approval, a grant or a stop: by contract it holds no text of an action.
fn all_members(mut members: Map<String, Value>, line: &[u8]) -> Map<String, Value> {
    members.shift_remove("type");
    members.insert("hash".to_owned(), hash(line));
    members
}

/// All members of a mark, and the line itself, whose bytes are signed.
fn mark(mut members: Map<String, Value>, line: &[u8]) -> Option<Map<String, Value>> {
    // `swap_remove` puts the last member first: receivers have had this order since the first version.
    members.swap_remove("type");
    members.insert("hash".to_owned(), hash(line));
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
    fn the_order_of_the_lines_members_does_not_matter_and_a_second_type_makes_it_no_event() {
        let last = LINE.replacen(r#""type":"decision.recorded","#, "", 1);
        let last = last.replacen(r#""goal":"tell nobody"}"#, r#""goal":{"a":[1,"}"]}},"type":"decision.recorded""#, 1);
        let (first, last) = (event(), of(&last).unwrap());
        assert_eq!((&first.id, first.verdict, &first.environment), (&last.id, last.verdict, &last.environment));
        let data = |event: &Event| {
            let mut body: Value = serde_json::from_slice(&event.body(7)).unwrap();
            body["data"]["hash"].take();
            body.to_string()
        };
        assert_eq!(data(&first), data(&last));
        assert!(of(&LINE.replacen('{', r#"{"type":"stop.started","#, 1)).is_none());
        let twice = of(&LINE.replacen('{', r#"{"verdict":"ALLOW","#, 1)).unwrap();
        assert_eq!(twice.verdict, Some(Verdict::Deny), "the last one counts");
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

    /// Such as a line of another writer: its bytes are what serialising the whole body gives.
    #[test]
    fn the_sequence_number_takes_the_place_of_a_member_of_that_name_and_is_the_last_otherwise() {
        for members in [r#""sequence":"theirs","b":{"sequence":1.50}"#, r#""b":"é\u00e9\\","sequence":9"#, r#""b":[]"#]
        {
            let line = APPROVED.replacen(r#""reason""#, &format!(r#"{members},"reason""#), 1);
            let mut data: Map<String, Value> = serde_json::from_str(&line).unwrap();
            data.shift_remove("type");
            data.insert("hash".to_owned(), LineHash::of(line.as_bytes()).to_string().into());
            data.insert("sequence".to_owned(), 17.into());
            let whole = json!({"type": "approval.approved", "timestamp": "2026-01-01T00:00:01Z", "data": data});
            assert_eq!(of(&line).unwrap().body(17), whole.to_string());
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
