//! A role that reaches for the streams, or fills its own.
