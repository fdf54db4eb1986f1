//! Spans of a file, read into memory: two bytes say how, seven are a span.

#![no_main]

use std::sync::{Arc, LazyLock};

use planner_reading::{Handle, StoredFile, replay_spans, replayed_byte};

static FILE: LazyLock<Arc<Handle>> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("planner-fuzz-{}", std::process::id()));
    std::fs::write(&path, (0..150_001).map(replayed_byte).collect::<Vec<u8>>()).expect("a folder for temporary files");
    let handle = StoredFile::open(path.clone()).and_then(|file| file.handle()).expect("it was just written");
    std::fs::remove_file(&path).expect("it was just written");
    handle
});

libfuzzer_sys::fuzz_target!(|content: &[u8]| {
    replay_spans(&FILE, content);
});
