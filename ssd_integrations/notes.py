"""What a user is told where an answer has neither text nor a call, so that no agent ends in silence."""

from __future__ import annotations

from dataclasses import replace

from ssd_engine.answers.result import GenerationResult, Piece


def with_note(piece: Piece) -> Piece:
    """The piece; the last one of such an answer with a note for its text."""
    if piece.result is None or not (note := note_on(piece.result)):
        return piece
    return replace(piece, text=note, result=replace(piece.result, text=note))


def note_on(result: GenerationResult) -> str:
    """What to say of an answer that was cut off within its only call or its reasoning, or is empty; else ""."""
    if result.text or result.tool_calls:
        return ""
    if result.invalid_tool_calls:
        call = result.invalid_tool_calls[0]
        name = f"The call of {call.name}" if call.name else "A tool call"
        if result.finish_reason == "length":
            num_tokens = len(result.token_ids)
            return f"[{name} was cut off after max_tokens={num_tokens}: allow more tokens, or ask for less at once.]"
        return f"[{name} could not be read: {call.error}]"
    if result.reasoning and result.finish_reason == "length":
        num_tokens = len(result.token_ids)
        return f"[The model was still reasoning at max_tokens={num_tokens}: allow more tokens, or less reasoning.]"
    # A stop string that came at once is what was asked for.
    is_empty = result.finish_reason == "stop" and len(result.token_ids) <= 1
    return "[The model gave an empty answer.]" if is_empty else ""
