//! How long a connection waits for its client once the first request is answered.
//!
//! The server's own timer covers the first head alone, its keep-alive timer ends with the first byte of the next head, and what is
//! left of a chunked body is drained without any: half a head, endless chunks or an answer never read would hold a connection for
//! ever. Owns that wait and nothing else: while a request is handled it sets no time, a body's is the handler's.
//! INVARIANT: the deadline counts from the end of the previous answer and nothing that the client sends moves it but a complete head.
//! A client that is late gets `TimedOut` on its stream, upon which the server drops the connection.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// Once a client is so far ahead that the server's read buffer is full, the server polls itself without pause although it can
/// neither read nor write until the client takes its answers. So many polls in vain are a few milliseconds; honest waits have one.
const POLLS_IN_VAIN: u32 = 1_000;

/// Both count from the end of an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// In which that answer is taken and the head of the next request is complete.
    pub(crate) next_head: Duration,
    /// The same for a connection that closes after that answer, when what is left of a body is thrown away.
    pub(crate) farewell: Duration,
}

/// The clock of one connection, shared by its stream and the requests that arrive on it.
#[derive(Debug, Clone)]
pub(crate) struct Patience(Rc<Wait>);

#[derive(Debug)]
struct Wait {
    limits: Limits,
    /// None while it is not the client that is waited for.
    until: Cell<Option<Instant>>,
}

impl Patience {
    /// Stops the clock; it starts anew when what is returned is dropped, however the request ends.
    pub(crate) fn busy(&self) -> Busy {
        self.0.until.set(None);
        Busy { patience: self.clone(), then: self.0.limits.next_head }
    }
}

/// A request is being handled.
#[derive(Debug)]
pub(crate) struct Busy {
    patience: Patience,
    then: Duration,
}

impl Busy {
    /// Its answer is the connection's last.
    pub(crate) fn closes(&mut self) {
        self.then = self.patience.0.limits.farewell;
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.patience.0.until.set(Instant::now().checked_add(self.then));
    }
}

/// A stream that waits no longer than its [`Patience`].
#[derive(Debug)]
pub(crate) struct Patient<S> {
    stream: S,
    patience: Patience,
    timer: Option<Pin<Box<Sleep>>>,
    /// Blocked writes in a row, no attempt to read between them.
    in_vain: u32,
}

impl<S> Patient<S> {
    /// Without a limit until the first request ends.
    pub(crate) fn new(stream: S, limits: Limits) -> Self {
        let patience = Patience(Rc::new(Wait { limits, until: Cell::new(None) }));
        Self { stream, patience, timer: None, in_vain: 0 }
    }

    pub(crate) fn patience(&self) -> &Patience {
        &self.patience
    }

    /// Asked before each step and not only when there is nothing to read: a client that never stops sending is late as well.
    /// The server flushes after each answer, so the timer runs even when no byte ever follows.
    #[expect(clippy::disallowed_methods, reason = "a poll function has no future to put a deadline on")]
    fn in_time(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let Some(until) = self.patience.0.until.get() else { return Ok(()) };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        // A deadline that moved on is not worth touching the timer for: it is set anew when it fires, not with each request.
        if timer.deadline() > until {
            timer.as_mut().reset(until);
        }
        while timer.as_mut().poll(context).is_ready() {
            if timer.deadline() >= until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            timer.as_mut().reset(until);
        }
        Ok(())
    }

    fn step(self: Pin<&mut Self>, context: &mut Context<'_>) -> io::Result<Pin<&mut S>>
    where
        S: Unpin,
    {
        let this = self.get_mut();
        this.in_time(context)?;
        Ok(Pin::new(&mut this.stream))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.in_vain = 0;
        self.step(context)?.poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.as_mut().step(context)?.poll_write(context, bytes);
        self.in_vain = if written.is_pending() { self.in_vain + 1 } else { 0 };
        if self.in_vain > POLLS_IN_VAIN {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.step(context)?.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.step(context)?.poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::{advance, timeout};

    const LIMITS: Limits = Limits { next_head: Duration::from_secs(80), farewell: Duration::from_secs(4) };
    const FOR_EVER: Duration = Duration::from_secs(1_000_000);

    fn connection() -> (DuplexStream, Patient<DuplexStream>, Patience) {
        let (client, server) = duplex(64);
        let server = Patient::new(server, LIMITS);
        let patience = server.patience().clone();
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
        drop(patience.busy());
        client.write_all(b"GET / HTT").await.unwrap();
        assert_eq!(read_to_error(&mut server).await, (LIMITS.next_head, io::ErrorKind::TimedOut));
        assert!(server.read_u8().await.is_err(), "late once, late for good");
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_trickles_gains_no_time() {
        let (mut client, mut server, patience) = connection();
        drop(patience.busy());
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
        patience.busy().closes();
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
        drop(patience.busy());
        let started = Instant::now();
        let error = server.write_all(&[0; 1_000]).await.unwrap_err();
        assert_eq!((started.elapsed().as_secs(), error.kind()), (LIMITS.next_head.as_secs(), io::ErrorKind::TimedOut));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_far_ahead_and_reads_nothing_does_not_keep_the_server_spinning() {
        let (_client, mut server, patience) = connection();
        let _busy = patience.busy();
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
        let _busy = patience.busy();
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
        let busy = patience.busy();
        assert!(timeout(Duration::from_secs(1), server.read_u8()).await.is_err());
        drop(busy);
        server.flush().await.unwrap();
        assert_eq!(server.timer.unwrap().deadline(), Instant::now() + LIMITS.next_head);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_head_and_a_request_in_hand_are_left_alone() {
        let (_client, mut server, patience) = connection();
        assert!(timeout(FOR_EVER, server.read_u8()).await.is_err(), "no request yet");
        drop(patience.busy());
        assert!(timeout(Duration::from_secs(1), server.read_u8()).await.is_err(), "the timer is set");
        let _busy = patience.busy();
        assert!(timeout(FOR_EVER, server.read_u8()).await.is_err(), "a request in hand");
        assert!(timeout(FOR_EVER, server.write_all(&[0; 1_000])).await.is_err(), "and its answer");
    }

    #[tokio::test(start_paused = true)]
    async fn each_request_starts_the_wait_anew() {
        let (mut client, mut server, patience) = connection();
        for _ in 0..5 {
            client.write_all(b"x").await.unwrap();
            server.read_u8().await.unwrap();
            drop(patience.busy());
            assert!(timeout(LIMITS.next_head - Duration::from_secs(1), server.read_u8()).await.is_err());
        }
        drop(patience.busy());
        assert_eq!(read_to_error(&mut server).await, (LIMITS.next_head, io::ErrorKind::TimedOut));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_closes_is_waited_for_less_long() {
        let (_client, mut server, patience) = connection();
        drop(patience.busy());
        assert!(timeout(Duration::from_secs(1), server.read_u8()).await.is_err(), "the timer is set");
        patience.busy().closes();
        assert_eq!(read_to_error(&mut server).await, (LIMITS.farewell, io::ErrorKind::TimedOut));
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_beyond_the_clock_is_none() {
        let (_client, server) = duplex(64);
        let mut server = Patient::new(server, Limits { next_head: Duration::MAX, ..LIMITS });
        drop(server.patience().busy());
        assert!(timeout(FOR_EVER, server.read_u8()).await.is_err());
    }
}
