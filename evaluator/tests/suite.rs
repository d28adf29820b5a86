//! What the evaluator promises as a whole.

// Only a test build has it, so that helpers may fail as loudly as tests.
#[cfg(test)]
mod suite {
    mod baseline;
    mod growth;
    mod packs;
    mod promises;
    mod remedies;
    mod runs;
    mod service;
}
