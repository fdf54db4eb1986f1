//! What one recording has seen, in columns: events in order, with numbers in the place of bytes, which are a table of their own.

use std::collections::HashMap;

use crate::ids::{NODE_LIMIT, id_at};

/// The storage of a weight, which no event makes.
pub const NO_STORAGE: u32 = u32::MAX;

/// A tensor in the arguments of a block, or in what a forward has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Its number.
    pub tensor: u32,
    /// That of its storage, or [`NO_STORAGE`].
    pub storage: u32,
    /// The place of that.
    pub place: u32,
    /// Which of the sizes it has.
    pub size: u32,
}

/// A stretch of the rows of a tape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowSpan {
    start: u32,
    end: u32,
}

/// What has happened. Place 1 is beside the first block, and place 0 where the inputs of the model lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A storage is there, which may be a copy of another one.
    Made {
        /// Its number.
        storage: u32,
        /// Which of the sizes it has.
        size: u32,
        /// Beside which block it lies.
        place: u32,
        /// Of a copy from beside another block, storage and place of what it is a copy of.
        copy_of: Option<(u32, u32)>,
    },
    /// Nobody holds a storage any more.
    Free(u32),
    /// A block is called with these tensors.
    Enter(u32, RowSpan),
    /// It has returned.
    Leave(u32),
    /// The model's own code computes beside this block with tensors that lie beside others.
    Apart(u32, RowSpan),
    /// The forward has put something else in the place of a weight.
    Dropped {
        /// Beside which block it lay.
        place: u32,
        /// Its bytes, which no workload changes.
        bytes: i64,
        /// The storage that is a copy of it, or [`NO_STORAGE`].
        copy: u32,
    },
    /// What the block of that place keeps goes to the cpu, and rests in this storage of its own.
    Rest {
        /// Its number.
        storage: u32,
        /// Which of the sizes it has.
        size: u32,
        /// Which block keeps it.
        place: u32,
    },
    /// A tensor that was in some row is gone.
    Forget(u32),
    /// A forward begins: which of the phases.
    Phase(u32),
    /// It has returned these tensors.
    Output(RowSpan),
    /// Its results have been taken.
    After,
    /// A module around blocks is called with these tensors.
    Call(u32, RowSpan),
}

/// A module around blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enclosing {
    /// Places of all tensors inside.
    pub inside: Vec<u32>,
    /// The place of the first tensor of its own.
    pub own: Option<u32>,
}

/// One recording. Made by [`TapeBuilder`], so every number in it is one of a list that is as long.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tape {
    pub(crate) blocks: u32,
    pub(crate) events: Vec<Event>,
    pub(crate) rows: Vec<Row>,
    pub(crate) phases: Vec<String>,
    pub(crate) enclosing: Vec<Enclosing>,
    pub(crate) carried: Vec<(u32, u32)>,
    pub(crate) storages: u32,
    pub(crate) tensors: u32,
}

impl Tape {
    /// Names of the forwards, in order.
    pub fn phases(&self) -> &[String] {
        &self.phases
    }

    /// Number of places: that of the inputs and one for each block.
    pub fn places(&self) -> usize {
        self.blocks as usize + 1
    }

    /// Whether anything is brought to the cpu to rest there.
    pub fn rests(&self) -> bool {
        self.events.iter().any(|event| matches!(event, Event::Rest { .. }))
    }

    pub(crate) fn rows(&self, span: RowSpan) -> &[Row] {
        &self.rows[span.start as usize..span.end as usize]
    }
}

/// Numbers that no recording has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OutOfRange {
    /// One that is not in its list.
    #[error("a recording has {count} {of}, and names number {number} of them")]
    Number {
        /// Which list.
        of: &'static str,
        /// Its length.
        count: usize,
        /// What is not in it.
        number: u32,
    },
    /// More blocks than a model can have.
    #[error("a recording of {blocks} blocks: a model has at most {limit}")]
    Blocks {
        /// How many.
        blocks: u32,
        /// The most.
        limit: usize,
    },
}

/// Makes a tape of what a recorder has written down, whose numbers of storages and tensors may be any.
#[derive(Debug, Default)]
pub struct TapeBuilder {
    tape: Tape,
    sizes: Vec<i128>,
    size_ids: HashMap<i128, u32>,
    storage_ids: HashMap<i64, u32>,
    tensor_ids: HashMap<i64, u32>,
}

impl TapeBuilder {
    /// A tape without events.
    ///
    /// # Errors
    /// Places that there are none of; more blocks than a model can have.
    pub fn new(blocks: u32, enclosing: Vec<Enclosing>, carried: Vec<(u32, u32)>) -> Result<Self, OutOfRange> {
        // All that is told of a recording has a row for each of them.
        if blocks as usize > NODE_LIMIT {
            return Err(OutOfRange::Blocks { blocks, limit: NODE_LIMIT });
        }
        let made = Self { tape: Tape { blocks, enclosing, carried, ..Tape::default() }, ..Self::default() };
        let places: Vec<u32> =
            made.tape.enclosing.iter().flat_map(|each| each.inside.iter().copied().chain(each.own)).collect();
        for place in places {
            made.require_block(place)?;
        }
        for number in 0..made.tape.carried.len() {
            let (enclosing, place) = made.tape.carried[number];
            made.require_enclosing(enclosing)?;
            // What is brought once more was brought before.
            require("places", made.tape.places() + number, place)?;
            if made.tape.enclosing[enclosing as usize].inside.is_empty() {
                return Err(OutOfRange::Number { of: "places inside a module around blocks", count: 0, number: 0 });
            }
        }
        Ok(made)
    }

    /// A storage appears.
    ///
    /// # Errors
    /// A place that there is none of.
    pub fn made(
        &mut self,
        storage: i64,
        size: i128,
        place: u32,
        copy_of: Option<(i64, u32)>,
    ) -> Result<(), OutOfRange> {
        self.require_place(place)?;
        let copy_of = match copy_of {
            Some((source, at)) => {
                self.require_place(at)?;
                Some((self.storage(source), at))
            }
            None => None,
        };
        let (storage, size) = (self.storage(storage), self.size(size));
        self.tape.events.push(Event::Made { storage, size, place, copy_of });
        Ok(())
    }

    /// A storage goes.
    pub fn freed(&mut self, storage: i64) {
        let storage = self.storage(storage);
        self.tape.events.push(Event::Free(storage));
    }

    /// A weight goes; `copy` is the storage that is a copy of it, or negative.
    ///
    /// # Errors
    /// A place that there is none of.
    pub fn dropped(&mut self, place: u32, bytes: i64, copy: i64) -> Result<(), OutOfRange> {
        self.require_place(place)?;
        let copy = self.storage(copy);
        self.tape.events.push(Event::Dropped { place, bytes, copy });
        Ok(())
    }

    /// Something is brought to the cpu, to rest there.
    ///
    /// # Errors
    /// A place that there is none of.
    pub fn rested(&mut self, storage: i64, size: i128, place: u32) -> Result<(), OutOfRange> {
        self.require_place(place)?;
        let (storage, size) = (self.storage(storage), self.size(size));
        self.tape.events.push(Event::Rest { storage, size, place });
        Ok(())
    }

    /// A tensor that was in a row goes.
    pub fn forgotten(&mut self, tensor: i64) {
        let tensor = self.tensor(tensor);
        self.tape.events.push(Event::Forget(tensor));
    }

    /// A block is called.
    ///
    /// # Errors
    /// A place that there is none of.
    pub fn entered(&mut self, place: u32, rows: &[(i64, i64, u32, i128)]) -> Result<(), OutOfRange> {
        self.require_block(place)?;
        let span = self.span(rows)?;
        self.tape.events.push(Event::Enter(place, span));
        Ok(())
    }

    /// It returns.
    ///
    /// # Errors
    /// A place that there is none of.
    pub fn left(&mut self, place: u32) -> Result<(), OutOfRange> {
        self.require_block(place)?;
        self.tape.events.push(Event::Leave(place));
        Ok(())
    }

    /// The model's own code computes beside a block.
    ///
    /// # Errors
    /// A place that there is none of.
    pub fn apart(&mut self, place: u32, rows: &[(i64, i64, u32, i128)]) -> Result<(), OutOfRange> {
        self.require_place(place)?;
        let span = self.span(rows)?;
        self.tape.events.push(Event::Apart(place, span));
        Ok(())
    }

    /// A module around blocks is called.
    ///
    /// # Errors
    /// A place or a module that there is none of.
    pub fn called(&mut self, enclosing: u32, rows: &[(i64, i64, u32, i128)]) -> Result<(), OutOfRange> {
        self.require_enclosing(enclosing)?;
        let span = self.span(rows)?;
        self.tape.events.push(Event::Call(enclosing, span));
        Ok(())
    }

    /// A forward begins.
    pub fn begun(&mut self, phase: String) {
        self.tape.events.push(Event::Phase(id_at(self.tape.phases.len())));
        self.tape.phases.push(phase);
    }

    /// A forward has returned something.
    ///
    /// # Errors
    /// A place that there is none of.
    pub fn returned(&mut self, rows: &[(i64, i64, u32, i128)]) -> Result<(), OutOfRange> {
        let span = self.span(rows)?;
        self.tape.events.push(Event::Output(span));
        Ok(())
    }

    /// Its results have been taken.
    pub fn taken(&mut self) {
        self.tape.events.push(Event::After);
    }

    /// The tape, and the bytes that its sizes stand for.
    pub fn finish(mut self) -> (Tape, Vec<i128>) {
        self.tape.storages = id_at(self.storage_ids.len());
        self.tape.tensors = id_at(self.tensor_ids.len());
        (self.tape, self.sizes)
    }

    fn span(&mut self, rows: &[(i64, i64, u32, i128)]) -> Result<RowSpan, OutOfRange> {
        let start = id_at(self.tape.rows.len());
        for &(tensor, storage, place, size) in rows {
            self.require_place(place)?;
            let row = Row { tensor: self.tensor(tensor), storage: self.storage(storage), place, size: self.size(size) };
            self.tape.rows.push(row);
        }
        Ok(RowSpan { start, end: id_at(self.tape.rows.len()) })
    }

    fn size(&mut self, size: i128) -> u32 {
        let next = id_at(self.sizes.len());
        let found = *self.size_ids.entry(size).or_insert(next);
        if found == next {
            self.sizes.push(size);
        }
        found
    }

    fn storage(&mut self, storage: i64) -> u32 {
        if storage < 0 {
            return NO_STORAGE;
        }
        let next = id_at(self.storage_ids.len());
        *self.storage_ids.entry(storage).or_insert(next)
    }

    fn tensor(&mut self, tensor: i64) -> u32 {
        let next = id_at(self.tensor_ids.len());
        *self.tensor_ids.entry(tensor).or_insert(next)
    }

    fn require_place(&self, place: u32) -> Result<(), OutOfRange> {
        require("places", self.tape.places() + self.tape.carried.len(), place)
    }

    fn require_block(&self, place: u32) -> Result<(), OutOfRange> {
        require("places of blocks", self.tape.places(), place)
    }

    fn require_enclosing(&self, enclosing: u32) -> Result<(), OutOfRange> {
        require("modules around blocks", self.tape.enclosing.len(), enclosing)
    }
}

fn require(of: &'static str, count: usize, number: u32) -> Result<(), OutOfRange> {
    if (number as usize) < count { Ok(()) } else { Err(OutOfRange::Number { of, count, number }) }
}
