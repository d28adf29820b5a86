//! `stage0 keys`: manages API keys through the control API.
//!
//! The file for a new key is created before the request is sent, so that no key is made that cannot be stored.

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use stage0_contract::{AccountId, KeyCreated, KeyId, KeySummary, MemberId, Page, Scopes};

use crate::args::keys::{KeysCommand, NewKey};
use crate::client::{Connection, Credential, Query, block_on, parse, target};
use crate::new_file::NewFile;
use crate::out::{self, plain};
use crate::settings::client::ClientSettings;
use crate::table::{Table, fields, optional};

pub(crate) fn run(command: &KeysCommand, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = Connection::new(target(settings, Credential::Operator)?, settings.timeout)?;
    match command {
        KeysCommand::Create { name, scopes, account, expires_at, owner, shown } => {
            let mut body = json!({"name": name, "scopes": scopes});
            set(&mut body, "account", account.as_ref().or(client.account()).map(AccountId::as_str));
            set(&mut body, "expires_at", expires_at.as_deref());
            set(&mut body, "owner", owner.as_ref().map(MemberId::as_str));
            make(&client, &["v1", "keys"], &body, shown, |_| None)
        }
        KeysCommand::Rotate { id, overlap, shown } => {
            let mut body = Value::Object(Map::new());
            set(&mut body, "overlap_seconds", *overlap);
            let remark = |made: &CreatedKey| Some(old_key(id, *overlap, made));
            make(&client, &["v1", "keys", id.as_str(), "rotate"], &body, shown, remark)
        }
        KeysCommand::List { account, json } => list(&client, account.as_ref(), *json),
        KeysCommand::Revoke { id, json } => {
            block_on(client.execute(Method::DELETE, &["v1", "keys", id.as_str()]))?;
            out::show(*json, &json!({"id": id, "revoked": true}), |_| format!("revoked {id}"))
        }
    }
}

#[derive(Deserialize)]
struct CreatedKey {
    #[serde(flatten)]
    created: KeyCreated,
    /// Absent from an older server.
    #[serde(default)]
    old_key_expires_at: Option<Timestamp>,
}

fn make(
    client: &Connection,
    path: &[&str],
    body: &Value,
    shown: &NewKey,
    remark: impl FnOnce(&CreatedKey) -> Option<String>,
) -> anyhow::Result<()> {
    let file = shown.out.as_deref().map(NewFile::create).transpose()?;
    let answer: Value = block_on(client.call(Method::POST, path, &[], Some(body)))?;
    let made: CreatedKey = parse(&answer)?;
    let (created, remark) = (&made.created, remark(&made));
    match file {
        Some(file) => {
            let saved = file.keep_line(created.key.expose());
            saved.with_context(|| format!("the key {} exists and was not saved: revoke it", created.id))?;
            remark.iter().for_each(out::stderr_line);
            Ok(out::line(&created.id)?)
        }
        None if shown.json => {
            remark.iter().for_each(out::stderr_line);
            out::json(&answer)
        }
        None => {
            let remark = remark.map_or_else(String::new, |remark| format!("\n{remark}"));
            Ok(out::line(format!("{}{remark}", for_people(created)))?)
        }
    }
}

fn old_key(id: &KeyId, overlap: Option<u64>, made: &CreatedKey) -> String {
    let overlap = SignedDuration::from_secs(overlap.and_then(|overlap| overlap.try_into().ok()).unwrap_or_default());
    let computed = || made.created.created_at.checked_add(overlap).unwrap_or(made.created.created_at);
    let ends = made.old_key_expires_at.unwrap_or_else(computed);
    if ends <= made.created.created_at {
        format!("The old key {id} no longer works: replace it now (--overlap SECONDS keeps both for a while).")
    } else {
        format!("The old key {id} works until {ends}.")
    }
}

fn for_people(created: &KeyCreated) -> String {
    let rows = fields([
        ("key", created.key.expose().to_string()),
        ("id", created.id.to_string()),
        ("account", created.account.to_string()),
        ("name", plain(&created.name)),
        ("scopes", words(&created.scopes)),
        ("expires", created.expires_at.map_or_else(|| "never".to_owned(), |at| at.to_string())),
    ]);
    format!("{rows}\n\nThe key is shown this once; it cannot be read again.")
}

#[derive(Deserialize)]
struct Listed {
    #[serde(flatten)]
    key: KeySummary,
    /// Rounded to the hour. Absent if the key was never used, or from an older server.
    #[serde(default)]
    last_used_at: Option<Timestamp>,
}

fn list(client: &Connection, account: Option<&AccountId>, as_json: bool) -> anyhow::Result<()> {
    let query = Query::default().with("account", account.or(client.account()));
    let keys: Page<Value> = block_on(client.list(&["v1", "keys"], &query, None))?;
    if as_json {
        return out::json(&keys);
    }
    let headings = ["ID", "NAME", "SCOPES", "CREATED", "EXPIRES", "REVOKED", "MEMBER", "OWNER", "LAST USED"];
    let mut table = Table::new(headings).shrinkable(&[(2, 12), (3, 11), (1, 8), (7, 0), (6, 0), (4, 11), (5, 11)]);
    for key in &keys.items {
        let Listed { key, last_used_at } = parse(key)?;
        table.row([
            key.id.to_string(),
            key.name,
            words(&key.scopes),
            key.created_at.to_string(),
            optional(key.expires_at.as_ref()),
            optional(key.revoked_at.as_ref()),
            optional(key.member.as_ref()),
            optional(key.owner.as_ref()),
            last_used_at.map_or_else(|| "-".to_owned(), hour),
        ]);
    }
    Ok(table.print()?)
}

fn hour(at: Timestamp) -> String {
    let text = at.to_string();
    text.split_once(':').map_or_else(|| text.clone(), |(hour, _)| format!("{hour}h"))
}

pub(crate) fn words(scopes: &Scopes) -> String {
    scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(" ")
}

/// Adds a member if there is a value.
pub(crate) fn set<T: Into<Value>>(body: &mut Value, name: &str, value: Option<T>) {
    if let (Some(members), Some(value)) = (body.as_object_mut(), value) {
        members.insert(name.to_owned(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(old_key_expires_at: Option<&str>) -> CreatedKey {
        let mut answer = json!({
            "id": "0w3ge1r70w3ge1r7", "key": "s0_0w3ge1r70w3ge1r7_144gj289144gj289144gj289144gj289ka2s328",
            "account": "acc_1", "name": "ci", "scopes": ["check"],
            "created_at": "2026-11-26T13:00:00Z", "expires_at": null
        });
        set(&mut answer, "old_key_expires_at", old_key_expires_at);
        parse(&answer).unwrap()
    }

    #[test]
    fn rotation_says_when_the_old_key_ends() {
        let old = KeyId::parse("144gj289144gj289").unwrap();
        let text = |overlap, expires| old_key(&old, overlap, &made(expires));
        for dead in [text(None, None), text(Some(0), None), text(None, Some("2026-11-26T13:00:00Z"))] {
            assert!(dead.contains("144gj289144gj289 no longer works") && dead.contains("--overlap"), "{dead}");
        }
        assert!(text(Some(3_600), None).ends_with("works until 2026-11-26T14:00:00Z."), "an older server says nothing");
        let shorter = text(Some(3_600), Some("2026-11-26T13:30:00Z"));
        assert!(shorter.ends_with("works until 2026-11-26T13:30:00Z."), "the server knows better: {shorter}");
    }

    #[test]
    fn the_last_use_is_shown_to_the_hour() {
        assert_eq!(hour("2026-11-26T13:00:00Z".parse().unwrap()), "2026-11-26T13h");
    }
}
