//! The fuzzer's corpus, replayed: what it once found stays found.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use planner_headers::{replay_gguf, replay_header, replay_index};

fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    for file in files {
        check(&fs::read(file).unwrap());
    }
}

#[test]
fn headers_that_the_fuzzer_found_keep_the_promises() {
    replay("header", replay_header);
}

#[test]
fn indices_that_the_fuzzer_found_keep_the_promises() {
    replay("index", replay_index);
}

#[test]
fn gguf_files_that_the_fuzzer_found_keep_the_promises() {
    replay("gguf", replay_gguf);
}
