//! Server-sent events as they arrive: each one whole, with its bytes, and the text that it carries.

/// The largest event, in bytes.
const MAX_EVENT_BYTES: usize = crate::message::MAX_RESULT_BYTES + 64 * 1024;

/// One event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// As it came, with the empty line at its end.
    pub(crate) raw: Vec<u8>,
    /// The lines of `data`, joined. `None`: it has none.
    pub(crate) data: Option<Vec<u8>>,
}

/// An event is larger than any that is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event of the server is too large")]
pub(crate) struct TooLarge;

/// Collects bytes until an event is whole.
#[derive(Default)]
pub(crate) struct Parser {
    raw: Vec<u8>,
    /// Where the present line begins.
    line: usize,
    data: Option<Vec<u8>>,
    /// The last byte was a carriage return: a line feed that follows belongs to it.
    after_return: bool,
    has_begun: bool,
}

impl Parser {
    /// The events that end in these bytes.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLarge> {
        let mut events: Vec<Event> = Vec::new();
        for byte in bytes {
            if *byte == b'\n' && std::mem::take(&mut self.after_return) {
                // It ends no line of its own.
                match events.last_mut().filter(|_| self.raw.is_empty()) {
                    Some(event) => event.raw.push(*byte),
                    None => self.raw.push(*byte),
                }
                self.line = self.raw.len();
                continue;
            }
            self.after_return = *byte == b'\r';
            self.raw.push(*byte);
            if matches!(byte, b'\n' | b'\r') {
                events.extend(self.line_ended());
            }
            if self.raw.len() > MAX_EVENT_BYTES {
                return Err(TooLarge);
            }
        }
        Ok(events)
    }

    fn line_ended(&mut self) -> Option<Event> {
        let line = self.raw.get(self.line..self.raw.len() - 1).unwrap_or_default();
        let line = if self.has_begun { line } else { line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line) };
        self.has_begun = true;
        self.line = self.raw.len();
        if line.is_empty() {
            self.line = 0;
            return Some(Event { raw: std::mem::take(&mut self.raw), data: self.data.take() });
        }
        let (name, value) = match line.iter().position(|byte| *byte == b':') {
            Some(at) => (line.get(..at)?, line.get(at + 1..)?),
            None => (line, &[][..]),
        };
        if name == b"data" {
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match &mut self.data {
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
                None => self.data = Some(value.to_vec()),
            }
        }
        None
    }
}

impl Event {
    /// The same event with other data; its id and name stay.
    pub(crate) fn with_data(&self, data: &[u8]) -> Vec<u8> {
        let mut event = Vec::with_capacity(data.len() + 64);
        for line in self.raw.split(|byte| matches!(byte, b'\n' | b'\r')) {
            // The mark before a stream is no part of a name, and another line may come to stand there.
            let mut field = line;
            while let Some(rest) = field.strip_prefix("\u{feff}".as_bytes()) {
                field = rest;
            }
            let is_data = field == b"data" || field.starts_with(b"data:");
            if !is_data && !field.is_empty() {
                event.extend_from_slice(field);
                event.push(b'\n');
            }
        }
        for line in data.split(|byte| matches!(byte, b'\n' | b'\r')) {
            event.extend_from_slice(b"data: ");
            event.extend_from_slice(line);
            event.push(b'\n');
        }
        event.push(b'\n');
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(parts: &[&str]) -> Vec<(String, Option<String>)> {
        let mut parser = Parser::default();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let events = parts.iter().flat_map(|part| parser.feed(part.as_bytes()).unwrap());
        events.map(|event| (text(event.raw), event.data.map(text))).collect()
    }

    #[test]
    fn events_are_whole_however_their_bytes_arrive() {
        let stream = "id: 1\nevent: message\ndata: {\"a\":\ndata: 1}\n\n: ping\n\ndata:x\n\ndata: unfinished";
        let whole = all(&[stream]);
        assert_eq!(whole.len(), 3);
        assert_eq!(whole[0].1.as_deref(), Some("{\"a\":\n1}"));
        assert_eq!(whole[1], (": ping\n\n".to_owned(), None));
        assert_eq!(whole[2].1.as_deref(), Some("x"));
        let single: Vec<&str> = stream.split_inclusive(|_| true).collect();
        assert_eq!(all(&single), whole);
    }

    #[test]
    fn every_kind_of_line_end_ends_a_line() {
        for stream in ["data: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n", "data: a\rdata: b\r\rdata: c\r\r"] {
            let found = all(&[stream]);
            let data: Vec<Option<&str>> = found.iter().map(|(_, data)| data.as_deref()).collect();
            assert_eq!(data, [Some("a\nb"), Some("c")], "{stream:?}");
            let raw: String = found.into_iter().map(|(raw, _)| raw).collect();
            assert_eq!(raw, stream, "not a byte is lost");
            let single: Vec<&str> = stream.split_inclusive(|_| true).collect();
            let raw: String = all(&single).into_iter().map(|(raw, _)| raw).collect();
            assert_eq!(raw.replace('\n', ""), stream.replace('\n', ""));
        }
    }

    #[test]
    fn an_event_with_other_data_keeps_its_id() {
        let mut parser = Parser::default();
        let event = parser.feed(b"id: 7\r\nevent: message\r\ndata: old\r\ndata: er\r\n\r\n").unwrap().remove(0);
        assert_eq!(event.with_data(b"new\nest"), b"id: 7\nevent: message\ndata: new\ndata: est\n\n");
    }

    #[test]
    fn a_mark_before_the_stream_does_not_keep_the_old_data() {
        let mut parser = Parser::default();
        let event = parser.feed("\u{feff}data: old\nid: 7\n\n".as_bytes()).unwrap().remove(0);
        assert_eq!(event.data.as_deref(), Some(&b"old"[..]));
        assert_eq!(event.with_data(b"new"), b"id: 7\ndata: new\n\n");
        let event = parser.feed("data: old\n\u{feff}\u{feff}data: er\n\u{feff}\n\n".as_bytes()).unwrap().remove(0);
        assert_eq!(event.with_data(b"new"), b"data: new\n\n");
    }

    #[test]
    fn an_event_is_bounded() {
        let mut parser = Parser::default();
        assert_eq!(parser.feed(&vec![b'a'; MAX_EVENT_BYTES]), Ok(Vec::new()));
        assert_eq!(parser.feed(b"a"), Err(TooLarge));
    }
}
