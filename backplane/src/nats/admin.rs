//! What an administrator does with the streams: makes them, looks at them, and brings those of an earlier version up to
//! this one.
//!
//! Owns the steps of an upgrade and their order. Every step can be done again: a run that was cut off anywhere is
//! completed by the next. Refuses to touch a stream's content: records move by a mirror, which keeps their places and
//! times, and the log stays where it is. The login that does this may create and change streams, and nothing else.

use serde_json::{Map, Value, json};
use tokio::time::{Duration, Instant, sleep};

use super::Connection;
use super::jetstream::{JetError, NO_SUCH_STREAM, STREAM_EXISTS, SUBJECTS_OVERLAP, ask, info};
use super::link::Link;
use super::stream_watch;
use super::streams::{Difference, MaxRecords, StreamName, StreamSpec};

/// One question of an administrator.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long records may take to move.
const MOVE_TIMEOUT: Duration = Duration::from_secs(900);
const MOVE_POLL_INTERVAL: Duration = Duration::from_millis(500);
/// The server pages subjects: behind the last page it says how many there are, and lists none.
const BEHIND_THE_LAST_PAGE: u64 = 1 << 40;
/// A log that is fuller than this share of what it may take would be full soon after its upgrade.
const MAX_PERCENT_TAKEN: u64 = 80;

/// What the streams may take.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Copies in a cluster.
    pub replicas: usize,
    /// Bytes of all streams together; none: what the account may take.
    pub max_store: Option<u64>,
    /// Records of each kind that grows with use: runs, counters, repeated checks.
    pub max_records: u64,
}

/// One stream as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamState {
    /// Its name.
    pub stream: String,
    /// It was made just now.
    pub is_new: bool,
    /// What makes it foreign, a line for each setting.
    pub differences: Vec<String>,
    /// What else should be known.
    pub remarks: Vec<String>,
}

/// Something is not as it was to be.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The server did not do it.
    #[error("the stream `{stream}` cannot be {verb}: {why}")]
    Stream {
        /// Its name.
        stream: String,
        /// What was tried.
        verb: &'static str,
        /// In the server's words.
        why: String,
    },
    /// There is not enough for all.
    #[error(
        "the streams need {needed} bytes and may take {most}: raise `max_file` (`stage0 nats-config --max-store`), or give --max-store"
    )]
    NoRoom {
        /// Bytes.
        needed: u64,
        /// Bytes.
        most: u64,
    },
    /// Records did not arrive.
    #[error("the records of `{0}` have not all moved: look at the server, and run the same again")]
    NotMoved(String),
}

/// An administrator's connection.
pub struct StreamAdmin {
    connection: Connection,
}

/// Makes a stream unless it is there; its settings as they are, if they are ours.
pub(super) async fn ensure(link: &Link, spec: &StreamSpec, replicas: usize, until: Instant) -> Result<Value, JetError> {
    let name = || spec.name.as_str().to_owned();
    let found = match info(link, &spec.name, &Value::Null, until).await {
        Err(JetError::Refused { code: NO_SUCH_STREAM, .. }) => {
            let request = spec.request(choices([("num_replicas", replicas.into())]));
            match ask(link, spec.name.api(link, "STREAM.CREATE"), &request, until).await {
                Err(JetError::Refused { code: STREAM_EXISTS, .. }) => {
                    info(link, &spec.name, &Value::Null, until).await?
                }
                Err(JetError::Refused { code: SUBJECTS_OVERLAP, .. }) => {
                    return Err(JetError::Former(StreamName::ledger(&link.prefix).as_str().to_owned()));
                }
                // In an account of its own, a service hears nobody where it may not ask.
                Err(JetError::Forbidden(_) | JetError::Absent) => return Err(JetError::Missing(name())),
                made => made?,
            }
        }
        found => found?,
    };
    ours(link, spec, &found)
}

/// The settings of a stream that is there, if they are ours.
pub(super) async fn look(link: &Link, spec: &StreamSpec, until: Instant) -> Result<Value, JetError> {
    match info(link, &spec.name, &Value::Null, until).await {
        Err(JetError::Refused { code: NO_SUCH_STREAM, .. }) => Err(JetError::Missing(spec.name.as_str().to_owned())),
        found => ours(link, spec, &found?),
    }
}

fn ours(link: &Link, spec: &StreamSpec, found: &Value) -> Result<Value, JetError> {
    let config = found.get("config").ok_or(JetError::Unreadable)?;
    if StreamSpec::is_former_ledger(&link.prefix, config) {
        return Err(JetError::Former(spec.name.as_str().to_owned()));
    }
    stream_watch::ours(spec, found)?;
    Ok(config.clone())
}

impl StreamAdmin {
    /// On this connection, whose login may make streams.
    #[must_use]
    pub fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// Makes the streams that are missing; those that are there stay as they are.
    ///
    /// # Errors
    /// When one cannot be made, or the ledger is that of an earlier version.
    pub async fn init(&self, sizes: &Sizes) -> Result<Vec<StreamState>, AdminError> {
        let ledger = StreamName::ledger(self.prefix());
        if let Some(found) = self.found(&ledger).await?
            && StreamSpec::is_former_ledger(self.prefix(), config_of(&found))
        {
            return Err(failed(&ledger, "used", &JetError::Former(ledger.as_str().to_owned())));
        }
        let most = self.most(sizes).await?;
        let mut states = Vec::new();
        for spec in StreamSpec::all(self.prefix()) {
            let (found, is_new) = match self.found(&spec.name).await? {
                Some(found) => (found, false),
                None => (self.create(&spec, &spec.request(spec.sized(sizes, most, 0))).await?, true),
            };
            states.push(state(&spec, config_of(&found), is_new));
        }
        Ok(states)
    }

    /// Looks at every stream and changes nothing.
    ///
    /// # Errors
    /// When one cannot be looked at.
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

    /// Makes the streams what this version needs, whatever they were: records of an earlier version move from the one
    /// ledger into streams of their own, with their places and times, so that no counter begins again.
    ///
    /// # Errors
    /// When something cannot be done; what was done stays, and the next run goes on from there.
    pub async fn upgrade(&self, sizes: &Sizes) -> Result<Vec<String>, AdminError> {
        let name = StreamName::ledger(self.prefix());
        let Some(ledger) = self.found(&name).await? else {
            let made = self.init(sizes).await?;
            return Ok(made
                .into_iter()
                .filter(|state| state.is_new)
                .map(|s| format!("`{}` was made", s.stream))
                .collect());
        };
        let is_former = StreamSpec::is_former_ledger(self.prefix(), config_of(&ledger));
        let most = self.most(sizes).await?;
        self.has_room(sizes, most, if is_former { taken(&ledger) } else { 0 }).await?;
        let mut done = Vec::new();
        let own = StreamSpec::all(self.prefix()).into_iter().filter(|spec| spec.name != name && !spec.is_log());
        for spec in own.clone() {
            if self.found(&spec.name).await?.is_none() {
                let sized = spec.sized(sizes, most, taken_before(is_former, &ledger));
                let request =
                    if is_former { mirror(&spec, &name, config_of(&ledger), sized) } else { spec.request(sized) };
                self.create(&spec, &request).await?;
                done.push(format!("`{}` was made", spec.name.as_str()));
            }
        }
        if is_former {
            // From here on nobody can change a record until it has moved.
            let spec =
                StreamSpec::named(self.prefix(), &name).ok_or_else(|| failed(&name, "found", &JetError::Absent))?;
            let sized = spec.sized(sizes, most, taken(&ledger));
            self.update(&spec, config_of(&ledger), sized).await?;
            done.push(format!("`{}` holds the records of audit-export alone", name.as_str()));
        }
        for spec in own {
            let Some(found) = self.found(&spec.name).await? else { continue };
            if config_of(&found).get("mirror").is_some_and(|mirror| mirror.get("name") == Some(&name.as_str().into())) {
                let moved = self.wait_until_moved(&spec, &name).await?;
                let sizes = Sizes { max_records: sizes.max_records.max(moved.saturating_mul(2)), ..*sizes };
                self.update(&spec, config_of(&found), spec.sized(&sizes, most, 0)).await?;
                done.push(format!("`{}` holds its records", spec.name.as_str()));
            }
        }
        for spec in StreamSpec::all(self.prefix()) {
            let Some(found) = self.found(&spec.name).await? else { continue };
            let differences = spec.differences(config_of(&found));
            if !differences.is_empty() {
                self.update(&spec, config_of(&found), spec.sized(sizes, most, 0)).await?;
                let what: Vec<_> = differences.iter().map(told).collect();
                done.push(format!("`{}` was set right: {}", spec.name.as_str(), what.join("; ")));
            }
        }
        Ok(done)
    }

    /// Every record of a moved kind is in its own stream; how many.
    async fn wait_until_moved(&self, spec: &StreamSpec, from: &StreamName) -> Result<u64, AdminError> {
        let (until, mut seen, mut moved) = (Instant::now() + MOVE_TIMEOUT, 0, 0);
        let subjects = spec.settings.get("subjects").and_then(|subjects| subjects.get(0)).cloned();
        let about = json!({"subjects_filter": subjects, "offset": BEHIND_THE_LAST_PAGE});
        while seen < 2 {
            if Instant::now() > until {
                return Err(AdminError::NotMoved(spec.name.as_str().to_owned()));
            }
            sleep(MOVE_POLL_INTERVAL).await;
            let there = self.info(from, &about).await?.get("total").and_then(Value::as_u64).unwrap_or(0);
            let here = self.info(&spec.name, &Value::Null).await?;
            let number = |pointer| here.pointer(pointer).and_then(Value::as_i64);
            // Negative until the mirror has heard of the other stream.
            let is_there = number("/mirror/lag") == Some(0) && number("/mirror/active").is_some_and(|age| age >= 0);
            moved = here.pointer("/state/messages").and_then(Value::as_u64).unwrap_or(0);
            seen = if is_there && moved >= there { seen + 1 } else { 0 };
        }
        Ok(moved)
    }

    /// Refuses to bound the streams by less than they hold.
    async fn has_room(&self, sizes: &Sizes, most: Option<u64>, records: u64) -> Result<(), AdminError> {
        let Some(most) = most else { return Ok(()) };
        let sized = StreamSpec::all(self.prefix()).into_iter().map(|spec| spec.max_bytes(sizes, most, records));
        let needed = sized.sum::<u64>().saturating_mul(sizes.replicas as u64);
        if needed > most {
            return Err(AdminError::NoRoom { needed, most });
        }
        let name = StreamName::log(self.prefix());
        let (Some(found), Some(spec)) = (self.found(&name).await?, StreamSpec::named(self.prefix(), &name)) else {
            return Ok(());
        };
        let bound = spec.max_bytes(sizes, most, 0);
        if taken(&found) > bound / 100 * MAX_PERCENT_TAKEN {
            let needed = taken(&found).saturating_mul(2 * sizes.replicas as u64);
            return Err(AdminError::NoRoom { needed, most });
        }
        Ok(())
    }

    /// What all streams may take: as asked for, or as the account may.
    async fn most(&self, sizes: &Sizes) -> Result<Option<u64>, AdminError> {
        if sizes.max_store.is_some() {
            return Ok(sizes.max_store);
        }
        let link = &self.connection.link;
        let said = ask(link, format!("{}.INFO", link.jetstream_api), &Value::Null, Instant::now() + ASK_TIMEOUT).await;
        let said = said.map_err(|error| failed(&StreamName::log(self.prefix()), "made", &error))?;
        Ok(said.pointer("/limits/max_storage").and_then(Value::as_u64).filter(|most| *most > 0))
    }

    fn prefix(&self) -> &str {
        &self.connection.link.prefix
    }

    async fn info(&self, name: &StreamName, about: &Value) -> Result<Value, AdminError> {
        let found = info(&self.connection.link, name, about, Instant::now() + ASK_TIMEOUT).await;
        found.map_err(|error| failed(name, "looked at", &error))
    }

    /// What the server says of a stream, if there is one.
    async fn found(&self, name: &StreamName) -> Result<Option<Value>, AdminError> {
        match info(&self.connection.link, name, &Value::Null, Instant::now() + ASK_TIMEOUT).await {
            Ok(found) => Ok(Some(found)),
            Err(JetError::Refused { code: NO_SUCH_STREAM, .. }) => Ok(None),
            Err(error) => Err(failed(name, "looked at", &error)),
        }
    }

    async fn create(&self, spec: &StreamSpec, request: &Value) -> Result<Value, AdminError> {
        let link = &self.connection.link;
        let until = Instant::now() + ASK_TIMEOUT;
        let made = ask(link, spec.name.api(link, "STREAM.CREATE"), request, until).await;
        made.map_err(|error| failed(&spec.name, "made", &error))
    }

    /// Our settings, the operator's choices as they are, and where there is no limit of size the one that is given.
    async fn update(&self, spec: &StreamSpec, config: &Value, sized: Map<String, Value>) -> Result<(), AdminError> {
        let mut kept: Map<String, Value> = config.as_object().cloned().unwrap_or_default();
        for (name, value) in sized {
            let is_bounded = kept.get(&name).and_then(Value::as_i64).is_some_and(|bound| bound > 0);
            if !is_bounded && name != "num_replicas" {
                kept.insert(name, value);
            }
        }
        let link = &self.connection.link;
        let until = Instant::now() + ASK_TIMEOUT;
        let updated = ask(link, spec.name.api(link, "STREAM.UPDATE"), &spec.request(kept), until).await;
        updated.map(drop).map_err(|error| failed(&spec.name, "changed", &error))
    }
}

impl StreamSpec {
    fn is_log(&self) -> bool {
        self.max_records == MaxRecords::Unbounded
    }

    /// `records`: bytes of the ledger of an earlier version, of which nobody knows whose they are.
    fn max_bytes(&self, sizes: &Sizes, most: u64, records: u64) -> u64 {
        let share = most / 100 * self.percent / (sizes.replicas as u64).max(1);
        match self.used_by {
            _ if self.is_log() => share,
            // What has moved stays there until its time is over: it proves what it was.
            [stage0_contract::Role::AuditExport] => share.saturating_add(records),
            _ => share.max(records.saturating_mul(2)),
        }
    }

    fn sized(&self, sizes: &Sizes, most: Option<u64>, records: u64) -> Map<String, Value> {
        let most = most.map_or_else(|| json!(-1), |most| self.max_bytes(sizes, most, records).into());
        let max_records = match self.max_records {
            MaxRecords::Unbounded => None,
            MaxRecords::Chosen => Some(sizes.max_records),
            MaxRecords::Fixed(count) => Some(count.max(sizes.max_records)),
        };
        let max_records = max_records.map_or_else(|| json!(-1), Into::into);
        choices([("num_replicas", sizes.replicas.into()), ("max_bytes", most), ("max_msgs", max_records)])
    }
}

/// A stream that fills itself from the ledger of an earlier version: places, times and lifetimes stay.
fn mirror(spec: &StreamSpec, from: &StreamName, ledger: &Value, sized: Map<String, Value>) -> Value {
    let subject = spec.settings.get("subjects").and_then(|subjects| subjects.get(0)).cloned();
    let mut request = sized;
    // However many there are.
    request.remove("max_msgs");
    for name in ["num_replicas", "placement", "compression"] {
        if let Some(value) = ledger.get(name) {
            request.insert(name.to_owned(), value.clone());
        }
    }
    for name in ["retention", "storage", "discard", "max_msgs_per_subject", "allow_msg_ttl", "allow_direct"] {
        if let Some(value) = spec.settings.get(name) {
            request.insert(name.to_owned(), value.clone());
        }
    }
    request.insert("name".to_owned(), spec.name.as_str().into());
    request.insert("mirror".to_owned(), json!({"name": from.as_str(), "filter_subject": subject}));
    Value::Object(request)
}

fn state(spec: &StreamSpec, config: &Value, is_new: bool) -> StreamState {
    let mut remarks = Vec::new();
    for setting in spec.unknown(config) {
        remarks.push(format!("its `{setting}` is not known to this version"));
    }
    if config.get("max_bytes").and_then(Value::as_i64).is_none_or(|most| most <= 0) {
        remarks.push("its size has no limit: who fills it takes the room of the others".to_owned());
    }
    StreamState {
        stream: spec.name.as_str().to_owned(),
        is_new,
        differences: spec.differences(config).iter().map(told).collect(),
        remarks,
    }
}

fn told(difference: &Difference) -> String {
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

fn taken(found: &Value) -> u64 {
    found.pointer("/state/bytes").and_then(Value::as_u64).unwrap_or(0)
}

fn taken_before(is_former: bool, ledger: &Value) -> u64 {
    if is_former { taken(ledger) } else { 0 }
}

fn choices<const N: usize>(members: [(&str, Value); N]) -> Map<String, Value> {
    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn failed(stream: &StreamName, verb: &'static str, error: &JetError) -> AdminError {
    AdminError::Stream { stream: stream.as_str().to_owned(), verb, why: error.to_string() }
}
