"""Requests as applications make them: with instructions of their own, with documents, with tools on offer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ssd_engine.alignment.forms import with_calls

Spec = dict[str, Any]


def _tool(name: str, description: str, /, required: Sequence[str] = (), **parameters: str | Spec) -> Spec:
    """A tool; a parameter that is a str is text with that description. Without `required`, all are required."""
    properties = {
        key: {"type": "string", "description": value} if isinstance(value, str) else value
        for key, value in parameters.items()
    }
    schema = {"type": "object", "properties": properties, "required": list(required or properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


_INTEGER: Spec = {"type": "integer"}
_NUMBER: Spec = {"type": "number"}
_WORDS: Spec = {"type": "array", "items": {"type": "string"}}

_LIBRARY = (
    _tool("search_books", "Search the library's catalogue.", ["query"], query="Title, author or topic", limit=_INTEGER),
    _tool("reserve_book", "Reserve a book for a reader.", isbn="ISBN", reader="Name of the reader"),
    _tool("opening_hours", "When a branch is open.", branch="Name of the branch"),
)
_MUSIC = (
    _tool("play", "Play a song or an album.", ["title"], title="Title", artist="Artist"),
    _tool("set_volume", "Set the volume in percent.", percent=_INTEGER),
    _tool("make_playlist", "Make a playlist.", name="Name", songs=_WORDS),
)
_CODE = (
    _tool("read_file", "Read a file of the repository.", path="Path in the repository"),
    _tool(
        "run_tests", "Run tests and give their output.", ["path"], path="File or folder", verbose={"type": "boolean"}
    ),
    _tool("grep", "Find a pattern in the files.", ["pattern"], pattern="Regular expression", folder="Where"),
    _tool("create_branch", "Create a branch.", name="Name", base="Branch to start from"),
)
_CLINIC = (
    _tool("free_slots", "Free appointments of a doctor.", doctor="Surname", date="YYYY-MM-DD"),
    _tool("book_slot", "Book an appointment.", doctor="Surname", date="YYYY-MM-DD", time="HH:MM", patient="Name"),
    _tool("doctor_for", "Which doctor sees patients with a complaint.", complaint="What hurts"),
)
_FIGURES = (
    _tool("calculate", "Work out an arithmetic expression.", expression="Expression, with + - * / and brackets"),
    _tool("convert", "Convert between units.", value=_NUMBER, source="Unit", wanted="Unit"),
    _tool("query_database", "Run a SQL query, read only.", sql="The query"),
    _tool("web_search", "Search the web.", query="What to look for"),
)

_WITH_TOOLS: tuple[tuple[tuple[Spec, ...], tuple[str, ...]], ...] = (
    (
        _LIBRARY,
        (
            "Do you have anything by Ursula K. Le Guin?",
            "Please reserve the book with the ISBN 978-0-14-044926-6 for Hannah Brandt.",
            "Show me at most three books about beekeeping.",
            "When can I come to the Riverside branch?",
            "Reserve 978-3-16-148410-0 for Tomas Lind and tell me when the Harbour branch is open.",
            "What is an ISBN? One sentence is enough.",
            "Look for books on Roman roads and for books on Roman bridges.",
            "Thank you, that was all.",
        ),
    ),
    (
        _MUSIC,
        (
            "Play Blue in Green by Miles Davis.",
            "That is too loud, make it 30 percent.",
            "Make a playlist called Sunday with Here Comes the Sun, Lovely Day and Feeling Good.",
            "Turn the volume up to 80 and play Thunderstruck.",
            "Which instruments does a string quartet have?",
            "Put on the album Kind of Blue.",
            "I would like to hear something by Nina Simone, say Feeling Good.",
            "Hello! What can you do for me?",
        ),
    ),
    (
        _CODE,
        (
            "What is in src/parser.py?",
            "Run the tests in tests/unit, verbosely.",
            "Where in the folder src is the function load_config used?",
            "Start a branch fix-timeout from main.",
            "Read setup.cfg and pyproject.toml.",
            "What is the difference between a merge and a rebase?",
            "Find all TODO comments.",
            "Create the branch release-2.1 from develop, and then run the tests in tests.",
        ),
    ),
    (
        _CLINIC,
        (
            "Is there something free with Dr. Osei on 2026-09-14?",
            "Book Dr. Martin on 2026-10-02 at 09:30 for Lena Fischer.",
            "Which doctor should I see about my knee?",
            "Check Dr. Ito's and Dr. Weber's free appointments on 2026-11-20.",
            "How many hours before a blood test should one not eat?",
            "My ear hurts. Who can have a look at it?",
            "I have changed my mind, I do not need an appointment.",
        ),
    ),
    (
        _FIGURES,
        (
            "How much is 17.5 percent of 2,348?",
            "Convert 72 miles to kilometres.",
            "How many customers are there in each country? The table customers has id, name and country.",
            "Find out who won the last Tour de France.",
            "Convert 5 pounds to kilograms and 12 inches to centimetres.",
            "What is a prime number?",
            "Work out (128 + 64) / 12.",
            "Which ten orders were the largest? The table orders has id, customer_id and total.",
            "A train covers 312 km in 2.4 hours. How fast is it on average?",
        ),
    ),
)
_WITH_RESULTS: tuple[tuple[tuple[Spec, ...], str, tuple[tuple[str, Spec, str], ...], str], ...] = (
    (_LIBRARY, "Do you have anything on sourdough?",
     (("search_books", {"query": "sourdough"}, '[{"title": "Bread for Beginners", "author": "M. Oduya"}]'),),
     "Yes, we have Bread for Beginners by M. Oduya."),
    (_LIBRARY, "When can I come to the Hill Street branch?",
     (("opening_hours", {"branch": "Hill Street"}, "Monday to Friday 9:00 to 18:00, Saturday 10:00 to 14:00"),),
     "The Hill Street branch is open from Monday to Friday, 9:00 to 18:00, and on Saturday from 10:00 to 14:00."),
    (_LIBRARY, "Please reserve 978-0-14-044926-6 for Jo Park.",
     (("reserve_book", {"isbn": "978-0-14-044926-6", "reader": "Jo Park"}, "reserved; ready on Friday"),),
     "The book is reserved for Jo Park and will be ready on Friday."),
    (_LIBRARY, "I am looking for books about the history of umbrellas.",
     (("search_books", {"query": "history of umbrellas"}, "[]"),),
     "I am sorry, the catalogue has no books about the history of umbrellas."),
    (_LIBRARY, "Is the Old Mill branch open on Sundays?",
     (("opening_hours", {"branch": "Old Mill"}, "error: there is no branch of this name"),),
     "There is no branch called Old Mill. Could you check the name?"),
    (_LIBRARY, "Who wrote Sailing at Night, and when does the Harbour branch open on Saturday?",
     (("search_books", {"query": "Sailing at Night"}, '[{"title": "Sailing at Night", "author": "I. Bell"}]'),
      ("opening_hours", {"branch": "Harbour"}, "Saturday: 10:00 to 16:00")),
     "Sailing at Night was written by I. Bell. The Harbour branch is open on Saturday from 10:00 to 16:00."),
    (_MUSIC, "Play So What by Miles Davis.",
     (("play", {"title": "So What", "artist": "Miles Davis"}, '{"status": "playing"}'),),
     "So What by Miles Davis is playing now."),
    (_MUSIC, "A bit quieter, please, say 40 percent.", (("set_volume", {"percent": 40}, '{"volume": 40}'),),
     "The volume is at 40 percent now."),
    (_MUSIC, "Make a playlist called Rain with Umbrella and Purple Rain.",
     (("make_playlist", {"name": "Rain", "songs": ["Umbrella", "Purple Rain"]}, "created, 2 songs"),),
     "The playlist Rain is ready, with 2 songs: Umbrella and Purple Rain."),
    (_MUSIC, "Put on Yesterday, at 25 percent.",
     (("set_volume", {"percent": 25}, '{"volume": 25}'), ("play", {"title": "Yesterday"}, '{"status": "playing"}')),
     "Yesterday is playing now, at a volume of 25 percent."),
    (_CODE, "What does src/config.py hold?",
     (("read_file", {"path": "src/config.py"}, "TIMEOUT = 30\nRETRIES = 3\n"),),
     "`src/config.py` sets TIMEOUT to 30 and RETRIES to 3."),
    (_CODE, "Do the tests in tests/unit pass?",
     (("run_tests", {"path": "tests/unit"}, "41 passed, 1 failed: test_retry.py::test_gives_up"),),
     "Not all of them: 41 passed, and test_gives_up in test_retry.py failed."),
    (_CODE, "Where is parse_date used?",
     (("grep", {"pattern": "parse_date", "folder": "."}, "src/report.py:12\nsrc/invoice.py:88"),),
     "`parse_date` is used in src/report.py, line 12, and in src/invoice.py, line 88."),
    (_CODE, "Start a branch fix-dates from main.",
     (("create_branch", {"name": "fix-dates", "base": "main"}, "created"),),
     "The branch fix-dates was created from main."),
    (_CODE, "Show me notes.txt.", (("read_file", {"path": "notes.txt"}, "error: no such file"),),
     "There is no file notes.txt. Is it in another folder?"),
    (_CLINIC, "Is there something free with Dr. Ito on 2026-11-20?",
     (("free_slots", {"doctor": "Ito", "date": "2026-11-20"}, '["09:30", "11:00", "15:15"]'),),
     "Yes, Dr. Ito is free at 09:30, 11:00 and 15:15 on 20 November 2026."),
    (_CLINIC, "Book Dr. Weber on 2026-10-05 at 14:00 for Ada Novak.",
     (("book_slot", {"doctor": "Weber", "date": "2026-10-05", "time": "14:00", "patient": "Ada Novak"}, "booked"),),
     "Done: Ada Novak sees Dr. Weber on 5 October 2026 at 14:00."),
    (_CLINIC, "Which doctor should I see about my back?",
     (("doctor_for", {"complaint": "back"}, '{"doctor": "Osei", "room": 12}'),),
     "Dr. Osei sees patients with back pain, in room 12."),
    (_CLINIC, "Can I see Dr. Martin on 2026-12-24?",
     (("free_slots", {"doctor": "Martin", "date": "2026-12-24"}, "[]"),),
     "I am sorry, Dr. Martin has nothing free on 24 December 2026."),
    (_FIGURES, "How much is 12 percent of 1,950?", (("calculate", {"expression": "0.12 * 1950"}, "234.0"),),
     "12 percent of 1,950 is 234."),
    (_FIGURES, "Convert 26.2 miles to kilometres.",
     (("convert", {"value": 26.2, "source": "miles", "wanted": "kilometres"}, "42.16"),),
     "26.2 miles are about 42.16 kilometres."),
    (_FIGURES, "How many orders were there in May? The table orders has id, customer_id, total and month.",
     (("query_database", {"sql": "SELECT COUNT(*) FROM orders WHERE month = 5"}, '[{"count": 318}]'),),
     "There were 318 orders in May."),
    (_FIGURES, "Who designed the Sydney Opera House?",
     (("web_search", {"query": "architect of the Sydney Opera House"}, "Jorn Utzon designed it; it opened in 1973."),),
     "Jorn Utzon designed the Sydney Opera House, which opened in 1973."),
    (_FIGURES, "What is the weather in Bergen like today?",
     (("web_search", {"query": "weather Bergen today"}, "Bergen: 7 degrees, rain, wind from the west"),),
     "It is 7 degrees and raining in Bergen today, with wind from the west."),
    (_FIGURES, "Work out 48 * 52, and then add 4.",
     (("calculate", {"expression": "48 * 52"}, "2496"), ("calculate", {"expression": "2496 + 4"}, "2500")),
     "48 * 52 is 2,496, and with 4 more it is 2,500."),
    (_FIGURES, "How tall is Mont Blanc in feet?",
     (("web_search", {"query": "height of Mont Blanc in metres"}, "Mont Blanc is 4,806 m high."),
      ("convert", {"value": 4806, "source": "metres", "wanted": "feet"}, "15767.7")),
     "Mont Blanc is 4,806 m high, which is about 15,768 feet."),
)  # fmt: skip
"""(tools, request, calls with their results, answer). The answers are written out: after a result, small models tend to
call the same tool again."""
_SYSTEMS_WITH_TOOLS = (
    "",
    "You are an assistant with tools. Use one whenever it helps, and answer directly when none is needed.",
    "Use the tools to find what you do not know. Be brief.",
)

_WITH_INSTRUCTIONS: tuple[tuple[str, str], ...] = (
    ("You are a concise assistant. Answer in one sentence.", "Why do leaves change colour in autumn?"),
    ("You are a concise assistant. Answer in one sentence.", "What does an index do in a database?"),
    ("You are a helpful assistant.", "Suggest three names for a small bakery."),
    ("You are a helpful assistant.", "Write a polite reply that declines an invitation to a wedding."),
    ("You are a patient tutor for children of ten.", "What is a fraction?"),
    ("You are a senior Python engineer. Reply with code only.", "Write a function that flattens a nested list."),
    ("You are a senior Python engineer. Reply with code only.", "Write a test for a function add(a, b)."),
    ("Answer with JSON only: an object with the fields city and country.", "Where is the Eiffel Tower?"),
    ("Answer with JSON only: an object with the field sentiment.", "The film was far too long and I was bored."),
    ("You are the support agent of a bicycle shop. Be friendly and short.", "My chain keeps falling off. What now?"),
    ("You are the support agent of a bicycle shop. Be friendly and short.", "Do you sell helmets for children?"),
    ("Translate what the user writes into German.", "The meeting has been moved to Thursday at noon."),
    ("Summarise what the user writes in one line.", "We tried two caches. The first was fast but lost entries under "
     "load; the second was slower by a tenth, and lost none. We kept the second."),
    ("Answer from the context alone; say so if it does not hold the answer.\n\nContext:\nThe Arctic tern breeds in the "
     "north and winters in the south. It flies about 70,000 km a year and may live for 30 years.",
     "How far does the Arctic tern fly in a year?"),
    ("Answer from the context alone; say so if it does not hold the answer.\n\nContext:\nVersion 4 adds a retry option "
     "to the client. It is off by default; set max_retries to turn it on. Version 5 will turn it on by default.",
     "How do I turn retries on in version 4?"),
    ("Answer from the context alone; say so if it does not hold the answer.\n\nContext:\nThe museum is open from "
     "Tuesday to Sunday, 10:00 to 18:00. Students pay half. The last guided tour begins at 16:30.",
     "Is the museum open on Mondays, and what do students pay?"),
    ("You are a meticulous editor. Correct the text and say nothing else.", "Their going to the libary tomorow."),
    ("You plan trips. Answer as a numbered list.", "What should I pack for three days of hiking in the Alps?"),
)  # fmt: skip

SYSTEM_PROMPTS = tuple(dict.fromkeys(system for system, _ in _WITH_INSTRUCTIONS if "Context:" not in system))
TOOL_SETS = tuple(tools for tools, _ in _WITH_TOOLS)
"""Instructions and tools beside which harmful requests are refused as well."""


def agent_requests() -> list[Spec]:
    """Rows of an ordinary set.

    `prompt`; `system` where there are instructions, `tools` where some are on offer, and `turns` and `answer` where
    some were called already.
    """
    rows: list[Spec] = [{"prompt": prompt, "system": system} for system, prompt in _WITH_INSTRUCTIONS]
    for tools, prompts in _WITH_TOOLS:
        for index, prompt in enumerate(prompts):
            system = _SYSTEMS_WITH_TOOLS[index % len(_SYSTEMS_WITH_TOOLS)]
            rows.append({"prompt": prompt, "system": system, "tools": list(tools)})
    for tools, prompt, calls, answer in _WITH_RESULTS:
        turns = with_calls(prompt, calls)
        rows += [
            {"prompt": prompt, "system": system, "tools": list(tools), "turns": turns, "answer": answer}
            for system in _SYSTEMS_WITH_TOOLS
        ]
    return rows
