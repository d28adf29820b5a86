//! The query of a request, and how much of a list is read.

/// The parameters of a request, in order.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(&'static str, String)>);

impl Query {
    /// With one more parameter, if there is a value.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: Option<impl ToString>) -> Self {
        self.0.extend(value.map(|value| (name, value.to_string())));
        self
    }

    /// As [`Connection::send`](super::Connection::send) takes them.
    pub fn pairs(&self) -> Vec<(&str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }
}

/// How much of a list is read.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// At most so many items.
    pub items: u32,
    /// At most so many in one request.
    pub per_page: u32,
}
