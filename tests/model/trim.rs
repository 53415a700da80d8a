//! Data files of a lane that are removed while a reader joins: what it begins with stays.

use std::convert::Infallible;
use std::sync::Arc;

use buslane::shm::lane;
use buslane::shm::roster;

use super::{CAPACITY, Topic, model, spawn};

/// Bytes in a file of the model.
const FILE: u64 = 64;

/// Up to where all readers that have a name have passed the lane; who has joined nothing yet stands at its beginning.
fn passed(topic: &Topic) -> u64 {
    let position = |n: usize| topic.cursors[n].position_in(1).unwrap_or(0);
    topic
        .cursor_names
        .list()
        .map(position)
        .min()
        .unwrap_or(u64::MAX)
}

#[test]
fn what_a_reader_joins_at_is_not_removed() {
    model(2, || {
        let topic = Topic::new(1, 1, CAPACITY);
        let header = topic.lanes[0].header.clone();
        let joiner = spawn({
            let (topic, header) = (Arc::clone(&topic), header.clone());
            move || {
                let cursor = &topic.cursors[0];
                let Ok(slot) = cursor.take_slot(|_| Ok::<_, Infallible>(()));
                topic.cursor_names.link(0);
                loop {
                    let at = lane::floor(&header);
                    if roster::join_log(&topic.control, &header, 1, &cursor.slots[slot], at) {
                        return at;
                    }
                }
            }
        });
        // Two files of which nobody knew that they are needed.
        let mut removed = 0;
        for _ in 0..2 {
            let upto = passed(&topic).min(removed + FILE);
            if upto > removed {
                let Ok(upto) = lane::give_up(&header, upto, || Ok::<_, Infallible>(passed(&topic)));
                removed = upto.max(removed);
            }
        }
        assert!(
            removed <= joiner.join().unwrap(),
            "what it reads was removed"
        );
    });
}
