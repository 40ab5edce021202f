//! The internet of the story: all connections to relays and gateways of the mixnet lead through ports
//! of this program, so that it can cut them as a cable is cut.
//!
//! While it is cut, nothing is passed on and nothing is answered: connections stand and are silent,
//! new ones hang. Nobody is told, as with a real cable. What was under way goes on when it is back.

use std::{io, net::Ipv4Addr, sync::Mutex};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// What connects everybody, or does not. Dropping it ends all connections.
pub(crate) struct Internet {
    is_up: watch::Sender<bool>,
    listeners: Mutex<JoinSet<()>>,
}

impl Internet {
    pub(crate) fn new() -> Self {
        Self { is_up: watch::Sender::new(true), listeners: Mutex::default() }
    }

    /// A port of this machine, from which one gets to another port of it over this internet.
    pub(crate) async fn way_to(&self, port: u16) -> io::Result<u16> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let way = listener.local_addr()?.port();
        let mut listeners = self.listeners.lock().expect("nobody panics with it");
        listeners.spawn(listen(listener, port, self.is_up.subscribe()));
        Ok(way)
    }

    pub(crate) fn cut(&self) {
        self.is_up.send_replace(false);
    }

    pub(crate) fn restore(&self) {
        self.is_up.send_replace(true);
    }
}

async fn listen(listener: TcpListener, port: u16, mut is_up: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        passes(&mut is_up).await;
        tokio::select! {
            accepted = listener.accept() => {
                // Without a connection to pass on there is nothing to do; the other side dials again.
                let Ok((near, _)) = accepted else { continue };
                connections.spawn(connect(near, port, is_up.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(near: TcpStream, port: u16, is_up: watch::Receiver<bool>) {
    let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { return };
    let ((near_out, near_in), (far_out, far_in)) = (near.into_split(), far.into_split());
    // An end of one direction is an end of that direction alone, as in any network.
    let outward = pass_on(near_out, far_in, is_up.clone());
    let _ = tokio::join!(outward, pass_on(far_out, near_in, is_up));
}

async fn pass_on(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut is_up: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut bytes).await?;
        passes(&mut is_up).await;
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&bytes[..count]).await?;
    }
}

/// Waits until something gets through.
async fn passes(is_up: &mut watch::Receiver<bool>) {
    if is_up.wait_for(|up| *up).await.is_err() {
        // The internet is gone for good, and this task with it.
        std::future::pending::<()>().await;
    }
}
