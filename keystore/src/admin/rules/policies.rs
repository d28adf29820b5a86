//! What a caller may do with policies: pure.
//!
//! `policies:manage` is for the packs and activations of the caller's own account. What holds for every account, and
//! the floor, are the operator's alone. That a pack loads was judged by an evaluator before it comes here.

use stage0_contract::{
    AccountId, ActivePolicies, Caller, FieldError, MAX_POLICIES, MAX_POLICIES_OF_ACCOUNT, MAX_POLICY_BYTES,
    MAX_POLICY_BYTES_OF_ACCOUNT, MAX_POLICY_ENVIRONMENTS, MAX_ROLLBACKS, PolicyVersion, PublishedPolicy, Refusal,
    Scope, StorePolicy, is_same_environment,
};

use super::{bad_text, invalid_if_any, is_operator, require, target_account};
use crate::store::record::{ActiveRecord, Owner, Slot, number};

const MAX_REASON_CHARS: usize = 500;
const MAX_ENVIRONMENT_CHARS: usize = 100;
const DIGEST_CHARS: usize = 64;
/// Places that a refusal names; the others are counted.
const MAX_NAMED_USES: usize = 10;

/// Whose packs and activations a call is about: an operator that names no account means the deployment.
pub(crate) fn owner(caller: &Caller, named: Option<&AccountId>) -> Result<Owner, Refusal> {
    match named {
        None if is_operator(caller) => Ok(None),
        named => target_account(caller, named).map(Some),
    }
}

/// How many versions there are, and of how many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Kept {
    pub(crate) versions: usize,
    pub(crate) bytes: usize,
}

impl Kept {
    pub(crate) fn add(&mut self, policy: &PublishedPolicy) {
        self.versions += 1;
        self.bytes = self.bytes.saturating_add(policy.bytes);
    }
}

/// Judges a version that is not published yet, beside what its owner and everybody has published.
pub(crate) fn valid_policy(call: &StorePolicy, own: Kept, all: Kept) -> Result<(), Refusal> {
    invalid_if_any(call.bundle.errors())?;
    let bytes = call.bundle.bytes();
    let limits = [
        ("the account", own, MAX_POLICIES_OF_ACCOUNT, MAX_POLICY_BYTES_OF_ACCOUNT),
        ("the deployment", all, MAX_POLICIES, MAX_POLICY_BYTES),
    ];
    for (of, kept, versions, most) in limits {
        if kept.versions >= versions {
            return Err(Refusal::Conflict(format!(
                "{of} has {} published versions, and {versions} is the most: delete one that is not active",
                kept.versions
            )));
        }
        if kept.bytes.saturating_add(bytes) > most {
            return Err(Refusal::Conflict(format!(
                "{of} has {} bytes of published versions, and {most} is the most: delete one that is not active",
                kept.bytes
            )));
        }
    }
    Ok(())
}

/// Whether both have the same name and number, which say nothing of their content.
pub(crate) fn same_number(one: &PolicyVersion, other: &PolicyVersion) -> bool {
    number(one) == number(other)
}

pub(crate) fn published_otherwise(published: &PolicyVersion) -> Refusal {
    let number = number(published);
    Refusal::Conflict(format!(
        "`{number}` is published with other content, as `{published}`: raise `version` in pack.toml"
    ))
}

/// At which place something is activated or rolled back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) owner: Owner,
    pub(crate) environment: Option<String>,
    pub(crate) is_floor: bool,
}

/// What activations and rollbacks have in common.
pub(crate) struct Asked<'a> {
    pub(crate) account: Option<&'a AccountId>,
    pub(crate) environment: Option<&'a str>,
    pub(crate) is_floor: bool,
    pub(crate) reason: Option<&'a str>,
    pub(crate) diff_digest: Option<&'a str>,
}

pub(crate) fn place(caller: &Caller, asked: &Asked<'_>) -> Result<Place, Refusal> {
    if asked.is_floor {
        require(caller, Scope::Operator)?;
    }
    let owner = owner(caller, asked.account)?;
    invalid_if_any(bad_place(asked, owner.as_ref()))?;
    Ok(Place { owner, environment: asked.environment.map(str::to_owned), is_floor: asked.is_floor })
}

/// What is wrong with what activations, rollbacks and candidates have in common.
pub(super) fn bad_place(asked: &Asked<'_>, owner: Option<&AccountId>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if asked.is_floor && owner.is_some() {
        errors.push(FieldError::new("account", "must be absent for the floor, which is every account's"));
    }
    if let Some(environment) = asked.environment {
        if asked.is_floor {
            errors.push(FieldError::new("environment", "must be absent for the floor, which holds everywhere"));
        } else if let Some(error) = bad_text("environment", environment, MAX_ENVIRONMENT_CHARS) {
            errors.push(error);
        } else if !is_same_environment(environment, environment) {
            // No check could name it.
            errors.push(FieldError::new("environment", "must be a word in one script"));
        }
    }
    errors.extend(asked.reason.and_then(|reason| bad_text("reason", reason, MAX_REASON_CHARS)));
    let is_digest =
        |text: &str| text.len() == DIGEST_CHARS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if asked.diff_digest.is_some_and(|digest| !is_digest(digest)) {
        errors.push(FieldError::new("diff_digest", "must be a SHA-256 in lower-case hex"));
    }
    errors
}

/// The slot of a place, and the name under which its environment is kept. A new environment is added if there is room.
pub(crate) fn slot<'r>(record: &'r mut ActiveRecord, place: &Place) -> Result<(&'r mut Slot, Option<String>), Refusal> {
    let Some(wanted) = &place.environment else {
        return Ok((if place.is_floor { &mut record.floor } else { &mut record.default }, None));
    };
    let name = record.environment(wanted).unwrap_or(wanted).to_owned();
    if !record.environments.contains_key(&name) && record.environments.len() >= MAX_POLICY_ENVIRONMENTS {
        return Err(Refusal::Conflict(format!(
            "{MAX_POLICY_ENVIRONMENTS} environments have had a policy of their own, which is the most: activate one \
             for all others, without `environment`"
        )));
    }
    Ok((record.environments.entry(name.clone()).or_default(), Some(name)))
}

/// Judges `expected`: `active` is what the owner has active at the place, `effective` what decides there.
pub(crate) fn check_expected(
    expected: Option<&PolicyVersion>,
    active: Option<&PolicyVersion>,
    effective: Option<&PolicyVersion>,
) -> Result<(), Refusal> {
    match expected {
        None => Ok(()),
        Some(expected) if active.or(effective) == Some(expected) => Ok(()),
        Some(expected) => {
            let is = active.or(effective).map_or_else(|| "none is".to_owned(), |version| format!("`{version}` is"));
            Err(Refusal::Conflict(format!("`{expected}` is not active there: {is}")))
        }
    }
}

/// The versions of which an activation takes the place, each once; none for the evaluators' own. `active` is what the
/// owner has there, and `effective` what decides anywhere for the owner. The first floor takes the place of none.
pub(crate) fn replaces(
    place: &Place,
    active: Option<&PolicyVersion>,
    own: &ActivePolicies,
    effective: &ActivePolicies,
) -> Vec<Option<PolicyVersion>> {
    if place.is_floor || active.is_some() {
        return active.map(|active| Some(active.clone())).into_iter().collect();
    }
    let mut all = vec![effective.of(place.environment.as_deref()).cloned()];
    if place.environment.is_none() {
        // An account's first default stands over the deployment's environments, too.
        let others = effective.environments.iter().filter(|(name, _)| !own.environments.contains_key(*name));
        for version in others.map(|(_, version)| Some(version.clone())) {
            if !all.contains(&version) {
                all.push(version);
            }
        }
    }
    all
}

/// Why a place is not rolled back.
pub(crate) fn nothing_to_roll_back(slot: &Slot) -> Refusal {
    Refusal::Conflict(if slot.is_at_its_last() {
        format!("only the last {MAX_ROLLBACKS} activations can be rolled back: activate a version")
    } else {
        "there is no earlier activation to go back to: activate a version".to_owned()
    })
}

/// A number stays taken after its version was deleted.
pub(crate) fn deleted_otherwise(deleted: &PolicyVersion) -> Refusal {
    let number = number(deleted);
    Refusal::Conflict(format!(
        "`{number}` was published with other content, as `{deleted}`, and deleted: raise `version` in pack.toml"
    ))
}

/// `uses` says where a version is needed; the first few are named.
pub(crate) fn still_needed(version: &PolicyVersion, uses: &[String]) -> Refusal {
    let mut named = uses.iter().take(MAX_NAMED_USES).map(String::as_str).collect::<Vec<_>>().join("; ");
    if let more @ 1.. = uses.len().saturating_sub(MAX_NAMED_USES) {
        named.push_str(&format!("; and {more} more"));
    }
    Refusal::Conflict(format!("`{version}` is needed: {named}"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{caller, paths};
    use super::*;
    use crate::store::record::policies::tests::{policy, version};
    use stage0_contract::PolicyFiles;

    fn asked(environment: Option<&'static str>) -> Asked<'static> {
        Asked { account: None, environment, is_floor: false, reason: None, diff_digest: None }
    }

    fn managing() -> Caller {
        caller("a", &[Scope::PoliciesManage])
    }

    #[test]
    fn an_operator_that_names_no_account_means_the_deployment_and_others_mean_their_own() {
        let (a, b) = (AccountId::parse("a").unwrap(), AccountId::parse("b").unwrap());
        let operator = caller("o", &[Scope::Operator]);
        assert_eq!(owner(&operator, None), Ok(None));
        assert_eq!(owner(&operator, Some(&b)), Ok(Some(b.clone())));
        assert_eq!(owner(&managing(), None), Ok(Some(a.clone())));
        assert_eq!(owner(&managing(), Some(&a)), Ok(Some(a)));
        assert_eq!(owner(&managing(), Some(&b)), Err(Refusal::NotFound));
    }

    #[test]
    fn the_floor_is_the_operators_and_holds_everywhere() {
        let floor = |environment| Asked { is_floor: true, ..asked(environment) };
        assert_eq!(place(&managing(), &floor(None)), Err(Refusal::ScopeMissing(Scope::Operator)));
        let operator = caller("o", &[Scope::Operator]);
        assert_eq!(place(&operator, &floor(None)).map(|place| (place.owner, place.is_floor)), Ok((None, true)));
        let b = AccountId::parse("b").unwrap();
        let both = Asked { account: Some(&b), ..floor(Some("prod")) };
        assert_eq!(paths(place(&operator, &both).map(drop)), ["account", "environment"]);
    }

    #[test]
    fn a_place_names_an_environment_that_checks_can_name() {
        for good in ["production", "eu west", "prod-2"] {
            assert!(place(&managing(), &asked(Some(good))).is_ok(), "{good}");
        }
        for bad in ["", " ", "a\nb", "pr\u{43e}d", "pr\u{202e}od"] {
            let refused = place(&managing(), &Asked { environment: Some(bad), ..asked(None) });
            assert_eq!(paths(refused.map(drop)), ["environment"], "{bad:?}");
        }
        let long = "é".repeat(101);
        assert_eq!(
            paths(place(&managing(), &Asked { environment: Some(&long), ..asked(None) }).map(drop)),
            ["environment"]
        );
    }

    #[test]
    fn a_reason_and_a_digest_are_optional_and_well_formed() {
        let digest = "0123456789abcdef".repeat(4);
        let both = |reason, diff_digest| place(&managing(), &Asked { reason, diff_digest, ..asked(None) }).map(drop);
        assert_eq!(both(Some("why"), Some(&*digest)), Ok(()));
        let upper = digest.to_uppercase();
        assert_eq!(paths(both(Some(" "), Some(&*upper))), ["reason", "diff_digest"]);
        assert_eq!(paths(both(None, Some(&digest[1..]))), ["diff_digest"]);
    }

    #[test]
    fn an_environment_is_one_place_by_any_of_its_names_and_fifty_have_their_own() {
        let mut record = ActiveRecord::default();
        let at = |name: &str| place(&managing(), &Asked { environment: Some(name), ..asked(None) }).unwrap();
        slot(&mut record, &at("production")).unwrap().0.activate(version("p"));
        let (held, name) = slot(&mut record, &at("PROD")).unwrap();
        assert_eq!((held.active.clone(), name.as_deref()), (Some(version("p")), Some("production")));
        for number in 1..MAX_POLICY_ENVIRONMENTS {
            slot(&mut record, &at(&format!("e{number}"))).unwrap();
        }
        assert!(matches!(slot(&mut record, &at("one-more")), Err(Refusal::Conflict(_))));
        assert!(slot(&mut record, &at("live")).is_ok(), "which it has");
    }

    #[test]
    fn a_caller_that_expects_another_version_is_refused() {
        let (a, b) = (version("a"), version("b"));
        assert_eq!(check_expected(None, Some(&a), None), Ok(()));
        assert_eq!(check_expected(Some(&a), Some(&a), Some(&b)), Ok(()));
        assert_eq!(check_expected(Some(&b), None, Some(&b)), Ok(()), "the deployment's decides there");
        for (active, effective) in [(Some(&b), Some(&b)), (Some(&b), Some(&a)), (None, None), (None, Some(&b))] {
            let refused = check_expected(Some(&a), active, effective);
            assert!(matches!(refused, Err(Refusal::Conflict(_))), "{active:?} {effective:?}");
        }
    }

    #[test]
    fn an_activation_takes_the_place_of_what_decides_there_and_the_first_floor_of_nothing() {
        let at = |environment: Option<&str>, is_floor| Place {
            owner: AccountId::parse("a").ok(),
            environment: environment.map(str::to_owned),
            is_floor,
        };
        let (a, b, c) = (version("a"), version("b"), version("c"));
        let all = |default: Option<&PolicyVersion>, environments: &[(&str, &PolicyVersion)]| ActivePolicies {
            default: default.cloned(),
            environments: environments.iter().map(|(name, of)| ((*name).to_owned(), (*of).clone())).collect(),
        };
        let none = ActivePolicies::default();
        assert_eq!(replaces(&at(None, false), None, &none, &none), [None], "the evaluators' own");
        assert_eq!(replaces(&at(None, true), None, &none, &all(Some(&a), &[])), []);
        assert_eq!(replaces(&at(None, true), Some(&b), &none, &all(Some(&a), &[])), [Some(b.clone())]);
        let deployment = all(Some(&a), &[("production", &b), ("staging", &a)]);
        assert_eq!(replaces(&at(Some("prod"), false), None, &none, &deployment), [Some(b.clone())]);
        assert_eq!(replaces(&at(Some("test"), false), None, &none, &deployment), [Some(a.clone())]);
        // The deployment's environments are covered by an account's first default, and its own ones are not.
        assert_eq!(replaces(&at(None, false), None, &none, &deployment), [Some(a.clone()), Some(b)]);
        let own = all(None, &[("production", &c)]);
        assert_eq!(replaces(&at(None, false), None, &own, &own.or(&deployment)), [Some(a)]);
        let own = all(Some(&c), &[]);
        assert_eq!(replaces(&at(None, false), Some(&c), &own, &own.or(&deployment)), [Some(c)]);
    }

    #[test]
    fn a_refusal_to_delete_names_ten_places_and_counts_the_others() {
        let text = |count: usize| {
            let uses: Vec<String> = (0..count).map(|number| format!("it is active in `e{number}`")).collect();
            let Refusal::Conflict(text) = still_needed(&version("a"), &uses) else { panic!("another refusal") };
            text
        };
        assert_eq!(text(2), format!("`{}` is needed: it is active in `e0`; it is active in `e1`", version("a")));
        assert!(text(10).ends_with("it is active in `e9`") && text(12).ends_with("`e9`; and 2 more"));
    }

    #[test]
    fn versions_and_bytes_of_an_account_and_of_the_deployment_are_bounded() {
        let bundle = policy("p", Some("a")).bundle;
        let summary = policy("p", Some("a")).policy.summary;
        let mut call = StorePolicy { caller: managing(), account: None, summary, bundle, is_trial: false };
        let (none, bytes) = (Kept::default(), call.bundle.bytes());
        let judged = |own, all| valid_policy(&call, own, all);
        assert_eq!(judged(none, none), Ok(()));
        let most = Kept { versions: MAX_POLICIES_OF_ACCOUNT - 1, bytes: MAX_POLICY_BYTES_OF_ACCOUNT - bytes };
        assert_eq!(judged(most, none), Ok(()));
        for own in [Kept { versions: most.versions + 1, ..none }, Kept { bytes: most.bytes + 1, ..none }] {
            assert!(matches!(judged(own, none), Err(Refusal::Conflict(_))), "{own:?}");
        }
        let most = Kept { versions: MAX_POLICIES - 1, bytes: MAX_POLICY_BYTES - bytes };
        assert_eq!(judged(none, most), Ok(()));
        for all in [Kept { versions: most.versions + 1, ..none }, Kept { bytes: most.bytes + 1, ..none }] {
            assert!(matches!(judged(none, all), Err(Refusal::Conflict(_))), "{all:?}");
        }
        call.bundle.packs = vec![PolicyFiles { files: [("../x".to_owned(), String::new())].into() }];
        assert_eq!(paths(valid_policy(&call, none, none)), [r#"packs[0].files["../x"]"#]);
    }
}
