//! The backplane on NATS.
