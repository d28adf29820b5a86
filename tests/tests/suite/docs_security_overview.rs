//! Each statement of docs/security-overview.md is shown by its command.
//!
//! Runs the document's `sh` blocks as written, in one shell and in order, and compares what each one prints with the
//! `text` block below it, in which `…` stands for any text within a line. Only the server's port is replaced. A heading
//! of a statement (`###`) without both blocks fails, and so does a section without statements that is not exempt.

use std::fmt::Write as _;

use crate::docs_commands::{free_ports, programs, run};
use crate::docs_examples::document;

const DOCUMENT: &str = "security-overview.md";

/// Sections that state nothing about the product that a command could show.
const WITHOUT_STATEMENTS: [&str; 3] = ["Set up", "What only you can verify", "What is not claimed"];

/// One `sh` block and what the document says it prints.
#[derive(Debug)]
struct Step {
    heading: String,
    command: String,
    output: String,
}

/// A section or statement that has been read up to its next heading.
#[derive(Default)]
struct Heading {
    level: usize,
    title: String,
    commands: usize,
    outputs: usize,
    statements: usize,
}

impl Heading {
    /// Why this heading breaks the document's rule.
    fn fault(&self) -> Option<String> {
        let exempt = WITHOUT_STATEMENTS.contains(&self.title.as_str());
        let holds = match self.level {
            3 => self.commands > 0 && self.commands == self.outputs,
            2 => (exempt || self.statements > 0) && (self.commands == 0 || self.title == "Set up"),
            _ => self.commands == 0,
        };
        (!holds).then(|| format!("`{}` has {} commands and {} outputs", self.title, self.commands, self.outputs))
    }
}

/// The document's steps, and every heading that breaks the rule.
fn read(text: &str) -> (Vec<Step>, Vec<String>) {
    let (mut steps, mut faults) = (Vec::<Step>::new(), vec![]);
    let mut section = Heading::default();
    let mut statement = None::<Heading>;
    let mut fence = None::<String>;
    for line in text.lines() {
        let heading = statement.as_mut().unwrap_or(&mut section);
        match (&fence, line.strip_prefix("```")) {
            (None, Some(language)) => {
                fence = Some(language.to_owned());
                match language {
                    "sh" => {
                        heading.commands += 1;
                        let heading = heading.title.clone();
                        steps.push(Step { heading, command: String::new(), output: String::new() });
                    }
                    "text" => heading.outputs += 1,
                    other => faults.push(format!("`{}` has a block of `{other}`", heading.title)),
                }
            }
            (Some(_), Some(_)) => fence = None,
            (Some(language), None) => {
                if let Some(step) = steps.last_mut() {
                    let block = if language == "sh" { &mut step.command } else { &mut step.output };
                    writeln!(block, "{line}").unwrap();
                }
            }
            (None, None) => {
                let level = line.bytes().take_while(|byte| *byte == b'#').count();
                let title = line.trim_start_matches('#').trim().to_owned();
                if level > 0 {
                    faults.extend(statement.take().and_then(|ended| ended.fault()));
                }
                match level {
                    0 => {}
                    3 => {
                        section.statements += 1;
                        statement = Some(Heading { level, title, ..Heading::default() });
                    }
                    _ => {
                        let ended = std::mem::replace(&mut section, Heading { level, title, ..Heading::default() });
                        faults.extend(ended.fault());
                    }
                }
            }
        }
    }
    faults.extend(statement.and_then(|ended| ended.fault()));
    faults.extend(section.fault());
    (steps, faults)
}

/// Whether a line is what the document shows, where `…` stands for any text.
fn line_matches(shown: &str, line: &str) -> bool {
    let mut parts = shown.split('…');
    let Some(mut rest) = parts.next().and_then(|first| line.strip_prefix(first)) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        match rest.split_once(part) {
            Some((_, behind)) => rest = behind,
            None => return false,
        }
    }
    rest.ends_with(last)
}

fn output_matches(shown: &str, output: &str) -> bool {
    shown.lines().count() == output.lines().count()
        && shown.lines().zip(output.lines()).all(|(shown, line)| line_matches(shown, line))
}

#[test]
fn each_statement_of_the_security_overview_is_shown_by_its_command() {
    let (steps, faults) = read(&document(DOCUMENT));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(steps.len() > 20, "{} commands", steps.len());
    // Printed between two outputs; no command prints it.
    const NEXT: &str = "=== next command ===";
    let mut script = "exec 2>&1\ntrap 'kill $!; wait $!' EXIT\n".to_owned();
    for step in &steps {
        writeln!(script, "{}echo '{NEXT}'", step.command).unwrap();
    }
    let port = free_ports().next().unwrap().to_string();
    let script = script.replace("stage0 dev ", "stage0 dev --listen 127.0.0.1:8443 ").replace("8443", &port);
    let directory = tempfile::tempdir().unwrap();
    let printed = run(directory.path(), &programs(directory.path()), &script);
    let outputs: Vec<&str> = printed.split(&format!("{NEXT}\n")).collect();
    assert_eq!(outputs.len(), steps.len() + 1, "{printed}");
    let mut differences = String::new();
    for (Step { heading, output: shown, .. }, output) in steps.iter().zip(outputs) {
        if !output_matches(shown, output) {
            writeln!(differences, "`{heading}` shows:\n{shown}and its command prints:\n{output}").unwrap();
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

#[test]
fn a_statement_without_a_command_or_an_output_is_a_fault() {
    let command = "```sh\nls\n```\n";
    let output = "```text\n…\n```\n";
    let faults = |text: &str| read(text).1.len();
    assert_eq!(faults(&format!("# T\n## S\n### A\nprose\n{command}{output}### B\n{command}{output}")), 0);
    assert_eq!(faults(&format!("# T\n## S\n### A\nprose\n### B\n{command}{output}")), 1, "no command");
    assert_eq!(faults(&format!("# T\n## S\n### A\n{command}### B\n{command}")), 2, "no outputs");
    assert_eq!(faults("# T\n## S\nprose that states something\n"), 1, "a section without statements");
    assert_eq!(faults(&format!("# T\n## Set up\n{command}## What is not claimed\n- a\n")), 0);
    assert_eq!(faults(&format!("# T\n## S\n{command}### A\n{command}{output}")), 1, "a command outside of a statement");
}

#[test]
fn an_output_that_differs_from_the_document_is_noticed() {
    assert!(output_matches("a … c\n…\n", "a b c\nanything\n"));
    assert!(output_matches("{\"m\":\"x\",…} 400\n", "{\"m\":\"x\",\"n\":1} 400\n"));
    for (shown, output) in [
        ("a … c\n", "a b d\n"),
        ("a\n", "a b\n"),
        ("a\n", ""),
        ("a\n", "a\nb\n"),
        ("0\n", "1\n"),
        ("a…b…c\n", "a c b\n"),
    ] {
        assert!(!output_matches(shown, output), "{shown:?} {output:?}");
    }
}
