"""What crosses the border to the Rust core, with units.

Lists are columns: one entry for each row, module, unit or device, in the order that is said beside them. Sizes are in bits: a bool
counts as one by accelerate's formula. Devices are numbers: places in the list that was handed in.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, final

from typing_extensions import Buffer

from planner.choices import (
    BlockGranularity,
    DeviceKind,
    Dialect,
    ExecuteOffloaded,
    Fill,
    Mode,
    Reserve,
    SearchStage,
    SequentialRule,
)

__all__ = [
    "AutoFailure",
    "AutoPlan",
    "BalanceFacts",
    "Blocks",
    "Certificate",
    "Demands",
    "Exhausted",
    "FileMapping",
    "Headers",
    "Index",
    "Layout",
    "Outcome",
    "PageBuffer",
    "Reason",
    "SearchOptions",
    "StoredFile",
    "TapeColumns",
    "TimedFailure",
    "TimedLine",
    "TimedPlan",
    "Tree",
    "cached_bytes",
    "clean_keys",
    "map_pieces",
    "read_spans",
]

# Kind; budget in bits, or None without limit; whether it keeps room for the largest layer.
_SequentialDevice = tuple[DeviceKind, int | None, bool]
# Kind; capacity in bits, or None without limit; number of its pool, or None.
_AutoDevice = tuple[DeviceKind, int | None, int | None]
# Devices in order of preference; joint capacity in bits of each pool, by its number; numbers of accelerators, in the order in
# which a loader looks for its main device.
_Row = tuple[list[_AutoDevice], list[int], list[int]]
# Number of a unit, and the devices where it may lie: bit d stands for device d.
_Mask = tuple[int, int]
# Class; names of parameters; names of children with the numbers of the forms that each may have; names of buffers, and whether
# each is saved.
_Form = tuple[str, list[str], list[tuple[str, list[int]]], list[tuple[str, bool]]]

@final
class Tree:
    """Rows in preorder: the root, and every module and tensor under every name."""

    @staticmethod
    def walk(
        model: object,
        plain_types: tuple[type, ...],
        describe_dtype: Callable[[Any], tuple[int, int, bool]],
        describe_tensor: Callable[[Any, str], tuple[int, Any, int]],
    ) -> Tree:
        """Flattens a live model.

        Args:
            plain_types: classes of tensors that hold elements of their dtype and nothing else.
            describe_dtype: bits of an element by accelerate's formula, bits as stored, and whether a load in another dtype casts it.
            describe_tensor: elements, dtype and stored bytes of a tensor of any other class, by itself and its name.
        """

    @staticmethod
    def beside(class_name: str, models: list[tuple[str, Tree]]) -> Tree:
        """Whole models from files below one root, by name and in order."""

    def untied(self, names: list[str]) -> Tree:
        """The same where each of these tensors is an object of its own."""

    def __len__(self) -> int:
        """Rows, the root included."""

    @property
    def can_tie(self) -> bool: ...
    @property
    def module_count(self) -> int: ...
    @property
    def tensor_count(self) -> int: ...
    @property
    def held_bytes(self) -> int: ...
    def bytes_by_dtype(self) -> list[tuple[str, int]]:
        """Stored bytes of each element type, as torch or the files name it."""

    def widths(self) -> list[tuple[str, int]]:
        """(name, length of the last dimension) of tensors, as far as it is known."""

    def layer_count(self) -> int:
        """Length of the main list of repeated layers; 0 without one."""

    def names(self) -> list[str]:
        """Of all rows but the root: ``len(self) - 1``."""

    def module_classes(self) -> list[tuple[str, str]]:
        """Name and class of each module but the root: ``module_count - 1``."""

    def module_places(self) -> list[tuple[int | None, int]]:
        """Of each of these, the number of the one that holds it, and how many modules have tensors of their own, itself and those inside."""

    def knows(self, names: list[str]) -> list[bool]:
        """For each name, whether a row has it."""

    def name_kinds(self) -> list[tuple[list[tuple[str, int]], list[tuple[str, int]]]]:
        """By kind, its named and its numbered members with their kinds, which come before it; the model's is the last."""

    def class_bases(self) -> list[tuple[str, list[str]]]:
        """Each class of modules once, with its own name and those of its bases, in the order in which methods are looked up."""

    def without_forward(self) -> tuple[list[str], list[str], bool]:
        """Classes of lists, classes without any forward, and whether the others are known to have one."""

    def derived_classes(self, names: list[str]) -> tuple[list[str], list[str]]:
        """Classes that are or derive from one that is named, and the names that no class is or derives from."""

    def uncovered(self, keys: list[str], needed: Literal["all", "saved"]) -> tuple[list[str], list[str]]:
        """Keys that name nothing, and names of the tensors that no key covers, as a state dict lists them."""

@final
class Layout:
    """A tree read with options."""

    def __new__(
        cls,
        tree: Tree,
        *,
        dialect: Dialect,
        no_split: list[str] = ...,
        cast: tuple[int, int] | None = None,
        special: list[tuple[str, int, int]] = ...,
        sizes: list[tuple[str, int]] = ...,
        tied: list[list[str]] | None = None,
        uncounted: list[str] = ...,
        exempt: list[str] = ...,
        containers: list[str] = ...,
    ) -> Layout:
        """Reads a tree.

        Args:
            cast: of the dtype of the load, bits of an element by formula and as stored.
            special: the same of single tensors, behind their names.
            sizes: names of tensors, and their bits.
        """

    def sequential(
        self, devices: list[_SequentialDevice], fallback: bool, reserve: Reserve
    ) -> Outcome | Exhausted: ...
    def probe(
        self, devices: list[_SequentialDevice], fallback: bool, reserve: Reserve, rising: int
    ) -> tuple[bool, int | None, list[int | None]]:
        """Whether the rising device gets a bit; bits by which its budget may rise until a decision is another one; and, by device,
        bits by which that of each other may fall. None where nothing ever turns."""

    def sequential_many(
        self, rows: list[list[_SequentialDevice]], fallback: bool, reserve: Reserve
    ) -> list[Outcome | Exhausted]: ...
    def balance_facts(self) -> BalanceFacts: ...
    def stored_sizes(self, counted: Literal["all", "buffers"]) -> list[tuple[str, int]]:
        """Name and stored bits of each row that holds a counted tensor, in the order of accelerate's sizes."""

    def repeated(self, lists: list[str], bare: list[str], by_structure: bool) -> tuple[list[str], list[str]]:
        """Classes of modules that repeat, and names of the containers outside of them."""

    def fingerprint(self) -> str:
        """16 hexadecimal digits."""

    @property
    def total_bits(self) -> int: ...
    def tied_groups(self) -> list[list[str]]:
        """``tied_group_count`` groups of names, each sorted."""

    @property
    def tied_group_count(self) -> int: ...
    @property
    def no_split_count(self) -> int: ...

@final
class BalanceFacts:
    @property
    def total_bits(self) -> int: ...
    @property
    def first_no_split_bits(self) -> int: ...
    @property
    def largest_no_split_bits(self) -> int: ...
    @property
    def final_modules_bits(self) -> int: ...
    @property
    def final_module_count(self) -> int: ...
    @property
    def largest_direct_bits(self) -> int: ...

@final
class Outcome:
    def device_map(self, clean: bool) -> list[tuple[str, int]]:
        """Name and device of each key, in the order of placement."""

    def offloaded_buffer_bits(self) -> int: ...
    def reasons(self) -> list[Reason]:
        """Every decision, in order."""

    @property
    def usage(self) -> list[tuple[int, int, int]]:
        """By device, bits: used as stored, used by formula, kept free."""

    @property
    def empty_devices(self) -> list[int]:
        """Devices that were left without a bit of a tensor, in order."""

    @property
    def has_offloaded(self) -> bool: ...

@final
class Reason:
    @property
    def rule(self) -> SequentialRule: ...
    @property
    def name(self) -> str: ...
    @property
    def device(self) -> int: ...
    @property
    def needed_bits(self) -> int: ...
    @property
    def available_bits(self) -> int | None:
        """None is without limit."""

@final
class Exhausted:
    @property
    def block(self) -> str: ...
    @property
    def device(self) -> int: ...
    @property
    def shortfall_bits(self) -> int: ...
    @property
    def placed(self) -> list[tuple[str, int]]:
        """Name and device of what had been placed, in order."""

def clean_keys(keys: list[str], values: list[int]) -> list[tuple[str, int]]:
    """Keys grouped where all below a name have one value; ``values`` are numbers that stand for those of the keys."""

@final
class Blocks:
    """A layout cut into units, in the order of their first blocks: ``len(self)`` of them."""

    def __new__(
        cls,
        layout: Layout,
        *,
        granularity: BlockGranularity,
        no_split: list[str] = ...,
        split: list[str] = ...,
        apart: list[str] = ...,
        keep_together: list[list[str]] = ...,
    ) -> Blocks: ...
    def __len__(self) -> int: ...
    @property
    def block_count(self) -> int: ...
    def block_names(self) -> list[list[str]]:
        """By block, in execution order, names of its modules and tensors; more than one where parts were taken out of it."""

    def unit_bits(self) -> list[int]:
        """By unit, stored bits."""

    def unit_names(self) -> list[list[str]]:
        """By unit, names of its modules and tensors."""

    def units_of(self, names: list[str]) -> list[list[int]]:
        """For each name, numbers of the units inside or around it."""

    def fused_experts(self) -> list[tuple[str, int]]:
        """Names of modules that hold all their experts in one tensor, and the unit of each."""

    def solve(
        self, row: _Row, masks: list[_Mask], options: SearchOptions, demands: Demands | None = None
    ) -> AutoPlan | AutoFailure: ...
    def solve_many(
        self,
        rows: list[_Row],
        masks: list[_Mask],
        options: SearchOptions,
        demands: list[Demands | None] = ...,
    ) -> list[AutoPlan | AutoFailure]:
        """``demands`` by row; none where it is left out."""

    def fits(
        self, row: _Row, masks: list[_Mask], options: SearchOptions, demands: Demands | None = None
    ) -> bool | None:
        """Whether there is a plan, found sooner than one; None where the search ended before that was known."""

    def shortfall(
        self, row: _Row, masks: list[_Mask], options: SearchOptions, demands: Demands | None = None
    ) -> list[int | None]:
        """By device, the least bits more with which nothing need be offloaded; None where no amount does."""

@final
class Demands:
    """What running the blocks takes beside their weights; made once, and passed to every question about the same blocks."""

    def __new__(
        cls, *, exec_bits: list[int], peak_bits: list[int], stay_bits: list[int], shared_bits: list[int]
    ) -> Demands:
        """``exec_bits`` and ``peak_bits`` by block: what lies where it runs, and what it needs there while it runs.
        ``stay_bits`` by block: what of its own bits is where it runs, even if it lies elsewhere.
        ``shared_bits`` by device of the row: what it gives up where it runs anything. What is left out needs nothing."""

@final
class TapeColumns:
    """A recording, with its bytes apart from it; see :mod:`planner.memory.tape` for its events and places."""

    def __new__(
        cls,
        events: Sequence[tuple[Any, ...]],
        *,
        blocks: int,
        enclosing: list[tuple[list[int], int | None]],
        carried: list[tuple[int, int]],
    ) -> TapeColumns:
        """``blocks``: how many. Raises ValueError for numbers that are not in their lists, and for more blocks than a model can have names."""

    def sizes(self) -> list[int]:
        """Bytes that occur in events, each once."""

    def with_sizes(self, sizes: list[int]) -> TapeColumns:
        """The same run with other bytes in the place of these."""

    def rests(self) -> bool:
        """Whether anything is brought to the cpu to rest there."""

    def phases(self) -> list[str]:
        """Names of the forwards, in order."""

    def demands(self, kind: str) -> tuple[list[tuple[int, int, int, int]], int, list[int]]:
        """By place, bytes of the cache, lasting, needed at once, and resting on the cpu; bytes that are shared; places in the order of their calls. Of
        the phases whose names begin with ``kind``, the most of each."""

    def replay(
        self,
        *,
        execution: list[int],
        main_device: int,
        resident: list[int],
        offloaded: list[int | None],
        never_ahead: list[int],
        room: list[int | None],
        rest: int | None,
        beside: int,
        is_order_known: bool,
    ) -> list[list[int]]:
        """By phase, the most bytes on each device. ``execution``, ``offloaded`` and, of that, ``never_ahead`` by block, ``resident`` and ``room`` by device, all in
        bytes; ``rest``: the device where caches rest; ``beside``: what the caller
        takes on the main device beside results."""

@final
class SearchOptions:
    def __new__(
        cls,
        *,
        fill: Fill,
        search_steps: int,
        mode: Mode,
        execute_offloaded: ExecuteOffloaded,
        staging_blocks: int,
    ) -> SearchOptions: ...

@final
class AutoPlan:
    def device_map(self, devices: list[int | str]) -> dict[str, int | str]:
        """The fewest keys; ``devices`` are the keys of the devices, by number."""

    def execution_map(self, devices: list[int | str]) -> dict[str, int | str]:
        """The same of what runs elsewhere than it lies."""

    @property
    def home(self) -> list[int]:
        """By unit, the device where it lies."""

    @property
    def execution(self) -> list[list[int]]:
        """By unit and block, the device that runs it."""

    @property
    def oversized(self) -> list[str | None]:
        """By unit, the name of its first block that is larger than every accelerator."""

    @property
    def map_is_enough(self) -> bool:
        """Whether a loader that is given the device map alone runs everything where the plan does."""

    @property
    def usage(self) -> list[tuple[int, int]]:
        """By device, bits: used, kept free."""

    @property
    def running(self) -> list[tuple[int, int]]:
        """By device, bits: what lies there for the blocks that it runs, and what these need at once with the shared part."""

    @property
    def certificate(self) -> Certificate: ...

@final
class Certificate:
    @property
    def proven(self) -> bool: ...
    @property
    def lower_bound_bits(self) -> int: ...
    @property
    def gap_bits(self) -> int: ...
    @property
    def returns(self) -> int: ...
    @property
    def returns_lower_bound(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def stage(self) -> SearchStage: ...

@final
class TimedLine:
    """Pieces in execution order, and the devices that may run them."""

    def __new__(
        cls,
        *,
        pieces: list[tuple[int, int, int, int, list[int | None], list[int | None], int | None, list[int]]],
        kinds: list[tuple[int, int, bool]],
        devices: list[int],
        hop_ps: list[list[int]],
        schedule: Literal["serial", "overlapped"],
        staging_blocks: int,
        ties: list[tuple[list[int], int]] = ...,
        closed: list[int] = ...,
        passing: list[tuple[int, int]] = ...,
    ) -> TimedLine:
        """``pieces``: bits, state's bits, streamed bits, homes as a bit for each kind, picoseconds to run and to fetch by kind, and
        on the host, and by kind bits that are kept where the host runs it. ``kinds``: capacity in bits, picoseconds to the host and
        back, whether it is the host. ``ties``: numbers of pieces, ascending, and the bits that they have together.
        ``closed``: numbers of pieces before which no run may end. ``passing``: by piece, how often a hop is made where a run begins
        with it, to its device and back; none for once and never."""

    def __len__(self) -> int: ...
    def solve(
        self,
        *,
        objective: Literal["latency", "throughput", "pipeline"],
        batches: int,
        any_order: bool,
        search_steps: int,
    ) -> TimedPlan | TimedFailure: ...

@final
class TimedPlan:
    @property
    def latency_ps(self) -> int: ...
    @property
    def bottleneck_ps(self) -> int: ...
    @property
    def value_ps(self) -> int: ...
    @property
    def lower_bound_ps(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def runs(self) -> list[tuple[int, int, int, int, list[Literal["resident", "fetched", "beside", "tied"]]]]:
        """Device, first piece, one past the last, picoseconds, and a way for each piece."""

@final
class TimedFailure:
    @property
    def proven(self) -> bool: ...

@final
class AutoFailure:
    @property
    def unit(self) -> int:
        """The first unit without a place in ``best_partial``."""

    @property
    def more_bits(self) -> list[int | None]:
        """By device, bits that alone would be enough; None where no amount is."""

    @property
    def proven(self) -> bool: ...
    @property
    def best_partial(self) -> list[int | None]:
        """By unit, its device in the best partial plan, or None."""

@final
class Index:
    """Which file of a checkpoint holds which tensor: ``len(self)`` tensors."""

    @staticmethod
    def read(path: str, shown: str) -> Index: ...
    def __len__(self) -> int: ...
    def files(self) -> list[str]: ...
    def tensors(self) -> list[tuple[str, int]]:
        """Names of the tensors that it lists, each with the number of its file: by file, then by name."""

@final
class Headers:
    """Tensors of a checkpoint, in the order of its index or files: ``len(self)`` of them."""

    @staticmethod
    def read(paths: list[str], shown: list[str], index: Index | None) -> Headers:
        """Reads headers; ``shown`` are the paths as messages have them."""

    @staticmethod
    def of_files(files: list[StoredFile], index: Index | None) -> Headers:
        """Reads headers through handles that are open; no file is opened."""

    @staticmethod
    def read_gguf(paths: list[str], shown: list[str]) -> tuple[Headers, dict[str, int | float | bool | str]]:
        """Reads the headers of the files of one GGUF model, in order; also what the first says of the model, without lists."""

    def __len__(self) -> int: ...
    def names(self) -> list[str]:
        """By tensor."""

    def rows(self) -> list[tuple[str, str, list[int], int]]:
        """By tensor, name, type, shape and bytes; of GGUF files, the innermost dimension first."""

    def ranges(self) -> list[tuple[str, int, int, int, str, tuple[int, ...]]]:
        """By tensor, name, number of its file, where its bytes begin and end there, type and shape.

        Raises:
            ValueError: headers of GGUF files, which do not keep this.
        """

    def foreign(self) -> list[str]:
        """Names that the index does not list."""

    @property
    def total_bytes(self) -> int: ...
    def general_names(self) -> list[str]:
        """Names with a zero byte for each number, each once, in the order in which they are met."""

    def tree(
        self,
        live: list[list[str]],
        forms: list[_Form],
        bases: dict[str, list[str]],
        *,
        shown: str,
        by_name: bool,
        dropped: set[int],
        tied: list[tuple[str, str]],
        quantised: bool,
    ) -> tuple[Tree, list[str]]:
        """The tree of the model that these tensors make, and names in the files that are tied to others there.

        Args:
            live: by general name, or by tensor if ``by_name``: names that it becomes.
            bases: by class, names of what it derives from.
            dropped: numbers of tensors that become nothing.
            tied: names of a tensor and of the one that it is.
        """

@final
class StoredFile:
    """One file of a checkpoint, opened once: whatever becomes of its name, this is the file that is read.

    Raises:
        CheckpointError: from every method, if the system refuses, or the handle was closed and is needed.
    """

    @staticmethod
    def open(path: str, shown: str) -> StoredFile:
        """Opens a regular file; ``shown`` is the path as messages have it.

        Raises:
            CheckpointError: no such file, permission denied, a directory, pipe, socket or device.
        """

    @property
    def path(self) -> str: ...
    @property
    def shown(self) -> str: ...
    @property
    def size_bytes(self) -> int:
        """When it was opened."""

    @property
    def identity(self) -> tuple[int, int, int, int]:
        """Device, inode, size in bytes and time of the last write in nanoseconds, when it was opened."""

    def change(self) -> str | None:
        """In what the file is not what it was when it was opened, as words that go behind its name. Cost: 1 µs."""

    def map(self) -> FileMapping:
        """Its bytes as memory, the same object each time; nothing is read.

        Raises:
            CheckpointError: the file was changed since it was opened.
        """

    def mapped_apart(self) -> StoredFile:
        """The same file, whose memory is another one: what is written into either is not seen in the other. Nothing is opened, but where
        the handle was closed; if another file has its name by then, the memory is the same."""

    def page_in(self, begin: int, end: int) -> None:
        """Lets the page cache read bytes ``begin`` to ``end``, other Python threads running meanwhile; returns when the last of it is
        under way."""

    def close(self) -> None:
        """Lets go of the handle. What was mapped stays, and reads that have begun end as they would have."""

    @property
    def is_open(self) -> bool: ...
    def reopen(self) -> None:
        """Opens it again by its path, if it was closed.

        Raises:
            CheckpointError: another file lies there now, or this one was changed.
        """

    def file_system(self) -> Literal["local", "network", "fuse"]: ...

@final
class FileMapping(Buffer):
    """A file's bytes as memory that can be written to, for this process alone; ``len()`` of them.

    A page that was cut from the file cannot be read: the process gets SIGBUS. So ask ``change()`` of the file before.
    """

    def __len__(self) -> int: ...

@final
class PageBuffer(Buffer):
    """Memory of this process at a multiple of 2 MiB, in huge pages as far as the system has them; ``len()`` bytes.

    Tensors made of it hold a reference to it each, so ``sys.getrefcount`` tells whether anybody has one.

    Args:
        size_bytes: rounded up to a multiple of 2 MiB.

    Raises:
        MemoryError: the system has no more.

    Cost:
        Zeroing every byte: all are there when it returns.
    """

    def __new__(cls, size_bytes: int) -> PageBuffer: ...
    def __len__(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    def huge_bytes(self) -> int:
        """Bytes that lie in huge pages now; 0 where the system does not say. Cost: some milliseconds."""

def map_pieces(files: list[StoredFile], pieces: list[tuple[int, int, int]]) -> tuple[FileMapping, int] | None:
    """Pieces of files, one behind the other, as one piece of memory, and at which byte of that the first begins.

    Args:
        pieces: number of the file, first byte, and the byte behind the last.

    Returns:
        None where pages do not allow it: each piece has to begin at the same place of a page as it will in memory.

    Raises:
        CheckpointError: a file was changed since it was opened.
        OffloadError: the system refuses to map or to read.
        ValueError: bytes that are not in a file.

    Cost: two system calls a piece, and the two pages in which it begins and ends are read.
    """

def read_spans(
    files: list[StoredFile],
    spans: list[tuple[int, int, int, int]],
    buffer: Buffer,
    direct: bool,
    threads: int,
) -> tuple[int, int]:
    """Reads bytes of files into memory, several reads of at most 8 MiB at once, other Python threads running meanwhile.

    Args:
        spans: (number of the file, begin, end, at): bytes ``begin`` to ``end`` go to ``at`` of the buffer.
        buffer: anything with memory that can be written to.
        direct: past the page cache. Where the file system refuses, through it, and what was read is dropped from it. Fastest
            where ``begin`` and ``at`` lie alike in their pages, because nothing is copied then.
        threads: reads in flight.

    Returns:
        Bytes that were read, and of these directly.

    Raises:
        ValueError: spans that overlap in the buffer, end outside of it, or name no file. Nothing was read.
        OffloadError: a file that ends before a span does, or the system's fault; file and byte are named. Some of the spans
            may have been read.
        CheckpointError: a file that was closed.

    Guarantee:
        No byte of the buffer outside of the spans is written to.
    """

def cached_bytes(file: StoredFile, begin: int, end: int) -> tuple[int, int]:
    """How many bytes of the pages that a span touches are in the page cache, and how many these pages have.

    Reads nothing. Where the system does not say, none is. Before Linux 6.5, or where the file is somebody else's, one byte a
    MiB is tried, and stands for its MiB.

    Cost:
        3 µs where nothing is cached, 4 µs a MB where all is.
    """
