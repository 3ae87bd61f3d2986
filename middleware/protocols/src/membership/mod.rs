//! Who is in the group: failure detection, and views that all survivors agree on.

pub mod detector;
pub mod gossip;
pub mod heartbeat;
pub mod phi;
pub mod reunion;
pub mod swim;
pub mod view_sync;
