//! The backplane inside one process: the same bytes, deadlines and errors as on NATS, without a server.
//!
//! Bounded queues between askers and servers; questions go round the servers of a subject. Nothing survives the process, and
//! nothing needs to: what must survive is the log's and the keystore's business.
