//! A service under tokio: it sums what each sensor says, beside a timer and whatever else its runtime does. In two
//! terminals, in any order: `cargo run --release --example async_service -- serve`, and `-- send` (once or more).
//! Without arguments it does both, and checks the sums.

use std::collections::BTreeMap;
use std::time::Duration;

use buslane::{Bus, Result, Selection};
use futures_util::{SinkExt, StreamExt};
use tokio::time::{interval, sleep};

/// Sends the readings of one sensor: 0 to 499.
async fn send(bus: &Bus, name: &str) -> Result<()> {
    let topic = bus.topic(&format!("sensors/{name}"))?;
    let mut sink = topic.publisher()?.into_sink();
    for reading in 0..500_u64 {
        sink.send(reading.to_le_bytes()).await?;
        sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// The sum of each sensor, when the last has left. Those that come later are selected by themselves.
async fn serve(sensors: Selection) -> Result<BTreeMap<String, u64>> {
    let mut sums = BTreeMap::new();
    let mut readings = sensors.into_stream();
    let mut tick = interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            reading = readings.next() => {
                let Some((topic, bytes)) = reading.transpose()? else {
                    return Ok(sums);
                };
                let reading = bytes.try_into().map_or(0, u64::from_le_bytes);
                *sums.entry(topic.to_string()).or_default() += reading;
            }
            // The other future is dropped half way, and no reading is lost.
            _ = tick.tick() => println!("{sums:?}"),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let (open, own) = (|| Bus::open("examples"), std::process::id().to_string());
    match std::env::args().nth(1).as_deref() {
        Some("serve") => println!("{:?}", serve(open()?.select("sensors/*")?).await?),
        Some("send") => send(&open()?, &own).await?,
        _ => {
            let dir = tempfile::tempdir_in("/dev/shm")?;
            let bus = Bus::at(dir.path().join("bus"))?;
            let service = serve(bus.select("sensors/*")?);
            let (sums, ..) = tokio::try_join!(service, send(&bus, "oven"), send(&bus, "door"))?;
            assert!(sums.values().eq(&[124_750; 2]));
        }
    }
    Ok(())
}
