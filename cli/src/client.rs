//! How commands ask a server: the connection of `stage0-client`, and what is about command lines.

use serde::de::DeserializeOwned;
use serde_json::Value;
use stage0_client::{Lookup, Target, TargetError};

use crate::out::plain;
use crate::settings::client::ClientSettings;

pub(crate) use stage0_client::Credential;
pub(crate) use stage0_client::connection::{Connection, ConnectionError, Download, Limit, Query, block_on, runtime};

/// The server, key and authority that the command's settings name.
pub(crate) fn target(settings: &ClientSettings, credential: Credential) -> Result<Target, TargetError> {
    lookup(settings).find(credential)
}

/// As [`target`], for a guard: what lies in the working directory chooses nothing.
pub(crate) fn guard_target(settings: &ClientSettings) -> Result<Target, TargetError> {
    Lookup { only_named_data_dir: true, ..lookup(settings) }.find(Credential::Account)
}

fn lookup(settings: &ClientSettings) -> Lookup {
    Lookup {
        url: settings.url.clone(),
        ca: settings.ca.clone(),
        key_file: settings.key_file.clone(),
        api_key: settings.api_key.clone(),
        data_dir: settings.data_dir.clone(),
        data_dir_is_named: settings.data_dir_is_named,
        ..Lookup::default()
    }
}

/// Parses what may also be printed as it came, with members that only a newer version knows.
pub(crate) fn parse<T: DeserializeOwned>(answer: &Value) -> Result<T, ConnectionError> {
    T::deserialize(answer).map_err(|error| ConnectionError::Unreadable(plain(&error.to_string())))
}
