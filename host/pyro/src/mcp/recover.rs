//! Finding the id of a request that cannot be read, so that it is answered all the same.
//!
//! A client waits for every id it sent. A line that is too long, nests too deep, is not UTF-8 or stops half-way still
//! tells its id somewhere, first or last depending on the client. [`IdScanner`] finds it in one pass, without recursion
//! and without keeping the line.
//!
//! Deliberately absent: any other understanding of the message.

use serde_json::Value;

/// Longest id that is recovered, in bytes of JSON.
const MAX_ID_BYTES: usize = 256;
/// Longest key that matters is `method`; longer ones need not be kept.
const MAX_KEY_BYTES: usize = 16;

/// Reads the bytes of one message, in pieces of any size.
#[derive(Debug, Default)]
pub(crate) struct IdScanner {
    depth: u32,
    state: State,
    in_string: bool,
    escaped: bool,
    key: Vec<u8>,
    id: Vec<u8>,
    id_spoiled: bool,
    has_method: bool,
    not_an_object: bool,
}

/// Where the scanner is within the outermost object.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Key,
    Value,
    IdValue,
    Done,
}

impl IdScanner {
    /// Reads the next piece.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.step(byte);
        }
    }

    /// Returns the id when the message is a request with a usable one: a string or an integer.
    pub(crate) fn request_id(&self) -> Option<Value> {
        if !self.has_method || self.id_spoiled || self.not_an_object {
            return None;
        }
        match serde_json::from_slice(self.id.trim_ascii()).ok()? {
            Value::String(text) => Some(Value::String(text)),
            Value::Number(number) if number.is_i64() || number.is_u64() => Some(Value::Number(number)),
            _ => None,
        }
    }

    fn step(&mut self, byte: u8) {
        if self.not_an_object || self.state == State::Done {
            return;
        }
        if self.in_string {
            self.keep(byte);
            if self.escaped {
                self.escaped = false;
            } else if byte == b'\\' {
                self.escaped = true;
            } else if byte == b'"' {
                self.in_string = false;
            }
            return;
        }
        match byte {
            b'"' => {
                if self.depth == 1 && self.state == State::Key {
                    self.key.clear();
                }
                self.in_string = true;
                self.keep(byte);
            }
            b'{' | b'[' => {
                if self.depth == 0 && byte == b'[' {
                    self.not_an_object = true;
                }
                if self.state == State::IdValue {
                    self.id_spoiled = true;
                }
                self.depth = self.depth.saturating_add(1);
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth == 0 {
                    self.state = State::Done;
                }
            }
            b':' if self.depth == 1 && self.state == State::Key => {
                self.state = State::Value;
                match self.key.trim_ascii_end() {
                    b"\"id\"" => {
                        self.id.clear();
                        self.state = State::IdValue;
                    }
                    b"\"method\"" => self.has_method = true,
                    _ => {}
                }
            }
            b',' if self.depth == 1 => self.state = State::Key,
            _ if self.depth == 0 && !byte.is_ascii_whitespace() && !matches!(byte, 0xEF | 0xBB | 0xBF) => {
                self.not_an_object = true;
            }
            _ => self.keep(byte),
        }
    }

    fn keep(&mut self, byte: u8) {
        if self.depth != 1 {
            return;
        }
        match self.state {
            State::Key if self.key.len() < MAX_KEY_BYTES => self.key.push(byte),
            State::IdValue if self.id.len() < MAX_ID_BYTES => self.id.push(byte),
            State::IdValue => self.id_spoiled = true,
            _ => {}
        }
    }
}

/// Returns the id of the request in `message`, see [`IdScanner::request_id`].
pub(crate) fn request_id(message: &[u8]) -> Option<Value> {
    let mut scanner = IdScanner::default();
    scanner.push(message);
    scanner.request_id()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_id_is_found_first_and_last() {
        assert_eq!(request_id(br#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"#), Some(json!(7)));
        assert_eq!(
            request_id(br#"{"method":"x","params":{"id":1,"a":[{"id":2}]},"id" : "a,}b" }"#),
            Some(json!("a,}b"))
        );
        // Too large for rmcp, but the client's own.
        assert_eq!(request_id(br#"{"id":18446744073709551615,"method":"x"}"#), Some(json!(u64::MAX)));
        assert_eq!(request_id(b"\xEF\xBB\xBF {\"id\":-3,\"method\":\"x\"}"), Some(json!(-3)));
        assert_eq!(request_id(br#"{"id":"q\"uote","method":"x"}"#), Some(json!("q\"uote")));
    }

    #[test]
    fn a_message_is_read_in_pieces() {
        let message = br#"{"method":"tools/call","params":{"s":"\\\"{"},"id":12}"#;
        for size in 1..message.len() {
            let mut scanner = IdScanner::default();
            message.chunks(size).for_each(|piece| scanner.push(piece));
            assert_eq!(scanner.request_id(), Some(json!(12)), "pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_request_has_no_id() {
        for message in [
            &br#"{"id":1,"result":{}}"#[..],
            br#"{"method":"x","params":{"id":1}}"#,
            br#"{"id":null,"method":"x"}"#,
            br#"{"id":1.5,"method":"x"}"#,
            br#"{"id":{"a":1},"method":"x"}"#,
            br#"[{"id":1,"method":"x"}]"#,
            br#"hello "id":1 "method":2"#,
            br#""#,
            br#"{"method":"x","id":"#,
        ] {
            assert_eq!(request_id(message), None, "{}", String::from_utf8_lossy(message));
        }
    }

    #[test]
    fn a_deep_message_is_read_without_recursion() {
        let mut message = br#"{"id":5,"method":"tools/call","params":"#.to_vec();
        message.extend(std::iter::repeat_n(b'[', 1_000_000));
        assert_eq!(request_id(&message), Some(json!(5)));
    }

    #[test]
    fn an_endless_id_is_not_kept() {
        let mut message = br#"{"method":"x","id":""#.to_vec();
        message.extend(std::iter::repeat_n(b'a', 1_000_000));
        let mut scanner = IdScanner::default();
        scanner.push(&message);
        assert!(scanner.id.len() <= MAX_ID_BYTES);
        assert_eq!(scanner.request_id(), None);
    }
}
