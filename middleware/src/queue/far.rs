//! Messages that nobody looks at yet: which they are and where they lie in the log, in some five bytes each.
//!
//! Method      blocks of [`BLOCK`] messages in the order of their ids; within a block each number is the difference to the
//!             one before, in as few bytes as it needs. To change a block is to write it again.

use std::collections::BTreeMap;

use super::message::MessageId;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) id: MessageId,
    /// Where its newest copy lies in the log.
    pub(super) place: u64,
    pub(super) size: usize,
}

/// Messages in the order of their ids.
#[derive(Debug, Default)]
pub(super) struct Far {
    /// By their first ids; none is empty.
    blocks: BTreeMap<MessageId, Block>,
    len: usize,
    bytes: usize,
}

#[derive(Debug, Clone, Default)]
struct Block {
    packed: Vec<u8>,
    len: usize,
    last: (u64, u64),
    /// The first place of all.
    place_min: u64,
}

impl Far {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The sizes of all, added up.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The first place in the log that one of them needs.
    pub(super) fn place_min(&self) -> Option<u64> {
        self.blocks.values().map(|block| block.place_min).min()
    }

    /// Those with the first places in the log, at least `most` of them if there are so many, and some more.
    pub(super) fn first_places(&self, most: usize) -> impl Iterator<Item = Spot> + '_ {
        let mut blocks: Vec<&Block> = self.blocks.values().collect();
        blocks.sort_unstable_by_key(|block| block.place_min);
        let mut count = 0;
        let enough = blocks.into_iter().take_while(move |block| {
            let is_wanted = count < most;
            count += block.len;
            is_wanted
        });
        enough.flat_map(|block| block.spots())
    }

    /// Takes a message in that is not in here.
    pub(super) fn insert(&mut self, spot: Spot) {
        self.len += 1;
        self.bytes += spot.size;
        let last = self.blocks.values().next_back().map(|block| (block.last.0, block.len));
        match last {
            // Written again after it was moved: rare.
            Some((last, _)) if last > spot.id.as_u64() => self.insert_between(spot),
            Some((_, len)) if len < BLOCK => {
                if let Some(block) = self.blocks.values_mut().next_back() {
                    block.push(spot);
                    if block.len == BLOCK {
                        block.packed.shrink_to_fit();
                    }
                }
            }
            _ => drop(self.blocks.insert(spot.id, Block::of(&[spot]))),
        }
    }

    fn insert_between(&mut self, spot: Spot) {
        let first = self.blocks.range(..=spot.id).next_back().or(self.blocks.first_key_value());
        let Some(first) = first.map(|(first, _)| *first) else { return };
        let Some(block) = self.blocks.remove(&first) else { return };
        let mut spots: Vec<Spot> = block.spots().collect();
        let at = spots.partition_point(|other| other.id < spot.id);
        spots.insert(at, spot);
        for spots in spots.chunks(BLOCK) {
            self.blocks.insert(spots[0].id, Block::of(spots));
        }
    }

    pub(super) fn first(&self) -> Option<Spot> {
        self.blocks.values().next()?.spots().next()
    }

    /// Those from `from` on.
    pub(super) fn range(&self, from: MessageId) -> impl Iterator<Item = Spot> + '_ {
        let first = self.blocks.range(..=from).next_back().map_or(from, |(first, _)| *first);
        self.blocks.range(first..).flat_map(|(_, block)| block.spots()).filter(move |spot| spot.id >= from)
    }

    pub(super) fn get(&self, id: MessageId) -> Option<Spot> {
        let (_, block) = self.blocks.range(..=id).next_back()?;
        block.spots().find(|spot| spot.id == id)
    }

    /// Takes a message out.
    pub(super) fn remove(&mut self, id: MessageId) -> Option<Spot> {
        let spot = self.get(id)?;
        self.change(id, |spots| spots.retain(|spot| spot.id != id));
        self.len -= 1;
        self.bytes -= spot.size;
        Some(spot)
    }

    /// Takes the first `count` out.
    pub(super) fn drop_front(&mut self, count: usize) {
        let mut left = count;
        while left > 0
            && let Some((_, block)) = self.blocks.pop_first()
        {
            let spots: Vec<Spot> = block.spots().collect();
            let (gone, stay) = spots.split_at(left.min(spots.len()));
            left -= gone.len();
            self.len -= gone.len();
            self.bytes -= gone.iter().map(|spot| spot.size).sum::<usize>();
            if let Some(spot) = stay.first() {
                self.blocks.insert(spot.id, Block::of(stay));
            }
        }
    }

    /// Takes those before `below` out; gives how many and how large they were.
    pub(super) fn drop_below(&mut self, below: MessageId) -> (usize, usize) {
        let before = (self.len, self.bytes);
        while let Some((first, block)) = self.blocks.first_key_value()
            && *first < below
        {
            let count = block.spots().take_while(|spot| spot.id < below).count();
            self.drop_front(count);
        }
        (before.0 - self.len, before.1 - self.bytes)
    }

    /// The blocks as they are, in their order: how many messages each holds, and its bytes.
    pub(super) fn blocks(&self) -> impl ExactSizeIterator<Item = (usize, &[u8])> {
        self.blocks.values().map(|block| (block.len, &block.packed[..]))
    }

    /// Takes in a block that another one had; `None` if it is none.
    pub(super) fn insert_block(&mut self, len: usize, packed: &[u8]) -> Option<()> {
        let mut input = packed.iter();
        let (mut first, mut last, mut place_min, mut bytes) = (None, (0_u64, 0_u64), u64::MAX, 0_usize);
        for _ in 0..len {
            let spot = next(&mut input, last)?;
            if first.is_some() && spot.id.as_u64() <= last.0 {
                return None;
            }
            first.get_or_insert(spot.id);
            last = (spot.id.as_u64(), spot.place);
            place_min = place_min.min(spot.place);
            bytes = bytes.checked_add(spot.size)?;
        }
        let first = first?;
        let is_behind = self.blocks.values().next_back().is_none_or(|block| block.last.0 < first.as_u64());
        if input.next().is_some() || !is_behind {
            return None;
        }
        self.blocks.insert(first, Block { packed: packed.to_vec(), len, last, place_min });
        self.len += len;
        self.bytes += bytes;
        Some(())
    }

    /// A newer copy of a message lies at `place`; gives its old place.
    pub(super) fn relocate(&mut self, id: MessageId, place: u64) -> Option<u64> {
        let old = self.get(id)?.place;
        self.change(id, |spots| {
            for spot in spots.iter_mut().filter(|spot| spot.id == id) {
                spot.place = place;
            }
        });
        Some(old)
    }

    fn change(&mut self, id: MessageId, change: impl FnOnce(&mut Vec<Spot>)) {
        let Some((first, block)) = self.blocks.range(..=id).next_back() else { return };
        let (first, mut spots) = (*first, block.spots().collect());
        change(&mut spots);
        self.blocks.remove(&first);
        if let Some(spot) = spots.first() {
            self.blocks.insert(spot.id, Block::of(&spots));
        }
    }
}

impl Block {
    fn of(spots: &[Spot]) -> Self {
        let mut block = Self { place_min: u64::MAX, ..Self::default() };
        for spot in spots {
            block.push(*spot);
        }
        block
    }

    fn push(&mut self, spot: Spot) {
        let (id, place) = self.last;
        put(&mut self.packed, spot.id.as_u64() - id);
        let step = spot.place.wrapping_sub(place).cast_signed();
        // The sign goes to the lowest bit, so that a small step back is as short as one forward.
        put(&mut self.packed, (step.wrapping_shl(1) ^ (step >> 63)).cast_unsigned());
        put(&mut self.packed, spot.size as u64);
        self.last = (spot.id.as_u64(), spot.place);
        self.place_min = self.place_min.min(spot.place);
        self.len += 1;
    }

    fn spots(&self) -> impl Iterator<Item = Spot> + '_ {
        let mut input = self.packed.iter();
        let mut last = (0, 0);
        (0..self.len).map_while(move |_| {
            let spot = next(&mut input, last)?;
            last = (spot.id.as_u64(), spot.place);
            Some(spot)
        })
    }
}

/// Seven bits a byte, the lowest first; the highest bit says that more follow.
fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// The next message behind one with this id and place; `None` when there is no whole one.
fn next<'a>(input: &mut impl Iterator<Item = &'a u8>, (id, place): (u64, u64)) -> Option<Spot> {
    let id = id.checked_add(take(input)?)?;
    let step = take(input)?;
    let place = place.wrapping_add((step >> 1) ^ (step & 1).wrapping_neg());
    Some(Spot { id: MessageId::from_u64(id), place, size: take(input)? as usize })
}

fn take<'a>(input: &mut impl Iterator<Item = &'a u8>) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = input.next()?;
        number |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Messages written together: few enough to write again for one that goes, many enough to share what a block costs.
const BLOCK: usize = 256;

#[cfg(test)]
mod tests {
    use rand_core::{RngCore, SeedableRng};
    use rand_xoshiro::Xoshiro256PlusPlus;

    use super::*;

    #[test]
    fn q09_what_is_far_is_what_a_plain_map_would_hold() {
        for seed in 0..40 {
            let mut chance = Xoshiro256PlusPlus::seed_from_u64(seed);
            let mut far = Far::default();
            let mut plain = BTreeMap::new();
            let (mut id, mut place) = (0, chance.next_u64() >> 8);
            for _ in 0..3_000 {
                let any = chance.next_u64();
                let some = plain.keys().nth(any as usize % (plain.len() + 1)).copied();
                match (any >> 32) % 8 {
                    0..=4 => {
                        id += 1 + any % [1, 5, 1 << 40][(any >> 40) as usize % 3];
                        place += any % 9;
                        let place = if any.is_multiple_of(50) { any } else { place };
                        let size = (any % 3_000) as usize;
                        let id = if any.is_multiple_of(40) { any % id } else { id };
                        let spot = Spot { id: MessageId::from_u64(id), place, size };
                        plain.entry(spot.id).or_insert_with(|| {
                            far.insert(spot);
                            spot
                        });
                    }
                    5 => {
                        let id = some.unwrap_or(MessageId::from_u64(any));
                        assert_eq!(far.remove(id), plain.remove(&id), "seed {seed}");
                    }
                    6 => {
                        let id = some.unwrap_or(MessageId::from_u64(any));
                        let old = plain.get_mut(&id).map(|spot| std::mem::replace(&mut spot.place, any));
                        assert_eq!(far.relocate(id, any), old, "seed {seed}");
                    }
                    7 if any.is_multiple_of(20) => {
                        let count = (any >> 8) as usize % 600;
                        far.drop_front(count);
                        plain = plain.into_iter().skip(count).collect();
                    }
                    _ => {
                        let from = some.unwrap_or(MessageId::from_u64(any));
                        let expected = plain.range(from..).map(|(_, spot)| *spot).take(300);
                        assert!(far.range(from).take(300).eq(expected), "seed {seed}");
                    }
                }
                assert_eq!(far.len(), plain.len());
            }
            assert_eq!(far.bytes(), plain.values().map(|spot| spot.size).sum::<usize>());
            assert_eq!(far.place_min(), plain.values().map(|spot| spot.place).min());
            let places: Vec<u64> = far.first_places(10).map(|spot| spot.place).collect();
            let mut first: Vec<u64> = plain.values().map(|spot| spot.place).collect();
            first.sort_unstable();
            assert!(
                places.len() >= first.len().min(10)
                    && first.first().is_none_or(|place| places.contains(place))
            );
            let mut again = Far::default();
            for (len, packed) in far.blocks() {
                assert!(again.insert_block(len, packed).is_some(), "seed {seed}");
            }
            assert_eq!(
                (again.len(), again.bytes(), again.place_min()),
                (far.len(), far.bytes(), far.place_min())
            );
            assert!(again.range(MessageId::from_u64(0)).eq(plain.values().copied()));
            let below = MessageId::from_u64(id / 2);
            let (count, _) = again.drop_below(below);
            assert_eq!(count, plain.range(..below).count(), "seed {seed}");
            assert!(again.range(MessageId::from_u64(0)).eq(plain.range(below..).map(|(_, spot)| *spot)));
            assert!(far.range(MessageId::from_u64(0)).eq(plain.into_values()));
        }
    }

    #[test]
    fn q09_a_message_that_is_far_takes_few_bytes() {
        let mut far = Far::default();
        for number in 0..1_000_000 {
            far.insert(Spot { id: MessageId::from_u64(number), place: 3 * number, size: 1024 });
        }
        let packed: usize =
            far.blocks.values().map(|block| block.packed.capacity() + size_of::<Block>()).sum();
        assert!(packed < 5_000_000, "{packed}");
    }
}
