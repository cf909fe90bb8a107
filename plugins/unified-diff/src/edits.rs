//! The edit script between two texts, in bounded time.
//!
//! Myers' algorithm is quadratic when two long texts share few, often repeated lines, which is what
//! a hostile guest would write. Over its budget, the texts are first cut at lines that occur once
//! on both sides (as patience diff does); a stretch that is still too costly is replaced as a whole.
//! The result is a correct diff in every case, only not the shortest one.

use std::collections::HashMap;
use std::ops::Range;

use imara_diff::{Algorithm, Diff, Hunk, InternedInput, Token};

/// How much a caller spends on finding short diffs, over one file or many.
///
/// One unit is one pair of an old and a new line that may have to be compared.
#[derive(Debug, Clone)]
pub struct DiffBudget(u64);

impl Default for DiffBudget {
    /// About one second of work: 20,000 changed lines against 20,000.
    fn default() -> Self {
        DiffBudget(400_000_000)
    }
}

impl DiffBudget {
    /// Takes the cost of comparing two stretches, when there is enough left.
    fn take(&mut self, old: usize, new: usize) -> bool {
        let cost = (old as u64).saturating_mul(new as u64);
        let enough = cost <= self.0;
        if enough {
            self.0 -= cost;
        }
        enough
    }
}

/// Returns the changed ranges, in order, with at least one common line between two of them.
pub(crate) fn changes(input: &InternedInput<&[u8]>, budget: &mut DiffBudget) -> Vec<Hunk> {
    let (old, new) = (&input.before[..], &input.after[..]);
    let lead = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let shorter = old.len().min(new.len()) - lead;
    let tail = old.iter().rev().zip(new.iter().rev()).take(shorter).take_while(|(a, b)| a == b).count();
    let middle = Stretch { old: lead..old.len() - tail, new: lead..new.len() - tail };

    if budget.take(middle.old.len(), middle.new.len()) {
        // Git's own short cuts, and the places of changes that a reader of git diffs expects.
        let mut diff = Diff::compute(Algorithm::Myers, input);
        diff.postprocess_lines(input);
        return diff.hunks().collect();
    }
    let mut out = Vec::new();
    let mut from = (middle.old.start, middle.new.start);
    for (old_at, new_at) in anchors(input, &middle) {
        Stretch { old: from.0..old_at, new: from.1..new_at }.compare(old, new, budget, &mut out);
        from = (old_at + 1, new_at + 1);
    }
    Stretch { old: from.0..middle.old.end, new: from.1..middle.new.end }.compare(old, new, budget, &mut out);
    out
}

/// Ranges of both sides between two common lines.
struct Stretch {
    old: Range<usize>,
    new: Range<usize>,
}

impl Stretch {
    fn compare(self, old: &[Token], new: &[Token], budget: &mut DiffBudget, out: &mut Vec<Hunk>) {
        if self.old.is_empty() && self.new.is_empty() {
            return;
        }
        let (at_old, at_new) = (to_u32(self.old.start), to_u32(self.new.start));
        if !budget.take(self.old.len(), self.new.len()) {
            out.push(Hunk { before: at_old..to_u32(self.old.end), after: at_new..to_u32(self.new.end) });
            return;
        }
        let old = old.get(self.old).unwrap_or_default();
        let new = new.get(self.new).unwrap_or_default();
        let tokens = old.iter().chain(new).map(|token| token.0).max().map_or(0, |top| top + 1);
        let mut diff = Diff::default();
        diff.compute_with(Algorithm::Myers, old, new, tokens);
        out.extend(diff.hunks().map(|hunk| Hunk {
            before: hunk.before.start + at_old..hunk.before.end + at_old,
            after: hunk.after.start + at_new..hunk.after.end + at_new,
        }));
    }
}

/// Lines that occur once in each stretch, in an order that is the same on both sides: the longest
/// such sequence.
fn anchors(input: &InternedInput<&[u8]>, middle: &Stretch) -> Vec<(usize, usize)> {
    let unique = |tokens: &[Token], range: &Range<usize>| {
        let mut places: HashMap<u32, Option<usize>> = HashMap::new();
        for at in range.clone() {
            if let Some(token) = tokens.get(at) {
                places.entry(token.0).and_modify(|place| *place = None).or_insert(Some(at));
            }
        }
        places
    };
    let old = unique(&input.before, &middle.old);
    let new = unique(&input.after, &middle.new);
    let mut pairs: Vec<(usize, usize)> =
        old.iter().filter_map(|(token, at)| Some(((*at)?, (*new.get(token)?)?))).collect();
    pairs.sort_unstable();
    longest_increasing(&pairs)
}

/// The longest subsequence of `pairs` (sorted by the first number) whose second number grows.
fn longest_increasing(pairs: &[(usize, usize)]) -> Vec<(usize, usize)> {
    // For each length, the pair that ends such a sequence with the least second number.
    let mut ends: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = Vec::with_capacity(pairs.len());
    for (index, pair) in pairs.iter().enumerate() {
        let length = ends.partition_point(|end| pairs.get(*end).is_some_and(|end| end.1 < pair.1));
        before.push(length.checked_sub(1).and_then(|length| ends.get(length).copied()));
        match ends.get_mut(length) {
            Some(end) => *end = index,
            None => ends.push(index),
        }
    }
    let mut out = Vec::with_capacity(ends.len());
    let mut at = ends.last().copied();
    while let Some(pair) = at.and_then(|index| pairs.get(index)) {
        out.push(*pair);
        at = at.and_then(|index| before.get(index).copied().flatten());
    }
    out.reverse();
    out
}

fn to_u32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_growing_sequence_is_found() {
        let pairs = [(0, 5), (1, 1), (2, 2), (3, 9), (4, 3)];
        assert_eq!(longest_increasing(&pairs), [(1, 1), (2, 2), (4, 3)]);
        assert!(longest_increasing(&[]).is_empty());
    }
}
