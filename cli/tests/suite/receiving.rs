//! `stage0 receiver` over HTTPS, with deliveries signed by the library of the Standard Webhooks project.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver as Lines, channel};
use std::time::Duration;

use jiff::Timestamp;
use reqwest::{Certificate, Client, Method, RequestBuilder};
use serde_json::{Value, json};
use stage0_gateway::{TlsFiles, dev_tls};
use standardwebhooks::Webhook;

use crate::harness::{Dev, ended, stage0, write_secret};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// A running receiver, and a client that trusts it.
struct Receiving {
    child: Child,
    url: String,
    page: String,
    lines: Lines<String>,
    client: Client,
    runtime: tokio::runtime::Runtime,
    secret_file: PathBuf,
}

/// A delivery before it is sent.
struct Delivery {
    id: String,
    at: i64,
    body: String,
    signature: String,
}

fn command(dir: &Path, tls: &TlsFiles) -> Command {
    let mut command = stage0(&["receiver", "--listen", "127.0.0.1:0", "--page-listen", "127.0.0.1:0"]);
    command.arg("--tls-cert").arg(&tls.cert).arg("--tls-key").arg(&tls.key);
    command.arg("--secret-file").arg(dir.join("hook.secret"));
    command
}

impl Receiving {
    /// Writes the secrets to the secret file; without secrets there is no file.
    fn start(dir: &Path, secrets: &[&str]) -> Self {
        let (tls, ca) = dev_tls(&dir.join("tls")).unwrap();
        let secret_file = dir.join("hook.secret");
        if !secrets.is_empty() {
            write_secret(&secret_file, &secrets.join("\n"));
        }
        let mut child = command(dir, &tls).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let printed = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || printed.lines().try_for_each(|line| sender.send(line.unwrap())));
        let url = |start: &str| {
            let line = lines.recv_timeout(Duration::from_secs(60)).unwrap();
            line.strip_prefix(start).unwrap().to_owned()
        };
        let (url, page) = (url("receives at "), url("shows it at "));
        let ca = Certificate::from_pem(&std::fs::read(ca).unwrap()).unwrap();
        let client = Client::builder().tls_certs_only([ca]).build().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { child, url, page, lines, client, runtime, secret_file }
    }

    fn request(&self, delivery: &Delivery) -> RequestBuilder {
        let post = self.client.post(format!("{}hook", self.url)).header("webhook-id", &delivery.id);
        let post = post.header("webhook-timestamp", delivery.at).header("webhook-signature", &delivery.signature);
        post.body(delivery.body.clone())
    }

    fn status(&self, request: RequestBuilder) -> u16 {
        self.runtime.block_on(request.send()).unwrap().status().as_u16()
    }

    fn deliver(&self, delivery: &Delivery) -> u16 {
        self.status(self.request(delivery))
    }

    /// The next line of standard output, without its time.
    fn line(&self) -> String {
        let line = self.lines.recv_timeout(Duration::from_secs(60)).unwrap();
        let (time, rest) = line.split_once("  ").unwrap();
        assert_eq!(time.len(), 8, "{line}");
        rest.to_owned()
    }

    fn page(&self) -> Value {
        let answer = self.runtime.block_on(async {
            self.client.get(format!("{}decisions.json", self.page)).send().await.unwrap().text().await.unwrap()
        });
        serde_json::from_str(&answer).unwrap()
    }

    /// Stops the process. Returns its status, its log, and the lines that were not read.
    fn stop(mut self) -> (ExitStatus, String, Vec<String>) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap(), log, self.lines.iter().collect())
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        // Both fail if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signed(id: &str, body: &Value, secret: &str, at: i64) -> Delivery {
    let body = body.to_string();
    let signature = Webhook::new(secret).unwrap().sign(id, at, body.as_bytes()).unwrap();
    Delivery { id: id.to_owned(), at, body, signature }
}

fn decision(sequence: u64) -> Value {
    json!({"type": "decision.recorded", "timestamp": "2026-01-02T00:00:01.25Z", "data": {
        "account": "acc_1", "request_id": format!("request-{sequence}"), "verdict": "DENY", "decision": "NO_GO",
        "environment": "production", "issues": [{"code": "SIDE_EFFECTS_NEED_GUARDRAILS"}],
        "evaluated_at": 1_767_312_001,
        "recorded_at": "2026-01-02T00:00:01.25Z", "sequence": sequence}})
}

fn good(sequence: u64) -> Delivery {
    signed(&format!("dec_{sequence}"), &decision(sequence), SECRET, Timestamp::now().as_second())
}

#[test]
fn a_valid_delivery_is_204_a_line_and_a_row_on_the_page() {
    let dir = tempfile::tempdir().unwrap();
    let receiving = Receiving::start(dir.path(), &[SECRET]);
    assert_eq!(receiving.deliver(&good(41)), 204);
    assert_eq!(receiving.line(), "DENY      production  acc_1  request-41  #41  SIDE_EFFECTS_NEED_GUARDRAILS");
    let page = receiving.page();
    assert_eq!((&page["received"], &page["repeated"], &page["refused"]), (&json!(1), &json!(0), &json!(0)));
    let row = &page["decisions"][0];
    for (member, value) in [
        ("verdict", json!("DENY")),
        ("environment", json!("production")),
        ("account", json!("acc_1")),
        ("request_id", json!("request-41")),
        ("sequence", json!(41)),
        ("codes", json!(["SIDE_EFFECTS_NEED_GUARDRAILS"])),
        ("evaluated_at", json!(1_767_312_001)),
    ] {
        assert_eq!(row[member], value, "{member}");
    }
    assert!(row["delay_ms"].as_i64().unwrap() > 0 && row["arrived_at"].is_string(), "{row}");
}

#[test]
fn an_unverified_delivery_is_401_and_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let receiving = Receiving::start(dir.path(), &[SECRET]);
    let now = Timestamp::now().as_second();
    let other_body = Delivery { body: decision(2).to_string(), ..good(1) };
    let other_id = Delivery { id: "dec_9".to_owned(), ..good(1) };
    let hostile_id = Delivery { id: format!("x{}", "y".repeat(4_000)), ..good(1) };
    for (delivery, why) in [
        (signed("dec_1", &decision(1), OTHER, now), "signature does not match  dec_1"),
        (other_body, "signature does not match  dec_1"),
        (other_id, "signature does not match  dec_9"),
        (signed("dec_1", &decision(1), SECRET, now - 301), "webhook-timestamp is too old  dec_1"),
        (signed("dec_1", &decision(1), SECRET, now + 330), "webhook-timestamp is in the future  dec_1"),
        (Delivery { at: i64::MIN, ..good(1) }, "webhook-timestamp is no number of seconds  dec_1"),
        (Delivery { signature: String::new(), ..good(1) }, "signature does not match  dec_1"),
    ] {
        assert_eq!(receiving.deliver(&delivery), 401, "{why}");
        assert_eq!(receiving.line(), format!("refused   {why}"));
    }
    assert_eq!(receiving.deliver(&hostile_id), 401);
    assert!(receiving.line().len() < 300);
    let bare = receiving.client.post(&receiving.url).body(good(1).body);
    assert_eq!(receiving.status(bare), 401);
    assert_eq!(receiving.line(), "refused   needs one header webhook-id  -");
    let page = receiving.page();
    assert_eq!((&page["received"], &page["refused"], &page["decisions"]), (&json!(0), &json!(9), &json!([])));
    assert!(!page.to_string().contains("dec_"), "{page}");
}

#[test]
fn without_a_secret_deliveries_are_503() {
    let dir = tempfile::tempdir().unwrap();
    let receiving = Receiving::start(dir.path(), &[]);
    assert_eq!(receiving.deliver(&good(1)), 503);
    assert!(receiving.line().starts_with("waiting   no secret in `"));
    write_secret(&receiving.secret_file, "not a secret\n");
    assert_eq!(receiving.deliver(&good(1)), 503);
    receiving.line();
    write_secret(&receiving.secret_file, &format!("{SECRET}\n"));
    assert_eq!(receiving.deliver(&good(1)), 204);
    assert!(receiving.line().starts_with("DENY "));
    assert_eq!(receiving.page()["refused"], 0);
    let (status, log, _) = receiving.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("cannot be read") && log.contains("in line 1"), "{log}");
    assert!(!log.contains("not a secret") && !log.contains("MfKQ"), "{log}");
}

#[test]
fn both_secrets_are_valid_during_a_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let receiving = Receiving::start(dir.path(), &[SECRET, OTHER]);
    let by_other = |sequence| signed("dec_o", &decision(sequence), OTHER, Timestamp::now().as_second());
    assert_eq!((receiving.deliver(&good(1)), receiving.deliver(&by_other(2))), (204, 204));
    write_secret(&receiving.secret_file, OTHER);
    assert_eq!((receiving.deliver(&good(3)), receiving.deliver(&by_other(3))), (401, 204));
}

#[test]
fn repeated_and_missing_events_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let receiving = Receiving::start(dir.path(), &[SECRET]);
    for sequence in [1, 1, 4, 2] {
        assert_eq!(receiving.deliver(&good(sequence)), 204);
    }
    assert!(receiving.line().starts_with("DENY "));
    assert_eq!(receiving.line(), "again     dec_1  #1");
    assert!(receiving.line().contains("  #4  "));
    assert!(receiving.line().contains("  #2  "));
    let page = receiving.page();
    assert_eq!((&page["received"], &page["repeated"], &page["missing"]), (&json!(3), &json!(1), &json!(1)));
    assert_eq!((&page["decisions"][0]["sequence"], &page["decisions"][2]["sequence"]), (&json!(2), &json!(1)));
}

#[test]
fn hostile_text_in_an_event_stays_text_on_terminal_and_page() {
    let dir = tempfile::tempdir().unwrap();
    let receiving = Receiving::start(dir.path(), &[SECRET]);
    let mut event = decision(1);
    let hostile = "<script>alert(1)</script>\u{1b}[2J\r\n00:00:00  ALLOW";
    for member in ["verdict", "environment", "request_id", "account"] {
        event["data"][member] = json!(hostile);
    }
    event["data"]["issues"] = json!([{"code": hostile}]);
    let now = Timestamp::now().as_second();
    assert_eq!(receiving.deliver(&signed("dec_1", &event, SECRET, now)), 204);
    assert_eq!(receiving.deliver(&signed("new_1", &json!({"type": hostile}), SECRET, now)), 204);
    let (first, second) = (receiving.line(), receiving.line());
    assert!(first.contains("<script>") && second.starts_with("other     -  -  <script>"), "{first}\n{second}");
    assert!(!format!("{first}{second}").chars().any(char::is_control));
    let answer = receiving.runtime.block_on(receiving.client.get(&receiving.page).send()).unwrap();
    let policy = answer.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'self'; ") && !policy.contains("unsafe"), "{policy}");
    let (html, script) = (include_str!("../../assets/receiver.html"), include_str!("../../assets/receiver.js"));
    assert!(!html.contains("<script>") && !html.contains(" style=") && !html.contains("http"));
    for unsafe_way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval"] {
        assert!(!script.contains(unsafe_way), "{unsafe_way}");
    }
}

#[test]
fn requests_that_are_no_deliveries_get_their_status_codes() {
    let dir = tempfile::tempdir().unwrap();
    let receiving = Receiving::start(dir.path(), &[SECRET]);
    assert_eq!(receiving.status(receiving.client.get(&receiving.url)), 405);
    assert_eq!(receiving.status(receiving.client.request(Method::PUT, format!("{}hook", receiving.url))), 405);
    let large = Delivery { body: "x".repeat(1_000_001), ..good(1) };
    assert_eq!(receiving.deliver(&large), 413);
    let no_event = signed("dec_1", &json!([1]), SECRET, Timestamp::now().as_second());
    assert_eq!(receiving.deliver(&no_event), 400);
    assert_eq!(receiving.line(), "refused   body is no event  dec_1");
    for (path, status) in [("", 200), ("healthz", 200), ("receiver.js", 200), ("receiver.css", 200), ("x", 404)] {
        assert_eq!(receiving.status(receiving.client.get(format!("{}{path}", receiving.page))), status, "{path}");
    }
    assert_eq!(receiving.status(receiving.client.post(&receiving.page)), 405);
    let (status, log, rest) = receiving.stop();
    assert_eq!((status.code(), rest), (Some(0), vec![]), "{log}");
}

#[test]
fn a_failed_start_says_why_and_wrong_settings_are_exit_code_64() {
    let dir = tempfile::tempdir().unwrap();
    let (tls, _) = dev_tls(&dir.path().join("tls")).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut on_taken = stage0(&["receiver", "--listen", &address, "--secret-file", "x"]);
    on_taken.arg("--tls-cert").arg(&tls.cert).arg("--tls-key").arg(&tls.key);
    let no_key = TlsFiles { key: dir.path().join("none.key"), ..tls.clone() };
    let bad_cert = TlsFiles { cert: tls.key.clone(), ..tls };
    for (mut command, why) in [
        (on_taken, format!("cannot listen on {address}: ")),
        (command(dir.path(), &no_key), "cannot serve TLS: cannot read a private key from `".to_owned()),
        (command(dir.path(), &bad_cert), "holds no certificate".to_owned()),
    ] {
        let ended = ended(&mut command);
        assert_eq!((ended.code, ended.out.as_str(), ended.err.lines().count()), (1, "", 1), "{}", ended.err);
        assert!(ended.err.contains(&why), "{}", ended.err);
    }
    let wrong = ended(&mut stage0(&["receiver", "--listen", "here", "--page-listen", "there", "--nats", "x"]));
    assert_eq!(wrong.code, 64, "{}", wrong.err);
    let wrong = ended(&mut stage0(&["receiver", "--listen", "here", "--page-listen", "there"]));
    assert_eq!(wrong.code, 64, "{}", wrong.err);
    for setting in ["--listen", "--page-listen", "`tls-cert`", "`tls-key`", "`secret-file`"] {
        assert!(wrong.err.contains(&format!("  {setting}: ")), "{setting}: {}", wrong.err);
    }
}

#[test]
fn decisions_of_a_dev_server_arrive_at_the_receiver() {
    let dir = tempfile::tempdir().unwrap();
    let receiving = Receiving::start(dir.path(), &[]);
    let ca = dir.path().join("tls/ca.pem");
    let options = ["--dangerous-allow-private-webhooks", "--webhook-ca", ca.to_str().unwrap()];
    let dev = Dev::start_with(&dir.path().join("data"), &options);
    let file = receiving.secret_file.to_str().unwrap();
    let made = dev.ask(&["webhooks", "create", "--endpoint", &format!("{}hook", receiving.url), "--out", file]);
    assert_eq!(made.code, 0, "{}", made.err);
    assert_eq!(dev.ask(&["webhooks", "test", made.out.trim()]).code, 0);
    assert!(receiving.line().starts_with("test      acc_"));
    let action =
        json!({"goal": "Deploy build 7", "side_effects": ["deploy"], "context": {"environment": "production"}});
    assert_eq!(dev.check(&action, &[]).code, 1);
    let line = receiving.line();
    assert!(line.starts_with("DENY      production  acc_") && line.contains("  #1  "), "{line}");
}
