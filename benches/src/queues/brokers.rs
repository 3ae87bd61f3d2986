//! Brokers that are installed here, started on loopback with a directory of their own, and spoken to by hand.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use super::{MESSAGE_BYTES, Producer, produce};
use crate::worker::Outcome;

pub struct Broker {
    pub name: &'static str,
    program: PathBuf,
    protocol: Protocol,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Redis,
    Postgres,
    Nats,
    Beanstalk,
}

/// Those that are here; the others are named.
pub fn installed() -> Vec<Broker> {
    let all = [
        ("Redis, appendfsync always", "redis-server", Protocol::Redis),
        ("PostgreSQL, a table", "postgres", Protocol::Postgres),
        ("NATS JetStream, sync always", "nats-server", Protocol::Nats),
        ("beanstalkd -f0", "beanstalkd", Protocol::Beanstalk),
    ];
    let there = all.into_iter().filter_map(|(name, program, protocol)| match find(program) {
        Some(program) => {
            let is_unsynced = protocol == Protocol::Nats && !has_sync_always(&program);
            let name = if is_unsynced { NATS_UNSYNCED } else { name };
            Some(Broker { name, program, protocol })
        }
        None => {
            println!("{program} is not installed");
            None
        }
    });
    there.collect()
}

fn find(program: &str) -> Option<PathBuf> {
    let mut places: Vec<PathBuf> = ["/usr/sbin", "/usr/bin", "/usr/local/bin"].map(PathBuf::from).into();
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    places.extend(versions.map(|version| version.path().join("bin")));
    places.into_iter().map(|place| place.join(program)).find(|path| path.exists())
}

/// NATS can sync each message since 2.10.
fn has_sync_always(program: &Path) -> bool {
    let told =
        Command::new(program).arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    let told = String::from_utf8_lossy(&told);
    let mut numbers =
        told.rsplit('v').next().unwrap_or_default().split('.').map_while(|part| part.parse().ok());
    (numbers.next(), numbers.next()) >= (Some(2_u32), Some(10_u32))
}

/// How many puts it confirmed a second.
pub async fn run(broker: &Broker, directory: &Path, time: Duration) -> Outcome<f64> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let _server = broker.start(directory, port)?;
    let mut producers = Vec::new();
    let mut first = Client::open(broker.protocol, port).await?;
    first.prepare().await?;
    producers.push(first);
    while producers.len() < PRODUCERS {
        producers.push(Client::open(broker.protocol, port).await?);
    }
    produce(producers.into_iter(), time).await
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_child(&self.0);
        // It may have ended by itself.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.0.wait();
    }
}

impl Broker {
    fn start(&self, directory: &Path, port: u16) -> Outcome<Server> {
        let text = port.to_string();
        let mut command = Command::new(&self.program);
        match self.protocol {
            Protocol::Redis => {
                command.args(["--bind", "127.0.0.1", "--port", &text, "--save", "", "--appendonly", "yes"]);
                command.args(["--appendfsync", "always", "--dir"]).arg(directory);
            }
            Protocol::Beanstalk => {
                command.args(["-l", "127.0.0.1", "-p", &text, "-f0", "-b"]).arg(directory);
            }
            Protocol::Nats => {
                let config = directory.join("nats.conf");
                let store = directory.join("store");
                let sync = if self.name == NATS_UNSYNCED { "" } else { ", sync_interval: always" };
                let text =
                    format!("listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: {store:?}{sync} }}\n");
                std::fs::write(&config, text)?;
                command.arg("-c").arg(config);
            }
            Protocol::Postgres => {
                // It refuses to run as root.
                let owner = rustix::process::getuid().is_root().then(|| user("postgres")).flatten();
                let as_owner = |program: &Path| {
                    let mut command = Command::new(program);
                    if let Some((user, group)) = owner {
                        command.uid(user).gid(group);
                    }
                    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                    command
                };
                if let Some((user, group)) = owner {
                    std::os::unix::fs::chown(directory, Some(user), Some(group))?;
                }
                let data = directory.join("data");
                let mut made = as_owner(&self.program.with_file_name("initdb"));
                made.args(["--no-sync", "--auth=trust", "--username=quorate", "-D"]).arg(&data);
                if !made.status()?.success() {
                    return Err("a database cannot be made".into());
                }
                command = as_owner(&self.program);
                command.arg("-D").arg(&data).args(["-p", &text, "-c", "listen_addresses=127.0.0.1"]);
                command.args(["-c", "unix_socket_directories=", "-c", "max_connections=100"]);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        Ok(Server(command.spawn()?))
    }
}

/// Numbers of a user and its group.
fn user(name: &str) -> Option<(u32, u32)> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
    let fields: Vec<&str> = line.split(':').collect();
    Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
}

/// A connection, and the bytes of a put.
struct Client {
    protocol: Protocol,
    stream: BufReader<TcpStream>,
    put: Vec<u8>,
    line: Vec<u8>,
}

impl Client {
    /// As soon as it answers.
    async fn open(protocol: Protocol, port: u16) -> Outcome<Self> {
        for _ in 0..ATTEMPTS {
            if let Ok(client) = Self::attempt(protocol, port).await {
                return Ok(client);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(format!("{protocol:?} does not answer").into())
    }

    async fn attempt(protocol: Protocol, port: u16) -> Outcome<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.set_nodelay(true)?;
        let body = "x".repeat(MESSAGE_BYTES);
        let put = match protocol {
            Protocol::Redis => format!("*3\r\n$5\r\nRPUSH\r\n$1\r\nq\r\n${MESSAGE_BYTES}\r\n{body}\r\n"),
            Protocol::Beanstalk => format!("put 0 0 60 {MESSAGE_BYTES}\r\n{body}\r\n"),
            Protocol::Nats => format!("PUB bench reply.{port} {MESSAGE_BYTES}\r\n{body}\r\n"),
            Protocol::Postgres => String::new(),
        };
        let mut client = Self { protocol, stream: BufReader::new(stream), put: put.into(), line: Vec::new() };
        match protocol {
            Protocol::Redis => {
                client.stream.write_all(b"PING\r\n").await?;
                client.answer(b"+PONG").await?;
            }
            Protocol::Beanstalk => {}
            Protocol::Nats => {
                let own = client.stream.get_ref().local_addr()?.port();
                client.put = format!("PUB bench reply.{own} {MESSAGE_BYTES}\r\n{body}\r\n").into();
                client.answer(b"INFO").await?;
                let hello = format!("CONNECT {{\"verbose\":false}}\r\nSUB reply.{own} 1\r\nPING\r\n");
                client.stream.write_all(hello.as_bytes()).await?;
                client.answer(b"PONG").await?;
            }
            Protocol::Postgres => {
                client.put = query(&format!("INSERT INTO q(body) VALUES('{body}')"));
                let mut hello = 196_608_u32.to_be_bytes().to_vec();
                hello.extend_from_slice(b"user\0quorate\0database\0postgres\0\0");
                let length = u32::try_from(hello.len() + 4)?;
                client.stream.write_all(&length.to_be_bytes()).await?;
                client.stream.write_all(&hello).await?;
                client.ready().await?;
            }
        }
        Ok(client)
    }

    /// Makes the queue, where there must be one first.
    async fn prepare(&mut self) -> Outcome<()> {
        match self.protocol {
            Protocol::Redis | Protocol::Beanstalk => {}
            Protocol::Nats => {
                let settings =
                    r#"{"name":"bench","subjects":["bench"],"storage":"file","retention":"workqueue"}"#;
                let own = self.stream.get_ref().local_addr()?.port();
                let ask = format!(
                    "PUB $JS.API.STREAM.CREATE.bench reply.{own} {}\r\n{settings}\r\n",
                    settings.len()
                );
                for tries in 0.. {
                    self.stream.write_all(ask.as_bytes()).await?;
                    let answer = self.message().await?;
                    if answer.contains("\"created\"") {
                        break;
                    }
                    if tries == ATTEMPTS {
                        return Err(answer.into());
                    }
                    // It may still be starting.
                    tokio::time::sleep(PAUSE).await;
                }
            }
            Protocol::Postgres => {
                let made = query("CREATE TABLE q(id bigserial PRIMARY KEY, body text)");
                self.stream.write_all(&made).await?;
                self.ready().await?;
            }
        }
        Ok(())
    }

    /// The next line begins so.
    async fn answer(&mut self, begin: &[u8]) -> Outcome<()> {
        self.line.clear();
        self.stream.read_until(b'\n', &mut self.line).await?;
        if self.line.starts_with(begin) {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&self.line).into_owned().into())
        }
    }

    /// The next message of NATS.
    async fn message(&mut self) -> Outcome<String> {
        loop {
            self.line.clear();
            if self.stream.read_until(b'\n', &mut self.line).await? == 0 {
                return Err("the server has gone".into());
            }
            let line = String::from_utf8_lossy(&self.line).trim_end().to_owned();
            if line == "PING" {
                self.stream.write_all(b"PONG\r\n").await?;
            } else if line.starts_with("MSG ") {
                let length: usize = line.rsplit(' ').next().unwrap_or_default().parse()?;
                let mut body = vec![0; length + 2];
                self.stream.read_exact(&mut body).await?;
                return Ok(String::from_utf8_lossy(&body[..length]).into_owned());
            } else if line.starts_with("-ERR") {
                return Err(line.into());
            }
        }
    }

    /// What PostgreSQL says, until it is ready for the next query.
    async fn ready(&mut self) -> Outcome<()> {
        loop {
            let kind = self.stream.read_u8().await?;
            let length = self.stream.read_u32().await? as usize;
            self.line.resize(length.saturating_sub(4), 0);
            self.stream.read_exact(&mut self.line).await?;
            match kind {
                b'Z' => return Ok(()),
                b'E' => return Err(String::from_utf8_lossy(&self.line).into_owned().into()),
                _ => {}
            }
        }
    }
}

impl Producer for Client {
    async fn put(&mut self) -> Outcome<()> {
        self.stream.write_all(&self.put).await?;
        match self.protocol {
            Protocol::Redis => self.answer(b":").await,
            Protocol::Beanstalk => self.answer(b"INSERTED").await,
            Protocol::Nats => {
                let answer = self.message().await?;
                if answer.contains("\"seq\"") { Ok(()) } else { Err(answer.into()) }
            }
            Protocol::Postgres => self.ready().await,
        }
    }
}

/// A simple query of PostgreSQL.
fn query(text: &str) -> Vec<u8> {
    let mut message = vec![b'Q'];
    message.extend_from_slice(&(text.len() as u32 + 5).to_be_bytes());
    message.extend_from_slice(text.as_bytes());
    message.push(0);
    message
}

const NATS_UNSYNCED: &str = "NATS JetStream, not synced";
const PRODUCERS: usize = 64;
const ATTEMPTS: usize = 600;
const PAUSE: Duration = Duration::from_millis(50);
