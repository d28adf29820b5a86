//! Who asks, as the gateway authenticated it.
//!
//! INVARIANT: what a gateway did not tell is absent and not empty, so a rule that reads it fails, and a rule that fails
//! denies.

use stage0_contract::{AccountId, Actor};

use crate::explain::Proposed;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(super) account: Option<String>,
    pub(super) key_id: Option<String>,
    pub(super) key_name: Option<String>,
    pub(super) workload: Option<String>,
    pub(super) member: Option<String>,
    pub(super) owner: Option<String>,
    pub(super) groups: Option<Vec<String>>,
}

/// Who asks, before it is read: only a pack whose rules name the caller pays for it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Asking<'a> {
    /// By the gateway; an older one does not tell who asks.
    Gateway { account: &'a AccountId, asker: Option<&'a Actor> },
    /// By a case, or outside of a server.
    Named(&'a NamedCaller),
}

/// A caller of which everything is known, as a case gives it. Each member may be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct NamedCaller {
    account: String,
    key_id: String,
    key_name: String,
    workload: String,
    member: String,
    owner: String,
    groups: Vec<String>,
}

impl NamedCaller {
    /// The caller of a case that names none, and of a check outside of a server.
    pub(crate) const UNNAMED: Self = Self {
        account: String::new(),
        key_id: String::new(),
        key_name: String::new(),
        workload: String::new(),
        member: String::new(),
        owner: String::new(),
        groups: Vec::new(),
    };

    /// The caller of an action that is only explained.
    pub(crate) fn of(proposed: &Proposed) -> Self {
        let Proposed { key_name, member, groups, .. } = proposed.clone();
        Self { key_name, member, groups, ..Self::UNNAMED }
    }
}

impl Caller {
    pub(super) fn read(asking: Asking<'_>) -> Self {
        match asking {
            Asking::Named(named) => Self {
                account: Some(named.account.clone()),
                key_id: Some(named.key_id.clone()),
                key_name: Some(named.key_name.clone()),
                workload: Some(named.workload.clone()),
                member: Some(named.member.clone()),
                owner: Some(named.owner.clone()),
                groups: Some(named.groups.clone()),
            },
            Asking::Gateway { account, asker } => {
                Self { account: Some(account.as_str().to_owned()), ..asker.map(Self::of_actor).unwrap_or_default() }
            }
        }
    }

    fn of_actor(actor: &Actor) -> Self {
        let holder = &actor.holder;
        let member = |member: &Option<stage0_contract::MemberId>| {
            member.as_ref().map(|member| member.as_str().to_owned()).unwrap_or_default()
        };
        Self {
            account: None,
            key_id: Some(actor.key_id.as_str().to_owned()),
            key_name: actor.key_name.clone(),
            workload: Some(holder.workload.as_str().to_owned()),
            member: Some(member(&holder.member)),
            owner: Some(member(&holder.owner)),
            groups: actor.groups.clone(),
        }
    }
}
