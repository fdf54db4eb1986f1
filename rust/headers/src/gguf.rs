//! The header of a GGUF file: what it says of the model, and its tensors. Versions 2 and 3, little-endian.
//!
//! Source: docs/gguf.md and src/gguf.cpp of ggml; the limits that ggml does not have are ours.

use std::collections::HashSet;
use std::io::BufRead;

use crate::FILE_TENSORS;
use crate::error::{HeaderError, shown};
use crate::ggml::GgmlType;

const MAGIC: [u8; 4] = *b"GGUF";
const VERSIONS: [u32; 2] = [2, 3];
/// Most facts of one file, most bytes of a key, most bytes of a text that is kept, most arrays inside arrays.
const FACTS: u64 = 1 << 16;
const KEY_BYTES: u64 = 65_535;
const TEXT_BYTES: u64 = 4096;
const ARRAY_DEPTH: u32 = 4;
/// The least bytes that a fact and a tensor take: a header cannot promise more of them than it has room for.
const LEAST_FACT_BYTES: u64 = 13;
const LEAST_TENSOR_BYTES: u64 = 24;
/// As many dimensions as ggml's tensors have, and as many bytes as its names.
const DIMENSIONS: u32 = 4;
const NAME_BYTES: u64 = 64;
const ALIGNMENT: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u64 = 32;

/// One value that a file says of its model; lists, which are of the tokenizer mostly, are passed over.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    /// A whole number.
    Integer(i128),
    /// A floating-point number.
    Float(f64),
    /// A truth value.
    Boolean(bool),
    /// A text, if it is not longer than 4096 bytes.
    Text(String),
}

/// One tensor, as a GGUF header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufEntry {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub kind: GgmlType,
    /// Sizes by dimension, the innermost first, as in the file.
    pub shape: Vec<u64>,
    /// Bytes in the file, without what fills up to the next tensor.
    pub bytes: u64,
}

/// What a GGUF file says before its data.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Gguf {
    /// Facts by name, in order.
    pub facts: Vec<(String, Fact)>,
    /// Tensors in order.
    pub tensors: Vec<GgufEntry>,
}

impl Gguf {
    /// A fact that is a whole number.
    pub fn integer(&self, name: &str) -> Option<i128> {
        self.facts.iter().find_map(|(known, fact)| match fact {
            Fact::Integer(value) if known == name => Some(*value),
            _ => None,
        })
    }
}

/// Reads a header from the beginning of a file of so many bytes, of which at most `most_bytes` may be header.
///
/// # Errors
///
/// Anything but a header whose tensors follow each other as ggml writes them and end within the file.
///
/// # Cost
///
/// O(bytes of the header); lists and long texts are passed over, so memory is that of names.
pub fn parse_gguf(source: impl BufRead, file_bytes: u64, most_bytes: u64) -> Result<(Gguf, u64), HeaderError> {
    let mut reader = Reader { source, at: 0, end: file_bytes.min(most_bytes), file_bytes };
    let (tensor_count, fact_count) = reader.beginning()?;
    let mut gguf = Gguf::default();
    let mut known = HashSet::new();
    for _ in 0..fact_count {
        let name = reader.text(KEY_BYTES, "a key")?;
        let kind = reader.u32()?;
        if let Some(fact) = reader.value(kind)? {
            gguf.facts.push((name.clone(), fact));
        }
        if known.contains(&name) {
            return Err(HeaderError::DuplicateName(shown(&name)));
        }
        known.insert(name);
    }
    let alignment = alignment(&gguf)?;
    let mut names = HashSet::new();
    let mut end = 0_u64;
    for _ in 0..tensor_count {
        let (tensor, offset) = reader.tensor()?;
        if !names.insert(tensor.name.clone()) {
            return Err(HeaderError::DuplicateName(shown(&tensor.name)));
        }
        // As ggml requires it: one tensor after the other, each at the next multiple.
        let expected = end.checked_next_multiple_of(alignment);
        if expected != Some(offset) {
            let name = shown(&tensor.name);
            return Err(HeaderError::Inconsistent(format!("'{name}' is not where the tensor before it ends")));
        }
        end = offset.checked_add(tensor.bytes).ok_or_else(too_large)?;
        gguf.tensors.push(tensor);
    }
    let start = reader.at.checked_next_multiple_of(alignment).ok_or_else(too_large)?;
    let held = file_bytes.saturating_sub(start);
    if end > held {
        return Err(HeaderError::DataLength { said: end, held });
    }
    Ok((gguf, reader.at))
}

fn alignment(gguf: &Gguf) -> Result<u64, HeaderError> {
    let Some(said) = gguf.integer(ALIGNMENT) else { return Ok(DEFAULT_ALIGNMENT) };
    let alignment = u32::try_from(said).ok().filter(|value| value.is_power_of_two());
    alignment.map(u64::from).ok_or_else(|| malformed(format!("{ALIGNMENT} is {said}, not a power of two")))
}

fn malformed(reason: impl Into<String>) -> HeaderError {
    HeaderError::Malformed(reason.into())
}

fn too_large() -> HeaderError {
    HeaderError::Inconsistent("its tensors are larger than any file".to_string())
}

/// Bytes of a value of a fixed size, by the number of its type.
fn value_bytes(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

const TEXT: u32 = 8;
const ARRAY: u32 = 9;

struct Reader<R> {
    source: R,
    at: u64,
    end: u64,
    file_bytes: u64,
}

impl<R: BufRead> Reader<R> {
    /// How many tensors and facts there are.
    fn beginning(&mut self) -> Result<(u64, u64), HeaderError> {
        if self.file_bytes < 8 || self.bytes::<4>()? != MAGIC {
            return Err(HeaderError::NotGguf);
        }
        let version = self.u32()?;
        if VERSIONS.contains(&version.swap_bytes()) {
            return Err(HeaderError::BigEndian);
        }
        if !VERSIONS.contains(&version) {
            return Err(HeaderError::GgufVersion(version));
        }
        let (tensors, facts) = (self.u64()?, self.u64()?);
        if tensors > FILE_TENSORS as u64 {
            return Err(malformed(format!("{tensors} tensors; at most {FILE_TENSORS} are read")));
        }
        if facts > FACTS {
            return Err(malformed(format!("{facts} facts; at most {FACTS} are read")));
        }
        self.require(facts * LEAST_FACT_BYTES + tensors * LEAST_TENSOR_BYTES)?;
        Ok((tensors, facts))
    }

    fn tensor(&mut self) -> Result<(GgufEntry, u64), HeaderError> {
        let name = self.text(NAME_BYTES, "the name of a tensor")?;
        if name.contains('\0') {
            return Err(HeaderError::ZeroInName(shown(&name)));
        }
        let dimensions = self.u32()?;
        if dimensions > DIMENSIONS {
            return Err(malformed(format!("'{}' has {dimensions} dimensions", shown(&name))));
        }
        let shape = (0..dimensions).map(|_| self.u64()).collect::<Result<Vec<u64>, _>>()?;
        let number = self.u32()?;
        let kind = GgmlType::of(number)
            .ok_or_else(|| malformed(format!("'{}' has the type number {number}, which is not known", shown(&name))))?;
        let Some(bytes) = kind.bytes(&shape) else {
            let reason = format!("'{}' of shape {shape:?} has no whole blocks of {}", shown(&name), kind.name);
            return Err(HeaderError::Inconsistent(reason));
        };
        let offset = self.u64()?;
        Ok((GgufEntry { name, kind, shape, bytes }, offset))
    }

    /// A value; `None` for what is passed over.
    fn value(&mut self, kind: u32) -> Result<Option<Fact>, HeaderError> {
        Ok(Some(match kind {
            0 => Fact::Integer(u8::from_le_bytes(self.bytes()?).into()),
            1 => Fact::Integer(i8::from_le_bytes(self.bytes()?).into()),
            2 => Fact::Integer(u16::from_le_bytes(self.bytes()?).into()),
            3 => Fact::Integer(i16::from_le_bytes(self.bytes()?).into()),
            4 => Fact::Integer(self.u32()?.into()),
            5 => Fact::Integer(i32::from_le_bytes(self.bytes()?).into()),
            6 => Fact::Float(f32::from_le_bytes(self.bytes()?).into()),
            7 => Fact::Boolean(self.bytes::<1>()? != [0]),
            TEXT => return self.kept_text(),
            ARRAY => return self.pass_array(0).map(|()| None),
            10 => Fact::Integer(self.u64()?.into()),
            11 => Fact::Integer(i64::from_le_bytes(self.bytes()?).into()),
            12 => Fact::Float(f64::from_le_bytes(self.bytes()?)),
            _ => return Err(malformed(format!("a value of the type number {kind}, which is not known"))),
        }))
    }

    fn kept_text(&mut self) -> Result<Option<Fact>, HeaderError> {
        let length = self.u64()?;
        if length > TEXT_BYTES {
            return self.pass(length).map(|()| None);
        }
        // What is not UTF-8 is no fact that can be shown; ggml does not look.
        Ok(String::from_utf8(self.content(length)?).ok().map(Fact::Text))
    }

    fn pass_array(&mut self, depth: u32) -> Result<(), HeaderError> {
        if depth == ARRAY_DEPTH {
            return Err(malformed(format!("lists are nested more than {ARRAY_DEPTH} deep")));
        }
        let (kind, count) = (self.u32()?, self.u64()?);
        if let Some(bytes) = value_bytes(kind) {
            let bytes = count.checked_mul(bytes).ok_or_else(|| self.truncated(u64::MAX))?;
            return self.pass(bytes);
        }
        // Each takes at least its length, so a count that is too large ends with the header.
        match kind {
            TEXT => (0..count).try_for_each(|_| {
                let length = self.u64()?;
                self.pass(length)
            }),
            ARRAY => (0..count).try_for_each(|_| self.pass_array(depth + 1)),
            _ => Err(malformed(format!("a list of the type number {kind}, which is not known"))),
        }
    }

    fn text(&mut self, most_bytes: u64, what: &str) -> Result<String, HeaderError> {
        let length = self.u64()?;
        if length > most_bytes {
            return Err(malformed(format!("{what} has {length} bytes; at most {most_bytes} are allowed")));
        }
        String::from_utf8(self.content(length)?).map_err(|error| malformed(format!("{what} is not UTF-8: {error}")))
    }

    /// Bytes that are few, by what callers have checked.
    fn content(&mut self, length: u64) -> Result<Vec<u8>, HeaderError> {
        self.require(length)?;
        let mut content = vec![0; usize::try_from(length).map_err(|_| self.truncated(length))?];
        self.source.read_exact(&mut content).map_err(planner_reading::FileError::from)?;
        self.at += length;
        Ok(content)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], HeaderError> {
        self.require(N as u64)?;
        let mut content = [0; N];
        self.source.read_exact(&mut content).map_err(planner_reading::FileError::from)?;
        self.at += N as u64;
        Ok(content)
    }

    fn u32(&mut self) -> Result<u32, HeaderError> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, HeaderError> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn pass(&mut self, length: u64) -> Result<(), HeaderError> {
        self.require(length)?;
        let mut left = length;
        while left > 0 {
            let there = self.source.fill_buf().map_err(planner_reading::FileError::from)?.len();
            let step = usize::try_from(left).map_or(there, |left| left.min(there));
            if step == 0 {
                return Err(self.truncated(length));
            }
            self.source.consume(step);
            left -= step as u64;
        }
        self.at += length;
        Ok(())
    }

    /// Whether so many bytes more are in the file, and may be read.
    fn require(&self, length: u64) -> Result<(), HeaderError> {
        if length <= self.end - self.at { Ok(()) } else { Err(self.truncated(length)) }
    }

    fn truncated(&self, length: u64) -> HeaderError {
        let said = self.at.saturating_add(length);
        if said > self.file_bytes {
            HeaderError::HeaderTruncated { said, file_bytes: self.file_bytes }
        } else {
            HeaderError::HeaderTooLarge { said, most: self.end }
        }
    }
}
