//! Publish and subscribe, lossless.
use buslane::{Bus, ErrorKind};
use std::time::Duration;

#[test]
fn wraps_many_times_between_threads() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let bus = Bus::builder()
        .capacity(4096)
        .at(dir.path().join("bus"))
        .unwrap();
    let topic = bus.topic("t").unwrap();
    let mut subs: Vec<_> = (0..3).map(|_| topic.subscriber().unwrap()).collect();
    let topic2 = topic.clone();
    let n = 200_000u64;
    let writer = std::thread::spawn(move || {
        let mut publisher = topic2.publisher().unwrap();
        for i in 0..n {
            let len = 8 + (i * 37 % 1400) as usize;
            let mut loan = publisher.loan(len).unwrap();
            loan.fill(i as u8);
            loan[..8].copy_from_slice(&i.to_le_bytes());
            loan.commit();
        }
        publisher.wait_delivered(None).unwrap();
    });
    let readers: Vec<_> = subs
        .drain(..)
        .map(|mut sub| {
            std::thread::spawn(move || {
                for i in 0..n {
                    let frame = sub.recv().unwrap();
                    assert_eq!(frame[..8], i.to_le_bytes());
                    assert_eq!(frame.len(), 8 + (i * 37 % 1400) as usize);
                    assert!(frame[8..].iter().all(|&b| b == i as u8));
                }
                assert_eq!(sub.recv().unwrap_err().kind(), ErrorKind::Ended);
            })
        })
        .collect();
    writer.join().unwrap();
    for r in readers {
        r.join().unwrap();
    }
    let _ = Duration::ZERO;
}
