//! Known answers of the grammar: what is a constraint, what is an unusable value, and what is a sentence.

use super::*;

fn known(name: &str) -> ConstraintName {
    ConstraintName::parse(name).unwrap()
}

/// With some aliases and tags, as a pack has them.
fn names() -> Names {
    let (names, faults) = Names::with(
        [
            ("allowed_env", known("allowed_environment")),
            ("budget_usd", known("max_cost_usd")),
            ("max_steps", known("max_iterations")),
            ("mfa", known("mfa_required")),
            ("2fa_required", known("mfa_required")),
            ("requires_approval", known("approval_required")),
        ],
        ["max_tokens", "read_only_role", "rate_limit", "note"],
    );
    // The plural of a part makes no other name.
    assert_eq!(faults, [NameFault::Taken("requires_approval".to_owned(), "approval_required")]);
    names
}

fn normal(text: &str) -> Option<String> {
    Constraint::parse(text).unwrap().map(|c| c.normalised())
}

fn read(text: &str) -> Reading {
    Constraint::read(text, &names()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn form(text: &str) -> Option<String> {
    match read(text) {
        Reading::Constraint(constraint) => Some(constraint.normalised()),
        _ => None,
    }
}

fn refusal(text: &str) -> String {
    match Constraint::read(text, &names()) {
        Err(error) => error.to_string(),
        Ok(reading) => panic!("{text} is taken: {reading:?}"),
    }
}

#[test]
fn spellings_and_aliases_come_to_one_form() {
    for (text, form) in [
        ("approval required", "approval_required"),
        ("Human Approval Required for trading intents", "approval_required"),
        ("require_approval: true", "approval_required"),
        ("rollback plan required", "rollback_plan_required"),
        ("read-only", "read_only"),
        ("max_iterations:3", "max_iterations: 3"),
        ("MAX-ITERATIONS: 3", "max_iterations: 3"),
        ("timeout:300s", "timeout: 300s"),
        ("timeout_seconds: 1.5", "timeout: 1.5s"),
        ("max_cost_usd: 2.00", "max_cost_usd: 2"),
        ("allowed_environment:staging,production", "allowed_environment: staging, production"),
        ("allowed_environment: [staging, \"Production\"]", "allowed_environment: staging, production"),
        ("resource_scope:accounts:staging", "resource_scope: accounts:staging"),
        ("business hours only", "allowed_change_window: business_hours"),
        ("same_tool: 2", "same_tool_limit: 2"),
        ("max_retries： 5", "max_retries: 5"),
        ("allowedTools: read_file", "allowed_tools: read_file"),
        ("AllowedTool = readFile", "allowed_tools: readfile"),
        ("max_record=10", "max_records: 10"),
        ("\"max_iterations\": 3", "max_iterations: 3"),
        ("environment: staging", "environment: staging"),
        ("denied tools: Bash, mcp__x__*", "denied_tools: bash, mcp__x__*"),
        ("approval_max_age: 24h", "approval_max_age: 86400s"),
        ("requiresApproval: true", "approval_required"),
        ("dry run.", "dry_run"),
    ] {
        assert_eq!(normal(text).as_deref(), Some(form), "{text}");
    }
    assert_eq!(form("allowedEnvs: dev").as_deref(), Some("allowed_environment: dev"));
    assert_eq!(form("2fa required").as_deref(), Some("mfa_required"));
    assert!(normal("allowedEnvs: dev").is_none(), "an alias is the pack's");
}

#[test]
fn free_text_and_flags_that_are_off_have_no_effect() {
    for text in [
        "no side effects",
        "informational only",
        "dry-run first",
        "production_deployment",
        "approval_required: false",
        "sandbox: off",
        "mfa_required:no",
        "read_only: 0",
        "business_hours_only: false",
        "no approval required",
        "read_\u{43e}nly",
        "sandbox: \"false\"",
        "sandbox = Disabled",
        "sandbox: f",
        "sandbox: never",
        "sandbox: none",
        "read_only: null",
        "read_only: N.",
    ] {
        assert_eq!(normal(text), None, "{text}");
    }
    for text in ["sandbox: on", "sandbox: yes", "sandbox: 1", "sandbox: docker", "sandbox:"] {
        assert_eq!(normal(text).as_deref(), Some("sandbox"), "{text}");
    }
}

#[test]
fn the_first_edition_keeps_its_names_and_switches() {
    let first = |text: &str| match Constraint::read(text, Names::first_edition()).unwrap() {
        Reading::Constraint(constraint) => Some(constraint.normalised()),
        Reading::Off | Reading::Text => None,
        Reading::NotUnderstood(_) => panic!("{text} is not the first edition's business"),
    };
    for text in ["allowedTools: x", "allowed_tool: x", "max_iterations=3", "denied_tools: x", "environment: x"] {
        assert_eq!(first(text), None, "{text}");
    }
    assert_eq!(first("sandbox: never").as_deref(), Some("sandbox"));
    assert_eq!(first("Allowed-Tools: x").as_deref(), Some("allowed_tools: x"));
    assert_eq!(first("business_hours_only").as_deref(), Some("allowed_change_window: business_hours"));
}

#[test]
fn lists_are_separated_in_a_few_ways_and_refused_in_others() {
    for (text, entries) in [
        ("required_role: sre|admin", "required_role: sre, admin"),
        ("required_role: sre; admin", "required_role: sre, admin"),
        ("allowed_environment: dev、staging", "allowed_environment: dev, staging"),
        ("allowed_environment: ['dev','staging']", "allowed_environment: dev, staging"),
        ("allowed_environment: [\"dev\", \"staging\"]", "allowed_environment: dev, staging"),
        ("denied_tools: \" 'Bash' \", ' \"curl\"'", "denied_tools: bash, curl"),
        ("allowed_environment: eu staging", "allowed_environment: eu staging"),
        ("allowed_environment: eu/staging", "allowed_environment: eu/staging"),
        ("required_role: Platform Admin", "required_role: platform admin"),
        ("required_role: band, organ", "required_role: band, organ"),
        ("resource_scope: a and b/(x)/{y}, !z", "resource_scope: a and b/(x)/{y}, !z"),
        ("resource_scope: app/[id]/page", "resource_scope: app/[id]/page"),
    ] {
        assert_eq!(normal(text).as_deref(), Some(entries), "{text}");
    }
    for text in [
        "allowed_environment: (dev, staging)",
        "allowed_environment: {dev, staging}",
        "allowed_environment: [dev, staging",
        "allowed_environment: dev/staging",
        "allowed_environment: dev staging",
        "allowed_environment: dev and staging",
        "denied_environment: dev or staging",
        "environment: !production",
        "allowed_environment: not production",
        "required_role: sre AND admin",
        "allowed_tools: a, or b",
        "allowed_tools: a & b",
        "allowed_mcp_servers: !github",
        "require_approval_for: delete and deploy",
        "allowed_environment:",
        "required_role: [ , ]",
    ] {
        let told = refusal(text);
        assert!(told.contains(": a, b`"), "{text}: {told}");
    }
}

#[test]
fn a_star_stands_at_the_end_of_what_takes_one() {
    for (text, normal_form) in [
        ("allowed_tools: read_*, *", "allowed_tools: read_*, *"),
        ("allowed_tools: mcp__context7__*", "allowed_tools: mcp__context7__*"),
        ("allowed_tools: mcp__context7__get_**", "allowed_tools: mcp__context7__get_*"),
        ("denied_tools: *", "denied_tools: *"),
        ("allowed_mcp_servers: git*", "allowed_mcp_servers: git*"),
        ("resource_scope: src/**", "resource_scope: src/*"),
        ("resource_scope: https://api.example.com/*", "resource_scope: https://api.example.com/*"),
        ("resource_scope: https://*", "resource_scope: https://*"),
        ("resource_scope: reports.2024*", "resource_scope: reports.2024*"),
        ("resource_scope: orders.items.*", "resource_scope: orders.items.*"),
    ] {
        assert_eq!(normal(text).as_deref(), Some(normal_form), "{text}");
    }
    for text in [
        "allowed_tools: *_file",
        "allowed_tools: read*file",
        "resource_scope: a*b",
        "resource_scope: a/**/*.py",
        "allowed_tools: mcp__*",
        "allowed_tools: MCP__git*",
        "denied_tools: mcp__*__delete",
        "allowed_tools: mcp__git_*",
        "resource_scope: https://api.example.com*",
        "resource_scope: https://api.*",
        "resource_scope: api.example.com*",
        "allowed_mcp_servers: mcp.example.com*",
        "required_role: *",
        "required_role: admin*",
        "allowed_environment: *",
        "denied_environment: prod*",
        "require_approval_for: *",
        "allowed_change_window: *",
    ] {
        let told = refusal(text);
        assert!(told.contains('*') && told.contains("write"), "{text}: {told}");
    }
}

#[test]
fn durations_have_a_unit_of_one_letter_or_none() {
    for (text, seconds) in [
        ("timeout: 30", "30"),
        ("timeout: 30s", "30"),
        ("timeout: 5m", "300"),
        ("timeout: 1 h", "3600"),
        ("timeout: 1.5H", "5400"),
        ("timeout: \"90\"", "90"),
        ("timeout: 0", "0"),
        ("timeout: ３０ｓ", "30"),
    ] {
        assert_eq!(normal(text), Some(format!("timeout: {seconds}s")), "{text}");
    }
    for text in [
        "timeout: 30 seconds",
        "timeout: 5 min",
        "timeout: 300ms",
        "timeout: 00:05:00",
        "timeout: 30,5",
        "timeout: -1",
        "timeout: soon",
        "timeout: s",
        "timeout: 1h30m",
        "timeout",
        "timeout: 9223372036854h",
        "approval_max_age: 1d",
    ] {
        let told = refusal(text);
        assert!(told.contains("`300s`, `5m`, `1h`"), "{text}: {told}");
    }
}

#[test]
fn whole_numbers_may_end_in_a_zero_behind_the_point_and_money_is_plain() {
    for (text, form) in [
        ("max_iterations: 3.0", "max_iterations: 3"),
        ("max_iterations: 03", "max_iterations: 3"),
        ("max_iterations: ３", "max_iterations: 3"),
        ("max_iterations: '3'", "max_iterations: 3"),
        ("max_cost_usd: ５", "max_cost_usd: 5"),
        ("max_cost_usd: 49649733.057", "max_cost_usd: 49649733.057"),
    ] {
        assert_eq!(normal(text).as_deref(), Some(form), "{text}");
    }
    for text in [
        "max_iterations",
        "max_iterations: many",
        "max_iterations: -1",
        "max_iterations: 1.5",
        "max_iterations: 1.0000001",
        "max_iterations: 2.9999999",
        "max_records: 0.9999999",
        "max_retries: 3.",
        "max_iterations: 3;",
        "max_iterations: [3]",
        "max_iterations: 3 iterations",
        "max_iterations: 3-5",
        "max_iterations == 3",
        "max_retries: 1e9",
        "max_retries: 5m",
        "max_records: ٣",
        "same_tool_limit: unlimited",
        "max_cost_usd: $5",
        "max_cost_usd: 5$",
        "max_cost_usd: 5 USD",
        "max_cost_usd: 1,000",
        "max_cost_usd: 1.000,50",
        "max_cost_usd: 99999999999999999999",
        "max_cost_usd: 1000000000.01",
        "budget_usd: five",
    ] {
        let told = refusal(text);
        assert!(told.contains(": 3`") || told.contains(": 2.50`"), "{text}: {told}");
    }
}

#[test]
fn a_list_has_a_thousand_entries_at_most() {
    let list = |entries: usize| Constraint::parse(&format!("allowed_tools: {}", vec!["t"; entries].join(",")));
    assert!(list(MAX_LIST_ENTRIES).is_ok());
    let Err(error) = list(MAX_LIST_ENTRIES + 1) else { panic!("taken") };
    assert_eq!(error.to_string(), "`allowed_tools` takes at most 1000 entries");
}

#[test]
fn what_has_the_form_of_a_constraint_is_not_passed_over() {
    for (text, meant) in [
        ("alowed_tools: read_file", Some("allowed_tools")),
        ("allowed_tols: read_file", Some("allowed_tools")),
        ("alloed_environmnt: staging", Some("allowed_environment")),
        ("max_iterations <= 3", Some("max_iterations")),
        ("max iterations < 3", Some("max_iterations")),
        ("max_iterations ≤ 3", Some("max_iterations")),
        ("max_iterations 3", Some("max_iterations")),
        ("max iterations 3", Some("max_iterations")),
        ("maxSteps 3", Some("max_iterations")),
        ("timeout 30 seconds", Some("timeout")),
        ("allowed_environment staging", Some("allowed_environment")),
        ("snadbox", Some("sandbox")),
        ("read_olny", Some("read_only")),
        ("approval requierd", Some("approval_required")),
        ("{'max_iterations': 3}", Some("max_iterations")),
        ("{\"max_iteration\": 3}", Some("max_iterations")),
        ("{}", None),
        ("language: English", None),
        ("language=English", None),
        ("score > 5", None),
        ("steps 4", None),
        ("max_t\u{43e}kens: 3", None),
        ("timeout_minutes: 5", Some("timeout")),
        ("change_window: business_hours", Some("allowed_change_window")),
        ("role: admin", Some("required_role")),
        ("x=>y", None),
    ] {
        match read(text) {
            Reading::NotUnderstood(names) => assert_eq!(names.first().copied(), meant, "{text}"),
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn sentences_addresses_and_tags_are_left_alone() {
    for text in [
        "no side effects",
        "informational only",
        "dry-run first",
        "bounded investigation only",
        "destination must be valid",
        "Please note: keep it short",
        "https://example.com/policy",
        "mailto:ops@example.com",
        "E:/Main/app",
        "max_tokens: 500",
        "maxTokens=500",
        "rate_limit: 10/min",
        "max_tokens 500",
        "Note: keep it short",
        "read_only_role",
        "symbol must be in allowlist",
        "retry at most 3 times",
        "local files only",
        "read once",
        "careful",
        "no actionable recommendations",
        "幫我查天氣",
        "use the sandbox that was prepared for this task",
    ] {
        assert!(matches!(read(text), Reading::Text), "{text}: {:?}", read(text));
    }
}

#[test]
fn an_alias_that_is_known_or_could_match_nothing_is_a_fault() {
    let one = |alias| Names::with([(alias, known("timeout"))], []).1;
    assert_eq!(one("time_limit"), []);
    assert_eq!(one("max_retry"), [NameFault::Taken("max_retry".to_owned(), "max_retries")]);
    for alias in ["Time Limit", "time limit", "time:limit", "", "tim\u{435}"] {
        assert_eq!(one(alias), [NameFault::NotNormal(alias.to_owned())]);
    }
    let (_, faults) = Names::with([("a_cap", known("max_cost_usd"))], ["a_cap"]);
    assert_eq!(faults, [NameFault::Taken("a_cap".to_owned(), "max_cost_usd")]);
}

#[test]
fn a_name_longer_than_any_is_compared_with_none() {
    let long = format!("{}: x", "allowed_environment_".repeat(49));
    assert!(matches!(read(&long), Reading::NotUnderstood(names) if names.is_empty()));
}
