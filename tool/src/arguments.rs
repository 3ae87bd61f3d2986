//! What may be asked.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// Look into the queues of a directory, and change them. One process owns a directory at a time.
#[derive(Debug, Parser)]
#[command(
    name = "quorate",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 asked wrongly, \
    3 no such queue or nothing in it, 4 another process has the directory, 5 damaged or not queues"
)]
pub(crate) struct Arguments {
    /// The directory: `queues` in that of a node.
    #[arg(short, long, default_value = "queues")]
    pub(crate) dir: PathBuf,
    /// One JSON object a line.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The queues and how they stand.
    List,
    /// Put messages: those given, or each line of the standard input.
    Put(Put),
    /// Take messages out, and write them.
    Get(Get),
    /// The last messages of a queue; nothing is taken.
    Tail {
        /// The queue.
        queue: String,
        /// How many.
        #[arg(short = 'n', long, default_value_t = 10)]
        count: usize,
    },
    /// The messages of a queue; nothing is taken.
    Browse {
        /// The queue.
        queue: String,
        /// From this number on.
        #[arg(long)]
        from: Option<u64>,
        /// At most so many.
        #[arg(short = 'n', long)]
        count: Option<usize>,
    },
    /// Move messages from one queue to another, each exactly once.
    Move {
        /// Out of this queue.
        from: String,
        /// Into this queue; created when there is none.
        to: String,
        /// At most so many.
        #[arg(short = 'n', long)]
        count: Option<usize>,
    },
    /// Remove all messages of a queue.
    Purge {
        /// The queue.
        queue: String,
    },
    /// What the journal says, record by record.
    Dump,
    /// Open the directory as a node would, read everything, and say what is there.
    Check,
    /// Put messages into a queue `bench` and take them out again, and say how fast that was.
    Bench {
        /// How many messages.
        #[arg(long, default_value_t = 20_000)]
        messages: usize,
        /// Of how many bytes.
        #[arg(long, default_value_t = 1024)]
        bytes: usize,
        /// Put by so many at a time.
        #[arg(long, default_value_t = 64)]
        producers: usize,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Put {
    /// The queue; created when there is none.
    pub(crate) queue: String,
    /// The messages; without any, each line of the standard input is one.
    pub(crate) messages: Vec<String>,
    /// The whole standard input is one message.
    #[arg(long, conflicts_with = "messages")]
    pub(crate) whole: bool,
    /// Messages of one key are delivered one after the other.
    #[arg(long)]
    pub(crate) key: Option<String>,
    /// A higher one is delivered first.
    #[arg(long)]
    pub(crate) priority: Option<u8>,
    /// Not before so many seconds have passed.
    #[arg(long, value_parser = seconds)]
    pub(crate) delay: Option<Duration>,
    /// Not when so many seconds have passed.
    #[arg(long, value_parser = seconds)]
    pub(crate) expires: Option<Duration>,
    /// A name by which a repetition is known; for one message.
    #[arg(long)]
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Get {
    /// The queue.
    pub(crate) queue: String,
    /// At most so many.
    #[arg(short = 'n', long, default_value_t = 1)]
    pub(crate) count: usize,
    /// All that are ready.
    #[arg(long, conflicts_with = "count")]
    pub(crate) all: bool,
    /// Wait so many seconds for the first: for one that is delayed.
    #[arg(long, value_parser = seconds, default_value = "0")]
    pub(crate) wait: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
