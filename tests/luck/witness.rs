//! Who is on the same buses while others have bad luck, and looks whether it is harmed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use buslane::{
    Bus, CallOptions, Client, Consumer, ErrorKind, Producer, Publisher, Reclaimed, StateReader,
    StateWriter, Subscriber,
};

use crate::common::{PATIENCE, check, names};
use crate::operations::{message, small};
use tempfile::TempDir;

pub struct Witness {
    bus: Bus,
    disk: Bus,
    publisher: Publisher,
    subscriber: Subscriber,
    producer: Producer,
    consumer: Consumer,
    client: Client,
    writer: StateWriter,
    reader: StateReader,
    to_log: Publisher,
    from_log: Subscriber,
    /// How many of what may be there when nobody else is.
    allowed: BTreeMap<String, usize>,
    n: u64,
    // Last: it removes all.
    dir: TempDir,
}

impl Witness {
    pub fn new() -> Self {
        Self::within("/dev/shm".as_ref())
    }

    /// The same, with all in a directory of that one.
    pub fn within(dir: &Path) -> Self {
        let dir = tempfile::tempdir_in(dir).unwrap();
        let bus = small().at(dir.path().join("bus")).unwrap();
        let disk = small().durable(true).at(dir.path().join("disk")).unwrap();
        let topic = bus.topic("t").unwrap();
        bus.topic("own").unwrap();
        bus.topic("idle").unwrap();
        let queue = bus.queue("q").unwrap();
        let service = bus.service_builder("s").capacity(4096).open().unwrap();
        let mut server = service.server().unwrap();
        thread::spawn(move || {
            // Until the bus is removed. There may be no room for what a new client needs; and who asked may have gone.
            loop {
                match server.recv() {
                    Ok(request) => {
                        let reply = request.to_vec();
                        let _ = request.reply(&reply);
                    }
                    Err(e) if e.kind() == ErrorKind::NoSpace => {
                        thread::sleep(Duration::from_millis(1));
                    }
                    Err(_) => break,
                }
            }
        });
        let board = bus.state_builder("board").keys(8).open().unwrap();
        let log = disk.topic("log").unwrap();
        let from_log = log.subscription("witness").unwrap();
        let mut witness = Self {
            publisher: topic.publisher().unwrap(),
            subscriber: topic.subscriber().unwrap(),
            producer: queue.producer().unwrap(),
            consumer: queue.consumer_builder().group("witness").open().unwrap(),
            client: service.client_builder().inbox(4096).open().unwrap(),
            writer: board.writer().unwrap(),
            reader: board.reader().unwrap(),
            to_log: log.publisher().unwrap(),
            from_log,
            allowed: BTreeMap::new(),
            n: 1 << 32,
            bus,
            disk,
            dir,
        };
        witness.look();
        witness.look_at_disk();
        witness
    }

    /// Another one in its place.
    pub fn anew(mut self) -> Self {
        let allowed = std::mem::take(&mut self.allowed);
        let within = self.dir().parent().unwrap().to_owned();
        drop(self);
        Self {
            allowed,
            ..Self::within(&within)
        }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Uses everything, whatever others are at. What they have not received yet it may have to wait for, and does not.
    pub fn look(&mut self) {
        self.n += 1;
        let (n, ours) = (self.n, message(self.n));
        if is_sent(self.publisher.try_send(&ours)) {
            loop {
                let frame = self.subscriber.recv_timeout(PATIENCE).unwrap();
                if check(&frame.expect("what was sent comes")) == (1, n) {
                    break;
                }
            }
        }
        if is_sent(self.producer.try_push(&ours)) {
            loop {
                let delivery = self.consumer.recv_timeout(PATIENCE).unwrap();
                let delivery = delivery.expect("what was pushed comes");
                let got = check(&delivery);
                delivery.ack().unwrap();
                if got == (1, n) {
                    break;
                }
            }
        }
        let patient = CallOptions::new().timeout(PATIENCE);
        let reply = self.client.call_with(&patient, &ours).unwrap();
        assert_eq!(*reply.unwrap(), ours[..]);
        self.writer.set(b"witness", &n.to_le_bytes()).unwrap();
        let value = self.reader.get(b"witness").unwrap();
        assert_eq!(value, Some(&n.to_le_bytes()[..]));
    }

    /// The same on the disk.
    fn look_at_disk(&mut self) {
        let (n, ours) = (self.n, message(self.n));
        self.to_log.send_timeout(&ours, PATIENCE).unwrap();
        loop {
            let frame = self.from_log.recv_timeout(PATIENCE).unwrap();
            if check(&frame.expect("what was sent comes")) == (1, n) {
                break;
            }
        }
    }

    /// What others do while one is stopped: they come and go, and put away what the dead have left. It is not dead.
    pub fn visit(&mut self, disk: bool) {
        self.look();
        if disk {
            self.look_at_disk();
        }
        for bus in [&self.bus, &self.disk] {
            assert_eq!(bus.reclaim().unwrap(), Reclaimed::default());
        }
        let topic = self.bus.topic("t").unwrap();
        let (mut subscriber, mut publisher) =
            (topic.subscriber().unwrap(), topic.publisher().unwrap());
        if is_sent(publisher.try_send(&message(1))) {
            assert!(subscriber.recv_timeout(PATIENCE).unwrap().is_some());
        }
    }

    /// Takes what is in the queue for the group that all are in.
    fn drain(&self) {
        let mut rest = self.bus.queue("q").unwrap().consumer().unwrap();
        while let Some(delivery) = rest.try_recv().unwrap() {
            check(&delivery);
            delivery.ack().unwrap();
        }
    }

    /// Looks after somebody has ended: as [`look`](Self::look), and whether that one has left anything. `Err` says what.
    pub fn look_after(&mut self) -> Result<(), String> {
        self.tidy()?;
        let started = Instant::now();
        loop {
            let left = self.left();
            if left.is_empty() {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                return Err(format!("left behind: {left:?}"));
            }
            // The bell's thread may be about to put it away; and lanes go when all have read them.
            thread::sleep(Duration::from_millis(1));
            self.drain();
            self.look();
            self.bus.reclaim().map_err(|e| e.to_string())?;
            self.disk.reclaim().map_err(|e| e.to_string())?;
        }
    }

    /// Does what whoever comes next does, and takes away what is called `new`.
    pub fn tidy(&mut self) -> Result<(), String> {
        self.drain();
        self.look();
        self.look_at_disk();
        let new = self.dir().join("new");
        if fs::exists(&new).unwrap() {
            // Half made, or half removed: it is one for who comes next.
            let bus = small().at(&new).map_err(|e| e.to_string())?;
            bus.topic("next").map_err(|e| e.to_string())?;
            bus.remove(true).map_err(|e| e.to_string())?;
        }
        for bus in [&self.bus, &self.disk] {
            // Who comes next puts away what is left.
            let bus = Bus::at(bus.path()).map_err(|e| e.to_string())?;
            for half in names(&bus.path().join("topics")) {
                if half.starts_with("new") && !half.contains('%') {
                    // A queue's first group may be there without it, for who comes next to make it.
                    bus.queue(&half).map(drop).or_else(|e| match e.kind() {
                        ErrorKind::Mismatch => Ok(()),
                        _ => Err(e.to_string()),
                    })?;
                }
            }
            for name in bus.topics().map_err(|e| e.to_string())? {
                if name.starts_with("new") {
                    bus.remove_topic(&name, true).map_err(|e| e.to_string())?;
                }
            }
        }
        let _ = self.bus.queue("q").unwrap().remove_group("new", true);
        let _ = self.disk.topic("log").unwrap().remove_subscription("new");
        Ok(())
    }

    /// From now on what is there is allowed to be.
    pub fn allow(&mut self) {
        for (name, count) in files(self.dir()) {
            let allowed = self.allowed.entry(name).or_default();
            *allowed = count.max(*allowed);
        }
    }

    /// What is there, and was not before, and how often.
    fn left(&self) -> Vec<(String, usize)> {
        let mut files = files(self.dir());
        files.retain(|name, count| *count > self.allowed.get(name).copied().unwrap_or(0));
        files.into_iter().collect()
    }
}

fn is_sent(sent: buslane::Result<()>) -> bool {
    match sent {
        Ok(()) => true,
        Err(e) if e.kind() == ErrorKind::Full => false,
        Err(e) => panic!("{e}"),
    }
}

/// The files under a directory, without what differs between two of a kind, and how many of each.
fn files(dir: &Path) -> BTreeMap<String, usize> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![(PathBuf::from(dir), String::new())];
    while let Some((dir, name)) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let inner = entry.file_name().into_string().unwrap();
            let kind = match inner.split_once('.') {
                _ if name.ends_with("/members") => "",
                Some((kind, _)) if kind != "group" && kind != "subscription" => kind,
                _ => &inner,
            };
            // As many as are not passed yet. And the lanes in files, which stay, for the next that write there.
            if kind == "data" || (kind == "lane" && name.starts_with("/disk")) {
                continue;
            }
            let name = format!("{name}/{kind}");
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                dirs.push((entry.path(), name.clone()));
            }
            *files.entry(name).or_default() += 1;
        }
    }
    files
}
