//! `stage0 members`: the people of an account, who approve what its workloads ask.
//!
//! INVARIANT: the person who invites another sees a code and never the other's key, which is shown to the holder of the
//! code alone. The file for a key is created before the code is sent, so that no code is used for a key that is lost.

use std::io::{self, IsTerminal as _, Read as _};

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{
    AccountId, InvitationAccepted, InvitationCode, Member, MemberId, MemberInvited, MemberStatus, Page,
};

use crate::args::members::{InviteArgs, MembersCommand, Valid};
use crate::client::{Connection, ConnectionError, Credential, Query, block_on, parse, target};
use crate::confirm;
use crate::exit::{Exit, UsageError};
use crate::keys::{set, words};
use crate::new_file::NewFile;
use crate::out::{self, plain};
use crate::settings::client::ClientSettings;
use crate::table::{Table, fields, optional};

const MEMBERS: [&str; 2] = ["v1", "members"];
/// More than a code with white space around it.
const MAX_CODE_BYTES: u64 = 256;

pub(crate) fn run(command: &MembersCommand, settings: &ClientSettings) -> anyhow::Result<Exit> {
    if let MembersCommand::Accept { code, json } = command {
        return accept(code.as_deref(), *json, settings).map(|()| Exit::Done);
    }
    if let MembersCommand::Remove { yes, .. } = command {
        confirm::require(*yes, "--yes is required because standard input is not a terminal")?;
    }
    let client = Connection::new(target(settings, Credential::Operator)?, settings.timeout)?;
    match command {
        MembersCommand::Invite(args) => invite(&client, &MEMBERS, &body_of(args, client.account()), args.json)?,
        MembersCommand::InviteAgain { member, valid: Valid { seconds }, json } => {
            let mut body = json!({});
            set(&mut body, "valid_seconds", *seconds);
            invite(&client, &path(member, &["invite"]), &body, *json)?;
        }
        MembersCommand::List { account, json } => list(&client, account.as_ref(), *json)?,
        MembersCommand::Groups { member, add, remove, set: all, account, json } => {
            let groups = match all {
                Some(all) => parts(all),
                None => changed(found(&client, member, account.as_ref())?.groups, add, remove),
            };
            let body = json!({"groups": groups});
            show(&client, Method::PATCH, &path(member, &[]), &body, *json)?;
        }
        MembersCommand::Remove { member, yes, json } => return remove(&client, member, *yes, *json),
        MembersCommand::Delegate { member, to, until, end: _, json } => {
            let now = Timestamp::now();
            let body = json!({"to": to, "until": until.map(|until| until.at(now))});
            show(&client, Method::POST, &path(member, &["delegate"]), &body, *json)?;
        }
        // It needs no key and was answered above.
        MembersCommand::Accept { .. } => {}
    }
    Ok(Exit::Done)
}

fn path<'a>(id: &'a MemberId, more: &[&'a str]) -> Vec<&'a str> {
    MEMBERS.into_iter().chain([id.as_str()]).chain(more.iter().copied()).collect()
}

fn body_of(args: &InviteArgs, found_account: Option<&AccountId>) -> Value {
    let mut body = json!({"name": args.name, "groups": args.groups});
    set(&mut body, "account", args.account.as_ref().or(found_account).map(AccountId::as_str));
    set(&mut body, "mail", args.mail.as_deref());
    set(&mut body, "scopes", (!args.scopes.is_empty()).then(|| json!(args.scopes)));
    set(&mut body, "valid_seconds", args.valid.seconds);
    body
}

fn invite(client: &Connection, path: &[&str], body: &Value, as_json: bool) -> anyhow::Result<()> {
    let answer: Value = block_on(client.call(Method::POST, path, &[], Some(body)))?;
    if as_json {
        return out::json(&answer);
    }
    let MemberInvited { member, invitation_code, invitation_expires_at } = parse(&answer)?;
    Ok(out::line(format!(
        "code     {}\n{}\n\nThe code is shown this once and works once, until {invitation_expires_at}. Give it to that \
         person alone, who types\n`stage0 members accept --url {} --key-file me.key` and then the code.",
        invitation_code.expose(),
        for_people(&member),
        client.url(),
    ))?)
}

fn show(client: &Connection, method: Method, path: &[&str], body: &Value, as_json: bool) -> anyhow::Result<()> {
    let answer: Value = block_on(client.call(method, path, &[], Some(body)))?;
    if as_json {
        return out::json(&answer);
    }
    Ok(out::line(for_people(&parse(&answer)?))?)
}

fn for_people(member: &Member) -> String {
    let delegate = member.delegate.as_ref().map(|delegate| format!("{} until {}", delegate.to, delegate.until));
    fields([
        ("member", member.id.to_string()),
        ("account", member.account.to_string()),
        ("name", plain(&member.name)),
        ("mail", optional(member.mail.as_deref().map(plain).as_ref())),
        ("groups", optional(Some(&plain(&member.groups.join(" "))).filter(|groups| !groups.is_empty()))),
        ("scopes", words(&member.scopes)),
        ("status", status(member.status).to_owned()),
        ("away", optional(delegate.as_ref())),
    ])
}

fn status(status: MemberStatus) -> &'static str {
    match status {
        MemberStatus::Invited => "invited",
        MemberStatus::Active => "active",
    }
}

fn list(client: &Connection, account: Option<&AccountId>, as_json: bool) -> anyhow::Result<()> {
    let members: Page<Value> = all(client, account)?;
    if as_json {
        return out::json(&members);
    }
    if members.items.is_empty() {
        out::stderr_line("this account has no members: `stage0 members invite NAME` invites one");
    }
    let headings = ["ID", "NAME", "MAIL", "GROUPS", "STATUS", "SCOPES", "CREATED", "AWAY"];
    let mut table = Table::new(headings).shrinkable(&[(6, 0), (5, 0), (2, 0), (7, 10), (3, 12), (1, 8)]);
    for member in &members.items {
        let member: Member = parse(member)?;
        let delegate = member.delegate.as_ref().map(|delegate| format!("{} until {}", delegate.to, delegate.until));
        table.row([
            member.id.to_string(),
            member.name,
            optional(member.mail.as_ref()),
            member.groups.join(" "),
            status(member.status).to_owned(),
            words(&member.scopes),
            member.created_at.to_string(),
            optional(delegate.as_ref()),
        ]);
    }
    Ok(table.print()?)
}

/// Every member of the account.
pub(crate) fn all<T: serde::de::DeserializeOwned>(
    client: &Connection,
    account: Option<&AccountId>,
) -> Result<Page<T>, ConnectionError> {
    let query = Query::default().with("account", account.or(client.account()));
    block_on(client.list(&MEMBERS, &query, None))
}

fn found(client: &Connection, id: &MemberId, account: Option<&AccountId>) -> anyhow::Result<Member> {
    let members: Page<Member> = all(client, account)?;
    match members.items.into_iter().find(|member| member.id == *id) {
        Some(member) => Ok(member),
        None => bail!("this account has no member {id}: `stage0 members list` lists them"),
    }
}

/// The groups after a change, in order and each once.
fn changed(mut groups: Vec<String>, add: &[String], remove: &[String]) -> Vec<String> {
    groups.extend(add.iter().cloned());
    groups.retain(|group| !remove.contains(group));
    groups.sort_unstable();
    groups.dedup();
    groups
}

fn parts(list: &str) -> Vec<String> {
    list.split(',').map(str::trim).filter(|group| !group.is_empty()).map(str::to_owned).collect()
}

fn remove(client: &Connection, id: &MemberId, yes: bool, as_json: bool) -> anyhow::Result<Exit> {
    if !yes {
        let question = format!(
            "Member {id} at {} will be removed: name and mail are deleted, keys revoked, and votes for approvals that \
             are not\nused no longer count. It cannot be undone. Remove?",
            client.url()
        );
        if !confirm::agrees(question)? {
            out::stderr_line("nothing was removed");
            return Ok(Exit::Failed);
        }
    }
    block_on(client.execute(Method::DELETE, &path(id, &[])))?;
    out::show(as_json, &json!({"id": id, "removed": true}), |_| format!("removed {id}"))?;
    Ok(Exit::Done)
}

fn accept(code: Option<&str>, as_json: bool, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = Connection::new(target(settings, Credential::Nothing)?, settings.timeout)?;
    let code = match code {
        Some(code) => code.to_owned(),
        None => read_code()?,
    };
    let Some(code) = InvitationCode::parse(code.trim()) else {
        return Err(UsageError("the code of an invitation is `inv_` and 32 letters and digits").into());
    };
    let file = settings.key_file.as_deref().map(NewFile::create).transpose()?;
    let body = json!({"code": code});
    let path = ["v1", "invitations", "accept"];
    let answer: Value = match block_on(client.call(Method::POST, &path, &[], Some(&body))) {
        Err(error @ ConnectionError::Refused { status: 404, .. }) => {
            let why = "the code is unknown, used or expired: ask for another (`stage0 members invite-again`)";
            return Err(error).context(why);
        }
        answer => answer?,
    };
    let InvitationAccepted { member, key_id, key } = parse(&answer)?;
    let Some(file) = file else {
        return match as_json {
            true => out::json(&answer),
            false => Ok(out::line(format!(
                "key      {}\nkey id   {key_id}\n{}\n\nThe key is shown this once; it cannot be read again.",
                key.expose(),
                for_people(&member)
            ))?),
        };
    };
    file.keep_line(key.expose())
        .with_context(|| format!("the key {key_id} exists and was not saved: ask to be invited again"))?;
    let shown = settings.key_file.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
    let mut public = answer;
    if let Some(members) = public.as_object_mut() {
        members.remove("key");
    }
    out::show(as_json, &public, |_| format!("key id   {key_id}, its key is in `{shown}`\n{}", for_people(&member)))
}

fn read_code() -> anyhow::Result<String> {
    if io::stdin().is_terminal() {
        out::prompt("Code of the invitation: ");
        let mut line = String::new();
        io::stdin().read_line(&mut line).context("cannot read the code")?;
        return Ok(line);
    }
    let mut text = String::new();
    io::stdin().lock().take(MAX_CODE_BYTES).read_to_string(&mut text).context("cannot read the code")?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member() -> Member {
        let fixture: Value = serde_json::from_str(include_str!("../../contract/fixtures/member_page.json")).unwrap();
        serde_json::from_value(fixture["done"]["items"][0].clone()).unwrap()
    }

    #[test]
    fn groups_are_added_and_removed_and_each_is_there_once() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let groups = changed(texts(&["b", "a"]), &texts(&["c", "a"]), &texts(&["b", "x"]));
        assert_eq!(groups, ["a", "c"]);
        assert_eq!(parts(" b, a,,"), ["b", "a"]);
        assert_eq!(parts(""), [""; 0], "an empty text removes every group");
    }

    #[test]
    fn a_member_is_shown_with_the_one_who_stands_in_and_escaped() {
        let mut member = member();
        member.name = "Ada\u{202e}\n".to_owned();
        let shown = for_people(&member);
        assert!(shown.contains("mem_2 until 2026-03-16T13:00:00Z") && shown.contains("release-managers"), "{shown}");
        assert!(shown.contains(r"Ada\u{202e}\u{a}") && !shown.contains('\u{202e}'), "{shown:?}");
    }
}
