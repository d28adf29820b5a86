//! Where a file lies: inside of the working directory or not, and whether it holds secrets or controls the agent.
//!
//! Paths are compared as texts. A symbolic link inside of the working directory that leads out of it is not seen; a
//! `..` behind a name counts as outside, since the name may be such a link. Patterns are compared as patterns.
//! INVARIANT: the machine itself, a home, and directories of the system or of settings are no project: in them nothing
//! is inside, and the whole path is judged.

mod names;
mod own;
mod pattern;

pub(crate) use names::names_secret;
use names::{is_control, is_secret};
pub(crate) use own::OwnFiles;
pub(crate) use pattern::{pattern_names_control, pattern_names_secret};

use crate::effects::{CONTROL, OUTSIDE, READ, READ_SECRET, WRITE_SECRET};

/// Directories in which anybody may write.
const TEMPORARY: &[&str] = &["/tmp", "/var/tmp", "/private/tmp", "/private/var/tmp", "/var/folders"];
/// Directories of the system at the root: no project lies in them.
const SYSTEM: &[&str] = &[
    "Applications",
    "Library",
    "System",
    "Windows",
    "bin",
    "boot",
    "dev",
    "etc",
    "lib",
    "lib32",
    "lib64",
    "libx32",
    "proc",
    "run",
    "sbin",
    "sys",
    "usr",
    "var",
];
/// Files that swallow or pass on what is written.
const DEVICES: &[&str] = &["/dev/null", "/dev/stdout", "/dev/stderr", "/dev/stdin", "/dev/tty", "/dev/zero"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Zone {
    Inside,
    Temporary,
    Outside,
}

/// Where a call runs, and which files are the guard's own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Base<'a> {
    /// The project.
    pub(crate) cwd: Option<&'a str>,
    /// The directory that the call itself names: a `cd`, and never another project.
    pub(crate) moved: Option<&'a str>,
    pub(crate) own: &'a OwnFiles,
}

/// A path, as it is named in `target_resources` and as it is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Relative to the working directory if it lies inside; otherwise absolute, or as it was written.
    pub(crate) text: String,
    zone: Zone,
    secret: bool,
    control: bool,
}

impl Place {
    /// Reads a path that was written in `cwd`.
    pub(crate) fn of(cwd: Option<&str>, path: &str, own: &OwnFiles) -> Self {
        let path = path.strip_prefix("file://").unwrap_or(path).replace('\\', "/");
        let base = cwd.map(|cwd| segments("", &cwd.replace('\\', "/")));
        let home = path.starts_with('~');
        let absolute = path.starts_with('/') || has_drive(&path);
        let (whole, escaped) = match (&base, absolute || home) {
            (Some((base, _)), false) => joined(base.clone(), &path),
            _ => segments("", &path),
        };
        let inside = match &base {
            Some((base, _)) => !home && !escaped && whole.starts_with(base) && is_project(base),
            None => !home && !absolute && !escaped,
        };
        let climbs = climbs(&path);
        let text = match &base {
            Some((base, _)) if inside => shown(whole.get(base.len()..).unwrap_or_default(), ""),
            Some(_) if !home => shown(&whole, "/"),
            _ if absolute => shown(&whole, "/"),
            _ if escaped => path,
            _ => shown(&whole, ""),
        };
        let under = |root: &str| text == root || text.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'));
        let zone = match inside {
            true if climbs => Zone::Outside,
            true => Zone::Inside,
            false if DEVICES.contains(&text.as_str()) || TEMPORARY.iter().any(|root| under(root)) && !climbs => {
                Zone::Temporary
            }
            false => Zone::Outside,
        };
        let lower: Vec<String> = whole.iter().map(|segment| segment.to_lowercase()).collect();
        // Outside of the project every directory is more than an ordinary one already; the project itself, and a
        // directory in which anybody may write, hold much else.
        let root = text == "." || TEMPORARY.contains(&text.as_str());
        let is_known = base.is_some() || absolute || home;
        let is_own = is_known && own.cover(&lower, zone != Zone::Outside && !root);
        // What lies above the working directory says nothing about a file inside of it.
        let above = base.as_ref().filter(|_| inside).map_or(0, |(base, _)| base.len());
        let judged = lower.get(above..).unwrap_or_default();
        Self { text, zone, secret: is_secret(judged), control: is_own || is_control(judged) }
    }

    /// Whether it lies outside of the project and of temporary directories.
    pub(crate) fn is_outside(&self) -> bool {
        self.zone == Zone::Outside
    }

    /// The effect of reading it.
    pub(crate) fn read(&self) -> &'static str {
        if self.secret { READ_SECRET } else { READ }
    }

    /// The effect of changing it; `usual` for an ordinary file in the working directory or a temporary one.
    pub(crate) fn write(&self, usual: &'static str) -> &'static str {
        match self.zone {
            _ if self.control => CONTROL,
            _ if self.secret => WRITE_SECRET,
            Zone::Outside => OUTSIDE,
            Zone::Inside | Zone::Temporary => usual,
        }
    }

    /// Whether nothing is kept of what is written to it.
    pub(crate) fn is_device(&self) -> bool {
        DEVICES.contains(&self.text.as_str())
    }
}

/// Whether a directory can be a project. Worktrees lie in directories of agents, and tests in hidden temporary ones.
fn is_project(base: &[String]) -> bool {
    let names: Vec<&str> = base.iter().map(String::as_str).collect();
    let names = names.strip_prefix(&["private"]).unwrap_or(&names);
    let place = match names {
        [] | ["root" | "opt" | "srv" | "mnt" | "media" | "home" | "Users"] | ["home" | "Users", _] => false,
        ["usr", "src", _, ..] | ["usr", "local", "src", _, ..] => true,
        ["var", "www" | "folders" | "tmp" | "task", _, ..] | ["var", "lib", "jenkins", _, ..] => true,
        [first, ..] => !SYSTEM.contains(first),
    };
    let temporary = matches!(names, ["tmp", ..] | ["var", "tmp" | "folders", ..]);
    let hidden = |at: usize, name: &str| {
        let worktree = names.get(at + 2).is_some()
            && (names.get(at + 1) == Some(&"worktrees") && name != ".git" || name == ".worktrees")
            || name == ".worktrees" && names.get(at + 1).is_some();
        name.starts_with('.') && !worktree && (!temporary || !name.starts_with(".tmp"))
    };
    place && !names.iter().enumerate().any(|(at, name)| hidden(at, name))
}

/// Whether a `..` stands behind a name: if that is a symbolic link, it leads to somewhere else than the text says.
fn climbs(path: &str) -> bool {
    let mut named = false;
    path.split('/').any(|segment| {
        let climbs = named && segment == "..";
        named |= !matches!(segment, "" | "." | "..");
        climbs
    })
}

fn has_drive(path: &str) -> bool {
    let mut chars = path.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic()) && chars.next() == Some(':')
}

/// The path's segments without `.` and `..`, and whether a `..` led above its beginning.
fn segments(start: &str, path: &str) -> (Vec<String>, bool) {
    joined(start.split('/').filter(|segment| !segment.is_empty()).map(str::to_owned).collect(), path)
}

fn joined(mut whole: Vec<String>, path: &str) -> (Vec<String>, bool) {
    let mut escaped = false;
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => escaped |= whole.pop().is_none(),
            _ => whole.push(segment.to_owned()),
        }
    }
    (whole, escaped)
}

fn shown(segments: &[String], root: &str) -> String {
    match segments {
        [] if root.is_empty() => ".".to_owned(),
        _ => format!("{root}{}", segments.join("/")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(cwd: Option<&str>, path: &str) -> Place {
        Place::of(cwd, path, &OwnFiles::default())
    }

    fn place(path: &str) -> Place {
        of(Some("/home/ada/project"), path)
    }

    #[test]
    fn a_path_inside_is_relative_and_an_ordinary_write() {
        for (path, text) in [
            ("src/main.rs", "src/main.rs"),
            ("./src/./README.md", "src/README.md"),
            ("/home/ada/project/src/lib.rs", "src/lib.rs"),
            ("/home/ada/project", "."),
            ("../project/a", "a"),
            ("file:///home/ada/project/a", "a"),
        ] {
            assert_eq!((place(path).text.as_str(), place(path).write("w"), place(path).read()), (text, "w", READ));
        }
        assert_eq!(of(None, "src/a").write("w"), "w");
    }

    #[test]
    fn what_lies_outside_is_more_than_an_ordinary_write() {
        for path in ["/etc/hosts", "../other/a", "~/notes", "../../../../x", "/home/ada/project2/a", "C:\\x", ".."] {
            assert_eq!(place(path).write("w"), OUTSIDE, "{path}");
            assert_eq!(place(path).read(), READ, "{path}");
        }
        assert_eq!(of(None, "/a").write("w"), OUTSIDE);
        assert_eq!(of(None, "../a").write("w"), OUTSIDE);
        assert_eq!(of(Some("/"), "etc/passwd").write("w"), OUTSIDE, "the whole machine is no project");
        for path in ["/tmp/x", "/dev/null", "/var/tmp/a/b"] {
            assert_eq!(place(path).write("w"), "w", "{path}");
        }
        assert_eq!(place("/tmp/../etc/x").write("w"), OUTSIDE);
        assert_eq!(place("/tmpx").write("w"), OUTSIDE);
    }

    #[test]
    fn secrets_and_files_of_control_are_told_from_their_neighbours() {
        for path in
            [".env", "a/.env.local", "~/.ssh/config", "key.pem", "/proc/1/environ", ".aws/credentials", "X/.ENV"]
        {
            assert_eq!(place(path).read(), READ_SECRET, "{path}");
        }
        for path in [".env.example", "env", "src/environment.rs", "docs/secrets.md", "keys.rs"] {
            assert_eq!((place(path).read(), place(path).write("w")), (READ, "w"), "{path}");
        }
        for path in
            [".git/hooks/pre-commit", ".claude/settings.json", ".GIT/config", "sub/.envrc", ".cargo/config.toml"]
        {
            assert_eq!(place(path).write("w"), CONTROL, "{path}");
        }
        for path in [".github/workflows/ci.yml", ".gitignore", "git/config", "clause.md", "Cargo.toml"] {
            assert_eq!(place(path).write("w"), "w", "{path}");
        }
        assert_eq!(of(Some("/home/ada/.codex/worktrees/x"), "a.rs").write("w"), "w", "only what lies inside");
        for path in ["/home/ada/.claude.json", "AGENTS.md", "CLAUDE.md", ".idea/x", ".config/opencode/plugin/x.js"] {
            assert_eq!(place(path).write("w"), CONTROL, "{path}");
        }
        for path in ["dev.json", "prod.tfvars", "prod.env", ".env-prod", "id_rsa.bak", "/home/ada/.bash_history"] {
            assert_eq!(place(path).read(), READ_SECRET, "{path}");
        }
    }

    #[test]
    fn a_parent_behind_a_name_may_lead_anywhere() {
        for path in ["src/../README.md", "l/../etc/x", "/home/ada/project/l/../x", "/tmp/l/../x", "./a/b/../../c"] {
            assert_eq!(place(path).write("w"), OUTSIDE, "{path}");
        }
        assert_eq!(place("../project/a").write("w"), "w");
    }

    #[test]
    fn homes_and_directories_of_the_system_or_of_settings_are_no_project() {
        for cwd in
            ["/", "/etc", "/etc/x", "/home/ada", "/root", "/usr/lib", "/var", "/home/ada/.ssh", "/home/ada/.config/x"]
        {
            assert_ne!(of(Some(cwd), "a").write("w"), "w", "{cwd}");
        }
        for cwd in [
            "/work",
            "/home/ada/x",
            "/root/x",
            "/usr/src/app",
            "/var/www/x",
            "/opt/x",
            "/tmp/.tmpA1/x",
            "/home/ada/.claude/worktrees/x",
            "/home/ada/x/.worktrees/y",
        ] {
            assert_eq!(of(Some(cwd), "a").write("w"), "w", "{cwd}");
        }
        assert_eq!(of(Some("/home/ada/.claude"), "settings.json").write("w"), CONTROL);
        assert_eq!(of(Some("/home/ada/.kube"), "config").read(), READ_SECRET);
        assert_eq!(of(Some("/home/ada"), ".local/bin/x").write("w"), CONTROL);
    }
}
