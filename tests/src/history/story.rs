//! The minimal story of a finding: only what mentions the ids that it is about, in order of time.
//!
//! Records and deliveries have no time of their own here and stand at the end. A long story keeps its two ends.

use std::time::Duration;

use super::{Broken, Came, Change, Delivered, Found, History, Op, Record, What};

/// Lines of one story.
const MAX_LINES: usize = 40;

pub(super) fn of(history: &History, found: &Found, ids: &[&str]) -> Vec<String> {
    let is = |id: &str| ids.contains(&id);
    let is_some = |id: &Option<String>| id.as_deref().is_some_and(is);
    let mut ops: Vec<&Op> = history.ops.iter().filter(|op| mentions(op, &is, &is_some)).collect();
    ops.sort_by_key(|op| (op.start, op.end));
    let span = ops.first().map(|op| op.start).zip(ops.iter().map(|op| op.end).max());
    let meets = |fault: &&Broken| span.is_some_and(|(from, until)| fault.from <= until && fault.until >= from);
    let mut lines: Vec<(Duration, String)> = ops.iter().map(|op| (op.start, told(op))).collect();
    for fault in history.faults.iter().filter(meets) {
        lines.push((fault.from, format!("{} FAULT {}", at(fault.from), fault.what)));
        lines.push((fault.healed, format!("{} healed: {}", at(fault.healed), fault.what)));
    }
    lines.sort_by_key(|(time, _)| *time);
    let mut lines: Vec<String> = lines.into_iter().map(|(_, line)| line).collect();
    let of_it =
        |record: &&Record| is(&record.id) || is(&record.key) || is_some(&record.run) || is_some(&record.approval);
    lines.extend(found.records.iter().filter(of_it).map(recorded));
    let came = |delivery: &&Delivered| is(&delivery.event) || delivery.decision.as_ref().is_some_and(|(id, _)| is(id));
    lines.extend(found.deliveries.iter().filter(came).map(delivered));
    lines.extend(ids.iter().filter_map(|id| state(found, id)));
    shortened(lines)
}

fn mentions(op: &Op, is: &impl Fn(&str) -> bool, is_some: &impl Fn(&Option<String>) -> bool) -> bool {
    let answered = match &op.came {
        Came::Decided { id, approval, .. } => is(id) || is_some(approval),
        Came::Done | Came::Refused { .. } | Came::Nothing(_) => false,
    };
    let asked = match &op.what {
        What::Check(asked) => is(&asked.key) || is_some(&asked.once) || is_some(&asked.run) || is_some(&asked.approval),
        What::Change(Change::Stopped { id, key } | Change::Resumed { id, key }) => is(id) || is(key),
        What::Change(change) => is(change.id()),
    };
    answered || asked
}

fn told(op: &Op) -> String {
    let what = match &op.what {
        What::Check(asked) => {
            let part =
                |name: &str, id: &Option<String>| id.as_ref().map(|id| format!(" {name} {id}")).unwrap_or_default();
            let parts = [part("once", &asked.once), part("run", &asked.run), part("approval", &asked.approval)];
            format!("check of key {}{}", asked.key, parts.concat())
        }
        What::Change(change) => format!("{change:?}"),
    };
    let came = match &op.came {
        Came::Decided { id, verdict, .. } => format!("{verdict} {id}"),
        Came::Done => "acknowledged".to_owned(),
        Came::Refused { status, why } => format!("{status} {why}"),
        Came::Nothing(why) => format!("no answer: {why}"),
    };
    format!("{} to {} gateway {}: {what} -> {came}", at(op.start), at(op.end), op.gateway)
}

fn recorded(record: &Record) -> String {
    let Record { account, id, verdict, key, run, approval } = record;
    format!("recorded: {verdict} {id} of {account}, key {key}, run {run:?}, approval {approval:?}")
}

fn delivered(delivery: &Delivered) -> String {
    let Delivered { account, event, sequence, decision, is_signed, .. } = delivery;
    format!("delivered: {account} number {sequence}, {event}, {decision:?}, signature holds: {is_signed}")
}

fn state(found: &Found, id: &str) -> Option<String> {
    let run = found.runs.get(id).map(|count| format!("counted: {count} iterations of run {id}"));
    let approval = found.approvals.get(id);
    let approval = approval.map(|(status, by)| format!("approval {id} at the end: {status}, used by {by:?}"));
    let key = found.keys.get(id).map(|works| format!("key {id} at the end is let in: {works}"));
    let stop = found.stops.get(id).map(|holds| format!("stop {id} at the end holds: {holds}"));
    run.or(approval).or(key).or(stop)
}

fn at(time: Duration) -> String {
    format!("{:.3}s", time.as_secs_f64())
}

fn shortened(mut lines: Vec<String>) -> Vec<String> {
    if lines.len() > MAX_LINES {
        let end = lines.split_off(lines.len() - MAX_LINES / 2);
        let left_out = lines.len() - MAX_LINES / 2;
        lines.truncate(MAX_LINES / 2);
        lines.push(format!("… {left_out} more lines …"));
        lines.extend(end);
    }
    lines
}
