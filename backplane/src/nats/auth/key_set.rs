//! The keys of a whole deployment: created together, replaced step by step, one file for each role.
//!
//! A new generation is accepted by every role before any role uses it, and the old one is retired only when no role
//! uses it. The caller reads and writes the files.
//! INVARIANT: between any two of the steps every role accepts what every other sends, also where some still have the
//! files of the step before.

use std::collections::BTreeMap;

use jiff::Timestamp;
use stage0_contract::Role;

use super::keys::{Generation, MessageKeys, Public, Requirement, SIGNERS, Secret, public_of};

/// The keys of every role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySet {
    of: BTreeMap<Role, MessageKeys>,
}

/// What a step of a rotation did; the operator distributes the files before the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// Every role accepts the new generation and still uses the old one.
    Accepted(u32),
    /// Every role uses the new generation and still accepts the old one.
    Activated(u32),
    /// The old generation is no longer accepted.
    Retired(u32),
}

/// Why keys cannot be created or replaced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// The system's random generator failed.
    #[error("the system gives no random bytes")]
    Random,
    /// A role's file is missing among those that were given.
    #[error("the keys of `{0}` are missing")]
    Missing(Role),
    /// The files belong to different deployments, or to different steps.
    #[error("the files of the roles do not belong together: `{0}` differs; restore all four from one backup")]
    Mixed(Role),
}

impl KeySet {
    /// Creates a first generation.
    pub fn create(require: Requirement) -> Result<Self, KeySetError> {
        let generation = make(1)?;
        let of = generation.into_iter().map(|(role, first)| (role, MessageKeys::new(role, require, first)));
        Ok(Self { of: of.collect() })
    }

    /// From the files of all roles.
    pub fn of(all: impl IntoIterator<Item = MessageKeys>) -> Result<Self, KeySetError> {
        let of: BTreeMap<Role, MessageKeys> = all.into_iter().map(|keys| (keys.role, keys)).collect();
        let first = of.get(&Role::Gateway).ok_or(KeySetError::Missing(Role::Gateway))?;
        for role in Role::ALL {
            let keys = of.get(&role).ok_or(KeySetError::Missing(role))?;
            let same = keys.active == first.active
                && keys.require == first.require
                && keys.generations.len() == first.generations.len()
                && keys.generations.iter().zip(&first.generations).all(|(one, other)| {
                    let shared = one.pairs.get(&Role::Gateway) == other.pairs.get(&role);
                    let dated = (one.number, one.retired_at) == (other.number, other.retired_at);
                    shared && dated && one.signers == other.signers
                });
            if !same {
                return Err(KeySetError::Mixed(role));
            }
        }
        Ok(Self { of })
    }

    /// Each role's keys.
    pub fn roles(&self) -> impl Iterator<Item = (Role, &MessageKeys)> {
        self.of.iter().map(|(role, keys)| (*role, keys))
    }

    /// The keys of one role.
    pub fn role(&self, role: Role) -> Option<&MessageKeys> {
        self.of.get(&role)
    }

    /// Takes the next step of replacing the keys.
    pub fn rotate(&mut self, now: Timestamp) -> Result<Rotation, KeySetError> {
        let first = self.of.get(&Role::Gateway).ok_or(KeySetError::Missing(Role::Gateway))?;
        let (active, newest) = (first.active, first.generations.last().map_or(0, |last| last.number));
        let older = first.live().find(|generation| generation.number < active).map(|generation| generation.number);
        if newest > active {
            self.of.values_mut().for_each(|keys| keys.active = newest);
            Ok(Rotation::Activated(newest))
        } else if let Some(older) = older {
            let generations = self.of.values_mut().flat_map(|keys| &mut keys.generations);
            generations.filter(|generation| generation.number == older).for_each(|generation| generation.retire(now));
            Ok(Rotation::Retired(older))
        } else {
            let mut made = make(newest + 1)?;
            for (role, keys) in &mut self.of {
                keys.generations.extend(made.remove(role));
            }
            Ok(Rotation::Accepted(newest + 1))
        }
    }
}

impl Generation {
    /// What was stored with it stays readable; the keys that are left can send and sign nothing.
    fn retire(&mut self, now: Timestamp) {
        self.retired_at = Some(now);
        self.pairs.clear();
        self.signing = None;
    }
}

fn make(number: u32) -> Result<BTreeMap<Role, Generation>, KeySetError> {
    let seeds = SIGNERS.into_iter().map(|role| Ok((role, random()?)));
    let mut seeds = seeds.collect::<Result<BTreeMap<_, _>, KeySetError>>()?;
    let signers: BTreeMap<Role, Public> =
        seeds.iter().filter_map(|(role, seed)| Some((*role, public_of(seed)?))).collect();
    let mut made = BTreeMap::new();
    for role in Role::ALL {
        let generation = Generation {
            number,
            retired_at: None,
            pairs: BTreeMap::new(),
            records: random()?,
            signing: seeds.remove(&role),
            signers: signers.clone(),
        };
        made.insert(role, generation);
    }
    for one in Role::ALL {
        for other in Role::ALL.into_iter().filter(|other| *other >= one) {
            let shared = random()?;
            for (role, peer) in [(one, other), (other, one)] {
                if let Some(generation) = made.get_mut(&role) {
                    generation.pairs.insert(peer, shared.clone());
                }
            }
        }
    }
    Ok(made)
}

fn random() -> Result<Secret, KeySetError> {
    crate::random().map(Secret::new).ok_or(KeySetError::Random)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_shared_key_is_known_only_to_the_two_roles_that_share_it() {
        let set = KeySet::create(Requirement::Always).unwrap();
        let texts: BTreeMap<Role, String> = set.roles().map(|(role, keys)| (role, keys.render().unwrap())).collect();
        let hex = |secret: &Secret| serde_json::to_value(secret).unwrap().as_str().unwrap().to_owned();
        for (role, keys) in set.roles() {
            let generation = &keys.generations[0];
            for (peer, shared) in &generation.pairs {
                let knows = |other: &Role| texts[other].contains(&hex(shared));
                assert!(Role::ALL.iter().all(|other| knows(other) == (*other == role || other == peer)));
            }
            for own in generation.signing.iter().chain([&generation.records]) {
                assert!(Role::ALL.iter().all(|other| texts[other].contains(&hex(own)) == (*other == role)));
            }
        }
    }

    #[test]
    fn a_key_file_is_read_as_it_was_written_and_other_files_are_refused() {
        let set = KeySet::create(Requirement::WhenAllCan).unwrap();
        let read = set.roles().map(|(_, keys)| MessageKeys::parse(&keys.render().unwrap()).unwrap());
        assert_eq!(KeySet::of(read).unwrap(), set);
        let text = set.role(Role::Gateway).unwrap().render().unwrap();
        for bad in ["", "{}", &text.replace("\"role\"", "\"rolle\""), &text[..text.len() / 2]] {
            assert!(MessageKeys::parse(bad).is_err(), "{bad}");
        }
        let newer = text.replace("\"message_keys\": 1", "\"message_keys\": 2");
        assert!(matches!(MessageKeys::parse(&newer), Err(super::super::KeysError::Version(2))));
        let inactive = text.replace("\"active\": 1", "\"active\": 2");
        assert!(matches!(MessageKeys::parse(&inactive), Err(super::super::KeysError::Damaged(_))));
        assert!(!format!("{set:?}").contains(&text[text.len() / 2..text.len() / 2 + 64]));
    }

    #[test]
    fn keys_are_replaced_in_three_steps_with_two_accepted_at_most() {
        let mut set = KeySet::create(Requirement::Always).unwrap();
        let generations = |set: &KeySet| set.role(Role::Keystore).unwrap().generations();
        assert_eq!(generations(&set), (1, vec![1]));
        for (step, then) in [
            (Rotation::Accepted(2), (1, vec![1, 2])),
            (Rotation::Activated(2), (2, vec![1, 2])),
            (Rotation::Retired(1), (2, vec![2])),
            (Rotation::Accepted(3), (2, vec![2, 3])),
        ] {
            assert_eq!(set.rotate(at(1)).unwrap(), step);
            assert_eq!(generations(&set), then);
            let read = set.roles().map(|(_, keys)| MessageKeys::parse(&keys.render().unwrap()).unwrap());
            assert_eq!(KeySet::of(read).unwrap(), set);
        }
        let retired = &set.role(Role::Gateway).unwrap().generations[0];
        assert!(retired.pairs.is_empty() && retired.signing.is_none() && !retired.signers.is_empty());
    }

    #[test]
    fn key_files_of_different_deployments_or_steps_are_refused_as_a_set() {
        let (one, other) = (KeySet::create(Requirement::Always).unwrap(), KeySet::create(Requirement::Always).unwrap());
        let mixed =
            Role::ALL.map(|role| if role == Role::Keystore { &other } else { &one }.role(role).unwrap().clone());
        assert_eq!(KeySet::of(mixed), Err(KeySetError::Mixed(Role::Keystore)));
        let mut later = one.clone();
        later.rotate(at(1)).unwrap();
        let mixed =
            Role::ALL.map(|role| if role == Role::Evaluator { &later } else { &one }.role(role).unwrap().clone());
        assert_eq!(KeySet::of(mixed), Err(KeySetError::Mixed(Role::Evaluator)));
        let few = Role::ALL[1..].iter().map(|role| one.role(*role).unwrap().clone());
        assert_eq!(KeySet::of(few), Err(KeySetError::Missing(Role::Gateway)));
    }
}
