//! `stage0 guard mcp` before a real server process, asking a real `stage0 dev`: killed, frozen, revoked and approved.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use stage0_tests::{Agent, Stack, Team, binary};
use tempfile::TempDir;

const WAIT: Duration = Duration::from_secs(30);

const TABLE: &str = r#"
[context]
actor_role = "platform_admin"
[[mcp]]
server = "files"
tool = "read_*"
effects = ["read"]
[[mcp]]
server = "files"
tool = "deploy"
effects = ["deploy"]
environment = "staging"
"#;

/// Lists three tools, and leaves a line in `ran` when one runs.
const SERVER: &str = r#"
echo $$ > "$1/pid"
umask > "$1/umask"
while IFS= read -r line; do
  id=$(printf '%s' "$line" | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
  case $line in
    *'"tools/list"'*) result='{"tools":[{"name":"read_file"},{"name":"deploy"},{"name":"odd"}]}' ;;
    *'"tools/call"'*) echo ran >> "$1/ran"; result='{"content":[{"type":"text","text":"done"}]}' ;;
    *) result='{}' ;;
  esac
  [ -z "$id" ] || printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$result"
done
"#;

struct Guarded {
    dir: TempDir,
    child: Child,
    to: Option<ChildStdin>,
    from: Receiver<String>,
}

impl Guarded {
    fn start(stack: &Stack, agent: &Agent) -> Self {
        Self::start_beside(stack, agent, None)
    }

    /// As [`Self::start`], with the state of the guards in this directory.
    fn start_beside(stack: &Stack, agent: &Agent, state: Option<&Path>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = state.map_or_else(|| dir.path().join("state"), Path::to_owned);
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (table, server) = (file("table.toml", TABLE), file("server.sh", SERVER));
        let key = private(&file("key", agent.api.key.as_deref().unwrap()));
        let mut command = Command::new(binary());
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).current_dir(dir.path());
        command.args(["guard", "mcp", "--name", "files", "--url", &stack.urls[0], "--ca"]).arg(stack.ca());
        command.arg("--key-file").arg(key);
        command.arg("--table").arg(table).arg("--pins").arg(state.join("pins.json"));
        command.args(["--", "sh"]).arg(server).arg(dir.path());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, from) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut guarded = Self { to: child.stdin.take(), dir, child, from };
        let list = guarded.ask(1, "tools/list", &json!({}));
        assert!(list["result"]["tools"].is_array(), "{list}");
        guarded
    }

    fn ask(&mut self, id: u64, method: &str, params: &Value) -> Value {
        let message = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        writeln!(self.to.as_mut().unwrap(), "{message}").unwrap();
        let line = self.from.recv_timeout(WAIT).expect("no answer in time");
        let answer: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(answer["id"], id, "{answer}");
        answer
    }

    fn call(&mut self, id: u64, tool: &str, arguments: &Value) -> Value {
        self.ask(id, "tools/call", &json!({"name": tool, "arguments": arguments}))
    }

    /// Closes its input, and waits for its end in order.
    fn end(&mut self) {
        self.to = None;
        assert!(self.child.wait().unwrap().success());
    }

    fn runs(&self) -> usize {
        std::fs::read_to_string(self.dir.path().join("ran")).unwrap_or_default().lines().count()
    }

    fn server(&self) -> Pid {
        let text = std::fs::read_to_string(self.dir.path().join("pid")).unwrap();
        Pid::from_raw(text.trim().parse().unwrap()).unwrap()
    }

    fn server_is_alive(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.server().as_raw_nonzero()));
        stat.is_ok_and(|stat| !stat.contains(") Z"))
    }

    fn wait_for_the_servers_end(&self) {
        let until = Instant::now() + WAIT;
        while self.server_is_alive() {
            assert!(Instant::now() < until, "the server is still alive");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn private(path: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path.to_owned()
}

fn is_refused(answer: &Value) -> bool {
    answer["result"]["isError"] == true || answer["error"]["code"].is_i64()
}

#[tokio::test]
async fn an_allowed_tool_runs_once_is_recorded_and_its_outcome_is_reported() {
    let stack = Stack::build().dev().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent_with(&json!({"scopes": ["check", "outcomes:report"]})).await;
    let mut guarded = Guarded::start(&stack, &agent);
    let done = guarded.call(2, "read_file", &json!({"path": "a.txt"}));
    assert_eq!(done["result"]["content"][0]["text"], "done", "{done}");
    assert_eq!(guarded.runs(), 1);
    let until = Instant::now() + WAIT;
    while team.admin.decisions("outcome=succeeded").await.is_empty() {
        assert!(Instant::now() < until, "no outcome is reported");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let guards = team.admin.get("/v1/guards").await.expect(200);
    assert_eq!((&guards["items"][0]["kind"], &guards["items"][0]["state"]), (&json!("mcp"), &json!("alive")));
    guarded.end();
    let guards = team.admin.get("/v1/guards").await.expect(200);
    assert_eq!(guards["items"][0]["state"], "ended", "{guards:#}");
}

/// Id, state and asked calls of each guard, after there are so many.
async fn guards(team: &Team, count: usize) -> Vec<(String, String, u64)> {
    let until = Instant::now() + WAIT;
    loop {
        let page = team.admin.get("/v1/guards").await.expect(200);
        let text = |guard: &Value, name: &str| guard[name].as_str().unwrap().to_owned();
        let all = page["items"].as_array().unwrap().iter();
        let all = all.map(|one| (text(one, "guard_id"), text(one, "state"), one["asked"].as_u64().unwrap()));
        let mut all: Vec<_> = all.collect();
        if all.len() == count {
            all.sort();
            return all;
        }
        assert!(Instant::now() < until, "{page:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn two_guards_of_one_server_are_two_rows_and_no_neighbour_hides_one_that_was_killed() {
    let stack = Stack::build().dev().await;
    let team = Team::caller(&stack).await;
    let (agent, state) = (team.agent().await, tempfile::tempdir().unwrap());
    let start = || Guarded::start_beside(&stack, &agent, Some(state.path()));
    let mut killed = start();
    let (killed_id, ..) = guards(&team, 1).await.remove(0);
    let mut neighbour = start();
    neighbour.call(2, "read_file", &json!({}));
    let both = guards(&team, 2).await;
    let (neighbour_id, ..) = both.iter().find(|(id, ..)| *id != killed_id).unwrap().clone();
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    neighbour.end();
    let row = |rows: &[(String, String, u64)], id: &str| rows.iter().find(|(own, ..)| own == id).cloned().unwrap();
    let both = guards(&team, 2).await;
    assert_eq!(row(&both, &killed_id).1, "alive", "it did not end in order: it turns silent when its report is due");
    assert_eq!(row(&both, &neighbour_id), (neighbour_id.clone(), "ended".to_owned(), 1));

    let mut next = start();
    next.call(2, "read_file", &json!({}));
    next.end();
    let both = guards(&team, 2).await;
    assert_eq!(row(&both, &neighbour_id).2, 2, "the next one goes on where the one before ended: {both:?}");
    assert_eq!(row(&both, &killed_id).1, "alive");
}

#[tokio::test]
async fn a_tool_that_no_table_knows_and_a_deployment_without_approval_do_not_run() {
    let stack = Stack::build().dev().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent().await;
    let mut guarded = Guarded::start(&stack, &agent);
    for (id, tool) in [(2, "odd"), (3, "deploy")] {
        let refused = guarded.call(id, tool, &json!({}));
        assert!(is_refused(&refused), "{tool}: {refused}");
    }
    assert_eq!(guarded.runs(), 0);
    assert!(!is_refused(&guarded.call(4, "read_file", &json!({}))));
}

#[tokio::test]
async fn a_deployment_that_a_person_approved_runs_once() {
    let stack = Stack::build().dev().await;
    let team = Team::verified(&stack).await;
    let (agent, ada) = (team.agent().await, team.member("Ada", &[]).await);
    let mut guarded = Guarded::start(&stack, &agent);
    let service = json!({"service": "payments"});
    let deferred = guarded.call(2, "deploy", &service);
    assert!(is_refused(&deferred), "{deferred}");
    let text = deferred["result"]["content"][0]["text"].as_str().unwrap();
    let id = &deferred["result"]["_meta"]["stage0/decision"]["approval_id"];
    let command = format!("`stage0 approvals approve {} --key-file KEY`", id.as_str().unwrap());
    assert!(text.contains(&command), "{text}");
    let shown = ada.api.approval(&json!({"id": id})).await.expect(200);
    assert!(!is_refused(&guarded.call(3, "read_file", &json!({}))), "others go on meanwhile");
    ada.api.approve(&shown).await.expect(200);
    assert!(is_refused(&guarded.call(4, "deploy", &json!({"service": "ledger"}))), "it is of these arguments");
    assert_eq!(guarded.runs(), 1);
    let done = guarded.call(5, "deploy", &service);
    assert!(!is_refused(&done), "{done}");
    assert_eq!(guarded.runs(), 2);
    assert!(is_refused(&guarded.call(6, "deploy", &service)), "it is used up");
    assert_eq!(guarded.runs(), 2);
}

#[tokio::test]
async fn while_the_server_is_frozen_killed_or_the_key_revoked_no_tool_runs() {
    let mut stack = Stack::build().dev().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent().await;
    let mut guarded = Guarded::start(&stack, &agent);
    assert!(!is_refused(&guarded.call(2, "read_file", &json!({}))));

    for (_, process) in stack.processes() {
        process.freeze();
    }
    let frozen = guarded.call(3, "read_file", &json!({}));
    for (_, process) in stack.processes() {
        process.thaw();
    }
    assert!(is_refused(&frozen) && frozen.to_string().contains("Do not retry blindly"), "{frozen}");
    assert_eq!(guarded.runs(), 1);
    assert!(!is_refused(&guarded.call(4, "read_file", &json!({}))), "it goes on when the server does");

    assert_eq!(stack.operator.delete(&format!("/v1/keys/{}", agent.key_id)).await.status, 204);
    assert!(is_refused(&guarded.call(5, "read_file", &json!({}))));
    stack.kill_dev();
    assert!(is_refused(&guarded.call(6, "read_file", &json!({}))));
    assert_eq!(guarded.runs(), 2);
}

#[tokio::test]
async fn the_guarded_server_dies_with_the_guard_and_makes_files_as_without_it() {
    let stack = Stack::build().dev().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent().await;
    let mut guarded = Guarded::start(&stack, &agent);
    let own = std::process::Command::new("sh").args(["-c", "umask"]).output().unwrap();
    assert_eq!(std::fs::read(guarded.dir.path().join("umask")).unwrap(), own.stdout);
    assert!(guarded.server_is_alive());
    guarded.child.kill().unwrap();
    guarded.wait_for_the_servers_end();

    let mut guarded = Guarded::start(&stack, &agent);
    kill_process(Pid::from_child(&guarded.child), Signal::TERM).unwrap();
    guarded.child.wait().unwrap();
    guarded.wait_for_the_servers_end();
}

#[tokio::test]
async fn a_guard_that_cannot_begin_starts_no_server() {
    let stack = Stack::build().dev().await;
    let agent = Team::caller(&stack).await.agent().await;
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, agent.api.key.as_deref().unwrap()).unwrap();
    let (key, ca) = (private(&key), stack.ca());
    let run = |arguments: &[&str]| {
        let mut command = Command::new(binary());
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).current_dir(dir.path());
        command.args(["guard", "mcp", "--pins", "pins.json", "--url", &stack.urls[0], "--ca"]).arg(&ca);
        command.args(arguments).args(["--", "sh", "-c", "echo > ran"]);
        command.stdin(Stdio::null()).output().unwrap()
    };
    let key = ["--key-file", key.to_str().unwrap()];
    for more in [vec!["--name", "a__b"], vec!["--table", "not-there.toml"], vec!["--guard-id", "a b"]] {
        let output = run(&[&key[..], &more].concat());
        assert!(!output.status.success() && output.stdout.is_empty(), "{more:?}: {output:?}");
        assert!(!dir.path().join("ran").exists(), "{more:?}");
    }
    assert!(!run(&[]).status.success() && !dir.path().join("ran").exists(), "it has no key");
    assert!(run(&key).status.success() && dir.path().join("ran").exists());
}
