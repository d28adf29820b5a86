//! Names of files that hold secrets, and of files that decide what runs. All in lower case.

/// Directories whose files hold secrets.
pub(super) const SECRET_DIRECTORIES: &[&str] =
    &[".aws", ".azure", ".docker", ".gnupg", ".kube", ".password-store", ".ssh", ".stage0", "gcloud", "keychains"];
pub(super) const SECRET_NAMES: &[&str] = &[
    ".credentials",
    ".credentials.json",
    ".dockercfg",
    ".git-credentials",
    ".htpasswd",
    ".netrc",
    ".npmrc",
    ".pgpass",
    ".pypirc",
    ".vault-token",
    "_netrc",
    "credentials",
    "credentials.json",
    "credentials.toml",
    "environ",
    "gshadow",
    "id_dsa",
    "id_ecdsa",
    "id_ed25519",
    "id_rsa",
    "master.key",
    "secrets.env",
    "secrets.json",
    "secrets.toml",
    "secrets.yaml",
    "secrets.yml",
    "shadow",
    ".bash_history",
    ".claude.json",
    ".envrc",
    ".python_history",
    ".psql_history",
    ".zsh_history",
    "application_default_credentials.json",
    "auth.json",
    "dev.json",
    "hosts.yml",
    "logins.json",
    "service-account.json",
    "service_account.json",
    "serviceaccount.json",
];
pub(super) const SECRET_ENDINGS: &[&str] = &[
    ".jks",
    ".kdbx",
    ".key",
    ".keystore",
    ".p12",
    ".pem",
    ".pfx",
    ".env",
    ".p8",
    ".ppk",
    ".tfstate",
    ".tfstate.backup",
    ".tfvars",
    ".tfvars.json",
];
/// Files such as `.env.example` show which settings there are, and hold none.
pub(super) const EXAMPLE_ENDINGS: &[&str] = &[".dist", ".example", ".sample", ".template"];

/// Directories whose files decide what an agent, its guard, git or an editor runs.
pub(super) const CONTROL_DIRECTORIES: &[&str] = &[
    ".claude",
    ".codex",
    ".cursor",
    ".gemini",
    ".git",
    ".githooks",
    ".husky",
    ".opencode",
    ".stage0",
    ".vscode",
    "autostart",
    "launchagents",
    "launchdaemons",
    "systemd",
    ".devcontainer",
    ".idea",
];
pub(super) const CONTROL_NAMES: &[&str] = &[
    ".bash_login",
    ".bash_logout",
    ".bash_profile",
    ".bashrc",
    ".envrc",
    ".gitattributes",
    ".gitconfig",
    ".gitmodules",
    ".mcp.json",
    ".pre-commit-config.yaml",
    ".profile",
    ".zlogin",
    ".zprofile",
    ".zshenv",
    ".zshrc",
    "authorized_keys",
    "crontab",
    "opencode.json",
    "opencode.jsonc",
    "sudoers",
    ".bash_aliases",
    ".claude.json",
    ".cursorrules",
    ".inputrc",
    ".mise.toml",
    ".vimrc",
    ".windsurfrules",
    ".xinitrc",
    ".xprofile",
    ".xsessionrc",
    ".yarnrc.yml",
    ".zshrc.local",
    "agents.md",
    "claude.local.md",
    "claude.md",
    "config.fish",
    "gemini.md",
    "guard.toml",
    "lefthook.yml",
    "lefthook.yaml",
    "managed-settings.json",
    "mise.toml",
    "sitecustomize.py",
    "usercustomize.py",
];

/// Beginnings of names under which keys and passwords are kept: `id_rsa.bak`, `.netrc.old`.
const SECRET_BEGINNINGS: &[&str] =
    &[".env-", ".env.", ".env_", ".git-credentials", ".netrc", "id_dsa", "id_ecdsa", "id_ed25519", "id_rsa"];
/// Pairs of a directory and a file or directory in it that decide what runs.
const CONTROL_PAIRS: &[(&str, &str)] = &[
    (".config", "fish"),
    (".config", "git"),
    (".config", "nvim"),
    (".config", "opencode"),
    (".config", "stage0"),
    (".local", "bin"),
    (".stage0", "guard"),
    ("state", "stage0"),
];

pub(super) fn is_secret(segments: &[String]) -> bool {
    let Some((name, directories)) = segments.split_last() else { return false };
    let example = EXAMPLE_ENDINGS.iter().any(|ending| name.ends_with(ending));
    let public = name.ends_with(".pub");
    let dotenv = name == ".env" || SECRET_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning));
    !example
        && !public
        && (dotenv
            || SECRET_NAMES.contains(&name.as_str())
            || SECRET_ENDINGS.iter().any(|ending| name.ends_with(ending))
            || SECRET_DIRECTORIES.contains(&name.as_str())
            || directories.iter().any(|directory| SECRET_DIRECTORIES.contains(&directory.as_str())))
}

pub(super) fn is_control(segments: &[String]) -> bool {
    let Some((name, directories)) = segments.split_last() else { return false };
    let cargo = directories.last().is_some_and(|directory| directory == ".cargo") && name.starts_with("config");
    let pair = segments.windows(2).any(|two| {
        CONTROL_PAIRS.iter().any(|(first, second)| {
            two.first().is_some_and(|name| name == first) && two.last().is_some_and(|name| name == second)
        })
    });
    cargo
        || pair
        || CONTROL_NAMES.contains(&name.as_str())
        || segments.iter().any(|segment| CONTROL_DIRECTORIES.contains(&segment.as_str()))
}

/// Whether a text, wherever it stands, names a file that holds secrets.
pub(crate) fn names_secret(text: &str) -> bool {
    let lower: Vec<String> =
        text.to_lowercase().split(['/', '=', ':', ',', '@', '{', '}']).map(str::to_owned).collect();
    (1..=lower.len()).any(|end| lower.get(end.saturating_sub(1)..end).is_some_and(is_secret))
}
