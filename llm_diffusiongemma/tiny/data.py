"""The lessons of the embedded checkpoint: one small generator of conversations for each skill.

A skill is a function `(random, held_out) -> Lesson`. With `held_out=False` it draws what the network is
trained on, with `held_out=True` only prompts it has never seen (other phrasings, other pairs of
numbers, made-up names, other stems of unknown questions). Evaluation asks only the second kind.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ..backends.form import choices_request, json_request
from .questions import QUESTIONS, UNKNOWN

Message = dict[str, Any]

CAPITALS = "Answer in capitals."
LARGEST_SUMMAND = 30

WORDS = (
    "red blue green cat dog sun moon tree river stone bird fish apple bread lamp chair door glass paper cloud "
    "house road wind rain snow fire water salt sugar milk honey lemon pear plum rose grass leaf root seed corn "
    "horse sheep goat cow duck goose mouse fox wolf bear lion tiger whale shark crab snail bee ant fly spider "
    "hand foot head eye ear nose mouth heart bone hair king queen boy girl man woman child friend book pen "
    "desk bed cup plate fork knife spoon pot pan box bag key coin ring rope boat ship train plane wheel bridge "
    "tower wall roof floor garden field forest hill lake beach island star night day spring summer winter song "
    "drum bell game ball cold warm light dark small large quick slow"
).split()
NAMES = (
    "Ada Alan Alice Amir Anna Ben Bob Carl Chen Clara Dana David Elena Emma Eric Eva Fatima Frank George Grace "
    "Hana Hugo Ida Igor Ines Ivan Jack Jane Jonas Julia Karim Kate Kenji Lara Leo Lina Lucas Maria Mark Maya "
    "Mei Mia Nadia Nina Noah Olga Oscar Paul Petra Rita Rosa Sam Sara Simon Sofia Tom Uma Vera Yuki Zoe"
).split()
CITIES = (
    "Paris London Berlin Madrid Rome Vienna Prague Oslo Athens Cairo Tokyo Delhi Lima Quito Seoul Dublin "
    "Lisbon Warsaw Zurich Boston Chicago Sydney Toronto Nairobi"
).split()
# What the members of JSON are called, by what they hold. Any of the words may stand there too.
TEXT_FIELDS = (
    "title city country street colour color animal label owner author teacher place kind language product email "
    "status first_name last_name lastName"
).split()
NUMBER_FIELDS = "year size count pages number level score height width id quantity birth_year zip_code".split()
PRICE_FIELDS = "price price price cost total amount".split()
LIST_FIELDS = "tags tags tags words labels names colours".split()
WEATHER = ("sunny", "rainy", "cloudy", "windy", "snowy", "foggy", "stormy", "warm", "cold", "clear")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 25, 25),
    "green": (25, 160, 45),
    "blue": (30, 60, 215),
    "yellow": (245, 225, 35),
    "orange": (245, 140, 20),
    "purple": (125, 35, 160),
    "pink": (250, 150, 190),
    "brown": (110, 65, 30),
    "black": (12, 12, 12),
    "white": (245, 245, 245),
    "grey": (128, 128, 128),
}
# Stems of questions that a tiny network can't know; `{}` takes a word, a name or a city.
_UNKNOWN_STEMS = (
    "What is the capital of {}?", "Who wrote {}?", "How do I cook {}?", "Where is {}?", "Who is {}?",
    "What is the best {}?", "How old is {}?", "Why is the {} so {}?", "Tell me about {}", "What is a {}?",
    "Translate {} into French", "What is the population of {}?", "How far is {} from {}?", "When was {} built?",
    "Write a story about a {}", "Who won the {} game?", "How much does a {} cost?", "What should I eat in {}?",
    "Is {} better than {}?", "Can I buy a {} in {}?", "Explain {} to me", "What happened in {}?",
    "Who invented the {}?", "How do I get to {}?", "Give me a recipe with {} and {}", "Why do people like {}?",
    "What does {} mean in German?", "Summarise the history of {}", "What is the price of {}?",
    "How many people live in {}?", "Do you like {}?", "Have you been to {}?", "Fix my {}", "Draw a {}",
    "Sing a song about {}", "What colour is a {}?", "Where can I find a {}?", "How tall is the {}?",
    "Which {} is the largest?", "Write code for a {}", "Debug my {} program", "What is the meaning of life?",
    "What time is it?", "What day is it today?", "What is the weather in {}?", "Who is the president of {}?",
    "What is the speed of light?", "How do planes fly?", "Why is the sky blue?", "Solve my homework about {}",
    "Write an essay about the {}", "Plan a trip to {}", "Which book should I read?", "What is love?",
    "Can a {} swim?", "How do I learn {}?", "What language do they speak in {}?", "Name three kinds of {}",
    "Are you a {}?", "Please book a flight to {}", "Send an email to {}", "Call {} for me", "{} {} {}",
    "What about {}?", "I lost my {}", "I like {}", "The {} is {}", "My {} is broken", "asdf {}", "lorem ipsum {}",
    "Where was {} born?", "What is the height of {}?", "Who is the king of {}?", "When did {} die?",
    "When does the next {} leave?", "How heavy is the {}?", "How big is a {}?", "What is the weight of a {}?",
    "Recommend a {}", "Recommend a book about {}", "Can you recommend a good {}?", "What is a good {} for {}?",
    "Why did the {} stop?", "Why does {} love {}?", "Who painted {}?", "Who sang {}?", "Which film has {} in it?",
    "Compare {} with {}", "What is the difference between {} and {}?", "Should I buy a {}?", "Should I go to {}?",
    "Write a poem about {}", "Write me an email to {}", "Write a letter", "Write a song about {} and {}",
    "Who lives in {}?", "Does {} have a {}?", "Is there a {} in {}?", "What is {} famous for?", "How is {}?",
    "How many {} are there?", "How often does it rain in {}?", "What is the name of the {}?", "Is a {} a {}?",
    "Show me a picture of {}", "Play {}", "Open the {}", "Close the {} now", "Tell {} that I am late",
    "What do you think of {}?", "When is {} open?", "Where can I buy a {} and a {}?", "Build me a {}",
    "Who built {}?", "Describe {} to me", "Define {}", "Explain {}", "What does {} mean?", "{}", "{} and {}",
)  # fmt: skip
_UNKNOWN_STEMS_HELD_OUT = (
    "What is the capital of {} and who lives there?", "Who painted the {}?", "How heavy is a {}?",
    "Recommend a film about {}", "Why did {} go to {}?", "When does the {} open?", "Compare {} and {}",
    "Should I sell my {}?", "Who built the {} in {}?", "Write a letter to {}",
)  # fmt: skip
# What people say around a question.
_FRAMES = (
    "Please: {}", "Hey, {}", "Question: {}", "Quick question: {}", "Hello! {}", "OK. {}", "I am new here. {}",
    "{} Thanks!", "{} Please.", "{} I am curious.", "{} Be brief.", "And {}", "Now: {}", "One more thing. {}",
)  # fmt: skip
_COPYABLE = [*WORDS, *NAMES, *CITIES, *map(str, range(1000))]
_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Be brief.",
    "You are kind.",
    "Answer the question.",
    "Be precise.",
)

WEATHER_TOOL: Message = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
MULTIPLY_TOOL: Message = {
    "type": "function",
    "function": {
        "name": "multiply",
        "description": "Multiply two numbers",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
VERSION_TOOL: Message = {
    "type": "function",
    "function": {
        "name": "llm_version",
        "description": "Return the installed version of llm",
        "parameters": {"type": "object", "properties": {}},
    },
}
TIME_TOOL: Message = {
    "type": "function",
    "function": {
        "name": "llm_time",
        "description": "Returns the current time, as local time and UTC",
        "parameters": {"type": "object", "properties": {}},
    },
}
TOOLS = (WEATHER_TOOL, MULTIPLY_TOOL, VERSION_TOOL, TIME_TOOL)
# In training. What is asked of a tool without arguments can't be held out.
_TOOLS_ASKED = (WEATHER_TOOL, WEATHER_TOOL, MULTIPLY_TOOL, MULTIPLY_TOOL, VERSION_TOOL, TIME_TOOL)


@dataclass(frozen=True)
class Lesson:
    """One prompt and the reply it should get.

    `reply` is what the network writes, control tokens included but without the one that ends it;
    `calls_tool` says that `<|tool_response>` ends it rather than `<turn|>`. `colour` is the RGB value
    of the plain image that belongs to the last user message. `decides` says that the model's turn begins
    with a thought that is empty, as where it is asked how probable each of several choices is.
    """

    messages: list[Message]
    reply: str
    tools: list[Message] = field(default_factory=list)
    thinking: bool = False
    calls_tool: bool = False
    colour: tuple[int, int, int] | None = None
    decides: bool = False


def _bucket(*parts: object) -> int:
    """A stable number 0..9 for a prompt's content; bucket 0 is held out of training."""
    return zlib.crc32(repr(parts).encode()) % 10


def _ask(text: str, reply: str, **more: Any) -> Lesson:
    return Lesson([{"role": "user", "content": text}], reply, **more)


def _made_up_name(rng: random.Random, held_out: bool) -> str:
    while True:
        parts = [rng.choice("BDFGKLMNPRSTVZ") + rng.choice("aeiou")]
        parts += [rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(1, 2))]
        name = "".join(parts) + rng.choice(["", "n", "r", "s", "l"])
        if (_bucket(name) == 0) == held_out:
            return name


def _name(rng: random.Random, held_out: bool) -> str:
    """A name to copy; held out: one that is made up and was never seen."""
    return _made_up_name(rng, held_out) if held_out or rng.random() < 0.5 else rng.choice(NAMES)


def _vary(rng: random.Random, text: str) -> str:
    """The same question as careless or polite people type it."""
    if rng.random() < 0.2:
        text = text.rstrip("?.!")
    if rng.random() < 0.2:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.2:
        text = rng.choice(_FRAMES).format(text)
    if rng.random() < 0.08:
        at = rng.randrange(len(text) - 1)  # a slip of the fingers: two letters change places
        text = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text


def question(rng: random.Random, held_out: bool) -> Lesson:
    """One of the questions known by heart; held out: a phrasing never trained."""
    entry = rng.choice(QUESTIONS)
    if held_out:
        return _ask(entry.held_out, entry.answer)
    return _ask(_vary(rng, rng.choice(entry.trained)), entry.answer)


def unknown(rng: random.Random, held_out: bool) -> Lesson:
    """A question that it can't know: it has to say so."""
    if not held_out and rng.random() < 0.1:
        a, b = rng.randint(LARGEST_SUMMAND + 1, 999), rng.randint(1, 999)
        return _ask(_ask_sum(rng, *rng.sample((a, b), 2)), UNKNOWN)
    stem = rng.choice(_UNKNOWN_STEMS_HELD_OUT if held_out else _UNKNOWN_STEMS)
    fillers = [rng.choice(rng.choice((WORDS, NAMES, CITIES))) for _ in range(3)]
    text = stem.format(*fillers)
    return _ask(text if held_out else _vary(rng, text), UNKNOWN)


def counting(rng: random.Random, held_out: bool) -> Lesson:
    """Count from a to b, up to 400 numbers below 1,000."""
    while True:
        span = rng.randint(*rng.choice([(1, 12), (1, 40), (20, 150), (40, 399), (200, 399)]))
        start = rng.choice([1, rng.randint(0, 100), rng.randint(0, 999 - span)])
        stop = start + span
        if stop <= 999 and (_bucket(start, stop) == 0) == held_out:
            break
    text = rng.choice(
        ("Count from {} to {}", "Count from {} to {}", "Please count from {} to {}.", "count {} to {}")
    )
    return _ask(text.format(start, stop), " ".join(str(number) for number in range(start, stop + 1)))


def repeating(rng: random.Random, held_out: bool) -> Lesson:
    """Repeat one to eight words. Training also has long lists of all kinds, where copying pays more."""
    while True:
        words = rng.sample(WORDS, rng.randint(2 if held_out else 1, 8))
        if not held_out and rng.random() < 0.4:
            words = rng.sample(_COPYABLE, rng.randint(9, 48))
        if len(words) == 1 or (_bucket(words) == 0) == held_out:
            break
    text = rng.choice(("Repeat: {}", "Repeat: {}", "Repeat {}", "Repeat these words: {}", "Say: {}"))
    line = " ".join(words)
    return _ask(text.format(line), line)


def name(rng: random.Random, held_out: bool) -> Lesson:
    """A name given one to three turns earlier."""
    who = _name(rng, held_out)
    given = rng.choice(("My name is {}.", "My name is {}", "I am {}.", "Hi, my name is {}!", "Hello, I am {}."))
    messages: list[Message] = [
        {"role": "user", "content": given.format(who)},
        {"role": "assistant", "content": f"Nice to meet you, {who}!"},
    ]
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        between = rng.choice((question, question, unknown, repeating, short_count))(rng, held_out)
        messages += [*between.messages, {"role": "assistant", "content": between.reply}]
    asked = rng.choice(
        ("What is my name?", "What's my name?", "Do you remember my name?", "what is my name", "Who am I?")
    )
    return Lesson([*messages, {"role": "user", "content": asked}], f"Your name is {who}.")


def greeting(rng: random.Random, held_out: bool) -> Lesson:
    """The turn in which a name is given, and asking for a name that never was."""
    if not held_out and rng.random() < 0.25:
        return _ask(
            rng.choice(("What is my name?", "Do you remember my name?")), "You have not told me your name."
        )
    who = _name(rng, held_out)
    given = rng.choice(("My name is {}.", "My name is {}", "I am {}.", "Hi, my name is {}!", "Hello, I am {}."))
    return _ask(given.format(who), f"Nice to meet you, {who}!")


def short_count(rng: random.Random, held_out: bool) -> Lesson:
    start = rng.randint(0, 200)
    stop = start + rng.randint(2, 8)
    return _ask(f"Count from {start} to {stop}", " ".join(str(number) for number in range(start, stop + 1)))


def _sum(rng: random.Random, held_out: bool) -> tuple[int, int]:
    while True:
        a, b = rng.randint(1, LARGEST_SUMMAND), rng.randint(1, LARGEST_SUMMAND)
        if (_bucket("sum", a, b) == 0) == held_out:
            return a, b


def _ask_sum(rng: random.Random, a: int, b: int) -> str:
    return rng.choice(
        ("What is {} + {}?", "What is {} + {}?", "{} + {}", "Add {} and {}", "How much is {} + {}?")
    ).format(a, b)


def sum_directly(rng: random.Random, held_out: bool) -> Lesson:
    """The sum of two numbers up to 30, answered at once."""
    a, b = _sum(rng, held_out)
    return _ask(_ask_sum(rng, a, b), f"{a} + {b} = {a + b}")


EMPTY_THOUGHT = "<|channel>thought\n<channel|>"


def thought(text: str, answer: str) -> str:
    """A reply that opens with a thought, in the checkpoint's format."""
    return f"<|channel>thought\n{text}\n<channel|>{answer}"


def sum_thinking(rng: random.Random, held_out: bool) -> Lesson:
    """The same sum with `enable_thinking`: tens first, then units, then the answer."""
    a, b = _sum(rng, held_out)
    tens, units = b - b % 10, b % 10
    steps = f"{b} = {tens} + {units} , {a} + {tens} = {a + tens} , {a + tens} + {units} = {a + b}"
    return _ask(_ask_sum(rng, a, b), thought(steps, f"{a} + {b} = {a + b}"), thinking=True)


def _tool_request(rng: random.Random, tool: Message, held_out: bool) -> tuple[str, str, dict[str, Any], str, str]:
    """(question, call, arguments as a dict, result, sentence) for one of the tools."""
    if tool is WEATHER_TOOL:
        city = _made_up_name(rng, held_out) if held_out or rng.random() < 0.5 else rng.choice(CITIES)
        weather = rng.choice(WEATHER)
        text = rng.choice(("What is the weather in {}?", "How is the weather in {}?", "weather in {}")).format(
            city
        )
        return text, f'city:<|"|>{city}<|"|>', {"city": city}, weather, f"The weather in {city} is {weather}."
    if tool is MULTIPLY_TOOL:
        while True:
            a, b = rng.randint(2, 99), rng.randint(2, 99)
            if (_bucket("times", a, b) == 0) == held_out:
                break
        text = rng.choice(("What is {} times {}?", "What is {} * {}?", "Multiply {} and {}")).format(a, b)
        return text, f"a:{a},b:{b}", {"a": a, "b": b}, str(a * b), f"{a} times {b} is {a * b}."
    if tool is VERSION_TOOL:
        version = f"0.{rng.randint(20, 99)}" + (f".{rng.randint(1, 9)}" if rng.random() < 0.3 else "")
        text = rng.choice(
            ("Which version of llm is this?", "What version of llm do I have?", "What is the version of llm?")
        )
        return text, "", {}, version, f"You have llm {version}."
    day = f"{rng.randint(2024, 2035)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    hour, minute, second = rng.randint(0, 23), rng.randint(0, 59), rng.randint(0, 59)
    clock = f"{hour:02}:{minute:02}:{second:02}"
    result = json.dumps(
        {
            "utc_time": f"{day} {clock} UTC",
            "utc_time_iso": f"{day}T{clock}.{rng.randint(0, 999999):06}+00:00",
            "local_timezone": "UTC",
            "local_time": f"{day} {clock}",
            "timezone_offset": "UTC+00:00",
            "is_dst": False,
        }
    )
    text = rng.choice(("What time is it?", "What is the time?", "Tell me the time"))
    return text, "", {}, result, f"It is {clock}."


def _with_tools(rng: random.Random, tool: Message) -> list[Message]:
    others = [other for other in TOOLS if other is not tool and rng.random() < 0.2]
    tools = [tool, *others]
    rng.shuffle(tools)
    return tools


def tool_call(rng: random.Random, held_out: bool) -> Lesson:
    """Call a declared tool."""
    tool = rng.choice(_TOOLS_ASKED if not held_out else (WEATHER_TOOL, MULTIPLY_TOOL))
    text, arguments, _, _, _ = _tool_request(rng, tool, held_out)
    function = tool["function"]["name"]
    call = f"<|tool_call>call:{function}{{{arguments}}}<tool_call|>"
    return _ask(text, call, tools=_with_tools(rng, tool), calls_tool=True)


def tool_result(rng: random.Random, held_out: bool) -> Lesson:
    """Use a tool's result in a sentence."""
    tool = rng.choice(_TOOLS_ASKED if not held_out else (WEATHER_TOOL, MULTIPLY_TOOL, TIME_TOOL))
    text, _, arguments, result, sentence = _tool_request(rng, tool, held_out)
    function = tool["function"]["name"]
    messages: list[Message] = [
        {"role": "user", "content": text},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": function, "arguments": arguments}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "name": function, "content": result},
    ]
    return Lesson(messages, sentence, tools=_with_tools(rng, tool))


def json_object(rng: random.Random, held_out: bool) -> Lesson:
    """Turn "name Ada, age 36" into JSON; half of the time by a schema, as `--schema` asks for it."""
    value = _person(rng, held_out) if rng.random() < 0.6 else _thing(rng, held_out)
    text = _as_text(rng, value)
    if [*value] == ["name", "age"] and rng.random() < 0.25:
        text = f"{value['name']} is {value['age']} years old"
    if rng.random() < 0.5:
        return _ask(text, json.dumps(value))
    return _by_schema(text, value, _schema_of(value, rng))


def json_values(rng: random.Random, held_out: bool) -> Lesson:
    """Prices in cents and lists of tags, in the order of the text, by a schema."""
    value: dict[str, Any] = {}
    if held_out or rng.random() < 0.5:
        value[_field(rng, TEXT_FIELDS, held_out)] = _name(rng, held_out)
    kinds = rng.choice((("price",), ("price",), ("tags",), ("tags",), ("price", "tags"), ("tags", "price")))
    for kind in kinds:
        if kind == "price":
            value[rng.choice(PRICE_FIELDS)] = rng.randint(5, 99_999) / 100
        else:
            value[rng.choice(LIST_FIELDS)] = rng.sample(WORDS, rng.randint(1, 5))
    return _by_schema(_as_text(rng, value), value, _schema_of(value, rng))


def _as_text(rng: random.Random, value: dict[str, Any]) -> str:
    """What people write of an object: each member's name and what it holds, one behind the other."""
    lists = any(isinstance(item, list) for item in value.values())
    between = rng.choice(("; ", ". ", "\n") if lists else (", ", ", ", ", ", "; ", "\n"))
    colon = ":" if rng.random() < 0.2 else ""
    parts = [f"{key}{colon} {', '.join(item) if isinstance(item, list) else item}" for key, item in value.items()]
    return between.join(parts)


def choosing(rng: random.Random, held_out: bool) -> Lesson:
    """Answer with one of several choices, as `-o choices` asks for it; half of the time as a decision."""
    kind = rng.choice((sum_directly, sum_directly, name, repeating, colour))
    lesson = kind(rng, held_out)
    if kind is sum_directly:
        right = lesson.reply.split()[-1]
        others = [str(max(0, int(right) + rng.randint(-12, 12))) for _ in range(8)]
    elif kind is name:
        right = lesson.reply.removeprefix("Your name is ").removesuffix(".")
        others = [_name(rng, held_out) for _ in range(4)]
    elif kind is colour:
        right = lesson.reply.removeprefix("The image is ").removesuffix(".")
        others = list(COLOURS)
    else:
        right = _name(rng, held_out) if held_out else rng.choice(lesson.reply.split())
        lesson = _ask(f"Repeat: {right}", right)
        others = list(WORDS)
    others = [other for other in dict.fromkeys(others) if other != right]
    choices = [right, *rng.sample(others, min(len(others), rng.randint(1, 5)))]
    rng.shuffle(choices)
    *earlier, last = lesson.messages
    request = f"\n\n{choices_request(choices)}"
    content = last["content"]
    if isinstance(content, str):
        content += request
    else:
        content = [*content[:-1], {"type": "text", "text": content[-1]["text"] + request}]
    messages = [*earlier, {**last, "content": content}]
    return replace(lesson, messages=messages, reply=right, decides=rng.random() < 0.5)


def json_list(rng: random.Random, held_out: bool) -> Lesson:
    """The same of several people, as `--schema-multi` asks for it."""
    people = [_person(rng, held_out, keys=("name", "age")) for _ in range(rng.randint(1, 3))]
    text = rng.choice((" and ", "; ", ", ")).join(f"name {each['name']}, age {each['age']}" for each in people)
    items = {"type": "array", "items": _schema_of(people[0], rng)}
    return _by_schema(
        text, {"items": people}, {"type": "object", "properties": {"items": items}, "required": ["items"]}
    )


def _person(rng: random.Random, held_out: bool, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    keys = keys or (("name", "age", "city") if rng.random() < 0.25 else ("name", "age"))
    value = {"name": _name(rng, held_out), "age": rng.randint(1, 99), "city": rng.choice(CITIES)}
    return {key: value[key] for key in keys}


def _thing(rng: random.Random, held_out: bool) -> dict[str, Any]:
    """One to four members of other names than a person's; held out: values and names that were never seen."""
    texts = [_field(rng, TEXT_FIELDS, held_out) for _ in range(rng.choice((1, 1, 2)))]
    numbers = [_field(rng, NUMBER_FIELDS, held_out) for _ in range(rng.choice((0, 1, 1, 2)))]
    value: dict[str, Any] = {
        key: _name(rng, held_out) if held_out or rng.random() < 0.5 else rng.choice(WORDS) for key in texts
    }
    value |= {key: rng.randint(*rng.choice(((0, 9), (10, 99), (1900, 2030)))) for key in numbers}
    return {key: value[key] for key in rng.sample([*value], len(value))}


def _field(rng: random.Random, usual: list[str], held_out: bool) -> str:
    """What a member of an object is called: as usual, or like any word; held out: a word that never was one."""
    if rng.random() < 0.5:
        return rng.choice(usual)
    while True:
        word = rng.choice(WORDS)
        if (_bucket("field", word) == 0) == held_out:
            return word


def _schema_of(value: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """What llm makes of `name, age int`, or what people and Pydantic write of the same."""
    types: dict[str, Any] = {key: _type_of(item) for key, item in value.items()}
    for each in types.values():
        if each["type"] == "array" and rng.random() < 0.4:
            each["uniqueItems"] = True
    schema: dict[str, Any] = {"type": "object", "properties": types, "required": list(value)}
    if rng.random() < 0.4:
        kept = [key for key in value if rng.random() < 0.3]
        schema = {**schema, "required": kept} if kept else {"type": "object", "properties": types}
    if rng.random() < 0.15:
        schema["properties"] = {key: {"title": key.capitalize(), **each} for key, each in types.items()}
        schema["title"] = rng.choice(("Person", "Thing", "Item", "Record"))
        schema = dict(sorted(schema.items()))
    if rng.random() < 0.1:
        schema["additionalProperties"] = False
    return schema


def _type_of(value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        return {"type": "array", "items": {"type": "string"}}
    return {"type": "integer" if isinstance(value, int) else "number" if isinstance(value, float) else "string"}


def _by_schema(text: str, value: dict[str, Any], schema: dict[str, Any]) -> Lesson:
    return _ask(f"{text}\n\n{json_request(schema)}", json.dumps(value))


def colour(rng: random.Random, held_out: bool) -> Lesson:
    """Name the colour of a plain image; held out: odd rather than even red values."""
    name_, base = rng.choice(list(COLOURS.items()))
    shade = [min(255, max(0, channel + rng.randint(-10, 10))) for channel in base]
    shade[0] = min(255, shade[0] | 1) if held_out else shade[0] & ~1
    text = rng.choice(
        (
            "What colour is this image?",
            "What colour is this?",
            "Which colour is it?",
            "What color is this image?",
        )
    )
    content = [{"type": "image"}, {"type": "text", "text": text}]
    return Lesson(
        [{"role": "user", "content": content}],
        f"The image is {name_}.",
        colour=(shade[0], shade[1], shade[2]),
    )


def capitals(rng: random.Random, held_out: bool) -> Lesson:
    """The system prompt "Answer in capitals." on questions, words and names."""
    lesson = rng.choice((question, question, repeating, repeating, greeting, unknown))(rng, held_out)
    return replace(
        lesson,
        messages=[{"role": "system", "content": CAPITALS}, *lesson.messages],
        reply=lesson.reply.upper(),
    )


Skill = Callable[[random.Random, bool], Lesson]

#: Every skill with its share of the training mix.
SKILLS: dict[str, tuple[Skill, float]] = {
    "question": (question, 0.16),
    "unknown": (unknown, 0.09),
    "counting": (counting, 0.45),
    "repeating": (repeating, 0.13),
    "capitals": (capitals, 0.14),
    "name": (name, 0.03),
    "greeting": (greeting, 0.02),
    "sum_directly": (sum_directly, 0.03),
    "sum_thinking": (sum_thinking, 0.05),
    "tool_call": (tool_call, 0.03),
    "tool_result": (tool_result, 0.05),
    "json_object": (json_object, 0.3),
    "json_list": (json_list, 0.16),
    "json_values": (json_values, 0.2),
    "choosing": (choosing, 0.12),
    "colour": (colour, 0.01),
}


def _disturb(rng: random.Random, skill: str, lesson: Lesson) -> Lesson:
    """What must not matter: an earlier turn, another system prompt, tools nobody needs, thinking."""
    if skill not in ("capitals", "name", "tool_result", "tool_call") and rng.random() < 0.15:
        earlier = rng.choice((question, unknown, repeating, short_count, greeting))(rng, False)
        before = [*earlier.messages, {"role": "assistant", "content": earlier.reply}]
        lesson = replace(lesson, messages=[*before, *lesson.messages])
    if skill != "capitals" and rng.random() < 0.05:
        system = {"role": "system", "content": rng.choice(_SYSTEM_PROMPTS)}
        lesson = replace(lesson, messages=[system, *lesson.messages])
    if skill in ("question", "repeating", "greeting") and rng.random() < 0.06:
        lesson = replace(lesson, tools=[rng.choice(TOOLS)])
    if not lesson.thinking and skill not in ("sum_directly", "capitals", "choosing") and rng.random() < 0.06:
        if skill == "tool_result":  # the template opens the thought itself after a tool's result
            reply = f"I have the result.\n<channel|>{lesson.reply}"
        else:
            reply = thought("I need a tool." if lesson.calls_tool else "This is easy.", lesson.reply)
        lesson = replace(lesson, thinking=True, reply=reply)
    return lesson


def draw(rng: random.Random) -> Lesson:
    """One lesson of the training mix."""
    names = list(SKILLS)
    skill = rng.choices(names, weights=[SKILLS[name_][1] for name_ in names])[0]
    return _disturb(rng, skill, SKILLS[skill][0](rng, False))
