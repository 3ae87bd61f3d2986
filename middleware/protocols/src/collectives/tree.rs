//! The binomial tree over ranks, turned so that the root is in front. Pure arithmetic.
//!
//! A member's place is its distance from the root. Its parent's place is its own without the lowest set bit; below it
//! lie the places up to the next one that has that bit, in one run.

/// The parent's rank; `None` for the root.
pub(super) fn parent(rank: u32, root: u32, size: u32) -> Option<u32> {
    let place = place(rank, root, size);
    (place != 0).then(|| at(place & (place - 1), root, size))
}

/// The children's ranks, the smallest subtree first, each with how far behind this member its run of places begins.
pub(super) fn children(rank: u32, root: u32, size: u32) -> Vec<(u32, u32)> {
    let place = place(rank, root, size);
    let below = u64::from(span(rank, root, size));
    (0..32)
        .map(|bit| 1_u64 << bit)
        .take_while(|offset| *offset < below)
        .map(|offset| (at(place + offset as u32, root, size), offset as u32))
        .collect()
}

/// How many members the subtree has, its topmost one included.
pub(super) fn span(rank: u32, root: u32, size: u32) -> u32 {
    let place = place(rank, root, size);
    let left = size - place;
    if place == 0 { left } else { left.min(1 << place.trailing_zeros()) }
}

fn place(rank: u32, root: u32, size: u32) -> u32 {
    (u64::from(rank) + u64::from(size) - u64::from(root)).checked_rem(size.into()).unwrap_or(0) as u32
}

fn at(place: u32, root: u32, size: u32) -> u32 {
    (u64::from(place) + u64::from(root)).checked_rem(size.into()).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s05_every_member_is_below_the_root_once_and_not_deeper_than_the_logarithm() {
        for size in 1..70_u32 {
            for root in [0, 1, size / 2, size - 1].into_iter().filter(|root| *root < size) {
                let depth = |mut rank: u32| {
                    let mut depth = 0;
                    while let Some(above) = parent(rank, root, size) {
                        assert!(children(above, root, size).iter().any(|(child, _)| *child == rank));
                        rank = above;
                        depth += 1;
                    }
                    assert_eq!(rank, root);
                    depth
                };
                let deepest = (0..size).map(depth).max().unwrap_or(0);
                assert!(deepest <= 32 - (size - 1).leading_zeros(), "{deepest} for {size}");
                for rank in 0..size {
                    let children = children(rank, root, size);
                    let below: u32 = children.iter().map(|(child, _)| span(*child, root, size)).sum();
                    assert_eq!(span(rank, root, size), below + 1);
                    // Their runs of places follow each other.
                    let mut next = 1;
                    for (child, offset) in children {
                        assert_eq!(offset, next);
                        next += span(child, root, size);
                    }
                }
            }
        }
    }
}
