//! Who is in the group: failure detection, and views that all survivors agree on.

pub mod heartbeat;
pub mod view_sync;
