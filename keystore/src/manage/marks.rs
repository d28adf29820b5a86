//! Signing a mark: once for each number, and kept before it is given away.
//!
//! Owns the step from a question of the exporter to a signed line in the journal: what was signed last is read, the
//! next mark is judged by [`rules`](crate::rules::marks), signed and committed, and only then answered. A mark that was
//! signed and never reached the log is given again to whoever asks for the next one, so a crash at any moment leaves an
//! account that goes on. Whatever else is refused is counted and logged: an exporter that reads the log never asks for it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use stage0_contract::{AccountId, MarkSigned, Refusal, SignMark, signed_part};
use tokio::time::Instant;

use super::{Desk, Undone};
use crate::metrics;
use crate::record::{Record, SignedMark};
use crate::rules::marks::{self, LastMark, MarkFault};
use crate::signer::{SignError, Signer};
use crate::store::Store;

/// Whoever forges marks must not fill the log: the metric says how often.
const ALARM_INTERVAL: Duration = Duration::from_secs(1);
/// Marks that other exporters may have had signed since one of them looked at the log.
const MAX_RACE: u64 = 8;

/// When a refused mark was last logged.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    logged: Option<Instant>,
}

impl Alarm {
    fn raise(&mut self, account: &AccountId, number: u64, last: Option<u64>, fault: MarkFault) {
        metrics::mark_refused(fault.as_str());
        let now = Instant::now();
        if self.logged.is_some_and(|logged| now.duration_since(logged) < ALARM_INTERVAL) {
            return;
        }
        self.logged = Some(now);
        tracing::error!(
            %account,
            number,
            last,
            reason = %fault,
            "mark was not signed: somebody forges marks with an exporter's credentials, or an older log was put back"
        );
    }
}

impl Desk {
    /// The mark as a line of the log, or the line that was signed last where the log does not end with it.
    pub(crate) fn sign_mark(&mut self, signer: &Signer, call: &SignMark) -> Result<MarkSigned, Undone> {
        let (next, now) = (&call.mark, self.now());
        let account = self.store().account(&next.account)?.ok_or(Refusal::NotFound)?;
        let stored = last_signed(self.store(), &next.account)?;
        let (last, evidence) = self.base(stored, call)?;
        let number = last.as_ref().map(|last| last.mark.number);
        if let Some(fault) = evidence {
            self.alarm.raise(&next.account, next.number, number, fault);
            return earlier(last, call);
        }
        let fault = match marks::follows(next, last.as_ref(), account.retention(), now) {
            Ok(()) => return self.sign_and_keep(signer, call),
            Err(fault) => fault,
        };
        if let Some(last) = &last {
            if is_repeated(signer, call, last)? {
                return Ok(MarkSigned { line: last.line.clone(), earlier: false });
            }
            // Two exporters at once, or a mark that never reached the log; not who names other decisions by it.
            let raced = fault == MarkFault::Taken && last.mark.number.saturating_sub(next.number) < MAX_RACE;
            if raced && !marks::contradicts(next, &last.mark) {
                metrics::mark_refused("raced");
                return earlier(Some(last.clone()), call);
            }
        }
        self.alarm.raise(&next.account, next.number, number, fault);
        match fault {
            MarkFault::Taken | MarkFault::Number | MarkFault::Previous => earlier(last, call),
            fault => Err(refused(fault)),
        }
    }

    /// What the next mark must follow: what was signed last, or the log's last mark, if it was signed here and is
    /// later. That is so in a deployment that is older than this rule, and where a backup of this directory was put
    /// back: every mark is kept here before it is given away.
    fn base(&self, stored: Option<LastMark>, call: &SignMark) -> Result<(Option<LastMark>, Option<MarkFault>), Undone> {
        let Some(line) = &call.last else { return Ok((stored, None)) };
        if stored.as_ref().is_some_and(|stored| stored.line == *line) {
            return Ok((stored, None));
        }
        let signed = self.store().signing_keys()?.iter().any(|key| key.signed(line.as_bytes()));
        let shown =
            LastMark::parse(line.clone()).ok().filter(|shown| signed && shown.mark.account == call.mark.account);
        match (shown, stored) {
            (None, stored) => Ok((stored, Some(MarkFault::Unproven))),
            (Some(shown), Some(stored)) if shown.mark.number <= stored.mark.number => Ok((Some(stored), None)),
            // A deployment that is older than this rule.
            (Some(shown), None) => Ok((Some(shown), None)),
            (Some(shown), Some(stored)) => {
                self.rolled_back.store(true, Ordering::Release);
                tracing::error!(
                    account = %shown.mark.account,
                    number = shown.mark.number,
                    before = stored.mark.number,
                    "the log holds a mark that was signed here and is later than what this data directory knows: \
                     unless it was restored with --accept-restore, it is older than what was acknowledged, and keys \
                     that were revoked since live again"
                );
                Ok((Some(shown), None))
            }
        }
    }

    fn sign_and_keep(&mut self, signer: &Signer, call: &SignMark) -> Result<MarkSigned, Undone> {
        let line = signer.sign(&call.mark)?;
        self.commit(&[Record::Mark(SignedMark { account: call.mark.account.clone(), line: line.clone() })])?;
        Ok(MarkSigned { line, earlier: false })
    }
}

/// The last mark that was signed for an account.
pub(crate) fn last_signed(store: &Store, account: &AccountId) -> Result<Option<LastMark>, Undone> {
    let Some(SignedMark { line, .. }) = store.mark(account)? else { return Ok(None) };
    Ok(Some(LastMark::parse(line).map_err(SignError::Json)?))
}

/// The line of the last mark that was signed for an account, unless it has expired: then the log need not hold it.
pub(crate) fn last_line(store: &Store, account: &AccountId, now: Timestamp) -> Result<Option<String>, Undone> {
    let last = last_signed(store, account)?;
    Ok(last.filter(|last| last.mark.expires_at > now.as_second()).map(|last| last.line))
}

/// Byte for byte what was signed last: an answer that was lost is given again.
fn is_repeated(signer: &Signer, call: &SignMark, last: &LastMark) -> Result<bool, Undone> {
    let asked = signer.unsigned(&call.mark)?;
    Ok(signed_part(last.line.as_bytes()).is_some_and(|(signed, _)| signed == asked.bytes()))
}

fn earlier(last: Option<LastMark>, call: &SignMark) -> Result<MarkSigned, Undone> {
    match last.filter(|_| call.takes_earlier) {
        Some(last) => Ok(MarkSigned { line: last.line, earlier: true }),
        None => Err(refused(MarkFault::Taken)),
    }
}

fn refused(fault: MarkFault) -> Undone {
    Undone::Refused(Refusal::Conflict(format!("the mark is not signed: {fault}")))
}
