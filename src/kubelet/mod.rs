//! The node driver: pod manifests in, CRI calls over a socket out. Knows nothing of the runtime behind the socket.
