//! Calls that create, once under a header: what repeats, what is refused, and what the state store may show.

use std::cell::Cell;

use serde_json::json;
use stage0_backplane::Backplane;
use stage0_contract::{AccountId, Scopes};

use super::*;

const BUDGET: Duration = Duration::from_secs(5);
const SECRET: &str = "s0_this_is_the_new_secret";

fn key(byte: u8) -> ApiKey {
    ApiKey::from_random([byte; 10], [2; 20]).unwrap()
}

fn create(account: &str, key: &ApiKey, header: &str, call: &str, body: &Value) -> IdempotentCreate {
    let account = AccountId::parse(account).unwrap();
    let caller = Caller { account, key_id: key.id().clone(), scopes: Scopes::new(), key: None };
    IdempotentCreate::new(&caller, key, &ClientRequestId::parse(header).unwrap(), call, body.as_object().unwrap())
}

fn usual() -> IdempotentCreate {
    create("a", &key(1), "h", "POST /v1/keys", &json!({"name": "n"}))
}

async fn run(
    create: &IdempotentCreate,
    backplane: &Backplane,
    made: Result<Value, CallError>,
) -> Result<Answer, ApiError> {
    create.run(&*backplane.state_store, BUDGET, async { made }).await
}

#[tokio::test]
async fn a_retried_create_gets_the_first_answer_and_creates_nothing() {
    let backplane = Backplane::embedded();
    let first = run(&usual(), &backplane, Ok(json!({"key": SECRET}))).await.unwrap();
    assert!(first.is_new);
    let again = run(&usual(), &backplane, Ok(json!({"key": "another"}))).await.unwrap();
    assert!(!again.is_new);
    assert_eq!(again.json, first.json);
    // Members in another order are the same body.
    let body = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let (one, other) = (body(r#"{"name": "n", "x": 1}"#), body(r#"{"x": 1, "name": "n"}"#));
    let of = |body| create("a", &key(1), "order", "POST /v1/keys", body);
    run(&of(&one), &backplane, Ok(json!(1))).await.unwrap();
    assert!(!run(&of(&other), &backplane, Ok(json!(2))).await.unwrap().is_new);
}

#[tokio::test]
async fn a_stored_answer_is_sealed_and_only_the_callers_key_opens_it() {
    let backplane = Backplane::embedded();
    let (header, name) = ("the-callers-own-header", json!({"name": "the-callers-own-name"}));
    let mine = create("a", &key(1), header, "POST /v1/keys", &name);
    run(&mine, &backplane, Ok(json!({"key": SECRET}))).await.unwrap();
    let record = backplane.state_store.get(&mine.record_key, Instant::now() + BUDGET).await.unwrap().unwrap();
    let kept = String::from_utf8(record.value.to_vec()).unwrap();
    for text in [SECRET, header, "the-callers-own-name"] {
        assert!(!kept.contains(text) && !mine.record_key.contains(text), "{kept}");
    }
    let record: CallRecord = serde_json::from_str(&kept).unwrap();
    let State::Answered(sealed) = record.state else { panic!("{kept}") };
    assert!(mine.open(&sealed, record.ends).is_some());
    assert!(mine.open(&sealed, record.ends + 1).is_none(), "bound to its end");
    let call = IdempotentCreate { call: "another".to_owned(), ..create("a", &key(1), header, "POST /v1/keys", &name) };
    assert!(call.open(&sealed, record.ends).is_none(), "and to its call");
    let other_record =
        IdempotentCreate { record_key: "another".to_owned(), ..create("a", &key(1), header, "POST /v1/keys", &name) };
    assert!(other_record.open(&sealed, record.ends).is_none(), "and to its record");
    // The same id with another secret, as of one who reads the state store and knows all but the key.
    let other = ApiKey::from_random([1; 10], [3; 20]).unwrap();
    assert_eq!(other.id(), key(1).id());
    let thief = create("a", &other, header, "POST /v1/keys", &name);
    assert!(thief.record_key == mine.record_key && thief.open(&sealed, record.ends).is_none());
}

#[tokio::test]
async fn an_idempotency_key_with_another_body_or_call_is_refused() {
    let backplane = Backplane::embedded();
    run(&usual(), &backplane, Ok(json!(1))).await.unwrap();
    for other in [
        create("a", &key(1), "h", "POST /v1/keys", &json!({"name": "m"})),
        create("a", &key(1), "h", "POST /v1/webhooks", &json!({"name": "n"})),
        create("a", &key(1), "h", "POST /v1/keys/k2/rotate", &json!({"name": "n"})),
    ] {
        let refused = run(&other, &backplane, Ok(json!(2))).await;
        let Err(ApiError::Invalid(errors)) = refused else { panic!("accepted") };
        assert!(errors.len() == 1 && errors[0].path == IDEMPOTENCY_KEY);
    }
    for free in [
        create("b", &key(1), "h", "POST /v1/keys", &json!({"name": "n"})),
        create("a", &key(2), "h", "POST /v1/keys", &json!({"name": "n"})),
        create("a", &key(1), "H", "POST /v1/keys", &json!({"name": "n"})),
    ] {
        assert!(run(&free, &backplane, Ok(json!(2))).await.unwrap().is_new);
    }
}

#[tokio::test]
async fn a_retry_runs_after_a_refusal_and_is_refused_after_an_unknown_outcome() {
    let backplane = Backplane::embedded();
    let refused = run(&usual(), &backplane, Err(CallError::NotDone(ApiError::NotFound))).await;
    assert_eq!(refused.err(), Some(ApiError::NotFound));
    // Nothing was used up: also not for another body.
    let other = create("a", &key(1), "h", "POST /v1/keys", &json!({"name": "m"}));
    let lost = run(&other, &backplane, Err(CallError::OutcomeUnknown(ApiError::Unavailable))).await;
    assert_eq!(lost.err(), Some(ApiError::Unavailable));
    let again = run(&other, &backplane, Ok(json!(1))).await;
    assert!(matches!(again.err(), Some(ApiError::Conflict(_))));
}

#[tokio::test]
async fn concurrent_creates_under_one_key_create_once_and_share_the_answer() {
    let (backplane, made) = (Backplane::embedded(), Cell::new(0));
    let ask = async || {
        let create = async {
            made.set(made.get() + 1);
            tokio::task::yield_now().await;
            Ok(json!({"n": made.get()}))
        };
        usual().run(&*backplane.state_store, BUDGET, create).await.unwrap().json
    };
    let all = futures_util::future::join_all((0..8).map(|_| ask())).await;
    assert!(made.get() == 1 && all.iter().all(|json| *json == all[0]));
}

#[test]
fn a_call_that_never_ended_is_in_flight_then_unknown_then_expired() {
    let at = |millis| Timestamp::from_millisecond(millis).unwrap();
    let record = CallRecord { call: "c".to_owned(), until: 5_000, ends: 600, state: State::InFlight };
    assert_eq!(record.state_for("c", at(4_999)), Some(State::InFlight));
    assert_eq!(record.state_for("d", at(4_999)), None);
    assert_eq!(record.state_for("c", at(5_000)), Some(State::Unknown));
    let answered = CallRecord { state: State::Answered("s".to_owned()), ..record.clone() };
    assert_eq!(answered.state_for("c", at(599_999)), Some(State::Answered("s".to_owned())));
    for record in [record, answered] {
        assert_eq!(record.state_for("c", at(600_000)), Some(State::Free));
        assert_eq!(record.state_for("d", at(600_000)), Some(State::Free));
    }
}
