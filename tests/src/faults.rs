//! A deployment on three NATS servers in which everything can be broken: killed, frozen, slowed down, cut off, on a
//! full disk or with a wrong clock, and restarted in good order while clients go on.
//!
//! Owns the processes with their addresses, which stay the same after a restart, the rules of the firewall, and the
//! list of faults that a seed gives. Runs in namespaces of its own ([`isolated`]), with which processes, mounts and
//! rules end.

mod deployment;
mod load;
mod network;
mod outage;
mod plan;
mod report;
mod tenants;

pub use deployment::Deployment;
pub use load::Load;
pub use network::{Network, isolated};
pub use outage::{Measured, measure};
pub use plan::{Fault, Kind, Link, Party, plan};
pub use report::{Report, Rolling};
pub use tenants::Tenants;
