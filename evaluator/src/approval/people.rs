//! Who may decide about an action, and how many people have.
//!
//! Two keys can belong to one person, and one person can make another: a member that somebody invited, or whose groups
//! somebody changed, is not another person than that somebody. Pure: takes members as the keystore knows them.
//! INVARIANT: a person who asks for an action, or whom such a person made, never counts as its approver.

use std::collections::{BTreeSet, HashMap, HashSet};

use jiff::{SignedDuration, Timestamp};
use stage0_contract::{ApprovalTerms, Holder, KeyId, MemberId, People, Person, PersonRecord, Requirement};

use super::record::StoredVote;

/// Makers of a member that are counted to begin with those who have few.
const MAX_COUNTED: usize = 16;

/// Who asks, and what the account's rules make of it.
#[derive(Debug)]
pub(crate) struct Asker {
    workload: KeyId,
    persons: BTreeSet<Person>,
    four_eyes: bool,
}

impl Asker {
    pub(crate) fn new(holder: &Holder, four_eyes: bool) -> Self {
        Self { workload: holder.workload.clone(), persons: holder.persons().collect(), four_eyes }
    }
}

/// What is asked of approvers at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question<'a> {
    pub(crate) asker: &'a Asker,
    pub(crate) terms: &'a ApprovalTerms,
    /// When the approval was opened: escalation counts from then.
    pub(crate) opened_at: Timestamp,
    pub(crate) now: Timestamp,
}

/// Whether a member may decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// In another member's place, if there is one.
    May { on_behalf_of: Option<MemberId> },
    /// The member was removed, or has no key that may decide.
    Unknown,
    /// The member is, made, or was made by one who asks.
    OwnAction,
    /// The member is in no group that may decide.
    OtherGroups,
}

/// How many people could approve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Electorate {
    /// Those who may; where too few are different people, how many different people.
    pub(crate) eligible: u32,
    /// Whether they are fewer than the quorum.
    pub(crate) is_short: bool,
}

/// The members of an account, by id, by who made them, and by who stands in for them.
pub(crate) struct Directory<'p> {
    members: HashMap<&'p MemberId, &'p PersonRecord>,
    made: HashMap<&'p Person, Vec<&'p MemberId>>,
    away: HashMap<&'p MemberId, Vec<&'p PersonRecord>>,
}

/// Members who are not another person than those who ask: found once for each question.
struct Related(HashSet<MemberId>);

impl Related {
    fn has(&self, member: &MemberId) -> bool {
        self.0.contains(member)
    }
}

impl<'p> Directory<'p> {
    pub(crate) fn new(people: &'p People) -> Self {
        let mut made: HashMap<&Person, Vec<&MemberId>> = HashMap::new();
        let mut away: HashMap<&MemberId, Vec<&PersonRecord>> = HashMap::new();
        for record in &people.members {
            for maker in &record.made_by {
                made.entry(maker).or_default().push(&record.id);
            }
            if let Some(delegate) = record.delegate.as_ref().filter(|delegate| delegate.to != record.id) {
                away.entry(&delegate.to).or_default().push(record);
            }
        }
        away.values_mut().for_each(|members| members.sort_unstable_by(|a, b| a.id.cmp(&b.id)));
        Self { members: people.members.iter().map(|member| (&member.id, member)).collect(), made, away }
    }

    /// Adds these people and everybody whom they made, directly or not. Each is looked at once.
    fn add_made(&self, makers: BTreeSet<Person>, found: &mut HashSet<MemberId>) {
        let mut open = Vec::new();
        for maker in makers {
            open.extend(self.made.get(&maker).into_iter().flatten().copied());
            if let Person::Member(member) = maker {
                found.insert(member);
            }
        }
        while let Some(next) = open.pop() {
            if found.insert(next.clone()) {
                let made = self.made.get(&Person::Member(next.clone()));
                open.extend(made.into_iter().flatten().copied());
            }
        }
    }

    /// Everybody who is, made, or was made by one who asks, or was made by the same person.
    fn related(&self, asker: &Asker) -> Related {
        let mut behind = BTreeSet::from([Person::Workload(asker.workload.clone())]);
        if asker.four_eyes {
            for person in &asker.persons {
                // Who made both could be both.
                match person {
                    Person::Member(asking) => behind.extend(self.ancestors(asking)),
                    Person::Workload(_) => drop(behind.insert(person.clone())),
                }
            }
        }
        let mut found = HashSet::new();
        self.add_made(behind, &mut found);
        Related(found)
    }

    /// The member, and everybody who made it or its makers.
    fn ancestors(&self, member: &MemberId) -> BTreeSet<Person> {
        let mut found = BTreeSet::from([Person::Member(member.clone())]);
        let mut open = vec![member.clone()];
        while let Some(next) = open.pop() {
            let Some(record) = self.members.get(&next) else { continue };
            for maker in &record.made_by {
                if found.insert(maker.clone())
                    && let Person::Member(maker) = maker
                {
                    open.push(maker.clone());
                }
            }
        }
        found
    }

    /// Whether the member may decide about one requirement.
    fn standing_for(
        &self,
        member: &MemberId,
        requirement: &Requirement,
        question: Question<'_>,
        related: &Related,
    ) -> Standing {
        let Some(record) = self.members.get(member).filter(|record| record.may_decide) else {
            return Standing::Unknown;
        };
        if related.has(member) {
            return Standing::OwnAction;
        }
        let escalated = question.escalated(requirement);
        let meets = |groups: &[String]| {
            let wanted = |group: &String| requirement.groups.contains(group) || escalated.contains(group);
            requirement.groups.is_empty() || groups.iter().any(wanted)
        };
        if meets(&record.groups) {
            return Standing::May { on_behalf_of: None };
        }
        // Who cannot decide now has no one to decide instead.
        let is_away = |other: &&&PersonRecord| {
            other.delegate.as_ref().is_some_and(|delegate| delegate.until > question.now)
                && other.may_decide
                && meets(&other.groups)
                && !related.has(&other.id)
        };
        match self.away.get(member).into_iter().flatten().find(is_away) {
            Some(other) => Standing::May { on_behalf_of: Some(other.id.clone()) },
            None => Standing::OtherGroups,
        }
    }

    /// Whether the member has a key that may decide.
    pub(super) fn may_decide(&self, member: &MemberId) -> bool {
        self.members.get(member).is_some_and(|record| record.may_decide)
    }

    /// Whether the member may decide about any of the requirements.
    pub(crate) fn standing(&self, member: &MemberId, question: Question<'_>) -> Standing {
        let related = self.related(question.asker);
        let mut standing = Standing::Unknown;
        for requirement in &question.terms.requirements {
            standing = self.standing_for(member, requirement, question, &related);
            if matches!(standing, Standing::May { .. } | Standing::Unknown | Standing::OwnAction) {
                return standing;
            }
        }
        standing
    }

    /// Whether somebody who is no approver may still not be the one who asks: a wider grant's maker, a system outside.
    pub(crate) fn is_another_holder(&self, holder: &Holder, asker: &Asker) -> bool {
        let related = self.related(asker);
        let is_another = |person: Person| match person {
            Person::Member(member) => !related.has(&member),
            Person::Workload(_) => !asker.persons.contains(&person),
        };
        holder.workload != asker.workload && holder.persons().all(is_another)
    }

    /// Whether the votes are enough for every requirement, with people's present groups.
    pub(crate) fn is_enough(&self, votes: &[StoredVote], question: Question<'_>) -> bool {
        let related = self.related(question.asker);
        let met = |requirement: &Requirement| {
            let quorum = usize::try_from(requirement.quorum.max(1)).unwrap_or(usize::MAX);
            self.approvals_of(votes, requirement, question, &related) >= quorum
        };
        !question.terms.requirements.is_empty() && question.terms.requirements.iter().all(met)
    }

    /// Whether a vote counts for any requirement.
    pub(crate) fn counts(&self, vote: &StoredVote, question: Question<'_>) -> bool {
        let (one, related) = (std::slice::from_ref(vote), self.related(question.asker));
        let mut requirements = question.terms.requirements.iter();
        requirements.any(|requirement| self.approvals_of(one, requirement, question, &related) > 0)
    }

    /// Whether this key of a member is one with which it may decide now. A vote ends with its key.
    fn is_live(&self, member: &MemberId, holder: &Holder) -> bool {
        self.members.get(member).is_some_and(|record| record.keys.contains(&holder.workload))
    }

    /// How many different people approved one requirement: members, or those of one system outside. A name outside may
    /// be a member, or a name in another system, so these are never added up.
    fn approvals_of(
        &self,
        votes: &[StoredVote],
        requirement: &Requirement,
        question: Question<'_>,
        related: &Related,
    ) -> usize {
        let mut voters = Vec::new();
        let mut outside: HashMap<&KeyId, BTreeSet<String>> = HashMap::new();
        for StoredVote { vote, holder } in votes.iter().filter(|stored| stored.vote.approve) {
            if holder.workload == question.asker.workload {
                continue;
            }
            match (&vote.member_id, &vote.external) {
                (Some(member), _) if self.is_live(member, holder) => {
                    if let Standing::May { on_behalf_of } = self.standing_for(member, requirement, question, related) {
                        voters.push([Some(member.clone()), on_behalf_of]);
                    }
                }
                (Some(_), _) => {}
                (None, Some(external)) => {
                    let names = external.approved_by.iter().map(|name| same_name(name));
                    outside.entry(&holder.workload).or_default().extend(names);
                }
                (None, None) => {}
            }
        }
        let outside = outside.values().map(BTreeSet::len).max().unwrap_or_default();
        self.different_people(&voters).max(outside)
    }

    /// How many of these are different people. Of two whom one person made, or of whom one made the other, one counts.
    fn different_people(&self, voters: &[[Option<MemberId>; 2]]) -> usize {
        let lineage = |voter: &[Option<MemberId>; 2]| -> BTreeSet<Person> {
            voter.iter().flatten().flat_map(|member| self.ancestors(member)).collect()
        };
        let mut lineages: Vec<BTreeSet<Person>> = voters.iter().map(lineage).collect();
        // The shortest first: a long one could stand in the place of many.
        lineages.sort_by_key(BTreeSet::len);
        let mut counted: Vec<BTreeSet<Person>> = Vec::new();
        for lineage in lineages {
            if counted.iter().all(|other| other.is_disjoint(&lineage)) {
                counted.push(lineage);
            }
        }
        counted.len()
    }

    /// How many people are behind the member, counted up to [`MAX_COUNTED`].
    fn lineage_len(&self, member: &MemberId) -> usize {
        let mut found = HashSet::new();
        let mut open = vec![member];
        while let Some(next) = open.pop() {
            let makers = self.members.get(next).map(|record| record.made_by.as_slice()).unwrap_or_default();
            for maker in makers {
                if found.len() >= MAX_COUNTED {
                    return MAX_COUNTED;
                }
                if found.insert(maker)
                    && let Person::Member(maker) = maker
                {
                    open.push(maker);
                }
            }
        }
        found.len()
    }

    /// How many of these members are different people, up to a number. Looks at each member once.
    fn different_members(&self, members: &[&MemberId], most: usize) -> usize {
        let mut shortest_first = members.to_vec();
        shortest_first.sort_by_cached_key(|member| (self.lineage_len(member), (*member).clone()));
        let (mut counted, mut related) = (0, HashSet::new());
        for member in shortest_first {
            if counted >= most {
                break;
            }
            if !related.contains(member) {
                counted += 1;
                self.add_made(self.ancestors(member), &mut related);
            }
        }
        counted
    }

    /// How many people could approve: of the requirement that is hardest to meet.
    pub(crate) fn electorate(&self, question: Question<'_>) -> Electorate {
        let related = self.related(question.asker);
        let mut electorate = Electorate { eligible: u32::MAX, is_short: false };
        for requirement in &question.terms.requirements {
            let may = |member: &&MemberId| {
                matches!(self.standing_for(member, requirement, question, &related), Standing::May { .. })
            };
            let eligible: Vec<&MemberId> = self.members.keys().copied().filter(may).collect();
            let quorum = usize::try_from(requirement.quorum.max(1)).unwrap_or(usize::MAX);
            let different = self.different_members(&eligible, quorum);
            let is_short = different < quorum;
            let count = u32::try_from(if is_short { different } else { eligible.len() }).unwrap_or(u32::MAX);
            if (is_short, std::cmp::Reverse(count)) > (electorate.is_short, std::cmp::Reverse(electorate.eligible)) {
                electorate = Electorate { eligible: count, is_short };
            }
        }
        electorate
    }
}

impl<'a> Question<'a> {
    /// The groups that may decide about a requirement as well by now.
    fn escalated(&self, requirement: &'a Requirement) -> &'a [String] {
        let due =
            |after: i64| self.opened_at.saturating_add(SignedDuration::from_secs(after)).is_ok_and(|at| at <= self.now);
        match self.terms.escalation_of(requirement) {
            Some(escalation) if due(escalation.after_seconds) => &escalation.groups,
            Some(_) | None => &[],
        }
    }
}

/// A name outside, so that two spellings are one person.
pub(super) fn same_name(name: &str) -> String {
    stage0_contract::plain(name).trim().to_lowercase()
}
