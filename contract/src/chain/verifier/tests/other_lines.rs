//! Lines of a writer's chain that record no decision: events of approvals and stops, and lines of types that only a
//! newer version knows. The chain is judged by the same findings as if all of them were decisions.

use super::*;

const UNKNOWN: &str = "approval.foreseen";

/// A line of another type at the start, in the middle and at the end of chains, named by marks and by no mark.
const LOGS: [fn(u8, u64) -> &'static str; 8] = [
    |_, sequence| if sequence == 1 { UNKNOWN } else { DECISION },
    |number, sequence| if (number, sequence) == (1, 3) { UNKNOWN } else { DECISION },
    |number, sequence| if (number, sequence) == (1, 4) { UNKNOWN } else { DECISION },
    |number, sequence| if (number, sequence) == (3, 3) { UNKNOWN } else { DECISION },
    |number, sequence| if (number, sequence) == (1, 6) { "x" } else { DECISION },
    |number, _| if number == 2 { UNKNOWN } else { DECISION },
    |number, sequence| if (number, sequence) == (1, 2) { "approval.used" } else { DECISION },
    |_, sequence| if sequence % 2 == 0 { "stop.started" } else { UNKNOWN },
];
const DECISION: &str = LineType::Decision.as_str();

type Faults = Vec<Fault>;

fn faults(log: &Log) -> Faults {
    log.checked().findings.iter().map(|found| (found.kind, found.writer, found.sequence, found.count)).collect()
}

fn count_of_others(log: &Log) -> u64 {
    log.lines
        .iter()
        .filter(|line| matches!(line.name, Decision(..)) && LineType::of(&line.bytes) != Some(LineType::Decision))
        .count() as u64
}

#[test]
fn a_log_with_lines_of_other_types_is_good_and_they_are_counted_apart() {
    for kind in LOGS {
        let log = Log::usual_with(kind);
        let (report, plain, others) = (log.checked(), Log::usual().checked(), count_of_others(&log));
        assert!(report.ok && others > 0, "{:#?}", report.findings);
        assert_eq!((report.records, report.other_lines), (plain.records - others, others));
        assert_eq!(
            (report.writers, report.unsealed, report.checkpoints),
            (plain.writers, plain.unsealed, plain.checkpoints)
        );
        assert_eq!(report.last_mark, log.mark.map(|(mark, _)| mark), "marks name them as heads");
    }
    let plain = serde_json::to_value(Log::usual().checked()).unwrap();
    assert!(plain.get("other_lines").is_none(), "a log of decisions has the report of before");
}

#[test]
fn each_removed_changed_moved_or_repeated_line_is_found_whatever_its_type() {
    let plain = Log::usual();
    for kind in LOGS {
        let log = Log::usual_with(kind);
        for place in 0..log.lines.len() {
            let name = log.lines[place].name;
            assert_eq!(faults(&log.clone().without(&[name])), faults(&plain.clone().without(&[name])), "{name:?}");
            let repeated = |log: &Log| faults(&log.clone().with(name, log.line(name)));
            assert_eq!(repeated(&log), repeated(&plain), "{name:?}");
            if matches!(name, Decision(..)) {
                let changed = |log: &Log| faults(&log.clone().replaced(name, "ALLOW", "DENY"));
                assert_eq!(changed(&log), changed(&plain), "{name:?}");
            }
            if let Some(next) = log.lines.get(place + 1).map(|next| next.name) {
                let swapped = |log: &Log| faults(&log.clone().swapped(name, next));
                assert_eq!(swapped(&log), swapped(&plain), "{name:?} and {next:?}");
            }
        }
        // All that a mark has named is found, and so is what a successor names: all but two ends of chains.
        let found = log.lines.iter().filter(|line| !faults(&log.clone().without(&[line.name])).is_empty()).count();
        assert_eq!(found, log.lines.len() - 3);
    }
}

#[test]
fn a_type_that_was_changed_is_found() {
    let log = Log::usual_with(LOGS[1]);
    for (name, from, to) in [
        (Decision(1, 3), UNKNOWN, DECISION),
        (Decision(1, 3), UNKNOWN, "approval.foretold"),
        (Decision(1, 2), DECISION, UNKNOWN),
    ] {
        let altered = faults(&log.clone().replaced(name, from, to));
        assert_eq!(altered, faults(&Log::usual().replaced(name, "ALLOW", "DENY")), "{name:?}");
        assert!(altered.iter().all(|fault| fault.0 == FindingKind::Altered) && !altered.is_empty());
    }
    // As a mark, the line is no part of the chain, and is not signed.
    let as_mark = log.replaced(Decision(1, 3), UNKNOWN, "checkpoint.signed").checked();
    assert!(as_mark.findings.iter().any(|found| found.kind == FindingKind::Missing), "{:#?}", as_mark.findings);
}

#[test]
fn only_a_decision_is_named_by_a_finding() {
    let log = Log::usual_with(LOGS[1]);
    let finding = |log: Log| log.checked().findings.remove(0);
    let altered = finding(log.clone().replaced(Decision(1, 3), "ALLOW", "DENY"));
    assert_eq!((altered.kind, altered.request_id), (FindingKind::Altered, None));
    let hole = finding(log.clone().without(&[Decision(1, 2)]));
    let first: Kind = serde_json::from_slice(log.line(Decision(1, 1))).unwrap();
    assert_eq!((hole.after_request_id, hole.before_request_id), (first.id(), None));
    assert!(first.id().is_some());
}

#[test]
fn a_line_of_an_unknown_type_must_have_its_place_and_be_the_accounts_own() {
    let log = Log::usual_with(LOGS[3]);
    let last = Decision(3, 3);
    for (from, to) in [("\"chain\"", "\"chains\""), ("acc_1", "acc_2"), ("\"sequence\":3", "\"sequence\":0")] {
        let faults = faults(&log.clone().replaced(last, from, to));
        assert_eq!(faults.first().map(|fault| fault.0), Some(FindingKind::Unreadable), "{to}: {faults:?}");
    }
    Log::usual().with(last, br#"{"type":"approval.foreseen"}"#).finds(&[UNREADABLE]);
    Log::usual().with(last, br#"{"type":7}"#).finds(&[UNREADABLE]);
}

#[test]
fn a_chained_line_is_read_by_its_link_and_a_mark_is_none() {
    let log = Log::usual_with(LOGS[1]);
    let read = |name| ChainedLine::read(log.line(name));
    let other = read(Decision(1, 3)).unwrap();
    assert_eq!((other.line, other.is_decision(), other.chain.sequence), (None, false, 3));
    assert_eq!(
        other.head(log.line(Decision(1, 3))).as_previous(),
        read(Decision(1, 4)).unwrap().chain.previous.unwrap()
    );
    assert!(read(Decision(1, 2)).unwrap().is_decision());
    assert_eq!(read(Signed(1)), None);
    let header = log.start(Decision(1, 1));
    assert_eq!(header.head(b"x"), read(Decision(1, 1)).unwrap().head(b"x"), "as its writer knows it");
}
