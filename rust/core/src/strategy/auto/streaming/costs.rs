//! What each kind of device offloads of what it runs, by vectors of counts.

use crate::strategy::auto::instance::Instance;
use crate::strategy::auto::packing::offload::are_alike;
use crate::strategy::auto::streaming::keep::Keeper;

/// Vectors that a table may hold.
const MOST_VECTORS: usize = 8_192;

/// Not asked for yet; no sum of sizes is as large.
const UNKNOWN: u64 = u64::MAX - 1;

/// Vectors of counts as numbers with a digit for each class; sums and differences of numbers are those of vectors.
#[derive(Debug)]
pub(crate) struct Vectors {
    /// Classes that are in a count.
    pub(crate) classes: Vec<usize>,
    pub(crate) counts: Vec<u32>,
    pub(crate) strides: Vec<usize>,
    pub(crate) len: usize,
}

impl Vectors {
    /// Nothing where there are too many.
    fn new(instance: &Instance) -> Option<Self> {
        let weighs = |&class: &usize| !instance.classes[class].is_weightless;
        let classes: Vec<usize> = (0..instance.classes.len()).filter(weighs).collect();
        let counts: Vec<u32> = classes.iter().map(|&class| instance.classes[class].count()).collect();
        let (mut strides, mut len) = (Vec::new(), 1usize);
        for &count in &counts {
            strides.push(len);
            len = len.checked_mul(count as usize + 1).filter(|&len| len <= MOST_VECTORS)?;
        }
        Some(Self { classes, counts, strides, len })
    }

    pub(crate) fn digit(&self, vector: usize, dimension: usize) -> usize {
        vector / self.strides[dimension] % (self.counts[dimension] as usize + 1)
    }

    /// By class of the instance.
    pub(crate) fn write(&self, vector: usize, counts: &mut [u32]) {
        counts.fill(0);
        for (dimension, &class) in self.classes.iter().enumerate() {
            counts[class] = crate::ids::id_at(self.digit(vector, dimension));
        }
    }
}

/// Kinds of bins, with what each offloads.
pub(crate) struct Costs<'a> {
    pub(crate) instance: &'a Instance<'a>,
    /// By kind, its bins in the order given.
    pub(crate) kinds: Vec<Vec<usize>>,
    pub(crate) kind_of: Vec<usize>,
    pub(crate) keepers: Vec<Keeper<'a>>,
    /// Nothing where there are too many; then every vector is searched when it is asked for.
    pub(crate) vectors: Option<Vectors>,
    /// By kind and vector.
    known: Vec<Vec<u64>>,
    scratch: Vec<u32>,
}

impl<'a> Costs<'a> {
    /// Of bins with these capacities.
    pub(crate) fn new(instance: &'a Instance<'a>, capacities: &[u64]) -> Self {
        let mut kinds: Vec<Vec<usize>> = Vec::new();
        let mut kind_of = Vec::with_capacity(capacities.len());
        for bin in 0..capacities.len() {
            let is_like = |kind: &Vec<usize>| {
                let other = kind[0];
                capacities[other] == capacities[bin]
                    && are_alike(instance, other, bin)
                    && instance.may_stream(other) == instance.may_stream(bin)
            };
            let kind = kinds.iter().position(is_like).unwrap_or(kinds.len());
            if kind == kinds.len() {
                kinds.push(Vec::new());
            }
            kinds[kind].push(bin);
            kind_of.push(kind);
        }
        let keepers = kinds.iter().map(|kind| Keeper::new(instance, kind[0], capacities[kind[0]])).collect();
        let vectors = Vectors::new(instance);
        let len = vectors.as_ref().map_or(0, |vectors| vectors.len);
        let known = vec![vec![UNKNOWN; len]; kinds.len()];
        Self { instance, kinds, kind_of, keepers, vectors, known, scratch: vec![0; instance.classes.len()] }
    }

    /// Of a vector by number; there are [`Vectors`].
    pub(crate) fn of(&mut self, kind: usize, vector: usize) -> u64 {
        if let Some(known) = self.known(kind, vector) {
            return known;
        }
        if let Some(vectors) = &self.vectors {
            vectors.write(vector, &mut self.scratch);
        }
        let found = self.keepers[kind].least(&self.scratch);
        self.known[kind][vector] = found;
        found
    }

    /// The same if it was asked for before.
    pub(crate) fn known(&self, kind: usize, vector: usize) -> Option<u64> {
        Some(self.known[kind][vector]).filter(|&known| known != UNKNOWN)
    }

    /// Nodes that were looked at.
    pub(crate) fn nodes(&self) -> u64 {
        self.keepers.iter().map(|keeper| keeper.nodes).sum()
    }

    pub(crate) fn is_exact(&self) -> bool {
        self.keepers.iter().all(|keeper| keeper.is_exact)
    }
}
