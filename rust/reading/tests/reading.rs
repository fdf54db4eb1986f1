//! Spans are read as they are in the file, whatever becomes of its name; files that change are noticed.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use planner_reading::{
    BytesRead, Destination, FileError, HUGE_PAGE_BYTES, OutOfMemory, PageBuffer, ReadError, Span, SpanError,
    StoredFile, cached_bytes, read_spans, replay_spans, replayed_byte,
};
use proptest::collection::vec;
use proptest::prelude::*;

#[test]
#[cfg(target_os = "linux")]
fn what_was_paged_in_is_in_the_page_cache() {
    let written = Written::new(20 << 20);
    let file = written.open();
    let mapping = file.map().unwrap();
    for (begin, end) in [(0, 1), (4097, 9 << 20), (1, 20 << 20), (3, 3), (9, 4), (19 << 20, 40 << 20)] {
        mapping.page_in(begin, end);
    }
    let found = cached_bytes(&file.handle().unwrap(), 0, 20 << 20);
    assert_eq!(found.cached, found.asked);
    written.cut(1 << 20);
    mapping.page_in(0, 20 << 20);
}

/// A file of its own for one test.
struct Written(PathBuf);

impl Written {
    fn new(bytes: u64) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("planner-reading-{}-{number}", std::process::id()));
        fs::write(&path, (0..bytes).map(replayed_byte).collect::<Vec<u8>>()).unwrap();
        Self(path)
    }

    fn open(&self) -> StoredFile {
        StoredFile::open(self.0.clone()).unwrap()
    }

    fn cut(&self, bytes: u64) {
        fs::File::options().write(true).open(&self.0).unwrap().set_len(bytes).unwrap();
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn read(file: &StoredFile, begin: u64, end: u64, direct: bool) -> Result<Vec<u8>, ReadError> {
    let mut memory = vec![0; usize::try_from(end - begin).unwrap()];
    let span = Span { file: 0, begin, end, at: 0 };
    read_spans(&[&*file.handle().unwrap()], &[span], Destination::from(&mut memory[..]), direct, 2)?;
    Ok(memory)
}

fn stored(begin: u64, end: u64) -> Vec<u8> {
    (begin..end).map(replayed_byte).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn drawn_spans_are_read_as_they_are_in_the_file(how in any::<[u8; 2]>(), rows in vec((0_u8..60, any::<[u8; 6]>()), 0..9)) {
        static FILE: LazyLock<StoredFile> = LazyLock::new(|| Written::new(150_001).open());
        let rows = rows.into_iter().flat_map(|(kind, [b, b_high, n, n_high, at, at_high])| {
            [kind, b, b_high % 0xC0, n, n_high % 0x10, at, at_high] // few end behind the file, many do not overlap
        });
        let content: Vec<u8> = how.into_iter().chain(rows).collect();
        replay_spans(&FILE.handle().unwrap(), &content);
    }
}

#[test]
fn spans_of_many_pieces_and_several_files_are_read_by_any_number_of_threads() {
    let (first, second) = (Written::new(20_000_003), Written::new(9_000_001));
    let (first, second) = (first.open().handle().unwrap(), second.open().handle().unwrap());
    let spans = [
        Span { file: 1, begin: 11, end: 9_000_001, at: 20_000_000 },
        Span { file: 0, begin: 3, end: 8_388_609, at: 3 },
        Span { file: 0, begin: 8_388_609, end: 20_000_003, at: 8_388_609 },
    ];
    for (direct, threads) in [(true, 1), (true, 4), (false, 3), (true, usize::MAX)] {
        let mut pages = PageBuffer::new(30_000_000).unwrap();
        let destination = Destination::from(pages.as_mut_slice());
        let wrong = read_spans(&[&first, &second], &spans, destination, direct, threads);
        assert_eq!(wrong, Err(SpanError::Overlapping { at: 20_000_000 }.into()));
        let apart = spans.map(|span| Span { at: span.at + 7 * span.file as u64, ..span });
        let destination = Destination::from(pages.as_mut_slice());
        let BytesRead { total, .. } = read_spans(&[&first, &second], &apart, destination, direct, threads).unwrap();
        assert_eq!(total, 8_999_990 + 20_000_000);
        let memory = pages.as_mut_slice();
        assert!(memory[3..20_000_003] == stored(3, 20_000_003));
        assert!(memory[20_000_007..28_999_997] == stored(11, 9_000_001));
        assert!(
            memory[..3]
                .iter()
                .chain(&memory[20_000_003..20_000_007])
                .chain(&memory[28_999_997..])
                .all(|&byte| byte == 0)
        );
    }
}

#[test]
fn spans_that_cannot_be_meant_are_refused_with_their_numbers() {
    let written = Written::new(100);
    let handle = written.open().handle().unwrap();
    let refused = |span: Span| {
        let mut memory = [7; 50];
        let error = read_spans(&[&handle], &[span], Destination::from(&mut memory[..]), true, 1).unwrap_err();
        assert_eq!(memory, [7; 50]);
        error
    };
    let span = Span { file: 0, begin: 10, end: 20, at: 0 };
    assert_eq!(refused(Span { file: 1, ..span }), SpanError::NoSuchFile { file: 1, files: 1 }.into());
    assert_eq!(refused(Span { end: 9, ..span }), SpanError::Backwards { begin: 10, end: 9 }.into());
    let outside = SpanError::OutsideBuffer { bytes: 10, at: 41, buffer_bytes: 50 };
    assert_eq!(refused(Span { at: 41, ..span }), outside.into());
    let error = refused(Span { begin: 90, end: 101, ..span });
    assert_eq!(error, ReadError::EndOfFile { file: 0, begin: 90, wanted_end: 101, end: 100 });
    assert_eq!(error.to_string(), "ends at byte 100; bytes 90 to 101 were to be read");
}

#[test]
fn a_file_that_was_cut_is_an_error_that_says_where() {
    let written = Written::new(20_000);
    let file = written.open();
    written.cut(9_000);
    for direct in [true, false] {
        let error = read(&file, 4_000, 12_000, direct).unwrap_err();
        assert_eq!(error, ReadError::EndOfFile { file: 0, begin: 4_000, wanted_end: 12_000, end: 9_000 });
        assert_eq!(read(&file, 4_000, 9_000, direct).unwrap(), stored(4_000, 9_000));
    }
    assert_eq!(file.change().unwrap().unwrap(), "is 9000 bytes now, was 20000 when it was opened");
}

#[test]
fn a_file_that_is_renamed_or_deleted_is_read_as_before() {
    let written = Written::new(20_000);
    let (file, elsewhere) = (written.open(), Written::new(1));
    fs::rename(&written.0, &elsewhere.0).unwrap();
    fs::write(&written.0, "another").unwrap();
    assert_eq!(read(&file, 1, 19_000, true).unwrap(), stored(1, 19_000));
    fs::remove_file(&elsewhere.0).unwrap();
    assert_eq!(read(&file, 1, 19_000, true).unwrap(), stored(1, 19_000));
    assert_eq!(file.change().unwrap(), None);
}

#[test]
fn who_reads_when_a_file_is_closed_reads_on() {
    let written = Written::new(20_000);
    let file = written.open();
    let handle = file.handle().unwrap();
    file.close();
    assert!(!file.is_open());
    assert_eq!(file.change().unwrap(), None);
    assert_eq!(read(&file, 0, 20_000, true).unwrap(), stored(0, 20_000));
    assert!(!file.is_open());
    let mut memory = [0; 5_000];
    let span = Span { file: 0, begin: 7, end: 5_007, at: 0 };
    read_spans(&[&handle], &[span], Destination::from(&mut memory[..]), true, 1).unwrap();
    assert!(memory[..] == stored(7, 5_007));
    file.reopen().unwrap();
    file.reopen().unwrap();
    assert_eq!(read(&file, 0, 20_000, true).unwrap(), stored(0, 20_000));
}

#[test]
fn only_the_same_file_is_opened_again() {
    let written = Written::new(40);
    let file = written.open();
    file.close();
    let other = Written::new(40);
    fs::rename(&other.0, &written.0).unwrap();
    let error = file.reopen().unwrap_err();
    assert_eq!(error.to_string(), "is another file now than the one that was opened");

    let file = other_open(&written);
    written.cut(12);
    assert_eq!(file.reopen().unwrap_err().to_string(), "is 12 bytes now, was 40 when it was opened");
    assert!(!file.is_open());

    let file = other_open(&written);
    let later = SystemTime::now() + Duration::from_secs(9);
    fs::File::options().write(true).open(&written.0).unwrap().set_modified(later).unwrap();
    assert_eq!(file.reopen().unwrap_err().to_string(), "was written to since it was opened");
    fs::remove_file(&written.0).unwrap();
    assert_eq!(file.reopen().unwrap_err(), FileError::Missing);
}

fn other_open(written: &Written) -> StoredFile {
    let file = written.open();
    file.close();
    file
}

#[test]
fn only_regular_files_are_opened() {
    assert_eq!(StoredFile::open(std::env::temp_dir()).unwrap_err(), FileError::NotRegular("a directory"));
    assert_eq!(StoredFile::open(PathBuf::from("nowhere/at all")).unwrap_err(), FileError::Missing);
}

#[test]
fn a_mapping_has_the_bytes_of_the_file_and_outlives_its_handle() {
    let (written, empty) = (Written::new(10_000), Written::new(0));
    let file = written.open();
    let mapping = file.map().unwrap();
    file.close();
    assert_eq!(mapping.size_bytes(), 10_000);
    assert_eq!(empty.open().map().unwrap().size_bytes(), 0);
    let file = written.open();
    written.cut(9_999);
    assert!(matches!(file.map(), Err(FileError::Changed(_))));
}

#[test]
fn buffers_are_aligned_zeroed_and_rounded_up() {
    for (asked, got) in [(0, 1), (1, 1), (HUGE_PAGE_BYTES, 1), (HUGE_PAGE_BYTES + 1, 2)] {
        let mut pages = PageBuffer::new(asked).unwrap();
        assert_eq!(pages.size_bytes(), got * HUGE_PAGE_BYTES);
        assert_eq!(pages.start() as usize % HUGE_PAGE_BYTES, 0);
        assert!(pages.huge_bytes() <= pages.size_bytes() as u64);
        assert!(pages.as_mut_slice().iter().all(|&byte| byte == 0));
        pages.as_mut_slice().fill(1);
    }
    for size_bytes in [1 << 60, usize::MAX] {
        assert_eq!(PageBuffer::new(size_bytes).unwrap_err(), OutOfMemory { size_bytes });
    }
}

#[test]
fn whole_pages_of_a_span_are_counted() {
    let written = Written::new(10_000);
    let handle = written.open().handle().unwrap();
    assert_eq!(cached_bytes(&handle, 5, 5).asked, 0);
    assert_eq!(cached_bytes(&handle, 9, 5).asked, 0);
    assert_eq!(cached_bytes(&handle, 10_000, u64::MAX).asked, 0);
    let all = cached_bytes(&handle, 0, u64::MAX);
    assert!(all.asked >= 10_000 && all.cached <= all.asked);
    if cfg!(target_os = "linux") {
        assert_eq!(all.cached, all.asked, "it was just written");
    }
}
