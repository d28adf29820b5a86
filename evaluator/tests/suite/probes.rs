//! The may-ever question over the backplane: by which policies it is answered, and what makes it no answer.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use stage0_contract::{
    AccountId, AccountRules, ActivePolicies, MAX_PROBED_TOOLS, MayEver, PolicyVersion, ProbeFindings, ProbeReply,
    ProbeTools, RequestId, Stop,
};

use super::published::{Deployment, WAIT_TIMEOUT, pack, version_of};

/// A question about these tools; the rule of the packs reads the member `amount` and nothing else.
fn question(rules: &AccountRules, body: &Value) -> ProbeTools {
    let mut message = json!({"request_id": RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap(),
        "account": AccountId::parse("acc").unwrap(), "evaluated_at": jiff::Timestamp::now().as_second(),
        "asker": {"key_id": "key_2", "holder": {"workload": "key_1"}, "rules": rules},
        "tools": [{"tool": "pay"}], "context": {"amount": 501}});
    message.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
    serde_json::from_value(message).unwrap()
}

async fn ask(deployment: &Deployment, rules: &AccountRules, body: Value) -> ProbeReply {
    deployment.caller.requests.request(&question(rules, &body), WAIT_TIMEOUT).await.unwrap()
}

async fn found(deployment: &Deployment, rules: &AccountRules, body: Value) -> ProbeFindings {
    match ask(deployment, rules, body).await {
        ProbeReply::Probed(findings) => findings,
        other => panic!("not answered: {other:?}"),
    }
}

/// The codes for each tool; none for one that may be allowed.
fn codes(findings: &ProbeFindings) -> Vec<Vec<&str>> {
    let of = |finding: &'_ stage0_contract::ToolFinding| {
        assert_eq!(finding.may == MayEver::Never, !finding.codes.is_empty(), "{finding:?}");
    };
    findings.tools.iter().for_each(of);
    findings.tools.iter().map(|finding| finding.codes.iter().map(|code| code.as_str()).collect()).collect()
}

fn active(default: Option<&PolicyVersion>, environments: &[(&str, &PolicyVersion)]) -> AccountRules {
    let named = environments.iter().map(|(name, version)| ((*name).to_owned(), (*version).clone()));
    let policy = ActivePolicies { default: default.cloned(), environments: named.collect::<BTreeMap<_, _>>() };
    AccountRules { policy, ..AccountRules::default() }
}

fn stop(scope: &str, value: Option<&str>, until: Option<&str>) -> Stop {
    serde_json::from_value(json!({"id": "stp_1", "account": null, "scope": scope, "value": value, "reason": "r",
        "created_at": "2026-03-16T11:00:00Z", "until": until, "key_id": "key_9", "member_id": null}))
    .unwrap()
}

#[tokio::test]
async fn the_active_policy_and_the_floor_answer_and_what_a_call_may_change_is_open() {
    let (ours, strict) = (pack("ours", "defer"), pack("strict", "deny"));
    let [of_ours, of_strict] = [&ours, &strict].map(version_of);
    let deployment = Deployment::start(vec![(of_ours.clone(), ours), (of_strict.clone(), strict)]).await;
    let own = AccountRules::default();
    let by_own = found(&deployment, &own, json!({})).await;
    assert_eq!((codes(&by_own), by_own.recordable.len()), (vec![vec![]], 0), "the evaluator's own policy");
    assert!(by_own.policy_version.as_str().starts_with("baseline@") && by_own.floor_version.is_none());

    let tools = json!([{"tool": "Pay-Invoice", "side_effects": ["payment"]}, {"tool": "grep"}]);
    let strict = active(Some(&of_strict), &[]);
    let by_strict = found(&deployment, &strict, json!({"tools": tools})).await;
    assert_eq!(codes(&by_strict), [["LARGE_AMOUNT"]; 2]);
    assert_eq!((&by_strict.policy_version, &by_strict.tools[0].tool[..]), (&of_strict, "Pay-Invoice"));
    assert_eq!(by_strict.recordable, ["pay_invoice", "grep"]);
    // A later call may have another amount, and 500 may be paid.
    for open in [json!({"context": {}}), json!({"context": {"amount": 500}}), json!({"context": {"amount": "x"}})] {
        assert_eq!(codes(&found(&deployment, &strict, open.clone()).await), [[""; 0]], "{open}");
    }
    // What is deferred may be approved.
    assert_eq!(codes(&found(&deployment, &active(Some(&of_ours), &[]), json!({})).await), [[""; 0]]);
    let floored = AccountRules { floor: Some(of_strict.clone()), ..active(Some(&of_ours), &[]) };
    let by_floor = found(&deployment, &floored, json!({})).await;
    assert_eq!((codes(&by_floor), &by_floor.floor_version), (vec![vec!["LARGE_AMOUNT"]], &Some(of_strict)));
}

#[tokio::test]
async fn the_policy_of_an_environment_answers_for_it_and_no_policy_for_all_of_them() {
    let (ours, strict) = (pack("ours", "defer"), pack("strict", "deny"));
    let [of_ours, of_strict] = [&ours, &strict].map(version_of);
    let deployment = Deployment::start(vec![(of_ours.clone(), ours), (of_strict.clone(), strict)]).await;
    let rules = active(Some(&of_strict), &[("staging", &of_ours)]);
    for (body, version, never) in [
        (json!({"environment": "production"}), &of_strict, true),
        (json!({"context": {"amount": 501, "environment": "production"}}), &of_strict, true),
        (json!({"environment": "staging"}), &of_ours, false),
        // A call without an environment is decided by the default, and one in staging by the other.
        (json!({}), &of_strict, false),
    ] {
        let findings = found(&deployment, &rules, body.clone()).await;
        assert_eq!((&findings.policy_version, findings.tools[0].may), (version, may(never)), "{body}");
    }
    let same_everywhere = active(Some(&of_strict), &[]);
    assert_eq!(found(&deployment, &same_everywhere, json!({})).await.tools[0].may, MayEver::Never);
}

fn may(never: bool) -> MayEver {
    if never { MayEver::Never } else { MayEver::Maybe }
}

#[tokio::test]
async fn a_stop_that_has_no_end_and_covers_every_call_is_certain() {
    let deployment = Deployment::start(Vec::new()).await;
    for (stop, body, never) in [
        (stop("account", None, None), json!({}), true),
        (stop("all", None, None), json!({}), true),
        (stop("key", Some("key_1"), None), json!({}), true),
        (stop("key", Some("key_3"), None), json!({}), false),
        (stop("tool", Some("pay"), None), json!({}), true),
        (stop("tool", Some("pay"), None), json!({"tools": [{"tool": "mcp__bank__Pay"}]}), true),
        (stop("tool", Some("refund"), None), json!({}), false),
        (stop("environment", Some("production"), None), json!({"environment": "prod"}), true),
        (stop("environment", Some("production"), None), json!({"environment": "staging"}), false),
        // It covers a check without an environment, but a call may name one.
        (stop("environment", Some("production"), None), json!({}), false),
        (stop("account", None, Some("2999-01-01T00:00:00Z")), json!({}), false),
    ] {
        let rules = AccountRules { stops: vec![stop.clone()], ..AccountRules::default() };
        let findings = found(&deployment, &rules, body.clone()).await;
        let expected: Vec<&str> = never.then_some("STOPPED").into_iter().collect();
        assert_eq!(codes(&findings), [expected], "{stop:?} {body}");
    }
}

#[tokio::test]
async fn a_policy_that_is_not_there_answers_nothing_and_nor_does_another() {
    let deployment = Deployment::start(Vec::new()).await;
    let gone = PolicyVersion::parse("gone@1.0.0+000000000000").unwrap();
    let floor = AccountRules { floor: Some(gone.clone()), ..AccountRules::default() };
    for rules in [active(Some(&gone), &[]), floor] {
        let missing = ProbeReply::PolicyMissing { version: gone.clone(), is_loading: false };
        assert_eq!(ask(&deployment, &rules, json!({})).await, missing);
    }
    assert_eq!(found(&deployment, &AccountRules::default(), json!({})).await.tools.len(), 1);
}

#[tokio::test]
async fn a_question_has_at_most_two_hundred_tools_and_one_past_its_time_has_no_answer() {
    let deployment = Deployment::start(Vec::new()).await;
    let tools = |count: usize| json!({"tools": vec![json!({"tool": "grep"}); count]});
    let own = AccountRules::default();
    assert_eq!(found(&deployment, &own, tools(MAX_PROBED_TOOLS)).await.tools.len(), MAX_PROBED_TOOLS);
    let reply = ask(&deployment, &own, tools(MAX_PROBED_TOOLS + 1)).await;
    assert!(matches!(&reply, ProbeReply::Unable(why) if why.contains("at once")), "{reply:?}");
    let message = question(&own, &tools(MAX_PROBED_TOOLS));
    let late = deployment.caller.requests.request(&message, Duration::from_millis(1)).await;
    assert!(!matches!(late, Ok(ProbeReply::Probed(_))), "{late:?}");
    assert_eq!(found(&deployment, &own, tools(1)).await.tools.len(), 1);
}

#[tokio::test]
async fn calls_that_the_policy_would_refuse_to_read_may_be_allowed_once_they_are_mended() {
    let strict = pack("strict", "deny");
    let version = version_of(&strict);
    let deployment = Deployment::start(vec![(version.clone(), strict)]).await;
    let body = json!({"constraints": ["allowed_change_window: blue_moon"]});
    assert_eq!(codes(&found(&deployment, &active(Some(&version), &[]), body).await), [[""; 0]]);
}

#[tokio::test]
async fn a_secret_in_the_name_of_a_tool_is_masked_for_the_record() {
    let deployment = Deployment::start(Vec::new()).await;
    let rules = AccountRules { stops: vec![stop("all", None, None)], ..AccountRules::default() };
    let tool = "grep(password=hunter22)";
    let findings = found(&deployment, &rules, json!({"tools": [{"tool": tool}], "environment": "qa"})).await;
    assert_eq!(findings.tools[0].tool, tool, "as it was asked");
    assert_eq!((findings.recordable.len(), findings.environment.as_str()), (1, "qa"));
    assert!(!findings.recordable[0].contains("hunter22"), "{:?}", findings.recordable);
    let many = json!({"tools": vec![json!({"tool": "grep"}); 30]});
    assert_eq!(found(&deployment, &rules, many).await.recordable.len(), 20);
}
