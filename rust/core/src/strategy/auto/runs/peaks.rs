//! The largest of a stretch of numbers, for any stretch.

/// Numbers with the largest of each stretch whose length is a power of two: memory O(n log n), an answer O(1).
#[derive(Debug, Clone)]
pub(crate) struct Peaks {
    /// By power and start.
    levels: Vec<Vec<u64>>,
}

impl Peaks {
    pub(crate) fn new(numbers: Vec<u64>) -> Self {
        let mut levels = vec![numbers];
        while let Some(last) = levels.last() {
            let width = 1 << (levels.len() - 1);
            if last.len() <= width {
                break;
            }
            levels.push(last.iter().zip(&last[width..]).map(|(&one, &other)| one.max(other)).collect());
        }
        Self { levels }
    }

    /// The largest from a place up to another; 0 of none.
    pub(crate) fn over(&self, from: usize, to: usize) -> u64 {
        let Some(power) = (to - from).checked_ilog2() else { return 0 };
        // Two stretches that may overlap cover it: what is counted twice changes no maximum.
        let level = &self.levels[power as usize];
        level[from].max(level[to - (1 << power)])
    }
}

#[cfg(test)]
mod tests {
    use super::Peaks;

    #[test]
    fn every_stretch_has_its_largest() {
        for length in 0..20usize {
            let numbers: Vec<u64> = (0..length as u64).map(|index| index * 7 % 11).collect();
            let peaks = Peaks::new(numbers.clone());
            for from in 0..=length {
                for to in from..=length {
                    let largest = numbers[from..to].iter().max().copied().unwrap_or(0);
                    assert_eq!(peaks.over(from, to), largest, "{from}..{to} of {numbers:?}");
                }
            }
        }
    }
}
