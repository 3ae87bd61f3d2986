//! What the two ends write and read.

use std::io::IoSlice;

use super::{DIALLER, Event, LISTENER, World};
use crate::udp::machine::tests::plan::{Ending, Half};
use crate::udp::machine::{Broken, Nanos, Read};

impl World {
    /// Lets an application do what it can do now.
    pub(super) fn app(&mut self, index: usize) {
        let now = self.now;
        let is_halved = matches!(self.plan.ending, Ending::Halved { .. });
        let end = &mut self.ends[index];
        if let Some(id) = end.dialling.filter(|_| end.may_write) {
            match end.endpoint.dialled(id) {
                Some(Ok(())) => {
                    (end.id, end.dialling) = (Some(id), None);
                    end.may_read = true;
                }
                Some(Err(broken)) => {
                    (end.broken, end.dialling) = (Some(broken), None);
                    return self.release(index, id);
                }
                None => end.may_write = false,
            }
        }
        while let Some((id, _)) = end.endpoint.accept() {
            if end.id.is_some() {
                self.failure = Some("a second connection was accepted".to_owned());
                return;
            }
            end.id = Some(id);
        }
        let Some(id) = end.id.filter(|_| !end.is_dropped) else { return };
        if end.app_at.is_some() {
            return;
        }
        let mut pause = None;
        // Reading.
        end.has_end |= end.dropped == Some(Half::Receiver);
        while !end.has_end && end.may_read {
            let (mut at, mut is_right) = (end.read, true);
            let count = self.rng.between(1, end.habit.read_max) as usize;
            let read = end.endpoint.read(now, id, count, |bytes| {
                for &got in bytes {
                    is_right &= got == byte(1 - index, at);
                    at += 1;
                }
            });
            if !is_right || at > end.expected {
                self.failure = Some(format!("wrong bytes between {} and {at} for {index}", end.read));
                return;
            }
            match read {
                Ok(Read::Bytes(count)) => {
                    end.read += count as u64;
                    self.read_at = now;
                    if end.habit.read_pause > 0 {
                        pause = Some(end.habit.read_pause);
                        break;
                    }
                }
                Ok(Read::Nothing) => end.may_read = false,
                Ok(Read::End) => {
                    end.has_end = true;
                    if end.read != end.expected {
                        self.failure = Some(format!("{index} found the end after {} bytes", end.read));
                        return;
                    }
                }
                // Perhaps it has only lost a half of its writer.
                Err(Broken::Reset) if is_halved => (end.is_reset, end.has_end) = (true, true),
                Err(broken) => {
                    end.broken = Some(broken);
                    break;
                }
            }
        }
        // Writing.
        if end.dropped == Some(Half::Sender) {
            (end.is_finished, end.is_delivered) = (true, true);
        }
        while end.broken.is_none() && !end.is_finished && end.may_write {
            let count = self.rng.between(1, end.habit.write_max).min(end.habit.bytes - end.written);
            let bytes: Vec<u8> = (end.written..end.written + count).map(|at| byte(index, at)).collect();
            let (front, back) = bytes.split_at(bytes.len() / 3);
            if count > 0 {
                match end.endpoint.write(now, id, &[IoSlice::new(front), IoSlice::new(back)]) {
                    Ok(0) => {
                        end.may_write = false;
                        break;
                    }
                    Ok(taken) => end.written += taken as u64,
                    Err(Broken::Stopped) if is_halved => {
                        (end.is_finished, end.is_delivered) = (true, true);
                        break;
                    }
                    Err(broken) => {
                        end.broken = Some(broken);
                        break;
                    }
                }
            }
            end.is_finished = end.written == end.habit.bytes;
            if end.habit.write_pause > 0 && !end.is_finished {
                pause = Some(pause.map_or(end.habit.write_pause, |p: Nanos| p.min(end.habit.write_pause)));
                break;
            }
        }
        if end.is_finished && !end.is_delivered && end.broken.is_none() && end.may_write {
            match end.endpoint.finish(now, id) {
                Ok(delivered) => (end.is_delivered, end.may_write) = (delivered, delivered),
                Err(broken) => end.broken = Some(broken),
            }
        }
        let is_done = end.has_end && end.is_delivered || end.broken.is_some();
        if let Some(pause) = pause {
            end.app_at = Some(now + pause);
            self.at(now + pause, Event::App(index));
        } else if is_done {
            end.is_done = true;
            if !is_halved {
                self.release(index, id);
            } else if self.ends.iter().all(|end| end.is_done || end.is_dropped) {
                // Not before: the end of a link tells the other one more than the end of a half.
                for index in [DIALLER, LISTENER] {
                    if let Some(id) = self.ends[index].id {
                        self.release(index, id);
                    }
                    self.at(now, Event::Wake(index));
                }
            }
        }
    }
}

/// The byte that an end writes at an offset.
fn byte(end: usize, offset: u64) -> u8 {
    let mixed = (offset + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(end as u32 * 7 + 3);
    (mixed >> 32) as u8
}
