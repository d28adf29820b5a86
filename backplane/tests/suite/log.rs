//! Appending to the decision log, marks, removal and expiry.

use bytes::Bytes;
use futures_util::future::join_all;

use stage0_backplane::{
    AppendError, Batch, DecisionLog, EntryFilter, EntryKind, MAX_MESSAGE_BYTES, MarkError, Position, Seek,
};
use tokio::time::Instant;

use crate::writing::{DECISIONS, MARKS, account, append, batch, decisions, everything, mark, soon, texts, write};
use crate::{PATIENT, Stage, on_every_store};

on_every_store! {
    a_batch_that_cannot_be_stored_is_refused_and_the_others_are_stored,
    nothing_is_appended_or_read_on_a_closed_connection,
    nothing_is_done_once_the_deadline_has_passed,
    an_empty_append_has_no_answers,
    appended_entries_are_read_unchanged_and_in_order,
    batches_of_several_accounts_are_appended_together,
    a_batch_that_is_appended_twice_is_stored_once,
    a_batch_that_is_appended_twice_at_the_same_time_is_stored_once,
    the_largest_batch_is_stored,
    accounts_with_similar_names_see_only_their_own,
    a_mark_is_refused_when_another_was_there_first,
    of_two_marks_at_once_one_is_written,
    marks_do_not_wait_for_decisions_nor_for_other_accounts,
    removal_takes_one_kind_of_one_account_up_to_a_position,
    removal_up_to_nothing_removes_nothing,
    removal_up_to_the_end_removes_all_and_what_follows_stays,
    accounts_are_those_that_have_entries,
    a_log_is_ready,
}

async fn a_batch_that_cannot_be_stored_is_refused_and_the_others_are_stored(stage: Stage) {
    let (log, a) = (stage.recorder().await.log, account("a"));
    let with_id = |id: &str| Batch { id: id.to_owned(), ..batch(&a, "bad") };
    let too_large = batch(&a, vec![b'x'; MAX_MESSAGE_BYTES + 1]);
    let bad = [with_id(""), with_id("a\nb"), with_id("a b"), with_id(&"x".repeat(201)), too_large];
    let mut batches = vec![batch(&a, "first")];
    batches.extend(bad);
    batches.push(batch(&a, "last"));
    let answers = log.append(batches, soon()).await;
    let stored: Vec<_> = answers.iter().map(Result::is_ok).collect();
    assert_eq!(stored, [true, false, false, false, false, false, true], "{answers:?}");
    assert!(answers.iter().flat_map(|answer| answer.as_ref().err()).all(|e| matches!(e, AppendError::NotStored(_))));
    let mut found = decisions(&*log, &a).await;
    found.sort();
    assert_eq!(found, ["first", "last"]);
}

async fn nothing_is_appended_or_read_on_a_closed_connection(stage: Stage) {
    let (closed, open, a) = (stage.recorder().await, stage.recorder().await, account("a"));
    write(&*closed.log, &a, "before").await;
    closed.requests.close().await;
    let answer = append(&*closed.log, batch(&a, "after"), soon()).await;
    assert!(matches!(answer, Err(AppendError::NotStored(_))), "{answer:?}");
    fails_everywhere(&*closed.log, soon()).await;
    assert!(closed.log.ready().await.is_err());
    assert_eq!(decisions(&*open.log, &a).await, ["before"]);
    write(&*open.log, &a, "others go on").await;
}

async fn nothing_is_done_once_the_deadline_has_passed(stage: Stage) {
    let (log, a) = (stage.recorder().await.log, account("a"));
    let past = Instant::now();
    let answer = append(&*log, batch(&a, "late"), past).await;
    assert!(matches!(answer, Err(AppendError::NotStored(_))), "{answer:?}");
    fails_everywhere(&*log, past).await;
    assert!(past.elapsed() < PATIENT / 2);
    write(&*log, &a, "in time").await;
    assert_eq!(decisions(&*log, &a).await, ["in time"]);
    assert!(everything(&*log, &a, MARKS).await.is_empty());
}

async fn fails_everywhere(log: &dyn DecisionLog, deadline: Instant) {
    let a = account("a");
    assert!(matches!(log.append_mark(&a, "m".into(), None, deadline).await, Err(MarkError::Failed(_))));
    assert!(log.read(&a, EntryFilter::All, Seek::Start, 1, deadline).await.is_err());
    assert!(log.last(&a, EntryKind::Decisions, deadline).await.is_err());
    assert!(log.remove_through(&a, EntryKind::Decisions, Position(u64::MAX), deadline).await.is_err());
    assert!(log.accounts(deadline).await.is_err());
}

async fn an_empty_append_has_no_answers(stage: Stage) {
    let log = stage.recorder().await.log;
    assert!(log.append(Vec::new(), soon()).await.is_empty());
}

async fn appended_entries_are_read_unchanged_and_in_order(stage: Stage) {
    let (log, reader, a) = (stage.recorder().await.log, stage.recorder().await.log, account("a"));
    let all_bytes: Vec<u8> = (0..=255).collect();
    let mut written: Vec<Bytes> = vec![all_bytes.into(), "{\"a\":1}\n{\"a\":2}".into(), "\r\n\r\nMSG x 1 2\r\n".into()];
    written.extend((0..50).map(|number| Bytes::from(format!("line {number}"))));
    for lines in &written {
        write(&*log, &a, lines.clone()).await;
    }
    let found = everything(&*reader, &a, DECISIONS).await;
    let lines: Vec<_> = found.iter().map(|entry| entry.lines.clone()).collect();
    assert_eq!(lines, written);
    assert!(found.is_sorted_by(|one, next| one.position < next.position && one.stored_at <= next.stored_at));
    assert!(found.iter().all(|entry| entry.kind == EntryKind::Decisions));
    assert_eq!(found[1].lines().collect::<Vec<_>>(), [&b"{\"a\":1}"[..], b"{\"a\":2}"]);
    assert!(found[0].stored_at.duration_until(jiff::Timestamp::now()).abs().as_secs() < 60);
}

async fn batches_of_several_accounts_are_appended_together(stage: Stage) {
    let log = stage.recorder().await.log;
    let accounts: Vec<_> = (0..20).map(|number| account(&format!("acc{number}"))).collect();
    let batches = accounts.iter().map(|a| batch(a, a.as_str().to_owned())).collect();
    assert_eq!(log.append(batches, soon()).await, vec![Ok(()); 20]);
    for a in &accounts {
        assert_eq!(decisions(&*log, a).await, [a.as_str()]);
    }
}

async fn a_batch_that_is_appended_twice_is_stored_once(stage: Stage) {
    let (log, other, a) = (stage.recorder().await.log, stage.recorder().await.log, account("a"));
    let twice = batch(&a, "twice");
    append(&*log, twice.clone(), soon()).await.unwrap();
    write(&*log, &a, "between").await;
    append(&*other, twice.clone(), soon()).await.unwrap();
    assert_eq!(log.append(vec![twice.clone(), twice.clone()], soon()).await, [Ok(()), Ok(())]);
    assert_eq!(decisions(&*log, &a).await, ["twice", "between"]);

    // The id counts, not the content.
    write(&*log, &a, "twice").await;
    assert_eq!(decisions(&*log, &a).await, ["twice", "between", "twice"]);
}

async fn a_batch_that_is_appended_twice_at_the_same_time_is_stored_once(stage: Stage) {
    let (log, other, a) = (stage.recorder().await.log, stage.recorder().await.log, account("a"));
    for round in 0..20 {
        let once = batch(&a, format!("{round:02}"));
        let appends = (0..8).map(|turn| append(if turn % 2 == 0 { &*log } else { &*other }, once.clone(), soon()));
        let answers = join_all(appends).await;
        assert!(answers.contains(&Ok(())), "{answers:?}");
        // A caller whose append overlaps with the other does not know the outcome and gets an error.
        assert!(!answers.iter().any(|answer| matches!(answer, Err(AppendError::NotStored(_)))), "{answers:?}");
    }
    let expected: Vec<_> = (0..20).map(|round| format!("{round:02}")).collect();
    assert_eq!(decisions(&*log, &a).await, expected);
}

async fn the_largest_batch_is_stored(stage: Stage) {
    let (log, a) = (stage.recorder().await.log, account("a"));
    let bytes: Vec<u8> = (0..MAX_MESSAGE_BYTES).map(|index| (index % 251) as u8).collect();
    write(&*log, &a, bytes.clone()).await;
    write(&*log, &a, bytes.clone()).await;
    for size in [0, 1, MAX_MESSAGE_BYTES, 2 * MAX_MESSAGE_BYTES - 1] {
        let chunk = log.read(&a, EntryFilter::All, Seek::Start, size, soon()).await.unwrap();
        assert_eq!((chunk.entries.len(), chunk.more), (1, true), "{size}");
        assert!(chunk.entries[0].lines == bytes);
    }
    assert_eq!(everything(&*log, &a, EntryFilter::All).await.len(), 2);
    let last = log.last(&a, EntryKind::Decisions, soon()).await.unwrap().unwrap();
    assert!(last.lines == bytes);
}

async fn accounts_with_similar_names_see_only_their_own(stage: Stage) {
    let log = stage.recorder().await.log;
    let names = ["a", "a_", "a-b", "a-", "A", "aa", "_a", "-", "d", "m", "log"];
    for name in names {
        write(&*log, &account(name), name).await;
        mark(&*log, &account(name), name, None).await;
    }
    for name in names {
        let a = account(name);
        assert_eq!(texts(&everything(&*log, &a, EntryFilter::All).await), [name, name], "{name}");
        for kind in [EntryKind::Decisions, EntryKind::Mark] {
            let last = log.last(&a, kind, soon()).await.unwrap().unwrap();
            assert_eq!((last.kind, &*last.lines), (kind, name.as_bytes()));
        }
    }
    log.remove_through(&account("a"), EntryKind::Decisions, Position(u64::MAX), soon()).await.unwrap();
    for name in names {
        let left = decisions(&*log, &account(name)).await.len();
        assert_eq!(left, usize::from(name != "a"), "{name}");
    }
}

async fn a_mark_is_refused_when_another_was_there_first(stage: Stage) {
    let (log, a) = (stage.recorder().await.log, account("a"));
    let refused = async |after| {
        let answer = log.append_mark(&a, "x".into(), after, soon()).await;
        assert_eq!(answer, Err(MarkError::Conflict), "{after:?}");
    };
    refused(Some(Position(1))).await;
    let first = mark(&*log, &a, "first", None).await;
    refused(None).await;
    refused(Some(Position(first.0 + 1))).await;
    let second = mark(&*log, &a, "second", Some(first)).await;
    assert!(second > first);
    refused(Some(first)).await;
    let found = everything(&*log, &a, MARKS).await;
    assert_eq!(texts(&found), ["first", "second"]);
    assert_eq!((found[0].position, found[1].position), (first, second));

    // If all marks were removed, that is like having none.
    log.remove_through(&a, EntryKind::Mark, second, soon()).await.unwrap();
    refused(Some(second)).await;
    mark(&*log, &a, "third", None).await;
}

async fn of_two_marks_at_once_one_is_written(stage: Stage) {
    let (one, other, a) = (stage.recorder().await.log, stage.recorder().await.log, account("a"));
    let mut last = None;
    for round in 0..10 {
        let write = |log: &'static str, to: std::sync::Arc<dyn DecisionLog>| {
            let (a, line) = (a.clone(), format!("{log} {round}"));
            tokio::spawn(async move { to.append_mark(&a, line.into(), last, soon()).await })
        };
        let (first, second) = (write("one", one.clone()), write("other", other.clone()));
        let answers = [first.await.unwrap(), second.await.unwrap()];
        let written: Vec<_> = answers.iter().flatten().copied().collect();
        assert_eq!(written.len(), 1, "{answers:?}");
        assert!(answers.contains(&Err(MarkError::Conflict)), "{answers:?}");
        last = Some(written[0]);
    }
    assert_eq!(everything(&*one, &a, MARKS).await.len(), 10);
}

async fn marks_do_not_wait_for_decisions_nor_for_other_accounts(stage: Stage) {
    let (log, a, b) = (stage.recorder().await.log, account("a"), account("b"));
    let first = mark(&*log, &a, "a1", None).await;
    write(&*log, &a, "decision").await;
    mark(&*log, &b, "b1", None).await;
    mark(&*log, &a, "a2", Some(first)).await;
    assert_eq!(texts(&everything(&*log, &a, EntryFilter::All).await), ["a1", "decision", "a2"]);
}

async fn removal_takes_one_kind_of_one_account_up_to_a_position(stage: Stage) {
    let (log, a, b) = (stage.recorder().await.log, account("a"), account("b"));
    let mut last = None;
    for number in 0..6 {
        write(&*log, &a, format!("a{number}")).await;
        write(&*log, &b, format!("b{number}")).await;
        last = Some(mark(&*log, &a, &format!("m{number}"), last).await);
    }
    let found = everything(&*log, &a, DECISIONS).await;
    // Up to and including the third, and up to a mark behind the fourth.
    assert_eq!(log.remove_through(&a, EntryKind::Decisions, found[2].position, soon()).await, Ok(3));
    assert_eq!(decisions(&*log, &a).await, ["a3", "a4", "a5"]);
    let marks = everything(&*log, &a, MARKS).await;
    assert_eq!(log.remove_through(&a, EntryKind::Decisions, marks[3].position, soon()).await, Ok(1));
    assert_eq!(log.remove_through(&a, EntryKind::Decisions, marks[3].position, soon()).await, Ok(0));
    assert_eq!(decisions(&*log, &a).await, ["a4", "a5"]);
    assert_eq!((marks.len(), decisions(&*log, &b).await.len()), (6, 6));

    // A reader continues behind what was removed.
    let rest = log.read(&a, DECISIONS, Seek::After(found[0].position), usize::MAX, soon()).await.unwrap();
    assert_eq!(texts(&rest.entries), ["a4", "a5"]);
    assert_eq!(log.last(&a, EntryKind::Decisions, soon()).await.unwrap().unwrap().lines, "a5");
    assert_eq!(log.remove_through(&a, EntryKind::Mark, marks[0].position, soon()).await, Ok(1));
    assert_eq!(texts(&everything(&*log, &a, MARKS).await), ["m1", "m2", "m3", "m4", "m5"]);
}

async fn removal_up_to_nothing_removes_nothing(stage: Stage) {
    let (log, a) = (stage.recorder().await.log, account("a"));
    assert_eq!(log.remove_through(&a, EntryKind::Decisions, Position(7), soon()).await, Ok(0));
    write(&*log, &account("b"), "first of all").await;
    write(&*log, &a, "kept").await;
    let kept = everything(&*log, &a, DECISIONS).await[0].position;
    for before in [0, kept.0 - 1] {
        assert_eq!(log.remove_through(&a, EntryKind::Decisions, Position(before), soon()).await, Ok(0), "{before}");
    }
    assert_eq!(decisions(&*log, &a).await, ["kept"]);
}

async fn removal_up_to_the_end_removes_all_and_what_follows_stays(stage: Stage) {
    let (log, a) = (stage.recorder().await.log, account("a"));
    let many = (0..2_500).map(|number| batch(&a, number.to_string())).collect();
    assert!(log.append(many, soon()).await.iter().all(Result::is_ok));
    let last = log.last(&a, EntryKind::Decisions, soon()).await.unwrap().unwrap().position;
    assert_eq!(log.remove_through(&a, EntryKind::Decisions, Position(u64::MAX), soon()).await, Ok(2_500));
    assert!(decisions(&*log, &a).await.is_empty());
    assert_eq!(log.last(&a, EntryKind::Decisions, soon()).await, Ok(None));
    write(&*log, &a, "next").await;
    let found = everything(&*log, &a, DECISIONS).await;
    assert_eq!(texts(&found), ["next"]);
    assert!(found[0].position > last, "a position was used twice");
}

async fn accounts_are_those_that_have_entries(stage: Stage) {
    let log = stage.recorder().await.log;
    assert_eq!(log.accounts(soon()).await.unwrap(), []);
    let names = ["b", "a_", "a", "only-marks"];
    for name in names.iter().take(3) {
        write(&*log, &account(name), "x").await;
        write(&*log, &account(name), "y").await;
    }
    mark(&*log, &account("a"), "m", None).await;
    mark(&*log, &account("only-marks"), "m", None).await;
    let listed = async || {
        let mut found: Vec<_> = log.accounts(soon()).await.unwrap().iter().map(ToString::to_string).collect();
        found.sort();
        found
    };
    assert_eq!(listed().await, ["a", "a_", "b", "only-marks"]);
    for name in ["a", "b"] {
        log.remove_through(&account(name), EntryKind::Decisions, Position(u64::MAX), soon()).await.unwrap();
    }
    assert_eq!(listed().await, ["a", "a_", "only-marks"]);
}

async fn a_log_is_ready(stage: Stage) {
    let connection = stage.recorder().await;
    assert_eq!(connection.log.ready().await, Ok(Vec::new()));
}
