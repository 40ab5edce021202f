//! Whether a way to the internet is there, from this machine's own interfaces and routes alone
//! (design, section 8). Nobody is asked and nothing is sent.
//!
//! On Linux the kernel says over netlink that something has changed, and the tables say what. Where
//! it does not, as under a strict system call filter, the tables are read once a second. Where there
//! are no tables, a way is taken to be there and transports find out for themselves.

use std::{collections::BTreeSet, time::Duration};

use tokio::{sync::watch, time::sleep};

/// How this machine is connected.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Connectivity {
    /// A default route leads out over an interface that is up.
    pub has_default_route: bool,
    /// The interfaces that are up and have a carrier, without loopback.
    pub interfaces: BTreeSet<String>,
}

/// Keeps a [`Connectivity`] up to date.
#[derive(Debug)]
pub struct Watcher(watch::Sender<Connectivity>);

impl Watcher {
    /// Reads the tables for the first time.
    pub fn new() -> (Self, watch::Receiver<Connectivity>) {
        let (sender, receiver) = watch::channel(tables::read());
        (Self(sender), receiver)
    }

    /// Follows the changes; for ever, unless it is dropped.
    pub async fn run(self) {
        if let Err(error) = self.follow().await {
            tracing::debug!(%error, "the kernel tells nothing of interfaces and routes; reading them instead");
        }
        loop {
            self.look();
            sleep(READ_EVERY).await;
        }
    }

    #[cfg(target_os = "linux")]
    async fn follow(&self) -> std::io::Result<()> {
        let news = netlink::News::subscribe()?;
        // What has changed before the subscription is in no news.
        self.look();
        loop {
            news.wait().await?;
            // A cable that is pulled changes a dozen rows.
            sleep(SETTLE).await;
            news.discard()?;
            self.look();
        }
    }

    #[cfg(not(target_os = "linux"))]
    async fn follow(&self) -> std::io::Result<()> {
        std::future::pending().await
    }

    fn look(&self) {
        let now = tables::read();
        self.0.send_if_modified(|known| {
            let has_changed = *known != now;
            if has_changed {
                tracing::info!(
                    network.has_default_route = now.has_default_route,
                    network.interfaces = now.interfaces.len(),
                    "the network has changed",
                );
                *known = now;
            }
            has_changed
        });
    }
}

/// Between two looks where nobody tells of changes.
const READ_EVERY: Duration = Duration::from_secs(1);
#[cfg(target_os = "linux")]
const SETTLE: Duration = Duration::from_millis(20);

#[cfg(target_os = "linux")]
mod netlink {
    use std::{io, os::fd::AsRawFd};

    use nix::{
        libc,
        sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket},
    };
    use tokio::net::UnixDatagram;

    /// Hears that interfaces, addresses or routes have changed.
    ///
    /// The socket is no Unix one, but it is one of datagrams, and this is the type that reads those
    /// without unsafe code.
    pub(super) struct News(UnixDatagram);

    impl News {
        pub(super) fn subscribe() -> io::Result<Self> {
            let socket = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                SockProtocol::NetlinkRoute,
            )?;
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
            UnixDatagram::from_std(socket.into()).map(Self)
        }

        /// Waits until there is something to hear. Cancel safe.
        pub(super) async fn wait(&self) -> io::Result<()> {
            self.0.readable().await
        }

        /// Takes what there is to hear; the tables say it better.
        pub(super) fn discard(&self) -> io::Result<()> {
            let mut buffer = [0; 8192];
            loop {
                // A datagram that does not fit is cut off, which does no harm; too many at once are
                // dropped, which says just as well that there is news.
                match self.0.try_recv(&mut buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                    Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => return Err(error),
                    Ok(_) | Err(_) => {}
                }
            }
        }
    }

    const GROUPS: u32 = (libc::RTMGRP_LINK
        | libc::RTMGRP_IPV4_IFADDR
        | libc::RTMGRP_IPV4_ROUTE
        | libc::RTMGRP_IPV6_IFADDR
        | libc::RTMGRP_IPV6_ROUTE)
        .cast_unsigned();
}

#[cfg(target_os = "linux")]
mod tables {
    use std::{collections::BTreeSet, fs};

    use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};

    use super::Connectivity;

    pub(super) fn read() -> Connectivity {
        let interfaces = interfaces();
        // The thread's own, which is the process's but in tests.
        let table = |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}"));
        let has_default_route = match (table("route"), table("ipv6_route")) {
            (Err(_), Err(_)) => true,
            (four, six) => {
                let (four, six) = (four.unwrap_or_default(), six.unwrap_or_default());
                four.lines().skip(1).any(|row| leads_out_4(row, &interfaces))
                    || six.lines().any(|row| leads_out_6(row, &interfaces))
            }
        };
        Connectivity { has_default_route, interfaces }
    }

    fn interfaces() -> BTreeSet<String> {
        let is_up = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING;
        let all = getifaddrs().into_iter().flatten();
        all.filter(|one| one.flags.contains(is_up))
            .filter(|one| !one.flags.contains(InterfaceFlags::IFF_LOOPBACK))
            .map(|one| one.interface_name)
            .collect()
    }

    /// `Iface Destination Gateway Flags RefCnt Use Metric Mask …`, numbers in hex.
    pub(super) fn leads_out_4(row: &str, up: &BTreeSet<String>) -> bool {
        let fields: Vec<&str> = row.split_whitespace().collect();
        let [interface, destination, _, flags, _, _, _, mask, ..] = fields[..] else {
            return false;
        };
        destination == "00000000" && mask == "00000000" && !rejects(flags) && up.contains(interface)
    }

    /// Destination, its prefix length, source, its prefix length, next hop, metric, references, uses,
    /// flags, interface.
    pub(super) fn leads_out_6(row: &str, up: &BTreeSet<String>) -> bool {
        let fields: Vec<&str> = row.split_whitespace().collect();
        let [destination, prefix, _, _, _, _, _, _, flags, interface] = fields[..] else {
            return false;
        };
        let is_default = destination.bytes().all(|digit| digit == b'0') && prefix == "00";
        is_default && !rejects(flags) && up.contains(interface)
    }

    /// `RTF_REJECT`: the route says that there is none.
    fn rejects(flags: &str) -> bool {
        u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & 0x0200 != 0)
    }
}

#[cfg(not(target_os = "linux"))]
mod tables {
    use std::collections::BTreeSet;

    use super::Connectivity;

    pub(super) fn read() -> Connectivity {
        Connectivity { has_default_route: true, interfaces: BTreeSet::new() }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};
    use tokio::time::timeout;

    use super::{tables::*, *};

    #[test]
    fn a_default_route_counts_while_its_interface_is_up_and_it_does_not_refuse() {
        let up = BTreeSet::from(["eth0".to_owned()]);
        let four = |row: &str| leads_out_4(row, &up);
        assert!(four("eth0\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0"));
        assert!(!four("wlan0\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0"));
        assert!(!four("eth0\t0002A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0"));
        assert!(!four("eth0\t00000000\t00000000\t0201\t0\t0\t0\t00000000\t0\t0\t0"));
        assert!(!four("eth0"));
        let zeros = "0".repeat(32);
        let six = |prefix: &str, flags: &str| {
            let row = format!("{zeros} {prefix} {zeros} 00 {zeros} 00000400 1 0 {flags} eth0");
            leads_out_6(&row, &up)
        };
        assert!(six("00", "00450003"));
        assert!(!six("40", "00450003"));
        assert!(!six("00", "00200200"));
    }

    /// Real netlink in a network namespace of its own; needs root and `ip`.
    #[test]
    fn changes_of_interfaces_and_routes_are_heard_at_once() {
        let thread = std::thread::spawn(|| {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
                eprintln!("skipped: no network namespace of its own: {error}");
                return;
            }
            if Command::new("ip").arg("-V").output().is_err() {
                eprintln!("skipped: there is no ip command");
                return;
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be made").block_on(a_cable_comes_and_goes());
        });
        thread.join().expect("the thread ends well");
    }

    async fn a_cable_comes_and_goes() {
        let (watcher, mut known) = Watcher::new();
        assert!(!known.borrow().has_default_route);
        let watching = async {
            watcher.follow().await.expect("root may hear netlink");
        };
        let story = async {
            tokio::task::yield_now().await;
            ip("link add one type veth peer name other");
            ip("address add 192.0.2.1/24 dev one");
            ip("link set other up");
            ip("link set one up");
            ip("route add default via 192.0.2.2");
            heard(&mut known, |now| now.has_default_route && now.interfaces.contains("one")).await;
            // The other end goes down: the route stays in the table and leads nowhere.
            ip("link set other down");
            heard(&mut known, |now| !now.has_default_route).await;
            ip("link set other up");
            heard(&mut known, |now| now.has_default_route).await;
            ip("route del default");
            heard(&mut known, |now| !now.has_default_route && !now.interfaces.is_empty()).await;
            ip("link del one");
            heard(&mut known, |now| now.interfaces.is_empty()).await;
        };
        tokio::select! {
            () = watching => {}
            () = story => {}
        }
    }

    async fn heard(
        known: &mut watch::Receiver<Connectivity>,
        is_there: impl Fn(&Connectivity) -> bool,
    ) {
        let patience = Duration::from_secs(20);
        let found = timeout(patience, known.wait_for(|now| is_there(now))).await;
        found.expect("it is heard").expect("the watcher lives");
    }

    fn ip(arguments: &str) {
        let status = Command::new("ip").args(arguments.split(' ')).status();
        assert!(status.expect("ip runs").success(), "ip {arguments}");
    }
}
