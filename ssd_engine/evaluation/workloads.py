"""Workloads of the speed benchmark: what is asked, by kind of work."""

from __future__ import annotations

from ssd_engine.errors import InvalidRequestError

_RAILWAY = """The Meridian Line is a railway of 214 kilometres between Port Averley and Tessen. It was opened on
3 May 1921 and electrified in 1954. Its longest tunnel, the Corran Tunnel, has a length of 8,412 metres and was
dug between 1913 and 1920 by 2,300 workers. Trains stop at eleven stations, among them Lower Quill, Ambergate
and Saint Orrin. Since 2003 the line has been run by Averley Rail, which has 46 electric trains, each with seats
for 312 passengers. A trip from end to end takes two hours and ten minutes, and tickets cost 38 crowns, or 19
for children under twelve. In winter the section between Ambergate and Saint Orrin is closed when more than
ninety centimetres of snow lie on the pass."""
_MANUAL = """To clean the filter of the Halden 40 pump, close the inlet valve and press the red button for five
seconds. Wait until the green light is off. Turn the cover to the left and lift it out. Rinse the filter under
lukewarm water without soap, and let it dry for two hours in the shade. Never use a brush: it widens the mesh.
Put the filter back with the arrow pointing to the motor, close the cover, and open the inlet valve slowly. If
the pump hums and gives no water, air is in the pipe: loosen the screw marked with a drop until water comes,
then tighten it by hand. Change the filter after every 1,500 hours or once a year, whichever comes first. The
order number of a new filter is HF-40-2281."""
_HOUSE_RULES = """The reading room of the Ostrand Library is open from Tuesday to Saturday, from nine in the morning to
half past six in the evening; on Thursdays it stays open until nine. Bags and coats are left in the lockers on
the ground floor, which take a coin of two crowns and give it back. Up to six books may be ordered at a time, and
they lie ready at the desk after forty minutes. Maps and manuscripts are read in room 12 only, with pencils and
without cameras. Whoever is late in giving a book back pays half a crown a day, but never more than the price of
the book. Members under sixteen need a card that is signed by a parent. Cards are renewed every two years."""
_MINUTES = """Minutes of the harbour committee, 14 March. Present: Ms Aldous, Mr Ferro, Ms Lindqvist and Mr Okafor. The
committee agreed to dredge the north basin to a depth of 7.5 metres; the work begins on 2 May and takes eleven
weeks. Mr Ferro reported that the crane on pier 3 lifts 25 tonnes again since its cable was changed. The fee for
visiting yachts rises from 18 to 21 crowns a night, and the first night stays free for boats with children on
board. Ms Lindqvist will ask three firms what new lamps along the east mole would cost, and tell the committee on
11 April. The request of the rowing club for a second boathouse was put off until autumn."""
_DOCUMENTS = "\n\n".join((_RAILWAY, _MANUAL, _HOUSE_RULES, _MINUTES))
_MODULE = """```python
def total(prices, tax):
    result = 0
    for price in prices:
        result += price
    return result * (1 + tax)


def average(prices):
    return total(prices, 0) / len(prices)


def cheapest(prices, count):
    return sorted(prices)[:count]
```"""
_SETTINGS = """```toml
[server]
host = "127.0.0.1"
port = 8080
workers = 4

[database]
url = "postgres://localhost/orders"
pool_size = 10
timeout = 30
```"""

_CHAT = (
    "Explain in a few sentences how a bicycle stays upright.",
    "Write a Python function that merges two sorted lists into one sorted list.",
    "A shop sells pens at 3 for 2 euros. How much do 18 pens cost? Show the steps.",
    "Translate into French: 'The train to Lyon leaves at nine in the morning.'",
    "Write a short, polite e-mail that asks a colleague to move a meeting to Friday.",
    "List five differences between TCP and UDP.",
    "Summarise the story of the tortoise and the hare in three sentences.",
    'Give a JSON object that describes a book: "title", "author", "year" and "genres".',
)
_QUOTING = (
    "Quote the sentences that speak of the Corran Tunnel and of the trains.",
    "When is a section of the railway closed, and what does a ticket cost? Quote the text.",
    "Who runs the railway, since when, and where do its trains stop? Answer in the text's own words.",
    "Give the steps for cleaning the filter, word by word, as a numbered list.",
    "The pump hums and gives no water. What does the text say to do?",
    "When is the reading room open, and where are bags left? Quote the text.",
    "What does the text say of books that are given back late, and of maps? Quote it.",
    "What did the committee agree on, and what is Ms Lindqvist to do? Answer in the text's own words.",
)
_EDITS = (
    (_MODULE, "Rename the function `total` to `total_with_tax` everywhere and print the whole file."),
    (_MODULE, "Add a docstring to every function and print the whole file."),
    (_MODULE, "Add type hints to all functions and print the whole file."),
    (_MODULE, "Make `average` return 0 for an empty list and print the whole file."),
    (_MODULE, "Add a function `dearest` like `cheapest` and print the whole file."),
    (_SETTINGS, "Change the port to 9090 and print the whole file."),
    (_SETTINGS, "Add a section [cache] with size = 100 and print the whole file."),
    (_SETTINGS, "Print the same settings as JSON."),
)
_OBJECTS = (
    "the pumps HF-40, HF-60 and HF-80 with fields name, litres_per_minute, price and in_stock",
    "three employees with fields first_name, last_name, department, salary and start_date",
    "four cities of Italy with fields name, region, population and has_airport",
    "three books with fields title, author, year, pages and genres",
    "four HTTP status codes with fields code, name, is_error and description",
    "three recipes with fields name, minutes, servings and ingredients",
    "four planets with fields name, diameter_km, moons and has_rings",
    "three flights with fields number, origin, destination, departure and seats_left",
)

_PROMPTS: dict[str, tuple[str, ...]] = {
    "chat": _CHAT,
    "rag": tuple(f"Use the texts to answer.\n\n{_DOCUMENTS}\n\n{question}" for question in _QUOTING),
    "edit": tuple(f"{file}\n\n{task}" for file, task in _EDITS),
    "json": tuple(f"Give a JSON array of {objects}. Nothing but JSON." for objects in _OBJECTS),
}
"""Eight prompts each."""
WORKLOADS = tuple(_PROMPTS)


def prompts_of(workload: str) -> tuple[str, ...]:
    """What is asked; an unknown workload raises `InvalidRequestError`."""
    if workload not in _PROMPTS:
        raise InvalidRequestError(f"workload {workload!r} is unknown; use {', '.join(map(repr, WORKLOADS))}")
    return _PROMPTS[workload]
