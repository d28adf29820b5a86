//! Finding one decision again, by clocks that agree and by one that went back.

use std::time::Duration;

use bytes::Bytes;
use stage0_backplane::embedded::Bus;
use stage0_backplane::{Backplane, Batch};

use super::*;

async fn recorded(backplane: &Backplane, account: &AccountId, id: RequestId, recorded_at: Timestamp) {
    let line = serde_json::json!({"request_id": id, "recorded_at": recorded_at, "expires_at": i64::MAX});
    let batch = Batch { account: account.clone(), id: id.to_string(), lines: Bytes::from(line.to_string()) };
    let deadline = Instant::now() + Duration::from_secs(60);
    backplane.log.append(vec![batch], deadline).await.pop().unwrap().unwrap();
}

#[tokio::test]
async fn a_decision_is_found_again_also_after_this_clock_went_back() {
    let backplane = Bus::new().connect();
    let account = AccountId::parse("a1").unwrap();
    let id = |n: u32| RequestId::parse(&format!("0190163d-8694-739b-aea5-{n:012x}")).unwrap();
    let hour = SignedDuration::from_hours(1);
    // The store's clock is the system's; this gateway's says what its caller says.
    for gone_back in [SignedDuration::ZERO, hour, 24 * hour] {
        let now = Timestamp::now().checked_sub(gone_back).unwrap();
        let name = id(u32::try_from(gone_back.as_secs()).unwrap());
        recorded(&backplane, &account, name, now).await;
        let shelf = Shelf { log: &*backplane.log, account: &account, horizon: Timestamp::UNIX_EPOCH, now };
        let around = |seconds| now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
        let found = shelf.between(name, around(-5), around(11)).await.unwrap();
        assert_eq!(found.unwrap()["request_id"], name.to_string(), "{gone_back}");
        assert!(shelf.between(id(1), around(-5), around(11)).await.unwrap().is_none(), "{gone_back}");
    }
    let shelf =
        Shelf { log: &*backplane.log, account: &account, horizon: Timestamp::UNIX_EPOCH, now: Timestamp::now() };
    let long_ago = |seconds| shelf.now.checked_sub(SignedDuration::from_secs(seconds)).unwrap();
    let elsewhere = shelf.between(id(0), long_ago(7_200), long_ago(7_100)).await.unwrap();
    assert!(elsewhere.is_none(), "clocks that agree are believed: nothing else of the log is read");
}
