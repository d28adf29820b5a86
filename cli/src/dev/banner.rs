//! The banner that `stage0 dev` prints once it is ready: a command to paste, and where to read more.

use std::path::Path;

use stage0_contract::{ApprovalMode, PolicyVersion};

use crate::args::VERSION;
use crate::dev_file::{API_KEY_FILE, DEFAULT_DATA_DIR};

pub(crate) const ACTION: &str = r#"{
      "goal": "Deploy build 7 to production",
      "success_criteria": ["health checks pass"],
      "side_effects": ["deploy"],
      "constraints": ["approval_required"],
      "context": {"approval_status": "pending"}
    }"#;

/// It shows no key: the command reads the key from its file.
pub(super) fn banner(url: &str, data_dir: &Path, ca: &Path, policy: &PolicyVersion, approvals: ApprovalMode) -> String {
    let (ca, key) = (quoted(ca), quoted(&data_dir.join(API_KEY_FILE)));
    let approvals = approval_lines(approvals, data_dir);
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
{approvals}
data    {data_dir} (keys: `api.key`, `operator.key`; for programs: `dev.json`)
Ctrl-C stops it; the next start uses the same data."
    )
}

/// Which mode holds, and how to approve what the command above gets deferred.
fn approval_lines(approvals: ApprovalMode, data_dir: &Path) -> String {
    let mode = match approvals {
        ApprovalMode::Caller => {
            "caller: what a check says of its approval counts too (--approvals verified: it does not)"
        }
        ApprovalMode::Verified => "verified: only approvals that members give here count",
    };
    // The commands find the usual directory by themselves.
    let dir = match data_dir == Path::new(DEFAULT_DATA_DIR) {
        true => String::new(),
        false => format!(" --data-dir {}", quoted(data_dir)),
    };
    format!(
        "approve {mode}
        try it: stage0 members invite me{dir}; stage0 members accept CODE --key-file me.key{dir};
        stage0 approvals watch --key-file me.key{dir}; stage0 approvals approve ID --key-file me.key{dir}"
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
    fn the_mode_is_named_with_the_commands_that_try_an_approval() {
        let usual = approval_lines(ApprovalMode::Caller, Path::new(".stage0"));
        assert!(usual.starts_with("approve caller: ") && usual.contains("--approvals verified"), "{usual}");
        assert!(
            usual.contains("stage0 members invite me;") && usual.contains("stage0 approvals approve ID"),
            "{usual}"
        );
        let elsewhere = approval_lines(ApprovalMode::Verified, Path::new("/tmp/s 0"));
        assert!(elsewhere.starts_with("approve verified: only"), "{elsewhere}");
        assert_eq!(elsewhere.matches("--data-dir '/tmp/s 0'").count(), 4, "{elsewhere}");
    }

    #[test]
    fn a_path_with_spaces_and_quotes_survives_the_shell() {
        assert_eq!(quoted(Path::new(".stage0/api.key")), ".stage0/api.key");
        assert_eq!(quoted(Path::new("it's here/x")), r"'it'\''s here/x'");
        assert_eq!(quoted(Path::new("-x")), "'-x'");
    }
}
