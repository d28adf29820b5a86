//! The reviews of one shard, from their arrival to their replies.
//!
//! Owns how many are in flight. A review only adds faults to a refusal, so one over the limit is answered at once
//! without any, and one that no gateway waits for any more is dropped. After each one, checks get their turn.
//! INVARIANT: after stop no new review is received, and every received review is answered.

use std::collections::HashMap;

use futures_util::stream::{FuturesUnordered, StreamExt};
use stage0_backplane::RequestStream;
use stage0_contract::{AccountId, ReviewReply, ReviewRequest};
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;

use crate::engines::Engines;
use crate::in_flight::InFlightRequest;

const MAX_IN_FLIGHT: usize = 64;
const MAX_IN_FLIGHT_PER_ACCOUNT: usize = 4;
/// Reviews that are received before the next one is processed, so that a flood does not starve those in flight.
const MAX_RECEIVED_IN_A_ROW: usize = 16;

pub(crate) async fn serve_until(mut inbox: RequestStream<ReviewRequest>, stop: &CancellationToken, engines: &Engines) {
    let mut in_flight = FuturesUnordered::new();
    let mut accounts: HashMap<AccountId, usize> = HashMap::new();
    let (mut stopping, mut drained, mut taken) = (false, false, 0);
    while !(drained && in_flight.is_empty()) {
        tokio::select! {
            biased;
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                inbox.stop().await;
            }
            message = inbox.next(), if !drained && taken < MAX_RECEIVED_IN_A_ROW => {
                taken += 1;
                let Some(message) = message else {
                    drained = true;
                    continue;
                };
                let asked = InFlightRequest::new(message);
                let account = &asked.request.account;
                let of_account = accounts.get(account).copied().unwrap_or_default();
                if in_flight.len() >= MAX_IN_FLIGHT || of_account >= MAX_IN_FLIGHT_PER_ACCOUNT {
                    tracing::debug!(%account, "bad request is not reviewed: too many are in hand");
                    asked.answer(ReviewReply { errors: Vec::new() }).await;
                } else {
                    accounts.insert(account.clone(), of_account + 1);
                    in_flight.push(reviewed(asked, engines));
                }
            }
            Some(account) = in_flight.next(), if !in_flight.is_empty() => {
                taken = 0;
                match accounts.get_mut(&account) {
                    Some(count) if *count > 1 => *count -= 1,
                    Some(_) | None => {
                        accounts.remove(&account);
                    }
                }
            }
            // All reviews in flight wait for the other thread.
            () = yield_now(), if taken >= MAX_RECEIVED_IN_A_ROW => taken = 0,
        }
        yield_now().await;
    }
}

/// Processes one review and returns its account.
async fn reviewed(asked: InFlightRequest<ReviewRequest>, engines: &Engines) -> AccountId {
    let account = asked.request.account.clone();
    match engines.review(&asked.request, asked.deadline).await {
        Some(reply) => asked.answer(reply).await,
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
    use crate::engines::MAX_ORDINARY_BYTES;
    use stage0_policy::PackSet;

    const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

    /// One with a single fault.
    fn review(account: &str, note: &str) -> ReviewRequest {
        ReviewRequest {
            account: AccountId::parse(account).unwrap(),
            constraints: vec!["allowed_change_window: blue_moon".to_owned(), note.to_owned()],
            policy_pack_version: None,
            policy: None,
        }
    }

    fn large(account: &str) -> ReviewRequest {
        review(account, &"x".repeat(MAX_ORDINARY_BYTES))
    }

    /// Asks in this order, all before the first is taken, while the thread for large ones is busy with `work`. How many
    /// errors were found for whom, in the order in which they were answered; `seen` hears each.
    async fn errors(
        messages: Vec<ReviewRequest>,
        work: impl FnOnce() + Send + 'static,
        mut seen: impl FnMut(usize),
    ) -> Vec<(AccountId, usize)> {
        let bus = Bus::new();
        let (evaluator, gateway) = (bus.connect(), bus.connect());
        let inbox = evaluator.requests.serve::<ReviewRequest>().await.unwrap();
        let engines = Engines::open(Arc::new(PackSet::embedded().unwrap())).unwrap();
        let stop = CancellationToken::new();
        let requests = &gateway.requests;
        let ask = |message: ReviewRequest| async move {
            let reply = requests.request(&message, WAIT_TIMEOUT).await.unwrap();
            (message.account, reply.errors.len())
        };
        // The first poll hands a message over.
        let mut asks: FuturesUnordered<_> = messages.into_iter().map(|message| Box::pin(ask(message))).collect();
        let mut came = Vec::new();
        let collect = async {
            while let Some(answered) = asks.next().await {
                came.push(answered);
                seen(came.len());
            }
        };
        let busy = async {
            engines.large(move |_| work()).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            () = busy => {}
            () = collect => {}
            () = serve_until(inbox, &stop, &engines) => panic!("nobody stopped it"),
        }
        came
    }

    fn of<'a>(came: &'a [(AccountId, usize)], account: &'a str) -> impl Iterator<Item = usize> + 'a {
        came.iter().filter(move |(of, _)| of.as_str() == account).map(|(_, errors)| *errors)
    }

    #[tokio::test]
    async fn what_one_account_asks_beyond_its_place_is_answered_at_once_with_nothing_and_others_are_reviewed() {
        let mut messages: Vec<ReviewRequest> = (0..10).map(|_| review("busy", "")).collect();
        messages.push(review("quiet", ""));
        let came = errors(messages, || {}, |_| {}).await;
        assert!(came.iter().take(6).all(|(account, errors)| account.as_str() == "busy" && *errors == 0), "{came:?}");
        assert_eq!(of(&came, "busy").sum::<usize>(), MAX_IN_FLIGHT_PER_ACCOUNT);
        assert!(of(&came, "quiet").eq([1]));
    }

    #[tokio::test]
    async fn large_ones_that_wait_keep_no_ordinary_one_from_its_answer_and_no_more_wait_than_may() {
        // One account more than there is key for.
        let accounts = MAX_IN_FLIGHT / MAX_IN_FLIGHT_PER_ACCOUNT + 1;
        let name = |account: usize| format!("a{account}");
        let messages =
            (0..accounts).flat_map(|account| (0..MAX_IN_FLIGHT_PER_ACCOUNT).map(move |_| large(&name(account))));
        let (release, released) = mpsc::channel::<()>();
        let wait = move || {
            let _ = released.recv();
        };
        let mut release = Some(release);
        let came = errors(messages.collect(), wait, |answered| {
            if answered == MAX_IN_FLIGHT_PER_ACCOUNT {
                release.take();
            }
        })
        .await;
        let last = name(accounts - 1);
        assert!(
            came.iter()
                .take(MAX_IN_FLIGHT_PER_ACCOUNT)
                .all(|answered| *answered == (AccountId::parse(&last).unwrap(), 0))
        );
        assert!(came.iter().skip(MAX_IN_FLIGHT_PER_ACCOUNT).all(|(_, errors)| *errors == 1));
        assert_eq!(came.len(), MAX_IN_FLIGHT + MAX_IN_FLIGHT_PER_ACCOUNT);
    }

    #[tokio::test]
    async fn an_ordinary_one_does_not_wait_for_the_large_ones_of_its_account() {
        let (release, released) = mpsc::channel::<()>();
        let wait = move || {
            let _ = released.recv();
        };
        let mut release = Some(release);
        let mut messages: Vec<ReviewRequest> = (1..MAX_IN_FLIGHT_PER_ACCOUNT).map(|_| large("acc")).collect();
        messages.push(review("acc", ""));
        // The first answer lets the large ones go on: were it one of them, it would never come.
        let came = errors(messages, wait, |_| drop(release.take())).await;
        assert!(of(&came, "acc").eq([1; MAX_IN_FLIGHT_PER_ACCOUNT]));
    }
}
