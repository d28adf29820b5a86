//! Credentials of every role that are replaced under load.
