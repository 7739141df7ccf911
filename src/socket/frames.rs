//! WebSocket frames off a byte stream, by RFC 6455. The header is read here, because the reader of
//! fastwebsockets may not be dropped halfway, takes unmasked frames, puts no bound on the sum of fragments
//! and keeps 8 KiB a connection; its opcodes, masks and close codes are used. Bytes come in as they were
//! read; while no frame is in pieces, nothing is kept.

use std::cell::Cell;

use fastwebsockets::{CloseCode, Frame, OpCode, Payload};

use crate::protocol::deflate::{COMPRESSED, InflateError, Inflater};

thread_local! {
    /// All connections of a thread share one, made when the first compressed message comes.
    static INFLATER: Cell<Option<Box<Inflater>>> = const { Cell::new(None) };
}

/// Puts frames together. Empty, it owns no memory.
#[derive(Debug, Default)]
pub struct FrameAssembler {
    pieces: Option<Box<FragmentBuffer>>,
}

#[derive(Debug, Default)]
struct FragmentBuffer {
    /// Bytes of a frame that is not whole yet.
    tail: Vec<u8>,
    /// The fragments so far of a message that is not whole yet.
    message: Option<Vec<u8>>,
    /// They are compressed.
    deflated: bool,
}

/// Limits on a client's frames.
#[derive(Debug, Clone, Copy)]
pub struct FrameLimits {
    /// Bytes of a message.
    pub max: usize,
    /// Messages may come compressed (RFC 7692).
    pub inflates: bool,
}

impl FrameLimits {
    /// Bytes that a message of `max` may have while it is compressed: what cannot be made smaller is stored in
    /// blocks with a header each (RFC 1951, section 3.2.4).
    fn max_deflated(self) -> usize {
        self.max.saturating_add(self.max / 8).saturating_add(64)
    }
}

/// A frame, or a message of several fragments.
#[derive(Debug, PartialEq, Eq)]
pub enum IncomingMessage<'a> {
    /// A text message, or a binary one that holds text.
    Text(&'a str),
    Ping(&'a [u8]),
    Pong,
    /// Of a message that is not whole yet.
    Part,
    /// The other side closes, with this code if it gave one.
    Close(Option<u16>),
}

/// A violation of the protocol; the connection ends with its code.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum ProtocolBreach {
    /// Section 5: an unmasked frame, reserved bits, an unknown opcode, a fragment out of place, …
    Protocol(&'static str),
    /// Section 8.1.
    Utf8,
    /// RFC 7692, section 7.2.2: a compressed message that cannot be inflated.
    Deflate,
    TooLarge,
}

impl ProtocolBreach {
    pub fn code(self) -> u16 {
        match self {
            Self::Protocol(_) => 1002,
            Self::Utf8 | Self::Deflate => 1007,
            Self::TooLarge => 1009,
        }
    }

    pub fn reason(self) -> &'static str {
        match self {
            Self::Protocol(rule) => rule,
            Self::Utf8 => "Text must be UTF-8",
            Self::Deflate => "The compressed message is corrupt",
            Self::TooLarge => super::TOO_LARGE,
        }
    }
}

/// One frame's header.
#[derive(Debug)]
struct FrameHeader {
    fin: bool,
    /// The message that begins here is compressed.
    deflated: bool,
    opcode: OpCode,
    mask: [u8; 4],
    /// Bytes of the header, and of the payload behind it.
    header: usize,
    payload: usize,
}

/// Reads a header; `None` if there are not enough bytes yet. `room` is how many bytes of payload a data
/// frame may have, given whether a message begins with it that is compressed, so that what is too large is
/// refused before it is taken in.
fn header(
    bytes: &[u8],
    inflates: bool,
    room: impl Fn(bool) -> usize,
) -> Result<Option<FrameHeader>, ProtocolBreach> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    let deflated = first & COMPRESSED != 0;
    if first & 0b0011_0000 != 0 || (deflated && !inflates) {
        return Err(ProtocolBreach::Protocol("Reserved bits must be zero"));
    }
    let fin = first & 0b1000_0000 != 0;
    let opcode = OpCode::try_from(first & 0b1111)
        .map_err(|_| ProtocolBreach::Protocol("The opcode is not known"))?;
    // RFC 7692, section 6.1: the first frame of a message says it for all.
    if deflated && !matches!(opcode, OpCode::Text | OpCode::Binary) {
        return Err(ProtocolBreach::Protocol(
            "Only the first frame of a message may say it is compressed",
        ));
    }
    if second & 0b1000_0000 == 0 {
        return Err(ProtocolBreach::Protocol("Frames of a client must be masked"));
    }
    let short = second & 0b0111_1111;
    let (payload, extended) = match (short, rest) {
        (126, [a, b, ..]) => (u64::from(u16::from_be_bytes([*a, *b])), 2),
        (127, [a, b, c, d, e, f, g, h, ..]) => {
            (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), 8)
        }
        (126 | 127, _) => return Ok(None),
        (short, _) => (u64::from(short), 0),
    };
    if (extended == 2 && payload < 126) || (extended == 8 && payload < 65_536) {
        return Err(ProtocolBreach::Protocol("A length must take the fewest bytes"));
    }
    let control = matches!(opcode, OpCode::Close | OpCode::Ping | OpCode::Pong);
    if control && (payload > 125 || !fin) {
        return Err(ProtocolBreach::Protocol(
            "A control frame must be whole and at most 125 bytes",
        ));
    }
    let payload = usize::try_from(payload).unwrap_or(usize::MAX);
    if !control && payload > room(deflated) {
        return Err(ProtocolBreach::TooLarge);
    }
    let Some(&[a, b, c, d]) = rest.get(extended..extended + 4) else { return Ok(None) };
    let header = 2 + extended + 4;
    Ok(Some(FrameHeader { fin, deflated, opcode, mask: [a, b, c, d], header, payload }))
}

/// Whether `bytes` are one close frame and nothing else.
pub fn is_close(bytes: &[u8]) -> bool {
    let head = header(bytes, false, |_| 0).ok().flatten();
    let ends = |head: &FrameHeader| head.header + head.payload == bytes.len();
    head.is_some_and(|head| head.opcode == OpCode::Close && ends(&head))
}

impl FrameAssembler {
    /// Parses received bytes, unmasks them in place, and calls `hear` for each whole message. Stops when `hear`
    /// returns false.
    pub fn feed(
        &mut self,
        bytes: &mut [u8],
        terms: FrameLimits,
        mut hear: impl FnMut(IncomingMessage<'_>) -> bool,
    ) -> Result<(), ProtocolBreach> {
        let mut rest = self.pieces.as_mut().map_or_else(Vec::new, |p| std::mem::take(&mut p.tail));
        if rest.is_empty() {
            let used = self.take(bytes, terms, &mut hear)?;
            if let Some(left @ [_, ..]) = bytes.get(used..) {
                self.pieces.get_or_insert_default().tail = left.to_vec();
            }
        } else {
            rest.extend_from_slice(bytes);
            let used = self.take(&mut rest, terms, &mut hear)?;
            rest.drain(..used);
            if !rest.is_empty() {
                self.pieces.get_or_insert_default().tail = rest;
            }
        }
        self.pieces.take_if(|pieces| pieces.tail.is_empty() && pieces.message.is_none());
        Ok(())
    }

    /// Handles the whole frames at the front of `bytes`; how many bytes they took.
    fn take(
        &mut self,
        bytes: &mut [u8],
        terms: FrameLimits,
        hear: &mut impl FnMut(IncomingMessage<'_>) -> bool,
    ) -> Result<usize, ProtocolBreach> {
        let mut used = 0;
        loop {
            let begun = self.message().map_or(0, |message| message.len());
            let goes_on = self.pieces.as_ref().is_some_and(|pieces| pieces.deflated);
            let room = |begins: bool| {
                let max = if begins || goes_on { terms.max_deflated() } else { terms.max };
                max.saturating_sub(begun)
            };
            let rest = bytes.get_mut(used..).unwrap_or_default(); // Never beyond the end.
            let Some(head) = header(rest, terms.inflates, room)? else { return Ok(used) };
            let Some(payload) = rest.get_mut(head.header..head.header + head.payload) else {
                return Ok(used);
            };
            used += head.header + head.payload;
            let mask = Some(head.mask);
            let mut frame = Frame::new(head.fin, head.opcode, mask, Payload::BorrowedMut(payload));
            frame.unmask();
            if !self.one(&frame, (head.deflated, terms.max), hear)? {
                return Ok(bytes.len());
            }
        }
    }

    /// Handles one frame; whether to go on.
    fn one(
        &mut self,
        frame: &Frame<'_>,
        (deflated, max): (bool, usize),
        hear: &mut impl FnMut(IncomingMessage<'_>) -> bool,
    ) -> Result<bool, ProtocolBreach> {
        let payload = &*frame.payload;
        match frame.opcode {
            OpCode::Ping => Ok(hear(IncomingMessage::Ping(payload))),
            OpCode::Pong => Ok(hear(IncomingMessage::Pong)),
            OpCode::Close => {
                hear(IncomingMessage::Close(close_code(payload)?));
                Ok(false)
            }
            OpCode::Text | OpCode::Binary if self.message().is_some() => {
                Err(ProtocolBreach::Protocol("A new message must not begin inside another"))
            }
            OpCode::Text | OpCode::Binary if frame.fin => whole(payload, (deflated, max), hear),
            OpCode::Text | OpCode::Binary => {
                let pieces = self.pieces.get_or_insert_default();
                pieces.message = Some(payload.to_vec());
                pieces.deflated = deflated;
                Ok(hear(IncomingMessage::Part))
            }
            OpCode::Continuation => {
                let Some(message) = self.message() else {
                    return Err(ProtocolBreach::Protocol("There is no message to continue"));
                };
                message.extend_from_slice(payload);
                if !frame.fin {
                    return Ok(hear(IncomingMessage::Part));
                }
                let Some(pieces) = self.pieces.as_mut() else { return Ok(true) };
                let deflated = std::mem::take(&mut pieces.deflated);
                let message = pieces.message.take().unwrap_or_default(); // Set by the first fragment.
                whole(&message, (deflated, max), hear)
            }
        }
    }

    /// Whether a message has begun that is not complete.
    pub fn is_inside_message(&self) -> bool {
        self.pieces.as_ref().is_some_and(|pieces| {
            // Opcodes of control frames have the highest of their four bits set.
            pieces.message.is_some() || pieces.tail.first().is_some_and(|first| first & 0b1000 == 0)
        })
    }

    /// Bytes of messages that are not whole yet.
    pub fn held_bytes(&self) -> usize {
        let Some(pieces) = &self.pieces else { return 0 };
        pieces.tail.capacity() + pieces.message.as_ref().map_or(0, Vec::capacity)
    }

    /// Bytes that the frame at hand still lacks, as far as its header says.
    pub fn missing(&self) -> usize {
        let Some(pieces) = &self.pieces else { return 0 };
        let head = header(&pieces.tail, true, |_| usize::MAX).ok().flatten();
        head.map_or(0, |head| (head.header + head.payload).saturating_sub(pieces.tail.len()))
    }

    fn message(&mut self) -> Option<&mut Vec<u8>> {
        self.pieces.as_mut()?.message.as_mut()
    }
}

/// Handles a whole message; whether to go on.
fn whole(
    message: &[u8],
    (deflated, max): (bool, usize),
    hear: &mut impl FnMut(IncomingMessage<'_>) -> bool,
) -> Result<bool, ProtocolBreach> {
    let mut hear = |bytes| {
        let text = std::str::from_utf8(bytes).map_err(|_| ProtocolBreach::Utf8)?;
        Ok(hear(IncomingMessage::Text(text)))
    };
    if !deflated {
        return hear(message);
    }
    // Taken while it is used, so that nothing that may_read a message could find it in use.
    let mut inflater = INFLATER.take().unwrap_or_default();
    let heard = match inflater.inflate(message, max) {
        Ok(bytes) => hear(bytes),
        Err(InflateError::Corrupt) => Err(ProtocolBreach::Deflate),
        Err(InflateError::TooLarge) => Err(ProtocolBreach::TooLarge),
    };
    INFLATER.set(Some(inflater));
    heard
}

/// The code of a close frame, whose payload is empty, or a code and a reason (section 5.5.1).
fn close_code(payload: &[u8]) -> Result<Option<u16>, ProtocolBreach> {
    const SHORT: ProtocolBreach = ProtocolBreach::Protocol("A close code has two bytes");
    let (code, reason) = match payload {
        [] => return Ok(None),
        [a, b, reason @ ..] => (u16::from_be_bytes([*a, *b]), reason),
        [_] => return Err(SHORT),
    };
    if !CloseCode::from(code).is_allowed() || code >= 5000 {
        return Err(ProtocolBreach::Protocol("The close code is not one to be sent"));
    }
    if std::str::from_utf8(reason).is_err() {
        return Err(ProtocolBreach::Utf8);
    }
    Ok(Some(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![first];
        match payload.len() {
            len @ 0..=125 => out.push(0x80 | len as u8),
            len @ 126..=65_535 => {
                out.push(0x80 | 126);
                out.extend_from_slice(&(len as u16).to_be_bytes());
            }
            len => {
                out.push(0x80 | 127);
                out.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        let mask = [7, 77, 177, 27];
        out.extend_from_slice(&mask);
        out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        out
    }

    #[test]
    fn a_close_frame_alone_is_known() {
        let close = masked(0x88, &[0x03, 0xe8]);
        assert!(is_close(&close) && is_close(&masked(0x88, b"")));
        for other in [&close[1..], &close[..7], &[&close[..], b"x"].concat(), &masked(0x89, b"")] {
            assert!(!is_close(other), "{other:?}");
        }
    }

    /// The messages that are heard of `bytes` when they come `step` at a time.
    fn heard(bytes: &[u8], step: usize) -> Result<Vec<String>, ProtocolBreach> {
        heard_by(FrameLimits { max: 70_000, inflates: false }, bytes, step)
    }

    fn heard_by(
        terms: FrameLimits,
        bytes: &[u8],
        step: usize,
    ) -> Result<Vec<String>, ProtocolBreach> {
        let (mut frames, mut all) = (FrameAssembler::default(), Vec::new());
        for chunk in bytes.chunks(step) {
            frames.feed(&mut chunk.to_vec(), terms, |incoming| {
                all.push(format!("{incoming:?}"));
                true
            })?;
        }
        assert!(frames.pieces.is_none(), "nothing is kept between messages");
        Ok(all)
    }

    #[test]
    fn messages_are_the_same_however_they_are_cut() {
        let long = "é".repeat(33_000);
        let mut bytes = masked(0x81, b"one");
        bytes.extend(masked(0x01, &"é".as_bytes()[..1]));
        bytes.extend(masked(0x89, b"ping"));
        bytes.extend(masked(0x80, &"é".as_bytes()[1..]));
        bytes.extend(masked(0x82, long.as_bytes()));
        bytes.extend(masked(0x8a, b""));
        bytes.extend(masked(0x88, &[0x03, 0xe8]));
        let expected = vec![
            "Text(\"one\")".to_owned(),
            "Part".to_owned(),
            "Ping([112, 105, 110, 103])".to_owned(),
            "Text(\"é\")".to_owned(),
            format!("Text({long:?})"),
            "Pong".to_owned(),
            "Close(Some(1000))".to_owned(),
        ];
        for step in [1, 2, 3, 7, 4096, bytes.len()] {
            assert_eq!(heard(&bytes, step).as_ref(), Ok(&expected), "{step} at a time");
        }
    }

    #[test]
    fn breaches_are_told_apart() {
        let unmasked = [0x81, 1, b'x'];
        let wide = [0x81, 0x80 | 126, 0, 1, 0, 0, 0, 0, b'x'];
        for (bytes, code) in [
            (&unmasked[..], 1002),
            (&wide[..], 1002),
            (&masked(0xc1, b"x"), 1002),
            (&masked(0x83, b"x"), 1002),
            (&masked(0x80, b"x"), 1002),
            (&masked(0x09, b"x"), 1002),
            (&masked(0x89, &[b'x'; 126]), 1002),
            (&masked(0x88, b"x"), 1002),
            (&masked(0x88, &[0x03, 0xed]), 1002),
            (&masked(0x88, &[0x03, 0xe8, 0xff]), 1007),
            (&masked(0x81, &[0xff]), 1007),
            (&masked(0x81, &[b'x'; 70_001]), 1009),
            (&[masked(0x01, b"a"), masked(0x81, b"b")].concat(), 1002),
            (&[masked(0x01, b"a"), masked(0x80, &[b'x'; 70_000])].concat(), 1009),
        ] {
            let breach = heard(bytes, 4096).map_err(ProtocolBreach::code);
            assert_eq!(breach.err(), Some(code), "{:?}", &bytes[..2]);
        }
        assert!(heard(&masked(0x81, &[b'x'; 70_000]), 4096).is_ok());
    }

    /// RFC 7692, sections 7.2.3.1 and 7.2.3.2: "Hello".
    const HELLO: [u8; 7] = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];

    #[test]
    fn compressed_messages_are_the_same_however_they_are_cut() {
        let mut bytes = masked(0xc1, &HELLO);
        bytes.extend(masked(0x41, &HELLO[..3]));
        bytes.extend(masked(0x89, b"ping"));
        bytes.extend(masked(0x00, b""));
        bytes.extend(masked(0x80, &HELLO[3..]));
        bytes.extend(masked(0x81, b"plain"));
        bytes.extend(masked(0x01, b"al"));
        bytes.extend(masked(0x80, b"so"));
        bytes.extend(masked(0xc2, &HELLO));
        bytes.extend(masked(0x41, b""));
        bytes.extend(masked(0x80, &HELLO));
        bytes.extend(masked(0xc1, &[0]));
        let expected = [
            "Text(\"Hello\")",
            "Ping([112, 105, 110, 103])",
            "Text(\"Hello\")",
            "Text(\"plain\")",
            "Text(\"also\")",
            "Text(\"Hello\")",
            "Text(\"Hello\")",
            "Text(\"\")",
        ];
        for step in [1, 2, 7, bytes.len()] {
            let terms = FrameLimits { max: 5, inflates: true };
            let mut heard = heard_by(terms, &bytes, step).unwrap();
            heard.retain(|one| one != "Part");
            assert_eq!(heard, expected, "{step} at a time");
        }
    }

    #[test]
    fn breaches_of_compression_are_told_apart() {
        let terms = FrameLimits { max: 5, inflates: true };
        for (bytes, code) in [
            (masked(0xc9, b""), 1002),
            (masked(0xc8, b""), 1002),
            (masked(0xca, b""), 1002),
            (masked(0xe1, &HELLO), 1002),
            (masked(0xd1, &HELLO), 1002),
            (masked(0xa1, b"x"), 1002),
            (masked(0xc0, &HELLO), 1002),
            ([masked(0x41, &HELLO[..3]), masked(0xc0, &HELLO[3..])].concat(), 1002),
            ([masked(0x01, b"x"), masked(0xc0, &HELLO)].concat(), 1002),
            ([masked(0x41, &HELLO[..3]), masked(0xc1, &HELLO)].concat(), 1002),
            (masked(0xc1, b""), 1007),
            ([masked(0x41, b""), masked(0x80, b"")].concat(), 1007),
            (masked(0xc1, &HELLO[..5]), 1007),
            (masked(0xc1, b"\xff\xff\xff"), 1007),
            // Stored, a byte that is no text.
            (masked(0xc1, &[0, 1, 0, 0xfe, 0xff, 0xff, 0]), 1007),
            (masked(0xc1, &[0, 6, 0, 0xf9, 0xff, b'H', b'e', b'l', b'l', b'o', b'!', 0]), 1009),
            (masked(0xc1, &[0; 70]), 1009),
            ([masked(0x41, &[0; 60]), masked(0x00, &[0; 60])].concat(), 1009),
            (masked(0x81, b"123456"), 1009),
        ] {
            let breach = heard_by(terms, &bytes, 4096).map_err(ProtocolBreach::code);
            assert_eq!(breach.err(), Some(code), "{bytes:x?}");
        }
        let off = heard_by(FrameLimits { inflates: false, ..terms }, &masked(0xc1, &HELLO), 4096);
        assert_eq!(off.map_err(ProtocolBreach::code), Err(1002));
    }
}
