//! Numbers and bytes of webhook events through crashes, filters and replays.
