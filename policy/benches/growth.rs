//! The time per byte of expensive texts, in each part of a request and at several sizes, relative to an ordinary check.
//!
//! If the ratio stays the same from one size to the next, the time grows in proportion to the bytes.
//! `cargo bench -p stage0-policy --bench growth`.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss
)]

use std::hint::black_box;
use std::time::Instant;

use serde_json::{Map, Value, json};
use stage0_contract::{
    AccountId, CallerTexts, CheckRequest, EvaluateRequest, MAX_CONTEXT_ENTRIES, MAX_ITEM_CHARS, MAX_ITEMS, RequestId,
    canonical_hash, parse_strict,
};
use stage0_policy::bench_support::{self, TYPICAL_REQUEST};
use stage0_policy::{Engine, Pack, secrets};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NOW: i64 = 1_773_662_400;
const SIZES: [usize; 3] = [10_000, 100_000, 900_000];

type Part = (&'static str, fn(usize) -> Value);

const PARTS: [Part; 23] = [
    ("prose", |bytes| note("Deploy the payments service with care. ", bytes)),
    ("random letters and digits", |bytes| json!({"context": {"note": random(bytes)}})),
    ("secret=secret=", |bytes| note("secret=", bytes)),
    ("secret: secret:", |bytes| note("secret:", bytes)),
    ("secret=${secret=${", |bytes| note("secret=${", bytes)),
    ("cloud keys", |bytes| note("AKIAIOSFODNN7EXAMPLE.", bytes)),
    ("beginnings of cloud keys", |bytes| note("AIzaxAIzaxyzAIza", bytes)),
    ("tokens of many providers", |bytes| note("npm_ hf_ SG. hvs. glpat- xapp-1- dop_v1_ shpat_ ya29. ", bytes)),
    ("logins", |bytes| note("-u a:b1c2 mysql -p", bytes)),
    ("cookies", |bytes| note("cookie: a=", bytes)),
    ("names in sentences", |bytes| note("password is the api key of ", bytes)),
    ("escaped quotes", |bytes| note("secret=\\\"", bytes)),
    ("beginnings of private keys", |bytes| note("-----BEGIN PRIVATE KEY----- -- END ", bytes)),
    ("URLs with passwords", |bytes| note("a://b:c@", bytes)),
    ("a phrase in one character", |bytes| note("\u{fdfa}", bytes)),
    ("wide letters", |bytes| note("ｐａｓｓｗｏｒｄ＝", bytes)),
    ("short texts", |bytes| json!({"context": rows("a", bytes)})),
    (
        "names",
        |bytes| json!({"context": (0..bytes / 20).map(|n| (format!("{n:08}"), json!(0))).collect::<Map<_, _>>()}),
    ),
    ("tools", |bytes| json!({"tools": items("t ", "", bytes)})),
    ("side effects", |bytes| json!({"side_effects": items("a:", "write: ", bytes)})),
    ("lists of tools", |bytes| json!({"constraints": items("t,", "allowed_tools: ", bytes), "tools": ["t"]})),
    ("lists of actions", |bytes| {
        let constraints = items("abcde,", "require_approval_for: ", bytes / 2);
        json!({"constraints": constraints, "side_effects": items("abcdx ", "write: ", bytes / 2)})
    }),
    ("lists of scopes and targets", |bytes| {
        let targets = vec!["ab/".repeat(bytes / 2 / MAX_CONTEXT_ENTRIES / 3 + 1); MAX_CONTEXT_ENTRIES];
        let constraints = items("ab/*,b,", "resource_scope: ", bytes / 2);
        json!({"constraints": constraints, "context": {"target_resources": targets}})
    }),
];

fn note(unit: &str, bytes: usize) -> Value {
    json!({"context": {"note": unit.repeat(bytes / unit.len())}})
}

fn items(unit: &str, start: &str, bytes: usize) -> Vec<String> {
    let text: String = format!("{start}{}", unit.repeat(MAX_ITEM_CHARS)).chars().take(MAX_ITEM_CHARS).collect();
    vec![text; (bytes / MAX_ITEM_CHARS).clamp(1, MAX_ITEMS)]
}

fn rows(text: &str, bytes: usize) -> Map<String, Value> {
    let rows = (bytes / (text.len() + 3)).clamp(1, 40_000).div_ceil(MAX_CONTEXT_ENTRIES);
    (0..rows).map(|n| (n.to_string(), vec![text; MAX_CONTEXT_ENTRIES].into())).collect()
}

fn random(bytes: usize) -> String {
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        u32::try_from(state % 36).unwrap()
    };
    (0..bytes).map(|_| char::from_digit(next(), 36).unwrap()).collect()
}

fn evaluate_request(body: &[u8]) -> EvaluateRequest {
    EvaluateRequest {
        asker: None,
        request_id: RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap(),
        account: AccountId::parse("acc").unwrap(),
        request: CheckRequest::parse(parse_strict(body).unwrap()).ok().unwrap(),
        evaluated_at: NOW,
        operation: None,
        caller: CallerTexts::default(),
        max_runs: None,
    }
}

/// The time of the fastest of five runs.
fn nanoseconds(mut work: impl FnMut()) -> f64 {
    let turn = |work: &mut dyn FnMut()| {
        let began = Instant::now();
        work();
        began.elapsed().as_nanos() as f64
    };
    (0..5).map(|_| turn(&mut work)).fold(f64::INFINITY, f64::min)
}

fn main() {
    let engine = Engine::new(Pack::embedded().unwrap()).unwrap();
    let ordinary = evaluate_request(TYPICAL_REQUEST.as_bytes());
    let decide = |check: &EvaluateRequest| {
        black_box(bench_support::answer(&engine, check).is_some());
    };
    for _ in 0..200 {
        decide(&ordinary);
    }
    let check_time = nanoseconds(|| (0..100).for_each(|_| decide(&ordinary))) / 100.0;
    let byte = check_time / TYPICAL_REQUEST.len() as f64;
    println!("an ordinary check: {:.1} µs, {byte:.1} ns a byte", check_time / 1e3);
    println!("ratio to its byte, at {SIZES:?} bytes; and the largest in ordinary checks");
    for (name, part) in PARTS {
        for (step, stored) in
            [("decide", false), ("decide and store", true), ("read and hash", false), ("secrets", false)]
        {
            let mut ratios = Vec::new();
            let mut checks = 0.0;
            for size in SIZES {
                let mut members = part(size);
                members["goal"] = "read the report".into();
                members["debug_store_input"] = stored.into();
                let body = serde_json::to_vec(&members).unwrap();
                let check = evaluate_request(&body);
                let took = nanoseconds(|| match step {
                    "read and hash" => {
                        let read = parse_strict(&body).unwrap();
                        black_box(canonical_hash(read.as_object().unwrap()));
                        black_box(CheckRequest::parse(read).ok().unwrap().task_hash());
                    }
                    "secrets" => drop(black_box(secrets::find(&check.request, engine.pack().secrets()))),
                    _ => decide(&check),
                });
                ratios.push(format!("{:7.2}", took / body.len() as f64 / byte));
                checks = took / check_time;
            }
            println!("{name:28} {step:17} {} {checks:8.1} checks", ratios.join(" "));
        }
    }
}
