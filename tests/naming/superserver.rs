//! A host with an endpoint daemon that starts services on demand: daemon and services are processes, and are killed.
//!
//! Orphans      a service holds a connection to the test that has the daemon start it, and ends with it: nothing is left
//!              however a test ends.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate::host::Tenant;
use quorate::naming::{
    Bound, BoundError, BoundOptions, Directory, Entry, Found, NameError, Names, NamesError, NamesOptions,
    Query,
};
use quorate::node::{Address, Node};
use quorate::rpc::BindError;
use quorate::service;
use quorate_superd::{Config, Service, StartError, Superserver};
use rustix::process::{Pid, Signal, kill_process};
use tests::{Orders, Worker, tcp, until, within};
use tokio::signal::unix::{SignalKind, signal};

#[service]
trait Printer {
    /// Prints a page, once.
    async fn print(&self, page: u64) -> u32;
    /// Takes its time.
    async fn print_slowly(&self, page: u64) -> u32;
}

/// Every page that is printed is a line of a file in this directory, which outlives the process.
struct Paper(PathBuf);

impl Paper {
    fn add(&self, page: u64) -> u32 {
        add_line(&self.0.join("pages"), page);
        std::process::id()
    }
}

impl Printer for Paper {
    async fn print(&self, page: u64) -> u32 {
        self.add(page)
    }
    async fn print_slowly(&self, page: u64) -> u32 {
        add_line(&self.0.join("begun"), page);
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.add(page)
    }
}

fn add_line(file: &Path, line: impl std::fmt::Display) {
    let mut file = std::fs::File::options().create(true).append(true).open(file).unwrap();
    // One write: whole or not at all.
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// The program of the services. Does nothing unless a daemon starts it.
#[tokio::test]
async fn printer() {
    let Ok(place) = std::env::var(PLACE_VARIABLE) else { return };
    hold_on_to_the_test();
    let (place, name) = (PathBuf::from(place), std::env::var(NAME_VARIABLE).unwrap());
    add_line(&place.join("lives"), std::process::id());
    let manner = std::env::var(MANNER_VARIABLE).unwrap();
    match manner.as_str() {
        "mute" => std::future::pending().await,
        "broken" => std::process::exit(3),
        _ => {}
    }
    let node = Node::builder().listen("tcp://127.0.0.1:0").start().await.unwrap();
    let serving = node.serve(&name, PrinterServer::new(Paper(place))).unwrap();
    let tenant = Tenant::offer(&node, &name, serving).await.unwrap();
    if manner == "stubborn" {
        let _deaf = signal(SignalKind::terminate()).unwrap();
        std::future::pending::<()>().await;
    }
    tenant.retired().await;
    node.shutdown(Duration::from_secs(5)).await;
}

/// Ends this process with the test that it belongs to.
fn hold_on_to_the_test() {
    let address = std::env::var(TETHER_VARIABLE).unwrap();
    let mut tether = TcpStream::connect(address).unwrap();
    std::thread::spawn(move || {
        // Nothing is ever sent: it returns when the other side has gone.
        let _ = tether.read(&mut [0]);
        std::process::exit(9);
    });
}

/// The program of the daemon. Does nothing unless a test starts it.
#[test]
fn daemon() {
    if let Some(orders) = Orders::of_this_process() {
        quorate_superd::run([orders.words]);
    }
}

/// A host.
struct Host {
    place: tempfile::TempDir,
    _tether: TcpListener,
    config: Config,
}

impl Host {
    /// With services that behave in this manner, after a change of their settings.
    fn new(services: &[(&str, &str)], change: impl Fn(&mut Service)) -> Self {
        let place = tempfile::tempdir().unwrap();
        let tether = TcpListener::bind("127.0.0.1:0").unwrap();
        let program = std::env::current_exe().unwrap().display().to_string();
        let mut config = Config::default();
        config.listen = vec![format!("unix://{}/daemon", place.path().display())];
        config.state = Some(place.path().join("state"));
        for (name, manner) in services {
            let arguments = ["--exact", "superserver::printer", "--nocapture", "--test-threads=1"];
            let mut service = Service::new([&*program].into_iter().chain(arguments));
            service.environment = BTreeMap::from([
                (PLACE_VARIABLE.to_owned(), place.path().display().to_string()),
                (NAME_VARIABLE.to_owned(), (*name).to_owned()),
                (MANNER_VARIABLE.to_owned(), (*manner).to_owned()),
                (TETHER_VARIABLE.to_owned(), tether.local_addr().unwrap().to_string()),
            ]);
            service.output = Some(place.path().join("output"));
            (service.pause_ms_min, service.ready_ms_max) = (10, 60_000);
            change(&mut service);
            config.service.insert((*name).to_owned(), service);
        }
        Self { place, _tether: tether, config }
    }

    fn address(&self) -> Address {
        self.config.listen[0].parse().unwrap()
    }

    /// The daemon as a process, which dies with the handle.
    fn daemon(&self) -> Worker {
        let file = self.place.path().join("settings.toml");
        std::fs::write(&file, self.settings()).unwrap();
        Worker::start("superserver::daemon", &tcp(), &file.display().to_string())
    }

    /// The settings as a file.
    fn settings(&self) -> String {
        let mut text =
            format!("listen = {:?}\nstate = {:?}\n", self.config.listen, self.config.state.as_ref().unwrap());
        for (name, service) in &self.config.service {
            text += &format!("[service.{name}]\ncommand = {:?}\n", service.command);
            text += &format!("output = {:?}\n", service.output.as_ref().unwrap());
            for (field, figure) in [
                ("idle_ms", service.idle_ms),
                ("ready_ms_max", Some(service.ready_ms_max)),
                ("stop_ms_max", Some(service.stop_ms_max)),
                ("pause_ms_min", Some(service.pause_ms_min)),
            ] {
                if let Some(figure) = figure {
                    text += &format!("{field} = {figure}\n");
                }
            }
            text += &format!("[service.{name}.environment]\n");
            for (variable, value) in &service.environment {
                text += &format!("{variable} = {value:?}\n");
            }
        }
        text
    }

    /// The daemon in this process.
    async fn superserver(&self) -> (Node, Superserver) {
        let node = Node::builder().listen(&*self.config.listen[0]).start().await.unwrap();
        let superserver = Superserver::start(&node, &self.config).await.unwrap();
        (node, superserver)
    }

    async fn client(&self) -> Client {
        let node = Node::builder().listen("tcp://127.0.0.1:0").start().await.unwrap();
        let mut options = NamesOptions::default();
        (options.deadline, options.lease) = (Duration::from_secs(60), Duration::from_secs(3));
        let names = within(Names::connect_with(&node, &[self.address()], options)).await.unwrap();
        Client { node, names, printer: None }
    }

    /// The processes of services that were ever started.
    fn lives(&self) -> Vec<i32> {
        self.lines("lives")
    }

    fn lines<T: std::str::FromStr<Err: std::fmt::Debug>>(&self, file: &str) -> Vec<T> {
        let text = std::fs::read_to_string(self.place.path().join(file)).unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }
}

/// Finds a printer, and another one when that is gone.
struct Client {
    node: Node,
    names: Names,
    printer: Option<PrinterClient>,
}

impl Client {
    async fn find(&self, name: &str) -> Result<Vec<Found>, NamesError> {
        within(self.names.find(name, Duration::from_secs(30))).await
    }

    async fn bind(&self, name: &str) -> Result<PrinterClient, BindError> {
        let found = self.find(name).await.expect("it is started");
        within(PrinterClient::connect(&self.node, name, &found[0].addresses[0])).await
    }

    /// Bound to a printer that lives and takes pages, as far as is known.
    fn is_bound(&self) -> bool {
        self.printer.as_ref().is_some_and(|printer| printer.server().is_reachable())
    }

    /// Prints a page, wherever there is a printer. Repeats what was certainly not done, and nothing else.
    async fn print(&mut self, page: u64) -> u32 {
        loop {
            let is_bound = self.is_bound();
            let printer = match self.printer.take().filter(|_| is_bound) {
                Some(printer) => printer,
                // It may have gone between being found and being asked.
                None => match self.bind("printer").await {
                    Ok(printer) => printer,
                    Err(_) => continue,
                },
            };
            match printer.with_deadline(Duration::from_secs(20)).print(page).await {
                Ok(process) => {
                    self.printer = Some(printer);
                    return process;
                }
                Err(error) => assert!(error.is_not_executed(), "page {page}: {error}"),
            }
        }
    }
}

fn is_alive(process: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // What nobody has waited for is dead all the same.
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

fn kill(process: i32) {
    kill_process(Pid::from_raw(process).unwrap(), Signal::KILL).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn p02_the_first_request_starts_the_process_and_many_at_once_start_one() {
    let host = Host::new(&[("printer", "")], |_| ());
    let _daemon = host.daemon();
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(host.client().await);
    }
    assert!(host.lives().is_empty(), "nobody has asked yet");
    let looked = within(clients[0].names.lookup(&Query::named("printer"))).await.unwrap();
    assert_eq!((looked.len(), host.lives().len()), (0, 0), "who only looks starts nothing");
    let mut printing = tokio::task::JoinSet::new();
    for (mut client, page) in clients.into_iter().zip(0..) {
        printing.spawn(async move { client.print(page).await });
    }
    let lives = within(printing.join_all()).await;
    let process = lives[0];
    assert!(lives.iter().all(|life| *life == process), "{lives:?}");
    assert_eq!(host.lives(), [i32::try_from(process).unwrap()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn p02_no_request_is_lost_or_doubled_while_an_idle_service_is_stopped_again_and_again() {
    let host = Host::new(&[("printer", "")], |service| service.idle_ms = Some(40));
    let _daemon = host.daemon();
    let mut clients = [host.client().await, host.client().await];
    let mut page = 0;
    while host.lives().len() < 5 {
        // A little later each time: any moment of the stopping is hit, and the service has time to be idle.
        for client in &mut clients {
            tokio::time::sleep(Duration::from_millis(page * 37 % 240)).await;
            within(client.print(page)).await;
            page += 1;
        }
    }
    let mut pages: Vec<u64> = host.lines("pages");
    pages.sort_unstable();
    assert_eq!(pages, (0..page).collect::<Vec<_>>());
    for life in &host.lives()[..4] {
        until(|| !is_alive(*life)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_a_name_of_an_endpoint_daemon_is_bound_to_by_starting_it_and_again_when_it_was_stopped() {
    let host = Host::new(&[("printer", "")], |service| service.idle_ms = Some(100));
    let _daemon = host.daemon();
    let names = host.client().await.names;
    let mut options = BoundOptions::default();
    options.client.bind_deadline = Duration::from_secs(30);
    let printers = within(Bound::<PrinterClient>::connect(&names, "printer", options.clone())).await.unwrap();
    for page in 1..=3 {
        within(printers.call(async |printer| printer.print(page).await)).await.unwrap();
        // Nobody calls it, and being followed does not keep it.
        until(|| host.lives().iter().all(|life| !is_alive(*life))).await;
    }
    assert_eq!(host.lines::<u64>("pages"), [1, 2, 3]);
    // What it cannot start, somebody else may register in time.
    options.client.bind_deadline = Duration::from_millis(10);
    let plotter = within(Bound::<PrinterClient>::connect(&names, "plotter", options)).await;
    assert!(matches!(plotter, Err(BoundError::Nobody { .. })), "{plotter:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p02_a_service_that_works_is_not_idle_and_finishes_before_it_goes() {
    let host = Host::new(&[("printer", "")], |service| service.idle_ms = Some(100));
    let (node, superserver) = host.superserver().await;
    let client = host.client().await;
    let printer = client.bind("printer").await.unwrap();
    // Ten times as long as the service may be idle.
    let process = within(printer.print_slowly(1)).await.unwrap();
    let printing = tokio::spawn(async move { printer.print_slowly(2).await });
    until(|| host.lines::<u64>("begun") == [1, 2]).await;
    within(superserver.shutdown()).await;
    assert_eq!(within(printing).await.unwrap(), Ok(process), "what had begun is answered");
    assert!(host.lives().iter().all(|life| !is_alive(*life)), "the daemon has ended what it had started");
    node.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p02_a_killed_service_is_registered_no_more_and_started_again() {
    let host = Host::new(&[("printer", "")], |_| ());
    let _daemon = host.daemon();
    let mut client = host.client().await;
    let first = within(client.print(1)).await;
    let old = client.find("printer").await.unwrap();
    kill(host.lives()[0]);
    until(|| host.lives().len() == 2 && !client.is_bound()).await;
    let second = within(client.print(2)).await;
    assert_ne!(first, second);
    let new = client.find("printer").await.unwrap();
    assert_eq!(new.len(), 1, "the dead one is not found any more");
    assert_ne!(new[0].addresses, old[0].addresses, "it has moved");
    assert_eq!(host.lines::<u64>("pages"), [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn p02_services_outlive_a_killed_daemon_and_are_found_adopted_and_stopped_by_the_next_one() {
    let host = Host::new(&[("printer", "")], |service| service.idle_ms = Some(3_000));
    let daemon = host.daemon();
    let mut client = host.client().await;
    let _mine = within(client.names.register("mine", Entry::at(&client.node.addresses()))).await.unwrap();
    let process = within(client.print(1)).await;
    daemon.kill().await;
    assert_eq!(within(client.print(2)).await, process, "who knows the service needs no daemon");
    let _daemon = host.daemon();
    let mut newcomer = host.client().await;
    assert_eq!(within(newcomer.print(3)).await, process);
    assert_eq!(newcomer.find("mine").await.unwrap()[0].addresses, client.node.addresses());
    assert_eq!(host.lives().len(), 1, "no second process was started");
    // Nobody calls it any more, and the daemon knows whose it is.
    until(|| !is_alive(host.lives()[0])).await;
    assert_ne!(within(newcomer.print(4)).await, process);
    assert_eq!(host.lines::<u64>("pages"), [1, 2, 3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn p02_a_service_that_died_with_its_daemon_is_replaced_by_the_next_one() {
    let host = Host::new(&[("printer", "")], |_| ());
    let daemon = host.daemon();
    let mut client = host.client().await;
    let process = within(client.print(1)).await;
    daemon.kill().await;
    kill(host.lives()[0]);
    until(|| !client.is_bound()).await;
    let _daemon = host.daemon();
    assert_ne!(within(client.print(2)).await, process);
    assert_eq!(host.lives().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn p02_who_asks_for_what_does_not_come_is_told_why_within_the_time_for_it() {
    let host = Host::new(&[("mute", "mute"), ("broken", "broken"), ("missing", "")], |service| {
        service.ready_ms_max = 1_500;
        if service.environment[NAME_VARIABLE] == "missing" {
            service.command[0] = "/nowhere/printer".to_owned();
        }
    });
    let _daemon = host.daemon();
    let client = host.client().await;
    for (name, told) in [
        ("mute", "did not register within 1.5s"),
        ("broken", "ended before it had registered: exit status: 3"),
        ("missing", "\"/nowhere/printer\": No such file or directory"),
    ] {
        let error = client.find(name).await.unwrap_err();
        let NamesError::Refused(NameError::NotStarted { name: of, reason }) = &error else {
            panic!("{error}")
        };
        assert!(of == name && reason.contains(told), "{name}: {reason}");
    }
    let error = within(client.names.find("nobody's", Duration::from_millis(50))).await.unwrap_err();
    assert!(matches!(error, NamesError::Refused(NameError::NotRegistered { .. })), "{error}");
    until(|| host.lives().iter().all(|life| !is_alive(*life))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p02_a_process_that_will_not_go_is_killed_and_makes_room_for_another_one() {
    let host = Host::new(&[("printer", "stubborn"), ("other", "")], |service| {
        (service.idle_ms, service.stop_ms_max) = (Some(500), 100);
    });
    let mut config = host.config.clone();
    config.processes_max = 1;
    let node = Node::builder().listen(&*config.listen[0]).start().await.unwrap();
    let superserver = Superserver::start(&node, &config).await.unwrap();
    let client = host.client().await;
    client.bind("printer").await.unwrap();
    let full = client.find("other").await;
    assert!(
        matches!(&full, Err(NamesError::Refused(NameError::NotStarted { reason, .. })) if reason == "1 processes run already"),
        "{full:?}"
    );
    until(|| !is_alive(host.lives()[0])).await;
    // It is idle, is asked, gets SIGTERM, SIGKILL; and only then there is room.
    within(async { while client.find("other").await.is_err() {} }).await;
    within(superserver.shutdown()).await;
    assert!(host.lives().iter().all(|life| !is_alive(*life)));
}

#[tokio::test]
async fn p02_a_second_daemon_and_bad_settings_are_refused_by_name() {
    let host = Host::new(&[], |_| ());
    let (_node, _superserver) = host.superserver().await;
    let second = Node::builder().listen(&*host.config.listen[0]).start().await;
    assert!(second.is_err(), "the place is taken");

    let node = Node::builder().listen("tcp://127.0.0.1:0").start().await.unwrap();
    let mut config = Config::default();
    config.service.insert("printer".to_owned(), Service::new([""]));
    let error = Superserver::start(&node, &config).await.unwrap_err();
    assert!(
        matches!(&error, StartError::Config(error) if error.to_string().contains("service.printer.command"))
    );
    let mut config = Config::default();
    config.state = Some(PathBuf::from("/dev/null/state"));
    let error = Superserver::start(&node, &config).await.unwrap_err();
    assert!(matches!(&error, StartError::State { .. }), "{error:?}");
    let _other = Directory::found(&node).await.unwrap();
    let error = Superserver::start(&node, &Config::default()).await.unwrap_err();
    assert!(matches!(&error, StartError::Directory(_)), "{error:?}");
    let file = host.place.path().join("settings.toml");
    for text in ["listen = 7", "[service.printer]\ncommand = [\"a\"]\nidle = 5"] {
        std::fs::write(&file, text).unwrap();
        let error = Config::read(&file).unwrap_err();
        assert!(error.to_string().contains("settings.toml is not understood"), "{error}");
    }
    assert!(Config::read(Path::new("/nowhere")).unwrap_err().to_string().contains("/nowhere cannot be read"));
}

const PLACE_VARIABLE: &str = "QUORATE_TEST_PRINTER_PLACE";
const NAME_VARIABLE: &str = "QUORATE_TEST_PRINTER_NAME";
const MANNER_VARIABLE: &str = "QUORATE_TEST_PRINTER_MANNER";
const TETHER_VARIABLE: &str = "QUORATE_TEST_PRINTER_TETHER";
