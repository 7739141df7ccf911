//! Socket ids, such as `123.456`. The hub assigns them and keeps them unique.

use std::fmt;

use super::json::push_number;

/// Two numbers: one of the node that a connection was made on, one of the connection there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SocketId {
    pub node: u64,
    pub number: u64,
}

impl SocketId {
    /// Parses `^\d+\.\d+$`. Numbers beyond 64 bits, which no node assigns, are read as the largest: such an id is
    /// well-formed but belongs to no connection.
    pub fn parse(text: &str) -> Option<Self> {
        let (node, number) = text.split_once('.')?;
        Some(Self { node: digits(node)?, number: digits(number)? })
    }

    /// Appends it as [`Display`](fmt::Display) does, at a fifth of the cost.
    pub fn push_text(self, out: &mut Vec<u8>) {
        push_number(out, self.node);
        out.push(b'.');
        push_number(out, self.number);
    }

    /// Its text.
    pub fn to_text(self) -> String {
        let mut out = Vec::with_capacity(24);
        self.push_text(&mut out);
        // Digits and a dot are UTF-8, so the default is never used.
        String::from_utf8(out).unwrap_or_default()
    }
}

/// Digits alone: `parse` by itself would take a sign.
fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

impl fmt::Display for SocketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.node, self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_prints_and_nothing_else() {
        let id = SocketId { node: 123, number: 456 };
        assert_eq!(SocketId::parse(&id.to_string()), Some(id));
        assert_eq!(id.to_text(), id.to_string());
        for bad in ["", ".", "1.", ".1", "1", "1.2.3", "+1.2", "1.-2", "1.2\n", "a.b", "1,2"] {
            assert_eq!(SocketId::parse(bad), None, "{bad:?}");
        }
        let huge = SocketId::parse("99999999999999999999999.1");
        assert_eq!(huge, Some(SocketId { node: u64::MAX, number: 1 }));
    }
}
