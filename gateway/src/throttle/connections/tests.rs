//! Which connection is evicted for a new one.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn table(per_address: u32, total: usize) -> (Arc<Connections>, Instant) {
    let trusted = TrustedProxies::parse(&["10.0.0.0/8".to_owned()]).unwrap();
    (Arc::new(Connections::new(NonZeroU32::new(per_address), total, trusted)), Instant::now())
}

fn at(text: &str) -> SocketAddr {
    SocketAddr::new(text.parse().unwrap(), 4711)
}

fn peer(text: &str) -> Option<Peer> {
    Some(Peer::Client(at(text)))
}

fn is_open(connection: &CountedStream<()>) -> bool {
    !connection.permit.0.slot.is_evicted()
}

fn open(connections: &[&CountedStream<()>]) -> Vec<bool> {
    connections.iter().map(|connection| is_open(connection)).collect()
}

#[test]
fn one_connection_over_the_address_limit_evicts_its_oldest() {
    let (table, now) = table(2, 100);
    let first = table.admit((), peer("192.0.2.1"), now).unwrap();
    let second = table.admit((), peer("::ffff:192.0.2.1"), now).unwrap();
    let other = table.admit((), peer("192.0.2.2"), now).unwrap();
    let third = table.admit((), peer("192.0.2.1"), now).unwrap();
    assert_eq!(open(&[&first, &second, &other, &third]), [false, true, true, true]);
    drop((first, second, third));
    assert_eq!(table.open().total, 1);
    drop(other);
    let left = table.open();
    assert!(left.total == 0 && left.groups.is_empty() && left.sizes.is_empty() && left.unauthenticated.is_empty());
}

#[test]
fn a_connection_with_a_request_is_not_evicted_and_the_new_one_is_closed() {
    let (table, now) = table(1, 100);
    let first = table.admit((), peer("192.0.2.1"), now).unwrap();
    first.handle().slot().mark_serving();
    assert!(table.admit((), peer("192.0.2.1"), now).is_none());
    assert!(is_open(&first));
    first.handle().slot().mark_waiting(now);
    let second = table.admit((), peer("192.0.2.1"), now).unwrap();
    assert_eq!(open(&[&first, &second]), [false, true]);
}

#[test]
fn unauthenticated_connections_are_evicted_first() {
    let (table, now) = table(3, 100);
    let known = table.admit((), peer("192.0.2.1"), now).unwrap();
    known.handle().set_account(7);
    let stranger = table.admit((), peer("192.0.2.1"), now).unwrap();
    let fresh = table.admit((), peer("192.0.2.1"), now + 3 * SECOND).unwrap();
    let newcomer = table.admit((), peer("192.0.2.1"), now + 3 * SECOND).unwrap();
    assert_eq!(open(&[&known, &stranger, &fresh, &newcomer]), [true, false, true, true]);
}

#[test]
fn the_account_with_most_connections_loses_one_before_a_new_unauthenticated_connection() {
    let (table, now) = table(4, 100);
    let admit = |account: Option<u64>, now: Instant| {
        let connection = table.admit((), peer("192.0.2.1"), now).unwrap();
        account.inspect(|account| connection.handle().set_account(*account));
        connection
    };
    let (good, flood, used, fresh) =
        (admit(Some(1), now), admit(Some(2), now), admit(Some(2), now), admit(None, now + 5 * SECOND));
    used.handle().slot().mark_waiting(now + SECOND);
    flood.handle().slot().mark_waiting(now + 2 * SECOND);
    let newcomer = admit(None, now + 5 * SECOND);
    assert_eq!(open(&[&good, &flood, &used, &fresh, &newcomer]), [true, true, false, true, true]);
}

#[test]
fn a_burst_of_unauthenticated_connections_evicts_no_authenticated_one() {
    let (table, now) = table(4, 100);
    let known = table.admit((), peer("192.0.2.1"), now).unwrap();
    known.handle().set_account(1);
    let burst: Vec<_> = (0..20).map(|_| table.admit((), peer("192.0.2.1"), now).unwrap()).collect();
    assert!(is_open(&known));
    assert_eq!(burst.iter().filter(|connection| is_open(connection)).count(), 3);
}

#[test]
fn at_the_total_limit_the_address_with_most_connections_loses_one() {
    let (table, now) = table(0, 10);
    let flood: Vec<_> = (0..9).map(|_| table.admit((), peer("192.0.2.66"), now).unwrap()).collect();
    let alone = table.admit((), peer("192.0.2.1"), now).unwrap();
    let newcomers: Vec<_> = (2..6).map(|n| table.admit((), peer(&format!("192.0.2.{n}")), now).unwrap()).collect();
    assert!(is_open(&alone) && newcomers.iter().all(is_open));
    assert_eq!(flood.iter().filter(|connection| is_open(connection)).count(), 5);
    assert_eq!(table.open().total, 10);
}

#[test]
fn at_the_total_limit_unauthenticated_connections_of_many_addresses_are_evicted_first() {
    let (table, now) = table(0, 10);
    let known = table.admit((), peer("198.51.100.1"), now).unwrap();
    known.handle().set_account(7);
    let flood: Vec<_> = (0..9).map(|n| table.admit((), peer(&format!("192.0.2.{n}")), now).unwrap()).collect();
    let newcomers: Vec<_> =
        (0..9).map(|n| table.admit((), peer(&format!("203.0.113.{n}")), now + 3 * SECOND).unwrap()).collect();
    assert!(is_open(&known) && newcomers.iter().all(is_open));
    assert!(!flood.iter().any(is_open));
}

#[test]
fn trusted_proxies_and_balancers_have_no_address_limit_and_are_not_evicted() {
    let (table, now) = table(1, 12);
    let balancer = Some(Peer::Balancer(at("192.0.2.1")));
    let held: Vec<_> = (0..5).flat_map(|_| [peer("10.0.0.1"), balancer]).collect();
    let held: Vec<_> = held.into_iter().map(|peer| table.admit((), peer, now).unwrap()).collect();
    let client = table.admit((), peer("198.51.100.7"), now).unwrap();
    assert_eq!(client.peer(), Some(at("198.51.100.7")));
    let other = table.admit((), peer("198.51.100.8"), now).unwrap();
    let third = table.admit((), peer("198.51.100.9"), now).unwrap();
    assert!(held.iter().all(is_open) && is_open(&third));
    assert_eq!(open(&[&client, &other]).iter().filter(|open| **open).count(), 1);
    drop(held);
    assert_eq!(table.open().total, 2);
}

#[test]
fn a_new_connection_is_closed_when_only_proxies_are_left() {
    let (table, now) = table(1, 2);
    let _held: Vec<_> = (0..2).map(|_| table.admit((), peer("10.0.0.1"), now).unwrap()).collect();
    assert!(table.admit((), peer("198.51.100.7"), now).is_none());
}

#[tokio::test]
async fn an_evicted_connection_fails_at_once_although_nothing_arrives() {
    use tokio::io::AsyncReadExt;
    let (table, now) = table(1, 10);
    let (_client, server) = tokio::io::duplex(64);
    let mut first = table.admit(server, peer("192.0.2.1"), now).unwrap();
    let reading = tokio::spawn(async move { first.read_u8().await.unwrap_err().kind() });
    tokio::task::yield_now().await;
    let _second = table.admit((), peer("192.0.2.1"), now).unwrap();
    assert_eq!(reading.await.unwrap(), io::ErrorKind::ConnectionAborted);
}

#[tokio::test]
async fn only_the_handshake_is_limited_in_bytes() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    let (table, now) = table(1, 10);
    for (established, read) in [(false, MAX_HANDSHAKE_BYTES), (true, 2 * MAX_HANDSHAKE_BYTES)] {
        let (mut client, server) = duplex(4 * MAX_HANDSHAKE_BYTES);
        client.write_all(&vec![0; 2 * MAX_HANDSHAKE_BYTES]).await.unwrap();
        drop(client);
        let mut server = table.admit(server, peer("192.0.2.1"), now).unwrap();
        if established {
            server.established();
        }
        let mut count = 0;
        let mut chunk = [0; 1024];
        loop {
            match server.read(&mut chunk).await {
                Ok(0) => break assert!(established),
                Ok(some) => count += some,
                Err(error) => break assert_eq!((established, error.kind()), (false, io::ErrorKind::InvalidData)),
            }
        }
        assert_eq!(count, read);
    }
}
