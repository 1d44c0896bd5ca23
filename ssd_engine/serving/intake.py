"""Intake: what a caller asks becomes a request that the scheduler can run, or an error that says why it cannot."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ssd_engine.answers.answer import Answer, AnswerSettings
from ssd_engine.answers.answer_format import AnswerFormat, ReasoningStage
from ssd_engine.answers.detokenizer import Detokenizer
from ssd_engine.answers.reasoning import ReasoningFormat
from ssd_engine.config import GenerationParams, SSDConfig
from ssd_engine.errors import InvalidRequestError
from ssd_engine.grammars.answer_grammar import AnswerGrammar
from ssd_engine.grammars.calls.call_grammar import arguments_source
from ssd_engine.grammars.guide import GrammarCompiler, Guide
from ssd_engine.grammars.harmony_grammar import HarmonyGrammar
from ssd_engine.prompts.conversation import ChatRenderer, Conversation
from ssd_engine.prompts.prompt import (
    ParsedPrompt,
    Prompt,
    PromptEncoder,
    Tools,
    offered_tools,
    parse_prompt,
    require_room,
    with_draft_system_prompt,
)
from ssd_engine.prompts.reasoning import require_reasoning
from ssd_engine.rule.draft_signals import DraftSignals
from ssd_engine.serving.request import Event, Request

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

    from ssd_engine.bridge.bridge import Bridge

_PROMPT_END = 16
"""Tokens of a prompt among which a chat template's tag of reasoning is, where it ends with one."""


@dataclass(frozen=True)
class ModelFacts:
    """What is to be known of one model of a pair before anything is asked of it."""

    tokenizer: PreTrainedTokenizerBase
    vocabulary_size: int
    context_length: int | None
    """Most positions it can see; None: without limit."""

    @classmethod
    def of(cls, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> ModelFacts:
        """From a model's configuration."""
        text = config.get_text_config()
        return cls(tokenizer, text.vocab_size, getattr(text, "max_position_embeddings", None))

    def encoder(self, name: str) -> PromptEncoder:
        """How the model reads prompts."""
        return PromptEncoder(name, ChatRenderer(self.tokenizer), self.vocabulary_size, self.context_length)


def end_of_sequence_ids(
    generation_config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase
) -> frozenset[int]:
    """The tokens that end an answer: those that the model's generation settings name, or the tokenizer's."""
    configured = generation_config.eos_token_id if generation_config else None
    ids = tokenizer.eos_token_id if configured is None else configured
    return frozenset(() if ids is None else (ids,) if isinstance(ids, int) else ids)


@contextmanager
def _of_bounded_depth() -> Iterator[None]:
    """Tells whoever sends values inside values without end."""
    try:
        yield
    except RecursionError as error:
        raise InvalidRequestError(
            "the messages, the tools or a schema are nested too deeply to be read; give them fewer levels"
        ) from error


class Intake:
    """Checks and encodes requests to one pair; no request changes it."""

    def __init__(
        self,
        target: ModelFacts,
        draft: ModelFacts,
        eos_ids: frozenset[int],
        signals: DraftSignals,
        bridge: Bridge | None = None,
    ) -> None:
        """`signals`: what signals can be read from the draft with; `bridge`: between two vocabularies, if there are."""
        tokenizer = target.tokenizer
        self._bridge = bridge
        self._signals = signals
        self._tokenizer = tokenizer
        self.eos_ids = eos_ids
        self._target, self._draft = target.encoder("target"), draft.encoder("draft")
        self.format = AnswerFormat.detect(tokenizer.chat_template)
        """How the target writes its answers."""
        added, hidden = tokenizer.added_tokens_encoder, _hidden_ids(tokenizer, ())
        is_harmony = self.format.reasoning is ReasoningFormat.HARMONY
        self._grammar: HarmonyGrammar | AnswerGrammar = (
            HarmonyGrammar(added)
            if is_harmony
            else AnswerGrammar(self.format.tools, added, hidden, self.format.reasoning)
        )
        size = target.vocabulary_size
        if bridge is None:  # the embedding matrices may be padded to different sizes
            size = min(size, draft.vocabulary_size)
        self._compiler = GrammarCompiler(tokenizer, size, eos_ids)

    @property
    def context_length(self) -> int | None:
        """Most tokens, prompt and answer together, that both models can see; None where neither names a limit."""
        lengths = (self._target.context_length, self._draft.context_length)
        return min((length for length in lengths if length), default=None)

    def require_signals(self, config: SSDConfig) -> None:
        """Raise `InvalidRequestError` where `config` uses signals that cannot be read from this draft."""
        if config.signals is not None:
            self._signals.require(config.signals.thresholds)

    @_of_bounded_depth()
    def prompt_ids(self, prompt: Prompt, tools: Tools | None, params: GenerationParams) -> list[int]:
        """The ids of `prompt` as the target reads it, template included, however many; errors as for `request`."""
        return self._target.token_ids(parse_prompt(prompt, tools, params.unsupported_content), params)

    @_of_bounded_depth()
    def request(
        self,
        prompt: Prompt,
        draft_prompt: Prompt | None,
        params: GenerationParams,
        config: SSDConfig,
        tools: Tools | None,
        positions: int,
        deliver: Callable[[Event], None],
    ) -> Request:
        """A request whose pieces go to `deliver`; `positions` is what the key-value cache has for it.

        Raises:
            InvalidRequestError: the prompt, the grammar, the choice of tools or a signal cannot be used;
                `ContextLengthError` where the prompt is too long.
        """
        if params.decoding == "ssd":
            self.require_signals(config)
        tools = offered_tools(tools or (), params.tool_choice)
        template, can_reason = self._tokenizer.chat_template, self.format.reasoning is not None
        require_reasoning(template, params.reasoning, can_reason=can_reason)
        parsed = parse_prompt(prompt, tools, params.unsupported_content)
        if draft_prompt is not None:
            for_draft = parse_prompt(draft_prompt, tools, params.unsupported_content)
        else:
            for_draft = with_draft_system_prompt(self._as_draft_reads(parsed), config.draft_system_prompt)
        target_ids, draft_ids = self._target.encode(parsed, params), self._draft.encode(for_draft, params)
        longest = max(len(target_ids), len(draft_ids))
        cache = f"the key-value cache has {positions}: raise kv_cache_bytes, shorten the prompt"
        require_room(longest, params, positions, cache)  # else it could only wait forever
        if self._bridge is not None and params.max_new_tokens is not None:
            more = self._bridge.most_read(params.limit) - params.limit
            require_room(len(draft_ids) + more, params, positions, f"for the draft's longer reading of it, {cache}")
        if params.max_new_tokens is None:
            room = min(positions, self.context_length or positions) - longest
            if self._bridge is not None:
                room = max(self._bridge.fewest_written(room), 1)
            params = params.replaced(max_new_tokens=min(params.limit, room))
        num_given = self._draft.num_given(for_draft, draft_ids, params) if config.signals is not None else 0
        stage = self._reasoning_stage(parsed, target_ids, params)
        has_result = isinstance(parsed, Conversation) and parsed.messages[-1]["role"] == "tool"
        guide = self._guide(params, tools, stage, has_result=has_result)
        answer = self._answer(params, config, tools, stage)
        return Request(target_ids, draft_ids, params, config, guide, answer, deliver, num_given, stage)

    def draft_token_ids(self, token_ids: Sequence[int]) -> list[int]:
        """What the draft reads for some of an answer's tokens: the same, where it has the target's vocabulary."""
        return list(token_ids) if self._bridge is None else self._bridge.readings(token_ids)

    def _as_draft_reads(self, prompt: ParsedPrompt) -> ParsedPrompt:
        """The prompt for the draft: the same, but that token ids are of the target's vocabulary."""
        if self._bridge is None or not isinstance(prompt, list):
            return prompt
        self._target.token_ids(prompt, GenerationParams())  # unknown ids are told first
        return self._bridge.prompt_ids(prompt)

    def _reasoning_stage(
        self, prompt: ParsedPrompt, token_ids: Sequence[int], params: GenerationParams
    ) -> ReasoningStage:
        continued = None
        if isinstance(prompt, Conversation) and params.continue_final_message:
            continued = prompt.messages[-1]["content"]
        return self.format.reasoning_stage(str(self._tokenizer.decode(token_ids[-_PROMPT_END:])), continued)

    def _guide(
        self, params: GenerationParams, tools: Tools, stage: ReasoningStage, *, has_result: bool
    ) -> Guide | None:
        try:
            source = self._grammar.source(params, tools, stage, has_result=has_result)
            return None if source is None else self._compiler.compile(source)
        except InvalidRequestError:
            if params.strict or not tools:
                raise
        # One tool with a schema that cannot be followed must not keep the others from being called.
        tools = [self._enforceable(tool) for tool in tools]
        source = self._grammar.source(params, tools, stage, has_result=has_result)
        assert source is not None
        return self._compiler.compile(source)

    def _enforceable(self, tool: Mapping[str, Any]) -> Mapping[str, Any]:
        """The tool; with any object for its arguments where their schema cannot be compiled."""
        try:
            self._compiler.compile(arguments_source(tool))
        except InvalidRequestError:
            return {**tool, "function": {**tool["function"], "parameters": {"type": "object"}}}
        return tool

    def detokenizer(self, tools: Tools) -> Detokenizer:
        """What makes text of one answer's ids.

        Control tokens add none, but for the marks of calls where there are `tools` to call.
        """
        visible = self.format.visible_tokens(has_tools=bool(tools))
        hidden = _hidden_ids(self._tokenizer, visible) | self.eos_ids
        return Detokenizer(self._tokenizer, hidden)

    def shows_control_tokens(self, tools: Tools) -> bool:
        """Whether calls or reasoning are marked by control tokens, which answers then have to show."""
        visible = self.format.visible_tokens(has_tools=bool(tools))
        return _hidden_ids(self._tokenizer, visible) != _hidden_ids(self._tokenizer, ())

    def encode_plain(self, text: str) -> list[int]:
        """The target's ids of a text, without what stands at the beginning of a prompt."""
        return self._target.renderer.encode_text(text, begins_prompt=False)

    def decode(self, token_id: int) -> str:
        """What a token is by itself."""
        return str(self._tokenizer.decode([token_id]))

    def _answer(self, params: GenerationParams, config: SSDConfig, tools: Tools, stage: ReasoningStage) -> Answer:
        return Answer(
            AnswerSettings(
                params=params,
                config=config,
                eos_ids=self.eos_ids,
                detokenizer=self.detokenizer(tools),
                parser=self.format.parser(tools, stage),
                decode_token=self.decode,
            )
        )


def _hidden_ids(tokenizer: PreTrainedTokenizerBase, visible: Collection[str]) -> frozenset[int]:
    """Ids of control tokens, which add no text; what marks calls and reasoning is `visible` to the parser."""
    special = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.update(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    return frozenset(i for i, token in special.items() if token not in visible)
