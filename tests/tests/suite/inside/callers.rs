//! A gateway that is taken over, and what it can do in the name of callers; an evaluator that answers too much.
//!
//! The attacker has all that a gateway has: a place on the server and the role's message keys. It invents callers whose
//! keys it never saw, asks for deletions in their names, and listens. Each refusal stands beside the same call made
//! with the caller's own key, which is done.

use std::time::Duration;

use futures_util::StreamExt as _;
use jiff::Timestamp;
use serde_json::json;
use stage0_backplane::Backplane;
use stage0_backplane::nats::{Connection, MessageAuth, MessageKeys};
use stage0_backplane::testing::wait_for;
use stage0_contract::{
    AccountId, ApiKey, Caller, CallerTexts, CheckRequest, CreateKey, DeleteDecisions, DeletionPermit, EvaluateReply,
    EvaluateRequest, Evaluation, KeyIdentity, ListEndpoints, ManageReply, PermitDeletion, Refusal, Request, RequestId,
    RevokeKey, Role, Scope, Scopes, VerifyKey, VerifyKeyReply,
};
use stage0_tests::{Api, Stack, account_scopes};

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// A process with the message keys of a role of the stack.
async fn taken_over(stack: &Stack, role: Role) -> Backplane {
    let keys = std::fs::read_to_string(stack.keys_dir().join(format!("{role}.keys"))).unwrap();
    let auth = MessageAuth::new(&MessageKeys::parse(&keys).unwrap(), role, false).unwrap();
    let mut config = stack.nats.as_ref().unwrap().config(role.as_str());
    config.auth = Some(auth);
    Connection::open(&config).await.unwrap().backplane()
}

async fn ask<R: Request>(attacker: &Backplane, question: &R) -> R::Reply {
    attacker.requests.request(question, WAIT_TIMEOUT).await.unwrap()
}

fn key_of(api: &Api) -> ApiKey {
    ApiKey::parse(api.key.as_ref().unwrap()).unwrap()
}

/// What the keystore says of a key: any gateway may ask that.
async fn identity(attacker: &Backplane, key: &ApiKey) -> KeyIdentity {
    match ask(attacker, &VerifyKey { key: key.clone(), request_id: None }).await {
        VerifyKeyReply::Valid(identity) => identity,
        other => panic!("{other:?}"),
    }
}

fn operator_key(caller: Caller, account: &AccountId) -> CreateKey {
    let (account, scopes) = (Some(account.clone()), Scopes::from([Scope::Operator]));
    CreateKey { owner: None, caller, account, name: "minted".to_owned(), scopes, expires_at: None }
}

fn is_refused<T: std::fmt::Debug>(reply: &ManageReply<T>) -> bool {
    matches!(reply, ManageReply::Refused(Refusal::ScopeMissing(_)) | ManageReply::Failed)
}

#[tokio::test]
async fn a_gateway_makes_no_key_in_the_name_of_an_operator_whose_key_it_never_saw() {
    let stack = Stack::build().nats().await;
    let attacker = taken_over(&stack, Role::Gateway).await;
    // Ids of keys are no secret, and its own key is any customer's.
    let operator = identity(&attacker, &key_of(&stack.operator)).await;
    let own = key_of(&stack.api);
    let invented = ApiKey::from_random([7; 10], [9; 20]).unwrap();
    for key in [None, Some(own.clone()), Some(invented)] {
        let caller = Caller { key, ..Caller::new(&operator, &own) };
        let minted = ask(&attacker, &operator_key(caller.clone(), &operator.account)).await;
        assert!(is_refused(&minted), "{minted:?}");
        let revoked = ask(&attacker, &RevokeKey { caller, id: operator.key_id.clone() }).await;
        assert!(is_refused(&revoked), "{revoked:?}");
    }
    // Claims in the request do not widen the rights of the key that it presents.
    let widened =
        Caller { scopes: Scope::ALL.into_iter().collect(), ..Caller::new(&identity(&attacker, &own).await, &own) };
    let minted = ask(&attacker, &operator_key(widened, &operator.account)).await;
    assert!(matches!(minted, ManageReply::Refused(_)), "{minted:?}");
    let keys = stack.operator.get("/v1/keys").await.expect(200);
    assert!(!keys.to_string().contains("minted"), "{keys:#}");

    let genuine = Caller::new(&operator, &key_of(&stack.operator));
    let done = ask(&attacker, &operator_key(genuine, &operator.account)).await;
    assert!(matches!(done, ManageReply::Done(_)), "with the key itself it is the operator's call: {done:?}");
    let body = json!({"name": "honest", "scopes": ["check"]});
    stack.api.post("/v1/keys", &body).await.expect(201);
}

#[tokio::test]
async fn decisions_are_deleted_only_for_a_caller_whose_key_was_shown_and_under_its_own_name() {
    let stack = Stack::build().nats().await;
    let attacker = taken_over(&stack, Role::Gateway).await;
    for _ in 0..3 {
        stack.api.decide(&Api::harmless()).await;
    }
    let victim = identity(&attacker, &key_of(&stack.api)).await;
    let (_, own, own_id) = stack.operator.account("thief", None, &account_scopes()).await;
    let own = ApiKey::parse(&own).unwrap();
    let before = Timestamp::now();
    let deletion = |permit: Option<DeletionPermit>| DeleteDecisions {
        account: victim.account.clone(),
        before,
        requested_by: victim.key_id.clone(),
        permit,
    };
    let invented = DeletionPermit { expires_at: before + WAIT_TIMEOUT, mac: "A".repeat(43) };
    for permit in [None, Some(invented)] {
        let deleted = ask(&attacker, &deletion(permit)).await;
        assert!(is_refused(&deleted), "{deleted:?}");
    }
    // A permit of its own account, and one that is asked for in the victim's name.
    let thief = identity(&attacker, &own).await;
    let of_thief = PermitDeletion { caller: Caller::new(&thief, &own), before };
    let ManageReply::Done(permit) = ask(&attacker, &of_thief).await else { panic!("it may delete its own") };
    let renamed = DeleteDecisions { requested_by: thief.key_id.clone(), ..deletion(Some(permit.clone())) };
    for deletion in [deletion(Some(permit)), renamed] {
        let deleted = ask(&attacker, &deletion).await;
        assert!(is_refused(&deleted), "{deleted:?}");
    }
    for key in [None, Some(own.clone())] {
        let permit =
            ask(&attacker, &PermitDeletion { caller: Caller { key, ..Caller::new(&victim, &own) }, before }).await;
        assert!(is_refused(&permit), "{permit:?}");
    }
    assert_eq!(stack.api.decisions("").await.len(), 3);
    let report = stack.api.verify().await;
    assert_eq!((&report["ok"], &report["deletions"]), (&json!(true), &json!(0)), "{report:#}");

    // The permit of a caller who did ask carries no other name and no other time.
    let asked = PermitDeletion { caller: Caller::new(&victim, &key_of(&stack.api)), before };
    let ManageReply::Done(permit) = ask(&attacker, &asked).await else { panic!("the owner may") };
    let renamed = DeleteDecisions { requested_by: thief.key_id, ..deletion(Some(permit.clone())) };
    let later = DeleteDecisions { before: before + Duration::from_millis(1), ..deletion(Some(permit)) };
    for deletion in [renamed, later] {
        assert!(is_refused(&ask(&attacker, &deletion).await));
    }
    assert_eq!(stack.api.decisions("").await.len(), 3);

    let deleted = stack.api.delete(&format!("/v1/decisions?before={before}")).await.expect(200);
    assert_eq!(deleted["count"], 3, "{deleted:#}");
    assert_eq!(stack.api.verify().await["deletions"], 1);
    let log = stack.api.get("/v1/decisions/export").await.text;
    assert!(log.contains(victim.key_id.as_str()) && !log.contains(&own_id), "{log}");
}

/// Everything that passes on the server until this client's own word comes back.
async fn heard_while<T>(stack: &Stack, doing: impl Future<Output = T>) -> (Vec<async_nats::Message>, T) {
    let client = async_nats::connect(stack.nats.as_ref().unwrap().url()).await.unwrap();
    let mut heard = client.subscribe(">").await.unwrap();
    client.flush().await.unwrap();
    let done = doing.await;
    let (end, mut messages) = ("the.end", Vec::new());
    client.publish(end, "".into()).await.unwrap();
    while let Some(message) = heard.next().await.filter(|message| message.subject.as_str() != end) {
        messages.push(message);
    }
    (messages, done)
}

fn holds(message: &async_nats::Message, secret: &str) -> bool {
    message.payload.windows(secret.len()).any(|part| part == secret.as_bytes())
}

async fn no_secret_is_read_on_the_way(stack: &Stack) {
    let work = async {
        let made = stack.api.post("/v1/keys", &json!({"name": "n", "scopes": ["check"]})).await.expect(201);
        let (id, key) = (made["id"].as_str().unwrap().to_owned(), made["key"].as_str().unwrap().to_owned());
        let rotated = stack.api.post(&format!("/v1/keys/{id}/rotate"), &json!({})).await.expect(201);
        let rotated = rotated["key"].as_str().unwrap().to_owned();
        // Presented for the first time, so that it is verified.
        stack.api.with_key(&rotated).check(&Api::harmless()).await.expect(200);
        let (hook, secret) = stack.api.webhook("https://hooks.example/in").await;
        let again = stack.api.post(&format!("/v1/webhooks/{hook}/rotate-secret"), &json!({})).await.expect(201);
        let again = again["secret"].as_str().unwrap().to_owned();
        // Exporters have heard of it once they list its deliveries.
        wait_for("the exporter to know the endpoint", WAIT_TIMEOUT, async || {
            stack.api.post(&format!("/v1/webhooks/{hook}/test"), &json!({})).await.status == 200
        })
        .await;
        [key, rotated, secret, again]
    };
    let (messages, secrets) = heard_while(stack, work).await;
    for subject in
        ["s0.req.keys.create", "s0.req.keys.verify", "s0.req.keys.webhooks.rotate", "s0.req.keys.endpoints.list"]
    {
        assert!(messages.iter().any(|message| message.subject.as_str() == subject), "{subject} was not heard");
    }
    let presented = [stack.api.key.clone().unwrap(), stack.operator.key.clone().unwrap()];
    for secret in secrets.iter().chain(&presented) {
        let of_key = secret.rsplit('_').next().unwrap();
        let read = messages.iter().find(|message| holds(message, of_key));
        assert!(read.is_none(), "a secret is read in a message at {}", read.unwrap().subject);
    }
    // What is no secret is read: the test looks at the right messages.
    assert!(messages.iter().any(|message| holds(message, &stack.account)));
}

#[tokio::test]
async fn api_keys_and_webhook_secrets_cannot_be_read_by_a_subscriber_to_all_messages() {
    no_secret_is_read_on_the_way(&Stack::build().private_webhooks().nats().await).await;
}

#[tokio::test]
async fn secrets_are_sealed_from_listeners_even_without_message_keys() {
    no_secret_is_read_on_the_way(&Stack::build().private_webhooks().without_keys().nats().await).await;
}

#[tokio::test]
async fn another_process_of_a_role_cannot_read_a_reply_or_replay_a_sealed_request() {
    let stack = Stack::build().nats().await;
    let attacker = taken_over(&stack, Role::Gateway).await;
    let body = json!({"name": "once", "scopes": ["check"]});
    let (messages, made) = heard_while(&stack, stack.api.post("/v1/keys", &body)).await;
    made.expect(201);
    let question = messages.iter().find(|message| message.subject.as_str() == "s0.req.keys.create").unwrap();
    let inbox = question.reply.clone().unwrap();
    let answer = messages.iter().find(|message| message.subject == inbox).expect("its answer");
    // The attacker has the role's keys, but neither side's sealing key.
    assert!(!holds(answer, "\"key\"") && !holds(answer, "once") && !holds(question, "once"));
    let client = async_nats::connect(stack.nats.as_ref().unwrap().url()).await.unwrap();
    let again = question.clone();
    let sent = client.publish_with_reply_and_headers(again.subject, inbox, again.headers.unwrap(), again.payload);
    sent.await.unwrap();
    // Asked behind it, and answered when it was judged.
    ask(&attacker, &stage0_contract::KeystoreStatus {}).await;
    let listed = stack.api.get("/v1/keys").await.expect(200);
    assert_eq!(listed.to_string().matches("\"once\"").count(), 1, "{listed:#}");
}

#[tokio::test]
async fn a_gateway_does_not_read_the_secrets_of_endpoints() {
    let stack = Stack::build().nats().await;
    stack.api.webhook("https://hooks.example/in").await;
    let (gateway, exporter) = (taken_over(&stack, Role::Gateway).await, taken_over(&stack, Role::AuditExport).await);
    let asked = gateway.requests.request(&ListEndpoints { cursor: None }, Duration::from_secs(2)).await;
    assert!(asked.is_err(), "{asked:?}");
    let ManageReply::Done(page) = ask(&exporter, &ListEndpoints { cursor: None }).await else { panic!("no page") };
    assert_eq!(page.items.len(), 1);
}

/// An evaluator that was taken over answers every question, with more than anybody asked.
#[tokio::test]
async fn an_evaluator_cannot_fill_the_log_with_unrequested_input() {
    let mut stack = Stack::build().nats().await;
    let (gateway, evaluator) = (taken_over(&stack, Role::Gateway).await, taken_over(&stack, Role::Evaluator).await);
    let question = EvaluateRequest {
        asker: None,
        request_id: RequestId::parse("01a21718-c56a-711b-a828-87929259d107").unwrap(),
        account: AccountId::parse(&stack.account).unwrap(),
        request: CheckRequest::parse(Api::harmless()).unwrap(),
        evaluated_at: jiff::Timestamp::now().as_second(),
        operation: None,
        caller: CallerTexts::default(),
        max_runs: None,
    };
    let genuine = gateway.requests.request(&question, WAIT_TIMEOUT).await.unwrap();
    let EvaluateReply::Decided(genuine) = genuine else { panic!("{genuine:?}") };
    stack.evaluators[0].kill();
    let with = |change: &dyn Fn(&mut Evaluation)| {
        let mut decided = genuine.clone();
        change(&mut decided);
        serde_json::to_vec(&EvaluateReply::Decided(decided)).unwrap()
    };
    let input = |bytes: usize| json!({"goal": "x".repeat(bytes)}).as_object().unwrap().clone();
    let answers = [
        with(&|_| {}),
        with(&|decided| decided.decision.reason = "x".repeat(2_000_000)),
        with(&|decided| decided.recordable.as_mut().unwrap().input = Some(input(1_000_000))),
        with(&|decided| decided.decision.reason = "x".repeat(20_000)),
    ];
    let mut inbox = evaluator.requests.serve_bytes(EvaluateRequest::SUBJECT).await.unwrap();
    let (say, mut said) = tokio::sync::watch::channel(answers[0].clone());
    let answering = tokio::spawn(async move {
        while let Some(asked) = inbox.next().await {
            let answer = said.borrow_and_update().clone();
            asked.replier.reply(answer.into()).await;
        }
    });
    let mut recorded = 0;
    // A reply that is too long is refused, and an input that was not requested is dropped.
    for (answer, status) in answers.into_iter().zip([200, 503, 200, 200]) {
        say.send_replace(answer);
        let answer = stack.api.check(&Api::harmless()).await;
        assert_eq!(answer.status, status, "{}", answer.body);
        recorded += usize::from(status == 200);
    }
    let decisions = stack.api.decisions("limit=1000").await;
    assert_eq!(decisions.len(), recorded);
    assert!(decisions.iter().all(|decision| decision.to_string().len() < 50_000));
    answering.abort();
}
