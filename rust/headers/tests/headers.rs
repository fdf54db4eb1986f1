//! What the reader accepts is what was written; what it refuses, it names.
#![allow(clippy::unwrap_used)]

use planner_headers::{Dtype, Entry, HeaderError, join, parse, parse_index};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

type Row = (String, &'static str, Vec<usize>, usize);

/// A header with tensors one after the other, and the length of their data.
fn written(tensors: &[Row]) -> (String, u64) {
    let mut rows = Vec::new();
    let mut end = 0;
    for (name, dtype, shape, bytes) in tensors {
        let name = serde_json::to_string(name).unwrap();
        rows.push(format!(r#"{name}:{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{end},{}]}}"#, end + bytes));
        end += bytes;
    }
    (format!("{{{}}}", rows.join(",")), end as u64)
}

fn entry(name: &str, bytes: u64) -> Entry {
    Entry {
        name: name.to_string(),
        dtype: Dtype::U8,
        shape: vec![usize::try_from(bytes).unwrap()],
        begin: 0,
        end: bytes,
    }
}

proptest! {
    #[test]
    fn a_written_header_is_read_back(tensors in btree_map("[a-zü.\\\\\"]{1,9}", (0_usize..4, vec(0_usize..5, 0..4)), 0..20)) {
        let types = [("U8", 8), ("F32", 32), ("F8_E5M2", 8), ("F4", 4)];
        let rows: Vec<Row> = tensors
            .into_iter()
            .map(|(name, (kind, mut shape))| {
                let (dtype, bits) = types[kind];
                shape.push(2); // an even number of elements, so that half bytes end at a byte
                let bytes = shape.iter().product::<usize>() * bits / 8;
                (name, dtype, shape, bytes)
            })
            .collect();
        let (header, data_bytes) = written(&rows);
        let mut read = parse(header.as_bytes(), data_bytes).unwrap();
        read.sort_by(|left, right| left.name.cmp(&right.name));
        let found: Vec<_> = read.iter().map(|entry| (&entry.name, &entry.shape, usize::try_from(entry.bytes()).unwrap())).collect();
        let expected: Vec<_> = rows.iter().map(|(name, _, shape, bytes)| (name, shape, *bytes)).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn any_bytes_are_read_or_refused(content in vec(any::<u8>(), 0..200), data_bytes in 0_u64..100) {
        let _ = parse(&content, data_bytes);
        let _ = parse_index(&content);
    }
}

#[test]
fn a_name_that_is_there_twice_is_refused() {
    let header =
        br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    assert_eq!(parse(header, 2), Err(HeaderError::DuplicateName("a".to_string())));
}

#[test]
fn a_zero_byte_in_a_name_is_refused() {
    let header = br#"{"a\u0000b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    assert_eq!(parse(header, 1), Err(HeaderError::ZeroInName("a\0b".to_string())));
}

#[test]
fn data_that_ends_before_or_behind_the_file_is_refused() {
    let (header, _) = written(&[("a".to_string(), "U8", vec![4], 4)]);
    for held in [3, 5] {
        assert_eq!(parse(header.as_bytes(), held), Err(HeaderError::DataLength { said: 4, held }));
    }
}

#[test]
fn an_index_settles_copies_that_are_alike_and_no_others() {
    let index = parse_index(br#"{"weight_map":{"a":"x","b":"y"}}"#).unwrap();
    let alike = vec![vec![entry("a", 1)], vec![entry("a", 1), entry("b", 2)]];
    let joined = join(alike, Some(&index)).unwrap();
    assert_eq!((joined.names, joined.files), (vec!["a".to_string(), "b".to_string()], vec![0, 1]));
    let unlike = vec![vec![entry("a", 1)], vec![entry("a", 3), entry("b", 2)]];
    assert_eq!(join(unlike, Some(&index)).unwrap_err().file, 1);
}

#[test]
fn without_an_index_a_name_has_one_file() {
    let error = join(vec![vec![entry("a", 1)], vec![entry("a", 1)]], None).unwrap_err();
    assert_eq!(error.file, 1);
    assert!(error.reason.contains("'a'"), "{error}");
}

#[test]
fn a_tensor_that_its_file_lacks_is_named() {
    let index = parse_index(br#"{"weight_map":{"a":"x","b":"x"}}"#).unwrap();
    let error = join(vec![vec![entry("a", 1)]], Some(&index)).unwrap_err();
    assert!(error.reason.contains("'b'"), "{error}");
}

#[test]
fn a_tensor_that_the_index_does_not_list_is_kept_and_told() {
    let index = parse_index(br#"{"weight_map":{"a":"x"}}"#).unwrap();
    let joined = join(vec![vec![entry("a", 1), entry("z", 1)]], Some(&index)).unwrap();
    assert_eq!((joined.names.len(), joined.foreign), (2, vec![1]));
}
