//! What a request depends on beside its key, from its authorization to its answer.
//!
//! INVARIANT: a decision that was made before a stop is never released after it.

use std::time::Duration;

use jiff::Timestamp;
use stage0_backplane::clock::boottime;
use stage0_contract::{CandidateMode, KeyIdentity, PolicyCandidate, Stop};

/// Scopes count in every case: the request was authorized by those that the key had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Binding {
    /// On nothing else.
    Key,
    /// On the account's rules: a check that is being decided.
    Rules,
    /// On the account's rules without its policies, until this boottime: a decision that counts, and whose answer is on
    /// its way. It names the version that was active when it was recorded.
    Decision { until: Duration },
}

impl Binding {
    /// Whether a request that began with the identity of `before` may go on with that of `now`.
    pub(super) fn allows(self, now: &KeyIdentity, before: &KeyIdentity) -> bool {
        if now.scopes != before.scopes {
            return false;
        }
        match self {
            Self::Key => true,
            Self::Rules => !has_other_rules(now, before) && !has_other_policy(now, before),
            Self::Decision { until } => {
                !has_other_rules(now, before) && (!has_other_policy(now, before) || boottime() < until)
            }
        }
    }
}

fn has_other_policy(now: &KeyIdentity, before: &KeyIdentity) -> bool {
    now.rules.policy != before.rules.policy
        || now.rules.floor != before.rules.floor
        || !canaries(now).eq(canaries(before))
}

/// A shadow decides nothing.
fn canaries(identity: &KeyIdentity) -> impl Iterator<Item = &PolicyCandidate> {
    identity.rules.candidates.iter().filter(|candidate| candidate.mode == CandidateMode::Canary)
}

/// Whether a check may be decided otherwise now than with the identity of before, by the same policy. A stop that ends
/// by itself is no change: until then it was in force, and the policy judges its end.
fn has_other_rules(now: &KeyIdentity, before: &KeyIdentity) -> bool {
    let time = Timestamp::now();
    let in_force = |identity: &KeyIdentity| -> Vec<Stop> {
        let holds = |stop: &&Stop| stop.until.is_none_or(|until| until > time);
        identity.rules.stops.iter().filter(holds).cloned().collect()
    };
    // Rules that read what was not told have failed, so a decision without it stands.
    let is_told_otherwise = (before.groups.is_some() && now.groups != before.groups)
        || (before.key_name.is_some() && now.key_name != before.key_name);
    is_told_otherwise
        || now.holder != before.holder
        || now.rules.approvals != before.rules.approvals
        || now.rules.four_eyes != before.rules.four_eyes
        || in_force(now) != in_force(before)
}
