//! A guard, what it guards, and a client that writes bytes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use stage0_client::Client;
use stage0_guard::{Options, Table};
use stage0_mcp_guard::{Asker, Command, Guard, Pins, StdioError, run_stdio};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::stage0::Stage0;

const WAIT: Duration = Duration::from_secs(20);
/// Larger than every message of these tests.
const PIPE_BYTES: usize = 4 << 20;

pub(crate) const TABLE: &str = r#"
    [[mcp]]
    server = "files"
    tool = "write_*"
    effects = ["filesystem_modification"]
    send = ["path"]
    targets = ["path"]
    [[mcp]]
    server = "files"
    tool = "read_*"
    effects = ["read"]
"#;

/// The files of a server process, and of the guard before it.
pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) stage0: Stage0,
    /// Whether its guards ask clients to open approvals.
    pub(crate) elicits: bool,
}

impl World {
    pub(crate) async fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap(), stage0: Stage0::start().await, elicits: false };
        world.write("tools", TOOLS);
        world.write("result", r#"{"content":[{"type":"text","text":"done \u0041"}]}"#);
        world.write("version", "2025-06-18");
        world
    }

    /// As [`Self::new`], with guards that ask clients to open approvals.
    pub(crate) async fn eliciting() -> Self {
        Self { elicits: true, ..Self::new().await }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// How often a tool ran.
    pub(crate) fn runs(&self) -> usize {
        self.read("ran").lines().count()
    }

    pub(crate) fn pins(&self) -> Pins {
        Pins::new(self.path("state/pins.json"))
    }

    pub(crate) fn guard(&self) -> Arc<Guard> {
        let guard = new_guard(self.stage0.client(), self.pins());
        Arc::new(if self.elicits { guard.with_elicitation() } else { guard })
    }

    /// A client of the guard before the server process.
    pub(crate) fn session(&self) -> Session {
        Session::start(self.guard(), self.dir.path())
    }

    /// As [`Self::session`], with the tools listed.
    pub(crate) async fn listed(&self) -> Session {
        let mut session = self.session();
        session.begin("2025-06-18").await;
        session
    }
}

pub(crate) const TOOLS: &str = concat!(
    r#"{"tools":[{"name":"write_file", "description":"Writes \u0061 file","#,
    r#""inputSchema":{"type":"object","properties":{"path":{}}}},"#,
    r#"{"name":"read_file","inputSchema":{"type":"object"},"outputSchema":{"type":"object"}}]}"#
);

pub(crate) fn new_guard(client: Client, pins: Pins) -> Guard {
    let table = Table::builtin().unwrap().with("table", TABLE).unwrap();
    let asker = Asker::new(client, "0w3ge1r70w3ge1r7", table, Options::default());
    Guard::new("files", asker, pins).unwrap()
}

pub(crate) fn command(dir: &Path) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/upstream.sh");
    let program: Vec<OsString> = vec!["sh".into(), script.into(), dir.into()];
    Command { launcher: Vec::new(), program }
}

/// The client's end of the guard's standard streams.
pub(crate) struct Session {
    to: Option<DuplexStream>,
    from: BufReader<DuplexStream>,
    running: JoinHandle<Result<u8, StdioError>>,
    stop: Option<oneshot::Sender<()>>,
}

impl Session {
    pub(crate) fn start(guard: Arc<Guard>, dir: &Path) -> Self {
        Self::run(guard, command(dir))
    }

    pub(crate) fn run(guard: Arc<Guard>, command: Command) -> Self {
        let (to, input) = tokio::io::duplex(PIPE_BYTES);
        let (output, from) = tokio::io::duplex(PIPE_BYTES);
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(async move {
            let stopped = async {
                if stopped.await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            run_stdio(guard, &command, input, output, stopped).await
        });
        Self { to: Some(to), from: BufReader::new(from), running, stop: Some(stop) }
    }

    pub(crate) async fn send(&mut self, line: impl AsRef<[u8]>) {
        let to = self.to.as_mut().unwrap();
        to.write_all(line.as_ref()).await.unwrap();
        to.write_all(b"\n").await.unwrap();
    }

    /// The next message for the client, as it came.
    pub(crate) async fn receive_raw(&mut self) -> String {
        let mut line = String::new();
        tokio::time::timeout(WAIT, self.from.read_line(&mut line)).await.expect("no message").unwrap();
        line.trim_end().to_owned()
    }

    pub(crate) async fn receive(&mut self) -> Value {
        let line = self.receive_raw().await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    pub(crate) async fn ask(&mut self, id: i64, method: &str, params: Value) -> Value {
        self.send(json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string()).await;
        let answer = self.receive().await;
        assert_eq!(answer["id"], id, "{answer}");
        answer
    }

    /// `initialize` and `tools/list`.
    pub(crate) async fn begin(&mut self, version: &str) {
        let params =
            json!({"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
        let answer = self.ask(-1, "initialize", params).await;
        assert!(answer["result"]["protocolVersion"].is_string(), "{answer}");
        self.send(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).await;
        let answer = self.ask(-2, "tools/list", json!({})).await;
        assert!(answer["result"]["tools"].is_array(), "{answer}");
    }

    pub(crate) async fn call(&mut self, id: i64, tool: &str, arguments: Value) -> Value {
        self.ask(id, "tools/call", json!({"name": tool, "arguments": arguments})).await
    }

    pub(crate) fn close_input(&mut self) {
        self.to = None;
    }

    pub(crate) fn stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    /// The exit code, after the input has closed.
    pub(crate) async fn end(mut self) -> u8 {
        self.close_input();
        self.ended().await
    }

    pub(crate) async fn ended(self) -> u8 {
        self.outcome().await.unwrap()
    }

    pub(crate) async fn outcome(self) -> Result<u8, StdioError> {
        tokio::time::timeout(WAIT, self.running).await.expect("it does not end").unwrap()
    }
}

/// Waits until something holds that another task or process brings about.
pub(crate) async fn wait_for(what: &str, holds: impl Fn() -> bool) {
    let waited = tokio::time::timeout(WAIT, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// Whether the result of a call says that the tool did not run.
pub(crate) fn is_refused(answer: &Value) -> bool {
    answer["result"]["isError"] == true && answer["result"]["content"][0]["text"].is_string()
}
