//! What the evaluator promises as a whole.

mod suite {
    mod baseline;
    mod packs;
    mod promises;
    mod service;
}
