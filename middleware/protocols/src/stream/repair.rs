//! Repairing a stream of units of any length: parity is made as they are sent, and lost ones are made of what came.
//!
//! Guarantee   units travel as they are, at once and in their order; of each block as many may be lost as it has parity. What is
//!             repaired is what was sent, bit for bit; parity that contradicts the units repairs nothing and is counted.
//! Method      unit n belongs to the block that [`Blocks`] says; in the code a unit is its length, its bytes and zeros.
//! Source      RFC 5109, RFC 8627 (parity beside the media, interleaved).
//! Limits      units of up to [`UNIT_MAX`] bytes; a receiver keeps the blocks of the last [`GROUPS_KEPT`] groups.

use std::collections::BTreeMap;

use super::erasure::{CodeError, ErasureCode, STRIPES};
use super::interleave::Blocks;

/// The longest unit in bytes: what two bytes can count and a multiple of eight can hold.
pub const UNIT_MAX: usize = 65_526;

/// Groups of blocks, each `depth` of them, whose shards a receiver keeps.
pub const GROUPS_KEPT: u64 = 3;

/// A parity shard, to be sent beside the units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parity {
    /// Its block, counted from the beginning of the stream.
    pub block: u64,
    /// Which of the block's parity shards it is.
    pub row: u16,
    /// Units of the block; fewer than usual only at the end of the stream.
    pub units: u16,
    /// Its bytes: as many as the longest unit of the block and two, rounded up to a multiple of eight.
    pub bytes: Vec<u8>,
}

/// The sender's side: makes parity.
#[derive(Debug, Clone)]
pub struct Protector {
    code: ErasureCode,
    blocks: Blocks,
    depth: u16,
    next: u64,
    /// The blocks that are being filled.
    open: Vec<Vec<Vec<u8>>>,
}

impl Protector {
    /// Blocks of `data` units with `parity` shards, `depth` of them filled in turn (zero is taken as one).
    ///
    /// # Errors
    /// [`CodeError::Shape`] when there is no such code.
    pub fn new(data: u16, parity: u16, depth: u16) -> Result<Self, CodeError> {
        let code = ErasureCode::new(usize::from(data), usize::from(parity))?;
        let depth = depth.max(1);
        let open = vec![Vec::new(); usize::from(depth)];
        Ok(Self { code, blocks: Blocks::new(depth, data), depth, next: 0, open })
    }

    /// Takes the next unit, which has the number of units before it, and gives the parity that is complete with it.
    ///
    /// # Errors
    /// [`CodeError::Length`] for a unit of more than [`UNIT_MAX`] bytes; it was not counted.
    pub fn handle_unit(&mut self, unit: &[u8]) -> Result<Vec<Parity>, CodeError> {
        if unit.len() > UNIT_MAX {
            return Err(CodeError::Length { length: unit.len(), other: UNIT_MAX });
        }
        let (block, _) = self.blocks.place(self.next);
        self.next += 1;
        let open = (block % u64::from(self.depth)) as usize;
        self.open[open].push(unit.to_vec());
        if self.open[open].len() < self.code.data() { Ok(Vec::new()) } else { self.close(block) }
    }

    /// Gives the parity of what is open, at the end of the stream or before a pause.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn finish(&mut self) -> Result<Vec<Parity>, CodeError> {
        let group = self.next / (u64::from(self.depth) * self.code.data() as u64);
        let first = group * u64::from(self.depth);
        let mut parity = Vec::new();
        for block in first..first + u64::from(self.depth) {
            parity.extend(self.close(block)?);
        }
        // The next unit begins a group, on either side.
        let size = u64::from(self.depth) * self.code.data() as u64;
        self.next = self.next.div_ceil(size) * size;
        Ok(parity)
    }

    /// The number of the next unit: [`finish`](Self::finish) leaves out the rest of a group.
    pub const fn next_unit(&self) -> u64 {
        self.next
    }

    fn close(&mut self, block: u64) -> Result<Vec<Parity>, CodeError> {
        let units = std::mem::take(&mut self.open[(block % u64::from(self.depth)) as usize]);
        if units.is_empty() {
            return Ok(Vec::new());
        }
        let length = units.iter().map(|unit| shard_length(unit.len())).max().unwrap_or(0);
        let count = u16::try_from(units.len()).unwrap_or(u16::MAX);
        let absent = std::iter::repeat_n(&[][..], self.code.data() - units.len());
        let data: Vec<Vec<u8>> =
            units.iter().map(Vec::as_slice).chain(absent).map(|unit| shard(unit, length)).collect();
        let mut parity = vec![vec![0; length]; self.code.parity()];
        self.code.encode(&data, &mut parity)?;
        let numbered = (0..).zip(parity);
        Ok(numbered.map(|(row, bytes)| Parity { block, row, units: count, bytes }).collect())
    }
}

/// The receiver's side: makes lost units.
#[derive(Debug, Clone)]
pub struct Repairer {
    code: ErasureCode,
    blocks: Blocks,
    depth: u64,
    kept: BTreeMap<u64, Block>,
    newest: u64,
    stats: RepairStats,
}

/// What a receiver has seen of a block.
#[derive(Debug, Clone)]
struct Block {
    units: Vec<Option<Vec<u8>>>,
    parity: Vec<Option<Vec<u8>>>,
    count: usize,
    length: usize,
    is_done: bool,
}

/// What a repairer has done; the totals only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RepairStats {
    /// Units that were made.
    pub repaired: u64,
    /// Units and parity shards that came too late, or with what no sender of this shape sends.
    pub refused: u64,
}

impl Repairer {
    /// Of the same shape as the sender's [`Protector`].
    ///
    /// # Errors
    /// [`CodeError::Shape`] when there is no such code.
    pub fn new(data: u16, parity: u16, depth: u16) -> Result<Self, CodeError> {
        let code = ErasureCode::new(usize::from(data), usize::from(parity))?;
        let depth = depth.max(1);
        let (blocks, depth) = (Blocks::new(depth, data), u64::from(depth));
        Ok(Self { code, blocks, depth, kept: BTreeMap::new(), newest: 0, stats: RepairStats::default() })
    }

    /// Takes a unit that came, and gives those that can be made now: their numbers and bytes.
    pub fn handle_unit(&mut self, number: u64, unit: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let (at, place) = self.blocks.place(number);
        let is_believable = unit.len() <= UNIT_MAX;
        let Some(block) = self.block(at).filter(|_| is_believable) else {
            self.stats.refused += 1;
            return Vec::new();
        };
        block.units[place].get_or_insert_with(|| unit.to_vec());
        self.repair(at)
    }

    /// Takes a parity shard that came, and gives the units that can be made now.
    pub fn handle_parity(&mut self, parity: Parity) -> Vec<(u64, Vec<u8>)> {
        let (row, units, length) = (usize::from(parity.row), usize::from(parity.units), parity.bytes.len());
        let is_believable = row < self.code.parity()
            && (1..=self.code.data()).contains(&units)
            && (STRIPES..=shard_length(UNIT_MAX)).contains(&length)
            && length.is_multiple_of(STRIPES);
        let Some(block) = self
            .block(parity.block)
            .filter(|_| is_believable)
            .filter(|block| block.length == 0 || (block.length, block.count) == (length, units))
        else {
            self.stats.refused += 1;
            return Vec::new();
        };
        (block.length, block.count) = (length, units);
        block.parity[row].get_or_insert(parity.bytes);
        self.repair(parity.block)
    }

    /// What has happened so far.
    pub const fn stats(&self) -> RepairStats {
        self.stats
    }

    /// The block, unless it is too old to be kept. What is new pushes out what is old.
    fn block(&mut self, at: u64) -> Option<&mut Block> {
        let kept = GROUPS_KEPT * self.depth;
        if at > self.newest {
            self.newest = at;
            self.kept.retain(|block, _| block.saturating_add(kept) > at);
        }
        if at.saturating_add(kept) <= self.newest {
            return None;
        }
        let (data, parity) = (self.code.data(), self.code.parity());
        Some(self.kept.entry(at).or_insert_with(|| Block {
            units: vec![None; data],
            parity: vec![None; parity],
            count: data,
            length: 0,
            is_done: false,
        }))
    }

    fn repair(&mut self, at: u64) -> Vec<(u64, Vec<u8>)> {
        let Some(block) = self.kept.get_mut(&at).filter(|block| !block.is_done) else { return Vec::new() };
        let missing: Vec<usize> = (0..block.count).filter(|place| block.units[*place].is_none()).collect();
        if block.length == 0 || missing.len() > block.parity.iter().flatten().count() {
            return Vec::new();
        }
        // Whatever comes of it: a second try would have the same shards.
        block.is_done = true;
        let length = block.length;
        let units = std::mem::take(&mut block.units);
        let fits = units.iter().flatten().all(|unit| shard_length(unit.len()) <= length);
        let present = units[..block.count].iter().map(|unit| unit.as_ref().map(|unit| shard(unit, length)));
        let absent = (block.count..self.code.data()).map(|_| Some(vec![0; length]));
        let mut shards: Vec<_> = present.chain(absent).chain(block.parity.drain(..)).collect();
        // Later copies find the places that they expect.
        (block.units, block.parity) = (vec![None; self.code.data()], vec![None; self.code.parity()]);
        if missing.is_empty() {
            return Vec::new();
        }
        let made = fits.then(|| self.code.reconstruct(&mut shards).ok()).flatten();
        let size = self.depth * self.code.data() as u64;
        let number = |place: usize| at / self.depth * size + place as u64 * self.depth + at % self.depth;
        let units =
            missing.iter().map(|place| Some((number(*place), unit(shards[*place].as_deref()?)?.to_vec())));
        match made.and_then(|_| units.collect::<Option<Vec<_>>>()) {
            Some(units) => {
                self.stats.repaired += units.len() as u64;
                units
            }
            None => {
                self.stats.refused += 1;
                Vec::new()
            }
        }
    }
}

/// How long the shard of a unit is: two bytes more, as a multiple of eight.
const fn shard_length(unit: usize) -> usize {
    (unit + 2).next_multiple_of(STRIPES)
}

fn shard(unit: &[u8], length: usize) -> Vec<u8> {
    let mut shard = Vec::with_capacity(length);
    shard.extend_from_slice(&u16::try_from(unit.len()).unwrap_or(u16::MAX).to_be_bytes());
    shard.extend_from_slice(unit);
    shard.resize(length, 0);
    shard
}

/// `None` when no unit makes such a shard.
fn unit(shard: &[u8]) -> Option<&[u8]> {
    let (length, rest) = shard.split_first_chunk::<2>()?;
    let (unit, zeros) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    zeros.iter().all(|byte| *byte == 0).then_some(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Chance(u64);

    impl Chance {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % limit
        }

        fn unit(&mut self) -> Vec<u8> {
            let length = if self.below(20) == 0 { 0 } else { self.below(1_200) };
            (0..length).map(|_| self.below(256) as u8).collect()
        }
    }

    #[test]
    fn m04_units_of_any_length_come_back_unless_a_block_has_lost_more_than_its_parity() {
        for seed in 0..60 {
            let mut chance = Chance(seed);
            let (data, parity) = (1 + chance.below(12) as u16, 1 + chance.below(4) as u16);
            let depth = 1 + chance.below(5) as u16;
            let mut protector = Protector::new(data, parity, depth).expect("a shape that is allowed");
            let mut repairer = Repairer::new(data, parity, depth).expect("a shape that is allowed");
            let blocks = Blocks::new(depth, data);
            let (mut sent, mut made) = (BTreeMap::new(), BTreeMap::new());
            let mut lost_of = BTreeMap::<u64, (Vec<u64>, u16)>::new();
            let count = 40 + chance.below(200);
            for at in 0..=count {
                let whole = if at == count {
                    protector.finish().expect("equal lengths")
                } else {
                    let (number, unit) = (protector.next_unit(), chance.unit());
                    let whole = protector.handle_unit(&unit).expect("short enough");
                    if chance.below(10) == 0 {
                        lost_of.entry(blocks.place(number).0).or_default().0.push(number);
                    } else {
                        made.extend(repairer.handle_unit(number, &unit));
                    }
                    sent.insert(number, unit);
                    whole
                };
                for parity in whole {
                    if chance.below(10) == 0 {
                        lost_of.entry(parity.block).or_default().1 += 1;
                    } else {
                        made.extend(repairer.handle_parity(parity));
                    }
                }
            }
            for (units, parity_lost) in lost_of.values() {
                let is_repaired = units.len() + usize::from(*parity_lost) <= usize::from(parity);
                for number in units {
                    let expected = is_repaired.then(|| &sent[number]);
                    assert_eq!(made.get(number), expected, "seed {seed}, unit {number}");
                }
            }
            assert_eq!(repairer.stats(), RepairStats { repaired: made.len() as u64, refused: 0 });
        }
    }

    #[test]
    fn m04_what_comes_late_or_makes_no_sense_repairs_nothing_and_is_counted() {
        let mut repairer = Repairer::new(4, 2, 2).expect("a shape that is allowed");
        let parity = |block, row, units, length| Parity { block, row, units, bytes: vec![7; length] };
        let wrong = [
            parity(0, 2, 4, 8),
            parity(0, 0, 5, 8),
            parity(0, 0, 0, 8),
            parity(0, 0, 4, 9),
            parity(0, 0, 4, 0),
        ];
        for (at, parity) in (1..).zip(wrong) {
            assert_eq!((repairer.handle_parity(parity), repairer.stats().refused), (vec![], at));
        }
        // Parity that was never made of these units: its shard has no unit in it.
        for number in [0, 2, 4] {
            assert_eq!(repairer.handle_unit(number, b"unit"), []);
        }
        assert_eq!((repairer.handle_parity(parity(0, 0, 4, 8)), repairer.stats().refused), (vec![], 6));
        // A unit longer than its block's parity.
        repairer.handle_unit(1, &[1; 100]);
        repairer.handle_parity(parity(1, 0, 2, 8));
        assert_eq!((repairer.handle_parity(parity(1, 1, 2, 8)), repairer.stats().refused), (vec![], 7));
        // Far ahead is believed, and what was before is then too late.
        repairer.handle_unit(1 << 40, b"unit");
        assert_eq!((repairer.handle_unit(0, b"unit"), repairer.stats().refused), (vec![], 8));
        let mut chance = Chance(5);
        for _ in 0..20_000 {
            repairer.handle_unit(chance.below(1 << 31) << 33, &[1]);
            repairer.handle_parity(parity(
                chance.below(100),
                chance.below(4) as u16,
                chance.below(6) as u16,
                16,
            ));
            assert!(repairer.kept.len() <= 6);
        }
    }

    #[test]
    fn m04_a_unit_that_no_shard_holds_is_refused_and_not_counted() {
        let mut protector = Protector::new(2, 1, 1).expect("a shape that is allowed");
        assert!(protector.handle_unit(&vec![0; UNIT_MAX + 1]).is_err());
        assert_eq!(protector.next_unit(), 0);
        assert!(protector.handle_unit(&vec![0; UNIT_MAX]).is_ok_and(|parity| parity.is_empty()));
        let parity = protector.finish().expect("equal lengths");
        assert_eq!((parity.len(), parity[0].units, protector.next_unit()), (1, 1, 2));
        assert_eq!(protector.finish(), Ok(vec![]));
    }
}
