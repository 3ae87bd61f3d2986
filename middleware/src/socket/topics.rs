//! Who wants what: prefixes of topics and the links that asked for them. Pure.
//!
//! Method      a map from prefix to links, asked once per length of prefix that anybody uses; not once per subscriber.
//! Limits      [`PREFIXES_MAX`] prefixes per link.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

#[derive(Debug, Default)]
pub(super) struct Topics {
    links: BTreeMap<Bytes, BTreeSet<u32>>,
    /// How many different prefixes of each length there are.
    lengths: BTreeMap<usize, usize>,
    of_link: BTreeMap<u32, BTreeSet<Bytes>>,
    /// Memory for results, so that publishing needs none.
    pub(super) wanted: Vec<u32>,
}

impl Topics {
    /// False when the link has as many prefixes as it may.
    pub(super) fn add(&mut self, prefix: &[u8], link: u32) -> bool {
        // A slice of a read buffer would keep all of it.
        let prefix = Bytes::copy_from_slice(prefix);
        let own = self.of_link.entry(link).or_default();
        if own.len() >= PREFIXES_MAX && !own.contains(&prefix) {
            return false;
        }
        own.insert(prefix.clone());
        let length = prefix.len();
        let links = self.links.entry(prefix).or_default();
        if links.is_empty() {
            *self.lengths.entry(length).or_default() += 1;
        }
        links.insert(link);
        true
    }

    pub(super) fn remove(&mut self, prefix: &[u8], link: u32) {
        if let Some(own) = self.of_link.get_mut(&link) {
            own.remove(prefix);
            if own.is_empty() {
                self.of_link.remove(&link);
            }
        }
        self.unlist(prefix, link);
    }

    pub(super) fn forget(&mut self, link: u32) {
        for prefix in self.of_link.remove(&link).unwrap_or_default() {
            self.unlist(&prefix, link);
        }
    }

    /// Appends the links that want `topic`, each once.
    pub(super) fn find(&self, topic: &[u8], wanted: &mut Vec<u32>) {
        let before = wanted.len();
        for length in self.lengths.range(..=topic.len()).map(|(length, _)| *length) {
            if let Some(links) = self.links.get(&topic[..length]) {
                wanted.extend(links);
            }
        }
        if self.lengths.len() > 1 {
            wanted[before..].sort_unstable();
            wanted.dedup();
        }
    }

    fn unlist(&mut self, prefix: &[u8], link: u32) {
        let Some(links) = self.links.get_mut(prefix) else { return };
        if links.remove(&link) && links.is_empty() {
            self.links.remove(prefix);
            if let Some(count) = self.lengths.get_mut(&prefix.len()) {
                *count -= 1;
                if *count == 0 {
                    self.lengths.remove(&prefix.len());
                }
            }
        }
    }
}

/// Prefixes that one link may ask for.
pub(super) const PREFIXES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_goes_once_to_every_link_with_a_prefix_of_it() {
        let mut topics = Topics::default();
        for (prefix, link) in [("", 1), ("a", 2), ("a/b", 2), ("a/b", 3), ("b", 4)] {
            assert!(topics.add(prefix.as_bytes(), link));
        }
        let find = |topics: &Topics, topic: &str| {
            let mut wanted = Vec::new();
            topics.find(topic.as_bytes(), &mut wanted);
            wanted
        };
        assert_eq!(find(&topics, "a/b/c"), [1, 2, 3]);
        assert_eq!(find(&topics, "a"), [1, 2]);
        assert_eq!(find(&topics, "c"), [1]);
        topics.remove(b"a/b", 2);
        topics.forget(1);
        assert_eq!(find(&topics, "a/b"), [2, 3]);
        topics.forget(2);
        topics.forget(3);
        topics.remove(b"b", 4);
        assert_eq!(find(&topics, "a/b"), [0_u32; 0]);
        assert!(topics.links.is_empty() && topics.lengths.is_empty() && topics.of_link.is_empty());
    }

    #[test]
    fn a_link_cannot_ask_for_more_than_the_limit() {
        let mut topics = Topics::default();
        assert!((0..PREFIXES_MAX).all(|n| topics.add(n.to_string().as_bytes(), 1)));
        assert!(!topics.add(b"one more", 1));
        assert!(topics.add(b"7", 1) && topics.add(b"one more", 2));
    }
}
