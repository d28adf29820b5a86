//! Approvals under load: of any number of checks exactly one is allowed, whichever process dies meanwhile.
//!
//! Three evaluators and two gateways on NATS. In each round people approve one action, 64 checks ask for it at once,
//! and something is killed with kill -9 in the middle. What must hold: never two ALLOW answers or lines, and afterwards
//! the approval says who used it, or can be used once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::{Client, HeaderMap, Message};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Agent, Api, Member, Packs, Stack, Team, two_release_managers};
use tokio::task::JoinHandle;

const CHECKS: usize = 64;
/// Lines of new kinds are written once a heartbeat of each process was received, and a new gateway waits for them.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// Rounds of each victim.
const ROUNDS: usize = 3;

struct Crew {
    stack: Stack,
    team: Team,
    agent: Agent,
    members: [Member; 2],
    /// Evaluators that start again read them again.
    _packs: Packs,
}

impl Crew {
    async fn new() -> Self {
        let packs = two_release_managers();
        let stack = Stack::build().policies(&packs).gateways(2).evaluators(3).nats().await;
        let team = Team::verified(&stack).await;
        let agent = team.agent().await;
        let members =
            [team.member("Ada", &["release-managers"]).await, team.member("Bob", &["release-managers"]).await];
        Self { stack, team, agent, members, _packs: packs }
    }

    /// The first gateway's address may be another by now.
    fn agent(&self) -> Agent {
        self.agent.at(&self.stack.urls[0])
    }

    /// Asks until an approval is opened, and both members approve it.
    async fn approved(&self, body: &Value) -> Value {
        let agent = self.agent();
        let mut approval = Value::Null;
        wait_for("an approval", WAIT_TIMEOUT, async || {
            let answer = agent.api.check(body).await;
            approval = answer.body["approval"].clone();
            approval.is_object()
        })
        .await;
        for member in &self.members {
            let member = member.at(&self.stack.urls[0]);
            wait_for("a vote", WAIT_TIMEOUT, async || member.api.approve(&approval).await.status == 200).await;
        }
        approval
    }

    /// The ALLOW lines of the log that used this approval.
    async fn lines(&self, approval: &Value) -> Vec<String> {
        let lines = self.team.at(&self.stack.urls[0]).admin.decisions("limit=1000&verdict=ALLOW").await;
        let of_it = lines.iter().filter(|line| line["approval"]["id"] == approval["id"]);
        of_it.map(|line| line["request_id"].as_str().unwrap().to_owned()).collect()
    }

    /// After everything runs again: nothing was allowed twice, and no grant was lost without a word.
    async fn assert_once(&self, approval: &Value, body: &Value, allowed: &[String]) {
        let agent = self.agent();
        assert!(allowed.len() <= 1, "{} answers allowed it", allowed.len());
        let mut shown = Value::Null;
        wait_for("the approval", WAIT_TIMEOUT, async || {
            let answer = agent.api.approval(approval).await;
            shown = answer.body;
            answer.status == 200
        })
        .await;
        let lines = self.lines(approval).await;
        assert!(lines.len() <= 1, "{lines:?} are in the log");
        if let Some(answer) = allowed.first() {
            assert_eq!(lines, std::slice::from_ref(answer), "what was answered is recorded");
        }
        match shown["status"].as_str().unwrap() {
            "consumed" | "reserved" => {
                assert!(shown["used_by"].is_string(), "it names the request: {shown:#}");
                if let Some(line) = lines.first() {
                    assert_eq!(shown["used_by"], json!(line), "{shown:#}");
                }
            }
            // Nothing used it, so it is still there.
            "approved" => assert_eq!(lines, [""; 0], "{shown:#}"),
            other => panic!("{other}: {shown:#}"),
        }
        if lines.is_empty() {
            self.assert_usable_once(approval, body, &shown).await;
        }
        let verdict = async || {
            let answer = agent.api.check(body).await;
            assert_ne!(answer.body["verdict"], "ALLOW", "{}", answer.text);
            answer.status == 200
        };
        wait_for("an answer", WAIT_TIMEOUT, verdict).await;
    }

    /// Its decision is not in the log. A person who has looked opens it again where it counts as used.
    async fn assert_usable_once(&self, approval: &Value, body: &Value, shown: &Value) {
        if shown["status"] != "approved" {
            let member = self.members[0].at(&self.stack.urls[0]);
            let reopened = async || member.api.reopen(approval, "the check was not recorded").await.status == 200;
            wait_for("it is open again", WAIT_TIMEOUT, reopened).await;
        }
        let agent = self.agent();
        let allowed = async || {
            let answer = agent.api.check(body).await;
            answer.body["verdict"] == "ALLOW"
        };
        wait_for("its use", WAIT_TIMEOUT, allowed).await;
        assert_eq!(self.lines(approval).await.len(), 1);
    }
}

/// Checks that are on their way.
struct Storm {
    answered: Arc<AtomicUsize>,
    callers: Vec<JoinHandle<Vec<String>>>,
}

impl Storm {
    /// At the gateways in turn, each on its own. Where there is no answer, a caller asks once more at the other one.
    fn start(crew: &Crew, body: &Value) -> Self {
        let answered = Arc::new(AtomicUsize::new(0));
        let callers = (0..CHECKS).map(|number| {
            let (urls, body, agent) = (crew.stack.urls.clone(), body.clone(), crew.agent.api.clone());
            let answered = Arc::clone(&answered);
            tokio::spawn(async move {
                let mut allowed = Vec::new();
                for attempt in 0..2 {
                    let api = agent.at(&urls[(number + attempt) % urls.len()]);
                    let Ok(answer) = api.try_check(&body).await else { continue };
                    if answer.status != 200 {
                        assert_eq!(answer.status, 503, "{}", answer.text);
                        continue;
                    }
                    if answer.body["verdict"] == "ALLOW" {
                        allowed.push(answer.body["request_id"].as_str().unwrap().to_owned());
                    } else {
                        assert_eq!(answer.body["verdict"], "DEFER", "{}", answer.text);
                    }
                    break;
                }
                answered.fetch_add(1, Ordering::SeqCst);
                allowed
            })
        });
        Self { callers: callers.collect(), answered }
    }

    /// Once so many callers have their answer.
    async fn answers(&self, count: usize) {
        wait_for("answers", WAIT_TIMEOUT, async || self.answered.load(Ordering::SeqCst) >= count).await;
    }

    /// The ids of those that were allowed.
    async fn end(self) -> Vec<String> {
        join_all(self.callers).await.into_iter().flat_map(Result::unwrap).collect()
    }
}

/// Rounds in which `kill` ends something and starts it again.
async fn rounds(what: &str, mut kill: impl AsyncFnMut(&mut Crew, usize)) {
    let mut crew = Crew::new().await;
    for round in 0..ROUNDS {
        let body = Api::deployment_of(&format!("{what} {round}"));
        let approval = crew.approved(&body).await;
        let storm = Storm::start(&crew, &body);
        // At another moment each time: before the first answer, after it, and with many still on their way.
        storm.answers(round * 8).await;
        kill(&mut crew, round).await;
        let allowed = storm.end().await;
        crew.assert_once(&approval, &body, &allowed).await;
    }
    let admin = crew.team.at(&crew.stack.urls[0]).admin;
    assert_eq!(admin.verify().await["ok"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_64_checks_on_three_evaluators_and_two_gateways_exactly_one_is_allowed() {
    let crew = Crew::new().await;
    for round in 0..ROUNDS {
        let body = Api::deployment_of(&format!("service {round}"));
        let approval = crew.approved(&body).await;
        let allowed = Storm::start(&crew, &body).end().await;
        assert_eq!(allowed.len(), 1, "round {round}");
        assert_eq!(crew.lines(&approval).await, allowed);
        crew.agent.api.until(&approval, "consumed").await;
        let shown = crew.agent.api.approval(&approval).await.expect(200);
        assert_eq!((&shown["status"], &shown["used_by"]), (&json!("consumed"), &json!(allowed[0])), "{shown:#}");
    }
    assert_eq!(crew.team.admin.verify().await["ok"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_64_checks_under_one_idempotency_key_all_are_the_one_that_is_allowed() {
    let crew = Crew::new().await;
    let body = Api::deployment();
    let approval = crew.approved(&body).await;
    let asks = (0..CHECKS).map(|number| {
        let (api, body) = (crew.agent.api.at(&crew.stack.urls[number % 2]), &body);
        async move { api.check_under("once", body).await.expect(200) }
    });
    let answers = join_all(asks).await;
    let ids: BTreeSet<_> = answers.iter().map(|answer| answer["request_id"].as_str().unwrap().to_owned()).collect();
    assert!(answers.iter().all(|answer| answer["verdict"] == "ALLOW"), "{:#}", answers[0]);
    assert_eq!(crew.lines(&approval).await, ids.into_iter().collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn killed_evaluators_allow_no_approved_action_twice() {
    rounds("evaluator", async |crew: &mut Crew, round| {
        for index in 0..=round.min(1) {
            crew.stack.restart_evaluator(index);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_killed_gateway_allows_no_approved_action_twice() {
    rounds("gateway", async |crew: &mut Crew, round| crew.stack.restart_gateway(round % 2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_killed_keystore_allows_no_approved_action_twice() {
    rounds("keystore", async |crew: &mut Crew, _| {
        crew.stack.keystore.as_mut().unwrap().kill();
        crew.stack.start_keystore();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_killed_nats_server_allows_no_approved_action_twice() {
    rounds("nats", async |crew: &mut Crew, _| crew.stack.restart_nats().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pending_and_approved_approvals_survive_kill_9_of_every_process_at_once() {
    let mut crew = Crew::new().await;
    let (pending, approved) = (Api::deployment_of("pending"), Api::deployment_of("approved"));
    let given = crew.approved(&approved).await;
    let waits = crew.agent.api.deferred(&pending).await;
    crew.members[0].api.approve(&waits).await.expect(200);
    for (_, process) in crew.stack.processes() {
        process.kill();
    }
    crew.stack.restart_nats().await;
    crew.stack.start_keystore();
    for index in 0..3 {
        crew.stack.restart_evaluator(index);
    }
    crew.stack.restart_exporter(0);
    crew.stack.restart_gateway(0);
    crew.stack.restart_gateway(1);
    let (agent, bob) = (crew.agent(), crew.members[1].at(&crew.stack.urls[1]));
    wait_for("a gateway", WAIT_TIMEOUT, async || agent.api.approval(&given).await.status == 200).await;
    assert_eq!(agent.api.standing(&given).await, "approved");
    wait_for("a vote", WAIT_TIMEOUT, async || bob.api.approve(&waits).await.status == 200).await;
    for body in [&approved, &pending] {
        let allowed = async || agent.api.check(body).await.body["verdict"] == "ALLOW";
        wait_for("its use", WAIT_TIMEOUT, allowed).await;
        assert_eq!(agent.api.verdict(body).await.0, "DEFER");
    }
}

async fn bystander(stack: &Stack) -> Client {
    async_nats::connect(stack.nats.as_ref().unwrap().url()).await.unwrap()
}

/// Puts a record into the open state store; it is there when this returns.
async fn store(client: &Client, subject: &str, headers: HeaderMap, payload: Vec<u8>) {
    let inbox = client.new_inbox();
    let mut stored = client.subscribe(inbox.clone()).await.unwrap();
    let sent = client.publish_with_reply_and_headers(subject.to_owned(), inbox, headers, payload.into());
    sent.await.unwrap();
    let answer = stored.next().await.unwrap();
    assert!(String::from_utf8_lossy(&answer.payload).contains("\"seq\""), "{answer:?}");
}

/// The records that were written, the last of each subject.
async fn written(client: &Client, records: &mut async_nats::Subscriber) -> Vec<Message> {
    let end = client.new_inbox();
    let mut ended = client.subscribe(end.clone()).await.unwrap();
    client.publish(end, "".into()).await.unwrap();
    ended.next().await.unwrap();
    let mut last: Vec<Message> = Vec::new();
    while let Ok(Some(message)) = tokio::time::timeout(Duration::from_millis(200), records.next()).await {
        last.retain(|known| known.subject != message.subject);
        last.push(message);
    }
    last
}

#[tokio::test]
async fn a_forged_or_repeated_record_of_an_approval_in_an_open_state_store_allows_nothing() {
    let crew = Crew::new().await;
    let client = bystander(&crew.stack).await;
    let mut records = client.subscribe("s0.ledger.approvals.a.>").await.unwrap();
    client.flush().await.unwrap();
    let body = Api::deployment();
    let approval = crew.approved(&body).await;
    let id = approval["id"].as_str().unwrap();
    let slot = id.trim_start_matches("apr_").split('_').next().unwrap();
    let of_it = |message: &Message| message.subject.ends_with(&format!(".{slot}"));
    let approved = written(&client, &mut records).await.into_iter().find(of_it).expect("its record");
    let allowed = crew.agent.api.check(&body).await.expect(200);
    assert_eq!(allowed["verdict"], "ALLOW");

    // The record from when it was approved, with its authentication, is put back: it is not approved again.
    let mut headers = HeaderMap::new();
    for (name, values) in approved.headers.clone().unwrap_or_default().iter() {
        if !name.to_string().starts_with("Nats-Expected") {
            values.iter().for_each(|value| headers.append(name.clone(), value.clone()));
        }
    }
    store(&client, &approved.subject, headers, approved.payload.to_vec()).await;
    for url in &crew.stack.urls {
        let answer = crew.agent.api.at(url).check(&body).await;
        assert_ne!(answer.body["verdict"], "ALLOW", "{}", answer.text);
    }
    // What was never authenticated is not believed at all.
    let forged = String::from_utf8_lossy(&approved.payload).into_owned();
    for payload in [forged, "{}".to_owned(), String::new()] {
        store(&client, &approved.subject, HeaderMap::new(), payload.into_bytes()).await;
        for url in &crew.stack.urls {
            let answer = crew.agent.api.at(url).check(&body).await;
            assert_ne!(answer.body["verdict"], "ALLOW", "{}", answer.text);
        }
    }
    assert_eq!(crew.lines(&approval).await.len(), 1);
    // Another action of the same workload is decided as ever.
    let other = Api::deployment_of("billing");
    crew.approved(&other).await;
    assert_eq!(crew.agent.api.verdict(&other).await.0, "ALLOW");
}
