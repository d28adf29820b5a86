//! The records of published policies, of what is active, and of each change of that.
//!
//! What is listed of a policy and its files are two entries, so that a list reads no files. A policy, and what is
//! active, are an account's or the deployment's: `*`, which is no account's id, stands for the deployment.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stage0_contract::{
    AccountId, ActivePolicies, CandidateMode, MAX_ROLLBACKS, PolicyBundle, PolicyCandidate, PolicyVersion,
    PublishedPolicy, is_same_environment,
};

use super::{POLICIES, POLICY_FILES, TreeEntry, entry};

/// An account, or none for the deployment.
pub(crate) type Owner = Option<AccountId>;

const DEPLOYMENT: &str = "*";
/// More than the largest number of a change, so that newer changes have smaller keys and are read first.
const LAST_SEQUENCE: u64 = 999_999_999_999;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PolicyRecord {
    /// Without its files.
    pub(crate) policy: PublishedPolicy,
    pub(crate) bundle: PolicyBundle,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ForgottenPolicy {
    pub(crate) account: Owner,
    pub(crate) version: PolicyVersion,
}

/// What an account, or the deployment, has active.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct ActiveRecord {
    pub(crate) account: Owner,
    /// The number of its last change.
    pub(crate) sequence: u64,
    #[serde(default, skip_serializing_if = "Slot::is_empty")]
    pub(crate) default: Slot,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) environments: BTreeMap<String, Slot>,
    /// Of the deployment alone.
    #[serde(default, skip_serializing_if = "Slot::is_empty")]
    pub(crate) floor: Slot,
    /// What is tried, one at each place at most. Of an account alone; none in records of versions that did not know of
    /// candidates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) candidates: Vec<PolicyCandidate>,
}

/// One place at which a version can be active.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Slot {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) active: Option<PolicyVersion>,
    /// What rollbacks lead to, the newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) before: Vec<Option<PolicyVersion>>,
}

impl PolicyRecord {
    pub(super) fn slot(&self) -> String {
        policy_slot(self.policy.account.as_ref(), &self.policy.summary.version)
    }

    pub(super) fn entries(&self) -> Result<Vec<TreeEntry>, serde_json::Error> {
        let slot = self.slot();
        Ok(vec![
            (entry(POLICIES, &slot), Some(serde_json::to_vec(&self.policy)?)),
            (entry(POLICY_FILES, &slot), Some(serde_json::to_vec(&self.bundle)?)),
        ])
    }
}

impl ForgottenPolicy {
    pub(super) fn slot(&self) -> String {
        policy_slot(self.account.as_ref(), &self.version)
    }

    pub(super) fn entries(&self) -> Vec<TreeEntry> {
        let slot = self.slot();
        vec![(entry(POLICIES, &slot), None), (entry(POLICY_FILES, &slot), None)]
    }
}

impl ActiveRecord {
    pub(crate) fn policies(&self) -> ActivePolicies {
        let environments = self.environments.iter();
        let environments = environments.filter_map(|(name, slot)| Some((name.clone(), slot.active.clone()?)));
        ActivePolicies { default: self.default.active.clone(), environments: environments.collect() }
    }

    /// The name under which an environment is kept, by any of its names.
    pub(crate) fn environment(&self, wanted: &str) -> Option<&str> {
        self.environments.keys().map(String::as_str).find(|name| is_same_environment(name, wanted))
    }

    /// What is active at a place that is not the floor.
    pub(crate) fn active_at(&self, environment: Option<&str>) -> Option<&PolicyVersion> {
        let slot = match environment {
            None => Some(&self.default),
            Some(wanted) => self.environment(wanted).and_then(|name| self.environments.get(name)),
        };
        slot?.active.as_ref()
    }

    /// What is tried at a place.
    pub(crate) fn candidate_at(&self, environment: Option<&str>) -> Option<&PolicyCandidate> {
        self.candidates.iter().find(|candidate| is_at(candidate, environment))
    }

    /// Nothing is tried at this place from then on.
    pub(crate) fn end_candidate(&mut self, environment: Option<&str>) {
        self.candidates.retain(|candidate| !is_at(candidate, environment));
    }

    /// Where a version is active or tried, and which rollbacks lead to it, each as a sentence.
    pub(crate) fn uses(&self, version: &PolicyVersion) -> Vec<String> {
        let environments = self.environments.iter().map(|(name, slot)| (format!("`{name}`"), slot));
        let places = [("the default".to_owned(), &self.default), ("the floor".to_owned(), &self.floor)];
        let mut uses = Vec::new();
        for (index, (place, slot)) in places.into_iter().chain(environments).enumerate() {
            if slot.active.as_ref() == Some(version) {
                let word = if index < 2 { "as" } else { "in" };
                uses.push(format!("it is active {word} {place}"));
            }
            if slot.before.iter().flatten().any(|before| before == version) {
                uses.push(format!("a rollback of {place} leads to it"));
            }
        }
        for candidate in self.candidates.iter().filter(|candidate| candidate.version == *version) {
            let mode = mode_word(candidate.mode);
            let place = candidate.environment.as_ref().map_or_else(|| "the default".to_owned(), |of| format!("`{of}`"));
            uses.push(format!("it is tried as the {mode} of {place}"));
        }
        uses
    }
}

/// The word for people.
pub(crate) fn mode_word(mode: CandidateMode) -> &'static str {
    match mode {
        CandidateMode::Shadow => "shadow",
        CandidateMode::Canary => "canary",
    }
}

fn is_at(candidate: &PolicyCandidate, environment: Option<&str>) -> bool {
    match (&candidate.environment, environment) {
        (None, None) => true,
        (Some(own), Some(wanted)) => is_same_environment(own, wanted),
        (None, Some(_)) | (Some(_), None) => false,
    }
}

impl Slot {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn activate(&mut self, version: PolicyVersion) {
        self.before.push(self.active.replace(version));
        let surplus = self.before.len().saturating_sub(MAX_ROLLBACKS);
        self.before.drain(..surplus);
    }

    /// Whether it has been active more often than can be rolled back: the first activation leads back to nothing.
    pub(crate) fn is_at_its_last(&self) -> bool {
        self.before.is_empty() && self.active.is_some()
    }

    /// Whether there was something to go back to.
    pub(crate) fn roll_back(&mut self) -> bool {
        let Some(before) = self.before.pop() else { return false };
        self.active = before;
        true
    }
}

/// The owner in the key of an entry.
pub(crate) fn owner_word(owner: Option<&AccountId>) -> &str {
    owner.map_or(DEPLOYMENT, AccountId::as_str)
}

/// A version may contain a `/`; it stands last, so that no two policies share a key.
pub(crate) fn policy_slot(owner: Option<&AccountId>, version: &PolicyVersion) -> String {
    format!("{}/{version}", owner_word(owner))
}

pub(crate) fn activation_slot(owner: Option<&AccountId>, sequence: u64) -> String {
    format!("{}/{}", owner_word(owner), activation_word(sequence))
}

/// The last part of an activation's key.
pub(crate) fn activation_word(sequence: u64) -> String {
    format!("{:012}", LAST_SEQUENCE.saturating_sub(sequence))
}

/// The common prefix of the entries of one owner.
pub(crate) fn of_owner(prefix: &[u8], owner: Option<&AccountId>) -> Vec<u8> {
    [prefix, owner_word(owner).as_bytes(), b"/"].concat()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::store::record::tests::at;
    use stage0_contract::{Activation, ActivationKind, KeyId, PolicyFiles, PolicySummary, ReturnAt};
    use uuid::Uuid;

    pub(crate) fn version(pack: &str) -> PolicyVersion {
        PolicyVersion::parse(&format!("{pack}@1.0.0+0123456789ab")).unwrap()
    }

    pub(crate) fn owner(id: Option<&str>) -> Owner {
        id.map(|id| AccountId::parse(id).unwrap())
    }

    pub(crate) fn policy(pack: &str, of: Option<&str>) -> PolicyRecord {
        let summary =
            PolicySummary { version: version(pack), rules: 3, cases: 4, weakens: Vec::new(), parents: Vec::new() };
        let files = [("pack.toml".to_owned(), format!("name = \"{pack}\"\n"))].into();
        let bundle = PolicyBundle { packs: vec![PolicyFiles { files }] };
        let policy = PublishedPolicy {
            summary,
            account: owner(of),
            published_at: at(1),
            key_id: Some(KeyId::parse("k").unwrap()),
            member_id: None,
            bytes: bundle.bytes(),
            packs: None,
        };
        PolicyRecord { policy, bundle }
    }

    pub(crate) fn activation(of: Option<&str>, sequence: u64) -> Activation {
        Activation {
            candidate: None,
            returned_for: None,
            replayed: None,
            sequence,
            at: at(1),
            kind: ActivationKind::Activated,
            account: owner(of),
            environment: None,
            floor: false,
            version: Some(version("a")),
            from: None,
            reason: None,
            diff_digest: None,
            accepted_flips: None,
            key_id: KeyId::parse("k").unwrap(),
            member_id: None,
            proposal: None,
        }
    }

    /// A canary, or a shadow where `return_at` is not given.
    pub(crate) fn candidate(
        number: u128,
        pack: &str,
        at: Option<&str>,
        return_at: Option<ReturnAt>,
    ) -> PolicyCandidate {
        PolicyCandidate {
            id: Uuid::from_u128(number),
            mode: return_at.map_or(CandidateMode::Shadow, |_| CandidateMode::Canary),
            version: version(pack),
            environment: at.map(str::to_owned),
            percent: 10,
            return_at,
            started_at: self::at(1),
            key_id: KeyId::parse("k").unwrap(),
            against: return_at.map(|_| None).into_iter().collect(),
        }
    }

    #[test]
    fn a_record_from_before_candidates_is_read_and_written_unchanged() {
        let old = r#"{"account":"a","sequence":3,"default":{"active":"a@1.0.0+0123456789ab","before":[null]}}"#;
        let record: ActiveRecord = serde_json::from_str(old).unwrap();
        assert!(record.candidates.is_empty() && record.default.active == Some(version("a")));
        assert_eq!(serde_json::to_string(&record).unwrap(), old);
        let tried = candidate(1, "b", Some("production"), Some(ReturnAt::default()));
        let new = ActiveRecord { candidates: vec![tried], ..record };
        let written = serde_json::to_string(&new).unwrap();
        assert_eq!(serde_json::from_str::<ActiveRecord>(&written).unwrap(), new);
    }

    #[test]
    fn a_place_of_a_candidate_is_one_by_any_of_its_names_and_no_other() {
        let mut record = ActiveRecord::default();
        record.default.activate(version("a"));
        record.environments.entry("production".to_owned()).or_default().activate(version("b"));
        let (everywhere, production) = (candidate(1, "c", None, None), candidate(2, "d", Some("prod"), None));
        record.candidates = vec![everywhere.clone(), production.clone()];
        assert_eq!((record.active_at(None), record.active_at(Some("PRD"))), (Some(&version("a")), Some(&version("b"))));
        assert_eq!(record.active_at(Some("staging")), None, "which has none of its own");
        assert_eq!(record.candidate_at(Some("production")), Some(&production));
        assert_eq!((record.candidate_at(None), record.candidate_at(Some("staging"))), (Some(&everywhere), None));
        record.end_candidate(Some("staging"));
        assert_eq!(record.candidates.len(), 2);
        record.end_candidate(Some("production"));
        assert_eq!(record.candidates, [everywhere]);
        record.end_candidate(None);
        assert!(record.candidates.is_empty());
    }

    #[test]
    fn a_version_is_needed_while_it_is_tried() {
        let candidates = vec![
            candidate(1, "a", None, None),
            candidate(2, "a", Some("production"), Some(ReturnAt::default())),
            candidate(3, "b", Some("staging"), None),
        ];
        let mut record = ActiveRecord { candidates, ..ActiveRecord::default() };
        let uses = ["it is tried as the shadow of the default", "it is tried as the canary of `production`"];
        assert_eq!(record.uses(&version("a")), uses);
        record.end_candidate(None);
        assert_eq!(record.uses(&version("a")), uses[1..]);
        assert!(record.uses(&version("c")).is_empty());
    }

    #[test]
    fn rollbacks_lead_back_one_activation_each_and_ten_at_most() {
        let mut slot = Slot::default();
        assert!(!slot.roll_back());
        slot.activate(version("v0"));
        slot.activate(version("v1"));
        assert!(slot.roll_back());
        assert_eq!(slot.active, Some(version("v0")));
        assert!(slot.roll_back() && slot.active.is_none(), "nothing of its own was active before");
        assert!(!slot.roll_back() && !slot.is_at_its_last(), "nothing was active before");
        for number in 0..20 {
            slot.activate(version(&format!("v{number}")));
        }
        for number in (9..19).rev() {
            assert!(slot.roll_back());
            assert_eq!(slot.active, Some(version(&format!("v{number}"))));
        }
        assert!(!slot.roll_back());
        assert_eq!(slot.active, Some(version("v9")), "it stays");
        assert!(slot.is_at_its_last());
    }

    #[test]
    fn a_version_is_needed_while_it_is_active_anywhere_or_a_rollback_leads_to_it() {
        let mut record = ActiveRecord::default();
        record.default.activate(version("a"));
        record.environments.entry("production".to_owned()).or_default().activate(version("b"));
        record.floor.activate(version("c"));
        record.default.activate(version("d"));
        for (needed, uses) in [
            ("a", "a rollback of the default leads to it"),
            ("b", "it is active in `production`"),
            ("c", "it is active as the floor"),
            ("d", "it is active as the default"),
        ] {
            assert_eq!(record.uses(&version(needed)), [uses], "{needed}");
        }
        assert!(record.uses(&version("e")).is_empty());
        assert_eq!(record.environment("prod"), Some("production"));
        let policies = record.policies();
        assert_eq!((policies.of(Some("prd")), policies.of(None)), (Some(&version("b")), Some(&version("d"))));
        record.default.roll_back();
        assert!(record.uses(&version("d")).is_empty());
        record.environments.entry("production".to_owned()).or_default().activate(version("a"));
        assert_eq!(record.uses(&version("a")), ["it is active as the default", "it is active in `production`"]);
    }

    #[test]
    fn newer_changes_are_read_first() {
        assert!(activation_slot(None, 10) < activation_slot(None, 9));
        assert!(activation_slot(None, 1_000_000) < activation_slot(None, 999_999));
        assert_eq!(activation_slot(owner(Some("a")).as_ref(), 1), "a/999999999998");
    }
}
