//! What stands in the decision log: one JSON object a line, one line for each decision, for each event of an approval,
//! a grant, a stop or a policy, and marks between them.
//!
//! A line's bytes are what is hashed, signed and kept: they are made once and never written again from a parsed form,
//! so that no JSON library decides what was signed.
//! INVARIANT: no key, goal, context or other free text is in a line, but for `input`, which a request asks for by name.

use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::chain::{Head, LineHash, Link, Previous};
use crate::{AccountId, CheckResponse, KeptFacts, KeyId, WebhookId};

/// What a line is; also the `type` of the webhook event that carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum LineType {
    /// A decision.
    #[serde(rename = "decision.recorded")]
    Decision,
    /// A signed summary of all heads.
    #[serde(rename = "checkpoint.signed")]
    Checkpoint,
    /// Decisions were deleted on demand.
    #[serde(rename = "decisions.deleted")]
    Deletion,
    /// Decisions were removed because their retention was over.
    #[serde(rename = "decisions.expired")]
    Expiry,
    /// A webhook endpoint was disabled.
    #[serde(rename = "webhook.disabled")]
    WebhookDisabled,
    /// An approval was opened.
    #[serde(rename = "approval.requested")]
    ApprovalRequested,
    /// One more person approved, and more are needed.
    #[serde(rename = "approval.voted")]
    ApprovalVoted,
    /// An approval was given.
    #[serde(rename = "approval.approved")]
    ApprovalApproved,
    /// A person said no.
    #[serde(rename = "approval.denied")]
    ApprovalDenied,
    /// An approval was taken back.
    #[serde(rename = "approval.cancelled")]
    ApprovalCancelled,
    /// An approval's time was over.
    #[serde(rename = "approval.expired")]
    ApprovalExpired,
    /// Further groups may decide, because no decision came in time.
    #[serde(rename = "approval.escalated")]
    ApprovalEscalated,
    /// A check is about to use an approval.
    #[serde(rename = "approval.reserved")]
    ApprovalReserved,
    /// A check used an approval, or a wider grant.
    #[serde(rename = "approval.used")]
    ApprovalUsed,
    /// A used approval may be used again.
    #[serde(rename = "approval.reopened")]
    ApprovalReopened,
    /// What came of an approved action was reported.
    #[serde(rename = "approval.outcome")]
    ApprovalOutcome,
    /// A member decides in another's place, or no longer does.
    #[serde(rename = "approval.delegated")]
    ApprovalDelegated,
    /// A wider grant was made, or one more person approved it.
    #[serde(rename = "approval.granted")]
    GrantCreated,
    /// A wider grant was revoked.
    #[serde(rename = "approval.revoked")]
    GrantRevoked,
    /// A stop began.
    #[serde(rename = "stop.started")]
    StopStarted,
    /// A stop was resumed.
    #[serde(rename = "stop.ended")]
    StopEnded,
    /// A policy was published.
    #[serde(rename = "policy.published")]
    PolicyPublished,
    /// A policy was activated.
    #[serde(rename = "policy.activated")]
    PolicyActivated,
    /// The policy that was active before became active again.
    #[serde(rename = "policy.rolled_back")]
    PolicyRolledBack,
    /// An activation or a rollback that was recorded was not made, because another change came between.
    #[serde(rename = "policy.not_changed")]
    PolicyNotChanged,
    /// A published policy was deleted.
    #[serde(rename = "policy.deleted")]
    PolicyDeleted,
    /// An activation was proposed: it waits for a second member.
    #[serde(rename = "policy.proposed")]
    PolicyProposed,
    /// A member denied a proposed activation.
    #[serde(rename = "policy.proposal_denied")]
    PolicyProposalDenied,
    /// A proposed activation was taken back.
    #[serde(rename = "policy.proposal_cancelled")]
    PolicyProposalCancelled,
    /// A proposed activation ended, because another version was in force by then.
    #[serde(rename = "policy.proposal_outdated")]
    PolicyProposalOutdated,
    /// A policy began to judge checks beside the active one, without effect.
    #[serde(rename = "policy.shadow_started")]
    PolicyShadowStarted,
    /// A shadow ended.
    #[serde(rename = "policy.shadow_ended")]
    PolicyShadowEnded,
    /// A policy began to decide a share of the runs.
    #[serde(rename = "policy.canary_started")]
    PolicyCanaryStarted,
    /// A canary ended: what is active decides all runs again.
    #[serde(rename = "policy.canary_ended")]
    PolicyCanaryEnded,
    /// What came of an allowed action was reported.
    #[serde(rename = "decision.outcome")]
    DecisionOutcome,
    /// A workload asked which tools it can never be allowed.
    #[serde(rename = "tools.probed")]
    ToolsProbed,
    /// A guard did not report within the time that it gave.
    #[serde(rename = "guard.silent")]
    GuardSilent,
}

impl LineType {
    /// All kinds.
    pub const ALL: [Self; 37] = [
        Self::Decision,
        Self::Checkpoint,
        Self::Deletion,
        Self::Expiry,
        Self::WebhookDisabled,
        Self::ApprovalRequested,
        Self::ApprovalVoted,
        Self::ApprovalApproved,
        Self::ApprovalDenied,
        Self::ApprovalCancelled,
        Self::ApprovalExpired,
        Self::ApprovalEscalated,
        Self::ApprovalReserved,
        Self::ApprovalUsed,
        Self::ApprovalReopened,
        Self::ApprovalOutcome,
        Self::ApprovalDelegated,
        Self::GrantCreated,
        Self::GrantRevoked,
        Self::StopStarted,
        Self::StopEnded,
        Self::PolicyPublished,
        Self::PolicyActivated,
        Self::PolicyRolledBack,
        Self::PolicyNotChanged,
        Self::PolicyDeleted,
        Self::PolicyProposed,
        Self::PolicyProposalDenied,
        Self::PolicyProposalCancelled,
        Self::PolicyProposalOutdated,
        Self::PolicyShadowStarted,
        Self::PolicyShadowEnded,
        Self::PolicyCanaryStarted,
        Self::PolicyCanaryEnded,
        Self::DecisionOutcome,
        Self::ToolsProbed,
        Self::GuardSilent,
    ];

    /// As on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Decision => "decision.recorded",
            Self::Checkpoint => "checkpoint.signed",
            Self::Deletion => "decisions.deleted",
            Self::Expiry => "decisions.expired",
            Self::WebhookDisabled => "webhook.disabled",
            Self::ApprovalRequested => "approval.requested",
            Self::ApprovalVoted => "approval.voted",
            Self::ApprovalApproved => "approval.approved",
            Self::ApprovalDenied => "approval.denied",
            Self::ApprovalCancelled => "approval.cancelled",
            Self::ApprovalExpired => "approval.expired",
            Self::ApprovalEscalated => "approval.escalated",
            Self::ApprovalReserved => "approval.reserved",
            Self::ApprovalUsed => "approval.used",
            Self::ApprovalReopened => "approval.reopened",
            Self::ApprovalOutcome => "approval.outcome",
            Self::ApprovalDelegated => "approval.delegated",
            Self::GrantCreated => "approval.granted",
            Self::GrantRevoked => "approval.revoked",
            Self::StopStarted => "stop.started",
            Self::StopEnded => "stop.ended",
            Self::PolicyPublished => "policy.published",
            Self::PolicyActivated => "policy.activated",
            Self::PolicyRolledBack => "policy.rolled_back",
            Self::PolicyNotChanged => "policy.not_changed",
            Self::PolicyDeleted => "policy.deleted",
            Self::PolicyProposed => "policy.proposed",
            Self::PolicyProposalDenied => "policy.proposal_denied",
            Self::PolicyProposalCancelled => "policy.proposal_cancelled",
            Self::PolicyProposalOutdated => "policy.proposal_outdated",
            Self::PolicyShadowStarted => "policy.shadow_started",
            Self::PolicyShadowEnded => "policy.shadow_ended",
            Self::PolicyCanaryStarted => "policy.canary_started",
            Self::PolicyCanaryEnded => "policy.canary_ended",
            Self::DecisionOutcome => "decision.outcome",
            Self::ToolsProbed => "tools.probed",
            Self::GuardSilent => "guard.silent",
        }
    }

    /// Whether it is a signed mark, which is no part of a writer's chain.
    pub const fn is_mark(self) -> bool {
        matches!(self, Self::Checkpoint | Self::Deletion | Self::Expiry | Self::WebhookDisabled)
    }

    /// The type of a line of the log; none for one that this version does not know, and for what is no line.
    pub fn of(line: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Typed {
            #[serde(rename = "type", deserialize_with = "known_type")]
            line: Option<LineType>,
        }
        serde_json::from_slice::<Typed>(line).ok()?.line
    }

    /// Reads the wire form; none for a type that this version does not know.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|line| line.as_str() == text)
    }
}

/// What the writer of the log knows of a decision beside the answer itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RecordMetadata {
    /// Whose decision it is.
    pub account: AccountId,
    /// The id of the key that asked; not a secret.
    pub key_id: KeyId,
    /// `context.run_id`, else that of `context.loop_state`; at most 256 characters, secrets masked.
    pub run_id: Option<String>,
    /// Risk classes of the declared side effects, sorted; absent where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub effect_classes: Vec<String>,
    /// Names of the proposed tools, normalised, at most 20, secrets masked; absent where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<String>,
    /// How many constraints had no effect; absent where there were none.
    #[serde(default, skip_serializing_if = "crate::json::is_zero")]
    pub constraints_ignored_count: usize,
    /// Who asked, as the connection says.
    pub client: ClientOrigin,
    /// How long it took.
    pub durations: Durations,
    /// Only when the request said `debug_store_input: true`: its text, secrets masked. Unknown top-level members
    /// are not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<crate::api::RecordedInput>")]
    pub input: Option<Map<String, Value>>,
    /// The facts of the decision: only where the account wants them recorded (`record_facts`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<Box<KeptFacts>>,
}

/// Who asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClientOrigin {
    /// The client's IP address: the peer's, or what a proxy that the deployment trusts says of it.
    pub address: Option<String>,
    /// At most 256 characters, secrets masked.
    pub user_agent: Option<String>,
}

/// Times in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Durations {
    /// From asking an evaluator to its answer, tries included; milliseconds.
    #[schemars(extend("minimum" = 0))]
    pub evaluation_ms: f64,
    /// From the request's arrival to the moment before it was recorded; milliseconds.
    #[schemars(extend("minimum" = 0))]
    pub total_ms: f64,
}

/// A line that records a decision, as a reader sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DecisionRecord {
    /// Always [`LineType::Decision`].
    #[serde(rename = "type")]
    #[schemars(with = "String", extend("enum" = ["decision.recorded"]))]
    pub line: LineType,
    /// Its place in its writer's chain.
    pub chain: Link,
    /// When it was written; RFC 3339.
    pub recorded_at: Timestamp,
    /// From this second on it is not shown any more, since the epoch.
    pub expires_at: i64,
    /// What was answered.
    #[serde(flatten)]
    pub response: CheckResponse,
    /// The rest.
    #[serde(flatten)]
    pub circumstances: RecordMetadata,
}

/// The part of a chained line that only its writer can know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineHeader {
    /// What it is.
    #[serde(rename = "type")]
    pub line: LineType,
    /// Its place in its writer's chain.
    pub chain: Link,
    /// When it was written.
    pub recorded_at: Timestamp,
    /// From this second on it is not shown any more, since the epoch.
    pub expires_at: i64,
}

impl LineHeader {
    /// The whole line: this, then the members of `rest`, which is a JSON object that holds none of these.
    pub fn with(&self, rest: &[u8]) -> Result<Vec<u8>, serde_json::Error> {
        let mut line = Vec::new();
        self.write(rest, &mut line)?;
        Ok(line)
    }

    /// As [`LineHeader::with`], behind what is in `lines` already.
    pub fn write(&self, rest: &[u8], lines: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        serde_json::to_writer(&mut *lines, self)?;
        join(lines, rest);
        Ok(())
    }

    /// As the next line of the chain links to it.
    pub fn head(&self, line: &[u8]) -> Head {
        Head {
            writer: self.chain.writer,
            sequence: self.chain.sequence,
            hash: LineHash::of(line),
            recorded_at: self.recorded_at,
            expires_at: self.expires_at,
        }
    }
}

/// A line of a writer's chain as its readers take it: of whatever type, one that this version does not know included.
/// Such a line keeps its place and its hash; what it says is skipped.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ChainedLine {
    /// What it is; none for a type that this version does not know.
    #[serde(rename = "type", deserialize_with = "known_type")]
    pub line: Option<LineType>,
    /// Its place in its writer's chain.
    pub chain: Link,
    /// When it was written.
    pub recorded_at: Timestamp,
    /// From this second on it is not shown any more, since the epoch.
    pub expires_at: i64,
}

impl ChainedLine {
    /// Reads the line; none for a mark, and for what is no line of a writer's chain.
    pub fn read(line: &[u8]) -> Option<Self> {
        let read: Self = serde_json::from_slice(line).ok()?;
        let is_chained = !read.line.is_some_and(LineType::is_mark) && read.chain.sequence > 0;
        is_chained.then_some(read)
    }

    /// Whether it records a decision.
    pub fn is_decision(&self) -> bool {
        self.line == Some(LineType::Decision)
    }

    /// As the next line of the chain links to it.
    pub fn head(&self, line: &[u8]) -> Head {
        Head {
            writer: self.chain.writer,
            sequence: self.chain.sequence,
            hash: LineHash::of(line),
            recorded_at: self.recorded_at,
            expires_at: self.expires_at,
        }
    }
}

/// Reads the type of a line; none for one that this version does not know.
pub(crate) fn known_type<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<LineType>, D::Error> {
    struct Type;

    impl Visitor<'_> for Type {
        type Value = Option<LineType>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the type of a line")
        }

        fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
            Ok(LineType::parse(text))
        }
    }

    deserializer.deserialize_str(Type)
}

/// The members of an answer and of its circumstances as one JSON object: what [`LineHeader::with`] takes.
pub fn recordable(response: &[u8], circumstances: &RecordMetadata) -> Result<Vec<u8>, serde_json::Error> {
    let mut body = Vec::with_capacity(response.len() + 512);
    body.extend_from_slice(response);
    join(&mut body, &serde_json::to_vec(circumstances)?);
    Ok(body)
}

/// Makes one JSON object of two.
fn join(first: &mut Vec<u8>, second: &[u8]) {
    first.pop();
    if second.len() > 2 {
        if first.len() > 1 {
            first.push(b',');
        }
        first.extend_from_slice(second.get(1..).unwrap_or_default());
    } else {
        first.push(b'}');
    }
}

/// A signed line between decisions. The marks of an account are numbered and chained like the decisions of one writer,
/// and each names all heads: a tail that is cut, a writer that is dropped or a chain that is computed again no longer
/// fits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Mark {
    /// What it says.
    #[serde(flatten)]
    #[schemars(skip)]
    pub body: MarkBody,
    /// The account.
    pub account: AccountId,
    /// From 1 for each account, without a gap.
    #[schemars(extend("minimum" = 1))]
    pub number: u64,
    /// The mark before; null for the first.
    pub previous: Option<Previous>,
    /// When it was made; RFC 3339.
    pub recorded_at: Timestamp,
    /// From this second on it is not shown any more, since the epoch.
    pub expires_at: i64,
    /// When the last decision was stored that the heads cover, in microseconds since the epoch; 0 where there was
    /// none. Below 10^14, in older marks, a place in the store's order.
    pub through: u64,
    /// Lines since the mark before, of all writers: decisions, and events of approvals, grants, stops and policies.
    pub covered: u64,
    /// The last line of each writer, as long as it has not expired.
    pub heads: Vec<Head>,
}

/// What a mark says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type")]
pub enum MarkBody {
    /// Only the heads.
    #[serde(rename = "checkpoint.signed")]
    Checkpoint {},
    /// Decisions were deleted on demand; these are gone, and nothing else.
    #[serde(rename = "decisions.deleted")]
    Deletion(Deletion),
    /// Decisions past the account's retention were removed.
    #[serde(rename = "decisions.expired")]
    Expiry(Expiry),
    /// An endpoint gets no events any more until it is enabled.
    #[serde(rename = "webhook.disabled")]
    WebhookDisabled {
        /// The endpoint.
        webhook: WebhookId,
        /// The reason, for people.
        reason: String,
    },
}

impl MarkBody {
    /// Its type.
    pub fn line(&self) -> LineType {
        match self {
            Self::Checkpoint {} => LineType::Checkpoint,
            Self::Deletion(_) => LineType::Deletion,
            Self::Expiry(_) => LineType::Expiry,
            Self::WebhookDisabled { .. } => LineType::WebhookDisabled,
        }
    }
}

/// What was deleted: enough to prove that nothing else is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Deletion {
    /// Decisions recorded before this are gone.
    pub before: Timestamp,
    /// When the first of them was recorded.
    pub from: Option<Timestamp>,
    /// When the last of them was.
    pub to: Option<Timestamp>,
    /// How many.
    pub count: u64,
    /// 0. In older marks the last one's place in the store's order.
    #[serde(rename = "deleted_through")]
    pub through: u64,
    /// The last one of each writer that is gone.
    pub deleted: Vec<Head>,
    /// The id of the key that asked for it.
    pub requested_by: KeyId,
}

/// What was removed because its retention was over, and which retention held then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Expiry {
    /// What was recorded before was past the retention when the mark was made and may be gone: decisions and marks.
    pub horizon: Timestamp,
    /// How many days the account kept decisions then.
    #[schemars(extend("minimum" = 1, "maximum" = 3650))]
    pub retention_days: u32,
    /// Decisions recorded before this are gone.
    pub before: Timestamp,
    /// When the first of them was recorded.
    pub from: Option<Timestamp>,
    /// When the last of them was.
    pub to: Option<Timestamp>,
    /// How many.
    pub count: u64,
    /// The last one of each writer that is gone.
    pub expired: Vec<Head>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::{Previous, SigningKeyId, Unsigned, WriterId};
    use crate::parse_strict;
    use serde_json::json;
    use uuid::Uuid;

    const RESPONSE: &str = include_str!("../fixtures/check_response.json");

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn start() -> LineHeader {
        let hash = LineHash::of(b"the line before");
        let chain = Link {
            writer: WriterId::new(Uuid::from_u128(7)),
            sequence: 2,
            previous: Some(Previous { hash, recorded_at: at(1_800_000_000), expires_at: 1_802_592_000 }),
            after: None,
            mark: None,
        };
        LineHeader { line: LineType::Decision, chain, recorded_at: at(1_800_000_001), expires_at: 1_802_592_001 }
    }

    fn circumstances(input: Option<Map<String, Value>>) -> RecordMetadata {
        RecordMetadata {
            account: AccountId::parse("acc_1").unwrap(),
            key_id: KeyId::parse("key_1").unwrap(),
            run_id: Some("run_1".to_owned()),
            effect_classes: Vec::new(),
            tools: Vec::new(),
            constraints_ignored_count: 0,
            client: ClientOrigin { address: Some("192.0.2.7".to_owned()), user_agent: None },
            durations: Durations { evaluation_ms: 1.25, total_ms: 3.5 },
            input,
            facts: None,
        }
    }

    fn response() -> CheckResponse {
        serde_json::from_str(RESPONSE).unwrap()
    }

    #[test]
    fn every_type_of_line_is_listed_once_and_read_as_it_is_written() {
        let mut texts = std::collections::BTreeSet::new();
        for line in LineType::ALL {
            assert!(texts.insert(line.as_str()), "{line:?} stands twice");
            assert_eq!(LineType::parse(line.as_str()), Some(line));
            assert_eq!(serde_json::to_value(line).unwrap(), line.as_str());
            assert_eq!(serde_json::from_value::<LineType>(line.as_str().into()).unwrap(), line);
            assert_eq!(LineType::of(json!({"type": line.as_str()}).to_string().as_bytes()), Some(line));
        }
        // The names that the derived implementation knows: one more there is one more here.
        let error = serde_json::from_str::<LineType>(r#""x""#).unwrap_err().to_string();
        assert_eq!(error.matches('`').count(), 2 * (LineType::ALL.len() + 1), "{error}");
        for unknown in ["", "decision", "Decision.recorded", "approval.foreseen"] {
            assert_eq!(LineType::parse(unknown), None, "{unknown}");
        }
        let marks = LineType::ALL.into_iter().filter(|line| line.is_mark());
        assert_eq!(
            marks.map(LineType::as_str).collect::<Vec<_>>(),
            ["checkpoint.signed", "decisions.deleted", "decisions.expired", "webhook.disabled",]
        );
        for none in [&b""[..], b"{}", b"[]", br#"{"type":7}"#, br#"{"type":null}"#] {
            assert_eq!(LineType::of(none), None);
        }
    }

    #[test]
    fn a_line_is_what_its_reader_takes_it_for() {
        let input = Map::from_iter([("goal".to_owned(), Value::from("}\",{\"type\":\"x\""))]);
        for input in [None, Some(Map::new()), Some(input)] {
            let circumstances = circumstances(input);
            let rest = recordable(&serde_json::to_vec(&response()).unwrap(), &circumstances).unwrap();
            let line = start().with(&rest).unwrap();
            let LineHeader { line: kind, chain, recorded_at, expires_at } = start();
            let record =
                DecisionRecord { line: kind, chain, recorded_at, expires_at, response: response(), circumstances };
            assert_eq!(serde_json::from_slice::<DecisionRecord>(&line).unwrap(), record);
            assert_eq!(serde_json::from_slice::<LineHeader>(&line).unwrap(), start());
            // In these bytes, each member once, and without a line feed.
            assert_eq!(line, serde_json::to_vec(&record).unwrap());
            assert!(parse_strict(&line).is_ok() && !line.contains(&b'\n'));
        }
    }

    #[test]
    fn the_bytes_of_the_answer_stand_in_the_line_as_they_were_sent() {
        let sent = serde_json::to_string(&response()).unwrap();
        let line = start().with(&recordable(sent.as_bytes(), &circumstances(None)).unwrap()).unwrap();
        let line = String::from_utf8(line).unwrap();
        let members = sent.strip_prefix('{').unwrap().strip_suffix('}').unwrap();
        assert_eq!(line.matches(members).count(), 1);
    }

    #[test]
    fn two_objects_become_one() {
        for (first, second, both) in [
            ("{}", "{}", "{}"),
            ("{}", r#"{"b":2}"#, r#"{"b":2}"#),
            (r#"{"a":1}"#, "{}", r#"{"a":1}"#),
            (r#"{"a":{}}"#, r#"{"b":{}}"#, r#"{"a":{},"b":{}}"#),
        ] {
            let mut joined = first.as_bytes().to_vec();
            join(&mut joined, second.as_bytes());
            assert_eq!(String::from_utf8(joined).unwrap(), both);
        }
    }

    #[test]
    fn the_hash_of_a_line_is_this() {
        let line = start().with(br#"{"verdict":"DENY"}"#).unwrap();
        let text = concat!(
            r#"{"type":"decision.recorded","chain":{"writer":"00000000-0000-0000-0000-000000000007","sequence":2,"#,
            r#""previous":{"hash":"39045f39d3b751ed412a081efab9551e2329831dddf2b7444ce5586de13d5886","#,
            r#""recorded_at":"2027-01-15T08:00:00Z","expires_at":1802592000}},"#,
            r#""recorded_at":"2027-01-15T08:00:01Z","expires_at":1802592001,"verdict":"DENY"}"#
        );
        assert_eq!(String::from_utf8(line.clone()).unwrap(), text);
        assert_eq!(
            start().head(&line).hash.to_string(),
            "3ccf35f9319d9f6b78e345239d09ec412434af109c7d9b7b3d1ad7c8a250ff11"
        );
    }

    #[test]
    fn a_mark_says_each_thing_once() {
        let key = SigningKeyId::of(&[0; 32]);
        for text in [
            include_str!("../fixtures/mark_checkpoint.json"),
            include_str!("../fixtures/mark_deletion.json"),
            include_str!("../fixtures/mark_expiry.json"),
            include_str!("../fixtures/mark_webhook_disabled.json"),
        ] {
            let mark: Mark = serde_json::from_str(text).unwrap();
            let line = Unsigned::new(&mark, &key).unwrap().signed(&[0; 64]);
            assert!(parse_strict(&line).is_ok(), "{}", String::from_utf8_lossy(&line));
            assert_eq!(serde_json::from_slice::<Mark>(&line).unwrap(), mark);
            let kind = serde_json::to_value(mark.body.line()).unwrap();
            assert_eq!(kind, mark.body.line().as_str());
            assert!(text.contains(mark.body.line().as_str()));
        }
    }
}
