//! The public path of the crate, from the bytes of an event to the bytes of an answer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod events;
mod own_files;
mod shell_table;
