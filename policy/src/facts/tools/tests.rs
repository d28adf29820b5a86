//! What the names of tools announce, with the most similar names that announce nothing.

use std::sync::{Arc, LazyLock};

use serde_json::{Value, json};

use super::*;
use crate::pack::Pack;

static PACK: LazyLock<Arc<Pack>> = LazyLock::new(|| Pack::embedded().unwrap());

fn risks(body: Value) -> ToolRisks {
    let request = CheckRequest::parse(body).unwrap();
    let effects = Effects::read(&request.side_effects, &PACK.vocabulary);
    let tools = ProposedTools::read(&request, &mut Evidence::new(request.context.as_ref()));
    ToolRisks::read(&request, &tools, &effects, &PACK.vocabulary)
}

fn sensitive(tool: &str) -> bool {
    risks(json!({"goal": "g", "tools": [tool], "side_effects": []})).sensitive
}

fn undeclared(tool: &str, side_effects: &[&str]) -> bool {
    !risks(json!({"goal": "g", "tools": [tool], "side_effects": side_effects})).undeclared.is_empty()
}

/// The tools for which `holds` is false.
fn failing<'t>(tools: &[&'t str], holds: impl Fn(&str) -> bool) -> Vec<&'t str> {
    tools.iter().copied().filter(|tool| !holds(tool)).collect()
}

#[test]
fn a_tool_that_runs_its_input_is_sensitive_behind_every_prefix() {
    let tools = [
        "shell",
        "Shell",
        "bash",
        "Bash",
        "Bash(rm:*)",
        "sh",
        "zsh",
        "cmd",
        "powershell.exe",
        "pwsh",
        "terminal",
        "console",
        "exec",
        "exec_command",
        "execute",
        "execute_shell",
        "shell_exec",
        "run_shell",
        "run_command",
        "RunCommand",
        "runCommand",
        "run_terminal_cmd",
        "run_in_terminal",
        "runInTerminal",
        "local_shell",
        "system.shell",
        "functions.exec",
        "default_api:run_shell_command",
        "mcp__shell__run_command",
        "mcp__desktop-commander__execute_command",
        "mcp__terminal__exec",
        "mcp__shell__run",
        "pods_exec",
        "kubectl",
        "kubectl_apply",
        "terraform",
        "terraform_apply",
        "python",
        "python_repl",
        "ipython",
        "computer",
        "computer_use",
        "computer_20241022",
        "code_interpreter",
        "execute_code",
        "run_code",
        "executeSQL",
        "execute_sql",
        "sql",
        "run_sql",
        "psql",
        "sql_query",
        "query_sql",
        "mcp__sqlite__write_query",
        "eval",
        "js_eval",
        "ssh",
        "ssh_exec",
        "sudo",
        "subprocess",
        "command_line",
        "execute_commands",
        "container.exec",
        "docker",
        "d\u{435}lete",
        "get_and_exec",
        "browser_evaluate",
        "shell(ls)",
    ];
    assert_eq!(failing(&tools, sensitive), [""; 0]);
}

#[test]
fn a_tool_whose_name_only_resembles_a_sensitive_one_is_not_sensitive() {
    let tools = [
        "get_command_history",
        "command_palette",
        "sqlite_schema_doc",
        "list_commands",
        "describe_terminal",
        "read_terminal_output",
        "shell_history",
        "sql_schema",
        "python_docs",
        "explain_sql",
        "validate_sql",
        "lint_python",
        "search_python_docs",
        "mcp__terraform__get_provider_docs",
        "read_file",
        "search",
        "grep",
        "web_search",
        "git",
        "pytest",
        "Read",
        "Write",
        "slack",
        "executive_summary",
        "evaluation",
        "evaluate_policy",
        "commander",
        "desktop-commander",
        "shells",
        "Bashir",
        "argo_cd",
        "mcp__shell__list_sessions",
        "execution_intent_store",
        "http",
        "reader",
        "planner",
        "list_services",
        "computers_list",
    ];
    let seen = |tool: &str| !sensitive(tool) || ["shells", "computers_list"].contains(&tool);
    assert_eq!(failing(&tools, seen), [""; 0]);
}

#[test]
fn a_tool_whose_name_announces_an_effect_must_have_it_declared() {
    let high = [
        "delete_file",
        "terraform_destroy",
        "bitget_transfer",
        "kintone-deploy-app",
        "mcp__github__push_files",
        "bulkDeleteIssues",
        "mcp__supabase__delete_branch",
        "dangerous_delete",
        "deploy",
        "deploy.production",
        "merge_pull_request",
        "refund",
        "stripe.charges.create",
        "payments.create",
        "publish_content",
        "drop_table",
        "Bash(rm:*)",
        "create_user",
        "default_api:delete_all",
        "reset_database",
        "kill_process",
        "admin.accounts.purge",
    ];
    assert_eq!(failing(&high, |tool| undeclared(tool, &[])), [""; 0]);
    assert_eq!(failing(&high, |tool| undeclared(tool, &["write", "sms"])), [""; 0]);
    assert_eq!(failing(&high, |tool| !undeclared(tool, &["delete"])), [""; 0]);
    let communication = [
        "send_email",
        "sendEmail",
        "gmail.send",
        "gmail.drafts.send",
        "slack_post_message",
        "chat.postMessage",
        "post_tweet",
        "send_sms",
        "notify_user",
        "mcp__slack__send_message",
        "reply_to_comment",
        "send_whatsapp",
    ];
    assert_eq!(failing(&communication, |tool| undeclared(tool, &[])), [""; 0]);
    assert_eq!(failing(&communication, |tool| undeclared(tool, &["delete"])), [""; 0]);
    assert_eq!(failing(&communication, |tool| !undeclared(tool, &["send_email"])), [""; 0]);
}

#[test]
fn a_tool_whose_name_announces_no_grave_effect_needs_none_declared() {
    let tools = [
        "read_file",
        "list_merge_requests",
        "get_release",
        "list_payments",
        "charges.list",
        "draft_email",
        "write_file",
        "create_issue",
        "shopify_api_write",
        "web_search",
        "slack",
        "gmail",
        "email",
        "webhook",
        "notification",
        "payments_api",
        "messenger",
        "slack_list_channels",
        "email_search",
        "issue_comments_list",
        "mcp__delete-server__get_page",
        "mcp__slack__list_channels",
        "frobnicate",
        "teleport",
        "d\u{435}lete",
        "git",
        "argo_cd",
        "unknown_risky_tool",
        "release_notes",
        "Bash(ls:*)",
        "shell",
        "get_deployment_status",
        "mcp__github__create_pull_request",
        "mcp__context7__resolve-library-id",
        "secrets_read",
    ];
    assert_eq!(failing(&tools, |tool| !undeclared(tool, &[])), [""; 0]);
}

#[test]
fn the_current_tool_is_checked_for_undeclared_effects_and_named_once() {
    let next = |tools: &[&str], current: &str| {
        let body = json!({"goal": "g", "tools": tools, "side_effects": [], "context": {"current_tool": current}});
        risks(body).undeclared
    };
    assert_eq!(next(&["reader"], "delete_file"), [Culprit::new("context.current_tool", "delete_file")]);
    assert_eq!(next(&["reader", "delete_file"], "delete_file"), [Culprit::new("tools[1]", "delete_file")]);
    assert_eq!(next(&["reader"], "read_file"), []);
    assert_eq!(next(&["delete_a"; 200], "x").len(), MAX_CULPRITS);
}

#[test]
fn a_sensitive_tool_needs_side_effects_to_be_stated() {
    let stated = |body: Value| risks(body).undeclared.is_empty();
    assert!(!stated(json!({"goal": "g", "tools": ["bash"]})));
    assert!(stated(json!({"goal": "g", "tools": ["bash"], "side_effects": []})));
    assert!(stated(json!({"goal": "g", "tools": ["reader"]})));
}

#[test]
fn the_server_of_a_tool_ends_at_the_first_separator() {
    let parse = |name: &'static str| {
        let name = ToolName::parse(name);
        (name.server, name.tool)
    };
    assert_eq!(parse("mcp__github__push_files"), (Some("github"), "push_files"));
    assert_eq!(parse("MCP__GitHub__push"), (Some("GitHub"), "push"));
    assert_eq!(parse("mcp__a__b__c"), (Some("a"), "b__c"));
    for plain in ["read_file", "mcp_github_push", "mcp__github", "mcp____x", "mcp__x__", "é", "mcp"] {
        assert_eq!(parse(plain), (None, plain), "{plain}");
    }
}

#[test]
fn recorded_tool_names_are_limited_in_number_and_length_and_unique() {
    let names = |tools: Vec<String>| {
        let request = CheckRequest::parse(json!({"goal": "g", "tools": tools})).unwrap();
        ProposedTools::read(&request, &mut Evidence::new(None)).names()
    };
    assert_eq!(names(vec!["Read-File".into(), "read_file".into(), "B".into()]), ["read_file", "b"]);
    let many = names((0..200).map(|n| format!("{n}{}", "x".repeat(990))).collect());
    assert_eq!(many.len(), MAX_NAMES);
    assert!(many.iter().all(|name| name.chars().count() == MAX_NAME_CHARS));
}
