//! The reviews of one shard, from its inbox to their answers.
//!
//! Owns how many are in hand: a review only adds to a refusal, so what is beyond is answered at once, with nothing, and
//! what nobody waits for any more is dropped. After each one, taken or reviewed, the checks of the shard go on.
//! INVARIANT: on stop no new one is taken, and what had arrived is answered.

use std::collections::HashMap;

use futures_util::stream::{FuturesUnordered, StreamExt};
use stage0_backplane::Served;
use stage0_contract::{AccountId, ReviewReply, ReviewRequest};
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;

use crate::in_hand::InHand;
use crate::lanes::Lanes;

/// Reviews that one shard has in hand, and those of one account.
const MAX_IN_HAND: usize = 64;
const MAX_IN_HAND_EACH: usize = 4;
/// Arrivals that are taken before the next one is reviewed: a flood must not keep those that wait from their turn.
const MAX_TAKEN_IN_A_ROW: usize = 16;

/// Answers reviews until `stop`, then those that had arrived before it.
pub(crate) async fn until_stopped(mut inbox: Served<ReviewRequest>, stop: &CancellationToken, lanes: &Lanes) {
    let mut in_hand = FuturesUnordered::new();
    let mut accounts: HashMap<AccountId, usize> = HashMap::new();
    let (mut stopping, mut emptied, mut taken) = (false, false, 0);
    while !(emptied && in_hand.is_empty()) {
        tokio::select! {
            biased;
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                inbox.stop().await;
            }
            question = inbox.next(), if !emptied && taken < MAX_TAKEN_IN_A_ROW => {
                taken += 1;
                let Some(question) = question else {
                    emptied = true;
                    continue;
                };
                let asked = InHand::new(question);
                let account = &asked.request.account;
                let of_account = accounts.get(account).copied().unwrap_or_default();
                if in_hand.len() >= MAX_IN_HAND || of_account >= MAX_IN_HAND_EACH {
                    tracing::debug!(%account, "bad request is not reviewed: too many are in hand");
                    asked.answer(&ReviewReply { errors: Vec::new() }).await;
                } else {
                    accounts.insert(account.clone(), of_account + 1);
                    in_hand.push(reviewed(asked, lanes));
                }
            }
            Some(account) = in_hand.next(), if !in_hand.is_empty() => {
                taken = 0;
                match accounts.get_mut(&account) {
                    Some(count) if *count > 1 => *count -= 1,
                    Some(_) | None => {
                        accounts.remove(&account);
                    }
                }
            }
            // All that are in hand wait for the other thread.
            () = yield_now(), if taken >= MAX_TAKEN_IN_A_ROW => taken = 0,
        }
        yield_now().await;
    }
}

/// Reviews one, and says whose it was.
async fn reviewed(asked: InHand<ReviewRequest>, lanes: &Lanes) -> AccountId {
    let account = asked.request.account.clone();
    match lanes.review(&asked.request, asked.deadline).await {
        Some(reply) => asked.answer(&reply).await,
        None => tracing::debug!(%account, "bad request was not reviewed in time"),
    }
    account
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    use stage0_backplane::embedded::Bus;

    use super::*;
    use crate::lanes::MAX_ORDINARY_BYTES;
    use crate::pack::PackSet;

    const WITHIN: Duration = Duration::from_secs(60);

    /// One with a single fault.
    fn review(account: &str, note: &str) -> ReviewRequest {
        ReviewRequest {
            account: AccountId::parse(account).unwrap(),
            constraints: vec!["allowed_change_window: blue_moon".to_owned(), note.to_owned()],
            policy_pack_version: None,
        }
    }

    fn large(account: &str) -> ReviewRequest {
        review(account, &"x".repeat(MAX_ORDINARY_BYTES))
    }

    /// Asks in this order, all before the first is taken, while the thread for large ones is busy with `work`. How many
    /// errors were found for whom, in the order in which they were told; `seen` hears each.
    async fn errors(
        questions: Vec<ReviewRequest>,
        work: impl FnOnce() + Send + 'static,
        mut seen: impl FnMut(usize),
    ) -> Vec<(AccountId, usize)> {
        let bus = Bus::new();
        let (evaluator, gateway) = (bus.connect(), bus.connect());
        let inbox = evaluator.requests.serve::<ReviewRequest>().await.unwrap();
        let lanes = Lanes::open(Arc::new(PackSet::embedded().unwrap())).unwrap();
        let stop = CancellationToken::new();
        let requests = &gateway.requests;
        let ask = |question: ReviewRequest| async move {
            let reply = requests.ask(&question, WITHIN).await.unwrap();
            (question.account, reply.errors.len())
        };
        // The first poll hands a question over.
        let mut asks: FuturesUnordered<_> = questions.into_iter().map(|question| Box::pin(ask(question))).collect();
        let mut came = Vec::new();
        let collect = async {
            while let Some(told) = asks.next().await {
                came.push(told);
                seen(came.len());
            }
        };
        let busy = async {
            lanes.large(move |_| work()).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            () = busy => {}
            () = collect => {}
            () = until_stopped(inbox, &stop, &lanes) => panic!("nobody stopped it"),
        }
        came
    }

    fn of<'a>(came: &'a [(AccountId, usize)], account: &'a str) -> impl Iterator<Item = usize> + 'a {
        came.iter().filter(move |(of, _)| of.as_str() == account).map(|(_, errors)| *errors)
    }

    #[tokio::test]
    async fn what_one_account_asks_beyond_its_place_is_answered_at_once_with_nothing_and_others_are_reviewed() {
        let mut questions: Vec<ReviewRequest> = (0..10).map(|_| review("busy", "")).collect();
        questions.push(review("quiet", ""));
        let came = errors(questions, || {}, |_| {}).await;
        assert!(came.iter().take(6).all(|(account, errors)| account.as_str() == "busy" && *errors == 0), "{came:?}");
        assert_eq!(of(&came, "busy").sum::<usize>(), MAX_IN_HAND_EACH);
        assert!(of(&came, "quiet").eq([1]));
    }

    #[tokio::test]
    async fn large_ones_that_wait_keep_no_ordinary_one_from_its_answer_and_no_more_wait_than_may() {
        // One account more than there is place for.
        let accounts = MAX_IN_HAND / MAX_IN_HAND_EACH + 1;
        let name = |account: usize| format!("a{account}");
        let questions = (0..accounts).flat_map(|account| (0..MAX_IN_HAND_EACH).map(move |_| large(&name(account))));
        let (release, released) = mpsc::channel::<()>();
        let wait = move || {
            let _ = released.recv();
        };
        let mut release = Some(release);
        let came = errors(questions.collect(), wait, |told| {
            if told == MAX_IN_HAND_EACH {
                release.take();
            }
        })
        .await;
        let last = name(accounts - 1);
        assert!(came.iter().take(MAX_IN_HAND_EACH).all(|told| *told == (AccountId::parse(&last).unwrap(), 0)));
        assert!(came.iter().skip(MAX_IN_HAND_EACH).all(|(_, errors)| *errors == 1));
        assert_eq!(came.len(), MAX_IN_HAND + MAX_IN_HAND_EACH);
    }

    #[tokio::test]
    async fn an_ordinary_one_does_not_wait_for_the_large_ones_of_its_account() {
        let (release, released) = mpsc::channel::<()>();
        let wait = move || {
            let _ = released.recv();
        };
        let mut release = Some(release);
        let mut questions: Vec<ReviewRequest> = (1..MAX_IN_HAND_EACH).map(|_| large("acc")).collect();
        questions.push(review("acc", ""));
        // The first answer lets the large ones go on: were it one of them, it would never come.
        let came = errors(questions, wait, |_| drop(release.take())).await;
        assert!(of(&came, "acc").eq([1; MAX_IN_HAND_EACH]));
    }
}
