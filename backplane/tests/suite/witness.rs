//! A writer that runs until it is killed, and a witness of what was acknowledged.
//!
//! A writer in a process of its own prints each acknowledged batch as a whole line on its standard output; an
//! incomplete line does not count.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use stage0_backplane::embedded::Bus;
use stage0_backplane::{Backplane, Batch, EntryKind};

use crate::writing::{DECISIONS, MARKS, account, everything, soon};

const DIRECTORY: &str = "STAGE0_TEST_WRITER_DIRECTORY";
const ACCOUNTS: [&str; 3] = ["a", "a_", "b"];
const RECORD: &str = "turns";

/// Not a test: the process that is killed runs this. Without its variable it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writer_process() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let backplane = Bus::open(Path::new(&directory)).unwrap().connect();
    keep_writing(&backplane, |line| println!("\n{line}")).await;
}

/// Writes for as long as it can, and prints what was acknowledged.
pub(crate) async fn keep_writing(backplane: &Backplane, mut tell: impl FnMut(&str)) {
    let run = jiff::Timestamp::now().as_microsecond();
    let (log, state_store) = (&backplane.log, &backplane.state_store);
    let mut revision = state_store.get(RECORD, soon()).await.unwrap().map(|record| record.revision);
    let mut last_mark = log.last(&account("a"), EntryKind::Mark, soon()).await.unwrap().map(|mark| mark.position);
    for turn in 0.. {
        let ids = |start: u32| (start..start + 4).map(|number| format!("{run}-{turn}-{number}")).collect::<Vec<_>>();
        let (some, others) = (ids(0), ids(4));
        let batches = |ids: &[String]| ids.iter().map(|id| made(id)).collect();
        let (first, second) = tokio::join!(log.append(batches(&some), soon()), log.append(batches(&others), soon()));
        for (id, answer) in some.iter().chain(&others).zip(first.iter().chain(&second)) {
            if answer.is_ok() {
                tell(&format!("ack batch {id}"));
            }
        }
        if let Ok(position) = log.append_mark(&account("a"), turn.to_string().into(), last_mark, soon()).await {
            tell(&format!("ack mark {}", position.0));
            last_mark = Some(position);
        }
        if let Ok(put) = state_store.put(RECORD, turn.to_string().into(), revision, None, soon()).await {
            tell(&format!("ack record {}", put.0));
            revision = Some(put);
        }
    }
}

/// The batch of an id: its account, size and bytes follow from it.
pub(crate) fn made(id: &str) -> Batch {
    let sum = id.bytes().fold(7_usize, |sum, byte| (sum * 31 + usize::from(byte)) % 100_003);
    let lines = format!("{id} {}", "x".repeat(sum % 3_000));
    Batch { account: account(ACCOUNTS[sum % ACCOUNTS.len()]), id: id.to_owned(), lines: lines.into() }
}

/// What was acknowledged, over all rounds.
#[derive(Default)]
pub(crate) struct Witness {
    batches: Vec<String>,
    marks: Vec<u64>,
    record: u64,
}

impl Witness {
    pub(crate) fn acknowledged(&self) -> usize {
        self.batches.len() + self.marks.len()
    }

    pub(crate) fn note(&mut self, line: &str) {
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["ack", "batch", id] => self.batches.push((*id).to_owned()),
            ["ack", "mark", position] => self.marks.push(position.parse().unwrap()),
            ["ack", "record", revision] => self.record = revision.parse().unwrap(),
            // What the test harness says.
            _ => {}
        }
    }

    /// Reads acknowledgements until there are `enough`, and then for this long.
    pub(crate) fn read_until(&mut self, writer: &Writer, enough: u32, and_then: Duration) {
        let enough = self.acknowledged() + enough as usize;
        while self.acknowledged() < enough {
            let line = writer.lines.recv_timeout(Duration::from_secs(60)).expect("the writer ended by itself");
            self.note(&line);
        }
        let until = Instant::now() + and_then;
        while let Ok(line) = writer.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            self.note(&line);
        }
    }

    /// Reads what was printed before the writer died.
    pub(crate) fn read_rest(&mut self, writer: Writer) {
        let Writer { mut child, lines } = writer;
        child.wait().unwrap();
        for line in lines {
            self.note(&line);
        }
    }

    /// Reads the whole log. Every acknowledged batch is stored once, with its bytes; a batch that was never
    /// acknowledged is stored once or not at all. Returns how many were acknowledged.
    pub(crate) async fn confirm(&self, backplane: &Backplane) -> usize {
        let mut found = HashSet::new();
        for name in ACCOUNTS {
            for entry in everything(&*backplane.log, &account(name), DECISIONS).await {
                let text = String::from_utf8(entry.lines.to_vec()).unwrap();
                let id = text.split(' ').next().unwrap().to_owned();
                let made = made(&id);
                assert!((made.lines, made.account.as_str()) == (entry.lines, name), "{id} is not what was written");
                assert!(found.insert(id.clone()), "{id} is there twice");
            }
        }
        for id in &self.batches {
            assert!(found.contains(id), "acknowledged batch {id} is lost");
        }
        let marks = everything(&*backplane.log, &account("a"), MARKS).await;
        let marks: HashMap<_, _> = marks.into_iter().map(|mark| (mark.position.0, mark.lines)).collect();
        for position in &self.marks {
            assert!(marks.contains_key(position), "acknowledged mark {position} is lost");
        }
        let record = backplane.state_store.get(RECORD, soon()).await.unwrap();
        assert!(record.map_or(0, |record| record.revision.0) >= self.record, "an acknowledged record is lost");
        self.acknowledged()
    }

    /// A stored batch can be appended again under its id, and is not stored twice.
    pub(crate) async fn append_the_last_again(&self, backplane: &Backplane) {
        let last = self.batches.iter().rev().take(5).map(|id| made(id)).collect();
        assert!(backplane.log.append(last, soon()).await.iter().all(Result::is_ok));
    }
}

pub(crate) struct Writer {
    pub(crate) child: Child,
    lines: Receiver<String>,
}

impl Writer {
    pub(crate) fn start(directory: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "witness::writer_process", "--nocapture"])
            .env(DIRECTORY, directory)
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

/// The number of rounds: the short form, or the number in the environment.
pub(crate) fn rounds(short: u32) -> u32 {
    std::env::var("STAGE0_CRASH_ROUNDS").map_or(short, |rounds| rounds.parse().unwrap())
}

pub(crate) fn random_below(limit: u32) -> u32 {
    getrandom::u32().unwrap() % limit
}

pub(crate) fn random_delay() -> Duration {
    Duration::from_micros(u64::from(random_below(5_000)))
}
