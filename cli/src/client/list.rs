//! Lists that the server answers in pages.

use reqwest::Method;
use serde::de::DeserializeOwned;
use stage0_contract::Page;

use super::{Client, ClientError, Query};

/// How many items to read of a list that may be long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    pub(crate) items: u32,
    /// The size of a page, which the server limits.
    pub(crate) per_page: u32,
}

impl Client {
    /// Reads page after page until the limit is reached, or all of them. A page may be short, or empty, and not be the
    /// last.
    pub(crate) async fn list<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &Query,
        limit: Option<Limit>,
    ) -> Result<Page<T>, ClientError> {
        let mut items = Vec::new();
        let mut cursor = None::<String>;
        loop {
            let missing = limit.map(|limit| limit.items.saturating_sub(u32::try_from(items.len()).unwrap_or(u32::MAX)));
            let size = limit.zip(missing).map(|(limit, missing)| missing.min(limit.per_page));
            let query = query.clone().with("limit", size).with("cursor", cursor.as_ref());
            let page: Page<T> = self.call(Method::GET, path, &query.pairs(), None).await?;
            let count = u32::try_from(page.items.len()).unwrap_or(u32::MAX);
            items.extend(page.items);
            let is_enough = missing.is_some_and(|missing| count >= missing);
            // A server that repeats its cursor would keep this loop running for ever.
            if is_enough || page.next_cursor.is_none() || page.next_cursor == cursor {
                return Ok(Page { items, next_cursor: page.next_cursor });
            }
            cursor = page.next_cursor;
        }
    }
}
