//! The worked examples and the truth table of the thread that introduced the fallback (huggingface/accelerate#3066).
//!
//! The same as in `tests/conformance/test_worked_examples.py`, where accelerate is asked, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{devices, layout, placed};
use planner_core::{Outcome, Reserve, Rule, SequentialOptions, sequential};

const DEFAULT: SequentialOptions = SequentialOptions { fallback: false, reserve: Reserve::Always };
const FALLBACK: SequentialOptions = SequentialOptions { fallback: true, reserve: Reserve::Always };
const TWO_PASSES: SequentialOptions = SequentialOptions { fallback: false, reserve: Reserve::IfOffloaded };
const BOTH: SequentialOptions = SequentialOptions { fallback: true, reserve: Reserve::IfOffloaded };

/// Three modules that cannot be split.
const ABC: &[&str] = &["A.w 2", "B.w 1", "C.w 3"];
const LARGE_A: &[&str] = &["A.w 5", "B.w 1", "C.w 3"];

/// M is 40 bytes, T adds 20, together 60; `first` is what leaves accelerator 0, so that M is met whole on the next one.
const PAIR: &[&str] = &[
    "first.w 1",
    "M:Blk.l0.w 10",
    "M:Blk.l0.shared 20 @s",
    "M:Blk.l1.w 10",
    "T:Blk.l0.w 10",
    "T:Blk.l0.shared 20 @s",
    "T:Blk.l1.w 10",
];

/// As [`PAIR`], with T so large that it fits nowhere.
const LARGE_T: &[&str] = &[
    "first.w 1",
    "M:Blk.l0.w 10",
    "M:Blk.l0.shared 20 @s",
    "M:Blk.l1.w 10",
    "T:Blk.l0.w 10",
    "T:Blk.l0.shared 20 @s",
    "T:Blk.l1.w 80",
];

/// M is 100 bytes, T adds 10.
const LARGE_M: &[&str] =
    &["first.w 1", "M:Blk.l0.w 10", "M:Blk.l0.shared 20 @s", "M:Blk.l1.w 70", "T:Blk.l0.w 10", "T:Blk.l0.shared 20 @s"];

const BOTH_LARGE: &[&str] = &[
    "first.w 1",
    "M:Blk.l0.w 10",
    "M:Blk.l0.shared 20 @s",
    "M:Blk.l1.w 70",
    "T:Blk.l0.w 10",
    "T:Blk.l0.shared 20 @s",
    "T:Blk.l1.w 80",
];

/// M and T, and X behind them, with nothing before.
const BEFORE_X: &[&str] = &[
    "M:Blk.l0.w 10",
    "M:Blk.l0.shared 20 @s",
    "M:Blk.l1.w 10",
    "T:Blk.l0.w 10",
    "T:Blk.l0.shared 20 @s",
    "T:Blk.l1.w 10",
    "X.w 15",
];

/// T cannot be split, M can.
const WHOLE_T: &[&str] = &[
    "first.w 1",
    "M:Blk.l0.w 10",
    "M:Blk.l0.shared 20 @s",
    "M:Blk.l1.w 10",
    "T:Whole.l0.w 40",
    "T:Whole.l0.shared 20 @s",
];

/// A buffer inside a block, and one of the root.
const BUFFERED: &[&str] = &["A.w 8", "M:Blk.l0.w 10", "M:Blk.~mask 1"];
const ROOT_BUFFER: &[&str] = &["A.w 8", "B.w 8", "~mask 1"];

/// What a module is made of, what stays whole, budgets of accelerators and the cpu, options, and where each entry goes.
struct Example {
    says: &'static str,
    lines: &'static [&'static str],
    no_split: &'static [&'static str],
    accelerators: &'static [u64],
    cpu: u64,
    options: SequentialOptions,
    expected: &'static str,
}

fn plan(example: &Example) -> (String, Outcome) {
    let layout = layout(example.lines, example.no_split);
    let devices = devices(example.accelerators, example.cpu);
    let outcome = sequential(&layout, &devices, &example.options).unwrap();
    (placed(&layout, &devices, &outcome), outcome)
}

fn check(examples: &[Example]) {
    for example in examples {
        assert_eq!(plan(example).0, example.expected, "{}", example.says);
    }
}

/// One row of a table.
macro_rules! examples {
    ($($says:literal: $lines:ident $no_split:tt $accelerators:tt + $cpu:literal $options:ident => $expected:literal;)*) => {
        &[$(Example {
            says: $says,
            lines: $lines,
            no_split: &$no_split,
            accelerators: &$accelerators,
            cpu: $cpu,
            options: $options,
            expected: $expected,
        }),*]
    };
}

#[test]
fn three_modules() {
    check(examples! {
        "A and the largest layer need 2 + 3 > 4": ABC [] [4] + 6 DEFAULT => "A=cpu B=cpu C=cpu";
        "B and the largest layer need 1 + 3 = 4": ABC [] [4] + 6 FALLBACK => "B=0 A=cpu C=cpu";
        "the second pass, as not all fits": ABC [] [4] + 6 TWO_PASSES => "A=cpu B=cpu C=cpu";
        "the second pass has the fallback, too": ABC [] [4] + 6 BOTH => "B=0 A=cpu C=cpu";
        "the first accelerator stays empty": ABC [] [4, 10] + 6 DEFAULT => "A=1 B=1 C=1";
        "two passes reserve nothing": ABC [] [4, 10] + 6 TWO_PASSES => "A=0 B=0 C=1";
        "a larger A": LARGE_A [] [4, 10] + 6 DEFAULT => "A=1 B=1 C=1";
        "a larger A goes on to the next device": LARGE_A [] [4, 10] + 6 TWO_PASSES => "A=1 B=1 C=1";
        "the fallback goes on filling": LARGE_A [] [4, 10] + 6 BOTH => "B=0 C=0 A=1";
    });
}

#[test]
fn truth_table_of_tied_modules() {
    check(examples! {
        "1: module, ties and total fit": PAIR [] [0, 61] + 1000 DEFAULT => "first=1 M=1 T=1";
        "2: only l0 of T is tied": PAIR [] [0, 60] + 1000 DEFAULT => "first=1 M=1 T.l0=1 T.l1=cpu";
        "4: T is split though larger than the budget": LARGE_T [] [0, 56] + 1000 DEFAULT
            => "first=1 M=1 T.l0=1 T.l1=cpu";
        "6: only the ties fit": LARGE_M [] [0, 41] + 1000 DEFAULT => "first=1 M.l0=1 T=1 M.l1=cpu";
        "8: nothing fits": BOTH_LARGE [] [0, 41] + 1000 DEFAULT => "first=1 M.l0=1 T.l0=1 M.l1=cpu T.l1=cpu";
    });
}

#[test]
fn what_cannot_be_split() {
    check(examples! {
        "60 and the largest layer of 20 are more than 79": BEFORE_X ["Blk"] [79] + 1000 DEFAULT
            => "M=cpu T=cpu X=cpu";
        "then X, as 15 + 60 are not": BEFORE_X ["Blk"] [79] + 1000 FALLBACK => "X=0 M=cpu T=cpu";
        "without the fallback the next device": PAIR ["Blk"] [0, 60, 60] + 1000 DEFAULT => "first=1 M=2 T=2";
        "M fits exactly, and is split all the same": WHOLE_T ["Whole"] [0, 41, 200] + 1000 DEFAULT
            => "first=1 M.l0=2 T=2 M.l1=2";
        "with a byte to spare it stays whole": WHOLE_T ["Whole"] [0, 42, 200] + 1000 DEFAULT => "first=1 M=2 T=2";
    });
}

#[test]
fn buffers_in_the_fallback() {
    check(examples! {
        "no buffer is taken out of a module that is whole": BUFFERED [] [11] + 1000 FALLBACK
            => "A=cpu M=cpu";
        "one that stands alone is": ROOT_BUFFER [] [9] + 1000 FALLBACK => "mask=0 A=cpu B=cpu";
    });
}

/// The filling mode is of one device: on the next one, the fallback is for an empty device again.
#[test]
fn filling_ends_with_its_device() {
    const LINES: &[&str] = &["A.w 9", "B.w 1", "C.w 5", "D.w 9", "E.w 1", "F.w 9"];
    const TAIL: &[&str] = &["A.w 9", "B.w 1", "C.w 5", "D.w 4", "E.w 8", "F.w 1"];
    check(examples! {
        "B, C and E are behind A on the first": LINES [] [7, 10, 30] + 0 BOTH => "B=0 C=0 E=0 A=1 D=2 F=2";
    });
    check(examples! {
        "A and D leave 1 byte, which is not F's, for the device is not empty": TAIL [] [6, 14, 30] + 0 BOTH
            => "B=0 C=0 A=1 D=1 E=2 F=2";
    });
}

/// X comes along with P and is never struck out, so room for its 10 bytes is kept on the cpu though nothing needs it, and
/// Y (10 bytes) goes on to the disk. Met on one device after the other, Y is struck out once: twice would free that room.
#[test]
fn the_largest_layer_is_struck_out_once() {
    const LINES: &[&str] = &["P.w 1", "P.s 2 @s", "X.w 10", "X.s 2 @s", "Y.w 10", "Z.w 5"];
    check(examples! {
        "Y is met on four devices": LINES [] [23, 0] + 15 DEFAULT => "P=0 X=0 Y=disk Z=disk";
        "with 5 more it has room beside them": LINES [] [23, 0] + 20 DEFAULT => "P=0 X=0 Y=cpu Z=disk";
    });
}

/// A and B share one tensor, B and C another: A brings B, and C comes when it is found behind X, without B again.
#[test]
fn what_was_placed_does_not_come_along_again() {
    const CHAIN: &[&str] = &["X.w 50", "A.w 1", "A.s 2 @s", "B.s 2 @s", "B.t 2 @t", "C.t 2 @t", "C.w 1"];
    check(examples! {
        "as the fallback goes on filling": CHAIN [] [10, 60] + 0 BOTH => "A=0 B=0 C=0 X=1";
    });
}

/// Each placement says which rule made it.
#[test]
fn reasons_name_the_rule() {
    use Rule::{Fits, NextDevice, SplitTied, Tied};
    let (_, outcome) = plan(&examples! { "": LARGE_A [] [4, 10] + 6 BOTH => ""; }[0]);
    let rules: Vec<Rule> = outcome.reasons.iter().map(|reason| reason.rule).collect();
    assert_eq!(rules, [Rule::Fallback, Rule::Fallback, Rule::NextDevice, Rule::Fits]);
    let (_, outcome) = plan(&examples! { "": PAIR [] [0, 60] + 1000 DEFAULT => ""; }[0]);
    let rules: Vec<Rule> = outcome.reasons.iter().map(|reason| reason.rule).collect();
    assert_eq!(rules, [NextDevice, Fits, SplitTied, Fits, Tied, NextDevice, Fits]);
    assert_eq!(outcome.usage[1].used_bits, (1 + 40 + 10) * 8, "T.l0 brings its own 10 bytes: the tensor is there");
}
