//! What the policy crate promises as a whole: packs, rules, remedies and the growth of work with input.

// Compiled as a test module, so that helpers may panic like tests.
#[cfg(test)]
mod suite {
    mod approval_packs;
    mod approvals;
    mod baseline;
    mod grants;
    mod growth;
    mod packs;
    mod promises;
    mod remedies;
    mod stops;
}
