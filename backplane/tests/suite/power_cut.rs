//! The power fails: what was not synced is gone, what was acknowledged is not.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use stage0_backplane::embedded::Bus;
use stage0_backplane::testing::{Disk, NatsServer, SYNCED, run, wait_for};
use tempfile::TempDir;

use crate::PATIENT;
use crate::witness::{Witness, Writer, keep_writing, random_below, random_delay, rounds};
use crate::writing::recorder;

const IMAGE_BYTES: u64 = 64 << 20;

/// Shuts a mounted file system down at once without flushing its log, so that only synced data is left. A script,
/// because an ioctl needs `unsafe` in Rust, which this workspace denies.
const CUT_POWER: &str = "\
import fcntl, os, struct, sys
FS_IOC_SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), FS_IOC_SHUTDOWN, struct.pack('I', NO_LOG_FLUSH))";

/// A disk with an ext4 in a file, whose power can be cut.
struct DiskWithPlug {
    disk: Disk,
    image: PathBuf,
    _directory: TempDir,
}

impl DiskWithPlug {
    fn new() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        std::fs::File::create(&image).and_then(|file| file.set_len(IMAGE_BYTES)).unwrap();
        let disk = Disk::mounted(|at| {
            run("mkfs.ext4", &["-q", "-F", text(&image)])?;
            mount(&image, at)
        })?;
        Some(Self { disk, image, _directory: directory })
    }

    fn path(&self) -> &Path {
        self.disk.path()
    }

    /// Loses what was not synced, and everything written from now on.
    fn cut_power(&self) {
        run("python3", &["-c", CUT_POWER, text(self.path())]).unwrap();
    }

    /// Mounts what the cut left, from a copy: another process may still hold the file system that was shut down.
    fn restore_power(&self) {
        let copy = self.image.with_extension("copy");
        run("umount", &[text(self.path())]).unwrap();
        std::fs::copy(&self.image, &copy).unwrap();
        std::fs::rename(&copy, &self.image).unwrap();
        mount(&self.image, self.path()).unwrap();
    }
}

fn mount(image: &Path, at: &Path) -> Result<(), String> {
    run("mount", &["-o", "loop", text(image), text(at)])
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_loses_nothing_acknowledged() {
    let Some(disk) = DiskWithPlug::new() else { return };
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
    let Some(disk) = DiskWithPlug::new() else { return };
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
