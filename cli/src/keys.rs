//! `stage0 keys`: the key calls of the control API (contract, section 7).
//!
//! Owns where a new key goes: the terminal, once, or a new file of mode 0600 that is opened before the server is asked, so that no
//! key is made that has no place.

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use stage0_contract::{AccountId, KeyCreated, KeyId, KeySummary, Page, Scopes};

use crate::args::{DoKeys, NewKey};
use crate::client::{Client, ClientError, Target, Whose, block_on};
use crate::exit::Exit;
use crate::new_file::NewFile;
use crate::out::{self, plain};
use crate::settings::client::ClientSettings;
use crate::table::{Table, optional};

/// Runs one of them.
pub(crate) fn run(command: &DoKeys, settings: &ClientSettings) -> Exit {
    crate::run::finished(act(command, settings))
}

fn act(command: &DoKeys, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = Client::new(Target::find(settings, Whose::Operator)?, settings.timeout)?;
    match command {
        DoKeys::Create { name, scopes, account, expires_at, shown } => {
            let mut body = json!({"name": name, "scopes": scopes});
            set(&mut body, "account", account.as_ref().or(client.account()).map(AccountId::as_str));
            set(&mut body, "expires_at", expires_at.as_deref());
            make(&client, &["v1", "keys"], &body, shown, |_| None)
        }
        DoKeys::Rotate { id, overlap, shown } => {
            let mut body = Value::Object(Map::new());
            set(&mut body, "overlap_seconds", *overlap);
            let told = |made: &Made| Some(old_key(id, *overlap, made));
            make(&client, &["v1", "keys", id.as_str(), "rotate"], &body, shown, told)
        }
        DoKeys::List { account, json } => list(&client, account.as_ref(), *json),
        DoKeys::Revoke { id, json } => {
            block_on(async {
                client.send(Method::DELETE, &["v1", "keys", id.as_str()], &[], None).await?.successful()
            })?;
            if *json {
                return out::json(&json!({"id": id, "revoked": true}));
            }
            Ok(out::line(format!("revoked {id}"))?)
        }
    }
}

/// A new key, and what became of the one that it replaces.
#[derive(Deserialize)]
struct Made {
    #[serde(flatten)]
    created: KeyCreated,
    /// A server that is older does not say it.
    #[serde(default)]
    old_key_expires_at: Option<Timestamp>,
}

fn make(
    client: &Client,
    path: &[&str],
    body: &Value,
    shown: &NewKey,
    remark: impl FnOnce(&Made) -> Option<String>,
) -> anyhow::Result<()> {
    let file = shown.out.as_deref().map(NewFile::create).transpose()?;
    let answer: Value = block_on(client.call(Method::POST, path, &[], Some(body)))?;
    let made: Made = read(&answer)?;
    let (created, remark) = (&made.created, remark(&made));
    match file {
        Some(mut file) => {
            let written = file.write(format!("{}\n", created.key.expose()).as_bytes()).and_then(|()| file.keep());
            written.with_context(|| format!("the key {} exists and nobody has it, revoke it", created.id))?;
            remark.iter().for_each(out::complain);
            Ok(out::line(&created.id)?)
        }
        None if shown.json => {
            remark.iter().for_each(out::complain);
            out::json(&answer)
        }
        None => {
            let remark = remark.map_or_else(String::new, |remark| format!("\n{remark}"));
            Ok(out::line(format!("{}{remark}", for_people(created)))?)
        }
    }
}

/// What became of the key that was replaced. Without an overlap a server ends it at once.
fn old_key(id: &KeyId, overlap: Option<u64>, made: &Made) -> String {
    let overlap = SignedDuration::from_secs(overlap.and_then(|overlap| overlap.try_into().ok()).unwrap_or_default());
    let computed = || made.created.created_at.checked_add(overlap).unwrap_or(made.created.created_at);
    let ends = made.old_key_expires_at.unwrap_or_else(computed);
    if ends <= made.created.created_at {
        format!(
            "The old key {id} is dead from now on: whoever uses it needs the new one (--overlap SECONDS keeps both for a while)."
        )
    } else {
        format!("The old key {id} works until {ends}.")
    }
}

fn for_people(created: &KeyCreated) -> String {
    format!(
        "key      {}\nid       {}\naccount  {}\nname     {}\nscopes   {}\nexpires  {}\n\nThe key is shown this once; it cannot be read again.",
        created.key.expose(),
        created.id,
        created.account,
        plain(&created.name),
        words(&created.scopes),
        created.expires_at.map_or_else(|| "never".to_owned(), |at| at.to_string()),
    )
}

/// A key of a list.
#[derive(Deserialize)]
struct Listed {
    #[serde(flatten)]
    key: KeySummary,
    /// To the hour; absent when it was never used, and from a server that does not say it.
    #[serde(default)]
    last_used_at: Option<Timestamp>,
}

fn list(client: &Client, account: Option<&AccountId>, as_json: bool) -> anyhow::Result<()> {
    let account = account.or(client.account()).map(AccountId::as_str);
    let keys: Vec<Value> = block_on(pages(client, &["v1", "keys"], account))?;
    if as_json {
        return out::json(&Page { items: keys, next_cursor: None });
    }
    let headings = ["ID", "NAME", "SCOPES", "CREATED", "EXPIRES", "REVOKED", "LAST USED"];
    let mut table = Table::new(headings).giving_way(&[(2, 12), (3, 11), (1, 8), (4, 11), (5, 11)]);
    for key in &keys {
        let Listed { key, last_used_at } = read(key)?;
        table.row([
            key.id.to_string(),
            key.name,
            words(&key.scopes),
            key.created_at.to_string(),
            optional(key.expires_at.as_ref()),
            optional(key.revoked_at.as_ref()),
            last_used_at.map_or_else(|| "-".to_owned(), hour),
        ]);
    }
    Ok(table.print()?)
}

/// As exact as it is: `2026-11-26T13h`.
fn hour(at: Timestamp) -> String {
    let text = at.to_string();
    text.split_once(':').map_or_else(|| text.clone(), |(hour, _)| format!("{hour}h"))
}

/// An answer that is printed as JSON as it came is read apart, so that nothing of it is lost.
fn read<T: serde::de::DeserializeOwned>(answer: &Value) -> Result<T, ClientError> {
    T::deserialize(answer).map_err(|error| ClientError::Unreadable(plain(&error.to_string())))
}

/// Every page of a list.
pub(crate) async fn pages<T: serde::de::DeserializeOwned>(
    client: &Client,
    path: &[&str],
    account: Option<&str>,
) -> Result<Vec<T>, ClientError> {
    let (mut items, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let mut query: Vec<(&str, &str)> = account.iter().map(|account| ("account", *account)).collect();
        query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
        let page: Page<T> = client.call(Method::GET, path, &query, None).await?;
        items.extend(page.items);
        // A server that says the same page again would keep us here for ever.
        if page.next_cursor.is_none() || page.next_cursor == cursor {
            return Ok(items);
        }
        cursor = page.next_cursor;
    }
}

fn words(scopes: &Scopes) -> String {
    scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(" ")
}

/// Adds a member that is there.
pub(crate) fn set<T: Into<Value>>(body: &mut Value, name: &str, value: Option<T>) {
    if let (Some(members), Some(value)) = (body.as_object_mut(), value) {
        members.insert(name.to_owned(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(old_key_expires_at: Option<&str>) -> Made {
        let mut answer = json!({
            "id": "0w3ge1r70w3ge1r7", "key": "s0_0w3ge1r70w3ge1r7_144gj289144gj289144gj289144gj289ka2s328",
            "account": "acc_1", "name": "ci", "scopes": ["check"], "created_at": "2026-11-26T13:00:00Z", "expires_at": null
        });
        set(&mut answer, "old_key_expires_at", old_key_expires_at);
        read(&answer).unwrap()
    }

    #[test]
    fn what_becomes_of_a_replaced_key_is_told() {
        let old = KeyId::parse("144gj289144gj289").unwrap();
        let told = |overlap, expires| old_key(&old, overlap, &made(expires));
        for dead in [told(None, None), told(Some(0), None), told(None, Some("2026-11-26T13:00:00Z"))] {
            assert!(dead.contains("144gj289144gj289 is dead from now on") && dead.contains("--overlap"), "{dead}");
        }
        assert!(told(Some(3_600), None).ends_with("works until 2026-11-26T14:00:00Z."), "an older server says nothing");
        let shorter = told(Some(3_600), Some("2026-11-26T13:30:00Z"));
        assert!(shorter.ends_with("works until 2026-11-26T13:30:00Z."), "the server knows better: {shorter}");
    }

    #[test]
    fn a_use_is_told_as_exactly_as_it_is_known() {
        assert_eq!(hour("2026-11-26T13:00:00Z".parse().unwrap()), "2026-11-26T13h");
    }
}
