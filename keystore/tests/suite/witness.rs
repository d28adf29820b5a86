//! A writer in a process of its own, and the record of what it acknowledged.
//!
//! The writer prints each acknowledged change as one line on its standard output. An incomplete line was not
//! acknowledged.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use stage0_contract::{
    AccountId, ApiKey, CreateStop, InvitationCode, InviteMember, KeyId, Refusal, ResumeStop, Scope, StopId, StopScope,
    WebhookId, WebhookSecret,
};

use crate::harness::{Running, done, invite, refused};

const DIRECTORY: &str = "STAGE0_TEST_WRITER_DIRECTORY";

/// Not a test: the process that is killed runs this. Without its environment variable it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writer_process() {
    let Some(dir) = std::env::var_os(DIRECTORY) else { return };
    let running = Running::start(Path::new(&dir)).await;
    let account = running.account("crash").await.id;
    println!("\nack account {account}");
    let (mut previous, mut endpoint, mut stop) = (None, None, None);
    for turn in 0_u32.. {
        endpoint = match endpoint.take() {
            None => {
                let made = running.webhook(&account).await;
                println!("\nack endpoint {} {}", made.webhook.id, made.secret.expose());
                Some(made.webhook.id)
            }
            Some(id) if turn % 4 == 3 => {
                println!("\nask delete {id}");
                running.delete_webhook(&id).await;
                println!("\nack deleted {id}");
                None
            }
            Some(id) => Some(id),
        };
        stop = match stop.take() {
            None => {
                let call = CreateStop {
                    caller: running.operator.clone(),
                    account: Some(account.clone()),
                    scope: StopScope::Tool,
                    value: Some(format!("tool_{turn}")),
                    reason: "crash".to_owned(),
                    until: None,
                };
                let id = done(running.ask(&call).await).id;
                println!("\nack stopped {id}");
                Some(id)
            }
            Some(id) if turn % 4 == 1 => {
                println!("\nask resume {id}");
                let (caller, reason) = (running.operator.clone(), "fixed".to_owned());
                done(running.ask(&ResumeStop { caller, id: id.clone(), reason }).await);
                println!("\nack resumed {id}");
                None
            }
            Some(id) => Some(id),
        };
        if turn % 4 == 2 {
            let call = InviteMember { account: Some(account.clone()), ..invite(&running.operator, "Ada") };
            let code = done(running.ask(&call).await).invitation_code;
            let accepted = done(running.accept(&code).await);
            println!("\nack accepted {} {}", code.expose(), accepted.key.expose());
        }
        let made = running.key(&account, &[Scope::Check]).await;
        println!("\nack made {}", made.key.expose());
        previous = match (turn % 3, previous) {
            (1, Some(id)) => {
                println!("\nask end {id}");
                running.revoke(&id).await;
                println!("\nack ended {id}");
                Some(made.id)
            }
            (2, Some(id)) => {
                println!("\nask end {id}");
                let successor = running.rotate(&id, 0).await;
                println!("\nack rotated {id} {}", successor.key.expose());
                Some(made.id)
            }
            _ => Some(made.id),
        };
    }
}

/// The changes that were acknowledged in a directory over all rounds.
#[derive(Default)]
pub(crate) struct Witness {
    accounts: Vec<AccountId>,
    live: Vec<ApiKey>,
    ended: Vec<KeyId>,
    endpoints: Vec<(WebhookId, WebhookSecret)>,
    deleted: Vec<WebhookId>,
    stopped: Vec<StopId>,
    resumed: Vec<StopId>,
    /// Codes of invitations that were accepted.
    used: Vec<InvitationCode>,
}

pub(crate) struct Writer {
    pub(crate) child: Child,
    lines: Receiver<String>,
}

impl Writer {
    pub(crate) fn start(dir: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "witness::writer_process", "--nocapture"])
            .env(DIRECTORY, dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            while stdout.read_line(&mut line).is_ok_and(|bytes| bytes > 0) && line.ends_with('\n') {
                if sender.send(std::mem::take(&mut line)).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }
}

impl Witness {
    /// Reads `enough` acknowledged changes, and then continues for the given time.
    pub(crate) fn hear(&mut self, writer: &Writer, enough: u32, and_then: Duration) {
        let mut heard = 0;
        while heard < enough {
            let line = writer.lines.recv_timeout(Duration::from_secs(60)).expect("the writer ended by itself");
            heard += u32::from(self.note(&line));
        }
        let until = Instant::now() + and_then;
        while let Ok(line) = writer.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            self.note(&line);
        }
    }

    /// Reads what the writer printed before it died.
    pub(crate) fn hear_the_rest(&mut self, writer: Writer) {
        let Writer { mut child, lines } = writer;
        child.wait().unwrap();
        for line in lines {
            self.note(&line);
        }
    }

    /// Checks that all of it is there. Returns the number of changes.
    pub(crate) async fn confirm(&self, running: &Running) -> usize {
        for account in &self.accounts {
            // A lost account cannot be listed. The list may be empty: the power may fail before the first key.
            running.keys_of(account).await;
        }
        for key in &self.live {
            assert!(running.verify(key).await.is_some(), "acknowledged key {} is lost", key.id());
        }
        for id in &self.ended {
            assert!(!running.is_active(id).await, "acknowledged end of {id} is lost");
        }
        let found = running.endpoints().await;
        for (id, secret) in &self.endpoints {
            let secrets = found.iter().find(|endpoint| endpoint.webhook.id == *id).map(|endpoint| &endpoint.secrets);
            assert_eq!(secrets, Some(&vec![secret.clone()]), "acknowledged endpoint {id} is lost");
        }
        for id in &self.deleted {
            assert!(!found.iter().any(|endpoint| endpoint.webhook.id == *id), "acknowledged end of {id} is lost");
        }
        let mut holding = Vec::new();
        for account in &self.accounts {
            holding.extend(listed(running, account).await);
        }
        assert!(!self.resumed.iter().any(|id| holding.contains(id)), "an acknowledged resumption is lost");
        for id in &self.stopped {
            assert!(holding.contains(id), "acknowledged stop {id} is lost");
        }
        for code in &self.used {
            assert_eq!(refused(running.accept(code).await), Refusal::NotFound, "a used invitation can be used again");
        }
        let (keys, stops) = (self.live.len() + self.ended.len(), self.stopped.len() + self.resumed.len());
        self.accounts.len() + keys + self.endpoints.len() + self.deleted.len() + stops + self.used.len()
    }

    fn note(&mut self, line: &str) -> bool {
        let words: Vec<_> = line.split_whitespace().collect();
        match words.as_slice() {
            // Until the revocation is acknowledged, the key may or may not be active.
            ["ask", "end", id] => {
                self.live.retain(|key| key.id().as_str() != *id);
                return false;
            }
            ["ask", "delete", id] => {
                self.endpoints.retain(|(endpoint, _)| endpoint.as_str() != *id);
                return false;
            }
            ["ack", "endpoint", id, secret] => {
                self.endpoints.push((WebhookId::parse(id).unwrap(), WebhookSecret::parse(secret).unwrap()));
            }
            // Until the resumption is acknowledged, the stop may or may not hold.
            ["ask", "resume", id] => {
                self.stopped.retain(|stop| stop.as_str() != *id);
                return false;
            }
            ["ack", "stopped", id] => self.stopped.push(StopId::parse(id).unwrap()),
            ["ack", "resumed", id] => self.resumed.push(StopId::parse(id).unwrap()),
            ["ack", "accepted", code, key] => {
                self.used.push(InvitationCode::parse(code).unwrap());
                self.live.push(ApiKey::parse(key).unwrap());
            }
            ["ack", "deleted", id] => self.deleted.push(WebhookId::parse(id).unwrap()),
            ["ack", "account", id] => self.accounts.push(AccountId::parse(id).unwrap()),
            ["ack", "made", key] => self.live.push(ApiKey::parse(key).unwrap()),
            ["ack", "ended", id] => self.ended.push(KeyId::parse(id).unwrap()),
            ["ack", "rotated", id, key] => {
                self.ended.push(KeyId::parse(id).unwrap());
                self.live.push(ApiKey::parse(key).unwrap());
            }
            _ => return false,
        }
        true
    }
}

/// The stops that an account lists.
async fn listed(running: &Running, account: &AccountId) -> Vec<StopId> {
    crate::stops::listed(running, account).await.into_iter().map(|stop| stop.id).collect()
}

/// The number of rounds: a few, or as many as the environment sets.
pub(crate) fn rounds(short: u32) -> u32 {
    std::env::var("STAGE0_CRASH_ROUNDS").map_or(short, |rounds| rounds.parse().unwrap())
}

/// Less than `most`; the low bits of the clock are random enough to choose a moment.
pub(crate) fn somewhere_below(most: u32) -> u32 {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    (nanos / 7) % most
}

/// The number of files that were found damaged and kept as evidence.
pub(crate) fn put_aside(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().contains(".damaged-")).count()
}
