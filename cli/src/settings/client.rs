//! What the commands that ask a server make of their settings.

use std::path::PathBuf;
use std::time::Duration;

use stage0_contract::ApiKey;

use super::parse::{https_url, path, seconds};
use super::{Mistakes, Reader, Sources, table};

/// Settings of commands that ask a server.
#[derive(Debug)]
pub(crate) struct ClientSettings {
    /// The server, when one is named.
    pub(crate) url: Option<reqwest::Url>,
    /// The authority to trust instead of the system's.
    pub(crate) ca: Option<PathBuf>,
    /// File with the key.
    pub(crate) key_file: Option<PathBuf>,
    /// The key itself, from the environment.
    pub(crate) api_key: Option<ApiKey>,
    /// Where `stage0 dev` or the keystore keeps its files.
    pub(crate) data_dir: PathBuf,
    /// Whether the data directory was named, or is just the default.
    pub(crate) data_dir_is_named: bool,
    /// For the whole exchange.
    pub(crate) timeout: Duration,
    /// Whether that was named, or is just the default.
    pub(crate) timeout_is_named: bool,
}

impl ClientSettings {
    /// Reads them, or lists what is wrong.
    pub(crate) fn read(sources: Sources) -> Result<Self, Mistakes> {
        let mut reader = Reader::new(sources);
        let url = reader.optional(&table::URL, https_url);
        let ca = reader.optional(&table::CA, path);
        let key_file = reader.optional(&table::KEY_FILE, path);
        let api_key = reader.optional(&table::API_KEY, |text| ApiKey::parse(text.trim()).map_err(|e| e.to_string()));
        let data_dir_is_named = reader.is_given(&table::DATA_DIR);
        let data_dir = reader.required(&table::DATA_DIR, path);
        let timeout_is_named = reader.is_given(&table::TIMEOUT);
        let timeout = reader.required(&table::TIMEOUT, seconds);
        let built = data_dir.zip(timeout);
        reader.finish(built.map(|(data_dir, timeout)| Self {
            url,
            ca,
            key_file,
            api_key,
            data_dir,
            data_dir_is_named,
            timeout,
            timeout_is_named,
        }))
    }

    /// For an exchange that takes longer than others: `longer`, unless a time was named.
    pub(crate) fn timeout_or(&self, longer: Duration) -> Duration {
        if self.timeout_is_named { self.timeout } else { longer }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Flags, Role};
    use super::*;

    fn read(flags: Flags) -> ClientSettings {
        ClientSettings::read(Sources::collect(Role::Client, flags, [], |_| Ok(String::new()))).unwrap()
    }

    #[test]
    fn what_takes_longer_has_longer_unless_a_time_was_named() {
        let longer = Duration::from_secs(600);
        let unnamed = read(Flags::new());
        assert_eq!((unnamed.timeout, unnamed.timeout_or(longer)), (Duration::from_secs(5), longer));
        let named = read(Flags::from([("timeout", "7".to_owned())]));
        assert_eq!((named.timeout, named.timeout_or(longer)), (Duration::from_secs(7), Duration::from_secs(7)));
    }
}
