//! Compressed messages, read as cheaply as a meter can: a server may send all its clients the same bytes, and then one
//! of them is inflated for all.

use std::fmt;
use std::io;

use fanfare::protocol::deflate::Inflater;

/// Bytes that a message may have.
const MAX: usize = 16 << 20;

#[derive(Default)]
pub(crate) struct Inflate {
    inflater: Inflater,
    last: Vec<u8>,
    text: Vec<u8>,
}

impl fmt::Debug for Inflate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflate").finish_non_exhaustive()
    }
}

impl Inflate {
    pub(crate) fn text(&mut self, message: &[u8]) -> io::Result<&[u8]> {
        if self.last != message {
            let text = self.inflater.inflate(message, MAX);
            let text = text.map_err(|error| io::Error::other(format!("{error:?}")))?;
            self.text.clear();
            self.text.extend_from_slice(text);
            self.last.clear();
            self.last.extend_from_slice(message);
        }
        Ok(&self.text)
    }
}
