//! The banner that `stage0 dev` prints once it is ready: a command to paste, and where to read more.

use std::path::Path;

use stage0_contract::PolicyVersion;

use crate::args::VERSION;
use crate::dev_file::API_KEY_FILE;

pub(crate) const ACTION: &str = r#"{
      "goal": "Deploy build 7 to production",
      "success_criteria": ["health checks pass"],
      "side_effects": ["deploy"],
      "constraints": ["approval_required"],
      "context": {"approval_status": "pending"}
    }"#;

/// It shows no key: the command reads the key from its file.
pub(super) fn banner(url: &str, data_dir: &Path, ca: &Path, policy: &PolicyVersion) -> String {
    let (ca, key) = (quoted(ca), quoted(&data_dir.join(API_KEY_FILE)));
    let data_dir = data_dir.display();
    format!(
        "\
Stage0 {VERSION} is ready at {url}

Ask whether an action may run:

  curl --cacert {ca} \\
    -H \"x-api-key: $(cat {key})\" \\
    -H 'content-type: application/json' \\
    -d '{ACTION}' \\
    {url}/check

docs    {url}/docs (OpenAPI: {url}/openapi.json)
policy  {policy}
data    {data_dir} (keys: `api.key`, `operator.key`; for programs: `dev.json`)
Ctrl-C stops it; the next start uses the same data."
    )
}

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
