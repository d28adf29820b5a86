//! Messages whose headers, subject or reply subject cannot be parsed. nats-server forwards and stores them unchanged;
//! here they end no connection and no read, and no role accepts them, with message keys or without.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use stage0_backplane::nats::{Connection, Health, NatsConfig};
use stage0_backplane::{Backplane, EntryFilter, EntryKind, Event, MarkError, RequestError, Seek};
use stage0_contract::{EvaluateRequest, KeyChanged, Notice as _, Request as _, Role};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::auth::{Open, is_done};
use crate::writing::{
    DECISIONS, MARKS, account, append, batch, decisions, everything, in_pieces, mark, soon, texts, verified, write,
};

const EVALUATE: &str = EvaluateRequest::SUBJECT;
const EVALUATE_AT: &str = "s0.req.evaluate";

/// Each kind of header block that cannot be parsed, and some that would be another message if only a part of it
/// counted.
const BLOCKS: [&[u8]; 18] = [
    b"NATS/1.0\r\nno colon here\r\n\r\n",
    b"NATS/1.0\r\nName: \xff\xfe\r\n\r\n",
    b"NATS/1.0\r\n\xff\xfe: value\r\n\r\n",
    b"NATS/1.0\r\nna me: value\r\n\r\n",
    b"NATS/1.0\r\nna\x01me: value\r\n\r\n",
    b"NATS/1.0\r\n folded onto nothing\r\n\r\n",
    b"NATS/1.0\r\nName: lone\rreturn\r\n\r\n",
    b"NATS/1.0\r\nName: folded\r\n \xff\r\n\r\n",
    b"NATS/2.0\r\nName: value\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"\xff\xff\xff\xff\r\n\r\n",
    b"Name: value\r\n\r\n",
    // Without its end: of a stored message, the server cuts two bytes off and appends its own lines.
    b"NATS/1.0\r\nno end",
    b"no end",
    // Headers that only the server may set, in valid lines.
    b"NATS/1.0 404 Message Not Found\r\nno colon here\r\n\r\n",
    b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\nNats-Last-Sequence: 0\r\nno colon here\r\n\r\n",
    b"NATS/1.0 503\r\nno colon here\r\n\r\n",
    b"NATS/1.0\r\nNats-Sequence: 1\r\nNats-Subject: s0.log.b.d\r\nNats-Time-Stamp: 2020-01-01T00:00:00Z\r\n\
      Nats-Last-Sequence: 1\r\nNats-Num-Pending: 0\r\nno colon here\r\nNats-Sequence: x\r\n\r\n",
];
/// The server stores no status, so those are well-formed in a stream.
const LIVE_BLOCKS: [&[u8]; 4] =
    [b"NATS/1.0 99999\r\n\r\n", b"NATS/1.0 nothing at all\r\n\r\n", b"NATS/1.0 \xff\r\n\r\n", b"no"];

/// A client that can write any bytes.
struct Raw {
    stream: TcpStream,
}

impl Raw {
    async fn connect(open: &Open) -> Self {
        let mut stream = TcpStream::connect(open.nats.url().replace("nats://", "")).await.unwrap();
        stream.write_all(b"CONNECT {\"verbose\":false,\"headers\":true}\r\n").await.unwrap();
        Self { stream }
    }

    /// `to`: the subject, and after a space the reply subject.
    async fn publish(&mut self, to: &[u8], block: &[u8], body: &str) {
        let mut sent = match block {
            [] => [b"PUB ", to, format!(" {}\r\n", body.len()).as_bytes()].concat(),
            block => [b"HPUB ", to, format!(" {} {}\r\n", block.len(), block.len() + body.len()).as_bytes()].concat(),
        };
        sent.extend([block, body.as_bytes(), b"\r\n"].concat());
        self.stream.write_all(&sent).await.unwrap();
    }

    /// The server has received all of it.
    async fn is_done(&mut self) {
        self.stream.write_all(b"PING\r\n").await.unwrap();
        let (mut said, mut piece) = (String::new(), [0; 1024]);
        while !said.contains("PONG") {
            let read = self.stream.read(&mut piece).await.unwrap();
            assert!(read > 0, "{said}");
            said.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
        assert!(!said.contains("-ERR"), "{said}");
    }

    /// Each of the blocks, once.
    async fn publish_all(&mut self, to: &str) {
        self.publish_each(to, &BLOCKS).await;
    }

    async fn publish_each(&mut self, to: &str, blocks: &[&[u8]]) {
        for block in blocks {
            self.publish(to.as_bytes(), block, "forged").await;
        }
        self.is_done().await;
    }
}

/// With message keys, and without.
async fn connect(open: &Open, role: Role, keys: bool) -> (Backplane, Arc<Health>) {
    let connection = if keys {
        open.connection(role).await
    } else {
        let config = NatsConfig { name: role.to_string(), ..verified(&open.nats) };
        let connection = Connection::open(&config).await.unwrap();
        connection.prepare_log(1).await.unwrap();
        connection
    };
    (connection.backplane(), connection.health())
}

#[tokio::test]
async fn malformed_stored_messages_are_rejected_and_counted_and_later_ones_are_read() {
    for keys in [true, false] {
        let open = Open::start().await;
        let (gateway, gateways) = connect(&open, Role::Gateway, keys).await;
        let (exporter, exporters) = connect(&open, Role::AuditExport, keys).await;
        let (mut raw, a) = (Raw::connect(&open).await, account("a"));
        raw.publish_all("s0.log.a.d").await;
        write(&*gateway.log, &a, "one").await;
        raw.publish_all("s0.log.a.d").await;
        write(&*gateway.log, &a, "two").await;
        raw.publish_all("s0.log.a.d").await;
        raw.publish_all("s0.log.a.m").await;
        let first = mark(&*exporter.log, &a, "first", None).await;
        raw.publish_all("s0.log.a.m").await;
        let late = exporter.log.append_mark(&a, "late".into(), None, soon()).await;
        assert_eq!(late, Err(MarkError::Conflict));
        let second = mark(&*exporter.log, &a, "second", Some(first)).await;
        raw.publish_all("s0.log.a.m").await;
        let late = exporter.log.append_mark(&a, "late".into(), Some(first), soon()).await;
        assert_eq!(late, Err(MarkError::Conflict));
        for reader in [&gateway, &exporter] {
            assert_eq!(decisions(&*reader.log, &a).await, ["one", "two"]);
            assert_eq!(texts(&everything(&*reader.log, &a, MARKS).await), ["first", "second"]);
            for size in [1, 5, 1000] {
                assert_eq!(texts(&in_pieces(&*reader.log, &a, DECISIONS, size).await), ["one", "two"]);
            }
            let last = async |kind| reader.log.last(&a, kind, soon()).await.unwrap().unwrap();
            assert_eq!(last(EntryKind::Decisions).await.lines, "two");
            assert_eq!(last(EntryKind::Mark).await.position, second);
            let chunk = reader.log.read(&a, EntryFilter::All, Seek::Start, usize::MAX, soon()).await.unwrap();
            assert_eq!((chunk.rejected, chunk.more), (6 * BLOCKS.len() as u64, false));
            assert!(reader.log.accounts(soon()).await.unwrap().contains(&a));
        }
        // Also where there is nothing else.
        raw.publish_all("s0.log.c.m").await;
        let c = account("c");
        assert_eq!(gateway.log.last(&c, EntryKind::Mark, soon()).await, Ok(None));
        mark(&*exporter.log, &c, "first", None).await;
        // The account that one of them named has no entry of it.
        assert!(decisions(&*gateway.log, &account("b")).await.is_empty());
        assert_eq!((gateways.disconnects(), exporters.disconnects()), (0, 0), "keys: {keys}");
    }
}

#[tokio::test]
async fn a_genuine_message_with_a_malformed_header_line_is_rejected() {
    let open = Open::start().await;
    let (gateway, health) = connect(&open, Role::Gateway, true).await;
    let (bystander, mut raw, a) = (open.bystander().await, Raw::connect(&open).await, account("a"));
    let mut overheard = bystander.subscribe("s0.>").await.unwrap();
    is_done(&bystander).await;
    append(&*gateway.log, batch(&a, "one"), soon()).await.unwrap();
    let key = "usage.a.m1";
    let first = gateway.state_store.put(key, "5".into(), None, None, soon()).await.unwrap();
    gateway.state_store.put(key, "6".into(), Some(first), None, soon()).await.unwrap();
    let mut heard = Vec::new();
    while heard.len() < 3 {
        let message = overheard.next().await.unwrap();
        if message.subject.starts_with("s0.log.") || message.subject.starts_with("s0.ledger.") {
            heard.push(message);
        }
    }
    // The earlier record, under a sequence that the server finds through another subject, which cannot be parsed.
    for (again, more) in [
        (&heard[0], &b"no colon here"[..]),
        (&heard[1], b"Nats-Expected-Last-Subject-Sequence-Subject: s0.ledger.usage.a.\xff"),
    ] {
        let mut block = b"NATS/1.0\r\n".to_vec();
        for (name, values) in
            again.headers.as_ref().unwrap().iter().filter(|(name, _)| name.to_string() != "Nats-Msg-Id")
        {
            block.extend(format!("{name}: {}\r\n", values[0]).as_bytes());
        }
        block.extend([more, b"\r\n\r\n"].concat());
        raw.publish(again.subject.as_bytes(), &block, std::str::from_utf8(&again.payload).unwrap()).await;
    }
    raw.is_done().await;
    let chunk = gateway.log.read(&a, EntryFilter::All, Seek::Start, usize::MAX, soon()).await.unwrap();
    assert_eq!((texts(&chunk.entries), chunk.rejected), (vec!["one".to_owned()], 1));
    // Also for a process that knows nothing of the earlier record.
    for reader in [&gateway, &connect(&open, Role::Gateway, true).await.0] {
        let why = reader.state_store.get(key, soon()).await.unwrap_err().0.to_string();
        assert!(why.contains("what authenticates it cannot be read"), "{why}");
    }
    assert_eq!(health.disconnects(), 0);
}

#[tokio::test]
async fn a_malformed_record_of_the_state_store_is_an_error_and_not_a_missing_record() {
    for keys in [true, false] {
        let open = Open::start().await;
        let (gateway, health) = connect(&open, Role::Gateway, keys).await;
        let mut raw = Raw::connect(&open).await;
        for (number, block) in BLOCKS.into_iter().enumerate() {
            let key = format!("usage.a.m{number}");
            let stored_by = soon();
            raw.publish(format!("s0.ledger.{key}").as_bytes(), block, "5").await;
            raw.is_done().await;
            // The server stores what it received a moment later; until then, there is no record.
            let why = loop {
                match gateway.state_store.get(&key, soon()).await {
                    Err(error) => break error.0.to_string(),
                    Ok(None) if Instant::now() < stored_by => sleep(Duration::from_millis(5)).await,
                    Ok(record) => panic!("{key}: {record:?}"),
                }
            };
            assert!(why.contains("is not believed"), "{why}");
        }
        assert_eq!(health.disconnects(), 0);
    }
}

#[tokio::test]
async fn malformed_live_messages_are_dropped_and_leave_the_connection_open() {
    for keys in [true, false] {
        let open = Open::start().await;
        let (gateway, gateways) = connect(&open, Role::Gateway, keys).await;
        let (keystore, _) = connect(&open, Role::Keystore, keys).await;
        let (evaluator, evaluators) = connect(&open, Role::Evaluator, keys).await;
        let mut listener = gateway.notices.subscribe_bytes(KeyChanged::SUBJECT).await.unwrap();
        let mut inbox = evaluator.requests.serve_bytes(EVALUATE).await.unwrap();
        let (bystander, mut raw) = (open.bystander().await, Raw::connect(&open).await);
        let mut overheard = bystander.subscribe(EVALUATE_AT).await.unwrap();
        is_done(&bystander).await;

        let notice = format!("s0.{}", KeyChanged::SUBJECT);
        for blocks in [&BLOCKS[..], &LIVE_BLOCKS] {
            raw.publish_each(&notice, blocks).await;
            raw.publish_each(&format!("{EVALUATE_AT} _INBOX_raw"), blocks).await;
        }
        // Messages with a valid deadline only; and reply subjects that are no text, or contain whitespace.
        let asked = b"NATS/1.0\r\nno colon here\r\nStage0-Deadline: 99999999999999\r\nStage0-Budget-Ms: 10000\r\n\r\n";
        raw.publish(format!("{EVALUATE_AT} _INBOX_raw").as_bytes(), asked, "forged").await;
        for reply in [&b" _INBOX_\xff"[..], " _INBOX_a\u{a0}b\u{2003}c".as_bytes(), b" _INBOX_a\x0bb\x0cc"] {
            for block in [&b""[..], b"NATS/1.0\r\n\r\n"] {
                raw.publish(&[EVALUATE_AT.as_bytes(), reply].concat(), block, "").await;
            }
            raw.publish(&[notice.as_bytes(), reply].concat(), BLOCKS[0], "").await;
        }
        raw.is_done().await;
        keystore.notices.publish_bytes(KeyChanged::SUBJECT, "genuine".into()).await.unwrap();
        assert_eq!(listener.next().await, Some(Event::Message(Bytes::from("genuine"))));

        let asker = gateway.clone();
        let ask = |text: &'static str| {
            let asker = asker.clone();
            tokio::spawn(async move { asker.requests.request_bytes(EVALUATE, text.into(), soon()).await })
        };
        let waiting = ask("one");
        let request = loop {
            let request = overheard.next().await.unwrap();
            if request.payload == "one" {
                break request;
            }
        };
        // Replies: each kind to the waiting request, and to a subject of its inbox that is no text.
        let to = request.reply.unwrap().to_string();
        raw.publish_all(&to).await;
        raw.publish_each(&to, &LIVE_BLOCKS).await;
        let elsewhere = to.rsplit_once('.').unwrap().0;
        for block in [&b""[..], b"NATS/1.0\r\n\r\n"] {
            raw.publish(&[elsewhere.as_bytes(), b".\xff"].concat(), block, "").await;
            raw.publish(&[elsewhere.as_bytes(), ".\u{a0}".as_bytes()].concat(), block, "").await;
        }
        raw.is_done().await;
        gateway.requests.ready().await.unwrap();
        assert!(!waiting.is_finished(), "it was answered by what cannot be read");
        let asked = inbox.next().await.unwrap();
        assert_eq!(asked.body.as_bytes().unwrap(), "one");
        asked.replier.reply("genuine".into()).await;
        let answer: Result<Bytes, RequestError> = waiting.await.unwrap();
        assert_eq!(answer.unwrap(), "genuine");
        assert_eq!((gateways.disconnects(), evaluators.disconnects()), (0, 0), "keys: {keys}");
    }
}
