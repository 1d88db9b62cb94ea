//! A guest behind a port: smoltcp.

use std::rc::Rc;
use std::time::{Duration, Instant};

use memory::VolatileSlice;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Address};

use crate::Port;

struct Card(Rc<dyn Port>);

struct Sending(Rc<dyn Port>);

struct Received(Vec<u8>);

impl Device for Card {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, Sending)> {
        let mut frame = vec![0; 2048];
        let len = self
            .0
            .receive(&[VolatileSlice::from(&mut frame[..])])
            .ok()?;
        frame.truncate(len);
        Some((Received(frame), Sending(Rc::clone(&self.0))))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sending> {
        Some(Sending(Rc::clone(&self.0)))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sending {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        // In two pieces, as a guest may have it.
        let (head, tail) = frame.split_at_mut(len / 2);
        self.0
            .send(&[VolatileSlice::from(head), VolatileSlice::from(tail)])
            .unwrap();
        result
    }
}

/// What DHCP gave.
#[derive(Debug, PartialEq)]
pub struct Lease {
    pub address: String,
    pub router: String,
    pub dns: String,
}

pub struct Guest {
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    start: Instant,
}

impl Guest {
    pub fn new(port: Rc<dyn Port>) -> Self {
        let mut card = Card(port);
        let mac = EthernetAddress([0x52, 0x54, 0, 1, 2, 3]);
        let config = Config::new(HardwareAddress::Ethernet(mac));
        let interface = Interface::new(config, &mut card, smoltcp::time::Instant::ZERO);
        Self {
            card,
            interface,
            sockets: SocketSet::new(Vec::new()),
            start: Instant::now(),
        }
    }

    /// Runs the stack until `done` gives something; panics after 10 seconds.
    async fn run<T>(
        &mut self,
        mut done: impl FnMut(&mut Interface, &mut SocketSet<'static>) -> Option<T>,
    ) -> T {
        loop {
            let now = smoltcp::time::Instant::from_micros(self.start.elapsed().as_micros() as i64);
            self.interface.poll(now, &mut self.card, &mut self.sockets);
            if let Some(result) = done(&mut self.interface, &mut self.sockets) {
                // What the socket wants to say because of it.
                self.interface.poll(now, &mut self.card, &mut self.sockets);
                return result;
            }
            assert!(
                self.start.elapsed() < Duration::from_secs(10),
                "the network is silent"
            );
            let delay = self
                .interface
                .poll_delay(now, &self.sockets)
                .map_or(Duration::from_secs(1), Into::into);
            if let Some(result) = event::timeout(
                delay.max(Duration::from_micros(10)),
                self.card.0.receivable(),
            )
            .await
            {
                result.unwrap();
            }
        }
    }

    /// Gets an address by DHCP.
    pub async fn dhcp(&mut self) -> Lease {
        let handle = self.sockets.add(dhcpv4::Socket::new());
        let lease = self.run(|interface, sockets| {
            let Some(dhcpv4::Event::Configured(config)) =
                sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll()
            else {
                return None;
            };
            interface
                .update_ip_addrs(|addresses| addresses.push(IpCidr::Ipv4(config.address)).unwrap());
            let router = config.router.unwrap();
            interface
                .routes_mut()
                .add_default_ipv4_route(router)
                .unwrap();
            Some(Lease {
                address: config.address.to_string(),
                router: router.to_string(),
                dns: config.dns_servers[0].to_string(),
            })
        });
        lease.await
    }

    fn socket(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 32 << 10]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    /// Connects, sends `request`, and returns everything that comes until the other side closes.
    pub async fn fetch(&mut self, host: [u8; 4], port: u16, request: &[u8]) -> Vec<u8> {
        let handle = self.socket();
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        let remote = (Ipv4Address::from(host), port);
        socket
            .connect(self.interface.context(), remote, 49152)
            .unwrap();
        let (mut answer, mut sent) = (Vec::new(), false);
        self.run(|_, sockets| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
            if !sent && socket.can_send() {
                assert_eq!(socket.send_slice(request), Ok(request.len()));
                sent = true;
            }
            while socket.can_recv() {
                socket
                    .recv(|bytes| (bytes.len(), answer.extend_from_slice(bytes)))
                    .unwrap();
            }
            (sent && !socket.may_recv() && socket.may_send()).then(|| socket.close())
        })
        .await;
        answer
    }

    /// Waits for a connection to `port` and answers what comes with itself, once.
    pub async fn echo(&mut self, port: u16) {
        let handle = self.socket();
        self.sockets
            .get_mut::<tcp::Socket<'_>>(handle)
            .listen(port)
            .unwrap();
        let mut answered = false;
        self.run(|_, sockets| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
            if !answered && socket.can_recv() {
                let bytes = socket.recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap();
                socket.send_slice(&bytes).unwrap();
                socket.close();
                answered = true;
            }
            (answered && !socket.is_active()).then_some(())
        })
        .await;
    }
}
