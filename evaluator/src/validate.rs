//! Judges packs that are about to be published: whether they load, and whether all of their cases hold.
//!
//! One is judged at a time in a process, on a thread of its own, and a few may wait. What takes longer than its caller
//! waits is judged to its end all the same, and meanwhile no other is.

use std::sync::Arc;

use stage0_contract::{ValidatePolicy, ValidatePolicyReply};
use stage0_policy::Pack;
use tokio::sync::{Semaphore, TryAcquireError};
use tokio::time::{Instant, timeout_at};

use crate::own_thread::on_own_thread;

/// Packs that wait to be judged, the one that is judged included: each holds a megabyte.
const MAX_WAITING: usize = 4;

/// Judges the packs of a process.
#[derive(Debug)]
pub(crate) struct Validator {
    waiting: Semaphore,
    judging: Arc<Semaphore>,
}

impl Validator {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { waiting: Semaphore::new(MAX_WAITING), judging: Arc::new(Semaphore::new(1)) })
    }

    pub(crate) async fn validate(&self, message: &ValidatePolicy, deadline: Instant) -> ValidatePolicyReply {
        let _place = match self.waiting.try_acquire() {
            Ok(place) => place,
            Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => return ValidatePolicyReply::Busy,
        };
        let Ok(Ok(turn)) = timeout_at(deadline, Arc::clone(&self.judging).acquire_owned()).await else {
            return ValidatePolicyReply::Busy;
        };
        let bundle = message.bundle.clone();
        let judge = move || {
            // Until the end, whether its caller waits or not.
            let _turn = turn;
            Pack::from_bundle(&bundle).map(|pack| pack.summary())
        };
        match timeout_at(deadline, on_own_thread("policy-judge", judge)).await {
            Ok(Some(Ok(summary))) => ValidatePolicyReply::Valid(summary),
            Ok(Some(Err(error))) => ValidatePolicyReply::Invalid(error.to_faults()),
            Ok(None) => ValidatePolicyReply::Unable("the thread that judges it ended".to_owned()),
            Err(_) => ValidatePolicyReply::Unable("it takes too long to judge".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use stage0_contract::{AccountId, PolicyBundle};

    use super::*;

    fn template(edit: impl FnOnce(&mut PolicyBundle)) -> ValidatePolicy {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/money-movement");
        let mut bundle = Pack::bundle(&folder).unwrap();
        edit(&mut bundle);
        ValidatePolicy { account: AccountId::parse("acc").unwrap(), bundle }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn a_valid_pack_is_answered_with_its_version_and_a_broken_one_with_its_faults() {
        let validator = Validator::new();
        let ValidatePolicyReply::Valid(summary) = validator.validate(&template(|_| {}), soon()).await else {
            panic!("refused")
        };
        assert_eq!(&summary.version, Pack::template("money-movement").unwrap().unwrap().version());
        let broken = template(|bundle| {
            let rules = bundle.packs[0].files.get_mut("payments.cedar").unwrap();
            rules.insert_str(0, "\nforbid (principal action, resource);\n");
        });
        let ValidatePolicyReply::Invalid(faults) = validator.validate(&broken, soon()).await else {
            panic!("accepted")
        };
        assert_eq!((faults[0].pack, faults[0].file.as_deref(), faults[0].line), (0, Some("payments.cedar"), Some(2)));
    }

    #[tokio::test]
    async fn more_packs_than_may_wait_are_told_to_come_again() {
        let validator = Validator::new();
        let places: Vec<_> = (0..MAX_WAITING).map(|_| validator.waiting.try_acquire().unwrap()).collect();
        let message = template(|_| {});
        assert_eq!(validator.validate(&message, soon()).await, ValidatePolicyReply::Busy);
        drop(places);
        assert!(matches!(validator.validate(&message, soon()).await, ValidatePolicyReply::Valid(_)));
    }

    #[tokio::test]
    async fn a_pack_whose_turn_does_not_come_in_time_is_told_to_come_again() {
        let validator = Validator::new();
        let turn = Arc::clone(&validator.judging).acquire_owned().await.unwrap();
        assert_eq!(validator.validate(&template(|_| {}), Instant::now()).await, ValidatePolicyReply::Busy);
        drop(turn);
        let late = validator.validate(&template(|_| {}), Instant::now()).await;
        assert!(matches!(late, ValidatePolicyReply::Unable(_)), "{late:?}");
        // It is judged to its end, and holds its turn until then.
        assert!(matches!(validator.validate(&template(|_| {}), soon()).await, ValidatePolicyReply::Valid(_)));
    }
}
