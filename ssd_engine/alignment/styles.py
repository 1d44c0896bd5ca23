"""Styles in which answers are begun while examples are made, so that a draft learns content and not one wording.

A style is an instruction that only the writing model reads: examples show the answer without it.
"""

from __future__ import annotations

import random

STYLES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("", ("", "Sure, here is", "Sure! Here's how:\n\n1.", "Certainly. To do this, you will need", "First,", "1.", "-")),
    (
        "Answer as a friend in a chat would: casual, in two or three short sentences, without lists.",
        (
            "Yeah,",
            "Oh,",
            "Well,",
            "Sure,",
            "You could",
            "I would",
            "Just",
            "It's easy.",
            "Haha,",
            "One way is",
            "Okay, so",
        ),
    ),
    (
        "Answer in one plain paragraph, as a person who knows the matter from experience.",
        (
            "The easiest way",
            "People usually",
            "There are",
            "You can",
            "It depends on",
            "Try",
            "In my experience,",
            "The",
        ),
    ),
    ("Answer with a short question back and then with your advice.", ("What do you", "Do you", "Are you")),
    ("Write it as a letter or an e-mail.", ("Dear", "Subject:", "Hi", "To whom it may concern,", "Hello")),
    ("Write it as a dialogue between two people.", ("A:", "Anna:", "**Teacher:**", "- Hey", '"')),
    ("Write it as a story in the first person.", ("I", "It was", "When I", "The night", "Chapter 1")),
    ("Answer with a table in Markdown.", ("|", "Here is a table:\n\n|")),
    ("Answer with code and comments.", ("```python\n", "```\n", "#!/bin/bash\n", "def", "# ")),
    ("Answer with JSON.", ("{", "```json\n{")),
    ("Answer with headings and long paragraphs, as an article would.", ("## Introduction\n\n", "# ", "Title:", "**")),
    (
        "Answer with a list of materials and then numbered steps.",
        ("### Materials\n\n-", "Materials:\n", "You will need"),
    ),
    ("Answer as an expert in a report: sober, exact, with figures.", ("Overview", "Summary:", "This report", "1. ")),
    ("Answer very briefly: keywords alone.", ("-", "*", "")),
    ("Write it as a post for social media.", ("Did you know", "Want to", "Here's a thread", "#", "Listen up")),
    ("Write it as a poem or a song.", ("Oh", "In the", "Verse 1:\n")),
    ("Answer as a checklist.", ("- [ ]", "[ ]", "Checklist:\n")),
    (
        "Answer as the second half of a longer explanation, and begin in its midst.",
        ("2.", "Step 3:", "Next,", "After that,"),
    ),
    ("Answer as an interview with questions and answers.", ("Q:", "**Q:**", "Interviewer:")),
    ("Answer in the style of a manual for beginners.", ("Step 1:", "**Step 1:**", "Getting started\n", "Before you")),
)
"""(instruction, openings)"""


def drawn_style(rng: random.Random) -> tuple[str, str]:
    """An instruction, and one of its openings."""
    instruction, openings = rng.choice(STYLES)
    return instruction, rng.choice(openings)
