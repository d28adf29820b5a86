//! `stage0 decisions verify`: lets the server verify its log, or verifies a downloaded one, and prints the report.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use jiff::Timestamp;
use reqwest::Method;
use stage0_contract::{Finding, Report, Window};

use super::progress::Progress;
use super::retry::Retry;
use super::{DECISIONS, WALK_TIMEOUT, connect, offline, signing_keys};
use crate::args::decisions::Verify;
use crate::client::{Connection, Query, runtime};
use crate::decision::wire_word;
use crate::exit::Exit;
use crate::out::{self, plain};
use crate::settings::client::ClientSettings;
use crate::table::{Table, fields, optional};

pub(super) fn verify(args: &Verify, settings: &ClientSettings, now: Timestamp) -> anyhow::Result<Exit> {
    let (from, to) = args.period.at(now)?;
    let report = match &args.file {
        // The retention at the time of the export is unknown. A missing decision is accepted only if a line's own
        // expiry or a mark of a deletion explains it.
        Some(file) => {
            let window = Window { from, to, now, horizon: Timestamp::UNIX_EPOCH, kept: args.kept, signed: None };
            let mut progress = Progress::new(args.progress);
            let keys = match &args.trust.keys {
                Some(keys) => offline::read_keys(keys)?,
                None => {
                    signing_keys(&connect(settings, settings.timeout)?).context("no keys (--keys-from-server)")?.items
                }
            };
            offline::verify(file, keys, window, &mut progress)?
        }
        None => {
            let timeout = settings.timeout_or(WALK_TIMEOUT);
            let query = Query::default().with("from", from).with("to", to).with("kept", args.kept);
            on_server(&connect(settings, timeout)?, &query, timeout, Progress::new(args.progress))?
        }
    };
    out::show(args.json, &report, for_people)?;
    Ok(if report.ok { Exit::Done } else { Exit::Failed })
}

fn on_server(client: &Connection, query: &Query, timeout: Duration, mut progress: Progress) -> anyhow::Result<Report> {
    let runtime = runtime()?;
    let begun = Instant::now();
    let mut retry = Retry::new(timeout, begun);
    let [v1, decisions] = DECISIONS;
    let path = [v1, decisions, "verify"];
    loop {
        let answer = runtime.block_on(async {
            let pairs = query.pairs();
            let mut answer = std::pin::pin!(client.call(Method::GET, &path, &pairs, None));
            loop {
                if let Ok(answer) = tokio::time::timeout(Duration::from_millis(200), &mut answer).await {
                    return answer;
                }
                progress.update(Instant::now(), || format!("the server verifies: {} s", begun.elapsed().as_secs()));
            }
        });
        let error = match answer {
            Ok(report) => return Ok(report),
            Err(error) => error,
        };
        let Some(delay) = retry.after(&error, Instant::now()) else { return Err(error.into()) };
        progress.note(format!("{error}; retried in {} s", delay.as_secs_f32()));
        runtime.block_on(async { tokio::time::sleep(delay).await });
    }
}

fn for_people(report: &Report) -> String {
    let found = u64::try_from(report.findings.len()).unwrap_or(u64::MAX).saturating_add(report.more_findings);
    let result = match (report.ok, report.records) {
        (true, 0) => "OK: there were no decisions to verify".to_owned(),
        (true, _) => "OK: nothing is missing, altered, out of order or there twice".to_owned(),
        (false, _) => format!("NOT OK: {found} found"),
    };
    let uncovered = match report.unsealed {
        0 => "",
        _ => " (no checkpoint covers them yet, so it is not proven that no later ones were cut off)",
    };
    let rows = fields([
        ("records", report.records.to_string()),
        ("other lines", report.other_lines.to_string()),
        ("writers", report.writers.to_string()),
        ("checkpoints", report.checkpoints.to_string()),
        ("deletions", report.deletions.to_string()),
        ("expiries", report.expiries.to_string()),
        ("unsealed", format!("{}{uncovered}", report.unsealed)),
        ("first", optional(report.first_at.as_ref())),
        ("last", optional(report.last_at.as_ref())),
    ]);
    let mut text = format!("{result}\n\n{rows}");
    if report.rejected > 0 {
        text.push_str(&format!(
            "\nALARM        {} entries in the log's store are from no gateway or exporter: something else writes \
             there. They are ignored; inform the operator",
            report.rejected
        ));
    }
    if !report.findings.is_empty() {
        text.push_str(&format!("\n\n{}", findings(report)));
    }
    if report.more_findings > 0 {
        text.push_str(&format!("\nand {} more", report.more_findings));
    }
    text.push_str(&match &report.last_mark {
        Some(mark) => format!("\n\nlast mark {mark} — store it elsewhere, and pass it to --kept next time"),
        None => "\n\nlast mark - (there is no checkpoint yet)".to_owned(),
    });
    text
}

fn findings(report: &Report) -> Table {
    let mut table = Table::new(["FINDING", "REQUEST", "WRITER", "SEQUENCE", "COUNT", "MESSAGE"]);
    for finding in &report.findings {
        table.row([
            wire_word(&finding.kind),
            request(finding),
            optional(finding.writer.as_ref()),
            optional(finding.sequence.as_ref()),
            finding.count.to_string(),
            plain(&finding.message),
        ]);
    }
    table
}

/// The decision of a finding, or the decisions around a gap.
fn request(finding: &Finding) -> String {
    match (&finding.request_id, &finding.after_request_id, &finding.before_request_id) {
        (Some(id), _, _) => id.to_string(),
        (None, Some(after), Some(before)) => format!("between {after} and {before}"),
        (None, Some(after), None) => format!("after {after}"),
        (None, None, Some(before)) => format!("before {before}"),
        (None, None, None) => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use stage0_contract::{FindingKind, LineHash, MarkRef, RequestId};

    use super::*;

    fn report() -> Report {
        let finding = |kind| Finding {
            kind,
            writer: None,
            sequence: Some(7),
            count: 2,
            request_id: None,
            after_request_id: None,
            before_request_id: None,
            message: "gone\u{1b}[2J".to_owned(),
        };
        Report {
            ok: false,
            records: 5,
            other_lines: 2,
            writers: 1,
            checkpoints: 2,
            deletions: 0,
            expiries: 0,
            unsealed: 1,
            first_at: None,
            last_at: None,
            last_mark: Some(MarkRef { number: 2, hash: LineHash::of(b"x") }),
            findings: vec![finding(FindingKind::Missing), finding(FindingKind::BadSignature)],
            more_findings: 3,
            rejected: 0,
        }
    }

    #[test]
    fn the_result_comes_first_and_the_mark_to_keep_last() {
        let text = for_people(&report());
        assert!(text.starts_with("NOT OK: 5 found\n"), "{text}");
        assert!(
            text.contains("\nmissing ") && text.contains("\nbad_signature ") && text.contains("\nand 3 more"),
            "{text}"
        );
        let last = text.lines().last().unwrap();
        assert!(last.starts_with("last mark 2:") && last.contains("--kept"), "{last}");
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn a_finding_names_its_request_or_those_around_it() {
        let id = |last: u8| RequestId::parse(&format!("0190163d-8694-739b-aea5-00000000000{last}")).ok();
        let mut finding = report().findings.remove(0);
        assert_eq!(request(&finding), "-");
        (finding.after_request_id, finding.before_request_id) = (id(1), id(2));
        assert!(request(&finding).starts_with("between 0190163d-8694-739b-aea5-000000000001 and 0190"));
        finding.before_request_id = None;
        assert_eq!(request(&finding), "after 0190163d-8694-739b-aea5-000000000001");
        finding.request_id = id(3);
        assert_eq!(request(&finding), "0190163d-8694-739b-aea5-000000000003");
        let text = for_people(&Report { findings: vec![finding], ..report() });
        assert!(text.contains("missing  0190163d-8694-739b-aea5-000000000003  "), "{text}");
    }

    #[test]
    fn rejected_entries_are_an_alarm_and_no_finding() {
        assert!(!for_people(&report()).contains("ALARM"));
        let text = for_people(&Report { ok: true, findings: vec![], more_findings: 0, rejected: 3, ..report() });
        assert!(text.starts_with("OK: ") && text.contains("\nALARM        3 entries"), "{text}");
    }

    #[test]
    fn an_empty_log_is_not_reported_as_proven() {
        let text = for_people(&Report {
            ok: true,
            records: 0,
            findings: vec![],
            more_findings: 0,
            last_mark: None,
            ..report()
        });
        assert!(text.starts_with("OK: there were no decisions"), "{text}");
    }
}
