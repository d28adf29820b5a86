//! Requests and replies.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use stage0_backplane::testing::wait_for;
use stage0_backplane::{Backplane, IncomingRequest, MAX_MESSAGE_BYTES, RequestError, UnparsedRequest};
use tokio::sync::Barrier;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{Echo, Echoed, PATIENT, Stage, answer_all, ask, ask_aside, echo, on_every_backplane};

/// Long enough to be sent and to arrive on a busy machine.
const SHORT: Duration = Duration::from_millis(300);

on_every_backplane! {
    a_request_without_a_server_fails_as_no_responders,
    a_request_whose_server_left_fails_as_no_responders,
    a_request_that_its_server_holds_times_out_at_its_deadline,
    a_request_that_its_server_drops_times_out_at_its_deadline_and_not_before,
    a_request_whose_deadline_passed_times_out_and_never_arrives,
    a_request_that_waited_too_long_is_not_handed_to_a_server,
    a_request_on_a_closed_connection_fails_as_disconnected,
    a_request_that_waits_when_its_connection_closes_fails_as_disconnected,
    a_request_that_is_too_large_is_refused,
    a_request_that_cannot_be_parsed_is_skipped,
    a_reply_that_cannot_be_read_is_an_error,
    a_reply_that_is_too_large_is_not_sent,
    a_reply_arrives,
    a_shared_request_arrives_however_its_server_reads_and_answers,
    a_shared_request_is_held_to_the_same_limits,
    the_deadline_crosses_to_the_server,
    the_largest_request_and_reply_arrive,
    servers_share_the_requests_and_each_gets_one_reply,
    a_thousand_at_once_get_each_their_own_answer,
    a_stopped_queue_yields_what_had_arrived_and_takes_no_more,
    a_stopped_serve_loop_answers_what_had_arrived_and_never_exceeds_its_concurrency,
    a_dropped_queue_leaves_the_requests_to_the_others,
    a_request_that_is_dropped_leaves_nothing_behind,
    closing_one_connection_leaves_the_others,
    servers_may_live_on_other_threads,
    a_connection_is_ready_until_it_is_closed,
}

async fn a_request_without_a_server_fails_as_no_responders(stage: Stage) {
    let asker = stage.connect().await;
    assert_eq!(ask(&asker, "anybody?", PATIENT).await, Err(RequestError::NoResponders));
    assert_eq!(asker.requests.pending(), 0);
}

async fn a_request_whose_server_left_fails_as_no_responders(stage: Stage) {
    let (asker, server) = (stage.connect().await, stage.connect().await);
    let mut inbox = server.requests.serve::<Echo>().await.unwrap();
    inbox.stop().await;
    assert_eq!(ask(&asker, "stopped?", PATIENT).await, Err(RequestError::NoResponders));

    let inbox = server.requests.serve::<Echo>().await.unwrap();
    drop(inbox);
    // The round trip proves that the server knows of it.
    server.requests.ready().await.unwrap();
    assert_eq!(ask(&asker, "dropped?", PATIENT).await, Err(RequestError::NoResponders));
}

async fn a_request_that_its_server_holds_times_out_at_its_deadline(stage: Stage) {
    let (asker, server) = (stage.connect().await, stage.connect().await);
    let mut inbox = server.requests.serve::<Echo>().await.unwrap();
    let asked = Instant::now();
    let waiting = ask_aside(&asker, "slow", SHORT);
    let held = inbox.next().await.unwrap();
    assert_eq!(waiting.await.unwrap(), Err(RequestError::Timeout));
    assert!(asked.elapsed() >= SHORT);
    assert_eq!(asker.requests.pending(), 0);

    // Too late to matter, and harmless.
    held.answer(&Echoed { text: "slow".to_owned() }).await;
    let served = tokio::spawn(answer_all(inbox));
    assert_eq!(ask(&asker, "fast", PATIENT).await.as_deref(), Ok("fast"));
    served.abort();
}

async fn a_request_that_its_server_drops_times_out_at_its_deadline_and_not_before(stage: Stage) {
    let (asker, server) = (stage.connect().await, stage.connect().await);
    let mut inbox = server.requests.serve::<Echo>().await.unwrap();
    let asked = Instant::now();
    let waiting = ask_aside(&asker, "ignored", SHORT);
    drop(inbox.next().await.unwrap());
    assert_eq!(waiting.await.unwrap(), Err(RequestError::Timeout));
    assert!(asked.elapsed() >= SHORT);
}

async fn a_request_whose_deadline_passed_times_out_and_never_arrives(stage: Stage) {
    let (asker, server) = (stage.connect().await, stage.connect().await);
    let mut inbox = server.requests.serve::<Echo>().await.unwrap();
    assert_eq!(ask(&asker, "past", Duration::ZERO).await, Err(RequestError::Timeout));
    assert_eq!(asker.requests.pending(), 0);

    let _waiting = ask_aside(&asker, "next", PATIENT);
    assert_eq!(inbox.next().await.unwrap().request, echo("next"));
}

async fn a_request_that_waited_too_long_is_not_handed_to_a_server(stage: Stage) {
    let (asker, server) = (stage.connect().await, stage.connect().await);
    let mut inbox = server.requests.serve::<Echo>().await.unwrap();
    assert_eq!(ask(&asker, "nobody looked", SHORT).await, Err(RequestError::Timeout));
    // The server counts from when the request arrived, which may be a little later on a busy machine.
    sleep(SHORT).await;

    let _waiting = ask_aside(&asker, "in time", PATIENT);
    assert_eq!(inbox.next().await.unwrap().request, echo("in time"));
}

async fn a_request_on_a_closed_connection_fails_as_disconnected(stage: Stage) {
    let (asker, server) = (stage.connect().await, stage.connect().await);
    let _inbox = server.requests.serve::<Echo>().await.unwrap();
    asker.requests.close().await;
    asker.requests.close().await;
    assert_eq!(ask(&asker, "closed", PATIENT).await, Err(RequestError::Disconnected));
    assert!(asker.requests.serve::<Echo>().await.is_err());
}

async fn a_request_that_waits_when_its_connection_closes_fails_as_disconnected(stage: Stage) {
    let (asker, server) = (stage.connect().await, stage.connect().await);
    let mut inbox = server.requests.serve::<Echo>().await.unwrap();
    let waiting = ask_aside(&asker, "held", PATIENT);
    let _held = inbox.next().await.unwrap();
    asker.requests.close().await;
    assert_eq!(waiting.await.unwrap(), Err(RequestError::Disconnected));
    assert_eq!(asker.requests.pending(), 0);
}

async fn a_request_that_is_too_large_is_refused(stage: Stage) {
    let (asker, server) = (stage.connect().await, stage.connect().await);
    let _inbox = server.requests.serve::<Echo>().await.unwrap();
    let request = Bytes::from(vec![b'x'; MAX_MESSAGE_BYTES + 1]);
    let asked = asker.requests.request_bytes("echo", request, Instant::now() + PATIENT).await;
    assert_eq!(asked, Err(RequestError::TooLarge));
    assert_eq!(asker.requests.pending(), 0);
}

async fn a_request_that_cannot_be_parsed_is_skipped(stage: Stage) {
    let (asker, server) = (stage.connect().await, stage.connect().await);
    let mut inbox = server.requests.serve::<Echo>().await.unwrap();
    let (first, nonsense) = (asker.clone(), Bytes::from_static(b"{\"text\":7}"));
    let unreadable =
        tokio::spawn(async move { first.requests.request_bytes("echo", nonsense, Instant::now() + SHORT).await });
    wait_for("the first request is on its way", PATIENT, async || asker.requests.pending() == 1).await;
    let _waiting = ask_aside(&asker, "readable", PATIENT);
    assert_eq!(inbox.next().await.unwrap().request, echo("readable"));
    assert_eq!(unreadable.await.unwrap(), Err(RequestError::Timeout));
}

async fn a_reply_that_cannot_be_read_is_an_error(stage: Stage) {
    let (asker, server) = (stage.connect().await, stage.connect().await);
    let mut inbox = server.requests.serve_bytes("echo").await.unwrap();
    for nonsense in ["", "null", "{}", "{\"text\":7}"] {
        let waiting = ask_aside(&asker, "hello", PATIENT);
        let asked = inbox.next().await.unwrap();
        asked.replier.reply(Bytes::from_static(nonsense.as_bytes())).await;
        assert_eq!(waiting.await.unwrap(), Err(RequestError::Malformed), "{nonsense:?}");
    }
}

async fn a_reply_that_is_too_large_is_not_sent(stage: Stage) {
    let (asker, server) = (stage.connect().await, stage.connect().await);
    let mut inbox = server.requests.serve_bytes("echo").await.unwrap();
    let waiting = ask_aside(&asker, "much?", SHORT);
    let asked = inbox.next().await.unwrap();
    asked.replier.reply(Bytes::from(vec![b'x'; MAX_MESSAGE_BYTES + 1])).await;
    assert_eq!(waiting.await.unwrap(), Err(RequestError::Timeout));
    server.requests.ready().await.unwrap();
}

async fn a_reply_arrives(stage: Stage) {
    let (asker, server) = (stage.connect().await, stage.connect().await);
    let inbox = server.requests.serve::<Echo>().await.unwrap();
    let served = tokio::spawn(answer_all(inbox));
    assert_eq!(ask(&asker, "hello", PATIENT).await.as_deref(), Ok("hello"));
    assert_eq!(asker.requests.pending(), 0);
    served.abort();
}

async fn a_shared_request_arrives_however_its_server_reads_and_answers(stage: Stage) {
    let (asker, server) = (stage.connect().await, stage.connect().await);
    let mut inbox = server.requests.serve::<Echo>().await.unwrap();
    let request = Arc::new(echo("shared"));
    for (is_typed, hands_over) in [(true, false), (false, true), (false, false)] {
        let asked = asker.requests.request_shared(&request, 8, Instant::now() + PATIENT);
        let answering = async {
            if is_typed {
                let arrived = inbox.next().await.unwrap();
                let reply = Echoed { text: arrived.request.text.clone() };
                arrived.answer(&reply).await;
                return;
            }
            let UnparsedRequest { content, responder, .. } = inbox.next_unparsed().await.unwrap();
            let reply = Echoed { text: content.parse().unwrap().text.clone() };
            if hands_over { responder.hand_over(reply).await } else { responder.answer(&reply).await }
        };
        let (reply, ()) = tokio::join!(asked, answering);
        assert_eq!(reply.map(|reply| reply.text).as_deref(), Ok("shared"), "typed: {is_typed}, over: {hands_over}");
    }
    // A requester that sends bytes gets bytes, also from a server that hands its replies over.
    let waiting = ask_aside(&asker, "bytes", PATIENT);
    let UnparsedRequest { content, responder, .. } = inbox.next_unparsed().await.unwrap();
    responder.hand_over(Echoed { text: content.parse().unwrap().text.clone() }).await;
    assert_eq!(waiting.await.unwrap().as_deref(), Ok("bytes"));
    assert_eq!(asker.requests.pending(), 0);
}

async fn a_shared_request_is_held_to_the_same_limits(stage: Stage) {
    let (asker, server) = (stage.connect().await, stage.connect().await);
    let until = || Instant::now() + SHORT;
    let small = Arc::new(echo("x"));
    assert_eq!(asker.requests.request_shared(&small, 1, until()).await.err(), Some(RequestError::NoResponders));
    let mut inbox = server.requests.serve::<Echo>().await.unwrap();
    let large = Arc::new(echo(&"x".repeat(MAX_MESSAGE_BYTES + 1)));
    let asked = asker.requests.request_shared(&large, MAX_MESSAGE_BYTES + 1, until()).await;
    assert_eq!(asked.err(), Some(RequestError::TooLarge));
    let asked = asker.requests.request_shared(&small, 1, until());
    let (asked, arrived) = tokio::join!(asked, inbox.next_unparsed());
    assert_eq!(asked.err(), Some(RequestError::Timeout));
    assert!(arrived.is_some());
    asker.requests.close().await;
    assert_eq!(asker.requests.request_shared(&small, 1, until()).await.err(), Some(RequestError::Disconnected));
}

async fn the_deadline_crosses_to_the_server(stage: Stage) {
    let (asker, server) = (stage.connect().await, stage.connect().await);
    let mut inbox = server.requests.serve::<Echo>().await.unwrap();
    let asked = Instant::now();
    let _waiting = ask_aside(&asker, "until?", PATIENT);
    let request = inbox.next().await.unwrap();
    let now = Instant::now();
    // A millisecond is lost to rounding; the budget is never longer than the requester's, counted from arrival.
    assert!(request.deadline >= asked + PATIENT - Duration::from_millis(2));
    assert!(request.deadline <= now + PATIENT);
}

async fn the_largest_request_and_reply_arrive(stage: Stage) {
    let (asker, server) = (stage.connect().await, stage.connect().await);
    let mut inbox = server.requests.serve_bytes("echo").await.unwrap();
    for size in [900_000, MAX_MESSAGE_BYTES] {
        let (asker, request) = (asker.clone(), Bytes::from(vec![b'x'; size]));
        let waiting =
            tokio::spawn(async move { asker.requests.request_bytes("echo", request, Instant::now() + PATIENT).await });
        let asked = inbox.next().await.unwrap();
        asked.replier.reply(asked.body.as_bytes().unwrap().clone()).await;
        assert_eq!(waiting.await.unwrap().unwrap().len(), size);
    }
}

async fn servers_share_the_requests_and_each_gets_one_reply(stage: Stage) {
    let asker = stage.connect().await;
    let servers = join_all((0..3).map(|_| stage.connect())).await;
    let mut served = Vec::new();
    for server in &servers {
        served.push(tokio::spawn(answer_all(server.requests.serve::<Echo>().await.unwrap())));
    }
    for number in 0..300 {
        assert_eq!(ask(&asker, number, PATIENT).await, Ok(number.to_string()));
    }
    for server in &servers {
        server.requests.close().await;
    }
    let shares: Vec<usize> = join_all(served).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(shares.iter().sum::<usize>(), 300, "{shares:?}");
    assert!(shares.iter().all(|share| *share > 0), "{shares:?}");
}

async fn a_thousand_at_once_get_each_their_own_answer(stage: Stage) {
    let (asker, server) = (stage.connect().await, stage.connect().await);
    let served = tokio::spawn(answer_all(server.requests.serve::<Echo>().await.unwrap()));
    let answers = join_all((0..1_000).map(|number| ask(&asker, number, PATIENT))).await;
    for (number, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer, Ok(number.to_string()));
    }
    assert_eq!(asker.requests.pending(), 0);
    served.abort();
}

async fn a_stopped_queue_yields_what_had_arrived_and_takes_no_more(stage: Stage) {
    let (asker, server) = (stage.connect().await, stage.connect().await);
    let mut inbox = server.requests.serve::<Echo>().await.unwrap();
    let waiting: Vec<_> = (0..5).map(|number| ask_aside(&asker, &number, PATIENT)).collect();
    has_arrived(&asker, &server, waiting.len()).await;

    inbox.stop().await;
    inbox.stop().await;
    assert_eq!(ask(&asker, "too late", PATIENT).await, Err(RequestError::NoResponders));
    assert_eq!(answer_all(inbox).await, 5);
    for (number, answer) in join_all(waiting).await.into_iter().enumerate() {
        assert_eq!(answer.unwrap(), Ok(number.to_string()));
    }
}

async fn a_stopped_serve_loop_answers_what_had_arrived_and_never_exceeds_its_concurrency(stage: Stage) {
    const CONCURRENCY: usize = 2;
    let (client, server) = (stage.connect().await, stage.connect().await);
    let stream = server.requests.serve::<Echo>().await.unwrap();
    let waiting: Vec<_> = (0..5).map(|number| ask_aside(&client, &number, PATIENT)).collect();
    has_arrived(&client, &server, waiting.len()).await;

    let stop = CancellationToken::new();
    let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    // The first handlers wait for each other, so both run at once, and `stop` is set while they do.
    let both_run = Barrier::new(CONCURRENCY);
    let handler = async |incoming: IncomingRequest<Echo>| {
        let now_running = running.fetch_add(1, Ordering::Relaxed) + 1;
        most.fetch_max(now_running, Ordering::Relaxed);
        if !stop.is_cancelled() {
            both_run.wait().await;
            stop.cancel();
        }
        let (request, _, responder) = incoming.into_parts();
        responder.answer(&Echoed { text: request.text }).await;
        running.fetch_sub(1, Ordering::Relaxed);
    };
    timeout(PATIENT, stream.run(&stop, CONCURRENCY, handler)).await.unwrap();
    assert_eq!((running.into_inner(), most.into_inner()), (0, CONCURRENCY));
    assert_eq!(ask(&client, "too late", PATIENT).await, Err(RequestError::NoResponders));
    for (number, answer) in join_all(waiting).await.into_iter().enumerate() {
        assert_eq!(answer.unwrap(), Ok(number.to_string()));
    }
}

async fn a_dropped_queue_leaves_the_requests_to_the_others(stage: Stage) {
    let (asker, server, leaver) = (stage.connect().await, stage.connect().await, stage.connect().await);
    let served = tokio::spawn(answer_all(server.requests.serve::<Echo>().await.unwrap()));
    drop(leaver.requests.serve::<Echo>().await.unwrap());
    leaver.requests.ready().await.unwrap();
    for number in 0..50 {
        assert_eq!(ask(&asker, number, PATIENT).await, Ok(number.to_string()));
    }
    served.abort();
}

async fn a_request_that_is_dropped_leaves_nothing_behind(stage: Stage) {
    let (asker, server) = (stage.connect().await, stage.connect().await);
    let inbox = server.requests.serve::<Echo>().await.unwrap();
    let waiting: Vec<_> = (0..100).map(|number| ask_aside(&asker, &number, PATIENT)).collect();
    has_arrived(&asker, &server, waiting.len()).await;
    for waiting in &waiting {
        waiting.abort();
    }
    for waiting in waiting {
        assert!(waiting.await.unwrap_err().is_cancelled());
    }
    assert_eq!(asker.requests.pending(), 0);

    // Replies to requesters that left do no harm.
    let served = tokio::spawn(answer_all(inbox));
    assert_eq!(ask(&asker, "still here", PATIENT).await.as_deref(), Ok("still here"));
    served.abort();
}

async fn closing_one_connection_leaves_the_others(stage: Stage) {
    let (asker, server, other) = (stage.connect().await, stage.connect().await, stage.connect().await);
    let served = tokio::spawn(answer_all(server.requests.serve::<Echo>().await.unwrap()));
    let leaving = other.requests.serve::<Echo>().await.unwrap();
    other.requests.close().await;
    assert_eq!(answer_all(leaving).await, 0);
    assert_eq!(ask(&asker, "hello", PATIENT).await.as_deref(), Ok("hello"));
    served.abort();
}

async fn servers_may_live_on_other_threads(stage: Stage) {
    let asker = stage.connect().await;
    let (serving, begun) = tokio::sync::oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let server = stage.connect().await;
            let mut inbox = server.requests.serve::<Echo>().await.unwrap();
            serving.send(()).unwrap();
            for _ in 0..100 {
                let request = inbox.next().await.unwrap();
                let text = request.request.text.clone();
                request.answer(&Echoed { text }).await;
            }
            server.requests.close().await;
            stage
        })
    });
    begun.await.unwrap();
    for number in 0..100 {
        assert_eq!(ask(&asker, number, PATIENT).await, Ok(number.to_string()));
    }
    let _stage = thread.join().unwrap();
}

async fn a_connection_is_ready_until_it_is_closed(stage: Stage) {
    let connection = stage.connect().await;
    connection.requests.ready().await.unwrap();
    assert_eq!(connection.requests.pending(), 0);
    connection.requests.close().await;
    assert!(connection.requests.ready().await.is_err());
}

/// Round trips in the order of travel: earlier requests are now in the server's queue.
async fn has_arrived(asker: &Backplane, server: &Backplane, requests: usize) {
    wait_for("all are asked", PATIENT, async || asker.requests.pending() == requests).await;
    asker.requests.ready().await.unwrap();
    server.requests.ready().await.unwrap();
}
