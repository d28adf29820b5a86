//! Backups of every age that are put back.
