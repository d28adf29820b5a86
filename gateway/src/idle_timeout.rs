//! How long a connection waits for its client, and how much of what the client sends is read ahead.
//!
//! With the server's own timers, half a head, endless chunks or an answer that is never read would hold a connection
//! forever. The server also buffers 128 KiB of a connection and parses every request in them before the first is
//! handled. A handler sets its own deadline for a body.
//! INVARIANT: between requests the deadline counts from the end of the previous answer, and only a complete head moves
//! it; while an answer is sent, only bytes that the client takes move it. After the deadline the stream fails with
//! `TimedOut`, and the server drops the connection.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::throttle::ConnectionHandle;

/// When a client that pipelines stops reading, the server polls the blocked write in a busy loop: this many fruitless
/// polls take a few milliseconds. An ordinary wait has one.
const MAX_FRUITLESS_POLLS: u32 = 1_000;
/// The longest head, and the most that is read of a body before its handler has taken the bytes before it.
const MAX_READ_AHEAD_BYTES: usize = 32 << 10;
/// Read at once between requests, because each request in the server's buffer takes 7 KiB, however small it is.
const IDLE_READ_BYTES: usize = 128;
/// Read ahead while a request is handled: enough to see that the client is gone, and less than a request.
const PROBE_BYTES: usize = 16;
/// Discarded at once, so that the server's buffer does not grow for it.
const DISCARD_BYTES: usize = 16 << 10;

/// All except `progress` count from the end of an answer.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct ConnectionTimeouts {
    /// Until the answer is taken and the head of the next request is complete.
    pub(crate) next_head: Duration,
    /// The same for a connection on which no valid key was shown.
    pub(crate) unauthenticated: Duration,
    /// The same for a connection that closes after the answer and discards the rest of a body.
    pub(crate) linger: Duration,
    /// Until the client has taken [`MIN_PROGRESS_BYTES`] of an answer.
    pub(crate) progress: Duration,
}

/// A client must take this much of an answer within [`ConnectionTimeouts::progress`].
pub(crate) const MIN_PROGRESS_BYTES: usize = 64 << 10;

/// The deadline and read window of one connection, shared by its stream and its requests.
#[derive(Clone)]
pub(crate) struct ConnectionState(Rc<Shared>);

#[derive(Default)]
struct Shared {
    timeouts: ConnectionTimeouts,
    handle: Option<ConnectionHandle>,
    /// None while the connection does not wait for its client.
    deadline: Cell<Option<Instant>>,
    in_request: Cell<bool>,
    closing: Cell<bool>,
    authenticated: Cell<bool>,
    /// Bytes that were read and that no handler has taken.
    unconsumed: Cell<usize>,
    /// How many of them there may be while a request is handled.
    read_window: Cell<usize>,
    since_request: Cell<usize>,
    /// Bytes read since the server last parsed its buffer.
    since_parse: Cell<usize>,
    /// Wakes the reader once the window has room again.
    reader: Cell<Option<Waker>>,
    /// Cancelled when the client has closed the connection, or its half of it.
    gone: CancellationToken,
}

impl ConnectionState {
    /// Stops the timeout until the guard is dropped, however the request ends.
    pub(crate) fn begin_request(&self, head_bytes: usize) -> RequestGuard {
        let shared = &self.0;
        shared.deadline.set(None);
        shared.in_request.set(true);
        // Pipelined requests stay unconsumed until they are handled.
        shared.unconsumed.set((shared.unconsumed.get() + shared.since_request.take()).saturating_sub(head_bytes));
        shared.read_window.set(PROBE_BYTES);
        shared.mark_serving();
        RequestGuard { connection: self.clone(), closing: false }
    }

    /// Cancelled once nothing more can arrive: the server itself goes on with a handler until it wants to answer.
    pub(crate) fn client_gone(&self) -> CancellationToken {
        self.0.gone.clone()
    }

    pub(crate) fn handle(&self) -> Option<&ConnectionHandle> {
        self.0.handle.as_ref()
    }

    /// Called when a valid key of this account (as a hash) was shown.
    pub(crate) fn set_account(&self, account: u64) {
        self.0.authenticated.set(true);
        if let Some(handle) = &self.0.handle {
            handle.set_account(account);
        }
    }

    /// Called when the handler waits for more of the body. `left` is the length of the rest, if known.
    pub(crate) fn await_body(&self, left: Option<usize>) {
        self.0.unconsumed.set(0);
        // The next request may follow the body: no more of it is read ahead than otherwise.
        let read_window = left.map_or(IDLE_READ_BYTES, |left| left.saturating_add(PROBE_BYTES));
        self.0.read_window.set(read_window.min(MAX_READ_AHEAD_BYTES));
        self.0.wake_reader();
        self.0.mark_waiting();
    }

    pub(crate) fn consumed_body(&self, bytes: usize) {
        self.0.unconsumed.set(self.0.unconsumed.get().saturating_sub(bytes));
        self.0.wake_reader();
    }

    #[cfg(test)]
    pub(crate) fn ends_in(&self) -> Option<Duration> {
        self.0.deadline.get().map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    pub(crate) fn body_done(&self) {
        self.0.mark_serving();
    }
}

impl Shared {
    fn mark_waiting(&self) {
        if let Some(handle) = &self.handle {
            handle.slot().mark_waiting(std::time::Instant::now());
        }
    }

    fn mark_serving(&self) {
        if let Some(handle) = &self.handle {
            handle.slot().mark_serving();
        }
    }

    fn wake_reader(&self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn read_allowance(&self, context: &Context<'_>) -> ReadAllowance {
        if self.in_request.get() {
            let room = self.read_window.get().saturating_sub(self.unconsumed.get());
            if room == 0 {
                self.reader.set(Some(context.waker().clone()));
                return ReadAllowance::Later;
            }
            return ReadAllowance::Now(room);
        }
        // No request began although this much was read: the head is too long.
        if !self.closing.get() && self.since_request.get() >= MAX_READ_AHEAD_BYTES {
            return ReadAllowance::Never;
        }
        let at_once = if self.closing.get() { DISCARD_BYTES } else { IDLE_READ_BYTES };
        let room = at_once.saturating_sub(self.since_parse.get());
        if room == 0 {
            self.since_parse.set(0);
            context.waker().wake_by_ref();
            return ReadAllowance::Later;
        }
        ReadAllowance::Now(room)
    }

    fn record_read(&self, bytes: usize) {
        if self.in_request.get() {
            self.unconsumed.set(self.unconsumed.get() + bytes);
        } else {
            self.since_request.set(self.since_request.get() + bytes);
            self.since_parse.set(self.since_parse.get() + bytes);
        }
    }
}

/// How much of the stream may be read now.
enum ReadAllowance {
    /// At most this many bytes.
    Now(usize),
    Later,
    /// The head is too long: the connection fails.
    Never,
}

/// A request that is handled, until its answer is sent.
pub(crate) struct RequestGuard {
    connection: ConnectionState,
    closing: bool,
}

impl RequestGuard {
    pub(crate) fn set_closing(&mut self) {
        self.closing = true;
    }

    /// Starts the progress timeout: bytes of the answer are handed to the connection.
    pub(crate) fn start_sending(&self) {
        let shared = &self.connection.0;
        shared.deadline.set(Instant::now().checked_add(shared.timeouts.progress));
        shared.mark_waiting();
    }

    /// Called when the client has taken the bytes and the handler produces more.
    pub(crate) fn stop_sending(&self) {
        self.connection.0.deadline.set(None);
        self.connection.0.mark_serving();
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let shared = &self.connection.0;
        let timeout = match (self.closing, shared.authenticated.get()) {
            (true, _) => shared.timeouts.linger,
            (false, true) => shared.timeouts.next_head,
            (false, false) => shared.timeouts.unauthenticated,
        };
        shared.deadline.set(Instant::now().checked_add(timeout));
        shared.in_request.set(false);
        shared.closing.set(self.closing);
        shared.since_parse.set(0);
        shared.mark_waiting();
        shared.wake_reader();
    }
}

/// A stream that fails after the deadline of its [`ConnectionState`].
pub(crate) struct TimedStream<S> {
    stream: S,
    connection: ConnectionState,
    timer: Option<Pin<Box<Sleep>>>,
    /// Consecutive blocked writes without an attempt to read between them.
    fruitless_polls: u32,
}

impl<S> TimedStream<S> {
    /// There is no deadline until the first request ends: the server's own timer covers the first head.
    pub(crate) fn new(stream: S, timeouts: ConnectionTimeouts, handle: Option<ConnectionHandle>) -> Self {
        let shared = Shared { timeouts, handle, read_window: Cell::new(PROBE_BYTES), ..Shared::default() };
        let connection = ConnectionState(Rc::new(shared));
        Self { stream, connection, timer: None, fruitless_polls: 0 }
    }

    pub(crate) fn connection_state(&self) -> &ConnectionState {
        &self.connection
    }

    /// Called before every read and write, because a client that never stops sending can be late, too. The server
    /// flushes after each answer, so the timer starts even when no byte follows.
    #[expect(clippy::disallowed_methods, reason = "a poll function has no future to put a deadline on")]
    fn check_deadline(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let Some(deadline) = self.connection.0.deadline.get() else { return Ok(()) };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        // A later deadline resets the timer only when it fires, which is cheaper than a reset for each request.
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        while timer.as_mut().poll(context).is_ready() {
            if timer.deadline() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            timer.as_mut().reset(deadline);
        }
        Ok(())
    }

    fn checked_stream(self: Pin<&mut Self>, context: &mut Context<'_>) -> io::Result<Pin<&mut S>>
    where
        S: Unpin,
    {
        let this = self.get_mut();
        this.check_deadline(context)?;
        Ok(Pin::new(&mut this.stream))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.fruitless_polls = 0;
        self.as_mut().checked_stream(context)?;
        let shared = Rc::clone(&self.connection.0);
        let room = match shared.read_allowance(context) {
            ReadAllowance::Now(room) => room,
            ReadAllowance::Later => return Poll::Pending,
            ReadAllowance::Never => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
        };
        let stream = Pin::new(&mut self.get_mut().stream);
        let before = buffer.filled().len();
        let read = if buffer.remaining() <= room {
            stream.poll_read(context, buffer)
        } else {
            let mut chunk = [0; IDLE_READ_BYTES];
            let (start, _) = chunk.split_at_mut(room.min(IDLE_READ_BYTES).min(buffer.remaining()));
            let mut chunk = ReadBuf::new(start);
            let read = stream.poll_read(context, &mut chunk);
            buffer.put_slice(chunk.filled());
            read
        };
        match read {
            Poll::Ready(_) => {
                let bytes = buffer.filled().len() - before;
                if bytes == 0 {
                    shared.gone.cancel();
                }
                shared.record_read(bytes);
            }
            // The server parses its buffer now.
            Poll::Pending => shared.since_parse.set(0),
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.as_mut().checked_stream(context)?.poll_write(context, bytes);
        self.fruitless_polls = if written.is_pending() { self.fruitless_polls + 1 } else { 0 };
        if self.fruitless_polls > MAX_FRUITLESS_POLLS {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.checked_stream(context)?.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.checked_stream(context)?.poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
