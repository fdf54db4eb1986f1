//! An index: which file holds which tensor.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::error::{HeaderError, shown};
use crate::file::read_whole;
use crate::{ALL_TENSORS, INDEX_BYTES};

/// Files of a checkpoint, and the file of each tensor.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// Names of files, in the order in which they are met.
    pub files: Vec<String>,
    /// Number of the file by name of the tensor.
    pub file_of: HashMap<String, u32>,
}

/// Reads an index file.
///
/// # Errors
///
/// Whatever keeps it from being read, or anything but JSON with an object of strings as `weight_map`.
///
/// # Cost
///
/// O(bytes), and about as much memory as the file has, whatever it says.
pub fn read_index(path: &Path) -> Result<Index, HeaderError> {
    parse_index(&read_whole(path, INDEX_BYTES)?)
}

/// As [`read_index`], from the file's content.
///
/// # Errors
///
/// Anything but JSON with an object of strings as `weight_map`.
pub fn parse_index(content: &[u8]) -> Result<Index, HeaderError> {
    let text = str::from_utf8(content).map_err(|error| HeaderError::BadIndex(format!("not UTF-8: {error}")))?;
    let parsed: Root = serde_json::from_str(text).map_err(|error| HeaderError::BadIndex(error.to_string()))?;
    match parsed.0 {
        Some(index) if !index.files.is_empty() => Ok(index),
        Some(_) => Err(HeaderError::BadIndex("weight_map is empty".to_string())),
        None => Err(HeaderError::BadIndex("it has no weight_map".to_string())),
    }
}

struct Root(Option<Index>);

impl<'de> Deserialize<'de> for Root {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RootVisitor)
    }
}

struct RootVisitor;

impl<'de> Visitor<'de> for RootVisitor {
    type Value = Root;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object with a weight_map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Root, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<String>()? {
            if key != "weight_map" {
                map.next_value::<IgnoredAny>()?;
            } else if found.is_some() {
                return Err(A::Error::custom("weight_map is there twice"));
            } else {
                found = Some(map.next_value::<WeightMap>()?.0);
            }
        }
        Ok(Root(found))
    }
}

struct WeightMap(Index);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(WeightMapVisitor)
    }
}

struct WeightMapVisitor;

impl<'de> Visitor<'de> for WeightMapVisitor {
    type Value = WeightMap;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a weight_map of file names by tensor name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
        let mut index = Index::default();
        let mut numbers: HashMap<String, u32> = HashMap::new();
        while let Some((name, file)) = map.next_entry::<String, String>()? {
            if index.file_of.len() == ALL_TENSORS {
                return Err(A::Error::custom(format_args!("more than {ALL_TENSORS} tensors")));
            }
            let next = u32::try_from(index.files.len()).map_err(A::Error::custom)?;
            let number = *numbers.entry(file).or_insert_with_key(|file| {
                index.files.push(file.clone());
                next
            });
            if index.file_of.insert(name.clone(), number).is_some_and(|other| other != number) {
                return Err(A::Error::custom(format_args!("'{}' is in two files", shown(&name))));
            }
        }
        Ok(WeightMap(index))
    }
}
