//! What the policy crate promises as a whole: packs, rules, remedies and the growth of work with input.

// Compiled as a test module, so that helpers may panic like tests.
#[cfg(test)]
mod suite {
    mod approval_packs;
    mod approvals;
    mod baseline;
    mod bundles;
    mod diff;
    mod equivalence;
    mod facts;
    mod facts_refused;
    mod floors;
    mod grants;
    mod growth;
    mod held_up;
    mod hostile;
    mod judged;
    mod own_rules;
    mod packs;
    mod packs_extend;
    mod packs_found;
    mod packs_weaken;
    mod promises;
    mod remedies;
    mod replay;
    mod stops;
    mod tools_named;
}
