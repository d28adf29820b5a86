//! Who asks whom, who hears whom, and whose records are whose.
//!
//! Owns the only list of the messages between roles with their two ends; a server's permissions are made of it. A message that is not
//! in it reaches nobody on a server that gives each role no more than it needs. Refuses the log's and the ledger's own subjects, which
//! are the backplane's.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    CreateAccount, CreateKey, CreateWebhook, DecisionsRecorded, DeleteDecisions, DeleteWebhook, DisableWebhook,
    EnableWebhook, EndRun, EvaluateRequest, EvaluatorStatus, GetWebhook, InstanceSeen, KeyChanged, KeystoreStatus,
    ListAccounts, ListDeliveries, ListEndpoints, ListKeys, ListRetentions, ListRuns, ListWebhooks, NoteKeyUses, Notice,
    PermitDeletion, RefreshKey, ReplayWebhook, Request, ReviewRequest, RevokeKey, RotateKey, RotateWebhookSecret,
    SettleRun, ShowRun, SignMark, SigningKeys, TestWebhook, UpdateAccount, UpdateWebhook, VerifyKey, VocabularyRequest,
    WebhookChanged,
};

/// A part of the product that runs as a process of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Serves HTTPS.
    Gateway,
    /// Decides.
    Evaluator,
    /// Keeps accounts and keys.
    Keystore,
    /// Delivers, and ends what is past its time.
    AuditExport,
}

/// A question, by its two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Without the deployment's prefix.
    pub subject: &'static str,
    /// Who asks.
    pub from: &'static [Role],
    /// Who answers.
    pub to: Role,
    /// What of it only the two processes may read.
    pub sealing: Sealing,
}

/// What of a question is encrypted between the process that asks and the one that answers: on the way it is read by
/// nobody, also not by other processes of the two roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealing {
    /// It holds no secret.
    Nothing,
    /// The answer holds secrets.
    Answer,
    /// The question holds a caller's key, and its answer may hold a new one.
    Both,
}

/// An event, by its two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Telling {
    /// Without the deployment's prefix.
    pub subject: &'static str,
    /// Who tells.
    pub from: &'static [Role],
    /// Who hears.
    pub to: &'static [Role],
}

/// Records of the ledger whose keys start with a word and a dot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Records {
    /// That word.
    pub word: &'static str,
    /// Who reads and writes them; no other role does.
    pub of: Role,
}

/// What runs have counted.
pub const RUN_RECORDS: &str = "runs";
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

const GATEWAY: &[Role] = &[Role::Gateway];
const EXPORT: &[Role] = &[Role::AuditExport];
const BOTH: &[Role] = &[Role::Gateway, Role::AuditExport];

/// Every question.
pub const QUESTIONS: &[Question] = &[
    asked::<EvaluateRequest>(GATEWAY, Role::Evaluator),
    asked::<ReviewRequest>(GATEWAY, Role::Evaluator),
    asked::<VocabularyRequest>(GATEWAY, Role::Evaluator),
    asked::<EvaluatorStatus>(GATEWAY, Role::Evaluator),
    asked::<ShowRun>(GATEWAY, Role::Evaluator),
    asked::<ListRuns>(GATEWAY, Role::Evaluator),
    asked::<EndRun>(GATEWAY, Role::Evaluator),
    asked::<SettleRun>(GATEWAY, Role::Evaluator),
    sealed::<VerifyKey>(GATEWAY, Sealing::Both),
    asked::<RefreshKey>(GATEWAY, Role::Keystore),
    asked::<NoteKeyUses>(GATEWAY, Role::Keystore),
    asked::<KeystoreStatus>(GATEWAY, Role::Keystore),
    sealed::<CreateAccount>(GATEWAY, Sealing::Both),
    sealed::<ListAccounts>(GATEWAY, Sealing::Both),
    sealed::<UpdateAccount>(GATEWAY, Sealing::Both),
    sealed::<CreateKey>(GATEWAY, Sealing::Both),
    sealed::<ListKeys>(GATEWAY, Sealing::Both),
    sealed::<RotateKey>(GATEWAY, Sealing::Both),
    sealed::<RevokeKey>(GATEWAY, Sealing::Both),
    sealed::<CreateWebhook>(GATEWAY, Sealing::Both),
    sealed::<ListWebhooks>(GATEWAY, Sealing::Both),
    sealed::<GetWebhook>(GATEWAY, Sealing::Both),
    sealed::<UpdateWebhook>(GATEWAY, Sealing::Both),
    sealed::<EnableWebhook>(GATEWAY, Sealing::Both),
    sealed::<RotateWebhookSecret>(GATEWAY, Sealing::Both),
    sealed::<DeleteWebhook>(GATEWAY, Sealing::Both),
    sealed::<PermitDeletion>(GATEWAY, Sealing::Both),
    asked::<SigningKeys>(BOTH, Role::Keystore),
    // Endpoints' secrets, signatures, and how long each account's decisions are kept.
    sealed::<ListEndpoints>(EXPORT, Sealing::Answer),
    asked::<DisableWebhook>(EXPORT, Role::Keystore),
    asked::<ListRetentions>(EXPORT, Role::Keystore),
    asked::<SignMark>(EXPORT, Role::Keystore),
    asked::<TestWebhook>(GATEWAY, Role::AuditExport),
    asked::<ReplayWebhook>(GATEWAY, Role::AuditExport),
    asked::<ListDeliveries>(GATEWAY, Role::AuditExport),
    asked::<DeleteDecisions>(GATEWAY, Role::AuditExport),
];

/// Every event.
pub const EVENTS: &[Telling] = &[
    told::<KeyChanged>(&[Role::Keystore], BOTH),
    told::<WebhookChanged>(&[Role::Keystore], BOTH),
    told::<DecisionsRecorded>(GATEWAY, BOTH),
    seen(Role::Gateway, GATEWAY),
    seen(Role::Evaluator, &[Role::Evaluator]),
    seen(Role::Keystore, &[Role::Keystore]),
    seen(Role::AuditExport, EXPORT),
];

/// Records by their words. On NATS those of each word but audit-export's have a stream of their own, so that a role that
/// writes without end fills no other's. A key of one word alone is audit-export's; others are nobody's, and not stored.
pub const RECORDS: &[Records] = &[
    Records { word: RUN_RECORDS, of: Role::Evaluator },
    Records { word: USAGE_RECORDS, of: Role::Gateway },
    Records { word: IDEMPOTENCY_RECORDS, of: Role::Gateway },
    Records { word: KEYSTORE_RECORDS, of: Role::Keystore },
    Records { word: CURSOR_RECORDS, of: Role::AuditExport },
    Records { word: REPLAY_RECORDS, of: Role::AuditExport },
];

/// The question that is asked at this subject.
#[must_use]
pub fn question(subject: &str) -> Option<&'static Question> {
    QUESTIONS.iter().find(|question| question.subject == subject)
}

/// The event that is told at this subject.
#[must_use]
pub fn event(subject: &str) -> Option<&'static Telling> {
    EVENTS.iter().find(|event| event.subject == subject)
}

/// Whose the record with this key is: nobody else's word of it counts.
#[must_use]
pub fn owner_of_record(key: &str) -> Role {
    let word = key.split('.').next().unwrap_or_default();
    RECORDS.iter().find(|records| records.word == word).map_or(Role::AuditExport, |records| records.of)
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Gateway, Self::Evaluator, Self::Keystore, Self::AuditExport];

    /// As its command is called.
    #[must_use]
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

const fn asked<M: Request>(from: &'static [Role], to: Role) -> Question {
    Question { subject: M::SUBJECT, from, to, sealing: Sealing::Nothing }
}

/// Secrets are the keystore's, so that questions about them are too.
const fn sealed<M: Request>(from: &'static [Role], sealing: Sealing) -> Question {
    Question { subject: M::SUBJECT, from, to: Role::Keystore, sealing }
}

const fn told<M: Notice>(from: &'static [Role], to: &'static [Role]) -> Telling {
    Telling { subject: M::SUBJECT, from, to }
}

const fn seen(role: Role, from: &'static [Role]) -> Telling {
    Telling { subject: InstanceSeen::subject(role), from, to: GATEWAY }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_subject_is_listed_twice_and_nobody_asks_himself() {
        let mut subjects: Vec<_> =
            QUESTIONS.iter().map(|q| q.subject).chain(EVENTS.iter().map(|e| e.subject)).collect();
        subjects.sort_unstable();
        assert!(subjects.windows(2).all(|pair| pair[0] != pair[1]), "{subjects:?}");
        assert!(QUESTIONS.iter().all(|question| !question.from.contains(&question.to)));
    }

    /// A role without the right to ask for the keystore's public key could seal nothing to it.
    #[test]
    fn whoever_seals_a_question_may_ask_for_the_key_that_it_is_sealed_to() {
        let status = question(KeystoreStatus::SUBJECT).unwrap();
        for question in QUESTIONS.iter().filter(|question| question.sealing == Sealing::Both) {
            assert_eq!(question.to, status.to, "{}", question.subject);
            assert!(question.from.iter().all(|role| status.from.contains(role)), "{}", question.subject);
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
