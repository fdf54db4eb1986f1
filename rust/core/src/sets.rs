//! Sets of small numbers, and numbers that belong together.

use crate::ids::id_at;

/// One bit per node.
#[derive(Debug, Clone)]
pub(crate) struct BitSet(Vec<u64>);

impl BitSet {
    pub(crate) fn new(len: usize) -> Self {
        Self(vec![0; len.div_ceil(64)])
    }

    pub(crate) fn insert(&mut self, index: u32) {
        self.0[index as usize / 64] |= 1 << (index % 64);
    }

    pub(crate) fn contains(&self, index: u32) -> bool {
        self.0[index as usize / 64] >> (index % 64) & 1 == 1
    }
}

/// Union-find over the numbers below a length. The root of a set is its least number, whatever was united first.
#[derive(Debug, Clone, Default)]
pub(crate) struct DisjointSets {
    parent: Vec<u32>,
}

impl DisjointSets {
    /// Each number alone.
    pub(crate) fn new(len: u32) -> Self {
        Self { parent: (0..len).collect() }
    }

    /// One more number, alone.
    pub(crate) fn add(&mut self) -> u32 {
        let id = id_at(self.parent.len());
        self.parent.push(id);
        id
    }

    /// The root of a number's set, halving the path on the way.
    pub(crate) fn root(&mut self, mut id: u32) -> u32 {
        while self.parent[id as usize] != id {
            self.parent[id as usize] = self.parent[self.parent[id as usize] as usize];
            id = self.parent[id as usize];
        }
        id
    }

    /// Makes one set of two.
    pub(crate) fn unite(&mut self, one: u32, other: u32) {
        let (one, other) = (self.root(one), self.root(other));
        self.parent[one.max(other) as usize] = one.min(other);
    }

    /// The root of each number.
    pub(crate) fn roots(mut self) -> Vec<u32> {
        for id in 0..id_at(self.parent.len()) {
            self.parent[id as usize] = self.root(id);
        }
        self.parent
    }
}

#[cfg(test)]
mod tests {
    use super::DisjointSets;

    #[test]
    fn the_least_number_is_the_root() {
        let mut sets = DisjointSets::new(5);
        sets.unite(4, 3);
        sets.unite(3, 1);
        assert_eq!(sets.add(), 5);
        sets.unite(5, 0);
        assert_eq!(sets.root(4), 1);
        assert_eq!(sets.roots(), [0, 1, 2, 1, 1, 0]);
    }
}
