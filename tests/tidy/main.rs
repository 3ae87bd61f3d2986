//! Guards over the tree itself: facts that stand once, walls between rooms, habits that no compiler checks.
//!
//! Each area is a pure function from a [`Tree`](tree::Tree) to [`Finding`](tree::Finding)s, so that every checker
//! is also run on small planted violations: a checker that cannot fail proves nothing. A finding names the file,
//! the line and what to change.

mod catalogue;
mod direction;
mod facts;
mod habits;
mod purity;
mod source;
mod tree;
