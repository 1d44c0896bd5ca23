"""The rule's two walks beside each other, on the logits of the default pair: time of a round's choices.

    python benchmarks/rule_walks.py

`verify` (the definition; the embedded engine) lets the device answer for every scheme and weight at once and walks
over the answers on the host. `verify_batch` (vLLM) walks on the device, position by position, and the host need not
know the outcome. Both choose for the same rows, greedily, and what they choose is compared. Medians in milliseconds of
`REPEATS` rounds in turn, by sequences in a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from rich import box
from rich.table import Table
from torch import Tensor
from transformers.utils import logging

from ssd_engine.cli.console import stdout
from ssd_engine.config import GenerationParams, SSDConfig
from ssd_engine.evaluation.machine import processor
from ssd_engine.evaluation.workloads import prompts_of
from ssd_engine.models.checkpoints import LoadOptions, load_model, load_tokenizer
from ssd_engine.models.presets import default_preset, get_preset
from ssd_engine.models.resolve import resolve_pair
from ssd_engine.rule.predictions import Predictions
from ssd_engine.rule.scheme_batch import SchemeBatch
from ssd_engine.rule.verifier import Verifier
from ssd_engine.rule.verify import Turn, verify
from ssd_engine.rule.verify_batch import Positions, verify_batch

SEQUENCES = (1, 8, 64)
REPEATS = 15
CONFIG = SSDConfig()


@torch.inference_mode()
def logits_of(sources: tuple[str, str], text: str, count: int) -> tuple[Tensor, Tensor]:
    """[count, V] of target and draft at consecutive places of a text, said again and again where it is too short."""
    token_ids = load_tokenizer(sources[0])(text, return_tensors="pt").input_ids
    rows = torch.arange(count) % token_ids.shape[1]
    target, draft = (load_model(source, LoadOptions())(token_ids).logits[0] for source in sources)
    width = min(target.shape[-1], draft.shape[-1])
    return target[rows, :width].float(), draft[rows, :width].float()


def walks(target: Tensor, draft: Tensor, sequences: int) -> tuple[Callable[[], list[int]], Callable[[], list[int]]]:
    """A round of each kind over the same rows: [sequences * L, V]; each gives the tokens that stand."""
    length = CONFIG.num_draft_tokens
    drafted = draft.argmax(-1)

    def on_host() -> list[int]:
        params = GenerationParams()
        turns = [Turn(Verifier(params, CONFIG, eos_ids=()), range(length)) for _ in range(sequences)]
        rounds = verify(turns, target, draft, drafted)
        return [choice.token_id for choices in rounds if isinstance(choices, list) for choice in choices]

    def on_device() -> list[int]:
        followed = drafted.clone()
        followed[length - 1 :: length] = -1
        positions = Positions(
            counts=[length] * sequences,
            target=Predictions.of(target, None, None),
            draft=Predictions.of(draft, None, None),
            drafted=drafted,
            followed=followed,
            allowed=None,
        )
        sizes = torch.full_like(drafted, CONFIG.sample_space_size)
        schemes = SchemeBatch.of([CONFIG] * sequences, drafted.device)
        chosen = verify_batch(positions, schemes, sizes, None).token_ids
        return [token_id for token_id in chosen.flatten().tolist() if token_id >= 0]

    return on_host, on_device


def main() -> None:
    """Measure and print."""
    logging.disable_progress_bar()
    target, draft = resolve_pair(get_preset(default_preset()))[:2]
    length = CONFIG.num_draft_tokens
    rows = logits_of((str(target), str(draft)), "\n".join(prompts_of("chat")), max(SEQUENCES) * length)
    table = Table("sequences", "verify, ms", "verify_batch, ms", "ratio", box=box.MARKDOWN)
    for sequences in SEQUENCES:
        both = walks(rows[0][: sequences * length], rows[1][: sequences * length], sequences)
        if both[0]() != both[1]():
            raise SystemExit(f"the two walks choose differently for {sequences} sequences")
        times: list[list[float]] = [[], []]
        for repeat in range(REPEATS):
            for index in (0, 1) if repeat % 2 else (1, 0):
                begin = time.perf_counter()
                both[index]()
                times[index].append(1000 * (time.perf_counter() - begin))
        medians = [median(times_of_one) for times_of_one in times]
        table.add_row(str(sequences), *(f"{value:.1f}" for value in medians), f"{medians[1] / medians[0]:.2f}")
    stdout.print(table)
    stdout.print(f"{processor()}, torch {torch.__version__}, {length} positions a sequence")


if __name__ == "__main__":
    main()
