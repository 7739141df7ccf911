//! Hexadecimal encoding and decoding of digests and signatures. Decoding accepts capitals, since some SDKs send them.

/// The text is not hex of the expected length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotHex;

/// The bytes in lower-case digits.
pub fn encode_hex(bytes: impl AsRef<[u8]>) -> String {
    let digit = |half: u8| char::from_digit(half.into(), 16).unwrap_or('0');
    bytes.as_ref().iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Fills `bytes` from exactly their digits, in capitals or not.
///
/// # Errors
/// There are more or fewer digits, or other characters.
pub fn decode_to_slice(digits: impl AsRef<[u8]>, bytes: &mut [u8]) -> Result<(), NotHex> {
    let digits = digits.as_ref();
    if digits.len() != 2 * bytes.len() {
        return Err(NotHex);
    }
    // Without a branch on a digit: how long it takes says nothing of a signature.
    let mut wrong = 0;
    for (byte, [high, low]) in bytes.iter_mut().zip(digits.as_chunks().0) {
        let (high, low) = (digit_value(*high), digit_value(*low));
        wrong |= high | low;
        *byte = high << 4 | low;
    }
    if wrong < 16 { Ok(()) } else { Err(NotHex) }
}

/// 255 for what is no digit.
const fn digit_value(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        b'A'..=b'F' => digit - b'A' + 10,
        _ => 255,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        let digits = encode_hex(&all);
        assert!(digits.starts_with("000102") && digits.ends_with("fdfeff"));
        for digits in [digits.clone(), digits.to_uppercase()] {
            let mut back = [0; 256];
            assert_eq!(decode_to_slice(&digits, &mut back), Ok(()));
            assert_eq!(back[..], all);
        }
        for wrong in ["", "0", "000", "0g", "+1", "é"] {
            assert_eq!(decode_to_slice(wrong, &mut [0]), Err(NotHex), "{wrong}");
        }
    }
}
