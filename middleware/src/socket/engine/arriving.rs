//! What connections bring: frames of other sockets, and news of their nodes.

use super::*;

impl Core {
    pub(super) fn on_control(&self, state: &mut State, from: Identity, control: Control) {
        match control {
            Control::Hello { role, channel, link, windows, name } => {
                let channel = Channel(channel);
                if let Err(reason) = self.on_hello(state, from, role, channel, link, windows, name) {
                    self.answer(from, channel, &Control::Reject { to: link, reason });
                }
            }
            Control::Welcome { to, link: theirs, windows } => {
                let Some(link) = state.links.get_mut(&to).filter(|link| link.peer == from) else { return };
                if link.stage != Stage::Connecting {
                    return;
                }
                link.theirs = theirs;
                link.stage = Stage::Up;
                link.asked_at = None;
                for (flow, window) in link.out.iter_mut().zip(windows) {
                    flow.begin(window);
                }
                for dial in state.dials.iter_mut().filter(|dial| dial.link == Some(to)) {
                    dial.failures = 0;
                    dial.answer = None;
                }
                self.on_up(state, to);
            }
            Control::Reject { to, reason } => {
                let is_waiting = |link: &&Link| link.peer == from && link.stage == Stage::Connecting;
                if state.links.get(&to).as_ref().is_some_and(is_waiting) {
                    self.lose(state, to, Some(Answer::Rejected(reason)));
                }
            }
            Control::Grant { to, class, granted } => {
                let Some(link) = state.links.get_mut(&to).filter(|link| link.peer == from) else { return };
                link.out[class as usize].on_granted(granted);
                link.asked_at = None;
                if link.is_up() && link.flush(self.lane(Class::Ordinary)).is_err() {
                    link.asked_at = Some(Instant::now());
                    self.chores.notify_one();
                }
                if state.phase == Phase::Closing {
                    self.chores.notify_one();
                }
                self.room.notify_waiters();
            }
            Control::Close { to, sent } => {
                let Some(link) = state.links.get_mut(&to).filter(|link| link.peer == from) else { return };
                link.ends_at = Some((sent, Instant::now()));
                self.end_if_complete(state, to);
                // What is still to come on another lane may be lost for ever.
                self.chores.notify_one();
            }
            Control::Closed { to } => {
                if let Some(link) = state.links.get_mut(&to).filter(|link| link.peer == from) {
                    link.is_confirmed = link.is_close_sent;
                    link.is_ended = true;
                    self.lose(state, to, None);
                }
            }
            Control::Filter { to, serial, is_wanted, prefix } => {
                let State { links, topics, .. } = state;
                let Some(link) = links.get(&to).filter(|link| link.peer == from && link.is_up()) else {
                    return;
                };
                if self.role != Role::Publisher || is_wanted && !topics.add(&prefix, to) {
                    state.stats.malformed += 1;
                    self.cut(state, to);
                    return;
                }
                if !is_wanted {
                    topics.remove(&prefix, to);
                }
                // Behind nothing that was published before, so that what comes later is known to be meant.
                send_control(link, self.options.lane, &Control::Filtered { to: link.theirs, serial });
            }
            Control::Filtered { to, serial } => {
                state.unanswered.remove(&(serial, to));
                self.changed.notify_waiters();
            }
        }
    }

    /// Ends a link whose other side wants that, once all of its messages are here.
    fn end_if_complete(&self, state: &mut State, number: u32) {
        let Some(link) = state.links.get_mut(&number).filter(|link| link.is_complete()) else { return };
        link.ends_at = None;
        link.is_ended = true;
        let closed = Control::Closed { to: link.theirs };
        // It is not asked again: a full lane must not swallow the answer. Elsewhere it would overtake what this side
        // has to say before it.
        let _ = send_control(link, self.options.lane, &closed) || send_control(link, Lane::Urgent, &closed);
        // Both close at the same time: each waits for the other's word.
        if !link.is_close_sent {
            self.lose(state, number, Some(Answer::NoSocket));
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one frame")]
    pub(super) fn on_hello(
        &self,
        state: &mut State,
        from: Identity,
        role: Role,
        channel: Channel,
        theirs: u32,
        windows: [Amount; 2],
        name: Bytes,
    ) -> Result<(), Rejection> {
        if !self.role.fits(role) {
            return Err(Rejection::Kind);
        }
        if !self.is_bound || state.phase != Phase::Open {
            return Err(Rejection::Busy);
        }
        let known = state.links.values().find(|link| {
            link.peer == from && link.channel == channel && !link.is_dialled && link.stage != Stage::Gone
        });
        if let Some(link) = known {
            if link.theirs == theirs {
                // It asks again: the answer is late or lost.
                self.welcome(link);
                return Ok(());
            }
            // The other side began anew.
            let number = link.number;
            self.lose(state, number, None);
        }
        let links_max = if self.role == Role::Pair { 1 } else { self.options.links_max };
        let of_this_peer = |link: &&Link| link.peer.node == from.node && link.stage != Stage::Gone;
        if state.links.values().filter(of_this_peer).count() >= self.options.links_per_peer_max {
            return Err(Rejection::Busy);
        }
        let is_backlogged = state.backlog.is_some_and(|max| state.accepting.len() >= max);
        let gone = state.gone();
        if state.links.len() - gone >= links_max || self.is_littered(gone) || is_backlogged {
            return Err(Rejection::Busy);
        }
        let number = self.node.fresh_number();
        let outlet = self.node.outlet(from);
        let mut link = Link::new(number, from, channel, self.options.windows(), outlet);
        link.theirs = theirs;
        link.name = name;
        link.stage = Stage::Up;
        link.is_dialled = false;
        for (flow, window) in link.out.iter_mut().zip(windows) {
            flow.begin(window);
        }
        self.welcome(&link);
        state.links.insert(number, link);
        if state.backlog.is_some() {
            state.accepting.push_back(number);
            if let Some(waker) = state.acceptor.take() {
                waker.wake();
            }
        }
        self.on_up(state, number);
        Ok(())
    }

    /// Too many links are over of which something is to be read still: a peer that comes, sends and goes again and
    /// again must not pile that up.
    pub(super) fn is_littered(&self, gone: usize) -> bool {
        gone >= self.options.links_max.max(GONE_LINKS_MAX)
    }

    pub(super) fn welcome(&self, link: &Link) {
        let windows = self.options.windows();
        // Who hears nothing asks again.
        send_control(
            link,
            self.options.lane,
            &Control::Welcome { to: link.theirs, link: link.number, windows },
        );
    }

    pub(super) fn on_up(&self, state: &mut State, number: u32) {
        state.up.push(number);
        state.stats.links_made += 1;
        let State { links, filters, unanswered, .. } = state;
        if let Some(link) = links.get(&number) {
            tracing::debug!(peer = %link.peer, link = number, "link stands");
            let asked_at = Instant::now();
            for (prefix, &serial) in filters.iter() {
                let wish = Unanswered { prefix: prefix.clone(), is_wanted: true, asked_at };
                send_wish(link, self.options.lane, serial, &wish);
                unanswered.insert((serial, number), wish);
            }
        }
        self.changed.notify_waiters();
        self.room.notify_waiters();
    }

    /// Answers somebody with whom there is no link.
    pub(super) fn answer(&self, to: Identity, channel: Channel, control: &Control) {
        if let Some(outlet) = self.node.outlet(to) {
            // Who hears nothing asks again.
            let _ = outlet.send(self.options.lane, channel, &[&control.encode()], Bytes::new());
        }
    }

    /// A data frame; what an intake shall take of it.
    pub(super) fn on_data(
        &self,
        state: &mut State,
        from: Identity,
        head: DataHead,
        items: Bytes,
    ) -> Option<(Remote, Bytes)> {
        let number = head.to;
        let class = head.class as usize;
        let Some(link) = state.links.get_mut(&number).filter(|link| link.peer == from) else {
            state.stats.stale += 1;
            return None;
        };
        if link.stage == Stage::Gone {
            state.stats.stale += 1;
            return None;
        }
        if items.is_empty() {
            // A question for credit. What waits here is the answer to it, unless nothing does.
            if !link.into[class].is_reachable(head.at) {
                state.stats.malformed += 1;
                self.cut(state, number);
            } else if link.inbox[class].is_empty() {
                let lost_before = link.into[class].lost;
                link.into[class].take(head.at, 0, 0);
                state.stats.lost = state.stats.lost.saturating_add(link.into[class].lost - lost_before);
                self.grant(link, head.class, true);
            }
            return None;
        }
        if !link.into[class].is_within(head.at, link.waiting[class]) {
            state.stats.malformed += 1;
            self.cut(state, number);
            return None;
        }
        if self.intake.is_some() {
            let remote = link.remote();
            let ends = link.ends_at.is_some();
            let items = self.account(state, number, head, items);
            if ends {
                self.end_if_complete(state, number);
            }
            return items.map(|items| (remote, items));
        }
        // A frame holds its whole read buffer: small ones that may wait for long are copied.
        let items = if items.len() < COPY_BYTES_MAX { Bytes::copy_from_slice(&items) } else { items };
        link.waiting[class].messages += 1;
        link.waiting[class].bytes += items.len() as u64;
        link.inbox[class].push_back((head, items));
        if let Some(waker) = link.reader.take() {
            waker.wake();
        }
        // A stream's links are read one by one.
        let ends = link.ends_at.is_some();
        if self.role != Role::Stream && !std::mem::replace(&mut link.is_listed[class], true) {
            state.listed[class].push_back(number);
        }
        if ends {
            self.end_if_complete(state, number);
        }
        None
    }
}

impl ChannelHandler for Core {
    fn poll_deliver(&self, _: &mut Context<'_>, from: Identity, frames: &mut Vec<Bytes>) -> Poll<()> {
        let mut frames = frames.drain(..);
        loop {
            let mut inline = None;
            let waker = {
                let mut state = self.state();
                let state = &mut *state;
                for frame in frames.by_ref() {
                    match wire::decode(frame) {
                        Ok(Frame::Data(head, items)) => inline = self.on_data(state, from, head, items),
                        Ok(Frame::Control(control)) => self.on_control(state, from, control),
                        Ok(Frame::OtherVersion { channel, link }) => {
                            let reject = Control::Reject { to: link, reason: Rejection::Version };
                            self.answer(from, Channel(channel), &reject);
                        }
                        Err(wire::Malformed) => state.stats.malformed += 1,
                    }
                    if inline.is_some() {
                        break;
                    }
                }
                if state.listed.iter().all(VecDeque::is_empty) { None } else { state.reader.take() }
            };
            if let Some(waker) = waker {
                waker.wake();
            }
            let (Some((remote, mut items)), Some(intake)) = (inline, &self.intake) else { break };
            while let Some(item) = wire::next_item(&mut items) {
                intake.take(self, remote, item);
            }
        }
        Poll::Ready(())
    }

    fn on_peer(&self, event: PeerEvent) {
        let mut state = self.state();
        match event {
            PeerEvent::Up(peer) => {
                for dial in state.dials.iter_mut().filter(|dial| dial.node == peer.node) {
                    dial.due = Some(Instant::now());
                }
            }
            PeerEvent::Down(peer) => {
                let lost: Vec<u32> =
                    state.links.values().filter(|link| link.peer == peer).map(|link| link.number).collect();
                lost.into_iter().for_each(|number| self.lose(&mut state, number, None));
            }
        }
        drop(state);
        self.chores.notify_one();
    }

    fn on_refused(&self, peer: Identity, channel: Channel) {
        let mut state = self.state();
        let refused = |link: &&Link| link.peer == peer && link.channel == channel;
        let lost: Vec<u32> = state.links.values().filter(refused).map(|link| link.number).collect();
        lost.into_iter().for_each(|number| self.lose(&mut state, number, Some(Answer::NoSocket)));
    }
}

/// Links that are over and not read out, of a socket that may have fewer links.
const GONE_LINKS_MAX: usize = 16;
/// Frames below this are copied when they wait for a reader, so that each holds at most 32 times its size of a read
/// buffer.
const COPY_BYTES_MAX: usize = 4 * 1024;
