//! Messages that are separated by newlines, each of a bounded length.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _};

/// One line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Without its newline.
    Message(Vec<u8>),
    /// It was longer than the bound, and was skipped.
    TooLong,
    /// There are no more. What had no newline at its end is no message.
    End,
}

/// Reads the next line that has something in it.
pub(crate) async fn next<R: AsyncBufRead + Unpin>(reader: &mut R, max: usize) -> io::Result<Line> {
    loop {
        let (mut line, mut is_too_long) = (Vec::new(), false);
        loop {
            let available = reader.fill_buf().await?;
            if available.is_empty() {
                return Ok(Line::End);
            }
            let end = available.iter().position(|byte| *byte == b'\n');
            let part = available.get(..end.unwrap_or(available.len())).unwrap_or_default();
            if line.len() + part.len() > max {
                is_too_long = true;
                line = Vec::new();
            }
            if !is_too_long {
                line.extend_from_slice(part);
            }
            let used = end.map_or(part.len(), |end| end + 1);
            reader.consume(used);
            if end.is_some() {
                break;
            }
        }
        if is_too_long {
            return Ok(Line::TooLong);
        }
        if !line.iter().all(u8::is_ascii_whitespace) {
            return Ok(Line::Message(line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(text: &[u8], max: usize) -> Vec<Line> {
        let mut reader = tokio::io::BufReader::with_capacity(3, text);
        let mut lines = Vec::new();
        loop {
            let line = next(&mut reader, max).await.unwrap();
            lines.push(line);
            if lines.last() == Some(&Line::End) {
                return lines;
            }
        }
    }

    #[tokio::test]
    async fn lines_are_bounded_and_the_next_one_is_read_all_the_same() {
        let message = |text: &str| Line::Message(text.as_bytes().to_vec());
        let lines = all(b"12345\n123456\n\n \r\n12\nrest", 5).await;
        assert_eq!(lines, [message("12345"), Line::TooLong, message("12"), Line::End]);
    }

    #[tokio::test]
    async fn a_line_without_a_newline_is_no_message() {
        assert_eq!(all(b"{}", 10).await, [Line::End]);
        assert_eq!(all(b"", 10).await, [Line::End]);
    }
}
