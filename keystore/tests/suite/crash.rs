//! Crashes: the keystore is killed with `kill -9` at random moments.

use std::time::Duration;

use crate::harness::Running;
use crate::witness::{Witness, Writer, put_aside, rounds, somewhere_below};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut witness = Witness::default();
    let mut confirmed = 0;
    for round in 0..rounds(5) {
        let mut writer = Writer::start(dir.path());
        witness.hear(&writer, 1 + somewhere_below(40), Duration::from_micros(u64::from(somewhere_below(5_000))));
        writer.child.kill().unwrap();
        witness.hear_the_rest(writer);
        let running = Running::start(dir.path()).await;
        confirmed = witness.confirm(&running).await;
        running.stop().await;
        println!("round {round}: {confirmed} acknowledged changes hold");
    }
    assert!(confirmed > 0);
    println!("put aside: {}", put_aside(dir.path()));
}
