//! The choice of server, trusted authorities and key.
//!
//! INVARIANT: a key that was found in a data directory is sent to the server of that directory, or to a server that was
//! named together with the directory; never to a URL that only the environment names.

use std::path::{Path, PathBuf};

use reqwest::Url;
use stage0_contract::{AccountId, ApiKey, https_url};
use stage0_secret_file::check_secret_file;

use crate::dev_file::{DEFAULT_DATA_DIR, DEV_FILE, DevFile, OPERATOR_KEY_FILE};

/// Which key goes with the calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential {
    /// A key of an account, such as an agent has.
    Account,
    /// The operator's key, unless a key file names another.
    Operator,
    /// The account's key that was given, else the operator's: for what both may do, such as stopping.
    AccountOrOperator,
    /// No key: for the few calls that need none.
    Nothing,
}

/// Why there is no server to ask, or no key to ask with. Never quotes the content of a file: it may be a key.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what is wrong")]
pub enum TargetError {
    #[error("no server: start `stage0 dev`, or name one with STAGE0_URL (there is no `{0}`)")]
    NoServer(PathBuf),
    #[error(
        "no server: name it with --url, --ca and --key-file, or the data directory of `stage0 dev` with --data-dir; a \
         guard does not look for one in the working directory"
    )]
    NoneNamed,
    #[error("no key for `{0}`: set STAGE0_KEY_FILE or STAGE0_API_KEY, or name another server")]
    NoKey(Url),
    #[error("no operator's key for `{0}`: name its file, or the keystore's data directory with `operator.key`")]
    NoOperatorKey(Url),
    #[error("cannot use `{path}`: {why}")]
    File { path: PathBuf, why: String },
    #[error("{name} {why}")]
    Variable { name: &'static str, why: String },
}

/// What is known about the server before it is looked for. [`Lookup::from_env`] reads it from the environment;
/// [`Lookup::default`] knows nothing, so that only a running `stage0 dev` is found.
#[derive(Debug, Clone)]
pub struct Lookup {
    /// The server. None: that of the data directory's `dev.json`.
    pub url: Option<Url>,
    /// PEM file with the authority to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// File with the key.
    pub key_file: Option<PathBuf>,
    /// The key, where no file is named.
    pub api_key: Option<ApiKey>,
    /// Where `stage0 dev` keeps its files.
    pub data_dir: PathBuf,
    /// Whether the data directory was named together with the server, so that its operator's key is meant for it.
    pub data_dir_is_named: bool,
    /// A data directory counts only where it was named. For guards, which run in the directory of an agent's project: a
    /// file in there must choose neither server nor authority nor key.
    pub only_named_data_dir: bool,
}

/// A server, and what is needed to talk to it.
#[derive(Debug, Clone)]
pub struct Target {
    /// The server.
    pub url: Url,
    /// PEM file with the authority to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// `None`: the call is made without a key.
    pub key: Option<ApiKey>,
    /// Where the key was found, for people.
    pub key_origin: Option<String>,
    /// The account of a dev server, if its keys are used.
    pub account: Option<AccountId>,
}

impl Default for Lookup {
    fn default() -> Self {
        Self {
            url: None,
            ca: None,
            key_file: None,
            api_key: None,
            data_dir: DEFAULT_DATA_DIR.into(),
            data_dir_is_named: false,
            only_named_data_dir: false,
        }
    }
}

impl Lookup {
    /// Reads `STAGE0_URL` (else `STAGE0_BASE_URL`, else `STAGE0_API_BASE`), `STAGE0_CA`, `STAGE0_KEY_FILE`,
    /// `STAGE0_API_KEY` and `STAGE0_DATA_DIR`. A variable that is empty counts as absent.
    pub fn from_env() -> Result<Self, TargetError> {
        Self::from_variables(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    fn from_variables(read: impl Fn(&str) -> Option<String>) -> Result<Self, TargetError> {
        let read = |name| read(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let urls = ["STAGE0_URL", "STAGE0_BASE_URL", "STAGE0_API_BASE"].into_iter();
        let url = urls.filter_map(|name| Some((name, read(name)?))).next();
        let url =
            url.map(|(name, text)| https_url(&text).map_err(|why| TargetError::Variable { name, why: why.to_owned() }));
        let api_key = read("STAGE0_API_KEY").map(|text| {
            let why = |_| TargetError::Variable { name: "STAGE0_API_KEY", why: "is not an API key".to_owned() };
            ApiKey::parse(&text).map_err(why)
        });
        Ok(Self {
            url: url.transpose()?,
            ca: read("STAGE0_CA").map(PathBuf::from),
            key_file: read("STAGE0_KEY_FILE").map(PathBuf::from),
            api_key: api_key.transpose()?,
            data_dir: read("STAGE0_DATA_DIR").map_or_else(|| DEFAULT_DATA_DIR.into(), PathBuf::from),
            data_dir_is_named: false,
            only_named_data_dir: false,
        })
    }

    /// Chooses server, authority and key.
    pub fn find(&self, credential: Credential) -> Result<Target, TargetError> {
        let dev_file = self.data_dir.join(DEV_FILE);
        let may_look = self.data_dir_is_named || !self.only_named_data_dir;
        let read = if may_look { DevFile::read(&self.data_dir) } else { Ok(None) };
        let dev = match read {
            Ok(dev) => dev,
            // A caller that names its server does not need the file.
            Err(_) if self.url.is_some() => None,
            Err(error) => return Err(unusable(&dev_file, &error)),
        };
        let bad_url = |why| unusable(&dev_file, &format!("its `url` {why}"));
        let dev_url = dev.as_ref().map(|dev| https_url(&dev.url).map_err(bad_url)).transpose()?;
        let url = match (&self.url, &dev_url) {
            (Some(url), _) | (None, Some(url)) => url.clone(),
            (None, None) if !may_look => return Err(TargetError::NoneNamed),
            (None, None) => return Err(TargetError::NoServer(dev_file)),
        };
        let dev = dev.filter(|_| dev_url.as_ref() == Some(&url));
        let (key, key_origin) = self.key(credential, &url, dev.as_ref())?.unzip();
        let ca = self.ca.clone().or_else(|| dev.as_ref().map(|dev| dev.ca_file.clone()));
        // An account's key acts in its own account. Only an operator's key needs the account, which a dev server has.
        let is_given =
            self.key_file.is_some() || (credential == Credential::AccountOrOperator && self.api_key.is_some());
        let account = dev.filter(|_| !is_given).map(|dev| dev.account);
        Ok(Target { url, ca, key, key_origin, account })
    }

    /// The key and where it was found. `dev` is that of the server at `url`, if it is a dev server.
    fn key(
        &self,
        credential: Credential,
        url: &Url,
        dev: Option<&DevFile>,
    ) -> Result<Option<(ApiKey, String)>, TargetError> {
        let of_file = |file: &Path| file.display().to_string();
        let may_use_found_key = dev.is_some() || self.data_dir_is_named;
        let found = match (&self.key_file, credential, &self.api_key) {
            (_, Credential::Nothing, _) => return Ok(None),
            (Some(file), _, _) => (read_key(file)?, of_file(file)),
            (None, Credential::Account | Credential::AccountOrOperator, Some(key)) => {
                (key.clone(), "STAGE0_API_KEY".to_owned())
            }
            (None, Credential::Account, None) => {
                let dev = dev.ok_or_else(|| TargetError::NoKey(url.clone()))?;
                let file = self.data_dir.join(DEV_FILE);
                refuse_exposed(&file)?;
                (dev.api_key.clone(), of_file(&file))
            }
            (None, Credential::Operator | Credential::AccountOrOperator, _) if may_use_found_key => {
                let file = self.data_dir.join(OPERATOR_KEY_FILE);
                (read_key(&file)?, of_file(&file))
            }
            (None, Credential::Operator, _) => return Err(TargetError::NoOperatorKey(url.clone())),
            (None, Credential::AccountOrOperator, None) => return Err(TargetError::NoKey(url.clone())),
        };
        Ok(Some(found))
    }
}

fn refuse_exposed(path: &Path) -> Result<(), TargetError> {
    check_secret_file(path).map_err(|exposed| unusable(path, &exposed))
}

fn unusable(path: &Path, why: &impl ToString) -> TargetError {
    TargetError::File { path: path.to_owned(), why: why.to_string() }
}

/// Reads a key from a file that only its owner may read. The error never quotes the file: it may hold a key with a
/// typing mistake.
pub fn read_key(path: &Path) -> Result<ApiKey, TargetError> {
    refuse_exposed(path)?;
    let text = std::fs::read_to_string(path).map_err(|error| unusable(path, &error))?;
    ApiKey::parse(text.trim()).map_err(|_| unusable(path, &"its content is not an API key"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn key(seed: u8) -> ApiKey {
        ApiKey::from_random([seed; 10], [seed; 20]).unwrap()
    }

    fn lookup(data_dir: &Path) -> Lookup {
        Lookup { data_dir: data_dir.to_owned(), ..Lookup::default() }
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
    fn a_guard_looks_only_into_a_data_directory_that_was_named() {
        let dir = dev_dir();
        let found = Lookup { only_named_data_dir: true, ..lookup(dir.path()) };
        assert!(matches!(found.find(Credential::Account), Err(TargetError::NoneNamed)));
        let url = Some("https://localhost:8443".parse().unwrap());
        let same_url = Lookup { url, api_key: Some(key(4)), ..found.clone() };
        let target = same_url.find(Credential::Account).unwrap();
        assert_eq!((target.key, target.ca), (Some(key(4)), None), "its authority is not trusted");
        let keyless = Lookup { api_key: None, ..same_url };
        assert!(matches!(keyless.find(Credential::Account), Err(TargetError::NoKey(_))), "its key is not used");
        let named = Lookup { data_dir_is_named: true, ..found };
        let target = named.find(Credential::Account).unwrap();
        assert_eq!((target.key, target.ca), (Some(key(1)), Some("/ca.pem".into())));
    }

    #[test]
    fn a_key_of_the_data_directory_is_not_sent_to_another_server() {
        let dir = dev_dir();
        let lookup = Lookup { url: elsewhere(), ..lookup(dir.path()) };
        assert!(matches!(lookup.find(Credential::Account), Err(TargetError::NoKey(_))));
        assert!(matches!(lookup.find(Credential::Operator), Err(TargetError::NoOperatorKey(_))));
        let named = Lookup { data_dir_is_named: true, ..lookup };
        assert!(matches!(named.find(Credential::Account), Err(TargetError::NoKey(_))));
        let target = named.find(Credential::Operator).unwrap();
        assert_eq!((target.key, target.ca, target.account), (Some(key(2)), None, None));
    }

    #[test]
    fn a_dev_server_is_found_without_flags() {
        let dir = dev_dir();
        let target = lookup(dir.path()).find(Credential::Account).unwrap();
        assert_eq!((target.url.as_str(), target.key), ("https://localhost:8443/", Some(key(1))));
        assert_eq!(target.ca, Some("/ca.pem".into()));
        assert_eq!(lookup(dir.path()).find(Credential::Operator).unwrap().key, Some(key(2)));
    }

    #[test]
    fn a_key_file_takes_precedence_over_the_environment_and_that_over_the_dev_server() {
        let dir = dev_dir();
        let file = dir.path().join("other.key");
        write(&file, key(3).expose(), 0o600);
        let mut lookup = Lookup { api_key: Some(key(4)), ..lookup(dir.path()) };
        assert_eq!(lookup.find(Credential::Account).unwrap().key, Some(key(4)));
        lookup.key_file = Some(file);
        assert_eq!(lookup.find(Credential::Account).unwrap().key, Some(key(3)));
        assert_eq!(lookup.find(Credential::Operator).unwrap().key, Some(key(3)));
    }

    #[test]
    fn what_both_may_do_takes_the_given_key_before_the_operators() {
        let dir = dev_dir();
        let both = Credential::AccountOrOperator;
        let found = lookup(dir.path()).find(both).unwrap();
        assert_eq!((found.key, found.account.is_some()), (Some(key(2)), true), "of a dev server, the operator's");
        assert_eq!(found.key_origin, Some(dir.path().join(OPERATOR_KEY_FILE).display().to_string()));
        let mut lookup = Lookup { api_key: Some(key(4)), ..lookup(dir.path()) };
        let given = lookup.find(both).unwrap();
        assert_eq!((given.key, given.account), (Some(key(4)), None), "the given key acts in its own account");
        assert_eq!(given.key_origin.as_deref(), Some("STAGE0_API_KEY"));
        (lookup.url, lookup.api_key) = (elsewhere(), None);
        assert!(matches!(lookup.find(both), Err(TargetError::NoKey(_))));
    }

    #[test]
    fn a_call_without_a_key_reads_none() {
        let dir = dev_dir();
        let absent = Some(dir.path().join("not-there.key"));
        let lookup = Lookup { key_file: absent, api_key: Some(key(4)), ..lookup(dir.path()) };
        assert_eq!(lookup.find(Credential::Nothing).unwrap().key, None);
    }

    #[test]
    fn a_broken_dev_file_stops_only_commands_that_need_it() {
        let dir = dev_dir();
        std::fs::write(dir.path().join(DEV_FILE), "{").unwrap();
        assert!(matches!(lookup(dir.path()).find(Credential::Account), Err(TargetError::File { .. })));
        let named = Lookup { url: elsewhere(), api_key: Some(key(4)), ..lookup(dir.path()) };
        assert_eq!(named.find(Credential::Account).unwrap().key, Some(key(4)));
    }

    #[test]
    fn a_malformed_key_file_is_not_quoted() {
        let dir = dev_dir();
        let file = dir.path().join("bad.key");
        write(&file, "s0_hunter2", 0o600);
        let lookup = Lookup { key_file: Some(file), ..lookup(dir.path()) };
        let Err(error) = lookup.find(Credential::Account) else { panic!("it was taken") };
        let text = format!("{error:?}");
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn a_key_file_that_others_can_read_is_refused_with_the_chmod_that_mends_it() {
        let dir = dev_dir();
        let refused = |lookup: &Lookup, credential| {
            let Err(error) = lookup.find(credential) else { panic!("it was taken") };
            error.to_string()
        };
        let file = dir.path().join("other.key");
        write(&file, key(3).expose(), 0o644);
        let named = Lookup { key_file: Some(file.clone()), ..lookup(dir.path()) };
        let text = refused(&named, Credential::Account);
        assert!(text.ends_with(&format!("type `chmod 600 {}`", file.display())) && text.contains("0644"), "{text}");
        write(&file, key(3).expose(), 0o600);
        assert_eq!(named.find(Credential::Account).unwrap().key, Some(key(3)));
        let found = lookup(dir.path());
        for (name, credential) in [(DEV_FILE, Credential::Account), (OPERATOR_KEY_FILE, Credential::Operator)] {
            let path = dir.path().join(name);
            write(&path, std::fs::read(&path).unwrap(), 0o604);
            assert!(refused(&found, credential).contains(&format!("chmod 600 {}", path.display())), "{name}");
        }
        let with_key = Lookup { api_key: Some(key(4)), ..lookup(dir.path()) };
        assert_eq!(with_key.find(Credential::Account).unwrap().key, Some(key(4)), "the file is not used");
    }

    #[test]
    fn without_a_server_the_error_names_stage0_dev() {
        let dir = tempfile::tempdir().unwrap();
        let Err(error) = lookup(dir.path()).find(Credential::Account) else { panic!("there is none") };
        assert!(error.to_string().contains("stage0 dev"), "{error}");
    }

    fn from(variables: &[(&str, &str)]) -> Result<Lookup, TargetError> {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned());
        Lookup::from_variables(find)
    }

    #[test]
    fn the_environment_names_server_key_and_authority() {
        let api_key = key(4).expose().to_owned();
        let all = [
            ("STAGE0_API_BASE", "https://api"),
            ("STAGE0_BASE_URL", "https://base"),
            ("STAGE0_URL", "https://url"),
            ("STAGE0_CA", "/ca.pem"),
            ("STAGE0_KEY_FILE", "/a.key"),
            ("STAGE0_API_KEY", api_key.as_str()),
            ("STAGE0_DATA_DIR", "/data"),
        ];
        let lookup = from(&all).unwrap();
        assert_eq!(lookup.url.unwrap().as_str(), "https://url/");
        assert_eq!((lookup.ca, lookup.key_file), (Some("/ca.pem".into()), Some("/a.key".into())));
        assert_eq!((lookup.api_key, lookup.data_dir), (Some(key(4)), "/data".into()));
        assert_eq!(from(&all[..2]).unwrap().url.unwrap().as_str(), "https://base/");
        assert_eq!(from(&[all[0], ("STAGE0_URL", " ")]).unwrap().url.unwrap().as_str(), "https://api/");
        let nothing = from(&[]).unwrap();
        assert_eq!((nothing.url, nothing.api_key, nothing.data_dir), (None, None, DEFAULT_DATA_DIR.into()));
    }

    #[test]
    fn a_bad_variable_is_named_and_a_key_in_it_is_not_quoted() {
        for (name, text) in [("STAGE0_URL", "http://h"), ("STAGE0_BASE_URL", "h"), ("STAGE0_API_KEY", "s0_hunter2")] {
            let error = from(&[(name, text)]).unwrap_err();
            assert!(error.to_string().starts_with(name), "{error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn nothing_that_is_printed_holds_a_key() {
        let dir = dev_dir();
        let lookup = Lookup { api_key: Some(key(4)), ..lookup(dir.path()) };
        let shown = format!("{lookup:?} {:?}", lookup.find(Credential::Account).unwrap());
        assert!(!shown.contains(key(4).expose()) && shown.contains("localhost"), "{shown}");
    }
}
