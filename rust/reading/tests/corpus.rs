//! The fuzzer's corpus, replayed: what it once found stays found.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use planner_reading::{StoredFile, replay_spans, replayed_byte};

#[test]
fn spans_that_the_fuzzer_found_keep_the_promises() {
    let path = std::env::temp_dir().join(format!("planner-replayed-{}", std::process::id()));
    fs::write(&path, (0..150_001).map(replayed_byte).collect::<Vec<u8>>()).unwrap();
    let file = StoredFile::open(path.clone()).unwrap().handle().unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/spans");
    let found: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!found.is_empty(), "{} is empty", folder.display());
    for content in found {
        replay_spans(&file, &fs::read(content).unwrap());
    }
    fs::remove_file(&path).unwrap();
}
