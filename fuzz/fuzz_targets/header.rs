//! A whole safetensors file's header, and the length of the data behind it in the last two bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|content: &[u8]| {
    planner_headers::replay_header(content);
});
