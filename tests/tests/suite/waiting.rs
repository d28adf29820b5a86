//! A role whose peers are missing waits for them, says so once, and ends with 0 on SIGTERM all the same.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use stage0_backplane::testing::{NatsServer, wait_for};
use stage0_tests::Process;

use crate::abuse::free_port;
use crate::starting::Deployment;

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
const ROLES: [&str; 4] = ["gateway", "evaluator", "keystore", "audit-export"];

/// The command line of a role on an open server.
fn arguments(role: &str, nats: &str, directory: &Path, with: &[&str]) -> Vec<String> {
    let (data, tls) = (directory.join("data"), directory.join("tls"));
    let own = match role {
        "gateway" => vec!["--listen", "127.0.0.1:0", "--tls-dev-dir", tls.to_str().unwrap()],
        "keystore" => vec!["--data-dir", data.to_str().unwrap()],
        _ => vec![],
    };
    [[role, "--nats", nats].as_slice(), own.as_slice(), with].concat().into_iter().map(str::to_owned).collect()
}

fn said_once(process: &Process, text: &str) {
    let said = process.said();
    assert_eq!(said.lines().filter(|line| line.contains(text)).count(), 1, "{text}: {said}");
}

/// `/readyz` of a role's own listener: status and reasons.
async fn readiness(address: &str) -> Option<(u16, String)> {
    let answer = reqwest::get(format!("http://{address}/readyz")).await.ok()?;
    let (status, report) = (answer.status().as_u16(), answer.text().await.ok()?);
    let report: Value = serde_json::from_str(&report).ok()?;
    Some((status, report["reasons"].to_string()))
}

#[tokio::test]
async fn each_role_waits_for_a_missing_nats_server_says_so_once_and_term_ends_it_with_zero() {
    let (directory, nobody) = (tempfile::tempdir().unwrap(), format!("nats://{}", free_port()));
    for role in ROLES {
        let health = free_port();
        let mut process =
            Process::start(&arguments(role, &nobody, directory.path(), &["--metrics-listen", health.as_str()]));
        process.wait_for("the reason", |line| line.contains("no NATS server at").then_some(()));
        wait_for("readiness that says so", WAIT_TIMEOUT, async || {
            readiness(&health).await.is_some_and(|(status, why)| status == 503 && why.contains("no NATS server at"))
        })
        .await;
        assert!(process.is_alive(), "{role}");
        assert_eq!(process.stop().code(), Some(0), "{role}: {}", process.said());
        said_once(&process, "backplane not reached yet");
        assert!(!process.said().contains(r#""level":"ERROR""#), "{role}: {}", process.said());
    }
}

#[tokio::test]
async fn roles_that_waited_for_nats_start_when_it_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let mut nats = NatsServer::start().await;
    nats.kill();
    let start = |role: &str| Process::start(&arguments(role, &nats.url(), directory.path(), &[]));
    let processes = ROLES.map(start);
    for process in &processes {
        process.wait_for("the reason", |line| line.contains("backplane not reached yet").then_some(()));
    }
    nats.restart().await;
    let started = ["gateway starts", "evaluator starts", "keystore serves", "audit-export serves"];
    for (process, started) in processes.iter().zip(started) {
        process.wait_for(started, |line| line.contains(started).then_some(()));
    }
}

#[tokio::test]
async fn roles_wait_for_their_streams_until_the_administrator_makes_them() {
    let deployment = Deployment::without_streams("20GB").await;
    let mut stopped = deployment.role("gateway");
    let missing = |line: &str| (line.contains("is missing") && line.contains("nats-admin init")).then_some(());
    stopped.wait_for("the reason", missing);
    assert_eq!(stopped.stop().code(), Some(0), "{}", stopped.said());

    let health = free_port();
    let mut with_health = deployment.arguments(&["evaluator"], "evaluator", &[]);
    with_health.extend(["--metrics-listen", health.as_str()].map(str::to_owned));
    let evaluator = Process::start(&with_health);
    let others = ["keystore", "audit-export", "gateway"].map(|role| deployment.role(role));
    for process in others.iter().chain([&evaluator]) {
        process.wait_for("the reason", missing);
    }
    wait_for("readiness that says so", WAIT_TIMEOUT, async || {
        readiness(&health).await.is_some_and(|(status, why)| status == 503 && why.contains("nats-admin init"))
    })
    .await;
    let (code, said) = deployment.admin("init");
    assert_eq!(code, Some(0), "{said}");
    let started = ["keystore serves", "audit-export serves", "gateway starts", "evaluator starts"];
    for (process, started) in others.iter().chain([&evaluator]).zip(started) {
        process.wait_for(started, |line| line.contains(started).then_some(()));
    }
    // What was forbidden while it waited does not count against it.
    wait_for("a ready evaluator", WAIT_TIMEOUT, async || {
        readiness(&health).await.is_some_and(|(status, _)| status == 200)
    })
    .await;
}

#[tokio::test]
async fn a_gateway_and_an_exporter_without_their_peers_say_why_they_are_not_ready() {
    let (directory, nats) = (tempfile::tempdir().unwrap(), NatsServer::start().await);
    for (role, why) in [("gateway", "keystore: "), ("audit-export", "the keystore does not answer")] {
        let mut process = Process::start(&arguments(role, &nats.url(), directory.path(), &[]));
        process.wait_for("the reason", |line| {
            (line.contains(r#""message":"not ready""#) && line.contains(why)).then_some(())
        });
        assert!(process.is_alive(), "{role}");
        assert_eq!(process.stop().code(), Some(0), "{role}: {}", process.said());
        said_once(&process, r#""message":"not ready""#);
        let lists = usize::from(role == "audit-export");
        assert_eq!(process.said().matches("endpoints are not listed").count(), lists, "{}", process.said());
    }
}
