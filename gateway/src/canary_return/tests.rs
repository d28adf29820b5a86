//! When a canary ends by itself, what is recorded of it, and what two gateways do at once.

use serde_json::{Value, json};
use stage0_backplane::{Backplane, EntryKind};
use stage0_contract::{CandidateFindings, CandidatesRead, FoundOfCandidate, Refusal, ReturnAt};

use super::*;
use crate::server::tests::state_and_writer;

fn account(name: &str) -> AccountId {
    AccountId::parse(name).unwrap()
}

fn candidate(number: u128, mode: CandidateMode) -> PolicyCandidate {
    let identity = include_str!("../../../contract/fixtures/policies_in_force_candidates.json");
    let identity: Value = serde_json::from_str(identity).unwrap();
    let one: PolicyCandidate = serde_json::from_value(identity["done"]["candidates"][0].clone()).unwrap();
    let return_at = (mode == CandidateMode::Canary).then(ReturnAt::default);
    PolicyCandidate { id: Uuid::from_u128(number), mode, return_at, ..one }
}

fn canary() -> PolicyCandidate {
    candidate(1, CandidateMode::Canary)
}

/// What evaluators found: so many disagreements among a hundred checks.
fn found(disagreements: u64) -> ManageReply<CandidatesRead> {
    let counts = CandidateCounts { checks: 100, disagreements, ..CandidateCounts::default() };
    let findings = CandidateFindings { counts, ..CandidateFindings::default() };
    ManageReply::Done(CandidatesRead { found: vec![FoundOfCandidate { candidate: canary().id, findings }] })
}

fn returned(is_outdated: bool) -> ManageReply<CandidateChanged> {
    let activation = include_str!("../../../contract/fixtures/activation_returned.json");
    let activation = serde_json::from_str(activation).unwrap();
    ManageReply::Done(CandidateChanged { activation, retention_days: 30, is_outdated })
}

/// A gateway that has seen a check with the canary, before an evaluator and a keystore that answer so.
struct Deployment {
    state: AppState,
    backplane: Backplane,
    stop: CancellationToken,
}

impl Drop for Deployment {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Deployment {
    fn start(is_single_process: bool) -> Self {
        let backplane = Backplane::embedded();
        let (state, writer) = state_and_writer(&backplane, |config| config.single_process = is_single_process);
        let stop = CancellationToken::new();
        tokio::spawn(writer.run(stop.clone()));
        state.canaries.note(&account("acc_1"), &[canary()], None, Instant::now());
        Self { state, backplane, stop }
    }

    /// One round, with the calls of the keystore.
    async fn round(
        &self,
        disagreements: u64,
        answer: impl Fn(&ReturnCanary) -> ManageReply<CandidateChanged>,
    ) -> (Result<(), ReturnError>, Vec<ReturnCanary>) {
        let mut reads = self.backplane.requests.serve::<ReadCandidates>().await.unwrap();
        let mut returns = self.backplane.requests.serve::<ReturnCanary>().await.unwrap();
        let mut calls = Vec::new();
        let result = {
            let round = round(&self.state);
            tokio::pin!(round);
            loop {
                tokio::select! {
                    result = &mut round => break result,
                    Some(read) = reads.next() => {
                        assert_eq!(read.request.candidates, [canary().id]);
                        read.answer(&found(disagreements)).await;
                    }
                    Some(call) = returns.next() => {
                        calls.push(call.request.clone());
                        let reply = answer(&call.request);
                        call.answer(&reply).await;
                    }
                }
            }
        };
        (result, calls)
    }

    async fn lines(&self) -> Vec<Value> {
        let seek = stage0_backplane::Seek::Start;
        let filter = stage0_backplane::EntryFilter::Only(EntryKind::Decisions);
        let deadline = Instant::now() + TIMEOUT;
        let chunk = self.backplane.log.read(&account("acc_1"), filter, seek, 1 << 20, deadline).await.unwrap();
        let lines = chunk.entries.iter().flat_map(|entry| entry.lines().map(<[u8]>::to_vec).collect::<Vec<_>>());
        lines.map(|line| serde_json::from_slice(&line).unwrap()).collect()
    }

    fn remembers(&self) -> bool {
        !self.state.canaries.list(Instant::now()).is_empty()
    }
}

fn types(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["type"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_canary_that_differs_too_often_is_recorded_without_a_caller_and_ended() {
    let deployment = Deployment::start(true);
    let (result, calls) = deployment.round(3, |_| returned(false)).await;
    result.unwrap();
    let asked: Vec<_> = calls.iter().map(|call| (call.is_trial, call.sequence, call.counts.disagreements)).collect();
    assert_eq!(asked, [(true, None, 3), (false, Some(7), 3)]);
    let lines = deployment.lines().await;
    assert_eq!(types(&lines), ["policy.canary_ended"]);
    assert_eq!(lines[0].get("actor"), None, "no caller did it");
    assert_eq!(lines[0]["details"]["returned_for"]["disagreements"], json!(6), "as the keystore says");
    assert!(!deployment.remembers());
}

#[tokio::test]
async fn a_canary_within_its_terms_goes_on() {
    let deployment = Deployment::start(true);
    let (result, calls) = deployment.round(2, |_| returned(false)).await;
    result.unwrap();
    assert!(calls.is_empty() && deployment.lines().await.is_empty() && deployment.remembers());
}

#[tokio::test]
async fn of_two_gateways_the_later_one_leaves_no_wrong_line() {
    // Both have tried it, and the other one makes it first.
    for late in [returned(true), ManageReply::Refused(Refusal::NotFound)] {
        let deployment = Deployment::start(true);
        let answer = |call: &ReturnCanary| if call.is_trial { returned(false) } else { late.clone() };
        let (result, calls) = deployment.round(3, answer).await;
        result.unwrap();
        assert_eq!(calls.len(), 2);
        let lines = deployment.lines().await;
        assert_eq!(types(&lines), ["policy.canary_ended", "policy.not_changed"]);
        assert_eq!(lines[1]["details"]["event_id"], lines[0]["event_id"]);
        assert!(!deployment.remembers());
    }
    // The other one has made it before this one tries.
    let deployment = Deployment::start(true);
    let (result, calls) = deployment.round(3, |_| ManageReply::Refused(Refusal::NotFound)).await;
    result.unwrap();
    assert!(calls.len() == 1 && deployment.lines().await.is_empty() && !deployment.remembers());
}

#[tokio::test]
async fn what_cannot_be_recorded_or_is_not_known_ends_nothing() {
    let unread = Deployment::start(false);
    let (result, calls) = unread.round(3, |_| returned(false)).await;
    result.unwrap();
    assert!(calls.is_empty() && unread.remembers(), "a process could not read the line");

    let unrecorded = Deployment::start(true);
    // Without the task that records, nothing is.
    unrecorded.stop.cancel();
    tokio::task::yield_now().await;
    let (result, calls) = unrecorded.round(3, |_| returned(false)).await;
    assert!(matches!(result, Err(ReturnError::NotRecorded(_))), "{result:?}");
    assert!(calls.iter().all(|call| call.is_trial) && unrecorded.remembers());

    let silent = Deployment::start(true);
    assert!(matches!(round(&silent.state).await, Err(ReturnError::Ask(RequestError::NoResponders))));
    let (result, _) = silent.round(3, |_| ManageReply::Busy).await;
    assert!(matches!(result, Err(ReturnError::Busy)) && silent.remembers());
    assert!(silent.lines().await.is_empty());
}

#[test]
fn accounts_are_remembered_for_a_minute_after_their_last_check_with_a_canary_and_only_so_many() {
    let (canaries, now) = (Canaries::default(), Instant::now());
    let shadow = candidate(2, CandidateMode::Shadow);
    canaries.note(&account("a"), &[], None, now);
    canaries.note(&account("a"), std::slice::from_ref(&shadow), None, now);
    assert!(canaries.list(now).is_empty(), "a shadow decides nothing, and ends nothing");
    canaries.note(&account("a"), &[shadow, canary()], None, now);
    assert_eq!(canaries.list(now), [(account("a"), vec![canary()])]);
    let later = now + MEMORY_TTL / 2;
    canaries.note(&account("a"), &[candidate(3, CandidateMode::Canary)], None, later);
    let last = later + MEMORY_TTL - Duration::from_millis(1);
    assert_eq!(canaries.list(last), [(account("a"), vec![candidate(3, CandidateMode::Canary)])]);
    assert!(canaries.list(later + MEMORY_TTL).is_empty());

    canaries.note(&account("first"), &[canary()], None, now);
    for number in 0..MAX_ACCOUNTS {
        canaries.note(&account(&format!("acc{number}")), &[canary()], None, later);
    }
    let all = canaries.list(later);
    assert_eq!(all.len(), MAX_ACCOUNTS);
    assert!(all.iter().all(|(name, _)| *name != account("first")), "the one that was silent longest made room");
}

#[test]
fn a_canary_that_decides_and_is_not_counted_ends_after_a_minute_and_enough_checks() {
    let (now, minute) = (Instant::now(), UNCOUNTED_TIMEOUT);
    let taken = |count: u64| Progress { taken: count, ..Progress::new(now) };
    for (mut progress, counted, later, is_uncounted) in [
        (taken(MAX_UNCOUNTED), None, now + minute, true),
        (taken(MAX_UNCOUNTED), Some(0), now + minute, true),
        (taken(MAX_UNCOUNTED - 1), Some(0), now + minute, false),
        (taken(MAX_UNCOUNTED), Some(0), now + minute - Duration::from_millis(1), false),
        (taken(MAX_UNCOUNTED), Some(1), now + minute, false),
    ] {
        assert_eq!(progress.is_uncounted(counted, later), is_uncounted, "{counted:?}");
    }
    let mut progress = taken(10 * MAX_UNCOUNTED);
    assert!(!progress.is_uncounted(Some(7), now), "it grew");
    progress.taken += MAX_UNCOUNTED;
    assert!(progress.is_uncounted(Some(7), now + minute), "it grows no longer");
    let canaries = Canaries::default();
    for _ in 0..3 {
        canaries.note(&account("a"), &[canary()], Some(&canary()), now);
    }
    assert_eq!(canaries.with_progress(&account("a"), canary().id, |progress| progress.taken), Some(3));
    canaries.forget(&account("a"), canary().id);
    assert_eq!(canaries.with_progress(&account("a"), canary().id, |progress| progress.taken), Some(0));
}
