//! One call with its attempts, within one deadline.
//!
//! What is tried again may have been executed: a check has the same `Idempotency-Key` at each attempt, and the other
//! calls have the same effect twice.

use std::time::Duration;

use data_encoding::HEXLOWER;
use reqwest::{Method, StatusCode};
use tokio::time::{Instant, sleep, timeout_at};

use super::Client;
use crate::connection::{Answer, ConnectionError};
use crate::judge::MAX_ANSWER_BYTES;

const MAX_ATTEMPTS: u32 = 3;
/// Before the second attempt; twice as long before the third.
const RETRY_DELAY: Duration = Duration::from_millis(200);
const IDEMPOTENCY_KEY: &str = "idempotency-key";
const KEY_BYTES: usize = 16;

pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) path: &'a [&'a str],
    pub(super) query: &'a [(&'a str, &'a str)],
    pub(super) body: Option<Vec<u8>>,
}

impl Client {
    /// The answer of the last attempt, whatever its status.
    pub(super) async fn exchange(
        &self,
        call: &Call<'_>,
        once: Option<&str>,
        deadline: Instant,
    ) -> Result<Answer, ConnectionError> {
        let per_attempt = deadline.saturating_duration_since(Instant::now()) / 2;
        let mut attempt = 1;
        loop {
            // A first attempt that hangs leaves time for a second one; the last has all that is left.
            let end = if attempt == MAX_ATTEMPTS { deadline } else { deadline.min(Instant::now() + per_attempt) };
            let result = match timeout_at(end, self.attempt(call, once)).await {
                Ok(result) => result,
                Err(_) => Err(ConnectionError::Timeout { url: self.connection.url().clone() }),
            };
            let Some(delay) = retry_delay(&result, attempt) else { return result };
            if attempt == MAX_ATTEMPTS || Instant::now() + delay >= deadline {
                return result;
            }
            sleep(delay).await;
            attempt += 1;
        }
    }

    pub(super) async fn attempt(&self, call: &Call<'_>, once: Option<&str>) -> Result<Answer, ConnectionError> {
        let Call { method, path, query, body } = call;
        let mut request = self.connection.request(method.clone(), path, query, body.clone())?;
        if let Some(once) = once {
            request = request.header(IDEMPOTENCY_KEY, once);
        }
        let response = self.connection.begin(request).await?;
        self.connection.read_bounded(response, MAX_ANSWER_BYTES).await
    }
}

/// How long to wait before the next attempt; none: the result is final.
fn retry_delay(result: &Result<Answer, ConnectionError>, attempt: u32) -> Option<Duration> {
    let backoff = || RETRY_DELAY * attempt + RETRY_DELAY.mul_f64(random_fraction());
    match result {
        Ok(answer) if matches!(answer.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) => {
            Some(answer.retry_after().unwrap_or_else(backoff))
        }
        Ok(_) => None,
        Err(ConnectionError::Unreachable { .. } | ConnectionError::Broken { .. } | ConnectionError::Timeout { .. }) => {
            Some(backoff())
        }
        Err(_) => None,
    }
}

/// Clients that failed together must not try again together.
fn random_fraction() -> f64 {
    getrandom::u32().map_or(0.5, |random| f64::from(random) / f64::from(u32::MAX))
}

/// A fresh `Idempotency-Key`.
pub(super) fn random_key() -> Result<String, getrandom::Error> {
    let mut bytes = [0; KEY_BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(HEXLOWER.encode(&bytes))
}
