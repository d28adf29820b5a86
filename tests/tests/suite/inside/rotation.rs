//! Credentials of every role that are replaced under load.
//!
//! A deployment as `stage0 nats-config` makes it: a login, a password and a client certificate for each role, TLS both
//! ways, message keys. Each role gets a second login beside its first, its processes are replaced one by one, and the
//! first login is taken away; the steps are those of docs/nats-security.md. The load asks two gateways all the while,
//! as a client does that tries the other one where one does not answer.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use stage0_backplane::nats::{Connection, KeySet, Login, Logins, NatsConfig, NatsServerConf, Requirement, Tls};
use stage0_backplane::testing::{NatsServer, wait_for};
use stage0_contract::Role;
use stage0_tests::{Api, Authority, Process, account_scopes, write_keys};
use tempfile::TempDir;
use tokio::task::JoinHandle;

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

const ADMIN_PASSWORD: &str = "of-the-stream-administrator";

/// The file of `stage0 nats-config`, and which logins each role has in it.
struct Server {
    tls: PathBuf,
    /// Of each role: user and password.
    logins: Vec<(Role, Vec<(String, String)>)>,
}

struct Deployment {
    directory: TempDir,
    authority: Authority,
    server: Server,
    nats: NatsServer,
    keystore: Option<Process>,
    evaluators: Vec<Process>,
    exporters: Vec<Process>,
    gateways: Vec<Process>,
    urls: Arc<Mutex<Vec<String>>>,
}

/// What came of the load.
#[derive(Default)]
struct Came {
    /// Ids of the decisions that were answered.
    decided: Vec<String>,
    /// No gateway answered.
    lost: Vec<String>,
}

struct Load {
    ends: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    callers: Vec<JoinHandle<Came>>,
}

impl Server {
    fn login(&mut self, role: Role) -> &mut Vec<(String, String)> {
        &mut self.logins.iter_mut().find(|(known, _)| *known == role).unwrap().1
    }

    /// As an operator edits it: a second line of `users` with the permissions of the first.
    fn settings(&self) -> String {
        let file = NatsServerConf {
            prefix: "s0".to_owned(),
            name: "n1".to_owned(),
            listen: "127.0.0.1:4222".parse().unwrap(),
            monitor: "127.0.0.1:8222".parse().unwrap(),
            tls_dir: self.tls.clone(),
            store_dir: "/unused".into(),
            max_file: "1GB".to_owned(),
            passwords: None,
            logins: Logins::SHARED,
            cluster: None,
        };
        let of_this_place = ["server_name:", "listen:", "http:", "ping_interval:", "  store_dir:"];
        let admin = format!("${}", NatsServerConf::ADMIN_PASSWORD_VARIABLE);
        let rendered = file.render().replace(&admin, &format!("{ADMIN_PASSWORD:?}"));
        let lines = rendered.lines().filter(|line| !of_this_place.iter().any(|name| line.starts_with(name)));
        let mut settings: String = lines.map(|line| format!("{line}\n")).collect();
        for (role, logins) in &self.logins {
            let first = format!("{{ user: {role}, password: ${}, ", NatsServerConf::password_variable(role.as_str()));
            let end = "} }";
            let at = settings.find(&first).unwrap();
            let until = at + settings[at..].find(end).unwrap() + end.len();
            let permissions = settings[at..until].strip_prefix(&first).unwrap().to_owned();
            let users = logins
                .iter()
                .map(|(user, password)| format!("{{ user: {user:?}, password: {password:?}, {permissions}"));
            settings.replace_range(at..until, &users.collect::<Vec<_>>().join(",\n"));
        }
        settings
    }
}

impl Deployment {
    async fn start() -> Self {
        let (directory, authority) = (tempfile::tempdir().unwrap(), Authority::default());
        let tls = directory.path().join("nats-tls");
        std::fs::create_dir(&tls).unwrap();
        std::fs::copy(authority.file(), tls.join("ca.pem")).unwrap();
        authority.issue(&tls.join("server.pem"), &tls.join("server.key"));
        let login = |role: Role| (role, vec![(role.to_string(), format!("first-of-{role}"))]);
        let server = Server { tls, logins: Role::ALL.map(login).to_vec() };
        let mut nats = NatsServer::start_with(&server.settings()).await;
        // From now on its ports stand in its file.
        nats.restart().await;
        let keys = directory.path().join("message-keys");
        std::fs::create_dir(&keys).unwrap();
        write_keys(&keys, &KeySet::create(Requirement::Always).unwrap());
        authority.issue(&directory.path().join("gateway.pem"), &directory.path().join("gateway.key"));
        let mut this = Self {
            directory,
            authority,
            server,
            nats,
            keystore: None,
            evaluators: vec![],
            exporters: vec![],
            gateways: vec![],
            urls: Arc::default(),
        };
        this.credentials();
        this.make_streams();
        this.start_keystore();
        for _ in 0..2 {
            this.start_exporter();
        }
        for _ in 0..2 {
            this.start_evaluator();
            this.start_gateway().await;
        }
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Gives each role what the server knows it by: its newest login, and a new client certificate.
    fn credentials(&mut self) {
        for (role, logins) in &self.server.logins {
            let password = self.directory.path().join(format!("{role}.password"));
            std::fs::write(&password, &logins.last().unwrap().1).unwrap();
            restrict(&password);
            let [cert, key] = ["cert", "key"].map(|kind| self.directory.path().join(format!("{role}-client.{kind}")));
            self.authority.issue(&cert, &key);
        }
    }

    /// As the administrator does once.
    fn make_streams(&self) {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        let password = self.path("admin.password");
        std::fs::write(&password, ADMIN_PASSWORD).unwrap();
        restrict(&password);
        let mut arguments = vec!["nats-admin".to_owned(), "init".to_owned()];
        for (name, value) in [
            ("--nats", self.nats.url().replace("nats://127.0.0.1", "tls://localhost")),
            ("--nats-ca", text(self.authority.file())),
            ("--nats-cert", text(self.path("gateway-client.cert"))),
            ("--nats-key", text(self.path("gateway-client.key"))),
            ("--nats-user", NatsServerConf::ADMIN_USER.to_owned()),
            ("--nats-password-file", text(password)),
            ("--nats-jetstream-api", NatsServerConf::jetstream_api("s0")),
        ] {
            arguments.extend([name.to_owned(), value]);
        }
        let mut admin = Process::start(&arguments);
        assert!(admin.ended().success(), "{}", admin.said());
    }

    fn start_process(&mut self, role: Role, own: &[&str]) -> Process {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        let (user, _) = self.server.login(role).last().unwrap().clone();
        let mut arguments = vec![role.to_string()];
        for (name, value) in [
            ("--nats", self.nats.url().replace("nats://127.0.0.1", "tls://localhost")),
            ("--nats-ca", text(self.authority.file())),
            ("--nats-cert", text(self.path(&format!("{role}-client.cert")))),
            ("--nats-key", text(self.path(&format!("{role}-client.key")))),
            ("--nats-user", user),
            ("--nats-password-file", text(self.path(&format!("{role}.password")))),
            ("--message-keys", text(self.path(&format!("message-keys/{role}.keys")))),
        ] {
            arguments.extend([name.to_owned(), value]);
        }
        arguments.extend(["--nats-jetstream-api".to_owned(), NatsServerConf::jetstream_api("s0")]);
        arguments.extend(own.iter().map(|&argument| argument.to_owned()));
        Process::start(&arguments)
    }

    fn start_exporter(&mut self) {
        let monitor = self.nats.monitor();
        let exporter =
            self.start_process(Role::AuditExport, &["--checkpoint-seconds", "1", "--nats-monitor", &monitor]);
        exporter.wait_for("a serving exporter", |line| line.contains("audit-export serves").then_some(()));
        self.exporters.push(exporter);
    }

    fn start_keystore(&mut self) {
        let data = self.path("keys");
        let keystore = self.start_process(Role::Keystore, &["--data-dir", data.to_str().unwrap()]);
        keystore.wait_for("a serving keystore", |line| line.contains("keystore serves").then_some(()));
        self.keystore = Some(keystore);
    }

    fn start_evaluator(&mut self) {
        let evaluator = self.start_process(Role::Evaluator, &[]);
        evaluator.wait_for_log("evaluator starts", "version");
        self.evaluators.push(evaluator);
    }

    async fn start_gateway(&mut self) {
        let (cert, key, monitor) = (self.path("gateway.pem"), self.path("gateway.key"), self.nats.monitor());
        let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
        let own = ["--listen", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key, "--nats-monitor", &monitor];
        let gateway = self.start_process(Role::Gateway, &own);
        let port = gateway.wait_for_log("gateway starts", "address").rsplit(':').next().unwrap().to_owned();
        let url = format!("https://localhost:{port}");
        let api = Api::new(&url, &self.authority.file(), None);
        wait_for("a ready gateway", WAIT_TIMEOUT, async || api.get("/readyz").await.status == 200).await;
        self.gateways.push(gateway);
        self.urls.lock().unwrap().push(url);
    }

    fn operator(&self) -> Api {
        let key = std::fs::read_to_string(self.path("keys/operator.key")).unwrap();
        Api::new(&self.urls.lock().unwrap()[0], &self.authority.file(), Some(key.trim()))
    }

    /// Every process of the role is replaced by one that starts with what stands in its files now.
    async fn replace(&mut self, role: Role) {
        match role {
            Role::AuditExport => {
                for _ in 0..2 {
                    self.start_exporter();
                    assert!(self.exporters.remove(0).stop().success());
                }
            }
            Role::Evaluator => {
                for _ in 0..2 {
                    self.start_evaluator();
                    assert!(self.evaluators.remove(0).stop().success());
                }
            }
            Role::Gateway => {
                for _ in 0..2 {
                    self.start_gateway().await;
                    self.urls.lock().unwrap().remove(0);
                    assert!(self.gateways.remove(0).stop().success());
                }
            }
            Role::Keystore => {
                assert!(self.keystore.take().unwrap().stop().success());
                self.start_keystore();
            }
        }
    }

    async fn may_log_in(&self, user: &str, password: &str) -> bool {
        let tls = Tls {
            ca: Some(self.authority.file()),
            client: Some((self.path("gateway-client.cert"), self.path("gateway-client.key"))),
        };
        let url = self.nats.url().replace("nats://127.0.0.1", "tls://localhost");
        let login = Login::Password { user: user.to_owned(), password: password.to_owned() };
        let name = user.trim_end_matches("-next");
        let config = NatsConfig { login: Some(login), tls: Some(tls), ..NatsConfig::new(url, name) };
        Connection::open(&config).await.is_ok()
    }
}

impl Load {
    fn start(deployment: &Deployment, key: &str) -> Self {
        let (ends, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let caller = |number: usize| {
            let api = Api::new("https://localhost", &deployment.authority.file(), Some(key));
            tokio::spawn(ask(api, Arc::clone(&deployment.urls), Arc::clone(&ends), Arc::clone(&answered), number))
        };
        Self { callers: (0..3).map(caller).collect(), ends, answered }
    }

    /// Ends it once so many more were answered.
    async fn end(self) -> Came {
        let until = self.answered.load(Ordering::SeqCst) + 30;
        wait_for("checks to be answered", WAIT_TIMEOUT, async || self.answered.load(Ordering::SeqCst) >= until).await;
        self.ends.store(true, Ordering::SeqCst);
        let mut all = Came::default();
        for caller in self.callers {
            let came = caller.await.expect("no check was answered wrongly");
            all.decided.extend(came.decided);
            all.lost.extend(came.lost);
        }
        all
    }
}

/// Asks one gateway after the other, in turns what is allowed and what is denied.
async fn ask(
    api: Api,
    urls: Arc<Mutex<Vec<String>>>,
    ends: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    first: usize,
) -> Came {
    let mut came = Came::default();
    let mut turn = first;
    while !ends.load(Ordering::SeqCst) {
        turn += 1;
        let (body, verdict) =
            if turn.is_multiple_of(2) { (Api::harmless(), "ALLOW") } else { (Api::forbidden(), "DENY") };
        let mut failures = Vec::new();
        for attempt in 0..2 {
            let url = {
                let urls = urls.lock().unwrap();
                urls[(turn / 2 + attempt) % urls.len()].clone()
            };
            match api.at(&url).try_check(&body).await {
                Ok(answer) if answer.status == 200 => {
                    assert_eq!(answer.body["verdict"], verdict, "{}", answer.text);
                    came.decided.push(answer.body["request_id"].as_str().unwrap().to_owned());
                    answered.fetch_add(1, Ordering::SeqCst);
                    failures.clear();
                    break;
                }
                Ok(answer) => {
                    assert_eq!(answer.status, 503, "{}", answer.text);
                    failures.push(answer.text);
                }
                Err(error) => failures.push(error.to_string()),
            }
        }
        came.lost.extend((!failures.is_empty()).then(|| failures.join("; ")));
        // As an agent does.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    came
}

fn restrict(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_roles_login_and_certificate_are_replaced_under_load_and_every_check_is_answered() {
    let mut deployment = Deployment::start().await;
    let (_, key, _) = deployment.operator().account("load", None, &account_scopes()).await;
    let mut decided = Vec::new();
    for role in Role::ALL {
        let load = Load::start(&deployment, &key);
        // 1: a second login beside the first; no role is disconnected.
        deployment.server.login(role).push((format!("{role}-next"), format!("second-of-{role}")));
        deployment.nats.reload_with(&deployment.server.settings()).await;
        // 2: the role's processes are replaced one by one, with the new login and a new client certificate.
        deployment.credentials();
        deployment.replace(role).await;
        // 3: the first login is taken away.
        deployment.server.login(role).remove(0);
        deployment.nats.reload_with(&deployment.server.settings()).await;
        let (old, new) = (format!("first-of-{role}"), format!("second-of-{role}"));
        assert!(!deployment.may_log_in(&role.to_string(), &old).await, "the old login of {role}");
        assert!(!deployment.may_log_in(&format!("{role}-next"), &old).await);
        assert!(deployment.may_log_in(&format!("{role}-next"), &new).await, "the new login of {role}");
        let came = load.end().await;
        // A keystore is away while it starts again: who is known to a gateway is not asked for.
        assert!(came.lost.is_empty(), "{role}: {} of {}: {:?}", came.lost.len(), came.decided.len(), came.lost);
        decided.extend(came.decided);
    }
    // The certificates that the server and the gateways show: both are reloaded, and no client is disconnected.
    let load = Load::start(&deployment, &key);
    let tls = deployment.server.tls.clone();
    deployment.authority.issue(&tls.join("server.pem"), &tls.join("server.key"));
    deployment.nats.reload_with(&deployment.server.settings()).await;
    deployment.replace(Role::Evaluator).await;
    let (cert, key_file) = (deployment.path("gateway.pem"), deployment.path("gateway.key"));
    deployment.authority.issue(&cert, &key_file);
    for gateway in &deployment.gateways {
        gateway.wait_for("the new certificate", |line| line.contains("certificate reloaded").then_some(()));
    }
    let came = load.end().await;
    assert!(came.lost.is_empty() && !came.decided.is_empty(), "{:?}", came.lost);
    decided.extend(came.decided);
    // What was answered is in the log, by whichever login it was written.
    let api = deployment.operator().with_key(&key);
    let recorded = api.decisions("limit=1000").await;
    let ids: std::collections::HashSet<&str> = recorded.iter().filter_map(|one| one["request_id"].as_str()).collect();
    assert!(decided.iter().all(|id| ids.contains(id.as_str())), "{} of {}", ids.len(), decided.len());
    let verified: Value = api.verify().await;
    assert_eq!(verified["ok"], json!(true), "{verified}");
}
