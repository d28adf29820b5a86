//! nats-server in a container of a Docker engine on this machine, removed when the value is dropped. A test run that is
//! itself killed leaves containers called `stage0-nats-…` behind.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use testcontainers::bollard::models::{HostConfig, PortBinding};
use testcontainers::bollard::query_parameters::RemoveContainerOptionsBuilder;
use testcontainers::core::ContainerPort;
use testcontainers::core::client::docker_client_instance;
use testcontainers::runners::AsyncRunner as _;
use testcontainers::{
    ContainerAsync, ContainerRequest, CopyTargetOptions, GenericImage, ImageExt as _, TestcontainersError,
};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::{OLDEST, Ports, START_TIMEOUT, configuration, version, wait_for};

const IMAGE_VARIABLE: &str = "STAGE0_TEST_NATS_IMAGE";
const IMAGE: &str = "nats:2.15";
const CONFIG: &str = "/stage0/nats.conf";
/// In the container's own layer, which survives a kill.
const STORE: &str = "/stage0/store";
const CLIENTS: ContainerPort = ContainerPort::Tcp(4222);
const MONITOR: ContainerPort = ContainerPort::Tcp(8222);
const ENGINE_TIMEOUT: Duration = Duration::from_secs(5);
const ATTEMPTS: usize = 5;

pub(super) struct Container {
    container: Option<ContainerAsync<GenericImage>>,
    ports: Ports,
}

impl Container {
    pub(super) async fn start(settings: &str) -> Self {
        let mut attempts = 1;
        let (container, ports) = loop {
            let ports = free_ports();
            match run(settings, ports).await {
                Ok(container) => break (container, ports),
                Err(error) if attempts < ATTEMPTS && is_port_taken(&error) => attempts += 1,
                Err(error) => panic!("{error}: set {IMAGE_VARIABLE} to an image that can be pulled"),
            }
        };
        let server = Self { container: Some(container), ports };
        server.greeted().await;
        server
    }

    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    pub(super) fn kill(&mut self) {
        let container = self.container();
        aside(async || {
            if is_running(container).await {
                let docker = docker_client_instance().await.expect("Docker answers");
                docker.kill_container(container.id(), None).await.expect("the container can be killed");
                wait_for("the container ends", START_TIMEOUT, async || !is_running(container).await).await;
            }
        });
    }

    pub(super) async fn restart(&mut self) {
        self.kill();
        self.container().start().await.expect("the container starts again");
        self.greeted().await;
    }

    pub(super) async fn restart_with(&mut self, settings: &str) {
        if let Some(container) = self.container.take() {
            container.rm().await.expect("the container can be removed");
        }
        self.container = Some(run(settings, self.ports).await.expect("a container starts"));
        self.greeted().await;
    }

    pub(super) fn freeze(&self) {
        aside(async || self.container().pause().await).expect("the container can be paused");
    }

    pub(super) fn thaw(&self) {
        aside(async || self.container().unpause().await).expect("the container can be unpaused");
    }

    fn container(&self) -> &ContainerAsync<GenericImage> {
        self.container.as_ref().expect("the container is there until the drop")
    }

    /// An open port proves nothing: the engine listens there before the server does.
    async fn greeted(&self) {
        let started = Instant::now();
        loop {
            if let Ok(Some(said)) = timeout(ENGINE_TIMEOUT, greeting(self.ports.clients)).await {
                let new_enough = version(&said).is_some_and(|version| version >= OLDEST);
                assert!(
                    new_enough,
                    "nats-server {said} is too old: {IMAGE_VARIABLE} must name an image of 2.15 or newer"
                );
                return;
            }
            if started.elapsed() > START_TIMEOUT || !is_running(self.container()).await {
                let log = self.container().stderr_to_vec().await.unwrap_or_default();
                panic!("nats-server does not start:\n{}", String::from_utf8_lossy(&log));
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let Some(container) = self.container.take() else { return };
        let removed = aside(async || container.rm().await);
        // A second panic would abort the whole run.
        assert!(removed.is_ok() || std::thread::panicking(), "the container can be removed: {removed:?}");
    }
}

pub(super) async fn engine() -> Result<(), String> {
    let docker = docker_client_instance().await.map_err(|error| error.to_string())?;
    match timeout(ENGINE_TIMEOUT, docker.ping()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("nothing within {ENGINE_TIMEOUT:?}")),
    }
}

/// Starts a container, or leaves none behind.
async fn run(settings: &str, ports: Ports) -> Result<ContainerAsync<GenericImage>, TestcontainersError> {
    let name = format!("stage0-nats-{}-{}", std::process::id(), ports.clients);
    let started = request(settings, ports).with_container_name(&name).start().await;
    if started.is_err() {
        remove(&name).await;
    }
    started
}

fn request(settings: &str, ports: Ports) -> ContainerRequest<GenericImage> {
    let image = std::env::var(IMAGE_VARIABLE).unwrap_or_else(|_| IMAGE.to_owned());
    let (name, tag) = name_and_tag(&image);
    // A port chosen by the engine would change with a restart.
    let publish = move |host: &mut HostConfig| {
        let bind = |to: ContainerPort, port: u16| {
            let host_ip = Some(Ipv4Addr::LOCALHOST.to_string());
            (to.to_string(), Some(vec![PortBinding { host_ip, host_port: Some(port.to_string()) }]))
        };
        host.publish_all_ports = Some(false);
        host.port_bindings = Some([bind(CLIENTS, ports.clients), bind(MONITOR, ports.monitor)].into());
    };
    // Only a port that the image or this request exposes is bound.
    let request = GenericImage::new(name, tag)
        .with_exposed_port(CLIENTS)
        .with_exposed_port(MONITOR)
        .with_cmd(["-c", CONFIG, "-sd", STORE])
        .with_copy_to(CONFIG, configuration("0.0.0.0:4222", "0.0.0.0:8222", settings).into_bytes())
        .with_host_config_modifier(publish);
    files_in(settings).into_iter().fold(request, |request, file| {
        // The image may use any user.
        let target = CopyTargetOptions::new(file.to_string_lossy()).with_mode(0o644);
        request.with_copy_to(target, file)
    })
}

/// Another process may take them before the container does.
fn free_ports() -> Ports {
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = |listener: &TcpListener| listener.local_addr().expect("a bound listener has an address").port();
    let (clients, monitor) = (bind(), bind());
    Ports { clients: port(&clients), monitor: port(&monitor) }
}

/// By the engine's text, as it has no code for this error.
fn is_port_taken(error: &TestcontainersError) -> bool {
    let text = error.to_string();
    text.contains("already in use") || text.contains("already allocated")
}

/// A container that could not be started may have been created all the same.
async fn remove(name: &str) {
    if let Ok(docker) = docker_client_instance().await {
        drop(docker.remove_container(name, Some(RemoveContainerOptionsBuilder::new().force(true).build())).await);
    }
}

async fn is_running(container: &ContainerAsync<GenericImage>) -> bool {
    container.is_running().await.expect("Docker knows the container")
}

async fn greeting(port: u16) -> Option<String> {
    let mut line = String::new();
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
    BufReader::new(stream).read_line(&mut line).await.ok()?;
    let info: serde_json::Value = serde_json::from_str(line.strip_prefix("INFO ")?).ok()?;
    Some(info.get("version")?.as_str()?.to_owned())
}

/// On a thread of its own: the methods that use it are not async, and may block a test's only thread.
fn aside<T: Send>(work: impl AsyncFnOnce() -> T + Send) -> T {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(work())
    };
    std::thread::scope(|scope| scope.spawn(run).join()).expect("Docker does what it is asked")
}

fn name_and_tag(image: &str) -> (&str, &str) {
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (image, "latest"),
    }
}

/// The files that the settings name in double quotes and that exist.
fn files_in(settings: &str) -> Vec<PathBuf> {
    let quoted = settings.split('"').skip(1).step_by(2).map(PathBuf::from);
    quoted.filter(|path| path.is_absolute() && path.is_file()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_of_a_registry_is_not_a_tag() {
        assert_eq!(name_and_tag("nats:2.15"), ("nats", "2.15"));
        assert_eq!(name_and_tag("localhost:5000/nats"), ("localhost:5000/nats", "latest"));
        assert_eq!(name_and_tag("localhost:5000/nats:2"), ("localhost:5000/nats", "2"));
    }

    #[test]
    fn files_are_those_that_are_there_and_named_by_absolute_path() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let settings = format!("tls {{ cert_file: {:?}, key_file: \"/nowhere\", ca_file: \"x\" }}", file.path());
        assert_eq!(files_in(&settings), [file.path()]);
        assert!(files_in("max_payload: 8MB").is_empty());
    }
}
