//! The checks of one shard, from its inbox to their answers.
//!
//! Owns the order in which they are decided: what has arrived is taken at once, unread, and waits for the turn of its
//! account, the large ones for another thread than the ordinary ones. What cannot wait is refused, and what has waited
//! too long is given up: both are answers, and final.
//! INVARIANT: on stop no new check is taken, and what had arrived is answered.

use futures_util::stream::{FuturesUnordered, StreamExt};
use stage0_backplane::{MAX_MESSAGE_BYTES, Served, read_question};
use stage0_contract::{EvaluateReply, EvaluateRequest};
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;

use crate::in_hand::{Arrived, Check};
use crate::lanes::{Lanes, MAX_ORDINARY_BYTES};
use crate::run::Runs;
use crate::slots::{Slot, Slots};
use crate::turns::Turns;

/// Checks that one shard has in hand. Above what runs may hold, so that checks without a run are answered while the
/// ledger hangs.
const MAX_IN_HAND: usize = 4_096;
/// Large checks that all shards of a process have in hand, and the most that one has.
const MAX_LARGE_IN_HAND: usize = 8;
const MAX_LARGE_IN_HAND_EACH: usize = 4;
/// Bytes that wait at all shards of a process, once for ordinary and once for large checks, and the most at one.
const MAX_WAITING_BYTES: usize = 64 << 20;
const MAX_WAITING_BYTES_EACH: usize = 32 << 20;
/// Arrivals that are taken before the next check is decided: a flood must not keep those that wait from their turn.
const MAX_TAKEN_IN_A_ROW: usize = 64;

/// How much one of several shards may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    large_in_hand: usize,
    waiting_bytes: usize,
}

impl Share {
    /// The share of one shard of so many.
    pub(crate) fn of(shards: usize) -> Self {
        Self {
            large_in_hand: (MAX_LARGE_IN_HAND / shards).clamp(1, MAX_LARGE_IN_HAND_EACH),
            waiting_bytes: (MAX_WAITING_BYTES / shards).clamp(MAX_MESSAGE_BYTES, MAX_WAITING_BYTES_EACH),
        }
    }
}

/// Answers checks until `stop`, then those that had arrived before it.
pub(crate) async fn until_stopped(
    mut inbox: Served<EvaluateRequest>,
    stop: &CancellationToken,
    lanes: &Lanes,
    runs: &Runs,
    share: Share,
) {
    let [mut ordinary, mut large] = [(), ()].map(|()| Turns::<Arrived>::new(share.waiting_bytes));
    let slots = Slots::new(share.large_in_hand);
    let mut in_hand = FuturesUnordered::new();
    let (mut stopping, mut emptied, mut taken) = (false, false, 0);
    while !(emptied && in_hand.is_empty() && ordinary.is_empty() && large.is_empty()) {
        let next_large = !large.is_empty() && slots.any_free();
        let next_ordinary = !ordinary.is_empty() && in_hand.len() < MAX_IN_HAND;
        let decide = next_large || next_ordinary;
        let take = !decide || taken < MAX_TAKEN_IN_A_ROW;
        tokio::select! {
            biased;
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                inbox.stop().await;
            }
            Some(()) = in_hand.next(), if !in_hand.is_empty() => {}
            unread = inbox.next_unread(), if take && !emptied => {
                taken += 1;
                let Some(unread) = unread else {
                    emptied = true;
                    continue;
                };
                let Some(arrived) = Arrived::new(unread) else { continue };
                let turns = if arrived.bytes.len() > MAX_ORDINARY_BYTES { &mut large } else { &mut ordinary };
                if let Err(arrived) = turns.push(arrived) {
                    arrived.refuse(&EvaluateReply::Busy).await;
                }
            }
            // A check may be answered by another one of its run, long before what is in hand ends.
            () = slots.freed(), if !large.is_empty() && !next_large => {}
            () = yield_now(), if decide => {
                taken = 0;
                // One of each: neither keeps the other from its thread.
                if next_large
                    && let Some(slot) = slots.take()
                    && let Some(arrived) = large.pop()
                {
                    in_hand.push(decided(arrived, Some(slot), lanes, runs));
                }
                if next_ordinary && let Some(arrived) = ordinary.pop() {
                    in_hand.push(decided(arrived, None, lanes, runs));
                }
            }
        }
    }
}

/// Reads a check and decides it, where its size belongs: a large one has a slot.
async fn decided(arrived: Arrived, slot: Option<Slot>, lanes: &Lanes, runs: &Runs) {
    if arrived.is_out_of_time() {
        arrived.refuse(&EvaluateReply::TimedOut).await;
        return;
    }
    let read = if slot.is_some() {
        let bytes = arrived.bytes.clone();
        lanes.large(move |_| read_question::<EvaluateRequest>(&bytes)).await.flatten()
    } else {
        read_question::<EvaluateRequest>(&arrived.bytes)
    };
    // What cannot be read is logged there, and its asker fails closed when it is late.
    let Some(request) = read else { return };
    let check = Check::new(request, arrived, slot);
    if let Some(reason) = runs.fault_of_time(check.request()) {
        check.decided(&EvaluateReply::Unable(reason)).await;
        return;
    }
    match Runs::place(check.request()) {
        Some(place) => runs.evaluate(lanes, place, check).await,
        None => {
            let (reply, _) = lanes.evaluate(check.request(), check.bytes, None, check.limit).await;
            check.decided(&reply).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use serde_json::json;
    use stage0_backplane::embedded::Bus;
    use stage0_contract::{AccountId, CallerTexts, CheckRequest, RequestId};

    use super::*;
    use crate::pack::PackSet;
    use crate::run::RunConfig;

    const WITHIN: Duration = Duration::from_secs(60);

    fn question(account: &str, note: &str) -> EvaluateRequest {
        let body = json!({"goal": "read the report", "success_criteria": ["x"], "context": {"note": note}});
        EvaluateRequest {
            request_id: RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap(),
            account: AccountId::parse(account).unwrap(),
            request: CheckRequest::parse(body).unwrap(),
            evaluated_at: 1_773_662_400,
            operation: None,
            caller: CallerTexts::default(),
            max_runs: None,
        }
    }

    /// A check of a run.
    fn of_run(run: &str, question: EvaluateRequest) -> EvaluateRequest {
        let mut question = question;
        question.request.context.get_or_insert_default().insert("run_id".to_owned(), run.into());
        question
    }

    /// Asks in this order, all before the first is taken; the replies in the order in which they come, until `enough`
    /// says so.
    async fn replies(
        questions: Vec<EvaluateRequest>,
        enough: impl Fn(&[(AccountId, EvaluateReply)]) -> bool,
    ) -> Vec<(AccountId, EvaluateReply)> {
        let bus = Bus::new();
        let (evaluator, gateway) = (bus.connect(), bus.connect());
        let inbox = evaluator.requests.serve::<EvaluateRequest>().await.unwrap();
        let lanes = Lanes::open(Arc::new(PackSet::embedded().unwrap())).unwrap();
        let runs = Runs::new(Arc::clone(&evaluator.ledger), RunConfig::default());
        let stop = CancellationToken::new();
        let requests = &gateway.requests;
        let ask = |question: EvaluateRequest| async move {
            let reply = requests.ask(&question, WITHIN).await.unwrap();
            (question.account, reply)
        };
        // The first poll hands a question over.
        let mut asks: FuturesUnordered<_> = questions.into_iter().map(|question| Box::pin(ask(question))).collect();
        let mut came = Vec::new();
        let collect = async {
            while !enough(&came) {
                came.push(asks.next().await.unwrap());
            }
        };
        tokio::select! {
            biased;
            () = collect => {}
            () = until_stopped(inbox, &stop, &lanes, &runs, Share::of(8)) => panic!("nobody stopped it"),
        }
        came
    }

    #[tokio::test]
    async fn one_check_of_a_quiet_account_does_not_wait_for_all_of_a_busy_one() {
        let mut questions: Vec<EvaluateRequest> = (0..MAX_TAKEN_IN_A_ROW - 1).map(|_| question("busy", "")).collect();
        questions.push(question("quiet", ""));
        let came = replies(questions, |came| came.iter().any(|(account, _)| account.as_str() == "quiet")).await;
        assert!(came.len() <= 4, "the quiet account came after {}", came.len());
        assert!(came.iter().all(|(_, reply)| matches!(reply, EvaluateReply::Decided(_))));
    }

    #[tokio::test]
    async fn an_ordinary_check_does_not_wait_for_large_ones_of_its_own_account() {
        let large = "Deploy it with care. ".repeat(MAX_ORDINARY_BYTES / 10);
        let mut questions: Vec<EvaluateRequest> = (0..8).map(|_| question("acc", &large)).collect();
        questions.push(question("acc", ""));
        let bytes = |question: &EvaluateRequest| serde_json::to_vec(question).unwrap().len();
        assert!(bytes(&questions[0]) > MAX_ORDINARY_BYTES && bytes(&questions[8]) <= MAX_ORDINARY_BYTES);
        let came = replies(questions, |came| came.len() == 9).await;
        assert!(came.iter().all(|(_, reply)| matches!(reply, EvaluateReply::Decided(_))), "large ones are decided too");
    }

    #[tokio::test]
    async fn what_one_account_sends_beyond_its_place_is_refused_at_once_and_nothing_of_others() {
        let large = "Deploy it with care. ".repeat(45_000);
        let mut questions: Vec<EvaluateRequest> = (0..11).map(|_| question("busy", &large)).collect();
        questions.push(question("quiet", ""));
        let busy = |reply: &EvaluateReply| *reply == EvaluateReply::Busy;
        let came = replies(questions, |came| {
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
        let mut questions: Vec<EvaluateRequest> = (0..6).map(|_| of_run("r", question("busy", &large))).collect();
        questions.extend((0..4).map(|_| of_run("r", question("busy", ""))));
        questions.push(question("quiet", &large));
        let came = replies(questions, |came| came.len() == 11).await;
        assert!(came.iter().all(|(_, reply)| matches!(reply, EvaluateReply::Decided(_))));
    }

    #[test]
    fn what_all_shards_hold_does_not_grow_with_their_number() {
        for shards in [1, 2, 3, 8, 64] {
            let Share { large_in_hand, waiting_bytes } = Share::of(shards);
            assert!(large_in_hand >= 1 && large_in_hand * shards <= MAX_LARGE_IN_HAND.max(shards), "{shards}");
            assert!(waiting_bytes * shards <= MAX_WAITING_BYTES.max(MAX_MESSAGE_BYTES * shards), "{shards}");
        }
    }
}
