//! Several gateways on one ledger.

use stage0_backplane::embedded::Bus;
use stage0_contract::{KeyId, Plan, Scopes};

use super::*;

fn identity(limits: Limits) -> KeyIdentity {
    KeyIdentity {
        key_id: KeyId::parse("k").unwrap(),
        account: AccountId::parse("acc").unwrap(),
        scopes: Scopes::new(),
        plan: Plan::Free,
        expires_at: None,
        retention_days: 30,
        limits,
        require_run_id: false,
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn id() -> RequestId {
    RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap()
}

/// Days do not end while a test runs, or it is told.
fn daily(limit: u64) -> KeyIdentity {
    identity(Limits { daily: Some(limit), ..Limits::NONE })
}

#[tokio::test]
async fn of_a_limit_all_gateways_together_let_pass_as_much_as_it_says() {
    let (bus, identity) = (Bus::new(), daily(500));
    let gateways: Vec<_> = (0..3).map(|_| (Quotas::new(OnFailure::Closed), bus.connect().ledger)).collect();
    let mut passed = 0;
    for turn in 0..1_200 {
        let (quotas, ledger) = &gateways[turn % 3];
        match quotas.reserve(&identity, &**ledger, soon()).await {
            Ok(reservation) => {
                reservation.keep();
                passed += 1;
            }
            Err(ApiError::QuotaUsedUp { monthly: false, limit: 500, .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(passed, 500, "all three had traffic, so that nothing was left in a lease");
}

#[tokio::test]
async fn what_was_not_decided_is_not_counted() {
    let (bus, identity, quotas) = (Bus::new(), daily(2), Quotas::new(OnFailure::Closed));
    let ledger = bus.connect().ledger;
    for _ in 0..10 {
        drop(quotas.reserve(&identity, &*ledger, soon()).await.unwrap());
    }
    quotas.reserve(&identity, &*ledger, soon()).await.unwrap().keep();
    quotas.reserve(&identity, &*ledger, soon()).await.unwrap().keep();
    assert!(quotas.reserve(&identity, &*ledger, soon()).await.is_err());
    let usage = quotas.usage(&identity, id(), &*ledger, soon()).await.unwrap();
    assert_eq!((usage.daily_used, usage.daily_quota, usage.daily_remaining), (2, 2, 0));
}

#[tokio::test]
async fn a_month_that_is_used_up_leaves_the_day_as_it_was() {
    let (bus, quotas) = (Bus::new(), Quotas::new(OnFailure::Closed));
    let (ledger, identity) =
        (bus.connect().ledger, identity(Limits { daily: Some(9), monthly: Some(1), per_minute: None }));
    quotas.reserve(&identity, &*ledger, soon()).await.unwrap().keep();
    let refused = quotas.reserve(&identity, &*ledger, soon()).await.err().unwrap();
    assert!(matches!(refused, ApiError::QuotaUsedUp { monthly: true, limit: 1, .. }), "{refused:?}");
    let usage = quotas.usage(&identity, id(), &*ledger, soon()).await.unwrap();
    assert_eq!((usage.daily_used, usage.monthly_used, usage.monthly_remaining), (1, 1, 0));
}

#[tokio::test]
async fn most_checks_do_not_ask_the_ledger() {
    let (bus, identity, quotas) = (Bus::new(), daily(10_000), Quotas::new(OnFailure::Closed));
    let ledger = bus.connect();
    quotas.reserve(&identity, &*ledger.ledger, soon()).await.unwrap().keep();
    ledger.requests.close().await;
    for _ in 1..100 {
        quotas.reserve(&identity, &*ledger.ledger, soon()).await.unwrap().keep();
    }
    assert_eq!(quotas.reserve(&identity, &*ledger.ledger, soon()).await.err(), Some(ApiError::Unavailable));
}

#[tokio::test]
async fn without_a_ledger_limited_accounts_are_refused_or_pass_as_the_operator_said() {
    let (bus, identity) = (Bus::new(), identity(Limits { per_minute: Some(5), daily: Some(5), monthly: None }));
    let gone = bus.connect();
    gone.requests.close().await;
    let closed = Quotas::new(OnFailure::Closed);
    assert_eq!(closed.admit(&identity, &*gone.ledger, soon()).await, Err(ApiError::Unavailable));
    assert_eq!(closed.reserve(&identity, &*gone.ledger, soon()).await.err(), Some(ApiError::Unavailable));
    assert!(closed.usage(&identity, id(), &*gone.ledger, soon()).await.is_err());
    let open = Quotas::new(OnFailure::Open);
    for _ in 0..8 {
        open.admit(&identity, &*gone.ledger, soon()).await.unwrap();
        open.reserve(&identity, &*gone.ledger, soon()).await.unwrap().keep();
    }
    let back = bus.connect().ledger;
    let usage = open.usage(&identity, id(), &*back, soon()).await.unwrap();
    assert_eq!((usage.daily_used, usage.daily_remaining), (5, 0), "never more than the quota");
    for meter in open.all() {
        meter.tell(&*back, soon()).await;
    }
    assert!(open.reserve(&identity, &*back, soon()).await.is_err(), "what passed is counted when it is back");
}

#[tokio::test]
async fn what_has_no_limit_is_counted_all_the_same_and_asks_nobody() {
    let (bus, identity, quotas) = (Bus::new(), identity(Limits::NONE), Quotas::new(OnFailure::Closed));
    let gone = bus.connect();
    gone.requests.close().await;
    for _ in 0..7 {
        quotas.admit(&identity, &*gone.ledger, soon()).await.unwrap();
        quotas.reserve(&identity, &*gone.ledger, soon()).await.unwrap().keep();
    }
    drop(quotas.reserve(&identity, &*gone.ledger, soon()).await.unwrap());
    assert_eq!(quotas.told(&identity), None);
    for meter in quotas.all() {
        meter.tell(&*gone.ledger, soon()).await;
    }
    let ledger = bus.connect().ledger;
    let usage = quotas.usage(&identity, id(), &*ledger, soon()).await.unwrap();
    assert_eq!((usage.daily_used, usage.monthly_used), (7, 7), "what could not be told is not lost");
    assert_eq!((usage.monthly_quota, usage.monthly_remaining), (UNLIMITED, UNLIMITED - 7));
    for meter in quotas.all() {
        meter.tell(&*ledger, soon()).await;
    }
    let other = Quotas::new(OnFailure::Closed);
    assert_eq!(other.usage(&identity, id(), &*ledger, soon()).await.unwrap().monthly_used, 7);
}

#[tokio::test]
async fn a_gateway_that_ends_gives_back_what_it_did_not_use() {
    let (bus, identity, quotas) = (Bus::new(), daily(1_000), Quotas::new(OnFailure::Closed));
    let ledger = bus.connect().ledger;
    for _ in 0..3 {
        quotas.reserve(&identity, &*ledger, soon()).await.unwrap().keep();
    }
    let other = Quotas::new(OnFailure::Closed);
    assert_eq!(other.usage(&identity, id(), &*ledger, soon()).await.unwrap().daily_used, 10, "a lease");
    let stop = CancellationToken::new();
    stop.cancel();
    quotas.run(Arc::clone(&ledger), stop).await;
    assert_eq!(other.usage(&identity, id(), &*ledger, soon()).await.unwrap().daily_used, 3);
}

#[tokio::test]
async fn answers_tell_the_shortest_limited_window() {
    let (bus, quotas) = (Bus::new(), Quotas::new(OnFailure::Closed));
    let ledger = bus.connect().ledger;
    let both = identity(Limits { per_minute: Some(40), daily: Some(100), monthly: None });
    assert_eq!(quotas.told(&both).map(|told| (told.limit, told.remaining)), Some((40, 40)));
    quotas.admit(&both, &*ledger, soon()).await.unwrap();
    quotas.reserve(&both, &*ledger, soon()).await.unwrap().keep();
    let told = quotas.told(&both).unwrap();
    assert!(told.limit == 40 && told.remaining >= 39 && (1..=60).contains(&told.reset), "{told:?}");
    assert_eq!(quotas.told(&daily(100)).map(|told| (told.limit, told.remaining)), Some((100, 99)));
}
