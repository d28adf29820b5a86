//! Records what happens without a caller who waits for it, and what an earlier gateway left unrecorded.
//!
//! Evaluators expire and escalate approvals that are past their time when they are asked, notice guards that are
//! silent, and hand out events that are not known to be recorded, each to one gateway at a time. They also name uses of
//! approvals that no gateway has confirmed, which are looked up in the log. Runs in every gateway, so that none has to
//! be alive. INVARIANT: only while every process can read such lines; until then events stay in the evaluators' outbox.

use std::time::Duration;

use stage0_backplane::RequestError;
use stage0_contract::{
    AccountEvents, AccountId, CollectEvents, CollectSilentGuards, CollectedEvents, ManageReply, Request, RequestId,
    UnconfirmedUse,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::log_reader::LogReader;
use crate::recorder::LineGroup;
use crate::recording::{event_lines, record, settle, settle_refs};
use crate::state::AppState;

const INTERVAL: Duration = Duration::from_secs(5);
/// Of one page, and of its lines' append.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Lines that are appended together.
const MAX_LINES: usize = 200;
/// What is left over comes with the next round.
const MAX_PAGES: u32 = 1_000;
/// Accounts whose events could not be recorded end a round: then the log is down, and not one account's part of it.
const MAX_FAILURES: u32 = 3;
const LOG_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
enum CollectionError {
    #[error("no evaluator hands events out")]
    Ask(#[from] RequestError),
    #[error("the evaluator could not hand events out: {0}")]
    Refused(&'static str),
    #[error("events could not be recorded: {0}")]
    NotRecorded(String),
}

/// Runs until the gateway drains.
pub(crate) async fn run(state: &AppState, stop: &CancellationToken) {
    let mut logged: [Option<Instant>; 2] = [None; 2];
    while stop.run_until_cancelled(tokio::time::sleep(jittered(INTERVAL))).await.is_some() {
        if !state.can_record() {
            continue;
        }
        let ended = ["approvals", "guards"].into_iter().zip(round(state, stop).await);
        for ((of, ended), logged) in ended.zip(&mut logged) {
            if let Err(error) = ended
                && logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL)
            {
                *logged = Some(Instant::now());
                tracing::warn!(of, error = &error as &dyn std::error::Error, "events are not recorded now");
            }
        }
    }
}

/// Collects of approvals and of guards; neither stops the other. It is not cut off in the middle: what it has appended
/// is settled.
async fn round(state: &AppState, stop: &CancellationToken) -> [Result<(), CollectionError>; 2] {
    [
        collect(state, stop, |cursor| CollectEvents { cursor }).await,
        collect(state, stop, |cursor| CollectSilentGuards { cursor }).await,
    ]
}

/// Records and settles everything that evaluators hand out now. An account that fails does not stop the others.
async fn collect<M: Request<Reply = ManageReply<CollectedEvents>>>(
    state: &AppState,
    stop: &CancellationToken,
    ask: impl Fn(Option<String>) -> M,
) -> Result<(), CollectionError> {
    let mut cursor = None;
    let (mut result, mut failures) = (Ok(()), 0);
    for _ in 0..MAX_PAGES {
        let page = match state.requests().request(&ask(cursor), TIMEOUT).await? {
            ManageReply::Done(page) => page,
            ManageReply::Busy => return Err(CollectionError::Refused("it is busy")),
            ManageReply::Failed | ManageReply::Refused(_) => return Err(CollectionError::Refused("it failed")),
        };
        let CollectedEvents { accounts, next_cursor } = page;
        for events in accounts {
            if let Err(error) = record_events(state, events).await {
                result = Err(error);
                failures += 1;
                if failures == MAX_FAILURES {
                    return result;
                }
            }
        }
        cursor = next_cursor;
        if cursor.is_none() || stop.is_cancelled() {
            break;
        }
    }
    result
}

async fn record_events(state: &AppState, collected: AccountEvents) -> Result<(), CollectionError> {
    let AccountEvents { account, retention_days, events, unconfirmed } = collected;
    confirm_uses(state, &account, unconfirmed).await;
    let id = RequestId::new(Uuid::now_v7()).map_err(|error| CollectionError::NotRecorded(error.to_string()))?;
    for events in events.chunks(MAX_LINES) {
        let not_recorded = |error: crate::errors::ApiError| CollectionError::NotRecorded(error.to_string());
        let lines = event_lines(&account, events).map_err(not_recorded)?;
        let group = LineGroup { caller: None, account: account.clone(), retention_days, lines, coming: None };
        let recorded = record(state, id, group, Instant::now() + TIMEOUT).await;
        recorded.map_err(|failed| not_recorded(failed.error))?;
        settle(state, &account, events, None).await;
    }
    Ok(())
}

/// Uses whose decision is in the log are settled as recorded. Of one that is not there it is not known whether it will
/// be: it stays used, and names its check, until a person reopens it.
async fn confirm_uses(state: &AppState, account: &AccountId, uses: Vec<UnconfirmedUse>) {
    let log = LogReader::of_account(&state.backplane.log, account.clone());
    let mut recorded = Vec::new();
    for UnconfirmedUse { request_id, event } in uses {
        match log.decision(request_id).await {
            Ok(Some(_)) => recorded.push(event),
            Ok(None) => tracing::warn!(%account, %request_id, "an approval stays used: no decision says so"),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(%account, %request_id, error, "the decision that used an approval cannot be read");
            }
        }
    }
    settle_refs(state, account, recorded, None).await;
}

/// Between three quarters and five quarters of it, so that gateways do not ask at the same moment.
fn jittered(interval: Duration) -> Duration {
    let mut byte = [0];
    // Without randomness all ask at the same moment, which is only a little slower.
    let [byte] = getrandom::fill(&mut byte).map_or([128], |()| byte);
    interval * 3 / 4 + interval / 2 * u32::from(byte) / 255
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::tests::state_and_writer;
    use stage0_backplane::{Backplane, EntryKind, MAX_MESSAGE_BYTES};
    use stage0_contract::{EventsSettled, SettleEvents};

    const COLLECTED: &str = include_str!("../../contract/fixtures/collected_events.json");
    const SILENT: &str = include_str!("../../contract/fixtures/silent_guards_collected.json");

    #[tokio::test]
    async fn a_round_records_and_settles_the_events_of_every_page() {
        let backplane = Backplane::embedded();
        let (state, writer) = state_and_writer(&backplane, |_| {});
        let stop = CancellationToken::new();
        tokio::spawn(writer.run(stop.clone()));
        let mut collects = backplane.requests.serve::<CollectEvents>().await.unwrap();
        let mut settles = backplane.requests.serve::<SettleEvents>().await.unwrap();
        let page: ManageReply<CollectedEvents> = serde_json::from_str(COLLECTED).unwrap();
        let ManageReply::Done(last) = page else { panic!("the fixture has changed") };
        let account = last.accounts[0].account.clone();
        let first = CollectedEvents { next_cursor: Some(account.to_string()), ..last.clone() };
        let mut settled = Vec::new();
        let serving = async {
            for (cursor, page) in [(None, first), (Some(account.to_string()), last)] {
                let collect = collects.next().await.unwrap();
                assert_eq!(collect.request.cursor, cursor);
                collect.answer(&ManageReply::Done(page)).await;
                let settle = settles.next().await.unwrap();
                settled.extend(settle.request.recorded.clone());
                settle.answer(&ManageReply::Done(EventsSettled {})).await;
            }
        };
        let (ended, ()) = tokio::join!(round(&state, &stop), serving);
        let [approvals, guards] = ended;
        approvals.unwrap();
        assert!(matches!(guards, Err(CollectionError::Ask(RequestError::NoResponders))), "{guards:?}");
        assert_eq!(settled.len(), 2);
        let deadline = Instant::now() + TIMEOUT;
        let entry = backplane.log.last(&account, EntryKind::Decisions, deadline).await.unwrap().unwrap();
        let line = String::from_utf8(entry.lines().last().unwrap().to_vec()).unwrap();
        assert!(line.contains("\"type\":\"approval.requested\"") && line.contains("\"sequence\":2"), "{line}");
    }

    #[tokio::test]
    async fn a_silent_guard_is_recorded_and_settled_also_while_no_event_of_an_approval_can_be_had() {
        let backplane = Backplane::embedded();
        let (state, writer) = state_and_writer(&backplane, |_| {});
        let stop = CancellationToken::new();
        tokio::spawn(writer.run(stop.clone()));
        let mut approvals = backplane.requests.serve::<CollectEvents>().await.unwrap();
        let mut guards = backplane.requests.serve::<CollectSilentGuards>().await.unwrap();
        let mut settles = backplane.requests.serve::<SettleEvents>().await.unwrap();
        let page: ManageReply<CollectedEvents> = serde_json::from_str(SILENT).unwrap();
        let ManageReply::Done(page) = page.clone() else { panic!("the fixture has changed") };
        let page = CollectedEvents { next_cursor: None, ..page };
        let silent = page.accounts[0].clone();
        let serving = async {
            approvals.next().await.unwrap().answer(&ManageReply::Failed).await;
            guards.next().await.unwrap().answer(&ManageReply::Done(page.clone())).await;
            let settle = settles.next().await.unwrap();
            let recorded = settle.request.recorded.clone();
            settle.answer(&ManageReply::Done(EventsSettled {})).await;
            recorded
        };
        let (ended, settled) = tokio::join!(round(&state, &stop), serving);
        let [approvals, guards] = ended;
        assert!(matches!(approvals, Err(CollectionError::Refused("it failed"))), "{approvals:?}");
        guards.unwrap();
        let expected: Vec<_> = silent.events.iter().map(stage0_contract::EventRef::of).collect();
        assert_eq!((settled[0].guard_id.is_some(), &settled), (true, &expected));
        let deadline = Instant::now() + TIMEOUT;
        let entry = backplane.log.last(&silent.account, EntryKind::Decisions, deadline).await.unwrap().unwrap();
        let line = String::from_utf8(entry.lines().last().unwrap().to_vec()).unwrap();
        assert!(line.contains("\"type\":\"guard.silent\""), "{line}");
    }

    #[tokio::test]
    async fn a_use_is_confirmed_if_its_decision_is_in_the_log_and_not_if_it_is_missing() {
        let backplane = Backplane::embedded();
        let (state, writer) = state_and_writer(&backplane, |_| {});
        let stop = CancellationToken::new();
        tokio::spawn(writer.run(stop.clone()));
        let mut settles = backplane.requests.serve::<SettleEvents>().await.unwrap();
        let account = AccountId::parse("acc").unwrap();
        let [recorded, missing] = [(); 2].map(|()| RequestId::new(Uuid::now_v7()).unwrap());
        let body = format!(r#"{{"account":"acc","request_id":"{recorded}"}}"#).into_bytes().into();
        let lines = vec![crate::recorder::NewLine { kind: stage0_contract::LineType::Decision, body }];
        let group = LineGroup { caller: None, account: account.clone(), retention_days: 30, lines, coming: None };
        record(&state, recorded, group, Instant::now() + TIMEOUT).await.unwrap();
        let approval = stage0_contract::ApprovalId::parse("apr_1").unwrap();
        let event = |event_id| stage0_contract::EventRef::of_approval(event_id, approval.clone());
        let [first, second] = [(); 2].map(|()| Uuid::now_v7());
        let uses = [(recorded, first), (missing, second)];
        let uses = uses.map(|(request_id, id)| UnconfirmedUse { request_id, event: event(id) }).to_vec();
        let serving = async {
            let settle = settles.next().await.unwrap();
            assert_eq!(settle.request.recorded, [event(first)]);
            settle.answer(&ManageReply::Done(EventsSettled {})).await;
        };
        tokio::join!(confirm_uses(&state, &account, uses), serving);
    }

    #[tokio::test]
    async fn an_account_whose_events_cannot_be_recorded_does_not_stop_the_others() {
        let backplane = Backplane::embedded();
        let (state, writer) = state_and_writer(&backplane, |_| {});
        let stop = CancellationToken::new();
        tokio::spawn(writer.run(stop.clone()));
        let mut collects = backplane.requests.serve::<CollectEvents>().await.unwrap();
        let mut settles = backplane.requests.serve::<SettleEvents>().await.unwrap();
        let page: ManageReply<CollectedEvents> = serde_json::from_str(COLLECTED).unwrap();
        let ManageReply::Done(mut page) = page else { panic!("the fixture has changed") };
        page.accounts[0].unconfirmed.clear();
        let mut oversized = page.accounts[0].clone();
        oversized.account = AccountId::parse("acc_oversized").unwrap();
        // The page can be sent; as lines, with their links, the same events are too large for one append.
        let event = &mut oversized.events[0];
        event.environment = None;
        let bare = serde_json::to_vec(&*event).unwrap().len() + r#","environment":"""#.len();
        event.environment = Some("x".repeat((MAX_MESSAGE_BYTES - 40_000) / MAX_LINES - bare));
        oversized.events = vec![oversized.events[0].clone(); MAX_LINES];
        page.accounts.insert(0, oversized);
        let account = page.accounts[1].account.clone();
        let serving = async {
            collects.next().await.unwrap().answer(&ManageReply::Done(page)).await;
            let settle = settles.next().await.unwrap();
            assert_eq!(settle.request.account, account);
            settle.answer(&ManageReply::Done(EventsSettled {})).await;
        };
        let (round, ()) = tokio::join!(collect(&state, &stop, |cursor| CollectEvents { cursor }), serving);
        assert!(matches!(round, Err(CollectionError::NotRecorded(_))), "the fault is still reported");
    }

    #[tokio::test]
    async fn a_round_without_an_evaluator_or_a_log_fails_and_settles_nothing() {
        let backplane = Backplane::embedded();
        let (state, writer) = state_and_writer(&backplane, |_| {});
        let stop = CancellationToken::new();
        assert!(matches!(
            collect(&state, &stop, |cursor| CollectEvents { cursor }).await,
            Err(CollectionError::Ask(RequestError::NoResponders))
        ));
        let mut collects = backplane.requests.serve::<CollectEvents>().await.unwrap();
        // Without the task that records, nothing is.
        drop(writer);
        let serving = async {
            let page = serde_json::from_str(COLLECTED).unwrap();
            collects.next().await.unwrap().answer(&page).await;
        };
        let (round, ()) = tokio::join!(collect(&state, &stop, |cursor| CollectEvents { cursor }), serving);
        assert!(matches!(round, Err(CollectionError::NotRecorded(_))));
    }

    #[test]
    fn rounds_are_spread_around_the_interval() {
        for _ in 0..100 {
            let wait = jittered(INTERVAL);
            assert!((INTERVAL * 3 / 4..=INTERVAL * 5 / 4).contains(&wait), "{wait:?}");
        }
    }
}
