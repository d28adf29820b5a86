//! Clocks that are wrong, amounts and names without bounds.
