//! The error texts of a role that does not start: each cause once, and what to type.

use std::net::TcpListener;

use crate::harness::{Dev, Ended, ended, stage0};

fn assert_readable(failed: &Ended, parts: &[&str]) {
    assert_eq!(failed.code, 1, "{}", failed.err);
    for part in parts {
        assert!(failed.err.contains(part), "{part}: {}", failed.err);
    }
    assert!(!failed.err.contains(r"\n"), "no escaped line breaks: {}", failed.err);
}

#[test]
fn an_address_or_directory_in_use_is_reported_with_the_flag() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let in_use = ended(stage0(&["dev", "--listen", &address, "--data-dir"]).arg(dir.path().join("a")));
    assert_readable(&in_use, &["\nerror: cannot listen on 127.0.0.1:", "--listen"]);

    let dev = Dev::start(&dir.path().join("b"));
    let locked = ended(stage0(&["dev", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&dev.data_dir));
    assert_readable(&locked, &["error: the decision log `", "is in use by another process", "--data-dir"]);
}

#[test]
fn a_broken_pack_is_a_list_of_lines_even_with_a_json_log() {
    let dir = tempfile::tempdir().unwrap();
    let pack = dir.path().join("packs/broken");
    std::fs::create_dir_all(&pack).unwrap();
    std::fs::write(pack.join("pack.toml"), "name = 3").unwrap();
    for format in ["text", "json"] {
        let mut command = stage0(&["dev", "--listen", "127.0.0.1:0", "--log-format", format]);
        let failed = ended(command.arg("--policies").arg(dir.path().join("packs")).arg("--data-dir").arg(dir.path()));
        assert_readable(&failed, &["\n  pack.toml"]);
        let logged = failed.err.lines().filter(|line| line.contains("\"role failed\"")).count();
        assert_eq!(logged, usize::from(format == "json"), "programs get one event: {}", failed.err);
    }
}
