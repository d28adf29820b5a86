//! The header that authenticates a message between roles: what is read is written, and is then read as the same.

use stage0_backplane::nats::fuzz_support::Header;

use crate::{Target, text};

pub(crate) const TARGET: Target = Target::new("message_header", check);

/// A sender, a key for each role, and one signature.
const MAX_PROOFS: usize = 5;

fn check(input: &[u8]) -> bool {
    let Some(header) = Header::parse(&text(input)) else { return false };
    assert!(header.proofs() <= MAX_PROOFS);
    assert_eq!(Header::parse(&header.to_text()).as_ref(), Some(&header), "written as {}", header.to_text());
    true
}
