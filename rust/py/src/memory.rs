//! Recordings of runs: what a recorder has written down, and the bytes that are told of it.

use std::sync::Arc;

use planner_core::memory::demands::demands;
use planner_core::memory::replay::{RunPlacement, replay};
use planner_core::memory::tape::{Enclosing, Tape, TapeBuilder};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// Tensor, storage, place, bytes.
type Row = (i64, i64, u32, i128);
/// By place, cache, lasting, needs and what rests; what is shared; places in order.
type Told = (Vec<(i128, i128, i128, i128)>, i128, Vec<u32>);

/// A recording, with its bytes apart from it.
#[pyclass(frozen, module = "planner._core")]
pub(crate) struct TapeColumns {
    tape: Arc<Tape>,
    sizes: Vec<i128>,
}

#[pymethods]
impl TapeColumns {
    /// Of events as `planner/memory/tape.py` has them.
    #[new]
    #[pyo3(signature = (events, *, blocks, enclosing, carried))]
    fn new(
        events: Vec<Bound<'_, PyTuple>>,
        blocks: u32,
        enclosing: Vec<(Vec<u32>, Option<u32>)>,
        carried: Vec<(u32, u32)>,
    ) -> PyResult<Self> {
        let enclosing = enclosing.into_iter().map(|(inside, own)| Enclosing { inside, own }).collect();
        let mut builder = TapeBuilder::new(blocks, enclosing, carried).map_err(wrong)?;
        for event in events {
            push(&mut builder, &event)?;
        }
        let (tape, sizes) = builder.finish();
        Ok(Self { tape: tape.into(), sizes })
    }

    /// Bytes that occur, each once.
    fn sizes(&self) -> Vec<i128> {
        self.sizes.clone()
    }

    /// The same run with other bytes in the place of these.
    fn with_sizes(&self, sizes: Vec<i128>) -> PyResult<Self> {
        if sizes.len() != self.sizes.len() {
            return Err(PyValueError::new_err(format!("{} sizes for {}", sizes.len(), self.sizes.len())));
        }
        Ok(Self { tape: self.tape.clone(), sizes })
    }

    /// Whether anything is brought to the cpu to rest there.
    fn rests(&self) -> bool {
        self.tape.rests()
    }

    /// Names of the forwards, in order.
    fn phases(&self) -> Vec<String> {
        self.tape.phases().to_vec()
    }

    /// What blocks need in the forwards whose names begin with `kind`.
    fn demands(&self, py: Python<'_>, kind: &str) -> Told {
        let found = py.detach(|| demands(&self.tape, &self.sizes, kind));
        let places =
            found.places.iter().map(|needs| (needs.cache, needs.lasting, needs.at_once, needs.resting)).collect();
        (places, found.shared, found.order)
    }

    /// By phase, the most bytes on each device.
    #[pyo3(signature = (
        *, execution, main_device, resident, offloaded, never_ahead, room, rest, beside, is_order_known
    ))]
    #[allow(clippy::too_many_arguments)] // one placement, whose parts have no sense by themselves
    fn replay(
        &self,
        py: Python<'_>,
        execution: Vec<u32>,
        main_device: u32,
        resident: Vec<i128>,
        offloaded: Vec<Option<i128>>,
        never_ahead: Vec<i128>,
        room: Vec<Option<i128>>,
        rest: Option<u32>,
        beside: i128,
        is_order_known: bool,
    ) -> PyResult<Vec<Vec<i128>>> {
        let placement = RunPlacement {
            execution,
            main_device,
            resident,
            offloaded,
            never_ahead,
            room,
            rest,
            beside,
            is_order_known,
        };
        let found = py.detach(|| replay(&self.tape, &self.sizes, &placement));
        found.ok_or_else(|| PyValueError::new_err("a placement of other blocks or devices"))
    }
}

fn push(builder: &mut TapeBuilder, event: &Bound<'_, PyTuple>) -> PyResult<()> {
    let number = |at: usize| event.get_item(at)?.extract::<i64>();
    let place = |at: usize| event.get_item(at)?.extract::<u32>();
    let rows = |at: usize| event.get_item(at)?.extract::<Vec<Row>>();
    match event.get_item(0)?.extract::<u8>()? {
        0 => {
            let copy_of = if event.len() > 5 { Some((number(5)?, place(6)?)) } else { None };
            builder.made(number(1)?, event.get_item(2)?.extract()?, place(3)?, copy_of).map_err(wrong)?;
        }
        1 => builder.freed(number(1)?),
        2 => builder.entered(place(1)?, &rows(2)?).map_err(wrong)?,
        3 => builder.left(place(1)?).map_err(wrong)?,
        4 => builder.apart(place(1)?, &rows(2)?).map_err(wrong)?,
        5 => builder.forgotten(number(1)?),
        6 => builder.begun(event.get_item(1)?.extract()?),
        7 => builder.returned(&rows(1)?).map_err(wrong)?,
        8 => builder.taken(),
        9 => builder.called(place(1)?, &rows(2)?).map_err(wrong)?,
        10 => builder.dropped(place(1)?, number(2)?, number(3)?).map_err(wrong)?,
        11 => builder.rested(number(1)?, event.get_item(2)?.extract()?, place(3)?).map_err(wrong)?,
        other => return Err(PyValueError::new_err(format!("no event is of kind {other}"))),
    }
    Ok(())
}

fn wrong(error: planner_core::memory::tape::OutOfRange) -> PyErr {
    PyValueError::new_err(error.to_string())
}
