//! A gateway that is taken over, and what it can do in the name of callers.
