//! Questions with secrets, on a real server: who reads them, and what becomes of them when the keystore is replaced.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use stage0_backplane::nats::Connection;
use stage0_backplane::testing::NatsServer;
use stage0_backplane::{AskError, Backplane};
use stage0_contract::{KeystoreStatus, ListEndpoints, Request as _, VerifyKey};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::PATIENT;
use crate::writing::soon;

const SECRET: Bytes = Bytes::from_static(b"{\"key\":\"a secret\"}");

async fn connected(nats: &NatsServer, name: &str) -> Backplane {
    Connection::open(&nats.config(name)).await.unwrap().backplane()
}

/// Answers as a keystore does, each question with itself; it ends with the value.
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
                let answer = if is_status { status.clone().into() } else { asked.question.clone() };
                asked.replier.reply(answer).await;
            }
        });
    }
    tasks
}

/// What passes until the work is done, as text where it is that.
async fn heard_while(nats: &NatsServer, work: impl Future<Output = ()>) -> Vec<(String, Bytes)> {
    let listener = async_nats::connect(nats.url()).await.unwrap();
    let mut heard = listener.subscribe(">").await.unwrap();
    // A flush tells nothing of the server: its own word comes back once the subscription stands.
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
async fn a_question_with_a_secret_and_its_answer_are_read_by_their_two_processes_alone() {
    let nats = NatsServer::start().await;
    let (_keystore, gateway) = (keystore(&nats, true).await, connected(&nats, "gateway").await);
    let work = async {
        for subject in [VerifyKey::SUBJECT, VerifyKey::SUBJECT, ListEndpoints::SUBJECT] {
            let answer = gateway.requests.ask_bytes(subject, SECRET, soon()).await;
            assert_eq!(answer, Ok(SECRET), "{subject}");
        }
    };
    let messages = heard_while(&nats, work).await;
    let asked = |subject: &str| messages.iter().filter(|(heard, _)| heard == subject).collect::<Vec<_>>();
    assert_eq!(asked("s0.req.keys.status").len(), 1, "the key is asked for once");
    assert!(asked("s0.req.keys.verify").iter().all(|(_, question)| !reads(question)));
    // What only its answer holds is asked in plain, and nothing that answers it is read.
    assert!(asked("s0.req.keys.endpoints.list").iter().all(|(_, question)| reads(question)));
    let answers = messages.iter().filter(|(subject, _)| subject.starts_with("_INBOX_gateway."));
    assert_eq!(
        answers.inspect(|(_, answer)| assert!(!reads(answer))).filter(|(_, answer)| !answer.is_empty()).count(),
        4
    );
}

#[tokio::test]
async fn a_keystore_that_took_the_place_of_another_is_asked_once_more_under_its_own_key() {
    let nats = NatsServer::start().await;
    let (first, gateway) = (keystore(&nats, true).await, connected(&nats, "gateway").await);
    assert_eq!(gateway.requests.ask_bytes(VerifyKey::SUBJECT, SECRET, soon()).await, Ok(SECRET));
    drop(first);
    let _second = keystore(&nats, true).await;
    let began = Instant::now();
    let answer = loop {
        // Those that the server had given to the first are not answered.
        match gateway.requests.ask_bytes(VerifyKey::SUBJECT, SECRET, Instant::now() + Duration::from_secs(2)).await {
            Err(AskError::Absent | AskError::Late) if began.elapsed() < PATIENT => {}
            answer => break answer,
        }
    };
    assert_eq!(answer, Ok(SECRET));
}

#[tokio::test]
async fn a_keystore_that_offers_no_key_is_asked_in_plain() {
    let nats = NatsServer::start().await;
    let (_keystore, gateway) = (keystore(&nats, false).await, connected(&nats, "gateway").await);
    assert_eq!(gateway.requests.ask_bytes(VerifyKey::SUBJECT, SECRET, soon()).await, Ok(SECRET));
}

#[tokio::test]
async fn where_nobody_tells_a_key_no_secret_is_sent() {
    let nats = NatsServer::start().await;
    let backplane = connected(&nats, "keystore").await;
    let _inbox = backplane.requests.serve_bytes(VerifyKey::SUBJECT).await.unwrap();
    let gateway = connected(&nats, "gateway").await;
    let work = async {
        // Whoever hears everything seems to serve everything.
        let until = Instant::now() + Duration::from_secs(1);
        let answer = gateway.requests.ask_bytes(VerifyKey::SUBJECT, SECRET, until).await;
        assert_eq!(answer, Err(AskError::Late));
    };
    assert!(heard_while(&nats, work).await.iter().all(|(_, payload)| !reads(payload)));
}
