//! Names of a project's tasks: `make test`, `npm run build`.

use super::Found;
use super::lex::Word;

/// Parts of names that say what a task does in the project itself, and parts that only say on what.
const NEAR: &[&str] = &[
    "all",
    "analyze",
    "assemble",
    "audit",
    "bench",
    "benchmark",
    "build",
    "bundle",
    "check",
    "checks",
    "clean",
    "clippy",
    "codegen",
    "compile",
    "coverage",
    "cov",
    "debug",
    "default",
    "dev",
    "doc",
    "docs",
    "e2e",
    "eslint",
    "fast",
    "fix",
    "fmt",
    "format",
    "generate",
    "gen",
    "help",
    "integration",
    "jest",
    "lint",
    "linter",
    "list",
    "mypy",
    "package",
    "prettier",
    "pytest",
    "quick",
    "run",
    "spec",
    "specs",
    "start",
    "static",
    "style",
    "test",
    "tests",
    "tsc",
    "type",
    "typecheck",
    "types",
    "typing",
    "ui",
    "unit",
    "validate",
    "verify",
    "vet",
    "vitest",
    "watch",
    "web",
    "api",
    "app",
    "client",
    "server",
    "core",
    "lib",
    "ci",
    "ts",
    "js",
    "py",
    "rs",
    "rust",
    "go",
    "java",
    "python",
    "node",
    "frontend",
    "backend",
    "unittest",
    "classes",
    "jar",
    "main",
    "only",
    "out",
    "target",
    "dist",
];
/// Parts that say that a task reaches further than the project.
const FAR: &[&str] = &[
    "deploy",
    "destroy",
    "drop",
    "migrate",
    "nuke",
    "prod",
    "production",
    "publish",
    "purge",
    "push",
    "release",
    "reset",
    "rollback",
    "seed",
    "ship",
    "staging",
    "teardown",
    "undeploy",
    "undo",
    "uninstall",
    "upload",
    "wipe",
];

/// Judges the operands of a program that runs tasks. INVARIANT: a name of which any part is not known is unknown.
pub(super) fn judge(operands: &[&Word], found: &mut Found) {
    for word in operands {
        let text = word.text.as_str();
        if text.contains('=') {
            found.unknown("a variable that may change what programs do");
            continue;
        }
        let parts = parts(text);
        if parts.iter().any(|part| FAR.iter().any(|far| part.starts_with(far))) {
            found.add("deploy");
        } else if !parts.iter().all(|part| NEAR.contains(&part.as_str()) || part.chars().all(|c| c.is_ascii_digit())) {
            found.unknown("a task of the project whose name does not say what it does");
        }
    }
}

/// A name in small letters, split where its case changes and at everything that is no letter or digit.
fn parts(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut lower = false;
    for c in text.chars() {
        let ends = !c.is_ascii_alphanumeric() || lower && c.is_ascii_uppercase();
        if ends {
            parts.push(String::new());
        }
        lower = c.is_ascii_lowercase() || c.is_ascii_digit();
        if c.is_alphanumeric() {
            parts.last_mut().into_iter().for_each(|part| part.extend(c.to_lowercase()));
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_split_at_its_case_and_its_separators() {
        for (name, expected) in [
            ("test", vec!["test"]),
            ("test:unit", vec!["test", "unit"]),
            ("publishToMavenCentral", vec!["publish", "to", "maven", "central"]),
            (":app:assembleDebug", vec!["app", "assemble", "debug"]),
            ("DEPLOY", vec!["deploy"]),
            ("reset-db", vec!["reset", "db"]),
        ] {
            assert_eq!(parts(name), expected, "{name}");
        }
    }
}
