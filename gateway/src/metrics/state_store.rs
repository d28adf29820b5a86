//! A state store that counts its failures, so that its callers do not have to.
//!
//! A conflict is not a failure: it is how concurrent writers of one record notice each other. A call that is cancelled
//! before the state store answers is not counted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use stage0_backplane::{
    BoxFuture, ListError, PutError, ReadError, Record, RecordPage, Revision, StateStore, StateStoreLayer,
};
use tokio::time::Instant;

use super::state_store_failed;

pub(crate) struct MeteredStateStore(pub(crate) Arc<dyn StateStore>);

impl StateStoreLayer for MeteredStateStore {
    fn inner(&self) -> &dyn StateStore {
        &*self.0
    }

    fn get<'a>(&'a self, key: &'a str, deadline: Instant) -> BoxFuture<'a, Result<Option<Record>, ReadError>> {
        Box::pin(async move { self.0.get(key, deadline).await.inspect_err(|_| state_store_failed("get")) })
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expected: Option<Revision>,
        expires_in: Option<Duration>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Revision, PutError>> {
        Box::pin(async move {
            let put = self.0.put(key, value, expected, expires_in, deadline).await;
            put.inspect_err(|error| match error {
                PutError::Conflict => {}
                PutError::Failed(_) => state_store_failed("put"),
            })
        })
    }

    fn list<'a>(
        &'a self,
        under: &'a str,
        after: Option<&'a str>,
        most: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<RecordPage, ListError>> {
        Box::pin(async move {
            let listed = self.0.list(under, after, most, deadline).await;
            listed.inspect_err(|error| match error {
                ListError::Cursor => {}
                ListError::Read(_) => state_store_failed("get"),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use stage0_backplane::{ClockError, StoreClock};

    /// Conflicts on one key, fails on every other.
    struct Broken;

    impl StateStore for Broken {
        fn get<'a>(&'a self, _: &'a str, _: Instant) -> BoxFuture<'a, Result<Option<Record>, ReadError>> {
            Box::pin(async { Err(ReadError("gone".into())) })
        }

        fn put<'a>(
            &'a self,
            key: &'a str,
            _: Bytes,
            _: Option<Revision>,
            _: Option<Duration>,
            _: Instant,
        ) -> BoxFuture<'a, Result<Revision, PutError>> {
            let conflict = key == "taken";
            Box::pin(async move { Err(if conflict { PutError::Conflict } else { PutError::Failed("gone".into()) }) })
        }

        fn list<'a>(
            &'a self,
            _: &'a str,
            _: Option<&'a str>,
            _: usize,
            _: Instant,
        ) -> BoxFuture<'a, Result<RecordPage, ListError>> {
            Box::pin(async { Err(ListError::Read(ReadError("gone".into()))) })
        }

        fn clock(&self) -> &Arc<StoreClock> {
            StoreClock::own()
        }

        fn read_clock(&self, _: Duration, _: Instant) -> BoxFuture<'_, Result<(), ClockError>> {
            Box::pin(async { Err(ClockError::Unknown) })
        }
    }

    #[test]
    fn failures_are_counted_and_returned_and_conflicts_are_not_failures() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        metrics::with_local_recorder(&recorder, || {
            runtime.block_on(async {
                let (metered, now) = (MeteredStateStore(Arc::new(Broken)), Instant::now());
                let state_store: &dyn StateStore = &metered;
                assert!(state_store.get("x", now).await.is_err());
                let put = async |key| state_store.put(key, Bytes::new(), None, None, now).await;
                assert_eq!(put("taken").await, Err(PutError::Conflict));
                for _ in 0..2 {
                    assert_eq!(put("x").await, Err(PutError::Failed("gone".into())));
                }
            });
        });
        let page = recorder.handle().render();
        assert!(page.contains("stage0_ledger_failures_total{by=\"get\"} 1\n"), "{page}");
        assert!(page.contains("stage0_ledger_failures_total{by=\"put\"} 2\n"), "{page}");
    }
}
