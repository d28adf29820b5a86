//! Further rows of the fact table: what a request proposes, the time, the caller, its run, and members of its own.
//!
//! They are for packs of the second edition, and are read only where a rule of the pack names one.

use super::super::Facts;
use super::super::custom::Custom;
use super::super::past::Past;
use super::{FactView, Group, Kind, Row};

pub(super) const MORE: &[Row] = &[
    Row::more(
        "tools",
        Kind::Set,
        Group::Proposal,
        |f| Some((&f.proposal.as_ref()?.tools).into()),
        "For lists that forbid: the proposed tools (`tools` and `context.current_tool`), each in every reading of its \
         name. `sendEmail(x)`, `mail.send_email` and `mcp__mail__send_email` are `send_email` too. In small letters \
         with `_` for `-` and blanks; `?` for a name that cannot be read or mixes scripts.",
    )
    .of_words(),
    Row::more(
        "tool_names",
        Kind::Set,
        Group::Proposal,
        |f| Some((&f.proposal.as_ref()?.tool_names).into()),
        "For lists that allow: the proposed tools by their whole names, each once. `sendEmail` is `send_email`, and \
         `mcp__mail__send_email` is itself; `?` as in `tools`.",
    )
    .of_words(),
    Row::more(
        "tool_count",
        Kind::Long,
        Group::Proposal,
        |f| Some(f.proposal.as_ref()?.tool_count.into()),
        "The number of different proposed tools, as `tool_names` has them.",
    ),
    Row::more(
        "mcp_servers",
        Kind::Set,
        Group::Proposal,
        |f| Some((&f.proposal.as_ref()?.mcp_servers).into()),
        "Servers that `context.active_mcp_servers` or a tool's name (`mcp__server__tool`) names, every one that a name \
         may belong to; `?` for one that cannot be read, and for a name with more than eight ends of its server.",
    )
    .of_words(),
    Row::more(
        "effects",
        Kind::Set,
        Group::Proposal,
        |f| Some((&f.proposal.as_ref()?.effects).into()),
        "The declared side effects, each whole and in every reading: `sendEmail` is `sendemail` and `send_email`; `?` \
         for one that mixes scripts.",
    )
    .of_words(),
    Row::more(
        "effect_classes",
        Kind::Set,
        Group::Proposal,
        |f| Some((&f.proposal.as_ref()?.effect_classes).into()),
        "The classes of the declared side effects: `high`, `communication`, `loop`, `approval`, `medium`.",
    ),
    Row::more(
        "targets",
        Kind::Set,
        Group::Proposal,
        |f| Some((&f.proposal.as_ref()?.targets).into()),
        "`context.target_resources` and `context.resource_scope` as canonical paths in small letters; `?` for one \
         without such a form.",
    )
    .of_words(),
    Row::more(
        "target_count",
        Kind::Long,
        Group::Proposal,
        |f| Some(f.proposal.as_ref()?.target_count.into()),
        "The number of different targets.",
    ),
    Row::more(
        "tenant",
        Kind::Text,
        Group::Proposal,
        |f| Some((&f.proposal.as_ref()?.tenant).into()),
        "`context.tenant_id` in small letters; empty where it is not given, `?` where it cannot be read.",
    )
    .of_words(),
    Row::more(
        "target_tenants",
        Kind::Set,
        Group::Proposal,
        |f| Some((&f.proposal.as_ref()?.target_tenants).into()),
        "`context.target_tenants` in small letters; `?` for one that cannot be read.",
    )
    .of_words(),
    Row::more(
        "environment",
        Kind::Text,
        Group::Proposal,
        |f| Some((&f.proposal.as_ref()?.environment).into()),
        "The environment by the pack's name for it; empty where none is named, `?` where several are named or one \
         cannot be read. To forbid an environment, use `environments`.",
    )
    .of_words(),
    Row::more(
        "agent",
        Kind::Text,
        Group::Proposal,
        |f| Some((&f.proposal.as_ref()?.agent).into()),
        "`context.agent_id` in small letters, as the caller says and without proof; empty where it is not given, `?` \
         where it cannot be read.",
    )
    .of_words(),
    Row::more(
        "estimated_cost_micros",
        Kind::Long,
        Group::Request,
        |f| Some(f.estimated_cost?.get().into()),
        "`context.estimated_cost_usd`, in millionths of a dollar.",
    )
    .optional(),
    Row::more("now", Kind::Datetime, Group::Time, |f| f.clock.as_ref()?.now(), "The time of the check."),
    Row::more(
        "windows_open",
        Kind::Set,
        Group::Time,
        |f| Some((&f.clock.as_ref()?.windows_open).into()),
        "Names of the pack's change windows that are open now.",
    ),
    Row::more(
        "account",
        Kind::Text,
        Group::Caller,
        |f| Some(f.caller.as_ref()?.account.as_ref()?.into()),
        "The account that asks, proven by the key.",
    ),
    Row::more(
        "key_id",
        Kind::Text,
        Group::Caller,
        |f| Some(f.caller.as_ref()?.key_id.as_ref()?.into()),
        "The id of the key.",
    ),
    Row::more(
        "key_name",
        Kind::Text,
        Group::Caller,
        |f| Some(f.caller.as_ref()?.key_name.as_ref()?.into()),
        "The name of the key; empty where it has none.",
    ),
    Row::more(
        "workload",
        Kind::Text,
        Group::Caller,
        |f| Some(f.caller.as_ref()?.workload.as_ref()?.into()),
        "The id of the first key of the rotations, which stays when a key is rotated.",
    ),
    Row::more(
        "member",
        Kind::Text,
        Group::Caller,
        |f| Some(f.caller.as_ref()?.member.as_ref()?.into()),
        "The member whose own key it is; empty for the key of a workload.",
    ),
    Row::more(
        "owner",
        Kind::Text,
        Group::Caller,
        |f| Some(f.caller.as_ref()?.owner.as_ref()?.into()),
        "The member who answers for the workload; empty where there is none.",
    ),
    Row::more(
        "groups",
        Kind::Set,
        Group::Caller,
        |f| Some(f.caller.as_ref()?.groups.as_ref()?.into()),
        "The groups of `member`, otherwise of `owner`.",
    ),
    Row::more(
        "run_named",
        Kind::Bool,
        Group::Run,
        |f| Some(f.run_named.into()),
        "The request names a run. Without one nothing is counted, so a rule about a run says what holds then: in \
         `unless` write `context.run_named && …`, in `when` write `!context.run_named || …`.",
    ),
    Row::more(
        "run_tools",
        Kind::Set,
        Group::Run,
        |f| Some(past(f)?.tools().into()),
        "Tools that were allowed in the run so far, each in every reading of its name, as in `tools`; `?` stands for \
         calls that are not told apart.",
    )
    .of_words(),
    Row::more(
        "run_calls",
        Kind::RunCalls,
        Group::Run,
        |f| past(f)?.calls().map(FactView::RunCalls),
        "Allowed calls in the run so far of each tool that the pack's `type RunCalls` names, under any reading of a \
         tool's name, as in `tools`; calls under ambiguous names count for every tool.",
    ),
    Row::more(
        "run_allowed",
        Kind::Long,
        Group::Run,
        |f| Some(past(f)?.history.allowed.into()),
        "Checks of the run that were allowed.",
    ),
    Row::more(
        "run_denied",
        Kind::Long,
        Group::Run,
        |f| Some(past(f)?.history.denied.into()),
        "Checks of the run that were denied.",
    ),
    Row::more(
        "run_deferred",
        Kind::Long,
        Group::Run,
        |f| Some(past(f)?.history.deferred.into()),
        "Checks of the run that were deferred.",
    ),
    Row::more(
        "run_last_verdict",
        Kind::Text,
        Group::Run,
        |f| Some(past(f)?.last_verdict().into()),
        "`ALLOW`, `DENY` or `DEFER`: what the check before this one came to; empty for the first.",
    ),
    Row::more(
        "run_cost_micros",
        Kind::Long,
        Group::Run,
        |f| Some(past(f)?.history.cost_micros.into()),
        "Money that the run spent and reserved, without this check, in millionths of a dollar.",
    ),
    Row::more(
        "run_seconds",
        Kind::Long,
        Group::Run,
        |f| Some(past(f)?.history.seconds.into()),
        "Seconds since the run's first check.",
    ),
    Row::more(
        "run_seconds_since_allowed",
        Kind::Long,
        Group::Run,
        |f| Some(past(f)?.history.seconds_since_allowed.unwrap_or(-1).into()),
        "Seconds since the run's last allowed check; -1 where there is none.",
    ),
    Row::more(
        "run_approved",
        Kind::Bool,
        Group::Run,
        |f| Some(past(f)?.history.approved.into()),
        "A check of the run was allowed with an approval.",
    ),
    Row::more(
        "run_target_tools",
        Kind::Set,
        Group::Run,
        |f| Some((&past(f)?.target_tools).into()),
        "Tools that were allowed earlier in the run for every target of this check, as in `run_tools`. A target is the \
         same only if it is written the same. Empty where the check names no target.",
    )
    .of_words(),
    Row::more(
        "custom",
        Kind::Custom,
        Group::Custom,
        |f| f.custom.as_deref().map(FactView::Custom),
        "Members of `context` that the pack's `type Custom` declares; each is absent where it is not given. Texts are \
         compared with their case; a name that mixes scripts is `?`.",
    )
    .of_words(),
    Row::trigger(
        "custom",
        |f| f.custom.as_deref().is_some_and(Custom::is_given),
        "A member of `context` that the pack's `type Custom` declares is given.",
    )
    .second(),
    Row::trigger("run", |f| f.run_named, "The request names a run.").second(),
];

fn past(facts: &Facts) -> Option<&Past> {
    facts.past.as_deref()
}
