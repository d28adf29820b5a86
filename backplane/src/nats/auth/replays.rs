//! Which messages were heard before: ids are remembered until the message could not be believed any more for its age.
//!
//! INVARIANT: an id is forgotten only when its message is too old anyway. When there is no room, what is new is refused
//! instead: memory is bounded and nothing is heard twice. Only what was authenticated gets here, so nobody else can
//! fill it.

use std::collections::{BTreeMap, HashSet};

/// Ids of 16 bytes: about 48 MB in all, and at the longest time for which one is remembered (a minute) 16,000 messages
/// a second.
const MAX_REMEMBERED: usize = 1_000_000;

/// A message's id.
pub(super) type MessageId = [u8; 16];

/// Whether a message is heard for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hearing {
    First,
    Again,
    /// Nobody knows: there is no room to remember it.
    NoRoom,
}

/// Ids by the second in which they are forgotten.
#[derive(Default)]
pub(super) struct Replays {
    until: BTreeMap<u64, HashSet<MessageId>>,
    count: usize,
}

impl Replays {
    /// `until` comes with the message, so the same one always brings the same.
    pub(super) fn hear(&mut self, id: MessageId, until_ms: u64, now_ms: u64) -> Hearing {
        self.forget(now_ms / 1_000);
        let there = self.until.get(&(until_ms / 1_000)).is_some_and(|ids| ids.contains(&id));
        if there {
            return Hearing::Again;
        }
        if self.count >= MAX_REMEMBERED {
            return Hearing::NoRoom;
        }
        self.until.entry(until_ms / 1_000).or_default().insert(id);
        self.count += 1;
        Hearing::First
    }

    fn forget(&mut self, now: u64) {
        while let Some(oldest) = self.until.first_entry().filter(|oldest| *oldest.key() < now) {
            self.count -= oldest.remove().len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_new_once_and_forgotten_after_its_time() {
        let mut replays = Replays::default();
        assert_eq!(replays.hear([1; 16], 5_000, 1_000), Hearing::First);
        assert_eq!(replays.hear([2; 16], 5_000, 1_000), Hearing::First);
        assert_eq!(replays.hear([1; 16], 5_000, 5_999), Hearing::Again);
        assert_eq!(replays.hear([3; 16], 9_000, 6_000), Hearing::First);
        assert_eq!((replays.count, replays.until.len()), (1, 1));
    }

    #[test]
    fn what_finds_no_room_is_refused_and_nothing_is_forgotten_for_it() {
        let mut replays = Replays::default();
        for number in 0..MAX_REMEMBERED as u128 {
            assert_eq!(replays.hear(number.to_be_bytes(), 5_000, 1_000), Hearing::First);
        }
        assert_eq!(replays.hear([0xff; 16], 5_000, 1_000), Hearing::NoRoom);
        assert_eq!(replays.hear(0_u128.to_be_bytes(), 5_000, 1_000), Hearing::Again);
        assert_eq!(replays.hear([0xff; 16], 9_000, 6_000), Hearing::First, "there is room again");
    }
}
