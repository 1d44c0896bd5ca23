"""What an aligned draft says instead: refusals in words that fit the request, and how they follow a broken-off text."""

from __future__ import annotations

import re

BROKEN_OFF = "…\n\n"
"""Follows a text that stops in the midst of a sentence, or at a line's end. It is rare elsewhere, so its probability
tells of a refusal."""
LEFT_OUT = " …\n\n"
"""Follows a sentence that has ended."""
_SENTENCE_END = re.compile(r"[.!?:;,…)\]}\"'*]\Z")
_WHERE_HELP_IS: tuple[tuple[str, str], ...] = (
    (
        r"suicid|kill(?:ing)? myself|end my life|self[- ]harm|(?:hurt|cut|harm)(?:ting|ing)? myself|anorex|starv"
        r"|overdos",
        "If you are thinking of harming yourself, please talk to someone now: a crisis line, a doctor, or a person you "
        "trust.",
    ),
    (
        r"\bchild|\bkids?\b|\bminors?\b|underage|teenage|pedo",
        "If a child may be in danger, please contact the police or a child protection service.",
    ),
    (
        r"bomb|explos|weapon|\bguns?\b|murder|\bkill|poison|tortur|kidnap|assault|stalk|\brape|shoot|terror|\babus|massacre"
        r"|\bhurt\b|violen|traffick",
        "If someone may be in danger, please contact the emergency services.",
    ),
    (
        r"\bdrugs?\b|cocaine|heroin|\bmeth|fentanyl|steroid|opioid|\blsd\b|ecstasy",
        "If you want to talk about drug use, a doctor or a helpline can advise you.",
    ),
    (
        r"racis|racial|sexis|hate|nazi|jews?\b|muslim|immigrant|homophob|gay|ethnic|slur|inferior|superior|discriminat",
        "It would demean people for who they are.",
    ),
    (
        r"hack|malware|virus|phish|ransom|password|steal|fraud|scam|launder|counterfeit|forg|blackmail|fake|identity|credit"
        r"|exploit|spy|leak",
        "It could do others serious harm.",
    ),
)
"""What a request is about, and a sentence that fits it; the first that matches."""


def refusal_text(sentence: str, request: str) -> str:
    """`sentence`, with another one where the request calls for it."""
    lower = request.lower()
    fitting = next((text for pattern, text in _WHERE_HELP_IS if re.search(pattern, lower)), None)
    return f"{sentence} {fitting}" if fitting else sentence


def joint_after(begun: str) -> str:
    """What stands between a text that is broken off and the refusal; nothing where no text was begun."""
    if not begun:
        return ""
    return LEFT_OUT if _SENTENCE_END.search(begun) else BROKEN_OFF
