//! What a tool may be called: its whole name, and every reading of it.
//!
//! Rules that forbid a tool, and counts of its calls, go by all readings: `send_email` is found in `sendEmail`,
//! `send_email(to=x)`, `mail.send_email` and `mcp__mail__send_email`. Rules that allow go by whole names.
//! INVARIANT: what rules see and what a run counts are the same tools. A name that cannot be read may be any tool.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use stage0_contract::{CheckRequest, Spelling, Word, is_blank, plain, visible};

use super::mcp;
use super::proposal::{AMBIGUOUS, member};
use super::run::{MAX_NAME_BYTES, ToolCalls, stored_name};
use crate::time_limit::{OutOfTime, TimeLimit};

/// What may stand between a prefix and the tool's own name.
const SEPARATORS: [char; 4] = ['.', ':', '/', '\\'];

/// The tools of a check: `tools` and `context.current_tool`.
#[derive(Debug, Default)]
pub(super) struct NamedTools {
    /// The readings of each tool, by its whole name.
    readings: BTreeMap<String, BTreeSet<String>>,
    /// Tools whose names cannot be read.
    ambiguous: i64,
    /// What can be read of those, such as the name before arguments that mix scripts.
    of_ambiguous: BTreeSet<String>,
}

impl NamedTools {
    pub(super) fn read(request: &CheckRequest, limit: TimeLimit) -> Result<Self, OutOfTime> {
        let mut tools = Self::default();
        let current = member(request, "current_tool").map(Value::as_str);
        for tool in request.tools.iter().map(|tool| Some(tool.as_str())).chain(current) {
            limit.check()?;
            tools.add(tool.unwrap_or(AMBIGUOUS));
        }
        Ok(tools)
    }

    fn add(&mut self, tool: &str) {
        match tool_name(tool) {
            Some(name) => self.readings.entry(name).or_default().append(&mut readings(tool)),
            None => {
                self.ambiguous = self.ambiguous.saturating_add(1);
                self.of_ambiguous.append(&mut readings(tool));
            }
        }
    }

    /// Each tool that cannot be read may be another one.
    pub(super) fn count(&self) -> i64 {
        i64::try_from(self.readings.len()).unwrap_or(i64::MAX).saturating_add(self.ambiguous)
    }

    /// For lists that allow: each tool once.
    pub(super) fn names(&self) -> Vec<String> {
        self.readings.keys().cloned().chain(self.unreadable()).collect()
    }

    /// For lists that forbid.
    pub(super) fn all_readings(&self) -> Vec<String> {
        let all: BTreeSet<&String> = self.readings.values().flatten().chain(&self.of_ambiguous).collect();
        all.into_iter().cloned().chain(self.unreadable()).collect()
    }

    /// One call of each tool, under each of its readings. Of names beside a secret none is kept.
    pub(super) fn calls(&self, has_secrets: bool) -> ToolCalls {
        if has_secrets {
            return ToolCalls { any: self.count(), ..ToolCalls::default() };
        }
        let mut calls = ToolCalls { any: self.ambiguous, ..ToolCalls::default() };
        for reading in self.readings.values().flatten() {
            calls.add(reading, 1);
        }
        calls
    }

    fn unreadable(&self) -> Option<String> {
        (self.ambiguous > 0).then(|| AMBIGUOUS.to_owned())
    }
}

/// A tool's whole name in the one form that lists which allow compare: in small letters, camel case split, `_` for `-`
/// and blanks; the name of an MCP server only in small letters, as identities are compared. `None` for a name that may
/// be any tool.
pub(crate) fn tool_name(tool: &str) -> Option<String> {
    let name = Whole::of(tool)?;
    let server = name.server.map(|server| format!("{}{}{}", mcp::PREFIX, visible(server), mcp::SEPARATOR));
    let name = format!("{}{}", server.unwrap_or_default(), name.tool.split()?);
    let is_one = !name.is_empty() && name != AMBIGUOUS && !mcp::has_more_ends(&name);
    is_one.then(|| bounded(name))
}

/// A tool's whole name: the server ends at the first separator.
struct Whole<'n> {
    server: Option<&'n str>,
    tool: Spelling,
}

impl<'n> Whole<'n> {
    /// `None` for a name that mixes scripts, though each of its parts may mix none.
    fn of(name: &'n str) -> Option<Self> {
        Word::new(name).known()?;
        let name = name.trim();
        Some(match mcp::split(name) {
            Some((server, Some(tool))) => Self { server: Some(server), tool: Spelling::of(tool) },
            _ => Self { server: None, tool: Spelling::of(name) },
        })
    }

    /// With and without camel case split, with `_` for `-` and blanks.
    fn forms(&self) -> BTreeSet<String> {
        let server = self.server.map(Spelling::of);
        let server = server.as_ref().and_then(Spelling::folded);
        let form = |tool: &str| match server {
            Some(server) => format!("{}{server}{}{tool}", mcp::PREFIX, mcp::SEPARATOR),
            None => tool.to_owned(),
        };
        let forms = [self.tool.folded(), self.tool.split()].into_iter().flatten().map(form);
        forms.filter(|form| form != AMBIGUOUS).collect()
    }
}

/// A name that is too long to be stored is stored as its hash.
fn bounded(name: String) -> String {
    if name.len() > MAX_NAME_BYTES { stored_name(&name).into_owned() } else { name }
}

/// Every reading of a tool's name, of which each could be the tool's name in a rule: whole, with and without camel case
/// split, without arguments, after each kind of separator, after `mcp__server__`, and each of these with single `_`
/// between its letters and digits. Of a name that mixes scripts, the readings that do not.
pub(crate) fn readings(tool: &str) -> BTreeSet<String> {
    let tool = plain(tool);
    let mut readings = BTreeSet::new();
    let called = Some(without_arguments(&tool)).filter(|called| !is_blank(called)).unwrap_or(&tool);
    for form in Whole::of(called).iter().flat_map(Whole::forms) {
        for piece in pieces(&form) {
            if !piece.starts_with(mcp::PREFIX) {
                readings.insert(joined(piece));
            }
            readings.insert(piece.to_owned());
        }
    }
    readings.extend(Whole::of(&tool).iter().flat_map(Whole::forms).map(bounded));
    // Only a whole name may be longer than the names that rules can write.
    readings.retain(|reading| !reading.is_empty() && reading.len() <= MAX_NAME_BYTES);
    readings
}

/// The parts of a name in small letters that may be the tool's own name.
fn pieces(name: &str) -> BTreeSet<&str> {
    let name = trimmed(name);
    let mut pieces = BTreeSet::from([name, last_part(name)]);
    pieces.extend(SEPARATORS.into_iter().filter_map(|separator| name.rsplit_once(separator)).map(|(_, last)| last));
    for piece in [name, last_part(name)] {
        pieces.extend(mcp::tools(piece).map(trimmed));
    }
    pieces
}

/// Without arguments in brackets.
pub(super) fn without_arguments(tool: &str) -> &str {
    tool.split_once('(').map_or(tool, |(name, _)| name)
}

/// Without prefixes such as `vendor.`.
pub(super) fn last_part(name: &str) -> &str {
    name.rsplit(SEPARATORS).find(|part| !part.trim().is_empty()).unwrap_or(name)
}

/// Without punctuation around it.
fn trimmed(name: &str) -> &str {
    name.trim_matches(|c: char| !c.is_alphanumeric())
}

/// Letters and digits, with one `_` for whatever stands between them: `send__email` and `send.email` are `send_email`.
fn joined(name: &str) -> String {
    let mut joined = String::with_capacity(name.len());
    for part in name.split(|c: char| !c.is_alphanumeric()).filter(|part| !part.is_empty()) {
        if !joined.is_empty() {
            joined.push('_');
        }
        joined.push_str(part);
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_tool_is_found_in_every_spelling_of_its_name() {
        for (wanted, tools) in [
            (
                "psql",
                "psql|PSQL|psql(select 1)|psql (x)|mcp__db__psql|functions.psql|db:psql|psql;|./psql|/usr/bin/psql",
            ),
            ("psql", "C:\\bin\\psql|mcp__a__b__psql|functions.mcp__db__psql|mcp--db--psql|MCP__DB__Psql(x)|mcp__psql"),
            (
                "psql",
                "ｐｓｑｌ（select 1）|psql(select '\u{416}')|\"psql\"|mcp__db__functions.psql|db:x.psql|x.db:psql ",
            ),
            (
                "send_email",
                "send_email|sendEmail|SendEmail|send-email|Send Email|send_email(to=x)|mcp__mail__sendEmail",
            ),
            ("send_email", "send.email|send/email|send__email|send  email|send_email_|mail.sendEmail|_send_email"),
            ("sendemail", "sendEmail|sendemail|mcp__mail__sendEmail"),
            ("db:psql", "functions.db:psql|db:psql|DB:psql(x)"),
            ("mcp__db__psql", "mcp__db__psql|mcp__db__psql;|functions.mcp__db__psql|mcp__DB__psql(x)"),
        ] {
            for tool in tools.split('|') {
                assert!(readings(tool).contains(wanted), "{tool}: {:?}", readings(tool));
            }
        }
    }

    #[test]
    fn another_tool_is_not_found() {
        for (wanted, tools) in [
            ("psql", "psql_history|mypsql|psqlx|psql2|run(psql)|mcp__psql__dump|psql.dump|pg/psql/read"),
            ("send_email", "sendemail|resend_email|send_emails|send_email_draft|email.send|d\u{435}send_email"),
            ("mcp__db__psql", "mcp__dbx__psql|psql|mcp_db_psql"),
        ] {
            for tool in tools.split('|') {
                assert!(!readings(tool).contains(wanted), "{tool}: {:?}", readings(tool));
            }
        }
    }

    #[test]
    fn a_plain_name_has_one_reading_and_every_spelling_of_it_one_whole_name() {
        for tool in ["read_table", "Read-Table", "READ TABLE", "read_table"] {
            assert_eq!(readings(tool), BTreeSet::from(["read_table".to_owned()]), "{tool}");
        }
        for tool in ["read_table", "Read-Table", "readTable"] {
            assert_eq!(tool_name(tool).as_deref(), Some("read_table"), "{tool}");
        }
        for tool in ["mcp__GitHub__getIssue", "MCP__github__get-issue"] {
            assert_eq!(tool_name(tool).as_deref(), Some("mcp__github__get_issue"), "{tool}");
        }
        assert_ne!(
            tool_name("mcp__git_hub__get_issue"),
            tool_name("mcp__git-hub__get_issue"),
            "a server is an identity"
        );
        assert_eq!(readings("mcp__GitHub__push"), ["mcp__github__push", "push"].map(str::to_owned).into());
        for tool in ["db.read_table", "mcp__db__read_table", "read_table(x)", "readtable", "read__table"] {
            assert_ne!(tool_name(tool).as_deref(), Some("read_table"), "{tool}");
        }
        for tool in ["?", " ", "re\u{430}d"] {
            assert_eq!(tool_name(tool), None, "{tool}");
            assert!(readings(tool).is_empty(), "{tool}: {:?}", readings(tool));
        }
    }

    #[test]
    fn each_tool_is_counted_once_and_called_under_each_of_its_readings() {
        let read = |tools: &[&str], current: Value| {
            let body = json!({"goal": "g", "tools": tools, "context": {"current_tool": current}});
            NamedTools::read(&CheckRequest::parse(body).unwrap(), TimeLimit::NONE).unwrap()
        };
        let tools = read(&["sendEmail", "SEND-EMAIL", "send_email"], json!("mail.send"));
        let known = ["mail.send", "mail_send", "send", "send_email", "sendemail"];
        assert_eq!((tools.count(), tools.names()), (2, vec!["mail.send".to_owned(), "send_email".to_owned()]));
        assert_eq!(tools.all_readings(), known);
        let calls = tools.calls(false);
        assert_eq!((calls.known, calls.any), (known.map(|name| (name.to_owned(), 1)).into(), 0));
        assert_eq!(read(&["mcp__a__get", "mcp__b__get"], json!(null)).calls(false).known["get"], 2);
        // What is ambiguous counts for every tool, and what can be read of it is forbidden by name all the same.
        let odd = read(&["psql('\u{416}')"], json!(7));
        assert_eq!(
            (odd.count(), odd.names(), odd.all_readings()),
            (2, vec!["?".to_owned()], vec!["psql".to_owned(), "?".to_owned()])
        );
        assert_eq!(odd.calls(false), ToolCalls { any: 2, ..ToolCalls::default() });
        assert_eq!(tools.calls(true), ToolCalls { any: 2, ..ToolCalls::default() });
        assert!(
            NamedTools::read(&CheckRequest::parse(json!({"goal": "g", "tools": ["x"]})).unwrap(), TimeLimit::over())
                .is_err()
        );
    }

    #[test]
    fn the_readings_of_a_name_are_few_and_one_with_many_separators_may_be_any_tool() {
        let prefixes = "__a".repeat(331);
        for tool in [format!("mcp__s{prefixes}"), format!("mcp__{}", "_".repeat(990)), ".:/".repeat(333)] {
            let readings = readings(&tool);
            assert!(readings.len() <= 40 && readings.iter().all(|reading| reading.len() <= MAX_NAME_BYTES), "{tool}");
        }
        let tool = format!("mcp__s{prefixes}__psql");
        assert!(readings(&tool).contains("psql") && tool_name(&tool).is_none());
        assert!(tool_name("mcp__a__b__c__d__e__f__g__h__psql").is_some());
    }
}
