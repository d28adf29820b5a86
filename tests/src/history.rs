//! What clients asked and got while things broke, and what was found afterwards: the material that is judged.
//!
//! Owns plain data only. [`check`] compares it and finds where a promise was broken; each finding has a story, the
//! lines of the history that concern it and nothing else. Times count from the start of the run.

use std::collections::BTreeMap;
use std::time::Duration;

mod checker;
mod promises;
mod story;

pub use checker::check;
pub use promises::{Finding, Promise};

/// Everything that clients noted, in any order, and when what was broken.
#[derive(Debug, Default, Clone)]
pub struct History {
    pub ops: Vec<Op>,
    pub faults: Vec<Broken>,
}

/// One request of a client.
#[derive(Debug, Clone)]
pub struct Op {
    pub start: Duration,
    pub end: Duration,
    /// Which gateway, by its number.
    pub gateway: usize,
    pub what: What,
    pub came: Came,
}

#[derive(Debug, Clone)]
pub enum What {
    Check(Asked),
    Change(Change),
}

/// A check, by what it has in the record.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    pub account: String,
    /// The id of the key that asked.
    pub key: String,
    /// The `Idempotency-Key`.
    pub once: Option<String>,
    pub run: Option<String>,
    /// The approval that it was asked for.
    pub approval: Option<String>,
}

/// A change that an acknowledgement makes lasting. The id is empty where the answer would have named it.
#[derive(Debug, Clone)]
pub enum Change {
    KeyMade(String),
    KeyRevoked(String),
    Approved(String),
    /// Of all checks of this key's account.
    Stopped {
        id: String,
        key: String,
    },
    Resumed {
        id: String,
        key: String,
    },
}

/// What a client got.
#[derive(Debug, Clone)]
pub enum Came {
    Decided {
        id: String,
        verdict: String,
        approval: Option<String>,
    },
    Done,
    Refused {
        status: u16,
        why: String,
    },
    /// No answer, or half of one.
    Nothing(String),
}

/// A fault, from its injection until answers went on.
#[derive(Debug, Clone)]
pub struct Broken {
    pub from: Duration,
    pub healed: Duration,
    pub until: Duration,
    pub what: String,
    /// Notices may be late while parts do not reach each other, and until keys that are cached are asked for again.
    pub delays_notices: bool,
}

/// What was found at the end, when everything ran again.
#[derive(Debug, Default, Clone)]
pub struct Found {
    pub records: Vec<Record>,
    pub deliveries: Vec<Delivered>,
    /// Iterations that were counted, of each run.
    pub runs: BTreeMap<String, u64>,
    /// Each approval's status and which request used it.
    pub approvals: BTreeMap<String, (String, Option<String>)>,
    /// Whether each key is let in.
    pub keys: BTreeMap<String, bool>,
    /// Whether each stop holds.
    pub stops: BTreeMap<String, bool>,
    /// What a verification of each account's log said: whether it holds, and how many records it has.
    pub verified: BTreeMap<String, (bool, u64)>,
}

/// A decision in the exported log.
#[derive(Debug, Clone, Default)]
pub struct Record {
    pub account: String,
    pub id: String,
    pub verdict: String,
    pub key: String,
    pub run: Option<String>,
    pub approval: Option<String>,
}

/// A webhook event as the receiver got it; of a repeated one, each.
#[derive(Debug, Clone)]
pub struct Delivered {
    pub account: String,
    pub event: String,
    pub sequence: u64,
    /// The decision's id and verdict; none: another kind of event.
    pub decision: Option<(String, String)>,
    pub is_signed: bool,
    /// A number that two different bodies do not share by chance.
    pub body: u64,
}

/// What must hold, of this run's accounts and keys.
#[derive(Debug, Default, Clone)]
pub struct Rules {
    /// Verdicts that the policy allows to checks of each key.
    pub verdicts: BTreeMap<String, Vec<String>>,
    /// ALLOWs of one run.
    pub run_limit: u64,
    /// Decisions of an account.
    pub account_limits: BTreeMap<String, u64>,
    /// Accounts with a webhook.
    pub delivered: Vec<String>,
}

impl Op {
    /// The decision that was answered.
    pub fn decided(&self) -> Option<(&str, &str)> {
        match &self.came {
            Came::Decided { id, verdict, .. } => Some((id, verdict)),
            Came::Done | Came::Refused { .. } | Came::Nothing(_) => None,
        }
    }

    pub fn asked(&self) -> Option<&Asked> {
        match &self.what {
            What::Check(asked) => Some(asked),
            What::Change(_) => None,
        }
    }

    /// A change that was acknowledged.
    pub fn changed(&self) -> Option<&Change> {
        match (&self.what, &self.came) {
            (What::Change(change), Came::Done) => Some(change),
            _ => None,
        }
    }
}

impl Change {
    pub fn id(&self) -> &str {
        match self {
            Self::KeyMade(id) | Self::KeyRevoked(id) | Self::Approved(id) => id,
            Self::Stopped { id, .. } | Self::Resumed { id, .. } => id,
        }
    }
}
