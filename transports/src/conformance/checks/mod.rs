//! The checks, one promise each.

mod endings;
mod frames;
mod patience;
mod places;

use super::{CheckFn, Failure};

/// Every check by its name, in the order in which a failure says most.
pub(super) const ALL: &[(&str, CheckFn)] = &[
    ("addresses_carry_the_scheme", |s| Box::pin(places::addresses_carry_the_scheme(s))),
    ("frames_of_every_size_arrive_whole_and_in_order", |s| Box::pin(frames::sizes(s))),
    ("every_stream_delivers_all_of_it_in_its_order", |s| Box::pin(frames::streams(s))),
    ("a_batch_of_small_frames_arrives_whole_and_in_order", |s| Box::pin(frames::small_batch(s))),
    ("large_bodies_between_small_frames_arrive_whole", |s| Box::pin(frames::mixed_batch(s))),
    ("both_directions_carry_at_once", |s| Box::pin(frames::full_duplex(s))),
    ("halves_work_in_different_tasks", |s| Box::pin(frames::halves_apart(s))),
    ("nothing_arrives_unsent", |s| Box::pin(frames::silence(s))),
    ("closing_flushes_and_ends_cleanly", |s| Box::pin(endings::close_flushes(s))),
    ("closing_leaves_the_other_direction_open", |s| Box::pin(endings::half_close(s))),
    ("sending_after_closing_is_an_error", |s| Box::pin(endings::send_after_close(s))),
    ("a_slow_reader_makes_the_sender_wait_within_bounds", |s| Box::pin(endings::backpressure(s))),
    ("a_slow_reader_holds_up_its_own_link_only", |s| Box::pin(endings::independence(s))),
    ("a_frame_beyond_the_receivers_limit_is_refused", |s| Box::pin(frames::too_large(s))),
    ("a_dropped_link_is_noticed_by_both_halves_of_its_peer", |s| Box::pin(endings::dropped_link(s))),
    ("a_dropped_sender_is_noticed_by_its_receiver", |s| Box::pin(endings::dropped_sender(s))),
    ("an_abandoned_send_continues_where_it_stopped", |s| Box::pin(patience::abandoned_send(s))),
    ("an_abandoned_receive_loses_nothing", |s| Box::pin(patience::abandoned_receive(s))),
    ("the_last_waker_of_a_receiver_is_woken", |s| Box::pin(patience::last_waker(s))),
    ("an_abandoned_connect_leaves_the_listener_working", |s| Box::pin(patience::abandoned_connect(s))),
    ("an_abandoned_accept_loses_no_link", |s| Box::pin(patience::abandoned_accept(s))),
    ("connecting_to_nobody_is_refused", |s| Box::pin(places::refused(s))),
    ("an_address_in_use_is_refused_and_free_again_later", |s| Box::pin(places::in_use(s))),
    ("an_address_of_another_scheme_gives_no_link", |s| Box::pin(places::other_scheme(s))),
    ("many_links_of_one_listener_do_not_mix", |s| Box::pin(places::many_links(s))),
    ("several_listeners_do_not_mix", |s| Box::pin(places::many_listeners(s))),
    ("accepted_links_outlive_their_listener", |s| Box::pin(places::listener_dropped(s))),
    ("a_place_that_was_released_is_free", |s| Box::pin(places::released(s))),
    ("datagrams_arrive_whole_or_are_unsupported", |s| Box::pin(frames::datagrams(s))),
];

fn fail<T>(what: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::new(what))
}

/// The frame of the checks that fill a link.
const FRAME_BYTES: usize = 65_536;
/// What a link and the system below it may hold of what nobody reads. Loopback TCP takes some 6 MiB by default and up to
/// 32 MiB on machines tuned for long fat links.
const BUFFERED_BYTES_MAX: usize = 128 << 20;
