//! A server under tokio that has a thousand requests in hand at a time, each in a task of its own, and a client with a
//! thousand tasks that wait. In two terminals, in any order: `cargo run --release --example async_server -- serve`, and
//! `-- ask`. Without arguments it does both.

use std::sync::Arc;
use std::time::{Duration, Instant};

use buslane::{Bus, CallOptions, Result, Server, Service};
use tokio::task::JoinSet;
use tokio::time::sleep;

const REQUESTS: u64 = 1000;

fn service(bus: &Bus) -> Result<Service> {
    bus.service("examples/slow")
}

/// Each request waits for something, as for a disk, while the others come.
async fn serve(mut server: Server) -> Result<()> {
    loop {
        let request = server.recv_async().await?;
        tokio::spawn(async move {
            sleep(Duration::from_millis(50)).await;
            let reply = request.to_vec();
            // Who asked may have gone.
            if let Err(e) = request.reply(&reply) {
                eprintln!("{e}");
            }
        });
    }
}

async fn ask(service: Service) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let options = CallOptions::new().wait_for_server();
    let client = Arc::new(service.client_builder().options(options).open()?);
    let started = Instant::now();
    let mut asking = JoinSet::new();
    for n in 0..REQUESTS {
        let client = Arc::clone(&client);
        asking.spawn(async move {
            let reply = client.start(&n.to_le_bytes())?.await?;
            assert_eq!(reply.expect("it refuses nothing"), n.to_le_bytes());
            Ok::<(), buslane::Error>(())
        });
    }
    while let Some(asked) = asking.join_next().await {
        asked??;
    }
    println!(
        "{REQUESTS} requests, each of 50 ms, in {:?}",
        started.elapsed()
    );
    Ok(())
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    match std::env::args().nth(1).as_deref() {
        Some("serve") => serve(service(&Bus::open("examples")?)?.server()?).await?,
        Some("ask") => ask(service(&Bus::open("examples")?)?).await?,
        _ => {
            let dir = tempfile::tempdir_in("/dev/shm")?;
            let service = service(&Bus::at(dir.path().join("bus"))?)?;
            let serving = tokio::spawn(serve(service.server()?));
            ask(service).await?;
            serving.abort();
        }
    }
    Ok(())
}
