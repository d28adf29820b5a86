//! The power fails: what was not synced is gone, what was acknowledged is not.

use std::cell::RefCell;

use rustix::process::{Pid, Signal, kill_process};
use stage0_backplane::embedded::Bus;
use stage0_backplane::testing::{Disk, NatsServer, SYNCED, wait_for};

use crate::PATIENT;
use crate::witness::{Witness, Writer, keep_writing, random_below, random_delay, rounds};
use crate::writing::recorder;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_loses_nothing_acknowledged() {
    let Some(disk) = Disk::with_a_plug() else { return };
    let data = disk.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::File::open(disk.path()).and_then(|directory| directory.sync_all()).unwrap();
    let mut witness = Witness::default();
    for round in 0..rounds(3) {
        let mut writer = Writer::start(&data);
        witness.read_until(&writer, 1 + random_below(200), random_delay());
        kill_process(Pid::from_child(&writer.child), Signal::STOP).unwrap();
        disk.cut_power();
        writer.child.kill().unwrap();
        witness.read_rest(writer);
        disk.restore_power();
        let backplane = Bus::open(&data).unwrap().connect();
        witness.confirm(&backplane).await;
        witness.append_the_last_again(&backplane).await;
        let confirmed = witness.confirm(&backplane).await;
        println!("round {round}: {confirmed} acknowledged appends hold");
    }
}

#[tokio::test]
async fn a_server_that_syncs_loses_nothing_acknowledged() {
    let Some(disk) = Disk::with_a_plug() else { return };
    let Some(mut nats) = NatsServer::start_in(&disk.path().join("nats"), SYNCED).await else {
        eprintln!("NOT TESTED: a container does not see this machine's disks");
        return;
    };
    let witness = RefCell::new(Witness::default());
    for round in 0..rounds(3) {
        let backplane = recorder(&nats).await.backplane();
        let enough = witness.borrow().acknowledged() + 1 + random_below(400) as usize;
        tokio::select! {
            () = keep_writing(&backplane, |line| witness.borrow_mut().note(line)) => {}
            () = wait_for("acknowledgements", PATIENT, async || witness.borrow().acknowledged() > enough) => {
                nats.freeze();
            }
        }
        disk.cut_power();
        nats.kill();
        disk.restore_power();
        nats.restart().await;
        let (backplane, heard) = (recorder(&nats).await.backplane(), witness.take());
        heard.confirm(&backplane).await;
        heard.append_the_last_again(&backplane).await;
        let confirmed = heard.confirm(&backplane).await;
        witness.replace(heard);
        println!("round {round}: {confirmed} acknowledged appends hold");
    }
    nats.kill();
}
