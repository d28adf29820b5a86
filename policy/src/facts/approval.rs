//! Approval: whether the action was approved, by whom and when, and whether it needs an approval.
//!
//! The pack defines which words of `approval_status` mean a refusal; only `approved` is an approval. An approval whose
//! time cannot be true counts as missing. What the server holds takes the place of what the caller says.
//! INVARIANT: a rejection stays one, whatever else the request says or the server holds.

use jiff::Timestamp;
use serde_json::Value;
use stage0_contract::{
    ApprovalMode, ApprovalSource, CheckRequest, FlagName, Spelling, Word, is_blank, visible, whole_text,
};

use super::MAX_CLOCK_SKEW_SECONDS;
use super::culprit::{Culprit, MAX_CULPRITS};
use super::declared::Declared;
use super::effects::Effects;
use super::evidence::Evidence;
use super::tools::ProposedTools;
use crate::approval::{Approvals, HeldApproval};
use crate::vocabulary::{APPROVED, ApprovalWord, Edition, Vocabulary};

/// Members that name who acts or who asked for the action. None of these may approve it.
const ACTORS: [&str; 3] = ["actor_id", "agent_id", "requested_by"];
/// An `approved_by` that names the actor, whatever its id.
const SELF: &str = "self";
/// Members in which a caller says that the action was approved, and which may be malformed.
const CLAIM: [&str; 3] = ["approval_status", "approved_by", "approved_at"];

#[derive(Debug, Default)]
pub(crate) struct Approval {
    pub(crate) status: Status,
    pub(crate) approver_named: bool,
    /// `customer_visible_approved` is false.
    pub(crate) customer_visible_refused: bool,
    /// `require_approval_for` names one of the side effects or tools, in the second edition those of `named_by`.
    pub(crate) named: bool,
    pub(crate) named_by: Vec<Culprit>,
    /// A rule requires the approval, or allows something because of it.
    pub(crate) needed: bool,
    /// `approval_status` says approved, and `approved_at` is not a time or lies in the future.
    pub(crate) time_unusable: bool,
    /// When it was given, in seconds since the epoch; `None` where that is missing or unusable.
    pub(crate) approved_at: Option<i64>,
    /// The approver is who acts or who asked for the action.
    pub(crate) by_actor: bool,
    /// Where the approval comes from; `None` where there is none.
    pub(crate) source: Option<ApprovalSource>,
    /// Only approvals that are held here count, so that nothing which the caller writes is one.
    pub(crate) only_held: bool,
    /// A person here denied this action.
    pub(crate) denied: bool,
}

/// What `approval_status` says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Status {
    Approved,
    Pending,
    Missing,
    None,
    Rejected,
    #[default]
    Absent,
    Unrecognised,
}

pub(crate) struct Inputs<'a> {
    pub(crate) request: &'a CheckRequest,
    pub(crate) declared: &'a Declared,
    pub(crate) effects: &'a Effects,
    pub(crate) tools: &'a ProposedTools,
    pub(crate) vocabulary: &'a Vocabulary,
    pub(crate) approvals: Approvals<'a>,
}

impl Approval {
    pub(crate) fn read(inputs: &Inputs<'_>, evaluated_at: i64, evidence: &mut Evidence<'_>) -> Self {
        let mut approval = Self {
            customer_visible_refused: evidence.flag("customer_visible_approved") == Some(false),
            status: Status::read(inputs.vocabulary, evidence),
            ..Self::default()
        };
        match inputs.vocabulary.edition() {
            Edition::First => {
                approval.named = named_in_first_edition(inputs);
                approval.approver_named = evidence.text("approved_by").is_some();
            }
            Edition::Second => {
                approval.named_by = named(inputs, evidence);
                approval.named = !approval.named_by.is_empty();
                approval.read_time(evaluated_at, evidence);
                approval.read_approver(evidence);
            }
        }
        approval.source = (approval.status == Status::Approved).then_some(ApprovalSource::Caller);
        if inputs.approvals.mode == ApprovalMode::Verified {
            approval.ignore_claim(evidence);
        }
        if let Some(held) = inputs.approvals.held {
            approval.hold(held, evidence);
        }
        let effects = inputs.effects;
        let classed = effects.high || effects.communication || effects.approval || effects.impact;
        let required = inputs.declared.flag(FlagName::ApprovalRequired);
        approval.needed = approval.named || (effects.any && (required || classed));
        approval
    }

    /// A caller's word that it was approved counts as nothing said. A word of refusal still counts.
    fn ignore_claim(&mut self, evidence: &mut Evidence<'_>) {
        if self.status == Status::Approved || self.time_unusable {
            self.status = Status::Absent;
        }
        evidence.unmark(&["approved_by", "approved_at"]);
        self.only_held = true;
        self.forget_claim();
    }

    fn hold(&mut self, held: HeldApproval<'_>, evidence: &mut Evidence<'_>) {
        match held {
            HeldApproval::Approved { .. } if self.status == Status::Rejected => {}
            HeldApproval::Approved { by, at } => {
                evidence.unmark(&CLAIM);
                self.forget_claim();
                self.status = Status::Approved;
                self.approver_named = !is_blank(by);
                self.approved_at = Some(at);
                self.source = Some(ApprovalSource::Approval);
            }
            HeldApproval::Denied => {
                evidence.unmark(&CLAIM);
                self.forget_claim();
                self.status = Status::Rejected;
                self.denied = true;
            }
        }
    }

    fn forget_claim(&mut self) {
        self.approver_named = false;
        self.time_unusable = false;
        self.approved_at = None;
        self.by_actor = false;
        self.source = None;
    }

    /// Each identity is a text or a whole number.
    fn read_approver(&mut self, evidence: &mut Evidence<'_>) {
        let actors = ACTORS.map(|name| identity(name, evidence));
        let approver = identity("approved_by", evidence);
        self.approver_named = approver.is_some();
        self.by_actor = approver.is_some_and(|id| id == SELF || actors.iter().flatten().any(|actor| *actor == id));
    }

    fn read_time(&mut self, now: i64, evidence: &mut Evidence<'_>) {
        const NAME: &str = "approved_at";
        let Some(value) = evidence.member(NAME) else { return };
        if value.as_str().is_some_and(is_blank) {
            return;
        }
        let time = value.as_str().and_then(parse_time).map(Timestamp::as_second);
        if time.is_none() {
            evidence.mark_malformed(NAME);
        }
        self.approved_at = time.filter(|at| at.saturating_sub(now) <= MAX_CLOCK_SKEW_SECONDS);
        if self.approved_at.is_none() && self.status == Status::Approved {
            self.time_unusable = true;
            self.status = Status::Missing;
        }
    }
}

impl Status {
    fn read(vocabulary: &Vocabulary, evidence: &mut Evidence<'_>) -> Self {
        const NAME: &str = "approval_status";
        let Some(value) = evidence.member(NAME) else { return Self::Absent };
        let Some(text) = value.as_str() else {
            evidence.mark_malformed(NAME);
            return Self::Unrecognised;
        };
        if is_blank(text) {
            return Self::Absent;
        }
        let status = match vocabulary.edition() {
            Edition::First => Self::of_first(&Word::new(text)),
            Edition::Second => Self::of(&Spelling::of(text), vocabulary),
        };
        if status == Self::Unrecognised {
            evidence.mark_malformed(NAME);
        }
        status
    }

    fn of(word: &Spelling, vocabulary: &Vocabulary) -> Self {
        match vocabulary.names.approval(word) {
            Some(ApprovalWord::Pending) => Self::Pending,
            Some(ApprovalWord::Missing) => Self::Missing,
            Some(ApprovalWord::None) => Self::None,
            Some(ApprovalWord::Rejected) => Self::Rejected,
            None if word.folded() == Some(APPROVED) => Self::Approved,
            None => Self::Unrecognised,
        }
    }

    /// The five words of the first edition.
    fn of_first(word: &Word) -> Self {
        match word.known() {
            Some(APPROVED) => Self::Approved,
            Some("pending") => Self::Pending,
            Some("missing") => Self::Missing,
            Some("none") => Self::None,
            Some("rejected") => Self::Rejected,
            _ => Self::Unrecognised,
        }
    }

    pub(crate) const ALL: [Self; 7] =
        [Self::Approved, Self::Pending, Self::Missing, Self::None, Self::Rejected, Self::Absent, Self::Unrecognised];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::Pending => "pending",
            Self::Missing => "missing",
            Self::None => "none",
            Self::Rejected => "rejected",
            Self::Absent => "absent",
            Self::Unrecognised => "unrecognised",
        }
    }
}

fn named(inputs: &Inputs<'_>, evidence: &mut Evidence<'_>) -> Vec<Culprit> {
    let actions = &inputs.declared.approval_for;
    if actions.is_empty() {
        return Vec::new();
    }
    let effects = inputs.request.side_effects.iter().enumerate().filter(|(_, effect)| actions.match_effect(effect));
    let tools = inputs.request.tools.iter().enumerate().filter(|(_, tool)| actions.match_tool(tool));
    let current = evidence.text("current_tool").into_iter().filter(|tool| actions.match_tool(tool));
    let matches = effects
        .map(|(index, effect)| Culprit::item("side_effects", index, effect))
        .chain(tools.map(|(index, tool)| Culprit::item("tools", index, tool)))
        .chain(current.map(|tool| Culprit::new("context.current_tool", tool)));
    let mut named = Vec::new();
    for culprit in matches.take(MAX_CULPRITS) {
        // Reading a name that is not ASCII costs many times its bytes, so the first such match ends the search.
        let is_costly = !culprit.found.is_ascii();
        named.push(culprit);
        if is_costly {
            break;
        }
    }
    named
}

/// The first edition matches whole words and their parts, and does not split camel case.
fn named_in_first_edition(inputs: &Inputs<'_>) -> bool {
    let actions = &inputs.declared.approval_for;
    let effects = inputs.request.side_effects.iter().map(|effect| Word::name(effect));
    let names = inputs.tools.all().map(|tool| Word::name(tool.as_str()));
    !actions.is_empty() && effects.chain(names).any(|subject| actions.match_word(&subject))
}

/// The request as it would be if the caller did not say that the action is approved.
pub(crate) fn without_claim(request: &CheckRequest) -> CheckRequest {
    let mut request = request.clone();
    if let Some(context) = &mut request.context {
        CLAIM.iter().for_each(|name| drop(context.remove(*name)));
    }
    request
}

fn identity(name: &'static str, evidence: &mut Evidence<'_>) -> Option<String> {
    let identity = match evidence.member(name)? {
        Value::String(text) if is_blank(text) => return None,
        Value::String(text) => Some(visible(text)),
        Value::Number(number) => whole_text(number),
        _ => None,
    };
    if identity.is_none() {
        evidence.mark_malformed(name);
    }
    identity
}

/// Parses RFC 3339 strictly: seconds and an offset are required, which jiff's own parser is lenient about.
fn parse_time(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    let shape = |at: usize, shape: &str| {
        let found = text.as_bytes().get(at..at + shape.len());
        found.is_some_and(|found| {
            found.iter().zip(shape.bytes()).all(|(byte, wanted)| match wanted {
                b'0' => byte.is_ascii_digit(),
                b'T' => matches!(byte, b'T' | b't' | b' '),
                _ => *byte == wanted,
            })
        })
    };
    let at = text.len().saturating_sub(6);
    let offset = text.ends_with(['Z', 'z']) || (at >= 19 && (shape(at, "+00:00") || shape(at, "-00:00")));
    (shape(0, "0000-00-00T00:00:00") && offset).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Files;
    use crate::pack::Pack;
    use serde_json::json;

    const NOW: i64 = 1_773_662_400;

    fn read_with(pack: &Pack, body: Value) -> (Approval, Vec<&'static str>) {
        let request = CheckRequest::parse(body).unwrap();
        let mut evidence = Evidence::new(request.context.as_ref());
        let declared = Declared::read(&request.constraints, &pack.vocabulary, &pack.windows).unwrap();
        let effects = Effects::read(&request.side_effects, &pack.vocabulary);
        let tools = ProposedTools::read(&request, &mut evidence);
        let inputs = Inputs {
            request: &request,
            declared: &declared,
            effects: &effects,
            tools: &tools,
            vocabulary: &pack.vocabulary,
            approvals: Approvals::default(),
        };
        let approval = Approval::read(&inputs, NOW, &mut evidence);
        (approval, evidence.malformed())
    }

    fn read(context: impl Into<Value>) -> (Approval, Vec<&'static str>) {
        read_with(
            &Pack::embedded().unwrap(),
            json!({"goal": "g", "side_effects": ["deploy"], "context": context.into()}),
        )
    }

    fn status(value: impl Into<Value>) -> (Status, Vec<&'static str>) {
        let (approval, malformed) = read(json!({"approval_status": value.into()}));
        (approval.status, malformed)
    }

    #[test]
    fn only_the_word_approved_is_an_approval() {
        for value in [
            json!("approved!"),
            json!("yes"),
            json!("ok"),
            json!("granted"),
            json!("approved_by_manager"),
            json!("APPROVED_WITH_CONDITIONS"),
            json!("revoked"),
            json!("已批准"),
            json!("appr\u{43e}ved"),
            json!(true),
            json!(["approved"]),
            json!({"state": "approved"}),
        ] {
            assert_eq!(status(value.clone()), (Status::Unrecognised, vec!["approval_status"]), "{value}");
        }
        for value in [json!(null), json!(" ")] {
            assert_eq!(status(value), (Status::Absent, vec![]));
        }
        for value in ["approved", "APPROVED", " Approved\u{200b}", "ａｐｐｒｏｖｅｄ"] {
            assert_eq!(status(value), (Status::Approved, vec![]), "{value}");
        }
        assert_eq!(status("NONE").0, Status::None);
    }

    #[test]
    fn every_word_of_refusal_is_a_rejection_in_the_second_edition() {
        let first = Pack::load(&Files::first_edition()).unwrap();
        for word in [
            "deny",
            "DENIED",
            "decline",
            "declined",
            "refuse",
            "refused",
            "disapproved",
            "not approved",
            "not-approved",
            "notApproved",
            "no",
            "Rejected ",
        ] {
            assert_eq!(status(word), (Status::Rejected, vec![]), "{word}");
            let body = json!({"goal": "g", "context": {"approval_status": word}});
            let expected = if word == "Rejected " { Status::Rejected } else { Status::Unrecognised };
            assert_eq!(read_with(&first, body).0.status, expected, "{word}");
        }
        for word in ["nope", "not", "rejected by nobody", "un-denied"] {
            assert_eq!(status(word).0, Status::Unrecognised, "{word}");
        }
    }

    #[test]
    fn an_approval_with_an_unusable_or_future_time_counts_as_missing() {
        let at = |time: Value| {
            let (approval, _) = read(json!({"approval_status": "approved", "approved_at": time}));
            (approval.status, approval.time_unusable, approval.approved_at)
        };
        for (time, second) in [
            ("2026-03-15T09:30:00Z", 1_773_567_000),
            ("2026-03-15t09:30:00.5z", 1_773_567_000),
            ("2026-03-15 10:30:00+01:00", 1_773_567_000),
            ("2026-03-16T12:05:00Z", NOW + 300),
        ] {
            assert_eq!(at(json!(time)), (Status::Approved, false, Some(second)), "{time}");
        }
        for time in [json!(null), json!(" ")] {
            assert_eq!(at(time), (Status::Approved, false, None), "no time is given");
        }
        for time in [
            json!("yesterday"),
            json!("2026-03-15"),
            json!("2026-03-15T09:30Z"),
            json!("2026-03-15T09:30:00"),
            json!("2026-02-30T09:30:00Z"),
            json!("15.03.2026 09:30"),
            json!(1_773_567_000),
            json!(true),
            json!("2026-03-16T12:05:01Z"),
            json!("2999-01-01T00:00:00Z"),
        ] {
            assert_eq!(at(time.clone()), (Status::Missing, true, None), "{time}");
        }
        let rejected = read(json!({"approval_status": "rejected", "approved_at": "yesterday"})).0;
        assert_eq!((rejected.status, rejected.time_unusable), (Status::Rejected, false));
    }

    #[test]
    fn an_actor_or_requester_cannot_approve_its_own_action() {
        let own = |context: Value| read(context).0.by_actor;
        for actor in ACTORS {
            assert!(own(json!({actor: "Bot-7", "approved_by": "ｂｏｔ-7"})), "{actor}");
            assert!(own(json!({actor: 7, "approved_by": "7"})), "{actor}");
            assert!(!own(json!({actor: "bot-7", "approved_by": "bot_7"})), "{actor}");
            assert!(!own(json!({actor: null, "approved_by": "lead"})), "{actor}");
            assert_eq!(read(json!({actor: ["bot"], "approved_by": "bot"})).1, [actor]);
        }
        assert!(own(json!({"approved_by": "Self"})) && own(json!({"approved_by": " self "})));
        assert!(!own(json!({"approved_by": "selfridge"})) && !own(json!({"actor_id": "self"})));
        assert!(!own(json!({"approved_by": " ", "actor_id": " "})), "a blank id names no approver");
        assert_eq!(read(json!({"approved_by": ["lead"]})).1, ["approved_by"]);
    }

    #[test]
    fn require_approval_for_reports_the_side_effects_and_tools_that_it_names() {
        let named = |tools: Value, effects: Value| {
            let body = json!({"goal": "delete it", "constraints": ["require_approval_for: delete"], "tools": tools,
                "side_effects": effects, "context": {"current_tool": "rowDeleter"}});
            read_with(&Pack::embedded().unwrap(), body).0.named_by
        };
        assert_eq!(
            named(json!(["grep", "bulkDeleteIssues"]), json!(["read", "data_deletion", "deletes"])),
            [
                Culprit::item("side_effects", 1, "data_deletion"),
                Culprit::item("side_effects", 2, "deletes"),
                Culprit::item("tools", 1, "bulkDeleteIssues"),
                Culprit::new("context.current_tool", "rowDeleter"),
            ]
        );
        assert_eq!(named(json!(vec!["delete"; 200]), json!([])).len(), MAX_CULPRITS);
        let body = json!({"goal": "Search for uses of delete", "constraints": ["require_approval_for: delete"],
            "tools": ["grep"]});
        let (approval, _) = read_with(&Pack::embedded().unwrap(), body);
        assert!(!approval.named && !approval.needed, "the goal never counts");
    }
}
