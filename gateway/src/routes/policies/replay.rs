//! Recorded decisions, decided again by another policy: `GET /v1/policies/{version}/replay`, and before an activation.
//!
//! The gateway reads the account's own log, as every read of it does, and evaluators decide what was kept of it.
//! A verdict is compared with that of the policy that is active at the decision's place, by the same facts: what a
//! version decided that was rolled back, or a canary, is no flip of what comes next.
//! INVARIANT: what cannot be decided again is counted as such; a log or an evaluator that does not answer ends the
//! replay with a 503, and nothing is made up from a part of it.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::web::Path;
use jiff::{SignedDuration, Timestamp};
use stage0_contract::{
    AccountId, ActivatePolicy, ActivationDone, ActivePolicies, DEFAULT_REPLAYED, KeptFacts, MAX_REPLAY_BATCH,
    MAX_REPLAY_BATCH_BYTES, MAX_REPLAYED, PoliciesInForce, PolicyReplay, PolicyVersion, ReadActivePolicies,
    ReplayDecisions, ReplayDecisionsReply, ReplayGap, ReplaySummary, Replayed, Scope, ShowPolicy,
};
use tokio::time::{Instant, sleep, timeout_at};

use self::sum::{Finished, Sum};
use super::{MAX_ENVIRONMENT_CHARS, named};
use crate::errors::{ApiError, How, Part};
use crate::log_reader::{Environments, Kept, LogReader, Past, PastDecision};
use crate::routes::decisions::{DOWNLOAD_BYTES, admit_read, hold_bytes};
use crate::routes::management::Call;
use crate::state::AppState;

mod sum;

const REPLAY_TIMEOUT: Duration = Duration::from_secs(30);
/// After an evaluator said that others are being replayed.
const BUSY_DELAY: Duration = Duration::from_millis(200);
/// Decisions of so long are read where no time is given, and before an activation.
const USUAL_SPAN: SignedDuration = SignedDuration::from_hours(7 * 24);

pub(in crate::routes) async fn replay(call: Call, version: Path<String>) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::PoliciesManage).await?;
    // An operator reads no decisions.
    if caller.scopes.contains(&Scope::Operator) {
        return Err(ApiError::ScopeMissing(Scope::PoliciesManage));
    }
    let identity = call.identity()?;
    let number = admit_read(&call.state, &identity)?;
    let mut fields = call.query_fields();
    let environment = fields.prose("environment", MAX_ENVIRONMENT_CHARS);
    let from = fields.timestamp("from");
    let until = fields.timestamp("until").unwrap_or_else(Timestamp::now);
    let gate = fields.word("gate", "must be `true` or `false`", |text| text.parse().ok()).unwrap_or_default();
    let [usual, max] = [DEFAULT_REPLAYED, MAX_REPLAYED].map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    let usual = if gate { max } else { usual };
    let limit = usize::try_from(fields.limit_within(usual, max)).unwrap_or(MAX_REPLAYED);
    let from = from.unwrap_or_else(|| usual_from(until));
    if from > until {
        fields.refuse("from", "must not be after `until`");
    }
    fields.finish()?;
    let version = named(&version)?;
    let (account, of_caller) = (identity.account.clone(), caller.clone());
    let may_read = caller.scopes.contains(&Scope::DecisionsRead);
    call.send(&ShowPolicy { caller: of_caller, version: version.clone(), account: None, files: false }).await?;
    let in_force = call.send(&ReadActivePolicies { caller, account: None }).await?;
    let environments = environments(environment, &in_force);
    let _permit = call.state.read_pool.replay(number)?;
    let _hold = hold_bytes(&call, &identity, DOWNLOAD_BYTES)?;
    let log = LogReader::new(&call.state.reading.log, &identity);
    let past = Past::new(log, (from, until), environments, limit).refused_only(gate);
    let deadline = Instant::now() + REPLAY_TIMEOUT;
    let question = Question::new((&call.state, account), version, in_force, deadline);
    let Finished { mut shown, .. } = question.replay(past).await?.finish(question.version, from, until);
    if !may_read {
        shown.left_out += u64::try_from(shown.items.len()).unwrap_or(u64::MAX);
        shown.items.clear();
    }
    Ok(HttpResponse::Ok().json(shown))
}

/// What was replayed before an activation.
pub(super) struct Before {
    pub(super) shown: PolicyReplay,
    /// Why the number of it says too little of what is decided now; none: it says enough.
    pub(super) stale: Option<String>,
}

/// Replays the newest decisions of the account that an activation is for, and of the place that it is for. `until` only
/// fixes their number: what was recorded since must hold no flip of another kind.
pub(super) async fn before(
    call: &Call,
    account: &AccountId,
    asked: &ActivatePolicy,
    tried: &ActivationDone,
    until: Timestamp,
) -> Result<Before, ApiError> {
    let (caller, of_account) = (asked.caller.clone(), asked.account.clone());
    let in_force = call.send(&ReadActivePolicies { caller, account: of_account }).await?;
    let environments = environments(asked.environment.clone(), &in_force);
    let state = &call.state;
    let deadline = Instant::now() + REPLAY_TIMEOUT;
    let _permit = state.read_pool.replay_in_turn(state.bytes.key_of(account), deadline).await?;
    let log = || LogReader::within(&state.reading.log, account.clone(), tried.retention_days);
    // What was allowed goes no further.
    let past = |from, until| Past::new(log(), (from, until), environments.clone(), MAX_REPLAYED).refused_only(true);
    let (deadline, version) = (Instant::now() + REPLAY_TIMEOUT, asked.version.clone());
    let question = Question::new((state, account.clone()), version, in_force, deadline);
    let (from, now) = (usual_from(until), Timestamp::now());
    let Finished { shown, kinds } =
        question.replay(past(from, until)).await?.finish(asked.version.clone(), from, until);
    let stale = if asked.replayed_until.is_some() && until < now {
        let since = question.replay(past(until, now)).await?;
        since.finish(asked.version.clone(), until, now).stale(&kinds)
    } else {
        None
    };
    Ok(Before { shown, stale })
}

/// What the line of an activation says of the replay before it.
pub(super) fn summary(replay: &PolicyReplay) -> ReplaySummary {
    let PolicyReplay { until, decisions, replayed, flips, has_older, .. } = *replay;
    ReplaySummary { until, decisions, replayed, flips, has_older }
}

fn usual_from(until: Timestamp) -> Timestamp {
    until.checked_sub(USUAL_SPAN).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Those of a place. The account's default decides in environments without an activation of their own.
fn environments(environment: Option<String>, in_force: &PoliciesInForce) -> Environments {
    match environment {
        Some(environment) => Environments::Only(environment),
        None => Environments::Except(in_force.own.environments.keys().cloned().collect()),
    }
}

/// By which version decisions are decided again, and until when.
struct Question<'a> {
    state: &'a AppState,
    account: AccountId,
    version: PolicyVersion,
    /// What decides now, where the version would.
    active: ActivePolicies,
    floor: Option<PolicyVersion>,
    deadline: Instant,
}

impl<'a> Question<'a> {
    fn new(
        (state, account): (&'a AppState, AccountId),
        version: PolicyVersion,
        in_force: PoliciesInForce,
        deadline: Instant,
    ) -> Self {
        let PoliciesInForce { effective: active, floor, .. } = in_force;
        Self { state, account, version, active, floor, deadline }
    }

    async fn replay(&self, mut past: Past) -> Result<Sum, ApiError> {
        let _turn = self.state.read_pool.turn_to_replay(self.deadline).await?;
        let mut sum = Sum::default();
        while past.goes_on() {
            let (decisions, rest) = self.read(past).await?;
            past = rest;
            let mut decisions = decisions.into_iter().peekable();
            while decisions.peek().is_some() {
                let mut bytes = 0;
                let batch: Vec<PastDecision> = std::iter::from_fn(|| {
                    // One that is larger alone is sent alone.
                    let fits = |next: &PastDecision| bytes == 0 || bytes + next.bytes <= MAX_REPLAY_BATCH_BYTES;
                    let next = decisions.next_if(fits)?;
                    bytes += next.bytes;
                    Some(next)
                })
                .take(MAX_REPLAY_BATCH)
                .collect();
                self.decide(batch, &mut sum).await?;
            }
        }
        sum.has_older = past.has_older();
        Ok(sum)
    }

    async fn read(&self, past: Past) -> Result<(Vec<PastDecision>, Past), ApiError> {
        let unread = ApiError::NotReplayed(Part::LogUnread);
        let reading = self.state.read_pool.run(async move { past.next().await });
        let read = timeout_at(self.deadline, reading).await.map_err(|_| {
            tracing::warn!(account = %self.account, "a replay ran out of time while it read the log");
            unread.clone()
        })?;
        read?.map_err(|error| {
            tracing::error!(error = &error as &dyn Error, "decisions could not be read for a replay");
            unread
        })
    }

    async fn decide(&self, mut batch: Vec<PastDecision>, sum: &mut Sum) -> Result<(), ApiError> {
        let take = |past: &mut PastDecision| {
            let mut facts = past.facts.take()?;
            // A floor that stands no longer denies nothing.
            facts.floor = facts.floor.filter(|_| past.floor_version == self.floor);
            Some(facts)
        };
        let facts: Vec<Option<KeptFacts>> = batch.iter_mut().map(take).collect();
        let by_active = self.by_active(&batch, &facts).await?;
        let kept = facts.into_iter().flatten().collect();
        let mut replayed = self.ask(Some(&self.version), kept).await?.into_iter();
        for (past, active) in batch.into_iter().zip(by_active) {
            let replayed = match past.facts {
                Kept::Nothing => Replayed::Not(ReplayGap::NotKept),
                Kept::Unreadable => Replayed::Not(ReplayGap::Unreadable),
                Kept::Taken | Kept::Facts(_) => replayed.next().ok_or_else(|| self.failed(How::Failed))?,
            };
            sum.add(past, active, replayed);
        }
        Ok(())
    }

    /// What the active policies decide; none where that is what is recorded, or all that is known.
    async fn by_active(
        &self,
        batch: &[PastDecision],
        facts: &[Option<KeptFacts>],
    ) -> Result<Vec<Option<Replayed>>, ApiError> {
        let mut of_version: BTreeMap<Option<&PolicyVersion>, Vec<usize>> = BTreeMap::new();
        for (index, (past, facts)) in batch.iter().zip(facts).enumerate() {
            let active = self.active.of(Some(past.environment.as_str()).filter(|name| !name.is_empty()));
            let is_the_same = active == Some(&past.policy_version) && past.floor_version == self.floor;
            if facts.is_some() && !is_the_same {
                of_version.entry(active).or_default().push(index);
            }
        }
        let mut replayed: Vec<Option<Replayed>> = std::iter::repeat_with(|| None).take(batch.len()).collect();
        for (version, indices) in of_version {
            let kept = indices.iter().filter_map(|index| facts.get(*index)?.clone()).collect();
            for (index, one) in indices.into_iter().zip(self.ask(version, kept).await?) {
                if let Some(place) = replayed.get_mut(index) {
                    *place = Some(one);
                }
            }
        }
        Ok(replayed)
    }

    /// One for each, in their order.
    async fn ask(&self, version: Option<&PolicyVersion>, facts: Vec<KeptFacts>) -> Result<Vec<Replayed>, ApiError> {
        let count = facts.len();
        if count == 0 {
            return Ok(Vec::new());
        }
        let message = ReplayDecisions { account: self.account.clone(), version: version.cloned(), facts };
        loop {
            match self.state.requests().request_until(&message, self.deadline).await {
                Ok(ReplayDecisionsReply::Replayed(replayed)) if replayed.len() == count => return Ok(replayed),
                Ok(ReplayDecisionsReply::Replayed(replayed)) => {
                    tracing::error!(count, replayed = replayed.len(), "an evaluator did not replay each decision");
                    return Err(self.failed(How::Failed));
                }
                Ok(ReplayDecisionsReply::Busy) if Instant::now() + BUSY_DELAY < self.deadline => {
                    sleep(BUSY_DELAY).await;
                }
                Ok(ReplayDecisionsReply::Busy) => return Err(self.failed(How::Busy)),
                Ok(ReplayDecisionsReply::Unable(reason)) => {
                    tracing::error!(policy_version = %self.version, reason, "decisions could not be replayed");
                    return Err(self.failed(How::Failed));
                }
                Err(error) => {
                    let cause = &error as &dyn Error;
                    tracing::error!(policy_version = %self.version, error = cause, "decisions were not replayed");
                    return Err(ApiError::NotReplayed(Part::asked::<ReplayDecisions>(&error)));
                }
            }
        }
    }

    fn failed(&self, how: How) -> ApiError {
        ApiError::NotReplayed(Part::answered::<ReplayDecisions>(how))
    }
}

#[cfg(test)]
mod tests;
