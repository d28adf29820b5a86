//! Power cuts: a file system on a loop device is shut down without flushing its log, so everything that was not fsynced
//! is gone.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use stage0_contract::{ManageReply, Refusal, RemoveMember, Scope, StopScope};

use crate::harness::{Running, done};
use crate::stops::{create, of_key};
use crate::witness::{Witness, Writer, put_aside, rounds, somewhere_below};

/// An ext4 file system in a file, mounted; unmounted when dropped.
struct Disk {
    image: PathBuf,
    at: PathBuf,
    _dir: tempfile::TempDir,
}

impl Disk {
    fn new() -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (image, at) = (dir.path().join("image"), dir.path().join("disk"));
        std::fs::create_dir(&at).map_err(|error| error.to_string())?;
        std::fs::File::create(&image).and_then(|file| file.set_len(64 << 20)).map_err(|error| error.to_string())?;
        run("mkfs.ext4", &["-q", "-F", text(&image)])?;
        let disk = Self { image, at, _dir: dir };
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&self) -> Result<(), String> {
        run("mount", &["-o", "loop", text(&self.image), text(&self.at)])
    }

    fn cut_power(&self) -> Result<(), String> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/power_cut.py");
        run("python3", &[script, text(&self.at)])
    }

    /// Mounts what the cut left, from a copy, because another process may still hold the file system that was shut
    /// down.
    fn restore_power(&self) -> Result<(), String> {
        self.unmount()?;
        let copy = self.image.with_extension("copy");
        std::fs::copy(&self.image, &copy).map_err(|error| error.to_string())?;
        std::fs::rename(&copy, &self.image).map_err(|error| error.to_string())?;
        self.mount()
    }

    fn unmount(&self) -> Result<(), String> {
        run("umount", &[text(&self.at)])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.unmount());
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// `None` on a machine without loop devices, if the environment allows that.
fn disk() -> Option<Disk> {
    match Disk::new() {
        Ok(disk) => Some(disk),
        Err(why) => {
            eprintln!("NOT TESTED: a disk of its own needs root, loop devices and mkfs.ext4: {why}");
            let allowed = std::env::var("STAGE0_ALLOW_NO_POWERCUT").is_ok_and(|value| value == "1");
            assert!(allowed, "set STAGE0_ALLOW_NO_POWERCUT=1 to go without the power-cut tests: {why}");
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_power_fails() {
    let Some(disk) = disk() else { return };
    let data = disk.at.join("data");
    let mut witness = Witness::default();
    let mut confirmed = 0;
    for round in 0..rounds(3) {
        let mut writer = Writer::start(&data);
        witness.hear(&writer, 1 + somewhere_below(40), Duration::from_micros(u64::from(somewhere_below(5_000))));
        kill_process(Pid::from_child(&writer.child), Signal::STOP).unwrap();
        disk.cut_power().unwrap();
        writer.child.kill().unwrap();
        witness.hear_the_rest(writer);
        disk.restore_power().unwrap();
        let running = Running::start(&data).await;
        confirmed = witness.confirm(&running).await;
        running.stop().await;
        println!("round {round}: {confirmed} acknowledged changes hold");
    }
    assert!(confirmed > 0);
    println!("put aside: {}", put_aside(&data));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_fails_changes_and_loses_none_that_was_acknowledged() {
    let Some(disk) = disk() else { return };
    let data = disk.at.join("data");
    let running = Running::start(&data).await;
    let account = running.account("full").await.id;
    let mut kept = vec![running.key(&account, &[Scope::Check]).await.key];
    let (id, person) = running.member(&account, &[]).await;
    fill(&disk.at.join("filler"));
    let mut failed = 0;
    // A few changes may still fit into blocks that are allocated already.
    for _ in 0..2_000 {
        match running.ask(&running.create(&account, &[Scope::Check])).await {
            ManageReply::Done(made) => kept.push(made.key),
            // Refused before anything is written, while the reserve is untouched.
            ManageReply::Failed | ManageReply::Refused(Refusal::Conflict(_)) => {
                failed += 1;
                if failed == 2 {
                    break;
                }
            }
            ManageReply::Refused(refusal) => panic!("{refusal:?}"),
            ManageReply::Busy => panic!("nobody else asks"),
        }
    }
    assert_eq!(failed, 2, "the disk never ran full");
    for key in &kept {
        assert!(running.verify(key).await.is_some(), "{} is lost while the disk is full", key.id());
    }
    // What takes rights away has a reserve, unless one of the failed writes stopped all changes.
    let may_change = running.writable().await;
    println!("changes are still taken: {may_change}");
    if may_change {
        let stop = done(running.ask(&create(&running.operator, StopScope::All)).await);
        assert_eq!(of_key(&running, &kept[0]).await, [stop]);
        done(running.ask(&RemoveMember { caller: running.operator.clone(), id }).await);
    }
    std::fs::remove_file(disk.at.join("filler")).unwrap();
    if running.writable().await {
        kept.push(running.key(&account, &[Scope::Check]).await.key);
    }
    running.stop().await;
    let running = Running::start(&data).await;
    assert!(running.writable().await);
    assert_eq!(running.is_active(&person.key_id).await, !may_change);
    assert_eq!(of_key(&running, &kept[0]).await.len(), usize::from(may_change));
    for key in &kept {
        assert!(running.verify(key).await.is_some(), "{} is lost after the restart", key.id());
    }
    running.key(&account, &[Scope::Check]).await;
    running.stop().await;
}

/// Fills the file system.
fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    for block in [1 << 20, 4096] {
        while std::io::Write::write_all(&mut file, &vec![1; block]).is_ok() {}
    }
    drop(file.sync_all());
}
