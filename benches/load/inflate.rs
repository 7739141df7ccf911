//! Compressed messages, read as cheaply as a meter can: a server may send all its clients the same bytes, and
//! then one of them is inflated for all.

use std::fmt;
use std::io;

use fanfare::protocol::deflate::Inflater;

/// Bytes that a message may have.
const MAX: usize = 16 << 20;

/// Messages that are kept: clients read the same ones one client after the other.
const KEPT: usize = 1024;

pub(crate) struct Inflate {
    inflater: Inflater,
    /// By a part of the message, the message and its text.
    kept: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Default for Inflate {
    fn default() -> Self {
        Self { inflater: Inflater::default(), kept: vec![Default::default(); KEPT] }
    }
}

impl fmt::Debug for Inflate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflate").finish_non_exhaustive()
    }
}

impl Inflate {
    pub(crate) fn text(&mut self, message: &[u8]) -> io::Result<&[u8]> {
        let middle = message.get(message.len() / 2..).unwrap_or_default();
        let sum = middle
            .iter()
            .take(24)
            .fold(message.len(), |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
        let (of, text) = &mut self.kept[sum % KEPT];
        if of != message {
            let inflated = self.inflater.inflate(message, MAX);
            let inflated = inflated.map_err(|error| io::Error::other(format!("{error:?}")))?;
            text.clear();
            text.extend_from_slice(inflated);
            of.clear();
            of.extend_from_slice(message);
        }
        Ok(text)
    }
}
