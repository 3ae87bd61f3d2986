//! A room as every member keeps it: who is who, and what was said lately.
//!
//! Guarantee   what a member prints of others holds no control characters: nobody's text drives another's terminal.
//! Limits      [`NAME_CHARS_MAX`], [`TEXT_BYTES_MAX`], [`HISTORY_LINES_MAX`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

/// The longest name.
pub const NAME_CHARS_MAX: usize = 24;
/// The longest line of text; the rest is cut off.
pub const TEXT_BYTES_MAX: usize = 2_000;
/// How many lines a late joiner is given.
pub const HISTORY_LINES_MAX: usize = 100;

/// What members send each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The sender's name, said once when it has joined.
    Hello(String),
    /// A line of text.
    Say(String),
}

/// The room's state; a joiner receives it from an older member.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    names: BTreeMap<u64, String>,
    /// From the views, which every member sees for itself.
    #[serde(skip)]
    present: BTreeSet<u64>,
    history: VecDeque<String>,
    /// An older member has told what was before.
    #[serde(skip)]
    is_known: bool,
}

impl Room {
    /// Takes a message of member `from`; the line to print, if it gives one.
    pub fn take(&mut self, from: u64, message: Message) -> Option<String> {
        match message {
            Message::Hello(name) => {
                let name = clean(&name, NAME_CHARS_MAX);
                let is_news = self.names.insert(from, name.clone()).as_ref() != Some(&name);
                is_news.then(|| format!("* {name} is here"))
            }
            Message::Say(text) => {
                let line = format!("{}: {}", self.name(from), clean(&text, TEXT_BYTES_MAX));
                if self.history.len() == HISTORY_LINES_MAX {
                    self.history.pop_front();
                }
                self.history.push_back(line.clone());
                Some(line)
            }
        }
    }

    /// Takes a new view: the members that are here now. Lines for those who are gone and had told their names.
    pub fn install(&mut self, members: &[u64]) -> Vec<String> {
        let now: BTreeSet<u64> = members.iter().copied().collect();
        let gone = self.present.difference(&now).filter_map(|node| self.names.get(node));
        let gone = gone.map(|name| format!("* {name} is gone")).collect();
        self.names.retain(|node, _| now.contains(node));
        self.present = now;
        gone
    }

    /// Takes an older member's names and history.
    pub fn adopt(&mut self, theirs: Self) {
        self.names = theirs.names;
        self.history = theirs.history;
        self.is_known = true;
    }

    /// True until an older member's names and history are here.
    pub fn is_new(&self) -> bool {
        !self.is_known
    }

    /// Somebody has this name. Two who come at the same moment do not see each other and may both take it.
    pub fn is_taken(&self, name: &str) -> bool {
        self.names.values().any(|taken| taken == name)
    }

    /// The names of all who are here.
    pub fn who(&self) -> String {
        let mut names: Vec<String> = self.present.iter().map(|node| self.name(*node)).collect();
        names.sort();
        format!("* here: {}", names.join(", "))
    }

    /// What was said lately, the oldest first.
    pub fn history(&self) -> impl Iterator<Item = &str> {
        self.history.iter().map(String::as_str)
    }

    fn name(&self, node: u64) -> String {
        self.names.get(&node).cloned().unwrap_or_else(|| "somebody".to_owned())
    }
}

/// A name that every terminal can show, or why it is none.
pub fn check_name(name: &str) -> Result<String, String> {
    let is_good = (1..=NAME_CHARS_MAX).contains(&name.chars().count())
        && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if is_good {
        Ok(name.to_owned())
    } else {
        Err(format!("a name has 1 to {NAME_CHARS_MAX} letters, digits, or any of - _ ."))
    }
}

fn clean(text: &str, limit: usize) -> String {
    let mut clean: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    if clean.len() > limit {
        clean.truncate(clean.floor_char_boundary(limit));
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(text: &str) -> Message {
        Message::Say(text.to_owned())
    }

    #[test]
    fn members_are_announced_by_name_once_and_missed_by_name() {
        let mut room = Room::default();
        assert_eq!(room.install(&[1]), Vec::<String>::new());
        assert_eq!(room.take(1, Message::Hello("ann".into())).as_deref(), Some("* ann is here"));
        room.install(&[1, 2]);
        assert_eq!(room.take(2, Message::Hello("bob".into())).as_deref(), Some("* bob is here"));
        assert_eq!(room.take(2, Message::Hello("bob".into())), None);
        assert_eq!(room.who(), "* here: ann, bob");
        assert_eq!(room.install(&[1]), ["* bob is gone"]);
        assert_eq!(room.who(), "* here: ann");
    }

    #[test]
    fn a_joiner_sees_the_latest_lines_only() {
        let mut room = Room::default();
        for n in 0..HISTORY_LINES_MAX + 5 {
            room.take(1, say(&format!("line {n}")));
        }
        assert_eq!(room.history().count(), HISTORY_LINES_MAX);
        assert_eq!(room.history().next(), Some("somebody: line 5"));
    }

    #[test]
    fn a_name_is_taken_while_its_owner_is_here() {
        let mut older = Room::default();
        older.install(&[1]);
        older.take(1, Message::Hello("ann".into()));
        let mut room = Room::default();
        assert!(room.is_new());
        room.adopt(older);
        assert!(!room.is_new() && room.is_taken("ann") && !room.is_taken("bob"));
        room.install(&[2]);
        assert!(!room.is_taken("ann"));
    }

    #[test]
    fn nobody_drives_anothers_terminal() {
        let mut room = Room::default();
        room.take(1, Message::Hello("a\x1b[2Jnn".into()));
        assert_eq!(room.take(1, say("\x1b]0;owned\x07")).as_deref(), Some("a?[2Jnn: ?]0;owned?"));
        let long = room.take(1, say(&"\u{e9}".repeat(TEXT_BYTES_MAX))).expect("a line");
        assert!(long.len() <= TEXT_BYTES_MAX + NAME_CHARS_MAX + 2);
    }

    #[test]
    fn names_are_checked() {
        assert_eq!(check_name("ann-2").as_deref(), Ok("ann-2"));
        for name in ["", "a b", "x\n", "abcdefghijklmnopqrstuvwxyz"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
