//! Drives the fuzz targets on stable Rust: each input of their corpora, then changed ones.

// Compiled as a test module, so that helpers may panic like tests.
#[cfg(test)]
mod suite {
    mod changes;
    mod driver;
    mod targets;
}
