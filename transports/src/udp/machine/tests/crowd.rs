//! Many connections of one pair of sockets, one of which nobody reads.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;

use super::plan::limits;
use crate::fault::model::{Chance, Rng};
use crate::udp::machine::endpoint::Endpoint;
use crate::udp::machine::{Broken, MILLI, Nanos, Read};

const PLACES: [u16; 2] = [1, 2];
const CROWD: usize = 30;
const BYTES: usize = 30_000;

/// What an application does with one of its connections.
#[derive(Default)]
struct Talk {
    is_open: bool,
    written: usize,
    read: usize,
    has_sent: bool,
    has_end: bool,
}

struct Side {
    endpoint: Endpoint<u16>,
    talks: BTreeMap<u64, Talk>,
    /// The one that is never read.
    ignored: Option<u64>,
    woken: BTreeSet<u64>,
}

impl Side {
    fn new(seed: u64, number: u64) -> Self {
        let mut limits = limits(|| 10_000);
        (limits.connections_max, limits.handshakes_max, limits.backlog_max) = (CROWD, CROWD, CROWD);
        let endpoint = Endpoint::new(limits, [seed, number], number == 1);
        Self { endpoint, talks: BTreeMap::new(), ignored: None, woken: BTreeSet::new() }
    }

    /// Everything that those who were woken can do, and nothing that anybody else can.
    fn talk(&mut self, now: Nanos) -> Result<(), Broken> {
        while let Some((id, _)) = self.endpoint.accept() {
            self.ignored.get_or_insert(id);
            self.talks.insert(id, Talk::default());
            self.woken.insert(id);
        }
        while let Some((id, _)) = self.endpoint.pop_news() {
            self.woken.insert(id);
        }
        for id in std::mem::take(&mut self.woken) {
            let Some(talk) = self.talks.get_mut(&id) else { continue };
            talk.is_open = talk.is_open || self.endpoint.dialled(id) == Some(Ok(()));
            if !talk.is_open {
                continue;
            }
            while talk.written < BYTES {
                let bytes = [id as u8; 5_000];
                let slice = IoSlice::new(&bytes[..5_000.min(BYTES - talk.written)]);
                match self.endpoint.write(now, id, &[slice])? {
                    0 => break,
                    taken => talk.written += taken,
                }
            }
            if talk.written == BYTES && !talk.has_sent {
                talk.has_sent = self.endpoint.finish(now, id)?;
            }
            while self.ignored != Some(id) && !talk.has_end {
                match self.endpoint.read(now, id, 3_000, |_| {})? {
                    Read::Bytes(count) => talk.read += count,
                    Read::Nothing => break,
                    Read::End => talk.has_end = true,
                }
            }
            if talk.has_sent && talk.has_end {
                assert_eq!(talk.read, BYTES);
                self.release(now, id);
            }
        }
        Ok(())
    }

    fn release(&mut self, now: Nanos, id: u64) {
        self.talks.remove(&id);
        self.endpoint.drop_sender(now, id);
        self.endpoint.drop_receiver(now, id);
    }
}

#[test]
fn t07_a_udp_link_that_nobody_reads_holds_up_no_other_one_of_its_socket() {
    for seed in 0..20 {
        let mut rng = Rng::labelled(seed, 6);
        let mut sides = [Side::new(seed, 0), Side::new(seed, 1)];
        let mut under_way = BTreeMap::new();
        let mut serial = 0;
        for _ in 0..CROWD {
            let id = sides[0].endpoint.dial(0, PLACES[1]);
            sides[0].talks.insert(id, Talk::default());
        }
        let (mut now, mut is_alone_since, mut rounds) = (0, None, 0);
        while sides.iter().any(|side| side.endpoint.held().0 > 0) || is_alone_since.is_none() {
            rounds += 1;
            let left = sides.each_ref().map(|side| side.talks.len());
            assert!(now < 60_000 * MILLI && rounds < 1_000_000, "seed {seed}: {left:?} links are left");
            for (index, side) in sides.iter_mut().enumerate() {
                side.endpoint.on_time(now);
                assert_eq!(side.talk(now), Ok(()), "seed {seed}");
                let mut bytes = Vec::new();
                while let Some(transmit) = side.endpoint.transmit(now, 4, &mut bytes) {
                    for datagram in bytes.chunks(transmit.segment_bytes) {
                        if !rng.chance(Chance::percent(5)) {
                            serial += 1;
                            let at = now + rng.between(1, 5) * MILLI;
                            under_way.insert((at, serial), (1 - index, datagram.to_vec()));
                        }
                    }
                    bytes.clear();
                }
            }
            let deadlines = sides.iter().filter_map(|side| side.endpoint.deadline());
            let next = deadlines.chain(under_way.keys().next().map(|(at, _)| *at)).min();
            now = next.map_or(now + MILLI, |at| at.max(now));
            while let Some(entry) = under_way.first_entry().filter(|entry| entry.key().0 <= now) {
                let (to, datagram) = entry.remove();
                sides[to].endpoint.handle(now, PLACES[1 - to], &datagram);
            }
            // All the others have heard everything.
            if is_alone_since.is_none() && sides.iter().all(|side| side.talks.len() == 1) {
                is_alone_since = Some(now);
                for side in &mut sides {
                    let left: Vec<u64> = side.talks.keys().copied().collect();
                    left.into_iter().for_each(|id| side.release(now, id));
                }
            }
        }
        assert!(is_alone_since.is_some_and(|at| at < 20_000 * MILLI), "seed {seed}: {is_alone_since:?}");
    }
}
