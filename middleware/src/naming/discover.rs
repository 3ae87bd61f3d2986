//! Members of groups found by their group's name.

use quorate_transports::{Address, BoxFuture};

use super::{Names, Query};
use crate::group::Discover;

/// Members that have registered their addresses under the name of their group.
impl Discover for Names {
    fn find<'a>(&'a self, group: &'a str) -> BoxFuture<'a, Vec<Address>> {
        Box::pin(async move {
            let found = self.lookup(&Query::named(group)).await.unwrap_or_else(|error| {
                tracing::warn!(group, %error, "the directory does not say where members are");
                Vec::new()
            });
            found.into_iter().flat_map(|entry| entry.addresses).collect()
        })
    }
}
