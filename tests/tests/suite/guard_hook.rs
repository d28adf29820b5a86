//! The hook of each coding agent against every failure: in each agent's own form the tool does not run.

use std::io::Write as _;
use std::net::TcpListener as StdListener;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stage0_contract::ApiKey;
use stage0_tests::{Api, Authority, Stack, Team, command};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const AGENTS: [&str; 5] = ["claude-code", "codex", "cursor", "gemini", "opencode"];
/// The hook's own deadline in these tests, and what a slow machine may add to it.
const DEADLINE: &str = "3";
const HOOK_TIMEOUT: Duration = Duration::from_secs(20);

/// The event before a tool call.
fn call(agent: &str, tool: &str, arguments: &Value) -> Value {
    let groups = |event: &str| {
        json!({"hook_event_name": event, "session_id": "s-1", "cwd": "/work", "tool_name": tool,
            "tool_input": arguments, "tool_use_id": "call-1"})
    };
    match agent {
        "claude-code" | "codex" => groups("PreToolUse"),
        "cursor" => {
            let mut event = groups("preToolUse");
            event["conversation_id"] = json!("c-1");
            event
        }
        "gemini" => groups("BeforeTool"),
        _ => json!({"hook_event_name": "tool.execute.before", "tool": tool, "sessionID": "s-1", "callID": "call-1",
            "args": arguments, "directory": "/work"}),
    }
}

/// A call that the baseline allows: each agent's own tool that reads a file.
fn reading(agent: &str) -> Value {
    let (tool, argument) = match agent {
        "codex" => ("shell", json!({"command": ["cat", "README.md"]})),
        "cursor" => ("Read", json!({"file_path": "/work/README.md"})),
        "gemini" => ("read_file", json!({"file_path": "/work/README.md"})),
        "opencode" => ("read", json!({"filePath": "/work/README.md"})),
        _ => ("Read", json!({"file_path": "/work/README.md"})),
    };
    call(agent, tool, &argument)
}

struct Hook {
    agent: &'static str,
    flags: Vec<String>,
    state: tempfile::TempDir,
}

impl Hook {
    fn new(agent: &'static str, url: &str, ca: &Path, key: &Path) -> Self {
        let flags = [("--url", url.to_owned()), ("--ca", ca.display().to_string())];
        let mut flags: Vec<String> = flags.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
        flags.extend(["--key-file".to_owned(), key.display().to_string()]);
        flags.extend(["--deadline".to_owned(), DEADLINE.to_owned()]);
        Self { agent, flags, state: tempfile::tempdir().unwrap() }
    }

    fn run(&self, input: &[u8], more: &[&str]) -> Output {
        let mut child = command()
            .args(["guard", "hook", self.agent])
            .args(&self.flags)
            .args(["--state-dir", self.state.path().to_str().unwrap()])
            .args(more)
            .current_dir(self.state.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // The hook may answer before it has read everything.
        let _ = stdin.write_all(input);
        drop(stdin);
        child.wait_with_output().unwrap()
    }

    /// In the agent's form, with a text for people, and by the exit code too.
    #[track_caller]
    fn denies(&self, input: &[u8], more: &[&str], why: &str) {
        let begun = Instant::now();
        let output = self.run(input, more);
        assert!(begun.elapsed() < HOOK_TIMEOUT, "{} took {:?}: {why}", self.agent, begun.elapsed());
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{} {why}: {output:?}", self.agent);
        assert!(!told.trim().is_empty(), "{}: {why}", self.agent);
        let body: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{why}: {output:?}"));
        let said = match self.agent {
            "claude-code" | "codex" => &body["hookSpecificOutput"]["permissionDecision"],
            "cursor" => &body["permission"],
            _ => &body["decision"],
        };
        assert_eq!(said, "deny", "{} {why}: {body}", self.agent);
    }

    #[track_caller]
    fn allows(&self, input: &[u8]) {
        let output = self.run(input, &[]);
        assert_eq!(output.status.code(), Some(0), "{}: {output:?}", self.agent);
        let body: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(!body.to_string().contains("deny"), "{}: {body}", self.agent);
    }
}

/// A server that answers each request with these bytes, after a while.
async fn server(authority: &Authority, answer: Vec<u8>, after: Duration) -> (String, JoinHandle<()>) {
    let acceptor = authority.acceptor(&["localhost", "127.0.0.1"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let serving = async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut request = [0; 65_536];
                let _ = stream.read(&mut request).await;
                tokio::time::sleep(after).await;
                let _ = stream.write_all(&answer).await;
                let _ = stream.shutdown().await;
            });
        }
    };
    (url, tokio::spawn(serving))
}

fn http(status: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// A complete ALLOW, with one thing changed.
fn allow(change: impl FnOnce(&mut Value)) -> String {
    let mut body: Value = serde_json::from_str(include_str!("../../../contract/fixtures/check_response.json")).unwrap();
    body["decision"] = json!("GO");
    body["verdict"] = json!("ALLOW");
    body["meta"]["audit"] = json!("required");
    change(&mut body);
    body.to_string()
}

fn key_file(directory: &Path, key: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = directory.join("agent.key");
    std::fs::write(&path, key).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

async fn blocking(work: impl FnOnce() + Send + 'static) {
    tokio::task::spawn_blocking(work).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_server_does_no_agent_runs_the_tool_unless_it_is_a_complete_allow() {
    let authority = Authority::default();
    let directory = tempfile::tempdir().unwrap();
    let key = key_file(directory.path(), ApiKey::from_random([1; 10], [2; 20]).unwrap().expose());
    let none = Duration::ZERO;
    let answers = [
        ("500", http("500 Internal Server Error", "{}"), none),
        ("503", http("503 Service Unavailable", "{}"), none),
        ("401", http("401 Unauthorized", "{}"), none),
        ("a page", http("200 OK", "<html>it works</html>"), none),
        ("garbage", b"\x00\xff\x00garbage\r\n\r\n".to_vec(), none),
        ("an answer that breaks off", http("200 OK", &allow(|_| ()))[..200].to_vec(), none),
        ("an empty answer", http("200 OK", ""), none),
        ("a closed connection", Vec::new(), none),
        ("a slow answer", http("200 OK", &allow(|_| ())), Duration::from_secs(60)),
        ("201 with an ALLOW", http("201 Created", &allow(|_| ())), none),
        ("an ALLOW that is a NO_GO", http("200 OK", &allow(|body| body["decision"] = json!("NO_GO"))), none),
        ("an ALLOW without an id", http("200 OK", &allow(|body| body["request_id"] = json!(""))), none),
        ("an ALLOW of no policy", http("200 OK", &allow(|body| body["policy_version"] = json!(""))), none),
        ("an ALLOW that was not recorded", http("200 OK", &allow(|body| body["meta"]["audit"] = json!("none"))), none),
        ("a simulated ALLOW", http("200 OK", &allow(|body| body["meta"]["test_mode"] = json!(true))), none),
    ];
    for (why, answer, after) in answers {
        let (url, serving) = server(&authority, answer, after).await;
        let (ca, key) = (authority.file(), key.clone());
        // A slow answer is the same for all of them.
        let agents = if after == none { &AGENTS[..] } else { &AGENTS[..2] };
        blocking(move || {
            for agent in agents {
                Hook::new(agent, &url, &ca, &key).denies(reading(agent).to_string().as_bytes(), &[], why);
            }
        })
        .await;
        serving.abort();
    }
    // The harmless neighbour: nothing is changed, and no agent is refused.
    let (url, _serving) = server(&authority, http("200 OK", &allow(|_| ())), none).await;
    let (ca, key) = (authority.file(), key.clone());
    let closed =
        format!("https://127.0.0.1:{}", StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());

    blocking(move || {
        for agent in AGENTS {
            let event = reading(agent).to_string();
            Hook::new(agent, &url, &ca, &key).allows(event.as_bytes());
            let wrong_name = url.replace("127.0.0.1", "127.0.0.2");
            Hook::new(agent, &wrong_name, &ca, &key).denies(event.as_bytes(), &[], "a certificate for another name");
            Hook::new(agent, &closed, &ca, &key).denies(event.as_bytes(), &[], "no server");
        }
        let other = Authority::default();
        let wrong = Hook::new("claude-code", &url, &other.file(), &key);
        wrong.denies(reading("claude-code").to_string().as_bytes(), &[], "another authority's certificate");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_event_is_no_agent_runs_the_tool_unless_it_can_be_read() {
    let stack = Stack::build().dev().await;
    let (url, ca, directory) = (stack.urls[0].clone(), stack.ca(), tempfile::tempdir().unwrap());
    let key = key_file(directory.path(), stack.api.key.as_deref().unwrap());
    blocking(move || {
        for agent in AGENTS {
            let hook = Hook::new(agent, &url, &ca, &key);
            let event = reading(agent).to_string();
            hook.allows(event.as_bytes());
            hook.denies(b"", &[], "an empty event");
            hook.denies(&event.as_bytes()[..event.len() / 2], &[], "half of an event");
            hook.denies(b"[]", &[], "no object");
            hook.denies(b"\xff\xfe", &[], "no UTF-8");
            let large = call(agent, "Read", &json!({"file_path": "x".repeat(1_000_000)})).to_string();
            hook.denies(large.as_bytes(), &[], "1 MB of arguments");
            let twice = event.replacen('{', r#"{"hook_event_name":"Stop","#, 1);
            hook.denies(twice.as_bytes(), &[], "two names of the event");
            let unknown = event.replace("PreToolUse", "NewToolUse").replace("preToolUse", "newToolUse");
            let unknown = unknown.replace("BeforeTool", "DuringTool").replace("tool.execute.before", "tool.begin");
            hook.denies(unknown.as_bytes(), &[], "an event that this version does not know");
            hook.denies(event.as_bytes(), &["--no-such-flag"], "a wrong flag");
            hook.denies(event.as_bytes(), &["--table", "/no/such/table.toml"], "a table that is not there");
            hook.denies(event.as_bytes(), &["--key-file", "/no/such.key"], "a flag twice, or no key");
            let dangerous = match agent {
                "codex" => call(agent, "shell", &json!({"command": ["bash", "-lc", "git push --force"]})),
                "cursor" => call(agent, "Shell", &json!({"command": "git push --force"})),
                "gemini" => call(agent, "run_shell_command", &json!({"command": "git push --force"})),
                "opencode" => call(agent, "bash", &json!({"command": "git push --force"})),
                _ => call(agent, "Bash", &json!({"command": "git push --force"})),
            };
            hook.denies(dangerous.to_string().as_bytes(), &[], "what the policy defers");
            let own = call(agent, "a_tool_of_ours", &json!({"x": 1}));
            hook.denies(own.to_string().as_bytes(), &[], "a tool that no table knows");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_reports_outcomes_and_counts_and_stops_with_its_key() {
    let stack = Stack::build().dev().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent_with(&json!({"scopes": ["check", "outcomes:report"]})).await;
    let directory = tempfile::tempdir().unwrap();
    let key = key_file(directory.path(), agent.api.key.as_deref().unwrap());
    let (url, ca) = (stack.urls[0].clone(), stack.ca());
    let hook = std::sync::Arc::new(Hook::new("claude-code", &url, &ca, &key));
    let running = std::sync::Arc::clone(&hook);
    blocking(move || {
        running.allows(reading("claude-code").to_string().as_bytes());
        let mut ended = reading("claude-code");
        ended["hook_event_name"] = json!("PostToolUse");
        ended["tool_response"] = json!({"content": "x"});
        running.allows_nothing(ended.to_string().as_bytes());
        // A call that no hook saw before.
        ended["tool_use_id"] = json!("call-2");
        running.allows_nothing(ended.to_string().as_bytes());
        running.allows_nothing(json!({"hook_event_name": "SessionEnd", "session_id": "s-1"}).to_string().as_bytes());
    })
    .await;
    let decisions = team.admin.decisions("outcome=any").await;
    assert_eq!(decisions.len(), 1, "{decisions:#?}");
    let decision = &decisions[0];
    assert_eq!((&decision["outcome"]["status"], &decision["run_id"]), (&json!("succeeded"), &json!("s-1")));
    assert_eq!(decision["outcome"]["tool_call_id"], "call-1");
    let guards = team.admin.get("/v1/guards").await.expect(200);
    let guard = &guards["items"][0];
    assert_eq!(
        (&guard["kind"], &guard["asked"], &guard["ran_undecided"]),
        (&json!("claude-code"), &json!(1), &json!(1))
    );
    let line = team.admin.get("/v1/decisions/export").await.text;
    assert!(!line.contains("README.md"), "no argument is in the log");

    assert_eq!(team.admin.delete(&format!("/v1/keys/{}", agent.key_id)).await.status, 204);
    let api = Api::new(&url, &ca, agent.api.key.as_deref());
    stage0_backplane::testing::wait_for("the key to end", HOOK_TIMEOUT, async || {
        api.check(&Api::harmless()).await.status == 401
    })
    .await;
    blocking(move || hook.denies(reading("claude-code").to_string().as_bytes(), &[], "a revoked key")).await;
}

impl Hook {
    /// The answer to an event that asks nothing.
    #[track_caller]
    fn allows_nothing(&self, input: &[u8]) {
        let output = self.run(input, &[]);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0), "{output:?}");
    }
}

/// Runs a command as agents do: by a shell, with the event on standard input.
fn by_shell(line: &str, directory: &Path, input: &[u8]) -> Output {
    let mut shell = std::process::Command::new("/bin/sh");
    shell.args(["-c", line]).current_dir(directory).env_clear().env("HOME", directory);
    shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = shell.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_installed_hook_denies_without_its_program_and_whatever_lies_in_the_project() {
    let stack = Stack::build().dev().await;
    let (url, ca, directory) = (stack.urls[0].clone(), stack.ca(), tempfile::tempdir().unwrap());
    let key = key_file(directory.path(), stack.api.key.as_deref().unwrap());
    let data = stack.data();
    blocking(move || {
        let home = directory.path().join("home");
        let project = directory.path().join("project");
        std::fs::create_dir_all(&home).unwrap();
        std::fs::create_dir_all(project.join(".stage0")).unwrap();
        // A project that brings a server and an authority of its own.
        let dev = std::fs::read_to_string(data.join("dev.json")).unwrap();
        std::fs::write(project.join(".stage0/dev.json"), dev).unwrap();
        let program = directory.path().join("my program");
        // By a process of its own: a child of another test would inherit the open file, and it could not be executed.
        let copied = std::process::Command::new("cp").arg(stage0_tests::binary()).arg(&program).status().unwrap();
        assert!(copied.success());
        let stage0 = |arguments: &[&str]| {
            let mut command = std::process::Command::new(&program);
            let output = command.args(arguments).current_dir(&project).env_clear().env("HOME", &home).output().unwrap();
            (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
        };
        let (ca, key) = (ca.to_str().unwrap().to_owned(), key.to_str().unwrap().to_owned());
        let server = ["--url", url.as_str(), "--ca", ca.as_str(), "--key-file", key.as_str()];
        for agent in ["claude-code", "codex", "gemini", "cursor", "opencode"] {
            let with = |words: &[&str]| words.iter().chain(&server).map(|w| (*w).to_owned()).collect::<Vec<_>>();
            let install = with(&["guard", "install", agent]);
            let install: Vec<&str> = install.iter().map(String::as_str).collect();
            assert_eq!(stage0(&install).0, Some(0), "{agent}: {:?}", stage0(&install));
            let (code, said, _) = stage0(&["guard", "doctor", agent]);
            assert_eq!(code, Some(0), "{agent}: {said}");
        }
        let settings: Value =
            serde_json::from_str(&std::fs::read_to_string(home.join(".claude/settings.json")).unwrap()).unwrap();
        let line = settings["hooks"]["PreToolUse"][0]["hooks"][0]["command"].as_str().unwrap().to_owned();
        assert!(!line.contains(std::fs::read_to_string(&key).unwrap().trim()), "no key in the settings");
        let event = reading("claude-code").to_string();
        let code = |line: &str| by_shell(line, &project, event.as_bytes()).status.code();
        assert_eq!(code(&line), Some(0));
        // Without a server of its own the hook does not take the project's.
        let bare = format!("'{}' guard hook claude-code", program.display());
        assert_eq!(code(&bare), Some(2));
        let other_ca = format!("{bare} --url {url} --key-file '{key}'");
        assert_eq!(code(&other_ca), Some(2), "the project's authority is not trusted");
        assert_eq!(code(&format!("{line} --help")), Some(0), "the shell takes no further words");
        assert_eq!(code(&format!("{bare} --help")), Some(2));
        assert_eq!(code(&format!("{bare} >&-")), Some(2), "no standard output");
        std::fs::remove_file(&program).unwrap();
        let gone = by_shell(&line, &project, event.as_bytes());
        assert_eq!(gone.status.code(), Some(2), "{gone:?}");
        assert!(!gone.stderr.is_empty());
        std::fs::write(&program, "").unwrap();
        assert_eq!(code(&line), Some(2), "it cannot be executed");
    })
    .await;
}
