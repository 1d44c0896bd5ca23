"""What touches vLLM's worker and model runner, for the versions that `compat` names; `proposer` touches its proposer.

Each point of contact says what of vLLM it relies on, by the file of the release that it was written against (0.32.0):
GMR is `v1/worker/gpu_model_runner.py`, LBP is `v1/spec_decode/llm_base_proposer.py`.

vLLM's step is: the target reads (`execute_model`), the next tokens are chosen (`sample_tokens`, `_sample`), the draft
reads and proposes (`propose_draft_token_ids`). Requests that do not ask for SSD go that way untouched. For those that
do, the draft's logits are kept as it proposes, and `_sample` chooses by the rule. Where a request has none yet (its
first token, or after a preemption) the draft reads the step's tokens before the choice, and one token is chosen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.v1.outputs import LogprobsTensors, SamplerOutput

from ssd_engine.backends.vllm.given import GivenPlaces, given_places, listen, put_latched
from ssd_engine.backends.vllm.proposer import Drafting, KeepingProposer, Kept
from ssd_engine.backends.vllm.requests import (
    EXTRA_ARG,
    GIVEN_ARG,
    RequestSettings,
    RequestTable,
    configured_signals,
    requested_config,
)
from ssd_engine.backends.vllm.round import Decision, StepLogits, decide
from ssd_engine.config import SIGNALS, SSDConfig
from ssd_engine.errors import InvalidRequestError
from ssd_engine.rule.signal_scores import divergence, refusal_mass
from ssd_engine.trace.codes import encode, encode_beginnings, encode_signals

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
        """Make a runner of ours on the worker's device."""
        super().init_device()
        if current_platform.is_cpu():  # CPUWorker.init_device names its runner itself; nothing has been loaded yet
            self.model_runner = self._make_model_runner()

    def _make_model_runner(self) -> SSDModelRunner:
        """GPU: called by Worker.init_device (gpu_worker.py)."""
        if self.use_v2_model_runner:
            raise ValueError("SSD works in vLLM's first model runner only; set VLLM_USE_V2_MODEL_RUNNER=0")
        return SSDModelRunner(self.vllm_config, self.device)


class SSDModelRunner(_ModelRunner):
    """vLLM's (first) model runner, in which the rule chooses for the requests that ask for SSD."""

    def __init__(self, vllm_config: Any, device: torch.device) -> None:
        super().__init__(vllm_config, device)
        # Takes the place of the one that GMR.__init__ has just made; its model is loaded later.
        self.drafter: KeepingProposer = KeepingProposer(vllm_config, device, runner=self)
        self._signals = configured_signals(vllm_config)
        self.drafter.probe = self._signals.probe
        self._table = RequestTable(device, self._signals)
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
        self._unmasked = None
        if grammar_output is not None and self._step is not None:
            for request_id in self.input_batch.req_ids:
                self._slot(request_id)  # also those that are new in this step
            if self._table.uses("kl"):
                self._unmasked = self._step.logits.clone()
        return super().sample_tokens(grammar_output)

    def _sample(self, logits: Tensor, spec_decode_metadata: Any) -> SamplerOutput:
        """GMR: chooses the next tokens; `logits` are [N drafts + R, V], each request's in a row."""
        kept, self.drafter.kept, self.drafter.drafting = self.drafter.kept, Kept(), None
        self.drafter.has_read = False
        self._has_failed = self._has_failed or bool(logits[:, 0].isnan().any())
        slots = [self._slot(request_id) for request_id in self.input_batch.req_ids]
        if given := self._given_places(slots):
            self._read()
            listen(given, self.drafter.heard, self._table)
        is_unread = self.discard_request_mask.np  # prompts of which this step read a part only
        own = {row: slot for row, slot in enumerate(slots) if slot is not None and not is_unread[row]}
        if not own:
            return super()._sample(logits, spec_decode_metadata)
        has_others = any(slot is None for slot in slots)
        output = super()._sample(logits.clone(), spec_decode_metadata) if has_others else None
        step = self._step_logits(logits, spec_decode_metadata, own, kept)
        self._has_failed = self._has_failed or bool(step.draft[:, 0].isnan().any())
        own_slots = torch.tensor(list(own.values()), device=logits.device)
        num_others = self.input_batch.sampling_metadata.max_num_logprobs or 0
        decision = decide(step, own_slots, self._table, num_others)
        rows = torch.tensor(list(own), device=logits.device)
        counts = torch.tensor(step.counts, device=logits.device)
        answered = step.places[counts.cumsum(0) - counts] + (decision.verdicts.token_ids >= 0).sum(-1)
        rows_by_id = {self.input_batch.req_ids[row]: row for row in own}
        self.drafter.drafting = Drafting(rows_by_id, own_slots, self._table, answered)
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
            num_given=(params.extra_args or {}).get(GIVEN_ARG, 0),
            seed=params.seed,
            temperature=params.temperature if params.temperature >= _SAMPLING_EPS else 0.0,
            top_k=params.top_k if params.top_k > 0 else None,
            top_p=params.top_p,
        )
        return self._table.enter(request_id, settings)

    def _step_logits(self, logits: Tensor, metadata: Any, own: dict[int, int], kept: Kept) -> StepLogits:
        """What both models say for R requests: their rows in the batch, and their slots in the table."""
        device, rows, slots = logits.device, np.array(list(own)), list(own.values())
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
            starting = np.flatnonzero((kept_rows < 0) & (answered == 0))
            positions = {int(_starts(counts)[row]): slots[row] for row in starting}
            if positions:
                put_latched(positions, from_draft, logits[at], self._table)
        shared = self.drafter.shared_vocabulary
        scores = self._scores(
            (logits if self._unmasked is None else self._unmasked)[at, :shared], from_draft[:, :shared], probe_scores
        )
        if not self.input_batch.sampling_metadata.no_penalties:  # they hold for both models, as masks do
            spread = logits.new_zeros(logits.shape).index_copy_(0, at, from_draft)
            from_draft = self._processed(spread, metadata)[at]
        return StepLogits(
            counts=counts.tolist(),
            target=self._processed(logits, metadata)[at, :shared],
            draft=from_draft[:, :shared],
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
        """[S, V] the draft's logits and [S] its probe's scores where the logits `first` [S] are."""
        self._read()
        return self.drafter.heard(metadata.logits_indices[torch.from_numpy(first).to(self.device)])

    def _read(self) -> None:
        """Have the draft read all of the step's tokens, if it has not yet."""
        if self.drafter.has_read:
            return
        num_tokens = self._step.scheduler_output.total_num_scheduled_tokens
        self.drafter.read(
            self.input_ids.gpu[:num_tokens],
            self._get_positions(num_tokens),
            self._step.spec_decode_common_attn_metadata,
        )

    def _given_places(self, slots: list[int | None]) -> list[GivenPlaces]:
        """Where in the step's tokens given beginnings are, whose risk signals are to tell."""
        count = len(slots)
        return given_places(
            slots,
            starts=self.query_start_loc.np[: count + 1],
            computed=self.input_batch.num_computed_tokens_cpu[:count],
            prompt_lengths=self.input_batch.num_prompt_tokens[:count],
            num_tokens=self.input_batch.num_tokens_no_spec[:count],
            table=self._table,
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
        """VLLM's output [R, width], where `rows` have the tokens that the rule chose, and the trace as their ranks."""
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
            codes[:, 0] += encode_beginnings(decision.beginnings, decision.thresholds)
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
