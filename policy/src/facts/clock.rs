//! The time of a check as rules compare it.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::table::FactView;
use crate::vocabulary::{Windows, open_windows};

#[derive(Debug)]
pub(crate) struct Clock {
    at: Option<Timestamp>,
    pub(super) windows_open: Vec<String>,
}

impl Clock {
    pub(super) fn read(evaluated_at: i64, windows: &Windows) -> Self {
        // Cedar writes a year in four digits.
        let is_written = |at: &Timestamp| (0..=9999).contains(&at.to_zoned(TimeZone::UTC).year());
        let at = Timestamp::from_second(evaluated_at).ok().filter(is_written);
        Self { at, windows_open: at.map(|at| open_windows(windows, at)).unwrap_or_default() }
    }

    pub(super) fn now(&self) -> Option<FactView<'_>> {
        self.at.map(FactView::Datetime)
    }
}
