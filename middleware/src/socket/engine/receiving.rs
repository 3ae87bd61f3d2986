//! The reader's way in: taking frames, link by link in turn, and granting what that makes room for.

use super::*;

impl Core {
    /// The next frame of any link, links in turn, urgent messages first.
    pub(in crate::socket) fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Result<Taken, ReceiveError>> {
        let mut state = self.state();
        match self.take_frame(&mut state, None) {
            Err(ReceiveError::Empty) => {}
            done => return Poll::Ready(done),
        }
        match &mut state.reader {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            slot => *slot = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// The next frame of one link and class.
    pub(in crate::socket) fn poll_frame_of(
        &self,
        cx: &mut Context<'_>,
        link: u32,
    ) -> Poll<Result<Taken, ReceiveError>> {
        let mut state = self.state();
        match self.take_frame(&mut state, Some(link)) {
            Err(ReceiveError::Empty) => {}
            done => return Poll::Ready(done),
        }
        if let Some(link) = state.links.get_mut(&link) {
            link.reader = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    pub(in crate::socket) fn try_frame(&self) -> Result<Taken, ReceiveError> {
        self.take_frame(&mut self.state(), None)
    }

    pub(super) fn take_frame(&self, state: &mut State, only: Option<u32>) -> Result<Taken, ReceiveError> {
        for class in [Class::Urgent, Class::Ordinary] {
            let at = class as usize;
            loop {
                let number = match only {
                    Some(number) => number,
                    None => match state.listed[at].pop_front() {
                        Some(number) => number,
                        None => break,
                    },
                };
                let Some(link) = state.links.get_mut(&number) else {
                    if only.is_some() {
                        break;
                    }
                    continue;
                };
                let Some((head, items)) = link.inbox[at].pop_front() else {
                    link.is_listed[at] = false;
                    if only.is_some() {
                        break;
                    }
                    continue;
                };
                link.waiting[at].messages -= 1;
                link.waiting[at].bytes -= items.len() as u64;
                let from = link.remote();
                if only.is_none() {
                    // The others first: links are read in turn.
                    if link.inbox[at].is_empty() {
                        link.is_listed[at] = false;
                    } else {
                        state.listed[at].push_back(number);
                    }
                }
                let taken = self.account(state, number, head, items);
                let is_done = |link: &Link| link.stage == Stage::Gone && link.is_drained();
                if self.role != Role::Stream && state.links.get(&number).is_some_and(is_done) {
                    state.links.remove(&number);
                }
                if let Some(taken) = taken {
                    return Ok(Taken { from, class, items: taken });
                }
            }
        }
        if let Some(number) = only {
            match state.links.get(&number) {
                Some(link) if link.stage != Stage::Gone => {}
                Some(link) if !link.is_ended && state.phase == Phase::Open => {
                    return Err(ReceiveError::Broken);
                }
                _ => return Err(ReceiveError::Closed),
            }
        }
        Err(if state.phase == Phase::Open { ReceiveError::Empty } else { ReceiveError::Closed })
    }

    /// Counts a frame as taken and grants; `None` when there is nothing in it to be delivered.
    pub(super) fn account(
        &self,
        state: &mut State,
        number: u32,
        head: DataHead,
        items: Bytes,
    ) -> Option<Bytes> {
        let link = state.links.get_mut(&number)?;
        let Ok(count) = wire::count_items(&items) else {
            state.stats.malformed += 1;
            self.cut(state, number);
            return None;
        };
        let flow = &mut link.into[head.class as usize];
        let lost_before = flow.lost;
        let take = flow.take(head.at, count, items.len() as u64);
        let lost = flow.lost - lost_before;
        state.stats.lost = state.stats.lost.saturating_add(lost);
        if lost > 0 && self.role == Role::Stream {
            // A stream without its middle is broken where that begins.
            (link.inbox, link.waiting) = Default::default();
            self.cut(state, number);
            return None;
        }
        if take == Take::Late {
            state.stats.late += count;
            return None;
        }
        state.stats.received += count;
        if self.role == Role::Communicator {
            flow.hold(count, items.len() as u64);
        }
        self.grant(link, head.class, false);
        Some(items)
    }

    /// A message that was put aside is used, and makes room.
    pub(in crate::socket) fn use_held(&self, number: u32, bytes: usize) {
        let mut state = self.state();
        if let Some(link) = state.links.get_mut(&number) {
            link.into[Class::Ordinary as usize].use_held(1, (wire::ITEM_OVERHEAD + bytes) as u64);
            self.grant(link, Class::Ordinary, false);
        }
    }

    /// Grants what the reader has made room for.
    pub(super) fn grant(&self, link: &mut Link, class: Class, always: bool) {
        let Some(granted) = link.into[class as usize].grant(always) else { return };
        if !link.is_up() {
            return;
        }
        let control = Control::Grant { to: link.theirs, class, granted };
        if !send_control(link, Lane::Urgent, &control) {
            link.is_grant_due[class as usize] = true;
            self.chores.notify_one();
        }
    }
}
