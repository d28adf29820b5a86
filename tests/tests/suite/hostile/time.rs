//! Checks that are made to be dear in time: they end within their budget, hold no evaluator, and other accounts' checks
//! go on.
//!
//! Lists at their bounds against as many targets, each constraint that takes a list, words that are nearly the same,
//! wildcards, and near misses of known names. What is answered may be any lawful status.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stage0_tests::{Api, Stack, Traffic};

/// Of `docker-compose.yml`.
const MEGABYTES: u64 = 512;
/// A check's budget is 2 s; the rest is for a body of 1 MB in an unoptimised build on a busy machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);
/// What the evaluators may still do once the last answer is there.
const IDLE_SHARE: u32 = 4;
const LAWFUL: [u16; 5] = [200, 413, 422, 429, 503];
const LISTS: [&str; 9] = [
    "allowed_tools",
    "denied_tools",
    "allowed_mcp_servers",
    "denied_mcp_servers",
    "require_approval_for",
    "allowed_environment",
    "required_role",
    "resource_scope",
    "allowed_side_effects",
];

/// 200 constraints of 1,000 characters, each a list of entries that match nothing.
fn lists(name: &str, entry: impl Fn(usize) -> String) -> Vec<String> {
    let list = |number: usize| {
        let mut text = format!("{name}: ");
        for at in 0.. {
            let entry = entry(number * 1_000 + at);
            if text.chars().count() + entry.chars().count() + 1 > 1_000 {
                return text.trim_end_matches(',').to_owned();
            }
            text.push_str(&entry);
            text.push(',');
        }
        text
    };
    (0..200).map(list).collect()
}

fn targets(entry: impl Fn(usize) -> String) -> Vec<String> {
    (0..1_000).map(entry).collect()
}

fn request(constraints: &[String], tools: &[String], context: &Value) -> Value {
    json!({"goal": "Carry out the planned change", "success_criteria": ["it is done"], "side_effects": ["deploy"],
        "constraints": constraints, "tools": tools, "context": context})
}

fn attacks() -> Vec<(String, Value)> {
    let mut attacks = Vec::new();
    // Two characters an entry, as many as fit; and entries that differ from the targets at their end alone.
    let short = |n: usize| char::from(b'a' + u8::try_from(n % 26).unwrap()).to_string();
    let long = |n: usize| format!("mcp__server__{}x{n:04}", "a".repeat(80));
    let tools: Vec<String> = (0..200).map(|n| format!("mcp__server__{}y{n:04}", "a".repeat(80))).collect();
    let context = json!({
        "active_mcp_servers": targets(|n| format!("server-{n:04}{}", "a".repeat(60))),
        "target_resources": targets(|n| format!("staging/{}/{n:04}", "a".repeat(60))),
        "target_tenants": targets(|n| format!("tenant-{n:04}{}", "a".repeat(60))),
        "recent_tools": targets(|n| format!("tool-{n:04}{}", "a".repeat(60))),
        "environment": "staging", "actor_role": "deployer", "tenant_id": "t",
    });
    for name in LISTS {
        attacks.push((format!("{name}, short entries"), request(&lists(name, short), &tools, &context)));
        attacks.push((format!("{name}, long entries"), request(&lists(name, long), &tools, &context)));
        let stars = |n: usize| format!("{}{n:04}*", "a".repeat(40));
        attacks.push((format!("{name}, wildcards"), request(&lists(name, stars), &tools, &context)));
    }
    let near = |n: usize| format!("alowed_tolos{n:03}: {}", "x,".repeat(490));
    attacks.push(("near names".to_owned(), request(&(0..200).map(near).collect::<Vec<_>>(), &tools, &context)));
    let mixed: Vec<String> = LISTS.iter().flat_map(|name| lists(name, short).into_iter().take(22)).collect();
    attacks.push(("every list".to_owned(), request(&mixed, &tools, &context)));
    let effects: Vec<String> = (0..200).map(|n| format!("{}{n:03}", "deploi".repeat(160))).collect();
    let mut unknown = request(&[], &tools, &context);
    unknown["side_effects"] = json!(effects);
    attacks.push(("unknown effects".to_owned(), unknown));
    let numbers: Vec<String> = (0..200).map(|n| format!("max_iterations: {}", n + 1)).collect();
    attacks.push(("one limit again and again".to_owned(), request(&numbers, &tools, &context)));
    let scopes = lists("resource_scope", |n| format!("staging/{}*", "%61".repeat(1 + n % 30)));
    let encoded = json!({"target_resources": targets(|n| format!("staging/{}{n}", "%61/../".repeat(100)))});
    attacks.push(("encoded targets".to_owned(), request(&scopes, &tools, &encoded)));
    attacks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_at_their_bounds_are_answered_in_time_and_others_do_not_notice() {
    let mut stack = Stack::build().memory_limit(MEGABYTES).evaluators(2).nats().await;
    let traffic = Traffic::start(&stack, 2, Duration::from_millis(50)).await;
    let mut failures = Vec::new();
    for (attack, body) in attacks() {
        assert!(body.to_string().len() <= 1_000_000, "{attack}: {} bytes", body.to_string().len());
        let began = Instant::now();
        let answer = stack.api.check(&body).await;
        let took = began.elapsed();
        if !LAWFUL.contains(&answer.status) || took > ANSWER_TIMEOUT {
            failures.push(format!("{attack}: {} after {took:?} {:.200}", answer.status, answer.text));
        }
    }
    let asked = traffic.end().await;
    assert!(failures.is_empty(), "{failures:#?}");
    asked.assert_undisturbed("lists at their bounds");
    for (role, process) in stack.processes() {
        assert!(process.is_alive(), "{role}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_expensive_checks_leave_evaluators_free_for_other_accounts() {
    let mut stack = Stack::build().memory_limit(MEGABYTES).evaluators(2).nats().await;
    let traffic = Traffic::start(&stack, 2, Duration::from_millis(50)).await;
    let (_, key, _) = stack.operator.account("attacker", None, &["check"]).await;
    let attacker = stack.api.with_key(&key);
    let bodies: Vec<Value> = attacks().into_iter().map(|(_, body)| body).collect();
    let callers = (0..8).map(|caller: usize| {
        let (attacker, bodies) = (attacker.clone(), bodies.clone());
        tokio::spawn(async move {
            let mut odd = Vec::new();
            for body in bodies.iter().cycle().skip(caller * 4).take(10) {
                match attacker.try_check(body).await {
                    Ok(answer) if LAWFUL.contains(&answer.status) => {}
                    Ok(answer) => odd.push(format!("{} {:.200}", answer.status, answer.text)),
                    Err(error) => odd.push(error.to_string()),
                }
            }
            odd
        })
    });
    let callers: Vec<_> = callers.collect();
    let mut odd = Vec::new();
    for caller in callers {
        odd.extend(caller.await.unwrap());
    }
    // The evaluator stops work that was given up.
    let asked = traffic.end().await;
    let cpu = |stack: &Stack| stack.evaluators.iter().map(stage0_tests::Process::cpu).sum::<Duration>();
    let (before, began) = (cpu(&stack), Instant::now());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (spent, elapsed) = (cpu(&stack) - before, began.elapsed());
    assert!(odd.is_empty(), "{odd:?}");
    asked.assert_undisturbed("eight callers with dear checks");
    assert!(spent < elapsed / IDLE_SHARE, "evaluators work {spent:?} of {elapsed:?} for nobody");
    stack.api.check(&Api::harmless()).await.expect(200);
    for (role, process) in stack.processes() {
        assert!(process.is_alive(), "{role}");
    }
}
