//! Bytes from one process to another, as through a pipe, with `Read` and `Write`. In two terminals, in any order:
//! `cargo run --release --example pipe -- recv > copy`, and `-- send < file`.
//! Without arguments it sends 64 MiB to itself, and checks them.

use std::io::{self, BufRead, Write};
use std::thread;

use buslane::{Bus, Topic};

const LEN: u64 = 64 << 20;

/// Copies `from` into the topic, and waits until it has arrived.
fn send(topic: &Topic, mut from: impl io::Read) -> io::Result<u64> {
    let mut publisher = topic.publisher()?;
    publisher.wait_for_subscribers(1, None)?;
    let mut writer = publisher.into_writer();
    let sent = io::copy(&mut from, &mut writer)?;
    writer.into_inner().wait_delivered(None)?;
    Ok(sent)
}

/// Copies the topic into `to`, until the last publisher has left. `BufRead` shows the bytes where they lie.
fn receive(topic: &Topic, mut to: impl Write) -> io::Result<()> {
    let mut reader = topic.subscriber()?.into_reader();
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return to.flush();
        }
        to.write_all(bytes)?;
        let taken = bytes.len();
        reader.consume(taken);
    }
}

fn main() -> io::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("send") => {
            let sent = send(&Bus::open("examples")?.topic("pipe")?, io::stdin().lock())?;
            eprintln!("{sent} bytes sent");
        }
        Some("recv") => receive(&Bus::open("examples")?.topic("pipe")?, io::stdout().lock())?,
        _ => {
            let dir = tempfile::tempdir_in("/dev/shm")?;
            let topic = Bus::at(dir.path().join("bus"))?.topic("pipe")?;
            let sender = topic.clone();
            let source = || io::Read::take(io::repeat(b'x'), LEN);
            let sender = thread::spawn(move || send(&sender, source()));
            let mut copy = Vec::new();
            receive(&topic, &mut copy)?;
            assert_eq!(sender.join().expect("it does not panic")?, LEN);
            assert!(copy.len() as u64 == LEN && copy.iter().all(|&byte| byte == b'x'));
            println!("{LEN} bytes, all of them");
        }
    }
    Ok(())
}
