//! What a deleted policy leaves: the number that it had, with the version that says what its content was.
//!
//! A number that people have seen in decisions must not come back with other content. So it stays taken until the
//! number of deleted policies reaches its bound, where the oldest leaves.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stage0_contract::{AccountId, PolicyVersion};

use super::policies::{Owner, owner_word};
use super::{DELETED_POLICIES, TreeEntry, entry};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeletedPolicy {
    pub(crate) account: Owner,
    pub(crate) version: PolicyVersion,
    /// Hex SHA-256 of its content.
    pub(crate) content: String,
    pub(crate) deleted_at: Timestamp,
}

impl DeletedPolicy {
    pub(super) fn slot(&self) -> String {
        deleted_slot(self.account.as_ref(), &self.version)
    }

    pub(super) fn entries(&self) -> Result<Vec<TreeEntry>, serde_json::Error> {
        Ok(vec![(entry(DELETED_POLICIES, &self.slot()), Some(serde_json::to_vec(self)?))])
    }
}

/// The part of a version that says nothing of the content: `<pack>@<semver>`.
pub(crate) fn number(version: &PolicyVersion) -> &str {
    version.as_str().split_once('+').map_or(version.as_str(), |(number, _)| number)
}

/// Deleted versions with one number share a slot.
pub(crate) fn deleted_slot(owner: Option<&AccountId>, version: &PolicyVersion) -> String {
    format!("{}/{}", owner_word(owner), number(version))
}

#[cfg(test)]
mod tests {
    use super::super::policies::tests::{owner, version};
    use super::*;

    #[test]
    fn a_number_is_taken_for_its_owner_alone_and_by_no_part_of_the_content() {
        let (one, other) = (version("acme"), PolicyVersion::parse("acme@1.0.0+ba9876543210").unwrap());
        assert_eq!(number(&one), "acme@1.0.0");
        assert_eq!(deleted_slot(None, &one), deleted_slot(None, &other));
        assert_ne!(deleted_slot(None, &one), deleted_slot(owner(Some("a")).as_ref(), &one));
        assert_ne!(deleted_slot(None, &one), deleted_slot(None, &version("acmes")));
    }
}
