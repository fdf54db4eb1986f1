//! The limit of the search.

/// Steps left and taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steps {
    left: u64,
    taken: u64,
}

impl Steps {
    pub(crate) fn new(limit: u64) -> Self {
        Self { left: limit, taken: 0 }
    }

    /// Takes steps; false when so many are not left.
    pub(crate) fn take(&mut self, count: u64) -> bool {
        let is_enough = count <= self.left;
        // All that is left goes: work was done for it, and the next question fails at once.
        let count = count.min(self.left);
        self.left -= count;
        self.taken += count;
        is_enough
    }

    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// The same with no more than some left.
    pub(crate) fn at_most(self, limit: u64) -> Self {
        Self { left: self.left.min(limit), ..self }
    }

    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// A part of what is left, for one part of the search; `join` gives back what it did not use.
    pub(crate) fn share(&mut self, limit: u64) -> Self {
        let limit = limit.min(self.left);
        self.left -= limit;
        Self { left: limit, taken: 0 }
    }

    pub(crate) fn join(&mut self, part: Self) {
        self.left += part.left;
        self.taken += part.taken;
    }
}
