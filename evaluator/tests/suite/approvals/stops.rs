//! A stop denies the use of an approval and freezes what is pending.

use super::*;

fn stop(scope: StopScope, value: Option<&str>) -> Stop {
    Stop {
        id: StopId::parse("stp_1").unwrap(),
        account: Some(account()),
        scope,
        value: value.map(str::to_owned),
        reason: "incident 7".to_owned(),
        created_at: jiff::Timestamp::now(),
        until: None,
        key_id: KeyId::parse("key-ann").unwrap(),
        member_id: None,
    }
}

fn stopped(mut by: Actor, stop: &Stop) -> Actor {
    by.rules.stops = vec![stop.clone()];
    by
}

#[tokio::test]
async fn a_stop_in_the_middle_denies_the_use_and_freezes_what_is_pending() {
    let stage = Stage::new(2).await;
    let approval = stage.approved(&check(1, GOAL)).await;
    let pending = stage.open(&check(2, "Carry out another change")).await;
    for (stop, covers) in [
        (stop(StopScope::Account, None), true),
        (stop(StopScope::Tool, Some("argo_cd")), true),
        (stop(StopScope::Tool, Some("shell")), false),
    ] {
        let asker = stopped(agent(), &stop);
        let covered = CoveredByStop { account: account(), request: check(3, GOAL).request, asker: asker.clone() };
        assert_eq!(stage.ask(&covered).await.is_covered, covers);
        if !covers {
            continue;
        }
        let of_run = with_context(check(3, GOAL), json!({"run_id": "r"}));
        for message in [check(4, GOAL), of_run] {
            let decided = stage.check(&EvaluateRequest { asker: Some(asker.clone()), ..message }).await.decision;
            assert_eq!(decided.verdict, Verdict::Deny);
            assert!(decided.issues.iter().any(|issue| issue.code.as_str() == "STOPPED"));
        }
        let approve = ApprovalChange::Approve { action_digest: pending.action_digest.clone() };
        let reply = stage.change(&stopped(member("ann"), &stop), &pending, approve, "").await;
        refused(reply, "incident 7");
        let shown = stage.show(&stopped(member("ann"), &stop), pending.id.as_ref().unwrap()).await;
        assert!(matches!(shown, ManageReply::Done(view) if view.stopped.as_deref() == Some("incident 7")));
    }
    let run = stage0_contract::ShowRun { account: account(), run_id: stage0_contract::RunId::parse("r").unwrap() };
    assert_eq!(stage.ask(&run).await, ManageReply::Refused(Refusal::NotFound), "a stopped check counts in no run");
    let elsewhere = stop(StopScope::Tool, Some("shell"));
    let approve = ApprovalChange::Approve { action_digest: pending.action_digest.clone() };
    let reply = stage.change(&stopped(member("ann"), &elsewhere), &pending, approve, "").await;
    assert!(matches!(reply, ManageReply::Done(_)), "{reply:?}");
    assert_eq!(stage.check(&check(5, GOAL)).await.decision.verdict, Verdict::Allow, "once it is resumed");
    assert_eq!(stage.seen(&approval).await.status, ApprovalStatus::Reserved);
}
