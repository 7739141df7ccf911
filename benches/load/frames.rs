//! As much of RFC 6455 as a meter needs: frames of a client, masked, and the headers of a server's, which
//! are not. Fragments are left out: no Pusher-protocol server sends them.

/// A text message.
pub(crate) const TEXT: u8 = 0x1;
/// The end of the conversation.
pub(crate) const CLOSE: u8 = 0x8;
/// Wants a pong with the same payload.
pub(crate) const PING: u8 = 0x9;
/// The answer to a ping.
pub(crate) const PONG: u8 = 0xa;

/// Where a frame's payload begins, and how long it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub opcode: u8,
    /// By permessage-deflate (RFC 7692).
    pub deflated: bool,
    /// Bytes of the header, a mask included.
    pub len: usize,
    pub payload: usize,
}

impl Header {
    /// The header at the beginning of `bytes`, once all of it is there (RFC 6455 section 5.2).
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let [first, second, rest @ ..] = bytes else { return None };
        let opcode = first & 0x0f;
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        let (len, payload) = match second & 0x7f {
            126 => (4, usize::from(u16::from_be_bytes(*rest.first_chunk()?))),
            127 => (10, u64::from_be_bytes(*rest.first_chunk()?) as usize),
            short => (2, usize::from(short)),
        };
        Some(Self { opcode, deflated: first & 0x40 != 0, len: len + mask, payload })
    }

    /// Bytes of the whole frame.
    pub(crate) fn total(self) -> usize {
        self.len + self.payload
    }
}

fn push_header(out: &mut Vec<u8>, opcode: u8, payload: usize, mask: u8) {
    out.push(0x80 | opcode);
    match payload {
        0..=125 => out.push(mask | payload as u8),
        126..=0xffff => {
            out.push(mask | 126);
            out.extend_from_slice(&(payload as u16).to_be_bytes());
        }
        _ => {
            out.push(mask | 127);
            out.extend_from_slice(&(payload as u64).to_be_bytes());
        }
    }
}

/// Appends a client's frame. The mask is always the same one: it guards proxies, and costs the server what
/// any other would.
pub(crate) fn push_masked(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    const MASK: [u8; 4] = [0xa5, 0x17, 0x6c, 0xd2];
    push_header(out, opcode, payload.len(), 0x80);
    out.extend_from_slice(&MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// Appends a server's text frame.
pub(crate) fn push_text(out: &mut Vec<u8>, payload: &[u8]) {
    push_header(out, TEXT, payload.len(), 0);
    out.extend_from_slice(payload);
}

/// Takes the mask off a client's payload.
pub(crate) fn unmask(mask: [u8; 4], payload: &mut [u8]) {
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}
