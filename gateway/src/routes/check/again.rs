//! Deciding a check again, because the rules of its account changed between its evaluation and its record.
//!
//! It keeps its id, its claim and its place in the quota, and its run counts it once.
//! INVARIANT: only what is surely not in the log is decided again, by the rules that hold now, and within the same
//! budget.

use std::sync::Arc;

use actix_web::HttpResponse;
use stage0_contract::Scope;
use tokio::time::Instant;

use super::attempt::{Attempt, Failure, Question};
use super::bind_to_rules;
use crate::auth::{authenticate_until, require_any_scope};
use crate::errors::ApiError;
use crate::quota::Reservation;

/// How often a check is decided again: rules that change faster than a check takes are no reason to try forever.
const MAX_REPEATS: u32 = 2;

impl Attempt<'_> {
    pub(super) async fn decide_again(
        &mut self,
        mut failure: Failure,
        question: &mut Question,
        reservation: &mut Option<Reservation>,
    ) -> Result<HttpResponse, Failure> {
        for _ in 0..MAX_REPEATS {
            if Instant::now() >= self.deadline {
                break;
            }
            self.renew(question).await?;
            let (request_id, account) = (self.context.id, &self.identity().account);
            tracing::info!(%request_id, %account, "rules changed while a check was in flight, it is decided again");
            match self.decide(question, reservation).await {
                Err(again) if again.is_by_change() => failure = again,
                answered => return answered,
            }
        }
        Err(failure)
    }

    /// Takes the caller, and with it the account's rules, as they are now.
    async fn renew(&mut self, question: &mut Question) -> Result<(), ApiError> {
        let Self { state, request, deadline, .. } = *self;
        let identity = authenticate_until(state, request, deadline).await?;
        require_any_scope(&identity, &[Scope::Check])?;
        self.caller = bind_to_rules(request)?;
        let (asker, max_runs) = (state.asker_of(self.identity()), self.identity().caps.runs());
        let message = Arc::make_mut(&mut question.message);
        (message.asker, message.max_runs) = (asker, Some(max_runs));
        message.evaluated_at = state.state_store().clock().now().as_second();
        Ok(())
    }
}
