//! What a timed strategy takes and gives: times are picoseconds and room is bits, all integers, so that equal problems give equal
//! plans on every machine.

/// Stands for what cannot be; a few such numbers add up without overflow.
pub(crate) const NEVER: u64 = 1 << 61;

/// The most that all times of a line may come to together.
pub const MOST_PS: u64 = 1 << 58;

/// One piece of the line: what is run as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Its weights, where it is at home.
    pub bits: u64,
    /// What lies where it runs: a cache, and what outlasts a step.
    pub state_bits: u64,
    /// Room that bringing it in takes where it runs.
    pub streamed_bits: u64,
    /// Kinds that may be its home, a bit each. Only what may lie on the host can be brought in from there, or run there.
    pub homes: u64,
    /// By kind: time to run it there; `None` where it may not.
    pub run_ps: Vec<Option<u64>>,
    /// By kind: time to bring its weights in from the host; `None` where it may not be.
    pub fetch_ps: Vec<Option<u64>>,
    /// Time to run it on the host from within the run of another device, without the two hops. Only what has no state may.
    pub host_ps: Option<u64>,
    /// By kind: room that is kept where it lies on the host and runs there from within a run of this kind, because longer steps bring
    /// it in; 0 where none does.
    pub beside_bits: Vec<u64>,
}

/// Devices that are alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineKind {
    /// Room, without what each device that runs anything gives up.
    pub capacity_bits: u64,
    /// To the host and back: what a piece takes beyond its own time when it runs there.
    pub hops_ps: u64,
    /// It is the host: nothing of its run lies elsewhere.
    pub is_host: bool,
}

/// How bringing in and running go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Schedule {
    /// One after the other: a run takes both.
    #[default]
    Serial,
    /// Side by side: a run takes the longer of both.
    Overlapped,
}

/// Pieces in execution order, and the devices that may run them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Pieces.
    pub pieces: Vec<Piece>,
    /// Kinds of devices.
    pub kinds: Vec<LineKind>,
    /// The kind of each device, in the order given.
    pub devices: Vec<usize>,
    /// By kind and kind: time for what passes from one run to the next.
    pub hop_ps: Vec<Vec<u64>>,
    /// By border, that before a piece: what passes there; empty where all of them are `Passing::default()`.
    pub passing: Vec<Passing>,
    /// Schedule.
    pub schedule: Schedule,
    /// Pieces for which room is kept while they are brought in.
    pub staging_blocks: u64,
}

/// How often a hop is made where a run ends and the next begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passing {
    /// To the device of the next run.
    pub on: u64,
    /// Back to that of the one before: what is called from there, inside of a layer that is cut, returns. No run of the host ends at
    /// such a border, because a layer is run from an accelerator that has a part of it.
    pub back: u64,
}

impl Default for Passing {
    fn default() -> Self {
        Self { on: 1, back: 0 }
    }
}

impl Line {
    /// What passes from one kind to another at a border, the number of the piece after it.
    pub(crate) fn passing_ps(&self, border: usize, from: usize, to: usize) -> u64 {
        match self.passing.get(border) {
            None => self.hop_ps[from][to],
            Some(Passing { on, back }) => on * self.hop_ps[from][to] + back * self.hop_ps[to][from],
        }
    }
}

/// What is to be small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objective {
    /// The sum of all runs and of the hops between them.
    Latency,
    /// The longest run.
    Throughput,
    /// The first of some batches, and as often the longest run as there are others.
    Pipeline {
        /// Batches.
        batches: u64,
    },
}

impl Objective {
    /// The value of a plan.
    pub(crate) fn value(self, latency_ps: u64, bottleneck_ps: u64) -> u64 {
        match self {
            Self::Latency => latency_ps,
            Self::Throughput => bottleneck_ps,
            Self::Pipeline { batches } => latency_ps.saturating_add((batches - 1).saturating_mul(bottleneck_ps)),
        }
    }
}

/// What is asked of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// What is to be small.
    pub objective: Objective,
    /// Runs may follow each other in any order of devices, not only in the order given.
    pub any_order: bool,
    /// Limit of the search; the same problem always takes the same steps.
    pub search_steps: u64,
}

/// Where a piece lies and what runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PieceWay {
    /// On the device of its run.
    Resident,
    /// On the host, brought in.
    Fetched,
    /// On the host, which runs it.
    Beside,
    /// Where its tie is at home, which runs it.
    Tied,
}

/// Consecutive pieces that one device runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimedRun {
    /// Device, by number in the order given.
    pub device: usize,
    /// First piece.
    pub from: usize,
    /// One past the last.
    pub to: usize,
    /// Its time.
    pub ps: u64,
    /// Where each of its pieces lies and runs.
    pub ways: Vec<PieceWay>,
}

/// A plan, and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimedPlan {
    /// Runs in execution order.
    pub runs: Vec<TimedRun>,
    /// All runs and the hops between them.
    pub latency_ps: u64,
    /// The longest run.
    pub bottleneck_ps: u64,
    /// What was to be small.
    pub value_ps: u64,
    /// No plan in which each device has at most one run is better than this.
    pub lower_bound_ps: u64,
    /// Steps that the search took.
    pub steps: u64,
}

impl TimedPlan {
    /// No plan of runs is better.
    pub fn is_proven(&self) -> bool {
        self.value_ps == self.lower_bound_ps
    }
}
