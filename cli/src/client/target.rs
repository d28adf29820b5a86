//! Which server is asked, what is trusted and which key is sent.
//!
//! Owns the rules of precedence.
//! INVARIANT: a key that was found in a data directory, not named, goes to the server of that directory, or to one that
//! was named together with the directory; never to a URL that merely stands in an environment.

use std::path::{Path, PathBuf};

use reqwest::Url;
use stage0_backplane::check_secret_file;
use stage0_contract::{AccountId, ApiKey};

use super::ClientError;
use crate::dev_file::{DEV_FILE, DevFile, OPERATOR_KEY_FILE};
use crate::settings::client::ClientSettings;
use crate::settings::parse::https_url;

/// Whose key a command acts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// An account's.
    Account,
    /// The operator's, unless a file names another.
    Operator,
}

/// Everything about the other side.
pub(crate) struct Target {
    /// Its base.
    pub(crate) url: Url,
    /// What is trusted instead of the system's authorities.
    pub(crate) ca: Option<PathBuf>,
    /// What is sent.
    pub(crate) key: ApiKey,
    /// With the keys of a dev server: its account.
    pub(crate) account: Option<AccountId>,
}

impl Target {
    /// Finds it from settings and the data directory.
    pub(crate) fn find(settings: &ClientSettings, whose: Whose) -> Result<Self, ClientError> {
        let dev = match DevFile::read(&settings.data_dir) {
            Ok(dev) => dev,
            // Whoever names a server does not need the file.
            Err(_) if settings.url.is_some() => None,
            Err(error) => {
                return Err(ClientError::File { path: settings.data_dir.join(DEV_FILE), why: error.to_string() });
            }
        };
        let dev_url = dev.as_ref().map(|dev| base(&dev.url, &settings.data_dir)).transpose()?;
        let url = match (&settings.url, &dev_url) {
            (Some(url), _) | (None, Some(url)) => url.clone(),
            (None, None) => return Err(ClientError::NoServer(settings.data_dir.join(DEV_FILE))),
        };
        let is_dev = dev_url.as_ref() == Some(&url);
        let may_use_found_key = is_dev || settings.data_dir_is_named;
        let dev = dev.filter(|_| is_dev);
        let key = match (&settings.key_file, whose) {
            (Some(file), _) => read_key(file)?,
            (None, Whose::Account) => match (&settings.api_key, &dev) {
                (Some(key), _) => key.clone(),
                (None, Some(dev)) => {
                    refuse_exposed(&settings.data_dir.join(DEV_FILE))?;
                    dev.api_key.clone()
                }
                (None, None) => return Err(ClientError::NoKey(url)),
            },
            (None, Whose::Operator) if may_use_found_key => read_key(&settings.data_dir.join(OPERATOR_KEY_FILE))?,
            (None, Whose::Operator) => return Err(ClientError::NoOperatorKey(url)),
        };
        let ca = settings.ca.clone().or_else(|| dev.as_ref().map(|dev| dev.ca_file.clone()));
        // Another account's key acts in its own account: only the operator's needs to be told which.
        let account = dev.filter(|_| settings.key_file.is_none()).map(|dev| dev.account);
        Ok(Self { url, ca, key, account })
    }
}

fn base(url: &str, data_dir: &Path) -> Result<Url, ClientError> {
    https_url(url).map_err(|why| ClientError::File { path: data_dir.join(DEV_FILE), why: format!("its `url` {why}") })
}

fn refuse_exposed(path: &Path) -> Result<(), ClientError> {
    check_secret_file(path).map_err(|exposed| ClientError::File { path: path.to_owned(), why: exposed.to_string() })
}

/// The error never quotes the file: it may hold a key with a typing mistake.
pub(crate) fn read_key(path: &Path) -> Result<ApiKey, ClientError> {
    let unusable = |why: String| ClientError::File { path: path.to_owned(), why };
    refuse_exposed(path)?;
    let text = std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
    ApiKey::parse(text.trim()).map_err(|_| unusable("its content is not an API key".to_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use super::*;

    fn key(seed: u8) -> ApiKey {
        ApiKey::from_random([seed; 10], [seed; 20]).unwrap()
    }

    fn settings(data_dir: &Path) -> ClientSettings {
        ClientSettings {
            url: None,
            ca: None,
            key_file: None,
            api_key: None,
            data_dir: data_dir.to_owned(),
            data_dir_is_named: false,
            timeout: Duration::from_secs(5),
            timeout_is_named: false,
        }
    }

    fn write(path: &Path, text: impl AsRef<[u8]>, mode: u32) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn dev_dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let dev = DevFile {
            url: "https://localhost:8443".to_owned(),
            ca_file: "/ca.pem".into(),
            api_key: key(1),
            operator_key: key(2),
            account: AccountId::parse("a1").unwrap(),
        };
        write(&dir.path().join(DEV_FILE), serde_json::to_vec(&dev).unwrap(), 0o600);
        write(&dir.path().join(OPERATOR_KEY_FILE), format!("{}\n", key(2).expose()), 0o600);
        dir
    }

    fn elsewhere() -> Option<Url> {
        Some("https://elsewhere.example".parse().unwrap())
    }

    #[test]
    fn a_found_key_is_not_sent_to_another_server() {
        let dir = dev_dir();
        let settings = ClientSettings { url: elsewhere(), ..settings(dir.path()) };
        assert!(matches!(Target::find(&settings, Whose::Account), Err(ClientError::NoKey(_))));
        assert!(matches!(Target::find(&settings, Whose::Operator), Err(ClientError::NoOperatorKey(_))));
        let named = ClientSettings { data_dir_is_named: true, ..settings };
        assert!(matches!(Target::find(&named, Whose::Account), Err(ClientError::NoKey(_))));
        let target = Target::find(&named, Whose::Operator).unwrap();
        assert_eq!((target.key, target.ca, target.account), (key(2), None, None));
    }

    #[test]
    fn a_dev_server_needs_nothing_named() {
        let dir = dev_dir();
        let target = Target::find(&settings(dir.path()), Whose::Account).unwrap();
        assert_eq!((target.url.as_str(), target.key), ("https://localhost:8443/", key(1)));
        assert_eq!(target.ca, Some("/ca.pem".into()));
        assert_eq!(Target::find(&settings(dir.path()), Whose::Operator).unwrap().key, key(2));
    }

    #[test]
    fn a_named_key_comes_before_the_environments_and_that_before_the_dev_servers() {
        let dir = dev_dir();
        let file = dir.path().join("other.key");
        write(&file, key(3).expose(), 0o600);
        let mut settings = ClientSettings { api_key: Some(key(4)), ..settings(dir.path()) };
        assert_eq!(Target::find(&settings, Whose::Account).unwrap().key, key(4));
        settings.key_file = Some(file);
        assert_eq!(Target::find(&settings, Whose::Account).unwrap().key, key(3));
        assert_eq!(Target::find(&settings, Whose::Operator).unwrap().key, key(3));
    }

    #[test]
    fn a_broken_dev_file_stops_only_those_who_need_it() {
        let dir = dev_dir();
        std::fs::write(dir.path().join(DEV_FILE), "{").unwrap();
        assert!(matches!(Target::find(&settings(dir.path()), Whose::Account), Err(ClientError::File { .. })));
        let named = ClientSettings { url: elsewhere(), api_key: Some(key(4)), ..settings(dir.path()) };
        assert_eq!(Target::find(&named, Whose::Account).unwrap().key, key(4));
    }

    #[test]
    fn a_key_file_with_a_typing_mistake_is_not_quoted() {
        let dir = dev_dir();
        let file = dir.path().join("bad.key");
        write(&file, "s0_hunter2", 0o600);
        let settings = ClientSettings { key_file: Some(file), ..settings(dir.path()) };
        let Err(error) = Target::find(&settings, Whose::Account) else { panic!("it was taken") };
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn a_key_that_others_may_read_is_refused_and_the_command_that_mends_it_is_told() {
        let dir = dev_dir();
        let refused = |settings: &ClientSettings, whose| {
            let Err(error) = Target::find(settings, whose) else { panic!("it was taken") };
            error.to_string()
        };
        let file = dir.path().join("other.key");
        write(&file, key(3).expose(), 0o644);
        let named = ClientSettings { key_file: Some(file.clone()), ..settings(dir.path()) };
        let text = refused(&named, Whose::Account);
        assert!(text.ends_with(&format!("type `chmod 600 {}`", file.display())) && text.contains("0644"), "{text}");
        write(&file, key(3).expose(), 0o600);
        assert_eq!(Target::find(&named, Whose::Account).unwrap().key, key(3));
        let found = settings(dir.path());
        for (name, whose) in [(DEV_FILE, Whose::Account), (OPERATOR_KEY_FILE, Whose::Operator)] {
            let path = dir.path().join(name);
            write(&path, std::fs::read(&path).unwrap(), 0o604);
            assert!(refused(&found, whose).contains(&format!("chmod 600 {}", path.display())), "{name}");
        }
        let with_key = ClientSettings { api_key: Some(key(4)), ..settings(dir.path()) };
        assert_eq!(Target::find(&with_key, Whose::Account).unwrap().key, key(4), "nothing of the file is used");
    }

    #[test]
    fn no_server_says_how_to_get_one() {
        let dir = tempfile::tempdir().unwrap();
        let Err(error) = Target::find(&settings(dir.path()), Whose::Account) else { panic!("there is none") };
        assert!(error.to_string().contains("stage0 dev"), "{error}");
    }
}
