//! Two policies compared over the backplane: what is looser, what is not, and what cannot be compared.

use std::time::Duration;

use stage0_contract::{
    AccountId, ComparePolicies, ComparePoliciesReply, DifferenceDirection, PolicyBundle, PolicyComparison,
    PolicyVersion, Verdict,
};
use stage0_policy::Pack;
use stage0_policy::diff::PackDiff;

use super::published::{Deployment, WAIT_TIMEOUT, pack, version_of};

async fn asked(deployment: &Deployment, old: Option<&PolicyVersion>, new: &PolicyVersion) -> ComparePoliciesReply {
    let account = AccountId::parse("acc").ok();
    let message = ComparePolicies { account, old: old.cloned(), new: new.clone() };
    deployment.caller.requests.request(&message, WAIT_TIMEOUT).await.unwrap()
}

async fn compared(deployment: &Deployment, old: Option<&PolicyVersion>, new: &PolicyVersion) -> PolicyComparison {
    match asked(deployment, old, new).await {
        ComparePoliciesReply::Compared(comparison) => *comparison,
        other => panic!("{other:?}"),
    }
}

/// Two packs, one of which denies what the other one defers.
fn published() -> [(PolicyVersion, PolicyBundle); 2] {
    ["deny", "defer"].map(|effect| {
        let mut bundle = pack("ours", effect);
        let manifest = bundle.packs[0].files.get_mut("pack.toml").unwrap();
        *manifest = manifest.replace("1.0.0", if effect == "deny" { "1.1.0" } else { "1.0.0" });
        (version_of(&bundle), bundle)
    })
}

#[tokio::test]
async fn a_looser_version_has_flips_and_a_stricter_or_an_equal_one_has_none() {
    let [(denies, denying), (defers, deferring)] = published();
    let deployment = Deployment::start(vec![(denies.clone(), denying.clone()), (defers.clone(), deferring)]).await;
    let looser = compared(&deployment, Some(&denies), &defers).await;
    assert_eq!((&looser.old, &looser.new), (&denies, &defers));
    let case = &looser.cases[0];
    assert_eq!((case.case.as_str(), case.direction), ("large", DifferenceDirection::Looser), "{looser:#?}");
    assert_eq!((case.from, case.to), (Some(Verdict::Deny), Some(Verdict::Defer)));
    assert_eq!(case.old_rules, ["ours.large"]);
    assert!(looser.rules.iter().any(|rule| rule.rule == "ours.large" && rule.differs.contains(&"effect".to_owned())));
    assert_eq!(looser.flips, looser.looser.cases + looser.looser.entries);
    assert!(looser.looser.cases > 0 && looser.looser.entries > 0);

    let stricter = compared(&deployment, Some(&defers), &denies).await;
    assert_eq!((stricter.flips, stricter.looser.cases), (0, 0), "{stricter:#?}");
    assert!(stricter.stricter.cases > 0 && stricter.diff_digest != looser.diff_digest);
    let equal = compared(&deployment, Some(&denies), &denies).await;
    assert_eq!((equal.flips, equal.cases.len(), equal.rules.len(), equal.words.len()), (0, 0, 0, 0));

    // The evaluator's own pack has none of both rules.
    let own = compared(&deployment, None, &denies).await;
    let baseline = Pack::embedded().unwrap();
    assert_eq!((&own.old, own.flips), (baseline.version(), 0), "{own:#?}");
    // The same digest as the command for folders.
    let diff = PackDiff::between(&baseline, &Pack::from_bundle(&denying).unwrap()).unwrap();
    assert_eq!(own.diff_digest, diff.diff_digest);
}

#[tokio::test]
async fn what_is_not_published_is_not_compared() {
    let [(denies, denying), (defers, _)] = published();
    let deployment = Deployment::start(vec![(denies.clone(), denying)]).await;
    for (old, new) in [(Some(&denies), &defers), (Some(&defers), &denies), (None, &defers)] {
        let reply = asked(&deployment, old, new).await;
        assert!(matches!(&reply, ComparePoliciesReply::Unable(why) if why.contains(defers.as_str())), "{reply:?}");
    }
    compared(&deployment, None, &denies).await;
}

#[tokio::test]
async fn an_old_version_of_another_release_is_compared_by_its_files_and_a_new_one_is_not() {
    let [(denies, denying), (defers, deferring)] = published();
    // Published under a release with another baseline, so that it has another digest there.
    let name = defers.as_str().split('+').next().unwrap();
    let of_another = PolicyVersion::parse(&format!("{name}+000000000000")).unwrap();
    let deployment = Deployment::start(vec![(of_another.clone(), deferring), (denies.clone(), denying)]).await;
    let comparison = compared(&deployment, Some(&of_another), &denies).await;
    assert_eq!((&comparison.old, comparison.flips), (&defers, 0), "as it would be published here");
    let reply = asked(&deployment, Some(&denies), &of_another).await;
    assert!(matches!(&reply, ComparePoliciesReply::Unable(why) if why.contains("loads as")), "{reply:?}");
}

#[tokio::test]
async fn a_comparison_past_its_time_is_none_and_the_next_one_is_made() {
    let [(denies, denying), (defers, deferring)] = published();
    let deployment = Deployment::start(vec![(denies.clone(), denying), (defers.clone(), deferring)]).await;
    let message = ComparePolicies { account: AccountId::parse("acc").ok(), old: None, new: denies.clone() };
    let late = deployment.caller.requests.request(&message, Duration::from_millis(1)).await;
    assert!(!matches!(late, Ok(ComparePoliciesReply::Compared(_))), "{late:?}");
    assert_eq!(compared(&deployment, Some(&defers), &denies).await.flips, 0);
}
