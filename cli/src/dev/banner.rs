//! The banner that `stage0 dev` prints once it is ready: a command to paste, and where to read more.

use std::fmt;
use std::path::Path;

use stage0_contract::PolicyVersion;

use crate::args::VERSION;
use crate::dev_file::API_KEY_FILE;

/// What the banner shows. It shows no key: the command reads the key from its file.
pub(super) struct Banner<'a> {
    pub(super) url: &'a str,
    pub(super) data_dir: &'a Path,
    pub(super) ca: &'a Path,
    pub(super) policy: &'a PolicyVersion,
}

pub(crate) const ACTION: &str = r#"{
      "goal": "Deploy build 7 to production",
      "success_criteria": ["health checks pass"],
      "side_effects": ["deploy"],
      "constraints": ["approval_required"],
      "context": {"approval_status": "pending"}
    }"#;

impl fmt::Display for Banner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, data_dir, ca, policy } = self;
        let (ca, key) = (quoted(ca), quoted(&data_dir.join(API_KEY_FILE)));
        writeln!(f, "Stage0 {VERSION} is ready at {url}\n")?;
        writeln!(f, "Ask whether an action may run:\n")?;
        writeln!(f, "  curl --cacert {ca} \\")?;
        writeln!(f, "    -H \"x-api-key: $(cat {key})\" \\")?;
        writeln!(f, "    -H 'content-type: application/json' \\")?;
        writeln!(f, "    -d '{ACTION}' \\")?;
        writeln!(f, "    {url}/check\n")?;
        writeln!(f, "docs    {url}/docs (OpenAPI: {url}/openapi.json)")?;
        writeln!(f, "policy  {policy}")?;
        writeln!(f, "data    {} (keys: `api.key`, `operator.key`; for programs: `dev.json`)", data_dir.display())?;
        write!(f, "Ctrl-C stops it; the next start uses the same data.")
    }
}

/// Quotes a path for a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+".contains(&b);
    if !text.is_empty() && !text.starts_with('-') && text.bytes().all(plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_spaces_and_quotes_survives_the_shell() {
        assert_eq!(quoted(Path::new(".stage0/api.key")), ".stage0/api.key");
        assert_eq!(quoted(Path::new("it's here/x")), r"'it'\''s here/x'");
        assert_eq!(quoted(Path::new("-x")), "'-x'");
    }
}
