//! How long a connection waits for its client, and how far a client may run ahead of what is read.
//!
//! The server's own timer covers the first head alone, its keep-alive timer ends with the first byte of the next head,
//! and what is left of a chunked body is drained without any: half a head, endless chunks or an answer never read would
//! hold a connection for ever. It also buffers 128 KiB of a connection, and makes any number of requests of them,
//! before anybody asks. Owns that wait and that window and nothing else: while a request is handled it sets no time, a
//! body's is the handler's.
//! INVARIANT: between requests the deadline counts from the end of the previous answer and nothing that the client
//! sends moves it but a complete head; while an answer leaves, only bytes taken move it. A client that is late gets
//! `TimedOut` on its stream, upon which the server drops the connection.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::throttle::Seat;

/// Once a client is so far ahead that the server's read buffer is full, the server polls itself without pause although it can
/// neither read nor write until the client takes its answers. So many polls in vain are a few milliseconds; honest waits have one.
const POLLS_IN_VAIN: u32 = 1_000;
/// The longest head, and the most that is read of a body before its handler has taken what came before.
const MAX_AHEAD_BYTES: usize = 32 << 10;
/// What is read in one go where a head is looked for: the server makes requests of all that it has, 7 KiB each however
/// small they are.
const PIECE_BYTES: usize = 128;
/// What is read while a request is in hand and nobody asks for more: enough to see that the client is gone, and less
/// than a request.
const AHEAD_BYTES: usize = 16;
/// What is thrown away in one go, so that the server's buffer does not grow for it.
const DISCARD_BYTES: usize = 16 << 10;

/// Times count from the end of an answer, but for the last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// In which that answer is taken and the head of the next request is complete.
    pub(crate) next_head: Duration,
    /// The same where no valid key was shown.
    pub(crate) stranger: Duration,
    /// The same for a connection that closes after that answer, when what is left of a body is thrown away.
    pub(crate) farewell: Duration,
    /// In which [`PROGRESS_BYTES`] of an answer must be taken.
    pub(crate) progress: Duration,
}

/// So much of an answer must be taken within [`Limits::progress`].
pub(crate) const PROGRESS_BYTES: usize = 64 << 10;

/// The clock of one connection, shared by its stream and the requests that arrive on it.
#[derive(Clone)]
pub(crate) struct Patience(Rc<Wait>);

struct Wait {
    limits: Limits,
    seat: Option<Seat>,
    /// None while it is not the client that is waited for.
    until: Cell<Option<Instant>>,
    /// Whether a request is in hand.
    busy: Cell<bool>,
    /// Whether the rest is thrown away.
    closing: Cell<bool>,
    known: Cell<bool>,
    /// While a request is in hand: bytes that were read and that its handler has not asked for, and how many may be.
    ahead: Cell<usize>,
    window: Cell<usize>,
    /// Bytes that came since no request was in hand.
    since_busy: Cell<usize>,
    /// Bytes that came since the server last looked at what it has.
    piece: Cell<usize>,
    /// Wakes the reader once there is room again.
    reader: Cell<Option<Waker>>,
}

impl Patience {
    /// Stops the clock; it starts again when what is returned is dropped, however the request ends. `head` is about the
    /// size of its head.
    pub(crate) fn busy(&self, head: usize) -> Busy {
        let wait = &self.0;
        wait.until.set(None);
        wait.busy.set(true);
        // Requests that were sent ahead stay so until their turn comes.
        wait.ahead.set((wait.ahead.get() + wait.since_busy.take()).saturating_sub(head));
        wait.window.set(AHEAD_BYTES);
        wait.serves();
        Busy { patience: self.clone(), closes: false }
    }

    /// The connection's place among all.
    pub(crate) fn seat(&self) -> Option<&Seat> {
        self.0.seat.as_ref()
    }

    /// A key of this account (as a hash) was shown and is valid.
    pub(crate) fn belongs_to(&self, account: u64) {
        self.0.known.set(true);
        if let Some(seat) = &self.0.seat {
            seat.belongs_to(account);
        }
    }

    /// The handler waits for more of the body: all that was read of it is in its hands. `left` is what it knows to be
    /// still to come.
    pub(crate) fn wants_body(&self, left: Option<usize>) {
        self.0.ahead.set(0);
        // Behind the body the next request may stand: of that no more than ever.
        let window = left.map_or(PIECE_BYTES, |left| left.saturating_add(AHEAD_BYTES));
        self.0.window.set(window.min(MAX_AHEAD_BYTES));
        self.0.wake_reader();
        self.0.waits();
    }

    /// Bytes of the body reached the handler.
    pub(crate) fn took_body(&self, bytes: usize) {
        self.0.ahead.set(self.0.ahead.get().saturating_sub(bytes));
        self.0.wake_reader();
    }

    /// How much time the client has left.
    #[cfg(test)]
    pub(crate) fn ends_in(&self) -> Option<Duration> {
        self.0.until.get().map(|until| until.saturating_duration_since(Instant::now()))
    }

    /// The body is there, or nobody asks for the rest.
    pub(crate) fn body_ends(&self) {
        self.0.serves();
    }
}

impl Wait {
    /// It is the client's turn.
    fn waits(&self) {
        if let Some(seat) = &self.seat {
            seat.slot().is_clients(std::time::Instant::now());
        }
    }

    fn serves(&self) {
        if let Some(seat) = &self.seat {
            seat.slot().is_ours();
        }
    }

    fn wake_reader(&self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// How much may be read now.
    fn admits(&self, context: &Context<'_>) -> Admits {
        let in_one_go = if self.closing.get() { DISCARD_BYTES } else { PIECE_BYTES };
        if self.busy.get() {
            let room = self.window.get().saturating_sub(self.ahead.get());
            if room == 0 {
                self.reader.set(Some(context.waker().clone()));
                return Admits::Later;
            }
            return Admits::Now(room);
        }
        // Nothing is in hand, and what was read is no complete head: it is too long.
        if !self.closing.get() && self.since_busy.get() >= MAX_AHEAD_BYTES {
            return Admits::Never;
        }
        let room = in_one_go.saturating_sub(self.piece.get());
        if room == 0 {
            self.piece.set(0);
            context.waker().wake_by_ref();
            return Admits::Later;
        }
        Admits::Now(room)
    }

    fn has_read(&self, bytes: usize) {
        if self.busy.get() {
            self.ahead.set(self.ahead.get() + bytes);
        } else {
            self.since_busy.set(self.since_busy.get() + bytes);
            self.piece.set(self.piece.get() + bytes);
        }
    }

    /// There is nothing more to read now: the server looks at what it has.
    fn has_read_all(&self) {
        self.piece.set(0);
    }
}

/// Whether a stream is read.
enum Admits {
    /// So many bytes.
    Now(usize),
    Later,
    Never,
}

/// A request is being handled, or its answer leaves.
pub(crate) struct Busy {
    patience: Patience,
    closes: bool,
}

impl Busy {
    /// Its answer is the connection's last.
    pub(crate) fn closes(&mut self) {
        self.closes = true;
    }

    /// Bytes of the answer are handed to the connection: the client has to take them, and the clock starts.
    pub(crate) fn sends(&self) {
        let wait = &self.patience.0;
        wait.until.set(Instant::now().checked_add(wait.limits.progress));
        wait.waits();
    }

    /// More of the answer is still to come, and not from the client.
    pub(crate) fn works(&self) {
        self.patience.0.until.set(None);
        self.patience.0.serves();
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let wait = &self.patience.0;
        let then = match (self.closes, wait.known.get()) {
            (true, _) => wait.limits.farewell,
            (false, true) => wait.limits.next_head,
            (false, false) => wait.limits.stranger,
        };
        wait.until.set(Instant::now().checked_add(then));
        wait.busy.set(false);
        wait.closing.set(self.closes);
        wait.piece.set(0);
        wait.waits();
        wait.wake_reader();
    }
}

/// A stream that waits no longer than its [`Patience`].
pub(crate) struct Patient<S> {
    stream: S,
    patience: Patience,
    timer: Option<Pin<Box<Sleep>>>,
    /// Blocked writes in a row, no attempt to read between them.
    in_vain: u32,
}

impl<S> Patient<S> {
    /// Without a limit until the first request ends.
    pub(crate) fn new(stream: S, limits: Limits, seat: Option<Seat>) -> Self {
        let patience = Patience(Rc::new(Wait {
            limits,
            seat,
            until: Cell::new(None),
            busy: Cell::new(false),
            closing: Cell::new(false),
            known: Cell::new(false),
            ahead: Cell::new(0),
            window: Cell::new(AHEAD_BYTES),
            since_busy: Cell::new(0),
            piece: Cell::new(0),
            reader: Cell::new(None),
        }));
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
        // A deadline that moved on is not worth touching the timer for: it is set again when it fires, not with each request.
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
        self.as_mut().step(context)?;
        let wait = Rc::clone(&self.patience.0);
        let room = match wait.admits(context) {
            Admits::Now(room) => room,
            Admits::Later => return Poll::Pending,
            Admits::Never => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
        };
        let stream = Pin::new(&mut self.get_mut().stream);
        let before = buffer.filled().len();
        let read = if buffer.remaining() <= room {
            stream.poll_read(context, buffer)
        } else {
            let mut piece = [0; PIECE_BYTES];
            let (start, _) = piece.split_at_mut(room.min(PIECE_BYTES).min(buffer.remaining()));
            let mut piece = ReadBuf::new(start);
            let read = stream.poll_read(context, &mut piece);
            buffer.put_slice(piece.filled());
            read
        };
        match read {
            Poll::Ready(_) => wait.has_read(buffer.filled().len() - before),
            Poll::Pending => wait.has_read_all(),
        }
        read
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
mod tests;
