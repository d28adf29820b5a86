//! `docs/CONFIGURATION.md`, written from the declarations. `stage0 settings > docs/CONFIGURATION.md` renews it; a test
//! compares.

use stage0_runtime::settings::{Absent, Places, Setting};

use super::{CommandKind, all};
use crate::out::wrapped;

const WIDTH: usize = 100;

/// The text before the list; `{clients}` stands for the names of the client commands.
const HEAD: &str = include_str!("../../assets/configuration.md");

pub(crate) fn markdown() -> String {
    let clients = CommandKind::Client.commands().iter().map(|name| format!("`{name}`")).collect::<Vec<_>>();
    let mut page = HEAD.replace("{clients}", &clients.join(", "));
    let mut group = "";
    for setting in all() {
        if setting.group != group {
            group = setting.group;
            page.push_str(&format!("\n## {group}\n\n"));
        }
        page.push_str(&wrapped(&entry(&setting), WIDTH, 2));
        page.push('\n');
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
