//! Pages of records, small enough to be sent.
//!
//! A page ends at its limit or where the next record would make it too large. A record of any size gets a page, so that
//! listing always makes progress.

use serde::Serialize;

use crate::store::record_store::StoreError;

/// JSON bytes of the records in one page, a quarter of what a message carries. A single record is smaller.
const PAGE_BYTES: usize = 1 << 20;

/// The page, and the id of its last record if more follow.
pub(super) fn one_page<T: Serialize, Id>(
    records: impl Iterator<Item = Result<T, StoreError>>,
    limit: usize,
    id: fn(&T) -> Id,
) -> Result<(Vec<T>, Option<Id>), StoreError> {
    let (mut page, mut bytes) = (Vec::new(), 0);
    for record in records {
        let record = record?;
        bytes += serde_json::to_vec(&record)?.len();
        if page.len() == limit || (bytes > PAGE_BYTES && !page.is_empty()) {
            let last = page.last().map(id);
            return Ok((page, last));
        }
        page.push(record);
    }
    Ok((page, None))
}
