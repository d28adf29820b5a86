//! One request of a process and the store's answer to it, with all that can happen on the way.
//!
//! The store does its part in a task of its own: a caller that gives up, freezes or dies takes nothing back.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::Sim;
use super::links::Peer;
use super::node::Blow;
use super::plan::{Fault, Flaw};
use super::world::{Rates, World};
use crate::Cause;

/// The longest that an exchange takes one way where nothing goes wrong.
const USUAL_DELAY: Duration = Duration::from_millis(3);
/// How long after a deadline what is late arrives at most, beside the pace.
const LATE_BY: Duration = Duration::from_millis(20);

const WAKE_TIME: Duration = Duration::from_millis(1);

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// The store has done nothing, and will not.
    Refused,
    /// It may have done it, or may still do it.
    Unknown,
}

impl Unanswered {
    pub(super) fn cause(self) -> Cause {
        match self {
            Self::Refused => "the store refused it".into(),
            Self::Unknown => "the store did not answer".into(),
        }
    }
}

/// What becomes of one exchange. All of it is drawn before the first wait.
#[derive(Debug, Clone, Copy)]
struct Course {
    there: Duration,
    back: Duration,
    fault: Option<Fault>,
    late_by: Duration,
    /// The caller hears of a failure at its deadline, not at once.
    hangs: bool,
    /// Cut off on its way, a request still arrives once its process is back.
    is_resent: bool,
    /// What strikes the process when the store has done its part, and before that.
    blows: [Option<Blow>; 3],
    is_struck_before: bool,
}

impl World {
    fn course(&mut self, node: usize) -> Course {
        let slow = self.strikes(node, Fault::Slow);
        let faults = [Fault::Refused, Fault::RequestLost, Fault::AnswerLost, Fault::Late];
        let mut fault = None;
        for each in faults {
            let strikes = self.strikes(node, each);
            fault = fault.or(strikes.then_some(each));
        }
        let pace = self.plan.pace;
        let (there, back) = (self.within(node, USUAL_DELAY), self.within(node, USUAL_DELAY));
        let [slow_there, slow_back] = [0; 2].map(|_: i32| {
            // Short ones are more frequent: what is too slow for every caller is one case, and the rest are many.
            let most = self.within(node, 2 * pace);
            self.within(node, most)
        });
        let late_by = self.within(node, pace + LATE_BY);
        let flip = |world: &mut Self| world.within(node, Duration::from_secs(2)).as_secs() > 0;
        let (hangs, is_resent, is_struck_before) = (flip(self), flip(self), flip(self));
        let blows = self.blows(node, Rates::Exchange);
        let (there, back) = if slow { (there + slow_there, back + slow_back) } else { (there, back) };
        Course { there, back, fault, late_by, hangs, is_resent, blows, is_struck_before }
    }
}

impl Sim {
    /// Has the store, or another process, do `work`. The deadline is the caller's; who works does not know it.
    pub(super) async fn exchange<T: Send + 'static>(
        &self,
        node: usize,
        peer: Peer,
        deadline: Instant,
        work: impl FnOnce(&mut World) -> T + Send + 'static,
    ) -> Result<T, Unanswered> {
        let course = {
            let mut world = self.lock();
            world.count("exchanges", 1);
            world.under_way += 1;
            world.course(node)
        };
        let (answer, mut answered) = oneshot::channel();
        let sim = self.clone();
        // It ends by itself: nothing in it waits for ever.
        drop(tokio::spawn(async move {
            let outcome = sim.serve(node, peer, deadline, course, work).await;
            sim.lock().under_way -= 1;
            // The caller may have given up or died.
            let _ = answer.send(outcome);
        }));
        let mut outcome = timeout_at(deadline, &mut answered).await;
        if outcome.is_err() && self.is_frozen(node) {
            // No clock of a frozen process goes off. Afterwards it finds an answer that has come, however late it is.
            self.thawed(node).await;
            outcome = timeout(WAKE_TIME, answered).await;
        }
        match outcome {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Err(Unanswered::Unknown),
        }
    }

    async fn serve<T>(
        &self,
        node: usize,
        peer: Peer,
        deadline: Instant,
        course: Course,
        work: impl FnOnce(&mut World) -> T,
    ) -> Result<T, Unanswered> {
        self.thawed(node).await;
        let failed_at = if course.hangs { deadline + LATE_BY } else { Instant::now() + course.there };
        if let Some(back_at) = self.away_until(node) {
            until(failed_at.min(back_at)).await;
            return Err(Unanswered::Refused);
        }
        match course.fault {
            Some(Fault::Refused) => {
                until(Instant::now() + course.there).await;
                return Err(Unanswered::Refused);
            }
            Some(Fault::RequestLost) => {
                self.tell_of(node, "its request is lost");
                until(failed_at).await;
                return Err(Unanswered::Unknown);
            }
            Some(Fault::Late) => until(deadline + course.late_by).await,
            _ => until(Instant::now() + course.there).await,
        }
        if let Some(back_at) = self.away_until(node) {
            until(back_at).await;
            if !course.is_resent {
                return Err(Unanswered::Unknown);
            }
        }
        if !self.lock().links.arrives(node, peer) {
            self.tell_of(node, "cannot reach whom it asks");
            if peer == Peer::Leader && self.lock().plan.flaw == Some(Flaw::AcknowledgesAlone) {
                let mut world = self.lock();
                world.is_alone = true;
                let done = work(&mut world);
                world.is_alone = false;
                return Ok(done);
            }
            until(failed_at).await;
            self.lock().links.go_on(node);
            return Err(Unanswered::Unknown);
        }
        let strike = || course.blows.into_iter().flatten().for_each(|blow| self.hit(node, blow));
        if course.is_struck_before {
            strike();
        }
        let done = work(&mut self.lock());
        if !course.is_struck_before {
            strike();
        }
        if course.fault == Some(Fault::AnswerLost) {
            self.tell_of(node, "its answer is lost");
            until(failed_at).await;
            return Err(Unanswered::Unknown);
        }
        until(Instant::now() + course.back).await;
        if let Some(back_at) = self.away_until(node) {
            self.tell_of(node, "is away when its answer comes");
            until(failed_at.max(back_at)).await;
            return Err(Unanswered::Unknown);
        }
        if !self.lock().links.is_answered(node, peer) {
            self.tell_of(node, "cannot be reached by its answer");
            until(failed_at).await;
            self.lock().links.go_on(node);
            return Err(Unanswered::Unknown);
        }
        self.thawed(node).await;
        Ok(done)
    }

    /// Waits until nothing is on its way to the store any more, however late it is.
    pub async fn settle(&self) {
        while self.lock().under_way > 0 {
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn thawed(&self, node: usize) {
        loop {
            let Some(frozen_until) = self.lock().frozen_until(node) else { return };
            until(frozen_until).await;
        }
    }

    fn is_frozen(&self, node: usize) -> bool {
        self.lock().frozen_until(node).is_some()
    }

    fn away_until(&self, node: usize) -> Option<Instant> {
        self.lock().away_until(node)
    }

    fn tell_of(&self, node: usize, what: &str) {
        self.lock().note(node, what);
    }
}

async fn until(time: Instant) {
    sleep(time.saturating_duration_since(Instant::now())).await;
}
