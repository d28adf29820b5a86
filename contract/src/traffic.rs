//! The messages between roles, each declared once: its subject, its reply, who sends it and who serves it.
//!
//! The NATS server's permissions, the sealing of secrets and the tests' lists follow from the table. A message is a
//! message only by its row: [`Request`] and [`Notice`] cannot be implemented without one. A second table says which
//! role's records the state store keeps under which word.

use std::any::type_name;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::message::Listed;
use crate::{
    AcceptInvitation, ActivatePolicy, ActivationDone, Approval, ApprovalChanged, ApprovalHistory, ApprovalsChanged,
    ChangeApproval, ChangeGrant, CollectEvents, CollectedEvents, CoveredByStop, CoveredByStopReply, CreateGrant,
    CreateStop, DelegateMember, EventsSettled, FetchAction, FetchedAction, GrantChanged, Grants, InvitationAccepted,
    InviteMember, ListApprovals, ListGrants, ListMembers, ListStops, MaskText, MaskTextReply, Member, MemberInvited,
    MemberRemoved, People, ReadApprovalHistory, ReadPeople, ReinviteMember, RemoveMember, ResumeStop, Resumed,
    SettleEvents, ShowApproval, Stop, UpdateMember,
};
use crate::{
    Account, AccountCreated, CreateAccount, CreateKey, CreateWebhook, DecisionsDeleted, DecisionsRecorded,
    DeleteDecisions, DeleteWebhook, DeletionPermit, Delivery, DisableWebhook, EnableWebhook, EndRun, EndpointsPage,
    EvaluateReply, EvaluateRequest, EvaluatorStatus, EvaluatorStatusReply, GetWebhook, InstanceHeartbeat, KeyChanged,
    KeyCreated, KeySummary, KeystoreStatus, KeystoreStatusReply, ListAccounts, ListDeliveries, ListEndpoints, ListKeys,
    ListRetentions, ListRuns, ListWebhooks, ManageReply, MarkSigned, NoteKeyUses, NoteKeyUsesReply, Notice, Page,
    PermitDeletion, PublicKeys, RefreshKey, RefreshKeyReply, ReplayStarted, ReplayWebhook, Request, RetentionsPage,
    ReviewReply, ReviewRequest, RevokeKey, Revoked, RotateKey, RotateWebhookSecret, RunEnded, RunSettled, RunView,
    SettleRun, ShowRun, SignMark, SigningKeys, TestWebhook, UpdateAccount, UpdateWebhook, VerifyKey, VerifyKeyReply,
    VocabularyReply, VocabularyRequest, Webhook, WebhookChanged, WebhookCreated, WebhookDeleted, WebhookDisabled,
    WebhookTested,
};
use crate::{
    Activation, ComparePolicies, ComparePoliciesReply, FetchPolicy, FetchedPolicy, ForgetPolicy, ListPolicies,
    PoliciesInForce, PolicyChanged, PolicyForgotten, PolicyStored, PublishedPolicy, ReadActivePolicies,
    ReadPolicyHistory, RollbackPolicy, ShowPolicy, StorePolicy, ValidatePolicy, ValidatePolicyReply,
};
use crate::{ActiveVersions, ListActiveVersions};
use crate::{
    CandidateChanged, CandidatesRead, ReadCandidates, ReplayDecisions, ReplayDecisionsReply, ReturnCanary,
    ShadowPolicy, WithdrawCandidate,
};
use crate::{
    CollectSilentGuards, ForgetGuard, Guard, GuardForgotten, ListGuards, OutcomeReported, OutcomesRead, ProbeReply,
    ProbeTools, ReadOutcomes, ReportDecisionOutcome, ReportGuard,
};
use crate::{DecideProposal, ListProposals, PolicyProposal, ProposalDecided, ShowProposal};

/// A part of the product that runs as a process of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Serves HTTPS.
    Gateway,
    /// Decides checks.
    Evaluator,
    /// Keeps accounts and keys.
    Keystore,
    /// Delivers, and ends what is past its time.
    AuditExport,
}

/// A kind of request: who sends it to whom.
#[derive(Debug, Clone, Copy)]
pub struct RequestRoute {
    /// Without the deployment's prefix.
    pub subject: &'static str,
    /// Who sends it.
    pub from: &'static [Role],
    /// Who answers.
    pub to: Role,
    /// What of it only the two processes may read.
    pub sealing: Sealing,
    /// Names the types of the request and of its reply.
    pub types: [fn() -> &'static str; 2],
}

/// What of a request and its reply is encrypted, so that only the two processes read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealing {
    /// It holds no secret.
    Nothing,
    /// The answer holds secrets.
    Answer,
    /// The request holds a caller's key, and its answer may hold a new one.
    Both,
}

/// An event, by its two ends.
#[derive(Debug, Clone, Copy)]
pub struct EventRoute {
    /// Without the deployment's prefix.
    pub subject: &'static str,
    /// Who tells.
    pub from: &'static [Role],
    /// Who hears.
    pub to: &'static [Role],
    /// Names the type of the event.
    pub types: [fn() -> &'static str; 1],
}

/// Records of the state store whose keys start with a word and a dot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Records {
    /// That word.
    pub word: &'static str,
    /// Who reads and writes them; no other role does.
    pub of: Role,
}

/// What runs have counted.
pub const RUN_RECORDS: &str = "runs";
/// Approvals, the sealed texts of their actions, and wider grants.
pub const APPROVAL_RECORDS: &str = "approvals";
/// What came of allowed actions.
pub const OUTCOME_RECORDS: &str = "outcomes";
/// When guards reported last.
pub const GUARD_RECORDS: &str = "guards";
/// What was found of policies that are tried.
pub const CANDIDATE_RECORDS: &str = "candidates";
/// What accounts have used up.
pub const USAGE_RECORDS: &str = "usage";
/// Which checks were made with which `Idempotency-Key`.
pub const IDEMPOTENCY_RECORDS: &str = "idempotency";
/// Which keystore serves, and how new its data is.
pub const KEYSTORE_RECORDS: &str = "keystore";
/// How far deliveries are.
pub const CURSOR_RECORDS: &str = "cursor";
/// Replays that wait.
pub const REPLAY_RECORDS: &str = "replay";

macro_rules! requests {
    ($(
        $message:ident($subject:literal) -> $reply:ty: [$($from:ident),+] => $to:ident, sealed $sealing:ident;
    )+) => {
        $(
            impl Listed for $message {}

            impl Request for $message {
                const SUBJECT: &'static str = $subject;
                type Reply = $reply;
            }
        )+

        /// Every request.
        pub const REQUESTS: &[RequestRoute] = &[$(RequestRoute {
            subject: $subject,
            from: &[$(Role::$from),+],
            to: Role::$to,
            sealing: Sealing::$sealing,
            types: [type_name::<$message>, type_name::<$reply>],
        }),+];
    };
}

macro_rules! notices {
    ($($notice:ident($subject:literal): [$($from:ident),+] => [$($to:ident),+];)+) => {
        $(
            impl Listed for $notice {}

            impl Notice for $notice {
                const SUBJECT: &'static str = $subject;
            }
        )+

        /// Every event.
        pub const EVENTS: &[EventRoute] = &[
            $(EventRoute {
                subject: $subject,
                from: &[$(Role::$from),+],
                to: &[$(Role::$to),+],
                types: [type_name::<$notice>],
            },)+
            heartbeat(Role::Gateway, &[Role::Gateway]),
            heartbeat(Role::Evaluator, &[Role::Evaluator]),
            heartbeat(Role::Keystore, &[Role::Keystore]),
            heartbeat(Role::AuditExport, &[Role::AuditExport]),
        ];
    };
}

// A request with its subject, its reply, the roles that send it, the one that serves it, and what of it is sealed.
requests! {
    EvaluateRequest("evaluate") -> EvaluateReply: [Gateway] => Evaluator, sealed Nothing;
    ReviewRequest("review") -> ReviewReply: [Gateway] => Evaluator, sealed Nothing;
    VocabularyRequest("vocabulary") -> VocabularyReply: [Gateway] => Evaluator, sealed Nothing;
    EvaluatorStatus("evaluator.status") -> EvaluatorStatusReply: [Gateway] => Evaluator, sealed Nothing;
    ShowRun("runs.show") -> ManageReply<RunView>: [Gateway] => Evaluator, sealed Nothing;
    ListRuns("runs.list") -> ManageReply<Page<RunView>>: [Gateway] => Evaluator, sealed Nothing;
    EndRun("runs.end") -> ManageReply<RunEnded>: [Gateway] => Evaluator, sealed Nothing;
    SettleRun("runs.settle") -> ManageReply<RunSettled>: [Gateway] => Evaluator, sealed Nothing;
    CoveredByStop("stops.covered") -> CoveredByStopReply: [Gateway] => Evaluator, sealed Nothing;
    ValidatePolicy("policies.validate") -> ValidatePolicyReply: [Gateway] => Evaluator, sealed Nothing;
    ComparePolicies("policies.compare") -> ComparePoliciesReply: [Gateway] => Evaluator, sealed Nothing;
    ReplayDecisions("policies.replay") -> ReplayDecisionsReply: [Gateway] => Evaluator, sealed Nothing;
    ReadCandidates("policies.candidates") -> ManageReply<CandidatesRead>: [Gateway] => Evaluator, sealed Nothing;
    MaskText("texts.mask") -> MaskTextReply: [Gateway] => Evaluator, sealed Answer;
    FetchAction("approvals.action") -> ManageReply<FetchedAction>: [Gateway] => Evaluator, sealed Answer;
    ListApprovals("approvals.list") -> ManageReply<Page<Approval>>: [Gateway] => Evaluator, sealed Nothing;
    ShowApproval("approvals.show") -> ManageReply<Approval>: [Gateway] => Evaluator, sealed Answer;
    ReadApprovalHistory("approvals.history") -> ManageReply<ApprovalHistory>: [Gateway] => Evaluator, sealed Nothing;
    ChangeApproval("approvals.change") -> ManageReply<ApprovalChanged>: [Gateway] => Evaluator, sealed Answer;
    SettleEvents("approvals.settle") -> ManageReply<EventsSettled>: [Gateway] => Evaluator, sealed Nothing;
    CollectEvents("approvals.collect") -> ManageReply<CollectedEvents>: [Gateway] => Evaluator, sealed Nothing;
    ReportDecisionOutcome("outcomes.report") -> ManageReply<OutcomeReported>: [Gateway] => Evaluator, sealed Nothing;
    ReadOutcomes("outcomes.read") -> ManageReply<OutcomesRead>: [Gateway] => Evaluator, sealed Nothing;
    ReportGuard("guards.report") -> ManageReply<Guard>: [Gateway] => Evaluator, sealed Nothing;
    ListGuards("guards.list") -> ManageReply<Page<Guard>>: [Gateway] => Evaluator, sealed Nothing;
    ForgetGuard("guards.forget") -> ManageReply<GuardForgotten>: [Gateway] => Evaluator, sealed Nothing;
    CollectSilentGuards("guards.silent") -> ManageReply<CollectedEvents>: [Gateway] => Evaluator, sealed Nothing;
    ProbeTools("probe") -> ProbeReply: [Gateway] => Evaluator, sealed Nothing;
    CreateGrant("grants.create") -> ManageReply<GrantChanged>: [Gateway] => Evaluator, sealed Nothing;
    ListGrants("grants.list") -> ManageReply<Grants>: [Gateway] => Evaluator, sealed Nothing;
    ChangeGrant("grants.change") -> ManageReply<GrantChanged>: [Gateway] => Evaluator, sealed Nothing;
    VerifyKey("keys.verify") -> VerifyKeyReply: [Gateway] => Keystore, sealed Both;
    RefreshKey("keys.refresh") -> RefreshKeyReply: [Gateway] => Keystore, sealed Nothing;
    NoteKeyUses("keys.used") -> NoteKeyUsesReply: [Gateway] => Keystore, sealed Nothing;
    KeystoreStatus("keys.status") -> KeystoreStatusReply: [Gateway] => Keystore, sealed Nothing;
    CreateAccount("keys.accounts.create") -> ManageReply<AccountCreated>: [Gateway] => Keystore, sealed Both;
    ListAccounts("keys.accounts.list") -> ManageReply<Page<Account>>: [Gateway] => Keystore, sealed Both;
    UpdateAccount("keys.accounts.update") -> ManageReply<Account>: [Gateway] => Keystore, sealed Both;
    CreateKey("keys.create") -> ManageReply<KeyCreated>: [Gateway] => Keystore, sealed Both;
    ListKeys("keys.list") -> ManageReply<Page<KeySummary>>: [Gateway] => Keystore, sealed Both;
    RotateKey("keys.rotate") -> ManageReply<KeyCreated>: [Gateway] => Keystore, sealed Both;
    RevokeKey("keys.revoke") -> ManageReply<Revoked>: [Gateway] => Keystore, sealed Both;
    CreateWebhook("keys.webhooks.create") -> ManageReply<WebhookCreated>: [Gateway] => Keystore, sealed Both;
    ListWebhooks("keys.webhooks.list") -> ManageReply<Page<Webhook>>: [Gateway] => Keystore, sealed Both;
    GetWebhook("keys.webhooks.get") -> ManageReply<Webhook>: [Gateway] => Keystore, sealed Both;
    UpdateWebhook("keys.webhooks.update") -> ManageReply<Webhook>: [Gateway] => Keystore, sealed Both;
    EnableWebhook("keys.webhooks.enable") -> ManageReply<Webhook>: [Gateway] => Keystore, sealed Both;
    RotateWebhookSecret("keys.webhooks.rotate") -> ManageReply<WebhookCreated>: [Gateway] => Keystore, sealed Both;
    DeleteWebhook("keys.webhooks.delete") -> ManageReply<WebhookDeleted>: [Gateway] => Keystore, sealed Both;
    InviteMember("keys.members.invite") -> ManageReply<MemberInvited>: [Gateway] => Keystore, sealed Both;
    ReinviteMember("keys.members.reinvite") -> ManageReply<MemberInvited>: [Gateway] => Keystore, sealed Both;
    ListMembers("keys.members.list") -> ManageReply<Page<Member>>: [Gateway] => Keystore, sealed Both;
    UpdateMember("keys.members.update") -> ManageReply<Member>: [Gateway] => Keystore, sealed Both;
    DelegateMember("keys.members.delegate") -> ManageReply<Member>: [Gateway] => Keystore, sealed Both;
    RemoveMember("keys.members.remove") -> ManageReply<MemberRemoved>: [Gateway] => Keystore, sealed Both;
    AcceptInvitation("keys.members.accept") -> ManageReply<InvitationAccepted>: [Gateway] => Keystore, sealed Both;
    CreateStop("keys.stops.create") -> ManageReply<Stop>: [Gateway] => Keystore, sealed Both;
    ListStops("keys.stops.list") -> ManageReply<Page<Stop>>: [Gateway] => Keystore, sealed Both;
    ResumeStop("keys.stops.resume") -> ManageReply<Resumed>: [Gateway] => Keystore, sealed Both;
    StorePolicy("keys.policies.store") -> ManageReply<PolicyStored>: [Gateway] => Keystore, sealed Both;
    ListPolicies("keys.policies.list") -> ManageReply<Page<PublishedPolicy>>: [Gateway] => Keystore, sealed Both;
    ShowPolicy("keys.policies.show") -> ManageReply<PublishedPolicy>: [Gateway] => Keystore, sealed Both;
    ForgetPolicy("keys.policies.forget") -> ManageReply<PolicyForgotten>: [Gateway] => Keystore, sealed Both;
    ReadActivePolicies("keys.policies.active") -> ManageReply<PoliciesInForce>: [Gateway] => Keystore, sealed Both;
    ActivatePolicy("keys.policies.activate") -> ManageReply<ActivationDone>: [Gateway] => Keystore, sealed Both;
    RollbackPolicy("keys.policies.rollback") -> ManageReply<ActivationDone>: [Gateway] => Keystore, sealed Both;
    ShadowPolicy("keys.policies.shadow") -> ManageReply<CandidateChanged>: [Gateway] => Keystore, sealed Both;
    WithdrawCandidate("keys.policies.withdraw") -> ManageReply<CandidateChanged>: [Gateway] => Keystore, sealed Both;
    ReturnCanary("keys.policies.return") -> ManageReply<CandidateChanged>: [Gateway] => Keystore, sealed Nothing;
    ReadPolicyHistory("keys.policies.history") -> ManageReply<Page<Activation>>: [Gateway] => Keystore, sealed Both;
    ListProposals("keys.policies.proposals") -> ManageReply<Page<PolicyProposal>>: [Gateway] => Keystore, sealed Both;
    ShowProposal("keys.policies.proposal") -> ManageReply<PolicyProposal>: [Gateway] => Keystore, sealed Both;
    DecideProposal("keys.policies.decide") -> ManageReply<ProposalDecided>: [Gateway] => Keystore, sealed Both;
    ListActiveVersions("keys.policies.inuse") -> ManageReply<ActiveVersions>: [Evaluator] => Keystore, sealed Nothing;
    FetchPolicy("keys.policies.fetch") -> ManageReply<FetchedPolicy>: [Evaluator] => Keystore, sealed Nothing;
    // The reply holds the key that seals the texts of actions.
    ReadPeople("keys.people") -> ManageReply<People>: [Evaluator] => Keystore, sealed Answer;
    PermitDeletion("keys.deletions.permit") -> ManageReply<DeletionPermit>: [Gateway] => Keystore, sealed Both;
    SigningKeys("keys.signing") -> ManageReply<PublicKeys>: [Gateway, AuditExport] => Keystore, sealed Nothing;
    // The reply holds the endpoints' secrets.
    ListEndpoints("keys.endpoints.list") -> ManageReply<EndpointsPage>: [AuditExport] => Keystore, sealed Answer;
    DisableWebhook("keys.endpoints.disable") -> ManageReply<WebhookDisabled>: [AuditExport] => Keystore, sealed Nothing;
    ListRetentions("keys.retentions.list") -> ManageReply<RetentionsPage>: [AuditExport] => Keystore, sealed Nothing;
    SignMark("keys.sign") -> ManageReply<MarkSigned>: [AuditExport] => Keystore, sealed Nothing;
    TestWebhook("audit.test") -> ManageReply<WebhookTested>: [Gateway] => AuditExport, sealed Nothing;
    ReplayWebhook("audit.replay") -> ManageReply<ReplayStarted>: [Gateway] => AuditExport, sealed Nothing;
    ListDeliveries("audit.deliveries") -> ManageReply<Page<Delivery>>: [Gateway] => AuditExport, sealed Nothing;
    DeleteDecisions("audit.delete") -> ManageReply<DecisionsDeleted>: [Gateway] => AuditExport, sealed Nothing;
}

// An event with its subject, the roles that publish it and those that subscribe to it.
notices! {
    KeyChanged("notice.key.changed"): [Keystore] => [Gateway, AuditExport];
    WebhookChanged("notice.webhook.changed"): [Keystore] => [Gateway, AuditExport];
    DecisionsRecorded("notice.decisions.recorded"): [Gateway] => [Gateway, AuditExport];
    PolicyChanged("notice.policy.changed"): [Keystore] => [Evaluator];
    ApprovalsChanged("notice.approvals.changed"): [Evaluator] => [Gateway];
}

/// Records by their words. On NATS each word except audit-export's has a stream of its own, so that a role that writes
/// without end fills no other's. A key of one word alone is audit-export's; others have no owner and are not stored.
pub const RECORDS: &[Records] = &[
    Records { word: RUN_RECORDS, of: Role::Evaluator },
    Records { word: APPROVAL_RECORDS, of: Role::Evaluator },
    Records { word: OUTCOME_RECORDS, of: Role::Evaluator },
    Records { word: GUARD_RECORDS, of: Role::Evaluator },
    Records { word: CANDIDATE_RECORDS, of: Role::Evaluator },
    Records { word: USAGE_RECORDS, of: Role::Gateway },
    Records { word: IDEMPOTENCY_RECORDS, of: Role::Gateway },
    Records { word: KEYSTORE_RECORDS, of: Role::Keystore },
    Records { word: CURSOR_RECORDS, of: Role::AuditExport },
    Records { word: REPLAY_RECORDS, of: Role::AuditExport },
];

/// The request that is sent to this subject.
pub fn request_route(subject: &str) -> Option<&'static RequestRoute> {
    REQUESTS.iter().find(|route| route.subject == subject)
}

/// The event that is published at this subject.
pub fn event_route(subject: &str) -> Option<&'static EventRoute> {
    EVENTS.iter().find(|event| event.subject == subject)
}

/// The role that owns the record with this key. Records of other roles under it are ignored.
pub fn owner_of_record(key: &str) -> Role {
    let word = key.split('.').next().unwrap_or_default();
    RECORDS.iter().find(|records| records.word == word).map_or(Role::AuditExport, |records| records.of)
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Gateway, Self::Evaluator, Self::Keystore, Self::AuditExport];

    /// As its command is called.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Evaluator => "evaluator",
            Self::Keystore => "keystore",
            Self::AuditExport => "audit-export",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

const fn heartbeat(role: Role, from: &'static [Role]) -> EventRoute {
    EventRoute {
        subject: InstanceHeartbeat::subject(role),
        from,
        to: &[Role::Gateway],
        types: [type_name::<InstanceHeartbeat>],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_subject_is_listed_twice_and_no_role_sends_itself_requests() {
        let mut subjects: Vec<_> = REQUESTS.iter().map(|q| q.subject).chain(EVENTS.iter().map(|e| e.subject)).collect();
        subjects.sort_unstable();
        assert!(subjects.windows(2).all(|pair| pair[0] != pair[1]), "{subjects:?}");
        assert!(REQUESTS.iter().all(|route| !route.from.contains(&route.to)));
    }

    /// A role without the right to ask for the keystore's public key could seal nothing to it.
    #[test]
    fn each_sender_of_a_sealed_request_may_ask_for_the_key_that_seals_it() {
        let status = request_route(KeystoreStatus::SUBJECT).unwrap();
        for route in REQUESTS.iter().filter(|route| route.sealing == Sealing::Both) {
            assert_eq!(route.to, status.to, "{}", route.subject);
            assert!(route.from.iter().all(|role| status.from.contains(role)), "{}", route.subject);
        }
        assert_eq!(status.sealing, Sealing::Nothing);
    }

    #[test]
    fn a_record_is_its_owners_by_the_first_word_of_its_key() {
        for (key, owner) in [
            ("runs.a.r", Role::Evaluator),
            ("usage.a.m1", Role::Gateway),
            ("idempotency.a.k.h", Role::Gateway),
            ("keystore.lease", Role::Keystore),
            ("cursor.e", Role::AuditExport),
            ("runsx.a", Role::AuditExport),
        ] {
            assert_eq!(owner_of_record(key), owner, "{key}");
        }
    }

    #[test]
    fn a_role_is_called_as_its_command() {
        for role in Role::ALL {
            assert_eq!(serde_json::to_value(role).unwrap(), role.as_str());
        }
    }
}
