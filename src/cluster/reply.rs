//! Reads Redis replies as strings, numbers and lists. A reply of an unexpected shape reads as nothing, which no caller
//! takes for success.

use redis::Value;

/// Text of either kind that Redis has.
pub(super) fn as_bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

/// `None` for what is not UTF-8.
pub(super) fn as_text(value: &Value) -> Option<&str> {
    std::str::from_utf8(as_bytes(value)?).ok()
}

/// A number, or a text of digits, as hashes hold them.
pub(super) fn as_number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => as_text(value)?.parse().ok(),
    }
}

/// Anything else is an empty list.
pub(super) fn as_list(value: &Value) -> &[Value] {
    match value {
        Value::Array(items) | Value::Set(items) => items,
        _ => &[],
    }
}

/// Field and value of each entry of a hash.
pub(super) fn hash_pairs(value: &Value) -> Vec<(&Value, &Value)> {
    match value {
        Value::Map(pairs) => pairs.iter().map(|(field, value)| (field, value)).collect(),
        _ => as_list(value)
            .chunks_exact(2)
            .filter_map(|pair| match pair {
                [field, value] => Some((field, value)),
                _ => None,
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    /// A number is an integer to one command and digits to another, depending on how it is kept.
    #[test]
    fn numbers_come_as_integers_and_as_digits() {
        assert_eq!(as_number(&Value::Int(7)), Some(7));
        assert_eq!(as_number(&text("7")), Some(7));
        assert_eq!(as_number(&Value::SimpleString("7".into())), Some(7));
        for wrong in [Value::Int(-1), text("-1"), text("7 "), text(""), Value::Nil] {
            assert_eq!(as_number(&wrong), None, "{wrong:?}");
        }
    }

    /// RESP3 has maps, RESP2 lists of fields and values.
    #[test]
    fn a_hash_is_read_from_either_protocol() {
        let pairs = [(text("a"), text("1")), (text("b"), text("2"))];
        let map = Value::Map(pairs.to_vec());
        let list = Value::Array(pairs.into_iter().flat_map(|(a, b)| [a, b]).collect());
        let read = |value| -> Vec<(String, Option<u64>)> {
            let of = |(field, number): (&Value, &Value)| {
                (as_text(field).unwrap().to_owned(), as_number(number))
            };
            hash_pairs(value).into_iter().map(of).collect()
        };
        assert_eq!(read(&map), [("a".to_owned(), Some(1)), ("b".to_owned(), Some(2))]);
        assert_eq!(read(&list), read(&map));
        assert!(read(&Value::Nil).is_empty());
    }
}
