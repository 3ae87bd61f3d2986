//! How much may travel on a link in one direction: credit that the reader grants, and what the writer used of it. Pure.
//!
//! Guarantee   a writer that keeps to it never has more under way than the reader's window and one message. What is
//!             lost with a connection is found by the numbers of what comes after it, counted, and given back.
//! Method      both sides count messages and bytes since the link began. The reader grants absolute amounts: what its
//!             user has taken plus the window; a grant that is lost or overtaken does no harm.

/// Messages and their bytes since a link began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Amount {
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

impl Amount {
    fn plus(self, more: Self) -> Self {
        Self {
            messages: self.messages.saturating_add(more.messages),
            bytes: self.bytes.saturating_add(more.bytes),
        }
    }
}

/// The writer's side.
#[derive(Debug, Default)]
pub(super) struct Outflow {
    /// What the reader granted at first, and grants beyond what its user has taken.
    window: Amount,
    pub(super) sent: Amount,
    pub(super) granted: Amount,
}

impl Outflow {
    /// Whether a message of any size may go now.
    pub(super) fn may_send(&self) -> bool {
        self.sent.messages < self.granted.messages && self.sent.bytes < self.granted.bytes
    }

    pub(super) fn on_sent(&mut self, bytes: usize) {
        self.sent = self.sent.plus(Amount { messages: 1, bytes: bytes as u64 });
    }

    /// The link stands: so much may go before the first grant.
    pub(super) fn begin(&mut self, window: Amount) {
        self.window = window;
        self.on_granted(window);
    }

    /// Messages that were sent and of which it is not known that the reader's user took them.
    pub(super) fn unconfirmed(&self) -> u64 {
        self.sent.messages
            - self.sent.messages.min(self.granted.messages.saturating_sub(self.window.messages))
    }

    pub(super) fn on_granted(&mut self, granted: Amount) {
        self.granted.messages = self.granted.messages.max(granted.messages);
        self.granted.bytes = self.granted.bytes.max(granted.bytes);
    }
}

/// The reader's side.
#[derive(Debug)]
pub(super) struct Inflow {
    window: Amount,
    /// What the user has taken, and what was lost before it.
    taken: Amount,
    granted: Amount,
    /// Of what was taken: what still fills the window, because it was only put aside.
    held: Amount,
    /// Messages that never came although later ones did.
    pub(super) lost: u64,
}

/// What became of a frame that the user takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Take {
    Fresh,
    /// Later ones were taken already: two connections overtook each other. It counts as lost.
    Late,
}

impl Inflow {
    /// A link whose writer may send `window` before the first grant.
    pub(super) fn new(window: Amount) -> Self {
        Self { window, taken: Amount::default(), granted: window, held: Amount::default(), lost: 0 }
    }

    /// What the user has taken, and what was lost before it.
    pub(super) fn taken(&self) -> Amount {
        self.taken
    }

    /// Whether the writer was allowed to send what begins at `at`, while `waiting` came before it and was not taken.
    /// What a writer says of its place is its word; what waits here is not.
    pub(super) fn is_within(&self, at: Amount, waiting: Amount) -> bool {
        let is_granted = at.bytes < self.granted.bytes && at.messages < self.granted.messages;
        is_granted && waiting.bytes < self.window.bytes && waiting.messages < self.window.messages
    }

    /// Whether a writer may have come to `at`: the last message of a grant may exceed it in bytes.
    pub(super) fn is_reachable(&self, at: Amount) -> bool {
        at.messages <= self.granted.messages
    }

    /// Notes that the user takes `messages` messages of together `bytes` bytes, the first of which is number
    /// `at.messages`. None at all is how a writer without credit tells how far it is.
    pub(super) fn take(&mut self, at: Amount, messages: u64, bytes: u64) -> Take {
        if at.messages < self.taken.messages {
            return Take::Late;
        }
        self.lost = self.lost.saturating_add(at.messages - self.taken.messages);
        self.taken = at.plus(Amount { messages, bytes });
        Take::Fresh
    }

    /// What was taken is put aside and goes on filling the window.
    pub(super) fn hold(&mut self, messages: u64, bytes: u64) {
        self.held = self.held.plus(Amount { messages, bytes });
    }

    /// What was put aside is used.
    pub(super) fn use_held(&mut self, messages: u64, bytes: u64) {
        self.held.messages = self.held.messages.saturating_sub(messages);
        self.held.bytes = self.held.bytes.saturating_sub(bytes);
    }

    /// What to tell the writer, once half of the window is used. `always` when it asked.
    pub(super) fn grant(&mut self, always: bool) -> Option<Amount> {
        let mut next = self.taken.plus(self.window);
        next.messages = next.messages.saturating_sub(self.held.messages).max(self.granted.messages);
        next.bytes = next.bytes.saturating_sub(self.held.bytes).max(self.granted.bytes);
        let is_due = next.messages.saturating_sub(self.granted.messages) > self.window.messages / 2
            || next.bytes.saturating_sub(self.granted.bytes) > self.window.bytes / 2;
        if !is_due && !always {
            return None;
        }
        self.granted = next;
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    const WINDOW: Amount = Amount { messages: 10, bytes: 100 };

    #[test]
    fn a_writer_stops_at_the_window_and_goes_on_with_the_grant() {
        let (mut writer, mut reader) =
            (Outflow { granted: WINDOW, ..Outflow::default() }, Inflow::new(WINDOW));
        let mut under_way = VecDeque::new();
        let mut total = 0;
        for size in [1_usize, 30, 7, 500, 3].into_iter().cycle().take(2_000) {
            while !writer.may_send() {
                let (at, size) = under_way.pop_front().unwrap();
                assert_eq!(reader.take(at, 1, size as u64), Take::Fresh);
                reader.grant(false).into_iter().for_each(|grant| writer.on_granted(grant));
            }
            assert!(reader.is_within(writer.sent, Amount::default()));
            under_way.push_back((writer.sent, size));
            writer.on_sent(size);
            total += 1;
            assert!(under_way.len() <= 10 && under_way.iter().map(|(_, size)| size).sum::<usize>() < 600);
        }
        assert_eq!((writer.sent.messages, reader.lost), (total, 0));
        let beyond = Amount { messages: total + 10, bytes: writer.sent.bytes };
        assert!(!reader.is_within(beyond, Amount::default()));
    }

    #[test]
    fn what_was_lost_with_a_connection_is_counted_and_given_back() {
        let (mut writer, mut reader) =
            (Outflow { granted: WINDOW, ..Outflow::default() }, Inflow::new(WINDOW));
        while writer.may_send() {
            writer.on_sent(4);
        }
        // All ten are lost. The writer tells how far it is, with nothing in it.
        assert_eq!(reader.take(writer.sent, 0, 0), Take::Fresh);
        assert_eq!(reader.lost, 10);
        writer.on_granted(reader.grant(true).unwrap());
        assert!(writer.may_send());
        assert_eq!(reader.take(Amount { messages: 3, bytes: 12 }, 1, 4), Take::Late);
        assert_eq!(reader.lost, 10);
    }
}
