//! Collects the text that was given for each setting, with its origin; nothing is interpreted yet. A pure function of
//! flags, environment and the file's text.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use stage0_runtime::settings::{Given, Mistake, Places, Reader, Setting};
use stage0_secret_file::check_secret_file;

use super::{CommandKind, all, in_order, unknown};

/// Variables that only tests of this repository read.
const TEST_ONLY: [&str; 18] = [
    "STAGE0_TEST_NATS_SERVER",
    "STAGE0_TEST_NATS_IMAGE",
    "STAGE0_TEST_NATS",
    "STAGE0_TEST_COMPOSE",
    "STAGE0_TEST_BALANCER_IMAGE",
    "STAGE0_TEST_IMAGE",
    "STAGE0_CRASH_ROUNDS",
    "STAGE0_FUZZ_SECONDS",
    "STAGE0_SEED",
    "STAGE0_FAULTS",
    "STAGE0_FAULT_CHECKS",
    "STAGE0_FAULT_REPORT",
    "STAGE0_ALLOW_NO_POWERCUT",
    "STAGE0_SIM_SEED",
    "STAGE0_SIM_SEEDS",
    "STAGE0_TAKEOVER_KEYS",
    "STAGE0_BIN",
    "STAGE0_LAST_RELEASE",
];

const PREFIX: &str = "STAGE0_";

pub(crate) type Flags = BTreeMap<&'static str, String>;

/// Everything that was given to one command: of each setting the value with the highest precedence.
pub(crate) struct Sources {
    kind: CommandKind,
    settings: Vec<Setting>,
    given: BTreeMap<&'static str, Given>,
    mistakes: Vec<Mistake>,
    ignored: Vec<String>,
}

impl Sources {
    pub(crate) fn collect(
        kind: CommandKind,
        flags: Flags,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        read: impl FnOnce(&Path) -> io::Result<String>,
    ) -> Self {
        let mut settings = kind.settings();
        // A file or an environment may serve several commands, so what others take is known too.
        let others = all().into_iter().filter(|other| settings.iter().all(|setting| setting.name != other.name));
        let others: Vec<Setting> = others.collect();
        settings.extend(others);
        let settings = in_order(settings);
        let mut sources = Self { kind, settings, given: BTreeMap::new(), mistakes: Vec::new(), ignored: Vec::new() };
        // Highest precedence first: `offer` keeps the value that is there.
        for (name, text) in flags {
            sources.offer(name, text, format!("--{name}"));
        }
        sources.take_environment(environment);
        if let Some(config) = sources.given.get("config") {
            let (path, origin) = (PathBuf::from(&config.text), config.origin.clone());
            match read(&path) {
                Ok(text) => sources.take_file(&path, &text),
                Err(error) => sources.refuse(origin, format!("cannot read `{}`: {error}", path.display())),
            }
        }
        sources
    }

    pub(crate) fn warning(&self) -> Option<String> {
        unknown::warning(&self.settings, &self.ignored)
    }

    pub(crate) fn into_reader(self) -> Reader {
        Reader::new(self.settings, self.given, self.mistakes)
    }

    fn take_environment(&mut self, environment: impl IntoIterator<Item = (OsString, OsString)>) {
        let known: BTreeMap<String, &'static str> = self.settings.iter().map(|s| (s.variable(), s.name)).collect();
        let is_ours = |(name, _): &(OsString, _)| name.as_encoded_bytes().starts_with(PREFIX.as_bytes());
        let mut ours: Vec<_> = environment.into_iter().filter(is_ours).collect();
        ours.sort();
        let mut urls = [None, None];
        for (variable, text) in ours {
            let variable = variable.to_string_lossy().into_owned();
            let name = variable.strip_prefix(PREFIX).unwrap_or_default();
            let alias = unknown::URL_ALIASES.iter().position(|alias| *alias == name);
            let url = alias.filter(|_| self.kind == CommandKind::Client).and_then(|alias| urls.get_mut(alias));
            match (known.get(&variable).copied(), url, text.into_string()) {
                (Some(name), _, Ok(text)) => self.offer(name, text, variable),
                (None, Some(url), Ok(text)) => *url = Some((text, variable)),
                (Some(_), _, Err(_)) | (None, Some(_), Err(_)) => {
                    self.refuse(variable, "is not valid UTF-8".to_owned());
                }
                (None, None, _) if TEST_ONLY.contains(&variable.as_str()) => {}
                (None, None, _) if unknown::is_clients(name) => self.ignored.push(variable),
                (None, None, _) => {
                    let text = unknown::unknown_variable(&self.settings, &variable);
                    self.refuse(variable, text);
                }
            }
        }
        // After `STAGE0_URL`, whatever the order of the environment. Client libraries ignore an empty URL.
        for (text, variable) in urls.into_iter().flatten().filter(|(text, _)| !text.trim().is_empty()) {
            self.offer("url", text, variable);
        }
    }

    fn take_file(&mut self, path: &Path, text: &str) {
        let table = match text.parse::<toml::Table>() {
            Ok(table) => table,
            Err(error) => {
                // The whole error would quote the line, which may hold a secret; its message does not.
                let (line, column) = line_and_column(text, error.span().map_or(0, |span| span.start));
                let why = error.message().lines().collect::<Vec<_>>().join(", ");
                return self.refuse(format!("{}:{line}:{column}", path.display()), format!("is not valid TOML: {why}"));
            }
        };
        for (key, value) in table {
            let origin = format!("`{key}` in {}", path.display());
            let setting = self.settings.iter().find(|setting| setting.in_file() && setting.name == key).copied();
            let Some(setting) = setting else {
                self.refuse(origin, unknown::unknown_key(&self.settings, &key));
                continue;
            };
            let Some(text) = as_text(&value) else {
                self.refuse(origin, "must be a string, a number, a Boolean or a list of strings".to_owned());
                continue;
            };
            if setting.places == Places::Secret
                && let Err(exposed) = check_secret_file(path)
            {
                self.refuse(origin.clone(), format!("is a secret, and {exposed}"));
            }
            self.offer(setting.name, text, origin);
        }
    }

    fn offer(&mut self, name: &'static str, text: String, origin: String) {
        self.given.entry(name).or_insert(Given { text, origin });
    }

    fn refuse(&mut self, origin: String, text: String) {
        self.mistakes.push(Mistake { origin, text });
    }
}

/// Line and column, both from 1, of a byte of the text.
fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
    (line, before.rsplit('\n').next().unwrap_or_default().chars().count() + 1)
}

/// A list becomes what the flag would be: its items joined by commas.
fn as_text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Array(items) => {
            items.iter().map(toml::Value::as_str).collect::<Option<Vec<_>>>().map(|items| items.join(","))
        }
        toml::Value::Boolean(yes) => Some(yes.to_string()),
        toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(flags: &[(&'static str, &str)], environment: &[(&str, &str)], file: &str) -> Sources {
        let flags = flags.iter().map(|(name, text)| (*name, (*text).to_owned())).collect();
        let environment = environment.iter().map(|(name, text)| (OsString::from(name), OsString::from(text)));
        Sources::collect(CommandKind::Gateway, flags, environment, |_| Ok(file.to_owned()))
    }

    fn text(sources: &Sources, name: &str) -> String {
        sources.given[name].text.clone()
    }

    #[test]
    fn the_source_with_precedence_wins_for_each_setting() {
        let file = "listen = '3'\nworkers = 3\nlog = 'three'";
        let variables =
            [("STAGE0_CONFIG", "x"), ("STAGE0_LISTEN", "2"), ("STAGE0_WORKERS", "2"), ("STAGE0_TEST_NATS_SERVER", "t")];
        let sources = collect(&[("listen", "1")], &variables, file);
        assert_eq!(
            (text(&sources, "listen"), text(&sources, "workers"), text(&sources, "log")),
            ("1".into(), "2".into(), "three".into())
        );
        assert!(sources.mistakes.is_empty(), "{:?}", sources.mistakes);
    }

    #[test]
    fn an_unknown_name_is_refused_with_its_origin() {
        let variables = [("STAGE0_CONFIG", "s.toml"), ("STAGE0_LISTN", "x"), ("HOME", "x")];
        let sources = collect(&[], &variables, "lsten = 1\nconfig = 'x'\napi-key = 's0_x'\n[gateway]\nlisten = 'x'");
        let origins: Vec<_> = sources.mistakes.iter().map(|m| m.origin.as_str()).collect();
        let keys = ["`api-key` in s.toml", "`config` in s.toml", "`gateway` in s.toml", "`lsten` in s.toml"];
        assert_eq!(origins[0], "STAGE0_LISTN");
        let mut rest = origins[1..].to_vec();
        rest.sort_unstable();
        assert_eq!(rest, keys);
    }

    #[test]
    fn a_file_that_is_not_toml_is_named_by_line_and_not_quoted() {
        let sources = collect(&[("config", "s.toml")], &[], "log = 'info'\nnats-password = hunter2\n");
        let [mistake] = sources.mistakes.as_slice() else { panic!("{:?}", sources.mistakes) };
        assert!(mistake.origin.starts_with("s.toml:2:"), "{mistake:?}");
        assert!(mistake.text.starts_with("is not valid TOML: ") && mistake.text.contains("quoted"), "{mistake:?}");
        assert!(!mistake.text.contains("hunter2") && !mistake.text.contains('\n'), "{mistake:?}");
    }

    #[test]
    fn no_message_about_toml_quotes_the_file() {
        for secret in
            ["hunter2", "'hunter2", "\"hunter2\\q\"", "12hunter2", "[hunter2", "{hunter2", "0xhunter2", "hunter2 = 3"]
        {
            let file = format!("nats-password = {secret}\n");
            let sources = collect(&[("config", "s.toml")], &[], &file);
            assert!(!sources.mistakes.is_empty(), "{secret}");
            assert!(!format!("{:?}", sources.mistakes).contains("hunter2"), "{secret}: {:?}", sources.mistakes);
        }
    }

    #[test]
    fn variables_of_client_libraries_are_ignored_except_their_urls_in_client_commands() {
        let collect = |role, variables: &[(&str, &str)], flags: Flags| {
            let variables = variables.iter().map(|(name, text)| (OsString::from(name), OsString::from(text)));
            Sources::collect(role, flags, variables, |_| Ok("url = 'https://file'".to_owned()))
        };
        let base = ("STAGE0_BASE_URL", "https://base");
        let api = ("STAGE0_API_BASE", "https://api");
        let url = ("STAGE0_URL", "https://url");
        let config = ("STAGE0_CONFIG", "s.toml");
        for (given, meant, origin) in [
            (&[api, base, url, config][..], "https://url", "STAGE0_URL"),
            (&[api, base, config], "https://base", "STAGE0_BASE_URL"),
            (&[api, config], "https://api", "STAGE0_API_BASE"),
            (&[api, ("STAGE0_BASE_URL", " "), config], "https://api", "STAGE0_API_BASE"),
            (&[("STAGE0_API_BASE", ""), config], "https://file", "`url` in s.toml"),
        ] {
            let sources = collect(CommandKind::Client, given, Flags::new());
            assert!(sources.mistakes.is_empty() && sources.warning().is_none(), "{:?}", sources.mistakes);
            let value = &sources.given["url"];
            assert_eq!((value.text.as_str(), value.origin.as_str()), (meant, origin));
        }
        let sources =
            collect(CommandKind::Client, &[api, base, url], Flags::from([("url", "https://flag".to_owned())]));
        assert_eq!(text(&sources, "url"), "https://flag");

        let sources =
            collect(CommandKind::Gateway, &[base, api, ("STAGE0_MOCK_MODE", "1"), ("STAGE0_PORT", "1")], Flags::new());
        assert!(!sources.given.contains_key("url"));
        let warning = sources.warning().unwrap();
        for name in ["STAGE0_BASE_URL", "STAGE0_API_BASE", "STAGE0_MOCK_MODE"] {
            assert!(warning.contains(name), "{warning}");
        }
        let refused =
            Mistake { origin: "STAGE0_PORT".into(), text: "is not a setting (did you mean `STAGE0_LISTEN`?)".into() };
        assert_eq!(sources.mistakes, [refused]);
    }

    #[test]
    fn a_list_in_a_file_is_read_like_its_flag() {
        let sources = collect(
            &[("config", "s.toml")],
            &[],
            "nats = ['nats://a', 'nats://b']\nlog = 1979-05-27\ndangerous-relaxed-sync = true",
        );
        assert_eq!(text(&sources, "dangerous-relaxed-sync"), "true");
        assert_eq!(text(&sources, "nats"), "nats://a,nats://b");
        assert_eq!(sources.mistakes[0].origin, "`log` in s.toml");
    }
}
