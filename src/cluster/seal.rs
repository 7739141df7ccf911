//! Sealing envelopes. The sender computes a MAC with its app's secret over the topic, the database, and everything but
//! version and time; it sends that to Redis and never to a topic. Redis, which assigns the version, seals both: the
//! seal is the beginning of the SHA-1 of MAC, version and, where only the script knows it, the user. It takes the place
//! of the sending time in an unsealed envelope.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use sha1::{Digest as _, Sha1};

use super::envelope::{DIGITS, Envelope, LEFT};
use crate::app::{AppId, Apps};
use crate::protocol::auth::Signer;

/// The flag of a sealed envelope.
const SEALED: u8 = 2;

/// Where the seal begins and ends.
const SEAL: std::ops::Range<usize> = 20..28;

/// Bytes of a MAC.
const MAC: usize = 16;

/// In front of scripts that seal: an envelope of a head, its seal, the version, and the rest. Where the sender knew no
/// secret there is no seal.
pub(super) const SCRIPT: &str = r"
local function sealed(head, mac, version, tail, rest)
  if mac == '' then return head .. version .. rest end
  local sum, sub = redis.sha1hex(mac .. version .. tail), string.sub
  local one, two = tonumber(sub(sum, 1, 8), 16), tonumber(sub(sum, 9, 16), 16)
  return head .. struct.pack('>I4I4', one, two) .. version .. rest
end
";

/// The secrets by which envelopes are sealed and believed.
#[derive(Debug)]
pub(super) struct EnvelopeSeals {
    /// The apps, whose secrets sign messages about their channels.
    apps: Arc<ArcSwap<Apps>>,
    /// Those of apps that were there; what is left of them still has to be said.
    known: RefCell<HashMap<AppId, Signer>>,
    /// The number of the database, which topics do not have.
    database: i64,
}

/// An envelope as a script is given it: what stands before and behind the version, and the MAC.
#[derive(Debug)]
pub(super) struct EnvelopeParts {
    /// Kind, flags, origin: what the sender knows beforehand. It ends where the seal begins, if it gets one.
    pub(super) head: Vec<u8>,
    /// Of everything but the version; Redis hashes that in without knowing a secret.
    pub(super) mac: Vec<u8>,
    /// The bytes behind the version.
    pub(super) rest: Vec<u8>,
}

impl EnvelopeParts {
    /// Bytes of the whole envelope.
    pub(super) fn envelope_bytes(&self) -> usize {
        SEAL.end + DIGITS + self.rest.len()
    }
}

impl EnvelopeSeals {
    /// For database 0 until the link says another.
    pub(super) fn new(apps: Arc<ArcSwap<Apps>>) -> Self {
        Self { apps, known: RefCell::default(), database: 0 }
    }

    /// Envelopes of this database are believed from now on, and no others.
    pub(super) fn set_database(&mut self, database: i64) {
        self.database = database;
    }

    /// An envelope of an app for a topic, as a script is given it.
    pub(super) fn sealed_parts(
        &self,
        app: &AppId,
        topic: &str,
        envelope: &Envelope,
    ) -> EnvelopeParts {
        let (head, rest) = envelope.encode_around_version();
        self.seal_parts(app, topic, head, rest)
    }

    /// The same of a user's end with the header of `envelope`, for the script that finds out who leaves.
    pub(super) fn parts_of_left(
        &self,
        app: &AppId,
        topic: &str,
        envelope: &Envelope,
    ) -> EnvelopeParts {
        let (mut head, _) = envelope.encode_around_version();
        if let Some(kind) = head.get_mut(1) {
            *kind = LEFT;
        }
        self.seal_parts(app, topic, head, Vec::new())
    }

    /// Without an app, and so without a secret, the parts stay unsealed.
    fn seal_parts(
        &self,
        app: &AppId,
        topic: &str,
        mut head: Vec<u8>,
        rest: Vec<u8>,
    ) -> EnvelopeParts {
        let database = self.database.to_be_bytes();
        let mac = self.with_signer(app, |signer| {
            if let Some(flags) = head.get_mut(2) {
                *flags |= SEALED;
            }
            let mac = signer.mac(&sealed_bytes(topic, &database, &head, &rest));
            // HMAC-SHA-256 has 32 bytes, and `MAC` are sent of it.
            mac.get(..MAC).unwrap_or_default().to_vec()
        });
        if mac.is_some() {
            head.truncate(SEAL.start);
        }
        // An empty MAC marks the parts as unsealed.
        EnvelopeParts { head, mac: mac.unwrap_or_default(), rest }
    }

    /// An envelope that no script gives a version to.
    pub(super) fn encode_sealed(&self, app: &AppId, topic: &str, envelope: &Envelope) -> Vec<u8> {
        let EnvelopeParts { head, mac, .. } = self.sealed_parts(app, topic, envelope);
        let mut bytes = envelope.encode();
        if !mac.is_empty()
            && let Some((front, behind)) = bytes.split_at_mut_checked(SEAL.end)
            && let (Some(flags), Some(seal)) = (head.get(2), front.get_mut(SEAL))
        {
            // A script would put its version here; without a script there are `DIGITS` constant ones.
            let version = behind.get(..DIGITS).unwrap_or_default();
            seal.copy_from_slice(&seal_of(&mac, version, &[]));
            if let Some(place) = front.get_mut(2) {
                *place = *flags;
            }
        }
        bytes
    }

    /// Whether an envelope on a topic was sealed by a node with the app's secret, and was not changed since.
    pub(super) fn is_valid(&self, app: &AppId, topic: &str, bytes: &[u8]) -> bool {
        let Some((head, behind)) = bytes.split_at_checked(SEAL.end) else { return false };
        let (version, rest) = behind.split_at_checked(DIGITS).unwrap_or((behind, &[]));
        let tail = if head.get(1) == Some(&LEFT) { rest } else { &[] };
        let database = self.database.to_be_bytes();
        let covered = sealed_bytes(topic, &database, head, rest);
        let holds = |signer: &Signer| {
            signer.macs(&covered).any(|mac| {
                // `macs` tries each secret of the app: nodes do not change secrets at the same instant.
                let mac = mac.get(..MAC).unwrap_or_default();
                head.get(SEAL) == Some(&seal_of(mac, version, tail))
            })
        };
        // An app that this node does not know has no secret, so nothing is valid.
        self.with_signer(app, holds).unwrap_or_default()
    }

    /// A client's record as Redis keeps it, in front of which stands what proves that a node made it.
    pub(super) fn seal_record(&self, app: &AppId, key: &str, record: &[u8]) -> Vec<u8> {
        let covered = self.covered_record(key, record);
        // Without the app's secret the MAC stays empty, and no reader accepts the record.
        let mac = self.with_signer(app, |signer| signer.mac(&covered)).unwrap_or_default();
        [mac.get(..MAC).unwrap_or_default(), record].concat()
    }

    /// The record, if a node made it of that client.
    pub(super) fn open_record<'a>(
        &self,
        app: &AppId,
        key: &str,
        bytes: &'a [u8],
    ) -> Option<&'a [u8]> {
        let (seal, record) = bytes.split_at_checked(MAC)?;
        let covered = self.covered_record(key, record);
        let holds = |signer: &Signer| signer.macs(&covered).any(|mac| mac.get(..MAC) == Some(seal));
        self.with_signer(app, holds)?.then_some(record)
    }

    /// The database and the key are covered too, so that a record is of no use under another name.
    fn covered_record(&self, key: &str, record: &[u8]) -> [Vec<u8>; 3] {
        let database = self.database.to_be_bytes();
        [[b"client".as_slice(), &database].concat(), [key.as_bytes(), &[0]].concat(), record.into()]
    }

    /// An app that a database has may be forgotten while others still speak of it: its signer is
    /// kept.
    fn with_signer<T>(&self, app: &AppId, with: impl FnOnce(&Signer) -> T) -> Option<T> {
        let apps = self.apps.load();
        let mut known = self.known.borrow_mut();
        match apps.by_id(app.as_str()) {
            Some(app) => {
                if !known.contains_key(&app.id) {
                    known.insert(app.id.clone(), app.signer.clone());
                }
                Some(with(&app.signer))
            }
            None => known.get(app).map(with),
        }
    }
}

/// The bytes that the MAC covers.
fn sealed_bytes<'a>(
    topic: &'a str,
    database: &'a [u8],
    head: &'a [u8],
    rest: &'a [u8],
) -> [&'a [u8]; 5] {
    // The version of the format may differ, since what is new gets a new kind.
    let header = head.get(1..SEAL.start).unwrap_or_default();
    // A leave is sealed with its version, since a script may be the one that detects it.
    let rest = if header.first() == Some(&LEFT) { &[] } else { rest };
    [header, database, topic.as_bytes(), &[0], rest]
}

/// Whether an envelope has a seal.
pub(super) fn is_sealed(bytes: &[u8]) -> bool {
    bytes.get(2).is_some_and(|flags| flags & SEALED != 0)
}

/// As the script in Redis does it, byte for byte.
fn seal_of(mac: &[u8], version: &[u8], tail: &[u8]) -> [u8; 8] {
    let sum = Sha1::new().chain_update(mac).chain_update(version).chain_update(tail).finalize();
    let mut seal = [0; 8];
    seal.copy_from_slice(sum.get(..8).unwrap_or(&[0; 8]));
    seal
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::app::App;
    use crate::cluster::envelope::EnvelopeBody;
    use crate::protocol::member::UserId;

    fn seals(secret: &str) -> EnvelopeSeals {
        let apps = Apps::new(vec![App::new("a", "k", secret)]).unwrap();
        EnvelopeSeals::new(Arc::new(ArcSwap::from_pointee(apps)))
    }

    fn envelope(body: EnvelopeBody) -> Envelope {
        let (delivered, whisper, again) = (true, false, false);
        Envelope { origin: 7, serial: 9, version: 12, sent: 5, delivered, whisper, again, body }
    }

    /// As the script does it.
    fn scripted(parts: &EnvelopeParts, version: u64, tail: &str) -> Vec<u8> {
        let version = format!("{version:0DIGITS$}");
        let seal = seal_of(&parts.mac, version.as_bytes(), tail.as_bytes());
        let head = [&parts.head[..SEAL.start], &seal, version.as_bytes()].concat();
        [head, if tail.is_empty() { parts.rest.clone() } else { tail.into() }].concat()
    }

    #[test]
    fn only_what_was_sent_is_believed() {
        let (seals, app) = (seals("s"), AppId::new("a"));
        let event = EnvelopeBody::Event { except: None, frame: Bytes::from_static(b"\x81\x01x") };
        let left = EnvelopeBody::Left { user: UserId::parse("u").unwrap() };
        let probe = envelope(EnvelopeBody::Probe);
        let count = EnvelopeBody::Count { count: 3 };
        let sent = [
            scripted(&seals.sealed_parts(&app, "t", &envelope(event.clone())), 12, ""),
            scripted(&seals.sealed_parts(&app, "t", &envelope(left)), 12, "u"),
            scripted(&seals.parts_of_left(&app, "t", &probe), 12, "v"),
            seals.encode_sealed(&app, "t", &envelope(count)),
            seals.encode_sealed(&app, "t", &Envelope { version: 0, ..envelope(event) }),
        ];
        for bytes in sent {
            assert!(is_sealed(&bytes) && seals.is_valid(&app, "t", &bytes));
            assert!(!seals.is_valid(&app, "u", &bytes), "on another topic");
            assert!(!seals.is_valid(&AppId::new("b"), "t", &bytes), "an app that is not known");
            assert!(!self::seals("other").is_valid(&app, "t", &bytes), "with another secret");
            let mut other = self::seals("s");
            other.set_database(1);
            assert!(!other.is_valid(&app, "t", &bytes), "in another database");
            for at in 1..bytes.len() {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << (at % 8);
                assert!(!seals.is_valid(&app, "t", &bytes), "byte {at}");
            }
            assert!(!seals.is_valid(&app, "t", &bytes[..20]));
        }
    }

    #[test]
    fn a_secret_that_changes_is_believed_while_it_is_a_previous_one() {
        let (old, app) = (seals("old"), AppId::new("a"));
        let mut changed = App::new("a", "k", "new");
        changed.signer = changed.signer.clone().with_previous(["old"]);
        let apps = Apps::new(vec![changed]).unwrap();
        let new = EnvelopeSeals::new(Arc::new(ArcSwap::from_pointee(apps)));
        let count = envelope(EnvelopeBody::Count { count: 3 });
        assert!(new.is_valid(&app, "t", &old.encode_sealed(&app, "t", &count)));
        // Nodes that have not been told of the new one yet believe it too.
        assert!(old.is_valid(&app, "t", &new.encode_sealed(&app, "t", &count)));
    }

    #[test]
    fn an_app_that_has_gone_can_say_its_last() {
        let (seals, app) = (seals("s"), AppId::new("a"));
        let count = envelope(EnvelopeBody::Count { count: 0 });
        seals.encode_sealed(&app, "t", &count);
        seals.apps.store(Arc::new(Apps::new(Vec::new()).unwrap()));
        let bytes = seals.encode_sealed(&app, "t", &count);
        assert!(is_sealed(&bytes) && seals.is_valid(&app, "t", &bytes));
    }
}
