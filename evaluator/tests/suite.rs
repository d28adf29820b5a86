//! What the evaluator promises as a whole: serving checks over a backplane, and the state of runs.

// Only a test build has it, so that helpers may fail as loudly as tests.
#[cfg(test)]
mod suite {
    mod approvals;
    mod candidates;
    mod comparing;
    mod guards;
    mod history;
    mod preloaded;
    mod probes;
    mod published;
    mod replaying;
    mod runs;
    mod service;
}
