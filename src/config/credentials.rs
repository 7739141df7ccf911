//! Random credentials, for a server without an app and for `fanfare keys`, from the kernel's random numbers.

use super::GeneratedApp;
use super::error::Error;

/// They need no quotes in a shell, a URL or a `.env`. Twenty of them are 103 bits.
const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

impl GeneratedApp {
    /// A new id of six digits, key and secret of twenty letters and digits each: the forms that Laravel's
    /// installer gives them. Fails only if the system has no randomness to give.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn random() -> Result<Self, Error> {
        let first = random_from(b"123456789", 1)?;
        let id = first + &random_from(b"0123456789", 5)?;
        Ok(Self { id, key: random_from(LETTERS, 20)?, secret: random_from(LETTERS, 20)? })
    }
}

/// `length` characters of `alphabet`, each as likely as any other.
fn random_from(alphabet: &[u8], length: usize) -> Result<String, Error> {
    // Bytes past the last whole multiple of the alphabet would favour its beginning.
    let fair = 256 - 256 % alphabet.len();
    let mut text = String::with_capacity(length);
    while text.len() < length {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)
            .map_err(|error| Error::of_file("cannot make credentials", error))?;
        let fair = bytes.into_iter().map(usize::from).filter(|byte| *byte < fair);
        let picked = fair.filter_map(|byte| alphabet.get(byte % alphabet.len()));
        text.extend(picked.take(length - text.len()).copied().map(char::from));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_have_their_forms_and_differ() {
        let (one, other) = (GeneratedApp::random().unwrap(), GeneratedApp::random().unwrap());
        for made in [&one, &other] {
            assert!((100_000..=999_999).contains(&made.id.parse::<u32>().unwrap()));
            for text in [&made.key, &made.secret] {
                assert_eq!(text.len(), 20);
                assert!(text.bytes().all(|byte| LETTERS.contains(&byte)));
            }
        }
        assert_ne!(one.key, other.key);
        assert_ne!(one.secret, other.secret);
        assert_ne!(one.key, one.secret);
    }

    #[test]
    fn every_letter_comes_up() {
        let text = random_from(LETTERS, 10_000).unwrap();
        assert!(LETTERS.iter().all(|letter| text.as_bytes().contains(letter)));
    }
}
