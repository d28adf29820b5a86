//! What an operator sees of a connection that breaks, of requests without a reply and of streams that fill up.

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use stage0_backplane::nats::{Logins, NatsServerConf, StreamAdmin};
use stage0_backplane::testing::{NatsServer, wait_for};
use stage0_backplane::{Backplane, RequestError};

use crate::roles::{open, prepared, server_with};
use crate::streams::SIZES;
use crate::writing::{account, write};
use crate::{PATIENT, Stage, answer_all, ask};

/// Runs the work on one thread, so that only its own metrics are on the page.
fn counted<W: Future<Output = ()>>(work: impl FnOnce(PrometheusHandle) -> W) -> String {
    let recorder = PrometheusBuilder::new().build_recorder();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let page = recorder.handle();
    ::metrics::with_local_recorder(&recorder, || {
        runtime.block_on(work(page.clone()));
        // Tasks that are still running end here, as a connection's tasks do.
        drop(runtime);
    });
    page.render()
}

fn says(page: &str, line: &str) -> bool {
    page.lines().any(|found| found == line)
}

#[test]
fn a_connection_that_breaks_is_seen_and_so_is_its_return() {
    let page = counted(async |page| {
        let mut nats = NatsServer::start().await;
        let connection = Backplane::connect(&nats.config("suite")).await.unwrap();
        let other = Backplane::connect(&nats.config("suite")).await.unwrap();
        assert!(says(&page.render(), "stage0_nats_connected 2"), "{}", page.render());
        nats.kill();
        wait_for("both are down", PATIENT, async || says(&page.render(), "stage0_nats_connected 0")).await;
        assert!(says(&page.render(), "stage0_nats_connections 2"));
        assert!(says(&page.render(), "stage0_nats_disconnects_total 2"), "{}", page.render());
        assert_eq!(ask(&connection, "while down", PATIENT).await, Err(RequestError::Disconnected));
        nats.restart().await;
        wait_for("both are back", PATIENT, async || says(&page.render(), "stage0_nats_connected 2")).await;
        other.requests.close().await;
        assert!(says(&page.render(), "stage0_nats_connected 1"), "{}", page.render());
    });
    assert!(says(&page, "stage0_nats_connections 0") && says(&page, "stage0_nats_connected 0"), "{page}");
    assert!(says(&page, "stage0_backplane_questions_total{subject=\"echo\",outcome=\"lost\"} 1"), "{page}");
}

#[test]
fn requests_are_counted_by_subject_and_outcome() {
    let page = counted(async |_| {
        let stage = Stage::embedded();
        let (asker, server) = (stage.connect().await, stage.connect().await);
        assert_eq!(ask(&asker, "nobody is there", PATIENT).await, Err(RequestError::NoResponders));
        let inbox = server.requests.serve().await.unwrap();
        let served = tokio::spawn(answer_all(inbox));
        ask(&asker, "a", PATIENT).await.unwrap();
        ask(&asker, "b", PATIENT).await.unwrap();
        assert_eq!(ask(&asker, "too late", std::time::Duration::ZERO).await, Err(RequestError::Timeout));
        served.abort();
    });
    for (outcome, count) in [("absent", 1), ("answered", 2), ("late", 1)] {
        let line = format!("stage0_backplane_questions_total{{subject=\"echo\",outcome=\"{outcome}\"}} {count}");
        assert!(says(&page, &line), "{line} in\n{page}");
    }
}

#[test]
fn a_role_that_is_asked_whether_it_is_ready_says_how_full_its_streams_are() {
    let page = counted(async |_| {
        let nats = server_with("96MB", Logins::SHARED).await;
        StreamAdmin::new(open(&nats, NatsServerConf::ADMIN_USER).await).init(&SIZES).await.unwrap();
        let gateway = prepared(&nats, "gateway").await;
        write(&*gateway.log, &account("a"), vec![b'x'; 1_000_000]).await;
        gateway.log.ready().await.unwrap();
    });
    let value = |name: &str, stream: &str| {
        let series = format!("{name}{{stream=\"{stream}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&series)).map(|value| value.parse::<f64>().unwrap())
    };
    let log = value("stage0_stream_bytes", "S0_LOG").unwrap();
    let max = value("stage0_stream_max_bytes", "S0_LOG").unwrap();
    assert!(log > 1e6 && max > log && max < 96e6, "{log} {max}");
    assert!(value("stage0_stream_max_bytes", "S0_USAGE").is_some(), "{page}");
    assert_eq!(value("stage0_stream_bytes", "S0_KEYSTORE"), None, "of another role");
}
