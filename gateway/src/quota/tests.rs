//! Several gateways on one ledger.

use stage0_backplane::embedded::Bus;
use stage0_contract::{Caps, KeyId, Plan, Scopes};

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
        caps: Caps::NONE,
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
    let gateways: Vec<_> =
        (0..3).map(|_| (Quotas::new(OnFailure::Closed, StoreClock::own()), bus.connect().ledger)).collect();
    let mut passed = 0;
    for turn in 0..1_200 {
        let (quotas, ledger) = &gateways[turn % 3];
        match quotas.reserve(&identity, &**ledger, soon()).await {
            Ok(mut reservation) => {
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
    let (bus, identity, quotas) = (Bus::new(), daily(2), Quotas::new(OnFailure::Closed, StoreClock::own()));
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
    let (bus, quotas) = (Bus::new(), Quotas::new(OnFailure::Closed, StoreClock::own()));
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
    let (bus, identity, quotas) = (Bus::new(), daily(10_000), Quotas::new(OnFailure::Closed, StoreClock::own()));
    let ledger = bus.connect();
    quotas.reserve(&identity, &*ledger.ledger, soon()).await.unwrap().keep();
    ledger.requests.close().await;
    for _ in 1..100 {
        quotas.reserve(&identity, &*ledger.ledger, soon()).await.unwrap().keep();
    }
    assert_eq!(quotas.reserve(&identity, &*ledger.ledger, soon()).await.err(), Some(ApiError::Missing(Part::Ledger)));
}

#[tokio::test]
async fn without_a_ledger_limited_accounts_are_refused_or_pass_as_the_operator_said() {
    let (bus, identity) = (Bus::new(), identity(Limits { per_minute: Some(5), daily: Some(5), monthly: None }));
    let gone = bus.connect();
    gone.requests.close().await;
    let closed = Quotas::new(OnFailure::Closed, StoreClock::own());
    assert_eq!(closed.admit(&identity, &*gone.ledger, soon()).await, Err(ApiError::Missing(Part::Ledger)));
    assert_eq!(closed.reserve(&identity, &*gone.ledger, soon()).await.err(), Some(ApiError::Missing(Part::Ledger)));
    assert!(closed.usage(&identity, id(), &*gone.ledger, soon()).await.is_err());
    let open = Quotas::new(OnFailure::Open, StoreClock::own());
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
    let other = Quotas::new(OnFailure::Closed, StoreClock::own());
    let refused = other.reserve(&identity, &*back, soon()).await.err().unwrap();
    assert!(matches!(refused, ApiError::QuotaUsedUp { .. }), "what passed is counted when it is back: {refused:?}");
}

#[tokio::test]
async fn what_has_no_limit_is_counted_all_the_same_and_asks_nobody() {
    let (bus, identity, quotas) =
        (Bus::new(), identity(Limits::NONE), Quotas::new(OnFailure::Closed, StoreClock::own()));
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
    let other = Quotas::new(OnFailure::Closed, StoreClock::own());
    assert_eq!(other.usage(&identity, id(), &*ledger, soon()).await.unwrap().monthly_used, 7);
}

#[tokio::test]
async fn a_gateway_that_ends_gives_back_what_it_did_not_use() {
    let (bus, identity, quotas) = (Bus::new(), daily(1_000), Quotas::new(OnFailure::Closed, StoreClock::own()));
    let ledger = bus.connect().ledger;
    for _ in 0..3 {
        quotas.reserve(&identity, &*ledger, soon()).await.unwrap().keep();
    }
    let other = Quotas::new(OnFailure::Closed, StoreClock::own());
    assert_eq!(other.usage(&identity, id(), &*ledger, soon()).await.unwrap().daily_used, 10, "a lease");
    let stop = CancellationToken::new();
    stop.cancel();
    quotas.run(Arc::clone(&ledger), stop).await;
    assert_eq!(other.usage(&identity, id(), &*ledger, soon()).await.unwrap().daily_used, 3);
}

#[tokio::test]
async fn answers_tell_the_shortest_limited_window() {
    let (bus, quotas) = (Bus::new(), Quotas::new(OnFailure::Closed, StoreClock::own()));
    let ledger = bus.connect().ledger;
    let both = identity(Limits { per_minute: Some(40), daily: Some(100), monthly: None });
    assert_eq!(quotas.told(&both).map(|told| (told.limit, told.remaining)), Some((40, 40)));
    quotas.admit(&both, &*ledger, soon()).await.unwrap();
    quotas.reserve(&both, &*ledger, soon()).await.unwrap().keep();
    let told = quotas.told(&both).unwrap();
    assert!(told.limit == 40 && told.remaining >= 39 && (1..=60).contains(&told.reset), "{told:?}");
    assert_eq!(quotas.told(&daily(100)).map(|told| (told.limit, told.remaining)), Some((100, 99)));
}

#[tokio::test]
async fn a_first_limit_counts_what_was_made_without_one() {
    let (bus, quotas) = (Bus::new(), Quotas::new(OnFailure::Closed, StoreClock::own()));
    let ledger = bus.connect().ledger;
    for _ in 0..30 {
        quotas.reserve(&identity(Limits::NONE), &*ledger, soon()).await.unwrap().keep();
    }
    let mut passed = 0;
    while let Ok(mut reservation) = quotas.reserve(&daily(40), &*ledger, soon()).await {
        reservation.keep();
        passed += 1;
    }
    assert_eq!(passed, 10);
}

#[tokio::test]
async fn a_lowered_limit_ends_the_lease_that_was_taken_under_the_higher_one() {
    let (bus, quotas) = (Bus::new(), Quotas::new(OnFailure::Closed, StoreClock::own()));
    let ledger = bus.connect().ledger;
    quotas.reserve(&daily(100_000), &*ledger, soon()).await.unwrap().keep();
    for _ in 0..4 {
        quotas.reserve(&daily(5), &*ledger, soon()).await.unwrap().keep();
    }
    assert!(quotas.reserve(&daily(5), &*ledger, soon()).await.is_err());
    let usage = quotas.usage(&daily(100_000), id(), &*ledger, soon()).await.unwrap();
    assert_eq!(usage.daily_used, 5, "the rest of the lease was given back");
}

#[tokio::test]
async fn a_ledger_that_failed_is_left_alone_for_a_moment() {
    let (bus, quotas, limited) = (Bus::new(), Quotas::new(OnFailure::Closed, StoreClock::own()), daily(10));
    let gone = bus.connect();
    gone.requests.close().await;
    assert!(quotas.reserve(&limited, &*gone.ledger, soon()).await.is_err());
    let back = bus.connect().ledger;
    assert_eq!(quotas.reserve(&limited, &*back, soon()).await.err(), Some(ApiError::Missing(Part::Ledger)));
    let again = async {
        while quotas.reserve(&limited, &*back, soon()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(FAILS_FOR * 10, again).await.unwrap();
}

fn storing(bytes: Option<u64>) -> KeyIdentity {
    KeyIdentity { caps: Caps { stored_bytes: bytes, ..Caps::NONE }, ..identity(Limits::NONE) }
}

async fn stores(quotas: &Quotas, identity: &KeyIdentity, ledger: &dyn Ledger, bytes: u64) -> bool {
    let kept = quotas.reserve_bytes(identity, bytes, ledger, soon()).await;
    kept.map(|mut reservation| reservation.keep()).is_some()
}

#[tokio::test]
async fn all_gateways_together_keep_no_more_input_than_the_quota_says() {
    let (bus, account) = (Bus::new(), storing(Some(100_000)));
    let gateways: Vec<_> =
        (0..3).map(|_| (Quotas::new(OnFailure::Open, StoreClock::own()), bus.connect().ledger)).collect();
    let mut kept = 0;
    for (turn, bytes) in [900, 30_000, 7, 2_000, 45_000].into_iter().cycle().take(400).enumerate() {
        let (quotas, ledger) = &gateways[turn % 3];
        if stores(quotas, &account, &**ledger, bytes).await {
            kept += bytes;
        }
    }
    assert!((90_000..=100_000).contains(&kept), "{kept}: a lease is a thousand");
    let (quotas, ledger) = &gateways[0];
    let told = quotas.usage(&account, id(), &**ledger, soon()).await.unwrap().stored_bytes.unwrap();
    assert_eq!((told.quota, told.used + told.remaining), (100_000, 100_000));
    assert!(told.used >= kept - 1_000, "{told:?}");
}

#[tokio::test]
async fn an_input_of_a_check_that_was_not_recorded_is_given_back() {
    let (bus, quotas, account) = (Bus::new(), Quotas::new(OnFailure::Closed, StoreClock::own()), storing(Some(10)));
    let ledger = bus.connect().ledger;
    for _ in 0..5 {
        drop(quotas.reserve_bytes(&account, 10, &*ledger, soon()).await.unwrap());
    }
    assert!(stores(&quotas, &account, &*ledger, 10).await && !stores(&quotas, &account, &*ledger, 1).await);
    let none = storing(Some(0));
    assert!(
        !stores(&Quotas::new(OnFailure::Closed, StoreClock::own()), &none, &*ledger, 1).await,
        "none at all may be kept"
    );
}

#[tokio::test]
async fn without_a_plan_there_is_a_default_and_only_who_has_no_quota_is_counted_afterwards() {
    let (bus, quotas) = (Bus::new(), Quotas::new(OnFailure::Closed, StoreClock::own()));
    let ledger = bus.connect().ledger;
    let told = quotas.usage(&storing(None), id(), &*ledger, soon()).await.unwrap().stored_bytes.unwrap();
    assert_eq!((told.used, told.quota), (0, Caps::DEFAULT_STORED_BYTES));
    assert!(!stores(&quotas, &storing(None), &*ledger, Caps::DEFAULT_STORED_BYTES + 1).await);
    let unlimited = storing(Some(UNLIMITED));
    assert!(stores(&quotas, &unlimited, &*ledger, 3_000_000_000).await);
    let told = quotas.usage(&unlimited, id(), &*ledger, soon()).await.unwrap().stored_bytes.unwrap();
    assert_eq!((told.quota, told.used), (UNLIMITED, 3_000_000_000));
}

#[tokio::test]
async fn without_a_ledger_no_input_is_kept_though_checks_may_pass() {
    let gone = Bus::new().connect();
    gone.requests.close().await;
    let open = Quotas::new(OnFailure::Open, StoreClock::own());
    assert!(!stores(&open, &storing(None), &*gone.ledger, 1).await);
    let late = Instant::now();
    let bus = Bus::new();
    let quotas = Quotas::new(OnFailure::Closed, StoreClock::own());
    assert!(quotas.reserve_bytes(&storing(None), 1, &*bus.connect().ledger, late).await.is_none());
    assert!(stores(&quotas, &storing(None), &*bus.connect().ledger, 1).await, "which is no failure of the ledger");
}
