//! A policy that is tried beside approvals: it judges with what people said here, and uses nothing of it up.

use stage0_contract::{
    CandidateCounts, CandidateFindings, CandidateMode, CandidatesRead, FetchPolicy, FetchedPolicy, PolicyBundle,
    PolicyCandidate, PolicyFiles, ReadCandidates,
};
use uuid::Uuid;

use super::*;

const ID: Uuid = Uuid::from_u128(7);

/// A pack that adds nothing to the baseline.
fn baseline_alone() -> PolicyBundle {
    let manifest = "name = \"ours\"\nversion = \"1.0.0\"\nextends = \"baseline@2\"\n";
    let files = [("pack.toml".to_owned(), manifest.to_owned())].into();
    PolicyBundle { packs: vec![PolicyFiles { files }] }
}

/// Evaluators with a shadow, and a keystore that has it.
async fn stage_with_shadow() -> (Stage, AccountRules, JoinSet<()>) {
    let stage = Stage::new(2).await;
    let bundle = baseline_alone();
    let version = Pack::from_bundle(&bundle).unwrap().version().clone();
    let candidate = PolicyCandidate {
        id: ID,
        mode: CandidateMode::Shadow,
        version: version.clone(),
        environment: None,
        percent: 100,
        return_at: None,
        started_at: jiff::Timestamp::UNIX_EPOCH,
        key_id: KeyId::parse("key_9").unwrap(),
        against: Vec::new(),
    };
    let mut fetches = stage.bus.connect().requests.serve::<FetchPolicy>().await.unwrap();
    let mut keystore = JoinSet::new();
    keystore.spawn(async move {
        while let Some(request) = fetches.next().await {
            let fetched = FetchedPolicy { version: version.clone(), bundle: bundle.clone() };
            request.answer(&ManageReply::Done(fetched)).await;
        }
    });
    (stage, AccountRules { candidates: vec![candidate], ..AccountRules::default() }, keystore)
}

fn tried(rules: &AccountRules, message: EvaluateRequest) -> EvaluateRequest {
    EvaluateRequest { asker: message.asker.map(|asker| Actor { rules: rules.clone(), ..asker }), ..message }
}

/// What was found, once so many checks are counted.
async fn found(stage: &Stage, of: u64) -> CandidateFindings {
    let found = async {
        loop {
            let message = ReadCandidates { account: account(), candidates: vec![ID] };
            let ManageReply::Done(CandidatesRead { mut found }) = stage.ask(&message).await else { panic!("not read") };
            if let Some(found) = found.pop()
                && found.findings.counts.checks + found.findings.counts.not_judged >= of
            {
                return found.findings;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(WAIT_TIMEOUT, found).await.expect("counted in time")
}

#[tokio::test]
async fn the_approval_that_a_check_used_is_what_the_shadow_judges_with_and_it_stays_used_by_that_check() {
    let (stage, rules, _keystore) = stage_with_shadow().await;
    let approval = stage.approved(&tried(&rules, check(1, GOAL))).await;
    let used = stage.check(&tried(&rules, check(2, GOAL))).await;
    assert_eq!(used.decision.verdict, Verdict::Allow);
    let same = CandidateCounts { checks: 2, ..CandidateCounts::default() };
    let findings = found(&stage, 2).await;
    assert_eq!(findings.counts, same, "DEFER in both, then ALLOW in both: {findings:#?}");
    stage.settle(&used.events).await;
    let seen = stage.seen(&approval).await;
    assert_eq!((seen.status, seen.used_by), (ApprovalStatus::Consumed, Some(id(2))));
}

#[tokio::test]
async fn what_a_person_denied_is_denied_by_the_shadow_too() {
    let (stage, rules, _keystore) = stage_with_shadow().await;
    let approval = stage.open(&tried(&rules, check(1, GOAL))).await;
    let deny = ApprovalChange::Deny { action_digest: approval.action_digest.clone() };
    let done = stage.change(&member("ann"), &approval, deny, "not today").await;
    assert!(matches!(done, ManageReply::Done(_)), "{done:?}");
    assert_eq!(stage.check(&tried(&rules, check(2, GOAL))).await.decision.verdict, Verdict::Deny);
    let same = CandidateCounts { checks: 2, ..CandidateCounts::default() };
    assert_eq!(found(&stage, 2).await.counts, same);
}
