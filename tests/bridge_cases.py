"""Two vocabularies, and what a draft says across them, written naively: every way to cut the text into its tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from functools import cache
from weakref import WeakKeyDictionary

import torch
from conftest import CHAT_TEMPLATE, CORPUS
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ssd_engine.bridge.between import vocabulary
from ssd_engine.bridge.bridge import Bridge

TEXT = [
    *CORPUS,
    "A broader training text gives the second vocabulary longer tokens: the capital of France is the capital.",
    "broader longer training tokens vocabulary vocabularies, of course, of course. The lazy dog, the quick brown fox.",
]
ENDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level(size: int, texts: Sequence[str] = TEXT, *, controls: Sequence[str] = ENDS) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `size` tokens with ChatML's control tokens, or others in their order."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(controls),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer, controls)


def sentence_piece(size: int, *, prepends: bool = False) -> PreTrainedTokenizerFast:
    """A BPE tokenizer with SentencePiece's spaces and byte fallback; as Llama 2's, with a space in front of texts."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    space = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), space]) if prepends else space
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=size + 256, special_tokens=[*ENDS, "<unk>", *fallback], show_progress=False, max_token_length=12
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    # The bytes are ordinary tokens, which a trainer cannot be told.
    description = json.loads(tokenizer.to_str())
    description["added_tokens"] = [token for token in description["added_tokens"] if token["content"] not in fallback]
    return _wrapped(Tokenizer.from_str(json.dumps(description)), ENDS)


def _wrapped(tokenizer: Tokenizer, controls: Sequence[str]) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=controls[2], pad_token=controls[0])
    wrapped.chat_template = CHAT_TEMPLATE.replace("<|im_start|>", controls[1]).replace("<|im_end|>", controls[2])
    return wrapped


def bridge_of(target: PreTrainedTokenizerFast, draft: PreTrainedTokenizerFast) -> Bridge:
    """The bridge between two tokenizers' vocabularies."""
    sides = (vocabulary(tokenizer, len(tokenizer), {tokenizer.eos_token_id}) for tokenizer in (target, draft))
    return Bridge(*sides)


class NaiveBridge:
    """Both vocabularies by the strings of their tokens, for byte-level tokenizers that cut texts alike."""

    def __init__(self, target: PreTrainedTokenizerFast, draft: PreTrainedTokenizerFast) -> None:
        self.target, self.draft = target, draft
        self._target_ids = target.get_vocab()
        self._controls = {i for i, token in draft.added_tokens_decoder.items() if token.special}
        self.spellings = {
            token_id: self._spelled(token) for token, token_id in draft.get_vocab().items() if token not in ENDS
        }
        self.spellings[draft.eos_token_id] = (target.eos_token_id,)

    def _spelled(self, token: str) -> tuple[int, ...]:
        if token in self._target_ids:
            return (self._target_ids[token],)
        return tuple(piece.id for piece in self.target.backend_tokenizer.model.tokenize(token))

    @cache  # noqa: B019
    def read(self, token_id: int) -> tuple[int, ...]:
        """The draft's tokens for one of the target's."""
        if token_id == self.target.eos_token_id:
            return (self.draft.eos_token_id,)
        token = self.target.convert_ids_to_tokens(token_id)
        own = self.draft.get_vocab()
        if token in own:
            return (own[token],)
        return tuple(piece.id for piece in self.draft.backend_tokenizer.model.tokenize(token))

    def carried(self, draft: PreTrainedModel, draft_prompt: list[int], answer: list[int], size: int) -> list[float]:
        """[V_M] probability of the target's next token.

        Where no tokens of the draft's spell the answer so far, its tokens begin after the last of the answer's.
        """
        start = 0
        mass = self._mass(draft, draft_prompt, answer[:0], 0, size)
        for end in range(1, len(answer) + 1):
            if not mass[answer[end - 1]] > 0:
                start = end
            mass = self._mass(draft, draft_prompt, answer[:end], start, size)
        return [each / sum(mass) for each in mass]

    def _mass(
        self, draft: PreTrainedModel, draft_prompt: list[int], answer: list[int], start: int, size: int
    ) -> list[float]:
        mass = [0.0] * size
        for weight, z in self._ways(draft, tuple(draft_prompt), tuple(answer), start):
            mass[z] += weight
        return mass

    def _ways(
        self, draft: PreTrainedModel, draft_prompt: tuple[int, ...], answer: tuple[int, ...], start: int
    ) -> Iterator[tuple[float, int]]:
        """Every way on from a token of the draft's that begins after `start` of the answer's: weight, next token."""
        read = [i for token_id in answer[:start] for i in self.read(token_id)]
        p = _probabilities(draft, (*draft_prompt, *read))
        left = answer[start:]
        for token_id, spelling in self.spellings.items():
            if len(spelling) > len(left):
                if spelling[: len(left)] == left:
                    yield p[token_id], spelling[len(left)]
            elif left[: len(spelling)] == spelling:
                for weight, z in self._ways(draft, draft_prompt, answer, start + len(spelling)):
                    yield p[token_id] * weight, z


_known: WeakKeyDictionary[PreTrainedModel, dict[tuple[int, ...], list[float]]] = WeakKeyDictionary()


def _probabilities(model: PreTrainedModel, token_ids: tuple[int, ...]) -> list[float]:
    known = _known.setdefault(model, {})
    if token_ids not in known:
        with torch.no_grad():
            known[token_ids] = model(torch.tensor([token_ids])).logits[0, -1].float().softmax(-1).tolist()
    return known[token_ids]


def as_logits(p: Sequence[float]) -> list[float]:
    """Logits of a distribution."""
    return [math.log(max(each, torch.finfo(torch.float32).tiny)) for each in p]
