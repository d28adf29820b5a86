//! Processes are replaced under load: by this release beside the last one, and back; by themselves, one after the
//! other; with new certificates and message keys.
//!
//! What must hold throughout is in `upgrade/load.rs`, and the order in `upgrade/fleet.rs`. The tests with the last
//! release need its binary, which `scripts/upgrade.sh` builds; so they are not among those that `cargo test` runs by
//! itself.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use stage0_backplane::nats::Connection;
use stage0_backplane::testing::{NatsServer, wait_for};
use stage0_contract::{PROTOCOL_VERSION, Role};
use stage0_tests::{Api, Process, Raw, Receiver, binary};

use fleet::{Fleet, Keystore};
use load::Load;

use crate::versions::{has_run, release};

mod fleet;
mod load;

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
const UPGRADE: [Role; 4] = [Role::Keystore, Role::Evaluator, Role::AuditExport, Role::Gateway];
const DOWNGRADE: [Role; 4] = [Role::Gateway, Role::AuditExport, Role::Evaluator, Role::Keystore];
/// `stack init` replaces a certificate of this age.
const OLD_CERTIFICATE: Duration = Duration::from_secs(400 * 24 * 3600);

/// The binary of the last release.
fn last_release() -> PathBuf {
    let named = std::env::var_os("STAGE0_LAST_RELEASE");
    named.expect("STAGE0_LAST_RELEASE names the last release's binary: run scripts/upgrade.sh").into()
}

async fn load(fleet: &Fleet, receiver: &Receiver) -> Load {
    let load = Load::start(&fleet.operator(), fleet.ca(), &fleet.urls, receiver).await;
    load.during("before");
    load
}

/// Every process, role by role, by this binary.
async fn roll(fleet: &mut Fleet, program: &Path, roles: [Role; 4], keystore: Keystore, load: &Load) {
    let name = if program == binary() { "this release" } else { "the last one" };
    program.clone_into(&mut fleet.deployment.program);
    for role in roles {
        load.during(&format!("{role} by {name}"));
        fleet.replace(role, keystore, load).await;
        let (_, said) = fleet.status();
        assert!(!said.contains("must not run side by side"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs the last release: `scripts/upgrade.sh` runs it"]
async fn an_upgrade_from_the_last_release_and_the_way_back_fail_no_check() {
    let (last, this) = (last_release(), binary());
    let receiver = Receiver::plain().await;
    let mut fleet = Fleet::start(&last, 3).await;
    let old = fleet.protocols().await;
    let load = load(&fleet, &receiver).await;
    load.a_round().await;

    // 2: the server's configuration and its streams, where the new release wants other ones.
    this.clone_into(&mut fleet.deployment.program);
    load.during("configuration");
    let (code, said) = fleet.deployment.admin("check");
    if code != Some(0) {
        eprintln!("the streams are upgraded: {said}");
        fleet.deployment.init_again().await;
        let (code, said) = fleet.deployment.admin("upgrade");
        assert_eq!(code, Some(0), "{said}");
    }
    // 3, and 4.
    roll(&mut fleet, &this, UPGRADE, Keystore::Restarted, &load).await;
    settled(&fleet, &load).await;
    let new = fleet.protocols().await;
    assert!(new.iter().all(|(_, protocol)| *protocol == u64::from(PROTOCOL_VERSION)), "{new:?}");

    roll(&mut fleet, &last, DOWNGRADE, Keystore::TakenOver, &load).await;
    settled(&fleet, &load).await;
    assert_eq!(fleet.protocols().await, old);
    roll(&mut fleet, &this, UPGRADE, Keystore::TakenOver, &load).await;
    settled(&fleet, &load).await;
    let came = load.end(&receiver).await;
    came.assert_undisturbed();
}

/// Every kind of traffic works, and `stage0 status` names no other version: the last process of it is gone.
async fn settled(fleet: &Fleet, load: &Load) {
    load.a_round().await;
    let mut said = String::new();
    wait_for("`stage0 status` to find nothing", WAIT_TIMEOUT, async || {
        let (code, text) = fleet.status();
        said = text;
        code == Some(0)
    })
    .await;
    assert!(said.contains("all is well"), "{said}");
}

/// What a release with a number refuses; one without a number counts as 0 and refuses nothing.
#[tokio::test]
#[ignore = "needs the last release: `scripts/upgrade.sh` runs it"]
async fn the_last_release_does_not_start_where_one_has_run_that_is_too_new_for_it() {
    let last = last_release();
    let start = |nats: &NatsServer| Process::start_of(&last, &["evaluator", "--nats", &nats.url()].map(str::to_owned));
    let nats = NatsServer::start().await;
    let first = start(&nats);
    first.wait_for_log("evaluator starts", "version");
    let connection = Connection::open(&nats.config("evaluator")).await.unwrap();
    let recorded = connection.newest_release(Role::Evaluator).await.unwrap();
    let own = recorded.as_ref().map_or(0, |release| release.protocol_version);
    assert!(own.abs_diff(PROTOCOL_VERSION) <= 1, "{recorded:?}: an upgrade from it has to stop in between");

    let nats = NatsServer::start().await;
    has_run(&nats, Role::Evaluator, &release(own + 2, "9.9.9")).await;
    let mut second = start(&nats);
    if recorded.is_none() {
        second.wait_for_log("evaluator starts", "version");
    } else {
        assert_eq!(second.ended().code(), Some(1), "{}", second.said());
        second.wait_for("the reason", |line| line.contains("must not run here: 9.9.9").then_some(()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rolling_restart_with_new_certificates_and_message_keys_under_load_fails_no_check() {
    let this = binary();
    let receiver = Receiver::plain().await;
    let mut fleet = Fleet::start(&this, 2).await;
    let load = load(&fleet, &receiver).await;

    load.during("certificates");
    let urls = fleet.urls.read().unwrap().clone();
    let mut before = Vec::new();
    for url in &urls {
        before.push(shown(url, &fleet).await);
    }
    let kept = Api::new(&urls[0], &fleet.ca(), None);
    kept.get("/healthz").await.expect(200);
    for (service, name) in [("nats", "server"), ("gateway", "server")].into_iter().chain(UPGRADE.map(client)) {
        let file = File::options().append(true).open(fleet.deployment.path(service).join(format!("{name}.pem")));
        file.unwrap().set_modified(SystemTime::now() - OLD_CERTIFICATE).unwrap();
    }
    fleet.deployment.init_again().await;
    for (url, before) in urls.iter().zip(before) {
        wait_for("the new certificate", WAIT_TIMEOUT, async || shown(url, &fleet).await != before).await;
    }
    kept.get("/healthz").await.expect(200);

    // Each process reads its new client certificate, and connects to a server that has a new one too.
    roll(&mut fleet, &this, UPGRADE, Keystore::Restarted, &load).await;

    let removed = fleet.deployment.file("gateway", "removed.keys");
    std::fs::copy(fleet.deployment.file("gateway", "message.keys"), &removed).unwrap();
    for step in 1..=3 {
        load.during(&format!("message keys, step {step}"));
        let keys = fleet.deployment.path("authority").join("message-keys");
        let rotate = ["nats-keys", "rotate", "--dir", keys.to_str().unwrap()].map(str::to_owned);
        let (code, said) = fleet.deployment.command(&rotate);
        assert!(code == Some(0) && said.contains(&format!("step {step} of 3")), "{said}");
        fleet.deployment.init_again().await;
        for process in fleet.processes() {
            wait_for("the new keys", WAIT_TIMEOUT, async || {
                process.said().matches("message keys were replaced").count() == step
            })
            .await;
        }
    }
    load.during("after the rotation");
    load.a_round().await;
    let operator = fleet.operator();
    let came = load.end(&receiver).await;
    came.assert_undisturbed();
    let said: Vec<_> = fleet.processes().map(Process::said).collect();
    assert!(!said.iter().any(|said| said.contains("is not believed")), "a message of ours was refused");

    // Who still has the old keys has no part in it.
    let old = fleet.deployment.arguments(&["gateway"], "gateway", &[("--message-keys", removed)]);
    let old = Process::start(&old);
    let address = old.wait_for_log("gateway starts", "address");
    let old_url = format!("https://localhost:{}", address.rsplit(':').next().unwrap());
    operator.at(&old_url).check(&Api::harmless()).await.assert_error(503, "unavailable");
    wait_for("that its messages are refused", WAIT_TIMEOUT, async || {
        fleet.processes().any(|process| process.said().contains("is not believed"))
    })
    .await;
}

/// The certificate that a new connection gets.
async fn shown(url: &str, fleet: &Fleet) -> Vec<u8> {
    Raw::connect(&url.replace("https://localhost", "127.0.0.1"), &fleet.ca()).await.certificate()
}

/// Where the client certificate of a role is.
fn client(role: Role) -> (&'static str, &'static str) {
    (role.as_str(), "nats")
}
