//! The keystore judges who is another person where a policy is activated, and the evaluator where an action is
//! approved: both by ADR 0029, so both must say the same of every team.

use stage0_contract::are_different_persons;

use super::*;

const NAMES: [&str; 5] = ["ann", "bob", "cy", "di", "eve"];
const TEAMS: u64 = 3_000;

/// Small numbers in an order that the seed determines.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }

    fn name(&mut self) -> MemberId {
        let at = usize::try_from(self.below(NAMES.len() as u64)).unwrap();
        member(NAMES[at])
    }

    fn person(&mut self) -> Person {
        match self.below(6) {
            0 => Person::Workload(key(AGENT)),
            1 => Person::Workload(key("other")),
            _ => Person::Member(self.name()),
        }
    }

    fn persons(&mut self) -> Vec<Person> {
        (0..self.below(3)).map(|_| self.person()).collect()
    }

    fn team(&mut self) -> People {
        let mut people = people_of(&NAMES.map(|name| (name, &["rm"][..], &[][..])));
        for record in &mut people.members {
            record.made_by = self.persons();
            let own = Person::Member(record.id.clone());
            record.made_by.retain(|maker| *maker != own);
        }
        people
    }

    /// A workload with an owner, a maker and others who saw its secret, or a member's own key.
    fn asker(&mut self) -> Holder {
        if self.below(3) == 0 {
            let name = self.name();
            return own_key(&name);
        }
        let workload = Holder::of_workload(key(AGENT));
        let owner = (self.below(2) == 0).then(|| self.name());
        let made_by = (self.below(2) == 0).then(|| self.person());
        Holder { owner, made_by, known_to: self.persons(), ..workload }
    }
}

fn own_key(of: &MemberId) -> Holder {
    let key = key(&format!("key-{of}"));
    Holder { member: Some(of.clone()), ..Holder::of_workload(key) }
}

#[test]
fn the_keystore_and_the_evaluator_agree_who_is_another_person() {
    let mut seen = [0, 0];
    for seed in 0..TEAMS {
        let mut numbers = Numbers(seed);
        let (people, asker) = (numbers.team(), numbers.asker());
        let makers = |of: &MemberId| {
            let found = people.members.iter().find(|record: &&PersonRecord| record.id == *of);
            found.map(|record| record.made_by.clone()).unwrap_or_default()
        };
        let directory = Directory::new(&people);
        for name in NAMES {
            let holder = own_key(&member(name));
            let evaluators = directory.is_another_holder(&holder, &Asker::new(&asker, true));
            let keystores = are_different_persons(&holder, &asker, makers);
            assert_eq!(keystores, evaluators, "seed {seed}: {name} about {asker:?} of {people:?}");
            seen[usize::from(evaluators)] += 1;
        }
    }
    assert!(seen.iter().all(|count| *count > 1_000), "both answers are tried: {seen:?}");
}
