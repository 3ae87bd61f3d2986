//! A chat for several terminals: rooms are groups, presence is the group's view, a late joiner is given the history.
//!
//! ```text
//! cargo run --example chat -- --name ann --listen tcp://127.0.0.1:7001
//! cargo run --example chat -- --name bob --listen tcp://127.0.0.1:0 --join tcp://127.0.0.1:7001
//! ```
//! Type a line to say it, `/who` to see who is here, `/quit` to leave. With `--order total` (the default) everybody sees
//! all lines in the same order; with `--order fifo` only each person's own lines keep their order, and nobody waits for
//! a sequencer. It works in a pipe, too: one line in is one line said, and the end of the input is `/quit`.
//!
//! When more than half of the room vanishes at once, the others wait for them: two halves of a room must not go on
//! without each other.
#![allow(unreachable_pub, reason = "modules of one program")]

use std::error::Error;
use std::io::{BufRead as _, Write as _, stdin, stdout};
use std::process::ExitCode;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use chat::room::{Message, Room, check_name, node_id};
use clap::{Parser, ValueEnum};
use quorate::codec::{Codec as _, Postcard};
use quorate::group::{self, Builder, Event, Events, Group};
use quorate::node::{Address, Node, NodeId};
use tokio::sync::mpsc;

mod chat {
    pub mod room;
}

/// Chats with other processes of this program.
#[derive(Parser)]
struct Arguments {
    /// Your name; nobody else in the room may have it.
    #[arg(long, value_parser = check_name)]
    name: String,
    /// Where others can reach you; port 0 takes a free one.
    #[arg(long, default_value = "tcp://127.0.0.1:0")]
    listen: Address,
    /// Where somebody in the room listens; without it you open the room.
    #[arg(long)]
    join: Option<Address>,
    /// The room.
    #[arg(long, default_value = "lobby")]
    room: String,
    /// In which order lines are shown; everybody in a room must choose the same.
    #[arg(long, value_enum, default_value_t = Order::Total)]
    order: Order,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Order {
    /// Each person's lines in order.
    Fifo,
    /// All lines in the same order for everybody.
    Total,
}

/// How long the others may take to let somebody go.
const GOODBYE_MAX: Duration = Duration::from_secs(5);

/// Lines typed ahead of the group.
const TYPED_MAX: usize = 16;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chat: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let id = NodeId(node_id(&arguments.name));
    let node = Node::builder().id(id).listen(arguments.listen.clone()).start().await?;
    for address in node.addresses() {
        print(&format!("* listening on {address}"))?;
    }
    // The order is part of the name: a room in one order is not a room in the other.
    match arguments.order {
        Order::Total => {
            enter(arguments, &node, Builder::total(format!("{} in total order", arguments.room))).await
        }
        Order::Fifo => {
            enter(arguments, &node, Builder::fifo(format!("{} in FIFO order", arguments.room))).await
        }
    }?;
    node.shutdown(GOODBYE_MAX).await;
    Ok(())
}

async fn enter<O: group::Order>(
    arguments: &Arguments,
    node: &Node,
    room: Builder<O>,
) -> Result<(), Box<dyn Error>> {
    let (group, mut events) = match &arguments.join {
        None => room.create(node).await?,
        Some(address) => room.join(node, std::slice::from_ref(address)).await?,
    };
    say(&group, &Message::Hello(arguments.name.clone())).await?;
    talk(&group, &mut events).await?;
    // The others find out by themselves when this does not work.
    let _ = group.leave(GOODBYE_MAX).await;
    Ok(print("* bye")?)
}

/// Carries lines both ways until the user leaves or is shut out.
async fn talk<O: group::Order>(group: &Group<O>, events: &mut Events) -> Result<(), Box<dyn Error>> {
    let mut room = Room::default();
    let mut typed = typed_lines();
    loop {
        tokio::select! {
            line = typed.recv() => match line.as_deref().map(str::trim_end) {
                None | Some("/quit") => return Ok(()),
                Some("/who") => print(&room.who())?,
                Some("") => {}
                Some(text) => say(group, &Message::Say(text.to_owned())).await?,
            },
            event = events.next() => match event {
                Some(event) => show(&mut room, group.me().node, event)?,
                None => return Err("the others have given you up: join again".into()),
            },
        }
    }
}

fn show(room: &mut Room, me: u64, event: Event) -> Result<(), Box<dyn Error>> {
    match event {
        Event::View(view) => {
            let members: Vec<u64> = view.members.iter().map(|member| member.node).collect();
            room.install(&members).iter().try_for_each(|line| print(line))?;
        }
        Event::Message { from, payload } => match Postcard::decode(&payload) {
            Ok(Message::Hello(name)) if from.node == me => {
                room.take(me, Message::Hello(name));
                print(&room.who())?;
            }
            Ok(message) => room.take(from.node, message).iter().try_for_each(|line| print(line))?,
            Err(_) => print("* something came that this version does not understand")?,
        },
        Event::StateWanted(request) => request.answer(encode(room)?),
        Event::State(state) => {
            room.adopt(Postcard::decode(&state)?);
            room.history().try_for_each(print)?;
        }
        Event::QuorumLost => print("* too few are here: your lines wait")?,
        Event::QuorumRegained => print("* enough are here again")?,
        // The end follows by itself; a later version's events are not for us.
        _ => {}
    }
    Ok(())
}

async fn say<O: group::Order>(group: &Group<O>, message: &Message) -> Result<(), Box<dyn Error>> {
    Ok(group.cast(encode(message)?).await?)
}

fn encode(value: &impl serde::Serialize) -> Result<Bytes, quorate::codec::EncodeError> {
    let mut out = BytesMut::new();
    Postcard::encode(value, &mut out)?;
    Ok(out.freeze())
}

/// The lines of standard input, read on a thread of their own; ends with the input.
fn typed_lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(TYPED_MAX);
    std::thread::spawn(move || {
        stdin().lock().lines().map_while(Result::ok).try_for_each(|l| sender.blocking_send(l))
    });
    receiver
}

/// One line, at once also into a pipe.
fn print(line: &str) -> std::io::Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
