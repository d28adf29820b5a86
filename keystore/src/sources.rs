//! Where time and randomness come from.
//!
//! Tests set the clock. Where the operating system has no randomness, the caller fails.

use std::sync::Arc;

use jiff::Timestamp;

pub(crate) type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

pub(crate) fn random<const N: usize>() -> Result<[u8; N], getrandom::Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}
