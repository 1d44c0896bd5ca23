"""The forty tasks of `tool_calls.py`: eight sets of tools, and for each set one task of every kind.

Long because it is a list.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Kind = Literal["tool", "arguments", "none", "two", "parallel"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Spec = dict[str, Any]

INSTRUCTIONS = "You are a helpful assistant. Call a tool where you need one; otherwise answer in plain words."


class Absent:
    """The value of an argument that is not given."""


ABSENT = Absent()


@dataclass(frozen=True, init=False)
class Either:
    """Several values of which each is right."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        object.__setattr__(self, "values", values)


@dataclass(frozen=True, init=False)
class AnyOrder:
    """A list whose order says nothing."""

    items: tuple[Any, ...]

    def __init__(self, *items: Any) -> None:
        object.__setattr__(self, "items", items)


@dataclass(frozen=True)
class Call:
    """An expected call. A pattern among the arguments is searched for; what is not named must not be given."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One request and the calls that answer it, in any order; none: text is the answer."""

    messages: list[dict[str, Any]]
    expected: tuple[Call, ...] = ()


@dataclass(frozen=True)
class Task:
    """One task, right when all its steps are. Later steps go on from the right calls, not from what a model wrote."""

    topic: str
    kind: Kind
    tools: list[Spec] = field(repr=False)
    steps: tuple[Step, ...]


def matches(expected: Any, actual: Any) -> bool:
    """Whether a value is as expected: text without regard to case and blanks around it, numbers by value."""
    match expected:
        case Either(values):
            return any(matches(value, actual) for value in values)
        case AnyOrder(items):
            return isinstance(actual, list) and same_in_any_order(items, actual)
        case re.Pattern():
            return isinstance(actual, str) and expected.search(actual) is not None
        case str():
            return isinstance(actual, str) and expected.strip().casefold() == actual.strip().casefold()
        case bool() | Absent():
            return actual is expected
        case int() | float():
            is_number = isinstance(actual, int | float) and not isinstance(actual, bool)
            return is_number and math.isclose(expected, actual)
        case dict():
            return isinstance(actual, dict) and all(
                matches(expected.get(key, ABSENT), actual.get(key, ABSENT)) for key in {*expected, *actual}
            )
    raise TypeError(f"no check for {expected!r}")


def same_in_any_order(expected: tuple[Any, ...], actual: list[Any]) -> bool:
    """Whether each actual value is one of the expected ones, and each of these is there once."""
    if len(expected) != len(actual):
        return False
    if not expected:
        return True
    first, *rest = actual
    return any(
        matches(item, first) and same_in_any_order(expected[:i] + expected[i + 1 :], rest)
        for i, item in enumerate(expected)
    )


def _text(description: str) -> Spec:
    return {"type": "string", "description": description}


def _number(description: str, **limits: float) -> Spec:
    return {"type": "number", "description": description, **limits}


def _integer(description: str, **limits: int) -> Spec:
    return {"type": "integer", "description": description, **limits}


def _one_of(*values: str) -> Spec:
    return {"type": "string", "enum": list(values)}


def _array(items: Spec, description: str) -> Spec:
    return {"type": "array", "items": items, "description": description}


def _object(required: dict[str, Spec], optional: dict[str, Spec] | None = None) -> Spec:
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


def _tool(name: str, description: str, required: dict[str, Spec], optional: dict[str, Spec] | None = None) -> Spec:
    function = {"name": name, "description": description, "parameters": _object(required, optional)}
    return {"type": "function", "function": function}


def _has(pattern: str) -> re.Pattern[str]:
    """Free text in which a pattern is found."""
    return re.compile(pattern, re.IGNORECASE | re.DOTALL)


def _ask(question: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": question}]


@dataclass(frozen=True)
class _Two:
    """Two calls in a row; `result` is what the first gives back."""

    question: str
    first: Call
    result: Any
    second: Call
    written: dict[str, Any] | None = None
    """Arguments of the first call as the conversation shows them, where what is expected of them is a pattern."""

    def steps(self) -> tuple[Step, Step]:
        messages = _ask(self.question)
        function = {"name": self.first.name, "arguments": self.written or self.first.arguments}
        call = {"id": "call_1", "type": "function", "function": function}
        history: list[dict[str, Any]] = [
            *messages,
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "name": self.first.name, "content": json.dumps(self.result)},
        ]
        return Step(messages, (self.first,)), Step(history, (self.second,))


@dataclass(frozen=True)
class _Topic:
    """One set of tools and a task of every kind."""

    name: str
    tools: list[Spec]
    tool: tuple[str, Call]
    arguments: tuple[str, Call]
    none: str
    two: _Two
    parallel: tuple[str, Call, Call]

    def tasks(self) -> Iterator[Task]:
        steps: dict[Kind, tuple[Step, ...]] = {
            "tool": (Step(_ask(self.tool[0]), self.tool[1:]),),
            "arguments": (Step(_ask(self.arguments[0]), self.arguments[1:]),),
            "none": (Step(_ask(self.none)),),
            "two": self.two.steps(),
            "parallel": (Step(_ask(self.parallel[0]), self.parallel[1:]),),
        }
        return (Task(self.name, kind, self.tools, steps[kind]) for kind in KINDS)


_FROM_TO = {"origin": _text("City"), "destination": _text("City"), "date": _text("YYYY-MM-DD")}
_TRAVEL = _Topic(
    "travel",
    [
        _tool("search_trains", "Find train connections between two cities.", _FROM_TO),
        _tool("search_flights", "Find flights between two cities.", _FROM_TO),
        _tool(
            "book_hotel",
            "Book a hotel room.",
            {"city": _text("City"), "check_in": _text("YYYY-MM-DD"), "nights": _integer("Number of nights", minimum=1)},
            {"guests": _integer("Number of guests; 1 if left out", minimum=1), "breakfast": {"type": "boolean"}},
        ),
        _tool("find_booking", "Look up a customer's booking.", {"surname": _text("Surname of the customer")}),
        _tool("cancel_booking", "Cancel a booking.", {"booking_id": _text("As find_booking gives it")}),
    ],
    tool=(
        "I want to go from Vienna to Graz by rail on 2026-05-04. Which connections are there?",
        Call("search_trains", {"origin": "Vienna", "destination": "Graz", "date": "2026-05-04"}),
    ),
    arguments=(
        "Book a hotel in Porto for two guests, from 2026-06-12, for 3 nights, with breakfast.",
        Call("book_hotel", {"city": "Porto", "check_in": "2026-06-12", "nights": 3, "guests": 2, "breakfast": True}),
    ),
    none="Why do passenger planes fly at such a high altitude? Answer in two sentences.",
    two=_Two(
        "Look up the booking of the customer with the surname Okafor, and then cancel it.",
        Call("find_booking", {"surname": "Okafor"}),
        {"booking_id": "TR-5521", "city": "Malaga", "check_in": "2026-08-02"},
        Call("cancel_booking", {"booking_id": "TR-5521"}),
    ),
    parallel=(
        "Find trains from Lille to Paris on 2026-03-02, and flights from Paris to Athens on 2026-03-03.",
        Call("search_trains", {"origin": "Lille", "destination": "Paris", "date": "2026-03-02"}),
        Call("search_flights", {"origin": "Paris", "destination": "Athens", "date": "2026-03-03"}),
    ),
)

_WEATHER = _Topic(
    "weather",
    [
        _tool(
            "current_weather",
            "The weather in a city at this moment.",
            {"city": _text("City")},
            {"unit": _one_of("celsius", "fahrenheit")},
        ),
        _tool(
            "forecast",
            "The weather in a city over the coming days.",
            {"city": _text("City"), "days": _integer("How many days", minimum=1, maximum=10)},
        ),
        _tool("air_quality", "How clean the air in a city is at this moment.", {"city": _text("City")}),
        _tool("colleague_city", "The city in which a colleague lives.", {"name": _text("Name of the colleague")}),
    ],
    tool=("Is the air in Delhi clean enough for a run right now?", Call("air_quality", {"city": "Delhi"})),
    arguments=(
        "How warm is it in Phoenix at the moment? In degrees Fahrenheit, please.",
        Call("current_weather", {"city": "Phoenix", "unit": "fahrenheit"}),
    ),
    none="What is the difference between weather and climate? Explain it in two sentences.",
    two=_Two(
        "Find out in which city my colleague Tomasz lives, and then get the forecast for that city for 3 days.",
        Call("colleague_city", {"name": "Tomasz"}),
        {"city": "Ljubljana"},
        Call("forecast", {"city": "Ljubljana", "days": 3}),
    ),
    parallel=(
        "What is the weather like right now in Oslo and in Cairo?",
        Call("current_weather", {"city": "Oslo", "unit": Either("celsius", ABSENT)}),
        Call("current_weather", {"city": "Cairo", "unit": Either("celsius", ABSENT)}),
    ),
)

_ROOM = _one_of("kitchen", "bedroom", "bathroom", "hall")
_HOME = _Topic(
    "home",
    [
        _tool(
            "set_light",
            "Switch the light of a room on or off.",
            {"room": _ROOM, "on": {"type": "boolean"}},
            {"brightness": _integer("Percent", minimum=0, maximum=100)},
        ),
        _tool("set_heating", "Set the heating of a room.", {"room": _ROOM, "degrees": _number("Degrees Celsius")}),
        _tool(
            "read_sensor",
            "Read a sensor in a room.",
            {"room": _ROOM, "sensor": _one_of("temperature", "humidity", "motion")},
        ),
        _tool("lock_door", "Lock a door of the house.", {"door": _one_of("front", "back", "garage")}),
    ],
    tool=("How humid is it in the bathroom?", Call("read_sensor", {"room": "bathroom", "sensor": "humidity"})),
    arguments=(
        "Switch the light in the bedroom on, at 30 percent brightness.",
        Call("set_light", {"room": "bedroom", "on": True, "brightness": 30}),
    ),
    none="How does an LED produce light? Two sentences are enough.",
    two=_Two(
        "Read the temperature in the kitchen, and then set the heating in the bedroom to exactly that temperature.",
        Call("read_sensor", {"room": "kitchen", "sensor": "temperature"}),
        {"value": 20.5, "unit": "celsius"},
        Call("set_heating", {"room": "bedroom", "degrees": 20.5}),
    ),
    parallel=(
        "Lock the front door, and switch off the light in the hall.",
        Call("lock_door", {"door": "front"}),
        Call("set_light", {"room": "hall", "on": False, "brightness": Either(0, ABSENT)}),
    ),
)

_OFFICE = _Topic(
    "office",
    [
        _tool(
            "create_event",
            "Put an event into the calendar.",
            {
                "title": _text("Title"),
                "date": _text("YYYY-MM-DD"),
                "start": _text("HH:MM"),
                "minutes": _integer("Length"),
            },
            {"attendees": _array({"type": "string"}, "Names of those who take part")},
        ),
        _tool("list_events", "The events of one day in the calendar.", {"date": _text("YYYY-MM-DD")}),
        _tool("find_contact", "Look up a person's e-mail address.", {"name": _text("Full name")}),
        _tool(
            "send_mail",
            "Send an e-mail.",
            {"to": _text("E-mail address"), "subject": _text("Subject"), "body": _text("Text of the mail")},
        ),
        _tool("set_reminder", "Remind the user.", {"text": _text("What to do"), "date": _text("YYYY-MM-DD")}),
    ],
    tool=("What is in my calendar for 2026-09-14?", Call("list_events", {"date": "2026-09-14"})),
    arguments=(
        "Create an event titled Budget review on 2026-10-05 at 14:30, 45 minutes long, with Amara and Jonas.",
        Call(
            "create_event",
            {
                "title": "Budget review",
                "date": "2026-10-05",
                "start": "14:30",
                "minutes": 45,
                "attendees": AnyOrder("Amara", "Jonas"),
            },
        ),
    ),
    none="Give me one friendly sentence to open a team meeting with.",
    two=_Two(
        "Look up the e-mail address of Priya Nair, and then send her a mail with the subject Slides that says that the "
        "slides are ready.",
        Call("find_contact", {"name": "Priya Nair"}),
        {"email": "p.nair@example.org"},
        Call("send_mail", {"to": "p.nair@example.org", "subject": "Slides", "body": _has(r"\bready\b")}),
    ),
    parallel=(
        "Remind me to pay the rent on 2026-11-01, and to water the plants on 2026-11-03.",
        Call("set_reminder", {"text": _has(r"\brent\b"), "date": "2026-11-01"}),
        Call("set_reminder", {"text": _has(r"\bplants\b"), "date": "2026-11-03"}),
    ),
)

_SHOP = _Topic(
    "shop",
    [
        _tool(
            "search_products",
            "Search the shop's products.",
            {"query": _text("Words to search for")},
            {"max_price": _number("Highest price, in euros")},
        ),
        _tool(
            "add_to_cart", "Put a product into the cart.", {"product_id": _text("Id"), "quantity": _integer("Pieces")}
        ),
        _tool("track_order", "Tell where an order is.", {"order_id": _text("Order number")}),
        _tool(
            "place_order",
            "Place an order for a customer.",
            {
                "customer": _object({"name": _text("Full name"), "city": _text("City")}),
                "items": _array(
                    _object({"product_id": _text("Id"), "quantity": _integer("Pieces")}), "What is ordered"
                ),
            },
        ),
    ],
    tool=("Where is my parcel? The order number is A-20417.", Call("track_order", {"order_id": "A-20417"})),
    arguments=(
        "Place an order for Lena Vogt in Bremen: two pieces of product P-11 and five pieces of product P-37.",
        Call(
            "place_order",
            {
                "customer": {"name": "Lena Vogt", "city": "Bremen"},
                "items": AnyOrder(
                    {"product_id": "P-11", "quantity": 2},
                    {"product_id": "P-37", "quantity": 5},
                ),
            },
        ),
    ),
    none="How do I get a coffee stain out of a white shirt? Answer in two sentences.",
    two=_Two(
        "Search the shop for a teapot for at most 40 euros, and then put one piece of what you find into my cart.",
        Call("search_products", {"query": _has(r"\bteapots?\b"), "max_price": 40}),
        [{"product_id": "P-88", "name": "Ceramic teapot, 1 litre", "price": 34.9}],
        Call("add_to_cart", {"product_id": "P-88", "quantity": 1}),
        written={"query": "teapot", "max_price": 40},
    ),
    parallel=(
        "Where are my orders B-310 and B-722?",
        Call("track_order", {"order_id": "B-310"}),
        Call("track_order", {"order_id": "B-722"}),
    ),
)

_CURRENCY = _one_of("EUR", "USD", "GBP", "CHF")
_BANK = _Topic(
    "bank",
    [
        _tool("get_balance", "The money in an account.", {"account": _one_of("checking", "savings")}),
        _tool(
            "convert_currency",
            "Convert an amount of money at today's rate.",
            {"amount": _number("Amount"), "from_currency": _CURRENCY, "to_currency": _CURRENCY},
        ),
        _tool(
            "transfer_money",
            "Transfer money to somebody.",
            {"recipient": _text("Full name"), "amount": _number("Amount"), "currency": _CURRENCY},
            {"purpose": _text("Shown to the recipient")},
        ),
        _tool("stock_price", "The price of a stock at this moment.", {"symbol": _text("Ticker symbol")}),
        _tool(
            "loan_payment",
            "The monthly payment of a loan.",
            {
                "principal": _number("Amount borrowed"),
                "annual_rate": _number("Interest in percent a year"),
                "years": _integer("Years to pay back"),
            },
        ),
    ],
    tool=("How much money do I have in my savings account?", Call("get_balance", {"account": "savings"})),
    arguments=(
        "What is the monthly payment of a loan of 250,000 over 20 years, with interest of 3.5 percent a year?",
        Call("loan_payment", {"principal": 250_000, "annual_rate": 3.5, "years": 20}),
    ),
    none="What is compound interest? Explain it in two sentences.",
    two=_Two(
        "Convert 80 pounds to euros, and then transfer the amount in euros that comes out to Marta Silva.",
        Call("convert_currency", {"amount": 80, "from_currency": "GBP", "to_currency": "EUR"}),
        {"amount": 93.6, "currency": "EUR"},
        Call(
            "transfer_money",
            {"recipient": "Marta Silva", "amount": 93.6, "currency": "EUR", "purpose": Either(ABSENT, _has(""))},
        ),
    ),
    parallel=(
        "Give me the current prices of the stocks AAPL and MSFT.",
        Call("stock_price", {"symbol": "AAPL"}),
        Call("stock_price", {"symbol": "MSFT"}),
    ),
)

_UNIT = _one_of("gram", "ounce", "millilitre", "cup")
_KITCHEN = _Topic(
    "kitchen",
    [
        _tool(
            "find_recipe",
            "Find a recipe.",
            {"ingredients": _array({"type": "string"}, "What it has to contain")},
            {"diet": _one_of("vegetarian", "vegan"), "max_minutes": _integer("Longest time it may take")},
        ),
        _tool("nutrition", "Calories and nutrients of a food.", {"food": _text("Food"), "grams": _number("Amount")}),
        _tool("set_timer", "Start a kitchen timer.", {"minutes": _number("Minutes"), "label": _text("What it is for")}),
        _tool("pantry_stock", "How much of something is in the pantry.", {"item": _text("What to look for")}),
        _tool(
            "convert_unit",
            "Convert an amount to another unit.",
            {"value": _number("Amount"), "from_unit": _UNIT, "to_unit": _UNIT},
        ),
    ],
    tool=(
        "How many calories do 150 grams of cooked rice have?",
        Call("nutrition", {"food": _has(r"\brice\b"), "grams": 150}),
    ),
    arguments=(
        "Find a vegan recipe with lentils and carrots that takes at most 30 minutes.",
        Call(
            "find_recipe",
            {
                "ingredients": AnyOrder(_has(r"^\s*lentils?\s*$"), _has(r"^\s*carrots?\s*$")),
                "diet": "vegan",
                "max_minutes": 30,
            },
        ),
    ),
    none="Why does bread dough rise? Explain it in two sentences.",
    two=_Two(
        "Look up how many grams of flour are in the pantry, and then convert that amount to ounces.",
        Call("pantry_stock", {"item": "flour"}),
        {"item": "flour", "grams": 850},
        Call("convert_unit", {"value": 850, "from_unit": "gram", "to_unit": "ounce"}),
    ),
    parallel=(
        "Start a timer of 8 minutes for the eggs, and another one of 25 minutes for the potatoes.",
        Call("set_timer", {"minutes": 8, "label": _has(r"\beggs?\b")}),
        Call("set_timer", {"minutes": 25, "label": _has(r"\bpotato(es)?\b")}),
    ),
)

_TICKETS = _Topic(
    "tickets",
    [
        _tool(
            "create_ticket",
            "Open a new ticket.",
            {"title": _text("Title"), "priority": _one_of("low", "medium", "high")},
            {"labels": _array({"type": "string"}, "Labels"), "assignee": _text("Who is to work on it")},
        ),
        _tool(
            "search_tickets",
            "Search the tickets.",
            {"text": _text("Words to search for")},
            {"status": _one_of("open", "closed")},
        ),
        _tool("assign_ticket", "Give a ticket to somebody.", {"ticket_id": _integer("Id"), "assignee": _text("Name")}),
        _tool("close_ticket", "Close a ticket.", {"ticket_id": _integer("Id")}),
        _tool("log_hours", "Note time worked on a ticket.", {"ticket_id": _integer("Id"), "hours": _number("Hours")}),
    ],
    tool=(
        "I have worked on ticket 88 for two and a half hours. Please note that down.",
        Call("log_hours", {"ticket_id": 88, "hours": 2.5}),
    ),
    arguments=(
        "Open a ticket with the title Login page times out, with high priority and the labels web and urgent.",
        Call(
            "create_ticket",
            {"title": "Login page times out", "priority": "high", "labels": AnyOrder("web", "urgent")},
        ),
    ),
    none="What is the difference between a bug report and a feature request? Answer in two sentences.",
    two=_Two(
        "Search the open tickets for the word printer, and then assign the one that you find to Kofi.",
        Call("search_tickets", {"text": "printer", "status": "open"}),
        [{"ticket_id": 412, "title": "Printer on the second floor jams", "status": "open"}],
        Call("assign_ticket", {"ticket_id": 412, "assignee": "Kofi"}),
    ),
    parallel=(
        "Close the tickets 17 and 23.",
        Call("close_ticket", {"ticket_id": 17}),
        Call("close_ticket", {"ticket_id": 23}),
    ),
)

_TOPICS = (_TRAVEL, _WEATHER, _HOME, _OFFICE, _SHOP, _BANK, _KITCHEN, _TICKETS)
TASKS: tuple[Task, ...] = tuple(task for topic in _TOPICS for task in topic.tasks())
