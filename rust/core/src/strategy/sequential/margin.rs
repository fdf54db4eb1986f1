//! How far budgets may move before the sequential strategy would decide something otherwise.
//!
//! Every decision that depends on a budget is a comparison that turns at one budget. While one device's budget rises and
//! the others' do not, a comparison that holds there goes on holding, and elsewhere one that fails goes on failing; so the
//! least miss on that device and the least slack on the others are all that has to be kept.

/// The margin of a run; nothing is kept unless a device is watched.
#[derive(Debug, Clone, Default)]
pub struct Margin {
    rising: Option<u32>,
    /// Bits that the watched device lacks until something turns.
    pub rise_bits: Option<i64>,
    /// For each other device, bits that it can lose before something turns; `i64::MAX` where nothing does.
    pub fall_bits: Vec<i64>,
}

impl Margin {
    /// Watches a device among so many.
    pub(crate) fn of_rising(device: u32, count: usize) -> Self {
        Self { rising: Some(device), rise_bits: None, fall_bits: vec![i64::MAX; count] }
    }

    /// The watched device.
    pub(crate) fn rising(&self) -> Option<u32> {
        self.rising
    }

    /// Whether a device is watched, and nothing has been found yet that turns before so many bits more.
    pub(crate) fn may_narrow(&self, device: u32, shortage_bits: i64) -> bool {
        self.rising == Some(device) && self.rise_bits.is_none_or(|rise| shortage_bits < rise)
    }

    /// Whether a device holds something for which it lacks so many bits: none or fewer than none.
    pub(crate) fn holds(&mut self, device: u32, shortage_bits: i64) -> bool {
        let fits = shortage_bits <= 0;
        if self.rising == Some(device) {
            // It would hold with so much more; the least of these is where the first decision turns.
            if !fits {
                self.rise_bits = Some(self.rise_bits.map_or(shortage_bits, |rise| rise.min(shortage_bits)));
            }
        } else if let Some(fall) = self.fall_bits.get_mut(device as usize)
            && fits
        {
            *fall = (*fall).min(shortage_bits.saturating_neg());
        }
        fits
    }
}
