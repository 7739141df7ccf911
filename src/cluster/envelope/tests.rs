//! Encoding and decoding envelopes, and rejecting invalid bytes.

use super::*;

fn all() -> Vec<Envelope> {
    let user = UserId::parse("ü\"7").unwrap();
    let socket = Some(SocketId { node: 7, number: u64::MAX });
    let frame = Bytes::from_static(b"\x81\x02{}");
    let data = Bytes::from_static(b"\"x\"");
    let version = 1_700_000_000_000_001;
    let bodies = [
        EnvelopeBody::Event { except: socket, frame: frame.clone() },
        EnvelopeBody::Event { except: None, frame: Bytes::new() },
        EnvelopeBody::Cached { except: None, frame, data },
        EnvelopeBody::Joined { user: user.clone(), info: "{\"a\":1}".into() },
        EnvelopeBody::Left { user: user.clone() },
        EnvelopeBody::Count { count: 12 },
        EnvelopeBody::Terminate { waited: 6, app: AppId::new("a"), user: user.clone() },
        EnvelopeBody::Probe,
        EnvelopeBody::Reconnect { waited: 6, app: AppId::new("a"), user: user.clone() },
        EnvelopeBody::Withdraw {
            waited: 6,
            request: 8,
            app: AppId::new("a"),
            user,
            channels: ["private-a", "b"].map(|n| ChannelName::parse(n, 200).unwrap()).into(),
        },
        EnvelopeBody::Done { request: 8, app: AppId::new("a") },
        EnvelopeBody::TakeOver { request: 8, app: AppId::new("a"), key: "k".into() },
        EnvelopeBody::HandedOver { request: 8, app: AppId::new("a"), record: "r".into() },
        EnvelopeBody::Trace { mark: 8, app: AppId::new("a"), trace: "t".into() },
    ];
    let (origin, serial, sent, whisper, again) = (3, 4, 5, true, true);
    let envelope = |(at, body): (usize, EnvelopeBody)| {
        // Some have none, and a probe never has.
        let version = if at % 5 == 1 || body == EnvelopeBody::Probe { 0 } else { version };
        Envelope { origin, serial, version, sent, delivered: true, whisper, again, body }
    };
    bodies.into_iter().enumerate().map(envelope).collect()
}

#[test]
fn reads_what_it_writes() {
    for envelope in all() {
        let bytes = Bytes::from(envelope.encode());
        assert_eq!(Envelope::decode(&bytes), Ok(envelope.clone()));
        assert_eq!(bytes[4..20], envelope.id_bytes());
        if envelope.body != EnvelopeBody::Probe {
            let version = envelope.version;
            let (head, rest) = envelope.encode_around_version();
            assert_eq!(join_parts(&head, version, &rest), bytes);
        }
    }
}

#[test]
fn nothing_breaks_it() {
    for envelope in all() {
        let bytes = envelope.encode();
        for end in 0..bytes.len() {
            let _ = Envelope::decode(&Bytes::copy_from_slice(&bytes[..end]));
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << bit;
                let _ = Envelope::decode(&bytes.into());
            }
        }
    }
    for garbage in ["", "\0", "hello", "{\"uuid\":\"x\",\"appId\":1}"] {
        let decoded = Envelope::decode(&Bytes::from_static(garbage.as_bytes()));
        assert_eq!(decoded, Err(EnvelopeError::Garbage), "{garbage:?}");
    }
}

#[test]
fn newer_nodes_are_understood_or_skipped() {
    for envelope in all() {
        let mut bytes = envelope.encode();
        bytes[0] = VERSION + 1;
        assert_eq!(Envelope::decode(&bytes.clone().into()), Ok(envelope));
        bytes[1] = TRACE + 1;
        assert_eq!(Envelope::decode(&bytes.into()), Err(EnvelopeError::Newer(TRACE + 1)));
    }
}

#[test]
fn kinds_that_first_nodes_do_not_know_say_so() {
    for envelope in all() {
        let bytes = envelope.encode();
        assert_eq!(bytes[0] > FIRST_VERSION, bytes[1] > PROBE, "{envelope:?}");
    }
}
