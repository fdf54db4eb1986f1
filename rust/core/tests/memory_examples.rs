//! What is read of small recordings, by hand.

use planner_core::memory::demands::{Needs, demands};
use planner_core::memory::replay::{RunPlacement, replay};
use planner_core::memory::tape::{Enclosing, OutOfRange, Tape, TapeBuilder};

type Made = Result<(Tape, Vec<i128>), OutOfRange>;

/// Two blocks: the first makes 10 bytes that the second is handed, keeps 7, and uses 5 while it runs.
fn two_blocks() -> Made {
    let mut builder = TapeBuilder::new(2, Vec::new(), Vec::new())?;
    builder.begun("prefill".into());
    builder.made(0, 3, 0, None)?;
    builder.entered(1, &[(0, 0, 0, 3)])?;
    builder.made(1, 5, 1, None)?;
    builder.made(2, 7, 1, None)?;
    builder.made(3, 10, 1, None)?;
    builder.freed(1);
    builder.left(1)?;
    builder.entered(2, &[(1, 3, 1, 10)])?;
    builder.made(4, 2, 2, None)?;
    builder.freed(3);
    builder.left(2)?;
    builder.returned(&[(2, 4, 2, 2)])?;
    builder.freed(4);
    builder.taken();
    Ok(builder.finish())
}

fn placement(execution: [u32; 2], offloaded: [Option<i128>; 2], room: [Option<i128>; 2]) -> RunPlacement {
    RunPlacement {
        execution: execution.to_vec(),
        main_device: 0,
        resident: vec![100, 200],
        offloaded: offloaded.to_vec(),
        never_ahead: vec![0, 0],
        room: room.to_vec(),
        rest: None,
        beside: 0,
        is_order_known: true,
    }
}

#[test]
fn what_blocks_need() -> Result<(), OutOfRange> {
    let (tape, sizes) = two_blocks()?;
    let found = demands(&tape, &sizes, "");
    assert_eq!(found.order, [1, 2]);
    assert_eq!(found.places[1], Needs { cache: 7, lasting: 0, at_once: 15 + 3, resting: 0 });
    assert_eq!(found.places[2], Needs { cache: 0, lasting: 0, at_once: 2 + 10, resting: 0 });
    assert_eq!(demands(&tape, &sizes, "decode").order, [0_u32; 0]);
    Ok(())
}

#[test]
fn peaks_of_one_device_and_of_two() -> Result<(), OutOfRange> {
    let (tape, sizes) = two_blocks()?;
    let peaks = |execution| replay(&tape, &sizes, &placement(execution, [None; 2], [None; 2]));
    assert_eq!(peaks([0, 0]), Some(vec![vec![100 + 3 + 22, 200]]));
    // The second device holds a copy of what the first has made; its result goes back.
    assert_eq!(peaks([0, 1]), Some(vec![vec![100 + 3 + 22, 200 + 10 + 2]]));
    assert_eq!(peaks([0, 2]), None);
    Ok(())
}

#[test]
fn what_is_offloaded_is_copied_ahead_where_there_is_room() -> Result<(), OutOfRange> {
    let (tape, sizes) = two_blocks()?;
    let peaks = |room| replay(&tape, &sizes, &placement([0, 0], [Some(40), Some(60)], [Some(room), None]));
    assert_eq!(peaks(100), Some(vec![vec![100 + 3 + 22 + 100, 200]]));
    assert_eq!(peaks(99), Some(vec![vec![100 + 3 + 19 + 60, 200]]));
    Ok(())
}

/// What other modules have, too, comes when its block runs, beside what was copied ahead; the room is asked for all of it.
#[test]
fn what_is_never_copied_ahead_comes_when_its_block_runs() -> Result<(), OutOfRange> {
    let (tape, sizes) = two_blocks()?;
    let peaks = |never_ahead: i128, room: i128| {
        let offloaded = placement([0, 0], [Some(40), Some(60)], [Some(room), None]);
        let found = replay(&tape, &sizes, &RunPlacement { never_ahead: vec![0, never_ahead], ..offloaded });
        found.map(|peaks| peaks[0][0])
    };
    assert_eq!(peaks(15, 100), Some(100 + 3 + 22 + 40 + 45));
    assert_eq!(peaks(60, 100), Some(100 + 3 + 19 + 60));
    assert_eq!(peaks(15, 99), Some(100 + 3 + 19 + 60));
    let short = RunPlacement { never_ahead: vec![0], ..placement([0, 0], [None; 2], [None; 2]) };
    assert_eq!(replay(&tape, &sizes, &short), None);
    Ok(())
}

#[test]
fn numbers_that_are_not_in_their_lists_are_told() -> Result<(), OutOfRange> {
    assert!(TapeBuilder::new(1, vec![Enclosing { inside: vec![2], own: None }], Vec::new()).is_err());
    assert!(TapeBuilder::new(1, Vec::new(), vec![(0, 0)]).is_err());
    let mut builder = TapeBuilder::new(1, Vec::new(), Vec::new())?;
    assert!(builder.entered(2, &[]).is_err());
    assert!(builder.called(0, &[]).is_err());
    assert!(builder.entered(1, &[(0, 0, 2, 5)]).is_err());
    Ok(())
}

/// All that is told of a recording has a row for each block: what no model can have would take hundreds of gigabytes.
#[test]
fn more_blocks_than_a_model_can_have_are_refused() {
    assert!(TapeBuilder::new(30_000_000, Vec::new(), Vec::new()).is_ok());
    for blocks in [30_000_001, u32::MAX] {
        let refused = TapeBuilder::new(blocks, Vec::new(), Vec::new()).err();
        assert_eq!(refused, Some(OutOfRange::Blocks { blocks, limit: 30_000_000 }));
    }
}

/// Where both places are on one device, a copy is what it copies, and is there after that has gone.
#[test]
fn a_copy_on_one_device_is_what_it_copies() -> Result<(), OutOfRange> {
    let mut builder = TapeBuilder::new(2, Vec::new(), Vec::new())?;
    builder.begun("prefill".into());
    builder.made(0, 10, 1, None)?;
    builder.made(1, 10, 2, Some((0, 1)))?;
    builder.made(2, 10, 2, Some((0, 1)))?;
    builder.freed(0);
    builder.freed(1);
    builder.made(3, 4, 1, None)?;
    builder.freed(2);
    builder.made(4, 12, 1, None)?;
    builder.taken();
    let (tape, sizes) = builder.finish();
    let peaks = |execution| replay(&tape, &sizes, &placement(execution, [None; 2], [None; 2]));
    assert_eq!(peaks([0, 0]), Some(vec![vec![116, 200]]));
    assert_eq!(peaks([0, 1]), Some(vec![vec![116, 220]]));
    Ok(())
}
