//! Interleaving: units that follow one another travel apart, so that a burst of losses becomes single gaps.
//!
//! Guarantee   a burst of up to `depth` lost packets leaves gaps of one unit each, in groups three or more wide; no unit is moved outside its group of
//!             `depth` times `width` units, so what it costs in delay is known beforehand.
//! Source      van Steen & Tanenbaum, "Distributed Systems", enforcing quality of service (interleaved transmission).
//! Limits      depth and width are 1 to 65,535.

/// The order in which the units of a group travel: written by rows, read by columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interleaver {
    depth: u64,
    width: u64,
}

impl Interleaver {
    /// Groups of `depth * width` units: neighbours travel `depth` apart, and what travels together was `width` apart. Zero is
    /// taken as one; a depth of 1 changes nothing.
    pub fn new(depth: u16, width: u16) -> Self {
        Self { depth: u64::from(depth.max(1)), width: u64::from(width.max(1)) }
    }

    /// Units of a group; the sender needs all of them before the last one leaves.
    pub const fn group(self) -> u64 {
        self.depth * self.width
    }

    /// When the unit with this number travels, counted in units.
    pub const fn travels_as(self, unit: u64) -> u64 {
        let (group, at) = (unit / self.group(), unit % self.group());
        group * self.group() + at % self.width * self.depth + at / self.width
    }

    /// Which unit travels at this place.
    pub const fn unit_at(self, place: u64) -> u64 {
        let (group, at) = (place / self.group(), place % self.group());
        group * self.group() + at % self.depth * self.width + at / self.depth
    }
}

/// Which block of an erasure code a unit belongs to when `depth` blocks are filled in turn: the units themselves travel in
/// their order, without waiting, and a burst of losses is shared by the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    depth: u64,
    shards: u64,
}

impl Blocks {
    /// `depth` blocks of `shards` shards each are under way at a time; zero is taken as one.
    pub fn new(depth: u16, shards: u16) -> Self {
        Self { depth: u64::from(depth.max(1)), shards: u64::from(shards.max(1)) }
    }

    /// The block of a shard that travels at this place, and its place in the block.
    pub const fn place(self, at: u64) -> (u64, usize) {
        let (group, at) = (at / (self.depth * self.shards), at % (self.depth * self.shards));
        (group * self.depth + at % self.depth, (at / self.depth) as usize)
    }

    /// The deepest interleaving of blocks of `shards` shards, one each `interval_nanos`, for which repair takes no longer than
    /// `delay_nanos`; at least 1, which may take longer.
    pub fn depth_within(shards: u16, interval_nanos: u64, delay_nanos: u64) -> u16 {
        let block = u64::from(shards).saturating_mul(interval_nanos);
        let depth = delay_nanos.checked_div(block).unwrap_or(1).max(1);
        u16::try_from(depth).unwrap_or(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn m04_a_lost_packet_of_interleaved_frames_leaves_single_gaps_as_in_the_textbooks_figure() {
        // Sixteen frames, four to a packet, and the third packet is lost.
        let lost_of = |interleaver: Interleaver| {
            let frames = (8..12).map(|place| interleaver.unit_at(place) + 1);
            let mut frames: Vec<_> = frames.collect();
            frames.sort_unstable();
            frames
        };
        assert_eq!(lost_of(Interleaver::new(1, 16)), [9, 10, 11, 12], "one gap of four");
        assert_eq!(lost_of(Interleaver::new(4, 4)), [3, 7, 11, 15], "four gaps of one");
    }

    proptest! {
        #[test]
        fn m04_a_burst_no_longer_than_the_depth_leaves_no_two_neighbours_lost(
            depth in 1u16..40, width in 3u16..40, burst_at in 0u64..5_000,
        ) {
            let interleaver = Interleaver::new(depth, width);
            for at in 0..2 * interleaver.group() {
                prop_assert_eq!(interleaver.unit_at(interleaver.travels_as(at)), at);
                prop_assert_eq!(interleaver.unit_at(at) / interleaver.group(), at / interleaver.group());
            }
            // Within one group: the ends of two groups may meet.
            let burst_at = burst_at % (interleaver.group() - u64::from(depth) + 1);
            let mut lost: Vec<_> = (0..u64::from(depth)).map(|i| interleaver.unit_at(burst_at + i)).collect();
            lost.sort_unstable();
            prop_assert!(lost.windows(2).all(|two| two[1] - two[0] > 1), "{:?}", lost);
        }

        #[test]
        fn m04_every_block_gets_its_shards_once(depth in 1u16..20, shards in 1u16..40) {
            let blocks = Blocks::new(depth, shards);
            let all = 3 * u64::from(depth) * u64::from(shards);
            let mut places: Vec<_> = (0..all).map(|at| blocks.place(at)).collect();
            // A burst of `depth` takes one of each block.
            for burst in places.windows(usize::from(depth)) {
                let mut hit: Vec<_> = burst.iter().map(|place| place.0).collect();
                hit.sort_unstable();
                hit.dedup();
                prop_assert_eq!(hit.len(), usize::from(depth));
            }
            places.sort_unstable();
            let expected: Vec<_> = (0..3 * u64::from(depth))
                .flat_map(|block| (0..usize::from(shards)).map(move |shard| (block, shard)))
                .collect();
            prop_assert_eq!(places, expected);
        }
    }

    #[test]
    fn m04_the_depth_is_what_the_delay_allows() {
        assert_eq!(Blocks::depth_within(24, 5_000_000, 500_000_000), 4);
        assert_eq!(Blocks::depth_within(24, 20_000_000, 100_000_000), 1);
        assert_eq!(Blocks::depth_within(1, 0, 1), 1);
    }

    /// Two states, good and bad; every unit in the bad one is lost.
    struct Gilbert {
        state: u64,
        bad: bool,
    }

    impl Gilbert {
        fn loses(&mut self) -> bool {
            self.state =
                self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let chance = (self.state >> 32) as f64 / 4_294_967_296.0;
            self.bad = if self.bad { chance >= 0.3 } else { chance < 0.01 };
            self.bad
        }
    }

    #[test]
    fn m04_interleaved_parity_under_gilbert_losses_leaves_the_losses_that_theory_says() {
        // 20 shards of which 4 are parity, p = 0.01, r = 0.3.
        for (depth, expected, within) in [(1, 1.75, 0.1), (2, 0.82, 0.1), (4, 0.23, 0.1), (8, 0.040, 0.3)] {
            let blocks = Blocks::new(depth, SHARDS);
            let mut weather = Gilbert { state: 5, bad: false };
            let (mut lost, mut unrepaired, mut units) = (0u64, 0u64, 0u64);
            for _ in 0..400_000 / u64::from(depth) {
                let mut group = vec![[0u32; 2]; usize::from(depth)];
                for at in 0..u64::from(depth) * u64::from(SHARDS) {
                    let (block, shard) = blocks.place(at);
                    if weather.loses() {
                        group[block as usize][usize::from(shard >= DATA)] += 1;
                    }
                }
                for [data, parity] in group {
                    lost += u64::from(data);
                    units += DATA as u64;
                    unrepaired += if data + parity > 4 { u64::from(data) } else { 0 };
                }
            }
            let percent = 100.0 * unrepaired as f64 / units as f64;
            let raw = 100.0 * lost as f64 / units as f64;
            println!("depth {depth}: raw {raw:.2} residual {percent:.3}");
            assert!((raw / 3.23 - 1.0).abs() < 0.05);
            assert!(
                (percent / expected - 1.0).abs() <= within,
                "{percent:.3} % at depth {depth}, not {expected} %"
            );
        }
    }

    const SHARDS: u16 = 24;
    const DATA: usize = 20;
}
