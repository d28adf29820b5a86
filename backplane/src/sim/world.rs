//! The state of a run: what the store and the log have, how the processes are, and what has happened.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use stage0_contract::AccountId;
use tokio::time::Instant;

use super::links::Links;
use super::numbers::Numbers;
use super::plan::{Fault, Flaw, Plan};
use crate::{EntryKind, Revision};

pub(super) struct World {
    pub(super) plan: Plan,
    /// The simulation's own stream; each process has another one, so that one does not change what the others draw.
    pub(super) numbers: Numbers,
    pub(super) steps_left: u64,
    pub(super) is_calm: bool,
    /// What is written now is forgotten.
    pub(super) is_alone: bool,
    /// The last one is the observer.
    pub(super) nodes: Vec<NodeState>,
    pub(super) links: Links,
    /// Every state of every record, the oldest first.
    pub(super) records: BTreeMap<String, Vec<Version>>,
    pub(super) entries: Vec<StoredEntry>,
    revision: u64,
    /// Exchanges that the store has not ended, whether or not their callers wait.
    pub(super) under_way: usize,
    pub(super) violation: Option<String>,
    pub(super) totals: BTreeMap<&'static str, u64>,
    story: Option<Story>,
    started: Instant,
}

pub(super) struct NodeState {
    pub(super) numbers: Numbers,
    pub(super) away_until: Option<Instant>,
    pub(super) frozen_until: Option<Instant>,
    /// How often it was killed.
    pub(super) deaths: u64,
    /// Tasks that stand still with it, or wait for its death.
    pub(super) wakers: Vec<Waker>,
}

#[derive(Debug, Clone)]
pub(super) struct Version {
    pub(super) revision: Revision,
    pub(super) value: Bytes,
    pub(super) stored_at: Instant,
    pub(super) expires_at: Option<Instant>,
}

#[derive(Debug, Clone)]
pub(super) struct StoredEntry {
    pub(super) account: AccountId,
    pub(super) id: String,
    pub(super) position: u64,
    pub(super) stored_at: Timestamp,
    pub(super) appended_at: Instant,
    pub(super) kind: EntryKind,
    pub(super) lines: Bytes,
}

/// How often something happens.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rates {
    /// As its fault says.
    Usual,
    /// In the middle of an exchange: a tenth of that.
    Exchange,
}

#[derive(Default)]
struct Story {
    lines: Vec<String>,
    /// Random names, by which no two runs could be compared.
    names: HashMap<String, usize>,
}

impl World {
    pub(super) fn new(plan: &Plan, keeps_story: bool) -> Self {
        let node = |number: usize| NodeState {
            numbers: Numbers::new(plan.seed.wrapping_add((number as u64 + 1) << 40)),
            away_until: None,
            frozen_until: None,
            deaths: 0,
            wakers: Vec::new(),
        };
        Self {
            plan: plan.clone(),
            numbers: Numbers::new(plan.seed),
            steps_left: plan.steps,
            is_calm: false,
            is_alone: false,
            nodes: (0..=plan.nodes).map(node).collect(),
            links: Links::new(plan.nodes + 1),
            records: BTreeMap::new(),
            entries: Vec::new(),
            revision: 0,
            under_way: 0,
            violation: None,
            totals: BTreeMap::new(),
            story: keeps_story.then(Story::default),
            started: Instant::now(),
        }
    }

    pub(super) fn next_revision(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    /// Whether this happens now. The number is drawn in any case.
    pub(super) fn strikes(&mut self, node: usize, fault: Fault) -> bool {
        self.strikes_at(node, fault, Rates::Usual)
    }

    pub(super) fn strikes_at(&mut self, node: usize, fault: Fault, of: Rates) -> bool {
        let per = match of {
            Rates::Usual => 1_000,
            Rates::Exchange => 10_000,
        };
        let drawn = self.nodes.get_mut(node).map_or(u64::MAX, |node| node.numbers.below(per));
        let strikes = !self.is_spared(node) && self.plan.faults.has(fault) && drawn < self.plan.faults.rate(fault);
        if strikes {
            self.count(fault.name(), 1);
        }
        strikes
    }

    /// Whether a flaw that is not always there shows now.
    pub(super) fn fails_by(&mut self, flaw: Flaw) -> bool {
        self.plan.flaw == Some(flaw) && self.numbers.below(20) == 0
    }

    fn is_spared(&self, node: usize) -> bool {
        self.is_calm || node >= self.plan.nodes
    }

    /// Less than this, drawn by a process.
    pub(super) fn within(&mut self, node: usize, limit: Duration) -> Duration {
        limit.mul_f64(self.nodes.get_mut(node).map_or(0.0, |node| node.numbers.fraction()))
    }

    /// How long an outage or a freeze lasts: a few are many times as long as the rest.
    pub(super) fn spell(&mut self, node: usize) -> Duration {
        let is_long = self.nodes.get_mut(node).is_some_and(|node| node.numbers.below(8) == 0);
        let pace = self.plan.pace * if is_long { 20 } else { 3 };
        self.within(node, pace)
    }

    pub(super) fn away_until(&self, node: usize) -> Option<Instant> {
        let until = self.nodes.get(node)?.away_until;
        until.filter(|until| *until > Instant::now())
    }

    pub(super) fn frozen_until(&self, node: usize) -> Option<Instant> {
        let until = self.nodes.get(node)?.frozen_until;
        until.filter(|until| *until > Instant::now())
    }

    pub(super) fn calm(&mut self) {
        self.is_calm = true;
        self.heal();
        for node in &mut self.nodes {
            (node.away_until, node.frozen_until) = (None, None);
            node.wakers.drain(..).for_each(Waker::wake);
        }
    }

    pub(super) fn count(&mut self, what: &'static str, by: u64) {
        *self.totals.entry(what).or_default() += by;
    }

    /// What a process did, or what happened to it.
    pub(super) fn note(&mut self, node: usize, what: impl Display) {
        self.tell(format_args!("p{node}"), what);
    }

    pub(super) fn tell(&mut self, who: impl Display, what: impl Display) {
        let at = self.started.elapsed().as_secs_f64();
        // What comes after a violation may follow from it.
        if let Some(story) = self.story.as_mut().filter(|_| self.violation.is_none()) {
            let line = story.with_names(&format!("{at:9.3} s  {who}  {what}"));
            story.lines.push(line);
        }
    }

    pub(super) fn violated(&mut self, why: String) {
        self.tell("  ", &why);
        self.violation.get_or_insert(why);
    }

    pub(super) fn take_story(&mut self) -> Vec<String> {
        self.story.as_mut().map(|story| std::mem::take(&mut story.lines)).unwrap_or_default()
    }
}

impl Story {
    /// With each random name, a long word of hexadecimal digits, as a number by its first appearance.
    fn with_names(&mut self, line: &str) -> String {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let (mut told, mut word) = (String::with_capacity(line.len()), String::new());
        for c in line.chars().chain([' ']) {
            if is_part(c) {
                word.push(c);
                continue;
            }
            self.tell_word(&word, &mut told);
            word.clear();
            told.push(c);
        }
        told.truncate(told.trim_end().len());
        told
    }

    fn tell_word(&mut self, word: &str, told: &mut String) {
        let is_long = |part: &str| part.len() >= 16 && part.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
        // What stands before the first long part says what it names; what stands behind it is part of the name.
        let starts = word.match_indices('_').map(|(at, _)| at + 1);
        let start = [0]
            .into_iter()
            .chain(starts)
            .find(|start| word.get(*start..).and_then(|rest| rest.split('_').next()).is_some_and(is_long));
        let Some(prefix) = start.and_then(|start| word.get(..start)) else { return told.push_str(word) };
        told.push_str(prefix);
        let next = self.names.len() + 1;
        let number = *self.names.entry(word.to_owned()).or_insert(next);
        told.push('#');
        told.push_str(&number.to_string());
    }
}
