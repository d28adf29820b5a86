//! How long a fault stopped answers, and why checks were refused meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::history::{Came, Op};

/// What clients saw from a fault's injection until answers went on.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// The longest time in which no check was answered, to whomever.
    pub silence: Duration,
    pub answered: usize,
    /// Packets that a partition or a slow network lost.
    pub lost: u64,
    /// Requests that got no decision, by reason.
    pub failed: BTreeMap<String, usize>,
}

/// Of the checks that ended in this time.
pub fn measure(ops: &[Op], from: Duration, until: Duration) -> Measured {
    let mut measured = Measured::default();
    let mut ends = vec![from, until];
    for op in ops.iter().filter(|op| op.asked().is_some() && op.end >= from && op.end <= until) {
        match &op.came {
            Came::Decided { .. } => {
                measured.answered += 1;
                ends.push(op.end);
            }
            Came::Refused { status: 503, why } => *measured.failed.entry(format!("503 {why}")).or_default() += 1,
            Came::Nothing(why) => *measured.failed.entry(why.clone()).or_default() += 1,
            Came::Refused { .. } | Came::Done => {}
        }
    }
    ends.sort();
    measured.silence = ends.windows(2).map(|two| two[1] - two[0]).max().unwrap_or_default();
    measured
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Asked, What};

    #[test]
    fn the_longest_time_between_two_answers_is_measured_and_refusals_are_counted_by_reason() {
        let seconds = Duration::from_secs;
        let op = |end, came| Op {
            start: seconds(end),
            end: seconds(end),
            gateway: 0,
            what: What::Check(Asked::default()),
            came,
        };
        let decided = || Came::Decided { id: "r".to_owned(), verdict: "ALLOW".to_owned(), approval: None };
        let refused = |status| Came::Refused { status, why: "why".to_owned() };
        let ops = [
            op(1, decided()),
            op(11, decided()),
            op(12, refused(503)),
            op(13, refused(401)),
            op(14, Came::Nothing("reset".to_owned())),
            op(17, decided()),
            op(90, decided()),
        ];
        let measured = measure(&ops, seconds(10), seconds(20));
        assert_eq!((measured.silence, measured.answered), (seconds(6), 2));
        assert_eq!(measured.failed, [("503 why".to_owned(), 1), ("reset".to_owned(), 1)].into());
    }
}
