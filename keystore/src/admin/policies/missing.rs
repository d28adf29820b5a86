//! What a caller is answered that names a version which is not published: what there is instead.
//!
//! INVARIANT: an account learns nothing of another account's versions. Only where the deployment is meant, which the
//! operator alone can, does a text name an account.

use stage0_contract::{AccountId, PolicyVersion, PublishedPolicy, Refusal};

use super::policy_rules;
use crate::store::record_store::{RecordStore, StoreError};

/// What the operator does about a version that one account published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Advice {
    PublishForAll,
    NameTheAccount,
}

impl Advice {
    fn text(self) -> &'static str {
        match self {
            Self::PublishForAll => "publish it for every account (`--all-accounts`)",
            Self::NameTheAccount => "name that account (`--account`)",
        }
    }
}

/// Why there is no such version for this owner, who sees its own versions and the deployment's.
pub(super) fn missing(
    store: &RecordStore,
    owner: Option<&AccountId>,
    version: &PolicyVersion,
    advice: Advice,
) -> Result<Refusal, StoreError> {
    let own = owner.map(|owner| store.policies(Some(owner), None)).into_iter().flatten();
    for policy in own.chain(store.policies(None, None)) {
        let published = policy?.summary.version;
        if policy_rules::same_number(&published, version) {
            let text = format!("no version `{version}` is published here; there is `{published}`");
            return Ok(Refusal::Missing(text));
        }
    }
    if let Some(account) = owner {
        return Ok(Refusal::Missing(format!("no version `{version}` is published for account `{account}`")));
    }
    for policy in store.all_policies() {
        let PublishedPolicy { account, summary, .. } = policy?;
        if let Some(account) = account.filter(|_| summary.version == *version) {
            let text = format!("`{version}` is published in account `{account}`: {}", advice.text());
            return Ok(Refusal::Missing(text));
        }
    }
    Ok(Refusal::Missing(format!("no version `{version}` is published for every account")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::tests::store_with;
    use crate::store::record::Record;
    use crate::store::record::policies::tests::{owner, policy, version};

    fn text(store: &RecordStore, of: Option<&str>, wanted: &str) -> String {
        let wanted = PolicyVersion::parse(wanted).unwrap();
        match missing(store, owner(of).as_ref(), &wanted, Advice::PublishForAll).unwrap() {
            Refusal::Missing(text) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_caller_is_shown_the_version_with_the_same_number_of_those_that_it_sees() {
        let policies = [policy("acme", Some("a")), policy("house", None), policy("secret", Some("b"))];
        let (_dir, store) = store_with(policies.map(Record::Policy).into());
        for (number, of) in [("acme@1.0.0", Some("a")), ("house@1.0.0", Some("a")), ("house@1.0.0", None)] {
            let wanted = format!("{number}+ba9876543210");
            let shown = format!("no version `{wanted}` is published here; there is `{number}+0123456789ab`");
            assert_eq!(text(&store, of, &wanted), shown);
        }
        let other_number = "acme@1.0.1+0123456789ab";
        let shown = format!("no version `{other_number}` is published for account `a`");
        assert_eq!(text(&store, Some("a"), other_number), shown);
    }

    #[test]
    fn another_accounts_version_is_named_to_the_operator_alone() {
        let (_dir, store) = store_with(vec![Record::Policy(policy("secret", Some("b")))]);
        let (secret, none) = (version("secret"), version("absent"));
        for wanted in [&secret, &none] {
            let shown = format!("no version `{wanted}` is published for account `a`");
            assert_eq!(text(&store, Some("a"), wanted.as_str()), shown, "nothing tells them apart");
        }
        let shown = format!("`{secret}` is published in account `b`: publish it for every account (`--all-accounts`)");
        assert_eq!(text(&store, None, secret.as_str()), shown);
        let shown = format!("no version `{none}` is published for every account");
        assert_eq!(text(&store, None, none.as_str()), shown);
    }
}
