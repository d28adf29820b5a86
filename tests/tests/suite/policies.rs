//! Policies that are published and activated on a running product: within a second everywhere, for one account or one
//! environment, with a floor that none can weaken, and the same after a restart.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Api, Raw, Stack, Team};

/// What the product promises.
const ACTIVATION_TIMEOUT: Duration = Duration::from_secs(1);
/// Beside other tests a pack may wait long for its turn.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(30);
const CODE: &str = "TOOL_IS_FORBIDDEN";

/// A pack that extends the baseline and forbids one tool.
pub(crate) fn pack(name: &str, version: &str, tool: &str) -> Value {
    let manifest = format!("name = \"{name}\"\nversion = \"{version}\"\nextends = \"baseline@2\"\n");
    let rules = format!(
        "@id(\"{name}.tool\")\n@effect(\"deny\")\n@code(\"{CODE}\")\n@message(\"this tool is not used here\")\n\
         @details(\"tools\")\nforbid (principal, action, resource)\nwhen {{ context.tools.contains(\"{tool}\") }};\n"
    );
    let codes = format!("[{CODE}]\nmeaning = \"The tool is not used here.\"\nremedy = \"Use another one.\"\n");
    let cases = json!([{"id": "tool", "expect": ["DENY"], "codes": [CODE],
        "request": {"goal": "Carry out the step that was planned", "tools": [tool]}}]);
    json!({"packs": [{"files": {"pack.toml": manifest, "own.cedar": rules, "codes.toml": codes,
        "cases.json": cases.to_string()}}]})
}

/// Of the operator, who says that it is for every account.
fn for_all(mut pack: Value) -> Value {
    pack["all_accounts"] = json!(true);
    pack
}

pub(crate) async fn publish(api: &Api, pack: &Value) -> String {
    let published = api.post("/v1/policies", pack).await.expect(201);
    published["version"].as_str().unwrap().to_owned()
}

pub(crate) async fn activate(api: &Api, version: &str, body: &Value) -> Value {
    api.post(&format!("/v1/policies/{version}/activate"), body).await.expect(200)
}

/// What accepts all that a version makes looser.
pub(crate) async fn accepting(api: &Api, version: &str) -> Value {
    let diff = api.get(&format!("/v1/policies/{version}/diff")).await.expect(200);
    json!({"accept_flips": diff["flips"], "diff_digest": diff["diff_digest"], "reason": "reviewed"})
}

fn harmless_in(environment: &str) -> Value {
    let mut body = Api::harmless();
    body["environment"] = json!(environment);
    body
}

/// The verdict and the version that decided; none where there was no answer.
pub(crate) async fn decided(api: &Api, body: &Value) -> Option<(String, String)> {
    let sent = [("content-type", "application/json")];
    let answer =
        api.try_send(reqwest::Method::POST, "/check", &sent, Some(body.to_string().into_bytes())).await.ok()?;
    let text = |name: &str| answer.body[name].as_str().map(str::to_owned);
    if answer.status == 200 { text("verdict").zip(text("policy_version")) } else { None }
}

async fn until_decided_by(api: &Api, body: &Value, version: &str, verdict: &str, timeout: Duration) {
    let wanted = (verdict.to_owned(), version.to_owned());
    wait_for(&format!("{wanted:?}"), timeout, async || decided(api, body).await.as_ref() == Some(&wanted)).await;
}

#[tokio::test]
async fn an_activation_decides_at_every_gateway_within_a_second_and_so_does_its_rollback() {
    let stack = Stack::build().gateways(2).evaluators(2).nats().await;
    let team = Team::caller(&stack).await;
    let (agent, body) = (team.agent().await, Api::harmless());
    let before = decided(&agent.api, &body).await.unwrap();
    assert_eq!(before.0, "ALLOW");
    let first = publish(&team.admin, &pack("acme", "1.0.0", "web_search")).await;
    let again = team.admin.post("/v1/policies", &pack("acme", "1.0.0", "web_search")).await.expect(200);
    assert_eq!(again["version"], json!(first), "which is no change");
    team.admin.post("/v1/policies", &pack("acme", "1.0.0", "calculator")).await.assert_error(409, "conflict");
    assert_eq!(decided(&agent.api, &body).await.as_ref(), Some(&before), "publishing activates nothing");
    let shown = async || team.admin.get(&format!("/v1/policies/{first}")).await.expect(200);
    let everywhere = async || {
        let evaluators = shown().await["evaluators"].as_array().unwrap().clone();
        evaluators.len() == 2 && evaluators.iter().all(|evaluator| evaluator["loaded"] == true)
    };
    wait_for("every evaluator has it", RECOVERY_TIMEOUT, everywhere).await;

    activate(&team.admin, &first, &json!({"reason": "no searches"})).await;
    for url in &stack.urls {
        until_decided_by(&agent.api.at(url), &body, &first, "DENY", ACTIVATION_TIMEOUT).await;
    }
    // Another account is decided as before.
    assert_eq!(decided(&stack.api, &body).await.as_ref(), Some(&before));
    let asks = json!({"expected": before.1});
    team.admin.post("/v1/policies/rollback", &asks).await.assert_error(409, "conflict");
    team.admin.post("/v1/policies/rollback", &json!({"expected": first, "reason": "too much"})).await.expect(200);
    for url in &stack.urls {
        until_decided_by(&agent.api.at(url), &body, &before.1, "ALLOW", ACTIVATION_TIMEOUT).await;
    }
    team.admin.post("/v1/policies/rollback", &json!({})).await.assert_error(409, "conflict");

    let history = team.admin.get("/v1/policies/history").await.expect(200)["items"].clone();
    let kinds: Vec<_> = history.as_array().unwrap().iter().map(|change| change["kind"].clone()).collect();
    assert_eq!(kinds, ["rolled_back", "activated"]);
    let lines = team.admin.lines().await;
    let of = |kind: &str| lines.iter().filter(|line| line["type"] == kind).cloned().collect::<Vec<_>>();
    let (activated, rolled_back) = (of("policy.activated"), of("policy.rolled_back"));
    assert_eq!((of("policy.published").len(), activated.len(), rolled_back.len()), (1, 1, 1));
    assert_eq!((&activated[0]["policy_version"], &activated[0]["reason"]), (&json!(first), &json!("no searches")));
    assert_eq!(rolled_back[0]["details"]["from"], json!(first));
    assert_eq!(team.admin.verify().await["ok"], true);
}

#[tokio::test]
async fn a_looser_policy_is_activated_only_where_what_is_looser_is_accepted() {
    let stack = Stack::build().gateways(2).evaluators(2).nats().await;
    let team = Team::caller(&stack).await;
    let (agent, body) = (team.agent().await, Api::harmless());
    let strict = publish(&team.admin, &pack("acme", "1.0.0", "web_search")).await;
    let mild = publish(&team.admin, &pack("acme", "1.1.0", "calculator")).await;
    let activated = activate(&team.admin, &strict, &json!({})).await;
    assert_eq!(activated["accepted_flips"], Value::Null, "it only adds to the baseline: {activated:#}");
    until_decided_by(&agent.api, &body, &strict, "DENY", ACTIVATION_TIMEOUT).await;

    let diff = team.admin.get(&format!("/v1/policies/{mild}/diff")).await.expect(200);
    let flips = diff["flips"].as_u64().unwrap();
    assert_eq!((&diff["old"], &diff["cases"][0]["direction"]), (&json!(strict), &json!("looser")), "{diff:#}");
    assert_eq!((&diff["cases"][0]["case"], &diff["cases"][0]["from"]), (&json!("tool"), &json!("DENY")));
    let path = format!("/v1/policies/{mild}/activate");
    let digest = &diff["diff_digest"];
    for refused in [
        json!({}),
        json!({"reason": "reviewed"}),
        json!({"reason": "reviewed", "accept_flips": flips + 1}),
        json!({"reason": "reviewed", "accept_flips": flips, "diff_digest": "0".repeat(64)}),
    ] {
        let answer = team.admin.post(&path, &refused).await;
        answer.assert_error(409, "conflict");
    }
    let answer = team.admin.post(&path, &json!({})).await;
    let message = answer.body["message"].as_str().unwrap();
    assert!(message.contains(&format!("`accept_flips`: {flips}")) && message.contains("`tool`"), "{message}");
    team.admin.post(&path, &json!({"accept_flips": flips})).await.assert_error(422, "validation_failed");
    assert_eq!(decided(&agent.api, &body).await.unwrap().1, strict, "nothing changed");

    let accepted = json!({"reason": "calculators", "accept_flips": flips, "diff_digest": digest});
    let activated = activate(&team.admin, &mild, &accepted).await;
    assert_eq!((&activated["accepted_flips"], &activated["diff_digest"]), (&json!(flips), digest));
    until_decided_by(&agent.api, &body, &mild, "ALLOW", ACTIVATION_TIMEOUT).await;
    // The way back is stricter, and a rollback to what was accepted once needs no acceptance.
    let back = activate(&team.admin, &strict, &accepting(&team.admin, &strict).await).await;
    until_decided_by(&agent.api, &body, &strict, "DENY", ACTIVATION_TIMEOUT).await;
    team.admin.post("/v1/policies/rollback", &json!({"expected": strict})).await.expect(200);
    until_decided_by(&agent.api, &body, &mild, "ALLOW", ACTIVATION_TIMEOUT).await;

    let history = team.admin.get("/v1/policies/history").await.expect(200)["items"].clone();
    let accepted: Vec<_> = history.as_array().unwrap().iter().map(|change| change["accepted_flips"].clone()).collect();
    assert_eq!(accepted, [Value::Null, back["accepted_flips"].clone(), json!(flips), Value::Null]);
    let lines = team.admin.lines().await;
    let lines: Vec<_> = lines.iter().filter(|line| line["type"] == "policy.activated").collect();
    assert_eq!(lines.len(), 3, "the refused ones have none");
    assert_eq!(lines[1]["details"]["accepted_flips"], json!(flips));
    assert_eq!(&lines[1]["details"]["diff_digest"], digest);
    assert!(lines[0]["details"]["diff_digest"].is_string(), "of the first one, too: {}", lines[0]);
    assert_eq!(team.admin.verify().await["ok"], true);
}

#[tokio::test]
async fn an_environment_has_its_own_policy_by_all_of_its_names_and_a_restart_changes_nothing() {
    let mut stack = Stack::build().dev().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent().await;
    let version = publish(&team.admin, &pack("acme", "1.0.0", "web_search")).await;
    activate(&team.admin, &version, &json!({"environment": "production"})).await;
    until_decided_by(&agent.api, &harmless_in("prod"), &version, "DENY", ACTIVATION_TIMEOUT).await;
    for restarted in [false, true] {
        if restarted {
            stack.restart_dev();
        }
        let agent = agent.api.at(&stack.urls[0]);
        let first = agent.check(&harmless_in("production")).await;
        // On a machine that is busy it may take longer than the start waits for it.
        let is_loading = || first.body["message"].as_str().is_some_and(|text| text.contains("is still being loaded"));
        assert!(first.status == 200 || restarted && is_loading(), "{}", first.text);
        for name in ["production", "PRD", "live"] {
            until_decided_by(&agent, &harmless_in(name), &version, "DENY", RECOVERY_TIMEOUT).await;
        }
        for other in [harmless_in("staging"), Api::harmless()] {
            assert_eq!(decided(&agent, &other).await.unwrap().0, "ALLOW", "{other}");
        }
    }
    let team = team.at(&stack.urls[0]);
    let active = team.admin.get("/v1/policies/active").await.expect(200);
    assert_eq!(active["own"], json!({"environments": {"production": version}}));
    team.admin.delete(&format!("/v1/policies/{version}")).await.assert_error(409, "conflict");
}

#[tokio::test]
async fn no_pack_of_an_account_weakens_the_operators_floor() {
    let stack = Stack::build().dev().await;
    let team = Team::caller(&stack).await;
    let (agent, body) = (team.agent().await, Api::harmless());
    let floor = publish(&stack.operator, &for_all(pack("house", "1.0.0", "web_search"))).await;
    let own = publish(&team.admin, &pack("acme", "1.0.0", "calculator")).await;
    team.admin
        .post(&format!("/v1/policies/{floor}/activate"), &json!({"floor": true}))
        .await
        .assert_error(403, "scope_missing");
    activate(&stack.operator, &floor, &json!({"floor": true})).await;
    activate(&team.admin, &own, &json!({})).await;
    until_decided_by(&agent.api, &body, &own, "DENY", ACTIVATION_TIMEOUT).await;
    let answer = agent.api.check(&body).await.expect(200);
    assert_eq!(answer["floor_version"], json!(floor));
    let issue = answer["issues"].as_array().unwrap().iter().find(|issue| issue["code"] == CODE).unwrap();
    assert_eq!(issue["details"]["policy"], json!(floor), "{issue:#}");
    // What neither forbids is allowed, and what the account forbids is denied.
    let with = |tool: &str| {
        let mut body = Api::harmless();
        body["tools"] = json!([tool]);
        body["success_criteria"] = json!(["found"]);
        body
    };
    assert_eq!(decided(&agent.api, &with("read_file")).await.unwrap().0, "ALLOW");
    assert_eq!(decided(&agent.api, &with("calculator")).await.unwrap().0, "DENY");
    stack.operator.post("/v1/policies/rollback", &json!({"floor": true})).await.expect(200);
    until_decided_by(&agent.api, &body, &own, "ALLOW", ACTIVATION_TIMEOUT).await;
}

#[tokio::test]
async fn a_pack_with_a_fault_changes_nothing_and_is_a_422_with_file_and_line() {
    let stack = Stack::build().dev().await;
    let team = Team::caller(&stack).await;
    let mut broken = pack("acme", "1.0.0", "web_search");
    let rules = broken["packs"][0]["files"]["own.cedar"].as_str().unwrap().replace("context.tools", "context.toolz");
    broken["packs"][0]["files"]["own.cedar"] = json!(rules);
    let refused = team.admin.post("/v1/policies", &broken).await;
    refused.assert_error(422, "validation_failed");
    let errors = refused.body["errors"].as_array().unwrap();
    assert!(errors.iter().any(|error| error["path"].as_str().unwrap().starts_with("own.cedar:")), "{errors:#?}");
    let mut uncovered = pack("acme", "1.0.0", "web_search");
    uncovered["packs"][0]["files"]["cases.json"] = json!("[]");
    team.admin.post("/v1/policies", &uncovered).await.assert_error(422, "validation_failed");
    let mut hostile = pack("acme", "1.0.0", "web_search");
    hostile["packs"][0]["files"]["../../etc/passwd"] = json!("x");
    team.admin.post("/v1/policies", &hostile).await.assert_error(422, "validation_failed");
    let listed = team.admin.get("/v1/policies").await.expect(200);
    assert_eq!(listed["items"], json!([]));
    assert!(team.admin.lines().await.is_empty());
}

#[tokio::test]
async fn policies_of_one_account_are_unknown_to_another() {
    let stack = Stack::build().dev().await;
    let (team, other) = (Team::caller(&stack).await, Team::caller(&stack).await);
    let version = publish(&team.admin, &pack("acme", "1.0.0", "web_search")).await;
    other.admin.get(&format!("/v1/policies/{version}")).await.assert_error(404, "not_found");
    let path = format!("/v1/policies/{version}/activate");
    other.admin.post(&path, &json!({})).await.assert_error(404, "not_found");
    other.admin.post(&path, &json!({"account": team.account})).await.assert_error(404, "not_found");
    other.admin.delete(&format!("/v1/policies/{version}")).await.assert_error(404, "not_found");
    assert_eq!(other.admin.get("/v1/policies").await.expect(200)["items"], json!([]));
    let shared = publish(&stack.operator, &for_all(pack("house", "1.0.0", "calculator"))).await;
    activate(&other.admin, &shared, &json!({})).await;
    let agent = other.agent().await;
    until_decided_by(&agent.api, &Api::harmless(), &shared, "ALLOW", ACTIVATION_TIMEOUT).await;
}

#[tokio::test]
async fn a_policy_that_is_activated_while_a_body_arrives_decides_it() {
    let stack = Stack::build().dev().await;
    let (_, key, _) = stack.operator.account("slow", None, &["check", "policies:manage"]).await;
    let api = stack.api.with_key(&key);
    let version = publish(&api, &pack("acme", "1.0.0", "web_search")).await;
    // Its key is known to the gateway from here on, so that it is let in at once.
    assert_eq!(decided(&api, &Api::harmless()).await.unwrap().0, "ALLOW");
    let body = Api::harmless().to_string();
    let mut check = Raw::connect(&stack.address(), &stack.ca()).await;
    let head = format!(
        "POST /check HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    check.send(head.as_bytes()).await;
    check.send(&body.as_bytes()[..10]).await;
    activate(&api, &version, &json!({})).await;
    until_decided_by(&api, &Api::harmless(), &version, "DENY", ACTIVATION_TIMEOUT).await;
    check.send(&body.as_bytes()[10..]).await;
    let answer = check.rest().await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(&version), "{answer}");
}

#[tokio::test]
async fn what_the_accounts_own_policy_takes_for_a_secret_is_masked_in_what_people_write() {
    const SECRET: &str = "acme_live_0123456789abcdefghij";
    let stack = Stack::build().dev().await;
    let team = Team::verified(&stack).await;
    let (agent, member) = (team.agent().await, team.member("Ann", &[]).await);
    let mut own = pack("acme", "1.0.0", "web_search");
    let forms = "extends = \"baseline\"\n\n[[forms]]\nkind = \"acme_key\"\npatterns = \
                 ['(?-u:\\b)acme_live_[0-9a-z]{20,}']\n";
    own["packs"][0]["files"]["secrets.toml"] = json!(forms);
    let version = publish(&team.admin, &own).await;
    activate(&team.admin, &version, &json!({})).await;
    until_decided_by(&agent.api, &Api::harmless(), &version, "DENY", ACTIVATION_TIMEOUT).await;

    let waiting = agent.api.deferred(&Api::deployment()).await;
    member.api.deny(&waiting, &format!("it uses {SECRET}")).await.expect(200);
    let denied = member.api.approval(&waiting).await.expect(200);
    assert_eq!(denied["votes"][0]["reason"], "it uses [redacted]", "{denied:#}");
    let stop = json!({"scope": "tool", "value": "web_search", "reason": format!("leaked {SECRET}")});
    let stop = team.admin.post("/v1/stops", &stop).await.expect(201);
    assert_eq!(stop["reason"], "leaked [redacted]");
    let lines = team.admin.get("/v1/decisions/export").await.text;
    assert!(lines.contains("it uses [redacted]") && !lines.contains(SECRET), "{lines}");
}

/// One check under load.
struct Seen {
    began: Instant,
    ended: Instant,
    status: u16,
    /// The request id, the verdict and the version.
    said: [String; 3],
    text: String,
}

impl Seen {
    async fn of(api: &Api) -> Self {
        let began = Instant::now();
        let answer = api.check(&Api::harmless()).await;
        let said = ["request_id", "verdict", "policy_version"]
            .map(|name| answer.body[name].as_str().unwrap_or_default().to_owned());
        Self { began, ended: Instant::now(), status: answer.status, said, text: answer.text }
    }
}

/// A version that was made active by a call between two times.
struct Change {
    from: Instant,
    until: Instant,
    version: String,
}

impl Change {
    /// The versions that may decide a check: the one that was active a second before it, and all since.
    fn allowed<'a>(all: &'a [Self], seen: &Seen) -> BTreeSet<&'a str> {
        let is_old = |change: &&Self| change.until + ACTIVATION_TIMEOUT <= seen.began;
        let (old, new) = (all.iter().rfind(is_old), all.iter().filter(|change| !is_old(change)));
        let new = new.filter(|change| change.from <= seen.ended);
        old.into_iter().chain(new).map(|change| change.version.as_str()).collect()
    }
}

fn p99(seen: &[&Seen]) -> Duration {
    let mut took: Vec<_> = seen.iter().map(|seen| seen.ended - seen.began).collect();
    took.sort();
    took.get(took.len() * 99 / 100).copied().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_check_under_load_is_refused_while_versions_are_activated_and_rolled_back() {
    const CALLERS: usize = 16;
    const CHANGES: usize = 20;
    let stack = Stack::build().gateways(2).evaluators(3).nats().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent().await;
    let versions = [
        publish(&team.admin, &pack("acme", "1.0.0", "web_search")).await,
        publish(&team.admin, &pack("acme", "1.1.0", "calculator")).await,
    ];
    let mut changes = Vec::new();
    for version in [&versions[1], &versions[0]] {
        let body = accepting(&team.admin, version).await;
        let from = Instant::now();
        activate(&team.admin, version, &body).await;
        changes.push(Change { from, until: Instant::now(), version: version.clone() });
        let verdict = if *version == versions[0] { "DENY" } else { "ALLOW" };
        for url in &stack.urls {
            until_decided_by(&agent.api.at(url), &Api::harmless(), version, verdict, RECOVERY_TIMEOUT).await;
        }
    }
    let others = team.admin.lines().await.iter().filter(|line| line["type"] == "decision.recorded").count();
    let ends = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let (api, ends) = (agent.api.at(&stack.urls[number % stack.urls.len()]), Arc::clone(&ends));
            tokio::spawn(async move {
                let mut all = Vec::new();
                while !ends.load(Ordering::SeqCst) {
                    all.push(Seen::of(&api).await);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                all
            })
        })
        .collect();
    let mut accepted = accepting(&team.admin, &versions[1]).await;
    accepted["expected"] = json!(versions[0]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let storm = Instant::now();
    for round in 1..=CHANGES {
        let version = &versions[round % 2];
        let from = Instant::now();
        if round % 2 == 1 {
            activate(&team.admin, version, &accepted).await;
        } else {
            let body = json!({"expected": versions[1], "reason": "back"});
            team.admin.post("/v1/policies/rollback", &body).await.expect(200);
        }
        changes.push(Change { from, until: Instant::now(), version: version.clone() });
        // Every fifth is left alone, so that only its version may decide.
        tokio::time::sleep(Duration::from_millis(if round % 5 == 0 { 1_500 } else { 200 })).await;
    }
    ends.store(true, Ordering::SeqCst);
    let mut all = Vec::new();
    for caller in callers {
        all.extend(caller.await.unwrap());
    }
    let refused: Vec<_> = all.iter().filter(|seen| seen.status != 200).map(|seen| &seen.text).collect();
    assert!(refused.is_empty(), "{} of {} were refused: {:?}", refused.len(), all.len(), refused.first());
    assert!(all.len() > 500, "there was load: {}", all.len());
    for seen in &all {
        let [id, verdict, version] = &seen.said;
        // A rule of one version never decides under the name of the other.
        assert_eq!(*verdict, if *version == versions[0] { "DENY" } else { "ALLOW" }, "{version}");
        let allowed = Change::allowed(&changes, seen);
        assert!(allowed.contains(version.as_str()), "{id} was decided by {version}, and not by one of {allowed:?}");
    }
    let alone = |seen: &&Seen| Change::allowed(&changes, seen).len() == 1 && seen.began > storm;
    assert!(all.iter().any(|seen| alone(&seen)), "some were asked when only one version could decide");
    let (before, during): (Vec<&Seen>, Vec<&Seen>) = all.iter().partition(|seen| seen.ended < storm);
    println!("{} checks: p99 {:?} before, {:?} during {CHANGES} changes", all.len(), p99(&before), p99(&during));

    let lines = team.admin.lines().await;
    let recorded: Vec<_> = lines.iter().filter(|line| line["type"] == "decision.recorded").collect();
    assert_eq!(recorded.len(), others + all.len(), "each once");
    let of =
        |line: &Value| ["request_id", "verdict", "policy_version"].map(|name| line[name].as_str().unwrap().to_owned());
    let recorded: BTreeSet<_> = recorded.into_iter().map(of).collect();
    assert!(all.iter().all(|seen| recorded.contains(&seen.said)), "a record says something else than its answer");
    assert_eq!(team.admin.verify().await["ok"], true);
}
