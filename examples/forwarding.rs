//! A request that goes through several services: the desk looks who it is for, the warehouse hands it to the packer, and the
//! packer answers who asked, directly. `cargo run --release --example forwarding`.

use std::thread;
use std::time::Duration;

use buslane::{Bus, CallOptions, Result};

/// Passes one request of `from` on to `to`, with a word of its own.
fn passing(bus: &Bus, from: &str, to: &str) -> Result<thread::JoinHandle<Result<()>>> {
    let mut server = bus.service(from)?.server()?;
    let mut next = bus.service(to)?.producer()?;
    let note = format!(" ({from} has seen it)");
    Ok(thread::spawn(move || {
        let request = server.recv()?;
        let message = [&*request, note.as_bytes()].concat();
        request.forward(&mut next, &message)
    }))
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir_in("/dev/shm")?;
    let bus = Bus::at(dir.path().join("bus"))?;
    let mut packer = bus.service("packer")?.server()?;
    let chain = [
        passing(&bus, "warehouse", "packer")?,
        passing(&bus, "desk", "warehouse")?,
    ];
    let packing = thread::spawn(move || -> Result<()> {
        let request = packer.recv()?;
        // How long it is wanted, and by whom, has come along.
        println!("packing for {:?} at most", request.time_left());
        let reply = [b"packed: ", &*request].concat();
        request.reply(&reply)
    });

    let mut client = bus.service("desk")?.client()?;
    // Nobody tells this client if the packer dies: the deadline ends the wait.
    let options = CallOptions::new().timeout(Duration::from_secs(5));
    let reply = client.call_with(&options, b"3 pears")??;
    println!("{}", String::from_utf8_lossy(&reply));
    assert_eq!(
        &*reply,
        b"packed: 3 pears (desk has seen it) (warehouse has seen it)"
    );
    let envelope = reply.envelope().ok_or("a reply has an envelope")?;
    assert_eq!(envelope.trace().collect::<Vec<_>>(), ["desk", "warehouse"]);
    drop(reply);
    for thread in chain.into_iter().chain([packing]) {
        thread.join().expect("it does not panic")?;
    }
    Ok(())
}
