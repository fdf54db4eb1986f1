"""Dispatched models equal undispatched ones: every transformers class that runs when it is tiny, several device maps each.

    python benches/dispatch_sweep.py                       # everything, on virtual accelerators
    python benches/dispatch_sweep.py --quick               # about thirty classes
    python benches/dispatch_sweep.py --only BertModel --seed 3

What the undispatched model gives on virtual:0 must come out bit for bit; only where the CPU computes, within 1e-4. Afterwards
no byte may be left on a device, and undoing it must bring back the model as it was, down to its attributes. Each class has a
process of its own with a time limit. Exits with 1 if something is wrong, raised, left behind, crashed or hung.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import logging
import math
import multiprocessing
import random
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import planner
import tiny_zoo
from dispatch_maps import Case, cases, covering

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from rig import Accelerators, faults  # type: ignore[import-not-found]

TIME_LIMIT_S = 120.0
SLOW_S = 1.5  # the accelerators' kernels are slower still, and there are about twenty forwards
PRELOADED = "transformers.modeling_utils"  # for all classes at once
MARK = "@@"  # begins what a class's process tells
CLOSE = 1e-4
# Of each kind something, and what has been wrong once.
QUICK = (
    "ASTForAudioClassification",
    "AlbertForMaskedLM",
    "BartModel",
    "BertModel",
    "BloomForCausalLM",
    "CLIPModel",
    "CTRLLMHeadModel",
    "DeepseekV3ForCausalLM",
    "DiaModel",
    "ErnieForCausalLM",
    "FNetForMaskedLM",
    "FalconForCausalLM",
    "FastSpeech2ConformerModel",
    "GPTNeoXForCausalLM",
    "Gemma3ForConditionalGeneration",
    "GemmaForCausalLM",
    "GptOssForCausalLM",
    "Idefics3Model",
    "Llama4ForCausalLM",
    "LlavaForConditionalGeneration",
    "MT5ForConditionalGeneration",
    "MambaForCausalLM",
    "MixtralForCausalLM",
    "ModernVBertModel",
    "NllbMoeModel",
    "OpenAIGPTModel",
    "ProphetNetModel",
    "Qwen3OmniMoeThinkerForConditionalGeneration",
    "ResNetModel",
    "SwinModel",
    "WhisperModel",
)
FAULTS = ("wrong", "raised", "left behind", "crash", "hang", "greedy", "broken")
RIGHT = (
    "equal",
    "refused, equal with fetch",
    "devices mixed by the model",
    "device of an offloaded weight",
    "no map",
    "not tried",
)
MIXED = ("same device", "is on virtual", "is on cpu", "but found at least two devices", "different device")


# ---- One class, in a process of its own


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Everything in an output, caches included."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
    elif "Cache" in type(value).__name__ or "CacheLayer" in str(type(value).__mro__):
        yield from tensors([vars(value)[key] for key in sorted(vars(value))])


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same shape, class of values and bytes; NaN equals itself."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    first, second = (t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (one, other))
    return first.equal(second)


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are nearly equal."""
    same = one.shape == other.shape and one.dtype == other.dtype
    return same and torch.allclose(one.detach().cpu(), other.detach().cpu(), CLOSE, CLOSE, equal_nan=True)


def differences(found: Any, wanted: Any, is_same: Callable[[torch.Tensor, torch.Tensor], bool]) -> str:
    """What differs between two outputs, in words; nothing if nothing does."""
    one, other = list(tensors(found)), list(tensors(wanted))
    if len(one) != len(other):
        return f"{len(one)} tensors for {len(other)}"
    bad = [i for i, (a, b) in enumerate(zip(one, other, strict=True)) if not is_same(a, b)]
    if not bad:
        return ""
    a, b = one[bad[0]].detach().cpu(), other[bad[0]].detach().cpu()
    far = (a.double() - b.double()).abs().max().item() if a.shape == b.shape and a.numel() else "shape"
    return f"{len(bad)} of {len(one)} tensors differ, the first by {far}"


def run(model: nn.Module, given: Mapping[str, torch.Tensor], device: Any) -> Any:
    """A forward, with the same random numbers each time."""
    torch.manual_seed(1)
    with torch.no_grad():
        return model(**{key: value.to(device) for key, value in given.items()})


@dataclass
class State:
    """A model as it is: bytes, ties, attributes."""

    values: dict[str, torch.Tensor]
    ties: list[int]
    attributes: dict[str, set[str]]

    @classmethod
    def of(cls, model: nn.Module) -> State:
        """Now."""
        named = [
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ]
        first: dict[int, int] = {}
        return cls(
            {name: tensor.detach().clone() for name, tensor in named},
            [first.setdefault(id(tensor), index) for index, (_, tensor) in enumerate(named)],
            {name: set(vars(module)) for name, module in model.named_modules()},
        )

    def against(self, other: State) -> str:
        """What differs, in words; nothing if nothing does."""
        if self.values.keys() != other.values.keys():
            return f"names {sorted(self.values.keys() ^ other.values.keys())[:3]}"
        for name, tensor in self.values.items():
            if other.values[name].device != tensor.device or not same_bits(other.values[name], tensor):
                return f"'{name}' on {other.values[name].device}"
        if self.ties != other.ties:
            return "ties"
        changed = [name for name, keys in self.attributes.items() if other.attributes.get(name) != keys]
        return f"attributes of {changed[:3]}" if changed else ""


@dataclass
class Subject:
    """A class that runs: the model on the CPU, its inputs, and what is wanted of it."""

    model: Any
    given: dict[str, torch.Tensor]
    on_cpu: Any
    wanted: Any
    before: State
    keeps_bytes: bool  # whether the model itself keeps something on the device after its first forward


def subject(name: str, accelerators: Accelerators, limit_s: float = math.inf) -> Subject:
    """The first that runs, from the smallest; no slower than a limit. Raises NotRunnableError with the first reasons."""
    reasons: dict[str, None] = {}
    for level in (0, 1):
        try:
            model = tiny_zoo.build(name, level)
        except Exception as error:
            reasons[f"build: {reason(error)}"] = None
            continue
        for given in tiny_zoo.inputs(model):
            try:
                return prepared(model, given, accelerators, limit_s)
            except tiny_zoo.NotRunnableError:
                raise
            except Exception as error:
                reasons.setdefault(f"run: {reason(error)}")
    raise tiny_zoo.NotRunnableError(" | ".join(list(reasons)[:3]))


def prepared(
    model: Any, given: dict[str, torch.Tensor], accelerators: Accelerators, limit_s: float
) -> Subject:
    """The undispatched model's answers, on the CPU and on virtual:0."""
    try:
        run(model, given, "cpu")
    except Exception as error:
        longer = tiny_zoo.with_pictures(given, model, str(error))
        if longer is None:
            raise
        given = longer
        run(model, given, "cpu")
    started = time.monotonic()
    on_cpu = run(model, given, "cpu")
    if time.monotonic() - started > limit_s:
        raise tiny_zoo.NotRunnableError(f"a forward takes more than {limit_s} s")
    if next(tensors(on_cpu), None) is None:
        raise tiny_zoo.NotRunnableError("gives no tensors")
    before = State.of(model)
    plain = copy.deepcopy(model)
    try:
        plain.to(0)
        used = used_bytes(accelerators)
        wanted, again = copied(run(plain, given, 0)), copied(run(plain, given, 0))
        gc.collect()
        keeps_bytes = used_bytes(accelerators) != used
    except Exception as error:
        raise tiny_zoo.NotRunnableError(f"only on the CPU: {reason(error)}") from error
    for one, other in ((again, wanted), (run(model, given, "cpu"), on_cpu)):
        if what := differences(one, other, same_bits):
            raise tiny_zoo.NotRunnableError(f"not the same twice: {what}")
    return Subject(model, given, on_cpu, wanted, before, keeps_bytes)


def copied(output: Any) -> list[torch.Tensor]:
    """The tensors of an output, on the CPU."""
    return [tensor.detach().cpu().clone() for tensor in tensors(output)]


def used_bytes(accelerators: Accelerators) -> list[int]:
    """On both devices."""
    return [accelerators.used_bytes(device.index) for device in accelerators.devices]


def reason(error: BaseException) -> str:
    """An error in a line."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first[:160]}"


def judge_case(at: Subject, case: Case, accelerators: Accelerators) -> tuple[str, str]:
    """Dispatches, runs, undoes; a word and what there is to say."""
    verdict = judge_forward(at, case, accelerators)
    remove(at.model)
    if what := at.before.against(State.of(at.model)):
        return "left behind", f"after undispatch: {what}"
    if what := differences(run(at.model, at.given, "cpu"), at.on_cpu, same_bits):
        return "left behind", f"forward after undispatch: {what}"
    return verdict


def judge_forward(at: Subject, case: Case, accelerators: Accelerators, **options: Any) -> tuple[str, str]:
    """The same without undoing it. Where the model reads a weight from outside of its module, once more with fetching."""
    try:
        case.dispatched(at.model, **options)
        what = compared(at, case, accelerators)
    except planner.OffloadError as error:
        if options or "outside the forward" not in str(error):
            return verdict_on(error, at, case)
        word, text = judge_forward(at, case, accelerators, outside="fetch")
        return (
            ("refused, equal with fetch", str(error)[:200]) if word == "equal" else (word, f"fetch: {text}")
        )
    except RuntimeError as error:
        return verdict_on(error, at, case)
    if what.startswith("left"):
        return "left behind", what
    return ("wrong", what) if what else ("equal", "")


def verdict_on(error: Exception, at: Subject, case: Case) -> tuple[str, str]:
    """Whether the model's own code is at fault, which others' dispatch must then show, too."""
    if any(word in str(error) for word in MIXED) and mixes_devices(at, case):
        return "devices mixed by the model", reason(error)
    if "meta" in str(error) and reads_meta(at, case):
        return "device of an offloaded weight", reason(error)
    return "raised", text_of(error)


def compared(at: Subject, case: Case, accelerators: Accelerators) -> str:
    """What is wrong with the forward of a dispatched model, in words; nothing if nothing is."""
    is_same = same_bits if case.is_exact else close
    where, used = devices(at.model), used_bytes(accelerators)
    for turn in range(2):
        output = run(at.model, at.given, 0)
        if what := differences(output, at.wanted, is_same):
            return what
        away = [tensor for key, tensor in named_outputs(output) if tensor.device != torch.device(0)]
        if away:
            return f"an output on {away[0].device}"
        del output, away
        if devices(at.model) != where:
            return "left: a weight is not where it was"
        if used_bytes(accelerators) == used:
            return ""
        gc.collect()  # what is only held by cycles
        if used_bytes(accelerators) == used:
            return ""
        if turn == 0 and (at.keeps_bytes or sum(used_bytes(accelerators)) <= sum(used)):
            used = used_bytes(accelerators)  # a cache of the model's own, or a buffer that it moves itself
            continue
        return f"left: {used_bytes(accelerators)} bytes, {used} before"
    return ""


def named_outputs(output: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors that are items of an output; those in caches lie with their layers."""
    if isinstance(output, Mapping):
        yield from ((key, value) for key, value in output.items() if isinstance(value, torch.Tensor))


def devices(model: nn.Module) -> dict[str, torch.device]:
    """Where each weight is seen to lie."""
    return {name: tensor.device for name, tensor in model.named_parameters(remove_duplicate=False)}


def mixes_devices(at: Subject, case: Case) -> bool:
    """Whether the model placed by hand fails, too: then its own code mixes the devices of its blocks.

    Every module below a key brings its arguments with a plain hook of torch, and no dispatch of ours is in it.
    """
    from accelerate.utils import send_to_device

    remove(at.model)
    twin = copy.deepcopy(at.model)
    for name, module in twin.named_modules():
        device = case.runs_on(name)
        for table in (module._parameters, module._buffers):
            for key, tensor in table.items():
                target = case.runs_on(f"{name}.{key}" if name else key) if device is None else device
                if tensor is not None and target is not None:
                    table[key] = moved(tensor, target)
        if device is not None:
            module.register_forward_pre_hook(
                lambda _, args, kwargs, to=device: (send_to_device(args, to), send_to_device(kwargs, to)),
                with_kwargs=True,
            )
    try:
        run(twin, at.given, 0)
    except RuntimeError as error:
        return any(word in str(error) for word in MIXED)
    return False


def reads_meta(at: Subject, case: Case) -> bool:
    """Whether accelerate's dispatch fails, too: the model asks an offloaded weight for its device, which is "meta"."""
    from accelerate import cpu_offload, dispatch_model

    said = covering(at.model, case.places)
    remove(at.model)
    twin = copy.deepcopy(at.model)
    try:
        if set(said) == {""}:
            cpu_offload(twin, 0)
        else:
            skip_keys = getattr(twin, "_skip_keys_device_placement", None)
            dispatch_model(twin, said, main_device=0, skip_keys=skip_keys)
        run(twin, at.given, 0)
    except RuntimeError as error:
        return any(word in str(error) for word in ("meta", *MIXED))
    return False


def moved(tensor: torch.Tensor, device: Any) -> torch.Tensor:
    """The same on a device, a parameter if it is one."""
    made = tensor.detach().to(device)
    return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made


def remove(model: nn.Module) -> None:
    """Undoes a dispatch, if there is one."""
    if getattr(model, "hf_device_map", None) is not None:
        planner.undispatch(model)


def judge_gradients(at: Subject, case: Case) -> tuple[str, str]:
    """Gradients of the embedded words, with frozen weights, nearly equal those of the undispatched model."""
    at.model.requires_grad_(False)
    plain = copy.deepcopy(at.model).to(0)
    try:
        wanted = gradients(plain, at.given)
    except Exception:
        return "not tried", ""
    if not wanted:
        return "not tried", ""
    case.dispatched(at.model)
    try:
        found = gradients(at.model, at.given)
    except planner.OffloadError as error:
        return ("not tried", "") if "outside the forward" in str(error) else verdict_on(error, at, case)
    except RuntimeError as error:
        return verdict_on(error, at, case)
    finally:
        remove(at.model)
    what = differences(found, wanted, close)
    return ("wrong", what) if what else ("equal", "")


def gradients(model: Any, given: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """With regard to what comes out of the input embeddings."""
    caught: list[torch.Tensor] = []

    def catch(module: nn.Module, args: Any, output: Any) -> Any:
        caught.append(output.detach().requires_grad_(True))
        return caught[-1]

    handle = model.get_input_embeddings().register_forward_hook(catch)
    try:
        torch.manual_seed(1)
        output = model(**{key: value.to(0) for key, value in given.items()})
        first = next(tensor for tensor in tensors(output) if tensor.requires_grad)
        first.float().square().mean().backward()  # type: ignore[no-untyped-call]
    finally:
        handle.remove()
    return [leaf.grad.cpu() for leaf in caught if leaf.grad is not None]


def text_of(error: BaseException) -> str:
    """An error with where it came from."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return reason(error) + "\n      " + "\n      ".join(lines[-13:])


def tell(**said: Any) -> None:
    """A line for the sweep."""
    print(MARK + json.dumps(said), flush=True)


def sweep_class(name: str, seed: int) -> None:
    """All cases of one class; tells what it does before it does it."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    accelerators = Accelerators()
    gc.freeze()  # of what was imported, nothing is garbage
    try:
        at = subject(name, accelerators, SLOW_S)
    except tiny_zoo.NotRunnableError as error:
        tell(reason=str(error))
        return
    count = sum(parameter.numel() for parameter in at.model.parameters())
    tell(runs=sorted(at.given), parameters=count)
    drawn = cases(at.model, random.Random(f"{seed} {name}"))
    for case in drawn:
        if isinstance(case, str):
            tell(case="plan or infer_auto_device_map", word=case, text="")
            continue
        tell(begins=str(case)[:20_000])
        try:
            word, text = judge_case(at, case, accelerators)
        except Exception as error:
            word, text = "raised", text_of(error)
        tell(case=case.title, word=word, text=text, map=str(case)[:20_000] if word in FAULTS else "")
        keeps_bytes = at.keeps_bytes
        if word in FAULTS:
            at = subject(name, accelerators)
        if case.title == "blocks":
            word, text = judge_gradients(at, case)
            tell(case="gradients", word=word, text=text, map=str(case)[:20_000])
            at = subject(name, accelerators)
        at.keeps_bytes |= keeps_bytes  # a cache may be the class's, and then it is filled by now


# ---- All classes


@dataclass
class Found:
    """What one class gave."""

    name: str
    seconds: float
    reason: str | None = None
    runs: list[str] = field(default_factory=list)
    cases: list[dict[str, str]] = field(default_factory=list)

    @property
    def faults(self) -> list[dict[str, str]]:
        """Cases that should not be."""
        return [row for row in self.cases if row["word"] in FAULTS]


def judge_class(name: str, seed: int) -> Found:
    """One class in a process of its own."""
    started = time.monotonic()
    if PRELOADED not in faults.PRELOADED:
        faults.PRELOADED.append(PRELOADED)
    ended = faults.judge(sweep_class, name, seed, time_limit_s=TIME_LIMIT_S, memory_limit_bytes=6 << 30)
    said = [json.loads(line[len(MARK) :]) for line in ended.output.splitlines() if line.startswith(MARK)]
    found = Found(name, round(time.monotonic() - started, 1))
    last = ""
    for row in said:
        found.reason = row.get("reason", found.reason)
        found.runs = row.get("runs", found.runs)
        last = row.get("begins", "" if "case" in row else last)
        if "case" in row:
            found.cases.append(row)
    if ended.verdict is not faults.Verdict.CLEAN:
        text = f"{ended.message}\n{ended.output[-1500:]}"
        word = "broken" if ended.verdict is faults.Verdict.UNCLEAR else ended.verdict.value
        if found.runs:
            found.cases.append({"case": last.partition(" ")[0], "word": word, "text": text, "map": last})
        else:
            found.reason = f"{word} when undispatched: {ended.message}"
    return found


def report(found: Found, seed: int) -> None:
    """Prints the faults of one class."""
    for row in found.faults:
        print(f"{row['word']}: --only {found.name} --seed {seed}: {row['case']}\n    {row['text']}")
        print(f"    {row['map'][:1500]}", flush=True)


def totals(every: list[Found]) -> Iterator[str]:
    """The table of counts."""
    runnable = [found for found in every if found.runs]
    yield f"{len(every)} classes, {len(runnable)} run, {len(every) - len(runnable)} do not"
    counts = Counter((row["case"], row["word"]) for found in runnable for row in found.cases)
    words = [*RIGHT, *FAULTS]
    for word in words:
        number = sum(count for (_, said), count in counts.items() if said == word)
        yield f"  {word:<30}{number:>7}   " + ", ".join(
            f"{title} {count}" for (title, said), count in sorted(counts.items()) if said == word
        )
    yield f"  {'cases':<30}{counts.total():>7}"


def main() -> int:
    """Sweeps, prints every fault and the totals; 1 if there is a fault."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{len(QUICK)} classes")
    parser.add_argument("--only", default="", help="only these classes, or those whose name contains this")
    parser.add_argument("--seed", type=int, default=0, help="another one draws other maps")
    parser.add_argument("--every", type=int, default=1, help="only every n-th class")
    parser.add_argument("--jobs", type=int, default=1, help="classes at once")
    parser.add_argument("--json", type=Path, help="a file for everything that was found")
    chosen = parser.parse_args()
    names = tiny_zoo.names()
    exact = [name for name in chosen.only.split(",") if name in names]
    names = exact or [name for name in names if chosen.only in name]
    names = [name for name in names if name in QUICK] if chosen.quick else names[:: chosen.every]
    every: list[Found] = []
    started = time.perf_counter()
    # Processes, not threads: two that start processes at once can take each other's exit codes.
    with ProcessPoolExecutor(chosen.jobs, multiprocessing.get_context("spawn")) as pool:
        for found in pool.map(judge_class, names, [chosen.seed] * len(names)):
            every.append(found)
            said = found.reason or f"{len(found.cases)} cases, {len(found.faults)} faults"
            print(
                f"{len(every)} of {len(names)}: {found.name}: {found.seconds} s, {said[:150]}",
                file=sys.stderr,
            )
            report(found, chosen.seed)
            if chosen.json:
                chosen.json.write_text(json.dumps([asdict(found) for found in every], indent=1))
    print(f"{time.perf_counter() - started:.0f} s")
    print("\n".join(totals(every)))
    return int(any(found.faults for found in every))


if __name__ == "__main__":
    sys.exit(main())
