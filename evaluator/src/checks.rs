//! The checks of one shard, from their arrival to their replies.
//!
//! Owns the order in which they are decided: a check is received at once, unparsed, and queued by account, large ones
//! for another thread than ordinary ones. A check that does not fit in the queue, or that waited too long, is refused.
//! INVARIANT: after stop no new check is received, and every received check is answered.

use std::pin::pin;
use std::sync::Arc;

use futures_util::stream::{FuturesUnordered, StreamExt};
use stage0_backplane::{MAX_MESSAGE_BYTES, RequestStream};
use stage0_contract::{AccountRules, EvaluateReply, EvaluateRequest, Verdict};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::yield_now;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::approval::Approvals;
use crate::candidates::Candidates;
use crate::engines::{Engines, MAX_ORDINARY_BYTES};
use crate::fair_queue::FairQueue;
use crate::handler::Handler;
use crate::in_flight::{InFlightCheck, ReceivedCheck};
use crate::published::ANSWER_TIME;
use crate::run::RunCoordinator;

/// Larger than the limits on runs, so that checks without a run are answered while the state store hangs.
const MAX_IN_FLIGHT: usize = 4_096;
/// Large checks in flight in a process, and in one shard.
const MAX_LARGE_IN_FLIGHT: usize = 8;
const MAX_LARGE_IN_FLIGHT_PER_SHARD: usize = 4;
/// Queued bytes in a process and in one shard; ordinary and large checks are counted separately.
const MAX_WAITING_BYTES: usize = 64 << 20;
const MAX_WAITING_BYTES_PER_SHARD: usize = 32 << 20;
/// Checks that are received before the next one is decided, so that a flood does not starve queued checks.
const MAX_RECEIVED_IN_A_ROW: usize = 64;

/// What a shard decides checks with.
#[derive(Clone, Copy)]
pub(crate) struct Deciders<'a> {
    pub(crate) engines: &'a Engines,
    pub(crate) runs: &'a RunCoordinator,
    pub(crate) approvals: &'a Approvals,
    pub(crate) candidates: &'a Candidates,
}

/// One shard's share of the limits of its process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ShardLimits {
    large_in_flight: usize,
    waiting_bytes: usize,
}

impl ShardLimits {
    pub(crate) fn of(shards: usize) -> Self {
        Self {
            large_in_flight: (MAX_LARGE_IN_FLIGHT / shards).clamp(1, MAX_LARGE_IN_FLIGHT_PER_SHARD),
            waiting_bytes: (MAX_WAITING_BYTES / shards).clamp(MAX_MESSAGE_BYTES, MAX_WAITING_BYTES_PER_SHARD),
        }
    }
}

pub(crate) async fn serve_until(
    mut inbox: RequestStream<EvaluateRequest>,
    stop: &CancellationToken,
    deciders: Deciders<'_>,
    limits: ShardLimits,
) {
    let [mut ordinary, mut large] = [(), ()].map(|()| FairQueue::<ReceivedCheck>::new(limits.waiting_bytes));
    // Each large check takes many times its size in memory.
    let slots = Arc::new(Semaphore::new(limits.large_in_flight));
    let mut in_flight = FuturesUnordered::new();
    let (mut stopping, mut drained, mut taken) = (false, false, 0);
    while !(drained && in_flight.is_empty() && ordinary.is_empty() && large.is_empty()) {
        let next_large = !large.is_empty() && slots.available_permits() > 0;
        let next_ordinary = !ordinary.is_empty() && in_flight.len() < MAX_IN_FLIGHT;
        let decide = next_large || next_ordinary;
        let take = !decide || taken < MAX_RECEIVED_IN_A_ROW;
        tokio::select! {
            biased;
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                inbox.stop().await;
            }
            Some(()) = in_flight.next(), if !in_flight.is_empty() => {}
            unread = inbox.next_unparsed(), if take && !drained => {
                taken += 1;
                let Some(unread) = unread else {
                    drained = true;
                    continue;
                };
                let Some(arrived) = ReceivedCheck::new(unread) else { continue };
                let fair_queue = if arrived.content.bytes() > MAX_ORDINARY_BYTES { &mut large } else { &mut ordinary };
                if let Err(arrived) = fair_queue.push(arrived) {
                    arrived.refuse(EvaluateReply::Busy).await;
                }
            }
            // A large check may be answered by another check of its run, before its own future ends.
            Ok(_) = slots.acquire(), if !large.is_empty() && !next_large => {}
            () = yield_now(), if decide => {
                taken = 0;
                // One of each kind, so that neither starves the other.
                if next_large
                    && let Ok(slot) = Arc::clone(&slots).try_acquire_owned()
                    && let Some(arrived) = large.pop()
                {
                    in_flight.push(decided(arrived, Some(slot), deciders));
                }
                if next_ordinary && let Some(arrived) = ordinary.pop() {
                    in_flight.push(decided(arrived, None, deciders));
                }
            }
        }
    }
}

/// Parses and decides a check on the thread for its size. A large check holds a slot.
async fn decided(arrived: ReceivedCheck, slot: Option<OwnedSemaphorePermit>, deciders: Deciders<'_>) {
    let Deciders { engines, runs, approvals, candidates } = deciders;
    if arrived.is_out_of_time() {
        arrived.refuse(EvaluateReply::TimedOut).await;
        return;
    }
    let read = if slot.is_some() {
        let content = arrived.content.clone();
        engines.large(move |_| content.parse()).await.flatten()
    } else {
        arrived.content.parse()
    };
    // A malformed check was logged by the parser; the gateway times out and fails closed.
    let Some(request) = read else { return };
    let mut check = InFlightCheck::new(request, arrived, slot);
    if let Some(reason) = runs.clock_fault(check.request()) {
        check.decided(EvaluateReply::Unable(reason)).await;
        return;
    }
    let message = Arc::clone(check.request());
    if let Some(asker) = message.asker.as_ref().filter(|asker| asker.rules.needs_published()) {
        // Boxed, so that a check of the process's own policy does not carry the room for it.
        let late = check.deadline().checked_sub(ANSWER_TIME / 2).unwrap_or(check.deadline());
        let Some(with_packs) = Box::pin(with_published(engines, check, &asker.rules, late)).await else { return };
        check = with_packs;
    }
    check.watched = candidates.watch(&message);
    if is_stopped(engines, &check).await {
        Box::pin(refuse_stopped(check, deciders)).await;
        return;
    }
    match RunCoordinator::key(check.request()) {
        Some(key) => runs.evaluate(engines, approvals, key, check).await,
        None => {
            let (reply, _) = approvals.decide(engines, &check, None).await;
            approvals.finish(check, Some(reply)).await;
        }
    }
}

/// The check with the published packs that decide it. None: they are not there, and it was answered; at `late` at the
/// latest.
async fn with_published(
    engines: &Engines,
    mut check: InFlightCheck,
    rules: &AccountRules,
    late: Instant,
) -> Option<InFlightCheck> {
    let (message, deadline) = (Arc::clone(check.request()), check.deadline());
    let mut choosing = pin!(engines.choose(&message.account, rules, &message.request, deadline));
    // INVARIANT: no other policy decides instead.
    match timeout_at(late, &mut choosing).await {
        Ok(Ok(chosen)) => {
            check.chosen = chosen;
            return Some(check);
        }
        Ok(Err(error)) => check.decided(error.reply()).await,
        Err(_) => {
            let version = rules.policy_of(&message.request).or(rules.floor.as_ref()).cloned();
            let loading = |version| EvaluateReply::PolicyMissing { version, is_loading: true };
            let unclear = || EvaluateReply::Unable("the policy is still being loaded".to_owned());
            check.decided(version.map_or_else(unclear, loading)).await;
            // What is prepared serves the next check.
            if let Err(error) = choosing.await {
                tracing::debug!(%error, "policy was not prepared");
            }
        }
    }
    None
}

/// Answers a check that a stop covers. It counts in no run.
async fn refuse_stopped(check: InFlightCheck, deciders: Deciders<'_>) {
    let Deciders { engines, approvals, .. } = deciders;
    let (reply, _) = approvals.decide(engines, &check, None).await;
    let verdict = match &reply {
        EvaluateReply::Decided(evaluation) => Some(evaluation.decision.verdict),
        _ => None,
    };
    let unclear = || EvaluateReply::Unable("whether a stop covers the check is unclear".to_owned());
    let reply = if verdict == Some(Verdict::Deny) { reply } else { unclear() };
    approvals.finish(check, Some(reply)).await;
}

/// Whether a stop covers the check. Without stops it costs nothing.
async fn is_stopped(engines: &Engines, check: &InFlightCheck) -> bool {
    let message = check.request();
    if message.asker.as_ref().is_none_or(|asker| asker.rules.stops.is_empty()) {
        return false;
    }
    let (message, chosen) = (Arc::clone(message), check.chosen.clone());
    let covered = move |handler: &Handler| {
        let EvaluateRequest { asker, request, evaluated_at, .. } = &*message;
        asker.as_ref().is_some_and(|asker| handler.stop_over(request, &chosen, asker, *evaluated_at).is_some())
    };
    engines.inspect(check.bytes, covered).await.unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use serde_json::json;
    use stage0_backplane::embedded::Bus;
    use stage0_contract::{
        AccountId, ActivePolicies, CallerTexts, CheckRequest, FetchPolicy, FetchedPolicy, ManageReply, PolicyBundle,
        PolicyFiles, RequestId,
    };

    use super::*;
    use crate::config::RunConfig;
    use crate::published::{Published, SharedPolicies};
    use stage0_policy::{Pack, PackSet};

    const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

    fn message(account: &str, note: &str) -> EvaluateRequest {
        let body = json!({"goal": "read the report", "success_criteria": ["x"], "context": {"note": note}});
        EvaluateRequest {
            asker: None,
            request_id: RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap(),
            account: AccountId::parse(account).unwrap(),
            request: CheckRequest::parse(body).unwrap(),
            evaluated_at: 1_773_662_400,
            operation: None,
            caller: CallerTexts::default(),
            max_runs: None,
        }
    }

    /// A pack that adds nothing to the baseline.
    fn manifest_alone() -> PolicyBundle {
        let manifest = "name = \"ours\"\nversion = \"1.0.0\"\nextends = \"baseline@2\"\n";
        let files = [("pack.toml".to_owned(), manifest.to_owned())].into();
        PolicyBundle { packs: vec![PolicyFiles { files }] }
    }

    /// A check of a run.
    fn of_run(run: &str, message: EvaluateRequest) -> EvaluateRequest {
        let mut message = message;
        message.request.context.get_or_insert_default().insert("run_id".to_owned(), run.into());
        message
    }

    /// Asks in this order, all before the first is taken; the replies in the order in which they come, until `enough`
    /// says so.
    async fn replies(
        messages: Vec<EvaluateRequest>,
        enough: impl Fn(&[(AccountId, EvaluateReply)]) -> bool,
    ) -> Vec<(AccountId, EvaluateReply)> {
        let bus = Bus::new();
        let (evaluator, gateway) = (bus.connect(), bus.connect());
        let inbox = evaluator.requests.serve::<EvaluateRequest>().await.unwrap();
        let engines = Engines::open(Arc::new(PackSet::embedded().unwrap())).unwrap();
        let runs = RunCoordinator::new(Arc::clone(&evaluator.state_store), RunConfig::default());
        let approvals = Approvals::new(&evaluator, RunConfig::default());
        let deciders =
            Deciders { engines: &engines, runs: &runs, approvals: &approvals, candidates: &Candidates::new() };
        let stop = CancellationToken::new();
        let requests = &gateway.requests;
        let ask = |message: EvaluateRequest| async move {
            let reply = requests.request(&message, WAIT_TIMEOUT).await.unwrap();
            (message.account, reply)
        };
        // The first poll hands a message over.
        let mut asks: FuturesUnordered<_> = messages.into_iter().map(|message| Box::pin(ask(message))).collect();
        let mut came = Vec::new();
        let collect = async {
            while !enough(&came) {
                came.push(asks.next().await.unwrap());
            }
        };
        tokio::select! {
            biased;
            () = collect => {}
            () = serve_until(inbox, &stop, deciders, ShardLimits::of(8)) => panic!("nobody stopped it"),
        }
        came
    }

    #[tokio::test]
    async fn one_check_of_a_quiet_account_does_not_wait_for_all_of_a_busy_one() {
        let mut messages: Vec<EvaluateRequest> = (0..MAX_RECEIVED_IN_A_ROW - 1).map(|_| message("busy", "")).collect();
        messages.push(message("quiet", ""));
        let came = replies(messages, |came| came.iter().any(|(account, _)| account.as_str() == "quiet")).await;
        assert!(came.len() <= 4, "the quiet account came after {}", came.len());
        assert!(came.iter().all(|(_, reply)| matches!(reply, EvaluateReply::Decided(_))));
    }

    #[tokio::test]
    async fn an_ordinary_check_does_not_wait_for_large_ones_of_its_own_account() {
        let large = "Deploy it with care. ".repeat(MAX_ORDINARY_BYTES / 10);
        let mut messages: Vec<EvaluateRequest> = (0..8).map(|_| message("acc", &large)).collect();
        messages.push(message("acc", ""));
        let bytes = |message: &EvaluateRequest| serde_json::to_vec(message).unwrap().len();
        assert!(bytes(&messages[0]) > MAX_ORDINARY_BYTES && bytes(&messages[8]) <= MAX_ORDINARY_BYTES);
        let came = replies(messages, |came| came.len() == 9).await;
        assert!(came.iter().all(|(_, reply)| matches!(reply, EvaluateReply::Decided(_))), "large ones are decided too");
    }

    #[tokio::test]
    async fn what_one_account_sends_beyond_its_place_is_refused_at_once_and_nothing_of_others() {
        let large = "Deploy it with care. ".repeat(45_000);
        let mut messages: Vec<EvaluateRequest> = (0..11).map(|_| message("busy", &large)).collect();
        messages.push(message("quiet", ""));
        let busy = |reply: &EvaluateReply| *reply == EvaluateReply::Busy;
        let came = replies(messages, |came| {
            came.iter().any(|(_, reply)| busy(reply)) && came.iter().any(|(account, _)| account.as_str() == "quiet")
        })
        .await;
        for (account, reply) in came {
            assert!(busy(&reply) == (account.as_str() == "busy") || matches!(reply, EvaluateReply::Decided(_)));
            assert!(account.as_str() == "busy" || matches!(reply, EvaluateReply::Decided(_)));
        }
    }

    #[tokio::test]
    async fn large_checks_of_runs_and_without_one_are_all_decided_with_one_slot() {
        let large = "Deploy it with care. ".repeat(MAX_ORDINARY_BYTES / 10);
        let mut messages: Vec<EvaluateRequest> = (0..6).map(|_| of_run("r", message("busy", &large))).collect();
        messages.extend((0..4).map(|_| of_run("r", message("busy", ""))));
        messages.push(message("quiet", &large));
        let came = replies(messages, |came| came.len() == 11).await;
        assert!(came.iter().all(|(_, reply)| matches!(reply, EvaluateReply::Decided(_))));
    }

    #[tokio::test]
    async fn a_check_whose_policy_is_being_prepared_is_answered_in_time_and_the_next_one_finds_it() {
        let (bus, bundle) = (Bus::new(), manifest_alone());
        let version = Pack::from_bundle(&bundle).unwrap().version().clone();
        let (keystore, evaluator) = (bus.connect(), bus.connect());
        let mut fetches = keystore.requests.serve::<FetchPolicy>().await.unwrap();
        let published = Published::new(SharedPolicies::new(), Arc::clone(&evaluator.requests));
        let account = AccountId::parse("acc").unwrap();
        let load = async {
            let fetched = FetchedPolicy { version: version.clone(), bundle: bundle.clone() };
            fetches.next().await.unwrap().answer(&ManageReply::Done(fetched)).await;
            std::future::pending::<()>().await;
        };
        // It is loaded, and no engine is prepared.
        tokio::select! {
            pack = published.load(Some(&account), &version, Instant::now() + WAIT_TIMEOUT) => assert!(pack.is_ok()),
            () = load => panic!("it never ends"),
        }
        let engines = Engines::open(Arc::new(PackSet::embedded().unwrap())).unwrap().with_published(published);
        let policy = ActivePolicies { default: Some(version.clone()), ..ActivePolicies::default() };
        let rules = AccountRules { policy, ..AccountRules::default() };
        let mut inbox = evaluator.requests.serve::<EvaluateRequest>().await.unwrap();
        let gateway = bus.connect();
        let expected = EvaluateReply::PolicyMissing { version, is_loading: true };
        let now = Instant::now();
        for (late, is_ready) in [(now, false), (now + WAIT_TIMEOUT, true)] {
            let asked = message("acc", "");
            let asking = gateway.requests.request(&asked, WAIT_TIMEOUT);
            let answering = async {
                let arrived = ReceivedCheck::new(inbox.next_unparsed().await.unwrap()).unwrap();
                let request = arrived.content.parse().unwrap();
                let check = with_published(&engines, InFlightCheck::new(request, arrived, None), &rules, late).await;
                let found = check.is_some();
                if let Some(check) = check {
                    check.decided(EvaluateReply::Busy).await;
                }
                found
            };
            let (reply, found) = tokio::join!(asking, answering);
            assert_eq!((found, reply.unwrap() == expected), (is_ready, !is_ready));
        }
    }

    #[test]
    fn what_all_shards_hold_does_not_grow_with_their_number() {
        for shards in [1, 2, 3, 8, 64] {
            let ShardLimits { large_in_flight, waiting_bytes } = ShardLimits::of(shards);
            assert!(large_in_flight >= 1 && large_in_flight * shards <= MAX_LARGE_IN_FLIGHT.max(shards), "{shards}");
            assert!(waiting_bytes * shards <= MAX_WAITING_BYTES.max(MAX_MESSAGE_BYTES * shards), "{shards}");
        }
    }
}
