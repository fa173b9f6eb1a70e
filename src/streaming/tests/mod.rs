//! The server on a real socket, with our own clients. Processes are real ones; they are just in no container.

mod client;
mod forward;
mod limits;
mod process;
mod remote;
mod remote_websocket;
mod tls;
mod world;
