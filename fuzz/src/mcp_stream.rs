//! Streams of an MCP server: events and lines are the same wherever their bytes are split, and not a byte is lost.
//!
//! An event whose data is replaced carries the new data and nothing of the old.

use stage0_mcp_guard::fuzz_support::{StreamEvent, events, lines};

use crate::Target;

pub(crate) const TARGET: Target = Target::new("mcp_stream", check);

const NEW_DATA: &[u8] = b"{\"new\":1}";
const MAX_LINE: usize = 64;

fn check(input: &[u8]) -> bool {
    let whole = events([input], NEW_DATA).expect("the input is smaller than an event may be");
    for pieces in [1, 2, 5] {
        let split = events(input.chunks(pieces), NEW_DATA).expect("as before");
        assert_eq!(texts(&split), texts(&whole), "in pieces of {pieces}");
        is_whole(&split, input);
    }
    is_whole(&whole, input);
    whole.iter().for_each(is_replaced);
    are_lines(input);
    !whole.is_empty()
}

fn texts(events: &[StreamEvent]) -> Vec<Option<&[u8]>> {
    events.iter().map(|event| event.data.as_deref()).collect()
}

/// The events are the beginning of the stream. A line feed of the last line end may not have come when one ended.
fn is_whole(events: &[StreamEvent], input: &[u8]) {
    let raw: Vec<u8> = events.iter().flat_map(|event| event.raw.iter().copied()).collect();
    assert!(input.starts_with(&raw), "bytes are lost or added");
}

fn is_replaced(event: &StreamEvent) {
    let again = events([event.replaced.as_slice()], NEW_DATA).expect("it is as large as before");
    let [again] = again.as_slice() else { panic!("{again:?} of {event:?}") };
    assert_eq!(again.data.as_deref(), Some(NEW_DATA), "of {event:?}");
}

fn are_lines(input: &[u8]) {
    let whole = lines(input, input.len() + 1, MAX_LINE);
    for buffer in [1, 3, MAX_LINE] {
        assert_eq!(lines(input, buffer, MAX_LINE), whole, "through a buffer of {buffer}");
    }
    // Without a line feed at its end, the last one is no message.
    let complete = input.iter().rposition(|byte| *byte == b'\n').map_or(&[][..], |at| &input[..at]);
    let expected = complete.split(|byte| *byte == b'\n').filter(|line| !line.iter().all(u8::is_ascii_whitespace));
    let expected: Vec<Option<Vec<u8>>> = expected.map(|line| (line.len() <= MAX_LINE).then(|| line.to_vec())).collect();
    // A blank line that is too long is reported as any other.
    let found: Vec<_> = whole.iter().flatten().collect();
    assert_eq!(found, expected.iter().flatten().collect::<Vec<_>>());
}
