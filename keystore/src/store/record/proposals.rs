//! The record of an activation that waits for a second member.
//!
//! What decides about it later is kept with it: who stands behind the key that proposed it, and what it takes the place
//! of. That its time is over is not stored.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stage0_contract::{
    AccountId, Holder, PolicyActor, PolicyProposal, PolicyVersion, ProposalId, ProposalStatus, is_same_environment,
};

use super::{PROPOSALS, TreeEntry, entry};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProposalRecord {
    /// With the status that is stored: a pending one may have expired.
    pub(crate) proposal: PolicyProposal,
    /// Who stood behind the key that proposed it.
    pub(crate) holder: Holder,
    /// The versions of which it takes the place.
    pub(crate) replaces: Vec<Option<PolicyVersion>>,
}

impl ProposalRecord {
    pub(crate) fn status_at(&self, now: Timestamp) -> ProposalStatus {
        match self.proposal.status {
            ProposalStatus::Pending if self.proposal.expires_at <= now => ProposalStatus::Expired,
            status => status,
        }
    }

    pub(crate) fn is_pending(&self, now: Timestamp) -> bool {
        self.status_at(now) == ProposalStatus::Pending
    }

    /// As its account sees it.
    pub(crate) fn shown(self, now: Timestamp) -> PolicyProposal {
        let status = self.status_at(now);
        PolicyProposal { status, ..self.proposal }
    }

    pub(crate) fn is_of(&self, version: &PolicyVersion, environment: Option<&str>) -> bool {
        let is_there = match (&self.proposal.environment, environment) {
            (None, None) => true,
            (Some(own), Some(wanted)) => is_same_environment(own, wanted),
            (None, Some(_)) | (Some(_), None) => false,
        };
        self.proposal.version == *version && is_there
    }

    pub(crate) fn ended(mut self, status: ProposalStatus, by: Option<PolicyActor>, at: Timestamp) -> Self {
        self.proposal.status = status;
        self.proposal.decided_by = by;
        self.proposal.decided_at = Some(at);
        self
    }

    /// Whether it ended without an activation, which takes nothing from anybody's protection.
    pub(super) fn takes_away(&self) -> bool {
        match self.proposal.status {
            ProposalStatus::Denied | ProposalStatus::Cancelled | ProposalStatus::Outdated | ProposalStatus::Expired => {
                true
            }
            ProposalStatus::Pending | ProposalStatus::Approved => false,
        }
    }

    pub(super) fn entries(&self) -> Result<Vec<TreeEntry>, serde_json::Error> {
        let (id, account) = (self.proposal.id.as_str(), &self.proposal.account);
        Ok(vec![
            (entry(PROPOSALS, id), Some(serde_json::to_vec(self)?)),
            (entry(&listed_proposals(account), id), Some(Vec::new())),
        ])
    }
}

pub(super) fn forgotten(id: &ProposalId, account: &AccountId) -> Vec<TreeEntry> {
    vec![(entry(PROPOSALS, id.as_str()), None), (entry(&listed_proposals(account), id.as_str()), None)]
}

/// The common prefix of the entries that list an account's proposals.
pub(crate) fn listed_proposals(account: &AccountId) -> Vec<u8> {
    format!("policy-proposals-of/{account}/").into_bytes()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::store::record::policies::tests::version;
    use crate::store::record::tests::at;
    use stage0_contract::KeyId;

    pub(crate) fn proposal(id: &str, account: &str) -> ProposalRecord {
        let key_id = KeyId::parse("k").unwrap();
        let proposal = PolicyProposal {
            canary: None,
            replayed: None,
            id: ProposalId::parse(id).unwrap(),
            account: AccountId::parse(account).unwrap(),
            status: ProposalStatus::Pending,
            version: version("a"),
            environment: Some("production".to_owned()),
            from: None,
            reason: None,
            diff_digest: None,
            accepted_flips: None,
            proposed_by: PolicyActor { key_id: key_id.clone(), member_id: None },
            proposed_at: at(1),
            expires_at: at(10),
            decided_by: None,
            decided_at: None,
            decision_reason: None,
        };
        ProposalRecord { proposal, holder: Holder::of_workload(key_id), replaces: vec![None] }
    }

    #[test]
    fn a_pending_proposal_expires_by_time_and_another_stays_what_it_is() {
        let record = proposal("p", "a");
        assert_eq!((record.status_at(at(9)), record.is_pending(at(9))), (ProposalStatus::Pending, true));
        assert_eq!((record.status_at(at(10)), record.is_pending(at(10))), (ProposalStatus::Expired, false));
        assert_eq!(record.clone().shown(at(10)).status, ProposalStatus::Expired);
        let ended = record.ended(ProposalStatus::Denied, None, at(5));
        assert_eq!((ended.status_at(at(10)), ended.proposal.decided_at), (ProposalStatus::Denied, Some(at(5))));
    }

    #[test]
    fn a_proposal_is_of_one_version_at_one_place_by_any_of_its_names() {
        let record = proposal("p", "a");
        assert!(record.is_of(&version("a"), Some("PRD")));
        assert!(!record.is_of(&version("b"), Some("production")));
        assert!(!record.is_of(&version("a"), Some("staging")) && !record.is_of(&version("a"), None));
        let mut everywhere = record;
        everywhere.proposal.environment = None;
        assert!(everywhere.is_of(&version("a"), None) && !everywhere.is_of(&version("a"), Some("production")));
    }

    #[test]
    fn only_an_end_without_an_activation_is_stored_on_a_full_disk() {
        let record = proposal("p", "a");
        for (status, takes_away) in [
            (ProposalStatus::Pending, false),
            (ProposalStatus::Approved, false),
            (ProposalStatus::Denied, true),
            (ProposalStatus::Cancelled, true),
            (ProposalStatus::Outdated, true),
        ] {
            let ended = record.clone().ended(status, None, at(5));
            assert_eq!(ended.takes_away(), takes_away, "{status:?}");
        }
    }
}
