//! Several gateways on one state store.

use stage0_backplane::embedded::Bus;
use stage0_contract::{Caps, KeyId, Plan, Scopes};

use super::*;

pub(super) fn identity(limits: Limits) -> KeyIdentity {
    KeyIdentity {
        holder: None,
        key_name: None,
        groups: None,
        rules: stage0_contract::AccountRules::default(),
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

fn in_time(state_store: &dyn StateStore) -> StoreCall<'_> {
    StoreCall { state_store, deadline: Instant::now() + Duration::from_secs(30) }
}

fn id() -> RequestId {
    RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap()
}

/// A daily limit, because a minute might end during a test.
fn daily(limit: u64) -> KeyIdentity {
    identity(Limits { daily: Some(limit), ..Limits::NONE })
}

#[tokio::test]
async fn all_gateways_together_admit_exactly_the_limit() {
    let (bus, identity) = (Bus::new(), daily(500));
    let gateways: Vec<_> =
        (0..3).map(|_| (Quotas::new(OnFailure::Closed, StoreClock::own()), bus.connect().state_store)).collect();
    let mut passed = 0;
    for turn in 0..1_200 {
        let (quotas, state_store) = &gateways[turn % 3];
        match quotas.reserve(&identity, in_time(&**state_store)).await {
            Ok(mut reservation) => {
                reservation.keep();
                passed += 1;
            }
            Err(ApiError::QuotaUsedUp { monthly: false, limit: 500, .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(passed, 500, "all three had traffic, so that no lease has anything left");
}

#[tokio::test]
async fn undecided_checks_are_not_counted() {
    let (bus, identity, quotas) = (Bus::new(), daily(2), Quotas::new(OnFailure::Closed, StoreClock::own()));
    let state_store = bus.connect().state_store;
    for _ in 0..10 {
        drop(quotas.reserve(&identity, in_time(&*state_store)).await.unwrap());
    }
    quotas.reserve(&identity, in_time(&*state_store)).await.unwrap().keep();
    quotas.reserve(&identity, in_time(&*state_store)).await.unwrap().keep();
    assert!(quotas.reserve(&identity, in_time(&*state_store)).await.is_err());
    let usage = quotas.usage(&identity, id(), in_time(&*state_store)).await.unwrap();
    assert_eq!((usage.daily_used, usage.daily_quota, usage.daily_remaining), (2, 2, 0));
}

#[tokio::test]
async fn a_used_up_month_does_not_use_up_the_day() {
    let (bus, quotas) = (Bus::new(), Quotas::new(OnFailure::Closed, StoreClock::own()));
    let (state_store, identity) =
        (bus.connect().state_store, identity(Limits { daily: Some(9), monthly: Some(1), per_minute: None }));
    quotas.reserve(&identity, in_time(&*state_store)).await.unwrap().keep();
    let refused = quotas.reserve(&identity, in_time(&*state_store)).await.err().unwrap();
    assert!(matches!(refused, ApiError::QuotaUsedUp { monthly: true, limit: 1, .. }), "{refused:?}");
    let usage = quotas.usage(&identity, id(), in_time(&*state_store)).await.unwrap();
    assert_eq!((usage.daily_used, usage.monthly_used, usage.monthly_remaining), (1, 1, 0));
}

#[tokio::test]
async fn most_checks_cost_no_request_to_the_state_store() {
    let (bus, identity, quotas) = (Bus::new(), daily(10_000), Quotas::new(OnFailure::Closed, StoreClock::own()));
    let state_store = bus.connect();
    quotas.reserve(&identity, in_time(&*state_store.state_store)).await.unwrap().keep();
    state_store.requests.close().await;
    for _ in 1..100 {
        quotas.reserve(&identity, in_time(&*state_store.state_store)).await.unwrap().keep();
    }
    assert_eq!(
        quotas.reserve(&identity, in_time(&*state_store.state_store)).await.err(),
        Some(ApiError::Missing(Part::StateStore))
    );
}

#[tokio::test]
async fn without_a_state_store_limited_accounts_are_refused_or_pass_as_configured() {
    let (bus, identity) = (Bus::new(), identity(Limits { per_minute: Some(5), daily: Some(5), monthly: None }));
    let gone = bus.connect();
    gone.requests.close().await;
    let closed = Quotas::new(OnFailure::Closed, StoreClock::own());
    assert_eq!(closed.admit(&identity, in_time(&*gone.state_store)).await, Err(ApiError::Missing(Part::StateStore)));
    assert_eq!(
        closed.reserve(&identity, in_time(&*gone.state_store)).await.err(),
        Some(ApiError::Missing(Part::StateStore))
    );
    assert!(closed.usage(&identity, id(), in_time(&*gone.state_store)).await.is_err());
    let open = Quotas::new(OnFailure::Open, StoreClock::own());
    for _ in 0..8 {
        open.admit(&identity, in_time(&*gone.state_store)).await.unwrap();
        open.reserve(&identity, in_time(&*gone.state_store)).await.unwrap().keep();
    }
    let back = bus.connect().state_store;
    let usage = open.usage(&identity, id(), in_time(&*back)).await.unwrap();
    assert_eq!((usage.daily_used, usage.daily_remaining), (5, 0), "never more than the quota");
    for meter in open.meters() {
        meter.flush(in_time(&*back)).await;
    }
    let other = Quotas::new(OnFailure::Closed, StoreClock::own());
    let refused = other.reserve(&identity, in_time(&*back)).await.err().unwrap();
    assert!(matches!(refused, ApiError::QuotaUsedUp { .. }), "what passed is counted when it is back: {refused:?}");
}

#[tokio::test]
async fn unlimited_usage_is_counted_without_a_request() {
    let (bus, identity, quotas) =
        (Bus::new(), identity(Limits::NONE), Quotas::new(OnFailure::Closed, StoreClock::own()));
    let gone = bus.connect();
    gone.requests.close().await;
    for _ in 0..7 {
        quotas.admit(&identity, in_time(&*gone.state_store)).await.unwrap();
        quotas.reserve(&identity, in_time(&*gone.state_store)).await.unwrap().keep();
    }
    drop(quotas.reserve(&identity, in_time(&*gone.state_store)).await.unwrap());
    assert_eq!(quotas.rate_limit(&identity), None);
    for meter in quotas.meters() {
        meter.flush(in_time(&*gone.state_store)).await;
    }
    let state_store = bus.connect().state_store;
    let usage = quotas.usage(&identity, id(), in_time(&*state_store)).await.unwrap();
    assert_eq!((usage.daily_used, usage.monthly_used), (7, 7), "usage that could not be reported is not lost");
    assert_eq!((usage.monthly_quota, usage.monthly_remaining), (UNLIMITED, UNLIMITED - 7));
    for meter in quotas.meters() {
        meter.flush(in_time(&*state_store)).await;
    }
    let other = Quotas::new(OnFailure::Closed, StoreClock::own());
    assert_eq!(other.usage(&identity, id(), in_time(&*state_store)).await.unwrap().monthly_used, 7);
}

#[tokio::test]
async fn a_gateway_that_stops_gives_back_its_lease() {
    let (bus, identity, quotas) = (Bus::new(), daily(1_000), Quotas::new(OnFailure::Closed, StoreClock::own()));
    let state_store = bus.connect().state_store;
    for _ in 0..3 {
        quotas.reserve(&identity, in_time(&*state_store)).await.unwrap().keep();
    }
    let other = Quotas::new(OnFailure::Closed, StoreClock::own());
    assert_eq!(other.usage(&identity, id(), in_time(&*state_store)).await.unwrap().daily_used, 10, "a lease");
    let stop = CancellationToken::new();
    stop.cancel();
    quotas.run(&*state_store, stop).await;
    assert_eq!(other.usage(&identity, id(), in_time(&*state_store)).await.unwrap().daily_used, 3);
}

#[tokio::test]
async fn answers_report_the_shortest_limited_window() {
    let (bus, quotas) = (Bus::new(), Quotas::new(OnFailure::Closed, StoreClock::own()));
    let state_store = bus.connect().state_store;
    let both = identity(Limits { per_minute: Some(40), daily: Some(100), monthly: None });
    assert_eq!(quotas.rate_limit(&both).map(|told| (told.limit, told.remaining)), Some((40, 40)));
    quotas.admit(&both, in_time(&*state_store)).await.unwrap();
    quotas.reserve(&both, in_time(&*state_store)).await.unwrap().keep();
    let told = quotas.rate_limit(&both).unwrap();
    assert!(told.limit == 40 && told.remaining >= 39 && (1..=60).contains(&told.reset), "{told:?}");
    assert_eq!(quotas.rate_limit(&daily(100)).map(|told| (told.limit, told.remaining)), Some((100, 99)));
}

#[tokio::test]
async fn a_new_limit_counts_earlier_unlimited_usage() {
    let (bus, quotas) = (Bus::new(), Quotas::new(OnFailure::Closed, StoreClock::own()));
    let state_store = bus.connect().state_store;
    for _ in 0..30 {
        quotas.reserve(&identity(Limits::NONE), in_time(&*state_store)).await.unwrap().keep();
    }
    let mut passed = 0;
    while let Ok(mut reservation) = quotas.reserve(&daily(40), in_time(&*state_store)).await {
        reservation.keep();
        passed += 1;
    }
    assert_eq!(passed, 10);
}

#[tokio::test]
async fn a_lowered_limit_ends_the_lease_of_the_higher_one() {
    let (bus, quotas) = (Bus::new(), Quotas::new(OnFailure::Closed, StoreClock::own()));
    let state_store = bus.connect().state_store;
    quotas.reserve(&daily(100_000), in_time(&*state_store)).await.unwrap().keep();
    for _ in 0..4 {
        quotas.reserve(&daily(5), in_time(&*state_store)).await.unwrap().keep();
    }
    assert!(quotas.reserve(&daily(5), in_time(&*state_store)).await.is_err());
    let usage = quotas.usage(&daily(100_000), id(), in_time(&*state_store)).await.unwrap();
    assert_eq!(usage.daily_used, 5, "the rest of the lease was given back");
}

#[tokio::test]
async fn a_failed_state_store_is_not_asked_again_at_once() {
    let (bus, quotas, limited) = (Bus::new(), Quotas::new(OnFailure::Closed, StoreClock::own()), daily(10));
    let gone = bus.connect();
    gone.requests.close().await;
    assert!(quotas.reserve(&limited, in_time(&*gone.state_store)).await.is_err());
    let back = bus.connect().state_store;
    assert_eq!(quotas.reserve(&limited, in_time(&*back)).await.err(), Some(ApiError::Missing(Part::StateStore)));
    let again = async {
        while quotas.reserve(&limited, in_time(&*back)).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(FAILURE_RETRY_DELAY * 10, again).await.unwrap();
}

fn storing(bytes: Option<u64>) -> KeyIdentity {
    KeyIdentity { caps: Caps { stored_bytes: bytes, ..Caps::NONE }, ..identity(Limits::NONE) }
}

async fn stores(quotas: &Quotas, identity: &KeyIdentity, state_store: &dyn StateStore, bytes: u64) -> bool {
    let kept = quotas.reserve_bytes(identity, bytes, in_time(state_store)).await;
    kept.map(|mut reservation| reservation.keep()).is_some()
}

#[tokio::test]
async fn all_gateways_together_store_no_more_input_than_the_quota() {
    let (bus, account) = (Bus::new(), storing(Some(100_000)));
    let gateways: Vec<_> =
        (0..3).map(|_| (Quotas::new(OnFailure::Open, StoreClock::own()), bus.connect().state_store)).collect();
    let mut kept = 0;
    for (turn, bytes) in [900, 30_000, 7, 2_000, 45_000].into_iter().cycle().take(400).enumerate() {
        let (quotas, state_store) = &gateways[turn % 3];
        if stores(quotas, &account, &**state_store, bytes).await {
            kept += bytes;
        }
    }
    assert!((90_000..=100_000).contains(&kept), "{kept}: a lease is a thousand");
    let (quotas, state_store) = &gateways[0];
    let told = quotas.usage(&account, id(), in_time(&**state_store)).await.unwrap().stored_bytes.unwrap();
    assert_eq!((told.quota, told.used + told.remaining), (100_000, 100_000));
    assert!(told.used >= kept - 1_000, "{told:?}");
}

#[tokio::test]
async fn the_input_of_an_unrecorded_check_is_released() {
    let (bus, quotas, account) = (Bus::new(), Quotas::new(OnFailure::Closed, StoreClock::own()), storing(Some(10)));
    let state_store = bus.connect().state_store;
    for _ in 0..5 {
        drop(quotas.reserve_bytes(&account, 10, in_time(&*state_store)).await.unwrap());
    }
    assert!(stores(&quotas, &account, &*state_store, 10).await && !stores(&quotas, &account, &*state_store, 1).await);
    let none = storing(Some(0));
    assert!(
        !stores(&Quotas::new(OnFailure::Closed, StoreClock::own()), &none, &*state_store, 1).await,
        "none at all may be kept"
    );
}

#[tokio::test]
async fn the_default_byte_quota_applies_without_a_plan() {
    let (bus, quotas) = (Bus::new(), Quotas::new(OnFailure::Closed, StoreClock::own()));
    let state_store = bus.connect().state_store;
    let told = quotas.usage(&storing(None), id(), in_time(&*state_store)).await.unwrap().stored_bytes.unwrap();
    assert_eq!((told.used, told.quota), (0, Caps::DEFAULT_STORED_BYTES));
    assert!(!stores(&quotas, &storing(None), &*state_store, Caps::DEFAULT_STORED_BYTES + 1).await);
    let unlimited = storing(Some(UNLIMITED));
    assert!(stores(&quotas, &unlimited, &*state_store, 3_000_000_000).await);
    let told = quotas.usage(&unlimited, id(), in_time(&*state_store)).await.unwrap().stored_bytes.unwrap();
    assert_eq!((told.quota, told.used), (UNLIMITED, 3_000_000_000));
}

#[tokio::test]
async fn without_a_state_store_no_input_is_stored_though_checks_may_pass() {
    let gone = Bus::new().connect();
    gone.requests.close().await;
    let open = Quotas::new(OnFailure::Open, StoreClock::own());
    assert!(!stores(&open, &storing(None), &*gone.state_store, 1).await);
    let bus = Bus::new();
    let state_store = bus.connect().state_store;
    let late = StoreCall { state_store: &*state_store, deadline: Instant::now() };
    let quotas = Quotas::new(OnFailure::Closed, StoreClock::own());
    assert!(quotas.reserve_bytes(&storing(None), 1, late).await.is_none());
    assert!(
        stores(&quotas, &storing(None), &*bus.connect().state_store, 1).await,
        "running out of time is no failure of the state store"
    );
}
