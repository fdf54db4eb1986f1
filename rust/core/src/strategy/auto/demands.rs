//! What running a model takes beside its weights.

/// Bits that blocks need where they *run*, which is not where they lie when they are streamed: caches, buffers that stay,
/// activations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Demands {
    /// By execution position of a block: what lies where it runs from one block to the next. It adds up.
    pub exec_bits: Vec<u64>,
    /// By execution position of a block: what it needs while it runs. One block runs at a time, so a device needs the most of
    /// its blocks.
    pub peak_bits: Vec<u64>,
    /// By execution position of a block: part of its own bits that is where it runs even if it lies elsewhere, as buffers are
    /// that are not streamed. At home it is in the block's bits already.
    pub stay_bits: Vec<u64>,
    /// By device given: what it gives up where it runs anything.
    pub shared_bits: Vec<u64>,
}

impl Demands {
    /// What a block needs; nothing where nothing is said of it.
    pub(crate) fn of(&self, position: u32) -> Need {
        let at = |bits: &[u64]| bits.get(position as usize).copied().unwrap_or(0);
        Need { exec: at(&self.exec_bits), peak: at(&self.peak_bits) }
    }

    /// Of a block of some size, what stays where it runs.
    pub(crate) fn stay(&self, position: u32, block_bits: u64) -> u64 {
        self.stay_bits.get(position as usize).map_or(0, |&bits| bits.min(block_bits))
    }

    /// Something of blocks that lie elsewhere stays where they run.
    pub(crate) fn has_stays(&self) -> bool {
        self.stay_bits.iter().any(|&bits| bits > 0)
    }

    /// The same as if blocks that lie elsewhere were streamed as they are.
    pub(crate) fn without_stays(&self) -> Self {
        Self { stay_bits: Vec::new(), ..self.clone() }
    }

    /// What a device that runs anything gives up.
    pub(crate) fn shared(&self, device: u32) -> u64 {
        self.shared_bits.get(device as usize).copied().unwrap_or(0)
    }

    /// Plans are those of weights alone.
    pub(crate) fn is_nothing(&self) -> bool {
        let all = [&self.exec_bits, &self.peak_bits, &self.stay_bits, &self.shared_bits];
        all.iter().all(|bits| bits.iter().all(|&bits| bits == 0))
    }

    /// What blocks keep beside some total is less than a limit, and so is every need and every share.
    pub(crate) fn fits(&self, total: u64, limit: u64) -> bool {
        let sum = self.exec_bits.iter().try_fold(total, |sum, &bits| sum.checked_add(bits));
        sum.is_some_and(|sum| sum < limit) && self.peak_bits.iter().chain(&self.shared_bits).all(|&bits| bits < limit)
    }
}

/// What some blocks need where they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Need {
    /// The sum of what they keep.
    pub(crate) exec: u64,
    /// The most that one of them needs while it runs.
    pub(crate) peak: u64,
}

impl Need {
    pub(crate) fn and(self, other: Self) -> Self {
        Self { exec: self.exec.saturating_add(other.exec), peak: self.peak.max(other.peak) }
    }

    /// Of so many alike.
    pub(crate) fn times(self, count: u32) -> Self {
        if count == 0 { Self::default() } else { Self { exec: self.exec * u64::from(count), peak: self.peak } }
    }

    pub(crate) fn bits(self) -> u64 {
        self.exec.saturating_add(self.peak)
    }
}
