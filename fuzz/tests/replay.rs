//! All that was ever found, and a corpus that comes to as much of the code as is known: on any toolchain.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use buslane_fuzz::TARGETS;

/// Only against hangs.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn all_that_was_found() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, target) in TARGETS {
        let mut count = 0;
        for kind in ["findings", "corpus"] {
            for entry in fs::read_dir(here.join(kind).join(name))
                .into_iter()
                .flatten()
            {
                let path = entry.unwrap().path();
                let data = fs::read(&path).unwrap();
                let (end, ended) = channel::<()>();
                let shown = path.display().to_string();
                thread::spawn(move || {
                    if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                        eprintln!("{shown} hangs");
                        std::process::abort();
                    }
                });
                let replayed = std::panic::catch_unwind(|| target(&data));
                assert!(replayed.is_ok(), "{} fails", path.display());
                drop(end);
                count += 1;
            }
        }
        println!("{name}: {count} inputs");
        assert!(count > 0, "there is a corpus for {name}");
    }
}
