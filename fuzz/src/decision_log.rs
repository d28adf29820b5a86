//! Lines of the decision log that are read back: no line stops a verification, and one that cannot be read is a
//! finding.
//!
//! A record that is read is the same after it was written; a signature is cut from a line to the byte.

use std::sync::LazyLock;

use data_encoding::{BASE64, HEXLOWER};
use jiff::Timestamp;
use serde::de::IgnoredAny;
use stage0_contract::{
    ChainVerifier, ChainedLine, DecisionRecord, LineHash, LineType, Mark, MarkRef, PublicKey, Report, Window,
    signed_part,
};

use crate::Target;

pub(crate) const TARGET: Target = Target::new("decision_log", check);

const MAX_FINDINGS: usize = 1_000;

/// The key that signed the marks of the inputs: RFC 8032, section 7.1, test 1.
static KEY: LazyLock<PublicKey> = LazyLock::new(|| {
    let public = HEXLOWER.decode(b"d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a").unwrap();
    PublicKey::new(public.as_slice().try_into().unwrap(), Timestamp::UNIX_EPOCH)
});

fn check(input: &[u8]) -> bool {
    let lines: Vec<&[u8]> = input.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    lines.iter().for_each(|line| is_read_alike(line));
    let report = verify(&lines);
    assert_eq!(verify(&lines), report, "the same log, another report");
    assert_eq!(report.ok, report.findings.is_empty());
    assert!(report.findings.len() <= MAX_FINDINGS && (report.more_findings == 0 || !report.ok));
    let count = u64::try_from(lines.len()).unwrap();
    assert!(report.records + report.other_lines <= count && report.unsealed <= count, "{report:?}");
    let is_unreadable = |line: &&[u8]| serde_json::from_slice::<IgnoredAny>(line).is_err();
    assert!(!report.ok || !lines.iter().any(is_unreadable), "a line that is no JSON is passed over");
    report.ok && report.records > 0
}

fn verify(lines: &[&[u8]]) -> Report {
    let window = Window {
        from: None,
        to: None,
        now: Timestamp::UNIX_EPOCH,
        horizon: Timestamp::UNIX_EPOCH,
        kept: None,
        signed: None,
    };
    let is_mark = |line: &&[u8]| LineType::of(line).is_some_and(LineType::is_mark);
    let marks = lines.iter().copied().filter(is_mark);
    let mut verifier = ChainVerifier::new(window, vec![KEY.clone()], marks);
    lines.iter().for_each(|line| verifier.read_line(line));
    verifier.finish()
}

fn is_read_alike(line: &[u8]) {
    if let Some((mut bytes, signature)) = signed_part(line) {
        assert_eq!(bytes.pop(), Some(b'}'));
        let again = [bytes.as_slice(), b",\"signature\":\"", BASE64.encode(&signature).as_bytes(), b"\"}"].concat();
        assert_eq!(again, line, "another line has this signature");
    }
    if let Some(chained) = ChainedLine::read(line) {
        assert!(chained.chain.sequence > 0 && !chained.line.is_some_and(LineType::is_mark));
        let head = chained.head(line);
        assert_eq!((head.sequence, head.hash), (chained.chain.sequence, LineHash::of(line)));
    }
    if let Some(mark) = MarkRef::of(line) {
        assert_eq!(mark.hash, LineHash::of(line));
        let read: Mark = serde_json::from_slice(line).unwrap();
        let again: Mark = serde_json::from_value(serde_json::to_value(&read).unwrap()).unwrap();
        assert_eq!(again, read);
    }
    if let Ok(record) = serde_json::from_slice::<DecisionRecord>(line) {
        let again: DecisionRecord = serde_json::from_value(serde_json::to_value(&record).unwrap()).unwrap();
        assert_eq!(again, record);
    }
}
