//! The textbook's print server: a client asks a server to print, the server crashes, the client asks again or does not.
//!
//! ```text
//! cargo run --example print_server
//! ```
//! Prints a table. A cell is one run with real processes, of which the server is killed (SIGKILL) at that moment and
//! started again; it says whether the text was printed once (OK), twice (DUP) or not at all (ZERO). M is the message that
//! tells the client of the completion, P the printing, C the crash; what stands in brackets never happened. No way of
//! asking again is right in all columns. The last line is the same with an `#[exactly_once]` method, where nobody has to
//! choose: printing, request and answer are one record, and the client asks until it is answered.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use quorate::rpc::{Durable, DurableConfig, ServeOptions, State};
use quorate::{Node, service};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

#[service]
trait Printer {
    /// Prints, before the answer or after it: at most once for each call.
    async fn print(&self);
    /// Prints exactly once for each call.
    #[exactly_once]
    async fn print_once(&self);
    /// How often something was printed exactly once.
    #[idempotent]
    async fn printed_once(&self) -> u32;
}

type Anything = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Anything> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [folder, address, order, crash] = &arguments[..] {
        return serve(Path::new(folder), address, order == "answer-first", crash).await;
    }
    let folder = std::env::temp_dir().join(format!("print-server-{}", std::process::id()));
    println!("{:<24} M -> P: MPC  MC(P)  C(MP)    P -> M: PMC  PC(M)  C(PM)", "the client asks again");
    for (name, again) in STRATEGIES {
        let mut cells = Vec::new();
        for order in ["answer-first", "print-first"] {
            for crash in ["after", "between", "before"] {
                cells.push(name_of(run(&folder, order, crash, again).await?));
            }
        }
        print_line(name, &cells);
    }
    let mut cells = Vec::new();
    for crash in ["after", "between", "before"] {
        cells.push(name_of(run_once(&folder, crash).await?));
    }
    // There is no order of M and P any more.
    cells.extend(cells.clone());
    print_line("exactly once", &cells);
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// Whether to ask again, given that the completion message came or did not.
type Again = fn(bool) -> bool;

const STRATEGIES: [(&str, Again); 4] = [
    ("always", |_| true),
    ("never", |_| false),
    ("only when told", |told| told),
    ("only when not told", |told| !told),
];

fn name_of(printed: u32) -> &'static str {
    ["ZERO", "OK", "DUP"].get(printed as usize).copied().unwrap_or("MANY")
}

fn print_line(name: &str, cells: &[&str]) {
    let [a, b, c, d, e, f] = cells else { return };
    println!("{name:<24}         {a:<4} {b:<6} {c:<6}           {d:<4} {e:<6} {f}");
}

/// One cell of the table: how often was it printed?
async fn run(folder: &Path, order: &str, crash: &str, again: Again) -> Result<u32, Anything> {
    let folder = fresh(folder)?;
    let mut server = Server::start(&folder, "tcp://127.0.0.1:0", order, crash).await?;
    let node = Node::builder().start().await?;
    let printer = PrinterClient::connect(&node, "printer", server.address.as_str()).await?;
    let call = tokio::spawn({
        let printer = printer.clone();
        async move { printer.print().await }
    });
    server.expect(HERE).await?;
    // M comes before the crash in the first column of both halves, and in the second one of the first.
    let is_told = crash == "after" || (crash == "between" && order == "answer-first");
    if is_told {
        call.await??;
        server = server.again("never").await?;
    } else {
        server = server.again("never").await?;
        if let Ok(()) = call.await? {
            return Err("the completion message came although it was never sent".into());
        }
    }
    if again(is_told) {
        printer.print().await?;
        server.expect(PRINTED).await?;
    }
    server.child.kill().await?;
    Ok(u32::try_from(std::fs::read_to_string(folder.join(PAPER)).unwrap_or_default().lines().count())?)
}

/// A cell of the last line. The client does nothing but wait for the answer.
async fn run_once(folder: &Path, crash: &str) -> Result<u32, Anything> {
    let folder = fresh(folder)?;
    let mut server = Server::start(&folder, "tcp://127.0.0.1:0", "once", crash).await?;
    let node = Node::builder().start().await?;
    let printer = PrinterClient::connect(&node, "printer", server.address.as_str()).await?;
    let mut call = tokio::spawn({
        let printer = printer.clone();
        async move { printer.print_once().await }
    });
    server.expect(HERE).await?;
    if crash == "after" {
        (&mut call).await??;
        server = server.again("never").await?;
    } else {
        server = server.again("never").await?;
        call.await??;
    }
    let printed = printer.printed_once().await?;
    server.child.kill().await?;
    Ok(printed)
}

fn fresh(folder: &Path) -> std::io::Result<PathBuf> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => std::fs::create_dir_all(folder)?,
    }
    Ok(folder.to_owned())
}

/// A life of the print server.
struct Server {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    address: String,
    folder: PathBuf,
    order: String,
}

impl Server {
    async fn start(folder: &Path, address: &str, order: &str, crash: &str) -> Result<Self, Anything> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([&folder.to_string_lossy(), address, order, crash])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let out = child.stdout.take().ok_or("no output")?;
        let mut lines = BufReader::new(out).lines();
        let address = lines.next_line().await?.ok_or("the server does not start")?;
        Ok(Self { child, lines, address, folder: folder.to_owned(), order: order.to_owned() })
    }

    /// Kills it and starts it again.
    async fn again(mut self, crash: &str) -> Result<Self, Anything> {
        self.child.kill().await?;
        Self::start(&self.folder, &self.address, &self.order, crash).await
    }

    async fn expect(&mut self, wanted: &str) -> Result<(), Anything> {
        let said = tokio::time::timeout(Duration::from_secs(20), self.lines.next_line()).await??;
        if said.as_deref() == Some(wanted) { Ok(()) } else { Err(format!("{wanted}? {said:?}").into()) }
    }
}

/// Pages that were printed, as a state that outlives crashes.
#[derive(Default, Serialize, Deserialize)]
struct Pages(u32);

impl State for Pages {
    type Change = u32;
    fn apply(&mut self, pages: &u32) {
        self.0 += pages;
    }
}

#[derive(Clone)]
struct Office {
    paper: PathBuf,
    pages: Durable<Pages>,
    answer_first: bool,
    crash: String,
}

impl Office {
    /// Where this server stands still until it is killed, if this is where it shall crash.
    async fn reach(&self, moment: &str) {
        if self.crash == moment {
            println!("{HERE}");
            std::future::pending::<()>().await;
        }
    }

    async fn press(&self) {
        let page = std::fs::OpenOptions::new().create(true).append(true).open(&self.paper);
        let printed = page.and_then(|mut paper| std::io::Write::write_all(&mut paper, b"page\n"));
        if let Err(error) = printed {
            eprintln!("the printer is broken: {error}");
        }
    }

    async fn after(&self) {
        self.reach("after").await;
        println!("{PRINTED}");
    }
}

impl Printer for Office {
    async fn print(&self) {
        self.reach("before").await;
        if !self.answer_first {
            self.press().await;
            self.reach("between").await;
        }
        // What follows the answer runs on its own; the answer leaves when this method returns.
        let office = self.clone();
        tokio::spawn(async move {
            if office.answer_first {
                office.reach("between").await;
                office.press().await;
            }
            office.after().await;
        });
    }

    async fn print_once(&self) {
        self.reach("before").await;
        let mut pages = self.pages.begin().await;
        pages.change(1);
        pages.commit();
        let office = self.clone();
        tokio::spawn(async move {
            // From here on it is printed; the answer leaves at about the same moment.
            while matches!(office.pages.read(|pages| pages.0).await, Ok(0)) {
                tokio::task::yield_now().await;
            }
            office.reach("between").await;
            office.reach("after").await;
        });
    }

    async fn printed_once(&self) -> u32 {
        self.pages.read(|pages| pages.0).await.unwrap_or(0)
    }
}

/// The server's program.
async fn serve(folder: &Path, address: &str, answer_first: bool, crash: &str) -> Result<(), Anything> {
    let node = Node::builder().id(1).directory(folder.join("node")).listen(address).start().await?;
    let pages = Durable::on(&node, "pages", Pages::default(), DurableConfig::default()).await?;
    let (paper, crash) = (folder.join(PAPER), crash.to_owned());
    let office = Office { paper, pages: pages.clone(), answer_first, crash };
    let options = ServeOptions::default();
    let _serving = node.serve_durable("printer", PrinterServer::new(office), options, &pages)?;
    println!("{}", node.addresses()[0]);
    std::future::pending().await
}

const PAPER: &str = "paper";
/// The server stands where it shall be killed.
const HERE: &str = "here";
const PRINTED: &str = "printed";
