//! `docs/CONFIGURATION.md`, written from the declarations. `stage0 settings > docs/CONFIGURATION.md` renews it; a test
//! compares.

use stage0_runtime::settings::{Absent, Places, Setting};

use super::{CommandKind, all};

/// Columns of a line of the page.
const WIDTH: usize = 100;

const HEAD: &str = "\
# Configuration

This file is written by `stage0 settings`; do not edit it.

Every setting can be given in three ways; the first that is found counts:

1. a flag: `--listen 127.0.0.1:8443`
2. an environment variable: `STAGE0_LISTEN=127.0.0.1:8443`
3. a TOML file named by `--config FILE` or `STAGE0_CONFIG`: `listen = \"127.0.0.1:8443\"`. Keys stand at the top
   level; one file may serve several roles, each reads its own settings.

Flags that a role does not have, keys and `STAGE0_…` variables that are no setting of any role are refused, with the
nearest known name. All mistakes are listed at once, each with where it came from and without the value of a
secret, and the exit code is 64. Other failures to start end with 1, with what to type where a setting mends it.

Variables of client libraries (`STAGE0_BASE_URL`, `STAGE0_API_BASE`, `STAGE0_TIMEOUT_SECONDS`, `STAGE0_MOCK_MODE`,
`STAGE0_DEBUG`, `STAGE0_MAX_RETRIES` and their like) may stand in the same environment: one line on standard error names
them, and they are ignored. Commands that ask a server take its address from `--url`, else `STAGE0_URL`, else
`STAGE0_BASE_URL`, else `STAGE0_API_BASE`.

## On the command line

`cargo install --path cli --locked` builds `stage0` and puts it on the `PATH` (`~/.cargo/bin`). On a terminal its lists
fit the width: the least important columns are cut or left out, and verdicts have colours; `NO_COLOR` or `TERM=dumb`
takes the colours away. In a pipe or a file nothing is cut or coloured, and every cell is there. Commands that print an
answer take `--json`, with the members that the API has; what is only for people, warnings included, goes to standard
error.

## How to read the lists

Each entry names the setting (flag and key of the file), its variable, what it does, and the commands that take it with
their defaults. *Client commands* are {clients}.
";

/// The whole page.
pub(crate) fn markdown() -> String {
    let clients = CommandKind::Client.commands().iter().map(|name| format!("`{name}`")).collect::<Vec<_>>();
    let mut page = HEAD.replace("{clients}", &clients.join(", "));
    let mut group = "";
    for setting in all() {
        if setting.group != group {
            group = setting.group;
            page.push_str(&format!("\n## {group}\n\n"));
        }
        page.push_str(&wrapped(&entry(&setting)));
    }
    page
}

fn entry(setting: &Setting) -> String {
    let Setting { name, value, help, .. } = setting;
    let remark = match setting.places {
        Places::NotInFile => "; not in a file",
        Places::VariableOnly => "; variable only",
        Places::Everywhere | Places::Hidden | Places::Secret => "",
    };
    let secret = if setting.is_secret() { " Never shown in messages." } else { "" };
    format!("- **`{name}`** `{value}` (`{}`{remark}): {help}.{secret} *{}*", setting.variable(), users(setting))
}

/// The commands that take it; what holds for all of them stands once.
fn users(setting: &Setting) -> String {
    let users = CommandKind::ALL.into_iter().filter_map(|kind| {
        let taken = kind.settings().into_iter().find(|taken| taken.name == setting.name)?;
        let default = match taken.absent {
            Absent::Required => "required".to_owned(),
            Absent::Optional => String::new(),
            Absent::Default(text) => format!("default `{}`", text()),
        };
        Some((kind, default))
    });
    let mut by_default: Vec<(String, Vec<String>)> = Vec::new();
    for (kind, default) in users {
        let user = if kind == CommandKind::Client { "client commands".to_owned() } else { kind.commands().join(", ") };
        match by_default.iter_mut().find(|(known, _)| *known == default) {
            Some((_, users)) => users.push(user),
            None => by_default.push((default, vec![user])),
        }
    }
    let groups = by_default.into_iter().map(|(default, users)| match default.is_empty() {
        true => users.join(", "),
        false => format!("{} ({default})", users.join(", ")),
    });
    groups.collect::<Vec<_>>().join("; ")
}

/// A list item whose further lines are indented.
fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    let mut width = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if width > 0 && width + 1 + length > WIDTH {
            lines.push_str("\n  ");
            width = 2;
        } else if width > 0 {
            lines.push(' ');
            width += 1;
        }
        lines.push_str(word);
        width += length;
    }
    lines.push('\n');
    lines
}
