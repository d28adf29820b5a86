//! The reader of shell commands: what cannot be read is `unknown`, and what stands before a command hides none of its
//! effects.

use std::sync::LazyLock;

use stage0_guard::{Reading, Table, classify};

use crate::{Target, text};

pub(crate) const TARGET: Target = Target::new("shell_command", check);

const UNKNOWN: &str = "unknown";
const READ: &str = "read";
const MAX_TARGETS: usize = 200;
/// No mark of these reads well, wherever it stands.
const MARKS: [&str; 4] = ["`", "$(", "<(", ">("];

static TABLE: LazyLock<Table> = LazyLock::new(|| Table::builtin().unwrap());

fn check(input: &[u8]) -> bool {
    let command = text(input);
    let reading = is_bounded(&command);
    let is_unknown = reading.effects.iter().any(|effect| effect == UNKNOWN);
    assert!(is_unknown || !MARKS.iter().any(|mark| command.contains(mark)), "{command:?} reads as {reading:?}");
    assert!(is_unknown || !command.contains(['\r', '\0', '\u{200b}']), "{command:?} reads as {reading:?}");
    let behind = is_bounded(&format!("true; {command}"));
    // A command without words is unknown because it does nothing.
    let is_nothing = |effect: &str| effect == UNKNOWN && reading.unread.is_empty();
    for effect in &reading.effects {
        let is_kept = effect == READ || is_nothing(effect) || behind.effects.contains(effect);
        assert!(is_kept, "{reading:?}, and behind another command {behind:?}");
    }
    !is_unknown
}

fn is_bounded(command: &str) -> Reading {
    let reading = classify(&TABLE, command, Some("/home/me/project"));
    assert!(!reading.effects.is_empty() && reading.effects.is_sorted(), "{reading:?}");
    assert!(reading.targets.len() <= MAX_TARGETS, "{} targets", reading.targets.len());
    let is_unknown = reading.effects.iter().any(|effect| effect == UNKNOWN);
    assert!(reading.unread.is_empty() || is_unknown, "{reading:?}");
    reading
}
