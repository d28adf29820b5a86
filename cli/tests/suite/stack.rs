//! `stage0 stack open` may run at every start, whatever was deleted before.

use std::path::Path;

use serde_json::Value;

use crate::harness::{Dev, Ended, run};

const ENDPOINT: &str = "https://receiver:9443/hook";

fn open(dev: &Dev, dir: &Path) -> Ended {
    let url = dev.file()["url"].as_str().unwrap().to_owned();
    let text = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
    std::fs::create_dir_all(dir).unwrap();
    std::fs::copy(dev.data_dir.join("tls/ca.pem"), dir.join("ca.pem")).unwrap();
    let (operator, secret) = (text(dev.data_dir.join("operator.key")), text(dir.join("webhook.secret")));
    let dir = text(dir.to_owned());
    run(&[
        "stack",
        "open",
        "--url",
        &url,
        "--published",
        "0.0.0.0:8443",
        "--page",
        "8080",
        "--host",
        "stage0.example",
        "--endpoint",
        ENDPOINT,
        "--operator-key",
        &operator,
        "--dir",
        &dir,
        "--secret",
        &secret,
    ])
}

fn read(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name)).unwrap()
}

/// Ids of the account's endpoints.
fn endpoints(dir: &Path) -> Vec<String> {
    let listed = run(&["webhooks", "list", "--json", "--data-dir", dir.to_str().unwrap()]);
    assert_eq!(listed.code, 0, "{}", listed.err);
    let listed: Value = serde_json::from_str(&listed.out).unwrap();
    let items = listed.as_array().or_else(|| listed["items"].as_array()).unwrap();
    items.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn stack_open_keeps_what_exists_and_repairs_the_rest() {
    let data = tempfile::tempdir().unwrap();
    let dev = Dev::start(&data.path().join("dev"));
    let dir = data.path().join("client");
    let first = open(&dev, &dir);
    assert_eq!(first.code, 0, "{}", first.err);
    for part in ["is ready at https://stage0.example:8443", "http://stage0.example:8080", "stack key > stage0.key"] {
        assert!(first.out.contains(part), "{part}: {}", first.out);
    }
    let (key, secret, endpoint) = (read(&dir, "api.key"), read(&dir, "webhook.secret"), endpoints(&dir));
    assert!(secret.starts_with("whsec_") && endpoint.len() == 1);
    for never in [key.trim(), secret.trim()] {
        assert!(!first.out.contains(never) && !first.err.contains(never));
    }
    assert_eq!(run(&["stack", "key", "--dir", dir.to_str().unwrap()]).out, key);

    assert_eq!(open(&dev, &dir).code, 0);
    assert_eq!(
        (read(&dir, "api.key"), read(&dir, "webhook.secret"), endpoints(&dir)),
        (key.clone(), secret.clone(), endpoint.clone())
    );

    // The receiver's volume was deleted.
    std::fs::remove_file(dir.join("webhook.secret")).unwrap();
    assert_eq!(open(&dev, &dir).code, 0);
    assert_eq!(endpoints(&dir), endpoint, "a second endpoint would be signed with a secret that nobody has");
    assert_ne!(read(&dir, "webhook.secret"), secret);

    // The endpoint was deleted.
    let removed = run(&["webhooks", "delete", &endpoint[0], "--data-dir", dir.to_str().unwrap()]);
    assert_eq!(removed.code, 0, "{}", removed.err);
    assert_eq!(open(&dev, &dir).code, 0);
    let made = endpoints(&dir);
    assert!(made.len() == 1 && made != endpoint);

    // The clients' volume was deleted.
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(open(&dev, &dir).code, 0);
    assert_eq!(endpoints(&dir), made, "it is the same account");
    assert_ne!(read(&dir, "api.key"), key);
}

#[test]
fn stack_names_missing_files() {
    let dir = tempfile::tempdir().unwrap();
    let missing = run(&["stack", "ca", "--dir", dir.path().to_str().unwrap()]);
    assert!(missing.code == 1 && missing.err.contains("is the stack up?"), "{}", missing.err);
    let bad = run(&["stack", "init", "--dir", dir.path().to_str().unwrap(), "--host", "https://x"]);
    assert!(bad.code == 1 && bad.err.contains("`--host` must be a name or an address"), "{}", bad.err);
    let two = run(&["stack", "init", "--dir", dir.path().to_str().unwrap(), "--nats-nodes", "2"]);
    assert!(two.code == 64 && two.err.contains("must be 1, 3 or 5"), "{}", two.err);
}
