//! The HTTP API as a table: its operations, what each takes and answers, and the OpenAPI document made of them.
//!
//! A new operation is one row in `operations` and one arm in the gateway's routes; its fields are those of its message
//! type. A snapshot test shows each change of the document.

mod decisions;
mod document;
mod events;
mod health;
mod operations;
mod responses;
mod row;
mod schemas;

pub use decisions::{DecisionPath, DecisionQuery, ExportQuery, HookPath, VerifyQuery};
pub use document::openapi;
pub use events::DELIVERED_MEMBERS;
pub use health::{Liveness, LivenessStatus, ReadinessReport};
pub use operations::Operation;
pub use row::{Access, Method};
pub(crate) use schemas::{Context, IssueDetails, RecordedInput};
