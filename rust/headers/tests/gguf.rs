//! What the GGUF reader accepts is what was written; what it refuses, it names. Lists of hostile files stand in
//! `tests/unit/test_gguf.py`, which reads them through the package.
#![allow(clippy::unwrap_used)]

use planner_headers::{Fact, GGML_TYPES, GgmlType, Gguf, HEADER_BYTES, HeaderError, join_gguf, parse_gguf};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat()
}

/// A file with integers as facts and these tensors, one after the other.
fn written(facts: &[(&str, u32)], tensors: &[(String, GgmlType, Vec<u64>)]) -> Vec<u8> {
    let mut content = b"GGUF\x03\0\0\0".to_vec();
    content.extend((tensors.len() as u64).to_le_bytes());
    content.extend((facts.len() as u64).to_le_bytes());
    for (name, value) in facts {
        content.extend([text(name), 4_u32.to_le_bytes().to_vec(), value.to_le_bytes().to_vec()].concat());
    }
    let mut end = 0_u64;
    for (name, kind, shape) in tensors {
        content.extend(text(name));
        content.extend(u32::try_from(shape.len()).unwrap().to_le_bytes());
        content.extend(shape.iter().flat_map(|size| size.to_le_bytes()));
        content.extend(kind.number.to_le_bytes());
        content.extend(end.to_le_bytes());
        end = (end + kind.bytes(shape).unwrap()).next_multiple_of(32);
    }
    content.resize(content.len().next_multiple_of(32) + usize::try_from(end).unwrap(), 0);
    content
}

fn read(content: &[u8]) -> Result<Gguf, HeaderError> {
    parse_gguf(content, content.len() as u64, HEADER_BYTES).map(|(gguf, _)| gguf)
}

proptest! {
    #[test]
    fn a_written_file_is_read_back(tensors in btree_map("[a-zü.]{1,9}", (0..GGML_TYPES.len(), vec(0_u64..3, 0..4)), 0..20)) {
        let rows: Vec<(String, GgmlType, Vec<u64>)> = tensors
            .into_iter()
            .map(|(name, (kind, mut shape))| {
                let kind = GGML_TYPES[kind];
                if let Some(row) = shape.first_mut() { *row *= kind.block_elements } else { shape.push(kind.block_elements) }
                (name, kind, shape)
            })
            .collect();
        let gguf = read(&written(&[("n", 7)], &rows)).unwrap();
        let found: Vec<_> = gguf.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.kind, tensor.shape.clone())).collect();
        prop_assert_eq!(found, rows);
        prop_assert!(gguf.tensors.iter().all(|tensor| Some(tensor.bytes) == tensor.kind.bytes(&tensor.shape)));
        prop_assert_eq!(gguf.facts, vec![("n".to_string(), Fact::Integer(7))]);
    }

    #[test]
    fn any_bytes_are_read_or_refused(mut content in vec(any::<u8>(), 24..300), places in vec((0_usize..300, any::<u8>()), 0..4)) {
        content.splice(..8, *b"GGUF\x03\0\0\0");
        let _ = read(&content);
        // Small counts, so that more than the beginning is read; and files that are nearly right.
        content.splice(8..24, [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        let _ = read(&content);
        let mut near = written(&[("n", 7)], &[("a".to_string(), GGML_TYPES[0], vec![4])]);
        for (place, byte) in places {
            let place = place % near.len();
            near[place] = byte;
        }
        let _ = read(&near);
    }
}

#[test]
fn a_header_that_is_larger_than_may_be_read_is_refused() {
    let content = written(&[("n", 7)], &[]);
    let error = parse_gguf(&content[..], content.len() as u64, 30).unwrap_err();
    assert!(matches!(error, HeaderError::HeaderTooLarge { most: 30, .. }), "{error}");
}

#[test]
fn every_type_has_one_number_and_whole_blocks() {
    for kind in GGML_TYPES {
        assert_eq!(GgmlType::of(kind.number), Some(kind));
        assert_eq!(kind.bytes(&[kind.block_elements * 2, 3]), Some(kind.block_bytes * 6));
        assert_eq!(kind.bytes(&[u64::MAX - u64::MAX % kind.block_elements, 1 << 40]), None);
    }
    assert_eq!((GgmlType::of(4), GGML_TYPES[2].bytes(&[33])), (None, None));
}

#[test]
fn files_of_one_model_say_which_they_are() {
    let file = |no, count, name: &str| {
        read(&written(&[("split.no", no), ("split.count", count)], &[(name.to_string(), GGML_TYPES[0], vec![1])]))
            .unwrap()
    };
    let names = |files: &[Gguf]| -> Result<Vec<String>, String> {
        let joined = join_gguf(files).map_err(|error| error.reason)?;
        Ok(joined.into_iter().map(|tensor| tensor.name.clone()).collect())
    };
    assert_eq!(names(&[file(0, 2, "a"), file(1, 2, "b")]), Ok(vec!["a".to_string(), "b".to_string()]));
    assert_eq!(names(&[file(0, 0, "a")]), Ok(vec!["a".to_string()]), "0 is all in one");
    for (files, reason) in [
        (vec![file(0, 2, "a")], "one of 2 files; 1 are there"),
        (vec![file(1, 2, "a"), file(0, 2, "b")], "that it is file 1 of 2"),
        (vec![file(0, 2, "a"), file(1, 2, "a")], "holds 'a', which file number 1 holds too"),
    ] {
        let found = names(&files).unwrap_err();
        assert!(found.contains(reason), "{found}");
    }
}
