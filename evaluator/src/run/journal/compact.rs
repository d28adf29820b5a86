//! Numbers and byte strings in few bytes, for the journal's record.
//!
//! A number takes seven bits a byte, the lowest first, so that small ones take one byte. Reading never goes beyond the
//! end and never panics: what cannot be read is `None`.

/// The longest form of 64 bits.
const MAX_NUMBER_BYTES: u32 = 10;

pub(super) fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Numbers near zero are short, negative ones too.
pub(super) fn put_signed(out: &mut Vec<u8>, number: i64) {
    put_number(out, ((number << 1) ^ (number >> 63)).cast_unsigned());
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// What is left to read.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub(super) fn number(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for place in 0..MAX_NUMBER_BYTES {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            // The last byte has room for one bit.
            if place == MAX_NUMBER_BYTES - 1 && bits > 1 {
                return None;
            }
            number |= bits << (7 * place);
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    pub(super) fn signed(&mut self) -> Option<i64> {
        let number = self.number()?;
        Some((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }

    pub(super) fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn bytes(&mut self) -> Option<&'a [u8]> {
        let bytes = usize::try_from(self.number()?).ok()?;
        self.take(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_read_as_it_was_put_and_small_ones_are_short() {
        let mut out = Vec::new();
        let numbers = [0, 1, -1, 63, -64, 64, 1_773_662_400, i64::MAX, i64::MIN];
        numbers.iter().for_each(|number| put_signed(&mut out, *number));
        put_number(&mut out, u64::MAX);
        put_bytes(&mut out, b"name");
        let mut reader = Reader(&out);
        assert!(numbers.iter().all(|number| reader.signed() == Some(*number)));
        assert_eq!((reader.number(), reader.bytes(), reader.is_empty()), (Some(u64::MAX), Some(&b"name"[..]), true));
        let mut short = Vec::new();
        [0, -1, 63, -64].iter().for_each(|number| put_signed(&mut short, *number));
        assert_eq!(short.len(), 4);
    }

    #[test]
    fn what_ends_early_or_is_too_long_is_not_read() {
        for torn in [&[0x80][..], &[], &[0xff; 11], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]] {
            assert_eq!(Reader(torn).number(), None, "{torn:?}");
        }
        assert_eq!(Reader(&[5, 1, 2]).bytes(), None);
        assert_eq!(Reader(&[0xff, 0xff, 0xff, 0xff, 0x0f]).bytes(), None);
    }
}
