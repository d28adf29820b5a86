//! Which releases may start as a role, by what has run.

use async_nats::HeaderMap;
use bytes::Bytes;
use stage0_backplane::nats::{Connection, KeySet, MessageAuth, NatsConfig, Release, ReleaseError, Requirement};
use stage0_backplane::testing::NatsServer;
use stage0_contract::Role;

fn release(protocol_version: u32) -> Release {
    Release { protocol_version, version: format!("0.{protocol_version}.0") }
}

/// A gateway of a deployment that has always had message keys.
async fn gateway(nats: &NatsServer) -> Connection {
    let keys = KeySet::create(Requirement::Always).unwrap();
    let auth = MessageAuth::new(keys.role(Role::Gateway).unwrap(), Role::Gateway, false).unwrap();
    let config = NatsConfig { auth: Some(auth), ..nats.config("gateway") };
    let gateway = Connection::open(&config).await.unwrap();
    gateway.prepare(Role::Gateway, 1).await.unwrap();
    gateway
}

#[tokio::test]
async fn the_newest_release_that_has_run_is_recorded_and_never_lowered() {
    let nats = NatsServer::start().await;
    let gateway = gateway(&nats).await;
    assert_eq!(gateway.newest_release(Role::Gateway).await.unwrap(), None);
    for (started, newest) in [(4, 4), (5, 5), (4, 5), (6, 6)] {
        gateway.admit(Role::Gateway, &release(started)).await.unwrap();
        assert_eq!(gateway.newest_release(Role::Gateway).await.unwrap(), Some(release(newest)));
    }
    let old = gateway.admit(Role::Gateway, &release(4)).await.unwrap_err();
    assert!(matches!(old, ReleaseError::TooOld { .. }) && !old.is_temporary(), "{old}");
    let new = gateway.admit(Role::Gateway, &release(8)).await.unwrap_err();
    assert!(matches!(new, ReleaseError::TooNew { .. }) && !new.is_temporary(), "{new}");
    assert_eq!(gateway.newest_release(Role::Gateway).await.unwrap(), Some(release(6)));
}

#[tokio::test]
async fn what_another_client_wrote_as_the_newest_release_keeps_no_role_from_starting() {
    let nats = NatsServer::start().await;
    let gateway = gateway(&nats).await;
    let stranger = async_nats::jetstream::new(async_nats::connect(nats.url()).await.unwrap());
    let forged = Bytes::from(serde_json::to_vec(&release(9)).unwrap());
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
    stranger.publish_with_headers("s0.ledger.usage.release", headers, forged).await.unwrap().await.unwrap();
    gateway.admit(Role::Gateway, &release(1)).await.unwrap();
    assert_eq!(gateway.newest_release(Role::Gateway).await.unwrap(), None);
}

#[tokio::test]
async fn a_state_store_that_does_not_answer_is_waited_for() {
    let mut nats = NatsServer::start().await;
    let gateway = gateway(&nats).await;
    nats.kill();
    assert!(gateway.admit(Role::Gateway, &release(1)).await.unwrap_err().is_temporary());
}
