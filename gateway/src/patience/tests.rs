//! Connections that stall, trickle or send ahead, on streams in memory.

use super::*;
use std::future::poll_fn;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{advance, timeout};

const LIMITS: Limits = Limits {
    next_head: Duration::from_secs(80),
    stranger: Duration::from_secs(15),
    farewell: Duration::from_secs(4),
    progress: Duration::from_secs(30),
};
const FOR_EVER: Duration = Duration::from_secs(1_000_000);

fn connection() -> (DuplexStream, Patient<DuplexStream>, Patience) {
    let (client, server) = duplex(64);
    let server = Patient::new(server, LIMITS, None);
    let patience = server.patience().clone();
    patience.belongs_to(7);
    (client, server, patience)
}

/// Reads until the stream gives up; the time that took and why.
async fn read_to_error(server: &mut Patient<DuplexStream>) -> (Duration, io::ErrorKind) {
    let started = Instant::now();
    let error = server.read_to_end(&mut Vec::new()).await.unwrap_err();
    // Tokio's timers are whole milliseconds, rounded up.
    (Duration::from_secs(started.elapsed().as_secs()), error.kind())
}

#[tokio::test(start_paused = true)]
async fn half_a_head_does_not_hold_a_connection_for_ever() {
    let (mut client, mut server, patience) = connection();
    drop(patience.busy(0));
    client.write_all(b"GET / HTT").await.unwrap();
    assert_eq!(read_to_error(&mut server).await, (LIMITS.next_head, io::ErrorKind::TimedOut));
    assert!(server.read_u8().await.is_err(), "late once, late for good");
}

#[tokio::test(start_paused = true)]
async fn a_head_that_trickles_gains_no_time() {
    let (mut client, mut server, patience) = connection();
    drop(patience.busy(0));
    let trickle = async {
        loop {
            tokio::time::sleep(Duration::from_secs(7)).await;
            client.write_all(b"x").await.unwrap();
        }
    };
    tokio::select! {
        ended = read_to_error(&mut server) => assert_eq!(ended, (LIMITS.next_head, io::ErrorKind::TimedOut)),
        () = trickle => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_not_drained_for_ever() {
    let (mut client, mut server, patience) = connection();
    patience.busy(0).closes();
    let mut seconds = 0;
    loop {
        client.write_all(b"1\r\nx\r\n").await.unwrap();
        match server.read(&mut [0; 64]).await {
            Ok(count) => assert_eq!(count, 6, "there always is something to read"),
            Err(error) => break assert_eq!(error.kind(), io::ErrorKind::TimedOut),
        }
        advance(Duration::from_secs(1)).await;
        seconds += 1;
    }
    assert_eq!(seconds, LIMITS.farewell.as_secs());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_never_read_does_not_hold_a_connection_for_ever() {
    let (_client, mut server, patience) = connection();
    drop(patience.busy(0));
    let started = Instant::now();
    let error = server.write_all(&[0; 1_000]).await.unwrap_err();
    assert_eq!((started.elapsed().as_secs(), error.kind()), (LIMITS.next_head.as_secs(), io::ErrorKind::TimedOut));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_far_ahead_and_reads_nothing_does_not_keep_the_server_spinning() {
    let (_client, mut server, patience) = connection();
    let _busy = patience.busy(0);
    let mut polls = 0;
    let error = poll_fn(|context| {
        while polls <= 10 * POLLS_IN_VAIN {
            polls += 1;
            match Pin::new(&mut server).poll_write(context, &[0; 1_000]) {
                Poll::Ready(Err(error)) => return Poll::Ready(error),
                Poll::Ready(Ok(_)) | Poll::Pending => {}
            }
        }
        panic!("the server still spins");
    });
    assert_eq!(error.await.kind(), io::ErrorKind::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_of_its_answer_is_waited_for() {
    let (_client, mut server, patience) = connection();
    let _busy = patience.busy(0);
    poll_fn(|context| {
        for _ in 0..10 * POLLS_IN_VAIN {
            assert!(Pin::new(&mut server).poll_read(context, &mut ReadBuf::new(&mut [0; 8])).is_pending());
            if let Poll::Ready(written) = Pin::new(&mut server).poll_write(context, &[0; 1_000]) {
                written.unwrap();
            }
        }
        Poll::Ready(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_flush_alone_starts_the_timer() {
    let (_client, mut server, patience) = connection();
    let busy = patience.busy(0);
    assert!(timeout(Duration::from_secs(1), server.read_u8()).await.is_err());
    drop(busy);
    server.flush().await.unwrap();
    assert_eq!(server.timer.unwrap().deadline(), Instant::now() + LIMITS.next_head);
}

#[tokio::test(start_paused = true)]
async fn the_first_head_and_a_request_in_hand_are_left_alone() {
    let (_client, mut server, patience) = connection();
    assert!(timeout(FOR_EVER, server.read_u8()).await.is_err(), "no request yet");
    drop(patience.busy(0));
    assert!(timeout(Duration::from_secs(1), server.read_u8()).await.is_err(), "the timer is set");
    let _busy = patience.busy(0);
    assert!(timeout(FOR_EVER, server.read_u8()).await.is_err(), "a request in hand");
    assert!(timeout(FOR_EVER, server.write_all(&[0; 1_000])).await.is_err(), "and its answer");
}

#[tokio::test(start_paused = true)]
async fn each_request_starts_the_wait_anew() {
    let (mut client, mut server, patience) = connection();
    for _ in 0..5 {
        client.write_all(b"x").await.unwrap();
        server.read_u8().await.unwrap();
        drop(patience.busy(0));
        assert!(timeout(LIMITS.next_head - Duration::from_secs(1), server.read_u8()).await.is_err());
    }
    drop(patience.busy(0));
    assert_eq!(read_to_error(&mut server).await, (LIMITS.next_head, io::ErrorKind::TimedOut));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_closes_is_waited_for_less_long() {
    let (_client, mut server, patience) = connection();
    drop(patience.busy(0));
    assert!(timeout(Duration::from_secs(1), server.read_u8()).await.is_err(), "the timer is set");
    patience.busy(0).closes();
    assert_eq!(read_to_error(&mut server).await, (LIMITS.farewell, io::ErrorKind::TimedOut));
}

#[tokio::test(start_paused = true)]
async fn a_limit_beyond_the_clock_is_none() {
    let (_client, server) = duplex(64);
    let mut server = Patient::new(server, Limits { next_head: Duration::MAX, ..LIMITS }, None);
    server.patience().belongs_to(7);
    drop(server.patience().busy(0));
    assert!(timeout(FOR_EVER, server.read_u8()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn who_has_shown_no_key_is_waited_for_less_long() {
    let (_client, server) = duplex(64);
    let mut server = Patient::new(server, LIMITS, None);
    drop(server.patience().busy(0));
    assert_eq!(read_to_error(&mut server).await, (LIMITS.stranger, io::ErrorKind::TimedOut));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_taken_ends_the_connection_and_one_that_is_does_not() {
    let (_client, mut server, patience) = connection();
    let busy = patience.busy(0);
    for _ in 0..10 {
        busy.sends();
        assert!(
            timeout(LIMITS.progress - Duration::from_secs(1), server.read_u8()).await.is_err(),
            "it takes its time"
        );
    }
    busy.works();
    assert!(timeout(FOR_EVER, server.read_u8()).await.is_err(), "it is us who are slow");
    busy.sends();
    assert_eq!(read_to_error(&mut server).await, (LIMITS.progress, io::ErrorKind::TimedOut));
}

/// A client with more to send than anybody asks for.
fn ahead() -> (DuplexStream, Patient<DuplexStream>, Patience) {
    let (client, server) = duplex(8 * MAX_AHEAD_BYTES);
    let server = Patient::new(server, LIMITS, None);
    let patience = server.patience().clone();
    (client, server, patience)
}

/// Reads what may be read now.
async fn read_now(server: &mut Patient<DuplexStream>) -> io::Result<usize> {
    let mut all = 0;
    let mut chunk = [0; 1024];
    while let Ok(read) = timeout(Duration::from_millis(10), server.read(&mut chunk)).await {
        match read? {
            0 => break,
            count => all += count,
        }
    }
    Ok(all)
}

#[tokio::test(start_paused = true)]
async fn a_body_is_read_as_far_as_its_handler_asks_for_it() {
    let (mut client, mut server, patience) = ahead();
    client.write_all(&[0; 4 * MAX_AHEAD_BYTES]).await.unwrap();
    let _busy = patience.busy(0);
    assert_eq!(read_now(&mut server).await.unwrap(), AHEAD_BYTES);
    assert_eq!(read_now(&mut server).await.unwrap(), 0, "nobody has asked for it");
    patience.wants_body(Some(4 * MAX_AHEAD_BYTES));
    assert_eq!(read_now(&mut server).await.unwrap(), MAX_AHEAD_BYTES);
    patience.took_body(10 * 1024);
    assert_eq!(read_now(&mut server).await.unwrap(), 10 * 1024);
    patience.wants_body(Some(100));
    assert_eq!(read_now(&mut server).await.unwrap(), 100 + AHEAD_BYTES, "behind a body other requests may stand");
    patience.wants_body(None);
    assert_eq!(read_now(&mut server).await.unwrap(), PIECE_BYTES);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_was_held_back_is_woken() {
    let (mut client, mut server, patience) = ahead();
    client.write_all(&[0; 2 * MAX_AHEAD_BYTES]).await.unwrap();
    let busy = patience.busy(0);
    assert_eq!(read_now(&mut server).await.unwrap(), AHEAD_BYTES);
    let (read, ()) = tokio::join!(server.read_u8(), async {
        tokio::task::yield_now().await;
        patience.wants_body(None);
    });
    read.unwrap();
    assert_eq!(read_now(&mut server).await.unwrap(), PIECE_BYTES - 1);
    let (read, ()) = tokio::join!(server.read_u8(), async {
        tokio::task::yield_now().await;
        drop(busy);
    });
    read.unwrap();
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_sent_ahead_wait_outside() {
    let (mut client, mut server, patience) = ahead();
    client.write_all(&[0; 4 * MAX_AHEAD_BYTES]).await.unwrap();
    // What one look at the stream brings, before the first request is found.
    let first = poll_fn(|context| {
        let (mut all, mut chunk) = (0, [0; 8 * 1024]);
        loop {
            let mut buffer = ReadBuf::new(&mut chunk);
            match Pin::new(&mut server).poll_read(context, &mut buffer) {
                Poll::Ready(read) => {
                    read.unwrap();
                    all += buffer.filled().len();
                }
                Poll::Pending => return Poll::Ready(all),
            }
        }
    });
    assert_eq!(first.await, PIECE_BYTES);
    // A hundred of them are handled, one after the other; each makes room for its like.
    let (mut read, mut handled) = (PIECE_BYTES, 0);
    for _ in 0..100 {
        let _busy = patience.busy(16);
        handled += 16;
        read += read_now(&mut server).await.unwrap();
        assert!(read - handled <= PIECE_BYTES, "{read} read and {handled} handled");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_is_too_long_ends_the_connection() {
    let (mut client, mut server, _patience) = ahead();
    client.write_all(&[0; 2 * MAX_AHEAD_BYTES]).await.unwrap();
    assert_eq!(read_now(&mut server).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[tokio::test(start_paused = true)]
async fn requests_one_after_the_other_never_fill_the_window() {
    let (mut client, mut server, patience) = ahead();
    for _ in 0..200 {
        client.write_all(&[0; 4 * 1024]).await.unwrap();
        assert_eq!(read_now(&mut server).await.unwrap(), 4 * 1024);
        // Of the head less is known than was read.
        drop(patience.busy(100));
        assert_eq!(read_now(&mut server).await.unwrap(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_thrown_away_passes_in_small_pieces() {
    let (mut client, mut server, patience) = ahead();
    client.write_all(&[0; 4 * MAX_AHEAD_BYTES]).await.unwrap();
    patience.busy(0).closes();
    let (mut in_one_go, mut most, mut all) = (0, 0, 0);
    poll_fn(|context| {
        let mut chunk = [0; 1024];
        let mut buffer = ReadBuf::new(&mut chunk);
        while all < 4 * MAX_AHEAD_BYTES {
            buffer.clear();
            match Pin::new(&mut server).poll_read(context, &mut buffer) {
                Poll::Ready(read) => {
                    read.unwrap();
                    in_one_go += buffer.filled().len();
                    all += buffer.filled().len();
                    most = most.max(in_one_go);
                }
                Poll::Pending => {
                    in_one_go = 0;
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(())
    })
    .await;
    assert_eq!(most, DISCARD_BYTES);
}
