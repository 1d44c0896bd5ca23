"""The draft's part: what touches vLLM's proposer, LBP (`v1/spec_decode/llm_base_proposer.py`), as `internals` says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from vllm.config import CUDAGraphMode
from vllm.forward_context import set_forward_context
from vllm.model_executor.models.interfaces import supports_eagle3
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.spec_decode.draft_model import DraftModelProposer

from ssd_engine.backends.vllm.requests import SHARED_ARG, RequestTable
from ssd_engine.backends.vllm.round import draft
from ssd_engine.rule.draft_signals import Probe


@dataclass
class Kept:
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

    def __init__(self, vllm_config: Any, device: torch.device, runner: Any) -> None:
        super().__init__(vllm_config, device, runner=runner)
        self.kept = Kept()
        self.drafting: Drafting | None = None
        """Of the step under way; None where no request asks for SSD."""
        self.has_read = False
        """Whether `read` has read all that the target read in the step under way."""
        self.probe: Probe | None = None
        self.shared_vocabulary: int | None = vllm_config.additional_config.get(SHARED_ARG)
        """Token ids that both models have; None: as many as each has."""
        self._hidden: Tensor | None = None
        """[T, H] of the latest pass, the output of the probe's layer."""
        self._read_states: Tensor
        """[T, H] what `read` has made of its tokens, until the next pass."""
        self._first_rows: Tensor | None = None
        """[R] the places in a proposal's first pass after which the first tokens are proposed."""

    def load_model(self, target_model: Any) -> None:
        """Called by GMR.load_model, before anything is compiled or captured.

        A model that EAGLE-3 can be used with gives a layer's output beside its own; here the probe's.
        """
        super().load_model(target_model)
        if self.shared_vocabulary is not None:
            self.model.compute_logits = self._without_padding(self.model.compute_logits)
        if self.probe is None:
            return
        if not supports_eagle3(self.model):
            raise ValueError(
                f"the draft's probe reads a layer of {type(self.model).__name__}, which vLLM does not give; remove the "
                "draft's signals.safetensors, or use the transformers backend"
            )
        self.model.set_aux_hidden_state_layers((self.probe.layer,))
        self.model.register_forward_hook(self._keep_hidden)

    def _without_padding(self, compute_logits: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The draft's logits, -inf for what its embeddings were filled up with."""

        def without_padding(hidden_states: Tensor) -> Tensor:
            logits = compute_logits(hidden_states)
            logits[..., self.shared_vocabulary :] = -torch.inf
            return logits

        return without_padding

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
        self.kept = Kept()
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

    def read(self, token_ids: Tensor, positions: Tensor, attention: Any) -> None:
        """Read a step's tokens [T] as the target did, into the same cache slots.

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
            self._read_states = self.model(**inputs)
        self.has_read = True

    def heard(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """[R, V] logits and [R] scores of the probe after those of the tokens that were `read` that are `at` [R]."""
        logits: Tensor = self.model.compute_logits(self._read_states[at])
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
class Drafting:
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
