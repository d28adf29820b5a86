//! Ordinary traffic of one account beside whatever a test does: harmless checks, one after the other, each of which
//! must be an ALLOW.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::api::Api;
use crate::stack::Stack;

/// Clients that send checks until they are stopped.
pub struct Traffic {
    ends: Arc<AtomicBool>,
    callers: Vec<JoinHandle<Asked>>,
}

/// What came of the checks.
#[derive(Debug, Default)]
pub struct Asked {
    /// How long each took, the shortest first.
    pub took: Vec<Duration>,
    /// What was no ALLOW.
    pub errors: Vec<String>,
}

impl Traffic {
    /// Of a new account, by so many callers that pause for as long as an agent would between two actions.
    pub async fn start(stack: &Stack, callers: usize, pause: Duration) -> Self {
        let (_, key, _) = stack.operator.account("bystander", None, &["check"]).await;
        let api = stack.api.with_key(&key);
        let ends = Arc::new(AtomicBool::new(false));
        let caller = |_| tokio::spawn(ask(api.clone(), Arc::clone(&ends), pause));
        Self { callers: (0..callers).map(caller).collect(), ends }
    }

    /// Ends it: what came of it.
    pub async fn end(self) -> Asked {
        self.ends.store(true, Ordering::SeqCst);
        let mut all = Asked::default();
        for caller in self.callers {
            let asked = caller.await.expect("a caller that does not panic");
            all.took.extend(asked.took);
            all.errors.extend(asked.errors);
        }
        all.took.sort();
        all
    }
}

impl Asked {
    /// No check failed, and there were some.
    #[track_caller]
    pub fn assert_undisturbed(&self, during: &str) {
        assert!(self.errors.is_empty(), "{during}: {} of {}: {:?}", self.errors.len(), self.took.len(), self.errors);
        assert!(!self.took.is_empty(), "{during}: nobody asked");
    }

    /// Of a hundred checks one took longer.
    pub fn p99(&self) -> Duration {
        self.took.get(self.took.len() * 99 / 100).or(self.took.last()).copied().unwrap_or_default()
    }
}

async fn ask(api: Api, ends: Arc<AtomicBool>, pause: Duration) -> Asked {
    let mut asked = Asked::default();
    while !ends.load(Ordering::SeqCst) {
        let began = Instant::now();
        match api.try_check(&Api::harmless()).await {
            Ok(answer) if answer.body["verdict"] == "ALLOW" => {}
            Ok(answer) => asked.errors.push(format!("{}: {}", answer.status, answer.text)),
            Err(error) => asked.errors.push(error.to_string()),
        }
        asked.took.push(began.elapsed());
        tokio::time::sleep(pause).await;
    }
    asked
}
