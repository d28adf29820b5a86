//! The may-ever question of one shard: which of an account's tools are surely denied.
//!
//! The policies that decide are chosen as for a check without a run: the active one of the place, with the floor
//! beside it. The work is done a few tools at a time on the thread for large checks, so that checks do not wait for
//! it; of one account one question is worked on at a time, and few more wait.
//! INVARIANT: nothing is counted, reserved or stored, and what is not certain is `maybe`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use stage0_contract::{
    AccountId, AccountRules, CallerTexts, CheckRequest, EvaluateReply, EvaluateRequest, IssueCode, MAX_PROBED_TOOLS,
    MayEver, ProbeFindings, ProbeReply, ProbeTools, ProbedTool, Spelling, ToolFinding, Word,
};
use stage0_policy::{EvaluateError, Pack, TimeLimit};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::engines::{Engines, MAX_ORDINARY_BYTES, NotChosen};
use crate::handler::{Deciding, Handler};
use crate::published::{ANSWER_TIME, Chosen};

/// Questions of a shard, and of one account in it: the one that is worked on, and those that wait.
const MAX_IN_FLIGHT: usize = 64;
const MAX_IN_FLIGHT_PER_ACCOUNT: usize = 8;
/// Tools that are judged in one go. A large check waits for as long.
const TOOLS_AT_ONCE: usize = 8;
/// Names that are recorded.
const MAX_RECORDED: usize = 20;
/// Where a recorded name is cut, as in the record of a decision.
const MAX_NAME_CHARS: usize = 128;
/// A check needs a goal. No rule that counts here reads it.
const GOAL: &str = "a call of this tool";

/// The questions of one shard.
#[derive(Debug, Default)]
pub(crate) struct Prober {
    accounts: RefCell<HashMap<AccountId, Rc<Semaphore>>>,
}

/// A place among the questions of an account.
struct Place<'a> {
    prober: &'a Prober,
    account: &'a AccountId,
    turn: Rc<Semaphore>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // This one, and the one in the map.
        if Rc::strong_count(&self.turn) <= 2 {
            self.prober.accounts.borrow_mut().remove(self.account);
        }
    }
}

/// Why a tool was not judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotJudged {
    TooLate,
    NoEngine,
}

/// What the policy says of a tool: why it is never allowed, and its name for the record if so.
struct Judged {
    codes: Vec<IssueCode>,
    recordable: Option<String>,
}

impl Prober {
    pub(crate) async fn probe(&self, engines: &Engines, message: &ProbeTools, deadline: Instant) -> ProbeReply {
        if message.tools.len() > MAX_PROBED_TOOLS {
            return ProbeReply::Unable(format!("more than {MAX_PROBED_TOOLS} tools at once"));
        }
        let Some(place) = self.place(&message.account) else { return ProbeReply::Busy };
        let late = deadline.checked_sub(ANSWER_TIME).unwrap_or(deadline);
        let Ok(Ok(_turn)) = timeout_at(late, place.turn.acquire()).await else { return ProbeReply::Busy };
        // A canary takes runs, and a question is of none.
        let rules = AccountRules { candidates: Vec::new(), ..message.asker.rules.clone() };
        let calls = check(message, None);
        let chosen = match timeout_at(late, engines.choose(&message.account, &rules, &calls.request, late)).await {
            Ok(Ok(chosen)) => chosen,
            Ok(Err(error)) => return not_chosen(&error),
            Err(_) => {
                let version = rules.active_policy_of(&calls.request).or(rules.floor.as_ref()).cloned();
                let unclear = || ProbeReply::Unable("the policy is still being loaded".to_owned());
                return version.map_or_else(unclear, |version| ProbeReply::PolicyMissing { version, is_loading: true });
            }
        };
        judge(engines, message, &rules, chosen, late).await
    }

    fn place<'a>(&'a self, account: &'a AccountId) -> Option<Place<'a>> {
        let mut accounts = self.accounts.borrow_mut();
        let in_flight: usize = accounts.values().map(|turn| Rc::strong_count(turn) - 1).sum();
        let turn = accounts.get(account).cloned();
        let of_account = turn.as_ref().map_or(0, |turn| Rc::strong_count(turn) - 2);
        if in_flight >= MAX_IN_FLIGHT || of_account >= MAX_IN_FLIGHT_PER_ACCOUNT {
            return None;
        }
        let turn = turn.unwrap_or_else(|| {
            let turn = Rc::new(Semaphore::new(1));
            accounts.insert(account.clone(), Rc::clone(&turn));
            turn
        });
        Some(Place { prober: self, account, turn })
    }
}

/// Judges the tools in their order, a few at a time.
async fn judge(
    engines: &Engines,
    message: &ProbeTools,
    rules: &AccountRules,
    chosen: Chosen,
    late: Instant,
) -> ProbeReply {
    let place = check(message, None);
    let work = Arc::new(Work {
        // Elsewhere another policy may decide, and a question without an environment is of calls anywhere.
        own_decides: rules.policy.environments.is_empty() || place.request.environment_name().is_some(),
        limit: TimeLimit::at(late.into_std()),
        chosen,
    });
    let mut findings = Findings::default();
    // Each tool is judged with all of the context.
    let is_large = serde_json::to_vec(&message.context).is_ok_and(|context| context.len() > MAX_ORDINARY_BYTES);
    for tools in message.tools.chunks(if is_large { 1 } else { TOOLS_AT_ONCE }) {
        let checks: Vec<EvaluateRequest> = tools.iter().map(|tool| check(message, Some(tool))).collect();
        let work = Arc::clone(&work);
        // Of any size: never on the thread of ordinary checks.
        let judged = engines.inspect(MAX_ORDINARY_BYTES + 1, move |handler| work.judge(handler, &checks)).await;
        match judged {
            Some(Ok(judged)) => findings.add(tools, judged),
            Some(Err(NotJudged::TooLate)) => {
                return ProbeReply::Unable("it takes too long to judge the tools".to_owned());
            }
            Some(Err(NotJudged::NoEngine)) => return ProbeReply::Unable("no engine for the policy".to_owned()),
            None => return ProbeReply::Unable("the thread that judges the tools ended, or panicked".to_owned()),
        }
    }
    let handler = engines.handler();
    ProbeReply::Probed(ProbeFindings {
        policy_version: own_pack(handler, &work.chosen).version().clone(),
        floor_version: work.chosen.floor.as_ref().map(|floor| floor.version().clone()),
        environment: mask(handler, place.request.environment_name().unwrap_or_default().trim(), &work.chosen),
        tools: findings.tools,
        recordable: findings.recordable,
    })
}

fn not_chosen(error: &NotChosen) -> ProbeReply {
    match error.reply() {
        EvaluateReply::PolicyMissing { version, is_loading } => ProbeReply::PolicyMissing { version, is_loading },
        _ => ProbeReply::Unable(error.to_string()),
    }
}

/// By what tools are judged.
struct Work {
    chosen: Chosen,
    /// The policy that was chosen decides every call.
    own_decides: bool,
    limit: TimeLimit,
}

impl Work {
    fn judge(&self, handler: &Handler, checks: &[EvaluateRequest]) -> Result<Vec<Judged>, NotJudged> {
        let judge = |check: &EvaluateRequest| {
            let codes = match never_allows(handler, check, self) {
                Some(Ok(codes)) => codes,
                // Such a call is refused as long as it has this fault: no decision says so.
                Some(Err(EvaluateError::Invalid(_))) => Vec::new(),
                Some(Err(EvaluateError::OutOfTime(_))) => return Err(NotJudged::TooLate),
                None => return Err(NotJudged::NoEngine),
            };
            let tool = check.request.tools.first().filter(|_| !codes.is_empty());
            Ok(Judged { recordable: tool.map(|tool| shown_tool(handler, tool, &self.chosen)), codes })
        };
        checks.iter().map(judge).collect()
    }
}

#[derive(Default)]
struct Findings {
    tools: Vec<ToolFinding>,
    recordable: Vec<String>,
}

impl Findings {
    fn add(&mut self, asked: &[ProbedTool], judged: Vec<Judged>) {
        for (asked, Judged { codes, recordable }) in asked.iter().zip(judged) {
            let may = if codes.is_empty() { MayEver::Maybe } else { MayEver::Never };
            self.tools.push(ToolFinding { tool: asked.tool.clone(), may, codes });
            self.recordable.extend(recordable.filter(|_| self.recordable.len() < MAX_RECORDED));
        }
    }
}

/// The question about a tool as a check; none: about the place alone.
fn check(message: &ProbeTools, tool: Option<&ProbedTool>) -> EvaluateRequest {
    let request = CheckRequest {
        goal: GOAL.to_owned(),
        success_criteria: Vec::new(),
        constraints: message.constraints.clone(),
        tools: tool.map(|tool| tool.tool.clone()).into_iter().collect(),
        side_effects: tool.map(|tool| tool.side_effects.clone()).unwrap_or_default(),
        side_effects_stated: true,
        context: message.context.clone(),
        environment: message.environment.clone(),
        pro: false,
        policy_pack_version: None,
        debug_store_input: false,
        unknown: serde_json::Map::new(),
    };
    EvaluateRequest {
        request_id: message.request_id,
        account: message.account.clone(),
        request,
        evaluated_at: message.evaluated_at,
        operation: None,
        caller: CallerTexts::default(),
        max_runs: None,
        asker: Some(message.asker.clone()),
    }
}

/// The pack that decides beside the floor.
fn own_pack<'a>(handler: &'a Handler, chosen: &'a Chosen) -> &'a Arc<Pack> {
    chosen.own.as_ref().unwrap_or(handler.packs.active())
}

/// Why every call of this question is denied; empty where some may be allowed. None: there is no engine.
fn never_allows(
    handler: &Handler,
    asked: &EvaluateRequest,
    work: &Work,
) -> Option<Result<Vec<IssueCode>, EvaluateError>> {
    let Deciding { own, floor } = handler.deciding(own_pack(handler, &work.chosen), &work.chosen)?;
    let by_own = if work.own_decides {
        own.never_allows(asked, work.limit)
    } else {
        Ok(own.surely_stops(asked).then(IssueCode::stopped).into_iter().collect())
    };
    let by_floor = floor.map_or(Ok(Vec::new()), |floor| floor.never_allows(asked, work.limit));
    Some(by_own.and_then(|mut codes| {
        codes.extend(by_floor?);
        codes.sort_unstable();
        codes.dedup();
        Ok(codes)
    }))
}

/// A tool's name for the record: normalised as those of a check, with secrets masked.
fn shown_tool(handler: &Handler, tool: &str, chosen: &Chosen) -> String {
    let masked = mask(handler, tool, chosen);
    let spelling = Spelling::of(&masked);
    spelling.folded().unwrap_or(Word::new(&masked).as_str()).chars().take(MAX_NAME_CHARS).collect()
}

fn mask(handler: &Handler, text: &str, chosen: &Chosen) -> String {
    let packs: Vec<Arc<Pack>> = chosen.own.iter().chain(&chosen.floor).cloned().collect();
    handler.mask(text, &packs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_few_places_and_leaves_others_theirs() {
        let (prober, busy, quiet) =
            (Prober::default(), AccountId::parse("busy").unwrap(), AccountId::parse("quiet").unwrap());
        let places: Vec<_> = (0..MAX_IN_FLIGHT_PER_ACCOUNT).map(|_| prober.place(&busy).unwrap()).collect();
        assert!(prober.place(&busy).is_none());
        drop(prober.place(&quiet).unwrap());
        assert_eq!(prober.accounts.borrow().len(), 1, "what is over is forgotten");
        drop(places);
        assert!(prober.accounts.borrow().is_empty());
        assert!(prober.place(&busy).is_some());
    }

    #[test]
    fn a_shard_has_few_places_for_all_accounts_together() {
        let prober = Prober::default();
        let accounts: Vec<_> = (0..=MAX_IN_FLIGHT).map(|n| AccountId::parse(&format!("a{n}")).unwrap()).collect();
        let places: Vec<_> = accounts.iter().filter_map(|account| prober.place(account)).collect();
        assert_eq!(places.len(), MAX_IN_FLIGHT);
    }
}
