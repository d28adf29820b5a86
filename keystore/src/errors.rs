//! How errors appear in the log: with all their sources, once, where they are handled.

use std::error::Error;

/// An error and its sources on one line, outermost first.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    std::iter::successors(Some(error), |&error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
