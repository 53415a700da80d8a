//! The guide, step by step as it stands: what is to be run is run, in one directory, and must print what stands below it.
#![allow(missing_docs)]

use std::path::Path;
use std::process::Command;

const GUIDE: &str = include_str!("../../docs/guide.md");

/// A block between fences: what it is, and its lines.
struct Block {
    line: usize,
    kind: &'static str,
    text: String,
}

fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (line, text) in (1..).zip(GUIDE.lines()) {
        match (text.strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(kind), None) => {
                open = Some(Block {
                    line,
                    kind,
                    text: String::new(),
                });
            }
            (None, Some(block)) => block.text += &format!("{text}\n"),
            (None, None) => {}
        }
    }
    blocks
}

#[test]
fn each_step_of_the_guide_does_what_it_says() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_buslane"));
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", program.parent().unwrap().display());
    let blocks = blocks();
    let mut ran = 0;
    for (at, step) in blocks
        .iter()
        .enumerate()
        .filter(|(_, block)| block.kind == "sh")
    {
        ran += 1;
        // A step that never ends is a failure; and no step leaves anything running.
        let script = format!(
            "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{}",
            step.text
        );
        let output = Command::new("timeout")
            .args(["60", "bash", "-eu", "-o", "pipefail", "-c", &script])
            .current_dir(dir.path())
            .env("PATH", &path)
            .env("BUSLANE_DIR", dir.path())
            .env_remove("BUSLANE_BUS")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let complained = String::from_utf8_lossy(&output.stderr);
        let place = format!("docs/guide.md:{}\n{}", step.line, step.text);
        assert!(output.status.success(), "{place}{said}{complained}");
        if let Some(expected) = blocks.get(at + 1).filter(|block| block.kind == "text") {
            assert_eq!(said, expected.text, "{place}{complained}");
        }
    }
    assert!(ran > 10, "{ran}");
}
