//! Reading numbers, strings and byte ranges from shared bytes, and writing them. `envelope.rs` gives them their
//! meaning.

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::protocol::socket_id::SocketId;

/// Digits of a version number in a body. Scripts write it, and Lua writes text.
pub const DIGITS: usize = 16;

/// The bytes that are left to read.
pub(super) struct EnvelopeReader(pub(super) Bytes);

impl EnvelopeReader {
    /// Shared with what was read off the socket, not copied.
    pub(super) fn take_bytes(&mut self, count: usize) -> Option<Bytes> {
        (count <= self.0.len()).then(|| self.0.split_to(count))
    }

    /// For fields whose length is fixed.
    pub(super) fn take_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take_bytes(N)?.as_ref().try_into().ok()
    }

    /// Big-endian, as all numbers of an envelope.
    pub(super) fn take_number(&mut self) -> Option<u64> {
        self.take_array().map(u64::from_be_bytes)
    }

    /// The inner `None` is an envelope that names no socket.
    pub(super) fn take_socket(&mut self) -> Option<Option<SocketId>> {
        let socket = SocketId { node: self.take_number()?, number: self.take_number()? };
        Some((socket.node != 0).then_some(socket))
    }

    /// In digits: the script in Redis writes it, and Lua's numbers are not whole ones.
    pub(super) fn take_version(&mut self) -> Option<u64> {
        text(&self.take_bytes(DIGITS)?)?.parse().ok()
    }

    /// A part that says in front how long it is.
    pub(super) fn take_short_text(&mut self) -> Option<Bytes> {
        let count = u32::from_be_bytes(self.take_array()?);
        self.take_bytes(count as usize)
    }

    /// The last field.
    pub(super) fn take_rest(&mut self) -> Bytes {
        std::mem::take(&mut self.0)
    }
}

/// `None` for what is not UTF-8, which no node writes.
pub(super) fn text(bytes: &Bytes) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// Writes the id of a connection, or two zeros for none.
pub(super) fn put_socket(out: &mut Vec<u8>, socket: Option<SocketId>) {
    // No node has the number 0, so that it can stand for none.
    let socket = socket.unwrap_or(SocketId { node: 0, number: 0 });
    out.put_u64(socket.node);
    out.put_u64(socket.number);
}

/// With its length in front, where another field follows.
pub(super) fn put_short(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32(bytes.len() as u32);
    out.extend_from_slice(bytes);
}

/// The bytes in one piece, as a script joins them.
pub fn join_parts(head: &[u8], version: u64, rest: &[u8]) -> Bytes {
    let mut all = BytesMut::with_capacity(head.len() + DIGITS + rest.len());
    all.extend_from_slice(head);
    all.extend_from_slice(format!("{version:0DIGITS$}").as_bytes());
    all.extend_from_slice(rest);
    all.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_as_they_were_written() {
        let socket = SocketId { node: 3, number: 4 };
        let mut out = Vec::new();
        put_socket(&mut out, Some(socket));
        put_socket(&mut out, None);
        put_short(&mut out, b"short");
        put_short(&mut out, b"");
        let mut reader = EnvelopeReader(join_parts(&out, 42, b"rest"));
        assert_eq!(reader.take_socket(), Some(Some(socket)));
        assert_eq!(reader.take_socket(), Some(None));
        assert_eq!(reader.take_short_text().as_deref(), Some(&b"short"[..]));
        assert_eq!(reader.take_short_text().as_deref(), Some(&b""[..]));
        assert_eq!(reader.take_version(), Some(42));
        assert_eq!(reader.take_rest().as_ref(), b"rest");
        assert_eq!(reader.take_array::<1>(), None);
    }

    /// Lengths come from whoever may publish under the prefix.
    #[test]
    fn a_length_beyond_the_end_reads_as_nothing() {
        let reader = |bytes: &'static [u8]| EnvelopeReader(Bytes::from_static(bytes));
        assert_eq!(reader(b"\0\0\0\x05four").take_short_text(), None);
        assert_eq!(reader(b"\xff\xff\xff\xfffour").take_short_text(), None);
        assert_eq!(reader(b"\0\0").take_short_text(), None);
        assert_eq!(reader(b"1234567").take_number(), None);
        assert_eq!(reader(b"000000000000004").take_version(), None);
        assert_eq!(reader(b"00000000000000-4").take_version(), None);
        assert_eq!(reader(b"four").take_bytes(5), None);
    }
}
