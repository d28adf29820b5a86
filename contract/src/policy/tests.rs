//! Which version decides where, and what a bundle may be.

use super::*;

fn version(text: &str) -> PolicyVersion {
    PolicyVersion::parse(&format!("{text}@1.0.0+0123456789ab")).unwrap()
}

fn active(default: Option<&str>, environments: &[(&str, &str)]) -> ActivePolicies {
    let environments = environments.iter().map(|(at, of)| ((*at).to_owned(), version(of))).collect();
    ActivePolicies { default: default.map(version), environments }
}

#[test]
fn an_environment_goes_before_the_default_by_any_of_its_names() {
    let policies = active(Some("d"), &[("production", "p")]);
    for name in ["production", "prod", " PROD "] {
        assert_eq!(policies.of(Some(name)), Some(&version("p")), "{name}");
    }
    for other in [None, Some(""), Some("staging"), Some("preprod")] {
        assert_eq!(policies.of(other), Some(&version("d")), "{other:?}");
    }
    assert_eq!(active(None, &[("production", "p")]).of(Some("staging")), None);
}

#[test]
fn where_environments_have_their_own_policy_a_check_names_one_that_can_be_read() {
    let rules = AccountRules { policy: active(None, &[("production", "p")]), ..AccountRules::default() };
    let unclear = |rules: &AccountRules, body: serde_json::Value| {
        let mut whole = serde_json::json!({"goal": "g"});
        whole.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        rules.unclear_environment(&CheckRequest::parse(whole).unwrap()).map(|error| error.path)
    };
    let inner = |value: serde_json::Value| serde_json::json!({"context": {"environment": value}});
    for bad in [
        inner(serde_json::json!(["production"])),
        inner(5.into()),
        inner(serde_json::json!({"name": "production"})),
        inner("pr\u{43e}d".into()),
        serde_json::json!({"environment": "dev", "context": {"environment": "production"}}),
    ] {
        assert_eq!(unclear(&rules, bad.clone()).as_deref(), Some("context.environment"), "{bad}");
        assert_eq!(unclear(&AccountRules::default(), bad), None, "no policy depends on it");
    }
    let mixed = serde_json::json!({"environment": "pr\u{43e}d"});
    assert_eq!(unclear(&rules, mixed).as_deref(), Some("environment"));
    for good in [
        serde_json::json!({}),
        inner(serde_json::Value::Null),
        inner("".into()),
        inner("staging".into()),
        serde_json::json!({"environment": "prod", "context": {"environment": "production"}}),
    ] {
        assert_eq!(unclear(&rules, good.clone()), None, "{good}");
    }
}

#[test]
fn what_an_account_activates_stands_over_what_the_deployment_has() {
    let deployment = active(Some("d"), &[("prod", "dp"), ("staging", "ds")]);
    assert_eq!(active(None, &[]).or(&deployment), deployment);
    let own_default = active(Some("a"), &[]).or(&deployment);
    assert_eq!(own_default.of(Some("prod")), Some(&version("a")), "the account's default is its own everywhere");
    let own_environment = active(None, &[("production", "ap")]).or(&deployment);
    assert_eq!(own_environment.of(Some("prd")), Some(&version("ap")), "by another name");
    assert_eq!(own_environment.of(Some("staging")), Some(&version("ds")));
    assert_eq!(own_environment.of(None), Some(&version("d")));
    assert_eq!(own_environment.versions(), [version("ap"), version("d"), version("ds")]);
}

#[test]
fn rules_without_a_policy_are_written_as_before_there_were_any() {
    let text = serde_json::to_string(&AccountRules::default()).unwrap();
    assert_eq!(text, "{}");
    let rules: AccountRules = serde_json::from_str(&text).unwrap();
    assert!(!rules.needs_published());
    assert!(AccountRules { floor: Some(version("f")), ..rules.clone() }.needs_published());
    assert!(AccountRules { policy: active(Some("a"), &[]), ..rules }.needs_published());
}

#[test]
fn a_bundle_counts_names_and_texts_of_all_its_packs() {
    let pack = |text: &str| PolicyFiles { files: [("a.toml".to_owned(), text.to_owned())].into() };
    let bundle = PolicyBundle { packs: vec![pack("ä"), pack("xyz")] };
    assert_eq!((bundle.bytes(), bundle.files()), (6 + 2 + 6 + 3, 2));
}

#[test]
fn a_content_hash_stands_for_names_texts_and_packs() {
    let pack = |name: &str, text: &str| PolicyFiles { files: [(name.to_owned(), text.to_owned())].into() };
    let hash = |packs: &[PolicyFiles]| PolicyBundle { packs: packs.to_vec() }.content_hash();
    let one = hash(&[pack("a", "x"), pack("b", "y")]);
    assert_eq!(one, hash(&[pack("a", "x"), pack("b", "y")]));
    for other in [
        &[pack("a", "x"), pack("b", "z")][..],
        &[pack("a", "x"), pack("c", "y")],
        &[pack("b", "y"), pack("a", "x")],
        &[pack("a", "x")],
        &[pack("a", "x"), pack("b", " y")],
    ] {
        assert_ne!(one, hash(other), "{other:?}");
    }
}

#[test]
fn a_bundle_is_text_within_its_limits_in_files_with_plain_names() {
    let of = |name: &str, text: &str| PolicyFiles { files: [(name.to_owned(), text.to_owned())].into() };
    let paths = |packs: Vec<PolicyFiles>| -> Vec<String> {
        PolicyBundle { packs }.errors().into_iter().map(|error| error.path).collect()
    };
    let good = of("cases-refunds.json", "a\tb\r\nc\n");
    assert!(paths(vec![good.clone(); MAX_BUNDLE_PACKS]).is_empty());
    assert_eq!(paths(vec![good; MAX_BUNDLE_PACKS + 1]), ["packs"]);
    assert_eq!(paths(Vec::new()), ["packs"]);
    assert_eq!(paths(vec![of("cases/a.json", "")]), ["packs[0].files[\"cases/a.json\"]"], "it is named");
    assert_eq!(paths(vec![of("a\u{202e}b", "")]), ["packs[0].files[\"a\\u{202e}b\"]"], "and misleads in no error");
    assert_eq!(paths(vec![of("a", "x\ny\u{1b}")]), ["packs[0].files[\"a\"]"]);
    assert!(paths(vec![of("a", &"x".repeat(MAX_BUNDLE_BYTES - 1))]).is_empty());
    assert_eq!(paths(vec![of("a", &"x".repeat(MAX_BUNDLE_BYTES))]), ["packs"]);
    let files = |count: usize| PolicyFiles { files: (0..count).map(|n| (n.to_string(), String::new())).collect() };
    assert!(paths(vec![files(MAX_PACK_FILES); MAX_BUNDLE_PACKS]).is_empty());
    assert_eq!(paths(vec![files(1), files(MAX_PACK_FILES + 1)]), ["packs[1].files"]);
}

#[test]
fn the_line_of_a_canary_that_ended_by_itself_has_no_actor_and_names_the_key_that_set_its_terms() {
    let event = |text: &str| serde_json::from_str::<Activation>(text).unwrap().event(uuid::Uuid::nil());
    let returned = event(include_str!("../../fixtures/activation_returned.json"));
    assert_eq!((returned.kind, returned.actor.is_none()), (crate::LineType::PolicyCanaryEnded, true));
    assert_eq!(returned.details["returned_for"]["disagreements"], 6);
    assert_eq!(returned.details["candidate"]["key_id"], "key_2");
    let withdrawn = event(include_str!("../../fixtures/activation_withdrawn.json"));
    assert!(withdrawn.actor.is_some_and(|actor| actor.key_id.as_str() == "key_2"));
    assert!(!withdrawn.details.contains_key("returned_for"));
}
