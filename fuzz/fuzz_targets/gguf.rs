//! A whole GGUF file.

#![no_main]

libfuzzer_sys::fuzz_target!(|content: &[u8]| {
    planner_headers::replay_gguf(content);
});
