//! Calls that create, once under a header: what repeats, what is refused, and what the ledger may show.

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

fn once(account: &str, key: &ApiKey, header: &str, call: &str, body: &Value) -> Once {
    let account = AccountId::parse(account).unwrap();
    let caller = Caller { account, key_id: key.id().clone(), scopes: Scopes::new(), key: None };
    Once::new(&caller, key, &ClientRequestId::parse(header).unwrap(), call, body.as_object().unwrap())
}

fn usual() -> Once {
    once("a", &key(1), "h", "POST /v1/keys", &json!({"name": "n"}))
}

async fn run(once: &Once, backplane: &Backplane, made: Result<Value, NotDone>) -> Result<Answer, ApiError> {
    once.run(&*backplane.ledger, BUDGET, async { made }).await
}

#[tokio::test]
async fn a_repeat_gets_the_first_answer_and_nothing_is_made_again() {
    let backplane = Backplane::embedded();
    let first = run(&usual(), &backplane, Ok(json!({"key": SECRET}))).await.unwrap();
    assert!(first.is_new);
    let again = run(&usual(), &backplane, Ok(json!({"key": "another"}))).await.unwrap();
    assert!(!again.is_new);
    assert_eq!(again.json, first.json);
    // Members in another order are the same body.
    let body = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let (one, other) = (body(r#"{"name": "n", "x": 1}"#), body(r#"{"x": 1, "name": "n"}"#));
    let of = |body| once("a", &key(1), "order", "POST /v1/keys", body);
    run(&of(&one), &backplane, Ok(json!(1))).await.unwrap();
    assert!(!run(&of(&other), &backplane, Ok(json!(2))).await.unwrap().is_new);
}

#[tokio::test]
async fn neither_the_secret_nor_the_header_nor_the_body_stands_in_the_ledger_and_no_other_key_opens_it() {
    let backplane = Backplane::embedded();
    let (header, name) = ("the-callers-own-header", json!({"name": "the-callers-own-name"}));
    let mine = once("a", &key(1), header, "POST /v1/keys", &name);
    run(&mine, &backplane, Ok(json!({"key": SECRET}))).await.unwrap();
    let record = backplane.ledger.get(&mine.place, Instant::now() + BUDGET).await.unwrap().unwrap();
    let kept = String::from_utf8(record.value.to_vec()).unwrap();
    for text in [SECRET, header, "the-callers-own-name"] {
        assert!(!kept.contains(text) && !mine.place.contains(text), "{kept}");
    }
    let entry: Entry = serde_json::from_str(&kept).unwrap();
    let State::Answered(sealed) = entry.state else { panic!("{kept}") };
    assert!(mine.open(&sealed, entry.ends).is_some());
    assert!(mine.open(&sealed, entry.ends + 1).is_none(), "bound to its end");
    let call = Once { call: "another".to_owned(), ..once("a", &key(1), header, "POST /v1/keys", &name) };
    assert!(call.open(&sealed, entry.ends).is_none(), "and to its call");
    let place = Once { place: "another".to_owned(), ..once("a", &key(1), header, "POST /v1/keys", &name) };
    assert!(place.open(&sealed, entry.ends).is_none(), "and to its place");
    // The same id with another secret, as of one who reads the ledger and knows all but the key.
    let other = ApiKey::from_random([1; 10], [3; 20]).unwrap();
    assert_eq!(other.id(), key(1).id());
    let thief = once("a", &other, header, "POST /v1/keys", &name);
    assert!(thief.place == mine.place && thief.open(&sealed, entry.ends).is_none());
}

#[tokio::test]
async fn another_body_or_call_is_refused_and_another_account_key_or_header_is_free() {
    let backplane = Backplane::embedded();
    run(&usual(), &backplane, Ok(json!(1))).await.unwrap();
    for other in [
        once("a", &key(1), "h", "POST /v1/keys", &json!({"name": "m"})),
        once("a", &key(1), "h", "POST /v1/webhooks", &json!({"name": "n"})),
        once("a", &key(1), "h", "POST /v1/keys/k2/rotate", &json!({"name": "n"})),
    ] {
        let refused = run(&other, &backplane, Ok(json!(2))).await;
        let Err(ApiError::Invalid(errors)) = refused else { panic!("accepted") };
        assert!(errors.len() == 1 && errors[0].path == IDEMPOTENCY_KEY);
    }
    for free in [
        once("b", &key(1), "h", "POST /v1/keys", &json!({"name": "n"})),
        once("a", &key(2), "h", "POST /v1/keys", &json!({"name": "n"})),
        once("a", &key(1), "H", "POST /v1/keys", &json!({"name": "n"})),
    ] {
        assert!(run(&free, &backplane, Ok(json!(2))).await.unwrap().is_new);
    }
}

#[tokio::test]
async fn what_surely_was_not_done_may_be_asked_again_and_what_perhaps_was_may_not() {
    let backplane = Backplane::embedded();
    let refused = run(&usual(), &backplane, Err(NotDone::Surely(ApiError::NotFound))).await;
    assert_eq!(refused.err(), Some(ApiError::NotFound));
    // Nothing was used up: also not for another body.
    let other = once("a", &key(1), "h", "POST /v1/keys", &json!({"name": "m"}));
    let lost = run(&other, &backplane, Err(NotDone::Perhaps(ApiError::Unavailable))).await;
    assert_eq!(lost.err(), Some(ApiError::Unavailable));
    let again = run(&other, &backplane, Ok(json!(1))).await;
    assert!(matches!(again.err(), Some(ApiError::Conflict(_))));
}

#[tokio::test]
async fn of_many_at_once_one_is_done_and_all_get_its_answer() {
    let (backplane, made) = (Backplane::embedded(), Cell::new(0));
    let ask = async || {
        let create = async {
            made.set(made.get() + 1);
            tokio::task::yield_now().await;
            Ok(json!({"n": made.get()}))
        };
        usual().run(&*backplane.ledger, BUDGET, create).await.unwrap().json
    };
    let all = futures_util::future::join_all((0..8).map(|_| ask())).await;
    assert!(made.get() == 1 && all.iter().all(|json| *json == all[0]));
}

#[test]
fn a_call_that_never_ended_is_waited_for_and_then_nobody_knows_and_then_it_is_forgotten() {
    let at = |millis| Timestamp::from_millisecond(millis).unwrap();
    let entry = Entry { call: "c".to_owned(), until: 5_000, ends: 600, state: State::UnderWay };
    assert_eq!(entry.judge("c", at(4_999)), Judgement::UnderWay);
    assert_eq!(entry.judge("d", at(4_999)), Judgement::Otherwise);
    assert_eq!(entry.judge("c", at(5_000)), Judgement::Unknown);
    let answered = Entry { state: State::Answered("s".to_owned()), ..entry.clone() };
    assert_eq!(answered.judge("c", at(599_999)), Judgement::Answered("s".to_owned()));
    for entry in [entry, answered] {
        assert_eq!(entry.judge("c", at(600_000)), Judgement::Free);
        assert_eq!(entry.judge("d", at(600_000)), Judgement::Free);
    }
}
