//! The life of links: dialling, coming to be, being lost, and the chores of the socket's task.

use super::*;

impl Core {
    /// Links with the socket `name` of the node at `address`, and keeps linked with it from now on.
    pub(in crate::socket) async fn connect<A>(&self, name: &str, address: A) -> Result<Remote, ConnectError>
    where
        A: TryInto<Address>,
        A::Error: Into<AddressError>,
    {
        let address: Address = address.try_into().map_err(|error| ConnectError::Address(error.into()))?;
        let began = Instant::now();
        // A sum with a time must stay one.
        let patience = self.options.connect_wait.min(WAIT_MAX);
        let mut pause = RETRY_MIN;
        let identity = loop {
            if self.state().phase != Phase::Open {
                return Err(ConnectError::Closed);
            }
            // A node does not dial itself, but a socket is called by its address wherever it is.
            if self.node.addresses().contains(&address) {
                break self.node.identity();
            }
            match self.node.connect(&address).await {
                Ok(identity) => break identity,
                Err(source) if source.is_retryable() && began.elapsed() + pause < patience => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
                Err(source) => return Err(ConnectError::Node { address, source }),
            }
        };
        let channel = Channel::named("socket", name);
        let is_new = {
            let mut state = self.state();
            let known = state.dials.iter().any(|dial| dial.node == identity.node && dial.channel == channel);
            if !known {
                let due = Some(Instant::now());
                let dial = Dial { node: identity.node, channel, link: None, failures: 0, due, answer: None };
                state.dials.push(dial);
                self.keep(&mut state);
            }
            !known
        };
        self.chores.notify_one();
        // Takes the dial back when it fails, or when the caller does not wait for the end.
        let mut undo = Undo { core: is_new.then_some(self), node: identity.node, channel };
        let outcome = tokio::time::timeout(
            patience.saturating_sub(began.elapsed()) + ANSWER_MAX,
            self.linked(identity.node, channel, began + patience),
        );
        let error = match outcome.await {
            Ok(Ok(remote)) => {
                undo.core = None;
                return Ok(remote);
            }
            Ok(Err(None)) => ConnectError::Closed,
            Ok(Err(Some(Answer::NoSocket))) => ConnectError::NoSocket { address, name: name.to_owned() },
            Ok(Err(Some(Answer::Rejected(reason)))) => {
                ConnectError::Rejected { address, name: name.to_owned(), reason }
            }
            Err(_) => ConnectError::NoAnswer { address, name: name.to_owned(), waited: began.elapsed() },
        };
        Err(error)
    }

    /// Waits until the link stands, or for an answer that says that it will not.
    pub(super) async fn linked(
        &self,
        node: NodeId,
        channel: Channel,
        patient_until: Instant,
    ) -> Result<Remote, Option<Answer>> {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let state = self.state();
                let dial = state.dials.iter().find(|dial| dial.node == node && dial.channel == channel);
                let Some(dial) = dial.filter(|_| state.phase == Phase::Open) else { return Err(None) };
                let link = dial.link.and_then(|link| state.links.get(&link));
                if let Some(link) = link.filter(|link| link.is_up()) {
                    return Ok(link.remote());
                }
                match dial.answer {
                    Some(Answer::Rejected(reason)) if reason != Rejection::Busy => {
                        return Err(dial.answer);
                    }
                    Some(answer) if Instant::now() >= patient_until => return Err(Some(answer)),
                    _ => {}
                }
            }
            changed.await;
        }
    }

    /// Lets the socket's task look whether something is due.
    pub(in crate::socket) fn look_after(&self) {
        self.chores.notify_one();
    }

    /// Waits until `enough` of the links.
    pub(in crate::socket) async fn wait_links(
        &self,
        enough: impl Fn(usize) -> bool,
    ) -> Result<(), SendError> {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let state = self.state();
                if enough(state.up.len()) {
                    return Ok(());
                }
                if state.phase != Phase::Open {
                    return Err(SendError::Closed);
                }
            }
            changed.await;
        }
    }

    /// Ends a link whose other side breaks the rules.
    pub(super) fn cut(&self, state: &mut State, number: u32) {
        if let Some(link) = state.links.get(&number) {
            send_close(link, self.options.lane);
            tracing::warn!(peer = %link.peer, "a link is cut: its frames make no sense");
        }
        self.lose(state, number, None);
    }

    /// A link is over. A dial for it is tried again, later when the other side is alive and has no such socket.
    pub(super) fn lose(&self, state: &mut State, number: u32, answer: Option<Answer>) {
        let State { phase, links, up, dials, topics, accepting, unanswered, stats, left, .. } = state;
        let Some(link) = links.get_mut(&number).filter(|link| link.stage != Stage::Gone) else { return };
        let was_up = link.is_up();
        link.stage = Stage::Gone;
        if *phase == Phase::Closing && was_up {
            left.add(link.left());
        }
        link.hand_over();
        link.outlet = None;
        stats.dropped += link.queue.len() as u64;
        link.queue.clear();
        link.queue_bytes = 0;
        let reader = link.reader.take();
        let remote = link.remote();
        // Of a stream its user lets go; nobody has one yet that was not accepted.
        let is_kept = match self.role {
            Role::Stream => !accepting.contains(&number),
            _ => !link.is_drained(),
        };
        up.retain(|other| *other != number);
        topics.forget(number);
        accepting.retain(|other| *other != number);
        unanswered.retain(|(_, link), _| *link != number);
        for dial in dials.iter_mut().filter(|dial| dial.link == Some(number)) {
            dial.link = None;
            dial.answer = answer;
            dial.failures = if was_up { 0 } else { dial.failures.saturating_add(1) };
            let is_final = matches!(answer, Some(Answer::Rejected(Rejection::Kind | Rejection::Version)));
            dial.due = (!is_final).then(|| Instant::now() + self.pause(dial));
        }
        if !is_kept {
            links.remove(&number);
        }
        if was_up {
            stats.links_lost += 1;
            tracing::debug!(peer = %remote.identity, link = number, "link lost");
        }
        if let Some(waker) = reader {
            waker.wake();
        }
        if let Some(intake) = self.intake.as_ref().filter(|_| was_up) {
            intake.on_gone(remote);
        }
        self.changed.notify_waiters();
        self.room.notify_waiters();
        self.chores.notify_one();
    }

    /// Forgets a link that its user is done with, and tells the other side.
    pub(in crate::socket) fn release(&self, number: u32) {
        let mut state = self.state();
        if let Some(link) = state.links.get(&number).filter(|link| link.is_up() && !link.is_close_sent) {
            send_close(link, self.options.lane);
        }
        self.lose(&mut state, number, None);
        state.links.remove(&number);
    }

    /// The links that this side dials, in the order of the calls; `None` for those that do not stand.
    pub(in crate::socket) fn dialled(&self) -> Vec<Option<u32>> {
        let state = self.state();
        let standing = |link: &u32| state.links.get(link).is_some_and(Link::is_up);
        state.dials.iter().map(|dial| dial.link.filter(standing)).collect()
    }

    /// Links that are lost from now on are not made anew.
    pub(in crate::socket) fn stop_dialling(&self) {
        self.state().dials.clear();
    }

    /// Tells the other side of a link that this was all and waits for its word that it arrived, at most `deadline`.
    pub(in crate::socket) async fn close_link(&self, number: u32, deadline: Duration) -> Left {
        let closed = async {
            loop {
                let mut changed = pin!(self.changed.notified());
                changed.as_mut().enable();
                let full = {
                    let mut state = self.state();
                    let Some(link) = state.links.get_mut(&number).filter(|link| link.is_up()) else { return };
                    if !link.is_close_sent {
                        link.is_close_sent = send_close(link, self.options.lane);
                    }
                    if link.is_close_sent { None } else { link.outlet.clone() }
                };
                self.wait_room(changed, full.as_slice(), self.options.lane).await;
            }
        };
        // Out of time is told by what is left.
        let _ = tokio::time::timeout(deadline, closed).await;
        let state = self.state();
        state.links.get(&number).map_or_else(Left::default, Link::left)
    }

    /// The pause before a dial's next hello, a little different for each, so that many do not come back at once.
    pub(super) fn pause(&self, dial: &Dial) -> Duration {
        let pause = RETRY_MIN.saturating_mul(1 << dial.failures.min(6)).min(RETRY_MAX);
        let mixed = (self.channel.0 ^ u64::from(dial.failures)).wrapping_mul(SPREAD) >> 56;
        pause - pause / 2 * u32::try_from(mixed).unwrap_or(0) / 256
    }

    pub(super) fn hello(&self, link: &Link) -> Control {
        Control::Hello {
            role: self.role,
            channel: self.channel.0,
            link: link.number,
            windows: self.options.windows(),
            name: self.own_name.clone(),
        }
    }

    /// Does what is due and says when to look again, and which lane to wait for.
    pub(super) fn keep(&self, state: &mut State) -> (Option<Instant>, Option<Outlet>) {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        let mut wake_at = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        let is_littered = !state.dials.is_empty() && self.is_littered(state.gone());
        for at in 0..state.dials.len() {
            let dial = &mut state.dials[at];
            let Some(due) = dial.due.filter(|_| dial.link.is_none()) else { continue };
            if due > now {
                wake_at(due);
                continue;
            }
            if is_littered {
                dial.due = Some(now + RETRY_MAX);
                wake_at(now + RETRY_MAX);
                continue;
            }
            // Nobody to say hello to: the node tells when there is.
            dial.due = None;
            let identity = if dial.node == self.node.identity().node {
                Some(self.node.identity())
            } else {
                self.node.peers().into_iter().find(|peer| peer.node == dial.node)
            };
            let Some((identity, outlet)) = identity.and_then(|id| Some((id, self.node.outlet(id)?))) else {
                continue;
            };
            let number = self.node.fresh_number();
            dial.link = Some(number);
            let link = Link::new(number, identity, dial.channel, self.options.windows(), Some(outlet));
            state.links.insert(number, link);
        }
        let State { links, filters, unanswered, phase, .. } = state;
        // A wish that was changed meanwhile is not repeated: its answer would undo the later one.
        unanswered.retain(|(serial, _), wish| match filters.get(&wish.prefix) {
            Some(latest) => wish.is_wanted && latest == serial,
            None => !wish.is_wanted,
        });
        for ((serial, number), wish) in unanswered.iter_mut() {
            if wish.asked_at + ASK_AGAIN <= now
                && let Some(link) = links.get(number)
            {
                wish.asked_at = now;
                send_wish(link, self.options.lane, *serial, wish);
            }
            wake_at(wish.asked_at + ASK_AGAIN);
        }
        let (mut full, mut torn) = (None, Vec::new());
        for link in links.values_mut() {
            if link.stage == Stage::Gone {
                continue;
            }
            if let Some((_, since)) = link.ends_at {
                if since + ANSWER_MAX <= now {
                    torn.push(link.number);
                    continue;
                }
                wake_at(since + ANSWER_MAX);
            }
            if link.outlet.is_none() {
                link.outlet = self.node.outlet(link.peer);
                if link.outlet.is_none() {
                    wake_at(now + OUTLET_PAUSE);
                    continue;
                }
                self.room.notify_waiters();
            }
            let overdue = |since: Option<Instant>| since.is_none_or(|since| since + ASK_AGAIN <= now);
            if link.stage == Stage::Connecting {
                if overdue(link.asked_at) {
                    link.asked_at = Some(now);
                    send_control(link, self.options.lane, &self.hello(link));
                }
                wake_at(link.asked_at.unwrap_or(now) + ASK_AGAIN);
                continue;
            }
            for class in [Class::Ordinary, Class::Urgent] {
                if std::mem::take(&mut link.is_grant_due[class as usize]) {
                    self.grant(link, class, true);
                    if link.is_grant_due[class as usize] {
                        wake_at(now + OUTLET_PAUSE);
                    }
                }
            }
            if !link.queue.is_empty() {
                if let Err(Refused::Lane(outlet)) = link.flush(self.lane(Class::Ordinary)) {
                    full = Some(outlet);
                }
                self.room.notify_waiters();
            }
            if *phase == Phase::Closing && link.queue.is_empty() && !link.is_close_sent {
                link.is_close_sent = send_close(link, self.options.lane);
                if !link.is_close_sent {
                    full = link.outlet.clone();
                }
            }
            if full.is_some() {
                // There may be several; one is waited for.
                wake_at(now + LANE_PAUSE);
            }
            let starved = [Class::Ordinary, Class::Urgent].map(|c| !link.out[c as usize].may_send());
            if let Some(asked_at) = link.asked_at {
                if starved == [false; 2] {
                    link.asked_at = None;
                } else if asked_at + ASK_AGAIN <= now {
                    link.asked_at = Some(now);
                    for class in [Class::Ordinary, Class::Urgent] {
                        if starved[class as usize] {
                            link.probe(class, self.lane(class));
                        }
                    }
                    wake_at(now + ASK_AGAIN);
                } else {
                    wake_at(asked_at + ASK_AGAIN);
                }
            }
        }
        // The rest went down with a connection: nobody tells the other side that it came.
        torn.into_iter().for_each(|number| self.lose(state, number, None));
        self.changed.notify_waiters();
        (next, full)
    }

    /// The socket's task.
    pub(super) async fn work(&self) {
        loop {
            let (next, full) = {
                let mut state = self.state();
                self.keep(&mut state)
            };
            let sleeping = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            let ready = async {
                match full {
                    // It may be over: then the node tells what follows, or the next look finds it.
                    Some(outlet) if outlet.ready(self.options.lane).await.is_ok() => {}
                    Some(_) => tokio::time::sleep(OUTLET_PAUSE).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.chores.notified() => {}
                () = sleeping => {}
                () = ready => {}
            }
        }
    }
}

/// Takes a dial back.
struct Undo<'a> {
    core: Option<&'a Core>,
    node: NodeId,
    channel: Channel,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        let Some(core) = self.core else { return };
        let mut state = core.state();
        let Some(at) =
            state.dials.iter().position(|dial| dial.node == self.node && dial.channel == self.channel)
        else {
            return;
        };
        let dial = state.dials.remove(at);
        if let Some(number) = dial.link {
            if let Some(link) = state.links.get(&number).filter(|link| link.is_up()) {
                send_close(link, core.options.lane);
            }
            core.lose(&mut state, number, None);
            state.links.remove(&number);
        }
    }
}

/// The first pause before a hello is repeated to a node without the socket; doubles.
const RETRY_MIN: Duration = Duration::from_millis(20);
/// The longest one.
const RETRY_MAX: Duration = Duration::from_secs(1);
/// A hello or a question for credit without an answer is repeated after so long.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Longer waits than this are cut to it.
pub(in crate::socket) const WAIT_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// How long a connected node may take to answer a hello or a subscriber's wish, and how long the messages that were sent
/// before the end of a link may come behind the word of the end.
pub(in crate::socket) const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Between looks whether a broken connection has a successor.
const OUTLET_PAUSE: Duration = Duration::from_millis(100);
/// Between looks at full lanes beside the one that is waited for.
const LANE_PAUSE: Duration = Duration::from_millis(10);
