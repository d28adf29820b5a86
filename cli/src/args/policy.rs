//! Arguments of `stage0 policy`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use jiff::Timestamp;
use stage0_policy::Lint;

use super::policies::PoliciesCommand;

#[derive(Debug, Subcommand)]
pub(crate) enum AnyPolicyCommand {
    #[command(flatten)]
    Offline(PolicyCommand),
    #[command(flatten)]
    Server(PoliciesCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Writes a pack to start from: it extends the baseline, has a rule of its own, and passes its cases
    #[command(after_help = "\
The directory must be empty or absent. The name of the pack is that of the directory, unless --name gives another.

Examples:
  stage0 policy new ./packs/my-pack
  stage0 policy new ./packs/agent --template coding-agent")]
    New(NewArgs),
    /// Checks a pack as an evaluator does at its start, and shows every fault where it stands
    #[command(after_help = "\
Exit code 1: the pack is refused. No evaluator would load it.

Example:
  stage0 policy validate ./packs/my-pack")]
    Validate(PackArgs),
    /// Runs the pack's cases, after the checks of `validate`
    #[command(after_help = "\
--accept writes what came out into `expect` and `codes` of the cases that fail: read the change before you keep it.

Examples:
  stage0 policy test ./packs/my-pack --watch
  stage0 policy test ./packs/my-pack --junit cases.xml")]
    Test(TestArgs),
    /// Shows why a pack decides an action as it does: which rules apply, and which nearly do
    #[command(after_help = "\
The action is the body of a check. It is decided at the current time, by a key without a name, as the first check of its
run, unless options say otherwise. A case of the pack has its time, its caller and its run. Cases of the pack may fail.

Examples:
  stage0 policy explain baseline action.json
  stage0 policy explain ./packs/my-pack action.json --at 2026-12-24T18:00:00Z --key-name bot-1 --group support
  stage0 policy explain ./packs/my-pack --case refund-above-limit --all")]
    Explain(ExplainArgs),
    /// Finds what is valid and probably wrong: rules that never apply, cases that are missing
    #[command(after_help = "\
Exit code 1: there are findings. A kind of finding that is meant so is accepted by --allow.

Example:
  stage0 policy lint ./packs/my-pack --allow untested-rule")]
    Lint(LintArgs),
    /// Shows what changes when one pack takes the place of another, what becomes looser first
    #[command(after_help = "\
Both packs decide all cases of both. What cannot be judged counts as looser.

Exit code 0: no difference, or nothing is looser. Exit code 1: something is looser, or a pack is refused.

Examples:
  stage0 policy diff baseline ./packs/my-pack
  stage0 policy diff ./in-force/my-pack ./packs/my-pack --json")]
    Diff(DiffArgs),
    /// Brings rules and cases into one form; other files stay as they are
    #[command(after_help = "\
Rules are laid out by Cedar's formatter, a case is one line. What they mean does not change; the digest in the version
of the pack does, because it covers every byte.

Examples:
  stage0 policy fmt ./packs/my-pack
  stage0 policy fmt ./packs/my-pack --check")]
    Fmt(FmtArgs),
    /// Lists the facts that rules read as `context.…`, and the triggers
    #[command(after_help = "\
Example:
  stage0 policy facts run")]
    Facts(FactsArgs),
    /// Prints the vocabulary of a pack, and the meaning of its codes
    Vocabulary {
        /// Directory of the pack; without it, the baseline that is compiled in
        dir: Option<PathBuf>,
        /// Prints JSON, as `GET /v1/policy/vocabulary` answers
        #[arg(long, conflicts_with = "markdown")]
        json: bool,
        /// Prints a Markdown document
        #[arg(long)]
        markdown: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct NewArgs {
    /// Directory of the new pack
    pub(crate) dir: PathBuf,
    /// Name of the pack: small letters, digits and `-`
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// A pack to start from instead of the small example
    #[arg(long)]
    pub(crate) template: Option<String>,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PackArgs {
    /// Directory of the pack
    pub(crate) dir: PathBuf,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    #[command(flatten)]
    pub(crate) pack: PackArgs,
    /// Runs the cases again whenever a file of the pack changes
    #[arg(long, conflicts_with_all = ["json", "junit", "accept"])]
    pub(crate) watch: bool,
    /// Writes what came out into the cases that fail
    #[arg(long)]
    pub(crate) accept: bool,
    /// Writes the results as JUnit XML
    #[arg(long, value_name = "FILE")]
    pub(crate) junit: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("action").required(true))]
pub(crate) struct ExplainArgs {
    /// Directory of the pack, or `baseline`
    pub(crate) pack: PathBuf,
    /// JSON file with the proposed action; `-` reads standard input
    #[arg(group = "action")]
    pub(crate) file: Option<PathBuf>,
    /// A case of the pack, by its `id`
    #[arg(long, group = "action", value_name = "ID")]
    pub(crate) case: Option<String>,
    /// The time of the check instead of the current one, such as `2026-12-24T18:00:00Z`
    #[arg(long, value_name = "TIME", conflicts_with = "case")]
    pub(crate) at: Option<Timestamp>,
    /// The name of the key that asks
    #[arg(long, value_name = "NAME", conflicts_with = "case")]
    pub(crate) key_name: Option<String>,
    /// A group of the member, or of the owner of the key; may be repeated
    #[arg(long, value_name = "NAME", conflicts_with = "case")]
    pub(crate) group: Vec<String>,
    /// The member whose own key asks
    #[arg(long, value_name = "ID", conflicts_with = "case")]
    pub(crate) member: Option<String>,
    /// Shows every rule, and every fact
    #[arg(long)]
    pub(crate) all: bool,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LintArgs {
    #[command(flatten)]
    pub(crate) pack: PackArgs,
    /// Accepts findings of this kind; may be repeated
    #[arg(long, value_name = "KIND", value_parser = lint)]
    pub(crate) allow: Vec<Lint>,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// The pack in force: its directory, `baseline` or the name of a template
    pub(crate) old: PathBuf,
    /// The pack that is to take its place
    pub(crate) new: PathBuf,
    /// Ends with exit code 0 even if something is looser
    #[arg(long)]
    pub(crate) allow_looser: bool,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct FmtArgs {
    /// Directory of the pack
    #[arg(default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Writes nothing; exit code 1 if a file would change
    #[arg(long)]
    pub(crate) check: bool,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct FactsArgs {
    /// Shows only facts with this word in their name or group
    #[arg(conflicts_with = "markdown")]
    pub(crate) word: Option<String>,
    /// Prints JSON
    #[arg(long, conflicts_with = "markdown")]
    pub(crate) json: bool,
    /// Prints a Markdown document
    #[arg(long)]
    pub(crate) markdown: bool,
}

fn lint(text: &str) -> Result<Lint, String> {
    let known = Lint::ALL.map(Lint::as_str).join(", ");
    Lint::ALL.into_iter().find(|lint| lint.as_str() == text).ok_or_else(|| format!("must be one of {known}"))
}
