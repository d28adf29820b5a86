//! What the log and webhooks have of approvals: each event a line of the chain, for those who ask for it.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Api, Member, Receiver, Stack, Team, two_release_managers};

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// From the deferral to the outcome: the approval, and the decision that used it.
async fn whole_path(team: &Team) -> (Value, Value, [Member; 2]) {
    let agent = team.agent().await;
    let members = [team.member("Ada", &["release-managers"]).await, team.member("Bob", &["release-managers"]).await];
    let approval = agent.api.deferred(&Api::deployment()).await;
    for member in &members {
        member.api.approve(&approval).await.expect(200);
    }
    let (verdict, allowed) = agent.api.verdict(&Api::deployment()).await;
    assert_eq!(verdict, "ALLOW", "{allowed:#}");
    agent.api.until(&approval, "consumed").await;
    agent.api.report(&approval, "succeeded").await.expect(200);
    (approval, allowed, members)
}

fn of_kind<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["type"] == kind).collect()
}

#[tokio::test]
async fn every_event_is_one_line_of_the_chain_and_names_who_did_what_and_how_it_is_known() {
    let packs = two_release_managers();
    let stack = Stack::build().policies(&packs).dev().await;
    let team = Team::verified(&stack).await;
    let (approval, allowed, members) = whole_path(&team).await;
    let lines = team.admin.lines().await;
    for (kind, count) in [
        ("decision.recorded", 2),
        ("approval.requested", 1),
        ("approval.voted", 1),
        ("approval.approved", 1),
        ("approval.reserved", 1),
        ("approval.used", 1),
        ("approval.outcome", 1),
    ] {
        assert_eq!(of_kind(&lines, kind).len(), count, "{kind} in {lines:#?}");
    }
    let ids: BTreeSet<_> = lines.iter().filter_map(|line| line["event_id"].as_str()).collect();
    assert_eq!(ids.len(), 6, "each event has an id of its own");
    for line in lines.iter().filter(|line| line["type"].as_str().unwrap().starts_with("approval.")) {
        assert_eq!(line["approval_id"], approval["id"], "{line:#}");
        assert_eq!((&line["account"], &line["action_digest"]), (&json!(team.account), &approval["action_digest"]));
        assert!(line["chain"]["sequence"].as_u64().unwrap() > 0 && line["policy_version"].is_string(), "{line:#}");
        assert_eq!(line["actor"]["authenticated_by"], "api_key", "{line:#}");
    }
    for (kind, member) in [("approval.voted", &members[0]), ("approval.approved", &members[1])] {
        let line = of_kind(&lines, kind)[0];
        assert_eq!((&line["actor"]["member_id"], &line["reason"]), (&json!(member.id), &json!("checked the plan")));
        assert_eq!(line["actor"]["key_id"], json!(member.key_id));
    }
    // From the decision to the approval, and back.
    let decision = team.admin.get(&format!("/v1/decisions/{}", allowed["request_id"].as_str().unwrap())).await;
    assert_eq!(decision.expect(200)["approval"]["id"], approval["id"]);
    assert_eq!(of_kind(&lines, "approval.used")[0]["request_id"], allowed["request_id"]);
    assert_eq!(
        of_kind(&lines, "approval.requested")[0]["request_id"],
        of_kind(&lines, "decision.recorded")[0]["request_id"]
    );
    // The history is these lines.
    let history = team.admin.get(&format!("/v1/approvals/{}/history", approval["id"].as_str().unwrap())).await;
    let history = history.expect(200);
    let of_history: BTreeSet<_> =
        history["items"].as_array().unwrap().iter().map(|event| event["event_id"].as_str().unwrap()).collect();
    assert_eq!(of_history, ids);
}

#[tokio::test]
async fn a_log_with_approvals_is_verified_listed_and_exported() {
    let packs = two_release_managers();
    let stack = Stack::build().policies(&packs).dev().await;
    let team = Team::verified(&stack).await;
    let (_, allowed, members) = whole_path(&team).await;
    let stop = team.admin.stop(&json!({"scope": "tool", "value": "psql", "reason": "incident 12"})).await;
    stack.operator.resume(&stop, "over").await.expect(200);
    wait_for("a mark over all", WAIT_TIMEOUT, async || team.admin.verify().await["unsealed"] == 0).await;
    let report = team.admin.verify().await;
    assert_eq!((&report["ok"], &report["findings"]), (&json!(true), &json!([])), "{report:#}");
    // Lists of decisions hold decisions alone.
    let decisions = team.admin.decisions("limit=1").await;
    assert_eq!(decisions.len(), 2, "{decisions:#?}");
    assert!(decisions.iter().any(|one| one["request_id"] == allowed["request_id"]));
    // And outside of the server, from a file and with the server's keys.
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("log.jsonl");
    let file = file.to_str().unwrap();
    let cli = |arguments: &[&str]| {
        let output = team.admin.cli(&stack.ca(), arguments);
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {said}");
        said
    };
    cli(&["decisions", "export", "--out", file]);
    let exported = std::fs::read_to_string(file).unwrap();
    for kind in ["approval.requested", "approval.used", "stop.started", "stop.ended", "checkpoint.signed"] {
        assert!(exported.contains(kind), "{kind} in {exported}");
    }
    cli(&["decisions", "verify"]);
    let keys = directory.path().join("keys.json");
    std::fs::write(&keys, cli(&["decisions", "keys"])).unwrap();
    let of_file = ["decisions", "verify", "--file", file, "--keys", keys.to_str().unwrap()];
    cli(&of_file);
    // One changed word of a vote is found.
    let other = members[0].id.chars().rev().collect::<String>();
    let broken = exported.replacen(&members[0].id, &other, 1);
    assert_ne!(broken, exported);
    std::fs::write(file, broken).unwrap();
    let output = team.admin.cli(&stack.ca(), &of_file);
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[tokio::test]
async fn endpoints_get_events_of_approvals_and_stops_only_where_their_filter_names_them() {
    let packs = two_release_managers();
    let receiver = Receiver::plain().await;
    let stack = Stack::build().policies(&packs).private_webhooks().dev().await;
    let team = Team::verified(&stack).await;
    let made = team.admin.post("/v1/webhooks", &json!({"url": receiver.url("/plain")})).await.expect(201);
    assert_eq!(made["events"], json!(null));
    for (path, events) in [
        ("/approvals", json!(["approval.*"])),
        ("/used", json!(["approval.used"])),
        ("/stops", json!(["stop.*"])),
        ("/decisions", json!(["decision.recorded"])),
    ] {
        let body = json!({"url": receiver.url(path), "events": events});
        let made = team.admin.post("/v1/webhooks", &body).await.expect(201);
        assert_eq!(made["events"], body["events"]);
    }
    for bad in [json!([]), json!(["approval"]), json!(["approval.unheard"]), json!(["*"]), json!([7]), json!("stop.*")]
    {
        let body = json!({"url": receiver.url("/x"), "events": bad});
        team.admin.post("/v1/webhooks", &body).await.assert_error(422, "validation_failed");
    }
    let (approval, _, _) = whole_path(&team).await;
    let stop = team.admin.stop(&json!({"scope": "tool", "value": "psql", "reason": "incident 12"})).await;
    stack.operator.resume(&stop, "over").await.expect(200);
    // A last decision, so that what comes after it shows what did not come.
    let last = format!("dec_{}", team.agent().await.api.decide(&Api::harmless()).await);
    let all = ["requested", "voted", "approved", "reserved", "used", "outcome"].map(|kind| format!("approval.{kind}"));
    let kinds = async |path: &str, count: usize| {
        let came = receiver
            .wait_for("events", path, WAIT_TIMEOUT, |came| {
                let wanted = came.iter().filter(|one| !one.kind().starts_with("checkpoint")).count();
                (wanted >= count).then(|| came.to_vec())
            })
            .await;
        // Several are on their way at a time: their numbers say in which order they happened.
        let mut came: Vec<_> = came.iter().filter(|one| !one.kind().starts_with("checkpoint")).collect();
        came.sort_by_key(|one| one.sequence());
        came.into_iter().map(stage0_tests::Delivery::kind).collect::<Vec<_>>()
    };
    assert_eq!(kinds("/approvals", 6).await, all);
    assert_eq!(kinds("/used", 1).await, ["approval.used"]);
    assert_eq!(kinds("/stops", 2).await, ["stop.started", "stop.ended"]);
    assert_eq!(kinds("/decisions", 3).await, vec!["decision.recorded"; 3]);
    let is_last = |came: &[stage0_tests::Delivery]| came.iter().any(|one| one.id() == last).then(|| came.to_vec());
    let plain = receiver.wait_for("the last decision", "/plain", WAIT_TIMEOUT, is_last).await;
    let others: Vec<_> = plain.iter().map(stage0_tests::Delivery::kind).collect();
    assert!(others.iter().all(|kind| !kind.starts_with("approval.") && !kind.starts_with("stop.")), "{others:?}");
    let event = receiver.seen("/used")[0].event();
    assert_eq!((&event["data"]["approval_id"], &event["type"]), (&approval["id"], &json!("approval.used")));
}

#[tokio::test]
async fn approvals_survive_kill_9_and_a_restart() {
    let packs = two_release_managers();
    let mut stack = Stack::build().policies(&packs).dev().await;
    let team = Team::verified(&stack).await;
    let agent = team.agent().await;
    let members = [team.member("Ada", &["release-managers"]).await, team.member("Bob", &["release-managers"]).await];
    let (pending, approved) = (Api::deployment_of("pending"), Api::deployment_of("approved"));
    let (waits, given) = (agent.api.deferred(&pending).await, agent.api.deferred(&approved).await);
    for member in &members {
        member.api.approve(&given).await.expect(200);
    }
    members[0].api.approve(&waits).await.expect(200);
    for killed in [true, false] {
        match killed {
            true => stack.kill_dev(),
            false => stack.stop_dev(),
        }
        stack.start_dev();
        let (agent, bob) = (agent.at(&stack.urls[0]), members[1].at(&stack.urls[0]));
        assert_eq!(agent.api.standing(&given).await, "approved");
        let shown = bob.api.approval(&waits).await.expect(200);
        assert_eq!((&shown["status"], shown["votes"].as_array().unwrap().len()), (&json!("pending"), 1));
        assert_eq!(shown["action"]["goal"], pending["goal"]);
    }
    let (agent, bob) = (agent.at(&stack.urls[0]), members[1].at(&stack.urls[0]));
    bob.api.approve(&waits).await.expect(200);
    for body in [&pending, &approved] {
        assert_eq!(agent.api.verdict(body).await.0, "ALLOW");
        assert_eq!(agent.api.verdict(body).await.0, "DEFER");
    }
    assert_eq!(team.at(&stack.urls[0]).admin.verify().await["ok"], true);
}

#[tokio::test]
async fn approvals_are_listed_by_status_and_group_with_the_newest_first_on_each_page() {
    let packs = two_release_managers();
    let stack = Stack::build().policies(&packs).dev().await;
    let team = Team::verified(&stack).await;
    let agent = team.agent().await;
    let ada = team.member("Ada", &["release-managers"]).await;
    let mut opened = Vec::new();
    for number in 0..5 {
        opened.push(agent.api.deferred(&Api::deployment_of(&format!("number {number}"))).await["id"].clone());
    }
    let denied = agent.api.deferred(&Api::deployment_of("number 1")).await;
    assert_eq!(denied["id"], opened[1]);
    ada.api.deny(&denied, "no").await.expect(200);
    // Of a list by the given number on a page: the ids, the newest first. A short page does not end it.
    let listed = async |query: &str| {
        let (mut ids, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = ada.api.get(&format!("/v1/approvals?{query}{cursor}")).await.expect(200);
            let items = page["items"].as_array().unwrap();
            assert!(items.iter().all(|item| opened.contains(&item["id"])), "{page:#}");
            let ages: Vec<_> = items.iter().map(|item| opened.iter().position(|id| *id == item["id"])).collect();
            assert!(ages.is_sorted_by(|newer, older| newer > older), "{page:#}");
            ids.extend(ages.into_iter().flatten());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        ids.sort_unstable();
        ids
    };
    for limit in [2, 100] {
        assert_eq!(listed(&format!("limit={limit}")).await, [0, 1, 2, 3, 4]);
        assert_eq!(listed(&format!("limit={limit}&status=pending")).await, [0, 2, 3, 4]);
        assert_eq!(listed(&format!("limit={limit}&status=denied")).await, [1]);
        assert_eq!(listed(&format!("limit={limit}&status=pending&group=release-managers")).await, [0, 2, 3, 4]);
        assert_eq!(listed(&format!("limit={limit}&group=interns")).await, [0; 0]);
    }
    for query in ["status=open", "limit=0", "limit=101", "colour=red", "cursor=%20"] {
        ada.api.get(&format!("/v1/approvals?{query}")).await.assert_error(422, "validation_failed");
    }
    let approval = json!({"id": opened[0]});
    for wait in ["61s", "x", "-1s", ""] {
        ada.api.wait(&approval, wait).await.assert_error(422, "validation_failed");
    }
    assert_eq!(ada.api.wait(&approval, "1s").await.expect(200)["status"], "pending", "nothing changed meanwhile");
}
