//! What an exporter that is taken over can do to the proof of the log.
