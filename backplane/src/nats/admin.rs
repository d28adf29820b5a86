//! What an administrator does with the streams: create them, check them, and upgrade those of an earlier version.
//!
//! Every step can be repeated: a run that was interrupted anywhere is completed by the next. Records move by a mirror,
//! which keeps their sequences and times, and the log stays where it is.

use serde_json::{Map, Value, json};
use tokio::time::{Duration, Instant, sleep};

use super::Connection;
use super::jetstream::{JetError, NO_SUCH_STREAM, STREAM_EXISTS, SUBJECTS_OVERLAP, api_request, info_once_led};
use super::link::Link;
use super::stream_watch;
use super::streams::{Difference, MaxRecords, StreamName, StreamSpec};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const MOVE_TIMEOUT: Duration = Duration::from_secs(900);
const MOVE_POLL_INTERVAL: Duration = Duration::from_millis(500);
/// The server pages subjects: beyond the last page it reports their number and lists none.
const BEYOND_LAST_PAGE: u64 = 1 << 40;
/// An upgrade is refused if the log is fuller than this share of its limit: it would be full soon after.
const MAX_PERCENT_USED: u64 = 80;

/// The operator's limits for the streams.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Replicas in a cluster.
    pub replicas: usize,
    /// Bytes of all streams together; none: as much as the account may use.
    pub max_store: Option<u64>,
    /// Limit of records of each kind that grows with use: runs, counters, repeated checks.
    pub max_records: u64,
}

/// The state of one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamState {
    /// The stream's name.
    pub stream: String,
    /// Whether it was created just now.
    pub is_new: bool,
    /// Settings that differ from what they must be, a line for each.
    pub differences: Vec<String>,
    /// Other remarks for an operator.
    pub remarks: Vec<String>,
}

/// Why the streams are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The server did not do it.
    #[error("the stream `{stream}` cannot be {verb}: {why}")]
    Stream {
        /// The stream's name.
        stream: String,
        /// What was tried.
        verb: &'static str,
        /// The server's text.
        why: String,
    },
    /// The streams need more space than they may use.
    #[error(
        "the streams need {needed} bytes and may take {max_total}: raise `max_file` (`stage0 nats-config \
         --max-store`), or give --max-store"
    )]
    NoRoom {
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that may be used.
        max_total: u64,
    },
    /// Records did not arrive in their new stream in time.
    #[error("the records of `{0}` have not all moved: look at the server, and run the same again")]
    NotMoved(String),
}

/// A connection with the administrator's login.
pub struct StreamAdmin {
    connection: Connection,
}

/// Creates a stream unless it exists; returns its settings if they are as required.
pub(super) async fn ensure(
    link: &Link,
    spec: &StreamSpec,
    replicas: usize,
    deadline: Instant,
) -> Result<Value, JetError> {
    let name = || spec.name.as_str().to_owned();
    let found = match info_once_led(link, &spec.name, deadline).await {
        Err(JetError::Refused { code: NO_SUCH_STREAM, .. }) => {
            let request = spec.request(choices([("num_replicas", replicas.into())]));
            match api_request(link, spec.name.api(link, "STREAM.CREATE"), &request, deadline).await {
                Err(JetError::Refused { code: STREAM_EXISTS, .. }) => info_once_led(link, &spec.name, deadline).await?,
                Err(JetError::Refused { code: SUBJECTS_OVERLAP, .. }) => {
                    return Err(JetError::OldLayout(StreamName::state_store(&link.prefix).as_str().to_owned()));
                }
                // In its own account, a service gets no responder where it has no permission.
                Err(JetError::Forbidden(_) | JetError::NoResponders) => return Err(JetError::Missing(name())),
                made => made?,
            }
        }
        found => found?,
    };
    check_settings(link, spec, &found)
}

pub(super) async fn inspect(link: &Link, spec: &StreamSpec, deadline: Instant) -> Result<Value, JetError> {
    match info_once_led(link, &spec.name, deadline).await {
        Err(JetError::Refused { code: NO_SUCH_STREAM, .. }) => Err(JetError::Missing(spec.name.as_str().to_owned())),
        found => check_settings(link, spec, &found?),
    }
}

fn check_settings(link: &Link, spec: &StreamSpec, found: &Value) -> Result<Value, JetError> {
    let config = found.get("config").ok_or(JetError::Malformed)?;
    if StreamSpec::has_old_layout(&link.prefix, config) {
        return Err(JetError::OldLayout(spec.name.as_str().to_owned()));
    }
    stream_watch::check_settings(spec, found)?;
    Ok(config.clone())
}

impl StreamAdmin {
    /// Uses this connection, whose login may create streams.
    pub fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// Creates the streams that are missing; existing ones are left alone.
    pub async fn init(&self, sizes: &Sizes) -> Result<Vec<StreamState>, AdminError> {
        let state_store = StreamName::state_store(self.prefix());
        if let Some(found) = self.found(&state_store).await?
            && StreamSpec::has_old_layout(self.prefix(), config_of(&found))
        {
            return Err(failed(&state_store, "used", &JetError::OldLayout(state_store.as_str().to_owned())));
        }
        let max_total = self.max_total(sizes).await?;
        let mut states = Vec::new();
        for spec in StreamSpec::all(self.prefix()) {
            let (found, is_new) = match self.found(&spec.name).await? {
                Some(found) => (found, false),
                None => (self.create(&spec, &spec.request(spec.sized(sizes, max_total, 0))).await?, true),
            };
            states.push(state(&spec, config_of(&found), is_new));
        }
        Ok(states)
    }

    /// Checks every stream and changes nothing.
    pub async fn check(&self) -> Result<Vec<StreamState>, AdminError> {
        let mut states = Vec::new();
        for spec in StreamSpec::all(self.prefix()) {
            states.push(match self.found(&spec.name).await? {
                Some(found) => state(&spec, config_of(&found), false),
                None => StreamState {
                    stream: spec.name.as_str().to_owned(),
                    is_new: false,
                    differences: vec!["it is missing".to_owned()],
                    remarks: Vec::new(),
                },
            });
        }
        Ok(states)
    }

    /// Brings the streams to this version's layout, whatever they were. Records of an earlier version move from its
    /// single state store into streams of their own, with their sequences and times, so that no counter starts again.
    /// After an error what was done stays, and the next run goes on from there.
    pub async fn upgrade(&self, sizes: &Sizes) -> Result<Vec<String>, AdminError> {
        let name = StreamName::state_store(self.prefix());
        let Some(state_store) = self.found(&name).await? else {
            let made = self.init(sizes).await?.into_iter().filter(|state| state.is_new);
            return Ok(made.map(|state| format!("`{}` was made", state.stream)).collect());
        };
        let is_former = StreamSpec::has_old_layout(self.prefix(), config_of(&state_store));
        let moved_bytes = if is_former { used_bytes(&state_store) } else { 0 };
        let max_total = self.max_total(sizes).await?;
        self.check_space(sizes, max_total, moved_bytes).await?;
        let mut done = Vec::new();
        let own = StreamSpec::all(self.prefix()).into_iter().filter(|spec| spec.name != name && !spec.is_log());
        for spec in own.clone() {
            if self.found(&spec.name).await?.is_none() {
                let sized = spec.sized(sizes, max_total, moved_bytes);
                let request =
                    if is_former { mirror(&spec, &name, config_of(&state_store), sized) } else { spec.request(sized) };
                self.create(&spec, &request).await?;
                done.push(format!("`{}` was made", spec.name.as_str()));
            }
        }
        if is_former {
            // From here on no record can be changed until it has moved.
            let spec = StreamSpec::named(self.prefix(), &name)
                .ok_or_else(|| failed(&name, "found", &JetError::NoResponders))?;
            self.update(&spec, config_of(&state_store), spec.sized(sizes, max_total, moved_bytes)).await?;
            done.push(format!("`{}` holds the records of audit-export alone", name.as_str()));
        }
        for spec in own {
            let Some(found) = self.found(&spec.name).await? else { continue };
            if config_of(&found).get("mirror").is_some_and(|mirror| mirror.get("name") == Some(&name.as_str().into())) {
                let moved = self.wait_until_moved(&spec, &name).await?;
                let sizes = Sizes { max_records: sizes.max_records.max(moved.saturating_mul(2)), ..*sizes };
                self.update(&spec, config_of(&found), spec.sized(&sizes, max_total, 0)).await?;
                done.push(format!("`{}` holds its records", spec.name.as_str()));
            }
        }
        for spec in StreamSpec::all(self.prefix()) {
            let Some(found) = self.found(&spec.name).await? else { continue };
            let differences = spec.differences(config_of(&found));
            if !differences.is_empty() {
                self.update(&spec, config_of(&found), spec.sized(sizes, max_total, 0)).await?;
                let what: Vec<_> = differences.iter().map(describe).collect();
                done.push(format!("`{}` was set right: {}", spec.name.as_str(), what.join("; ")));
            }
        }
        Ok(done)
    }

    async fn wait_until_moved(&self, spec: &StreamSpec, from: &StreamName) -> Result<u64, AdminError> {
        let (deadline, mut seen, mut moved) = (Instant::now() + MOVE_TIMEOUT, 0, 0);
        let subjects = spec.settings.get("subjects").and_then(|subjects| subjects.get(0)).cloned();
        let request = json!({"subjects_filter": subjects, "offset": BEYOND_LAST_PAGE});
        while seen < 2 {
            if Instant::now() > deadline {
                return Err(AdminError::NotMoved(spec.name.as_str().to_owned()));
            }
            sleep(MOVE_POLL_INTERVAL).await;
            let there = self.info(from, &request).await?.get("total").and_then(Value::as_u64).unwrap_or(0);
            let here = self.info(&spec.name, &Value::Null).await?;
            let number = |pointer| here.pointer(pointer).and_then(Value::as_i64);
            // Negative until the mirror has contacted its source.
            let is_there = number("/mirror/lag") == Some(0) && number("/mirror/active").is_some_and(|age| age >= 0);
            moved = here.pointer("/state/messages").and_then(Value::as_u64).unwrap_or(0);
            seen = if is_there && moved >= there { seen + 1 } else { 0 };
        }
        Ok(moved)
    }

    async fn check_space(&self, sizes: &Sizes, max_total: Option<u64>, records: u64) -> Result<(), AdminError> {
        let Some(max_total) = max_total else { return Ok(()) };
        let sized = StreamSpec::all(self.prefix()).into_iter().map(|spec| spec.max_bytes(sizes, max_total, records));
        let needed = sized.sum::<u64>().saturating_mul(sizes.replicas as u64);
        if needed > max_total {
            return Err(AdminError::NoRoom { needed, max_total });
        }
        let name = StreamName::log(self.prefix());
        let (Some(found), Some(spec)) = (self.found(&name).await?, StreamSpec::named(self.prefix(), &name)) else {
            return Ok(());
        };
        let bound = spec.max_bytes(sizes, max_total, 0);
        if used_bytes(&found) > bound / 100 * MAX_PERCENT_USED {
            let needed = used_bytes(&found).saturating_mul(2 * sizes.replicas as u64);
            return Err(AdminError::NoRoom { needed, max_total });
        }
        Ok(())
    }

    async fn max_total(&self, sizes: &Sizes) -> Result<Option<u64>, AdminError> {
        if sizes.max_store.is_some() {
            return Ok(sizes.max_store);
        }
        let account = self.api(format!("{}.INFO", self.connection.link.jetstream_api), &Value::Null).await;
        let account = account.map_err(|error| failed(&StreamName::log(self.prefix()), "made", &error))?;
        Ok(account.pointer("/limits/max_storage").and_then(Value::as_u64).filter(|max_total| *max_total > 0))
    }

    fn prefix(&self) -> &str {
        &self.connection.link.prefix
    }

    async fn api(&self, subject: String, request: &Value) -> Result<Value, JetError> {
        api_request(&self.connection.link, subject, request, Instant::now() + REQUEST_TIMEOUT).await
    }

    async fn api_of(&self, stream: &StreamName, what: &str, request: &Value) -> Result<Value, JetError> {
        self.api(stream.api(&self.connection.link, what), request).await
    }

    async fn info(&self, name: &StreamName, request: &Value) -> Result<Value, AdminError> {
        let found = self.api_of(name, "STREAM.INFO", request).await;
        found.map_err(|error| failed(name, "looked at", &error))
    }

    async fn found(&self, name: &StreamName) -> Result<Option<Value>, AdminError> {
        match self.api_of(name, "STREAM.INFO", &Value::Null).await {
            Ok(found) => Ok(Some(found)),
            Err(JetError::Refused { code: NO_SUCH_STREAM, .. }) => Ok(None),
            Err(error) => Err(failed(name, "looked at", &error)),
        }
    }

    async fn create(&self, spec: &StreamSpec, request: &Value) -> Result<Value, AdminError> {
        let made = self.api_of(&spec.name, "STREAM.CREATE", request).await;
        made.map_err(|error| failed(&spec.name, "made", &error))
    }

    /// Applies our settings. The operator's choices are kept, and size limits are added where there are none.
    async fn update(&self, spec: &StreamSpec, config: &Value, sized: Map<String, Value>) -> Result<(), AdminError> {
        let mut kept: Map<String, Value> = config.as_object().cloned().unwrap_or_default();
        for (name, value) in sized {
            let is_bounded = kept.get(&name).and_then(Value::as_i64).is_some_and(|bound| bound > 0);
            if !is_bounded && name != "num_replicas" {
                kept.insert(name, value);
            }
        }
        let updated = self.api_of(&spec.name, "STREAM.UPDATE", &spec.request(kept)).await;
        updated.map(drop).map_err(|error| failed(&spec.name, "changed", &error))
    }
}

impl StreamSpec {
    fn is_log(&self) -> bool {
        self.max_records == MaxRecords::Unbounded
    }

    /// `records`: bytes in the state store of an earlier version, which may belong to any role.
    fn max_bytes(&self, sizes: &Sizes, max_total: u64, records: u64) -> u64 {
        let share = max_total / 100 * self.percent / (sizes.replicas as u64).max(1);
        match self.used_by.as_slice() {
            _ if self.is_log() => share,
            // What has moved stays there until it expires: it proves what it was.
            [stage0_contract::Role::AuditExport] => share.saturating_add(records),
            _ => share.max(records.saturating_mul(2)),
        }
    }

    fn sized(&self, sizes: &Sizes, max_total: Option<u64>, records: u64) -> Map<String, Value> {
        let max_total =
            max_total.map_or_else(|| json!(-1), |max_total| self.max_bytes(sizes, max_total, records).into());
        let max_records = match self.max_records {
            MaxRecords::Unbounded => json!(-1),
            MaxRecords::Chosen => sizes.max_records.into(),
            MaxRecords::Fixed(count) => count.max(sizes.max_records).into(),
        };
        choices([("num_replicas", sizes.replicas.into()), ("max_bytes", max_total), ("max_msgs", max_records)])
    }
}

/// A stream that fills itself from the state store of an earlier version; sequences, times and TTLs are kept.
fn mirror(spec: &StreamSpec, from: &StreamName, state_store: &Value, sized: Map<String, Value>) -> Value {
    let subject = spec.settings.get("subjects").and_then(|subjects| subjects.get(0)).cloned();
    let mut request = sized;
    // All of them must fit, however many there are.
    request.remove("max_msgs");
    let theirs = ["num_replicas", "placement", "compression"].map(|name| (name, state_store.get(name)));
    let ours = ["retention", "storage", "discard", "max_msgs_per_subject", "allow_msg_ttl", "allow_direct"];
    let ours = ours.map(|name| (name, spec.settings.get(name)));
    for (name, value) in theirs.into_iter().chain(ours) {
        request.extend(value.map(|value| (name.to_owned(), value.clone())));
    }
    request.insert("name".to_owned(), spec.name.as_str().into());
    request.insert("mirror".to_owned(), json!({"name": from.as_str(), "filter_subject": subject}));
    Value::Object(request)
}

fn state(spec: &StreamSpec, config: &Value, is_new: bool) -> StreamState {
    let unknown = spec.unknown(config).into_iter();
    let mut remarks: Vec<_> = unknown.map(|name| format!("its `{name}` is not known to this version")).collect();
    if config.get("max_bytes").and_then(Value::as_i64).is_none_or(|max_total| max_total <= 0) {
        remarks.push("its size has no limit: who fills it takes the room of the others".to_owned());
    }
    StreamState {
        stream: spec.name.as_str().to_owned(),
        is_new,
        differences: spec.differences(config).iter().map(describe).collect(),
        remarks,
    }
}

fn describe(difference: &Difference) -> String {
    let Difference { setting, found, wanted } = difference;
    if wanted.is_null() {
        format!("its `{setting}` is {found}, and must not be used")
    } else {
        format!("its `{setting}` is {found} instead of {wanted}")
    }
}

fn config_of(found: &Value) -> &Value {
    found.get("config").unwrap_or(&Value::Null)
}

fn used_bytes(found: &Value) -> u64 {
    found.pointer("/state/bytes").and_then(Value::as_u64).unwrap_or(0)
}

fn choices<const N: usize>(members: [(&str, Value); N]) -> Map<String, Value> {
    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn failed(stream: &StreamName, verb: &'static str, error: &JetError) -> AdminError {
    AdminError::Stream { stream: stream.as_str().to_owned(), verb, why: error.to_string() }
}
