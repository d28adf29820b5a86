//! The guard between a client on its own standard streams and a server that it starts as a child.
//!
//! The child has a process group of its own. It ends when the client closes its end, when the guard is asked to end, or
//! when the guard dies: its standard input closes, and on Linux a launcher has it killed with its parent.
//! INVARIANT: only what [`Guard::request`] forwards is written to the child.

mod child;

use std::ffi::OsString;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::answer;
use crate::guard::{Answered, Guard, Step};
use crate::lines::{self, Line};
use crate::message::{
    INVALID_REQUEST, MAX_REQUEST_BYTES, MAX_RESULT_BYTES, Message, Refusal, Response, of_client_line, of_server,
};
use crate::method::{CANCELLED, Method, is_known_notification, of_request};
use crate::pending::{Begun, MAX_OPEN, Pending};
use crate::version::Version;

use child::Child;

/// Messages that wait for a slow reader.
const QUEUE: usize = 16;
/// How long the end waits for what is being decided or written.
const DECIDING_TIMEOUT: Duration = Duration::from_secs(1);

/// How the server is started.
#[derive(Debug, Clone)]
pub struct Command {
    /// A program that starts the rest of its arguments in its own place, so that it dies with the guard. May be empty.
    pub launcher: Vec<OsString>,
    /// The server's program and its arguments.
    pub program: Vec<OsString>,
}

/// Why the guard ends before its time.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what is wrong")]
pub enum StdioError {
    #[error("no command: name the server's program after `--`")]
    NoCommand,
    #[error("cannot start the server `{program}`")]
    Start { program: String, source: std::io::Error },
    #[error("cannot wait for the server")]
    Wait(#[source] std::io::Error),
}

struct Session {
    guard: Arc<Guard>,
    pending: Pending,
    /// `None`: the client has got all that it will get.
    to_client: Mutex<Option<mpsc::Sender<Vec<u8>>>>,
    asking: TaskTracker,
}

/// Serves one client until it, the server or `stop` ends. Returns the exit code of the server.
pub async fn run<I, O>(
    guard: Arc<Guard>,
    command: &Command,
    input: I,
    output: O,
    stop: impl Future<Output = ()>,
) -> Result<u8, StdioError>
where
    I: AsyncRead + Unpin,
    O: AsyncWrite + Unpin + Send + 'static,
{
    guard.begin();
    let (mut child, stdin, stdout) = Child::start(command)?;
    let (to_client, client_queue) = mpsc::channel(QUEUE);
    let (to_server, server_queue) = mpsc::channel(QUEUE);
    let client_writer = tokio::spawn(write_all(output, client_queue));
    let mut server_writer = tokio::spawn(write_all(stdin, server_queue));
    let session = Session {
        guard,
        pending: Pending::new(MAX_OPEN, FIRST_VERSION),
        to_client: Mutex::new(Some(to_client)),
        asking: TaskTracker::new(),
    };
    let session = Arc::new(session);
    let mut reading = std::pin::pin!(session.read_server(stdout));
    let ended = tokio::select! {
        () = session.read_client(input, to_server.clone()) => Ended::ByClient,
        () = &mut reading => Ended::ByServer,
        () = stop => Ended::Stopped,
    };
    // The client is gone, or the server is: what is still being decided would reach a server that is ending.
    session.pending.close();
    session.asking.close();
    let _ = tokio::time::timeout(DECIDING_TIMEOUT, session.asking.wait()).await;
    drop(to_server);
    if tokio::time::timeout(DECIDING_TIMEOUT, &mut server_writer).await.is_err() {
        server_writer.abort();
    }
    let code = {
        let mut ending = std::pin::pin!(child.end(ended == Ended::Stopped));
        tokio::select! {
            code = &mut ending => code,
            // What the server still writes is read, so that it does not wait for its reader.
            () = &mut reading, if ended != Ended::ByServer => ending.await,
        }
    };
    session.lose_all().await;
    session.guard.settle().await;
    session.close_client();
    let _ = tokio::time::timeout(DECIDING_TIMEOUT, client_writer).await;
    code.map_err(StdioError::Wait)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    ByClient,
    ByServer,
    Stopped,
}

impl Session {
    async fn read_client(self: &Arc<Self>, input: impl AsyncRead + Unpin, to_server: mpsc::Sender<Vec<u8>>) {
        let mut reader = BufReader::new(input);
        loop {
            match lines::next(&mut reader, MAX_REQUEST_BYTES).await {
                Ok(Line::Message(line)) => self.take_from_client(line, &to_server).await,
                Ok(Line::TooLong) => {
                    let text = format!("the message is larger than {MAX_REQUEST_BYTES} bytes");
                    self.send(Refusal::new(None, INVALID_REQUEST, text).answer()).await;
                }
                Ok(Line::End) | Err(_) => return,
            }
        }
    }

    async fn take_from_client(self: &Arc<Self>, line: Vec<u8>, to_server: &mpsc::Sender<Vec<u8>>) {
        match of_client_line(&line) {
            Err(refusal) => self.send(refusal.answer()).await,
            Ok(Message::Response(..)) => forward(to_server, line).await,
            Ok(Message::Notification(method, params)) => {
                if !is_known_notification(&method) {
                    tracing::warn!(server = self.guard.server(), "an unknown notification of the client is dropped");
                    return;
                }
                let cancelled = (method == CANCELLED).then(|| params.get("requestId")).flatten();
                if let Some(watch) = cancelled.and_then(|raw| self.pending.cancel(raw)) {
                    self.guard.lost(&watch);
                }
                forward(to_server, line).await;
            }
            Ok(Message::Request(request)) => {
                let begun = self.pending.begin(&request.id);
                match begun {
                    Begun::Yes => {}
                    Begun::SameId => {
                        let text = "a request with this id is still open";
                        return self.send(answer::error(Some(request.raw_id), INVALID_REQUEST, text)).await;
                    }
                    Begun::TooMany => {
                        let text = "too many requests are open";
                        return self.send(answer::error(Some(request.raw_id), INVALID_REQUEST, text)).await;
                    }
                }
                let is_asked = matches!(of_request(&request.method), Some(Method::CallTool | Method::Read(_)));
                self.decide(is_asked, line, to_server).await;
            }
        }
    }

    /// A request that is not asked about keeps its place among the client's messages; a question is asked beside them.
    async fn decide(self: &Arc<Self>, is_asked: bool, line: Vec<u8>, to_server: &mpsc::Sender<Vec<u8>>) {
        if !is_asked {
            return self.decide_one(&line, to_server).await;
        }
        let (session, to_server) = (Arc::clone(self), to_server.clone());
        self.asking.spawn(async move { session.decide_one(&line, &to_server).await });
    }

    async fn decide_one(&self, line: &[u8], to_server: &mpsc::Sender<Vec<u8>>) {
        let Ok(Message::Request(request)) = of_client_line(line) else { return };
        let speaks = match Guard::speaks(&request, self.pending.version()) {
            Ok(speaks) => speaks,
            Err(answer) => return self.refuse(&request.id, answer).await,
        };
        match self.guard.request(&request, line, speaks, None).await {
            Step::Answer(answer) | Step::Invalid(answer) => self.refuse(&request.id, answer).await,
            Step::Forward(bytes, watch) => {
                // INVARIANT: a call that was cancelled, or whose client is gone, while it was decided is not sent.
                match self.pending.sent(&request.id, watch) {
                    Ok(()) => forward(to_server, bytes.into_owned()).await,
                    Err(watch) => self.guard.not_sent(&watch),
                }
            }
        }
    }

    async fn refuse(&self, id: &crate::message::Id, answer: Vec<u8>) {
        self.pending.end(id);
        self.send(answer).await;
    }

    async fn read_server(&self, stdout: impl AsyncRead + Unpin) {
        let mut reader = BufReader::new(stdout);
        loop {
            match lines::next(&mut reader, MAX_RESULT_BYTES).await {
                Ok(Line::Message(line)) => self.take_from_server(line).await,
                Ok(Line::TooLong) => {
                    tracing::warn!(server = self.guard.server(), "a message of the server is too large and is dropped");
                }
                Ok(Line::End) | Err(_) => return,
            }
        }
    }

    async fn take_from_server(&self, line: Vec<u8>) {
        let answer = match of_server(&line) {
            Err(refusal) => {
                tracing::warn!(server = self.guard.server(), "a message of the server is dropped: {}", refusal.text);
                None
            }
            Ok(Message::Response(Some(id), response)) => self.answered(&id, &response).await,
            Ok(Message::Request(_) | Message::Notification(..) | Message::Response(None, _)) => Some(None),
        };
        match answer {
            Some(Some(replaced)) => self.send(replaced).await,
            Some(None) => self.send(line).await,
            None => {}
        }
    }

    /// What the client gets: nothing, the message as it came, or another one.
    async fn answered(&self, id: &crate::message::Id, response: &Response<'_>) -> Option<Option<Vec<u8>>> {
        let Some(watch) = self.pending.end(id) else {
            tracing::warn!(server = self.guard.server(), "an answer of the server that was not asked for is dropped");
            return None;
        };
        match self.guard.answered(&watch, response).await {
            Answered::AsItCame => Some(None),
            Answered::Replaced(bytes) => Some(Some(bytes)),
            Answered::Speaking(version) => {
                self.pending.speak(version);
                Some(None)
            }
        }
    }

    /// The server is gone: what it has not answered has an unknown outcome, and its clients stop waiting.
    async fn lose_all(&self) {
        for (id, watch) in self.pending.take_all() {
            self.guard.lost(&watch);
            let raw_id = id.to_raw();
            self.send(answer::error(Some(&raw_id), SERVER_ENDED, "the server ended before it answered")).await;
        }
    }

    async fn send(&self, bytes: Vec<u8>) {
        let to_client = self.to_client.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(to_client) = to_client {
            let _ = to_client.send(bytes).await;
        }
    }

    fn close_client(&self) {
        self.to_client.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// The connection to the server is closed.
const SERVER_ENDED: i64 = -32_000;

async fn forward(to: &mpsc::Sender<Vec<u8>>, bytes: Vec<u8>) {
    let _ = to.send(bytes).await;
}

/// One message a line. The writer closes when the queue's senders are gone.
async fn write_all(mut writer: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(mut message) = queue.recv().await {
        message.push(b'\n');
        if writer.write_all(&message).await.is_err() || writer.flush().await.is_err() {
            return;
        }
    }
    let _ = writer.shutdown().await;
}

/// What a session speaks before its `initialize` is answered.
const FIRST_VERSION: Version = Version::V2024_11_05;
