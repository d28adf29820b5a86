//! `docs/CONFIGURATION.md`, written from the table. `stage0 settings > docs/CONFIGURATION.md` renews it; a test compares.

use std::fmt::Write as _;

use super::table::SETTINGS;
use super::{Absent, Places, Role, Setting};

const HEAD: &str = "\
# Configuration

This file is written by `stage0 settings`; do not edit it.

Every setting can be given in three ways; the first that is found counts:

1. a flag: `--listen 127.0.0.1:8443`
2. an environment variable: `STAGE0_LISTEN=127.0.0.1:8443`
3. a TOML file named by `--config FILE` or `STAGE0_CONFIG`: `listen = \"127.0.0.1:8443\"`. Keys stand at the top level; one file may
   serve several roles, each reads its own settings.

Flags that a role does not have, keys and `STAGE0_…` variables that are no setting of any role are refused, with the
name that may have been meant. All mistakes are listed at once, each with where it came from and without the value of a
secret, and the exit code is 64. Other failures to start end with 1, with what to type where a setting mends it.

Variables of client libraries (`STAGE0_BASE_URL`, `STAGE0_API_BASE`, `STAGE0_TIMEOUT_SECONDS`, `STAGE0_MOCK_MODE`,
`STAGE0_DEBUG`, `STAGE0_MAX_RETRIES` and their like) may stand in the same environment: one line on standard error names
them, and they are ignored. Commands that ask a server take its address from `--url`, else `STAGE0_URL`, else
`STAGE0_BASE_URL`, else `STAGE0_API_BASE`.

## On the command line

`cargo install --path cli --locked` builds `stage0` and puts it on the `PATH` (`~/.cargo/bin`). On a terminal its lists
fit the width: the columns that tell least are cut or left out, and verdicts have colours; `NO_COLOR` or `TERM=dumb`
takes the colours away. In a pipe or a file nothing is cut or coloured, and every cell is there. Commands that print an
answer take `--json`, with the members that the API has; what is only for people, warnings included, goes to standard
error.
";

/// The whole page.
pub(crate) fn markdown() -> String {
    let mut page = HEAD.to_owned();
    let mut group = "";
    for setting in SETTINGS {
        if setting.group != group {
            group = setting.group;
            let _ = write!(
                page,
                "\n## {group}\n\n| setting | variable | used by (default) | meaning |\n| --- | --- | --- | --- |\n"
            );
        }
        let _ = writeln!(
            page,
            "| {} | `{}` | {} | {} |",
            name(setting),
            setting.variable(),
            users(setting),
            meaning(setting)
        );
    }
    page
}

fn name(setting: &Setting) -> String {
    match setting.places {
        Places::All => format!("`{}`", setting.name),
        Places::NotInFile => format!("`{}` (not in a file)", setting.name),
        Places::VariableOnly => format!("{} (variable only)", setting.name),
    }
}

fn users(setting: &Setting) -> String {
    let users = setting.uses.iter().map(|(role, absent)| match absent {
        Absent::Required => format!("{} (required)", user(*role)),
        Absent::Optional => user(*role).to_owned(),
        Absent::Default(text) => format!("{} (`{text}`)", user(*role)),
    });
    users.collect::<Vec<_>>().join(", ")
}

fn user(role: Role) -> &'static str {
    match role {
        Role::Client => "check, decisions, runs, usage, webhooks, keys, accounts, status",
        other => other.command(),
    }
}

fn meaning(setting: &Setting) -> String {
    if setting.secret { format!("{}. Never shown in messages", setting.help) } else { setting.help.to_owned() }
}
