//! A proxy that opens tunnels to this host's loopback, and keeps what it could read.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::outside::listen;

pub(crate) struct Proxy {
    pub(crate) port: u16,
    /// What it was asked for, and all that went through it.
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Proxy {
    pub(crate) fn start() -> Self {
        let seen = Arc::default();
        let shared = Arc::clone(&seen);
        let port = listen(move |stream| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || serve(stream, &shared));
        });
        Self { port, seen }
    }

    pub(crate) fn seen(&self) -> Vec<u8> {
        self.seen.lock().expect("no panic").clone()
    }
}

fn serve(mut near: TcpStream, seen: &Arc<Mutex<Vec<u8>>>) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        near.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    seen.lock().expect("no panic").extend_from_slice(&head);
    let text = String::from_utf8_lossy(&head);
    let end = text.split(' ').nth(1).and_then(|end| end.rsplit_once(':'));
    let port = end.and_then(|(_, port)| port.parse().ok());
    let far = TcpStream::connect((Ipv4Addr::LOCALHOST, port.expect("a port")))?;
    near.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (from_far, to_near) = (far.try_clone()?, near.try_clone()?);
    let shared = Arc::clone(seen);
    thread::spawn(move || copy(from_far, to_near, &shared));
    copy(near, far, seen)
}

fn copy(mut from: TcpStream, mut to: TcpStream, seen: &Mutex<Vec<u8>>) -> io::Result<()> {
    let mut piece = [0; 4096];
    loop {
        let length = from.read(&mut piece)?;
        if length == 0 {
            return to.shutdown(Shutdown::Write);
        }
        seen.lock()
            .expect("no panic")
            .extend_from_slice(&piece[..length]);
        to.write_all(&piece[..length])?;
    }
}
