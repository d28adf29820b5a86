//! What a check has reserved when it is answered, and when its answer comes too late.

use super::*;

/// Stores an approval that a check has reserved, ends the check as undecided, and returns where the approval stands.
async fn ended_undecided(is_held: bool) -> ApprovalStatus {
    let backplane = Backplane::embedded();
    let approvals = Approvals::new(&backplane, RunConfig::default());
    let mut served = backplane.requests.serve::<EvaluateRequest>().await.unwrap();
    let message = message(json!({"goal": "g"}));
    let timeout = Duration::from_secs(5);
    let deadline = Instant::now() + timeout;
    let work = async {
        let arrived = ReceivedCheck::new(served.next_unparsed().await.unwrap()).unwrap();
        let check = InFlightCheck::new(arrived.content.parse().unwrap(), arrived, None);
        let mut used = approved();
        // Time must not end what it looks at.
        used.usable_until = Some(from_now(600));
        let agent = key(AGENT);
        let claim = Claim { key_id: &agent, operation: request(2), request_id: request(2), claim: check.claim };
        used.reserve(claim, at(5));
        let place = ApprovalStore::place(&used.account, &digest());
        assert!(approvals.store.put(&place, &used, None, deadline).await.unwrap());
        if is_held {
            check.add_hold(Hold::Approval(used.id.clone()));
        }
        approvals.finish(check, Some(EvaluateReply::Unable("the run cannot be written".to_owned()))).await;
    };
    let (_, asked) = tokio::join!(work, backplane.requests.request(&message, timeout));
    assert!(matches!(asked, Ok(EvaluateReply::Unable(_))));
    let stored = approvals.store.current(&message.account, slot_of(&digest()), deadline).await.unwrap();
    stored.value.unwrap().status
}

#[tokio::test]
async fn what_was_reserved_for_a_check_that_is_not_allowed_is_free_when_it_is_answered() {
    assert_eq!(ended_undecided(true).await, ApprovalStatus::Approved);
    assert_eq!(ended_undecided(false).await, ApprovalStatus::Reserved, "reserved by another evaluator");
}

#[tokio::test]
async fn an_allow_that_comes_after_its_deadline_is_not_told_and_gives_back_what_it_reserved() {
    use stage0_contract::{Evaluation, Verdict};
    for (is_late, is_named, status) in [
        (false, true, ApprovalStatus::Reserved),
        (false, false, ApprovalStatus::Approved),
        (true, true, ApprovalStatus::Approved),
    ] {
        let backplane = Backplane::embedded();
        let approvals = Approvals::new(&backplane, RunConfig::default());
        let engines = crate::engines::Engines::open(Arc::new(stage0_policy::PackSet::embedded().unwrap())).unwrap();
        let mut served = backplane.requests.serve::<EvaluateRequest>().await.unwrap();
        let message = message(json!({"goal": "read the report", "success_criteria": ["x"]}));
        let timeout = Duration::from_secs(1);
        let deadline = deadline();
        let work = async {
            let arrived = ReceivedCheck::new(served.next_unparsed().await.unwrap()).unwrap();
            let check = InFlightCheck::new(arrived.content.parse().unwrap(), arrived, None);
            let mut used = approved();
            used.usable_until = Some(from_now(600));
            let agent = key(AGENT);
            let claim = Claim { key_id: &agent, operation: request(2), request_id: request(2), claim: check.claim };
            used.reserve(claim, at(5));
            let place = ApprovalStore::place(&used.account, &digest());
            assert!(approvals.store.put(&place, &used, None, deadline).await.unwrap());
            let (mut reply, _) = approvals.decide(&engines, &check, None).await;
            let EvaluateReply::Decided(evaluation) = &mut reply else { panic!("not decided") };
            let Evaluation { decision, .. } = &mut **evaluation;
            assert_eq!(decision.verdict, Verdict::Allow);
            let mut reference = used.reference();
            if !is_named {
                reference.id = Some(id_in(slot_of(&digest()), [9; 4]).unwrap());
            }
            decision.approval = Some(reference);
            check.add_hold(Hold::Approval(id_in(slot_of(&digest()), [8; 4]).unwrap()));
            assert!(check.add_hold(Hold::Approval(used.id.clone())));
            assert!(!check.add_hold(Hold::Approval(used.id.clone())), "another one is not forgotten");
            if is_late {
                tokio::time::timeout_at(check.deadline(), std::future::pending::<()>()).await.unwrap_err();
            }
            approvals.finish(check, Some(reply)).await;
        };
        let (_, asked) = tokio::join!(work, backplane.requests.request(&message, timeout));
        assert_eq!(asked.is_err(), is_late);
        let stored = approvals.store.current(&message.account, slot_of(&digest()), deadline).await.unwrap();
        assert_eq!(stored.value.unwrap().status, status, "{is_late} {is_named}");
    }
}
