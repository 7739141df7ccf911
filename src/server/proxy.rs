//! The PROXY protocol, versions 1 and 2, by which a proxy names the client before the first byte. If it is enabled,
//! every connection must begin with it, as the specification demands.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio::io::AsyncReadExt;

use crate::hub::stream::Stream;

/// The first bytes of version 2 (section 2.2 of the specification). No HTTP or TLS client begins with them.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The longest line of version 1, its end included.
/// The specification's own figure, for two IPv6 addresses written in full.
const MAX_LINE_BYTES: usize = 107;

/// The longest header of version 2 that is taken: addresses and 1 KiB of extensions, which are skipped.
/// 216 bytes are the longest addresses, those of Unix sockets; more extensions than that no proxy sends.
const MAX_HEADER_BYTES: usize = 16 + 216 + 1024;

/// A header that was read.
#[derive(PartialEq, Eq, Debug)]
struct ProxyHeader {
    /// Its bytes.
    length: usize,
    /// The address of the proxy's client; `None` if the proxy itself connects, or the header has no address.
    client: Option<IpAddr>,
}

/// Told apart because one calls for more bytes and the other for the end.
#[derive(PartialEq, Eq, Debug)]
enum ProxyHeaderError {
    /// It may become right with more bytes.
    Unfinished,
    /// The bytes are no PROXY header.
    Malformed,
}

/// Reads the header of a new connection; returns the client's address, if it has one. Not a byte more is read,
/// since TLS or HTTP follows.
///
/// # Errors
/// There is no such header, it is too long, or the connection ended within it.
pub(super) async fn read(stream: &mut Stream) -> io::Result<Option<IpAddr>> {
    let mut bytes = Vec::new();
    loop {
        // No more than the header is taken, for what follows it is TLS or HTTP.
        // At least one, so that each round makes progress.
        let missing = wanted(&bytes).saturating_sub(bytes.len()).max(1);
        let before = bytes.len();
        bytes.resize(before + missing, 0);
        // The vector was resized to hold them, so the slice exists.
        let read = stream.read(bytes.get_mut(before..).unwrap_or_default()).await?;
        bytes.truncate(before + read);
        match parse(&bytes) {
            Ok(header) => return Ok(header.client),
            Err(ProxyHeaderError::Unfinished) if read > 0 => {}
            Err(_) => return Err(io::Error::other("no header of the PROXY protocol")),
        }
    }
}

/// How many bytes there are at least if these are the first.
/// Small steps for version 1, whose length is only known at its end; exact ones for version 2.
fn wanted(bytes: &[u8]) -> usize {
    match bytes {
        // The shortest line is `PROXY UNKNOWN`.
        [b'P', ..] => (bytes.len() + 1).max(15),
        [b'\r', ..] => match bytes.get(14..16) {
            Some(&[high, low]) => 16 + usize::from(u16::from_be_bytes([high, low])),
            _ => 16,
        },
        _ => 1,
    }
}

/// The longer of the two signatures decides; until a difference shows, either may be meant.
fn parse(bytes: &[u8]) -> Result<ProxyHeader, ProxyHeaderError> {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(a, b)| a == b);
    if begins(SIGNATURE) {
        version_2(bytes)
    } else if begins(b"PROXY ") {
        version_1(bytes)
    } else {
        Err(ProxyHeaderError::Malformed)
    }
}

/// A line of text, section 2.1 of the specification: `PROXY TCP4 192.0.2.1 192.0.2.9 56324
/// 443\r\n`.
fn version_1(bytes: &[u8]) -> Result<ProxyHeader, ProxyHeaderError> {
    let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") else {
        return Err(if bytes.len() < MAX_LINE_BYTES {
            ProxyHeaderError::Unfinished
        } else {
            ProxyHeaderError::Malformed
        });
    };
    let line = bytes.get(..end).and_then(|line| std::str::from_utf8(line).ok());
    let words: Vec<&str> = line.ok_or(ProxyHeaderError::Malformed)?.split(' ').collect();
    let client = match words.as_slice() {
        [_, "UNKNOWN", ..] => None,
        [_, "TCP4", client, _, _, _] => {
            Some(client.parse::<Ipv4Addr>().map_err(|_| ProxyHeaderError::Malformed)?.into())
        }
        [_, "TCP6", client, _, _, _] => {
            Some(client.parse::<Ipv6Addr>().map_err(|_| ProxyHeaderError::Malformed)?.into())
        }
        _ => return Err(ProxyHeaderError::Malformed),
    };
    Ok(ProxyHeader { length: end + 2, client })
}

/// Binary, section 2.2: the signature, a byte of version and command, one of family and transport,
/// and the length of the rest in two.
fn version_2(bytes: &[u8]) -> Result<ProxyHeader, ProxyHeaderError> {
    let (Some(&command), Some(&family), Some(&[high, low])) =
        (bytes.get(12), bytes.get(13), bytes.get(14..16))
    else {
        return Err(ProxyHeaderError::Unfinished);
    };
    let length = 16 + usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_HEADER_BYTES || !matches!(command, 0x20 | 0x21) {
        return Err(ProxyHeaderError::Malformed);
    }
    let addresses = bytes.get(16..length).ok_or(ProxyHeaderError::Unfinished)?;
    // The source stands first. A command of 0 is the proxy itself, looking whether we are there.
    let client = match (command, family >> 4) {
        (0x21, 1) => {
            let octets = addresses.first_chunk::<4>().filter(|_| addresses.len() >= 12);
            Some(IpAddr::from(*octets.ok_or(ProxyHeaderError::Malformed)?))
        }
        (0x21, 2) => {
            let octets = addresses.first_chunk::<16>().filter(|_| addresses.len() >= 36);
            Some(IpAddr::from(*octets.ok_or(ProxyHeaderError::Malformed)?))
        }
        _ => None,
    };
    Ok(ProxyHeader { length, client })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let length = (addresses.len() as u16).to_be_bytes();
        [SIGNATURE, &[command, family][..], &length, addresses].concat()
    }

    #[test]
    fn both_versions_say_who_the_client_is() {
        let four = [192, 0, 2, 1, 198, 51, 100, 1, 0, 80, 1, 187];
        let mut six = [0; 36];
        six[15] = 1;
        for (bytes, client) in [
            (b"PROXY TCP4 192.0.2.1 198.51.100.1 80 443\r\n".to_vec(), Some("192.0.2.1")),
            (b"PROXY TCP6 2001:db8::1 2001:db8::2 80 443\r\n".to_vec(), Some("2001:db8::1")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::1 65535 65535\r\n".to_vec(), None),
            (v2(0x21, 0x11, &four), Some("192.0.2.1")),
            (v2(0x21, 0x21, &six), Some("::1")),
            (v2(0x21, 0x11, &[&four[..], &[4, 0, 1, 0]].concat()), Some("192.0.2.1")),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x21, 0x31, &[0; 216]), None),
        ] {
            let client = client.map(|client| client.parse().unwrap());
            let header = ProxyHeader { length: bytes.len(), client };
            for end in 1..bytes.len() {
                assert_eq!(
                    parse(&bytes[..end]),
                    Err(ProxyHeaderError::Unfinished),
                    "{end} of {bytes:?}"
                );
                assert!(wanted(&bytes[..end]) <= bytes.len(), "{end} of {bytes:?}");
            }
            assert_eq!(parse(&[&bytes[..], b"GET /"].concat()), Ok(header), "{bytes:?}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for bytes in [
            b"GET / HTTP/1.1\r\n".to_vec(),
            b"PROXY TCP4 nobody 198.51.100.1 80 443\r\n".to_vec(),
            b"PROXY TCP4\r\n".to_vec(),
            [&b"PROXY "[..], &[b'x'; MAX_LINE_BYTES]].concat(),
            v2(0x31, 0x11, &[0; 12]),
            v2(0x21, 0x11, &[0; 11]),
            v2(0x21, 0x11, &[0; 2000]),
        ] {
            assert_eq!(parse(&bytes), Err(ProxyHeaderError::Malformed), "{bytes:?}");
        }
    }
}
