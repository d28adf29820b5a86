//! Slots for large checks: a counting semaphore, since each large check takes many times its size in memory.
//!
//! A check holds its slot until it is answered, wherever it waits; then the next one is notified.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::Notify;

/// The slots of one shard.
pub(crate) struct Slots {
    free: Cell<usize>,
    freed: Notify,
}

/// A slot that is held; dropping it frees it.
pub(crate) struct Slot(Rc<Slots>);

impl Slots {
    pub(crate) fn new(count: usize) -> Rc<Self> {
        Rc::new(Self { free: Cell::new(count), freed: Notify::new() })
    }

    pub(crate) fn any_free(&self) -> bool {
        self.free.get() > 0
    }

    /// Takes a slot if one is free.
    pub(crate) fn take(self: &Rc<Self>) -> Option<Slot> {
        self.free.set(self.free.get().checked_sub(1)?);
        Some(Slot(Rc::clone(self)))
    }

    /// Waits until a slot is freed. A slot that was freed before the call counts too.
    pub(crate) async fn freed(&self) {
        self.freed.notified().await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.free.set(self.0.free.get() + 1);
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slot_that_is_given_back_is_told_and_can_be_taken_again() {
        let slots = Slots::new(2);
        let (first, second) = (slots.take().unwrap(), slots.take().unwrap());
        assert!(slots.take().is_none() && !slots.any_free());
        drop(first);
        slots.freed().await;
        assert!(slots.any_free() && slots.take().is_some());
        drop(second);
    }
}
