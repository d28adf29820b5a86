//! An agent in Python that is deferred, waits, and acts once two members have approved through the command line.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::{Value, json};
use stage0_tests::{Agent, Api, Member, Stack, Team, two_release_managers};
use tempfile::TempDir;

use crate::docs_examples::{blocks, document};

struct Loop {
    directory: TempDir,
    process: Child,
    lines: BufReader<ChildStdout>,
}

impl Loop {
    fn start(stack: &Stack, agent: &Agent, body: &Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        std::fs::write(file("key"), agent.api.key.as_ref().unwrap()).unwrap();
        std::fs::write(file("request.json"), body.to_string()).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/approval_loop.py");
        let mut process = Command::new("python3")
            .arg(script)
            .args([&agent.api.url, stack.ca().to_str().unwrap()])
            .args([file("key"), file("request.json"), file("acted")])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("python3, which scripts/test.sh asks for");
        let lines = BufReader::new(process.stdout.take().unwrap());
        Self { directory, process, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// The approval that it waits for: its id and its digest.
    fn waits_for(&mut self) -> (String, String) {
        let line = self.line();
        let (id, digest) = line.split_once(' ').unwrap_or_else(|| panic!("an id and a digest: {line:?}"));
        (id.to_owned(), digest.to_owned())
    }

    /// What it did, by the request ids of the checks that allowed it; and how it ended.
    fn end(self) -> (Vec<String>, bool, String) {
        let output = self.process.wait_with_output().unwrap();
        let acted: PathBuf = self.directory.path().join("acted");
        let acted = std::fs::read_to_string(acted).unwrap_or_default();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (acted.lines().map(str::to_owned).collect(), output.status.success(), said)
    }
}

/// Shows it as the member sees it, and answers with the digest of what was shown.
fn answer(stack: &Stack, member: &Member, verb: &str, id: &str) {
    let run = |arguments: &[&str]| {
        let output = member.api.cli(&stack.ca(), arguments);
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    };
    let shown = run(&["approvals", "show", id]);
    for part in ["Deploy the payments service", "argo_cd", "deploy"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    let shown: Value = serde_json::from_str(&run(&["approvals", "show", id, "--json"])).unwrap();
    let digest = shown["action_digest"].as_str().unwrap();
    run(&["approvals", verb, id, "--yes", "--digest", digest, "--reason", "read it"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_in_python_is_deferred_waits_and_acts_once_after_two_members_approved_by_command() {
    let packs = two_release_managers();
    let stack = Stack::build().policies(&packs).dev().await;
    let team = Team::verified(&stack).await;
    let agent = team.agent().await;
    let members = [team.member("Ada", &["release-managers"]).await, team.member("Bob", &["release-managers"]).await];
    let mut started = Loop::start(&stack, &agent, &Api::deployment());
    let (id, digest) = started.waits_for();
    for member in &members {
        answer(&stack, member, "approve", &id);
    }
    assert_eq!(started.line(), "done");
    let (acted, ended_well, said) = started.end();
    assert!(ended_well, "{said}");
    assert_eq!(acted.len(), 1, "it acts once");
    agent.api.until(&json!({"id": id}), "consumed").await;
    let shown = agent.api.approval(&json!({"id": id})).await.expect(200);
    assert_eq!((&shown["status"], &shown["outcome"]["status"]), (&json!("consumed"), &json!("succeeded")));
    assert_eq!((&shown["used_by"], &shown["action_digest"]), (&json!(acted[0]), &json!(digest)));
    assert_eq!(team.admin.decisions("verdict=ALLOW").await.len(), 1);

    // A second one asks again, and is denied.
    let mut started = Loop::start(&stack, &agent, &Api::deployment());
    let (next, _) = started.waits_for();
    assert_ne!(next, id);
    answer(&stack, &members[1], "deny", &next);
    let (acted, ended_well, said) = started.end();
    assert!(acted.is_empty() && !ended_well && said.contains("denied"), "{acted:?} {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_of_the_approvals_document_waits_and_acts_once_approved() {
    let stack = Stack::build().dev().await;
    let body = json!({"account": stack.account, "name": "Ada", "groups": []});
    let ada = stack.operator.invite(&body).await;
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(stack.data(), directory.path().join(".stage0")).unwrap();
    let scripts = blocks(&document("approvals.md"), "python");
    let script = scripts.iter().find(|block| block.starts_with("# approved_agent.py")).expect("the complete loop");
    let mut process = Command::new("python3")
        .args(["-c", script])
        .current_dir(directory.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python3, which scripts/test.sh asks for");
    let mut said = String::new();
    BufReader::new(process.stderr.take().unwrap()).read_line(&mut said).unwrap();
    let id = said.trim().strip_prefix("waits for ").unwrap_or_else(|| panic!("an approval: {said:?}"));
    let shown = ada.api.approval(&json!({"id": id})).await.expect(200);
    ada.api.approve(&shown).await.expect(200);
    let output = process.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said.matches("acts: ").count(), 1, "{said}");
    assert!(output.status.success() && said.contains("ALLOW"), "{said}");
    assert_eq!(stack.api.approval(&shown).await.expect(200)["outcome"]["status"], "succeeded");
}
