//! libzmq through its Rust binding: PUSH and PULL, REQ and REP.

use std::thread;
use std::time::Instant;

use crate::worker::{
    BURST, Count, END_BYTES, Kind, Outcome, Side, Task, Trips, say_address, say_result, wait_for_caller,
};

pub fn version() -> String {
    let (major, minor, patch) = zmq::version();
    format!("{major}.{minor}.{patch}")
}

pub fn run(task: &Task) -> Outcome<()> {
    let context = zmq::Context::new();
    match task.side {
        Side::Server => {
            let socket = listener(&context, task, "tcp://127.0.0.1:*")?;
            let address = socket.get_last_endpoint()?.map_err(|_| "an address that is no text")?;
            say_address(&address)?;
            serve(&socket, task)
        }
        Side::Client => {
            drive(&context, task, task.address()?)?;
            wait_for_caller()
        }
        Side::Both => {
            let socket = listener(&context, task, "inproc://bench")?;
            thread::scope(|scope| {
                let client = scope.spawn(|| drive(&context, task, "inproc://bench"));
                serve(&socket, task)?;
                client.join().map_err(|_| "the client panicked")?
            })
        }
    }
}

fn listener(context: &zmq::Context, task: &Task, at: &str) -> Outcome<zmq::Socket> {
    let socket = context.socket(if task.kind == Kind::OneWay { zmq::PULL } else { zmq::REP })?;
    socket.bind(at)?;
    Ok(socket)
}

fn serve(socket: &zmq::Socket, task: &Task) -> Outcome<()> {
    let (mut message, mut count) = (zmq::Message::new(), Count::default());
    loop {
        socket.recv(&mut message, 0)?;
        if task.kind == Kind::OneWay {
            if count.take(&message) {
                return count.say();
            }
        } else {
            let is_last = message.len() == END_BYTES;
            socket.send(&message[..], 0)?;
            if is_last {
                return if task.side == Side::Server { say_result(&[]) } else { Ok(()) };
            }
        }
    }
}

fn drive(context: &zmq::Context, task: &Task, at: &str) -> Outcome<()> {
    let payload = task.payload();
    if task.kind == Kind::OneWay {
        let socket = context.socket(zmq::PUSH)?;
        socket.connect(at)?;
        let end = Instant::now() + task.time;
        while Instant::now() < end {
            for _ in 0..BURST {
                socket.send(&payload[..], 0)?;
            }
        }
        socket.send(&[0u8][..], 0)?;
        return if task.side == Side::Client { say_result(&[]) } else { Ok(()) };
    }
    let socket = context.socket(zmq::REQ)?;
    socket.connect(at)?;
    let (mut trips, mut answer) = (Trips::new(task)?, zmq::Message::new());
    while trips.goes_on() {
        let start = Instant::now();
        socket.send(&payload[..], 0)?;
        socket.recv(&mut answer, 0)?;
        trips.took(start)?;
    }
    socket.send(&[0u8][..], 0)?;
    socket.recv(&mut answer, 0)?;
    trips.say()
}
