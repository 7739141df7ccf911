//! Hash slots of a Redis Cluster: the slot of a name, the server of a slot, and redirections.

use redis::{Arg, Cmd, ServerError, Value};

use crate::cluster::reply;

/// Slots of a Redis Cluster.
pub(super) const SLOTS: u16 = 16_384;

/// The error of a script that needs a key of another server.
const NOT_LOCAL: &str = "attempted to access a non local key";

/// Host and port of a server.
pub(super) type HostPort = (String, u16);

/// The slot of a key or topic: of what stands in its first pair of braces, if anything does.
pub(super) fn of_name(name: &[u8]) -> u16 {
    let tag = || {
        let rest = name.split_at_checked(name.iter().position(|byte| *byte == b'{')? + 1)?.1;
        let end = rest.iter().position(|byte| *byte == b'}')?;
        rest.get(..end).filter(|tag| !tag.is_empty())
    };
    crc16(tag().unwrap_or(name)) % SLOTS
}

/// CRC-16 as XMODEM has it, which Redis Cluster's specification asks for.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    })
}

/// The slot of a command: of its first key, or of its topic. `None` for one that any server takes.
pub(super) fn of_command(command: &Cmd) -> Option<u16> {
    let mut words = command.args_iter().filter_map(|arg| match arg {
        Arg::Simple(word) => Some(word),
        _ => None,
    });
    // The script and the number of keys stand in front of them.
    let before = if words.next()? == b"EVALSHA" { 2 } else { 0 };
    words.nth(before).map(of_name)
}

/// The keys of a command: of a script all that it is given.
pub(super) fn keys_of_command(command: &Cmd) -> Vec<Vec<u8>> {
    let words = command.args_iter().filter_map(|arg| match arg {
        Arg::Simple(word) => Some(word.to_vec()),
        _ => None,
    });
    let mut words = words.peekable();
    let is_script = words.next().is_some_and(|word| word == b"EVALSHA");
    let count = match is_script {
        true => words.nth(1).and_then(|count| String::from_utf8(count).ok()?.parse().ok()),
        false => Some(1),
    };
    words.take(count.unwrap_or(0)).collect()
}

/// The first number from `from` on such that a name with it in braces is kept by a server. With no slots one server has
/// all.
pub(super) fn tag_for_slot(slots: &[u16], server: u16, from: u16) -> Option<u16> {
    (from..SLOTS).find(|tag| owner_of_tag(slots, *tag) == server)
}

/// The place of the server that keeps names with a number in braces.
pub(super) fn owner_of_tag(slots: &[u16], tag: u16) -> u16 {
    let slot = of_name(tag.to_string().as_bytes());
    // A slot outside the table belongs to the first server, which redirects the command if it is another's.
    slots.get(usize::from(slot)).copied().unwrap_or_default()
}

/// The owners of slots by `CLUSTER SLOTS`: first and last slot, and the master's address. An address without a host
/// is that of the server that was asked.
pub(super) fn slot_ranges(value: &Value, asked: &str) -> Vec<(u16, u16, HostPort)> {
    let range = |range: &Value| {
        let [first, last, master, ..] = reply::as_list(range) else { return None };
        let [host, port, ..] = reply::as_list(master) else { return None };
        let host = reply::as_text(host).filter(|host| !host.is_empty()).unwrap_or(asked);
        let number = |value| u16::try_from(reply::as_number(value)?).ok();
        let (first, last) = (number(first)?, number(last)?);
        Some((first, last.min(SLOTS - 1), (host.to_owned(), number(port)?)))
    };
    reply::as_list(value).iter().filter_map(range).collect()
}

/// Where an answer points to.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Redirect {
    /// The slot is another server's from now on.
    Moved(u16, HostPort),
    /// This one command is another server's, while a slot moves.
    Ask(HostPort),
    /// Its keys are partly here and partly there.
    Later,
    /// The key of the lease that it writes for is kept by another server.
    Lease,
}

impl Redirect {
    /// `MOVED 3999 127.0.0.1:6381`; an empty host is the server that answered (Redis Cluster's
    /// specification, "MOVED Redirection").
    pub(super) fn of_error(error: &ServerError, asked: &str) -> Option<Self> {
        let at = |address: &str| {
            let (host, port) = address.rsplit_once(':')?;
            let host = if host.is_empty() { asked } else { host };
            Some((host.to_owned(), port.parse().ok()?))
        };
        // Only `MOVED` and `ASK` carry a slot and an address behind their code.
        match (error.code(), error.details().unwrap_or_default().split_once(' ')) {
            ("MOVED", Some((slot, address))) => {
                let slot = slot.parse().ok().filter(|slot| *slot < SLOTS)?;
                Some(Self::Moved(slot, at(address)?))
            }
            ("ASK", Some((_, address))) => Some(Self::Ask(at(address)?)),
            ("TRYAGAIN", _) => Some(Self::Later),
            _ if error.details().is_some_and(|text| text.contains(NOT_LOCAL)) => Some(Self::Lease),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use redis::cmd;

    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        for (name, slot) in [("", 0), ("foo", 12_182), ("{foo}:x", 12_182), ("a{foo}{bar}", 12_182)]
        {
            assert_eq!(of_name(name.as_bytes()), slot, "{name}");
        }
        for (name, same) in [("a{}b", "a{}b"), ("{}{foo}", "{}{foo}"), ("x{{bar}}", "{bar")] {
            assert_eq!(of_name(name.as_bytes()), crc16(same.as_bytes()) % SLOTS, "{name}");
        }
    }

    #[test]
    fn a_command_goes_where_its_first_key_is() {
        let mut script = cmd("EVALSHA");
        script.arg("name").arg(2).arg("{foo}a").arg("{foo}b").arg("x");
        assert_eq!(of_command(&script), Some(12_182));
        let mut publish = cmd("SPUBLISH");
        publish.arg("{foo}").arg("bar");
        assert_eq!(of_command(&publish), Some(12_182));
        assert_eq!(of_command(&cmd("PING")), None);
        assert_eq!(keys_of_command(&script), [b"{foo}a".to_vec(), b"{foo}b".to_vec()]);
        assert_eq!(keys_of_command(&publish), [b"{foo}".to_vec()]);
        assert!(keys_of_command(&cmd("PING")).is_empty());
    }

    #[test]
    fn every_server_has_a_tag_of_its_own() {
        let slots: Vec<u16> = (0..SLOTS).map(|slot| slot / 5_462).collect();
        for server in 0..3 {
            let first = tag_for_slot(&slots, server, 0).unwrap();
            let second = tag_for_slot(&slots, server, first + 1).unwrap();
            for tag in [first, second] {
                let slot = of_name(format!("p:fence:{{{tag}}}").as_bytes());
                assert_eq!(slots[usize::from(slot)], server);
                assert_eq!(owner_of_tag(&slots, tag), server);
            }
        }
        assert_eq!(tag_for_slot(&slots, 3, 0), None);
        assert_eq!(tag_for_slot(&[], 0, 0), Some(0));
    }

    #[test]
    fn answers_that_point_elsewhere_are_read() {
        let parsed = |text: &str| match redis::parse_redis_value(text.as_bytes()) {
            Ok(Value::ServerError(error)) => Redirect::of_error(&error, "here"),
            other => panic!("{other:?}"),
        };
        let at = |host: &str| (host.to_owned(), 7000);
        assert_eq!(parsed("-MOVED 12 a:7000\r\n"), Some(Redirect::Moved(12, at("a"))));
        assert_eq!(parsed("-MOVED 12 ::1:7000\r\n"), Some(Redirect::Moved(12, at("::1"))));
        assert_eq!(parsed("-ASK 12 :7000\r\n"), Some(Redirect::Ask(at("here"))));
        assert_eq!(parsed("-TRYAGAIN Multiple keys\r\n"), Some(Redirect::Later));
        for other in ["-MOVED 16384 a:7000\r\n", "-MOVED 1\r\n", "-ERR MOVED 1 a:1\r\n"] {
            assert_eq!(parsed(other), None, "{other}");
        }
    }
}
