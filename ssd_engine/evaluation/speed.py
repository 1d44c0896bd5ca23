"""The speed benchmark: one run, the same prompts for all, in alternating order, medians."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median

import torch

from ssd_engine.backends.vllm.compat import installed as vllm_version
from ssd_engine.config import Backend, SSDConfig
from ssd_engine.errors import InvalidRequestError
from ssd_engine.evaluation.contenders import Contender, Host, HostProcess, Messages, Sample
from ssd_engine.evaluation.guided import measure as measure_guided
from ssd_engine.evaluation.llama_cpp import installed as llama_cpp_version
from ssd_engine.evaluation.llama_cpp import require_files
from ssd_engine.evaluation.machine import machine
from ssd_engine.evaluation.speed_report import ContextRow, Report, Row, SecondTurn
from ssd_engine.evaluation.workloads import prompts_of
from ssd_engine.models.bandwidth import memory_bandwidth
from ssd_engine.models.checkpoints import LoadOptions
from ssd_engine.models.fetch import fetch
from ssd_engine.models.pair import PairSpec
from ssd_engine.models.presets import GGUFSource
from ssd_engine.models.resolve import resolve_spec
from ssd_engine.models.sizes import bytes_read

_TRANSFORMERS = Host(library="transformers")
_ENGINE = Host(library="ssd")
_INT8_DRAFT = Host(library="ssd", draft_quantization="int8")
_INT8 = Host(library="ssd", target_quantization="int8", draft_quantization="int8")
GENERATE = Contender(name="generate", host=_TRANSFORMERS)
SSD = Contender(name="ssd", host=_ENGINE, decoding="ssd")
CONTENDERS = (
    GENERATE,
    # transformers takes no batch here
    Contender(name="assisted", host=_TRANSFORMERS, decoding="speculative", most_requests=1),
    Contender(name="target", host=_ENGINE),
    Contender(name="speculative", host=_ENGINE, decoding="speculative"),
    SSD,
    Contender(name="ssd, int8 draft", host=_INT8_DRAFT, decoding="ssd"),
    Contender(name="target, int8", host=_INT8),
    Contender(name="ssd, int8 both", host=_INT8, decoding="ssd"),
)
LLAMA_CPP_CONTENDERS = (
    Contender(name="llama.cpp", host=Host(library="llama.cpp")),
    Contender(name="llama.cpp, speculative", host=Host(library="llama.cpp, drafting")),
)
"""Beside the others where they are named: the pair's GGUF files, the draft without its adapter."""
_LLAMA_CPP = ("llama.cpp", "llama.cpp, drafting")
_ON_VLLM = Host(library="ssd on vllm")
VLLM = Contender(name="vllm", host=Host(library="vllm"))
VLLM_CONTENDERS = (
    VLLM,
    Contender(name="vllm, speculative", host=_ON_VLLM, decoding="speculative"),
    Contender(name="vllm, ssd", host=_ON_VLLM, decoding="ssd"),
    SSD,
)
"""With `backend="vllm"`: the same target and the same draft, adapter included, in all of them."""


def run(
    pair: PairSpec,
    *,
    workloads: Sequence[str] = ("chat",),
    limit: int | None = None,
    requests: Sequence[int] = (1,),
    contexts: Sequence[int] = (),
    names: Sequence[str] = (),
    backend: Backend = "transformers",
    vllm_dtype: str | None = None,
    max_new_tokens: int = 64,
    is_quick: bool = False,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Report:
    """Measure all contenders on one pair.

    Each library, in each precision, has its own process. The prompts are asked in groups of each size in `requests`,
    all of a group at once; for every group the order of the contenders moves on by one.

    Args:
        workloads: what is asked, one after the other.
        limit: so many of each one's prompts alone.
        requests: numbers of requests at once.
        contexts: prompt lengths at which `ssd` is measured too, in tokens.
        names: contenders to measure; empty: all but llama.cpp's.
        backend: "transformers", or "vllm" for vLLM alone, with its own speculation and with SSD, beside this engine.
        vllm_dtype: type of the weights in vLLM; None: the checkpoint's own, in which not every processor is quick.
        is_quick: measures nothing but the table's rows.
        progress: is told the contender, and how many groups of how many are done.

    Raises:
        InvalidRequestError: a name is not a contender's or a workload's, or llama.cpp is named and cannot be had.
    """
    named, asked = pair.names, {workload: prompts_of(workload)[:limit] for workload in workloads}
    contenders = _named(names, VLLM_CONTENDERS if backend == "vllm" else CONTENDERS)
    in_llama_cpp = _gguf_pair(pair, contenders)
    on_vllm = resolve_spec(pair.replaced(backend="vllm", dtype=vllm_dtype)) if backend == "vllm" else None
    pair = resolve_spec(pair)
    pairs = {"ssd on vllm": on_vllm, "vllm": on_vllm, **dict.fromkeys(_LLAMA_CPP, in_llama_cpp)}
    baseline = VLLM if backend == "vllm" else GENERATE
    is_about_engine = SSD in contenders and backend == "transformers" and not is_quick
    bandwidth = memory_bandwidth(torch.device(LoadOptions.of(pair)[0].placement_type or "cpu"))
    samples: dict[str, list[list[Sample]]] = {}
    context_rows: list[ContextRow] = []
    guided = None
    # What vLLM loads has no room beside the others: there one process follows another.
    for together in _by_host(contenders) if backend == "vllm" else [contenders]:
        with ExitStack() as stack:
            hosts = _loaded(together, lambda host: pairs.get(host.library) or pair, stack, progress)
            tasks = [
                (workload, *task) for workload, prompts in asked.items() for task in _tasks(together, prompts, requests)
            ]
            num_steps = len(tasks) + (len(contexts) + 2 if is_about_engine else 0)
            for done, (workload, contender, group) in enumerate(tasks):
                progress(f"{contender.name}, {len(group)} at once, {workload}", done, num_steps)
                answers = hosts[contender.host].answer(contender.decoding, group, max_new_tokens)
                samples.setdefault(_key(workload, contender, len(group)), []).append(answers)
            if is_about_engine:
                engine = hosts[_ENGINE]
                for done, length in enumerate(contexts, len(tasks)):
                    progress(f"ssd after {length} tokens", done, num_steps)
                    context_rows.append(_context_row(engine, length, max_new_tokens))
                progress("ssd under a grammar", num_steps - 2, num_steps)
                guided = measure_guided(engine)
    if is_about_engine:
        progress("a second turn of ssd", num_steps - 1, num_steps)
    second_turn = _second_turn(pair) if is_about_engine else None
    weights = {host: _weights(host, pairs.get(host.library) or pair) for host in {each.host for each in contenders}}
    rows = tuple(
        _row(contender, workload, number, samples, pair.settings, baseline, weights[contender.host], bandwidth)
        for workload in workloads
        for number in requests
        for contender in contenders
        if _key(workload, contender, number) in samples
    )
    environment = {
        "date": datetime.date.today().isoformat(),
        "target": named.target.rsplit("/", 1)[-1],
        "draft": named.draft.rsplit("/", 1)[-1],
        "num_draft_tokens": pair.settings.num_draft_tokens,
        "compile": bool(pair.compile),
        "workloads": list(workloads),
        "prompts": max(map(len, asked.values())),
        "bytes_per_second": bandwidth,
        "max_new_tokens": max_new_tokens,
        **machine(),
    }
    if any(_is_on_vllm(contender.host) for contender in contenders):
        environment |= {"vllm": vllm_version(), "vllm_dtype": vllm_dtype or "auto"}
    if in_llama_cpp is not None:
        environment["llama_cpp"] = llama_cpp_version()
    return Report(rows, tuple(context_rows), second_turn, guided, environment, samples)


def _by_host(contenders: Sequence[Contender]) -> list[list[Contender]]:
    """The contenders that share a process, process by process."""
    hosts = dict.fromkeys(contender.host for contender in contenders)
    return [[contender for contender in contenders if contender.host == host] for host in hosts]


def _is_on_vllm(host: Host) -> bool:
    return "vllm" in host.library


def _loaded(
    contenders: Sequence[Contender],
    pair_of: Callable[[Host], PairSpec],
    stack: ExitStack,
    progress: Callable[[str, int, int], None],
) -> dict[Host, HostProcess]:
    """The contenders' processes, each of which has answered once."""
    processes: dict[Host, HostProcess] = {}
    first = {contender.host: contender for contender in reversed(contenders)}
    for i, (host, contender) in enumerate(first.items()):
        progress(f"loading {host.library}", i, len(first))
        processes[host] = stack.enter_context(closing(HostProcess(host, pair_of(host))))
        processes[host].answer(contender.decoding, [_question("Say hello.")], 8)
    return processes


def quick_names(pair: PairSpec) -> list[str]:
    """The contenders of a quick look: the pair in its usual form here, alone and with SSD, and llama.cpp's if there."""
    own = ["target, int8", "ssd, int8 both"] if LoadOptions.of(pair)[0].placement_type == "cpu" else ["target", "ssd"]
    preset = pair.named_preset
    has_files = preset is not None and isinstance(preset.target, GGUFSource) and isinstance(preset.draft, GGUFSource)
    has_llama_cpp = has_files and llama_cpp_version() is not None
    return [*own, *(contender.name for contender in LLAMA_CPP_CONTENDERS)] if has_llama_cpp else own


def _gguf_pair(pair: PairSpec, contenders: Sequence[Contender]) -> PairSpec | None:
    """The pair by its GGUF files, fetched; None where no contender needs them."""
    if not any(contender.host.library in _LLAMA_CPP for contender in contenders):
        return None
    preset = pair.named_preset
    if preset is not None:
        files = [str(fetch(source)) for source in (preset.target, preset.draft) if isinstance(source, GGUFSource)]
        pair = pair.replaced(preset=None, **dict(zip(("target", "draft"), files, strict=False)))
    require_files(pair)
    return pair


def _named(names: Sequence[str], contenders: Sequence[Contender]) -> tuple[Contender, ...]:
    every = (*contenders, *LLAMA_CPP_CONTENDERS)
    known = [contender.name for contender in every]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidRequestError(f"contender {unknown[0]!r} is unknown; use {', '.join(map(repr, known))}")
    return tuple(contender for contender in every if contender.name in names) if names else tuple(contenders)


def _tasks(
    contenders: Sequence[Contender], prompts: Sequence[str], requests: Sequence[int]
) -> Iterator[tuple[Contender, list[Messages]]]:
    """Every contender with every group of prompts; groups larger than the list of prompts go round it."""
    turn = 0
    for number in requests:
        for first in range(0, max(len(prompts), number), number):
            group = [_question(prompts[(first + i) % len(prompts)]) for i in range(number)]
            for contender in (*contenders[turn:], *contenders[:turn]):
                if number <= contender.most_requests:
                    yield contender, group
            turn = (turn + 1) % len(contenders)


def _key(workload: str, contender: Contender, requests: int) -> str:
    return f"{workload}: {contender.name} x {requests}"


Weights = tuple[int, int] | None
"""Bytes of target and draft that a pass reads; None where the library does not tell its passes, or reads otherwise."""


def _weights(host: Host, pair: PairSpec) -> Weights:
    if host.library == "llama.cpp":
        return Path(str(pair.target)).stat().st_size, 0
    if host.library != "ssd":
        return None
    loaded = pair.replaced(target_quantization=host.target_quantization, draft_quantization=host.draft_quantization)
    target, draft = LoadOptions.of(loaded)
    return bytes_read(str(pair.target), target), bytes_read(str(pair.draft), draft)


def _bytes_per_second(samples: Sequence[Sample], weights: Weights) -> float | None:
    """Of weights, while decoding one request."""
    if weights is None:
        return None
    seconds = sum(sample.target_forward + sample.draft_forward + sample.selection for sample in samples)
    if seconds:
        passes = sum(sample.rounds for sample in samples), sum(sample.draft_passes for sample in samples)
        return (passes[0] * weights[0] + passes[1] * weights[1]) / seconds
    speeds = [speed for sample in samples if (speed := sample.decoding_tokens_per_second) is not None]
    return weights[0] * median(speeds) if speeds else None


def bound_tokens_per_second(samples: Sequence[Sample], num_draft_tokens: int) -> float:
    """The most that these forward passes and this match rate allow: E / (L t_m + t_M(L)), E = (1 - a^L) / (1 - a)."""
    rounds = sum(sample.rounds for sample in samples)
    seconds_a_round = sum(sample.draft_forward + sample.target_forward for sample in samples) / rounds
    tokens = sum(sample.tokens for sample in samples)
    acceptance = sum((sample.match_rate or 0.0) * sample.tokens for sample in samples) / tokens
    tokens_a_round = sum(acceptance**i for i in range(num_draft_tokens))
    return tokens_a_round / seconds_a_round


def _row(
    contender: Contender,
    workload: str,
    requests: int,
    samples: dict[str, list[list[Sample]]],
    config: SSDConfig,
    baseline: Contender,
    weights: Weights,
    bandwidth: float,
) -> Row:
    groups = samples[_key(workload, contender, requests)]
    base = samples.get(_key(workload, baseline, requests))
    flat = [sample for group in groups for sample in group]
    engine = [sample for sample in flat if sample.rounds]
    drafted = [sample for sample in engine if sample.match_rate is not None]
    timed = [sample for sample in drafted if sample.target_forward]  # vLLM does not tell how long its passes take
    speeds = [_speed(group) for group in groups]
    decoding = [speed for sample in flat if (speed := sample.decoding_tokens_per_second) is not None]
    rate = _bytes_per_second(flat, weights) if requests == 1 else None
    return Row(
        name=contender.name,
        workload=workload,
        requests=requests,
        tokens_per_second=median(speeds),
        tokens_per_second_each=median(sample.tokens_per_second for sample in flat),
        decoding_tokens_per_second=median(decoding) if decoding and requests == 1 else None,
        ratio_to_baseline=(
            median(speed / _speed(other) for speed, other in zip(speeds, base, strict=True)) if base else None
        ),
        match_rate=median(sample.match_rate or 0.0 for sample in drafted) if drafted else None,
        tokens_per_round=median(sample.tokens / sample.rounds for sample in engine) if engine else None,
        seconds_per_round=sum(s.total for s in engine) / sum(s.rounds for s in engine) if engine else None,
        first_token=median(sample.first_token for sample in flat),
        first_token_p95=sorted(sample.first_token for sample in flat)[math.ceil(0.95 * len(flat)) - 1],
        peak_memory=max(sample.peak_memory for sample in flat) or None,
        bytes_per_second=rate,
        share_of_bandwidth=rate and rate / bandwidth,
        share_of_bound=_share_of_bound(timed, config) if timed and requests == 1 else None,
        share_of_rule=sum(s.selection for s in timed) / sum(s.total for s in timed) if timed else None,
    )


def _speed(group: Sequence[Sample]) -> float:
    """Tokens a second of requests that were asked at once."""
    return sum(sample.tokens for sample in group) / max(sample.total for sample in group)


def _share_of_bound(drafted: Sequence[Sample], config: SSDConfig) -> float | None:
    if config.num_draft_tokens == "auto":
        return None  # the bound is of one draft length
    decoded = sum(sample.tokens - sample.first_round_tokens for sample in drafted)
    decoding = sum(sample.total - sample.first_token for sample in drafted)
    return decoded / decoding / bound_tokens_per_second(drafted, config.num_draft_tokens)


def _context_row(process: HostProcess, length: int, max_new_tokens: int) -> ContextRow:
    """A prompt of about `length` tokens, of numbered sentences that no other prompt begins with."""
    sentences = "\n".join(f"{length}-{i}. The parcel goes to house {i * 37 % 100}." for i in range(length // 16))
    [sample] = process.answer("ssd", [_question(f"{sentences}\nSum up what this list is about.")], max_new_tokens)
    decoded = sample.tokens - sample.first_round_tokens
    return ContextRow(
        prompt_tokens=sample.prompt_tokens,
        first_token=sample.first_token,
        tokens_per_second=decoded / (sample.total - sample.first_token),
        peak_memory=sample.peak_memory,
    )


def _second_turn(pair: PairSpec) -> SecondTurn:
    """Ask about a text of some 1,000 tokens, then ask again."""
    facts = "\n".join(f"{i}. Parcel {i} goes to house {i * 37 % 100} on street {i * 53 % 90}." for i in range(1, 51))
    first_turn = _question(f"{facts}\nWhich house does parcel 7 go to?")
    with closing(HostProcess(Host(library="ssd", keeps_prefixes=True), pair)) as process:
        [first] = process.answer("ssd", [first_turn], 24)
        follow_up = [
            *first_turn,
            {"role": "assistant", "content": first.text},
            {"role": "user", "content": "And parcel 8?"},
        ]
        [second] = process.answer("ssd", [follow_up], 24)
    return SecondTurn(
        history_tokens=second.prompt_tokens,
        cached_tokens=second.cached_tokens,
        first=first.first_token,
        second=second.first_token,
    )


def _question(text: str) -> Messages:
    return [{"role": "user", "content": text}]
