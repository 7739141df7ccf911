//! Somebody who hears what nodes tell each other and says it again: with one bit turned, or as it was.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::world::World;
use crate::support::Chance;

/// How long it goes on.
const TIME: Duration = Duration::from_millis(2500);
/// What it says at most, so that a storm stays one.
const MAX_FORGED: usize = 60;

pub fn corrupt(world: &World, chance: &mut Chance) {
    forge(world, |bytes| {
        let at = chance.below(bytes.len().max(1));
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1 << chance.below(8);
        }
    });
}

pub fn repeat(world: &World, _: &mut Chance) {
    forge(world, |_| {});
}

fn forge(world: &World, mut change: impl FnMut(&mut Vec<u8>)) {
    let (port, topics) =
        world.with_redis(|redis| (redis.port(), redis.ask(&["PUBSUB", "SHARDCHANNELS", "*"])));
    let [mut ear, mut mouth] = [(); 2].map(|()| TcpStream::connect(("127.0.0.1", port)).unwrap());
    ear.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    for topic in topics.lines() {
        ear.write_all(&command(&[b"SSUBSCRIBE", topic.as_bytes()])).unwrap();
    }
    let end = Instant::now() + TIME;
    let (mut heard, mut buffer) = (Vec::new(), [0; 16 << 10]);
    let mut forged: Vec<Vec<u8>> = Vec::new();
    while Instant::now() < end {
        if let Ok(count) = ear.read(&mut buffer) {
            heard.extend_from_slice(&buffer[..count]);
        }
        while let Some(mut words) = take_list(&mut heard) {
            let [kind, topic, payload] = &mut words[..] else { continue };
            // It hears itself too.
            if kind != b"smessage" || forged.len() >= MAX_FORGED || forged.contains(payload) {
                continue;
            }
            change(payload);
            mouth.write_all(&command(&[b"SPUBLISH", topic, payload])).unwrap();
            forged.push(std::mem::take(payload));
        }
    }
    println!("{} envelopes forged", forged.len());
}

fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Takes a whole list of strings and numbers off what was read.
fn take_list(bytes: &mut Vec<u8>) -> Option<Vec<Vec<u8>>> {
    let mut rest = &bytes[..];
    let count = number(line(&mut rest)?);
    let mut words = Vec::new();
    for _ in 0..count {
        let head = line(&mut rest)?;
        if !head.starts_with(b"$") {
            words.push(head.to_vec());
            continue;
        }
        let length = number(head);
        words.push(rest.get(..length)?.to_vec());
        rest = rest.get(length + 2..)?;
    }
    let taken = bytes.len() - rest.len();
    bytes.drain(..taken);
    Some(words)
}

fn line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    let (line, after) = rest.split_at(end);
    *rest = &after[2..];
    Some(line)
}

fn number(line: &[u8]) -> usize {
    std::str::from_utf8(&line[1..]).unwrap().parse().unwrap()
}

#[test]
fn lists_are_taken_off_whole() {
    let message = command(&[b"smessage", b"topic", b"\0\r\n\xff"]);
    let mut bytes = [&b"*3\r\n$10\r\nssubscribe\r\n$1\r\nt\r\n:1\r\n"[..], &message].concat();
    bytes.truncate(bytes.len() - 1);
    let words = take_list(&mut bytes).unwrap();
    assert_eq!(words, [&b"ssubscribe"[..], b"t", b":1"]);
    assert_eq!(take_list(&mut bytes), None);
    bytes.push(b'\n');
    assert_eq!(take_list(&mut bytes).unwrap()[2], b"\0\r\n\xff");
    assert!(bytes.is_empty());
}
