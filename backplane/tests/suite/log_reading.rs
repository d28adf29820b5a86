//! Reading the decision log: where to start, what is visible, how much at once.

use jiff::Timestamp;
use jiff::ToSpan as _;
use stage0_backplane::{DecisionLog, Entry, EntryFilter, EntryKind, Position, Seek, SeekBack};

use crate::writing::{DECISIONS, MARKS, account, append, batch, everything, in_pieces, mark, soon, texts, write};
use crate::{Stage, on_every_store};

on_every_store! {
    an_empty_log_has_nothing,
    an_account_without_entries_has_nothing,
    a_read_starts_at_the_given_position,
    a_read_returns_the_requested_kind,
    the_last_of_each_kind_is_found,
    a_mixed_log_reads_the_same_in_chunks_of_every_size,
    whether_there_is_more_is_known_exactly,
    thousands_of_tiny_entries_are_all_read,
    a_log_larger_than_one_answer_is_all_read,
    reading_while_others_append_misses_nothing_after_its_position,
    a_backwards_read_starts_at_the_given_position,
    a_log_reads_backwards_the_same_in_chunks_of_every_size,
    a_log_larger_than_one_answer_is_all_read_back,
}

async fn an_empty_log_has_nothing(stage: Stage) {
    has_nothing(&*stage.recorder().await.log).await;
}

async fn an_account_without_entries_has_nothing(stage: Stage) {
    let log = stage.recorder().await.log;
    write(&*log, &account("b"), "x").await;
    mark(&*log, &account("b"), "m", None).await;
    has_nothing(&*log).await;
}

async fn has_nothing(log: &dyn DecisionLog) {
    let a = account("a");
    for which in [EntryFilter::All, DECISIONS, MARKS] {
        for from in
            [Seek::Start, Seek::After(Position(0)), Seek::After(Position(u64::MAX)), Seek::Time(Timestamp::now())]
        {
            let chunk = log.read(&a, which, from, 1_000, soon()).await.unwrap();
            assert!(chunk.entries.is_empty() && !chunk.more, "{which:?} {from:?}");
        }
    }
    for kind in [EntryKind::Decisions, EntryKind::Mark] {
        assert_eq!(log.last(&a, kind, soon()).await, Ok(None));
    }
}

async fn a_read_starts_at_the_given_position(stage: Stage) {
    let (log, a) = (stage.recorder().await.log, account("a"));
    for text in ["0", "1", "2"] {
        write(&*log, &a, text).await;
        write(&*log, &account("b"), "another").await;
    }
    let all = everything(&*log, &a, DECISIONS).await;
    assert_eq!(texts(&all), ["0", "1", "2"]);
    let from = async |from| texts(&log.read(&a, EntryFilter::All, from, usize::MAX, soon()).await.unwrap().entries);
    assert_eq!(from(Seek::Start).await, ["0", "1", "2"]);
    assert_eq!(from(Seek::After(Position(0))).await, ["0", "1", "2"]);
    assert_eq!(from(Seek::After(all[0].position)).await, ["1", "2"]);
    assert_eq!(from(Seek::After(Position(all[1].position.0 - 1))).await, ["1", "2"]);
    assert_eq!(from(Seek::After(Position(u64::MAX))).await, [""; 0]);
    let second = all[1].stored_at;
    assert!(all[0].stored_at < second && second < all[2].stored_at);
    assert_eq!(from(Seek::Time(second)).await, ["1", "2"]);
    assert_eq!(from(Seek::Time(second - 1.nanosecond())).await, ["1", "2"]);
    assert_eq!(from(Seek::Time(second + 1.nanosecond())).await, ["2"]);
    assert_eq!(from(Seek::Time(Timestamp::UNIX_EPOCH)).await, ["0", "1", "2"]);
    assert_eq!(from(Seek::Time(Timestamp::MIN)).await, ["0", "1", "2"]);
    assert_eq!(from(Seek::Time(all[2].stored_at + 1.hour())).await, [""; 0]);
    assert_eq!(from(Seek::Time(Timestamp::MAX)).await, [""; 0]);
}

async fn a_read_returns_the_requested_kind(stage: Stage) {
    let (log, a) = (stage.recorder().await.log, account("a"));
    write(&*log, &a, "d0").await;
    let first = mark(&*log, &a, "m0", None).await;
    write(&*log, &a, "d1").await;
    mark(&*log, &a, "m1", Some(first)).await;
    assert_eq!(texts(&everything(&*log, &a, DECISIONS).await), ["d0", "d1"]);
    assert_eq!(texts(&everything(&*log, &a, MARKS).await), ["m0", "m1"]);
    let all = everything(&*log, &a, EntryFilter::All).await;
    assert_eq!(texts(&all), ["d0", "m0", "d1", "m1"]);
    let kinds: Vec<_> = all.iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [EntryKind::Decisions, EntryKind::Mark, EntryKind::Decisions, EntryKind::Mark]);
    let after = log.read(&a, DECISIONS, Seek::After(first), usize::MAX, soon()).await.unwrap();
    assert_eq!(texts(&after.entries), ["d1"]);
}

async fn the_last_of_each_kind_is_found(stage: Stage) {
    let (log, a) = (stage.recorder().await.log, account("a"));
    write(&*log, &a, "d0").await;
    let last = async |kind| log.last(&a, kind, soon()).await.unwrap();
    assert_eq!(last(EntryKind::Mark).await, None);
    let first = mark(&*log, &a, "m0", None).await;
    write(&*log, &a, "d1").await;
    write(&*log, &account("b"), "another").await;
    let all = everything(&*log, &a, EntryFilter::All).await;
    assert_eq!(last(EntryKind::Decisions).await.as_ref(), Some(&all[2]));
    assert_eq!(last(EntryKind::Mark).await.as_ref(), Some(&all[1]));
    assert_eq!(all[1].position, first);
}

async fn a_mixed_log_reads_the_same_in_chunks_of_every_size(stage: Stage) {
    let (log, a) = (stage.recorder().await.log, account("a"));
    let (mut written, mut last) = (Vec::new(), None);
    for number in 0..60_usize {
        let text = format!("{number} {}", "x".repeat(number * number * 7 % 97));
        // Runs of one kind, of different lengths.
        if number % 7 < 3 {
            last = Some(mark(&*log, &a, &text, last).await);
        } else {
            write(&*log, &a, text.clone()).await;
            write(&*log, &account("b"), text.clone()).await;
        }
        written.push(text);
    }
    let all = everything(&*log, &a, EntryFilter::All).await;
    assert_eq!(texts(&all), written);
    for size in [0, 1, 7, 50, 99, 100, 101, 250, 1_000, 5_000] {
        assert_eq!(in_pieces(&*log, &a, EntryFilter::All, size).await, all, "{size}");
        for kind in [EntryKind::Decisions, EntryKind::Mark] {
            let found = in_pieces(&*log, &a, EntryFilter::Only(kind), size).await;
            let expected: Vec<_> = all.iter().filter(|entry| entry.kind == kind).cloned().collect();
            assert_eq!(found, expected, "{kind:?} {size}");
        }
    }
}

async fn whether_there_is_more_is_known_exactly(stage: Stage) {
    let (log, a, b) = (stage.recorder().await.log, account("a"), account("b"));
    // Long enough to dwarf the overhead of the store.
    let long = "x".repeat(100_000);
    write(&*log, &a, long.clone()).await;
    let middle = mark(&*log, &a, &long, None).await;
    write(&*log, &a, long.clone()).await;
    write(&*log, &b, long.clone()).await;
    mark(&*log, &b, &long, None).await;
    let read = async |which, from, size| {
        let chunk = log.read(&a, which, from, size, soon()).await.unwrap();
        (chunk.entries.len(), chunk.more)
    };
    assert_eq!(read(EntryFilter::All, Seek::Start, 310_000).await, (3, false));
    assert_eq!(read(EntryFilter::All, Seek::Start, 299_999).await, (2, true));
    assert_eq!(read(EntryFilter::All, Seek::Start, 199_999).await, (1, true));
    assert_eq!(read(EntryFilter::All, Seek::Start, 1).await, (1, true));
    assert_eq!(read(EntryFilter::All, Seek::After(middle), 1).await, (1, false));
    assert_eq!(read(DECISIONS, Seek::Start, 210_000).await, (2, false));
    assert_eq!(read(DECISIONS, Seek::Start, 199_999).await, (1, true));
    assert_eq!(read(DECISIONS, Seek::After(middle), 1).await, (1, false));
    assert_eq!(read(MARKS, Seek::Start, 1).await, (1, false));
}

async fn thousands_of_tiny_entries_are_all_read(stage: Stage) {
    let (log, a) = (stage.recorder().await.log, account("a"));
    // More than the client's queue for one subscription holds.
    let count = 9_000;
    for start in (0..count).step_by(1_000) {
        let batches = (start..start + 1_000).map(|number| batch(&a, format!("{number:05}"))).collect();
        assert!(log.append(batches, soon()).await.iter().all(Result::is_ok));
    }
    let found = everything(&*log, &a, DECISIONS).await;
    assert!(found.is_sorted_by(|one, next| one.position < next.position));
    let mut texts = texts(&found);
    texts.sort();
    assert!(texts.iter().enumerate().all(|(number, text)| *text == format!("{number:05}")));
    assert_eq!(texts.len(), count);
}

async fn a_log_larger_than_one_answer_is_all_read(stage: Stage) {
    let (log, a) = (stage.recorder().await.log, account("a"));
    for number in 0..12_u8 {
        write(&*log, &a, vec![number; 3_000_000]).await;
    }
    for size in [usize::MAX, 64 << 20, 3_500_000] {
        let found = in_pieces(&*log, &a, DECISIONS, size).await;
        let sizes: Vec<_> = found.iter().map(|entry| (entry.lines[0], entry.lines.len())).collect();
        assert_eq!(sizes, (0..12).map(|number| (number, 3_000_000)).collect::<Vec<_>>(), "{size}");
    }
}

async fn reading_while_others_append_misses_nothing_after_its_position(stage: Stage) {
    let (writer, reader, a) = (stage.recorder().await.log, stage.recorder().await.log, account("a"));
    let written = {
        let a = a.clone();
        tokio::spawn(async move {
            for number in 0..300 {
                append(&*writer, batch(&a, format!("{number:03}")), soon()).await.unwrap();
            }
        })
    };
    let (mut found, mut from) = (Vec::new(), Seek::Start);
    while found.len() < 300 {
        let chunk = reader.read(&a, EntryFilter::All, from, 20, soon()).await.unwrap();
        from = chunk.entries.last().map_or(from, |entry| Seek::After(entry.position));
        found.extend(texts(&chunk.entries));
    }
    written.await.unwrap();
    assert_eq!(found, (0..300).map(|number| format!("{number:03}")).collect::<Vec<_>>());
}

async fn a_backwards_read_starts_at_the_given_position(stage: Stage) {
    let (log, a) = (stage.recorder().await.log, account("a"));
    let from =
        async |from| texts(&log.read_back(&a, EntryKind::Decisions, from, usize::MAX, soon()).await.unwrap().entries);
    for nothing in [SeekBack::End, SeekBack::Before(Position(9)), SeekBack::Time(Timestamp::MAX)] {
        assert_eq!(from(nothing).await, [""; 0], "{nothing:?}");
    }
    mark(&*log, &a, "m", None).await;
    for text in ["0", "1", "2"] {
        write(&*log, &a, text).await;
        write(&*log, &account("b"), "another").await;
    }
    let all = everything(&*log, &a, DECISIONS).await;
    assert_eq!(from(SeekBack::End).await, ["2", "1", "0"]);
    assert_eq!(from(SeekBack::Before(Position(u64::MAX))).await, ["2", "1", "0"]);
    assert_eq!(from(SeekBack::Before(all[2].position)).await, ["1", "0"]);
    assert_eq!(from(SeekBack::Before(Position(all[1].position.0 + 1))).await, ["1", "0"]);
    assert_eq!(from(SeekBack::Before(all[0].position)).await, [""; 0]);
    for none in [0, 1] {
        assert_eq!(from(SeekBack::Before(Position(none))).await, [""; 0]);
    }
    let second = all[1].stored_at;
    assert_eq!(from(SeekBack::Time(second)).await, ["1", "0"]);
    assert_eq!(from(SeekBack::Time(second - 1.nanosecond())).await, ["0"]);
    assert_eq!(from(SeekBack::Time(all[2].stored_at - 1.nanosecond())).await, ["1", "0"]);
    assert_eq!(from(SeekBack::Time(all[2].stored_at + 1.hour())).await, ["2", "1", "0"]);
    assert_eq!(from(SeekBack::Time(Timestamp::MAX)).await, ["2", "1", "0"]);
    assert_eq!(from(SeekBack::Time(Timestamp::UNIX_EPOCH)).await, [""; 0]);
    assert_eq!(from(SeekBack::Time(Timestamp::MIN)).await, [""; 0]);
    assert_eq!(texts(&log.read_back(&a, EntryKind::Mark, SeekBack::End, 9, soon()).await.unwrap().entries), ["m"]);
    log.remove_through(&a, EntryKind::Decisions, all[0].position, soon()).await.unwrap();
    assert_eq!(from(SeekBack::End).await, ["2", "1"]);
}

/// Reads everything backwards from the end, in pieces of this size.
async fn back_in_pieces(log: &dyn DecisionLog, size: usize) -> Vec<Entry> {
    let (mut all, mut from) = (Vec::new(), SeekBack::End);
    loop {
        let chunk = log.read_back(&account("a"), EntryKind::Decisions, from, size, soon()).await.unwrap();
        let bytes: usize = chunk.entries.iter().map(|entry| entry.lines.len()).sum();
        assert!(bytes <= size || chunk.entries.len() == 1, "{bytes} bytes instead of {size}");
        from = chunk.entries.last().map_or(from, |entry| SeekBack::Before(entry.position));
        let is_empty = chunk.entries.is_empty();
        all.extend(chunk.entries);
        if !chunk.more {
            return all;
        }
        assert!(!is_empty, "more, but nothing read");
    }
}

async fn a_log_reads_backwards_the_same_in_chunks_of_every_size(stage: Stage) {
    let (log, a) = (stage.recorder().await.log, account("a"));
    let mut last = None;
    for number in 0..60_usize {
        let text = format!("{number} {}", "x".repeat(number * number * 7 % 97));
        // Ranges without the account's decisions, of different lengths.
        match number % 7 {
            0 => last = Some(mark(&*log, &a, &text, last).await),
            1 | 2 => write(&*log, &account("b"), text).await,
            _ => write(&*log, &a, text).await,
        }
    }
    let mut all = everything(&*log, &a, DECISIONS).await;
    all.reverse();
    for size in [0, 1, 7, 50, 99, 100, 101, 250, 1_000, 5_000, usize::MAX] {
        assert_eq!(back_in_pieces(&*log, size).await, all, "{size}");
    }
}

async fn a_log_larger_than_one_answer_is_all_read_back(stage: Stage) {
    let (log, a) = (stage.recorder().await.log, account("a"));
    // Some thousand small ones of others and of the account, then few large ones, then small ones again.
    for (length, count) in [(10, 1_500), (300_000, 12), (10, 700)] {
        let batches = (0..count).map(|n| {
            let whose = if n % 3 == 0 && length == 10 { account("b") } else { a.clone() };
            batch(&whose, vec![b'x'; length + n % 7])
        });
        for answer in log.append(batches.collect(), soon()).await {
            answer.unwrap();
        }
    }
    let mut all = everything(&*log, &a, DECISIONS).await;
    all.reverse();
    for size in [1_000, 64 << 10, 1 << 20] {
        assert_eq!(back_in_pieces(&*log, size).await, all, "{size}");
    }
}
