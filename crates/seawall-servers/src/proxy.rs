//! A TCP proxy that loses what it is told to lose.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A way to a server that can be cut.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    to: SocketAddr,
    /// Connections are refused as soon as they are made.
    cut: AtomicBool,
    /// What the server says goes nowhere.
    deaf: AtomicBool,
    ended: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// A proxy in front of `to`, on a port of its own.
    pub fn to(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let addr = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            to,
            cut: AtomicBool::new(false),
            deaf: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let of_thread = shared.clone();
        std::thread::spawn(move || of_thread.serve(&listener));
        Self { addr, shared }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Breaks every connection, and every new one at once.
    pub fn cut(&self) {
        self.shared.cut.store(true, Ordering::SeqCst);
        self.shared.break_all();
    }

    /// From now on the server hears everything, and nothing of what it says arrives.
    pub fn drop_replies(&self) {
        self.shared.deaf.store(true, Ordering::SeqCst);
    }

    /// Lets new connections through. Those that have lost something are broken.
    pub fn heal(&self) {
        if self.shared.deaf.load(Ordering::SeqCst) {
            self.shared.break_all();
        }
        self.shared.cut.store(false, Ordering::SeqCst);
        self.shared.deaf.store(false, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.cut();
        // So that the listener looks.
        let _ = TcpStream::connect(self.addr);
    }
}

impl Shared {
    fn serve(self: Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming().map_while(Result::ok) {
            if self.ended.load(Ordering::SeqCst) {
                return;
            }
            // A server that is down refuses, which is what the client is to see.
            if let Err(error) = self.clone().join(client)
                && error.kind() != std::io::ErrorKind::ConnectionRefused
            {
                eprintln!("proxy to {}: {error}", self.to);
            }
        }
    }

    fn join(self: Arc<Self>, client: TcpStream) -> std::io::Result<()> {
        if self.cut.load(Ordering::SeqCst) {
            return Ok(());
        }
        let server = TcpStream::connect(self.to)?;
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
            self.open().push(stream.try_clone()?);
        }
        let (from_client, to_server) = (client.try_clone()?, server.try_clone()?);
        let shared = self.clone();
        std::thread::spawn(move || shared.copy(from_client, to_server, false));
        std::thread::spawn(move || self.copy(server, client, true));
        Ok(())
    }

    fn copy(&self, mut from: TcpStream, mut to: TcpStream, replies: bool) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let lost = replies && self.deaf.load(Ordering::SeqCst);
            if !lost && to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    fn break_all(&self) {
        for stream in self.open().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn open(&self) -> MutexGuard<'_, Vec<TcpStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
