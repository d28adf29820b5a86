//! What the callers of a run heard of approvals, and whether it holds: while it goes on, and in the end.

use std::collections::{BTreeMap, BTreeSet};

use stage0_backplane::{Backplane, Entry};
use stage0_contract::{ApprovalChange, ApprovalRef};

use super::super::tests::{account, member};
use super::evaluator::config;
use super::gateway::lines_in;
use super::*;

/// How far a time that a process took may be from the true one: the width of a reading of the store's clock.
const CLOCK_ERROR: SignedDuration = SignedDuration::from_secs(1);
/// From the reservation of an approval to the answer of its check.
const BUDGET: SignedDuration = SignedDuration::from_secs(2);
/// After this time no part of a check is under way any more, not even in the store.
const MAX_CHECK: SignedDuration = SignedDuration::from_secs(20);
/// Of the policy: how long people may take, and how long an approval may be used.
const TERM: SignedDuration = SignedDuration::from_secs(60);

/// What is known of one approval.
struct Known {
    id: ApprovalId,
    action: u64,
    digest: ActionDigest,
    /// People whose votes were acknowledged.
    voted: BTreeSet<&'static str>,
    /// Its approval was acknowledged, and nothing can have used it: until when it may be used.
    granted: Option<Timestamp>,
    /// The end that was acknowledged.
    ended: Option<ApprovalStatus>,
    /// Times that it may have been reopened.
    reopens: usize,
    /// Checks that were released by it.
    released: BTreeSet<RequestId>,
}

/// In the order in which somebody heard of them.
#[derive(Default)]
pub(super) struct Book {
    approvals: Vec<Known>,
    digests: BTreeMap<u64, ActionDigest>,
    /// When the last check of each action began.
    checked: BTreeMap<u64, Timestamp>,
}

impl Book {
    fn find(&mut self, id: &ApprovalId) -> Option<&mut Known> {
        self.approvals.iter_mut().find(|known| known.id == *id)
    }

    pub(super) fn newest(&self, action: u64) -> Option<(ApprovalId, ActionDigest)> {
        let newest = self.approvals.iter().rfind(|known| known.action == action)?;
        Some((newest.id.clone(), newest.digest.clone()))
    }

    /// The approval that the next check of an action must pass by.
    pub(super) fn surely_granted(&self, action: u64, now: Timestamp) -> Option<ApprovalId> {
        let newest = self.approvals.iter().rfind(|known| known.action == action)?;
        let until = newest.granted?;
        (now + CLOCK_ERROR + BUDGET < until).then(|| newest.id.clone())
    }

    /// A decision named an approval.
    pub(super) fn note_reference(&mut self, sim: &Sim, action: u64, reference: &ApprovalRef, digest: &ActionDigest) {
        let of_action = self.digests.entry(action).or_insert_with(|| digest.clone());
        if of_action != digest {
            sim.violated(format!("action {action} has the digests {of_action} and {digest}"));
        }
        let Some(id) = &reference.id else { return };
        if let Some(known) = self.find(id) {
            if (known.action, &known.digest) != (action, digest) {
                sim.violated(format!("{id} is of action {}, and it is used for {action}", known.action));
            }
            return;
        }
        sim.count("opened");
        let (id, digest) = (id.clone(), digest.clone());
        let (voted, released) = (BTreeSet::new(), BTreeSet::new());
        self.approvals.push(Known { id, action, digest, voted, granted: None, ended: None, reopens: 0, released });
    }

    /// An ALLOW was answered.
    pub(super) fn note_release(&mut self, sim: &Sim, used: &ApprovalRef, operation: RequestId, is_first: bool) {
        sim.count("released");
        // A repetition passes by what its first attempt reserved.
        let late_by = sim.now().duration_since(used.expires_at);
        if is_first && late_by > BUDGET + CLOCK_ERROR {
            sim.violated(format!("{:?} lets a check pass {late_by:?} after its end", used.id));
        }
        let Some(known) = used.id.as_ref().and_then(|id| self.find(id)) else { return };
        known.granted = None;
        known.released.insert(operation);
        if known.released.len() > 1 + known.reopens {
            sim.violated(format!("{} lets {} checks pass", known.id, known.released.len()));
        }
    }

    /// A check of this action is under way, and may use what was granted.
    pub(super) fn begin_check(&mut self, action: u64, now: Timestamp) {
        self.checked.insert(action, now);
        self.approvals.iter_mut().filter(|known| known.action == action).for_each(|known| known.granted = None);
    }

    pub(super) fn begin_change(&mut self, id: &ApprovalId, change: &ApprovalChange) {
        let Some(known) = self.find(id) else { return };
        if !matches!(change, ApprovalChange::Approve { .. }) {
            known.granted = None;
        }
        if matches!(change, ApprovalChange::Reopen {}) {
            known.reopens += 1;
        }
    }

    pub(super) fn note_changed(
        &mut self,
        sim: &Sim,
        name: &'static str,
        change: &ApprovalChange,
        approval: &stage0_contract::Approval,
        began: Timestamp,
    ) {
        let checked = self.checked.clone();
        let Some(known) = self.find(&approval.id) else { return };
        let is_near = |until: Timestamp, since: Timestamp| {
            since - CLOCK_ERROR <= until && until <= sim.now() + CLOCK_ERROR + TERM
        };
        match change {
            ApprovalChange::Approve { .. } => {
                sim.count("voted");
                known.voted.insert(name);
                if let (ApprovalStatus::Approved, Some(until)) = (approval.status, approval.usable_until) {
                    sim.count("granted");
                    if !is_near(until, began + TERM) {
                        sim.violated(format!("{} is approved until {until}", approval.id));
                    }
                    // A check that began before may be under way still.
                    let is_alone = checked.get(&known.action).is_none_or(|at| *at + MAX_CHECK < began);
                    known.granted = Some(until).filter(|_| is_alone);
                }
            }
            ApprovalChange::Deny { .. } | ApprovalChange::Cancel {} => {
                sim.count(if matches!(change, ApprovalChange::Cancel {}) { "cancelled" } else { "denied" });
                known.ended = Some(approval.status);
            }
            ApprovalChange::Reopen {} => sim.count("reopened"),
            ApprovalChange::Register { .. } | ApprovalChange::Report { .. } => {}
        }
    }

    pub(super) fn note_refused(&mut self, sim: &Sim, id: &ApprovalId, change: &ApprovalChange, refusal: &Refusal) {
        let Some(known) = self.find(id) else { return };
        if matches!(change, ApprovalChange::Reopen {}) {
            known.reopens -= 1;
        }
        let text = format!("{refusal:?}");
        if text.contains("expired") {
            sim.count("expired");
            if known.granted.is_some_and(|until| sim.now() + CLOCK_ERROR < until) {
                sim.violated(format!("{id} has expired before its time"));
            }
        }
    }

    /// The records and the log in the end.
    pub(super) async fn judge(&self, observer: &Node, log: &[Entry]) -> Result<(), String> {
        let backplane = Backplane { state_store: observer.state_store(), ..Backplane::embedded() };
        let approvals = Approvals::new(&backplane, config());
        let positions = positions(log)?;
        let deadline = || Instant::now() + Duration::from_secs(5);
        let mut stored = Vec::new();
        for known in &self.approvals {
            let found = approvals.store.find(&account("acc"), &known.id, deadline()).await;
            let found = found.map_err(|error| format!("{}: {error}", known.id))?;
            let Some((_, approval, _)) = found else { return Err(format!("{} is lost", known.id)) };
            known.judge(&approval, log)?;
            stored.push(approval);
        }
        for approval in &stored {
            told_in_order(approval, &positions)?;
        }
        Ok(())
    }
}

impl Known {
    fn judge(&self, stored: &StoredApproval, log: &[Entry]) -> Result<(), String> {
        let Self { id, .. } = self;
        if stored.action_digest != self.digest {
            return Err(format!("{id} is of another action now"));
        }
        let has_vote = |name: &&&str| stored.votes.iter().any(|vote| vote.vote.member_id == Some(member(name)));
        if let Some(name) = self.voted.iter().find(|name| !has_vote(name)) {
            return Err(format!("{id} lost the vote of {name}"));
        }
        if let Some(ended) = self.ended.filter(|ended| *ended != stored.status) {
            return Err(format!("{id} was {ended:?}, and is {:?}", stored.status));
        }
        let allowed = |line: &Value| line["type"] == "decision" && line["approval"] == json!(id);
        let lines = log.iter().flat_map(lines_in).filter(allowed);
        let recorded: BTreeSet<RequestId> =
            lines.map(|line| RequestId::parse(line["operation"].as_str().unwrap()).unwrap()).collect();
        if recorded.len() > 1 + self.reopens {
            return Err(format!("by the log, {id} lets {} checks pass", recorded.len()));
        }
        if let Some(operation) = self.released.difference(&recorded).next() {
            return Err(format!("{operation} was released by {id}, and the log has no such decision"));
        }
        let used_by = stored.used.as_ref().map(|used| used.operation);
        let is_settled = stored.status == ApprovalStatus::Consumed && used_by.is_some_and(|by| recorded.contains(&by));
        if !recorded.is_empty() && self.reopens == 0 && !is_settled {
            return Err(format!("{id} was used by {recorded:?}, and is {:?} by {used_by:?}", stored.status));
        }
        Ok(())
    }
}

/// Where each event is first told.
fn positions(log: &[Entry]) -> Result<BTreeMap<Uuid, usize>, String> {
    let mut positions = BTreeMap::new();
    for entry in log {
        let lines: Vec<Value> = lines_in(entry).collect();
        for line in &lines {
            let Some(id) = line["event_id"].as_str().and_then(|id| Uuid::parse_str(id).ok()) else { continue };
            let next = positions.len();
            positions.entry(id).or_insert(next);
            let decides = |other: &Value| other["type"] == "decision" && other["request_id"] == line["request_id"];
            if line["type"] == "approval.used" && !lines.iter().any(decides) {
                return Err(format!("an approval was used without a decision: {line}"));
            }
            let at: Timestamp = line["at"].as_str().and_then(|at| at.parse().ok()).unwrap_or_default();
            if line["type"] == "approval.expired" && entry.stored_at + CLOCK_ERROR < at {
                return Err(format!("it has expired before its time: {line}"));
            }
        }
    }
    Ok(positions)
}

/// Whether all that happened to an approval is in the log, in its order.
fn told_in_order(approval: &StoredApproval, positions: &BTreeMap<Uuid, usize>) -> Result<(), String> {
    let mut last = 0;
    for stored in &approval.outbox.events {
        let event = &stored.event;
        if event.approval_id.as_ref() != Some(&approval.id) || event.kind == LineType::ApprovalUsed {
            continue;
        }
        let Some(position) = positions.get(&event.event_id) else {
            return Err(format!("the log does not tell that {} was {:?}", approval.id, event.kind));
        };
        if *position < last {
            return Err(format!("the log tells too late that {} was {:?}", approval.id, event.kind));
        }
        last = *position;
    }
    Ok(())
}
