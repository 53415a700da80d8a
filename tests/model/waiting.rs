//! Sleeping on many signals at once: in the sleeper's own thread, and by way of one that sleeps for others.

use std::sync::Arc;

use buslane::shm::View;
use buslane::shm::layout::BusControl;
use buslane::shm::park::{self, Signal, Ticket};
use buslane::shm::roster;
use buslane::shm::sync::heavy_fence;
use buslane::shm::wakers::Wakers;
use loom::sync::Mutex;
use loom::thread::{self, Thread};

use super::{CAPACITY, Directory, Receiver, SMALL, Sender, Topic, model, model_of, spawn};

/// A sender and a receiver of one topic, who know each other.
fn ends() -> (Sender, Receiver) {
    let topic = Topic::new(1, 1, CAPACITY);
    let mut sender = Sender::create(&topic, 0);
    sender.enter();
    let receiver = Receiver::join(&topic, 0);
    (sender.warm_up(CAPACITY as u64), receiver)
}

impl Receiver {
    fn arm(&self) -> Ticket {
        park::arm(&self.topic.control, &self.cursor.header)
    }

    fn disarm(&self) {
        park::disarm(&self.cursor.header);
    }

    fn is_ready(&mut self) -> bool {
        self.seen_roster != Some(roster::state(&self.topic.control)) || self.poll().is_some()
    }
}

/// `WaitSet::wait`, asleep: a reader of two topics, each with a message.
#[test]
fn two_topics() {
    model_of(3, 2, || {
        let (mut first, one) = ends();
        let (mut second, two) = ends();
        let first = spawn(move || first.send(SMALL));
        let second = spawn(move || second.send(SMALL));
        let mut receivers = [one, two];
        let mut received = 0;
        while received < 2 {
            let mut ready = receivers.iter_mut().position(Receiver::is_ready);
            if ready.is_none() {
                let tickets: Vec<Ticket> = receivers.iter().map(Receiver::arm).collect();
                heavy_fence();
                ready = receivers.iter_mut().position(Receiver::is_ready);
                if ready.is_none() {
                    park::sleep_any(&tickets, None);
                }
                receivers.iter().for_each(Receiver::disarm);
            }
            if let Some(ready) = ready
                && let Some((i, found)) = receivers[ready].poll()
            {
                receivers[ready].sources[i].take(found);
                received += 1;
            }
        }
        first.join().unwrap();
        second.join().unwrap();
    });
}

/// `reactor::Sleeper`.
struct Sleeper {
    kicked: Signal,
    /// With whether it is to end.
    wakers: Mutex<(Wakers<Thread>, bool)>,
}

impl Sleeper {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            kicked: Signal::own(),
            wakers: Mutex::default(),
        })
    }

    fn run(&self) {
        loop {
            let (mut due, mut tickets) = (Vec::new(), Vec::new());
            {
                let mut wakers = self.wakers.lock().unwrap();
                if wakers.1 {
                    return;
                }
                let signal = self.kicked.clone();
                let seen = signal.now();
                tickets.push(Ticket { signal, seen });
                wakers.0.take_due(&mut due, &mut tickets);
            }
            due.iter().for_each(Thread::unpark);
            park::sleep_any(&tickets, None);
        }
    }

    fn add(&self, signal: &Signal) -> usize {
        let mut wakers = self.wakers.lock().unwrap();
        let index = wakers.0.add(signal.clone()).unwrap();
        park::kick(self.kicked.word());
        index
    }

    fn stop(&self) {
        let mut wakers = self.wakers.lock().unwrap();
        wakers.1 = true;
        park::kick(self.kicked.word());
    }
}

/// A task that sleeps before each of `count` messages.
fn receive(mut receiver: Receiver, sleeper: &Sleeper, count: usize) {
    let mut watched = None;
    for _ in 0..count {
        loop {
            if let Some((i, found)) = receiver.poll() {
                receiver.sources[i].take(found);
                break;
            }
            let Ticket { signal, seen } = receiver.arm();
            heavy_fence();
            if !receiver.is_ready() {
                let index = *watched.get_or_insert_with(|| sleeper.add(&signal));
                let asleep = {
                    let mut wakers = sleeper.wakers.lock().unwrap();
                    wakers.0.sleep(index, seen, None, thread::current()).is_ok()
                };
                if asleep {
                    thread::park();
                }
            }
            receiver.disarm();
        }
    }
}

/// A task, the reactor's thread, and a sender: the task is woken for every message.
#[test]
fn a_task_sleeps() {
    model_of(3, 2, || {
        let (mut sender, receiver) = ends();
        let sleeper = Sleeper::new();
        let reactor = Arc::clone(&sleeper);
        let reactor = spawn(move || reactor.run());
        let own = Arc::clone(&sleeper);
        let task = spawn(move || {
            receive(receiver, &own, 2);
            own.stop();
        });
        sender.send(SMALL);
        sender.send(SMALL);
        task.join().unwrap();
        reactor.join().unwrap();
    });
}

/// A selection that sleeps until there is a topic, of which nothing but a listing tells.
#[test]
fn a_topic_comes() {
    model(3, || {
        let control = View::new(BusControl::default());
        let names = Arc::new(Directory::default());
        let (own, there) = (control.clone(), Arc::clone(&names));
        let maker = spawn(move || {
            there.link(0);
            roster::topics_changed(&own);
        });
        loop {
            let seen = roster::topics(&control);
            if names.list().count() > 0 {
                break;
            }
            let signal = Signal::Topics(control.clone());
            park::sleep_any(&[Ticket { signal, seen }], None);
        }
        maker.join().unwrap();
    });
}
