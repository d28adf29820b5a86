//! What was found of candidates, in the state store: one record for each, which all evaluators add to.
//!
//! A record says which writer added what last, so that a put whose outcome is unknown is tried again and adds once.
//! INVARIANT: what several evaluators found adds up exactly. A record that does not belong where it stands is refused.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use stage0_backplane::{PutError, ReadError, Revision, StateStore, random_fraction};
use stage0_contract::{
    AccountId, CANDIDATE_RECORDS, CandidateFindings, CandidatesRead, FieldError, FoundOfCandidate, MAX_CANDIDATES,
    ManageReply, ReadCandidates, Refusal,
};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{Of, Sent};
use crate::metrics;

/// How long a record is kept after its last change.
const TTL: Duration = Duration::from_secs(7 * 86_400);
/// Evaluators that a record remembers, each since its start.
const MAX_WRITERS: usize = 64;
/// The shortest delay after a conflict, and the random part of it, so that many evaluators do not collide again.
const CONFLICT_RETRY_DELAY: Duration = Duration::from_micros(500);
const CONFLICT_RETRY_SPREAD: Duration = Duration::from_millis(2);

/// Why findings are not stored or read.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("findings of candidates cannot be read")]
    Read(#[source] ReadError),
    #[error("findings of candidates cannot be written")]
    Write(#[source] PutError),
    #[error("the record of a candidate is malformed, or stands where it does not belong")]
    Forged,
    #[error("findings of candidates are changed by too many at once")]
    Contended,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredFindings {
    account: AccountId,
    candidate: Uuid,
    findings: CandidateFindings,
    /// The one that wrote last comes last.
    writers: Vec<Writer>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Writer {
    id: Uuid,
    /// What it added last.
    number: u64,
}

impl StoredFindings {
    fn new(of: &Of) -> Self {
        let Of { account, candidate } = of.clone();
        Self { account, candidate, findings: CandidateFindings::default(), writers: Vec::new() }
    }

    /// Adds findings; false if they were added already.
    fn add(&mut self, writer: Uuid, sent: &Sent) -> bool {
        if self.writers.iter().any(|known| known.id == writer && known.number >= sent.number) {
            return false;
        }
        self.writers.retain(|known| known.id != writer);
        self.writers.push(Writer { id: writer, number: sent.number });
        let beyond = self.writers.len().saturating_sub(MAX_WRITERS);
        self.writers.drain(..beyond);
        self.findings.add(sent.findings.clone());
        true
    }
}

fn key(of: &Of) -> String {
    format!("{CANDIDATE_RECORDS}.{}.{}", of.account, of.candidate)
}

async fn stored(
    state_store: &dyn StateStore,
    of: &Of,
    deadline: Instant,
) -> Result<Option<(StoredFindings, Revision)>, StoreError> {
    let Some(record) = state_store.get(&key(of), deadline).await.map_err(StoreError::Read)? else { return Ok(None) };
    let found: StoredFindings = serde_json::from_slice(&record.value).map_err(|_| StoreError::Forged)?;
    let belongs = found.account == of.account && found.candidate == of.candidate;
    if belongs { Ok(Some((found, record.revision))) } else { Err(StoreError::Forged) }
}

/// Adds what this writer found.
pub(super) async fn add(
    state_store: &dyn StateStore,
    writer: Uuid,
    (of, sent): (&Of, &Sent),
    deadline: Instant,
) -> Result<(), StoreError> {
    while Instant::now() < deadline {
        let found = stored(state_store, of, deadline).await?;
        let (mut record, revision) =
            found.map_or_else(|| (StoredFindings::new(of), None), |(record, revision)| (record, Some(revision)));
        if !record.add(writer, sent) {
            return Ok(());
        }
        let value = serde_json::to_vec(&record).map_err(|_| StoreError::Forged)?;
        match state_store.put(&key(of), Bytes::from(value), revision, Some(TTL), deadline).await {
            Ok(_) => return Ok(()),
            Err(PutError::Conflict) => pause().await,
            Err(error @ PutError::Failed(_)) => return Err(StoreError::Write(error)),
        }
    }
    Err(StoreError::Contended)
}

/// What all evaluators found of these candidates of an account.
pub(crate) async fn read(
    state_store: &dyn StateStore,
    message: &ReadCandidates,
    deadline: Instant,
) -> ManageReply<CandidatesRead> {
    let ReadCandidates { account, candidates } = message;
    if candidates.len() > MAX_CANDIDATES {
        let too_many = FieldError::new("candidates", format!("must be at most {MAX_CANDIDATES}"));
        return ManageReply::Refused(Refusal::Invalid(vec![too_many]));
    }
    let mut found = Vec::with_capacity(candidates.len());
    for candidate in candidates {
        let of = Of { account: account.clone(), candidate: *candidate };
        match stored(state_store, &of, deadline).await {
            Ok(Some((StoredFindings { findings, .. }, _))) => {
                found.push(FoundOfCandidate { candidate: *candidate, findings });
            }
            Ok(None) => {}
            Err(error) => {
                metrics::candidates_failed();
                tracing::warn!(%account, error = &error as &dyn std::error::Error, "candidates cannot be read");
                return ManageReply::Failed;
            }
        }
    }
    ManageReply::Done(CandidatesRead { found })
}

async fn pause() {
    let spread = CONFLICT_RETRY_SPREAD.mul_f64(random_fraction());
    sleep(CONFLICT_RETRY_DELAY + spread).await;
}

#[cfg(test)]
mod tests {
    use stage0_backplane::Backplane;
    use stage0_contract::CandidateCounts;

    use super::*;

    fn of(account: &str) -> Of {
        Of { account: AccountId::parse(account).unwrap(), candidate: Uuid::from_u128(7) }
    }

    fn sent(number: u64, checks: u64) -> Sent {
        let counts = CandidateCounts { checks, ..CandidateCounts::default() };
        Sent { number, findings: CandidateFindings { counts, ..CandidateFindings::default() } }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    async fn counted(state_store: &dyn StateStore, account: &str) -> Option<u64> {
        let message = ReadCandidates { account: of(account).account, candidates: vec![of(account).candidate] };
        let ManageReply::Done(CandidatesRead { found }) = read(state_store, &message, soon()).await else {
            panic!("not read")
        };
        found.first().map(|found| found.findings.counts.checks)
    }

    #[tokio::test]
    async fn what_is_sent_again_adds_once_and_what_another_writer_sends_under_that_number_adds() {
        let backplane = Backplane::embedded();
        let (state_store, one, other) = (&*backplane.state_store, Uuid::from_u128(1), Uuid::from_u128(2));
        assert_eq!(counted(state_store, "a").await, None);
        for (writer, number, checks, total) in [(one, 1, 3, 3), (one, 1, 3, 3), (other, 1, 4, 7), (one, 2, 1, 8)] {
            add(state_store, writer, (&of("a"), &sent(number, checks)), soon()).await.unwrap();
            assert_eq!(counted(state_store, "a").await, Some(total), "{number}");
        }
        assert_eq!(counted(state_store, "b").await, None, "the same id of another account");
    }

    #[tokio::test]
    async fn many_writers_at_once_add_up() {
        let backplane = Backplane::embedded();
        let (state_store, of) = (&*backplane.state_store, of("a"));
        let adding = (0..20_u64).map(|number| {
            let of = &of;
            async move {
                let writer = Uuid::from_u128(u128::from(number % 2));
                add(state_store, writer, (of, &sent(number, 1)), soon()).await.unwrap();
            }
        });
        // The numbers of one writer come in their order.
        let (even, odd): (Vec<_>, Vec<_>) = adding.enumerate().partition(|(number, _)| number % 2 == 0);
        let in_order = async |adding: Vec<(usize, _)>| {
            for (_, one) in adding {
                let one: std::pin::Pin<Box<dyn Future<Output = ()>>> = Box::pin(one);
                one.await;
            }
        };
        tokio::join!(in_order(even), in_order(odd));
        assert_eq!(counted(state_store, "a").await, Some(20));
    }

    #[tokio::test]
    async fn a_record_of_another_account_is_refused_and_so_are_too_many_candidates() {
        let backplane = Backplane::embedded();
        let state_store = &*backplane.state_store;
        let record = serde_json::to_vec(&StoredFindings::new(&of("b"))).unwrap();
        state_store.put(&key(&of("a")), record.into(), None, None, soon()).await.unwrap();
        let mut message = ReadCandidates { account: of("a").account, candidates: vec![of("a").candidate] };
        assert_eq!(read(state_store, &message, soon()).await, ManageReply::Failed);
        let refused = add(state_store, Uuid::nil(), (&of("a"), &sent(1, 1)), soon()).await;
        assert!(matches!(refused, Err(StoreError::Forged)));
        message.candidates = vec![Uuid::from_u128(9); MAX_CANDIDATES];
        assert!(matches!(read(state_store, &message, soon()).await, ManageReply::Done(_)));
        message.candidates.push(Uuid::nil());
        assert!(matches!(read(state_store, &message, soon()).await, ManageReply::Refused(Refusal::Invalid(_))));
    }

    #[test]
    fn a_record_remembers_the_last_writers() {
        let mut record = StoredFindings::new(&of("a"));
        for writer in 0..=MAX_WRITERS as u128 {
            assert!(record.add(Uuid::from_u128(writer), &sent(1, 1)));
        }
        assert_eq!((record.writers.len(), record.findings.counts.checks), (MAX_WRITERS, MAX_WRITERS as u64 + 1));
        assert!(!record.add(Uuid::from_u128(1), &sent(1, 1)));
    }
}
