//! The decision about facts that were recorded: the verdict, and the issue that decides.
//!
//! It is concluded as every decision is. What only the request itself tells, such as remedies, is not there: two issues
//! that are one in a decision because they lack the same evidence stay two here, with the same verdict.

use stage0_contract::Replayed;

use super::{Draft, by_gravity, conclude, decides};
use crate::facts::CustomType;
use crate::pack::Pack;
use crate::rule::Outcome;

/// What a recorded decision comes from, besides the rules that its facts satisfy.
pub(crate) struct Replay<'a> {
    pub(crate) pro: bool,
    pub(crate) is_denied: bool,
    pub(crate) mistyped: &'a [(String, CustomType)],
}

pub(crate) fn replayed(pack: &Pack, outcome: &Outcome<'_>, replay: &Replay<'_>) -> Replayed {
    let Replay { pro, is_denied, mistyped } = *replay;
    let drafts = by_gravity(outcome).into_iter().map(|rule| Draft::bare(rule, pack, pro));
    let (drafts, verdict) = conclude(drafts, mistyped, &outcome.failed, is_denied);
    let deciding = drafts.into_iter().find(|draft| decides(draft, verdict)).map(|draft| draft.issue);
    let (code, rule) = deciding.map(|issue| (issue.code, issue.rule)).unzip();
    Replayed::Decided { verdict, code, rule }
}
