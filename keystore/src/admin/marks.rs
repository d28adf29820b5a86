//! Signing marks: once for each number, and stored before the signature leaves.
//!
//! A mark that was signed and never reached the decision log is returned again for the next request, so that an account
//! goes on after a crash at any moment. Other refusals are counted and logged, because an exporter that reads the log
//! never causes them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use stage0_contract::{AccountId, MarkSigned, Refusal, SignMark, signed_part};
use tokio::time::Instant;

use super::{AdminService, ManageError};
use crate::admin::rules::marks::{self, LastMark, MarkFault};
use crate::metrics;
use crate::signer::{SignError, Signer};
use crate::store::record::{Record, SignedMark};
use crate::store::record_store::RecordStore;

/// Forged marks must not fill the log; the metric counts them.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(1);
/// Marks that other exporters may have got since this one read the log.
const MAX_RACE: u64 = 8;

#[derive(Debug, Default)]
pub(super) struct RefusalLog {
    logged: Option<Instant>,
}

impl RefusalLog {
    fn add(&mut self, account: &AccountId, number: u64, last: Option<u64>, fault: MarkFault) {
        metrics::mark_refused(fault.as_str());
        let now = Instant::now();
        if self.logged.is_some_and(|logged| now.duration_since(logged) < REFUSAL_LOG_INTERVAL) {
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

impl AdminService {
    /// Returns the mark as a line of the log, or the line that was signed last if the log does not end with it.
    pub(crate) fn sign_mark(&mut self, signer: &Signer, call: &SignMark) -> Result<MarkSigned, ManageError> {
        let (next, now) = (&call.mark, self.now());
        let account = self.store().account(&next.account)?.ok_or(Refusal::NotFound)?;
        let stored = last_signed(self.store(), &next.account)?;
        let (last, evidence) = self.base(stored, call)?;
        let number = last.as_ref().map(|last| last.mark.number);
        if let Some(fault) = evidence {
            self.refusals.add(&next.account, next.number, number, fault);
            return earlier(last, call);
        }
        let Err(fault) = marks::follows(next, last.as_ref(), account.retention(), now) else {
            let line = signer.sign(next)?;
            self.commit(&[Record::Mark(SignedMark { account: next.account.clone(), line: line.clone() })])?;
            return Ok(MarkSigned { line, earlier: false });
        };
        if let Some(last) = &last {
            // The reply was lost, and is sent again.
            let asked = signer.unsigned(next)?;
            if signed_part(last.line.as_bytes()).is_some_and(|(signed, _)| signed == asked.bytes()) {
                return Ok(MarkSigned { line: last.line.clone(), earlier: false });
            }
            // Two exporters at once, or a mark that never reached the log: neither contradicts the last mark.
            let raced = fault == MarkFault::Taken && last.mark.number.saturating_sub(next.number) < MAX_RACE;
            if raced && !marks::contradicts(next, &last.mark) {
                metrics::mark_refused("raced");
                return earlier(Some(last.clone()), call);
            }
        }
        self.refusals.add(&next.account, next.number, number, fault);
        match fault {
            MarkFault::Taken | MarkFault::Number | MarkFault::Previous => earlier(last, call),
            fault => Err(refused(fault)),
        }
    }

    /// The mark that the next one must follow. The log's last mark is later than the stored one in a deployment from
    /// before marks were stored, and after a backup of this directory was put back.
    fn base(
        &self,
        stored: Option<LastMark>,
        call: &SignMark,
    ) -> Result<(Option<LastMark>, Option<MarkFault>), ManageError> {
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
}

pub(crate) fn last_signed(store: &RecordStore, account: &AccountId) -> Result<Option<LastMark>, ManageError> {
    let Some(SignedMark { line, .. }) = store.mark(account)? else { return Ok(None) };
    Ok(Some(LastMark::parse(line).map_err(SignError::Json)?))
}

/// The line of the last mark that was signed for an account, unless it has expired, when the log may have dropped it.
pub(crate) fn last_line(
    store: &RecordStore,
    account: &AccountId,
    now: Timestamp,
) -> Result<Option<String>, ManageError> {
    let last = last_signed(store, account)?;
    Ok(last.filter(|last| last.mark.expires_at > now.as_second()).map(|last| last.line))
}

fn earlier(last: Option<LastMark>, call: &SignMark) -> Result<MarkSigned, ManageError> {
    match last.filter(|_| call.takes_earlier) {
        Some(last) => Ok(MarkSigned { line: last.line, earlier: true }),
        None => Err(refused(MarkFault::Taken)),
    }
}

fn refused(fault: MarkFault) -> ManageError {
    ManageError::Refused(Refusal::Conflict(format!("the mark is not signed: {fault}")))
}
