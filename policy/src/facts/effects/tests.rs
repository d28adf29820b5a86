//! Each step, with texts that it makes stricter and the most similar ones that it does not.

use std::sync::{Arc, LazyLock};

use proptest::prelude::*;

use super::*;
use crate::pack::Pack;

static PACK: LazyLock<Arc<Pack>> = LazyLock::new(|| Pack::embedded().unwrap());

fn words() -> &'static EffectWords {
    PACK.vocabulary.second().unwrap().0
}

/// The class as a word; `unknown` where it is high because it is unknown, `medium?` where a part is unknown.
fn class(effect: &str) -> String {
    let effects = Effects::read(&[effect.to_owned()], &PACK.vocabulary);
    let reading = &effects.readings[0];
    assert_eq!(effects.high, reading.class == Class::High, "{effect}");
    match (reading.unknown, reading.unknown_parts.is_empty()) {
        (true, _) => "unknown".to_owned(),
        (false, true) => reading.class.as_str().to_owned(),
        (false, false) => format!("{}?", reading.class.as_str()),
    }
}

/// Asserts the class of every row, and reports all that differ at once.
fn all_are(rows: &[(&str, &[&str])]) {
    let mut wrong = Vec::new();
    for (expected, effects) in rows {
        for effect in *effects {
            let found = class(effect);
            if found != *expected {
                wrong.push(format!("{effect:?} is {found}, not {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn step_1_a_listed_side_effect_has_its_class_and_is_not_split() {
    all_are(&[
        (
            "high",
            &[
                "publish",
                "Deploy",
                "production_change",
                "money movement",
                "permission-change",
                "destructiveHint",
                "openWorldHint",
                "request_data_deletion",
                "write: money_movement",
                "write: production",
                "approve data_deletion",
                "notification: then publish it",
                "ｄｅｐｌｏｙ",
                "\u{202e}publish\u{202c}",
                "data_deletions",
            ],
        ),
        (
            "communication",
            &[
                "external_notification",
                "External Communication",
                "send_email",
                "sendEmail",
                "notifications",
                "external\u{200b}_notification",
                "write: external notification",
                "push_notification",
                "send_push_notification",
            ],
        ),
        (
            "medium",
            &[
                "write",
                "data_modification",
                "data_modification: users",
                "filesystem_modification: src/main.rs",
                "customer_impact",
                "service_impact",
                "external_api",
                "external_api: GET weather",
                "exec",
                "bash",
                "execute",
                "shell",
            ],
        ),
        ("loop", &["loop", "retry", "retries", "repeated_tool_call"]),
        ("approval", &["requires_approval", "sensitive_operation"]),
        (
            "none",
            &[
                "read_only",
                "read-only",
                "readOnly",
                "readOnlyHint",
                "none",
                "nothing",
                "n/a",
                "N/A",
                "-",
                "None",
                " NONE ",
            ],
        ),
        (
            "unknown",
            &["d\u{435}ploy", "wr\u{456}te", "teleport", "🚀", "irreversible", ":", ": delete", "", "--", "_-_"],
        ),
    ]);
}

#[test]
fn step_2_the_class_of_a_side_effect_is_that_of_its_strictest_part() {
    all_are(&[
        (
            "high",
            &[
                "kubectl_delete",
                "merge_pr",
                "fs_delete",
                "rm_rf",
                "row_delete",
                "terraform_destroy",
                "DROP TABLE",
                "force_push",
                "git.push",
                "git_push_force",
                "drizzle_push_force",
                "wire_transfer",
                "delete_file",
                "bulkDeleteIssues",
                "deleting rows",
                "dropped_tables",
                "purges",
                "s3DeleteObject",
                "transfers",
                "refunding",
                "stopping then killing",
                "update_and_delete",
                "git reset --hard",
                "revokes_access",
                "chmod 777",
                "uninstall_package",
                "read,delete",
                "read; delete",
                "read | rm",
                "read + purge",
                "read & wipe",
                "list_files then delete",
                "read or truncate",
            ],
        ),
        (
            "communication",
            &[
                "sms",
                "whatsapp",
                "telegram",
                "chat.postMessage",
                "post_tweet",
                "send_message",
                "add_comment",
                "slack",
                "gmail.send",
                "reply_to_email",
                "notify_customer",
                "send_sms",
                "tweeting",
                "message_customer",
                "write, sms",
                "share_document",
            ],
        ),
        ("approval", &["approve_pull_request", "approval"]),
        (
            "medium",
            &[
                "writes",
                "writing files",
                "FILE_WRITE",
                "LOW_WRITE",
                "db_write",
                "fs_write",
                "label_issue",
                "create_issue",
                "edit file",
                "updated_records",
                "inserting_rows",
                "uploads",
                "git_commit",
                "committed",
                "copied_files",
                "copying",
                "create_pull_request",
                "creation",
                "file creation",
                "http_post",
                "api_call",
                "read and write",
                "read/write",
                "openBrowserTab",
                "written_to_database",
                "running tests",
            ],
        ),
        ("loop", &["loops", "retrying", "loop_iteration"]),
        (
            "none",
            &[
                "query",
                "fs_read",
                "http_get",
                "web_search",
                "compute",
                "log",
                "pure",
                "db.query",
                "list_files",
                "searching the web",
                "queries",
                "fetched_pages",
                "file_read",
                "Read",
                "summarize",
                "cache",
                "propose",
                "draft",
                "get_weather_forecast",
                "read and search",
                "read, list",
                "list_tables_2",
                "no side effects",
                "no_side_effects",
                "NO SIDE EFFECTS.",
            ],
        ),
    ]);
}

#[test]
fn step_3_a_head_without_a_class_is_unknown_unless_it_is_nouns_before_a_colon() {
    all_are(&[
        (
            "unknown",
            &[
                "iam:CreateAccessKey",
                "s3:PutObject",
                "process_spawn",
                "sudo_elevate",
                "filesystem",
                "table",
                "database",
                "filesystem:",
                "filesystem: xyzzy",
                "xyzzy:read",
                "filesystem: -",
                "db:file:table",
            ],
        ),
        ("none", &["filesystem:read", "db: query", "web:search", "file: fs: read", "file:list_tables"]),
        ("medium", &["filesystem:write", "db:insert", "fs: write: /tmp/report.txt"]),
        ("high", &["filesystem:delete", "db: drop", "table:truncate", "file:file:rm"]),
    ]);
}

#[test]
fn step_4_none_needs_every_part_known_and_no_negation_or_secret() {
    all_are(&[
        (
            "unknown",
            &[
                "read_xyzzy",
                "not_read_only",
                "no_read",
                "never read",
                "without reading",
                "read: false",
                "read_only: off",
                "readOnlyHint: false",
                "pure: no",
                "read: 0",
                "read: n",
                "read: null",
                "cache: disabled",
                "read_0",
                "secrets_read",
                "read: /etc/shadow",
                "read: ~/.ssh/id_rsa",
                "get_password",
                "list_api_keys",
                "read: credentials",
                "get token",
                "read: .env",
                "none: see above",
                "nothing: at all",
                "n/a: none",
                "no_side_effects: false",
                "none, xyzzy",
            ],
        ),
        (
            "none",
            &[
                "none:",
                "read: report.pdf",
                "search: flights to Paris",
                "no_side_effects: reads a page",
                "no side effects",
                "read_only: true",
                "list_users",
                "get_order",
                "get invoice 7",
                "none; nothing",
                "read: keyboard layout",
            ],
        ),
        ("high", &["read: money_movement", "read: payment"]),
    ]);
    // A stricter tail counts even where the head takes no text.
    assert!(Effects::read(&["none: delete".to_owned()], &PACK.vocabulary).high);
}

#[test]
fn step_5_an_unknown_part_is_named_and_a_weighty_one_is_high() {
    all_are(&[
        ("medium?", &["write_xyzzy", "create_zettelkasten", "xyzzy_update"]),
        ("communication?", &["sms_xyzzy"]),
        ("medium", &["write_note", "update_page", "create_report"]),
        (
            "high",
            &[
                "send_money",
                "update_permission",
                "write_prod",
                "create_user",
                "update_user_role",
                "edit_iam_policy",
                "set_dns_record",
                "open_firewall",
                "create_invoice",
                "place_order",
                "update_price",
                "write: prod",
                "send: money",
                "write: secrets",
                "create_deletion_request",
                "write: users.json",
                "execute: sudo ls",
                "edit_ssh_config",
                "external_api: payout",
                "execute: update users",
                "update production",
            ],
        ),
        ("medium", &["external_api: users", "execute: pytest tests/test_user.py", "data_modification: orders"]),
        ("communication", &["email_user", "send_email_to_user", "message_user", "send_order_message"]),
    ]);
    let effects = Effects::read(&["write_xyzzy".to_owned()], &PACK.vocabulary);
    assert!(effects.unknown_part && !effects.unknown && !effects.high);
    assert_eq!(effects.readings[0].unknown_parts, ["xyzzy"]);
}

#[test]
fn step_6_common_nouns_do_not_count_after_a_harmless_verb() {
    all_are(&[
        (
            "none",
            &[
                "list_merge_requests",
                "draft_email",
                "charges.list",
                "stripe.charges.list",
                "get_release",
                "list_transfers",
                "read_messages",
                "search_comments",
                "list_open_issues",
                "get_request",
                "view refund",
                "list_payments",
                "get_deployment_status",
                "list_webhooks",
                "github_list_releases",
                "slack_list_channels",
                "gmail_search",
                "messages.get",
                "read: release notes",
                "read: message",
                "log: comment",
            ],
        ),
        (
            "high",
            &[
                "grant_read_access",
                "charge",
                "charges",
                "transfer",
                "merge_and_list",
                "release_get.run",
                "charges_list",
                "list_merges_then_delete",
                "payment",
                "write: payment",
            ],
        ),
        ("communication", &["message_list", "comment", "email", "list, email"]),
        ("medium", &["write: merge request description", "write: release notes", "write: email.txt"]),
        ("communication", &["send: email to all", "post: message", "send: slack"]),
    ]);
}

#[test]
fn step_7_known_parts_after_the_colon_can_only_make_the_class_stricter() {
    all_are(&[
        (
            "high",
            &[
                "execute: DROP TABLE users",
                "write: s3:DeleteObject",
                "write: DROP MEASUREMENT readings",
                "execute: terraform destroy -auto-approve",
                "external_api: wire transfer of the balance",
                "shell: rm -rf /",
                "delete: read only",
                "deploy: none",
                "exec: git push --force",
                "read: delete.txt",
                "query: DROP TABLE users",
                "write: a, money movement",
                "exec: kubectlDelete",
            ],
        ),
        (
            "medium",
            &[
                "write: report.pdf",
                "write: draft",
                "write: xyzzy",
                "write: read only",
                "execute: ls -la",
                "write: none",
                "search: edit history",
                "write: disk",
            ],
        ),
        ("communication", &["sms: read only", "external_api: then notify them"]),
        ("none", &["read: xyzzy", "search: what is a monad"]),
    ]);
}

#[test]
fn words_for_nothing_are_no_effect_and_harmless_effects_count_for_scopes() {
    let read = |effects: &[&str]| {
        let effects: Vec<String> = effects.iter().map(|effect| (*effect).to_owned()).collect();
        Effects::read(&effects, &PACK.vocabulary)
    };
    for nothing in
        [&[][..], &["none"], &["None", "n/a"], &["-"], &["nothing"], &["no side effects"], &["none, nothing"]]
    {
        let effects = read(nothing);
        assert!(!effects.any && !effects.scoped && !effects.unknown, "{nothing:?}");
    }
    for harmless in [&["read"][..], &["none", "read"], &["pure"], &["read_only"], &["none, read"]] {
        let effects = read(harmless);
        assert!(!effects.any && effects.scoped, "{harmless:?}");
    }
    let mixed = read(&["none", "delete", "write", "retry"]);
    assert!(mixed.any && mixed.scoped && mixed.high && mixed.medium && mixed.looping);
    assert_eq!(mixed.classes(), ["high", "loop", "medium", "none"]);
    let culprits =
        mixed.culprits(&["none".into(), "delete".into(), "write".into(), "retry".into()], |r| r.class == Class::High);
    assert_eq!(culprits, [Culprit::new("side_effects[1]", "delete")]);
}

#[test]
fn side_effects_that_write_have_impact_or_are_customer_visible_are_marked() {
    let read = |effect: &str| Effects::read(&[effect.to_owned()], &PACK.vocabulary);
    for writes in
        ["write", "file_write", "creating notes", "data_modification", "upload: x", "customer_impact", "db:insert"]
    {
        assert!(read(writes).writes, "{writes}");
    }
    for other in ["execute", "shell", "external_api", "api_call", "read", "sms", "none", "send"] {
        assert!(!read(other).writes, "{other}");
    }
    assert!(read("Service Impact").impact && read("execute, customer_impact").impact && !read("write").impact);
    assert!(read("published").customer_visible && read("external-notification").customer_visible);
    assert!(!read("notification").customer_visible && !read("draft").customer_visible);
}

#[test]
fn similar_words_are_suggested_for_unknown_side_effects_only() {
    let near = |effect: &str| Effects::read(&[effect.to_owned()], &PACK.vocabulary).readings[0].near.clone();
    assert!(near("delte").contains(&"delete".to_owned()));
    assert!(near("publsih").contains(&"publish".to_owned()));
    assert!(near("wrte_file").contains(&"write".to_owned()));
    for none in ["delete", "teleportation", &"x".repeat(1_000)] {
        assert!(near(none).is_empty(), "{none}");
    }
    let many = vec!["delte".to_owned(); 200];
    let effects = Effects::read(&many, &PACK.vocabulary);
    assert_eq!(effects.readings.iter().filter(|reading| !reading.near.is_empty()).count(), MAX_CULPRITS);
}

#[test]
fn classifying_takes_memory_in_proportion_to_the_text() {
    for unit in [
        "a",
        "a,",
        "a:",
        "file:",
        "a.",
        "write ",
        "request_data_",
        "n/a ",
        "1a",
        "aB",
        "delte ",
        "\u{fdfa}",
        "s",
        "sss",
    ] {
        let total = |chars: usize| {
            let text: String = unit.chars().cycle().take(chars).collect();
            let items = vec![text; 200];
            allocation_counter::measure(|| drop(Effects::read(&items, &PACK.vocabulary))).bytes_total
        };
        let (half, whole) = (total(500), total(1_000));
        assert!(whole < half * 3 + 1_000_000, "{unit:?}: {half} and {whole}");
        assert!(whole < 200 * 1_000 * 1_000, "{unit:?}: {whole}");
    }
}

/// One effect in another spelling: case, separators, invisible characters.
fn respelt(effect: &str, upper: bool, separator: &str, camel: bool) -> String {
    let parts: Vec<String> = effect
        .split('_')
        .enumerate()
        .map(|(index, part)| match (upper, camel && index > 0) {
            (true, _) => part.to_uppercase(),
            (false, true) => {
                let mut letters = part.chars();
                letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
            }
            (false, false) => part.to_owned(),
        })
        .collect();
    parts.join(if camel && !upper { "" } else { separator })
}

proptest! {
    #[test]
    fn the_spelling_of_a_side_effect_does_not_change_its_class(
        effect in prop::sample::select(vec![
            "publish", "data_deletion", "send_email", "external_notification", "write", "file_write",
            "list_merge_requests", "grant_read_access", "send_money", "write_xyzzy", "secrets_read",
            "no_side_effects", "read_only", "web_search", "customer_impact", "retry",
            "requires_approval", "teleport", "kubectl_delete", "add_comment",
        ]),
        upper in any::<bool>(),
        camel in any::<bool>(),
        separator in prop::sample::select(vec!["_", "-", " ", "\u{2011}", "_\u{200b}"]),
    ) {
        let spelt = respelt(effect, upper, separator, camel);
        prop_assert_eq!(class(effect), class(&spelt), "{}", spelt);
    }

    #[test]
    fn text_after_a_colon_never_makes_a_side_effect_milder(head in "[a-z_]{1,12}", tail in "\\PC{0,30}") {
        let of = |text: &str| classify(text, words(), Source::Effect).class;
        prop_assume!(of(&head) > Class::None || !words().of_class(Class::None).contains(&head.as_str()));
        let alone = of(&head);
        let together = of(&format!("{head}: {tail}"));
        // Harmless nouns alone are unknown, and take the class of what follows.
        prop_assert!(together >= alone || classify(&head, words(), Source::Effect).unknown, "{} {}", head, tail);
    }
}
