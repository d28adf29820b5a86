//! The commands of docs/install.md and docs/clients.md do what the documents say, word for word.
//!
//! Blocks marked `sh` are run as they stand, in one shell and in their order. Replaced are the places that only root
//! may write to, the ports, and what makes users: the processes then run as the user who runs the test. `systemctl` is
//! a function that starts the `ExecStart` of the unit files that the document installed.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use stage0_tests::{Stack, binary};

use crate::docs_examples::{blocks, document};

/// The server that the other tests use.
fn nats_server() -> PathBuf {
    match std::env::var_os("STAGE0_TEST_NATS_SERVER") {
        Some(named) => named.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/nats-server"),
    }
}

/// Runs a script as a person would: without this machine's variables for our product or for certificates.
pub(crate) fn run(directory: &Path, path: &Path, script: &str) -> String {
    let mut command = Command::new("timeout");
    command.args(["600", "bash", "-c", script]).current_dir(directory);
    let trust = ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"];
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("STAGE0_") || trust.contains(&name.as_str()))
    {
        command.env_remove(name);
    }
    // More than the default: a machine that runs all tests is busy.
    command.env("STAGE0_REQUEST_BUDGET_MS", "20000");
    command.env("PATH", format!("{}:{}", path.display(), std::env::var("PATH").unwrap()));
    let output = command.output().expect("bash and timeout");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {said}\n{script}", output.status);
    said
}

/// A directory for the `PATH` with the programs that the documents call.
pub(crate) fn programs(directory: &Path) -> PathBuf {
    let bin = directory.join("bin");
    fs::create_dir_all(&bin).unwrap();
    for (name, real) in [("stage0", binary()), ("nats-server", nats_server())] {
        let real = real.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", real.display()));
        std::os::unix::fs::symlink(real, bin.join(name)).unwrap();
    }
    bin
}

/// Free ports below the ephemeral range, so that no other test is assigned one of them before the script uses it.
pub(crate) fn free_ports() -> impl Iterator<Item = u16> {
    let first = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap();
    (first..32_000).filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
}

/// What stands in for what only root may do.
const STANDS_IN: &str = r#"
set -e -o pipefail
started=
trap 'kill $started; wait' EXIT
useradd() { :; }
chown() { :; }
systemctl() {
  [ "$1" = enable ] || return 0
  shift 2
  for unit in "$@"; do
    role=${unit#stage0-}
    role=${role%@*}
    file=UNITS/$unit.service
    [ -f "$file" ] || file=UNITS/stage0-$role@.service
    mkdir -p -m 0700 "STATE/stage0-$role"
    # The unit's file has these paths as they are; the brackets keep them from being replaced here.
    command=$(sed -n 's|^ExecStart=||;T;s|/usr/local/bi[n]/|PROGRAMS/|;s|/etc/stage[0]|SETTINGS|;p' "$file")
    $command > "$role.log" 2>&1 &
    started="$started $!"
  done
}
"#;

/// What the document promises at its end, and that the gateway took the other certificate.
const AND_THEN: &str = r#"
for _ in $(seq 100); do grep -q 'certificate reloaded' "$OLDPWD/gateway.log" && break; sleep 0.1; done
cd "$OLDPWD"
curl --silent --show-error --fail --retry 5 --retry-connrefused --cacert corp-ca.pem \
  --resolve stage0.example:8443:127.0.0.1 https://stage0.example:8443/readyz
"#;

#[test]
fn the_walk_through_of_the_services_ends_with_a_checked_decision() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    let bin = programs(directory.path());
    for made in ["units", "state"] {
        fs::create_dir(at(made)).unwrap();
    }
    let authority = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=corp \
        -keyout corp-ca.key -out corp-ca.pem 2>&1\n";
    let steps = blocks(&document("install.md"), "sh");
    assert!(steps.len() >= 10, "{} blocks", steps.len());
    let mut script = [STANDS_IN, authority, &steps.concat(), AND_THEN].concat();
    for (port, free) in ["4222", "8222", "8443"].iter().zip(free_ports()) {
        script = script.replace(port, &free.to_string());
    }
    for (theirs, ours) in [
        ("UNITS", at("units")),
        ("STATE", at("state")),
        ("/etc/systemd/system", at("units")),
        ("/usr/local/bin", bin.display().to_string()),
        ("/var/lib", at("state")),
        ("/etc/stage0", at("etc")),
        ("PROGRAMS", bin.display().to_string()),
        ("SETTINGS", at("etc")),
        ("deploy/systemd", concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/systemd").to_owned()),
    ] {
        script = script.replace(theirs, &ours);
    }
    let said = run(directory.path(), &bin, &script);
    for expected in ["S0_LOG: made", "\"ready\":true", "ALLOW (GO)", "OK: nothing is missing", "all is well"] {
        assert!(said.contains(expected), "`{expected}` in:\n{said}");
    }
}

#[tokio::test]
async fn the_commands_for_clients_work_against_a_dev_server() {
    let stack = Stack::build().dev().await;
    let directory = tempfile::tempdir().unwrap();
    let bin = programs(directory.path());
    let text = document("clients.md");
    std::os::unix::fs::symlink(stack.data(), directory.path().join(".stage0")).unwrap();
    let mut written = 0;
    for block in blocks(&text, "python").iter().chain(&blocks(&text, "js")) {
        let name = block.lines().next().unwrap().trim_start_matches(['#', '/', ' ']);
        fs::write(directory.path().join(name), block).unwrap();
        written += 1;
    }
    assert_eq!(written, 4, "programs");
    // Python and curl are there wherever the tests run; the packages of the other three may not be.
    let steps: Vec<_> = blocks(&text, "sh").into_iter().filter(|block| !block.contains("ask_requests.py")).collect();
    assert_eq!(steps.len(), 6, "{steps:#?}");
    let steps = steps.join("echo\n").replace("https://localhost:8443", &stack.urls[0]);
    let steps = steps.replace("/etc/ssl/certs/ca-certificates.crt ca.pem", ".stage0/tls/ca.pem");
    let said = run(directory.path(), &bin, &format!("set -e\n{steps}"));
    assert!(said.contains("200 ALLOW"), "{said}");
    assert!(said.contains("ALLOW (GO)"), "{said}");
    assert_eq!(said.matches("\"verdict\":\"ALLOW\"").count(), 2, "{said}");
}

/// The vector of Standard Webhooks, as the document has it; what differs in one place is refused.
#[test]
fn the_receivers_code_of_the_webhook_document_verifies_the_vector() {
    let text = document("webhooks.md");
    let of_vector = |name: &str| {
        // The vector's table stands behind the one of the headers, which has rows of the same names.
        let row = text.lines().rfind(|line| line.starts_with(&format!("| {name} |"))).unwrap();
        row.split('`').rev().nth(1).unwrap().to_owned()
    };
    let code = blocks(&text, "python").into_iter().find(|block| block.contains("def verified(")).unwrap();
    let ask = r#"
import sys
secret, wid, stamp, body, signature = sys.argv[1:]
def given(**other):
    headers = {"webhook-id": wid, "webhook-timestamp": stamp, "webhook-signature": signature, **other}
    return verified([secret], headers, body.encode(), now=int(stamp))
assert given()
assert given(**{"webhook-signature": "v1,AAAA " + signature})
assert not given(**{"webhook-id": wid + "x"})
assert not given(**{"webhook-signature": "v1,AAAA"})
assert not verified([secret], {"webhook-id": wid, "webhook-timestamp": stamp, "webhook-signature": signature}, b"{}")
print("ok")
"#;
    let names = ["secret", "`webhook-id`", "`webhook-timestamp`", "body", "signature"];
    let output = Command::new("python3")
        .args(["-c", &format!("{code}{ask}")])
        .args(names.map(of_vector))
        .output()
        .expect("python3, which scripts/test.sh asks for");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
