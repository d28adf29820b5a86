//! Which hold is cut when an account, an address or the gateway has too many bytes in flight.

use super::*;
use futures_util::FutureExt;
use proptest::prelude::*;

const KIB: usize = 1 << 10;

fn bytes(gateway: usize, account: usize, address: usize) -> (Arc<BytesInFlight>, Instant) {
    (BytesInFlight::new(ByteLimits { gateway, account, address }), Instant::now())
}

fn account(name: &str) -> AccountId {
    AccountId::parse(name).unwrap()
}

fn net(text: &str) -> ClientNet {
    ClientNet::of(text.parse().unwrap())
}

fn cut(hold: &Hold) -> Option<ByteLimit> {
    hold.cut().now_or_never()
}

#[test]
fn each_limit_names_itself_and_another_account_at_another_address_has_room() {
    for (limits, over) in [
        ((1_000 * KIB, 100 * KIB, 500 * KIB), ByteLimit::Account),
        ((1_000 * KIB, 500 * KIB, 100 * KIB), ByteLimit::Address),
        ((100 * KIB, 500 * KIB, 500 * KIB), ByteLimit::Gateway),
    ] {
        let (bytes, now) = bytes(limits.0, limits.1, limits.2);
        let first = bytes.begin(Some(&account("a")), Some(net("192.0.2.1")), now);
        first.grow(60 * KIB, now).unwrap();
        let second = bytes.begin(Some(&account("a")), Some(net("192.0.2.1")), now);
        assert_eq!(second.grow(60 * KIB, now), Err(over), "of equals that both make progress the newcomer is refused");
        assert_eq!((cut(&first), cut(&second)), (None, Some(over)));
        let other = bytes.begin(Some(&account("b")), Some(net("192.0.2.2")), now);
        assert_eq!(other.grow(60 * KIB, now).is_ok(), over != ByteLimit::Gateway);
    }
}

#[test]
fn a_stalled_hold_is_cut_first() {
    let (bytes, began) = bytes(100 * KIB, 100 * KIB, 100 * KIB);
    let hold = |kib: usize| {
        let hold = bytes.begin(Some(&account("a")), None, began);
        hold.grow(kib * KIB, began).unwrap();
        hold
    };
    let (stalled, alive, small) = (hold(40), hold(50), hold(5));
    let later = began + Duration::from_secs(2);
    alive.progressed(STALL_RESET_BYTES, later);
    small.progressed(STALL_RESET_BYTES - 1, later);
    let newcomer = bytes.begin(Some(&account("b")), None, later);
    newcomer.grow(20 * KIB, later).unwrap();
    assert_eq!([cut(&stalled), cut(&alive), cut(&small)], [Some(ByteLimit::Gateway), None, None]);
    assert_eq!(stalled.grow(1, later), Err(ByteLimit::Gateway), "it stays cut");
    // Bytes that are no progress do not help.
    newcomer.grow(30 * KIB, later).unwrap();
    assert_eq!((cut(&small), cut(&alive)), (Some(ByteLimit::Gateway), None));
}

#[test]
fn a_stalled_request_cuts_no_other() {
    let (bytes, began) = bytes(100 * KIB, 100 * KIB, 100 * KIB);
    let old = bytes.begin(Some(&account("a")), None, began);
    old.grow(60 * KIB, began).unwrap();
    let drip = bytes.begin(Some(&account("b")), None, began);
    drip.grow(39 * KIB, began).unwrap();
    let later = began + Duration::from_secs(3);
    old.progressed(STALL_RESET_BYTES, later);
    assert_eq!(drip.grow(2 * KIB, later), Err(ByteLimit::Gateway));
    assert_eq!(cut(&old), None);
}

#[test]
fn a_small_body_finds_room_beside_large_ones_that_all_make_progress() {
    let (bytes, now) = bytes(100 * KIB, 100 * KIB, 100 * KIB);
    let large: Vec<_> = (0..2).map(|_| bytes.begin(Some(&account("a")), Some(net("192.0.2.1")), now)).collect();
    large.iter().for_each(|hold| hold.grow(50 * KIB, now).unwrap());
    let check = bytes.begin(Some(&account("b")), Some(net("192.0.2.1")), now);
    check.grow(4 * KIB, now).unwrap();
    assert_eq!(large.iter().filter(|hold| hold.is_cut()).count(), 1);
}

#[test]
fn released_bytes_are_free_and_empty_entries_are_removed() {
    let (bytes, now) = bytes(100 * KIB, 100 * KIB, 100 * KIB);
    let hold = bytes.begin(Some(&account("a")), Some(net("192.0.2.1")), now);
    hold.grow(100 * KIB, now).unwrap();
    hold.shrink(60 * KIB);
    hold.shrink(60 * KIB);
    let other = bytes.begin(Some(&account("a")), Some(net("192.0.2.1")), now);
    other.grow(100 * KIB, now).unwrap();
    drop((hold, other));
    let table = bytes.lock();
    assert!(table.gateway == 0 && table.accounts.is_empty() && table.addresses.is_empty() && table.holders.is_empty());
}

#[tokio::test]
async fn a_waiting_request_learns_that_it_was_cut() {
    let (bytes, now) = bytes(100 * KIB, 100 * KIB, 100 * KIB);
    let hold = bytes.begin(Some(&account("a")), None, now);
    hold.grow(90 * KIB, now).unwrap();
    let check = bytes.begin(Some(&account("b")), None, now);
    let (over, grown) = tokio::join!(hold.cut(), async { check.grow(20 * KIB, now) });
    assert_eq!((over, grown), (ByteLimit::Gateway, Ok(())));
}

proptest! {
    #[test]
    fn no_limit_is_ever_exceeded_and_sums_agree(
        steps in proptest::collection::vec((0_usize..6, 0_usize..3, 0_usize..60, 0_u64..900), 1..200)
    ) {
        let (bytes, mut now) = bytes(100 * KIB, 60 * KIB, 70 * KIB);
        let mut holds: Vec<Option<Hold>> = (0..6).map(|_| None).collect();
        for (index, what, kib, millis) in steps {
            now += Duration::from_millis(millis);
            let names = ["a", "b", "c"];
            let address = net(["192.0.2.1", "192.0.2.2"][index % 2]);
            let begin = || bytes.begin(Some(&account(names[index % 3])), Some(address), now);
            let hold = holds[index].get_or_insert_with(begin);
            match what {
                0 => { let _ = hold.grow(kib * KIB, now); }
                1 => hold.progressed(kib * KIB, now),
                _ => holds[index] = None,
            }
            let table = bytes.lock();
            let sum: usize = table.holders.values().map(|holder| holder.bytes).sum();
            prop_assert_eq!(sum, table.gateway);
            prop_assert_eq!(sum, table.accounts.values().sum::<usize>());
            prop_assert_eq!(sum, table.addresses.values().sum::<usize>());
            prop_assert!(sum <= 100 * KIB);
            prop_assert!(table.accounts.values().all(|used| *used <= 60 * KIB));
            prop_assert!(table.addresses.values().all(|used| *used <= 70 * KIB));
        }
    }
}
