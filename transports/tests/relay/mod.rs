//! A bad network between two ends of `udp://`: a process in the middle that loses, doubles, delays and damages datagrams,
//! and that may change the address from which it forwards, as a router does.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_transports::fault::model::{LinkModel, Network, Rng};
use quorate_transports::udp::Udp;
use quorate_transports::{Address, BoxFuture, Link, Listener, Transport, TransportError};
use tokio::net::UdpSocket;
use tokio::time::Instant;

/// `udp://` whose dialled links go through a relay each.
#[derive(Clone)]
pub(crate) struct Relayed {
    udp: Udp,
    model: LinkModel,
    seeds: Arc<Mutex<u64>>,
    relays: Arc<Mutex<Vec<tokio::task::AbortHandle>>>,
}

impl Relayed {
    pub(crate) fn new(udp: Udp, model: LinkModel, seed: u64) -> Self {
        Self { udp, model, seeds: Arc::new(Mutex::new(seed)), relays: Arc::default() }
    }
}

impl Drop for Relayed {
    fn drop(&mut self) {
        if Arc::strong_count(&self.relays) == 1 {
            self.relays.lock().unwrap().drain(..).for_each(|relay| relay.abort());
        }
    }
}

impl Transport for Relayed {
    fn scheme(&self) -> &'static str {
        self.udp.scheme()
    }

    fn listen<'a>(
        &'a self,
        address: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn Listener>, TransportError>> {
        self.udp.listen(address)
    }

    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Link, TransportError>> {
        Box::pin(async move {
            let Ok(target) = address.rest().parse() else { return self.udp.connect(address).await };
            let seed = {
                let mut seeds = self.seeds.lock().unwrap();
                *seeds += 1;
                *seeds
            };
            let relay = Relay::start(target, self.model, seed).await;
            self.relays.lock().unwrap().push(relay.task.clone());
            match self.udp.connect(&relay.address).await {
                Ok(link) => Ok(Link { peer: address.clone(), ..link }),
                Err(TransportError::TimedOut { limit_ms, .. }) => {
                    Err(TransportError::TimedOut { address: address.clone(), limit_ms })
                }
                Err(TransportError::Refused { .. }) => {
                    Err(TransportError::Refused { address: address.clone() })
                }
                Err(error) => Err(error),
            }
        })
    }
}

/// One relay, for one dialler.
pub(crate) struct Relay {
    /// What is dialled instead of the target.
    pub(crate) address: Address,
    pub(crate) task: tokio::task::AbortHandle,
    behind: Arc<Mutex<Behind>>,
}

struct Behind {
    socket: Arc<UdpSocket>,
    /// Told when the socket is another one.
    changed: Arc<tokio::sync::Notify>,
}

impl Relay {
    pub(crate) async fn start(target: SocketAddr, model: LinkModel, seed: u64) -> Self {
        let front = Arc::new(bind().await);
        let address = format!("udp://{}", front.local_addr().unwrap()).parse().unwrap();
        let changed = Arc::new(tokio::sync::Notify::new());
        let behind = Arc::new(Mutex::new(Behind { socket: Arc::new(bind().await), changed }));
        let task = tokio::spawn(forward(front, behind.clone(), target, model, seed)).abort_handle();
        Self { address, task, behind }
    }

    /// From now on the target sees another address, and what it sends to the old one gets lost.
    pub(crate) async fn move_elsewhere(&self) {
        let fresh = Arc::new(bind().await);
        let mut behind = self.behind.lock().unwrap();
        behind.socket = fresh;
        behind.changed.notify_one();
    }
}

async fn bind() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").await.unwrap()
}

async fn forward(
    front: Arc<UdpSocket>,
    behind: Arc<Mutex<Behind>>,
    target: SocketAddr,
    model: LinkModel,
    seed: u64,
) {
    let mut network = Network::new(model);
    let mut rng = Rng::new(seed);
    let epoch = Instant::now();
    let mut dialler = None;
    let mut serial = 0u64;
    // By the time at which they are due.
    let mut held: BTreeMap<(u64, u64), (bool, Vec<u8>)> = BTreeMap::new();
    let (mut here, mut there) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        let (socket, changed) = {
            let behind = behind.lock().unwrap();
            (behind.socket.clone(), behind.changed.clone())
        };
        let due = held.first_key_value().map_or(3_600_000_000_000, |((at, _), _)| *at);
        let (is_out, bytes) = tokio::select! {
            received = front.recv_from(&mut here) => {
                let Ok((count, from)) = received else { continue };
                dialler = Some(from);
                (true, here[..count].to_vec())
            }
            received = socket.recv_from(&mut there) => {
                let Ok((count, _)) = received else { continue };
                (false, there[..count].to_vec())
            }
            () = tokio::time::sleep_until(epoch + Duration::from_nanos(due)) => {
                while let Some(entry) = held.first_entry().filter(|entry| entry.key().0 <= now(epoch)) {
                    let (is_out, bytes) = entry.remove();
                    // What the system does not take is lost, as on any network.
                    let _ = match (is_out, dialler) {
                        (true, _) => socket.try_send_to(&bytes, target),
                        (false, Some(dialler)) => front.try_send_to(&bytes, dialler),
                        (false, None) => Ok(0),
                    };
                }
                continue;
            }
            () = changed.notified() => continue,
        };
        let (from, to) = if is_out { (1, 2) } else { (2, 1) };
        let at = now(epoch);
        for delivery in network.fate(at, from, to, bytes.len(), &mut rng).iter() {
            let mut bytes = bytes.clone();
            if let Some(corruption) = delivery.corruption {
                corruption.apply(&mut bytes);
            }
            serial += 1;
            held.insert((at + delivery.delay_nanos, serial), (is_out, bytes));
        }
    }
}

fn now(epoch: Instant) -> u64 {
    u64::try_from(epoch.elapsed().as_nanos()).unwrap()
}
