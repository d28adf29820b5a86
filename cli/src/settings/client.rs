//! The settings of commands that ask a server.

use std::path::PathBuf;
use std::time::Duration;

use stage0_contract::ApiKey;
use stage0_runtime::settings;
use stage0_runtime::settings::kinds::{fractional_seconds, https_url, path};
use stage0_runtime::settings::{Kind, Reader};

settings! {
    #[derive(Debug)]
    pub(crate) struct ClientSettings {
        /// Server to ask (default: the `stage0 dev` of the data directory)
        url: Option<reqwest::Url> = "url" "URL" in "Connection", optional, https_url();
        /// PEM file: the authority to trust instead of the system's
        ca: Option<PathBuf> = "ca" "FILE" in "Connection", optional, path();
        /// File with the API key. There is no flag for the key itself: others on the machine can read a command line
        key_file: Option<PathBuf> = "key-file" "FILE" in "Connection", optional, path();
        /// The account's API key, when no key file is given
        api_key: Option<ApiKey> = "api-key" "KEY" in "Connection" as VariableOnly, optional, api_key();
        /// Time for the whole exchange, from connecting to the last byte. `decisions export` applies it to each line
        /// instead, and it and `verify` have 600 seconds by default
        timeout: Duration = "timeout" "SECONDS" in "Connection", default(Duration::from_secs(5)), fractional_seconds();
    }
    given {
        data_dir: PathBuf = PathBuf::new();
        data_dir_is_named: bool = false;
        timeout_is_named: bool = false;
    }
}

fn api_key() -> Kind<ApiKey> {
    Kind::parsed(|text| ApiKey::parse(text.trim()).map_err(|error| error.to_string()))
}

impl ClientSettings {
    pub(super) fn with_data_dir(reader: &mut Reader) -> Option<Self> {
        let data_dir_is_named = reader.is_given("data-dir");
        let timeout_is_named = reader.is_given("timeout");
        let data_dir = reader.required("data-dir", &path());
        let settings = Self::read(reader)?;
        Some(Self { data_dir: data_dir?, data_dir_is_named, timeout_is_named, ..settings })
    }

    /// The timeout of an exchange that takes longer than others: `longer`, unless a timeout was named.
    pub(crate) fn timeout_or(&self, longer: Duration) -> Duration {
        if self.timeout_is_named { self.timeout } else { longer }
    }

    /// The flags that reach the same server again, without the key: also what a variable or the configuration file
    /// gave.
    pub(crate) fn server_flags(&self) -> Vec<(&'static str, String)> {
        let shown = |path: &PathBuf| path.display().to_string();
        let named = |is_named: bool, value: String| is_named.then_some(value);
        [
            ("--url", self.url.as_ref().map(ToString::to_string)),
            ("--ca", self.ca.as_ref().map(shown)),
            ("--data-dir", named(self.data_dir_is_named, shown(&self.data_dir))),
            ("--timeout", named(self.timeout_is_named, self.timeout.as_secs_f64().to_string())),
        ]
        .into_iter()
        .filter_map(|(flag, value)| Some((flag, value?)))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CommandKind, Flags, Sources, roles};
    use super::*;

    fn read(flags: Flags) -> ClientSettings {
        let sources = Sources::collect(CommandKind::Client, flags, [], |_| Ok(String::new()));
        roles::client(sources).unwrap()
    }

    #[test]
    fn a_long_exchange_has_a_longer_timeout_unless_one_was_named() {
        let longer = Duration::from_secs(600);
        let unnamed = read(Flags::new());
        assert_eq!((unnamed.timeout, unnamed.timeout_or(longer)), (Duration::from_secs(5), longer));
        let named = read(Flags::from([("timeout", "7".to_owned())]));
        assert_eq!((named.timeout, named.timeout_or(longer)), (Duration::from_secs(7), Duration::from_secs(7)));
    }
}
