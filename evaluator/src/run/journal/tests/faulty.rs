//! A real state store whose puts fail as a network makes them fail: lost before or after they were stored, or late.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use stage0_backplane::{BoxFuture, PutError, Revision, StateStore, StateStoreLayer};
use tokio::sync::oneshot;
use tokio::time::Instant;

pub(super) enum Fault {
    /// It is stored, and the caller does not hear of it.
    LoseAcknowledgement,
    /// It is not stored, which the caller does not know.
    Fail,
    /// It is stored only after this.
    Before(oneshot::Receiver<()>),
    /// It is stored at once, and acknowledged after this.
    After(oneshot::Receiver<()>),
}

pub(super) struct Faulty {
    store: Arc<dyn StateStore>,
    puts: AtomicUsize,
    /// For the next put of a key that begins so.
    fault: Mutex<Option<(String, Fault)>>,
}

impl Faulty {
    pub(super) fn over(store: Arc<dyn StateStore>) -> Arc<Self> {
        Arc::new(Self { store, puts: AtomicUsize::new(0), fault: Mutex::default() })
    }

    pub(super) fn puts(&self) -> usize {
        self.puts.load(Ordering::Relaxed)
    }

    pub(super) fn fail_next(&self, under: &str, fault: Fault) {
        *self.fault.lock().unwrap() = Some((under.to_owned(), fault));
    }

    fn fault_of(&self, key: &str) -> Option<Fault> {
        let mut fault = self.fault.lock().unwrap();
        fault.take_if(|(under, _)| key.starts_with(under.as_str())).map(|(_, fault)| fault)
    }
}

impl StateStoreLayer for Faulty {
    fn inner(&self) -> &dyn StateStore {
        &*self.store
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
            self.puts.fetch_add(1, Ordering::Relaxed);
            let lost = || Err(PutError::Failed("lost".into()));
            match self.fault_of(key) {
                None => self.store.put(key, value, expected, expires_in, deadline).await,
                Some(Fault::Fail) => lost(),
                Some(Fault::LoseAcknowledgement) => {
                    self.store.put(key, value, expected, expires_in, deadline).await?;
                    lost()
                }
                Some(Fault::Before(released)) => {
                    let _ = released.await;
                    self.store.put(key, value, expected, expires_in, deadline).await
                }
                Some(Fault::After(released)) => {
                    let put = self.store.put(key, value, expected, expires_in, deadline).await;
                    let _ = released.await;
                    put
                }
            }
        })
    }
}
