//! permessage-deflate (RFC 7692, section 7.2), each message by itself: no context is kept between messages, and so no
//! state per connection. `extension.rs` negotiates it.

use std::fmt;

use bytes::Bytes;
use zlib_rs::{Deflate, DeflateFlush, Inflate, InflateFlush, Status};

use super::event::{MAX_HEADER, TEXT, frame_header};

/// A first byte with this bit says that the message is compressed (RSV1).
pub const COMPRESSED: u8 = 0b0100_0000;

/// The end of every flush, which is not sent (RFC 7692 section 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// The tail, and an empty last block behind it: what was whole before ends with these.
const TAIL_AND_END: [u8; 9] = [0, 0, 0xff, 0xff, 1, 0, 0, 0xff, 0xff];

/// The window of a stream without a header, as a power of two (section 7.1.2).
const WINDOW_BITS: u8 = 15;

/// Speed before size: an event is compressed while its subscribers wait. This is what zlib calls level 1. Level 1 of
/// zlib-rs makes no Huffman codes for what it compresses: of an order of 1.3 KB it leaves 54 % instead of 43 %, and
/// saves 7 µs.
const LEVEL: i32 = 2;

/// Bytes that an inflater keeps its room for.
const MAX_KEPT: usize = 128 << 10;

/// Makes the compressed form of frames. It has about 300 KB of its own, so there is one a thread.
pub struct Deflater {
    /// zlib's compressor, reset for each message.
    stream: Deflate,
    /// Output, reused for each message.
    out: Vec<u8>,
}

impl fmt::Debug for Deflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deflater").finish_non_exhaustive()
    }
}

impl Default for Deflater {
    fn default() -> Self {
        Self { stream: Deflate::new(LEVEL, false, WINDOW_BITS), out: Vec::new() }
    }
}

impl Deflater {
    /// The compressed form of a text frame of ours; `None` if it is no smaller.
    pub fn deflate(&mut self, frame: &[u8]) -> Option<Bytes> {
        let payload = frame_payload(frame)?;
        // A result that does not fit here would be no smaller than the plain message.
        let room = MAX_HEADER + payload.len() + TAIL.len();
        if self.out.len() < room {
            self.out.resize(room, 0);
        }
        self.stream.reset();
        let place = self.out.get_mut(MAX_HEADER..room)?;
        // A flush, not an end: the stream goes on as far as the receiver can tell (section 7.2.1).
        self.stream.compress(payload, place, DeflateFlush::SyncFlush).ok()?;
        let (taken, made) = (self.stream.total_in() as usize, self.stream.total_out() as usize);
        if taken != payload.len() || made >= payload.len() + TAIL.len() {
            return None;
        }
        let deflated = self.out.get(MAX_HEADER..MAX_HEADER + made)?.strip_suffix(&TAIL)?;
        let (header, used) = frame_header(TEXT | COMPRESSED, deflated.len());
        let mut whole = Vec::with_capacity(used + deflated.len());
        whole.extend_from_slice(header.get(..used)?);
        whole.extend_from_slice(deflated);
        if self.out.len() > MAX_KEPT {
            self.out = Vec::new();
        }
        Some(whole.into())
    }
}

/// The payload of one of our text frames. It is not masked, so the second byte is the length, or tells how many
/// bytes of length follow (RFC 6455 section 5.2).
pub fn frame_payload(frame: &[u8]) -> Option<&[u8]> {
    let header = match frame.get(1)? {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    frame.get(header..)
}

/// Why a message cannot be inflated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InflateError {
    /// It is no stream of DEFLATE (RFC 1951), or ends before that does.
    Corrupt,
    /// More comes out than a message may have.
    TooLarge,
}

/// Reads compressed messages. It has about 40 KB of its own and room for one message, so there is one a
/// thread.
pub struct Inflater {
    /// zlib's decompressor, reset for each message.
    stream: Inflate,
    /// Output, reused for each message.
    out: Vec<u8>,
    /// Bytes of `out` that are the message.
    used: usize,
}

impl fmt::Debug for Inflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflater").field("used", &self.used).finish_non_exhaustive()
    }
}

impl Default for Inflater {
    fn default() -> Self {
        Self { stream: Inflate::new(false, WINDOW_BITS), out: Vec::new(), used: 0 }
    }
}

/// Where a stream stands once its input is used up.
#[derive(PartialEq, Eq)]
enum InflateStatus {
    /// More may follow.
    Open,
    /// Behind a block that said it was the last.
    Ended,
}

impl Inflater {
    /// Inflates a message to at most `max` bytes; never more than one byte beyond is produced.
    ///
    /// # Errors
    /// The bytes are not DEFLATE, end in the middle, or inflate to more.
    pub fn inflate(&mut self, message: &[u8], max: usize) -> Result<&[u8], InflateError> {
        if self.out.len() > MAX_KEPT {
            self.out = Vec::new();
        }
        self.used = 0;
        self.stream.reset(false);
        // The empty message has bytes, too (section 7.2.3.6).
        if message.is_empty() {
            return Err(InflateError::Corrupt);
        }
        if self.feed_input(message, max)? == InflateStatus::Open {
            // Bytes that come of the tail belong to a block whose own were not all sent.
            let used = self.used;
            if self.feed_input(&TAIL_AND_END, max)? != InflateStatus::Ended || self.used != used {
                return Err(InflateError::Corrupt);
            }
        }
        self.out.get(..self.used).ok_or(InflateError::Corrupt)
    }

    /// Goes on with `input`. A block may say it is the last with others behind it (section 7.2.3.4): these
    /// begin anew.
    fn feed_input(&mut self, mut input: &[u8], max: usize) -> Result<InflateStatus, InflateError> {
        loop {
            if self.used == self.out.len() {
                // Doubled each time. A few bytes that would inflate to gigabytes never get more
                // than `max`.
                let room = (2 * self.used).clamp(4096, max.saturating_add(4096));
                self.out.resize(room, 0);
            }
            // `used` is at most the length, so both slices exist.
            let place = self.out.get_mut(self.used..).unwrap_or_default();
            let room = place.len().min((max - self.used).saturating_add(1));
            let place = place.get_mut(..room).unwrap_or_default();
            let (taken, made) = (self.stream.total_in(), self.stream.total_out());
            let status = self.stream.decompress(input, place, InflateFlush::NoFlush);
            let status = status.map_err(|_| InflateError::Corrupt)?;
            let taken = (self.stream.total_in() - taken) as usize;
            let made = (self.stream.total_out() - made) as usize;
            // zlib never takes more than it was given.
            input = input.get(taken..).unwrap_or_default();
            self.used += made;
            if self.used > max {
                return Err(InflateError::TooLarge);
            }
            match status {
                Status::StreamEnd if input.is_empty() => return Ok(InflateStatus::Ended),
                Status::StreamEnd => self.stream.reset(false),
                _ if input.is_empty() && made < room => return Ok(InflateStatus::Open),
                _ if taken == 0 && made == 0 => return Err(InflateError::Corrupt),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inflated(message: &[u8]) -> Result<Vec<u8>, InflateError> {
        Inflater::default().inflate(message, 70_000).map(<[u8]>::to_vec)
    }

    /// A text frame of ours with this payload.
    fn frame(payload: &[u8]) -> Vec<u8> {
        let (header, used) = frame_header(TEXT, payload.len());
        [&header[..used], payload].concat()
    }

    #[test]
    fn the_examples_of_the_rfc_are_read() {
        // Sections 7.2.3.1, .3, .4, .5 and .6.
        for (message, says) in [
            (&[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..], &b"Hello"[..]),
            (&[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00], b"Hello"),
            (&[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00], b"Hello"),
            (
                &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00],
                b"Hello",
            ),
            (&[0x00], b""),
        ] {
            assert_eq!(inflated(message).as_deref(), Ok(says), "{message:x?}");
        }
    }

    #[test]
    fn a_stream_must_be_whole() {
        let hello = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        let stored = [0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00];
        let long = b"{\"a\":[1,2,3,\"abcabcabc\"]}".repeat(40);
        let dynamic = Deflater::default().deflate(&frame(&long)).unwrap();
        for whole in [&hello[..], &stored, frame_payload(&dynamic).unwrap()] {
            assert!(inflated(whole).is_ok(), "{whole:x?}");
            // A lone zero is the empty message.
            for cut in (0..whole.len()).map(|end| &whole[..end]).filter(|cut| *cut != [0]) {
                assert_eq!(inflated(cut), Err(InflateError::Corrupt), "{cut:x?}");
            }
        }
        for corrupt in [&[0xff; 8][..], &[0x07], &[0x00, 0x05, 0x00, 0xfb, 0xff, 0x48]] {
            assert_eq!(inflated(corrupt), Err(InflateError::Corrupt), "{corrupt:x?}");
        }
    }

    #[test]
    fn a_bomb_goes_off_at_the_bound() {
        let zeros = Deflater::default().deflate(&frame(&vec![b'0'; 50 << 20])).unwrap();
        let message = frame_payload(&zeros).unwrap();
        assert!(message.len() < 600 << 10, "{}", message.len());
        let mut inflater = Inflater::default();
        assert_eq!(inflater.inflate(message, 70_000), Err(InflateError::TooLarge));
        assert!(inflater.out.len() <= 70_000 + 4096, "{}", inflater.out.len());
        for (len, fits) in [(70_000, true), (70_001, false)] {
            let message = Deflater::default().deflate(&frame(&vec![b'0'; len])).unwrap();
            assert_eq!(inflater.inflate(frame_payload(&message).unwrap(), 70_000).is_ok(), fits);
        }
        // One that was refused leaves nothing for the next.
        let hello = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        assert_eq!(inflater.inflate(&hello, 5).unwrap(), b"Hello");
        assert_eq!(inflater.inflate(&hello, 4), Err(InflateError::TooLarge));
    }

    #[test]
    fn what_is_deflated_comes_out_again() {
        let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
        for len in [600, 1500, 13_000, 65_536, 300_000] {
            let text =
                (0..).flat_map(|n| format!("{{\"id\":{n},\"name\":\"n{n}\"}},").into_bytes());
            let text: Vec<u8> = text.take(len).collect();
            let frame = frame(&text);
            let deflated = deflater.deflate(&frame).unwrap();
            assert_eq!(deflated[0], TEXT | COMPRESSED);
            assert!(deflated.len() < frame.len() * 6 / 10, "{} of {len}", deflated.len());
            assert_eq!(inflater.inflate(frame_payload(&deflated).unwrap(), len).unwrap(), text);
            assert_eq!(deflater.deflate(&frame), Some(deflated), "nothing is remembered");
        }
    }

    #[test]
    fn what_would_not_be_smaller_stays_plain() {
        let mut state = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(5000)
        .collect();
        assert_eq!(Deflater::default().deflate(&frame(&noise)), None);
        assert_eq!(Deflater::default().deflate(&frame(b"{}")), None);
    }
}
