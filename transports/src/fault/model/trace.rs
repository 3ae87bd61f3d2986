//! A running hash of everything that happened, to compare two runs by one number.
//!
//! Guarantee   the same sequence of writes gives the same value on every platform: widths are fixed, bytes are taken in
//!             little-endian order. A derived `Hash` may feed it as well.
//! Source      multiply and rotate per word, in the manner of FNV-1a over 64-bit words, with a final avalanche.
//! Limits      finds accidents, not adversaries.

use std::hash::Hasher;

/// A running 64-bit hash of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceHash {
    state: u64,
    words: u64,
}

impl TraceHash {
    /// The hash of nothing.
    pub const fn new() -> Self {
        Self { state: 0xCBF2_9CE4_8422_2325, words: 0 }
    }

    /// Adds one word.
    pub const fn word(&mut self, word: u64) {
        // The rotation carries high bits down: multiplication alone only moves them up and out.
        self.state = (self.state ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        self.words += 1;
    }

    /// Adds bytes and their number.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
    }

    /// The value so far; the trace may go on.
    pub const fn value(&self) -> u64 {
        let mut value = self.state ^ self.words;
        value = (value ^ (value >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        value = (value ^ (value >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        value ^ (value >> 32)
    }
}

impl Default for TraceHash {
    fn default() -> Self {
        Self::new()
    }
}

impl Hasher for TraceHash {
    fn finish(&self) -> u64 {
        self.value()
    }

    fn write(&mut self, bytes: &[u8]) {
        self.bytes(bytes);
    }

    // The defaults hand over native-endian bytes, and `usize` with the platform's width.
    fn write_u8(&mut self, value: u8) {
        self.word(u64::from(value));
    }

    fn write_u16(&mut self, value: u16) {
        self.word(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.word(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.word(value);
    }

    fn write_u128(&mut self, value: u128) {
        self.word(value as u64);
        self.word((value >> 64) as u64);
    }

    fn write_usize(&mut self, value: usize) {
        self.word(value as u64);
    }

    fn write_i8(&mut self, value: i8) {
        self.word(i64::from(value) as u64);
    }

    fn write_i16(&mut self, value: i16) {
        self.word(i64::from(value) as u64);
    }

    fn write_i32(&mut self, value: i32) {
        self.word(i64::from(value) as u64);
    }

    fn write_i64(&mut self, value: i64) {
        self.word(value as u64);
    }

    fn write_i128(&mut self, value: i128) {
        self.write_u128(value as u128);
    }

    fn write_isize(&mut self, value: isize) {
        self.word(value as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_length_and_content_count() {
        let hash = |parts: &[&[u8]]| {
            let mut trace = TraceHash::new();
            parts.iter().for_each(|part| trace.bytes(part));
            trace.value()
        };
        let all = [
            hash(&[]),
            hash(&[b""]),
            hash(&[b"", b""]),
            hash(&[b"a"]),
            hash(&[b"a\0"]),
            hash(&[b"a", b"b"]),
            hash(&[b"b", b"a"]),
            hash(&[b"ab"]),
        ];
        let mut distinct = all.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn the_value_of_a_known_trace_never_changes() {
        let mut trace = TraceHash::new();
        trace.bytes(b"quorate");
        trace.word(7);
        assert_eq!(trace.value(), KNOWN);
    }

    /// Written down once; another value would make every recorded trace worthless.
    const KNOWN: u64 = 16_348_481_545_792_771_652;
}
