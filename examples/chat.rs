//! A chat for several terminals: rooms are groups, presence is the group's view, a late joiner is given the history.
//!
//! ```text
//! cargo run --example chat -- --name ann --listen tcp://127.0.0.1:7001
//! cargo run --example chat -- --name bob --listen tcp://127.0.0.1:0 --join tcp://127.0.0.1:7001
//! ```
//! Type a line to say it, `/who` to see who is here, `/quit` or Ctrl-C to leave. With `--order total` (the default)
//! everybody sees all lines in the same order; with `--order fifo` only each person's own lines keep their order, and
//! nobody waits for a sequencer. It works in a pipe, too: one line in is one line said, and the end of the input is
//! `/quit`.
//!
//! When more than half of the room vanishes at once, the others wait for them: two halves of a room must not go on
//! without each other.
#![allow(unreachable_pub, reason = "modules of one program")]

use std::error::Error;
use std::io::{BufRead as _, Read as _, Write as _, stdin, stdout};
use std::process::ExitCode;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use chat::room::{Message, Room, TEXT_BYTES_MAX, check_name};
use clap::{Parser, ValueEnum};
use quorate::codec::{Codec as _, Postcard};
use quorate::group::{self, Builder, Event, Events, Group};
use quorate::node::{Address, Node};
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
            let mut text = format!("chat: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                text.push_str(&format!(": {error}"));
                cause = error.source();
            }
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let node = Node::builder().listen(arguments.listen.clone()).start().await?;
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
        Some(address) => {
            print(&format!("* looking for room {:?} at {address}", arguments.room))?;
            room.join(node, std::slice::from_ref(address)).await?
        }
    };
    let ended = talk(arguments, &group, &mut events).await;
    // The others find out by themselves when this does not work.
    let _ = group.leave(GOODBYE_MAX).await;
    ended?;
    Ok(print("* bye")?)
}

/// Carries lines both ways until the user leaves or is shut out.
async fn talk<O: group::Order>(
    arguments: &Arguments,
    group: &Group<O>,
    events: &mut Events,
) -> Result<(), Box<dyn Error>> {
    let (name, me) = (&arguments.name, group.me().node);
    let mut room = Room::default();
    if arguments.join.is_some() {
        // A joiner is given the room before anything else; only then does it know which names are taken.
        while room.is_new() {
            let event = events.next().await.ok_or("the room has closed")?;
            show(&mut room, me, event)?;
        }
        if room.is_taken(name) {
            return Err(format!(
                "somebody called {name} is in the room already; take another name, or wait until they are gone"
            )
            .into());
        }
    }
    say(group, &Message::Hello(name.clone())).await?;

    let mut typed = typed_lines();
    loop {
        tokio::select! {
            line = typed.recv() => match line.as_deref().map(str::trim_end) {
                None | Some("/quit") => return Ok(()),
                Some("/who") => print(&room.who())?,
                Some("") => {}
                Some(text) if text.starts_with('/') => {
                    print(&format!("* {text} is no command; there are /who and /quit"))?;
                }
                Some(text) => say(group, &Message::Say(text.to_owned())).await?,
            },
            _ = tokio::signal::ctrl_c() => return Ok(()),
            event = events.next() => match event {
                Some(event) => show(&mut room, me, event)?,
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

/// The lines of standard input, read on a thread of their own; ends with the input. A line that is longer than a
/// message may be comes in pieces, and what is no UTF-8 is replaced: neither is a reason to leave the room.
fn typed_lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(TYPED_MAX);
    std::thread::spawn(move || {
        let mut input = stdin().lock();
        let mut line = Vec::new();
        while input.by_ref().take(TEXT_BYTES_MAX as u64).read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            if sender.blocking_send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
    receiver
}

/// One line, at once also into a pipe.
fn print(line: &str) -> std::io::Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
