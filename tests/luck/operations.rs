//! Each thing that a process does with a bus, once: what bad luck is tried on.
//!
//! The scene has three buses: `bus`, which a witness is on, too; `disk`, a durable one, likewise; and those that an operation
//! has for itself. What an operation makes for good is called `new`, and is taken away after it.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use buslane::{
    Bus, BusBuilder, CallOptions, Consumer, Error, ErrorKind, Result, Source, Start, Subscriber,
    SyncPolicy, WaitSet,
};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{ForkResult, fork};

use crate::common::{check, fill, length, names, set_boot};

/// What an operation is tried on.
pub struct Scene<'a> {
    pub dir: &'a Path,
    /// How long to wait for what others do: against hangs, unless they may not be able to.
    pub patience: Duration,
    /// To be called when all is prepared: from then on there may be bad luck.
    pub begin: &'a dyn Fn(),
}

impl Scene<'_> {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn bus(&self) -> Bus {
        small().at(self.path("bus")).unwrap()
    }

    fn disk(&self) -> Bus {
        small().at(self.path("disk")).unwrap()
    }
}

pub struct Operation {
    pub name: &'static str,
    /// What it gives is `Err` only if something was refused; what is wrong is a panic.
    pub run: fn(&Scene<'_>) -> Result<()>,
}

/// How buses are opened here: with rings and files of one page, so that little is needed to fill them.
pub fn small() -> BusBuilder {
    Bus::builder().capacity(4096)
}

pub const OPERATIONS: &[Operation] = &[
    operation("make a bus", make_a_bus),
    operation("make a bus for all", make_a_bus_for_all),
    operation("make a durable bus", make_a_durable_bus),
    operation("join a bus", join_a_bus),
    operation("remove a bus", remove_a_bus),
    operation("make a topic", make_a_topic),
    operation("remove a topic", remove_a_topic),
    operation("publish", publish),
    operation("publish by a name", publish_by_a_name),
    operation("subscribe", subscribe),
    operation("receive, asleep", receive_asleep),
    operation("wait for room", wait_for_room),
    operation("wait for many", wait_for_many),
    operation("receive in a task", receive_in_a_task),
    operation("select topics", select_topics),
    operation("watch who is there", watch_who_is_there),
    operation("look from outside", look_from_outside),
    operation("observe", observe),
    operation("queue", queue),
    operation("put off, and give up", put_off_and_give_up),
    operation("make a group", make_a_group),
    operation("call", call),
    operation("serve", serve),
    operation("set and get", set_and_get),
    operation("publish to files", publish_to_files),
    operation("sync each message", sync_each_message),
    operation("subscribe by a name", subscribe_by_a_name),
    operation("look back in files", look_back_in_files),
    operation("skip what is damaged", skip_what_is_damaged),
    operation("queue in files", queue_in_files),
    operation("skip in a queue", skip_in_a_queue),
    operation("recover", recover),
    operation("put away the dead", put_away_the_dead),
];

const fn operation(name: &'static str, run: fn(&Scene<'_>) -> Result<()>) -> Operation {
    Operation { name, run }
}

/// Only against hangs, of what waits for others.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How long to wait for what another thread may have been refused.
const MOMENT: Duration = Duration::from_millis(20);

pub fn message(n: u64) -> Vec<u8> {
    let mut message = vec![0; length(n)];
    fill(&mut message, 1, n);
    message
}

// ------------------------------------------------------------------------------------------------- buses and topics

fn make_a_bus(scene: &Scene<'_>) -> Result<()> {
    (scene.begin)();
    small().at(scene.path("new")).map(drop)
}

/// That others may look at, while the umask is one that lets in nobody.
fn make_a_bus_for_all(scene: &Scene<'_>) -> Result<()> {
    umask(Mode::from_bits_truncate(0o077));
    (scene.begin)();
    let path = scene.path("new");
    let bus = small().mode(0o755).at(&path)?;
    drop(bus.topic("t")?.publisher()?);
    for (name, rights) in [("", 0o755), ("bus", 0o644), ("topics/t", 0o755)] {
        // That may be refused, too.
        if let Ok(is) = fs::metadata(path.join(name)) {
            assert_eq!(is.permissions().mode() & 0o777, rights, "{name}");
        }
    }
    Ok(())
}

fn make_a_durable_bus(scene: &Scene<'_>) -> Result<()> {
    (scene.begin)();
    small().durable(true).at(scene.path("new")).map(drop)
}

fn join_a_bus(scene: &Scene<'_>) -> Result<()> {
    (scene.begin)();
    Bus::at(scene.path("bus")).map(drop)
}

fn remove_a_bus(scene: &Scene<'_>) -> Result<()> {
    let bus = small().at(scene.path("new")).unwrap();
    drop(bus.topic("t").unwrap().publisher().unwrap());
    (scene.begin)();
    bus.remove(false)
}

fn make_a_topic(scene: &Scene<'_>) -> Result<()> {
    let bus = scene.bus();
    (scene.begin)();
    bus.topic("new").map(drop)
}

fn remove_a_topic(scene: &Scene<'_>) -> Result<()> {
    let bus = scene.bus();
    drop(bus.queue("new").unwrap().producer().unwrap());
    (scene.begin)();
    bus.remove_topic("new", false)
}

// -------------------------------------------------------------------------------------------- publish and subscribe

fn publish(scene: &Scene<'_>) -> Result<()> {
    let topic = scene.bus().topic("t").unwrap();
    (scene.begin)();
    let mut publisher = topic.publisher()?;
    for n in 0..3 {
        publisher.send(&message(n))?;
    }
    Ok(())
}

fn publish_by_a_name(scene: &Scene<'_>) -> Result<()> {
    let topic = scene.bus().topic("t").unwrap();
    (scene.begin)();
    topic.named_publisher("name")?.send(&message(0))
}

fn subscribe(scene: &Scene<'_>) -> Result<()> {
    let topic = scene.bus().topic("t").unwrap();
    (scene.begin)();
    let mut subscriber = topic.subscriber_from(Start::Oldest)?;
    while let Some(frame) = subscriber.try_recv()? {
        check(&frame);
    }
    Ok(())
}

/// A thread that does something soon after it is told to. It is there before bad luck may begin.
struct Other<T> {
    start: Option<Sender<()>>,
    thread: Option<JoinHandle<Result<Option<T>>>>,
}

fn other<T: Send + 'static>(what: impl FnOnce() -> Result<T> + Send + 'static) -> Other<T> {
    let (start, started) = channel();
    let thread = thread::spawn(move || {
        if started.recv().is_err() {
            return Ok(None);
        }
        // So that most often who waits for it is asleep by then. Nothing depends on it.
        thread::sleep(Duration::from_millis(2));
        what().map(Some)
    });
    Other {
        start: Some(start),
        thread: Some(thread),
    }
}

impl<T> Other<T> {
    fn start(&mut self) {
        self.start.take().expect("once").send(()).expect("it waits");
    }

    fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn join(&mut self) -> Result<Option<T>> {
        self.start = None;
        match self.thread.take() {
            Some(thread) => thread.join().expect("it does not panic"),
            None => Ok(None),
        }
    }
}

impl<T> Drop for Other<T> {
    fn drop(&mut self) {
        let _ = self.join();
    }
}

/// What `other` sends, asked for with `receive`, unless it is refused.
fn await_other<T>(
    mut other: Other<()>,
    mut receive: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    other.start();
    loop {
        let was_over = other.is_over();
        if let Some(got) = receive()? {
            other.join()?;
            return Ok(got);
        }
        if was_over {
            other.join()?.expect("what was sent is received");
        }
    }
}

/// The next message, however long it takes for `other` to send it.
fn received(subscriber: &mut Subscriber, other: Other<()>) -> Result<Vec<u8>> {
    await_other(other, || {
        let frame = subscriber.recv_timeout(MOMENT);
        Ok(frame?.map(|frame| frame.to_vec()))
    })
}

fn receive_asleep(scene: &Scene<'_>) -> Result<()> {
    let topic = scene.bus().topic("own").unwrap();
    let (mut subscriber, mut publisher) = (topic.subscriber().unwrap(), topic.publisher().unwrap());
    let sender = other(move || publisher.send(&message(0)));
    (scene.begin)();
    assert_eq!(received(&mut subscriber, sender)?, message(0));
    Ok(())
}

fn wait_for_room(scene: &Scene<'_>) -> Result<()> {
    let topic = scene.bus().topic("own").unwrap();
    let (mut subscriber, mut publisher) = (topic.subscriber().unwrap(), topic.publisher().unwrap());
    let mut receiver = other(move || {
        for n in 0..20 {
            match subscriber.recv() {
                Ok(frame) => assert_eq!(check(&frame), (1, n)),
                // The publisher was refused something.
                Err(e) if e.kind() == ErrorKind::Ended => break,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    });
    (scene.begin)();
    receiver.start();
    let sent = (0..20).try_for_each(|n| publisher.send_timeout(&message(n), PATIENCE));
    drop(publisher);
    receiver.join().and(sent)
}

fn wait_for_many(scene: &Scene<'_>) -> Result<()> {
    let bus = scene.bus();
    let (own, idle) = (bus.topic("own").unwrap(), bus.topic("idle").unwrap());
    let (mut subscriber, mut publisher) = (own.subscriber().unwrap(), own.publisher().unwrap());
    let mut idle = idle.subscriber().unwrap();
    let sender = other(move || publisher.send(&message(0)));
    (scene.begin)();
    let mut set = WaitSet::new()?;
    let got = await_other(sender, || {
        let mut sources: [&mut dyn Source; 2] = [&mut idle, &mut subscriber];
        if set.wait(&mut sources, Some(MOMENT))? != Some(1) {
            return Ok(None);
        }
        Ok(subscriber.try_recv()?.map(|frame| frame.to_vec()))
    });
    assert_eq!(got?, message(0));
    Ok(())
}

struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn receive_in_a_task(scene: &Scene<'_>) -> Result<()> {
    let topic = scene.bus().topic("own").unwrap();
    let (mut subscriber, mut publisher) = (topic.subscriber().unwrap(), topic.publisher().unwrap());
    let sender = other(move || publisher.send(&message(0)));
    (scene.begin)();
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let got = await_other(sender, || {
        let mut receiving = std::pin::pin!(subscriber.recv_async());
        // It is polled again when its time is up, too: the other may have been refused something.
        for _ in 0..2 {
            if let Poll::Ready(got) = receiving.as_mut().poll(&mut context) {
                return got.map(|frame| Some(frame.to_vec()));
            }
            thread::park_timeout(MOMENT);
        }
        Ok(None)
    });
    assert_eq!(got?, message(0));
    Ok(())
}

fn select_topics(scene: &Scene<'_>) -> Result<()> {
    let bus = scene.bus();
    (scene.begin)();
    let mut selection = bus.select("new/*")?;
    let topic = bus.topic("new/one")?;
    let mut publisher = topic.publisher()?;
    publisher.send(&message(0))?;
    let got = selection
        .recv_timeout(PATIENCE)?
        .expect("what was sent is received");
    assert_eq!(*got, message(0)[..]);
    Ok(())
}

fn watch_who_is_there(scene: &Scene<'_>) -> Result<()> {
    let topic = scene.bus().topic("own").unwrap();
    (scene.begin)();
    let mut presence = topic.presence()?;
    assert_eq!(presence.publishers()?, 0);
    let (mut publisher, mut subscriber) = (topic.publisher()?, topic.subscriber()?);
    presence.wait_for_publishers(1, Some(PATIENCE))?;
    publisher.wait_for_subscribers(1, Some(PATIENCE))?;
    subscriber.wait_for_publishers(1, Some(PATIENCE))?;
    publisher.send(&message(0))?;
    assert!(subscriber.try_recv()?.is_some());
    assert!(subscriber.try_recv()?.is_none());
    publisher.wait_delivered(Some(PATIENCE))
}

/// As another user does.
fn observe(scene: &Scene<'_>) -> Result<()> {
    let topic = scene.bus().topic("own").unwrap();
    let mut publisher = topic.publisher().unwrap();
    publisher.send(&message(0)).unwrap();
    (scene.begin)();
    let topic = Bus::observe(scene.path("bus"))?.topic("own")?;
    let mut subscriber = topic.subscriber_from(Start::Oldest)?;
    let mut presence = topic.presence()?;
    assert_eq!(presence.publishers()?, 1);
    publisher.send(&message(1)).unwrap();
    for n in 0..2 {
        let frame = subscriber.recv_timeout(PATIENCE)?;
        assert_eq!(check(&frame.expect("what was sent is received")), (1, n));
    }
    Ok(())
}

fn look_from_outside(scene: &Scene<'_>) -> Result<()> {
    let (bus, disk) = (scene.bus(), scene.disk());
    (scene.begin)();
    assert!(bus.members()?.len() > 1);
    for name in bus.topics()? {
        bus.inspect(&name)?;
    }
    let damage = disk.verify("log")?.damage;
    assert!(damage.is_empty(), "{damage:?}");
    disk.inspect("log").map(drop)
}

// --------------------------------------------------------------------------------------------------- other patterns

fn queue(scene: &Scene<'_>) -> Result<()> {
    let queue = scene.bus().queue("q").unwrap();
    (scene.begin)();
    let (mut producer, mut consumer) = (queue.producer()?, queue.consumer()?);
    producer.push(&message(0))?;
    loop {
        let delivery = consumer.recv_timeout(PATIENCE)?.expect("it is there");
        // The witness's are there, too.
        let got = check(&delivery);
        delivery.ack()?;
        if got == (1, 0) {
            return Ok(());
        }
    }
}

fn put_off_and_give_up(scene: &Scene<'_>) -> Result<()> {
    let queue = scene.bus().queue("new").unwrap();
    let (mut producer, mut consumer) = (queue.producer().unwrap(), queue.consumer().unwrap());
    (scene.begin)();
    producer.push(&message(0))?;
    let delivery = consumer.recv_timeout(PATIENCE)?.expect("it is there");
    delivery.retry(Duration::ZERO)?;
    let again = consumer.recv_timeout(PATIENCE)?.expect("it comes again");
    assert_eq!(*again, message(0)[..]);
    again.reject("bad luck")
}

fn make_a_group(scene: &Scene<'_>) -> Result<()> {
    let queue = scene.bus().queue("q").unwrap();
    (scene.begin)();
    queue.consumer_builder().group("new").open().map(drop)
}

fn call(scene: &Scene<'_>) -> Result<()> {
    let service = scene.bus().service("s").unwrap();
    (scene.begin)();
    let mut client = service.client_builder().inbox(4096).open()?;
    let patient = CallOptions::new().timeout(scene.patience);
    let reply = client.call_with(&patient, &message(0))?;
    assert_eq!(*reply.expect("it is not refused"), message(0)[..]);
    Ok(())
}

fn serve(scene: &Scene<'_>) -> Result<()> {
    let service = scene.bus().service("new").unwrap();
    let client = service.client_builder().inbox(4096).open().unwrap();
    let patient = CallOptions::new().wait_for_server();
    let mut pending = client.start_with(&patient, &message(0)).unwrap();
    (scene.begin)();
    let mut server = service.server()?;
    let request = server.recv_timeout(PATIENCE)?.expect("it was asked");
    request.reply(&message(1))?;
    let reply = pending.wait_timeout(PATIENCE)?.expect("it was answered");
    assert_eq!(reply.expect("it is not refused"), message(1));
    Ok(())
}

fn set_and_get(scene: &Scene<'_>) -> Result<()> {
    let board = scene.bus().state("board").unwrap();
    (scene.begin)();
    let (mut writer, mut reader) = (board.writer()?, board.reader()?);
    let mut watch = reader.watch(Some(b"key"))?;
    writer.set(b"key", b"value")?;
    assert_eq!(reader.get(b"key")?, Some(&b"value"[..]));
    watch.recv_timeout(PATIENCE)?.expect("it is told");
    Ok(())
}

// -------------------------------------------------------------------------------------------------------- durable

fn publish_to_files(scene: &Scene<'_>) -> Result<()> {
    let topic = scene.disk().topic("new").unwrap();
    (scene.begin)();
    let mut publisher = topic.publisher().inspect_err(|e| {
        if e.kind() == ErrorKind::NoSpace {
            // Who had no room for a lane was not refused to remove its files, too.
            let names = names(&scene.path("disk/topics/new"));
            let has = |prefix| names.iter().any(|name| name.starts_with(prefix));
            assert!(has("lane.") || !has("data."), "{names:?}");
        }
    })?;
    for n in 0..16 {
        publisher.send(&message(n))?;
    }
    publisher.sync().inspect_err(|e| {
        // What may not be on the disk is not called synced later.
        let again = publisher.sync();
        assert!(again.is_err() || e.kind() != ErrorKind::Poisoned);
    })
}

fn sync_each_message(scene: &Scene<'_>) -> Result<()> {
    let disk = scene.disk();
    let topic = disk.topic_builder("new").sync(SyncPolicy::EachMessage);
    let topic = topic.open().unwrap();
    (scene.begin)();
    let mut publisher = topic.publisher()?;
    (0..8).try_for_each(|n| publisher.send(&message(n)))
}

fn subscribe_by_a_name(scene: &Scene<'_>) -> Result<()> {
    let topic = scene.disk().topic("log").unwrap();
    (scene.begin)();
    let mut subscription = topic.subscription("new")?;
    topic.publisher()?.send(&message(0))?;
    let frame = subscription.recv_timeout(PATIENCE)?.expect("it is there");
    assert_eq!(check(&frame), (1, 0));
    Ok(())
}

fn look_back_in_files(scene: &Scene<'_>) -> Result<()> {
    let topic = scene.disk().topic("new").unwrap();
    drop(topic.subscription("s").unwrap());
    let mut publisher = topic.publisher().unwrap();
    (0..200).for_each(|n| publisher.send(&message(n)).unwrap());
    (scene.begin)();
    for (start, first) in [(Start::Oldest, 0), (Start::Last(190), 10)] {
        let mut subscriber = topic.subscriber_from(start)?;
        let frame = subscriber.recv_timeout(PATIENCE)?.expect("it is there");
        assert_eq!(check(&frame), (1, first));
    }
    Ok(())
}

fn queue_in_files(scene: &Scene<'_>) -> Result<()> {
    let queue = scene.disk().queue("new").unwrap();
    (scene.begin)();
    let (mut producer, mut consumer) = (queue.producer()?, queue.consumer()?);
    for n in 0..10 {
        producer.push(&message(n))?;
        let delivery = consumer.recv_timeout(PATIENCE)?.expect("it is there");
        assert_eq!(check(&delivery), (1, n));
        delivery.ack()?;
    }
    producer.sync()
}

/// A file that is damaged from end to end: what lies behind it is all there.
fn skip_what_is_damaged(scene: &Scene<'_>) -> Result<()> {
    let topic = scene.disk().topic("new").unwrap();
    drop(topic.subscription("s").unwrap());
    let mut publisher = topic.publisher().unwrap();
    (0..30).for_each(|n| publisher.send(&message(n)).unwrap());
    damage_second_file(&scene.path("disk/topics/new"));
    let receive = || {
        let take = |subscriber: &mut Subscriber| {
            let frame = subscriber.recv_timeout(PATIENCE)?;
            Ok(check(&frame.expect("it is there")).1)
        };
        let subscriber = topic.subscriber_from(Start::Oldest)?;
        past_damage(subscriber, take, |subscriber| {
            subscriber.skip_damaged().map(drop)
        })
    };
    let whole = receive().unwrap();
    (scene.begin)();
    assert_eq!(receive()?, whole);
    Ok(())
}

/// The same in a queue, by another group.
fn skip_in_a_queue(scene: &Scene<'_>) -> Result<()> {
    let queue = scene.disk().queue("new").unwrap();
    let consumer = |group| queue.consumer_builder().group(group).open().unwrap();
    let (one, other) = (consumer("one"), consumer("other"));
    let mut producer = queue.producer().unwrap();
    (0..30).for_each(|n| producer.push(&message(n)).unwrap());
    damage_second_file(&scene.path("disk/topics/new"));
    let receive = |consumer| {
        let take = |consumer: &mut Consumer| {
            let delivery = consumer.recv_timeout(PATIENCE)?.expect("it is there");
            let (_, n) = check(&delivery);
            delivery.ack().map(|()| n)
        };
        past_damage(consumer, take, |consumer| consumer.skip_damaged().map(drop))
    };
    let whole = receive(one).unwrap();
    (scene.begin)();
    assert_eq!(receive(other)?, whole);
    Ok(())
}

/// The numbers of what is whole of the messages up to the 29th.
fn past_damage<S>(
    mut source: S,
    take: impl Fn(&mut S) -> Result<u64>,
    skip: impl Fn(&mut S) -> Result<()>,
) -> Result<Vec<u64>> {
    let (mut got, mut skipped) = (Vec::new(), 0);
    while got.last() != Some(&29) {
        match take(&mut source) {
            Ok(n) => got.push(n),
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                skip(&mut source)?;
                skipped += 1;
            }
            Err(e) => return Err(e),
        }
    }
    assert!(skipped == 1 && got.len() < 30, "{skipped} {got:?}");
    Ok(got)
}

/// The data file with this number, of a topic that has one lane.
fn data_file(topic: &Path, number: u64) -> Option<File> {
    let end = format!(".{number}");
    let is_it = |name: &String| name.starts_with("data.") && name.ends_with(&end);
    let name = names(topic).into_iter().find(is_it)?;
    let mut options = File::options();
    let opened = options.read(true).write(true).open(topic.join(name));
    Some(opened.unwrap())
}

fn damage_second_file(topic: &Path) {
    let second = data_file(topic, 1).expect("a second file");
    second.write_all_at(&[0xff; 4096], 4096).unwrap();
}

/// A durable bus that was in use when the machine went down: some of its messages were synced, the others are in one topic all
/// there, in several files, and have a hole in the other.
fn recover(scene: &Scene<'_>) -> Result<()> {
    let path = scene.path("new");
    let bus = small().durable(true).at(&path).unwrap();
    for name in ["whole", "holed"] {
        let topic = bus.topic(name).unwrap();
        drop(topic.subscription("s").unwrap());
        let mut publisher = topic.publisher().unwrap();
        publisher.send(&message(0)).unwrap();
        publisher.sync().unwrap();
        (1..30).for_each(|n| publisher.send(&message(n)).unwrap());
    }
    drop(bus);
    let last = make_a_hole(&path.join("topics/holed"));
    set_boot(&path);
    (scene.begin)();
    let bus = Bus::at(&path)?;
    let [cut] = bus.cuts() else {
        panic!("there is a hole: {:?}", bus.cuts());
    };
    assert_eq!(cut.topic, "holed");
    assert!(
        cut.at < 2 * 4096 && cut.at + cut.bytes > 4096 * last,
        "{cut:?}"
    );
    let mut subscription = bus.topic("whole")?.subscription("s")?;
    for n in 0..30 {
        let frame = subscription.recv_timeout(PATIENCE)?;
        assert_eq!(check(&frame.expect("it is whole")), (1, n));
    }
    Ok(())
}

/// In the second of a lane's data files, at its beginning. The number of the last one that has a frame, from 0.
fn make_a_hole(topic: &Path) -> u64 {
    let has_frame = |file: &File| {
        let mut word = [0; 8];
        file.read_exact_at(&mut word, 4096).unwrap();
        word != [0; 8]
    };
    let begun = (0..).map_while(|number| data_file(topic, number).filter(has_frame));
    let last = begun.count() as u64 - 1;
    let second = data_file(topic, 1).expect("a second file");
    second.write_all_at(&[0; 8], 4096).unwrap();
    last
}

// ----------------------------------------------------------------------------------------------------------- death

/// Has `what` done by a process that then dies, with all that it has in hand.
pub fn dying<T>(what: impl FnOnce() -> T) {
    // SAFETY: who calls this has no other thread that could hold a lock.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            std::mem::forget(what());
            // SAFETY: ends the child without running the test harness's exit.
            unsafe { nix::libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            nix::sys::wait::waitpid(child, None).unwrap();
        }
    }
}

fn put_away_the_dead(scene: &Scene<'_>) -> Result<()> {
    let path = scene.path("new");
    dying(|| {
        let bus = small().at(&path).unwrap();
        let topic = bus.topic("t").unwrap();
        let (queue, service) = (bus.queue("q").unwrap(), bus.service("s").unwrap());
        let mut producer = queue.producer().unwrap();
        producer.push(&message(0)).unwrap();
        let mut consumer = queue.consumer().unwrap();
        let held = consumer.recv().unwrap();
        (
            (topic.publisher(), topic.subscriber()),
            (producer, consumer, held),
            (service.server(), service.client()),
        )
    });
    (scene.begin)();
    let bus = Bus::at(&path)?;
    let mut consumer = bus.queue("q")?.consumer()?;
    let again = consumer.recv_timeout(PATIENCE)?;
    assert_eq!(
        *again.expect("what the dead held comes again"),
        message(0)[..]
    );
    Ok(())
}

/// Whether an error says what to do.
pub fn is_advised(error: &Error) -> bool {
    error.to_string().contains("; ")
}
