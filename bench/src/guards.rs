//! What guards cost a tool call: a hook's process against the check that it makes, and a call of an MCP tool through
//! the guard against the same call without it.
//!
//! Contestants take turns call by call. The MCP server is this program ([`echo`]), so that the guard is what is
//! measured. A hook's lower bound is a process that starts and ends, and a check on a new connection.

use std::fmt;
use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde::Serialize;
use serde_json::{Value, json};

use crate::GuardArgs;
use crate::environments::Environments;
use crate::load::Endpoint;
use crate::product::Log;
use crate::quantiles::{median_ratio, quantile};
use crate::request::{CheckRequest, Runs};

const WARM_UP: usize = 5;
const EVENT: &str = r#"{"hook_event_name": "PreToolUse", "session_id": "bench", "cwd": "/work", "tool_name": "Read",
    "tool_input": {"file_path": "/work/README.md"}, "tool_use_id": "toolu_1"}"#;

#[derive(Debug, Default, Serialize)]
pub(crate) struct GuardReport {
    calls: usize,
    rows: Vec<Row>,
    /// Medians over calls of quotients within one round.
    ratios: Vec<(String, f64)>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    p50_ms: f64,
    p99_ms: f64,
    #[serde(skip)]
    latencies: Vec<Duration>,
}

impl Row {
    fn new(name: &'static str) -> Self {
        Self { name, p50_ms: 0.0, p99_ms: 0.0, latencies: Vec::new() }
    }

    fn seconds(&self) -> Vec<f64> {
        self.latencies.iter().map(Duration::as_secs_f64).collect()
    }
}

pub(crate) async fn guards(args: &GuardArgs) -> anyhow::Result<GuardReport> {
    ensure!(args.stage0.exists(), "there is no `{}`: build it, or name it with --stage0", args.stage0.display());
    let environments = Environments::start().await?;
    let served = environments.embedded.gateway("guards", Log::Stored, None).await?;
    let directory = tempfile::tempdir()?;
    let key = directory.path().join("agent.key");
    write_key(&key, &served.key)?;
    let endpoint = Endpoint::new(served.address, &environments.ca)?;
    let mut check = CheckRequest::check(&served.key, Runs::Nameless, 0)?;
    let url = format!("https://localhost:{}", served.address.port());
    let guard = Guarded { stage0: args.stage0.clone(), url, ca: environments.ca.clone(), key, state: directory };
    let mut kept = endpoint.open(None).await?;
    let names = ["check", "check, new connection", "process", "hook", "tool", "tool, guarded"];
    let mut rows: Vec<Row> = names.map(Row::new).into();
    let mut direct = Server::start(echo_command()?)?;
    let mut guarded = Server::start(guard.mcp()?)?;
    for round in 0..WARM_UP + args.calls {
        let begun = Instant::now();
        ensure!(kept.ask(check.next()).await? == 200, "the check was not answered");
        let kept_time = begun.elapsed();
        let begun = Instant::now();
        ensure!(endpoint.open(None).await?.ask(check.next()).await? == 200, "the check was not answered");
        let opened = begun.elapsed();
        // The servers of this process go on meanwhile.
        let times = tokio::task::block_in_place(|| -> anyhow::Result<[Duration; 4]> {
            Ok([guard.process()?, guard.hook()?, direct.call(round)?, guarded.call(round)?])
        })?;
        if round >= WARM_UP {
            for (row, time) in rows.iter_mut().zip([kept_time, opened].into_iter().chain(times)) {
                row.latencies.push(time);
            }
        }
    }
    Ok(report(args.calls, rows))
}

fn report(calls: usize, mut rows: Vec<Row>) -> GuardReport {
    let series: Vec<Vec<f64>> = rows.iter().map(Row::seconds).collect();
    let [check, opened, process, hook, tool, guarded] = series.as_slice() else { return GuardReport::default() };
    let sum: Vec<f64> = opened.iter().zip(process).map(|(one, other)| one + other).collect();
    let added: Vec<f64> = guarded.iter().zip(tool).map(|(with, without)| with - without).collect();
    let ratios = vec![
        ("hook / (process + check on a new connection)".to_owned(), median_ratio(hook, &sum)),
        ("hook / check".to_owned(), median_ratio(hook, check)),
        ("guarded tool / tool".to_owned(), median_ratio(guarded, tool)),
        ("what the MCP guard adds / check".to_owned(), median_ratio(&added, check)),
    ];
    for row in &mut rows {
        row.latencies.sort_unstable();
        (row.p50_ms, row.p99_ms) = (quantile(&row.latencies, 0.5), quantile(&row.latencies, 0.99));
    }
    GuardReport { calls, rows, ratios }
}

impl fmt::Display for GuardReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<24} {:>9} {:>9}   {} calls each", "", "p50 ms", "p99 ms", self.calls)?;
        for row in &self.rows {
            writeln!(f, "{:<24} {:>9.2} {:>9.2}", row.name, row.p50_ms, row.p99_ms)?;
        }
        for (name, ratio) in &self.ratios {
            writeln!(f, "\n{name}: {ratio:.2}")?;
        }
        Ok(())
    }
}

fn write_key(path: &Path, key: &str) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    Ok(file.write_all(key.as_bytes())?)
}

/// How the guards under test are started.
struct Guarded {
    stage0: PathBuf,
    url: String,
    ca: PathBuf,
    key: PathBuf,
    state: tempfile::TempDir,
}

impl Guarded {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.stage0);
        command.args(words).args(["--url", &self.url]).arg("--ca").arg(&self.ca).arg("--key-file").arg(&self.key);
        command.env("XDG_STATE_HOME", self.state.path());
        command
    }

    fn process(&self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        ensure!(Command::new(&self.stage0).arg("--version").output()?.status.success(), "it does not start");
        Ok(begun.elapsed())
    }

    fn hook(&self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let mut command = self.command(&["guard", "hook", "claude-code"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("no standard input")?.write_all(EVENT.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "the hook denies: {}", String::from_utf8_lossy(&output.stderr));
        Ok(begun.elapsed())
    }

    /// The guard before the echo, whose tool the table says to read only.
    fn mcp(&self) -> anyhow::Result<Command> {
        let table = self.state.path().join("table.toml");
        std::fs::write(&table, "[[mcp]]\nserver = \"echo\"\ntool = \"echo\"\neffects = [\"read\"]\n")?;
        // Without heartbeats, which nothing sends here, a gateway records no probe.
        let mut command = self.command(&["guard", "mcp", "--name", "echo", "--whole-lists"]);
        command.arg("--table").arg(table).arg("--").arg(std::env::current_exe()?).arg("mcp-echo");
        Ok(command)
    }
}

fn echo_command() -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("mcp-echo");
    Ok(command)
}

/// An MCP server over standard input and output, and its client.
struct Server {
    child: Child,
    stdin: ChildStdin,
    stdout: std::io::BufReader<ChildStdout>,
}

impl Server {
    fn start(mut command: Command) -> anyhow::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let stdin = child.stdin.take().context("no standard input")?;
        let stdout = std::io::BufReader::new(child.stdout.take().context("no standard output")?);
        let mut server = Self { child, stdin, stdout };
        let client = json!({"protocolVersion": "2025-11-25", "capabilities": {},
            "clientInfo": {"name": "bench", "version": "1"}});
        server.ask(&json!({"jsonrpc": "2.0", "id": "init", "method": "initialize", "params": client}))?;
        server.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}))?;
        let list = server.ask(&json!({"jsonrpc": "2.0", "id": "list", "method": "tools/list"}))?;
        ensure!(list.pointer("/result/tools/0").is_some(), "the tool is not listed: {list}");
        Ok(server)
    }

    fn call(&mut self, number: usize) -> anyhow::Result<Duration> {
        let call = json!({"name": "echo", "arguments": {"text": "hello"}});
        let begun = Instant::now();
        let answer = self.ask(&json!({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": call}))?;
        let time = begun.elapsed();
        let is_run = answer.pointer("/result/content/0/text").and_then(Value::as_str) == Some("hello");
        ensure!(is_run, "the tool did not run: {answer}");
        Ok(time)
    }

    fn send(&mut self, message: &Value) -> anyhow::Result<()> {
        Ok(self.stdin.write_all(format!("{message}\n").as_bytes())?)
    }

    /// The answer to this request; notifications before it are skipped.
    fn ask(&mut self, message: &Value) -> anyhow::Result<Value> {
        self.send(message)?;
        loop {
            let mut line = String::new();
            ensure!(self.stdout.read_line(&mut line)? > 0, "the server has ended");
            let answer: Value = serde_json::from_str(&line)?;
            if answer.get("id") == message.get("id") {
                return Ok(answer);
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An MCP server with one tool that answers its text.
pub(crate) fn echo() -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let message: Value = serde_json::from_str(&line?)?;
        let Some(id) = message.get("id") else { continue };
        let text = message.pointer("/params/arguments/text").cloned().unwrap_or_default();
        let result = match message.get("method").and_then(Value::as_str) {
            Some("initialize") => json!({"protocolVersion": "2025-11-25", "capabilities": {"tools": {}},
                "serverInfo": {"name": "echo", "version": "1"}}),
            Some("tools/list") => json!({"tools": [{"name": "echo", "inputSchema": {"type": "object",
                "properties": {"text": {"type": "string"}}}}]}),
            Some("tools/call") => json!({"content": [{"type": "text", "text": text}]}),
            _ => json!({}),
        };
        writeln!(stdout, "{}", json!({"jsonrpc": "2.0", "id": id, "result": result}))?;
        stdout.flush()?;
    }
    Ok(())
}
