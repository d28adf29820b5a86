//! `stage0 keys`: the key calls of the control API (contract, section 7).
//!
//! Owns where a new key goes: the terminal, once, or a new file of mode 0600 that is opened before the server is asked, so that no
//! key is made that has no place.

use anyhow::Context as _;
use reqwest::Method;
use serde_json::{Map, Value, json};
use stage0_contract::{AccountId, KeyCreated, KeySummary, Page, Scopes};

use crate::args::{DoKeys, NewKey};
use crate::client::{Client, Target, Whose, block_on};
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
            make(&client, &["v1", "keys"], &body, shown)
        }
        DoKeys::Rotate { id, overlap, shown } => {
            let mut body = Value::Object(Map::new());
            set(&mut body, "overlap_seconds", *overlap);
            make(&client, &["v1", "keys", id.as_str(), "rotate"], &body, shown)
        }
        DoKeys::List { account, json } => list(&client, account.as_ref(), *json),
        DoKeys::Revoke { id } => {
            block_on(async {
                client.send(Method::DELETE, &["v1", "keys", id.as_str()], &[], None).await?.successful()
            })?;
            Ok(out::line(format!("revoked {id}"))?)
        }
    }
}

fn make(client: &Client, path: &[&str], body: &Value, shown: &NewKey) -> anyhow::Result<()> {
    let file = shown.out.as_deref().map(NewFile::create).transpose()?;
    let created: KeyCreated = block_on(client.call(Method::POST, path, &[], Some(body)))?;
    match file {
        Some(mut file) => {
            let written = file.write(format!("{}\n", created.key.expose()).as_bytes()).and_then(|()| file.keep());
            written.with_context(|| format!("the key {} exists and nobody has it, revoke it", created.id))?;
            Ok(out::line(&created.id)?)
        }
        None if shown.json => out::json(&created),
        None => Ok(out::line(for_people(&created))?),
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
        optional(created.expires_at.as_ref()),
    )
}

fn list(client: &Client, account: Option<&AccountId>, as_json: bool) -> anyhow::Result<()> {
    let account = account.or(client.account()).map(AccountId::as_str);
    let keys: Vec<KeySummary> = block_on(pages(client, &["v1", "keys"], account))?;
    if as_json {
        return out::json(&Page { items: keys, next_cursor: None });
    }
    let mut table = Table::new(["ID", "NAME", "SCOPES", "CREATED", "EXPIRES", "REVOKED"]);
    for key in &keys {
        table.row([
            key.id.to_string(),
            plain(&key.name),
            words(&key.scopes),
            key.created_at.to_string(),
            optional(key.expires_at.as_ref()),
            optional(key.revoked_at.as_ref()),
        ]);
    }
    Ok(out::line(table)?)
}

/// Every page of a list.
pub(crate) async fn pages<T: serde::de::DeserializeOwned>(
    client: &Client,
    path: &[&str],
    account: Option<&str>,
) -> Result<Vec<T>, crate::client::ClientError> {
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
