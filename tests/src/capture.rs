//! Captures what code under test leaves behind: its log lines and its metrics. Included by the crates' own tests.

use std::io;
use std::sync::{Arc, Mutex};

use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::Value;
use tracing_subscriber::filter::LevelFilter;

#[derive(Clone, Default)]
struct LogBuffer(Arc<Mutex<Vec<u8>>>);

impl io::Write for LogBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs `work` to its end. Returns its log lines, as the product's processes write them, and the page of metrics.
pub(crate) fn capture(work: impl Future<Output = ()>) -> (Vec<Value>, String) {
    let buffer = LogBuffer::default();
    let writer = buffer.clone();
    let json = tracing_subscriber::fmt().json().flatten_event(true).with_max_level(LevelFilter::DEBUG);
    let subscriber = json.with_writer(move || writer.clone()).finish();
    let recorder = PrometheusBuilder::new().set_buckets(&[1.0]).unwrap().build_recorder();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tracing::subscriber::with_default(subscriber, || {
        ::metrics::with_local_recorder(&recorder, || runtime.block_on(work));
    });
    let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
    (text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), recorder.handle().render())
}
