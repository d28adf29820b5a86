//! Commands that a person types next.
//!
//! INVARIANT: such a command reaches the same server with the same key as the one before it. Without `--key-file` it
//! could act as the operator, for whom other rules hold.

use stage0_contract::{AccountId, PolicyVersion};

use super::compare::Looser;
use crate::args::policies::trials::CanaryArgs;
use crate::args::policies::{ActivateArgs, OfAccount, PlaceArgs};
use crate::out::plain;
use crate::settings::client::ClientSettings;

/// Stands for the file of a key that is not known here.
const OTHER_KEY: &str = "FILE";

/// The command with what reaches the same server with the same key.
pub(super) fn same_key(command: &str, settings: &ClientSettings) -> String {
    let key = settings.key_file.as_ref().map(|file| quoted(&file.display().to_string()));
    // The key itself is not shown. A shell in which the variable is not set refuses the command.
    let is_variable = settings.key_file.is_none() && settings.api_key.is_some();
    let variable = if is_variable { "STAGE0_API_KEY=\"${STAGE0_API_KEY:?}\" " } else { "" };
    format!("{variable}{command}{}", flags(key, settings))
}

/// The command with what reaches the same server, for a person with another key.
pub(super) fn other_key(command: &str, settings: &ClientSettings) -> String {
    format!("{command}{}", flags(Some(OTHER_KEY.to_owned()), settings))
}

/// The flags that name the same account.
pub(super) fn whose(of: &OfAccount) -> String {
    let account = of.account.as_ref().map(|account| format!(" --account {}", quoted(account.as_str())));
    let all = if of.all_accounts { " --all-accounts" } else { "" };
    format!("{}{all}", account.unwrap_or_default())
}

fn flags(key: Option<String>, settings: &ClientSettings) -> String {
    let server = settings.server_flags().into_iter().map(|(flag, value)| (flag, quoted(&value)));
    let all = server.chain(key.map(|key| ("--key-file", key)));
    all.map(|(flag, value)| format!(" {flag} {value}")).collect()
}

/// The command that would accept the change.
pub(super) fn accepting(
    version: &PolicyVersion,
    args: &ActivateArgs,
    looser: Looser,
    digest: Option<&str>,
    settings: &ClientSettings,
) -> String {
    let PlaceArgs { environment, floor, reason, expected, of } = &args.place;
    let CanaryArgs { canary, return_at_disagreement, return_at_errors, min_checks, .. } = &args.canary;
    let mut words = vec!["stage0".to_owned(), "policy".to_owned(), "activate".to_owned(), version.to_string()];
    let mut with = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            words.extend([name.to_owned(), quoted(value)]);
        }
    };
    with("--environment", environment.as_deref());
    with("--expected", expected.as_deref());
    with("--account", of.account.as_ref().map(AccountId::as_str));
    for (name, number) in [
        ("--canary", canary.map(u32::from)),
        ("--return-at-disagreement", return_at_disagreement.map(u32::from)),
        ("--return-at-errors", return_at_errors.map(u32::from)),
        ("--min-checks", *min_checks),
    ] {
        with(name, number.map(|number| number.to_string()).as_deref());
    }
    with("--accept-flips", Some(&looser.flips.to_string()));
    with("--replayed-until", looser.replayed_until.map(|until| until.to_string()).as_deref());
    with("--diff-digest", digest);
    with("--reason", Some(reason.as_deref().unwrap_or("WHY")));
    let flags = [("--floor", *floor), ("--all-accounts", of.all_accounts), ("--wait", args.wait), ("--json", of.json)];
    for (flag, given) in flags {
        words.extend(given.then(|| flag.to_owned()));
    }
    same_key(&words.join(" "), settings)
}

/// One word for a shell.
pub(super) fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '@' | '+' | ':');
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", plain(word).replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use stage0_contract::ApiKey;

    use super::*;

    fn settings() -> ClientSettings {
        ClientSettings {
            url: None,
            ca: None,
            key_file: None,
            api_key: None,
            data_dir: ".stage0".into(),
            data_dir_is_named: false,
            timeout: Duration::from_secs(5),
            timeout_is_named: false,
        }
    }

    #[test]
    fn a_word_for_a_shell_is_quoted_where_it_must_be() {
        for (word, shown) in [
            ("acme@1.2.0+0123456789ab", "acme@1.2.0+0123456789ab"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("$(rm)", "'$(rm)'"),
        ] {
            assert_eq!(quoted(word), shown);
        }
    }

    #[test]
    fn a_command_reaches_the_same_server_with_the_same_key() {
        assert_eq!(same_key("stage0 x", &settings()), "stage0 x", "what is found without flags needs none");
        let key = ApiKey::from_random([1; 10], [2; 20]).unwrap();
        let of_variable = ClientSettings { api_key: Some(key.clone()), ..settings() };
        let command = same_key("stage0 x", &of_variable);
        assert_eq!(command, "STAGE0_API_KEY=\"${STAGE0_API_KEY:?}\" stage0 x", "and never the key itself");
        let all = ClientSettings {
            url: Some("https://stage0.example.com".parse().unwrap()),
            ca: Some("/ca.pem".into()),
            key_file: Some("my keys/ada.key".into()),
            api_key: Some(key),
            data_dir: "/data".into(),
            data_dir_is_named: true,
            timeout: Duration::from_millis(2_500),
            timeout_is_named: true,
        };
        let server = "--url https://stage0.example.com/ --ca /ca.pem --data-dir /data --timeout 2.5";
        assert_eq!(same_key("stage0 x", &all), format!("stage0 x {server} --key-file 'my keys/ada.key'"));
        assert_eq!(other_key("stage0 x", &all), format!("stage0 x {server} --key-file FILE"));
    }
}
