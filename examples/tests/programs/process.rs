//! Running an example, and talking with one that runs.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long a line may take on a loaded machine before the test gives up; nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs an example to its end.
pub fn run(name: &str, arguments: &[&str]) -> Output {
    command(name).args(arguments).stdin(Stdio::null()).output().expect("the example starts")
}

/// What was written, as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A path for a file of this test run.
pub fn scratch(name: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    folder.join(name).to_string_lossy().into_owned()
}

/// The built example; `cargo test` builds all examples of a package before it runs the package's tests.
fn command(name: &str) -> Command {
    let me = std::env::current_exe().expect("a test knows its own path");
    let built = me.parent().and_then(Path::parent).expect("tests lie in deps/").join("examples").join(name);
    assert!(built.exists(), "{} is missing: `cargo test -p examples` builds it", built.display());
    let mut command = Command::new(built);
    // One that is killed leaves its files: let them lie where tests keep theirs.
    command.env("TMPDIR", scratch(""));
    command
}

/// An example that runs, with a pipe at both ends. Dropping it kills it.
pub struct Running {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    output: Receiver<String>,
    /// Every line so far.
    pub seen: Vec<String>,
}

impl Running {
    /// Starts an example; `name` is for messages.
    pub fn start(name: &str, example: &str, arguments: &[&str]) -> Self {
        let mut command = command(example);
        let mut child =
            command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let out = child.stdout.take().expect("piped");
        Self::listening(name, child, out)
    }

    /// Starts an example of which the lines on standard error are waited for.
    pub fn start_with_errors(name: &str, example: &str, arguments: &[&str]) -> Self {
        let mut command = command(example);
        let mut child =
            command.args(arguments).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let out = child.stderr.take().expect("piped");
        Self::listening(name, child, out)
    }

    fn listening(name: &str, mut child: Child, out: impl Read + Send + 'static) -> Self {
        let (lines, output) = channel();
        let out = BufReader::new(out);
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| lines.send(line)));
        let input = child.stdin.take();
        Self { name: name.to_owned(), child, input, output, seen: Vec::new() }
    }

    /// Types a line.
    pub fn say(&mut self, line: &str) {
        self.say_bytes(format!("{line}\n").as_bytes());
    }

    /// Types what may be no text.
    pub fn say_bytes(&mut self, bytes: &[u8]) {
        let input = self.input.as_mut().expect("still open");
        input.write_all(bytes).and_then(|()| input.flush()).unwrap_or_else(|e| panic!("{}: {e}", self.name));
    }

    /// Waits for a line with `part` in it, among those not yet waited for.
    #[track_caller]
    pub fn expect(&mut self, part: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(part) {
                        return line;
                    }
                }
                Err(why) => panic!("{} never said {part:?} ({why}); it said {:#?}", self.name, self.seen),
            }
        }
    }

    /// Waits until nobody can write to the pipe any more: the process and all that inherited it have ended.
    #[track_caller]
    pub fn expect_end(&mut self) {
        loop {
            match self.output.recv_timeout(PATIENCE) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("{} does not end; it said {:#?}", self.name, self.seen)
                }
            }
        }
    }

    /// The operating system's number of it.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as the power does.
    pub fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it was killed");
    }

    /// Closes its input and waits for its end; the lines until then are in `seen`.
    pub fn finish(&mut self) -> ExitStatus {
        drop(self.input.take());
        while let Ok(line) = self.output.recv_timeout(PATIENCE) {
            self.seen.push(line);
        }
        self.child.wait().expect("its output has ended")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
