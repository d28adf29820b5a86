//! The stack of `docker-compose.yml`, and the one with three servers of NATS, brought up as a platform team does it and
//! used from outside, while parts are killed.
//!
//! Needs an engine and images, which `scripts/test.sh` gives it wherever one answers or can be installed; so it is not
//! among the tests that `cargo test` runs by itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use stage0_backplane::testing::wait_for;
use stage0_tests::{Api, Containers, docker, image, inspect};
use tokio::task::JoinHandle;

/// For what takes seconds on a good machine.
const LONG_TIMEOUT: Duration = Duration::from_secs(90);
/// The promise when any part except NATS or the keystore dies.
const CHECKS_RESUME_TIMEOUT: Duration = Duration::from_secs(3);
/// Two stacks at once would measure the machine, and have one network.
static ONE_STACK: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
/// Around a death; longer than what is promised.
const WATCHED_FOR: Duration = Duration::from_secs(5);
const CALLERS: usize = 4;
/// Of an unoptimised binary; the released image is some 40 MB.
const MAX_IMAGE_BYTES: u64 = 110_000_000;
const EVERY_SERVICE: [&str; 7] = ["nats", "keystore", "evaluator", "gateway", "balancer", "audit-export", "receiver"];
/// Run once and end.
const ONCE: [&str; 3] = ["setup", "streams", "welcome"];
/// Handed from one service to another, by a volume that holds nothing else.
const SHARED: [(&str, &[&str]); 2] =
    [("_operator", &["keystore", "welcome"]), ("_webhook-secret", &["receiver", "welcome"])];

#[test]
fn the_image_is_built_from_every_crate() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    let (recipe, sent) = (read("deploy/Dockerfile"), read(".dockerignore"));
    let workspace = read("Cargo.toml");
    let (members, _) = workspace.split_once("members = [").unwrap().1.split_once(']').unwrap();
    let members: Vec<&str> = members.split('"').skip(1).step_by(2).collect();
    assert!(members.contains(&"contract") && members.contains(&"bench"), "{members:?}");
    for member in members {
        let manifest = format!("COPY {member}/Cargo.toml {member}/\n");
        assert!(recipe.contains(&manifest), "deploy/Dockerfile lacks `{member}`");
        assert!(sent.lines().any(|line| line == format!("!{member}")), ".dockerignore leaves out `{member}`");
        let Ok(benches) = fs::read_dir(root.join(member).join("benches")) else { continue };
        for bench in benches.map(|entry| entry.unwrap().file_name().into_string().unwrap()) {
            assert!(recipe.contains(&format!("{member}/benches/{bench}")), "deploy/Dockerfile lacks `{bench}`");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a container engine: `scripts/test.sh containers` runs it"]
async fn the_container_stack_starts_answers_and_survives_killed_parts() {
    let _turn = ONE_STACK.lock().await;
    let size = inspect(&image())["Size"].as_u64().unwrap();
    assert!(size < MAX_IMAGE_BYTES, "the image has {size} bytes");
    let stack = Containers::new("whole");
    let banner = up(&stack);
    let dir = tempfile::tempdir().unwrap();
    what_the_banner_says_works(&stack, &banner, dir.path());
    every_container_has_no_more_than_it_needs(&stack);

    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let api = Api::new(&stack.url, &dir.path().join("stage0-ca.pem"), Some(read("stage0.key").trim()));
    let first = api.check(&Api::harmless()).await.expect(200);
    let first = first["request_id"].as_str().unwrap().to_owned();
    arrives(&stack, &first).await;
    the_client_is_not_the_balancer(&api, &first).await;

    let load = Load::start(&api);
    for service in ["gateway", "evaluator", "audit-export", "receiver", "balancer"] {
        let began = Instant::now();
        let killed = kill(&stack, service);
        tokio::time::sleep(WATCHED_FOR).await;
        let gap = load.longest_gap(began);
        eprintln!("{service} killed: longest time without an answer {gap:?}");
        assert!(gap < CHECKS_RESUME_TIMEOUT, "{service} killed: no answer for {gap:?}\n{}", stack.logs());
        is_back(&killed).await;
    }
    stack.compose(&["up", "-d", "--no-recreate", "--scale", "evaluator=6"]);
    wait_for("six evaluators say that they are ready", LONG_TIMEOUT, async || ready(&stack, "evaluator") == 6).await;

    nats_and_keystore_come_back(&stack, &api).await;
    let answers = load.end().await;
    assert!(answers.len() > 100, "{} answers are no storm", answers.len());
    every_answer_is_recorded(&api, &answers).await;
    let last = api.check(&Api::harmless()).await.expect(200)["request_id"].as_str().unwrap().to_owned();
    arrives(&stack, &last).await;

    reserve_its_port(&stack);
    stack.compose(&["down"]);
    let again = up(&stack);
    assert!(again.contains("is ready at"), "{again}");
    let key = stack.compose(&["run", "--rm", "-T", "cli", "stack", "key"]);
    assert_eq!(key, read("stage0.key"), "the account is another one");
    assert_eq!(api.get(&format!("/v1/decisions/{first}")).await.expect(200)["request_id"], first);
    api.check(&Api::harmless()).await.expect(200);

    stack.compose(&["down", "--volumes"]);
    assert!(stack.left().is_empty(), "{:?}", stack.left());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a container engine: `scripts/test.sh containers` runs it"]
async fn the_stack_with_three_servers_of_nats_goes_on_without_any_one_of_them_and_without_a_keystore() {
    let _turn = ONE_STACK.lock().await;
    let stack = Containers::with_cluster("cluster");
    let (banner, dir) = (up(&stack), tempfile::tempdir().unwrap());
    what_the_banner_says_works(&stack, &banner, dir.path());
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let api = Api::new(&stack.url, &dir.path().join("stage0-ca.pem"), Some(read("stage0.key").trim()));
    let load = Load::start(&api);
    for server in ["nats", "nats-2", "nats-3"] {
        let container = stack.of(server).remove(0);
        // The engine does not start it again.
        docker(&["kill", &container]);
        let killed = Instant::now();
        let goes_on = async || load.last().is_some_and(|last| last > killed + Duration::from_secs(1));
        wait_for("checks are answered without the server", LONG_TIMEOUT, goes_on).await;
        eprintln!("{server} killed: longest time without an answer {:?}", load.longest_gap(killed));
        docker(&["start", &container]);
        is_back(&container).await;
    }
    docker(&["kill", &stack.of("keystore").remove(0)]);
    let create = ["run", "--rm", "-T", "cli", "keys", "create", "--name", "standby", "--scope", "check", "--json"];
    wait_for("the other keystore serves", LONG_TIMEOUT, async || stack.try_compose(&create).status.success()).await;
    let answers = load.end().await;
    assert!(answers.len() > 100, "{} answers are no storm", answers.len());
    every_answer_is_recorded(&api, &answers).await;
    stack.compose(&["down", "--volumes"]);
    assert!(stack.left().is_empty(), "{:?}", stack.left());
}

/// Up to the last line of `docker compose up`; what it says.
fn up(stack: &Containers) -> String {
    let began = Instant::now();
    stack.compose(&["up", "-d"]);
    let welcome = stack.of("welcome");
    let code = docker(&["wait", &welcome[0]]);
    assert_eq!(code.trim(), "0", "{}", stack.logs());
    eprintln!("ready after {:?}", began.elapsed());
    docker(&["logs", &welcome[0]])
}

/// The commands of the banner as a shell runs them, but for how compose is called here.
fn what_the_banner_says_works(stack: &Containers, banner: &str, dir: &std::path::Path) {
    let begin = banner.find("  (umask 077; docker compose run").expect("a command");
    let end = banner.find("\ndecisions").expect("a place to look");
    let script = banner[begin..end].replace("docker compose", &stack.shell());
    let ran = Command::new("sh").arg("-ec").arg(&script).current_dir(dir).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{script}\n{said}{}", String::from_utf8_lossy(&ran.stderr));
    let answer: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!(answer["verdict"], "DEFER", "{answer}");
}

fn every_container_has_no_more_than_it_needs(stack: &Containers) {
    for service in EVERY_SERVICE.iter().chain(&ONCE).copied() {
        let containers = stack.of(service);
        assert!(!containers.is_empty(), "{service}");
        for id in containers {
            let found = inspect(&id);
            let (host, config) = (&found["HostConfig"], &found["Config"]);
            assert_eq!(config["User"], "65532:65532", "{service}");
            assert_eq!(host["ReadonlyRootfs"], true, "{service}");
            assert_eq!(host["CapDrop"], serde_json::json!(["ALL"]), "{service}");
            assert_eq!(host["CapAdd"], Value::Null, "{service}");
            let restart = if ONCE.contains(&service) { "no" } else { "unless-stopped" };
            assert_eq!(host["RestartPolicy"]["Name"], restart, "{service}");
            assert!(host["Memory"].as_u64().unwrap() > 0 && host["PidsLimit"].as_u64().unwrap() > 0, "{service}");
            assert!(host["SecurityOpt"].to_string().contains("no-new-privileges"), "{service}");
            for variable in config["Env"].as_array().unwrap() {
                let (name, _) = variable.as_str().unwrap().split_once('=').unwrap();
                let secret = ["PASSWORD", "SECRET", "KEY"].iter().any(|word| name.contains(word));
                let names_a_file =
                    ["_FILE", "NATS_KEY", "TLS_KEY", "MESSAGE_KEYS", "_COPY"].iter().any(|end| name.ends_with(end));
                assert!(!secret || names_a_file, "{service}: {name}");
            }
            let mounts: Vec<_> =
                found["Mounts"].as_array().unwrap().iter().filter_map(|m| m["Name"].as_str()).collect();
            let folder = match service {
                "welcome" => "client",
                "streams" => "admin",
                other => other,
            };
            let handed = |name: &str| SHARED.iter().any(|(end, by)| name.ends_with(end) && by.contains(&service));
            let own = |name: &&str| name.contains(&format!("_{folder}-")) || handed(name) || service == "setup";
            assert!(mounts.iter().all(own), "{service} sees {mounts:?}");
        }
    }
}

/// The receiver has verified and shown it.
async fn arrives(stack: &Containers, request_id: &str) {
    let shown = async || {
        let url = format!("{}/decisions.json", stack.page);
        let Ok(answer) = reqwest::get(url).await else { return false };
        answer.text().await.is_ok_and(|text| text.contains(request_id))
    };
    wait_for("the receiver shows the decision", LONG_TIMEOUT, shown).await;
}

/// What the PROXY protocol is for.
async fn the_client_is_not_the_balancer(api: &Api, request_id: &str) {
    let record = api.get(&format!("/v1/decisions/{request_id}")).await.expect(200);
    let address = record["client"]["address"].as_str().unwrap_or_else(|| panic!("{record}"));
    assert!(!address.ends_with(".2"), "recorded is the balancer, {address}");
}

/// Ends the process as a crash would, so that the engine starts it again; its container.
fn kill(stack: &Containers, service: &str) -> String {
    let id = stack.of(service).remove(0);
    let pid = i32::try_from(inspect(&id)["State"]["Pid"].as_i64().unwrap()).unwrap();
    let killed = kill_process(Pid::from_raw(pid).expect("it runs"), Signal::KILL);
    killed.unwrap_or_else(|error| {
        panic!("{service} (process {pid}): {error}: this test needs the engine's own machine and rights")
    });
    id
}

async fn is_back(container: &str) {
    let healthy = async || inspect(container)["State"]["Health"]["Status"] == "healthy";
    wait_for("a killed container is back and healthy", LONG_TIMEOUT, healthy).await;
}

/// How many instances of a role say so.
fn ready(stack: &Containers, role: &str) -> usize {
    let output = stack.try_compose(&["run", "--rm", "-T", "cli", "status", "--json"]);
    let Ok(status) = serde_json::from_slice::<Value>(&output.stdout) else { return 0 };
    let of_role = |one: &&Value| one["role"] == role && one["state"] == "ready";
    status["instances"].as_array().map_or(0, |all| all.iter().filter(of_role).count())
}

/// No check is decided meanwhile, no valid key gets a 401, and then all clients continue.
async fn nats_and_keystore_come_back(stack: &Containers, api: &Api) {
    let fresh = |name: &str| {
        let arguments = ["run", "--rm", "-T", "cli", "keys", "create", "--name", name, "--scope", "check", "--json"];
        let made: Value = serde_json::from_str(&stack.compose(&arguments)).unwrap();
        api.with_key(made["key"].as_str().unwrap())
    };
    for service in ["keystore", "nats"] {
        // No gateway has it in its cache.
        let unknown = fresh(service);
        let killed = kill(stack, service);
        let mut refused = 0;
        let answered = async || {
            let Ok(answer) = unknown.try_check(&Api::harmless()).await else { return false };
            refused += usize::from(answer.status == 503);
            assert!([200, 503].contains(&answer.status), "{service} is away: {answer:?}");
            answer.status == 200
        };
        wait_for("checks are answered again", LONG_TIMEOUT, answered).await;
        // The keystore may be back before the first of them is asked.
        assert!(service == "keystore" || refused > 0, "{service} was killed, and nothing was refused");
        eprintln!("{service} killed: {refused} checks of a new key were refused, then it was back");
        is_back(&killed).await;
    }
}

/// Every answered check is in the log with the verdict that was answered, and the log verifies.
async fn every_answer_is_recorded(api: &Api, answers: &BTreeMap<String, String>) {
    let recorded = api.decisions("").await;
    let recorded: BTreeMap<_, _> =
        recorded.iter().map(|one| (one["request_id"].as_str().unwrap(), &one["verdict"])).collect();
    for (id, verdict) in answers {
        assert_eq!(recorded.get(id.as_str()).and_then(|v| v.as_str()), Some(verdict.as_str()), "{id}");
    }
    let report = api.verify().await;
    assert_eq!(report["ok"], true, "{report}");
}

/// Compose says so, and does not end with success.
fn reserve_its_port(stack: &Containers) {
    let second = Containers::at_the_address_of(stack, "second");
    let output = second.try_compose(&["up", "-d"]);
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("port is already allocated") || said.contains("address already in use"), "{said}");
}

/// Callers that ask without a pause and note each answer and when it came.
struct Load {
    answers: Arc<Mutex<BTreeMap<String, String>>>,
    times: Arc<Mutex<Vec<Instant>>>,
    ends: Arc<AtomicBool>,
    callers: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(api: &Api) -> Self {
        let (answers, times, ends) =
            (Arc::<Mutex<BTreeMap<_, _>>>::default(), Arc::default(), Arc::<AtomicBool>::default());
        let mut load = Self { answers, times, ends, callers: vec![] };
        for _ in 0..CALLERS {
            let (api, answers, times) = (api.clone(), Arc::clone(&load.answers), Arc::clone(&load.times));
            let ends = Arc::clone(&load.ends);
            load.callers.push(tokio::spawn(async move {
                while !ends.load(Ordering::Relaxed) {
                    let Ok(answer) = api.try_check(&Api::harmless()).await else { continue };
                    if answer.status == 200 {
                        times.lock().unwrap().push(Instant::now());
                        let text = |name: &str| answer.body[name].as_str().unwrap().to_owned();
                        answers.lock().unwrap().insert(text("request_id"), text("verdict"));
                    }
                    // A storm of all that two cores can do would measure the machine.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }));
        }
        load
    }

    /// Between two answers, from then until now.
    fn longest_gap(&self, since: Instant) -> Duration {
        let times = self.times.lock().unwrap();
        let mut last = since;
        let mut longest = Duration::ZERO;
        for time in times.iter().filter(|time| **time > since).chain([&Instant::now()]) {
            longest = longest.max(time.saturating_duration_since(last));
            last = *time;
        }
        longest
    }

    /// When the last answer came.
    fn last(&self) -> Option<Instant> {
        self.times.lock().unwrap().last().copied()
    }

    async fn end(self) -> BTreeMap<String, String> {
        self.ends.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.unwrap();
        }
        Arc::into_inner(self.answers).unwrap().into_inner().unwrap()
    }
}
