//! The choice of server, trusted authorities and key.
//!
//! INVARIANT: a key that was found in a data directory is sent to the server of that directory, or to a server that was
//! named together with the directory; never to a URL that only the environment names.

use std::error::Error;
use std::path::{Path, PathBuf};

use reqwest::Url;
use stage0_backplane::check_secret_file;
use stage0_contract::{AccountId, ApiKey};

use super::ClientError;
use crate::dev_file::{DEV_FILE, DevFile, OPERATOR_KEY_FILE};
use crate::settings::client::ClientSettings;
use stage0_runtime::settings::kinds::https_url;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Credential {
    Account,
    /// The operator's key, unless `--key-file` names another.
    Operator,
    /// The account's key that was given, else the operator's: for what both may do, such as stopping.
    AccountOrOperator,
    /// No key: for the few calls that need none.
    Nothing,
}

pub(crate) struct Target {
    pub(crate) url: Url,
    pub(crate) ca: Option<PathBuf>,
    /// `None`: the call is made without a key.
    pub(crate) key: Option<ApiKey>,
    /// Where the key was found, for people.
    pub(crate) key_origin: Option<String>,
    /// The account of a dev server, if its keys are used.
    pub(crate) account: Option<AccountId>,
}

impl Target {
    pub(crate) fn find(settings: &ClientSettings, credential: Credential) -> Result<Self, ClientError> {
        let dev = match DevFile::read(&settings.data_dir) {
            Ok(dev) => dev,
            // A command that names its server does not need the file.
            Err(_) if settings.url.is_some() => None,
            Err(error) => return Err(unusable(&settings.data_dir.join(DEV_FILE), error)),
        };
        let bad_url = |why| unusable(&settings.data_dir.join(DEV_FILE), format!("its `url` {why}"));
        let dev_url = dev.as_ref().map(|dev| https_url().parse(&dev.url).map_err(bad_url)).transpose()?;
        let url = match (&settings.url, &dev_url) {
            (Some(url), _) | (None, Some(url)) => url.clone(),
            (None, None) => return Err(ClientError::NoServer(settings.data_dir.join(DEV_FILE))),
        };
        let is_dev = dev_url.as_ref() == Some(&url);
        let may_use_found_key = is_dev || settings.data_dir_is_named;
        let dev = dev.filter(|_| is_dev);
        let operator_key = settings.data_dir.join(OPERATOR_KEY_FILE);
        let of_file = |file: &Path| file.display().to_string();
        let found = match (&settings.key_file, credential, &settings.api_key) {
            (_, Credential::Nothing, _) => None,
            (Some(file), _, _) => Some((read_key(file)?, of_file(file))),
            (None, Credential::Account | Credential::AccountOrOperator, Some(key)) => {
                Some((key.clone(), "STAGE0_API_KEY".to_owned()))
            }
            (None, Credential::Account, None) => match &dev {
                Some(dev) => {
                    let file = settings.data_dir.join(DEV_FILE);
                    refuse_exposed(&file)?;
                    Some((dev.api_key.clone(), of_file(&file)))
                }
                None => return Err(ClientError::NoKey(url)),
            },
            (None, Credential::Operator | Credential::AccountOrOperator, _) if may_use_found_key => {
                Some((read_key(&operator_key)?, of_file(&operator_key)))
            }
            (None, Credential::Operator, _) => return Err(ClientError::NoOperatorKey(url)),
            (None, Credential::AccountOrOperator, None) => return Err(ClientError::NoKey(url)),
        };
        let ca = settings.ca.clone().or_else(|| dev.as_ref().map(|dev| dev.ca_file.clone()));
        // An account's key acts in its own account. Only an operator's key needs the account, which a dev server has.
        let is_given =
            settings.key_file.is_some() || (credential == Credential::AccountOrOperator && settings.api_key.is_some());
        let account = dev.filter(|_| !is_given).map(|dev| dev.account);
        let (key, key_origin) = found.unzip();
        Ok(Self { url, ca, key, key_origin, account })
    }
}

fn refuse_exposed(path: &Path) -> Result<(), ClientError> {
    check_secret_file(path).map_err(|exposed| unusable(path, exposed))
}

fn unusable(path: &Path, source: impl Into<Box<dyn Error + Send + Sync>>) -> ClientError {
    ClientError::File { path: path.to_owned(), source: source.into() }
}

/// The error never quotes the file: it may hold a key with a typing mistake.
pub(crate) fn read_key(path: &Path) -> Result<ApiKey, ClientError> {
    refuse_exposed(path)?;
    let text = std::fs::read_to_string(path).map_err(|error| unusable(path, error))?;
    ApiKey::parse(text.trim()).map_err(|_| unusable(path, "its content is not an API key"))
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
    fn a_key_of_the_data_directory_is_not_sent_to_another_server() {
        let dir = dev_dir();
        let settings = ClientSettings { url: elsewhere(), ..settings(dir.path()) };
        assert!(matches!(Target::find(&settings, Credential::Account), Err(ClientError::NoKey(_))));
        assert!(matches!(Target::find(&settings, Credential::Operator), Err(ClientError::NoOperatorKey(_))));
        let named = ClientSettings { data_dir_is_named: true, ..settings };
        assert!(matches!(Target::find(&named, Credential::Account), Err(ClientError::NoKey(_))));
        let target = Target::find(&named, Credential::Operator).unwrap();
        assert_eq!((target.key, target.ca, target.account), (Some(key(2)), None, None));
    }

    #[test]
    fn a_dev_server_is_found_without_flags() {
        let dir = dev_dir();
        let target = Target::find(&settings(dir.path()), Credential::Account).unwrap();
        assert_eq!((target.url.as_str(), target.key), ("https://localhost:8443/", Some(key(1))));
        assert_eq!(target.ca, Some("/ca.pem".into()));
        assert_eq!(Target::find(&settings(dir.path()), Credential::Operator).unwrap().key, Some(key(2)));
    }

    #[test]
    fn a_key_file_takes_precedence_over_the_environment_and_that_over_the_dev_server() {
        let dir = dev_dir();
        let file = dir.path().join("other.key");
        write(&file, key(3).expose(), 0o600);
        let mut settings = ClientSettings { api_key: Some(key(4)), ..settings(dir.path()) };
        assert_eq!(Target::find(&settings, Credential::Account).unwrap().key, Some(key(4)));
        settings.key_file = Some(file);
        assert_eq!(Target::find(&settings, Credential::Account).unwrap().key, Some(key(3)));
        assert_eq!(Target::find(&settings, Credential::Operator).unwrap().key, Some(key(3)));
    }

    #[test]
    fn what_both_may_do_takes_the_given_key_before_the_operators() {
        let dir = dev_dir();
        let both = Credential::AccountOrOperator;
        let found = Target::find(&settings(dir.path()), both).unwrap();
        assert_eq!((found.key, found.account.is_some()), (Some(key(2)), true), "of a dev server, the operator's");
        assert_eq!(found.key_origin, Some(dir.path().join(OPERATOR_KEY_FILE).display().to_string()));
        let mut settings = ClientSettings { api_key: Some(key(4)), ..settings(dir.path()) };
        let given = Target::find(&settings, both).unwrap();
        assert_eq!((given.key, given.account), (Some(key(4)), None), "the given key acts in its own account");
        assert_eq!(given.key_origin.as_deref(), Some("STAGE0_API_KEY"));
        (settings.url, settings.api_key) = (elsewhere(), None);
        assert!(matches!(Target::find(&settings, both), Err(ClientError::NoKey(_))));
    }

    #[test]
    fn a_call_without_a_key_reads_none() {
        let dir = dev_dir();
        let absent = Some(dir.path().join("not-there.key"));
        let settings = ClientSettings { key_file: absent, api_key: Some(key(4)), ..settings(dir.path()) };
        assert_eq!(Target::find(&settings, Credential::Nothing).unwrap().key, None);
    }

    #[test]
    fn a_broken_dev_file_stops_only_commands_that_need_it() {
        let dir = dev_dir();
        std::fs::write(dir.path().join(DEV_FILE), "{").unwrap();
        assert!(matches!(Target::find(&settings(dir.path()), Credential::Account), Err(ClientError::File { .. })));
        let named = ClientSettings { url: elsewhere(), api_key: Some(key(4)), ..settings(dir.path()) };
        assert_eq!(Target::find(&named, Credential::Account).unwrap().key, Some(key(4)));
    }

    #[test]
    fn a_malformed_key_file_is_not_quoted() {
        let dir = dev_dir();
        let file = dir.path().join("bad.key");
        write(&file, "s0_hunter2", 0o600);
        let settings = ClientSettings { key_file: Some(file), ..settings(dir.path()) };
        let Err(error) = Target::find(&settings, Credential::Account) else { panic!("it was taken") };
        let text = format!("{error:?}");
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn a_key_file_that_others_can_read_is_refused_with_the_chmod_that_mends_it() {
        let dir = dev_dir();
        let refused = |settings: &ClientSettings, credential| {
            let Err(error) = Target::find(settings, credential) else { panic!("it was taken") };
            crate::failure::describe(&error.into())
        };
        let file = dir.path().join("other.key");
        write(&file, key(3).expose(), 0o644);
        let named = ClientSettings { key_file: Some(file.clone()), ..settings(dir.path()) };
        let text = refused(&named, Credential::Account);
        assert!(text.ends_with(&format!("type `chmod 600 {}`", file.display())) && text.contains("0644"), "{text}");
        write(&file, key(3).expose(), 0o600);
        assert_eq!(Target::find(&named, Credential::Account).unwrap().key, Some(key(3)));
        let found = settings(dir.path());
        for (name, credential) in [(DEV_FILE, Credential::Account), (OPERATOR_KEY_FILE, Credential::Operator)] {
            let path = dir.path().join(name);
            write(&path, std::fs::read(&path).unwrap(), 0o604);
            assert!(refused(&found, credential).contains(&format!("chmod 600 {}", path.display())), "{name}");
        }
        let with_key = ClientSettings { api_key: Some(key(4)), ..settings(dir.path()) };
        assert_eq!(Target::find(&with_key, Credential::Account).unwrap().key, Some(key(4)), "the file is not used");
    }

    #[test]
    fn without_a_server_the_error_names_stage0_dev() {
        let dir = tempfile::tempdir().unwrap();
        let Err(error) = Target::find(&settings(dir.path()), Credential::Account) else { panic!("there is none") };
        assert!(error.to_string().contains("stage0 dev"), "{error}");
    }
}
