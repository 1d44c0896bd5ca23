"""Everything that touches vLLM's internals, for the versions that `compat` names.

Each point of contact says what of vLLM it relies on, by the file of the release that it was written against (0.32.0):
GMR is `v1/worker/gpu_model_runner.py`, LBP is `v1/spec_decode/llm_base_proposer.py`.

vLLM's step is: the target reads (`execute_model`), the next tokens are chosen (`sample_tokens`, `_sample`), the draft
reads and proposes (`propose_draft_token_ids`). Requests that do not ask for SSD go that way untouched. For those that
do, the draft's logits are kept as it proposes, and `_sample` chooses by the rule. Where a request has none yet (its
first token, or after a preemption) the draft reads the step's tokens before the choice, and one token is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.config import CUDAGraphMode
from vllm.forward_context import set_forward_context
from vllm.logger import init_logger
from vllm.model_executor.models.interfaces import supports_eagle3
from vllm.platforms import current_platform
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.spec_decode.draft_model import DraftModelProposer

from ssd_engine.backends.transformers.loader import load_signals
from ssd_engine.backends.vllm.requests import EXTRA_ARG, RequestSettings, RequestTable, requested_config
from ssd_engine.backends.vllm.round import Decision, StepLogits, decide, draft
from ssd_engine.config import SIGNALS, SSDConfig
from ssd_engine.draft_signals import Probe
from ssd_engine.errors import InvalidRequestError
from ssd_engine.signal_scores import divergence, refusal_mass
from ssd_engine.trace_codes import encode, encode_signals

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner as _ModelRunner
    from vllm.v1.worker.cpu_worker import CPUWorker as _Worker
else:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as _ModelRunner
    from vllm.v1.worker.gpu_worker import Worker as _Worker

logger = init_logger("vllm.ssd_engine")

_SAMPLING_EPS = 1e-5
"""Temperatures below this are greedy to vLLM (v1/sample/sampler.py)."""


class SSDWorker(_Worker):
    """vLLM's worker with `SSDModelRunner`. Named by `ParallelConfig.worker_cls`, which every executor resolves."""

    def init_device(self) -> None:
        super().init_device()
        if current_platform.is_cpu():  # CPUWorker.init_device names its runner itself; nothing has been loaded yet
            self.model_runner = self._make_model_runner()

    def _make_model_runner(self) -> SSDModelRunner:
        """GPU: called by Worker.init_device (gpu_worker.py)."""
        if self.use_v2_model_runner:
            raise ValueError("SSD works in vLLM's first model runner only; set VLLM_USE_V2_MODEL_RUNNER=0")
        return SSDModelRunner(self.vllm_config, self.device)


@dataclass
class _Kept:
    """What the draft said while it proposed."""

    rows: dict[str, int] = field(default_factory=dict)
    """Of each request: its row."""
    logits: list[Tensor] = field(default_factory=list)
    """L times [R, V]."""
    probe_scores: list[Tensor] = field(default_factory=list)
    """L times [R] scores of the draft's probe; zeros where it has none."""
    token_ids: Tensor | None = None
    """[R, L] int64 what was proposed."""


class KeepingProposer(DraftModelProposer):
    """vLLM's proposer, which also keeps the draft's logits and proposes for SSD requests by their own numbers."""

    def __init__(self, vllm_config: Any, device: torch.device, runner: SSDModelRunner) -> None:
        super().__init__(vllm_config, device, runner=runner)
        self.kept = _Kept()
        self.drafting: _Drafting | None = None
        """Of the step under way; None where no request asks for SSD."""
        self.has_read = False
        """Whether `read` has read all that the target read in the step under way."""
        self.probe: Probe | None = None
        self._hidden: Tensor | None = None
        """[T, H] of the latest pass, the output of the probe's layer."""
        self._first_rows: Tensor | None = None
        """[R] the places in a proposal's first pass after which the first tokens are proposed."""

    def load_model(self, target_model: Any) -> None:
        """Called by GMR.load_model, before anything is compiled or captured.

        A model that EAGLE-3 can be used with gives a layer's output beside its own; here the probe's.
        """
        super().load_model(target_model)
        if self.probe is None:
            return
        if not supports_eagle3(self.model):
            raise ValueError(
                f"the draft's probe reads a layer of {type(self.model).__name__}, which vLLM does not give; remove the "
                "draft's signals.safetensors, or use the transformers backend"
            )
        self.model.set_aux_hidden_state_layers((self.probe.layer,))
        self.model.register_forward_hook(self._keep_hidden)

    def _keep_hidden(self, model: Any, inputs: Any, outputs: tuple[Tensor, list[Tensor]]) -> Tensor:
        """Take the probe's layer from the model's outputs, and leave what vLLM expects of them."""
        hidden_states, (self._hidden,) = outputs
        return hidden_states

    def set_inputs_first_pass(self, *args: Any, **kwargs: Any) -> Any:
        """Called by LBP.propose; returns the number of tokens, where to propose after, and the attention's metadata."""
        inputs = super().set_inputs_first_pass(*args, **kwargs)
        self._first_rows = inputs[1]
        return inputs

    def propose(self, **step: Any) -> Tensor:
        """Called by GMR.propose_draft_token_ids, after the choice."""
        self.kept = _Kept()
        token_ids: Tensor = super().propose(**(_last_tokens(step) if self.has_read else step))
        if self.drafting is not None:
            self.kept.rows = dict(self.drafting.rows_by_id)
            self.kept.token_ids = token_ids.long()
        return token_ids

    def _sample_draft_tokens(self, hidden_states: Tensor, sampling_metadata: Any) -> tuple[Tensor, Tensor | None]:
        """Called by LBP.propose for each drafted token; where all are greedy the original keeps no distribution."""
        if self.drafting is None:
            proposed: tuple[Tensor, Tensor | None] = super()._sample_draft_tokens(hidden_states, sampling_metadata)
            return proposed
        logits: Tensor = self.model.compute_logits(hidden_states)
        step = len(self.kept.logits)
        self.kept.logits.append(logits)
        rows = torch.arange(len(logits), device=logits.device) if step or self._first_rows is None else self._first_rows
        self.kept.probe_scores.append(self._probe_scores(rows))
        # A copy, since _sample_from_logits divides by the temperature in place.
        token_ids, probabilities = self._sample_from_logits(logits.clone(), sampling_metadata)
        return self.drafting.propose(token_ids, logits, step), probabilities

    def _probe_scores(self, rows: Tensor) -> Tensor:
        """[R] float32 scores of the probe after the tokens `rows` [R] of the latest pass; zeros where there is none."""
        if self.probe is None or self._hidden is None:
            return torch.zeros(len(rows), device=rows.device)
        return self.probe.scores(self._hidden[rows])

    def read(self, token_ids: Tensor, positions: Tensor, attention: Any, at: Tensor) -> tuple[Tensor, Tensor]:
        """Read a step's tokens [T] as the target did, into the same cache slots.

        Returns:
            [R, V] logits, and [R] scores of the probe, after those tokens that are `at` [R].

        The same as the first pass of LBP.propose, without its shift by one token and without its padding.
        """
        num_tokens = len(token_ids)
        self.input_ids[:num_tokens] = token_ids
        self._set_positions(num_tokens, positions)
        _, by_layer = self.build_per_group_and_layer_attn_metadata(attention)
        inputs, _ = self.build_model_inputs_first_pass(num_tokens, num_tokens, None)
        with set_forward_context(
            by_layer,
            self.vllm_config,
            num_tokens=num_tokens,
            cudagraph_runtime_mode=CUDAGraphMode.NONE,
            slot_mapping=self._get_slot_mapping(num_tokens, attention.slot_mapping),
        ):
            hidden_states = self.model(**inputs)
        self.has_read = True
        logits: Tensor = self.model.compute_logits(hidden_states[at])
        return logits, self._probe_scores(at)


def _last_tokens(step: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `propose` with each request's last token alone of those that the target read and that stand.

    To this LBP.set_inputs_first_pass adds the token that was chosen. The rest has been read, into the same slots.
    """
    attention, last = step["common_attn_metadata"], step["token_indices_to_sample"]
    if last is None:
        last = attention.query_start_loc[1:] - 1
    positions = step["target_positions"][..., last]
    count = attention.num_reqs
    starts = torch.arange(count + 1, dtype=torch.int32)
    shortened = CommonAttentionMetadata(
        query_start_loc=starts.to(last.device),
        query_start_loc_cpu=starts,
        seq_lens=(positions.view(-1, count)[0] + 1).to(attention.seq_lens.dtype),
        seq_lens_cpu_upper_bound=attention.seq_lens_cpu_upper_bound,
        num_reqs=count,
        num_actual_tokens=count,
        max_query_len=1,
        max_seq_len=attention.max_seq_len,
        block_table_tensor=attention.block_table_tensor,
        slot_mapping=attention.slot_mapping[last],
    )
    return {
        **step,
        "target_token_ids": step["target_token_ids"][last],
        "target_positions": positions,
        "target_hidden_states": step["target_hidden_states"][last],
        "token_indices_to_sample": None,
        "num_rejected_tokens_gpu": None,
        "common_attn_metadata": shortened,
    }


@dataclass
class _Drafting:
    """The SSD requests of a step, as the draft will propose for them."""

    rows_by_id: dict[str, int]
    """The rows of these requests among all R. Prompts that are not read to their end are not among them: what the
    draft proposes there means nothing."""
    slots: Tensor
    """[S] their slots in the table."""
    table: RequestTable
    places: Tensor
    """[S] tokens of the answers, the chosen ones included."""

    def __post_init__(self) -> None:
        self._rows = torch.tensor(list(self.rows_by_id.values()), device=self.slots.device)

    def propose(self, token_ids: Tensor, logits: Tensor, step: int) -> Tensor:
        """`token_ids` [R], with the SSD requests' own proposals."""
        own = draft(logits[self._rows], self.slots, self.table, self.places + step)
        return token_ids.index_copy(0, self._rows, own.to(token_ids.dtype))


class SSDModelRunner(_ModelRunner):
    """vLLM's (first) model runner, in which the rule chooses for the requests that ask for SSD."""

    def __init__(self, vllm_config: Any, device: torch.device) -> None:
        super().__init__(vllm_config, device)
        # Takes the place of the one that GMR.__init__ has just made; its model is loaded later.
        self.drafter: KeepingProposer = KeepingProposer(vllm_config, device, runner=self)
        self._signals = load_signals(vllm_config.speculative_config.draft_model_config.model, None)
        self.drafter.probe = self._signals.probe
        self._table = RequestTable(device, self._signals.refusal_ids)
        self._unmasked: Tensor | None = None
        """The target's logits of the step under way, as they were before grammars' masks; None: there are none."""
        # What holds for requests that say nothing: a server's own settings, or vLLM's rule.
        self._default = vllm_config.additional_config.get(EXTRA_ARG)
        self._step: Any = None
        self._has_failed = False
        """Whether some request's numbers were NaN, so that its cache may hold NaN."""

    def _update_states(self, scheduler_output: Any) -> Any:
        """GMR: takes in what was scheduled, before the models read.

        Blocks of the caches are given on as they are, and attention multiplies what it masks by 0, which makes NaN of
        NaN. So once numbers have failed, blocks are cleared before others use them.
        """
        if self._has_failed:
            if not current_platform.is_cpu() and not hasattr(self, "_kv_block_zeroer"):
                self._init_kv_zero_meta()
            sizes = [group.kv_cache_spec.block_size for group in self.kv_cache_config.kv_cache_groups]
            self._zero_block_ids(_fresh_blocks(scheduler_output, sizes))
        return super()._update_states(scheduler_output)

    def _on_request_state_removed(self, req_id: str, req_state: Any) -> None:
        """GMR's hook: a request has finished or was aborted. One that is preempted stays."""
        super()._on_request_state_removed(req_id, req_state)
        self._table.drop(req_id)

    def sample_tokens(self, grammar_output: Any) -> Any:
        """GMR: unpacks execute_model_state, applies the grammars' masks to the logits, calls _sample, then drafts."""
        self._step = self.execute_model_state
        is_wanted = grammar_output is not None and self._step is not None and self._table.uses("kl")
        self._unmasked = self._step.logits.clone() if is_wanted else None
        return super().sample_tokens(grammar_output)

    def _sample(self, logits: Tensor, spec_decode_metadata: Any) -> SamplerOutput:
        """GMR: chooses the next tokens; `logits` are [N drafts + R, V], each request's in a row."""
        kept, self.drafter.kept, self.drafter.drafting = self.drafter.kept, _Kept(), None
        self.drafter.has_read = False
        self._has_failed = self._has_failed or bool(logits[:, 0].isnan().any())
        slots = [self._slot(request_id) for request_id in self.input_batch.req_ids]
        is_unread = self.discard_request_mask.np  # prompts of which this step read a part only
        own = {row: slot for row, slot in enumerate(slots) if slot is not None and not is_unread[row]}
        if not own:
            return super()._sample(logits, spec_decode_metadata)
        has_others = any(slot is None for slot in slots)
        output = super()._sample(logits.clone(), spec_decode_metadata) if has_others else None
        step = self._step_logits(logits, spec_decode_metadata, np.array(list(own)), kept)
        self._has_failed = self._has_failed or bool(step.draft[:, 0].isnan().any())
        own_slots = torch.tensor(list(own.values()), device=logits.device)
        num_others = self.input_batch.sampling_metadata.max_num_logprobs or 0
        decision = decide(step, own_slots, self._table, num_others)
        rows = torch.tensor(list(own), device=logits.device)
        counts = torch.tensor(step.counts, device=logits.device)
        answered = step.places[counts.cumsum(0) - counts] + (decision.verdicts.token_ids >= 0).sum(-1)
        rows_by_id = {self.input_batch.req_ids[row]: row for row in own}
        self.drafter.drafting = _Drafting(rows_by_id, own_slots, self._table, answered)
        return self._output(output, decision, rows, spec_decode_metadata.max_spec_len + 1)

    def _slot(self, request_id: str) -> int | None:
        """Where the table has a request, which is entered when it is first seen; None for vLLM's own rule."""
        slot = self._table.slot(request_id)
        params = self.requests[request_id].sampling_params
        block = (params.extra_args or {}).get(EXTRA_ARG, self._default) if params is not None else None
        if slot is not None or block is None:
            return slot
        try:
            config = requested_config(block, self.num_spec_tokens)
            if config is not None and config.signals is not None:
                self._signals.require(config.signals.thresholds)
        except InvalidRequestError as error:
            # What takes requests in has checked them; a worker that raised would end everybody's answers.
            logger.error("request %s is answered with the default SSD settings: %s", request_id, error)
            config = SSDConfig()
        if config is None:
            return None
        settings = RequestSettings(
            config=config,
            seed=params.seed,
            temperature=params.temperature if params.temperature >= _SAMPLING_EPS else 0.0,
            top_k=params.top_k if params.top_k > 0 else None,
            top_p=params.top_p,
        )
        return self._table.enter(request_id, settings)

    def _step_logits(self, logits: Tensor, metadata: Any, rows: NDArray[np.int64], kept: _Kept) -> StepLogits:
        """What both models say for the requests in `rows` [R] of the batch."""
        device = logits.device
        every_num_drafts = np.array(metadata.num_draft_tokens)
        num_drafts = every_num_drafts[rows]
        kept_rows = np.array([kept.rows.get(self.input_batch.req_ids[row], -1) for row in rows])
        # Where the draft was not asked yet, one token is chosen. Its distributions reach as far as it drafted.
        counts = np.where(kept_rows >= 0, np.minimum(num_drafts + 1, len(kept.logits)), 1)
        owners = np.repeat(np.arange(len(rows)), counts)
        steps = np.arange(len(owners)) - np.repeat(_starts(counts), counts)
        first = _starts(every_num_drafts + 1)[rows]
        at = torch.from_numpy(first[owners] + steps).to(device)
        answered = self.input_batch.num_tokens_no_spec[rows] - self.input_batch.num_prompt_tokens[rows]
        # What vLLM sent to the target after each position: the draft's proposal, unless a grammar cut it off.
        followed = torch.full((len(owners),), -1, dtype=torch.int64, device=device)
        is_followed = steps < num_drafts[owners]
        sent = (_starts(every_num_drafts)[rows][owners] + steps)[is_followed]
        followed[torch.from_numpy(is_followed)] = metadata.draft_token_ids[torch.from_numpy(sent)].long()
        drafted = torch.full_like(followed, -1)
        from_draft = logits.new_empty(len(owners), logits.shape[-1])
        probe_scores = torch.zeros(len(owners), device=device)
        is_kept = torch.from_numpy(kept_rows[owners] >= 0).to(device)
        if kept.token_ids is not None and bool(is_kept.any()):
            row_at = torch.from_numpy(kept_rows[owners]).to(device)[is_kept]
            step_at = torch.from_numpy(steps).to(device)[is_kept]
            from_draft[is_kept] = torch.stack(kept.logits, dim=1)[row_at, step_at].to(from_draft.dtype)
            drafted[is_kept] = kept.token_ids[row_at, step_at]
            probe_scores[is_kept] = torch.stack(kept.probe_scores, dim=1)[row_at, step_at]
        if not bool(is_kept.all()):
            read, probe_scores[~is_kept] = self._read_first(metadata, first[kept_rows < 0])
            from_draft[~is_kept] = read.to(from_draft.dtype)
        scores = self._scores((logits if self._unmasked is None else self._unmasked)[at], from_draft, probe_scores)
        if not self.input_batch.sampling_metadata.no_penalties:  # they hold for both models, as masks do
            spread = logits.new_zeros(logits.shape).index_copy_(0, at, from_draft)
            from_draft = self._processed(spread, metadata)[at]
        return StepLogits(
            counts=counts.tolist(),
            target=self._processed(logits, metadata)[at],
            draft=from_draft,
            drafted=drafted,
            followed=followed,
            places=torch.from_numpy(answered[owners] + steps).to(device),
            scores=scores,
        )

    def _scores(self, target: Tensor, draft: Tensor, probe_scores: Tensor) -> Tensor | None:
        """[P, signals] from [P, V] logits and [P] scores of the probe; None where no request uses any signal."""
        used = [signal for signal in SIGNALS if self._table.uses(signal)]
        if not used:
            return None
        scores = torch.zeros(len(target), len(SIGNALS), device=target.device)
        for signal in used:
            match signal:
                case "refusal_mass":
                    values = refusal_mass(draft, self._table.refusal_ids)
                case "probe":
                    values = probe_scores
                case "kl":
                    values = divergence(draft, target)
            scores[:, SIGNALS.index(signal)] = values
        return scores

    def _read_first(self, metadata: Any, first: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """[S, V] the draft's logits and [S] its probe's scores where the logits `first` [S] are.

        For that it reads the whole step's tokens.
        """
        num_tokens = self._step.scheduler_output.total_num_scheduled_tokens
        return self.drafter.read(
            self.input_ids.gpu[:num_tokens],
            self._get_positions(num_tokens),
            self._step.spec_decode_common_attn_metadata,
            metadata.logits_indices[torch.from_numpy(first).to(self.device)],
        )

    def _processed(self, logits: Tensor, metadata: Any) -> Tensor:
        """[N + R, V] float32 `logits` after vLLM's own processors (penalties, bias, bad words, least length)."""
        sampling = self.input_batch.sampling_metadata
        processed = logits.float().clone()
        drafts, last = metadata.target_logits_indices, metadata.bonus_logits_indices
        if len(drafts):
            processed[drafts] = self.rejection_sampler.apply_logits_processors(processed[drafts], sampling, metadata)
        processed[last] = self.sampler.apply_logits_processors(processed[last], sampling, predict_bonus_token=True)
        return processed

    def _output(self, output: SamplerOutput | None, decision: Decision, rows: Tensor, width: int) -> SamplerOutput:
        """vLLM's output [R, width], where `rows` have the tokens that the rule chose, and the trace as their ranks."""
        verdicts = decision.verdicts
        num_rows, most = self.input_batch.num_reqs, verdicts.token_ids.shape[-1]
        token_ids = torch.full((num_rows, width), -1, dtype=torch.int32, device=rows.device)
        token_ids[:, 0] = 0  # of what is discarded
        if output is not None:
            token_ids[:, : output.sampled_token_ids.shape[-1]] = output.sampled_token_ids
        token_ids[rows] = -1
        token_ids[rows, :most] = verdicts.token_ids.to(torch.int32)
        most_logprobs = self.input_batch.sampling_metadata.max_num_logprobs
        if most_logprobs is None:
            return SamplerOutput(sampled_token_ids=token_ids, logprobs_tensors=None)
        ids = torch.zeros(num_rows, width, most_logprobs + 1, dtype=torch.int32, device=rows.device)
        logprobs = torch.full(ids.shape, -torch.inf, device=rows.device)
        ranks = torch.ones(num_rows, width, dtype=torch.int64, device=rows.device)
        if output is not None and output.logprobs_tensors is not None:
            before = output.logprobs_tensors
            own_width = output.sampled_token_ids.shape[-1]
            ids[:, :own_width] = before.logprob_token_ids.view(num_rows, own_width, -1)
            logprobs[:, :own_width] = before.logprobs.view(num_rows, own_width, -1)
            ranks[:, :own_width] = before.selected_token_ranks.view(num_rows, own_width)
        ids[rows, :most, 0] = verdicts.token_ids.clamp_min(0).to(torch.int32)
        logprobs[rows, :most, 0] = verdicts.logprobs
        ids[rows, :most, 1:] = verdicts.other_ids.to(torch.int32)
        logprobs[rows, :most, 1:] = verdicts.other_logprobs
        codes = encode(verdicts.matched, verdicts.is_union, verdicts.is_forced, decision.is_broken)
        if decision.scores is not None:
            codes += encode_signals(verdicts.has_alarm, decision.scores, decision.thresholds)
        ranks[rows, :most] = codes
        tensors = LogprobsTensors(ids.flatten(0, 1), logprobs.flatten(0, 1), ranks.flatten())
        return SamplerOutput(sampled_token_ids=token_ids, logprobs_tensors=tensors)


def _fresh_blocks(scheduler_output: Any, sizes: list[int]) -> list[int]:
    """The blocks that requests get in this step and that hold nothing of theirs yet; `sizes` of each cache's blocks."""
    given = [(new.block_ids, new.num_computed_tokens) for new in scheduler_output.scheduled_new_reqs]
    cached = scheduler_output.scheduled_cached_reqs
    for request_id, blocks, computed in zip(
        cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
    ):
        if blocks is not None:  # of one that was preempted these are all that it has, else those that are added
            given.append((blocks, computed if request_id in cached.resumed_req_ids else 0))
    return [
        block
        for blocks, computed in given
        for of_cache, size in zip(blocks, sizes, strict=True)
        for block in of_cache[-(-computed // size) :]
    ]


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of several runs begins."""
    starts: NDArray[np.int64] = np.cumsum(counts) - counts
    return starts
