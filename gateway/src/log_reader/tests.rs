//! Finding one decision again, by clocks that agree and by one that went back; pages and their cursors.

use std::time::Duration;

use bytes::Bytes;
use stage0_backplane::embedded::Bus;
use stage0_backplane::{Backplane, Batch};

use super::page::PageItems;
use super::*;

async fn recorded(backplane: &Backplane, account: &AccountId, id: RequestId, recorded_at: Timestamp) {
    let line = serde_json::json!({
        "type": "decision.recorded", "request_id": id, "recorded_at": recorded_at, "expires_at": i64::MAX});
    let batch = Batch { account: account.clone(), id: id.to_string(), lines: Bytes::from(line.to_string()) };
    let deadline = Instant::now() + Duration::from_secs(60);
    backplane.log.append(vec![batch], deadline).await.pop().unwrap().unwrap();
}

#[tokio::test]
async fn a_decision_is_found_after_the_gateways_clock_went_back() {
    let backplane = Bus::new().connect();
    let account = AccountId::parse("a1").unwrap();
    let id = |n: u32| RequestId::parse(&format!("0190163d-8694-739b-aea5-{n:012x}")).unwrap();
    let hour = SignedDuration::from_hours(1);
    // The store's clock is the system's; this gateway's says what its caller says.
    for gone_back in [SignedDuration::ZERO, hour, 24 * hour] {
        let now = Timestamp::now().checked_sub(gone_back).unwrap();
        let name = id(u32::try_from(gone_back.as_secs()).unwrap());
        recorded(&backplane, &account, name, now).await;
        let log_reader = LogReader {
            log: Arc::clone(&backplane.log),
            account: account.clone(),
            horizon: Timestamp::UNIX_EPOCH,
            now,
        };
        let around = |seconds| now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
        let found = log_reader.decision_between(name, around(-5), around(11)).await.unwrap();
        assert_eq!(found.unwrap()["request_id"], name.to_string(), "{gone_back}");
        assert!(log_reader.decision_between(id(1), around(-5), around(11)).await.unwrap().is_none(), "{gone_back}");
    }
    let log_reader = LogReader {
        log: Arc::clone(&backplane.log),
        account: account.clone(),
        horizon: Timestamp::UNIX_EPOCH,
        now: Timestamp::now(),
    };
    let long_ago = |seconds| log_reader.now.checked_sub(SignedDuration::from_secs(seconds)).unwrap();
    let elsewhere = log_reader.decision_between(id(0), long_ago(7_200), long_ago(7_100)).await.unwrap();
    assert!(elsewhere.is_none(), "clocks that agree are believed: nothing else of the log is read");
}

#[test]
fn a_cursor_has_exactly_one_text() {
    let stored_at = Timestamp::from_nanosecond(1_800_000_000_123_456_789).unwrap();
    for (order, text) in [(Order::Asc, "t1800000000123456789.3"), (Order::Desc, "n1800000000123456789.3")] {
        let cursor = Cursor { stored_at, lines: 3, order };
        assert_eq!((cursor.to_string().as_str(), Cursor::parse(text)), (text, Some(cursor)));
    }
    for other in [
        "",
        "t",
        "1800000000123456789.3",
        "t01800000000123456789.3",
        "t1.03",
        "t1.+3",
        "t1",
        "t1.x",
        "x1.1",
        "n",
        "n01.1",
        "tn1.1",
    ] {
        assert_eq!(Cursor::parse(other), None, "{other}");
    }
}

fn line(n: usize) -> String {
    let request_id = format!("r{n}");
    serde_json::json!({"type": "decision.recorded", "request_id": request_id, "verdict": "ALLOW", "environment": "",
        "issues": [], "recorded_at": Timestamp::now().to_string(), "expires_at": 4_000_000_000_i64})
    .to_string()
}

#[tokio::test]
async fn pages_show_each_line_once_also_when_some_lines_are_removed_meanwhile() {
    let (backplane, account) = (Backplane::embedded(), AccountId::parse("acc_1").unwrap());
    let until = || Instant::now() + Duration::from_secs(30);
    let mut lines = 0;
    for (batch, length) in [3, 1, 4, 2].into_iter().enumerate() {
        // One line of each batch is damaged: it is not shown, but cursors count it.
        let text: Vec<String> = (lines..lines + length).map(line).chain(["damaged".to_owned()]).collect();
        lines += length;
        let batch = Batch { account: account.clone(), id: format!("b{batch}"), lines: text.join("\n").into() };
        backplane.log.append(vec![batch], until()).await.pop().unwrap().unwrap();
    }
    let now = Timestamp::now();
    let log_reader =
        LogReader { log: Arc::clone(&backplane.log), account: account.clone(), horizon: Timestamp::UNIX_EPOCH, now };
    let page = async |order, cursor, limit| log_reader.page(&Filter::default(), order, cursor, limit).await.unwrap();
    let wanted: Vec<String> = (0..lines).map(|n| format!("r{n}")).collect();
    let backwards: Vec<String> = wanted.iter().rev().cloned().collect();
    let ids = |items: PageItems| {
        let items: Vec<Value> = serde_json::from_slice(&[b"[", &*items.json, b"]"].concat()).unwrap();
        items.iter().map(|item| item["request_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for (order, wanted) in [(Order::Asc, &wanted), (Order::Desc, &backwards)] {
        for limit in 1..=lines + 1 {
            let (mut seen, mut cursor) = (Vec::new(), None);
            loop {
                let (items, next) = page(order, cursor, limit).await;
                seen.extend(ids(items));
                let Some(next) = next else { break };
                cursor = Cursor::parse(&next.to_string());
            }
            assert_eq!(seen, *wanted, "{order:?} {limit}");
        }
    }
    // What is recorded meanwhile is newer than any page that goes back from here.
    let (_, cursor) = page(Order::Desc, None, 4).await;
    let batch = Batch { account: account.clone(), id: "later".to_owned(), lines: line(lines).into() };
    backplane.log.append(vec![batch], until()).await.pop().unwrap().unwrap();
    assert_eq!(ids(page(Order::Desc, cursor, 100).await.0), backwards[4..]);
    assert_eq!(ids(page(Order::Desc, None, 1).await.0), [format!("r{lines}")]);
    // What the cursor stood behind is gone: the rest follows, and nothing of it is passed over.
    let (_, cursor) = page(Order::Asc, None, 4).await;
    let first =
        log_reader.chunk(EntryFilter::Only(EntryKind::Decisions), Seek::Start, CHUNK_BYTES).await.unwrap().entries;
    backplane.log.remove_through(&account, EntryKind::Decisions, first[1].position, until()).await.unwrap();
    let (rest, _) = page(Order::Asc, cursor, 100).await;
    assert_eq!(ids(rest), [&wanted[4..], &[format!("r{lines}")]].concat());
    let (rest, next) = page(Order::Desc, None, 100).await;
    assert!(next.is_none() && ids(rest).last() == Some(&wanted[4]), "what was removed is not there");
}
