//! Devices and the options of the sequential strategy.

/// Largest number of bits that a budget or a model can have; leaves room to add a few of them.
pub(crate) const MOST_BITS: u64 = 1 << 60;

/// What a device is, as far as offloading cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// Runs modules: a GPU or its like. What lies here is not offloaded.
    Accelerator,
    /// Host memory; runs modules where there is no accelerator.
    Cpu,
    /// Storage.
    Disk,
}

/// A device that may hold weights. The order of a slice of devices is their preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// What it is.
    pub kind: DeviceKind,
    /// What weights may use, in bits: the budget without headroom; `None` is without limit.
    pub capacity_bits: Option<u64>,
    /// Devices of one pool share memory; read by `auto`, whose options hold the sizes of pools.
    pub pool: Option<u32>,
    /// Whether room for the largest layer is kept free, so that offloaded layers can run there; read by the sequential strategy.
    pub is_main: bool,
}

impl Device {
    /// An accelerator with a budget in bytes.
    pub fn accelerator(budget_bytes: u64, is_main: bool) -> Self {
        Self::new(DeviceKind::Accelerator, budget_bytes, is_main)
    }

    /// Host memory with a budget in bytes.
    pub fn cpu(budget_bytes: u64, is_main: bool) -> Self {
        Self::new(DeviceKind::Cpu, budget_bytes, is_main)
    }

    /// Storage without limit.
    pub fn unlimited_disk() -> Self {
        Self { kind: DeviceKind::Disk, capacity_bits: None, pool: None, is_main: false }
    }

    fn new(kind: DeviceKind, budget_bytes: u64, is_main: bool) -> Self {
        let capacity_bits = Some(budget_bytes.saturating_mul(8).min(MOST_BITS));
        Self { kind, capacity_bits, pool: None, is_main }
    }

    /// Whether what lies here is offloaded, beside these devices: it cannot run where it is.
    pub(crate) fn is_offload(&self, devices: &[Device]) -> bool {
        match self.kind {
            DeviceKind::Accelerator => false,
            DeviceKind::Cpu => devices.iter().any(|other| other.kind == DeviceKind::Accelerator),
            DeviceKind::Disk => true,
        }
    }

    /// Bits that accelerate's formula compares with: disk is never compared.
    pub(crate) fn formula_limit_bits(&self) -> i64 {
        match self.kind {
            DeviceKind::Disk => i64::MAX,
            _ => self.limit_bits(),
        }
    }

    /// Bits that stored tensors may use.
    pub(crate) fn limit_bits(&self) -> i64 {
        self.capacity_bits.map_or(i64::MAX, |bits| bits.min(MOST_BITS).cast_signed()) // at most 2^60
    }
}

/// When room for the largest layer is kept free on the main devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reserve {
    /// From the start.
    #[default]
    Always,
    /// Only when a first pass without it had to offload something.
    IfOffloaded,
}

/// Options of the sequential strategy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SequentialOptions {
    /// Look for a smaller module when the next one leaves a device empty.
    pub fallback: bool,
    /// When to keep room for the largest layer.
    pub reserve: Reserve,
}
