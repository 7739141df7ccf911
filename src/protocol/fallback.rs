//! pusher-js's HTTP transports, `xhr_streaming` and `xhr_polling`: lines instead of frames (`docs/protocol.md`, "Over
//! HTTP"). Each line is made of a finished frame, so that everything above is the same for both. Knows no request and
//! no socket.

use bytes::Bytes;
use smallvec::SmallVec;

use super::json::push_string;

/// UTF-16 code units of one streaming answer, over which pusher-js leaves it and asks for another: its
/// `MAX_BUFFER_LENGTH`, which it compares with the length of XHR's `responseText`.
pub const MAX_ANSWER_UNITS: usize = 256 << 10;

/// The first line of a session.
pub const OPEN: &[u8] = b"o\n";

/// Headers of every response that carries lines. Chromium holds `text/plain` back to guess its type; proxies must
/// neither cache nor gather lines.
pub const HEADERS: [(&str, &str); 5] = [
    ("content-type", "application/javascript; charset=UTF-8"),
    ("x-content-type-options", "nosniff"),
    ("cache-control", "no-store, no-transform"),
    ("x-accel-buffering", "no"),
    ("access-control-allow-origin", "*"),
];

/// How an answer is delimited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AnswerFraming {
    /// RFC 9112 section 7.1, one line a chunk.
    Chunked,
    /// By its length, or by the end of the connection (HTTP/1.0).
    Plain,
}

impl AnswerFraming {
    /// The bytes that end a response.
    pub fn end_bytes(self) -> &'static [u8] {
        match self {
            Self::Chunked => b"0\r\n\r\n",
            Self::Plain => b"",
        }
    }

    /// Appends one line, its `\n` included.
    pub fn push_line(self, out: &mut Vec<u8>, line: &[u8]) {
        match self {
            Self::Plain => out.extend_from_slice(line),
            Self::Chunked => {
                out.extend_from_slice(format!("{:x}\r\n", line.len()).as_bytes());
                out.extend_from_slice(line);
                out.extend_from_slice(b"\r\n");
            }
        }
    }
}

/// The lines that say what some frames say.
#[derive(PartialEq, Eq, Debug)]
pub struct FallbackLines {
    /// All of them as they are sent.
    pub bytes: Bytes,
    /// How the lines are framed.
    pub framing: AnswerFraming,
    /// Where each line ends.
    pub ends: SmallVec<[LineEnd; 1]>,
    /// UTF-16 code units of all of them.
    pub units: usize,
    /// The last of them is `c[…]`: nothing may follow.
    pub is_last: bool,
}

/// Where a line ends in the bytes, and how long it is to a browser.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LineEnd {
    /// The end of the line, in bytes.
    pub at: usize,
    /// UTF-16 code units, `\n` included.
    pub units: usize,
}

impl FallbackLines {
    /// The lines for whole, unmasked frames. A text is a message, a close frame the end; a ping is `h`, which
    /// pusher-js answers with `[]`, and a pong is the answer to that, which it does not answer.
    /// Example: a frame with the text `{"event":"a"}` becomes the line `a["{\"event\":\"a\"}"]`.
    pub fn of_frames(mut frames: &[u8], framing: AnswerFraming) -> Self {
        let mut bytes = Vec::with_capacity(frames.len() + frames.len() / 4 + 32);
        let mut line = Vec::new();
        let mut ends = SmallVec::new();
        let (mut is_last, mut units) = (false, 0);
        while let Some((opcode, payload, rest)) = split_frame(frames) {
            frames = rest;
            line.clear();
            match opcode {
                CLOSE => {
                    push_close(&mut line, payload);
                    is_last = true;
                }
                PING => line.extend_from_slice(b"h"),
                PONG => line.extend_from_slice(b"a[]"),
                _ => {
                    line.extend_from_slice(b"a[");
                    // Our own frames hold text.
                    push_string(&mut line, std::str::from_utf8(payload).unwrap_or_default());
                    line.push(b']');
                }
            }
            line.push(b'\n');
            framing.push_line(&mut bytes, &line);
            let end = LineEnd { at: bytes.len(), units: utf16_units(&line) };
            units += end.units;
            ends.push(end);
        }
        Self { bytes: bytes.into(), framing, ends, units, is_last }
    }

    /// Where line `index` begins.
    pub fn line_start(&self, index: usize) -> usize {
        let before = index.checked_sub(1).and_then(|before| self.ends.get(before));
        before.map_or(0, |end| end.at)
    }
}

/// The opcode of a close frame (RFC 6455 section 5.2).
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// The opcode and payload of the frame in front, and what follows it (RFC 6455 section 5.2).
pub(super) fn split_frame(frames: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [first, short, rest @ ..] = frames else { return None };
    let (len, rest) = match (short, rest) {
        (126, [a, b, rest @ ..]) => (usize::from(u16::from_be_bytes([*a, *b])), rest),
        (127, [a, b, c, d, e, f, g, h, rest @ ..]) => {
            let len = u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]);
            (usize::try_from(len).ok()?, rest)
        }
        (126.., _) => return None,
        (short, rest) => (usize::from(*short), rest),
    };
    let (payload, rest) = rest.split_at_checked(len)?;
    Some((first & 0x0f, payload, rest))
}

/// `c[code,"reason"]`, with which pusher-js closes as with a WebSocket's close frame.
fn push_close(line: &mut Vec<u8>, payload: &[u8]) {
    let (code, reason) = match payload {
        [a, b, reason @ ..] => (u16::from_be_bytes([*a, *b]), reason),
        // A close frame without a code is a normal end.
        _ => (1000, &[][..]),
    };
    line.extend_from_slice(format!("c[{code},").as_bytes());
    // A reason that is not UTF-8 cannot come from this server; an empty one is sent in its place.
    push_string(line, std::str::from_utf8(reason).unwrap_or_default());
    line.push(b']');
}

/// Length of UTF-8 text as JavaScript counts it: characters beyond the first plane are two.
fn utf16_units(text: &[u8]) -> usize {
    // A byte that continues a character counts nothing, one that begins four bytes twice.
    text.iter().map(|byte| usize::from(byte & 0xc0 != 0x80) + usize::from(*byte >= 0xf0)).sum()
}

/// The texts in the body of `xhr_send`; `None` unless it is an array of strings.
pub fn parse_sent(body: &[u8]) -> Option<Vec<String>> {
    serde_json::from_slice(body).ok()
}

/// Whether this is a session name of pusher-js: a number below 1000, and eight digits of base 32.
pub fn is_session_name(number: &str, name: &str) -> bool {
    let is_number = matches!(number.as_bytes(), [b'0'] | [b'1'..=b'9', ..]) && number.len() <= 3;
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'v');
    is_number
        && number.bytes().all(|byte| byte.is_ascii_digit())
        && name.len() == 8
        && name.as_bytes().iter().all(is_digit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::channel::ChannelName;
    use crate::protocol::event::Message;

    fn text_of(messages: &[Message], framing: AnswerFraming) -> (String, FallbackLines) {
        let frames: Vec<u8> = messages.iter().flat_map(|one| one.bytes().to_vec()).collect();
        let lines = FallbackLines::of_frames(&frames, framing);
        (String::from_utf8(lines.bytes.to_vec()).unwrap(), lines)
    }

    #[test]
    fn each_frame_is_a_line() {
        let channel = ChannelName::parse("pub", 200).unwrap();
        let all = [
            Message::event(&channel, "e", "\"a\\\"b\\n\""),
            Message::ws_ping(),
            Message::ws_pong(b"x"),
            Message::close(4009, "Terminated \"now\""),
        ];
        let (text, lines) = text_of(&all, AnswerFraming::Plain);
        assert_eq!(
            text,
            "a[\"{\\\"event\\\":\\\"e\\\",\\\"channel\\\":\\\"pub\\\",\\\"data\\\":\\\"a\\\\\\\"b\\\\n\\\"}\"]\n\
             h\na[]\nc[4009,\"Terminated \\\"now\\\"\"]\n"
        );
        assert!(lines.is_last);
        let line: Vec<String> =
            serde_json::from_str(text.lines().next().unwrap().get(1..).unwrap())
                .expect("an array of frames");
        assert_eq!(line, [r#"{"event":"e","channel":"pub","data":"a\"b\n"}"#]);
        let (chunked, lines) = text_of(&all[1..3], AnswerFraming::Chunked);
        assert_eq!(chunked, "2\r\nh\n\r\n4\r\na[]\n\r\n");
        assert_eq!((lines.line_start(0), lines.line_start(1), lines.line_start(2)), (0, 7, 16));
        assert!(!lines.is_last);
    }

    #[test]
    fn long_frames_are_taken_apart_and_counted_as_a_browser_counts() {
        let channel = ChannelName::parse("pub", 200).unwrap();
        for text in ["x".repeat(125), "é".repeat(40_000), "😀".repeat(30_000)] {
            let data = format!("\"{text}\"");
            let events =
                [Message::event(&channel, "e", &data), Message::event(&channel, "f", "\"\"")];
            let (all, lines) = text_of(&events, AnswerFraming::Plain);
            let units: Vec<usize> =
                all.split_inclusive('\n').map(|line| line.encode_utf16().count()).collect();
            let counted: Vec<usize> = lines.ends.iter().map(|end| end.units).collect();
            assert_eq!(counted, units);
            assert_eq!(lines.units, units.iter().sum::<usize>());
            assert!(all.contains(&text));
        }
    }

    #[test]
    fn sessions_are_named_as_the_client_names_them() {
        for (number, name) in [("0", "00000000"), ("999", "v0a1b2c3"), ("10", "vvvvvvvv")] {
            assert!(is_session_name(number, name), "{number}/{name}");
        }
        for (number, name) in [
            ("", "v0a1b2c3"),
            ("1000", "v0a1b2c3"),
            ("007", "v0a1b2c3"),
            ("-1", "v0a1b2c3"),
            ("+1", "v0a1b2c3"),
            ("1x", "v0a1b2c3"),
            ("1", "v0a1b2c"),
            ("1", "v0a1b2c34"),
            ("1", "V0a1b2c3"),
            ("1", "w0a1b2c3"),
            ("1", "v0a1b2c%"),
        ] {
            assert!(!is_session_name(number, name), "{number}/{name}");
        }
    }

    #[test]
    fn what_is_sent_is_an_array_of_strings() {
        assert_eq!(parse_sent(b"[]"), Some(Vec::new()));
        assert_eq!(
            parse_sent(br#" ["a\"b", "c"] "#),
            Some(vec!["a\"b".to_owned(), "c".to_owned()])
        );
        for wrong in
            ["", "{}", "\"a\"", "[1]", "[\"a\",null]", "[\"a\"", "[\"a\"]x", "[\"\\ud800\"]"]
        {
            assert_eq!(parse_sent(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
