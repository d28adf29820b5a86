//! The runbooks of docs/OPERATIONS.md are followed word for word, each on a machine of its own.
//!
//! The machine is set up by the commands of docs/install.md. Then the case is made for real, the runbook's commands are
//! run as they stand, in their order, and what its "How you know it worked" prints is what the document promises. What
//! the text asks a person for (carry a file, grow a disk, mend a receiver) the test does between the commands.

use stage0_tests::Machine;

use crate::docs_examples::{blocks, document};

/// The commands of one runbook, and which of them were run.
struct Runbook {
    blocks: Vec<String>,
    next: usize,
}

impl Runbook {
    fn open(heading: &str) -> Self {
        let text = document("OPERATIONS.md");
        let line = format!("\n### {heading}\n");
        let start = text.find(&line).unwrap_or_else(|| panic!("no runbook `{heading}`")) + line.len();
        let end = text[start..].find("\n##").map_or(text.len(), |at| start + at);
        let section = &text[start..end];
        for part in ["**When:**", "**Steps**", "**How you know it worked:**", "**If it did not:**"] {
            assert!(heading.starts_with("Before") || section.contains(part), "`{heading}` has no {part}");
        }
        // Blocks of a step are indented as the step is.
        let flat: Vec<&str> = section.lines().map(|line| line.strip_prefix("   ").unwrap_or(line)).collect();
        Self { blocks: blocks(&flat.join("\n"), "sh"), next: 0 }
    }

    /// Runs the next commands of it, so many blocks.
    fn follow(&mut self, blocks: usize, machine: &Machine) -> String {
        let commands = self.blocks[self.next..self.next + blocks].concat();
        self.next += blocks;
        machine.run(&commands)
    }

    /// Leaves out a block that this case does not need.
    fn leave_out(&mut self) {
        self.next += 1;
    }

    /// Runs all that is left.
    fn finish(mut self, machine: &Machine) -> String {
        let left = self.blocks.len() - self.next;
        assert!(left > 0, "nothing is left to see that it worked");
        self.follow(left, machine)
    }
}

fn install_steps() -> Vec<String> {
    let steps = blocks(&document("install.md"), "sh");
    let own = steps.iter().position(|block| block.starts_with("cd /etc/stage0/gateway")).unwrap();
    steps[..own].to_vec()
}

/// A machine as docs/install.md leaves it, and what an operator pastes before each runbook.
fn installed() -> Machine {
    installed_on(Machine::new())
}

fn installed_on(machine: Machine) -> Machine {
    has(&machine.run(&install_steps().concat()), &["all is well"]);
    ready_for_runbooks(&machine);
    machine
}

fn ready_for_runbooks(machine: &Machine) {
    Runbook::open("Before each runbook").finish(machine);
}

#[track_caller]
fn has(said: &str, expected: &[&str]) {
    for text in expected {
        assert!(said.contains(text), "`{text}` in:\n{said}");
    }
}

const ALLOWED: &str = "ALLOW (GO)";

/// The administrator's command that any login and certificate of his can run.
fn admin(folder: &str) -> String {
    format!(
        "stage0 nats-admin check --nats tls://127.0.0.1:4222 --nats-jetstream-api s0.api --nats-user admin \
         --nats-password-file {folder}/nats.password --nats-ca /etc/stage0/admin/nats-ca.pem \
         --nats-cert {folder}/nats.pem --nats-key {folder}/nats.key"
    )
}

#[test]
fn the_message_keys_are_rotated() {
    let machine = installed();
    let said = Runbook::open("Rotate the message keys").finish(&machine);
    has(&said, &["step 3 of 3", "\nused         2\n", "\naccepted     2\n", ALLOWED]);
    // Each role goes on with the new ones alone.
    machine.run("for unit in $roles; do journalctl -u $unit | grep 'keys were replaced' | grep -q '\\[2\\]'; done");
}

#[test]
fn a_stolen_login_of_nats_is_worth_nothing_after_the_rotation() {
    let machine = installed();
    machine.run("cp -r /etc/stage0/admin stolen");
    machine.run(&admin("stolen"));
    let said = Runbook::open("Rotate the logins of NATS").finish(&machine);
    has(&said, &["\"ready\":true", ALLOWED, "all is well"]);
    has(&machine.fails(&admin("stolen")), &["refuses"]);
    machine.run(&admin("/etc/stage0/admin"));
}

#[test]
fn the_certificate_of_the_gateways_is_rotated_without_a_restart_and_keeps_its_names() {
    let machine = installed();
    machine.run("cp /etc/stage0/gateway/server.pem old.pem; started=$(cat /run/units/stage0-gateway@1.pid)");
    let said = Runbook::open("Rotate the certificate of the gateways").finish(&machine);
    has(&said, &["DNS:stage0.example", ALLOWED]);
    machine.run("! cmp -s old.pem /etc/stage0/gateway/server.pem");
    machine.run("[ \"$started\" = \"$(cat /run/units/stage0-gateway@1.pid)\" ]");
}

#[test]
fn certificates_of_the_old_authority_of_nats_are_refused_after_the_rotation() {
    let machine = installed();
    machine.run("cp -r /etc/stage0/admin stolen");
    machine.run(&admin("stolen"));
    let said = Runbook::open("Rotate the certificates of NATS and their authority").finish(&machine);
    has(&said, &["\n1\n", "\"ready\":true", ALLOWED]);
    machine.fails(&admin("stolen"));
    machine.run(&admin("/etc/stage0/admin"));
}

#[test]
fn the_operators_key_is_rotated_and_the_old_one_is_refused() {
    let machine = installed();
    machine.run("cp $STAGE0_KEY_FILE old.key && stage0 accounts list --key-file old.key");
    let said = Runbook::open("Rotate the operator's key, and keys of accounts").finish(&machine);
    has(&said, &["works until", "all is well"]);
    has(&machine.fails("stage0 accounts list --key-file old.key"), &["401"]);
    machine.run("stage0 accounts list");
}

/// A receiver on the machine, and an endpoint of the account that leads to it.
const WITH_RECEIVER: &str = r#"
for role in gateway audit-export; do
  cat >> /etc/stage0/$role/stage0.toml <<'END'
dangerous-allow-private-webhooks = true
END
done
echo 'webhook-ca = "/etc/stage0/audit-export/ca.pem"' >> /etc/stage0/audit-export/stage0.toml
systemctl restart stage0-audit-export@1 stage0-gateway@1
ready
receive() {
  setsid stage0 receiver --tls-cert /etc/stage0/receiver/server.pem --tls-key /etc/stage0/receiver/server.key \
    --secret-file hook.secret > receiver.log 2>&1 &
  receiver=$!
}
account=$(stage0 decisions list --key-file ci.key --json | grep -o 'acc_[a-z0-9]*' | head -n 1)
stage0 webhooks create --endpoint https://localhost:9443/hook --account "$account" --out hook.secret
stage0 keys create --account "$account" --name owner --scope webhooks:manage --out owner.key
hooks() { stage0 webhooks "$@" --key-file owner.key; }
endpoint=$(hooks list --json | grep -o 'we_[a-z0-9]*')
"#;

#[test]
fn the_secret_of_a_webhook_is_rotated_and_the_receiver_knows_the_new_one_alone() {
    let machine = installed();
    machine.run(WITH_RECEIVER);
    machine.run("receive; until hooks test $endpoint; do sleep 0.2; done; unset endpoint");
    let mut book = Runbook::open("Rotate the secret of a webhook");
    book.follow(2, &machine);
    // Step 3.
    machine.run("! cmp -s hook.secret hook-new.secret; mv hook-new.secret hook.secret");
    has(&book.finish(&machine), &["delivered  yes"]);
}

#[test]
fn the_signing_key_is_rotated_and_both_public_keys_are_listed() {
    let machine = installed();
    let said = Runbook::open("Rotate the signing key").finish(&machine);
    assert_eq!(said.matches("\"ed25519\"").count(), 2, "{said}");
    has(&said, &["OK: nothing is missing"]);
    machine.run("[ $(grep -c ed25519 signing-keys-before.json) = 1 ]");
}

/// After the backup a key is revoked and one is made; then the machine's directory is gone.
const LOST_KEYSTORE: &str = r#"
ready; stage0 keys revoke $leaked
later=$(stage0 keys create --account $account --scope check --name later --out later.key)
kill -KILL $(cat /run/units/stage0-keystore.pid); rm -r /var/lib/stage0-keystore
"#;

fn with_lost_keystore() -> (Machine, Runbook) {
    let machine = installed();
    machine.run(
        "account=$(stage0 decisions list --key-file ci.key --json | grep -o 'acc_[a-z0-9]*' | head -n 1)\n\
         leaked=$(stage0 keys create --account $account --scope check --name leaked --out leaked.key)",
    );
    Runbook::open("Back up").follow(1, &machine);
    machine.run(LOST_KEYSTORE);
    let mut book = Runbook::open("Restore the keystore");
    book.follow(2, &machine);
    (machine, book)
}

fn is_refused(key: &str, machine: &Machine) {
    has(&machine.fails(&format!("echo '{{\"goal\": \"read\"}}' | stage0 check --key-file {key} -")), &["401"]);
}

#[test]
fn a_lost_keystore_has_everything_again_that_was_changed_since_the_backup() {
    let (machine, mut book) = with_lost_keystore();
    has(&book.follow(1, &machine), &["keystore serves"]);
    // Nothing has to be accepted.
    book.leave_out();
    has(&book.finish(&machine), &["\"ready\":true", ALLOWED]);
    is_refused("leaked.key", &machine);
    has(&machine.run("cp later.key ci.key; probe"), &[ALLOWED]);
}

#[test]
fn a_lost_keystore_is_restored_without_its_secrets_key_and_no_revoked_key_comes_back() {
    let (machine, mut book) = with_lost_keystore();
    machine.run("mv /var/lib/stage0-keystore/secrets.key .");
    has(&book.follow(1, &machine), &["older than what was acknowledged", "not taken over: `secrets.key` is missing"]);
    machine.run("mv secrets.key /var/lib/stage0-keystore/");
    let said = book.finish(&machine);
    has(&said, &["1 keys were made after the backup", "\"ready\":true", ALLOWED]);
    has(&machine.run("grep \"$leaked\\|$later\" restore.log"), &["revoked"]);
    for key in ["leaked.key", "later.key"] {
        is_refused(key, &machine);
    }
}

/// The commands of docs/install.md for the first of three machines, as docs/cluster.md says what is different.
fn of_cluster(steps: &[String]) -> String {
    steps
        .concat()
        .replace("stack init --dir /etc/stage0", "stack init --dir /etc/stage0 --nats-nodes 3")
        .replace("--listen 127.0.0.1:4222 --monitor 127.0.0.1:8222", &node(1))
        .replace("tls://127.0.0.1:4222", "tls://nats:4222,tls://nats-2:4222,tls://nats-3:4222")
        .replace("http://127.0.0.1:8222/healthz", "http://10.0.0.1:8222/healthz")
        .replace("\"http://127.0.0.1:8222\"", "\"http://10.0.0.1:8222,http://10.0.0.2:8222,http://10.0.0.3:8222\"")
        .replace("nats-admin init", "nats-admin init --log-replicas 3")
}

/// The options of `nats-config` for this server of three.
fn node(number: usize) -> String {
    let names = ["nats", "nats-2", "nats-3"];
    let routes = names.iter().filter(|name| **name != names[number - 1]).map(|name| format!("--route {name}:6222 "));
    let routes: String = routes.collect();
    let address = format!("10.0.0.{number}");
    format!(
        "--name {} --cluster stage0 {routes}--listen {address}:4222 --cluster-listen {address}:6222 \
         --monitor {address}:8222",
        names[number - 1]
    )
}

const NAMES: &str = "printf '10.0.0.1 nats\\n10.0.0.2 nats-2\\n10.0.0.3 nats-3\\n' >> /etc/hosts";

#[test]
fn a_lost_server_of_three_is_replaced_and_the_next_one_may_be_lost() {
    let machines = [Machine::new(), Machine::new(), Machine::new()];
    Machine::connect(&machines);
    let [first, lost, third] = machines;
    for machine in [&first, &lost, &third] {
        machine.run(NAMES);
    }
    let steps = install_steps();
    let start = steps.iter().position(|block| block.starts_with("systemctl daemon-reload")).unwrap();
    first.run(&of_cluster(&steps[..start]));
    let new_server = Runbook::open("Replace a lost NATS server").blocks[1].clone();
    for (machine, number) in [(&lost, 2), (&third, 3)] {
        let name = format!("nats-{number}");
        first.run(&format!("tar -C /etc/stage0/{name} -cf {name}.tar ."));
        machine.carry(&first, &format!("{name}.tar"));
        let (before, rest) = new_server.split_once("stage0 nats-config").unwrap();
        let (_, behind) = rest.split_once("--tls-dir").unwrap();
        let commands = format!("{before}stage0 nats-config {} --tls-dir{behind}", node(number));
        machine.run(&commands.replace("nats-2.tar", &format!("{name}.tar")));
    }
    // An election takes its time.
    first.run("systemctl daemon-reload; systemctl enable --now stage0-nats");
    first.run("until curl --silent http://10.0.0.1:8222/healthz | grep '\"ok\"'; do sleep 0.5; done");
    has(&first.run(&of_cluster(&steps[start..])), &["all is well"]);
    ready_for_runbooks(&first);

    drop(lost);
    first.run("until probe; do sleep 0.2; done");
    let new = Machine::new();
    first.plug_in(&new, 2);
    let mut book = Runbook::open("Replace a lost NATS server");
    book.follow(1, &first);
    new.run(NAMES);
    new.carry(&first, "nats-2.tar");
    book.follow(1, &new);
    has(&book.finish(&new), &["\"ok\""]);

    drop(third);
    let said = first.run("until probe && stage0 decisions verify --key-file ci.key; do sleep 0.5; done");
    has(&said, &["OK: nothing is missing"]);
}

/// Mounts a small disk where the role's directory will be.
fn with_small_disk(directory: &str, megabytes: u32) -> Machine {
    let machine = Machine::new();
    machine.run(&format!("mkdir {directory} && mount -t tmpfs -o size={megabytes}M tmpfs {directory}"));
    installed_on(machine)
}

/// Fills the disk to its end.
fn fill(directory: &str) -> String {
    format!(
        "! dd if=/dev/zero of={directory}/of-others bs=4k 2> /dev/null\n\
         [ $(df --output=avail {directory} | tail -n 1) = 0 ]"
    )
}

#[test]
fn nats_goes_on_after_its_disk_was_full_and_nothing_recorded_is_lost() {
    let directory = "/var/lib/stage0-nats";
    let machine = with_small_disk(directory, 48);
    machine.run(&fill(directory));
    machine.run("export STAGE0_TIMEOUT=3; while probe; do :; done; export STAGE0_TIMEOUT=30");
    has(&machine.run("journalctl -u stage0-nats"), &["no space left on device"]);
    let mut book = Runbook::open("Make room on the disk of NATS");
    has(&book.follow(1, &machine), &["100%"]);
    machine.run(&format!("mount -o remount,size=128M {directory}"));
    has(&book.finish(&machine), &["\"ok\"", "\"ready\":true", ALLOWED, "OK: nothing is missing"]);
}

#[test]
fn the_keystore_makes_keys_again_after_its_disk_was_full() {
    let directory = "/var/lib/stage0-keystore";
    let machine = with_small_disk(directory, 24);
    machine.run(&fill(directory));
    let make = "stage0 keys create --name full --scope check --out full.key --account \
        $(stage0 accounts list --json | grep -o 'acc_[a-z0-9]*' | head -n 1)";
    has(&machine.fails(make), &["409"]);
    has(&machine.run("probe"), &[ALLOWED]);
    let mut book = Runbook::open("Make room on the disk of the keystore");
    has(&book.follow(1, &machine), &["100%"]);
    machine.run(&format!("mount -o remount,size=64M {directory}"));
    has(&book.finish(&machine), &["\"ready\":true"]);
}

/// A pack that passes its cases and denies what the account's agents do; before it, one that does not.
const BAD_PACK: &str = r#"
account=$(stage0 decisions list --key-file ci.key --json | grep -o 'acc_[a-z0-9]*' | head -n 1)
stage0 policy new packs/acme
stage0 policy publish packs/acme --account "$account"
stage0 policy activate acme@0.1.0 --account "$account" --wait
sed -i 's/^version = .*/version = "0.2.0"/' packs/acme/pack.toml
sed -i 's/context.tools.contains("offer_discount")/& || context.tools.contains("reader")/' packs/acme/rules.cedar
stage0 policy publish packs/acme --account "$account"
stage0 policy activate acme@0.2.0 --account "$account" --wait --accept-flips 1 --reason "it was urgent"
unset account
"#;

#[test]
fn a_bad_pack_is_found_and_taken_back() {
    let machine = installed();
    machine.run(BAD_PACK);
    has(&machine.fails("probe"), &["DENY"]);
    let mut book = Runbook::open("Take back a bad policy pack");
    has(&book.follow(1, &machine), &["DISCOUNT_TOO_HIGH", "acme@0.2.0"]);
    has(&book.finish(&machine), &["acme@0.1.0", ALLOWED]);
}

#[test]
fn what_a_receiver_missed_is_delivered_when_it_is_back() {
    let machine = installed();
    machine.run(WITH_RECEIVER);
    machine.run("probe; probe");
    let mut book = Runbook::open("Deliver to a receiver that was down");
    // Nothing listens: the first attempts fail.
    machine.run(
        "until hooks deliveries $endpoint | grep waiting; do sleep 0.2; done\n\
         hooks disable $endpoint; probe; unset endpoint",
    );
    has(&book.follow(1, &machine), &["disabled", "waiting"]);
    machine.run("receive; until grep 'receiver starts' receiver.log; do sleep 0.1; done");
    let said = book.finish(&machine);
    has(&said, &["delivered  yes", "delivered", "enabled"]);
    machine.run("until [ $(grep -c ALLOW receiver.log) -ge 3 ]; do sleep 0.2; done");
}

#[test]
fn a_backup_can_be_read_and_proves_itself() {
    let machine = installed();
    let said = Runbook::open("Back up").finish(&machine);
    let readable = ["keystore.tar can be read", "nats.tar can be read", "settings.tar can be read"];
    has(&said, &[&readable[..], &["OK: nothing is missing", "\"ready\":true"]].concat());
    has(&machine.run("probe"), &[ALLOWED]);
    let listed = machine.run("tar -tf keystore.tar; tar -tf nats.tar; tar -tf settings.tar");
    has(&listed, &["stage0-keystore/journal", "streams/S0_LOG", "stage0/gateway/message.keys"]);
}

#[test]
fn a_deployment_moves_to_another_machine_with_its_keys_and_decisions() {
    let (old, new) = (installed(), Machine::new());
    let mut book = Runbook::open("Move to another machine");
    book.follow(1, &old);
    for file in ["moved.tar", "ci.key"] {
        new.carry(&old, file);
    }
    // Users have other ids there.
    new.run("useradd --system --no-create-home somebody");
    ready_for_runbooks(&new);
    let said = book.finish(&new);
    has(&said, &["all is well", ALLOWED, "records      2", "OK: nothing is missing"]);
}

#[test]
fn an_upgrade_restarts_every_role_with_the_new_binary() {
    let machine = installed();
    // The new release is the same program behind a script that leaves a trace of each role that it starts.
    machine.run(
        "mkdir -m 1777 /run/started\n\
         printf '%s\\n' '#!/bin/sh' ': > /run/started/$1' 'exec /run/programs/stage0 \"$@\"' > stage0",
    );
    let said = Runbook::open("Upgrade").finish(&machine);
    has(&said, &["\"ready\":true", "all is well", ALLOWED]);
    machine.run("for role in keystore evaluator audit-export gateway; do [ -f /run/started/$role ]; done");
    machine.run("cmp stage0-before /run/programs/stage0");
}
