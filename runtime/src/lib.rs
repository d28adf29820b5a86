//! The process runtime: what every role's process has, whichever service runs in it.
//!
//! [`process`] runs a role from its log to its exit, a [`ServiceGroup`] runs several services in one process, and with
//! [`settings!`] a service declares its settings, once. It knows no service, no command and no file format.

pub mod health_client;
pub mod heartbeat;
pub mod logs;
pub mod metrics_server;
pub mod process;
mod process_metrics;
mod service_group;
pub mod settings;
mod signals;

pub use process::{ProcessContext, ProcessSettings, StartError, or_stop, run};
pub use process_metrics::BuildInfo;
pub use service_group::{ServiceGroup, ServicePanicked};
