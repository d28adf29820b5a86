//! Memory that a check allocates grows in proportion to its bytes, whatever they contain.
//!
//! Counts the allocations of the test's own thread, so the speed of the machine does not matter. The peak and the total
//! of a check stay below a fixed multiple of its body, at one size and at twice that size, for texts that are built to
//! be expensive.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use stage0_contract::{
    AccountId, CallerTexts, CheckRequest, EvaluateReply, EvaluateRequest, Evaluation, MAX_BODY_BYTES,
    MAX_CONTEXT_ENTRIES, MAX_GOAL_CHARS, MAX_ITEM_CHARS, MAX_ITEMS, RequestId, canonical_hash, parse_strict,
};
use stage0_policy::{Engine, Pack, bench_support};

/// Bytes that some work allocates, at its peak and in total.
#[derive(Debug, Clone, Copy)]
struct Allocated {
    peak: usize,
    total: usize,
}

fn allocated<T>(work: impl FnOnce() -> T) -> (T, Allocated) {
    let mut result = None;
    let info = allocation_counter::measure(|| result = Some(work()));
    let bytes = |count: u64| usize::try_from(count).unwrap();
    (result.unwrap(), Allocated { peak: bytes(info.bytes_max), total: bytes(info.bytes_total) })
}

/// The peak that a process may allocate for a body of a megabyte, as a multiple of the body.
const MAX_PEAK: usize = 40;
/// The same for the total, parsing and serialising included. Each secret that is found costs some allocations.
const MAX_TOTAL: usize = 1_000;
/// The bytes that the smallest check allocates.
const BASE_BYTES: usize = 400_000;
/// The bytes for each JSON value besides its text, at the peak and in total. The at most 50,000 values of a body may
/// allocate a third of what a megabyte may.
const VALUE_BYTES: [usize; 2] = [350, 6_000];

const NOW: i64 = 1_773_662_400;

thread_local! {
    static ENGINE: Engine = Engine::new(Pack::embedded().unwrap()).unwrap();
}

/// Handles a body as a gateway does, then the message as an evaluator does; returns what each allocated.
fn cost(body: &[u8]) -> (Allocated, Allocated) {
    ENGINE.with(|engine| {
        let (message, gateway) = allocated(|| {
            let body = parse_strict(body).unwrap();
            let hash = canonical_hash(body.as_object().unwrap());
            let request = CheckRequest::parse(body).unwrap_or_else(|rejected| panic!("{:?}", rejected.errors));
            assert_eq!(hash.len(), request.task_hash().len());
            let check = EvaluateRequest {
                asker: None,
                request_id: RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap(),
                account: AccountId::parse("acc").unwrap(),
                request,
                evaluated_at: NOW,
                operation: None,
                caller: CallerTexts::default(),
                max_runs: None,
            };
            serde_json::to_vec(&check).unwrap()
        });
        let (reply, evaluator) = allocated(|| {
            let check: EvaluateRequest = serde_json::from_slice(&message).unwrap();
            let decided: Evaluation = bench_support::answer(engine, &check).unwrap();
            serde_json::to_vec(&EvaluateReply::Decided(Box::new(decided))).unwrap()
        });
        let (_, read) = allocated(|| serde_json::from_slice::<EvaluateReply>(&reply).unwrap());
        // The gateway still holds the request when the reply arrives.
        let peak = gateway.peak + read.peak + reply.len();
        (Allocated { peak, total: gateway.total + read.total }, evaluator)
    })
}

/// Texts that are expensive for code that reads them twice: forms of secrets, separators, and characters that grow when
/// they are normalised.
const UNITS: [&str; 88] = [
    "secret=",
    "secret=\"",
    "secret='\\'",
    "password: ",
    "password:password:",
    "passphrase=",
    "passphrase = a ",
    "api_key=${",
    "api_key=abcd1234,",
    "token",
    "bearer ",
    "bearer abcdefgh12345678 ",
    "authorization: bearer abc123 ",
    "authorization: basic dXNlcjpwYXNz ",
    "AKIAIOSFODNN7EXAMPLE.",
    "npm_",
    "hf_a1hf_",
    "SK0123456789abcdef0123456789abcdef ",
    "SG.a1b2c3d4a1b2c3d4.a1b2c3d4a1b2c3d4 ",
    "-u a:b1c2 ",
    "-u a:",
    "mysql -p",
    "cookie: a=",
    "cookie: sid=a1B2c3D4a1B2c3D4;",
    "token a1B2c3D4a1B2c3D4 ",
    "token is ",
    "password is hunter22 ",
    "passphrase: abandon ability able ",
    "secret=\\\"",
    "secret=\\\\\\\"a",
    "{\"name\":\"password\",\"value\":",
    "<pwd>",
    "--token ",
    "LS0tLS1CRUdJTi",
    "-- BEGIN ",
    "\"kty\"",
    "密码: ",
    "AIza",
    "AIzaSyA1234567890abcdefghijklmnopqrstuv",
    "ghp_0123456789abcdefghijABCDEFGHIJ012345",
    "github_pat_",
    "glpat-",
    "xoxb-",
    "sk_live_",
    "sk-",
    "sk-ant-",
    "s0_",
    "eyJaaaaaa.",
    "eyJ",
    "a://b:c@",
    "a://",
    "://:",
    "https://0123456789abcdefghij0123@a ",
    "AccountKey=abcdefghijklmnopqrstuvwxyz0123==",
    "aws_secret_access_key = ",
    "-----BEGIN PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----a-----END A-----",
    "-----BEGIN A ",
    ",",
    "a,",
    ";",
    ":",
    "a:",
    "/",
    "a/",
    "../",
    "%2e",
    "%25",
    "\\",
    "\"",
    "\u{1}",
    "[",
    "{",
    "_ -",
    "a b ",
    "deploy,",
    "help me think ",
    "想想",
    "幫我 ",
    "\u{fdfa}",
    "\u{1f101}",
    "\u{344}",
    "\u{130}",
    "ｗ",
    "e\u{301}",
    "\u{301}",
    "\u{323}\u{301}",
    "\u{200b}",
];

/// Builds a body of about `bytes` by repeating a text in one part of it.
type Fill = fn(&str, usize) -> Map<String, Value>;

const PLACES: [(&str, Fill); 20] = [
    ("a value of the context", |unit, bytes| context(json!({"note": long(unit, bytes)}))),
    ("a value under the name of a secret", |unit, bytes| context(json!({"password": long(unit, bytes)}))),
    ("texts under a long name of a secret", |unit, bytes| {
        context(json!({format!("{}password", long(unit, bytes / 2)): rows("correcthorse", bytes / 2)}))
    }),
    ("the run's id", |unit, bytes| context(json!({"run_id": long(unit, bytes)}))),
    ("the environment of the context", |unit, bytes| context(json!({"environment": long(unit, bytes)}))),
    ("the role", |unit, bytes| context(json!({"actor_role": long(unit, bytes)}))),
    ("many short texts", |unit, bytes| context(rows(unit, bytes))),
    ("many names", |unit, bytes| context(names(unit, bytes))),
    ("one long name", |unit, bytes| context(json!({long(unit, bytes): 1}))),
    ("objects within objects", |unit, bytes| context(json!({"n": nested(unit, bytes)}))),
    ("an unknown member", |unit, bytes| {
        let Value::Object(members) = json!({"goal": "read the report", "colour": long(unit, bytes)}) else { panic!() };
        members
    }),
    ("the goal", |unit, bytes| {
        let goal = cut(&long(unit, bytes), MAX_GOAL_CHARS);
        let Value::Object(members) = json!({"goal": format!("go {}", cut(&goal, MAX_GOAL_CHARS - 3))}) else {
            panic!()
        };
        members
    }),
    ("success criteria", |unit, bytes| items("success_criteria", "x", unit, bytes)),
    ("tools", |unit, bytes| items("tools", "x", unit, bytes)),
    ("side effects", |unit, bytes| items("side_effects", "write: ", unit, bytes)),
    ("constraints", |unit, bytes| items("constraints", "be nice ", unit, bytes)),
    ("lists of tools", |unit, bytes| items("constraints", "allowed_tools: t,", unit, bytes)),
    ("lists of actions", |unit, bytes| {
        let mut body = items("constraints", "require_approval_for: t,", unit, bytes / 2);
        body.extend(items("side_effects", "write: ", unit, bytes / 2));
        body
    }),
    ("lists of scopes and targets", |unit, bytes| {
        let mut body = items("constraints", "resource_scope: t,", &unit.replace('*', ""), bytes / 2);
        body.extend(context(json!({"target_resources": texts(unit, bytes / 2)})));
        body
    }),
    ("recent calls", |unit, bytes| {
        let mut body = context(json!({"recent_tools": texts(unit, bytes), "run_id": "r"}));
        body.insert("constraints".to_owned(), json!(["no_repeat_calls", "tenant_isolation"]));
        body
    }),
];

fn long(unit: &str, bytes: usize) -> String {
    unit.repeat(bytes.div_ceil(unit.len()).max(1))
}

fn cut(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}

/// A body of a goal and this context.
fn context(context: Value) -> Map<String, Value> {
    Map::from_iter([("goal".to_owned(), "read the report".into()), ("context".to_owned(), context)])
}

/// Short texts of `bytes` bytes in total, in arrays of the maximum length.
fn rows(unit: &str, bytes: usize) -> Value {
    let count = (bytes / (unit.len() + 3)).clamp(1, 40_000);
    let row = |n: usize| Value::from(vec![unit; MAX_CONTEXT_ENTRIES.min(count - n * MAX_CONTEXT_ENTRIES)]);
    (0..count.div_ceil(MAX_CONTEXT_ENTRIES)).map(|n| (format!("r{n}"), row(n))).collect::<Map<_, _>>().into()
}

/// The texts of one array, of `bytes` bytes in total.
fn texts(unit: &str, bytes: usize) -> Vec<String> {
    vec![long(unit, bytes / MAX_CONTEXT_ENTRIES); MAX_CONTEXT_ENTRIES]
}

fn names(unit: &str, bytes: usize) -> Value {
    let count = (bytes / (unit.len() + 10)).clamp(1, 40_000);
    (0..count).map(|n| (format!("{n}{unit}"), Value::from(0))).collect::<Map<_, _>>().into()
}

/// Objects of one member, nested to nearly the maximum depth.
fn nested(unit: &str, bytes: usize) -> Value {
    const DEPTH: usize = 24;
    let chain = || (0..DEPTH).fold(Value::from(0), |inner, _| json!({unit: inner}));
    let count = (bytes / (DEPTH * (unit.len() + 5))).clamp(1, 40_000 / DEPTH).min(MAX_CONTEXT_ENTRIES);
    (0..count).map(|_| chain()).collect()
}

fn items(member: &str, start: &str, unit: &str, bytes: usize) -> Map<String, Value> {
    let item = cut(&format!("{start}{}", long(unit, MAX_ITEM_CHARS * unit.len())), MAX_ITEM_CHARS);
    let count = (bytes / item.len()).clamp(1, MAX_ITEMS);
    let item = |n: usize| {
        if member == "constraints" && n > 0 {
            item.clone()
        } else {
            format!("{}{}", cut(&item, MAX_ITEM_CHARS - 3), n % 10)
        }
    };
    let Value::Object(members) = json!({"goal": "read the report", member: (0..count).map(item).collect::<Vec<_>>()})
    else {
        panic!()
    };
    members
}

fn body(mut members: Map<String, Value>, stored: bool) -> Vec<u8> {
    members.insert("debug_store_input".to_owned(), stored.into());
    serde_json::to_vec(&members).unwrap()
}

/// Values of a body as the contract counts them.
fn values(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(values).sum(),
        Value::Object(members) => members.values().map(values).sum(),
        _ => 0,
    }
}

/// What a valid body costs; `None` for a body that is refused.
fn cost_if_valid(body: &[u8]) -> Option<(Allocated, Allocated)> {
    let parsed = parse_strict(body).ok()?;
    CheckRequest::parse(parsed).ok()?;
    Some(cost(body))
}

fn assert_bounded(what: &str, body: &[u8]) -> Option<[Allocated; 2]> {
    let (gateway, evaluator) = cost_if_valid(body)?;
    let (bytes, values) = (body.len(), values(&serde_json::from_slice(body).unwrap()));
    let [each, each_in_all] = VALUE_BYTES.map(|each| each * values);
    for (process, Allocated { peak, total }) in [("gateway", gateway), ("evaluator", evaluator)] {
        let limit = MAX_PEAK * bytes + BASE_BYTES + each;
        assert!(peak <= limit, "{what}: {process} takes {peak} for {bytes} bytes and {values} values");
        let limit = MAX_TOTAL * bytes + 4 * BASE_BYTES + each_in_all;
        assert!(total <= limit, "{what}: {process} takes {total} for {bytes} bytes and {values} values in all");
    }
    Some([gateway, evaluator])
}

#[test]
fn memory_of_a_check_grows_in_proportion_to_its_bytes_in_every_member() {
    const BYTES: usize = 6_000;
    let mut seen = 0;
    for (place, fill) in PLACES {
        for unit in UNITS {
            for stored in [false, true] {
                let what = format!("{unit:?} in {place}, stored: {stored}");
                let once = assert_bounded(&what, &body(fill(unit, BYTES), stored));
                let twice = assert_bounded(&what, &body(fill(unit, 2 * BYTES), stored));
                let (Some(once), Some(twice)) = (once, twice) else { continue };
                seen += 1;
                // Longer values may be long enough to count as secrets, and each one that is found costs something.
                let values = values(&serde_json::from_slice(&body(fill(unit, 2 * BYTES), stored)).unwrap());
                let [each, each_in_all] = VALUE_BYTES.map(|each| each * values);
                for (once, twice) in once.into_iter().zip(twice) {
                    let grown =
                        |once: usize, twice: usize, each: usize| twice <= 2 * once + once / 2 + BASE_BYTES + each;
                    assert!(grown(once.total, twice.total, each_in_all), "{what}: {once:?}, then {twice:?}");
                    assert!(grown(once.peak, twice.peak, each), "{what}: {once:?}, then {twice:?}");
                }
            }
        }
    }
    assert!(seen > UNITS.len() * PLACES.len(), "most of them are valid: {seen}");
}

#[test]
fn the_largest_valid_bodies_allocate_less_than_forty_times_their_bytes() {
    // The most expensive text of each kind, because all of them take minutes in a debug build.
    const BYTES: usize = MAX_BODY_BYTES - 40_000;
    for unit in ["secret=", "AKIAIOSFODNN7EXAMPLE.", "\u{fdfa}", "a,", "\\", "-----BEGIN PRIVATE KEY-----"] {
        assert_bounded(
            unit,
            &body(context(json!({"note": long(unit, BYTES / if unit == "\\" { 2 } else { 1 })})), true),
        );
    }
    for (what, fill) in [
        ("rows", rows as fn(&str, usize) -> Value),
        ("names", names),
        ("nested", |unit, bytes| json!({"n": nested(unit, bytes)})),
    ] {
        for unit in ["a", "password=hunter22"] {
            let body = body(context(fill(unit, BYTES)), true);
            assert!(body.len() <= MAX_BODY_BYTES);
            let taken = assert_bounded(&format!("{what} of {unit}"), &body).unwrap();
            assert!(taken.iter().all(|taken| taken.peak <= MAX_PEAK * MAX_BODY_BYTES), "{what} of {unit}: {taken:?}");
        }
    }
    // The maximum number of values in the fewest bytes: bounded by their number.
    let empty = vec![json!({}); 999];
    let many: Map<String, Value> = (0..49).map(|n| (format!("{n}"), empty.clone().into())).collect();
    let many = body(context(many.into()), true);
    let (gateway, evaluator) = cost_if_valid(&many).unwrap();
    assert!(gateway.peak.max(evaluator.peak) <= MAX_PEAK * MAX_BODY_BYTES, "{gateway:?} {evaluator:?}");
    let chains: Vec<Value> = (0..2_000).map(|_| (0..20).fold(json!({}), |inner, _| json!({"a": inner}))).collect();
    let chains: Map<String, Value> = chains.chunks(1_000).enumerate().map(|(n, c)| (n.to_string(), c.into())).collect();
    let (gateway, evaluator) = cost_if_valid(&body(context(chains.into()), true)).unwrap();
    assert!(gateway.peak.max(evaluator.peak) <= MAX_PEAK * MAX_BODY_BYTES, "{gateway:?} {evaluator:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn randomly_mixed_texts_allocate_no_more_memory(
        units in prop::collection::vec(prop::sample::select(UNITS.to_vec()), 1..12),
        place in 0..PLACES.len(),
        stored in any::<bool>(),
    ) {
        let (what, fill) = PLACES[place];
        assert_bounded(&format!("{units:?} in {what}"), &body(fill(&units.concat(), 10_000), stored));
    }
}
