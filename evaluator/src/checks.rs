//! The checks of one shard, from its inbox to their answers.
//!
//! Owns the order in which they are decided: what has arrived is taken at once, unread, and waits for the turn of its account, the
//! large ones for another thread than the ordinary ones. What cannot wait is refused, and what has waited too long is given up: both
//! are answers, and final. INVARIANT: on stop no new check is taken, and what had arrived is answered.

use futures_util::stream::{FuturesUnordered, StreamExt};
use stage0_backplane::{Served, read_question};
use stage0_contract::{EvaluateReply, EvaluateRequest};
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;

use crate::in_hand::{Arrived, Check};
use crate::lanes::{Lanes, MAX_ORDINARY_BYTES};
use crate::run::Runs;
use crate::turns::Turns;

/// Checks that one shard has in hand. Above what runs may hold, so that checks without a run are answered while the ledger hangs.
const MAX_IN_HAND: usize = 4_096;
/// Large checks that one shard has in hand: each takes many times its bytes of memory.
const MAX_LARGE_IN_HAND: usize = 2;
/// Arrivals that are taken before the next check is decided: a flood must not keep those that wait from their turn.
const MAX_TAKEN_IN_A_ROW: usize = 64;

/// What became of a check that was in hand.
enum Done {
    Ordinary,
    Large,
}

/// Answers checks until `stop`, then those that had arrived before it.
pub(crate) async fn until_stopped(
    mut inbox: Served<EvaluateRequest>,
    stop: &CancellationToken,
    lanes: &Lanes,
    runs: &Runs,
) {
    let (mut ordinary, mut large) = (Turns::<Arrived>::default(), Turns::<Arrived>::default());
    let mut in_hand = FuturesUnordered::new();
    let (mut stopping, mut emptied) = (false, false);
    let (mut taken, mut large_in_hand) = (0, 0);
    while !(emptied && in_hand.is_empty() && ordinary.is_empty() && large.is_empty()) {
        let next_large = !large.is_empty() && large_in_hand < MAX_LARGE_IN_HAND;
        let next_ordinary = !ordinary.is_empty() && in_hand.len() < MAX_IN_HAND;
        let decide = next_large || next_ordinary;
        let take = !decide || taken < MAX_TAKEN_IN_A_ROW;
        tokio::select! {
            biased;
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                inbox.stop().await;
            }
            Some(done) = in_hand.next(), if !in_hand.is_empty() => {
                large_in_hand -= usize::from(matches!(done, Done::Large));
            }
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
            () = yield_now(), if decide => {
                taken = 0;
                // One of each: neither keeps the other from its thread.
                if next_large && let Some(arrived) = large.pop() {
                    large_in_hand += 1;
                    in_hand.push(decided(arrived, Done::Large, lanes, runs));
                }
                if next_ordinary && let Some(arrived) = ordinary.pop() {
                    in_hand.push(decided(arrived, Done::Ordinary, lanes, runs));
                }
            }
        }
    }
}

/// Reads a check and decides it, where its size belongs.
async fn decided(arrived: Arrived, size: Done, lanes: &Lanes, runs: &Runs) -> Done {
    if arrived.is_out_of_time() {
        arrived.refuse(&EvaluateReply::TimedOut).await;
        return size;
    }
    let read = match size {
        Done::Ordinary => read_question::<EvaluateRequest>(&arrived.bytes),
        Done::Large => {
            let bytes = arrived.bytes.clone();
            lanes.large(move |_| read_question::<EvaluateRequest>(&bytes)).await.flatten()
        }
    };
    // What cannot be read is logged there, and its asker fails closed when it is late.
    let Some(request) = read else { return size };
    let check = Check::new(request, arrived);
    match Runs::place(check.request()) {
        Some(place) => runs.evaluate(lanes, place, check).await,
        None => {
            let (reply, _) = lanes.evaluate(check.request(), check.bytes, None, check.limit).await;
            check.decided(&reply).await;
        }
    }
    size
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

    /// Asks in this order, all before the first is taken; the replies in the order in which they come, until `enough` says so.
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
            () = until_stopped(inbox, &stop, &lanes, &runs) => panic!("nobody stopped it"),
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
}
