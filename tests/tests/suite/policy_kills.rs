//! Processes are killed while policies are activated and rolled back under load: what is active afterwards is what was
//! acknowledged, or what was under way, everywhere the same, and no answer mixes two policies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Agent, Api, Stack, Team};

use crate::policies::{activate, decided, publish};

const RECOVERY_TIMEOUT: Duration = Duration::from_secs(30);
const MILD: &str = "1.0.0";
const STRICT: &str = "2.0.0";

/// A pack that forbids these tools. The strict one forbids one more than the mild one, so that neither the change to it
/// nor the way back needs a reason.
fn pack(version: &str) -> Value {
    let tools: &[&str] = if version == STRICT { &["calculator", "web_search"] } else { &["calculator"] };
    let rule = |tool: &&str| {
        format!(
            "@id(\"acme.{tool}\")\n@effect(\"deny\")\n@code(\"TOOL_IS_FORBIDDEN\")\n@message(\"not used here\")\n\
             forbid (principal, action, resource)\nwhen {{ context.tools.contains(\"{tool}\") }};\n"
        )
    };
    let case = |tool: &&str| {
        json!({"id": tool, "expect": ["DENY"], "codes": ["TOOL_IS_FORBIDDEN"],
            "request": {"goal": "Carry out the step that was planned", "tools": [tool]}})
    };
    let manifest = format!("name = \"acme\"\nversion = \"{version}\"\nextends = \"baseline@2\"\n");
    let codes = "[TOOL_IS_FORBIDDEN]\nmeaning = \"The tool is not used here.\"\nremedy = \"Use another one.\"\n";
    let cases: Vec<Value> = tools.iter().map(case).collect();
    json!({"packs": [{"files": {"pack.toml": manifest, "own.cedar": tools.iter().map(rule).collect::<String>(),
        "codes.toml": codes, "cases.json": Value::from(cases).to_string()}}]})
}

/// Both versions, published, with the mild one active.
struct Policies {
    team: Team,
    agent: Agent,
    /// What each version decides about a search.
    verdicts: BTreeMap<String, &'static str>,
    mild: String,
    strict: String,
}

impl Policies {
    async fn prepare(stack: &Stack) -> Self {
        let team = Team::caller(stack).await;
        let agent = team.agent().await;
        let mild = publish(&team.admin, &pack(MILD)).await;
        let strict = publish(&team.admin, &pack(STRICT)).await;
        activate(&team.admin, &mild, &json!({})).await;
        let verdicts = BTreeMap::from([(mild.clone(), "ALLOW"), (strict.clone(), "DENY")]);
        Self { team, agent, verdicts, mild, strict }
    }

    fn at(&self, url: &str) -> Api {
        self.agent.api.at(url)
    }

    /// Asserts that the verdict of an answer is that of its version.
    fn assert_whole(&self, answer: Option<(String, String)>) -> Option<String> {
        let (verdict, version) = answer?;
        assert_eq!(self.verdicts.get(&version).copied(), Some(verdict.as_str()), "{version}");
        Some(version)
    }

    /// What is active, once the API answers again.
    async fn active(&self, url: &str) -> String {
        let admin = self.team.admin.at(url);
        let mut active = None;
        let known = async || {
            let answer = admin.try_send(reqwest::Method::GET, "/v1/policies/active", &[], None).await;
            active = answer.ok().and_then(|answer| answer.body["own"]["default"].as_str().map(str::to_owned));
            active.is_some()
        };
        wait_for("what is active", RECOVERY_TIMEOUT, known).await;
        active.unwrap()
    }

    /// Every gateway decides by what is active, and the newest change is what made it so.
    async fn assert_one_is_active(&self, urls: &[String]) -> String {
        let active = self.active(&urls[0]).await;
        for url in urls {
            let decides =
                async || self.assert_whole(decided(&self.at(url), &Api::harmless()).await) == Some(active.clone());
            wait_for("it decides", RECOVERY_TIMEOUT, decides).await;
        }
        let history = self.team.admin.at(&urls[0]).get("/v1/policies/history").await.expect(200)["items"].clone();
        assert_eq!(history[0]["version"], json!(active), "{history:#}");
        let numbers: Vec<u64> =
            history.as_array().unwrap().iter().map(|change| change["sequence"].as_u64().unwrap()).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] == pair[1] + 1), "{numbers:?}");
        active
    }
}

/// Activates the strict version and rolls back, in turn, as long as it gets an answer. What was acknowledged last, and
/// what may have been under way.
async fn change_until_killed(admin: Api, mild: String, strict: String, active: String) -> [String; 2] {
    let mut active = active;
    loop {
        let (path, next) = if active == mild {
            (format!("/v1/policies/{strict}/activate"), &strict)
        } else {
            ("/v1/policies/rollback".to_owned(), &mild)
        };
        let body = json!({"expected": active, "reason": "in turn"}).to_string().into_bytes();
        let sent = [("content-type", "application/json")];
        match admin.try_send(reqwest::Method::POST, &path, &sent, Some(body)).await {
            Ok(answer) if answer.status == 200 => active.clone_from(next),
            Ok(_) | Err(_) => return [active, next.clone()],
        }
    }
}

/// A few milliseconds, as a machine's own randomness has it.
fn some_time() -> Duration {
    use std::hash::{BuildHasher as _, Hasher as _};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    Duration::from_millis(20 + random % 400)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn dev_killed_while_policies_change_comes_back_with_the_old_or_the_new_one() {
    let mut stack = Stack::build().dev().await;
    let policies = Policies::prepare(&stack).await;
    let mut active = policies.assert_one_is_active(&stack.urls).await;
    assert_eq!(active, policies.mild);
    for _ in 0..4 {
        let admin = policies.team.admin.at(&stack.urls[0]);
        let (mild, strict) = (policies.mild.clone(), policies.strict.clone());
        let changes = tokio::spawn(change_until_killed(admin, mild, strict, active));
        tokio::time::sleep(some_time()).await;
        stack.kill_dev();
        let possible = changes.await.unwrap();
        stack.start_dev();
        active = policies.assert_one_is_active(&stack.urls).await;
        assert!(possible.contains(&active), "{active} is active, not one of {possible:?}");
    }
    assert_eq!(policies.team.admin.at(&stack.urls[0]).verify().await["ok"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_keystore_and_evaluators_killed_while_policies_change_never_decide_by_two() {
    let mut stack = Stack::build().gateways(2).evaluators(2).nats().await;
    let policies = Arc::new(Policies::prepare(&stack).await);
    let mut active = policies.assert_one_is_active(&stack.urls).await;
    let ends = Arc::new(AtomicBool::new(false));
    let callers = stack.urls.clone().into_iter().map(|url| {
        let (policies, ends) = (Arc::clone(&policies), Arc::clone(&ends));
        tokio::spawn(async move {
            let mut answered = 0;
            while !ends.load(Ordering::SeqCst) {
                let answer = decided(&policies.at(&url), &Api::harmless()).await;
                answered += usize::from(policies.assert_whole(answer).is_some());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            answered
        })
    });
    let callers: Vec<_> = callers.collect();
    for round in 0..3 {
        let (admin, evaluator) = (policies.team.admin.clone(), round % 2);
        let (mild, strict) = (policies.mild.clone(), policies.strict.clone());
        let changes = tokio::spawn(change_until_killed(admin, mild, strict, active));
        tokio::time::sleep(some_time()).await;
        stack.restart_evaluator(evaluator);
        stack.keystore.as_mut().unwrap().kill();
        let possible = changes.await.unwrap();
        stack.start_keystore();
        active = policies.assert_one_is_active(&stack.urls).await;
        assert!(possible.contains(&active), "{active} is active, not one of {possible:?}");
    }
    ends.store(true, Ordering::SeqCst);
    for caller in callers {
        assert!(caller.await.unwrap() > 20, "there was load");
    }
    assert_eq!(policies.team.admin.verify().await["ok"], true);
}
