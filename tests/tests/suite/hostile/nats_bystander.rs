//! A bystander with a place on an open NATS and plain NATS tools: it hears, answers, forges, repeats and puts back. No
//! answer of its own is believed or recorded, and what it does not take away is decided as ever.

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap, Message};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use stage0_backplane::nats::KeySet;
use stage0_backplane::testing::{NatsServer, wait_for};
use stage0_contract::Role;
use stage0_tests::{Api, Process, Stack, write_keys};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const LONG_TIMEOUT: Duration = Duration::from_secs(60);
const EVALUATE: &str = "s0.req.evaluate";

async fn bystander(stack: &Stack) -> Client {
    async_nats::connect(stack.nats.as_ref().unwrap().url()).await.unwrap()
}

/// The server has handled what this client sent before.
async fn is_done(client: &Client) {
    let inbox = client.new_inbox();
    let mut echo = client.subscribe(inbox.clone()).await.unwrap();
    client.publish(inbox, "".into()).await.unwrap();
    echo.next().await.unwrap();
}

/// Puts a message into a stream; it is there when this returns.
async fn store(client: &Client, subject: &str, body: &str) {
    let inbox = client.new_inbox();
    let mut stored = client.subscribe(inbox.clone()).await.unwrap();
    client.publish_with_reply(subject.to_owned(), inbox, body.to_owned().into()).await.unwrap();
    let answer = stored.next().await.unwrap();
    assert!(String::from_utf8_lossy(&answer.payload).contains("\"seq\""), "{answer:?}");
}

/// What an evaluator says that allows whatever is asked, with a text by which it is found again.
fn allow() -> String {
    json!({"decided": {
        "verdict": "ALLOW", "reason": "forged-by-a-bystander", "issues": [], "risk_score": 0, "value_risk": 0,
        "waste_risk": 0,
        "high_risk": false, "clarifying_questions": [], "guardrails": [], "constraints_applied": [],
        "value_findings": [],
        "guardrail_checks": {}, "cost_estimate": null, "task_hash": "0".repeat(64), "policy_version": "baseline@1.0.0",
        "environment": "", "evaluated_at": 0, "decision_trace_summary": "forged-by-a-bystander"
    }})
    .to_string()
}

/// Answers every question that it hears or takes, in every way that it knows.
async fn answer_everything(client: Client, group: bool) -> JoinHandle<()> {
    let mut heard = match group {
        true => client.queue_subscribe(EVALUATE, "s0".to_owned()).await.unwrap(),
        false => client.subscribe(EVALUATE).await.unwrap(),
    };
    is_done(&client).await;
    tokio::spawn(async move {
        while let Some(question) = heard.next().await {
            let Some(to) = question.reply else { continue };
            drop(client.publish(to.clone(), allow().into()).await);
            drop(client.publish_with_headers(to, question.headers.unwrap_or_default(), allow().into()).await);
        }
    })
}

async fn recorded(stack: &Stack) -> String {
    let list = stack.api.get("/v1/decisions?limit=1000").await;
    assert_eq!(list.status, 200, "{}", list.text);
    list.text
}

/// The policy denies this request, so a forged ALLOW would show at once.
async fn deny(stack: &Stack) -> bool {
    let answer = stack.api.check(&Api::forbidden()).await;
    assert!(!answer.text.contains("forged"), "{}", answer.text);
    match answer.status {
        200 => {
            assert_eq!(answer.body["verdict"], "DENY", "{}", answer.text);
            true
        }
        503 => false,
        _ => panic!("{}", answer.text),
    }
}

#[tokio::test]
async fn forged_replies_to_every_request_are_ignored_and_delay_nothing() {
    let stack = Stack::build().nats().await;
    let answering = answer_everything(bystander(&stack).await, false).await;
    for _ in 0..50 {
        assert!(deny(&stack).await, "a check was not answered");
    }
    answering.abort();
    assert!(!recorded(&stack).await.contains("forged"));
}

#[tokio::test]
async fn an_intruder_in_the_queue_group_is_never_trusted_and_its_requests_are_retried() {
    let stack = Stack::build().nats().await;
    let answering = answer_everything(bystander(&stack).await, true).await;
    let mut decided = 0;
    for _ in 0..24 {
        decided += u32::from(deny(&stack).await);
    }
    answering.abort();
    // Of two tries at least one reaches the evaluator, three times in four.
    assert!(decided >= 6, "{decided} of 24");
    assert!(!recorded(&stack).await.contains("forged"));
    let verified = stack.api.get("/v1/decisions/verify").await;
    assert_eq!(verified.body["ok"], true, "{}", verified.text);
    assert!(deny(&stack).await);
}

#[tokio::test]
async fn forged_entries_are_not_listed_exported_or_delivered_and_verify_raises_an_alarm() {
    let stack = Stack::build().nats().await;
    assert!(deny(&stack).await);
    let client = bystander(&stack).await;
    let subject = format!("s0.log.{}.d", stack.account);
    let genuine = recorded(&stack).await;
    let list: Value = serde_json::from_str(&genuine).unwrap();
    let mut line = list["items"][0].clone();
    line["verdict"] = "ALLOW".into();
    line["reason"] = "forged-by-a-bystander".into();
    store(&client, &subject, &line.to_string()).await;
    assert!(deny(&stack).await);
    for path in ["/v1/decisions?limit=100", "/v1/decisions/export"] {
        let text = stack.api.get(path).await.text;
        assert!(!text.contains("forged") && text.matches("\"verdict\":\"DENY\"").count() >= 2, "{path}: {text}");
    }
    let verified = stack.api.get("/v1/decisions/verify").await;
    assert_eq!((&verified.body["ok"], &verified.body["rejected"]), (&json!(true), &json!(1)), "{}", verified.text);
    let gateway = &stack.gateways[0];
    gateway.wait_for("the alarm", |line| line.contains("message is not believed").then_some(()));
}

#[tokio::test]
async fn requests_and_notices_without_message_keys_are_ignored() {
    let stack = Stack::build().nats().await;
    let client = bystander(&stack).await;
    let mut inbox = client.subscribe("_INBOX_bystander").await.unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("Stage0-Deadline", "99999999999999");
    headers.insert("Stage0-Budget-Ms", "10000");
    for (subject, body) in [
        ("keys.status", "{}".to_owned()),
        ("keys.endpoints.list", "{}".to_owned()),
        ("evaluator.status", "{}".to_owned()),
        ("keys.create", json!({"caller": {"account": stack.account, "scopes": ["operator"]}}).to_string()),
    ] {
        let to = format!("s0.req.{subject}");
        client.publish_with_reply_and_headers(to, "_INBOX_bystander", headers.clone(), body.into()).await.unwrap();
    }
    let ghost = json!({"role": "evaluator", "instance": "ghost", "version": "9", "started_at": "2026-01-01T00:00:00Z",
        "state": "ready"});
    client.publish("s0.notice.instance.evaluator", ghost.to_string().into()).await.unwrap();
    is_done(&client).await;
    assert!(deny(&stack).await);
    wait_for("the true ones are seen", LONG_TIMEOUT, async || {
        let status = stack.operator.get("/v1/status").await;
        assert!(!status.text.contains("ghost"), "{}", status.text);
        Role::ALL.iter().all(|role| status.text.contains(&format!("\"role\":\"{role}\"")))
    })
    .await;
    client.publish("_INBOX_bystander", "end".into()).await.unwrap();
    assert_eq!(inbox.next().await.unwrap().payload, "end", "somebody answered");
}

#[tokio::test]
async fn replayed_requests_notices_and_records_change_nothing() {
    let stack = Stack::build().nats().await;
    let client = bystander(&stack).await;
    let mut overheard = client.subscribe("s0.>").await.unwrap();
    is_done(&client).await;
    let mut body = Api::harmless();
    body["context"] = json!({"run_id": "repeated"});
    let answer = stack.api.check(&body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    client.flush().await.unwrap();
    let mut caught: Vec<Message> = Vec::new();
    while !caught.iter().any(|message| message.subject.starts_with("s0.log.")) {
        caught.push(overheard.next().await.unwrap());
    }
    let asked = caught.iter().filter(|message| message.subject.as_str() == EVALUATE).count();
    assert!(asked > 0 && caught.iter().any(|message| message.subject.starts_with("s0.ledger.runs.")));
    for message in &caught {
        let headers = message.headers.clone().unwrap_or_default();
        let (to, payload) = (message.subject.clone(), message.payload.clone());
        match &message.reply {
            Some(_) => client.publish_with_reply_and_headers(to, "_R_.bystander", headers, payload).await.unwrap(),
            None => client.publish_with_headers(to, headers, payload).await.unwrap(),
        }
    }
    is_done(&client).await;
    let run = stack.api.get("/v1/runs/repeated").await;
    assert_eq!(run.body["iterations"], 1, "{}", run.text);
    assert_eq!(stack.api.check(&body).await.status, 200);
    assert_eq!(stack.api.get("/v1/runs/repeated").await.body["iterations"], 2);
}

#[tokio::test]
async fn a_forged_record_of_a_run_is_no_fresh_run() {
    let stack = Stack::build().nats().await;
    let client = bystander(&stack).await;
    let mut body = Api::harmless();
    body["constraints"] = json!(["max_iterations: 1"]);
    body["context"] = json!({"run_id": "looping"});
    let mut overheard = client.subscribe("s0.ledger.runs.>").await.unwrap();
    is_done(&client).await;
    assert_eq!(stack.api.check(&body).await.body["verdict"], "ALLOW");
    assert_eq!(stack.api.check(&body).await.body["verdict"], "DEFER");
    // The account's runs of the day are counted beside the run itself, whose name is a hash.
    let is_run = |subject: &str| subject.rsplit('.').next().is_some_and(|name| !name.starts_with('n'));
    let mut record = overheard.next().await.unwrap();
    while !is_run(&record.subject) {
        record = overheard.next().await.unwrap();
    }
    store(&client, &record.subject, "{}").await;
    let answer = stack.api.check(&body).await;
    assert_eq!(answer.status, 503, "{}", answer.text);
    // Another run of the same account is decided as ever.
    body["context"] = json!({"run_id": "another"});
    assert_eq!(stack.api.check(&body).await.body["verdict"], "ALLOW");
}

#[tokio::test]
async fn a_process_without_keys_is_refused_where_they_are_required() {
    let mut stack = Stack::build().nats().await;
    let url = stack.nats.as_ref().unwrap().url();
    stack.evaluators.iter_mut().for_each(Process::kill);
    let alone = Process::start(&["evaluator", "--nats", &url].map(str::to_owned));
    alone.wait_for("that it says so", |line| line.contains("messages are not authenticated").then_some(()));
    alone.wait_for_log("evaluator starts", "version");
    wait_for("no check is decided", LONG_TIMEOUT, async || !deny(&stack).await).await;
    stack.start_evaluator();
    drop(alone);
    wait_for("checks are decided again", LONG_TIMEOUT, async || deny(&stack).await).await;
}

#[tokio::test]
async fn keys_are_replaced_under_traffic_and_every_check_is_answered() {
    let stack = Stack::build().evaluators(2).nats().await;
    let dir = stack.keys_dir().to_owned();
    let read = |role: Role| std::fs::read_to_string(dir.join(format!("{role}.keys"))).unwrap();
    let parse = |role: Role| stage0_backplane::nats::MessageKeys::parse(&read(role)).unwrap();
    let mut set = KeySet::of(Role::ALL.map(parse)).unwrap();
    for step in 0..3 {
        set.rotate(jiff::Timestamp::now()).unwrap();
        write_keys(&dir, &set);
        let replaced = format!("\"active\":{}", if step == 0 { 1 } else { 2 });
        let processes = [&stack.evaluators[..], &stack.gateways, &stack.exporters, stack.keystore.as_slice()];
        wait_for("every process has the keys", LONG_TIMEOUT, async || {
            assert!(deny(&stack).await, "a check was not answered in step {step}");
            processes.iter().flat_map(|some| some.iter()).all(|process| {
                let said = process.said();
                let mut lines = said.lines().filter(|line| line.contains("message keys were replaced"));
                lines.clone().count() == step + 1 && lines.next_back().is_some_and(|line| line.contains(&replaced))
            })
        })
        .await;
    }
    let verified = stack.api.get("/v1/decisions/verify").await;
    assert_eq!((&verified.body["ok"], verified.body.get("rejected")), (&json!(true), None), "{}", verified.text);
    assert!(!stack.said().contains("is not believed"));
}

#[tokio::test]
async fn an_upgraded_deployment_requires_keys_once_every_role_has_them_and_never_goes_back() {
    let mut stack = Stack::build().without_keys().nats().await;
    assert!(deny(&stack).await);
    let before = recorded(&stack).await.matches("\"request_id\"").count();
    let client = bystander(&stack).await;
    let forged = json!({"role": "keystore", "instance": "forged", "version": "1", "started_at": "2026-01-01T00:00:00Z",
        "state": "ready"});
    stack.upgrade();
    stack.restart_exporter(0);
    stack.start_keystore();
    stack.restart_evaluator(0);
    stack.restart_gateway(0);
    wait_for("checks are decided", LONG_TIMEOUT, async || deny(&stack).await).await;
    // Some without keys are there all the while, and hold nothing up.
    let alarm = "refused from now on";
    wait_for("every role requires keys", LONG_TIMEOUT * 2, async || {
        client.publish("s0.notice.instance.keystore", forged.to_string().into()).await.unwrap();
        assert!(deny(&stack).await);
        let all = [&stack.gateways, &stack.evaluators, &stack.exporters];
        all.iter().all(|some| some[0].said().contains(alarm)) && stack.keystore.as_ref().unwrap().said().contains(alarm)
    })
    .await;
    assert!(stack.gateways[0].said().contains("without message keys is there"));
    let list = recorded(&stack).await;
    assert!(list.matches("\"request_id\"").count() > before && !list.contains("forged"));
    // A role that starts again refuses from its first message on.
    stack.start_keystore();
    stack.restart_evaluator(0);
    stack.restart_gateway(0);
    for process in stack.gateways.iter().chain(&stack.evaluators).chain(&stack.keystore) {
        process.wait_for("that it still requires keys", |line| line.contains(alarm).then_some(()));
    }
    wait_for("checks are decided", LONG_TIMEOUT, async || deny(&stack).await).await;
    assert_eq!(stack.api.get("/v1/decisions/verify").await.body["ok"], true);
}

/// An address of this machine that is not its loopback, and what arrives there passed on to a server.
async fn off_loopback(nats: &NatsServer) -> (String, JoinHandle<()>) {
    let own = own_address();
    let listener = TcpListener::bind((own, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let target = nats.url().replace("nats://", "");
    let passing = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let target = target.clone();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(target).await.unwrap();
                drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
            });
        }
    });
    (format!("nats://{address}"), passing)
}

/// The local address of the route to an address that is never contacted; where there is none, the one that stands for
/// all of this machine's.
fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let own = socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr()).map(|address| address.ip());
    own.ok().filter(|own| !own.is_loopback()).unwrap_or(IpAddr::from([0, 0, 0, 0]))
}

fn roles(url: &str, directory: &std::path::Path) -> Vec<Vec<String>> {
    let (data, tls) = (directory.join("data"), directory.join("tls"));
    let (data, tls) = (data.to_str().unwrap(), tls.to_str().unwrap());
    let all = [
        vec!["keystore", "--nats", url, "--data-dir", data],
        vec!["evaluator", "--nats", url],
        vec!["audit-export", "--nats", url],
        vec!["gateway", "--nats", url, "--tls-dev-dir", tls, "--listen", "127.0.0.1:0"],
    ];
    all.into_iter().map(|arguments| arguments.into_iter().map(str::to_owned).collect()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_nats_server_without_logins_is_refused_unless_the_risk_is_accepted() {
    let (nats, directory) = (NatsServer::start().await, tempfile::tempdir().unwrap());
    let (url, _passing) = off_loopback(&nats).await;
    for arguments in roles(&url, directory.path()) {
        let role = arguments[0].clone();
        let mut refused = Process::start(&arguments);
        assert_eq!(refused.ended().code(), Some(1), "{role}");
        let said = refused.said();
        assert!(said.contains("takes no login and no TLS") && said.contains("--dangerous-open-nats"), "{role}: {said}");
    }
    let mut all = roles(&url, directory.path());
    // The streams first.
    all.swap(0, 2);
    let mut running = Vec::new();
    for mut arguments in all {
        arguments.push("--dangerous-open-nats=true".to_owned());
        let process = Process::start(&arguments);
        let started = ["keystore serves", "audit-export serves", "evaluator starts", "gateway starts"];
        process.wait_for("a start", |line| started.iter().any(|text| line.contains(text)).then_some(()));
        assert!(process.said().contains("takes no login and no TLS"), "it does not warn");
        running.push(process);
    }
}

#[tokio::test]
async fn a_local_nats_server_without_logins_is_warned_about_once() {
    let stack = Stack::build().without_keys().nats().await;
    let said = stack.gateways[0].said();
    assert_eq!(said.matches("takes no login and no TLS").count(), 1, "{said}");
    assert!(said.contains("stage0 nats-config"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nats_login_without_message_keys_is_not_enough() {
    let directory = tempfile::tempdir().unwrap();
    let with_login = "max_payload: 8MB\njetstream { sync_interval: always }\nauthorization { user: u, password: p }";
    let for_all = "max_payload: 8MB\njetstream { sync_interval: always }\nno_auth_user: u\n\
        authorization { users = [{ user: u, password: p }] }";
    for (settings, fault) in [(with_login, "takes no TLS"), (for_all, "takes no login and no TLS")] {
        let nats = NatsServer::start_with(settings).await;
        let (url, _passing) = off_loopback(&nats).await;
        let mut arguments = roles(&url, directory.path()).swap_remove(1);
        arguments.extend(["--nats-user", "u", "--nats-password", "p"].map(str::to_owned));
        let started = Instant::now();
        let mut refused = Process::start(&arguments);
        assert_eq!(refused.ended().code(), Some(1));
        assert!(refused.said().contains(fault), "{fault}: {}", refused.said());
        assert!(started.elapsed() < LONG_TIMEOUT);
    }
}
