"""Grammars of formats that write calls as JSON."""

from __future__ import annotations

import json

from ssd_engine.grammars.calls.call_grammar import BareJsonGrammar, CallGrammar, repeated


class HermesGrammar(BareJsonGrammar):
    """Each call in markup of its own."""

    def calls(self, *, parallel: bool) -> str:
        """On lines of their own."""
        first = f'"\\n" call "\\n" {self.marker("</tool_call>")}'
        return repeated(first, f'"\\n" {self.begin} {first}', parallel=parallel)


class LlamaGrammar(BareJsonGrammar):
    """Calls separated by semicolons; nothing closes them."""

    key = "parameters"
    between = '"; "'

    def calls(self, *, parallel: bool) -> str:
        """One behind the other."""
        return repeated("call", f"{self.between} call", parallel=parallel)


class Llama4Grammar(LlamaGrammar):
    """Llama 4's template closes the markup before the calls, its models behind them."""

    def calls(self, *, parallel: bool) -> str:
        """One behind the other."""
        closing = f"{self.marker('<|python_end|>')}?"
        return f"{closing} {repeated('call', f'({self.between})? call', parallel=parallel)} {closing}"


class ListGrammar(CallGrammar):
    """A list of calls in one markup, which `closing` ends, if there is one."""

    before = '"["'
    closing = ""

    def calls(self, *, parallel: bool) -> str:
        """A list."""
        closing = self.marker(self.closing) if self.closing else ""
        more = repeated("call", '", " call', parallel=parallel)
        return f'{self.before} {more} "]" {closing}'


class PhiGrammar(ListGrammar):
    """Phi-4-mini's list."""

    closing = "<|/tool_call|>"


class MistralListGrammar(ListGrammar):
    """Mistral's list, of tokenizers without a mark before arguments."""

    before = '" ["'


class MistralGrammar(CallGrammar):
    """A name and its arguments behind each opening."""

    def calls(self, *, parallel: bool) -> str:
        """Each with its opening."""
        return repeated("call", f"{self.begin} call", parallel=parallel)

    def call(self, name: str, arguments: str) -> str:
        """`name[ARGS]{...}`."""
        return f"{json.dumps(name)} {self.marker('[ARGS]')} {arguments}"


class DeepSeekV31Grammar(CallGrammar):
    """A name, a mark and the arguments in markup of their own, all calls in one more."""

    between = ""
    """What stands between two calls."""

    def calls(self, *, parallel: bool) -> str:
        """All between the outer markers."""
        one = f"{self.marker('<｜tool▁call▁begin｜>')} call {self.marker('<｜tool▁call▁end｜>')}"
        more = repeated(one, f"{self.between} {one}", parallel=parallel)
        return f"{more} {self.marker('<｜tool▁calls▁end｜>')}"

    def call(self, name: str, arguments: str) -> str:
        """`name<｜tool▁sep｜>{...}`."""
        return f"{json.dumps(name)} {self.marker('<｜tool▁sep｜>')} {arguments}"


class DeepSeekV3Grammar(DeepSeekV31Grammar):
    """The word `function`, a mark, the name, and the arguments in a fence."""

    between = r'"\n"'

    def call(self, name: str, arguments: str) -> str:
        """`function<｜tool▁sep｜>name`, and a fence."""
        head = json.dumps(f"{name}\n```json\n")
        return f'"function" {self.marker("<｜tool▁sep｜>")} {head} {arguments} "\\n```"'
