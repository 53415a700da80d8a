//! One publisher, one subscriber, messages of bytes. In two terminals, the receiver first or second:
//!
//! ```text
//! cargo run --release --example one_way -- recv
//! cargo run --release --example one_way -- send
//! ```
//!
//! Without arguments it does both, on a bus of its own, and checks what arrives.

use std::error::Error;
use std::thread;

use buslane::{Bus, ErrorKind, Topic};

type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const MESSAGES: usize = 100_000;

fn send(topic: &Topic) -> Result {
    let mut publisher = topic.publisher()?;
    // Without a subscriber, what is sent is gone.
    publisher.wait_for_subscribers(1, None)?;
    for i in 0..MESSAGES {
        publisher.send(format!("message {i}").as_bytes())?;
    }
    publisher.wait_delivered(None)?;
    Ok(())
}

fn receive(topic: &Topic) -> Result<usize> {
    let mut subscriber = topic.subscriber()?;
    let mut received = 0;
    loop {
        match subscriber.recv() {
            // The frame derefs to the bytes where they lie; dropping it makes room.
            Ok(frame) => assert_eq!(*frame, *format!("message {received}").as_bytes()),
            Err(error) if error.kind() == ErrorKind::Ended => return Ok(received),
            Err(error) => return Err(error.into()),
        }
        received += 1;
    }
}

fn main() -> Result {
    match std::env::args().nth(1).as_deref() {
        Some("send") => send(&Bus::open("examples")?.topic("one-way")?)?,
        Some("recv") => println!("{}", receive(&Bus::open("examples")?.topic("one-way")?)?),
        Some(other) => return Err(format!("what is {other:?}? send, recv, or nothing").into()),
        None => {
            let dir = tempfile::tempdir_in("/dev/shm")?;
            let topic = Bus::at(dir.path().join("bus"))?.topic("one-way")?;
            let sender = topic.clone();
            let sender = thread::spawn(move || send(&sender));
            assert_eq!(receive(&topic)?, MESSAGES);
            sender.join().expect("the sender does not panic")?;
            println!("{MESSAGES} messages, in order");
        }
    }
    Ok(())
}
