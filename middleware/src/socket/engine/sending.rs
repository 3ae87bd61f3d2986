//! The way out: choosing links, and what happens when there is no room.

use super::*;

impl Core {
    pub(in crate::socket) fn when_full(&self) -> WhenFull {
        let default = if self.role == Role::Publisher { WhenFull::DropNewest } else { WhenFull::Wait };
        self.options.when_full.unwrap_or(default)
    }

    pub(in crate::socket) fn lane(&self, class: Class) -> Lane {
        match class {
            Class::Ordinary => self.options.lane,
            Class::Urgent => Lane::Urgent,
        }
    }

    /// Sends one message, made of `head` and `body`, if there is room or as the socket's policy says.
    #[inline]
    pub(in crate::socket) fn try_send(
        &self,
        target: Target,
        class: Class,
        head: &[u8],
        body: &Body<'_>,
    ) -> Result<Remote, NotTaken> {
        let mut state = self.state();
        if state.phase != Phase::Open {
            return Err(SendError::Closed.into());
        }
        match target {
            Target::One(number) => self.send_one(&mut state, number, class, head, body),
            Target::Next => {
                let count = state.up.len();
                let mut not_taken = NotTaken::from(SendError::NoLink);
                for _ in 0..count {
                    state.cursor = if state.cursor + 1 < count { state.cursor + 1 } else { 0 };
                    let number = state.up[state.cursor];
                    match self.send_one(&mut state, number, class, head, body) {
                        Err(refused) if matches!(refused.error, SendError::Full) => {
                            not_taken.error = SendError::Full;
                            for outlet in refused.outlets {
                                if not_taken.outlets.iter().all(|known| known.peer() != outlet.peer()) {
                                    not_taken.outlets.push(outlet);
                                }
                            }
                        }
                        // Others may take more.
                        Err(refused) if matches!(refused.error, SendError::TooLarge { .. }) => {
                            if !matches!(not_taken.error, SendError::Full) {
                                not_taken.error = refused.error;
                            }
                        }
                        done => return done,
                    }
                }
                if matches!(not_taken.error, SendError::Full) && self.when_full() == WhenFull::DropNewest {
                    state.stats.dropped += 1;
                }
                Err(not_taken)
            }
        }
    }

    #[inline]
    pub(super) fn send_one(
        &self,
        state: &mut State,
        number: u32,
        class: Class,
        head: &[u8],
        body: &Body<'_>,
    ) -> Result<Remote, NotTaken> {
        let source = state.is_alone().then_some(&self.me);
        let Some(link) = state.links.get_mut(&number).filter(|link| link.is_up()) else {
            return Err(SendError::Gone.into());
        };
        let is_queueing = class == Class::Ordinary && self.when_full() == WhenFull::DropOldest;
        if !is_queueing && class == Class::Ordinary && !link.queue.is_empty() {
            // Behind what waits already.
            return Err(SendError::Full.into());
        }
        if !is_queueing || link.queue.is_empty() {
            match link.push(class, self.lane(class), head, body, source) {
                Ok(()) => {
                    state.stats.sent += 1;
                    self.after_push(link, head);
                    return Ok(link.remote());
                }
                Err(Refused::TooLarge { size, limit }) => {
                    return Err(SendError::TooLarge { size, limit }.into());
                }
                Err(refused) => {
                    let is_first = link.asked_at.is_none();
                    link.asked_at.get_or_insert_with(Instant::now);
                    if is_first || !matches!(refused, Refused::Credit) {
                        self.chores.notify_one();
                    }
                    if !is_queueing {
                        let outlets =
                            if let Refused::Lane(outlet) = refused { vec![outlet] } else { Vec::new() };
                        return Err(NotTaken { error: SendError::Full, outlets });
                    }
                }
            }
        }
        if link.queue.is_empty() {
            self.chores.notify_one();
        }
        let dropped = link.enqueue(head, body, self.options.queue_messages, self.options.queue_bytes);
        state.stats.dropped += dropped;
        state.stats.sent += 1;
        let remote = link.remote();
        if let Some(intake) = &self.intake {
            intake.on_sent(remote, head);
        }
        Ok(remote)
    }

    /// The shortest way, for one message to the link whose turn it is. False if anything speaks against it, and then
    /// nothing has happened: [`send`](Self::send) knows what to do.
    #[inline]
    pub(in crate::socket) fn send_now(
        &self,
        target: Target,
        class: Class,
        head: &[u8],
        body: &Body<'_>,
    ) -> bool {
        if self.is_crowded.load(Ordering::Relaxed) {
            return false;
        }
        let mut state = self.state();
        let Some((state, number, cursor)) = state.turn(target) else { return false };
        let source = state.is_alone().then_some(&self.me);
        let Some(link) = state.links.get_mut(&number).filter(|link| link.is_up() && link.queue.is_empty())
        else {
            return false;
        };
        if link.push(class, self.lane(class), head, body, source).is_err() {
            return false;
        }
        state.stats.sent += 1;
        state.cursor = cursor;
        self.after_push(link, head);
        true
    }

    /// The same for as many messages as the link takes at once: how many, and the one that did not go.
    fn send_run_now<'b>(
        &self,
        target: Target,
        first: Body<'b>,
        rest: &mut impl Iterator<Item = Body<'b>>,
    ) -> (u64, Option<Body<'b>>) {
        let mut state = self.state();
        let Some((state, number, cursor)) = state.turn(target) else { return (0, Some(first)) };
        let Some(link) = state.links.get_mut(&number).filter(|link| link.is_up() && link.queue.is_empty())
        else {
            return (0, Some(first));
        };
        let (sent, left) = link.push_run(Class::Ordinary, self.lane(Class::Ordinary), first, rest);
        if sent > 0 {
            state.stats.sent += sent;
            state.cursor = cursor;
            self.after_push(link, &[]);
        }
        (sent, left)
    }

    #[inline]
    fn after_push(&self, link: &Link, head: &[u8]) {
        if link.outlet.as_ref().is_some_and(Outlet::is_crowded) {
            self.is_crowded.store(true, Ordering::Relaxed);
        }
        if let Some(intake) = &self.intake {
            intake.on_sent(link.remote(), head);
        }
    }

    /// Sends one message, waiting for a link and for room where the socket's policy is to wait. What waits is boxed: a
    /// future that seldom waits is moved with every message, and should be small.
    #[inline]
    pub(in crate::socket) async fn send(
        &self,
        target: Target,
        class: Class,
        head: &[u8],
        body: &Body<'_>,
    ) -> Result<(), SendError> {
        if self.send_now(target, class, head, body) {
            return Ok(());
        }
        Box::pin(self.send_slowly(target, class, head, body)).await.map(drop)
    }

    /// Sends messages in order, as many under one lock as one link takes.
    ///
    /// # Errors
    /// Why one was not sent, and how many were sent before it.
    pub(in crate::socket) async fn send_many<'b>(
        &self,
        target: Target,
        mut bodies: impl Iterator<Item = Body<'b>>,
    ) -> Result<(), SendManyError> {
        let (mut next, mut sent) = (bodies.next(), 0);
        while let Some(body) = next {
            self.let_connection_write().await;
            let (count, left) = self.send_run_now(target, body, &mut bodies);
            sent += count;
            next = match left {
                // The run was as long as a run may be, or there was no room.
                Some(body) if count > 0 => Some(body),
                Some(body) => {
                    let done = Box::pin(self.send_slowly(target, Class::Ordinary, &[], &body)).await;
                    done.map_err(|source| SendManyError { sent, source })?;
                    sent += 1;
                    bodies.next()
                }
                None => None,
            };
        }
        Ok(())
    }

    /// Where the last message joined a crowd, lets the connection's task write it first if it is in this thread.
    #[inline]
    async fn let_connection_write(&self) {
        if self.is_crowded.load(Ordering::Relaxed) {
            self.is_crowded.store(false, Ordering::Relaxed);
            let_others_run().await;
        }
    }

    /// As [`send`](Self::send), and tells which link took it.
    pub(in crate::socket) async fn send_slowly(
        &self,
        target: Target,
        class: Class,
        head: &[u8],
        body: &Body<'_>,
    ) -> Result<Remote, SendError> {
        self.let_connection_write().await;
        match self.try_send(target, class, head, body) {
            Ok(remote) => return Ok(remote),
            Err(refused) if !self.waits_for(&refused.error) => return Err(refused.error),
            Err(_) => {}
        }
        loop {
            let mut room = pin!(self.room.notified());
            room.as_mut().enable();
            let refused = match self.try_send(target, class, head, body) {
                Ok(remote) => return Ok(remote),
                Err(refused) if !self.waits_for(&refused.error) => return Err(refused.error),
                Err(refused) => refused,
            };
            self.wait_room(room, &refused.outlets, self.lane(class)).await;
        }
    }

    fn waits_for(&self, error: &SendError) -> bool {
        match error {
            SendError::Full => self.when_full() == WhenFull::Wait,
            SendError::NoLink => true,
            _ => false,
        }
    }

    /// Waits until told of room, or until the lane of one of the outlets has some.
    pub(in crate::socket) async fn wait_room(
        &self,
        room: impl Future<Output = ()>,
        outlets: &[Outlet],
        lane: Lane,
    ) {
        let mut ready: Vec<_> = outlets.iter().map(|outlet| Box::pin(outlet.ready(lane))).collect();
        let any_ready = poll_fn(|cx| {
            let is_ready = ready.iter_mut().any(|ready| ready.as_mut().poll(cx).is_ready());
            if is_ready { Poll::Ready(()) } else { Poll::Pending }
        });
        tokio::select! {
            () = room => {}
            () = any_ready => {}
        }
    }

    /// Sends a reply from the task of a connection: without room it waits on the link, where it counts against the
    /// queue's limits.
    pub(in crate::socket) fn reply_now(&self, to: Remote, head: &[u8], body: &Body<'_>) {
        let mut state = self.state();
        let state = &mut *state;
        let Some(link) = state.links.get_mut(&to.link).filter(|link| link.is_up()) else { return };
        let is_sent = link.queue.is_empty()
            && link.push(Class::Ordinary, self.lane(Class::Ordinary), head, body, None).is_ok();
        if is_sent {
            state.stats.sent += 1;
        } else {
            let messages_max = self.options.window_messages.try_into().unwrap_or(usize::MAX);
            state.stats.dropped += link.enqueue(head, body, messages_max, self.options.queue_bytes);
            link.asked_at.get_or_insert_with(Instant::now);
            self.chores.notify_one();
        }
    }

    /// Sends, or queues within the queue's limits; how many messages must have left for it to have left too.
    pub(in crate::socket) fn send_or_queue(
        &self,
        number: u32,
        head: &[u8],
        body: &Body<'_>,
    ) -> Result<u64, SendError> {
        let mut state = self.state();
        if state.phase != Phase::Open {
            return Err(SendError::Closed);
        }
        let state = &mut *state;
        let Some(link) = state.links.get_mut(&number).filter(|link| link.is_up()) else {
            return Err(SendError::Gone);
        };
        if link.queue.is_empty() {
            match link.push(Class::Ordinary, self.lane(Class::Ordinary), head, body, None) {
                Ok(()) => {
                    state.stats.sent += 1;
                    return Ok(link.out[0].sent.messages);
                }
                Err(Refused::TooLarge { size, limit }) => return Err(SendError::TooLarge { size, limit }),
                Err(_) => {}
            }
        }
        let size = head.len() + body.len();
        if link.queue.len() >= self.options.queue_messages
            || (link.queue_bytes + size > self.options.queue_bytes && !link.queue.is_empty())
        {
            return Err(SendError::Full);
        }
        link.enqueue(head, body, usize::MAX, usize::MAX);
        link.asked_at.get_or_insert_with(Instant::now);
        state.stats.sent += 1;
        self.chores.notify_one();
        Ok(link.out[0].sent.messages + link.queue.len() as u64)
    }

    /// Waits until so many messages have left on the link.
    pub(in crate::socket) async fn wait_sent(&self, number: u32, messages: u64) -> Result<(), SendError> {
        loop {
            let mut room = pin!(self.room.notified());
            room.as_mut().enable();
            {
                let state = self.state();
                let Some(link) = state.links.get(&number).filter(|link| link.is_up()) else {
                    return Err(SendError::Gone);
                };
                if link.out[0].sent.messages >= messages {
                    return Ok(());
                }
            }
            room.await;
        }
    }

    /// Publishes to every link that wants `topic`.
    pub(in crate::socket) fn publish(&self, topic: &[u8], body: &Body<'_>) -> Result<usize, NotTaken> {
        let mut state = self.state();
        if state.phase != Phase::Open {
            return Err(SendError::Closed.into());
        }
        let Ok(topic_length) = u16::try_from(topic.len()) else {
            return Err(SendError::TooLarge { size: topic.len(), limit: u16::MAX.into() }.into());
        };
        let mut head = [0; PUBLISH_HEAD_MAX];
        let long;
        let head = match head.get_mut(..2 + topic.len()) {
            Some(head) => {
                head[..2].copy_from_slice(&topic_length.to_le_bytes());
                head[2..].copy_from_slice(topic);
                &*head
            }
            None => {
                long = [&topic_length.to_le_bytes(), topic].concat();
                &long
            }
        };
        let mut wanted = std::mem::take(&mut state.topics.wanted);
        state.topics.find(topic, &mut wanted);
        let sent = self.publish_to(&mut state, &wanted, head, body);
        wanted.clear();
        state.topics.wanted = wanted;
        sent
    }

    pub(super) fn publish_to(
        &self,
        state: &mut State,
        wanted: &[u32],
        head: &[u8],
        body: &Body<'_>,
    ) -> Result<usize, NotTaken> {
        if self.when_full() == WhenFull::Wait {
            // All or none, or the publisher would repeat what some have got.
            for number in wanted {
                if let Some(link) = state.links.get_mut(number).filter(|link| link.is_up())
                    && (!link.out[0].may_send() || !link.queue.is_empty())
                {
                    link.asked_at.get_or_insert_with(Instant::now);
                    self.chores.notify_one();
                    return Err(SendError::Full.into());
                }
            }
        }
        let (mut sent, mut too_large) = (0, None);
        for number in wanted {
            match self.send_one(state, *number, Class::Ordinary, head, body) {
                Ok(_) => sent += 1,
                Err(NotTaken { error: SendError::Full, .. }) => {
                    let Some(link) = state.links.get_mut(number) else { continue };
                    if self.when_full() == WhenFull::Wait {
                        // Its lane was full, and others have got the message: one waits here, the next is held up.
                        link.enqueue(head, body, usize::MAX, usize::MAX);
                        self.chores.notify_one();
                        sent += 1;
                    } else {
                        state.stats.dropped += 1;
                        link.dropped += 1;
                    }
                }
                Err(NotTaken { error: SendError::Gone, .. }) => {}
                // One that takes less than others misses it alone.
                Err(refused @ NotTaken { error: SendError::TooLarge { .. }, .. }) => {
                    state.stats.dropped += 1;
                    state.links.get_mut(number).into_iter().for_each(|link| link.dropped += 1);
                    too_large = Some(refused);
                }
                Err(refused) => return Err(refused),
            }
        }
        match too_large {
            Some(refused) if sent == 0 => Err(refused),
            _ => Ok(sent),
        }
    }

    /// Sends to every link that stands and has room; how many took it.
    pub(in crate::socket) fn send_all(&self, head: &[u8], body: &Body<'_>) -> Result<usize, SendError> {
        let mut state = self.state();
        if state.phase != Phase::Open {
            return Err(SendError::Closed);
        }
        let (mut taken, mut too_large) = (0, None);
        for at in 0..state.up.len() {
            let number = state.up[at];
            match self.send_one(&mut state, number, Class::Ordinary, head, body) {
                Ok(_) => taken += 1,
                Err(NotTaken { error: SendError::Full, .. }) => state.stats.dropped += 1,
                Err(NotTaken { error: error @ SendError::TooLarge { .. }, .. }) => {
                    state.stats.dropped += 1;
                    too_large = Some(error);
                }
                Err(refused) => return Err(refused.error),
            }
        }
        match too_large {
            Some(error) if taken == 0 => Err(error),
            _ => Ok(taken),
        }
    }
}

/// Lets the other tasks of this thread run once.
async fn let_others_run() {
    let mut is_second = false;
    // Not tokio's yield, which looks at the network as well.
    poll_fn(|cx| {
        if std::mem::replace(&mut is_second, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Topics up to 126 bytes need no allocation.
const PUBLISH_HEAD_MAX: usize = 128;
