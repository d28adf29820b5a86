//! Requests with secrets, on a real server: who can read them, and what happens when the keystore is replaced.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use stage0_backplane::nats::Connection;
use stage0_backplane::testing::NatsServer;
use stage0_backplane::{Backplane, RequestError};
use stage0_contract::{
    ChangeApproval, FetchAction, KeystoreStatus, ListEndpoints, ReadPeople, Request as _, ShowApproval, VerifyKey,
};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::PATIENT;
use crate::writing::soon;

const SECRET: Bytes = Bytes::from_static(b"{\"key\":\"a secret\"}");

async fn connected(nats: &NatsServer, name: &str) -> Backplane {
    Connection::open(&nats.config(name)).await.unwrap().backplane()
}

/// Answers each request with itself, as a keystore would; ends when the value is dropped.
async fn keystore(nats: &NatsServer, offers: bool) -> JoinSet<()> {
    let backplane = connected(nats, "keystore").await;
    let key = backplane.requests.sealing_key().filter(|_| offers);
    let status = key.map_or_else(|| "{\"writable\":true}".to_owned(), |key| format!("{{\"sealing_key\":\"{key}\"}}"));
    let mut tasks = JoinSet::new();
    for subject in [KeystoreStatus::SUBJECT, VerifyKey::SUBJECT, ListEndpoints::SUBJECT] {
        let (mut inbox, status) = (backplane.requests.serve_bytes(subject).await.unwrap(), status.clone());
        tasks.spawn(async move {
            while let Some(asked) = inbox.next().await {
                let is_status = subject == KeystoreStatus::SUBJECT;
                let answer = if is_status { status.clone().into() } else { asked.body.as_bytes().unwrap().clone() };
                asked.replier.reply(answer).await;
            }
        });
    }
    tasks
}

/// Everything that is sent until the work is done, as text where possible.
async fn heard_while(nats: &NatsServer, work: impl Future<Output = ()>) -> Vec<(String, Bytes)> {
    let listener = async_nats::connect(nats.url()).await.unwrap();
    let mut heard = listener.subscribe(">").await.unwrap();
    // A flush proves nothing about the server: its own message comes back once the subscription is active.
    listener.publish("begin", Bytes::new()).await.unwrap();
    while heard.next().await.unwrap().subject.as_str() != "begin" {}
    work.await;
    listener.publish("end", Bytes::new()).await.unwrap();
    let mut messages = Vec::new();
    while let Some(message) = heard.next().await.filter(|message| message.subject.as_str() != "end") {
        messages.push((message.subject.to_string(), message.payload));
    }
    messages
}

fn reads(payload: &Bytes) -> bool {
    payload.windows(8).any(|part| part == b"a secret")
}

#[tokio::test]
async fn a_sealed_request_and_its_reply_are_readable_only_by_their_two_processes() {
    let nats = NatsServer::start().await;
    let (_keystore, gateway) = (keystore(&nats, true).await, connected(&nats, "gateway").await);
    let work = async {
        for subject in [VerifyKey::SUBJECT, VerifyKey::SUBJECT, ListEndpoints::SUBJECT] {
            let answer = gateway.requests.request_bytes(subject, SECRET, soon()).await;
            assert_eq!(answer, Ok(SECRET), "{subject}");
        }
    };
    let messages = heard_while(&nats, work).await;
    let asked = |subject: &str| messages.iter().filter(|(heard, _)| heard == subject).collect::<Vec<_>>();
    assert_eq!(asked("s0.req.keys.status").len(), 1, "the key is asked for once");
    assert!(asked("s0.req.keys.verify").iter().all(|(_, request)| !reads(request)));
    // A request with a secret only in its reply is sent in plain, and nothing readable answers it.
    assert!(asked("s0.req.keys.endpoints.list").iter().all(|(_, request)| reads(request)));
    let answers = messages.iter().filter(|(subject, _)| subject.starts_with("_INBOX_gateway."));
    assert_eq!(
        answers.inspect(|(_, answer)| assert!(!reads(answer))).filter(|(_, answer)| !answer.is_empty()).count(),
        4
    );
}

/// The text of an action stands in an evaluator's answer, and the key that seals such texts in the keystore's.
#[tokio::test]
async fn the_secret_answers_of_evaluators_and_those_to_evaluators_are_readable_only_by_their_askers() {
    let nats = NatsServer::start().await;
    let (gateway, evaluator) = (connected(&nats, "gateway").await, connected(&nats, "evaluator").await);
    let keystore = connected(&nats, "keystore").await;
    let sealed = [FetchAction::SUBJECT, ShowApproval::SUBJECT, ChangeApproval::SUBJECT];
    let mut serving = JoinSet::new();
    for (server, subject) in
        sealed.map(|subject| (&evaluator, subject)).into_iter().chain([(&keystore, ReadPeople::SUBJECT)])
    {
        let mut inbox = server.requests.serve_bytes(subject).await.unwrap();
        serving.spawn(async move {
            while let Some(asked) = inbox.next().await {
                asked.replier.reply(SECRET).await;
            }
        });
    }
    let work = async {
        for subject in sealed {
            assert_eq!(gateway.requests.request_bytes(subject, "{}".into(), soon()).await, Ok(SECRET), "{subject}");
        }
        assert_eq!(evaluator.requests.request_bytes(ReadPeople::SUBJECT, "{}".into(), soon()).await, Ok(SECRET));
    };
    let messages = heard_while(&nats, work).await;
    let answers = messages.iter().filter(|(subject, answer)| subject.starts_with("_INBOX_") && !answer.is_empty());
    assert_eq!(answers.inspect(|(_, answer)| assert!(!reads(answer))).count(), 4);
}

#[tokio::test]
async fn a_request_is_sealed_again_for_a_keystore_that_replaced_another() {
    let nats = NatsServer::start().await;
    let (first, gateway) = (keystore(&nats, true).await, connected(&nats, "gateway").await);
    assert_eq!(gateway.requests.request_bytes(VerifyKey::SUBJECT, SECRET, soon()).await, Ok(SECRET));
    drop(first);
    let _second = keystore(&nats, true).await;
    let began = Instant::now();
    let answer = loop {
        // Requests that the server had given to the first are not answered.
        match gateway.requests.request_bytes(VerifyKey::SUBJECT, SECRET, Instant::now() + Duration::from_secs(2)).await
        {
            Err(RequestError::NoResponders | RequestError::Timeout) if began.elapsed() < PATIENT => {}
            answer => break answer,
        }
    };
    assert_eq!(answer, Ok(SECRET));
}

#[tokio::test]
async fn a_request_to_a_keystore_without_a_sealing_key_is_sent_in_plain() {
    let nats = NatsServer::start().await;
    let (_keystore, gateway) = (keystore(&nats, false).await, connected(&nats, "gateway").await);
    assert_eq!(gateway.requests.request_bytes(VerifyKey::SUBJECT, SECRET, soon()).await, Ok(SECRET));
}

#[tokio::test]
async fn no_secret_is_sent_while_the_keystores_key_is_unknown() {
    let nats = NatsServer::start().await;
    let backplane = connected(&nats, "keystore").await;
    let _inbox = backplane.requests.serve_bytes(VerifyKey::SUBJECT).await.unwrap();
    let gateway = connected(&nats, "gateway").await;
    let work = async {
        // A client that receives everything seems to serve everything.
        let until = Instant::now() + Duration::from_secs(1);
        let answer = gateway.requests.request_bytes(VerifyKey::SUBJECT, SECRET, until).await;
        assert_eq!(answer, Err(RequestError::Timeout));
    };
    assert!(heard_while(&nats, work).await.iter().all(|(_, payload)| !reads(payload)));
}
