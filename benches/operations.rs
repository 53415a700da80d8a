//! What each operation costs by itself, inside one process and one thread: the other side does its part between the
//! timed runs, so every message is in this core's cache. What a message costs on its way to another process,
//! `buslane bench` measures; `benches/floor.rs` compares with the least that is possible.

use std::cell::{Cell, RefCell};
use std::hint::black_box;
use std::time::{Duration, Instant};

use buslane::{Bus, DEFAULT_CAPACITY, Delivery, Message, Publisher, Subscriber, Topic};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use memmap2::MmapMut;
use tempfile::TempDir;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Payload sizes, in bytes.
const SIZES: [usize; 3] = [8, 64, 1024];
/// Messages between two looks at the clock; they fit the default ring, so that nobody waits.
const RUN: u64 = 1024;
/// Capacities at which publishers and subscribers are made.
const CAPACITIES: [(&str, usize); 2] = [("1MiB", 1 << 20), ("default", DEFAULT_CAPACITY)];

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug)]
#[repr(C)]
struct Tick {
    price: i64,
}

impl Message for Tick {
    const NAME: &'static str = "bench.Tick";
}

/// A directory that is removed at the end, and a bus in it.
fn bus(capacity: usize) -> (TempDir, Bus) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("bus");
    (dir, Bus::builder().capacity(capacity).at(path).unwrap())
}

/// The time of `count` operations, done in runs of at most [`RUN`]; what comes `before` each run is not counted.
fn in_runs(count: u64, mut before: impl FnMut(u64), mut run: impl FnMut(u64)) -> Duration {
    let mut time = Duration::ZERO;
    let mut left = count;
    while left > 0 {
        let now = left.min(RUN);
        before(now);
        let started = Instant::now();
        run(now);
        time += started.elapsed();
        left -= now;
    }
    time
}

/// The time that making `count` things takes, one after the other; dropping them is not counted.
fn making<T>(count: u64, mut make: impl FnMut() -> T) -> Duration {
    let mut time = Duration::ZERO;
    for _ in 0..count {
        let started = Instant::now();
        let made = make();
        time += started.elapsed();
        drop(made);
    }
    time
}

fn drain(subscriber: &mut Subscriber) {
    while subscriber.try_recv().unwrap().is_some() {}
}

fn send_all(publisher: &mut Publisher, message: &[u8], count: u64) {
    for _ in 0..count {
        publisher.send(message).unwrap();
    }
}

fn sending(c: &mut Criterion) {
    let (_dir, bus) = bus(DEFAULT_CAPACITY);
    let topic = bus.topic("bytes").unwrap();
    let mut subscriber = topic.subscriber().unwrap();
    let mut publisher = topic.publisher().unwrap();
    for size in SIZES {
        let message = vec![7; size];
        c.bench_function(&format!("send/{size}"), |b| {
            b.iter_custom(|count| {
                in_runs(
                    count,
                    |_| drain(&mut subscriber),
                    |now| send_all(&mut publisher, black_box(&message), now),
                )
            });
        });
    }
    for size in SIZES {
        c.bench_function(&format!("loan_and_commit/{size}"), |b| {
            b.iter_custom(|count| {
                in_runs(
                    count,
                    |_| drain(&mut subscriber),
                    |now| {
                        for byte in 0..now {
                            let mut loan = publisher.loan(size).unwrap();
                            loan.fill(black_box(byte as u8));
                            loan.commit();
                        }
                    },
                )
            });
        });
    }
    let message = [7; 64];
    c.bench_function("send_batch/64", |b| {
        b.iter_custom(|count| {
            in_runs(
                count,
                |_| drain(&mut subscriber),
                |now| {
                    let messages = (0..now).map(|_| black_box(&message));
                    publisher.send_batch(messages).unwrap();
                },
            )
        });
    });
}

/// What messages that nobody has received yet, and subscribers, cost who sends one more.
fn sending_to_many(c: &mut Criterion) {
    for waiting in [0, 1_000, 30_000] {
        let (_dir, bus) = bus(DEFAULT_CAPACITY);
        let topic = bus.topic("bytes").unwrap();
        let mut subscriber = topic.subscriber().unwrap();
        let mut publisher = topic.publisher().unwrap();
        let message = [7; 64];
        send_all(&mut publisher, &message, waiting + RUN);
        c.bench_function(&format!("send/64/waiting/{waiting}"), |b| {
            b.iter_custom(|count| {
                in_runs(
                    count,
                    |now| (0..now).for_each(|_| drop(subscriber.recv().unwrap())),
                    |now| send_all(&mut publisher, black_box(&message), now),
                )
            });
        });
    }
    for subscribers in [1, 8, 64] {
        let (_dir, bus) = bus(DEFAULT_CAPACITY);
        let topic = bus.topic("bytes").unwrap();
        let subscriber = |_| topic.subscriber().unwrap();
        let mut subscribers: Vec<_> = (0..subscribers).map(subscriber).collect();
        let mut publisher = topic.publisher().unwrap();
        let message = [7; 64];
        let name = format!("send/64/subscribers/{}", subscribers.len());
        c.bench_function(&name, |b| {
            b.iter_custom(|count| {
                in_runs(
                    count,
                    |_| subscribers.iter_mut().for_each(drain),
                    |now| send_all(&mut publisher, black_box(&message), now),
                )
            });
        });
    }
}

fn sending_values(c: &mut Criterion) {
    let (_dir, bus) = bus(DEFAULT_CAPACITY);
    let topic = bus.typed::<Tick>("ticks").unwrap();
    let mut subscriber = topic.subscriber().unwrap();
    let mut publisher = topic.publisher().unwrap();
    c.bench_function("send_value/8", |b| {
        b.iter_custom(|count| {
            in_runs(
                count,
                |_| while subscriber.try_recv().unwrap().is_some() {},
                |now| {
                    for _ in 0..now {
                        publisher.send_value(black_box(&Tick { price: 7 })).unwrap();
                    }
                },
            )
        });
    });
}

fn receiving(c: &mut Criterion) {
    let (_dir, bus) = bus(DEFAULT_CAPACITY);
    let topic = bus.topic("bytes").unwrap();
    let mut subscriber = topic.subscriber().unwrap();
    let mut publisher = topic.publisher().unwrap();
    for size in SIZES {
        let message = vec![7; size];
        c.bench_function(&format!("try_recv/{size}"), |b| {
            b.iter_custom(|count| {
                in_runs(
                    count,
                    |now| send_all(&mut publisher, &message, now),
                    |now| {
                        for _ in 0..now {
                            let frame = subscriber.try_recv().unwrap().expect("it was sent");
                            black_box(&*frame);
                        }
                    },
                )
            });
        });
    }
    let message = [7; 64];
    c.bench_function("try_recv_batch/64", |b| {
        b.iter_custom(|count| {
            in_runs(
                count,
                |now| send_all(&mut publisher, &message, now),
                |now| {
                    let mut left = now as usize;
                    while left > 0 {
                        let batch = subscriber
                            .try_recv_batch(left)
                            .unwrap()
                            .expect("it was sent");
                        for message in &batch {
                            black_box(message);
                        }
                        left -= batch.len();
                    }
                },
            )
        });
    });
    c.bench_function("try_recv/nothing", |b| {
        b.iter(|| assert!(subscriber.try_recv().unwrap().is_none()));
    });
}

/// One subscriber of so many lanes: a look at all of them when there is nothing, the least that could cost (a word of each
/// of as many mappings), and messages through one of them while the others are idle.
fn many_lanes(c: &mut Criterion) {
    for lanes in [1, 8, 65, 512] {
        let mut maps: Vec<_> = (0..lanes)
            .map(|_| MmapMut::map_anon(1 << 20).unwrap())
            .collect();
        maps.iter_mut().for_each(|map| map[16] = 1);
        c.bench_function(&format!("bare_words/{lanes}"), |b| {
            b.iter(|| maps.iter().filter(|map| black_box(map[16]) == 0).count());
        });
        drop(maps);
        let (_dir, bus) = bus(1 << 20);
        let topic = bus.topic("bytes").unwrap();
        let mut subscriber = topic.subscriber().unwrap();
        let mut publishers: Vec<_> = (0..lanes).map(|_| topic.publisher().unwrap()).collect();
        for publisher in &mut publishers {
            publisher.send(&[7]).unwrap();
        }
        drain(&mut subscriber);
        c.bench_function(&format!("try_recv/nothing_in_lanes/{lanes}"), |b| {
            b.iter(|| assert!(subscriber.try_recv().unwrap().is_none()));
        });
        c.bench_function(&format!("send_and_receive/one_busy_lane_of/{lanes}"), |b| {
            b.iter_custom(|count| {
                in_runs(
                    count,
                    |_| {},
                    |now| {
                        send_all(&mut publishers[0], &[7; 64], now);
                        drain(&mut subscriber);
                    },
                )
            });
        });
    }
}

/// The latest value of a key: looked up among so many, and copied.
fn state(c: &mut Criterion) {
    for keys in [1, 1_000, 100_000_u32] {
        let (_dir, bus) = bus(1 << 20);
        let sized = bus
            .state_builder("state")
            .keys(100_000)
            .max_key(8)
            .max_value(64);
        let state = sized.open().unwrap();
        let (mut writer, mut reader) = (state.writer().unwrap(), state.reader().unwrap());
        for key in 0..keys {
            writer.set(&key.to_le_bytes(), &[7; 64]).unwrap();
        }
        let mut key = 0_u32;
        let mut next = || {
            key = (key + 1) % keys;
            key.to_le_bytes()
        };
        c.bench_function(&format!("state_get/64/keys/{keys}"), |b| {
            b.iter(|| black_box(reader.get(&next()).unwrap().is_some()));
        });
        c.bench_function(&format!("state_set/64/keys/{keys}"), |b| {
            b.iter(|| writer.set(&next(), black_box(&[7; 64])).unwrap());
        });
    }
}

/// A work queue: sent, claimed, acknowledged.
fn queue(c: &mut Criterion) {
    let (_dir, bus) = bus(DEFAULT_CAPACITY);
    let queue = bus.queue("queue").unwrap();
    let mut producer = queue.producer().unwrap();
    let mut consumer = queue.consumer().unwrap();
    let message = [7; 64];
    let mut push = |count: u64| (0..count).for_each(|_| producer.push(&message).unwrap());
    c.bench_function("queue_push/64", |b| {
        let pushed = Cell::new(0);
        let mut take = || (0..pushed.take()).for_each(|_| consumer.recv().unwrap().ack().unwrap());
        b.iter_custom(|count| {
            in_runs(
                count,
                |_| take(),
                |now| {
                    push(now);
                    pushed.set(now);
                },
            )
        });
        take();
    });
    let held = RefCell::new(Vec::new());
    c.bench_function("queue_claim/64", |b| {
        b.iter_custom(|count| {
            in_runs(
                count,
                |now| {
                    held.borrow_mut().drain(..).for_each(acknowledge);
                    push(now);
                },
                |now| {
                    let claimed = (0..now).map(|_| consumer.recv().unwrap());
                    held.borrow_mut().extend(claimed);
                },
            )
        });
    });
    held.borrow_mut().drain(..).for_each(acknowledge);
    c.bench_function("queue_ack/64", |b| {
        b.iter_custom(|count| {
            in_runs(
                count,
                |now| {
                    push(now);
                    let claimed = (0..now).map(|_| consumer.recv().unwrap());
                    held.borrow_mut().extend(claimed);
                },
                |_| held.borrow_mut().drain(..).for_each(acknowledge),
            )
        });
    });
}

fn acknowledge(delivery: Delivery) {
    delivery.ack().unwrap();
}

/// A request and its reply, both sides of it.
fn calls(c: &mut Criterion) {
    let (_dir, bus) = bus(DEFAULT_CAPACITY);
    let service = bus.service("service").unwrap();
    let (mut server, client) = (service.server().unwrap(), service.client().unwrap());
    let message = [7; 64];
    c.bench_function("call_and_reply/64", |b| {
        b.iter(|| {
            let pending = client.start(black_box(&message)).unwrap();
            server.recv().unwrap().reply(&message).unwrap();
            black_box(pending.wait().unwrap().unwrap()[0])
        });
    });
}

/// Reading a lossy topic takes a copy and a check.
fn receiving_lossy(c: &mut Criterion) {
    let (_dir, bus) = bus(DEFAULT_CAPACITY);
    let topic = bus.topic_builder("bytes").lossy(true).open().unwrap();
    let mut subscriber = topic.subscriber().unwrap();
    let mut publisher = topic.publisher().unwrap();
    for size in SIZES {
        let message = vec![7; size];
        c.bench_function(&format!("try_recv_lossy/{size}"), |b| {
            b.iter_custom(|count| {
                in_runs(
                    count,
                    |now| send_all(&mut publisher, &message, now),
                    |_| drain(&mut subscriber),
                )
            });
        });
    }
}

/// Each is alone of its kind: what was made last is gone before the next is made.
fn setting_up(c: &mut Criterion) {
    let mut group = c.benchmark_group("make");
    group.bench_function("bus", |b| {
        // One stays open, as it would with other processes.
        let (_dir, bus) = bus(DEFAULT_CAPACITY);
        b.iter_custom(|count| making(count, || Bus::at(bus.path()).unwrap()));
    });
    for (name, capacity) in CAPACITIES {
        let (_dir, bus) = bus(capacity);
        let topic: Topic = bus.topic("t").unwrap();
        // Without a subscriber, a publisher's lane goes with it, and the next one allocates its own.
        group.bench_function(BenchmarkId::new("publisher", name), |b| {
            b.iter_custom(|count| making(count, || topic.publisher().unwrap()));
        });
        let publisher = topic.publisher().unwrap();
        group.bench_function(BenchmarkId::new("subscriber_to_one_lane", name), |b| {
            b.iter_custom(|count| making(count, || topic.subscriber().unwrap()));
        });
        drop(publisher);
        // With a subscriber that has not looked since, the lane stays, and the next publisher takes it over.
        let _subscriber = topic.subscriber().unwrap();
        group.bench_function(BenchmarkId::new("publisher_on_a_lane_left", name), |b| {
            b.iter_custom(|count| making(count, || topic.publisher().unwrap()));
        });
    }
    group.finish();
}

criterion_group!(
    operations,
    sending,
    sending_values,
    sending_to_many,
    receiving,
    receiving_lossy,
    queue,
    calls,
    state,
    many_lanes,
    setting_up
);
criterion_main!(operations);
