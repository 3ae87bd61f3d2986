//! nng through its Rust binding: PUSH and PULL, REQ and REP.

use std::thread;
use std::time::Instant;

use nng::{Protocol, Socket};

use crate::free_address;
use crate::worker::{
    BURST, Count, END_BYTES, Kind, Outcome, Side, Task, Trips, say_address, say_result, wait_for_caller,
};

pub fn run(task: &Task) -> Outcome<()> {
    match task.side {
        Side::Server => {
            let socket = listener(task)?;
            let address = format!("tcp://{}", free_address()?);
            socket.listen(&address)?;
            say_address(&address)?;
            serve(&socket, task)
        }
        Side::Client => {
            drive(task, task.address()?)?;
            wait_for_caller()
        }
        Side::Both => {
            let socket = listener(task)?;
            socket.listen("inproc://bench")?;
            thread::scope(|scope| {
                let client = scope.spawn(|| drive(task, "inproc://bench"));
                serve(&socket, task)?;
                client.join().map_err(|_| "the client panicked")?
            })
        }
    }
}

fn listener(task: &Task) -> Outcome<Socket> {
    Ok(Socket::new(if task.kind == Kind::OneWay { Protocol::Pull0 } else { Protocol::Rep0 })?)
}

fn serve(socket: &Socket, task: &Task) -> Outcome<()> {
    let mut count = Count::default();
    loop {
        let message = socket.recv()?;
        if task.kind == Kind::OneWay {
            if count.take(&message) {
                return count.say();
            }
        } else {
            let is_last = message.len() == END_BYTES;
            socket.send(message).map_err(|(_, error)| error)?;
            if is_last {
                return if task.side == Side::Server { say_result(&[]) } else { Ok(()) };
            }
        }
    }
}

fn drive(task: &Task, at: &str) -> Outcome<()> {
    let payload = task.payload();
    let send = |socket: &Socket, bytes: &[u8]| socket.send(bytes).map_err(|(_, error)| error);
    if task.kind == Kind::OneWay {
        let socket = Socket::new(Protocol::Push0)?;
        socket.dial(at)?;
        let end = Instant::now() + task.time;
        while Instant::now() < end {
            for _ in 0..BURST {
                send(&socket, &payload)?;
            }
        }
        send(&socket, &[0])?;
        if task.side == Side::Client {
            say_result(&[])?;
            // Dropping the socket would drop what it still holds.
            wait_for_caller()?;
        }
        return Ok(());
    }
    let socket = Socket::new(Protocol::Req0)?;
    socket.dial(at)?;
    let mut trips = Trips::new(task)?;
    while trips.goes_on() {
        let start = Instant::now();
        send(&socket, &payload)?;
        socket.recv()?;
        trips.took(start)?;
    }
    send(&socket, &[0])?;
    socket.recv()?;
    trips.say()
}
