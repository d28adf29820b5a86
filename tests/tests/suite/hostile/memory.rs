//! Bodies that are built to take much memory: every process stays within its container's limit and within 40 times the
//! body above rest.
//!
//! Each shape is as large as the contract allows (1,000,000 bytes, 50,000 JSON values, 1,000 entries of an array in
//! `context`, nested 32 deep). Any documented status is fine; no process may die, and no other account may
//! notice.

use std::time::Duration;

use serde_json::{Map, Value, json};
use stage0_tests::{Answer, Stack, Traffic};

/// Of `docker-compose.yml`.
const MEGABYTES: u64 = 512;
const MAX_BODY_BYTES: usize = 1_000_000;
/// What a process may need above rest for each byte of a body.
const PEAK_TIMES: u64 = 40;
/// What the allocator, other checks and the log need meanwhile.
const NOISE_BYTES: u64 = 16 << 20;
/// Statuses that are allowed for a request within or beyond the bounds.
const LAWFUL: [u16; 6] = [200, 400, 413, 422, 429, 503];

/// Beginnings, middles and ends of what is taken for a secret, and of what is not.
const SECRET_LIKE: [&str; 12] = [
    "secret=",
    "secret=\"",
    "password: '",
    "token=a,",
    "api_key=\\\"x\\\" ",
    "Bearer ",
    "-----BEGIN PRIVATE KEY-----",
    "AKIAIOSFODNN7EXAMPLE",
    "eyJhbGciOiJIUzI1NiJ9.",
    "https://user:secret@",
    "xoxb-1-",
    "secret=secret=\u{200b}",
];

/// Bytes that a text takes in JSON.
fn written_bytes(text: &str) -> usize {
    json!(text).to_string().len() - 2
}

/// As often as it fits into these bytes of JSON.
fn filled(piece: &str, bytes: usize) -> String {
    piece.repeat((bytes / written_bytes(piece)).max(1))
}

fn with_context(context: &Value) -> Value {
    json!({"goal": "Carry out the planned change", "success_criteria": ["it is done"], "context": context})
}

/// A list of texts at its bounds, 200 items of 1,000 characters, or as many of those as four such lists may have in one
/// body.
fn list_of(piece: &str) -> Value {
    let item = piece.repeat(1_000 / piece.chars().count());
    let items = 900_000 / 4 / (written_bytes(&item) + 3);
    json!(vec![item; items.min(200)])
}

/// Secrets and look-alikes in every member that takes text.
fn secrets() -> Vec<(String, Value)> {
    let mut shapes = Vec::new();
    for piece in SECRET_LIKE {
        let long = filled(piece, 900_000);
        for member in ["n", "approved_by", "run_id", "environment", "actor_role", "ticket_id", "output_policy"] {
            shapes.push((format!("{piece} in context.{member}"), with_context(&json!({member: long}))));
        }
        shapes.push((format!("{piece} in a name"), with_context(&json!({long.clone(): 1}))));
        shapes.push((format!("{piece} in an unknown member"), json!({"goal": "Read", "context": {}, "note": long})));
        let many = filled(piece, 880);
        shapes.push((format!("{piece} in an array"), with_context(&json!({"n": vec![many.clone(); 980]}))));
        let nested = (0..20).fold(json!(filled(piece, 400_000)), |inner, _| json!({"n": inner}));
        shapes.push((format!("{piece} deep"), with_context(&nested)));
        shapes.push((
            format!("{piece} in every list"),
            json!({"goal": filled(piece, 2_000), "success_criteria": list_of(piece), "constraints": list_of(piece),
                "tools": list_of(piece), "side_effects": list_of(piece), "context": {}, "debug_store_input": true}),
        ));
    }
    // One of a kind for most members: each of these is a check of its own.
    shapes.retain(|(name, _)| name.starts_with("secret=") || !name.contains(" in context.") || name.ends_with(".n"));
    shapes
}

/// What is dear for a parser, for Unicode, for matching or for hashing.
fn structures() -> Vec<(String, Value)> {
    let numbered = |count: usize, value: &Value| -> Value {
        (0..count).map(|n| (format!("k{n}"), value.clone())).collect::<Map<_, _>>().into()
    };
    let arrays = |value: &Value| numbered(50, &json!(vec![value.clone(); 980]));
    let long_names: Value =
        (0..900).map(|n| (format!("{n}{}", "k".repeat(990)), json!(n))).collect::<Map<_, _>>().into();
    let targets: Vec<String> = (0..1_000).map(|n| format!("staging/{n}/{}", "..%2f".repeat(170))).collect();
    let deep = (0..29).fold(json!("secret=x"), |inner, _| json!([inner]));
    let wide_and_deep = numbered(1_500, &(0..28).fold(json!(1), |inner, _| json!([inner])));
    let mut shapes = vec![
        ("49,000 members".to_owned(), with_context(&numbered(49_000, &json!(1)))),
        ("49,000 texts".to_owned(), with_context(&arrays(&json!("s=\"")))),
        ("49,000 numbers".to_owned(), with_context(&arrays(&json!(1.5e-7)))),
        ("49,000 empty objects".to_owned(), with_context(&arrays(&json!({})))),
        ("49,000 empty arrays".to_owned(), with_context(&arrays(&json!([])))),
        ("49,000 nulls".to_owned(), with_context(&arrays(&Value::Null))),
        ("long names".to_owned(), with_context(&long_names)),
        ("nested 32 deep".to_owned(), with_context(&json!({ "n": deep }))),
        ("wide and deep".to_owned(), with_context(&wide_and_deep)),
        ("long targets".to_owned(), with_context(&json!({"target_resources": targets, "resource_scope": "staging/*"}))),
    ];
    // NFKC makes 18 characters of one, or one of many; zero-width characters are removed; marks are put in order; words
    // are told apart.
    for piece in [
        "\u{fdfa}",
        "\u{200b}",
        "a\u{301}\u{316}",
        "\u{1d160}",
        "\u{ac01}",
        "aB-_ ",
        "\\",
        "\"",
        "\u{1}",
        "%25",
        "\u{130}",
    ] {
        let long = filled(piece, 900_000);
        for member in ["n", "actor_role", "environment"] {
            shapes.push((format!("{piece:?} in {member}"), with_context(&json!({member: long}))));
        }
        shapes.push((
            format!("{piece:?} in every list"),
            json!({"goal": "Read the report", "tools": list_of(piece), "side_effects": list_of(piece),
                "constraints": list_of(&format!("allowed_tools:{piece},")),
                "context": {"active_mcp_servers": vec![piece; 1_000]}}),
        ));
    }
    shapes.push(("one mark upon another".to_owned(), with_context(&json!({"n": "\u{301}\u{316}".repeat(220_000)}))));
    shapes
}

/// Raw bodies that JSON values cannot say.
fn spellings() -> Vec<(String, Vec<u8>)> {
    let of = |context: &str| format!(r#"{{"goal":"Read the report","context":{{{context}}}}}"#).into_bytes();
    vec![
        (
            "escapes".to_owned(),
            of(&format!(r#""n":"{}""#, r"\u0073\u0065\u0063\u0072\u0065\u0074\u003d".repeat(21_000))),
        ),
        ("half pairs".to_owned(), of(&format!(r#""n":"{}""#, r"\ud800".repeat(150_000)))),
        ("white space".to_owned(), of(&format!(r#""n":1{}"#, " ".repeat(900_000)))),
        ("one member again and again".to_owned(), of(&vec![r#""n":1"#; 140_000].join(","))),
        ("digits".to_owned(), of(&format!(r#""n":{}"#, "9".repeat(900_000)))),
        ("brackets".to_owned(), "[".repeat(MAX_BODY_BYTES).into_bytes()),
        ("braces".to_owned(), r#"{"a":"#.repeat(190_000).into_bytes()),
        ("no end".to_owned(), format!(r#"{{"goal":"{}"#, "secret=".repeat(140_000)).into_bytes()),
    ]
}

async fn send(stack: &Stack, body: Vec<u8>) -> Answer {
    stack.api.send(reqwest::Method::POST, "/check", &[("content-type", "application/json")], Some(body)).await
}

/// Sends each, and looks at every process behind it.
async fn attack(shapes: Vec<(String, Vec<u8>)>) {
    let mut stack = Stack::build().memory_limit(MEGABYTES).nats().await;
    let traffic = Traffic::start(&stack, 2, Duration::from_millis(50)).await;
    for _ in 0..50 {
        stack.api.check(&stage0_tests::Api::harmless()).await.expect(200);
    }
    // What was needed once may stay with the allocator, so each body is measured against the moment before it, and all
    // against the beginning.
    let rest: Vec<u64> = stack.processes().iter().map(|(_, process)| process.resident()).collect();
    let (mut failures, mut largest) = (Vec::new(), 0);
    for (shape, body) in shapes {
        assert!(body.len() <= MAX_BODY_BYTES, "{shape:.80}: {} bytes", body.len());
        let shape: String = shape.chars().take(60).collect();
        let bytes = u64::try_from(body.len()).unwrap();
        largest = bytes.max(largest);
        let before: Vec<u64> = stack.processes().iter().map(|(_, process)| process.resident()).collect();
        stack.processes().iter().for_each(|(_, process)| process.forget_peak());
        let answer = send(&stack, body).await;
        if !LAWFUL.contains(&answer.status) {
            failures.push(format!("{shape}: {} {}", answer.status, answer.text));
        }
        for ((role, process), (rest, before)) in stack.processes().into_iter().zip(rest.iter().zip(&before)) {
            assert!(process.is_alive(), "{shape}: {role} died of {bytes} bytes");
            let peak = process.peak();
            let (now, in_all) = (peak.saturating_sub(*before), peak.saturating_sub(*rest));
            if now > PEAK_TIMES * bytes + NOISE_BYTES || in_all > PEAK_TIMES * largest + NOISE_BYTES {
                failures.push(format!("{shape}: {role} needs {now} bytes more for {bytes}, {in_all} above rest"));
            }
        }
    }
    let asked = traffic.end().await;
    assert!(failures.is_empty(), "{failures:#?}");
    asked.assert_undisturbed("large bodies of another account");
    stack.api.check(&stage0_tests::Api::harmless()).await.expect(200);
}

fn written(shapes: Vec<(String, Value)>) -> Vec<(String, Vec<u8>)> {
    shapes.into_iter().map(|(name, body)| (name, body.to_string().into_bytes())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_and_their_like_in_every_member_cost_no_more_than_their_bytes() {
    attack(written(secrets())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_bodies_of_every_shape_cost_no_more_than_their_bytes() {
    attack([written(structures()), spellings()].concat()).await;
}

#[tokio::test]
async fn a_body_beyond_the_bounds_is_refused_and_the_same_within_them_is_not() {
    let stack = Stack::build().memory_limit(MEGABYTES).dev().await;
    // Besides the entries: the body, `goal`, `context`, the 52 arrays.
    let values = |count: usize| {
        let mut context: Map<_, _> = (0..51).map(|n| (format!("k{n}"), json!(vec![0; 960]))).collect();
        context.insert("rest".to_owned(), json!(vec![0; count - 3 - 52 - 51 * 960]));
        json!({"goal": "Read the report", "context": context})
    };
    let entries = |count: usize| json!({"goal": "Read the report", "context": {"target_tenants": vec!["t"; count]}});
    let depth = |levels: usize| {
        let inner = (0..levels - 2).fold(json!(1), |inner, _| json!([inner]));
        json!({"goal": "Read the report", "context": {"n": inner}})
    };
    for (within, beyond, status) in
        [(values(50_000), values(50_001), 422), (entries(1_000), entries(1_001), 422), (depth(32), depth(33), 400)]
    {
        let taken = send(&stack, within.to_string().into_bytes()).await;
        assert_eq!(taken.status, 200, "{}", taken.text);
        let refused = send(&stack, beyond.to_string().into_bytes()).await;
        assert_eq!(refused.status, status, "{}", refused.text);
    }
}
