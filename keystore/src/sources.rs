//! Where time and randomness come from.
//!
//! The clock is an argument of everything that depends on the time, so tests set it. Randomness is the operating
//! system's; when there is none, the caller fails instead of using a weaker source.

use std::sync::Arc;

use jiff::Timestamp;

/// The current time.
pub(crate) type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Random bytes from the operating system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], getrandom::Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}
