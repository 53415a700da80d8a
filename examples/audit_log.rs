//! An audit log that two read at their own pace, and by name: an archive that comes once in a while, and an alarm that is mostly
//! there. What both have read goes from the disk; if one stays away for good, it is removed by its name.
//! `cargo run --release --example audit_log`.

use buslane::{Bus, Envelope, ErrorKind, Kind, Subscriber, SyncPolicy};
use std::error::Error;
use std::time::Duration;

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// All that waits for a reader: how many entries, and how many of them are alarming.
fn read(log: &mut Subscriber) -> Result<(usize, usize)> {
    let (mut entries, mut alarming) = (0, 0);
    loop {
        let entry = match log.try_recv() {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok((entries, alarming)),
            // Nobody writes now.
            Err(e) if e.kind() == ErrorKind::Ended => return Ok((entries, alarming)),
            Err(e) => return Err(e.into()),
        };
        entries += 1;
        alarming += usize::from(entry.ends_with(b"failed"));
        assert!(
            entry
                .envelope()
                .is_some_and(|envelope| envelope.sent().is_some())
        );
    }
}

fn write(bus: &Bus, entries: usize) -> Result {
    // At most a tenth of a second of it is lost if the machine loses power.
    let every = SyncPolicy::Every(Duration::from_millis(100));
    let mut log = bus.topic_builder("audit").sync(every).open()?.publisher()?;
    for entry in 0..entries {
        let outcome = if entry % 100 == 0 { "failed" } else { "done" };
        let text = format!("login {entry} {outcome}");
        log.send_with(&Envelope::new(Kind::Event).sent_now(), text.as_bytes())?;
    }
    Ok(())
}

fn main() -> Result {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("bus");
    let bus = Bus::builder().durable(true).capacity(64 << 10).at(&path)?;
    let every = SyncPolicy::Every(Duration::from_millis(100));
    let audit = bus.topic_builder("audit").sync(every).open()?;
    let files = || -> Result<usize> {
        let report = bus.inspect("audit")?;
        let kept = report.lanes.iter().filter_map(|lane| lane.kept.as_ref());
        Ok(kept.map(|kept| kept.files.len()).sum())
    };

    // Both are known from the beginning; the archive leaves at once.
    let mut alarm = audit.subscription("alarm")?;
    drop(audit.subscription("archive")?);
    write(&bus, 10_000)?;
    assert_eq!(read(&mut alarm)?, (10_000, 100));
    let waiting = files()?;
    println!("the alarm has read all, and {waiting} files wait for the archive");

    // It comes back, maybe after a restart of everything, and has missed nothing.
    let mut archive = audit.subscription("archive")?;
    assert_eq!(read(&mut archive)?, (10_000, 100));
    drop(archive);
    println!("the archive has read all, and {} files are left", files()?);
    assert!(files()? < waiting);

    // It will not come again: then nothing waits for it.
    write(&bus, 10_000)?;
    read(&mut alarm)?;
    assert!(files()? > 5);
    audit.remove_subscription("archive")?;
    assert!(files()? <= 5);
    Ok(())
}
