"""The page on machines, as it is written: its script and its first command, started by torchrun itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipelines.whole import saved

PAGE = Path(__file__).parent.parent.parent / "docs" / "machines.md"


def test_the_script_of_the_page_runs_as_the_page_says(tmp_path: Path) -> None:
    whole = saved("llama")
    page = PAGE.read_text()
    script = re.search(r"^```py\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    command = re.search(r"^torchrun --standalone .*$", page, re.MULTILINE)
    assert script and command
    (tmp_path / "llama").symlink_to(whole.folder)
    words = {
        word: number
        for number, word in enumerate(["[PAD]", "[UNK]", "Once", "upon", "a", "time", "The", "sea"])
    }
    words |= {f"w{number}": number for number in range(len(words), 64)}
    split = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    split.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=split, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(whole.folder)
    (tmp_path / "plan.json").write_text(whole.plan("throughput").to_json())
    (tmp_path / "generate.py").write_text(script[1])
    done = subprocess.run(
        ["bash", "-c", command[0]],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join(sys.path),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    asked = tokenizer(["Once upon a time", "The sea"], padding=True, padding_side="left")
    call = {"ids": asked["input_ids"], "attention_mask": asked["attention_mask"], "max_new_tokens": 100}
    assert done.stdout.strip() == str(tokenizer.batch_decode(whole.tokens(call)))
