//! Two keystores that are started side by side.
