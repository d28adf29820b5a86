//! Guards: who reported, who went silent, and what is handed out to be recorded.

use std::collections::HashSet;

use serde_json::Value;
use stage0_backplane::MAX_CONCURRENT_LISTS;
use stage0_contract::{
    AccountEvents, AccountId, CollectSilentGuards, EventRef, ForgetGuard, Guard, GuardCounts, GuardForgotten, GuardId,
    GuardState, KeyId, LineType, ListGuards, MAX_GUARDS, MAX_NEXT_WITHIN_SECONDS, ManageReply, Page, Refusal,
    ReportGuard, Request, SettleEvents,
};
use stage0_evaluator::RunConfig;
use stage0_policy::PackSet;
use tokio::time::Instant;

use super::runs::{Stage, WAIT_TIMEOUT};

async fn stage(evaluators: usize) -> Stage {
    Stage::with_packs(evaluators, RunConfig::default(), &PackSet::embedded().unwrap()).await
}

fn account(name: &str) -> AccountId {
    AccountId::parse(name).unwrap()
}

fn report(account_name: &str, guard: &str) -> ReportGuard {
    ReportGuard {
        account: account(account_name),
        key_id: KeyId::parse("agent").unwrap(),
        retention_days: 30,
        guard_id: GuardId::parse(guard).unwrap(),
        kind: "claude-code".to_owned(),
        version: "0.1.0".to_owned(),
        agent_version: Some("2.1.332".to_owned()),
        host: None,
        next_within_seconds: 900,
        counts: GuardCounts { asked: 7, refused: 1, ..GuardCounts::default() },
    }
}

async fn ask<R: Request>(stage: &Stage, message: &R) -> R::Reply {
    stage.caller.requests.request(message, WAIT_TIMEOUT).await.unwrap()
}

async fn done(stage: &Stage, message: &ReportGuard) -> Guard {
    match ask(stage, message).await {
        ManageReply::Done(guard) => guard,
        reply => panic!("not reported: {reply:?}"),
    }
}

async fn page(stage: &Stage, state: Option<GuardState>, limit: u32, cursor: Option<String>) -> Page<Guard> {
    match ask(stage, &ListGuards { account: account("acc"), state, cursor, limit }).await {
        ManageReply::Done(page) => page,
        reply => panic!("not listed: {reply:?}"),
    }
}

async fn listed(stage: &Stage, state: Option<GuardState>, limit: u32) -> Vec<String> {
    let (mut ids, mut cursor) = (Vec::new(), None);
    loop {
        let page = page(stage, state, limit, cursor).await;
        assert!(page.items.len() <= usize::try_from(limit).unwrap());
        ids.extend(page.items.into_iter().map(|guard| guard.guard_id.to_string()));
        cursor = page.next_cursor;
        if cursor.is_none() {
            ids.sort();
            return ids;
        }
    }
}

async fn collected(stage: &Stage) -> Vec<AccountEvents> {
    match ask(stage, &CollectSilentGuards { cursor: None }).await {
        ManageReply::Done(page) => page.accounts,
        reply => panic!("not collected: {reply:?}"),
    }
}

/// The guards that went silent, as they are handed out.
async fn silent(stage: &Stage) -> Vec<String> {
    let events = collected(stage).await.into_iter().flat_map(|account| account.events);
    let mut ids: Vec<String> = events.map(|event| event.guard_id.unwrap().to_string()).collect();
    ids.sort();
    ids
}

async fn settle(stage: &Stage, found: &[AccountEvents]) {
    for AccountEvents { account, events, .. } in found {
        let recorded = events.iter().map(EventRef::of).collect();
        let settle = SettleEvents { account: account.clone(), recorded, released: None };
        assert!(matches!(ask(stage, &settle).await, ManageReply::Done(_)));
    }
}

/// Changes a record of the state store behind the evaluators' back; a reading evaluator may be faster once.
async fn alter(stage: &Stage, key: &str, alter: impl Fn(&mut Value)) {
    let store = &stage.caller.state_store;
    let until = Instant::now() + WAIT_TIMEOUT;
    let found = store.get(key, until).await.unwrap().unwrap();
    let mut value: Value = serde_json::from_slice(&found.value).unwrap();
    alter(&mut value);
    store.put(key, serde_json::to_vec(&value).unwrap().into(), Some(found.revision), None, until).await.unwrap();
}

fn back(value: &mut Value, seconds: i64) {
    if let Some(time) = value.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok()) {
        *value = time.checked_sub(jiff::SignedDuration::from_secs(seconds)).unwrap().to_string().into();
    }
}

/// Moves a guard's times, and those of its account's index, back by some seconds.
async fn age(stage: &Stage, guard: &str, seconds: i64) {
    alter(stage, &format!("guards.g.acc.{guard}"), |record| {
        for name in ["first_seen", "last_seen", "due_at"] {
            if record.get(name).is_some() {
                back(&mut record[name], seconds);
            }
        }
        if record.get("silence").is_some() {
            back(&mut record["silence"]["due_at"], seconds);
            back(&mut record["silence"]["handed_out_until"], seconds);
        }
    })
    .await;
    alter(stage, "guards.i.acc", |index| {
        for name in ["look_at", "changed_at"] {
            if index.get(name).is_some() {
                back(&mut index[name], seconds);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_guard_is_shown_as_it_reported_last() {
    let stage = stage(2).await;
    let first = done(&stage, &report("acc", "g")).await;
    assert_eq!((first.state, first.first_seen), (GuardState::Alive, first.last_seen));
    assert_eq!(first.due_at.unwrap().duration_since(first.last_seen).as_secs(), 900);
    let counts = GuardCounts { asked: 9, ran_undecided: 1, ..GuardCounts::default() };
    let later = ReportGuard { counts, version: "0.2.0".to_owned(), agent_version: None, ..report("acc", "g") };
    let second = done(&stage, &later).await;
    assert_eq!((second.counts, second.version.as_str(), second.agent_version.as_deref()), (counts, "0.2.0", None));
    assert_eq!(second.first_seen, first.first_seen);
    assert_eq!(page(&stage, None, 10, None).await.items, [second]);
    done(&stage, &report("other", "h")).await;
    assert_eq!(listed(&stage, None, 10).await, ["g"], "an account's own alone");
}

#[tokio::test]
async fn a_guard_that_is_overdue_is_handed_out_once_until_it_is_recorded_and_again_when_it_is_silent_again() {
    let stage = stage(2).await;
    for guard in ["alive", "late", "ends"] {
        done(&stage, &report("acc", guard)).await;
    }
    done(&stage, &ReportGuard { next_within_seconds: 0, ..report("acc", "ends") }).await;
    assert_eq!(silent(&stage).await, Vec::<String>::new());
    age(&stage, "late", 905).await;
    assert_eq!(silent(&stage).await, Vec::<String>::new(), "it has ten seconds more");
    age(&stage, "late", 5).await;
    age(&stage, "ends", 100_000).await;
    assert_eq!(listed(&stage, Some(GuardState::Silent), 10).await, ["late"]);
    assert_eq!(listed(&stage, Some(GuardState::Ended), 10).await, ["ends"]);
    assert_eq!(listed(&stage, Some(GuardState::Alive), 10).await, ["alive"]);
    let found = collected(&stage).await;
    let event = &found[0].events[0];
    assert_eq!((found.len(), found[0].retention_days, found[0].events.len()), (1, 30, 1));
    assert_eq!((event.kind, event.guard_id.as_ref().unwrap().as_str()), (LineType::GuardSilent, "late"));
    assert_eq!(silent(&stage).await, Vec::<String>::new(), "one gateway has it");
    age(&stage, "late", 20).await;
    let again = collected(&stage).await;
    assert_eq!(again[0].events, found[0].events, "the same event, until it is recorded");
    settle(&stage, &again).await;
    age(&stage, "late", 4_000).await;
    assert_eq!(silent(&stage).await, Vec::<String>::new(), "it is recorded");

    done(&stage, &report("acc", "late")).await;
    assert_eq!(listed(&stage, Some(GuardState::Silent), 10).await, Vec::<String>::new());
    age(&stage, "late", 910).await;
    let second = collected(&stage).await;
    assert_ne!(second[0].events[0].event_id, event.event_id, "another silence");
}

#[tokio::test]
async fn a_guard_that_comes_back_before_its_silence_is_recorded_leaves_the_event() {
    let stage = stage(1).await;
    done(&stage, &report("acc", "g")).await;
    age(&stage, "g", 910).await;
    let found = collected(&stage).await;
    done(&stage, &report("acc", "g")).await;
    age(&stage, "g", 20).await;
    let again = collected(&stage).await;
    assert_eq!(again[0].events, found[0].events);
    settle(&stage, &again).await;
    age(&stage, "g", 3_700).await;
    assert_eq!(collected(&stage).await[0].events.len(), 1, "and is looked at on");
}

#[tokio::test]
async fn of_gateways_that_ask_at_once_one_has_each_event() {
    let stage = stage(3).await;
    for number in 0..20 {
        let guard = format!("g{number}");
        done(&stage, &report("acc", &guard)).await;
        age(&stage, &guard, if number == 0 { 910 } else { 0 }).await;
    }
    for number in 1..20 {
        alter(&stage, &format!("guards.g.acc.g{number}"), |record| back(&mut record["due_at"], 910)).await;
    }
    let asks = (0..MAX_CONCURRENT_LISTS * 4).map(|_| silent(&stage));
    let handed_out: Vec<String> = futures_util::future::join_all(asks).await.into_iter().flatten().collect();
    assert_eq!(handed_out.len(), handed_out.iter().collect::<HashSet<_>>().len(), "{handed_out:?}");
    let mut all: HashSet<String> = handed_out.into_iter().collect();
    alter(&stage, "guards.i.acc", |index| back(&mut index["look_at"], 3_600)).await;
    all.extend(silent(&stage).await);
    assert_eq!(all.len(), 20);
}

#[tokio::test]
async fn many_silent_guards_come_in_rounds_and_no_account_waits_behind_them() {
    let stage = stage(1).await;
    for number in 0..60 {
        done(&stage, &report("acc", &format!("g{number}"))).await;
    }
    done(&stage, &report("zoe", "h")).await;
    for number in 0..60 {
        alter(&stage, &format!("guards.g.acc.g{number}"), |record| back(&mut record["due_at"], 910)).await;
    }
    alter(&stage, "guards.g.zoe.h", |record| back(&mut record["due_at"], 910)).await;
    for name in ["acc", "zoe"] {
        alter(&stage, &format!("guards.i.{name}"), |index| back(&mut index["look_at"], 910)).await;
    }
    let first = collected(&stage).await;
    let count = |found: &[AccountEvents], name: &str| {
        found.iter().filter(|one| one.account == account(name)).map(|one| one.events.len()).sum::<usize>()
    };
    assert_eq!((count(&first, "acc"), count(&first, "zoe")), (50, 1));
    settle(&stage, &first).await;
    let second = collected(&stage).await;
    assert_eq!((count(&second, "acc"), count(&second, "zoe")), (10, 0));
    settle(&stage, &second).await;
    assert_eq!(silent(&stage).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_forgotten_guard_is_gone_and_one_that_is_not_there_is_not_found() {
    let stage = stage(1).await;
    done(&stage, &report("acc", "g")).await;
    let forget =
        |name: &str, guard: &str| ForgetGuard { account: account(name), guard_id: GuardId::parse(guard).unwrap() };
    assert_eq!(ask(&stage, &forget("acc", "h")).await, ManageReply::Refused(Refusal::NotFound));
    assert_eq!(ask(&stage, &forget("other", "g")).await, ManageReply::Refused(Refusal::NotFound), "another account's");
    assert_eq!(listed(&stage, None, 10).await, ["g"]);
    assert_eq!(ask(&stage, &forget("acc", "g")).await, ManageReply::Done(GuardForgotten {}));
    assert_eq!(listed(&stage, None, 10).await, Vec::<String>::new());
    assert_eq!(ask(&stage, &forget("acc", "g")).await, ManageReply::Refused(Refusal::NotFound));
    let back = done(&stage, &report("acc", "g")).await;
    assert_eq!(back.first_seen, back.last_seen, "it begins again");
}

#[tokio::test]
async fn an_account_has_so_many_guards_and_those_that_it_has_report_on() {
    let stage = stage(1).await;
    done(&stage, &report("acc", "g")).await;
    alter(&stage, "guards.i.acc", |index| index["count"] = MAX_GUARDS.into()).await;
    let reply = ask(&stage, &report("acc", "h")).await;
    assert!(matches!(&reply, ManageReply::Refused(Refusal::Conflict(text)) if text.contains("10000")), "{reply:?}");
    done(&stage, &report("acc", "g")).await;
    done(&stage, &report("other", "h")).await;
    // They are counted again when maintenance looks at them.
    alter(&stage, "guards.i.acc", |index| back(&mut index["look_at"], 3_600)).await;
    assert_eq!(silent(&stage).await, Vec::<String>::new());
    done(&stage, &report("acc", "h")).await;
}

#[tokio::test]
async fn what_cannot_be_a_report_is_refused_and_its_nearest_neighbour_is_not() {
    let stage = stage(1).await;
    let good = || report("acc", "g");
    for (wrong, path) in [
        (ReportGuard { kind: "claude code".to_owned(), ..good() }, "kind"),
        (ReportGuard { version: String::new(), ..good() }, "version"),
        (ReportGuard { agent_version: Some("ä".to_owned()), ..good() }, "agent_version"),
        (ReportGuard { host: Some("x".repeat(65)), ..good() }, "host"),
        (ReportGuard { next_within_seconds: MAX_NEXT_WITHIN_SECONDS + 1, ..good() }, "next_within_seconds"),
    ] {
        match ask(&stage, &wrong).await {
            ManageReply::Refused(Refusal::Invalid(errors)) => assert_eq!(errors[0].path, path),
            reply => panic!("{reply:?}"),
        }
    }
    assert_eq!(listed(&stage, None, 10).await, Vec::<String>::new());
    let next_within_seconds = MAX_NEXT_WITHIN_SECONDS;
    done(&stage, &ReportGuard { host: Some("x".repeat(64)), next_within_seconds, ..good() }).await;
}

#[tokio::test]
async fn guards_are_listed_page_by_page_and_a_malformed_record_hides_none_of_the_others() {
    let stage = stage(2).await;
    for number in 0..25 {
        done(&stage, &report("acc", &format!("g{number:02}"))).await;
    }
    alter(&stage, "guards.g.acc.g03", |record| record["guard_id"] = "g04".into()).await;
    let wanted: Vec<String> = (0..25).filter(|number| *number != 3).map(|number| format!("g{number:02}")).collect();
    for limit in [1, 7, 1_000] {
        assert_eq!(listed(&stage, None, limit).await, wanted, "{limit}");
    }
    let list = |limit, cursor: Option<&str>| ListGuards {
        account: account("acc"),
        state: None,
        cursor: cursor.map(str::to_owned),
        limit,
    };
    for (wrong, path) in [(list(0, None), "limit"), (list(1_001, None), "limit"), (list(1, Some("?")), "cursor")] {
        match ask(&stage, &wrong).await {
            ManageReply::Refused(Refusal::Invalid(errors)) => assert_eq!(errors[0].path, path),
            reply => panic!("{reply:?}"),
        }
    }
}
