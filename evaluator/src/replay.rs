//! Decides recorded decisions again by another policy, from the facts that were kept with them.
//!
//! The version is loaded as for a check of the account. One batch is replayed at a time in a process ([`Turns`]), on a
//! thread of its own; a batch that takes too long has no answer, and none of it is guessed.

use std::sync::Arc;

use stage0_contract::{KeptFacts, MAX_REPLAY_BATCH, ReplayDecisions, ReplayDecisionsReply, Replayed};
use stage0_policy::{Engine, Pack};
use tokio::time::Instant;

use crate::published::Published;
use crate::turns::{NotDone, Turns};

/// Replays the decisions of a process.
#[derive(Debug)]
pub(crate) struct Replayer {
    /// The pack that decides where none is active.
    own: Arc<Pack>,
    turns: Turns,
}

impl Replayer {
    pub(crate) fn new(own: Arc<Pack>) -> Arc<Self> {
        Arc::new(Self { own, turns: Turns::new("policy-replay") })
    }

    pub(crate) async fn replay(
        &self,
        published: &Published,
        message: &ReplayDecisions,
        deadline: Instant,
    ) -> ReplayDecisionsReply {
        let ReplayDecisions { account, version, facts } = message;
        if facts.len() > MAX_REPLAY_BATCH {
            return ReplayDecisionsReply::Unable(format!("more than {MAX_REPLAY_BATCH} decisions at once"));
        }
        let pack = match version {
            Some(version) => match published.load(Some(account), version, deadline).await {
                Ok(pack) => pack,
                Err(error) => return ReplayDecisionsReply::Unable(error.to_string()),
            },
            None => Arc::clone(&self.own),
        };
        let facts = facts.clone();
        match self.turns.run(deadline, move || replayed(pack, &facts, deadline)).await {
            Ok(Ok(replayed)) => ReplayDecisionsReply::Replayed(replayed),
            Ok(Err(why)) => ReplayDecisionsReply::Unable(why),
            Err(NotDone::Busy) => ReplayDecisionsReply::Busy,
            Err(NotDone::Ended) => ReplayDecisionsReply::Unable("the thread that replays them ended".to_owned()),
            Err(NotDone::TooLong) => ReplayDecisionsReply::Unable(TOO_LONG.to_owned()),
        }
    }
}

const TOO_LONG: &str = "it takes too long to replay them";

/// One for each, in their order.
fn replayed(pack: Arc<Pack>, facts: &[KeptFacts], deadline: Instant) -> Result<Vec<Replayed>, String> {
    let engine = Engine::new(pack).map_err(|error| format!("the policy cannot be prepared: {error}"))?;
    let mut replayed = Vec::with_capacity(facts.len());
    for kept in facts {
        // Its caller waits no longer, and others wait for their turn.
        if Instant::now() >= deadline {
            return Err(TOO_LONG.to_owned());
        }
        replayed.push(engine.replay(kept));
    }
    Ok(replayed)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use stage0_backplane::Backplane;
    use stage0_contract::{AccountId, ReplayGap};

    use super::*;
    use crate::published::SharedPolicies;

    #[tokio::test]
    async fn a_batch_beyond_the_bound_is_refused_before_anything_is_loaded() {
        let published = Published::new(SharedPolicies::new(), Arc::clone(&Backplane::embedded().requests));
        let mut message = ReplayDecisions {
            account: AccountId::parse("acc").unwrap(),
            version: Some(Pack::embedded().unwrap().version().clone()),
            facts: vec![KeptFacts::default(); MAX_REPLAY_BATCH + 1],
        };
        let (replayer, now) = (Replayer::new(Pack::embedded().unwrap()), Instant::now());
        let unable = |reply| match reply {
            ReplayDecisionsReply::Unable(why) => why,
            other => panic!("{other:?}"),
        };
        assert!(unable(replayer.replay(&published, &message, now).await).contains("at once"));
        message.facts.pop();
        assert!(unable(replayer.replay(&published, &message, now).await).contains("loaded"));
    }

    #[test]
    fn a_batch_past_its_time_has_no_answer_and_one_in_time_has_one_for_each() {
        let (pack, facts) = (Pack::embedded().unwrap(), vec![KeptFacts::default(); 3]);
        assert_eq!(replayed(Arc::clone(&pack), &facts, Instant::now()).unwrap_err(), TOO_LONG);
        let later = Instant::now() + Duration::from_secs(60);
        assert_eq!(replayed(pack, &facts, later).unwrap(), vec![Replayed::Not(ReplayGap::Unreadable); 3]);
    }
}
