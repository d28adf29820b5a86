//! The streams: names, owners, and every setting that each must have.
//!
//! Sizes, replicas, placement, compression and descriptions are the operator's choice. Any other difference makes a
//! stream unusable: a transform, a republish or a source would alter what is recorded. A setting that this version does
//! not know is only reported, or every new nats-server would stop every older deployment.
//! `<PREFIX>_LOG` holds `<prefix>.log.<account>.d` (decisions) and `.m` (marks). Records have a stream for each word of
//! the contract; those of audit-export share `<PREFIX>_LEDGER`.

use serde_json::{Map, Value, json};
use stage0_contract::{
    APPROVAL_RECORDS, CANDIDATE_RECORDS, GUARD_RECORDS, IDEMPOTENCY_RECORDS, KEYSTORE_RECORDS, OUTCOME_RECORDS,
    RECORDS, RUN_RECORDS, Role, USAGE_RECORDS,
};

use super::link::Link;
use crate::MAX_MESSAGE_BYTES;

/// Longer than an append is retried. The server keeps the ids in memory, up to 64 KiB each.
const LOG_DUPLICATE_WINDOW_NANOS: u64 = 30_000_000_000;
/// Records have no message ids; this is the minimum that the server accepts.
const DUPLICATE_WINDOW_NANOS: u64 = 100_000_000;
/// The longest retention of an account and a year more: a distant safety net by the server's own clock.
const LOG_MAX_AGE_NANOS: u64 = (3_650 + 365) * DAY_NANOS;
const IDEMPOTENCY_MAX_AGE_NANOS: u64 = DAY_NANOS;
const DAY_NANOS: u64 = 86_400 * 1_000_000_000;
const MAX_HEADER_BYTES: usize = 64 * 1024;
const MAX_COUNTER_BYTES: usize = 16 * 1024;
const MAX_RUN_BYTES: usize = 1024 * 1024;
/// The sealed text of an action is the largest; an account's index and its wider grants are smaller.
const MAX_APPROVAL_BYTES: usize = 1024 * 1024;
/// A hundred kinds of disagreement.
const MAX_CANDIDATE_BYTES: usize = 256 * 1024;
/// Records of which there are few: what was found of candidates, endpoints, and the keystore's own.
const MAX_OWN_RECORDS: u64 = 200_000;

const CHOICES: [&str; 8] =
    ["deny_delete", "description", "num_replicas", "placement", "compression", "metadata", "max_bytes", "max_msgs"];
/// Settings that must not be used: the rest of what nats-server 2.15 knows.
const UNUSED: [&str; 21] = [
    "allow_atomic",
    "allow_batched",
    "allow_msg_counter",
    "allow_msg_schedules",
    "allow_msg_ttl",
    "allow_rollup_hdrs",
    "consumer_limits",
    "deny_purge",
    "discard_new_per_subject",
    "first_seq",
    "max_consumers",
    "mirror",
    "mirror_direct",
    "no_ack",
    "persist_mode",
    "republish",
    "sealed",
    "sources",
    "subject_delete_marker_ttl",
    "subject_transform",
    "template_owner",
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StreamName(String);

#[derive(Debug, Clone)]
pub(super) struct StreamSpec {
    pub(super) name: StreamName,
    /// The roles that read its settings, and do not start while they are wrong.
    pub(super) used_by: Vec<Role>,
    /// Without the operator's choices.
    pub(super) settings: Map<String, Value>,
    /// Its share of the total size of the streams.
    pub(super) percent: u64,
    pub(super) max_records: MaxRecords,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MaxRecords {
    Unbounded,
    Chosen,
    Fixed(u64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) setting: String,
    pub(super) found: Value,
    pub(super) wanted: Value,
}

impl StreamName {
    pub(super) fn log(prefix: &str) -> Self {
        Self::of(prefix, "LOG")
    }

    /// The stream of audit-export's records; in an earlier version's deployment it holds all records.
    pub(super) fn state_store(prefix: &str) -> Self {
        Self::of(prefix, "LEDGER")
    }

    pub(super) fn of_record(prefix: &str, key: &str) -> Self {
        let word = key.split_once('.').map_or("", |(word, _)| word);
        let own = RECORDS.iter().find(|records| records.word == word && records.of != Role::AuditExport);
        own.map_or_else(|| Self::state_store(prefix), |records| Self::of(prefix, records.word))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn api(&self, link: &Link, what: &str) -> String {
        format!("{}.{what}.{}", link.jetstream_api, self.0)
    }

    fn of(prefix: &str, suffix: &str) -> Self {
        // A stream's name must not contain a dot.
        Self(format!("{}_{suffix}", prefix.replace('.', "_")).to_ascii_uppercase())
    }
}

impl StreamSpec {
    pub(super) fn all(prefix: &str) -> Vec<Self> {
        let own = RECORDS.iter().filter(|records| records.of != Role::AuditExport);
        let own = own.map(|records| Self::of_records(prefix, records.word, records.of));
        [Self::log(prefix), Self::state_store(prefix)].into_iter().chain(own).collect()
    }

    pub(super) fn of_role(prefix: &str, role: Role) -> Vec<Self> {
        Self::all(prefix).into_iter().filter(|spec| spec.used_by.contains(&role)).collect()
    }

    pub(super) fn named(prefix: &str, name: &StreamName) -> Option<Self> {
        Self::all(prefix).into_iter().find(|spec| spec.name == *name)
    }

    fn log(prefix: &str) -> Self {
        let subjects = vec![format!("{prefix}.log.*.d"), format!("{prefix}.log.*.m")];
        let settings = object(json!({
            "max_age": LOG_MAX_AGE_NANOS,
            "max_msgs_per_subject": -1,
            "duplicate_window": LOG_DUPLICATE_WINDOW_NANOS,
        }));
        Self {
            name: StreamName::log(prefix),
            used_by: vec![Role::Gateway, Role::AuditExport],
            settings: with_common(settings, &subjects, MAX_MESSAGE_BYTES),
            percent: 60,
            max_records: MaxRecords::Unbounded,
        }
    }

    fn state_store(prefix: &str) -> Self {
        let words = RECORDS.iter().filter(|records| records.of == Role::AuditExport);
        let mut subjects: Vec<_> = words.map(|records| format!("{prefix}.ledger.{}.>", records.word)).collect();
        // Keys of a single word.
        subjects.push(format!("{prefix}.ledger.*"));
        Self {
            name: StreamName::state_store(prefix),
            used_by: vec![Role::AuditExport],
            settings: with_common(of_record(0), &subjects, MAX_MESSAGE_BYTES),
            percent: 6,
            max_records: MaxRecords::Fixed(MAX_OWN_RECORDS),
        }
    }

    fn of_records(prefix: &str, word: &str, owner: Role) -> Self {
        let (percent, max_bytes, max_records, max_age) = match word {
            RUN_RECORDS => (10, MAX_RUN_BYTES, MaxRecords::Chosen, 0),
            // An earlier version's deployment has given 95 percent to its streams: this much is left.
            APPROVAL_RECORDS => (2, MAX_APPROVAL_BYTES, MaxRecords::Chosen, 0),
            // One for each decision whose outcome is reported.
            OUTCOME_RECORDS => (1, MAX_COUNTER_BYTES, MaxRecords::Chosen, 0),
            GUARD_RECORDS => (1, MAX_COUNTER_BYTES, MaxRecords::Chosen, 0),
            CANDIDATE_RECORDS => (1, MAX_CANDIDATE_BYTES, MaxRecords::Fixed(MAX_OWN_RECORDS), 0),
            USAGE_RECORDS => (6, MAX_COUNTER_BYTES, MaxRecords::Chosen, 0),
            IDEMPOTENCY_RECORDS => (5, MAX_COUNTER_BYTES, MaxRecords::Chosen, IDEMPOTENCY_MAX_AGE_NANOS),
            KEYSTORE_RECORDS => (3, MAX_MESSAGE_BYTES, MaxRecords::Fixed(MAX_OWN_RECORDS), 0),
            _ => (1, MAX_MESSAGE_BYTES, MaxRecords::Fixed(MAX_OWN_RECORDS), 0),
        };
        let subjects = vec![format!("{prefix}.ledger.{word}.>")];
        Self {
            name: StreamName::of(prefix, word),
            used_by: vec![owner],
            settings: with_common(of_record(max_age), &subjects, max_bytes),
            percent,
            max_records,
        }
    }

    /// Whether the state store still has an earlier version's layout, one stream for all words.
    pub(super) fn has_old_layout(prefix: &str, config: &Value) -> bool {
        let all = format!("{prefix}.ledger.>");
        config.get("subjects").and_then(Value::as_array).is_some_and(|found| found.iter().any(|s| *s == *all))
    }

    pub(super) fn differences(&self, config: &Value) -> Vec<Difference> {
        let found = |name: &str| config.get(name).cloned().unwrap_or(Value::Null);
        let ours = self.settings.iter().filter(|(name, wanted)| !is_as_wanted(name, wanted, &found(name)));
        let ours = ours.map(|(name, wanted)| (name.as_str(), wanted.clone()));
        let foreign = UNUSED.iter().filter(|name| !self.settings.contains_key(**name) && !is_unused(&found(name)));
        let foreign = foreign.map(|name| (*name, Value::Null));
        // Settings that must not be used come first, as they matter most to an operator.
        let all = foreign.chain(ours);
        all.map(|(name, wanted)| Difference { setting: name.to_owned(), found: found(name), wanted }).collect()
    }

    pub(super) fn unknown(&self, config: &Value) -> Vec<String> {
        let members = config.as_object().into_iter().flatten();
        let unknown = members.filter(|(name, value)| {
            let known = *name == "name" || self.settings.contains_key(*name) || CHOICES.contains(&name.as_str());
            !known && !UNUSED.contains(&name.as_str()) && !is_unused(value)
        });
        unknown.map(|(name, _)| name.clone()).collect()
    }

    /// The stream's configuration: our settings and the operator's choices among `choices`.
    pub(super) fn request(&self, choices: Map<String, Value>) -> Value {
        let mut request = self.settings.clone();
        request.insert("name".to_owned(), self.name.as_str().into());
        for (name, value) in choices {
            if CHOICES.contains(&name.as_str()) {
                request.insert(name, value);
            }
        }
        Value::Object(request)
    }
}

fn of_record(max_age: u64) -> Map<String, Value> {
    object(json!({
        "max_age": max_age,
        "max_msgs_per_subject": 1,
        "discard_new_per_subject": false,
        "allow_msg_ttl": true,
        "duplicate_window": DUPLICATE_WINDOW_NANOS,
    }))
}

fn with_common(mut settings: Map<String, Value>, subjects: &[String], max_bytes: usize) -> Map<String, Value> {
    settings.extend(object(json!({
        "subjects": subjects,
        "retention": "limits",
        "storage": "file",
        // A full stream records nothing, so nothing is released; it never drops its oldest messages.
        "discard": "new",
        "allow_direct": true,
        "max_msg_size": max_bytes + MAX_HEADER_BYTES,
    })));
    settings
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

fn is_as_wanted(name: &str, wanted: &Value, found: &Value) -> bool {
    match (name, wanted) {
        // Longer does no harm, and no limit is the longest.
        ("max_age", wanted) if wanted.as_u64() != Some(0) => {
            let (found, wanted) = (found.as_u64().unwrap_or_default(), wanted.as_u64().unwrap_or_default());
            found == 0 || found >= wanted
        }
        ("subjects", Value::Array(wanted)) => found
            .as_array()
            .is_some_and(|found| found.len() == wanted.len() && wanted.iter().all(|subject| found.contains(subject))),
        (_, wanted) if is_unused(wanted) => is_unused(found),
        (_, wanted) => found == wanted,
    }
}

/// What a server reports for a setting that is not used: nothing, false, none or no limit.
fn is_unused(value: &Value) -> bool {
    matches!(value.as_str(), Some("none" | "default")) || is_nothing(value)
}

/// Like [`is_unused`], inside a setting: there a word is a name, for example the subject of a transform.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_i64().is_some_and(|number| matches!(number, 0 | -1)),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.values().all(is_nothing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As nats-server 2.15.1 says it of a stream that was made of `request`.
    fn said(spec: &StreamSpec) -> Value {
        let mut config = object(json!({
            "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_age": 0, "max_msgs_per_subject": -1,
            "max_msg_size": -1, "compression": "none", "mirror_direct": false, "sealed": false, "deny_delete": false,
            "deny_purge": false, "allow_rollup_hdrs": false, "consumer_limits": {}, "allow_msg_ttl": false,
            "metadata": {"_nats.level": "5"}, "num_replicas": 1,
        }));
        config.extend(object(spec.request(Map::new())));
        // Left out where it is off.
        config.remove("discard_new_per_subject");
        Value::Object(config)
    }

    fn changed(spec: &StreamSpec, name: &str, value: Value) -> Vec<String> {
        let mut config = said(spec);
        config.as_object_mut().unwrap().insert(name.to_owned(), value);
        spec.differences(&config).into_iter().map(|difference| difference.setting).collect()
    }

    #[test]
    fn each_stream_has_subjects_of_its_own_and_together_they_take_no_more_than_there_is() {
        let specs = StreamSpec::all("s0");
        assert!(specs.iter().map(|spec| spec.percent).sum::<u64>() <= 95);
        let names: Vec<_> = specs.iter().map(|spec| spec.name.as_str()).collect();
        let added = ["S0_APPROVALS", "S0_OUTCOMES", "S0_GUARDS", "S0_CANDIDATES"];
        let records = [&["S0_RUNS"], &added[..], &["S0_USAGE", "S0_IDEMPOTENCY", "S0_KEYSTORE"]].concat();
        assert_eq!((&names[..2], &names[2..]), (&["S0_LOG", "S0_LEDGER"][..], &records[..]));
        // What an earlier version left free.
        let added = specs.iter().filter(|spec| added.contains(&spec.name.as_str()));
        assert!(added.clone().map(|spec| spec.percent).sum::<u64>() <= 5);
        assert!(added.clone().all(|spec| spec.used_by == [Role::Evaluator]));
        for (key, stream) in [
            ("runs.a.r", "S0_RUNS"),
            ("approvals.a.x.y", "S0_APPROVALS"),
            ("outcomes.d.a.x", "S0_OUTCOMES"),
            ("guards.g.a.x", "S0_GUARDS"),
            ("candidates.a.x", "S0_CANDIDATES"),
            ("usage.message-auth", "S0_USAGE"),
            ("cursor.e", "S0_LEDGER"),
            ("k", "S0_LEDGER"),
        ] {
            assert_eq!(StreamName::of_record("s0", key).as_str(), stream);
        }
        assert_eq!(StreamName::of_record("a.b", "keystore.x").as_str(), "A_B_KEYSTORE");
    }

    #[test]
    fn a_created_stream_passes_the_check_whatever_the_operator_chose() {
        for spec in StreamSpec::all("s0") {
            assert_eq!(spec.differences(&said(&spec)), []);
            assert_eq!(spec.unknown(&said(&spec)), Vec::<String>::new());
            for (name, value) in [
                ("num_replicas", json!(3)),
                ("max_bytes", json!(1 << 30)),
                ("max_msgs", json!(9)),
                ("compression", json!("s2")),
                ("placement", json!({"tags": ["eu"]})),
                ("deny_delete", json!(true)),
                ("description", json!("ours")),
                ("metadata", json!({"owner": "x"})),
            ] {
                assert_eq!(changed(&spec, name, value), Vec::<String>::new(), "{name}");
            }
        }
    }

    #[test]
    fn every_setting_that_alters_recorded_data_fails_the_stream_check() {
        for spec in StreamSpec::all("s0") {
            for (name, value) in [
                ("subject_transform", json!({"src": "s0.log.*.d", "dest": "s0.log.x.d"})),
                ("subject_transform", json!({"src": "", "dest": "none"})),
                ("republish", json!({"src": "", "dest": "default"})),
                ("republish", json!({"src": ">", "dest": "$JS.API.STREAM.MSG.DELETE.S0_LOG"})),
                ("sources", json!([{"name": "OTHER"}])),
                ("mirror", json!({"name": "OTHER"})),
                ("sealed", json!(true)),
                ("deny_purge", json!(true)),
                ("allow_rollup_hdrs", json!(true)),
                ("allow_msg_counter", json!(true)),
                ("allow_msg_schedules", json!(true)),
                ("allow_atomic", json!(true)),
                ("allow_batched", json!(true)),
                ("subject_delete_marker_ttl", json!(1_000_000_000)),
                ("consumer_limits", json!({"max_ack_pending": 1})),
                ("max_consumers", json!(1)),
                ("no_ack", json!(true)),
                ("first_seq", json!(1000)),
                ("mirror_direct", json!(true)),
                ("persist_mode", json!("async")),
                ("discard", json!("old")),
                ("retention", json!("interest")),
                ("storage", json!("memory")),
                ("allow_direct", json!(false)),
                ("duplicate_window", json!(120_000_000_000_u64)),
                ("max_msg_size", json!(10)),
                ("max_msgs_per_subject", json!(7)),
                ("max_age", json!(3_600_000_000_000_u64)),
                ("subjects", json!(["s0.>"])),
            ] {
                assert_eq!(changed(&spec, name, value), [name], "{}", spec.name.as_str());
            }
        }
        let log = StreamSpec::log("s0");
        assert_eq!(changed(&log, "allow_msg_ttl", json!(true)), ["allow_msg_ttl"]);
    }

    #[test]
    fn longer_ages_pass_the_stream_check_and_unknown_settings_are_reported() {
        let log = StreamSpec::log("s0");
        for age in [0, LOG_MAX_AGE_NANOS + 1] {
            assert!(changed(&log, "max_age", json!(age)).is_empty());
        }
        assert_eq!(changed(&log, "max_age", json!(LOG_MAX_AGE_NANOS - 1)), ["max_age"]);
        let mut config = said(&log);
        let members = config.as_object_mut().unwrap();
        members.insert("allow_teleport".to_owned(), json!(true));
        members.insert("allow_other".to_owned(), json!(false));
        members.insert("new_mode".to_owned(), json!("default"));
        assert!(log.differences(&config).is_empty());
        assert_eq!(log.unknown(&config), ["allow_teleport"]);
    }

    #[test]
    fn the_state_store_of_an_earlier_version_is_recognised_by_its_subject() {
        assert!(StreamSpec::has_old_layout("s0", &json!({"subjects": ["s0.ledger.>"]})));
        assert!(!StreamSpec::has_old_layout("s0", &said(&StreamSpec::state_store("s0"))));
    }
}
