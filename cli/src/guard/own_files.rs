//! The files that a guard itself stands on: what changes one of them changes what the guard does.

use std::path::{Component, Path};

use super::settings_file::absolute;
use crate::settings::client::ClientSettings;

/// This program, the files that the settings name, and `more`. What is not there is named too: an agent could make it.
pub(super) fn own_files(settings: &ClientSettings, more: &[Option<&Path>]) -> Vec<String> {
    let home = std::env::var_os("HOME");
    let program = std::env::current_exe().ok();
    // Where a symbolic link led to the program.
    let called = std::env::args_os().next();
    let called = called.as_deref().map(Path::new).filter(|path| path.components().count() > 1);
    let data_dir = settings.data_dir_is_named.then_some(settings.data_dir.as_path());
    let named = [program.as_deref(), called, settings.key_file.as_deref(), settings.ca.as_deref(), data_dir];
    let mut texts = Vec::new();
    for path in named.iter().chain(more).copied().flatten() {
        add_forms(path, home.as_deref().map(Path::new), &mut texts);
    }
    texts
}

/// A path as it is written, and as symbolic links lead; of each also how a shell writes it below the home.
fn add_forms(path: &Path, home: Option<&Path>, texts: &mut Vec<String>) {
    let written = absolute(path).ok();
    let real = path.canonicalize().ok();
    let home = home.filter(|home| home.components().any(|part| matches!(part, Component::Normal(_))));
    for path in written.iter().chain(&real) {
        let below = home.and_then(|home| path.strip_prefix(home).ok()).map(|rest| format!("~/{}", rest.display()));
        for text in below.into_iter().chain([path.display().to_string()]) {
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::settings::{CommandKind, Flags, Sources, roles};

    fn settings(flags: &[(&'static str, &str)]) -> ClientSettings {
        let flags = flags.iter().map(|(name, value)| (*name, (*value).to_owned())).collect::<Flags>();
        roles::client(Sources::collect(CommandKind::Client, flags, [], |_| Ok(String::new()))).unwrap()
    }

    #[test]
    fn the_files_of_flags_and_the_program_are_a_guards_own() {
        let flags = [("key-file", "/k/agent"), ("ca", "/c/ca.crt"), ("data-dir", "/d/stage0")];
        let own = own_files(&settings(&flags), &[Some(Path::new("/t/rules.toml")), None]);
        let program = std::env::current_exe().unwrap().display().to_string();
        for path in ["/k/agent", "/c/ca.crt", "/d/stage0", "/t/rules.toml", program.as_str()] {
            assert!(own.iter().any(|own| own == path), "{path}: {own:?}");
        }
        let unnamed = settings(&[]);
        let default = absolute(&unnamed.data_dir).unwrap().display().to_string();
        assert!(!own_files(&unnamed, &[]).contains(&default), "no guard looks at it unless it is named");
    }

    #[test]
    fn a_path_is_known_as_it_is_written_as_links_lead_and_from_the_home() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap();
        fs::write(home.join("real.toml"), "").unwrap();
        symlink(home.join("real.toml"), home.join("link.toml")).unwrap();
        let forms = |path: &Path, home: Option<&Path>| {
            let mut texts = Vec::new();
            add_forms(path, home, &mut texts);
            texts
        };
        let shown = |name: &str| home.join(name).display().to_string();
        assert_eq!(
            forms(&home.join("link.toml"), Some(&home)),
            ["~/link.toml".to_owned(), shown("link.toml"), "~/real.toml".to_owned(), shown("real.toml")]
        );
        assert_eq!(forms(&home.join("gone.toml"), None), [shown("gone.toml")]);
        assert_eq!(forms(Path::new("/etc/x"), Some(Path::new("/"))), ["/etc/x"], "not every file lies in a home");
    }
}
