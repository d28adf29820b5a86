//! Connections that stall, trickle or pipeline, on in-memory streams.

use super::*;
use std::future::poll_fn;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{advance, timeout};

const TIMEOUTS: ConnectionTimeouts = ConnectionTimeouts {
    next_head: Duration::from_secs(80),
    unauthenticated: Duration::from_secs(15),
    linger: Duration::from_secs(4),
    progress: Duration::from_secs(30),
};
const FOREVER: Duration = Duration::from_secs(1_000_000);

fn connection() -> (DuplexStream, TimedStream<DuplexStream>, ConnectionState) {
    let (client, server) = duplex(64);
    let server = TimedStream::new(server, TIMEOUTS, None);
    let connection = server.connection_state().clone();
    connection.set_account(7);
    (client, server, connection)
}

/// Reads until the stream fails; returns when and why.
async fn read_to_error(server: &mut TimedStream<DuplexStream>) -> (Duration, io::ErrorKind) {
    let started = Instant::now();
    let error = server.read_to_end(&mut Vec::new()).await.unwrap_err();
    // Tokio's timers are whole milliseconds, rounded up.
    (Duration::from_secs(started.elapsed().as_secs()), error.kind())
}

#[tokio::test(start_paused = true)]
async fn half_a_head_times_out() {
    let (mut client, mut server, connection) = connection();
    drop(connection.begin_request(0));
    client.write_all(b"GET / HTT").await.unwrap();
    assert_eq!(read_to_error(&mut server).await, (TIMEOUTS.next_head, io::ErrorKind::TimedOut));
    assert!(server.read_u8().await.is_err(), "the stream stays timed out");
}

#[tokio::test(start_paused = true)]
async fn a_trickling_head_does_not_extend_the_deadline() {
    let (mut client, mut server, connection) = connection();
    drop(connection.begin_request(0));
    let trickle = async {
        loop {
            tokio::time::sleep(Duration::from_secs(7)).await;
            client.write_all(b"x").await.unwrap();
        }
    };
    tokio::select! {
        ended = read_to_error(&mut server) => assert_eq!(ended, (TIMEOUTS.next_head, io::ErrorKind::TimedOut)),
        () = trickle => {}
    }
}

#[tokio::test(start_paused = true)]
async fn draining_an_endless_body_times_out() {
    let (mut client, mut server, connection) = connection();
    connection.begin_request(0).set_closing();
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
    assert_eq!(seconds, TIMEOUTS.linger.as_secs());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_never_read_times_out() {
    let (_client, mut server, connection) = connection();
    drop(connection.begin_request(0));
    let started = Instant::now();
    let error = server.write_all(&[0; 1_000]).await.unwrap_err();
    assert_eq!((started.elapsed().as_secs(), error.kind()), (TIMEOUTS.next_head.as_secs(), io::ErrorKind::TimedOut));
}

#[tokio::test(start_paused = true)]
async fn a_pipelining_client_that_reads_nothing_does_not_keep_the_server_in_a_busy_loop() {
    let (_client, mut server, connection) = connection();
    let _guard = connection.begin_request(0);
    let mut polls = 0;
    let error = poll_fn(|context| {
        while polls <= 10 * MAX_FRUITLESS_POLLS {
            polls += 1;
            match Pin::new(&mut server).poll_write(context, &[0; 1_000]) {
                Poll::Ready(Err(error)) => return Poll::Ready(error),
                Poll::Ready(Ok(_)) | Poll::Pending => {}
            }
        }
        panic!("the server is still in a busy loop");
    });
    assert_eq!(error.await.kind(), io::ErrorKind::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_is_not_cut_off_by_fruitless_polls() {
    let (_client, mut server, connection) = connection();
    let _guard = connection.begin_request(0);
    poll_fn(|context| {
        for _ in 0..10 * MAX_FRUITLESS_POLLS {
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
    let (_client, mut server, connection) = connection();
    let guard = connection.begin_request(0);
    assert!(timeout(Duration::from_secs(1), server.read_u8()).await.is_err());
    drop(guard);
    server.flush().await.unwrap();
    assert_eq!(server.timer.unwrap().deadline(), Instant::now() + TIMEOUTS.next_head);
}

#[tokio::test(start_paused = true)]
async fn the_first_head_and_a_request_being_handled_have_no_deadline() {
    let (_client, mut server, connection) = connection();
    assert!(timeout(FOREVER, server.read_u8()).await.is_err(), "no request yet");
    drop(connection.begin_request(0));
    assert!(timeout(Duration::from_secs(1), server.read_u8()).await.is_err(), "the timer is set");
    let _guard = connection.begin_request(0);
    assert!(timeout(FOREVER, server.read_u8()).await.is_err(), "a request is being handled");
    assert!(timeout(FOREVER, server.write_all(&[0; 1_000])).await.is_err(), "and its answer");
}

#[tokio::test(start_paused = true)]
async fn each_request_restarts_the_timeout() {
    let (mut client, mut server, connection) = connection();
    for _ in 0..5 {
        client.write_all(b"x").await.unwrap();
        server.read_u8().await.unwrap();
        drop(connection.begin_request(0));
        assert!(timeout(TIMEOUTS.next_head - Duration::from_secs(1), server.read_u8()).await.is_err());
    }
    drop(connection.begin_request(0));
    assert_eq!(read_to_error(&mut server).await, (TIMEOUTS.next_head, io::ErrorKind::TimedOut));
}

#[tokio::test(start_paused = true)]
async fn a_closing_connection_has_the_linger_timeout() {
    let (_client, mut server, connection) = connection();
    drop(connection.begin_request(0));
    assert!(timeout(Duration::from_secs(1), server.read_u8()).await.is_err(), "the timer is set");
    connection.begin_request(0).set_closing();
    assert_eq!(read_to_error(&mut server).await, (TIMEOUTS.linger, io::ErrorKind::TimedOut));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_beyond_the_clock_is_no_deadline() {
    let (_client, server) = duplex(64);
    let mut server = TimedStream::new(server, ConnectionTimeouts { next_head: Duration::MAX, ..TIMEOUTS }, None);
    server.connection_state().set_account(7);
    drop(server.connection_state().begin_request(0));
    assert!(timeout(FOREVER, server.read_u8()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_unauthenticated_connection_has_a_shorter_timeout() {
    let (_client, server) = duplex(64);
    let mut server = TimedStream::new(server, TIMEOUTS, None);
    drop(server.connection_state().begin_request(0));
    assert_eq!(read_to_error(&mut server).await, (TIMEOUTS.unauthenticated, io::ErrorKind::TimedOut));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_of_an_answer_times_out() {
    let (_client, mut server, connection) = connection();
    let guard = connection.begin_request(0);
    for _ in 0..10 {
        guard.start_sending();
        assert!(
            timeout(TIMEOUTS.progress - Duration::from_secs(1), server.read_u8()).await.is_err(),
            "within the timeout"
        );
    }
    guard.stop_sending();
    assert!(timeout(FOREVER, server.read_u8()).await.is_err(), "the gateway is slow, not the client");
    guard.start_sending();
    assert_eq!(read_to_error(&mut server).await, (TIMEOUTS.progress, io::ErrorKind::TimedOut));
}

/// A client that can send more than is read ahead.
fn pipelining() -> (DuplexStream, TimedStream<DuplexStream>, ConnectionState) {
    let (client, server) = duplex(8 * MAX_READ_AHEAD_BYTES);
    let server = TimedStream::new(server, TIMEOUTS, None);
    let connection = server.connection_state().clone();
    (client, server, connection)
}

/// Reads until the stream would block.
async fn read_now(server: &mut TimedStream<DuplexStream>) -> io::Result<usize> {
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
async fn a_body_is_read_as_its_handler_takes_it() {
    let (mut client, mut server, connection) = pipelining();
    client.write_all(&[0; 4 * MAX_READ_AHEAD_BYTES]).await.unwrap();
    let _guard = connection.begin_request(0);
    assert_eq!(read_now(&mut server).await.unwrap(), PROBE_BYTES);
    assert_eq!(read_now(&mut server).await.unwrap(), 0, "the handler has not asked for more");
    connection.await_body(Some(4 * MAX_READ_AHEAD_BYTES));
    assert_eq!(read_now(&mut server).await.unwrap(), MAX_READ_AHEAD_BYTES);
    connection.consumed_body(10 * 1024);
    assert_eq!(read_now(&mut server).await.unwrap(), 10 * 1024);
    connection.await_body(Some(100));
    assert_eq!(read_now(&mut server).await.unwrap(), 100 + PROBE_BYTES, "the next request may follow the body");
    connection.await_body(None);
    assert_eq!(read_now(&mut server).await.unwrap(), IDLE_READ_BYTES);
}

#[tokio::test(start_paused = true)]
async fn a_paused_reader_is_woken() {
    let (mut client, mut server, connection) = pipelining();
    client.write_all(&[0; 2 * MAX_READ_AHEAD_BYTES]).await.unwrap();
    let guard = connection.begin_request(0);
    assert_eq!(read_now(&mut server).await.unwrap(), PROBE_BYTES);
    let (read, ()) = tokio::join!(server.read_u8(), async {
        tokio::task::yield_now().await;
        connection.await_body(None);
    });
    read.unwrap();
    assert_eq!(read_now(&mut server).await.unwrap(), IDLE_READ_BYTES - 1);
    let (read, ()) = tokio::join!(server.read_u8(), async {
        tokio::task::yield_now().await;
        drop(guard);
    });
    read.unwrap();
}

#[tokio::test(start_paused = true)]
async fn pipelined_requests_are_not_read_ahead() {
    let (mut client, mut server, connection) = pipelining();
    client.write_all(&[0; 4 * MAX_READ_AHEAD_BYTES]).await.unwrap();
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
    assert_eq!(first.await, IDLE_READ_BYTES);
    // A hundred of them are handled, one after the other; each makes room for the next.
    let (mut read, mut handled) = (IDLE_READ_BYTES, 0);
    for _ in 0..100 {
        let _guard = connection.begin_request(16);
        handled += 16;
        read += read_now(&mut server).await.unwrap();
        assert!(read - handled <= IDLE_READ_BYTES, "{read} read and {handled} handled");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_is_too_long_ends_the_connection() {
    let (mut client, mut server, _connection) = pipelining();
    client.write_all(&[0; 2 * MAX_READ_AHEAD_BYTES]).await.unwrap();
    assert_eq!(read_now(&mut server).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[tokio::test(start_paused = true)]
async fn sequential_requests_never_fill_the_window() {
    let (mut client, mut server, connection) = pipelining();
    for _ in 0..200 {
        client.write_all(&[0; 4 * 1024]).await.unwrap();
        assert_eq!(read_now(&mut server).await.unwrap(), 4 * 1024);
        // The guard is given less than the true size of the head.
        drop(connection.begin_request(100));
        assert_eq!(read_now(&mut server).await.unwrap(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn discarded_bytes_are_read_in_small_pieces() {
    let (mut client, mut server, connection) = pipelining();
    client.write_all(&[0; 4 * MAX_READ_AHEAD_BYTES]).await.unwrap();
    connection.begin_request(0).set_closing();
    let (mut at_once, mut most, mut all) = (0, 0, 0);
    poll_fn(|context| {
        let mut chunk = [0; 1024];
        let mut buffer = ReadBuf::new(&mut chunk);
        while all < 4 * MAX_READ_AHEAD_BYTES {
            buffer.clear();
            match Pin::new(&mut server).poll_read(context, &mut buffer) {
                Poll::Ready(read) => {
                    read.unwrap();
                    at_once += buffer.filled().len();
                    all += buffer.filled().len();
                    most = most.max(at_once);
                }
                Poll::Pending => {
                    at_once = 0;
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(())
    })
    .await;
    assert_eq!(most, DISCARD_BYTES);
}
