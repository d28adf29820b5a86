//! In place of `container` in programs that are built without it: the client of a Docker engine takes minutes to build.

use super::Ports;

/// There is none.
pub(super) enum Container {}

impl Container {
    pub(super) async fn start(_settings: &str) -> Self {
        panic!("this program starts no containers")
    }

    pub(super) fn ports(&self) -> Ports {
        match *self {}
    }

    pub(super) fn kill(&mut self) {
        match *self {}
    }

    pub(super) async fn restart(&mut self) {
        match *self {}
    }

    pub(super) async fn restart_with(&mut self, _settings: &str) {
        match *self {}
    }

    pub(super) fn freeze(&self) {
        match *self {}
    }

    pub(super) fn thaw(&self) {
        match *self {}
    }
}

pub(super) async fn engine() -> Result<(), String> {
    Err("this program starts no containers".to_owned())
}
