//! Memory and copying grow with the bytes of a request and with nothing else, whatever stands in them.
//!
//! Counts what the test's own thread allocates, so a machine's speed makes no difference: what a check takes at its
//! peak and in all stays below a fixed number of times its body, at one size and at twice that size, for texts that are
//! made to be dear.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use stage0_contract::{
    AccountId, CallerTexts, CheckRequest, Decided, EvaluateReply, EvaluateRequest, MAX_BODY_BYTES, MAX_CONTEXT_ENTRIES,
    MAX_GOAL_CHARS, MAX_ITEM_CHARS, MAX_ITEMS, RequestId, canonical_hash, parse_strict,
};
use stage0_evaluator::{Engine, Pack, measure};

/// Bytes that work takes at its peak and in all.
#[derive(Debug, Clone, Copy)]
struct Taken {
    peak: usize,
    total: usize,
}

fn taken<T>(work: impl FnOnce() -> T) -> (T, Taken) {
    let mut result = None;
    let info = allocation_counter::measure(|| result = Some(work()));
    let bytes = |count: u64| usize::try_from(count).unwrap();
    (result.unwrap(), Taken { peak: bytes(info.bytes_max), total: bytes(info.bytes_total) })
}

/// The most that a process may take for a body of a megabyte, as a multiple of it.
const MAX_PEAK: usize = 40;
/// Bytes in all for each byte, reading and writing included: each secret that is found costs some allocations.
const MAX_TOTAL: usize = 1_000;
/// What a check takes however small it is.
const BASE_BYTES: usize = 400_000;
/// What each JSON value takes beside its bytes, at the peak and in all. At most 50,000 values are a third of what a
/// megabyte may take.
const VALUE_BYTES: [usize; 2] = [350, 6_000];

const NOW: i64 = 1_773_662_400;

thread_local! {
    static ENGINE: Engine = Engine::new(Pack::embedded().unwrap()).unwrap();
}

/// Does what a gateway does to a body, then what an evaluator does to its question; what each took.
fn cost(body: &[u8]) -> (Taken, Taken) {
    ENGINE.with(|engine| {
        let (message, gateway) = taken(|| {
            let body = parse_strict(body).unwrap();
            let hash = canonical_hash(body.as_object().unwrap());
            let request = CheckRequest::parse(body).unwrap_or_else(|rejected| panic!("{:?}", rejected.errors));
            assert_eq!(hash.len(), request.task_hash().len());
            let question = EvaluateRequest {
                request_id: RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap(),
                account: AccountId::parse("acc").unwrap(),
                request,
                evaluated_at: NOW,
                operation: None,
                caller: CallerTexts::default(),
                max_runs: None,
            };
            serde_json::to_vec(&question).unwrap()
        });
        let (reply, evaluator) = taken(|| {
            let question: EvaluateRequest = serde_json::from_slice(&message).unwrap();
            let decided: Decided = measure::answer(engine, &question).unwrap();
            serde_json::to_vec(&EvaluateReply::Decided(Box::new(decided))).unwrap()
        });
        let (_, read) = taken(|| serde_json::from_slice::<EvaluateReply>(&reply).unwrap());
        // The gateway has the question in hand when the reply arrives.
        let peak = gateway.peak + read.peak + reply.len();
        (Taken { peak, total: gateway.total + read.total }, evaluator)
    })
}

/// Texts that are dear to somebody who reads them twice: forms of secrets, separators, and what grows when it is
/// normalised.
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

/// Where a text can stand, so that a body of about `bytes` is full of it.
type Fill = fn(&str, usize) -> Map<String, Value>;

const PLACES: [(&str, Fill); 20] = [
    ("a value of the context", |unit, bytes| context(json!({"note": long(unit, bytes)}))),
    ("a value under a telling name", |unit, bytes| context(json!({"password": long(unit, bytes)}))),
    ("texts under a long telling name", |unit, bytes| {
        context(json!({format!("{}password", long(unit, bytes / 2)): rows("correcthorse", bytes / 2)}))
    }),
    ("the run's id", |unit, bytes| context(json!({"run_id": long(unit, bytes)}))),
    ("the environment of the context", |unit, bytes| context(json!({"environment": long(unit, bytes)}))),
    ("the role", |unit, bytes| context(json!({"actor_role": long(unit, bytes)}))),
    ("many short texts", |unit, bytes| context(rows(unit, bytes))),
    ("many names", |unit, bytes| context(names(unit, bytes))),
    ("one long name", |unit, bytes| context(json!({long(unit, bytes): 1}))),
    ("objects within objects", |unit, bytes| context(json!({"n": nested(unit, bytes)}))),
    ("a member that we do not know", |unit, bytes| {
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

/// With the goal beside it.
fn context(context: Value) -> Map<String, Value> {
    Map::from_iter([("goal".to_owned(), "read the report".into()), ("context".to_owned(), context)])
}

/// Short texts, of so many bytes together, in arrays of as many as may be.
fn rows(unit: &str, bytes: usize) -> Value {
    let count = (bytes / (unit.len() + 3)).clamp(1, 40_000);
    let row = |n: usize| Value::from(vec![unit; MAX_CONTEXT_ENTRIES.min(count - n * MAX_CONTEXT_ENTRIES)]);
    (0..count.div_ceil(MAX_CONTEXT_ENTRIES)).map(|n| (format!("r{n}"), row(n))).collect::<Map<_, _>>().into()
}

/// Texts of one array, of so many bytes together.
fn texts(unit: &str, bytes: usize) -> Vec<String> {
    vec![long(unit, bytes / MAX_CONTEXT_ENTRIES); MAX_CONTEXT_ENTRIES]
}

fn names(unit: &str, bytes: usize) -> Value {
    let count = (bytes / (unit.len() + 10)).clamp(1, 40_000);
    (0..count).map(|n| (format!("{n}{unit}"), Value::from(0))).collect::<Map<_, _>>().into()
}

/// Objects of one member, as deep as may be.
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

/// A body that is refused costs nothing more; `None` for those.
fn judged(body: &[u8]) -> Option<(Taken, Taken)> {
    let parsed = parse_strict(body).ok()?;
    CheckRequest::parse(parsed).ok()?;
    Some(cost(body))
}

fn assert_bounded(what: &str, body: &[u8]) -> Option<[Taken; 2]> {
    let (gateway, evaluator) = judged(body)?;
    let (bytes, values) = (body.len(), values(&serde_json::from_slice(body).unwrap()));
    let [each, each_in_all] = VALUE_BYTES.map(|each| each * values);
    for (process, Taken { peak, total }) in [("gateway", gateway), ("evaluator", evaluator)] {
        let most = MAX_PEAK * bytes + BASE_BYTES + each;
        assert!(peak <= most, "{what}: {process} takes {peak} for {bytes} bytes and {values} values");
        let most = MAX_TOTAL * bytes + 4 * BASE_BYTES + each_in_all;
        assert!(total <= most, "{what}: {process} takes {total} for {bytes} bytes and {values} values in all");
    }
    Some([gateway, evaluator])
}

#[test]
fn what_a_check_takes_grows_with_its_bytes_wherever_its_texts_stand() {
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
                // Longer values may be long enough to be secrets, and each that is found costs something.
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
    assert!(seen > UNITS.len() * PLACES.len(), "most of them are lawful: {seen}");
}

#[test]
fn the_largest_lawful_bodies_take_less_than_forty_times_their_bytes() {
    // The dearest of each kind; all of them in a development build take minutes.
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
    // As many values as may be, in the fewest bytes: bounded by their number.
    let empty = vec![json!({}); 999];
    let many: Map<String, Value> = (0..49).map(|n| (format!("{n}"), empty.clone().into())).collect();
    let many = body(context(many.into()), true);
    let (gateway, evaluator) = judged(&many).unwrap();
    assert!(gateway.peak.max(evaluator.peak) <= MAX_PEAK * MAX_BODY_BYTES, "{gateway:?} {evaluator:?}");
    let chains: Vec<Value> = (0..2_000).map(|_| (0..20).fold(json!({}), |inner, _| json!({"a": inner}))).collect();
    let chains: Map<String, Value> = chains.chunks(1_000).enumerate().map(|(n, c)| (n.to_string(), c.into())).collect();
    let (gateway, evaluator) = judged(&body(context(chains.into()), true)).unwrap();
    assert!(gateway.peak.max(evaluator.peak) <= MAX_PEAK * MAX_BODY_BYTES, "{gateway:?} {evaluator:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn texts_that_are_mixed_at_random_take_no_more(
        units in prop::collection::vec(prop::sample::select(UNITS.to_vec()), 1..12),
        place in 0..PLACES.len(),
        stored in any::<bool>(),
    ) {
        let (what, fill) = PLACES[place];
        assert_bounded(&format!("{units:?} in {what}"), &body(fill(&units.concat(), 10_000), stored));
    }
}
