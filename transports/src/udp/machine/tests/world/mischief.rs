//! A stranger who sees some packets, and can send from addresses which are not its own.

use super::{Event, LISTENER_PLACE, STRANGER_PLACE, World};
use crate::fault::model::Chance;
use crate::udp::machine::packet::{self, HELLO_BYTES};

impl World {
    /// What it does when it sees this packet.
    pub(super) fn make_mischief(&mut self, from: u16, to: u16, datagram: &[u8]) {
        self.seen.push((from, to, datagram.to_vec()));
        let this_to = to;
        let (from, to, copy) = self.rng.pick(&self.seen).cloned().unwrap_or_default();
        let mut garbage: Vec<u8> = (0..self.rng.between(0, 60)).map(|_| self.rng.next_u64() as u8).collect();
        match self.rng.below(6) {
            // An old packet, from where it came from.
            0 => self.travel(from, to, &copy),
            // This very packet, from elsewhere, and faster than itself.
            1 if datagram.len() < HELLO_BYTES || datagram[0] != 1 => self.at(
                self.now,
                Event::Arrives { from: STRANGER_PLACE, to: this_to, datagram: datagram.to_vec() },
            ),
            // The right receiver, the wrong sender: who knows one half must not reset anything.
            2 => {
                let mut forged = Vec::new();
                let id = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| copy[at + byte]));
                packet::put_reset(&mut forged, id(5), id(13) ^ 1, packet::Reason::Unknown);
                self.at(self.now, Event::Arrives { from, to, datagram: forged });
            }
            // A hello from where nobody is.
            3 => {
                let mut hello = Vec::new();
                let (id, place) = (self.rng.next_u64(), STRANGER_PLACE + self.rng.below(50) as u16);
                let cookie = packet::Cookie { stamp: self.now.max(1), proof: self.rng.next_u64() };
                packet::put_hello(&mut hello, id, self.rng.chance(Chance::percent(50)).then_some(cookie), 9);
                self.at(self.now, Event::Arrives { from: place, to: LISTENER_PLACE, datagram: hello });
            }
            4 => {
                // The beginning of something that looks like a packet.
                garbage.splice(0..0, copy[..copy.len().min(40)].iter().copied());
                self.at(self.now, Event::Arrives { from, to, datagram: garbage });
            }
            _ => self.at(self.now, Event::Arrives { from: STRANGER_PLACE, to, datagram: garbage }),
        }
    }
}
