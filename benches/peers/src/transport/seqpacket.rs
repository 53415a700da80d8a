//! A Unix socket that keeps messages apart.

use std::os::fd::{AsRawFd, OwnedFd};

use buslane_cli::bench::Transport;
use buslane_cli::bench::link::{Link, sum};
use buslane_cli::bench::setup::{Setup, connect};
use buslane_cli::failure::Failure;
use nix::sys::socket::sockopt::SndBuf;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept, bind, listen, recv,
    send, setsockopt, socket,
};

/// One, between two processes.
pub const SEQPACKET: Transport = Transport {
    name: "seqpacket",
    is_floor: false,
    offer: |setup| {
        let listener = make()?;
        let bound = bind(listener.as_raw_fd(), &address(setup)?);
        bound.map_err(|e| connect(e.into()))?;
        listen(&listener, Backlog::new(1).map_err(|e| connect(e.into()))?)
            .map_err(|e| connect(e.into()))?;
        Ok(Box::new(move |_| {
            let fd = accept(listener.as_raw_fd()).map_err(|e| connect(e.into()))?;
            // SAFETY: just accepted, and nobody else's.
            let fd = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) };
            Ok(Box::new(Packets::new(fd)?))
        }))
    },
    join: |setup, _| {
        let fd = make()?;
        nix::sys::socket::connect(fd.as_raw_fd(), &address(setup)?)
            .map_err(|e| connect(e.into()))?;
        Ok(Box::new(Packets::new(fd)?))
    },
};

fn make() -> Result<OwnedFd, Failure> {
    let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
    socket(family, kind, SockFlag::SOCK_CLOEXEC, None).map_err(|e| connect(e.into()))
}

fn address(setup: &Setup) -> Result<UnixAddr, Failure> {
    UnixAddr::new(&setup.dir.join("seqpacket")).map_err(|e| connect(e.into()))
}

struct Packets {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Packets {
    fn new(fd: OwnedFd) -> Result<Self, Failure> {
        // Several of the largest; a system that allows less is measured as it is.
        let _ = setsockopt(&fd, SndBuf, &(1 << 20));
        let buffer = vec![0; 1 << 20];
        Ok(Self { fd, buffer })
    }
}

impl Link for Packets {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<(), Failure> {
        send(self.fd.as_raw_fd(), message, MsgFlags::empty()).map_err(|e| connect(e.into()))?;
        Ok(())
    }

    #[inline]
    fn recv(&mut self, _size: usize) -> Result<u64, Failure> {
        let len = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty())
            .map_err(|e| connect(e.into()))?;
        Ok(sum(&self.buffer[..len]))
    }
}
