//! Tests of the whole: hostile archives into folders, pulls from a real registry, the protocol against scripted answers.

mod archives;
mod fitting;
mod hostile;
mod protocol;
mod pulls;
mod registry;
mod scripted;
mod store;
mod unpacking;

/// An address where nobody listens, nor will while the socket is there.
fn closed() -> (tokio::net::TcpSocket, std::net::SocketAddr) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// Device nodes, owners and trusted attributes need root; without it a test says that it did not run.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: needs root");
    }
    root
}
