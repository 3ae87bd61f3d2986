//! Servers from the system's packages, on loopback, in a directory of their own, ended with their handle.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use quorate::queue::engine::EngineQueues;
use tempfile::TempDir;

/// One server. Dropped, it is killed.
pub(super) struct Server {
    /// What runs, in the order of its beginning; each in a process group of its own.
    children: Vec<Child>,
    commands: Vec<Box<dyn Fn() -> Command + Send>>,
    url: String,
    directory: TempDir,
}

impl Server {
    pub(super) fn nats() -> Result<Self, &'static str> {
        let program = find("nats-server", &["/usr/sbin", "/usr/bin", "/usr/local/bin"])?;
        let (directory, port) = (directory(), free_port(0));
        let store = directory.path().join("store");
        let command = move || {
            let mut command = Command::new(&program);
            command.args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"]).arg(&store);
            command
        };
        Ok(Self::begin(directory, format!("nats://127.0.0.1:{port}"), vec![Box::new(command)]))
    }

    pub(super) fn postgres() -> Result<Self, &'static str> {
        let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let mut places: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
        places.sort();
        let places: Vec<&str> = places.iter().rev().filter_map(|place| place.to_str()).collect();
        let (initdb, program) = (find("initdb", &places)?, find("postgres", &places)?);
        let (directory, port) = (directory(), free_port(1));
        // It refuses to run as root.
        let owner = rustix::process::getuid().is_root().then(|| user("postgres")).flatten();
        if let Some((user, group)) = owner {
            std::os::unix::fs::chown(directory.path(), Some(user), Some(group)).expect("root may");
        }
        let as_owner = move |program: &Path| {
            let mut command = Command::new(program);
            if let Some((user, group)) = owner {
                command.uid(user).gid(group);
            }
            command.current_dir("/");
            command
        };
        let data = directory.path().join("data");
        let mut made = as_owner(&initdb);
        made.args(["--no-sync", "--auth=trust", "--username=quorate", "-D"]).arg(&data);
        let made = made.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it runs");
        assert!(made.success(), "a database cannot be made: {made}");
        let [certificate, key] = ["certificate", "key"].map(|name| directory.path().join(name));
        let signed = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
        std::fs::write(&certificate, signed.cert.pem()).expect("a good disk");
        std::fs::write(&key, signed.signing_key.serialize_pem()).expect("a good disk");
        // It takes no key that others may read.
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
        if let Some((user, group)) = owner {
            std::os::unix::fs::chown(&key, Some(user), Some(group)).expect("root may");
        }
        let url = format!(
            "postgres://quorate@127.0.0.1:{port}/postgres?sslmode=require&sslrootcert={}",
            certificate.display()
        );
        let command = move || {
            let mut command = as_owner(&program);
            command.arg("-D").arg(&data).args(["-p", &port.to_string()]);
            for (setting, file) in [("ssl_cert_file", &certificate), ("ssl_key_file", &key)] {
                command.args(["-c", "ssl=on", "-c"]).arg(format!("{setting}={}", file.display()));
            }
            command.args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]);
            command
        };
        Ok(Self::begin(directory, url, vec![Box::new(command)]))
    }

    pub(super) fn rabbitmq() -> Result<Self, &'static str> {
        // The one in /usr/sbin would change to a user who cannot write here.
        let program = find("rabbitmq-server", &["/usr/lib/rabbitmq/bin"])?;
        let mapper = find("epmd", &["/usr/bin", "/usr/local/bin"])?;
        let (directory, port) = (directory(), free_port(2));
        let (distribution, mapped) = (free_port(3), free_port(4));
        let home = directory.path().to_owned();
        let config = home.join("rabbitmq.conf");
        std::fs::write(&config, format!("listeners.tcp.1 = 127.0.0.1:{port}\n")).expect("a good disk");
        // Erlang's names of nodes, which a server would start by itself and leave behind.
        let names = move || {
            let mut command = Command::new(&mapper);
            command.args(["-address", "127.0.0.1", "-port", &mapped.to_string()]);
            command
        };
        let command = move || {
            let mut command = Command::new(&program);
            command
                .env("HOME", &home)
                .env("ERL_EPMD_ADDRESS", "127.0.0.1")
                .env("ERL_EPMD_PORT", mapped.to_string())
                .env("RABBITMQ_NODENAME", format!("quorate{port}@localhost"))
                .env("RABBITMQ_DIST_PORT", distribution.to_string())
                .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
                .env("RABBITMQ_CONFIG_FILE", &config)
                .env("RABBITMQ_ENABLED_PLUGINS_FILE", home.join("plugins"))
                .env("RABBITMQ_PID_FILE", home.join("pid"))
                .env("RABBITMQ_MNESIA_BASE", home.join("mnesia"))
                .env("RABBITMQ_LOG_BASE", home.join("log"));
            command
        };
        let url = format!("amqp://guest:guest@127.0.0.1:{port}");
        Ok(Self::begin(directory, url, vec![Box::new(names), Box::new(command)]))
    }

    fn begin(directory: TempDir, url: String, commands: Vec<Box<dyn Fn() -> Command + Send>>) -> Self {
        let mut server = Self { children: Vec::new(), commands, url, directory };
        server.start();
        server
    }

    /// Starts it with what it had stored.
    pub(super) fn start(&mut self) {
        let log = std::fs::File::create(self.directory.path().join("output")).expect("a good disk");
        for command in &self.commands {
            let mut command = command();
            command.stdin(Stdio::null()).process_group(0);
            command.stdout(log.try_clone().expect("a file")).stderr(log.try_clone().expect("a file"));
            self.children.push(command.spawn().expect("what was found runs"));
        }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// SIGKILL for it and what it has started, and waits until it is dead.
    pub(super) fn kill(&mut self) {
        for mut child in self.children.drain(..).rev() {
            let group = rustix::process::Pid::from_child(&child);
            // It may have ended by itself.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            child.wait().expect("its end");
        }
    }

    /// Its queues, as soon as it answers.
    pub(super) async fn open(&mut self) -> EngineQueues {
        for _ in 0..ATTEMPTS {
            // One that starts may refuse first.
            if let Ok(queues) = EngineQueues::open(&self.url).await {
                return queues;
            }
            tokio::time::sleep(PAUSE).await;
            let has_ended = |child: &mut Child| child.try_wait().expect("its state").is_some();
            if self.children.iter_mut().any(has_ended) {
                // What was killed may not have let go of everything yet.
                self.kill();
                self.start();
            }
        }
        let output = std::fs::read_to_string(self.directory.path().join("output"));
        panic!("the server does not answer:\n{}", output.unwrap_or_default());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a good disk")
}

fn find(program: &'static str, places: &[&str]) -> Result<PathBuf, &'static str> {
    let paths = places.iter().map(|place| Path::new(place).join(program));
    paths.into_iter().find(|path| path.exists()).ok_or(program)
}

/// Numbers of a user and its group.
fn user(name: &str) -> Option<(u32, u32)> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
    let fields: Vec<&str> = line.split(':').collect();
    Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
}

/// A port that is free, below those that connections get for themselves, and another one for each `which`.
fn free_port(which: u16) -> u16 {
    let begin = u16::try_from(std::process::id() % 1000).expect("small") * 10;
    let ports = (0..100).map(|n| 15_000 + (begin + which + n * 100) % 10_000);
    ports
        .into_iter()
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .expect("one of a hundred is free")
}

/// RabbitMQ takes 5 seconds on a machine that has nothing else to do.
const ATTEMPTS: usize = 4800;
const PAUSE: Duration = Duration::from_millis(50);
