//! `stage0 nats-keys` and the settings for message keys.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::harness::{Ended, run};

fn nats_keys(command: &str, dir: &Path, more: &[&str]) -> Ended {
    run(&[&["nats-keys", command, "--dir", dir.to_str().unwrap()], more].concat())
}

/// Refused before any connection is made.
fn keystore(keys: &Path, more: &[&str]) -> Ended {
    let data = keys.with_file_name("data");
    let own = ["keystore", "--nats", "nats://127.0.0.1:1", "--data-dir", data.to_str().unwrap()];
    run(&[&own[..], &["--message-keys", keys.to_str().unwrap()], more].concat())
}

#[test]
fn message_keys_are_created_once_and_rotated_in_three_steps() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("keys");
    let made = nats_keys("create", &dir, &[]);
    assert_eq!(made.code, 0, "{}", made.err);
    for role in ["gateway", "evaluator", "keystore", "audit-export"] {
        let path = dir.join(format!("{role}.keys"));
        assert!(made.out.contains(&format!("--message-keys {}", path.display())), "{}", made.out);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    let again = nats_keys("create", &dir, &[]);
    assert!(again.code == 1 && again.err.contains("nats-keys rotate"), "{}", again.err);
    for (step, shown) in [("1 of 3", "1, 2"), ("2 of 3", "1, 2"), ("3 of 3", "2"), ("1 of 3", "2, 3")] {
        let step_done = nats_keys("rotate", &dir, &[]);
        assert!(step_done.code == 0 && step_done.out.contains(step), "{}{}", step_done.out, step_done.err);
        assert!(nats_keys("show", &dir, &[]).out.ends_with(&format!("accepted     {shown}\n")));
    }
}

#[test]
fn nats_config_also_creates_message_keys() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("keys");
    let printed = run(&["nats-config", "--keys-dir", dir.to_str().unwrap()]);
    assert!(printed.code == 0 && printed.out.starts_with("# NATS for a deployment"), "{}", printed.err);
    assert!(nats_keys("show", &dir, &[]).out.contains("required     always"));
    let before = std::fs::read(dir.join("gateway.keys")).unwrap();
    assert_eq!(run(&["nats-config", "--keys-dir", dir.to_str().unwrap()]).out, printed.out);
    assert_eq!(std::fs::read(dir.join("gateway.keys")).unwrap(), before);
}

#[test]
fn nats_config_writes_a_server_of_a_cluster_only_where_all_of_it_is_said() {
    let alone = run(&["nats-config"]);
    assert!(alone.code == 0 && !alone.out.contains("cluster"), "{}", alone.err);
    let others = ["--route", "n2:6222", "--route", "n3:6222"];
    let one = run(&[&["nats-config", "--cluster", "c"][..], &others[..]].concat());
    assert!(one.code == 0 && one.out.contains("cluster {\n  name: c\n  listen: \"0.0.0.0:6222\""), "{}", one.err);
    let nameless = run(&[&["nats-config"][..], &others[..]].concat());
    assert_eq!((nameless.code, nameless.out.as_str()), (64, ""));
    assert!(nameless.err.contains("--route needs --cluster NAME"), "{}", nameless.err);
    let of_two = run(&["nats-config", "--cluster", "c", "--route", "n2:6222"]);
    assert!(of_two.code == 64 && of_two.err.contains("at least two of them"), "{}", of_two.err);
    let by_address = run(&["nats-config", "--cluster", "c", "--route", "10.0.0.2:6222"]);
    assert!(by_address.code == 64 && by_address.err.contains("--route"), "{}", by_address.err);
}

#[test]
fn an_unusable_message_key_file_is_a_mistake_in_the_settings() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("keys");
    assert_eq!(nats_keys("create", &dir, &[]).code, 0);
    let wrong = keystore(&dir.join("gateway.keys"), &[]);
    assert!(wrong.code == 64 && wrong.err.contains("holds the keys of `gateway`"), "{}", wrong.err);
    let own = dir.join("keystore.keys");
    let weaker = keystore(&own, &["--message-auth", "when-all-can"]);
    assert!(weaker.code == 64 && weaker.err.contains("always authenticated"), "{}", weaker.err);
    let unknown = keystore(&own, &["--message-auth", "off"]);
    assert!(unknown.code == 64 && unknown.err.contains("`required` or `when-all-can`"), "{}", unknown.err);
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o644)).unwrap();
    let open = keystore(&own, &[]);
    assert!(open.code == 64 && open.err.contains("chmod 600"), "{}", open.err);
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o600)).unwrap();
    let secret = std::fs::read_to_string(&own).unwrap();
    std::fs::write(&own, &secret[..secret.len() / 2]).unwrap();
    let damaged = keystore(&own, &[]);
    assert!(damaged.code == 64 && damaged.err.contains("nats-keys create"), "{}", damaged.err);
    let alone = run(&["keystore", "--nats", "nats://127.0.0.1:1", "--data-dir", "x", "--message-auth", "required"]);
    assert!(alone.code == 64 && alone.err.contains("is needed beside `message-auth`"), "{}", alone.err);
}
