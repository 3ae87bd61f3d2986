//! One connection: what its owner asks for.

use std::io::IoSlice;

use super::super::{Broken, Limits, Read};
use super::{Connection, Phase};

impl<A: Copy + Eq> Connection<A> {
    /// Takes bytes of the owner; 0 when there is no room: `writable` tells when there is.
    pub(in super::super) fn write(
        &mut self,
        limits: &Limits,
        slices: &[IoSlice<'_>],
    ) -> Result<usize, Broken> {
        self.check_sender()?;
        let taken = self.out.write(slices, self.out.room(limits.send_bytes_max, limits.unsent_bytes_max));
        self.is_writer_waiting = taken == 0;
        Ok(taken)
    }

    /// True when everything was delivered, the end included; `writable` tells when it may be so.
    pub(in super::super) fn finish(&mut self) -> Result<bool, Broken> {
        // Whoever reads no more needs no end either.
        if self.out.is_delivered() || self.is_stopped_by_peer {
            return Ok(true);
        }
        self.check_sender()?;
        self.out.finish();
        self.is_writer_waiting = true;
        Ok(false)
    }

    fn check_sender(&self) -> Result<(), Broken> {
        match self.phase {
            Phase::Broken(broken) => Err(broken),
            _ if self.is_stopped_by_peer => Err(Broken::Stopped),
            _ => Ok(()),
        }
    }

    /// A writer that waits is woken when a quarter of its room is free, not for every packet.
    pub(in super::super) fn wake_writer(&mut self, limits: &Limits) -> bool {
        let (send_max, unsent_max) = (limits.send_bytes_max, limits.unsent_bytes_max);
        let has_room = 4 * self.out.room(send_max, unsent_max) >= send_max.min(unsent_max);
        let is_worth_it = if self.out.is_finishing() { self.out.is_delivered() } else { has_room };
        let wakes = self.writable || self.is_writer_waiting && is_worth_it;
        self.is_writer_waiting &= !wakes;
        self.writable = false;
        wakes
    }

    /// Takes at most `count` bytes; `take` gets them in slices.
    pub(in super::super) fn read(&mut self, count: usize, take: impl FnMut(&[u8])) -> Result<Read, Broken> {
        if self.incoming.has_ready() {
            let count = self.incoming.read(count, take);
            self.owes.credit |= self.phase == Phase::Open && self.incoming.owes_credit();
            return Ok(Read::Bytes(count));
        }
        if self.incoming.is_at_end() {
            return Ok(Read::End);
        }
        match self.phase {
            Phase::Broken(broken) => Err(broken),
            _ if self.is_aborted_by_peer => Err(Broken::Reset),
            _ => Ok(Read::Nothing),
        }
    }

    pub(in super::super) fn drop_sender(&mut self) {
        self.has_sender = false;
        // Whoever finished and does not wait for the outcome still wants it delivered.
        if !self.out.is_finishing() && !self.is_stopped_by_peer {
            self.is_aborting = true;
            self.owes.abort = true;
            self.out.discard();
        }
    }

    pub(in super::super) fn drop_receiver(&mut self) {
        self.has_receiver = false;
        if !self.incoming.is_whole() && !self.is_aborted_by_peer {
            self.owes.stop = true;
        }
        self.incoming.stop();
    }
}
