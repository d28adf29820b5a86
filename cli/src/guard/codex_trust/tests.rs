//! Against a double: a real process that speaks the lines of `codex app-server`. scripts/agents.sh runs the real one.

use stage0_guard::Agent;
use tempfile::TempDir;

use super::*;

const COMMAND: &str = "/bin/sh -c 'stage0 guard hook codex || exit 2'";
/// For answers that come: longer than any machine needs.
const LONG: Duration = Duration::from_secs(60);
/// For answers that do not come.
const SHORT: Duration = Duration::from_millis(300);

/// What the double answers to `hooks/list`.
type Answer = Box<dyn FnOnce(&Double) -> Value>;

/// A `codex` that is a shell script, and the settings file that it speaks of.
struct Double(TempDir);

impl Double {
    fn new(script: &str) -> Self {
        let double = Self(tempfile::tempdir().unwrap());
        fs::write(double.file(), "{}").unwrap();
        let script = format!("#!/bin/sh\n[ \"$1\" = app-server ] || exit 9\ncd '{}'\n{script}", double.dir().display());
        // By a process of its own: a child of another test would inherit the open file, and it could not be executed.
        let mut cat = Command::new("/bin/sh");
        cat.args(["-c", "cat > \"$0\" && chmod 755 \"$0\"", &double.program()]).stdin(Stdio::piped());
        let mut cat = cat.spawn().unwrap();
        cat.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(cat.wait().unwrap().success());
        double
    }

    /// Answers as Codex does: a notification before each answer, and the list at the end.
    fn answering(result: impl FnOnce(&Self) -> Value) -> Self {
        let double = Self::new(
            "read -r one; echo \"$one\" > seen; echo '{\"method\":\"warning\",\"params\":{\"id\":1}}'\n\
             echo '{\"id\":1,\"result\":{}}'; read -r two; echo \"$two\" >> seen\n\
             read -r three; echo \"$three\" >> seen; echo '{\"id\":2,\"method\":\"question\"}'\n\
             cat answer; read -r rest",
        );
        let answer = result(&double);
        fs::write(double.dir().join("answer"), format!("{answer}\n")).unwrap();
        double
    }

    fn dir(&self) -> &Path {
        self.0.path()
    }

    fn program(&self) -> String {
        self.dir().join("codex").to_str().unwrap().to_owned()
    }

    fn file(&self) -> PathBuf {
        self.dir().join("hooks.json")
    }

    fn findings(&self, timeout: Duration) -> Vec<String> {
        let findings = asked_of(&self.program(), timeout, Profile::of(Agent::Codex), &self.file(), COMMAND);
        findings.iter().map(ToString::to_string).collect()
    }

    /// The finding about the hook that asks.
    fn finding(&self, timeout: Duration) -> String {
        self.findings(timeout).remove(0)
    }

    fn hook(&self, event: &str, trust: &str) -> Value {
        json!({"key": "k", "eventName": event, "handlerType": "command", "command": COMMAND, "matcher": "*",
            "sourcePath": self.file(), "source": "user", "enabled": true, "isManaged": false, "trustStatus": trust})
    }
}

fn list(hooks: &[Value]) -> Value {
    json!({"id": 2, "result": {"data": [{"cwd": "/", "hooks": hooks, "warnings": [], "errors": []}]}})
}

#[test]
fn a_trusted_hook_is_good_and_codex_was_asked_about_the_working_directory() {
    for trust in ["trusted", "managed"] {
        let double = Double::answering(|double| list(&[double.hook("preToolUse", trust)]));
        let found = double.findings(LONG);
        assert!(found.len() == 1 && found[0].starts_with("ok    trust"), "{trust}: {found:?}");
        let seen = fs::read_to_string(double.dir().join("seen")).unwrap();
        let seen: Vec<Value> = seen.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let methods: Vec<&str> = seen.iter().map(|message| message["method"].as_str().unwrap()).collect();
        assert_eq!(methods, ["initialize", "initialized", "hooks/list"]);
        assert_eq!(seen[2]["params"], json!({"cwds": [std::env::current_dir().unwrap()]}));
        assert!(seen[0]["params"]["clientInfo"]["name"].is_string());
    }
}

#[test]
fn a_hook_that_codex_skips_is_a_failure_and_says_what_to_do() {
    for (change, part) in [
        (json!({"trustStatus": "untrusted"}), "does not trust the hook yet"),
        (json!({"trustStatus": "modified"}), "was changed after it was trusted"),
        (json!({"enabled": false}), "switched off in Codex"),
        (json!({"enabled": false, "trustStatus": "untrusted"}), "switched off in Codex"),
    ] {
        let double = Double::answering(|double| {
            let mut hook = double.hook("preToolUse", "trusted");
            hook.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            list(&[hook])
        });
        let found = double.finding(LONG);
        assert!(found.starts_with("BAD   trust") && found.contains(part), "{found}");
        assert!(found.contains("start `codex`, open `/hooks`"), "{found}");
    }
}

#[test]
fn another_hook_that_is_trusted_does_not_make_ours_trusted() {
    for (name, value) in [
        ("command", json!("audit")),
        ("command", Value::Null),
        ("sourcePath", json!("/etc/passwd")),
        ("eventName", json!("postToolUse")),
    ] {
        let double = Double::answering(|double| {
            let mut other = double.hook("preToolUse", "trusted");
            other[name] = value.clone();
            list(&[other])
        });
        let found = double.finding(LONG);
        assert!(found.starts_with("BAD   trust        Codex runs no hook of `"), "{name}: {found}");
    }
    let double = Double::answering(|double| {
        list(&[double.hook("preToolUse", "trusted"), double.hook("preToolUse", "untrusted")])
    });
    assert!(double.finding(LONG).starts_with("BAD"), "one of the two is skipped");
}

#[test]
fn hooks_that_only_report_are_a_warning() {
    let double = Double::answering(|double| {
        list(&[
            double.hook("preToolUse", "trusted"),
            double.hook("postToolUse", "untrusted"),
            double.hook("sessionStart", "trusted"),
        ])
    });
    let found = double.findings(LONG);
    assert!(found[0].starts_with("ok"), "{found:?}");
    assert!(found[1].starts_with("look  trust        Codex skips the hooks at PostToolUse: "), "{found:?}");
}

#[test]
fn settings_that_codex_cannot_read_are_named() {
    let fault = json!({"path": "/x", "message": "config.toml:14:9: key\u{1b}[2J with no value"});
    let double = Double::answering(
        |_| json!({"id": 2, "result": {"data": [{"cwd": "/", "hooks": [], "warnings": [], "errors": [fault]}]}}),
    );
    let found = double.finding(LONG);
    assert!(found.starts_with("BAD") && found.contains(r"(config.toml:14:9: key\u{1b}[2J with no value)"), "{found}");
}

#[test]
fn an_answer_that_cannot_be_understood_is_not_checked_and_never_good() {
    let unknown_method = json!({"id": 2, "error": {"code": -32600, "message": "unknown variant `hooks/list`"}});
    let refused = json!({"id": 2, "error": {"code": -32603, "message": "out of\norder"}});
    let trusted = |double: &Double| list(&[double.hook("preToolUse", "trusted")]);
    let without = |name: &'static str| {
        move |double: &Double| {
            let mut answer = trusted(double);
            answer["result"]["data"][0]["hooks"][0].as_object_mut().unwrap().remove(name);
            answer
        }
    };
    let cases: [(Answer, &str); 9] = [
        (Box::new(move |_| unknown_method), "this version of Codex does not answer `hooks/list`; update it"),
        (Box::new(move |_| refused), r"refuses to answer: out of\u{a}order"),
        (Box::new(|_| json!({"id": 2, "result": {}})), "a form that is unknown"),
        (Box::new(|_| json!({"id": 2, "result": {"data": []}})), "a form that is unknown"),
        (Box::new(without("trustStatus")), "a form that is unknown"),
        (Box::new(without("enabled")), "a form that is unknown"),
        (Box::new(|double| list(&[double.hook("preToolUse", "probably")])), "calls the hook `probably`"),
        (Box::new(|_| json!({"id": 2})), "what is no message"),
        (Box::new(|_| json!("trusted")), "what is no message"),
    ];
    for (answer, part) in cases {
        let double = Double::answering(answer);
        let found = double.finding(LONG);
        assert!(found.starts_with("skip  trust        not checked: ") && found.contains(part), "{part}: {found}");
        assert!(found.contains("open `/hooks`"), "what to do all the same: {found}");
    }
}

#[test]
fn an_endless_broken_or_missing_answer_ends_the_question() {
    let start = Instant::now();
    for (script, timeout, part) in [
        ("exit 0", LONG, "ended without an answer"),
        ("kill -9 $$", LONG, "ended without an answer"),
        ("read -r one; echo '{\"id\":1,\"result\":{}}'; exit 3", LONG, "ended without an answer"),
        ("echo 'Welcome to Codex!'; sleep 600", LONG, "what is no message"),
        ("echo '{\"id\":1,\"id\":1,\"result\":{}}'; sleep 600", LONG, "what is no message"),
        ("printf '\\377\\n'; sleep 600", LONG, "what is no message"),
        ("tr '\\0' x < /dev/zero", LONG, "more than 4194304 bytes"),
        ("yes '{\"method\":\"news\"}'", LONG, "more than 4194304 bytes"),
        ("sleep 600", SHORT, "did not answer in time"),
        ("printf '{\"id\":1,'; sleep 600", SHORT, "did not answer in time"),
        ("read -r one; echo '{\"id\":1,\"result\":{}}'; sleep 600", SHORT, "did not answer in time"),
        ("while echo '{\"method\":\"news\"}'; do sleep 0.05; done", SHORT, "did not answer in time"),
    ] {
        let found = Double::new(script).finding(timeout);
        assert!(found.starts_with("skip") && found.contains(part), "{script}: {found}");
    }
    assert!(start.elapsed() < LONG, "no wait is for what does not come");
    let missing = asked_of("no-such-codex", LONG, Profile::of(Agent::Codex), Path::new("/x"), COMMAND);
    assert!(missing[0].to_string().contains("not checked: `no-such-codex` is not on the PATH"), "{missing:?}");
}

#[test]
fn what_codex_started_ends_with_it() {
    let double = Double::new("sleep 600 & echo $! > pid; echo 'no message'; wait");
    assert!(double.finding(LONG).contains("what is no message"));
    let pid = fs::read_to_string(double.dir().join("pid")).unwrap();
    let is_gone = || {
        let state = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        state.is_err() || state.is_ok_and(|state| state.contains(") Z"))
    };
    let until = Instant::now() + LONG;
    while !is_gone() {
        assert!(Instant::now() < until, "process {pid} still runs");
        thread::sleep(Duration::from_millis(10));
    }
}
