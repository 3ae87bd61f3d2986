//! Large messages: in fragments, whole, and in their order.

use bytes::Bytes;
use quorate::group::{Builder, Causal, Fifo, JoinError, Limits, Order, Total};
use tests::{Net, everywhere, nets, tcp, within};

/// What the nodes' connections carry.
const CARRIED_BYTES_MAX: usize = 16 << 10;

fn message(size: usize, number: usize) -> Bytes {
    (0..size).map(|place| (place / 7 + number) as u8).collect()
}

async fn among_small_ones<O: Order>(net: Net, builder: Builder<O>)
where
    Builder<O>: Clone,
{
    let small = async |id| {
        let mut limits = quorate::node::Limits::default();
        limits.connection.message_bytes_max = CARRIED_BYTES_MAX;
        net.builder(id).limits(limits).start().await.expect("the node starts")
    };
    let (one, two) = (small(1).await, small(2).await);
    let mut limits = Limits::default();
    limits.payload_bytes_max = 2 << 20;
    let builder = builder.stateless().limits(limits);
    let (group, _events) = within(builder.clone().create(&one)).await.expect("founds the group");
    let (_second, mut events) = within(builder.join(&two, &one.addresses())).await.expect("joins the group");
    // One that fits a connection's message by a hair, one that does not, the largest; small ones between them.
    let sizes = [CARRIED_BYTES_MAX - 4096, CARRIED_BYTES_MAX - 4095, 2 << 20, 1 << 20];
    let sizes = sizes.into_iter().flat_map(|size| [size].into_iter().chain([100; 30]));
    let sent: Vec<_> = sizes.enumerate().map(|(number, size)| message(size, number)).collect();
    for message in &sent {
        group.cast(message.clone()).await.expect("the group takes it");
    }
    assert!(crate::messages(&mut events, sent.len()).await == sent, "{net:?}: something else has come");
}

#[tokio::test(flavor = "multi_thread")]
async fn g09_messages_larger_than_a_connections_come_whole_and_in_order() {
    everywhere(nets(), |net| async move {
        among_small_ones(net.clone(), Builder::<Fifo>::fifo("fifo")).await;
        among_small_ones(net.clone(), Builder::<Causal>::causal("causal")).await;
        among_small_ones(net, Builder::<Total>::total("total")).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g09_a_message_of_many_megabytes_comes_whole_and_one_beyond_the_limit_is_refused() {
    const SIZE: usize = 48 << 20;
    let net = tcp();
    let (one, two) = (net.node(1).await, net.node(2).await);
    let mut limits = Limits::default();
    limits.payload_bytes_max = 2 << 30;
    let refused = within(Builder::<Fifo>::fifo("room").limits(limits.clone()).create(&one)).await;
    let Err(JoinError::PayloadLimit { asked, limit }) = refused else { panic!("refused, not {refused:?}") };
    assert_eq!((asked, limit), (2 << 30, 1 << 30));
    limits.payload_bytes_max = SIZE;
    let builder = Builder::<Fifo>::fifo("room").stateless().limits(limits);
    let (group, _events) = within(builder.clone().create(&one)).await.expect("founds the group");
    let (_second, mut events) = within(builder.join(&two, &one.addresses())).await.expect("joins the group");
    let sent = [message(SIZE, 1), message(SIZE - 1, 2)];
    for message in &sent {
        group.cast(message.clone()).await.expect("the group takes it");
    }
    assert!(crate::messages(&mut events, 2).await == sent, "something else has come");
    assert!(group.cast(message(SIZE + 1, 3)).await.is_err());
}
