//! Judges packs that are about to be published: whether they load, and whether all of their cases hold.
//!
//! One is judged at a time in a process, in turns by account ([`FairTurns`]), and each for a while at most: an account
//! that publishes heavy packs delays others by one of them.

use std::sync::Arc;
use std::time::Duration;

use stage0_contract::{PolicyFault, ValidatePolicy, ValidatePolicyReply};
use stage0_policy::{Pack, TimeLimit};
use tokio::time::{Instant, timeout_at};

use crate::fair_turns::FairTurns;
use crate::own_thread::on_own_thread;

/// Accounts whose packs wait: each holds a megabyte.
const MAX_WAITING: usize = 16;
/// How long one pack is judged, in processor time.
const JUDGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Faults that an answer names, and the bytes of the text of each: an answer must fit into a message.
const MAX_FAULTS: usize = 100;
const MAX_FAULT_BYTES: usize = 2_000;

/// Judges the packs of a process.
#[derive(Debug)]
pub(crate) struct Validator {
    turns: FairTurns,
    timeout: Duration,
}

impl Validator {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { turns: FairTurns::new(MAX_WAITING), timeout: JUDGE_TIMEOUT })
    }

    pub(crate) async fn validate(&self, message: &ValidatePolicy, deadline: Instant) -> ValidatePolicyReply {
        let owner = (!message.by_operator).then_some(&message.account);
        let Ok(turn) = self.turns.wait(owner, deadline).await else { return ValidatePolicyReply::Busy };
        let (bundle, timeout) = (message.bundle.clone(), self.timeout);
        let judge = move || {
            // Until the end, whether its caller waits or not.
            let _turn = turn;
            let limit = TimeLimit::of_thread(timeout);
            Pack::judge(&bundle, limit).map(|pack| pack.summary())
        };
        match timeout_at(deadline, on_own_thread("policy-judge", judge)).await {
            Ok(Some(Ok(summary))) => ValidatePolicyReply::Valid(summary),
            Ok(Some(Err(error))) => ValidatePolicyReply::Invalid(bounded(error.to_faults())),
            Ok(None) => ValidatePolicyReply::Unable("the thread that judges it ended".to_owned()),
            Err(_) => ValidatePolicyReply::Unable("it takes too long to judge".to_owned()),
        }
    }
}

/// The first faults, with how many there are.
fn bounded(mut faults: Vec<PolicyFault>) -> Vec<PolicyFault> {
    let count = faults.len();
    faults.truncate(MAX_FAULTS);
    for fault in &mut faults {
        cut(&mut fault.message);
        fault.help.iter_mut().for_each(cut);
        fault.rule.iter_mut().for_each(cut);
    }
    if let Some(last) = faults.last_mut().filter(|_| count > MAX_FAULTS) {
        last.message.push_str(&format!("; there are {} more faults", count - MAX_FAULTS));
    }
    faults
}

fn cut(text: &mut String) {
    if text.len() > MAX_FAULT_BYTES {
        text.truncate(text.floor_char_boundary(MAX_FAULT_BYTES));
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use futures_util::FutureExt;
    use stage0_contract::{AccountId, PolicyBundle};

    use super::*;

    fn template_of(account: &str, edit: impl FnOnce(&mut PolicyBundle)) -> ValidatePolicy {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/money-movement");
        let mut bundle = Pack::bundle(&folder).unwrap();
        edit(&mut bundle);
        ValidatePolicy { account: AccountId::parse(account).unwrap(), by_operator: false, bundle }
    }

    fn template(edit: impl FnOnce(&mut PolicyBundle)) -> ValidatePolicy {
        template_of("acc", edit)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn is_valid(reply: &ValidatePolicyReply) -> bool {
        matches!(reply, ValidatePolicyReply::Valid(_))
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
    async fn a_quiet_account_is_judged_after_one_pack_of_a_busy_one_whose_others_come_again() {
        let validator = Validator::new();
        let (busy, quiet) = (template_of("busy", |_| {}), template_of("quiet", |_| {}));
        let mut first = Box::pin(validator.validate(&busy, soon()));
        assert!((&mut first).now_or_never().is_none());
        for _ in 0..8 {
            assert_eq!(validator.validate(&busy, soon()).await, ValidatePolicyReply::Busy);
        }
        let mut its_turn = Box::pin(validator.validate(&quiet, soon()));
        assert!((&mut its_turn).now_or_never().is_none());
        assert!(is_valid(&first.await));
        let again = validator.validate(&busy, soon());
        let (quiet, again) = tokio::join!(its_turn, again);
        assert!(is_valid(&quiet) && is_valid(&again));
    }

    #[tokio::test]
    async fn the_operators_own_pack_has_a_place_where_all_others_are_taken() {
        let validator = Validator::new();
        let working = validator.turns.wait(Some(&AccountId::parse("working").unwrap()), soon()).await.unwrap();
        let accounts: Vec<_> = (0..MAX_WAITING).map(|n| AccountId::parse(&format!("a{n}")).unwrap()).collect();
        let mut waiting: Vec<_> =
            accounts.iter().map(|account| Box::pin(validator.turns.wait(Some(account), soon()))).collect();
        waiting.iter_mut().for_each(|one| assert!(one.now_or_never().is_none()));
        let message = template(|_| {});
        assert_eq!(validator.validate(&message, soon()).await, ValidatePolicyReply::Busy);
        let own = ValidatePolicy { by_operator: true, ..message };
        let mut own = Box::pin(validator.validate(&own, soon()));
        assert!((&mut own).now_or_never().is_none());
        drop(working);
        assert!(is_valid(&own.await));
    }

    #[tokio::test]
    async fn a_pack_that_takes_too_long_is_refused_and_the_next_one_has_its_turn() {
        let mut validator = Validator { turns: FairTurns::new(MAX_WAITING), timeout: Duration::ZERO };
        let ValidatePolicyReply::Invalid(faults) = validator.validate(&template(|_| {}), soon()).await else {
            panic!("judged")
        };
        assert!(faults[0].message.contains("takes too long"), "{faults:?}");
        validator.timeout = JUDGE_TIMEOUT;
        let late = validator.validate(&template(|_| {}), Instant::now()).await;
        assert!(matches!(late, ValidatePolicyReply::Unable(_)), "{late:?}");
        // It is judged to its end, and holds its turn until then.
        assert!(is_valid(&validator.validate(&template_of("other", |_| {}), soon()).await));
    }

    #[test]
    fn an_answer_names_as_many_faults_as_fit_into_a_message() {
        let fault = PolicyFault {
            pack: 0,
            file: Some("rules.cedar".to_owned()),
            line: Some(1),
            rule: Some("ä".repeat(MAX_FAULT_BYTES)),
            message: "ä".repeat(MAX_FAULT_BYTES),
            help: Some("ä".repeat(MAX_FAULT_BYTES)),
        };
        let all = bounded(vec![fault.clone(); MAX_FAULTS + 3]);
        assert_eq!(all.len(), MAX_FAULTS);
        assert!(all[MAX_FAULTS - 1].message.ends_with("…; there are 3 more faults"));
        assert!(serde_json::to_vec(&all).unwrap().len() < 900_000);
        let short = PolicyFault { message: "m".to_owned(), help: None, rule: None, ..fault };
        assert_eq!(bounded(vec![short.clone(); MAX_FAULTS]), vec![short; MAX_FAULTS]);
    }
}
