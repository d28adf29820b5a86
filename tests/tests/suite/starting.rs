//! Roles on NATS with everything that `stage0 stack init` makes: TLS both ways, passwords in files, an account for
//! each. And what they say when one of these is wrong: one clear line, and an exit code that is not 0.

use std::path::{Path, PathBuf};

use stage0_backplane::testing::NatsServer;
use stage0_tests::Process;

/// The files of one stack, and the server that is configured by them.
pub(crate) struct Deployment {
    dir: tempfile::TempDir,
    pub(crate) nats: NatsServer,
    /// What commands and processes that are started from now on run.
    pub(crate) program: PathBuf,
}

impl Deployment {
    async fn start() -> Self {
        Self::with_room("20GB").await
    }

    /// As `start`, with so much room for the streams.
    pub(crate) async fn with_room(max_file: &str) -> Self {
        let deployment = Self::without_streams(max_file).await;
        let (code, said) = deployment.admin("init");
        assert_eq!(code, Some(0), "{said}");
        deployment
    }

    /// Before the administrator has made the streams.
    pub(crate) async fn without_streams(max_file: &str) -> Self {
        Self::made_by(&stage0_tests::binary(), max_file).await
    }

    /// As above, all of it by this binary.
    pub(crate) async fn made_by(program: &Path, max_file: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        init(program, dir.path());
        let settings = settings(&dir.path().join("nats")).replace("20GB", max_file);
        let nats = NatsServer::start_with(&settings).await;
        Self { dir, nats, program: program.to_owned() }
    }

    /// `stage0 stack init` again, and the server reads its configuration again.
    pub(crate) async fn init_again(&mut self) {
        init(&self.program, self.dir.path());
        self.nats.reload_with(&settings(&self.dir.path().join("nats"))).await;
    }

    /// `stage0 …`: its exit code, and what it said.
    pub(crate) fn command(&self, arguments: &[String]) -> (Option<i32>, String) {
        let mut command = Process::start_of(&self.program, arguments);
        let code = command.ended().code();
        (code, command.said())
    }

    /// `stage0 nats-admin …`: its exit code, and what it said.
    pub(crate) fn admin(&self, command: &str) -> (Option<i32>, String) {
        self.command(&self.arguments(&["nats-admin", command], "admin", &[]))
    }

    pub(crate) fn file(&self, role: &str, name: &str) -> String {
        self.path(role).join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn path(&self, role: &str) -> PathBuf {
        self.dir.path().join(role)
    }

    /// A command with the role's own way to NATS; a later flag of the same name would be refused, so `changed`
    /// replaces.
    pub(crate) fn arguments(&self, command: &[&str], role: &str, changed: &[(&str, String)]) -> Vec<String> {
        let nats = self.nats.url().replace("nats://", "tls://");
        let mut flags = vec![
            ("--nats", nats),
            ("--nats-ca", self.file(role, "nats-ca.pem")),
            ("--nats-cert", self.file(role, "nats.pem")),
            ("--nats-key", self.file(role, "nats.key")),
            ("--nats-jetstream-api", "s0.api".to_owned()),
        ];
        if role == "admin" {
            flags.push(("--nats-user", role.to_owned()));
            flags.push(("--nats-password-file", self.file(role, "nats.password")));
        } else {
            flags.push(("--nats-logins", self.file(role, "logins")));
            flags.push(("--message-keys", self.file(role, "message.keys")));
        }
        if role == "keystore" {
            flags.push(("--data-dir", self.file(role, "data")));
        }
        if matches!(role, "gateway" | "audit-export") {
            flags.push(("--nats-monitor", self.nats.monitor()));
        }
        if role == "gateway" {
            flags.push(("--tls-cert", self.file(role, "server.pem")));
            flags.push(("--tls-key", self.file(role, "server.key")));
            flags.push(("--listen", "127.0.0.1:0".to_owned()));
        }
        for (name, value) in changed {
            let flag = flags.iter_mut().find(|(flag, _)| flag == name).expect("a flag that the role has");
            flag.1.clone_from(value);
        }
        let flags = flags.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
        command.iter().map(|&word| word.to_owned()).chain(flags).collect()
    }

    pub(crate) fn role(&self, role: &str) -> Process {
        self.role_with(role, &[])
    }

    /// As above, with further arguments.
    pub(crate) fn role_with(&self, role: &str, with: &[&str]) -> Process {
        let with = with.iter().map(|&argument| argument.to_owned());
        let arguments: Vec<String> = self.arguments(&[role], role, &[]).into_iter().chain(with).collect();
        Process::start_of(&self.program, &arguments)
    }

    /// Starts the keystore with something else than its own; it must end with this code and this reason, in one line of
    /// its log.
    fn refuses(&self, changed: &[(&str, String)], code: i32, why: &str) {
        let mut keystore = Process::start(&self.arguments(&["keystore"], "keystore", changed));
        assert_eq!(keystore.ended().code(), Some(code), "{}", keystore.said());
        keystore.wait_for("the reason", |line| line.contains(why).then_some(()));
        let errors = keystore.said().lines().filter(|line| line.contains(r#""level":"ERROR""#)).count();
        assert_eq!(errors, usize::from(code == 1), "{}", keystore.said());
    }
}

fn init(program: &Path, dir: &Path) {
    let mut init = Process::start_of(program, &["stack", "init", "--dir", dir.to_str().unwrap()].map(str::to_owned));
    assert!(init.ended().success(), "{}", init.said());
}

/// The server's settings, except those that the test harness sets itself.
fn settings(nats: &Path) -> String {
    let own = ["server_name:", "listen:", "http:", "ping_interval:", "store_dir:"];
    let text = std::fs::read_to_string(nats.join("nats.conf")).unwrap();
    let lines = text.lines().filter(|line| !own.iter().any(|name| line.trim_start().starts_with(name)));
    let text = lines.collect::<Vec<_>>().join("\n").replace("/etc/stage0", nats.to_str().unwrap());
    let passwords = std::fs::read_to_string(nats.join("passwords.conf")).unwrap();
    assert!(text.contains("include \"passwords.conf\""), "{text}");
    text.replace("include \"passwords.conf\"", &passwords)
}

#[tokio::test]
async fn what_init_makes_is_enough_for_every_role_and_the_doctor_finds_nothing() {
    let deployment = Deployment::start().await;
    let keystore = deployment.role("keystore");
    let exporter = deployment.role("audit-export");
    exporter.wait_for_log("audit-export serves", "message");
    keystore.wait_for_log("keystore serves", "message");
    let evaluator = deployment.role("evaluator");
    evaluator.wait_for_log("evaluator starts", "policy_version");
    let gateway = deployment.role("gateway");
    gateway.wait_for_log("gateway starts", "address");
    for role in ["gateway", "evaluator", "keystore", "audit-export"] {
        let mut doctor = Process::start(&deployment.arguments(&["doctor", role], role, &[]));
        let code = doctor.ended().code();
        let said = doctor.said();
        assert_eq!(code, Some(0), "{role}: {said}");
        assert!(!said.contains("BAD") && !said.contains("look "), "{role}: {said}");
        let tried = matches!(role, "gateway" | "evaluator" | "keystore");
        assert_eq!(said.contains("other roles' records are out of reach"), tried, "{role}: {said}");
        assert!(said.contains("nats ca"), "{role}: {said}");
    }
}

/// As replicas of one service are started: alike, with one directory.
#[tokio::test]
async fn processes_that_are_started_alike_log_in_as_different_users() {
    let deployment = Deployment::start().await;
    let _keystore = deployment.role("keystore");
    let exporter = deployment.role("audit-export");
    exporter.wait_for_log("audit-export serves", "message");
    let evaluators = [deployment.role("evaluator"), deployment.role("evaluator"), deployment.role("evaluator")];
    for evaluator in &evaluators {
        evaluator.wait_for_log("evaluator starts", "policy_version");
    }
    let connections = reqwest::get(format!("{}/connz?auth=true", deployment.nats.monitor())).await.unwrap();
    let text = connections.text().await.unwrap();
    for user in ["keystore-1", "evaluator-1", "evaluator-2", "evaluator-3"] {
        assert!(text.contains(&format!("\"authorized_user\": \"{user}\"")), "{user}: {text}");
    }
    assert!(!text.contains("evaluator-4"), "{text}");
}

#[tokio::test]
async fn a_wrong_secret_or_certificate_is_one_clear_message() {
    let deployment = Deployment::start().await;
    let missing = ("--nats-logins", "/nowhere/logins".to_owned());
    deployment.refuses(&[missing], 64, "--nats-logins: must name a directory that can be read");
    let others = ("--nats-logins", deployment.file("gateway", "logins"));
    deployment.refuses(&[others], 64, "--nats-logins: must hold `keystore-1.password`");
    let wrong = deployment.dir.path().join("wrong");
    std::fs::create_dir(&wrong).unwrap();
    let gateways = Path::new(&deployment.file("gateway", "logins")).join("gateway-1.password");
    std::fs::copy(gateways, wrong.join("keystore-1.password")).unwrap();
    deployment.refuses(&[("--nats-logins", wrong.to_str().unwrap().to_owned())], 1, "refuses the credentials");
    // The other authority of the same stack.
    let untrusted = ("--nats-ca", deployment.file("gateway", "ca.pem"));
    deployment.refuses(&[untrusted], 1, "no TLS with the NATS server");
    let stranger = [
        ("--nats-cert", deployment.file("receiver", "server.pem")),
        ("--nats-key", deployment.file("receiver", "server.key")),
    ];
    deployment.refuses(&stranger, 1, "NATS server");
}

#[tokio::test]
async fn the_doctor_names_what_is_wrong_and_what_to_do() {
    let deployment = Deployment::start().await;
    let changed = [
        ("--nats-ca", "/nowhere/ca.pem".to_owned()),
        ("--tls-key", deployment.file("receiver", "server.key")),
        ("--nats-monitor", "http://127.0.0.1:9".to_owned()),
    ];
    let mut doctor = Process::start(&deployment.arguments(&["doctor", "gateway"], "gateway", &changed));
    assert_eq!(doctor.ended().code(), Some(1), "{}", doctor.said());
    let said = doctor.said();
    for part in [
        "cannot be used together",
        "`/nowhere/ca.pem` cannot be read",
        "its monitor at http://127.0.0.1:9 does not answer",
        "-> ",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}
