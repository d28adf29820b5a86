//! Published policies over the backplane: which version decides, what happens where it is not there, and the floor.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use stage0_backplane::Backplane;
use stage0_backplane::embedded::Bus;
use stage0_contract::{
    AccountId, AccountRules, ActivePolicies, Actor, CallerTexts, CheckRequest, Decision, EvaluateReply,
    EvaluateRequest, FetchPolicy, FetchedPolicy, ManageReply, MaskText, PolicyBundle, PolicyChanged, PolicyFiles,
    PolicyVersion, Refusal, RequestId, ReviewRequest, ValidatePolicy, ValidatePolicyReply, Verdict,
};
use stage0_evaluator::{EvaluatorConfig, LoadedPolicies, RunConfig, build};
use stage0_policy::{Pack, PackSet};
use tokio::task::JoinSet;

use super::service::connect;

pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// Larger than an ordinary check.
const LARGE: usize = 40_000;

const RULE: &str = r#"@id("ours.large")
@effect("CHANGED")
@code("LARGE_AMOUNT")
@message("the amount is large")
@question("Who approves the amount?")
forbid (principal, action, resource)
when { context.custom has amount && context.custom.amount > 500 };
"#;

/// A pack that denies or defers amounts above 500.
pub(crate) fn pack(name: &str, effect: &str) -> PolicyBundle {
    let verdict = effect.to_uppercase();
    let cases = json!([
        {"id": "large", "expect": [verdict], "codes": ["LARGE_AMOUNT"], "request": payment(501)},
        {"id": "small", "expect": ["ALLOW"], "request": payment(500)},
    ]);
    let rule = RULE.replace("CHANGED", effect);
    // A rule that denies asks nothing.
    let rule = if effect == "deny" { rule.replace("@question(\"Who approves the amount?\")\n", "") } else { rule };
    let files = [
        ("pack.toml", format!("name = \"{name}\"\nversion = \"1.0.0\"\nextends = \"baseline@2\"\n")),
        ("schema.cedarschema", "// What is paid.\ntype Custom = { amount?: Long };\n".to_owned()),
        ("codes.toml", "[LARGE_AMOUNT]\nmeaning = \"m\"\nremedy = \"r\"\n".to_owned()),
        ("ours.cedar", rule),
        ("cases.json", cases.to_string()),
    ];
    let files = files.into_iter().map(|(name, text)| (name.to_owned(), text)).collect();
    PolicyBundle { packs: vec![PolicyFiles { files }] }
}

pub(crate) fn version_of(bundle: &PolicyBundle) -> PolicyVersion {
    Pack::from_bundle(bundle).unwrap_or_else(|error| panic!("{error}")).version().clone()
}

/// An evaluator of two shards beside a keystore that has these policies.
pub(crate) struct Deployment {
    pub(crate) caller: Backplane,
    policies: LoadedPolicies,
    fetched: Arc<AtomicUsize>,
    /// Checks so far: each has its own id.
    asked: AtomicUsize,
    _serving: JoinSet<()>,
}

impl Deployment {
    pub(crate) async fn start(published: Vec<(PolicyVersion, PolicyBundle)>) -> Self {
        let bus = Bus::new();
        let fetched = Arc::new(AtomicUsize::new(0));
        let mut serving = JoinSet::new();
        let keystore = bus.connect();
        let mut requests = keystore.requests.serve::<FetchPolicy>().await.unwrap();
        let count = Arc::clone(&fetched);
        serving.spawn(async move {
            let _keystore = keystore;
            while let Some(message) = requests.next().await {
                count.fetch_add(1, Ordering::Relaxed);
                let (wanted, _, responder) = message.into_parts();
                let found = published.iter().find(|(version, _)| *version == wanted.version).cloned();
                let reply = found.map_or(ManageReply::Refused(Refusal::NotFound), |(version, bundle)| {
                    ManageReply::Done(FetchedPolicy { version, bundle })
                });
                responder.answer(&reply).await;
            }
        });
        let config = EvaluatorConfig {
            packs: PackSet::embedded().unwrap(),
            shards: NonZeroUsize::new(2),
            runs: RunConfig::default(),
        };
        let evaluator = build(config, connect(&bus)).await.unwrap();
        let policies = evaluator.policies();
        serving.spawn(async move {
            let _ = evaluator.run_until(std::future::pending()).await;
        });
        Self { caller: bus.connect(), policies, fetched, asked: AtomicUsize::new(0), _serving: serving }
    }

    pub(crate) async fn ask(&self, body: &Value, rules: AccountRules) -> EvaluateReply {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        self.ask_as(number, body, rules).await
    }

    /// As the check with this number, which may have been decided before.
    async fn ask_as(&self, number: usize, body: &Value, rules: AccountRules) -> EvaluateReply {
        let asker: Actor =
            serde_json::from_value(json!({"key_id": "key_2", "holder": {"workload": "key_1"}, "rules": rules}))
                .unwrap();
        let message = EvaluateRequest {
            asker: Some(asker),
            request_id: RequestId::parse(&format!("0190163d-8694-739b-aea5-966c26f8{number:04x}")).unwrap(),
            account: AccountId::parse("acc").unwrap(),
            request: CheckRequest::parse(body.clone()).unwrap(),
            evaluated_at: jiff::Timestamp::now().as_second(),
            operation: None,
            caller: CallerTexts::default(),
            max_runs: None,
        };
        self.caller.requests.request(&message, WAIT_TIMEOUT).await.unwrap()
    }

    async fn decide(&self, body: &Value, rules: AccountRules) -> Decision {
        match self.ask(body, rules).await {
            EvaluateReply::Decided(evaluation) => evaluation.decision,
            other => panic!("not decided: {other:?}"),
        }
    }
}

fn active(default: &PolicyVersion) -> AccountRules {
    let policy = ActivePolicies { default: Some(default.clone()), environments: BTreeMap::new() };
    AccountRules { policy, ..AccountRules::default() }
}

pub(crate) fn payment(amount: i64) -> Value {
    json!({"goal": "Pay the invoice of May", "success_criteria": ["x"], "context": {"amount": amount}})
}

#[tokio::test]
async fn the_active_version_decides_each_check_of_its_account_and_is_fetched_once() {
    let (ours, strict) = (pack("ours", "defer"), pack("strict", "deny"));
    let [of_ours, of_strict] = [&ours, &strict].map(version_of);
    let deployment = Deployment::start(vec![(of_ours.clone(), ours), (of_strict.clone(), strict)]).await;
    let baseline = deployment.decide(&payment(501), AccountRules::default()).await;
    assert_eq!((baseline.verdict, baseline.policy_version.as_str().starts_with("baseline@")), (Verdict::Allow, true));

    let large_payment = payment(501);
    let asks = (0..40).map(|_| deployment.decide(&large_payment, active(&of_ours)));
    for decision in futures_util::future::join_all(asks).await {
        assert_eq!((decision.verdict, &decision.policy_version), (Verdict::Defer, &of_ours));
    }
    assert_eq!(deployment.fetched.load(Ordering::Relaxed), 1, "all of both shards wait for one load");
    assert_eq!(deployment.policies.versions(), std::slice::from_ref(&of_ours));

    let environments = BTreeMap::from([("production".to_owned(), of_strict.clone())]);
    let policy = ActivePolicies { default: Some(of_ours.clone()), environments };
    let rules = AccountRules { policy, ..AccountRules::default() };
    for (environment, expected) in [("prod", (Verdict::Deny, &of_strict)), ("staging", (Verdict::Defer, &of_ours))] {
        let mut body = payment(501);
        body["environment"] = environment.into();
        let decision = deployment.decide(&body, rules.clone()).await;
        assert_eq!((decision.verdict, &decision.policy_version), expected, "{environment}");
    }
    let mut large = payment(501);
    large["context"]["note"] = "Pay it with care. ".repeat(LARGE / 10).into();
    let decision = deployment.decide(&large, active(&of_ours)).await;
    assert_eq!(&decision.policy_version, &of_ours, "on the thread for large checks too");
}

#[tokio::test]
async fn a_version_that_cannot_be_loaded_decides_nothing_and_nor_does_another() {
    let ours = pack("ours", "defer");
    let wrong = PolicyVersion::parse("ours@1.0.0+000000000000").unwrap();
    let missing = PolicyVersion::parse("gone@1.0.0+000000000000").unwrap();
    let deployment = Deployment::start(vec![(wrong.clone(), ours)]).await;
    for version in [&missing, &wrong] {
        let floor = AccountRules { floor: Some(version.clone()), ..AccountRules::default() };
        for rules in [active(version), floor] {
            // Why not is in the log.
            let missing = EvaluateReply::PolicyMissing { version: version.clone(), is_loading: false };
            assert_eq!(deployment.ask(&payment(1), rules).await, missing);
        }
    }
    assert!(deployment.policies.versions().is_empty());
    // Checks of others go on.
    assert_eq!(deployment.decide(&payment(1), AccountRules::default()).await.verdict, Verdict::Allow);
}

#[tokio::test]
async fn a_request_can_name_the_active_version_and_no_other() {
    let ours = pack("ours", "defer");
    let version = version_of(&ours);
    let deployment = Deployment::start(vec![(version.clone(), ours)]).await;
    let baseline = deployment.decide(&payment(1), AccountRules::default()).await.policy_version;
    let mut body = payment(501);
    body["policy_pack_version"] = version.as_str().into();
    assert_eq!(deployment.decide(&body, active(&version)).await.policy_version, version);
    body["policy_pack_version"] = baseline.as_str().into();
    let EvaluateReply::Invalid(errors) = deployment.ask(&body, active(&version)).await else { panic!("decided") };
    assert_eq!((errors.len(), errors[0].path.as_str()), (1, "policy_pack_version"));
}

#[tokio::test]
async fn the_floor_is_evaluated_beside_the_active_version_and_beside_the_evaluators_own() {
    let (ours, floor) = (pack("ours", "defer"), pack("floor", "deny"));
    let [of_ours, of_floor] = [&ours, &floor].map(version_of);
    let deployment = Deployment::start(vec![(of_ours.clone(), ours), (of_floor.clone(), floor)]).await;
    for rules in [AccountRules::default(), active(&of_ours)] {
        let alone = deployment.decide(&payment(501), rules.clone()).await;
        let rules = AccountRules { floor: Some(of_floor.clone()), ..rules };
        let decision = deployment.decide(&payment(501), rules.clone()).await;
        assert_eq!((decision.verdict, &decision.policy_version), (Verdict::Deny, &alone.policy_version));
        assert_eq!(decision.floor_version.as_ref(), Some(&of_floor));
        let of_floor_alone = |issue: &&stage0_contract::Issue| issue.details.get("policy").is_some();
        assert_eq!(decision.issues.iter().filter(of_floor_alone).count(), 1, "{:#?}", decision.issues);
        let harmless = deployment.decide(&payment(500), rules).await;
        assert_eq!((harmless.verdict, harmless.issues.len()), (Verdict::Allow, 0));
    }
}

#[tokio::test]
async fn a_check_that_is_decided_again_under_its_id_follows_the_new_policy_and_its_run_counts_it_once() {
    let (lax, strict) = (pack("lax", "defer"), pack("strict", "deny"));
    let [of_lax, of_strict] = [&lax, &strict].map(version_of);
    let deployment = Deployment::start(vec![(of_lax.clone(), lax), (of_strict.clone(), strict)]).await;
    let body = |amount: i64| {
        let mut body = payment(amount);
        body["context"]["run_id"] = "r".into();
        body
    };
    for (amount, of_check) in [(500, 0x1000), (501, 0x2000)] {
        for version in [&of_lax, &of_strict, &of_lax] {
            let reply = deployment.ask_as(of_check, &body(amount), active(version)).await;
            let EvaluateReply::Decided(evaluation) = reply else { panic!("not decided: {reply:?}") };
            let refused = if *version == of_strict { Verdict::Deny } else { Verdict::Defer };
            let expected = if amount == 500 { Verdict::Allow } else { refused };
            assert_eq!((evaluation.decision.verdict, &evaluation.decision.policy_version), (expected, version));
        }
        let message = stage0_contract::ShowRun {
            account: AccountId::parse("acc").unwrap(),
            run_id: stage0_contract::RunId::parse("r").unwrap(),
        };
        let ManageReply::Done(run) = deployment.caller.requests.request(&message, WAIT_TIMEOUT).await.unwrap() else {
            panic!("no run")
        };
        assert_eq!(run.iterations, 1, "{amount}");
    }
}

#[tokio::test]
async fn a_bad_request_is_reviewed_by_the_policy_that_would_decide_it_or_not_at_all() {
    let mut ours = pack("ours", "defer");
    let manifest = ours.packs[0].files.get_mut("pack.toml").unwrap();
    manifest.push_str(
        "\n[weakens]\nreason = \"our hours\"\nnumbers = [\"windows.pay_hours\"]\n\n[windows.pay_hours]\nzone = \
         \"Etc/UTC\"\ndays = [\"mon\"]\nopens = \"08:00\"\ncloses = \"16:00\"\n",
    );
    let version = version_of(&ours);
    let deployment = Deployment::start(vec![(version.clone(), ours)]).await;
    let gone = PolicyVersion::parse("gone@1.0.0+000000000000").unwrap();
    let review = async |policy: Option<&PolicyVersion>, named: &PolicyVersion, note: &str| {
        let refused = ReviewRequest {
            account: AccountId::parse("acc").unwrap(),
            constraints: vec![
                "allowed_change_window: pay_hours".to_owned(),
                "allowed_change_window: blue_moon".to_owned(),
                note.to_owned(),
            ],
            policy_pack_version: Some(named.to_string()),
            policy: policy.cloned(),
        };
        let reply = deployment.caller.requests.request(&refused, WAIT_TIMEOUT).await.unwrap();
        reply.errors.into_iter().map(|error| error.path).collect::<Vec<_>>()
    };
    let large = "x".repeat(LARGE);
    for note in ["", &large] {
        assert_eq!(review(Some(&version), &version, note).await, ["constraints[1]"]);
        assert_eq!(review(Some(&version), &gone, note).await, ["constraints[1]", "policy_pack_version"]);
        assert_eq!(review(Some(&gone), &gone, note).await, [""; 0], "another pack's words would be wrong");
        let own = ["constraints[0]", "constraints[1]", "policy_pack_version"];
        assert_eq!(review(None, &version, note).await, own, "by the evaluator's own");
    }
}

#[tokio::test]
async fn a_text_is_masked_by_the_forms_of_each_active_policy_and_left_out_where_one_is_not_there() {
    let with_form = |name: &str| {
        let mut bundle = pack(name, "defer");
        let pattern = format!("(?-u:\\b){name}_live_[0-9a-z]{{20,}}");
        let forms = format!("extends = \"baseline\"\n\n[[forms]]\nkind = \"{name}_key\"\npatterns = ['{pattern}']\n");
        bundle.packs[0].files.insert("secrets.toml".to_owned(), forms);
        bundle
    };
    let (ours, floor) = (with_form("ours"), with_form("house"));
    let [of_ours, of_floor] = [&ours, &floor].map(version_of);
    let deployment = Deployment::start(vec![(of_ours.clone(), ours), (of_floor.clone(), floor)]).await;
    let gone = PolicyVersion::parse("gone@1.0.0+000000000000").unwrap();
    let key = |name: &str| format!("{name}_live_0123456789abcdefghij");
    let text = format!("leaked {} and {} and AKIAIOSFODNN7EXAMPLE", key("ours"), key("house"));
    let masked = async |policies: Vec<PolicyVersion>, floor: Option<&PolicyVersion>| {
        let account = AccountId::parse("acc").unwrap();
        let message = MaskText { account, text: text.clone(), policies, floor: floor.cloned() };
        let masked = deployment.caller.requests.request(&message, WAIT_TIMEOUT).await.unwrap().text;
        ["leaked", "ours_live", "house_live", "AKIA"].map(|part| masked.contains(part))
    };
    assert_eq!(masked(Vec::new(), None).await, [true, true, true, false], "by the evaluator's own");
    assert_eq!(masked(vec![of_ours.clone()], None).await, [true, false, true, false]);
    assert_eq!(masked(vec![of_ours.clone()], Some(&of_floor)).await, [true, false, false, false]);
    assert_eq!(masked(vec![of_ours, gone.clone()], None).await, [false; 4]);
    assert_eq!(masked(Vec::new(), Some(&gone)).await, [false; 4]);
}

#[tokio::test]
async fn the_verdict_with_the_floor_counts_in_the_run() {
    let floor = pack("floor", "deny");
    let version = version_of(&floor);
    let deployment = Deployment::start(vec![(version.clone(), floor)]).await;
    let rules = AccountRules { floor: Some(version), ..AccountRules::default() };
    for (amount, verdict, iterations) in [(501, Verdict::Deny, 1), (1, Verdict::Allow, 1), (1, Verdict::Allow, 2)] {
        let mut body = payment(amount);
        body["context"]["run_id"] = "r".into();
        assert_eq!(deployment.decide(&body, rules.clone()).await.verdict, verdict);
        let message = stage0_contract::ShowRun {
            account: AccountId::parse("acc").unwrap(),
            run_id: stage0_contract::RunId::parse("r").unwrap(),
        };
        let shown = deployment.caller.requests.request(&message, WAIT_TIMEOUT).await.unwrap();
        let counted = match shown {
            ManageReply::Done(run) => run.iterations,
            _ => 0,
        };
        // The denied check reports the first iteration, and the next one is the first that counts.
        assert_eq!(counted, iterations, "{amount}");
    }
}

#[tokio::test]
async fn a_version_that_is_announced_is_loaded_before_a_check_needs_it() {
    let ours = pack("ours", "defer");
    let version = version_of(&ours);
    let deployment = Deployment::start(vec![(version.clone(), ours)]).await;
    let changed = PolicyChanged { account: AccountId::parse("acc").ok(), versions: vec![version.clone()] };
    deployment.caller.notices.publish(&changed).await.unwrap();
    let loaded = async {
        while deployment.policies.versions() != [version.clone()] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(WAIT_TIMEOUT, loaded).await.unwrap();
    assert_eq!(deployment.decide(&payment(501), active(&version)).await.policy_version, version);
    assert_eq!(deployment.fetched.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_pack_is_validated_without_being_kept() {
    let deployment = Deployment::start(Vec::new()).await;
    let account = AccountId::parse("acc").unwrap();
    let good = ValidatePolicy { account: account.clone(), by_operator: false, bundle: pack("ours", "defer") };
    let reply = deployment.caller.requests.request(&good, WAIT_TIMEOUT).await.unwrap();
    let ValidatePolicyReply::Valid(summary) = reply else { panic!("{reply:?}") };
    assert_eq!(summary.version, version_of(&good.bundle));
    let mut bad = good.clone();
    bad.bundle.packs[0].files.remove("codes.toml");
    let reply = deployment.caller.requests.request(&bad, WAIT_TIMEOUT).await.unwrap();
    let ValidatePolicyReply::Invalid(faults) = reply else { panic!("{reply:?}") };
    assert!(faults.iter().any(|fault| fault.message.contains("LARGE_AMOUNT")), "{faults:#?}");
    assert!(deployment.policies.versions().is_empty());
}
