//! Dice, from a seed.

use crate::queue::Micros;

/// Dice of one purpose. Each part of the world has its own, so that taking a fault out of a history changes little of
/// what else happens in it.
#[derive(Clone, Debug)]
pub(crate) struct Random(fastrand::Rng);

impl Random {
    pub(crate) fn new(seed: u64, purpose: &str) -> Self {
        // FNV-1a.
        let purpose = purpose.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        let mut random = fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ purpose);
        // The first numbers of like seeds are alike.
        random.u64(..);
        random.u64(..);
        Self(random)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0.usize(..bound.max(1))
    }

    /// A time from `least` to `most`.
    pub(crate) fn between(&mut self, least: Micros, most: Micros) -> Micros {
        self.0.u64(least..=most.max(least))
    }

    /// A time from `least` to `most`: as often from each power of two.
    pub(crate) fn spread(&mut self, least: Micros, most: Micros) -> Micros {
        let (low, high) = (least.max(1).ilog2(), most.max(1).ilog2());
        let power = self.0.u32(low..=high);
        self.between(1 << power, (2 << power) - 1).clamp(least, most)
    }

    /// Whether something happens that happens so many times in a thousand.
    pub(crate) fn chance(&mut self, in_thousand: u64) -> bool {
        self.0.u64(..1000) < in_thousand
    }

    pub(crate) fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0.u64(..)
    }
}
