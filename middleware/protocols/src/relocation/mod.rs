//! Moving a queue to another node while producers run: what one node does with the messages of one queue.
//!
//! Guarantee   every message reaches the queue once, and those of one producer in the order of its puts, however often the queue
//!             moves and however late producers hear of it. Provided that what goes from one node to another arrives once and in
//!             order ([`transfer`](crate::transfer)), and that the state here is stored together with what it did.
//! Method      the node that gives the queue away tells the next one first, then sends what is in the queue, and from then on
//!             forwards what still comes: a *forwarding pointer*. Pointers lead to later moves only, so there are no circles. A
//!             producer that hears of a newer place may overtake what it sent the old way: it sends a *marker* down that way
//!             and holds its messages until the queue's node has seen it. A node that gets the queue back holds what comes
//!             from those who do not know that yet, because what it had forwarded before is still on its way round; a marker
//!             of its own tells when that has come.
//! Sans-IO     the machine holds no messages: it says where the next one goes, and when held ones may follow. Its outputs
//!             and its new state are to be stored as one.
//! Source      forwarding pointers and their shortcuts: Tanenbaum & van Steen, "Distributed Systems" (locating mobile entities);
//!             flushing channels by markers: Chandy & Lamport 1985.
//! Limits      a queue moves on when it has settled: not while messages are held for it at its node.

#[cfg(test)]
mod tests;

/// What one node knows of one queue. Stored with each change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relocation {
    me: u64,
    home: Home,
    /// When it became home, or when it learned of its pointer: moves are numbered.
    epoch: u64,
    /// Where what comes is forwarded to, by a node that was home before, and the number of the move that it made.
    pointer: Option<(u64, u64)>,
    /// Where what is put here goes, unless this is the home.
    way: Option<u64>,
    /// Of what is put here.
    own: Door,
    /// The way that it went before the door was shut, and the number of the move that was known then.
    via: Option<(u64, u64)>,
    /// Of what comes from those who do not know that this is the home.
    stale: Door,
    /// Counts markers.
    markers: u64,
    /// The queue is here, and its messages are still coming.
    is_coming: bool,
    /// Heard of while held messages followed the way before.
    news: Option<(u64, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Home {
    Elsewhere,
    Here,
    /// Its messages are going there.
    Leaving(u64),
}

/// Whether messages of a kind go through, or wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Open,
    /// Until the marker of this number has come to the queue.
    Shut(u64),
    /// Held ones follow; later ones go behind them.
    Draining,
}

/// Messages that wait apart from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Held {
    /// What was put at this node.
    Own,
    /// What came from other nodes.
    Stale,
}

/// Where a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spot {
    /// Into the queue, which is here.
    Queue,
    /// To another node, with the number of the move that this node knows of.
    Line {
        /// The node.
        to: u64,
        /// The number.
        epoch: u64,
    },
    /// It waits here, behind those of its kind.
    Held(Held),
    /// Nobody knows where the queue is.
    Unknown,
}

/// What nodes tell each other of a queue, in order with its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// The queue is yours from now on; its messages follow.
    Adopt {
        /// The number of the move.
        epoch: u64,
    },
    /// All messages that were in the queue are before it.
    All,
    /// All that `origin` has sent this way is before it.
    Marker {
        /// Who waits for it.
        origin: u64,
        /// Which of its markers.
        number: u64,
    },
    /// The marker has come to the queue.
    Seen {
        /// Which.
        number: u64,
    },
}

/// A note for another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dispatch {
    /// The node.
    pub to: u64,
    /// The number of the move that this node knows of.
    pub epoch: u64,
    /// The note.
    pub note: Note,
}

/// What becomes of a note that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// These are to be sent.
    Done(Option<Dispatch>, Option<Dispatch>),
    /// It goes where a message that came the same way goes.
    Like(Spot),
    /// It goes behind the queue's last message, when that has left.
    Last,
}

impl Relocation {
    /// Of a queue that this node knows nothing of.
    pub fn unknown(me: u64) -> Self {
        Self {
            me,
            home: Home::Elsewhere,
            epoch: 0,
            pointer: None,
            way: None,
            own: Door::Open,
            via: None,
            stale: Door::Open,
            markers: 0,
            is_coming: false,
            news: None,
        }
    }

    /// Of a queue that is created here.
    pub fn here(me: u64) -> Self {
        Self { home: Home::Here, epoch: 1, ..Self::unknown(me) }
    }

    /// Where what is put at this node goes.
    pub fn own(&self) -> Spot {
        match (self.own, self.home, self.way) {
            (Door::Shut(_) | Door::Draining, ..) => Spot::Held(Held::Own),
            (Door::Open, Home::Here | Home::Leaving(_), _) => Spot::Queue,
            (Door::Open, Home::Elsewhere, Some(to)) => Spot::Line { to, epoch: self.epoch },
            (Door::Open, Home::Elsewhere, None) => Spot::Unknown,
        }
    }

    /// Where a message goes that came from another node, which knew of the move `epoch`.
    pub fn passing(&self, epoch: u64) -> Spot {
        match (self.home, self.stale) {
            (Home::Here, Door::Shut(_) | Door::Draining) if epoch < self.epoch => Spot::Held(Held::Stale),
            (Home::Here | Home::Leaving(_), _) => Spot::Queue,
            (Home::Elsewhere, _) => match self.pointer {
                Some((to, epoch)) => Spot::Line { to, epoch },
                None => Spot::Unknown,
            },
        }
    }

    /// Where held messages may go now, one after the other.
    pub fn following(&self, held: Held) -> Option<Spot> {
        let door = match held {
            Held::Own => self.own,
            Held::Stale => self.stale,
        };
        let spot = match (self.home, self.way) {
            (Home::Here | Home::Leaving(_), _) => Spot::Queue,
            (Home::Elsewhere, Some(to)) => Spot::Line { to, epoch: self.epoch },
            (Home::Elsewhere, None) => return None,
        };
        (door == Door::Draining).then_some(spot)
    }

    /// None are held any more. Gives a marker when there were news meanwhile.
    pub fn drained(&mut self, held: Held) -> Option<Dispatch> {
        let door = match held {
            Held::Own => &mut self.own,
            Held::Stale => &mut self.stale,
        };
        if *door == Door::Draining {
            *door = Door::Open;
        }
        let news = if held == Held::Own { self.news.take() } else { None };
        news.and_then(|(node, epoch)| self.heard(node, epoch))
    }

    /// The queue is said to have moved to `node`, as the move `epoch`. News may be old, late and repeated.
    pub fn heard(&mut self, node: u64, epoch: u64) -> Option<Dispatch> {
        if self.home != Home::Elsewhere || epoch <= self.epoch || node == self.me {
            return None;
        }
        if self.own == Door::Draining {
            // The rest of them goes the way that their first went.
            if self.news.is_none_or(|(_, known)| known < epoch) {
                self.news = Some((node, epoch));
            }
            return None;
        }
        let via = self.via();
        (self.way, self.epoch) = (Some(node), epoch);
        // Also when a marker is under way already: one that was seen before this move tells nothing of what the move carries.
        via.map(|(before, known)| self.mark_own(before, known))
    }

    /// Gives the queue away; `None` when it is not here, or has not settled.
    pub fn leave(&mut self, to: u64) -> Option<Dispatch> {
        let is_settled = self.own == Door::Open && self.stale == Door::Open && !self.is_coming;
        if self.home != Home::Here || !is_settled || to == self.me {
            return None;
        }
        self.home = Home::Leaving(to);
        let epoch = self.epoch + 1;
        Some(Dispatch { to, epoch, note: Note::Adopt { epoch } })
    }

    /// Where the messages of the queue go that is being given away.
    pub fn leaving(&self) -> Option<Spot> {
        match self.home {
            Home::Leaving(to) => Some(Spot::Line { to, epoch: self.epoch + 1 }),
            _ => None,
        }
    }

    /// None is in the queue any more: what comes is forwarded from now on, and the other node is told.
    pub fn left(&mut self) -> Option<Dispatch> {
        let Home::Leaving(to) = self.home else { return None };
        self.home = Home::Elsewhere;
        self.epoch += 1;
        self.pointer = Some((to, self.epoch));
        self.way = Some(to);
        Some(Dispatch { to, epoch: self.epoch, note: Note::All })
    }

    /// A note came from another node, which knew of the move `epoch`.
    pub fn noted(&mut self, epoch: u64, note: Note) -> Outcome {
        match note {
            Note::Adopt { epoch } => {
                let (own, stale) = self.adopt(epoch);
                Outcome::Done(own, stale)
            }
            Note::All => {
                self.is_coming = false;
                Outcome::Done(None, None)
            }
            Note::Seen { number } => {
                self.seen(number);
                Outcome::Done(None, None)
            }
            Note::Marker { origin, number } => match (self.passing(epoch), self.home) {
                (Spot::Queue, Home::Leaving(_)) => Outcome::Last,
                (Spot::Queue, _) => Outcome::Done(self.arrived(origin, number), None),
                (spot, _) => Outcome::Like(spot),
            },
        }
    }

    /// A marker has come to the queue: from another node, or from those that were held.
    pub fn arrived(&mut self, origin: u64, number: u64) -> Option<Dispatch> {
        if origin == self.me {
            self.seen(number);
            return None;
        }
        Some(Dispatch { to: origin, epoch: self.epoch, note: Note::Seen { number } })
    }

    fn adopt(&mut self, epoch: u64) -> (Option<Dispatch>, Option<Dispatch>) {
        // A queue goes on when all of it has come: nobody gives us what we have.
        if self.home != Home::Elsewhere {
            return (None, None);
        }
        // What was put here went that way, and may be on it still.
        let own = self.via().map(|(way, known)| self.mark_own(way, known));
        let stale = self.pointer.map(|(to, known)| {
            self.markers += 1;
            self.stale = Door::Shut(self.markers);
            let note = Note::Marker { origin: self.me, number: self.markers };
            Dispatch { to, epoch: known, note }
        });
        self.home = Home::Here;
        self.epoch = epoch;
        self.is_coming = true;
        (self.way, self.pointer, self.news) = (None, None, None);
        (own, stale)
    }

    /// Which way the last of what was put here went.
    fn via(&self) -> Option<(u64, u64)> {
        match self.own {
            Door::Shut(_) => self.via,
            Door::Open | Door::Draining => self.way.map(|way| (way, self.epoch)),
        }
    }

    fn mark_own(&mut self, to: u64, epoch: u64) -> Dispatch {
        self.via = Some((to, epoch));
        self.markers += 1;
        self.own = Door::Shut(self.markers);
        Dispatch { to, epoch, note: Note::Marker { origin: self.me, number: self.markers } }
    }

    fn seen(&mut self, number: u64) {
        for door in [&mut self.own, &mut self.stale] {
            if *door == Door::Shut(number) {
                *door = Door::Draining;
            }
        }
    }
}
