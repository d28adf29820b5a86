//! The results of a pack's cases as JUnit XML, as continuous integration shows them.

use std::fmt::Write as _;

use stage0_policy::{CaseOutcome, Fault, PackError};

use super::test::{Tested, actual, expected, failed_case};
use crate::out::plain;

/// The case for a pack that is refused for other reasons than its cases.
const VALID: &str = "the pack is valid";

pub(super) fn document(pack: &str, tested: Result<&Tested, &PackError>) -> String {
    let (outcomes, faults): (&[CaseOutcome], &[Fault]) = match tested {
        Ok(tested) => (&tested.outcomes, &tested.faults),
        Err(refused) => (&[], &refused.faults),
    };
    let pack = escaped(pack);
    let failures = outcomes.iter().filter(|outcome| !outcome.passed).count();
    let errors = usize::from(!faults.is_empty());
    let counts = format!("tests=\"{}\" failures=\"{failures}\" errors=\"{errors}\"", outcomes.len() + 1);
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites {counts}>\n  <testsuite name=\"{pack}\" {counts}>\n"
    );
    let mut case = |name: &str, wrong: Option<String>| {
        let name = escaped(name);
        let _ = match wrong {
            None => writeln!(text, "    <testcase classname=\"{pack}\" name=\"{name}\"/>"),
            Some(wrong) => writeln!(text, "    <testcase classname=\"{pack}\" name=\"{name}\">{wrong}</testcase>"),
        };
    };
    case(VALID, (!faults.is_empty()).then(|| refusal(faults)));
    for outcome in outcomes {
        case(&outcome.id, (!outcome.passed).then(|| failure(outcome)));
    }
    text.push_str("  </testsuite>\n</testsuites>\n");
    text
}

fn failure(outcome: &CaseOutcome) -> String {
    let message = format!("expected {}, actual {}", expected(&outcome.expected), actual(outcome));
    format!("<failure message=\"{}\">{}</failure>", escaped(&message), lines(&failed_case(outcome)))
}

fn refusal(faults: &[Fault]) -> String {
    let all: Vec<String> = faults.iter().map(ToString::to_string).collect();
    let first = all.first().map_or_else(String::new, |first| escaped(first));
    format!("<error message=\"{first}\">{}</error>", lines(&all.join("\n")))
}

fn lines(text: &str) -> String {
    text.lines().map(escaped).collect::<Vec<_>>().join("\n")
}

/// Characters that XML does not allow are shown as their numbers.
fn escaped(text: &str) -> String {
    let plain = plain(text).replace(['\u{fffe}', '\u{ffff}'], "\u{fffd}");
    plain.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
