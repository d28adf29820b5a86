//! Processes that stop for a while and go on.
