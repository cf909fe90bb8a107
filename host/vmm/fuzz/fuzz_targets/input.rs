//! What is left of a fuzzer's input, taken from its front.

pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    /// The next byte; none at the end.
    pub fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// The next `N` bytes as a number; zeros behind the end.
    pub fn number<const N: usize>(&mut self) -> u64 {
        (0..N).fold(0, |sum, _| sum << 8 | u64::from(self.byte().unwrap_or(0)))
    }
}
