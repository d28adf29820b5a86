//! Variables named `STAGE0_…` that are no settings: those of API clients, and misspelt ones.
//!
//! Variables of client libraries are ignored with a warning, because one environment often serves an agent and this
//! binary. INVARIANT: only names that configure a client are in the list. A name by which a person may try to configure
//! a server (`STAGE0_HOST`, `STAGE0_DRY_RUN`) is refused: ignoring it would leave the server open or the data deleted.

use stage0_runtime::settings::Setting;

/// The client libraries' names for the server's URL, in order of precedence; used where `STAGE0_URL` is not set.
pub(super) const URL_ALIASES: [&str; 2] = ["BASE_URL", "API_BASE"];

/// Other variables of client libraries, without `STAGE0_`.
const CLIENT_NAMES: [&str; 48] = [
    "AGENT_ID",
    "AGENT_NAME",
    "API_BASE_URL",
    "API_ENDPOINT",
    "API_HOST",
    "API_TIMEOUT",
    "API_TOKEN",
    "API_URL",
    "API_VERSION",
    "BACKOFF",
    "BACKOFF_FACTOR",
    "CACHE_TTL",
    "CACHE_TTL_SECONDS",
    "CA_BUNDLE",
    "CA_CERT",
    "CLIENT_ID",
    "CLIENT_NAME",
    "CONNECT_TIMEOUT",
    "DEBUG",
    "DENY_ON_ISSUES",
    "ENABLED",
    "ENDPOINT",
    "ENV",
    "ENVIRONMENT",
    "FAIL_CLOSED",
    "FAIL_MODE",
    "FAIL_OPEN",
    "INSECURE",
    "LOG_LEVEL",
    "MAX_RETRIES",
    "MOCK",
    "MOCK_MODE",
    "MODEL",
    "READ_TIMEOUT",
    "REQUEST_TIMEOUT",
    "RETRIES",
    "RETRY_COUNT",
    "RETRY_DELAY",
    "RISK_THRESHOLD",
    "SSL_VERIFY",
    "TIMEOUT_MS",
    "TIMEOUT_S",
    "TIMEOUT_SEC",
    "TIMEOUT_SECONDS",
    "TOKEN",
    "USER_AGENT",
    "VERBOSE",
    "VERIFY_SSL",
];

/// Words of other programs for what is a setting here.
const SYNONYMS: [(&str, &str); 20] = [
    ("ADDR", "listen"),
    ("ADDRESS", "listen"),
    ("API_BASE_URL", "url"),
    ("API_ENDPOINT", "url"),
    ("API_HOST", "url"),
    ("API_TOKEN", "api-key"),
    ("API_URL", "url"),
    ("BIND", "listen"),
    ("CA_BUNDLE", "ca"),
    ("ENDPOINT", "url"),
    ("HOST", "listen"),
    ("KEY", "api-key"),
    ("LOGLEVEL", "log"),
    ("PACKS", "policies"),
    ("PORT", "listen"),
    ("RUST_LOG", "log"),
    ("SERVER", "url"),
    ("SERVER_URL", "url"),
    ("THREADS", "workers"),
    ("TOKEN", "api-key"),
];

const MAX_NEAR: usize = 3;

pub(super) fn is_clients(name: &str) -> bool {
    CLIENT_NAMES.binary_search(&name).is_ok() || URL_ALIASES.contains(&name)
}

/// One line about the variables that are ignored, if there are any. Values are not shown.
pub(super) fn warning(settings: &[Setting], ignored: &[String]) -> Option<String> {
    let named = |name: &String| match near(settings, name, |_| true).first() {
        Some(setting) => format!("{name} (here {})", setting.variable()),
        None => name.clone(),
    };
    let names: Vec<String> = ignored.iter().map(named).collect();
    let why = "warning: ignored, because client libraries read them and this program does not";
    (!names.is_empty()).then(|| format!("{why}: {}", names.join(", ")))
}

pub(super) fn unknown_variable(settings: &[Setting], name: &str) -> String {
    format!("is not a setting{}", did_you_mean(&near(settings, name, |_| true), Setting::variable))
}

pub(super) fn unknown_key(settings: &[Setting], key: &str) -> String {
    let near = near(settings, key, Setting::in_file);
    format!("is not a setting{}", did_you_mean(&near, |setting| setting.name.to_owned()))
}

fn did_you_mean(near: &[Setting], name: impl Fn(&Setting) -> String) -> String {
    let names: Vec<String> = near.iter().map(|setting| format!("`{}`", name(setting))).collect();
    if names.is_empty() { String::new() } else { format!(" (did you mean {}?)", names.join(" or ")) }
}

/// Settings that may have been meant, the likeliest first. `name` is a variable or a key as it was written.
fn near(settings: &[Setting], name: &str, eligible: impl Fn(&Setting) -> bool) -> Vec<Setting> {
    let name = name.to_ascii_lowercase().replace(['_', '.'], "-");
    let name = name.strip_prefix("stage0-").unwrap_or(&name);
    // No setting is near so long a name, and the comparison below costs the product of both lengths.
    if name.len() > 64 {
        return Vec::new();
    }
    let eligible: Vec<Setting> = settings.iter().copied().filter(|setting| eligible(setting)).collect();
    if let Some(setting) = eligible.iter().find(|setting| setting.name == name) {
        return vec![*setting];
    }
    let synonym = SYNONYMS.iter().find(|(word, _)| word.to_ascii_lowercase().replace('_', "-") == name);
    let synonym = synonym.and_then(|(_, meant)| eligible.iter().find(|setting| setting.name == *meant));
    if let Some(setting) = synonym {
        return vec![*setting];
    }
    let most = (name.len() / 4).clamp(1, 3);
    let distances = eligible.iter().map(|setting| (distance(name, setting.name), *setting));
    let mut misspelt: Vec<_> = distances.filter(|(distance, _)| *distance <= most).collect();
    misspelt.sort_by_key(|(distance, _)| *distance);
    if let Some((least, _)) = misspelt.first().copied() {
        return misspelt.into_iter().filter(|(d, _)| *d == least).map(|(_, s)| s).take(MAX_NEAR).collect();
    }
    // `config-file` for `config`, `cert` for `tls-cert`.
    let longer = eligible.iter().copied().filter(|setting| begins(name, setting.name));
    if let Some(setting) = longer.max_by_key(|setting| setting.name.len()) {
        return vec![setting];
    }
    let parts = |setting: &Setting| begins(setting.name, name) || ends(setting.name, name);
    eligible.iter().copied().filter(parts).take(MAX_NEAR).collect()
}

fn begins(whole: &str, part: &str) -> bool {
    whole.strip_prefix(part).is_some_and(|rest| rest.starts_with('-'))
}

fn ends(whole: &str, part: &str) -> bool {
    whole.strip_suffix(part).is_some_and(|rest| rest.ends_with('-'))
}

/// The edit distance, with swapped neighbours as one edit; by bytes, for short names.
fn distance(from: &str, to: &str) -> usize {
    let (from, to) = (from.as_bytes(), to.as_bytes());
    let mut rows: [Vec<usize>; 2] = [Vec::new(), (0..=to.len()).collect()];
    for (row, one) in from.iter().enumerate() {
        let [older, above] = &rows;
        let mut current = vec![row + 1];
        for (column, other) in to.iter().enumerate() {
            let at = |cells: &[usize], column: usize| cells.get(column).copied().unwrap_or(usize::MAX - 1);
            let replaced = at(above, column) + usize::from(one != other);
            let mut least = replaced.min(at(above, column + 1) + 1).min(at(&current, column) + 1);
            let is_swapped =
                row > 0 && column > 0 && from.get(row - 1) == Some(other) && to.get(column - 1) == Some(one);
            if is_swapped {
                least = least.min(at(older, column - 1) + 1);
            }
            current.push(least);
        }
        let [_, above] = rows;
        rows = [above, current];
    }
    let [_, last] = rows;
    last.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::all;
    use super::*;

    fn names(found: &[Setting]) -> Vec<&'static str> {
        found.iter().map(|setting| setting.name).collect()
    }

    #[test]
    fn no_client_name_is_a_setting_and_the_list_can_be_searched() {
        assert!(CLIENT_NAMES.is_sorted() && CLIENT_NAMES.iter().all(|name| !URL_ALIASES.contains(name)));
        for setting in all() {
            let name = setting.variable();
            assert!(!is_clients(name.strip_prefix("STAGE0_").unwrap()), "{name} would be ignored");
        }
        for (_, meant) in SYNONYMS {
            assert!(all().iter().any(|setting| setting.name == meant), "{meant}");
        }
    }

    #[test]
    fn a_misspelt_name_gets_the_near_ones() {
        for (written, meant) in [
            ("STAGE0_LISTN", &["listen"][..]),
            ("STAGE0_LITSEN", &["listen"]),
            ("STAGE0_API_KYE", &["api-key"]),
            ("body_timeout_ms", &["body-timeout-ms"]),
            ("lissten", &["listen"]),
            ("STAGE0_CONFIG_FILE", &["config"]),
            ("STAGE0_NATS_URL", &["nats"]),
            ("STAGE0_PORT", &["listen"]),
            ("STAGE0_LOGLEVEL", &["log"]),
            ("STAGE0_CA_FILE", &["ca"]),
            ("STAGE0_POLICY", &["active-policy"]),
        ] {
            assert_eq!(names(&near(&all(), written, |_| true)), meant, "{written}");
        }
        assert!(names(&near(&all(), "STAGE0_CERT", |_| true)).contains(&"tls-cert"));
        assert!(near(&all(), "STAGE0_NONSENSE", |_| true).is_empty());
        assert!(near(&all(), &"x".repeat(1 << 20), |_| true).is_empty());
        assert_eq!(names(&near(&all(), "api_key", Setting::in_file)), [""; 0], "no name that a file may not have");
    }

    #[test]
    fn the_warning_is_one_line_that_names_all_of_them() {
        assert_eq!(warning(&all(), &[]), None);
        let text = warning(&all(), &["STAGE0_DEBUG".to_owned(), "STAGE0_LOG_LEVEL".to_owned()]).unwrap();
        assert!(!text.contains('\n') && text.contains("STAGE0_DEBUG, STAGE0_LOG_LEVEL (here STAGE0_LOG)"), "{text}");
    }
}
