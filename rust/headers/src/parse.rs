//! A header's JSON as entries. The crate `safetensors` knows element types and checks offsets; what it lets through is
//! refused here: keys that are there twice, names with a zero byte, more tensors or dimensions than any model has.

use std::fmt;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::error::{HeaderError, shown};
use crate::{DIMENSIONS, FILE_TENSORS};

/// One tensor, as a header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Sizes by dimension.
    pub shape: Vec<usize>,
    /// Where its bytes begin in the file.
    pub begin: u64,
    /// Where they end.
    pub end: u64,
}

impl Entry {
    /// Bytes in the file.
    pub fn bytes(&self) -> u64 {
        self.end - self.begin
    }
}

/// Reads a header, in order of offsets.
///
/// # Errors
///
/// Anything but JSON of the right form, without duplicates, whose tensors follow each other without gaps or overlaps and
/// end where the file does.
///
/// # Cost
///
/// O(n log n) in the header's bytes, and about as much memory as the header takes, whatever it says.
pub fn parse(header: &[u8], data_bytes: u64) -> Result<Vec<Entry>, HeaderError> {
    // All of it, before anything is read: values that are skipped would not be looked at.
    let text = str::from_utf8(header).map_err(|error| HeaderError::Malformed(format!("not UTF-8: {error}")))?;
    let raw: RawHeader = serde_json::from_str(text).map_err(|error| HeaderError::Malformed(error.to_string()))?;
    let mut tensors = raw.0;
    tensors.sort_unstable_by(|left, right| left.0.cmp(&right.0));
    if let Some(pair) = tensors.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(HeaderError::DuplicateName(shown(&pair[0].0)));
    }
    if let Some((name, _)) = tensors.iter().find(|(name, _)| name.contains('\0')) {
        return Err(HeaderError::ZeroInName(shown(name)));
    }
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let data_begin = 8 + header.len() as u64;
    let entries: Vec<Entry> = tensors.iter().map(|tensor| entry(tensor, data_begin)).collect();
    let checked = Metadata::new(None, tensors).map_err(|error| HeaderError::Inconsistent(error.to_string()))?;
    match checked.data_len() as u64 {
        said if said == data_bytes => Ok(entries),
        said => Err(HeaderError::DataLength { said, held: data_bytes }),
    }
}

fn entry((name, info): &(String, TensorInfo), data_begin: u64) -> Entry {
    // Checked by `Metadata::new` before the entry is returned.
    let (begin, end) = info.data_offsets;
    let in_file = |offset: usize| data_begin.saturating_add(offset as u64);
    Entry { name: name.clone(), dtype: info.dtype, shape: info.shape.clone(), begin: in_file(begin), end: in_file(end) }
}

struct RawHeader(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut tensors = Vec::new();
        let mut has_metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if has_metadata {
                    return Err(A::Error::custom("__metadata__ is there twice"));
                }
                has_metadata = true;
                map.next_value::<TextPairs>()?;
                continue;
            }
            if tensors.len() == FILE_TENSORS {
                return Err(A::Error::custom(format_args!("more than {FILE_TENSORS} tensors")));
            }
            let RawInfo { dtype, shape: Shape(shape), data_offsets } = map.next_value()?;
            tensors.push((name, TensorInfo { dtype, shape, data_offsets }));
        }
        Ok(RawHeader(tensors))
    }
}

#[derive(serde::Deserialize)]
struct RawInfo {
    dtype: Dtype,
    shape: Shape,
    data_offsets: (usize, usize),
}

struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of sizes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sizes: A) -> Result<Shape, A::Error> {
        let mut shape = Vec::new();
        while let Some(size) = sizes.next_element()? {
            if shape.len() == DIMENSIONS {
                return Err(A::Error::custom(format_args!("a tensor of more than {DIMENSIONS} dimensions")));
            }
            shape.push(size);
        }
        Ok(Shape(shape))
    }
}

/// Free text about the file: must be an object of strings; not kept.
struct TextPairs;

impl<'de> Deserialize<'de> for TextPairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = TextPairs;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TextPairs, A::Error> {
        while map.next_entry::<String, String>()?.is_some() {}
        Ok(TextPairs)
    }
}
